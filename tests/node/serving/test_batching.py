"""How samples become runs: the decision, the plans, the queue."""

import asyncio

import numpy as np
import pytest

from cyxcore import nn
from cyxcore.errors import DataError
from cyxnet.outcomes import ApiError
from cyxnode.serving.batcher import Batcher, ClientGone
from cyxnode.serving.batching import size_for, sizes, without_interruptions
from cyxnode.serving.predictor import Predictor
from tests.node.serving.models import Halting, mlp, model, samples


@pytest.mark.parametrize(("most", "found"), [(1, [1]), (8, [1, 2, 4, 8]), (12, [1, 2, 4, 8, 12])])
def test_plans_are_made_for_powers_of_two_and_the_largest(most, found):
    assert sizes(most) == found


def test_a_run_with_empty_places_is_taken_where_it_costs_nearly_the_same():
    assert size_for(3, {1: 100, 2: 101, 4: 102}) == 4


def test_no_place_stays_empty_where_each_sample_costs():
    assert size_for(3, {1: 100, 2: 200, 4: 400}) in (1, 2)
    assert size_for(33, {16: 1600, 32: 3100, 64: 6200}) == 32


def test_one_sample_is_run_alone():
    assert size_for(1, {1: 100, 2: 150, 4: 250}) == 1


MODULES = {
    "mlp": (nn.Sequential(nn.Linear(4, 70), nn.GELU(), nn.Linear(70, 3)), (4,)),
    "cnn": (
        nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(45, 3)),
        (2, 8, 8),
    ),
    "encoder": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (5, 8)),
    "lstm": (nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Softmax(-1)), (7, 6)),
}


@pytest.mark.parametrize("name", MODULES)
def test_every_batch_size_gives_a_sample_the_bits_that_it_gets_alone(name):
    module, shape = MODULES[name]
    held = model(module, shape)
    predictor = Predictor(held.graph, held.weights, 16)
    assert predictor.rows_independent
    rows = np.random.default_rng(5).standard_normal((16, *shape)).astype(np.float32)
    alone = np.concatenate([held.predict(rows[row : row + 1]) for row in range(16)])
    for size in predictor.run_ns:
        predictor.places(size)[...] = rows[:size]
        assert predictor.run(size).tobytes() == alone[:size].tobytes()


def test_runs_within_a_tick_of_the_clock_are_full_ones(monkeypatch):
    monkeypatch.setattr("cyxnode.serving.predictor.time.perf_counter_ns", lambda: 0)
    held = mlp()
    assert size_for(3, Predictor(held.graph, held.weights, 4).run_ns) == 4


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0, keepdims=True)


def test_a_model_whose_samples_change_each_other_is_run_one_by_one():
    held = model(Centred(), (4,))
    predictor = Predictor(held.graph, held.weights, 8)
    assert not predictor.rows_independent
    assert predictor.max_batch == 1


def test_a_model_that_does_not_fit_is_refused_and_batches_that_do_not_are_not_made():
    held = mlp()
    whole = Predictor(held.graph, held.weights, 64).memory_bytes
    assert Predictor(held.graph, held.weights, 64, whole - 1).max_batch == 32
    with pytest.raises(DataError, match="for one sample, and may take 100; give it more with --memory"):
        Predictor(held.graph, held.weights, 64, 100)


@pytest.fixture
def halting():
    """(batcher, predictor, the model)."""
    held = mlp()
    predictor = Halting(held.graph, held.weights, 4)
    batcher = Batcher(predictor, max_queue=8)
    predictor.sizes.clear()
    yield batcher, predictor, held
    predictor.go_on.set()
    batcher.close()


async def test_who_waits_while_a_run_goes_on_shares_the_next_one_in_the_order_of_coming(halting):
    batcher, predictor, held = halting
    predictor.go_on.clear()
    rows = samples(6)
    asked = [asyncio.create_task(batcher.predict(rows[:1]))]
    while not predictor.sizes:
        await asyncio.sleep(0)
    answered = []
    for row in range(1, 6):
        asked.append(asyncio.create_task(batcher.predict(rows[row : row + 1])))
        asked[-1].add_done_callback(lambda _, row=row: answered.append(row))
        await asyncio.sleep(0)
    predictor.go_on.set()
    found = await asyncio.gather(*asked)
    assert predictor.sizes == [1, 4, 1]
    assert answered == [1, 2, 3, 4, 5]
    assert np.concatenate(found).tobytes() == held.predict(rows).tobytes()


async def test_requests_that_come_together_are_run_together(halting):
    batcher, predictor, held = halting
    rows = samples(4)
    found = await asyncio.gather(*[batcher.predict(rows[row : row + 1]) for row in range(4)])
    assert predictor.sizes == [4]
    assert np.concatenate(found).tobytes() == held.predict(rows).tobytes()


async def test_a_request_of_many_samples_is_spread_over_runs(halting):
    batcher, predictor, held = halting
    rows = samples(7)
    assert (await batcher.predict(rows)).tobytes() == held.predict(rows).tobytes()
    assert predictor.sizes == [4, 4]  # the second has an empty place, which costs nothing here
    assert (await batcher.predict(rows[:0])).shape == (0, 3)


async def test_the_thread_goes_on_without_the_event_loop_for_as_long_as_anybody_waits(halting):
    batcher, predictor, held = halting
    predictor.go_on.clear()
    rows = samples(7)
    asked = [asyncio.create_task(batcher.predict(rows[row : row + 1])) for row in range(7)]
    while len(predictor.sizes) < 1:
        await asyncio.sleep(0)
    predictor.go_on.set()
    while batcher.samples < 7:
        pass  # the loop is busy with others
    assert predictor.sizes == [4, 4] and not any(task.done() for task in asked)
    assert np.concatenate(await asyncio.gather(*asked)).tobytes() == held.predict(rows).tobytes()


async def test_a_full_queue_says_when_to_come_again(halting):
    batcher, predictor, _ = halting
    predictor.go_on.clear()
    first = asyncio.create_task(batcher.predict(samples(1)))
    while not predictor.sizes:
        await asyncio.sleep(0)
    waiting = asyncio.create_task(batcher.predict(samples(8)))
    await asyncio.sleep(0)
    with pytest.raises(ApiError, match="8 samples wait; again in [0-9]+ ms") as caught:
        await batcher.predict(samples(1))
    assert caught.value.status == 429 and caught.value.retry_after_ms > 0
    predictor.go_on.set()
    await asyncio.gather(first, waiting)
    with pytest.raises(ApiError, match="expected at most 8 samples in a request, got 9") as caught:
        await batcher.predict(samples(9))
    assert caught.value.status == 413


async def test_nothing_is_computed_for_who_hung_up(halting):
    batcher, predictor, _ = halting
    predictor.go_on.clear()
    first = asyncio.create_task(batcher.predict(samples(1)))
    while not predictor.sizes:
        await asyncio.sleep(0)
    gone = asyncio.create_task(batcher.predict(samples(4), lambda: True))
    cancelled = asyncio.create_task(batcher.predict(samples(2)))
    await asyncio.sleep(0)
    cancelled.cancel()
    predictor.go_on.set()
    await asyncio.wait([first, gone, cancelled])
    assert isinstance(gone.exception(), ClientGone) and predictor.sizes == [1] and batcher.queued == 0


async def test_only_who_asked_for_the_impossible_is_told_so():
    held = model(nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(8, 3)), (2,), "int64")
    predictor = Predictor(held.graph, held.weights, 4)
    batcher = Batcher(predictor)
    rows = np.array([[1, 2], [3, 10], [4, 5]])
    asked = [batcher.predict(rows[row : row + 1]) for row in range(3)]
    first, second, third = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(second, DataError)
    assert np.concatenate([first, third]).tobytes() == held.predict(rows[[0, 2]]).tobytes()
    batcher.close()


async def test_a_run_may_wait_for_more_but_not_once_it_is_full():
    held = mlp()
    predictor = Halting(held.graph, held.weights, 4)
    predictor.sizes.clear()
    batcher = Batcher(predictor, max_wait_s=3600)
    await asyncio.gather(*[batcher.predict(samples(1)) for _ in range(4)])
    assert predictor.sizes == [4]
    batcher.close()


def test_a_size_that_was_measured_beside_other_work_is_not_shunned():
    assert without_interruptions({1: 10.0, 2: 900.0, 4: 24.0, 8: 9e6}) == {1: 10.0, 2: 20.0, 4: 24.0, 8: 48.0}

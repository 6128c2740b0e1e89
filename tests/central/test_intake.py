"""What a job must be before central takes it."""

import pytest
from msgspec.structs import replace

from cyxcentral import intake, nodes
from cyxcore.errors import SpecError
from cyxcore.spec import ModelSpec, TrainingSpec
from cyxnet import messages as m
from cyxnet.bus import ApiError
from tests.central import facts as f


def linear(out_features):
    return ModelSpec(input=[4], layers=[{"kind": "Linear", "out_features": out_features}])


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**100])
@pytest.mark.parametrize(
    "model", [linear, lambda number: ModelSpec(graph={"version": number, "nodes": []})], ids=["layers", "graph"]
)
def test_a_number_that_no_message_holds_is_refused(model, number):
    # OverflowError, a traceback in central's log
    with pytest.raises(SpecError, match="64 bits"):
        intake.examine(f.job_request(model=model(number)))


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": m.ArtifactRef(sha256="a" * 64, size=2**62)},
        {"facts": m.DatasetFacts(rows=2**62, input_shape=[4], classes=3)},
    ],
    ids=["bytes", "flops"],
)
def test_a_job_larger_than_can_be_counted_is_refused(changes):
    # its event was stored and then in quarantine, because no ledger holds such a number; or no answer could say it
    with pytest.raises(SpecError, match="more than any machine has"):
        intake.examine(f.job_request(**changes))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"node_id": "another"}, "no node has this id"),
        ({"online": False}, "node-a: offline"),
        ({"online": False, "banned_until_ms": 1_800_000_000_000}, "node-a: banned until 2027"),
    ],
)
def test_a_job_for_one_node_that_cannot_run_it_says_what_is_with_that_node(changes, why):
    there = [replace(nodes.evolve(None, f.registered(node_id), 0), online=True) for node_id in ("node-a", "node-b")]
    there[0] = replace(there[0], **changes)
    job = replace(f.job_after(f.FUNDED), job=f.job_request(needs=m.Needs(node_id="node-a")))
    with pytest.raises(ApiError, match=rf"node-a, which is asked for and no other, cannot run the job \({why}"):
        intake.refuse_unfit(job, there)


SERVE = m.ServeSpec(deployment="d-" + "0" * 12, format="gguf", seconds=60)


@pytest.mark.parametrize("changes", [{}, {"needs": m.Needs(node_id="node-a-0123456789"), "serve": SERVE}])
def test_a_sealed_job_trains_on_a_node_that_it_names(changes):
    with pytest.raises(SpecError, match="sealed: expected a job that trains on the node of needs.node_id"):
        intake.examine(f.job_request(sealed=True, **changes))
    assert intake.examine(f.job_request(sealed=True, needs=m.Needs(node_id="node-a-0123456789")))


def test_a_job_for_a_gpu_needs_what_its_training_takes_there_and_never_less_than_it_asks_for():
    plain = intake.examine(f.job_request(needs=m.Needs(device="cuda")))
    assert plain.gpu_memory_bytes == 3 * 2**28  # half a GiB before the first tensor, and a small model
    asked = intake.examine(f.job_request(needs=m.Needs(device="cuda", gpu_memory_bytes=2**31 + 1)))
    assert (asked.gpu_memory_bytes, asked.memory_bytes) == (2**31 + 2**28, plain.memory_bytes)
    assert intake.examine(f.job_request()).gpu_memory_bytes == 0
    with pytest.raises(SpecError, match="only a job for device cuda has a GPU, this is for cpu"):
        intake.examine(f.job_request(needs=m.Needs(device="cpu", gpu_memory_bytes=1)))


def test_large_descriptions_are_not_remembered():
    # 256 of a megabyte each, and the graphs of 64: anybody could make central keep a gigabyte
    intake._examined.clear()
    intake._costs_of.cache_clear()
    intake._graph.cache_clear()
    layers = [{"kind": "Linear", "out_features": 4} for _ in range(2_000)]
    intake.examine(f.job_request(model=ModelSpec(input=[4], layers=layers)))
    kept = intake._costs_of.cache_info().currsize, intake._graph.cache_info().currsize
    assert (len(intake._examined), *kept) == (0, 0, 0)
    assert intake.examine(f.job_request()) is intake.examine(f.job_request())


def test_a_sweep_over_seeds_looks_at_its_model_once_and_fills_no_memory():
    intake._costs_of.cache_clear()
    jobs = [f.job_request(training=TrainingSpec(seed=seed)) for seed in range(intake.JOBS_REMEMBERED + 20)]
    plans = [intake.examine(job) for job in jobs]
    assert all(plan == plans[0] for plan in plans)
    assert intake._costs_of.cache_info().misses == 1
    assert len(intake._examined) == intake.JOBS_REMEMBERED
    assert intake.examined(jobs[-1])[0] is jobs[-1]
    assert intake.examined(jobs[0])[0] == jobs[0]
    larger = intake.examine(f.job_request(training=TrainingSpec(batch_size=512)))
    assert larger.memory_bytes > intake.examine(jobs[0]).memory_bytes

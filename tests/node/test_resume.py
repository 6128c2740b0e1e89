"""Real training that is interrupted and goes on: the same model, to the byte."""

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, get_args

import numpy as np
import psutil
import pytest
from msgspec.structs import replace

from cyxcore import checkpoint, layers, schedules
from cyxcore.errors import CheckpointError, DivergedError
from cyxcore.objectives import training_step
from cyxcore.spec import DataSpec, ModelSpec, OptimizerSpec, TrainingSpec
from cyxcore.training import Trainer
from cyxnet.messages import CheckpointPolicy, Needs, Pause, RunCheckpoint
from cyxnode.pipe import Done, Failed, Go, Halt, Halted, NotSaved, Order, Prepared, Said, Saved
from cyxnode.process import Launch, TrainingProcess
from cyxnode.saving import Saver
from cyxnode.train import train
from tests.node.fake_central import FakeCentral, make_assign

Start = Callable[..., Any]
LAYERS: list[dict[str, Any]] = [
    {"kind": "Linear", "out_features": 8},
    {"kind": "BatchNorm1d"},
    {"kind": "Dropout", "p": 0.2},
    {"kind": "Linear", "out_features": 2},
]
TABLE = ("a,b,label\n" + "".join(f"{a},{b},{int(a + b > 7)}\n" for a in range(8) for b in range(8))).encode()
TRAINING = TrainingSpec(epochs=3, batch_size=16, seed=5, optimizer=OptimizerSpec(learning_rate=0.02))  # 12 steps
LONG = replace(TRAINING, epochs=400, keep="last")  # long enough to be interrupted, about a second
WAIT_S = 60.0


@pytest.fixture
def order(tmp_path: Path) -> Order:
    (tmp_path / "data.csv").write_bytes(TABLE)
    return Order(
        model=ModelSpec(input=[2], layers=LAYERS),
        data=DataSpec(),
        training=TRAINING,
        data_path=str(tmp_path / "data.csv"),
        out_path=str(tmp_path / "model.cyxmodel"),
        threads=1,
        memory_bytes=0,
        file_bytes=10**8,
    )


class Told:
    """An ear that hears Go, and Halt after so many steps."""

    def __init__(self, halt_after: int = 10**9, go: bool = True):
        self.left, self.go = halt_after, go

    def wait_go(self) -> bool:
        return self.go

    def halt_asked(self) -> bool:
        self.left -= 1
        return self.left <= 0


def model_bytes(order: Order) -> bytes:
    assert isinstance(list(train(order, Told()))[-1], Done)
    return Path(order.out_path).read_bytes()


@pytest.mark.parametrize("halt_after", [1, 3, 4, 7])
def test_a_run_that_was_halted_and_resumed_delivers_the_same_bytes(order: Order, halt_after: int) -> None:
    whole = model_bytes(order)
    *_, saved, halted = train(order, Told(halt_after))
    assert isinstance(saved, Saved) and isinstance(halted, Halted) and saved.step == halted.step
    resumed = replace(order, resume_path=str(Path(order.out_path).with_name(saved.file)))
    prepared = next(train(resumed, Told()))
    assert isinstance(prepared, Prepared) and (prepared.step, prepared.steps) == (saved.step, 12)
    assert model_bytes(resumed) == whole


def test_the_end_of_an_epoch_is_told_before_its_checkpoint(order: Order) -> None:
    said = [type(one).__name__ for one in train(replace(order, every_steps=4), Told())]
    assert said[:7] == ["Prepared", "Batch", "Batch", "Batch", "Batch", "Epoch", "Saved"]


def test_a_run_that_is_told_nothing_makes_no_step(order: Order) -> None:
    assert list(train(order, Told(go=False)))[1:] == [Halted(step=0, steps=12)]


def test_a_run_that_is_all_but_done_is_done_instead_of_halted(order: Order) -> None:
    assert isinstance(list(train(replace(order, training=replace(TRAINING, epochs=1)), Told(4)))[-1], Done)


def test_a_checkpoint_waits_until_the_last_one_was_taken_away(order: Order) -> None:
    saved = [one for one in train(replace(order, every_steps=1), Told()) if isinstance(one, Saved)]
    assert [one.step for one in saved] == [1]
    folder, steps = Path(order.out_path).parent, []
    (folder / "checkpoint-1").unlink()
    for said in train(replace(order, every_steps=1), Told()):
        if isinstance(said, Saved):
            steps.append(said.step)
            (folder / said.file).unlink()
    assert steps == list(range(1, 12))  # the twelfth is the model


class Steps:
    """A trainer as the saver sees it."""

    def __init__(self) -> None:
        self.step, self.steps = 0, 100

    def checkpoint(self, path: Path, synced: bool) -> None:
        path.write_bytes(b"state")


def test_checkpoints_are_due_by_steps_or_by_time_whichever_is_first(tmp_path: Path) -> None:
    trainer, now_s = Steps(), 0.0
    saver = Saver(trainer, tmp_path, every_steps=10, every_s=60.0, clock=lambda: now_s)  # type: ignore[arg-type]
    due = []
    for step, now_s in ((5, 30.0), (6, 60.0), (7, 61.0), (16, 62.0), (17, 200.0)):  # noqa: B007
        trainer.step = step
        if saver.due():
            due.append(step)
            (saved,) = saver.save()
            assert isinstance(saved, Saved)
            (tmp_path / saved.file).unlink()
    assert due == [6, 16, 17]


def test_without_a_policy_no_checkpoint_is_due(tmp_path: Path) -> None:
    trainer = Steps()
    saver = Saver(trainer, tmp_path, every_steps=0, every_s=0.0, clock=lambda: 1e9)  # type: ignore[arg-type]
    trainer.step = 99
    assert not saver.due()


def test_a_disk_that_is_full_is_told_and_training_goes_on(order: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cyxcore.training.Trainer.checkpoint", full)
    said = list(train(replace(order, every_steps=5), Told()))
    told = [one.message for one in said if isinstance(one, NotSaved)]
    assert told[0] == "the checkpoint of step 5 cannot be written to this node's disk: No space left on device"
    assert isinstance(said[-1], Done)


def failing_at(call: int, method: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    """The method, which raises at one of its calls."""
    calls = itertools.count(1)

    def sometimes(*given: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise error
        return method(*given, **options)

    return sometimes


def saved_until(error: Exception, order: Order) -> list[int]:
    """The steps of the checkpoints that a run leaves which ends with the error."""
    steps, said = [], train(order, Told())
    with pytest.raises(type(error)) as caught:
        while True:
            one = next(said)
            steps += [one.step] if isinstance(one, Saved) else []
    assert caught.value is error
    return steps


@pytest.mark.parametrize(
    ("what", "call", "step"),
    [("cyxcore.schedules.factor", 7, 6), ("cyxcore.schedules.factor", 9, 8), ("cyxcore.model.save_model", 1, 12)],
)
def test_an_error_leaves_a_checkpoint_from_which_the_same_bytes_come(
    order: Order, monkeypatch: pytest.MonkeyPatch, what: str, call: int, step: int
) -> None:
    whole, error = model_bytes(order), MemoryError()
    with monkeypatch.context() as patched:
        patched.setattr(what, failing_at(call, resolve_name(what), error))
        assert saved_until(error, order) == [step]
    assert model_bytes(replace(order, resume_path=str(Path(order.out_path).with_name(f"checkpoint-{step}")))) == whole


@pytest.mark.parametrize(
    ("what", "call", "error"),
    [
        ("cyxcore.plan.Plan.run", 7, MemoryError()),  # within a step: who knows what it has written
        ("cyxcore.evaluation.Evaluator.evaluate", 2, MemoryError()),  # others have the checkpoint after the judging
        ("cyxnode.train.finite", 7, DivergedError("training: the loss became nan")),
    ],
)
def test_an_error_leaves_no_checkpoint_that_would_be_of_no_use(
    order: Order, monkeypatch: pytest.MonkeyPatch, what: str, call: int, error: Exception
) -> None:
    owner, _, name = what.rpartition(".")
    monkeypatch.setattr(resolve_name(owner), name, failing_at(call, resolve_name(what), error))
    assert saved_until(error, order) == []


@pytest.mark.parametrize("second", [MemoryError(), CheckpointError("checkpoint: what it would hold is no number")])
def test_what_keeps_a_checkpoint_after_an_error_hides_the_error_from_nobody(
    order: Order, monkeypatch: pytest.MonkeyPatch, second: Exception
) -> None:
    error = OSError(28, "No space left on device")
    monkeypatch.setattr("cyxcore.training.Trainer.checkpoint", failing_at(1, Trainer.checkpoint, second))
    monkeypatch.setattr("cyxcore.schedules.factor", failing_at(7, schedules.factor, error))
    assert saved_until(error, order) == []


def test_a_checkpoint_of_another_job_is_refused(order: Order) -> None:
    *_, saved, _ = train(order, Told(3))
    assert isinstance(saved, Saved)
    path = str(Path(order.out_path).with_name(saved.file))
    other = replace(order, training=replace(TRAINING, seed=6), resume_path=path)
    with pytest.raises(CheckpointError, match="training.seed: expected 6, got 5"):
        list(train(other, Told()))


def test_a_checkpoint_that_is_not_of_the_step_that_was_signed_is_refused(order: Order) -> None:
    *_, saved, _ = train(order, Told(3))
    assert isinstance(saved, Saved)
    resumed = replace(order, resume_path=str(Path(order.out_path).with_name(saved.file)))
    assert isinstance(list(train(replace(resumed, resume_at=(3, 12)), Told()))[-1], Done)
    for signed in ((9, 12), (3, 12_000)):  # the second: what weighs little among so many is hardly ever checked
        with pytest.raises(
            CheckpointError, match="signed as that of step {} of {}, it is that of step 3 of 12".format(*signed)
        ):
            list(train(replace(resumed, resume_at=signed), Told()))


def test_a_checkpoint_that_is_larger_than_any_of_its_run_is_refused_before_it_is_read(order: Order) -> None:
    path = Path(order.out_path).with_name("padded")
    with path.open("wb") as file:
        file.truncate(2**40)  # of holes: it takes no room here
    with pytest.raises(CheckpointError, match="expected at most .* bytes for a run of this model, got 1099511627776"):
        list(train(replace(order, resume_path=str(path)), Told()))


@pytest.mark.parametrize("name", get_args(OptimizerSpec.__annotations__["name"]))
def test_an_honest_checkpoint_is_far_smaller_than_that(name: Any) -> None:
    spec = replace(TRAINING, optimizer=OptimizerSpec(name=name, momentum=0.9, average_from=1))
    graph = layers.build(ModelSpec(input=[2], layers=LAYERS))
    count = sum(math.prod(each.shape) for each in graph.all_parameters)
    stored = [*graph.all_parameters, *training_step(graph, 4, spec).all_parameters]
    stored_bytes = sum(math.prod(each.shape) * np.dtype(each.dtype).itemsize for each in stored)
    assert stored_bytes < count * checkpoint.PARAMETER_BYTES / 2


# -- in a process of its own --------------------------------------------------------------------------------


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[TrainingProcess]:
    started = await TrainingProcess.start(Launch(work_folder=tmp_path / "work"))
    await started.wait_ready()
    yield started
    await started.close()


async def test_a_training_process_halts_between_two_steps(process: TrainingProcess, order: Order) -> None:
    process.tell(replace(order, training=LONG, out_path=str(process.folder / "model.cyxmodel")))
    process.tell(Go())
    said: list[Said] = []
    async for one in process.said():
        said.append(one)
        if len(said) == 3:
            process.tell(Halt())
    saved, halted = said[-2:]
    assert isinstance(saved, Saved) and isinstance(halted, Halted) and 0 < halted.step < halted.steps
    assert (process.folder / saved.file).is_file()


async def test_a_damaged_checkpoint_is_not_the_jobs_fault(process: TrainingProcess, order: Order) -> None:
    Path(order.out_path).write_bytes(b"no checkpoint")
    process.tell(replace(order, resume_path=order.out_path))
    (failed,) = [said async for said in process.said()]
    assert isinstance(failed, Failed) and (failed.code, failed.deterministic) == ("bad_checkpoint", False)


# -- from node to node --------------------------------------------------------------------------------------


async def take(node: Any, central: FakeCentral, **options: Any) -> Any:
    """Have a node take the job: its registration."""
    register = await central.wait_for("register", lambda said: said.node_id == node.home.node_id)
    await asyncio.wait_for(node.ready.wait(), WAIT_S)
    job = {"layers": LAYERS, "training": LONG, **options}
    reply = await central.command(register.node_id, make_assign(register, central.store.add(TABLE), **job))
    assert reply.accepted, reply.reason
    return register


def process_of_run(node: Any) -> psutil.Process:
    """The training process of the node's only run: not the one that is kept warm."""
    (work,) = node.agent._runs._works.values()
    return psutil.Process(work.process.pid)


async def test_a_run_that_runs_out_of_memory_says_what_it_had_and_gets_more_elsewhere(
    central: FakeCentral, start_node: Start
) -> None:
    small = {
        "needs": Needs(memory_bytes=2**20),
        "training": replace(TRAINING, epochs=1),
        "layers": [{"kind": "Linear", "out_features": 2000}, {"kind": "Linear", "out_features": 2000}, LAYERS[-1]],
    }
    await take(await start_node("train", name="first"), central, **small)
    failed = await central.wait_for("failed")
    assert (failed.code, failed.memory_bytes) == ("out_of_memory", 2**20)
    await take(await start_node("train", name="second"), central, attempt=2, memory_bytes=2**30, **small)
    assert (await central.wait_for("completed")).attempt == 2


@pytest.mark.parametrize("end", ["killed", "paused", "stopped"])
async def test_a_run_that_ends_on_one_node_goes_on_on_another_to_the_same_bytes(
    central: FakeCentral, start_node: Start, end: str
) -> None:
    whole = await start_node("train", name="whole")
    await take(whole, central, job_id="job-whole")
    expected = (await central.wait_for("completed")).model.sha256

    first = await start_node("train", name="first")
    policy = CheckpointPolicy(every_steps=50, every_s=0.0)
    register = await take(first, central, checkpoints=policy)
    await central.wait_for("checkpoint")
    if end == "killed":
        process_of_run(first).kill()
    elif end == "paused":
        await central.command(register.node_id, Pause(job_id="job-1", attempt=1, session=register.session))
    else:
        first.agent.stop("SIGTERM")
    failed = await central.wait_for("failed")
    assert failed.code == {"killed": "process_died", "paused": "paused", "stopped": "node_stopped"}[end]
    said = [message for _, message in central.heard if isinstance(message, RunCheckpoint)][-1]
    assert 0 < said.checkpoint.step < said.checkpoint.steps == 1600

    second = await start_node("train", name="second")
    await take(second, central, checkpoints=policy, attempt=2, resume=said.checkpoint)
    done = await central.wait_for("completed", lambda done: done.job_id == "job-1")
    assert done.attempt == 2 and done.model.sha256 == expected
    batches = [said.batch for verb, said in central.heard if verb == "progress" and said.attempt == 2 and said.batch]
    assert batches[0].step == said.checkpoint.step + 1

"""Real training in its own process, from an order to a model file."""

import errno
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

import cyxcore
from cyxcore.errors import CyxError, DataError, DivergedError, KernelError, MissingExtra, SpecError
from cyxcore.spec import BatchMetrics, DataSpec, EpochMetrics, ModelSpec, TrainingSpec
from cyxnode.pipe import Batch, Done, Epoch, Failed, Go, Order, Prepared, Said
from cyxnode.process import Launch, TrainingProcess
from cyxnode.train import BATCH_INTERVAL_S, Unattended, check_facts, failure, finite, prepare, serve, throttle, train
from tests.node import standin

LAYERS: list[dict[str, Any]] = [
    {"kind": "Linear", "out_features": 8},
    {"kind": "ReLU"},
    {"kind": "Linear", "out_features": 2},
]


@pytest.fixture
def order(tmp_path: Path) -> Order:
    """Two features, two classes that a line separates, 64 rows."""
    rows = [(a, b, int(a + b > 7)) for a in range(8) for b in range(8)]
    table = "a,b,label\n" + "".join(f"{a},{b},{label}\n" for a, b, label in rows)
    (tmp_path / "data.csv").write_text(table)
    return Order(
        model=ModelSpec(input=[2], layers=LAYERS),
        data=DataSpec(),
        training=TrainingSpec(epochs=3, batch_size=16, seed=5),
        data_path=str(tmp_path / "data.csv"),
        out_path=str(tmp_path / "model.cyxmodel"),
        threads=1,
        memory_bytes=0,
        file_bytes=10**8,
    )


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[TrainingProcess]:
    started = await TrainingProcess.start(Launch(work_folder=tmp_path / "work"))
    await started.wait_ready()
    yield started
    await started.close()


async def said_about(process: TrainingProcess, order: Order) -> list[Said]:
    process.tell(order)
    process.tell(Go())
    return [said async for said in process.said()]


def said_alone(order: Order) -> list[Said]:
    """What training says of the order in this process."""
    return list(train(order, Unattended()))


async def test_the_delivered_model_is_what_the_process_said_it_is(process: TrainingProcess, order: Order) -> None:
    assert process.ready.isa in ("avx512", "avx2", "portable")
    *_, done = await said_about(process, order)
    model = cyxcore.load_model(order.out_path)
    assert isinstance(done, Done)
    assert model.graph.sha256 == done.graph_sha256
    assert model.summary == replace(done.summary, total_time_ms=0.0)
    assert done.summary.train_rows + done.summary.validation_rows == 64


def test_every_epoch_and_the_first_batch_are_told(order: Order) -> None:
    said = said_alone(order)
    assert isinstance(said[0], Prepared) and isinstance(said[1], Batch) and said[1].metrics.step == 1
    assert [one.metrics.epoch for one in said if isinstance(one, Epoch)] == [1, 2, 3]


async def test_bad_data_is_a_deterministic_failure(process: TrainingProcess, order: Order) -> None:
    Path(order.data_path).write_text("a,b,label\n1,x,0\n2,3,1\n")
    (failed,) = await said_about(process, order)  # before it was ever prepared
    assert isinstance(failed, Failed) and (failed.code, failed.deterministic) == ("bad_data", True)
    assert failed.message.startswith("the data, column 'b', row 1: expected a number, got 'x'")  # and no path


def test_layers_that_do_not_fit_are_refused_with_the_layer(order: Order) -> None:
    layers = [{"kind": "Conv2d", "out_channels": 2, "kernel_size": 3}]
    with pytest.raises(CyxError, match="Conv2d"):
        end_of(replace(order, model=ModelSpec(input=[2], layers=layers)))


async def test_more_memory_than_the_job_may_take_is_out_of_memory(process: TrainingProcess, order: Order) -> None:
    wide = [{"kind": "Linear", "out_features": 2_000_000}, {"kind": "Linear", "out_features": 2}]
    order = replace(order, model=ModelSpec(input=[2], layers=wide), memory_bytes=30_000_000)
    failed = (await said_about(process, order))[-1]
    assert isinstance(failed, Failed) and (failed.code, failed.deterministic) == ("out_of_memory", False)


def test_data_that_are_too_large_for_this_node_are_not_said_to_be_bad(order: Order, tmp_path: Path) -> None:
    # a checker with less memory than the node would else have said that nobody can train on them
    np.savez(tmp_path / "large.npz", x=np.zeros((10_000, 2), "f4"), y=np.zeros(10_000, "i8"))
    order = replace(order, data=DataSpec(format="npz"), data_path=str(tmp_path / "large.npz"), memory_bytes=100_000)
    with pytest.raises(DataError, match="once in memory") as caught:
        prepare(order)
    failed = failure(caught.value)
    assert (failed.code, failed.deterministic) == ("out_of_memory", False)


@pytest.mark.parametrize("what", ["data_path", "resume_path"])
def test_what_the_disk_does_not_read_is_not_said_to_be_bad(
    order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    bad = tmp_path / "bad.npz"
    bad.write_bytes(b"PK\x03\x04 and so on")
    if what == "data_path":
        order = replace(order, data=DataSpec(format="npz"))
    order, opened = replace(order, **{what: str(bad)}), Path.open
    with pytest.raises(CyxError) as caught:
        prepare(order)
    assert failure(caught.value).code == ("bad_data" if what == "data_path" else "bad_checkpoint")

    def broken(name: Any, *args: Any, **options: Any) -> Any:
        if str(name) == str(bad):
            raise OSError(errno.EIO, "Input/output error")
        return opened(Path(name), *args, **options)

    monkeypatch.setattr("builtins.open", broken)
    monkeypatch.setattr(Path, "open", broken)
    with pytest.raises(CyxError) as caught:
        prepare(order)
    failed = failure(caught.value)
    assert (failed.code, failed.deterministic) == ("disk_error", False)


def end_of(order: Order) -> Done:
    *_, done = said_alone(order)
    assert isinstance(done, Done)
    return done


def test_the_same_order_gives_the_same_file(order: Order, tmp_path: Path) -> None:
    def weights(name: str) -> dict[str, bytes]:
        end_of(replace(order, out_path=str(tmp_path / name)))
        loaded = cyxcore.load_model(tmp_path / name).weights
        return {parameter: array.tobytes() for parameter, array in loaded.items()}

    assert weights("one.cyxmodel") == weights("two.cyxmodel")


def test_training_goes_on_from_given_weights(order: Order, tmp_path: Path) -> None:
    end_of(replace(order, out_path=str(tmp_path / "first.safetensors")))
    onward = replace(order, weights_path=str(tmp_path / "first.safetensors"))
    first_loss = next(said.metrics.epoch_loss for said in said_alone(order) if isinstance(said, Epoch))
    later_loss = next(said.metrics.epoch_loss for said in said_alone(onward) if isinstance(said, Epoch))
    assert later_loss < first_loss


def test_regression_delivers_a_model_in_the_units_of_the_target(order: Order) -> None:
    rows = "".join(f"{a},{b},{1000 + 3 * a + b}\n" for a in range(8) for b in range(8))
    Path(order.data_path).write_text("a,b,label\n" + rows)
    layers = [{"kind": "Linear", "out_features": 1}]
    training = TrainingSpec(epochs=2, batch_size=16, loss="mse")
    end_of(replace(order, model=ModelSpec(input=[2], layers=layers), training=training))
    predicted = cyxcore.load_model(order.out_path).predict([[4.0, 4.0]])
    assert 900 < float(predicted.ravel()[0]) < 1150


def test_a_graph_trains_like_the_layers_it_was_made_from(order: Order) -> None:
    plain = replace(order, data=DataSpec(normalize="none"))
    graph = cyxcore.build(order.model)
    as_graph = replace(plain, model=ModelSpec(graph=msgspec.json.decode(graph.to_bytes())))
    by_layers, by_graph = end_of(plain), end_of(as_graph)
    assert by_layers.graph_sha256 == by_graph.graph_sha256
    assert by_layers.summary.final_loss == by_graph.summary.final_loss


def test_a_device_that_this_node_has_not_is_for_another_node(order: Order) -> None:
    with pytest.raises(KernelError, match="the job needs tpu"):
        end_of(replace(order, device="tpu"))


@pytest.mark.skipif(cyxcore.device.missing("cuda") == "", reason="this machine has an NVIDIA device")
def test_a_node_without_a_gpu_says_why_it_cannot_train_on_one(order: Order) -> None:
    with pytest.raises((KernelError, MissingExtra), match="cuda: (no NVIDIA driver answers|the package .* is missing)"):
        end_of(replace(order, device="cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(cyxcore.device.missing("cuda") != "", reason=cyxcore.device.missing("cuda"))
def test_a_job_that_asks_for_cuda_is_trained_there_and_says_so(order: Order) -> None:
    end = end_of(replace(order, device="cuda"))
    assert end.summary.numerics == "cuda/1"


def test_a_graph_that_is_none_is_refused(order: Order) -> None:
    with pytest.raises((SpecError, cyxcore.errors.GraphError)):
        end_of(replace(order, model=ModelSpec(graph={"nodes": [{"op": "fly"}]})))


def test_data_that_reads_differently_here_than_at_the_submitter_is_refused(order: Order) -> None:
    order = replace(order, expected_rows=65, expected_input_shape=[2])
    with pytest.raises(DataError, match=r"read 65 rows of shape \[2\], this node reads 64 rows"):
        check_facts(order, 64, [2])


def test_the_very_first_batch_is_told_and_then_one_a_quarter_second() -> None:
    clock = iter([0.0, 0.01, BATCH_INTERVAL_S, BATCH_INTERVAL_S + 0.01])
    told = list(throttle(iter([standin.batch(step) for step in (1, 2, 3, 4)]), lambda: next(clock)))
    assert [said.metrics.step for said in told if isinstance(said, Batch)] == [1, 3]


def test_epochs_and_the_end_are_never_throttled() -> None:
    messages: list[Said] = [standin.epoch()] * 3
    assert len(list(throttle(iter(messages), lambda: 0.0))) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_divergence(value: float) -> None:
    metrics: BatchMetrics = replace(standin.batch(1).metrics, batch_loss=value)
    with pytest.raises(DivergedError, match="lower learning_rate"):
        finite(metrics)


def test_a_score_that_is_no_number_is_left_out() -> None:
    metrics: EpochMetrics = replace(standin.epoch().metrics, validation_r2=float("-inf"), samples_per_s=1e400)
    assert (finite(metrics).validation_r2, finite(metrics).samples_per_s) == (None, 0.0)


class OutOfMemoryException(Exception):
    """Named as DuckDB's class, which is no MemoryError."""


NO_MEMORY: list[Exception] = [
    MemoryError(),
    OutOfMemoryException("failed to allocate a block"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    ImportError("numpy/random/_bounded_integers.so: cannot map zero-fill pages"),
    SystemError("error return without exception set"),
]


@pytest.mark.parametrize("error", NO_MEMORY)
def test_a_reader_without_memory_makes_a_run_without_memory(
    order: Order, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    # it ended the process with a traceback, and the job went to a node that was as small
    assert [message.code for message in said_when(order, error, monkeypatch)] == ["out_of_memory"]


def said_when(order: Order, error: Exception, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a process tells of a training that ends with this error."""
    monkeypatch.setattr("cyxnode.train.sandbox.limit", lambda *limits: None)
    said: list[Any] = []

    class Pipe:
        def receive(self) -> Order:
            return order

        def send(self, message: Any) -> None:
            said.append(message)

    def fails(*given: Any) -> Any:
        raise error
        yield

    assert serve(Pipe(), fails) == 0  # type: ignore[arg-type]
    return said


@pytest.mark.parametrize(
    ("name", "said", "kinds"),
    [
        ("cupy.cuda.memory", "Out of memory allocating 1,024 bytes", (MemoryError,)),
        ("cupy_backends.cuda.api.runtime", "cudaErrorMemoryAllocation: out of memory", (RuntimeError,)),
        ("cupy_backends.cuda.api.driver", "CUDA_ERROR_OUT_OF_MEMORY: out of memory", (RuntimeError,)),
        ("cupy_backends.cuda.libs.cublas", "CUBLAS_STATUS_ALLOC_FAILED", (RuntimeError,)),
    ],
)
@pytest.mark.parametrize("within", [False, True])
def test_a_gpu_that_has_no_memory_left_says_what_it_had(
    order: Order,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    said: str,
    kinds: tuple[type[Exception], ...],
    within: bool,
) -> None:
    monkeypatch.setattr("cyxcore.cuda.mem_get_info", lambda: (2**30, 2**34))
    monkeypatch.setattr("cyxcore.cuda.memory_reserved", lambda: 2**31)
    error: Exception = type("OfCupy", kinds, {"__module__": name})(said)
    if within:
        error, error.__cause__ = KernelError("no room"), error
    (failed,) = said_when(order, error, monkeypatch)
    assert (failed.code, failed.deterministic, failed.gpu_memory_bytes) == ("out_of_memory", False, 3 * 2**30)
    assert "than its GPU had free on this node (3072 MiB)" in failed.message and "gpu_memory" in failed.message


def test_a_bug_of_ours_still_ends_with_its_traceback(order: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cyxnode.train.sandbox.limit", lambda *limits: None)

    class Pipe:
        def receive(self) -> Order:
            return order

    def fails(*given: Any) -> Any:
        raise ZeroDivisionError
        yield

    with pytest.raises(ZeroDivisionError):
        serve(Pipe(), fails)  # type: ignore[arg-type]

"""The training process: `python -m cyxnode.train`, started by the agent and spoken to through its pipes.

It is started before there is a job and makes itself warm: imports, kernels, and one tiny model trained to the
end, so that the first step of a real job comes at once. Then it prepares exactly one job, waits for the word to
begin, trains it, and ends. Between two steps it listens: told to halt, it leaves a checkpoint, and so it does when an
error comes.
"""

import contextlib
import errno
import gc
import math
import os
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from cyxcore.errors import CheckpointError, CyxError, DataError, DivergedError, FormatError, KernelError, MissingExtra
from cyxcore.spec import BatchMetrics, DataSpec, EpochMetrics, ModelSpec, TrainingSpec, TrainingSummary
from cyxnode import sandbox
from cyxnode.pipe import Batch, Channel, Done, Epoch, Failed, Halted, Order, Prepared, Ready, Said

if TYPE_CHECKING:
    from cyxnode.saving import Saver

BATCH_INTERVAL_S = 0.25  # at most four batches a second are told, besides the very first
DEVICE_HOST_BYTES = 4 * 2**30  # what a driver and the compiler of its kernels take of the host's memory at most
OF_THIS_NODE = (KernelError, MissingExtra, CheckpointError)  # not the job's fault: it may succeed elsewhere
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
NO_ROOM_TO_LOAD = ("cannot map zero-fill pages", "failed to map segment", "cannot allocate memory")
NO_ROOM_ON_GPU = ("out of memory", "out_of_memory", "alloc_failed")  # of the runtime, the driver, cuBLAS
ADVICE = "lower training.batch_size, or ask for more with memory in [needs]"
GPU_ADVICE = "lower training.batch_size, or ask for more with gpu_memory in [needs]"

Metrics = BatchMetrics | EpochMetrics


class Ear(Protocol):
    """What training hears while it works; pipe.Channel is one."""

    def wait_go(self) -> bool:
        """Until it may begin; False: it never will."""

    def halt_asked(self) -> bool:
        """Whether it shall halt; does not wait."""


Train = Callable[[Order, Ear], Iterator[Said]]


def main() -> int:
    channel = take_pipes()
    gc.disable()  # of all that is imported nothing goes
    started_s = time.perf_counter()
    try:
        isolated = sandbox.isolate(parent_pid=int(sys.argv[1]))
    except ProcessLookupError:
        return 0
    try:
        isa = rehearse()
        gc.freeze()
        gc.enable()
        warm_ms = (time.perf_counter() - started_s) * 1000
        channel.send(Ready(isolated=isolated, warm_ms=warm_ms, isa=isa))
    except BrokenPipeError:
        return 0
    except CyxError as error:
        channel.send(failure(error))
        return 1
    except OSError as error:  # the rehearsal writes files
        if error.errno not in OF_THE_DISK:
            raise
        channel.send(disk_failure(error))
        return 1
    return serve(channel, train)


def serve(channel: Channel, train: Train) -> int:
    """Take one order, train it, tell everything. Returns the exit status.

    Errors of the world become Failed; a bug of ours ends it with a traceback, which the agent reports.
    """
    order = channel.receive()
    if not isinstance(order, Order):
        return 0
    try:
        own = 0 if order.device == "cpu" else DEVICE_HOST_BYTES
        if order.device != "cpu":  # nothing of CUDA is loaded yet, which reads this once
            os.environ["CUDA_VISIBLE_DEVICES"] = order.gpu
        sandbox.limit(order.memory_bytes and order.memory_bytes + own, order.file_bytes)
        for said in throttle(train(order, channel), time.monotonic):
            channel.send(said)
    except CyxError as error:
        names = {order.data_path: "the data", order.weights_path: "the weights", order.resume_path: "the checkpoint"}
        channel.send(failure(error, names=names))
    except BrokenPipeError:  # the agent is gone, and with it everyone who wants to know
        return 0
    except Exception as error:
        if ran_out_of_gpu_memory(error):
            channel.send(gpu_out_of_memory())
        elif ran_out_of_memory(error):
            channel.send(out_of_memory(f"{order.memory_bytes} bytes" if order.memory_bytes else "all of it"))
        elif isinstance(error, OSError) and error.errno in OF_THE_DISK:
            channel.send(disk_failure(error))
        else:
            raise
    return 0


class Job(NamedTuple):
    """An order made ready to train."""

    dataset: Any
    trainer: Any
    prepared: Prepared


def prepare(order: Order) -> Job:
    """Everything before the first step: the data, the graph, the compiled step, the state to go on from."""
    from cyxcore import checkpoint, data, layers, training

    _set_up_device(order.device, order.threads)
    scaling, begun_s = order.data.normalize, time.perf_counter()
    dataset = data.load(
        Path(order.data_path),
        order.data,
        loss=order.training.loss,
        seed=order.training.seed,
        limit_bytes=order.memory_bytes or data.MAX_BYTES,
        kept_in=Path(order.data_path).parent,
        sha256=order.data_sha256,
    )
    check_facts(order, len(dataset.x_train) + len(dataset.x_val), list(dataset.x_train.shape[1:]))
    read_s = time.perf_counter()
    regression = dataset.task == "regression" and order.training.loss != "bce" and scaling != "none"
    graph = layers.build(order.model, normalize=scaling, denormalize=regression)
    built_s = time.perf_counter()
    if order.resume_path:
        rows, epochs = len(dataset.x_train), order.training.epochs
        checkpoint.check_size(order.resume_path, graph.all_parameters, rows, epochs)
    trainer = training.Trainer.of_job(
        graph,
        dataset,
        order.training,
        weights=None if order.resume_path else initial_weights(order),
        device=order.device,
        resume=order.resume_path,
    )
    if order.resume_at and order.resume_at != (trainer.step, trainer.steps):
        signed, found = "step {} of {}".format(*order.resume_at), f"step {trainer.step} of {trainer.steps}"
        raise CheckpointError(f"checkpoint: signed as that of {signed}, it is that of {found}")
    prepared = Prepared(
        step=trainer.step,
        steps=trainer.steps,
        data_ms=(read_s - begun_s) * 1000,
        graph_ms=(built_s - read_s) * 1000,
        plan_ms=(time.perf_counter() - built_s) * 1000,
    )
    return Job(dataset, trainer, prepared)


def train(order: Order, ear: Ear) -> Iterator[Said]:
    """Prepare, wait for the word to begin, train, save the model. Yields all that happens, last Done or Halted.

    What was learned outlives an error: where the last step is whole, it is raised after a checkpoint of that.
    """
    from cyxnode.saving import Saver

    job = prepare(order)
    trainer = job.trainer
    if order.end_step and not trainer.step < order.end_step <= trainer.steps:
        raise CheckpointError(
            f"a segment that begins after step {trainer.step} of {trainer.steps} cannot end at step {order.end_step}"
        )
    yield job.prepared
    if not ear.wait_go():
        yield Halted(step=trainer.step, steps=trainer.steps)
        return
    saver = Saver(trainer, Path(order.out_path).parent, order.every_steps, order.every_s)
    try:
        yield from train_on(order, job, ear, saver)
    except DivergedError:
        raise  # to go on from there would diverge again
    except Exception:
        # Judging an epoch comes between its last step and the checkpoint of that, which others compare with theirs.
        if not trainer.learner.in_step and trainer.batch != trainer.learner.batches:
            with contextlib.suppress(CyxError):  # what came first is to be told
                yield from saver.save()
        raise


def train_on(order: Order, job: Job, ear: Ear, saver: "Saver") -> Iterator[Said]:
    """train() from the first step on."""
    trainer, at_steps, summary = job.trainer, set(order.at_steps), None
    for said in trainer.run():
        if isinstance(said, TrainingSummary):
            summary = finite(said)
            continue
        yield Epoch(metrics=finite(said)) if isinstance(said, EpochMetrics) else Batch(metrics=finite(said))
        if isinstance(said, BatchMetrics) and said.batch == said.batches:
            continue  # the epoch's own metrics come first: a step has one checkpoint only
        ends, wanted = trainer.step == order.end_step, trainer.step in at_steps
        if trainer.step == trainer.steps and not (ends or wanted):
            continue  # all but done
        if ends or (trainer.step < trainer.steps and ear.halt_asked()):
            yield from saver.save()
            yield Halted(step=trainer.step, steps=trainer.steps)
            return
        if wanted or saver.due():
            yield from saver.save()
    assert summary is not None, "the trainer ended without a summary"
    save_model(order, job, summary)
    yield Done(summary=summary, graph_sha256=trainer.learner.graph.sha256)


def save_model(order: Order, job: Job, summary: TrainingSummary) -> None:
    """Write the model. Its bytes depend on the job alone, not on who trained it, how fast, or in how many parts."""
    from cyxcore import checkpoint, model

    trainer, dataset = job.trainer, job.dataset
    model.save_model(
        order.out_path,
        trainer.learner.graph,
        checkpoint.with_one_nan(trainer.weights),
        history=[checkpoint.untimed(metrics) for metrics in trainer.history],
        classes=dataset.classes,
        feature_names=dataset.feature_names,
        loss=order.training.loss,
        summary=msgspec.structs.replace(summary, total_time_ms=0.0),
    )


def initial_weights(order: Order) -> Any:
    """The parameters to begin with; None: they are drawn from the graph's initialisers and the seed.

    They come from a file of weights that was sent, or from the model that another job delivered.
    """
    from cyxcore import cyxmodel, safetensors

    if not order.weights_path:
        return None
    path = Path(order.weights_path)
    return cyxmodel.load(path).weights() if zipfile.is_zipfile(path) else safetensors.load(path)[0]


def check_facts(order: Order, rows: int, input_shape: list[int]) -> None:
    """The same bytes must read the same on both sides: raises DataError when they do not."""
    expected = (order.expected_rows, order.expected_input_shape)
    if expected[0] is not None and expected != (rows, input_shape):
        raise DataError(
            f"dataset: the submitter read {expected[0]} rows of shape {expected[1]}, this node reads "
            f"{rows} rows of shape {input_shape}; submit again with the same version of cyx on both sides"
        )


def throttle(messages: Iterator[Said], clock: Callable[[], float]) -> Iterator[Said]:
    """The very first batch, then a batch when the last told one is BATCH_INTERVAL_S old; all else at once."""
    told_s = -math.inf
    for said in messages:
        if isinstance(said, Batch):
            now_s = clock()
            if now_s - told_s < BATCH_INTERVAL_S:
                continue
            told_s = now_s
        yield said


def finite(metrics: Any) -> Any:
    """Metrics that JSON can hold. A loss that is NaN or infinite raises DivergedError; such a score is left out."""
    changes: dict[str, float | None] = {}
    for field in msgspec.structs.fields(metrics):
        value = getattr(metrics, field.name)
        if not isinstance(value, float) or math.isfinite(value):
            continue
        if field.name.endswith("loss"):
            at = f" in epoch {metrics.epoch}" if hasattr(metrics, "epoch") else ""
            raise DivergedError(
                f"{field.name} became {value}{at}: expected a finite number; lower learning_rate or scale the data"
            )
        changes[field.name] = None if field.default is None else 0.0
    return msgspec.structs.replace(metrics, **changes) if changes else metrics


class Unattended:
    """The ear of a rehearsal: begin at once, never halt."""

    def wait_go(self) -> bool:
        return True

    def halt_asked(self) -> bool:
        return False


def rehearse(folder: Path = Path(), device: str = "cpu") -> str:
    """Train a tiny model in `folder`, so that a real job meets nothing cold. Returns the kernels' ISA."""
    table, model = folder / "rehearsal.csv", folder / "rehearsal.cyxmodel"
    rows = [f"{(row * 7) % 5},{(row * 3) % 4},{row % 2}" for row in range(16)]
    table.write_text("a,b,label\n" + "\n".join(rows) + "\n")
    layer_list: list[dict[str, Any]] = [
        {"kind": "Linear", "out_features": 4},
        {"kind": "ReLU"},
        {"kind": "Linear", "out_features": 2},
    ]
    order = Order(
        model=ModelSpec(input=[2], layers=layer_list),
        data=DataSpec(),
        training=TrainingSpec(epochs=1, batch_size=8),
        device=device,
        data_path=str(table),
        out_path=str(model),
        threads=1,
        memory_bytes=0,
        file_bytes=0,
    )
    try:
        for _ in train(order, Unattended()):
            pass
    finally:
        table.unlink(missing_ok=True)
        model.unlink(missing_ok=True)
    return kernel_isa(device)


def _set_up_device(name: str, threads: int) -> None:
    """Raises KernelError when this node has no such device."""
    from cyxcore import device

    if name not in device.DEVICES:
        raise KernelError(f"this node trains on {', '.join(device.DEVICES)}, the job needs {name}")
    kernels = getattr(device.backend(name), "kernels", None)
    if kernels:
        kernels.set_num_threads(threads)


def kernel_isa(device_name: str) -> str:
    from cyxcore import device

    kernels = getattr(device.backend(device_name), "kernels", None)
    return kernels.isa() if kernels else device_name


def failure(error: CyxError, advice: str = ADVICE, names: Mapping[str | None, str] | None = None) -> Failed:
    """advice: what to do where there is not enough memory. names: of files by their paths, which stay on this machine:
    they say nothing to who submitted the job, and much of who lends the machine.
    """
    if ran_out_of_gpu_memory(error):
        return gpu_out_of_memory()
    if ran_out_of_memory(error):
        return out_of_memory(str(error), advice)
    code, deterministic = error.code, not isinstance(error, OF_THIS_NODE)
    if isinstance(error, FormatError | DataError) and any(isinstance(e, OSError) and e.errno for e in causes(error)):
        code, deterministic = "disk_error", False  # what a disk does not read says nothing of the file
    message = str(error)
    for path, name in (names or {}).items():
        message = message.replace(path[-200:], name) if path else message
    return Failed(code=code[:64], message=message[:2000], deterministic=deterministic)


def disk_failure(error: OSError) -> Failed:
    """What this node's disk did not take or give: it says nothing of the job."""
    why = f"the node's disk: {error.strerror}; its operator should free some space on it"
    return Failed(code="disk_error", message=why, deterministic=False)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it was made from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether this error, or one that it was made from, is about memory.

    DuckDB has a class of its own, calls of the system have ENOMEM, a library that finds no room to be loaded is an
    ImportError in the words of the loader (glibc, elf/dl-load.c), and where CPython has none left for the exception
    itself, an import of a module says that it failed without one.
    """
    return any(map(_is_of_memory, causes(error)))


def _is_of_memory(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, ImportError):
        return any(words in str(error).lower() for words in NO_ROOM_TO_LOAD)
    if isinstance(error, SystemError):
        return "without exception set" in str(error)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryException"


def out_of_memory(what: str, advice: str = ADVICE) -> Failed:
    said = f"the job needs more memory than it may take on this node ({what}); {advice}"
    return Failed(code="out_of_memory", message=said[:2000], deterministic=False)


def ran_out_of_gpu_memory(error: BaseException) -> bool:
    """Whether this error, or one that it was made from, is of CuPy and about memory: of its pool, or of a CUDA call."""
    return any(
        type(each).__module__.startswith("cupy")
        and (isinstance(each, MemoryError) or any(words in str(each).lower() for words in NO_ROOM_ON_GPU))
        for each in causes(error)
    )


def gpu_out_of_memory() -> Failed:
    """Says what this process could have had: what nobody uses, and what its own pool has taken."""
    from cyxcore import cuda

    had_bytes = cuda.mem_get_info()[0] + cuda.memory_reserved()
    said = f"the job needs more memory than its GPU had free on this node ({had_bytes >> 20} MiB); {GPU_ADVICE}"
    return Failed(code="out_of_memory", message=said, deterministic=False, gpu_memory_bytes=had_bytes)


def take_pipes() -> Channel:
    """The process's stdin and stdout for the channel alone: what a library prints goes to stderr instead."""
    read_fd, write_fd = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    return Channel(read_fd, write_fd)


if __name__ == "__main__":
    sys.exit(main())

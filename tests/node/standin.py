"""A training process whose training is made up: the real plumbing, pipes and sandbox, without the learning.

Run with the name of what it shall do and the agent's pid. It stands in where a test is about the agent, or about
a process that misbehaves in a way real training cannot be told to.
"""

import errno
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from cyxcore.errors import DataError
from cyxcore.spec import BatchMetrics, EpochMetrics, TrainingSummary
from cyxnode import sandbox
from cyxnode.pipe import Batch, Done, Epoch, Failed, Halt, Halted, Order, Prepared, Ready, Said, Saved
from cyxnode.train import Ear, serve, take_pipes

GRAPH_SHA256 = "ab" * 32


def batch(step: int) -> Batch:
    return Batch(
        metrics=BatchMetrics(
            epoch=1,
            epochs=1,
            batch=step,
            batches=3,
            step=step,
            batch_loss=1.0 / step,
            batch_time_ms=1.0,
            learning_rate=0.01,
            samples_per_s=100.0,
        )
    )


def epoch() -> Epoch:
    return Epoch(
        metrics=EpochMetrics(epoch=1, epochs=1, step=3, epoch_loss=0.5, epoch_time_ms=3.0, samples_per_s=100.0)
    )


def summary() -> TrainingSummary:
    return TrainingSummary(
        total_time_ms=3.0,
        steps=3,
        final_loss=0.5,
        best_epoch=1,
        delivered_epoch=1,
        train_rows=8,
        validation_rows=0,
        parameters=3,
    )


def learn(order: Order) -> Iterator[Said]:
    yield batch(1)
    yield epoch()
    Path(order.out_path).write_bytes(b"a model of " + Path(order.data_path).read_bytes())
    yield Done(summary=summary(), graph_sha256=GRAPH_SHA256)


def hang(order: Order) -> Iterator[Said]:
    yield batch(1)
    signal.pause()


def save(order: Order, step: int) -> Saved:
    path = Path(order.out_path).with_name(f"checkpoint-{step}")
    path.write_bytes(b"state %d of " % step + Path(order.data_path).read_bytes())
    return Saved(step=step, steps=9, file=path.name)


def learn_until_told_to_halt(order: Order) -> Iterator[Said]:
    """A step, its checkpoint, another step; then it listens as real training does between two steps."""
    yield batch(1)
    yield save(order, 1)
    yield batch(2)
    told = CHANNEL.receive()
    assert isinstance(told, Halt), told
    yield save(order, 2)
    yield Halted(step=2, steps=9)


def save_then_die(order: Order) -> Iterator[Said]:
    yield batch(1)
    yield save(order, 1)
    os.kill(os.getpid(), signal.SIGKILL)


def learn_when_told(order: Order) -> Iterator[Said]:
    """Goes on once the test wrote into the pipe `go`, and says so in `told`; opening a pipe waits for its peer."""
    os.mkfifo("go")
    os.mkfifo("told")
    Path("begun").touch()
    yield batch(1)
    Path("go").read_bytes()
    yield from learn(order)
    Path("told").write_bytes(b"all")


def die(order: Order) -> Iterator[Said]:
    yield batch(1)
    print("out of ideas", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def crash(order: Order) -> Iterator[Said]:
    yield batch(1)
    raise RuntimeError("a bug of ours")


def find_no_room(order: Order) -> Iterator[Said]:
    yield batch(1)
    raise OSError(errno.ENOSPC, "No space left on device")


def refuse(order: Order) -> Iterator[Said]:
    yield batch(1)
    raise DataError("data.csv, column label, row 3: expected a number, got 'x'")


def eat(order: Order) -> Iterator[Said]:
    yield batch(1)
    eaten = []
    while True:
        eaten.append(bytearray(1_000_000))


def write_much(order: Order) -> Iterator[Said]:
    yield batch(1)
    with open("much", "wb") as file:
        while True:
            file.write(bytes(100_000))


def garble(order: Order) -> Iterator[Said]:
    os.write(CHANNEL_FD, b"Epoch 1/10: loss 0.5\n" * 3)
    yield batch(1)


def chatter(order: Order) -> Iterator[Said]:
    print("a library prints what nobody asked for", flush=True)
    yield from learn(order)


def forget_model(order: Order) -> Iterator[Said]:
    yield batch(1)
    yield Done(summary=summary(), graph_sha256=GRAPH_SHA256)


def tell_environment(order: Order) -> Iterator[Said]:
    yield Failed(code="environment", message=" ".join(sorted(os.environ)), deterministic=False)


def call_out(order: Order) -> Iterator[Said]:
    import socket

    try:
        socket.create_connection(("127.0.0.1", int(order.data_path)), timeout=1)
    except OSError as error:
        yield Failed(code="no_network", message=str(error), deterministic=False)
    else:
        yield Failed(code="connected", message="", deterministic=False)


def prepared(order: Order, ear: Ear) -> Iterator[Said]:
    """What every behaviour begins with: it is prepared, and waits for the word."""
    yield Prepared(step=0, steps=9)
    if not ear.wait_go():
        yield Halted(step=0, steps=9)
        return
    yield from globals()[sys.argv[1]](order)


if __name__ == "__main__":
    channel = CHANNEL = take_pipes()
    CHANNEL_FD = channel._out_fd
    if sys.argv[1] == "never_ready":
        channel.send(Failed(code="no_kernel", message="the kernels are not built", deterministic=False))
        sys.exit(1)
    isolated = sandbox.isolate(parent_pid=int(sys.argv[2]))
    channel.send(Ready(isolated=isolated, warm_ms=1.0))
    sys.exit(serve(channel, prepared))

"""`python -m tests.core.forking WORK`: forks fifty times while a thread does WORK; each child does it once more. With
`traced` it forks while a thread has the parameters of a model as symbols.

A process of its own, since a fork copies the tables of all memory there is: that of a whole run of tests makes fifty
of them take ten times as long. Exits with 0 when every child has ended by itself.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable

import numpy as np

import cyxcore as cx
from cyxcore import casting, forks, nn
from cyxcore.kernels import cpu

PATIENCE_S = 20  # of a child that hangs
CHILDREN = 50


def products() -> Callable[[], object]:
    x = cx.Tensor(np.ones((200, 200), np.float32))
    return lambda: (x @ x).sum().item()


def halves() -> Callable[[], object]:
    x, parent = cx.Tensor(np.ones((20, 20), np.float32)), os.getpid()

    def product() -> None:
        with cx.autocast("cpu"):
            assert (x @ x).dtype == "bfloat16"
        assert os.getpid() == parent or not casting.inside[0]  # the parent's thread is in no child

    return product


def gradients() -> Callable[[], object]:
    model, loss = nn.Linear(64, 10), nn.CrossEntropyLoss()
    x, y = cx.Tensor(np.ones((64, 64), np.float32)), cx.Tensor(np.arange(64) % 10)
    return lambda: loss(model(x), y).backward()


def training() -> Callable[[], object]:
    model, loss = nn.Linear(64, 10), nn.CrossEntropyLoss()
    optimizer = cx.optim.SGD(model.parameters(), lr=0.01)
    x, y = cx.Tensor(np.ones((64, 64), np.float32)), cx.Tensor(np.arange(64) % 10)

    @cx.compile
    def step(x: cx.Tensor, y: cx.Tensor) -> cx.Tensor:
        optimizer.zero_grad()
        value = loss(model(x), y)
        value.backward()
        optimizer.step()
        return value

    return lambda: step(x, y)


def inference() -> Callable[[], object]:
    model = cx.compile(nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)))
    x = cx.Tensor(np.ones((256, 256), np.float32))
    return lambda: model(x)


def traced(trains: bool) -> int:
    """Forks while another thread is in a function on symbols, which its model has for parameters until it ends."""
    model, x = nn.Linear(4, 2), cx.Tensor(np.ones((3, 4), np.float32))
    optimizer, over = cx.optim.SGD(model.parameters(), lr=0.01), threading.Event()
    (begun, begins), (may_end, ends) = os.pipe(), os.pipe()  # what else could wait would be known to the step

    def waits(x: cx.Tensor) -> cx.Tensor:
        os.write(begins, b"!")
        os.read(may_end, 1)
        return model(x).sum()

    def trains_too(x: cx.Tensor) -> cx.Tensor:
        value = waits(x)
        value.backward()
        optimizer.step()
        return value

    step = cx.compile(trains_too if trains else waits)

    def let_it_end() -> None:
        """When the fork waits for that."""
        while not (forks._turn._waiters or over.is_set()):
            os.sched_yield()
        os.write(ends, b"!!")  # the child's, too

    threads = [threading.Thread(target=step, args=(x,)), threading.Thread(target=let_it_end)]
    threads[0].start()
    os.read(begun, 1)
    threads[1].start()
    try:
        return exit_of_a_child(lambda: step(x))
    finally:
        over.set()
        for thread in threads:
            thread.join()


WORKS = {make.__name__: make for make in (products, halves, gradients, training, inference)}


def exit_of_a_child(work: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        signal.alarm(PATIENCE_S)
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def main(name: str) -> int:
    cpu.set_num_threads(2)
    work, ended = WORKS[name](), threading.Event()
    work()

    def compute() -> None:
        while not ended.is_set():
            work()

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        statuses = [exit_of_a_child(work) for _ in range(CHILDREN)]
    finally:
        ended.set()
        thread.join()
    print(f"{statuses.count(0)} of {CHILDREN} children computed and ended; the others: {set(statuses) - {0} or 'none'}")
    return int(any(statuses))


if __name__ == "__main__":
    sys.exit(any(map(traced, (True, False))) if sys.argv[1] == "traced" else main(sys.argv[1]))

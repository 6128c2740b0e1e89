"""A process that forks while a thread of it computes: its children compute, and end."""

import os
import signal
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import nn
from cyxcore.kernels import cpu

PATIENCE_S = 20  # of a child that hangs
pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = cpu.get_num_threads()
    cpu.set_num_threads(2)
    yield
    cpu.set_num_threads(before)


def products() -> Callable[[], object]:
    x = cx.Tensor(np.ones((200, 200), np.float32))
    return lambda: (x @ x).sum().item()


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


@pytest.mark.parametrize("make", [products, gradients, training, inference])
def test_children_of_a_process_that_forks_while_a_thread_computes_compute_and_end(
    make: Callable[[], Callable[[], object]],
) -> None:
    work, ended = make(), threading.Event()
    work()

    def compute() -> None:
        while not ended.is_set():
            work()

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        statuses = [exit_of_a_child(work) for _ in range(50)]
    finally:
        ended.set()
        thread.join()
    assert statuses == [0] * 50

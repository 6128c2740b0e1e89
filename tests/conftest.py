"""Servers for tests: real ones, on free ports, in folders of their own; and the kernels as they were."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from cyxcore.kernels import cpu
from cyxnet.broker import Broker, Passwords
from tests.doorkeeper import CENTRAL, door_of


def pytest_collection() -> None:
    gc.disable()


def pytest_collection_finish() -> None:
    """What stands after collection stays: a few million objects, which each full collection would look through."""
    gc.freeze()
    gc.enable()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A nats-server with the accounts of a local network, and a door that lets everybody in as who he is."""
    running = Broker.start(tmp_path / "broker", Passwords.fresh(CENTRAL))
    with door_of(running.url("client")):
        yield running
    running.stop()


@pytest.fixture
def own_machine() -> Iterator[None]:
    """Whatever threads and instruction set a test chooses, the next one starts from the machine's own."""
    threads, isa = cpu.get_num_threads(), cpu.isa()
    yield
    cpu.set_num_threads(threads)
    cpu.set_isa(isa)

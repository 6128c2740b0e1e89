"""Servers for tests: real ones, on free ports, in folders of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cyxnet.broker import Broker, Passwords


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A nats-server with the accounts and permissions of a local network."""
    running = Broker.start(tmp_path / "broker", Passwords.fresh())
    yield running
    running.stop()

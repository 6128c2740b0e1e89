"""On which event loop a process of Cyx runs."""

import asyncio
import sys

import pytest

from cyxnet import lifetime


async def running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def test_uvloop_is_used_where_it_is_installed() -> None:
    uvloop = pytest.importorskip("uvloop")
    assert isinstance(lifetime.run(running_loop()), uvloop.Loop)


def test_asyncios_own_loop_is_used_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert type(lifetime.run(running_loop())).__module__.startswith("asyncio.")

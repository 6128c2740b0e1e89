"""What tests do to a broker and wait for on it."""

import asyncio
import os
import signal
from pathlib import Path

from cyxnet.broker import Broker
from cyxnet.credentials import as_client
from cyxnet.identity import Identity

ME = as_client(Identity(b"m" * 32))


def never(last_seq):
    raise AssertionError("nothing was lost")


def stand_still(pid):
    """A child of ours neither takes nor says anything from here on; it is told at once, but stops a little later."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


def restarted(broker):
    """The broker after kill -9, at the same ports and on the same store."""
    broker.process.kill()
    broker.process.wait()
    folder = Path(broker.process.args[-1]).parent
    return Broker.start(folder, broker._passwords, broker.port, broker.monitor_port)


async def until(condition, bus):
    async with asyncio.timeout(60):
        while not condition():
            await bus.round_trip()

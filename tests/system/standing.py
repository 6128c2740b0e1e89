"""A node whose next run stands still after an epoch, so that a test can do something in the middle of it.

Started as `standing.py node FOLDER` with the options of cyxnode; its training processes are `standing.py train FOLDER`.
A run stands behind epoch N when there is a FIFO of that name in the folder, which it takes away: the run after it
passes. It goes on when something is written there, or when its node says something, such as to halt.
"""

import functools
import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path

import cyxnode.__main__
from cyxnode import sandbox
from cyxnode.pipe import Channel, Epoch, Order, Ready, Said
from cyxnode.process import Launch
from cyxnode.train import rehearse, serve, take_pipes, train


def stand(folder: Path, order: Order, ear: Channel) -> Iterator[Said]:
    for said in train(order, ear):
        opened = take(folder / str(said.metrics.epoch)) if isinstance(said, Epoch) else None
        yield said
        if opened is not None:
            select.select([opened, ear.read_fd], [], [])
            os.close(opened)


def take(gate: Path) -> int | None:
    """Before the epoch is told: whoever heard of it can rely on this run to stand, and on the next one to pass."""
    try:
        opened = os.open(gate, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    gate.unlink()
    return opened


if __name__ == "__main__":
    what, folder, *rest = sys.argv[1:]
    if what == "node":
        command = (sys.executable, "-P", __file__, "train", folder)
        cyxnode.__main__.Launch = functools.partial(Launch, command=command)
        sys.exit(cyxnode.__main__.main(rest))
    channel = take_pipes()
    isolated = sandbox.isolate(parent_pid=int(rest[0]))
    channel.send(Ready(isolated=isolated, warm_ms=0.0, isa=rehearse()))
    sys.exit(serve(channel, functools.partial(stand, Path(folder))))

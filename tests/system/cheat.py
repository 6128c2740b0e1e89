"""A training process whose node wants the money and not the work: a weight of every state and model is another.

Everything else is the real one: what its agent sends, stores and signs is in order, but for what it says.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace

import cyxcore
from cyxcore import checkpoint
from cyxnode import sandbox
from cyxnode.pipe import Done, Order, Ready, Said, Saved
from cyxnode.train import Ear, rehearse, serve, take_pipes, train


def cheat(order: Order, ear: Ear) -> Iterator[Said]:
    for said in train(order, ear):
        if isinstance(said, Saved):
            path = Path(order.out_path).with_name(said.file)
            found = checkpoint.load(path)
            state = dict(found.state)
            touch(state)
            checkpoint.save(path, replace(found, state=state))
        elif isinstance(said, Done):
            model = cyxcore.load_model(order.out_path)
            touch(model.weights)
            model.save(order.out_path)
        yield said


def touch(weights: dict[str, object]) -> None:
    name = sorted(weights)[0]
    weights[name] = weights[name].copy()
    weights[name].flat[0] += 0.25


if __name__ == "__main__":
    channel = take_pipes()
    isolated = sandbox.isolate(parent_pid=int(sys.argv[1]))
    channel.send(Ready(isolated=isolated, warm_ms=0.0, isa=rehearse()))
    sys.exit(serve(channel, cheat))

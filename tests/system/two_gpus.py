"""A node of a machine with two NVIDIA devices that there are not: what it gives to them is trained on the CPU.

Started as `two_gpus.py node FOLDER` with the options of cyxnode; its training processes are `two_gpus.py train FOLDER`.
Each run for a device writes into FOLDER/used which one it may see, and after its first epoch waits until somebody
opens the FIFO of that name for writing, as long as there is one.
"""

import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace

import cyxnode.__main__
from cyxnode import sandbox
from cyxnode.pipe import Channel, Epoch, Order, Ready, Said
from cyxnode.process import Launch
from cyxnode.train import rehearse, serve, take_pipes, train


def on_the_cpu(folder: Path, order: Order, ear: Channel) -> Iterator[Said]:
    assert order.device == "cuda", order.device
    gpu = os.environ["CUDA_VISIBLE_DEVICES"]
    with (folder / "used").open("a") as used:
        used.write(f"{gpu}\n")
    for said in train(replace(order, device="cpu"), ear):
        yield said
        if isinstance(said, Epoch) and (gate := folder / gpu).exists():
            gate.read_bytes()
            gate.unlink(missing_ok=True)


if __name__ == "__main__":
    what, folder, *rest = sys.argv[1:]
    if what == "node":
        from tests.node import fake_nvml

        sys.modules["pynvml"] = fake_nvml.module([0, 0])
        command = (sys.executable, "-P", __file__, "train", folder)
        cyxnode.__main__.Launch = functools.partial(Launch, command=command)
        sys.exit(cyxnode.__main__.main(rest))
    channel = take_pipes()
    isolated = sandbox.isolate(parent_pid=int(rest[0]))
    channel.send(Ready(isolated=isolated, warm_ms=0.0, isa=rehearse()))
    sys.exit(serve(channel, functools.partial(on_the_cpu, Path(folder))))

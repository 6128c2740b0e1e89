"""What the agent and a training process say to each other, and how it lies on a pipe.

A frame is four bytes of length, big-endian, and that many bytes of MessagePack. The process says Ready once it
is warm; the agent sends one Order; the process says Batch and Epoch while it trains, and last Done or Failed.
"""

import asyncio
import os
from typing import Annotated, Any

from msgspec import Meta, Struct

from cyxcore.spec import (
    BatchMetrics,
    DataSpec,
    Digest,
    EpochMetrics,
    ModelSpec,
    TrainingSpec,
    TrainingSummary,
)
from cyxnet.codec import MSGPACK, BadMessage, decode, encode

MAX_FRAME_BYTES = 16_000_000  # an Order carries a whole graph
LENGTH_BYTES = 4


class Order(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Train this. Paths and limits are the agent's own; nothing in them comes from the network.

    expected_rows and expected_input_shape: what the submitter read in the same bytes; a difference is refused.
    """

    model: ModelSpec
    data: DataSpec
    training: TrainingSpec
    data_path: str
    weights_path: str | None = None
    out_path: str
    device: str = "cpu"
    threads: int
    memory_bytes: int  # what the job may take beyond the warm process; 0: no limit
    file_bytes: int  # the largest file it may write
    expected_rows: int | None = None
    expected_input_shape: list[int] | None = None


class FromProcess(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, tag=True, tag_field="t"):
    """What a training process says."""


class Ready(FromProcess, kw_only=True, frozen=True):
    """Warm: everything is imported and one tiny model was trained."""

    isolated: bool  # whether the kernel took the network away
    warm_ms: float
    isa: str = ""


class Batch(FromProcess, kw_only=True, frozen=True):
    metrics: BatchMetrics


class Epoch(FromProcess, kw_only=True, frozen=True):
    metrics: EpochMetrics


class Done(FromProcess, kw_only=True, frozen=True):
    """The model lies whole in the Order's out_path."""

    summary: TrainingSummary
    graph_sha256: Digest


class Failed(FromProcess, kw_only=True, frozen=True):
    """deterministic: the same job fails the same way on any node."""

    code: Annotated[str, Meta(max_length=64)]
    message: Annotated[str, Meta(max_length=2000)]
    deterministic: bool


Said = Ready | Batch | Epoch | Done | Failed


def frame(message: Any) -> bytes:
    payload = encode(message, MSGPACK)
    if len(payload) > MAX_FRAME_BYTES:
        raise BadMessage(f"expected a frame of at most {MAX_FRAME_BYTES} bytes, got {len(payload)}")
    return len(payload).to_bytes(LENGTH_BYTES, "big") + payload


def _length(head: bytes) -> int:
    length = int.from_bytes(head, "big")
    if length > MAX_FRAME_BYTES:
        raise BadMessage(f"expected a frame of at most {MAX_FRAME_BYTES} bytes, its head says {length}")
    return length


async def read_said(stream: asyncio.StreamReader) -> Said | None:
    """The next message of a process; None when its pipe ended. Raises BadMessage for anything else."""
    try:
        head = await stream.readexactly(LENGTH_BYTES)
        payload = await stream.readexactly(_length(head))
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            return None
        raise BadMessage(f"the pipe ended within a frame, after {len(error.partial)} bytes") from None
    said: Said = decode(Said, payload, MSGPACK, MAX_FRAME_BYTES)  # type: ignore[arg-type]
    return said


class Channel:
    """The training process's end: two file descriptors that nothing else in the process uses."""

    def __init__(self, read_fd: int, write_fd: int):
        self._in = os.fdopen(read_fd, "rb")
        self._out_fd = write_fd

    def send(self, message: Said) -> None:
        """Raises BrokenPipeError when the agent is gone."""
        rest = memoryview(frame(message))
        while rest:
            rest = rest[os.write(self._out_fd, rest) :]

    def receive(self) -> Order | None:
        """The order, or None when the agent closed the pipe: there is nothing to do."""
        head = self._in.read(LENGTH_BYTES)
        if len(head) < LENGTH_BYTES:
            return None
        return decode(Order, self._in.read(_length(head)), MSGPACK, MAX_FRAME_BYTES)

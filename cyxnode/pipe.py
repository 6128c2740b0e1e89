"""What the agent and the process of a run say to each other, and how it lies on a pipe.

A frame is four bytes of length, big-endian, and that many bytes of MessagePack. A training process says Ready once it
is warm; the agent sends one Order; the process says Prepared and waits for Go; then it says Batch, Epoch and Saved
while it trains, and last Done, Failed or, when it was told to Halt, Halted.

A replica says Ready, is sent Serve, says Serving once it answers and Figures from then on, and last Failed, or Halted
when it was told to and has answered what it had been asked. Requests go another way: cyxnode/exchange.py.
"""

import asyncio
import os
import select
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
from cyxnet.codec import MAX_DEPTH_AROUND, MSGPACK, BadMessage, decode, encode

MAX_FRAME_BYTES = 16_000_000  # an Order carries a whole graph
LENGTH_BYTES = 4


class ToProcess(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, tag=True, tag_field="t"):
    """What the agent says."""


class Order(ToProcess, kw_only=True, frozen=True):
    """Train this. Paths and limits are the agent's own; nothing in them comes from the network.

    expected_rows and expected_input_shape: what the submitter read in the same bytes; a difference is refused.
    resume_path: the checkpoint to go on from; resume_at: of which step, of how many, its node signed that it is.
    gpu: with which device other than cpu: the uuid of the one NVIDIA device that the process may see; "" for none.
    every_steps, every_s: when a checkpoint is due; 0: not by that measure. end_step: end after this step, with its
    checkpoint and no model; 0: train to the end. at_steps: of these steps there is one too, whether or not the agent
    took the last away.
    """

    model: ModelSpec
    data: DataSpec
    training: TrainingSpec
    data_path: str
    data_sha256: Digest | None = None  # of the file at data_path, which the agent verified
    weights_path: str | None = None
    out_path: str
    device: str = "cpu"
    gpu: str = ""
    threads: int
    memory_bytes: int  # what the job may take beyond the warm process; 0: no limit
    file_bytes: int  # the largest file it may write
    expected_rows: int | None = None
    expected_input_shape: list[int] | None = None
    resume_path: str | None = None
    resume_at: tuple[int, int] | None = None
    every_steps: int = 0
    every_s: float = 0.0
    end_step: int = 0
    at_steps: list[int] = []


class Serve(ToProcess, kw_only=True, frozen=True):
    """Answer with this model. Path and limits are the agent's own; the rest is as the options of `cyx serve`.

    context_tokens: None for as many as the model was trained for. plans_bytes: of that memory, for plans, or for the
    keys and values of a language model; 0: as much as there is. drain_s: for what is being answered at the end.
    """

    model_path: str
    name: str
    device: str = "cpu"
    threads: int
    memory_bytes: int  # as of Order
    file_bytes: int
    max_batch: int = 64
    max_wait_ms: float = 0.0
    max_queue: int = 1024
    context_tokens: int | None = None
    plans_bytes: int = 0
    drain_s: float = 30.0


class Go(ToProcess, kw_only=True, frozen=True):
    """Make the first step."""


class Halt(ToProcess, kw_only=True, frozen=True):
    """Store a checkpoint if a step was made, then end. A run that is about to be done is done instead.

    A replica takes no new requests, answers those that it has, and ends.
    """


Told = Order | Serve | Go | Halt


class FromProcess(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, tag=True, tag_field="t"):
    """What a training process says."""


class Ready(FromProcess, kw_only=True, frozen=True):
    """Warm: everything is imported and one tiny model was trained."""

    isolated: bool  # whether the kernel took the network away
    warm_ms: float
    isa: str = ""


class Prepared(FromProcess, kw_only=True, frozen=True):
    """All that comes before the first step is done. step: how many are behind it, of a run that goes on."""

    step: int
    steps: int
    data_ms: float = 0.0
    graph_ms: float = 0.0
    plan_ms: float = 0.0


class Batch(FromProcess, kw_only=True, frozen=True):
    metrics: BatchMetrics


class Epoch(FromProcess, kw_only=True, frozen=True):
    metrics: EpochMetrics


class Saved(FromProcess, kw_only=True, frozen=True):
    """A checkpoint lies whole in the process's folder. The next that is due is not written before this one is gone."""

    step: int
    steps: int
    file: Annotated[str, Meta(pattern=r"\Acheckpoint-[0-9]{1,16}\Z")]
    write_ms: float = 0.0


class NotSaved(FromProcess, kw_only=True, frozen=True):
    """A checkpoint could not be written; training goes on."""

    message: Annotated[str, Meta(max_length=2000)]


class Serving(FromProcess, kw_only=True, frozen=True):
    """The model is loaded and answers. card: a ModelCard of cyxnet/inference.py, as JSON."""

    card: bytes
    load_ms: float


class Figures(FromProcess, kw_only=True, frozen=True):
    """What a replica has done so far. refused: answered with 429; errors: with 500 and above; times in milliseconds.

    mean_ms: of the answers since the Figures before; rss_bytes: of memory that the process holds.
    """

    requests: int
    errors: int
    refused: int
    in_flight: int
    mean_ms: float
    rss_bytes: int


class Halted(FromProcess, kw_only=True, frozen=True):
    """It ends here, as told, or as its order said. The newest Saved says where the run can go on."""

    step: int = 0
    steps: int = 0


class Done(FromProcess, kw_only=True, frozen=True):
    """The model lies whole in the Order's out_path."""

    summary: TrainingSummary
    graph_sha256: Digest


class Failed(FromProcess, kw_only=True, frozen=True):
    """deterministic: the same job fails the same way on any node.

    gpu_memory_bytes: of a GPU that had too little, what it had for this process; 0: it was not that.
    """

    code: Annotated[str, Meta(max_length=64)]
    message: Annotated[str, Meta(max_length=2000)]
    deterministic: bool
    gpu_memory_bytes: Annotated[int, Meta(ge=0)] = 0


Said = Ready | Prepared | Batch | Epoch | Saved | NotSaved | Serving | Figures | Halted | Done | Failed


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
    said: Said = decode(Said, payload, MSGPACK, MAX_FRAME_BYTES, MAX_DEPTH_AROUND)  # type: ignore[arg-type]
    return said


class Channel:
    """The training process's end: two file descriptors that nothing else in the process uses."""

    def __init__(self, read_fd: int, write_fd: int):
        self._in_fd = read_fd  # read without a buffer: what poll() does not see must not exist
        self._out_fd = write_fd
        self._poll = select.poll()
        self._poll.register(read_fd, select.POLLIN)

    @property
    def read_fd(self) -> int:
        """For who waits for messages beside other things."""
        return self._in_fd

    def send(self, message: Said) -> None:
        """Raises BrokenPipeError when the agent is gone."""
        rest = memoryview(frame(message))
        while rest:
            rest = rest[os.write(self._out_fd, rest) :]

    def receive(self) -> Told | None:
        """The next message, or None when the agent closed the pipe. Waits for it."""
        head = self._read(LENGTH_BYTES)
        if len(head) < LENGTH_BYTES:
            return None
        told: Told = decode(Told, self._read(_length(head)), MSGPACK, MAX_FRAME_BYTES, MAX_DEPTH_AROUND)  # type: ignore[arg-type]
        return told

    def wait_go(self) -> bool:
        """Until the agent says Go; False when it says anything else, or nothing any more."""
        return isinstance(self.receive(), Go)

    def halt_asked(self) -> bool:
        """Whether the agent told to halt. Does not wait. Raises BrokenPipeError when the agent is gone."""
        if not self._poll.poll(0):
            return False
        told = self.receive()
        if told is None:
            raise BrokenPipeError("the agent closed the pipe")
        return isinstance(told, Halt)

    def _read(self, count: int) -> bytes:
        """That many bytes, fewer only at the end of the pipe."""
        parts = []
        while count and (part := os.read(self._in_fd, count)):
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

"""What can happen to a node and what it can do about it: the words of cyxnode/state.py, one Struct each."""

from typing import Literal

from msgspec import Struct

from cyxnet.messages import (
    Assign,
    Begin,
    CommandReply,
    Pause,
    RunCheckpoint,
    RunCompleted,
    RunFailed,
    RunRef,
    RunStarted,
    SegmentTrained,
    Stop,
)
from cyxnode.devicepool import Device

RunKey = tuple[str, int]  # (job_id, attempt)
Report = RunStarted | RunCheckpoint | RunFailed | RunCompleted | SegmentTrained
HaltCode = Literal["paused", "node_stopped"]  # of the RunFailed that follows the last checkpoint


# -- what happens ---------------------------------------------------------------------------------------


class Tick(Struct, frozen=True):
    """Time passed: whatever is due by `now` is done."""


class Registered(Struct, frozen=True):
    heartbeat_ms: int


class RegisterRefused(Struct, frozen=True):
    """Central did not take the node in, or the node does not work for that central; the reason says which."""

    reason: str


class RegisterUnanswered(Struct, frozen=True):
    pass


class HeartbeatAnswered(Struct, frozen=True):
    known: bool
    stop: tuple[RunKey, ...] = ()
    begin: tuple[RunKey, ...] = ()
    pause: tuple[RunKey, ...] = ()


class HeartbeatUnanswered(Struct, frozen=True):
    pass


class Assigned(Struct, frozen=True):
    assign: Assign


class BeginAsked(Struct, frozen=True):
    begin: Begin


class PauseAsked(Struct, frozen=True):
    pause: Pause


class StopAsked(Struct, frozen=True):
    stop: Stop


class Advanced(Struct, frozen=True):
    """The run is ready to make its first step, or its model is being uploaded."""

    key: RunKey
    phase: Literal["ready", "uploading"]


class FirstBatch(Struct, frozen=True):
    key: RunKey


class CheckpointStored(Struct, frozen=True):
    """The run's state is an artifact now; central does not know that it is this run's."""

    key: RunKey
    report: RunCheckpoint


class RunEnded(Struct, frozen=True):
    """The run delivered a model, found the digest it was to find, or failed here; central does not know it yet."""

    key: RunKey
    report: RunFailed | RunCompleted | SegmentTrained


class ReportAnswered(Struct, frozen=True):
    key: RunKey
    accepted: bool
    fenced: bool = False
    reason: str = ""


class ReportUnanswered(Struct, frozen=True):
    key: RunKey


class ShutdownAsked(Struct, frozen=True):
    reason: str


class DrainAsked(Struct, frozen=True):
    """Its operator wants the node to take no new runs, or (drain False) to take them again."""

    drain: bool


class DevicesRead(Struct, frozen=True):
    """What the node's NVIDIA devices have free now, and how busy they are."""

    devices: tuple[Device, ...]


class LinkBack(Struct, frozen=True):
    """The broker can be asked again: what waits for its next try need not wait any longer."""


class DiskChecked(Struct, frozen=True):
    """Whether the disk of the node has too little room for another run."""

    full: bool


class GoodbyeDone(Struct, frozen=True):
    """The goodbye was answered, or nobody was there to hear it."""


Event = (
    Tick
    | Registered
    | RegisterRefused
    | RegisterUnanswered
    | HeartbeatAnswered
    | HeartbeatUnanswered
    | Assigned
    | BeginAsked
    | PauseAsked
    | StopAsked
    | Advanced
    | FirstBatch
    | CheckpointStored
    | RunEnded
    | ReportAnswered
    | ReportUnanswered
    | ShutdownAsked
    | DrainAsked
    | DiskChecked
    | DevicesRead
    | LinkBack
    | GoodbyeDone
)


# -- what the loop shall do -----------------------------------------------------------------------------


class SendRegister(Struct, frozen=True):
    pass


class SendHeartbeat(Struct, frozen=True):
    runs: tuple[RunRef, ...]
    draining: bool = False
    gpus_free_bytes: tuple[int, ...] = ()


class SendReport(Struct, frozen=True):
    key: RunKey
    report: Report


class StartRun(Struct, frozen=True):
    """gpu: the uuid of the NVIDIA device that is this run's alone; "" for none."""

    assign: Assign
    gpu: str = ""


class BeginRun(Struct, frozen=True):
    """Let it make its first step as soon as it is ready."""

    key: RunKey


class HaltRun(Struct, frozen=True):
    """Have it store a checkpoint and end; it comes back as RunEnded with this code."""

    key: RunKey
    code: HaltCode


class KillRun(Struct, frozen=True):
    """End its process if it has one and remove what it left. Nothing is reported."""

    key: RunKey
    reason: str


class Answer(Struct, frozen=True):
    """The reply to the command that was this event."""

    reply: CommandReply


class SayReady(Struct, frozen=True):
    pass


class SayGoodbye(Struct, frozen=True):
    reason: str


class Exit(Struct, frozen=True):
    code: int
    reason: str


class Note(Struct, frozen=True):
    """A line for the operator's log."""

    text: str


Action = (
    SendRegister
    | SendHeartbeat
    | SendReport
    | StartRun
    | BeginRun
    | HaltRun
    | KillRun
    | Answer
    | SayReady
    | SayGoodbye
    | Exit
    | Note
)

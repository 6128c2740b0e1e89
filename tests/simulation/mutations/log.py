"""Bugs in what is written to the log, and in commands to nodes."""

import functools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

from msgspec.structs import replace

from cyxcentral import (
    world,
)
from cyxcentral.eventlog import EventLog
from cyxnet import commands
from cyxnet import messages as m
from cyxnet.codec import MSGPACK, decode
from tests.simulation.mutations.planting import anything, planted
from tests.simulation.wire import SimBus

# -- the log ---------------------------------------------------------------------------------------------


@planted
def no_cas() -> Iterator[Any]:
    """Appends do not name the sequence they were decided on."""
    real = SimBus._append

    async def append(bus: SimBus, messages: Any, name: str, right_after: str) -> list[int]:
        return await real(bus, [(subject, payload, None) for subject, payload, _ in messages], name, right_after)

    yield mock.patch.object(SimBus, "_append", append)


@planted
def lease_behind_anything() -> Iterator[Any]:
    """A lease that is sent behind its job's submission is stored whatever the broker stored before it."""
    real = SimBus._append

    async def append(bus: SimBus, messages: Any, name: str, right_after: str) -> list[int]:
        return await real(bus, messages, name, "")

    yield mock.patch.object(SimBus, "_append", append)


@planted
def blind_retry_on_unknown() -> Iterator[Any]:
    """What was decided once is appended until an answer comes, whatever happened meanwhile."""
    real = EventLog.record

    async def record(log: EventLog, subject: str, decide: Callable[[], Any], sequel: Any = None) -> Any:
        return await real(log, subject, functools.cache(decide), sequel)

    yield mock.patch.object(EventLog, "record", record)


@planted
def dedupe_by_msg_id() -> Iterator[Any]:
    """Exactly-once by predictable message ids: the broker drops the second message of a name and says stored."""
    real = SimBus._append

    async def append(bus: SimBus, messages: Any, named: str, right_after: str) -> list[int]:
        subject, payload, expected = messages[0]
        seen = bus._core.__dict__.setdefault("seen_ids", {})
        if ".event.job." not in subject:
            return await real(bus, messages, named, right_after)
        name = (subject, type(decode(m.Record, payload, MSGPACK).event).__name__)
        if name in seen:
            return [seen[name]]
        [seq] = await real(bus, messages, named, right_after)
        seen[name] = seq
        return [seq]

    yield mock.patch.object(SimBus, "_append", append)


@planted
def no_catch_up() -> Iterator[Any]:
    """A central says no from what it happens to have read."""

    async def catch_up(log: EventLog) -> None:
        return None

    yield mock.patch.object(EventLog, "catch_up", catch_up)


@planted
def read_from_lagging_replica() -> Iterator[Any]:
    """The end of the log is asked of a replica that does not have the newest events yet."""
    real = SimBus.last_seq

    async def last_seq(bus: SimBus, stream: str) -> int:
        return max(0, await real(bus, stream) - 3)

    yield mock.patch.object(SimBus, "last_seq", last_seq)


@planted
def quarantined_is_no_predecessor() -> Iterator[Any]:
    """What counts for nothing is not named by what comes after it: a central leaves it out of the chain of hashes."""
    real = world.World.apply

    def apply(found: world.World, seq: int, subject: str, record: Any, sha256: bytes = b"") -> str | None:
        before = found.last_sha256.get(subject, b"")
        why = real(found, seq, subject, record, sha256)
        if why is not None:
            found.last_sha256[subject] = before
        return why

    yield mock.patch.object(world.World, "apply", apply)


@planted
def what_cannot_happen_happens() -> Iterator[Any]:
    """Whatever is in the log is taken for true."""
    yield mock.patch.object(world, "jobrules", SimpleNamespace(illegal=anything))


# -- commands ----------------------------------------------------------------------------------------------


@planted
def unsigned_command_taken() -> Iterator[Any]:
    """A node takes commands that nobody signed, as an older one does."""
    real = commands.Guard.opened

    def opened(guard: commands.Guard, said: Any) -> Any:
        return real(guard, said) if isinstance(said, m.SignedCommand) else said

    yield mock.patch.object(commands.Guard, "opened", opened)


@planted
def old_command_taken() -> Iterator[Any]:
    """A node does not remember the place of what it was told last."""
    yield mock.patch.object(commands.Guard, "took", anything)


@planted
def command_for_any_run() -> Iterator[Any]:
    """What is signed does not say what it is about."""
    real = m.command_bytes

    def command_bytes(said: m.SignedCommand, session: str, kind: str, job_id: str, attempt: int) -> bytes:
        return real(replace(said, payload=b""), session, "", "", 0)

    yield mock.patch.object(m, "command_bytes", command_bytes)


@planted
def any_way_leads_to_the_root() -> Iterator[Any]:
    """Of a signature that many commands share it is not asked whether this one is among them."""
    real = commands.Guard._signed

    def signed(guard: commands.Guard, said: m.SignedCommand, command: bytes) -> bool:
        return bool(said.path) or real(guard, said, command)

    yield mock.patch.object(commands.Guard, "_signed", signed)

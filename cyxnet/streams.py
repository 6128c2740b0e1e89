"""Streams: messages that the broker keeps. Append with the outcomes of cyxnet.outcomes, look up, follow."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from typing import Any

import msgspec
import nats.errors
import nats.js.errors
from nats.js import api

from cyxcore.errors import CyxError
from cyxnet.connection import LINK_DOWN_PAUSE_S
from cyxnet.follower import STALL_S, Follower
from cyxnet.mux import Mux
from cyxnet.outcomes import AppendUnknown, BusError, Conflict, StorageFull, Stored

log = logging.getLogger(__name__)

READ_TIMEOUT_S = 5.0
APPEND_TIMEOUT_S = 4.0  # shorter: what became of an append is found out while its caller still waits
NO_SUCH_MESSAGE = (10037, 10057)  # JetStream's codes for it
STREAM_PAUSE_S, STREAM_PATIENCE_S = 0.02, 25.0  # an election takes up to nine seconds
MAX_BATCH_MESSAGES = 1_000  # the broker's own limit of an atomic batch
# 10164: another write to this subject is in flight (R3, batches). 10070: the last message has another id
_WRONG_LAST_SEQUENCE = {10071, 10164, 10070}
# No room: of the whole store, of the account, of this stream (or of the disk, which the store finds out).
_STORAGE_FULL = {10023, 10047, 10077}
_BATCH_END_BYTES = 32  # of the headers that end a batch
_EXPECTED_SEQ = "Nats-Expected-Last-Subject-Sequence"
_ID, _EXPECTED_ID = "Nats-Msg-Id", "Nats-Expected-Last-Msg-Id"


class Streams:
    """What a connection does with streams. Every Bus can do it, if its account may."""

    def __init__(self, connection: Any):
        self._nc = connection
        self._js = connection.jetstream(timeout=READ_TIMEOUT_S)
        self._mux = Mux(connection, APPEND_TIMEOUT_S)
        self._followers: list[Follower] = []
        self._back = asyncio.Event()  # of the link, the next time; or it is known that it will not be
        self.on_link_back: Callable[[], None] = lambda: None  # called then

    @property
    def connected(self) -> bool:
        return bool(self._nc.is_connected)

    def _link_broke(self) -> None:
        """Nobody answers any more what was asked before."""
        self._mux.lost("the link to the broker broke")

    def _link_is_back(self) -> None:
        for follower in self._followers:
            follower.doubt()
        self._end_pauses()
        self.on_link_back()

    def _end_pauses(self) -> None:
        self._back.set()
        self._back = asyncio.Event()

    async def pause(self, seconds: float) -> None:
        """Let time pass before the next try; no longer than until a link that broke is there again, or is refused."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._back.wait()

    def _end(self) -> None:
        for follower in self._followers:
            follower.close()
        self._mux.close()

    async def ensure_stream(self, name: str, stream_subjects: list[str], *, replicas: int = 1, **options: Any) -> Any:
        """Create a stream, or bring an existing one to these options. Returns the configuration it has now.

        Brokers that are still electing who leads them do not answer at first: they are asked again for a while.
        """
        config = api.StreamConfig(
            name=name,
            subjects=stream_subjects,
            storage=api.StorageType.FILE,
            allow_direct=True,
            num_replicas=replicas,
            **options,
        )
        try:
            await self._mux.open()
            async with asyncio.timeout(STREAM_PATIENCE_S):
                made = await self._until_made(config)
                await self._until_known(name)
            return made.config
        except (TimeoutError, nats.errors.Error, OSError) as error:
            raise BusError(f"cannot create the stream {name}: {error or type(error).__name__}") from None

    async def _until_made(self, config: Any) -> Any:
        asking = self._nc.jetstream(timeout=READ_TIMEOUT_S)
        make = asking.add_stream
        while True:
            try:
                return await make(config)
            except nats.js.errors.BadRequestError:
                if make == asking.update_stream:
                    raise
                make = asking.update_stream  # it exists, with other options
            except (TimeoutError, nats.js.errors.ServiceUnavailableError) as error:
                log.info("the stream %s is not made yet: %s", config.name, error or type(error).__name__)
                await asyncio.sleep(STREAM_PAUSE_S)

    async def _until_known(self, name: str) -> None:
        """A stream that another central made a moment ago is not known to every broker of a cluster yet."""
        asking = self._nc.jetstream(timeout=READ_TIMEOUT_S / 2)
        while True:
            with contextlib.suppress(TimeoutError, nats.js.errors.NotFoundError):
                await asking.stream_info(name)
                return
            await asyncio.sleep(STREAM_PAUSE_S)

    async def append(
        self,
        subject: str,
        payload: bytes,
        expected_seq: int | None = None,
        *,
        name: str = "",
        right_after: str = "",
        keep_s: int = 0,
        stored: Callable[[int], None] | None = None,
    ) -> int:
        """Store a message and return its stream sequence.

        keep_s: so long it is kept, 0 for ever (a stream must be made for that: allow_msg_ttl).
        expected_seq: sequence of the subject's last message (0: none yet). name: of this message, never used before;
        right_after: the name of the message that must be the last one of the whole stream, so that this one can be sent
        before that one is acknowledged. stored: is told the sequence as the acknowledgement is read, while the caller's
        task is still to be woken; it must neither wait nor raise. Raises Conflict when the last message is another,
        AppendUnknown when no answer came, StorageFull when there is no room, BusError when the broker refused for
        another reason.
        """
        block = _block_of_append(expected_seq, name, right_after, keep_s)
        return await self._store(subject, payload, block, stored)

    def begin_append(
        self,
        subject: str,
        payload: bytes,
        expected_seq: int | None = None,
        *,
        name: str = "",
        right_after: str = "",
        stored: Callable[[int], None] | None = None,
    ) -> Coroutine[Any, Any, int]:
        """append() that has sent the message when it returns; to be awaited for what becomes of it.

        Of a stream that ensure_stream() was called for.
        """
        heard = functools.partial(_heard, stored) if stored else None
        block = _block_of_append(expected_seq, name, right_after)
        try:
            return self._outcome(subject, payload, self._mux.begin(subject, payload, block, heard))
        except (nats.errors.Error, OSError):  # nothing was sent: who awaits it tries again, and is told
            return self.append(subject, payload, expected_seq, name=name, right_after=right_after, stored=stored)

    async def append_all(self, messages: list[tuple[str, bytes, int]]) -> list[int]:
        """Store (subject, payload, expected_seq) messages of different subjects in one atomic batch: all or none.

        Returns their stream sequences. At most MAX_BATCH_MESSAGES. Raises as append() does, for all of them
        together; a Conflict does not say whose it is.
        """
        assert 0 < len(messages) <= MAX_BATCH_MESSAGES, f"a batch holds 1 to {MAX_BATCH_MESSAGES} messages"
        batch = self._nc._nuid.next().decode()
        last = len(messages)
        blocks = [
            f"NATS/1.0\r\nNats-Batch-Id: {batch}\r\nNats-Batch-Sequence: {number}\r\n{_EXPECTED_SEQ}: {seq}\r\n"
            for number, (_, _, seq) in enumerate(messages, start=1)
        ]
        for (subject, payload, _), lines in zip(messages, blocks, strict=True):  # before any of them is sent
            if len(payload) + len(lines) + _BATCH_END_BYTES > self._nc.max_payload:
                raise _too_large(subject, len(payload))
        try:
            for (subject, payload, _), lines in zip(messages[:-1], blocks, strict=False):
                self._nc.send(subject, payload, block=f"{lines}\r\n".encode())
        except (nats.errors.Error, OSError) as error:
            await asyncio.sleep(LINK_DOWN_PAUSE_S)
            raise AppendUnknown(f"the link broke within a batch: {error or type(error).__name__}") from None
        subject, payload, _ = messages[-1]
        block = f"{blocks[-1]}Nats-Batch-Commit: 1\r\n\r\n".encode()
        last_seq = await self._store(subject, payload, block, at_once=True)
        return list(range(last_seq - last + 1, last_seq + 1))

    async def _store(
        self,
        subject: str,
        payload: bytes,
        block: bytes,
        stored: Callable[[int], None] | None = None,
        at_once: bool = False,
    ) -> int:
        heard = functools.partial(_heard, stored) if stored else None
        return await self._outcome(subject, payload, self._mux.ask(subject, payload, block, heard, at_once))

    async def _outcome(self, subject: str, payload: bytes, asked: Awaitable[bytes]) -> int:
        """What became of a message, by the answer of the stream."""
        try:
            answer = await asked
        except AppendUnknown as error:
            raise AppendUnknown(f"no answer to the append to {subject}: {error}") from None
        except nats.errors.MaxPayloadError:
            raise _too_large(subject, len(payload)) from None
        except (TimeoutError, nats.errors.Error, OSError) as error:
            raise AppendUnknown(f"no answer to the append to {subject}: {error or type(error).__name__}") from None
        try:
            ack = _ACK.decode(answer)
        except msgspec.MsgspecError:
            raise AppendUnknown(f"unreadable answer to the append to {subject}") from None
        if ack.error is not None:
            raise _refused_append(subject, ack.error)
        if ack.duplicate:
            raise BusError(f"the broker took {subject} for a duplicate; nothing was stored")
        return ack.seq

    async def last(self, stream: str, subject: str, *, any_replica: bool = False) -> Stored | None:
        """The newest message on `subject`: from the stream's leader, or faster from a replica that may lag."""
        try:
            found = await self._js.get_last_msg(stream, subject, direct=any_replica)
        except nats.js.errors.NotFoundError:
            return None
        except (TimeoutError, nats.errors.Error, OSError) as error:
            raise BusError(f"cannot read {subject}: {_why(error)}") from None
        return Stored(found.subject or subject, found.seq or 0, found.data or b"")

    async def at(self, stream: str, seq: int) -> Stored | None:
        """The message at a sequence, from the stream's leader."""
        try:
            found = await self._js.get_msg(stream, seq)
        except nats.js.errors.NotFoundError:
            return None
        except (TimeoutError, nats.errors.Error, OSError) as error:
            raise BusError(f"cannot read message {seq} of {stream}: {_why(error)}") from None
        return Stored(found.subject or "", found.seq or 0, found.data or b"")

    async def dated(self, stream: str, subject: str) -> tuple[Stored, int] | None:
        """The newest message on `subject`, from the stream's leader, and when it was stored (Unix ms, its clock)."""
        try:
            found = await self._js.get_last_msg(stream, subject)
        except nats.js.errors.NotFoundError:
            return None
        except (TimeoutError, nats.errors.Error, OSError) as error:
            raise BusError(f"cannot read {subject}: {_why(error)}") from None
        assert found.time is not None
        return Stored(subject, found.seq or 0, found.data or b""), int(found.time.timestamp() * 1000)

    async def clock_ms(self, stream: str) -> int:
        """The time, in Unix ms, by the clock of the stream's leader. Raises BusError."""
        said = msgspec.json.decode(await self._said(f"$JS.API.STREAM.INFO.{stream}", b""), type=_Dated)
        if said.ts is None:
            why = said.error.description if said.error else "it tells no time"
            raise BusError(f"cannot read the clock of {stream}: {why}")
        return int(said.ts.timestamp() * 1000)

    async def delete(self, stream: str, seq: int) -> bool:
        """Delete one message; False when there is none at this sequence. Raises BusError."""
        try:
            return bool(await self._js.delete_msg(stream, seq))
        except (nats.js.errors.NotFoundError, nats.js.errors.BadRequestError):
            return False
        except nats.js.errors.APIError as error:
            if error.err_code in NO_SUCH_MESSAGE:
                return False
            raise BusError(f"cannot delete message {seq} of {stream}: {error.description}") from None
        except (TimeoutError, nats.errors.Error, OSError) as error:
            raise BusError(f"cannot delete message {seq} of {stream}: {error or type(error).__name__}") from None

    async def subjects_of(self, stream: str, pattern: str) -> list[str]:
        """Every subject of `pattern` that has a message. Raises BusError, also when they change meanwhile."""
        found: dict[str, int] = {}
        while True:
            ask = msgspec.json.encode({"subjects_filter": pattern, "offset": len(found)})
            said = await self._said(f"$JS.API.STREAM.INFO.{stream}", ask)
            page = msgspec.json.decode(said, type=_SubjectsPage)
            if page.error:
                raise BusError(f"cannot read the subjects of {stream}: {page.error.description}")
            before = len(found)
            found |= page.state.subjects or {}
            if len(found) >= page.total:
                return list(found)
            if len(found) == before:
                raise BusError(f"the subjects of {stream} changed while they were read")

    async def _said(self, subject: str, question: bytes) -> bytes:
        try:
            return (await self._nc.request(subject, question, timeout=READ_TIMEOUT_S)).data
        except (TimeoutError, nats.errors.Error, OSError) as error:
            raise BusError(f"no answer to {subject}: {error or type(error).__name__}") from None

    async def holds(self, stream: str, subject: str) -> bool:
        """Whether the stream has a message on `subject`, without fetching it."""
        return bool((await self._state(stream, subjects_filter=subject)).subjects)

    async def last_seq(self, stream: str) -> int:
        return int((await self._state(stream)).last_seq)

    async def _state(self, stream: str, subjects_filter: str | None = None) -> Any:
        try:
            return (await self._js.stream_info(stream, subjects_filter=subjects_filter)).state
        except (TimeoutError, nats.errors.Error, OSError) as error:
            raise BusError(f"cannot read the state of {stream}: {_why(error)}") from None

    async def follow(
        self,
        stream: str,
        subject: str,
        after_seq: int,
        handler: Callable[[Stored], Awaitable[None]],
        rewound: Callable[[int], None],
        stall_s: float = STALL_S,
        after_sha256: str = "",
    ) -> Follower:
        """Call handler for every message after `after_seq`, in order and each once, now and in future.

        See cyxnet.follower for `rewound`, `after_sha256` and for what happens when nothing comes for `stall_s`.
        """
        follower = Follower(self, stream, subject, after_seq, handler, rewound, stall_s, after_sha256)
        await follower.start()
        self._followers.append(follower)
        return follower

    async def consume(self, stream: str, subject: str, first_seq: int, deliver: Any, heartbeat_s: float) -> Any:
        """Have the broker push every message from `first_seq` on to `deliver`, once and unasked. For followers."""
        inbox = self._nc.new_inbox()
        config = api.ConsumerConfig(
            deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=first_seq,
            deliver_subject=inbox,
            filter_subject=subject,
            ack_policy=api.AckPolicy.NONE,
            max_deliver=1,
            flow_control=True,
            idle_heartbeat=heartbeat_s,
            num_replicas=1,
            mem_storage=True,
        )
        subscription = None
        try:
            subscription = await self._nc.listen(inbox, deliver)
            await self._js.add_consumer(stream, config)
            return subscription
        except (TimeoutError, nats.errors.Error, OSError) as error:
            if subscription is not None:
                with contextlib.suppress(Exception):
                    await subscription.unsubscribe()
            raise BusError(f"cannot follow {stream}: {error or type(error).__name__}") from None

    async def reply(self, subject: str) -> None:
        with contextlib.suppress(nats.errors.Error, OSError):
            await self._nc.publish(subject, b"")


class _Failure(msgspec.Struct):
    """Why JetStream did not do what it was asked to."""

    err_code: int = 0
    description: str = ""


class _Subjects(msgspec.Struct):
    subjects: dict[str, int] | None = None


class _SubjectsPage(msgspec.Struct):
    """JetStream's answer about a stream: at most 100,000 of its subjects, of `total`."""

    state: _Subjects = msgspec.field(default_factory=_Subjects)
    total: int = 0
    error: _Failure | None = None


class _Dated(msgspec.Struct):
    """JetStream's answer about a stream: when it gave it."""

    ts: datetime | None = None
    error: _Failure | None = None


class _Ack(msgspec.Struct):
    """JetStream's answer to an append."""

    seq: int = 0
    duplicate: bool = False
    error: _Failure | None = None


_ACK = msgspec.json.Decoder(_Ack)


def _heard(stored: Callable[[int], None], answer: bytes) -> None:
    """Tell of an acknowledgement; that it is none is said to who waits for it."""
    with contextlib.suppress(msgspec.MsgspecError):
        ack = _ACK.decode(answer)
        if ack.error is None and not ack.duplicate:
            stored(ack.seq)


def _block_of_append(expected_seq: int | None, name: str, right_after: str, keep_s: int = 0) -> bytes:
    """The headers of an append, as on the wire."""
    lines = "" if expected_seq is None else f"{_EXPECTED_SEQ}: {expected_seq}\r\n"
    if name:
        lines += f"{_ID}: {name}\r\n"
    lines += f"Nats-TTL: {keep_s}s\r\n" if keep_s else ""
    if right_after:
        lines += f"{_EXPECTED_ID}: {right_after}\r\n"
    return f"NATS/1.0\r\n{lines}\r\n".encode() if lines else b""


def _why(error: Exception) -> str:
    """Why a broker did not tell what it was asked: in its words, and what to look at where those do not say it."""
    said = error.description if isinstance(error, nats.js.errors.APIError) else str(error)
    if isinstance(error, nats.js.errors.ServiceUnavailableError):
        where = "they elect for some seconds, too few are up, or a disk or max_file is full: see /healthz of each"
        return f"the brokers' store does not answer ({said or 'nobody is there'}): {where}"
    return said or type(error).__name__


def _too_large(subject: str, size: int) -> BusError:
    return BusError(f"the {size} bytes for {subject} are more than a message of the broker holds; nothing was stored")


def _refused_append(subject: str, failure: _Failure) -> CyxError:
    if failure.err_code in _WRONG_LAST_SEQUENCE:
        return Conflict(f"{subject}: {failure.description}")
    if failure.err_code in _STORAGE_FULL:
        return StorageFull(
            f"the broker has no room to store {subject} ({failure.description}); nothing was stored. "
            "Free disk space, or raise max_file in the broker's configuration"
        )
    return BusError(f"the broker refused to store {subject}: {failure.description}")

"""The event log: append with compare-and-swap, follow, and know what came of an append without an answer.

What may be wrong with the log, and what follows:

  the message is no record, or cannot have happened     quarantine: it counts for nothing (see cyxcentral.world)
  a record does not name its predecessor, or is of a    its history is not known any more: nothing is decided on that
  version newer than this                               subject, and what follows on it is in quarantine
  a sequence is missing, the log ends before what was   this central stops deciding, and ends: what it would decide on
  seen, or holds something else than was acknowledged   never was. The message says what to restore
"""

import asyncio
import contextlib
import gc
import hashlib
import heapq
import itertools
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from cyxcentral.groupcommit import GroupCommit
from cyxcentral.machine import MACHINE, Machine
from cyxcentral.records import is_read_as, read
from cyxcentral.snapshot import NOT_USED, Snapshot, Unusable
from cyxcentral.world import World
from cyxcore.errors import CyxError
from cyxnet import subjects
from cyxnet.bus import Bus, BusError
from cyxnet.codec import BadMessage, encode
from cyxnet.messages import AnyEvent, Record
from cyxnet.outcomes import AppendUnknown, Conflict, StorageFull, Stored

log = logging.getLogger(__name__)
E = TypeVar("E", bound=AnyEvent)
Decide = Callable[[], E | None]


class Sequel(NamedTuple):
    """What may follow an event at once: `decide` is told the event, and of which time, before it is stored.

    Returns what is to stand right behind it on the same subject, or None; then `ended` is called once, when it is known
    whether it does, or that nobody knows yet. It stands right behind that event or nowhere.
    """

    decide: Callable[[Any, int], AnyEvent | None]
    ended: Callable[[], None]


# (first sequence, last sequence) -> blocks of (subject, payload, SHA-256, is_plain of the payload), without a gap
ReadAhead = Callable[[int, int], AsyncGenerator[Sequence[tuple[str, bytes, bytes, bool]], None]]

APPLY_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 600.0  # of the whole log, at the start
UNKNOWN_RETRIES = 5
LONG = 20_000  # events to read: then it is worth a process of its own


class LogError(BusError):
    """The event log cannot be trusted or does not move. Whoever asked may ask again, perhaps another central."""

    code = "event_log"


class EventLog:
    """The EVENTS stream and the World it folds to.

    `applied` callbacks see each record after the world took it in, `quarantined` ones each message that counts for
    nothing, with the reason. `broken` is done when deciding on would be deciding on a state that never was, so this
    central has to end.

    A record of our own is taken in as soon as it is acknowledged and all before it are in: the acknowledgement names
    its place. The follower brings the records of other centrals, and everything a second time: it must be the same.
    """

    def __init__(self, core: Bus, central_id: str, world: World, machine: Machine = MACHINE):
        self._core = core
        self.central_id = central_id
        self.world = world
        self.machine = machine
        self.applied: list[Callable[[Stored, Record], None]] = []
        self.quarantined: list[Callable[[Stored, str], None]] = []
        self.room: Callable[[], Awaitable[None]] | None = None  # waits until more of the stream may be taken in
        self.read_ahead: ReadAhead | None = None  # for a long log at the start
        self.why_silent: Callable[[], Awaitable[str]] | None = None  # why the broker answers no append; "" for no idea
        self.broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._commits = GroupCommit(core)
        self._followed_seq = 0  # what the follower has brought
        self._early: dict[int, tuple[Stored, Record]] = {}  # acknowledged, waiting for what is before them
        self._unconfirmed: dict[int, bytes] = {}  # payloads taken in that the follower has not brought yet
        self._sent: dict[str, tuple[bytes, Record]] = {}  # by subject: what of ours is under way
        self._commands: dict[str, int] = {}  # our command ids under way, and where they lie (0: not seen)
        self._sequels: set[asyncio.Task[None]] = set()
        # Of several replicas each would decide whether what follows has its event before it; that one of them which has
        # just caught up comes to the same is nothing we rely on.
        self._sends_ahead = True
        self._turns: dict[str, list[asyncio.Future[None]]] = {}  # subjects of ours, and who waits for their turn
        self._stands_still = False  # the store took nothing the last time, and that was logged
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []  # a heap by sequence
        self._ticket = itertools.count()

    async def open(
        self, known_seq: int, known_sha256: str = "", replicas: int = 1, snapshot: Snapshot | None = None
    ) -> int:
        """Create the stream if needed, check it, and read it to its end. Raises LogError.

        known_seq, known_sha256: how far the ledger has seen it, and the hash of the event there. snapshot: a world that
        is no newer than the ledger. Returns after which event was read: that of the snapshot, if it was of use, or 0.
        """
        self._sends_ahead = replicas == 1
        config = await self._core.ensure_stream(
            subjects.EVENTS,
            [subjects.EVENT_SUBJECTS],
            replicas=replicas,
            deny_delete=True,
            deny_purge=True,
            allow_atomic=True,
        )
        if wrong := unsafe(config):
            raise LogError(
                f"the stream {subjects.EVENTS} may lose events: {wrong}. Restore these settings of the stream; "
                "nothing is appended until then"
            )
        last_seq = await self._core.last_seq(subjects.EVENTS)
        if last_seq < known_seq:
            raise LogError(
                f"the event log ends at {last_seq}, but the ledger has seen {known_seq}: events were lost. "
                "Restore the broker's store from a backup; nothing is appended until then"
            )
        if known_seq and known_sha256:
            await self._check_place(known_seq, known_sha256)
        if snapshot:
            await self._begin_with(snapshot)
        begun_seq = self.world.seq
        if self.read_ahead and last_seq - self.world.seq >= LONG:
            await self._take_ahead(self.read_ahead, last_seq)
        self._followed_seq = self.world.seq
        await self._core.follow(
            subjects.EVENTS,
            subjects.EVENT_SUBJECTS,
            self._followed_seq,
            self._apply,
            self._rewound,
            after_sha256=self.world.sha256.hex(),
        )
        await self._reached(last_seq, READ_TIMEOUT_S)
        return begun_seq

    async def _begin_with(self, snapshot: Snapshot) -> None:
        """Make the empty world the one that was kept, if the log holds the event it was made after."""
        try:
            stored = await self._core.at(subjects.EVENTS, snapshot.head.seq)
            if stored is None or stored.sha256 != snapshot.head.sha256.hex():
                raise Unusable(f"event {snapshot.head.seq} of the log is not the one it was made after")
            snapshot.fill(self.world)
        except Unusable as error:
            log.warning("%s: %s", snapshot.path, NOT_USED.format(error))

    async def _take_ahead(self, read_ahead: ReadAhead, last_seq: int) -> None:
        """Take in what a process of its own reads; where that fails, the follower goes on."""
        blocks = read_ahead(self.world.seq + 1, last_seq)
        try:
            async with asyncio.timeout(READ_TIMEOUT_S), contextlib.aclosing(blocks), _not_collected():
                async for block in blocks:
                    for subject, payload, sha256, plain in block:
                        self._take(Stored(subject, self.world.seq + 1, payload), sha256, plain)
                        self._refuse_when_broken()
                    if self.room:
                        await self.room()
        except (OSError, TimeoutError, msgspec.MsgspecError) as error:
            log.warning("reading the log ahead failed: %r", error)
        if self.world.seq < last_seq:
            log.warning("the log was read ahead up to %d of %d only; the rest is followed", self.world.seq, last_seq)

    async def _check_place(self, seq: int, sha256: str) -> None:
        stored = await self._core.at(subjects.EVENTS, seq)
        if stored is None or stored.sha256 != sha256:
            found = "is gone" if stored is None else "is another"
            raise LogError(
                f"event {seq}, the last one the ledger has seen, {found} in the event log: this is not the log the "
                "ledger was made from. Restore the broker's store from a backup, or delete the ledger if this log is "
                "the true one; nothing is appended until then"
            )

    # -- reading ---------------------------------------------------------------------------------------

    async def _apply(self, stored: Stored) -> None:
        """What the follower brings."""
        if self.broken.done():
            return
        if stored.seq != self._followed_seq + 1:
            # nothing is ever deleted from this stream: a sequence that is missing is an event that is missing
            self._break(f"event {stored.seq} came, expected event {self._followed_seq + 1}: the store is damaged")
            return
        self._followed_seq = stored.seq
        if stored.seq <= self.world.seq:
            if self._unconfirmed.pop(stored.seq) != stored.payload:
                self._break(f"event {stored.seq} is not what the broker acknowledged there: events were lost")
            return
        self._early.pop(stored.seq, None)
        payload, record = self._sent.get(stored.subject, (b"", None))  # of a batch, it comes before the acknowledgement
        self._take(stored, encoded=record if payload == stored.payload else None)
        if self._early:
            self._take_early()
        if self._waiters:
            self._wake()
        if self.room:
            await self.room()

    def _acknowledged(self, stored: Stored, record: Record) -> None:
        """A record of ours is stored, and here is where."""
        if stored.seq > self.world.seq and not self.broken.done():
            self._early[stored.seq] = stored, record
            self._take_early()
            self._wake()

    def _take_early(self) -> None:
        while not self.broken.done() and (early := self._early.pop(self.world.seq + 1, None)) is not None:
            stored, record = early
            self._unconfirmed[stored.seq] = stored.payload
            self._take(stored, encoded=record)

    def _take(
        self,
        stored: Stored,
        sha256: bytes | None = None,
        plain: bool | None = None,
        encoded: Record | None = None,
    ) -> None:
        """sha256, plain: of the payload, if somebody found out already. encoded: what it was made of, if known."""
        try:
            sha256 = sha256 or hashlib.sha256(stored.payload).digest()
            record: Record | BadMessage
            if encoded and is_read_as(encoded, stored.payload):
                record = encoded
            else:
                record = read(stored.payload, plain)
            why = self.world.apply(stored.seq, stored.subject, record, sha256)
            if type(record) is Record:
                if record.command_id in self._commands:
                    self._commands[record.command_id] = stored.seq
                if why is None:
                    for callback in self.applied:
                        callback(stored, record)
            if why is not None:
                log.error("event %d (%s) is in quarantine: %s", stored.seq, stored.subject, why)
                for note in self.quarantined:
                    note(stored, why)
        except Exception as error:
            log.debug("event %d", stored.seq, exc_info=error)
            self._break(f"event {stored.seq} ({stored.subject}) cannot be taken in: {error or type(error).__name__}")

    def _rewound(self, same_until: int) -> None:
        self._break(
            f"the event log is what this central has seen only up to {same_until} of {self.world.seq}: events were lost"
        )

    def _break(self, why: str) -> None:
        if not self.broken.done():
            log.critical("%s; this central stops deciding", why)
            self.broken.set_result(why)
        self._wake()

    def _refuse_when_broken(self) -> None:
        if self.broken.done():
            raise LogError(self.broken.result())

    def _wake(self) -> None:
        """Tell those who wait for what is in now; all of them when nothing will come any more."""
        while self._waiters and (self._waiters[0][0] <= self.world.seq or self.broken.done()):
            _, _, waiter = heapq.heappop(self._waiters)
            if not waiter.done():
                waiter.set_result(None)

    async def _reached(self, seq: int, timeout_s: float | None = None) -> None:
        if self.world.seq < seq and not self.broken.done():
            timeout_s = APPLY_TIMEOUT_S if timeout_s is None else timeout_s
            waiter = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiters, (seq, next(self._ticket), waiter))
            try:
                async with asyncio.timeout(timeout_s):
                    await waiter
            except TimeoutError:
                raise LogError(
                    f"event {seq} did not arrive within {timeout_s:g} s; the log is read up to {self.world.seq}"
                ) from None
        if self.world.seq < seq:
            self._refuse_when_broken()

    async def broker_ms(self) -> int:
        """The time, in Unix ms, by the clock of the log's leader: one for all centrals. Raises BusError."""
        return await self._core.clock_ms(subjects.EVENTS)

    async def catch_up(self) -> None:
        """Take in everything that is stored now. What is not in the world after this did not happen before it.

        Whoever is about to say no (there is no such job, this attempt is not the current one) calls it first: with
        several centrals, another one may have said yes a moment ago.
        """
        await self._reached(await self._core.last_seq(subjects.EVENTS))

    # -- appending -------------------------------------------------------------------------------------

    async def record(self, subject: str, decide: Decide[E], sequel: Sequel | None = None) -> E | None:
        """Append what `decide()` returns, on the state it saw, and wait until the world took it in.

        `decide` reads the world and returns the event, None for nothing to do, or raises; it runs again whenever
        somebody else was faster. Returns the event stored. sequel: asked when nothing else is being appended.
        """
        await self._turn(subject)
        try:
            [event] = await self._record([(subject, decide)], sequel)
        finally:
            self._next(subject)
        return event

    async def _turn(self, subject: str) -> None:
        """Wait until nothing of ours is under way about a subject: two would only conflict with each other."""
        while (waiting := self._turns.get(subject)) is not None:
            turn = asyncio.get_running_loop().create_future()
            waiting.append(turn)
            await turn
        self._turns[subject] = []

    def _next(self, subject: str) -> None:
        self._sent.pop(subject, None)
        for turn in self._turns.pop(subject):  # the first of them to run takes it, and the others wait again
            if not turn.done():
                turn.set_result(None)

    async def record_all(self, parts: Sequence[tuple[str, Decide[Any]]]) -> list[Any]:
        """record() about several subjects, each named once: all of the events are stored, or none.

        All decide on the same state, and all again when one of them meets a conflict. Returns an event or None each.
        """
        named = sorted({subject for subject, _ in parts})
        assert len(named) == len(parts), "record_all takes each subject once"
        held: list[str] = []
        try:
            for subject in named:  # in one order for everybody: nobody waits for who waits for him
                await self._turn(subject)
                held.append(subject)
            return await self._record(parts)
        finally:
            for subject in held:
                self._next(subject)

    async def _record(self, parts: Sequence[tuple[str, Decide[E]]], sequel: Sequel | None = None) -> list[E | None]:
        tried: dict[str, list[E | None]] = {}  # command id -> the events of that try
        try:
            while True:
                events = self._decide(parts)
                if not any(event is not None for event in events):
                    return events
                command_id = self.machine.token_hex(16)
                tried[command_id] = events
                self._commands[command_id] = 0
                done = await self._try(parts, events, command_id, tried, sequel)
                if done is not None:
                    return done
        finally:
            for command_id in tried:
                del self._commands[command_id]

    def _decide(self, parts: Sequence[tuple[str, Decide[E]]]) -> list[E | None]:
        self._refuse_when_broken()
        for subject, _ in parts:
            if subject in self.world.damaged:
                raise LogError(
                    f"nothing is decided on {subject}, its history is not known: {self.world.why_damaged[subject]}"
                )
        return [decide() for _, decide in parts]

    async def _try(
        self,
        parts: Sequence[tuple[str, Decide[E]]],
        events: list[E | None],
        command_id: str,
        tried: dict[str, list[E | None]],
        sequel: Sequel | None,
    ) -> list[E | None] | None:
        """Append one set of events; they, or None to decide again. Raises AppendUnknown after many without answer."""
        records: list[Record] = []
        messages: list[tuple[str, bytes, int]] = []
        for (subject, _), event in zip(parts, events, strict=True):
            if event is not None:
                record = self._record_of(subject, command_id, event)
                payload = encode(record)
                records.append(record)
                messages.append((subject, payload, self.world.last_seq.get(subject, 0)))
                self._sent[subject] = payload, record
        unknown: AppendUnknown | None = None
        try:
            if sequel and self._sends_ahead and self._commits.idle:
                seqs = [await self._append_with(sequel, messages[0], records[0])]
            else:
                seqs = await self._append(messages)
        except AppendUnknown as error:
            unknown = error
        except StorageFull as error:
            self._takes_nothing(error)
            raise
        except Conflict:
            pass
        else:
            self._takes_again()
            for (subject, payload, _), record, seq in zip(messages, records, seqs, strict=True):
                if seq > self.world.seq:  # of a batch, the follower has brought it mostly
                    self._acknowledged(Stored(subject, seq, payload), record)
            if self.world.seq < seqs[-1]:
                await self._reached(seqs[-1])
            return events
        try:
            await self._reload([subject for subject, _, _ in messages], patiently=unknown is not None)
            for earlier, theirs in tried.items():  # it may be one that was given up, and arrived after all
                if self._commands[earlier]:
                    return theirs
            if unknown:
                await self._refuse_when_full(messages[0][0])
                if len(tried) >= UNKNOWN_RETRIES:
                    raise unknown
        except BusError as error:
            self._takes_nothing(error)
            raise
        return None

    def _takes_nothing(self, why: BusError) -> None:
        """Who asks is refused, and tries again: for the operator it is one line, however many they are."""
        if not self._stands_still:
            log.error("the event log takes nothing: %s", why)
            self._stands_still = True

    def _takes_again(self) -> None:
        if self._stands_still:
            log.warning("the event log takes events again")
            self._stands_still = False

    async def _refuse_when_full(self, subject: str) -> None:
        """A broker whose disk is full answers no append, and no later one either until it is started again."""
        why = await self.why_silent() if self.why_silent else ""
        if why:
            raise StorageFull(f"the broker cannot store {subject} ({why}); ask again when its disk has room")

    async def _append(self, messages: list[tuple[str, bytes, int]]) -> list[int]:
        if len(messages) == 1:
            return [await self._commits.append(*messages[0])]
        return await self._core.append_all(messages)

    async def _append_with(self, sequel: Sequel, message: tuple[str, bytes, int], record: Record) -> int:
        """Append an event and, before it is acknowledged, what may follow it. Returns where the first lies.

        What follows is decided while the first is on its way to the disk. It names the first by its command id: without
        that, or with anything between the two, it is not stored.
        """
        subject, payload, expected_seq = message
        stored = self._at_once(subject, payload, record)
        with self._commits.alone():
            first = self._core.begin_append(subject, payload, expected_seq, name=record.command_id, stored=stored)
            self._send_sequel(sequel, subject, payload, record)
            return await first

    def _send_sequel(self, sequel: Sequel, subject: str, payload: bytes, record: Record) -> None:
        """What may follow a record that is being appended now, if anything."""
        try:
            follows = sequel.decide(record.event, record.at_ms)
        except Exception:  # whoever appends waits for the event itself, which is on its way
            log.exception("nothing follows at once on %s: that failed", subject)
            return
        if follows is None:
            return
        next_record = Record(
            command_id=self.machine.token_hex(16),
            at_ms=record.at_ms,
            by=self.central_id,
            event=follows,
            prev=hashlib.sha256(payload).hexdigest(),
        )

        next_payload = encode(next_record)
        stored = self._at_once(subject, next_payload, next_record)
        second = self._core.begin_append(subject, next_payload, right_after=record.command_id, stored=stored)

        async def follow() -> None:
            try:
                await second
            except (Conflict, BusError) as error:  # it is decided anew; if it was stored after all, the follower tells
                log.info("%s does not follow at once on %s: %s", type(follows).__name__, subject, error)
            finally:
                sequel.ended()

        task = asyncio.get_running_loop().create_task(follow())
        self._sequels.add(task)
        task.add_done_callback(self._sequels.discard)

    def _at_once(self, subject: str, payload: bytes, record: Record) -> Callable[[int], None]:
        """Takes a record of ours in as its acknowledgement is read: on an idle network who waits for it waits less."""
        return lambda seq: self._acknowledged(Stored(subject, seq, payload), record)

    def _record_of(self, subject: str, command_id: str, event: AnyEvent) -> Record:
        return Record(
            command_id=command_id,
            at_ms=self.machine.wall_ms(),
            by=self.central_id,
            event=event,
            prev=self.world.prev(subject),
        )

    async def _reload(self, about: list[str], patiently: bool) -> None:
        """Catch up with what is stored on these subjects: it made an append fail, or may be the append itself."""
        for subject in about:
            if patiently:
                last = await retry(lambda subject=subject: self._core.last(subjects.EVENTS, subject))  # type: ignore[misc]
            else:
                last = await self._core.last(subjects.EVENTS, subject)
            if last is not None:
                await self._reached(last.seq)


@contextlib.asynccontextmanager
async def _not_collected() -> AsyncGenerator[None, None]:
    """Without looks for cycles of garbage: reading the log makes none, and all that it makes would be looked at."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def unsafe(config: Any) -> str:
    """What of a stream's configuration would let an event disappear; empty when nothing does."""
    wrong = [
        f"{name} is {getattr(config, name)!r}"
        for name, right in (
            ("deny_delete", (True,)),
            ("deny_purge", (True,)),
            ("allow_atomic", (True,)),
            ("allow_rollup_hdrs", (False, None)),
            ("allow_msg_ttl", (False, None)),
            ("max_age", (0, None)),
            ("max_msgs", (-1, 0, None)),
            ("max_msgs_per_subject", (-1, 0, None)),
            ("retention", ("limits", None)),
            ("storage", ("file", None)),
        )
        if getattr(config, name) not in right
    ]
    if (config.max_bytes or -1) > 0 and config.discard != "new":
        wrong.append(f"max_bytes is {config.max_bytes} and discard is not 'new'")
    return ", ".join(wrong)


T = TypeVar("T")


async def retry(work: Callable[[], Awaitable[T]], delays_s: tuple[float, ...] = (0.1, 0.5, 1, 2, 4)) -> T:
    """Run `work` until it answers; the last BusError goes to the caller."""
    for delay_s in delays_s:
        try:
            return await work()
        except CyxError as error:
            log.info("will try again in %g s: %s", delay_s, error)
            await asyncio.sleep(delay_s)
    return await work()

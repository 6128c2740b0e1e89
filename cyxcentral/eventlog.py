"""The event log: append with compare-and-swap, follow, and know what came of an append without an answer."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TypeVar

from cyxcentral.machine import MACHINE, Machine
from cyxcentral.world import World
from cyxcore.errors import CyxError
from cyxnet import subjects
from cyxnet.bus import AppendUnknown, Bus, BusError, Conflict, Stored
from cyxnet.codec import MSGPACK, decode, encode
from cyxnet.messages import AnyEvent, Record

log = logging.getLogger(__name__)
E = TypeVar("E", bound=AnyEvent)

APPLY_TIMEOUT_S = 10.0
UNKNOWN_RETRIES = 5
REMEMBERED_COMMANDS = 10_000


class LogError(BusError):
    """The event log cannot be trusted or does not move. Whoever asked may ask again, perhaps another central."""

    code = "event_log"


class EventLog:
    """The EVENTS stream and the World it folds to.

    `applied` callbacks see each record after the world took it in. `broken` is done when a record cannot be taken
    in: deciding on would be deciding on a state that never was, so this central has to end.
    """

    def __init__(self, core: Bus, central_id: str, world: World, machine: Machine = MACHINE):
        self._core = core
        self._central_id = central_id
        self.world = world
        self.machine = machine
        self.applied: list[Callable[[Stored, Record], None]] = []
        self._progress = asyncio.Event()
        self.broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._commands: OrderedDict[str, int] = OrderedDict()  # recent command ids and where they lie

    async def open(self, known_seq: int, replicas: int = 1) -> None:
        """Create the stream if needed and read it to its end. known_seq: how far the ledger has seen it."""
        await self._core.ensure_stream(
            subjects.EVENTS, [subjects.EVENT_SUBJECTS], replicas=replicas, deny_delete=True, deny_purge=True
        )
        last_seq = await self._core.last_seq(subjects.EVENTS)
        if last_seq < known_seq:
            raise LogError(
                f"the event log ends at {last_seq}, but the ledger has seen {known_seq}: events were lost. "
                "Restore the broker's store from a backup; nothing is appended until then"
            )
        await self._core.follow(subjects.EVENTS, subjects.EVENT_SUBJECTS, 0, self._apply, self._rewound)
        await self._reached(last_seq, timeout_s=600.0)

    async def _apply(self, stored: Stored) -> None:
        if self.broken.done():
            return
        try:
            # nothing is ever deleted from this stream: a sequence that is missing is an event that is missing
            assert stored.seq == self.world.seq + 1, f"expected event {self.world.seq + 1}; the store is damaged"
            record = decode(Record, stored.payload, MSGPACK, max_bytes=2**31)
            self.world.apply(stored.seq, stored.subject, record)
            self._commands[record.command_id] = stored.seq
            if len(self._commands) > REMEMBERED_COMMANDS:
                self._commands.popitem(last=False)
            for callback in self.applied:
                callback(stored, record)
        except Exception as error:
            log.debug("event %d", stored.seq, exc_info=error)
            self._break(f"event {stored.seq} ({stored.subject}) cannot be taken in: {error or type(error).__name__}")
        self._wake()

    def _rewound(self, last_seq: int) -> None:
        self._break(f"the event log ends at {last_seq}, this central has seen {self.world.seq}: events were lost")

    def _break(self, why: str) -> None:
        if not self.broken.done():
            log.critical("%s; this central stops deciding", why)
            self.broken.set_result(why)
        self._wake()

    def _refuse_when_broken(self) -> None:
        if self.broken.done():
            raise LogError(self.broken.result())

    def _wake(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()

    async def _reached(self, seq: int, timeout_s: float = APPLY_TIMEOUT_S) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while self.world.seq < seq:
                    self._refuse_when_broken()
                    await self._progress.wait()
        except TimeoutError:
            raise LogError(
                f"event {seq} did not arrive within {timeout_s:g} s; the log is read up to {self.world.seq}"
            ) from None

    async def catch_up(self) -> None:
        """Take in everything that is stored now. What is not in the world after this did not happen before it.

        Whoever is about to say no (there is no such job, this attempt is not the current one) calls it first: with
        several centrals, another one may have said yes a moment ago.
        """
        await self._reached(await self._core.last_seq(subjects.EVENTS))

    async def record(self, subject: str, decide: Callable[[], E | None]) -> E | None:
        """Append what `decide()` returns, on the state it saw, and wait until the world took it in.

        `decide` reads the world and returns the event, None for nothing to do, or raises; it runs again whenever
        somebody else was faster. Returns the event stored.
        """
        unknown = 0
        while True:
            self._refuse_when_broken()
            event = decide()
            if event is None:
                return None
            record = Record(
                command_id=self.machine.token_hex(16),
                at_ms=self.machine.wall_ms(),
                by=self._central_id,
                event=event,
            )
            expected = self.world.last_seq.get(subject, 0)
            try:
                seq = await self._core.append(subject, encode(record), expected)
            except Conflict:
                await self._reload(subject)
                continue
            except AppendUnknown:
                stored = await self._find(subject, record.command_id)
                if stored is None:
                    unknown += 1
                    if unknown >= UNKNOWN_RETRIES:
                        raise
                    continue
                seq = stored
            await self._reached(seq)
            return event

    async def _reload(self, subject: str) -> None:
        """Catch up with what made the append fail."""
        last = await self._core.last(subjects.EVENTS, subject)
        if last is not None:
            await self._reached(last.seq)

    async def _find(self, subject: str, command_id: str) -> int | None:
        """The sequence of our command if the log has it, once everything on its subject was read."""
        last = await retry(lambda: self._core.last(subjects.EVENTS, subject))
        if last is not None:
            await self._reached(last.seq)
        return self._commands.get(command_id)


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

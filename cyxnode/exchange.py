"""Requests to a replica and its answers: frames on one socket between the agent and the process that has the model.

    agent ── Ask ──▶ replica     a request, under a number of its own
          ── Took ─▶             so many more parts of its answer may come
          ── Drop ─▶             nobody waits for it any more
          ◀─ Reply ──            status, and the answer or its first part
          ◀─ Part ───            more of it
          ◀─ Beat ───            now and then, while it has requests: it is still at it

What is sent within one turn of the event loop goes together, so that many requests cost one call of the system and one
of the encoder: as a list of frames in MessagePack, behind four bytes of its length, big-endian. A list ends with the
frame that makes it longer than LIST_BYTES, or after LIST_FRAMES, and is taken in a turn of its own: so the answers to
the first questions of many are on their way while the next ones are computed.
"""

import asyncio
import contextlib
import itertools
import math
import socket
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from cyxnet.asking import PART_BYTES, WINDOW

LENGTH_BYTES = 4
LIST_BYTES, LIST_FRAMES = 65_536, 32
MOST_WAITING_BYTES = 4 * LIST_BYTES  # of lists that came and are not taken
MOST_UNREAD_BYTES = 8 * 2**20  # that were sent: of one large question nobody else should be told that it is too much
# Of larger questions than that, so much of one caller's is with the replica: the questions of others wait for no more.
LARGE_BYTES, AHEAD_BYTES = 16_384, 2 * 2**20
MAX_LIST_BYTES = 16 * PART_BYTES  # a request is one message of the broker, and an answer comes in parts


class Frame(Struct, array_like=True, tag=True, gc=False, forbid_unknown_fields=True):
    """number: of the request, for as long as it is answered."""


class Ask(Frame, tag=1):
    """accept: content types that the answer may have, as in HTTP; "" for any."""

    number: int
    method: str
    path: str
    content_type: str
    accept: str
    body: bytes


class Took(Frame, tag=2):
    number: int
    parts: int


class Drop(Frame, tag=3):
    number: int


class Reply(Frame, tag=4):
    """more: parts follow. retry_after_ms: 0 where nothing is said of that."""

    number: int
    status: int
    content_type: str
    retry_after_ms: int
    body: bytes
    more: bool


class Part(Frame, tag=5):
    """broken: the answer ends here and is not whole."""

    number: int
    body: bytes
    more: bool
    broken: bool = False


class Beat(Frame, tag=6):
    """The process is alive, and has not forgotten what it was asked."""


Tell = Callable[[Reply | Part | None], None]


class Wire(asyncio.Protocol):
    """One end of the socket. take(message) is called for each frame of `kinds`, lost(why) once, when it is over."""

    def __init__(self, kinds: Any, take: Callable[[Any], None], lost: Callable[[str], None]):
        few = Annotated[list[kinds], Meta(max_length=LIST_FRAMES)]  # of a long one all would be taken in one turn
        self._decode: Callable[[memoryview], Any] = msgspec.msgpack.Decoder(few).decode
        self._encode = msgspec.msgpack.Encoder().encode
        self._take, self._lost = take, lost
        self._came, self._taken = b"", 0  # what came, and how much of it was taken
        self._goes_on = False  # in the next turn
        self._out: list[Frame] = []
        self._out_bytes = 0  # of their bodies
        self._transport: asyncio.Transport | None = None
        self.is_full = False  # the other end does not read
        self._is_over = asyncio.Event()

    @classmethod
    async def open(
        cls, held: socket.socket, kinds: Any, take: Callable[[Any], None], lost: Callable[[str], None]
    ) -> "Wire":
        held.setblocking(False)
        loop = asyncio.get_running_loop()
        _, wire = await loop.create_unix_connection(lambda: cls(kinds, take, lost), sock=held)
        return wire

    def send(self, message: Frame, body_bytes: int = 0) -> None:
        """Nothing happens when the other end is gone: lost() says so. body_bytes: of its body."""
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(message)
        self._out_bytes += body_bytes
        if self._out_bytes >= LIST_BYTES or len(self._out) >= LIST_FRAMES:
            self._flush()

    def close(self) -> None:
        self._flush()
        if self._transport:
            self._transport.close()

    async def until_sent(self, within_s: float) -> None:
        """close(), and wait until the other end has taken what was sent, or is gone, for so long at most."""
        self.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._is_over.wait()

    def _flush(self) -> None:
        if not self._out:
            return
        frames = self._encode(self._out)
        self._out.clear()
        self._out_bytes = 0
        if self._transport and not self._transport.is_closing():
            self._transport.write(len(frames).to_bytes(LENGTH_BYTES, "big") + frames)

    # -- asyncio's part ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        transport.set_write_buffer_limits(high=MOST_UNREAD_BYTES)

    def data_received(self, data: bytes) -> None:
        self._came = self._came[self._taken :] + data if self._taken < len(self._came) else data
        self._taken = 0
        if not self._goes_on or len(self._came) > MOST_WAITING_BYTES:
            self._take_lists(MOST_WAITING_BYTES)

    def _go_on(self) -> None:
        self._goes_on = False
        self._take_lists(MOST_WAITING_BYTES)

    def _take_lists(self, leaving_bytes: int) -> None:
        """The next list, if it is all there, and those behind it in turns of their own, unless more than that waits."""
        try:
            while (frames := self._next_list()) is not None:
                for frame in self._decode(frames):
                    self._take(frame)
                if len(self._came) - self._taken <= leaving_bytes:
                    if not self._goes_on:
                        self._goes_on = True
                        asyncio.get_running_loop().call_soon(self._go_on)  # behind what these frames have begun
                    return
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self.fail(f"it sent what are no frames: {error}")

    def _next_list(self) -> memoryview | None:
        """None while it is not all there. Raises DecodeError."""
        begin = self._taken + LENGTH_BYTES
        length = int.from_bytes(self._came[self._taken : begin], "big")
        if length > MAX_LIST_BYTES:
            raise msgspec.DecodeError(f"expected frames of at most {MAX_LIST_BYTES} bytes, got {length}")
        end = begin + length
        if not begin <= len(self._came) >= end:
            return None
        self._taken = end
        return memoryview(self._came)[begin:end]

    def fail(self, why: str) -> None:
        """The other end does not keep to the rules."""
        lost, self._lost = self._lost, _nothing
        self._came = b""
        if self._transport:
            self._transport.abort()
        lost(why)

    def pause_writing(self) -> None:
        self.is_full = True

    def resume_writing(self) -> None:
        self.is_full = False

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_over.set()
        self._take_lists(-1)  # what was said before the end counts
        lost, self._lost = self._lost, _nothing
        lost("it closed its socket")


def _nothing(why: str) -> None:
    pass


class Exchange:
    """The agent's end: asks, and tells each asker what comes. lost(why): the replica answers no more."""

    def __init__(self, lost: Callable[[str], None]):
        self._lost_told = lost
        self._numbers = itertools.count(1)
        self._asked: dict[int, Tell] = {}
        self._left: dict[int, int] = {}  # of answers in parts: how many may come
        self._large: dict[int, tuple[str, int]] = {}  # questions: whose, and their bytes
        self._ahead: Counter[str] = Counter()  # bytes of those that the replica has, by caller
        self._held: dict[str, dict[int, Ask]] = {}  # those that it has not, by caller, in their order
        self._over = False
        self._wire: Wire
        self.beat_s = -math.inf  # of the event loop: when the replica last said that it is at it

    @classmethod
    async def open(cls, held: socket.socket, lost: Callable[[str], None]) -> "Exchange":
        self = cls(lost)
        self._wire = await Wire.open(held, Reply | Part | Beat, self._on_frame, self._on_lost)
        return self

    @property
    def in_flight(self) -> int:
        return len(self._asked)

    @property
    def is_full(self) -> bool:
        """Whether the replica does not read what it is sent."""
        return self._wire.is_full

    def ask(
        self, method: str, path: str, content_type: str, accept: str, body: bytes, tell: Tell, caller: str = ""
    ) -> int:
        """tell(reply) is called with the Reply, then with each Part; with None when the replica ended before.

        Returns the number of the request. caller: whose it is; large ones of one caller follow one another.
        """
        number, size = next(self._numbers), len(body)
        self._asked[number] = tell
        ask = Ask(number, method, path, content_type, accept, body)
        if size <= LARGE_BYTES:
            self._wire.send(ask, size)
        else:
            self._large[number] = caller, size
            self._held.setdefault(caller, {})[number] = ask
            self._pass_on(caller)
        if self._over:
            asyncio.get_running_loop().call_soon(self._end_all)
        return number

    def took(self, number: int, parts: int) -> None:
        """So many parts were taken by who asked: as many more may come."""
        if number not in self._left:
            return
        more = min(parts, WINDOW - self._left[number])  # who asked counts the Reply too, which no window does
        if more > 0:
            self._left[number] += more
            self._wire.send(Took(number, more))

    def drop(self, number: int) -> None:
        """Nobody waits for it any more: nothing more is told of it."""
        if self._asked.pop(number, None):
            self._left.pop(number, None)
            self._wire.send(Drop(number))
            self._forget_large(number)

    def close(self) -> None:
        self._wire.close()

    def _on_frame(self, frame: Reply | Part | Beat) -> None:
        if isinstance(frame, Beat):
            self.beat_s = asyncio.get_running_loop().time()
            return
        number = frame.number
        tell = self._asked.get(number)
        if tell is None:  # it was dropped
            return
        if isinstance(frame, Part):
            left = self._left.get(number, 0) - 1
            if left < 0:
                return self._wire.fail("it sent more parts of an answer than were asked for")
            self._left[number] = left
        elif frame.more:
            self._left[number] = WINDOW
        if not frame.more:
            del self._asked[number]
            self._left.pop(number, None)
            self._forget_large(number)
        tell(frame)

    def _pass_on(self, caller: str) -> None:
        """What is held of a caller's large questions, as far as the replica may have them; one in any case."""
        held = self._held.get(caller, {})
        for number, ask in list(held.items()):
            size = len(ask.body)
            if self._ahead[caller] and self._ahead[caller] + size > AHEAD_BYTES:
                return
            del held[number]
            self._ahead[caller] += size
            self._wire.send(ask, size)
        self._held.pop(caller, None)

    def _forget_large(self, number: int) -> None:
        caller, size = self._large.pop(number, ("", 0))
        if not size:
            return
        if self._held.get(caller, {}).pop(number, None) is None:  # the replica had it
            self._ahead[caller] -= size
        self._pass_on(caller)
        if not self._ahead[caller]:
            del self._ahead[caller]

    def _on_lost(self, why: str) -> None:
        self._over = True
        self._end_all()
        self._lost_told(why)

    def _end_all(self) -> None:
        """Nothing of what was asked will be answered."""
        asked, self._asked = self._asked, {}
        for known in (self._left, self._large, self._ahead, self._held):
            known.clear()
        for tell in asked.values():
            tell(None)

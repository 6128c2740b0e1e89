"""A long event log, read in a process of its own: the broker's messages are taken apart and hashed beside the fold.

    python -m cyxcentral.readahead      central starts it; the Asked comes on standard input

What comes over the pipe is a length (4 bytes, big-endian) and a block of so many bytes: a MessagePack list of messages
in the order of the log, without a gap. The end of the pipe is the end of what was asked for, or a failure: whoever
reads counts what came.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import sys
from collections.abc import AsyncGenerator
from typing import IO, NamedTuple

import msgspec
from msgspec import Struct

from cyxcentral.records import is_plain
from cyxcore.errors import CyxError
from cyxnet import subjects
from cyxnet.bus import Bus, BusError
from cyxnet.connection import Message
from cyxnet.follower import HEARTBEAT_S, STALL_S, place_of

BLOCK_MESSAGES = 256
LENGTH_BYTES = 4
PIPE_BYTES = 2**22  # read ahead of who asked
SILENT_S = 60.0  # of a process that gives up by itself much earlier, unless it is stopped
WIDE_PIPE_BYTES = 2**20  # what an ordinary user may have


class Asked(Struct, frozen=True, kw_only=True):
    """The arguments of blocks()."""

    core_url: str
    first_seq: int
    last_seq: int
    tls_ca: str = ""


class Read(NamedTuple):
    """A message of the log. plain: its bytes hold nothing that decoding has to look for (see records.is_plain)."""

    subject: str
    payload: bytes
    sha256: bytes
    plain: bool


_BLOCKS = msgspec.msgpack.Decoder(list[Read])


async def blocks(core_url: str, first_seq: int, last_seq: int, tls_ca: str = "") -> AsyncGenerator[list[Read], None]:
    """The messages of the event log between two sequences, both included, block by block.

    It ends early when the process that reads them fails, or says nothing for SILENT_S. core_url may hold a password.
    """
    asked = Asked(core_url=core_url, tls_ca=tls_ca, first_seq=first_seq, last_seq=last_seq)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "cyxcentral.readahead"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=PIPE_BYTES,
        start_new_session=True,  # Ctrl-C is for who asked
    )
    assert process.stdin and process.stdout
    try:
        process.stdin.write(msgspec.json.encode(asked))
        process.stdin.close()
        while (block := await _next_block(process.stdout)) is not None:
            yield block
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _next_block(pipe: asyncio.StreamReader) -> list[Read] | None:
    """None: there is no other, or none that came."""
    try:
        async with asyncio.timeout(SILENT_S):
            length = int.from_bytes(await pipe.readexactly(LENGTH_BYTES), "big")
            return _BLOCKS.decode(await pipe.readexactly(length))
    except (asyncio.IncompleteReadError, TimeoutError):
        return None


class Reader:
    """Takes the deliveries of one consumer, in order, and writes the blocks. Trouble ends it; nothing is repaired."""

    def __init__(self, bus: Bus, asked: Asked, out: IO[bytes]):
        self._bus = bus
        self._last_seq = asked.last_seq
        self._out = out
        self.due = asked.first_seq
        self._block: list[Read] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self, message: Message) -> None:
        if self.done.done():
            return
        if message.status:  # a heartbeat, or flow control
            if stalled := message.headers.get("Nats-Consumer-Stalled") or message.reply:
                self._bus.say(stalled, b"")
            return
        seq, _, _ = place_of(message.reply)
        if seq != self.due:
            self.done.set_exception(BusError(f"event {seq} came, expected event {self.due}"))
            return
        self.due += 1
        payload = message.data
        self._block.append(Read(message.subject, payload, hashlib.sha256(payload).digest(), is_plain(payload)))
        if len(self._block) == BLOCK_MESSAGES or seq == self._last_seq:
            self._write()
            if seq == self._last_seq and not self.done.done():
                self.done.set_result(None)

    def _write(self) -> None:
        full, self._block = msgspec.msgpack.encode(self._block), []
        try:
            self._out.write(len(full).to_bytes(LENGTH_BYTES, "big") + full)  # nobody waits for this loop meanwhile
            self._out.flush()
        except OSError as error:  # who asked is gone
            self.done.set_exception(error)


async def read(asked: Asked, out: IO[bytes]) -> None:
    """Write the blocks. Raises BusError when the log cannot be read, has a gap, or does not go on."""
    bus = await Bus.connect(asked.core_url, name="cyx-central-readahead", tls_ca=asked.tls_ca)
    try:
        reader, seen = Reader(bus, asked, out), -1
        await bus.consume(subjects.EVENTS, subjects.EVENT_SUBJECTS, asked.first_seq, reader.take, HEARTBEAT_S)
        while seen != reader.due:
            seen = reader.due
            await asyncio.wait([reader.done], timeout=STALL_S)
            if reader.done.done():
                return reader.done.result()
        raise BusError(f"event {reader.due} did not come within {STALL_S:g} s")
    finally:
        await bus.close()


def main() -> int:
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=Asked)
    if wider := getattr(fcntl, "F_SETPIPE_SZ", None):  # where it can be told: some blocks on their way, not half a one
        with contextlib.suppress(OSError):
            fcntl.fcntl(sys.stdout.fileno(), wider, WIDE_PIPE_BYTES)
    try:
        asyncio.run(read(asked, sys.stdout.buffer))
    except (CyxError, OSError) as error:
        print(f"reading the event log ahead: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""nats-py's connection, quick where every message passes, and mended where it waits wrongly. Only cyxnet.bus uses it.

nats-py takes some 40 µs for each message that comes and 20 µs for each that goes: regular expressions, a queue and a
task per subscription, a dictionary of headers that nobody reads. Here a whole read of the socket is taken apart at
once and given to whoever listens; what is seldom (PING, INFO, errors, its own subscriptions) is left to nats-py.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any, cast

import nats
import nats.errors
from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser

log = logging.getLogger(__name__)

LINK_DOWN_PAUSE_S = 0.01
CLOSE_WITHIN_S = 2.0
FLUSH_WITHIN_S = 10.0
AT_ONCE_BYTES = 32_768  # of one read, as many as nats-py takes at a time
FEW = 2  # messages of one turn of the loop: each is written by itself, without waiting for a task that writes them all
# So long one try to connect waits to be let in, over and over. Most are short, because a request that no central heard
# is lost and has to be made again; some are long, for a central that is slow.
ADMISSION_TRIES_S = (0.15, 0.15, 0.15, 0.6, 0.15, 0.15, 0.15, 2.0)
UNANSWERED_PAUSE_S = 0.03
RECONNECT_PAUSES_S = (0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0)  # of who is refused
_STATUS_LINE = b"NATS/1.0 "  # followed by a number: the broker itself speaks
_LINK_STAYS = ("permissions violation", "maximum subscriptions exceeded")  # though the broker says -ERR
HUNG_UP = "(the broker hung up)"  # and said nothing: a refusal is only guessed
CONNECTED = nats.NATS.CONNECTED  # as most of the time: asked first, because asking nats-py takes longer than sending
_NO_HEADERS: dict[str, str] = {}

Take = Callable[["Message"], None]


class Message:
    """One message that came. Its headers are read only when somebody wants them."""

    __slots__ = ("_headers", "block", "data", "reply", "subject")

    def __init__(self, subject: str, reply: str, data: bytes, block: bytes):
        self.subject = subject
        self.reply = reply
        self.data = data
        self.block = block  # the headers as they came; empty for none
        self._headers: dict[str, str] | None = None

    @property
    def status(self) -> str:
        """What the broker itself says with it ("503": nobody listens); "" for a message of somebody else."""
        return self.block[9:12].decode("ascii", "replace") if self.block.startswith(_STATUS_LINE) else ""

    @property
    def headers(self) -> dict[str, str]:
        if self._headers is None:
            self._headers = headers_of(self.block) if self.block else _NO_HEADERS
        return self._headers


def headers_of(block: bytes) -> dict[str, str]:
    """Header lines as a dictionary; a line that is none (such as the first) is passed over."""
    headers = {}
    for line in block.decode("utf-8", "replace").split("\r\n"):
        name, colon, value = line.partition(":")
        name = name.strip()
        if colon and name.isascii() and name.isprintable() and " " not in name:
            headers[name] = value.strip()
    return headers


def block_of(headers: Mapping[str, str]) -> bytes:
    """The bytes of headers on the wire."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers):  # a line break in a value would forge another header
        raise nats.errors.BadHeaderError(repr(headers)[:200])
    return f"NATS/1.0\r\n{lines}\r\n".encode()


class Connection(nats.NATS):
    """nats-py's, with `send` and `listen`, the quick ways out and in. Whatever ends it, it is made again.

    nkey: the public key it connects with, when it does so with a key. encrypted: never speak in plain text.
    """

    def __init__(self, nkey: str | None = None, encrypted: bool = False) -> None:
        super().__init__()
        self._encrypted = encrypted
        self._public_nkey = nkey
        self._failures = 0  # to come in, in a row
        self._hung_up = 0  # of these, how often the broker hung up without a word
        self._ps = _Parser(self)
        self._takers: dict[int, Take] = {}  # by the number of the subscription
        self._unheard: set[bytes] = set()  # see pass_over()
        self._in_turn = 0  # messages sent in this turn of the loop
        self._few_write = True  # no more than FEW were in the last turn in which any was
        self.unread = 0  # messages that pass_over() cost nobody the time to read
        self.on_read: Callable[[], None] = lambda: None  # called at each read, before what it brought is given

    async def _process_connect_init(self) -> None:
        """Again and again: soon while nobody answers, later and later while one is refused."""
        if self._public_nkey:
            self.options["connect_timeout"] = ADMISSION_TRIES_S[self._failures % len(ADMISSION_TRIES_S)]
        try:
            await self._connect_once()
        except BaseException as error:
            self._abort()  # a broker that takes the connection and says nothing: nats-py would forget the socket, open
            if isinstance(error, TimeoutError | nats.errors.Error | OSError):
                pause = min(self._failures, len(RECONNECT_PAUSES_S) - 1) if is_refusal(error) else 0
                unanswered = self._public_nkey and isinstance(error, TimeoutError)
                self.options["reconnect_time_wait"] = UNANSWERED_PAUSE_S if unanswered else RECONNECT_PAUSES_S[pause]
                self._failures += 1
            raise
        self._failures = 0
        self.options["reconnect_time_wait"] = RECONNECT_PAUSES_S[0]
        self._read_at_once()

    def _read_at_once(self) -> None:
        """From now on few messages are given as they are read, not by a task of nats-py's that is woken for it.

        Of many, one part at a time is: others have their turn in between.
        """
        transport: Any = self._transport
        reader = getattr(transport, "_io_reader", None)
        if reader is None:
            return
        keep, parser = reader.feed_data, cast("_Parser", self._ps)

        def feed(data: bytes) -> None:
            is_next = not reader._buffer and parser.is_between_messages
            if is_next and len(data) <= AT_ONCE_BYTES and self._status == CONNECTED and transport._io_reader is reader:
                data = parser.at_once(bytes(data))
            if data:
                keep(data)

        reader.feed_data = feed

    def _connect_command(self) -> bytes:
        """The first words of ours. nats-py would say them in plain text to a broker that does not ask for TLS."""
        if self._encrypted and not self._server_info.get("tls_required"):
            raise nats.errors.Error("nats: it speaks plain text, and TLS was expected")
        if (writer := getattr(self._transport, "_io_writer", None)) is not None and self._encrypted:
            writer._protocol._over_ssl = True  # nats-py forgets to: asyncio would complain at the end of each link
        return super()._connect_command()

    async def _connect_once(self) -> None:
        """One try. A broker that refuses says so and hangs up; the second may come first: twice in a row is a no."""
        try:
            await super()._process_connect_init()
            if not self.is_connected:  # nats-py takes the end of the stream for an answer
                for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
                    if task:
                        task.cancel()
                raise ConnectionResetError("the broker hung up")
        except ConnectionResetError:
            self._hung_up += 1
            if self._public_nkey and self._hung_up > 1:
                raise nats.errors.Error(f"nats: 'Authorization Violation' {HUNG_UP}") from None
            raise
        finally:
            if self.is_connected:
                self._hung_up = 0

    def send(self, subject: str, payload: bytes, reply: str = "", block: bytes = b"") -> None:
        """Send a message; block: its headers, from block_of. Raises nats.errors.Error when it cannot be sent now."""
        if self._status != CONNECTED and (not self.is_connected or self.is_draining_pubs):
            raise nats.errors.ConnectionClosedError if self.is_closed else nats.errors.OutboundBufferLimitError
        if len(block) + len(payload) > self._max_payload:  # the broker counts both, and would end the connection
            raise nats.errors.MaxPayloadError
        if block:
            start, spaces = f"HPUB {subject} {reply} {len(block)} {len(block) + len(payload)}", 4
        else:
            start, spaces = f"PUB {subject} {reply} {len(payload)}", 3
        # white space in a subject would be a command of its own to the broker
        if not subject or start.count(" ") != spaces or not start.isprintable():
            raise nats.errors.BadSubjectError
        self._put(b"%b\r\n%b%b\r\n" % (start.encode(), block, payload))

    def _put(self, command: bytes) -> None:
        """Write it at once while few write; else in one piece with all that is sent in this turn of the loop."""
        self._in_turn += 1
        if self._in_turn == 1:
            asyncio.get_running_loop().call_soon(self._turn_over)
        if self._few_write and self._in_turn <= FEW and not self._pending and self._written(command):
            return
        self._pending.append(command)
        self._pending_data_size += len(command)
        if self._flush_queue is not None and self._flush_queue.empty():  # one write for all that is sent in this turn
            self._flush_queue.put_nowait(asyncio.get_running_loop().create_future())

    def write_now(self) -> None:
        """Write what was sent, now: the task that writes has its turn behind everybody who is ready."""
        writer = getattr(self._transport, "_io_writer", None)
        if self._pending and writer is not None and not writer.transport.is_closing():
            writer.writelines(self._pending)
            self._pending = []
            self._pending_data_size = 0

    def _turn_over(self) -> None:
        self._few_write = self._in_turn <= FEW
        self._in_turn = 0

    def _written(self, command: bytes) -> bool:
        """Whether it could be given to the socket without waiting behind anything."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is None or writer.transport.is_closing() or writer.transport.get_write_buffer_size():
            return False
        writer.write(command)
        return True

    async def publish(
        self,
        subject: str,
        payload: bytes = b"",
        reply: str = "",
        headers: Mapping[str, str] | None = None,
        block: bytes = b"",
    ) -> None:
        """send(), which everything of nats-py goes through too.

        Without a link it fails at once, having let nothing else run: who tries again in a loop would keep the link
        down for ever.
        """
        try:
            self.send(subject, payload, reply, block_of(headers) if headers else block)
        except (nats.errors.Error, OSError):
            await asyncio.sleep(LINK_DOWN_PAUSE_S)
            raise

    async def _send_ping(self, future: "asyncio.Future[Any] | None" = None) -> None:
        """After what was sent before it: nats-py's own overtakes that, and its answer would prove nothing."""
        if not self.is_connected:
            await super()._send_ping(future)
            return
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        self._put(b"PING\r\n")

    async def flush(self, timeout: float = FLUSH_WITHIN_S) -> None:
        """nats-py's own loses a cancellation that comes together with the answer, as asyncio.wait_for of Python 3.11
        does, and its caller goes on for ever.
        """
        if self.is_closed:
            raise nats.errors.ConnectionClosedError
        if not self.is_connected:
            return  # what was asked for goes out with the next link; uvloop raises where this one is written to
        answer = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                await self._send_ping(answer)
                await answer
        except TimeoutError:
            raise nats.errors.FlushTimeoutError from None

    def probe(self) -> None:
        """Have the broker say something, if there is a link: its answer is one more read."""
        if self.is_connected:
            self._pongs.append(asyncio.get_running_loop().create_future())
            self._put(b"PING\r\n")

    async def _process_err(self, err_msg: str) -> None:
        """What the broker says in -ERR. It ends the link upon most of it; nats-py would never connect again."""
        error = nats.errors.Error(f"nats: {err_msg.strip(chr(39))}")
        if any(harmless in err_msg for harmless in _LINK_STAYS):
            await self._error_cb(error)
            return
        if self.is_connected:
            await self._error_cb(error)
        await self._process_op_err(error)

    async def _process_op_err(self, e: Exception) -> None:
        """The link broke. Without the abort a broker that stands still keeps us from going to another one."""
        if self.is_connected:
            self._abort()
        await super()._process_op_err(e)

    async def close(self) -> None:
        """Send what is left and end the connection, within CLOSE_WITHIN_S."""
        too_late = asyncio.get_running_loop().call_later(CLOSE_WITHIN_S, self._abort)
        try:
            await super().close()
        except BaseException:  # cancelled, say: nats-py would forget the socket, open
            self._abort()
            raise
        finally:
            too_late.cancel()

    def _abort(self) -> None:
        """End the socket at once. Else the bytes it still holds are waited for, and leave when their sender gave up."""
        if (writer := getattr(self._transport, "_io_writer", None)) is not None:
            writer.transport.abort()

    def drop_unsent(self) -> None:
        """The link broke: what did not leave yet must not leave later, when its sender has given up."""
        self._pending = []
        self._pending_data_size = 0

    async def listen(self, subject: str, take: Take, queue: str = "") -> Any:
        """Have take(message) called for every message, at once and in order; it must neither wait nor raise.

        Returns the subscription.
        """
        subscription = await self.subscribe(subject, queue=queue)
        self._takers[subscription._id] = take
        return subscription

    def pass_over(self, identity: str, seconds: float) -> None:
        """For so long, drop what this identity (the fourth token of a subject) says to those who listen(), unread.

        Thousands of messages of who floods are still on their way when he is found out, and an honest one is behind
        them.
        """
        name = identity.encode()
        self._unheard.add(name)
        asyncio.get_running_loop().call_later(seconds, self._unheard.discard, name)

    def _is_unheard(self, subject: bytes) -> bool:
        return bool(self._unheard) and not self._unheard.isdisjoint(subject.split(b".", 4)[3:4])

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        super()._remove_sub(sid, max_msgs)
        self._takers.pop(sid, None)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        if sid in self._takers and self._is_unheard(subject):
            self.unread += 1
        elif sid in self._takers:
            self._give(sid, subject, reply, data, headers or b"")
        elif (names := _names(subject, reply)) is not None:
            try:
                await super()._process_msg(sid, subject, reply, data, headers or b"")
            except (ValueError, IndexError) as error:  # the broker passes on whatever calls itself headers
                log.debug("a message on %s is passed over: its headers are none (%r)", names[0], error)

    def _give(self, sid: int, subject: bytes, reply: bytes, data: bytes, block: bytes) -> None:
        """A message to whoever listens."""
        names = _names(subject, reply)
        if names is None:
            return
        try:
            self._takers[sid](Message(*names, data, block))
        except Exception:  # else nothing would be read any more
            log.exception("a message on %s was not taken", names[0])

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        return headers_of(raw)


def _names(subject: bytes, reply: bytes) -> tuple[str, str] | None:
    """Both as text; None where they are none: whoever sent that could not be answered either."""
    try:
        names = subject.decode(), reply.decode()
    except UnicodeDecodeError:
        names = "", "\0"
    if names[1].isprintable():
        return names
    log.debug("a message on %r with reply %r is passed over: they are no text", subject, reply)
    return None


def is_refusal(error: object) -> bool:
    """Whether the broker does not let one in."""
    return "authorization violation" in str(error).lower()


class _Parser(Parser):
    """Takes messages apart; for any other line it is nats-py's."""

    def reset(self) -> None:
        super().reset()
        self._wanted = 0  # bytes, before looking at the buffer again makes sense

    @property
    def is_between_messages(self) -> bool:
        """Whether all that was read has been parsed."""
        return not self.buf and self.state == AWAITING_CONTROL_LINE

    async def parse(self, data: bytes = b"") -> None:
        self.nc.on_read()
        self.buf += data
        if len(self.buf) < self._wanted:
            return
        if self.state != AWAITING_CONTROL_LINE:
            await super().parse()
            return
        buffer, at, self._wanted = bytes(self.buf), 0, 0
        try:
            while True:
                at = self._given(buffer, at)
                found = self._message(buffer, at)
                if found is None:
                    break
                at, sid, *message = found
                await self.nc._process_msg(sid, *message)
        except (ValueError, IndexError) as error:
            raise nats.errors.ProtocolError from error
        self.buf = bytearray(memoryview(buffer)[at:])
        if self.buf and not self._wanted and not self.buf.startswith((b"MSG ", b"HMSG ")):
            await super().parse()

    def at_once(self, data: bytes) -> bytes:
        """Give what was just read to who listens, as far as it is whole messages of theirs; what is left of it.

        Only while nothing that was read before waits to be parsed.
        """
        self.nc.on_read()
        return data[self._given(data, 0) :]

    def _given(self, buffer: bytes, at: int) -> int:
        """Give the messages from `at` on to who listens; where the first one is that is for nobody of them, or none."""
        nc = self.nc
        with contextlib.suppress(ValueError, IndexError):
            while (found := self._message(buffer, at)) is not None:
                stop, sid, *message = found
                if sid not in nc._takers:
                    break
                if nc._is_unheard(message[0]):
                    stop = self._past_the_same(buffer, at, stop)
                else:  # as _process_msg() would, without waiting for it each time
                    nc._give(sid, *message)
                at = stop
        return at

    def _past_the_same(self, buffer: bytes, at: int, stop: int) -> int:
        """Where the message at `at` (which ends at `stop`) and all that follow it with the same first line end."""
        line, size = buffer[at : buffer.index(b"\r\n", at) + 2], stop - at
        self.nc.unread += 1
        while buffer.startswith(line, stop) and stop + size <= len(buffer):
            self.nc.unread += 1
            stop += size
        return stop

    def _message(self, buffer: bytes, at: int) -> tuple[int, int, bytes, bytes, bytes, bytes] | None:
        """Of the message at `at`: where it ends, number of the subscription, subject, reply, payload, headers; None
        when no whole message begins there.
        """
        with_headers = buffer.startswith(b"HMSG ", at)
        if not with_headers and not buffer.startswith(b"MSG ", at):
            return None
        end = buffer.find(b"\r\n", at)
        if end < 0:
            return None
        words = buffer[at:end].split()
        begin = end + 2
        stop = begin + int(words[-1])
        if len(buffer) < stop + 2:
            self._wanted = stop + 2 - at
            return None
        if with_headers:
            middle = begin + int(words[-2])
            reply = words[3] if len(words) == 6 else b""
            return stop + 2, int(words[2]), words[1], reply, buffer[middle:stop], buffer[begin:middle]
        return stop + 2, int(words[2]), words[1], words[3] if len(words) == 5 else b"", buffer[begin:stop], b""

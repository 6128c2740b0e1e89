"""uvicorn on a socket of ours, within the caller's own loop; what it leaves open to abuse is closed here.

Central and served models stand on it. It is loaded only where HTTP is asked for: it needs the extra `http`.
"""

import asyncio
import errno
import functools
import logging
import re
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, Protocol

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cyxcore.errors import CyxError
from cyxnet import tls
from cyxnet.inference import remember
from cyxnet.ratelimit import household
from cyxnet.tls import is_loopback

HEAD_S = 10.0  # for the head of a request to arrive, or the next request of a connection to begin
HEAD_BYTES = 16_384
CONNECTIONS, CONNECTIONS_OF_ONE = 2_048, 256
CLOSE_S = 5
STEP_S = 0.01
# What says how a request goes on, and what its body is. A plain one has its length, a number, and
# nothing else of these.
_FRAMING = re.compile(
    rb"\r\n(?:content-length:[ \t]*([0-9]{1,11})[ \t]*(?=\r\n)"
    rb"|content-length|content-encoding|transfer-encoding|connection(?!:[ \t]*keep-alive[ \t]*\r\n)"
    rb"|proxy-connection|expect|upgrade)",
    re.IGNORECASE,
)
# A head whose lines every reader ends at the same places, and reads as the same names.
_PLAIN = re.compile(rb"(?:\r\n[-!#$%&'*+.^_`|~0-9A-Za-z]++:[\t\x20-\x7e\x80-\xff]*+)*+\r\n")
_HOST = re.compile(rb"\r\nhost:", re.IGNORECASE)
PIECE_BYTES = 65_536  # of a body that is waited for before anybody is asked
TOO_LONG = f"expected a head of at most {HEAD_BYTES} bytes"


class HttpError(CyxError):
    """HTTP cannot be served like this. The message says what to do."""

    code = "cannot_serve_http"


class PlainText(HttpError, ValueError):
    """Credentials would travel in plain text."""


class Front(Protocol):
    """An ASGI application that a Server serves. behind_proxy: all connections come from one address, its proxy's."""

    behind_proxy: bool

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...

    async def close(self) -> None:
        """No more will be asked: end what would go on for ever."""


class Refusing(Protocol):
    """What a Front may have as `refuse_at_once`: the whole answer to a request that is not worth reading, or None.

    line: the request line; head: the lines of its headers, each behind a line end. The server puts the date in.
    Refusals must cost a small part of what answers do, or a server that is asked for too much spends its time on
    saying so.
    """

    def __call__(self, line: bytes, head: bytes) -> bytes | None: ...


class Begun(Protocol):
    """A request that is being answered. gone: set when nobody waits for the answer any more."""

    gone: bool


class Beginning(Protocol):
    """What a Front may have as `begin_at_once`: it begins to answer a request of which all is there, or says None, and
    the request goes the long way, through ASGI.

    line, head: as Refusing has them. answered: is called once, in a later turn of the event loop, with the whole answer
    as it travels, or with None when nobody waits for it.
    """

    def __call__(
        self, line: bytes, head: bytes, body: bytes, answered: Callable[[bytes | None], None]
    ) -> Begun | None: ...


class Guests:
    """The connections that are there, each from its accept to its end, those in their TLS handshake too."""

    def __init__(self, of_one: int):
        self._of_one = of_one
        self._addresses: Counter[str] = Counter()
        self.total = 0

    def enter(self, transport: asyncio.BaseTransport) -> str | None:
        """The address that one more connection counts for until leave(); None when it is one too many."""
        peer = transport.get_extra_info("peername")
        address = household(str(peer[0])) if isinstance(peer, tuple) else ""
        if self._addresses[address] >= self._of_one or self.total >= CONNECTIONS:
            return None
        self._addresses[address] += 1
        self.total += 1
        return address

    def leave(self, address: str) -> None:
        self.total -= 1
        self._addresses[address] -= 1
        if not self._addresses[address]:
            del self._addresses[address]


class Patient(HttpToolsProtocol):
    """A connection that is closed when the head of its request, or the reading of its answer, takes too long, and when
    the head is too long: uvicorn would go on.
    """

    head_s = HEAD_S
    guests: Guests  # set by Server
    refuse: Refusing | None = None  # set by Server
    begin: Beginning | None = None  # set by Server
    address: str | None = None  # that it counts for; set by who has counted it already
    _head_bytes = 0  # of a head that is not whole yet, beyond the piece that it began in behind another request
    _in_head = _in_request = False  # of the bytes that came last
    _wrong = ""  # with the head that came last
    _ended_one = False  # the bytes that came last had the end of a request
    _pipelines = False  # it has sent a request before the one before was answered
    _begun: Begun | None = None  # what is being answered without ASGI
    _held = b""  # what came meanwhile
    _piece = b""  # a plain head, and what has come of its body
    _is_last = False  # the connection ends behind that answer
    _late_s: float | None = None  # of the loop's clock: when a head is too slow
    _timer: asyncio.TimerHandle | None = None  # looks at that; made seldom, since most requests come in time

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.address is None:
            self.address = self.guests.enter(transport)
        if self.address is None:
            transport.abort()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.address is not None:
            self.guests.leave(self.address)
        self._wait_no_more()
        if self._timer is not None:
            self._timer.cancel()
        if self._begun is not None:
            self._begun.gone = True
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if self._begun is not None:
            self._is_last = True
            return
        self._read_piece()
        super().shutdown()

    def give_up(self) -> None:
        """The time for its answer is over."""
        if self._begun is not None:
            self._begun.gone = True
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        cycle = self.cycle
        if self._begun is not None:  # its answer comes first
            self._pipelines = True
            self._held += data
            self.flow.pause_reading()
            return
        if cycle is not None and not cycle.response_complete and not cycle.more_body:
            self._pipelines = True
        elif self._at_once(self._piece + data):
            return
        self._read(data)

    def _read_piece(self) -> None:
        """What came so far does not become a request that is all there."""
        if self._piece:
            self._read(b"")

    def _read(self, data: bytes) -> None:
        """uvicorn's way to take it."""
        data, self._piece = self._piece + data, b""
        self._ended_one = False
        super().data_received(data)
        if self._in_head and not self._ended_one:
            self._head_bytes += len(data)
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            if is_answering:
                self.transport.abort()  # a word of ours now would be taken for that answer
            else:
                self.send_400_response(TOO_LONG)
        if is_answering and not self.transport.is_closing():
            self._wait_no_more()  # the head is there; the body is the application's to wait for
        elif self._late_s is None:
            self._wait()  # also for the rest of a request that was answered before it was whole

    def _at_once(self, data: bytes) -> bool:
        """Refuses, or begins to answer, one plain request that is all of `data`; False when that has to be read first.

        Nothing of another request may lie before or behind it, nor may it ask for anything but to be answered. Many
        clients send the body apart from the head: it is waited for, once.
        """
        if (self.refuse is None and self.begin is None) or self._pipelines or self._in_request:
            return False
        if self.flow.write_paused or self.transport.is_closing():
            return False
        begin, end = data.find(b"\r\n"), data.find(b"\r\n\r\n")
        if not 0 <= begin < end <= HEAD_BYTES:
            return False
        line, head = data[:begin], data[begin : end + 2]
        wanted = body_bytes(head)
        if wanted != len(data) - end - 4:
            if self._piece or not len(data) - end - 4 < wanted <= PIECE_BYTES:
                return False
            self._piece = data
            self._wait()
            return True
        if self.refuse is not None and (answer := self.refuse(line, head)):
            self._wait()
            self._write(answer)
        elif self.begin is not None and (begun := self.begin(line, head, data[end + 4 :], self._answered)):
            self._begun = begun
            self._wait_no_more()
        else:
            return False
        self._piece = b""
        return True

    def _answered(self, answer: bytes | None) -> None:
        self._begun = None
        if answer is None or self.transport.is_closing():
            return
        self._write(answer)
        self.server_state.total_requests += 1
        self._wait()  # for the next request, or for this answer to be read
        if self._is_last:
            self.transport.close()
        elif self._held:
            held, self._held = self._held, b""
            self.flow.resume_reading()
            self.data_received(held)

    def _write(self, answer: bytes) -> None:
        """An answer as it travels, but for the date."""
        lines = _lines(*self.server_state.default_headers)
        self.transport.write(answer.replace(b"\r\n", lines, 1))

    def on_message_begin(self) -> None:
        self._in_head = self._in_request = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head_bytes, self._in_head = 0, False
        if len(self.url) + sum([len(name) + len(value) for name, value in self.headers]) > HEAD_BYTES:
            self._refuse_head(TOO_LONG)
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and self.parser.get_http_version() != "1.0"):
            self._refuse_head(f"expected one Host header, got {hosts}")  # RFC 9112, section 3.2
        super().on_headers_complete()

    def _refuse_head(self, why: str) -> NoReturn:
        self._wrong = why
        raise ValueError(why)  # which the parser answers with 400

    def send_400_response(self, msg: str) -> None:
        super().send_400_response(self._wrong or msg)

    def on_message_complete(self) -> None:
        self._in_request, self._ended_one = False, True
        super().on_message_complete()
        if self.cycle is not None:
            self.cycle.more_body = False  # also of a request that was answered before it was whole

    def on_response_complete(self) -> None:
        """uvicorn's own, but for its timer: that for the next head closes an idle connection as well."""
        self.server_state.total_requests += 1
        self._wait()  # for the next request, or for the last answer to be read
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        if self.cycle is not None and not self.cycle.response_complete:
            self._wait_no_more()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait()  # for its client to read: an answer that nobody takes would be held for ever

    def resume_writing(self) -> None:
        super().resume_writing()
        self._wait()
        if self.cycle is not None and not self.cycle.response_complete:
            self._wait_no_more()

    def _wait(self) -> None:
        self._late_s = self.loop.time() + self.head_s
        if self._timer is None:
            self._timer = self.loop.call_later(self.head_s, self._look)

    def _wait_no_more(self) -> None:
        if not self.flow.write_paused:
            self._late_s = None

    def _look(self) -> None:
        self._timer = None
        if self._late_s is None:
            return
        left_s = self._late_s - self.loop.time()
        if left_s > 0:
            self._timer = self.loop.call_later(left_s, self._look)
        elif self._piece:
            self._read_piece()  # the application waits for the rest, and says so when it does not come
        elif self._in_head or self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()  # idle between two requests


def body_bytes(head: bytes) -> int:
    """How long the body behind a plain head is; -1 behind another one. A plain one names one host."""
    known = _known_heads.get(head)
    if known is not None:
        return known
    told = _FRAMING.findall(head)
    is_plain = len(told) == 1 and told[0] and len(_HOST.findall(head)) == 1 and _PLAIN.fullmatch(head)
    found = int(told[0]) if is_plain else -1
    return remember(_known_heads, head, found)


_known_heads: dict[bytes, int] = {}


@functools.lru_cache(4)
def _lines(*headers: tuple[bytes, bytes]) -> bytes:
    """Headers with a line end before and behind each."""
    return b"".join([b"\r\n%b: %b" % header for header in headers]) + b"\r\n"


class Doorman(asyncio.Protocol):
    """A connection until TLS is spoken: counted when it is accepted, and closed when the handshake takes too long.

    A server that is given a certificate would count it when that is over, and wait for it a minute.
    """

    def __init__(self, guests: Guests, context: ssl.SSLContext, begin: Callable[[], Patient], shaking: set["Doorman"]):
        self._guests, self._context, self._begin, self._shaking = guests, context, begin, shaking
        self._address: str | None = None
        self._task: asyncio.Task[None] | None = None
        self._early = b""  # what comes behind the handshake before HTTP has begun
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._address = self._guests.enter(transport)
        if self._address is None:
            transport.abort()
            return
        self._shaking.add(self)
        self._task = asyncio.get_running_loop().create_task(self._shake_hands(self._begin()))

    def data_received(self, data: bytes) -> None:
        self._early += data

    async def _shake_hands(self, http: Patient) -> None:
        handed_over = False
        try:
            encrypted = await asyncio.get_running_loop().start_tls(
                self._transport, self, self._context, server_side=True, ssl_handshake_timeout=http.head_s
            )
            if encrypted is None or encrypted.is_closing():
                return
            http.address, handed_over = self._address, True
            encrypted.set_protocol(http)
            http.connection_made(encrypted)
            if self._early:
                http.data_received(self._early)
        except (OSError, ssl.SSLError):  # no TLS, too slow, or gone: it has said nothing yet
            pass
        finally:
            self._shaking.discard(self)
            if not handed_over:
                self._transport.abort()
                if self._address is not None:
                    self._guests.leave(self._address)

    def close(self) -> None:
        if self._task:
            self._task.cancel()


class Server:
    """`await Server.start(…)`, then `url`; `await close()` ends it. head_s: see HEAD_S."""

    def __init__(
        self,
        front: Front,
        listening: socket.socket,
        certificate: tuple[Path, Path] | None,
        head_s: float,
        close_s: int,
    ):
        self.guests = Guests(CONNECTIONS if front.behind_proxy else CONNECTIONS_OF_ONE)
        self._shaking: set[Doorman] = set()
        own: dict[str, Any] = {"head_s": head_s, "guests": self.guests}
        for name in ("refuse", "begin"):
            if (at_once := getattr(front, f"{name}_at_once", None)) is not None:
                own[name] = staticmethod(at_once)
        kind: Any = type("Patient", (Patient,), own)
        config = uvicorn.Config(
            front,
            http=self._encrypted(kind, certificate) if certificate else kind,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=int(HEAD_S),
            timeout_graceful_shutdown=close_s,
        )
        config.load()
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # a client's broken request is no event of ours
        self._front = front
        self._server = uvicorn.Server(config)
        self._listening = listening
        self._task: asyncio.Task[None] | None = None
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        self.url = f"{'https' if certificate else 'http'}://{shown}:{port}"

    def _encrypted(self, kind: Callable[..., Patient], certificate: tuple[Path, Path]) -> Any:
        """What a connection begins with. Raises TlsError."""
        context = tls.server_context(*certificate)

        def begun(**of_uvicorn: Any) -> Doorman:
            return Doorman(self.guests, context, lambda: kind(**of_uvicorn), self._shaking)

        return begun

    @classmethod
    async def start(
        cls,
        front: Front,
        host: str,
        port: int,
        certificate: tuple[Path, Path] | None = None,
        head_s: float = HEAD_S,
        close_s: int = CLOSE_S,
    ) -> "Server":
        """Serve at host and port (0: a free one). certificate: (chain, key) in PEM, for TLS. close_s: how long close()
        waits for answers that are under way. Raises HttpError, TlsError.
        """
        refuse_plain_text(host, certificate)
        listening = _listen(host, port)
        try:
            self = cls(front, listening, certificate, head_s, close_s)
        except tls.TlsError:
            listening.close()
            raise
        self._task = asyncio.create_task(self._server._serve([listening]))
        while not self._server.started and not self._task.done():
            await asyncio.sleep(STEP_S)
        if self._task.done():
            await self._task
            raise HttpError(f"HTTP cannot be served at {host}:{port}")
        return self

    async def close(self) -> None:
        """Take no more, end the streams, let what is being answered be answered, and hang up on what is left."""
        await self._front.close()
        self._server.should_exit = True
        if self._task:
            await self._task
        for connection in list(self._server.server_state.connections):
            connection.give_up()  # type: ignore[union-attr]  # all are Patient
        for doorman in list(self._shaking):
            doorman.close()


def refuse_plain_text(host: str, certificate: tuple[Path, Path] | None) -> None:
    """Raises PlainText where credentials would travel between machines for everybody to read."""
    if not (certificate or is_loopback(host)):
        raise PlainText(
            f"HTTP at {host} would be plain text between machines: name a certificate and its key, "
            "or serve at 127.0.0.1, behind a proxy that speaks TLS"
        )


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.setblocking(False)
            return listening
        except BaseException:
            listening.close()
            raise
    except OSError as error:
        why = "something listens there already" if error.errno == errno.EADDRINUSE else error.strerror or error
        raise HttpError(f"HTTP cannot be served at {host}:{port}: {why}; choose another address or port") from None

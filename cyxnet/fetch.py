"""Fetching a dataset from an https address, for who submits a job: no job file may reach what is inside a network.

A name is resolved once, every address it stands for must be a public one, and exactly such an address is connected to:
what the name stands for a moment later changes nothing. Redirects go the same way, each anew. The certificate is that
of the name. No cookies, no proxy of the environment, and no credentials but what signs the address of an S3 object.
"""

import contextlib
import http.client
import ipaddress
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import SplitResult, urljoin, urlsplit

from cyxcore.errors import CyxError, MissingExtra

MAX_REDIRECTS = 3
MAX_BYTES = 6 * 2**30  # as large as an artifact may be
TIMEOUT_S = 600.0  # for all of it
CONNECT_TIMEOUT_S = 10.0
BLOCK_BYTES = 1 << 16
REDIRECTS = (301, 302, 303, 307, 308)
# Public by their number, and yet a way to an address that need not be: relays, translations, forms of IPv4,
# and the one at which Azure answers its own machines.
NOT_PUBLIC = [
    ipaddress.ip_network(each)
    for each in (
        "0.0.0.0/8", "100.64.0.0/10", "168.63.129.16/32",
        "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "224.0.0.0/3",
        "::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/23", "2002::/16", "fec0::/10", "ff00::/8",
    )
]  # fmt: skip

Resolve = Callable[[str, int], list[str]]
Connect = Callable[[str, int, float], socket.socket]


class FetchError(CyxError):
    """An address that is not fetched from, or did not give what was asked. The message says which and why."""

    code = "bad_address"


def shown(url: str) -> str:
    """An address as messages show it: what stands behind a `?` may open what is there."""
    return url.partition("?")[0][:200]


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, and no other way to write one that is not."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:  # a zone (fe80::1%eth0) too: it is a local one
        return False
    inside = any(found in network for network in NOT_PUBLIC if network.version == found.version)
    return found.is_global and not inside and not found.is_multicast and not found.is_reserved


def resolved(host: str, port: int) -> list[str]:
    """The addresses that a name stands for now."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def connected(address: str, port: int, timeout_s: float) -> socket.socket:
    return socket.create_connection((address, port), timeout_s)


def fetch(
    url: str,
    folder: Path,
    *,
    max_bytes: int = MAX_BYTES,
    timeout_s: float = TIMEOUT_S,
    resolve: Resolve = resolved,
    connect: Connect = connected,
    trust: ssl.SSLContext | None = None,
) -> Path:
    """Store what is at an https address in `folder`, under the last part of its name. Returns the file.

    trust: the authorities that vouch for names; None: the system's. Raises FetchError; nothing is left behind then.
    """
    until_s, trust = time.monotonic() + timeout_s, trust or ssl.create_default_context()
    for _ in range(MAX_REDIRECTS + 1):
        parts = _checked(url)
        address = _address(url, parts, resolve, until_s)
        with _Request(url, parts, address, connect, trust, until_s) as answer:
            if answer.status in REDIRECTS:
                url = _joined(url, answer.getheader("Location") or "")
                continue
            if answer.status != 200:
                raise FetchError(f"{shown(url)}: expected an answer with status 200, got {answer.status}")
            return _store(url, answer, folder / _name(parts), max_bytes, until_s)
    raise FetchError(f"{shown(url)}: more than {MAX_REDIRECTS} redirects")


def signed(url: str) -> str:
    """The https address at which the object of an address s3://BUCKET/KEY is fetched, for ten minutes.

    Signed here, with the credentials and the region that AWS's own tools would take; where there are none the object
    has to be a public one. It is fetched as any other address is: the client of botocore that does not check where it
    connects to is not used. Raises FetchError, and MissingExtra without botocore.
    """
    try:
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
        from botocore.session import Session
    except ModuleNotFoundError:
        raise MissingExtra("s3 addresses need botocore, which is not installed: pip install 'cyx[s3]'") from None
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not bucket or not key:
        raise FetchError(f"{shown(url)}: expected s3://BUCKET/KEY")
    try:
        session = Session()
        version = "s3v4" if session.get_credentials() else UNSIGNED
        region = session.get_config_variable("region") or "us-east-1"
        # The bucket in the path: so the host is that of the region, or of another maker's store, as it stands.
        config = Config(signature_version=version, s3={"addressing_style": "path"})
        client = session.create_client("s3", region_name=region, config=config)
        where = {"Bucket": bucket, "Key": key}
        return str(client.generate_presigned_url("get_object", Params=where, ExpiresIn=int(TIMEOUT_S)))
    except (BotoCoreError, ValueError) as error:
        raise FetchError(f"{shown(url)}: {error}") from None


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise FetchError(f"{shown(url)}: it leads to {shown(location)!a}, which is no address ({error})") from None


def _checked(url: str) -> SplitResult:
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise FetchError(f"{shown(url)!a}: expected an address of plain ASCII letters, without spaces")
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # read here, because it is parsed here
    except ValueError as error:
        raise FetchError(f"{shown(url)}: {error}") from None
    if parts.scheme != "https":
        raise FetchError(f"{shown(url)}: expected an https address, got {parts.scheme or 'none'}")
    if parts.username is not None or parts.password is not None:
        raise FetchError(f"{parts.hostname}: an address with a user or password is not fetched from")
    if not parts.hostname or parts.port == 0:
        raise FetchError(f"{shown(url)}: expected the name of a machine")
    return parts


def _address(url: str, parts: SplitResult, resolve: Resolve, until_s: float) -> str:
    """The one address to connect to. All that the name stands for must be public: else it is no public name."""
    host = parts.hostname or ""
    try:
        found = _in_time(url, lambda: resolve(host, parts.port or 443), until_s)
    except (OSError, UnicodeError) as error:
        raise FetchError(f"{shown(url)}: {host} is not known ({error})") from None
    inside = [address for address in found if not is_public(address)]
    if inside or not found:
        raise FetchError(f"{shown(url)}: {host} is {', '.join(inside) or 'nowhere'}, which is no public address")
    return found[0]


def _in_time(url: str, look_up: Callable[[], list[str]], until_s: float) -> list[str]:
    """What it returns or raises, unless that takes too long: a name server can be slow, and cannot be interrupted."""
    done: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()

    def work() -> None:
        try:
            done.put(look_up())
        except Exception as error:
            done.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        found = done.get(timeout=min(CONNECT_TIMEOUT_S, _left_s(url, until_s)))
    except queue.Empty:
        raise FetchError(f"{shown(url)}: it took too long to find out where that is") from None
    if isinstance(found, Exception):
        raise found
    return found


def _left_s(url: str, until_s: float) -> float:
    left_s = until_s - time.monotonic()
    if left_s <= 0:
        raise FetchError(f"{shown(url)}: it took too long")
    return left_s


class _Request:
    """One GET at one address, ended when its time is over whatever it waits for."""

    def __init__(
        self, url: str, parts: SplitResult, address: str, connect: Connect, trust: ssl.SSLContext, until_s: float
    ):
        self._url, self._parts, self._address = url, parts, address
        self._connect, self._trust, self._until_s = connect, trust, until_s
        self._open = contextlib.ExitStack()

    def __enter__(self) -> http.client.HTTPResponse:
        host, port = self._parts.hostname or "", self._parts.port or 443
        try:
            link = self._connect(self._address, port, min(CONNECT_TIMEOUT_S, _left_s(self._url, self._until_s)))
            self._open.callback(link.close)
            timer = threading.Timer(_left_s(self._url, self._until_s), _end, [link])
            timer.daemon = True
            self._open.callback(timer.cancel)
            timer.start()
            secured = self._trust.wrap_socket(link, server_hostname=host, do_handshake_on_connect=False)
            self._open.callback(secured.close)
            timer.args = [secured]
            secured.do_handshake()
            connection = http.client.HTTPConnection(host, port)
            connection.default_port, connection.sock = 443, secured
            self._open.callback(connection.close)
            path = (self._parts.path or "/") + (f"?{self._parts.query}" if self._parts.query else "")
            connection.request("GET", path, headers={"User-Agent": "cyx", "Accept-Encoding": "identity"})
            answer = connection.getresponse()
            self._open.callback(answer.close)  # it holds the socket open too
            return answer
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._open.close()
            raise FetchError(f"{shown(self._url)}: {error or type(error).__name__}") from None
        except BaseException:
            self._open.close()
            raise

    def __exit__(self, *_: object) -> None:
        self._open.close()


def _end(link: socket.socket) -> None:
    with contextlib.suppress(OSError):
        link.shutdown(socket.SHUT_RDWR)


def _store(url: str, answer: http.client.HTTPResponse, path: Path, max_bytes: int, until_s: float) -> Path:
    said = answer.getheader("Content-Length")
    if said is not None and (not re.fullmatch(r"[0-9]{1,19}", said) or int(said) > max_bytes):
        raise FetchError(f"{shown(url)}: expected at most {max_bytes} bytes, {said[:30]} are announced")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft, size = path.with_name(f".{path.name}.part"), 0
    try:
        with draft.open("wb") as file:
            while block := answer.read1(BLOCK_BYTES):
                size += len(block)
                if size > max_bytes:
                    raise FetchError(f"{shown(url)}: expected at most {max_bytes} bytes, got more")
                file.write(block)
        if answer.length or time.monotonic() >= until_s:
            raise FetchError(f"{shown(url)}: it broke off after {size} bytes, or took too long")
        return draft.replace(path)
    except (OSError, http.client.HTTPException) as error:
        raise FetchError(f"{shown(url)}: it broke off after {size} bytes ({error or type(error).__name__})") from None
    finally:
        draft.unlink(missing_ok=True)


def _name(parts: SplitResult) -> str:
    """A name for the file that is no path and hides nothing: its ending tells the format."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", parts.path.rsplit("/", 1)[-1]).lstrip(".")[-100:] or "data"

"""The door: tells the broker who may come in (auth callout), and has those thrown out who may not stay.

The protocol is NATS's: a request in a JWT comes on a subject of the system account, an answer goes back that holds the
permissions of the connection in a JWT signed by the issuer whom the broker's configuration names. Any central may
answer; while none does, nobody comes in, and who is in stays.
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Struct, field

from cyxcentral.admission import Admitted, Proof, Refused
from cyxcentral.crowd import Crowd
from cyxcore.errors import CyxError
from cyxnet.broker import ADMISSION_TIMEOUT_S
from cyxnet.bus import Bus
from cyxnet.config import CONNECTIONS, SESSION_S
from cyxnet.credentials import ACCOUNT, HasKeys, public_nkey
from cyxnet.subjects import permissions, replica_permissions

log = logging.getLogger(__name__)
ASKED = "$SYS.REQ.USER.AUTH"
CAME, LEFT = (f"$SYS.ACCOUNT.EDGE.{what}" for what in ("CONNECT", "DISCONNECT"))
COUNT_S = 2.0
EVERY_SERVER = "$SYS.REQ.SERVER.PING.CONNZ"
UNHEARD = "_INBOX.unheard"  # a request that names nowhere for its answer is not done
MAX_REQUEST_BYTES = 65_536
ANSWER_WITHIN_NS = 60_000_000_000
_HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}


class _Server(Struct):
    id: str = ""


class _Client(Struct):
    nonce: str = ""
    host: str = ""


class _Request(Struct):
    server_id: _Server = field(default_factory=_Server)
    user_nkey: str = ""
    client_info: _Client = field(default_factory=_Client)
    connect_opts: Proof = field(default_factory=Proof)


class _Claims(Struct):
    """iat: when the broker asked, by its clock, in seconds since 1970."""

    iat: int = 0
    nats: _Request = field(default_factory=_Request)


class _Connection(Struct):
    cid: int = 0


class _Connections(Struct):
    server_id: str = ""
    connections: list[_Connection] = []


class _Connz(Struct):
    data: _Connections = field(default_factory=_Connections)


class _Guest(Struct):
    id: int = 0
    user: str = ""
    issuer_key: str = ""  # of who was let in by a central


class _Heard(Struct):
    """A broker's news of one connection."""

    server: _Server = field(default_factory=_Server)
    client: _Guest = field(default_factory=_Guest)


class Door:
    """decide: what admission says of a proof, now. connections: how many one identity may have at a time.

    session_s: how long one lasts at most, by the clock of its broker: central's may be hours off.
    """

    def __init__(
        self,
        system: Bus,
        central: HasKeys,
        decide: Callable[[Proof], Admitted | Refused],
        *,
        connections: int = CONNECTIONS,
        session_s: float = SESSION_S,
        clock: Callable[[], float] = time.monotonic,
    ):
        seed = central.child("nats-issuer")
        self._system = system
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._issuer = public_nkey(ACCOUNT, seed)
        self._decide = decide
        self._crowd = Crowd()
        self._connections = connections
        self._session_s = session_s
        self._clock = clock
        self._is_open = asyncio.Event()
        self._found, self._counts = f"_INBOX.{secrets.token_hex(16)}", f"_INBOX.{secrets.token_hex(16)}"
        self._asking: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to hear who asks. Nobody is answered before open()."""
        await self._system.subscribe(self._found, self._throw_out_found)
        await self._system.subscribe(f"{self._counts}.*", self._on_counted)
        for subject in (CAME, LEFT):
            await self._system.subscribe(subject, self._on_news)
        await self._system.answer_raw(ASKED, self._on_asked, queue="cyx-door")

    def open(self) -> None:
        """The log has been read: from now on it is known who may come in."""
        self._is_open.set()

    async def _on_asked(self, payload: bytes) -> bytes:
        try:
            async with asyncio.timeout(ADMISSION_TIMEOUT_S):
                await self._is_open.wait()
        except TimeoutError:
            return b""  # its broker has given up: who asked is gone, and must not count as somebody who was let in
        return self.answer(payload)

    def answer(self, payload: bytes) -> bytes:
        """The answer to one request of the broker."""
        try:
            claims = _read(payload)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            log.warning("a request to come in cannot be read: %s", error)
            return b""
        request, asked_s = claims.nats, claims.iat
        info = request.client_info
        proof = msgspec.structs.replace(request.connect_opts, nonce=info.nonce, host=info.host)
        decision = self._uncrowded(self._decide(proof))
        if isinstance(decision, Refused):
            log.info("not let in: %s", decision.reason)
            verdict = {"error": decision.reason}
        else:
            log.info("%s %s comes in", decision.role, decision.identity)
            verdict = {"jwt": self._permit(request.user_nkey, decision, asked_s)}
        said = {"type": "authorization_response", "version": 2} | verdict
        return self._signed(request.user_nkey, request.server_id.id, {"iat": asked_s, "nats": said}).encode()

    def _uncrowded(self, decision: Admitted | Refused) -> Admitted | Refused:
        """The decision, unless this identity has as many connections as one may have."""
        if isinstance(decision, Refused):
            return decision
        inside = self._crowd.count(decision.identity, self._clock())
        if 2 * inside >= self._connections and self._crowd.doubt(decision.identity):
            task = asyncio.get_running_loop().create_task(self._count(decision.identity))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
        if inside >= self._connections:
            return Refused(reason=f"{decision.identity} has {self._connections} connections already")
        self._crowd.let_in(decision.identity, self._clock())
        return decision

    async def _count(self, identity: str) -> None:
        """Ask every broker which connections of somebody it has, and give them COUNT_S for the answer."""
        most = 2 * self._connections  # no broker has so many of one
        asked = json.dumps({"auth": True, "user": identity, "limit": most}).encode()
        with contextlib.suppress(CyxError):
            await self._system.publish(EVERY_SERVER, asked, "", reply=f"{self._counts}.{identity}")
        await asyncio.sleep(COUNT_S)
        self._crowd.settle(identity)

    async def _on_counted(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        found = msgspec.json.decode(payload, type=_Connz).data
        numbers = {connection.cid for connection in found.connections}
        self._crowd.counted(subject.rpartition(".")[2], found.server_id, numbers)

    async def _on_news(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        """A connection came or went. One too many goes again: two centrals may have let one in each at a time."""
        heard = msgspec.json.decode(payload, type=_Heard)
        guest, key = heard.client, (heard.server.id, heard.client.id)
        if not guest.issuer_key:  # a central, whom the broker knows by itself
            return
        if subject == LEFT:
            self._crowd.left(guest.user, key)
        elif self._crowd.came(guest.user, key, self._session_s, self._clock()) > self._connections:
            await self._kick(*key)

    def _permit(self, user_nkey: str, who: Admitted, asked_s: int) -> str:
        if who.deployment:
            may = replica_permissions(who.deployment, who.identity)
        else:
            may = permissions(who.role, who.identity)
        nats: dict[str, Any] = {
            "type": "user",
            "version": 2,
            "pub": {"allow": may.publish},
            "sub": {"allow": may.subscribe},
            "subs": -1,  # the broker reads neither of them here: its own configuration limits both
            "payload": -1,
            "data": -1,
        }
        if may.answers:
            nats["resp"] = {"max": 1, "ttl": ANSWER_WITHIN_NS}
        claims = {"iat": asked_s, "exp": asked_s + who.lasts_s, "name": who.identity, "nats": nats}
        return self._signed(user_nkey, "EDGE", claims)

    def _signed(self, subject: str, audience: str, claims: dict[str, Any]) -> str:
        """A JWT of NATS: base 64 of its header, its claims and the signature over both."""
        claims = {"sub": subject, "aud": audience, "iss": self._issuer} | claims
        claims["jti"] = hashlib.sha256(json.dumps(claims).encode()).hexdigest()[:32]
        signed = f"{_base64(json.dumps(_HEADER).encode())}.{_base64(json.dumps(claims).encode())}"
        return f"{signed}.{_base64(self._key.sign(signed.encode()))}"

    # -- out -----------------------------------------------------------------------------------------

    async def throw_out(self, identity: str) -> None:
        """End every connection of an identity, on whichever server it is. Whether it comes in again is for decide().

        Those we know of first: a broker that is flooded is late to say which ones there are.
        """
        asked = json.dumps({"auth": True, "user": identity}).encode()
        try:
            for key in self._crowd.inside(identity):
                await self._kick(*key)
            await self._system.publish(EVERY_SERVER, asked, "", reply=self._found)
        except CyxError as error:
            log.warning("%s cannot be thrown out: %s", identity, error)

    async def _throw_out_found(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        found = msgspec.json.decode(payload, type=_Connz).data
        for connection in found.connections:
            await self._kick(found.server_id, connection.cid)

    async def _kick(self, server_id: str, cid: int) -> None:
        kick = f"$SYS.REQ.SERVER.{server_id}.KICK"
        await self._system.publish(kick, json.dumps({"cid": cid}).encode(), "", reply=UNHEARD)


def _read(payload: bytes) -> _Claims:
    """The claims of a request. Its signature is the broker's, on a subject where nobody else can speak."""
    parts = payload[:MAX_REQUEST_BYTES].split(b".")
    if len(parts) != 3:
        raise ValueError("expected a JWT of three parts")
    return msgspec.json.decode(base64.urlsafe_b64decode(parts[1] + b"=="), type=_Claims)


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")

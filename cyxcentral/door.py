"""The door: tells the broker who may come in (auth callout), and has those thrown out who may not stay.

The protocol is NATS's: a request in a JWT comes on a subject of the system account, an answer goes back that holds the
permissions of the connection in a JWT signed by the issuer whom the broker's configuration names. Any central may
answer; while none does, nobody comes in, and who is in stays.
"""

import asyncio
import base64
import hashlib
import json
import logging
import secrets
from collections.abc import Callable
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Struct, field

from cyxcentral.admission import Admitted, Proof, Refused
from cyxcore.errors import CyxError
from cyxnet.broker import MAX_PAYLOAD_BYTES
from cyxnet.bus import Bus
from cyxnet.credentials import ACCOUNT, public_nkey
from cyxnet.identity import Identity
from cyxnet.subjects import permissions

log = logging.getLogger(__name__)
ASKED = "$SYS.REQ.USER.AUTH"
EVERY_SERVER = "$SYS.REQ.SERVER.PING.CONNZ"
UNHEARD = "_INBOX.unheard"  # a request that names nowhere for its answer is not done
MAX_REQUEST_BYTES = 65_536
ANSWER_WITHIN_NS = 60_000_000_000
_HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}


class _Server(Struct):
    id: str = ""


class _Client(Struct):
    nonce: str = ""


class _Request(Struct):
    server_id: _Server = field(default_factory=_Server)
    user_nkey: str = ""
    client_info: _Client = field(default_factory=_Client)
    connect_opts: Proof = field(default_factory=Proof)


class _Claims(Struct):
    nats: _Request = field(default_factory=_Request)


class _Connection(Struct):
    cid: int = 0


class _Connections(Struct):
    server_id: str = ""
    connections: list[_Connection] = []


class _Connz(Struct):
    data: _Connections = field(default_factory=_Connections)


class Door:
    """decide: what admission says of a proof, now. wall_s: the time, in seconds since 1970."""

    def __init__(
        self,
        system: Bus,
        central: Identity,
        decide: Callable[[Proof], Admitted | Refused],
        wall_s: Callable[[], int],
    ):
        seed = central.child("nats-issuer")
        self._system = system
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._issuer = public_nkey(ACCOUNT, seed)
        self._decide = decide
        self._wall_s = wall_s
        self._is_open = asyncio.Event()
        self._found = f"_INBOX.{secrets.token_hex(16)}"

    async def start(self) -> None:
        """Begin to hear who asks. Nobody is answered before open()."""
        await self._system.subscribe(self._found, self._throw_out_found)
        await self._system.answer_raw(ASKED, self._on_asked, queue="cyx-door")

    def open(self) -> None:
        """The log has been read: from now on it is known who may come in."""
        self._is_open.set()

    async def _on_asked(self, payload: bytes) -> bytes:
        await self._is_open.wait()
        return self.answer(payload)

    def answer(self, payload: bytes) -> bytes:
        """The answer to one request of the broker."""
        try:
            request = _read(payload)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            log.warning("a request to come in cannot be read: %s", error)
            return b""
        proof = msgspec.structs.replace(request.connect_opts, nonce=request.client_info.nonce)
        decision = self._decide(proof)
        if isinstance(decision, Refused):
            log.info("not let in: %s", decision.reason)
            verdict = {"error": decision.reason}
        else:
            log.info("%s %s comes in", decision.role, decision.identity)
            verdict = {"jwt": self._permit(request.user_nkey, decision)}
        said = {"type": "authorization_response", "version": 2} | verdict
        return self._signed(request.user_nkey, request.server_id.id, {"nats": said}).encode()

    def _permit(self, user_nkey: str, who: Admitted) -> str:
        may = permissions(who.role, who.identity)
        nats: dict[str, Any] = {
            "type": "user",
            "version": 2,
            "pub": {"allow": may.publish},
            "sub": {"allow": may.subscribe},
            "subs": may.subscriptions,
            "payload": MAX_PAYLOAD_BYTES,
            "data": -1,
        }
        if may.answers:
            nats["resp"] = {"max": 1, "ttl": ANSWER_WITHIN_NS}
        return self._signed(
            user_nkey, "EDGE", {"name": who.identity, "exp": self._wall_s() + who.lasts_s, "nats": nats}
        )

    def _signed(self, subject: str, audience: str, claims: dict[str, Any]) -> str:
        """A JWT of NATS: base 64 of its header, its claims and the signature over both."""
        claims = {"sub": subject, "aud": audience, "iss": self._issuer, "iat": self._wall_s()} | claims
        claims["jti"] = hashlib.sha256(json.dumps(claims).encode()).hexdigest()[:32]
        signed = f"{_base64(json.dumps(_HEADER).encode())}.{_base64(json.dumps(claims).encode())}"
        return f"{signed}.{_base64(self._key.sign(signed.encode()))}"

    # -- out -----------------------------------------------------------------------------------------

    async def throw_out(self, identity: str) -> None:
        """End every connection of an identity, on whichever server it is. Whether it comes in again is for decide()."""
        asked = json.dumps({"auth": True, "user": identity}).encode()
        try:
            await self._system.publish(EVERY_SERVER, asked, "", reply=self._found)
        except CyxError as error:
            log.warning("%s cannot be thrown out: %s", identity, error)

    async def _throw_out_found(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        found = msgspec.json.decode(payload, type=_Connz).data
        for connection in found.connections:
            kick = f"$SYS.REQ.SERVER.{found.server_id}.KICK"
            await self._system.publish(kick, json.dumps({"cid": connection.cid}).encode(), "", reply=UNHEARD)


def _read(payload: bytes) -> _Request:
    """The claims of a request. Its signature is the broker's, on a subject where nobody else can speak."""
    parts = payload[:MAX_REQUEST_BYTES].split(b".")
    if len(parts) != 3:
        raise ValueError("expected a JWT of three parts")
    return msgspec.json.decode(base64.urlsafe_b64decode(parts[1] + b"=="), type=_Claims).nats


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")

"""Who a connection is to the broker: its nkey, what it signs to get in, and what a node says of itself.

An nkey is an Ed25519 key as NATS writes it: base 32 of a kind, the key and a checksum. The one of a connection is a
child of the identity's seed that does nothing but sign the nonces of brokers, so whatever a broker makes it sign is
worth nothing anywhere else. Central lets the connection in under an id that belongs to that key.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from typing import Annotated, Protocol

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec import Meta, Struct

from cyxnet.identity import Identity, key_id, verify
from cyxnet.messages import HttpSessionRequest, NodeId, PublicKey, Role, SeedSignature

USER, ACCOUNT = 20 << 3, 0  # the kinds: their nkeys begin with U and A, their seeds with SU and SA
_SEED = 18 << 3
LONGEST_TOKEN = 1024
NONCE = re.compile(r"[A-Za-z0-9_=+/-]{0,200}")


class NodeToken(Struct, frozen=True, kw_only=True):
    """What a node says of itself when it connects: that the nkey it connects with speaks for this node."""

    node_id: NodeId
    public_key: PublicKey  # of the signing key; the node id ends with its digest
    signature: SeedSignature  # of binding_bytes()
    job_id: Annotated[str, Meta(max_length=63)] = ""  # of the replica that the connection is for; "": for the node
    attempt: Annotated[int, Meta(ge=0, le=1000)] = 0


class Credentials(Struct, frozen=True, kw_only=True):
    """What it takes to connect as somebody. sign: a nonce to its signature, both as they travel."""

    id: str  # the caller or node in the subjects
    nkey: str
    sign: Callable[[str], bytes]
    inbox: str  # prefix of the only inboxes this connection may listen on
    token: str | None = None


def nkey(kind: int, public_key: bytes) -> str:
    """32 bytes of an Ed25519 public key as NATS writes it."""
    return _checked(bytes([kind]) + public_key)


def nkey_seed(kind: int, seed: bytes) -> str:
    """32 bytes of an Ed25519 seed as NATS writes it: a secret."""
    return _checked(bytes([_SEED | kind >> 5, (kind & 31) << 3]) + seed)


def nkey_bytes(kind: int, text: str) -> bytes:
    """The inverse of nkey(). Raises ValueError when the kind, the length or the checksum is another."""
    try:
        raw = base64.b32decode(text + "=" * (-len(text) % 8))
    except (ValueError, binascii.Error):
        raise ValueError("expected base 32") from None
    if len(raw) != 35 or raw[0] != kind or _checked(raw[:-2]) != text:
        raise ValueError("expected an nkey of 56 letters with its checksum")
    return raw[1:-2]


def _checked(raw: bytes) -> str:
    return base64.b32encode(raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")).decode().rstrip("=")


def public_nkey(kind: int, seed: bytes) -> str:
    """The public nkey of a seed."""
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key()
    return nkey(kind, public.public_bytes(Encoding.Raw, PublicFormat.Raw))


def caller_id(user_nkey: str) -> str:
    """The caller that an nkey speaks for. 128 bits of its digest: nobody finds another key with the same ones."""
    return "c-" + hashlib.sha256(user_nkey.encode()).hexdigest()[:32]


def as_client(keys: Identity) -> Credentials:
    return _credentials(keys.child("nats"), None)


def as_node(keys: Identity, node_id: str) -> Credentials:
    """node_id ends with the digest of the signing key, which vouches for the nkey."""
    user_nkey = public_nkey(USER, keys.child("nats"))
    signature = keys.sign(binding_bytes(user_nkey, node_id))
    token = NodeToken(node_id=node_id, public_key=keys.public_key, signature=signature)
    return _credentials(keys.child("nats"), node_id, msgspec.json.encode(token).decode())


def as_replica(keys: Identity, node_id: str, job_id: str, attempt: int) -> Credentials:
    """A node, for one replica that it serves: the connection can answer for that, as long as the lease lasts, and no
    more. Central has its word for it, so nothing but the node's key is signed.
    """
    whole = as_node(keys, node_id)
    token = msgspec.structs.replace(
        msgspec.json.decode(whole.token or "", type=NodeToken), job_id=job_id, attempt=attempt
    )
    identity = replica_id(node_id, job_id, attempt)
    return msgspec.structs.replace(whole, id=identity, token=msgspec.json.encode(token).decode())


def replica_id(node_id: str, job_id: str, attempt: int) -> str:
    """Who the connection of a replica is to the broker: no client or node has an id with a slash."""
    return f"{node_id}/{job_id}/{attempt}"


class HasKeys(Protocol):
    """An Identity, or who has some of its keys only."""

    def child(self, purpose: str) -> bytes: ...


def as_system(central: HasKeys) -> Credentials:
    """central in the broker's system account, where it is asked who may come in and has others thrown out."""
    return msgspec.structs.replace(_credentials(central.child("nats-system"), "central"), inbox="_INBOX")


def _credentials(seed: bytes, known_as: str | None, token: str | None = None) -> Credentials:
    key = Ed25519PrivateKey.from_private_bytes(seed)
    user_nkey = public_nkey(USER, seed)
    identity = known_as or caller_id(user_nkey)

    def sign(nonce: str) -> bytes:
        if not NONCE.fullmatch(nonce):  # whatever it wants signed, it is not what brokers draw
            raise ValueError(f"the broker wants something signed that is no nonce: {nonce[:60]!r}")
        return base64.b64encode(key.sign(nonce.encode()))

    return Credentials(id=identity, nkey=user_nkey, sign=sign, token=token, inbox=f"_INBOX_{identity}")


def binding_bytes(user_nkey: str, node_id: str) -> bytes:
    """What the signing key of a node signs, once: it is the same for every broker and every connection."""
    return f"cyx/v1/nats-binding\n{user_nkey}\n{node_id}".encode()


def bound_node(token: str, user_nkey: str) -> NodeToken:
    """The node that an nkey may speak for by this token. Raises ValueError, saying why, when there is none."""
    try:
        said = msgspec.json.decode(token[:LONGEST_TOKEN], type=NodeToken)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise ValueError("the token is not that of a node") from None
    if not said.node_id.endswith(f"-{key_id(said.public_key)}"):
        raise ValueError(f"{said.node_id} is not the id of the key in its token")
    if not verify(said.public_key, binding_bytes(user_nkey, said.node_id), said.signature):
        raise ValueError(f"the key of {said.node_id} has not signed for this connection")
    return said


def session_request(
    keys: Identity, network_id: str, nonce: str, role: Role = "client", node_id: str = ""
) -> HttpSessionRequest:
    """What opens an HTTP session for a client, or for the node `node_id`: signed by the signing key.

    Raises ValueError for a nonce that does not look like one.
    """
    if not NONCE.fullmatch(nonce):
        raise ValueError(f"expected a nonce of letters and digits, got {nonce[:60]!r}")
    user_nkey, binding = "", ""
    if role != "node":
        key = Ed25519PrivateKey.from_private_bytes(keys.child("nats"))
        user_nkey = public_nkey(USER, keys.child("nats"))
        binding = key.sign(http_binding_bytes(keys.public_key)).hex()
    identity = node_id or caller_id(user_nkey)
    return HttpSessionRequest(
        nonce=nonce,
        public_key=keys.public_key,
        signature=keys.sign(session_bytes(network_id, nonce, identity, role)),
        identity=identity,
        role=role,
        nkey=user_nkey,
        binding=binding,
    )


def session_bytes(network_id: str, nonce: str, identity: str, role: str) -> bytes:
    """What the signing key signs to open an HTTP session: for one network, one nonce, one identity in one role."""
    return f"cyx/v1/http-session\n{network_id}\n{nonce}\n{identity}\n{role}".encode()


def http_binding_bytes(public_key: str) -> bytes:
    """What the nkey of a client signs, once: which signing key speaks for it over HTTP."""
    return f"cyx/v1/http-binding\n{public_key}".encode()


def refused_session(ask: HttpSessionRequest, network_id: str) -> str | None:
    """Why a request has not shown that it comes from who it names; None when it has. The nonce is not looked at."""
    public_key = bytes.fromhex(ask.public_key)
    if not verify(ask.public_key, session_bytes(network_id, ask.nonce, ask.identity, ask.role), ask.signature):
        return "the signature is not that of public_key over the bytes that docs/http.md names"
    if ask.role == "node":
        ends = f"-{key_id(ask.public_key)}"
        return None if ask.identity.endswith(ends) else f"{ask.identity} is not the id of a node with this public key"
    if not ask.nkey:
        belongs = caller_id(nkey(USER, public_key))
    else:
        try:
            connection_key = nkey_bytes(USER, ask.nkey).hex()
        except ValueError as error:
            return f"nkey: {error}"
        if not verify(connection_key, http_binding_bytes(ask.public_key), ask.binding):
            return "binding is not the signature of nkey over the bytes that docs/http.md names"
        belongs = caller_id(ask.nkey)
    return None if ask.identity == belongs else f"{ask.identity} is not the caller that this key speaks for"


def broker_nkeys(central: Identity) -> tuple[str, str]:
    """(issuer, system): the public nkeys of central that the broker's configuration names."""
    return public_nkey(ACCOUNT, central.child("nats-issuer")), public_nkey(USER, central.child("nats-system"))

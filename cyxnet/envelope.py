"""Files of a sealed job: its data, states and model, which its client and one node can read, and nobody between them.

    cyxseal 1 | ephemeral key, 32 bytes | the file key for the node, 48 | kind, 1 | salt, 32 | segments

The client draws an ephemeral X25519 key for each job (RFC 7748). The file key is HKDF-SHA256 (RFC 5869) of a secret of
his and of the ephemeral public key: he can make it again, and nobody else could have made it. It travels encrypted
under what X25519 makes of the ephemeral key and the node's. Each file has a key of its own, HKDF of the file key with
the salt and the kind; its segments are ChaCha20-Poly1305 (RFC 8439), whose nonce is the segment's number and whether it
is the last. So a file that opens was made by the client or the node, for this job, and is whole.
"""

import contextlib
import hashlib
import itertools
import os
import re
import secrets
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec import Struct

from cyxcore.errors import CyxError
from cyxnet.identity import Identity
from cyxnet.messages import ArtifactRef, JobRequest

MAGIC = b"cyxseal\x01"
KEY_BYTES, TAG_BYTES = 32, 16
LEAD_BYTES = len(MAGIC) + KEY_BYTES + KEY_BYTES + TAG_BYTES
SEGMENT_BYTES = 64 * 1024  # of plain text
MAX_ABOUT_BYTES = 2**20  # a job travels in one message
Kind = Literal["data", "state", "model"]
_KINDS: dict[Kind, bytes] = {"data": b"\1", "state": b"\2", "model": b"\3"}


class SealError(CyxError):
    """A file cannot be sealed or opened. The message says why."""

    code = "not_opened"


class DiskFault(CyxError):
    """The disk is to blame and not the file, which cannot be sealed or opened now: another time it may work."""

    code = "disk_error"


class About(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is said of the content, sealed with it: of which job it is. job: of data, as it would be submitted in plain
    text.
    """

    job: JobRequest | None = None
    job_id: str = ""


class Envelope(Struct, frozen=True):
    """What all files of one job have in common: how they begin, and the key that is in there."""

    lead: bytes
    file_key: bytes


def node_key(node: Identity) -> str:
    """What a client seals to: the node's X25519 public key, hex. Its operator tells it, since who can be asked for it
    on the network could answer with another.
    """
    return _raw(_private(node).public_key()).hex()


def is_sealed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def new_envelope(client: Identity, to: str) -> Envelope:
    """For one job. to: the node's key. Raises SealError when that is none."""
    if not re.fullmatch(r"[0-9a-f]{64}", to):
        raise SealError(f"expected a node's sealing key (cyx id show --node), 64 hex digits, got {to[:80]!r}")
    ephemeral = X25519PrivateKey.generate()
    public = _raw(ephemeral.public_key())
    try:
        shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(to)))
    except ValueError:
        raise SealError(f"{to} is no key that anything can be sealed to") from None
    file_key = _own_key(client, public)
    sealed = ChaCha20Poly1305(_wrapping(shared, public, bytes.fromhex(to))).encrypt(bytes(12), file_key, MAGIC)
    return Envelope(MAGIC + public + sealed, file_key)


def as_client(client: Identity) -> Callable[[bytes], Envelope]:
    """How a client opens what belongs to jobs that he sealed."""
    return lambda lead: Envelope(lead, _own_key(client, _public(lead)))


def as_node(node: Identity) -> Callable[[bytes], Envelope]:
    """How a node opens what was sealed to it."""

    def envelope(lead: bytes) -> Envelope:
        mine, public = _private(node), _public(lead)
        try:
            shared = mine.exchange(X25519PublicKey.from_public_bytes(public))
            wrapping = _wrapping(shared, public, _raw(mine.public_key()))
            sealed = lead[len(MAGIC) + KEY_BYTES :]
            return Envelope(lead, ChaCha20Poly1305(wrapping).decrypt(bytes(12), sealed, MAGIC))
        except (InvalidTag, ValueError):
            raise SealError("it is sealed to another key than this node's; seal it to the key of this node") from None

    return envelope


def within(envelope: Envelope) -> Callable[[bytes], Envelope]:
    """How who has opened the data of a job opens the rest of it, and nothing else."""

    def same(lead: bytes) -> Envelope:
        if lead != envelope.lead:
            raise SealError("it is of another job")
        return envelope

    return same


def seal(source: Path, target: Path, envelope: Envelope, kind: Kind, about: About) -> None:
    """Write a file sealed. Raises SealError, DiskFault."""
    salt, said = secrets.token_bytes(KEY_BYTES), msgspec.json.encode(about)
    cipher = _cipher(envelope, kind, salt)
    try:
        with _draft(target) as draft, source.open("rb") as plain, draft.open("wb") as file:
            file.write(envelope.lead + _KINDS[kind] + salt)
            pending = struct.pack(">I", len(said)) + said
            number = 0
            while block := plain.read(SEGMENT_BYTES):
                pending += block
                while len(pending) > SEGMENT_BYTES:  # what is left is the last, if nothing follows
                    file.write(cipher.encrypt(_nonce(number, False), pending[:SEGMENT_BYTES], None))
                    pending, number = pending[SEGMENT_BYTES:], number + 1
            file.write(cipher.encrypt(_nonce(number, True), pending, None))
    except OSError as error:
        raise DiskFault(f"{error.filename or target}: cannot be sealed ({error.strerror})") from None


def unseal(
    source: Path, target: Path, opened: Callable[[bytes], Envelope], kind: Kind, job_id: str | None = None
) -> tuple[Envelope, About, ArtifactRef]:
    """Write a sealed file in plain text; target appears only when all of it was opened, and is of this job if one is
    named.

    Returns its envelope, what is said of it, and size and digest of the plain text. Raises SealError, DiskFault.
    """
    whole, size = hashlib.sha256(), 0
    try:
        with _draft(target) as draft, source.open("rb") as sealed, draft.open("wb") as file:
            head = sealed.read(LEAD_BYTES + 1 + KEY_BYTES)
            if len(head) < LEAD_BYTES + 1 + KEY_BYTES or not head.startswith(MAGIC):
                raise SealError("expected a sealed file, it is none")
            if head[LEAD_BYTES : LEAD_BYTES + 1] != _KINDS[kind]:
                raise SealError(f"expected sealed {kind}, it is something else")
            envelope = opened(head[:LEAD_BYTES])
            parts = _segments(sealed, _cipher(envelope, kind, head[LEAD_BYTES + 1 :]))
            about, begin = _about(parts)
            if job_id not in (None, about.job_id):
                raise SealError(f"{job_id}: the {kind} is that of {about.job_id or 'a job without an id'}")
            for block in itertools.chain([begin], parts):
                whole.update(block)
                file.write(block)
                size += len(block)
    except OSError as error:
        raise DiskFault(f"{error.filename or source}: cannot be opened ({error.strerror})") from None
    return envelope, about, ArtifactRef(sha256=whole.hexdigest(), size=size)


@contextlib.contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """A file of the owner's alone that takes the place of the target at the end, and is gone if that fails."""
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        yield draft
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def _segments(file: BinaryIO, cipher: ChaCha20Poly1305) -> Iterator[bytes]:
    block, number = file.read(SEGMENT_BYTES + TAG_BYTES), 0
    while True:
        following = file.read(SEGMENT_BYTES + TAG_BYTES)
        try:
            yield cipher.decrypt(_nonce(number, not following), block, None)
        except InvalidTag:
            raise SealError("it was changed or cut off, or is not for this key") from None
        if not following:
            return
        block, number = following, number + 1


def _about(parts: Iterator[bytes]) -> tuple[About, bytes]:
    """What is said of the content, and its first bytes."""
    text = next(parts)
    length = int.from_bytes(text[:4], "big")
    if length > MAX_ABOUT_BYTES:
        raise SealError("it begins with what no program of this version wrote")
    while len(text) < 4 + length and (block := next(parts, None)) is not None:
        text += block
    try:
        return msgspec.json.decode(text[4 : 4 + length], type=About), text[4 + length :]
    except msgspec.MsgspecError as error:
        raise SealError(f"it begins with what this version does not know ({error})") from None


def _cipher(envelope: Envelope, kind: Kind, salt: bytes) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(_derived(envelope.file_key, salt, kind))


def _nonce(number: int, last: bool) -> bytes:
    return struct.pack(">QI", number, last)


def _own_key(client: Identity, public: bytes) -> bytes:
    return _derived(client.child("seal-own"), public, "file key")


def _wrapping(shared: bytes, ephemeral: bytes, recipient: bytes) -> bytes:
    return _derived(shared, ephemeral + recipient, "node")


def _derived(secret: bytes, salt: bytes, what: str) -> bytes:
    info = f"cyx/v1/sealed {what}".encode()
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(secret)


def _private(node: Identity) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(node.child("seal"))


def _public(lead: bytes) -> bytes:
    return lead[len(MAGIC) : len(MAGIC) + KEY_BYTES]


def _raw(key: X25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)

"""Keys. One 32-byte seed per person or node; purpose-bound child keys by HKDF-SHA256 (RFC 5869).

The wallet key and the signing key are different keys of the same seed, so that what one signs can never be taken
for the other's.
"""

import functools
import hashlib
import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cyxcore.paths import shown
from cyxnet import sealing
from cyxnet.sealing import SEED_BYTES, IdentityError

__all__ = [
    "Identity",
    "IdentityError",
    "ed25519_key",
    "keep",
    "key_id",
    "load",
    "load_or_create",
    "put_aside",
    "verify",
]


_P = 2**255 - 19  # of the field (RFC 8032, 5.1)
_EIGHTH = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7  # y of points of order 8; the other is -y
_SMALL_ORDER_Y = frozenset({0, 1, _P - 1, _EIGHTH, _P - _EIGHTH})


class Identity:
    """A seed and the keys derived from it."""

    def __init__(self, seed: bytes):
        if len(seed) != SEED_BYTES:
            raise IdentityError(f"expected a seed of {SEED_BYTES} bytes, got {len(seed)}")
        self.seed = seed
        self._signing = Ed25519PrivateKey.from_private_bytes(self.child("sign"))

    def child(self, purpose: str) -> bytes:
        """32 bytes for one purpose ("sign", "wallet", "custody:alice", …)."""
        info = f"cyx/v1/{purpose}".encode()
        return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(self.seed)

    @functools.cached_property
    def public_key(self) -> str:
        """Ed25519 public key of the signing key, hex."""
        return self._signing.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()

    @property
    def short_id(self) -> str:
        """Ten hex digits that stand for the public key in names and subjects."""
        return key_id(self.public_key)

    def sign(self, message: bytes) -> str:
        """Ed25519 signature of the signing key, hex. The message carries its own domain prefix."""
        return self._signing.sign(message).hex()


def key_id(public_key: str) -> str:
    return hashlib.sha256(bytes.fromhex(public_key)).hexdigest()[:10]


def ed25519_key(public_key: bytes) -> Ed25519PublicKey:
    """The key of 32 bytes. Raises ValueError for what is none, and for a key that proves nothing.

    For the eight points of small order (and some other way to write them) a signature of any message can be made
    without a secret, and OpenSSL takes it (RFC 8032 leaves it to the caller; see Chalkias et al., "Taming the Many
    EdDSAs", 2020). And each key is to have one form, because ids are digests of it.
    """
    y = int.from_bytes(public_key, "little") & (2**255 - 1)
    if y >= _P:
        raise ValueError("the key is not reduced: it is another way to write a key")
    if y in _SMALL_ORDER_Y:
        raise ValueError("the key is a point of small order: anybody could sign for it")
    return Ed25519PublicKey.from_public_bytes(public_key)


def verify(public_key: str, message: bytes, signature: str) -> bool:
    """True when `signature` (hex) is that of `public_key` (hex) over `message`."""
    try:
        ed25519_key(bytes.fromhex(public_key)).verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def load_or_create(path: Path) -> Identity:
    """The identity kept in `path` (cyxnet.sealing says how, mode 0600), made on first use."""
    try:
        return load(path)
    except FileNotFoundError:
        try:
            return keep(path, Identity(secrets.token_bytes(SEED_BYTES)))
        except FileExistsError:  # another process made it first: theirs counts
            return load(path)


def load(path: Path) -> Identity:
    """The identity kept in `path`. Raises FileNotFoundError without one, IdentityError for what cannot be used."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise IdentityError(f"{shown(path)}: cannot be read as a key file ({error.strerror})") from None
    except UnicodeDecodeError:
        raise IdentityError(f"{path}: expected a key file, this is no text in UTF-8") from None
    if path.stat().st_mode & 0o077:
        raise IdentityError(f"{path}: others may read this key; run: chmod 600 {path}")
    return Identity(sealing.read(text, path))


def keep(path: Path, keys: Identity, passphrase: str | None = None, *, replace: bool = False) -> Identity:
    """Write a key file, as a whole or not at all. passphrase: to seal it with.

    Raises FileExistsError when there is one and it is not to be replaced.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise IdentityError(f"{path}: a new key cannot be kept there ({error.strerror})") from None
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(sealing.written(keys.seed, passphrase))
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(draft, path)
        else:
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return keys


def put_aside(path: Path) -> Path:
    """Give the file at `path` a second name, so that replacing it loses no key. Returns that name."""
    number = 1
    while True:
        aside = path.with_name(f"{path.name}.old-{number}")
        try:
            os.link(path, aside)
            return aside
        except FileExistsError:
            number += 1

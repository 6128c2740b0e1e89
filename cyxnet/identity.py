"""Keys. One 32-byte seed per person or node; purpose-bound child keys by HKDF-SHA256 (RFC 5869).

The wallet key and the signing key are different keys of the same seed, so that what one signs can never be taken
for the other's.
"""

import hashlib
import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cyxnet import sealing
from cyxnet.sealing import SEED_BYTES, IdentityError

__all__ = ["Identity", "IdentityError", "keep", "key_id", "load", "load_or_create", "put_aside", "verify"]


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

    @property
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


def verify(public_key: str, message: bytes, signature: str) -> bool:
    """True when `signature` (hex) is that of `public_key` (hex) over `message`."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(bytes.fromhex(signature), message)
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
    except (OSError, UnicodeDecodeError) as error:
        raise IdentityError(f"{path}: cannot be read as a key file ({error})") from None
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

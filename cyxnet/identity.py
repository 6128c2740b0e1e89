"""Keys. One 32-byte seed per person or node; purpose-bound child keys by HKDF-SHA256 (RFC 5869).

The wallet key and the signing key are different keys of the same seed, so that what one signs can never be taken
for the other's.
"""

import hashlib
import os
import re
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cyxcore.errors import CyxError


class IdentityError(CyxError):
    """A key file cannot be used. The message says which and how to mend it."""

    code = "bad_identity"


class Identity:
    """A seed and the keys derived from it."""

    def __init__(self, seed: bytes):
        if len(seed) != 32:
            raise IdentityError(f"expected a seed of 32 bytes, got {len(seed)}")
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
    """The identity kept in `path` (64 hex digits, mode 0600), made on first use."""
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        return _create(path)
    except (OSError, UnicodeDecodeError) as error:
        raise IdentityError(f"{path}: cannot be read as a key file ({error})") from None
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise IdentityError(f"{path}: expected 64 hex digits, got {len(text)} characters; restore it from a backup")
    if path.stat().st_mode & 0o077:
        raise IdentityError(f"{path}: others may read this key; run: chmod 600 {path}")
    return Identity(bytes.fromhex(text))


def _create(path: Path) -> Identity:
    seed = secrets.token_bytes(32)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise IdentityError(f"{path}: a new key cannot be kept there ({error.strerror})") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(seed.hex() + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)  # fails when another process made it first: theirs counts
    except FileExistsError:
        return load_or_create(path)
    finally:
        draft.unlink()
    return Identity(seed)

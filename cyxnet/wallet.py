"""A Solana wallet: an Ed25519 seed, its address, its signatures, its file.

Needs neither solders nor a network, so a process that only signs stays small.
"""

import os
import secrets
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cyxcore.errors import CyxError
from cyxnet.identity import ed25519_key

BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
BASE58_VALUES = {letter: value for value, letter in enumerate(BASE58)}


class WalletError(CyxError):
    """A seed or key file cannot be used. The message says which and how to mend it."""

    code = "bad_wallet"


def base58_encode(data: bytes) -> str:
    """Bytes in Bitcoin's base-58 alphabet; each leading zero byte is a leading 1."""
    value = int.from_bytes(data, "big")
    letters = ""
    while value:
        value, digit = divmod(value, 58)
        letters = BASE58[digit] + letters
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + letters


def base58_decode(text: str) -> bytes:
    """The inverse of base58_encode. Raises ValueError on a letter outside the alphabet."""
    value = 0
    for letter in text:
        if letter not in BASE58_VALUES:
            raise ValueError(f"expected base-58 letters, got {letter!r}")
        value = value * 58 + BASE58_VALUES[letter]
    zeros = len(text) - len(text.lstrip("1"))
    return b"\0" * zeros + value.to_bytes((value.bit_length() + 7) // 8, "big")


def sign(seed: bytes, message: bytes) -> bytes:
    """Ed25519 signature (RFC 8032), 64 bytes. The caller puts its domain prefix into the message."""
    return Ed25519PrivateKey.from_private_bytes(seed).sign(message)


def verify(public_key: str, message: bytes, signature: bytes) -> bool:
    """True when `signature` is the key's over `message`. public_key: 64 hex digits or a base-58 address.

    A malformed key or signature is a signature that does not verify: both come from strangers.
    """
    try:
        key = bytes.fromhex(public_key) if len(public_key) == 64 else base58_decode(public_key)
        ed25519_key(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


class Wallet:
    """A key that owns coins. seed: 32 bytes. Its repr never shows the seed."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != 32:
            raise WalletError(f"expected a wallet seed of 32 bytes, got {len(seed)}")
        self.seed = seed
        self._key = Ed25519PrivateKey.from_private_bytes(seed)  # half the cost of a signature is to derive it
        self.public_key = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.address = base58_encode(self.public_key)

    def __repr__(self) -> str:
        return f"Wallet({self.address})"

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)

    @staticmethod
    def create() -> "Wallet":
        return Wallet(secrets.token_bytes(32))

    @staticmethod
    def load_or_create(path: Path) -> "Wallet":
        """The wallet kept in `path`, made on first use with mode 0600.

        The format is that of `solana-keygen`: a JSON list of the 64 bytes seed + public key.
        Raises WalletError when the file is damaged or others may read it.
        """
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return _create_file(path)
        except OSError as error:
            raise WalletError(f"{path}: expected a readable wallet file, got: {error}") from None
        if os.name == "posix" and path.stat().st_mode & 0o077:
            raise WalletError(f"{path}: others may read this wallet; run: chmod 600 {path}")
        try:
            pair = bytes(msgspec.json.decode(text, type=list[int]))
        except (msgspec.MsgspecError, ValueError) as error:
            raise WalletError(
                f"{path}: expected a JSON list of 64 bytes as solana-keygen writes it, got: {error}; "
                "restore it from a backup"
            ) from None
        if len(pair) != 64 or Wallet(pair[:32]).public_key != pair[32:]:
            raise WalletError(
                f"{path}: expected 32 bytes of seed and its 32 bytes of public key, got {len(pair)} bytes "
                "that do not fit together; restore it from a backup"
            )
        return Wallet(pair[:32])


def _create_file(path: Path) -> Wallet:
    wallet = Wallet.create()
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(list(wallet.seed + wallet.public_key)) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)  # fails when another process made it first: theirs counts
    except FileExistsError:
        return Wallet.load_or_create(path)
    finally:
        draft.unlink()
    return wallet

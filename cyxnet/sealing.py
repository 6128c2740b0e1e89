"""A seed at rest: 64 hex digits, or sealed with a passphrase; and where the passphrase comes from.

scrypt (RFC 7914) makes a key of the passphrase, ChaCha20-Poly1305 (RFC 8439) seals the seed with it.
"""

import getpass
import os
import re
import secrets
import signal
import sys
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from msgspec import Meta, Struct

from cyxcore.errors import CyxError

SEED_BYTES = 32
PASSPHRASE, PASSPHRASE_FILE = "CYX_PASSPHRASE", "CYX_PASSPHRASE_FILE"
NEW_PASSPHRASE = "CYX_NEW_PASSPHRASE"  # where CYX_PASSPHRASE is the one that it replaces
SHORTEST_PASSPHRASE = 8  # letters
_FORMAT = "cyx-sealed-seed/1"
_COST = {"n": 2**15, "r": 8, "p": 3}  # 32 MB and about a quarter of a second, for us and for each guess


class IdentityError(CyxError):
    """A key file cannot be used. The message says which and how to mend it."""

    code = "bad_identity"


class WrongPassphrase(IdentityError, ValueError):
    """This passphrase does not open the key file, or none was given."""

    code = "wrong_passphrase"


_typed: dict[Path, str] = {}  # what has opened a file in this process: nobody is asked twice
Hex16 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
Hex12 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{24}\Z")]


class Sealed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The text of a sealed key file. Bounds keep a file of somebody else from taking the machine's memory."""

    format: Literal["cyx-sealed-seed/1"]
    n: Annotated[int, Meta(ge=2**10, le=2**20)]  # scrypt's cost
    r: Annotated[int, Meta(ge=1, le=16)]
    p: Annotated[int, Meta(ge=1, le=16)]
    salt: Hex16
    nonce: Hex12
    sealed: Annotated[str, Meta(pattern=r"\A[0-9a-f]{96}\Z")]  # 32 bytes and a tag of 16


def written(seed: bytes, passphrase: str | None) -> str:
    """The text of a key file. passphrase None: readable by whoever may read the file."""
    if passphrase is None:
        return seed.hex() + "\n"
    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
    cipher = ChaCha20Poly1305(_stretched(passphrase, salt, **_COST))
    sealed = Sealed(
        format="cyx-sealed-seed/1",
        salt=salt.hex(),
        nonce=nonce.hex(),
        sealed=cipher.encrypt(nonce, seed, _FORMAT.encode()).hex(),
        **_COST,
    )
    return msgspec.json.encode(sealed).decode() + "\n"


def is_sealed(text: str) -> bool:
    return text.startswith("{")


def read(text: str, path: Path) -> bytes:
    """The seed in the text of a key file; asks for the passphrase of one that is sealed.

    Raises IdentityError when it is no key file, WrongPassphrase when it cannot be opened.
    """
    text = text.strip()
    if not is_sealed(text):
        if not re.fullmatch(r"[0-9a-f]{64}", text):
            raise IdentityError(f"{path}: expected 64 hex digits, got {len(text)} characters; restore it from a backup")
        return bytes.fromhex(text)
    try:
        sealed = msgspec.json.decode(text, type=Sealed)
        if sealed.n & (sealed.n - 1):
            raise ValueError(f"n is {sealed.n}, no power of two")
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise IdentityError(f"{path}: not a sealed key file ({error}); restore it from a backup") from None
    passphrase = passphrase_for(path)
    cipher = ChaCha20Poly1305(_stretched(passphrase, bytes.fromhex(sealed.salt), n=sealed.n, r=sealed.r, p=sealed.p))
    try:
        seed = cipher.decrypt(bytes.fromhex(sealed.nonce), bytes.fromhex(sealed.sealed), _FORMAT.encode())
        _typed[path] = passphrase
        return seed
    except InvalidTag:
        _typed.pop(path, None)
        raise WrongPassphrase(f"{path}: this passphrase does not open it, or the file is damaged") from None


def _stretched(passphrase: str, salt: bytes, *, n: int, r: int, p: int) -> bytes:
    """The key of a passphrase. Keyboards write the same letter in several ways: NFKC makes them one."""
    letters = unicodedata.normalize("NFKC", passphrase).encode()
    return Scrypt(salt=salt, length=32, n=n, r=r, p=p).derive(letters)


# -- where it comes from -----------------------------------------------------------------------------------


def passphrase_for(path: Path) -> str:
    """The passphrase of a sealed file: from the environment, or from who sits at the terminal."""
    if (given := given_passphrase()) is not None:
        return given
    if path in _typed:
        return _typed[path]
    if not _somebody_is_there():
        raise WrongPassphrase(
            f"{path}: sealed with a passphrase, and there is no terminal to ask at: "
            f"set {PASSPHRASE}, or {PASSPHRASE_FILE} to a file that holds it"
        )
    return prompt(f"passphrase of {path}: ")


def new_passphrase(path: Path, instead: bool = False) -> str:
    """A passphrase to seal a file with; who types it does so twice. instead: of the one that has opened it.

    Raises WrongPassphrase for one that will not do.
    """
    chosen = os.environ.get(NEW_PASSPHRASE) if instead else given_passphrase()
    if chosen is None:
        if not _somebody_is_there():
            variables = NEW_PASSPHRASE if instead else f"{PASSPHRASE} or {PASSPHRASE_FILE}"
            raise WrongPassphrase(f"no terminal to ask for a passphrase at: set {variables}")
        chosen = prompt(f"new passphrase of {path}: ")
        if prompt("once more: ") != chosen:
            raise WrongPassphrase("the two passphrases differ; nothing was changed")
    if len(chosen) < SHORTEST_PASSPHRASE:
        raise WrongPassphrase(
            f"expected a passphrase of at least {SHORTEST_PASSPHRASE} letters, got {len(chosen)}; nothing was changed"
        )
    return chosen


def given_passphrase() -> str | None:
    """What the environment says: the variable itself, or the first line of the file that another one names."""
    if (given := os.environ.get(PASSPHRASE)) is not None:
        return given
    if not (named := os.environ.get(PASSPHRASE_FILE)):
        return None
    try:
        lines = Path(named).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WrongPassphrase(f"{PASSPHRASE_FILE}: {named} cannot be read ({error})") from None
    return lines[0] if lines else ""


def _somebody_is_there() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def prompt(words: str, shown: bool = False) -> str:
    """What is typed. Ctrl-C ends it: an event loop would hear of that only after the answer."""
    with _interruptible():
        try:
            return input(words) if shown else getpass.getpass(words)
        except EOFError:
            raise IdentityError("the input ended before an answer") from None


@contextmanager
def _interruptible() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

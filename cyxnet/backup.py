"""A seed in words: what a person writes down and types back. The words of BIP-39: 24 of 2,048, with a checksum.

The words are the seed itself, not the password of one: a wallet program that reads BIP-39 makes other keys of them.
"""

import difflib
import re
from typing import TYPE_CHECKING

from cyxnet.sealing import IdentityError

if TYPE_CHECKING:
    from mnemonic import Mnemonic

COUNT = 24
UNIQUE_LETTERS = 4  # no two words of the list begin with the same ones


class BackupError(IdentityError, ValueError):
    """What was typed is no backup. The message says which word, and never more of them."""

    code = "bad_backup"


def to_words(seed: bytes) -> str:
    """The 24 words of a seed of 32 bytes, with spaces between."""
    return _list().to_mnemonic(seed)


def from_words(text: str) -> bytes:
    """The seed of 24 words, in any case and spacing, numbered or not, each whole or its first four letters; or of 64
    hex digits. Raises BackupError.
    """
    if re.fullmatch(r"[0-9a-f]{64}", text.strip().lower()):
        return bytes.fromhex(text.strip())
    numbered = re.split(r"[\s,;]+", text.lower())
    typed = [word for each in numbered if (word := re.sub(r"^[0-9]+[.):]?", "", each))]
    if len(typed) != COUNT:
        raise BackupError(f"expected {COUNT} words, got {len(typed)}")
    known = _list().wordlist
    by_beginning = {word[:UNIQUE_LETTERS]: word for word in known}
    words = []
    for number, word in enumerate(typed, start=1):
        whole = word if word in known else by_beginning.get(word) if len(word) == UNIQUE_LETTERS else None
        if whole is None:
            near = difflib.get_close_matches(word, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise BackupError(f"word {number}, {word[:20]!r}, is not in the list of words{hint}")
        words.append(whole)
    try:
        return bytes(_list().to_entropy(words))
    except ValueError:
        raise BackupError(
            f"the checksum of the {COUNT} words does not fit: a word is another one, or two have changed places"
        ) from None


def _list() -> "Mnemonic":
    from mnemonic import Mnemonic  # reads a file of words: only who wants them needs it

    return Mnemonic("english")

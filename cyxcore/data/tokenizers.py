"""Text as numbers: bytes, characters, or pairs of bytes that occur often (BPE). Same text, same numbers, everywhere.

    tokenizer = cx.data.BPETokenizer.train(text, vocab_size=4096, special_tokens=["<|end|>"])
    tokens = tokenizer.encode("hello world")        # (T,) int32
    tokenizer.decode(tokens)                        # "hello world"
    tokenizer.save("tokenizer.json"); tokenizer = cx.data.load_tokenizer("tokenizer.json")

BPE by R. Sennrich, B. Haddow, A. Birch (2016), on UTF-8 bytes, so that no text is unknown.
"""

import heapq
import itertools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct

from cyxcore.data.datasets import host_array
from cyxcore.eager import Tensor
from cyxcore.errors import DataError, FormatError, SpecError, other_format

Array = np.ndarray[Any, Any]
Pair = tuple[int, int]

MAX_VOCAB = 1_000_000
MAX_FILE_BYTES = 64 * 2**20
MAX_VOCAB_BYTES = 256 * 2**20  # of all tokens together: each merge may double
_KEPT_WORDS = 1 << 17  # whose tokens are remembered
_WORD_BYTES = 256  # longer words are cut, and not remembered

# What merges never cross: a word, a number or some signs with the space before, and white space otherwise.
_WORD = re.compile(r" ?[^\W\d_]+| ?\d{1,3}| ?[^\s\w]+| ?_+|\s+(?!\S)|\s+")


class _Base:
    """encode, decode, save; `vocab_size` tokens. special_tokens: texts that are a token of their own."""

    kind = ""

    def __init__(self, size: int, special_tokens: Sequence[str]) -> None:
        if len(set(special_tokens)) != len(special_tokens) or not all(special_tokens):
            raise SpecError(f"tokenizer: expected special tokens that differ and are not empty, got {special_tokens}")
        self.special_tokens = {token: size + place for place, token in enumerate(special_tokens)}
        self._special_of = {place: token for token, place in self.special_tokens.items()}
        self.vocab_size = size + len(special_tokens)
        longest_first = sorted(special_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first))) if special_tokens else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size})"

    def __len__(self) -> int:
        return self.vocab_size

    def encode(self, text: str, special: bool = True) -> Array:
        """(T,) int32. special: whether special tokens in the text are recognised; never for text of strangers."""
        if not isinstance(text, str):
            raise DataError(f"encode: expected text, got {type(text).__name__}")
        try:
            if self._special is None or not special:
                return self._encode(text)
            parts, start = [], 0
            for found in self._special.finditer(text):
                parts += [self._encode(text[start : found.start()]), [self.special_tokens[found[0]]]]
                start = found.end()
            return np.concatenate([*parts, self._encode(text[start:])]).astype(np.int32)
        except UnicodeEncodeError:
            half = re.search("[\ud800-\udfff]", text)
            got = f"U+{ord(half[0]):04X} at character {half.start()}" if half else "one"
            raise DataError(f"encode: expected text that UTF-8 can hold, got half of a pair, {got}") from None

    def decode(self, tokens: Any, errors: str = "replace") -> str:
        """The text. errors: what becomes of bytes that are no UTF-8, as in bytes.decode. Raises DataError."""
        array = np.asarray(host_array(tokens) if isinstance(tokens, Tensor) else tokens)
        if array.size and array.dtype.kind not in "iu":
            raise DataError(f"decode: expected integers, got {array.dtype}")
        flat = array.reshape(-1).astype(np.int64)
        wrong = np.flatnonzero((flat < 0) | (flat >= self.vocab_size))
        if wrong.size:
            got = f"{flat[wrong[0]]} at place {wrong[0]}"
            raise DataError(f"decode: expected tokens 0..{self.vocab_size - 1}, got {got}")
        return self._decode(flat.tolist(), errors)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON, complete or not at all."""
        draft = Path(f"{os.fspath(path)}.partial")
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(self._file())))
        os.replace(draft, path)

    def _encode(self, text: str) -> Any:
        raise NotImplementedError

    def _decode(self, tokens: list[int], errors: str) -> str:
        raise NotImplementedError

    def _file(self) -> "_File":
        return _File(format=FORMAT, kind=self.kind, special_tokens=list(self.special_tokens))


class ByteTokenizer(_Base):
    """A token for each of the 256 bytes."""

    kind = "bytes"

    def __init__(self, special_tokens: Sequence[str] = ()) -> None:
        super().__init__(256, special_tokens)

    def _encode(self, text: str) -> Array:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def _decode(self, tokens: list[int], errors: str) -> str:
        parts = (self._special_of[n].encode() if n >= 256 else bytes((n,)) for n in tokens)
        return b"".join(parts).decode(errors=errors)


class CharTokenizer(_Base):
    """A token for each character of an alphabet. Raises DataError for any other."""

    kind = "characters"

    def __init__(self, alphabet: str, special_tokens: Sequence[str] = ()) -> None:
        """alphabet: a text with every character that will be met; their order is by code point."""
        self.alphabet = "".join(sorted(set(alphabet)))
        super().__init__(len(self.alphabet), special_tokens)
        self._table = np.full(0x110000, -1, np.int32)
        try:
            self._table[_code_points(self.alphabet)] = np.arange(len(self.alphabet))
        except UnicodeEncodeError as error:
            got = f"half of a pair, U+{ord(error.object[error.start]):04X}"
            raise SpecError(f"tokenizer: expected an alphabet that UTF-8 can hold, got {got}") from None

    def _encode(self, text: str) -> Array:
        tokens = self._table[_code_points(text)]
        wrong = np.flatnonzero(tokens < 0)
        if wrong.size:
            got = f"{text[wrong[0]]!r} at character {wrong[0]}"
            raise DataError(f"encode: expected one of the {len(self.alphabet)} characters of the alphabet, got {got}")
        return tokens

    def _decode(self, tokens: list[int], errors: str) -> str:
        size = len(self.alphabet)
        return "".join(self.alphabet[token] if token < size else self._special_of[token] for token in tokens)

    def _file(self) -> "_File":
        return _File(format=FORMAT, kind=self.kind, special_tokens=list(self.special_tokens), alphabet=self.alphabet)


class BPETokenizer(_Base):
    """The 256 bytes, and a token for each merge of two tokens, in order of preference."""

    kind = "bpe"

    def __init__(self, merges: Sequence[Pair], special_tokens: Sequence[str] = ()) -> None:
        """Raises SpecError for a merge of tokens that come later, or twice, and for tokens that grow without bounds."""
        self.merges = [(int(left), int(right)) for left, right in merges]
        self._rank = {pair: place for place, pair in enumerate(self.merges)}
        self._bytes_of, total_bytes = [bytes((n,)) for n in range(256)], 0
        for place, (left, right) in enumerate(self.merges):
            if not (0 <= left < 256 + place and 0 <= right < 256 + place) or self._rank[left, right] != place:
                raise SpecError(f"tokenizer: merge {place}: expected two earlier tokens, once, got {(left, right)}")
            total_bytes += len(self._bytes_of[left]) + len(self._bytes_of[right])
            if total_bytes > MAX_VOCAB_BYTES:
                raise SpecError(
                    f"tokenizer: merge {place}: expected tokens of {MAX_VOCAB_BYTES:,} bytes at most together, "
                    f"got {total_bytes:,}; merge fewer, or shorter ones"
                )
            self._bytes_of.append(self._bytes_of[left] + self._bytes_of[right])
        super().__init__(256 + len(self.merges), special_tokens)
        self._bytes_of += [token.encode() for token in self.special_tokens]
        self._known: dict[str, tuple[int, ...]] = {}

    @classmethod
    def train(cls, texts: str | Iterable[str], vocab_size: int, special_tokens: Sequence[str] = ()) -> "BPETokenizer":
        """Merge the pair that occurs most often (of two alike, the one of smaller tokens) until there are `vocab_size`
        tokens, or no pair occurs twice."""
        if not 256 + len(special_tokens) <= vocab_size <= MAX_VOCAB:
            least = 256 + len(special_tokens)
            raise SpecError(f"train: expected a vocab_size of {least}..{MAX_VOCAB:,}, got {vocab_size}")
        counts: Counter[str] = Counter()
        for text in [texts] if isinstance(texts, str) else texts:
            if not isinstance(text, str):
                raise DataError(f"train: expected text, or several of them, got {type(text).__name__}")
            counts.update(_WORD.findall(text))
        try:
            return cls(_merges(counts, vocab_size - 256 - len(special_tokens)), special_tokens)
        except UnicodeEncodeError as error:
            raise DataError(f"train: expected text that UTF-8 can hold, got {error.object[error.start]!r}") from None

    def _encode(self, text: str) -> Array:
        words = _WORD.findall(text)
        if len(self._known) > _KEPT_WORDS:
            self._known = {}  # another one: other threads may be reading this
        known = self._known
        long: dict[str, tuple[int, ...]] = {}
        for word in set(words).difference(known):
            (known if len(word) <= _WORD_BYTES else long)[word] = self._tokens(word.encode())
        found = (long[word] if word in long else known[word] for word in words)
        return np.fromiter(itertools.chain.from_iterable(found), np.int32)

    def _tokens(self, word: bytes) -> tuple[int, ...]:
        """The merges in order of preference. Long words (white space, say) take the square of their length, so they are
        cut; nothing else depends on that."""
        if len(word) > _WORD_BYTES:
            pieces = (word[start : start + _WORD_BYTES] for start in range(0, len(word), _WORD_BYTES))
            return tuple(itertools.chain.from_iterable(map(self._tokens, pieces)))
        tokens, rank, last = list(word), self._rank, len(self._rank)
        while len(tokens) > 1:
            best = min(rank.get(pair, last) for pair in itertools.pairwise(tokens))
            if best == last:
                break
            tokens = _merged(tokens, self.merges[best], 256 + best)
        return tuple(tokens)

    def _decode(self, tokens: list[int], errors: str) -> str:
        return b"".join(map(self._bytes_of.__getitem__, tokens)).decode(errors=errors)

    def _file(self) -> "_File":
        return _File(format=FORMAT, kind=self.kind, special_tokens=list(self.special_tokens), merges=self.merges)


def _merged(tokens: list[int], pair: Pair, new: int) -> list[int]:
    """Every occurrence of the pair replaced, from the left."""
    left, right = pair
    out: list[int] = []
    for token in tokens:
        if token == right and out and out[-1] == left:
            out[-1] = new
        else:
            out.append(token)
    return out


def _merges(counts: Counter[str], wanted: int) -> list[Pair]:
    """Training: pairs are counted once; a merge changes only the counts of the words that it is in."""
    words = [list(word.encode()) for word in counts]
    times = list(counts.values())
    occurs: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)
    for place, word in enumerate(words):
        for pair in itertools.pairwise(word):
            occurs[pair] += times[place]
            where[pair].add(place)
    heap = [(-count, pair) for pair, count in occurs.items()]
    heapq.heapify(heap)
    merges: list[Pair] = []
    while heap and len(merges) < wanted:
        count, pair = heapq.heappop(heap)
        if occurs[pair] != -count:  # an older count: the newer one is in the heap, too
            continue
        if count > -2:
            break
        changed: set[Pair] = set()
        for place in where.pop(pair):
            before, after = words[place], _merged(words[place], pair, 256 + len(merges))
            for old in itertools.pairwise(before):
                occurs[old] -= times[place]
                changed.add(old)
            for new in itertools.pairwise(after):
                occurs[new] += times[place]
                where[new].add(place)
                changed.add(new)
            words[place] = after
        merges.append(pair)
        for other in changed:
            if occurs[other] > 0:
                heapq.heappush(heap, (-occurs[other], other))
    return merges


def _code_points(text: str) -> Array:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


Token = Annotated[int, Meta(ge=0, le=MAX_VOCAB)]


class _File(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    format: str
    kind: str
    special_tokens: list[str] = []
    alphabet: str = ""
    merges: list[tuple[Token, Token]] = []


FORMAT = "cyx-tokenizer/1"
Tokenizer = ByteTokenizer | CharTokenizer | BPETokenizer


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """What `save` wrote. Raises FormatError for a file that is something else."""
    where = Path(path)
    try:
        if where.stat().st_size > MAX_FILE_BYTES:
            raise FormatError(f"{path}: expected a tokenizer of at most {MAX_FILE_BYTES:,} bytes; is this data?")
        read = msgspec.json.decode(where.read_bytes(), type=_File)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror})") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"{path}: expected a tokenizer as save() writes it: {error}") from None
    if read.format != FORMAT:
        raise FormatError(f"{path}: {other_format(read.format, FORMAT)}")
    try:
        if read.kind == "bytes":
            return ByteTokenizer(read.special_tokens)
        if read.kind == "characters":
            return CharTokenizer(read.alphabet, read.special_tokens)
        if read.kind == "bpe":
            return BPETokenizer(read.merges, read.special_tokens)
    except (SpecError, UnicodeEncodeError) as error:
        raise FormatError(f"{path}: {error}") from None
    raise FormatError(f"{path}: expected a tokenizer of bytes, characters or bpe, got {read.kind[:40]!r}")

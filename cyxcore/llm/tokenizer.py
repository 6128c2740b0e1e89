"""The tokenizer that a GGUF file describes: byte-level BPE ("gpt2") or SentencePiece's BPE with bytes ("llama").

Merging is done by the library `tokenizers`; the file holds all that it needs. Tokens become text by a table of bytes.
"""

import codecs
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from cyxcore.errors import FormatError, MissingExtra, SpecError
from cyxcore.gguf import GGUFFile

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
MAX_TOKENS = 1 << 21
MAX_PIECE_CHARS = 1024  # longer ones are never made by merging: each is cut at every place to find its parents
SPACE = "\u2581"  # what SentencePiece writes for a space

_CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d"
_GPT2 = rf"{_CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"


def _modern(digits: str) -> str:
    """The words of Llama 3 and its kin; they differ in how many digits make one."""
    words = rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    return rf"(?i:{_CONTRACTIONS})|{words}"


class _Fault(Exception):
    """The library refused what the file says."""


class Splitting(NamedTuple):
    """How text is cut into words before bytes are merged: one expression after another."""

    patterns: tuple[str, ...]
    whole_words: bool = False
    """A word that is a token stays one, whatever the merges say."""
    bos: bool = False


SPLITTINGS = {
    "gpt-2": Splitting((_GPT2,)),
    "llama-bpe": Splitting((_modern(r"\p{N}{1,3}"),), whole_words=True, bos=True),
    "qwen2": Splitting((_modern(r"\p{N}"),)),
    "smollm": Splitting((r"\p{N}", _GPT2)),
}
_SAME = {
    "gpt-2": ("phi-2", "mpt", "olmo", "jina-es", "jina-de"),
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "pixtral"),
    "qwen2": ("deepseek-r1-qwen", "stablelm2"),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone"),
}
SPLITTINGS |= {other: SPLITTINGS[name] for name, others in _SAME.items() for other in others}

# Tokens that end an answer, where the file does not say so itself.
ENDS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<|eom_id|>",
    "</s>",
)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2 writes each byte as one printable character: itself where it is one, otherwise from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(rest)}


BYTE_OF = _byte_alphabet()


class Tokenizer:
    """Text to tokens and back."""

    def __init__(self, file: GGUFFile) -> None:
        """Raises FormatError for a file without a tokenizer, or with one that cannot be; MissingExtra."""
        self._where = file.where
        model = file.text("tokenizer.ggml.model")
        if model not in _MODELS:
            raise FormatError(f"{file.where}: expected a tokenizer of {', '.join(_MODELS)}, got {model[:40]!r}")
        texts = list(file.texts("tokenizer.ggml.tokens"))
        if not 1 <= len(texts) <= MAX_TOKENS:
            raise FormatError(f"{file.where}: expected 1 to {MAX_TOKENS} tokens, got {len(texts)}")
        ids = {text: number for number, text in enumerate(texts)}
        if len(ids) != len(texts):
            raise FormatError(f"{file.where}: {len(texts) - len(ids)} tokens appear twice")
        self.size = len(texts)
        types = self._column(file, "token_type", [NORMAL] * self.size)
        self.bos, self.eos = self._special(file, "bos"), self._special(file, "eos")
        self.space_prefix = model == "llama" and file.flag("tokenizer.ggml.add_space_prefix", True)
        splitting = self._splitting(file) if model == "gpt2" else None
        self.add_bos = file.flag("tokenizer.ggml.add_bos_token", splitting is None or splitting.bos)
        self.add_eos = file.flag("tokenizer.ggml.add_eos_token", False)
        ends = [self.eos, *(self._special(file, name) for name in ("eot", "eom"))]
        ends += [ids[text] for text in ENDS if types[ids.get(text, 0)] == CONTROL and text in ids]
        self.ends = frozenset(token for token in ends if token is not None)
        self._texts, self._types = texts, types
        self._pieces = [_piece(text, kind, model == "llama") for text, kind in zip(texts, types, strict=True)]
        self._always = _finder(text for text, kind in zip(texts, types, strict=True) if kind == USER_DEFINED)
        self._specials = _finder(
            text for text, kind in zip(texts, types, strict=True) if kind in (USER_DEFINED, CONTROL)
        )
        self.controls = _finder(text for text, kind in zip(texts, types, strict=True) if kind == CONTROL)
        """Finds the texts of control tokens."""
        self._ids = ids
        try:
            self._merging = _MODELS[model](file, self, splitting)
        except (_Fault, ValueError, TypeError, OverflowError) as error:
            raise FormatError(f"{file.where}: the tokenizer cannot be made: {str(error)[:200]}") from None

    def _column(self, file: GGUFFile, name: str, default: list[Any]) -> list[Any]:
        if f"tokenizer.ggml.{name}" not in file.metadata:
            return default
        values = file.numbers(f"tokenizer.ggml.{name}").tolist()
        if len(values) != self.size:
            raise FormatError(f"{file.where}: {self.size} tokens have {len(values)} values in tokenizer.ggml.{name}")
        return values

    def _special(self, file: GGUFFile, name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        return file.number(key, 0, self.size - 1) if key in file.metadata else None

    def _splitting(self, file: GGUFFile) -> Splitting:
        name = file.text("tokenizer.ggml.pre")
        if name not in SPLITTINGS:
            raise FormatError(f"{file.where}: words are cut as {name[:40]!r}, expected one of {', '.join(SPLITTINGS)}")
        return SPLITTINGS[name]

    def encode(self, text: str, *, special: bool = False, bos: bool | None = None, mark: str = "") -> list[int]:
        """The tokens of a text.

        special: texts of control tokens, as "<|eot_id|>", become those tokens; never say so of a stranger's text alone.
        mark: a character that is not part of the text; what it stands in does not become a control token.
        bos: whether the token of a beginning comes first; by default as the file says, as for that of an end.
        """
        tokens: list[int] = []
        if self.bos is not None and (self.add_bos if bos is None else bos):
            tokens.append(self.bos)
        finder = self._specials if special else self._always
        for part in finder.split(text) if finder else [text]:
            if finder and part in self._ids and finder.fullmatch(part):
                tokens.append(self._ids[part])
            elif part := part.replace(mark, "") if mark else part:
                prepared = part if not self.space_prefix else " " + part
                tokens += self._merging.encode(prepared, add_special_tokens=False).ids
        if self.eos is not None and self.add_eos and bos is None:
            tokens.append(self.eos)
        return tokens

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for: none for control tokens, and for those behind the last that the file names
        (a model's matrices may have more rows). Several tokens may share one character.
        """
        return self._pieces[token] if token < self.size else b""

    def name(self, token: int) -> str:
        """A token as the file writes it."""
        return self._texts[token]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens. What is no UTF-8 becomes U+FFFD; the space that `encode` puts first is taken away."""
        text = b"".join(map(self.piece, tokens)).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.space_prefix else text


class Vocabulary(Protocol):
    """What generating text needs of a tokenizer."""

    ends: frozenset[int]
    """Tokens that end an answer."""

    def piece(self, token: int) -> bytes: ...


class TextStream:
    """Turns tokens into text as they come: only whole characters leave."""

    def __init__(self, tokenizer: Vocabulary) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        return self._decoder.decode(self._tokenizer.piece(token))

    def end(self) -> str:
        """What an unfinished character is shown as."""
        return self._decoder.decode(b"", True)


def _piece(text: str, kind: int, sentencepiece: bool) -> bytes:
    if kind in (CONTROL, UNUSED):
        return b""
    if kind == BYTE or (sentencepiece and kind == UNKNOWN):
        found = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", text)
        return bytes([int(found[1], 16)]) if found else text.encode()
    if kind == USER_DEFINED:
        return text.encode()
    if sentencepiece:
        return text.replace(SPACE, " ").encode()
    return b"".join(bytes([BYTE_OF[char]]) if char in BYTE_OF else char.encode() for char in text)


def _finder(texts: Iterable[str]) -> re.Pattern[str] | None:
    """Finds the longest of some texts; splitting by it keeps what was found."""
    ordered = sorted((text for text in texts if text), key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, ordered)) + ")") if ordered else None


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise MissingExtra("llm: tokenizers are needed: pip install 'cyx[llm]'") from None
    return tokenizers


def _made(function: Any, *arguments: Any, **options: Any) -> Any:
    """A call of the library, whose own errors are bare Exceptions or panics."""
    try:
        return function(*arguments, **options)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        raise _Fault(str(error)) from None


def _bpe(file: GGUFFile, tokenizer: Tokenizer, splitting: Splitting | None) -> Any:
    library = _library()
    assert splitting is not None
    merges = []
    for merge in file.texts("tokenizer.ggml.merges"):
        middle = merge.find(" ", 1)  # the first piece may begin with one
        if not 0 < middle < len(merge) - 1:
            raise ValueError(f"expected two pieces with a space between as a merge, got {merge[:80]!r}")
        merges.append((merge[:middle], merge[middle + 1 :]))
    model = _made(library.models.BPE, tokenizer._ids, merges, ignore_merges=splitting.whole_words)
    made = library.Tokenizer(model)
    steps = [library.pre_tokenizers.Split(library.Regex(p), "isolated") for p in splitting.patterns]
    steps.append(library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    made.pre_tokenizer = library.pre_tokenizers.Sequence(steps)
    return made


def _sentencepiece(file: GGUFFile, tokenizer: Tokenizer, _: Splitting | None) -> Any:
    """Scores say which merge comes first. The library wants a list of merges: every way to cut a piece into two."""
    library = _library()
    scores = tokenizer._column(file, "scores", [0.0] * tokenizer.size)
    if any(score != score for score in scores):
        raise ValueError("a score is no number")
    mergeable = {text for text, kind in zip(tokenizer._texts, tokenizer._types, strict=True) if kind in _MERGEABLE}
    ranked = []
    for token, text in enumerate(tokenizer._texts):
        if text in mergeable and 2 <= len(text) <= MAX_PIECE_CHARS:
            for cut in range(1, len(text)):
                if text[:cut] in mergeable and text[cut:] in mergeable:
                    ranked.append((-scores[token], token, cut, text))
    ranked.sort()
    merges = [(text[:cut], text[cut:]) for _, _, cut, text in ranked]
    unknown = [text for text, kind in zip(tokenizer._texts, tokenizer._types, strict=True) if kind == UNKNOWN]
    model = _made(
        library.models.BPE,
        tokenizer._ids,
        merges,
        unk_token=unknown[0] if unknown else None,
        fuse_unk=True,
        byte_fallback=True,
    )
    made = library.Tokenizer(model)
    made.normalizer = library.normalizers.Replace(" ", SPACE)
    return made


_MERGEABLE = (NORMAL, USER_DEFINED)
_MODELS = {"gpt2": _bpe, "llama": _sentencepiece}


def check_tokens(tokens: Sequence[int], vocabulary: int) -> None:
    """Raises SpecError for a token that a model does not know."""
    for token in tokens:
        if not 0 <= token < vocabulary:
            raise SpecError(f"prompt: expected tokens from 0 to {vocabulary - 1}, got {token}")

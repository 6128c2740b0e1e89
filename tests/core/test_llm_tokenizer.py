"""Tokenizers from metadata, against the plain algorithms; text that comes token by token."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cyxcore.errors import FormatError
from cyxcore.gguf import GGUFFile, save
from cyxcore.llm.tokenizer import BYTE_OF, SPACE, TextStream, Tokenizer

TEXTS = [
    "Hello world, hello  there!\n\n  1234567 times",
    "I'll say: it's 'quoted' — naïve café…",
    "日本語 and 👩‍👩‍👧 together\t\ttabs",
    "",
    " ",
    "   leading",
    "a" * 200,
    "\x00\x1f control",
]
CHAR_OF = {byte: char for char, byte in BYTE_OF.items()}


def opened(path: Path, **values: Any) -> Tokenizer:
    save(path, {f"tokenizer.ggml.{key}": value for key, value in values.items()}, {})
    return Tokenizer(GGUFFile(path))


def bpe_vocabulary(words: list[str], count: int) -> tuple[list[str], list[str]]:
    """Tokens and merges learned from words, most frequent pair first."""
    sequences = [[CHAR_OF[byte] for byte in word.encode()] for word in words]
    tokens, merges = [CHAR_OF[byte] for byte in range(256)], []
    for _ in range(count):
        pairs: dict[tuple[str, str], int] = {}
        for sequence in sequences:
            for pair in zip(sequence, sequence[1:], strict=False):
                pairs[pair] = pairs.get(pair, 0) + 1
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(" ".join(best))
        if "".join(best) not in tokens:
            tokens.append("".join(best))
        sequences = [merged(sequence, best) for sequence in sequences]
    return tokens, merges


def merged(sequence: list[str], pair: tuple[str, str]) -> list[str]:
    out, at = [], 0
    while at < len(sequence):
        here = tuple(sequence[at : at + 2]) == pair
        out.append("".join(pair) if here else sequence[at])
        at += 1 + here
    return out


def plain_bpe(word: str, merges: list[str]) -> list[str]:
    """The algorithm as GPT-2 has it: the earliest learned pair that is there, everywhere, until there is none."""
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
    parts = [CHAR_OF[byte] for byte in word.encode()]
    while True:
        found = [(ranks[pair], pair) for pair in zip(parts, parts[1:], strict=False) if pair in ranks]
        if not found:
            return parts
        parts = merged(parts, min(found)[1])


WORDS = "hello world Hello there the naïve café times quoted tabs together lo wor llo el".split()
TOKENS, MERGES = bpe_vocabulary(WORDS, 30)
BPE: dict[str, Any] = {"model": "gpt2", "pre": "gpt-2", "tokens": TOKENS, "merges": MERGES}


@pytest.mark.parametrize("word", [*WORDS, "helloworld", "xyzzy", "é", "👩", "aaaaaaa"])
def test_bytes_are_merged_in_the_order_of_the_file(word: str, tmp_path: Path) -> None:
    tokenizer = opened(tmp_path / "a.gguf", **BPE)
    assert [tokenizer.name(token) for token in tokenizer.encode(word)] == plain_bpe(word, MERGES)


CUTS = {
    "gpt-2": (" it's 1234!?\n\n x", [" it", "'s", " 1234", "!?", "\n\n", " x"]),
    "llama-bpe": (" IT'S 1234567!?\n\n x", [" IT", "'S", " ", "123", "456", "7", "!?\n\n", " x"]),
    "qwen2": (" IT'S 123!?\n\n x", [" IT", "'S", " ", "1", "2", "3", "!?\n\n", " x"]),
    "smollm": (" it's 123!?", [" it", "'s", " ", "1", "2", "3", "!?"]),
}


@pytest.mark.parametrize("name", CUTS)
def test_words_are_cut_as_the_file_says(name: str, tmp_path: Path) -> None:
    """Every piece of the text is a token and can be merged, so only the cuts end a token."""
    text, expected = CUTS[name]
    spelled = ["".join(CHAR_OF[byte] for byte in word.encode()) for word in expected]
    whole = "".join(spelled)
    every = {whole[i:j] for i in range(len(whole)) for j in range(i + 1, len(whole) + 1)}
    tokens = [*TOKENS[:256], *sorted(word for word in every if len(word) > 1)]
    ordered = sorted(every, key=lambda word: (len(word), word))
    merges = [f"{word[:cut]} {word[cut:]}" for word in ordered for cut in range(1, len(word))]
    tokenizer = opened(tmp_path / "a.gguf", **(BPE | {"pre": name, "tokens": tokens, "merges": merges}))
    assert [tokenizer.piece(token).decode() for token in tokenizer.encode(text, bos=False)] == expected


def sentencepiece(scores_by_text: dict[str, float]) -> dict[str, Any]:
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *scores_by_text]
    types = [2, 3, 3, *[6] * 256, *[1] * len(scores_by_text)]
    scores = [0.0] * 259 + list(scores_by_text.values())
    return {
        "model": "llama",
        "tokens": texts,
        "scores": np.array(scores, np.float32),
        "token_type": np.array(types, np.int32),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }


def plain_sentencepiece(text: str, scores: dict[str, float]) -> list[str]:
    """The best-scored pair of neighbours, the first of equals, until none is a piece."""
    parts = list(text.replace(" ", SPACE))
    while True:
        found = [
            (-scores[a + b], at) for at, (a, b) in enumerate(zip(parts, parts[1:], strict=False)) if a + b in scores
        ]
        if not found:
            break
        at = min(found)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [each for p in parts for each in ([p] if p in scores else [f"<0x{byte:02X}>" for byte in p.encode()])]


def pieces() -> dict[str, float]:
    dice = np.random.default_rng(3)
    source = SPACE + SPACE.join(["hello", "world", "there", "hell", "the", "times", "naïve"])
    texts = sorted({source[i : i + n] for n in range(1, 7) for i in range(len(source) - n)})
    return dict(zip(texts, dice.permutation(len(texts)).astype(float).tolist(), strict=True))


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_merged_by_their_scores(text: str, tmp_path: Path) -> None:
    scores = pieces()
    tokenizer = opened(tmp_path / "a.gguf", **sentencepiece(scores))
    expected = plain_sentencepiece(" " + text, scores) if text else []
    assert [tokenizer.name(token) for token in tokenizer.encode(text, bos=False)] == expected


@pytest.mark.parametrize("values", [BPE, sentencepiece(pieces())], ids=["bpe", "sentencepiece"])
@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_whole_and_also_token_by_token(values: dict[str, Any], text: str, tmp_path: Path) -> None:
    tokenizer = opened(tmp_path / "a.gguf", **values)
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    stream = TextStream(tokenizer)
    parts = [stream.add(token) for token in tokens]
    assert ("".join(parts) + stream.end()).removeprefix(" " if values is not BPE and text else "") == text
    assert all("\ufffd" not in part for part in parts)


def test_an_unfinished_character_is_shown_at_the_end_only(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path / "a.gguf", **BPE)
    stream = TextStream(tokenizer)
    assert [stream.add(token) for token in tokenizer.encode("ü")[:1]] == [""]
    assert stream.end() == "\ufffd"


SPECIAL = BPE | {
    "tokens": [*TOKENS, "<|im_start|>", "<|im_end|>", "[user]"],
    "token_type": np.array([1] * len(TOKENS) + [3, 3, 4], np.int32),
    "bos_token_id": len(TOKENS),
    "add_bos_token": True,
}


def test_control_tokens_are_made_of_text_only_where_that_is_asked_for(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path / "a.gguf", **SPECIAL)
    start, end, user = range(len(TOKENS), len(TOKENS) + 3)
    assert tokenizer.encode("<|im_start|>hi[user]<|im_end|>", special=True, bos=False)[0] == start
    plain = tokenizer.encode("<|im_start|>hi[user]<|im_end|>", bos=False)
    assert start not in plain and end not in plain and user in plain
    assert tokenizer.decode(plain) == "<|im_start|>hi[user]<|im_end|>"
    assert tokenizer.encode("hi")[0] == start and tokenizer.decode([start, end]) == ""
    assert tokenizer.ends == {end}


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "model": (BPE | {"model": "bert"}, "a tokenizer of gpt2, llama, got 'bert'"),
    "cut": (BPE | {"pre": "unheard"}, "words are cut as 'unheard', expected one of gpt-2"),
    "twice": (BPE | {"tokens": [*TOKENS, "a"]}, "1 tokens appear twice"),
    "merge": (BPE | {"merges": ["ab"]}, "two pieces with a space between"),
    "merge of nothing": (BPE | {"merges": ["a b"]}, "the tokenizer cannot be made"),
    "types": (BPE | {"token_type": np.array([1], np.int32)}, "tokens have 1 values in tokenizer.ggml.token_type"),
    "bos": (BPE | {"bos_token_id": 10**6}, "bos_token_id: expected 0 to"),
    "score": (sentencepiece({"a": float("nan")}), "a score is no number"),
    "kind": (BPE | {"tokens": np.array([1, 2])}, "expected an array of strings"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_tokenizer_is_one_clear_error(name: str, tmp_path: Path) -> None:
    values, expected = BROKEN[name]
    with pytest.raises(FormatError, match=expected):
        opened(tmp_path / "a.gguf", **values)


def test_mutated_tokenizers_encode_or_are_refused(tmp_path: Path) -> None:
    dice = np.random.default_rng(5)
    for values in (SPECIAL, sentencepiece(pieces())):
        opened(tmp_path / "a.gguf", **values)
        whole = np.frombuffer((tmp_path / "a.gguf").read_bytes(), np.uint8)
        for _ in range(300):
            raw = whole.copy()
            at, size = dice.integers(24, len(raw)), dice.integers(1, 9)
            raw[at : at + size] = dice.choice([0, 1, 0x7F, 0x80, 0xFF, dice.integers(256)])
            (tmp_path / "b.gguf").write_bytes(raw.tobytes())
            try:
                tokenizer = Tokenizer(GGUFFile(tmp_path / "b.gguf"))
                for text in TEXTS:
                    tokenizer.decode(tokenizer.encode(text, special=True))
            except FormatError:
                pass

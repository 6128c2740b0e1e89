"""Tokenizers and windows of tokens."""

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cyxcore as cx
from cyxcore.data import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    DataLoader,
    TokenWindows,
    join_documents,
    load_tokenizer,
    tokenizers,
)
from cyxcore.data.tokenizers import _WORD
from cyxcore.errors import DataError, FormatError, SpecError

TEXT = "the cat sat on the mat, and the cat of the other hat 123 ünïcödé 猫 🐈\n    the end\n" * 5
BPE = BPETokenizer.train(TEXT, 300, ["<|end|>"])


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(["<|end|>"]), CharTokenizer(TEXT, ["<|end|>"]), BPE])
def test_text_is_encoded_and_decoded_to_itself(tokenizer: Any, tmp_path: Path) -> None:
    tokens = tokenizer.encode(TEXT + "<|end|>" + TEXT)
    assert tokens.dtype == np.int32 and tokens.max() < tokenizer.vocab_size == len(tokenizer)
    assert tokenizer.decode(tokens) == TEXT + "<|end|>" + TEXT
    assert (tokens == tokenizer.special_tokens["<|end|>"]).sum() == 1
    tokenizer.save(tmp_path / "t.json")
    again = load_tokenizer(tmp_path / "t.json")
    assert type(again) is type(tokenizer) and (again.encode(TEXT) == tokenizer.encode(TEXT)).all()
    assert again.special_tokens == tokenizer.special_tokens


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.text(max_size=60))
def test_any_text_comes_back(text: str) -> None:
    assert BPE.decode(BPE.encode(text, special=False)) == text
    assert "".join(_WORD.findall(text)) == text


def slow_training(text: str, merges: int) -> list[tuple[int, int]]:
    """The definition: count all pairs anew after every merge."""
    words = [(list(word.encode()), times) for word, times in Counter(_WORD.findall(text)).items()]
    found: list[tuple[int, int]] = []
    for new in range(256, 256 + merges):
        counts: Counter[tuple[int, int]] = Counter()
        for word, times in words:
            for pair in itertools.pairwise(word):
                counts[pair] += times
        if not counts or max(counts.values()) < 2:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        found.append(best)
        for word, _ in words:
            place = 0
            while place < len(word) - 1:
                if (word[place], word[place + 1]) == best:
                    word[place : place + 2] = [new]
                place += 1
    return found


def test_training_merges_the_most_frequent_pair_each_time() -> None:
    text = Path(__file__).read_text()
    assert BPETokenizer.train(text, 256 + 150).merges == slow_training(text, 150)
    assert BPETokenizer.train("ab ab", 1000).merges == slow_training("ab ab", 744)


def test_encoding_takes_merges_in_the_order_of_training() -> None:
    words = {word: BPE.encode(word).tolist() for word in ("the", " the", " cat")}
    assert len(words[" the"]) == 1 and len(words[" cat"]) == 1
    tokenizer = BPETokenizer([(98, 99), (97, 98)])  # "bc" is preferred to "ab"
    assert tokenizer.encode("abc").tolist() == [97, 256]


def test_special_tokens_in_the_text_of_strangers_are_text() -> None:
    assert BPE.special_tokens["<|end|>"] not in BPE.encode("a<|end|>b", special=False)
    longest = ByteTokenizer(["<a>", "<a><b>"])
    assert longest.encode("<a><b>").tolist() == [257]


def test_long_runs_take_no_square_of_time() -> None:
    text = " " * 100_000 + "x" * 100_000
    assert BPE.decode(BPE.encode(text)) == text


def test_forgetting_words_does_not_disturb_who_encodes_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "_KEPT_WORDS", 3)
    tokenizer = BPETokenizer(BPE.merges)
    tokenizer.encode("one two three")
    cut = tokenizer._tokens

    def interrupted(word: bytes) -> tuple[int, ...]:
        monkeypatch.setattr(tokenizer, "_tokens", cut)
        tokenizer.encode("another text")  # as another thread does
        tokenizer.encode("and one more")
        return cut(word)

    monkeypatch.setattr(tokenizer, "_tokens", interrupted)
    assert tokenizer.decode(tokenizer.encode("one two three four")) == "one two three four"


def test_long_words_are_not_remembered() -> None:
    tokenizer = BPETokenizer(BPE.merges)
    text = "short " + "x" * 10_000 + " " + "x" * 10_000
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert list(tokenizer._known) == ["short"]


@pytest.mark.parametrize(
    "make, kind, said",
    [
        (lambda: BPE.encode(b"bytes"), DataError, "encode: expected text, got bytes"),
        (lambda: BPE.encode("a\ud800"), DataError, r"got half of a pair, U\+D800 at character 1"),
        (lambda: BPETokenizer.train("a\ud800 a\ud800", 300), DataError, "expected text that UTF-8 can hold"),
        (lambda: BPETokenizer.train(["a", 5], 300), DataError, "train: expected text, or several of them, got int"),
        (lambda: BPE.decode([1, 5000]), DataError, r"expected tokens 0..\d+, got 5000 at place 1"),
        (lambda: BPE.decode([0.5]), DataError, "expected integers, got float64"),
        (
            lambda: CharTokenizer("abc").encode("abd"),
            DataError,
            "the 3 characters of the alphabet, got 'd' at character 2",
        ),
        (lambda: BPETokenizer.train("x", 100), SpecError, "expected a vocab_size of 256..1,000,000, got 100"),
        (lambda: BPETokenizer([(300, 1)]), SpecError, r"merge 0: expected two earlier tokens, once, got \(300, 1\)"),
        (lambda: ByteTokenizer(["a", "a"]), SpecError, "special tokens that differ"),
        (lambda: CharTokenizer("a\ud800"), SpecError, r"an alphabet that UTF-8 can hold, got half of a pair, U\+D800"),
    ],
)
def test_what_cannot_be_is_one_clear_error(make: Any, kind: Any, said: str) -> None:
    with pytest.raises(kind, match=said):
        make()


@pytest.mark.parametrize(
    "content, said",
    [
        (b"[]", "expected a tokenizer as save\\(\\) writes it"),
        (
            b'{"format": "cyx-tokenizer/2", "kind": "bpe"}',
            "by a newer Cyx .cyx-tokenizer/2; this one reads cyx-tokenizer/1",
        ),
        (b'{"format": "cyx-tokenizer/1", "kind": "words"}', "bytes, characters or bpe, got 'words'"),
        (b'{"format": "cyx-tokenizer/1", "kind": "bpe", "merges": [[1, 999]]}', "expected two earlier tokens"),
        (
            b'{"format": "cyx-tokenizer/1", "kind": "bpe", "merges": [[1, 2], [1, 2]]}',
            "expected two earlier tokens, once",
        ),
        (
            b'{"format": "cyx-tokenizer/1", "kind": "bytes", "special_tokens": ["\\ud800"]}',
            "expected a tokenizer|t.json",
        ),
    ],
)
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(FormatError, match=said):
        load_tokenizer(tmp_path / "t.json")


def test_tokens_that_double_with_every_merge_are_refused_before_they_take_the_memory(tmp_path: Path) -> None:
    merges = [[97, 97], *([256 + n, 256 + n] for n in range(60))]
    (tmp_path / "t.json").write_text(json.dumps({"format": "cyx-tokenizer/1", "kind": "bpe", "merges": merges}))
    with pytest.raises(FormatError, match="merge 27: expected tokens of 268,435,456 bytes at most together"):
        load_tokenizer(tmp_path / "t.json")


# windows ------------------------------------------------------------------------------------------


def test_windows_and_their_targets() -> None:
    windows = TokenWindows(np.arange(10), length=4, stride=3)
    assert len(windows) == 2
    assert [part.tolist() for part in windows[1]] == [[3, 4, 5, 6], [4, 5, 6, 7]]
    assert len(TokenWindows(np.arange(9), 4)) == 2 and len(TokenWindows(np.arange(8), 4)) == 1
    ((x, y),) = DataLoader(windows, batch_size=8, shuffle=True, seed=0)
    assert x.shape == y.shape == (2, 4) and x.dtype == "int64" and (y - x).numpy().min() == 1


def test_documents_are_joined_without_padding() -> None:
    assert join_documents([[1, 2], [], [3]], separator=9).tolist() == [1, 2, 9, 9, 3, 9]


def test_tokens_that_fill_no_window_are_refused() -> None:
    with pytest.raises(DataError, match="expected at least 9 tokens for a window of 8 and its target, got 8"):
        TokenWindows(cx.arange(8), 8)
    with pytest.raises(DataError, match=r"expected tokens \(T,\) of integers, got float64 \(3,\)"):
        TokenWindows(np.zeros(3), 1)
    with pytest.raises(SpecError, match="expected length and stride >= 1, got 2 and 0"):
        TokenWindows(np.arange(8), 2, 0)

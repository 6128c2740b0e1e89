"""Tokens as rows for language models: windows of one length, and the same moved on by one as targets."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from cyxcore.creation import from_numpy
from cyxcore.data.datasets import Dataset, _checked, host_array
from cyxcore.eager import Tensor
from cyxcore.errors import DataError, SpecError

Array = np.ndarray[Any, Any]


class TokenWindows(Dataset):
    """Row i is (tokens[s : s + length], tokens[s + 1 : s + length + 1]) with s = i * stride, both int64.

    tokens: (T,) integers, for instance of a tokenizer, or a memory map of a file. stride: `length` unless given. What
    is left at the end and fills no window is left out. Raises DataError for fewer than length + 1 tokens.
    """

    def __init__(self, tokens: Any, length: int, stride: int | None = None) -> None:
        array = host_array(tokens) if isinstance(tokens, Tensor) else np.asanyarray(tokens)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise DataError(f"TokenWindows: expected tokens (T,) of integers, got {array.dtype} {array.shape}")
        self.tokens, self.length, self.stride = array, length, length if stride is None else stride
        if length < 1 or self.stride < 1:
            raise SpecError(f"TokenWindows: expected length and stride >= 1, got {length} and {self.stride}")
        if len(array) < length + 1:
            raise DataError(
                f"TokenWindows: expected at least {length + 1:,} tokens for a window of {length:,} and its target, "
                f"got {len(array):,}; use more text or a shorter length"
            )

    def __len__(self) -> int:
        return (len(self.tokens) - 1 - self.length) // self.stride + 1

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.take_rows(np.array([_checked(row, len(self))]))
        return inputs[0], targets[0]

    def take_rows(self, rows: Array) -> tuple[Tensor, Tensor]:
        """Several windows at once: two tensors (len(rows), length)."""
        found = self.tokens[(rows * self.stride)[:, None] + np.arange(self.length + 1)].astype(np.int64)
        return from_numpy(found[:, :-1].copy()), from_numpy(found[:, 1:].copy())


def join_documents(documents: Iterable[Any], separator: int) -> Array:
    """Documents (lists of tokens) end to end, `separator` behind each: (T,) int32, for TokenWindows without padding."""
    parts = [np.append(np.asarray(document, np.int32), np.int32(separator)) for document in documents]
    if not parts:
        raise DataError("join_documents: expected at least one document, got none")
    return np.concatenate(parts)

"""Sequences of different lengths. A packed one is the padded one with its lengths, as recurrent modules take it."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from cyxcore.dtype import INEXACT
from cyxcore.errors import GraphError, ShapeError
from cyxcore.functional import concat, stack
from cyxcore.inplace import InPlace
from cyxcore.values import Value

__all__ = (
    "PackedSequence pack_padded_sequence pack_sequence pad_packed_sequence pad_sequence unpack_sequence unpad_sequence"
).split()


class _Rows(NamedTuple):
    padded: Any
    lengths: Any
    batch_first: bool


class PackedSequence(_Rows):
    """padded: (N, T, ...) or (T, N, ...); lengths: (N,) integers. pack_padded_sequence and pack_sequence make it.

    Raises ShapeError for anything else, such as what PyTorch's own is made of. As in PyTorch it has four places: data,
    batch_sizes, sorted_indices and unsorted_indices. They are made when they are asked for, by name, place or in turn;
    a graph, which does not know the lengths, raises GraphError then.
    """

    __slots__ = ()

    def __new__(cls, padded: Any, lengths: Any, batch_first: bool = False) -> "PackedSequence":
        if isinstance(padded, Value) and isinstance(lengths, Value):  # and no leaves that stand for them
            if padded.ndim < 2 or lengths.shape != (padded.shape[0 if batch_first else 1],):
                raise ShapeError(
                    f"PackedSequence: expected padded rows and as many lengths, got {padded.shape} and "
                    f"{lengths.shape}; make it with pack_padded_sequence or pack_sequence"
                )
        return super().__new__(cls, padded, lengths, batch_first)

    @property
    def data(self) -> Any:
        """Every step that is there, (sum of the lengths, ...): the first of all rows, the longest first, and so on."""
        rows = self.padded if self.batch_first else self.padded.transpose(0, 1)
        lengths, order = self._order()
        whole = rows.shape[1]
        step, place = np.nonzero(lengths[order] > np.arange(whole)[:, None])
        return rows.reshape(-1, *rows.shape[2:])[self._numbers(order[place] * whole + step)]

    @property
    def batch_sizes(self) -> Any:
        """How many rows have each step, (T of the longest,) int64."""
        lengths, _ = self._order()
        return self._numbers((lengths > np.arange(lengths.max())[:, None]).sum(1))

    @property
    def sorted_indices(self) -> Any:
        """The rows from the longest on, (N,) int64."""
        return self._numbers(self._order()[1])

    @property
    def unsorted_indices(self) -> Any:
        """Where each row is among sorted_indices, (N,) int64."""
        return self._numbers(np.argsort(self._order()[1]))

    def __getitem__(self, place: Any) -> Any:
        return (self.data, self.batch_sizes, self.sorted_indices, self.unsorted_indices)[place]

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[Any]:
        return (self[place] for place in range(4))

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self.padded, self.lengths, self.batch_first

    def _order(self) -> tuple[Any, Any]:
        if not isinstance(self.lengths, InPlace):
            raise GraphError(
                "PackedSequence: a graph does not know how long its rows are; compute the loss of padded rows with "
                "ignore_index or a mask"
            )
        lengths = np.asarray(self.lengths.tolist(), np.int64)  # type: ignore[attr-defined]
        return lengths, np.argsort(-lengths, kind="stable")

    def _numbers(self, values: Any) -> Any:
        return self.lengths._constant(values, "int64")


def pack_padded_sequence(
    input: Any, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True
) -> PackedSequence:
    """Rows of different lengths, for RNN, LSTM and GRU. They need not be sorted, whatever enforce_sorted says."""
    known = lengths if isinstance(lengths, Value) else input._constant(list(lengths), "int64")
    rows = input.shape[0 if batch_first else 1]
    if known.shape != (rows,):
        raise ShapeError(f"pack_padded_sequence: expected {rows} lengths, got {known.shape}")
    return PackedSequence(input, known, batch_first)


def pad_packed_sequence(
    sequence: PackedSequence, batch_first: bool = False, padding_value: float = 0.0, total_length: int | None = None
) -> tuple[Any, Any]:
    """(the rows padded to the longest, or to total_length; their lengths).

    A graph does not know the longest: there they are as long as what was packed.
    """
    data = sequence.padded if sequence.batch_first else sequence.padded.transpose(0, 1)
    known = isinstance(sequence.lengths, InPlace)
    longest = int(sequence.lengths.max().item()) if known else data.shape[1]
    whole = longest if total_length is None else total_length
    if whole < longest:
        raise ShapeError(f"pad_packed_sequence: expected a total_length of at least {longest}, got {whole}")
    if whole > data.shape[1]:
        missing = data._constant(0.0, data.dtype).broadcast_to(data.shape[0], whole - data.shape[1], *data.shape[2:])
        data = concat([data, missing], 1)
    data = data[:, :whole]
    steps = sequence.lengths._constant(range(whole), "int64").reshape(1, -1)
    outside = steps >= sequence.lengths.reshape(-1, 1)
    data = data.masked_fill(outside.reshape(*outside.shape, *(1,) * (data.ndim - 2)), padding_value)
    return (data if batch_first else data.transpose(0, 1)), sequence.lengths


def pad_sequence(sequences: Sequence[Any], batch_first: bool = False, padding_value: float = 0.0) -> Any:
    """Tensors (T, ...) of different T as one (T, N, ...), or (N, T, ...) with batch_first."""
    if not len(sequences):
        raise ShapeError("pad_sequence: expected at least one tensor, got none")
    whole = max(x.shape[0] for x in sequences)
    rows = []
    for x in sequences:
        pad = x._constant(padding_value if x.dtype in INEXACT else int(padding_value), x.dtype)
        rows.append(concat([x, pad.broadcast_to(whole - x.shape[0], *x.shape[1:])]))
    return stack(rows, 0 if batch_first else 1)


def pack_sequence(sequences: Sequence[Any], enforce_sorted: bool = True) -> PackedSequence:
    """Tensors (T, ...) of different T, for RNN, LSTM and GRU. They need not be sorted, whatever enforce_sorted says."""
    return pack_padded_sequence(pad_sequence(sequences), [x.shape[0] for x in sequences])


def unpad_sequence(padded_sequences: Any, lengths: Any, batch_first: bool = False) -> list[Any]:
    """The rows of what pad_sequence made: tensors (T, ...) of the T that lengths (N,) say."""
    rows = padded_sequences if batch_first else padded_sequences.transpose(0, 1)
    return [row[:length] for row, length in zip(rows.unbind(0), list(map(int, lengths)), strict=True)]


def unpack_sequence(packed_sequences: PackedSequence) -> list[Any]:
    """The rows of a packed sequence: tensors (T, ...)."""
    return unpad_sequence(*pad_packed_sequence(packed_sequences, batch_first=True), batch_first=True)

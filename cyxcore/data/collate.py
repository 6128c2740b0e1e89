"""Samples become a batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cyxcore.creation import from_numpy
from cyxcore.data.datasets import host_array
from cyxcore.eager import Tensor
from cyxcore.errors import ShapeError, SpecError

Array = np.ndarray[Any, Any]


def default_collate(samples: Sequence[Any]) -> Any:
    """Samples side by side: tensors, arrays and numbers become a tensor (N, …); text a list; tuples, lists and
    dictionaries the same of their parts. Raises ShapeError naming the sample that does not fit the first.
    """
    return _collated(samples, stacked)


def pad_collate(samples: Sequence[Any], padding_value: float = 0) -> Any:
    """default_collate for arrays of different lengths: (N, longest, …), filled up with `padding_value` at the end.

    A sample (tokens, label) becomes a batch (tokens (N, T), label (N,)). Lengths are `[len(s[0]) for s in samples]`.
    """
    return _collated(samples, lambda arrays: padded(arrays, padding_value))


def packed_collate(samples: Sequence[Any]) -> dict[str, Tensor]:
    """Sequences end to end, without padding: {"values": (T, …), "offsets": (N + 1,) int64}.

    Sequence i is values[offsets[i] : offsets[i + 1]].
    """
    if found := next((sample for sample in samples if isinstance(sample, tuple | Mapping)), None):
        raise SpecError(
            f"packed_collate: expected a sequence a sample, got a {type(found).__name__}; pack one part of the samples "
            "in a collate_fn of your own, or use pad_collate, which takes the parts of each"
        )
    arrays = [_array(sample) for sample in samples]
    if any(array.ndim == 0 or array.shape[1:] != arrays[0].shape[1:] for array in arrays):
        told = ", ".join(str(array.shape) for array in arrays[:8])
        raise ShapeError(f"packed_collate: expected sequences (length, …) that agree but for length, got {told}")
    offsets = np.cumsum([0, *(len(array) for array in arrays)], dtype=np.int64)
    return {"values": Tensor(np.concatenate(arrays)), "offsets": from_numpy(offsets)}


def stacked(arrays: Sequence[Array]) -> Tensor:
    """(N, …). Raises ShapeError."""
    for place, array in enumerate(arrays):
        if array.shape != arrays[0].shape:
            raise ShapeError(
                f"collate: expected samples of one shape, got {arrays[0].shape} first and {array.shape} in place "
                f"{place} of the batch; cut or resize them, or use collate_fn=cx.data.pad_collate"
            )
    return Tensor(np.stack(arrays))


def padded(arrays: Sequence[Array], padding_value: float) -> Tensor:
    """(N, longest, …); numbers are stacked. Raises ShapeError when they differ in more than their length."""
    if arrays[0].ndim == 0:
        return stacked(arrays)
    if any(array.shape[1:] != arrays[0].shape[1:] for array in arrays):
        told = ", ".join(str(array.shape) for array in arrays[:8])
        raise ShapeError(f"pad_collate: expected samples that differ in their first axis only, got {told}")
    longest = max(len(array) for array in arrays)
    out = np.full((len(arrays), longest, *arrays[0].shape[1:]), padding_value, arrays[0].dtype)
    for row, array in enumerate(arrays):
        out[row, : len(array)] = array
    return from_numpy(out)


def _collated(samples: Sequence[Any], join: Callable[[Sequence[Array]], Tensor]) -> Any:
    first = samples[0]
    if isinstance(first, (str, bytes)) or first is None:
        return list(samples)
    if isinstance(first, Mapping):
        for place, sample in enumerate(samples):
            if set(sample) != set(first):
                raise ShapeError(
                    f"collate: expected samples with the keys {sorted(map(str, first))}, got "
                    f"{sorted(map(str, sample))} in place {place} of the batch"
                )
        return {key: _collated([sample[key] for sample in samples], join) for key in first}
    if isinstance(first, (tuple, list)):
        if any(len(sample) != len(first) for sample in samples):
            raise ShapeError(
                f"collate: expected samples of {len(first)} parts each, got {[len(s) for s in samples][:8]}"
            )
        parts = [_collated(part, join) for part in zip(*samples, strict=True)]
        if hasattr(first, "_fields"):
            return type(first)(*parts)
        return tuple(parts) if isinstance(first, tuple) else parts
    return join([_array(sample) for sample in samples])


def _array(sample: Any) -> Array:
    if isinstance(sample, Tensor):
        return host_array(sample)
    if isinstance(sample, float):
        return np.float32(sample)  # type: ignore[return-value]
    array = np.asarray(sample)
    if array.dtype.kind not in "biufc":
        got = type(sample).__name__
        raise SpecError(
            f"collate: expected tensors, arrays, numbers, text, or tuples and dictionaries of them, got {got}"
        )
    return array

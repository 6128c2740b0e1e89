"""Rows of a table by index, and bags of them. Names, arguments and results are torch.nn.functional's."""

from typing import Any

from cyxcore.dtype import INTEGERS, finfo
from cyxcore.errors import GraphError, ShapeError, SpecError
from cyxcore.functional.basic import maximum, where
from cyxcore.inplace import InPlace
from cyxcore.values import apply


def embedding(
    indices: Any,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    """Rows of weight (count, dim) by index. indices: integers of any shape. Returns (*indices.shape, dim).

    padding_idx: a row that gets no gradient; negative: from the end. max_norm: rows of a larger norm_type-norm that are
    looked up are made shorter first, in the weight itself; of tensors and in compiled training steps, not in traced
    models. scale_grad_by_freq: a row's gradient is divided by how often it is looked up. sparse: says how to be fast,
    and changes nothing here. Raises SpecError for a padding_idx of no row.
    """
    known = _known("embedding", indices, weight)
    if max_norm is not None:
        weight = _renormed("embedding", weight, known, max_norm, norm_type)
    rows = apply("take", weight, known, axis=0)
    if scale_grad_by_freq:
        rows = _by_frequency(rows, weight, known)
    if padding_idx is None:
        return rows
    padding = _row("embedding", padding_idx, weight.shape[0])
    return where((known == padding).expand_dims(-1), rows.detach(), rows)


def _known(name: str, indices: Any, weight: Any) -> Any:
    if weight.ndim != 2:
        raise ShapeError(f"{name}: expected weight (count, dim), got {weight.shape}")
    return weight._check_indices(indices.astype("int64"), weight.shape[0])


def _row(name: str, padding_idx: int, count: int) -> int:
    if not -count <= padding_idx < count:
        raise SpecError(f"{name}: expected padding_idx within {count} rows, got {padding_idx}")
    return padding_idx % count


def _renormed(name: str, weight: Any, known: Any, max_norm: float, norm_type: float) -> Any:
    """The weight, written to: the rows that are looked up are of max_norm at most."""
    if not isinstance(weight, InPlace) and getattr(getattr(weight, "builder", None), "differentiate", None) is None:
        raise GraphError(
            f"{name}: max_norm writes into the weight; of tensors and training steps, not in a model's graph"
        )
    if not max_norm > 0.0 or not norm_type > 0.0:
        raise SpecError(f"{name}: expected max_norm and norm_type above 0, got {max_norm} and {norm_type}")
    held = weight.detach()
    sizes = held.abs()
    if norm_type == float("inf"):
        norms = sizes.max(1, keepdims=True)
    elif norm_type == 2.0:
        norms = held.square().sum(1, keepdims=True).sqrt()
    else:
        norms = (sizes**norm_type).sum(1, keepdims=True) ** (1.0 / norm_type)
    long = (_frequencies(weight, known) > 0.0).expand_dims(1) & (norms > max_norm)
    weight._assign(where(long, held * (max_norm / (norms + 1e-7)), held))
    return weight


def _frequencies(weight: Any, known: Any) -> Any:
    """How often each row is looked up: (count,)."""
    ones = weight._constant(1.0, weight.dtype).broadcast_to(known.shape)
    return apply("take_grad", ones, known, axis=0, size=weight.shape[0])


def _by_frequency(rows: Any, weight: Any, known: Any) -> Any:
    share = 1.0 / apply("take", _frequencies(weight, known), known, axis=0)
    still = rows.detach()
    return still + (rows - still) * share.expand_dims(-1)  # the difference is 0, its gradient is not


def embedding_bag(
    indices: Any,
    weight: Any,
    offsets: Any = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Any = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Any:
    """The sum, mean or max of rows of weight (count, dim). Returns (bags, dim); zeros of a bag of nothing.

    indices: (bags, size), or (L,) with offsets (bags,), where each bag begins; include_last_offset: and where the last
    one ends. per_sample_weights: of indices' shape, for sums. padding_idx: a row that does not count. Others: see
    embedding. With offsets rows of a bag are added up in their order; a maximum of them in a graph costs as if each bag
    were as long as all. Raises ShapeError or SpecError.
    """
    if mode not in ("sum", "mean", "max") or (per_sample_weights is not None and mode != "sum"):
        raise SpecError(
            f"embedding_bag: expected mode sum, mean or max, and weights of rows only for sum, got {mode!r}"
        )
    if mode == "max" and scale_grad_by_freq:
        raise SpecError("embedding_bag: scale_grad_by_freq goes with mode sum and mean, not with max")
    if per_sample_weights is not None and per_sample_weights.shape != indices.shape:
        raise ShapeError(
            f"embedding_bag: expected per_sample_weights of indices' shape {indices.shape}, "
            f"got {per_sample_weights.shape}"
        )
    known = _known("embedding_bag", indices, weight)
    if max_norm is not None:
        weight = _renormed("embedding_bag", weight, known, max_norm, norm_type)
    kept = None if padding_idx is None else known != _row("embedding_bag", padding_idx, weight.shape[0])
    if indices.ndim == 2 and offsets is not None:
        raise ShapeError(f"embedding_bag: offsets go with indices (L,), got indices {indices.shape}")
    starts, ends = (None, None) if indices.ndim == 2 else _bounds(known, offsets, include_last_offset)
    if starts is not None and mode == "max":
        places, inside = _places(known, starts, ends)
        known = apply("take", known, places, axis=0)
        kept = inside if kept is None else apply("take", kept, places, axis=0) & inside
    rows = apply("take", weight, known, axis=0)
    if scale_grad_by_freq:
        rows = _by_frequency(rows, weight, known)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.expand_dims(-1)
    if starts is not None and mode != "max":
        return _added(rows, kept, starts, ends, mode)
    return _reduced(rows, kept, mode)


def _added(rows: Any, kept: Any, starts: Any, ends: Any, mode: str) -> Any:
    """Of each bag the sum or mean of its rows: (bags, dim). rows (L, dim), kept (L,) or None: all."""
    length, bags = rows.shape[0], starts.shape[0]
    bounds = apply("concat", starts, ends[-1:], axis=0)
    steps = rows._constant(range(length), "int64")
    if rows.is_symbolic and rows.builder.travels:  # a graph that does not search
        bag = (bounds <= steps.expand_dims(1)).astype("int64").sum(1)
    else:
        bag = apply("searchsorted", bounds, steps, right=True)  # 0 and those behind the last are in none

    def total(each: Any) -> Any:
        return apply("take_grad", each, bag, axis=0, size=bounds.shape[0] + 1)[1 : 1 + bags]

    found = total(rows if kept is None else where(kept.expand_dims(1), rows, 0.0))
    if mode == "sum":
        return found
    ones = rows._constant(1.0, "float32").broadcast_to(length) if kept is None else kept.astype("float32")
    return found / maximum(total(ones), 1.0).astype(rows.dtype).expand_dims(1)


def _reduced(rows: Any, kept: Any, mode: str) -> Any:
    """rows (bags, size, dim), kept (bags, size) or None: all."""
    if not rows.shape[1]:
        return rows.sum(1)
    if kept is None:
        return {"sum": rows.sum, "mean": rows.mean, "max": rows.max}[mode](1)
    each = kept.expand_dims(2)
    if mode == "max":
        least = float(finfo(rows.dtype).min)
        return where(kept.astype("int64").sum(1, keepdims=True) > 0, where(each, rows, least).max(1), 0.0)
    total = where(each, rows, 0.0).sum(1)
    if mode == "sum":
        return total
    return total / maximum(kept.astype(rows.dtype).sum(1, keepdims=True), 1.0)


def _bounds(known: Any, offsets: Any, include_last_offset: bool) -> tuple[Any, Any]:
    """(starts, ends), each (bags,) of int64: where in `known` (L,) the bags are."""
    if known.ndim != 1 or offsets is None or offsets.ndim != 1 or offsets.dtype not in INTEGERS:
        raise ShapeError(
            "embedding_bag: expected indices (bags, size), or (L,) with integer offsets (bags,), "
            f"got {known.shape} and {None if offsets is None else offsets.shape}"
        )
    length, offsets = known.shape[0], offsets.astype("int64")
    if include_last_offset:
        if not offsets.shape[0]:
            raise ShapeError("embedding_bag: expected at least one offset with include_last_offset, got none")
        starts, ends = offsets[:-1], offsets[1:]
    else:
        whole = known._constant([length], "int64")
        starts, ends = offsets, apply("concat", offsets[1:], whole, axis=0) if offsets.shape[0] else offsets
    if isinstance(known, InPlace) and starts.shape[0]:
        if offsets[0].item() != 0 or int((ends - starts).min().item()) < 0 or int(ends[-1].item()) > length:
            raise SpecError(f"embedding_bag: expected offsets that ascend from 0 to {length} at most, got {offsets}")
    return starts, ends


def _places(known: Any, starts: Any, ends: Any) -> tuple[Any, Any]:
    """(places, inside): for each bag, as many places in `known` (L,) as the longest has, and which of them are its."""
    length = longest = known.shape[0]
    if isinstance(known, InPlace) and starts.shape[0]:
        longest = int((ends - starts).max().item())
    steps = known._constant(range(longest), "int64")
    places = starts.expand_dims(1) + steps
    inside = places < ends.expand_dims(1)
    if not length:
        return places, inside
    return where(inside, places, 0), inside

"""Attention and positions. Names and arguments are torch's where it has the function."""

import math
from typing import Any

from cyxcore.errors import ShapeError, SpecError
from cyxcore.functional.activations import elu
from cyxcore.functional.basic import concat, dropout, linear, softmax, where
from cyxcore.values import TracedMode

NEVER = -1e9  # what a score that must not count becomes: e^(-1e9 - max) is 0 in float32


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    training: bool | TracedMode = True,
) -> Any:
    """softmax(query keyᵀ scale + mask) value. query: (..., T, E), key: (..., S, E), value: (..., S, V).

    attn_mask: bool (True: may be seen) or a float that is added, broadcast to (..., T, S). scale: 1 / sqrt(E) by
    default. is_causal: position t sees up to t. Fewer heads of key and value than of query (axis -3) are shared.
    """
    if query.ndim >= 3 and query.shape[-3] != key.shape[-3]:
        key, value = _shared(key, query.shape[-3]), _shared(value, query.shape[-3])
    if key.shape[-2] != value.shape[-2]:
        raise ShapeError(f"attention: expected as many values as keys (axis -2), got {key.shape} and {value.shape}")
    weights = attention_weights(query, key, attn_mask, is_causal, scale)
    return dropout(weights, dropout_p, training) @ value


def attention_weights(
    query: Any, key: Any, attn_mask: Any = None, is_causal: bool = False, scale: float | None = None
) -> Any:
    """(..., T, S): how much each position of query looks at each of key; see scaled_dot_product_attention."""
    if query.shape[-1] != key.shape[-1]:
        raise ShapeError(f"attention: expected query (..., T, E), key (..., S, E), got {query.shape} and {key.shape}")
    scores = (query * (1.0 / math.sqrt(query.shape[-1]) if scale is None else scale)) @ key.mT
    if is_causal:
        scores = where(causal_mask(query, query.shape[-2], key.shape[-2]), scores, NEVER)
    if attn_mask is not None:
        scores = where(attn_mask, scores, NEVER) if attn_mask.dtype == "bool" else scores + attn_mask
    return softmax(scores, -1)


def _shared(x: Any, heads: int) -> Any:
    """(..., G, S, E) -> (..., heads, S, E): each group's heads are copies."""
    *before, groups, length, size = x.shape
    if heads % groups:
        raise ShapeError(f"attention: {heads} heads of query cannot share {groups} heads of key and value")
    grown = x.expand_dims(x.ndim - 2).broadcast_to(*before, groups, heads // groups, length, size)
    return grown.reshape(*before, heads, length, size)


def causal_mask(like: Any, rows: int, columns: int) -> Any:
    """bool (rows, columns): True where column <= row."""
    down = like._constant(list(range(rows)), "int64").reshape(rows, 1)
    return down >= like._constant(list(range(columns)), "int64")


def linear_attention(query: Any, key: Any, value: Any, eps: float = 1e-6) -> Any:
    """φ(q) (φ(k)ᵀ v) / (φ(q) Σ φ(k)) with φ = elu + 1, in time linear in T (Katharopoulos 2020, arXiv 2006.16236)."""
    q, k = elu(query) + 1.0, elu(key) + 1.0
    total = k.sum(k.ndim - 2, keepdims=True)
    return (q @ (k.mT @ value)) / ((q * total).sum(q.ndim - 1, keepdims=True) + eps)


def split_heads(x: Any, heads: int) -> Any:
    """(N, T, heads * D) -> (N, heads, T, D)"""
    if x.shape[-1] % heads:
        raise SpecError(f"attention: {heads} heads do not divide {x.shape[-1]} features")
    return x.reshape(x.shape[0], x.shape[1], heads, x.shape[2] // heads).transpose(0, 2, 1, 3)


def join_heads(x: Any) -> Any:
    """(N, heads, T, D) -> (N, T, heads * D)"""
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], x.shape[1] * x.shape[3])


def multi_head_attention(
    query: Any,
    key: Any,
    value: Any,
    heads: int,
    in_weight: Any,
    in_bias: Any,
    out_weight: Any,
    out_bias: Any,
    *,
    attn_mask: Any = None,
    key_padding_mask: Any = None,
    is_causal: bool = False,
    dropout_p: float = 0.0,
    training: bool | TracedMode = True,
) -> tuple[Any, Any]:
    """Heads of attention between two projections: (result (N, T, E), weights (N, heads, T, S)).

    query: (N, T, E), key and value: (N, S, E). in_weight: (3 E, E), the projections of query, key and value above each
    other. Masks as in torch's module: True (or -inf) means *not* to be seen; key_padding_mask: (N, S).
    """
    size = query.shape[-1]

    def projected(x: Any, number: int) -> Any:
        rows = slice(number * size, (number + 1) * size)
        return split_heads(linear(x, in_weight[rows], None if in_bias is None else in_bias[rows]), heads)

    mask = attn_mask
    if mask is not None and mask.dtype == "bool":
        mask = ~mask
    if mask is not None and mask.ndim == 3:  # (N * heads, T, S)
        mask = mask.reshape(query.shape[0], heads, *mask.shape[1:])
    if key_padding_mask is not None:
        seen = (~key_padding_mask).reshape(query.shape[0], 1, 1, key.shape[1])
        if mask is None or mask.dtype == "bool":
            mask = seen if mask is None else mask & seen
        else:
            mask = where(seen, mask, NEVER)
    q, k, v = projected(query, 0), projected(key, 1), projected(value, 2)
    weights = attention_weights(q, k, mask, is_causal)
    mixed = dropout(weights, dropout_p, training) @ v
    return linear(join_heads(mixed), out_weight, out_bias), weights


def sinusoidal_positions(like: Any, length: int, size: int) -> Any:
    """(length, size): sin and cos of t / 10000^(2 i / size), in turns (Vaswani 2017, arXiv 1706.03762, 3.5)."""
    place = like._constant(list(range(length)), like.dtype).reshape(length, 1)
    pairs = (size + 1) // 2
    rates = like._constant([10000.0 ** (-2.0 * i / size) for i in range(pairs)], like.dtype)
    angles = place * rates
    both = concat([angles.sin().expand_dims(2), angles.cos().expand_dims(2)], 2).reshape(length, 2 * pairs)
    return both if 2 * pairs == size else both[:, :size]


def rotary(x: Any, base: float = 10000.0, offset: int = 0) -> Any:
    """Rotate pairs (i, i + E/2) of x (..., T, E) by t base^(-2 i / E) (Su 2021, arXiv 2104.09864)."""
    length, size = x.shape[-2], x.shape[-1]
    if size % 2:
        raise ShapeError(f"rotary: expected an even number of features, got {x.shape}")
    half = size // 2
    place = x._constant(list(range(offset, offset + length)), x.dtype).reshape(length, 1)
    angles = place * x._constant([base ** (-2.0 * i / size) for i in range(half)], x.dtype)
    cosine, sine = angles.cos(), angles.sin()
    low, high = x[..., :half], x[..., half:]
    return concat([low * cosine - high * sine, high * cosine + low * sine], x.ndim - 1)

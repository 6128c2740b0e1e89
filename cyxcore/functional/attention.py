"""Attention and positions. Names and arguments are torch's where it has the function."""

import math
from collections.abc import Callable
from typing import Any

from cyxcore.casting import current, inside
from cyxcore.errors import ShapeError, SpecError
from cyxcore.functional.activations import elu
from cyxcore.functional.basic import concat, dropout, dropped, linear, softmax, where
from cyxcore.values import TracedMode, Value, apply, composed

LONG = 1 << 20  # scores of one matrix that are not made whole, however few features there are
NEVER = -1e9  # what a score that must not count becomes: e^(-1e9 - max) is 0 in float32


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = True,
    training: bool | TracedMode = True,
) -> Any:
    """softmax(query keyᵀ scale + mask) value. query: (..., T, E), key: (..., S, E), value: (..., S, V).

    attn_mask: bool (True: may be seen) or a float that is added, broadcast to (..., T, S); what may see nothing is 0.
    scale: 1 / sqrt(E) by default. is_causal: position t sees up to t. Fewer heads of key and value than of query
    (axis -3) are shared, unless enable_gqa is false (it is, in torch, unless it is asked for).
    """
    if key.shape[-2] != value.shape[-2]:
        raise ShapeError(f"attention: expected as many values as keys (axis -2), got {key.shape} and {value.shape}")
    shared = enable_gqa and query.ndim >= 3 and query.shape[-3] != key.shape[-3]
    return _attended(query, key, value, attn_mask, None, dropout_p, is_causal, scale, training, shared)


def _attended(
    query: Any,
    key: Any,
    value: Any,
    mask: Any,
    key_mask: Any,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    training: bool | TracedMode,
    shared: bool = False,
) -> Any:
    """scaled_dot_product_attention with _joined() masks, of which nobody needs to make one that is as large as both.
    shared: whether keys and values are those of groups of heads.
    """
    half = current() if inside[0] else None
    if half is not None:  # which rounds what is added to the scores
        mask, key_mask = _joined(mask, key_mask), None
    function: Callable[..., Any] = _scaled_dot_product_attention
    given: tuple[Any, ...] = (query, key, value, mask, key_mask)
    options: tuple[Any, ...] = (shared, is_causal, scale)
    if dropout_p == 0.0 or training is False and 0.0 <= dropout_p <= 1.0:
        given, options = (*given, None), (*options, 0.0)
    elif training is True and 0.0 < dropout_p < 1.0 and _are_drawn_for(*given):
        given, options = (*given, query._next_key()), (*options, dropout_p)
    else:
        function, options = _attention_with_dropout, (*options, dropout_p, training)
    scores = query.shape[-2] * key.shape[-2]
    elements = scores if scores >= LONG else 0
    if half is not None:
        return query._in_halves(function, given, options, half, elements)
    return composed(function, given, options, elements)


def _are_drawn_for(*inputs: Any) -> bool:
    """Whether the numbers that dropout draws have a key of tensors: no graph gives them theirs."""
    return isinstance(inputs[0], Value) and not any(isinstance(x, Value) and x.is_symbolic for x in inputs)


def _scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    mask: Any,
    key_mask: Any,
    drawn_by: Any,
    shared: bool,
    is_causal: bool,
    scale: float | None,
    dropout_p: float,
) -> Any:
    """drawn_by: the key of the numbers that dropout draws, uint64 (2,); None: there is no dropout."""
    mask = _joined(mask, key_mask)
    if shared:
        query, key, value, mask = _grouped(query, key, value, mask)
    weights = attention_weights(query, key, mask, is_causal, scale)
    if drawn_by is not None:
        weights = dropped(weights, apply("uniform", drawn_by, shape=weights.shape, stream=0), dropout_p)
    mixed = weights @ value
    return _joined_groups(mixed) if shared else mixed


def _attention_with_dropout(
    query: Any,
    key: Any,
    value: Any,
    mask: Any,
    key_mask: Any,
    shared: bool,
    is_causal: bool,
    scale: float | None,
    dropout_p: float,
    training: bool | TracedMode,
) -> Any:
    """The same where a graph has keys of what is drawn."""
    mask = _joined(mask, key_mask)
    if shared:
        query, key, value, mask = _grouped(query, key, value, mask)
    mixed = dropout(attention_weights(query, key, mask, is_causal, scale), dropout_p, training) @ value
    return _joined_groups(mixed) if shared else mixed


def attention_weights(
    query: Any, key: Any, attn_mask: Any = None, is_causal: bool = False, scale: float | None = None
) -> Any:
    """(..., T, S): how much each position of query looks at each of key; see scaled_dot_product_attention.

    Rows add up to 1; one that may see nothing is of zeros.
    """
    if query.shape[-1] != key.shape[-1]:
        raise ShapeError(f"attention: expected query (..., T, E), key (..., S, E), got {query.shape} and {key.shape}")
    scores = (query * (1.0 / math.sqrt(query.shape[-1]) if scale is None else scale)) @ key.mT
    causal = causal_mask(query, query.shape[-2], key.shape[-2]) if is_causal else None
    if causal is not None:
        scores = where(causal, scores, NEVER)
    if attn_mask is None:
        return softmax(scores, -1)
    if not attn_mask.ndim:
        attn_mask = attn_mask.reshape(1)
    seen = attn_mask if attn_mask.dtype == "bool" else attn_mask != -math.inf
    if seen is not attn_mask:
        scores = scores + attn_mask
    scores = where(seen, scores, NEVER)  # a row of infinities would be NaN, and its gradient too
    if causal is not None:
        seen = seen & causal
    return where(seen.astype("int64").sum(-1, keepdims=True) > 0, softmax(scores, -1), 0.0)


def _grouped(query: Any, key: Any, value: Any, mask: Any) -> tuple[Any, Any, Any, Any]:
    """Queries (..., groups, heads of each, T, E), and keys and values of which a group has one: (..., groups, 1, S, E).

    Products read those where they are: nobody copies them for each head.
    """
    heads, groups = query.shape[-3], key.shape[-3]
    for x in (key, value):
        if heads % x.shape[-3]:
            raise ShapeError(f"attention: {heads} heads of query cannot share {x.shape[-3]} heads of key and value")
    if value.shape[-3] != groups:
        value = _in_groups(_shared(value, heads), groups)
    else:
        value = value.expand_dims(value.ndim - 2)
    if mask is not None and mask.ndim >= 3:
        mask = _in_groups(mask, groups) if mask.shape[-3] == heads else mask.expand_dims(mask.ndim - 2)
    return _in_groups(query, groups), key.expand_dims(key.ndim - 2), value, mask


def _in_groups(x: Any, groups: int) -> Any:
    """(..., heads, A, B) -> (..., groups, heads of each, A, B)"""
    return x.reshape(*x.shape[:-3], groups, x.shape[-3] // groups, *x.shape[-2:])


def _joined_groups(x: Any) -> Any:
    """(..., groups, heads of each, A, B) -> (..., heads, A, B)"""
    return x.reshape(*x.shape[:-4], x.shape[-4] * x.shape[-3], *x.shape[-2:])


def _shared(x: Any, heads: int) -> Any:
    """(..., G, S, E) -> (..., heads, S, E): each group's heads are copies."""
    *before, groups, length, size = x.shape
    grown = x.expand_dims(x.ndim - 2).broadcast_to(*before, groups, heads // groups, length, size)
    return grown.reshape(*before, heads, length, size)


def causal_mask(like: Any, rows: int, columns: int) -> Any:
    """bool (rows, columns): True where column <= row."""
    down = like._constant(range(rows), "int64").reshape(rows, 1)
    return down >= like._constant(range(columns), "int64")


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
    bias_k: Any = None,
    bias_v: Any = None,
    add_zero_attn: bool = False,
    need_weights: bool = True,
) -> tuple[Any, Any]:
    """Heads of attention between two projections: (result (N, T, E), weights (N, heads, T, S); None if not needed).

    query: (N, T, E), key: (N, S, EK), value: (N, S, EV). in_weight: (3 E, E), the projections of query, key and value
    above each other, or these three: (E, E), (E, EK) and (E, EV). Masks as in torch's module: True (or -inf) means
    *not* to be seen, other floats are added; attn_mask: (T, S) or (N * heads, T, S), key_padding_mask: (N, S).
    bias_k, bias_v: (1, 1, E), a key and a value more; add_zero_attn: one more of zeros. They can always be seen, and S
    of the weights counts them.
    """
    size = query.shape[-1]
    _fitting(query, key, value, heads, attn_mask, key_padding_mask)

    def projected(x: Any, number: int) -> Any:
        rows = slice(number * size, (number + 1) * size)
        weight = in_weight[number] if isinstance(in_weight, tuple) else in_weight[rows]
        return split_heads(linear(x, weight, None if in_bias is None else in_bias[rows]), heads)

    mask, key_mask = _shown(attn_mask, key_padding_mask, query.shape[0], heads)
    q, k, v = projected(query, 0), projected(key, 1), projected(value, 2)
    more = 0
    if bias_k is not None:
        k, v, more = _one_more(k, split_heads(bias_k, heads)), _one_more(v, split_heads(bias_v, heads)), more + 1
    if add_zero_attn:
        zero = k._constant(0.0, k.dtype)
        k, v, more = _one_more(k, zero), _one_more(v, zero), more + 1
    if more:
        mask, key_mask = _joined(mask, key_mask), None
        if is_causal:
            causal = causal_mask(query, query.shape[1], key.shape[1])
            mask = causal if mask is None else mask & causal if mask.dtype == "bool" else where(causal, mask, -math.inf)
            is_causal = False
        if mask is not None:
            seen = mask.dtype == "bool"
            added = mask._constant(seen, mask.dtype).broadcast_to(*mask.shape[:-1], more)
            mask = concat([mask, added], mask.ndim - 1)
    if not need_weights:
        mixed = _attended(q, k, v, mask, key_mask, dropout_p, is_causal, None, training)
        return linear(join_heads(mixed), out_weight, out_bias), None
    weights = dropout(attention_weights(q, k, _joined(mask, key_mask), is_causal), dropout_p, training)
    return linear(join_heads(weights @ v), out_weight, out_bias), weights


def multi_head_attention_forward(
    query: Any,
    key: Any,
    value: Any,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Any,
    in_proj_bias: Any,
    bias_k: Any,
    bias_v: Any,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Any,
    out_proj_bias: Any,
    training: bool | TracedMode = True,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Any = None,
    k_proj_weight: Any = None,
    v_proj_weight: Any = None,
    static_k: Any = None,
    static_v: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Any, Any]:
    """multi_head_attention() with torch's arguments: (result of query's shape, weights; None if not needed).

    query: (T, N, E), key: (S, N, EK), value: (S, N, EV), or without N; weights: the mean over the heads, (N, T, S), or
    (N, heads, T, S) without average_attn_weights. is_causal: position t sees up to t, also where attn_mask is None.
    Raises ShapeError for other features than embed_dim_to_check, SpecError for static_k and static_v.
    """
    if query.shape[-1] != embed_dim_to_check:
        raise ShapeError(
            f"multi_head_attention_forward: expected {embed_dim_to_check} features of query, got {query.shape}"
        )
    if static_k is not None or static_v is not None:
        raise SpecError(
            "multi_head_attention_forward: static_k and static_v are None only; of keys and values that are projected "
            "already, scaled_dot_product_attention takes the heads"
        )
    return attended_as_given(
        query,
        key,
        value,
        num_heads,
        (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else in_proj_weight,
        in_proj_bias,
        out_proj_weight,
        out_proj_bias,
        average_attn_weights=average_attn_weights,
        attn_mask=attn_mask,
        key_padding_mask=key_padding_mask,
        is_causal=is_causal,
        dropout_p=dropout_p,
        training=training,
        bias_k=bias_k,
        bias_v=bias_v,
        add_zero_attn=add_zero_attn,
        need_weights=need_weights,
    )


def attended_as_given(
    query: Any,
    key: Any,
    value: Any,
    *weights_and_biases: Any,
    batch_first: bool = False,
    average_attn_weights: bool = True,
    key_padding_mask: Any = None,
    **options: Any,
) -> tuple[Any, Any]:
    """multi_head_attention() of (T, N, E), (N, T, E) with batch_first, or (T, E), and weights as torch gives them."""
    if query.ndim not in (2, 3) or key.ndim != query.ndim or value.ndim != query.ndim:
        raise ShapeError(
            "attention: expected query, key and value of 3 axes, or of 2 without a batch, "
            f"got {query.shape}, {key.shape} and {value.shape}"
        )
    alone = query.ndim == 2
    if alone:
        query, key, value = (x.expand_dims(0) for x in (query, key, value))
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.expand_dims(0)
    elif not batch_first:
        query, key, value = (x.transpose(1, 0, 2) for x in (query, key, value))
    result, weights = multi_head_attention(
        query, key, value, *weights_and_biases, key_padding_mask=key_padding_mask, **options
    )
    if alone:
        result = result.squeeze(0)
    elif not batch_first:
        result = result.transpose(1, 0, 2)
    if weights is None:
        return result, None
    seen = weights.mean(1) if average_attn_weights else weights
    return result, seen.squeeze(0) if alone else seen


def _fitting(query: Any, key: Any, value: Any, heads: int, attn_mask: Any, key_padding_mask: Any) -> None:
    if query.ndim != 3 or key.ndim != 3 or key.shape[0] != query.shape[0] or value.shape[:2] != key.shape[:2]:
        raise ShapeError(
            "attention: expected query (N, T, E), key (N, S, EK) and value (N, S, EV), "
            f"got {query.shape}, {key.shape} and {value.shape}"
        )
    (count, rows), columns = query.shape[:2], key.shape[1]
    if attn_mask is not None and attn_mask.shape not in ((rows, columns), (count * heads, rows, columns)):
        raise ShapeError(
            f"attention: expected attn_mask (T, S) {(rows, columns)} or (N * heads, T, S) "
            f"{(count * heads, rows, columns)}, got {attn_mask.shape}"
        )
    if key_padding_mask is not None and key_padding_mask.shape != (count, columns):
        raise ShapeError(
            f"attention: expected key_padding_mask (N, S) {(count, columns)}, got {key_padding_mask.shape}"
        )


def _shown(attn_mask: Any, key_padding_mask: Any, count: int, heads: int) -> tuple[Any, Any]:
    """Both masks as attention_weights() takes one: bools, of which True is seen, or floats to be added; (T, S) or
    (N, heads, T, S), and (N, 1, 1, S).
    """
    mask, key_mask = attn_mask, key_padding_mask
    if mask is not None and mask.ndim == 3:
        mask = mask.reshape(count, heads, *mask.shape[1:])
    if key_mask is not None:
        key_mask = key_mask.reshape(count, 1, 1, key_mask.shape[1])
    mask, key_mask = (~x if x is not None and x.dtype == "bool" else x for x in (mask, key_mask))
    return mask, key_mask


def _joined(mask: Any, key_mask: Any) -> Any:
    """One mask of both, each of which may be None: of bools a bool, of others a float to be added."""
    if mask is None or key_mask is None:
        return key_mask if mask is None else mask
    if mask.dtype == key_mask.dtype:
        return mask & key_mask if mask.dtype == "bool" else mask + key_mask
    return where(mask, key_mask, -math.inf) if mask.dtype == "bool" else where(key_mask, mask, -math.inf)


def _one_more(x: Any, row: Any) -> Any:
    """x (N, heads, S, D) and after it a row (1, heads, 1, D)."""
    return concat([x, row.broadcast_to(*x.shape[:2], 1, x.shape[3])], 2)


def sinusoidal_positions(like: Any, length: int, size: int) -> Any:
    """(length, size): sin and cos of t / 10000^(2 i / size), in turns (Vaswani 2017, arXiv 1706.03762, 3.5)."""
    place = like._constant(range(length), like.dtype).reshape(length, 1)
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
    place = x._constant(range(offset, offset + length), x.dtype).reshape(length, 1)
    angles = place * x._constant([base ** (-2.0 * i / size) for i in range(half)], x.dtype)
    cosine, sine = angles.cos(), angles.sin()
    low, high = x[..., :half], x[..., half:]
    return concat([low * cosine - high * sine, high * cosine + low * sine], x.ndim - 1)

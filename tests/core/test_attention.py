"""nn.MultiheadAttention as PyTorch has it: its options, masks, weights, shapes and keys."""

import re
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import functional as F
from cyxcore import nn
from cyxcore.errors import CyxError
from tests.core.layer_oracle import agree_module, floats, torch

T, S, N, E, HEADS = 5, 6, 3, 8, 2
PADDED = np.array([[False] * 4 + [True] * 2, [False] * 6, [True] + [False] * 5])
HIDDEN = np.triu(np.ones((T, S), bool), 2)
BY_HEAD = np.random.default_rng(3).random((N * HEADS, T, S)) > 0.8
ADDED = floats(T, S, seed=7)

MASKS: list[dict[str, Any]] = [
    {},
    {"key_padding_mask": PADDED},
    {"attn_mask": HIDDEN},
    {"attn_mask": BY_HEAD & ~BY_HEAD.all(2, keepdims=True)},
    {"attn_mask": ADDED},
    {"attn_mask": np.where(HIDDEN, -np.inf, ADDED)},
    {"attn_mask": floats(N * HEADS, T, S, seed=5)},
    {"attn_mask": HIDDEN, "key_padding_mask": PADDED},
    {"attn_mask": ADDED, "key_padding_mask": np.where(PADDED, -np.inf, 0.0)},
    {"key_padding_mask": floats(N, S, seed=6)},
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"add_bias_kv": True},
    {"add_zero_attn": True},
    {"add_bias_kv": True, "add_zero_attn": True},
    {"kdim": 5},
    {"vdim": 4, "bias": False},
    {"kdim": 5, "vdim": 4, "add_bias_kv": True, "add_zero_attn": True},
]


def made(options: dict[str, Any], batch_first: bool) -> Callable[[Any], Any]:
    def make(m: Any) -> Any:
        layer = m.MultiheadAttention(E, HEADS, batch_first=batch_first, **options)
        if m is torch.nn and layer.in_proj_bias is not None:  # zeros say nothing of where they are added
            torch.nn.init.normal_(layer.in_proj_bias)
            torch.nn.init.normal_(layer.out_proj.bias)
        return layer

    return make


def given(options: dict[str, Any], batch_first: bool) -> list[np.ndarray]:
    key, value = options.get("kdim", E), options.get("vdim", E)
    shapes = [(N, T, E), (N, S, key), (N, S, value)] if batch_first else [(T, N, E), (S, N, key), (S, N, value)]
    return [floats(*shape, seed=number) for number, shape in enumerate(shapes)]


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("options", OPTIONS)
def test_attention_with_options_and_masks(options: dict[str, Any], masks: dict[str, Any]) -> None:
    agree_module(made(options, True), *given(options, True), **masks)


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("options", OPTIONS)
def test_time_first_and_the_weights_of_each_head(options: dict[str, Any], average: bool) -> None:
    agree_module(made(options, False), *given(options, False), average_attn_weights=average)


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("masks", [{}, {"key_padding_mask": PADDED[0]}, {"attn_mask": BY_HEAD[:HEADS]}])
@pytest.mark.parametrize("options", [{}, {"kdim": 5, "add_bias_kv": True}])
def test_one_sample_without_a_batch(options: dict[str, Any], masks: dict[str, Any], average: bool) -> None:
    one = [array[0] for array in given(options, True)]
    for batch_first in (True, False):
        agree_module(made(options, batch_first), *one, **masks, average_attn_weights=average)


NOBODY = np.array([[True, False, True], [False] * 3])  # what the second row may see


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("mask", [NOBODY, np.where(NOBODY, 0.5, -np.inf).astype("float32"), NOBODY[:, ::-1] & NOBODY])
def test_what_may_see_nothing_is_zero_and_so_are_its_gradients(mask: Any, is_causal: bool) -> None:
    given = [floats(2, length, E, seed=seed).astype("float32") for seed, length in enumerate((2, 3, 3))]

    def attended(m: Any, q: Any, k: Any, v: Any) -> Any:
        options = {} if m is cx else {"enable_gqa": False}
        if is_causal and m is torch:  # which takes one of both
            seen = torch.tensor(mask) if mask.dtype == bool else torch.tensor(mask) > -np.inf
            added = seen if mask.dtype == bool else torch.tensor(mask)
            hidden = ~torch.tril(torch.ones(2, 3, dtype=torch.bool))
            options["attn_mask"] = added & ~hidden if mask.dtype == bool else added.masked_fill(hidden, -np.inf)
        else:
            options |= {"attn_mask": m.tensor(mask), "is_causal": is_causal}
        return m.nn.functional.scaled_dot_product_attention(q, k, v, **options)

    def step(*inputs: Any) -> list[Any]:
        result = attended(cx, *inputs)
        return [result, *cx.autograd.grad((result * result).sum(), inputs)]

    ours = [cx.tensor(each, requires_grad=True) for each in given]
    theirs = [torch.tensor(each, requires_grad=True) for each in given]
    plain, wanted = step(*ours), attended(torch, *theirs)
    (wanted * wanted).sum().backward()
    for one, other in zip(plain, [wanted, *(each.grad for each in theirs)], strict=True):
        np.testing.assert_allclose(one.detach().numpy(), other.detach().numpy(), rtol=1e-4, atol=1e-6)
    assert not plain[0][:, 1].any().item() and not plain[1][:, 1].any().item()
    for one, other in zip(plain, cx.compile(step)(*ours), strict=True):
        assert one.detach().numpy().tobytes() == other.detach().numpy().tobytes()


@pytest.mark.parametrize("queries", [1, 40])
@pytest.mark.parametrize(
    ("groups", "mask"), [((2, 2), ()), ((1, 1), (2, 1, 1, 70)), ((2, 4), (8, 1, 70)), ((4, 4), (2, 8, 5, 70))]
)
def test_tensors_of_heads_that_share_keys_have_the_bits_of_copies(
    isa: str, queries: int, groups: tuple[int, int], mask: tuple[int, ...]
) -> None:
    shape = tuple([queries if size == 5 else size for size in mask])
    added = cx.tensor(floats(*shape).astype("float32"), requires_grad=True) if mask else None
    query = cx.tensor(floats(2, 8, queries, E, seed=1).astype("float32"), requires_grad=True)
    key, value = (
        cx.tensor(floats(2, count, 70, E, seed=place).astype("float32"), requires_grad=True)
        for place, count in enumerate(groups)
    )

    def found(*given: Any) -> list[bytes]:
        learnt = [query, key, value] if added is None else [query, key, value, added]
        for x in learnt:
            x.grad = None
        mixed = F.scaled_dot_product_attention(*given, added)
        (mixed * mixed).sum().backward()
        return [mixed.detach().numpy().tobytes(), *(x.grad.numpy().tobytes() for x in learnt)]

    expected = found(query, *(cx.repeat(x, 8 // x.shape[1], axis=1) for x in (key, value)))
    assert found(query, key, value) == expected


@pytest.mark.parametrize("is_bool", [False, True])
def test_gradients_of_half_precision_are_numbers_where_a_row_sees_nothing(is_bool: bool) -> None:
    seen = np.array([[True, False], [False, False]])
    mask = cx.tensor(seen if is_bool else np.where(seen, np.float16(0.0), np.float16(-np.inf)))
    given = [cx.randn(2, 4, dtype="float16", requires_grad=True) for _ in range(3)]
    cx.nn.functional.scaled_dot_product_attention(*given, attn_mask=mask).sum().backward()
    assert all(np.isfinite(x.grad.numpy()).all() for x in given)


@pytest.mark.parametrize("mask", [True, 0.5])
def test_a_mask_without_axes_is_that_of_every_pair(mask: Any) -> None:
    q, k, v = (cx.randn(3, 4) for _ in range(3))
    attention = cx.nn.functional.scaled_dot_product_attention
    np.testing.assert_allclose(attention(q, k, v, attn_mask=cx.tensor(mask)).numpy(), attention(q, k, v).numpy(), 1e-5)


def test_a_sample_of_padding_alone_sees_nothing_in_any_kind_of_mask() -> None:
    layer, x = LAYER, cx.tensor(floats(N, S, E).astype(np.float32))
    padded = np.arange(N)[:, None] >= np.full((1, S), 2)
    for padding in (padded, np.where(padded, -np.inf, 0.0).astype(np.float32)):
        for hidden in (None, np.zeros((S, S), bool), np.zeros((S, S), np.float32)):
            attn_mask = None if hidden is None else cx.tensor(hidden)
            _, weights = layer(x, x, x, key_padding_mask=cx.tensor(padding), attn_mask=attn_mask)
            assert not weights[2].any().item()
            np.testing.assert_allclose(weights[:2].sum(-1).detach().numpy(), 1.0, rtol=1e-6)


def test_weights_are_given_unless_they_are_not_wanted() -> None:
    layer, x = nn.MultiheadAttention(E, HEADS, batch_first=True), cx.tensor(floats(N, T, E).astype(np.float32))
    result, weights = layer(x, x, x)
    assert weights.shape == (N, T, T) and layer(x, x, x, need_weights=False)[1] is None
    np.testing.assert_allclose(weights.sum(-1).numpy(), 1.0, rtol=1e-6)
    assert result.equal(layer(x)[0])


def test_dropped_weights_are_given_as_they_were_used() -> None:
    cx.manual_seed(0)
    layer, x = nn.MultiheadAttention(E, HEADS, 0.5, batch_first=True), cx.tensor(floats(N, T, E).astype(np.float32))
    assert (layer(x, x, x, average_attn_weights=False)[1] == 0.0).any().item()
    assert not (layer.eval()(x, x, x, average_attn_weights=False)[1] == 0.0).any().item()


@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True, "add_zero_attn": True}])
def test_causal_attention_needs_no_mask(options: dict[str, Any]) -> None:
    layer, x = (
        nn.MultiheadAttention(E, HEADS, batch_first=True, **options),
        cx.tensor(floats(N, T, E).astype("float32")),
    )
    later = cx.tensor(np.triu(np.ones((T, T), bool), 1))
    for one, other in zip(layer(x, is_causal=True), layer(x, attn_mask=later), strict=True):
        np.testing.assert_allclose(one.detach().numpy(), other.detach().numpy(), atol=1e-7)
    alone = layer(x, is_causal=True, key_padding_mask=cx.tensor(np.zeros((N, T), bool)))[0]
    np.testing.assert_allclose(alone.detach().numpy(), layer(x, is_causal=True)[0].detach().numpy(), atol=1e-7)


def test_first_values_spread_as_torchs() -> None:
    torch.manual_seed(0)
    cx.manual_seed(0)
    ours, theirs = (m.MultiheadAttention(64, 4, add_bias_kv=True, kdim=32, vdim=128) for m in (nn, torch.nn))
    for name, value in theirs.state_dict().items():
        spread = float(value.std()) if value.numel() else 0.0
        assert float(ours.state_dict()[name].std()) == pytest.approx(spread, rel=0.4, abs=1e-7), name


def test_attention_goes_into_a_graph_of_any_batch() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.MultiheadAttention(E, HEADS, add_bias_kv=True, add_zero_attn=True, batch_first=True)

        def forward(self, x: Any) -> Any:
            return self.part(x, x, x)[0]

    assert cx.trace(Own(), (T, E)).graph.output_shape == (T, E)


def zeros(*shape: int) -> Any:
    return cx.zeros(*shape)


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch", [(), (N,)])
def test_the_function_is_torchs(average: bool, separate: bool, need_weights: bool, batch: tuple[int, ...]) -> None:
    joint = floats(3 * E, E, seed=1).astype(np.float32)
    arrays = [floats(*shape, seed=n).astype(np.float32) for n, shape in enumerate([(E, E), (E, 3), (E, 4)], 2)]
    sizes = (3, 4) if separate else (E, E)
    x = [
        floats(n, *batch, size, seed=n).astype(np.float32) for n, size in ((T, E), (T + 1, sizes[0]), (T + 1, sizes[1]))
    ]
    hidden = np.triu(np.ones((T, T + 1), bool), 1), np.tile(np.arange(T + 1) == T, (*batch, 1))
    found = []
    for m in (cx, torch):
        bias, out, behind = (m.tensor(floats(*shape, seed=9).astype(np.float32)) for shape in ((3 * E,), (E, E), (E,)))
        masks = [m.tensor(mask) for mask in hidden]
        result, weights = m.nn.functional.multi_head_attention_forward(
            *map(m.tensor, x),
            E,
            HEADS,
            None if separate else m.tensor(joint),
            bias,
            None,
            None,
            True,
            0.5,
            out,
            behind,
            False,
            masks[1].reshape(*batch, T + 1),
            need_weights,
            masks[0],
            separate,
            *(map(m.tensor, arrays) if separate else ()),
            average_attn_weights=average,
        )
        found.append((result.numpy(), None if weights is None else weights.numpy()))
    np.testing.assert_allclose(found[0][0], found[1][0], atol=2e-5)
    assert (found[0][1] is None) == (not need_weights)
    if need_weights:
        np.testing.assert_allclose(found[0][1], found[1][1], atol=2e-6)


LAYER = nn.MultiheadAttention(E, HEADS, batch_first=True)
PARTS = [zeros(*shape) for shape in ((3 * E, E), (3 * E,), (E, E), (E,))]
ONE = (zeros(5, 2, E),) * 3
WRONG: dict[str, Callable[[], Any]] = {
    "of 3 axes, or of 2 without a batch": lambda: LAYER(zeros(1, 2, 3, E)),
    "expected query (N, T, E), key (N, S, EK) and value (N, S, EV)": lambda: LAYER(zeros(2, 5, E), zeros(3, 5, E)),
    "expected attn_mask (T, S) (5, 5) or (N * heads, T, S) (4, 5, 5), got (5, 4)": lambda: LAYER(
        zeros(2, 5, E), attn_mask=zeros(5, 4)
    ),
    "expected key_padding_mask (N, S) (2, 5), got (5, 2)": lambda: LAYER(
        zeros(2, 5, E), key_padding_mask=zeros(5, 2) > 0
    ),
    "3 heads do not divide 8 features": lambda: nn.MultiheadAttention(8, 3),
    f"expected 7 features of query, got (5, 2, {E})": lambda: F.multi_head_attention_forward(
        *ONE, 7, HEADS, *PARTS[:2], None, None, False, 0.0, *PARTS[2:]
    ),
    "static_k and static_v are None only": lambda: F.multi_head_attention_forward(
        *ONE, E, HEADS, *PARTS[:2], None, None, False, 0.0, *PARTS[2:], static_k=ONE[0]
    ),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_does_not_fit_is_refused(said: str) -> None:
    with pytest.raises(CyxError, match=re.escape(said)):
        WRONG[said]()


def test_a_mask_of_positions_is_made_of_no_list_of_its_numbers() -> None:
    size = 300
    tracemalloc.start()
    try:
        mask = nn.Transformer.generate_square_subsequent_mask(size)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * size * size  # of pointers alone
    assert np.array_equal(mask.numpy(), np.triu(np.full((size, size), -np.inf, np.float32), 1))

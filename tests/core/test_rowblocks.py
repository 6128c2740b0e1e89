"""Attention on blocks of rows: that no bit changes, and that no matrix of weights is ever there whole."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import casting, composed, eager, nn, precision, rowblocks
from cyxcore import functional as F
from cyxcore.functional import attention as attending
from cyxcore.gradients import backward, totals
from cyxcore.graph import Graph
from cyxcore.kernels import cpu
from cyxcore.order import schedule
from cyxcore.passes import optimise
from cyxcore.plan import Plan
from cyxcore.symbols import Builder, Symbol
from tests.core.test_bands import assert_each_call_comes_once_and_after_those_it_reads

needs_amx = pytest.mark.skipif(not cpu.amx(), reason="no AMX here")
FAST = [name for name in precision.CLASSES if name != "exact"]
TERMS, VALUES, STACK = 7, 9, (2, 3)
SIZES = [(64, 64), (67, 67), (61, 83), (96, 70), (127, 64)]
MASKS: dict[str, tuple[tuple[int, ...], str]] = {
    "plain": ((), ""),
    "causal": ((), ""),
    "rows": ((0, 0), "bool"),
    "keys": ((STACK[0], 1, 1, 0), "bool"),
    "batch, causal": ((STACK[0], 1, 0, 0), "bool"),
    "added": ((STACK[0], 1, 0, 0), "float"),
    "heads, added": ((STACK[1], 0, 0), "float"),
    "all, added": ((*STACK, 0, 0), "float"),
}


@pytest.fixture(autouse=True)
def _short_is_long(monkeypatch: pytest.MonkeyPatch, own_machine: None) -> None:
    """Sequences of a test count as long ones."""
    monkeypatch.setattr(rowblocks, "LEAST_BYTES", 1)
    monkeypatch.setattr(rowblocks, "BLOCK_BYTES", 5000)


def inputs_of(builder: Builder, rows: int, columns: int) -> list[Symbol]:
    """Queries, keys, values, and the gradient of what they give."""
    of_queries, of_keys = (*STACK, rows), (*STACK, columns)
    sizes = {
        "query": (*of_queries, TERMS),
        "key": (*of_keys, TERMS),
        "value": (*of_keys, VALUES),
        "gradient": (*of_queries, VALUES),
    }
    return [builder.input(name, shape) for name, shape in sizes.items()]


def attention(
    kind: str,
    rows: int,
    columns: int,
    dtype: str = "float32",
    stack: tuple[int, ...] = STACK,
    features: tuple[int, int] = (TERMS, VALUES),
) -> Graph:
    """There and back."""
    builder = Builder()
    query = builder.input("query", (*stack, rows, features[0]), dtype)
    key = builder.input("key", (*stack, columns, features[0]), dtype)
    value = builder.input("value", (*stack, columns, features[1]), dtype)
    gradient = builder.input("gradient", (*stack, rows, features[1]), dtype)
    shape, of = MASKS[kind]
    sizes = (*shape[:-2], *(own or full for own, full in zip(shape[-2:], (rows, columns), strict=False)))
    mask = builder.input("mask", sizes, "bool" if of == "bool" else dtype) if shape else None
    mixed = F.scaled_dot_product_attention(query, key, value, mask, is_causal="causal" in kind)
    back = totals(builder, mixed, gradient, [query, key, value], {})
    return builder.graph(mixed, *[x for x in back if x is not None])


def run(plan: Plan) -> list[bytes]:
    rng = np.random.default_rng(5)
    plan.key[...] = 5, 7  # of what dropout draws
    for _, array in sorted(plan.inputs.items()):
        array[...] = rng.random(array.shape) > 0.3 if array.dtype == bool else rng.normal(size=array.shape)
        if array.dtype == bool:
            array[..., -1, :] = False  # who sees nothing
    plan.run()
    return [output.tobytes() for output in plan.outputs]


def blocks_of(graph: Graph) -> list[Any]:
    return [stretch.blocks for stretch in schedule(graph, in_bands=True, exact=True).stretches if stretch.blocks]


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_bits_are_those_of_whole_matrices(isa: str, kind: str, dtype: str, threads: int) -> None:
    cpu.set_num_threads(threads)
    for rows, columns in SIZES:
        graph = attention(kind, rows, columns, dtype)
        plan, whole = Plan(graph, device="cpu"), Plan(graph, device="cpu", optimised=False)
        assert blocks_of(plan.graph)
        expected = run(whole)
        assert run(plan) == expected
        assert run(plan) == expected  # and again: nothing of the first run is left over


@pytest.mark.parametrize("kind", MASKS)
def test_no_matrix_of_weights_is_there_whole(kind: str) -> None:
    cpu.set_num_threads(1)
    rows = columns = 128
    plan = Plan(attention(kind, rows, columns), device="cpu")
    heads, item = STACK[0] * STACK[1], 4
    per_position = heads * rows * (3 * TERMS + VALUES + 3) * item  # what is multiplied, comes out and is known of rows
    one_matrix = rows * columns * item
    assert plan.arena_bytes < per_position + one_matrix < heads * one_matrix


@pytest.mark.parametrize("kinds", [("float", "float"), ("float", "bool"), ("bool", "float"), ("bool", "bool")])
@pytest.mark.parametrize("causal", [False, True])
def test_masks_of_positions_and_of_padding_are_joined_in_each_block(
    isa: str, monkeypatch: pytest.MonkeyPatch, kinds: tuple[str, str], causal: bool
) -> None:
    monkeypatch.setattr("cyxcore.recompute.LEAST_BYTES", 1)
    rows, columns = 67, 61
    builder = Builder()
    query, key, value, gradient = inputs_of(builder, rows, columns)
    masks = [
        builder.input(name, shape, "bool" if kind == "bool" else "float32")
        for name, shape, kind in zip(
            ("mask", "padding"), ((rows, columns), (STACK[0], 1, 1, columns)), kinds, strict=True
        )
    ]
    mixed = F.scaled_dot_product_attention(query, key, value, attending._joined(*masks), is_causal=causal)
    back = totals(builder, mixed, gradient * mixed, [query, key, value], {})
    graph = builder.graph(mixed, *[x for x in back if x is not None])
    for threads in (1, 3):
        cpu.set_num_threads(threads)
        plan = Plan(graph, device="cpu")
        decided, known = schedule(plan.graph, in_bands=True, exact=True), plan.graph.infer(1)
        kept = set(decided.order) - decided.within(plan.graph, known)
        assert not [place for place in kept if known.shapes[place][-2:] == (rows, columns)]
        found, expected = (run_with_padding(each, kinds) for each in (plan, Plan(graph, device="cpu", optimised=False)))
        assert found == expected


def run_with_padding(plan: Plan, kinds: Sequence[str]) -> list[bytes]:
    rng = np.random.default_rng(5)
    for _, array in sorted(plan.inputs.items()):
        array[...] = rng.random(array.shape) > 0.3 if array.dtype == bool else rng.normal(size=array.shape)
    for name, kind in zip(("mask", "padding"), kinds, strict=True):
        hidden = False if kind == "bool" else -np.inf
        plan.inputs[name][..., 40:] = hidden
        plan.inputs[name][0] = hidden  # who sees nothing
    plan.run()
    return [output.tobytes() for output in plan.outputs]


LEARNT = {  # stack -> masks that are added, and need a gradient
    (2, 3): [(0, 0), (3, 0, 0), (1, 3, 0, 0), (2, 1, 0, 0), (1, 1, 0, 0), (2, 3, 0, 0)],
    (3, 3): [(3, 1, 0, 0), (3, 0, 0)],  # as many heads as rows of a batch
    (35, 2): [(0, 0), (2, 0, 0), (35, 1, 0, 0)],  # sums of more than 32, which meet in a tree
    (7, 19): [(0, 0)],
    (5,): [(0, 0), (1, 0, 0)],
    (1, 1): [(0, 0)],
    (2, 2, 2): [(0, 0), (2, 1, 0, 0), (2, 1, 1, 0, 0), (2, 1, 2, 0, 0)],
}
WHOLE = [((2, 3), (2, 3, 0, 0)), ((2, 2, 2), (2, 1, 2, 0, 0))]  # no sum; one of matrices that lie at no even steps


def learning(
    stack: tuple[int, ...],
    mask: tuple[int, ...],
    rows: int,
    columns: int,
    dtype: str = "float32",
    causal: bool = False,
    dropout: float = 0.0,
) -> Graph:
    """Attention, there and back, with a gradient of what is added to the scores."""
    builder = Builder()
    query, key, value, gradient, added = (
        builder.input(name, shape, dtype)
        for name, shape in (
            ("query", (*stack, rows, TERMS)),
            ("key", (*stack, columns, TERMS)),
            ("value", (*stack, columns, VALUES)),
            ("gradient", (*stack, rows, VALUES)),
            ("mask", (*mask[:-2], rows, columns)),
        )
    )
    mixed = F.scaled_dot_product_attention(query, key, value, added, dropout, causal, training=True)
    back = totals(builder, mixed, gradient, [query, key, value, added], {})
    return builder.graph(mixed, *[x for x in back if x is not None])


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("stack", "mask"), [(stack, mask) for stack, masks in LEARNT.items() for mask in masks])
def test_the_gradient_of_a_mask_has_the_bits_of_whole_matrices(
    isa: str, threads: int, stack: tuple[int, ...], mask: tuple[int, ...]
) -> None:
    cpu.set_num_threads(threads)
    for rows, columns in SIZES[:3]:
        graph = learning(stack, mask, rows, columns)
        plan, whole = Plan(graph, device="cpu"), Plan(graph, device="cpu", optimised=False)
        stretches = schedule(plan.graph, in_bands=True, exact=True).stretches
        assert any(each.over_matrices for each in stretches) == ((stack, mask) not in WHOLE)
        expected = run(whole)
        assert run(plan) == expected
        assert run(plan) == expected  # and again: nothing of the first run is left over


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_the_gradient_of_a_mask_beside_other_masks(isa: str, dtype: str, causal: bool, dropout: float) -> None:
    cpu.set_num_threads(2)
    for mask in LEARNT[STACK]:
        graph = learning(STACK, mask, 67, 61, dtype, causal, dropout if dtype == "float32" else 0.0)
        plan = Plan(graph, device="cpu")
        assert blocks_of(plan.graph)
        assert run(plan) == run(Plan(graph, device="cpu", optimised=False))


@pytest.mark.parametrize("mask", [(0, 0), (3, 0, 0), (1, 3, 0, 0), (2, 1, 0, 0)])
def test_the_gradient_of_a_mask_takes_no_more_than_the_mask(mask: tuple[int, ...]) -> None:
    cpu.set_num_threads(1)
    rows = columns = 128
    plan, own = Plan(learning(STACK, mask, rows, columns), device="cpu"), Plan(attention("all, added", rows, columns))
    matrices = int(np.prod(mask[:-2]))
    assert plan.arena_bytes <= own.arena_bytes + (matrices + 1) * rows * columns * 4
    assert plan.arena_bytes < STACK[0] * STACK[1] * rows * columns * 4


def test_a_compiled_step_learns_a_mask_as_the_plain_one_does() -> None:
    rng = np.random.default_rng(8)
    inputs = [cx.tensor(rng.normal(size=(2, 2, 67, 8)).astype(np.float32)) for _ in range(3)]
    found = []
    for compiled in (False, True):
        added = cx.nn.Parameter(cx.tensor(np.linspace(-1, 1, 2 * 67 * 67, dtype=np.float32).reshape(2, 67, 67)))
        optimizer = cx.optim.AdamW([added], lr=0.1)

        def step(query: Any, key: Any, value: Any, added: Any = added, optimizer: Any = optimizer) -> Any:
            loss = F.scaled_dot_product_attention(query, key, value, added, is_causal=True).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        run = cx.compile(step) if compiled else step
        losses = [run(*inputs).item() for _ in range(3)]
        found.append((losses, added.detach().numpy().tobytes()))
    assert found[0] == found[1]


def dropping(rows: int, columns: int, causal: bool = False) -> Graph:
    """Attention with dropout, there and back."""
    builder = Builder()
    query, key, value, gradient = inputs_of(builder, rows, columns)
    mixed = F.scaled_dot_product_attention(query, key, value, None, 0.25, causal, training=True)
    back = totals(builder, mixed, gradient, [query, key, value], {})
    return builder.graph(mixed, *[x for x in back if x is not None])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_dropout_draws_the_numbers_of_whole_matrices(isa: str, causal: bool, threads: int) -> None:
    cpu.set_num_threads(threads)
    for rows, columns in SIZES:
        graph = dropping(rows, columns, causal)
        plan, whole = Plan(graph, device="cpu"), Plan(graph, device="cpu", optimised=False)
        assert blocks_of(plan.graph)
        assert run(plan) == run(whole)


def of_halves(half: str, causal: bool, dropout: float, other: bool) -> Graph:
    """Attention of autocast, there and back. other: of a gradient that is multiplied by the result before."""
    builder = Builder(travels=False)
    query, key, value, gradient = (
        builder.input(name, (*STACK, 67, size))
        for name, size in (("query", TERMS), ("key", TERMS), ("value", VALUES), ("gradient", VALUES))
    )
    rounded = [x.astype(half).astype("float32") for x in (query, key, value)]
    mixed = F.scaled_dot_product_attention(*rounded, None, dropout, causal, training=True).astype(half)
    back = totals(builder, mixed, gradient.astype(half) * (mixed if other else 1.0), [query, key, value], {})
    return builder.graph(mixed, *[x for x in back if x is not None])


@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_attention_of_halves_goes_by_blocks_too(
    monkeypatch: pytest.MonkeyPatch, half: str, dropout: float, other: bool
) -> None:
    monkeypatch.setattr("cyxcore.recompute.LEAST_BYTES", 1)
    cpu.set_num_threads(2)
    for causal in (False, True):
        graph = of_halves(half, causal, dropout, other)
        plan, whole = Plan(graph, device="cpu"), Plan(graph, device="cpu", optimised=False)
        decided, known = schedule(plan.graph, in_bands=True, exact=True), plan.graph.infer(1)
        kept = set(decided.order) - decided.within(plan.graph, known)
        assert not [place for place in kept if known.shapes[place][-2:] == (67, 67)]
        assert run(plan) == run(whole)


def test_dropout_makes_no_matrix_of_numbers() -> None:
    cpu.set_num_threads(1)
    rows = columns = 128
    plan = Plan(dropping(rows, columns), device="cpu")
    heads, item = STACK[0] * STACK[1], 4
    assert plan.arena_bytes < heads * rows * (3 * TERMS + 2 * VALUES + 3) * item + rows * columns * item


@pytest.mark.parametrize("kind", ["causal", "batch, causal"])
def test_calls_of_one_stretch_share_their_masks(kind: str) -> None:
    plan = Plan(attention(kind, 64, 64), device="cpu")
    nodes = plan.graph.nodes
    for stretch in schedule(plan.graph, in_bands=True, exact=True).stretches:
        masks = [(nodes[i].op, nodes[i].inputs) for i in stretch.places if nodes[i].op in rowblocks.MASKS]
        assert masks
        assert len(set(masks)) == len(masks)


@pytest.mark.parametrize(("end", "dtype"), [(64, "int32"), (2**31 + 1, "int64")])
def test_positions_are_compared_as_int32_where_that_holds_them(end: int, dtype: str) -> None:
    builder = Builder()
    query, key = (builder.input(name, (2, 64, TERMS)) for name in ("query", "key"))
    down = builder.constant(list(range(end - 64, end)), "int64").reshape(64, 1)
    seen = down >= builder.constant(list(range(end - 64, end)), "int64")
    weights = F.softmax(F.where(seen, query @ key.mT, -1e9), -1)
    graph = builder.graph(weights @ key)
    plan = Plan(graph, device="cpu")
    known = plan.graph.infer(1)
    masks = [node for node in plan.graph.nodes if node.op == "greater_equal"]
    assert [[known.dtypes[i] for i in node.inputs] for node in masks] == [[dtype, dtype]]
    assert run(plan) == run(Plan(graph, device="cpu", optimised=False))


def test_a_shorter_last_block_adds_to_the_gradients_of_the_others() -> None:
    graph = attention("plain", 67, 64)
    (blocks,) = blocks_of(Plan(graph, device="cpu").graph)
    assert (blocks.rows, blocks.whole, blocks.last) == (20, 3, 7)


def test_one_matrix_alone_is_cut_too() -> None:
    for stack in ((1, 1), (1,), (4,)):
        graph = attention("causal", 80, 80, stack=stack)
        plan = Plan(graph, device="cpu")
        assert blocks_of(plan.graph)
        assert run(plan) == run(Plan(graph, device="cpu", optimised=False))


def test_short_sequences_are_made_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rowblocks, "LEAST_BYTES", 64 * 64 * 4)
    assert blocks_of(attention("plain", 64, 64))
    assert not blocks_of(attention("plain", 64, 60))


@pytest.mark.parametrize("kind", MASKS)
def test_blocks_of_products_that_are_split_hold_whole_steps_of_their_sums(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(precision, "splits", lambda name: name != "exact")
    for rows, columns in SIZES:
        graph = attention(kind, rows, columns)
        plan = Plan(graph, device="cpu", numerics="fast")
        blocks = [each.blocks for each in schedule(plan.graph, in_bands=True, exact=False).stretches if each.blocks]
        assert blocks
        assert all(each.rows % 32 == 0 for each in blocks)
        if not cpu.amx():  # the kernels are the exact ones
            assert run(plan) == run(Plan(graph, device="cpu"))


@needs_amx
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("numerics", FAST)
def test_products_that_are_split_have_the_bits_of_whole_matrices(
    monkeypatch: pytest.MonkeyPatch, kind: str, numerics: str
) -> None:
    monkeypatch.setattr(rowblocks, "BLOCK_BYTES", 20_000)
    for rows, columns in ((128, 128), (160, 192), (259, 200)):
        graph = attention(kind, rows, columns, features=(32, 40))
        found = set()
        for threads in (1, 3):
            cpu.set_num_threads(threads)
            plan = Plan(graph, device="cpu", numerics=numerics)
            assert any(each.blocks for each in schedule(plan.graph, in_bands=True, exact=False).stretches)
            found.add(b"".join(run(plan)))
        assert found == {b"".join(run(Plan(graph, device="cpu", numerics=numerics, optimised=False)))}
    if kind == "plain":
        assert found != {b"".join(run(Plan(graph, device="cpu")))}


@needs_amx
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("numerics", FAST)
def test_tensors_whose_products_are_split_have_the_bits_of_single_operations(
    monkeypatch: pytest.MonkeyPatch, numerics: str, causal: bool
) -> None:
    known: dict[Any, Any] = {}
    monkeypatch.setattr(composed, "_ways", known)
    inputs = [np.random.default_rng(2).normal(size=(2, 2, 301, 64)).astype(np.float32) for _ in range(3)]
    exact = gradients_of(inputs, is_causal=causal)
    with cx.set_numerics(numerics):
        found = gradients_of(inputs, is_causal=causal)
        assert [kind.numerics for kind in known] == ["exact", numerics]
        monkeypatch.setattr(eager, "LEAST_COMPOSED", 1 << 60)
        assert found == gradients_of(inputs, is_causal=causal) != exact


@needs_amx
def test_a_right_factor_of_all_heads_is_split_as_the_whole_product_would_be() -> None:
    """Of the rows of all heads together it pays, of those of one head it would not."""
    builder = Builder()
    query, key, value = (builder.input(name, (16, 96, 16)) for name in ("query", "key", "value"))
    shared = builder.input("shared", (1, 96, 16))
    graph = builder.graph(F.softmax(query @ key.mT + query @ shared.mT, -1) @ value)
    plan = Plan(graph, device="cpu", numerics="fast16")
    assert any(each.blocks for each in schedule(plan.graph, in_bands=True, exact=False).stretches)
    expected = run(Plan(graph, device="cpu", numerics="fast16", optimised=False))
    assert run(plan) == expected != run(Plan(graph, device="cpu"))


def test_every_call_comes_once_and_after_those_it_reads() -> None:
    graph = layers(2)
    assert_each_call_comes_once_and_after_those_it_reads(graph, schedule(graph, in_bands=True, exact=True))


def layers(count: int, rows: int = 64, width: int = 12, heads: int = 2, dropout: float = 0.0) -> Graph:
    """A training step of layers of causal attention, each with a matrix before and behind it."""
    builder = Builder()
    x = builder.input("x", (3, rows, width))
    weights = []
    for number in range(count):
        before, behind = (
            builder.param(f"{number}.{name}", shape, {"kind": "constant", "value": 0.0})
            for name, shape in (("before", (3 * width, width)), ("behind", (width, width)))
        )
        weights += [before, behind]
        both = F.linear(x, before).reshape(3, rows, 3, heads, width // heads)
        query, key, value = (both[:, :, place].transpose(0, 2, 1, 3) for place in range(3))
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        x = x + F.linear(mixed.transpose(0, 2, 1, 3).reshape(3, rows, width), behind)
    loss = x.square().sum()
    return optimise(builder.graph(loss, *backward(builder, loss, weights)))


def state_of(graph: Graph) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    params = [node.attrs for node in graph.nodes if node.op == "param"]
    return {each["name"]: rng.normal(size=each["shape"]).astype(np.float32) / 4 for each in params}


@pytest.mark.parametrize("threads", [1, 2])
def test_a_training_step_has_the_same_bits(threads: int) -> None:
    cpu.set_num_threads(threads)
    graph = layers(3)
    plan = Plan(graph, state_of(graph), "cpu")
    assert len(blocks_of(plan.graph)) == 6
    assert run(plan) == run(Plan(graph, state_of(graph), "cpu", optimised=False))


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_weights_and_masks_are_made_again_for_the_gradients(monkeypatch: pytest.MonkeyPatch, dropout: float) -> None:
    monkeypatch.setattr("cyxcore.recompute.LEAST_BYTES", 1)
    monkeypatch.setattr("cyxcore.recompute.SHARE_OF_WEIGHTS", 1 << 30)
    cpu.set_num_threads(1)
    graph = layers(3, dropout=dropout)
    plan = Plan(graph, state_of(graph), "cpu")
    softmaxes = sum(node.op == "softmax" for node in plan.graph.nodes)
    assert softmaxes == 6
    decided = schedule(plan.graph, in_bands=True, exact=True)
    known = plan.graph.infer(1)
    kept = set(decided.order) - decided.within(plan.graph, known)
    assert not [place for place in kept if known.shapes[place][-2:] == (64, 64)]
    assert run(plan) == run(Plan(graph, state_of(graph), "cpu", optimised=False))


@pytest.mark.parametrize("kind", ["plain", "causal"])
def test_scaled_queries_are_made_in_each_block(kind: str) -> None:
    cpu.set_num_threads(1)
    builder = Builder()
    query, key, value, _ = inputs_of(builder, 256, 256)
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=kind == "causal")
    plan = Plan(builder.graph(mixed), device="cpu", outputs_apart=True)
    assert plan.arena_bytes < query.size * 4


def of_groups(kind: str, rows: int, columns: int, repeated: bool, groups: int = 2, heads: int = 6) -> Graph:
    """Heads of query that share keys and values, there and back. repeated: by copies for each head."""
    builder = Builder()
    query = builder.input("query", (2, heads, rows, TERMS))
    key, value = (builder.input(name, (2, groups, columns, size)) for name, size in (("key", TERMS), ("value", VALUES)))
    gradient = builder.input("gradient", (2, heads, rows, VALUES))
    shapes = {"heads": (heads, rows, columns), "batch": (2, 1, rows, columns), "all": (2, heads, rows, columns)}
    mask = builder.input("mask", shapes[kind]) if kind in shapes else None

    def copied(x: Symbol) -> Symbol:
        return attending._shared(x, heads)

    given = [query, copied(key), copied(value)] if repeated else [query, key, value]
    mixed = F.scaled_dot_product_attention(*given, mask, is_causal=kind == "causal")
    learnt = [query, key, value] if mask is None else [query, key, value, mask]
    return builder.graph(mixed, *[x for x in totals(builder, mixed, gradient, learnt, {}) if x is not None])


@pytest.mark.parametrize(("kind", "groups"), [("plain", 1), ("causal", 2), ("heads", 2), ("batch", 3), ("all", 2)])
def test_heads_that_share_keys_have_the_bits_of_copies(isa: str, kind: str, groups: int) -> None:
    for rows, columns in [(64, 64), (67, 83)]:
        graph = of_groups(kind, rows, columns, False, groups)
        plan, copies = (Plan(graph, device="cpu"), Plan(of_groups(kind, rows, columns, True, groups), device="cpu"))
        assert blocks_of(plan.graph)
        expected = run(copies)
        assert run(plan) == expected
        assert run(Plan(graph, device="cpu", optimised=False)) == expected


@pytest.mark.parametrize("kind", ["plain", "causal", "all"])
def test_heads_that_share_keys_make_no_copies_of_them(kind: str) -> None:
    cpu.set_num_threads(1)
    rows, heads, item = 256, 6, 4
    copies, plan = (Plan(of_groups(kind, rows, rows, repeated), device="cpu") for repeated in (True, False))
    of_heads = 2 * heads * rows * (TERMS + VALUES) * item
    assert plan.arena_bytes <= copies.arena_bytes - of_heads
    ops = [node.op for node in plan.graph.nodes]
    assert "broadcast_to" not in ops and "transpose" not in ops


def gradients_of(inputs: Sequence[np.ndarray[Any, Any]], **options: Any) -> list[bytes]:
    tensors = [cx.tensor(x, requires_grad=True) for x in inputs]
    mixed = F.scaled_dot_product_attention(*tensors, **options)
    mixed.backward(cx.ones_like(mixed))
    return [mixed.float().detach().numpy().tobytes(), *(x.grad.numpy().tobytes() for x in tensors)]


def test_tensors_have_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    inputs = [rng.normal(size=(2, 2, 301, 64)).astype(np.float32) for _ in range(3)]
    expected = gradients_of(inputs, is_causal=True)
    known: dict[Any, Any] = {}
    monkeypatch.setattr(rowblocks, "LEAST_BYTES", 1 << 60)
    monkeypatch.setattr(composed, "_ways", known)
    assert gradients_of(inputs, is_causal=True) == expected
    assert known


@pytest.mark.parametrize("half", [None, "bfloat16"])
def test_long_sequences_of_few_features_make_no_matrix_of_weights(
    monkeypatch: pytest.MonkeyPatch, half: str | None
) -> None:
    known: dict[Any, Any] = {}
    monkeypatch.setattr(composed, "_ways", known)
    monkeypatch.setattr(attending, "LONG", 256 * 256)
    with casting.of_thread(half):
        for length in (255, 256):
            inputs = [np.random.default_rng(2).normal(size=(1, 2, length, 8)).astype(np.float32) for _ in range(3)]
            found = gradients_of(inputs)
            assert len(known) == (length == 256)
        monkeypatch.setattr(eager, "LEAST_COMPOSED", 1 << 60)
        assert gradients_of(inputs) == found


def dropped_whole(inputs: Sequence[np.ndarray[Any, Any]], p: float, causal: bool) -> list[bytes]:
    """What gradients_of() gives, of matrices that are there whole."""
    query, key, value = (cx.tensor(x, requires_grad=True) for x in inputs)
    mixed = F.dropout(F.attention_weights(query, key, None, causal), p) @ value
    mixed.backward(cx.ones_like(mixed))
    return [mixed.detach().numpy().tobytes(), *(x.grad.numpy().tobytes() for x in (query, key, value))]


@pytest.mark.parametrize("causal", [False, True])
def test_dropout_of_tensors_draws_the_numbers_of_whole_matrices(
    isa: str, monkeypatch: pytest.MonkeyPatch, causal: bool
) -> None:
    known: dict[Any, Any] = {}
    monkeypatch.setattr(composed, "_ways", known)
    inputs = [np.random.default_rng(2).normal(size=(2, 2, 301, 64)).astype(np.float32) for _ in range(3)]
    cx.manual_seed(3)
    expected, behind = dropped_whole(inputs, 0.25, causal), cx.rand(1).item()
    cx.manual_seed(3)
    assert gradients_of(inputs, dropout_p=0.25, is_causal=causal) == expected
    assert cx.rand(1).item() == behind  # as many keys were drawn
    assert [kind.options[-1] for kind in known] == [0.25]


def test_second_derivatives_go_through_the_numbers_that_were_drawn() -> None:
    rng = np.random.default_rng(2)
    inputs = [rng.normal(size=(1, 2, 256, 128)).astype(np.float32) for _ in range(3)]
    found = []
    for whole in (False, True):
        cx.manual_seed(3)
        query, key, value = (cx.tensor(x, requires_grad=True) for x in inputs)
        if whole:
            mixed = F.dropout(F.attention_weights(query, key), 0.25) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=0.25)
        (first,) = cx.autograd.grad(mixed.square().sum(), [query], create_graph=True)
        (second,) = cx.autograd.grad(first.square().sum(), [key])
        found.append(second.numpy().tobytes())
    assert found[0] == found[1]


def attended(layer: nn.MultiheadAttention, x: np.ndarray[Any, Any], need_weights: bool) -> list[bytes]:
    given = cx.tensor(x, requires_grad=True)
    result, weights = layer(given, need_weights=need_weights, is_causal=True)
    assert (weights is None) != need_weights
    result.square().sum().backward()
    assert layer.in_proj_weight is not None and layer.in_proj_weight.grad is not None
    made = [result, given.grad, layer.in_proj_weight.grad]
    layer.zero_grad()
    return [each.detach().numpy().tobytes() for each in made]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_module_whose_weights_nobody_wants_makes_no_matrix_of_them(
    monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    known: dict[Any, Any] = {}
    monkeypatch.setattr(composed, "_ways", known)
    layer = nn.MultiheadAttention(64, 2, dropout, batch_first=True).eval()
    x = np.random.default_rng(4).normal(size=(2, 600, 64)).astype(np.float32)
    expected = attended(layer, x, need_weights=True)
    assert not {kind for kind in known if "attention" in kind.function.__name__}
    assert attended(layer, x, need_weights=False) == expected
    assert {kind for kind in known if "attention" in kind.function.__name__}


@pytest.mark.parametrize("kinds", ["bool bool", "float float", "bool float", "float bool"])
def test_two_masks_of_a_module_are_one_in_no_memory(monkeypatch: pytest.MonkeyPatch, kinds: str) -> None:
    known: dict[Any, Any] = {}
    monkeypatch.setattr(composed, "_ways", known)
    layer = nn.MultiheadAttention(64, 2, batch_first=True)
    x = np.random.default_rng(4).normal(size=(3, 400, 64)).astype(np.float32)
    hidden = [np.triu(np.ones((400, 400), bool), 9), np.arange(400) > np.array([[399], [250], [7]])]
    masks = [
        cx.tensor(mask if kind == "bool" else np.where(mask, -np.inf, 0.25).astype(np.float32))
        for mask, kind in zip(hidden, kinds.split(), strict=True)
    ]
    found = []
    for need_weights in (True, False):
        given = cx.tensor(x, requires_grad=True)
        result, _ = layer(given, given, given, masks[1], need_weights, masks[0])
        result.square().sum().backward()
        found.append([result.detach().numpy().tobytes(), given.grad.numpy().tobytes()])
    assert found[0] == found[1]
    (shapes,) = [[shape for shape, _ in kind.typed] for kind in known if "attention" in kind.function.__name__]
    assert shapes[3:] == [(400, 400), (3, 1, 1, 400)]


def hidden(fill: Any) -> list[np.ndarray[Any, Any]]:
    """Query, key, value and gradient of 256 positions, of which `fill` changes some."""
    rng = np.random.default_rng(6)
    arrays = [rng.normal(size=(2, 256, size)).astype(np.float32) for size in (TERMS, TERMS, VALUES, VALUES)]
    fill(*arrays)
    return arrays


def _nothing(query: Any, key: Any, value: Any, gradient: Any) -> None:
    pass


def _infinite_value(query: Any, key: Any, value: Any, gradient: Any) -> None:
    value[:, 200, 3] = np.inf


def _infinite_key(query: Any, key: Any, value: Any, gradient: Any) -> None:
    key[0, 255, 1] = -np.inf


def _gradient_without_a_number(query: Any, key: Any, value: Any, gradient: Any) -> None:
    gradient[1, 10, 2] = np.nan


def _values_that_come_to_minus_zero(query: Any, key: Any, value: Any, gradient: Any) -> None:
    value[:, :200] = -1e-45


def _gradients_that_come_to_minus_zero(query: Any, key: Any, value: Any, gradient: Any) -> None:
    gradient[:, :160], gradient[:, 160:] = -1e-45, 1.0  # from a block of its own on


@pytest.mark.parametrize("few_later", [False, True])
@pytest.mark.parametrize(
    "fill",
    [
        _nothing,
        _infinite_value,
        _infinite_key,
        _gradient_without_a_number,
        _values_that_come_to_minus_zero,
        _gradients_that_come_to_minus_zero,
    ],
)
def test_what_a_mask_hides_is_left_out_where_no_bit_depends_on_it(
    isa: str, monkeypatch: pytest.MonkeyPatch, fill: Any, few_later: bool
) -> None:
    monkeypatch.setattr(rowblocks, "BLOCK_BYTES", 40_000)
    seen = np.tril(np.ones((256, 256), bool))
    if few_later:  # what early blocks see late ones do not
        seen[:] = True
        seen[128:, 64:] = False
    graph = attention("rows", 256, 256, stack=(2,))
    plan, whole = Plan(graph, device="cpu"), Plan(graph, device="cpu", optimised=False)
    assert blocks_of(plan.graph)
    made = []
    for each in (plan, whole):
        names = ("query", "key", "value", "gradient", "mask")
        for name, array in zip(names, [*hidden(fill), seen], strict=True):
            each.inputs[name][...] = array
        each.run()
        made.append([output.copy() for output in each.outputs])
    for ours, expected in zip(*made, strict=True):
        assert np.array_equal(np.isnan(ours), np.isnan(expected))
        numbers = ~np.isnan(expected)
        assert ours[numbers].tobytes() == expected[numbers].tobytes()


def test_weights_that_are_seen_in_another_shape_are_made_whole() -> None:
    builder = Builder()
    query, key = (builder.input(name, (1, 3, 64, TERMS)) for name in ("query", "key"))
    value = builder.input("value", (3, 64, VALUES))
    weights = F.softmax(query @ key.mT, -1).reshape(3, 64, 64)
    graph = builder.graph((weights * weights) @ value)
    plan = Plan(graph, device="cpu")
    assert blocks_of(plan.graph)
    assert run(plan) == run(Plan(graph, device="cpu", optimised=False))


def test_what_others_read_of_a_shorter_last_block_is_stored() -> None:
    builder = Builder()
    query, key, gradient = (builder.input(name, (1, 3, 70, TERMS)) for name in ("query", "key", "gradient"))
    scores = query @ key.mT
    powers = (scores - scores.max(-1, keepdims=True)).exp()
    weights = powers / powers.sum(-1, keepdims=True)
    both = (weights * weights).sum()
    back = totals(builder, both + weights.sum(), builder.constant(1.0), [query, key], {})
    graph = builder.graph(both, (weights @ gradient).sum(), weights, *[x for x in back if x is not None])
    for threads in (1, 3):
        cpu.set_num_threads(threads)
        plan = Plan(graph, device="cpu")
        assert blocks_of(plan.graph)
        assert run(plan) == run(Plan(graph, device="cpu", optimised=False))


@pytest.mark.parametrize("numerics", ["fast", "fast16", "bf16"])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_a_class_that_splits_nothing_here_has_the_plans_of_the_exact_one(numerics: str, dropout: float) -> None:
    cpu.set_isa("portable")  # which has no tiles
    graph = dropping(67, 61) if dropout else attention("batch, causal", 67, 61)
    exact, plan = Plan(graph, device="cpu"), Plan(graph, device="cpu", numerics=numerics)
    assert plan.numerics == numerics
    assert plan.arena_bytes == exact.arena_bytes
    assert run(plan) == run(exact)


@pytest.mark.parametrize("numerics", ["fast", "bf16"])
def test_tensors_of_another_class_make_no_matrix_either(monkeypatch: pytest.MonkeyPatch, numerics: str) -> None:
    cpu.set_isa("portable")  # which has no tiles
    known: dict[Any, Any] = {}
    monkeypatch.setattr(composed, "_ways", known)
    inputs = [np.random.default_rng(2).normal(size=(2, 2, 301, 64)).astype(np.float32) for _ in range(3)]
    expected = gradients_of(inputs, is_causal=True)
    with cx.set_numerics(numerics):
        assert gradients_of(inputs, is_causal=True) == expected
    assert len(known) == 1  # by the same plans

"""Calls that run band by band: which ones, in what memory, and that no bit changes."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cyxcore as cx
from cyxcore import bands, placement, recompute
from cyxcore import functional as F
from cyxcore.errors import DataError
from cyxcore.gradients import backward
from cyxcore.graph import Graph
from cyxcore.kernels import cpu
from cyxcore.order import Schedule, schedule
from cyxcore.passes import optimise
from cyxcore.plan import Plan
from cyxcore.symbols import Builder, Symbol

ROWS, LENGTH, WIDTH, HEADS = 6, 5, 8, 2


@pytest.fixture(autouse=True)
def _small_is_large(monkeypatch: pytest.MonkeyPatch, own_machine: None) -> None:
    """Arrays of a test count as too large for a cache."""
    monkeypatch.setattr(bands, "BAND_BYTES", 256)
    monkeypatch.setattr(bands, "LEAST_BYTES", 1)
    monkeypatch.setattr(bands, "LEAST_ROWS", 1)
    monkeypatch.setattr(bands, "BANDS_OF_A_LANE", 1)


def state_of(graph: Graph, seed: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    params = [node.attrs for node in graph.nodes if node.op == "param"]
    return {each["name"]: rng.normal(size=each["shape"]).astype(np.float32) for each in params}


def run(plan: Plan, seed: int = 5) -> list[bytes]:
    rng = np.random.default_rng(seed)
    for _, array in sorted(plan.inputs.items()):
        array[...] = rng.integers(0, 3, array.shape) if array.dtype == np.int64 else rng.normal(size=array.shape)
    plan.run()
    return [output.tobytes() for output in plan.outputs]


def transformer(builder: Builder) -> Any:
    """One block with attention between an embedding and a loss."""

    def weight(name: str, *shape: int) -> Any:
        return builder.param(name, shape, {"kind": "constant", "value": 0.0})

    tokens, labels = builder.input("tokens", (ROWS, LENGTH), "int64"), builder.input("labels", (ROWS, LENGTH), "int64")
    x = F.embedding(tokens, weight("table", 7, WIDTH)) + weight("places", LENGTH, WIDTH)
    both = F.linear(F.layer_norm(x, (WIDTH,), weight("scale", WIDTH)), weight("qkv", 3 * WIDTH, WIDTH))
    both = both.reshape(ROWS, LENGTH, 3, HEADS, WIDTH // HEADS)
    q, k, v = (both[:, :, place].transpose(0, 2, 1, 3) for place in range(3))
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + mixed.transpose(0, 2, 1, 3).reshape(ROWS, LENGTH, WIDTH)
    up = F.linear(x, weight("up", 16, WIDTH), weight("bias", 16))
    x = x + F.linear(F.gelu(up, "tanh"), weight("down", WIDTH, 16))
    logits = F.linear(x, weight("head", 4, WIDTH))
    return F.cross_entropy(logits.reshape(-1, 4), labels.reshape(-1))


def transformer_step() -> Graph:
    builder = Builder()
    loss = transformer(builder)
    trained = [builder.at(place) for place, node in enumerate(builder.nodes) if node.op == "param"]
    return optimise(builder.graph(loss, *backward(builder, loss, trained)))


def test_forward_and_backward_of_a_transformer_are_one_stretch() -> None:
    graph = transformer_step()
    decided = schedule(graph, in_bands=True)
    (stretch,) = decided.stretches
    in_bands = {graph.nodes[place].op for place in stretch.places}
    assert stretch.bands == ROWS
    assert {"softmax", "cross_entropy_grad", "sigmoid", "take"} <= in_bands
    assert "take_grad" not in in_bands  # every row of the batch goes into one table
    for place in stretch.places:
        if graph.nodes[place].op == "matmul":
            assert not (graph.nodes[place].attrs["transpose_a"] and len(graph.infer(1).shapes[place]) == 2)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_bits_are_those_of_one_call_after_the_other(isa: str, threads: int) -> None:
    cpu.set_num_threads(threads)
    graph = transformer_step()
    plan = Plan(graph, state_of(graph), "cpu")
    assert schedule(plan.graph, in_bands=True).stretches
    expected = run(Plan(graph, state_of(graph), "cpu", optimised=False))
    assert run(plan) == expected
    assert run(plan) == expected  # and again: nothing of the first run is left over


def test_threads_may_become_more_or_fewer_after_planning() -> None:
    graph = transformer_step()
    cpu.set_num_threads(2)
    plan = Plan(graph, state_of(graph), "cpu")
    expected = run(plan)
    for threads in (1, 3):
        cpu.set_num_threads(threads)
        assert run(plan) == expected


def test_what_stays_within_a_stretch_takes_the_memory_of_one_band() -> None:
    builder = Builder()
    x = builder.input("x", (64, 100))
    y = x
    for _ in range(3):
        y = F.softmax(y.tanh(), 1) @ builder.constant(np.eye(100, dtype=np.float32))
    graph = optimise(builder.graph(y))
    cpu.set_num_threads(1)
    plan, plain = Plan(graph, device="cpu"), Plan(graph, device="cpu", optimised=False)
    assert run(plan) == run(plain)
    result_bytes = 64 * 100 * 4
    assert plan.arena_bytes < result_bytes * 1.2 < plain.arena_bytes


def assert_each_call_comes_once_and_after_those_it_reads(graph: Graph, decided: Schedule) -> None:
    done: set[int] = set()
    for place in decided.order:
        sources = {decided.alias.get(i, i) for i in graph.nodes[place].inputs}
        assert all(source in done for source in sources if source in decided.order)
        done.add(place)
    assert sorted(decided.order) == sorted(schedule(graph).order)


def test_every_call_comes_after_those_it_reads() -> None:
    graph = transformer_step()
    assert_each_call_comes_once_and_after_those_it_reads(graph, schedule(graph, in_bands=True))


def test_a_prime_number_of_small_rows_runs_in_no_bands() -> None:
    def bands_of(rows: int) -> set[int]:
        builder = Builder()
        x = builder.input("x", (rows, 3))
        graph = optimise(builder.graph(F.softmax(x.tanh(), 1).exp()))
        return {stretch.bands for stretch in schedule(graph, in_bands=True).stretches}

    assert bands_of(127) == set()  # 127 bands of 12 bytes each would take longer than no bands
    assert bands_of(128) == {8}


def recurrence_step(rows: int, steps: int, size: int = 5) -> Graph:
    """Forward and backward of an LSTM of that many states and a loss on its last one."""
    builder = Builder()

    def weight(name: str, *shape: int) -> Any:
        return builder.param(name, shape, {"kind": "constant", "value": 0.0})

    x, labels = builder.input("x", (rows, steps, 3)), builder.input("labels", (rows,), "int64")
    of_gates = [
        weight(name, 4 * size, *shape) for name, *shape in (("ih", 3), ("hh", size), ("bias_ih",), ("bias_hh",))
    ]
    weights = F.Weights(*of_gates)
    _, (hidden, _) = F.recur("lstm", x, weights)
    loss = F.cross_entropy(F.linear(hidden, weight("out", 4, size)), labels)
    trained = [builder.at(place) for place, node in enumerate(builder.nodes) if node.op == "param"]
    return optimise(builder.graph(loss, *backward(builder, loss, trained)))


def test_threads_share_out_the_rows_of_a_recurrence_not_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "BAND_BYTES", 256 * 1024)  # nothing of it is too large for a cache
    monkeypatch.setattr(bands, "LEAST_ROWS", 64)
    graph = recurrence_step(rows=24, steps=9)
    found = {lanes: schedule(graph, in_bands=True, lanes=lanes).stretches for lanes in (1, 2, 3, 4, 5)}
    assert {lanes: [stretch.bands for stretch in each] for lanes, each in found.items()} == {
        1: [],
        2: [2],
        3: [3],
        4: [],  # 6 rows each are too few
        5: [],
    }
    products = [place for place in found[2][0].places if graph.nodes[place].op == "matmul"]
    assert len(products) > 2 * 8  # of every step there and back


def test_many_stacks_of_products_are_no_recurrence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "BAND_BYTES", 4 * 8 * 8 * 4)  # four of the 16
    monkeypatch.setattr(bands, "LEAST_ROWS", 64)
    builder = Builder()
    x = builder.input("x", (16, 8, 8))
    y = x
    for _ in range(bands.MANY_PRODUCTS):
        y = builder.apply("matmul", [y, x], {"transpose_a": False, "transpose_b": False})
    graph = optimise(builder.graph(y))
    found = {lanes: schedule(graph, in_bands=True, lanes=lanes).stretches for lanes in (1, 2)}
    assert [each[0].bands for each in found.values()] == [4, 4]


@pytest.mark.parametrize("size", [5, 16])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_recurrence_has_the_same_bits_on_any_number_of_threads(
    isa: str, threads: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bands, "BAND_BYTES", 256 * 1024)
    monkeypatch.setattr(bands, "LEAST_ROWS", 64)
    cpu.set_num_threads(threads)
    graph = recurrence_step(rows=24, steps=9, size=size)
    expected = run(Plan(graph, state_of(graph), "cpu", optimised=False))
    plan = Plan(graph, state_of(graph), "cpu")
    assert run(plan) == expected
    assert run(plan) == expected


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("kind", list(F.CELLS))
def test_every_recurrence_has_the_bits_of_its_calls_one_by_one(
    kind: str, with_lengths: bool, reverse: bool, threads: int
) -> None:
    builder, size = Builder(), 16
    rows = F.CELLS[kind].gates * size

    def weight(name: str, *shape: int) -> Any:
        return builder.param(name, shape, {"kind": "constant", "value": 0.0})

    x, lengths = builder.input("x", (24, 7, 5)), builder.input("lengths", (24,), "int64") if with_lengths else None
    weights = F.Weights(weight("ih", rows, 5), weight("hh", rows, size), weight("one", rows), weight("other", rows))
    outputs, _ = F.recur(kind, x, weights, lengths=lengths, reverse=reverse)
    loss = (outputs * outputs).mean()
    trained = [builder.at(place) for place, node in enumerate(builder.nodes) if node.op == "param"]
    graph = optimise(builder.graph(loss, outputs, *backward(builder, loss, trained)))
    cpu.set_num_threads(threads)
    rng, plans = np.random.default_rng(3), []
    drawn = rng.normal(size=(24, 7, 5)).astype(np.float32)
    for optimised in (True, False):
        plan = Plan(graph, state_of(graph), "cpu", optimised=optimised)
        plan.inputs["x"][...] = drawn
        if with_lengths:
            plan.inputs["lengths"][...] = np.arange(24) % 8
        plan.run()
        plan.run()
        plans.append([x.tobytes() for x in plan.outputs])
    assert plans[0] == plans[1]


def calls_of_a_recurrence(threads: int) -> list[tuple[str, int]]:
    """Of each call of its plan the op, and of how many calls it is made."""
    graph = recurrence_step(rows=24, steps=9, size=16)
    cpu.set_num_threads(threads)
    plan = Plan(graph, state_of(graph), "cpu")
    run(plan)
    return [(plan.calls[first].op, count) for first, count, *_ in plan.program.__self__.timed()]  # type: ignore[attr-defined]


def test_threads_share_the_rows_of_a_gradient_that_every_step_adds_to() -> None:
    made = calls_of_a_recurrence(threads=2)
    assert ("matmul", 2 * 8) in made  # of nine steps, whose first product has nothing to be added to
    assert ("sum", 2 * 8) in made  # of the bias that each step adds


def test_one_thread_sums_up_each_step_while_it_is_near() -> None:
    made = calls_of_a_recurrence(threads=1)
    assert [count for op, count in made if op == "sum" and count > 2] == []


def convolutions_step() -> Graph:
    """Forward and backward of convolutions, pools and a loss."""
    builder = Builder()

    def weight(name: str, *shape: int) -> Any:
        return builder.param(name, shape, {"kind": "constant", "value": 0.0})

    x, labels = builder.input("x", (12, 2, 9, 9)), builder.input("labels", (12,), "int64")
    x = F.conv2d(x, weight("first", 3, 2, 3, 3), weight("bias", 3), padding=1).relu()
    x = F.max_pool2d(x, 2)
    x = F.avg_pool2d(F.conv2d(x, weight("second", 4, 3, 3, 3)).relu(), 2)
    loss = F.cross_entropy(F.linear(x.reshape(12, -1), weight("out", 4, 4)), labels)
    trained = [builder.at(place) for place, node in enumerate(builder.nodes) if node.op == "param"]
    return optimise(builder.graph(loss, *backward(builder, loss, trained)))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_what_follows_a_convolution_runs_in_bands_and_changes_no_bit(isa: str, threads: int) -> None:
    cpu.set_num_threads(threads)
    graph = convolutions_step()
    plan, plain = Plan(graph, state_of(graph), "cpu"), Plan(graph, state_of(graph), "cpu", optimised=False)
    found = [{plan.graph.nodes[p].op for p in each.places} for each in schedule(plan.graph, in_bands=True).stretches]
    assert any({"relu", "max_pool2d"} <= ops for ops in found)
    assert any("max_pool2d_grad" in ops for ops in found)
    assert not any("conv2d" in ops for ops in found)
    assert run(plan) == run(plain)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_gradient_of_a_pool_is_made_where_its_masked_result_is_kept(threads: int) -> None:
    graph = convolutions_step()
    cpu.set_num_threads(threads)
    plan = Plan(graph, state_of(graph), "cpu")
    nodes, made = plan.graph.nodes, [place for place, node in enumerate(plan.graph.nodes) if "pool2d_grad" in node.op]
    assert {nodes[place].op for place in made} == {"max_pool2d_grad", "avg_pool2d_grad"}
    for place in made:
        kept = next(later for later, node in enumerate(nodes) if node.op == "mul" and place in node.inputs)
        assert plan.arrays[place].ctypes.data == plan.arrays[kept].ctypes.data
    assert run(plan) == run(Plan(graph, state_of(graph), "cpu", optimised=False))


OPS = ("tanh", "add row", "add", "softmax", "mean", "matmul", "transpose", "slice", "concat", "pad", "turned", "where")


@st.composite
def graphs(draw: Any) -> Graph:
    """Operations on (12, 4, 6) in any order; some need all rows."""
    builder = Builder()
    values = [builder.input("x", (12, 4, 6))]
    square = builder.param("square", (6, 6), {"kind": "constant", "value": 0.0})
    for _ in range(draw(st.integers(3, 15))):
        x, y = (values[draw(st.integers(0, len(values) - 1))] for _ in range(2))
        kind = draw(st.sampled_from((*OPS, "over the batch", "turned rows")))
        if kind == "tanh":
            new = x.tanh()
        elif kind == "add row":
            new = x + builder.constant(np.arange(6, dtype=np.float32))
        elif kind == "add":
            new = x * 0.5 + y
        elif kind == "softmax":
            new = F.softmax(x, draw(st.sampled_from((1, 2))))
        elif kind == "mean":
            new = x - y.mean((draw(st.sampled_from((1, 2))),), keepdims=True)
        elif kind == "matmul":
            new = (x.reshape(48, 6) @ square).reshape(12, 4, 6)
        elif kind == "transpose":
            new = x.transpose(0, 2, 1).reshape(12, 4, 6)
        elif kind == "slice":
            new = F.concat([x[:, 2:], y[:, :2]], 1)
        elif kind == "concat":
            new = F.concat([x, y], 2)[:, :, ::2]
        elif kind == "pad":
            new = F.pad(x[:, :3], ((0, 0), (1, 0), (0, 0)), value=0.5)
        elif kind == "turned":
            new = (x @ y.transpose(0, 2, 1)) @ y
        elif kind == "where":
            new = F.where(x > 0.0, y, -0.25)
        elif kind == "over the batch":
            new = x - y.mean((0,), keepdims=True)
        else:
            new = x[::-1]
        values.append(new)
    results = draw(st.lists(st.integers(1, len(values) - 1), min_size=1, max_size=3))
    weight_like = values[-1].reshape(48, 6)
    return optimise(builder.graph(*(values[place] for place in results), weight_like.mT @ weight_like))


@given(graphs(), st.integers(1, 3), st.booleans(), st.booleans())
@settings(max_examples=120, deadline=None)
def test_any_mixture_has_the_bits_of_one_call_after_the_other(
    graph: Graph, threads: int, cut: bool, again: bool
) -> None:
    cpu.set_num_threads(threads)
    with pytest.MonkeyPatch.context() as patch:
        if cut:
            patch.setattr(bands, "LEAST_FREED", 1)
        if again:
            patch.setattr(recompute, "LEAST_BYTES", 1)
        plan = Plan(graph, state_of(graph), "cpu")
    assert run(plan) == run(Plan(graph, state_of(graph), "cpu", optimised=False))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_stretch_is_cut_where_that_frees_memory(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """Layers of tanh: the gradient of each weight needs all rows of what goes into it and of what comes back."""
    monkeypatch.setattr(bands, "BANDS_OF_A_LANE", ROWS + 1)  # where bands do not add up
    builder = Builder()
    x = builder.input("x", (ROWS, 4, WIDTH)).reshape(4 * ROWS, WIDTH)
    for layer in range(8):
        x = (x @ builder.param(f"{layer}", (WIDTH, WIDTH), {"kind": "constant", "value": 0.0})).tanh()
    trained = [builder.at(place) for place, node in enumerate(builder.nodes) if node.op == "param"]
    loss = x.sum()
    graph = optimise(builder.graph(loss, *backward(builder, loss, trained)))
    cpu.set_num_threads(threads)
    whole = Plan(graph, state_of(graph), "cpu")
    assert len(schedule(whole.graph, in_bands=True).stretches) <= 2
    array_bytes = 4 * ROWS * WIDTH * 4
    monkeypatch.setattr(bands, "LEAST_FREED", array_bytes)
    cut = Plan(graph, state_of(graph), "cpu")
    assert len(schedule(cut.graph, in_bands=True).stretches) >= 8
    # Of the 8 gradients that whole stretches keep at once, one or two are there at a time.
    assert cut.arena_bytes <= whole.arena_bytes - 5 * array_bytes
    assert run(cut) == run(whole) == run(Plan(graph, state_of(graph), "cpu", optimised=False))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("rows", "length", "blocks"), [(16, 64, True), (11, 32, True), (6, 96, False)])
def test_bands_add_up_the_gradients_of_weights(isa: str, threads: int, rows: int, length: int, blocks: bool) -> None:
    """Products, and sums where the rows of a band are a part of their tree: one block of 32 or two, not three."""
    cpu.set_num_threads(threads)
    builder = Builder()

    def weight(name: str, *shape: int) -> Any:
        return builder.param(name, shape, {"kind": "constant", "value": 0.0})

    x, labels = builder.input("x", (rows, length, 40)), builder.input("labels", (rows, length), "int64")
    x = F.relu(F.linear(x, weight("in", 150, 40), weight("bias_in", 150)))
    x = F.layer_norm(x, (150,), weight("scale", 150), weight("shift", 150))
    logits = F.linear(x, weight("out", 21, 150), weight("bias_out", 21))
    loss = F.cross_entropy(logits.reshape(-1, 21), labels.reshape(-1))
    trained = [builder.at(place) for place, node in enumerate(builder.nodes) if node.op == "param"]
    graph = optimise(builder.graph(loss, *backward(builder, loss, trained)))
    plan = Plan(graph, state_of(graph), "cpu")
    decided = schedule(plan.graph, in_bands=True, lanes=threads, exact=True)
    added = [plan.graph.nodes[place].op for each in decided.stretches for place in each.adds]
    assert sorted(added) == (["matmul"] * 2 + ["sum"] * 4 if blocks else ["matmul"] * 2)
    expected = run(Plan(graph, state_of(graph), "cpu", optimised=False))
    assert run(plan) == expected
    assert run(plan) == expected


@pytest.mark.parametrize("lanes", [1, 2])
def test_bands_that_add_up_end_where_one_before_them_fails(lanes: int) -> None:
    cpu.set_num_threads(lanes)
    rng = np.random.default_rng(2)
    logits, labels = rng.normal(size=(64, 5)).astype(np.float32), rng.integers(0, 5, 64)
    loss, made = np.empty(64, np.float32), np.empty((5, 5), np.float32)
    turned = {"transpose_a": True, "transpose_b": False}
    program = cpu.Program()
    program.add("matmul", made, [logits[:4], logits[:4]], turned)
    program.add("cross_entropy", loss[:4], [logits[:4], labels[:4]], {})
    program.add("matmul", np.empty((5, 5), np.float32), [logits[:4], logits[:4]], turned)
    of_rows = (4 * 5 * 4, 0)
    product = [(0, 0), of_rows, of_rows]
    program.stretch(0, 16, lanes, [product, [(4 * 4, 0), of_rows, (4 * 8, 0)], product], [0, 2])
    program.fuse()
    expected = np.empty((5, 5), np.float32)
    cpu.call("matmul", expected, [logits, logits], turned)
    for wrong in (17, 2):
        right, labels[wrong] = int(labels[wrong]), 9
        with pytest.raises(DataError, match=f"got 9 in row {wrong}"):
            program.run()
        labels[wrong] = right
        program.run()
        assert made.tobytes() == expected.tobytes()


def both_passes(builder: Builder, x: Symbol) -> Graph:
    """A loss of x, which divides the bands of the two passes, and the gradients of all parameters."""
    trained = [builder.at(place) for place, node in enumerate(builder.nodes) if node.op == "param"]
    loss = (x * x.mean((0,), keepdims=True)).sum()
    return optimise(builder.graph(loss, *backward(builder, loss, trained)))


def of_gelu_layers(layers: int, approximate: str = "tanh") -> Graph:
    builder = Builder()
    x = builder.input("x", (ROWS, 4, WIDTH)).reshape(4 * ROWS, WIDTH)
    for layer in range(layers):
        weight = builder.param(f"{layer}", (WIDTH, WIDTH), {"kind": "constant", "value": 0.0})
        x = F.linear(F.gelu(x, approximate) if layer else x, weight)
    return both_passes(builder, x)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("approximate", "costly"), [("none", "gelu"), ("tanh", "sigmoid")])
def test_later_bands_make_cheap_arrays_again(
    monkeypatch: pytest.MonkeyPatch, approximate: str, costly: str, threads: int
) -> None:
    """Of layers of gelu what goes into each is kept for the way back, not its sigmoid, nor what comes out."""
    layers = 6
    graph = of_gelu_layers(layers + 1, approximate)
    cpu.set_num_threads(threads)
    monkeypatch.setattr(bands, "LEAST_FREED", 1)
    kept = Plan(graph, state_of(graph), "cpu")
    monkeypatch.setattr(recompute, "LEAST_BYTES", 1)
    again = Plan(graph, state_of(graph), "cpu")

    def made(plan: Plan) -> int:
        return sum(call.op == costly for call in plan.calls)

    assert (made(kept), made(again)) == (layers, 2 * layers)
    arrays = layers if costly == "sigmoid" else layers // 2  # of each layer two are not kept, or one
    assert again.arena_bytes <= kept.arena_bytes - arrays * 4 * ROWS * WIDTH * 4
    assert run(again) == run(kept) == run(Plan(graph, state_of(graph), "cpu", optimised=False))


@pytest.mark.parametrize("threads", [1, 2])
def test_later_bands_make_weights_of_attention_again(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """Where the scores are sums of few terms: queries and keys are kept, and not the weights of all pairs, but for the
    last layers, as far as these are a small part of all that is kept.
    """
    builder, layers, length = Builder(), 3, 32
    x = builder.input("x", (ROWS, length, WIDTH))
    for layer in range(layers):
        weights = [builder.param(f"{layer}.{i}", (WIDTH, WIDTH), {"kind": "constant", "value": 0.0}) for i in range(3)]
        q, k, v = (F.linear(x, weight).reshape(ROWS, length, 2, WIDTH // 2).transpose(0, 2, 1, 3) for weight in weights)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + mixed.transpose(0, 2, 1, 3).reshape(ROWS, length, WIDTH)
    graph = both_passes(builder, x)
    cpu.set_num_threads(threads)
    kept = Plan(graph, state_of(graph), "cpu")
    monkeypatch.setattr(recompute, "LEAST_BYTES", 1)
    monkeypatch.setattr(recompute, "SHARE_OF_WEIGHTS", 1 << 30)
    again = Plan(graph, state_of(graph), "cpu")
    monkeypatch.setattr(recompute, "SHARE_OF_WEIGHTS", 2)
    some = Plan(graph, state_of(graph), "cpu")

    def softmaxes(plan: Plan) -> int:
        return sum(call.op == "softmax" for call in plan.calls)

    assert (softmaxes(kept), softmaxes(again), softmaxes(some)) == (layers, 2 * layers, 2 * layers - 1)
    assert again.arena_bytes <= kept.arena_bytes - layers * ROWS * 2 * length * length * 4 / 2
    assert again.arena_bytes < some.arena_bytes < kept.arena_bytes
    assert run(again) == run(some) == run(kept) == run(Plan(graph, state_of(graph), "cpu", optimised=False))


@pytest.mark.parametrize("threads", [1, 2])
def test_bands_write_where_they_have_read_for_the_last_time(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """Of layers of gelu: one of the arrays that the backward pass writes lies where what goes into the layer lay."""
    monkeypatch.setattr(bands, "BANDS_OF_A_LANE", ROWS + 1)
    graph = of_gelu_layers(6)
    cpu.set_num_threads(threads)
    monkeypatch.setattr(bands, "LEAST_FREED", 1)
    taken_over, found = placement._taken_over, list[dict[int, int]]()
    monkeypatch.setattr(placement, "_taken_over", lambda *given: found.append(taken_over(*given)) or found[-1])
    over = Plan(graph, state_of(graph), "cpu")
    assert sum(map(len, found)) >= 5
    at = {place: over.arrays[place].ctypes.data for each in found for pair in each.items() for place in pair}
    assert all(at[new] == at[old] for each in found for new, old in each.items())
    monkeypatch.setattr(placement, "_taken_over", lambda *_: {})
    apart = Plan(graph, state_of(graph), "cpu")
    assert over.arena_bytes <= apart.arena_bytes
    assert run(over) == run(apart) == run(Plan(graph, state_of(graph), "cpu", optimised=False))


@pytest.mark.parametrize("threads", [1, 3])
def test_a_label_out_of_range_is_named_with_its_row_in_the_batch(threads: int) -> None:
    cpu.set_num_threads(threads)
    graph = transformer_step()
    plan = Plan(graph, state_of(graph), "cpu")
    expected = run(plan)
    plan.inputs["labels"][3, 1] = 9
    plan.inputs["labels"][5, 0] = 11
    with pytest.raises(DataError, match=f"got 9 in row {3 * LENGTH + 1}"):
        plan.run()
    assert run(plan) == expected


def test_a_program_refuses_a_stretch_that_is_not_its_own() -> None:
    x = np.zeros((4, 3), np.float32)
    program = cpu.Program()
    program.add("neg", x[:2], [x[:2]], {})
    for first, count, lanes, steps in ((0, 2, 0, [[(24, 0)] * 2]), (1, 2, 1, [[(24, 0)] * 2]), (0, 2, 1, [[(24, 0)]])):
        with pytest.raises(ValueError, match="expected"):
            program.stretch(first, count, lanes, steps)


def test_a_compiled_step_in_bands_is_the_plain_one() -> None:
    def losses(compiled: bool) -> list[float]:
        cx.manual_seed(0)
        model = cx.nn.Sequential(cx.nn.Linear(6, 40), cx.nn.GELU(), cx.nn.LayerNorm(40), cx.nn.Linear(40, 3))
        optimizer = cx.optim.AdamW(model.parameters(), lr=0.01)

        def step(x: Any, y: Any) -> Any:
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        rng = np.random.default_rng(1)
        x, y = cx.tensor(rng.normal(size=(20, 6)).astype(np.float32)), cx.tensor(rng.integers(0, 3, 20))
        made = cx.compile(step) if compiled else step
        return [made(x, y).item() for _ in range(4)]

    assert losses(True) == losses(False)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("dtype", "rows", "n", "k"), [("float32", 7, 45, 900), ("float32", 30, 64, 33), ("float64", 5, 70, 401)]
)
def test_a_matrix_that_all_bands_multiply_by_is_packed_for_all(
    isa: str, turned: bool, dtype: str, rows: int, n: int, k: int
) -> None:
    """Its products have the bits of one product of all rows, and write nowhere else; the matrix may change."""
    count, rng = 6, np.random.default_rng(5)
    a, b = rng.normal(size=(count * rows, k)).astype(dtype), rng.normal(size=(n, k) if turned else (k, n)).astype(dtype)
    held = np.full((count * rows + 2, n), 7, dtype)
    out, added = held[1:-1], np.full((count * rows, n), 7, dtype)
    row, attrs = rng.normal(size=n).astype(dtype), {"transpose_a": False, "transpose_b": turned}
    size = out.itemsize * rows
    for lanes in (1, 2, 3):
        cpu.set_num_threads(lanes)
        program = cpu.Program()
        program.add("matmul", out[:rows], [a[:rows], b], attrs)
        program.add("add", added[:rows], [out[:rows], row], {})
        steps = [[(size * n, 0), (size * k, 0), (0, 0)], [(size * n, 0), (size * n, 0), (0, 0)]]
        program.stretch(0, count, lanes, steps)
        for _ in range(2):
            program.run()
            whole = np.empty((count * rows, n), dtype)
            cpu.call("matmul", whole, [a, b], attrs)
            assert out.tobytes() == whole.tobytes() and added.tobytes() == (whole + row).tobytes()
            assert (held[[0, -1]] == 7).all()
            b[...] = rng.normal(size=b.shape)


def banded(a: Any, b: Any, bands: int, rows: int) -> tuple[cpu.Program, Any]:
    """`a` @ `b` with the rows of a in bands, as a program; and its result."""
    out = np.zeros((*a.shape[:-1], b.shape[-1]), np.float32)
    program = cpu.Program()
    plain = {"transpose_a": False, "transpose_b": False}
    program.add("matmul", out[:rows], (a[:rows], b), plain)
    program.stretch(0, bands, 1, [[(rows * out[0].nbytes, 0), (rows * a[0].nbytes, 0), (0, 0)]])
    program.fuse()
    return program, out


def test_a_program_writes_to_what_all_bands_write_to() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(32, 96)).astype(np.float32), rng.normal(size=(96, 200)).astype(np.float32)
    program, out = banded(a, b, 8, 4)
    assert program.written() == [(out.ctypes.data, out.ctypes.data + out.nbytes)]


def test_a_factor_that_is_packed_for_all_bands_counts_as_memory() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(32, 96)).astype(np.float32), rng.normal(size=(96, 200)).astype(np.float32)
    program, out = banded(a, b, 8, 4)
    program.run()
    whole, expected = banded(a, b, 1, 32)
    whole.run()
    assert out.tobytes() == expected.tobytes()
    assert b.nbytes <= program.packed_bytes < 2 * b.nbytes
    assert whole.packed_bytes == 0


def test_a_factor_seen_in_two_shapes_is_packed_for_matrices_only() -> None:
    rng = np.random.default_rng(4)
    weight = rng.normal(size=(1, 64)).astype(np.float32)
    column = weight.reshape(1, 64, 1)  # the same memory, the same first sizes
    a, stack = rng.normal(size=(32, 1)).astype(np.float32), rng.normal(size=(8, 2, 64)).astype(np.float32)
    plain = {"transpose_a": False, "transpose_b": False}

    def run(bands: int) -> tuple[bytes, bytes]:
        out, columns = np.zeros((32, 64), np.float32), np.zeros((8, 2, 1), np.float32)
        program = cpu.Program()
        program.add("matmul", out[: 32 // bands], (a[: 32 // bands], weight), plain)
        program.add("matmul", columns[: 8 // bands], (stack[: 8 // bands], column), plain)
        first = [(out.nbytes // bands, 0), (a.nbytes // bands, 0), (0, 0)]
        second = [(columns.nbytes // bands, 0), (stack.nbytes // bands, 0), (0, 0)]
        program.stretch(0, bands, 1, [first, second])
        program.fuse()
        program.run()
        return out.tobytes(), columns.tobytes()

    assert run(8) == run(1)

"""Element-wise calls made together: which ones, and that no bit changes."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import cyxcore as cx
from cyxcore import functional as F
from cyxcore import onepass
from cyxcore.gradients import backward
from cyxcore.graph import Graph
from cyxcore.kernels import cpu
from cyxcore.order import schedule
from cyxcore.passes import optimise
from cyxcore.plan import Plan
from cyxcore.recompute import recompute
from cyxcore.symbols import Builder

SIZE = 5000
MEMORY = np.zeros(8 * SIZE, np.float32)
OUTSIDE, NUMBER = np.zeros(SIZE, np.float32), np.zeros(1, np.float32)


def slot(place: int, size: int = SIZE, shift: int = 0) -> Any:
    start = place * SIZE + shift
    return MEMORY[start : start + size]


def found(*calls: tuple[Any, ...], results: Any = ()) -> list[tuple[int, list[bool]]]:
    """The groups of calls (output, input, input or nothing), and which of their outputs are stored."""
    program = cpu.Program()
    for out, *inputs in calls:
        if out.size == inputs[0].size or len(inputs) > 1:
            program.add("add" if len(inputs) > 1 else "neg", out, inputs, {})
        else:
            program.add("max", out, inputs, {"axes": (0,), "keepdims": True})
    return program.fuse(MEMORY, results)


@contextlib.contextmanager
def kernels(isa: str, threads: int | None = None, skips: bool = False) -> Iterator[None]:
    """With these kernels and so many threads. Where the machine lacks them: with its own, or the test is skipped."""
    before = cpu.isa(), cpu.get_num_threads()
    try:
        cpu.set_isa(isa)
    except ValueError:
        if skips:
            pytest.skip(f"this machine has no {isa}")
    cpu.set_num_threads(threads or before[1])
    try:
        yield
    finally:
        cpu.set_isa(before[0])
        cpu.set_num_threads(before[1])


def check_against_one_call_after_the_other(graph: cx.Graph, shapes: dict[str, Any], runs: int = 1) -> None:
    """The bits of the graph's plan are those of its calls as they stand; which NaN it is does not count."""
    plan, alone = Plan(graph, device="cpu"), Plan(graph, device="cpu", optimised=False)
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        drawn = rng.normal(size=shape).astype(np.float32)
        for each in (plan, alone):
            if name in each.inputs:
                each.inputs[name][...] = drawn
    for _ in range(runs):
        plan.run()
    for op, out, inputs, attrs in alone.calls:
        cpu.call(op, out, list(inputs), dict(attrs))
    for one, other in zip(plan.outputs, alone.outputs, strict=True):
        np.testing.assert_array_equal(one.view(np.uint32)[~np.isnan(one)], other.view(np.uint32)[~np.isnan(other)])
        np.testing.assert_array_equal(np.isnan(one), np.isnan(other))


def test_what_only_the_group_reads_is_not_stored() -> None:
    chain = [(slot(0), OUTSIDE, NUMBER), (slot(1), slot(0), slot(0)), (slot(2), slot(1), OUTSIDE)]
    assert found(*chain, results=[slot(2)]) == [(0, [False, False, True])]
    assert found(*chain, results=[slot(2), slot(0)]) == [(0, [True, False, True])]


def test_what_is_read_later_is_stored() -> None:
    chain = [(slot(0), OUTSIDE), (slot(1), slot(0)), (slot(2, 1), slot(0))]
    assert found(*chain, results=[slot(1), slot(2, 1)]) == [(0, [True, True])]


def test_memory_used_again_belongs_to_its_last_writer() -> None:
    chain = [(slot(0), OUTSIDE), (slot(1), slot(0)), (slot(2, 1), slot(1)), (slot(0), OUTSIDE)]
    assert found(*chain, results=[slot(0)]) == [(0, [False, True])]


def test_what_is_not_in_the_arena_is_always_stored() -> None:
    own = np.zeros(SIZE, np.float32)
    assert found((own, slot(0)), (slot(1), own), results=[slot(1)]) == [(0, [True, True])]


@pytest.mark.parametrize(
    "second",
    [
        (slot(1, SIZE - 1), slot(0, SIZE - 1)),  # another size
        (slot(2, shift=7), slot(0)),  # its output lies across what the first reads
        (slot(1), slot(0, shift=3)),  # it reads across what the first writes
        (slot(1), slot(1, shift=3)),  # it reads across what it writes itself
        (slot(0, shift=3), OUTSIDE),  # both write, at different places
    ],
)
def test_what_would_disturb_the_others_is_made_alone(second: tuple[Any, ...]) -> None:
    assert found((slot(0), slot(2)), second, results=[second[0]]) == []


def test_an_output_in_the_place_of_an_input_is_no_disturbance() -> None:
    assert found((slot(0), slot(0)), (slot(0), slot(0)), results=[slot(0)]) == [(0, [False, True])]


def test_other_kernels_divide_groups_and_none_is_too_long() -> None:
    chain = [(slot(place % 2), slot((place + 1) % 2)) for place in range(40)]
    assert [len(stored) for _, stored in found(*chain)] == [32, 8]
    assert [first for first, _ in found(*chain[:5], (slot(3, 1), slot(1)), *chain[5:20])] == [0, 6]


def test_small_calls_are_made_alone() -> None:
    assert found((slot(0, 100), slot(1, 100)), (slot(2, 100), slot(0, 100))) == []


UNARY = ("neg", "abs", "exp", "tanh", "sigmoid", "relu", "square", "sign", "floor", "sin", "erf", "gelu")
BINARY = ("add", "sub", "mul", "div", "maximum", "minimum")
SHAPES = [(33, 70), (70,), (33, 1), (), (1, 70)]


@st.composite
def graphs(draw: Any) -> Any:
    """A graph of element-wise operations on a matrix, its row, its column and a number."""
    builder = Builder()
    values = [builder.input(f"x{place}", shape) for place, shape in enumerate(SHAPES)]
    for _ in range(draw(st.integers(2, 24))):
        one = values[draw(st.integers(0, len(values) - 1))]
        if draw(st.booleans()):
            values.append(builder.apply(draw(st.sampled_from(UNARY)), [one], {}))
            continue
        other = values[draw(st.integers(0, len(values) - 1))]
        if draw(st.integers(0, 5)) == 0:
            chosen = builder.apply("less", [one, other], {})
            values.append(builder.apply("where", [chosen, one, other], {}))
            values.append(builder.apply("cast", [chosen], {"dtype": "float32"}))
        else:
            values.append(builder.apply(draw(st.sampled_from(BINARY)), [one, other], {}))
    last = draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=3))
    return builder.graph(*(values[place] * 1.5 for place in last))


@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("size", [1, 7, 64, 1001, SIZE])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_an_update_is_made_in_one_pass_in_place(isa: str, dtype: Any, size: int, decay: float) -> None:
    rng = np.random.default_rng(1)
    first = {name: rng.uniform(0.1, 1, size).astype(dtype) for name in "pgmv"}
    lr, step = np.full((), 0.1, dtype), np.full((), 3, dtype)
    moments, adam = {"beta": 0.9, "weight_decay": decay}, {"beta1": 0.9, "beta2": 0.9, "eps": 1e-8}
    adam["decoupled_weight_decay"] = 0.02
    results = []
    with kernels(isa):
        for together in (False, True):
            p, g, m, v = (first[name].copy() for name in "pgmv")
            program = cpu.Program()
            program.add("adam_m", m, [m, g, p], moments)
            program.add("adam_v", v, [v, g, p], moments)
            program.add("adam_update", p, [p, m, v, lr, step], adam)
            if together:
                assert program.fuse(MEMORY) == [(0, [True, True, True])]
            for value in (3, 4):
                step[...] = value
                program.run()
            results.append([x.tobytes() for x in (p, m, v)])
    assert results[0] == results[1]


def test_updates_of_parameters_of_different_dtypes_are_made_apart() -> None:
    """Of one size, and one behind the other: a model of float32 with a layer of float64."""
    rng = np.random.default_rng(1)
    first = [{name: rng.uniform(0.1, 1, 64).astype(dtype) for name in "pgmv"} for dtype in (np.float32, np.float64)]
    moments, adam = {"beta": 0.9, "weight_decay": 0.0}, {"beta1": 0.9, "beta2": 0.9, "eps": 1e-8}
    results = []
    for together in (False, True):
        program, kept = cpu.Program(), []
        for each in first:
            p, g, m, v = (each[name].copy() for name in "pgmv")
            lr, step = np.full((), 0.1, p.dtype), np.full((), 3, p.dtype)
            program.add("adam_m", m, [m, g, p], moments)
            program.add("adam_v", v, [v, g, p], moments)
            program.add("adam_update", p, [p, m, v, lr, step], {**adam, "decoupled_weight_decay": 0.0})
            kept += [p, m, v]
        if together:
            program.fuse(MEMORY)
        program.run()
        results.append([x.tobytes() for x in kept])
    assert results[0] == results[1]


def test_updates_of_parameters_of_different_sizes_are_one_group() -> None:
    """One behind the other, whatever rates, numbers of steps and constants each of them has."""
    rng = np.random.default_rng(1)
    kinds = [(64, 0.9, 0.0, 0), (7, 0.9, 0.0, 0), (7, 0.8, 0.0, 0), (300, 0.8, 0.0, 1), (1, 0.8, 0.1, 1)]
    numbers = [(np.full((), 0.1 + k, np.float32), np.full((), 3.0 + k, np.float32)) for k in range(2)]
    first = [{name: rng.uniform(0.1, 1, kind[0]).astype(np.float32) for name in "pgmv"} for kind in kinds]
    results = []
    for together in (False, True):
        program, kept = cpu.Program(), []
        for each, (_, beta, decay, own) in zip(first, kinds, strict=True):
            p, g, m, v = (each[name].copy() for name in "pgmv")
            adam = {"beta1": beta, "beta2": 0.99, "eps": 1e-8, "decoupled_weight_decay": decay}
            program.add("adam_m", m, [m, g, p], {"beta": beta, "weight_decay": 0.0})
            program.add("adam_v", v, [v, g, p], {"beta": 0.99, "weight_decay": 0.0})
            program.add("adam_update", p, [p, m, v, *numbers[own]], adam)
            kept += [p, m, v]
        if together:
            assert program.fuse(MEMORY) == [(0, [True] * 15)]
        program.run()
        results.append([x.tobytes() for x in kept])
    assert results[0] == results[1]


@st.composite
def cut_graphs(draw: Any) -> Any:
    """A graph of element-wise operations on (33, 70) matrices, many of them cut out of larger arrays."""
    builder = Builder()
    wide, tall = builder.input("wide", (33, 280)), builder.input("deep", (33, 9, 70))
    values = [builder.input("x", (33, 70))]
    for _ in range(draw(st.integers(3, 24))):
        one, other = (values[draw(st.integers(0, len(values) - 1))] for _ in range(2))
        kind = draw(st.integers(0, 4))
        if kind == 0:
            step = draw(st.integers(1, 4))
            start = draw(st.integers(0, 280 - 69 * step - 1))
            values.append(wide[:, start : start + 69 * step + 1 : step])
        elif kind == 1:
            place = draw(st.integers(0, 8))
            values.append(tall[:, place : place + 1].reshape(33, 70))
        elif kind == 2:
            values.append(builder.apply(draw(st.sampled_from(UNARY)), [one], {}))
        elif kind == 3:
            wide = F.concat([one, other, one, other], 1)
        else:
            values.append(builder.apply(draw(st.sampled_from(BINARY)), [one, other], {}))
    last = draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=3))
    return builder.graph(*(values[place] * 1.5 for place in last))


@settings(max_examples=150, deadline=None)
@given(cut_graphs(), st.integers(1, 3), st.sampled_from(["avx512", "avx2", "portable"]))
def test_slices_made_with_who_reads_them_have_the_bits_of_both(graph: cx.Graph, threads: int, isa: str) -> None:
    with kernels(isa, threads):
        check_against_one_call_after_the_other(graph, {"x": (33, 70), "wide": (33, 280), "deep": (33, 9, 70)}, runs=2)


def test_a_slice_that_runs_backwards_is_made_when_all_that_it_reads_is_there() -> None:
    """It is as large as what it reads, at another place of it."""
    x, (turned, out) = np.arange(SIZE, dtype=np.float32), np.empty((2, SIZE), np.float32)
    program = cpu.Program()
    program.add("neg", turned, [x], {})
    program.add("slice", out, [turned], {"starts": (SIZE - 1,), "stops": (-1,), "steps": (-1,)})
    program.add("square", out, [out], {})
    program.fuse(MEMORY)
    program.run()
    np.testing.assert_array_equal(out, np.square(-x[::-1]))


def test_the_gates_of_a_recurrence_are_cut_out_where_they_are_used() -> None:
    builder = Builder()
    gates, cell = builder.input("gates", (32, 512)), builder.input("cell", (32, 128))
    i, f, g, o = (gates[:, part * 128 : (part + 1) * 128] for part in range(4))
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    plan = Plan(builder.graph(o.sigmoid() * cell.tanh()), device="cpu")
    assert [count for _, count, *_ in plan.program.__self__.timed()] == [len(plan.calls)]  # type: ignore[attr-defined]


def test_cheap_values_are_made_again_where_they_are_needed_late() -> None:
    builder = Builder()
    x, w = builder.input("x", (256, 256)), builder.input("w", (256, 256))
    cheap, costly = (x @ w) * 2.0 + 1.0, (x @ w).tanh()
    late = (cheap.relu() * costly) @ w
    graph = optimise(builder.graph(late * cheap * costly))
    again = recompute(graph)
    ops = [node.op for node in again.nodes]
    assert ops.count("tanh") == 1 and ops.count("matmul") == 2
    assert ops.count("add") == 2  # cheap is made twice: it is never stored
    assert again.infer(1).shapes == Graph(again.nodes, again.outputs).infer(1).shapes
    plan, plain = Plan(graph, device="cpu"), Plan(graph, device="cpu", optimised=False)
    for name in ("x", "w"):
        plan.inputs[name][...] = plain.inputs[name][...] = np.random.default_rng(2).normal(size=(256, 256))
    plan.run()
    plain.run()
    assert plan.outputs[0].tobytes() == plain.outputs[0].tobytes()


@settings(max_examples=150, deadline=None)
@given(graphs(), st.integers(1, 3), st.sampled_from(["portable", cpu.isa()]))
def test_a_plan_computes_the_bits_of_its_calls_one_by_one(graph: cx.Graph, threads: int, isa: str) -> None:
    with kernels(isa, threads):
        plan, alone = Plan(graph, device="cpu"), Plan(graph, device="cpu")
        rng = np.random.default_rng(0)
        for place, shape in enumerate(SHAPES):
            if f"x{place}" in plan.inputs:
                drawn = rng.normal(size=shape).astype(np.float32)
                plan.inputs[f"x{place}"][...] = alone.inputs[f"x{place}"][...] = drawn
        plan.run()
        for op, out, inputs, attrs in alone.calls:
            cpu.call(op, out, list(inputs), dict(attrs))
        for one, other in zip(plan.outputs, alone.outputs, strict=True):
            assert one.tobytes() == other.tobytes()


RUN_SHAPES = [(6, 5, 8, 9), (1, 5, 1, 1), (6, 5, 1, 1), (5, 1, 1), ()]
RUN_AXES = [(0, 2, 3), (2, 3), (1, 2, 3), (0, 1, 2, 3), (3,)]


@st.composite
def images(draw: Any) -> Any:
    """A graph of element-wise operations on images, and sums of them over runs of 72 or 360 terms, or 9, or all."""
    builder = Builder()
    values = [builder.input(f"x{place}", shape) for place, shape in enumerate(RUN_SHAPES)]
    for _ in range(draw(st.integers(3, 24))):
        one, other = (values[draw(st.integers(0, len(values) - 1))] for _ in range(2))
        kind = draw(st.integers(0, 5))
        if kind == 0 and one.shape == RUN_SHAPES[0]:
            axes = draw(st.sampled_from(RUN_AXES))
            attrs = {"axes": axes, "keepdims": True}
            values.append(builder.apply(draw(st.sampled_from(["sum", "mean"])), [one], attrs))
        elif kind == 1:
            values.append(builder.apply("cast", [one > other], {"dtype": "float32"}))
        elif kind == 2:
            values.append(builder.apply(draw(st.sampled_from(UNARY)), [one], {}))
        else:
            values.append(builder.apply(draw(st.sampled_from(BINARY)), [one, other], {}))
    last = draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=3))
    return builder.graph(*(values[place] * 1.5 for place in last))


@settings(max_examples=200, deadline=None)
@given(images(), st.integers(1, 3), st.sampled_from(["avx512", "avx2", "portable"]))
def test_sums_made_with_what_they_sum_up_have_the_bits_of_both(graph: cx.Graph, threads: int, isa: str) -> None:
    least, onepass.LEAST_ELEMENTS = onepass.LEAST_ELEMENTS, 64
    try:
        with kernels(isa, threads):
            check_against_one_call_after_the_other(graph, {f"x{n}": shape for n, shape in enumerate(RUN_SHAPES)})
    finally:
        onepass.LEAST_ELEMENTS = least


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_long_sums_made_with_what_they_sum_up_have_the_bits_of_both(isa: str, dtype: str) -> None:
    """Blocks of long runs meet as they do in a sum by itself; squares that only a sum reads are made within it."""
    for shape, axes in (
        *(((n,), (0,)) for n in (130, 1000, 2000, 2049, 5001, 15 * 1024, 24000, 66000, 70 * 1024)),
        ((7, 11000), (0, 1)),
        ((9, 8192), (1,)),
        ((40, 2, 900), (1, 2)),
        ((3, 5000), (1,)),  # not of whole blocks: made alone
    ):
        builder = Builder()
        x = builder.input("x", shape, dtype)
        squares, both = x.square(), (x * 0.7 + 0.1).square()
        graph = builder.graph(
            squares.sum(axes), both.mean(axes), (x * x + x).sum(axes), both, x.exp().square().sum(axes)
        )
        drawn = np.random.default_rng(2).normal(size=shape).astype(dtype)
        alone = Plan(graph, device="cpu", optimised=False)
        alone.inputs["x"][...] = drawn
        with kernels(isa, 1):
            for op, out, inputs, attrs in alone.calls:
                cpu.call(op, out, list(inputs), dict(attrs))
        for threads in (1, 2, 3):
            with kernels(isa, threads):
                plan = Plan(graph, device="cpu")
                plan.inputs["x"][...] = drawn
                plan.run()
            for one, other in zip(plan.outputs, alone.outputs, strict=True):
                np.testing.assert_array_equal(one, other, err_msg=f"{shape} {threads}")


def test_a_norm_goes_over_its_numbers_once() -> None:
    builder = Builder()
    plan = Plan(builder.graph(builder.input("x", (300, 1000)).square().sum()), device="cpu")
    with cx.profile() as profile:
        plan.run()
    assert [record.name for record in profile.records] == ["2 calls: square, sum"]


def test_the_sums_of_a_batch_norm_go_over_its_images_with_the_calls_before_them() -> None:
    builder = Builder()
    x, g = builder.input("x", (4, 16, 32, 32)), builder.input("g", (4, 16, 32, 32))
    mean = x.mean((0, 2, 3), keepdims=True)
    var = ((x - mean) ** 2).mean((0, 2, 3), keepdims=True)
    scaled = ((x - mean) / (var + 1e-5).sqrt()) * g
    plan = Plan(builder.graph(scaled.square().sum((0, 2, 3)), scaled * 2.0), device="cpu")
    with cx.profile() as profile:
        plan.run()
    names = [record.name for record in profile.records]
    assert "3 calls: sub, square, mean" in names
    assert any("sum" in name and "div" in name for name in names)


def test_a_batch_norm_and_relu_with_gradients_go_over_their_images_four_times() -> None:
    """Nothing is divided, turned round or doubled pixel by pixel."""
    shape = (8, 16, 32, 32)
    builder = Builder()
    x, up = builder.input("x", shape), builder.input("up", shape)
    weight, bias = builder.input("weight", (16,)), builder.input("bias", (16,))
    norm = F.batch_norm(x, None, None, weight, bias, training=True)
    slopes = backward(builder, (norm.relu() * up).sum(), [x, weight, bias])
    plan = Plan(builder.graph(*slopes), device="cpu")
    made = {node.op for node, size in zip(plan.graph.nodes, plan.graph.infer(1).shapes, strict=True) if size == shape}
    assert made == {"input", "sub", "mul", "add", "square", "relu", "greater", "cast"}
    with cx.profile() as profile:
        plan.run()
    passes = [record.name for record in profile.records if ", 32, 32)" in record.shapes]
    assert len(passes) == 4, passes  # mean, variance; both sums, the gradient of x


def test_a_group_over_arrays_beyond_the_cache_has_the_bits_of_its_calls() -> None:
    """It fetches its next tile while it works on one, up to the last, which is shorter."""
    builder = Builder()
    x, y, z = (builder.input(name, (700, 1001)) for name in ("x0", "x1", "x2"))
    made = (x * (y > 0).astype("float32") - z) * x
    graph = builder.graph(made, made.sum(1), (made + y).tanh())
    assert 3 * 700 * 1001 * 4 > 4 << 20
    for threads in (1, 2):
        with kernels(cpu.isa(), threads):
            check_against_one_call_after_the_other(graph, {f"x{n}": (700, 1001) for n in range(3)})


def test_who_reads_a_sum_is_made_after_it() -> None:
    """The memory of the sum is that of what a later call stretches: nothing but the order says which it reads."""
    x = np.random.default_rng(3).normal(size=(40, 64)).astype(np.float32)
    arena, row = np.zeros(3 * x.size, np.float32), np.zeros((40, 1), np.float32)
    doubled, out = arena[: x.size].reshape(x.shape), arena[x.size : 2 * x.size].reshape(x.shape)
    program = cpu.Program()
    program.add("add", doubled, [x, x], {})
    program.add("sum", row, [doubled], {"axes": (1,), "keepdims": True})
    program.add("sub", out, [x, row], {})
    assert program.fuse(arena, [out]) == [(0, [False, True])]
    program.run()
    total = np.empty((40, 1), np.float32)
    cpu.call("sum", total, [x + x], {"axes": (1,), "keepdims": True})
    assert out.tobytes() == (x - total).tobytes()


def product_and_sum(
    shape: tuple[int, int, int], other: str, batch: int, turned: tuple[bool, bool], first: bool, relu: bool
) -> Graph:
    """A product of matrices, (batch, m, n) where there is a batch, and something else added to it; ReLU of that."""
    m, n, k = shape
    builder = Builder()
    lead = (batch,) if batch else ()
    a = builder.input("a", (*lead, k, m) if turned[0] else (*lead, m, k))
    b = builder.input("b", (*lead, n, k) if turned[1] else (*lead, k, n))
    plus = builder.input("plus", {"row": (n,), "whole": (*lead, m, n), "column": (m, 1), "number": ()}[other])
    product = builder.apply("matmul", [a, b], {"transpose_a": turned[0], "transpose_b": turned[1]})
    total = plus + product if first else product + plus
    return builder.graph(total.relu() if relu else total)


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 2, 33, 512, 513, 1030])),
    other=st.sampled_from(["row", "whole", "column", "number"]),
    batch=st.integers(0, 3),
    turned=st.tuples(st.booleans(), st.booleans()),
    first=st.booleans(),
    relu=st.booleans(),
    threads=st.integers(1, 3),
)
@example(shape=(64, 10, 64), other="row", batch=0, turned=(False, True), first=False, relu=True, threads=1)
@example(shape=(32, 3, 33), other="whole", batch=0, turned=(False, True), first=True, relu=False, threads=1)
@settings(max_examples=60, deadline=None)
def test_a_product_and_a_sum_made_at_once_have_the_bits_of_both(
    isa: str,
    shape: tuple[int, int, int],
    other: str,
    batch: int,
    turned: tuple[bool, bool],
    first: bool,
    relu: bool,
    threads: int,
) -> None:
    with kernels(isa, threads, skips=True):
        graph = product_and_sum(shape, other, batch, turned, first, relu)
        rng = np.random.default_rng(7)
        plan = Plan(graph, device="cpu")
        for array in plan.inputs.values():
            array[...] = rng.normal(size=array.shape)
        plan.run()
        product, total = np.empty_like(plan.outputs[0]), np.empty_like(plan.outputs[0])
        attrs = next(node.attrs for node in graph.nodes if node.op == "matmul")
        cpu.call("matmul", product, [plan.inputs["a"], plan.inputs["b"]], dict(attrs))
        cpu.call("add", total, [plan.inputs["plus"], product], {})
        if relu:
            cpu.call("relu", total, [total], {})
        assert plan.outputs[0].tobytes() == total.tobytes()


def sums_of_products(*calls: tuple[str, Any, Any, Any], results: Any, terms: int = 0) -> list[tuple[int, list[bool]]]:
    program = cpu.Program(terms)
    for op, out, one, other in calls:
        program.add(op, out, [one, other], {"transpose_a": False, "transpose_b": False} if op == "matmul" else {})
    return program.fuse(MEMORY, results)


def matrix(place: int) -> Any:
    return slot(place, 400).reshape(20, 20)


def test_a_product_is_stored_together_with_what_is_added_to_it() -> None:
    ours, row = np.ones((20, 20), np.float32), np.ones(20, np.float32)
    product = ("matmul", matrix(0), ours, ours)
    out = matrix(1)
    assert sums_of_products(product, ("add", out, matrix(0), row), results=[out]) == [(0, [False, True])]
    assert sums_of_products(product, ("add", out, matrix(2), matrix(0)), results=[out]) == [(0, [False, True])]


def test_relu_of_a_product_and_a_sum_is_made_with_both_where_nobody_else_reads_the_sum() -> None:
    ours, row, out = np.ones((20, 20), np.float32), np.ones(20, np.float32), np.zeros((20, 20), np.float32)
    for reader, kept, stored in ((out, out, [False, False, True]), (out, matrix(1), [False, True])):
        program = cpu.Program()
        program.add("matmul", matrix(0), [ours, matrix(3)], {"transpose_a": False, "transpose_b": False})
        program.add("add", matrix(1), [matrix(0), row], {})
        program.add("relu", reader, [matrix(1)], {})
        assert program.fuse(MEMORY, [kept]) == [(0, stored)]


def test_a_relu_that_is_written_over_a_factor_is_made_behind_the_product() -> None:
    program, ours = cpu.Program(), np.ones((20, 20), np.float32)
    program.add("matmul", matrix(0), [ours, matrix(3)], {"transpose_a": False, "transpose_b": False})
    program.add("add", matrix(1), [matrix(0), np.ones(20, np.float32)], {})
    program.add("relu", matrix(3), [matrix(1)], {})
    assert program.fuse(MEMORY, [matrix(3)]) == [(0, [False, True])]


def test_a_product_that_may_be_fast_is_made_alone() -> None:
    ours = np.ones((20, 20), np.float32)
    calls = ("matmul", matrix(0), ours, ours), ("add", matrix(1), matrix(0), np.ones(20, np.float32))
    assert sums_of_products(*calls, results=[matrix(1)], terms=2) == []


@pytest.mark.parametrize(
    ("op", "out", "one", "other", "kept"),
    [
        ("mul", 1, 0, 2, 1),  # not a sum
        ("add", 1, 0, 2, 0),  # the product itself is wanted
        ("add", 1, 0, 0, 1),  # the product twice
        ("add", 3, 0, 2, 3),  # written over what is multiplied
    ],
)
def test_what_needs_the_product_itself_gets_it(op: str, out: int, one: int, other: int, kept: int) -> None:
    product = ("matmul", matrix(0), matrix(3), np.ones((20, 20), np.float32))
    calls = (product, (op, matrix(out), matrix(one), matrix(other)))
    assert sums_of_products(*calls, results=[matrix(kept)]) == []


@pytest.mark.parametrize("needed", [False, True])
def test_small_calls_do_not_part_large_ones_that_they_do_not_need(needed: bool) -> None:
    builder = Builder()
    x, weight = builder.input("x", (2, 64, 32, 32)), builder.input("weight", (64, 1, 1))
    scaled = x * weight
    slope = scaled.sum((0, 2, 3)).reshape(64, 1, 1) if needed else weight
    graph = builder.graph((scaled + slope.sqrt()) * x)
    ops = [node.op for node in onepass.gather(graph).nodes if node.op not in ("input", "reshape")]
    assert ops == (["mul", "sum", "sqrt", "add", "mul"] if needed else ["sqrt", "mul", "add", "mul"])


def test_a_row_ends_with_its_last_sum_however_many_calls_stand_behind_it() -> None:
    builder = Builder()
    x, matrix = builder.input("x", (2, 64, 32, 32)), builder.input("matrix", (3, 3))
    squared, product = x.square(), matrix @ matrix
    total, chain = squared.sum((0, 2, 3)), x
    for _ in range(2 * cpu.MOST_CALLS):
        chain = chain.tanh()
    ops = [node.op for node in onepass.gather(builder.graph(total, chain, product)).nodes]
    assert ops.index("sum") == ops.index("square") + 1


def test_a_long_product_is_not_written_over_what_is_added_to_it() -> None:
    """It goes through memory before it is whole; a short one is whole before anything is written."""

    def found(terms: int) -> list[Any]:
        product = ("matmul", matrix(0), np.ones((20, terms), np.float32), np.ones((terms, 20), np.float32))
        return sums_of_products(product, ("add", matrix(2), matrix(0), matrix(2)), results=[matrix(2)])

    assert found(cpu.MOST_TERMS) == [(0, [False, True])]
    assert found(cpu.MOST_TERMS + 1) == []


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
@given(
    shape=st.tuples(st.integers(1, 100), st.sampled_from([16, 32, 48, 80]), st.sampled_from([1, 3, 32, 384])),
    turned=st.booleans(),
    count=st.integers(2, 9),
    threads=st.integers(1, 3),
)
@settings(max_examples=25, deadline=None)
def test_products_that_are_added_up_in_place_have_the_bits_of_calls_one_by_one(
    isa: str, dtype: Any, shape: tuple[int, int, int], turned: bool, count: int, threads: int
) -> None:
    with kernels(isa, threads, skips=True):
        m, n, k = shape
        rng, attrs = np.random.default_rng(5), {"transpose_a": turned, "transpose_b": False}
        factors = [
            (rng.normal(size=(k, m) if turned else (m, k)).astype(dtype), rng.normal(size=(k, n)).astype(dtype))
            for _ in range(count)
        ]
        arena = np.zeros(2 * m * n, dtype)
        product, total = arena[: m * n].reshape(m, n), arena[m * n :].reshape(m, n)
        program = cpu.Program()
        for place, (a, b) in enumerate(factors):
            program.add("matmul", product, [a, b], attrs)
            program.add("add", total, [product, total] if place % 2 else [total, product], {})
        assert program.fuse(arena, [total]) == [(0, [False] * (2 * count - 1) + [True])]
        start = rng.normal(size=(m, n)).astype(dtype)
        expected, own = start.copy(), np.empty((m, n), dtype)
        for a, b in factors:
            cpu.call("matmul", own, [a, b], attrs)
            expected += own
        total[...] = start
        program.run()
        assert total.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
@given(
    shape=st.sampled_from([(2, 3), (7, 64), (32, 512), (33, 100), (100, 1100), (2100, 40)]),
    count=st.integers(1, 9),
    threads=st.integers(1, 3),
    keepdims=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_sums_over_rows_that_are_added_up_in_place_have_the_bits_of_calls_one_by_one(
    isa: str, dtype: Any, shape: tuple[int, int], count: int, threads: int, keepdims: bool
) -> None:
    with kernels(isa, threads, skips=True):
        n, rng, attrs = shape[1], np.random.default_rng(5), {"axes": (0,), "keepdims": keepdims}
        matrices = [rng.normal(size=shape).astype(dtype) for _ in range(count)]
        arena = np.zeros(2 * n, dtype)
        total, own = (arena[first : first + n].reshape((1, n) if keepdims else (n,)) for first in (n, 0))
        program = cpu.Program()
        for place, matrix in enumerate(matrices):
            program.add("sum", own, [matrix], attrs)
            program.add("add", total, [own, total] if place % 2 else [total, own], {})
        assert program.fuse(arena, [total]) == [(0, [False] * (2 * count - 1) + [True])]
        start = rng.normal(size=total.shape).astype(dtype)
        expected, alone = start.copy(), np.empty_like(start)
        for matrix in matrices:
            cpu.call("sum", alone, [matrix], attrs)
            expected += alone
        total[...] = start
        program.run()
        assert total.tobytes() == expected.tobytes()


def test_sums_of_another_kind_are_not_added_up_together() -> None:
    """Along rows, of more elements than one thread sums up, of another shape, or one that somebody else reads."""
    total, own = slot(1, 16), slot(0, 16)

    def groups(*summed: tuple[Any, tuple[int, ...]], results: Any = ()) -> list[int]:
        program = cpu.Program()
        for matrix, axes in summed:
            program.add("sum", own, [matrix], {"axes": axes, "keepdims": False})
            program.add("add", total, [own, total], {})
        return [len(stored) for _, stored in program.fuse(MEMORY, [total, *results])]

    few, more = np.ones((16, 16), np.float32), np.ones((17, 16), np.float32)
    many = np.ones((cpu.MOST_SUMMED // 16 + 1, 16), np.float32)
    assert groups((few, (0,)), (few, (0,))) == [4]
    assert groups((few, (0,)), (few, (1,))) == [2]
    assert groups((few, (0,)), (more, (0,)), (more, (0,))) == [2, 4]
    assert groups((few, (0,)), (many, (0,))) == [2]
    assert groups((few, (0,)), (few, (0,)), results=[own]) == [2]


def test_products_of_more_columns_than_stay_in_the_cache_are_added_up_too() -> None:
    """As the gradient of what turns the states of a recurrence into one number per word of a large vocabulary."""
    columns, rng = 2**16 + 16, np.random.default_rng(5)
    arena = np.zeros(2 * columns, np.float32)
    product, total = arena[:columns].reshape(1, columns), arena[columns:].reshape(1, columns)
    program, expected = cpu.Program(), np.zeros((1, columns), np.float32)
    for _ in range(2):
        a, b = rng.normal(size=(2, 1)).astype(np.float32), rng.normal(size=(2, columns)).astype(np.float32)
        attrs = {"transpose_a": True, "transpose_b": False}
        program.add("matmul", product, [a, b], attrs)
        program.add("add", total, [product, total], {})
        own = np.empty_like(expected)
        cpu.call("matmul", own, [a, b], attrs)
        expected += own
    assert [len(stored) for _, stored in program.fuse(arena, [total])] == [4]
    program.run()
    assert total.tobytes() == expected.tobytes()


def test_a_product_of_another_kind_ends_those_that_are_added_up() -> None:
    """Another shape, a factor that is turned, columns that fill no vector, or a total that somebody else reads."""

    def groups(n: int, second: dict[str, bool], results: Any = ()) -> list[int]:
        program, (ours, total) = cpu.Program(), (np.ones((n, n), np.float32), slot(1, n * n).reshape(n, n))
        own = slot(0, n * n).reshape(n, n)
        for attrs in ({"transpose_a": False, "transpose_b": False}, second):
            program.add("matmul", own, [ours, ours], attrs)
            program.add("add", total, [own, total], {})
        return [len(stored) for _, stored in program.fuse(MEMORY, [total, *results])]

    assert groups(16, {"transpose_a": False, "transpose_b": False}) == [4]
    assert groups(16, {"transpose_a": True, "transpose_b": False}) == [2, 2]
    assert groups(16, {"transpose_a": False, "transpose_b": True}) == [2, 2]
    assert groups(20, {"transpose_a": False, "transpose_b": False}) == [2, 2]


def joined(dtype: Any, shape: tuple[int, ...], axis: int, n: int) -> tuple[Any, list[Any], list[tuple[Any, ...]]]:
    """(memory, nine pieces, the calls) of a concat of rows, the sum over them and their product with other rows."""
    rng, rows = np.random.default_rng(3), 9 * int(np.prod(shape[:-1]))
    pieces = [rng.normal(size=shape).astype(dtype) for _ in range(9)]
    m, whole = shape[-1], [*shape]
    whole[axis] *= 9
    arena = np.zeros(rows * m, dtype)
    made, other = arena.reshape(whole), rng.normal(size=(rows, n)).astype(dtype)
    summed, product = np.empty(m, dtype), np.empty((m, n), dtype)
    axes = {"axes": tuple(range(len(shape) - 1)), "keepdims": False}
    return (
        arena,
        pieces,
        [
            ("concat", made, pieces, {"axis": axis}),
            ("sum", summed, [made], axes),
            ("matmul", product, [arena.reshape(rows, m), other], {"transpose_a": True, "transpose_b": False}),
        ],
    )


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize(
    ("dtype", "shape", "axis", "n", "threads"),
    [
        (np.float32, (61, 1, 160), 1, 70, 2),  # more rows than are multiplied at once
        (np.float32, (7, 33), 0, 10, 1),
        (np.float64, (3, 2, 5, 200), 1, 40, 2),
        (np.float32, (2, 500), 0, 2, 1),
    ],
)
def test_rows_of_a_concat_are_read_where_they_lie(
    isa: str, dtype: Any, shape: tuple[int, ...], axis: int, n: int, threads: int
) -> None:
    with kernels(isa, threads):
        arena, _, calls = joined(dtype, shape, axis, n)
        for op, out, inputs, attrs in calls:
            cpu.call(op, out, inputs, attrs)
        expected = [out.tobytes() for _, out, *_ in calls[1:]]
        program = cpu.Program()
        for op, out, inputs, attrs in calls:
            program.add(op, out, inputs, attrs)
        assert program.fuse(arena) == [(0, [False, True, True])]
        arena[...] = np.nan
        for _, out, *_ in calls[1:]:
            out[...] = np.nan
        program.run()
        assert [out.tobytes() for _, out, *_ in calls[1:]] == expected
        assert np.isnan(arena).all()  # nothing was joined


def test_a_concat_is_made_where_somebody_needs_it_or_writes_over_what_it_joins() -> None:
    def groups(change: Any = None, results: Any = ()) -> list[tuple[int, list[bool]]]:
        arena, pieces, calls = joined(np.float32, (7, 33), 0, 10)
        calls = change(arena, pieces, calls) if change else calls
        program = cpu.Program()
        for op, out, inputs, attrs in calls:
            program.add(op, out, inputs, attrs)
        return program.fuse(arena, [arena] if results else ())

    assert groups() == [(0, [False, True, True])]
    assert groups(results=True) == []
    assert groups(lambda arena, pieces, calls: [*calls, ("neg", np.empty_like(arena), [arena], {})]) == []
    over = lambda arena, pieces, calls: [calls[0], ("sum", pieces[3].reshape(-1)[:33], *calls[1][2:]), calls[2]]  # noqa: E731
    assert groups(over) == []


@pytest.mark.parametrize("threads", [1, 2])
def test_a_recurrence_does_not_join_the_gradients_of_its_steps(threads: int) -> None:
    with kernels(cpu.isa(), threads):
        builder = Builder()
        x = builder.input("x", (32, 12, 256))
        steps = [x[:, step].tanh() * builder.input("h", (32, 256)) for step in range(12)]
        rows = F.stack(steps, 1)
        weight = builder.apply("matmul", [rows.reshape(-1, 256), x.reshape(-1, 256)], {"transpose_a": True})
        total = F.concat([rows.sum((0, 1)), weight.sum(0)])
        graph = builder.graph(weight * 2.0, total)
        plan = Plan(graph, device="cpu")
        assert [each.place for each in schedule(plan.graph, in_bands=True, lanes=threads).joined]
        calls = plan.calls
        first = next(place for place, call in enumerate(calls) if call.op == "concat" and len(call.inputs) == 12)
        assert {call.op for call in calls[first + 1 : first + 3]} == {"matmul", "sum"}
        timed = plan.program.__self__.timed()  # type: ignore[attr-defined]
        assert (first, 3) in [(place, count) for place, count, *_ in timed]
        check_against_one_call_after_the_other(graph, {"x": (32, 12, 256), "h": (32, 256)}, runs=2)


@st.composite
def chains(draw: Any) -> Any:
    """(shape, its calls): arithmetic and functions of what the call before made, earlier ones, and other arrays."""
    matrices = [(1, 256), (3, 100), (7, 73), (4, 250), (5, 128), (3, 160), (41, 500)]
    shape = draw(st.sampled_from([*matrices, (3, 5, 100), (2, 7, 33), (9, 3, 250), (1, 6, 49), (6, 1, 60)]))
    calls = []
    for place in range(draw(st.integers(2, 16))):
        made = place - 1 if draw(st.integers(0, 2)) else draw(st.integers(-3, place - 1))
        if made != -3 and not draw(st.integers(0, 5)):
            calls.append((draw(st.sampled_from("neg square exp log tanh sigmoid erf gelu relu".split())), (made,)))
            continue
        others = ["number", "column", "channel", "row", "array", "itself"]
        other = draw(st.sampled_from(others + ["earlier"] * (place > 0)))
        known = {"number": -3, "array": -2, "column": -4, "row": -5, "channel": -6, "itself": made}
        with_it = known.get(other, draw(st.integers(-2, max(place - 1, -2))))
        if made == -3 and with_it <= -3:
            made = -1
        pair = (made, with_it) if draw(st.booleans()) else (with_it, made)
        calls.append((draw(st.sampled_from(["add", "sub", "mul", "div"])), pair))
    return shape, calls


@settings(max_examples=150, deadline=None)
@given(chains(), st.sampled_from(["avx512", "avx2", "portable"]), st.integers(0, 2**16 - 1))
def test_chains_of_arithmetic_have_the_bits_of_their_calls(
    chain: tuple[tuple[int, ...], list[tuple[str, tuple[int, ...]]]], isa: str, kept: int
) -> None:
    check_chain(*chain, isa, kept)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_numbers_of_channels_come_again_with_each_image(isa: str, threads: int) -> None:
    """As of a batch norm; threads begin anywhere in an image."""
    calls = [("sub", (-1, -6)), ("mul", (0, -6)), ("mul", (-6, -2)), ("add", (1, 2)), ("sub", (-4, 3))]
    check_chain((7, 13, 22 * 22), calls, isa, 0, threads)
    check_chain((5, 1, 20000), calls, isa, 2, threads)


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_more_results_may_wait_in_a_chain_than_it_has_places_for(isa: str) -> None:
    waiting = [("mul", (-1, place - 1)) for place in range(12)]
    check_chain((7, 73), [*waiting, *[("add", (place, 11 + place)) for place in range(12)]], isa, 0)


def check_chain(
    shape: tuple[int, ...], calls: list[tuple[str, tuple[int, ...]]], isa: str, kept: int, threads: int = 1
) -> None:
    """That the calls have the bits in one group that they have one by one. kept: of which results, by bits."""
    size, rng = math.prod(shape), np.random.default_rng(shape)
    sources = {-1: rng.normal(size=shape), -2: rng.normal(size=shape), -3: np.array([0.75])}
    sources |= {-4: rng.normal(size=(*shape[:-1], 1)), -5: rng.normal(size=shape[-1:])}
    sources[-6] = rng.normal(size=(shape[-2], 1))
    fed = {place: x.astype(np.float32) for place, x in sources.items()}
    fed[-1].reshape(-1)[:5], fed[-2].reshape(-1)[3:6] = [np.inf, -np.inf, -0.0, 0.0, 1e-42], [-np.inf, -0.0, 3e38]
    fed[-5][4:7] = [0.0, -0.0, np.inf]
    arena = np.zeros(len(calls) * size, np.float32)
    made = {place: arena[place * size : (place + 1) * size].reshape(shape) for place in range(len(calls))}
    arrays = {**fed, **made}
    stored = [place for place in made if kept >> place & 1 or place == len(calls) - 1]
    with kernels(isa, threads):
        for place, (op, inputs) in enumerate(calls):
            cpu.call(op, made[place], [arrays[i] for i in inputs], {})
        expected = {place: made[place].copy() for place in stored}
        program = cpu.Program()
        for place, (op, inputs) in enumerate(calls):
            program.add(op, made[place], [arrays[i] for i in inputs], {})
        ((first, _),) = program.fuse(arena, [made[place] for place in stored])
        assert first == 0
        arena[...] = 7.0
        program.run()
    for place in stored:
        one, other = made[place], expected[place]
        np.testing.assert_array_equal(np.isnan(one), np.isnan(other))
        assert one[~np.isnan(one)].tobytes() == other[~np.isnan(other)].tobytes()


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize("name", "sigmoid tanh erf erfc sin cos square sqrt exp log abs".split())
def test_the_gradient_of_a_function_has_the_same_bits_in_one_pass(name: str, isa: str) -> None:
    """That of a large tensor is made tile by tile, those of its parts call by call."""

    def gradient(values: Any, g: Any) -> Any:
        x = cx.tensor(values, requires_grad=True)
        for _ in range(5):  # after a few times a rule is known
            x.grad = None
            getattr(x, name)().backward(cx.tensor(g))
        return x.grad.numpy()

    drawn = np.abs(np.random.default_rng(3).normal(size=(2, 70_001))).astype(np.float32) + np.float32(0.001)
    with kernels(isa, 2, skips=True):
        parts = [gradient(*part) for part in np.array_split(drawn, 7, axis=1)]
        assert gradient(*drawn).tobytes() == np.concatenate(parts).tobytes()


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize("name", ["gelu", "gelu tanh", "silu", "softplus"])
def test_an_activation_has_the_same_bits_in_one_pass(name: str, isa: str) -> None:
    """There and back, that of a large tensor is made in one pass, those of its parts call by call."""

    def both(values: Any, g: Any) -> Any:
        x = cx.tensor(values, requires_grad=True)
        y = F.gelu(x, approximate="tanh") if name == "gelu tanh" else getattr(F, name)(x)
        y.backward(cx.tensor(g))
        return np.stack([y.numpy(), x.grad.numpy()])

    drawn = np.random.default_rng(3).normal(0, 3, size=(2, 70_001)).astype(np.float32)
    with kernels(isa, 2, skips=True):
        parts = [both(*part) for part in np.array_split(drawn, 7, axis=1)]
        assert both(*drawn).tobytes() == np.concatenate(parts, axis=1).tobytes()

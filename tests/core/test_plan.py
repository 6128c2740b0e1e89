"""Passes keep meaning; plans run a graph in one arena with the same bits as op by op."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cyxcore as cx
from cyxcore import functional as F
from cyxcore.errors import GraphError, KernelError, ShapeError, SpecError
from cyxcore.gradients import backward
from cyxcore.graph import Graph
from cyxcore.graphlearner import initial_weights
from cyxcore.kernels import cpu
from cyxcore.layers import build
from cyxcore.objectives import training_step
from cyxcore.order import schedule
from cyxcore.passes import cut_products, dead_code, optimise, turn_once
from cyxcore.plan import Plan
from cyxcore.spec import OptimizerSpec, TrainingSpec
from cyxcore.symbols import Builder, Symbol
from cyxcore.values import apply, root

LAYERS = [
    {"kind": "Conv2d", "out_channels": 3, "kernel_size": 3},
    {"kind": "BatchNorm2d"},
    {"kind": "ReLU"},
    {"kind": "Dropout"},
    {"kind": "MaxPool2d", "kernel_size": 2},
    {"kind": "Flatten"},
    {"kind": "GELU"},
    {"kind": "Linear", "out_features": 4},
]


def step_graph(optimizer: OptimizerSpec | None = None) -> Graph:
    return training_step(
        build(input_shape=[1, 6, 6], layers=LAYERS), 5, TrainingSpec(optimizer=optimizer or OptimizerSpec())
    )


def run_step(graph: Graph, device: str, optimised: bool, steps: int = 2) -> dict[str, np.ndarray]:
    state = {name: cx.device.put(array, device) for name, array in initial_weights(graph, seed=1).items()}
    plan = Plan(graph, state, device, optimised)
    rng = np.random.default_rng(0)
    plan.inputs["learning_rate"][...] = 0.1
    for step in range(1, steps + 1):
        plan.inputs["x"][...] = rng.normal(size=(5, 1, 6, 6))
        plan.inputs["target"][...] = rng.integers(0, 4, 5)
        plan.inputs["step"][...] = step
        plan.key[:] = 3, step
        plan.run()
    kept = {name: cx.device.host(array) for name, array in state.items()}
    return {**kept, **{f"output {place}": array.copy() for place, array in enumerate(plan.outputs)}}


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_the_passes_change_no_bit_of_a_training_step(each_device: str, name: str) -> None:
    graph = step_graph(OptimizerSpec(name=name, momentum=0.9 if name == "sgd" else 0.0, weight_decay=0.01))
    plain, fast = run_step(graph, each_device, False), run_step(graph, each_device, True)
    for key in plain:
        assert plain[key].tobytes() == fast[key].tobytes(), key


def test_a_plan_gives_the_bits_of_op_by_op_execution(each_device: str) -> None:
    """Every node in an array of its own, nothing reused, updates applied last."""
    graph = step_graph()
    expected = initial_weights(graph, seed=1)
    backend = cx.device.backend(each_device)
    known = graph.infer(1)
    rng = np.random.default_rng(0)
    inputs = {
        "x": rng.normal(size=(5, 1, 6, 6)),
        "target": rng.integers(0, 4, 5),
        "learning_rate": 0.1,
        "step": 1,
    }
    arrays: list[np.ndarray] = []
    for place, node in enumerate(graph.nodes):
        shape, dtype = known.shapes[place], known.dtypes[place]
        if node.op == "param":
            arrays.append(expected[node.attrs["name"]].copy())
        elif node.op == "input":
            arrays.append(np.array(inputs[node.attrs["name"]], dtype).reshape(shape))
        elif node.op == "const":
            arrays.append(np.array(node.attrs["value"], dtype).reshape(shape))
        elif node.op == "key":
            arrays.append(np.array([3, 1], np.uint64))
        elif node.op == "detach":
            arrays.append(arrays[node.inputs[0]])
        else:
            arrays.append(np.empty(shape, dtype))
            backend.call(node.op, arrays[-1], [arrays[i] for i in node.inputs], node.attrs)
    for target, value in graph.updates:
        expected[graph.nodes[target].attrs["name"]][...] = arrays[value]
    got = run_step(graph, each_device, True, steps=1)
    for name, array in expected.items():
        assert got[name].tobytes() == array.tobytes(), name


def test_optimise_is_done_after_one_time() -> None:
    once = optimise(step_graph())
    assert optimise(once) == once


def test_optimise_makes_the_step_smaller() -> None:
    graph = step_graph()
    assert len(optimise(graph).nodes) < len(graph.nodes)


def test_adding_zero_stays_because_it_changes_minus_zero() -> None:
    builder = Builder()
    x = builder.input("x", (2,))
    ops = [node.op for node in optimise(builder.graph((x + 0.0) * 1.0 - 0.0)).nodes]
    assert "add" in ops and "mul" not in ops and "sub" not in ops


def test_constants_are_folded() -> None:
    builder = Builder()
    x = builder.input("x", (2,))
    graph = optimise(builder.graph(x * (builder.constant([1.0, 2.0]) * 3.0 + 1.0)))
    assert [node.op for node in graph.nodes] == ["input", "const", "mul"]
    assert graph.nodes[1].attrs["value"] == (4.0, 7.0)


def test_what_differs_between_backends_is_not_folded() -> None:
    builder = Builder()
    graph = optimise(builder.graph(builder.constant([1.0, 2.0]).exp()))
    assert [node.op for node in graph.nodes] == ["const", "exp"]


def test_a_transpose_before_a_matmul_becomes_a_flag() -> None:
    builder = Builder()
    a, b = builder.input("a", (2, 3)), builder.input("b", (4, 3))
    graph = optimise(builder.graph(a @ b.T))
    assert [node.op for node in graph.nodes] == ["input", "input", "matmul"] and graph.nodes[2].attrs["transpose_b"]


def test_numbers_are_doubled_before_they_are_stretched_not_after() -> None:
    builder = Builder()
    x, row = builder.input("x", (6, 5)), builder.input("row", (1, 5))
    stretched = row.broadcast_to(6, 5)
    graph = optimise(builder.graph(x * (stretched * 2.0 + stretched.tanh()), stretched.exp()))
    shapes = graph.infer(1).shapes
    assert {node.op: shape for node, shape in zip(graph.nodes, shapes, strict=True) if node.op != "mul"} == {
        **{"input": (1, 5), "const": (), "add": (1, 5), "tanh": (1, 5), "exp": (1, 5), "broadcast_to": (6, 5)}
    }
    plan = Plan(graph, device="cpu")
    plan.inputs["x"][...], plan.inputs["row"][...] = 3.0, 0.5
    plan.run()
    row_value = np.full((6, 5), 0.5, np.float32)
    np.testing.assert_allclose(plan.outputs[0], 3.0 * (1.0 + np.tanh(row_value)), rtol=1e-6)
    np.testing.assert_allclose(plan.outputs[1], np.exp(row_value), rtol=1e-6)


def test_the_root_of_a_sum_of_squares_is_one_operation_where_nothing_asks_for_its_gradient() -> None:
    builder = Builder()
    x = builder.input("x", (8,))
    graph = builder.graph(root(x))
    assert [node.op for node in optimise(graph).nodes if node.op != "const"] == ["input", "sqrt"]
    odd = np.array([0.0, -0.0, 4.0, np.inf, np.nan, -1.0, 1e-45, 2.0], np.float32)
    plans = [Plan(graph, device="cpu", optimised=optimised) for optimised in (True, False)]
    for plan in plans:
        plan.inputs["x"][...] = odd
        plan.run()
    assert plans[0].outputs[0].tobytes() == plans[1].outputs[0].tobytes()


@pytest.mark.parametrize("where", ["another test", "another number", "another root"])
def test_other_roots_stay_as_they_are(where: str) -> None:
    builder = Builder()
    x, y = builder.input("x", (8,)), builder.input("y", (8,))
    zero = x == (1.0 if where == "another number" else 0.0)
    inner = (y == 0.0 if where == "another test" else zero), x + 1.0, y if where == "another root" else x
    graph = builder.graph(apply("where", zero, x, apply("where", *inner).sqrt()))
    assert [node.op for node in optimise(graph).nodes].count("where") == 2


def test_dead_code_goes_and_inputs_stay() -> None:
    builder = Builder()
    a, b = builder.input("a", (2,)), builder.input("b", (2,))
    b.exp()
    assert [node.op for node in dead_code(builder.graph(-a)).nodes] == ["input", "input", "neg"]


def test_equal_calls_are_one_node() -> None:
    builder = Builder()
    x = builder.input("x", (2,))
    assert x.exp().node == x.exp().node and (x * 0.0).node != (x * -0.0).node


def test_calls_that_differ_in_the_sign_of_a_zero_are_two_nodes() -> None:
    builder = Builder()
    x = builder.input("x", (2,))
    padded = [apply("pad", x, pads=((1, 0),), value=value) for value in (0.0, -0.0, 0.0)]
    assert padded[0].node == padded[2].node != padded[1].node


def test_a_matrix_that_many_short_products_turn_is_turned_once() -> None:
    builder = Builder()
    x, w = builder.input("x", (4, 40)), builder.input("w", (40, 40))
    for _ in range(5):
        x = builder.apply("matmul", [x.tanh(), w], {"transpose_a": False, "transpose_b": True})
    graph = builder.graph(x)
    ops = [(node.op, node.attrs.get("transpose_b")) for node in turn_once(optimise(graph)).nodes]
    assert ops.count(("transpose", None)) == 1 and ops.count(("matmul", False)) == 5
    plans = [Plan(graph, device="cpu", optimised=optimised) for optimised in (True, False)]
    rng = np.random.default_rng(0)
    drawn = {"x": rng.normal(size=(4, 40)), "w": rng.normal(size=(40, 40))}
    for plan in plans:
        for name, value in drawn.items():
            plan.inputs[name][...] = value
        plan.run()
    assert plans[0].outputs[0].tobytes() == plans[1].outputs[0].tobytes()


@pytest.mark.parametrize(("terms", "transposed"), [(1, 0), (3, 0), (40, 1)])
@pytest.mark.parametrize("flags", [(False, False), (True, False), (False, True), (True, True)])
def test_a_stack_of_products_of_few_terms_is_made_transposed(
    terms: int, transposed: int, flags: tuple[bool, bool]
) -> None:
    builder = Builder()
    shapes = {"a": (3, 2, 8, terms), "b": (terms, 9)}
    given = {
        name: (*shape[:-2], *shape[:-3:-1]) if flag else shape
        for (name, shape), flag in zip(shapes.items(), flags, strict=True)
    }
    factors = [builder.input(name, shape) for name, shape in given.items()]
    product = builder.apply("matmul", factors, {"transpose_a": flags[0], "transpose_b": flags[1]})
    graph = builder.graph(product.transpose(0, 1, 3, 2))
    assert [node.op for node in optimise(graph).nodes].count("transpose") == transposed
    plans = [Plan(graph, device="cpu", optimised=optimised) for optimised in (True, False)]
    rng = np.random.default_rng(0)
    drawn = {name: rng.normal(size=shape) for name, shape in given.items()}
    for plan in plans:
        for name, value in drawn.items():
            plan.inputs[name][...] = value
        plan.run()
    assert plans[0].outputs[0].tobytes() == plans[1].outputs[0].tobytes()


def inputs_of_steps(steps: int, read: str, bias: bool = True) -> Graph:
    """What a recurrence reads of its inputs at each of `steps` steps, and what else is read of all of them."""
    builder = Builder()
    x, w = builder.input("x", (6, 9, 5)), builder.input("w", (8, 5))
    gates = F.linear(x, w, builder.input("bias", (8,)) if bias else None)
    state = builder.input("state", (6, 8))
    for step in range(steps):
        columns = slice(0, 4) if read == "columns" else slice(None)
        part = gates[:, step, columns]
        state = state + (part.sum(1, keepdims=True) if read == "columns" else part)
    return builder.graph(state, *((gates,) if read == "whole" else ()))


@pytest.mark.parametrize("bias", [True, False])
def test_rows_cut_out_of_a_product_are_multiplied_alone(bias: bool) -> None:
    graph = optimise(inputs_of_steps(9, "rows", bias))
    cut = dead_code(cut_products(graph))
    assert [shape for node, shape in zip(cut.nodes, cut.infer(1).shapes, strict=True) if node.op == "matmul"] == [
        (6, 8)
    ] * 9
    assert cut.infer(1) == Graph(cut.nodes, cut.outputs).infer(1)


@pytest.mark.parametrize(("steps", "read"), [(9, "whole"), (9, "columns"), (2, "rows")])
def test_a_product_that_is_needed_whole_is_made_whole(steps: int, read: str) -> None:
    """Somebody else reads all of it, its columns are cut, or few read it."""
    graph = optimise(inputs_of_steps(steps, read))
    assert cut_products(graph) is graph


def test_no_row_of_a_product_is_multiplied_twice() -> None:
    builder = Builder()
    gates = F.linear(builder.input("x", (6, 9, 5)), builder.input("w", (8, 5)))
    graph = optimise(builder.graph(*(gates[:, step] for step in range(9)), gates[:, 0:2]))
    assert cut_products(graph) is graph


@pytest.mark.parametrize(("bias", "isa"), [(True, "avx512"), (False, "avx2"), (True, "portable")])
def test_a_product_in_pieces_has_the_bits_of_the_whole(bias: bool, isa: str) -> None:
    before = cpu.isa()
    try:
        cpu.set_isa(isa)
    except ValueError:
        pytest.skip(f"this machine has no {isa}")
    try:
        graph, rng = inputs_of_steps(9, "rows", bias), np.random.default_rng(0)
        plans = [Plan(graph, device="cpu", optimised=optimised) for optimised in (True, False)]
        for name in plans[0].inputs:
            drawn = rng.normal(size=plans[0].inputs[name].shape)
            for plan in plans:
                plan.inputs[name][...] = drawn
        for plan in plans:
            plan.run()
        assert plans[0].outputs[0].tobytes() == plans[1].outputs[0].tobytes()
    finally:
        cpu.set_isa(before)


@given(
    pads=st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 2),
    value=st.sampled_from([0.0, -0.0, 1.5]),
    cut=st.tuples(*[st.tuples(st.integers(0, 10), st.integers(0, 10))] * 2),
)
@settings(max_examples=100, deadline=None)
def test_a_slice_of_a_pad_is_one_of_what_was_padded_or_a_number(
    pads: tuple[tuple[int, int], ...], value: float, cut: tuple[tuple[int, int], ...]
) -> None:
    builder = Builder()
    padded = apply("pad", builder.input("x", (4, 5)), pads=pads, value=value)
    ends = [sorted((min(a, size), min(b, size))) for (a, b), size in zip(cut, padded.shape, strict=True)]
    starts, stops = (tuple(each) for each in zip(*ends, strict=True))
    graph = builder.graph(apply("slice", padded, starts=starts, stops=stops, steps=(1, 1)))
    x = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    expected = np.pad(x, pads, constant_values=np.float32(value))[starts[0] : stops[0], starts[1] : stops[1]]
    for optimised in (True, False):
        plan = Plan(graph, device="cpu", optimised=optimised)
        plan.inputs["x"][...] = x
        plan.run()
        assert plan.outputs[0].tobytes() == np.ascontiguousarray(expected).tobytes()
    ops = [node.op for node in optimise(graph).nodes]
    inside = all(p[0] <= a and b <= p[0] + size for p, (a, b), size in zip(pads, ends, (4, 5), strict=True))
    assert "pad" not in ops or not inside


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    axis=st.integers(0, 1),
    cut=st.tuples(*[st.tuples(st.integers(0, 12), st.integers(0, 12))] * 2),
    steps=st.tuples(*[st.sampled_from([1, 1, 2, -1])] * 2),
)
@settings(max_examples=100, deadline=None)
def test_a_slice_that_reaches_one_piece_of_a_concat_reads_that_alone(
    sizes: list[int], axis: int, cut: tuple[tuple[int, int], ...], steps: tuple[int, int]
) -> None:
    builder = Builder()
    shapes = [(size, 5) if axis == 0 else (5, size) for size in sizes]
    pieces = [builder.input(f"x{place}", shape) for place, shape in enumerate(shapes)]
    joined = apply("concat", *pieces, axis=axis)
    keys = []
    for (a, b), size, step in zip(cut, joined.shape, steps, strict=True):
        low, high = sorted((min(a, size), min(b, size)))
        keys.append(slice(low, high, step) if step > 0 else slice(size - 1, None, -1))
    graph = builder.graph(joined[tuple(keys)])
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    expected = np.concatenate(arrays, axis)[tuple(keys)]
    for optimised in (True, False):
        plan = Plan(graph, device="cpu", optimised=optimised)
        for place, array in enumerate(arrays):
            plan.inputs[f"x{place}"][...] = array
        plan.run()
        assert plan.outputs[0].tobytes() == np.ascontiguousarray(expected).tobytes()
    ends = np.cumsum([0, *sizes])
    low, high, step = keys[axis].start, keys[axis].stop, keys[axis].step
    sliced = "slice" in [node.op for node in graph.nodes]  # not where all is taken
    within = sliced and step > 0 and any(a <= low and high <= b for a, b in zip(ends, ends[1:], strict=False))
    assert not (within and "concat" in [node.op for node in optimise(graph).nodes])


def test_the_last_state_of_a_recurrence_is_read_where_it_was_made() -> None:
    builder = Builder()
    steps = [builder.input(f"h{step}", (3, 4)) for step in range(5)]
    graph = builder.graph(F.stack(steps, 1)[:, -1] * 2.0)
    assert {node.op for node in optimise(graph).nodes} <= {"input", "const", "reshape", "mul", "slice"}
    assert not {"slice", "concat"} & {node.op for node in optimise(graph).nodes}


def test_the_shapes_the_passes_hand_on_are_those_of_the_graph() -> None:
    graph = optimise(step_graph())
    assert graph.infer(1) == Graph(graph.nodes, graph.outputs, graph.updates).infer(1)


def test_the_arena_is_smaller_than_the_sum_of_its_parts() -> None:
    graph = optimise(step_graph())
    known = graph.infer(1)
    plan = Plan(graph, initial_weights(graph, 0), "reference")
    total = sum(known.bytes_of(place) for place in schedule(graph).order)
    assert plan.arena_bytes < 0.6 * total


def test_parameters_are_updated_in_place() -> None:
    graph = optimise(step_graph(OptimizerSpec(name="adam")))
    decided = schedule(graph)
    written = {graph.nodes[place].attrs["name"] for place in decided.in_place.values()}
    assert {p.name for p in graph.parameters} <= written
    assert {graph.nodes[target].attrs["name"] for target, _ in decided.copies} == {
        "1.running_mean",
        "1.running_var",
    }


def test_an_old_value_read_after_its_update_is_kept(each_device: str) -> None:
    builder = Builder()
    lr, g = builder.input("lr", ()), builder.input("g", (2,))
    p = builder.param("p", (2,), {"kind": "zeros"})
    new = apply("sgd_update", p, g, lr)
    builder.update(p, new)
    state = {"p": cx.device.put(np.array([1.0, 2.0], np.float32), each_device)}
    plan = Plan(builder.graph(new - p, p), state, each_device)
    plan.inputs["lr"][...], plan.inputs["g"][...] = 0.5, [2.0, 4.0]
    plan.run()
    assert plan.outputs[0].tolist() == [-1.0, -2.0] and state["p"].tolist() == [0.0, 0.0]


def moments(after: bool) -> Graph:
    """Two moments m that follow their gradients at a rate computed last; after: the second follows the first one, as
    it was before.
    """
    builder, none = Builder(), {"kind": "constant", "value": 0.0}
    sizes = ("a", (40, 64)), ("b", (40, 64))
    m, p, g = ({name: builder.param(kind + name, size, none) for name, size in sizes} for kind in "mpg")
    terms = {name: m[name] - (m["a"] if after and name == "b" else g[name] + p[name] * 0.01) for name in m}
    rate = (builder.input("rate", (1,)).sum() * 0.5).tanh()
    for name in m:
        new = m[name]._next("axpy_update", terms[name], rate)
        builder.updates[m[name].node] = new.node
        builder.updates[p[name].node] = p[name]._next("axpy_update", new, rate).node
    return optimise(builder.graph(rate))


def test_the_term_of_an_update_is_made_with_it() -> None:
    graph = moments(after=False)
    decided, plain = schedule(graph, in_bands=True), schedule(graph)
    ops = [graph.nodes[place].op for place in decided.order]
    assert ops[-10:] == 2 * ["mul", "add", "sub", "axpy_update", "axpy_update"]
    assert sorted(decided.order) == sorted(plain.order) and decided.order != plain.order
    plan = Plan(graph, _normal(graph), "cpu")
    stored = [call.out for call in plan.calls if call.op == "sub"]
    assert len(stored) == 2 and len({array.ctypes.data for array in stored}) == 1  # one after the other


@pytest.mark.parametrize("after", [False, True])
def test_no_term_of_an_update_reads_what_is_updated_before(after: bool) -> None:
    graph = moments(after)
    assert not schedule(graph, in_bands=True).copies
    found = []
    for optimised in (True, False):
        state = _normal(graph)
        plan = Plan(graph, state, "cpu", optimised)
        plan.inputs["rate"][...] = 0.3
        for _ in range(3):
            plan.run()
        found.append({name: array.tobytes() for name, array in state.items()})
    assert found[0] == found[1]


def _normal(graph: Graph) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    params = [node.attrs for node in graph.nodes if node.op == "param"]
    return {each["name"]: rng.normal(size=each["shape"]).astype(np.float32) for each in params}


@pytest.mark.parametrize("optimised", [True, False])
def test_parameters_may_change_places(optimised: bool) -> None:
    builder = Builder()
    a, b = builder.param("a", (1,), {"kind": "zeros"}), builder.param("b", (1,), {"kind": "ones"})
    builder.update(a, b)
    builder.update(b, a.reshape((1, 1)).reshape((1,)))
    state = {"a": np.zeros(1, np.float32), "b": np.ones(1, np.float32)}
    plan = Plan(builder.graph(a + b * 2), state, "reference", optimised)
    for expected in (2.0, 1.0):
        plan.run()
        assert plan.outputs[0] == expected
    assert state["a"] == 0.0 and state["b"] == 1.0


@pytest.mark.parametrize("optimised", [True, False])
def test_what_is_detached_has_no_gradient_and_costs_no_call(optimised: bool) -> None:
    builder = Builder()
    x = builder.input("x", (3,))
    (gradient,) = backward(builder, (x * x.detach()).sum(), [x])
    plan = Plan(builder.graph(gradient, x.detach()), device="reference", optimised=optimised)
    plan.inputs["x"][...] = (1.0, 2.0, 3.0)
    plan.run()
    assert [array.tolist() for array in plan.outputs] == [[1.0, 2.0, 3.0]] * 2
    assert all(call.op != "detach" for call in plan.calls)


def test_both_modes_at_once_cannot_run() -> None:
    builder = Builder()
    x = builder.input("x", (1,))
    with pytest.raises(GraphError, match="training=True"):
        Plan(builder.graph(apply("by_mode", x, -x)), device="reference")


def test_missing_and_misshapen_state_is_named() -> None:
    builder = Builder()
    graph = builder.graph(-builder.param("weight", (2,), {"kind": "zeros"}))
    with pytest.raises(GraphError, match="'weight'"):
        Plan(graph, device="reference")
    with pytest.raises(ShapeError, match=r"'weight': expected a contiguous float32 array \(2,\)"):
        Plan(graph, {"weight": np.zeros(3, np.float32)}, "reference")


def test_an_unknown_device_is_named() -> None:
    with pytest.raises(SpecError, match="expected one of cpu, reference, cuda, cuda-tf32, got 'tpu'"):
        Plan(Builder().graph(), device="tpu")


def test_missing_kernels_tell_how_to_build_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(cx.device.importlib, "import_module", missing)
    with pytest.raises(KernelError, match="pip install -e"):
        cx.device.Cpu()


def test_a_graph_of_many_batches_reuses_its_inputs(each_device: str) -> None:
    builder = Builder()
    plan = Plan(builder.graph(builder.input("x", (3,)).sum()), device=each_device)
    for value in (1.0, 2.0):
        plan.inputs["x"][...] = value
        plan.run()
        assert plan.outputs[0] == 3 * value


def random_graph(data: st.DataObject) -> Graph:
    builder = Builder()
    values: list[Symbol] = [builder.input("x", (3, 4)), builder.constant([[1.0, 2.0, 3.0, 4.0]])]
    unary = ["neg", "abs", "relu", "square", "sign", "floor"]
    for _ in range(data.draw(st.integers(1, 12))):
        a, b = data.draw(st.sampled_from(values)), data.draw(st.sampled_from(values))
        kind = data.draw(
            st.sampled_from(["unary", "add", "mul", "sub", "maximum", "reshape", "transpose", "sum", "identity"])
        )
        if kind == "unary":
            values.append(apply(data.draw(st.sampled_from(unary)), a))
        elif kind == "reshape":
            values.append(a.reshape(-1).reshape(a.shape))
        elif kind == "transpose":
            values.append(a.T.T)
        elif kind == "sum":
            values.append(a.sum(1, keepdims=True))
        elif kind == "identity":
            values.append(a * 1.0 - 0.0)
        else:
            values.append(apply(kind, a, b))
    return builder.graph(*values[-3:])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_a_pass_preserves_meaning(data: st.DataObject) -> None:
    graph = random_graph(data)
    outputs = []
    for optimised in (False, True):
        plan = Plan(graph, device="reference", optimised=optimised)
        if "x" in plan.inputs:
            plan.inputs["x"][...] = np.linspace(-2, 2, 12).reshape(3, 4)
        plan.run()
        outputs.append([array.tobytes() for array in plan.outputs])
    assert outputs[0] == outputs[1]


def test_plans_of_other_devices_need_no_kernels_in_c() -> None:
    program = "import sys; sys.modules['cyxcore.kernels.cpu'] = None; import cyxcore.plan, cyxcore.training"
    subprocess.run([sys.executable, "-c", program], check=True)

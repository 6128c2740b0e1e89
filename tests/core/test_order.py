"""Gradients of large weights come right before their updates."""

import numpy as np
import pytest

from cyxcore.graph import Graph
from cyxcore.layers import build
from cyxcore.objectives import training_step
from cyxcore.order import schedule
from cyxcore.passes import optimise
from cyxcore.plan import Plan
from cyxcore.spec import OptimizerSpec, TrainingSpec
from cyxcore.symbols import Builder
from cyxcore.values import apply


def two_layers(batch: int, optimizer: OptimizerSpec) -> Graph:
    layers = [
        {"kind": "Linear", "out_features": 256},
        {"kind": "ReLU"},
        {"kind": "Linear", "out_features": 300},
    ]
    return optimise(training_step(build(input_shape=[300], layers=layers), batch, TrainingSpec(optimizer=optimizer)))


@pytest.mark.parametrize(
    "optimizer, updates",
    [
        (OptimizerSpec(name="adam"), ["adam_m", "adam_v", "adam_update"]),
        (OptimizerSpec(name="sgd", momentum=0.9), ["momentum", "axpy_update"]),
    ],
)
def test_a_large_gradient_is_made_right_before_its_update(optimizer: OptimizerSpec, updates: list[str]) -> None:
    graph = two_layers(8, optimizer)
    decided = schedule(graph, in_bands=True)
    ops = [graph.nodes[place].op for place in decided.order]
    products = [index for index, op in enumerate(ops) if op == "matmul"][-2:]
    assert [ops[index + 1 : index + 1 + len(updates)] for index in products] == [updates, updates]
    assert sorted(decided.order) == sorted(schedule(graph).order) and not decided.copies
    plan = Plan(graph, _normal(graph), "cpu")
    gradients = [call.out for call in plan.calls if call.op == "matmul"][-2:]
    assert len({array.ctypes.data for array in gradients}) == 1  # one after the other
    assert _after_steps(graph, True) == _after_steps(graph, False)


def test_a_gradient_stays_where_what_it_multiplies_takes_more_memory() -> None:
    graph = two_layers(600, OptimizerSpec(name="adam"))
    ops = [graph.nodes[place].op for place in schedule(graph, in_bands=True).order]
    assert "matmul" not in ops[ops.index("adam_m") :]


@pytest.mark.parametrize("shown", [False, True])
def test_a_gradient_that_reads_an_updated_parameter_or_is_a_result_stays(shown: bool) -> None:
    builder = Builder()
    size = (256, 256)
    lr, x = builder.input("lr", ()), builder.input("x", size)
    p, q = (builder.param(name, size, {"kind": "zeros"}) for name in "pq")
    gradient = (x if shown else p) @ x
    builder.update(p, apply("sgd_update", p, x, lr))
    builder.update(q, apply("sgd_update", q, gradient, lr))
    graph = optimise(builder.graph(gradient if shown else lr * 2))
    decided = schedule(graph, in_bands=True)
    ops = [graph.nodes[place].op for place in decided.order if graph.nodes[place].op != "mul"]
    assert ops == ["matmul", "sgd_update", "sgd_update"] and not decided.copies
    assert _after_steps(graph, True) == _after_steps(graph, False)


def _normal(graph: Graph) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    params = [node.attrs for node in graph.nodes if node.op == "param"]
    return {each["name"]: rng.normal(size=each["shape"]).astype(np.float32) ** 2 for each in params}


def _after_steps(graph: Graph, optimised: bool) -> list[bytes]:
    """Parameters and outputs after two steps."""
    state, rng = _normal(graph), np.random.default_rng(3)
    plan = Plan(graph, state, "cpu", optimised)
    for number in (1, 2):
        for name, array in plan.inputs.items():
            drawn = rng.normal(size=array.shape) if name == "x" else rng.integers(0, 300, array.shape)
            array[...] = {"learning_rate": 0.1, "lr": 0.1, "step": number}.get(name, drawn)
        plan.run()
    return [array.tobytes() for array in (*state.values(), *plan.outputs)]

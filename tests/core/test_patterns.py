"""The bundled patterns: each compiles, trains and lowers its loss."""

import math
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

import cyxcore as cx
from cyxcore import patterns
from cyxcore.errors import SpecError
from cyxcore.gradients import backward
from cyxcore.graphlearner import initial_weights
from cyxcore.plan import Plan
from cyxcore.symbols import Builder

NAMES = """
alexnet attention_block autoencoder bilstm cnn_basic cnn_classifier conv_bn_relu dcgan gan_basic gru_basic lenet5
lstm_basic lstm_seq2seq mlp_basic mlp_dropout mobilenet phase3_demo resnet_block rnn_basic transformer_decoder
transformer_encoder unet vae_decoder vae_encoder vgg16
""".split()
IMAGES = {"size": 16, "filters": 4, "classes": 3}
TRANSFORMER = {"d_model": 8, "nhead": 2, "layers": 1, "feedforward": 16, "steps": 6, "vocabulary": 12, "dropout": 0.0}
SMALL: dict[str, dict[str, Any]] = {
    "alexnet": {"size": 63, "width": 4, "hidden": 16, "classes": 3},
    "attention_block": {"steps": 6, "d_model": 8, "nhead": 2, "classes": 3},
    "cnn_basic": {**IMAGES, "hidden": 16},
    "cnn_classifier": {**IMAGES, "dropout": 0.0},
    "conv_bn_relu": IMAGES,
    "dcgan": {"start": 4, "filters": 4},
    "lenet5": {"size": 16, "classes": 3},
    "lstm_seq2seq": {"steps": 5, "steps_out": 4, "hidden": 8},
    "mobilenet": {"size": 32, "width": 2, "classes": 3},
    "phase3_demo": {"size": 8, "filters": 8, "classes": 3},
    "resnet_block": IMAGES,
    "transformer_encoder": {**TRANSFORMER, "classes": 3},
    "transformer_decoder": {**TRANSFORMER, "memory_steps": 4},
    "unet": {"size": 16, "filters": 4},
    "vgg16": {"size": 32, "width": 2, "pooled": 1, "hidden": 16, "classes": 3},
    **{name: {"steps": 6, "hidden": 8, "classes": 3} for name in ("rnn_basic", "lstm_basic", "gru_basic", "bilstm")},
}
ROWS = 24


def made(name: str) -> tuple[cx.Graph, Any, Any]:
    """(graph, rows that it can learn by heart, training) of a pattern at a small size."""
    recipe = cx.load_graph(patterns.get(name, **{"learning_rate": 0.01, **SMALL.get(name, {})}))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, *recipe.graph.input_shape)).astype(np.float32)
    if name.startswith("transformer"):
        x[:, :6] = rng.integers(0, 12, (ROWS, 6))
    output = recipe.graph.output_shape
    y = (
        rng.integers(0, output[0], ROWS)
        if recipe.training.loss == "cross_entropy"
        else rng.normal(size=(ROWS, *output))
    )
    if recipe.training.loss == "bce":
        y = (y > 0).astype(np.float32)
    if name in ("gan_basic", "dcgan"):
        y = np.tile(np.array([1.0, 0.0], np.float32), (ROWS, 1))
    if recipe.data.target_is_input:
        y = x
    rows = SimpleNamespace(x_train=x, y_train=y, x_val=None, y_val=None)
    training = msgspec.structs.replace(recipe.training, epochs=6, batch_size=ROWS)
    return recipe.graph, rows, training


def test_there_are_these() -> None:
    assert list(patterns.names()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_pattern_trains_and_lowers_its_loss(name: str) -> None:
    graph, rows, training = made(name)
    trainer = cx.Trainer.of_job(graph, rows, training)
    for _ in trainer.run():
        pass
    losses = [epoch.epoch_loss for epoch in trainer.history]
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0], losses


@pytest.mark.parametrize("name", NAMES)
def test_a_pattern_compiles_with_its_defaults_and_says_what_it_is(name: str) -> None:
    pattern = patterns.describe(name)
    assert pattern.name == name and pattern.category and pattern.tags
    assert all(one.description and one.min <= one.default <= one.max for one in pattern.parameters)
    recipe = cx.load_graph(patterns.get(name))
    summary = cx.summary(recipe.graph)
    assert summary.flops > 0 and summary.parameters == recipe.graph.parameter_count
    used = str(pattern.template)
    assert [one.name for one in pattern.parameters if f"${one.name}" not in used] == []


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("alexnet", 61_100_840),  # torchvision's
        ("vgg16", 138_357_544),  # torchvision's
        ("mobilenet", 4_231_976),  # Howard 2017: 4.2 million
        ("lenet5", 61_706),  # LeCun 1998, with all maps connected
    ],
)
def test_a_network_of_a_paper_has_its_size(name: str, parameters: int) -> None:
    assert cx.load_graph(patterns.get(name)).graph.parameter_count == parameters


def test_a_generator_is_trained_against_its_critic() -> None:
    """What the critic says of made rows has its gradient in the critic's parameters, minus it in the generator's."""
    graph, rows, _ = made("gan_basic")

    def slopes(reverse: bool) -> dict[str, np.ndarray]:
        step = Builder(ROWS)
        nodes = graph.nodes
        if not reverse:  # the same graph without the reversal: 2 round(x) - x becomes x
            place = max(n for n, node in enumerate(nodes) if node.layer.startswith("reversal"))
            source = nodes[place].inputs[1]
            nodes = tuple(n._replace(inputs=tuple(source if i == place else i for i in n.inputs)) for n in nodes)
        x = step.input("x", (ROWS, *graph.input_shape))
        (scores,) = step.embed(cx.Graph(nodes, graph.outputs), {"x": x}, training=True)
        wanted = [step.at(n) for n, node in enumerate(step.nodes) if node.op == "param"]
        found = backward(step, scores[:, 1].sum(), wanted)
        weights = initial_weights(graph, 0)
        plan = Plan(step.graph(*found), weights)
        plan.inputs["x"][...] = rows.x_train
        plan.run()
        names = [step.nodes[p.node].attrs["name"] for p in wanted]
        return dict(zip(names, (np.array(y) for y in plan.outputs), strict=True))

    with_it, without = slopes(True), slopes(False)
    for name, slope in without.items():
        sign = -1.0 if name.startswith("generator") else 1.0
        scale = np.abs(slope).max()
        assert scale > 0
        np.testing.assert_allclose(with_it[name] / scale, sign * slope / scale, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("unett", {}, "pattern: there is no 'unett'; did you mean 'unet'?"),
        ("unet", {"sise": 32}, "pattern 'unet': there is no parameter 'sise'; did you mean 'size'?"),
        ("unet", {"size": 4}, "pattern 'unet': size: expected a whole number from 8 to 4096, got 4"),
        ("unet", {"size": 16.5}, "pattern 'unet': size: expected a whole number from 8 to 4096, got 16.5"),
        ("unet", {"size": True}, "pattern 'unet': size: expected a whole number from 8 to 4096, got True"),
        ("mlp_dropout", {"dropout": "x"}, "pattern 'mlp_dropout': dropout: expected a number from 0.0 to 0.99, got x"),
        ("mlp_basic", {"hidden": 33}, "pattern 'mlp_basic': $hidden/2: 33 is not divisible by 2"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(name: str, parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        patterns.get(name, **parameters)
    assert str(caught.value) == said


def test_a_size_that_does_not_fit_is_said_by_the_graph() -> None:
    with pytest.raises(
        cx.errors.ShapeError, match="node 'join3' .Concatenate.: expected inputs that differ in axis 1 only"
    ):
        cx.load_graph(patterns.get("unet", size=20))

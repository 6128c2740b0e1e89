"""Recurrences that are one operation on the tape (cyxcore/sequences.py): the same bits, and many times fewer calls."""

import threading

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import eager, nn, sequences
from cyxcore.errors import GradientError
from cyxcore.kernels import cpu

STEPS, ROWS, INPUTS, HIDDEN = 18, 20, 5, 12  # enough steps and rows for a band of each of two threads


def _drawn(*shape, seed=0):
    return cx.tensor(np.random.default_rng((seed, *shape)).standard_normal(shape, np.float32), requires_grad=True)


def _layer(kind="LSTM", **options):
    cx.manual_seed(1)
    return getattr(nn, kind)(INPUTS, HIDDEN, batch_first=True, **options)


def _same_as_one_by_one(monkeypatch, run, by_kernel=True):
    """Whether run() gives the same bits as one operation after the other. by_kernel: whether that is what runs."""
    found, layers = [], []
    kernel = sequences.recurrence_of
    for how in (lambda kind: None, lambda kind: layers.append(kernel(kind)) or layers[-1]):
        monkeypatch.setattr(sequences, "recurrence_of", how)
        found.append([x.detach().numpy().copy() for x in run()])
    assert layers and all((layer is not None) is by_kernel for layer in layers)
    for one, other in zip(*found, strict=True):
        bits = np.uint32 if one.dtype == np.float32 else np.uint64
        np.testing.assert_array_equal(one.view(bits), other.view(bits))


LAYERS = {
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
    "tanh": ("RNN", {}),
    "relu without bias": ("RNN", {"nonlinearity": "relu", "bias": False}),
    "both directions, two layers": ("LSTM", {"num_layers": 2, "bidirectional": True}),
    "gru of three layers": ("GRU", {"num_layers": 3}),
    "projected": ("LSTM", {"proj_size": 7}),
    "projected, both directions, two layers": ("LSTM", {"num_layers": 2, "bidirectional": True, "proj_size": 2}),
}


def _used(used, kind, options):
    """What a layer makes, and the gradients where only this is used of it."""
    layer, x = _layer(kind, **options), _drawn(ROWS, STEPS, INPUTS)
    first = x * 1.5
    outputs, states = layer(first)
    states = states if isinstance(states, tuple) else (states,)
    loss = (first * first).sum()  # there is a gradient already to which the layer's is added
    if used in ("outputs", "all"):
        loss = loss + outputs.sin().sum()
    if used in ("states", "all"):
        loss = loss + states[0].square().sum() + states[0].cos().sum()
    if used in ("cell", "all"):
        loss = loss + states[-1].sin().sum()
    loss.backward()
    return [outputs, *states, x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]


USED = ["outputs", "states", "cell", "all"]


@pytest.mark.parametrize("used", USED)
@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients_have_the_bits_of_single_operations(monkeypatch, threads, name, used):
    kind, options = LAYERS[name]
    _same_as_one_by_one(monkeypatch, lambda: _used(used, kind, options))


# Rows, steps, inputs, hidden units: one of each, no whole vectors, more rows than are packed at once, units that
# threads share.
SIZES = [(1, 1, 1, 1), (1, 4, 3, 9), (2, 3, 5, 7), (33, 4, 9, 17), (270, 2, 3, 5), (5, 3, 40, 33), (3, 3, 70, 130)]


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_layers_of_every_size_have_the_bits_of_single_operations(monkeypatch, threads, kind, sizes, double):
    rows, steps, inputs, hidden = sizes

    def run():
        cx.manual_seed(1)
        layer, x = getattr(nn, kind)(inputs, hidden, batch_first=True), _drawn(rows, steps, inputs)
        if double:
            layer, x = layer.double(), cx.tensor(x.detach().numpy().astype(np.float64), requires_grad=True)
        outputs, _ = layer(x)
        outputs.sin().sum().backward()
        return [outputs, x.grad, *(p.grad for p in layer.parameters())]

    # Of gates of one column gradients are added in another order: those are no case for the kernel.
    _same_as_one_by_one(monkeypatch, run, by_kernel=(kind, hidden) != ("RNN", 1))


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_where_no_gradient_is_asked_for_the_bits_are_the_same(monkeypatch, threads, name, steps):
    kind, options = LAYERS[name]

    def run():
        with cx.no_grad():  # two states are kept, used in turn: of one step they are all there are
            outputs, states = _layer(kind, **options)(_drawn(3, steps, INPUTS))
        return [outputs, *(states if isinstance(states, tuple) else (states,))]

    _same_as_one_by_one(monkeypatch, run)


# Rows, steps, inputs, hidden units, projected ones.
PROJECTED = [
    (1, 1, 1, 3, 2),
    (1, 4, 3, 9, 8),
    (2, 3, 5, 7, 2),
    (33, 4, 9, 17, 16),
    (270, 2, 3, 5, 3),
    (3, 3, 70, 200, 130),
]


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("sizes", [*PROJECTED, (2, 3, 5, 4, 1)])
def test_projected_layers_of_every_size_have_the_bits_of_single_operations(monkeypatch, threads, sizes, double):
    rows, steps, inputs, hidden, projected = sizes

    def run():
        cx.manual_seed(1)
        layer = nn.LSTM(inputs, hidden, batch_first=True, proj_size=projected)
        dtype = np.float64 if double else np.float32
        layer = layer.double() if double else layer
        x = cx.tensor(_drawn(rows, steps, inputs).detach().numpy().astype(dtype), requires_grad=True)
        outputs, (_, cell) = layer(x)
        (outputs.sin().sum() + cell.cos().sum()).backward()
        return [outputs, cell, x.grad, *(p.grad for p in layer.parameters())]

    _same_as_one_by_one(monkeypatch, run, by_kernel=projected > 1)


@pytest.mark.parametrize("steps", [1, 3])
def test_of_a_cell_alone_the_last_step_has_no_gradient_of_the_projection(monkeypatch, steps):
    def run():
        layer, x = _layer(proj_size=7), _drawn(3, steps, INPUTS)
        layer(x)[1][1].sin().sum().backward()
        assert (layer.weight_hr_l0.grad is None) is (steps == 1)
        return [x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]

    _same_as_one_by_one(monkeypatch, run)


@pytest.mark.parametrize("frozen", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "all"])
def test_frozen_parameters_get_no_gradient_and_change_none(monkeypatch, frozen):
    def run():
        layer, x = _layer(), _drawn(3, 4, INPUTS)
        for name, parameter in layer.named_parameters():
            parameter.requires_grad = frozen not in (name, "all")
        outputs, _ = layer(x)
        outputs.sin().sum().backward()
        grads = [p.grad for p in layer.parameters() if p.grad is not None]
        assert len(grads) == (0 if frozen == "all" else 3)
        return [outputs, x.grad, *grads]

    _same_as_one_by_one(monkeypatch, run)


def test_a_parameter_that_comes_twice_gets_the_gradients_of_single_operations(monkeypatch):
    def run():
        layer, x = _layer(), _drawn(3, 4, INPUTS)
        layer.bias_hh_l0 = layer.bias_ih_l0
        layer(x)[0].sin().sum().backward()
        return [x.grad, *(p.grad for p in layer.parameters())]

    _same_as_one_by_one(monkeypatch, run, by_kernel=False)


@pytest.mark.parametrize("projected", [0, 7])
def test_infinities_and_nans_come_through_as_by_single_operations(monkeypatch, projected):
    lengths = cx.tensor([4, 2, 3])

    def run():
        layer, x = _layer(proj_size=projected), _drawn(3, 4, INPUTS)
        with cx.no_grad():
            x[0, 2, 1], x[1, 3, 0], x[2, 1, 3] = float("inf"), float("nan"), -float("inf")
        outputs, _ = layer(x, None, lengths)
        outputs.square().sum().backward()
        found = [outputs, x.grad, *(p.grad for p in layer.parameters())]
        return [x for tensor in found for x in (tensor.isnan(), tensor.nan_to_num())]

    found = []
    kernel = sequences.recurrence_of
    for how in (lambda kind: None, kernel):
        monkeypatch.setattr(sequences, "recurrence_of", how)
        found.append([x.detach().numpy() for x in run()])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("kind", "projected"), [("LSTM", 0), ("LSTM", 7), ("GRU", 0)])
def test_lengths_and_first_states_have_the_bits_of_single_operations(monkeypatch, threads, kind, projected):
    lengths = cx.tensor(np.random.default_rng(3).integers(1, STEPS + 1, ROWS))

    def run():
        options = {"proj_size": projected} if projected else {}
        layer, x = _layer(kind, bidirectional=True, **options), _drawn(ROWS, STEPS, INPUTS)
        sizes = (projected or HIDDEN, HIDDEN)[: 2 if kind == "LSTM" else 1]
        starts = [_drawn(2, ROWS, size, seed=seed) for seed, size in enumerate(sizes)]
        outputs, _ = layer(x, tuple(starts) if kind == "LSTM" else starts[0], lengths)
        outputs[:, 3:].sin().sum().backward()
        return [outputs, x.grad, *(start.grad for start in starts), *(p.grad for p in layer.parameters())]

    _same_as_one_by_one(monkeypatch, run)


@pytest.mark.parametrize("least", [0, eager.LEAST_COMPOSED])
@pytest.mark.parametrize(("kind", "options"), [("LSTM", {}), ("LSTM", {"proj_size": 7}), ("GRU", {})])
def test_second_derivatives_have_the_bits_of_single_operations(monkeypatch, kind, options, least):
    monkeypatch.setattr(eager, "LEAST_COMPOSED", least)  # with 0 some of the operations are one of others themselves

    def run():
        layer, x = _layer(kind, **options), _drawn(3, 4, INPUTS)
        outputs, states = layer(x)
        loss = outputs.sin().sum() + (states[0] if kind == "LSTM" else states).square().sum()
        slopes = cx.autograd.grad(loss, [x, *layer.parameters()], create_graph=True)
        sum((g.square().sum() for g in slopes), cx.tensor(0.0)).backward()
        return [*slopes, x.grad, *(p.grad for p in layer.parameters())]

    _same_as_one_by_one(monkeypatch, run)


def test_a_training_run_has_the_bits_of_single_operations(monkeypatch, threads):
    def run():
        layer = _layer()
        optimizer = cx.optim.Adam(layer.parameters(), lr=0.01)
        for seed in range(4):
            optimizer.zero_grad()
            layer(_drawn(ROWS, STEPS, INPUTS, seed=seed))[0].square().mean().backward()
            optimizer.step()
        return list(layer.parameters())

    _same_as_one_by_one(monkeypatch, run)


def test_outputs_may_be_written_to_and_hooked(monkeypatch):
    def run():
        layer, x, found = _layer(), _drawn(3, 4, INPUTS), []
        outputs, (hidden, _) = layer(x)
        outputs.register_hook(lambda g: found.append(g) or g * 2.0)
        (outputs.sin().sum() + hidden.sum()).backward()
        written, _ = layer(x)
        written[1:2] = written[:1] * 2.0
        written += 1.0
        written.cos().sum().backward()
        return [x.grad, *found, *(p.grad for p in layer.parameters())]

    _same_as_one_by_one(monkeypatch, run)


def test_a_hook_may_ask_for_second_derivatives_of_what_is_walked(monkeypatch):
    def run():
        layer, x, found = _layer(), _drawn(3, 4, INPUTS), []
        outputs, _ = layer(x)
        result = outputs.sin()
        result.register_hook(lambda g: found.extend(cx.autograd.grad(outputs.sum(), [x], create_graph=True)))
        result.sum().backward()
        return [x.grad, *found]

    _same_as_one_by_one(monkeypatch, run)


@pytest.mark.parametrize("name", ["weight_hh_l0", "weight_hr_l0"])
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_weight_changed_in_place_is_an_error_that_names_the_function(create_graph, name):
    layer = _layer(proj_size=7)
    loss = layer(_drawn(3, 4, INPUTS))[0].sum()
    with cx.no_grad():
        weight = getattr(layer, name)
        weight += 1.0
    with pytest.raises(GradientError, match="gradient of recurrence needs a tensor .* changed in place"):
        loss.backward(create_graph=create_graph)


def test_a_bias_may_change_before_the_way_back(monkeypatch):
    def run():
        layer = _layer()
        loss = layer(_drawn(3, 4, INPUTS))[0].square().sum()
        with cx.no_grad():
            layer.bias_hh_l0 += 1.0
        loss.backward()
        return [p.grad for p in layer.parameters()]

    _same_as_one_by_one(monkeypatch, run)


def test_a_bias_that_changed_is_an_error_where_the_states_are_made_again():
    layer = _layer()
    loss = layer(_drawn(3, 4, INPUTS))[0].square().sum()
    with cx.no_grad():
        layer.bias_hh_l0 += 1.0
    with pytest.raises(GradientError, match="gradient of recurrence needs a tensor .* changed in place"):
        loss.backward(create_graph=True)


def test_calls_wait_for_their_way_back_together(monkeypatch):
    def run():
        layer, inputs = _layer(), [_drawn(3, 4, INPUTS, seed=seed) for seed in range(6)]
        sum((layer(x)[0].square().sum() for x in inputs), cx.tensor(0.0)).backward()
        return [*(x.grad for x in inputs), *(p.grad for p in layer.parameters())]

    _same_as_one_by_one(monkeypatch, run)


def test_looking_for_nan_names_the_operation_within():
    layer, x = _layer(), _drawn(3, 4, INPUTS)
    with cx.no_grad():
        x[0, 0, 0] = float("nan")
    with cx.autograd.detect_anomaly(), pytest.raises(GradientError, match=r"NaN in the gradient that \w+ gives"):
        layer(x)[0].sum().backward()


def test_a_layer_is_called_in_threads():
    layer = _layer()

    def slope(seed):
        x = _drawn(ROWS, STEPS, INPUTS, seed=seed)
        return cx.autograd.grad(layer(x)[0].sin().sum(), [x])[0].numpy().copy()

    wanted, found = [slope(seed) for seed in range(6)], []
    threads = [threading.Thread(target=lambda seed=seed: found.append((seed, slope(seed)))) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seed for seed, _ in found) == list(range(6))
    for seed, each in found:
        np.testing.assert_array_equal(each, wanted[seed])


@pytest.mark.parametrize(
    ("kind", "shape", "projection"),
    [("lstm", (16, 3), None), ("lstm", (16, 5), (5, 4)), ("gru", (12, 3), (3, 4)), ("lstm", (16, 3), (4, 4))],
)
def test_a_projection_that_does_not_fit_is_refused(kind, shape, projection):
    arrays = [np.zeros(size, np.float32) for size in (shape, (2, 3, shape[0]), (2, 2, shape[1]), (2, 2, 4), (2, 3, 4))]
    weight, gates, hidden, cells, out = arrays
    given = None if projection is None else np.zeros(projection, np.float32)
    with pytest.raises(ValueError, match="expected"):
        cpu.recur(kind, False, weight, gates, hidden, cells, out, projection=given)

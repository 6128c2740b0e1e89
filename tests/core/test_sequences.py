"""Recurrences that are one operation on the tape (cyxcore/sequences.py): the same bits, and many times fewer calls.

By the kernel (cyxcore/recurrences.py), or by plans, which make what the kernel does not.
"""

import threading

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import eager, nn, sequences
from cyxcore.errors import GradientError

STEPS, ROWS, INPUTS, HIDDEN = 18, 20, 5, 12  # enough steps and rows for a band of each of two threads


@pytest.fixture(autouse=True)
def planned_at_once(monkeypatch):
    """Plans at the first call of a kind, and nothing known of other tests' calls."""
    monkeypatch.setattr(sequences, "_planned", {})
    monkeypatch.setattr(sequences, "_met", {})
    monkeypatch.setattr(sequences, "_calls", 0)
    monkeypatch.setattr(sequences, "_made", 0)
    monkeypatch.setattr(sequences, "LEAST_MEETINGS", 1)
    monkeypatch.setattr(sequences, "CALLS_PER_PLAN", 0)


@pytest.fixture
def by_plans(monkeypatch):
    monkeypatch.setattr(sequences, "recurrence_of", lambda kind: None)


@pytest.fixture(params=["kernel", "plans"])
def way(request):
    return request.param


def _drawn(*shape, seed=0):
    return cx.tensor(np.random.default_rng((seed, *shape)).standard_normal(shape, np.float32), requires_grad=True)


def _layer(kind="LSTM", **options):
    cx.manual_seed(1)
    return getattr(nn, kind)(INPUTS, HIDDEN, batch_first=True, **options)


def _places():
    return [place for ways in sequences._planned.values() for place in ways.free]


def _same_as_one_by_one(monkeypatch, run, way="kernel"):
    """Whether run() gives the same bits by the kernel, or by plans, and operation by operation."""
    found, layers = [], []
    kernel = sequences.recurrence_of

    def noted(kind):
        layers.append(kernel(kind) if how == "kernel" else None)
        return layers[-1]

    monkeypatch.setattr(sequences, "recurrence_of", noted)
    for how in ("operations", way):
        monkeypatch.setattr(sequences, "MOST_NODES", 1 << 30 if how == "plans" else 0)
        monkeypatch.setattr(sequences, "_planned", {})
        layers.clear()
        found.append([x.detach().numpy().copy() for x in run()])
    assert layers
    assert None not in layers if way == "kernel" else None not in sequences._planned.values()
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
def test_values_and_gradients_have_the_bits_of_single_operations(monkeypatch, threads, name, used, way):
    kind, options = LAYERS[name]
    _same_as_one_by_one(monkeypatch, lambda: _used(used, kind, options), way)


@pytest.mark.parametrize("used", USED)
def test_a_projected_layer_has_the_bits_of_single_operations(monkeypatch, threads, used):
    _same_as_one_by_one(monkeypatch, lambda: _used(used, "LSTM", {"proj_size": 7}), "plans")


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
    _same_as_one_by_one(monkeypatch, run, "plans" if (kind, hidden) == ("RNN", 1) else "kernel")


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

    _same_as_one_by_one(monkeypatch, run, "plans")


def test_infinities_and_nans_come_through_as_by_single_operations(monkeypatch):
    lengths = cx.tensor([4, 2, 3])

    def run():
        layer, x = _layer(), _drawn(3, 4, INPUTS)
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
        monkeypatch.setattr(sequences, "MOST_NODES", 0)
        found.append([x.detach().numpy() for x in run()])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_sequences_of_new_lengths_make_no_plans():
    layer = _layer()
    for steps in (3, 5, 400):
        layer(_drawn(2, steps, INPUTS))[0].sum().backward()
    assert not sequences._planned


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_lengths_and_first_states_have_the_bits_of_single_operations(monkeypatch, threads, kind, way):
    lengths = cx.tensor(np.random.default_rng(3).integers(1, STEPS + 1, ROWS))

    def run():
        layer, x = _layer(kind, bidirectional=True), _drawn(ROWS, STEPS, INPUTS)
        starts = [_drawn(2, ROWS, HIDDEN, seed=seed) for seed in range(2 if kind == "LSTM" else 1)]
        outputs, _ = layer(x, tuple(starts) if kind == "LSTM" else starts[0], lengths)
        outputs[:, 3:].sin().sum().backward()
        return [outputs, x.grad, *(start.grad for start in starts), *(p.grad for p in layer.parameters())]

    _same_as_one_by_one(monkeypatch, run, way)


@pytest.mark.parametrize("least", [0, eager.LEAST_COMPOSED])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_second_derivatives_have_the_bits_of_single_operations(monkeypatch, kind, least, way):
    monkeypatch.setattr(eager, "LEAST_COMPOSED", least)  # with 0 some of the operations are one of others themselves

    def run():
        layer, x = _layer(kind), _drawn(3, 4, INPUTS)
        outputs, states = layer(x)
        loss = outputs.sin().sum() + (states[0] if kind == "LSTM" else states).square().sum()
        slopes = cx.autograd.grad(loss, [x, *layer.parameters()], create_graph=True)
        sum((g.square().sum() for g in slopes), cx.tensor(0.0)).backward()
        return [*slopes, x.grad, *(p.grad for p in layer.parameters())]

    _same_as_one_by_one(monkeypatch, run, way)


def test_a_training_run_has_the_bits_of_single_operations(monkeypatch, threads, way):
    def run():
        layer = _layer()
        optimizer = cx.optim.Adam(layer.parameters(), lr=0.01)
        for seed in range(4):
            optimizer.zero_grad()
            layer(_drawn(ROWS, STEPS, INPUTS, seed=seed))[0].square().mean().backward()
            optimizer.step()
        return list(layer.parameters())

    _same_as_one_by_one(monkeypatch, run, way)
    assert len(_places()) == (way == "plans")


def test_outputs_may_be_written_to_and_hooked(monkeypatch, way):
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

    _same_as_one_by_one(monkeypatch, run, way)


def test_a_hook_may_ask_for_second_derivatives_of_what_is_walked(monkeypatch, way):
    def run():
        layer, x, found = _layer(), _drawn(3, 4, INPUTS), []
        outputs, _ = layer(x)
        result = outputs.sin()
        result.register_hook(lambda g: found.extend(cx.autograd.grad(outputs.sum(), [x], create_graph=True)))
        result.sum().backward()
        return [x.grad, *found]

    _same_as_one_by_one(monkeypatch, run, way)


def test_a_second_way_back_after_another_call_makes_the_first_again(by_plans):
    layer, x, other = _layer(), _drawn(3, 4, INPUTS), _drawn(3, 4, INPUTS, seed=1)
    loss = layer(x)[0].sin().sum()
    loss.backward(retain_graph=True)
    once = x.grad.numpy().copy()
    layer(other)[0].sum().backward()  # in the same place
    assert len(_places()) == 1
    x.grad = None
    loss.backward(retain_graph=True)
    np.testing.assert_array_equal(x.grad.numpy(), once)
    with cx.no_grad():
        layer.bias_ih_l0 += 1.0
    layer(other)[0].sum().backward()
    with pytest.raises(GradientError, match="gradient of recurrence needs a tensor .* changed in place"):
        loss.backward()


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_weight_changed_in_place_is_an_error_that_names_the_function(create_graph):
    layer = _layer()
    loss = layer(_drawn(3, 4, INPUTS))[0].sum()
    with cx.no_grad():
        layer.weight_hh_l0 += 1.0
    with pytest.raises(GradientError, match="gradient of recurrence needs a tensor .* changed in place"):
        loss.backward(create_graph=create_graph)


def test_a_bias_may_change_before_the_way_back(monkeypatch, way):
    def run():
        layer = _layer()
        loss = layer(_drawn(3, 4, INPUTS))[0].square().sum()
        with cx.no_grad():
            layer.bias_hh_l0 += 1.0
        loss.backward()
        return [p.grad for p in layer.parameters()]

    _same_as_one_by_one(monkeypatch, run, way)


def test_a_bias_that_changed_is_an_error_where_the_states_are_made_again():
    layer = _layer()
    loss = layer(_drawn(3, 4, INPUTS))[0].square().sum()
    with cx.no_grad():
        layer.bias_hh_l0 += 1.0
    with pytest.raises(GradientError, match="gradient of recurrence needs a tensor .* changed in place"):
        loss.backward(create_graph=True)


def test_calls_that_wait_for_their_way_back_have_places_of_their_own(monkeypatch, way):
    def run():
        layer, inputs = _layer(), [_drawn(3, 4, INPUTS, seed=seed) for seed in range(sequences.MOST_AT_ONCE + 2)]
        sum((layer(x)[0].square().sum() for x in inputs), cx.tensor(0.0)).backward()
        return [*(x.grad for x in inputs), *(p.grad for p in layer.parameters())]

    _same_as_one_by_one(monkeypatch, run, way)
    assert len(_places()) == (sequences.MOST_AT_ONCE if way == "plans" else 0)


def test_a_place_is_free_when_nobody_can_ask_for_gradients_any_more(by_plans):
    layer, x = _layer(), _drawn(3, 4, INPUTS)
    for _ in range(3):
        outputs = layer(x)
        assert not _places()
        del outputs
    with cx.no_grad():
        for _ in range(3):
            layer(x)
    assert [ways.places for ways in sequences._planned.values()] == [1, 1]
    assert len(_places()) == 2


def test_results_stay_what_they_are_when_another_call_has_the_place(by_plans):
    layer, x = _layer(), _drawn(3, 4, INPUTS)
    with cx.no_grad():
        outputs, (hidden, cell) = layer(x)
        before = [each.numpy().copy() for each in (outputs, hidden, cell)]
        layer(_drawn(3, 4, INPUTS, seed=1))
    for each, was in zip((outputs, hidden, cell), before, strict=True):
        np.testing.assert_array_equal(each.numpy(), was)


def test_plans_are_made_of_what_comes_again(monkeypatch, by_plans):
    monkeypatch.setattr(sequences, "LEAST_MEETINGS", 3)
    monkeypatch.setattr(sequences, "CALLS_PER_PLAN", 10)
    layer = _layer()
    made = []
    for length in [4, 4, 4, 5, 5, 5, 5, 4, 4, 4, 5]:
        layer(_drawn(3, length, INPUTS))
        made.append(len(sequences._planned))
    assert made == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2]  # the second one with the eleventh call


def test_the_kind_of_calls_that_was_not_used_for_longest_is_forgotten(monkeypatch, by_plans):
    monkeypatch.setattr(sequences, "MOST_KINDS", 2)
    monkeypatch.setattr(sequences, "MOST_MET", 2)
    layer = _layer()
    for rows in (2, 3, 2, 4):
        layer(_drawn(rows, 4, INPUTS))
    assert [kind.typed[0][0][0] for kind in sequences._planned] == [2, 4]
    monkeypatch.setattr(sequences, "LEAST_MEETINGS", 9)
    for rows in (5, 6, 5, 7):
        layer(_drawn(rows, 4, INPUTS))
    assert [kind.typed[0][0][0] for kind in sequences._met] == [5, 7]


def test_sequences_of_too_many_steps_go_operation_by_operation(monkeypatch, by_plans):
    monkeypatch.setattr(sequences, "MOST_NODES", 50)
    layer, x = _layer(), _drawn(3, 6, INPUTS)
    layer(x)[0].sum().backward()
    assert list(sequences._planned.values()) == [None]
    assert x.grad is not None


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

"""Norms by one kernel (cyxcore/rownorms.py): the bits of the operations, on every instruction set and any threads."""

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import composed, eager, rownorms
from cyxcore import functional as F

# Rows of a part of a vector, of one block of sums, of several; blocks of rows that are whole, and not.
NORMS = {
    "layer norm of 9": (lambda x, w, b: F.layer_norm(x, (9,), w, b), [(70, 9), (9,), (9,)]),
    "layer norm of 64": (lambda x, w, b: F.layer_norm(x, (64,), w, b), [(9, 11, 64), (64,), (64,)]),
    "layer norm of 200": (lambda x, w, b: F.layer_norm(x, (4, 50), w, b), [(163, 4, 50), (4, 50), (4, 50)]),
    "layer norm of 1300": (lambda x, w, b: F.layer_norm(x, (1300,), w, b), [(5, 1300), (1300,), (1300,)]),
    "layer norm with a weight": (lambda x, w: F.layer_norm(x, (130,), w), [(40, 130), (130,)]),
    "layer norm with a bias": (lambda x, b: F.layer_norm(x, (33,), None, b), [(40, 33), (33,)]),
    "layer norm of 2500 alone": (lambda x: F.layer_norm(x, (2500,)), [(4, 2500)]),
    "rms norm of 64": (lambda x, w: F.rms_norm(x, (64,), w), [(131, 64), (64,)]),
    "rms norm of 1000": (lambda x, w: F.rms_norm(x, (1000,), w), [(7, 1000), (1000,)]),
    "rms norm alone": (lambda x: F.rms_norm(x, (77,)), [(9, 77)]),
    "group norm": (lambda x, w, b: F.group_norm(x, 3, w, b), [(5, 12, 7, 9), (12,), (12,)]),
    "group norm of rows": (lambda x, w, b: F.group_norm(x, 4, w, b), [(3, 4, 130), (4,), (4,)]),
    "group norm with a bias": (lambda x, b: F.group_norm(x, 2, None, b), [(3, 8, 5, 41), (8,)]),
    "instance norm": (lambda x, w: F.instance_norm(x, None, None, w), [(4, 6, 11, 12), (6,)]),
    "batch norm in evaluation": (
        lambda x, w, b: F.batch_norm(x, *_running(6), w, b),
        [(5, 6, 11, 12), (6,), (6,)],
    ),
    "batch norm in evaluation with a bias": (lambda x, b: F.batch_norm(x, *_running(4), None, b), [(5, 4, 37), (4,)]),
}


def _running(channels):
    spread = np.arange(channels)
    return cx.tensor((0.1 * spread).astype(np.float32)), cx.tensor((0.5 + spread).astype(np.float32))


def _drawn(*shape, seed, dtype="float32"):
    drawn = np.random.default_rng((seed, *shape)).standard_normal(shape).astype(dtype)
    return cx.tensor(3.0 + 2.0 * drawn, requires_grad=True)


def _both(monkeypatch, run):
    found = []
    for least in (1 << 60, 0):
        monkeypatch.setattr(composed, "_ways", {})
        monkeypatch.setattr(composed, "_made", 0)
        monkeypatch.setattr(eager, "LEAST_COMPOSED", least)
        found.append([x.detach().numpy() for x in run()])
    return found


@pytest.mark.parametrize("name", NORMS)
def test_values_and_gradients_have_the_bits_of_single_operations(monkeypatch, isa, threads, name):
    function, shapes = NORMS[name]

    def run():
        inputs = [_drawn(*shape, seed=place) for place, shape in enumerate(shapes)]
        result = function(*inputs)
        upstream = cx.tensor(np.random.default_rng(7).standard_normal(result.shape).astype(np.float32))
        result.backward(upstream)
        function(*inputs).backward(upstream * 0.5)  # added to what is there
        return [result, *(x.grad for x in inputs)]

    one, other = _both(monkeypatch, run)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.view(np.int32), b.view(np.int32))
    assert any(type(known.ways) in (rownorms.RowNorm, rownorms.GivenNorm) for known in composed._ways.values())


@pytest.mark.parametrize("name", ["layer norm of 200", "rms norm of 64", "group norm"])
def test_float64_has_the_bits_of_single_operations(monkeypatch, isa, name):
    function, shapes = NORMS[name]

    def run():
        inputs = [_drawn(*shape, seed=place, dtype="float64") for place, shape in enumerate(shapes)]
        result = function(*inputs)
        (result * result).sum().backward()
        return [result, *(x.grad for x in inputs)]

    one, other = _both(monkeypatch, run)
    for a, b in zip(one, other, strict=True):
        assert a.dtype == np.float64
        np.testing.assert_array_equal(a.view(np.int64), b.view(np.int64))


def test_what_is_added_before_has_its_place(monkeypatch, isa):
    """The gradient of x so far: of a middle tensor that is used again, whole."""

    def run():
        x = _drawn(40, 72, seed=0)
        middle, weight = x * 1.5, _drawn(72, seed=1)
        (F.layer_norm(middle, (72,), weight).sin().sum() + (middle * middle.detach().cos()).sum()).backward()
        return [x.grad, weight.grad]

    one, other = _both(monkeypatch, run)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("value", [np.inf, np.nan, -0.0])
def test_odd_numbers_are_where_the_operations_have_them(monkeypatch, value):
    def run():
        numbers = np.random.default_rng(3).standard_normal((20, 90)).astype(np.float32)
        numbers[3, 5] = value
        x, weight, bias = cx.tensor(numbers, requires_grad=True), _drawn(90, seed=1), _drawn(90, seed=2)
        result = F.layer_norm(x, (90,), weight, bias)
        result.backward(cx.tensor(np.where(numbers > 0, numbers, np.float32(-0.0))))
        return [result, x.grad, weight.grad, bias.grad]

    one, other = _both(monkeypatch, run)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_frozen_batch_norms_leave_their_input_to_others(monkeypatch):
    monkeypatch.setattr(eager, "LEAST_COMPOSED", 0)
    weight, x = _drawn(6, seed=1).detach(), _drawn(5, 6, 8, seed=0)
    middle = x * 1.0
    result = F.batch_norm(middle, *_running(6), weight)
    middle += 1.0
    result.sum().backward()
    factor = weight.numpy() / np.sqrt(_running(6)[1].numpy() + np.float32(1e-5))
    np.testing.assert_array_equal(x.grad.numpy(), np.broadcast_to(factor[:, None], x.shape))


def test_errors_beside_float64_are_some_roundings():
    x = _drawn(64, 300, seed=5)
    exact = x.detach().numpy().astype(np.float64)
    exact = (exact - exact.mean(1, keepdims=True)) / np.sqrt(exact.var(1, keepdims=True) + 1e-5)
    found = F.layer_norm(x, (300,)).numpy()
    assert np.abs(found - exact).max() < 8 * np.finfo(np.float32).eps * np.abs(exact).max()


@pytest.mark.parametrize("wrong", [{"n": 7}, {"inner": 5}, {"weight": np.ones(9, np.float32)}, {"out": None}])
def test_the_kernel_refuses_what_does_not_fit(wrong):
    from cyxcore.kernels import cpu

    x = np.ones((4, 8), np.float32)
    args = {"n": 8, "inner": 0, "eps": 1e-5, "mean": np.ones(4, np.float32), "var": np.ones(4, np.float32)}
    args |= {"weight": None, "bias": None, "out": np.empty_like(x)} | wrong
    with pytest.raises(ValueError, match="expected"):
        cpu.normalise(x, *args.values())

"""Functions that are one operation on the tape (cyxcore/composed.py): the same bits, and less kept."""

import threading

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import composed, eager
from cyxcore import functional as F
from cyxcore.errors import GradientError
from cyxcore.kernels import cpu

ONE_BY_ONE = 1 << 60


def _drawn(*shape, seed=0):
    return cx.tensor(np.random.default_rng((seed, *shape)).standard_normal(shape, np.float32), requires_grad=True)


def _running(channels):
    return cx.tensor(np.full(channels, 0.25, np.float32)), cx.tensor(np.full(channels, 2.0, np.float32))


FUNCTIONS = {
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (24,), w, b), [(8, 4, 24), (24,), (24,)]),
    "layer_norm without weights": (lambda x: F.layer_norm(x, (4, 24)), [(8, 4, 24)]),
    "rms_norm": (lambda x, w: F.rms_norm(x, (24,), w), [(8, 4, 24), (24,)]),
    "group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b), [(3, 4, 5, 6), (4,), (4,)]),
    "instance_norm": (F.instance_norm, [(3, 4, 5, 6)]),
    "batch_norm": (lambda x, w, b: F.batch_norm(x, *_running(4), w, b, True), [(6, 4, 5, 3), (4,), (4,)]),
    "batch_norm in evaluation": (lambda x, w, b: F.batch_norm(x, *_running(4), w, b, False), [(6, 4, 5), (4,), (4,)]),
    "gelu": (F.gelu, [(7, 50)]),
    "gelu tanh": (lambda x: F.gelu(x, "tanh"), [(7, 50)]),
    "silu": (F.silu, [(7, 50)]),
    **{
        name: (getattr(F, name), [(7, 50)])
        for name in (
            "celu elu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish selu softplus softshrink "
            "softsign tanhshrink"
        ).split()
    },
    "softplus with a threshold": (lambda x: F.softplus(x, 2.0, 1.0), [(7, 50)]),
    "threshold": (lambda x: F.threshold(x, 0.1, 20.0), [(7, 50)]),
    "clip": (lambda x: cx.clip(x, -0.5, 0.7), [(7, 50)]),
    "lerp": (lambda x, y: cx.lerp(x, y, 0.3), [(7, 50)] * 2),
    "lerp by a tensor": (cx.lerp, [(7, 50)] * 3),
    "addcmul": (lambda x, y, z: cx.addcmul(x, y, z, value=0.3), [(7, 50)] * 3),
    "addcdiv": (lambda x, y, z: cx.addcdiv(x, y, z.exp(), value=0.3), [(7, 50)] * 3),
    **{
        f"norm {order} of {axis}": (
            lambda x, order=order, axis=axis: cx.linalg.vector_norm(x, ord=order, axis=axis, keepdims=True),
            [(7, 50)],
        )
        for order in (1, 2, 3, cx.inf)
        for axis in (None, 1)
    },
    **{
        f"var of {axis} less {less}": (lambda x, axis=axis, less=less: x.var(axis, correction=less), [(7, 5, 10)])
        for axis in (None, -1, (0, 2))
        for less in (0, 1)
    },
    "cdist": (cx.cdist, [(7, 50), (9, 50)]),
    "cdist by sums": (lambda x, y: cx.cdist(x, y, 1.0), [(7, 50), (9, 50)]),
    "prelu": (F.prelu, [(7, 5, 10), (5,)]),
    **{
        f"{name} {reduction}": (
            lambda x, y, w, name=name, reduction=reduction: getattr(F, name)(x, y, reduction=reduction, weight=w),
            [(7, 50)] * 3,
        )
        for name in ("mse_loss", "l1_loss", "huber_loss", "binary_cross_entropy_with_logits")
        for reduction in ("mean", "sum", "none")
    },
    "smooth_l1_loss": (lambda x, y: F.smooth_l1_loss(x, y, beta=0.5), [(7, 50)] * 2),
    "bce": (lambda x, y: F.binary_cross_entropy(x.sigmoid(), y.sigmoid()), [(7, 50)] * 2),
    "bce of weighted classes": (
        lambda x, y, w: F.binary_cross_entropy_with_logits(x, y.sigmoid(), pos_weight=w.exp()),
        [(7, 50), (7, 50), (50,)],
    ),
    "kl_div": (lambda x, y: F.kl_div(x, y, "batchmean"), [(7, 50)] * 2),
    "kl_div of logarithms": (lambda x, y: F.kl_div(x, y, "sum", log_target=True), [(7, 50)] * 2),
    "attention": (F.scaled_dot_product_attention, [(2, 3, 8, 4), (2, 3, 9, 4), (2, 3, 9, 5)]),
    "causal attention": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), [(2, 3, 8, 4)] * 3),
    "attention with a mask": (F.scaled_dot_product_attention, [(2, 3, 8, 4)] * 3 + [(8, 8)]),
    "attention of one tensor": (lambda x: F.scaled_dot_product_attention(x, x, x), [(2, 3, 8, 4)]),
    "linear": (F.linear, [(4, 5, 16), (24, 16), (24,)]),
    "bilinear": (lambda x: F.interpolate(x, size=(9, 4), mode="bilinear"), [(3, 2, 5, 6)]),
    "bicubic": (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), [(3, 2, 5, 6)]),
    "smoothed": (lambda x: F.interpolate(x, size=(3, 9), mode="bilinear", antialias=True), [(3, 2, 5, 6)]),
    "grid_sample": (lambda x, g: F.grid_sample(x, g.tanh(), padding_mode="border"), [(3, 2, 5, 6), (3, 4, 4, 2)]),
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, padding=1), [(2, 3, 8, 8), (4, 3, 3, 3), (4,)]),
}


@pytest.fixture(autouse=True)
def no_other_shapes_before(monkeypatch):
    """Where shapes are always new ones, as in the tests that ran before in this process, no plans are made."""
    monkeypatch.setattr(composed, "_ways", {})
    monkeypatch.setattr(composed, "_made", 0)
    monkeypatch.setattr(composed, "_used", 0)


def _both(monkeypatch, run):
    found = []
    for least in (ONE_BY_ONE, 0):
        monkeypatch.setattr(eager, "LEAST_COMPOSED", least)
        found.append([x.detach().numpy() for x in run()])
    return found


def _same(found):
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients_have_the_bits_of_single_operations(monkeypatch, threads, name):
    function, shapes = FUNCTIONS[name]

    def run():
        inputs = [_drawn(*shape, seed=place) for place, shape in enumerate(shapes)]
        first, weight = inputs[0] * 1.5, _drawn(1, seed=9)
        result = function(first, *inputs[1:])
        # what is used again afterwards has a gradient already when the function's is added: whole, or of pieces
        loss = (result.sin() * weight).sum() + (first * first.detach().cos()).sum() + first[1:3].square().sum()
        loss.backward()
        return [result, *(x.grad for x in (*inputs, weight))]

    _same(_both(monkeypatch, run))


def test_what_is_there_of_a_gradient_may_be_several_pieces(monkeypatch):
    def run():
        x = _drawn(4, 8)
        middle = x * 1.5
        (F.gelu(middle).sum() + middle[0:1].sin().sum() + middle[2:3].cos().sum()).backward()
        return [x.grad]

    _same(_both(monkeypatch, run))


@pytest.mark.parametrize("name", ["layer_norm", "gelu tanh", "batch_norm", "attention of one tensor", "linear"])
def test_second_derivatives_have_the_bits_of_single_operations(monkeypatch, name):
    function, shapes = FUNCTIONS[name]

    def run():
        inputs = [_drawn(*shape, seed=place) for place, shape in enumerate(shapes)]
        slopes = cx.autograd.grad(function(*inputs).sin().sum(), inputs, create_graph=True)
        sum((g.square().sum() for g in slopes), cx.tensor(0.0)).backward()
        return [*slopes, *(x.grad for x in inputs)]

    _same(_both(monkeypatch, run))


def test_a_gradient_of_a_gradient_of_a_function(monkeypatch):
    def run():
        return [cx.hessian(lambda x: (F.gelu(F.layer_norm(x, (6,))) ** 3).sum())(_drawn(2, 6))]

    _same(_both(monkeypatch, run))


def test_running_statistics_move_as_by_single_operations(monkeypatch):
    def run():
        cx.manual_seed(1)
        layer = cx.nn.BatchNorm2d(4)
        layer(_drawn(6, 4, 5, 3)).sum().backward()
        return [*layer.parameters(), layer.running_mean, layer.running_var, layer.weight.grad]

    _same(_both(monkeypatch, run))


def test_large_tensors_keep_their_input_alone():
    x, weight = _drawn(512, 128), _drawn(128)
    assert F.silu(x)._op.inputs == (x,)
    assert F.layer_norm(x, (128,), weight)._op.inputs == (x, weight)


def test_small_tensors_go_operation_by_operation():
    x = _drawn(8, 8)
    assert type(F.silu(x)._op.op) is str


def test_an_input_changed_in_place_is_an_error_that_names_the_function(monkeypatch):
    monkeypatch.setattr(eager, "LEAST_COMPOSED", 0)
    for create_graph in (False, True):
        x = _drawn(4, 8) * 1.0
        loss = F.layer_norm(x, (8,)).sum()
        with cx.no_grad():
            x += 1.0
        with pytest.raises(GradientError, match="gradient of layer_norm needs a tensor .* changed in place"):
            loss.backward(create_graph=create_graph)


def test_a_bias_may_change_before_the_way_back(monkeypatch):
    monkeypatch.setattr(eager, "LEAST_COMPOSED", 0)
    x, weight, bias = _drawn(4, 8), _drawn(3, 8), _drawn(3)
    loss = F.linear(x, weight, bias).sum()
    with cx.no_grad():
        bias += 1.0
    loss.backward()
    np.testing.assert_array_equal(bias.grad.numpy(), np.full(3, 4.0, np.float32))


def test_an_option_may_be_a_tensor_or_an_array(monkeypatch):
    def run():
        x, scale = _drawn(2, 4, 8), cx.tensor(0.5)
        first = F.scaled_dot_product_attention(x, x, x, scale=scale)
        scale *= 3.0
        second = F.scaled_dot_product_attention(x, x, x, scale=scale)
        scale.requires_grad_(True)
        F.scaled_dot_product_attention(x, x, x, scale=scale).sin().sum().backward()
        of_arrays = [F.layer_norm(x, (8,), eps=eps) for eps in (np.float32(0.5), np.array(0.5, np.float32))]
        return [first, second, x.grad, scale.grad, *of_arrays]

    _same(_both(monkeypatch, run))


def test_the_first_input_may_be_an_array_of_numpy():
    x, images = np.ones((2, 4), np.float32), np.ones((1, 2, 4, 4), np.float32)
    assert F.linear(x, _drawn(3, 4), _drawn(3)).shape == (2, 3)
    assert F.conv2d(images, _drawn(3, 2, 3, 3), _drawn(3)).shape == (1, 3, 2, 2)
    assert F.scaled_dot_product_attention(x, _drawn(5, 4), _drawn(5, 3)).shape == (2, 3)
    assert F.scaled_dot_product_attention(x, _drawn(5, 4), _drawn(5, 3), dropout_p=0.5).shape == (2, 3)


def test_dtypes_that_no_graph_holds_go_operation_by_operation(monkeypatch):
    def run():
        return [F.mse_loss(_drawn(4, 8), cx.arange(32, dtype="uint64").reshape(4, 8))]

    _same(_both(monkeypatch, run))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_attention_drops_what_its_operations_would(monkeypatch, dtype):
    def run():
        cx.manual_seed(2)
        x = _drawn(2, 30, 8).detach().astype(dtype).requires_grad_()
        hidden = cx.tensor(np.tril(np.ones((30, 30), bool)))
        mixed = F.scaled_dot_product_attention(x, x, x, hidden, 0.3)
        mixed.square().sum().backward()
        return [mixed.astype("float64"), x.grad.astype("float64"), cx.rand(3)]

    _same(_both(monkeypatch, run))


@pytest.mark.parametrize("create_graph", [False, True])
def test_running_statistics_may_move_before_the_way_back(monkeypatch, create_graph):
    def run():
        layer, x = cx.nn.BatchNorm1d(5), _drawn(6, 5)
        loss = layer.eval()(x).sin().sum()
        layer.train()(_drawn(6, 5, seed=1))
        loss.backward(create_graph=create_graph)
        return [x.grad, layer.weight.grad, layer.bias.grad]

    _same(_both(monkeypatch, run))


def test_operations_take_the_place_of_a_function_once(monkeypatch):
    monkeypatch.setattr(eager, "LEAST_COMPOSED", 0)
    result = F.silu(_drawn(4, 8))
    function = result._op.op
    function.expand(result)
    expanded = result._op
    function.expand(result)
    assert result._op is expanded


def test_a_hook_may_ask_for_second_derivatives_of_what_is_walked(monkeypatch):
    def run():
        x, found = _drawn(4, 8), []
        middle = F.mish(x)
        result = F.silu(middle)
        result.register_hook(lambda g: found.extend(cx.autograd.grad(middle.sum(), [x], create_graph=True)))
        result.sum().backward()
        return [x.grad, *found]

    _same(_both(monkeypatch, run))


def test_a_result_may_be_written_to(monkeypatch):
    def run():
        x, y, weight, bias = _drawn(4, 8), _drawn(4, 8, seed=1), _drawn(8), _drawn(8, seed=2)
        result = F.layer_norm(x, (8,), weight, bias)
        result += y
        result[1:3] = y[:2] * 2.0
        result.sin().sum().backward()
        return [x.grad, y.grad, weight.grad, bias.grad]

    _same(_both(monkeypatch, run))


def test_looking_for_nan_names_the_operation_within(monkeypatch):
    monkeypatch.setattr(eager, "LEAST_COMPOSED", 0)
    x = cx.tensor(np.zeros((2, 8), np.float32), requires_grad=True)
    with cx.autograd.detect_anomaly(), pytest.raises(GradientError, match="that sqrt gives|that div gives"):
        F.layer_norm(x, (8,), eps=0.0).sum().backward()


def test_a_function_calls_itself_in_threads(monkeypatch):
    monkeypatch.setattr(eager, "LEAST_COMPOSED", 0)
    wanted, found = [], []

    def slope(seed):
        x = _drawn(64, 32, seed=seed)
        F.silu(F.layer_norm(x, (32,))).sum().backward()
        return x.grad.numpy()

    wanted = [slope(seed) for seed in range(4)]
    threads = [threading.Thread(target=lambda seed=seed: found.append((seed, slope(seed)))) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seed for seed, _ in found) == [0, 1, 2, 3]
    for seed, each in found:
        np.testing.assert_array_equal(each, wanted[seed])


def test_shapes_that_are_always_new_get_no_plans(monkeypatch):
    monkeypatch.setattr(eager, "LEAST_COMPOSED", 0)
    monkeypatch.setattr(composed, "FIRST_PLANS", 0)
    monkeypatch.setattr(composed, "_made", 0)
    monkeypatch.setattr(composed, "_used", 0)
    for length in range(301, 340):
        F.silu(_drawn(length)).sum().backward()
    assert composed._made <= 40 // composed.LEAST_USES


def test_a_program_runs_on_other_arrays_of_the_same_sizes_only():
    a, b, out = (np.zeros(8, np.float32) for _ in range(3))
    program = cpu.Program()
    program.add("add", out, [a, b], {})
    with pytest.raises(ValueError, match="expected a program that moves"):
        program.run_on([a, b, out], [])
    program.moving([a, b, out])
    there = np.empty(8, np.float32)
    program.run_on([np.arange(8, dtype=np.float32), np.ones(8, np.float32), there], [])
    np.testing.assert_array_equal(there, np.arange(1, 9))
    given = [there, there]
    program.run_on(given, [((8,), there.dtype.num)])  # made for it
    np.testing.assert_array_equal(given[2], 2 * there)
    assert not out.any()
    with pytest.raises(ValueError, match="expected array 1 to have 32 bytes"):
        program.run_on([a, np.zeros(7, np.float32), there], [])
    with pytest.raises(ValueError, match="without gaps"):
        program.run_on([a, np.zeros(16, np.float32)[::2], there], [])


def test_the_kind_of_calls_that_was_not_used_for_longest_is_forgotten(monkeypatch):
    monkeypatch.setattr(eager, "LEAST_COMPOSED", 0)
    monkeypatch.setattr(composed, "MOST_KNOWN", 2)
    for rows in (2, 3, 2, 4):
        F.silu(_drawn(rows, 5))
    assert [kind.typed[0][0] for kind in composed._ways] == [(2, 5), (4, 5)]


def test_memory_for_results_is_aligned_and_lives_as_long_as_they_do():
    made = [cpu.aligned((3, size), np.dtype("float32").num) for size in range(50)]
    for place, each in enumerate(made):
        each[...] = place
    assert all(each.ctypes.data % 64 == 0 and each.flags.c_contiguous and each.dtype == "float32" for each in made)
    assert all((each == place).all() and each.shape == (3, place) for place, each in enumerate(made))
    assert cpu.aligned((), np.dtype("bool").num).shape == () and cpu.aligned((0, 4), 12).size == 0
    with pytest.raises(ValueError, match="at most 8 axes"):
        cpu.aligned((1,) * 9, np.dtype("float32").num)


def test_a_plan_whose_arrays_are_others_each_time_fills_none_of_its_own(monkeypatch):
    monkeypatch.setattr(composed, "_ways", {})
    monkeypatch.setattr(type(composed._cpu), "staging", lambda *_: pytest.fail("an input that nobody reads"))
    x = _drawn(300, 300)
    F.mish(x).sum().backward()
    assert composed._ways and x.grad is not None

"""cx.amp.autocast beside torch.autocast("cpu"): the dtypes of functions, their numbers and gradients."""

import threading
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import casting, eager, nn
from cyxcore.errors import GraphError, SpecError
from cyxcore.kernels import cpu

torch = pytest.importorskip("torch")
F = nn.functional
DICE = np.random.default_rng(1)


def drawn(*shape: int) -> Any:
    return DICE.standard_normal(shape).astype(np.float32)


FLOATS: dict[str, Any] = {
    "x": drawn(4, 8),
    "y": np.sign(drawn(4, 8)),
    "w": drawn(8, 8),
    "v": drawn(8),
    "batch": drawn(5, 8, 8),
    "heads": drawn(2, 3, 5, 4),
    "image": drawn(2, 3, 8, 8),
    "kernel": drawn(4, 3, 3, 3),
    "back": drawn(3, 4, 3, 3),
    "volume": drawn(2, 3, 4, 5, 5),
    "cube": drawn(4, 3, 2, 2, 2),
    "cube_back": drawn(3, 2, 2, 2, 2),
    "grid": DICE.uniform(-1, 1, (2, 4, 4, 2)).astype(np.float32),
    "steps": drawn(5, 2, 6),
    "slope": np.full(1, 0.2, np.float32),
    "bias": drawn(4),
    "ones": np.ones(3, np.float32),
    "zeros": np.zeros(3, np.float32),
}
INTEGERS: dict[str, Any] = {
    "classes": np.array([0, 3, 1, 7]),
    "several": np.array([[0, 2, -1, 0, 0, 0, 0, 0]] * 4),
    "targets": np.array([[1, 2], [2, 3]]),
    "lengths": np.array([5, 5]),
    "counts": np.array([2, 2]),
}


def given(m: Any) -> SimpleNamespace:
    """The tensors of a library: each of floats as x, and as x_h in bfloat16."""
    wide = {name: m.tensor(array) for name, array in FLOATS.items()}
    halves = {f"{name}_h": x.to(m.bfloat16) for name, x in wide.items()}
    return SimpleNamespace(**wide, **halves, **{name: m.tensor(array) for name, array in INTEGERS.items()})


Case = Callable[[Any, Any, SimpleNamespace], Any]
PRODUCTS: dict[str, Case] = {
    "matmul": lambda m, f, t: t.x @ t.w,
    "mm": lambda m, f, t: m.mm(t.x, t.w),
    "a half and a float": lambda m, f, t: t.x_h @ t.w,
    "vector @ matrix": lambda m, f, t: t.v @ t.w,
    "matrix @ vector": lambda m, f, t: t.w @ t.v,
    "batch @ vector": lambda m, f, t: t.batch @ t.v,
    "bmm": lambda m, f, t: m.bmm(t.batch, t.batch),
    "addmm": lambda m, f, t: m.addmm(t.v, t.x, t.w),
    "addbmm": lambda m, f, t: m.addbmm(t.w, t.batch, t.batch),
    "baddbmm": lambda m, f, t: m.baddbmm(t.batch, t.batch, t.batch),
    "linear": lambda m, f, t: f.linear(t.x, t.w, t.v),
    "linear of a batch": lambda m, f, t: f.linear(t.batch, t.w, t.v),
    "conv1d": lambda m, f, t: f.conv1d(t.image[:, :, 0], t.kernel[:, :, 0]),
    "conv2d": lambda m, f, t: f.conv2d(t.image, t.kernel, t.bias, padding=1),
    "conv3d": lambda m, f, t: f.conv3d(t.volume, t.cube),
    "conv_transpose1d": lambda m, f, t: f.conv_transpose1d(t.image[:, :, 0], t.back[:, :, 0]),
    "conv_transpose2d": lambda m, f, t: f.conv_transpose2d(t.image, t.back),
    "conv_transpose3d": lambda m, f, t: f.conv_transpose3d(t.volume, t.cube_back),
    "einsum": lambda m, f, t: m.einsum("ij,jk->ik", t.x, t.w),
    "tensordot": lambda m, f, t: m.tensordot(t.x, t.w, 1),
    "multi_dot": lambda m, f, t: m.linalg.multi_dot([t.x, t.w, t.w]),
    "vecdot": lambda m, f, t: m.linalg.vecdot(t.x, t.x),
    "inner": lambda m, f, t: m.inner(t.x, t.w),
    "matrix_power": lambda m, f, t: m.linalg.matrix_power(t.w, 3),
    "attention": lambda m, f, t: f.scaled_dot_product_attention(t.heads, t.heads, t.heads),
    "causal attention": lambda m, f, t: f.scaled_dot_product_attention(t.heads, t.heads, t.heads, is_causal=True),
    "prelu": lambda m, f, t: f.prelu(t.x, t.slope),
}
NO_PRODUCTS: dict[str, Case] = {
    "mv": lambda m, f, t: m.mv(t.w, t.v),
    "dot": lambda m, f, t: m.dot(t.v, t.v),
    "addmv": lambda m, f, t: m.addmv(t.v, t.w, t.v),
    "addr": lambda m, f, t: m.addr(t.w, t.v, t.v),
    "outer": lambda m, f, t: m.outer(t.v, t.v),
    "kron": lambda m, f, t: m.kron(t.x, t.w),
    "bilinear": lambda m, f, t: f.bilinear(t.x, t.x, t.batch),
    "float64": lambda m, f, t: t.x.double() @ t.w.double(),
    "integers": lambda m, f, t: t.targets @ t.targets,
    "embedding": lambda m, f, t: f.embedding(t.classes, t.w),
    "gaussian_nll_loss": lambda m, f, t: f.gaussian_nll_loss(t.x_h, t.y_h, t.x_h.abs() + 1),
}
IN_FLOAT32: dict[str, Case] = {
    "cross_entropy": lambda m, f, t: f.cross_entropy(t.x_h, t.classes),
    "nll_loss": lambda m, f, t: f.nll_loss(t.x_h, t.classes),
    "mse_loss": lambda m, f, t: f.mse_loss(t.x_h, t.y),
    "l1_loss": lambda m, f, t: f.l1_loss(t.x_h, t.y_h),
    "smooth_l1_loss": lambda m, f, t: f.smooth_l1_loss(t.x_h, t.y_h),
    "huber_loss": lambda m, f, t: f.huber_loss(t.x_h, t.y_h),
    "binary_cross_entropy": lambda m, f, t: f.binary_cross_entropy(t.x_h.sigmoid(), t.x_h.sigmoid()),
    "… with logits": lambda m, f, t: f.binary_cross_entropy_with_logits(t.x_h, t.x_h.sigmoid()),
    "kl_div": lambda m, f, t: f.kl_div(t.x_h, t.x_h.sigmoid(), reduction="batchmean"),
    "cosine_embedding_loss": lambda m, f, t: f.cosine_embedding_loss(t.x_h, t.y_h, t.y_h[:, 0]),
    "hinge_embedding_loss": lambda m, f, t: f.hinge_embedding_loss(t.x_h, t.y),
    "poisson_nll_loss": lambda m, f, t: f.poisson_nll_loss(t.x_h, t.x_h.abs()),
    "margin_ranking_loss": lambda m, f, t: f.margin_ranking_loss(t.x_h, t.y_h, t.y),
    "soft_margin_loss": lambda m, f, t: f.soft_margin_loss(t.x_h, t.y),
    "triplet_margin_loss": lambda m, f, t: f.triplet_margin_loss(t.x_h, t.x_h + 1, t.y_h),
    "multi_margin_loss": lambda m, f, t: f.multi_margin_loss(t.x_h, t.classes),
    "multilabel_margin_loss": lambda m, f, t: f.multilabel_margin_loss(t.x_h, t.several),
    "multilabel_soft_margin_loss": lambda m, f, t: f.multilabel_soft_margin_loss(t.x_h, t.y.abs()),
    "ctc_loss": lambda m, f, t: f.ctc_loss(t.steps_h.log_softmax(-1), t.targets, t.lengths, t.counts),
    "cdist": lambda m, f, t: m.cdist(t.x_h, t.w_h),
    "prod": lambda m, f, t: m.prod(t.v_h),
    "quantile": lambda m, f, t: m.quantile(t.x_h, 0.5),
    "trace": lambda m, f, t: m.trace(t.w_h),
    "avg_pool3d": lambda m, f, t: f.avg_pool3d(t.volume_h, 2),
    "max_pool3d": lambda m, f, t: f.max_pool3d(t.volume_h, 2),
    "adaptive_avg_pool3d": lambda m, f, t: f.adaptive_avg_pool3d(t.volume_h, 1),
    "grid_sample": lambda m, f, t: f.grid_sample(t.image_h, t.grid, align_corners=False),
    "reflect": lambda m, f, t: f.pad(t.image_h, (1, 1, 1, 1), mode="reflect"),
    "replicate": lambda m, f, t: f.pad(t.image_h, (1, 1, 1, 1), mode="replicate"),
    "inv": lambda m, f, t: m.linalg.inv(t.w_h),
    "solve": lambda m, f, t: m.linalg.solve(t.w_h, t.w_h),
    "svdvals": lambda m, f, t: m.linalg.svdvals(t.w_h),
    "fft": lambda m, f, t: m.fft.fft(t.x_h),
}
AS_IT_IS: dict[str, Case] = {
    "softmax": lambda m, f, t: f.softmax(t.x_h, -1),
    "log_softmax": lambda m, f, t: f.log_softmax(t.x_h, -1),
    "layer_norm": lambda m, f, t: f.layer_norm(t.x_h, (8,), t.v, t.v),
    "layer_norm of nothing else": lambda m, f, t: f.layer_norm(t.x_h, (8,)),
    "batch_norm": lambda m, f, t: f.batch_norm(t.image_h, t.zeros * 1, t.ones * 1, t.ones, t.zeros, True),
    "batch_norm in inference": lambda m, f, t: f.batch_norm(t.image_h, t.zeros, t.ones, t.ones, t.zeros, False),
    "group_norm": lambda m, f, t: f.group_norm(t.image_h, 3, t.ones, t.zeros),
    "rms_norm": lambda m, f, t: f.rms_norm(t.x_h, (8,), None, 1e-5),
    "gelu": lambda m, f, t: f.gelu(t.x_h),
    "silu": lambda m, f, t: f.silu(t.x_h),
    "mish": lambda m, f, t: f.mish(t.x_h),
    "elu": lambda m, f, t: f.elu(t.x_h),
    "softplus": lambda m, f, t: f.softplus(t.x_h),
    "leaky_relu": lambda m, f, t: f.leaky_relu(t.x_h),
    "hardswish": lambda m, f, t: f.hardswish(t.x_h),
    "glu": lambda m, f, t: f.glu(t.x_h),
    "relu": lambda m, f, t: f.relu(t.x_h),
    "tanh": lambda m, f, t: t.x_h.tanh(),
    "exp": lambda m, f, t: t.x_h.exp(),
    "log": lambda m, f, t: (t.x_h.abs() + 1).log(),
    "sum": lambda m, f, t: t.x_h.sum(),
    "mean": lambda m, f, t: t.x_h.mean(),
    "norm": lambda m, f, t: t.x_h.norm(),
    "logsumexp": lambda m, f, t: m.logsumexp(t.x_h, -1),
    "cumsum": lambda m, f, t: t.x_h.cumsum(0),
    "power": lambda m, f, t: t.x_h**3.0,
    "cosine_similarity": lambda m, f, t: f.cosine_similarity(t.x_h, t.y_h),
    "normalize": lambda m, f, t: f.normalize(t.x_h),
    "max_pool2d": lambda m, f, t: f.max_pool2d(t.image_h, 2),
    "avg_pool2d": lambda m, f, t: f.avg_pool2d(t.image_h, 2),
    "interpolate": lambda m, f, t: f.interpolate(t.image_h, scale_factor=2, mode="bilinear", align_corners=False),
    "circular": lambda m, f, t: f.pad(t.image_h, (1, 1, 1, 1), mode="circular"),
    "cat": lambda m, f, t: m.cat([t.x, t.x_h]),
    "stack": lambda m, f, t: m.stack([t.x, t.x_h]),
    "add": lambda m, f, t: t.x + t.x_h,
    "where": lambda m, f, t: m.where(t.x > 0, t.x, t.x_h),
}
CASES = PRODUCTS | NO_PRODUCTS | IN_FLOAT32 | AS_IT_IS


def numbers(x: Any) -> Any:
    """Of either library."""
    return (x.to(torch.complex64 if x.is_complex() else torch.float64) if torch.is_tensor(x) else wide(x)).numpy()


def wide(x: Any) -> Any:
    return (x.astype("float32") if x.dtype in casting.HALVES else x).detach()


def in_halves(product: Case, m: Any, dtype: Any) -> Any:
    with warnings.catch_warnings(), m.autocast("cpu", dtype):
        warnings.simplefilter("ignore")
        return product(m, m.nn.functional, given(m))


@pytest.mark.parametrize("name", CASES)
def test_a_function_has_the_dtype_and_nearly_the_numbers_of_pytorchs(name: str) -> None:
    found, expected = in_halves(CASES[name], cx, cx.bfloat16), in_halves(CASES[name], torch, torch.bfloat16)
    assert str(expected.dtype) == f"torch.{found.dtype}"
    size = np.abs(numbers(expected)).max()
    assert np.abs(numbers(found) - numbers(expected)).max() <= 2.0**-6 * size


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_of_float16_is_float16_and_closer(name: str) -> None:
    found, exact = in_halves(PRODUCTS[name], cx, cx.float16), PRODUCTS[name](cx, F, given(cx))
    assert found.dtype == "float16" and (exact.dtype == "float32" or name == "a half and a float")
    assert np.abs(numbers(found) - numbers(exact)).max() <= 2.0**-8 * np.abs(numbers(exact)).max()


@pytest.mark.parametrize("name", ["LSTM", "RNN"])
def test_a_recurrent_layer_has_the_dtype_of_pytorchs(name: str) -> None:
    theirs, ours = getattr(torch.nn, name)(8, 6, bidirectional=True), getattr(nn, name)(8, 6, bidirectional=True)
    ours.load_state_dict({key: value.detach().numpy() for key, value in theirs.state_dict().items()})
    with torch.autocast("cpu"):
        expected, _ = theirs(torch.tensor(FLOATS["batch"]))
    with cx.autocast("cpu"):
        found, _ = ours(cx.tensor(FLOATS["batch"]))
    assert found.dtype == "bfloat16" and expected.dtype == torch.bfloat16
    assert np.abs(numbers(found) - numbers(expected.detach())).max() < 2.0**-6


def test_a_product_is_that_of_the_rounded_factors_rounded_once() -> None:
    x, w = cx.tensor(FLOATS["x"]), cx.tensor(FLOATS["w"])
    with cx.autocast("cpu"):
        found = x @ w
    factors = [each.astype("bfloat16").astype("float32") for each in (x, w)]
    assert found.tolist() == (factors[0] @ factors[1]).astype("bfloat16").tolist()


# gradients ----------------------------------------------------------------------------------------


class Net(nn.Module):
    """Every kind of function: products, norms, activations, attention, a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner, self.rows = nn.Linear(32, 16), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.last = nn.Linear(16, 5)

    def forward(self, x: Any) -> Any:
        x = F.gelu(self.norm(self.conv(x))).permute(0, 2, 1, 3).reshape(len(x), 8, -1)
        x = self.rows(self.inner(x))
        return self.last((x + self.attention(x, x, x)[0]).mean(1))


X, Y = cx.tensor(FLOATS["image"]), cx.tensor(np.array([1, 4]))


def training(dtype: str = "bfloat16") -> tuple[Net, Callable[[Any, Any], Any]]:
    cx.manual_seed(3)
    net = Net()
    adam = cx.optim.Adam(net.parameters(), lr=0.01)

    def step(x: Any, y: Any) -> Any:
        with cx.autocast("cpu", dtype=dtype):
            loss = F.cross_entropy(net(x), y)
        adam.zero_grad()
        loss.backward()
        adam.step()
        return loss

    return net, step


def trained(net: Net, step: Callable[[Any, Any], Any], steps: int = 4) -> bytes:
    losses = [step(X, Y) for _ in range(steps)]
    return b"".join(np.asarray(x).tobytes() for x in (*losses, *net.state_dict().values()))


@pytest.mark.parametrize("dtype", casting.HALVES)
def test_a_compiled_step_has_the_bits_of_a_plain_one(dtype: str) -> None:
    net, step = training(dtype)
    compiled_net, compiled = training(dtype)
    assert trained(net, step) == trained(compiled_net, cx.compile(compiled))


@pytest.mark.parametrize("dtype", casting.HALVES)
def test_training_has_the_same_bits_on_every_instruction_set_and_on_threads(dtype: str) -> None:
    before, threads, found = cpu.isa(), cpu.get_num_threads(), set()
    try:
        for isa in ("avx512", "avx2", "portable"):
            try:
                cpu.set_isa(isa)
            except ValueError:
                continue
            for count in (1, 2):
                cpu.set_num_threads(count)
                found.add(trained(*training(dtype)))
    finally:
        cpu.set_isa(before)
        cpu.set_num_threads(threads)
    assert len(found) == 1


LARGE = {name: cx.tensor(drawn(*shape)) for name, shape in {"x": (64, 32, 64), "w": (64, 64), "b": (64,)}.items()}
ONES_ON_THE_TAPE: dict[str, Callable[[Any, Any, Any], Any]] = {
    "linear": lambda x, w, b: F.linear(x, w, b),
    "linear twice": lambda x, w, b: F.linear(F.linear(x, w, b), w),
    "gelu by tanh": lambda x, w, b: F.gelu(F.linear(x, w), "tanh"),
    "layer_norm": lambda x, w, b: F.layer_norm(F.linear(x, w), (64,), b, b),
    "conv2d": lambda x, w, b: F.conv2d(x.reshape(16, 4, 32, 64), w[:4, :36].reshape(4, 4, 3, 3), b[:4], padding=1),
    "attention of one": lambda x, w, b: F.scaled_dot_product_attention(x, x, x, is_causal=True) + x,
    "attention": lambda x, w, b: F.scaled_dot_product_attention(F.linear(x, w), x, F.linear(x, w, b)),
    "attention with dropout": lambda x, w, b: F.scaled_dot_product_attention(F.linear(x, w), x, x, None, 0.25, True),
}


def gradients(name: str, dtype: str, create_graph: bool = False) -> list[bytes]:
    given = [x.detach().copy().requires_grad_() for x in LARGE.values()]
    cx.manual_seed(5)
    with cx.autocast("cpu", dtype=dtype):
        result = ONES_ON_THE_TAPE[name](*given)
    assert (type(result._op.op) is not str) == (eager.LEAST_COMPOSED < 1 << 20 and not name.endswith("one"))
    total = (result.astype("float32") * 0.125).square().sum()
    found = cx.autograd.grad(total, given, create_graph=create_graph, allow_unused=True)
    if create_graph:
        further = sum(g.square().sum() for g in found if g is not None)
        found += cx.autograd.grad(further, given, allow_unused=True)
    return [b"" if g is None else g.dtype.encode() + g.numpy().tobytes() for g in (wide(result), *found)]


@pytest.mark.parametrize("dtype", casting.HALVES)
@pytest.mark.parametrize("name", ONES_ON_THE_TAPE)
def test_a_function_that_is_one_on_the_tape_has_the_bits_of_its_steps(
    name: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [gradients(name, dtype), gradients(name, dtype, create_graph=True)]
    monkeypatch.setattr("cyxcore.eager.LEAST_COMPOSED", 1 << 40)
    assert found == [gradients(name, dtype), gradients(name, dtype, create_graph=True)]


@pytest.mark.parametrize("dtype", casting.HALVES)
def test_attention_rounds_once_whatever_it_drops(dtype: str) -> None:
    x = LARGE["x"]

    def dropped(x: Any) -> Any:
        with cx.autocast("cpu", dtype=dtype):
            return F.scaled_dot_product_attention(x, x, x, dropout_p=0.25)

    rounded = x.astype(dtype).astype("float32")
    found = []
    for attention in (
        dropped,
        cx.compile(dropped),
        lambda x: F.dropout(F.attention_weights(rounded, rounded), 0.25) @ rounded,
    ):
        cx.manual_seed(5)
        found.append(attention(x).astype(dtype).astype("float32").numpy().tobytes())
    assert found[0] == found[1] == found[2]


def test_parameters_and_their_gradients_stay_float32() -> None:
    net, step = training()
    trained(net, step, 1)
    assert {p.dtype for p in net.parameters()} == {p.grad.dtype for p in net.parameters()} == {"float32"}


def test_gradients_are_near_those_of_pytorch() -> None:
    w = cx.tensor(FLOATS["w"], requires_grad=True)
    theirs = torch.tensor(FLOATS["w"], requires_grad=True)
    for m, weight, f in ((cx, w, F), (torch, theirs, torch.nn.functional)):
        with m.autocast("cpu", m.bfloat16):
            hidden = f.layer_norm(f.gelu(m.tensor(FLOATS["x"]) @ weight), (8,))
            loss = f.cross_entropy(hidden @ weight, m.tensor(INTEGERS["classes"]))
        loss.backward()
    assert w.grad is not None and w.grad.dtype == "float32"
    assert np.abs(w.grad.numpy() - theirs.grad.numpy()).max() < 0.02 * np.abs(theirs.grad.numpy()).max()


def test_the_way_back_is_the_same_within_autocast() -> None:
    found = []
    for inside in (False, True):
        w = cx.tensor(FLOATS["w"], requires_grad=True)
        with cx.autocast("cpu"):
            loss = (cx.linalg.inv(w) @ w).square().sum() + (w @ w).sum()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        assert w.grad is not None
        found.append(w.grad.tolist())
    assert found[0] == found[1]


def test_a_block_that_is_computed_again_is_computed_in_the_same_dtype() -> None:
    seen: list[str] = []

    def block(x: Any) -> Any:
        seen.append((x @ x).dtype)
        return (x @ x).sum()

    with cx.autocast("cpu"):
        loss = cx.remat(block, cx.tensor(FLOATS["w"], requires_grad=True))
    loss.backward()
    assert seen == ["bfloat16", "bfloat16"]


# where it holds -----------------------------------------------------------------------------------


def product() -> Any:
    return cx.tensor(FLOATS["x"]) @ cx.tensor(FLOATS["w"])


def test_a_block_within_may_switch_it_off_or_choose_another_dtype() -> None:
    with cx.autocast("cpu"):
        with cx.autocast("cpu", enabled=False):
            assert product().dtype == "float32"
        with cx.autocast("cpu", dtype=cx.float16):
            assert product().dtype == "float16"
        assert product().dtype == "bfloat16"
    assert product().dtype == "float32"


def test_it_ends_with_an_error() -> None:
    with pytest.raises(ZeroDivisionError), cx.autocast("cpu"):
        raise ZeroDivisionError
    assert product().dtype == "float32" and not casting.inside[0]


def test_it_decorates_a_function_that_calls_itself() -> None:
    @cx.autocast("cpu")
    def deep(count: int) -> list[str]:
        return [product().dtype, *(deep(count - 1) if count else [])]

    assert deep(2) == ["bfloat16"] * 3 and product().dtype == "float32"


def test_other_threads_are_left_as_they_are() -> None:
    found: list[str] = []
    with cx.autocast("cpu"):
        thread = threading.Thread(target=lambda: found.append(product().dtype))
        thread.start()
        thread.join()
    assert found == ["float32"]


def test_a_compiled_function_has_a_plan_for_each_dtype() -> None:
    multiply = cx.compile(lambda x, w: x @ w)
    x, w = cx.tensor(FLOATS["x"]), cx.tensor(FLOATS["w"])
    dtypes = []
    for _ in range(3):
        dtypes.append(multiply(x, w).dtype)
        with cx.autocast("cpu"):
            dtypes.append(multiply(x, w).dtype)
    assert dtypes == ["float32", "bfloat16"] * 3


@pytest.mark.parametrize("function", [F.linear, cx.matmul, cx.mm, cx.Tensor.__matmul__])
def test_a_call_that_is_known_outside_is_cast_within_and_not_afterwards(function: Any) -> None:
    x, w = cx.tensor(FLOATS["x"]), cx.tensor(FLOATS["w"])
    dtypes = [[function(x, w).dtype for _ in range(6)]]
    with cx.autocast("cpu"):
        dtypes.append([function(x, w).dtype for _ in range(6)])
    dtypes.append([function(x, w).dtype for _ in range(6)])
    assert dtypes == [["float32"] * 6, ["bfloat16"] * 6, ["float32"] * 6]


def test_nothing_changes_for_the_device_cuda_on_the_cpu() -> None:
    with cx.autocast("cuda", dtype=cx.float16):
        assert product().dtype == "float32"


def test_a_graph_that_travels_is_refused() -> None:
    with cx.autocast("cpu"), pytest.raises(GraphError, match="trace it outside of autocast"):
        cx.trace(nn.Linear(3, 2), (3,))


@pytest.mark.parametrize("options", [{"device_type": "tpu"}, {"dtype": "float64"}, {"dtype": "int8"}])
def test_another_device_or_dtype_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="autocast: expected"):
        cx.autocast(**{"device_type": "cpu", **options})

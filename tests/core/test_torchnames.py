"""Tensors by PyTorch's names: the values and the gradients PyTorch has."""

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import torchnames
from cyxcore.errors import CyxError, DtypeError, GradientError, GraphError, ShapeError, SpecError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="the oracle, PyTorch, is not installed")

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
CUBE = np.random.default_rng(2).normal(size=(2, 3, 4)).astype(np.float32)
PLACES = np.array([[0, 2, 1, 0], [2, 0, 0, 1]], np.int64)
ROWS = np.array([2, 0], np.int64)
MASK = X > 0

# What to do with tensors (a library m, then tensors x, y and cube of it); arrays are made tensors of the library.
CALLS: dict[str, Callable[..., Any]] = {
    "view": lambda m, x, y, c: x.view(2, -1),
    "permute": lambda m, x, y, c: c.permute(2, 0, 1),
    "transpose": lambda m, x, y, c: c.transpose(0, 2),
    "transpose of a matrix": lambda m, x, y, c: x.transpose(0, 1),
    "transpose from behind": lambda m, x, y, c: m.transpose(c, -2, -1),
    "swapaxes": lambda m, x, y, c: c.swapaxes(0, 1),
    "movedim": lambda m, x, y, c: c.movedim(0, 2),
    "t": lambda m, x, y, c: x.t(),
    "unsqueeze": lambda m, x, y, c: x.unsqueeze(1).unsqueeze(-1),
    "squeeze": lambda m, x, y, c: x.unsqueeze(1).squeeze(1),
    "squeeze all": lambda m, x, y, c: x.unsqueeze(1).unsqueeze(0).squeeze(),
    "squeeze by dim": lambda m, x, y, c: x.unsqueeze(0).squeeze(dim=0),
    "flatten": lambda m, x, y, c: c.flatten(),
    "flatten from": lambda m, x, y, c: c.flatten(1),
    "flatten up to": lambda m, x, y, c: c.flatten(0, 1),
    "flatten by words": lambda m, x, y, c: m.flatten(c, start_dim=1, end_dim=2),
    "ravel": lambda m, x, y, c: c.ravel(),
    "unflatten": lambda m, x, y, c: x.unflatten(1, (2, -1)),
    "expand": lambda m, x, y, c: x[:, :1].expand(-1, 5),
    "expand new": lambda m, x, y, c: x.expand(2, 3, 4),
    "expand_as": lambda m, x, y, c: x.expand_as(c),
    "view_as": lambda m, x, y, c: x.view_as(y),
    "repeat": lambda m, x, y, c: x.repeat(2, 1, 3),
    "tile": lambda m, x, y, c: x.tile((2, 1)),
    "repeat_interleave": lambda m, x, y, c: x.repeat_interleave(2, dim=0),
    "roll": lambda m, x, y, c: x.roll(1, 0),
    "flip": lambda m, x, y, c: x.flip(0),
    "chunk": lambda m, x, y, c: x.chunk(3, dim=1),
    "split": lambda m, x, y, c: x.split(3, dim=1),
    "split by sizes": lambda m, x, y, c: m.split(x, [1, 3], dim=1),
    "unbind": lambda m, x, y, c: x.unbind(1),
    "narrow": lambda m, x, y, c: x.narrow(1, 1, 2),
    "select": lambda m, x, y, c: c.select(1, -1),
    "unfold": lambda m, x, y, c: x.unfold(1, 2, 1),
    "cat": lambda m, x, y, c: m.cat([x, y], dim=1),
    "cat by place": lambda m, x, y, c: m.cat((x, y), 1),
    "stack": lambda m, x, y, c: m.stack([x, y], dim=1),
    "hstack": lambda m, x, y, c: m.hstack([x, y]),
    "vstack": lambda m, x, y, c: m.vstack([x[0], y]),
    "gather": lambda m, x, y, c: x.gather(0, m.tensor(PLACES)),
    "take_along_dim": lambda m, x, y, c: m.take_along_dim(x, m.tensor(PLACES[:, :1]), 0),
    "index_select": lambda m, x, y, c: x.index_select(0, m.tensor(ROWS)),
    "index_add": lambda m, x, y, c: x.index_add(0, m.tensor(ROWS), y[:2], alpha=2),
    "index_fill": lambda m, x, y, c: x.index_fill(0, m.tensor(ROWS), 3.0),
    "scatter": lambda m, x, y, c: x.scatter(1, m.tensor(PLACES[:, :2]), y[:2, :2]),
    "scatter a number": lambda m, x, y, c: x.scatter(0, m.tensor(PLACES), 5.0),
    "scatter_add": lambda m, x, y, c: x.scatter_add(0, m.tensor(PLACES), y[:2]),
    "masked_fill": lambda m, x, y, c: x.masked_fill(m.tensor(MASK), -1.0),
    "masked_select": lambda m, x, y, c: x.masked_select(m.tensor(MASK)),
    "where": lambda m, x, y, c: x.where(m.tensor(MASK), y),
    "nonzero": lambda m, x, y, c: m.tensor(MASK).nonzero(),
    "unique": lambda m, x, y, c: m.tensor(PLACES).unique(return_inverse=True, return_counts=True),
    "tril": lambda m, x, y, c: x.tril(),
    "triu": lambda m, x, y, c: m.triu(x.triu(1)),
    "diag": lambda m, x, y, c: m.diag(x).diag(),
    "diag_embed": lambda m, x, y, c: m.diag_embed(x, 1),
    "diag_embed below": lambda m, x, y, c: m.diag_embed(x, -2),
    "sum": lambda m, x, y, c: m.sum(c, dim=(0, 2), keepdim=True),
    "sum by place": lambda m, x, y, c: m.sum(c, 1) + c.sum(1),
    "mean": lambda m, x, y, c: c.mean(dim=-1, keepdim=True),
    "var": lambda m, x, y, c: c.var(dim=1),
    "var of the population": lambda m, x, y, c: m.var(c, dim=1, unbiased=False),
    "std": lambda m, x, y, c: m.std(c, dim=(0, 1), keepdim=True),
    "max": lambda m, x, y, c: m.max(c, dim=1),
    "min": lambda m, x, y, c: c.min(dim=1, keepdim=True),
    "amax": lambda m, x, y, c: c.amax(1),
    "amin": lambda m, x, y, c: m.amin(c, dim=1),
    "argmax": lambda m, x, y, c: m.argmax(c, dim=1),
    "argmin": lambda m, x, y, c: c.argmin(dim=1, keepdim=True),
    "prod": lambda m, x, y, c: c.prod(1),
    "all": lambda m, x, y, c: (c > -1).all(dim=2),
    "any": lambda m, x, y, c: m.any(c > 1, dim=2),
    "logsumexp": lambda m, x, y, c: m.logsumexp(c, dim=1),
    "count_nonzero": lambda m, x, y, c: m.count_nonzero(m.tensor(MASK), dim=1),
    "median": lambda m, x, y, c: x.median(dim=1),
    "median of all": lambda m, x, y, c: x.median(),
    "sort": lambda m, x, y, c: m.sort(x, dim=1, descending=True),
    "argsort": lambda m, x, y, c: m.argsort(x, dim=0),
    "topk": lambda m, x, y, c: x.topk(2, dim=1),
    "cumsum": lambda m, x, y, c: m.cumsum(x, dim=1),
    "cumprod": lambda m, x, y, c: x.cumprod(0),
    "diff": lambda m, x, y, c: x.diff(),
    "norm": lambda m, x, y, c: x.norm() + m.norm(x, dim=1),
    "norm p": lambda m, x, y, c: x.norm(1, dim=0),
    "dist": lambda m, x, y, c: m.dist(x, y),
    "cdist": lambda m, x, y, c: m.cdist(x, y),
    "cosine_similarity": lambda m, x, y, c: m.cosine_similarity(x, y, dim=1),
    "add": lambda m, x, y, c: x.add(y, alpha=2),
    "sub": lambda m, x, y, c: m.sub(x, y),
    "mul": lambda m, x, y, c: x.mul(y).mul(2),
    "div": lambda m, x, y, c: x.div(y),
    "div down": lambda m, x, y, c: m.div(x.detach(), 0.3, rounding_mode="floor"),
    "div to 0": lambda m, x, y, c: m.tensor(PLACES - 1).div(2, rounding_mode="trunc"),
    "pow": lambda m, x, y, c: x.pow(2) + m.pow(x, 3),
    "neg": lambda m, x, y, c: x.neg(),
    "clamp": lambda m, x, y, c: x.clamp(-0.5, 0.5) + m.clamp(x, min=0.0),
    "rsqrt": lambda m, x, y, c: m.rsqrt(x.abs() + 1),
    "frac": lambda m, x, y, c: (x * 3).frac(),
    "fmod": lambda m, x, y, c: m.fmod(x, 0.7),
    "round": lambda m, x, y, c: x.detach().round(decimals=1),
    "nan_to_num": lambda m, x, y, c: (x / x.masked_fill(m.tensor(MASK), 0.0)).nan_to_num(1.0, 2.0, -2.0),
    "lerp": lambda m, x, y, c: x.lerp(y, 0.3),
    "addcmul": lambda m, x, y, c: x.addcmul(y, y, value=0.5),
    "addcdiv": lambda m, x, y, c: x.addcdiv(y, y.abs() + 1, value=0.5),
    "addmm": lambda m, x, y, c: x[:, :3].addmm(x, y.t(), beta=0.5, alpha=2.0),
    "mm": lambda m, x, y, c: x.mm(y.t()),
    "bmm": lambda m, x, y, c: c.bmm(c.transpose(1, 2)),
    "mv": lambda m, x, y, c: x.mv(y[0]),
    "dot": lambda m, x, y, c: x[0].dot(y[0]),
    "matmul": lambda m, x, y, c: m.matmul(c, x.t()),
    "outer": lambda m, x, y, c: x[0].outer(y[0]),
    "eq": lambda m, x, y, c: x.eq(y),
    "gt": lambda m, x, y, c: m.gt(x, y),
    "softmax": lambda m, x, y, c: m.softmax(x, dim=1) + x.softmax(-1),
    "log_softmax": lambda m, x, y, c: x.log_softmax(dim=1),
    "xlogy": lambda m, x, y, c: m.xlogy(x.clamp(min=0.0), y.abs()),
    "exp log": lambda m, x, y, c: x.exp().log1p().expm1().log2(),
    "isnan": lambda m, x, y, c: (x / x.clamp(max=0.0)).isnan(),
    "float": lambda m, x, y, c: m.tensor(PLACES).float(),
    "long": lambda m, x, y, c: (x * 3).long(),
    "double": lambda m, x, y, c: x.double(),
    "bool": lambda m, x, y, c: x.bool(),
    "type_as": lambda m, x, y, c: m.tensor(PLACES).type_as(x),
    "to": lambda m, x, y, c: x.to(m.float64) + x.to("cpu", m.float64) + x.to(x.double()),
    "new_zeros": lambda m, x, y, c: x.new_zeros(2, 3) + x.new_ones((2, 3)) + x.new_full((2, 3), 7.0),
    "new_tensor": lambda m, x, y, c: x.new_tensor([1, 2]),
    "clone": lambda m, x, y, c: x.clone(),
    "data": lambda m, x, y, c: x.data * 2,
    "tril_indices": lambda m, x, y, c: m.tril_indices(3, 4, -1),
    "as_tensor": lambda m, x, y, c: m.as_tensor([1.0, 2.0]),
    "pow by its word": lambda m, x, y, c: [x.pow(exponent=2), m.pow(y, exponent=3), x.float_power(exponent=2)],
    "products by their words": lambda m, x, y, c: [x.mm(mat2=y.t()), c.bmm(mat2=c.mT), x.mv(vec=y[0])],
    "matmul by its word": lambda m, x, y, c: c.matmul(other=y.t()),
    "vectors by their words": lambda m, x, y, c: [x[0].dot(tensor=y[0]), x[0].outer(vec2=y[0])],
    "cross by its word": lambda m, x, y, c: x.t().cross(other=y.t(), dim=1),
}
# Of two tensors, the second of which may be given by name.
WITH_OTHER = "add atan2 copysign div eq fmod ge gt hypot le logaddexp lt maximum minimum mul ne remainder sub"
MORE_WITH_OTHER = "divide logical_and logical_or logical_xor multiply subtract true_divide xlogy"
CALLS |= {
    f"{name} by its word": lambda m, x, y, c, name=name: [getattr(x, name)(other=y), getattr(m, name)(y, other=y * 2)]
    for name in f"{WITH_OTHER} {MORE_WITH_OTHER}".split()
}


def outputs(result: Any) -> list[Any]:
    return list(result) if isinstance(result, (tuple, list)) else [result]


@pytest.mark.parametrize("name", CALLS)
def test_a_name_means_what_it_means_in_pytorch(name: str) -> None:
    ours = [cx.tensor(each, requires_grad=True) for each in (X, Y, CUBE)]
    theirs = [torch.tensor(each, requires_grad=True) for each in (X, Y, CUBE)]
    mine, its = outputs(CALLS[name](cx, *ours)), outputs(CALLS[name](torch, *theirs))
    assert len(mine) == len(its)
    for one, other in zip(mine, its, strict=True):
        assert str(other.dtype) == f"torch.{one.dtype}" and one.shape == tuple(other.shape)
        np.testing.assert_allclose(one.numpy(), other.detach().numpy(), rtol=1e-5, atol=1e-6)
        if other.requires_grad:
            (one * one).sum().backward()
            (other * other).sum().backward(retain_graph=True)
    for tensor, oracle in zip(ours, theirs, strict=True):
        assert (tensor.grad is None) == (oracle.grad is None)
        if oracle.grad is not None:
            np.testing.assert_allclose(tensor.grad.numpy(), oracle.grad.numpy(), rtol=1e-4, atol=1e-5)


# In place: what is written, with which arguments.
WRITES: dict[str, Callable[[Any, Any], Any]] = {
    "add_": lambda m, x: x.add_(m.tensor(Y), alpha=0.5),
    "sub_": lambda m, x: x.sub_(1.0),
    "mul_": lambda m, x: x.mul_(2.0).div_(4.0),
    "pow_": lambda m, x: x.pow_(2),
    "clamp_": lambda m, x: x.clamp_(-0.5, 0.5),
    "zero_": lambda m, x: x.zero_(),
    "fill_": lambda m, x: x.fill_(3.0),
    "copy_": lambda m, x: x.copy_(m.tensor(PLACES[0])),
    "masked_fill_": lambda m, x: x.masked_fill_(m.tensor(MASK), 0.0),
    "scatter_": lambda m, x: x.scatter_(0, m.tensor(PLACES), 1.0),
    "scatter_add_": lambda m, x: x.scatter_add_(0, m.tensor(PLACES), m.tensor(Y)),
    "index_add_": lambda m, x: x.index_add_(0, m.tensor(ROWS), m.tensor(Y[:2])),
    "exp_": lambda m, x: x.exp_().sqrt_().neg_(),
    "lerp_": lambda m, x: x.lerp_(m.tensor(Y), 0.1),
    "addcmul_": lambda m, x: x.addcmul_(m.tensor(Y), m.tensor(Y), value=0.1),
    "sigmoid_": lambda m, x: x.sigmoid_().tanh_(),
    "of a part": lambda m, x: x[1].add_(5.0) is None or x,
}


@pytest.mark.parametrize("name", WRITES)
def test_what_is_written_in_place(name: str) -> None:
    ours, theirs = cx.tensor(X), torch.tensor(X)
    assert WRITES[name](cx, ours) is ours or name == "of a part"
    WRITES[name](torch, theirs)
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["mul_", "multiply_", "div_", "true_divide_", "pow_", "atan2_"])
def test_the_gradient_of_a_factor_is_that_of_what_was_there_before_it_was_written(name: str) -> None:
    """Of all of these the other one's gradient reads what x was."""
    for given in (lambda y: ((y,), {}), lambda y: ((), {"exponent" if name == "pow_" else "other": y})):
        gradients = []
        for m in (cx, torch):
            x, y = m.tensor(np.abs(X) + 0.5), m.tensor(Y, requires_grad=True)
            args, options = given(y)
            getattr(x, name)(*args, **options).sum().backward()
            gradients.append(y.grad.numpy())
        np.testing.assert_allclose(*gradients, rtol=1e-5)


def test_gradients_flow_through_what_is_written() -> None:
    results = []
    for m in (cx, torch):
        x = m.tensor(X, requires_grad=True)
        y = (x * 2.0).add_(1.0).add_(x).mul_(3.0)
        y.sum().backward()
        results.append(x.grad.numpy())
    np.testing.assert_allclose(*results, rtol=1e-5)


def test_a_leaf_that_requires_a_gradient_is_written_only_without_recording() -> None:
    x = cx.tensor(X, requires_grad=True)
    with pytest.raises(GradientError, match="a leaf that requires a gradient is not changed in place"):
        x.add_(1.0)
    x.data.add_(1.0)
    with cx.no_grad():
        x.clamp_(0.0, 1.0)
    x.data = cx.tensor(X)
    np.testing.assert_array_equal(x.numpy(), X)


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
@pytest.mark.parametrize("places", [[], [1], [2, 0, 2], [-1, 1]])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_index_fill_writes_whole_places_and_stops_their_gradient(dim: int, places: list[int], dtype: str) -> None:
    x = np.random.default_rng(0).integers(0, 2, (3, 4, 5)).astype(dtype)
    wanted, slope = x.copy(), np.ones((3, 4, 5), np.float32)
    for array, number in ((wanted, 1), (slope, 0)):
        np.moveaxis(array, dim, 0)[places] = number
    tensor = cx.tensor(x, requires_grad=dtype == "float32")
    found = tensor.index_fill(dim, cx.tensor(np.array(places, np.int64)), 1)
    assert found.dtype == dtype and found.numpy().tobytes() == wanted.tobytes()
    if tensor.requires_grad:
        found.sum().backward()
        assert (tensor.grad.numpy() == slope).all()


def test_index_fill_refuses_a_place_that_is_not_there() -> None:
    with pytest.raises(IndexError, match="3"):
        cx.zeros((3, 2)).index_fill(0, cx.tensor([3]), 1.0)


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
@pytest.mark.parametrize("shape", [(4,), (1,), (0,), (2, 3), (2, 0), (2, 3, 2)])
@pytest.mark.parametrize("offset", [0, 1, -1, 3, -3])
def test_diag_embed_puts_vectors_on_a_diagonal(offset: int, shape: tuple[int, ...], dtype: str) -> None:
    x = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    size = shape[-1] + abs(offset)
    wanted = np.zeros((*shape[:-1], size, size), dtype)
    rows = np.arange(shape[-1]) + max(-offset, 0)
    wanted[..., rows, rows + offset] = x
    tensor = cx.tensor(x, requires_grad=dtype == "float32")
    found = cx.diag_embed(tensor, offset)
    assert found.dtype == dtype and found.shape == wanted.shape and found.numpy().tobytes() == wanted.tobytes()
    if tensor.requires_grad:
        slopes = np.random.default_rng(1).normal(size=wanted.shape).astype(np.float32)
        found.backward(cx.tensor(slopes))
        assert (tensor.grad.numpy() == slopes[..., rows, rows + offset]).all()


@pytest.mark.parametrize("equation, axes", [("ab,ab->", 2), ("ab,ab->a", 1), ("ba,ba->b", 1)])
def test_einsum_adds_products_side_by_side(equation: str, axes: int) -> None:
    x, y = (cx.tensor(np.random.default_rng(seed).normal(size=(60, 70)).astype(np.float32)) for seed in (0, 1))
    wanted = (x * y).reshape(*((60,) if axes == 1 else ()), -1).sum(-1)
    assert cx.einsum(equation, x, y).numpy().tobytes() == wanted.numpy().tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int32", "uint8", "bool"])
@pytest.mark.parametrize("dim", [0, 1])
def test_of_several_that_are_scattered_to_one_place_the_last_stays(dim: int, dtype: str) -> None:
    rng = np.random.default_rng(0)
    x, source = (rng.integers(0, 2 if dtype == "bool" else 90, (12, 9)).astype(dtype) for _ in range(2))
    places = rng.integers(-5, 5, (11, 9))
    wanted, filled = x.copy(), x.copy()
    for row, column in np.ndindex(*places.shape):
        at = (places[row, column], column) if dim == 0 else (row, places[row, column])
        wanted[at], filled[at] = source[row, column], 1
    found = cx.scatter(cx.tensor(x), dim, cx.tensor(places), cx.tensor(source))
    assert found.dtype == dtype and found.numpy().tobytes() == wanted.tobytes()
    assert cx.tensor(x).scatter(dim, cx.tensor(places), 1).numpy().tobytes() == filled.tobytes()
    if dtype == "float32":  # one whose gradient is asked for
        followed = cx.scatter(cx.tensor(x, requires_grad=True), dim, cx.tensor(places), cx.tensor(source))
        assert followed.detach().numpy().tobytes() == wanted.tobytes()


def test_questions() -> None:
    x = cx.tensor(CUBE)
    assert x.size(1) == 3 and x.size() == (2, 3, 4) and x.size(-1) == 4 and x.size == 24 == x.numel() == cx.numel(x)
    assert x.dim() == x.ndim == 3 and x.stride() == (12, 4, 1) and x.stride(0) == 12 and x.element_size() == 4
    assert x.is_floating_point() and not x.is_cuda and x.is_contiguous() and not x.permute(2, 0, 1).is_contiguous()
    assert x.equal(x.clone()) and not x.equal(x + 1) and cx.is_tensor(x) and not cx.is_tensor(X)
    with pytest.raises(IndexError, match=r"size: expected an axis -3\.\.2"):
        x.size(3)


def test_the_dtypes_of_pytorch() -> None:
    assert (cx.float, cx.double, cx.half, cx.long, cx.int) == ("float32", "float64", "float16", "int64", "int32")
    assert cx.zeros(2, dtype=cx.long).dtype == "int64"


def test_draws() -> None:
    cx.manual_seed(0)
    assert cx.randint(3, (50,)).max().item() <= 2 and cx.randint(5, 7, (50,)).min().item() == 5
    assert sorted(cx.randperm(5).tolist()) == list(range(5))
    x = cx.zeros(20, 30, dtype="float64")
    assert cx.randn_like(x).dtype == "float64" and cx.rand_like(x).shape == (20, 30)
    assert abs(x.normal_(3.0, 0.5).mean().item() - 3.0) < 0.2 and 0 <= x.uniform_(0.0, 0.1).min().item() < 0.01
    assert 0.4 < cx.bernoulli(cx.full((2000,), 0.5)).mean().item() < 0.6
    weights = cx.tensor([0.0, 1.0, 3.0])
    counts = cx.bincount(cx.multinomial(weights, 4000, replacement=True), minlength=3).tolist()
    assert counts[0] == 0 and 0.7 < counts[2] / 4000 < 0.8
    firsts = [cx.multinomial(weights, 2).tolist() for _ in range(400)]
    assert all(sorted(pair) == [1, 2] for pair in firsts) and 250 < sum(pair[0] == 2 for pair in firsts) < 350
    assert cx.multinomial(cx.ones(2, 5), 3).shape == (2, 3)


@pytest.mark.parametrize("dtype", "int32 float64 uint8 int16 float16 bfloat16 complex64 int64 complex128".split())
def test_a_view_of_a_dtype_reads_the_same_bytes(dtype: str) -> None:
    x, other = cx.arange(12, dtype="float32").reshape(3, 4), torch.arange(12, dtype=torch.float32).reshape(3, 4)
    for seen, theirs in ((x, other), (x[1:, :4:1], other[1:, :4:1]), (x[::2], other[::2])):
        mine, wanted = seen.view(dtype), theirs.view(getattr(torch, dtype))
        assert mine.dtype == dtype and mine.shape == tuple(wanted.shape) and mine.shares_memory(x)
        assert (
            mine.view("float32").equal(seen) and mine.view(dtype="uint8").tolist() == wanted.view(torch.uint8).tolist()
        )
    if dtype != "bfloat16":
        assert x.view(np.dtype(dtype)).equal(x.view(dtype))


def test_what_is_written_to_a_view_of_a_dtype_is_in_the_tensor() -> None:
    x = cx.tensor([1.0, -2.0], requires_grad=True)
    bits = x.view("int32")
    assert not bits.requires_grad and x.view("float32").dtype == "float32"
    y = (x * x).sum()
    bits &= 0x7FFFFFFF
    assert x.tolist() == [1.0, 2.0]
    with pytest.raises(GradientError, match="it was changed in place since"):
        y.backward()
    mask = cx.tensor([True, False])
    assert mask.view("uint8").tolist() == [1, 0] and mask.view("bool").tolist() == [True, False]
    assert cx.zeros((0, 3)).view("uint8").shape == (0, 12) and cx.tensor(1.0).view("int32").item() == 0x3F800000


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: x.view("int33"), DtypeError, "dtype: expected one of .* got 'int33'"),
        (lambda x: x.view("bool"), DtypeError, "view: bytes may be other than 0 and 1"),
        (lambda x: x[:, :1].view("float64"), ShapeError, r"view: \(3, 1\) float32 is no whole number of float64"),
        (lambda x: cx.tensor(1.0).view("uint8"), ShapeError, r"view: \(\) float32 is no whole number of uint8"),
        (lambda x: x.T.view("uint8"), ShapeError, "a last axis without gaps; use contiguous"),
        (lambda x: x.view("uint8")[0, 1:5].view("float32"), ShapeError, "not begin at a whole float32; use copy"),
        (lambda x: x.view(2, dtype="int32"), DtypeError, "a dtype alone, of a tensor; got sizes beside int32"),
        (lambda x: cx.compile(lambda y: y.view("int32"))(x), DtypeError, "no memory to read as int32 in a graph"),
        (lambda x: x.expand(2), ShapeError, "expand: expected sizes for the 2 axes"),
        (lambda x: x.repeat(2), ShapeError, "repeat: expected a count for each of the 2 axes"),
        (lambda x: x.gather(0, cx.zeros(2, 9, dtype="int64")), ShapeError, "gather: expected an index no longer"),
        (lambda x: x.gather(0, cx.tensor([[7]])), IndexError, "expected -3..2"),
        (lambda x: x.scatter(0, cx.tensor([[9]]), 1.0), IndexError, "expected -3..2"),
        (lambda x: x.narrow(0, 2, 2), IndexError, "2 places from 2 are not in axis 0"),
        (lambda x: x.chunk(0), CyxError, "at least 1 piece"),
        (lambda x: x.squeeze(0), ShapeError, "axis 0 of shape"),
        (lambda x: x.sum(dims=1), TypeError, "unexpected keyword argument 'dims'"),
        (lambda x: cx.multinomial(cx.tensor([-1.0]), 1), CyxError, "expected weights"),
        (lambda x: cx.multinomial(cx.tensor([0.0, 1.0]), 2), CyxError, "at least 2 weights above 0"),
        (lambda x: cx.tensor([1]).requires_grad_(), GradientError, "only float and complex"),
        (lambda x: x.div(2.0, rounding_mode="up"), CyxError, "expected rounding_mode"),
        (lambda x: x.add_(cx.ones(5, 3, 4)), ShapeError, "add_: the result is"),
    ],
)
def test_bad_use_is_refused(call: Callable[[Any], Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        call(cx.tensor(X))


@pytest.mark.parametrize("name", ["permute", "gather", "scatter a number", "scatter_add", "max", "min", "var", "tril"])
def test_names_in_a_graph(name: str) -> None:
    def compute(x: Any, y: Any, cube: Any) -> Any:
        return outputs(CALLS[name](cx, x, y, cube))[0]

    ours = [cx.tensor(each) for each in (X, Y, CUBE)]
    np.testing.assert_array_equal(cx.compile(compute)(*ours).numpy(), compute(*ours).numpy())


def test_a_graph_writes_in_place_to_what_it_computes_alone() -> None:
    x = cx.tensor(X)
    assert cx.compile(lambda x: (x * 2.0).add_(1.0))(x).tolist() == (x * 2.0 + 1.0).tolist()
    with pytest.raises(GraphError, match="add_ writes to an argument"):
        cx.compile(lambda x: x.add_(1.0))(x)
    with pytest.raises(GraphError, match=r"add_: a graph has no memory to write to; write x = x.add\(...\)"):
        cx.trace(lambda x: x.add_(1.0), (3,))


def test_every_name_is_there_and_explained() -> None:
    for name, method in torchnames.METHODS.items():
        assert callable(getattr(cx.tensor(X), name)) or name in ("T",), name
        assert method.__doc__, name


def test_gradients_of_tensors_as_pytorch_asks_for_them() -> None:
    def penalty(m: Any) -> list[Any]:
        x = m.tensor(X, requires_grad=True)
        w = m.tensor(Y, requires_grad=True)
        scores = (x * w).sum(1).tanh()
        (slope,) = m.autograd.grad(outputs=scores, inputs=x, grad_outputs=m.ones_like(scores), create_graph=True)
        ((slope.norm(2, dim=1) - 1) ** 2).mean().backward()
        assert x.grad is not None
        return [slope.detach().numpy(), w.grad.numpy()]

    for one, other in zip(penalty(cx), penalty(torch), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    x, y = cx.tensor(X, requires_grad=True), cx.tensor(Y, requires_grad=True)
    assert cx.grad(x.sum(), [x, y], allow_unused=True)[1] is None and x.grad is None
    with pytest.raises(GradientError, match="do not depend on input 1"):
        cx.grad(x.sum(), [x, y])


def test_grad_takes_the_words_that_there_are_and_pytorchs_third_argument() -> None:
    x = cx.tensor(3.0, requires_grad=True)
    assert cx.grad(x * x, x, cx.tensor(5.0))[0].item() == 30.0
    with pytest.raises(TypeError, match="unexpected keyword argument 'argnum'"):
        cx.grad(lambda x: x * x, argnum=1)


def test_a_size_is_copied_and_stored_as_a_number() -> None:
    size = cx.zeros(2, 3).size
    assert copy.deepcopy({"size": size}) == {"size": 6} == pickle.loads(pickle.dumps({"size": size}))


def test_functions_that_are_called_with_dim_take_tensors_only() -> None:
    x = cx.tensor(X)
    assert cx.diff(x, dim=0).equal(x.diff(dim=0)) and cx.quantile(x, 0.5, dim=0).equal(x.quantile(0.5, dim=0))
    with pytest.raises(CyxError, match="argmax: expected a tensor, got ndarray"):
        cx.argmax(X, 0)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_graph_takes_what_is_not_finite(value: float) -> None:
    def compute(x: Any) -> Any:
        masked = x.masked_fill(cx.tensor(MASK), value)
        return masked, x + cx.tensor([1.0, value, 2.0, -value]), cx.functional.pad(x, (1, 2), value=value)

    for one, other in zip(cx.compile(compute)(cx.tensor(X)), compute(cx.tensor(X)), strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_numbers_too_large_for_a_dtype_are_infinite() -> None:
    x = cx.ones(2)
    for large in (x * 1e300, x + 1e300, cx.full((2,), 1e300), cx.asarray([1e300, 1e300]), x.half() * 1e6):
        assert large.tolist() == [float("inf")] * 2  # and no warning, which the tests would take for an error
    assert cx.compile(lambda x: x * 1e300)(x).tolist() == [float("inf")] * 2


def test_einsum_of_bools() -> None:
    a, b = np.array([[True, False], [False, False]]), np.array([True, False])
    assert cx.einsum("ij,j->i", cx.tensor(a), cx.tensor(b)).tolist() == np.einsum("ij,j->i", a, b).tolist()
    assert cx.einsum("ij->j", cx.tensor(a)).dtype == "bool"


def test_options_and_functions_that_pytorch_programs_use() -> None:
    assert cx.linspace(0, 1, steps=5).tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert cx.triu(cx.ones(3, 3), diagonal=1).tolist() == cx.tril(cx.ones(3, 3), -1).T.tolist()
    assert cx.flip(cx.tensor(X), dims=(0, 1)).equal(cx.tensor(X[::-1, ::-1].copy()))
    layers = cx.nn.Sequential(cx.nn.Linear(2, 3)).append(cx.nn.ReLU()).extend([cx.nn.Linear(3, 1)])
    assert len(layers[:2]) == 2 and len(cx.nn.ModuleList(layers)[1:]) == 2
    assert cx.nn.Flatten(start_dim=0)(cx.tensor(X)).shape == (12,)
    assert not cx.nn.Parameter(cx.zeros(2), requires_grad=False).requires_grad
    conv, table = cx.nn.Conv2d(4, 6, 3, groups=2), cx.nn.Embedding(7, 2)
    assert (conv.in_channels, conv.out_channels, table.num_embeddings, table.embedding_dim) == (4, 6, 7, 2)
    assert cx.is_grad_enabled() and cx.get_default_dtype() == cx.float32
    assert cx.cuda.is_available() == ("cuda" in cx.__array_namespace_info__().devices())
    assert cx.poisson(cx.full((500,), 4.0)).mean().item() == pytest.approx(4.0, abs=0.4)
    for ord in (None, 1, "fro", "nuc"):
        theirs = torch.linalg.norm(torch.tensor(X), ord)
        assert cx.linalg.norm(cx.tensor(X), ord).item() == pytest.approx(theirs.item(), rel=1e-5)
    parameters = list(cx.nn.Linear(2, 2).parameters())
    cx.optim.SGD(parameters, 0.1, momentum=0.9, dampening=0)
    cx.optim.AdamW(parameters, fused=True, amsgrad=False)
    with pytest.raises(TypeError, match="'nonsense'"):
        cx.optim.AdamW(parameters, nonsense=True)


def test_large_integers_are_divided_as_integers() -> None:
    numbers = np.array([2**53 + 1, 2**60 + 3, -(2**60) - 3, 7, -7, 0])
    ours, theirs = cx.tensor(numbers), torch.tensor(numbers)
    for by in (3, -10, ours.abs() + 1):
        other = torch.tensor(by.numpy()) if isinstance(by, cx.Tensor) else by
        for mode in ("floor", "trunc"):
            got, wanted = ours.div(by, rounding_mode=mode), theirs.div(other, rounding_mode=mode)
            assert (got.tolist(), got.dtype) == (wanted.tolist(), "int64")
        assert ours.fmod(by).tolist() == theirs.fmod(other).tolist()


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.diagonal(),
        lambda x: x.diagonal(1),
        lambda x: x.diagonal(offset=-1, dim1=-1, dim2=0),
        lambda x: x.diff(dim=0),
        lambda x: x.diff(2),
        lambda x: x.tile(2),
        lambda x: x.tile(2, 1, 3),
        lambda x: x.tile((2, 2)),
        lambda x: x.quantile(0.3, dim=-1),
        lambda x: x.quantile(0.5, 0, True),
    ],
)
def test_methods_whose_axes_are_pytorchs(call: Any) -> None:
    x = np.arange(60, dtype=np.float32).reshape(3, 4, 5) ** 1.5
    np.testing.assert_allclose(call(cx.tensor(x)).numpy(), call(torch.tensor(x)).numpy(), rtol=1e-6)


def test_what_makes_no_sense_is_refused() -> None:
    x = cx.tensor([[[0.0, 1.0]]])
    for places in ([[[-1, 0]]], [[[0.0, 1.0]]]):
        with pytest.raises(SpecError, match="places from 0 on"):
            cx.nn.MaxUnpool1d(2)(x, cx.tensor(places))
    with pytest.raises(IndexError):
        cx.nn.MaxUnpool1d(2)(x, cx.tensor([[[0, 4]]]))
    with pytest.raises(DtypeError, match="normal_: expected a float"):
        cx.tensor([1, 2]).normal_()
    with pytest.raises(SpecError, match="at least 0, got -1"):
        cx.multinomial(cx.ones(3), -1)
    lazy = cx.nn.LazyConv2d(4, 3)
    with pytest.raises(ShapeError, match="an axis 1"):
        lazy(cx.ones(3))
    assert lazy(cx.ones(1, 3, 5, 5)).shape == (1, 4, 3, 3)  # the first call that is right decides


def test_gumbel_softmax() -> None:
    cx.manual_seed(0)
    logits = cx.tensor([0.0, 1.0, 2.0], requires_grad=True)
    soft = cx.functional.gumbel_softmax(logits.broadcast_to(4000, 3), tau=0.5)
    hard = cx.functional.gumbel_softmax(logits.broadcast_to(4000, 3), hard=True)
    np.testing.assert_allclose(soft.detach().sum(1).numpy(), 1.0, rtol=1e-5)
    np.testing.assert_allclose(hard.detach().mean(0).numpy(), [0.09, 0.245, 0.665], atol=0.03)
    hard.sum(0)[2].backward()
    assert logits.grad is not None and logits.grad[2].item() > 0
    for kind in (False, True):
        drawn = cx.compile(lambda x, kind=kind: cx.functional.gumbel_softmax(x, hard=kind))(cx.zeros(5, 3))
        assert drawn.sum().item() == pytest.approx(5.0)


@pytest.mark.parametrize("drawn", [0.0, 1.0 - 2.0**-24])
def test_gumbel_softmax_of_the_least_and_largest_numbers_that_are_drawn(
    drawn: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cx.Tensor, "_uniform", lambda self, shape: cx.full(shape, drawn))
    assert cx.functional.gumbel_softmax(cx.zeros(2, 4)).tolist() == [[0.25] * 4] * 2
    hard = cx.functional.gumbel_softmax(cx.zeros(2, 4, dtype="float16"), hard=True, dim=0)
    assert hard.tolist() == [[1.0] * 4, [0.0] * 4]  # one of equals


def test_a_device_is_written_as_in_pytorch() -> None:
    device = cx.device("cuda" if cx.cuda.is_available() else "cpu")
    assert cx.ones(2, device=device).to(device).device == device == device.type and isinstance(device, str)
    assert cx.device(device) == device and device.index is None
    with pytest.raises(SpecError, match="expected one of"):
        cx.device("tpu")
    x = cx.ones(2)
    assert x.to(device, non_blocking=True) is x and x.to(device, copy=True) is not x
    assert cx.nn.Linear(1, 1).to(device, non_blocking=True).weight.device == device


def test_what_a_generator_draws() -> None:
    def drawn(g: Any) -> list[Any]:
        weights = cx.tensor([1.0, 2.0, 3.0])
        return [
            cx.rand(2, generator=g).tolist(),
            cx.randn(2, dtype=cx.float64, generator=g).tolist(),
            cx.randint(0, 9, (3,), generator=g).tolist(),
            cx.randperm(5, generator=g).tolist(),
            cx.normal(0.0, 1.0, 2, generator=g).tolist(),
            cx.bernoulli(weights * 0.1, generator=g).tolist(),
            cx.multinomial(weights, 2, generator=g).tolist(),
            cx.rand_like(weights, generator=g).tolist(),
            [part.indices.tolist() for part in cx.data.random_split(range(10), [7, 3], generator=g)],
        ]

    g = cx.Generator().manual_seed(3)
    state, first = g.get_state(), drawn(g)
    before = cx.get_rng_state().tolist()
    assert drawn(g) != first and drawn(g.manual_seed(3)) == first and g.initial_seed() == 3
    assert cx.get_rng_state().tolist() == before  # of the one that manual_seed sets nothing was taken
    g.set_state(state)
    assert drawn(g) == first
    assert cx.randn(2, dtype=cx.float64).dtype == "float64"
    with pytest.raises(SpecError, match="expected a cx.Generator, got int"):
        cx.randperm(3, generator=7)
    with pytest.raises(SpecError, match="rand: expected a cx.Generator, got int"):
        cx.rand(2, generator=7)
    with pytest.raises(DtypeError, match="expected a float dtype, got int64"):
        cx.rand(2, dtype=cx.long)


def test_the_state_of_the_random_numbers() -> None:
    cx.manual_seed(5)
    assert cx.initial_seed() == 5
    state = cx.get_rng_state()
    first = cx.rand(3).tolist()
    cx.set_rng_state(state)
    assert cx.rand(3).tolist() == first
    with pytest.raises(ShapeError, match="expected what get_state gives"):
        cx.set_rng_state(cx.zeros(3))
    with pytest.raises(ShapeError, match="got str"):
        cx.set_rng_state("x")


def test_threads() -> None:
    before = cx.get_num_threads()
    cx.set_num_threads(1)
    assert cx.get_num_threads() == 1
    cx.set_num_threads(before)
    with pytest.raises(SpecError, match="at least 1"):
        cx.set_num_threads(0)


def test_options_that_only_pytorch_has() -> None:
    nn, p = cx.nn, [cx.zeros(1, requires_grad=True)]
    nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 1, enable_nested_tensor=False)
    cx.optim.SGD(p, lr=0.1, foreach=True, maximize=False)
    cx.lr_scheduler.StepLR(cx.optim.SGD(p), 2, last_epoch=-1)
    cx.distributions.Normal(0.0, 1.0, validate_args=False)
    cx.data.DataLoader(cx.data.TensorDataset(cx.ones(3)), pin_memory=True, persistent_workers=True)
    assert nn.LayerNorm(3, bias=False).bias is None
    for make, said in ((lambda: cx.optim.AdamW(p, differentiable=True), "AdamW: differentiable is always False here"),):
        with pytest.raises(SpecError, match=said):
            make()
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        nn.MaxPool2d(2, nonsense=1)


@pytest.mark.parametrize("norm_type", [1.0, 3.0, float("inf")])
def test_clipping_by_other_norms(norm_type: float) -> None:
    results = []
    for m in (cx, torch):
        held = [m.tensor(each, requires_grad=True) for each in (X, Y)]
        sum((p**2).sum() for p in held).backward()
        norm = m.nn.utils.clip_grad_norm_(held, 1.0, norm_type=norm_type, error_if_nonfinite=True)
        results.append([np.asarray(norm.numpy()), *(p.grad.numpy() for p in held)])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    p = cx.ones(1, requires_grad=True)
    (p * float("inf")).sum().backward()
    with pytest.raises(GradientError, match="the norm of the gradients is inf"):
        cx.nn.utils.clip_grad_norm_([p], 1.0, error_if_nonfinite=True)


def test_functions_take_their_arguments_by_pytorchs_names() -> None:
    from cyxcore.nn import functional as F

    x, y = cx.tensor(X), cx.tensor([0, 1, 2])
    assert F.cross_entropy(input=x, target=y).item() == F.cross_entropy(x, y).item()
    assert F.mse_loss(x, target=x * 2.0).item() == F.mse_loss(x, x * 2.0).item()
    assert F.softmax(input=x, dim=0).tolist() == F.softmax(x, 0).tolist()
    assert F.pad(input=x, pad=(1, 1)).shape == (3, 6) and F.relu(input=x).min().item() == 0.0
    assert F.relu.__doc__ == cx.functional.relu.__doc__


def test_arguments_come_in_the_order_of_pytorch() -> None:
    weight = np.ones((2, 3), np.float32)
    moved = []
    for m in (cx, torch):
        p = m.tensor(weight, requires_grad=True)
        optimizer = m.optim.SGD([p], 0.1, 0.9, 0, 0.5, False)  # lr, momentum, dampening, weight_decay, nesterov
        for _ in range(2):
            (p * p).sum().backward()
            optimizer.step()
        moved.append(p.detach().numpy())
        norm = m.nn.InstanceNorm2d(3, 1e-5, 0.1)
        assert not list(norm.parameters()) and list(m.nn.InstanceNorm2d(3, 1e-5, 0.1, True).parameters())
    np.testing.assert_allclose(*moved, rtol=1e-6)


@pytest.mark.parametrize("name", ["xlogy", "xlog1py"])
def test_nothing_times_a_logarithm_has_its_gradient(name: str) -> None:
    """Beta and Dirichlet of concentration 1 begin with it."""
    found = []
    for m in (cx, torch):
        x = m.tensor([0.0, 0.0, 0.0, 2.0], requires_grad=True)
        result = getattr(m.special, name)(x, m.tensor([0.5, 3.0, -1.0, 0.5]))
        result.sum().backward()
        found.append([result.detach().numpy(), x.grad.numpy()])
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_whole_numbers_reach_as_far_as_their_dtype_holds_them() -> None:
    assert int(cx.zeros(4000, dtype="uint8").random_().max().item()) > 127
    drawn = cx.zeros(100, dtype="int64").random_()
    assert (drawn % 2).sum().item() > 0 and int(drawn.max().item()) > 2**62
    assert cx.zeros(50, dtype="int64").random_(-3, 2).unique().tolist() == [-3, -2, -1, 0, 1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_uniform_numbers_of_half_dtypes_stay_below_1(dtype: str) -> None:
    like = cx.zeros(20000, dtype=dtype)
    for drawn in (
        cx.rand(20000, dtype=dtype),
        cx.rand_like(like),
        like.uniform_(),
        cx.random.uniform(size=20000, dtype=dtype),
    ):
        assert drawn.dtype == dtype and 0.9 < drawn.astype("float32").max().item() < 1.0
    with pytest.raises(SpecError, match="exponential_: expected a rate above 0"):
        like.exponential_(-1.0)

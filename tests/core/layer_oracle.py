"""PyTorch as the oracle of a call: the same results and gradients, in float64 and float32, compiled as eagerly."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cyxcore as cx

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="the oracle, PyTorch, is not installed")

TOLERANCE = {"float64": 1e-10, "float32": 1e-5}


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def _parts(result: Any) -> list[Any]:
    return [each for each in (result if isinstance(result, (tuple, list)) else (result,)) if each is not None]


def _run(m: Any, call: Callable[..., Any], arrays: tuple[np.ndarray, ...], dtype: str) -> list[np.ndarray]:
    """What comes out, then the gradients of a weighted sum of it."""
    given = []
    for array in arrays:
        real = array.dtype.kind == "f"
        value = m.tensor(array.astype(dtype) if real else array)
        given.append(value.requires_grad_() if real else value)
    results = _parts(call(m, *given))
    total = 0.0
    for number, each in enumerate(results):
        if np.dtype(str(each.dtype).split(".")[-1]).kind == "f" and each.requires_grad:
            total = total + (each * m.tensor(floats(*each.shape, seed=100 + number).astype(dtype))).sum()
    if not isinstance(total, float):
        total.backward()
    grads = [
        np.zeros(value.shape) if value.grad is None else value.grad.numpy() for value in given if value.requires_grad
    ]
    return [each.detach().numpy() for each in results] + grads


def agree(
    call: Callable[..., Any],
    *arrays: np.ndarray,
    dtypes: tuple[str, ...] = ("float64", "float32"),
    compiled: bool = True,
    scale: float = 1.0,
) -> None:
    """call(m, *tensors) is the same with m = cx and m = torch; float arrays get gradients. Compiled: the same bits."""
    for dtype in dtypes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = _run(torch, call, arrays, dtype)
        ours = _run(cx, call, arrays, dtype)
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert one.shape == other.shape, (one.shape, other.shape)
            size = (
                max(1.0, float(np.abs(other[np.isfinite(other)]).max(initial=0.0))) if other.dtype.kind == "f" else 1.0
            )
            tolerance = scale * TOLERANCE[dtype] * size
            np.testing.assert_allclose(one, other, rtol=tolerance if other.dtype.kind == "f" else 0, atol=tolerance)
        if compiled:
            same_bits(call, *arrays, dtype=dtype)


def same_bits(call: Callable[..., Any], *arrays: np.ndarray, dtype: str = "float32") -> None:
    """A compiled step, with its gradients, gives the bits of the eager one."""

    places = tuple(place for place, each in enumerate(arrays) if each.dtype.kind == "f")

    def loss(*given: Any) -> Any:
        results = _parts(call(cx, *given))
        return sum((each * each).sum().astype(dtype) for each in results if "float" in each.dtype), results

    def step(*given: Any) -> Any:
        if not places:
            return tuple(_parts(call(cx, *given)))
        (_, results), grads = cx.value_and_grad(loss, argnums=places, has_aux=True)(*given)
        return (*results, *(grads if isinstance(grads, (tuple, list)) else (grads,)))

    values = [cx.tensor(each.astype(dtype) if each.dtype.kind == "f" else each) for each in arrays]
    eager, plan = step(*values), cx.compile(step)(*values)
    assert len(eager) == len(plan)
    for one, other in zip(eager, plan, strict=True):
        assert one.numpy().tobytes() == other.numpy().tobytes()


def agree_module(
    make: Callable[[Any], Any],
    *arrays: np.ndarray,
    dtypes: tuple[str, ...] = ("float64", "float32"),
    compiled: bool = True,
    scale: float = 1.0,
    **options: Any,
) -> None:
    """make(cx.nn) with the weights of make(torch.nn) is the same module: results, gradients of inputs and parameters.

    Arrays among the options are tensors without a gradient.
    """
    for dtype in dtypes:
        theirs, ours = make(torch.nn).to(getattr(torch, dtype)), make(cx.nn).to(dtype=dtype)
        state = theirs.state_dict()
        assert sorted(ours.state_dict()) == sorted(state)
        ours.load_state_dict({name: value.numpy() for name, value in state.items()})

        def call(m: Any, *given: Any, module: Any = (ours, theirs), dtype: str = dtype) -> Any:
            return module[m is torch](*given, **lifted(m, options, dtype))

        agree(call, *arrays, dtypes=(dtype,), compiled=False, scale=scale)
        grads = {name: value.grad for name, value in theirs.named_parameters()}
        for name, value in ours.named_parameters():
            other = np.zeros(value.shape) if grads[name] is None else grads[name].numpy()
            one = np.zeros(value.shape) if value.grad is None else value.grad.numpy()
            size = max(1.0, float(np.abs(other).max(initial=0.0)))
            np.testing.assert_allclose(one, other, rtol=0, atol=10 * scale * TOLERANCE[dtype] * size, err_msg=name)
        if compiled:
            values = [cx.tensor(_cast(each, dtype)) for each in arrays]
            whole = _Whole(ours.eval(), lifted(cx, options, dtype))
            for one, other in zip(whole(*values), cx.compile(whole)(*values), strict=True):
                assert one.numpy().tobytes() == other.numpy().tobytes()


def lifted(m: Any, options: dict[str, Any], dtype: str) -> dict[str, Any]:
    return {key: m.tensor(_cast(v, dtype)) if isinstance(v, np.ndarray) else v for key, v in options.items()}


class _Whole(cx.nn.Module):
    """A module called with options; its result as a tuple."""

    def __init__(self, part: Any, options: dict[str, Any]) -> None:
        super().__init__()
        self.part, self.options = part, options

    def forward(self, *given: Any) -> Any:
        return tuple(_parts(self.part(*given, **self.options)))


def _cast(array: np.ndarray, dtype: str) -> np.ndarray:
    return array.astype(dtype) if array.dtype.kind == "f" else array

"""PyTorch's words for the arguments of functions, out= that is refused, and functions that are still found by name."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore.errors import SpecError
from tests.core.layer_oracle import torch

X = np.random.default_rng(0).normal(size=(3, 3))
CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "abs": lambda m, x: m.abs(input=x),
    "add": lambda m, x: m.add(input=x, other=x),
    "addmm": lambda m, x: m.addmm(input=x, mat1=x, mat2=x),
    "addcmul": lambda m, x: x.addcmul(tensor1=x, tensor2=x, value=2.0),
    "arange": lambda m, x: m.arange(end=4) + m.arange(start=1, end=5),
    "broadcast_to": lambda m, x: m.broadcast_to(x, size=(2, 3, 3)),
    "bmm": lambda m, x: m.bmm(input=x[None], mat2=x[None]),
    "clamp": lambda m, x: m.clamp(input=x, min=0.0),
    "eye": lambda m, x: m.eye(n=2, m=3),
    "flip": lambda m, x: m.flip(input=x, dims=(0,)),
    "full": lambda m, x: m.full(size=(2,), fill_value=3.0),
    "isclose": lambda m, x: m.isclose(x, other=x + 1e-4, rtol=0.0, atol=1e-3),
    "isclose by place": lambda m, x: m.isclose(x, x + 1e-4, 0.0, 1e-3),
    "isin": lambda m, x: m.isin(elements=x, test_elements=x[0]),
    "linspace": lambda m, x: m.linspace(start=0, end=1, steps=5),
    "matmul": lambda m, x: m.matmul(input=x, other=x),
    "movedim": lambda m, x: m.movedim(input=x, source=0, destination=1),
    "permute": lambda m, x: m.permute(input=x, dims=(1, 0)),
    "searchsorted": lambda m, x: m.searchsorted(sorted_sequence=m.arange(3.0), input=m.arange(4.0), side="right"),
    "solve": lambda m, x: m.linalg.solve(A=x, B=x),
    "split": lambda m, x: m.split(tensor=x, split_size_or_sections=2, dim=1)[0],
    "stack": lambda m, x: m.stack(tensors=[x, x], dim=1),
    "sum": lambda m, x: m.sum(input=x, dim=1, keepdim=True),
    "tensordot": lambda m, x: m.tensordot(a=x, b=x, dims=1),
    "topk": lambda m, x: m.topk(input=x, k=2, dim=1).values,
    "transpose": lambda m, x: m.transpose(input=x, dim0=0, dim1=1),
    "tril": lambda m, x: m.tril(input=x, diagonal=-1),
    "where": lambda m, x: m.where(condition=x > 0, input=x, other=x * 2),
    "zeros": lambda m, x: m.zeros(size=(2, 3)),
}


@pytest.mark.parametrize("name", CALLS)
def test_arguments_have_torchs_words(name: str) -> None:
    ours, theirs = CALLS[name](cx, cx.tensor(X)), CALLS[name](torch, torch.tensor(X))
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-6, atol=1e-9)


# Of one name only: modules, what takes a model, generators' seeds; and empty_like, which has any values.
OTHERS = {"cuda", "data", "empty_like", "initial_seed", "random", "seed", "trace"}


def unary() -> list[str]:
    """Functions of both whose one argument that must be given is a tensor, by PyTorch's own schemas."""
    found = []
    for name in sorted(set(cx.__all__) - OTHERS):
        for schema in torch._C._jit_get_schemas_for_operator(f"aten::{name}"):
            required = [each for each in schema.arguments if not each.has_default_value()]
            if schema.overload_name == "" and [each.name for each in required] == ["self"]:
                found.append(name)
    return found


@pytest.mark.parametrize("name", unary())
def test_the_first_argument_is_input(name: str) -> None:
    function, x = getattr(cx, name), cx.tensor(X @ X.T)  # positive definite, for cholesky
    kinds = [x, x > 0, x.astype("int64"), x[0], x.astype("complex128")]

    def tried(call: Callable[[Any], Any]) -> list[str]:
        cx.manual_seed(0)
        found = []
        for each in kinds:
            try:
                found.append(str(call(each)))
            except cx.errors.CyxError as error:
                found.append(str(error))
        return found

    assert tried(lambda each: function(input=each)) == tried(function)


def test_out_is_refused() -> None:
    with pytest.raises(SpecError, match="abs: there is no out=, a result is a new tensor"):
        cx.abs(cx.tensor(X), out=cx.tensor(X))
    assert cx.abs(cx.tensor(X), out=None).shape == (3, 3)


def test_an_unknown_word_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        cx.abs(cx.tensor(X), colour=1)


@pytest.mark.parametrize("function", [cx.abs, cx.sum, cx.where, cx.linalg.solve])
def test_functions_are_pickled_by_their_names(function: Any) -> None:
    assert pickle.loads(pickle.dumps(function)) is function

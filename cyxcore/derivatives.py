"""torch.autograd.functional by its names and signatures: cx.autograd.functional. Newer code uses cx.func."""

from collections.abc import Callable
from typing import Any

from cyxcore import func as functions
from cyxcore.eager import Tensor, alias
from cyxcore.errors import GradientError

__all__ = ["hessian", "hvp", "jacobian", "jvp", "vhp", "vjp"]


def _given(inputs: Any, create_graph: bool) -> tuple[Any, ...]:
    """The inputs as a tuple; followed where the results are to remember how they were computed."""
    several = inputs if isinstance(inputs, tuple) else (inputs,)
    if create_graph:
        return tuple(x if x.requires_grad else alias(x) for x in several)
    return tuple(x.detach() for x in several)


def _places(inputs: Any) -> Any:
    return tuple(range(len(inputs))) if isinstance(inputs, tuple) else 0


def _plain(tree: Any, create_graph: bool) -> Any:
    return tree if create_graph else functions._each(lambda x: x.detach() if isinstance(x, Tensor) else x, tree)


def _as_given(found: tuple[Any, ...], inputs: Any) -> Any:
    return found if isinstance(inputs, tuple) else found[0]


def _weights(name: str, v: Any, like: Any) -> tuple[Any, ...]:
    """A direction for each tensor; 1 where it may be left out, for a scalar."""
    several = like if isinstance(like, tuple) else (like,)
    if v is None:
        if len(several) != 1 or several[0].size != 1:
            raise GradientError(f"{name}: v may be left out only for a single number, got {[x.shape for x in several]}")
        return (several[0].detach() * 0.0 + 1.0,)
    return v if isinstance(v, tuple) else (v,)


def jacobian(
    func: Callable[..., Any],
    inputs: Any,
    create_graph: bool = False,
    strict: bool = False,
    vectorize: bool = False,
    strategy: str = "reverse-mode",
) -> Any:
    """d func(*inputs) / d inputs, (*value.shape, *input.shape); a tuple for several inputs, one of these for outputs.

    inputs: a tensor or a tuple. strict, vectorize, strategy: accepted and without effect; what nothing depends on is 0.
    """
    given = _given(inputs, create_graph)
    return _plain(functions.jacrev(func, _places(inputs))(*given), create_graph)


def hessian(
    func: Callable[..., Any],
    inputs: Any,
    create_graph: bool = False,
    strict: bool = False,
    vectorize: bool = False,
    outer_jacobian_strategy: str = "reverse-mode",
) -> Any:
    """The second derivatives of a scalar function, (*input.shape, *input.shape); a tuple of tuples for several."""
    given = _given(inputs, create_graph)
    return _plain(functions.hessian(lambda *x: func(*x).reshape(()), _places(inputs))(*given), create_graph)


def vjp(func: Callable[..., Any], inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False) -> Any:
    """(func(*inputs), vᵀ J). v: of the value's shape; may be left out for a single number."""
    given = _given(inputs, create_graph)
    value, pull = functions.vjp(func, *given)
    weights = _weights("vjp", v, value)
    found = pull(weights if isinstance(value, tuple) else weights[0])
    return _plain((value, _as_given(found, inputs)), create_graph)


def jvp(func: Callable[..., Any], inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False) -> Any:
    """(func(*inputs), J v). v: of the inputs' shapes; may be left out for a single number."""
    given = _given(inputs, create_graph)
    return _plain(functions.jvp(func, given, _weights("jvp", v, given)), create_graph)


def hvp(func: Callable[..., Any], inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False) -> Any:
    """(func(*inputs), H v) of a scalar function."""
    given = _given(inputs, create_graph)
    weights = _weights("hvp", v, given)
    slopes = functions.grad(lambda *x: func(*x).reshape(()), tuple(range(len(given))))
    _, along = functions.jvp(slopes, given, weights)
    return _plain((func(*given), _as_given(along, inputs)), create_graph)


def vhp(func: Callable[..., Any], inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False) -> Any:
    """(func(*inputs), vᵀ H) of a scalar function: H is symmetric, so it is hvp."""
    return hvp(func, inputs, v, create_graph, strict)

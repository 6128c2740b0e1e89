"""Python to graph: run a module or function on symbols and keep what it did.

The function runs once per probe batch size and never again; a training node runs only the graph.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cyxcore import forks, linalg
from cyxcore.becoming import noting_what_is_made
from cyxcore.errors import GraphError, ShapeError
from cyxcore.func import flat
from cyxcore.gradients import check_ends_here
from cyxcore.graph import Graph
from cyxcore.symbols import MOST_NODES, Builder, Symbol, batch_free
from cyxcore.values import TRACED, Value

if TYPE_CHECKING:
    from cyxcore.nn.module import Module

Array = np.ndarray[Any, Any]


class Traced(NamedTuple):
    """A model and the values its parameters had."""

    graph: Graph
    weights: dict[str, Array]


def results_of(result: Any, expected: str) -> tuple[tuple[Symbol, ...], Callable[[Sequence[Any]], Any]]:
    """The symbols that a traced function returned, in tuples, lists and dicts, and what puts others in their places.

    None stays where it is. Raises GraphError, which says what was expected, for anything else.
    """
    leaves, rebuild = flat(result)
    places = [place for place, leaf in enumerate(leaves) if leaf is not None]
    symbols = tuple(leaves[place] for place in places)
    if not all(isinstance(leaf, Symbol) for leaf in symbols) or leaves and not symbols:
        raise GraphError(f"compile: expected the {expected}")
    if isinstance(result, Symbol):
        return symbols, itemgetter(0)
    if type(result) is tuple and all(isinstance(part, Symbol) for part in result):
        return symbols, tuple

    def put(values: Sequence[Any]) -> Any:
        filled = [None] * len(leaves)
        for place, value in zip(places, values, strict=True):
            filled[place] = value
        return rebuild(filled)

    return symbols, put


@contextmanager
def symbolic(
    module: "Module",
    builder: Builder,
    names: str = "",
    both_modes: bool = True,
    mode: Any = TRACED,
    known: dict[int, Symbol] | None = None,
) -> Iterator[dict[int, Symbol]]:
    """Within the block the module's parameters and buffers are symbols, and it is in both modes at once.

    names: put before the names of the parameters. both_modes: False leaves the module in the mode it is in. mode: False
    puts it in evaluation mode. known: the symbols of tensors that other modules have too. Yields the symbol of each
    tensor, by the tensor's id, with those that were known. In one mode, what requires no gradient is not trained.
    """
    changed: list[tuple[dict[str, Any], str, Any]] = []
    held: list[tuple[dict[str, Any], str, Symbol]] = []

    def put(holder: dict[str, Any], name: str, value: Any) -> None:
        changed.append((holder, name, holder.get(name)))
        holder[name] = value

    try:
        known = {} if known is None else known
        for prefix, part in module.named_modules():
            if both_modes:
                put(part.__dict__, "training", mode)
            put(part.__dict__, "_label", f"{prefix}: {type(part).__name__}" if prefix else type(part).__name__)
            for table, trainable in ((part._parameters, True), (part._buffers, False)):
                for name, tensor in table.items():
                    if id(tensor) not in known:
                        init = getattr(tensor, "init", None) or {"kind": "zeros"}
                        full = names + (f"{prefix}.{name}" if prefix else name)
                        trained = trainable and (both_modes or tensor.requires_grad)
                        known[id(tensor)] = builder.param(full, tensor.shape, init, trained, tensor.dtype)
                        known[id(tensor)].tensor = tensor
                    put(table, name, known[id(tensor)])
                    held.append((table, name, known[id(tensor)]))
        yield known
        for table, name, symbol in held:
            if (value := table.get(name, symbol)) is not symbol:
                check_ends_here(builder, name, [symbol], [value := builder.lift(value)])
                symbol._assign(value)
    finally:
        for holder, name, value in reversed(changed):
            holder[name] = value


def trace(model: Any, input_shape: Sequence[int] | None = None, dtype: str = "float32") -> Any:
    """The graph and weights of a module (or of a function of one tensor): Traced. Of a matrix PyTorch's trace.

    input_shape is the shape of one sample. Raises GraphError for code a graph cannot hold: a
    condition on values, .numpy(), a dependence on the batch size. Layers of nn label their nodes.
    """
    return linalg.trace(model) if isinstance(model, Value) else traced(model, input_shape, dtype)


def traced(model: Any, input_shape: Sequence[int] | None, dtype: str = "float32") -> Traced:
    """trace() of a model."""
    return _traced(model, input_shape, dtype, first=False)[0]


def traced_first(model: Any, input_shape: Sequence[int] | None) -> tuple[Traced, int]:
    """trace() of the first tensor a model returns, and how many it returns, as a recurrent layer does several."""
    return _traced(model, input_shape, "float32", first=True)


def _traced(model: Any, input_shape: Sequence[int] | None, dtype: str, first: bool) -> tuple[Traced, int]:
    from cyxcore.nn.module import Module

    if not callable(model):
        raise GraphError(f"trace: expected a module or a function of one tensor, got {type(model).__name__}")
    if isinstance(input_shape, int):
        raise GraphError(f"trace: expected input_shape, the shape of one sample, such as ({input_shape},)")
    if not isinstance(input_shape, Iterable):
        got = "" if input_shape is None else f", got {type(input_shape).__name__}"
        raise GraphError(f"trace: expected input_shape, the shape of one sample{got}")

    results = 1

    def at(batch_size: int) -> Graph:
        nonlocal results
        builder = Builder(batch_size, MOST_NODES)
        x = builder.input("x", (batch_size, *input_shape), dtype)
        try:
            within = symbolic(model, builder) if isinstance(model, Module) else nullcontext()
            with forks.tracing(), noting_what_is_made(), within:
                result = model(x)
                if first and (found := _tensors(result)):
                    result, results = found[0], len(found)
        except ShapeError as error:
            if f"({batch_size}, " not in str(error):
                raise
            sample = tuple(input_shape)
            raise type(error)(f"{error}; {batch_size} stands for any batch size: one sample is {sample}") from None
        if not isinstance(result, Symbol):
            raise GraphError(
                f"trace: expected the model to return one tensor computed from x, got {type(result).__name__}"
            )
        return builder.graph(result)

    graph = batch_free(at)
    weights = {}
    if isinstance(model, Module):
        held = model.state_dict()
        weights = {param.name: held[param.name].copy() for param in graph.all_parameters}
    return Traced(graph, weights), results


def _tensors(result: Any) -> list[Any]:
    """The tensors among what a model returned, which may lie in tuples, lists and dicts."""
    if isinstance(result, dict):
        result = tuple(result.values())
    if isinstance(result, (tuple, list)):
        return [each for part in result for each in _tensors(part)]
    return [result] if isinstance(result, Symbol) else []

"""compile: a function or module of tensors, planned once per input shape and replayed.

Results carry no gradient. A training step goes to steps.py; jobs compile theirs in training.py.
"""

from collections.abc import Callable
from typing import Any

from cyxcore.eager import Tensor
from cyxcore.errors import GraphError
from cyxcore.nn.module import Module
from cyxcore.objectives import evaluation_graph
from cyxcore.plan import Plan
from cyxcore.steps import CompiledStep, used
from cyxcore.symbols import Builder, Symbol
from cyxcore.tracing import symbolic


class Compiled:
    """Calls like the original; parameters are read in place, so training goes on beside it."""

    def __init__(self, function: "Module | Callable[..., Any]", device: str | None = None) -> None:
        self.function, self.device = function, device
        self._plans: dict[tuple[Any, ...], tuple[Plan, bool]] = {}

    def _compile(self, inputs: tuple[Tensor, ...]) -> tuple[Plan, bool]:
        builder = Builder()
        symbols = [builder.input(str(place), x.shape, x.dtype) for place, x in enumerate(inputs)]
        state = {}
        if isinstance(self.function, Module):
            with symbolic(self.function, builder):
                result = self.function(*symbols)
            state = self.function.state_dict()
        else:
            result = self.function(*symbols)
        several = isinstance(result, tuple)
        outputs = result if several else (result,)
        if not all(isinstance(value, Symbol) for value in outputs):
            raise GraphError("compile: expected the function to return tensors computed from its arguments")
        return Plan(evaluation_graph(builder.graph(*outputs)), state, self.device), several

    def __call__(self, *inputs: Any) -> Any:
        tensors = tuple(x if isinstance(x, Tensor) else Tensor(x) for x in inputs)
        shapes = tuple((x.shape, x.dtype) for x in tensors)
        if shapes not in self._plans:
            self._plans[shapes] = self._compile(tensors)
        plan, several = self._plans[shapes]
        for place, x in enumerate(tensors):
            plan.inputs[str(place)][...] = x.numpy()
        plan.run()
        results = tuple(Tensor(array.copy()) for array in plan.outputs)
        return results if several else results[0]


def compile(function: "Module | Callable[..., Any]", device: str | None = None) -> "Compiled | CompiledStep":
    """A faster callable with the same results: of a module or function in inference mode, or of a training step.

    A function that uses an optimiser is a training step (cyxcore/steps.py): its gradients and updates are in the plan.
    """
    if not isinstance(function, Module):
        modules, optimizers = used(function)
        if optimizers:
            return CompiledStep(function, modules, optimizers, device)
    return Compiled(function, device)

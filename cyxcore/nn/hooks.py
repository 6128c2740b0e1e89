"""Functions that a module calls around its forward and its backward pass; names and arguments are PyTorch's."""

from collections.abc import Callable
from typing import Any

from cyxcore.autograd import Function
from cyxcore.eager import Tensor
from cyxcore.errors import GradientError, GraphError
from cyxcore.symbols import Symbol

KINDS = ("before", "after", "backward")


class Handle:
    """remove() takes a hook off again."""

    def __init__(self, hooks: "dict[Handle, Callable[..., Any]]") -> None:
        self._hooks = hooks

    def remove(self) -> None:
        """Nothing happens the second time."""
        self._hooks.pop(self, None)


Hooks = dict[str, dict[Handle, Callable[..., Any]]]  # by kind, in the order of registration; one may be there twice


def called(module: Any, hooks: Hooks, inputs: tuple[Any, ...], options: Any) -> Any:
    """module.forward(*inputs, **options) with its hooks."""
    for hook in tuple(hooks["before"].values()):
        changed = hook(module, inputs)
        if changed is not None:
            inputs = changed if isinstance(changed, tuple) else (changed,)
    watch = _Watch(module, tuple(hooks["backward"].values())) if hooks["backward"] else None
    if watch is not None:
        inputs = watch.entered(inputs)
    output = module.forward(*inputs, **options)
    for hook in tuple(hooks["after"].values()):
        changed = hook(module, inputs, output)
        output = output if changed is None else changed
    return output if watch is None else watch.left(output)


class _Watch:
    """One call of a module whose gradients somebody wants to see: those of its tensor inputs and of its output."""

    def __init__(self, module: Any, hooks: tuple[Callable[..., Any], ...]) -> None:
        self.module, self.hooks = module, hooks
        self.places: list[int] = []
        self.count = 0
        self.of_output: Any = None

    def entered(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if any(isinstance(x, Symbol) for x in inputs):
            raise GraphError(
                f"{type(self.module).__name__}: a backward hook runs on tensors, not in cx.compile or cx.trace; "
                "remove it first, or run the step uncompiled"
            )
        self.count = len(inputs)
        self.places = [place for place, x in enumerate(inputs) if isinstance(x, Tensor) and x.requires_grad]
        if len(self.places) > 1:
            raise GradientError(
                f"{type(self.module).__name__}: a backward hook sees one input that requires a gradient, this call has "
                f"{len(self.places)}; put register_hook on the tensors"
            )
        return tuple(_Entry.apply(self, x) if place in self.places else x for place, x in enumerate(inputs))

    def left(self, output: Any) -> Any:
        if not isinstance(output, Tensor):
            raise GradientError(
                f"{type(self.module).__name__}: a backward hook needs a module that returns one tensor, got "
                f"{type(output).__name__}; put register_hook on the tensors"
            )
        return _Exit.apply(self, output) if output.requires_grad else output

    def told(self, gradient: Any) -> Any:
        """Call the hooks; gradient: of the input, None where it needs none. What it is after them."""
        place = self.places[0] if self.places else None
        of_inputs = tuple(gradient if number == place else None for number in range(self.count))
        for hook in self.hooks:
            changed = hook(self.module, of_inputs, (self.of_output,))
            if changed is not None:
                of_inputs = changed if isinstance(changed, tuple) else (changed,)
        return of_inputs[place] if place is not None else None


class _Watched(Function):
    @staticmethod
    def forward(ctx: Any, watch: _Watch, x: Any) -> Any:
        ctx.watch = watch
        return x.detach()


class _Entry(_Watched):
    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return None, ctx.watch.told(gradient)


class _Exit(_Watched):
    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        ctx.watch.of_output = gradient
        if not ctx.watch.places:
            ctx.watch.told(None)
        return None, gradient

"""Parameters that are computed from others, whenever they are asked for: torch.nn.utils.parametrize.

The module gets a class of its own that computes `module.weight`; what it is computed from is trained, and stands in the
state dict as parametrizations.weight.original (original0, original1, … where there are several).
"""

from typing import Any

from cyxcore.eager import no_grad
from cyxcore.errors import SpecError
from cyxcore.nn.containers import ModuleDict, ModuleList
from cyxcore.nn.module import Module, Parameter

__all__ = ["ParametrizationList", "is_parametrized", "register_parametrization", "remove_parametrizations"]


class ParametrizationList(ModuleList):
    """The modules that make a value, one after another, and what they make it of."""

    def __init__(self, first: Module, original: Any) -> None:
        super().__init__([first])
        with no_grad():
            given = first.right_inverse(original) if hasattr(first, "right_inverse") else original
        self.count = len(given) if isinstance(given, tuple) else 0
        names = [f"original{number}" for number in range(self.count)] if self.count else ["original"]
        for name, value in zip(names, given if self.count else (given,), strict=True):
            if isinstance(original, Parameter):
                own = Parameter(value.detach(), original.init, original.requires_grad)
                setattr(self, name, value if value is original else own)
            else:
                self.register_buffer(name, value)

    def value(self) -> Any:
        """What takes the place of the parameter."""
        first, *others = self
        result = first(*[getattr(self, f"original{n}") for n in range(self.count)] if self.count else [self.original])
        for part in others:
            result = part(result)
        return result


def _get(self: Module, name: str) -> Any:
    """Called for what is no plain attribute."""
    parts = self.__dict__.get("_modules", {}).get("parametrizations")  # there are none while a copy is made
    held = None if parts is None else parts._modules.get(name)
    return Module.__getattr__(self, name) if held is None else held.value()


def _set(self: Module, name: str, value: Any) -> None:
    if name in self._modules["parametrizations"]._modules:
        raise SpecError(
            f"{type(self).__name__}: {name!r} is computed from parametrizations.{name}; write into what that holds, or "
            "remove_parametrizations() first"
        )
    Module.__setattr__(self, name, value)


def register_parametrization(module: Module, tensor_name: str, parametrization: Module, unsafe: bool = False) -> Module:
    """From now on module.<tensor_name> is parametrization(what it was); a second one is put after the first.

    A `right_inverse` of the parametrization gives what it starts from: one tensor, or a tuple, which its forward takes
    apart. unsafe: accepted and without effect. Returns the module. Raises SpecError where there is no such parameter.
    """
    if is_parametrized(module, tensor_name):
        module._modules["parametrizations"]._modules[tensor_name].append(parametrization)
        return module
    table = next((t for t in (module._parameters, module._buffers) if t.get(tensor_name) is not None), None)
    if table is None:
        raise SpecError(f"register_parametrization: {type(module).__name__} has no parameter {tensor_name!r}")
    made = ParametrizationList(parametrization, table[tensor_name])
    del table[tensor_name]
    if not is_parametrized(module):
        plain = type(module)
        own = type(
            f"Parametrized{plain.__name__}", (plain,), {"__getattr__": _get, "__setattr__": _set, "_plain": plain}
        )
        module._modules["parametrizations"] = ModuleDict()
        object.__setattr__(module, "__class__", own)
    module._modules["parametrizations"]._modules[tensor_name] = made
    return module


def is_parametrized(module: Module, tensor_name: str | None = None) -> bool:
    """Whether this parameter (None: any) of the module is computed."""
    held = module._modules.get("parametrizations")
    return held is not None and hasattr(type(module), "_plain") and tensor_name in (None, *held._modules)


def remove_parametrizations(module: Module, tensor_name: str, leave_parametrized: bool = True) -> Module:
    """A plain parameter again: with the value that was computed last, or with what it was computed from.

    Returns the module. Raises SpecError for a parameter that is not computed, or comes from several tensors and is not
    left as it is.
    """
    if not is_parametrized(module, tensor_name):
        raise SpecError(f"remove_parametrizations: {tensor_name!r} is not parametrized")
    table = module._modules["parametrizations"]._modules
    held: Any = table[tensor_name]
    if held.count and not leave_parametrized:
        raise SpecError(f"remove_parametrizations: {tensor_name!r} comes from {held.count} tensors; leave_parametrized")
    before = next(iter(held._parameters.values()), None)
    with no_grad():
        value = held.value() if leave_parametrized else held.original
    del table[tensor_name]
    if not table:
        del module._modules["parametrizations"]
        object.__setattr__(module, "__class__", type(module)._plain)  # type: ignore[attr-defined]
    if before is not None:
        module._parameters[tensor_name] = Parameter(value.detach().copy(), before.init, before.requires_grad)
    else:
        module._buffers[tensor_name] = value.detach().copy()
    return module

"""Modules and parameters in lists and by name: torch's containers."""

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any, Self

from cyxcore.errors import SpecError
from cyxcore.nn.module import Module, Parameter


class _InOrder(Module):
    """The verbs of a list over the modules it has."""

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, index: int | slice) -> Any:
        parts = list(self._modules.values())[index]
        return parts if isinstance(parts, Module) else self._of(parts)

    def _of(self, parts: list[Module]) -> Module:
        raise NotImplementedError

    def append(self, part: Module) -> Self:
        """One more, at the end."""
        self._modules[str(len(self._modules))] = part
        return self

    def extend(self, parts: Iterable[Module]) -> Self:
        """More, at the end."""
        for part in parts:
            self.append(part)
        return self

    def __iter__(self) -> Iterator[Module]:
        return self.children()


class Sequential(_InOrder):
    """Modules one after another; they are named "0", "1", …"""

    def __init__(self, *parts: Module) -> None:
        super().__init__()
        for index, part in enumerate(parts):
            self._modules[str(index)] = part

    def _of(self, parts: list[Module]) -> Module:
        return Sequential(*parts)

    def forward(self, x: Any) -> Any:
        for part in self._modules.values():
            x = part(x)
        return x


class ModuleList(_InOrder):
    """Modules in a list, so that their parameters are found; calling it is up to the owner."""

    def __init__(self, parts: Iterable[Module] = ()) -> None:
        super().__init__()
        for part in parts:
            self.append(part)

    def _of(self, parts: list[Module]) -> Module:
        return ModuleList(parts)


class ModuleDict(Module):
    """Modules by name, so that their parameters are found; calling them is up to the owner."""

    def __init__(self, parts: Mapping[str, Module] | None = None) -> None:
        super().__init__()
        for name, part in (parts or {}).items():
            self[name] = part

    def __setitem__(self, name: str, part: Module) -> None:
        self._modules[_key(name)] = part

    def __getitem__(self, name: str) -> Module:
        part: Module = self._modules[name]
        return part

    def __delitem__(self, name: str) -> None:
        del self._modules[name]

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __contains__(self, name: object) -> bool:
        return name in self._modules

    def keys(self) -> KeysView[str]:
        return self._modules.keys()

    def values(self) -> ValuesView[Module]:
        return self._modules.values()

    def items(self) -> ItemsView[str, Module]:
        return self._modules.items()


def _key(name: str) -> str:
    if not isinstance(name, str) or not name or "." in name:
        raise SpecError(f"expected a name without a dot, as names in a state_dict are joined by dots, got {name!r}")
    return name


class ParameterList(Module):
    """Parameters in a list, named "0", "1", …; a tensor becomes a parameter."""

    def __init__(self, values: Iterable[Any] = ()) -> None:
        super().__init__()
        for value in values:
            self.append(value)

    def append(self, value: Any) -> None:
        setattr(self, str(len(self._parameters)), value if isinstance(value, Parameter) else Parameter(value))

    def __len__(self) -> int:
        return len(self._parameters)

    def __getitem__(self, index: int) -> Parameter:
        part: Parameter = list(self._parameters.values())[index]
        return part

    def __iter__(self) -> Iterator[Parameter]:
        return iter(list(self._parameters.values()))


class ParameterDict(Module):
    """Parameters by name; a tensor becomes a parameter."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        for name, value in (values or {}).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self, _key(name), value if isinstance(value, Parameter) else Parameter(value))

    def __getitem__(self, name: str) -> Parameter:
        part: Parameter = self._parameters[name]
        return part

    def __len__(self) -> int:
        return len(self._parameters)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __contains__(self, name: object) -> bool:
        return name in self._parameters

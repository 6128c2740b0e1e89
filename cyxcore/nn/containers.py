"""Modules and parameters in lists and by name: torch's containers."""

import operator
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any, Self

from cyxcore.errors import SpecError
from cyxcore.nn.module import Module, Parameter


def _module(name: str, part: Any) -> Module:
    if not isinstance(part, Module):
        raise SpecError(f"{name}: expected a module, got {type(part).__name__}")
    return part


def _parameter(value: Any) -> Parameter:
    """A parameter as it is, a tensor as one."""
    return value if isinstance(value, Parameter) else Parameter(value)


class _InOrder(Module):
    """The verbs of a list over the modules it has; they are named "0", "1", … unless they were given names."""

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self._of(dict(list(self._modules.items())[index]))
        return list(self._modules.values())[index]

    def _of(self, parts: dict[str, Module]) -> Module:
        raise NotImplementedError

    def _name(self, index: Any) -> str:
        """Of the part at a place. Raises IndexError."""
        names = list(self._modules)
        place = operator.index(index)
        if not -len(names) <= place < len(names):
            raise IndexError(f"{type(self).__name__}: expected a place of {len(names)} modules, got {place}")
        return names[place]

    def __setitem__(self, index: int, part: Module) -> None:
        self._modules[self._name(index)] = _module(type(self).__name__, part)

    def __delitem__(self, index: int | slice) -> None:
        for name in list(self._modules)[index] if isinstance(index, slice) else [self._name(index)]:
            del self._modules[name]
        self._renamed(list(self._modules.values()))

    def _renamed(self, parts: list[Module]) -> None:
        """These parts under the names "0", "1", …"""
        kept = [_module(type(self).__name__, part) for part in parts]
        self._modules.clear()
        self._modules.update((str(place), part) for place, part in enumerate(kept))

    def append(self, part: Module) -> Self:
        """One more, at the end."""
        self._modules[str(len(self._modules))] = _module(type(self).__name__, part)
        return self

    def extend(self, parts: Iterable[Module]) -> Self:
        """More, at the end."""
        for part in parts:
            self.append(part)
        return self

    def insert(self, index: int, part: Module) -> Self:
        """One more, before the place `index`; what comes after has new names."""
        parts = list(self._modules.values())
        parts.insert(index, part)
        self._renamed(parts)
        return self

    def pop(self, index: int = -1) -> Module:
        """The part at a place, which is taken out; what comes after has new names."""
        part: Module = self[operator.index(index)]
        del self[index]
        return part

    def __iadd__(self, parts: Iterable[Module]) -> Self:
        return self.extend(parts)

    def __add__(self, parts: Iterable[Module]) -> Any:
        return type(self)._from([*self, *parts])

    @classmethod
    def _from(cls, parts: list[Module]) -> Any:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Module]:
        return self.children()


class Sequential(_InOrder):
    """Modules one after another; they are named "0", "1", …, or by the keys of one OrderedDict (any dict)."""

    def __init__(self, *parts: Any) -> None:
        super().__init__()
        if len(parts) == 1 and isinstance(parts[0], Mapping):
            for name, part in parts[0].items():
                self._modules[_key(name)] = _module(f"Sequential: {name}", part)
            return
        for index, part in enumerate(parts):
            self._modules[str(index)] = _module("Sequential", part)

    def _of(self, parts: dict[str, Module]) -> Module:
        numbered = all(name.isdecimal() for name in parts)
        return Sequential(*parts.values()) if numbered else Sequential(parts)

    @classmethod
    def _from(cls, parts: list[Module]) -> Any:
        return Sequential(*parts)

    def forward(self, x: Any) -> Any:
        for part in self._modules.values():
            x = part(x)
        return x


class ModuleList(_InOrder):
    """Modules in a list, so that their parameters are found; calling it is up to the owner."""

    def __init__(self, parts: Iterable[Module] | None = None) -> None:
        super().__init__()
        for part in parts or ():
            self.append(part)

    def _of(self, parts: dict[str, Module]) -> Module:
        return ModuleList(parts.values())

    @classmethod
    def _from(cls, parts: list[Module]) -> Any:
        return ModuleList(parts)


class ModuleDict(Module):
    """Modules by name, so that their parameters are found; calling them is up to the owner."""

    def __init__(self, parts: Mapping[str, Module] | None = None) -> None:
        super().__init__()
        self.update(parts or {})

    def update(self, parts: Mapping[str, Module] | Iterable[tuple[str, Module]]) -> None:
        """More of them, or others under names that there are."""
        for name, part in parts.items() if isinstance(parts, (Mapping, ModuleDict)) else parts:
            self[name] = part

    def pop(self, name: str) -> Module:
        """One, which is taken out. Raises KeyError."""
        part: Module = self._modules.pop(name)
        return part

    def clear(self) -> None:
        """None is left."""
        self._modules.clear()

    def __setitem__(self, name: str, part: Module) -> None:
        self._modules[_key(name)] = _module(f"ModuleDict: {name}", part)

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

    def __init__(self, values: Iterable[Any] | None = None) -> None:
        super().__init__()
        self.extend(values or ())

    def append(self, value: Any) -> Self:
        """One more, at the end."""
        setattr(self, str(len(self._parameters)), _parameter(value))
        return self

    def extend(self, values: Iterable[Any]) -> Self:
        """More, at the end."""
        for value in values:
            self.append(value)
        return self

    def __iadd__(self, values: Iterable[Any]) -> Self:
        return self.extend(values)

    def __len__(self) -> int:
        return len(self._parameters)

    def __getitem__(self, index: int | slice) -> Any:
        parts = list(self._parameters.values())[index]
        return ParameterList(parts) if isinstance(index, slice) else parts

    def __setitem__(self, index: int, value: Any) -> None:
        names = list(self._parameters)
        if not -len(names) <= index < len(names):
            raise IndexError(f"ParameterList: expected a place of {len(names)} parameters, got {index}")
        self._parameters[names[index]] = _parameter(value)

    def __iter__(self) -> Iterator[Parameter]:
        return iter(list(self._parameters.values()))


class ParameterDict(Module):
    """Parameters by name; a tensor becomes a parameter."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.update(values or {})

    def update(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
        """More of them, or others under names that there are."""
        for name, value in values.items() if isinstance(values, (Mapping, ParameterDict)) else values:
            self[name] = value

    def get(self, name: str, default: Any = None) -> Any:
        """The parameter of a name, or `default`."""
        return self._parameters.get(name, default)

    def setdefault(self, name: str, default: Any) -> Parameter:
        """The parameter of a name, which is `default` from now on if there was none."""
        if name not in self._parameters:
            self[name] = default
        return self[name]

    def pop(self, name: str) -> Parameter:
        """One, which is taken out. Raises KeyError."""
        value: Parameter = self._parameters.pop(name)
        return value

    def clear(self) -> None:
        """None is left."""
        self._parameters.clear()

    def keys(self) -> KeysView[str]:
        return self._parameters.keys()

    def values(self) -> ValuesView[Parameter]:
        return self._parameters.values()

    def items(self) -> ItemsView[str, Parameter]:
        return self._parameters.items()

    def __setitem__(self, name: str, value: Any) -> None:
        self._parameters[_key(name)] = _parameter(value)

    def __getitem__(self, name: str) -> Parameter:
        part: Parameter = self._parameters[name]
        return part

    def __delitem__(self, name: str) -> None:
        del self._parameters[name]

    def __len__(self) -> int:
        return len(self._parameters)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __contains__(self, name: object) -> bool:
        return name in self._parameters

"""What a function reads besides its arguments: modules, optimisers, tensors and numbers, also through helpers.

Looked through are variables of enclosing functions and global ones that the code names, defaults of parameters and
arguments of functools.partial, functions of these in turn, lists, and of objects the attributes that the code names.
While the function is compiled its tensors are symbols, so that the plan reads them where they are; what is a number is
a part of the plan.
"""

import builtins
import dis
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np

from cyxcore.device import OWN_MEMORY
from cyxcore.eager import Tensor
from cyxcore.errors import GraphError
from cyxcore.nn.module import Module
from cyxcore.optimizer import Optimizer
from cyxcore.symbols import CONSTANTS, Builder, Symbol

Array = np.ndarray[Any, Any]

MOST_ITEMS = 256  # of a list; what is longer holds data
MOST_TENSORS = 4096  # of a list, which may be the parameters of a model
MOST_OPTIONS = 16  # of a list whose numbers are looked at before each call
NUMBERS = (bool, int, float, str, type(None))
GLOBAL, ATTRIBUTE = ("LOAD_GLOBAL", "LOAD_NAME"), ("LOAD_ATTR", "LOAD_METHOD")
_NOTHING = object()


class Place(NamedTuple):
    """Where a value is read: a variable of an enclosing function, a name in a dict, or one of a tuple of arguments.

    Those are the defaults of a function, or what a functools.partial has; `back` is the place from the end, below 0.
    """

    holder: Any
    name: str
    back: int = 0

    def read(self) -> Any:
        """The value that is there now."""
        if self.back:
            given = _arguments_of(self.holder)
            return given[self.back] if len(given) >= -self.back else _NOTHING
        if type(self.holder) is not CellType:
            return self.holder.get(self.name, _NOTHING)
        try:
            return self.holder.cell_contents
        except ValueError:  # nothing was assigned yet
            return _NOTHING

    def write(self, value: Any) -> None:
        if self.back:
            given = list(_arguments_of(self.holder))
            given[self.back] = value
            if isinstance(self.holder, FunctionType):
                self.holder.__defaults__ = tuple(given)
            else:
                part = self.holder
                part.__setstate__((part.func, tuple(given), part.keywords, vars(part)))
        elif value is _NOTHING:
            if type(self.holder) is CellType:
                del self.holder.cell_contents
            else:
                self.holder.pop(self.name, None)
        elif type(self.holder) is CellType:
            self.holder.cell_contents = value
        else:
            self.holder[self.name] = value

    def note(self, watch: Any) -> None:
        """Tell a Watch what read() looks at."""
        if self.back:
            watch.attribute(self.holder, "__defaults__" if isinstance(self.holder, FunctionType) else "args")
        else:
            watch.place(self.holder, self.name)


def _arguments_of(holder: Any) -> tuple[Any, ...]:
    return (holder.__defaults__ or ()) if isinstance(holder, FunctionType) else holder.args


class Surroundings:
    """Of a function; modules within others of them are not named again."""

    def __init__(
        self,
        function: Callable[..., Any] | None,
        modules: Sequence[Module] = (),
        optimizers: Sequence[Optimizer] = (),
    ) -> None:
        """function: None for one that reads these modules and optimisers alone."""
        self.function = function
        self.by_value = False  # tensors are constants of the plan, as something asks for their numbers
        self.replaced = False  # whether any was a symbol in the last trace
        self._places: dict[tuple[int, str], Place] = {}
        self._found: dict[int, Any] = {}
        self._objects: list[Any] = []
        self._attributes: set[str] = set()
        self.walks_back = False  # whether its code, or that of its helpers, says backward()
        for value in (*modules, *optimizers):
            self._look(value)
        if function is not None:
            self._look(function)
            self._look(inspect.unwrap(function))
            self._look(inspect.getattr_static(type(function), "__call__", None))
        if inspect.ismethod(function):
            for value in vars(function.__self__).values():
                self._look(value)
        self.walks_back = "backward" in self._attributes
        self._look_into_objects()
        modules = [value for value in self._found.values() if isinstance(value, Module)]
        inner = {id(part) for module in modules for part in module.modules() if part is not module}
        self.modules = [module for module in modules if id(module) not in inner]
        self.optimizers = [value for value in self._found.values() if isinstance(value, Optimizer)]
        # What is a part of the program, or not there yet: with something else in its place all is looked for anew.
        self._program = [(place, value) for place in self._places.values() if not _may_change(value := place.read())]
        self._places = {key: place for key, place in self._places.items() if _may_change(place.read())}

    def is_outdated(self) -> bool:
        """Whether a function, a module or an optimiser that was found is another one by now, or came since then."""
        return any(place.read() is not value for place, value in self._program)

    def _look(self, value: Any) -> None:
        if id(value) in self._found or isinstance(value, (Tensor, np.ndarray, *NUMBERS, ModuleType, type)):
            return
        self._found[id(value)] = value
        if value is _NOTHING or isinstance(value, (Module, Optimizer)):
            return
        if isinstance(value, FunctionType):
            if is_ours(value):
                return
            self._look_into_code(value)
            named = value.__code__.co_varnames[: value.__code__.co_argcount]
            self._add_arguments(value, named[len(named) - len(value.__defaults__ or ()) :], value.__kwdefaults__ or {})
        elif isinstance(value, MethodType):
            self._look(value.__func__)
            self._look(value.__self__)
        elif isinstance(value, functools.partial):
            self._look(value.func)
            self._add_arguments(value, [f"argument {place}" for place in range(len(value.args))], value.keywords)
        elif (inner := vars(value).get("__wrapped__") if hasattr(value, "__dict__") else None) is not None:
            self._look(inner)
        elif isinstance(value, (list, tuple, dict)):
            if len(value) <= MOST_ITEMS:
                for item in value.values() if isinstance(value, dict) else value:
                    self._look(item)
        elif hasattr(value, "__dict__") and not is_ours(type(value)):
            self._objects.append(value)

    def _look_into_code(self, function: FunctionType) -> None:
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        places = [Place(cell, name) for name, cell in cells]
        for code in codes(function.__code__):
            for step in dis.get_instructions(code):
                if step.opname in GLOBAL and (
                    step.argval in function.__globals__ or not hasattr(builtins, step.argval)
                ):
                    places.append(Place(function.__globals__, step.argval))
                elif step.opname in ATTRIBUTE:
                    self._attributes.add(step.argval)
        for place in places:
            self._add(place)

    def _add(self, place: Place) -> None:
        self._places[id(place.holder), place.name] = place
        self._look(place.read())

    def _add_arguments(self, holder: Any, names: Sequence[str], by_name: dict[str, Any]) -> None:
        for place, name in enumerate(names):
            self._add(Place(holder, name, place - len(names)))
        for name in by_name:
            self._add(Place(by_name, name))

    def _look_into_objects(self) -> None:
        """The attributes that are named, until no more are found: a method may name others."""
        before = -1
        while before != (before := len(self._found) + len(self._attributes)):
            for value in list(self._objects):
                for name in sorted(self._attributes & vars(value).keys()):
                    self._add(Place(vars(value), name))
                for name in sorted(self._attributes):
                    method = inspect.getattr_static(type(value), name, None)
                    self._look(method.fget if isinstance(method, property) else method)

    # what a plan is of ------------------------------------------------------------------------

    def holds_symbols(self) -> bool:
        """Whether something is compiled around the function that reads the same tensors."""
        return any(isinstance(place.read(), Symbol) for place in self._places.values())

    def key(self) -> tuple[Any, ...]:
        """Equal only while everything is the same object, and every number the same, as long as kept() is."""
        return tuple([_key_of(place.read(), self.by_value) for place in self._places.values()])

    def note(self, watch: Any) -> None:
        """Tell a Watch all that is_outdated() and key() look at."""
        for place, _ in self._program:
            place.note(watch)
        for place in self._places.values():
            place.note(watch)
            value = place.read()
            if isinstance(value, Tensor):
                watch.tensor(value, self.by_value)
            elif isinstance(value, (list, tuple, dict)):
                watch.answer(_key_of, value, self.by_value)

    def kept(self) -> list[Any]:
        """What key() names by its id."""
        values = [place.read() for place in self._places.values()]
        values += [item for value in values for item in _items(value)]
        return [values, [value._data for value in values if isinstance(value, Tensor)]]

    @contextmanager
    def symbolic(
        self, builder: Builder, device: str, parts: Mapping[int, Symbol] | None = None
    ) -> Iterator[dict[int, tuple[Tensor, Symbol]]]:
        """Within the block tensors are symbols, parameters of the graph. Yields them by the ids of the tensors.

        parts: the symbols of the modules' tensors by their ids, which the function may have by other names too. Raises
        GraphError where the function assigned to what it reads, which it would do in the first call alone.
        """
        places = list(self._places.values())
        before = [place.read() for place in places]
        versions = self.key() if self.by_value else ()
        known: dict[int, tuple[Tensor, Symbol]] = {}
        symbols = dict(parts or {})
        for value in before:
            free = isinstance(value, Tensor) and id(value) not in symbols
            if free and not self.by_value and _can_be_read(value, device):
                name = f"tensor.{len(known)}"
                symbol = builder.param(name, value.shape, {"kind": "zeros"}, value.requires_grad, value.dtype)
                known[id(value)], symbols[id(value)] = (value, symbol), symbol
        self.replaced = bool(known)
        there = [_with_symbols(value, symbols) for value in before]
        replaced = [
            (place, was, symbol) for place, was, symbol in zip(places, before, there, strict=True) if was is not symbol
        ]
        try:
            for place, _, symbol in replaced:
                place.write(symbol)
            yield known
            after = [place.read() for place in places]
        finally:
            for place, was, _ in replaced:
                place.write(was)
            for place, value in self._program:
                if value is _NOTHING and place.read() is not _NOTHING:
                    place.write(_NOTHING)  # a symbol, of no use outside
        for place, was, symbol, value in zip(places, before, there, after, strict=True):
            if value is symbol or isinstance(was, NUMBERS) and _key_of(value, True) == _key_of(was, True):
                continue
            if isinstance(was, Tensor) and was is not symbol and not _is_read(builder, symbol):
                del self._places[id(place.holder), place.name]  # assigned before anything reads it
                place.write(value)
            elif not isinstance(was, (Tensor, *NUMBERS)):
                place.write(was)  # a list that is begun in each call, now of symbols
            else:
                raise GraphError(
                    f"compile: the function assigns to {place.name!r} outside of it, which only its first call would "
                    "do; keep it in a buffer of a module, or return the value and assign it outside"
                )
        if versions != (self.key() if self.by_value else ()):
            raise GraphError(
                "compile: the function writes to a tensor outside of it, which only its first call would do; keep it "
                "in a buffer of a module, or return the value and write it outside"
            )


def _key_of(value: Any, by_value: bool, inside: bool = False) -> Any:
    """by_value: tensors are constants, and so are those inside a list. A list inside another one is what it is."""
    if isinstance(value, Tensor):
        version = value._memory.written if by_value and value._memory is not None else 0
        return id(value), id(value._data), value.requires_grad, value.grad is None, version
    if isinstance(value, NUMBERS):
        return type(value), repr(value)
    return id(value) if inside else (id(value), *[_key_of(item, True, True) for item in _items(value)])


def _with_symbols(value: Any, symbols: Mapping[int, Symbol], depth: int = 3) -> Any:
    """A tensor's symbol, a list or dict of such tensors with theirs in their places, or else the value itself.

    depth: of lists within lists.
    """
    if isinstance(value, Tensor):
        return symbols.get(id(value), value)
    if type(value) not in (list, tuple, dict) or len(value) > MOST_TENSORS or not depth:
        return value
    items = list(value.values()) if type(value) is dict else value
    found = [_with_symbols(item, symbols, depth - 1) for item in items]
    if all(now is was for now, was in zip(found, items, strict=True)):
        return value
    return dict(zip(value, found, strict=True)) if type(value) is dict else type(value)(found)


def _items(value: Any) -> list[Any]:
    """Of a short list or dict of options."""
    if not isinstance(value, (list, tuple, dict)) or len(value) > MOST_OPTIONS:
        return []
    return [*value.keys(), *value.values()] if isinstance(value, dict) else list(value)


def codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of the functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def is_ours(value: Any) -> bool:
    return (getattr(value, "__module__", None) or "").partition(".")[0] in ("cyxcore", "numpy", "builtins")


def _may_change(value: Any) -> bool:
    """Whether a place is looked at before each call: not what is a part of the program."""
    if isinstance(value, (Tensor, np.ndarray)):
        return True
    program = isinstance(value, (ModuleType, type, FunctionType, Module, Optimizer))
    return not (program or value is _NOTHING or is_ours(value))


def _is_read(builder: Builder, symbol: Symbol) -> bool:
    return any(symbol.home in node.inputs for node in builder.nodes)


def _can_be_read(x: Tensor, device: str) -> bool:
    """Whether a plan can read a tensor where it is."""
    here = x.device == device if device in OWN_MEMORY else type(x._data) is np.ndarray
    return here and x.dtype in CONSTANTS and x._data.size > 0 and bool(x._data.flags.c_contiguous)

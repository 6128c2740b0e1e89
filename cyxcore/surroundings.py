"""What a function reads besides its arguments: modules, optimisers, tensors and numbers, also through helpers.

Looked through are variables of enclosing functions and global ones that the code names, defaults of parameters and
arguments of functools.partial, functions of these in turn, lists and dicts, and of objects, classes, functions and
imported modules of the user's the attributes that the code names; the hooks of modules, too.
While the function is compiled its tensors are symbols, so that the plan reads them where they are; what is a number is
a part of the plan.
"""

import builtins
import collections
import copy
import dis
import functools
import inspect
import io
import operator
import pickle
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from types import BuiltinMethodType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np

from cyxcore.device import OWN_MEMORY
from cyxcore.eager import Tensor
from cyxcore.errors import GraphError
from cyxcore.nn.module import Module
from cyxcore.optimizer import Optimizer
from cyxcore.symbols import CONSTANTS, Builder, Symbol

Array = np.ndarray[Any, Any]

MOST_ITEMS = 4096  # of a list, which may be the parameters of a model; what is longer holds data
MOST_DEPTH = 4  # of lists within lists
MOST_BYTES = 1 << 20  # of a NumPy array that is compared before each call; a larger one holds data
NUMBERS = (bool, int, float, str, type(None))
GLOBAL, ATTRIBUTE = ("LOAD_GLOBAL", "LOAD_NAME"), ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")
HOLDERS = (list, tuple, dict, set, frozenset, collections.deque)
GENERATORS = (np.random.Generator, np.random.RandomState, random.Random)
_NOTHING = object()
_OF_MODULES = frozenset(vars(Module())) | {"_hooks", "_label"}
_OPERATORS = frozenset(name for name in dir(operator) if name.startswith("__")) | {
    "__call__", "__enter__", "__exit__", "__float__", "__int__", "__bool__", "__iter__", "__len__", "__getattr__",
    "__radd__", "__rsub__", "__rmul__", "__rtruediv__", "__rpow__",
}  # fmt: skip


class Place(NamedTuple):
    """Where a value is read: a variable of an enclosing function, a name in a dict, an attribute of a class or of an
    object with __slots__, or one of a tuple of arguments.

    Those are the defaults of a function, or what a functools.partial has; `back` is the place from the end, below 0.
    """

    holder: Any
    name: str
    back: int = 0

    def read(self) -> Any:
        """The value that is there now."""
        if isinstance(self.holder, type):
            return vars(self.holder).get(self.name, _NOTHING)
        if self.back:
            given = _arguments_of(self.holder)
            return given[self.back] if len(given) >= -self.back else _NOTHING
        if isinstance(self.holder, dict):
            return self.holder.get(self.name, _NOTHING)
        if type(self.holder) is not CellType:
            return getattr(self.holder, self.name, _NOTHING)
        try:
            return self.holder.cell_contents
        except ValueError:  # nothing was assigned yet
            return _NOTHING

    def write(self, value: Any) -> None:
        if not isinstance(self.holder, (dict, CellType)) and not self.back:
            setattr(self.holder, self.name, value)
        elif self.back:
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
        if not isinstance(self.holder, (dict, CellType)) and not self.back:
            there = hasattr(self.holder, self.name)
            watch.attribute(self.holder, self.name) if there else watch.answer(hasattr, self.holder, self.name)
        elif self.back:
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
        self.function, self._given = function, (modules, optimizers)
        self.by_value = False  # tensors are constants of the plan, as something asks for their numbers
        self.replaced = False  # whether any was a symbol in the last trace
        self._places: dict[tuple[int, str], Place] = {}
        self._found: dict[int, Any] = {}
        self._objects: list[Any] = []
        self._empty: list[Place] = []  # attributes of modules that are None, and may be a tensor or a module one day
        self._parts: set[int] = set()
        self._device = "cpu"  # where the last plan runs
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
        looked_into = {id(value) for value in self._objects}
        places, self._places, self._program = self._places, {}, []
        for name, place in places.items():
            if _may_change(value := place.read()) and id(value) not in looked_into:
                self._places[name] = place
            else:
                self._program.append((place, value))
        self._program += [(place, None) for place in self._empty]
        self.reads_rates = not self._attributes.isdisjoint(("lr", "get_last_lr", "_last_lr"))
        self.freezes = not self._attributes.isdisjoint(("requires_grad", "requires_grad_"))

    def again(self) -> "Surroundings":
        """Of the same function, as it is now."""
        return Surroundings(self.function, *self._given)

    def is_outdated(self) -> bool:
        """Whether a function, a module or an optimiser that was found is another one by now, or came since then.

        Objects in lists too, whose attributes are looked at.
        """
        if any(place.read() is not value for place, value in self._program):
            return True
        held = chain.from_iterable([_all_items(place.read()) for place in self._places.values()])
        return any(id(item) not in self._found and _has_attributes(item) for item in held)

    def _look(self, value: Any) -> None:
        if id(value) in self._found or isinstance(value, (Tensor, np.ndarray, *NUMBERS)):
            return
        self._found[id(value)] = value
        if isinstance(value, (ModuleType, type)):
            if not is_ours(value) and not _is_installed(_package_of(value)):
                self._objects.append(value)
            return
        if isinstance(value, Module):
            for part in value.modules():
                self._look_into_part(part)
            return
        if value is _NOTHING or isinstance(value, Optimizer):
            return
        if isinstance(value, FunctionType):
            if is_ours(value):
                return
            self._look_into_code(value)
            named = value.__code__.co_varnames[: value.__code__.co_argcount]
            self._add_arguments(value, named[len(named) - len(value.__defaults__ or ()) :], value.__kwdefaults__ or {})
            if vars(value):
                self._objects.append(value)
        elif isinstance(value, MethodType):
            self._look(value.__func__)
            self._look(value.__self__)
        elif isinstance(value, functools.partial):
            self._look(value.func)
            self._add_arguments(value, [f"argument {place}" for place in range(len(value.args))], value.keywords)
        elif (inner := vars(value).get("__wrapped__") if hasattr(value, "__dict__") else None) is not None:
            self._look(inner)
        elif isinstance(value, HOLDERS):
            for item in _items(value):
                self._look(item)
        elif _has_attributes(value) or hasattr(value, "last_epoch"):  # a schedule of ours is asked for its epoch
            self._objects.append(value)

    def _look_into_part(self, part: Module) -> None:
        """Hooks of a module or of a part of one, and of a class of the user's its forward() and what that names."""
        if id(part) in self._parts:
            return
        self._parts.add(id(part))
        self._add(Place(vars(part), "_hooks"))
        self._add(Place(vars(part), "forward"))
        if not is_ours(type(part)):
            for base in type(part).__mro__:
                self._add(Place(base, "forward"))
                if "forward" in vars(base):
                    break
        self._objects.append(part)

    def _look_into_code(self, function: FunctionType) -> None:
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        places = [Place(cell, name) for name, cell in cells]
        for code in codes(function.__code__):
            for step in dis.get_instructions(code):
                if step.opname in GLOBAL and (
                    step.argval in (*function.__globals__, "id") or not hasattr(builtins, step.argval)
                ):
                    places.append(Place(function.__globals__, step.argval))
                elif step.opname in ATTRIBUTE:
                    self._attributes.add(step.argval)
                elif isinstance(step.argval, str) and step.opname == "LOAD_CONST" and step.argval.isidentifier():
                    self._attributes.add(step.argval)  # of getattr(), or a key of vars()
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
        while before != (before := len(self._found) + len(self._attributes) + len(self._objects)):
            for value in list(self._objects):
                if isinstance(value, type):
                    for base in value.__mro__[:-1]:
                        if not is_ours(base):
                            self._look_into_class(base, {})
                    continue
                own = getattr(value, "__dict__", {})
                for name in sorted(self._attributes & {*own, *_slots(value)}):
                    if isinstance(value, Module) and name not in _OF_MODULES and own.get(name) is None:
                        self._empty.append(Place(own, name))
                    if not (isinstance(value, Module) and (name in _OF_MODULES or is_option(own.get(name)))):
                        self._add(Place(own if name in own else value, name))
                for base in type(value).__mro__[:-1]:
                    if not is_ours(base):
                        self._look_into_class(base, own)

    def _look_into_class(self, owner: type, own: dict[str, Any]) -> None:
        """Methods that are named, or that operators call, and attributes that an object has from its class."""
        for name, value in list(vars(owner).items()):
            if isinstance(value, (FunctionType, property, staticmethod, classmethod, functools.cached_property)):
                if name in self._attributes or name in _OPERATORS:
                    if isinstance(value, (FunctionType, staticmethod, property)):
                        self._add(Place(owner, name))
                    for made in ("fget", "__func__", "func"):
                        value = getattr(value, made, value)
                    self._look(value)
            elif name in self._attributes and not name.startswith("__") and name not in own:
                if isinstance(value, (*NUMBERS, *HOLDERS, Tensor, np.ndarray)):
                    self._add(Place(owner, name))
                    self._add(Place(own, name))

    # what a plan is of ------------------------------------------------------------------------

    def holds_symbols(self) -> bool:
        """Whether something is compiled around the function that reads the same tensors."""
        return any(isinstance(place.read(), Symbol) for place in self._places.values())

    def key(self) -> tuple[Any, ...]:
        """Equal only while everything is the same object, and every number the same, as long as kept() is."""
        is_constant = self._constants()
        return tuple([_key_of(place.read(), is_constant) for place in self._places.values()])

    def _constants(self) -> Callable[[Tensor], bool]:
        """Says of which tensors the numbers are a part of a plan, instead of being read where they are."""
        ours = {id(x) for module in self.modules for x in (*module.parameters(), *module.buffers())}
        return lambda x: id(x) not in ours and (self.by_value or not _can_be_read(x, self._device))

    def note(self, watch: Any) -> None:
        """Tell a Watch all that is_outdated() and key() look at."""
        for place, _ in self._program:
            place.note(watch)
        is_constant = self._constants()
        for place in self._places.values():
            place.note(watch)
            _note_items(place.read(), watch, is_constant)

    def kept(self) -> list[Any]:
        """What key() names by its id."""
        values = [place.read() for place in self._places.values()]
        values += [item for value in values for item in _all_items(value)]
        return [values, [value._data for value in values if isinstance(value, Tensor)]]

    @contextmanager
    def symbolic(
        self, builder: Builder, device: str, parts: Mapping[int, Symbol] | None = None
    ) -> Iterator[dict[int, tuple[Tensor, Symbol]]]:
        """Within the block tensors are symbols, parameters of the graph. Yields them by the ids of the tensors.

        parts: the symbols of the modules' tensors by their ids, which the function may have by other names too. Raises
        GraphError where the function assigned to what it reads, which it would do in the first call alone.
        """
        self._device = device
        places = list(self._places.values())
        before = [place.read() for place in places]
        is_constant = self._constants()
        known: dict[int, tuple[Tensor, Symbol]] = {}
        symbols = dict(parts or {})
        for value in (item for held in before for item in (held, *_all_items(held))):
            free = isinstance(value, Tensor) and id(value) not in symbols
            if free and not self.by_value and _can_be_read(value, device):
                name = f"tensor.{len(known)}"
                symbol = builder.param(name, value.shape, {"kind": "zeros"}, value.requires_grad, value.dtype)
                symbol.tensor = value
                known[id(value)], symbols[id(value)] = (value, symbol), symbol
        self.replaced = bool(known)
        there = [_with_symbols(value, symbols) for value in before]
        replaced = [
            (place, was, symbol) for place, was, symbol in zip(places, before, there, strict=True) if was is not symbol
        ]
        replaced += [(place, was, _Iterator()) for place, was in self._program if _is_iterator(was)]
        held = [_key_of(value, is_constant) for value in there]
        states = self._states_of_draws()
        try:
            for place, _, symbol in replaced:
                place.write(symbol)
            for place, value in self._program:
                if place.name == "id" and value is _NOTHING and "__builtins__" in place.holder:
                    place.write(_id)
            yield known
            after = [place.read() for place in places]
        finally:
            for place, was, _ in replaced:
                place.write(was)
            for place, value in self._program:
                if value is _NOTHING and (made := place.read()) is not _NOTHING:
                    place.write(_NOTHING)  # a symbol, of no use outside
                    if isinstance(made, NUMBERS) and made is not None:
                        raise assigned(place.name)
        for name, state in self._states_of_draws().items():
            if state != states.get(name):
                raise GraphError(
                    f"compile: the function draws from {name}, which only its first call would do; draw with cx.rand, "
                    "cx.randn or a cx.random.Generator, or give what is drawn as an argument"
                )
        for place, was, symbol, value, key in zip(places, before, there, after, held, strict=True):
            if value is symbol:  # also where what it holds was written to
                if _key_of(symbol, is_constant) != key:
                    raise _written(place.name)
            elif isinstance(was, NUMBERS) and _key_of(value, is_constant) == _key_of(was, is_constant):
                continue
            elif isinstance(was, Tensor) and was is not symbol and not _is_read(builder, symbol):
                del self._places[id(place.holder), place.name]  # assigned before anything reads it
                place.write(value)
            elif not isinstance(was, (Tensor, *NUMBERS)):
                place.write(was)  # a list that is begun in each call, now of symbols
            else:
                raise assigned(place.name)

    def _states_of_draws(self) -> dict[str, Any]:
        """Of generators that are not ours, by their names; the common ones where the code says `random`."""
        places = [*self._places.values(), *[place for place, _ in self._program]]
        values = {place.name: place.read() for place in places}
        methods = (MethodType, BuiltinMethodType)
        owners = {name: value.__self__ if isinstance(value, methods) else value for name, value in values.items()}
        found: dict[str, Any] = {}
        if "random" in self._attributes or any(value is random or value is np.random for value in values.values()):
            found |= {"random": random.getstate(), "numpy.random": pickle.dumps(np.random.get_state())}
        return found | {name: pickle.dumps(owner) for name, owner in owners.items() if isinstance(owner, GENERATORS)}


def assigned(name: str) -> GraphError:
    return GraphError(
        f"compile: the function assigns to {name!r} outside of it, which only its first call would "
        "do; keep it in a buffer of a module, or return the value and assign it outside"
    )


def _written(name: str) -> GraphError:
    return GraphError(
        f"compile: the function writes to {name!r} outside of it, which only its first call would do; keep it "
        "in a buffer of a module, or return the value and write it outside"
    )


def is_option(value: Any) -> bool:
    return isinstance(value, NUMBERS) or type(value) is tuple and all(isinstance(item, NUMBERS) for item in value)


def _key_of(value: Any, is_constant: Callable[[Tensor], bool], depth: int = MOST_DEPTH) -> Any:
    """Equal only where a plan of one is a plan of the other. depth: of lists within lists."""
    if isinstance(value, Tensor):
        version = value._memory.written if is_constant(value) and value._memory is not None else 0
        return id(value), id(value._data), value.requires_grad, value.grad is None, version
    if isinstance(value, NUMBERS):
        return type(value), repr(value)
    if isinstance(value, np.ndarray):
        held = value.tobytes() if value.nbytes <= MOST_BYTES and not value.dtype.hasobject else b""
        return id(value), value.shape, str(value.dtype), held
    if not isinstance(value, HOLDERS) or not depth:
        return id(value)
    keys = tuple(value) if isinstance(value, dict) else ()
    return id(value), len(value), keys, *[_key_of(item, is_constant, depth - 1) for item in _items(value)]


def _note_items(value: Any, watch: Any, is_constant: Callable[[Tensor], bool], depth: int = MOST_DEPTH) -> None:
    """Tell a Watch all that _key_of() looks at in a value."""
    if isinstance(value, Tensor):
        watch.tensor(value, is_constant(value))
    elif isinstance(value, NUMBERS) or not isinstance(value, (np.ndarray, *HOLDERS)) or not depth:
        return
    elif type(value) in (dict, list) or isinstance(value, tuple):
        if isinstance(value, dict):
            watch.options(value, ())
        elif isinstance(value, list):
            watch.items(value)
        for item in _items(value):
            _note_items(item, watch, is_constant, depth - 1)
    else:
        watch.answer(_key_of, value, is_constant, depth)


def _with_symbols(value: Any, symbols: Mapping[int, Symbol], depth: int = MOST_DEPTH) -> Any:
    """A tensor's symbol, a list or dict of such tensors with theirs in their places, or else the value itself.

    Tensors that are keys of a dict or in a set are their symbols, too: what is looked up there is one.
    """
    if isinstance(value, Tensor):
        return symbols.get(id(value), value)
    if not isinstance(value, HOLDERS) or not depth:
        return _Iterator() if _is_iterator(value) else value
    items = _items(value)
    found = [_with_symbols(item, symbols, depth - 1) for item in items]
    keys = [_with_symbols(key, symbols, 0) for key in value] if isinstance(value, (dict, set, frozenset)) else []
    if all(now is was for now, was in zip((*found, *keys), (*items, *(value if keys else ())), strict=False)):
        return value
    if isinstance(value, dict):
        made = copy.copy(value)
        made.clear()
        made.update(zip(keys, found, strict=True))
        return made
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(found)
    if isinstance(value, collections.deque):
        return type(value)(found, value.maxlen)
    return type(value)(keys or found)


def _is_iterator(value: Any) -> bool:
    """Whether it is one of Python's or of Cyx: what those of the user hold is looked at."""
    return isinstance(value, Iterator) and not isinstance(value, io.IOBase) and not _has_attributes(value)


class _Iterator:
    """What the function sees in place of an iterator while it is traced."""

    def __iter__(self) -> "_Iterator":
        return self

    def __next__(self) -> Any:
        raise GraphError(
            "compile: the function takes what comes next of an iterator outside of it, which only its first call would "
            "do; take it outside, and give it as an argument"
        )


def _id(value: Any) -> int:
    """Of a tensor's symbol the id of the tensor: what the function reads under this name while it is traced."""
    return id(value if getattr(value, "tensor", None) is None else value.tensor)


def _items(value: Any) -> list[Any]:
    """Of a list or dict that is not too long."""
    if not isinstance(value, HOLDERS) or len(value) > MOST_ITEMS:
        return []
    return list(value.values()) if isinstance(value, dict) else list(value)


def _all_items(value: Any, depth: int = MOST_DEPTH) -> Iterator[Any]:
    """And of those within it."""
    for item in _items(value) if depth else ():
        yield item
        yield from _all_items(item, depth - 1)


def codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of the functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def is_ours(value: Any) -> bool:
    """Whether it is a part of Cyx, NumPy or Python, and not of the user's program."""
    return _package_of(value) in ("cyxcore", "numpy", "builtins")


def _package_of(value: Any) -> str:
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) or ""
    return name.partition(".")[0]


@functools.lru_cache(4096)
def _is_installed(package: str) -> bool:
    """Whether a package is Python's or was installed, and so is no part of the user's program."""
    file = getattr(sys.modules.get(package), "__file__", None) or ""
    return package in sys.stdlib_module_names or "-packages" in file


def _has_attributes(value: Any) -> bool:
    """Whether it is an object of the user's program that may hold something."""
    if isinstance(value, (Module, Optimizer, FunctionType)):
        return True
    return not is_ours(type(value)) and (hasattr(value, "__dict__") or bool(_slots(value)))


def _slots(value: Any) -> list[str]:
    """The attributes of an object that are not in its dict."""
    named = [vars(base).get("__slots__", ()) for base in type(value).__mro__]
    return [name for names in named for name in ((names,) if isinstance(names, str) else names) if name != "__dict__"]


def _may_change(value: Any) -> bool:
    """Whether a place is looked at before each call: not what is a part of the program."""
    if isinstance(value, (Tensor, np.ndarray, *HOLDERS)):
        return True
    program = isinstance(value, (ModuleType, type, FunctionType, Module, Optimizer))
    return not (program or value is _NOTHING or is_ours(value))


def _is_read(builder: Builder, symbol: Symbol) -> bool:
    return any(symbol.home in node.inputs for node in builder.nodes)


def _can_be_read(x: Tensor, device: str) -> bool:
    """Whether a plan can read a tensor where it is."""
    here = x.device == device if device in OWN_MEMORY else type(x._data) is np.ndarray
    return here and x.dtype in CONSTANTS and x._data.size > 0 and bool(x._data.flags.c_contiguous)

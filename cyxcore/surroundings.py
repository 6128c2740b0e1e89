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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from types import BuiltinMethodType, CellType, CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np

from cyxcore.device import OWN_MEMORY
from cyxcore.eager import Tensor
from cyxcore.errors import GraphError
from cyxcore.func import flat
from cyxcore.gradients import check_ends_here
from cyxcore.nn.module import Module
from cyxcore.optimizer import Optimizer
from cyxcore.symbols import CONSTANTS, Builder, Number, Symbol

Array = np.ndarray[Any, Any]

MOST_ITEMS = 4096  # of a list, which may be the parameters of a model; what is longer holds data
MOST_DEPTH = 4  # of lists within lists
MOST_BYTES = 1 << 20  # of a NumPy array that is compared before each call; a larger one holds data
NUMBERS = (bool, int, float, str, type(None))
GLOBAL, ATTRIBUTE = ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL"), ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")
HOLDERS = (list, tuple, dict, set, frozenset, collections.deque)
GENERATORS = (np.random.Generator, np.random.RandomState, random.Random)
_NOTHING = object()
_OF_MODULES = frozenset(vars(Module())) | {"_hooks", "_label"}
_OPERATORS = frozenset(name for name in dir(operator) if name.startswith("__")) | {
    "__call__", "__enter__", "__exit__", "__float__", "__int__", "__bool__", "__iter__", "__len__", "__getattr__",
    "__radd__", "__rsub__", "__rmul__", "__rtruediv__", "__rpow__",
}  # fmt: skip


class Place(NamedTuple):
    """Where a value is read: a variable of an enclosing function, a name in a dict, a number in a list, an attribute of
    a class or of an object with __slots__, or one of a tuple of arguments.

    Those are the defaults of a function, or what a functools.partial has; `back` is the place from the end, below 0.
    """

    holder: Any
    name: Any
    back: int = 0

    @property
    def key(self) -> tuple[int, Any]:
        return id(self.holder), self.name

    def read(self) -> Any:
        """The value that is there now."""
        if isinstance(self.holder, type):
            return vars(self.holder).get(self.name, _NOTHING)
        if self.back:
            given = _arguments_of(self.holder)
            return given[self.back] if len(given) >= -self.back else _NOTHING
        if isinstance(self.holder, dict):
            return self.holder.get(self.name, _NOTHING)
        if isinstance(self.holder, list):
            return self.holder[self.name] if self.name < len(self.holder) else _NOTHING
        if type(self.holder) is not CellType:
            return getattr(self.holder, self.name, _NOTHING)
        try:
            return self.holder.cell_contents
        except ValueError:  # nothing was assigned yet
            return _NOTHING

    def write(self, value: Any) -> None:
        if not isinstance(self.holder, (dict, list, CellType)) and not self.back:
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


class StateFound(Exception):  # noqa: N818 - no error: the function assigns tensors where it was not known to
    pass


class Change(NamedTuple):
    """A place to which a function has assigned while it was traced."""

    place: Place
    was: Any
    now: Any


class Inside(NamedTuple):
    """What a function sees of its surroundings while it is traced, and what it leaves there."""

    known: dict[int, tuple[Tensor, Symbol]]  # by the ids of the tensors
    assigned: list[Change]  # when it has ended

    def outputs(self, builder: Builder) -> "tuple[list[Symbol], Assigned]":
        """The values that were assigned, and what puts those of a call where they belong."""
        outputs: dict[int, Symbol] = {}  # each once, as the same tensor
        numbers: dict[int, int] = {}
        puts = []
        for place, _, now in self.assigned:
            leaves, rebuild = flat(now)
            for leaf in leaves:
                if isinstance(leaf, (Tensor, Symbol)) and id(leaf) not in numbers:
                    numbers[id(leaf)] = len(outputs)
                    outputs[id(leaf)] = builder.lift(leaf)
            leaves = [_Output(numbers[id(leaf)]) if id(leaf) in numbers else leaf for leaf in leaves]
            puts.append((place, leaves, flat(rebuild(leaves))[1]))  # which holds no symbols
        return list(outputs.values()), Assigned(puts, len(outputs))


class _Output:
    """Stands for one of the tensors that a plan gives."""

    def __init__(self, number: int) -> None:
        self.number = number


class Assigned(NamedTuple):
    """What a function assigns outside of it in each call: to which places, what, and how it is put together."""

    puts: list[tuple[Place, list[Any], Callable[[Sequence[Any]], Any]]]
    tensors: int  # how many

    def put(self, tensors: Sequence[Tensor]) -> None:
        for place, leaves, rebuild in self.puts:
            place.write(rebuild([tensors[x.number] if type(x) is _Output else x for x in leaves]))


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
        self._places: dict[tuple[int, Any], Place] = {}
        self._state: dict[tuple[int, Any], Place] = {}  # to which the function assigns tensors
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
        made = Surroundings(self.function, *self._given)
        made._state = self._state
        made._places |= self._state
        return made

    def is_outdated(self) -> bool:
        """Whether a function, a module or an optimiser that was found is another one by now, or came since then.

        Objects in lists too, whose attributes are looked at.
        """
        if any(place.read() is not value for place, value in self._program if place.key not in self._state):
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
        self._places[place.key] = place
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

    def state(self) -> tuple[list[Tensor], Any]:
        """The tensors in the places to which the function assigns some, each once; and what else makes another plan.

        These a plan is given in each call, as it is its arguments.
        """
        if not self._state:
            return [], ()
        held: dict[int, Tensor] = {}
        form = [_form(place.read(), held) for place in self._state.values()]
        return list(held.values()), (*form, *[(x.requires_grad, x._hooks is None) for x in held.values()])

    @property
    def has_state(self) -> bool:
        """Whether the function assigns tensors to places outside of it, as far as is known."""
        return bool(self._state)

    def names_of_state(self, table: dict[str, Any]) -> list[str]:
        """What of a dict of attributes is state."""
        return [name for holder, name in self._state if holder == id(table)]

    def key(self) -> tuple[Any, ...]:
        """Equal only while everything but the state is the same object, and every number the same, as long as kept()
        is.
        """
        key_of = self._key_of()
        return tuple([key_of(place.read()) for place in self._places.values() if place.key not in self._state])

    def _key_of(self) -> Callable[[Any], Any]:
        is_constant = self._constants()
        state = {id(x): number for number, x in enumerate(self.state()[0])}
        return lambda value: _key_of(value, is_constant, state)

    def _constants(self) -> Callable[[Tensor], bool]:
        """Says of which tensors the numbers are a part of a plan, instead of being read where they are."""
        ours = {id(x) for module in self.modules for x in (*module.parameters(), *module.buffers())}
        return lambda x: id(x) not in ours and (self.by_value or not _can_be_read(x, self._device))

    def note(self, watch: Any) -> None:
        """Tell a Watch all that is_outdated() and key() look at."""
        for place, _ in self._program:
            if place.key not in self._state:
                place.note(watch)
        is_constant = self._constants()
        state = {id(x) for x in self.state()[0]}
        for place in self._places.values():
            if place.key in self._state:
                continue
            place.note(watch)
            value = place.read()
            _note_items(value, watch, is_constant)
            if state and any(id(item) in state for item in (value, *_all_items(value))):
                watch.place(None, "")  # state by another name stays when the state is another tensor: look in each call

    def kept(self) -> list[Any]:
        """What key() names by its id."""
        values = [place.read() for place in self._places.values()]
        values += [item for value in values for item in _all_items(value)]
        return [values, [value._data for value in values if isinstance(value, Tensor)]]

    @contextmanager
    def symbolic(
        self, builder: Builder, device: str, parts: Mapping[int, Symbol], state: Sequence[Symbol] = ()
    ) -> Iterator["Inside"]:
        """Within the block tensors are symbols, parameters of the graph.

        parts: the symbols of the modules' tensors by their ids, which the function may have by other names too. state:
        those of the tensors of state(). Raises GraphError where the function assigned to what it reads, which it would
        do in the first call alone, and StateFound where that was a tensor, in a place that is not known for it yet.
        """
        self._device = device
        places = list(self._places.values())
        before = [place.read() for place in places]
        is_constant, inside = self._constants(), Inside({}, [])
        symbols = dict(parts)
        for value, symbol in zip(self.state()[0], state, strict=True):
            symbols[id(value)], symbol.tensor = symbol, value
        for value in (item for held in before for item in (held, *_all_items(held))):
            free = isinstance(value, Tensor) and id(value) not in symbols
            if free and not self.by_value and _can_be_read(value, device):
                name = f"tensor.{len(inside.known)}"
                symbol = builder.param(name, value.shape, {"kind": "zeros"}, value.requires_grad, value.dtype)
                symbol.tensor = value
                inside.known[id(value)], symbols[id(value)] = (value, symbol), symbol
        self.replaced = bool(inside.known)
        there = [_with_symbols(value, symbols) for value in before]
        replaced = [
            (place, was, symbol) for place, was, symbol in zip(places, before, there, strict=True) if was is not symbol
        ]
        replaced += [(place, was, _Iterator()) for place, was in self._program if _is_iterator(was)]
        held = [_key_of(value, is_constant) for value in there]
        contents = list(map(_contents, there))
        tables = self._tables()
        states = self._states_of_draws()
        changes: list[list[Change]] = []  # of each place
        elsewhere: list[Change] = []
        written: list[bool] = []  # of each place whether what it holds was
        try:
            for place, _, symbol in replaced:
                place.write(symbol)
            for place, value in self._program:
                if place.name == "id" and value is _NOTHING and "__builtins__" in place.holder:
                    place.write(_id)
            yield inside
        finally:
            after = [place.read() for place in places]
            changes += [list(_changes(*row)) for row in zip(places, before, contents, after, strict=True)]
            written += [_key_of(value, is_constant) != key for value, key in zip(there, held, strict=True)]
            elsewhere += self._other_changes(tables)
            for place, was, _ in (*replaced, *chain.from_iterable(changes), *elsewhere):
                place.write(was)
            for place, value in self._program:
                if value is _NOTHING and (made := place.read()) is not _NOTHING:
                    place.write(_NOTHING)
                    if isinstance(made, NUMBERS) and made is not None:
                        raise assigned(place.name)
        for name, kept in self._states_of_draws().items():
            if kept != states.get(name):
                raise GraphError(
                    f"compile: the function draws from {name}, which only its first call would do; draw with cx.rand, "
                    "cx.randn or a cx.random.Generator, or give what is drawn as an argument"
                )
        for place, is_written, found in zip(places, written, changes, strict=True):
            if is_written and not (found and all(map(_is_state, found))):
                raise _written(place.name)
            if found and found[0].place is place and not (_is_state(found[0]) or _is_dropped(found[0])):
                raise assigned(place.name)
        for change in elsewhere:
            if not _is_state(change):
                raise assigned(change.place.name)
        inside.assigned.extend(filter(_is_state, (*chain.from_iterable(changes), *elsewhere)))
        for place, was, now in inside.assigned:
            read = [symbols[id(each)] for each in flat(was)[0] if id(each) in symbols]
            check_ends_here(builder, place.name, read, [each for each in flat(now)[0] if isinstance(each, Symbol)])
        new = {change.place.key: change.place for change in inside.assigned if change.place.key not in self._state}
        if new:
            self._state |= new
            self._places |= new
            raise StateFound

    def _tables(self) -> list[tuple[dict[str, Any], dict[str, Any], Collection[str]]]:
        """What holds attributes of objects, also those that the code does not read; what each has now, and the names of
        buffers, which are looked at elsewhere.
        """
        objects = [value for value in self._objects if not isinstance(value, (ModuleType, type))]
        tables = [(vars(value), ()) for value in objects if hasattr(value, "__dict__")]
        tables += [(value._buffers, tuple(value._buffers)) for value in objects if isinstance(value, Module)]
        return [(table, dict(table), known) for table, known in tables]

    def _other_changes(self, tables: list[tuple[dict[str, Any], dict[str, Any], Collection[str]]]) -> list["Change"]:
        """Assignments of symbols to what is in no place that is read, or where nothing was before."""
        found = {}
        for table, then, known in tables:
            for name, value in table.items():
                if name not in known and value is not then.get(name, _NOTHING):
                    place = Place(table, name)
                    found[place.key] = Change(place, then.get(name, _NOTHING), value)
        for place, was in self._program:
            found[place.key] = Change(place, was, place.read())
        return [
            change
            for key, change in found.items()
            if key not in self._places and change.now is not change.was and _holds_symbols(change.now)
        ]

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


def _key_of(
    value: Any,
    is_constant: Callable[[Tensor], bool],
    state: Mapping[int, int] = MappingProxyType({}),
    depth: int = MOST_DEPTH,
) -> Any:
    """Equal only where a plan of one is a plan of the other. state: the numbers of its tensors by their ids. depth: of
    lists within lists.
    """
    if isinstance(value, Tensor):
        if id(value) in state:
            return "state", state[id(value)]
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
    items = [_key_of(item, is_constant, state, depth - 1) for item in _items(value)]
    return id(value), len(value), keys, *items


def _form(value: Any, held: dict[int, Tensor], depth: int = MOST_DEPTH) -> Any:
    """What makes another plan of what is in a place of the state. held: the tensors so far, by their ids."""
    if isinstance(value, Tensor):
        held.setdefault(id(value), value)
        return list(held).index(id(value))
    if isinstance(value, NUMBERS):
        return type(value), repr(value)
    if not isinstance(value, HOLDERS) or not depth:
        return type(value), id(value)
    keys = tuple(value) if isinstance(value, dict) else ()
    return type(value), keys, *[_form(item, held, depth - 1) for item in _items(value)]


def _named(value: Any) -> dict[Any, Any]:
    """The items of a list by their places, and of a dict by their names: none of one with other keys, or a long one."""
    if isinstance(value, list):
        return dict(enumerate(_items(value)))
    is_named = isinstance(value, dict) and all(isinstance(key, NUMBERS) for key in value)
    return dict(value) if is_named and len(value) <= MOST_ITEMS else {}


class _Contents(NamedTuple):
    """A value, and what a list or dict had, so that changes in it can be told."""

    value: Any
    items: "dict[Any, _Contents]"


_ABSENT = _Contents(_NOTHING, {})


def _contents(value: Any, depth: int = MOST_DEPTH) -> _Contents:
    named = _named(value) if depth else {}
    return _Contents(value, {name: _contents(item, depth - 1) for name, item in named.items()})


def _changes(place: Place, was: Any, then: _Contents, now: Any) -> Iterator[Change]:
    """What was assigned to a place, or to lists and dicts in it: of those that have lost nothing, of lists of the same
    length.

    was: what is in it outside of the trace. then: what the function saw there first.
    """
    if now is not then.value:
        yield Change(place, was, now)
        return
    named = _named(now)
    if not then.items.keys() <= named.keys() or isinstance(now, list) and len(now) != len(then.items):
        return
    for name, item in named.items():
        inner = Place(was, name)
        before = then.items.get(name, _ABSENT)
        yield from _changes(inner, _NOTHING if before is _ABSENT else inner.read(), before, item)


def _is_state(change: Change) -> bool:
    """Whether tensors were assigned, of which a plan assigns those of each call."""
    place, was, now = change
    leaves = flat(now)[0]
    is_trained = isinstance(was, Tensor) and was.requires_grad and was._op is None
    return (
        any(isinstance(leaf, (Tensor, Symbol)) for leaf in leaves)
        and all(isinstance(leaf, (Tensor, Symbol, *NUMBERS)) and not isinstance(leaf, Number) for leaf in leaves)
        and not (place.back or is_trained)
    )


def _is_dropped(change: Change) -> bool:
    """Whether what was there before is put back, and nothing is lost by it: a number, or what is begun in each call."""
    _, was, now = change
    if isinstance(was, NUMBERS):
        return isinstance(now, NUMBERS) and (type(now), repr(now)) == (type(was), repr(was))
    return not isinstance(was, Tensor) and not _holds_symbols(now)


def _holds_symbols(value: Any) -> bool:
    """Whether it is a symbol, or has some."""
    held = getattr(value, "__dict__", {}).values() if not isinstance(value, (Tensor, Symbol)) else ()
    return any(isinstance(item, Symbol) for item in (value, *_all_items(value), *held))


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
        watch.answer(_key_of, value, is_constant, {}, depth)


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


def _can_be_read(x: Tensor, device: str) -> bool:
    """Whether a plan can read a tensor where it is."""
    here = x.device == device if device in OWN_MEMORY else type(x._data) is np.ndarray
    return here and x.dtype in CONSTANTS and x._data.size > 0 and bool(x._data.flags.c_contiguous)

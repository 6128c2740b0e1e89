"""What all optimisers share: groups of parameters with their options, state by parameter, one step, and its saving.

One of your own is a subclass with a step(), which writes into parameters and keeps what it likes in self.state[p].
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from cyxcore import torchstates, updates
from cyxcore.eager import Tensor, no_grad
from cyxcore.errors import ShapeError, SpecError
from cyxcore.functional.basic import where
from cyxcore.held import scalar, watched
from cyxcore.infer import stretches
from cyxcore.optimizerhooks import Hooked
from cyxcore.spec import OptimizerSpec
from cyxcore.values import Value

Array = np.ndarray[Any, Any]
Group = dict[str, Any]
Parameters = Iterable[Tensor] | Iterable[Group] | Iterable[tuple[str, Tensor]]
SCHEDULED = frozenset("initial_lr max_lr min_lr base_momentum max_momentum".split())  # what schedules keep in groups
KEPT = frozenset("name lr_scale lr_mult layer_id".split())  # what programs keep in groups for themselves
NO_OPTIONS = SCHEDULED | KEPT | {"params", "param_names", "lr"}  # of a rule
MOST_WATCHED = 5  # updates of a parameter that are watched before it is one that cannot be replayed


class _Group(NamedTuple):
    """What a group's options were, without the learning rate, and what follows from them."""

    options: dict[str, Any]
    lr: Any
    spec: OptimizerSpec


class _Known(NamedTuple):
    """A parameter's update as it was watched: what it was of, and its replay, or how often there was none."""

    parameter: Tensor
    options: dict[str, Any]
    replay: Any


class _Changes:
    """changed: another object after each change of a state, at which compiled steps look."""

    def __init__(self) -> None:
        self.changed = object()


class _Noted(dict[Any, Any]):
    """Notes whatever is put into it anew or taken out of it."""

    def __init__(self, held: Mapping[Any, Any], changes: _Changes) -> None:
        super().__init__(held)
        self.changes = changes

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)  # a copy of its own is noted by the State that it is put into


def _noting(verb: str) -> Callable[..., Any]:
    def changing(self: _Noted, *given: Any, **named: Any) -> Any:
        self.changes.changed = object()
        return getattr(dict, verb)(self, *given, **named)

    return changing


for _verb in ("clear", "pop", "popitem", "setdefault", "update", "__delitem__", "__ior__", "__setitem__"):
    setattr(_Noted, _verb, _noting(_verb))


class State(_Noted):
    """What rules keep, by place of the parameter and by name. Dicts that are put into it are copied."""

    def __init__(self, held: Mapping[int, Mapping[str, Any]] | None = None) -> None:
        changes = _Changes()
        super().__init__({place: _Noted(slots, changes) for place, slots in (held or {}).items()}, changes)

    def __reduce__(self) -> tuple[Any, ...]:
        return State, ({place: dict(slots) for place, slots in self.items()},)

    def __setitem__(self, place: int, slots: Mapping[str, Any]) -> None:
        super().__setitem__(place, _Noted(slots, self.changes))

    def update(self, *given: Any, **named: Any) -> None:
        for place, slots in dict(*given, **named).items():
            self[place] = slots

    def __ior__(self, given: Any) -> "State":  # type: ignore[misc]
        self.update(given)
        return self

    def setdefault(self, place: int, slots: Mapping[str, Any] | None = None) -> Any:
        if place not in self:
            self[place] = {} if slots is None else slots
        return self[place]

    def of_rule(self, place: int) -> Any:
        """What a rule keeps for a parameter. A rule's own state is no change."""
        if place not in self:
            dict.__setitem__(self, place, _Noted({}, self.changes))
        return self[place]


class _ByParameter(dict[int, dict[str, Any]]):
    """The state that an optimiser of somebody else's keeps: also by the parameter itself, which then has some."""

    def __init__(self, optimizer: "Optimizer", held: Mapping[int, dict[str, Any]] | None = None) -> None:
        super().__init__(held or {})
        self.optimizer = optimizer

    def place(self, key: Any) -> Any:
        if not isinstance(key, Tensor):
            return key
        return next((place for place, p in enumerate(self.optimizer.parameters) if p is key), None)

    def __missing__(self, key: Any) -> dict[str, Any]:
        if (place := self.place(key)) is None or isinstance(key, int):
            raise KeyError(key)
        return self.setdefault(place, {})

    def __contains__(self, key: Any) -> bool:
        return super().__contains__(self.place(key))


NOT_NEGATIVE = frozenset({"weight_decay", "momentum", "eps", "alpha", "lr_decay", "initial_accumulator_value"})


class Optimizer(Hooked):
    """Holds groups of parameters with their options, and per parameter the state of its update rule.

    params: tensors, (name, tensor) pairs, or groups {"params": of these, option: value, …} whose options go before
    those of the optimiser. defaults: the options of an optimiser with a step() of its own.
    `param_groups` may be changed between steps, as schedulers do with "lr".
    cycles_momentum: a schedule changes it from step to step, so that it is given to each step like the learning rate.
    """

    rule: ClassVar[str] = ""  # of cyxcore/updates.py; without one there is a step() of its own
    options: ClassVar[Mapping[str, str]] = {}  # name here -> field of OptimizerSpec
    unread: ClassVar[frozenset[str]] = frozenset()  # options of others whose state is taken over without them

    def __init__(self, params: Parameters, defaults: Mapping[str, Any] | None = None, **options: Any) -> None:
        self.defaults: Group = {**(defaults or {}), **options}
        self.param_groups: list[Group] = []
        self.state: dict[int, dict[str, Any]] = State()  # by place of the parameter, counted through the groups
        if not self.rule:
            self.state = _ByParameter(self)
        self.steps = 0
        self.missed: dict[int, int] = {}  # by place: in how many of the steps it had no gradient, if in any
        self.cycles_momentum = False
        self.unless: Any = None  # a bool of a compiled step: whether its updates are left out
        self.irregular: set[int] = set()  # places that counted like all others at first: plans may still do so
        self._groups: dict[int, _Group] = {}
        self._known: dict[int, _Known] = {}  # by place
        given: list[Any] = list(params)
        if not given:
            raise SpecError(f"{type(self).__name__}: expected at least one parameter, got none")
        for group in given if isinstance(given[0], Mapping) else [{"params": given}]:
            self.add_param_group(group)

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Raises SpecError for an option this optimiser lacks, and for a parameter that is in a group already."""
        name = type(self).__name__
        if unknown := sorted(set(group) - {"params", "param_names", *self.defaults} - SCHEDULED - KEPT):
            raise SpecError(
                f"{name}: unknown options {unknown} of a group; it has {sorted(self.defaults)}, and what a program "
                f"keeps there for itself may be called {', '.join(sorted(KEPT))}"
            )
        given = group.get("params", ())
        added = {**self.defaults, **group, "params": [given] if isinstance(given, Tensor) else list(given)}
        if pairs := [one for one in added["params"] if isinstance(one, tuple) and len(one) == 2]:
            if len(pairs) != len(added["params"]):
                raise SpecError(f"{name}: expected names for all parameters of a group, or for none")
            added["params"], added["param_names"] = [p for _, p in pairs], [own for own, _ in pairs]
        before = self.parameters
        known = {id(p) for p in before}
        for parameter in added["params"]:
            if not isinstance(parameter, Tensor):
                raise SpecError(f"{name}: expected tensors, got {type(parameter).__name__}")
            if id(parameter) in known:
                raise SpecError(f"{name}: a parameter of shape {parameter.shape} is in two groups")
            known.add(id(parameter))
        if not added["params"]:
            raise SpecError(f"{name}: expected at least one parameter in each group")
        check_rate(name, added.get("lr", 0.0))
        if self.rule:
            check_options(name, added)
            self._spec(added)
        self.param_groups.append(added)
        if self.steps:
            self.missed.update({len(before) + i: self.steps for i in range(len(added["params"]))})

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for number, group in enumerate(self.param_groups):
            own = [f"    {name}: {value}" for name, value in sorted(group.items()) if name != "params"]
            lines += [f"Parameter Group {number}", *own, ""]
        return "\n".join([*lines[:-1], ")"])

    @property
    def parameters(self) -> list[Tensor]:
        """Of all groups, in order."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @property
    def lr(self) -> float:
        """Of the first group; setting it sets that of every group."""
        return float(self.param_groups[0]["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        for group in self.param_groups:
            group["lr"] = value

    def zero_grad(self, set_to_none: bool = True) -> None:
        """No gradients, whatever set_to_none says: there are none until the next backward pass."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient. closure: computes gradients and the loss before it."""
        if not self.rule:
            raise NotImplementedError(f"{type(self).__name__}: an optimiser without a rule needs a step() of its own")
        loss = None if closure is None else closure()
        self._update()
        return loss

    def step_unless(self, found: Any) -> Any:
        """step() of a compiled step, which leaves all as it is where `found`, a bool, is true."""
        self.unless = found
        try:
            return self.step()
        finally:
            self.unless = None

    def _update(self) -> None:
        self.steps += 1
        place, missed = 0, self.missed
        with no_grad():
            for number, group in enumerate(self.param_groups):
                options, _, spec = self._group(number, group)
                scalars: dict[Any, tuple[Any, ...]] = {}  # by dtype, and by place where steps were missed
                for p in group["params"]:
                    g = p.grad
                    if g is None:
                        self.miss(place)
                    else:
                        counted = (p.dtype, place) if place in missed else p.dtype
                        if counted not in scalars:
                            scalars[counted] = self.scalars(number, p, place if place in missed else None)
                        known, given = self._known.get(place), (g, *scalars[counted])
                        if (
                            known is None
                            or known.options is not options
                            or known.parameter is not p
                            or type(known.replay) is int
                            or not known.replay.run(given, self.state.get(place, {}))
                        ):
                            self._update_one(place, p, given, options, spec)
                    place += 1

    def _update_one(self, place: int, p: Any, given: tuple[Any, ...], options: dict[str, Any], spec: Any) -> None:
        """One parameter by its rule, which is watched: from then on the calls it came to are made at once."""
        if not isinstance(given[0], Value):
            raise SpecError(
                f"{type(self).__name__}: expected a tensor as the gradient of parameter {place}, got "
                f"{type(given[0]).__name__}"
            )
        slot = functools.partial(self.slot, place, p)

        def update(g: Any, lr: Any, step: Any, momentum: Any = None) -> dict[Any, Any]:
            return self.next_values(p, g, slot, lr, step, spec, momentum)

        known = self._known.get(place)
        tries = known.replay if known is not None and type(known.replay) is int and known.options is options else 0
        if not isinstance(p, Tensor) or tries >= MOST_WATCHED:
            changed = update(*given)
        else:
            changed, replay = watched(update, given, self.state, place)
            self._known[place] = _Known(p, options, tries + 1 if replay is None else replay)
        for old, new in changed.items():
            if new is not old:
                old._assign(new if self.unless is None else where(self.unless, old, new))

    def next_values(
        self, p: Any, g: Any, slot: Any, lr: Any, step: Any, spec: OptimizerSpec, momentum: Any = None
    ) -> dict[Any, Any]:
        """{old: new} of a parameter and its state, see cyxcore.updates."""
        return updates.next_values(p, g, slot, lr, step, spec, momentum)

    def _group(self, number: int, group: Group) -> _Group:
        """The options of a group: the same objects as long as they are equal."""
        options = self.constants(group)
        known = self._groups.get(number)
        if known is None or known.options != options or known.lr != group["lr"]:
            same = known is not None and known.options == options
            options = known.options if known is not None and same else options
            known = self._groups[number] = _Group(options, group["lr"], self._spec(group))
        return known

    def constants(self, group: Group) -> dict[str, Any]:
        """The options of a group that are no input of a step."""
        options = {
            name: tuple(value) if type(value) is list else value
            for name, value in group.items()
            if name not in NO_OPTIONS
        }
        if self.cycles_momentum and self.momentum_of(group) is not None:
            options.update({"betas": (None, *options["betas"][1:])} if "betas" in options else {"momentum": None})
        return options

    def momentum_of(self, group: Group) -> float | None:
        """The momentum (or beta1) of a group that is an input of a step; without any, nothing is kept for it."""
        return (group["betas"][0] if "betas" in group else group["momentum"]) or None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_groups": {}, "_known": {}}  # what is known is of these very tensors

    def miss(self, place: int) -> None:
        """A parameter has no gradient in this step: its own steps, which moments are corrected by, are one fewer."""
        if place not in self.missed and place in self.state:
            self.irregular.add(place)
        self.missed[place] = self.missed.get(place, 0) + 1

    def scalars(self, group: int, p: Any, late: int | None) -> tuple[Any, ...]:
        """(learning rate of a group, number of this step, its momentum where that is cycled), of p's dtype.

        late: p's place, if it missed any step.
        """
        steps = self.steps if late is None else self.steps - self.missed[late]
        lr, step = self.param_groups[group]["lr"], scalar(steps, p.dtype)
        short = scalar(lr, p.dtype) if type(lr) is float else None
        both = (
            Tensor(np.array(lr, p.dtype)) if short is None else short,
            Tensor(np.array(steps, p.dtype)) if step is None else step,
        )
        momentum = self.momentum_of(self.param_groups[group]) if self.cycles_momentum else None
        return both if momentum is None else (*both, Tensor(np.array(momentum, p.dtype)))

    def slot(self, place: int, p: Any, kind: str, start: float = 0.0, shape: tuple[int, ...] | None = None) -> Any:
        """State of one parameter; see cyxcore.updates.Slot."""
        state = self.state.of_rule(place) if isinstance(self.state, State) else self.state.setdefault(place, {})
        if kind not in state:
            made = Tensor(_beside(p, np.full((), start, p.dtype), p.shape if shape is None else shape)).to(p.device)
            dict.__setitem__(state, kind, made)  # which is no change that a compiled step has to see
        return state[kind]

    def _spec(self, group: Group) -> OptimizerSpec:
        named = {self.options.get(key, key): value for key, value in group.items() if key not in NO_OPTIONS}
        spec = OptimizerSpec(name=self.rule, learning_rate=group["lr"], **named)  # type: ignore[arg-type]
        updates.check(spec)
        return spec

    # state ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that step() depends on besides the parameters: {"steps", "state", "param_groups"}; arrays, not copies.

        "missed" is there where parameters had no gradient in some of the steps: in how many, by place.
        """
        groups, first = [], 0
        for group in self.param_groups:
            count = len(group["params"])
            groups.append({**group, "params": list(range(first, first + count))})
            first += count
        state = {
            place: {name: value.numpy() if isinstance(value, Tensor) else value for name, value in own.items()}
            for place, own in self.state.items()
        }
        missed = {"missed": dict(self.missed)} if self.missed else {}
        return {"steps": self.steps, "state": state, "param_groups": groups, **missed}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what state_dict() gave, here or in PyTorch, as copies. Raises SpecError, ShapeError for others."""
        if torchstates.is_torchs(self.rule, state_dict):
            state_dict = torchstates.translated(self.rule, state_dict)
        state = check_state(state_dict)
        sizes = [len(group["params"]) for group in state["param_groups"]]
        own = [len(group["params"]) for group in self.param_groups]
        if sizes != own:
            raise SpecError(f"load_state_dict: expected groups of {own} parameters, got {sizes}")
        for group, given in zip(self.param_groups, state["param_groups"], strict=True):
            if foreign := sorted(set(given) - set(group) - self.unread - NO_OPTIONS):
                raise SpecError(
                    f"load_state_dict: expected the state of {type(self).__name__}, got one of another optimiser, with "
                    f"the options {foreign}"
                )
        if self.rule:
            self._own_state(state)
        parameters = self.parameters
        taken: dict[int, dict[str, Any]] = {}
        for place, arrays in state["state"].items():
            if not 0 <= place < len(parameters):
                raise SpecError(f"load_state_dict: expected places 0..{len(parameters) - 1}, got {place}")
            p = parameters[place]
            for name, array in arrays.items():
                if self.rule and not stretches(array.shape, p.shape):
                    raise ShapeError(f"load_state_dict: {name} of {place}: expected {p.shape}, got {array.shape}")
            taken[place] = {name: _taken(array, p, bool(self.rule)) for name, array in arrays.items()}
        for place, slots in self.state.items():  # a compiled step goes on to read the tensors that are there
            for name, held in slots.items():
                if self.rule and name in taken.get(place, {}):
                    held._assign(taken[place][name])
                    taken[place][name] = held
        for group, given in zip(self.param_groups, state["param_groups"], strict=True):
            group.update({key: value for key, value in given.items() if key != "params" and key not in self.unread})
        self.steps, self.state, self.missed = int(state["steps"]), State(taken), dict(state["missed"])
        self.irregular = set()
        if not self.rule:
            self.state = _ByParameter(self, taken)

    def _own_state(self, state: Mapping[str, Any]) -> None:
        """Raises SpecError where no name of what was kept for a parameter is one of this rule."""
        place = 0
        for group, given in zip(self.param_groups, state["param_groups"], strict=True):
            merged = {key: value for key, value in {**group, **given}.items() if key not in self.unread}
            for p in group["params"]:
                found = set(state["state"].get(place, ()))
                own = self._kept(len(p.shape), self._spec(merged)) if found else found
                if own and not found & own:
                    raise SpecError(
                        f"load_state_dict: expected the state of {type(self).__name__}, which keeps "
                        f"{', '.join(sorted(own))}, got {', '.join(sorted(found))} of another optimiser"
                    )
                place += 1

    def _kept(self, axes: int, spec: OptimizerSpec) -> set[str]:
        """The names of the state that a rule keeps for a parameter of so many axes."""
        names: set[str] = set()

        def slot(kind: str, start: float = 0.0, shape: tuple[int, ...] | None = None) -> Any:
            names.add(kind)
            return Tensor(np.full((1,) * axes if shape is None else shape, start, np.float32))

        p, g = (Tensor(np.ones((1,) * axes, np.float32)) for _ in range(2))
        one = Tensor(np.array(1.0, np.float32))
        with no_grad():
            self.next_values(p, g, slot, one, one, spec)
        return names


PAGE_BYTES = 4096


def _beside(p: Tensor, value: Array, shape: tuple[int, ...]) -> Array:
    """An array of a shape, of the state of a parameter. It begins as far into a page as that does: an update loads from
    several arrays and stores to several, and a load waits for an earlier store whose address ends in the same 12 bits.
    """
    like = p._data
    size_bytes = math.prod(shape) * value.itemsize
    if not isinstance(like, np.ndarray) or size_bytes < PAGE_BYTES:
        made = np.empty(shape, value.dtype)
    else:
        memory = np.empty(size_bytes + PAGE_BYTES, np.uint8)
        first = (like.ctypes.data - memory.ctypes.data) % PAGE_BYTES
        made = memory[first : first + size_bytes].view(value.dtype).reshape(shape)
    made[...] = value
    return made


def _taken(value: Any, p: Tensor, by_rule: bool) -> Any:
    """What is kept for a parameter, from what was saved: of its dtype, where a rule kept it."""
    if by_rule:
        given = np.asarray(value, p.dtype)
        return Tensor(_beside(p, given, given.shape)).to(p.device)
    held = value.numpy() if isinstance(value, Tensor) else value
    return Tensor(held.copy()).to(p.device) if isinstance(held, np.ndarray) else held


def check_state(state: Any) -> dict[str, Any]:
    """The state, its places as numbers. Raises SpecError for what is no optimiser's state dict."""
    if not isinstance(state, Mapping) or not {"steps", "state", "param_groups"} <= state.keys():
        got = ", ".join(sorted(map(str, state))) or "nothing" if isinstance(state, Mapping) else type(state).__name__
        raise SpecError(
            "load_state_dict: expected what an optimiser's state_dict() gives, with steps, state and param_groups, got "
            f"{got}"
        )
    if not isinstance(state["steps"], (int, np.integer)):
        raise SpecError(f"load_state_dict: expected steps to be a number, got {state['steps']!r}")
    for group in state["param_groups"]:
        check_rate("load_state_dict", group.get("lr", 0.0))
    try:
        missed = {int(place): int(count) for place, count in state.get("missed", {}).items()}
        return {**state, "state": {int(place): own for place, own in state["state"].items()}, "missed": missed}
    except ValueError:
        places = sorted(map(str, state["state"]))
        raise SpecError(f"load_state_dict: expected places to be numbers, got {places}") from None


def check_options(name: str, group: Mapping[str, Any]) -> None:
    """Raises SpecError for options that no rule has a meaning for, as PyTorch does."""
    for option in NOT_NEGATIVE & set(group):
        if isinstance(value := group[option], (int, float)) and not value >= 0.0:
            raise SpecError(f"{name}: expected {option} of at least 0, got {value!r}")
    betas = group.get("betas")
    if isinstance(betas, tuple | list):
        good = all(not isinstance(beta, (int, float)) or 0.0 <= beta < 1.0 for beta in betas)
        if len(betas) != 2 or not good:
            raise SpecError(f"{name}: expected two betas, each from 0 to below 1, got {betas!r}")


def check_rate(name: str, lr: Any) -> None:
    """Raises SpecError for a learning rate that is none."""
    if not lr >= 0.0 if isinstance(lr, (int, float, np.number)) else not isinstance(lr, Value):
        raise SpecError(f"{name}: expected a learning rate of at least 0, got {lr!r}")

"""compile of a training step: forward, loss, backward and update as one plan.

    @cx.compile
    def step(x, y):
        loss = cx.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

The function runs on symbols, twice per shape of its arguments and ever more rarely afterwards (cyxcore/retracing.py);
else its plan is replayed.
Modules and optimisers are found among the variables it uses. Parameters and the optimiser's state stay where they are
and are written in place, so compiled and plain steps may alternate, on the device where the parameters are.
Learning rates, and momenta that a schedule cycles, are read before each step. Modes, frozen parameters, replaced
modules and tensors, options of groups and whether gradients are on are looked at before each step too: what changed
makes another plan, and so does a number that a module holds (`dropout.p = 0.1`).
Gradients that are added to what is there, or that no
step of an optimiser follows, are left in `.grad` as by a plain step. Threads that share a compiled step take turns.
"""

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from itertools import chain
from operator import attrgetter
from threading import Lock
from typing import Any, NamedTuple, TypeVar

import numpy as np

from cyxcore import casting, forks, precision
from cyxcore import device as devices
from cyxcore import plan as planning
from cyxcore.arguments import NO_FORM, Form, Given, IsAPart, NumbersAsked, taken_apart, with_others
from cyxcore.becoming import noting_what_is_made
from cyxcore.eager import Tensor, copy_of, next_key
from cyxcore.errors import GradientError, GraphError
from cyxcore.forks import renew_in_children
from cyxcore.gradients import reached
from cyxcore.graph import Graph
from cyxcore.held import Repeating, Watch, is_recording, kinds, refill, repeat, wrote
from cyxcore.keys import Draw, Generator, drawing_again
from cyxcore.nn.module import Module
from cyxcore.optimizer import NO_OPTIONS, Optimizer, State
from cyxcore.plan import Plan
from cyxcore.retracing import Before
from cyxcore.surroundings import NUMBERS, Assigned, StateFound, Surroundings, assigned, codes, is_option, is_ours
from cyxcore.symbols import Builder, Symbol, ValueNeeded
from cyxcore.tracing import results_of, symbolic

Array = np.ndarray[Any, Any]
Made = TypeVar("Made")

_array_of, _is_training, _is_trained = attrgetter("_data"), attrgetter("training"), attrgetter("requires_grad")


_ONLY_TENSORS = {Tensor}
_OWN = ("training", "_label")  # attributes of a module that are looked at elsewhere, or only in a trace


@lru_cache(4096)
def _is_computed_with(classes: tuple[type, ...], name: str) -> bool:
    """Whether an attribute belongs to a layer of ours, or is named by a method of the user's classes, but __init__.

    A number that others keep in a module, such as a count of epochs, makes no new plan.
    """
    for base in classes[: classes.index(Module)]:
        if is_ours(base):
            return True
        for own, method in vars(base).items():
            code = getattr(inspect.unwrap(getattr(method, "fget", method)), "__code__", None)
            if code is not None and own != "__init__" and any(name in inner.co_names for inner in codes(code)):
                return True
    return False


def with_values(around: Surroundings, trace: Callable[[], Made], numbers: Collection[type] = ()) -> Made:
    """What a trace gives; where it asks for numbers of tensors around the function, these are constants.

    numbers: of which kinds there are some among the arguments that are read in each call. Raises NumbersAsked where
    there are, and the function cannot do without their values.
    """
    if numbers:
        try:
            return with_values(around, trace)
        except StateFound:
            raise
        except Exception as error:  # of a wrong step too: then the values do not help, and the next error is the one
            raise NumbersAsked from error
    if not around.by_value:
        try:
            return trace()
        except ValueNeeded:
            if not around.replaced:
                raise
        around.by_value = True
        try:
            return trace()
        except GraphError:
            around.by_value = False
            raise
    return trace()


class Bound:
    """The parts of modules, their tensors and options, looked up anew where something was replaced or left out."""

    def __init__(self, modules: list[Module]) -> None:
        self.modules = modules
        self.parts: list[Module] = []
        self.tensors: list[Tensor] = []
        self._tables: list[dict[str, Any]] = []
        self._found: list[int] = [-1]

    def key(self) -> tuple[Any, ...]:
        """Equal only while everything is the same object with the same array, as long as kept() is."""
        found = [*map(id, chain.from_iterable([table.values() for table in self._tables]))]
        if found != self._found:
            self.parts, self.tensors, self._tables = list(self.modules), [], []
            for part in self.parts:
                self.parts += part._modules.values()
                self.tensors += (*part._parameters.values(), *part._buffers.values())
                self._tables += (part._modules, part._parameters, part._buffers)
            self._found = found = [*map(id, chain.from_iterable([table.values() for table in self._tables]))]
        return (*found, *map(id, map(_array_of, self.tensors)), *self.options().items())

    def options(self) -> dict[tuple[int, str], str]:
        """The numbers and texts that each part computes with, and tuples of them."""
        return {
            (id(part), name): repr(value)
            for part in self.parts
            for name, value in vars(part).items()
            if name not in _OWN and is_option(value) and _is_computed_with(type(part).__mro__, name)
        }

    def check_unchanged(self, before: dict[tuple[int, str], str]) -> None:
        """before: options() before a trace. Raises GraphError for one that is another now."""
        for name, value in self.options().items():
            if before.get(name, value) != value:
                raise assigned(name[1])

    def note(self, watch: Any, around: Surroundings) -> None:
        """Tell a Watch all that key() has just looked at, and the modes of the parts, but for the state around."""
        for table in self._tables:
            watch.table(table)
        for part in self.parts:
            changing = around.names_of_state(vars(part))
            watch.options(vars(part), changing) if changing else watch.table(vars(part))
        for tensor in self.tensors:
            watch.tensor(tensor)

    def kept(self) -> list[Any]:
        """What key() names by its id: while it is kept nothing else gets that."""
        return [self.parts, self.tensors, [x._data for x in self.tensors]]


class Seen:
    """What a plan is chosen by besides the arguments, looked at anew where any of it is not as it was."""

    def __init__(self) -> None:
        self._key: Any = None
        self.watch: Any = None

    def key(self, look: Callable[[Any], Any]) -> Any:
        """What look(watch) returned, which tells the watch of all that it looks at."""
        if self.watch is not None and self.watch.holds():
            return self._key
        watch = Watch()
        key = look(watch)
        self._key, self.watch = key, watch if watch.holds() else None  # not where another thread came between
        return key

    def forget(self) -> None:
        self.watch = None


class Draws(list[tuple[Array, Draw | None]]):
    """Of a plan what it reads as random numbers, in the order in which they are drawn: a key, or what a draw gives."""

    def fill(self) -> None:
        """Draw anew, as plain calls would."""
        for array, draw in self:
            array[...] = next_key() if draw is None else devices.host(draw()._data)


def in_a_graph(builder: Builder, generator: Generator, draw: Draw) -> Symbol:
    """An input that stands for what a generator draws. The draw itself counts in the calls that follow."""
    step, value = generator.step, draw()
    generator.go_back(step)
    builder.draws.append(draw)
    return builder.input(f"drawn.{len(builder.draws) - 1}", value.shape, value.dtype)


def draws_of(plan: Plan, builder: Builder) -> Draws:
    """The draws of a plan that are in `keys` or `inputs`."""
    found = Draws()
    for place, draw in enumerate(builder.draws):
        array = plan.keys.get(place) if draw is None else plan.inputs.get(f"drawn.{place}")
        if array is not None:
            found.append((array, draw))
    return found


MOST_PLANS = 64  # of one compiled function: each has memory of its own


class _Uses:
    """In which use of a plan its function is traced again: the 2nd, 4th, 16th, 64th and so on."""

    left = 0

    def __init__(self, before: Before, repeat: Any) -> None:
        self._before, self._next = before, 2
        self.counter = self if repeat is None else repeat  # of which `left` says how many uses come before that
        self.counter.left = 0

    def look(self, again: Callable[[Before], None]) -> None:
        """Count one more, and trace again where it is time to; again() raises where the function has changed."""
        if self.counter.left > 0:
            self.counter.left -= 1
            return
        use = self._before.use = self._next
        again(self._before)
        self._next *= 2 if use == 2 else 4
        self.counter.left = self._next - use - 1


class Plans(dict[tuple[Any, ...], Any]):
    """The plans of a compiled function by their keys: of more than MOST_PLANS the one not used for longest goes."""

    _last: Any = None  # (key, plan, its uses) of the call before: most calls are of that shape again

    def __init__(self) -> None:
        super().__init__()
        self._uses: dict[tuple[Any, ...], _Uses] = {}

    def recent(self, key: tuple[Any, ...]) -> Any:
        """The plan of the call before, if that had this key and is not to be traced again; None otherwise."""
        if self._last is None or self._last[0] != key:
            return None
        _, plan, uses = self._last
        if uses.counter.left <= 0:
            return None
        uses.counter.left -= 1
        self._last = (key, plan, uses)  # of the newer objects, which are those of the next call
        return plan

    def of(self, key: tuple[Any, ...], make: Callable[[], tuple[Any, Before]], again: Callable[[Before], None]) -> Any:
        """The plan of a key, made where there is none, together with what the function did then.

        again: called with that in uses of the plan that are further and further apart.
        """
        self._last = None
        found = self.pop(key, None)
        if found is None:
            found, before = make()
            self[key], self._uses[key] = found, _Uses(before, found.repeat)
        else:
            self[key] = found
            self._uses[key].look(again)
            self._last = (key, found, self._uses[key])
        if len(self) > MOST_PLANS:
            oldest = next(iter(self))
            del self[oldest], self._uses[oldest]
        return found


class Gradients(NamedTuple):
    """What a plan does to `.grad` of parameters: where a step adds to what is there, or leaves it to another one."""

    before: list[tuple[Any, Array]]  # whose is read, and into what
    after: list[Tensor]  # whose are the last outputs
    gone: list[Tensor]  # that have none afterwards

    def taken(self, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The results without the gradients, which go to their parameters."""
        if not self.after and not self.gone:
            return results
        count = len(results) - len(self.after)
        for parameter, gradient in zip(self.after, results[count:], strict=True):
            parameter.grad = gradient
        for parameter in self.gone:
            parameter.grad = None
        return results[:count]


def _before(home: int) -> str:
    return f"gradient.{home}"


def _gradient_before(builder: Builder, parameters: dict[int, Tensor], home: int) -> Symbol | None:
    """The gradient that a parameter has before the step, as an input; None where it has none."""
    x = parameters.get(home)
    return None if x is None or x.grad is None else builder.input(_before(home), x.shape, x.dtype)


class _Traced(NamedTuple):
    plan: Plan
    rebuild: Callable[[tuple[Tensor, ...]], Any]  # what the step returns, of its outputs
    written: list[Tensor]  # parameters and buffers the plan writes in place
    fed: list[Array]  # for each argument what the plan reads
    stepped: list[tuple[Optimizer, list[int]]]  # and the places that have no gradient in it
    left_out: list[tuple[Optimizer, Array]]  # whether the step of an optimiser was, by what the plan found
    scalars: list[
        tuple[Optimizer, list[tuple[int | None, Array]], list[tuple[int, Array]]]
    ]  # (place, steps), (group, lr)
    momenta: list[tuple[Optimizer, int, Array]]  # of groups where they are cycled
    draws: Draws
    gradients: "Gradients"
    modes: list[tuple[Module, bool]]  # in which the function leaves parts of modules, where it changes them
    trained: list[tuple[Tensor, bool]]  # whether it leaves parameters trained, where it sets that
    assigned: Assigned  # of the outputs those before the gradients
    kept: list[Any]
    repeat: Any  # None where a call does more than a Repeat


def is_of_tensors(given: Given) -> bool:
    """Whether the arguments are tensors, one by one."""
    return not given[1] and _ONLY_TENSORS.issuperset(map(type, given[0]))


def look_for_symbols(modules: list[Module], around: Surroundings) -> None:
    """Raises IsAPart where something is compiled around a function of these."""
    held = (x for part in modules for x in (*part.parameters(), *part.buffers()))
    if any(isinstance(x, Symbol) for x in held) or around.holds_symbols():
        raise IsAPart


def again_with_values(compiled: Any, form: Form, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """A call in which numbers of one kind more are a part of the plan; if that fails too, the next ones are not."""
    before = compiled.fixed
    compiled.fixed = (*before, int if int in form.numbers else float)
    try:
        return compiled(*inputs, **named)
    except Exception:
        compiled.fixed = before
        raise


class CompiledStep(Repeating):
    """Calls like the original, and returns the same tensors, without gradients."""

    _lock: Lock
    fixed: tuple[type, ...] = ()  # of which kinds numbers among the arguments are a part of the plan

    def __init__(
        self,
        function: Callable[..., Any],
        around: Surroundings,
        device: str | None,
        numerics: str | None = None,
    ) -> None:
        self.function = self.__wrapped__ = function  # by which a function that is compiled around this finds modules
        self.device = device
        self.numerics = None if numerics is None else precision.check_name(numerics)
        renew_in_children(self, "_lock")  # a plan has one memory
        self._seen = Seen()
        self._begin(around)

    def _begin(self, around: Surroundings) -> None:
        self.around, self.modules, self.optimizers = around, around.modules, around.optimizers
        self._plans, self._bound = Plans(), Bound(around.modules)

    def _called(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if forks.is_tracing():  # this thread traces something around it
            return self.function(*inputs, **named)
        try:
            tensors, form = list(inputs), NO_FORM
            if not is_of_tensors((inputs, named)):
                tensors, form = taken_apart((inputs, named), self.fixed)
            with self._lock:
                return self._step(tensors, form, (inputs, named))
        except IsAPart:
            return self.function(*inputs, **named)
        except NumbersAsked:
            return again_with_values(self, form, inputs, named)
        except StateFound:  # known by now
            return self._called(inputs, named)

    def _look(self, watch: Any) -> tuple[str, tuple[Any, ...]]:
        """The device of the plan, and what else it is chosen by."""
        if self.around.is_outdated():
            self._begin(self.around.again())
        look_for_symbols(self.modules, self.around)
        own, held = self._bound.key(), self._bound.tensors
        self._bound.note(watch, self.around)
        self.around.note(watch)
        for optimizer in self.optimizers:
            _note(optimizer, watch)
            if self.around.reads_rates:
                watch.answer(_rates, optimizer)
        watch.place(vars(devices), "_default")  # which is also the device of arrays of the host
        known = set(map(id, held))
        strays = [p for optimizer in self.optimizers for p in optimizer.parameters if id(p) not in known]
        for p in strays:
            watch.tensor(p)
        return self.device or (held[0].device if held else devices.default_device()), (
            own,
            self.around.key(),
            tuple(map(_is_training, self._bound.parts)),
            tuple(map(_is_trained, held)),
            tuple([(x.grad is None, x._hooks is None) for x in held]),
            tuple([(id(x._data), x.requires_grad, x.grad is None, x._hooks is None) for x in strays]),
            tuple(map(_rates, self.optimizers)) if self.around.reads_rates else (),
            tuple([(*_state(optimizer), *sorted(optimizer.irregular)) for optimizer in self.optimizers]),
            *[_options(optimizer, group) for optimizer in self.optimizers for group in optimizer.param_groups],
        )

    def _step(self, tensors: list[Tensor], form: Form, given: Given) -> Any:
        """tensors and form: of the arguments that were given; NO_FORM: they are tensors, one by one."""
        with forks.turn:  # while another thread traces, what is looked at may be symbols
            device, own = self._seen.key(self._look)
            state, form_of_state = self.around.state()
            tensors = [*tensors, *state]
            key = (
                device,
                self.numerics or precision.current(),
                is_recording(),
                kinds(tensors),
                form,
                form_of_state,
                own,
                casting.current(),
            )
            recent = self._plans.recent(key)
            self._watch, self._repeat = self._seen.watch, recent.repeat if recent else None
            traced: _Traced = recent or self._plans.of(
                key,
                lambda: with_values(self.around, lambda: self._made(tensors, given, device), form.numbers),
                lambda before: self._compare(before, tensors, given, device),
            )
        plan = traced.plan
        backend = plan.backend
        for place in refill(traced.fed, tensors):
            backend.assign(traced.fed[place], backend.put(tensors[place]._data))
        for optimizer, _ in traced.stepped:
            optimizer.call_step_hooks("before_step")
        for optimizer, counts, rates in traced.scalars:
            for place, count in counts:
                count[...] = optimizer.steps + 1 - (0 if place is None else optimizer.missed[place])
            for number, lr in rates:
                lr[...] = optimizer.param_groups[number]["lr"]
        for optimizer, number, momentum in traced.momenta:
            momentum[...] = optimizer.momentum_of(optimizer.param_groups[number])
        traced.draws.fill()
        for parameter, fed in traced.gradients.before:
            backend.assign(fed, backend.put(parameter.grad._data))
        plan.run()
        left_out = {id(optimizer) for optimizer, found in traced.left_out if bool(found)}
        stepped = [(optimizer, missing) for optimizer, missing in traced.stepped if id(optimizer) not in left_out]
        for optimizer, missing in stepped:  # a step that failed is none
            optimizer.steps += 1
            for place in missing:
                optimizer.miss(place)
        wrote(traced.written)
        for part, is_training in traced.modes:
            part.training = is_training
        for parameter, is_trained in traced.trained:
            parameter.requires_grad = is_trained
        for optimizer, _ in stepped:
            optimizer.call_step_hooks("after_step")
        results = tuple(map(copy_of, plan.outputs[: len(plan.outputs) - len(traced.left_out)]))
        results = traced.gradients.taken(results)
        traced.assigned.put(results[len(results) - traced.assigned.tensors :])
        return traced.rebuild(results[: len(results) - traced.assigned.tensors])

    def _compare(self, before: Before, inputs: list[Tensor], given: Given, device: str) -> None:
        """Whether a trace is what it was. Raises GraphError where it is not."""
        if before.by_value == self.around.by_value:
            followed = self._follow(inputs, given, device, before)
            before.compare_ends(followed.graph, followed.rebuild)

    def _follow(self, inputs: list[Tensor], given: Given, device: str, before: Before | None = None) -> "_Followed":
        """The function on symbols. before: what it must do again."""
        self._seen.forget()  # what the function reads may be known otherwise afterwards
        builder = Builder(merging=False, travels=device in devices.OWN_MEMORY)
        builder.differentiate = reached if is_recording() else _switched_off
        builder.recording, builder.device = is_recording, device
        builder.before = None if before is None else before.compare
        arguments = [builder.input(_argument(place), x.shape, x.dtype) for place, x in enumerate(inputs)]
        held: dict[str, Array] = {}
        with forks.tracing(), ExitStack() as stack:
            known: dict[int, Symbol] = {}
            tensors = {id(t): t for module in self.modules for t in (*module.parameters(), *_buffers(module))}
            for place, module in enumerate(self.modules):
                stack.enter_context(symbolic(module, builder, f"{place}.", both_modes=False, known=known))
            state = arguments[len(arguments) - len(self.around.state()[0]) :]
            inside = stack.enter_context(self.around.symbolic(builder, device, known, state))
            for identity, (tensor, symbol) in inside.known.items():
                tensors.setdefault(identity, tensor)
                known.setdefault(identity, symbol)
            for p in chain.from_iterable([optimizer.parameters for optimizer in self.optimizers]):
                if id(p) not in known:  # of a module that the step does not name
                    name = f"parameter.{len(known)}"
                    symbol = builder.param(name, p.shape, {"kind": "zeros"}, p.requires_grad, p.dtype)
                    known[id(p)], tensors[id(p)], symbol.tensor = symbol, p, p
            for identity, symbol in known.items():
                held[builder.nodes[symbol.node].attrs["name"]] = tensors[identity]._data
            steppers = [
                stack.enter_context(_symbolic_optimizer(optimizer, place, builder, known, held))
                for place, optimizer in enumerate(self.optimizers)
            ]
            if before is not None:
                stack.enter_context(_having_missed(self.optimizers, before.missed))
            stack.enter_context(drawing_again(partial(in_a_graph, builder)))
            stack.enter_context(noting_what_is_made())
            parameters = {symbol.home: tensors[identity] for identity, symbol in known.items()}
            if self.around.freezes:  # what is computed before the step sets requires_grad keeps no gradient
                for symbol in known.values():
                    if not symbol.requires_grad:
                        symbol.node = builder.apply("detach", [symbol], {}).node
            builder.given = partial(_gradient_before, builder, parameters)
            if any(x._hooks for x in tensors.values()):
                raise GraphError(
                    "compile: a parameter has a hook (register_hook), which runs on tensors; remove it, or change "
                    "p.grad in the step"
                )
            options, rates = self._bound.options(), [_rates(optimizer) for optimizer in self.optimizers]
            parts = self._bound.parts
            modes = list(map(_is_training, parts))
            args, named = with_others(given, arguments, self.fixed)
            try:
                result = self.function(*args, **named)
                for check in builder.at_end:
                    check()
                now = [_rates(optimizer) for optimizer in self.optimizers]
            finally:
                for optimizer, was in zip(self.optimizers, rates, strict=True):
                    for group, rate in zip(optimizer.param_groups, was, strict=False):
                        if group["lr"] is not rate:
                            group["lr"] = rate
            self._bound.check_unchanged(options)
            if rates != now:
                raise _changes_rates(f", from {rates} to {now}")
        outputs, rebuild = results_of(result, "step to return tensors computed in it, such as its loss")
        values, assigned_to = inside.outputs(builder)
        after = [home for home in builder.gradients if home in builder.added or home in builder.waiting]
        skips = [stepper.unless for stepper in steppers if stepper.unless is not None]
        graph = builder.graph(*outputs, *values, *[builder.gradients[home] for home in after], *skips)
        builder.ended = True
        changed = [(part, _is_training(part)) for part, was in zip(parts, modes, strict=True) if part.training != was]
        trained = [(parameters[home], wanted) for home, wanted in builder.trained.items() if home in parameters]
        return _Followed(builder, graph, rebuild, held, steppers, parameters, after, changed, trained, assigned_to)

    def _made(self, inputs: list[Tensor], given: Given, device: str) -> tuple[_Traced, Before]:
        """A plan, and what the function did."""
        followed = self._follow(inputs, given, device)
        builder, graph, rebuild, held, steppers, parameters, after, modes, trained, assigned_to = followed
        names = [_argument(place) for place in range(len(inputs))]
        plan = Plan(
            graph,
            held,
            device,
            resident=[*names, *map(_before, builder.added)],
            fetch=False,
            numerics=self.numerics,
            draws=[place for place, draw in enumerate(builder.draws) if draw is None],
        )
        scalars, stepped, momenta = [], [], []
        conditional = [
            optimizer
            for optimizer, stepper in zip(self.optimizers, steppers, strict=True)
            if stepper.unless is not None
        ]
        count = len(plan.outputs) - len(conditional)
        for optimizer, stepper in zip(self.optimizers, steppers, strict=True):
            if stepper.steps:
                rates = [(group, plan.inputs[name]) for name, group in stepper.rates.items() if name in plan.inputs]
                counts = [(late, plan.inputs[name]) for name, late in stepper.counts.items() if name in plan.inputs]
                scalars.append((optimizer, counts, rates))
                stepped.append((optimizer, stepper.missing))
                momenta += [
                    (optimizer, group, plan.inputs[name])
                    for name, group in stepper.momenta.items()
                    if name in plan.inputs
                ]
        kept = [*self._bound.kept(), *self.around.kept(), *[optimizer.state for optimizer in self.optimizers]]
        kept += [(p, p._data) for optimizer in self.optimizers for p in optimizer.parameters]
        gradients = Gradients(
            [(parameters[home], plan.inputs[name]) for home in builder.added if (name := _before(home)) in plan.inputs],
            [parameters[home] for home in after],
            [parameters[home] for home in builder.begun if home not in builder.gradients],
        )
        written = [parameters[home] for home in builder.updates if home in parameters]
        fed, drawn = [plan.inputs[name] for name in names], draws_of(plan, builder)
        late = [place is not None for _, counts, _ in scalars for place, _ in counts]
        late += [bool(missing) for _, missing in stepped]
        short = None
        longer = [momenta, drawn, modes, trained, *gradients, any(late), conditional, self.around.has_state]
        if is_of_tensors(given) and not any(longer):
            short = repeat(
                fed,
                [(count, vars(optimizer)) for optimizer, counts, _ in scalars for _, count in counts],
                [(lr, vars(optimizer), group) for optimizer, _, rates in scalars for group, lr in rates],
                [vars(optimizer) for optimizer, _ in stepped],
                written,
                plan.outputs,
                plan.program,
                vars(planning),
                rebuild,
                precision.CLASSES[plan.numerics].terms if self.numerics is None else None,
            )
        traced = _Traced(
            plan,
            rebuild,
            written,
            fed,
            stepped,
            list(zip(conditional, plan.outputs[count:], strict=True)),
            scalars,
            momenta,
            drawn,
            gradients,
            modes,
            trained,
            assigned_to,
            kept,
            short,
        )
        missed = [dict(optimizer.missed) for optimizer in self.optimizers]
        return traced, Before(graph, rebuild, count - len(after) - assigned_to.tensors, self.around.by_value, missed)


class _Followed(NamedTuple):
    """What a step did on symbols."""

    builder: Builder
    graph: Graph
    rebuild: Callable[[tuple[Any, ...]], Any]
    held: dict[str, Array]
    steppers: "list[_Stepper]"
    parameters: dict[int, Tensor]  # by the nodes they are
    after: list[int]  # of which of them the last outputs are the gradients
    modes: list[tuple[Module, bool]]  # of parts that the function left in another one than they were in
    trained: list[tuple[Tensor, bool]]  # parameters whose requires_grad it set, and to what in the end
    assigned: Assigned


def _argument(place: int) -> str:
    return f"argument.{place}"


def _buffers(module: Module) -> Iterator[Tensor]:
    return (tensor for _, tensor in module.named_buffers())


def _options(optimizer: Optimizer, group: dict[str, Any]) -> tuple[Any, ...]:
    return (*map(id, group["params"]), *optimizer.constants(group).values())


def _rates(optimizer: Optimizer) -> tuple[Any, ...]:
    return tuple([group["lr"] for group in optimizer.param_groups])


def _changes_rates(how: str) -> GraphError:
    return GraphError(
        f"compile: the function changes a learning rate{how}, which only its first call would do; change it, or call "
        "the scheduler's step(), outside"
    )


def _state(optimizer: Optimizer) -> tuple[Any, ...]:
    """Equal only as long as a step keeps its state where it was."""
    state = optimizer.state
    return id(state), state.changes.changed if isinstance(state, State) else None


def _note(optimizer: Optimizer, watch: Any) -> None:
    """Tell a Watch what a step depends on of an optimiser."""
    for name in ("state", "param_groups", "irregular", "cycles_momentum"):
        watch.place(vars(optimizer), name)
    if isinstance(optimizer.state, State):
        watch.attribute(optimizer.state.changes, "changed")
    watch.size(optimizer.irregular)
    watch.items(optimizer.param_groups)
    for group in optimizer.param_groups:
        if _is_plain(optimizer) and all(_is_constant(*option) for option in group.items()):
            watch.items(group["params"])
            watch.options(group, _UNREAD)
        else:
            watch.answer(_options, optimizer, group)


_UNREAD = NO_OPTIONS - {"params"}


def _is_plain(optimizer: Optimizer) -> bool:
    """Whether its constants are the very objects in its groups."""
    return not optimizer.cycles_momentum and type(optimizer).constants is Optimizer.constants


def _is_constant(name: str, option: Any) -> bool:
    """Whether an option is as it was as long as it is the same object, or is looked at elsewhere."""
    if type(option) is tuple:
        return all(isinstance(item, NUMBERS) for item in option)
    return name in _UNREAD or isinstance(option, list if name == "params" else NUMBERS)


def _switched_off(builder: Builder, loss: Symbol, wanted: list[Symbol]) -> list[Symbol | None]:
    raise GradientError("backward: gradients are off here (no_grad); call the compiled step outside of it")


class _Stepper:
    """What an optimiser asks for while it is traced, in place of its own scalars(), slot() and miss()."""

    def __init__(self, optimizer: Optimizer, place: int, builder: Builder, held: dict[str, Array]) -> None:
        self.optimizer, self.name, self.builder, self.held = optimizer, f"optimizer.{place}", builder, held
        self.parameters = optimizer.parameters  # the tensors; while it is traced the optimiser has symbols
        self.steps = 0
        self.rates: dict[str, int] = {}  # the inputs of learning rates, and the group whose each is
        self.counts: dict[str, int | None] = {}  # the inputs that say which step it is: of a place, if it missed any
        self.momenta: dict[str, int] = {}
        self.missing: list[int] = []
        self.unless: Symbol | None = None  # whether the step is left out: found when the plan runs
        self._make_slot = optimizer.slot

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if any(isinstance(rate, Symbol) for rate in _rates(self.optimizer)):
            raise _changes_rates(" to a value that it computes or was given")
        self.steps += 1
        if self.steps > 1:
            raise GraphError("compile: an optimiser makes at most one step in a compiled function; call it twice")
        loss = type(self.optimizer).step(self.optimizer, closure)
        self.unless = self.optimizer.unless
        self.builder.waiting.difference_update(p.home for p in self.optimizer.parameters)
        self.optimizer.steps -= 1  # nothing was updated yet
        return loss

    def miss(self, place: int) -> None:
        self.missing.append(place)

    def scalars(self, group: int, p: Any, late: int | None) -> tuple[Any, ...]:
        lr = f"{self.name}.{group}.lr.{p.dtype}"
        step = f"{self.name}.step.{p.dtype}" if late is None else f"{self.name}.{late}.step.{p.dtype}"
        self.rates[lr], self.counts[step] = group, late
        inputs = [lr, step]
        if (
            self.optimizer.cycles_momentum
            and self.optimizer.momentum_of(self.optimizer.param_groups[group]) is not None
        ):
            inputs.append(f"{self.name}.{group}.momentum.{p.dtype}")
            self.momenta[inputs[-1]] = group
        return tuple([self.builder.input(name, (), p.dtype) for name in inputs])

    def slot(self, place: int, p: Any, kind: str, start: float = 0.0, shape: tuple[int, ...] | None = None) -> Any:
        state = self._make_slot(place, self.parameters[place], kind, start, shape)
        name = f"{self.name}.{place}.{kind}"
        self.held[name] = state._data
        first = {"kind": "constant", "value": start}
        return self.builder.param(name, state.shape, first, trainable=False, dtype=p.dtype)


@contextmanager
def _having_missed(optimizers: list[Optimizer], missed: Sequence[dict[int, int]]) -> Iterator[None]:
    """Within the block optimisers have missed what they had: of one without state that makes no other plan."""
    now = [optimizer.missed for optimizer in optimizers]
    try:
        for optimizer, then in zip(optimizers, missed, strict=True):
            optimizer.missed = then
        yield
    finally:
        for optimizer, there in zip(optimizers, now, strict=True):
            optimizer.missed = there


@contextmanager
def _symbolic_optimizer(
    optimizer: Optimizer, place: int, builder: Builder, known: dict[int, Symbol], held: dict[str, Array]
) -> Iterator[_Stepper]:
    """Within the block the optimiser's parameters are symbols, and step() adds its updates to the graph."""
    if not optimizer.rule:
        raise GraphError(
            f"compile: {type(optimizer).__name__} has a step() of its own, which works on tensors; call it outside of "
            "the compiled function"
        )
    stepper = _Stepper(optimizer, place, builder, held)
    own = [group["params"] for group in optimizer.param_groups]
    try:
        for group, parameters in zip(optimizer.param_groups, own, strict=True):
            group["params"] = [known[id(p)] for p in parameters]
        for verb in ("step", "scalars", "slot", "miss"):
            setattr(optimizer, verb, getattr(stepper, verb))
        yield stepper
    finally:
        for verb in ("step", "scalars", "slot", "miss"):
            optimizer.__dict__.pop(verb, None)
        for group, parameters in zip(optimizer.param_groups, own, strict=True):
            group["params"] = parameters

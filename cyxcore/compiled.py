"""compile: a function or module of tensors, planned once per input shape and device, and replayed.

Results carry no gradient. A training step goes to steps.py; jobs compile theirs in training.py.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from threading import Lock
from typing import Any, NamedTuple

from cyxcore import casting, forks, precision
from cyxcore import device as devices
from cyxcore import plan as planning
from cyxcore.arguments import Form, Given, IsAPart, NumbersAsked, taken_apart, with_others
from cyxcore.becoming import noting_what_is_made
from cyxcore.eager import Tensor, copy_of
from cyxcore.errors import GraphError
from cyxcore.forks import renew_in_children
from cyxcore.graph import Graph
from cyxcore.held import Repeating, is_recording, kinds, refill, repeat, wrote
from cyxcore.keys import drawing_again
from cyxcore.nn.module import Module
from cyxcore.objectives import evaluation_graph
from cyxcore.plan import Plan
from cyxcore.retracing import Before
from cyxcore.steps import (
    Bound,
    CompiledStep,
    Draws,
    Plans,
    Seen,
    again_with_values,
    draws_of,
    in_a_graph,
    is_of_tensors,
    look_for_symbols,
    with_values,
)
from cyxcore.surroundings import Assigned, StateFound, Surroundings
from cyxcore.symbols import Builder, GradientsAsked, Symbol
from cyxcore.tracing import results_of, symbolic

_EVALUATING: Any = 0  # the mode of modules while a function is traced: another one than False, which it may set itself


class _Traced(NamedTuple):
    plan: Plan
    rebuild: Callable[[tuple[Tensor, ...]], Any]  # what the function returns, of the plan's outputs
    fed: list[Any]  # for each argument what the plan reads
    draws: Draws
    modes: list[tuple[Module, bool]]  # in which the function puts parts of modules
    written: list[Tensor]  # buffers and tensors from outside that the plan writes in place
    assigned: Assigned  # of the last outputs
    kept: list[Any]
    repeat: Any  # None where a call does more than a Repeat


class _Followed(NamedTuple):
    """What a function did on symbols."""

    builder: Builder
    graph: Graph
    rebuild: Callable[[Any], Any]
    held: dict[str, Any]  # the arrays that it reads by the names of the graph's parameters
    modes: list[tuple[Module, bool]]
    written: list[Tensor]
    assigned: Assigned


class Compiled(Repeating):
    """Calls like the original; parameters are read in place, so training goes on beside it.

    device: None runs where the inputs are. On a device with its own memory parameters must be there too, or the plan
    works on copies made when it is compiled.
    """

    _lock: Lock
    fixed: tuple[type, ...] = ()  # of which kinds numbers among the arguments are a part of the plan

    def __init__(
        self,
        function: "Module | Callable[..., Any]",
        around: Surroundings,
        device: str | None = None,
        numerics: str | None = None,
    ) -> None:
        self.function = self.__wrapped__ = function  # by which a function that is compiled around this finds modules
        self.device = device
        self.numerics = None if numerics is None else precision.check_name(numerics)
        renew_in_children(self, "_lock")  # a plan has one memory: threads take turns
        self._seen = Seen()
        self._differentiates = False  # whether it asks for gradients, so that it matters what no_grad() is around
        self._begin(around)

    def _begin(self, around: Surroundings) -> None:
        self.around, self.modules = around, around.modules
        self._plans, self._bound = Plans(), Bound(self.modules)

    def __getattr__(self, name: str) -> Any:
        """Of a module what it has: parameters(), state_dict(), eval(), its parts."""
        function = self.__dict__.get("function")
        if isinstance(function, Module):
            return getattr(function, name)
        raise AttributeError(f"a compiled function has no {name!r}")

    def _follow(self, inputs: list[Tensor], given: Given, device: str, before: Before | None = None) -> "_Followed":
        """The function on symbols. before: what it must do again."""
        self._seen.forget()  # what the function reads may be known otherwise afterwards
        builder = Builder(merging=False, travels=device in devices.OWN_MEMORY)
        builder.device, builder.recording_outside = device, is_recording
        builder.recording = is_recording if self._differentiates else None
        builder.before = None if before is None else before.compare
        symbols = [builder.input(str(place), x.shape, x.dtype) for place, x in enumerate(inputs)]
        with forks.tracing(), ExitStack() as stack:
            known: dict[int, Symbol] = {}
            for place, module in enumerate(self.modules):
                stack.enter_context(symbolic(module, builder, f"{place}.", mode=_EVALUATING, known=known))
            state = symbols[len(symbols) - len(self.around.state()[0]) :]
            inside = stack.enter_context(self.around.symbolic(builder, device, known, state))
            stack.enter_context(drawing_again(partial(in_a_graph, builder)))
            stack.enter_context(noting_what_is_made())
            options = self._bound.options()
            args, named = with_others(given, symbols, self.fixed)
            result = self.function(*args, **named)
            self._bound.check_unchanged(options)
            modes = [(part, bool(part.training)) for part in self._bound.parts if part.training is not _EVALUATING]
        outputs, rebuild = results_of(result, "function to return tensors computed from its arguments")
        values, assigned = inside.outputs(builder)
        graph, builder.ended = builder.graph(*outputs, *values), True
        read = [*known.values(), *[symbol for _, symbol in inside.known.values()]]
        held = {builder.nodes[symbol.home].attrs["name"]: symbol.tensor._data for symbol in read}
        written = [symbol.tensor for symbol in read if symbol.home in builder.updates]
        return _Followed(builder, graph, rebuild, held, modes, written, assigned)

    def _compare(self, before: Before, inputs: list[Tensor], given: Given, device: str) -> None:
        """Whether a trace is what it was. Raises GraphError where it is not."""
        if before.by_value == self.around.by_value:
            followed = self._follow(inputs, given, device, before)
            before.compare_ends(followed.graph, followed.rebuild)

    def _made(self, inputs: list[Tensor], given: Given, device: str) -> tuple[_Traced, Before]:
        """A plan, and what the function did."""
        builder, followed, rebuild, held, modes, written, assigned = self._follow(inputs, given, device)
        fed = [str(place) for place in range(len(inputs))]
        graph = evaluation_graph(followed)  # in which nothing is drawn that only training needs
        draws = [node.attrs["stream"] for node in graph.nodes if node.op == "uniform"]
        plan = Plan(graph, held, device, resident=fed, fetch=False, numerics=self.numerics, draws=draws)
        arrays, drawn = [plan.inputs[name] for name in fed], draws_of(plan, builder)
        terms = precision.CLASSES[plan.numerics].terms if self.numerics is None else None
        short = None
        if is_of_tensors(given) and not (drawn or modes or self.around.has_state):
            short = repeat(arrays, [], [], [], written, plan.outputs, plan.program, vars(planning), rebuild, terms)
        kept = [*self._bound.kept(), *self.around.kept()]
        traced = _Traced(plan, rebuild, arrays, drawn, modes, written, assigned, kept, short)
        results = len(followed.outputs) - assigned.tensors
        return traced, Before(followed, rebuild, results, self.around.by_value)

    def _called(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        given = inputs, named
        try:
            tensors, form = taken_apart(given, self.fixed)
        except IsAPart:
            return self.function(*inputs, **named)  # a part of what is compiled around it
        try:
            if forks.is_tracing():  # this thread traces something around it
                raise IsAPart
            with self._lock:
                return self._run(tensors, form, given)
        except NumbersAsked:
            return again_with_values(self, form, inputs, named)
        except StateFound:  # known by now
            return self._called(inputs, named)
        except GradientsAsked:
            self._differentiates = True
            return self._called(inputs, named)
        except IsAPart:
            args, named = with_others(given, tensors, self.fixed)
            return self.function(*args, **named)

    def _look(self, watch: Any) -> tuple[Any, ...]:
        """What a plan is chosen by besides the arguments."""
        if self.around.is_outdated():
            around = self.around.again()
            if around.optimizers and not isinstance(self.function, Module):
                raise GraphError(
                    "compile: the function uses an optimiser that was not there when it was compiled; compile it "
                    "after the optimiser is made"
                )
            self._begin(around)
        look_for_symbols(self.modules, self.around)
        key = (self._bound.key(), self.around.key(), self._differentiates and is_recording())
        if self._differentiates:
            watch.answer(is_recording)
        self._bound.note(watch, self.around)
        self.around.note(watch)
        watch.place(vars(devices), "_default")  # which is also the device of arrays of the host
        return key

    def _run(self, tensors: list[Tensor], form: Form, given: Given) -> Any:
        with forks.turn:  # while another thread traces, what is looked at may be symbols
            at = self.device or (tensors[0].device if tensors else devices.default_device())
            numerics = self.numerics or precision.current()
            seen = self._seen.key(self._look)
            state, form_of_state = self.around.state()
            tensors = [*tensors, *state]
            key = (at, numerics, kinds(tensors), form, form_of_state, seen, casting.current())
            recent = self._plans.recent(key)
            self._watch, self._repeat = self._seen.watch, recent.repeat if recent else None
            plan, rebuild, fed, draws, modes, written, assigned, *_ = recent or self._plans.of(
                key,
                lambda: with_values(self.around, lambda: self._made(tensors, given, at), form.numbers),
                lambda before: self._compare(before, tensors, given, at),
            )
        for place in refill(fed, tensors):
            plan.backend.assign(fed[place], devices.put(tensors[place]._data, at))
        draws.fill()
        plan.run()
        for part, is_training in modes:
            part.training = is_training
        wrote(written)
        results = tuple(map(copy_of, plan.outputs))
        count = len(results) - assigned.tensors
        assigned.put(results[count:])
        return rebuild(results[:count])


def compile(
    function: "Module | Callable[..., Any] | None" = None,
    device: str | None = None,
    numerics: str | None = None,
    *,
    mode: str | None = None,
    fullgraph: bool = False,
    dynamic: bool | None = None,
    backend: Any = None,
    options: Any = None,
    disable: bool = False,
) -> Any:
    """A faster callable with the same results: of a module or function in inference mode, or of a training step.

    Modules are found among the variables that a function uses. A function that uses an optimiser, or goes backward(),
    is a training step (cyxcore/steps.py): its gradients and updates are in the plan. Without a function a decorator.
    numerics: of its products, see cyxcore.set_numerics; None: the class that is set at each call.
    mode, fullgraph, dynamic, backend, options: accepted and without effect, as there is one way to compile. disable:
    True gives the function back.
    """
    if function is None:
        return partial(compile, device=device, numerics=numerics, disable=disable)
    if disable:
        return function
    around = Surroundings(function)
    if isinstance(function, Module):
        return Compiled(function, around, device, numerics)
    if around.optimizers or around.walks_back:
        return CompiledStep(function, around, device, numerics)
    return Compiled(function, around, device, numerics)

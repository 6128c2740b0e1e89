"""compile: a function or module of tensors, planned once per input shape and device, and replayed.

Results carry no gradient. A training step goes to steps.py; jobs compile theirs in training.py.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from threading import Lock
from typing import Any, NamedTuple

from cyxcore import casting, precision
from cyxcore import device as devices
from cyxcore import plan as planning
from cyxcore.arguments import Form, Given, IsAPart, NumbersAsked, taken_apart, with_others
from cyxcore.eager import Tensor, copy_of
from cyxcore.errors import GraphError
from cyxcore.forks import renew_in_children
from cyxcore.graph import Graph
from cyxcore.held import Repeating, kinds, refill, repeat
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
from cyxcore.surroundings import Surroundings
from cyxcore.symbols import Builder
from cyxcore.tracing import results_of, symbolic

_EVALUATING: Any = 0  # the mode of modules while a function is traced: another one than False, which it may set itself


class _Traced(NamedTuple):
    plan: Plan
    rebuild: Callable[[tuple[Tensor, ...]], Any]  # what the function returns, of the plan's outputs
    fed: list[Any]  # for each argument what the plan reads
    draws: Draws
    modes: list[tuple[Module, bool]]  # in which the function puts parts of modules
    kept: list[Any]
    repeat: Any  # None where a call does more than a Repeat


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
        around: Surroundings | None,
        device: str | None = None,
        numerics: str | None = None,
    ) -> None:
        """around: what the function reads besides its arguments; None for a module, which has its own."""
        self.function = self.__wrapped__ = function  # by which a function that is compiled around this finds modules
        self.device = device
        self.numerics = None if numerics is None else precision.check_name(numerics)
        renew_in_children(self, "_lock")  # a plan has one memory: threads take turns
        self._seen = Seen()
        self._begin(around)

    def _begin(self, around: Surroundings | None) -> None:
        self.around = around
        self.modules: list[Module] = [self.function] if isinstance(self.function, Module) else []
        if around is not None:
            self.modules = around.modules
        self._plans, self._bound = Plans(), Bound(self.modules)

    def __getattr__(self, name: str) -> Any:
        """Of a module what it has: parameters(), state_dict(), eval(), its parts."""
        function = self.__dict__.get("function")
        if isinstance(function, Module):
            return getattr(function, name)
        raise AttributeError(f"a compiled function has no {name!r}")

    def _follow(
        self, inputs: list[Tensor], given: Given, device: str, before: Before | None = None
    ) -> tuple[Builder, Graph, Callable[[Any], Any], dict[str, Any], list[tuple[Module, bool]]]:
        """The function on symbols, the arrays that it reads and the modes it sets. before: what it must do again."""
        self._seen.forget()  # what the function reads may be known otherwise afterwards
        builder = Builder(merging=False, travels=device in devices.OWN_MEMORY)
        builder.device, builder.before = device, None if before is None else before.compare
        symbols = [builder.input(str(place), x.shape, x.dtype) for place, x in enumerate(inputs)]
        state: dict[str, Any] = {}
        with ExitStack() as stack:
            for place, module in enumerate(self.modules):
                stack.enter_context(symbolic(module, builder, f"{place}.", mode=_EVALUATING))
            if self.around is not None:
                there = stack.enter_context(self.around.symbolic(builder, device))
                state |= {builder.nodes[symbol.node].attrs["name"]: x._data for x, symbol in there.values()}
            stack.enter_context(drawing_again(partial(in_a_graph, builder)))
            options = self._bound.options()
            args, named = with_others(given, symbols, self.fixed)
            result = self.function(*args, **named)
            self._bound.check_unchanged(options)
            modes = [(part, bool(part.training)) for part in self._bound.parts if part.training is not _EVALUATING]
        for place, module in enumerate(self.modules):
            state |= {f"{place}.{name}": array for name, array in module.arrays().items()}
        outputs, rebuild = results_of(result, "function to return tensors computed from its arguments")
        graph, builder.ended = builder.graph(*outputs), True
        return builder, graph, rebuild, state, modes

    def _compare(self, before: Before, inputs: list[Tensor], given: Given, device: str) -> None:
        """Whether a trace is what it was. Raises GraphError where it is not."""
        if before.by_value == self._by_value():
            _, graph, rebuild, *_ = self._follow(inputs, given, device, before)
            before.compare_ends(graph, rebuild)

    def _by_value(self) -> bool:
        return self.around is not None and self.around.by_value

    def _made(self, inputs: list[Tensor], given: Given, device: str) -> tuple[_Traced, Before]:
        """A plan, and what the function did."""
        builder, followed, rebuild, state, modes = self._follow(inputs, given, device)
        fed = [str(place) for place in range(len(inputs))]
        graph = evaluation_graph(followed)  # in which nothing is drawn that only training needs
        draws = [node.attrs["stream"] for node in graph.nodes if node.op == "uniform"]
        plan = Plan(graph, state, device, resident=fed, fetch=False, numerics=self.numerics, draws=draws)
        around = [] if self.around is None else self.around.kept()
        arrays, drawn = [plan.inputs[name] for name in fed], draws_of(plan, builder)
        terms = precision.CLASSES[plan.numerics].terms if self.numerics is None else None
        short = None
        if is_of_tensors(given) and not drawn and not modes:
            short = repeat(arrays, [], [], [], [], plan.outputs, plan.program, vars(planning), rebuild, terms)
        traced = _Traced(plan, rebuild, arrays, drawn, modes, [*self._bound.kept(), *around], short)
        return traced, Before(followed, rebuild, len(followed.outputs), self._by_value())

    def _called(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        given = inputs, named
        try:
            tensors, form = taken_apart(given, self.fixed)
        except IsAPart:
            return self.function(*inputs, **named)  # a part of what is compiled around it
        try:
            with self._lock:
                return self._run(tensors, form, given)
        except NumbersAsked:
            return again_with_values(self, form, inputs, named)
        except IsAPart:
            args, named = with_others(given, tensors, self.fixed)
            return self.function(*args, **named)

    def _look(self, watch: Any) -> tuple[Any, ...]:
        """What a plan is chosen by besides the arguments."""
        if self.around is not None and self.around.is_outdated():
            around = self.around.again()
            if around.optimizers:
                raise GraphError(
                    "compile: the function uses an optimiser that was not there when it was compiled; compile it "
                    "after the optimiser is made"
                )
            self._begin(around)
        look_for_symbols(self.modules, self.around)
        key = (self._bound.key(), self.around.key() if self.around is not None else ())
        self._bound.note(watch)
        if self.around is not None:
            self.around.note(watch)
        watch.place(vars(devices), "_default")  # which is also the device of arrays of the host
        return key

    def _run(self, tensors: list[Tensor], form: Form, given: Given) -> Any:
        at = self.device or (tensors[0].device if tensors else devices.default_device())
        numerics = self.numerics or precision.current()
        key = (at, numerics, kinds(tensors), form, self._seen.key(self._look), casting.current())
        recent = self._plans.recent(key)
        self._watch, self._repeat = self._seen.watch, recent.repeat if recent else None
        plan, rebuild, fed, draws, modes, *_ = recent or self._plans.of(
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
        results = tuple(map(copy_of, plan.outputs))
        return rebuild(results)


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
    if isinstance(function, Module):
        return Compiled(function, None, device, numerics)
    around = Surroundings(function)
    if around.optimizers or around.walks_back:
        return CompiledStep(function, around, device, numerics)
    return Compiled(function, around, device, numerics)

"""Gradients as functions of functions, custom gradients, and recomputing instead of remembering.

    cx.grad(loss)(w)                      # d loss / d w
    cx.grad(cx.grad(f))(x)                # a second derivative
    value, pull = cx.vjp(f, x, y)         # pull(g) -> the gradients of x and y
    value, change = cx.jvp(f, (x,), (v,)) # the derivative along v
    cx.hessian(f)(x)

Names are those of torch.func. The functions take and return tensors; inside cx.compile and cx.trace, symbols.
"""

import functools
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cyxcore import casting, eager, torchpaths
from cyxcore import gradients as rules
from cyxcore.dtype import INEXACT
from cyxcore.eager import Tensor, enable_grad, no_grad
from cyxcore.errors import GradientError
from cyxcore.functional import stack
from cyxcore.held import is_recording
from cyxcore.ops import OWN_GRADIENT
from cyxcore.symbols import Symbol
from cyxcore.tape import detect_anomaly as detect_anomaly
from cyxcore.tape import inference_mode as inference_mode
from cyxcore.tape import pull
from cyxcore.tape import set_detect_anomaly as set_detect_anomaly
from cyxcore.tape import set_grad_enabled as set_grad_enabled
from cyxcore.values import Value, apply

__path__: list[str] = []  # cyxcore.autograd.functional: cyxcore/torchpaths.py
__getattr__ = torchpaths.below("autograd")


class _Depth(threading.local):
    """Of transformed functions around each other in a thread: the outermost one gives results without a past."""

    now = 0


_depth = _Depth()


def _places(argnums: int | Sequence[int], count: int, name: str) -> tuple[int, ...]:
    places = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if any(not -count <= place < count for place in places):
        raise GradientError(f"{name}: argnums {argnums} of a call with {count} arguments")
    return tuple(place % count for place in places)


class _Watched:
    """A call of f whose arguments at `places` are followed."""

    def __init__(self, name: str, f: Callable[..., Any], args: Sequence[Any], places: Sequence[int]) -> None:
        for place in places:
            given = args[place]
            if not isinstance(given, (Tensor, Symbol)) or given.dtype not in INEXACT:
                raise GradientError(
                    f"{name}: expected a float or complex tensor as argument {place}, got {_described(given)}"
                )
        self.name, self.inner = name, _depth.now > 0
        followed = {place: _followed(args[place]) for place in places}
        self.inputs = list(followed.values())
        self.outer = any(_is_followed(args[place]) for place in places)
        _depth.now += 1
        try:
            with enable_grad():
                self.output = f(*(followed.get(place, arg) for place, arg in enumerate(args)))
        finally:
            _depth.now -= 1

    def gradients(self, output: Any, gradient: Any) -> tuple[Any, ...]:
        """Of each input, for the gradient of the output (None: 1 for a scalar); zeros where there is no dependence."""
        if isinstance(output, Symbol):
            total = output if gradient is None else (output * gradient).sum()
            return tuple(rules.backward(output.builder, total, self.inputs))
        if not isinstance(output, Tensor):
            raise GradientError(f"{self.name}: expected the function to return a tensor, got {_described(output)}")
        found: dict[int, Tensor] = {}
        wanted = {id(x) for x in self.inputs}
        keep = self.inner or self.outer
        if output.requires_grad:
            start = output._start(gradient)
            with enable_grad():
                found = {id(x): g for x, g in eager.pull(output, start, keep, retain_graph=True) if id(x) in wanted}
        elif output.size != 1 and gradient is None:
            output._start(gradient)
        each = [found.get(id(x)) for x in self.inputs]
        each = each if keep else _apart(each, [gradient])
        return tuple(_nothing(x) if g is None else g for x, g in zip(self.inputs, each, strict=True))

    def result(self, value: Any) -> Any:
        """A value to hand out: without a past, unless somebody outside follows it."""
        return value.detach() if isinstance(value, (Tensor, Symbol)) and not (self.inner or self.outer) else value


def _is_followed(x: Any) -> bool:
    """Whether somebody outside a transformed function follows its argument."""
    if isinstance(x, Symbol):
        return x.builder.differentiate is None or x.builder.is_followed(x)
    return isinstance(x, Tensor) and x.requires_grad


def _nothing(x: Tensor) -> Tensor:
    zeros: Tensor = x._constant(0.0, x.dtype).broadcast_to(x.shape).copy()
    return zeros


def _apart(gradients: Sequence[Any], given: Sequence[Any]) -> list[Any]:
    """Gradients none of which has the memory of another or of what was given: what may have it is copied."""
    taken, found = {id(x) for x in given}, []
    for g in gradients:
        found.append(g.copy() if g is not None and (id(g) in taken or g._memory is not None) else g)
        taken.add(id(g))
    return found


def _described(value: Any) -> str:
    return f"a tensor {value.shape} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def _followed(x: Any) -> Any:
    """x as an input of its own, which remembers x where somebody outside follows that."""
    if isinstance(x, Symbol):
        return x.builder.apart(x)
    if x.requires_grad:
        with enable_grad():
            return x._apply("reshape", [x], {"shape": x.shape})
    return eager.alias(x)


def value_and_grad(
    f: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """A function with f's arguments that returns (f's value, its gradient with respect to argument `argnums`).

    f returns a scalar, with has_aux (scalar, whatever else). For several argnums the gradient is a tuple.
    """

    def call(*args: Any) -> Any:
        watched = _Watched("value_and_grad", f, args, _places(argnums, len(args), "value_and_grad"))
        value = watched.output[0] if has_aux else watched.output
        gradients = tuple(watched.result(g) for g in watched.gradients(value, None))
        shown = (watched.result(value), watched.output[1]) if has_aux else watched.result(value)
        return shown, gradients[0] if isinstance(argnums, int) else gradients

    return call


def grad(f: Any = None, argnums: Any = 0, has_aux: bool = False, **words: Any) -> Any:
    """A function with f's arguments that returns its gradient, with has_aux (gradient, aux); see value_and_grad.

    grad(outputs, inputs, …) of tensors is PyTorch's: see gradients_of.
    """
    if "outputs" in words or isinstance(f, Value) or isinstance(f, (list, tuple)):
        given = {"outputs": f, "inputs": argnums} if f is not None else {}
        if has_aux is not False:  # PyTorch's third argument, by its place
            given["grad_outputs"] = has_aux
        return gradients_of(**(given | words))
    if words:
        raise TypeError(f"grad() got an unexpected keyword argument {min(words)!r}")
    both = value_and_grad(f, argnums, has_aux)

    def call(*args: Any) -> Any:
        value, gradient = both(*args)
        return (gradient, value[1]) if has_aux else gradient

    return call


def gradients_of(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
    only_inputs: bool = True,
    materialize_grads: bool = False,
) -> tuple[Any, ...]:
    """The gradients of outputs (scalars, or with grad_outputs) with respect to inputs: a tuple, one for each input.

    `.grad` of nothing is touched, as only_inputs says. retain_graph, create_graph: as of Tensor.backward. Raises
    GradientError for an input the outputs do not depend on, unless allow_unused gives None for it, or materialize_grads
    zeros. In a compiled step inputs are values that were computed in it.
    """
    allow_unused = allow_unused or materialize_grads
    results, sources = ([x] if isinstance(x, Value) else list(x) for x in (outputs, inputs))
    weights = [None] * len(results) if grad_outputs is None else grad_outputs
    weights = [weights] if isinstance(weights, Value) else list(weights)
    found: list[Any] = [None] * len(sources)
    if any(isinstance(x, Symbol) for x in results):
        parts = [x if w is None else (x * w).sum() for x, w in zip(results, weights, strict=True)]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        total.builder.check_recorded()
        found = list(rules.reached(total.builder, total, sources))  # type: ignore[arg-type]
    retain_graph = create_graph if retain_graph is None else retain_graph
    for number, (result, weight) in enumerate(zip(results, weights, strict=True), 1):
        if isinstance(result, Symbol):
            continue
        retain = retain_graph or number < len(results)  # the next one may come from the same
        for tensor, g in pull(result, result._start(weight), create_graph, retain):
            for place, source in enumerate(sources):
                if tensor is source:
                    found[place] = g if found[place] is None else found[place] + g
    if not allow_unused and any(g is None for g in found):
        place = next(place for place, g in enumerate(found) if g is None)
        raise GradientError(f"grad: the outputs do not depend on input {place}; allow_unused=True gives None for it")
    if materialize_grads:
        found = [_nothing(x) if g is None else g for x, g in zip(sources, found, strict=True)]
    if any(isinstance(x, Symbol) for x in results):
        return tuple(found if create_graph else [None if g is None else g.detach() for g in found])
    return tuple(found if create_graph else _apart(found, weights))


def backward(
    tensors: Any,
    grad_tensors: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> None:
    """tensor.backward(gradient) of each: they add up in `.grad` of the leaves, or of `inputs` alone."""
    results: list[Any] = [tensors] if isinstance(tensors, Value) else list(tensors)
    weights = [None] * len(results) if grad_tensors is None else grad_tensors
    weights = [weights] if isinstance(weights, Value) else list(weights)
    inputs = inputs if inputs is None or isinstance(inputs, Value) else list(inputs)
    retain_graph = create_graph if retain_graph is None else retain_graph
    for number, (result, weight) in enumerate(zip(results, weights, strict=True), 1):
        retain = retain_graph or number < len(results)  # the next one may come from the same
        result.backward(weight, retain_graph=retain, create_graph=create_graph, inputs=inputs)


def Variable(data: Any, requires_grad: bool = False) -> Any:  # noqa: N802 - PyTorch's older name
    """The tensor itself: every tensor can have a gradient."""
    return data.requires_grad_() if requires_grad else data


def gradcheck(
    func: Callable[..., Any],
    inputs: Any,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
) -> bool:
    """Whether the gradients of func(*inputs) are what small differences of its values say.

    inputs: a tensor or a tuple; those that require a gradient are float64, of which eps is a small step. Raises
    GradientError where they differ, unless it is to be False.
    """
    given = [inputs] if isinstance(inputs, Value) else list(inputs)
    checked = [x for x in given if isinstance(x, Tensor) and x.requires_grad]
    if not checked or any(x.dtype != "float64" for x in checked):
        raise GradientError("gradcheck: expected float64 inputs, at least one that requires a gradient")
    output = func(*given)
    weight = output._constant(np.cos(np.arange(output.size, dtype=np.float64)), "float64").reshape(*output.shape)
    found = gradients_of(output, checked, weight, allow_unused=True)
    for place, (x, slope) in enumerate(zip(checked, found, strict=True)):
        wanted = np.zeros(x.size)
        flat = x.detach().reshape(-1)
        for at in range(x.size):
            kept, ends = flat[at].item(), []
            for step in (eps, -eps):
                with no_grad():
                    flat[at] = kept + step
                    ends.append((func(*given) * weight).sum().item())
            with no_grad():
                flat[at] = kept
            wanted[at] = (ends[0] - ends[1]) / (2.0 * eps)
        got = np.zeros(x.size) if slope is None else slope.detach().numpy().reshape(-1)
        if not np.allclose(got, wanted, rtol=rtol, atol=atol):
            if not raise_exception:
                return False
            worst = int(np.argmax(np.abs(got - wanted)))
            raise GradientError(
                f"gradcheck: the gradient of input {place} at {worst} is {got[worst]}, where differences say "
                f"{wanted[worst]}"
            )
    return True


def vjp(f: Callable[..., Any], *args: Any) -> tuple[Any, Callable[[Any], Any]]:
    """(f(*args), pull): pull(g) is gᵀ J for each argument (a tuple for several), g of the value's shape."""
    watched = _Watched("vjp", f, args, range(len(args)))

    def pull(gradient: Any) -> Any:
        found = tuple(watched.result(g) for g in watched.gradients(watched.output, gradient))
        return found[0] if len(found) == 1 else found

    return watched.result(watched.output), pull


def jvp(f: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """(f(*primals), J v): its value, and how it changes along the tangents.

    Forward mode by reversing twice: u ↦ uᵀ J is linear in u, and its own transpose is v ↦ J v.
    """
    if len(primals) != len(tangents) or any(p.shape != v.shape for p, v in zip(primals, tangents, strict=False)):
        shapes = [p.shape for p in primals], [v.shape for v in tangents]
        raise GradientError(f"jvp: expected a tangent for each primal, of its shape; got {shapes[0]} and {shapes[1]}")
    value = f(*primals)

    def along(u: Any) -> Any:
        watched = _Watched("jvp", f, primals, range(len(primals)))
        parts = watched.gradients(watched.output, u)
        total = (parts[0] * tangents[0]).sum()
        for g, v in zip(parts[1:], tangents[1:], strict=True):
            total = total + (g * v).sum()
        return total

    return value, grad(along)(value * 0.0)


def jacobian(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function of x that returns d f(x) / d x, of shape (*f(x).shape, *x.shape): one walk back per output element."""

    def call(x: Any) -> Any:
        watched = _Watched("jacobian", f, (x,), (0,))
        output = watched.output
        rows = []
        for place in range(output.size):
            unit = [0.0] * output.size
            unit[place] = 1.0
            one = output._constant(unit, output.dtype).reshape(*output.shape)
            rows.append(watched.result(watched.gradients(output, one)[0]))
        if not rows:
            return watched.result((x * 0.0).sum()).broadcast_to(*output.shape, *x.shape)
        return stack(rows, 0).reshape(*output.shape, *x.shape)

    return call


def hessian(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function of x that returns the second derivatives of a scalar f, of shape (*x.shape, *x.shape)."""
    return jacobian(grad(f))


class Function:
    """An operation with a gradient of your own: override both, call apply().

    class Clamp(cx.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return cx.minimum(x, 1.0)

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return cx.where(x < 1.0, g, 0.0)

    backward returns a gradient (or None) for each argument of forward. ctx is an object to keep things on;
    ctx.needs_input_grad says of each argument whether its gradient is asked for. With a setup_context(ctx, inputs,
    output), as torch.func has it, forward has no ctx. The result is a tensor, or a tuple of them (not in cx.compile):
    then backward is called once, with a gradient for each: zeros where none came.
    """

    needs_input_grad: tuple[bool, ...] = ()

    _saved: tuple[Any, ...] = ()
    _without: tuple[Any, ...] = ()
    _materializes = True
    _since = 0.0  # when they were saved
    _result: Any = None  # of forward, where it was saved and is no argument
    _output: Any = None  # of the call, while backward runs: kept for longer it would be kept by itself
    _outputs: Sequence[tuple[Any, Any]] = ()  # the same of several: what forward returned, and what the call did

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        raise NotImplementedError("a cyxcore.Function needs a forward")

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        raise NotImplementedError("a cyxcore.Function needs a backward")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Overridden: what forward would keep on ctx, which it is not given then."""
        raise NotImplementedError("a cyxcore.Function may have a setup_context")

    def save_for_backward(self, *tensors: Any) -> None:
        self._saved, self._since = tensors, eager.now()

    def set_materialize_grads(self, value: bool) -> None:
        """False: None for a result that no gradient came to, not zeros."""
        self._materializes = value

    def mark_non_differentiable(self, *results: Any) -> None:
        """No gradient goes through these results."""
        self._without = results

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        """What save_for_backward was given. Raises GradientError for a tensor that was changed in place since.

        The result of forward is the result of the call there: a gradient of the gradient goes through it.
        """
        saved = _unchanged(self._saved, self._since, type(self).__name__)
        if self._output is not None:
            return tuple(self._output if x is self._result else x for x in saved)
        return tuple(next((part for result, part in self._outputs if x is result), x) for x in saved)

    @classmethod
    def apply(cls, *args: Any) -> Any:
        call = cls()
        symbols = [arg for arg in args if isinstance(arg, Symbol)]
        if symbols and symbols[0].builder.travels and symbols[0].builder.merging:
            raise GradientError(
                f"{cls.__name__}: a graph that is saved or sent holds only known operations, and this one has Python "
                "code for a gradient; use it on tensors and in cx.compile, or write it from operations that have "
                "their gradients"
            )
        call.needs_input_grad = tuple(_is_asked(arg) for arg in args)
        with no_grad():
            if cls.setup_context is not Function.setup_context:
                result = cls.forward(*args)
                cls.setup_context(call, args, result)
            else:
                result = cls.forward(call, *args)
        call._args = args  # type: ignore[attr-defined]
        if isinstance(result, tuple) and not symbols:
            return call._several(result)
        if not isinstance(result, (Tensor, Symbol)):
            several = " in cx.compile" if isinstance(result, tuple) else ""
            raise GradientError(f"{cls.__name__}.forward: expected a tensor{several}, got {_described(result)}")
        if any(x is result for x in call._saved) and not any(arg is result for arg in args):
            call._result = result
        if symbols:
            values = [arg for arg in args if isinstance(arg, (Tensor, Symbol))]
            return apply(OWN_GRADIENT, *values, symbols[0].builder.lift(result).detach(), gradient=call._of_symbols)
        inputs = tuple(arg for arg in args if isinstance(arg, Tensor))
        return result if call._is_without(result) else eager.recorded(result, call, inputs)  # type: ignore[arg-type]

    def _is_without(self, result: Any) -> bool:
        return any(result is each for each in self._without)

    def _several(self, results: tuple[Any, ...]) -> tuple[Any, ...]:
        """The results, as parts of one: backward is called once for all of them."""
        name, inputs = type(self).__name__, tuple(arg for arg in self._args if isinstance(arg, Tensor))  # type: ignore[attr-defined]
        for result in results:
            if not isinstance(result, Tensor):
                raise GradientError(f"{name}.forward: expected tensors, got {_described(result)} among them")
        places = [k for k, x in enumerate(results) if x.dtype in INEXACT and not self._is_without(x)]
        if len({results[place].dtype for place in places}) > 1:
            raise GradientError(f"{name}.forward: expected results with gradients of one dtype, got several")
        if not places:
            return results
        with no_grad():
            joined = apply("concat", *(results[place].reshape(-1) for place in places), axis=0)
        together = _Together(self, results, places)
        whole = eager.recorded(joined, together, inputs)
        if not whole.requires_grad:
            return results
        parts = list(results)
        for place in places:
            parts[place] = eager.recorded(results[place], _Part(together, place), (whole,))
        return tuple(parts)

    def _of_symbols(self, g: Any, inputs: Sequence[Any], output: Any) -> list[Any]:
        """input_gradients of a call in a compiled function, whose last input is the result."""
        return [*self.input_gradients(None, g, inputs, output, {}), None]

    def input_gradients(self, op: Any, g: Tensor, inputs: Sequence[Tensor], output: Tensor, attrs: Any) -> list[Any]:
        """What cyxcore.eager.pull asks: a gradient for each tensor argument."""
        self._output = output
        try:
            return self._given_back(self.backward(self, g))
        finally:
            self._output = None

    def _given_back(self, found: Any) -> list[Any]:
        """What backward returned, of the tensors among the arguments."""
        name, args = type(self).__name__, self._args  # type: ignore[attr-defined]
        found = found if isinstance(found, (tuple, list)) else (found,)
        if len(found) != len(args):
            raise GradientError(f"{name}.backward: expected {len(args)} gradients, one per argument, got {len(found)}")
        pairs = [(arg, new) for arg, new in zip(args, found, strict=True) if isinstance(arg, (Tensor, Symbol))]
        for arg, new in pairs:
            if new is not None and new.shape != arg.shape:
                raise GradientError(f"{name}.backward: expected a gradient of shape {arg.shape}, got {new.shape}")
        return [new for _, new in pairs]


class _Together:
    """The operation whose result is all results of a Function's call with gradients, flat and behind each other."""

    def __init__(self, call: Function, results: tuple[Any, ...], places: list[int]) -> None:
        self.call, self.results = call, results
        self.begins: dict[int, int] = {}
        self.size = 0
        for place in places:
            self.begins[place] = self.size
            self.size += results[place].size
        self.asked: set[int] = set()  # results that a gradient came to, in the backward pass under way

    def part(self, flat: Tensor, place: int) -> Tensor:
        shape, begin = self.results[place].shape, self.begins[place]
        return flat[begin : begin + math.prod(shape)].reshape(shape)

    def input_gradients(self, op: Any, g: Tensor, inputs: Sequence[Tensor], output: Tensor, attrs: Any) -> list[Any]:
        call, asked = self.call, self.asked
        self.asked = set()
        given: list[Any] = []
        for place, result in enumerate(self.results):
            if place in self.begins and (place in asked or call._materializes):
                given.append(self.part(g, place))
            else:
                given.append(_nothing(result) if call._materializes else None)
        call._outputs = [(x, self.part(output, k)) for k, x in enumerate(self.results) if k in self.begins]
        try:
            return call._given_back(call.backward(call, *given))
        finally:
            call._outputs = ()


class _Part:
    """One of several results of a Function's call, as the operation that picks it."""

    def __init__(self, together: _Together, place: int) -> None:
        self._together, self._place = together, place

    def input_gradients(self, op: Any, g: Tensor, inputs: Sequence[Tensor], output: Tensor, attrs: Any) -> list[Any]:
        together, begin = self._together, self._together.begins[self._place]
        together.asked.add(self._place)
        behind = together.size - begin - output.size
        return [apply("pad", g.reshape(-1), pads=((begin, behind),))]


def _is_asked(arg: Any) -> bool:
    """Whether a gradient of an argument may be asked for: of a symbol that is not known yet."""
    return isinstance(arg, Symbol) and arg.dtype in INEXACT or isinstance(arg, Tensor) and arg.requires_grad


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward of a Function whose own gradient would be wrong. Raises GradientError where one may be asked for."""

    @functools.wraps(backward)
    def once(ctx: Any, *gradients: Any) -> Any:
        if is_recording() and any(isinstance(g, Tensor) for g in gradients):
            raise GradientError(f"{type(ctx).__name__}.backward: it has no gradient of its own (once_differentiable)")
        return backward(ctx, *gradients)

    return once


def _unchanged(values: Sequence[Any], since: float, name: str) -> tuple[Any, ...]:
    return tuple(eager.unchanged(x, since, name) if isinstance(x, Tensor) else x for x in values)


class _Recomputed(Function):
    @staticmethod
    def forward(ctx: Any, f: Callable[..., Any], *args: Any) -> Any:
        ctx.f, ctx.given, ctx.generator, ctx.since = f, args, eager.generator_state(), eager.now()
        ctx.casting = casting.current()
        return f(*args)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        _unchanged(ctx.given, ctx.since, "remat")
        now = eager.generator_state()
        eager.set_generator_state(ctx.generator)  # so that dropout drops the same again
        try:
            given = [eager.alias(arg) if isinstance(arg, Tensor) and arg.dtype in INEXACT else arg for arg in ctx.given]
            with enable_grad(), casting.of_thread(ctx.casting):
                output = ctx.f(*given)
        finally:
            eager.set_generator_state(now)
        wanted = {id(arg): place for place, arg in enumerate(given) if isinstance(arg, Tensor)}
        found: list[Any] = [None] * len(given)
        for tensor, g in eager.pull(output, gradient, create_graph=False, retain_graph=True):
            if id(tensor) in wanted:
                found[wanted[id(tensor)]] = g
            elif tensor._op is None:  # a parameter that f uses without being given it
                tensor.grad = g.copy() if tensor.grad is None else tensor.grad + g
        return (None, *found)


def remat(f: Callable[..., Any], *args: Any) -> Any:
    """f(*args), remembering only the arguments: the backward pass runs f again. Takes less memory and more time.

    In a graph it is f(*args): a plan decides by itself what it keeps.
    """
    if any(isinstance(arg, Symbol) for arg in args):
        # What f does with an argument is added up before it is added to the rest of its gradient, as on tensors.
        return f(*(_followed(arg) if isinstance(arg, Symbol) and not arg.builder.merging else arg for arg in args))
    if eager.is_recording() and not any(isinstance(arg, Tensor) and arg.requires_grad for arg in args):
        # What f uses without being given it, the parameters of a first layer, may need a gradient all the same.
        followed = Tensor(0.0, requires_grad=True)
        return _Recomputed.apply(lambda _, *given: f(*given), followed, *args)
    return _Recomputed.apply(f, *args)

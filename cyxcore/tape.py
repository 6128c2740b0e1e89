"""What results remember, and the walk back over it to the gradients of what they came from.

Time is a count of what was recorded and written in place, so that what came first can be told.
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import ContextDecorator, contextmanager
from typing import TYPE_CHECKING, Any

from cyxcore.dtype import INEXACT
from cyxcore.errors import GradientError
from cyxcore.gradients import Piece, Sum, input_gradients
from cyxcore.held import Node, connect_tape, is_of_leaves, is_recording, set_recording, walk
from cyxcore.held import now as now
from cyxcore.memory import Overwritten, Put
from cyxcore.values import apply

if TYPE_CHECKING:
    from cyxcore.eager import Tensor

DIFFERENTIABLE = frozenset(INEXACT)
AGAIN = frozenset(("div", "maximum", "minimum"))  # results that rules read, and that are made again if written over


class recording(ContextDecorator):
    """Within the block results of this thread remember what they came from, or do not."""

    def __init__(self, on: bool) -> None:
        self._on = on

    def _recreate_cm(self) -> "recording":
        return recording(self._on)

    def __enter__(self) -> None:
        self._before = is_recording()
        set_recording(self._on)

    def __exit__(self, *error: object) -> None:
        set_recording(self._before)


def no_grad(function: Any = None) -> Any:
    """Within the block, or within the function that it decorates, results of this thread remember nothing and need no
    gradient.
    """
    return _block_or_decorated(False, function)


def enable_grad(function: Any = None) -> Any:
    """Within the block, or the function, results remember what they came from again, also inside no_grad()."""
    return _block_or_decorated(True, function)


def inference_mode(mode: Any = True) -> Any:
    """no_grad(), or enable_grad() for False."""
    return _block_or_decorated(False, mode) if callable(mode) else recording(not mode)


def _block_or_decorated(on: bool, function: Any) -> Any:
    return recording(on) if function is None else recording(on)(function)


class set_grad_enabled(recording):  # noqa: N801 - PyTorch's name
    """Whether results of this thread remember what they came from, from now on. As a context, or as a decorator, only
    within the block.
    """

    def __init__(self, mode: bool) -> None:
        super().__init__(bool(mode))
        self._before = is_recording()
        set_recording(self._on)

    def __enter__(self) -> None:  # it began with the call
        pass

    def __call__(self, function: Any) -> Any:
        set_recording(self._before)
        return super().__call__(function)


class detect_anomaly(ContextDecorator):  # noqa: N801 - PyTorch's name
    """Within the block every backward() of this process looks for NaN in what each operation gives back: slow.

    It raises GradientError, which names the operation. Compiled steps do not look.
    """

    def __init__(self, check_nan: bool = True) -> None:
        self._mode = check_nan
        self._before: list[bool] = []  # a function that it decorates may call itself

    def __enter__(self) -> None:
        self._before.append(set_detect_anomaly.looks)
        set_detect_anomaly.looks = self._mode

    def __exit__(self, *error: object) -> None:
        set_detect_anomaly.looks = self._before.pop()


class set_detect_anomaly(detect_anomaly):  # noqa: N801 - PyTorch's name
    """detect_anomaly() from now on, or no longer. As a context only within the block."""

    looks = False  # the process'

    def __init__(self, mode: bool, check_nan: bool = True) -> None:
        super().__init__(mode and check_nan)
        self._at_call, set_detect_anomaly.looks = set_detect_anomaly.looks, self._mode

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if not self._before:
            set_detect_anomaly.looks = self._at_call


def _look_for_nan(op: Any, place: int, new: Any) -> None:
    found = new.g if type(new) is Piece else new
    with no_grad():
        if bool((found != found).any()):
            name = op if type(op) is str else type(op).__name__
            raise GradientError(
                f"backward: NaN in the gradient that {name} gives to input {place}, of shape {tuple(found.shape)}"
            )


def recorded(result: "Tensor", op: Any, inputs: "tuple[Tensor, ...]") -> "Tensor":
    """`result` (a leaf) as what op made of the inputs, where somebody may ask for their gradients."""
    if is_recording() and result.dtype in DIFFERENTIABLE and any(x.requires_grad for x in inputs):
        result = result.detach()
        result.requires_grad, result._op = True, Node(op, inputs, {}, now())
    return result


def unchanged(x: "Tensor", since: float, op: str) -> "Tensor":
    """x. Raises GradientError where it was written to since."""
    if x._memory is not None and x._memory.written > since:
        raise Overwritten(x.shape, x.dtype, op).error()
    return x


class Composed:
    """The operation of a result that several made (composed.py). totals() gives their gradients, the sums that are
    there with them, of the node whose operation it is; expand() lets the result remember the several.
    """

    several = False  # whether what it made stands for several results: its gradient is a Sum of a Piece for each

    def totals(self, node: Node, g: "Tensor", pending: list[Any]) -> list[Any]:
        raise NotImplementedError

    def expand(self, tensor: "Tensor") -> None:
        raise NotImplementedError


def pending_total(pending: Any) -> Any:
    """What there is of a gradient that something new is added to at once: none of its pieces."""
    return pending.whole if type(pending) is Sum else None if type(pending) is Piece else pending


def check_kept(x: "Tensor") -> None:
    """Raises GradientError where a walk back has given back what x came from."""
    if x._op is not None and x._op.forgotten:
        raise GradientError(
            f"backward: what a tensor of shape {x.shape} came from was given back by the backward() or grad() that "
            "went through it before; pass retain_graph=True to that one, or compute the tensor again"
        )


@contextmanager
def _needed(x: "Tensor") -> Iterator[None]:
    """Within the block what x came from is needed, which the walk of another thread may give back at any moment: what
    goes wrong for want of it is that error.
    """
    try:
        yield
    except Exception:
        check_kept(x)
        raise


def forget(x: "Tensor") -> None:
    """Give back what x came from, after a walk back through it.

    Not where that is nothing but leaves and views and sums of them: it takes no memory, and may be gone through again.
    """
    node: Any = x._op
    if not (type(node.op) is Put or is_of_leaves(x)):  # what was assigned to is asked later for what it was before
        node.forget()


def _expand(root: "Tensor") -> None:
    """Let all that root came from remember single operations."""
    seen, waiting = {id(root)}, [root]
    while waiting:
        tensor = waiting.pop()
        node: Any = tensor._op
        if node is None:
            continue
        with _needed(tensor):
            inputs = node.inputs
            if isinstance(node.op, Composed):
                node.op.expand(tensor)
                inputs += tensor._op.inputs  # type: ignore[union-attr]
        check_kept(tensor)
        for x in inputs:
            if id(x) not in seen:
                seen.add(id(x))
                waiting.append(x)


def _then(x: "Tensor", since: float) -> "Tensor":
    """What x remembered at a time: it may have been assigned to since."""
    while x._op is not None and x._op.time > since and type(x._op.op) is Put:
        x = x._op.inputs[0]
    return x


def _value(x: "Tensor", since: float, op: Any) -> Any:
    """x for a gradient rule, as far as it is what it was then."""
    if x._memory is None or x._memory.written <= since:
        return x
    return Overwritten(x.shape, x.dtype, op if type(op) is str else type(op).__name__)


def pull(root: "Tensor", start: "Tensor", create_graph: bool, retain_graph: bool) -> "Iterator[tuple[Tensor, Tensor]]":
    """(tensor, its gradient) of everything root depends on, newest first. start: the gradient of root.

    Unless retain_graph, what was gone back through is given back. Raises GradientError where that was done before.
    """
    short: Iterator[tuple[Tensor, Tensor]] | None = None
    if create_graph:
        _expand(root)
    if not set_detect_anomaly.looks:
        short = walk(root, start, create_graph, retain_graph)
    return _pulled(root, start, create_graph, retain_graph) if short is None else short


def into_leaves(
    root: "Tensor", start: "Tensor", create_graph: bool, retain_graph: bool, only: set[int] | None = None
) -> None:
    """Add the gradient of root to that of every leaf it depends on. only: to that of the tensors with these ids.

    retain_graph: as of pull().
    """
    if create_graph:
        _expand(root)
    short = walk(root, start, create_graph, retain_graph) if only is None and not set_detect_anomaly.looks else None
    if short is not None:
        short.into_leaves()
        return
    back = _pulled if only is None else pull
    for leaf, g in back(root, start, create_graph, retain_graph):
        if leaf._op is None if only is None else id(leaf) in only:
            if leaf.grad is not None:
                leaf.grad = leaf.grad + g
            else:
                leaf.grad = g if create_graph else g.copy()  # no other tensor's memory


def _pulled(
    root: "Tensor", start: "Tensor", create_graph: bool, retain_graph: bool
) -> "Iterator[tuple[Tensor, Tensor]]":
    """pull() the general way, also where something was assigned to since it was used."""
    _expand(root)
    pending: dict[int, Any] = {id(root): start}  # a gradient, a Piece of one, or their Sum
    order = [(tensor, tensor._op) for tensor in reversed(_newest_first(root))]
    while order:
        tensor, remembered = order.pop()
        g = pending.pop(id(tensor), None)
        if g is None:
            continue
        if type(g) is Sum or type(g) is Piece:
            g = _whole(g, tensor, create_graph)
        for hook in tensor._hooks or ():
            changed = hook(g)
            g = g if changed is None else changed
        yield tensor, g
        if tensor._op is None:
            continue
        if tensor._op is not remembered:
            raise GradientError(
                f"backward: a tensor of shape {tensor.shape} was assigned to on the way back (by a hook, or another "
                "thread); assign before or afterwards"
            )
        before = is_recording()
        set_recording(before and create_graph)
        try:
            node: Any = tensor._op
            with _needed(tensor):
                gradients = list(zip(node.inputs, _backwards(tensor, g), strict=True))
            for place, (x, new) in enumerate(gradients):
                if new is not None:
                    if set_detect_anomaly.looks:
                        _look_for_nan(node.op, place, new)
                    source = _then(x, node.time)
                    so_far = pending.get(id(source))
                    pending[id(source)] = new if so_far is None else together(so_far, new)
        finally:
            set_recording(before)
        if not retain_graph:
            forget(tensor)


def together(so_far: Any, new: Any) -> Sum:
    """What was found of a gradient so far and something new."""
    if type(new) is Sum:
        return new
    total = so_far if type(so_far) is Sum else Sum()
    if so_far is not None and total is not so_far:
        total.add(so_far)
    total.add(new)
    return total


def _whole(g: Any, tensor: "Tensor", create_graph: bool) -> "Tensor":
    """The gradient of a tensor out of what was found of it."""
    if tensor._op is not None and isinstance(tensor._op.op, Composed) and tensor._op.op.several:
        return g
    with recording(is_recording() and create_graph):
        found: Tensor = together(None, g).value(tensor.shape)
    return found


def _backwards(tensor: "Tensor", g: "Tensor") -> list[Any]:
    """Of each input a tensor was made of, its gradient: None where it is not followed. g: the gradient of tensor."""
    check_kept(tensor)
    node: Any = tensor._op
    since, op = node.time, node.op
    wanted = [asked and _then(x, since).requires_grad for x, asked in zip(node.inputs, node.followed, strict=True)]
    known, output = [_value(x, since, op) for x in node.inputs], _value(tensor, since, op)
    if type(output) is Overwritten and op in AGAIN:
        output = apply(op, *known, **node.attrs)
    if type(op) is str:
        gradients = input_gradients(op, g, known, output, node.attrs, wanted)
    else:
        gradients = op.input_gradients(op, g, known, output, node.attrs)
    for follow, new in zip(wanted, gradients, strict=True):
        if new is not None and follow:
            lost = new.g if isinstance(new, Piece) else new
            if isinstance(lost, Overwritten):
                raise lost.error()
    return [new if follow else None for follow, new in zip(wanted, gradients, strict=True)]


connect_tape(_backwards, input_gradients, together, _whole, Piece, Composed, forget, check_kept)


def _newest_first(root: "Tensor") -> "list[Tensor]":
    """Every tensor the root came from, each before its inputs, otherwise the newest first, as in a compiled step.

    The order is part of the result: sums of three and more gradients depend on it. No recursion: a tape may be long.
    """
    sources: dict[int, list[Tensor]] = {}
    results: list[Tensor] = []  # what has sources
    waiting, in_time = [root], True
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in sources:
            continue
        node = tensor._op
        if node is None:
            sources[id(tensor)] = []
            continue
        since = node.time
        sources[id(tensor)] = found = []
        results.append(tensor)
        for x, asked in zip(node.inputs, node.followed, strict=True):
            source = x if x._op is None or x._op.time <= since else _then(x, since)
            if asked and source.requires_grad:
                found.append(source)
                in_time &= source._op is None or source._op.time < since
                if id(source) not in sources:
                    waiting.append(source)
    if not in_time:
        return _in_order(root, sources)
    results.sort(key=_time, reverse=True)
    leaves: dict[int, Tensor] = {}  # by who asked for them last
    for tensor in results:
        for source in sources[id(tensor)]:
            if source._op is None:
                leaves.pop(id(source), None)
                leaves[id(source)] = source
    return [*results, *leaves.values()] if results else [root]


def _time(tensor: "Tensor") -> int:
    node: Any = tensor._op
    time: int = node.time
    return time


def _in_order(root: "Tensor", sources: "dict[int, list[Tensor]]") -> "list[Tensor]":
    """Where the times alone do not tell: a view that learned late what it is of is not older than its sources."""
    uses = Counter(id(x) for found in sources.values() for x in found)
    order: list[Tensor] = []
    ready: list[tuple[float, int, Tensor]] = [(0, 0, root)]  # (how old, which of these came first, a tensor)
    count = itertools.count(1)
    while ready:
        tensor = heapq.heappop(ready)[2]
        order.append(tensor)
        for x in sources[id(tensor)]:
            uses[id(x)] -= 1
            if not uses[id(x)]:
                heapq.heappush(ready, (0 if x._op is None else -x._op.time, next(count), x))
    return order

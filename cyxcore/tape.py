"""What results remember, and the walk back over it to the gradients of what they came from.

Time is a count of what was recorded and written in place, so that what came first can be told.
"""

import heapq
import itertools
from collections.abc import Iterator
from contextlib import ContextDecorator
from typing import TYPE_CHECKING, Any

from cyxcore.dtype import INEXACT
from cyxcore.gradients import Piece, Sum, input_gradients
from cyxcore.held import Node, is_recording, set_recording
from cyxcore.held import now as now
from cyxcore.memory import Overwritten, Put

if TYPE_CHECKING:
    from cyxcore.eager import Tensor

DIFFERENTIABLE = frozenset(INEXACT)


class recording(ContextDecorator):
    """Within the block results remember what they came from, or do not."""

    def __init__(self, on: bool) -> None:
        self._on = on

    def _recreate_cm(self) -> "recording":
        return recording(self._on)

    def __enter__(self) -> None:
        self._before = is_recording()
        set_recording(self._on)

    def __exit__(self, *error: object) -> None:
        set_recording(self._before)


def no_grad() -> recording:
    """Within the block results remember nothing and need no gradient."""
    return recording(False)


def enable_grad() -> recording:
    """Within the block results remember what they came from again, also inside no_grad()."""
    return recording(True)


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


def pull(root: "Tensor", start: "Tensor", create_graph: bool) -> "Iterator[tuple[Tensor, Tensor]]":
    """(tensor, its gradient) of everything root depends on, newest first. start: the gradient of root."""
    pending = {id(root): Sum()}
    pending[id(root)].add(start)
    for tensor in _newest_first(root):
        so_far = pending.pop(id(tensor), None)
        if so_far is None:
            continue
        with recording(is_recording() and create_graph):
            g = so_far.value(tensor.shape)
        for hook in tensor._hooks or ():
            changed = hook(g)
            g = g if changed is None else changed
        yield tensor, g
        if tensor._op is None:
            continue
        op, inputs, attrs, since = tensor._op.op, tensor._op.inputs, tensor._op.attrs, tensor._op.time
        with recording(is_recording() and create_graph):
            rule = input_gradients if type(op) is str else op.input_gradients
            known = [_value(x, since, op) for x in inputs]
            for x, new in zip(inputs, rule(op, g, known, _value(tensor, since, op), attrs), strict=True):
                source = _then(x, since)
                if new is not None and source.requires_grad:
                    lost = new.g if isinstance(new, Piece) else new
                    if isinstance(lost, Overwritten):
                        raise lost.error()
                    pending.setdefault(id(source), Sum()).add(new)


def _newest_first(root: "Tensor") -> "list[Tensor]":
    """Every tensor the root came from, each before its inputs, otherwise the newest first, as in a compiled step.

    The order is part of the result: sums of three and more gradients depend on it. No recursion: a tape may be long.
    """
    sources: dict[int, list[Tensor]] = {}
    uses = {id(root): 0}
    waiting = [root]
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in sources:
            continue
        op = tensor._op
        found = [] if op is None else [x for x in (_then(x, op.time) for x in op.inputs) if x.requires_grad]
        sources[id(tensor)] = found
        for x in found:
            uses[id(x)] = uses.get(id(x), 0) + 1
        waiting += found
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

"""Recurrences as one on the tape: a thousand operations on small arrays are one call of a kernel there, and one back.

What the kernel makes is kept for the way back, not made again: that would be all of its products once more.

Where more is asked than gradients (a second derivative, anomalies), the operations take the place of the one on the
tape: _Part.expand.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cyxcore.composed import DTYPES, MOST_OPERATIONS, array_of, check_unchanged, described, in_place_of, remade
from cyxcore.eager import Tensor, wrap
from cyxcore.forks import renew_in_children
from cyxcore.gradients import Piece, Sum
from cyxcore.held import Node, later
from cyxcore.recurrences import Kept, Recurrence, recurrence_of
from cyxcore.tape import Composed, check_kept, pending_total

Array = Any

MOST_OF_A_STEP = 64  # operations of a step at most


class _Call(Composed):
    """One call, as the operation of what stands for all of its results: its gradient is a Sum of a Piece of each."""

    several = True

    def __init__(self, layer: Recurrence, kept: Kept) -> None:
        self.step = MOST_OPERATIONS + 1  # times of each operation, which may be one of composed.py
        self.room = self.step * (1 + MOST_OF_A_STEP * (1 + kept.gates.shape[1]))
        self._layer, self._kept = layer, kept
        self._lock = threading.Lock()
        self._operations: tuple[Tensor, ...] | None = None

    @property
    def __name__(self) -> str:
        return self._layer.kind.function.__name__.strip("_")

    def totals(self, node: Any, g: Any, pending: list[Any]) -> list[Any]:
        check_unchanged(node, self._layer.needed)
        followed = self._layer.kind.followed
        given: list[Array | None] = [None] * self._layer.count
        for piece in g.pieces:
            given[piece.starts[0]] = array_of(piece.g)
        sums = [pending_total(x) if follow else None for x, follow in zip(pending, followed, strict=True)]
        arrays = [array_of(x) for x in node.inputs]
        so_far = [None if x is None else array_of(x) for x in sums]
        made = self._layer.back(arrays, self._kept, given, so_far)
        return [
            None if new is None else in_place_of(each, total, wrap(new))
            for each, total, new in zip(pending, sums, made, strict=True)
        ]

    def expand(self, tensor: Tensor) -> None:
        """Nothing: its parts are expanded, and nobody else has it."""

    def operations(self, node: Node) -> tuple[Tensor, ...]:
        """The results, remembering single operations with times before that of the node."""
        with self._lock:
            if self._operations is None:
                check_unchanged(node, range(len(node.inputs)))  # as the states are made again
                self._operations = remade(self._layer.kind, node.inputs, node.time - self.room, self.step)
            return self._operations


class _Part(Composed):
    """The operation of one of the results: of what stands for all of them."""

    def __init__(self, number: int) -> None:
        self._number = number

    def totals(self, node: Any, g: Tensor, pending: list[Any]) -> list[Any]:
        total = pending[0] or Sum()
        total.add(Piece(g, (self._number,), (self._number + 1,)))
        return [total]

    def expand(self, tensor: Tensor) -> None:
        """Let the tensor be a view of what the operations made."""
        with _expanding:  # once: another thread may walk back over it
            node: Any = tensor._op
            if node.op is self:
                check_kept(node.inputs[0])
                of_all = node.inputs[0]._op
                result = of_all.op.operations(of_all)[self._number]
                tensor._op = Node("reshape", (result,), {"shape": tensor.shape}, node.time)


_expanding = threading.Lock()
renew_in_children(sys.modules[__name__], "_expanding")


def sequence(
    function: Callable[..., tuple[Any, ...]], inputs: Sequence[Any], options: tuple[Any, ...]
) -> tuple[Any, ...]:
    """function(*inputs, *options), which gives several tensors.

    inputs: tensors on the host, or None. Its operations run one by one where the kernel does not make them.
    """
    found = described(function, inputs, options, (*DTYPES, "int32", "int64"))
    layer = None if found is None else recurrence_of(found[0])
    if found is None or layer is None:
        return function(*inputs, *options)
    kind, tensors = found
    arrays, kept = layer.run([array_of(x) for x in tensors])
    results = [wrap(array) for array in arrays]
    if any(kind.followed):
        call = _Call(layer, kept)
        of_all = wrap(np.empty(0, results[0].dtype))
        last = later(call.room + 1 + len(results))
        of_all.requires_grad, of_all._op = True, Node(call, tuple(tensors), {}, last - len(results))
        for number, x in enumerate(results):
            x.requires_grad = True
            x._op = Node(_Part(number), (of_all,), {}, last - len(results) + 1 + number)
    return tuple(results)

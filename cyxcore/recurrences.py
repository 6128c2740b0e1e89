"""Recurrent layers of tensors by one kernel, there and back: what sequences.py runs.

The kernel (kernels/src/recurrence.inl) makes all steps behind the product of the inputs, with the weights packed once.
It has the bits of the operations in functional/recurrent.py, and of their gradients.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cyxcore import device as devices
from cyxcore.functional.recurrent import CELLS

Array = Any
FLOATS = ("float32", "float64")


class Given(NamedTuple):
    """The arguments of functional.recurrent._recurrence, or what belongs to each of them."""

    x: Any  # (N, T, C)
    lengths: Any
    weight_ih: Any
    weight_hh: Any
    bias_ih: Any
    bias_hh: Any
    weight_hr: Any
    hidden: Any
    cell: Any = None


class Kept(NamedTuple):
    """What the way back reads, beside tensors."""

    gates: Array  # (N, T, G H)
    hidden: Array  # (T + 1, N, P), P being H but behind a projection
    cells: Array | None
    whole: Array | None  # (T, N, H), where that is projected


class Recurrence:
    """One direction of a layer. kind: a composed.Kind of a call of _recurrence."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind
        self._places = Given(*kind.places)
        self._cell, self._reverse = kind.options
        shape, dtype = kind.typed[self._places.x]
        self._rows, self._steps, _ = shape
        self._width, self._state = kind.typed[self._places.weight_hh][0]
        self._size = self._width // CELLS[self._cell].gates
        self._projects = self._places.weight_hr is not None
        self._type = np.dtype(dtype).num
        self._kernels: Any = devices.backend("cpu").kernels  # type: ignore[attr-defined]
        self.count = 1 + CELLS[self._cell].states
        self.follows = any(kind.followed)
        self.needed = {self._places.weight_hh}  # the tensors that the way back reads
        if self._places.weight_hr is not None:
            self.needed.add(self._places.weight_hr)
        if self._places.lengths is not None:
            self.needed.add(self._places.lengths)
        if self._is_followed("x"):
            self.needed.add(self._places.weight_ih)
        if self._is_followed("weight_ih"):
            self.needed.add(self._places.x)

    def _is_followed(self, name: str) -> bool:
        place = getattr(self._places, name)
        return place is not None and bool(self.kind.followed[place])

    def _new(self, *shape: int) -> Array:
        return self._kernels.aligned(shape, self._type)

    def _of(self, arrays: Sequence[Array]) -> Given:
        return Given(*(None if place is None else arrays[place] for place in self._places))

    def run(self, arrays: Sequence[Array]) -> tuple[list[Array], Kept]:
        """The results, and what is kept for the way back. arrays: of the tensors."""
        given, rows, steps, size = self._of(arrays), self._rows, self._steps, self._size
        slots = steps + 1 if self.follows else 2
        hidden = self._new(slots, rows, self._state)
        hidden[0] = 0.0 if given.hidden is None else given.hidden
        cells = None
        if self._cell == "lstm":
            cells = self._new(slots, rows, size)
            cells[0] = 0.0 if given.cell is None else given.cell
        elif self._cell == "gru" and self.follows:
            cells = self._new(steps, rows, size)
        gates, out = self._new(rows * steps, self._width), self._new(rows, steps, self._state)
        whole = self._new(steps, rows, size) if self._projects and self.follows else None
        x = given.x.reshape(rows * steps, -1)
        self._kernels.call("matmul", gates, (x, given.weight_ih), {"transpose_a": False, "transpose_b": True})
        gates = gates.reshape(rows, steps, self._width)
        self._kernels.recur(
            self._cell, self._reverse, given.weight_hh, gates, hidden, cells, out,
            bias=given.bias_hh, input_bias=given.bias_ih, projection=given.weight_hr, whole=whole,
            lengths=_whole(given.lengths),
        )  # fmt: skip
        ends = [each[steps % slots].copy() for each in (hidden, cells)[: self.count - 1] if each is not None]
        return [out, *ends], Kept(gates, hidden, cells, whole)

    def back(
        self, arrays: Sequence[Array], kept: Kept, g: Sequence[Array | None], sums: Sequence[Array | None]
    ) -> list[Array | None]:
        """The gradient of each tensor that is followed, else None. g: those of the results; sums: what there is of each
        so far.
        """
        given, before, rows = self._of(arrays), self._of(sums), self._rows * self._steps
        made = Given(*(
            self._new(*self.kind.typed[place][0]) if place is not None and self.kind.followed[place] else None
            for place in self._places
        ))  # fmt: skip
        of_x = self._new(*kept.gates.shape)
        self._kernels.recur(
            self._cell, self._reverse, given.weight_hh, kept.gates, kept.hidden, kept.cells,
            projection=given.weight_hr, whole=kept.whole, lengths=_whole(given.lengths), g=(*g, None)[:3], of_x=of_x,
            of_h=self._new(*kept.gates.shape) if self._cell == "gru" else None,
            of_states=self._new(self._steps, self._rows, self._state) if self._projects else None,
            before=(before.weight_hh, before.bias_hh, before.hidden, before.cell, before.weight_hr),
            made=(made.weight_hh, made.bias_hh, made.hidden, made.cell, made.weight_hr),
        )  # fmt: skip
        if self._steps == 1 and g[0] is None and g[1] is None:  # of the cell alone, which nothing projected
            made = made._replace(weight_hr=None)
        of_x = of_x.reshape(rows, self._width)
        if made.x is not None:
            inputs = of_x, given.weight_ih
            self._kernels.call("matmul", made.x.reshape(rows, -1), inputs, {"transpose_a": False, "transpose_b": False})
        if made.weight_ih is not None:
            inputs = of_x, given.x.reshape(rows, -1)
            self._kernels.call("matmul", made.weight_ih, inputs, {"transpose_a": True, "transpose_b": False})
        if made.bias_ih is not None:
            self._kernels.call("sum", made.bias_ih, (of_x,), {"axes": (0,), "keepdims": False})
        for new, so_far in zip(made[:5], before[:5], strict=True):
            if new is not None and so_far is not None and new is not made.weight_hh:
                with np.errstate(all="ignore"):
                    np.add(so_far, new, out=new)
        found = {place: new for place, new in zip(self._places, made, strict=True) if place is not None}
        return [found[place] for place in range(len(self.kind.typed))]


def _whole(lengths: Array | None) -> Array | None:
    return None if lengths is None else lengths.astype(np.int64)


def recurrence_of(kind: Any) -> Recurrence | None:
    """What makes the calls of a composed.Kind; None where the kernel does not."""
    places = Given(*kind.places[: len(Given._fields)])
    tensors = [place for place in places if place is not None]
    if len(set(tensors)) < len(tensors):
        return None
    shape, dtype = kind.typed[places.x]
    if places.lengths is not None and not kind.typed[places.lengths][1].startswith("int"):
        return None
    if dtype not in FLOATS or any(each != dtype for at, (_, each) in enumerate(kind.typed) if at != places.lengths):
        return None
    width, state = kind.typed[places.weight_hh][0]
    size = width // CELLS[kind.options[0]].gates
    wanted = Given(
        shape,
        shape[:1],
        (width, shape[2]),
        (width, state),
        (width,),
        (width,),
        (state, size),
        (shape[0], state),
        (shape[0], size),
    )
    fits = all(place is None or kind.typed[place][0] == each for place, each in zip(places, wanted, strict=True))
    # Of products of one column gradients are added in another order.
    fits = fits and (state == size if places.weight_hr is None else 1 < state <= size)
    return Recurrence(kind) if fits and width > 1 and width == CELLS[kind.options[0]].gates * size else None

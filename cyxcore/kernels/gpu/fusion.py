"""Which calls of a program become one kernel: neighbouring element-wise calls with results of one shape.

Works on addresses, since a plan reuses memory: a call joins a chain only where running all its elements at once cannot
read what another element has already overwritten. Nothing here runs or needs a device.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from cyxcore.kernels.gpu import chains

Array = Any
Span = tuple[int, int]  # addresses of the first byte and of the one behind the last
MAX_POINTERS = 24


class Part(NamedTuple):
    """One kernel: a chain, or a single call (`steps` empty)."""

    first: int  # places of its calls in the program
    behind: int
    inputs: list[Array]
    steps: list[chains.Step]
    stores: dict[int, Array]


class _Read(NamedTuple):
    array: Array
    span: Span
    whole: bool  # element i for element i


class _Open:
    """A chain that still takes calls. Values are ("read" | "step", place)."""

    def __init__(self, first: int, shape: tuple[int, ...]) -> None:
        self.first, self.shape = first, shape
        self.reads: list[_Read] = []
        self.steps: list[tuple[str, tuple[tuple[str, int], ...], Mapping[str, Any], str]] = []
        self.written: dict[int, tuple[Span, int, Array]] = {}  # by first address: where, by which step, as what

    def take(self, call: Any, span: Callable[[Array], Span]) -> bool:
        """Adds the call, or says that it must not join."""
        if call.out.shape != self.shape or len(self.reads) + len(self.written) + len(call.inputs) + 1 > MAX_POINTERS:
            return False
        reads, sources = list(self.reads), []
        for x in call.inputs:
            where, whole = span(x), x.size == call.out.size
            held = self.written.get(where[0])
            if held is not None and held[0] == where and held[2].dtype == x.dtype and whole:
                sources.append(("step", held[1]))
                continue
            if any(overlap(where, other) for other, _, _ in self.written.values()):
                return False
            known = next(
                (
                    n
                    for n, r in enumerate(reads)
                    if r.span == where and r.array.dtype == x.dtype and r.array.shape == x.shape
                ),
                None,
            )
            if known is None:
                known = len(reads)
                reads.append(_Read(x, where, whole))
            sources.append(("read", known))
        target = span(call.out)
        same_cells = (target[0], call.out.itemsize)
        for read in reads:
            if overlap(read.span, target) and not (read.whole and (read.span[0], read.array.itemsize) == same_cells):
                return False
        for where, _, array in self.written.values():
            if overlap(where, target) and (where[0], array.itemsize) != same_cells:
                return False
        self.reads = reads
        self.written[target[0]] = (target, len(self.steps), call.out)
        self.steps.append((call.op, tuple(sources), call.attrs, call.out.dtype.name))
        return True

    def close(self, behind: int, needed: Callable[[Span, int], bool]) -> Part:
        base = len(self.reads)
        steps = [
            chains.Step(
                op,
                tuple(place if kind == "read" else base + place for kind, place in sources),
                chains.numbers(attrs),
                dtype,
            )
            for op, sources, attrs, dtype in self.steps
        ]
        stores = {base + step: array for where, step, array in self.written.values() if needed(where, behind)}
        return Part(self.first, behind, [read.array for read in self.reads], steps, stores)


def overlap(a: Span, b: Span) -> bool:
    return a[0] < b[1] and b[0] < a[1]


def parts(calls: Sequence[Any], span: Callable[[Array], Span], scratch: Span, results: Sequence[Array]) -> list[Part]:
    """The program as kernels, in order. scratch: the arena, of which only `results` is read after the last call."""
    spans = [([span(x) for x in call.inputs], span(call.out)) for call in calls]
    kept = [span(array) for array in results]

    def needed(where: Span, behind: int) -> bool:
        for reads, written in spans[behind:]:
            if any(overlap(where, one) for one in reads):
                return True
            if written[0] <= where[0] and where[1] <= written[1]:
                return False
        inside = scratch[0] <= where[0] and where[1] <= scratch[1]
        return not inside or any(overlap(where, one) for one in kept)

    found: list[Part] = []
    chain: _Open | None = None
    for place, call in enumerate(calls):
        joins = call.op in chains.EXPRESSIONS and call.out.size > 0
        if chain is not None and not (joins and chain.take(call, span)):
            found.append(chain.close(place, needed))
            chain = None
        if chain is None:
            if joins:
                chain = _Open(place, call.out.shape)
                if chain.take(call, span):
                    continue
                chain = None
            found.append(Part(place, place + 1, list(call.inputs), [], {}))
    if chain is not None:
        found.append(chain.close(len(calls), needed))
    return [part for part in found if part.stores or not part.steps]  # a chain nobody reads is no work

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


class Ending(NamedTuple):
    """All that a chain does to a product: a bias added to every row, or ReLU, or both in this order."""

    bias: Array | None
    relu: bool
    out: Array
    chain: "Part"


class Part(NamedTuple):
    """One kernel: a chain, or a single call (`steps` empty), which may be a product with the chain behind it."""

    first: int  # places of its calls in the program
    behind: int
    inputs: list[Array]
    steps: list[chains.Step]
    stores: dict[int, Array]
    ending: Ending | None = None


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


def without(a: Span, b: Span) -> list[Span]:
    """What of a is not in b."""
    pieces = (a[0], min(a[1], b[0])), (max(a[0], b[1]), a[1])
    return [piece for piece in pieces if piece[0] < piece[1]]


def parts(
    calls: Sequence[Any],
    span: Callable[[Array], Span],
    scratch: Span,
    results: Sequence[Array],
    endings: bool = False,
) -> list[Part]:
    """The program as kernels, in order. scratch: the arena, of which only `results` is read after the last call.

    endings: whether products are given the chains that they may end with.
    """
    spans = [([span(x) for x in call.inputs], span(call.out)) for call in calls]
    kept = [span(array) for array in results]

    def needed(where: Span, behind: int) -> bool:
        left = [where]  # what of it was not written over since
        for reads, written in spans[behind:]:
            if any(overlap(part, one) for part in left for one in reads):
                return True
            left = [piece for part in left for piece in without(part, written)]
            if not left:
                return False
        inside = scratch[0] <= where[0] and where[1] <= scratch[1]
        return not inside or any(overlap(part, one) for part in left for one in kept)

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
    found = [part for part in found if part.stores or not part.steps]  # a chain nobody reads is no work
    if not endings:
        return found
    joined: list[Part] = []
    for part in found:
        before = joined[-1] if joined and not joined[-1].steps else None
        ending = _ending(calls[before.first], part, span, needed) if before and part.steps else None
        if before and ending:
            joined[-1] = before._replace(ending=ending)
        else:
            joined.append(part)
    return joined


def _ending(
    call: Any, chain: Part, span: Callable[[Array], Span], needed: Callable[[Span, int], bool]
) -> Ending | None:
    """What the chain makes of the call's result, if the call is a product and could store that instead."""
    if call.op != "matmul" or not call.inputs[0].size or call.out.dtype.kind != "f" or len(chain.stores) != 1:
        return None
    where, columns = span(call.out), call.out.shape[-1]
    value = next((n for n, x in enumerate(chain.inputs) if span(x) == where and x.shape == call.out.shape), None)
    bias, relu = None, False
    for place, step in enumerate(chain.steps, len(chain.inputs)):
        others = [n for n in step.inputs if n != value]
        if step.op == "add" and len(others) == 1 and others[0] < len(chain.inputs) and not relu and bias is None:
            bias = chain.inputs[others[0]]
            if bias.shape[-1:] != (columns,) or bias.size != columns or bias.dtype != call.out.dtype:
                return None
        elif step.op != "relu" or others:
            return None
        else:
            relu = True
        value = place
    ((stored, out),) = chain.stores.items()
    target = span(out)
    reads = [*call.inputs, *([] if bias is None else [bias])]
    if stored != value or out.shape != call.out.shape or any(overlap(span(x), target) for x in reads):
        return None
    if where != target and needed(where, chain.behind):
        return None
    return Ending(bias, relu, out, chain)

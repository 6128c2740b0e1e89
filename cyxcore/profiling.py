"""Where the time goes: each operation of tensors, and each kernel of a compiled plan.

    with cx.profile() as prof:
        step(x, y)
    print(prof)                # a table, the most expensive first
    prof.save("trace.json")    # for chrome://tracing or ui.perfetto.dev

On the cpu a plan is timed as it runs: what is fused, or runs in bands, is one row. On a device with its own memory a
run of a plan is one row, and what single operations take is the time to start them. Outside the block nothing is
measured.
"""

import json
import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cyxcore import device as devices
from cyxcore import plan as plans
from cyxcore.device import Call
from cyxcore.errors import CyxError, SpecError
from cyxcore.ops import OPS
from cyxcore.overview import short

Array = Any
SHOWN = 30  # rows of a printed table


class Record(NamedTuple):
    """One operation that was made. start_ns: as time.perf_counter_ns has it. bytes: read and written."""

    name: str
    where: str  # "eager" or "plan"
    start_ns: int
    duration_ns: int
    flops: int
    bytes: int
    shapes: str


class Row(NamedTuple):
    """All records of one name. share: of the time of all records."""

    name: str
    calls: int
    total_ms: float
    mean_us: float
    share: float
    gigabytes_per_s: float
    gigaflops_per_s: float


class Profile:
    """A context: records what is made within it, in this thread. Profiles do not nest."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self._thread = 0
        self._patched: list[Any] = []

    def __enter__(self) -> "Profile":
        if plans.observer is not None:
            raise SpecError("profile: one is open already; leave its block first")
        self._thread = threading.get_ident()
        plans.observer = self._run
        for name in {"cpu", "reference", devices.default_device()}:
            if not devices.missing(name):
                backend: Any = devices.backend(name)
                backend.call = self._timed(backend.call)
                self._patched.append(backend)
        devices.watch(True)
        return self

    def __exit__(self, *error: object) -> None:
        plans.observer = None
        while self._patched:
            del self._patched.pop().call
        devices.watch(False)

    def _timed(self, call: Any) -> Any:
        def timed(op: str, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> None:
            began = time.perf_counter_ns()
            call(op, out, inputs, attrs)
            self._add("eager", [Call(op, out, tuple(inputs), attrs)], began, time.perf_counter_ns() - began)

        return timed

    def _run(self, plan: plans.Plan) -> None:
        program: Any = getattr(plan.program, "__self__", None)
        if hasattr(program, "timed"):
            for first, count, began, duration in program.timed():
                self._add("plan", plan.calls[first : first + count], began, duration)
            return
        began = time.perf_counter_ns()
        plan.program()
        self._add("plan", plan.calls, began, time.perf_counter_ns() - began)

    def _add(self, where: str, calls: Sequence[Call], began: int, duration: int) -> None:
        if threading.get_ident() != self._thread:
            return
        names = list(dict.fromkeys(call.op for call in calls))
        name = names[0] if len(calls) == 1 else f"{len(calls)} calls: {', '.join(names)}"
        shapes = " ".join(str(tuple(x.shape)) for x in calls[0].inputs) + f" -> {tuple(calls[-1].out.shape)}"
        flops = sum(_flops(call) for call in calls)
        self.records.append(Record(name, where, began, duration, flops, _bytes(calls), shapes))

    # what was found -----------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """Sums by name, the most expensive first."""
        by_name: dict[str, list[Record]] = {}
        for record in self.records:
            by_name.setdefault(record.name, []).append(record)
        whole = sum(record.duration_ns for record in self.records) or 1
        rows = []
        for name, found in by_name.items():
            total = sum(record.duration_ns for record in found) or 1
            moved, flops = sum(record.bytes for record in found), sum(record.flops for record in found)
            mean = total / len(found) / 1e3
            rows.append(Row(name, len(found), total / 1e6, mean, total / whole, moved / total, flops / total))
        return sorted(rows, key=lambda row: -row.total_ms)

    def table(self, rows: int = SHOWN) -> str:
        """The first rows as text, and what all of them come to."""
        all_rows = self.rows()
        cells = [("operation", "calls", "total ms", "mean µs", "%", "GB/s", "Gflop/s")]
        for row in all_rows[:rows]:
            name = row.name if len(row.name) <= 60 else row.name[:57] + "..."
            numbers = f"{row.total_ms:.3f}", f"{row.mean_us:.1f}", f"{row.share * 100:.1f}"
            cells.append((name, str(row.calls), *numbers, f"{row.gigabytes_per_s:.2f}", f"{row.gigaflops_per_s:.2f}"))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(w) if place else cell.ljust(w)
                for place, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in cells
        ]
        lines.insert(1, "-" * len(lines[0]))
        total_ms, flops = sum(row.total_ms for row in all_rows), sum(record.flops for record in self.records)
        more = f", {len(all_rows) - rows} more rows" if len(all_rows) > rows else ""
        lines.append(f"{len(self.records)} calls, {total_ms:.3f} ms, {short(flops)}flop{more}")
        return "\n".join(lines)

    __str__ = table

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the records as a Chrome trace (JSON; times in µs). Raises OSError when it cannot be written."""
        first = min((record.start_ns for record in self.records), default=0)
        events = [
            {
                "name": record.name,
                "cat": record.where,
                "ph": "X",
                "ts": (record.start_ns - first) / 1e3,
                "dur": record.duration_ns / 1e3,
                "pid": os.getpid(),
                "tid": self._thread,
                "args": {"shapes": record.shapes, "flops": record.flops, "bytes": record.bytes},
            }
            for record in self.records
        ]
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"traceEvents": events, "displayTimeUnit": "ms"}, file)


def profile() -> Profile:
    """`with cx.profile() as prof:` measures what runs in the block. Raises SpecError inside another one."""
    return Profile()


def _flops(call: Call) -> int:
    try:
        shapes = tuple(tuple(x.shape) for x in call.inputs)
        return int(OPS[call.op].flops(shapes, tuple(call.out.shape), call.attrs))
    except (CyxError, KeyError, IndexError, ZeroDivisionError):
        return 0


def _bytes(calls: Sequence[Call]) -> int:
    """Read from outside of these calls, and written by them for somebody else or at the end."""
    made: set[int] = set()
    read: dict[int, int] = {}
    for call in calls:
        for x in call.inputs:
            if id(x) not in made:
                read[id(x)] = math.prod(x.shape) * x.dtype.itemsize
        made.add(id(call.out))
    out = calls[-1].out
    return sum(read.values()) + math.prod(out.shape) * out.dtype.itemsize

"""Arrays between pages that nobody may touch, and every kernel on such arrays: `python -m tests.core.fences ISA PART`.

A process of its own, since the system ends one that touches such a page; what it was at is the last line it printed.
The bytes between an array and its two pages are all ones (NaN, -1) before and have to be so afterwards. Results must
have the bits that they have in ordinary memory.
"""

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np

import cyxcore as cx
from benchmarks.bench_bits import MODELS, Case, Way, classes, trained
from benchmarks.bench_train import gpt
from cyxcore import device, nn, placement
from cyxcore.kernels import cpu, language
from cyxcore.kernels.bfloat16 import BFLOAT16
from tests.core.kernelcases import BIG, CASES, FLOATS, LENGTHS, ODD, SIZED, same_bits, values

Array = np.ndarray[Any, Any]

PAGE = mmap.PAGESIZE
TURNS = 3  # an array ends where its last page does, or begins where its first one does, or lies within
WITHIN = 8  # bytes from the beginning of its pages: no vector's place
NO_ACCESS = 0
STEPS = 2  # of a training

libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Span(NamedTuple):
    """Some whole pages with one array in them; bytes from the beginning of the memory."""

    first: int
    begin: int
    end: int
    last: int


def spread(sizes: Sequence[int], turn: int) -> tuple[list[Span], int]:
    """Where arrays of so many bytes lie, a page before and behind each of them, and how many bytes that takes."""
    spans, at = [], PAGE
    for number, size in enumerate(sizes):
        pages = -(-(size + WITHIN) // PAGE) * PAGE if size % PAGE else max(size, PAGE)
        place = (number + turn) % TURNS if size % PAGE else 1
        begin = at + (pages - size, 0, WITHIN)[place]
        spans.append(Span(at, begin, begin + size, at + pages))
        at += pages + PAGE
    return spans, at


def fenced(spans: Sequence[Span], size: int) -> Array:
    """Bytes, all ones, of which those outside of all spans may not be touched."""
    memory = np.frombuffer(mmap.mmap(-1, size), np.uint8)
    edges = [0, *(edge for span in spans for edge in (span.first, span.last)), size]
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        if libc.mprotect(memory.ctypes.data + begin, end - begin, NO_ACCESS):
            raise OSError(ctypes.get_errno(), "mprotect")
    for span in spans:
        memory[span.first : span.last] = 255
    return memory


class Work(NamedTuple):
    """Something that reads and writes these arrays."""

    name: str
    run: Callable[..., Any]
    arrays: list[Array]


def check(work: Work, turns: Iterable[int] = range(TURNS)) -> None:
    expected = [array.copy() for array in work.arrays]
    work.run(*expected)
    for turn in turns:
        spans, size = spread([array.nbytes for array in work.arrays], turn)
        memory = fenced(spans, size)
        there = [
            memory[span.begin : span.end].view(array.dtype).reshape(array.shape)
            for span, array in zip(spans, work.arrays, strict=True)
        ]
        for array, given in zip(there, work.arrays, strict=True):
            array[...] = given
        work.run(*there)
        for array, wanted, span in zip(there, expected, spans, strict=True):
            assert same_bits(array, wanted), f"{work.name}: other bits in turn {turn}"
            beside = memory[span.first : span.begin], memory[span.end : span.last]
            assert all((part == 255).all() for part in beside), f"{work.name}: written beside an array in turn {turn}"


# what runs on them ----------------------------------------------------------------------------------------


def calls(cases: Iterable[Any]) -> Iterator[Work]:
    def call(case: Any, out: Array, *inputs: Array) -> None:
        cpu.call(case.op, out, inputs, case.attrs)

    for case in cases:
        with np.errstate(all="ignore"):
            out = np.full_like(case.expected(), 77)
        name = f"{case.op} of {[x.shape for x in case.inputs]} {case.attrs}"
        yield Work(name, partial(call, case), [out, *case.inputs])


# rows, numbers of a row, length of a run of one weight (0: each column has a weight), how many weights in turn
NORMS = [(7, 1), (9, 5), (3, 16), (5, 33), (4, 64), (1, 131), (9, 1000), (3, 1025), (2, 2500)]
NORMS_OF_RUNS = [(6, 21, 7, 9), (8, 33, 33, 4), (4, 260, 130, 8)]


# rows, steps, hidden units
RECURRENCES = [(1, 3, 1), (2, 2, 7), (3, 4, 16), (5, 2, 33), (1, 2, 130), (40, 2, 12)]


def recurrences() -> Iterator[Work]:
    def there(kind: str, projects: bool, *arrays: Array) -> None:
        weight, bias, gates, hidden, cells, projection, whole, lengths, out = arrays
        projected = {"projection": projection, "whole": whole} if projects else {}
        cpu.recur(
            kind, True, weight, gates, hidden, cells, out, bias=bias, input_bias=bias, lengths=lengths, **projected
        )

    def back(kind: str, projects: bool, *arrays: Array) -> None:
        weight, gates, hidden, cells, projection, whole, g_out, g_last, g_cell, of_x, of_h, of_states, *made = arrays
        projected = {"projection": projection, "whole": whole, "of_states": of_states} if projects else {}
        before, made = ([*each[:4], each[4] if projects else None] for each in (made[:5], made[5:]))
        cpu.recur(
            kind, False, weight, gates, hidden, cells, g=(g_out, g_last, g_cell), of_x=of_x, of_h=of_h, before=before,
            made=made, **projected,
        )  # fmt: skip

    kinds = ("lstm", 4, False), ("lstm", 4, True), ("gru", 3, False), ("rnn_relu", 1, False)
    for dtype, (rows, steps, size), (kind, count, projects) in product(FLOATS, RECURRENCES, kinds):
        state = (size + 1) // 2 if projects else size
        weight, bias = values((count * size, state), dtype), values((count * size,), dtype)
        gates, hidden = values((rows, steps, count * size), dtype), values((steps + 1, rows, state), dtype)
        cells, projection = values((steps + (kind == "lstm"), rows, size), dtype), values((state, size), dtype)
        whole, of_states = values((steps, rows, size), dtype), values((steps, rows, state), dtype)
        out, of_h = values((rows, steps, state), dtype), values((steps, rows, count * size), dtype)
        last, cell = values((rows, state), dtype), values((rows, size), dtype)
        name = f"of {rows} x {steps} x {size}, {kind}, {'projected, ' * projects}{dtype}"
        read = [gates, hidden, cells, projection, whole]
        there_by = [weight, bias, *read, np.arange(rows) % steps + 1, out]
        yield Work(f"recurrence {name}", partial(there, kind, projects), there_by)
        made = [weight, bias, last, cell, projection]
        arrays = [weight, *read, out, last, cell, gates, of_h, of_states, *made, *(np.zeros_like(x) for x in made)]
        yield Work(f"recurrence back {name}", partial(back, kind, projects), arrays)


def norms() -> Iterator[Work]:
    def there(n: int, inner: int, centred: bool, *arrays: Array) -> None:
        out, mean, var, x, weight, bias = arrays
        cpu.normalise(x, n, inner, 1e-5, mean if centred else None, var, weight, bias, out)

    def back(n: int, inner: int, centred: bool, *arrays: Array) -> None:
        out, of_weight, of_bias, mean, var, x, weight, g, before = arrays
        means = mean if centred else None
        cpu.normalise(x, n, inner, 1e-5, means, var, weight, None, out, g, before, True, of_weight, of_bias)

    def given(n: int, *arrays: Array) -> None:
        out, of_x, of_weight, of_bias, mean, scale, x, bias, g = arrays
        cpu.normalise(x, n, n, 0.0, mean, scale, None, bias, out, given=True)
        cpu.normalise(x, n, n, 0.0, mean, scale, None, None, of_x, g, None, True, of_weight, of_bias, given=True)

    of_columns = [(rows, n, 0, n) for rows, n in NORMS]
    for dtype, (rows, n, inner, weights), centred in product(FLOATS, (*of_columns, *NORMS_OF_RUNS), (True, False)):
        out, x, g, before = (values((rows, n), dtype, seed=seed) for seed in range(4))
        weight, bias, of_weight, of_bias = (values((weights,), dtype, seed=seed) for seed in range(4))
        mean, var = values((rows,), dtype), np.abs(values((rows,), dtype, seed=1)) + 1
        name, how = f"of {rows} x {n} by {weights} weights, {dtype}, {centred=}", (n, inner, centred)
        yield Work(f"norm {name}", partial(there, *how), [out, mean, var, x, weight, bias])
        arrays = [out, of_weight, of_bias, mean, var, x, weight, g, before]
        yield Work(f"norm back {name}", partial(back, *how), arrays)
    for dtype, (rows, n, channels) in product(FLOATS, ((6, 7, 3), (4, 65, 4), (8, 1000, 2))):
        out, of_x, x, g = (values((rows, n), dtype, seed=seed) for seed in range(4))
        of_channels = [values((channels,), dtype, seed=seed) for seed in range(5)]
        arrays = [out, of_x, *of_channels[:4], x, of_channels[4], g]
        yield Work(f"given norm of {rows} x {n}, {dtype}", partial(given, n), arrays)


def vectors() -> Iterator[Work]:
    """Casts, drawn numbers and orders."""

    def cast(out: Array, x: Array) -> None:
        cpu.cast_halves(x, out)

    def order(descending: bool, out: Array, x: Array) -> None:
        cpu.order_rows(x, descending, out)

    def best(k: int, out: Array, x: Array) -> None:
        cpu.best_of_rows(x, k, True, out)

    for n in (0, *LENGTHS, 4099):
        floats, integers = values((n,)), np.zeros(n, np.int64)
        for half in (np.dtype(np.float16), BFLOAT16):
            cpu.cast_halves(floats, halves := np.empty(n, half))
            yield Work(f"cast of {n} to {half}", cast, [np.empty(n, half), floats])
            yield Work(f"cast of {n} from {half}", cast, [np.empty(n, np.float32), halves])
        for k in (1, min(n, 7)) if n else ():
            yield Work(f"the {k} best of {n}", partial(best, k), [np.zeros((2, k), np.int64), values((2, n))])
        yield Work(f"{n} words", partial(cpu.draw_words, 5, 1, 2), [np.zeros(n, np.uint32)])
        yield Work(f"{n} integers", partial(cpu.draw_integers, 5, 1, 2, 1000, 3), [integers])
        for wide in (False, True):
            yield Work(f"order of {n} words, {wide=}", partial(cpu.draw_order, 5, 1, 2, wide), [integers])
        for kind, dtype in product(("twelves", "normals"), FLOATS):
            draw = partial(cpu.draw_reals, kind, 5, 1, 2, 2.0, 1.0)
            yield Work(f"{n} {kind} of {dtype}", draw, [np.zeros(n, dtype)])
        for dtype, descending in product((*FLOATS, "int64", "int32"), (False, True)):
            arrays = [np.zeros((3, n), np.int64), values((3, n), dtype)]
            yield Work(f"order of {n} {dtype}, {descending=}", partial(order, descending), arrays)


def updates() -> Iterator[Work]:
    """Adam of several parameters, made in one pass."""
    sizes = (64, 7, 1, 300, 33)

    def adam(lr: Array, step: Array, *arrays: Array) -> None:
        program = cpu.Program()
        for p, g, m, v in zip(*(arrays[i::4] for i in range(4)), strict=True):
            program.add("adam_m", m, [m, g, p], {"beta": 0.9, "weight_decay": 0.0})
            program.add("adam_v", v, [v, g, p], {"beta": 0.99, "weight_decay": 0.0})
            attrs = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "decoupled_weight_decay": 0.01}
            program.add("adam_update", p, [p, m, v, lr, step], attrs)
        assert program.fuse() == [(0, [True] * 3 * len(sizes))]
        program.run()

    for dtype in FLOATS:
        arrays = [np.abs(values((size,), dtype, seed=seed)) for size in sizes for seed in range(4)]
        yield Work(f"Adam of {dtype}", adam, [np.full((), 0.1, dtype), np.full((), 3, dtype), *arrays])


def language_models() -> Iterator[Work]:
    def multiply(kind: str, rows: int, columns: int, out: Array, x: Array, *packed: Array) -> None:
        matrix = language.Matrix(kind, rows, columns, *packed)
        matrix.multiply(x, out)
        matrix.multiply(x, out, accumulate=True)

    def norm(out: Array, x: Array, weight: Array) -> None:
        language.rms_norm(out, x, weight, 1e-5)

    def place(kv_heads: int, halves: bool, *arrays: Array) -> None:
        qkv, cosine, sine, slots, q, k, v, q_norm, k_norm = arrays
        language.place(qkv, cosine, sine, slots, q, k, v, kv_heads, halves, q_norm, k_norm, 1e-5)

    def attend(kv_heads: int, out: Array, q: Array, k: Array, v: Array, one: Array, two: Array) -> None:
        for window in (0, 5):
            language.attend(out, q, k, v, [(0, 20, 7, one), (20, 17, 40, two)], kv_heads, window, 0.2)

    dice = np.random.default_rng(7)
    sizes = (16, 256, 1), (33, 512, 3), (1, 768, 18), (70, 256, 37)
    for kind, (rows, columns, count) in product(language.KINDS, sizes):
        _, *bytes_of_units, unit = language.KINDS[kind]
        units = -(-rows // language.PANEL_ROWS) * (columns // unit)
        packed = [dice.integers(0, 64, units * size).astype(np.uint8) for size in bytes_of_units]
        arrays = [values((count, rows)), values((count, columns), seed=1), *packed]
        yield Work(f"{kind} of {rows} x {columns} by {count}", partial(multiply, kind, rows, columns), arrays)
    for count, size in product((1, 3), (1, 7, 16, 33, 64, 130)):
        out, x, both = values((count, size)), values((count, size)), values((count, 2 * size))
        yield Work(f"norm of {count} x {size}", norm, [out, x, values((size,))])
        yield Work(f"swiglu of {count} x {size}", language.swiglu, [out, both])
    for heads, kv_heads, size, rotated, halves in ((4, 2, 32, 32, True), (3, 1, 10, 6, False), (2, 2, 40, 20, True)):
        count, pages, padded = 37, 4, -(-size // 16) * 16
        slots = dice.permutation(pages * 16)[:count]
        q, k, v = (
            values(shape)
            for shape in [(count, heads, size), (pages, kv_heads, size, 16), (pages, kv_heads, 16, padded)]
        )
        qkv, angles = values((count, (heads + 2 * kv_heads) * size)), values((count, rotated // 2))
        arrays = [qkv, angles, angles, slots, q, k, v, values((size,)), values((size,))]
        name = f"{heads} heads of {size}, {kv_heads} of keys"
        yield Work(f"place {name}", partial(place, kv_heads, halves), arrays)
        page_lists = [np.array(numbers, np.int32) for numbers in ((2, 0), (3, 1, 0, 2))]
        yield Work(f"attend {name}", partial(attend, kv_heads), [values(q.shape), q, k, v, *page_lists])


# whole steps ----------------------------------------------------------------------------------------------

TRAININGS = {
    **MODELS,
    "ragged mlp": Case(
        lambda: nn.Sequential(nn.Linear(33, 71), nn.ReLU(), nn.Linear(71, 19), nn.GELU(), nn.Linear(19, 3)),
        lambda p: cx.optim.Adam(p, weight_decay=0.01),
        classes((61, 33), 3),
    ),
    "ragged cnn": Case(
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 17, 3, padding=1), nn.ReLU(), nn.Conv2d(17, 18, 3), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(18, 18, 3, stride=2, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(108, 5)),
        ),
        lambda p: cx.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
        classes((5, 3, 9, 13), 5),
    ),
    "ragged gpt": Case(
        lambda: gpt(nn, 61, 13, 36, 3, 2),
        cx.optim.AdamW,
        lambda rng: (rng.integers(0, 61, (7, 13)), rng.integers(0, 61, (7, 13))),
    ),
}


def steps() -> None:
    """Compiled steps whose arrays lie apart in their plans, where else the next would use their memory."""
    lay_out, ordinary = placement.lay_out, device.HostMemory.memory
    spans, turn = list[Span](), 0

    def apart(blocks: Sequence[placement.Block]) -> tuple[list[placement.Slot], int]:
        nonlocal spans
        spans, end = spread([-(-block.bytes // 8) * 8 for block in blocks], turn)  # of any dtype
        return [placement.Slot(span.begin, span.end - span.begin) for span in spans], end

    def memory(_: device.HostMemory, size_bytes: int) -> Array:
        return fenced(spans, size_bytes)

    for (name, case), threads in product(TRAININGS.items(), (1, 2)):
        print(f"a step of {name} on {threads} threads", flush=True)
        way = Way("", cpu.isa(), threads, compiled=True, resumed=False)
        expected = trained(case, STEPS, way)
        placement.lay_out, device.HostMemory.memory = apart, memory  # type: ignore
        for turn in range(TURNS):  # noqa: B007  apart() reads it
            assert trained(case, STEPS, way) == expected, f"{name}: other bits in turn {turn}"
        placement.lay_out, device.HostMemory.memory = lay_out, ordinary  # type: ignore


def check_all(works: Iterator[Work], turns: Iterable[int] = range(TURNS)) -> None:
    for work in works:
        print(work.name, flush=True)
        check(work, turns)


PARTS: dict[str, Callable[[], None]] = {
    "operations": lambda: check_all(calls([case for cases in CASES.values() for case in cases])),
    "lengths": lambda: check_all(calls([*SIZED, *ODD])),
    "large arrays": lambda: check_all(calls(BIG), [0]),
    "norms": lambda: check_all(norms()),
    "recurrences": lambda: check_all(recurrences()),
    "vectors": lambda: check_all(vectors()),
    "updates": lambda: check_all(updates()),
    "language models": lambda: check_all(language_models()),
    "steps": steps,
}


def main(isa: str, part: str) -> None:
    cpu.set_isa(isa)
    PARTS[part]()


if __name__ == "__main__":
    main(*sys.argv[1:])

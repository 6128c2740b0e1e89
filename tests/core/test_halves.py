"""float16 and bfloat16 on the cpu: casts beside NumPy's, and ops of bfloat16 by float32's kernels."""

from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore.kernels import cpu
from cyxcore.kernels.bfloat16 import BFLOAT16, narrowed, widened

EVERY = np.arange(1 << 16, dtype=np.uint16)
ODD = 37  # elements that fill no vectors


def cast(x: Any, dtype: Any) -> Any:
    out = np.empty(x.shape, dtype)
    cpu.cast_halves(x, out)
    return out


def between(values: Any) -> Any:
    """Numbers of float32 at, just below and just above the middle of each two that follow each other, and these."""
    middles = values[:-1] + (values[1:] - values[:-1]) / np.float32(2)
    near = [np.nextafter(middles, np.float32(to), dtype=np.float32) for to in (-np.inf, np.inf)]
    return np.concatenate([values, middles, *near, -values, -middles])


def rest(last: float) -> Any:
    """What is beyond the largest half, or below the smallest, and what is no number."""
    below = np.nextafter(np.float32(last), np.float32(0))
    return np.array([np.inf, -np.inf, np.nan, last, below, 3.4e38, 1e-45, -1e-45, 0.0, -0.0], np.float32)


def test_every_float16_becomes_the_float32_that_numpy_makes_of_it(isa: str) -> None:
    halves = EVERY.view(np.float16)
    for values in (halves, halves[:ODD]):
        got, expected = cast(values, np.float32), values.astype(np.float32)
        nan = np.isnan(expected)
        assert (np.isnan(got) == nan).all() and got[~nan].tobytes() == expected[~nan].tobytes()


def test_float32_becomes_the_nearest_float16_with_ties_to_even(isa: str) -> None:
    finite = EVERY[:0x7C00].view(np.float16).astype(np.float32)
    for values in (np.concatenate([between(finite), rest(65520.0)]), rest(65520.0)):
        with np.errstate(over="ignore"):
            expected = values.astype(np.float16)
        got = cast(values, np.float16)
        nan = np.isnan(expected)
        assert (np.isnan(got) == nan).all() and got[~nan].tobytes() == expected[~nan].tobytes()


def test_every_bfloat16_becomes_float32_and_stays_what_it_is(isa: str) -> None:
    halves = EVERY.view(BFLOAT16)
    assert cast(halves, np.float32).tobytes() == widened(halves).tobytes()
    assert cast(halves[:ODD], np.float32).tobytes() == widened(halves[:ODD]).tobytes()
    assert cast(widened(halves), BFLOAT16).tobytes() == narrowed(widened(halves)).tobytes()


def test_float32_becomes_the_nearest_bfloat16_with_ties_to_even(isa: str) -> None:
    finite = widened(EVERY[:0x7F80].view(BFLOAT16))
    values = np.concatenate([between(finite), rest(3.4e38)])
    assert cast(values, BFLOAT16).tobytes() == narrowed(values).tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_casts_are_the_same_on_every_machine_and_on_threads(dtype: str) -> None:
    values = np.random.default_rng(0).integers(0, 1 << 32, 300_001, np.uint32).view(np.float32)  # NaNs among them
    wanted = np.float16 if dtype == "float16" else BFLOAT16
    found, before = set(), cpu.isa()
    for name in ("avx512", "avx2", "portable"):
        try:
            cpu.set_isa(name)
        except ValueError:
            continue
        for threads in (1, 2):
            cpu.set_num_threads(threads)
            there = cast(values, wanted)
            found.add(there.tobytes() + cast(there, np.float32).tobytes())
    cpu.set_isa(before)
    assert len(found) == 1


def test_an_op_of_bfloat16_is_that_of_float32_rounded_once() -> None:
    dtype = "bfloat16"
    x, y = (cx.tensor(np.random.default_rng(k).standard_normal((40, 40), np.float32)).astype(dtype) for k in (0, 1))
    wide = [each.astype("float32") for each in (x, y)]
    assert (x + y).astype("float32").tolist() == (wide[0] + wide[1]).astype(dtype).astype("float32").tolist()
    assert (x @ y).astype("float32").tolist() == (wide[0] @ wide[1]).astype(dtype).astype("float32").tolist()
    assert x.sum(0).astype("float32").tolist() == wide[0].sum(0).astype(dtype).astype("float32").tolist()
    assert (x > y).tolist() == (wide[0] > wide[1]).tolist()


def test_what_moves_a_bfloat16_keeps_its_bits() -> None:
    words = EVERY.reshape(256, 256)
    x = cx.tensor(np.zeros((256, 256), np.float32)).astype("bfloat16")
    x._data.view(np.uint16)[...] = words
    for moved, expected in (
        (x.T.copy(), words.T),
        (x[3:, ::2].copy(), words[3:, ::2]),
        (cx.stack([x, x]), [words, words]),
    ):
        assert moved._data.view(np.uint16).tolist() == np.asarray(expected).tolist()


def test_a_float64_is_rounded_once_to_float16() -> None:
    value = 1 + 2**-11 + 2**-40  # above the middle of two halves, which float32 is not
    assert cx.tensor([value], dtype="float64").astype("float16").tolist() == [1 + 2**-10]


@pytest.mark.parametrize(
    ("x", "out"),
    [
        (np.zeros(3, np.float64), np.zeros(3, np.float16)),
        (np.zeros(3, np.float32), np.zeros(3, np.float32)),
        (np.zeros(3, np.float32), np.zeros(4, np.float16)),
        (np.zeros(6, np.float32)[::2], np.zeros(3, np.float16)),
    ],
)
def test_casts_refuse_what_they_would_misread(x: Any, out: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        cpu.cast_halves(x, out)

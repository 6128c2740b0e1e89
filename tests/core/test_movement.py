"""Kernels that move elements, against NumPy: borders, repeated elements, long runs of rows, sums at places."""

import numpy as np
import pytest

from cyxcore.kernels import cpu

DTYPES = ["float32", "float64", "int64", "int32", "uint8", "bool"]


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest):
    before = cpu.get_num_threads()
    cpu.set_num_threads(request.param)
    yield
    cpu.set_num_threads(before)


def _drawn(dice: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return dice.integers(0, 2 if dtype == "bool" else 200, shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_borders_are_what_numpy_pads(threads: None, dtype: str) -> None:
    dice = np.random.default_rng(1)
    for rank in (0, 1, 2, 4):
        for value in (0.0, 1.0, -2.5) if dtype.startswith("float") else (0.0, 1.0):
            for least in (0, 1):
                x = _drawn(dice, tuple(dice.integers(least, 6, rank)), dtype)
                pads = tuple((int(low), int(high)) for low, high in dice.integers(0, 4, (rank, 2)))
                expected = np.pad(x, pads, constant_values=value) if rank else x
                cpu.call("pad", out := np.empty(expected.shape, dtype), [x], {"pads": pads, "value": value})
                assert out.tobytes() == expected.tobytes()
    for shape, grown in (  # axes without a border, alone and side by side, and narrow rows
        ((7, 5, 1), ((0, 0), (0, 0), (0, 2))),
        ((3, 700, 1, 4, 1), ((0, 0), (0, 0), (0, 3), (0, 0), (0, 1))),
        ((2, 3, 4, 5), ((0, 0), (2, 1), (0, 0), (0, 0))),
        ((2, 3, 4, 5), ((1, 0), (0, 0), (0, 0), (3, 4))),
        ((2, 3, 1, 1), ((0, 0), (0, 0), (0, 0), (0, 0))),
        ((2, 2000, 3), ((0, 0), (2, 5), (1, 1))),
        ((5, 40, 31), ((0, 1), (3, 0), (0, 1))),
        ((5, 40, 32), ((0, 1), (3, 0), (0, 1))),
        ((4, 0, 3), ((0, 0), (2, 1), (0, 1))),
    ):
        x = _drawn(dice, shape, dtype)
        expected = np.pad(x, grown, constant_values=1)
        cpu.call("pad", out := np.empty(expected.shape, dtype), [x], {"pads": grown, "value": 1.0})
        assert out.tobytes() == expected.tobytes(), shape
    x = _drawn(dice, (3, 200, 300), dtype)  # what threads share
    cpu.call("pad", out := np.empty((4, 203, 301), dtype), [x], {"pads": ((1, 0), (1, 2), (0, 1)), "value": 1.0})
    assert out.tobytes() == np.pad(x, ((1, 0), (1, 2), (0, 1)), constant_values=1).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
@pytest.mark.parametrize("times", [2, 3, 7])
def test_repeated_elements_are_what_numpy_broadcasts(threads: None, dtype: str, times: int) -> None:
    dice = np.random.default_rng(2)
    for before, size in (((), 1), ((), 70_001), ((3,), 5), ((4, 1), 9000)):
        x = _drawn(dice, (*before, size, 1), dtype)
        shape = (*[each if each > 1 else 2 for each in before], size, times)
        cpu.call("broadcast_to", out := np.empty(shape, dtype), [x], {"shape": shape})
        assert out.tobytes() == np.broadcast_to(x, shape).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_rows_of_every_length_are_copied_whole(threads: None, dtype: str) -> None:
    dice = np.random.default_rng(4)
    for n in (*range(1, 80), 127, 129, 255, 256, 257, 1000, 1023, 1024, 1025, 2048, 2049, 8191, 8192, 8193):
        x, shape = _drawn(dice, (3, 1, n), dtype), (3, 4, n)
        cpu.call("broadcast_to", out := np.empty(shape, dtype), [x], {"shape": shape})
        assert out.tobytes() == np.broadcast_to(x, shape).tobytes(), n
        rows = _drawn(dice, (4, n + 3), dtype)
        how = {"starts": (1, 2), "stops": (4, n + 2), "steps": (1, 1)}
        cpu.call("slice", out := np.empty((3, n), dtype), [rows], how)
        assert out.tobytes() == rows[1:, 2 : n + 2].tobytes(), n


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_long_runs_are_taken_as_single_places_are(threads: None, dtype: str) -> None:
    dice = np.random.default_rng(3)
    for inner in (1, 3):
        x = _drawn(dice, (700, 70, inner), dtype)
        for index in (
            np.r_[2, 1, 0:70, 68, 67],
            np.r_[0:60, 5:70],
            np.arange(70),
            np.r_[-70:0],
            np.r_[-3:0, 0:60],
            np.arange(69, -1, -1),
            np.arange(0),
        ):
            cpu.call("take", out := np.empty((700, len(index), inner), dtype), [x, index], {"axis": 1})
            assert out.tobytes() == x[:, index].tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(2000,), (3, 2000), (2000, 5), (3, 2000, 40)])
def test_what_is_added_at_places_is_added_in_their_order(threads: None, dtype: str, shape: tuple[int, ...]) -> None:
    dice = np.random.default_rng(4)
    axis = shape.index(2000)
    g, index = dice.standard_normal(shape).astype(dtype), dice.integers(-30, 30, 2000)
    expected = np.zeros((*shape[:axis], 30, *shape[axis + 1 :]), dtype)
    np.add.at(expected, (*[slice(None)] * axis, index), g)
    cpu.call("take_grad", out := np.empty_like(expected), [g, index], {"axis": axis, "size": 30})
    assert out.tobytes() == expected.tobytes()

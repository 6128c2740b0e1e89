"""Orders of long rows, found by their digits: the places that NumPy's stable sort finds, whatever the numbers."""

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import device
from cyxcore.kernels import cpu

LONG = device.LEAST_ORDERED


def _rows(dtype: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    dice = np.random.default_rng(len(dtype))
    if dtype.startswith("float"):
        wide = np.frombuffer(dice.bytes(dice.integers(1, 2) * np.dtype(dtype).itemsize * int(np.prod(shape))), dtype)
        ties = dice.choice(np.array([-np.inf, -1.5, -0.0, 0.0, 1e-40, 2.0, np.inf, np.nan, -np.nan], dtype), shape)
        return {"any bits": wide.reshape(shape).copy(), "ties": ties, "all alike": np.full(shape, -0.0, dtype)}
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    return {
        "any": dice.integers(low, high, shape, dtype, endpoint=True),
        "few": dice.integers(-3, 4, shape, dtype),
        "beyond 32 bits": (dice.integers(-(2**20), 2**20, shape) << 13).astype(dtype),
        "the least and the greatest": dice.choice(np.array([low, high], dtype), shape),
        "all alike": np.full(shape, low, dtype),
    }


@pytest.mark.parametrize("dtype", device.ORDERED)
@pytest.mark.parametrize(("shape", "axis"), [((3, LONG), 1), ((LONG + 7, 2), 0), ((2, LONG + 1, 2), 1)])
def test_long_rows_are_in_the_order_of_a_stable_sort(dtype: str, shape: tuple[int, ...], axis: int) -> None:
    for name, x in _rows(dtype, shape).items():
        places = np.argsort(x, axis=axis, kind="stable")
        assert cx.argsort(cx.tensor(x), dim=axis).numpy().tolist() == places.tolist(), name
        back = shape[axis] - 1 - np.flip(np.argsort(np.flip(x, axis), axis=axis, kind="stable"), axis)
        assert cx.argsort(cx.tensor(x), dim=axis, descending=True).numpy().tolist() == back.tolist(), name
        found, at = cx.sort(cx.tensor(x), dim=axis)
        assert at.numpy().tolist() == places.tolist(), name
        assert found.numpy().tobytes() == np.take_along_axis(x, places, axis).tobytes(), name


@pytest.mark.parametrize("dtype", device.ORDERED)
@pytest.mark.parametrize(("shape", "axis"), [((3, 700), 1), ((65, 2), 0), ((2, 131, 2), 1)])
def test_the_best_of_rows_are_the_first_of_a_stable_sort_on_any_number_of_threads(
    dtype: str, shape: tuple[int, ...], axis: int
) -> None:
    every = (slice(None),) * axis
    for name, x in {**_rows(dtype, shape), "rising": np.sort(_rows(dtype, shape)[_first(dtype)], axis)}.items():
        back = shape[axis] - 1 - np.flip(np.argsort(np.flip(x, axis), axis=axis, kind="stable"), axis)
        for k in (1, 5, 16, cpu.MOST_BEST):
            for largest, order in ((True, back), (False, np.argsort(x, axis=axis, kind="stable"))):
                for threads in (1, 3):
                    cx.set_num_threads(threads)
                    if k <= shape[axis]:
                        wanted = order[(*every, slice(0, k))]
                        found = device.backend("cpu").best(x, k, axis, largest)
                        assert found is not None and found.tolist() == wanted.tolist(), name
                        at = cx.topk(cx.tensor(x), k, dim=axis, largest=largest).indices
                        assert at.tolist() == wanted.tolist(), name


def _first(dtype: str) -> str:
    return "any bits" if dtype.startswith("float") else "any"


@pytest.mark.parametrize(
    ("x", "k", "out"),
    [
        (np.zeros((2, 3), np.float16), 1, np.zeros((2, 1), np.int64)),
        (np.zeros((2, 3)), 4, np.zeros((2, 4), np.int64)),
        (np.zeros((2, 3)), 0, np.zeros((2, 0), np.int64)),
        (np.zeros((2, 300)), 129, np.zeros((2, 129), np.int64)),
        (np.zeros((2, 3)), 2, np.zeros((2, 3), np.int64)),
        (np.zeros((3, 2)).T, 1, np.zeros((2, 1), np.int64)),
    ],
)
def test_of_what_cannot_be_ranked_no_best_are_found(x: np.ndarray, k: int, out: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected"):
        cpu.best_of_rows(x, k, True, out)


def test_a_planned_order_is_the_plain_one() -> None:
    x = cx.tensor(_rows("float32", (2, LONG))["ties"])
    assert cx.compile(lambda x: cx.argsort(x, dim=1))(x).tolist() == cx.argsort(x, dim=1).tolist()


def test_the_distinct_elements_of_a_long_row() -> None:
    x = np.random.default_rng(1).integers(-50, 50, 3 * LONG)
    values, inverse, counts = cx.unique(cx.tensor(x), return_inverse=True, return_counts=True)
    expected = np.unique(x, return_inverse=True, return_counts=True)
    assert [each.tolist() for each in (values, inverse, counts)] == [each.tolist() for each in expected]
    assert cx.unique(cx.tensor(x)).tolist() == expected[0].tolist()


@pytest.mark.parametrize(
    ("x", "out"),
    [
        (np.zeros((2, 3), np.float16), np.zeros((2, 3), np.int64)),
        (np.zeros((2, 3)), np.zeros((3, 2), np.int64)),
        (np.zeros((2, 3)), np.zeros((2, 3), np.int32)),
        (np.zeros((3, 2)).T, np.zeros((2, 3), np.int64)),
        (np.zeros(6), np.zeros(6, np.int64)),
    ],
)
def test_what_cannot_be_put_in_order_is_refused(x: np.ndarray, out: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected"):
        cpu.order_rows(x, False, out)

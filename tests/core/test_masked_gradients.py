"""The gradient of a 2 x 2 max pool and what a ReLU's mask leaves of it are made in one pass, with the bits of both."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from cyxcore.kernels import cpu

Array = np.ndarray[Any, Any]
HALVES = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0)}


def values(shape: tuple[int, ...], seed: int) -> Array:
    """Numbers with ties, zeros of both signs, infinities and NaN among them."""
    dice = np.random.default_rng(seed)
    odd = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-40], np.float32)
    return np.where(dice.random(shape) < 0.3, dice.choice(odd, shape), dice.normal(size=shape)).astype(np.float32)


class Calls:
    """Four calls whose first three results lie in memory that nobody reads afterwards."""

    def __init__(
        self, image: Array, attrs: Mapping[str, Any] = HALVES, than: float = 0.0, swapped: bool = False
    ) -> None:
        n, c, h, w = image.shape
        (kh, kw), (sh, sw), (ph, pw) = (attrs[key] for key in ("kernel", "stride", "padding"))
        given = values((n, c, (h + 2 * ph - kh) // sh + 1, (w + 2 * pw - kw) // sw + 1), 1)
        self.number = np.full((), than, np.float32)
        self.scratch = np.full(3 * image.size, 77, np.float32)
        made, ones = (self.scratch[i * image.size : (i + 1) * image.size].reshape(image.shape) for i in (0, 1))
        greater = self.scratch[2 * image.size :].view(np.bool_)[: image.size].reshape(image.shape)
        self.out = np.full_like(image, 55)
        self.made = [
            ("max_pool2d_grad", made, [given, image], dict(attrs)),
            ("greater", greater, [image, self.number], {}),
            ("cast", ones, [greater], {"dtype": "float32"}),
            ("mul", self.out, [ones, made] if swapped else [made, ones], {}),
        ]

    def group(self) -> list[tuple[int, list[bool]]]:
        self.program = cpu.Program()
        for call in self.made:
            self.program.add(*call)
        return self.program.fuse(self.scratch)


def same_bits(a: Array, b: Array) -> bool:
    """Equal byte for byte, except that a NaN is a NaN."""
    nan = np.isnan(a)
    return np.where(nan, 0, a).tobytes() == np.where(np.isnan(b), 0, b).tobytes() and bool((nan == np.isnan(b)).all())


@pytest.mark.parametrize("shape", [(1, 1, 2, 2), (3, 5, 8, 6), (2, 3, 7, 9), (2, 4, 24, 24), (2, 2, 6, 71)])
def test_a_pools_gradient_and_its_mask_are_made_together(isa: str, shape: tuple[int, ...]) -> None:
    image = values(shape, 0)
    for than, swapped in itertools.product((0.0, 0.5), (False, True)):
        calls = Calls(image, than=than, swapped=swapped)
        assert calls.group() == [(0, [False, False, False, True])]
        calls.program.run()
        assert (calls.scratch == 77).all()  # nothing is stored of what only the next call reads
        together = calls.out.copy()
        for call in calls.made:
            cpu.call(*call)
        assert not same_bits(together, np.full_like(image, 55))
        assert same_bits(together, calls.out)


def test_what_is_no_mask_of_such_a_gradient_is_made_one_by_one() -> None:
    image = values((2, 3, 8, 8), 0)
    assert [group for group in Calls(image, {**HALVES, "stride": (1, 1)}).group() if len(group[1]) == 4] == []
    assert [group for group in Calls(image, {**HALVES, "padding": (1, 1)}).group() if len(group[1]) == 4] == []
    other = Calls(image)
    other.made[1] = ("greater", other.made[1][1], [image.copy(), other.number], {})
    assert [group for group in other.group() if len(group[1]) == 4] == []


def test_threads_share_a_masked_gradient() -> None:
    found = []
    for threads in (1, 3):
        cpu.set_num_threads(threads)
        calls = Calls(values((8, 16, 24, 24), 0))
        calls.group()
        calls.program.run()
        found.append(calls.out.tobytes())
    assert found[0] == found[1]

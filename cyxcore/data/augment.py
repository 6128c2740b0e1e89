"""What a job does to its training rows before each step: checked here, done by cyxcore/augmenting.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from cyxcore import transforms as T
from cyxcore.data.checks import Path, defect
from cyxcore.errors import SpecError
from cyxcore.spec import DataSpec

if TYPE_CHECKING:
    from numpy import ndarray

MIXING = (T.Mixup, T.CutMix)
# Images on the way through the transforms: times the numbers of a row, or so many where rows are small. A node has to
# hold them for a whole batch, and hears nothing before the step is done.
MAX_GROWTH, MIN_ALLOWED = 16, 3 * 256 * 256
# These do not ask how bright a pixel is, unless they fill something in.
_BLIND = (
    *(T.Resize, T.Pad, T.CenterCrop, T.RandomCrop, T.RandomResizedCrop, T.RandomHorizontalFlip, T.RandomVerticalFlip),
    *(T.RandomRotation, T.RandomAffine, T.RandomPerspective, T.RandomErasing, T.Cutout, *MIXING),
    *(T.Grayscale, T.RandomGrayscale, T.RandomChannelPermutation),
)


@dataclass(frozen=True, slots=True)
class Augment:
    """Transforms of training rows, which are images of `image_shape` (C, H, W) when seen as such."""

    transforms: tuple[T.Transform, ...]
    image_shape: tuple[int, int, int]
    white: float

    @property
    def mixes(self) -> bool:
        """Whether a row gets two targets."""
        return any(isinstance(transform, MIXING) for transform in self.transforms)

    def described(self) -> str:
        """The same text for what does the same."""
        return msgspec.json.encode([self.transforms, self.image_shape, self.white], order="sorted").decode()


def augment_of(path: Path, spec: DataSpec, x: ndarray) -> Augment | None:
    """What data.augment says, for all rows x (N, …); None: nothing.

    Raises SpecError for transforms that do not fit the rows, DataError for rows that are no images.
    """
    if not spec.augment:
        if spec.image_shape is not None:
            raise SpecError("data.image_shape: expected data.augment beside it, which it is for; leave it out")
        return None
    shape = _image_shape(spec, tuple(x.shape[1:]))
    for place, transform in enumerate(spec.augment):
        where = f"data.augment[{place}]: {type(transform).__name__}"
        if isinstance(transform, T.Normalize):
            raise SpecError(f"{where}: only training rows pass here, not what is predicted later; use data.normalize")
    out = _output_shape(spec, shape)
    if out != shape:
        raise SpecError(
            f"data.augment: expected images of shape {list(shape)} again, as the model takes, got {list(out)}; "
            "end with a crop or resize to that size"
        )
    if sum(isinstance(transform, MIXING) for transform in spec.augment) > 1:
        raise SpecError("data.augment: expected at most one of Mixup and CutMix, as a row has two targets at most")
    if any(_asks_brightness(transform) for transform in spec.augment):
        _check_brightness(path, spec.white, float(x.min()), float(x.max()))
    return Augment(tuple(spec.augment), shape, spec.white)


def _output_shape(spec: DataSpec, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """What comes out of the transforms. Raises SpecError where images become too large on the way."""
    most, at = max(MAX_GROWTH * math.prod(shape), MIN_ALLOWED), shape
    try:
        T.Compose(spec.augment, spec.white)  # the options
        for place, transform in enumerate(spec.augment):
            after = T.Compose([transform]).output_shape(at)
            padding = getattr(transform, "padding", 0)
            for size in ((at[0], at[1] + 2 * padding, at[2] + 2 * padding), after):
                if math.prod(size) > most:
                    raise SpecError(
                        f"[{place}]: {type(transform).__name__}: expected images of at most {most:,} numbers on the "
                        f"way (rows have {math.prod(shape):,}), got {list(size)}; use a smaller size or padding"
                    )
            at = after
    except SpecError as error:
        said = str(error)
        raise SpecError(f"data.augment{'' if said.startswith('[') else ': '}{said}") from None
    return at


def _asks_brightness(transform: T.Transform) -> bool:
    """Whether white must be known: for colours, and for what is filled in unless that is black."""
    filled = getattr(transform, "fill", 0.0) or getattr(transform, "value", 0.0)
    return bool(filled) or not isinstance(transform, _BLIND)


def _image_shape(spec: DataSpec, sample: tuple[int, ...]) -> tuple[int, int, int]:
    shape = sample if spec.image_shape is None else spec.image_shape
    if len(shape) != 3 or math.prod(shape) != math.prod(sample):
        remedy = "set data.image_shape = [channels, height, width]" if spec.image_shape is None else "correct it"
        raise SpecError(
            f"data.augment: expected rows that are images (channels, height, width), got {list(shape)} for rows of "
            f"{list(sample)}; {remedy}"
        )
    return shape[0], shape[1], shape[2]


def _check_brightness(path: Path, white: float, least: float, most: float) -> None:
    """White may be brighter than any pixel, but not by so much that it must be a mistake."""
    if least < 0 or most > white or most <= white / 100:
        raise defect(
            path,
            f"pixels of 0 to {white:g} (data.white), which data.augment needs",
            f"values of {least:g} to {most:g}",
            "set data.white to what white is in the data, or leave out transforms of colours, and fill and value",
        )

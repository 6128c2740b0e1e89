"""Transforms of batches of images: what to do, as data. Names and options are torchvision's.

    augment = T.Compose([T.RandomCrop(32, padding=4), T.RandomHorizontalFlip(), T.ColorJitter(0.2, 0.2)])
    images = augment(images, key=(seed, step))        # (N, C, H, W), or (C, H, W) of one

A transform is a pure function of images and key: the same key gives the same bits on every machine. It is also an item
of a job file ({ kind = "RandomCrop", size = 32, padding = 4 }), which a node checks and runs. Images are uint8 (white
is 255) or floats (white is 1, or `white`); whatever an option measures in brightness is a share of white.

Importing this loads no NumPy. To add one: a Struct here, a row in cyxcore/transforms/running.py.
"""

import importlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from cyxcore.errors import SpecError

MAX_SIDE = 65_536
MIN_WHITE = 1e-30  # float32 holds 255 / white
Side = Annotated[int, Meta(ge=1, le=MAX_SIDE)]
# Of a square, or (height, width). Not tuple[Side, Side]: msgspec 0.22 reads past the end of a type that is a bounded
# integer or a tuple of a fixed length, and Python crashes when it collects garbage.
Size = Side | Annotated[tuple[Side, ...], Meta(min_length=2, max_length=2)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Factor = Annotated[float, Meta(ge=0.0, le=100.0)]
Positive = Annotated[float, Meta(gt=0.0, le=1e6)]
Degrees = Annotated[float, Meta(ge=0.0, le=360.0)]
Finite = Annotated[float, Meta(ge=-1e9, le=1e9)]
Sampling = Literal["bilinear", "nearest"]


class Transform(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="kind", tag=True):
    """The base of all: called with images and a key as Compose is."""

    def __call__(self, images: Any, key: Any = 0, targets: Any = None) -> Any:
        return Compose([self])(images, key, targets)


def _ascending(**ranges: tuple[float, float]) -> None:
    for name, (least, most) in ranges.items():
        if not least <= most:
            raise SpecError(f"expected {name} as (least, most), got {(least, most)}")


class _Sized(Transform, frozen=True):
    """The base of those whose first option is a size."""

    size: Size

    def __post_init__(self) -> None:
        sides = self.size if isinstance(self.size, tuple | list) else (self.size,)
        right = all(isinstance(side, int) and 1 <= side <= MAX_SIDE for side in sides)
        if not right or len(sides) > 2 or not sides:
            raise SpecError(f"expected size as pixels or (height, width), each 1..{MAX_SIDE:,}, got {self.size!r}")


# where pixels are -----------------------------------------------------------------------------------


class Resize(_Sized, frozen=True):
    """To `size`, whatever the proportions were. bilinear is a triangle filter as wide as the shrinking, as Pillow's."""

    interpolation: Sampling = "bilinear"


class Pad(Transform, frozen=True):
    """`padding` pixels on every side: of the colour `fill`, of the nearest pixel (edge), or mirrored (reflect)."""

    padding: Annotated[int, Meta(ge=0, le=65_536)]
    fill: Share = 0.0
    padding_mode: Literal["constant", "edge", "reflect"] = "constant"


class CenterCrop(_Sized, frozen=True):
    """The middle; images that are smaller are surrounded with black."""


class RandomCrop(_Sized, frozen=True):
    """A part of `size`, after `padding` pixels were put on every side."""

    padding: Annotated[int, Meta(ge=0, le=65_536)] = 0
    fill: Share = 0.0
    padding_mode: Literal["constant", "edge", "reflect"] = "constant"


class RandomResizedCrop(_Sized, frozen=True):
    """A part with `scale` of the area and `ratio` of width to height, resized to `size`."""

    scale: tuple[Share, Share] = (0.08, 1.0)
    ratio: tuple[Positive, Positive] = (0.75, 4 / 3)
    interpolation: Sampling = "bilinear"

    def __post_init__(self) -> None:
        _Sized.__post_init__(self)
        _ascending(scale=self.scale, ratio=self.ratio)


class RandomHorizontalFlip(Transform, frozen=True):
    """Left and right exchanged with probability p."""

    p: Share = 0.5


class RandomVerticalFlip(Transform, frozen=True):
    """Top and bottom exchanged with probability p."""

    p: Share = 0.5


class RandomRotation(Transform, frozen=True):
    """About the middle, by up to `degrees` either way; what comes from outside is `fill`."""

    degrees: Degrees
    fill: Share = 0.0
    interpolation: Sampling = "bilinear"


class RandomAffine(Transform, frozen=True):
    """Rotated by up to `degrees`, moved by up to `translate` (of width, of height), `scale`d, sheared by up to `shear`
    degrees along x, about the middle."""

    degrees: Degrees
    translate: tuple[Share, Share] = (0.0, 0.0)
    scale: tuple[Positive, Positive] = (1.0, 1.0)
    shear: Annotated[float, Meta(ge=0.0, le=89.0)] = 0.0
    fill: Share = 0.0
    interpolation: Sampling = "bilinear"

    def __post_init__(self) -> None:
        _ascending(scale=self.scale)


class RandomPerspective(Transform, frozen=True):
    """Each corner moved inwards by up to `distortion_scale` of half a side."""

    distortion_scale: Share = 0.5
    p: Share = 0.5
    fill: Share = 0.0
    interpolation: Sampling = "bilinear"


# which colours they have ----------------------------------------------------------------------------


class ColorJitter(Transform, frozen=True):
    """Brightness, contrast and saturation times 1 - x … 1 + x, hue turned by -x … x of a circle, one after the other.

    (torchvision shuffles the four for every batch; here the order stays.)
    """

    brightness: Factor = 0.0
    contrast: Factor = 0.0
    saturation: Factor = 0.0
    hue: Annotated[float, Meta(ge=0.0, le=0.5)] = 0.0


class Grayscale(Transform, frozen=True):
    """0.299 R + 0.587 G + 0.114 B in every channel."""


class RandomGrayscale(Transform, frozen=True):
    """Without colour with probability p."""

    p: Share = 0.1


class RandomChannelPermutation(Transform, frozen=True):
    """The channels in another order."""


class RandomInvert(Transform, frozen=True):
    """White minus the pixel."""

    p: Share = 0.5


class RandomSolarize(Transform, frozen=True):
    """Pixels of at least `threshold` inverted."""

    threshold: Share = 0.5
    p: Share = 0.5


class RandomPosterize(Transform, frozen=True):
    """Only the highest `bits` of the eight of each pixel kept."""

    bits: Annotated[int, Meta(ge=0, le=8)]
    p: Share = 0.5


class RandomEqualize(Transform, frozen=True):
    """Each channel's histogram made flat, as Pillow does; brightness is measured in 255ths of white."""

    p: Share = 0.5


class RandomAutocontrast(Transform, frozen=True):
    """Each channel stretched from black to white."""

    p: Share = 0.5


class RandomAdjustSharpness(Transform, frozen=True):
    """0: smoothed, 1: as it is, 2: sharpened, as Pillow does."""

    sharpness_factor: Factor
    p: Share = 0.5


class GaussianBlur(Transform, frozen=True):
    """With a kernel of `kernel_size` (odd) pixels and a deviation drawn from `sigma`; borders are mirrored."""

    kernel_size: Annotated[int, Meta(ge=1, le=255)]
    sigma: tuple[Positive, Positive] = (0.1, 2.0)

    def __post_init__(self) -> None:
        _ascending(sigma=self.sigma)
        if self.kernel_size % 2 == 0:
            raise SpecError(f"expected an odd kernel_size, got {self.kernel_size}")


class GaussianNoise(Transform, frozen=True):
    """Normal numbers of mean `mean` and deviation `sigma` added to every pixel."""

    mean: Annotated[float, Meta(ge=-1.0, le=1.0)] = 0.0
    sigma: Share = 0.1


class Normalize(Transform, frozen=True):
    """(pixel / white - mean) / std of each channel; floats come out."""

    mean: tuple[Finite, ...]
    std: tuple[Positive, ...]

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            raise SpecError(f"expected as many means as stds, got {len(self.mean)} and {len(self.std)}")


# parts of them --------------------------------------------------------------------------------------


class RandomErasing(Transform, frozen=True):
    """A rectangle with `scale` of the area and `ratio` of height to width set to `value`."""

    p: Share = 0.5
    scale: tuple[Share, Share] = (0.02, 0.33)
    ratio: tuple[Positive, Positive] = (0.3, 3.3)
    value: Share = 0.0

    def __post_init__(self) -> None:
        _ascending(scale=self.scale, ratio=self.ratio)


class Cutout(Transform, frozen=True):
    """A square of `size` pixels about any pixel set to `value`; part of it may lie outside."""

    size: Side
    value: Share = 0.0
    p: Share = 1.0


# several rows, or several of the above --------------------------------------------------------------


class Mixup(Transform, frozen=True):
    """Each image mixed with another of the batch, in a share drawn from Beta(alpha, alpha) for the batch.

    The targets are mixed alike: see Mixed. H. Zhang et al., 2018.
    """

    alpha: Positive = 1.0


class CutMix(Transform, frozen=True):
    """A rectangle of each image replaced by that of another of the batch; targets are mixed by the areas.

    S. Yun et al., 2019.
    """

    alpha: Positive = 1.0


class RandAugment(Transform, frozen=True):
    """`num_ops` operations drawn for each image, all of strength `magnitude` of 30. E. Cubuk et al., 2020."""

    num_ops: Annotated[int, Meta(ge=1, le=16)] = 2
    magnitude: Annotated[int, Meta(ge=0, le=30)] = 9
    fill: Share = 0.0


class AutoAugment(Transform, frozen=True):
    """One of the 25 pairs of operations that were found for a dataset. E. Cubuk et al., 2019."""

    policy: Literal["imagenet", "cifar10", "svhn"] = "imagenet"
    fill: Share = 0.0


class TrivialAugmentWide(Transform, frozen=True):
    """One operation of any strength for each image. S. Müller, F. Hutter, 2021."""

    fill: Share = 0.0


AnyTransform = (
    Resize
    | Pad
    | CenterCrop
    | RandomCrop
    | RandomResizedCrop
    | RandomHorizontalFlip
    | RandomVerticalFlip
    | RandomRotation
    | RandomAffine
    | RandomPerspective
    | ColorJitter
    | Grayscale
    | RandomGrayscale
    | RandomChannelPermutation
    | RandomInvert
    | RandomSolarize
    | RandomPosterize
    | RandomEqualize
    | RandomAutocontrast
    | RandomAdjustSharpness
    | GaussianBlur
    | GaussianNoise
    | Normalize
    | RandomErasing
    | Cutout
    | Mixup
    | CutMix
    | RandAugment
    | AutoAugment
    | TrivialAugmentWide
)
KINDS: dict[str, type[Transform]] = {kind.__name__: kind for kind in get_args(AnyTransform)}


class Compose:
    """Transforms one after the other. Raises SpecError for an option that cannot be.

    Called with images (uint8 or float) and a key: an integer seed, or (seed, step), or a generator's `next_key()`.
    Returns images of the same kind and dtype (floats after Normalize); with `targets` (N, …) a pair (images, targets),
    where targets are Mixed if Mixup or CutMix is among the transforms. white: of float images.
    """

    def __init__(self, transforms: Iterable[Transform], white: float = 1.0) -> None:
        self.transforms = [checked(transform) for transform in transforms]
        if not (isinstance(white, int | float) and math.isfinite(white) and white >= MIN_WHITE):
            raise SpecError(f"Compose: expected white >= {MIN_WHITE:g}, got {white!r}")
        self.white = float(white)

    def __call__(self, images: Any, key: Any = 0, targets: Any = None) -> Any:
        run: Callable[..., Any] = importlib.import_module("cyxcore.transforms.running").run  # it needs NumPy
        return run(self.transforms, images, key, targets, self.white)

    def __repr__(self) -> str:
        return f"Compose([{', '.join(map(repr, self.transforms))}])"

    def output_shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """(C, H, W) of what comes out for images (C, H, W). Raises SpecError for what cannot be cropped."""
        channels, height, width = shape
        for transform in self.transforms:
            if isinstance(transform, Pad):
                height, width = height + 2 * transform.padding, width + 2 * transform.padding
            elif isinstance(transform, Resize | CenterCrop | RandomCrop | RandomResizedCrop):
                room = 2 * transform.padding if isinstance(transform, RandomCrop) else 0
                size = pair(transform.size)
                if isinstance(transform, RandomCrop) and (size[0] > height + room or size[1] > width + room):
                    raise SpecError(f"RandomCrop: expected a size within {height + room} x {width + room}, got {size}")
                height, width = size
            elif isinstance(transform, Normalize) and len(transform.mean) not in (1, channels):
                raise SpecError(f"Normalize: expected 1 or {channels} means, got {len(transform.mean)}")
        return channels, height, width


def pair(size: int | tuple[int, ...]) -> tuple[int, int]:
    """(height, width)."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def checked(transform: Any) -> Transform:
    """The same, with every option within its bounds. Raises SpecError."""
    if not isinstance(transform, Transform):
        raise SpecError(f"transforms: expected one of {', '.join(KINDS)}, got {type(transform).__name__}")
    name = type(transform).__name__
    try:
        result: Transform = msgspec.convert(msgspec.to_builtins(transform), type(transform))
        return result
    except (msgspec.ValidationError, TypeError) as error:
        said = told(str(error))
        option = said.partition(":")[0]
        got = (
            f", got {getattr(transform, option)!r}"
            if option in transform.__struct_fields__ and "got" not in said
            else ""
        )
        raise SpecError(f"{name}: {said}{got}") from None


def told(said: str) -> str:
    """msgspec's sentence, the option first: "p: expected `float` <= 1.0"."""
    text, _, place = said.partition(" - at ")
    place = place.strip("`").removeprefix("$").lstrip(".")
    return f"{place + ': ' if place else ''}{text[:1].lower()}{text[1:]}"


# what is used for the well-known datasets -----------------------------------------------------------


def presets() -> dict[str, list[Transform]]:
    """Lists of transforms to begin with, by name: cx.transforms.Compose(cx.transforms.presets()["cifar"])."""
    return {
        "light": [RandomHorizontalFlip(), RandomCrop(32, padding=4)],
        "cifar": [RandomCrop(32, padding=4, padding_mode="reflect"), RandomHorizontalFlip(), Cutout(8)],
        "digits": [RandomAffine(10, translate=(0.1, 0.1), scale=(0.9, 1.1))],
        "imagenet": [RandomResizedCrop(224), RandomHorizontalFlip(), ColorJitter(0.4, 0.4, 0.4)],
        "strong": [RandomHorizontalFlip(), RandAugment(), RandomErasing(p=0.25)],
        "evaluation": [Resize(256), CenterCrop(224)],
    }

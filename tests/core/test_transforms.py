"""Transforms of images: against Pillow where it has the thing, and against what must hold of them."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

import cyxcore as cx
from cyxcore import transforms as T
from cyxcore.errors import DataError, DtypeError, ShapeError, SpecError
from cyxcore.kernels.philox import uniform_words
from cyxcore.transforms import colour, geometry, policies, running
from cyxcore.transforms.draws import Draws

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(5)


def photo(height: int = 37, width: int = 50) -> np.ndarray:
    """(3, H, W) uint8: smooth shapes with some noise, so that interpolation has something to find."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 90 * np.sin(x / 7 + k) * np.cos(y / (5 + k)) for k in range(3)]
    return np.clip(np.stack(waves) + RNG.normal(0, 6, (3, height, width)), 0, 255).astype(np.uint8)


PHOTO = photo()
SMALL = np.stack([photo(16, 16) for _ in range(8)])


def pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image.transpose(1, 2, 0))


def back(image: Image.Image) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1).astype(np.float32)


def batch(image: np.ndarray) -> np.ndarray:
    return image[None].astype(np.float32)


def apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours.reshape(theirs.shape) - theirs).max())


def one(value: float) -> np.ndarray:
    return np.array([value])


# against Pillow -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(20, 31), (37, 80), (90, 25), (9, 9)])
def test_resizing_is_pillows_to_a_level(size: tuple[int, int]) -> None:
    theirs = back(pillow(PHOTO).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    assert apart(geometry.resize(batch(PHOTO), size, "bilinear"), theirs) <= 1.0
    theirs = back(pillow(PHOTO).resize((size[1], size[0]), Image.Resampling.NEAREST))
    assert apart(geometry.resize(batch(PHOTO), size, "nearest"), theirs) == 0.0


@pytest.mark.parametrize("degrees", [0.0, 30.0, -75.0, 180.0])
def test_turning_is_pillows(degrees: float) -> None:
    theirs = back(pillow(PHOTO).rotate(degrees, Image.Resampling.BILINEAR, fillcolor=(9, 9, 9)))
    ours = geometry.warp(batch(PHOTO), geometry.turned((1, *PHOTO.shape), one(degrees)), 9.0, "bilinear")
    off = np.abs(ours[0] - theirs)
    assert np.count_nonzero(off > 1.0) <= 0.002 * off.size  # a pixel on the very border falls to either side


@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
def test_projections_are_pillows(sampling: str) -> None:
    coefficients = (0.9, 0.2, -3.0, -0.1, 1.2, 2.0, 0.002, -0.001)
    resampling = Image.Resampling.BILINEAR if sampling == "bilinear" else Image.Resampling.NEAREST
    theirs = back(
        pillow(PHOTO).transform((50, 37), Image.Transform.PERSPECTIVE, coefficients, resampling, fillcolor=(0, 0, 0))
    )
    ours = geometry.warp(batch(PHOTO), np.array([coefficients]), 0.0, sampling)
    off = np.abs(ours[0] - theirs)
    assert np.count_nonzero(off > 1.0) <= 0.002 * off.size


ENHANCED: list[tuple[Any, Any]] = [
    (colour.brightness, ImageEnhance.Brightness),
    (colour.contrast, ImageEnhance.Contrast),
    (colour.saturation, ImageEnhance.Color),
    (colour.sharpness, ImageEnhance.Sharpness),
]


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.8])
@pytest.mark.parametrize("ours, theirs", ENHANCED, ids=lambda value: getattr(value, "__name__", ""))
def test_enhancements_are_pillows(ours: Any, theirs: Any, factor: float) -> None:
    expected = back(theirs(pillow(PHOTO)).enhance(factor))
    assert (
        apart(ours(batch(PHOTO), one(factor), 255.0), expected) <= 1.6
    )  # Pillow rounds in between and cuts at the end


def test_histogram_operations_are_pillows() -> None:
    image = (PHOTO // 2 + 30).astype(np.uint8)
    assert apart(colour.equalize(batch(image), 255.0), back(ImageOps.equalize(pillow(image)))) == 0.0
    assert apart(colour.autocontrast(batch(image), 255.0), back(ImageOps.autocontrast(pillow(image)))) <= 1.0
    flat = np.full((3, 8, 8), 77, np.uint8)
    assert (colour.equalize(batch(flat), 255.0) == 77).all() and (colour.autocontrast(batch(flat), 255.0) == 77).all()


def test_simple_colour_operations_are_pillows() -> None:
    assert apart(colour.invert(batch(PHOTO), 255.0), back(ImageOps.invert(pillow(PHOTO)))) == 0.0
    assert apart(colour.solarize(batch(PHOTO), one(100), 255.0), back(ImageOps.solarize(pillow(PHOTO), 100))) == 0.0
    for bits in (1, 4, 8):
        assert (
            apart(colour.posterize(batch(PHOTO), one(bits), 255.0), back(ImageOps.posterize(pillow(PHOTO), bits))) == 0
        )
    gray = np.asarray(pillow(PHOTO).convert("L"), np.float32)
    assert apart(colour.gray(batch(PHOTO)), gray) <= 0.51


def test_a_turn_of_the_hue_is_that_of_hsv() -> None:
    ours = colour.hue(batch(PHOTO) / 255, one(1 / 3), 1.0)
    assert apart(ours, batch(PHOTO)[:, [2, 0, 1]] / 255) < 1e-5  # a third of the circle: red is green
    assert apart(colour.hue(batch(PHOTO), one(0.0), 255.0), PHOTO.astype(np.float32)) < 1e-3


def test_a_blur_is_a_gaussians() -> None:
    ours = colour.blur(batch(PHOTO), 13, one(1.5))[0, :, 6:-6, 6:-6]
    theirs = back(pillow(PHOTO).filter(ImageFilter.GaussianBlur(1.5)))[:, 6:-6, 6:-6]
    assert np.abs(ours - theirs).mean() < 1.5  # Pillow's is three boxes
    spot = np.zeros((1, 1, 9, 9), np.float32)
    spot[0, 0, 4, 4] = 1.0
    weights = np.exp(-0.5 * (np.arange(-2, 3) / 0.8) ** 2)
    np.testing.assert_allclose(
        colour.blur(spot, 5, one(0.8))[0, 0, 2:7, 2:7], np.outer(weights, weights) / weights.sum() ** 2, rtol=1e-5
    )


# geometry -----------------------------------------------------------------------------------------


def test_a_perspective_brings_the_corners_where_they_shall_be() -> None:
    corners = np.array([[[3.0, 2.0], [46.0, 1.0], [49.0, 33.0], [0.5, 36.0]]])
    a, b, c, d, e, f, g, h = geometry.perspective((1, 3, 37, 50), corners)[0]
    for (x, y), wanted in zip(corners[0], [(0, 0), (50, 0), (50, 37), (0, 37)], strict=True):
        depth = g * x + h * y + 1
        np.testing.assert_allclose([(a * x + b * y + c) / depth, (d * x + e * y + f) / depth], wanted, atol=1e-9)


def test_a_projection_that_moves_nothing_changes_nothing() -> None:
    still = geometry.affine(8)
    assert (geometry.warp(SMALL.astype(np.float32), still, 0.0, "bilinear") == SMALL).all()
    assert (geometry.warp(SMALL.astype(np.float32), still, 0.0, "nearest") == SMALL).all()
    corners = np.array([[[0.0, 0.0], [16, 0], [16, 16], [0, 16]]] * 8)
    np.testing.assert_allclose(geometry.perspective(SMALL.shape, corners), still, atol=1e-12)


def test_a_row_is_warped_the_same_in_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    images, turns = SMALL.astype(np.float32), geometry.turned(SMALL.shape, np.linspace(-50, 50, 8))
    whole = geometry.warp(images, turns, 0.0, "bilinear")
    monkeypatch.setattr(geometry, "_BLOCK", 1)
    assert (geometry.warp(images, turns, 0.0, "bilinear") == whole).all()


def test_a_crop_is_a_part_of_the_padded_image() -> None:
    out = T.RandomCrop(16, padding=2, padding_mode="reflect")(SMALL, key=(1, 2))
    padded = np.pad(SMALL, ((0, 0), (0, 0), (2, 2), (2, 2)), "reflect")
    places = []
    for image, around in zip(out, padded, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(around, (16, 16), axis=(1, 2)).transpose(1, 2, 0, 3, 4)
        found = np.argwhere((windows == image).all((2, 3, 4)))
        assert len(found) >= 1
        places.append(tuple(found[0]))
    assert len(set(places)) > 3


def test_crops_of_the_middle() -> None:
    assert (T.CenterCrop(4)(SMALL) == SMALL[:, :, 6:10, 6:10]).all()
    wide = T.CenterCrop((20, 4))(SMALL)
    assert wide.shape == (8, 3, 20, 4) and (wide[:, :, 2:18] == SMALL[..., 6:10]).all() and not wide[:, :, :2].any()


def test_flips_mirror_about_half_the_rows() -> None:
    images = np.repeat(SMALL[:1], 400, 0)
    out = T.RandomHorizontalFlip()(images, key=3)
    turned = (out == images[..., ::-1]).all((1, 2, 3))
    assert abs(turned.sum() - 200) < 50 and (out[~turned] == images[~turned]).all()
    assert (T.RandomVerticalFlip(p=1.0)(images) == images[:, :, ::-1]).all()


def test_a_resized_crop_of_everything_is_the_image_resized() -> None:
    out = T.RandomResizedCrop(8, scale=(1.0, 1.0), ratio=(1.0, 1.0))(SMALL)
    assert (out == T.Resize(8)(SMALL)).all()
    assert T.RandomResizedCrop((5, 7))(SMALL).shape == (8, 3, 5, 7)


# erasing and mixing -------------------------------------------------------------------------------


def test_erased_parts_are_rectangles_of_the_asked_size() -> None:
    images = np.ones((200, 1, 32, 32), np.float32)
    out = T.RandomErasing(p=1.0, scale=(0.1, 0.2), value=0.5)(images, key=1)
    shares = (out == 0.5).mean((1, 2, 3))
    assert shares.min() > 0.05 and shares.max() < 0.25
    assert abs(int((T.RandomErasing(p=0.25)(images) != 1).any((1, 2, 3)).sum()) - 50) < 32
    cut = T.Cutout(8, value=0.0)(images, key=1) == 0
    assert cut.sum((1, 2, 3)).max() == 64 and cut.any((1, 2, 3)).all()


def test_mixup_mixes_images_and_targets_alike() -> None:
    images, labels = np.arange(8, dtype=np.float32).reshape(8, 1, 1, 1) / 8, np.arange(8)
    out, mixed = T.Compose([T.Mixup(0.4)])(images, key=(1, 4), targets=labels)
    share = mixed.share[:, None, None, None]
    np.testing.assert_allclose(out, images * share + images[mixed.second] * (1 - share), atol=1e-6)
    np.testing.assert_allclose(mixed.soft(8).numpy().sum(1), 1.0, atol=1e-6)
    assert 0 < mixed.share[0] < 1 and sorted(mixed.second) == list(range(8))
    with pytest.raises(DataError, match="expected targets that are classes from 0 to 2, got 0 to 7"):
        mixed.soft(3)


def test_cutmix_mixes_targets_by_area() -> None:
    images = np.broadcast_to((np.arange(16) / 16).astype(np.float32).reshape(16, 1, 1, 1), (16, 1, 20, 20))
    out, mixed = T.CutMix()(cx.tensor(images), key=(9, 1), targets=cx.arange(16))
    own = (out.numpy() == images).mean((1, 2, 3))
    others = mixed.first.numpy() != mixed.second.numpy()
    np.testing.assert_allclose(mixed.share.numpy()[others], own[others], atol=1e-6)
    with pytest.raises(SpecError, match="at most one of Mixup and CutMix"):
        T.Compose([T.Mixup(), T.CutMix()])(SMALL)


# policies -----------------------------------------------------------------------------------------


def test_the_policies_are_complete() -> None:
    assert {name: len(pairs) for name, pairs in policies.POLICIES.items()} == {
        "cifar10": 25,
        "svhn": 25,
        "imagenet": 25,
    }
    steps = [step for pairs in policies.POLICIES.values() for pair in pairs for step in pair]
    assert len(steps) == 150 and all(step.op in policies.OPS and 0 <= step.p <= 1 for step in steps)


@pytest.mark.parametrize("name", policies.OPS)
def test_an_operation_does_to_each_row_what_it_does_to_it_alone(name: str) -> None:
    op, scene = policies.OPS[name], policies.Scene(255.0, 0.0)
    amounts = np.linspace(0.1, 1.0, 8) * (op.usual or 0.0)
    together = op.run(SMALL.astype(np.float32), amounts, scene)
    alone = [op.run(batch(image), amounts[row : row + 1], scene)[0] for row, image in enumerate(SMALL)]
    assert (together == np.stack(alone)).all()
    assert together.min() >= 0 and together.max() <= 255


def test_drawn_operations_differ_from_row_to_row() -> None:
    images = np.repeat(SMALL[:1], 60, 0)
    for transform in (T.RandAugment(), T.TrivialAugmentWide(), T.AutoAugment("svhn")):
        kinds = {image.tobytes() for image in transform(images, key=(3, 1))}
        assert len(kinds) > 10, transform


# all of them --------------------------------------------------------------------------------------

EXAMPLES: list[T.Transform] = [
    T.Resize(8),
    T.Pad(2, padding_mode="edge"),
    T.CenterCrop(8),
    T.RandomCrop(16, padding=4),
    T.RandomResizedCrop(12),
    T.RandomHorizontalFlip(),
    T.RandomVerticalFlip(),
    T.RandomRotation(20),
    T.RandomAffine(20, (0.1, 0.1), (0.8, 1.2), 10),
    T.RandomPerspective(),
    T.ColorJitter(0.3, 0.3, 0.3, 0.1),
    T.Grayscale(),
    T.RandomGrayscale(0.5),
    T.RandomChannelPermutation(),
    T.RandomInvert(),
    T.RandomSolarize(),
    T.RandomPosterize(3),
    T.RandomEqualize(),
    T.RandomAutocontrast(),
    T.RandomAdjustSharpness(1.7),
    T.GaussianBlur(3),
    T.GaussianNoise(),
    T.Normalize((0.5,), (0.25,)),
    T.RandomErasing(),
    T.Cutout(5),
    T.Mixup(),
    T.CutMix(),
    T.RandAugment(),
    T.AutoAugment(),
    T.TrivialAugmentWide(),
]

PINNED = {
    "Resize": "506be34db1e6",
    "Pad": "0fbf22acbc66",
    "CenterCrop": "bddce66bcdb2",
    "RandomCrop": "9b7d3c60c2f0",
    "RandomResizedCrop": "74ae951333f1",
    "RandomHorizontalFlip": "8fca00a1d5b1",
    "RandomVerticalFlip": "9e02914e1818",
    "RandomRotation": "61d9958c6aa4",
    "RandomAffine": "49fd17662bd6",
    "RandomPerspective": "d2433380ee0f",
    "ColorJitter": "7ed9c44c4918",
    "Grayscale": "2b38cdd329b8",
    "RandomGrayscale": "f91b81148d79",
    "RandomChannelPermutation": "51098a46f3e2",
    "RandomInvert": "0eaaaf1d1ee8",
    "RandomSolarize": "95a9ca5509fd",
    "RandomPosterize": "5705d868da89",
    "RandomEqualize": "eb90d5f16cf0",
    "RandomAutocontrast": "eadf471cc175",
    "RandomAdjustSharpness": "3c61bf0d25b8",
    "GaussianBlur": "ec779af6b557",
    "GaussianNoise": "dcfecabfbf07",
    "Normalize": "7ec12d2170fb",
    "RandomErasing": "f142e7492a8a",
    "Cutout": "a9334e6212da",
    "Mixup": "ce305c38d4a3",
    "CutMix": "2326da856698",
    "RandAugment": "a6a9d40dd439",
    "AutoAugment": "736b3fe42336",
    "TrivialAugmentWide": "897f6398f4f5",
}


def test_every_kind_has_an_example_and_a_row() -> None:
    assert [type(example).__name__ for example in EXAMPLES] == list(T.KINDS)
    assert set(running.RUN) == set(T.KINDS.values())


@pytest.mark.parametrize("transform", EXAMPLES, ids=lambda t: type(t).__name__)
def test_a_transform_is_a_pure_function_of_images_and_key(transform: T.Transform) -> None:
    before = SMALL.copy()
    first, again, other = (transform(SMALL, key=(7, step)) for step in (1, 1, 2))
    assert (first == again).all() and (SMALL == before).all()
    if type(transform) not in (T.Resize, T.Pad, T.CenterCrop, T.Grayscale, T.Normalize):
        assert (first != other).any()
    assert first.shape[1:] == T.Compose([transform]).output_shape((3, 16, 16))


@pytest.mark.parametrize("transform", EXAMPLES, ids=lambda t: type(t).__name__)
def test_floats_are_changed_as_bytes_are(transform: T.Transform) -> None:
    of_bytes = transform(SMALL, key=3).astype(np.float32)
    of_floats = T.Compose([transform], white=255.0)(SMALL.astype(np.float32), key=3)
    scale = 1.0 if isinstance(transform, T.Normalize) else 0.5
    assert np.abs(of_bytes - of_floats).max() <= scale + 1e-3


@pytest.mark.parametrize("transform", EXAMPLES, ids=lambda t: type(t).__name__)
def test_a_transform_travels_as_data(transform: T.Transform) -> None:
    read = msgspec.json.decode(msgspec.json.encode(transform), type=T.AnyTransform)
    assert read == transform and msgspec.to_builtins(transform)["kind"] == type(transform).__name__


@pytest.mark.parametrize("transform", EXAMPLES, ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 1, 5), (1, 4, 3, 2)])
def test_tiny_images_of_any_number_of_channels_are_images(transform: T.Transform, shape: tuple[int, ...]) -> None:
    transform = T.RandomCrop(1, padding=4) if isinstance(transform, T.RandomCrop) else transform
    out = T.Compose([transform])(np.full(shape, 0.5, np.float32), key=1)
    assert np.isfinite(out).all() and out.dtype == np.float32


def digests() -> dict[str, str]:
    """Of what each transform makes of the same images, which are made of integers alone."""
    words = uniform_words(5, 0, 0, 4 * 3 * 12 * 12).reshape(4, 3, 12, 12)
    images = (words >> 24).astype(np.uint8) // 3 + (np.arange(12) * 14).astype(np.uint8)
    found = {}
    for transform in EXAMPLES:
        if isinstance(transform, T.RandomCrop):
            transform = T.RandomCrop(12, padding=4)
        of_bytes, of_floats = transform(images, key=(3, 9)), transform(images.astype(np.float32) / 256, key=(3, 9))
        digest = hashlib.sha256(of_bytes.tobytes() + of_floats.tobytes()).hexdigest()
        found[type(transform).__name__] = digest[:12]
    return found


def test_the_bits_are_what_they_always_were() -> None:
    """Jobs promise them: a change here is a change of what every job with that transform learns from."""
    assert digests() == PINNED


def test_the_bits_do_not_depend_on_the_processor() -> None:
    code = "from tests.core.test_transforms import PINNED, digests; print(digests() == PINNED)"
    features = "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR AVX2 FMA3"
    known = set(np._core._multiarray_umath.__cpu_dispatch__)  # type: ignore[attr-defined]
    less = os.environ | {"NPY_DISABLE_CPU_FEATURES": " ".join(name for name in features.split() if name in known)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, env=less, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"


def test_tensors_give_tensors_and_one_image_one() -> None:
    augment = T.Compose([T.RandomCrop(12), T.RandomHorizontalFlip()])
    tensor = augment(cx.tensor(SMALL), key=1)
    assert isinstance(tensor, cx.Tensor) and tensor.dtype == "uint8"
    assert (tensor.numpy() == augment(SMALL, key=1)).all()
    assert augment(SMALL[0], key=1).shape == (3, 12, 12)
    generator = cx.random.Generator(4)
    assert augment(SMALL, key=generator.next_key()).shape == (8, 3, 12, 12)


def test_presets_run() -> None:
    for name, transforms in T.presets().items():
        out = T.Compose(transforms)(np.stack([photo(32, 32)] * 2), key=1)
        assert out.shape[:2] == (2, 3), name


def test_the_draws_of_a_row_do_not_depend_on_how_many_rows_there_are() -> None:
    assert (Draws(1, 2, 4).uniform() == Draws(1, 2, 9).uniform()[:4]).all()
    draws = Draws(1, 2, 1000)
    assert (draws.uniform() != draws.uniform()).any()
    assert draws.below(3).min() == 0 and draws.below(3).max() == 2


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: T.RandomCrop(0), r"expected size as pixels or \(height, width\), each 1..65,536, got 0"),
        (lambda: T.RandomCrop("8"), "expected size as pixels or"),
        (lambda: T.Compose([T.RandomHorizontalFlip(1.5)]), "RandomHorizontalFlip: p: expected `float` <= 1.0, got 1.5"),
        (lambda: T.GaussianBlur(4), "expected an odd kernel_size, got 4"),
        (lambda: T.RandomErasing(scale=(0.5, 0.1)), r"expected scale as \(least, most\), got \(0.5, 0.1\)"),
        (lambda: T.Compose(["flip"]), "transforms: expected one of Resize, Pad, .*, got str"),
        (lambda: T.Compose([T.Normalize((0.5,), (0.1, 0.2))]), "expected as many means as stds, got 1 and 2"),
        (lambda: T.Compose([], white=0.0), "expected white >= 1e-30, got 0.0"),
        (lambda: T.Compose([T.Normalize((0.5,), (1.0,)), T.RandomInvert()])(SMALL), "put Normalize last"),
        (lambda: T.RandomInvert()(SMALL, key=-1), "expected a key as a seed or"),
        (lambda: T.RandomInvert()(SMALL, key=1.5), "expected a key as a seed or .* got 1.5"),
        (lambda: T.RandomInvert()(SMALL, key="seven"), "expected a key as a seed or .* got 'seven'"),
    ],
)
def test_what_cannot_be_is_one_clear_error(make: Any, said: str) -> None:
    with pytest.raises((SpecError, ValueError), match=said):
        make()


def test_images_of_another_build_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(N, C, H, W\) or \(C, H, W\), got \(3, 4\)"):
        T.RandomInvert()(np.zeros((3, 4), np.uint8))
    with pytest.raises(DtypeError, match="expected images of uint8 or floats, got int64"):
        T.RandomInvert()(np.zeros((1, 3, 4, 4), np.int64))
    with pytest.raises(ShapeError, match=r"RandomCrop: expected a size within 16 x 16, got \(17, 17\)"):
        T.RandomCrop(17)(SMALL)
    with pytest.raises(SpecError, match="RandomCrop: expected a size within 20 x 20"):
        T.Compose([T.RandomCrop(24, padding=2)]).output_shape((3, 16, 16))


def test_the_vocabulary_of_transforms_loads_no_numpy() -> None:
    code = "import sys, cyxcore.transforms as T; T.Compose([T.RandomCrop(8)]); print('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_pixel_that_is_no_number_stops_nothing() -> None:
    images = np.full((1, 1, 4, 4), 0.5, np.float32)
    images[0, 0, 0, 0] = np.nan
    for transform in (T.RandomEqualize(1.0), T.RandomPosterize(4, 1.0)):
        assert np.isfinite(transform(images)[0, 0, 1:]).all()

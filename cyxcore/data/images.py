"""A folder of images becomes an NPZ, on the submitter's machine: one sub-folder per class."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from cyxcore.data.arrays import write_npz
from cyxcore.data.checks import MAX_BYTES, Path, check_budget, defect, listed, shown
from cyxcore.data.formats import read_start
from cyxcore.data.labels import check_label
from cyxcore.errors import MissingExtra

if TYPE_CHECKING:
    from numpy import ndarray

MAX_PIXELS = 64_000_000  # of one image, checked before it is decoded
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "PPM")
_LEFT_BEHIND = ("thumbs.db", "desktop.ini")  # by Windows, which hides them
_GREY = ("1", "L", "LA")
_COLOUR = ("P", "RGB", "RGBA", "CMYK", "YCbCr")


class Image(NamedTuple):
    """One file, seen but not decoded. size: (width, height) upright; mode: Pillow's."""

    path: str
    label: int
    size: tuple[int, int]
    mode: str


def pack_images(
    folder: Path, size: tuple[int, int] | None, out_path: Path, *, limit_bytes: int = MAX_BYTES
) -> list[str]:
    """Writes x (N, C, H, W) uint8, y (N,) int64 and the class names; returns the class names.

    size: (width, height) every image is resized to; None keeps sizes, which must then be equal.
    C is 1 if every image is grey, else 3; transparency is dropped. Classes are the sub-folders' names in
    code point order, images are in the order of their names, so the same folder gives the same bytes.
    Names that start with a dot are skipped, and what Windows leaves in folders. Raises DataError; MissingExtra
    without Pillow.
    """
    import numpy as np

    library = pillow()
    classes = classes_of(folder)
    images = [
        _seen(library, path, label)
        for label, name in enumerate(classes)
        for path in files_of(os.path.join(folder, name))
    ]
    width, height = _common_size(images, size)
    channels = 1 if all(image.mode in _GREY for image in images) else 3
    needed_bytes = len(images) * channels * width * height
    check_budget(folder, needed_bytes, limit_bytes, f"{len(images):,} images of {width} x {height}")
    x: ndarray = np.empty((len(images), channels, height, width), np.uint8)
    for index, image in enumerate(images):
        x[index] = _pixels(library, image.path, (width, height), channels)
    y = np.array([image.label for image in images], np.int64)
    write_npz(out_path, {"x": x, "y": y, "classes": np.array(classes)})
    return classes


def pillow() -> Any:
    """The package. Raises MissingExtra."""
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError:
        raise MissingExtra("images need Pillow, which is not installed: pip install 'cyx[images]'") from None
    return PIL


def classes_of(folder: Path) -> list[str]:
    if not os.path.isdir(folder):
        raise defect(folder, "a folder with one sub-folder per class", "none by this name", "check the path")
    names = _names_in(folder)
    stray = [name for name in names if not os.path.isdir(os.path.join(folder, name))]
    if stray:
        raise defect(folder, "only sub-folders, one per class", f"the file {shown(stray[0])}", "move it away")
    if len(names) < 2:
        raise defect(folder, "at least 2 sub-folders", listed(names) or "none", "make one sub-folder per class")
    for row, name in enumerate(names, 1):
        check_label(folder, "classes", row, name)
    return names


def _names_in(folder: Path) -> list[str]:
    """What somebody has put there, in code point order; not what systems that show folders leave behind."""
    return sorted(name for name in os.listdir(folder) if not (name.startswith(".") or name.lower() in _LEFT_BEHIND))


def files_of(folder: str) -> list[str]:
    paths = [os.path.join(folder, name) for name in _names_in(folder)]
    if not paths:
        raise defect(folder, "at least 1 image", "an empty folder", "add images or remove the folder")
    if nested := next((path for path in paths if os.path.isdir(path)), None):
        remedy = "name the folder whose sub-folders are the classes, or move its images up"
        got = f"the folder {shown(os.path.basename(nested))}"
        raise defect(folder, "only images in the folder of a class", got, remedy)
    return paths


def _open(pillow: Any, path: str) -> Any:
    """An image whose header alone has been read, and whose size is bearable."""
    read_start(path)  # says what is no plain file; a pipe would let us wait for ever
    # Of bombs, which are refused below, and of oddities in metadata that the pixels do not need. Not catch_warnings:
    # images are read by several threads, which would take each other's filters away.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        opened = pillow.Image.open(path, formats=FORMATS)
    except (OSError, ValueError, SyntaxError, pillow.Image.DecompressionBombError) as error:
        remedy = f"use one of {', '.join(FORMATS)}, or remove the file"
        raise defect(path, "an image", f"{type(error).__name__}", remedy) from None
    if opened.width * opened.height > MAX_PIXELS:
        got = f"{opened.width:,} x {opened.height:,}"
        opened.close()
        raise defect(path, f"an image of at most {MAX_PIXELS:,} pixels", got, "make it smaller")
    return opened


def _seen(pillow: Any, path: str, label: int) -> Image:
    with _open(pillow, path) as opened:
        if opened.mode not in _GREY + _COLOUR:
            remedy = "convert it to 8 bits per channel"
            raise defect(path, "8 bits per channel", f"Pillow's mode {opened.mode!r}", remedy)
        with _damage_told(path):
            turned = opened.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF: these lie on their side
        size = (opened.height, opened.width) if turned else (opened.width, opened.height)
        return Image(path, label, size, opened.mode)


def _common_size(images: list[Image], size: tuple[int, int] | None) -> tuple[int, int]:
    if size is not None:
        if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
            raise defect(images[0].path, "a size of at least 1 x 1", f"{size[0]} x {size[1]}", "choose another")
        return size
    first = images[0]
    other = next((image for image in images if image.size != first.size), None)
    if other is not None:
        expected = f"{first.size[0]} x {first.size[1]} pixels like {shown(os.path.basename(first.path))}"
        got = f"{other.size[0]} x {other.size[1]}"
        raise defect(
            other.path, expected, got, "give a size (width, height; of a job data.image_size) to resize all images to"
        )
    return first.size


def decoded(path: str, size: tuple[int, int] | None, channels: int) -> ndarray:
    """(channels, height, width) uint8 of one file, upright. size: (width, height); None keeps its own.

    Raises DataError for what is no image of 8 bits per channel.
    """
    library = pillow()
    seen = _seen(library, path, 0)
    return _pixels(library, path, size or seen.size, channels)


def _pixels(pillow: Any, path: str, size: tuple[int, int], channels: int) -> ndarray:
    """(channels, height, width) uint8: upright, resized with Pillow's bilinear filter."""
    import numpy as np

    with _open(pillow, path) as opened, _damage_told(path):
        upright = pillow.ImageOps.exif_transpose(opened).convert("L" if channels == 1 else "RGB")
        if upright.size != size:
            upright = upright.resize(size, pillow.Image.Resampling.BILINEAR)
        pixels: ndarray = np.asarray(upright, np.uint8).reshape(size[1], size[0], channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


@contextmanager
def _damage_told(path: str) -> Iterator[None]:
    """Whatever Pillow raises while it decodes becomes a DataError."""
    try:
        yield
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        IndexError,
        KeyError,
        TypeError,
        struct.error,
    ) as error:
        got = f"{type(error).__name__}: {str(error)[:100]}"
        raise defect(path, "an undamaged image", got, "replace or remove it") from None

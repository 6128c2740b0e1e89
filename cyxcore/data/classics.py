"""MNIST, FashionMNIST, CIFAR-10 and CIFAR-100 from their original files on this machine. Nothing is downloaded.

    train = cx.data.MNIST("mnist/", train=True)      # rows (image (1, 28, 28) uint8, label)

The folder holds the files as they are published (also gzipped), or the folders that archives and torchvision make.
"""

import gzip
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from cyxcore.data.checks import Path, defect
from cyxcore.data.datasets import TensorDataset
from cyxcore.data.formats import read_start
from cyxcore.data.npy import damage_told
from cyxcore.data.pickles import read_dictionary

Array = np.ndarray[Any, Any]

MAX_FILE_BYTES = 2**30
_IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


class _Labelled(TensorDataset):
    """Rows (image (C, H, W) uint8, label int64). `data` and `targets` are all of them, `classes` the names by label."""

    def __init__(self, data: Array, targets: Array, classes: Sequence[str]) -> None:
        self.data, self.targets, self.classes = data, targets, list(classes)
        super().__init__(data, targets)


class MNIST(_Labelled):
    """Handwritten digits, 28 x 28: 60,000 to train, 10,000 to test. Files `train-images-idx3-ubyte` and so on."""

    names: tuple[str, ...] = tuple("0123456789")
    folders: tuple[str, ...] = ("", "raw", "MNIST/raw")

    def __init__(self, root: Path, train: bool = True) -> None:
        part = "train" if train else "t10k"
        images_path, images = self._read(root, f"{part}-images", 3)
        labels_path, labels = self._read(root, f"{part}-labels", 1)
        if len(images) != len(labels):
            got = f"{len(labels):,} in {labels_path}"
            raise defect(images_path, f"a label for each of its {len(images):,} images", got, "take both of one set")
        if not len(images):
            raise defect(images_path, "at least 1 image", "none", "take the original file")
        _check_labels(labels_path, labels, len(self.names))
        super().__init__(images[:, None], labels.astype(np.int64), self.names)

    def _read(self, root: Path, name: str, axes: int) -> tuple[str, Array]:
        endings = [f"{mark}idx{axes}-ubyte{gz}" for mark in "-." for gz in ("", ".gz")]
        path = _find(root, self.folders, [name + ending for ending in endings])
        array = read_idx(path)
        if array.ndim != axes or array.dtype != np.uint8:
            got = f"{array.dtype} {array.shape}"
            raise defect(path, f"bytes with {axes} axes", got, "take the original file")
        return path, array


class FashionMNIST(MNIST):
    """Pieces of clothing in the format and sizes of MNIST."""

    names = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
    folders = ("", "raw", "FashionMNIST/raw")


class CIFAR10(_Labelled):
    """Photographs, 3 x 32 x 32: 50,000 to train, 10,000 to test; the binary version (`data_batch_1.bin` …) or the
    Python one (`data_batch_1` …), of which nothing is unpickled."""

    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def __init__(self, root: Path, train: bool = True) -> None:
        parts = [f"data_batch_{number}" for number in range(1, 6)] if train else ["test_batch"]
        folders = ("", "cifar-10-batches-bin", "cifar-10-batches-py")
        read = [_read_cifar(_find(root, folders, [f"{name}.bin", name]), 1, 0, "labels", 10) for name in parts]
        images, labels = (np.concatenate(part) for part in zip(*read, strict=True))
        super().__init__(images, labels, self.names)


class CIFAR100(_Labelled):
    """As CIFAR10 with 100 classes, or the 20 above them (coarse). `train.bin`, `test.bin`, or the Python version.

    classes: of the files beside it, `fine_label_names.txt` or `coarse_label_names.txt`; numbers where there is none.
    """

    def __init__(self, root: Path, train: bool = True, coarse: bool = False) -> None:
        name, kind, count = ("train" if train else "test"), ("coarse" if coarse else "fine"), (20 if coarse else 100)
        path = _find(root, ("", "cifar-100-binary", "cifar-100-python"), [f"{name}.bin", name])
        data, labels = _read_cifar(path, 2, 0 if coarse else 1, f"{kind}_labels", count)
        super().__init__(data, labels, _names_beside(path, f"{kind}_label_names.txt", count))


def read_idx(path: Path) -> Array:
    """The array of an IDX file, gzipped or not, in this machine's byte order. Sizes are checked before memory is taken.

    Raises DataError.
    """
    packed = read_start(path).startswith(b"\x1f\x8b")
    with damage_told(path, "gzip" if packed else "IDX"), gzip.open(path) if packed else open(path, "rb") as stream:
        start = stream.read(4)
        code = _IDX_DTYPES.get(start[2]) if len(start) == 4 and start[:2] == b"\0\0" else None
        if code is None or not 1 <= start[3] <= 8:
            raise defect(path, "an IDX file", f"bytes that start with {start!r}", "take the original file")
        sides = stream.read(4 * start[3])
        shape = tuple(int.from_bytes(sides[n : n + 4], "big") for n in range(0, len(sides), 4))
        wanted_bytes = math.prod(shape) * np.dtype(code).itemsize
        if len(shape) != start[3] or wanted_bytes > MAX_FILE_BYTES:
            got = f"shape {shape}"
            raise defect(path, f"at most {MAX_FILE_BYTES:,} bytes", got, "take the original file")
        if not packed and os.path.getsize(path) != 4 + len(sides) + wanted_bytes:
            got = f"{os.path.getsize(path) - 4 - len(sides):,}"
            raise defect(path, f"{wanted_bytes:,} bytes for shape {shape}", got, "the file is cut off or damaged")
        content = stream.read(wanted_bytes + 1)
    if len(content) != wanted_bytes:
        got = f"{len(content):,}" if len(content) < wanted_bytes else "more"
        raise defect(path, f"{wanted_bytes:,} bytes for shape {shape}", got, "the file is cut off or damaged")
    kind = np.dtype(code)
    return np.frombuffer(content, kind).reshape(shape).astype(kind.newbyteorder("="))


def _read_cifar(path: str, label_bytes: int, label_at: int, key: str, classes: int) -> tuple[Array, Array]:
    """(images (N, 3, 32, 32) uint8, labels (N,) int64) of one file."""
    size = os.path.getsize(path)
    if size > MAX_FILE_BYTES:
        raise defect(path, f"at most {MAX_FILE_BYTES:,} bytes", f"{size:,}", "take the original file")
    with open(path, "rb") as file:
        content = file.read()
    if path.endswith(".bin"):
        row_bytes = label_bytes + 3072
        if not size or size % row_bytes:
            raise defect(
                path, f"images of {row_bytes:,} bytes each", f"{size:,} bytes", "the file is cut off or damaged"
            )
        rows = np.frombuffer(content, np.uint8).reshape(-1, row_bytes)
        images, labels = rows[:, label_bytes:], rows[:, label_at]
    else:
        images, labels = _from_dictionary(path, read_dictionary(path, content), key)
    _check_labels(path, labels, classes)
    return images.reshape(-1, 3, 32, 32).copy(), labels.astype(np.int64)


def _from_dictionary(path: str, table: dict[str, Any], key: str) -> tuple[Array, Array]:
    images, labels, remedy = table.get("data"), table.get(key), "take the original file"
    if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != 3072:
        got = str(getattr(images, "shape", type(images).__name__))
        raise defect(path, "an array 'data' of 3,072 bytes per image", got, remedy)
    if not isinstance(labels, list) or len(labels) != len(images):
        got = f"{len(labels):,} of {len(images):,}" if isinstance(labels, list) else f"a {type(labels).__name__}"
        raise defect(path, f"a list {key!r} with a label per image", got, remedy)
    if not all(type(label) is int and 0 <= label < 2**31 for label in labels):
        raise defect(path, "whole numbers from 0 up as labels", "others", remedy, array=key)
    return images, np.array(labels, np.int64)


def _check_labels(path: Path, labels: Array, classes: int) -> None:
    wrong = np.flatnonzero(labels >= classes)
    if wrong.size:
        got = f"{labels[wrong[0]]}"
        raise defect(path, f"labels below {classes}", got, "take the original file", row=int(wrong[0]) + 1)


def _names_beside(path: str, name: str, count: int) -> list[str]:
    beside = os.path.join(os.path.dirname(path), name)
    if os.path.isfile(beside) and os.path.getsize(beside) < 65_536:
        with open(beside, encoding="utf-8", errors="replace") as file:
            names = [line.strip() for line in file if line.strip()]
        if len(names) == count:
            return names
    return [str(number) for number in range(count)]


def _find(root: Path, folders: Sequence[str], names: Sequence[str]) -> str:
    """The first of the files that is there. Raises DataError with where it looked."""
    if not os.path.isdir(root):
        raise defect(root, "the folder with the files of the dataset", "no folder by this name", "check the path")
    for folder in folders:
        for name in names:
            path = os.path.join(os.fspath(root), folder, name)
            if os.path.isfile(path):
                read_start(path)
                return path
    looked = ", ".join(name or "itself" for name in folders)
    remedy = f"nothing is downloaded: put the published file there (looked in {looked})"
    raise defect(root, f"the file {names[0]}", "none of the names it has", remedy)

"""Images in folders, decoded when they are asked for. Needs Pillow (`pip install 'cyx[images]'`)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from cyxcore.creation import from_numpy
from cyxcore.data import images, sources
from cyxcore.data.checks import Path, defect, nearest, shown
from cyxcore.data.datasets import Dataset, _checked
from cyxcore.data.formats import read_start
from cyxcore.data.labels import check_label, in_order, whole_if_numbers
from cyxcore.errors import SpecError

Array = np.ndarray[Any, Any]


class _ImageFiles(Dataset):
    """Rows (image (C, H, W) uint8, label). size: (height, width) all are brought to; None keeps their own.

    channels: 3 (RGB) or 1 (grey). transform: image array -> what the row holds instead.
    """

    def __init__(
        self,
        samples: list[tuple[str, int]],
        classes: list[str],
        size: tuple[int, int] | None,
        channels: int,
        transform: Callable[[Array], Any] | None,
    ) -> None:
        if channels not in (1, 3):
            raise SpecError(f"images: expected channels 1 or 3, got {channels}")
        if size is not None and not (min(size) >= 1 and size[0] * size[1] <= images.MAX_PIXELS):
            raise SpecError(f"images: expected size as (height, width) >= 1, got {size}")
        images.pillow()  # so that it is missed here and not in a row
        self.samples, self.classes, self.size, self.channels = samples, classes, size, channels
        self.class_to_idx = {name: place for place, name in enumerate(classes)}
        self.targets = [label for _, label in samples]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        path, label = self.samples[_checked(row, len(self))]
        size = None if self.size is None else (self.size[1], self.size[0])
        pixels = images.decoded(path, size, self.channels)
        return (from_numpy(pixels) if self.transform is None else self.transform(pixels)), label


class ImageFolder(_ImageFiles):
    """A sub-folder for each class, with its images, as torchvision's. Classes and files are in code point order.

    Names that begin with a dot are skipped. Raises DataError for files among the sub-folders, or no class.
    """

    def __init__(
        self,
        root: Path,
        size: tuple[int, int] | None = None,
        *,
        channels: int = 3,
        transform: Callable[[Array], Any] | None = None,
    ) -> None:
        classes = images.classes_of(root)
        samples = [
            (path, label)
            for label, name in enumerate(classes)
            for path in images.files_of(os.path.join(os.fspath(root), name))
        ]
        super().__init__(samples, classes, size, channels, transform)


class ImageCSV(_ImageFiles):
    """A CSV file that names images and their labels; paths are relative to `root`, or to the file's folder.

    Classes are in the order of a job's: whole numbers by their size, others by code points.
    Paths that lead out of root are refused: the file may come from a stranger.
    """

    def __init__(
        self,
        path: Path,
        root: Path | None = None,
        size: tuple[int, int] | None = None,
        *,
        path_column: str = "path",
        label_column: str = "label",
        channels: int = 3,
        transform: Callable[[Array], Any] | None = None,
    ) -> None:
        folder = os.path.realpath(os.path.dirname(os.path.abspath(os.fspath(path))) if root is None else root)
        named = self._named(path, path_column, label_column)
        first_row: dict[str, int] = {}
        for row, (_, label) in enumerate(named, 1):
            first_row.setdefault(label, row)
        names = whole_if_numbers(path, label_column, list(first_row.items()), "name the classes")
        name_of = dict(zip(first_row, names, strict=True))
        classes = in_order(name_of.values())
        place_of = {label: classes.index(name) for label, name in name_of.items()}
        samples = []
        for row, (name, label) in enumerate(named, 1):
            whole = os.path.realpath(os.path.join(folder, name))
            if not whole.startswith(folder + os.sep):
                remedy = "keep the images in it, or set root"
                raise defect(path, f"a path inside {folder}", shown(name), remedy, column=path_column, row=row)
            if not os.path.isfile(whole):
                raise defect(path, "a file", f"none at {shown(whole)}", "check root", column=path_column, row=row)
            samples.append((whole, place_of[label]))
        super().__init__(samples, classes, size, channels, transform)

    def _named(self, path: Path, path_column: str, label_column: str) -> list[tuple[str, str]]:
        read_start(path)
        delimiter = sources.csv_delimiter(path)
        names = sources.csv_header(path, delimiter)
        for column in (path_column, label_column):
            if column not in names:
                raise defect(path, f"a column {shown(column)}", "none by this name", nearest(column, names))
        places = names.index(path_column), names.index(label_column)
        found = []
        for row, record in sources.csv_records(path, delimiter):
            if row and len(record) != len(names):
                expected = f"{len(names)} cells as in the header"
                raise defect(path, expected, f"{len(record)}", "quote cells that contain the separator", row=row)
            if row:
                name, label = (record[place].strip() for place in places)
                if not name or "\0" in name:
                    raise defect(path, "a path", shown(name), "name an image", column=path_column, row=row)
                check_label(path, label_column, row, label)
                found.append((name, label))
        if not found:
            raise defect(path, "at least 1 row", "a header and no rows", "name an image per row")
        return found

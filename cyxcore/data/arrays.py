"""NPZ: arrays by name in a zip. Nothing is unpickled, and no size is believed before it is checked."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cyxcore.data.checks import MAX_BYTES, Path, check_budget, defect, listed, may_blur, nearest, refuse_blurred, shown
from cyxcore.data.formats import read_start
from cyxcore.data.labels import MAX_CLASSES, check_label, encode, plain
from cyxcore.data.npy import Header, damage_told, read_array, read_header
from cyxcore.errors import DataError
from cyxcore.spec import DataSpec, Task

if TYPE_CHECKING:
    from numpy import ndarray

MAX_MEMBERS = 1_000
_MOST_DEFLATED = 1_032  # deflate cannot shrink by more


class Archive:
    """An open NPZ: its arrays by name. Raises DataError for a zip that NumPy would not have written."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path = path
        self._archive = archive
        entries = archive.infolist()
        if len(entries) > MAX_MEMBERS:
            raise defect(path, f"at most {MAX_MEMBERS:,} arrays", f"{len(entries):,}", "keep only x and y")
        self._members: dict[str, zipfile.ZipInfo] = {}
        for entry in entries:
            name = entry.filename.removesuffix(".npy")
            if name in self._members:
                raise defect(path, "each array once", f"{shown(name)} twice", "write the file again")
            self._members[name] = entry

    @property
    def names(self) -> list[str]:
        return list(self._members)

    def header(self, name: str) -> Header:
        """What an array says of itself, once the zip's own sizes have been found possible."""
        member = self._member(name)
        with self._archive.open(member) as stream:
            return read_header(self._path, name, stream, member.file_size)

    def array(self, name: str) -> ndarray:
        """The array itself. Check its header against the memory there is before."""
        member = self._member(name)
        with self._archive.open(member) as stream:
            return read_array(self._path, name, stream, read_header(self._path, name, stream, member.file_size))

    def _member(self, name: str) -> zipfile.ZipInfo:
        member = self._members[name]
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
            remedy = "write it with numpy.savez_compressed"
            raise defect(
                self._path,
                "a stored or deflated array",
                "another compression or encryption",
                remedy,
                array=name,
            )
        compressed_bytes = min(member.compress_size, os.path.getsize(self._path))
        if member.file_size > (compressed_bytes + 1) * _MOST_DEFLATED:
            got = f"{member.file_size:,} bytes promised by {compressed_bytes:,}"
            raise defect(self._path, "a size that deflate can reach", got, "write the file again", array=name)
        return member


def read_arrays(path: Path, spec: DataSpec, task: Task, limit_bytes: int) -> tuple[ndarray, ndarray, list[str] | None]:
    """Inputs (N, …) float32; int64 class indices (N,) or float32 targets (N, K); the class names.

    Targets of more axes are laid flat, as are inputs that are the target themselves.

    Inputs are the array "x", or the one named in data.features. The target is the array data.target, or
    "y" where data.target is left at its default. Whole-number labels are class indices as they stand and
    an array "classes" of text may name them; text labels are sorted. Raises DataError.
    """
    with damage_told(path, "NPZ"), zipfile.ZipFile(path) as opened:
        archive = Archive(path, opened)
        x_name, y_name = _chosen(path, spec, archive.names)
        headers = [archive.header(x_name), archive.header(y_name)]
        _check_shapes(path, x_name, y_name, headers[0].shape, headers[1].shape, task)
        needed_bytes = sum(header.data_bytes + 4 * math.prod(header.shape) for header in headers)
        check_budget(path, needed_bytes, limit_bytes, f"the arrays {x_name!r} and {y_name!r}")
        inputs = _as_float32(path, x_name, archive.array(x_name))
        if spec.target_is_input:
            return inputs, inputs.reshape(len(inputs), -1), None
        target = archive.array(y_name)
        if task == "regression":
            return inputs, _as_float32(path, y_name, target).reshape(len(target), -1), None
        names = _class_names(path, archive, limit_bytes) if "classes" in archive.names else None
    return inputs, *_class_indices(path, y_name, target, names)


def _chosen(path: Path, spec: DataSpec, names: list[str]) -> tuple[str, str]:
    """Which array holds the inputs, and which the target."""
    if spec.features is not None and len(spec.features) != 1:
        got = f"{len(spec.features)} names"
        raise defect(path, "one array in data.features", got, "name the array of inputs, or leave it out")
    x_name = spec.features[0] if spec.features else "x"
    if spec.target_is_input and x_name in names:
        return x_name, x_name
    default = spec.target == DataSpec().target and spec.target not in names
    y_name = "y" if default else spec.target
    for name, option in ((x_name, "data.features"), (y_name, "data.target")):
        if name not in names:
            remedy = f"{nearest(name, names) if names else 'the archive is empty'}; set {option}"
            raise defect(path, f"an array {shown(name)}", "none by this name", remedy)
    if x_name == y_name:
        raise defect(path, "inputs and target in two arrays", f"{shown(x_name)} for both", "set data.target")
    return x_name, y_name


def _check_shapes(
    path: Path, x_name: str, y_name: str, x_shape: tuple[int, ...], y_shape: tuple[int, ...], task: Task
) -> None:
    if len(x_shape) < 2 or 0 in x_shape[1:]:
        remedy = "use x.reshape(-1, 1) for a single number per row"
        raise defect(path, "inputs of shape (N, …)", f"shape {x_shape}", remedy, array=x_name)
    if not y_shape or (len(y_shape) > 2 and task == "classification") or 0 in y_shape[1:]:
        raise defect(path, "a target of shape (N,) or (N, K)", f"shape {y_shape}", "reshape it", array=y_name)
    if x_shape[0] != y_shape[0]:
        got = f"{x_shape[0]:,} rows in {x_name!r} and {y_shape[0]:,} in {y_name!r}"
        raise defect(path, "as many inputs as targets", got, "save arrays of the same length")
    if x_shape[0] < 2:
        raise defect(path, "at least 2 rows", f"{x_shape[0]}", "add data to the file")


def _as_float32(path: Path, name: str, values: ndarray) -> ndarray:
    """The same numbers in float32, C order, all finite."""
    import numpy as np

    if values.dtype.kind == "U":
        raise defect(path, "numbers", "text", "convert it to numbers", array=name)
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(values, np.float32)
    if values.dtype.kind == "f":
        finite = np.isfinite(converted)
        if not finite.all():
            place = np.unravel_index(int(finite.argmin()), finite.shape)
            value, count = values[place], int(finite.size - np.count_nonzero(finite))
            got = f"{value} at {name}[{', '.join(str(int(index)) for index in place)}]"
            got += f" ({count:,} values like this)" if count > 1 else ""
            expected = "finite numbers that fit in 32-bit floats"
            raise defect(path, expected, got, "replace them", array=name, row=int(place[0]) + 1)
    if values.ndim <= 2 and len(values) and values.dtype.itemsize > 2 and values.dtype != np.float32:
        _refuse_blurred(path, name, values.reshape(len(values), -1), converted.reshape(len(values), -1))
    return converted


def _refuse_blurred(path: Path, name: str, values: ndarray, converted: ndarray) -> None:
    """Raises DataError for the first column (N, F) whose differences are lost in float32."""
    import numpy as np

    lows, highs = values.min(0).astype(np.float64), values.max(0).astype(np.float64)
    for place in range(values.shape[1]):
        low, high = float(lows[place]), float(highs[place])
        if may_blur(low, high):
            error = float(np.abs(values[:, place].astype(np.float64) - converted[:, place]).max())
            refuse_blurred(path, low, high, error, array=name)


def _class_names(path: Path, archive: Archive, limit_bytes: int) -> list[str]:
    """The text array "classes": names by index."""
    header = archive.header("classes")
    if len(header.shape) != 1 or header.dtype.kind != "U" or header.shape[0] > MAX_CLASSES:
        got = f"{header.dtype} of shape {header.shape}"
        raise defect(path, "a list of text", got, "save it as numpy.array(['a', 'b'])", array="classes")
    check_budget(path, header.data_bytes * 2, limit_bytes, "the array 'classes'")
    names = [str(name) for name in archive.array("classes").tolist()]
    for row, name in enumerate(names, 1):
        check_label(path, "classes", row, name)
    if len(set(names)) != len(names):
        raise defect(path, "class names that differ", listed(names), "name each class once", array="classes")
    return names


def _class_indices(path: Path, name: str, target: ndarray, names: list[str] | None) -> tuple[ndarray, list[str]]:
    """Class indices (N,) int64 and the names of all classes up to the largest index."""
    import numpy as np

    if target.ndim == 2 and target.shape[1] != 1:
        remedy = "for one-hot rows save y.argmax(axis=1)"
        raise defect(path, "one label per row, shape (N,)", f"shape {target.shape}", remedy, array=name)
    labels = target.reshape(-1)
    if labels.dtype.kind == "U":
        if names is not None:
            remedy = "save whole numbers as labels, or leave out 'classes'"
            raise defect(path, "class indices beside the array 'classes'", "text", remedy, array=name)
        return encode(path, name, labels.tolist(), plain)
    if labels.dtype.kind == "f":
        _refuse(
            path,
            name,
            labels,
            ~(np.isfinite(labels) & (np.floor(labels) == labels)),
            "whole numbers as labels",
            'for numbers to predict set data.task = "regression" and training.loss = "mse"',
        )
    _refuse(path, name, labels, labels < 0, "labels from 0 up", "number the classes from 0")
    limit = MAX_CLASSES if names is None else len(names)
    _refuse(
        path,
        name,
        labels,
        labels >= limit,
        f"labels below {limit:,}",
        "number the classes from 0 without gaps" if names is None else "name every class in 'classes'",
    )
    indices = labels.astype(np.int64)
    if indices.min() == indices.max():
        raise defect(path, "at least 2 classes", f"only {indices[0]}", "add rows of another class", array=name)
    return indices, names or [str(index) for index in range(int(indices.max()) + 1)]


def _refuse(path: Path, name: str, labels: ndarray, wrong: ndarray, expected: str, remedy: str) -> None:
    """Raises DataError for the first label that is wrong."""
    if wrong.any():
        first, count = int(wrong.argmax()), int(wrong.sum())
        got = f"{labels[first]}" + (f" ({count:,} labels like this)" if count > 1 else "")
        raise defect(path, expected, got, remedy, array=name, row=first + 1)


def pack(path_x: Path, path_y: Path, out_path: Path, *, limit_bytes: int = MAX_BYTES) -> None:
    """Writes an NPZ with the arrays "x" and "y" of two NPY files. Raises DataError.

    The same arrays give the same bytes, so packing twice uploads once.
    """
    import numpy as np

    arrays = {}
    for name, path in (("x", path_x), ("y", path_y)):
        start = read_start(path)
        if not start.startswith(b"\x93NUMPY"):
            raise defect(path, "an NPY file", f"a file that starts with {start!r}", "write it with numpy.save")
        with damage_told(path, "NPY"), open(path, "rb") as stream:
            header = read_header(path, name, stream, os.path.getsize(path))
            check_budget(path, 2 * header.data_bytes, limit_bytes, f"the array {name!r}")
            arrays[name] = np.ascontiguousarray(read_array(path, name, stream, header))
    _check_shapes(path_x, "x", "y", arrays["x"].shape, arrays["y"].shape, "regression")
    write_npz(out_path, arrays)


def pack_arrays(x: Any, y: Any, out_path: Path) -> None:
    """Writes an NPZ with the arrays "x" and "y": NumPy's, tensors, lists, or what has columns. Raises DataError.

    The same arrays give the same bytes. y of text is labels.
    """
    write_npz(out_path, {name: _as_plain(name, values) for name, values in (("x", x), ("y", y))})


def _as_plain(name: str, values: Any) -> ndarray:
    """An array that can be written without pickling. Raises DataError."""
    import numpy as np

    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise DataError(f"{name}: expected an array, got a {type(values).__name__}: {str(error)[:200]}") from None
    if array.dtype.kind != "O":
        return array
    strange = next((each for each in array.flat if not isinstance(each, str)), None)
    if strange is None:
        return array.astype(str)
    raise DataError(
        f"{name}: expected an array of numbers, or labels of text, got objects such as {shown(repr(strange))}; make "
        "numbers of all columns, or save the table as CSV and name the file"
    )


def write_npz(out_path: Path, arrays: Mapping[str, ndarray]) -> None:
    """An NPZ at exactly this path, deflated, with fixed dates. A half-written file never has the name."""
    import numpy as np

    partial = f"{os.fspath(out_path)}.partial"
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in arrays.items():
                member = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
                member.compress_type = zipfile.ZIP_DEFLATED
                with archive.open(member, "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, array, allow_pickle=False)
        os.replace(partial, out_path)
    except OSError as error:
        raise defect(out_path, "a writable path", str(error), "choose another output path") from None
    finally:
        if os.path.exists(partial):
            os.remove(partial)

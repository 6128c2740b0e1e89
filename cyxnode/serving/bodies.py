"""Tensors in requests and answers: nested JSON lists, or one NPY array."""

import io
import re
from itertools import chain
from typing import Annotated, Any

import msgspec
import numpy as np

from cyxcore.data import npy
from cyxcore.errors import DataError
from cyxcore.kernels import jsonlists
from cyxnet.codec import BadMessage

Array = np.ndarray[Any, Any]
NOTHING_ELSE = b'{"input":null}'  # what read_first_field() leaves of a body that has only that field
_OPENING = re.compile(rb"[ \t\r\n\[]*")
# Where the value of the first field of an object begins, if that is `input`, and the brackets there.
_INPUT_FIRST = re.compile(rb'[ \t\r\n]*\{[ \t\r\n]*"input"[ \t\r\n]*:[ \t\r\n]*(\[[ \t\r\n\[]*)')


def _nested(kind: Any, depth: int) -> Any:
    for _ in range(depth):
        kind = list[kind]
    return kind


class Lists:
    """Reads nested lists of numbers as arrays of samples of one shape and dtype."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]):
        self._shape, self._dtype = shape, dtype
        self._number = int if dtype.kind in "iu" else bool if dtype.kind == "b" else float
        bounded: Any = self._number
        if dtype.kind == "f":  # then no number of the list becomes infinite; JSON itself has none
            most = float(np.finfo(dtype).max)
            bounded = Annotated[float, msgspec.Meta(ge=-most, le=most)]
        self._decoders = {
            depth: msgspec.json.Decoder(_nested(bounded, depth)) for depth in (len(shape), len(shape) + 1)
        }

    def read(self, text: bytes | msgspec.Raw) -> tuple[Array, bool]:
        """(rows, *shape), and whether it was a list of samples rather than one. Raises BadMessage."""
        raw = bytes(text)
        opening = _OPENING.match(raw)
        depth = opening[0].count(b"[") if opening else 0
        decoder = self._decoders.get(depth)
        several = depth == len(self._shape) + 1
        if decoder is None:
            raise BadMessage(f"input: {self._expected()}, got lists nested {depth} deep")
        found = self._quickly(raw, 0, several)
        if found and found[1] == len(raw):
            return found[0], several
        try:
            held = decoder.decode(raw)
            return self._flat(held if several else [held]), several
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
            raise BadMessage(f"input: {self._expected()}; {str(error)[:300]}") from None

    def read_first_field(self, body: bytes) -> tuple[Array, bool, bytes] | None:
        """Of a JSON object whose first field is `input`: its samples as read() has them, and it with null for them.

        None where it is another object, or where read() would say what is wrong with it.
        """
        match = _INPUT_FIRST.match(body)
        if match is None:
            return None
        begin = match.start(1)
        depth = body.count(b"[", begin, match.end())
        several = depth == len(self._shape) + 1
        if not several and depth != len(self._shape):
            return None
        found = self._quickly(body, begin, several)
        if found is None:
            return None
        rows, end = found
        if (behind := body[end:]) == b"}":
            return rows, several, NOTHING_ELSE
        if b"null" in behind:  # which could be said of `input` once more
            return None
        return rows, several, b'{"input":null' + behind

    def _quickly(self, text: bytes, begin: int, several: bool) -> tuple[Array, int] | None:
        """The samples that begin there, and where they end; None where only the other way can read them."""
        return jsonlists.read(text, begin, self._shape, several) if self._dtype == np.float32 else None

    def _flat(self, samples: list[Any]) -> Array:
        """The numbers of nested lists, whose lengths are compared with the shape: a fraction of NumPy's own time."""
        level: list[Any] = samples
        for size in self._shape:
            if level and set(map(len, level)) != {size}:
                wrong = next(len(each) for each in level if len(each) != size)
                raise BadMessage(f"input: {self._expected()}, got a list of {wrong} where {size} are expected")
            level = list(chain.from_iterable(level))
        return np.fromiter(level, self._dtype, len(level)).reshape(-1, *self._shape)

    def check(self, array: Array) -> tuple[Array, bool]:
        """The same of an array that came as one. Raises BadMessage."""
        several = array.ndim == len(self._shape) + 1
        if not np.can_cast(array.dtype, self._dtype, "same_kind"):
            raise BadMessage(f"input: expected {self._dtype.name} numbers, got {array.dtype.name}")
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(array, self._dtype)
        if self._dtype.kind == "f" and not np.isfinite(array).all():
            raise BadMessage(f"input: expected finite {self._dtype.name} numbers")
        return self._rows(array if several else array[None]), several

    def _rows(self, rows: Array) -> Array:
        if rows.shape[1:] != self._shape:
            raise BadMessage(f"input: {self._expected()}, got {rows.shape[1:]}")
        return rows

    def _expected(self) -> str:
        shape = ", ".join(map(str, self._shape))
        return f"expected one sample of shape ({shape}) or a list of them, of {self._number.__name__}s"


def read_npy(body: bytes) -> Array:
    """The one array of an NPY body. Raises BadMessage."""
    stream, where = io.BytesIO(body), "body"
    try:
        header = npy.read_header(where, "", stream, len(body))
        return npy.read_array(where, "", stream, header)
    except DataError as error:
        raise BadMessage(str(error)) from None


def write_npy(array: Array) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()

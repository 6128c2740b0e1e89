"""Rows as Arrow columns, the form in which DuckDB takes in many rows soonest: it copies them without Python's lock.

The structs and the protocol (a PyCapsule with an ArrowArrayStream) are those of the Arrow C data interface
(arrow.apache.org/docs/format/CDataInterface.html, CStreamInterface.html): whoever was given one says when he is done.
"""

import ctypes
import errno
import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

BIGINT, DOUBLE, VARCHAR = b"l", b"g", b"U"  # formats: 64-bit integers; 64-bit floats; UTF-8 with 64-bit offsets


class _Schema(ctypes.Structure):
    """ArrowSchema."""


class _Array(ctypes.Structure):
    """ArrowArray."""


class _Stream(ctypes.Structure):
    """ArrowArrayStream."""


_Release = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_Fill = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_Say = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
_Schema._fields_ = [
    ("format", ctypes.c_char_p),
    ("name", ctypes.c_char_p),
    ("metadata", ctypes.c_char_p),
    ("flags", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("children", ctypes.c_void_p),
    ("dictionary", ctypes.c_void_p),
    ("release", _Release),
    ("private_data", ctypes.c_void_p),
]
_Array._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.c_void_p),
    ("children", ctypes.c_void_p),
    ("dictionary", ctypes.c_void_p),
    ("release", _Release),
    ("private_data", ctypes.c_void_p),
]
_Stream._fields_ = [
    ("get_schema", _Fill),
    ("get_next", _Fill),
    ("get_last_error", _Say),
    ("release", _Release),
    ("private_data", ctypes.c_void_p),
]
_RELEASED = _Release()
_held: dict[int, Any] = {}  # what was handed over, until it is released
_given: "dict[int, Rows]" = {}  # who may be asked for more
_numbers = itertools.count(1)


def _hold(*things: Any) -> int:
    """The private_data of a struct that needs these."""
    number = next(_numbers)
    _held[number] = things
    return number


def _let_go(kind: type[ctypes.Structure]) -> Any:
    """The release of a struct of this kind. It may come late, so it belongs to nobody."""

    def release(address: int) -> None:
        struct: Any = kind.from_address(address)
        _held.pop(struct.private_data, None)
        struct.release = _RELEASED

    return _Release(release)


_let_schema_go, _let_array_go, _let_stream_go = map(_let_go, (_Schema, _Array, _Stream))
_NAME = b"arrow_array_stream"
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype, _new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class Rows:
    """Rows that DuckDB may read, once, block by block, while one is in the context: a block is made when it asks.

    columns: name and format of each. blocks: each the columns of so many rows: integers for BIGINT, numbers for DOUBLE,
    text or its UTF-8 for VARCHAR, None for a value that is missing. error: what stopped a block from being made, if
    something did.
    """

    def __init__(self, columns: dict[str, bytes], blocks: Iterator[Sequence[Sequence[Any]]]):
        self._columns = columns
        self._blocks = blocks
        self._number = next(_numbers)
        self._streams: list[_Stream] = []  # some are asked for the schema only, and never released
        self.error: Exception | None = None

    def __enter__(self) -> "Rows":
        _given[self._number] = self
        return self

    def __exit__(self, *exception: object) -> None:
        del _given[self._number]

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        stream = _Stream(_tell_schema, _tell_next, _say_nothing, _let_stream_go, self._number)
        self._streams.append(stream)
        return _new_capsule(ctypes.addressof(stream), _NAME, None)

    def _schema(self, out: int) -> int:
        fields = [
            _Schema(format=kind, name=name.encode(), release=_let_schema_go) for name, kind in self._columns.items()
        ]
        children = _pointers(map(ctypes.addressof, fields))
        _give(
            out,
            _Schema(format=b"+s", name=b"", n_children=len(fields), children=ctypes.addressof(children)),
            _let_schema_go,
            (fields, children),
        )
        return 0

    def _next(self, out: int) -> int:
        block = next(self._blocks, None)
        if block is None:
            _Array.from_address(out).release = _RELEASED  # the end
            return 0
        parts = [_parts(kind, values) for kind, values in zip(self._columns.values(), block, strict=True)]
        buffers = [_pointers(map(_address, each)) for each in parts]
        arrays = [
            _Array(
                length=len(block[0]),
                null_count=-1 if each[0] else 0,  # not counted
                n_buffers=len(each),
                buffers=ctypes.addressof(pointers),
                release=_let_array_go,
            )
            for each, pointers in zip(parts, buffers, strict=True)
        ]
        children, none = _pointers(map(ctypes.addressof, arrays)), _pointers([None])
        rows = _Array(
            length=len(block[0]),
            n_buffers=1,
            buffers=ctypes.addressof(none),
            n_children=len(arrays),
            children=ctypes.addressof(children),
        )
        _give(out, rows, _let_array_go, (parts, buffers, arrays, children, none))
        return 0


def _asked(what: Callable[[Rows, int], int]) -> Any:
    """A callback of a stream. It belongs to nobody too: who asks after the end is told that there is none."""

    def ask(stream: int, out: int) -> int:
        struct: Any = _Stream.from_address(stream)
        rows = _given.get(struct.private_data)
        if rows is None:
            return errno.EIO
        try:
            return what(rows, out)
        except Exception as error:  # lost in between, it would look like the end; who handed the rows over asks for it
            rows.error = error
            return errno.EIO

    return _Fill(ask)


_tell_schema, _tell_next, _say_nothing = _asked(Rows._schema), _asked(Rows._next), _Say(lambda stream: None)


def _parts(kind: bytes, values: Sequence[Any]) -> "list[array[Any] | bytes | None]":
    """The buffers of a column. The first says which values are there; it is None when none is missing."""
    there = None
    if None in values:
        there = _bits(values)
        values = [_MISSING[kind] if each is None else each for each in values]
    if kind in _NUMBERS:
        return [there, array(_NUMBERS[kind], values)]
    texts = [each if isinstance(each, bytes) else each.encode() for each in values]
    return [there, array("q", itertools.accumulate(map(len, texts), initial=0)), b"".join(texts)]


_NUMBERS = {BIGINT: "q", DOUBLE: "d"}
_MISSING: dict[bytes, Any] = {BIGINT: 0, DOUBLE: 0.0, VARCHAR: b""}  # what is written where nothing is, and not read


def _bits(values: Sequence[Any]) -> bytes:
    """A bit for each value, from the lowest of the first byte on: 1 where there is one."""
    digits = "".join(["0" if each is None else "1" for each in reversed(values)])
    return int(digits, 2).to_bytes(-(-len(values) // 8), "little")


def _give(out: int, struct: Any, release: Any, needs: object) -> None:
    struct.release, struct.private_data = release, _hold(struct, needs)
    ctypes.memmove(out, ctypes.addressof(struct), ctypes.sizeof(struct))


def _pointers(addresses: Iterable[int | None]) -> "ctypes.Array[ctypes.c_void_p]":
    found = list(addresses)
    return (ctypes.c_void_p * len(found))(*found)


def _address(buffer: "array[Any] | bytes | None") -> int | None:
    if buffer is None:
        return None
    if isinstance(buffer, bytes):
        return ctypes.cast(ctypes.c_char_p(buffer), ctypes.c_void_p).value
    return buffer.buffer_info()[0]

"""Messages of the event log as records; what is none is told apart in the same way by every central."""

from typing import Any, get_args

import msgspec
from msgspec import Struct

from cyxcentral.world import UnknownEvent
from cyxnet import messages as m
from cyxnet.codec import MAX_DEPTH_AROUND, MSGPACK, BadMessage, decode
from cyxnet.scan import BEYOND_63_BITS, NOT_FINITE, strange

LARGEST = 2**63 - 1  # that the ledger can hold
# Events that hold nothing but text, whole numbers, bytes and what was decoded once already: as they are encoded, they
# would be read. (Of another, a tuple would be read as a list.)
READ_AS_ENCODED = frozenset({m.Submitted, m.Funded})


class _Kind(Struct):
    t: str


class _Peek(Struct):
    """What every version of a record has."""

    command_id: str
    event: _Kind


KINDS = frozenset(kind.__name__ for kind in get_args(m.AnyEvent))
_RECORDS = msgspec.msgpack.Decoder(m.Record)
_PEEK = msgspec.msgpack.Decoder(_Peek)


def read(payload: bytes, plain: bool | None = None) -> m.Record | BadMessage:
    """A message of the log as a record, or what is wrong with it. plain: what is_plain says, where that is known."""
    try:
        record = _RECORDS.decode(payload)
        if plain or (plain is None and is_plain(payload)):
            return record
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass  # it is said below
    try:
        record = decode(m.Record, payload, MSGPACK, max_bytes=2**31, max_depth=MAX_DEPTH_AROUND)
        if strange(payload) & BEYOND_63_BITS:
            _refuse_too_large(msgspec.msgpack.decode(payload))
        return record
    except BadMessage as error:
        return _newer(payload) or error


def is_plain(payload: bytes) -> bool:
    """Whether a message needs no second look once it is decoded: it holds nothing that msgspec lets through."""
    return not strange(payload) & (NOT_FINITE | BEYOND_63_BITS)


def is_read_as(record: m.Record, payload: bytes) -> bool:
    """Whether read() would make this record of its own encoding, so that it need not be read."""
    return type(record.event) in READ_AS_ENCODED and is_plain(payload)


def _newer(payload: bytes) -> UnknownEvent | None:
    try:
        kind = _PEEK.decode(payload).event.t
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return None if kind in KINDS else UnknownEvent(f"this version knows no event {kind[:80]!r}")


def _refuse_too_large(value: Any) -> None:
    if isinstance(value, int) and value > LARGEST:
        raise BadMessage(f"expected integers up to {LARGEST}, got {value}")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _refuse_too_large(item)

"""Bytes to Structs and back. One decode() for everything that comes from outside."""

import math
from typing import Any, TypeVar

import msgspec

from cyxcore.errors import CyxError

T = TypeVar("T")
JSON, MSGPACK = "application/json", "application/msgpack"
MAX_MESSAGE_BYTES = 1_000_000

# How a float32 or float64 that is not finite begins in MessagePack: tag, first byte, and the least of the second.
# Elsewhere the same bytes are harmless, so only where they occur is the message walked through, which costs more than
# decoding it. (msgspec refuses such numbers in JSON.)
_FLOAT32, _FLOAT64, _NOT_FINITE = b"\xca", b"\xcb", frozenset(b"\x7f\xff")
_LEAST = {_FLOAT32: 0x80, _FLOAT64: 0xF0}
MOST_LOOKED_AT = 4_000  # each takes a third of a microsecond
_DECODERS: dict[tuple[str, Any], Any] = {}


class BadMessage(CyxError, ValueError):
    """Bytes that are not the message they should be. The message says where and why."""

    code = "bad_message"


def encode(message: Any, content_type: str = MSGPACK) -> bytes:
    return msgspec.json.encode(message) if content_type == JSON else msgspec.msgpack.encode(message)


def decode(kind: type[T], payload: bytes, content_type: str = JSON, max_bytes: int = MAX_MESSAGE_BYTES) -> T:
    """Decode `payload` as `kind`, or raise BadMessage. Never any other exception.

    Caps bytes before parsing, refuses unknown content types and non-finite floats (msgspec reads NaN from
    MessagePack), and catches what msgspec lets through: RecursionError and UnicodeDecodeError.
    """
    if len(payload) > max_bytes:
        raise BadMessage(f"expected at most {max_bytes} bytes, got {len(payload)}")
    if content_type not in (JSON, MSGPACK):
        raise BadMessage(f"expected Content-Type {JSON} or {MSGPACK}, got {content_type[:80]!r}")
    decoder = _DECODERS.get((content_type, kind))
    if decoder is None:
        module = msgspec.json if content_type == JSON else msgspec.msgpack
        decoder = _DECODERS[content_type, kind] = module.Decoder(kind)
    try:
        message = decoder.decode(payload)
        if content_type == MSGPACK and may_hold_non_finite(payload):
            _refuse_non_finite(message, "$")
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadMessage(str(error)[:500]) from None
    except RecursionError:
        raise BadMessage("nested too deep") from None
    return message


def may_hold_non_finite(payload: bytes) -> bool:
    """False where no float of a MessagePack message is infinite or no number.

    True also where more than MOST_LOOKED_AT bytes could begin one: a megabyte of them would hold up everybody.
    """
    for tag, least in _LEAST.items():
        at = -1
        for _ in range(MOST_LOOKED_AT):
            at = payload.find(tag, at + 1)
            if not 0 <= at < len(payload) - 2:
                break
            if payload[at + 1] in _NOT_FINITE and payload[at + 2] >= least:
                return True
        else:
            return True
    return False


def occurs(payload: bytes, first: bytes, seconds: frozenset[int]) -> bool:
    """Whether the byte `first` is followed by one of `seconds` anywhere: faster than a regular expression."""
    at = payload.find(first)
    while 0 <= at < len(payload) - 1:
        if payload[at + 1] in seconds:
            return True
        at = payload.find(first, at + 1)
    return False


def _refuse_non_finite(value: Any, path: str) -> None:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadMessage(f"expected a finite number, got {value} - at `{path}`")
    elif isinstance(value, dict):
        for key, item in value.items():
            _refuse_non_finite(item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _refuse_non_finite(item, f"{path}[{index}]")
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            _refuse_non_finite(getattr(value, name), f"{path}.{name}")

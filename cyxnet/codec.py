"""Bytes to Structs and back. One decode() for everything that comes from outside."""

import math
import re
import typing
from collections.abc import Iterator
from typing import Any, Literal, TypeVar

import msgspec

from cyxcore.errors import CyxError
from cyxnet.scan import NOT_FINITE, TOO_DEEP, json_is_deep, strange

T = TypeVar("T")
JSON, MSGPACK = "application/json", "application/msgpack"
MAX_MESSAGE_BYTES = 1_000_000
# Lists and maps, each in the one before. What Python takes differs by its version and by who calls; all are to agree.
MAX_DEPTH = 100  # of a question; a model as data goes some ten deep
MAX_DEPTH_AROUND = 128  # of what holds a part of a question: an answer, an event

_DECODERS: dict[tuple[str, Any], Any] = {}


class BadMessage(CyxError, ValueError):
    """Bytes that are not the message they should be. The message says where and why."""

    code = "bad_message"


def encode(message: Any, content_type: str = MSGPACK) -> bytes:
    return msgspec.json.encode(message) if content_type == JSON else msgspec.msgpack.encode(message)


def decode(
    kind: type[T],
    payload: bytes,
    content_type: str = JSON,
    max_bytes: int = MAX_MESSAGE_BYTES,
    max_depth: int = MAX_DEPTH,
) -> T:
    """Decode `payload` as `kind`, or raise BadMessage. Never any other exception.

    Caps bytes before parsing, refuses unknown content types, non-finite floats (msgspec reads NaN from MessagePack) and
    what is nested deeper than max_depth, and catches what msgspec lets through: RecursionError and UnicodeDecodeError.
    """
    if len(payload) > max_bytes:
        raise BadMessage(f"expected at most {max_bytes} bytes, got {len(payload)}")
    if content_type not in (JSON, MSGPACK):
        raise BadMessage(f"expected Content-Type {JSON} or {MSGPACK}, got {content_type[:80]!r}")
    decoder = _DECODERS.get((content_type, kind))
    if decoder is None:
        module = msgspec.json if content_type == JSON else msgspec.msgpack
        decoder = _DECODERS[content_type, kind] = module.Decoder(kind)
    found = strange(payload, max_depth) if content_type == MSGPACK else TOO_DEEP * json_is_deep(payload, max_depth)
    if found & TOO_DEEP:
        raise BadMessage(f"nested too deep: expected lists and objects to go at most {max_depth} deep")
    try:
        message = decoder.decode(payload)
        if found & NOT_FINITE:  # walking costs more than decoding
            _refuse_non_finite(message, "$")
    except msgspec.ValidationError as error:
        raise BadMessage(retold(str(error), kind)[:500]) from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadMessage(f"expected {content_type}: {error}"[:500]) from None
    except RecursionError:
        raise BadMessage("nested too deep") from None
    return message


def retold(said: str, kind: Any) -> str:
    """msgspec's sentence, with what would be right where it names only the wrong one of a few words."""
    if not said.startswith("Invalid enum value"):
        return said
    text, _, place = said.rpartition(" - at ")
    kinds = [kind]
    for key in re.findall(r"\.(\w+)", place):
        kinds = [typing.get_type_hints(one).get(key) for each in kinds for one in _parts(each) if isinstance(one, type)]
    expected = choices(tuple(kinds))
    return f"{text}; expected one of {', '.join(expected)} - at {place}" if expected else said


def choices(kind: Any) -> list[str]:
    """The values of a Literal, also of one inside a union or list, or of a tuple of types."""
    return [str(value) for one in _parts(kind) if typing.get_origin(one) is Literal for value in typing.get_args(one)]


def _parts(kind: Any) -> Iterator[Any]:
    """What a type is made of: the parts of unions, lists, annotated types and tuples of types; or itself."""
    inner = kind if isinstance(kind, tuple) else typing.get_args(kind)
    if not inner or typing.get_origin(kind) is Literal:
        yield kind
    else:
        for part in inner:
            yield from _parts(part)


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

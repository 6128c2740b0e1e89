"""What a message holds that msgspec lets through, found without decoding it."""

import math
import struct
from itertools import chain

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cyxnet.scan import BEYOND_63_BITS, NOT_FINITE, TOO_DEEP, json_is_deep, strange

LIKE_NAN, LIKE_LARGE = b"\xcb\x7f\xf8" + bytes(6), b"\xcf" + b"\xff" * 8
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats() | st.floats(width=32)
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=40) | st.binary(max_size=300)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=20) | st.dictionaries(NUMBERS | st.text(), inner, max_size=20)
)


def walked(value):
    """What strange() says of the message of a value."""
    if isinstance(value, float):
        return 0 if math.isfinite(value) else NOT_FINITE
    if isinstance(value, int):
        return BEYOND_63_BITS if value >= 2**63 else 0
    if isinstance(value, msgspec.msgpack.Ext):
        return 0
    found = 0
    inner = chain(value, value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in inner:
        found |= walked(each)
    return found


@settings(deadline=None)
@given(value=VALUES)
def test_a_message_is_found_to_hold_what_a_walk_through_its_value_finds(value):
    assert strange(msgspec.msgpack.encode(value)) == walked(value)


@pytest.mark.parametrize("tag, kind, rest", [(b"\xca", ">f", 2), (b"\xcb", ">d", 6)])
def test_every_number_that_is_not_finite_is_found_and_no_other(tag, kind, rest):
    for head in (number.to_bytes(2, "big") for number in range(65_536)):
        not_finite = not all(math.isfinite(*struct.unpack(kind, head + tail * rest)) for tail in (b"\x00", b"\xff"))
        assert strange(tag + head + bytes(rest)) == (NOT_FINITE if not_finite else 0)


@pytest.mark.parametrize("size", [0, 1, 31, 32, 255, 256, 65_535, 65_536])
def test_what_stands_in_bytes_texts_and_extensions_is_no_number(size):
    filled = (LIKE_NAN * (size // 9 + 1))[:size]
    for value in (filled, msgspec.msgpack.Ext(5, filled), "\x7f" * size):
        payload = msgspec.msgpack.encode([value, 1])
        assert strange(payload) == 0
        assert strange(payload[:-1] + LIKE_NAN) == NOT_FINITE and strange(payload[:-1] + LIKE_LARGE) == BEYOND_63_BITS


@pytest.mark.parametrize("count", [0, 15, 16, 65_535, 65_536])
def test_what_follows_lists_and_maps_of_any_length_is_found(count):
    for value in ([1] * count, dict.fromkeys(range(count))):
        payload = msgspec.msgpack.encode([value, 1])
        assert strange(payload) == 0 and strange(payload[:-1] + LIKE_NAN) == NOT_FINITE


def nested(value):
    """How many lists and maps are in each other; of JSON, where an empty one counts as well, and of MessagePack."""
    if not isinstance(value, list | dict):
        return 0, 0
    inner = [nested(each) for each in (value.values() if isinstance(value, dict) else value)]
    return 1 + max((json for json, _ in inner), default=0), 1 + max((other for _, other in inner), default=-1)


JSON_VALUES = st.recursive(
    st.none() | st.integers(-9, 9) | st.text('[]{}\\"a', max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('[]{}\\"a'), inner, max_size=4),
)


@settings(deadline=None)
@given(value=JSON_VALUES)
def test_what_goes_deeper_than_it_may_is_found_and_nothing_else(value):
    of_json, of_msgpack = nested(value)
    as_json, as_msgpack = msgspec.json.encode(value), msgspec.msgpack.encode(value)
    for deepest in range(8):
        assert json_is_deep(as_json, deepest) == (of_json > deepest)
        assert strange(as_msgpack, deepest) == (TOO_DEEP if of_msgpack > deepest else 0)


def test_numbers_within_what_is_too_deep_are_found_and_what_follows_it():
    payload = b"\x92" * 100_000 + b"\xc0" + LIKE_NAN + b"\xc0" * 99_999
    assert strange(payload) == NOT_FINITE | TOO_DEEP
    assert strange(b"\x91" * 128 + b"\xc0") == 0 and strange(b"\x91" * 129 + b"\xc0") == TOO_DEEP


def test_numbers_of_every_width_are_passed_over_whole():
    for value in (0, 127, 128, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**63 - 1, -1, -32, -33, -129, -(2**63)):
        assert strange(msgspec.msgpack.encode([value, 1.5])) == 0


@settings(deadline=None)
@given(value=VALUES, data=st.data())
def test_a_message_that_ends_too_soon_or_too_late_may_hold_anything(value, data):
    payload = msgspec.msgpack.encode(value)
    assert strange(payload[: data.draw(st.integers(0, len(payload) - 1))]) == NOT_FINITE | BEYOND_63_BITS
    assert strange(payload + b"\x01") == NOT_FINITE | BEYOND_63_BITS


@settings(deadline=None)
@given(payload=st.binary(max_size=80))
def test_bytes_that_can_be_decoded_hold_nothing_that_is_not_found(payload):
    found = strange(payload)
    try:
        value = msgspec.msgpack.decode(payload)
    except Exception:  # it is no message, and whatever was found does not matter
        return
    assert found & walked(value) == walked(value)


def test_lengths_beyond_what_is_there_are_not_believed():
    for claim in (
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x05",
        b"\xdc",
        b"\xd9",
    ):
        assert strange(claim) == strange(claim * 1_000) == NOT_FINITE | BEYOND_63_BITS


@pytest.mark.parametrize("value", [None, bytearray(1), memoryview(b"\0"), "\0"])
def test_what_is_no_bytes_is_not_looked_into(value):
    with pytest.raises(TypeError, match="expected bytes"):
        strange(value)
    with pytest.raises(TypeError, match="expected bytes"):
        json_is_deep(value)

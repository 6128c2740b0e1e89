"""Nested JSON lists read into float32 arrays: the bits of who makes Python floats of them, and nothing but lists."""

import json
import random

import msgspec
import numpy as np
import pytest

from cyxcore.kernels import jsonlists

LARGEST = float(np.finfo(np.float32).max)
DECODER = msgspec.json.Decoder(list[float])


def by_objects(text):
    """The bits of the numbers as float32, by way of a Python float; None where no finite float32 is all there is."""
    try:
        numbers = DECODER.decode(text)
    except msgspec.DecodeError:
        return None
    good = len(numbers) == 1 and abs(numbers[0]) <= LARGEST
    return np.array(numbers, np.float32).tobytes() if good else None


def bits(text):
    found = jsonlists.read(b"[" + text + b"]", 0, (1,), False)
    return found and found[0].tobytes()


WRITTEN = (
    "0 -0 -0.0 -0e0 0e99999999 1 01 1. .5 +1 1e5 1E+5 1e-5 1e 1e+ - -- 1-2 1e400 1e-400 1e-50 4.9e-324 NaN Infinity "
    "123456789012345678901234567890 18446744073709551616 9007199254740993 4611686018427387905 9223372036854775807 "
    "3.4028234663852886e38 3.4028234663852887e38 3.4028235e38 -3.4028235e38 0.1e1 1e22 1e23 123456789012345678e22 "
    "0.000000000000000000000000000000000000000000001 0.70000000000000000000000000000 null true 0x1 1_0 1,2"
).split()


@pytest.mark.parametrize("text", WRITTEN)
def test_a_number_has_the_bits_that_python_gives_it(text):
    assert bits(text.encode()) == by_objects(b"[" + text.encode() + b"]")


def number(dice):
    """Something that is a number mostly, of any length and size."""
    kind = dice.randrange(5)
    if kind == 0:
        return repr(dice.gauss(0, 1) * 10 ** dice.randint(-45, 38))
    if kind == 1:
        return repr(float(np.float32(dice.gauss(0, 1) * 10 ** dice.randint(-6, 6))))
    if kind == 2:
        return f"{dice.choice(['', '-'])}{dice.randint(0, 10 ** dice.randint(0, 25))}.{dice.randint(0, 10**20)}"
    if kind == 3:
        return f"{dice.randint(-(10 ** dice.randint(0, 22)), 10 ** dice.randint(0, 22))}e{dice.randint(-60, 40)}"
    return "".join(dice.choice("0123456789.-+eE ") for _ in range(dice.randint(1, 9)))


def halfway(dice):
    """A little beside the middle of two float32, where a float64 that is one bit off becomes another float32."""
    value = np.float32(dice.uniform(1, 2) * 2.0 ** dice.randint(-20, 20))
    middle = (int(value.view(np.int32)) << 1) + 1
    exact = float(value) + (float(np.int32((middle + 1) >> 1).view(np.float32)) - float(value)) / 2
    return f"{exact:.{dice.randint(14, 18)}e}"


@pytest.mark.parametrize("make", [number, halfway])
def test_numbers_of_every_length_have_these_bits(make):
    dice = random.Random(5)
    for _ in range(40_000):
        text = make(dice).encode()
        assert bits(text) == by_objects(b"[" + text + b"]"), text


@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3), (1, 4, 3)])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_lists_are_read_whole_wherever_there_is_space(shape, rows):
    x = np.random.default_rng(rows).standard_normal((rows, *shape)).astype(np.float32)
    for text in (
        json.dumps(x.tolist()),
        json.dumps(x.tolist(), indent=3),
        json.dumps(x.tolist(), separators=(",", ":")),
    ):
        raw = b'{"a": ' + text.encode() + b" \r\n\t}"
        found, end = jsonlists.read(raw, 6, shape, True)
        assert found.tobytes() == x.tobytes() and found.shape == x.shape and raw[end:] == b"}"
        assert jsonlists.read(text.encode(), 0, shape, False) is None
    one, end = jsonlists.read(json.dumps(x[0].tolist()).encode(), 0, shape, False)
    assert one.tobytes() == x[0].tobytes() and one.shape == (1, *shape)


def test_whatever_is_no_such_list_is_left_to_others():
    whole = b"[[1,2],[3,4]]"
    for end in range(len(whole)):
        assert jsonlists.read(whole[:end], 0, (2,), True) is None
    for text in (
        b"[[1,2],[3]]",
        b"[[1,2],[3,4,5]]",
        b"[[1,2],]",
        b"[[1,2] [3,4]]",
        b"[]",
        b"[[1,2],3]",
        b"[[1\x00,2]]",
        b"",
    ):
        assert jsonlists.read(text, 0, (2,), True) is None
    assert jsonlists.read(whole, len(whole), (2,), True) is None and jsonlists.read(whole, -1, (2,), True) is None
    for shape in ((), (0,), (-1, -2), (2**62, 2**62), (2**61 + 1, 8), (1,) * 40):  # some products are 8 or 2 in 64 bits
        assert jsonlists.read(whole, 0, shape, True) is None and jsonlists.read(whole, 0, shape, False) is None

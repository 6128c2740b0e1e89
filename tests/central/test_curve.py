"""Ed25519 of many at once: what it takes for good the chain's rules take for good, and the same points are points."""

import hashlib
import random

import pytest

from cyxcentral import curve, verifier
from cyxnet.escrow import signed_by, solders

P, ORDER = 2**255 - 19, curve.ORDER
D = -121665 * pow(121666, -1, P) % P
ROOT = pow(2, (P - 1) // 4, P)  # of -1

beside = pytest.mark.skipif(not curve.PRESENT, reason="this processor has no AVX-512 IFMA")


def add(one, other):
    (x, y), (u, v) = one, other
    product = D * x * y * u * v
    return (x * v + y * u) * pow(1 + product, -1, P) % P, (y * v + x * u) * pow(1 - product, -1, P) % P


def times(scalar, point):
    total = (0, 1)
    while scalar:
        if scalar & 1:
            total = add(total, point)
        point, scalar = add(point, point), scalar >> 1
    return total


def point_of(y, odd=0):
    """The point with this y; None where there is none."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT % P
    if (x * x - square) % P:
        return None
    return (x if x % 2 == odd else -x % P), y % P


def encoded(point):
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


BASE = point_of(4 * pow(5, -1, P) % P)


def small_order():
    """The eight points of small order: multiples of one of order 8."""
    y = 2
    while True:
        y += 1
        found = point_of(y)
        if found and times(4 * ORDER, found) != (0, 1):
            eighth = times(ORDER, found)
            return [times(n, eighth) for n in range(8)]


def hashed(r, key, message):
    return int.from_bytes(hashlib.sha512(r + key + message).digest(), "little") % ORDER


def signed(secret, nonce, key, message, r=None):
    """A signature by the book; r: other bytes in place of the nonce's point."""
    r = r or encoded(times(nonce, BASE))
    return r + ((nonce + hashed(r, key, message) * secret) % ORDER).to_bytes(32, "little")


def same(asked):
    """What is found of these, when the chain's rules find the same."""
    found = curve.good(asked)
    assert found == [signed_by(key, signature, message) for key, signature, message in asked]
    return found


def flipped(data, bit):
    return bytes(byte ^ (bit // 8 == at) << bit % 8 for at, byte in enumerate(data))


@beside
def test_good_ones_are_good_and_any_changed_bit_makes_one_bad():
    dice, asked = random.Random(1), []
    for number in range(64):
        keys = solders().Keypair.from_seed(dice.randbytes(32))
        key, message = bytes(keys.pubkey()), dice.randbytes(dice.choice([0, 1, 111, 112, 600]))
        signature = bytes(keys.sign_message(message))
        asked.append((key, signature, message))
        asked.append((key, flipped(signature, 8 * number + number % 8), message))
        asked.append((flipped(key, 4 * number + number % 4), signature, message))
        asked.append((key, signature, message + b"!"))
    assert same(asked) == [True, False, False, False] * 64


@beside
@pytest.mark.parametrize("count", [1, 7, 8, 9, 17])
def test_each_of_any_number_has_its_own_answer(count):
    dice, asked = random.Random(count), []
    for number in range(count):
        keys = solders().Keypair.from_seed(dice.randbytes(32))
        asked.append((bytes(keys.pubkey()), bytes(keys.sign_message(b"%d" % (number % 3))), b"%d" % (number % 2)))
    assert same(asked) == [number % 3 == number % 2 for number in range(count)]


@beside
def test_scalars_of_the_extremes():
    asked = []
    for secret in (1, 2, 8, 2**252, ORDER - 1):
        for nonce in (1, 16, ORDER - 1, 2**252 + 8):
            key = encoded(times(secret, BASE))
            asked.append((key, signed(secret, nonce, key, b"m"), b"m"))
    assert all(same(asked))


@beside
def test_what_strict_rules_refuse_is_not_good():
    """Keys and R of small order, S beyond the order, and encodings that are not the one of a point."""
    asked, secret, nonce, message = [], 1234567, 7654321, b"deposit"
    key = encoded(times(secret, BASE))
    good = signed(secret, nonce, key, message)
    beyond = (int.from_bytes(good[32:], "little") + ORDER).to_bytes(32, "little")
    asked.append((key, good[:32] + beyond, message))
    turned = flipped(encoded(times(nonce, BASE)), 255)  # the same y, the other x
    asked.append((key, signed(secret, nonce, key, message, r=turned), message))
    for point in small_order():
        small = encoded(point)
        asked += [(small, signed(0, nonce, small, b"%d" % n), b"%d" % n) for n in range(8)]  # some fulfil the equation
        asked.append((key, signed(secret, 0, key, message, r=small), message))
    for y in (0, 1, 2, 3, 4, 18):  # beyond p: encodings of y that nobody may use
        for sign in (0, 1):
            other = ((P + y) | sign << 255).to_bytes(32, "little")
            asked += [(other, signed(0, nonce, other, message), message), (key, other + good[32:], message)]
    assert not any(same(asked))


@beside
def test_a_key_with_a_part_of_small_order_is_good_where_that_part_vanishes():
    secret, nonce, part = 99, 101, small_order()[1]
    key = encoded(add(times(secret, BASE), part))
    asked = [(key, signed(secret, nonce, key, b"%d" % n), b"%d" % n) for n in range(48)]
    vanishes = [hashed(signature[:32], key, message) % 8 == 0 for _, signature, message in asked]
    assert same(asked) == vanishes and any(vanishes)


@beside
def test_points_of_the_curve():
    dice = random.Random(2)
    of_note = [0, 1, 2, 3, P - 2, P - 1, P, P + 1, P + 2, 2**255 - 1]
    asked = [(y | sign << 255).to_bytes(32, "little") for y in of_note for sign in (0, 1)]
    asked += [dice.randbytes(32) for _ in range(500)] + [encoded(times(n, BASE)) for n in (1, 2, 3)]
    found = curve.on_curve(asked)
    assert found == [solders().Pubkey.from_bytes(each).is_on_curve() for each in asked]
    assert 200 < sum(found) < 320 and all(found[-3:])


@beside
def test_what_is_no_key_no_signature_and_no_point():
    for key, signature in ((b"", bytes(64)), (bytes(31), bytes(64)), (bytes(32), bytes(65))):
        with pytest.raises(ValueError, match="expected keys of 32 bytes and signatures of 64, got"):
            curve.good([(key, signature, b"")])
    with pytest.raises(ValueError, match="expected 32 bytes, got 33"):
        curve.on_curve([bytes(33)])
    assert curve.good([]) == [] and curve.on_curve([]) == []


def questions():
    dice, made = random.Random(3), []
    for number in range(20):
        keys = solders().Keypair.from_seed(dice.randbytes(32))
        signature = bytes(keys.sign_message(b"message"))
        message = b"message" if number % 4 else b"another"
        made.append((bytes(keys.pubkey()), signature, message, dice.randbytes(32), dice.randbytes(32)))
    return made


@pytest.mark.parametrize("count", [0, 1, 2, 3, 20])
def test_deposits_that_are_looked_at_together(count):
    those = questions()[:count]
    assert verifier.look_at_all(those) == [verifier.look_at(*each) for each in those]


def test_a_processor_without_it_looks_at_one_after_the_other(monkeypatch):
    monkeypatch.setattr(curve, "PRESENT", False)
    assert verifier.look_at_all(questions()) == [verifier.look_at(*each) for each in questions()]
    with pytest.raises(RuntimeError, match="AVX-512 IFMA"):
        curve.good([])
    with pytest.raises(RuntimeError, match="AVX-512 IFMA"):
        curve.on_curve([])


@beside
def test_who_is_refused_there_is_asked_for_again(monkeypatch):
    monkeypatch.setattr(curve, "good", lambda asked: [False] * len(asked))
    assert verifier.look_at_all(questions()) == [verifier.look_at(*each) for each in questions()]

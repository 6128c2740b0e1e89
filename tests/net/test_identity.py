import contextlib
import os

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cyxnet import wallet
from cyxnet.identity import Identity, IdentityError, ed25519_key, load_or_create, verify


def test_a_signature_verifies_with_its_key_and_message_only():
    mine, other = Identity(bytes(32)), Identity(bytes(range(32)))
    signature = mine.sign(b"hello")
    assert verify(mine.public_key, b"hello", signature)
    assert not verify(other.public_key, b"hello", signature)
    assert not verify(mine.public_key, b"hullo", signature)
    assert not verify("zz", b"hello", "not hex")


def test_children_of_a_seed_differ_by_purpose_and_stay_the_same():
    seed = Identity(bytes(32))
    assert seed.child("wallet") != seed.child("sign")
    assert seed.child("wallet") == Identity(bytes(32)).child("wallet")


def test_a_key_file_is_made_once_and_private(tmp_path):
    path = tmp_path / "keys" / "me.key"
    made = load_or_create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_or_create(path).public_key == made.public_key
    assert [each.name for each in path.parent.iterdir()] == ["me.key"]


def test_a_key_that_others_may_read_is_refused_with_the_mend(tmp_path):
    path = tmp_path / "me.key"
    load_or_create(path)
    os.chmod(path, 0o644)
    with pytest.raises(IdentityError, match="chmod 600"):
        load_or_create(path)


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff\xfe", b"0" * 63, b"G" * 64])
def test_a_damaged_key_file_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "me.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(IdentityError, match=str(path)):
        load_or_create(path)
    assert path.read_bytes() == content


def test_a_key_that_cannot_be_kept_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(IdentityError, match="cannot be"):
        load_or_create(tmp_path / "file" / "key")


# -- signatures that prove nothing ------------------------------------------------------------------------------

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
ORDER = 2**252 + 27742317777372353535851937790883648493


def added(one, other):
    (x1, y1), (x2, y2) = one, other
    k = D * x1 * x2 * y1 * y2 % P
    return (x1 * y2 + x2 * y1) * pow(1 + k, -1, P) % P, (y1 * y2 + x1 * x2) * pow(1 - k, -1, P) % P


def times(number, point):
    total = (0, 1)
    while number:
        total = added(total, point) if number & 1 else total
        point, number = added(point, point), number >> 1
    return total


def small_order_points():
    """The eight points of the curve (RFC 8032, 5.1) whose order is 1, 2, 4 or 8."""
    for y in range(3, 1_000):
        square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
        root = pow(square, (P + 3) // 8, P)
        x = root if (root * root - square) % P == 0 else root * pow(2, (P - 1) // 4, P) % P
        if (x * x - square) % P == 0:
            torsion = times(ORDER, (x, y))
            found = {times(number, torsion) for number in range(8)}
            if len(found) == 8:
                return found
    raise AssertionError("there are eight")


# every way to write them: with either sign bit, and with y not reduced where that fits
WEAK = sorted(
    {
        (y | sign << 255).to_bytes(32, "little")
        for _, reduced in small_order_points()
        for y in (reduced, reduced + P)
        if y < 2**255
        for sign in (0, 1)
    }
)


def test_a_signature_without_a_key_can_be_made_for_most_keys_of_small_order():
    """What the next test refuses is real: the library takes these for signatures of any message."""
    taken = 0
    for key in WEAK:
        for commitment in WEAK:
            with contextlib.suppress(InvalidSignature):
                Ed25519PublicKey.from_public_bytes(key).verify(commitment + bytes(32), b"any message at all")
                taken += 1
    assert taken > 0


@pytest.mark.parametrize("key", WEAK, ids=bytes.hex)
def test_a_key_of_small_order_signs_nothing(key):
    for commitment in WEAK:
        signature = commitment + bytes(32)
        assert not verify(key.hex(), b"any message at all", signature.hex())
        assert not wallet.verify(key.hex(), b"any message at all", signature)
        assert not wallet.verify(wallet.base58_encode(key), b"any message at all", signature)
    with pytest.raises(ValueError, match="small order|not reduced"):
        ed25519_key(key)


def test_one_key_is_written_in_one_way():
    with pytest.raises(ValueError, match="not reduced"):
        ed25519_key((P + 3).to_bytes(32, "little"))


def test_a_signature_with_the_order_of_the_curve_added_is_another_one():
    mine = Identity(bytes(range(32)))
    raw = bytes.fromhex(mine.sign(b"hello"))
    more = int.from_bytes(raw[32:], "little") + ORDER
    assert not verify(mine.public_key, b"hello", (raw[:32] + more.to_bytes(32, "little")).hex())

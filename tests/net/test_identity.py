import os

import pytest

from cyxnet.identity import Identity, IdentityError, load_or_create, verify


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

"""Wallets: keys, signatures, and the file that keeps them."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from cyxnet.solana import Wallet, WalletError, sign, verify
from cyxnet.wallet import base58_decode, base58_encode
from tests.net.payments import CENTRAL, NODE


def test_the_wallet_of_a_seed_is_the_one_solders_makes() -> None:
    assert Wallet(bytes(range(32))).address == str(Keypair.from_seed(bytes(range(32))).pubkey())


@given(st.binary(max_size=80))
def test_base_58_decodes_to_what_was_encoded(data: bytes) -> None:
    assert base58_decode(base58_encode(data)) == data


@given(st.binary(min_size=32, max_size=32))
def test_base_58_is_the_one_of_addresses(data: bytes) -> None:
    assert base58_encode(data) == str(Pubkey.from_bytes(data))


@pytest.mark.parametrize("key", [NODE.address, NODE.public_key.hex()])
def test_a_signature_verifies_under_the_key_in_both_spellings(key: str) -> None:
    assert verify(key, b"done", sign(NODE.seed, b"done"))


@pytest.mark.parametrize(
    ("key", "message", "signature"),
    [
        (NODE.address, b"other", NODE.sign(b"done")),
        (CENTRAL.address, b"done", NODE.sign(b"done")),
        (NODE.address, b"done", NODE.sign(b"done")[:63]),
        (NODE.address, b"done", b""),
        ("0OIl", b"done", NODE.sign(b"done")),
        ("", b"done", NODE.sign(b"done")),
        ("zz" * 32, b"done", NODE.sign(b"done")),
    ],
)
def test_anything_else_does_not_verify_and_does_not_raise(key: str, message: bytes, signature: bytes) -> None:
    assert not verify(key, message, signature)


def test_a_wallet_file_is_made_once_and_only_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "wallet.json"
    wallet = Wallet.load_or_create(path)
    assert Wallet.load_or_create(path).address == wallet.address
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(path.parent) == ["wallet.json"]


def test_a_wallet_file_is_one_that_solana_keygen_writes(tmp_path: Path) -> None:
    path = tmp_path / "id.json"
    keypair = Keypair.from_seed(b"k" * 32)
    path.write_text(keypair.to_json())
    path.chmod(0o600)
    assert Wallet.load_or_create(path).address == str(keypair.pubkey())


@pytest.mark.parametrize("text", ["", "{}", "[1, 2]", "[1, 2, 999]", json.dumps([7] * 64), "x" * 100])
def test_a_damaged_wallet_file_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    path = tmp_path / "wallet.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(WalletError, match=r"wallet\.json"):
        Wallet.load_or_create(path)
    assert path.read_text() == text


def test_a_wallet_file_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wallet.json"
    Wallet.load_or_create(path)
    path.chmod(0o644)
    with pytest.raises(WalletError, match="chmod 600"):
        Wallet.load_or_create(path)


def test_a_wallet_never_prints_its_seed() -> None:
    assert repr(NODE) == f"Wallet({NODE.address})"

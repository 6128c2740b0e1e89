"""Payments: wallets, escrow transactions, and the settlement client against a real chain process."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from solders.hash import Hash
from solders.keypair import Keypair
from solders.message import MessageV0
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.system_program import TransferParams, transfer
from solders.token import ID as TOKEN_PROGRAM
from solders.transaction import VersionedTransaction
from spl.token import instructions as spl
from spl.token import models

from cyxcentral.earnings import MAX_PAYEES
from cyxcentral.localchain import Fault, FaultPlan, Server
from cyxcentral.localvm import Chain
from cyxnet import escrow
from cyxnet.escrow import build_faucet, build_mint
from cyxnet.messages import EscrowTerms, Payee, SignedTransaction
from cyxnet.solana import (
    Settlement,
    SettlementError,
    TransactionStatus,
    Wallet,
    WalletError,
    associated_address,
    build_deposit,
    build_settle,
    check_deposit,
    check_terms,
    escrow_address,
    escrow_terms,
    sign,
    split,
    verify,
)
from cyxnet.wallet import base58_decode, base58_encode

CENTRAL = Wallet(b"c" * 32)
PLATFORM = Wallet(b"f" * 32)
NODE = Wallet(b"n" * 32)
STRANGER = Wallet(b"x" * 32)
DEADLINE_S = 2_000_000_000
BLOCKHASH = "9" * 43 + "8"
UNIT = 10**9
SOL = 10**9

# Wallets.


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


def test_importing_the_payment_client_loads_neither_solana_nor_solders() -> None:
    probe = "import sys, cyxnet.solana; print([m for m in ('solders', 'solana', 'httpx2') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


# Amounts and transactions, without a chain.


@pytest.mark.parametrize(
    ("pay", "basis_points", "shares"),
    [
        (12345678901, 1000, (11111111011, 1234567890)),
        (0, 1000, (0, 0)),
        (9, 1000, (9, 0)),
        (10, 1000, (9, 1)),
        (2**63 - 1, 10_000, (0, 2**63 - 1)),
        (77, 0, (77, 0)),
    ],
)
def test_the_platform_share_is_rounded_down(pay: int, basis_points: int, shares: tuple[int, int]) -> None:
    assert split(pay, basis_points) == shares


@given(st.integers(0, 2**63 - 1), st.integers(0, 10_000))
def test_shares_are_natural_and_sum_to_the_pay(pay: int, basis_points: int) -> None:
    node, fee = split(pay, basis_points)
    assert node >= 0 <= fee and node + fee == pay
    assert fee * 10_000 <= pay * basis_points < (fee + 1) * 10_000


def offline_terms(client: Wallet = NODE, **changes: Any) -> EscrowTerms:
    values: dict[str, Any] = {
        "job_id": "job-1",
        "mint": STRANGER.address,
        "authority": CENTRAL.address,
        "client": client.address,
        "platform": PLATFORM.address,
        "amount_base_units": 100 * UNIT,
        "fee_basis_points": 1000,
        "deadline_s": DEADLINE_S,
    }
    return escrow_terms(**(values | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"amount_base_units": 0},
        {"amount_base_units": -1},
        {"amount_base_units": 2**63},
        {"fee_basis_points": 10_001},
        {"fee_basis_points": -1},
        {"job_id": ""},
        {"job_id": "j" * 65},
        {"job_id": "j\n"},
        {"mint": "nonsense"},
        {"platform": ""},
    ],
)
def test_terms_that_cannot_be_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SettlementError) as refused:
        offline_terms(**changes)
    assert refused.value.code in ("bad_terms", "bad_address")


def test_terms_with_another_escrow_address_are_refused() -> None:
    terms = offline_terms()
    forged = EscrowTerms(**{f: getattr(terms, f) for f in terms.__struct_fields__} | {"escrow": NODE.address})
    with pytest.raises(SettlementError, match="expected escrow"):
        build_deposit(NODE, forged, BLOCKHASH, 1)


def test_each_client_and_job_has_its_own_escrow_address() -> None:
    addresses = {escrow_address(who.address, job) for who in (NODE, STRANGER) for job in ("a", "b", "ab")}
    assert len(addresses) == 6


def test_token_instructions_are_encoded_as_the_spl_library_does() -> None:
    a, b, c = (Pubkey.from_bytes(bytes([n]) * 32) for n in range(1, 4))
    token: Any = {"program_id": TOKEN_PROGRAM}
    pairs = [
        (
            escrow.mint_to(a, b, c, 5),
            spl.mint_to_checked(
                models.MintToCheckedParams(**token, mint=a, dest=b, mint_authority=c, amount=5, decimals=9)
            ),
        ),
        (
            escrow.create_associated(a, b, c),
            spl.create_idempotent_associated_token_account(payer=a, owner=b, mint=c),
        ),
    ]
    assert [ours for ours, _ in pairs] == [theirs for _, theirs in pairs]


def test_a_deposit_of_exactly_the_terms_is_recognised() -> None:
    signed = build_deposit(NODE, offline_terms(), BLOCKHASH, 1)
    assert check_deposit(signed.transaction, offline_terms()) == signed.signature


@pytest.mark.parametrize(
    "changes",
    [
        {"amount_base_units": 100 * UNIT - 1},
        {"fee_basis_points": 999},
        {"job_id": "job-2"},
        {"authority": STRANGER.address},
        {"platform": STRANGER.address},
        {"mint": PLATFORM.address},
        {"client": STRANGER},
    ],
)
def test_a_deposit_for_other_terms_is_refused(changes: dict[str, Any]) -> None:
    wallet = changes.get("client", NODE)
    other = offline_terms(**changes)
    with pytest.raises(SettlementError) as refused:
        check_deposit(build_deposit(wallet, other, BLOCKHASH, 1).transaction, offline_terms())
    assert refused.value.code == "bad_transaction"


def test_no_changed_byte_of_a_deposit_is_accepted() -> None:
    good = build_deposit(NODE, offline_terms(), BLOCKHASH, 1).transaction
    for at in range(len(good)):
        changed = bytearray(good)
        changed[at] ^= 0x41
        with pytest.raises(SettlementError) as refused:
            check_deposit(bytes(changed), offline_terms())
        assert refused.value.code == "bad_transaction"


@pytest.mark.parametrize(
    "changes",
    [{}, {"platform": NODE.address}, {"authority": NODE.address}, {"platform": CENTRAL.address}, {"job_id": "j" * 64}],
)
def test_a_deposit_is_a_message_that_solana_reads_whoever_plays_two_parts(changes: dict[str, Any]) -> None:
    terms = offline_terms(**changes)
    transaction = VersionedTransaction.from_bytes(build_deposit(NODE, terms, BLOCKHASH, 1).transaction)
    transaction.sanitize()
    assert transaction.verify_with_results() == [True]
    message = transaction.message
    keys = [str(key) for key in message.account_keys]
    assert len(set(keys)) == len(keys)
    opening = message.instructions[0]
    assert keys[opening.program_id_index] == terms.program
    mine = associated_address(NODE.address, terms.mint)
    named = [keys[at] for at in opening.accounts]
    assert named[:3] == [NODE.address, NODE.address, terms.escrow]
    assert named[4:9] == [mine, terms.mint, terms.authority, terms.authority, terms.platform]
    writable = [message.is_maybe_writable(at) for at in opening.accounts]
    assert writable[:5] == [True] * 5 and not writable[5] and not any(writable[9:])


@pytest.mark.parametrize(
    ("days", "accepted"), [(7, True), (30, True), (365, True), (6.9, False), (366, False), (-1, False)]
)
def test_a_client_may_choose_a_deadline_between_a_week_and_a_year(days: float, accepted: bool) -> None:
    now_s, proposed = 1_800_000_000, offline_terms()
    signed = offline_terms(deadline_s=now_s + round(days * 86_400))
    deposit = build_deposit(NODE, signed, BLOCKHASH, 1).transaction
    if accepted:
        assert escrow.with_signed_deadline(proposed, deposit, now_s) == signed
        return
    with pytest.raises(SettlementError, match=f"got {signed.deadline_s}; ask again") as refused:
        escrow.with_signed_deadline(proposed, deposit, now_s)
    assert refused.value.code == "clocks_differ"
    other = replace(proposed, amount_base_units=proposed.amount_base_units + 1)
    assert escrow.with_signed_deadline(other, deposit, now_s) == other  # what is wrong with that is said later


@pytest.mark.parametrize("raw", [b"", bytes(70), b"\xff" * 1232])
def test_bytes_that_are_no_deposit_name_no_deadline(raw: bytes) -> None:
    assert escrow.with_signed_deadline(offline_terms(), raw, 1_800_000_000) == offline_terms()


def test_terms_of_a_version_without_a_program_are_refused() -> None:
    with pytest.raises(SettlementError, match="expected an escrow program, got none"):
        check_terms(replace(offline_terms(), program=""))


@pytest.mark.parametrize("raw", [b"", b"\x00", b"x" * 700, bytes(1232), b"x" * 5_000])
def test_bytes_that_are_no_transaction_are_refused(raw: bytes) -> None:
    with pytest.raises(SettlementError) as refused:
        check_deposit(raw, offline_terms())
    assert refused.value.code == "bad_transaction"


def test_a_deposit_with_bytes_after_its_end_is_refused() -> None:
    good = build_deposit(NODE, offline_terms(), BLOCKHASH, 1).transaction
    with pytest.raises(SettlementError):
        check_deposit(good + b"x", offline_terms())


def test_a_deposit_with_one_more_instruction_is_refused() -> None:
    message = VersionedTransaction.from_bytes(build_deposit(NODE, offline_terms(), BLOCKHASH, 1).transaction).message
    assert isinstance(message, MessageV0)
    longer = MessageV0(
        message.header,
        message.account_keys,
        message.recent_blockhash,
        [*message.instructions, message.instructions[-1]],
        [],
    )
    with pytest.raises(SettlementError, match="another message"):
        check_deposit(bytes(VersionedTransaction(longer, [Keypair.from_seed(NODE.seed)])), offline_terms())


def test_only_the_client_named_in_the_terms_can_build_the_deposit() -> None:
    with pytest.raises(SettlementError, match="expected the wallet"):
        build_deposit(STRANGER, offline_terms(), BLOCKHASH, 1)


@pytest.mark.parametrize("pay", [-1, 100 * UNIT + 1])
def test_a_pay_outside_the_amount_is_refused(pay: int) -> None:
    with pytest.raises(SettlementError, match="expected payments of 1 to"):
        settle_offline(payees=paid(NODE, pay))


def test_an_escrow_that_holds_too_little_is_not_settled() -> None:
    with pytest.raises(SettlementError) as refused:
        settle_offline(balance_base_units=100 * UNIT - 1)
    assert refused.value.code == "escrow_mismatch"


def test_a_settlement_with_every_recipient_missing_fits_a_packet() -> None:
    terms = offline_terms(STRANGER, job_id="j" * 64)
    assert len(settle_offline(terms=terms, payees=paid(NODE, UNIT)).transaction) <= 1232


def test_a_settlement_with_as_many_nodes_as_a_job_can_pay_fits_a_packet() -> None:
    payees = [Payee(wallet=Wallet.create().address, pay_base_units=UNIT) for _ in range(MAX_PAYEES)]
    assert len(settle_offline(terms=offline_terms(STRANGER, job_id="j" * 64), payees=payees).transaction) <= 1232


def test_a_wallet_is_paid_once_in_a_settlement() -> None:
    with pytest.raises(SettlementError, match="each wallet once"):
        settle_offline(payees=[*paid(NODE, UNIT), *paid(NODE, UNIT)])


def paid(node: Wallet, pay_base_units: int) -> list[Payee]:
    return [Payee(wallet=node.address, pay_base_units=pay_base_units)] if pay_base_units else []


def settle_offline(**changes: Any) -> SignedTransaction:
    values: dict[str, Any] = {
        "terms": offline_terms(),
        "payees": paid(NODE, 100 * UNIT),
        "balance_base_units": 100 * UNIT,
        "blockhash": BLOCKHASH,
        "last_valid_block_height": 1,
    }
    return build_settle(CENTRAL, **(values | changes))


# A whole chain.


@pytest.fixture(scope="module")
def chain_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("chain")
    command = [sys.executable, "-m", "cyxcentral.localchain", "--dir", str(folder), "--slot-ms", "4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
        process.terminate()


@pytest.mark.parametrize(
    ("variables", "url", "through_it"),
    [
        ({}, "https://api.devnet.solana.com", False),
        ({"https_proxy": "http://10.0.0.1:3128"}, "https://api.devnet.solana.com", True),
        ({"all_proxy": "http://10.0.0.1:3128"}, "https://api.devnet.solana.com", True),
        ({"http_proxy": "http://10.0.0.1:3128"}, "https://api.devnet.solana.com", False),
        ({"https_proxy": "http://10.0.0.1:3128", "no_proxy": "solana.com"}, "https://api.devnet.solana.com", False),
        ({"https_proxy": "http://10.0.0.1:3128"}, "https://localhost:8899", False),
    ],
)
async def test_a_chain_behind_a_proxy_is_asked_through_it_by_the_package(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], url: str, through_it: bool
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    async with Settlement(url) as settlement:
        [client] = settlement._clients
        assert hasattr(client._provider, "session") is through_it  # the package's own


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
async def test_a_chain_on_this_machine_is_reached_whatever_proxy_the_environment_names(
    chain_url: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    for usual in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(usual, raising=False)
    async with Settlement(chain_url, attempts=1) as settlement:
        assert await settlement.is_local()


class World:
    """A chain with the token, a rich client and helpers that read balances."""

    def __init__(self, settlement: Settlement, mint: str, client: Wallet) -> None:
        self.settlement, self.mint, self.client = settlement, mint, client
        self.node, self.platform = Wallet.create(), Wallet.create()
        self.jobs = 0

    def terms(self, amount_base_units: int = 100 * UNIT, fee_basis_points: int = 1000) -> EscrowTerms:
        self.jobs += 1
        return escrow_terms(
            job_id=f"job-{self.jobs}",
            mint=self.mint,
            authority=CENTRAL.address,
            client=self.client.address,
            platform=self.platform.address,
            amount_base_units=amount_base_units,
            fee_basis_points=fee_basis_points,
            deadline_s=int(time.time()) + escrow.DEADLINE_S,
        )

    async def deposited(self, terms: EscrowTerms) -> EscrowTerms:
        signed = await self.settlement.deposit_transaction(self.client, terms)
        assert (await self.settlement.finish(signed, finalized=False)).err is None
        return terms

    async def settled(self, terms: EscrowTerms, pay_base_units: int) -> SignedTransaction:
        signed = await self.settlement.settle_transaction(CENTRAL, terms, paid(self.node, pay_base_units))
        assert (await self.settlement.finish(signed, finalized=False)).err is None
        return signed

    async def balances(self) -> list[int]:
        """Base units of client, node, platform."""
        owners = (self.client, self.node, self.platform)
        return [await self.settlement.token_balance(each.address, self.mint) for each in owners]


@pytest.fixture
async def world(chain_url: str) -> AsyncIterator[World]:
    async with Settlement(chain_url) as settlement:
        client = Wallet.create()
        if await settlement.sol_balance(CENTRAL.address) < SOL:
            await settlement.airdrop(CENTRAL.address, 100 * SOL)
        await settlement.airdrop(client.address, SOL)
        mint = await settlement.create_mint(CENTRAL)
        await settlement.faucet(CENTRAL, mint, client.address, 1_000 * UNIT)
        yield World(settlement, mint, client)


async def test_a_whole_pay_is_split_to_the_last_unit(world: World) -> None:
    terms = await world.deposited(world.terms(12345678901))
    await world.settled(terms, 12345678901)
    assert await world.balances() == [1_000 * UNIT - 12345678901, 11111111011, 1234567890]


async def test_a_part_pay_returns_the_rest_to_the_client(world: World) -> None:
    terms = await world.deposited(world.terms(100 * UNIT))
    await world.settled(terms, 30 * UNIT)
    assert await world.balances() == [970 * UNIT, 27 * UNIT, 3 * UNIT]


async def test_a_refund_returns_everything_and_needs_no_node(world: World) -> None:
    terms = await world.deposited(world.terms())
    signed = await world.settlement.settle_transaction(CENTRAL, terms, [])
    assert (await world.settlement.finish(signed)).err is None
    assert await world.balances() == [1_000 * UNIT, 0, 0]


async def test_the_client_gets_its_rent_back_and_pays_only_its_fee(world: World) -> None:
    before = await world.settlement.sol_balance(world.client.address)
    await world.settled(await world.deposited(world.terms()), 0)
    assert await world.settlement.sol_balance(world.client.address) == before - 5_000


async def test_no_unit_is_made_or_lost_over_many_settlements(world: World) -> None:
    pays = [0, 1, 9, 10, 11, 12345, 99_999]
    before = await world.settlement.token_supply(world.mint)
    for pay in pays:
        await world.settled(await world.deposited(world.terms(99_999, 777)), pay)
    shares = [split(pay, 777) for pay in pays]
    node, platform = sum(share[0] for share in shares), sum(share[1] for share in shares)
    assert await world.balances() == [1_000 * UNIT - node - platform, node, platform]
    assert await world.settlement.token_supply(world.mint) == before


async def test_a_funded_escrow_verifies_against_its_terms(world: World) -> None:
    terms = world.terms()
    signed = await world.settlement.deposit_transaction(world.client, terms)
    assert (await world.settlement.finish(signed)).finalized
    state = await world.settlement.verify_escrow(terms)
    assert (state.address, state.balance_base_units) == (terms.escrow, 100 * UNIT)


async def test_an_escrow_without_a_deposit_is_missing(world: World) -> None:
    with pytest.raises(SettlementError) as refused:
        await world.settlement.verify_escrow(world.terms())
    assert refused.value.code == "escrow_missing"


async def test_deposits_that_left_the_wallet_are_known_by_their_jobs(world: World) -> None:
    terms, missing = await world.deposited(world.terms()), world.terms()
    assert await world.settlement.opened([missing, terms]) == {terms.job_id}
    assert await world.settlement.opened([]) == set()


async def test_a_second_deposit_for_a_job_is_not_even_signed(world: World) -> None:
    terms = await world.deposited(world.terms())
    with pytest.raises(SettlementError) as refused:
        await world.settlement.deposit_transaction(world.client, terms)
    assert refused.value.code == "escrow_exists"


async def test_a_second_deposit_signed_all_the_same_is_refused_by_the_chain(world: World) -> None:
    terms = world.terms()
    first = await world.settlement.deposit_transaction(world.client, terms)
    await world.settlement.finish(first, finalized=False)
    blockhash = first_other_blockhash = (await world.settlement.latest_blockhash())[0]
    while blockhash == first_other_blockhash:
        blockhash, last_valid = await world.settlement.latest_blockhash()
    with pytest.raises(SettlementError) as refused:
        await world.settlement.send(build_deposit(world.client, terms, blockhash, last_valid).transaction)
    assert refused.value.code == "escrow_exists"
    assert (await world.balances())[0] == 900 * UNIT


async def test_a_settled_job_cannot_be_settled_again(world: World) -> None:
    terms = await world.deposited(world.terms())
    first = await world.settlement.settle_transaction(CENTRAL, terms, paid(world.node, 100 * UNIT))
    second = await world.settlement.settle_transaction(CENTRAL, terms, paid(world.node, 50 * UNIT))
    await world.settlement.finish(first, finalized=False)
    await world.settlement.send(second.transaction, preflight=False)
    status = await world.settlement.status(second.signature, second.last_valid_block_height)
    assert status.err is not None
    with pytest.raises(SettlementError) as refused:
        await world.settlement.settle_transaction(CENTRAL, terms, paid(world.node, 100 * UNIT))
    assert refused.value.code == "escrow_missing"
    assert await world.balances() == [900 * UNIT, 90 * UNIT, 10 * UNIT]


async def test_the_same_bytes_sent_five_times_pay_once(world: World) -> None:
    terms = await world.deposited(world.terms())
    signed = await world.settlement.settle_transaction(CENTRAL, terms, paid(world.node, 100 * UNIT))
    signatures = {await world.settlement.send(signed.transaction) for _ in range(5)}
    assert signatures == {signed.signature}
    assert await world.balances() == [900 * UNIT, 90 * UNIT, 10 * UNIT]


async def test_lamports_sent_ahead_to_the_escrow_address_stop_nothing(world: World) -> None:
    terms = world.terms()
    await world.settlement.airdrop(terms.escrow, 890_880)
    before = await world.settlement.sol_balance(world.client.address)
    await world.settled(await world.deposited(terms), 100 * UNIT)
    assert await world.balances() == [900 * UNIT, 90 * UNIT, 10 * UNIT]
    assert await world.settlement.sol_balance(world.client.address) == before - 5_000 + 890_880


async def test_lamports_sent_ahead_to_the_mint_address_stop_nothing(world: World) -> None:
    authority = Wallet.create()
    await world.settlement.airdrop(authority.address, SOL)
    await world.settlement.airdrop(escrow.mint_address(authority.address), 1_000_000)
    mint = await world.settlement.create_mint(authority)
    assert await world.settlement.token_supply(mint) == 0


def signed_by(wallet: Wallet, instruction: Any, blockhash: str) -> bytes:
    payer = Pubkey.from_string(wallet.address)
    message = MessageV0.try_compile(payer, [instruction], [], Hash.from_string(blockhash))
    return bytes(VersionedTransaction(message, [Keypair.from_seed(wallet.seed)]))


async def dust(world: World, terms: EscrowTerms) -> None:
    """One base unit from somebody to the vault."""
    owner = Pubkey.from_string(CENTRAL.address)
    _, vault, _ = escrow.escrow_account(terms.client, terms.job_id, terms.program)
    instruction = escrow.mint_to(Pubkey.from_string(world.mint), vault, owner, 1)
    blockhash, _ = await world.settlement.latest_blockhash()
    await world.settlement.send(signed_by(CENTRAL, instruction, blockhash))


async def test_dust_in_the_vault_goes_to_the_client(world: World) -> None:
    terms = await world.deposited(world.terms())
    await dust(world, terms)
    await world.settled(terms, 100 * UNIT)
    assert await world.balances() == [900 * UNIT + 1, 90 * UNIT, 10 * UNIT]


async def test_dust_after_signing_stops_nothing(world: World) -> None:
    terms = await world.deposited(world.terms())
    early = await world.settlement.settle_transaction(CENTRAL, terms, paid(world.node, 100 * UNIT))
    await dust(world, terms)
    assert (await world.settlement.finish(early, finalized=False)).err is None
    assert await world.balances() == [900 * UNIT + 1, 90 * UNIT, 10 * UNIT]


async def test_a_client_that_gave_its_token_account_away_cannot_block_the_nodes_pay(world: World) -> None:
    terms = await world.deposited(world.terms())
    account = Pubkey.from_string(associated_address(world.client.address, world.mint))
    instruction = spl.set_authority(
        models.SetAuthorityParams(
            program_id=TOKEN_PROGRAM,
            account=account,
            authority=models.AuthorityType.ACCOUNT_OWNER,
            current_authority=Pubkey.from_string(world.client.address),
            new_authority=Pubkey.from_string(STRANGER.address),
        )
    )
    blockhash, _ = await world.settlement.latest_blockhash()
    await world.settlement.send(signed_by(world.client, instruction, blockhash))
    await world.settled(terms, 50 * UNIT)
    assert await world.balances() == [950 * UNIT, 45 * UNIT, 5 * UNIT]


@pytest.mark.parametrize(
    "changes",
    [{"fee_basis_points": 0}, {"authority": STRANGER.address}, {"amount_base_units": UNIT}, {"deadline_s": 1}],
)
async def test_an_escrow_the_client_opened_on_other_terms_is_a_mismatch(world: World, changes: dict[str, Any]) -> None:
    terms = world.terms()
    other = replace(terms, **changes)
    if "deadline_s" in changes:
        other = replace(terms, deadline_s=terms.deadline_s + 1)
    await world.settlement.finish(await world.settlement.deposit_transaction(world.client, other))
    with pytest.raises(SettlementError, match="expected what the terms say") as refused:
        await world.settlement.verify_escrow(terms)
    assert refused.value.code == "escrow_mismatch"


async def test_after_the_deadline_a_stranger_gives_the_client_its_money_back(
    lab: "Lab", settlement: Settlement
) -> None:
    """Central is gone for ever; nobody but the chain is needed."""
    client = Wallet.create()
    for wallet in (CENTRAL, client, STRANGER):
        lab.chain.airdrop(Pubkey.from_string(wallet.address), SOL)
    lab.land(build_mint(CENTRAL, lab.blockhash(), 1).transaction)
    mint = escrow.mint_address(CENTRAL.address)
    lab.land(build_faucet(CENTRAL, mint, client.address, UNIT, lab.blockhash(), 1).transaction)
    now_s = lab.clock.now_ms // 1000
    terms = offline_terms(client, mint=mint, amount_base_units=UNIT, deadline_s=now_s + 10)
    lab.land(build_deposit(client, terms, lab.blockhash(), 1).transaction)
    state, vault, _ = escrow.escrow_account(client.address, terms.job_id, terms.program)
    tokens = [Pubkey.from_string(associated_address(each, mint)) for each in (terms.platform, client.address)]
    keys = map(Pubkey.from_string, (STRANGER.address, mint, client.address, terms.program))
    who, token, payer, program = keys
    accounts = [(who, ""), (state, "w"), (vault, "w"), (token, ""), *((each, "w") for each in tokens)]
    refund = escrow.instruction(program, b"\x04", [*accounts, (payer, "w"), (TOKEN_PROGRAM, "")])
    with pytest.raises(SettlementError, match="1013"):
        await settlement.send(signed_by(STRANGER, refund, lab.blockhash()))
    lab.clock.now_ms += 10_000
    await settlement.send(signed_by(STRANGER, refund, lab.blockhash()))
    assert await settlement.token_balance(client.address, mint) == UNIT


async def test_a_refund_that_another_program_sent_is_found_and_one_that_failed_is_not(
    settlement: Settlement, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a public chain answers: the call inside another program's, its accounts from a lookup table."""
    from solders.rpc.responses import GetSignaturesForAddressResp, GetTransactionResp

    terms, (deposit, failed, sent) = offline_terms(), (base58_encode(bytes([n]) * 64) for n in (1, 2, 3))
    message = MessageV0.try_compile(Pubkey.from_string(STRANGER.address), [], [], Hash.default())
    raw = base58_encode(bytes(VersionedTransaction.populate(message, [Signature.default()])))
    inner = {"programIdIndex": 2, "accounts": [0, 1], "data": base58_encode(b"\x04"), "stackHeight": 2}
    empty: dict[str, Any] = {"fee": 5000, "preBalances": [], "postBalances": []}

    def landed(error: Any) -> Any:
        meta = empty | {"err": error, "status": {"Ok": None} if error is None else {"Err": error}}
        meta["innerInstructions"] = [{"index": 0, "instructions": [inner]}]
        meta["loadedAddresses"] = {"writable": [terms.escrow], "readonly": [terms.program]}
        found = {"slot": 9, "blockTime": 9, "transaction": [raw, "base58"], "meta": meta, "version": 0}
        return GetTransactionResp.from_json(json.dumps({"jsonrpc": "2.0", "id": 0, "result": found}))

    entries = [
        {"signature": each, "slot": 9, "err": None, "memo": None, "blockTime": 9, "confirmationStatus": "finalized"}
        for each in (sent, failed, deposit)
    ]
    history = GetSignaturesForAddressResp.from_json(json.dumps({"jsonrpc": "2.0", "id": 0, "result": entries}))
    answers = {failed: landed({"InstructionError": [0, {"Custom": 1013}]}), sent: landed(None)}

    async def ask(method: str, *arguments: Any, **_: Any) -> Any:
        return history if method == "get_signatures_for_address" else answers[str(arguments[0])]

    async def landings(signatures: list[str]) -> list[TransactionStatus]:
        return [TransactionStatus(state="landed", finalized=True)] * len(signatures)

    monkeypatch.setattr(settlement, "_ask", ask)
    monkeypatch.setattr(settlement, "landings", landings)
    assert await settlement.refund_of(terms, deposit) == sent
    answers[sent] = answers[failed]
    assert await settlement.refund_of(terms, deposit) is None


async def test_the_program_of_a_local_chain_is_ours_and_final(world: World) -> None:
    await world.settlement.verify_program(escrow.LOCAL_PROGRAM)


@pytest.mark.parametrize("program", [str(TOKEN_PROGRAM), STRANGER.address])
async def test_another_program_is_not_taken_for_ours(world: World, program: str) -> None:
    with pytest.raises(SettlementError, match="expected the escrow program") as refused:
        await world.settlement.verify_program(program)
    assert refused.value.code == "bad_program"


async def test_too_few_tokens_are_told_before_anything_is_signed(world: World) -> None:
    with pytest.raises(SettlementError, match="expected 1000000000001 base units") as refused:
        await world.settlement.deposit_transaction(world.client, world.terms(1_000 * UNIT + 1))
    assert refused.value.code == "insufficient_funds"


async def test_too_little_sol_is_told_before_anything_is_signed(world: World) -> None:
    world.client = Wallet.create()
    await world.settlement.faucet(CENTRAL, world.mint, world.client.address, UNIT)
    with pytest.raises(SettlementError, match="lamports") as refused:
        await world.settlement.deposit_transaction(world.client, world.terms(UNIT))
    assert refused.value.code == "insufficient_funds"


async def test_the_chain_calls_an_uncovered_deposit_insufficient_funds(world: World) -> None:
    signed = build_deposit(world.client, world.terms(2_000 * UNIT), *await world.settlement.latest_blockhash())
    with pytest.raises(SettlementError) as refused:
        await world.settlement.send(signed.transaction)
    assert refused.value.code == "insufficient_funds"


async def test_an_accepted_deposit_lives_no_shorter_than_its_blockhash(world: World) -> None:
    terms = world.terms()
    signed = await world.settlement.deposit_transaction(world.client, terms)
    accepted = await world.settlement.accept_deposit(signed.transaction, terms)
    assert accepted.signature == signed.signature
    assert accepted.last_valid_block_height >= signed.last_valid_block_height


async def test_a_deposit_on_an_unknown_blockhash_is_expired(world: World) -> None:
    terms = world.terms()
    with pytest.raises(SettlementError) as refused:
        await world.settlement.accept_deposit(build_deposit(world.client, terms, BLOCKHASH, 1).transaction, terms)
    assert refused.value.code == "expired"


async def test_the_mint_is_made_once_at_a_known_address(world: World) -> None:
    assert world.mint == escrow.mint_address(CENTRAL.address)
    assert await world.settlement.create_mint(CENTRAL) == world.mint


async def test_two_processes_may_make_the_mint_at_the_same_time(world: World, chain_url: str) -> None:
    authority = Wallet.create()
    await world.settlement.airdrop(authority.address, SOL)
    async with Settlement(chain_url) as other:
        mints = await asyncio.gather(world.settlement.create_mint(authority), other.create_mint(authority))
    assert set(mints) == {escrow.mint_address(authority.address)}


async def test_the_history_of_an_escrow_names_both_transactions_and_their_job(world: World) -> None:
    terms = await world.deposited(world.terms())
    signed = await world.settled(terms, 40 * UNIT)
    settle, deposit = await world.settlement.escrow_history(terms)
    assert settle.signature == signed.signature
    assert settle.memo is not None and f"settle job={terms.job_id} pay={40 * UNIT}" in settle.memo
    assert deposit.memo is not None and f"deposit job={terms.job_id}" in deposit.memo


async def test_an_account_that_does_not_exist_holds_nothing(world: World) -> None:
    nobody = Wallet.create().address
    assert await world.settlement.token_balance(nobody, world.mint) == 0
    assert await world.settlement.sol_balance(nobody) == 0


async def test_the_unmodified_rpc_client_reads_every_answer_of_the_chain(world: World) -> None:
    from solana.rpc.async_api import AsyncClient
    from solana.rpc.models import TokenAccountOpts
    from solders.signature import Signature

    terms = await world.deposited(world.terms())
    signed = await world.settled(terms, 40 * UNIT)
    client, mint = Pubkey.from_string(world.client.address), Pubkey.from_string(world.mint)
    async with AsyncClient(world.settlement.url, http2=False) as rpc:
        found = await rpc.get_transaction(
            Signature.from_string(signed.signature), "base64", max_supported_transaction_version=0
        )
        assert found.value is not None and found.value.transaction.meta is not None
        assert found.value.transaction.meta.fee == 5_000
        accounts = await rpc.get_token_accounts_by_owner(client, TokenAccountOpts(mint=mint))
        assert [str(each.pubkey) for each in accounts.value] == [associated_address(str(client), str(mint))]
        balance = await rpc.get_token_account_balance(accounts.value[0].pubkey)
        assert balance.value.ui_amount_string == "960"
        assert (await rpc.get_minimum_balance_for_rent_exemption(165)).value == 2_039_280
        assert "cyx-local" in (await rpc.get_version()).value.solana_core
        assert (await rpc.get_slot()).value > 0
        message = MessageV0.try_compile(
            client,
            [transfer(TransferParams(from_pubkey=client, to_pubkey=client, lamports=1))],
            [],
            (await rpc.get_latest_blockhash()).value.blockhash,
        )
        assert (await rpc.get_fee_for_message(message)).value == 5_000
        raw = VersionedTransaction(message, [Keypair.from_seed(world.client.seed)])
        simulated = await rpc.simulate_transaction(raw, sig_verify=True)
        assert simulated.value.err is None and simulated.value.units_consumed == 150


# What goes wrong on the way: an in-process chain with a hand-moved clock and planned faults.


class HandClock:
    def __init__(self) -> None:
        self.now_ms = 1_700_000_000_000

    def wall_ms(self) -> int:
        return self.now_ms

    def elapsed_ms(self) -> int:
        return self.now_ms


class Lab:
    """A chain under control: `faults` decides what goes wrong with each request."""

    def __init__(self, folder: Path) -> None:
        self.clock = HandClock()
        self.chain = Chain(folder / "chain.db", clock=self.clock)
        self.plan: FaultPlan = lambda method, earlier: Fault()
        self.server = Server(self.chain, lambda method, earlier: self.plan(method, earlier))
        self.chain.airdrop(Pubkey.from_string(NODE.address), SOL)

    def fail(self, method: str, times: int, fault: Fault) -> None:
        """The next `times` calls of this method go wrong in this way."""
        first = self.server.calls.get(method, 0)
        self.plan = lambda name, earlier: fault if name == method and earlier < first + times else Fault()

    def payment(self, lamports: int = UNIT // 10) -> SignedTransaction:
        height = self.chain.height("processed")
        payer, payee = (Pubkey.from_string(each.address) for each in (NODE, STRANGER))
        instruction = transfer(TransferParams(from_pubkey=payer, to_pubkey=payee, lamports=lamports))
        raw = signed_by(NODE, instruction, self.chain.blockhash(height))
        signature = str(VersionedTransaction.from_bytes(raw).signatures[0])
        return SignedTransaction(transaction=raw, signature=signature, last_valid_block_height=height + 150)

    def blockhash(self) -> str:
        self.chain.advance()
        return self.chain.blockhash(self.chain.height("processed"))

    def land(self, transaction: bytes) -> None:
        self.chain.send(transaction, skip_preflight=False)

    def start_of_block(self, height: int) -> None:
        """Move time to the first slot of a block."""
        self.chain.advance()
        self.clock.now_ms += (height * 20 - self.chain.slot) * 20

    def advance_blocks(self, blocks: int) -> None:
        self.clock.now_ms += blocks * 400


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    result = Lab(tmp_path)
    await result.server.start()
    yield result
    await result.server.stop()
    result.chain.close()


@pytest.fixture
async def settlement(lab: Lab) -> AsyncIterator[Settlement]:
    async with Settlement(lab.server.url) as result:
        yield result


async def state_of(settlement: Settlement, signed: SignedTransaction) -> str:
    return (await settlement.status(signed.signature, signed.last_valid_block_height)).state


async def test_a_transaction_never_sent_is_pending_until_its_last_height_is_final(
    lab: Lab, settlement: Settlement
) -> None:
    signed = lab.payment()
    lab.start_of_block(150)
    seen = [await state_of(settlement, signed)]
    lab.start_of_block(151)
    seen.append(await state_of(settlement, signed))
    for slots in (3, 1):  # until that height is finalized, not only reached or confirmed
        lab.clock.now_ms += slots * 20
        seen.append(await state_of(settlement, signed))
    assert seen == ["pending", "pending", "pending", "dead"]


async def test_a_transaction_that_landed_is_never_called_dead(lab: Lab, settlement: Settlement) -> None:
    signed = lab.payment()
    await settlement.send(signed.transaction)
    lab.advance_blocks(10_000)
    assert await state_of(settlement, signed) == "landed"


async def test_a_landing_is_final_only_after_the_chain_says_so(lab: Lab, settlement: Settlement) -> None:
    signed = lab.payment()
    await settlement.send(signed.transaction)
    first = await settlement.status(signed.signature, signed.last_valid_block_height)
    lab.clock.now_ms += 4 * 20
    second = await settlement.status(signed.signature, signed.last_valid_block_height)
    assert (first.finalized, second.finalized) == (False, True)


async def test_a_landing_that_failed_says_why(lab: Lab, settlement: Settlement) -> None:
    signed = lab.payment(5 * SOL)
    await settlement.send(signed.transaction, preflight=False)
    status = await settlement.status(signed.signature, signed.last_valid_block_height)
    assert (status.state, status.err) == ("landed", '{"InstructionError":[0,{"Custom":1}]}')


async def test_a_dropped_transaction_lands_when_the_same_bytes_are_sent_again(lab: Lab, settlement: Settlement) -> None:
    signed = lab.payment()
    lab.fail("sendTransaction", 2, Fault(drop=True))
    seen = []
    for _ in range(3):
        await settlement.send(signed.transaction)
        seen.append(await state_of(settlement, signed))
    assert seen == ["pending", "pending", "landed"]


async def test_a_lost_answer_does_not_pay_twice(lab: Lab, settlement: Settlement) -> None:
    signed = lab.payment()
    lab.fail("sendTransaction", 3, Fault(lose_answer=True))
    assert await settlement.send(signed.transaction) == signed.signature
    assert lab.server.calls["sendTransaction"] > 1
    assert await settlement.sol_balance(STRANGER.address) == UNIT // 10


@pytest.mark.parametrize("http_status", [429, 503])
async def test_a_busy_endpoint_is_asked_again(lab: Lab, settlement: Settlement, http_status: int) -> None:
    lab.fail("getBalance", 2, Fault(http_status=http_status))
    assert await settlement.sol_balance(NODE.address) == SOL


async def test_a_slow_answer_is_waited_for(lab: Lab, settlement: Settlement) -> None:
    lab.fail("getBalance", 1, Fault(delay_ms=30))
    assert await settlement.sol_balance(NODE.address) == SOL


async def test_an_endpoint_that_stays_busy_is_unreachable(lab: Lab) -> None:
    lab.fail("getBalance", 100, Fault(http_status=503))
    async with Settlement(lab.server.url, attempts=2) as settlement:
        with pytest.raises(SettlementError, match="after 2 tries") as refused:
            await settlement.sol_balance(NODE.address)
    assert refused.value.code == "chain_unreachable"


async def test_a_closed_port_is_unreachable() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    async with Settlement(url, attempts=2) as settlement:
        with pytest.raises(SettlementError, match="is the chain running") as refused:
            await settlement.latest_blockhash()
    assert refused.value.code == "chain_unreachable"


async def test_an_endpoint_that_forbids_us_is_not_asked_again(lab: Lab, settlement: Settlement) -> None:
    lab.fail("getBalance", 100, Fault(http_status=415))
    with pytest.raises(SettlementError):
        await settlement.sol_balance(NODE.address)
    assert lab.server.calls["getBalance"] == 1


async def serving(answer: bytes) -> asyncio.Server:
    async def give(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    return await asyncio.start_server(give, "127.0.0.1", 0)


async def test_an_endpoint_that_moved_is_not_followed_but_said() -> None:
    moved = b"HTTP/1.1 301 Moved\r\nLocation: https://elsewhere/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    async with await serving(moved) as listener:
        async with Settlement(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}") as settlement:
            with pytest.raises(SettlementError, match=r"after 1 try .*301.*may you ask there\? .*https://elsewhere/"):
                await settlement.latest_blockhash()


@pytest.mark.parametrize("error", [KeyError("not foreseen"), SettlementError("chain_refused", "no")])
async def test_everybody_who_waits_for_an_escrow_hears_why_there_is_no_answer(
    settlement: Settlement, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    # who was cancelled instead did not try again, and the job waited for its money until central was started anew
    async def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(settlement, "_accounts", fails)
    looking = [settlement.verify_escrow(offline_terms()) for _ in range(2)]
    found = await asyncio.gather(*looking, return_exceptions=True)
    assert [(type(each), str(each)) for each in found] == [(type(error), str(error))] * 2


async def test_an_endpoint_that_tells_of_fewer_accounts_than_it_was_asked_for_is_refused() -> None:
    body = b'{"jsonrpc":"2.0","id":0,"result":{"context":{"slot":1},"value":[null]}}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body)
    async with await serving(answer) as listener:
        async with Settlement(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}") as settlement:
            with pytest.raises(SettlementError, match="expected 2 accounts .* got 1"):
                await settlement.verify_escrow(offline_terms())


async def test_something_else_than_a_solana_endpoint_is_named_as_such() -> None:
    hello = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
    async with await serving(hello) as listener:
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        async with Settlement(url) as settlement:
            with pytest.raises(SettlementError, match="expected a Solana RPC answer") as refused:
                await settlement.latest_blockhash()
    assert refused.value.code == "chain_refused"


async def test_escrows_that_are_looked_at_in_one_moment_are_one_question(lab: Lab, settlement: Settlement) -> None:
    terms = [
        escrow_terms(
            job_id=f"job-{number}",
            mint=STRANGER.address,
            authority=NODE.address,
            client=NODE.address,
            platform=STRANGER.address,
            amount_base_units=UNIT,
            fee_basis_points=1_000,
            deadline_s=2_000_000_000,
        )
        for number in range(70)
    ]
    looking = [asyncio.ensure_future(settlement.verify_escrow(each)) for each in terms]
    await asyncio.sleep(0)
    looking[0].cancel()
    found = await asyncio.gather(*looking, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert {getattr(each, "code", "") for each in found[1:]} == {"escrow_missing"}
    assert lab.server.calls["getMultipleAccounts"] == 2  # a hundred accounts each at the most
    lab.fail("getMultipleAccounts", 100, Fault(http_status=415))
    refused = await asyncio.gather(*map(settlement.verify_escrow, terms[:3]), return_exceptions=True)
    assert [getattr(each, "code", "") for each in refused] == ["chain_unreachable"] * 3


async def test_an_expired_transaction_is_refused_as_expired(lab: Lab, settlement: Settlement) -> None:
    signed = lab.payment()
    lab.advance_blocks(151)
    with pytest.raises(SettlementError) as refused:
        await settlement.send(signed.transaction)
    assert refused.value.code == "expired"


async def test_dead_needs_every_witness(lab: Lab, tmp_path: Path) -> None:
    behind = Lab(tmp_path / "behind")
    await behind.server.start()
    signed = lab.payment()
    lab.advance_blocks(152)
    async with Settlement(lab.server.url, (behind.server.url,)) as settlement:
        seen = [await state_of(settlement, signed)]
        behind.advance_blocks(152)
        seen.append(await state_of(settlement, signed))
    await behind.server.stop()
    behind.chain.close()
    assert seen == ["pending", "dead"]


class Balancer(Server):
    """One URL, two machines: heights come from one that is ahead, everything else from the other."""

    def __init__(self, ahead: Chain, behind: Chain) -> None:
        super().__init__(behind)
        self.ahead, self.behind = ahead, behind

    async def handle(self, body: bytes) -> tuple[int, bytes] | None:
        self.chain = self.ahead if b'"getEpochInfo"' in body else self.behind
        return await super().handle(body)


async def test_a_machine_that_is_behind_cannot_testify_that_a_transaction_is_dead(lab: Lab, tmp_path: Path) -> None:
    ahead = Lab(tmp_path / "ahead")
    ahead.advance_blocks(152)
    signed = lab.payment()
    balancer = Balancer(ahead.chain, lab.chain)
    await balancer.start()
    async with Settlement(balancer.url) as settlement:
        seen = [await state_of(settlement, signed)]
        lab.advance_blocks(153)
        seen.append(await state_of(settlement, signed))
    await balancer.stop()
    ahead.chain.close()
    assert seen == ["pending", "dead"]


@pytest.mark.parametrize(
    "attempt",
    [
        lambda settlement: settlement.create_mint(CENTRAL),
        lambda settlement: settlement.faucet_transaction(CENTRAL, STRANGER.address, NODE.address, UNIT, "one"),
    ],
)
async def test_tokens_are_not_made_on_a_chain_that_calls_itself_mainnet(
    lab: Lab, settlement: Settlement, attempt: Callable[[Settlement], Any]
) -> None:
    lab.chain.genesis = base58_decode("5eykt4UsFv8P8NJdTREpY1vzqKqZKvdpKuc147dw2N9d")
    with pytest.raises(SettlementError) as refused:
        await attempt(settlement)
    assert refused.value.code == "not_local"


async def test_a_deposit_on_a_blockhash_that_was_quoted_is_checked_without_asking_the_chain(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = world.terms()
    blockhash, last_valid = await world.settlement.recent_blockhash()
    deposit = build_deposit(world.client, terms, blockhash, last_valid)

    async def nobody(*_: object, **__: object) -> None:
        raise AssertionError("the chain was asked")

    with monkeypatch.context() as patched:
        patched.setattr(world.settlement, "_ask", nobody)
        accepted = await world.settlement.accept_deposit(deposit.transaction, terms)
        assert await world.settlement.recent_blockhash() == (blockhash, last_valid)
    assert accepted.last_valid_block_height >= last_valid
    assert (await world.settlement.finish(accepted, finalized=False)).err is None


async def test_a_blockhash_that_was_seen_too_long_ago_is_asked_for_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.settlement.recent_blockhash()
    monkeypatch.setattr("cyxnet.solana.BLOCKHASH_REUSED_S", -1.0)
    monkeypatch.setattr("cyxnet.solana.BLOCKHASH_TRUSTED_S", -1.0)
    first = len(world.settlement._seen)
    blockhash, _ = await world.settlement.recent_blockhash()
    assert len(world.settlement._seen) >= first
    assert world.settlement._seen_lately(blockhash) is None

"""Amounts, terms and transactions of the escrow, without a chain."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from solders.keypair import Keypair
from solders.message import MessageV0
from solders.pubkey import Pubkey
from solders.token import ID as TOKEN_PROGRAM
from solders.transaction import VersionedTransaction
from spl.token import instructions as spl
from spl.token import models

from cyxcentral.earnings import MAX_PAYEES
from cyxnet import escrow
from cyxnet.messages import EscrowTerms, Payee, SignedTransaction
from cyxnet.solana import (
    SettlementError,
    Wallet,
    associated_address,
    build_deposit,
    build_settle,
    check_deposit,
    check_terms,
    escrow_address,
    split,
)
from tests.net.payments import BLOCKHASH, CENTRAL, NODE, PLATFORM, STRANGER, UNIT, offline_terms, paid


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


def settle_offline(**changes: Any) -> SignedTransaction:
    values: dict[str, Any] = {
        "terms": offline_terms(),
        "payees": paid(NODE, 100 * UNIT),
        "balance_base_units": 100 * UNIT,
        "blockhash": BLOCKHASH,
        "last_valid_block_height": 1,
    }
    return build_settle(CENTRAL, **(values | changes))

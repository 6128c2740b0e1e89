"""The settlement client against a real chain process."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from msgspec.structs import replace
from solders.keypair import Keypair
from solders.message import MessageV0
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.system_program import TransferParams, transfer
from solders.token import ID as TOKEN_PROGRAM
from solders.transaction import VersionedTransaction
from spl.token import instructions as spl
from spl.token import models

from cyxnet import escrow
from cyxnet.messages import EscrowTerms, SignedTransaction
from cyxnet.solana import Settlement, SettlementError, Wallet, associated_address, build_deposit, escrow_terms, split
from tests.net.payments import BLOCKHASH, CENTRAL, SOL, STRANGER, UNIT, paid, signed_by


def test_importing_the_payment_client_loads_neither_solana_nor_solders() -> None:
    probe = "import sys, cyxnet.solana; print([m for m in ('solders', 'solana', 'httpx2') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


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


async def test_what_a_wallet_holds_is_sent_to_another_in_part_and_whole(world: World) -> None:
    for amount in (400 * UNIT, 1, 1, None):  # the same again is sent again
        signed = await world.settlement.transfer_transaction(world.client, world.mint, world.node.address, amount)
        await world.settlement.succeed(signed, "send")
    assert await world.balances() == [0, 1_000 * UNIT, 0]


async def test_what_cannot_be_sent_is_said_before_anything_is(world: World) -> None:
    async def refused(sender: Wallet, to: str, amount: int | None) -> str:
        with pytest.raises(SettlementError) as told:
            await world.settlement.transfer_transaction(sender, world.mint, to, amount)
        return str(told.value)

    assert "expected 1001 CYX" in await refused(world.client, world.node.address, 1_001 * UNIT)
    assert "expected CYX to send" in await refused(world.node, world.client.address, None)
    account = associated_address(world.node.address, world.mint)
    assert "not its token account" in await refused(world.client, account, UNIT)
    for program_or_mint in ("1" * 32, world.mint):  # points of the curve, as wallets are
        assert "is the address of no wallet" in await refused(world.client, program_or_mint, UNIT)
    await world.settlement.faucet(CENTRAL, world.mint, world.node.address, UNIT)  # a node's: no SOL came with it
    assert "0.00089588 SOL" in await refused(world.node, world.client.address, UNIT)
    assert "0.00293516 SOL" in await refused(world.node, Wallet.create().address, UNIT)
    assert await world.balances() == [1_000 * UNIT, UNIT, 0]


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
    assert (refused.value.code, refused.value.status) == ("insufficient_funds", 402)


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

"""The settlement client when something goes wrong: an in-process chain with a hand-moved clock and planned faults."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from solders.hash import Hash
from solders.message import MessageV0
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.system_program import TransferParams, transfer
from solders.token import ID as TOKEN_PROGRAM
from solders.transaction import VersionedTransaction

from cyxcentral.localchain import Fault, FaultPlan, Server
from cyxcentral.localvm import Chain
from cyxnet import escrow
from cyxnet.escrow import build_faucet, build_mint
from cyxnet.messages import SignedTransaction
from cyxnet.solana import (
    Settlement,
    SettlementError,
    TransactionStatus,
    Wallet,
    associated_address,
    build_deposit,
    escrow_terms,
)
from cyxnet.wallet import base58_decode, base58_encode
from tests.net.payments import CENTRAL, NODE, SOL, STRANGER, UNIT, offline_terms, signed_by


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


async def test_after_the_deadline_a_stranger_gives_the_client_its_money_back(lab: Lab, settlement: Settlement) -> None:
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

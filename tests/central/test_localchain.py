"""The embedded chain: time, durability and JSON-RPC, in process with a hand-moved clock and as a process."""

import asyncio
import base64
import contextlib
import http.client
import json
import random
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from solders.account import Account
from solders.address_lookup_table_account import AddressLookupTableAccount
from solders.hash import Hash
from solders.keypair import Keypair
from solders.message import Message, MessageV0
from solders.pubkey import Pubkey
from solders.system_program import ID as SYSTEM_PROGRAM
from solders.system_program import TransferParams, transfer
from solders.transaction import VersionedTransaction

from cyxcentral import localchain
from cyxcentral.localchain import Server
from cyxcentral.localrpc import call
from cyxcentral.localvm import Chain, ChainError, ChainOptions, RpcError, _Commit
from cyxnet.solana import Settlement, SettlementError

ALICE = Keypair.from_seed(b"a" * 32)
BOB = Keypair.from_seed(b"b" * 32).pubkey()
SOL = 10**9
BLOCK_MS = 400
SIGNATURE = "1" * 64
ADDRESS = str(BOB)


class HandClock:
    """Time that moves when told."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self.now_ms = now_ms

    def wall_ms(self) -> int:
        return self.now_ms

    def elapsed_ms(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def chain(tmp_path: Path, clock: HandClock) -> Iterator[Chain]:
    result = Chain(tmp_path / "chain.db", clock=clock)
    result.airdrop(ALICE.pubkey(), 10 * SOL)
    yield result
    result.close()


@pytest.fixture(scope="module")
def idle_chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """One chain for all the requests that must not change it."""
    result = Chain(tmp_path_factory.mktemp("idle") / "chain.db", clock=HandClock())
    result.airdrop(ALICE.pubkey(), 10 * SOL)
    yield result
    result.close()


def payment(chain: Chain, lamports: int, blockhash: str | None = None, payer: Keypair = ALICE) -> bytes:
    """A signed transfer to Bob naming the newest blockhash."""
    newest = call(chain, "getLatestBlockhash", [{"commitment": "processed"}])["value"]["blockhash"]
    instruction = transfer(TransferParams(from_pubkey=payer.pubkey(), to_pubkey=BOB, lamports=lamports))
    message = MessageV0.try_compile(payer.pubkey(), [instruction], [], Hash.from_string(blockhash or newest))
    return bytes(VersionedTransaction(message, [payer]))


def send(chain: Chain, raw: bytes, **config: Any) -> str:
    return str(call(chain, "sendTransaction", [base64.b64encode(raw).decode(), {"encoding": "base64"} | config]))


def lamports(chain: Chain, address: Pubkey = BOB) -> int:
    return int(call(chain, "getBalance", [str(address)])["value"])


def status(chain: Chain, signature: str) -> Any:
    return call(chain, "getSignatureStatuses", [[signature], {"searchTransactionHistory": True}])["value"][0]


# Time.


def test_a_blockhash_is_valid_for_exactly_150_blocks(chain: Chain, clock: HandClock) -> None:
    raw = payment(chain, SOL)
    clock.now_ms += 150 * BLOCK_MS
    send(chain, raw)
    assert lamports(chain) == SOL


def test_a_blockhash_of_151_blocks_ago_is_refused(chain: Chain, clock: HandClock) -> None:
    raw = payment(chain, SOL)
    clock.now_ms += 151 * BLOCK_MS
    with pytest.raises(RpcError, match="Blockhash not found"):
        send(chain, raw)


def test_an_expired_transaction_sent_without_preflight_vanishes(chain: Chain, clock: HandClock) -> None:
    raw = payment(chain, SOL)
    clock.now_ms += 151 * BLOCK_MS
    assert status(chain, send(chain, raw, skipPreflight=True)) is None


def test_last_valid_block_height_is_the_last_height_at_which_the_blockhash_is_valid(
    chain: Chain, clock: HandClock
) -> None:
    value = call(chain, "getLatestBlockhash", [{"commitment": "processed"}])["value"]
    ahead = value["lastValidBlockHeight"] - call(chain, "getBlockHeight", [{"commitment": "processed"}])
    clock.now_ms += ahead * BLOCK_MS
    assert call(chain, "isBlockhashValid", [value["blockhash"]])["value"]
    clock.now_ms += BLOCK_MS
    assert not call(chain, "isBlockhashValid", [value["blockhash"]])["value"]


def test_a_landing_passes_through_the_three_commitment_levels(chain: Chain, clock: HandClock) -> None:
    signature = send(chain, payment(chain, SOL))
    seen = [status(chain, signature)["confirmationStatus"]]
    for _ in range(4):
        clock.now_ms += 20
        seen.append(status(chain, signature)["confirmationStatus"])
    assert seen == ["processed", "confirmed", "confirmed", "confirmed", "finalized"]


def test_how_long_finality_takes_is_an_option(tmp_path: Path, clock: HandClock) -> None:
    chain = Chain(tmp_path / "slow.db", ChainOptions(finalized_slots=32, slot_ms=400), clock)
    chain.airdrop(ALICE.pubkey(), SOL)
    signature = send(chain, payment(chain, SOL // 2))
    clock.now_ms += 31 * 400
    assert status(chain, signature)["confirmationStatus"] == "confirmed"
    clock.now_ms += 400
    assert status(chain, signature)["confirmationStatus"] == "finalized"
    chain.close()


def test_slots_never_run_again_when_the_wall_clock_went_back_before_a_restart(tmp_path: Path, clock: HandClock) -> None:
    chain = Chain(tmp_path / "chain.db", clock=clock)
    clock.now_ms += 3_600_000
    used = call(chain, "getSlot", [{"commitment": "processed"}])
    chain.close()
    chain = Chain(tmp_path / "chain.db", clock=HandClock(clock.now_ms - 3_000_000))
    assert call(chain, "getSlot", [{"commitment": "processed"}]) > used
    chain.close()


def test_programs_see_the_wall_clock(chain: Chain, clock: HandClock) -> None:
    clock.now_ms += 5_000
    send(chain, payment(chain, SOL))
    assert chain.svm.get_clock().unix_timestamp == clock.now_ms // 1_000


# Landing.


def test_a_landed_transaction_sent_again_changes_nothing(chain: Chain) -> None:
    raw = payment(chain, SOL)
    first = send(chain, raw)
    assert send(chain, raw, skipPreflight=True) == first
    assert lamports(chain) == SOL


def test_preflight_calls_a_landed_transaction_already_processed(chain: Chain) -> None:
    raw = payment(chain, SOL)
    send(chain, raw)
    with pytest.raises(RpcError, match="already been processed"):
        send(chain, raw)


def test_a_failing_transaction_lands_with_its_error_and_pays_its_fee(chain: Chain) -> None:
    signature = send(chain, payment(chain, 11 * SOL), skipPreflight=True)
    assert status(chain, signature)["err"] == {"InstructionError": [0, {"Custom": 1}]}
    assert lamports(chain, ALICE.pubkey()) == 10 * SOL - 5_000


def test_a_transaction_that_cannot_pay_its_fee_never_lands(chain: Chain) -> None:
    pauper = Keypair.from_seed(b"p" * 32)
    signature = send(chain, payment(chain, SOL, payer=pauper), skipPreflight=True)
    assert status(chain, signature) is None


def test_a_forged_signature_is_refused(chain: Chain) -> None:
    raw = bytearray(payment(chain, SOL))
    raw[10] ^= 1
    with pytest.raises(RpcError, match="signature verification failure"):
        send(chain, bytes(raw))


def test_a_legacy_message_lands_too(chain: Chain) -> None:
    instruction = transfer(TransferParams(from_pubkey=ALICE.pubkey(), to_pubkey=BOB, lamports=SOL))
    blockhash = Hash.from_string(chain.blockhash(chain.height("processed")))
    message = Message.new_with_blockhash([instruction], ALICE.pubkey(), blockhash)
    signature = send(chain, bytes(VersionedTransaction(message, [ALICE])))
    assert call(chain, "getTransaction", [signature, {"encoding": "base64"}])["version"] == "legacy"
    assert lamports(chain) == SOL


def test_an_address_lookup_table_is_refused_by_name(chain: Chain) -> None:
    table = AddressLookupTableAccount(Pubkey.new_unique(), [BOB])
    instruction = transfer(TransferParams(from_pubkey=ALICE.pubkey(), to_pubkey=BOB, lamports=SOL))
    blockhash = Hash.from_string(chain.blockhash(0))
    message = MessageV0.try_compile(ALICE.pubkey(), [instruction], [table], blockhash)
    with pytest.raises(RpcError, match="no address lookup tables"):
        send(chain, bytes(VersionedTransaction(message, [ALICE])))


def test_a_thousand_damaged_transactions_make_no_money_and_no_other_error(chain: Chain) -> None:
    dice = random.Random(7)
    good = payment(chain, SOL)
    for _ in range(1_000):
        raw = bytearray(good)
        for _ in range(dice.choice((1, 1, 3))):  # an odd number, so that no damage undoes itself
            raw[dice.randrange(len(raw))] ^= dice.randrange(1, 256)
        if dice.random() < 0.2:
            del raw[dice.randrange(len(raw)) :]
        assert bytes(raw) != good
        try:
            send(chain, bytes(raw), skipPreflight=dice.random() < 0.5)
        except RpcError:
            pass
    assert lamports(chain, ALICE.pubkey()) + lamports(chain) == 10 * SOL


def test_history_lists_an_addresss_transactions_newest_first(chain: Chain) -> None:
    signatures = [send(chain, payment(chain, SOL + n)) for n in range(3)]
    listed = call(chain, "getSignaturesForAddress", [str(BOB)])
    assert [entry["signature"] for entry in listed] == signatures[::-1]


def test_history_can_be_read_in_pages(chain: Chain) -> None:
    signatures = [send(chain, payment(chain, SOL + n)) for n in range(5)]
    page = call(chain, "getSignaturesForAddress", [str(BOB), {"limit": 2, "before": signatures[3]}])
    assert [entry["signature"] for entry in page] == [signatures[2], signatures[1]]


# Durability.


def test_a_restart_keeps_balances_signatures_and_the_identity_of_the_chain(tmp_path: Path, clock: HandClock) -> None:
    chain = Chain(tmp_path / "chain.db", clock=clock)
    chain.airdrop(ALICE.pubkey(), 10 * SOL)
    raw = payment(chain, SOL)
    signature = send(chain, raw)
    genesis = call(chain, "getGenesisHash", [])
    chain.close()
    chain = Chain(tmp_path / "chain.db", clock=clock)
    send(chain, raw, skipPreflight=True)
    assert (lamports(chain), lamports(chain, ALICE.pubkey())) == (SOL, 9 * SOL - 5_000)
    assert status(chain, signature)["err"] is None
    assert call(chain, "getGenesisHash", []) == genesis
    chain.close()


def test_an_emptied_account_stays_gone_after_a_restart(tmp_path: Path, clock: HandClock) -> None:
    chain = Chain(tmp_path / "chain.db", clock=clock)
    chain.airdrop(ALICE.pubkey(), SOL)
    send(chain, payment(chain, SOL - 5_000))
    chain.close()
    chain = Chain(tmp_path / "chain.db", clock=clock)
    assert call(chain, "getAccountInfo", [str(ALICE.pubkey())])["value"] is None
    chain.close()


def test_a_transaction_of_one_chain_means_nothing_on_another(tmp_path: Path, clock: HandClock, chain: Chain) -> None:
    other = Chain(tmp_path / "other" / "chain.db", clock=clock)
    other.airdrop(ALICE.pubkey(), 10 * SOL)
    with pytest.raises(RpcError, match="Blockhash not found"):
        send(other, payment(chain, SOL))
    other.close()


def sending(raw: bytes, identifier: int) -> bytes:
    params = [base64.b64encode(raw).decode(), {"encoding": "base64"}]
    return json.dumps({"id": identifier, "method": "sendTransaction", "params": params}).encode()


async def test_a_peer_that_does_not_read_its_answer_does_not_hold_up_the_end(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, asked = Server(chain), asyncio.Event()

    async def large(body: bytes) -> tuple[int, bytes]:
        asked.set()
        return 200, bytes(2**25)  # more than the buffers of both sockets hold

    monkeypatch.setattr(server, "handle", large)
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
    reader._transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(b"POST / HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
    await asyncio.wait_for(asked.wait(), 60)
    await asyncio.wait_for(server.stop(), 30)
    writer.transport.abort()


async def test_payments_of_one_turn_share_a_sync_of_the_disk(chain: Chain) -> None:
    server, statements = Server(chain), list[str]()
    raw = [payment(chain, SOL // 1_000 + n) for n in range(5)]
    chain.database.set_trace_callback(statements.append)
    answers = await asyncio.gather(*(server.handle(sending(each, n)) for n, each in enumerate(raw)))
    assert [json.loads(answer[1])["id"] for answer in answers if answer] == [0, 1, 2, 3, 4]
    assert all("result" in json.loads(answer[1]) for answer in answers if answer)
    assert [each for each in statements if each in ("BEGIN IMMEDIATE", "COMMIT")] == ["BEGIN IMMEDIATE", "COMMIT"]


async def test_nothing_is_answered_that_the_disk_did_not_take(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        chain.unstored, chain.storage_failure = False, "database or disk is full"
        raise sqlite3.OperationalError(chain.storage_failure)

    server, raw = Server(chain), payment(chain, SOL)
    monkeypatch.setattr(chain, "store", full)
    balance = json.dumps({"id": 2, "method": "getBalance", "params": [ADDRESS]}).encode()  # which has changed
    answers = await asyncio.gather(server.handle(sending(raw, 1)), server.handle(balance), server.handle(balance))
    assert [json.loads(answer[1])["error"]["code"] for answer in answers if answer] == [-32603] * 3


async def test_what_is_undone_with_another_payment_of_its_turn_is_not_answered(chain: Chain) -> None:
    # the first of two was acknowledged, and gone after a restart
    server, raw = Server(chain), [payment(chain, SOL // 1_000 + n) for n in range(2)]
    first = asyncio.ensure_future(server.handle(sending(raw[0], 1)))
    await asyncio.sleep(0)
    assert chain.unstored
    chain.database.execute("PRAGMA query_only = 1")  # as good as a disk that is full
    answers = [await server.handle(sending(raw[1], 2)), await first]
    assert [json.loads(answer[1])["error"]["code"] for answer in answers if answer] == [-32603] * 2


def test_a_full_disk_stops_the_chain_instead_of_acknowledging(chain: Chain) -> None:
    pages = chain.database.execute("PRAGMA page_count").fetchone()[0]
    chain.database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(RpcError, match="storage failed"):
        for n in range(1_000):
            send(chain, payment(chain, SOL // 1_000 + n))
    with pytest.raises(RpcError, match="storage failed .*full"):
        call(chain, "getHealth", [])


async def test_a_chain_that_could_not_store_ends_so_that_it_is_started_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # it refused everything for ever, though there was room again
    monkeypatch.setattr(localchain, "until_stopped", lambda _: asyncio.Event().wait())
    running = asyncio.create_task(localchain.serve(localchain.parser().parse_args(["--dir", str(tmp_path)])))
    while not (said := capsys.readouterr().out):
        await asyncio.sleep(0)
    async with Settlement(json.loads(said)["url"], attempts=1) as settlement:
        monkeypatch.setattr(Chain, "_commit", lambda chain: _Refused(chain))
        with pytest.raises(SettlementError, match="storage failed"):
            await settlement.airdrop(ADDRESS, SOL)
    with pytest.raises(ChainError, match="cannot be written .* free some space"):
        await running


class _Refused(_Commit):
    """A disk that is full."""

    def run(self, statement: str) -> None:
        self.chain.storage_failure = "database or disk is full"
        raise sqlite3.OperationalError(self.chain.storage_failure)


def test_a_chain_that_finds_no_room_at_its_start_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Chain(tmp_path / "chain.db").close()
    monkeypatch.setattr(Chain, "_commit", lambda chain: _Refused(chain))
    with pytest.raises(ChainError, match="cannot be written .* free some space"):
        Chain(tmp_path / "chain.db")


def test_a_damaged_database_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "chain.db").write_bytes(b"not a database" * 1_000)
    with pytest.raises(ChainError, match="expected a readable database"):
        Chain(tmp_path / "chain.db")


def test_a_folder_that_is_a_file_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ChainError, match="expected a folder, .*/file is a file; give another --dir"):
        Chain(tmp_path / "file" / "chain.db")


# Requests.


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("getBalance", []),
        ("getBalance", [7]),
        ("getBalance", ["no address"]),
        ("getBalance", ["1" * 5_000]),
        ("getBlockHeight", [{"commitment": "soon"}]),
        ("getBlockHeight", ["finalized"]),
        ("getAccountInfo", [ADDRESS, {"encoding": "zip"}]),
        ("getAccountInfo", [ADDRESS, {"encoding": ["base64"]}]),
        ("sendTransaction", ["AAAA", {"encoding": {}}]),
        ("getAccountInfo", [ADDRESS, {"dataSlice": {"offset": -1, "length": 3}}]),
        ("getMultipleAccounts", [[ADDRESS] * 101]),
        ("getMultipleAccounts", [[ADDRESS, 3]]),
        ("getTokenAccountBalance", [ADDRESS]),
        ("getTokenSupply", [str(ALICE.pubkey())]),
        ("getTokenAccountsByOwner", [ADDRESS, {}]),
        ("getMinimumBalanceForRentExemption", [-1]),
        ("getMinimumBalanceForRentExemption", [True]),
        ("getMinimumBalanceForRentExemption", [2**70]),
        ("getSignatureStatuses", [["xyz"]]),
        ("getSignatureStatuses", [[SIGNATURE] * 257]),
        ("getTransaction", [SIGNATURE]),
        ("getSignaturesForAddress", [ADDRESS, {"limit": 10**9}]),
        ("requestAirdrop", [ADDRESS, 10**18]),
        ("requestAirdrop", [ADDRESS, 1.5]),
        ("sendTransaction", ["AAAA", {"encoding": "base64"}]),
        ("sendTransaction", ["%%%", {"encoding": "base64"}]),
        ("sendTransaction", ["A" * 2_000, {"encoding": "base64"}]),
        ("sendTransaction", ["1" * 40_000]),
        ("sendTransaction", ["0OIl"]),
        ("simulateTransaction", ["", {"encoding": "base64"}]),
        ("getFeeForMessage", ["gAAA"]),
    ],
)
def test_bad_parameters_are_answered_as_invalid(idle_chain: Chain, method: str, params: list[Any]) -> None:
    with pytest.raises(RpcError) as refused:
        call(idle_chain, method, params)
    assert refused.value.body["code"] == -32602


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", -32700),
        (b"{", -32700),
        (b"\xff\xfe", -32700),
        (b"[" * 40_000, -32700),
        (b'{"id": NaN}', -32700),
        (b"7", -32600),
        (b"{}", -32600),
        (b"[]", -32600),
        (b'{"method": 5, "id": 1}', -32600),
        (b'{"method": "launch", "id": 1}', -32601),
        (b'{"method": "getBalance", "params": {"address": 1}, "id": 1}', -32602),
    ],
)
async def test_a_bad_request_gets_the_error_code_of_a_real_node(idle_chain: Chain, body: bytes, code: int) -> None:
    answer = await Server(idle_chain).handle(body)
    assert answer is not None
    assert json.loads(answer[1])["error"]["code"] == code


async def test_a_batch_is_answered_in_order(chain: Chain) -> None:
    calls = [{"jsonrpc": "2.0", "id": n, "method": "getHealth"} for n in (4, 2, 9)]
    answer = await Server(chain).handle(json.dumps(calls).encode())
    assert answer is not None
    assert [each["id"] for each in json.loads(answer[1])] == [4, 2, 9]


def test_token_amounts_keep_every_digit_as_text(chain: Chain) -> None:
    mint = Pubkey.new_unique()
    state = bytes([1, 0, 0, 0]) + bytes(BOB) + (2**63 + 1).to_bytes(8, "little") + bytes([9, 1]) + bytes(36)
    token_program = Pubkey.from_string("TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA")
    chain.svm.set_account(mint, Account(1_461_600, state, token_program))
    supply = call(chain, "getTokenSupply", [str(mint)])["value"]
    assert supply["amount"] == "9223372036854775809"
    assert supply["uiAmountString"] == "9223372036.854775809"


def test_account_data_can_be_sliced(chain: Chain) -> None:
    address = Pubkey.new_unique()
    chain.svm.set_account(address, Account(SOL, bytes(range(10)), SYSTEM_PROGRAM))
    view = call(
        chain, "getAccountInfo", [str(address), {"encoding": "base64", "dataSlice": {"offset": 2, "length": 3}}]
    )
    assert base64.b64decode(view["value"]["data"][0]) == bytes([2, 3, 4])


# The process.


class Process:
    """`python -m cyxcentral.localchain` on a folder."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "cyxcentral.localchain", "--dir", str(folder), *arguments]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        assert self.process.stdout is not None
        self.ready = json.loads(self.process.stdout.readline() or "{}")

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", int(self.ready["url"].rsplit(":", 1)[1])

    def request(self, body: bytes, verb: str = "POST", target: str = "/", **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(*self.address, timeout=10)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(verb, target, body, {"Content-Type": "application/json"} | names)
        answer = connection.getresponse()
        result = answer.status, answer.read()
        connection.close()
        return result

    def call(self, method: str, *params: Any) -> Any:
        _, answer = self.request(json.dumps({"id": 1, "method": method, "params": params}).encode())
        return json.loads(answer)["result"]

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """(exit status, standard error)"""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=20)
        return self.process.returncode, errors


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path)
    yield process
    if process.process.poll() is None:
        process.end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_cleanly(tmp_path: Path, number: int) -> None:
    assert Process(tmp_path).end(number) == (0, "")


def test_the_ready_line_tells_where_and_how_fast(running: Process) -> None:
    assert running.ready["ready"] is True
    assert 0 < running.ready["ready_ms"] < 60_000
    assert running.request(b"", "GET", "/health") == (200, b"ok")


def test_with_the_guard_the_process_ends_when_its_input_closes(tmp_path: Path) -> None:
    process = Process(tmp_path, "--guard-stdin")
    assert process.process.stdin is not None
    process.process.stdin.close()
    assert process.process.wait(timeout=20) == 0
    for stream in (process.process.stdout, process.process.stderr):
        assert stream is not None
        stream.close()


def test_a_second_process_on_the_same_folder_is_refused_in_one_line(running: Process, tmp_path: Path) -> None:
    second = Process(tmp_path)
    _, errors = second.process.communicate(timeout=20)
    assert second.process.returncode == 1
    assert errors.count("\n") == 1 and "another process runs on" in errors


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        process = Process(tmp_path, "--port", port)
        _, errors = process.process.communicate(timeout=20)
    assert process.process.returncode == 1
    assert errors.count("\n") == 1 and f"expected port {port}" in errors


def test_an_impossible_option_is_one_line(tmp_path: Path) -> None:
    process = Process(tmp_path, "--slot-ms", "0")
    _, errors = process.process.communicate(timeout=20)
    assert (process.process.returncode, errors) == (1, "chain: expected --slot-ms of at least 1, got 0\n")


@pytest.mark.parametrize(
    ("wanted", "request_line"),
    [
        (413, {"body": b"x" * 60_000}),
        (415, {"body": b"{}", "Content_Type": "text/plain"}),
        (404, {"body": b"", "verb": "GET", "target": "/secret"}),
        (405, {"body": b"{}", "verb": "PUT"}),
    ],
)
def test_http_that_is_not_json_rpc_is_refused(running: Process, wanted: int, request_line: dict[str, Any]) -> None:
    assert running.request(**request_line)[0] == wanted
    assert running.call("getHealth") == "ok"


@pytest.mark.parametrize(
    "head",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + b"X: " + b"y" * 40_000 + b"\r\n\r\n",
    ],
)
def test_a_malformed_head_ends_that_connection_and_no_other(running: Process, head: bytes) -> None:
    with socket.create_connection(running.address, timeout=10) as stranger:
        stranger.sendall(head)
        try:
            answer = stranger.recv(4_096)
        except ConnectionResetError:
            answer = b""
    assert b" 200 " not in answer
    assert running.call("getHealth") == "ok"


@pytest.mark.parametrize("acknowledged", [0, 1, 7])
def test_killed_at_work_the_chain_has_every_acknowledged_payment(tmp_path: Path, acknowledged: int) -> None:
    process = Process(tmp_path)
    process.call("requestAirdrop", str(ALICE.pubkey()), 10 * SOL)
    blockhash = process.call("getLatestBlockhash")["value"]["blockhash"]

    def signed(amount: int) -> str:
        instruction = transfer(TransferParams(from_pubkey=ALICE.pubkey(), to_pubkey=BOB, lamports=amount))
        message = MessageV0.try_compile(ALICE.pubkey(), [instruction], [], Hash.from_string(blockhash))
        return base64.b64encode(bytes(VersionedTransaction(message, [ALICE]))).decode()

    payments = [signed(SOL + n) for n in range(acknowledged + 1)]
    for raw in payments[:-1]:
        process.call("sendTransaction", raw, {"encoding": "base64"})
    body = json.dumps({"id": 1, "method": "sendTransaction", "params": [payments[-1], {"encoding": "base64"}]}).encode()
    head = f"POST / HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(process.address) as in_flight:
        in_flight.sendall(head.encode() + body)
        process.end(signal.SIGKILL)
    restarted = Process(tmp_path)
    paid = sum(SOL + n for n in range(acknowledged))
    assert restarted.call("getBalance", ADDRESS)["value"] in (paid, paid + SOL + acknowledged)
    for raw in payments:  # sent again, what landed stays landed and what was lost lands once
        restarted.call("sendTransaction", raw, {"encoding": "base64", "skipPreflight": True})
    assert restarted.call("getBalance", ADDRESS)["value"] == paid + SOL + acknowledged
    assert restarted.end()[0] == 0


def test_nobody_else_can_write_the_database_of_a_running_chain(running: Process, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "chain.db", timeout=0)) as other:
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("DELETE FROM landed")

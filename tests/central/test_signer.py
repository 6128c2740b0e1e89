"""The process that holds the platform's keys: what it signs, what it refuses, and that nobody else has them."""

import asyncio
import errno
import json
import os
import random
import signal
import sys

import msgspec
import pytest
from msgspec.structs import replace

from cyxcentral.central import StartError, _refuse_other_platform
from cyxcentral.keys import Keys, SignerError
from cyxcentral.signer import (
    ANSWERED,
    ASKED,
    HOUR_MS,
    LENGTH_BYTES,
    Answer,
    Ask,
    Custody,
    Hello,
    Journal,
    Keeper,
    No,
    Signed,
    Welcome,
    frame,
    serve,
)
from cyxnet.commands import Commander, commanding
from cyxnet.config import NetworkFile, write_network
from cyxnet.escrow import DEADLINE_S, check_deposit, escrow_terms, mint_address, paid_by
from cyxnet.identity import Identity, keep, load_or_create, verify
from cyxnet.instructions import SettlementError
from cyxnet.local import LocalNetwork
from cyxnet.messages import command_key_bytes
from cyxnet.shapes import Deposit, Faucet, MakeMint, Settle
from cyxnet.wallet import Wallet
from tests.central import facts as f

SEED = Identity(b"s" * 32)
AUTHORITY, PLATFORM = (Wallet(SEED.child(purpose)) for purpose in ("wallet", "platform"))
CLIENT, NODE = Wallet(b"c" * 32), Wallet(b"n" * 32)
BLOCKHASH = "4uQeVj5tqViQh7yWWGStvkEG1Zmhx6uasJtWCJziofM"


def network(**changes):
    urls = dict.fromkeys(("client_url", "node_url", "edge_url", "core_url", "monitor_url"), "")
    return NetworkFile(network_id="n", **{"chain_url": "http://127.0.0.1:1"} | urls | changes)


def terms(job_id="job-1", **changes):
    fields = {"authority": AUTHORITY.address, "client": CLIENT.address, "platform": PLATFORM.address}
    return escrow_terms(
        **(fields | {"mint": mint_address(AUTHORITY.address), "amount_base_units": f.AMOUNT} | changes),
        job_id=job_id,
        fee_basis_points=1000,
        deadline_s=DEADLINE_S,
    )


def settle(job_id="job-1", pay=f.AMOUNT, **changes):
    return Settle(
        terms=terms(job_id, **changes),
        payees=[f.payee(pay, NODE.address)] if pay else [],
        balance_base_units=f.AMOUNT,
        blockhash=BLOCKHASH,
        last_valid_block_height=9,
    )


class Bench:
    """A keeper with a clock that a test sets."""

    def __init__(self, folder, **changes):
        self.folder, self.changes, self.now_ms = folder, changes, 10**12
        self.begin()

    def begin(self):
        made = network(**self.changes)
        journal = Journal(self.folder / "signed.jsonl", made.spend_per_hour_base_units, self.now_ms)
        self.keeper = Keeper(SEED, made, journal, lambda: self.now_ms)

    def ask(self, what):
        return self.keeper.answer(Ask(7, what)).what


def test_a_settlement_is_built_here_from_its_facts_and_signed(tmp_path):
    bench, shape = Bench(tmp_path), settle()
    answer = bench.ask(shape)
    assert isinstance(answer, Signed)
    assert paid_by(answer.signed.transaction, shape.terms) == [(NODE.address, f.AMOUNT)]
    [line] = [json.loads(line) for line in (tmp_path / "signed.jsonl").read_text().splitlines()]
    assert (line["shape"], line["job_id"], line["payees"]) == ("settle", "job-1", {NODE.address: f.AMOUNT})
    assert line["signature"] == answer.signed.signature


STRANGER = Wallet(b"x" * 32).address


def faucet(**changes):
    given = {"mint": STRANGER, "to": STRANGER, "amount_base_units": 5, **changes}
    return Faucet(**given, blockhash=BLOCKHASH, last_valid_block_height=9)


@pytest.mark.parametrize(
    ("shape", "complaint"),
    [
        (settle(platform=STRANGER), "expected the platform"),
        (settle(authority=STRANGER), "expected the authority"),
        (settle(program=STRANGER), "expected the program"),
        (settle(pay=f.AMOUNT + 1), "payments of 1 to"),
        (replace(settle(), balance_base_units=1), "in escrow"),
        (Deposit(caller="me", terms=terms(), blockhash=BLOCKHASH, last_valid_block_height=9), "expected the wallet"),
        (faucet(lamports=10**10 + 1), "expected up to 10000000000 lamports"),
        (faucet(lamports=-1), "expected up to 10000000000 lamports"),
    ],
)
def test_what_is_not_of_this_network_is_refused_and_not_written_down(tmp_path, shape, complaint):
    answer = Bench(tmp_path).ask(shape)
    assert isinstance(answer, No) and complaint in answer.message
    assert (tmp_path / "signed.jsonl").read_bytes() == b""


def test_where_money_is_real_none_is_made_and_no_wallets_are_kept(tmp_path):
    bench = Bench(tmp_path, faucet=False, custodial_wallets=False)
    place = {"blockhash": BLOCKHASH, "last_valid_block_height": 9}
    for shape in (MakeMint(**place), faucet(), Custody("me")):
        assert bench.ask(shape).code == "signer_refused"
    assert "name its mint, or, for test money, set faucet to true" in bench.ask(MakeMint(**place)).message


@pytest.mark.parametrize(
    "public",
    [
        {"mint": STRANGER},
        {"escrow_program": STRANGER},
        {"chain_url": "https://api.devnet.solana.com"},
        {"chain_url": "http://192.0.2.7:8899"},
    ],
)
def test_no_test_money_is_signed_for_a_public_chain_although_nobody_set_faucet_to_false(tmp_path, public):
    bench = Bench(tmp_path, **public)
    assert bench.keeper._network.faucet and not bench.keeper._network.gives_test_money
    for shape in (MakeMint(blockhash=BLOCKHASH, last_valid_block_height=9), faucet()):
        answer = bench.ask(shape)
        [(name, value)] = public.items()
        assert (answer.code, f"{name}: {value}" in answer.message) == ("signer_refused", True)
        assert "set faucet to false" in answer.message
    assert (tmp_path / "signed.jsonl").read_bytes() == b""


def test_a_caller_pays_from_its_own_wallet_only(tmp_path):
    bench = Bench(tmp_path)
    mine = bench.ask(Custody("me")).address
    deposit = Deposit(caller="me", terms=terms(client=mine), blockhash=BLOCKHASH, last_valid_block_height=9)
    assert check_deposit(bench.ask(deposit).signed.transaction, deposit.terms)
    assert bench.ask(replace(deposit, caller="you")).code == "bad_terms"


@pytest.mark.parametrize("what", ["authority", "platform", "program"])
def test_a_caller_pays_into_escrows_of_this_network_only(tmp_path, what):
    bench = Bench(tmp_path)
    foreign = terms(client=bench.ask(Custody("me")).address, **{what: STRANGER})
    refused = bench.ask(Deposit(caller="me", terms=foreign, blockhash=BLOCKHASH, last_valid_block_height=9))
    assert isinstance(refused, No) and f"deposit: expected the {what}" in refused.message
    assert (tmp_path / "signed.jsonl").read_bytes() == b""


def test_beyond_the_limit_nothing_is_signed_until_an_hour_has_passed_also_by_another_signer(tmp_path):
    bench = Bench(tmp_path, spend_per_hour_base_units=2 * f.AMOUNT)
    assert isinstance(bench.ask(settle("job-1")), Signed)
    bench.now_ms += HOUR_MS // 2
    assert isinstance(bench.ask(settle("job-2")), Signed)
    assert isinstance(bench.ask(settle("job-2")), Signed)  # again, because the first one expired: it is one payment
    refused = bench.ask(settle("job-3", pay=1))
    assert (refused.code, "1800 s" in refused.message or "1801 s" in refused.message) == ("spending_cap", True)
    assert isinstance(bench.ask(settle("job-3", pay=0)), Signed)  # a refund spends nothing
    other = Bench(tmp_path, spend_per_hour_base_units=2 * f.AMOUNT)
    other.now_ms = bench.now_ms
    assert other.ask(settle("job-3", pay=1)).code == "spending_cap"
    other.now_ms += HOUR_MS // 2
    assert isinstance(other.ask(settle("job-3", pay=1)), Signed)
    bench.now_ms = other.now_ms
    assert bench.ask(settle("job-4", pay=f.AMOUNT)).code == "spending_cap"  # it has read what the other signed
    assert bench.ask(settle("job-5", pay=f.AMOUNT)).code == "spending_cap"


def test_a_line_that_a_crash_cut_off_hides_no_other(tmp_path):
    bench = Bench(tmp_path, spend_per_hour_base_units=f.AMOUNT)
    (tmp_path / "signed.jsonl").write_bytes(b'{"at_ms": 1000000000000, "job_id": "jo')
    bench.begin()
    assert isinstance(bench.ask(settle("job-1")), Signed)
    bench.begin()
    assert bench.ask(settle("job-2")).code == "spending_cap"


def said(at_ms, job_id, pay):
    return json.dumps({"at_ms": at_ms, "shape": "settle", "job_id": job_id, "pay_base_units": pay}).encode() + b"\n"


def test_while_the_journal_is_moved_away_nothing_is_signed(tmp_path):
    bench = Bench(tmp_path, spend_per_hour_base_units=f.AMOUNT)
    path, away = tmp_path / "signed.jsonl", tmp_path / "signed.1"
    assert isinstance(bench.ask(settle("job-1")), Signed)
    path.rename(away)
    refused = bench.ask(settle("job-1"))
    assert (refused.code, "move it back" in refused.message) == ("signer_gone", True)
    Bench(tmp_path, spend_per_hour_base_units=f.AMOUNT)  # another signer begins a new one
    assert bench.ask(settle("job-1")).code == "signer_gone"
    away.rename(path)
    assert isinstance(bench.ask(settle("job-1")), Signed)
    assert bench.ask(settle("job-2")).code == "spending_cap"


def test_a_write_that_is_cut_short_is_gone_on_with(tmp_path, monkeypatch):
    bench, write = Bench(tmp_path, spend_per_hour_base_units=f.AMOUNT), os.write
    monkeypatch.setattr(os, "write", lambda file, what: write(file, what[:7]))
    assert isinstance(bench.ask(settle("job-1")), Signed)
    monkeypatch.undo()
    assert json.loads((tmp_path / "signed.jsonl").read_bytes())["job_id"] == "job-1"
    bench.begin()
    assert bench.ask(settle("job-2")).code == "spending_cap"


def test_a_line_that_another_signer_left_half_written_is_not_taken_for_the_begin_of_the_next(tmp_path):
    bench = Bench(tmp_path, spend_per_hour_base_units=f.AMOUNT)
    with open(tmp_path / "signed.jsonl", "ab") as journal:
        journal.write(b'{"at_ms": 1000000000000, "job_id": "jo')
    assert isinstance(bench.ask(settle("job-1")), Signed)
    assert bench.ask(settle("job-2")).code == "spending_cap"
    bench.begin()
    assert bench.ask(settle("job-2")).code == "spending_cap"


def test_a_line_of_the_future_keeps_nothing_used_up_for_more_than_an_hour(tmp_path):
    bench = Bench(tmp_path, spend_per_hour_base_units=3 * f.AMOUNT)
    day_ms = 24 * HOUR_MS
    with open(tmp_path / "signed.jsonl", "wb") as journal:
        journal.write(said(bench.now_ms + day_ms, "job-1", f.AMOUNT) + said(bench.now_ms, "job-2", 2 * f.AMOUNT))
    bench.begin()
    refused = bench.ask(settle("job-3"))
    assert (refused.code, "3601 s" in refused.message) == ("spending_cap", True)
    bench.now_ms += HOUR_MS
    assert isinstance(bench.ask(settle("job-3")), Signed)
    bench.now_ms -= day_ms  # the clock is set back: what was just signed is of the last hour, and not for a day
    assert isinstance(bench.ask(settle("job-4", pay=1)), Signed)
    bench.now_ms += HOUR_MS
    assert isinstance(bench.ask(settle("job-5")), Signed)
    assert isinstance(bench.ask(settle("job-6")), Signed)
    assert isinstance(bench.ask(settle("job-7")), Signed)
    assert bench.ask(settle("job-8", pay=1)).code == "spending_cap"


def test_what_is_used_up_is_the_sum_of_the_last_hour_whatever_was_signed_when(tmp_path):
    dice, now_ms, signed = random.Random(4), 1_800_000_000_000, []
    journal = Journal(tmp_path / "signed.jsonl", 50 * f.AMOUNT, now_ms)
    with journal.alone():
        for _ in range(2_000):
            now_ms += dice.randrange(60_000)
            escrow, pay = f"escrow-{dice.randrange(300)}", dice.randrange(1, f.AMOUNT)
            signed = [each for each in signed if each[0] > now_ms - HOUR_MS]
            newest: dict[str, int] = {}
            for _, each, paid in signed:
                newest[each] = max(newest.get(each, 0), paid)
            others = sum(paid for each, paid in newest.items() if each != escrow)
            terms = replace(f.terms(), escrow=escrow)
            if others + pay > 50 * f.AMOUNT:
                with pytest.raises(SettlementError, match="of it is free again in"):
                    journal.refuse_beyond_limit(terms, pay, now_ms)
                continue
            journal.refuse_beyond_limit(terms, pay, now_ms)
            signed = [(now_ms if each == escrow else at_ms, each, paid) for at_ms, each, paid in signed]
            signed.append((now_ms, escrow, pay))
            journal.add({"at_ms": now_ms, "job_id": "job-1", "escrow": escrow, "pay_base_units": pay})
    assert journal._spent == sum(spent.pay_base_units for spent in journal._hour.values())


def test_two_escrows_of_one_job_id_are_two_payments(tmp_path):
    bench = Bench(tmp_path, spend_per_hour_base_units=f.AMOUNT)
    assert isinstance(bench.ask(settle("job-1")), Signed)
    assert isinstance(bench.ask(settle("job-1")), Signed)
    assert bench.ask(settle("job-1", client=STRANGER)).code == "spending_cap"
    bench.begin()
    assert isinstance(bench.ask(settle("job-1")), Signed)
    assert bench.ask(settle("job-1", client=STRANGER)).code == "spending_cap"


def test_a_restart_remembers_the_whole_hour_however_much_was_signed_in_it(tmp_path):
    bench = Bench(tmp_path, spend_per_hour_base_units=f.AMOUNT)
    with open(tmp_path / "signed.jsonl", "wb") as journal:
        journal.writelines(said(bench.now_ms - 2 * HOUR_MS, f"old-{each}", f.AMOUNT) for each in range(10_000))
        journal.write(said(bench.now_ms - HOUR_MS // 2, "job-1", f.AMOUNT))
        journal.write(said(bench.now_ms - HOUR_MS // 4, "job-2", 0) * 200_000)  # 17 MB that spend nothing
    bench.begin()
    assert bench.ask(settle("job-3", pay=1)).code == "spending_cap"
    assert len(bench.keeper._journal._hour) < 10_000  # what is older was not all read
    bench.now_ms += HOUR_MS
    bench.begin()
    assert isinstance(bench.ask(settle("job-3")), Signed)


def test_an_answer_comes_for_every_question_also_one_that_cannot_be_answered(tmp_path, monkeypatch):
    bench = Bench(tmp_path, spend_per_hour_base_units=f.AMOUNT)
    refused = bench.ask(replace(settle(), blockhash="no blockhash"))
    assert (refused.code, "ParseHashError" in refused.message) == ("signer_refused", True)
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", raising(OSError(errno.ENOSPC, "No space left on device")))
        refused = bench.ask(settle())
    assert refused.code == "signer_gone"
    assert refused.message == "the signer cannot write its signed.jsonl (No space left on device)"
    assert isinstance(bench.ask(settle()), Signed)


def raising(error):
    def call(*_):
        raise error

    return call


def test_what_is_not_on_the_disk_is_not_given_away_and_the_link_goes_on(tmp_path, monkeypatch):
    bench, disk = Bench(tmp_path), {"full": True}
    questions, answers = [frame(Ask(each, settle(f"job-{each}"))) for each in (1, 2)], []
    fsync = os.fsync

    def full_once(file):
        if disk.pop("full", False):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    monkeypatch.setattr(os, "fsync", full_once)
    serve(lambda: questions.pop(0) if questions else b"", answers.append, bench.keeper, bench.keeper._journal.sync)
    first, second = (ANSWERED.decode(each[LENGTH_BYTES:]) for each in answers)
    assert (first.id, first.what.code, "No space left" in first.what.message) == (1, "signer_gone", True)
    assert (second.id, type(second.what)) == (2, Signed)


async def test_who_does_not_answer_is_left_and_connected_to_anew(tmp_path, monkeypatch):
    folder = tmp_path
    write_network(folder, network())
    links, mute = [], True
    keeper = Bench(tmp_path, spend_per_hour_base_units=f.AMOUNT).keeper

    async def serve_one(reader, writer):
        links.append(writer)
        while head := await reader.read(LENGTH_BYTES):  # a frame is written at once
            asked = ASKED.decode(await reader.readexactly(int.from_bytes(head, "big")))
            if mute and not isinstance(asked.what, Hello):
                continue
            writer.write(frame(keeper.answer(asked)))
        writer.close()

    async with await asyncio.start_unix_server(serve_one, folder / "signer.sock"):
        keys = await Keys.open(folder, str(folder / "signer.sock"))
        monkeypatch.setattr("cyxcentral.keys.ANSWER_WITHIN_S", 0.0)
        with pytest.raises(SettlementError, match="TimeoutError") as error:
            await keys.wallet.signed(settle())
        assert (error.value.code, keys.failing) == ("signer_gone", True)
        monkeypatch.undo()
        mute = False
        assert await keys.custody("alice")
        assert len(links) == 2 and not keys.failing
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", raising(OSError(errno.ENOSPC, "No space left on device")))
            with pytest.raises(SettlementError, match="cannot write its signed.jsonl"):
                await keys.wallet.signed(settle())
        assert await keys.custody("bob") and keys.failing  # that writes nothing
        assert await keys.wallet.signed(settle()) and not keys.failing
        await keys.close()


def test_only_keys_that_own_nothing_are_handed_over(tmp_path):
    welcome = Bench(tmp_path).ask(Hello())
    assert isinstance(welcome, Welcome)
    assert (welcome.address, welcome.platform) == (AUTHORITY.address, PLATFORM.address)
    money = {SEED.seed, *(SEED.child(purpose) for purpose in ("wallet", "platform", "sign", "custody:me"))}
    assert not money & set(welcome.keys.values())
    assert all(each not in msgspec.msgpack.encode(welcome) for each in money)


@pytest.mark.parametrize("number", [1, 2])
def test_the_key_for_commands_is_handed_over_with_the_platforms_word_for_it(tmp_path, number):
    given = Bench(tmp_path, command_key=number).ask(Hello()).commanding
    assert given == commanding(SEED, "n", number)
    assert (given.platform_key, given.key.number, given.seed) == (
        SEED.public_key,
        number,
        SEED.child(f"command-{number}"),
    )
    assert verify(SEED.public_key, command_key_bytes("n", given.key), given.key.signature)


async def test_a_signer_that_gives_no_key_for_commands_is_too_old(tmp_path):
    keeper = Bench(tmp_path).keeper

    async def serve_one(reader, writer):
        size = int.from_bytes(await reader.readexactly(LENGTH_BYTES), "big")
        asked = ASKED.decode(await reader.readexactly(size))
        welcome = keeper.answer(asked).what
        writer.write(frame(Answer(asked.id, Welcome(welcome.address, welcome.platform, welcome.keys))))
        await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(serve_one, tmp_path / "signer.sock"):
        with pytest.raises(SignerError, match="gives no key for commands: upgrade it first"):
            await Keys.open(tmp_path, str(tmp_path / "signer.sock"))


def test_a_central_of_another_platform_or_network_does_not_start():
    mine = Commander(commanding(SEED, "n", 1))
    for changes in ({}, {"platform_key": SEED.public_key}):
        _refuse_other_platform(network(**changes), mine)
    with pytest.raises(StartError, match="platform_key is abab.* but the public key of central.key is"):
        _refuse_other_platform(network(platform_key="ab" * 32), mine)
    with pytest.raises(StartError, match="network_id is 'n', but the signer's is 'other'"):
        _refuse_other_platform(network(), Commander(commanding(SEED, "other", 1)))


@pytest.fixture
def folder(tmp_path):
    write_network(tmp_path, network(spend_per_hour_base_units=f.AMOUNT))
    return tmp_path


async def test_a_signer_that_dies_is_started_again_with_the_next_question(folder):
    keys = await Keys.open(folder)
    first = await keys.wallet.signed(MakeMint(blockhash=BLOCKHASH, last_valid_block_height=9))
    child = keys._child
    child.send_signal(signal.SIGKILL)
    await child.wait()
    await asyncio.gather(keys._listening, return_exceptions=True)
    again = await keys.wallet.signed(MakeMint(blockhash=BLOCKHASH, last_valid_block_height=9))
    assert again == first and keys._child.pid != child.pid
    mine = await keys.custody("me")
    assert mine.address == Wallet(load_or_create(folder / "central.key").child("custody:me")).address
    await keys.close()
    assert keys._child is None


async def test_a_signer_that_nobody_waits_for_any_more_is_ended(folder, monkeypatch):
    begun, children, real = asyncio.Event(), [], Keys._connected

    async def connected(keys):
        writer = await real(keys)
        children.append(keys._child)
        begun.set()
        return writer

    monkeypatch.setattr(Keys, "_connected", connected)
    opening = asyncio.create_task(Keys.open(folder))
    await begun.wait()
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    assert children[0].returncode is not None


async def test_a_signer_whose_key_file_cannot_be_used_says_so(folder):
    load_or_create(folder / "central.key")
    (folder / "central.key").chmod(0o644)
    with pytest.raises(SignerError, match="chmod 600"):
        await Keys.open(folder)


async def test_a_sealed_key_is_opened_by_the_signer_with_a_passphrase_of_the_environment(folder, monkeypatch):
    keep(folder / "central.key", Identity(b"k" * 32), "correct horse")
    with pytest.raises(SignerError, match="CYX_PASSPHRASE"):
        await Keys.open(folder)
    monkeypatch.setenv("CYX_PASSPHRASE", "correct horse")
    keys = await Keys.open(folder)
    assert keys.wallet.address == Wallet(Identity(b"k" * 32).child("wallet")).address
    await keys.close()


async def test_a_signer_of_its_own_is_asked_through_its_socket(folder):
    path = folder / "signer.sock"
    with pytest.raises(SignerError, match="--socket"):
        await Keys.open(folder, str(path))
    command = [sys.executable, "-m", "cyxcentral.signer", "--dir", str(folder), "--socket", str(path)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert json.loads(await process.stdout.readline())["ready"]
    assert path.stat().st_mode & 0o007 == 0
    one, two = await Keys.open(folder, str(path)), await Keys.open(folder, str(path))
    shape = MakeMint(blockhash=BLOCKHASH, last_valid_block_height=9)
    assert await one.wallet.signed(shape) == await two.wallet.signed(shape)
    with pytest.raises(SettlementError, match="expected the authority"):
        await one.wallet.signed(settle())
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"\xff" * LENGTH_BYTES)
    assert await reader.read() == b""  # who does not speak as we do is not left waiting
    writer.close()
    process.kill()
    await process.wait()
    await asyncio.gather(one._listening, two._listening, return_exceptions=True)
    with pytest.raises(SettlementError, match="cannot be reached"):
        await one.wallet.signed(shape)
    await one.close()
    await two.close()


def holds(pid, secrets):
    """Which of these bytes are anywhere in the memory of a process."""
    found = set()
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            span, rights = line.split()[:2]
            if not rights.startswith("rw"):
                continue
            first, last = (int(each, 16) for each in span.split("-"))
            try:
                memory.seek(first)
                content = memory.read(last - first)
            except OSError:
                continue
            found |= {name for name, secret in secrets.items() if secret in content}
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads another process's memory in /proc")
async def test_no_key_of_the_platform_is_in_centrals_memory(tmp_path):
    async with LocalNetwork(tmp_path / "net", nodes=0) as running:
        keys = load_or_create(tmp_path / "net" / "central.key")
        secrets = {purpose: keys.child(purpose) for purpose in ("wallet", "platform", "nats-issuer")}
        secrets["seed"] = keys.seed
        central = running.process_ids["central"]
        [signer] = [
            int(pid)
            for pid in os.listdir("/proc")
            if pid.isdigit() and str(central) == parent_of(pid) and "cyxcentral.signer" in words_of(pid)
        ]
        assert {"seed", "wallet"} <= holds(signer, secrets)  # else the search would prove nothing
        assert holds(central, secrets) == {"nats-issuer"}  # which owns no money


def parent_of(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[1]
    except OSError:
        return ""


def words_of(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as line:
            return line.read()
    except OSError:
        return ""

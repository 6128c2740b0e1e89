"""The client against a fake central on a real broker: it follows without gap or duplicate, and pays once."""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

import cyxnet
from cyxcore import nn
from cyxcore.errors import DataError
from cyxcore.spec import ModelSpec
from cyxnet import artifacts, subjects
from cyxnet import messages as m
from cyxnet.broker import Broker, Passwords
from cyxnet.bus import ApiError, Bus, BusError, NobodyServes
from cyxnet.caller import retry_pause_s
from cyxnet.client import AsyncClient, DepositAlive, InsufficientFunds, NoModel, TermsMismatch
from cyxnet.codec import decode
from cyxnet.config import ConfigError
from cyxnet.escrow import DEADLINE_S, check_deposit
from cyxnet.follow import Merge
from cyxnet.outbox import KeptForLater
from cyxnet.solana import Settlement, SettlementError
from cyxnet.submitting import QUOTE_FRESH_S
from tests.doorkeeper import CENTRAL, door_of, opened
from tests.net.fake_api import FakeCentral

JOB = "digits-0123456789"
CYX = 10**9
TOKEN_PROGRAM = "TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    running = Broker.start(tmp_path_factory.mktemp("broker"), Passwords.fresh(CENTRAL))
    with door_of(running.url("client")):
        yield running
    running.stop()


@pytest.fixture(scope="module")
def chain_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("chain")
    command = [sys.executable, "-m", "cyxcentral.localchain", "--dir", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
        process.terminate()


@pytest.fixture
async def central(broker: Broker) -> AsyncIterator[FakeCentral]:
    bus = await Bus.connect(broker.url("edge"), name="fake-central")
    fake = FakeCentral(bus)
    await fake.serve()
    yield fake
    await bus.close()


@pytest.fixture
async def client(broker: Broker, tmp_path: Path) -> AsyncIterator[AsyncClient]:
    async with await AsyncClient.connect(tmp_path, url=broker.url("client")) as connected:
        connected.retry_delays_s = (0.01, 0.01)
        yield connected


@pytest.fixture
async def paying(central: FakeCentral, client: AsyncClient, chain_url: str) -> AsyncIterator[FakeCentral]:
    """The fake central on a real chain, the client's wallet with 5 CYX and fees."""
    async with Settlement(chain_url) as settlement:
        await settlement.airdrop(central.authority.address, 10**10)
        central.settlement, central.mint = settlement, await settlement.create_mint(central.authority)
        await client.faucet(5 * CYX)
        yield central


@pytest.fixture
def data_path(tmp_path: Path) -> Path:
    path = tmp_path / "data.csv"
    path.write_text("a,label\n1,0\n2,1\n")
    return path


def request_for(data_path: Path, amount_base_units: int = 2 * CYX) -> m.JobRequest:
    found = artifacts.describe(data_path)
    return m.JobRequest(
        name="Digits: a test!",
        model=ModelSpec(input=[1], layers=[{"kind": "Linear", "out_features": 2}]),
        dataset=m.ArtifactRef(sha256=found.sha256, size=found.size),
        amount_base_units=amount_base_units,
    )


async def collect(client: AsyncClient, job_id: str = JOB) -> list[m.Update]:
    async with asyncio.timeout(60), contextlib.aclosing(client.watch(job_id)) as updates:
        return [update async for update in updates]


def places(updates: list[m.Update]) -> list[tuple[str, int]]:
    return [(update.source, update.seq) for update in updates]


# -- following ------------------------------------------------------------------------------------------


async def test_a_job_that_has_ended_is_told_from_its_first_event(central: FakeCentral, client: AsyncClient) -> None:
    central.add_job(JOB)
    await central.emit(JOB, "Funded", {"signature": "x"})
    await central.emit(JOB, "epoch", {"epoch": 1}, "telemetry")
    await central.end(JOB)
    assert [update.kind for update in await collect(client)] == ["Funded", "epoch", "Settled"]


async def test_pages_are_read_until_there_are_no_more(central: FakeCentral, client: AsyncClient) -> None:
    central.add_job(JOB)
    central.page_limit = 7
    for number in range(30):
        await central.emit(JOB, "batch", {"step": number}, "telemetry")
    last = await central.end(JOB)
    told = await collect(client)
    assert [update.data.get("step") for update in told[:-1]] == list(range(30))
    assert told[-1] == last


async def test_what_happens_live_while_a_page_is_read_is_told_once(central: FakeCentral, client: AsyncClient) -> None:
    central.add_job(JOB)
    await central.emit(JOB, "Funded", {"signature": "x"}, live=False)

    async def race(job_id: str) -> None:
        """Before the first page leaves: its own update comes live too, and newer ones that it does not hold."""
        central.before_page = None
        await central.publish(central.updates[job_id][0])
        for number in range(5):
            await central.emit(job_id, "batch", {"step": number}, "telemetry")
        await central.end(job_id)

    central.before_page = race
    told = await collect(client)
    assert sorted(places(told)) == sorted(places(central.updates[JOB]))
    assert [update.kind for update in told] == ["Funded", *["batch"] * 5, "Settled"]


async def test_an_update_whose_live_message_was_lost_is_told_late_and_once(
    central: FakeCentral, client: AsyncClient
) -> None:
    central.add_job(JOB)
    watching = client.watch(JOB)
    first = asyncio.ensure_future(anext(watching))
    while not central.asked["job.updates"]:
        await asyncio.sleep(0)
    await central.emit(JOB, "batch", {"step": 1}, "telemetry")
    told = [await first]
    await central.emit(JOB, "batch", {"step": 2}, "telemetry", live=False)
    await central.emit(JOB, "batch", {"step": 3}, "telemetry")
    await central.end(JOB)
    async with asyncio.timeout(60):
        told += [update async for update in watching]
    assert sorted(places(told)) == sorted(places(central.updates[JOB]))
    assert [update.data.get("step") for update in told] == [1, 3, None, 2]


async def test_live_updates_that_nobody_reads_fill_no_memory(
    central: FakeCentral, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cyxnet.client.MOST_LIVE", 3)
    central.add_job(JOB)
    await central.emit(JOB, "Funded", {"signature": "x"})
    watching = client.watch(JOB)
    assert (await anext(watching)).kind == "Funded"
    for step in range(10):
        only_live = m.Update(job_id=JOB, source="telemetry", seq=100 + step, at_ms=0, kind="batch", data={"step": step})
        await central.publish(only_live)  # so what is passed over does not come with a page either
    await central.bus.round_trip()
    await client.bus.round_trip()
    await central.end(JOB, live=False)
    async with asyncio.timeout(60):
        told = [update async for update in watching]
    assert [update.data.get("step") for update in told if update.kind == "batch"] == [0, 1, 2]
    assert told[-1].kind == "Settled"


async def test_an_end_whose_live_message_was_lost_is_found_after_silence(
    central: FakeCentral, client: AsyncClient
) -> None:
    central.add_job(JOB)
    watching = client.watch(JOB)
    first = asyncio.ensure_future(anext(watching))
    while not central.asked["job.updates"]:
        await asyncio.sleep(0)
    await central.end(JOB, live=False)
    async with asyncio.timeout(60):
        assert (await first).kind == "Settled"
        assert [update async for update in watching] == []


async def test_a_status_that_runs_ahead_of_the_log_loses_nothing(central: FakeCentral, client: AsyncClient) -> None:
    central.add_job(JOB)
    await central.emit(JOB, "Funded", {"signature": "x"}, live=False)
    central.status[JOB] = "completed"

    async def settle_late(job_id: str) -> None:
        central.before_page = None
        await central.end(job_id, live=False)

    central.before_page = settle_late
    assert [update.kind for update in await collect(client)] == ["Funded", "Settled"]


async def test_watching_goes_on_after_the_broker_was_restarted(tmp_path: Path) -> None:
    passwords = Passwords.fresh(CENTRAL)
    first = Broker.start(tmp_path / "broker", passwords)
    system, _ = await opened(first.url("client"))
    core = await Bus.connect(first.url("edge"), name="fake-central")
    central = FakeCentral(core)
    await central.serve()
    central.add_job(JOB)
    await central.emit(JOB, "Funded", {"signature": "x"})
    try:
        async with await AsyncClient.connect(tmp_path, url=first.url("client")) as client:
            client.retry_delays_s = (0.2,) * 50
            watching = client.watch(JOB)
            assert (await anext(watching)).kind == "Funded"
            rest = asyncio.ensure_future(anext(watching))
            await asyncio.to_thread(first.stop)
            await central.emit(JOB, "epoch", {"epoch": 1}, "telemetry", live=False)  # said to nobody
            first = await asyncio.to_thread(Broker.start, tmp_path / "broker", passwords, first.port)
            async with asyncio.timeout(60):
                assert (await rest).kind == "epoch"
                await central.end(JOB, live=False)
                assert [update.kind async for update in watching] == ["Settled"]
    finally:
        await core.close()
        await system.close()
        first.stop()


async def test_a_prefix_is_watched_as_the_job_it_stands_for(central: FakeCentral, client: AsyncClient) -> None:
    central.add_job(JOB)
    await central.end(JOB)
    assert [update.job_id for update in await collect(client, "digits-01")] == [JOB]


async def test_watching_an_unknown_job_is_refused(central: FakeCentral, client: AsyncClient) -> None:
    with pytest.raises(ApiError) as caught:
        await collect(client, "nothing")
    assert caught.value.code == "unknown_job"


async def test_a_cancel_that_meets_an_update_is_not_lost(
    central: FakeCentral, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    central.add_job(JOB)
    await central.emit(JOB, "Funded", {"signature": "s"})
    told = asyncio.Event()

    async def follow() -> None:
        async for _ in client.watch(JOB):
            told.set()

    watching = asyncio.create_task(follow())
    await told.wait()
    told.clear()
    await central.emit(JOB, "Leased", {"attempt": 1})
    await told.wait()  # told live: it waits for the next one now

    def decode_and_cancel(*arguments: Any, **more: Any) -> Any:
        asyncio.get_running_loop().call_soon(watching.cancel)  # right behind the update that this returns
        return decode(*arguments, **more)

    monkeypatch.setattr("cyxnet.client.decode", decode_and_cancel)
    await central.emit(JOB, "Started", {"attempt": 1})
    await asyncio.wait({watching}, timeout=5)
    assert watching.cancelled()


async def test_a_cancel_that_a_request_has_dropped_is_raised(client: AsyncClient) -> None:
    asked = asyncio.Event()

    async def deaf() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            asked.set()
            await asyncio.Event().wait()
        return "an answer"

    asking = asyncio.create_task(client._persist(deaf))
    await asked.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_wait_returns_the_job_as_it_ended(central: FakeCentral, client: AsyncClient) -> None:
    central.add_job(JOB)
    await central.end(JOB, "failed")
    assert (await client.wait(JOB)).status == "failed"


async def test_wait_asks_again_when_a_central_answers_that_lags_behind(central, client, monkeypatch) -> None:
    # one central told the end, another, which was stopped for a moment, still said leased
    central.add_job(JOB)
    await central.end(JOB, "completed")
    answer, asked = client.job, []

    async def job(job_id: str) -> m.JobView:
        view = await answer(job_id)
        asked.append(view.status)
        return replace(view, status="leased") if len(asked) == 2 else view

    monkeypatch.setattr(client, "job", job)
    assert (await client.wait(JOB)).status == "completed"


@given(st.lists(st.tuples(st.sampled_from(["event", "telemetry"]), st.booleans(), st.booleans()), max_size=40))
def test_any_mix_of_live_and_pages_tells_each_update_once(steps: list[tuple[str, bool, bool]]) -> None:
    """steps: an update of a source, whether its live message arrives, whether a page is read afterwards."""
    merge, log, told = Merge(), [], []
    for seq, (source, live, page) in enumerate(steps, 1):
        update = m.Update(job_id=JOB, source=source, seq=seq, at_ms=0, kind="x", data={})  # type: ignore[arg-type]
        log.append(update)
        if live and merge.live(update):
            told.append(update)
        if page:
            told += merge.page([u for u in log if u.seq > merge.confirmed[u.source]])
    told += merge.page([u for u in log if u.seq > merge.confirmed[u.source]])
    assert sorted(places(told)) == sorted(places(log))


# -- submitting -----------------------------------------------------------------------------------------


async def test_a_submitted_job_is_paid_with_a_deposit_for_exactly_its_terms(
    paying: FakeCentral, client: AsyncClient, data_path: Path
) -> None:
    reply = await client.submit(request_for(data_path), data_path)
    payment = paying.submitted[reply.job_id].payment
    assert payment is not None
    assert check_deposit(payment.deposit.transaction, reply.terms) == payment.deposit.signature
    assert (reply.terms.amount_base_units, reply.terms.client) == (2 * CYX, client.purse.address)


@pytest.fixture
async def quoting(paying: FakeCentral, client: AsyncClient) -> FakeCentral:
    """The fake central, when its quotes say what to sign."""
    assert paying.settlement
    paying.blockhash, paying.lamports = await paying.settlement.recent_blockhash(), 10**9
    return paying


async def test_who_submits_the_same_again_asks_once_and_pays_each(
    quoting: FakeCentral, client: AsyncClient, data_path: Path
) -> None:
    job, told = request_for(data_path, CYX), []
    replies = [await client.submit(job, data_path, lambda *done: told.append(done)) for _ in range(4)]
    for reply in replies:
        payment = quoting.submitted[reply.job_id].payment
        assert payment and check_deposit(payment.deposit.transaction, reply.terms) == payment.deposit.signature
    assert len(quoting.submitted) == 4
    assert [quoting.asked[verb] for verb in ("network.info", "job.quote", "artifact.stat")] == [1, 1, 1]
    assert told[-3:] == [(job.dataset.size, job.dataset.size)] * 3
    await client.submit(job, data_path)  # with what the wallet had at the quote, five could be paid
    await client.submit(job, data_path)
    assert quoting.asked["job.quote"] == 2
    await client.prepare(job, data_path)  # who wants to see the terms sees those of now
    assert quoting.asked["job.quote"] == 3


async def test_another_job_on_the_same_data_takes_one_round_trip(
    quoting: FakeCentral, client: AsyncClient, data_path: Path
) -> None:
    await client.submit(request_for(data_path, CYX), data_path)
    reply = await client.submit(replace(request_for(data_path, 2 * CYX), priority=7), data_path)
    assert [quoting.asked[verb] for verb in ("job.quote", "artifact.stat", "job.submit")] == [1, 1, 2]
    payment = quoting.submitted[reply.job_id].payment
    assert payment and check_deposit(payment.deposit.transaction, reply.terms) == payment.deposit.signature
    assert reply.terms.amount_base_units == 2 * CYX


async def test_of_many_jobs_at_once_one_sends_their_data(
    quoting: FakeCentral, client: AsyncClient, data_path: Path
) -> None:
    request, told = request_for(data_path, CYX // 4), []
    prepared = [await client.prepare(request, data_path) for _ in range(8)]  # else one may come when all is sent
    placed = [client.place(each, lambda *done: told.append(done)) for each in prepared]
    assert len({reply.job_id for reply in await asyncio.gather(*placed)}) == 8
    assert [quoting.asked[verb] for verb in ("artifact.stat", "artifact.put", "job.submit")] == [1, 1, 8]
    assert told.count((request.dataset.size, request.dataset.size)) >= 8


async def test_of_many_jobs_at_once_whose_data_cannot_be_sent_one_tries(
    quoting: FakeCentral, client: AsyncClient, data_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, all_wait, tried, send = 0, asyncio.Event(), 0, client._send_data

    async def wait(*args: Any) -> None:
        nonlocal waiting
        waiting += 1
        if waiting == 8:
            all_wait.set()
        await send(*args)

    async def fail(*args: Any) -> m.ArtifactRef:
        nonlocal tried
        tried += 1  # each began anew, with all of its pauses, when the one before had given up
        await all_wait.wait()
        raise BusError("no answer")

    request = request_for(data_path, CYX // 4)
    with monkeypatch.context() as patched:
        patched.setattr(client, "_send_data", wait)
        patched.setattr(client, "upload", fail)
        said = await asyncio.gather(*[client.submit(request, data_path) for _ in range(8)], return_exceptions=True)
    assert [repr(error) for error in said] == ["BusError('no answer')"] * 8 and tried == 1
    await client.submit(request, data_path)
    assert len(quoting.submitted) == 1


async def test_another_file_under_the_same_name_is_sent(
    quoting: FakeCentral, client: AsyncClient, data_path: Path
) -> None:
    await client.submit(request_for(data_path, CYX), data_path)
    data_path.write_text("a,label\n3,1\n4,0\n")
    await client.submit(request := request_for(data_path, CYX), data_path)
    assert request.dataset.sha256 in quoting.manifests


async def test_a_file_that_is_not_the_data_of_its_job_is_refused_for_the_second_job_too(
    quoting: FakeCentral, client: AsyncClient, data_path: Path, tmp_path: Path
) -> None:
    await client.submit(request := request_for(data_path, CYX), data_path)
    other = tmp_path / "other.csv"
    other.write_text("a,label\n3,1\n4,0\n")
    with pytest.raises(DataError, match="nothing was paid"):
        await client.submit(request, other)
    assert len(quoting.submitted) == 1


async def test_an_amount_that_cannot_be_paid_is_refused_in_the_same_words_for_the_second_job(
    quoting: FakeCentral, client: AsyncClient, data_path: Path
) -> None:
    refused = []
    for _ in range(2):
        with pytest.raises(ApiError) as error:
            await client.submit(request_for(data_path, 0), data_path)
        refused.append(str(error.value))
        await client.submit(request_for(data_path, CYX), data_path)
    assert refused[0] == refused[1]


async def test_a_quote_that_is_old_is_asked_for_again(
    quoting: FakeCentral, client: AsyncClient, data_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = request_for(data_path, CYX)
    await client.submit(job, data_path)
    loop = asyncio.get_running_loop()
    later_s = loop.time() + QUOTE_FRESH_S
    monkeypatch.setattr("cyxnet.submitting._now_s", lambda: later_s)
    await client.submit(job, data_path)
    assert (quoting.asked["job.quote"], quoting.asked["artifact.stat"]) == (2, 2)


async def test_what_is_refused_with_the_quote_of_another_job_is_tried_with_a_new_one(
    quoting: FakeCentral, client: AsyncClient, data_path: Path
) -> None:
    job = request_for(data_path, CYX)
    await client.submit(job, data_path)
    quoting.manifests.clear()  # the data are gone
    reply = await client.submit(job, data_path)
    assert len(quoting.submitted) == 2 and job.dataset.sha256 in quoting.manifests
    assert quoting.submitted[reply.job_id].job_id == reply.job_id
    quoting.fee_offered = 9_000  # and the network has other terms
    quoting.manifests.clear()
    with pytest.raises(TermsMismatch, match="fee_basis_points 9000, expected 1000"):
        await client.submit(job, data_path)


def expired(ask: m.SubmitRequest) -> None:
    assert ask.payment
    raise ApiError("expired", f"deposit {ask.payment.deposit.signature}: its blockhash is not valid", 400)


async def test_a_job_that_is_refused_on_the_quote_of_another_is_offered_again_with_its_deposit(
    quoting: FakeCentral, client: AsyncClient, data_path: Path
) -> None:
    job = request_for(data_path, CYX)
    await client.submit(job, data_path)
    quoting.manifests.clear()  # the data are gone
    quoting.blockhash = ("1" * 32, 900)  # what a second deposit would be signed with
    reply = await client.submit(job, data_path)
    refused, taken = quoting.offered[1:]
    assert refused.job_id == taken.job_id == reply.job_id and refused.payment == taken.payment


async def test_a_deposit_is_signed_again_when_the_chain_proves_that_the_first_is_dead(
    quoting: FakeCentral, client: AsyncClient, data_path: Path
) -> None:
    quoting.blockhash = ("1" * 32, 0)
    quoting.before_submit = lambda ask: expired(ask) if len(quoting.offered) == 1 else None
    reply = await client.submit(request_for(data_path, CYX), data_path)
    first, second = quoting.offered
    assert first.payment and second.payment and first.payment != second.payment
    assert check_deposit(second.payment.deposit.transaction, reply.terms) == second.payment.deposit.signature


@pytest.mark.parametrize("last_valid", [0, None], ids=["a height that is long past", "the height"])
async def test_no_second_deposit_is_signed_while_the_chain_may_take_the_first(
    quoting: FakeCentral, client: AsyncClient, data_path: Path, last_valid: int | None
) -> None:
    blockhash, height = quoting.blockhash
    quoting.blockhash = (blockhash, height if last_valid is None else last_valid)
    quoting.before_submit = expired
    prepared = await client.prepare(request_for(data_path, CYX), data_path)
    for _ in range(2):
        with pytest.raises(DepositAlive, match=f"of {prepared.job_id} expired, but the chain may still take it"):
            await client.place(prepared)
    assert len(quoting.offered) == 6 and len({str(each.payment) for each in quoting.offered}) == 1


async def test_a_deposit_that_paid_although_central_calls_it_expired_is_the_last(
    quoting: FakeCentral, client: AsyncClient, data_path: Path
) -> None:
    assert quoting.settlement
    quoting.deadline_s = int(time.time()) + DEADLINE_S
    prepared = await client.prepare(request_for(data_path, CYX), data_path)
    quoting.before_submit = expired
    with pytest.raises(DepositAlive):
        await client.place(prepared)
    assert prepared.payment
    await quoting.settlement.succeed(prepared.payment.deposit, "deposit")
    with pytest.raises(DepositAlive, match=f"has paid: .* cyx refund {prepared.job_id}"):
        await client.place(prepared)
    quoting.before_submit = None  # the central that took it is heard of
    assert (await client.place(prepared)).job_id == prepared.job_id
    assert len({str(each.payment) for each in quoting.offered}) == 1


async def test_a_job_whose_deposit_nobody_can_be_asked_about_is_kept_with_it(
    quoting: FakeCentral, client: AsyncClient, data_path: Path
) -> None:
    job = request_for(data_path, CYX)
    quoting.before_submit, client.retry_delays_s = expired, ()
    client._settlement = Settlement("http://127.0.0.1:1")  # nobody is there
    with pytest.raises(KeptForLater, match="expired, and .* is kept, not lost"):
        await client.submit(job, data_path, keep=True)
    [kept] = client.kept()
    assert {str(each.payment) for each in quoting.offered} == {str(kept.payment)}


async def test_no_second_deposit_is_signed_when_another_one_has_opened_the_escrow(
    quoting: FakeCentral, client: AsyncClient, data_path: Path
) -> None:
    assert quoting.settlement
    quoting.deadline_s = int(time.time()) + DEADLINE_S
    quoting.blockhash, quoting.before_submit = ("1" * 32, 0), expired
    prepared = await client.prepare(request_for(data_path, CYX), data_path)
    other = await quoting.settlement.deposit_transaction(client.purse, prepared.quote.terms)
    await quoting.settlement.succeed(other, "deposit")
    with pytest.raises(DepositAlive, match=f"{prepared.job_id} already has its escrow .* another central"):
        await client.place(prepared)
    assert len({str(each.payment) for each in quoting.offered}) == 1


async def test_a_job_whose_answer_was_lost_for_good_is_kept_and_is_the_one_that_is_wanted_again(
    quoting: FakeCentral, client: AsyncClient, data_path: Path
) -> None:
    job = request_for(data_path, CYX)
    quoting.answers_lost["job.submit"] = 3
    with pytest.raises(KeptForLater, match="is kept, not lost") as silence:
        await client.submit(job, data_path, keep=True)
    [kept] = client.kept()
    assert kept.job_id == silence.value.job_id and kept.payment == quoting.submitted[kept.job_id].payment
    reply = await client.submit(job, data_path, keep=True)
    assert (reply.job_id, reply.duplicate, client.kept()) == (kept.job_id, True, [])
    other = await client.submit(job, data_path, keep=True)
    assert other.job_id != kept.job_id and not other.duplicate


def busy(ask: m.SubmitRequest) -> None:
    raise ApiError("busy", "too much at once", 503)


@pytest.mark.parametrize("dead", [False, True])
async def test_a_kept_job_is_sent_with_the_deposit_that_was_signed_for_it_as_long_as_that_may_land(
    quoting: FakeCentral, client: AsyncClient, data_path: Path, dead: bool
) -> None:
    taken, nobodys = quoting.blockhash, ("1" * 32, 0)
    quoting.blockhash, quoting.before_submit = nobodys if dead else taken, busy
    with pytest.raises(KeptForLater):
        await client.submit(request_for(data_path, CYX), data_path, keep=True)
    quoting.blockhash, quoting.before_submit = taken if dead else nobodys, expired
    [kept] = client.kept()
    with pytest.raises(DepositAlive):
        await client.send_kept(kept)
    [kept] = client.kept()
    quoting.before_submit = None
    reply = await client.send_kept(kept)
    first, *_, last = quoting.offered
    assert (first.job_id, first.payment != last.payment) == (reply.job_id, dead)
    assert kept.payment == last.payment and client.kept() == []


async def test_a_job_that_is_refused_after_a_try_that_nobody_answered_is_kept_with_its_deposit_and_offered_again(
    quoting: FakeCentral, client: AsyncClient, data_path: Path
) -> None:
    job, no = request_for(data_path, CYX), ApiError("price_expired", "the price expired 999 s ago", 409)
    answers: list[ApiError] = [ApiError("append_unknown", "the log did not answer", 503), no]

    def answer(ask: m.SubmitRequest) -> None:
        if answers:
            raise answers.pop(0)

    quoting.before_submit = answer
    with pytest.raises(KeptForLater, match="expired 999 s ago; a try that nobody answered may have been taken"):
        await client.submit(job, data_path, keep=True)
    [kept] = client.kept()
    answers.append(no)
    with pytest.raises(ApiError, match="999 s ago; its deposit may still land; submit the same file again"):
        await client.send_kept(kept)
    assert client.kept() == [kept]
    assert (await client.submit(job, data_path, keep=True)).job_id == kept.job_id
    assert {str((each.job_id, each.payment)) for each in quoting.offered} == {str((kept.job_id, kept.payment))}
    assert len(quoting.offered) == 4 and client.kept() == []


async def test_what_became_of_the_deposit_of_a_kept_job_whose_price_is_over_is_said(
    quoting: FakeCentral, client: AsyncClient, data_path: Path
) -> None:
    assert quoting.settlement
    quoting.deadline_s = int(time.time()) + DEADLINE_S
    client.retry_delays_s = ()
    answers = [busy, price_over, price_over]
    quoting.before_submit = lambda ask: answers.pop(0)(ask)
    with pytest.raises(KeptForLater):
        await client.submit(request_for(data_path, CYX), data_path, keep=True)
    [kept] = client.kept()
    assert kept.payment
    await quoting.settlement.succeed(kept.payment.deposit, "deposit")
    with pytest.raises(ApiError, match=f"its deposit has paid: .* cyx refund {kept.job_id}"):
        await client.send_kept(kept)
    assert client.kept() == [kept]
    settlement, client._settlement = client._settlement, Settlement("http://127.0.0.1:1")  # nobody is there
    told = await client._of_an_old_price(ApiError("price_expired", "over", 409), kept.job_id, kept.payment)
    assert "over; what became of its deposit is not known" in str(told)
    await client._settlement.close()
    client._settlement = settlement


def price_over(ask: m.SubmitRequest) -> None:
    raise ApiError("price_expired", "the price expired 999 s ago", 409)


@pytest.mark.parametrize("first", [ApiError("busy", "too much at once", 503), NobodyServes("nobody serves it")])
async def test_a_job_that_was_heard_by_nobody_before_it_was_refused_is_not_kept(
    quoting: FakeCentral, client: AsyncClient, data_path: Path, monkeypatch: pytest.MonkeyPatch, first: Exception
) -> None:
    answers = [first, ApiError("insufficient_funds", "too little", 402)]
    ask = client.bus.ask

    async def answered(subject: str, *args: object, **options: object) -> object:
        if subject.endswith("job.submit"):
            raise answers.pop(0)
        return await ask(subject, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(client.bus, "ask", answered)
    with pytest.raises(ApiError, match="too little"):
        await client.submit(request_for(data_path, CYX), data_path, keep=True)
    assert answers == [] and client.kept() == []


async def test_a_job_that_was_refused_is_not_kept(quoting: FakeCentral, client: AsyncClient, data_path: Path) -> None:
    with pytest.raises(InsufficientFunds):
        await client.submit(request_for(data_path, 6 * CYX), data_path, keep=True)
    assert client.kept() == []
    with pytest.raises(ConfigError, match="no folder, so no outbox"):
        await AsyncClient(client.bus, client.keys, client.caller).submit(request_for(data_path), data_path, keep=True)


async def test_a_wish_for_test_money_whose_answer_was_lost_is_the_same_wish_in_every_try(
    paying: FakeCentral, client: AsyncClient
) -> None:
    paying.faucet_asked.clear()
    paying.answers_lost["wallet.faucet"] = 1
    await client.faucet(CYX)
    first, again = paying.faucet_asked
    assert first == again and first.request_id
    await client.faucet(CYX)
    assert paying.faucet_asked[-1].request_id != first.request_id


async def test_the_data_arrives_before_the_job(paying: FakeCentral, client: AsyncClient, data_path: Path) -> None:
    reply = await client.submit(request_for(data_path), data_path)
    manifest = paying.manifests[paying.submitted[reply.job_id].job.dataset.sha256]
    assert b"".join(paying.chunks[digest] for digest in manifest.chunks) == data_path.read_bytes()


async def test_a_submit_whose_answer_was_lost_is_repeated_and_makes_one_job(
    paying: FakeCentral, client: AsyncClient, data_path: Path
) -> None:
    paying.answers_lost["job.submit"] = 1
    reply = await client.submit(request_for(data_path), data_path)
    assert (list(paying.submitted), reply.duplicate, paying.asked["job.submit"]) == ([reply.job_id], True, 2)


async def test_a_job_that_is_placed_again_carries_the_same_deposit(
    paying: FakeCentral, client: AsyncClient, data_path: Path
) -> None:
    prepared = await client.prepare(request_for(data_path), data_path)
    await client.place(prepared)
    first = paying.submitted[prepared.job_id]
    assert (await client.place(prepared)).duplicate
    assert paying.submitted[prepared.job_id] == first


async def test_a_job_that_costs_more_than_the_wallet_holds_is_stopped_before_the_upload(
    paying: FakeCentral, client: AsyncClient, data_path: Path
) -> None:
    with pytest.raises(InsufficientFunds, match=r"costs 5\.000000001 CYX.*holds 5 CYX; run: cyx wallet --faucet"):
        await client.submit(request_for(data_path, 5 * CYX + 1), data_path)
    assert not paying.chunks


async def test_data_that_changed_after_the_check_is_not_paid_for(
    paying: FakeCentral, client: AsyncClient, data_path: Path
) -> None:
    prepared = await client.prepare(request_for(data_path), data_path)
    data_path.write_text("a,label\n3,1\n4,0\n")
    with pytest.raises(DataError, match="changed after it was checked"):
        await client.place(prepared)
    assert prepared.payment is None and not paying.submitted


async def test_terms_that_differ_from_the_networks_are_not_signed(
    central: FakeCentral, client: AsyncClient, data_path: Path
) -> None:
    central.fee_offered = 9_000
    with pytest.raises(TermsMismatch, match="fee_basis_points 9000, expected 1000"):
        await client.submit(request_for(data_path), data_path)
    assert not central.submitted


async def test_nothing_is_paid_into_a_program_that_is_not_the_escrow_program(
    paying: FakeCentral, client: AsyncClient, data_path: Path
) -> None:
    paying.program = TOKEN_PROGRAM
    with pytest.raises(SettlementError, match=f"expected the escrow program .*at {TOKEN_PROGRAM}"):
        await client.submit(request_for(data_path), data_path)
    assert not paying.submitted


async def test_an_upload_that_broke_goes_on_with_what_is_missing(
    central: FakeCentral, client: AsyncClient, tmp_path: Path
) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(b"".join(bytes([n]) * artifacts.CHUNK_BYTES for n in range(4)))
    central.answers_lost["artifact.put"] = 2
    ref = await client.upload(path)
    assert len(central.manifests[ref.sha256].chunks) == 4


async def test_a_model_is_downloaded_whole(central: FakeCentral, client: AsyncClient, tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    central.add_job(JOB)
    view = central.view(JOB)
    view.model = central.store(content)
    central.views[JOB] = view
    await client.download(JOB, str(tmp_path / "model.bin"))
    assert (tmp_path / "model.bin").read_bytes() == content


async def test_a_job_without_a_model_says_why(central: FakeCentral, client: AsyncClient, tmp_path: Path) -> None:
    central.add_job(JOB)
    with pytest.raises(NoModel, match=f"{JOB} is queued and has no model; wait"):
        await client.download(JOB, tmp_path / "model.bin")


# -- the world fails ------------------------------------------------------------------------------------


async def test_when_nobody_serves_the_error_says_so_after_every_try(client: AsyncClient) -> None:
    with pytest.raises(BusError, match="nobody serves"):
        await client.info()


async def test_each_long_pause_before_another_try_is_told(client: AsyncClient) -> None:
    told: list[float] = []
    client.retry_delays_s = (0.0, 1.0)
    client.on_retry = lambda why, pause_s: told.append(pause_s)
    with pytest.raises(BusError):
        await client.info()
    assert told == [1.0]


async def test_a_folder_without_a_network_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cyx up"):
        await AsyncClient.connect(tmp_path / "empty")


async def test_a_broker_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(BusError, match="no Cyx broker answers at 127.0.0.1:9"):
        await AsyncClient.connect(tmp_path, url="nats://client:secret@127.0.0.1:9")


@pytest.mark.parametrize(
    ("error", "pause_s"),
    [
        (BusError("no answer"), 2.0),
        (ApiError("busy", "later", 429, retry_after_ms=5000), 5.0),
        (ApiError("append_unknown", "?", 503), 2.0),
        (ApiError("unknown_job", "no", 404), None),
        (ValueError(), None),
    ],
)
def test_only_silence_and_busyness_are_tried_again(error: Exception, pause_s: float | None) -> None:
    assert retry_pause_s(error, 2.0) == pause_s


def test_a_price_that_expired_is_sent_twice_more_and_not_for_half_a_minute():
    expired = ApiError("price_expired", "the price expired 9 s ago", 503)
    assert [retry_pause_s(expired, delay_s) for delay_s in (0.1, 1.0, 2.0, 4.0)] == [0.1, 1.0, None, None]


@pytest.mark.parametrize(
    ("name", "slug"), [("Digits: a test!", "digits-a-test"), ("日本", "job"), ("x" * 90, "x" * 40), ("--", "job")]
)
def test_a_job_id_is_the_name_and_ten_random_digits(name: str, slug: str) -> None:
    job_id = subjects.new_job_id(name)
    assert job_id.startswith(f"{slug}-") and len(job_id) == len(slug) + 11 and job_id != subjects.new_job_id(name)


# -- without async --------------------------------------------------------------------------------------


async def test_the_blocking_client_submits_and_follows(
    paying: FakeCentral, client: AsyncClient, broker: Broker, tmp_path: Path, data_path: Path
) -> None:
    def work() -> tuple[str, list[str], str]:
        with cyxnet.Client(tmp_path, url=broker.url("client")) as blocking:  # the same folder: the same wallet
            job = blocking.submit(request_for(data_path), data_path)
            future = asyncio.run_coroutine_threadsafe(paying.end(job.id), loop)
            future.result()
            return job.id, [update.kind for update in job.watch()], job.wait().status

    loop = asyncio.get_running_loop()
    job_id, kinds, status = await asyncio.to_thread(work)
    assert (job_id in paying.submitted, kinds, status) == (True, ["Settled"], "completed")


async def test_the_blocking_client_submits_a_module_with_arrays(
    paying: FakeCentral, client: AsyncClient, broker: Broker, tmp_path: Path
) -> None:
    (tmp_path / "data.csv").write_text("a,label\n1,0\n2,1\n3,0\n4,1\n")
    (tmp_path / "tiny.toml").write_text(
        'name = "tiny"\namount = "1"\ndata = { path = "data.csv" }\n'
        'model = { layers = [{ kind = "Linear", out_features = 2 }] }\n'
    )

    def work() -> tuple[str, str]:
        with cyxnet.Client(tmp_path, url=broker.url("client")) as blocking:
            with pytest.warns(UserWarning, match="module: batch_size 32 is more than the 4 rows"):
                job = blocking.submit(nn.Linear(1, 2), ([[1.0], [2.0], [3.0], [4.0]], [0, 1, 0, 1]), "1")
            with pytest.warns(UserWarning, match="tiny: batch_size 32 is more than"):
                blocking.submit(tmp_path / "tiny.toml")
            with pytest.raises(TypeError, match="arrays go with a module"):
                blocking.submit(request_for(tmp_path / "client.key"), ([[1.0]], [0]))
            with pytest.raises(TypeError, match="expected the path of a job file, .* got int"):
                blocking.submit(3)
            with pytest.raises(TypeError, match="data goes with a module or a JobRequest; a job file names its own"):
                blocking.submit(tmp_path / "tiny.toml", tmp_path / "data.csv")
            with pytest.raises(TypeError, match="keep goes with a job file"):
                blocking.submit(nn.Linear(1, 2), ([[1.0]], [0]), "1", keep=True)
            paying.before_submit, blocking._client.retry_delays_s = busy, (0.01,)
            with pytest.raises(KeptForLater), pytest.warns(UserWarning, match="tiny: batch_size"):
                blocking.submit(tmp_path / "tiny.toml", keep=True)
            paying.before_submit = None
            [kept] = blocking.kept()
            blocking.forget_kept(replace(kept, job_id="another-0123456789"))
            assert blocking.send_kept(kept).id == kept.job_id and blocking.kept() == []
            shown = repr(blocking)
        return job.id, f"{shown} {blocking!r}"

    job_id, shown = await asyncio.to_thread(work)
    assert paying.submitted[job_id].job.data.target == "y"
    assert shown == f"Client({client.caller!r}) Client({client.caller!r}, closed)"


async def test_data_that_was_packed_for_a_job_file_lies_in_the_folder_as_long_as_the_job_waits(
    paying: FakeCentral, broker: Broker, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", np.arange(8, dtype=np.float32).reshape(4, 2))
    np.save(tmp_path / "y.npy", np.array([0, 1, 0, 1]))
    (tmp_path / "tiny.toml").write_text(
        'name = "tiny"\namount = "1"\ndata = { path = "x.npy", target_path = "y.npy" }\n'
        'training = { batch_size = 2 }\nmodel = { layers = [{ kind = "Linear", out_features = 2 }] }\n'
    )
    packed = tmp_path / "packed"

    def work() -> None:
        with cyxnet.Client(tmp_path, url=broker.url("client")) as blocking:
            blocking.submit(tmp_path / "tiny.toml")
            assert list(packed.iterdir()) == []
            paying.before_submit, blocking._client.retry_delays_s = busy, ()
            with pytest.raises(KeptForLater):
                blocking.submit(tmp_path / "tiny.toml", keep=True)
            [kept] = blocking.kept()
            assert Path(kept.data_path).is_relative_to(packed) and Path(kept.data_path).is_file()
            paying.before_submit = None
            blocking.send_kept(kept)
            assert list(packed.iterdir()) == []

    await asyncio.to_thread(work)


def test_a_blocking_client_without_a_network_leaves_no_thread(tmp_path: Path) -> None:
    import threading

    with pytest.raises(ConfigError):
        cyxnet.Client(tmp_path)
    assert not [thread for thread in threading.enumerate() if thread.name == "cyx-client"]

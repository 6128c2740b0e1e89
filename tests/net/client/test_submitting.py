"""Submitting jobs: each is paid once, and kept as long as nobody knows what became of it."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from cyxcore.errors import DataError
from cyxnet import artifacts
from cyxnet import messages as m
from cyxnet.bus import ApiError, BusError, NobodyServes
from cyxnet.client import AsyncClient, DepositAlive, InsufficientFunds, TermsMismatch
from cyxnet.config import ConfigError
from cyxnet.escrow import DEADLINE_S, check_deposit
from cyxnet.outbox import KeptForLater
from cyxnet.solana import Settlement, SettlementError
from cyxnet.submitting import QUOTE_FRESH_S
from tests.net.client.requests import CYX, busy, request_for
from tests.net.fake_api import NODE, FakeCentral

TOKEN_PROGRAM = "TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA"


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
    quoting: FakeCentral, client: AsyncClient, data_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cyxnet.submitting._now_s", lambda: 1e3)  # all within one tick of the clock
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
        patched.setattr("cyxnet.submitting._now_s", lambda: 1e3)  # all within one tick of the clock
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


async def test_a_job_whose_submit_is_stopped_before_it_is_answered_is_kept_and_is_the_one_that_is_wanted_again(
    quoting: FakeCentral, client: AsyncClient, data_path: Path
) -> None:
    job = request_for(data_path, CYX)
    asking = asyncio.create_task(client.submit(job, data_path, keep=True))
    quoting.before_submit = lambda ask: asking.cancel() and None
    with pytest.raises(asyncio.CancelledError):
        await asking
    [kept] = client.kept()
    assert kept.payment == quoting.offered[0].payment and kept.reason == "it was stopped before it was answered"
    quoting.before_submit = None
    reply = await client.submit(job, data_path, keep=True)
    assert (reply.job_id, reply.duplicate, client.kept()) == (kept.job_id, True, [])
    assert len(quoting.submitted) == 1


async def test_of_a_job_whose_submit_is_stopped_before_it_is_offered_nothing_is_kept(
    quoting: FakeCentral, client: AsyncClient, data_path: Path
) -> None:
    def stop(done: int, total: int) -> None:
        asking.cancel()

    asking = asyncio.create_task(client.submit(request_for(data_path, CYX), data_path, stop, keep=True))
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert client.kept() == quoting.offered == []


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


async def test_the_node_of_a_job_may_be_called_by_its_name_and_is_asked_for_by_its_id(
    quoting: FakeCentral, client: AsyncClient, data_path: Path
) -> None:
    for called in (NODE.name, NODE.node_id[:8], NODE.node_id):
        await client.submit(replace(request_for(data_path, CYX), needs=m.Needs(node_id=called)), data_path)
    assert {each.job.needs.node_id for each in quoting.offered} == {NODE.node_id}
    assert quoting.asked["node.list"] == 2  # nobody looks for a node whose whole id is said
    with pytest.raises(ApiError, match="no node is called shed; see: cyx nodes"):
        await client.submit(replace(request_for(data_path, CYX), needs=m.Needs(node_id="shed")), data_path)
    assert len(quoting.offered) == 3


async def test_a_job_whose_client_is_thrown_out_before_it_is_answered_is_kept_with_its_deposit(
    quoting: FakeCentral, client: AsyncClient, data_path: Path
) -> None:
    quoting.before_submit = lambda ask: client.bus._turned_away("the broker does not let you in")
    with pytest.raises(KeptForLater, match="does not let you in; a try that nobody answered may have been taken"):
        await client.submit(request_for(data_path, CYX), data_path, keep=True)
    [kept] = client.kept()
    assert kept.payment == quoting.offered[0].payment


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

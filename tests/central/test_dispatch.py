"""Leases against a real broker: one or two centrals of one log, and a node made of its words alone."""

import asyncio
import itertools

import pytest
from msgspec.structs import replace

from cyxcentral import dispatch, jobrules, jobs, nodes, schedule
from cyxcentral.machine import Machine
from cyxcore.errors import CyxError
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.bus import ApiError, Bus, BusError
from cyxnet.credentials import as_node
from cyxnet.identity import Identity
from tests.central import facts as f
from tests.central.centrals import (
    KEY,
    LEASE_MS,
    NEXT_SESSION,
    NODE,
    SESSION,
    SmallCentral,
    behind,
    completed,
    damage,
    heartbeat,
    kinds_of,
    leased,
    register,
    started,
    stored_model,
    stored_state,
)

# -- several centrals ------------------------------------------------------------------------------------


async def test_a_central_that_lags_does_not_stop_a_run_that_another_one_has_just_leased(central, other):
    # both hear every heartbeat and the node takes the first answer: it killed its run
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED)
    go_on = await behind(other, central)
    await central.say(subjects.job_event("job-1"), leased())
    asking = asyncio.create_task(other.dispatch._heartbeat(heartbeat(("job-1", 1))))
    await other.edge.round_trip()
    await go_on()
    reply = await asking
    assert (reply.known, reply.stop) == (True, [])


async def test_a_central_that_lags_does_not_fence_the_holder_of_a_new_lease(central, other):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED)
    go_on = await behind(other, central)
    await central.say(subjects.job_event("job-1"), leased())
    asking = asyncio.create_task(other.reports.started(started()))
    await other.edge.round_trip()
    await go_on()
    assert (await asking).accepted


@pytest.mark.parametrize("fault", ["signature", "artifact", "text"])
async def test_a_completion_is_checked_by_a_central_that_did_not_know_its_lease_when_it_came(
    central, other, tmp_path, fault
):
    model = await stored_model(central.blobs, tmp_path)
    said = completed(replace(model, sha256="e" * 64) if fault == "artifact" else model)
    if fault == "signature":
        said = replace(said, signature="0" * 128)
    if fault == "text":
        said = replace(said, summary=replace(said.summary, numerics="n" * 1000))
        said = replace(said, signature=KEY.sign(m.completion_bytes(said)))
    await refused_behind(central, other, said, "completed")


@pytest.mark.parametrize("fault", ["signature", "artifact"])
async def test_a_checkpoint_is_checked_by_a_central_that_did_not_know_its_lease_when_it_came(
    central, other, tmp_path, fault
):
    model = await stored_model(central.blobs, tmp_path)
    nowhere = replace(model, sha256="e" * 64)
    said = stored_state(nowhere) if fault == "artifact" else stored_state(model, signed_step=4)
    await refused_behind(central, other, said, "checkpoint")


async def refused_behind(central, other, said, verb):
    """`other` hears the report before it has read of the lease: it is refused, and nothing is recorded."""
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED)
    go_on = await behind(other, central)
    for event in (leased(), m.Started(attempt=1)):
        await central.say(subjects.job_event("job-1"), event)
    asking = asyncio.create_task(getattr(other.reports, verb)(said))
    await other.edge.round_trip()
    await go_on()
    with pytest.raises(CyxError):
        await asking
    assert await kinds_of(central) == ["Submitted", "Funded", "Leased", "Started"]


async def test_a_report_whose_lease_comes_to_be_known_only_after_the_checks_is_to_be_said_again(
    central, tmp_path, monkeypatch
):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED)
    model = await stored_model(central.blobs, tmp_path)
    await central.say(subjects.job_event("job-1"), leased())
    await central.say(subjects.job_event("job-1"), m.Started(attempt=1))
    answers = iter([False, False])  # before and after it has caught up; then the lease is there
    monkeypatch.setattr(central.dispatch, "holds", lambda *of: next(answers, True))
    with pytest.raises(ApiError, match="say it again") as refused:
        await central.reports.completed(replace(completed(model), signature="0" * 128))
    assert refused.value.status == 503
    assert "Completed" not in await kinds_of(central)


async def test_a_report_that_every_central_hears_is_recorded_once_and_accepted_by_all(central, other, tmp_path):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased())
    await other.log.catch_up()
    model = await stored_model(central.blobs, tmp_path)
    for say in ("started", "completed"):
        said = started() if say == "started" else completed(model)
        replies = await asyncio.gather(*(getattr(each.reports, say)(said) for each in (central, other, central)))
        assert [reply.accepted for reply in replies] == [True] * 3
    assert await kinds_of(central) == ["Submitted", "Funded", "Leased", "Started", "Completed"]


async def submit(central, job_id):
    event = f.submitted(job_id)
    assert await central.dispatch.submit(job_id, lambda: None if job_id in central.world.jobs else event) == event
    await central.until(lambda: not central.dispatch._leasing_at_once)


async def test_a_job_that_somebody_can_take_at_once_is_leased_right_behind_its_submission(central):
    await central.say(subjects.node_event(NODE), f.registered(NODE, max_runs=1))
    await submit(central, "job-1")
    await submit(central, "job-2")  # and for this one there is no room
    assert [central.world.jobs[name].status for name in ("job-1", "job-2")] == ["leased", "funding"]
    assert await kinds_of(central) == ["Submitted", "Leased"]


async def test_a_job_is_not_leased_at_once_before_those_that_wait(central):
    await central.job("job-1")
    await central.say(subjects.node_event(NODE), f.registered(NODE, max_runs=1))
    await submit(central, "job-2")
    assert [central.world.jobs[name].status for name in ("job-1", "job-2")] == ["funding", "funding"]


async def test_a_node_that_another_central_filled_meanwhile_is_not_leased_again(central, other):
    await central.dispatch._register(register())
    for job_id in ("job-1", "job-2"):
        await central.job(job_id, f.FUNDED)
    await other.log.catch_up()
    choice = schedule.Assignment(job_id="job-2", node_id=NODE, explanation={})
    assert other.dispatch._lease(choice) is not None
    await central.say(subjects.job_event("job-1"), leased())
    await other.log.catch_up()
    assert other.dispatch._lease(choice) is None


# -- sessions --------------------------------------------------------------------------------------------


async def test_a_node_that_comes_back_after_a_long_silence_is_not_lost_again_at_once(scheduling):
    # its old silence was counted against the new registration, which then was lost before its first heartbeat
    await scheduling.dispatch._register(register())
    await scheduling.dispatch._sweep()  # it has a full lease from here on
    scheduling.dispatch._heard_ms[NODE] -= 2 * LEASE_MS
    await scheduling.dispatch._sweep()
    assert not scheduling.world.nodes[NODE].online
    await scheduling.dispatch._register(register(NEXT_SESSION))
    await scheduling.dispatch._sweep()
    assert scheduling.world.nodes[NODE].online


async def stands_still(central, ms=2 * LEASE_MS):
    """As if the process, or its link to the broker, had done nothing for a while."""
    after = central.dispatch._machine.monotonic_ms() + ms
    central.dispatch._machine = Machine(monotonic_ms=lambda: after)


async def test_a_central_that_could_not_hear_for_a_lease_declares_nobody_lost(central):
    # stopped, or cut off from the broker: all nodes looked silent, and every run on them was given away
    await central.dispatch._register(register())
    await central.dispatch._sweep()
    await stands_still(central)
    await central.dispatch._sweep()
    assert central.world.nodes[NODE].online


async def test_a_node_that_stays_silent_while_central_listens_is_lost_a_lease_later(central):
    await central.dispatch._register(register())
    await central.dispatch._sweep()
    await stands_still(central)
    for _ in range(4):
        await central.dispatch._sweep()
        await stands_still(central, LEASE_MS * 2 / 5)
    assert not central.world.nodes[NODE].online


async def test_a_central_without_its_broker_declares_nobody_lost(central, broker, monkeypatch):
    await central.dispatch._register(register())
    await central.dispatch._sweep()
    await stands_still(central)
    broker.stop()
    monkeypatch.setattr("cyxnet.bus.REQUEST_TIMEOUT_S", 0.1)  # nobody answers
    with pytest.raises(BusError):
        await central.dispatch._sweep()
    assert central.world.nodes[NODE].online


async def test_a_central_whose_link_to_the_nodes_is_gone_declares_nobody_lost(central):
    # a round trip returned at once then: the log, which has a link of its own, took the loss of every node
    await central.dispatch._register(register())
    await central.dispatch._sweep()
    await stands_still(central)
    await central.edge._nc._process_op_err(OSError("the link broke"))
    for _ in range(4):
        assert not central.edge.connected
        with pytest.raises(BusError, match="the link to the broker is gone"):
            await central.dispatch._sweep()
        await stands_still(central, LEASE_MS * 2 / 5)
    assert central.world.nodes[NODE].online


async def test_what_holds_scheduling_up_is_logged_once_when_it_begins_and_once_when_it_ends(scheduling, monkeypatch):
    said, tried, over = [], asyncio.Queue(), asyncio.Event()

    def keep(words, *of):
        said.append(words % of)
        if "goes on" in words:
            over.set()

    async def sweep(changed=None):
        tried.put_nowait(None)
        if not over.is_set() and tried.qsize() < 3:
            raise BusError("nobody answers")

    monkeypatch.setattr(dispatch.log, "warning", keep)
    monkeypatch.setattr(dispatch, "HELD_UP_PAUSE_S", 0.001)
    monkeypatch.setattr(scheduling.dispatch, "_sweep", sweep)
    scheduling.dispatch.happened("")
    await asyncio.wait_for(over.wait(), 60)
    assert said == ["scheduling is held up: nobody answers", "scheduling goes on"]


async def test_a_node_that_registers_at_another_central_has_a_full_lease_at_this_one(central, other):
    # this central counted the silence before the registration that it had only read of, and lost the node at once
    await central.dispatch._register(register())
    await central.dispatch._sweep()
    central.dispatch._heard_ms[NODE] -= 2 * LEASE_MS
    await other.log.catch_up()
    await other.dispatch._goodbye(m.Goodbye(node_id=NODE, session=SESSION))
    await other.dispatch._register(register(NEXT_SESSION))
    await central.log.catch_up()
    await central.dispatch._sweep()
    assert central.world.nodes[NODE].online


async def test_a_node_that_is_heard_while_its_loss_is_being_appended_is_not_lost(central, monkeypatch):
    # the append took long (no leader), or others were lost first: what had been heard meanwhile did not count
    await central.dispatch._register(register())
    central.dispatch._heard_ms[NODE] -= 2 * LEASE_MS
    record_all = central.log.record_all

    async def slow_record(parts):
        central.dispatch.hear(NODE)
        return await record_all(parts)

    monkeypatch.setattr(central.log, "record_all", slow_record)
    central.dispatch._read_seq[NODE] = central.world.last_seq[subjects.node_event(NODE)]
    await central.dispatch._sweep()
    assert central.world.nodes[NODE].online


async def test_a_node_is_heard_even_while_this_central_is_slow_to_read_the_log(central, other):
    # the heartbeat named a run that was not read of yet; it counted only once it was, and the node was lost before
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED)
    await other.log.catch_up()
    await other.dispatch._sweep()
    other.dispatch._heard_ms[NODE] -= 2 * LEASE_MS
    go_on = await behind(other, central)
    await central.say(subjects.job_event("job-1"), leased())
    asking = asyncio.create_task(other.dispatch._heartbeat(heartbeat(("job-1", 1))))
    await other.edge.round_trip()
    await other.dispatch._sweep()
    await go_on()
    await asking
    await central.log.catch_up()
    assert central.world.nodes[NODE].online


async def test_the_loss_of_an_old_session_does_not_touch_the_new_one(central, other):
    # the append of the loss met the new registration, and the second try lost that one
    await central.dispatch._register(register())
    await other.log.catch_up()
    go_on = await behind(other, central)
    await central.dispatch._register(register(NEXT_SESSION))
    losing = asyncio.create_task(other.dispatch._lose_node(NODE, SESSION, "silent"))
    await other.edge.round_trip()
    await go_on()
    await losing
    await central.log.catch_up()
    assert central.world.nodes[NODE].online


async def test_a_completion_that_arrives_after_its_node_was_declared_lost_is_still_paid_once(central, tmp_path):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased())
    model = await stored_model(central.blobs, tmp_path)
    await central.dispatch._lose_node(NODE, SESSION, "silent")
    reply, _ = await asyncio.gather(central.reports.completed(completed(model)), central.dispatch._sweep())
    kinds = await kinds_of(central)
    assert ("Completed" in kinds) == reply.accepted
    assert ("LeaseLost" in kinds) != reply.accepted


async def test_a_goodbye_frees_the_runs_at_once_and_fences_what_comes_later(central):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased())
    await central.dispatch._goodbye(m.Goodbye(node_id=NODE, session=SESSION))
    assert central.world.jobs["job-1"].status == "queued"
    assert (await central.reports.started(started())).fenced


async def test_a_goodbye_that_a_node_did_not_sign_ends_nothing_where_it_signs_them(central):
    await central.dispatch._register(register(signed_goodbyes=True))
    await central.job("job-1", f.FUNDED, leased())
    said = m.Goodbye(node_id=NODE, session=SESSION)
    forged = replace(said, signature=Identity(b"x" * 32).sign(m.goodbye_bytes(said)))
    for other in (
        said,
        forged,
        replace(said, signature=KEY.sign(m.goodbye_bytes(replace(said, session=NEXT_SESSION)))),
    ):
        with pytest.raises(ApiError, match="not signed by the node's key"):
            await central.dispatch._goodbye(other)
    assert central.world.jobs["job-1"].status == "leased"
    await central.dispatch._goodbye(replace(said, signature=KEY.sign(m.goodbye_bytes(said))))
    assert central.world.jobs["job-1"].status == "queued"


async def test_the_goodbye_of_an_old_session_changes_nothing(central):
    await central.dispatch._register(register(NEXT_SESSION))
    await central.dispatch._goodbye(m.Goodbye(node_id=NODE, session=SESSION))
    assert central.world.nodes[NODE].online


async def test_a_registration_of_an_old_session_that_comes_late_does_not_replace_the_new_one(central, other):
    # delayed on its way, it ended the new session's leases, and the node was unknown until it registered again
    await central.dispatch._register(register(SESSION, began_ms=1))
    await central.dispatch._register(register(NEXT_SESSION, began_ms=2))
    await central.job("job-1", f.FUNDED, leased(session=NEXT_SESSION))
    for each in (central, other):  # the other one may not have read of the new session yet
        with pytest.raises(ApiError, match="a later session of the node is registered"):
            await each.dispatch._register(register(SESSION, began_ms=1))
    assert central.world.nodes[NODE].session == NEXT_SESSION
    assert (await central.reports.started(started(session=NEXT_SESSION))).accepted


async def test_a_session_that_was_lost_may_register_again(central):
    await central.dispatch._register(register(SESSION, began_ms=5))
    await central.dispatch._lose_node(NODE, SESSION, "silent")
    await central.dispatch._register(register(SESSION, began_ms=5))
    assert central.world.nodes[NODE].online


async def test_the_number_of_a_session_is_signed_for(central):
    said = replace(register(SESSION, began_ms=1), began_ms=9)
    with pytest.raises(ApiError, match="not signed"):
        await central.dispatch._register(said)


async def test_a_node_that_drains_gets_nothing_new_until_it_says_otherwise(central, other):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased())
    says = heartbeat(("job-1", 1))
    for each in (central, other, central):  # both hear it, and one of them stores it
        await each.dispatch._heartbeat(replace(says, draining=True))
    await central.job("job-2", f.FUNDED)
    await central.say(subjects.job_event("job-1"), f.CANCELLED)
    await central.dispatch._assign_waiting()
    assert (central.world.jobs["job-2"].status, nodes.state(central.world.nodes[NODE])) == ("queued", "draining")
    await other.dispatch._heartbeat(heartbeat())
    await central.log.catch_up()
    await central.dispatch._assign_waiting()
    assert central.world.jobs["job-2"].status == "leased"


async def test_a_node_whose_gpus_others_have_filled_gets_no_run_for_them_until_it_says_otherwise(central, other):
    gpus = [m.Gpu(name="gpu", memory_bytes=24 * 2**30)] * 2
    await central.dispatch._register(register(hardware=f.registered(hardware={"gpus": gpus}).hardware))
    await central.job("job-0", f.FUNDED, needs=m.Needs(device="cuda"), gpu_memory_bytes=2**31)
    await central.job("job-1", f.FUNDED)
    before = central.world.seq
    for each in (central, other, central):  # both hear it, and one of them stores it
        await each.dispatch._heartbeat(replace(heartbeat(), gpus_free_bytes=[2**30, 2**20]))
    assert central.world.nodes[NODE].gpus_free_bytes == (2**30, 2**20)
    assert central.world.seq == before + 1
    await central.dispatch._assign_waiting()
    assert [central.world.jobs[f"job-{number}"].status for number in (0, 1)] == ["queued", "leased"]
    job = central.world.jobs["job-0"]
    assert schedule.ever_fits(job, central.world.nodes[NODE])
    await central.say(subjects.job_event("job-1"), f.CANCELLED)
    await other.dispatch._heartbeat(replace(heartbeat(), gpus_free_bytes=[2**30, 2**34]))
    await central.log.catch_up()
    await central.dispatch._assign_waiting()
    assert central.world.jobs["job-0"].status == "leased"


async def test_a_node_says_nothing_of_gpus_that_it_has_not(central):
    await central.dispatch._register(register())
    assert (await central.dispatch._heartbeat(replace(heartbeat(), gpus_free_bytes=[2**34]))).known
    assert central.world.nodes[NODE].gpus_free_bytes == ()


async def test_a_drained_node_that_is_banned_says_it_again_when_the_ban_is_over(central):
    await central.dispatch._register(register())
    await central.say(subjects.node_event(NODE), m.NodeBanned(until_ms=2**50, reason="3 strikes"))
    assert (await central.dispatch._heartbeat(replace(heartbeat(), draining=True))).known
    await central.say(subjects.node_event(NODE), m.NodePardoned(reason="repaired"))
    await central.dispatch._heartbeat(replace(heartbeat(), draining=True))
    assert nodes.state(central.world.nodes[NODE]) == "draining"


async def test_a_node_that_says_goodbye_in_the_middle_of_a_run_costs_the_job_no_attempt(central):
    # what could not be stored in time was killed: the steps since the last checkpoint are lost, nothing else
    await central.dispatch._register(register())
    reputation = central.world.nodes[NODE].reputation
    await central.job("job-1", f.FUNDED, leased(), max_attempts=1)
    await central.dispatch._goodbye(m.Goodbye(node_id=NODE, session=SESSION))
    job = central.world.jobs["job-1"]
    assert (job.status, jobs.tried(job), job.not_before_ms) == ("queued", 0, job.changed_at_ms)
    assert central.world.nodes[NODE].reputation == reputation


# -- bans ------------------------------------------------------------------------------------------------


async def strike_three_times(central):
    for number in (1, 2, 3):
        await central.job(f"job-{number}", f.FUNDED, leased())
        lost = m.LeaseLost(attempt=1, code="run_missing", reason="forgotten")
        await central.say(subjects.job_event(f"job-{number}"), lost)
        await central.say(subjects.job_event(f"job-{number}"), f.CANCELLED)


async def test_the_third_strike_is_a_ban_that_no_word_of_the_node_ends(central):
    await central.dispatch._register(register())
    await strike_three_times(central)
    await central.dispatch._ban_suspects()
    assert central.world.nodes[NODE].banned_until_ms
    await central.dispatch._register(register(NEXT_SESSION))
    assert (await central.dispatch._heartbeat(m.Heartbeat(node_id=NODE, session=NEXT_SESSION))).known
    await central.job("job-4", f.FUNDED)
    await central.dispatch._assign_waiting()
    assert central.world.jobs["job-4"].status == "queued"
    await central.say(subjects.node_event(NODE), m.NodePardoned(reason="repaired"))
    await central.dispatch._assign_waiting()
    assert central.world.jobs["job-4"].status == "leased"


async def test_two_centrals_ban_a_node_once(central, other):
    await central.dispatch._register(register())
    await strike_three_times(central)
    await other.log.catch_up()
    await asyncio.gather(central.dispatch._ban_suspects(), other.dispatch._ban_suspects())
    assert central.world.nodes[NODE].bans == 1


async def test_a_network_that_does_not_ban_goes_on_with_the_node(central):
    central.dispatch._bans = False
    await central.dispatch._register(register())
    await strike_three_times(central)
    await central.dispatch._ban_suspects()
    assert central.world.suspects == {NODE}
    await central.job("job-4", f.FUNDED)
    await central.dispatch._assign_waiting()
    assert central.world.jobs["job-4"].status == "leased"


# -- delivery --------------------------------------------------------------------------------------------


async def test_a_node_that_is_merely_busy_costs_the_job_no_attempt(scheduling, node, monkeypatch):
    # three refusals of a node that was still ending its last run failed the job
    monkeypatch.setattr("cyxcentral.jobfold.BACKOFF_MS", (0, 1))
    asked, taken = [], asyncio.Event()

    async def answer(subject, command):
        if not isinstance(command, m.Assign):
            return m.CommandReply(accepted=True)
        asked.append(command.attempt)
        if len(asked) < 5:
            return m.CommandReply(accepted=False, reason="no free slot: 1 of 1 runs are busy")
        taken.set()
        return m.CommandReply(accepted=True)

    await node.answer(subjects.command(NODE), m.Command, answer)
    await scheduling.dispatch._register(register())
    reputation = scheduling.world.nodes[NODE].reputation
    await scheduling.job("job-1", f.FUNDED, max_attempts=2)
    await asyncio.wait_for(taken.wait(), 60)
    assert asked == [1, 2, 3, 4, 5]
    assert scheduling.world.jobs["job-1"].status == "leased"
    assert scheduling.world.nodes[NODE].reputation == reputation


async def test_of_two_jobs_that_two_centrals_gave_one_node_the_refused_one_goes_elsewhere_at_once(broker, node):
    # each central saw the node free; the compare-and-swap is on the jobs, so both leases are stored
    key_b = Identity(b"b" * 32)
    node_b = f"node-b-{key_b.short_id}"
    held, elsewhere = [], asyncio.Event()

    async def only_one(subject, command):
        if isinstance(command, m.Assign) and command.job_id not in held and held:
            return m.CommandReply(accepted=False, reason="no free slot: 1 of 1 runs are busy")
        held.append(command.job_id)
        return m.CommandReply(accepted=True)

    async def the_other(subject, command):
        elsewhere.set()
        return m.CommandReply(accepted=True)

    await node.answer(subjects.command(NODE), m.Command, only_one)
    bus_b = await Bus.connect(broker.url("node"), name="node-b", credentials=as_node(key_b, node_b))
    await bus_b.answer(subjects.command(node_b), m.Command, the_other)
    a, b = [await SmallCentral.start(broker, f"central-{name}") for name in "ab"]
    await a.dispatch._register(register())
    for job_id in ("job-1", "job-2"):
        await a.job(job_id, f.FUNDED, max_attempts=1)
    await b.log.catch_up()
    choices = [schedule.Assignment(job_id=job_id, node_id=NODE, explanation={}) for job_id in ("job-1", "job-2")]
    leases = [each.dispatch._lease(choice) for each, choice in zip((a, b), choices, strict=True)]
    assert None not in leases
    for each, choice, lease in zip((a, b), choices, leases, strict=True):
        await each.say(subjects.job_event(choice.job_id), lease)
    await a.say(subjects.node_event(node_b), f.registered(node_b, public_key=key_b.public_key))
    times = {}
    a.log.applied.append(lambda stored, record: times.update({type(record.event).__name__: record.at_ms}))
    for each in (a, b):
        each.log.applied.append(lambda stored, record, each=each: each.dispatch.happened(stored.subject))
        await each.dispatch.start()
    await asyncio.wait_for(elsewhere.wait(), 60)
    await a.log.catch_up()
    [refused] = [job for job in a.world.jobs.values() if job.attempt == 2]
    assert refused.attempts[0].lost.code == "refused"
    assert refused.attempts[1].node_id == node_b
    # it may have one attempt only, and has it now; it rested not a millisecond
    assert (refused.status, jobs.tried(refused)) == ("leased", 1)
    assert refused.not_before_ms == times["LeaseLost"]
    print(f"leased again {times['Leased'] - times['LeaseLost']} ms after the refusal")
    for each in (a, b, bus_b):
        await each.close()


@pytest.fixture
async def both(broker, monkeypatch):
    """Two centrals whose loops run and miss nothing."""
    monkeypatch.setattr("cyxcentral.dispatch.SAFETY_NET_S", 60.0)
    running = [await SmallCentral.start(broker, f"central-{name}", scheduling=True) for name in "ab"]
    yield running
    for each in running:
        await each.close()


async def test_the_room_that_a_central_makes_is_given_to_the_next_job_by_that_one(both, node, monkeypatch):
    # both gave it, and one of them was refused by the log
    given = {}

    async def answer(subject, command):
        return m.CommandReply(accepted=True)

    def decides(name, real):
        def lease(choice):
            given.setdefault(choice.job_id, set()).add(name)
            return real(choice)

        return lease

    await node.answer(subjects.command(NODE), m.Command, answer)
    first, second = both
    for name, each in zip("ab", both, strict=True):
        each.dispatch._lease = decides(name, each.dispatch._lease)
    await first.dispatch._register(register())
    at_once = first.log.machine.wall_ms()
    monkeypatch.setattr(first.log, "machine", Machine(wall_ms=lambda: at_once))
    names = [f"job-{number:02}" for number in range(13)]  # of one millisecond, the lesser name has its turn first
    await first.job(names[0], f.FUNDED)
    await first.until(lambda: first.world.jobs[names[0]].status == "leased")
    for job_id in names[1:]:
        await first.job(job_id, f.FUNDED)
    for number, (before, job_id) in enumerate(itertools.pairwise(names)):
        ends = both[number % 2]  # hears of the end of the job before, and may be the slower one of both
        await ends.until(lambda job=before, ends=ends: ends.world.jobs[job].status == "leased")
        await ends.say(subjects.job_event(before), f.CANCELLED)
        await ends.until(lambda job=job_id, ends=ends: ends.world.jobs[job].status == "leased")
    assert {job_id: given[job_id] for job_id in names[1:]} == {
        job_id: {"ab"[number % 2]} for number, job_id in enumerate(names[1:])
    }


async def test_a_back_off_ends_in_each_central_at_a_moment_of_its_own(central, other, monkeypatch):
    # in both at the same one: each time one of them was refused the lease that the other had just appended
    def moment_s(each, due_ms):
        monkeypatch.setattr(each.dispatch, "_machine", Machine(wall_ms=lambda: 0))
        monkeypatch.setattr(each.world.matching, "next_due_ms", lambda: due_ms)
        return each.dispatch._until_retry_s()

    ends = range(1_000, 201_000, 1_000)
    moments = [[moment_s(each, due_ms) for each in (central, other)] for due_ms in ends]
    assert all(
        due_ms / 1000 <= at_s < due_ms / 1000 + 0.1 for due_ms, of in zip(ends, moments, strict=True) for at_s in of
    )
    assert sum(abs(one - another) < 0.005 for one, another in moments) < 0.2 * len(moments)


async def test_the_room_that_a_central_made_before_it_died_is_given_by_another(broker, node, monkeypatch):
    monkeypatch.setattr("cyxcentral.dispatch.SAFETY_NET_S", 0.05)
    died = await SmallCentral.start(broker, "central-a")  # nothing runs in it
    lives = await SmallCentral.start(broker, "central-b", scheduling=True)

    async def answer(subject, command):
        return m.CommandReply(accepted=True)

    await node.answer(subjects.command(NODE), m.Command, answer)
    await died.dispatch._register(register())
    await died.job("job-1", f.FUNDED)
    await lives.until(lambda: "job-1" in lives.world.jobs and lives.world.jobs["job-1"].status == "leased")
    for each in (died, lives):
        await each.close()


async def test_nothing_is_remembered_of_runs_that_are_over(scheduling, node, tmp_path):
    async def answer(subject, command):
        return m.CommandReply(accepted=True)

    await node.answer(subjects.command(NODE), m.Command, answer)
    await scheduling.dispatch._register(register())
    await scheduling.job("job-1", f.FUNDED)
    await scheduling.until(lambda: ("job-1", 1) in scheduling.dispatch._unnamed)
    model = await stored_model(scheduling.blobs, tmp_path)
    assert (await scheduling.reports.completed(completed(model))).accepted
    await scheduling.until(lambda: not scheduling.dispatch._unnamed)


async def test_a_run_that_heartbeats_no_longer_name_goes_to_the_next_attempt(scheduling, node):
    attempts, again = [], asyncio.Event()

    async def answer(subject, command):
        if isinstance(command, m.Assign):
            attempts.append(command.attempt)
        if command.attempt == 2:
            again.set()
        return m.CommandReply(accepted=True)

    await node.answer(subjects.command(NODE), m.Command, answer)
    await scheduling.dispatch._register(register())
    await scheduling.job("job-1", f.FUNDED)
    await scheduling.until(lambda: ("job-1", 1) in scheduling.dispatch._unnamed)
    await scheduling.dispatch._heartbeat(heartbeat(("job-1", 1)))
    for _ in range(3):
        await scheduling.dispatch._heartbeat(heartbeat())
    await asyncio.wait_for(again.wait(), 60)
    assert attempts == [1, 2]


# -- the log ---------------------------------------------------------------------------------------------


async def test_an_event_that_does_not_arrive_is_an_error_that_callers_retry(central):
    # a bare TimeoutError ended whoever waited: a payment was left alone until the next restart
    with pytest.raises(BusError, match="did not arrive within"):
        await central.log._reached(99, timeout_s=0.01)


# -- what the holder of a lease has to hear -------------------------------------------------------------


async def commands_of(node):
    """What the node is told from now on, in order."""
    heard = asyncio.Queue()

    async def answer(subject, command):
        heard.put_nowait(command)
        return m.CommandReply(accepted=True)

    await node.answer(subjects.command(NODE), m.Command, answer)
    return lambda: asyncio.wait_for(heard.get(), 60)


async def test_a_node_prepares_while_the_deposit_lands_and_is_told_when_it_has(scheduling, node):
    told = await commands_of(node)
    await scheduling.dispatch._register(register())
    await scheduling.job("job-1")
    assign = await told()
    assert (type(assign), assign.funded) == (m.Assign, False)
    assert not (await scheduling.dispatch._heartbeat(heartbeat(("job-1", 1, "ready")))).begin
    await scheduling.say(subjects.job_event("job-1"), f.FUNDED)
    assert isinstance(await told(), m.Begin)


async def test_a_run_that_missed_its_begin_hears_it_with_its_next_heartbeat(central):
    await central.dispatch._register(register())
    await central.job("job-1", leased(), f.FUNDED)
    reply = await central.dispatch._heartbeat(heartbeat(("job-1", 1, "ready")))
    assert [run.job_id for run in reply.begin] == ["job-1"]
    assert not (await central.dispatch._heartbeat(heartbeat(("job-1", 1, "training")))).begin


async def test_a_pause_reaches_the_run_and_is_repeated_with_heartbeats(scheduling, node):
    told = await commands_of(node)
    await scheduling.dispatch._register(register())
    await scheduling.job("job-1", f.FUNDED)
    while not isinstance(await told(), m.Assign):
        pass
    await scheduling.until(lambda: scheduling.world.jobs["job-1"].status == "leased")
    await scheduling.say(subjects.job_event("job-1"), f.PAUSED)
    while not isinstance(await told(), m.Pause):
        pass
    reply = await scheduling.dispatch._heartbeat(heartbeat(("job-1", 1, "training")))
    assert [run.job_id for run in reply.pause] == ["job-1"]


async def test_a_pause_before_the_deposit_is_final_frees_the_node_and_gives_no_lease(scheduling, node):
    told = await commands_of(node)
    await scheduling.dispatch._register(register())
    await scheduling.job("job-1")
    assert isinstance(await told(), m.Assign)
    await scheduling.until(lambda: scheduling.world.jobs["job-1"].status == "leased")
    await scheduling.say(subjects.job_event("job-1"), f.PAUSED)
    assert isinstance(await told(), m.Pause)
    await scheduling.say(subjects.job_event("job-1"), f.lost(code="paused"))
    assert "its owner paused it" in jobrules.illegal(scheduling.world.jobs["job-1"], leased(2))
    await scheduling.job("job-2")  # the next lease goes to it
    assert (await told()).job_id == "job-2"
    await scheduling.say(subjects.job_event("job-1"), f.FUNDED)
    assert scheduling.world.jobs["job-1"].status == "paused"


async def test_a_run_that_does_not_stop_when_paused_loses_its_lease(central, monkeypatch):
    monkeypatch.setattr("cyxcentral.dispatch.PAUSE_GRACE_MS", -1)
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased(), f.PAUSED)
    await central.dispatch._sweep()
    assert central.world.jobs["job-1"].status == "paused"
    assert central.world.jobs["job-1"].attempts[-1].lost.code == "paused"


async def test_a_run_that_stands_still_loses_its_lease_although_its_node_is_alive(central):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased())
    central.dispatch._progress_ms = 1e9
    await central.dispatch._heartbeat(heartbeat(("job-1", 1, "training", 5)))
    await central.dispatch._sweep()
    assert central.world.jobs["job-1"].status == "leased"
    central.dispatch._progress_ms = -1
    await central.dispatch._heartbeat(heartbeat(("job-1", 1, "training", 5)))
    await central.dispatch._sweep()
    assert central.world.jobs["job-1"].attempts[-1].lost.code == "no_progress"


@pytest.mark.parametrize(
    "again", [("training", 4), ("training", 5), ("fetching", 9), ("a phase of its own", 9), ("pausing", 9)]
)
async def test_a_run_that_goes_to_and_fro_makes_no_progress(central, again):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased())
    for where in (("ready", 0), ("training", 4), ("training", 5)):
        await central.dispatch._heartbeat(heartbeat(("job-1", 1, *where)))
    seen = central.dispatch._advanced["job-1", 1]
    await central.dispatch._heartbeat(heartbeat(("job-1", 1, *again)))
    central.dispatch.advanced("job-1", 1, ("stored", 5))
    assert central.dispatch._advanced["job-1", 1] is seen
    await stands_still(central, ms=1)
    central.dispatch.advanced("job-1", 1, ("training", 6))
    assert central.dispatch._advanced["job-1", 1][1] > seen[1]


async def test_a_run_that_shall_pause_has_its_time_however_much_it_tells_meanwhile(central):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased(), f.PAUSED)
    await central.dispatch._sweep()
    told = central.dispatch._advanced["job-1", 1]
    central.dispatch.advanced("job-1", 1, ("training", 10**9))
    await central.dispatch._sweep()
    assert central.dispatch._advanced["job-1", 1] is told


async def test_a_run_whose_pause_was_taken_back_makes_progress_as_before(central):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased(), f.PAUSED)
    await central.dispatch._sweep()
    await central.say(subjects.job_event("job-1"), f.RESUMED)
    await central.dispatch._sweep()
    since_ms = central.dispatch._advanced["job-1", 1][1]
    await stands_still(central, ms=1)
    central.dispatch.advanced("job-1", 1, ("training", 1))
    assert central.dispatch._advanced["job-1", 1][1] > since_ms


async def test_waiting_for_the_chain_is_not_standing_still(central):
    central.dispatch._progress_ms = -1
    await central.dispatch._register(register())
    await central.job("job-1", leased())
    await central.dispatch._sweep()
    assert central.world.jobs["job-1"].status == "leased"


# -- lost nodes, damaged histories ----------------------------------------------------------------------


async def test_a_node_is_lost_together_with_its_leases_or_not_at_all(central, other):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased())
    await other.log.catch_up()
    await central.dispatch._lose_node(NODE, SESSION, "silent")
    lost, lease_lost = (
        central.world.last_seq[subjects.node_event(NODE)],
        central.world.last_seq[subjects.job_event("job-1")],
    )
    assert lease_lost == lost + 1
    assert central.world.jobs["job-1"].attempts[-1].lost.code == "node_lost"
    await other.dispatch._lose_node(NODE, SESSION, "silent")  # it has not read that yet, and meets a conflict
    await central.log.catch_up()
    assert (await kinds_of(central)).count("LeaseLost") == 1


async def with_node(central, node_id=NODE, **changes):
    await central.say(subjects.node_event(node_id), f.registered(node_id, **changes))


async def test_a_job_whose_history_is_damaged_does_not_hold_up_those_that_wait(central):
    await with_node(central, max_runs=2)
    await central.job("job-1", f.FUNDED)
    assert [each.job_id for each in central.world.matching.plan(0)] == ["job-1"]
    await central.job("job-2", f.FUNDED)
    await damage(central, subjects.job_event("job-1"))
    await central.dispatch._assign_waiting()
    assert [central.world.jobs[each].status for each in ("job-1", "job-2")] == ["queued", "leased"]


async def test_the_runs_of_a_lost_node_are_taken_back_but_for_the_damaged_one(central):
    await with_node(central, max_runs=2)
    for job_id in ("job-1", "job-2", "job-3"):
        await central.job(job_id, f.FUNDED, leased())
    await damage(central, subjects.job_event("job-1"))
    await central.dispatch._lose_node(NODE, SESSION, "silent")
    assert [central.world.jobs[each].status for each in ("job-1", "job-2", "job-3")] == ["leased", "queued", "queued"]
    await central.job("job-4", f.FUNDED, leased())
    await central.dispatch._sweep()  # job-1 is still leased to a node that is gone
    assert central.world.jobs["job-4"].status == "queued"


async def test_a_node_whose_history_is_damaged_gets_nothing_and_loses_what_it_had(central):
    await with_node(central, max_runs=2)
    await central.job("job-1", f.FUNDED, leased())
    await central.job("job-2", f.FUNDED)
    central.world.suspects.add(NODE)
    await damage(central, subjects.node_event(NODE))
    await central.dispatch._ban_suspects()
    await central.dispatch._assign_waiting()
    assert central.world.jobs["job-2"].status == "queued"
    await central.dispatch._lose_node(NODE, SESSION, "silent")
    assert central.world.jobs["job-1"].status == "queued"
    assert central.dispatch._world.matching.plan(0) == []


async def test_of_two_jobs_that_two_centrals_gave_a_node_that_is_not_proven_one_goes_to_another_node(central):
    await central.say(subjects.node_event(NODE), f.registered(NODE, max_runs=4))
    for job_id in ("job-1", "job-2"):
        alone = replace(f.leased(node_id=NODE), explanation={dispatch.ALONE: 5})
        await central.job(job_id, f.FUNDED, alone)
    await central.dispatch._sweep()
    await central.dispatch._sweep()
    assert central.world.jobs["job-1"].current is not None
    assert central.world.jobs["job-2"].status == "queued"
    assert jobs.tried(central.world.jobs["job-2"]) == 0, "nobody's fault: that was no try"
    assert central.world.nodes[NODE].strikes == 0


async def test_a_lease_that_ends_while_another_is_taken_back_is_none_any_more(central, monkeypatch):
    await central.say(subjects.node_event(NODE), f.registered(NODE, max_runs=4))
    for job_id in ("job-1", "job-2", "job-3"):
        await central.job(job_id, f.FUNDED, replace(f.leased(node_id=NODE), explanation={dispatch.ALONE: 5}))

    async def the_others_end_meanwhile(job_id, lease, reason):
        for each in ("job-1", "job-3"):
            await central.say(subjects.job_event(each), f.lost())

    monkeypatch.setattr(central.dispatch, "stop_run", the_others_end_meanwhile)
    await central.dispatch._sweep()
    assert {job.status for job in central.world.jobs.values()} == {"queued"}
    assert central.world.jobs["job-3"].attempts[-1].lost.code == "died"


async def test_a_lease_of_a_node_that_is_not_proven_says_so_and_the_next_one_waits(central):
    central.world._unproven = schedule.Unproven(limit_base_units=10 * f.AMOUNT)
    await central.say(subjects.node_event(NODE), f.registered(NODE, max_runs=4))
    await central.job("job-1", f.FUNDED)
    await central.job("job-2", f.FUNDED)
    await central.dispatch._assign_waiting()
    assert [central.world.jobs[each].status for each in ("job-1", "job-2")] == ["leased", "queued"]
    assert central.world.jobs["job-1"].attempts[0].explanation[dispatch.ALONE] == 10 * f.AMOUNT


async def test_a_job_whose_try_failed_waits_for_a_node_that_is_busy_and_then_waits_no_longer(central, monkeypatch):
    for node_id in (NODE, "node-b"):
        await central.say(subjects.node_event(node_id), f.registered(node_id))
    await central.job("job-1", f.FUNDED, f.leased(node_id="node-b"))
    await central.job("job-2", f.FUNDED, f.leased(node_id=NODE), f.lost())
    await central.dispatch._assign_waiting()
    assert central.world.jobs["job-2"].status == "queued"
    monkeypatch.setattr(schedule, "ELSEWHERE_MS", 0)  # the minute is over; nothing has happened
    await central.dispatch._assign_waiting()
    assert central.world.jobs["job-2"].current.node_id == NODE

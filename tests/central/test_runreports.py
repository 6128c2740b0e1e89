"""What nodes report of themselves and their runs: who is believed, what is recorded, and what is refused."""

import asyncio
import hashlib

import pytest
from msgspec.structs import replace

from cyxcentral import jobs, schedule
from cyxcentral.machine import Machine
from cyxcore.errors import CyxError
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.artifacts import describe
from cyxnet.bus import ApiError
from cyxnet.codec import BadMessage
from cyxnet.identity import Identity
from cyxnode.signing import VALID_MS, Signing
from tests.central import facts as f
from tests.central.centrals import (
    KEY,
    NETWORK,
    NEXT_SESSION,
    NODE,
    completed,
    failed,
    kinds_of,
    leased,
    register,
    started,
    stored_model,
    stored_state,
)

ORDER_OF_THE_CURVE = 2**252 + 27742317777372353535851937790883648493

# -- what nodes say of themselves ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cpu", "os", "isa"])
async def test_a_node_whose_description_is_a_book_is_refused(central, name):
    # it was in every list of the nodes then, which was too large to be sent to anybody
    said = register()
    with pytest.raises(BadMessage, match=f"{name}: expected at most 200 characters, got 400000"):
        await central.dispatch._register(replace(said, hardware=replace(said.hardware, **{name: "x" * 400_000})))
    gpu = m.Gpu(name="x" * 201, memory_bytes=1)
    with pytest.raises(BadMessage, match="name: expected"):
        await central.dispatch._register(replace(said, hardware=replace(said.hardware, gpus=[gpu])))


async def test_a_summary_that_is_a_book_is_refused(central, tmp_path):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased())
    said = completed(await stored_model(central.blobs, tmp_path))
    with pytest.raises(BadMessage, match="numerics: expected at most 200 characters"):
        await central.reports.completed(replace(said, summary=replace(said.summary, numerics="x" * 400_000)))


async def test_a_refusal_that_is_a_book_is_kept_in_part(scheduling, node):
    refused = asyncio.Event()

    async def refuse(subject, command):
        refused.set()
        return m.CommandReply(accepted=False, reason="x" * 400_000)

    await node.answer(subjects.command(NODE), m.Command, refuse)
    await scheduling.dispatch._register(register())
    await scheduling.job("job-1", f.FUNDED)
    await asyncio.wait_for(refused.wait(), 60)
    await scheduling.until(lambda: scheduling.world.jobs["job-1"].attempts[0].lost)
    assert len(scheduling.world.jobs["job-1"].attempts[0].lost.reason) < 1000


# -- reports ---------------------------------------------------------------------------------------------


async def test_a_completion_without_a_stored_model_is_not_paid(central):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased())
    with pytest.raises(Exception, match="no artifact"):
        await central.reports.completed(completed(m.ArtifactRef(sha256="b" * 64, size=7)))
    assert central.world.jobs["job-1"].status == "leased"


async def test_a_completion_with_another_nodes_signature_is_refused(central, tmp_path):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased())
    said = completed(await stored_model(central.blobs, tmp_path))
    forged = replace(said, signature=Identity(b"x" * 32).sign(m.completion_bytes(said)))
    with pytest.raises(ApiError, match="not signed"):
        await central.reports.completed(forged)


async def test_what_was_signed_for_one_job_and_attempt_says_nothing_of_another(central, tmp_path):
    await central.dispatch._register(register())
    for job_id in ("job-1", "job-2"):
        await central.job(job_id, f.FUNDED, leased())
    model = await stored_model(central.blobs, tmp_path)
    other_bytes = m.ArtifactRef(sha256="9" * 64, size=7)
    said = completed(model)
    state = stored_state(model)
    raised = int.from_bytes(bytes.fromhex(said.signature)[32:], "little") + ORDER_OF_THE_CURVE
    for forged in (
        replace(said, job_id="job-2"),
        replace(said, model=other_bytes),
        replace(said, model=replace(model, size=8)),
        replace(said, graph_sha256="d" * 64),
        replace(said, signature=state.signature),  # of the same run, in another domain
        replace(said, signature=KEY.sign(m.registration_bytes(register()))),
        replace(said, signature=said.signature[:64] + raised.to_bytes(32, "little").hex()),
        replace(said, signature="0" * 128),
        replace(said, signature="01" + "0" * 126),
    ):
        with pytest.raises(ApiError, match="not signed"):
            await central.reports.completed(forged)
    for forged in (replace(state, job_id="job-2"), replace(state, signature=said.signature)):
        with pytest.raises(ApiError, match="not signed"):
            await central.reports.checkpoint(forged)
    assert await kinds_of(central, "job-1") == await kinds_of(central, "job-2") == ["Submitted", "Funded", "Leased"]


async def test_what_was_signed_in_an_earlier_attempt_or_session_is_worth_nothing_later(central, tmp_path):
    # a session is 128 random bits: what was signed on another network names one that this network never had
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased())
    model = await stored_model(central.blobs, tmp_path)
    said, state = completed(model), stored_state(model)
    await central.reports.failed(failed())
    await central.say(subjects.job_event("job-1"), leased(attempt=2))
    for old, say in ((said, central.reports.completed), (state, central.reports.checkpoint)):
        assert (await say(old)).fenced
        with pytest.raises(ApiError, match="not signed"):
            await say(replace(old, attempt=2))
    await central.reports.failed(failed(attempt=2))
    await central.dispatch._register(register(NEXT_SESSION))
    await central.say(subjects.job_event("job-1"), leased(attempt=3, session=NEXT_SESSION))
    for old, say in ((said, central.reports.completed), (state, central.reports.checkpoint)):
        assert (await say(replace(old, attempt=3))).fenced
        with pytest.raises(ApiError, match="not signed"):
            await say(replace(old, attempt=3, session=NEXT_SESSION))
    kinds = await kinds_of(central)
    assert not {"Completed", "Checkpointed"} & set(kinds)


# -- network, sequence, expiry -----------------------------------------------------------------------------


def signing(network=NETWORK, now_ms=None):
    """What a node signs with, at another time when one is given."""
    machine = Machine()
    return Signing(KEY.sign, network, machine.wall_ms if now_ms is None else lambda: now_ms, lambda: 0)


async def test_what_is_signed_with_an_expiry_counts_and_is_recorded_so_that_it_can_be_verified(central, tmp_path):
    signs = signing()
    await central.dispatch._register(signs.signed(register()))
    await central.job("job-1", f.FUNDED, leased())
    model = await stored_model(central.blobs, tmp_path)
    assert (await central.reports.checkpoint(signs.signed(stored_state(model)))).accepted
    said = signs.signed(completed(model))
    assert (await central.reports.completed(said)).accepted
    event = central.world.jobs["job-1"].completed
    assert (event.network_id, event.sequence, event.expires_ms) == (NETWORK, 3, said.expires_ms)
    again = await central.reports.completed(signs.signed(completed(model)))  # its answer was lost
    assert (again.accepted, again.reason) == (True, "known already")


async def test_a_report_is_refused_after_its_expiry_on_another_network_and_without_an_expiry(central, tmp_path):
    now = signing()
    await central.dispatch._register(now.signed(register()))
    await central.job("job-1", f.FUNDED, leased())
    model = await stored_model(central.blobs, tmp_path)
    late = signing(now_ms=Machine().wall_ms() - VALID_MS - 60_000)
    early = signing(now_ms=Machine().wall_ms() + 86_400_000)
    unnamed, unnumbered = signing(network=""), signing()
    unnumbered._sequence = -1
    for unsigned, say in (
        (completed(model), central.reports.completed),
        (stored_state(model), central.reports.checkpoint),
    ):
        for code, said in (
            ("expired", late.signed(unsigned)),
            ("wrong_network", signing(network="net-2").signed(unsigned)),
            ("wrong_network", unnamed.signed(unsigned)),
            ("undated", unsigned),
            ("good_too_long", early.signed(unsigned)),
            ("bad_signature", replace(late.signed(unsigned), expires_ms=2**62)),
            ("bad_signature", replace(now.signed(unsigned), network_id="net-2")),
            ("bad_signature", replace(now.signed(unsigned), sequence=1)),
            ("bad_signature", replace(now.signed(unsigned), expires_ms=0)),
        ):
            with pytest.raises(ApiError) as refused:
                await say(said)
            assert refused.value.code == code
    with pytest.raises(ApiError) as refused:
        await central.reports.completed(unnumbered.signed(completed(model)))
    assert refused.value.code == "bad_sequence"
    assert not {"Completed", "Checkpointed"} & set(await kinds_of(central))


async def test_who_says_something_too_late_is_told_the_time(central):
    with pytest.raises(ApiError) as refused:
        await central.dispatch._register(signing(now_ms=1).signed(register()))
    assert refused.value.code == "expired"
    assert abs(refused.value.now_ms - Machine().wall_ms()) < 60_000


async def test_a_registration_for_another_network_is_refused_and_one_that_names_none_is_told_it(central):
    with pytest.raises(ApiError) as refused:
        await central.dispatch._register(signing(network="net-2").signed(register()))
    assert refused.value.code == "wrong_network"
    reply = await central.dispatch._register(signing(network="").signed(register()))
    assert reply.network_id == NETWORK
    assert central.world.nodes[NODE].dated


async def test_a_report_that_was_signed_before_the_newest_that_counts_is_a_replay(central, tmp_path):
    signs = signing()
    await central.dispatch._register(signs.signed(register()))
    await central.job("job-1", f.FUNDED, leased())
    model = await stored_model(central.blobs, tmp_path)
    early = signs.signed(stored_state(model, step=80))
    newest = signs.signed(stored_state(model, step=50))
    assert (await central.reports.checkpoint(newest)).accepted
    assert (await central.reports.checkpoint(newest)).accepted  # the same words again change nothing
    with pytest.raises(ApiError) as refused:
        await central.reports.checkpoint(early)
    assert refused.value.code == "replayed"
    assert (await kinds_of(central)).count("Checkpointed") == 1


async def test_a_session_of_a_node_that_signs_no_expiry_goes_on_as_before(central, tmp_path):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased())
    model = await stored_model(central.blobs, tmp_path)
    assert (await central.reports.completed(completed(model))).accepted
    assert not central.world.nodes[NODE].dated


async def test_a_registration_that_was_changed_after_it_was_signed_is_refused(central):
    said = register(began_ms=5)
    for forged in (
        replace(said, session=NEXT_SESSION),
        replace(said, wallet="1" * 32),
        replace(said, began_ms=6),
        replace(said, began_ms=0),
    ):
        with pytest.raises(ApiError, match="not signed"):
            await central.dispatch._register(forged)


async def test_a_repeated_report_of_a_failure_is_accepted_and_recorded_once(central):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased())
    replies = [await central.reports.failed(failed()) for _ in range(2)]
    assert [reply.accepted for reply in replies] == [True, True]
    assert (await kinds_of(central)).count("LeaseLost") == 1


async def test_a_node_cannot_call_its_own_failure_a_refusal(central):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased(), max_attempts=1)
    await central.reports.failed(failed(code="refused"))
    assert (central.world.jobs["job-1"].status, central.world.jobs["job-1"].outcome) == ("settling", "failed")


async def test_a_report_on_an_attempt_of_somebody_else_is_fenced(central):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased())
    for said in (started(attempt=2), started(session=NEXT_SESSION), replace(started(), job_id="job-9")):
        assert (await central.reports.started(said)).fenced


# -- checkpoints -----------------------------------------------------------------------------------------


async def test_a_checkpoint_is_recorded_once_and_the_next_attempt_goes_on_from_it(central, tmp_path):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased())
    said = stored_state(await stored_model(central.blobs, tmp_path))
    assert (await central.reports.checkpoint(said)).accepted
    assert (await central.reports.checkpoint(said)).accepted
    assert (await kinds_of(central)).count("Checkpointed") == 1
    await central.reports.failed(failed())
    choice = schedule.Assignment(job_id="job-1", node_id=NODE, explanation={})
    assert central.dispatch._lease(choice).resume == said.checkpoint


async def test_a_state_that_is_larger_than_the_memory_of_its_job_is_refused(central, tmp_path):
    # garbage of any size was taken, which no checker could load: the check was given up, and the job paid
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased())
    state = await stored_model(central.blobs, tmp_path)
    central.world.jobs["job-1"] = replace(central.world.jobs["job-1"], memory_bytes=state.size - 1)
    with pytest.raises(ApiError, match="so its state has not") as refused:
        await central.reports.checkpoint(stored_state(state))
    assert refused.value.code == "bad_checkpoint"
    central.world.jobs["job-1"] = replace(central.world.jobs["job-1"], memory_bytes=state.size)
    assert (await central.reports.checkpoint(stored_state(state))).accepted


async def test_a_checkpoint_that_is_not_stored_not_signed_or_not_possible_is_refused(central, tmp_path):
    await central.dispatch._register(register())
    facts = m.DatasetFacts(rows=100, input_shape=[4], classes=3)
    await central.job("job-1", f.FUNDED, leased(), facts=facts)  # 10 epochs of 3 or 4 batches
    state = await stored_model(central.blobs, tmp_path)
    nowhere = m.ArtifactRef(sha256="9" * 64, size=5)
    for said in (
        stored_state(nowhere, 5, 30),
        stored_state(replace(state, size=state.size + 1), 5, 30),
        stored_state(state, 5, 30, signed_step=4),
        stored_state(state, 5, 100),
        stored_state(state, 31, 30),
        stored_state(state, 0, 30),
    ):
        with pytest.raises(CyxError):
            await central.reports.checkpoint(said)
    assert "Checkpointed" not in await kinds_of(central)


async def test_a_checkpoint_of_an_attempt_that_is_over_is_fenced(central, tmp_path):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased())
    await central.reports.failed(failed())
    reply = await central.reports.checkpoint(stored_state(await stored_model(central.blobs, tmp_path)))
    assert reply.fenced


async def job_to_resume(central, tmp_path, attempt=2):
    """A job of two stored states whose next attempt was to go on from the newer one; and that one's bytes."""
    states = []
    for content in (b"the state of step 40", b"the state of step 50"):
        path = tmp_path / "state"
        path.write_bytes(content)
        await central.blobs.put(content, NODE)
        states.append(await central.blobs.commit(describe(path), NODE))
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased())
    for step, state in zip((40, 50), states, strict=True):
        assert (await central.reports.checkpoint(stored_state(state, step))).accepted
    await central.reports.failed(failed())
    await central.say(subjects.job_event("job-1"), replace(leased(2), resume=central.world.jobs["job-1"].checkpoint))
    return content


async def erase(central, content):
    """The store loses a chunk, as a disk may."""
    stored = await central.core.last(subjects.BLOBS, subjects.chunk(hashlib.sha256(content).hexdigest()))
    ask = f"$JS.API.STREAM.MSG.DELETE.{subjects.BLOBS}"
    await central.core.request(ask, b'{"seq":%d}' % stored.seq)


@pytest.mark.parametrize("damage", ["missing", "other bytes"])
async def test_a_checkpoint_that_is_no_longer_in_the_store_is_given_up_for_the_one_before(central, tmp_path, damage):
    content = await job_to_resume(central, tmp_path)
    await central.say(subjects.node_event("node-b"), f.registered("node-b"))
    reputation = central.world.nodes[NODE].reputation
    if damage == "missing":
        await erase(central, content)
    else:
        await central.core.append(subjects.chunk(hashlib.sha256(content).hexdigest()), b"rot")
    said = failed(2, code="bad_artifact")
    assert (await central.reports.failed(said)).accepted
    job = central.world.jobs["job-1"]
    assert (job.status, job.checkpoint.step, jobs.tried(job)) == ("queued", 40, 1)
    assert "step 50 is given up for the one before it (chunk" in job.error
    assert central.world.nodes[NODE].reputation == reputation
    stat = await central.blobs.stat(describe(tmp_path / "state"), NODE)
    assert not stat.complete and stat.missing  # and can be stored anew
    await central.blobs.put(content, NODE)
    assert (await central.blobs.commit(describe(tmp_path / "state"), NODE)).size == len(content)
    assert await central.blobs.chunk(hashlib.sha256(content).hexdigest()) == content


async def test_that_good_bytes_are_no_checkpoint_is_believed_of_two_nodes_not_of_one(central, tmp_path):
    await job_to_resume(central, tmp_path)
    await central.say(subjects.node_event("node-b"), f.registered("node-b"))
    await central.reports.failed(failed(2, code="bad_checkpoint"))
    job = central.world.jobs["job-1"]
    assert (job.checkpoint.step, jobs.tried(job)) == (50, 2)
    second = replace(f.leased(3, "node-b"), resume=job.checkpoint)
    await central.say(subjects.job_event("job-1"), second)
    said = replace(failed(3, code="bad_checkpoint"), node_id="node-b")
    await central.reports.failed(said)
    job = central.world.jobs["job-1"]
    assert (job.status, job.checkpoint.step, jobs.tried(job)) == ("queued", 40, 2)


async def test_where_no_other_node_could_say_so_one_is_believed_that_a_checkpoint_is_bad(central, tmp_path):
    await job_to_resume(central, tmp_path)
    await central.reports.failed(failed(2, code="bad_checkpoint"))
    assert central.world.jobs["job-1"].checkpoint.step == 40


async def test_a_fetch_that_failed_for_another_reason_discards_nothing(central, tmp_path):
    await job_to_resume(central, tmp_path)
    await central.reports.failed(failed(2, code="bad_artifact"))
    assert central.world.jobs["job-1"].checkpoint.step == 50


async def test_out_of_memory_goes_to_a_larger_node_and_never_back(central):
    await central.dispatch._register(register())
    large = f.registered("node-b", hardware={"memory_bytes": 2**40})
    await central.say(subjects.node_event("node-b"), large)
    await central.job("job-1", f.FUNDED, leased())
    said = replace(failed(code="out_of_memory"), memory_bytes=2**30)
    assert (await central.reports.failed(said)).accepted
    job = central.world.jobs["job-1"]
    assert (job.status, job.memory_bytes) == ("queued", 2**30 + 2**28)
    assert "it had 1024 MiB: from now on only nodes with more are asked, and not this one" in job.error
    refusal = schedule.refusal(job, central.world.candidate(NODE))
    assert refusal == "it ran out of memory here"
    choice = schedule.Assignment(job_id="job-1", node_id="node-b", explanation={})
    await central.say(subjects.job_event("job-1"), central.dispatch._lease(choice))
    job = central.world.jobs["job-1"]
    assign = central.dispatch._command("assign", job, job.lease)
    assert assign.memory_bytes == 2**30 + 2**28


async def test_out_of_memory_where_no_other_node_has_more_is_the_end_of_the_job(central):
    # it was tried on the same node until its attempts were used up
    await central.dispatch._register(register())
    await central.say(subjects.node_event("node-b"), f.registered("node-b"))  # 8 GiB
    await central.job("job-1", f.FUNDED, leased())
    await central.reports.failed(replace(failed(code="out_of_memory"), memory_bytes=7 * 2**30))
    job = central.world.jobs["job-1"]
    assert (job.status, job.outcome, job.attempt) == ("settling", "failed", 1)


async def test_a_node_that_ran_out_of_memory_cannot_have_had_more_than_it_has(central):
    # a single node that named a huge number ended the job: no other had as much
    await central.dispatch._register(register())
    large = f.registered("node-b", hardware={"memory_bytes": 2**40})
    await central.say(subjects.node_event("node-b"), large)
    await central.job("job-1", f.FUNDED, leased())
    await central.reports.failed(replace(failed(code="out_of_memory"), memory_bytes=2**50))
    job = central.world.jobs["job-1"]
    has = central.world.nodes[NODE].hardware.memory_bytes
    assert (job.status, job.memory_bytes) == ("queued", has + has // 4)


async def test_out_of_memory_of_a_gpu_goes_to_a_larger_gpu(central):
    small, large = (m.Gpu(name="gpu", memory_bytes=gib * 2**30) for gib in (8, 24))
    await central.dispatch._register(register(hardware=f.registered(hardware={"gpus": [small]}).hardware))
    for node_id, gpu in (("node-b", small), ("node-c", large)):
        await central.say(subjects.node_event(node_id), f.registered(node_id, hardware={"gpus": [gpu]}))
    await central.job("job-1", f.FUNDED, leased(), needs=m.Needs(device="cuda"))
    before = central.world.jobs["job-1"]
    said = replace(failed(code="out_of_memory"), gpu_memory_bytes=2**40)  # no node can have had more than it has
    assert (await central.reports.failed(said)).accepted
    job = central.world.jobs["job-1"]
    assert (job.status, job.gpu_memory_bytes, job.memory_bytes) == ("queued", 10 * 2**30, before.memory_bytes)
    assert "it had 8192 MiB on its GPU: from now on only nodes with more are asked, and not this one" in job.error
    able = {name for name in central.world.nodes if schedule.refusal(job, central.world.candidate(name)) is None}
    assert able == {"node-c"}
    choice = schedule.Assignment(job_id="job-1", node_id="node-c", explanation={})
    await central.say(subjects.job_event("job-1"), central.dispatch._lease(choice))
    job = central.world.jobs["job-1"]
    assert central.dispatch._command("assign", job, job.lease).gpu_memory_bytes == 10 * 2**30


async def test_a_fault_of_the_job_is_believed_at_once_only_where_nobody_else_could_confirm_it(central):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased())
    await central.reports.failed(replace(failed(), deterministic=True))
    assert central.world.jobs["job-1"].outcome == "failed"
    await central.say(subjects.node_event("node-b"), f.registered("node-b"))
    await central.job("job-2", f.FUNDED, leased())
    await central.reports.failed(replace(failed(), job_id="job-2", deterministic=True))
    assert central.world.jobs["job-2"].status == "queued"

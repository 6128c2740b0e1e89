"""A node against a central on a real broker: registration, runs, reports, silence, the end."""

import asyncio
import contextlib
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from msgspec.structs import replace

from cyxnet import identity
from cyxnet.broker import Broker, Passwords
from cyxnet.bus import ApiError
from cyxnet.commands import Trust
from cyxnet.messages import (
    Begin,
    Heartbeat,
    HeartbeatReply,
    Needs,
    Pause,
    ReportReply,
    RunRef,
    Stop,
    checkpoint_bytes,
    completion_bytes,
    goodbye_bytes,
    registration_bytes,
)
from cyxnode import hardware
from cyxnode.agent import FULL_DISK_BYTES, ROOM_AGAIN_BYTES, Agent, Settings
from cyxnode.events import DevicesRead
from cyxnode.runs import Runs, Work
from tests.doorkeeper import CENTRAL, opened
from tests.node import fake_nvml
from tests.node.fake_central import NETWORK, PLATFORM, FakeCentral, Store, make_assign
from tests.node.standin import GRAPH_SHA256

Start = Callable[..., Any]
WAIT_S = 60.0


def training_processes() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            if child.status() != psutil.STATUS_ZOMBIE and any("standin.py" in part for part in child.cmdline()):
                found.append(child)
    return found


async def begin(node: Any, central: FakeCentral, **options: Any) -> Any:
    """Have the node take a run of a small dataset; the registration is returned."""
    register = await central.wait_for("register")
    await asyncio.wait_for(node.ready.wait(), WAIT_S)
    reply = await central.command(register.node_id, make_assign(register, central.store.add(b"rows"), **options))
    assert reply.accepted, reply.reason
    return register


async def test_a_node_registers_with_a_signature_over_its_session_and_wallet(
    central: FakeCentral, start_node: Start
) -> None:
    node = await start_node()
    register = await central.wait_for("register")
    assert register.node_id == node.home.node_id
    assert identity.verify(register.public_key, registration_bytes(register), register.signature)


async def test_heartbeats_come_by_themselves(central: FakeCentral, start_node: Start) -> None:
    await start_node()
    register = await central.wait_for("register")
    assert (await central.wait_for("heartbeat")).session == register.session


async def test_a_run_is_trained_stored_and_signed_for(central: FakeCentral, start_node: Start) -> None:
    register = await begin(await start_node(), central)
    done = await central.wait_for("completed")
    assert central.store.read(done.model.sha256) == b"a model of rows"
    assert done.graph_sha256 == GRAPH_SHA256
    assert identity.verify(register.public_key, completion_bytes(done), done.signature)


async def test_started_comes_before_completed_and_progress_arrives(central: FakeCentral, start_node: Start) -> None:
    await begin(await start_node(), central)
    await central.wait_for("progress", lambda progress: progress.batch is not None)
    await central.wait_for("progress", lambda progress: progress.epoch is not None)
    await central.wait_for("completed")
    reports = [verb for verb, _ in central.heard if verb in ("started", "completed")]
    assert reports == ["started", "completed"]


async def test_a_second_run_on_the_same_data_fetches_nothing(central: FakeCentral, start_node: Start) -> None:
    register = await begin(await start_node(), central)
    await central.wait_for("completed")
    dataset = central.store.add(b"rows")
    central.store.chunks.clear()
    again = make_assign(register, dataset, job_id="job-2")
    assert (await central.command(register.node_id, again)).accepted
    await central.wait_for("completed", lambda done: done.job_id == "job-2")


async def test_a_failed_training_is_reported_with_its_code(central: FakeCentral, start_node: Start) -> None:
    await begin(await start_node("refuse"), central)
    failed = await central.wait_for("failed")
    assert (failed.code, failed.deterministic) == ("bad_data", True)


async def test_a_training_process_that_dies_is_reported_at_once(central: FakeCentral, start_node: Start) -> None:
    await begin(await start_node("die"), central)
    failed = await central.wait_for("failed")
    assert failed.code == "process_died" and not failed.deterministic


async def test_a_training_process_without_a_model_is_a_failure(central: FakeCentral, start_node: Start) -> None:
    await begin(await start_node("forget_model"), central)
    assert (await central.wait_for("failed")).code == "no_model"


async def test_an_artifact_that_does_not_exist_fails_the_run(central: FakeCentral, start_node: Start) -> None:
    await start_node()
    register = await central.wait_for("register")
    ref = Store().add(b"never stored here")
    assert (await central.command(register.node_id, make_assign(register, ref))).accepted
    assert (await central.wait_for("failed")).code == "not_found"


async def test_stop_kills_the_training_process(central: FakeCentral, start_node: Start) -> None:
    register = await begin(await start_node("hang"), central)
    await central.wait_for("started")
    busy = training_processes()[0]
    stop = Stop(job_id="job-1", attempt=1, session=register.session)
    assert (await central.command(register.node_id, stop)).accepted
    await asyncio.to_thread(psutil.wait_procs, [busy], WAIT_S)
    assert not busy.is_running()
    await central.wait_for("heartbeat", lambda beat: not beat.runs)


async def test_a_run_in_the_stop_list_of_a_heartbeat_is_killed(central: FakeCentral, start_node: Start) -> None:
    await begin(await start_node("hang"), central)
    await central.wait_for("heartbeat", lambda beat: [(run.job_id, run.attempt) for run in beat.runs] == [("job-1", 1)])
    central.stop = [RunRef(job_id="job-1", attempt=1)]
    central.heard.clear()
    await central.wait_for("heartbeat", lambda beat: not beat.runs)


async def test_what_is_not_signed_by_central_ends_no_run_wherever_it_comes_from(
    central: FakeCentral, start_node: Start, broker: Broker
) -> None:
    """As somebody could who has the broker: every message to the node is his to write, repeat and alter."""
    node = await start_node("hang")
    register = await begin(node, central)
    await central.wait_for("started")
    stop = Stop(job_id="job-1", attempt=1, session=register.session)
    good, elsewhere = central.signed(register.node_id, stop), central.signed(f"other-{'0' * 10}", stop)
    of_job_2 = central.signed(register.node_id, replace(stop, job_id="job-2"))
    longer = replace(good, expires_ms=good.expires_ms + 1)
    forged = {
        "unsigned": stop,
        "bad_signature": replace(of_job_2, payload=good.payload),
        "wrong_node": elsewhere,
        "unknown_key": replace(good, key=replace(good.key, public_key=register.public_key)),
    }
    for code, said in forged.items():
        reply = await central.say(register.node_id, said)
        assert (reply.accepted, reply.code) == (False, code)
    assert (await central.say(register.node_id, longer)).code == "bad_signature"
    assert node.agent._guard.refused == {"unsigned": 1, "bad_signature": 2, "wrong_node": 1, "unknown_key": 1}
    assert training_processes()
    assert (await central.say(register.node_id, good)).accepted
    await central.wait_for("heartbeat", lambda beat: not beat.runs)


async def test_a_command_from_before_a_newer_one_is_a_replay(central: FakeCentral, start_node: Start) -> None:
    register = await begin(await start_node(), central, funded=False)
    await central.wait_for("heartbeat", lambda beat: [run.phase for run in beat.runs] == ["ready"])
    begin_1 = central.signed(register.node_id, Begin(job_id="job-1", attempt=1, session=register.session))
    pause = central.signed(register.node_id, Pause(job_id="job-1", attempt=1, session=register.session))
    assert (await central.say(register.node_id, pause)).accepted
    reply = await central.say(register.node_id, begin_1)
    assert (reply.accepted, reply.code) == (False, "replayed")
    await central.wait_for("failed")  # it has stored what it had, and nobody began it


async def test_lists_in_the_answer_to_a_heartbeat_that_nobody_signed_end_no_run(
    central: FakeCentral, start_node: Start
) -> None:
    node = await start_node("hang")
    await begin(node, central)
    await central.wait_for("started")

    def forge(message: Heartbeat) -> HeartbeatReply:
        return HeartbeatReply(known=True, stop=[RunRef(job_id="job-1", attempt=1)])

    central._heartbeat = forge  # type: ignore[method-assign]
    central.heard.clear()
    await central.wait_for("heartbeat", lambda beat: beat.runs and node.agent._guard.refused["unsigned"] > 0)
    assert training_processes()


async def test_a_node_that_was_told_no_platform_key_keeps_the_first_one_it_is_told(
    central: FakeCentral, start_node: Start
) -> None:
    node = await start_node(network_id="", platform_key="")
    await asyncio.wait_for(node.ready.wait(), WAIT_S)
    assert node.home.trust("", "") == Trust(network_id=NETWORK, platform_key=PLATFORM.public_key)
    await begin(node, central)
    await central.wait_for("completed")


@pytest.mark.parametrize("network_id", [NETWORK, ""])
async def test_a_central_of_another_platform_is_told_at_once_that_nobody_works_for_it(
    central: FakeCentral, start_node: Start, network_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    node = await start_node(network_id=network_id, platform_key="ab" * 32)
    assert await asyncio.wait_for(node.task, WAIT_S) == 1
    assert not node.ready.is_set()
    register, goodbye = await central.wait_for("register"), await central.wait_for("goodbye")  # else it got jobs
    assert (goodbye.session, goodbye.network_id) == (register.session, NETWORK)
    assert identity.verify(register.public_key, goodbye_bytes(goodbye), goodbye.signature)
    assert f"this node does not work for that central: expected the platform key {'ab' * 32}" in caplog.text
    assert "central refused" not in caplog.text


async def test_a_fenced_completion_is_discarded(central: FakeCentral, start_node: Start) -> None:
    central.report_reply = ReportReply(accepted=False, fenced=True, reason="attempt 2 is the current one")
    await begin(await start_node("hang"), central)
    await central.wait_for("started")
    central.heard.clear()
    await central.wait_for("heartbeat", lambda beat: not beat.runs)
    assert central.count("completed") == 0


async def test_a_session_that_central_forgot_registers_again_and_keeps_its_run(
    central: FakeCentral, start_node: Start
) -> None:
    register = await begin(await start_node("hang"), central)
    await central.wait_for("started")
    central.known.clear()
    central.heard.clear()
    assert (await central.wait_for("register")).session == register.session
    beat = await central.wait_for("heartbeat", lambda beat: bool(beat.runs))
    assert beat.runs == [RunRef(job_id="job-1", attempt=1, phase="training", step=1)]


async def test_a_run_that_ends_while_central_is_away_is_reported_when_it_is_back(
    broker: Broker, store: Store, start_node: Start
) -> None:
    first = await FakeCentral.start(broker.url("edge"), store)
    node = await start_node("learn_when_told")
    register = await begin(node, first)
    await first.wait_for("started")
    await first.close()
    (work,) = [path for path in node.home.work_folder.iterdir() if (path / "begun").exists()]
    (work / "go").write_bytes(b"on")  # the training ends now, with nobody there to tell
    second = await FakeCentral.start(broker.url("edge"), store)
    second.known.add(register.session)
    try:
        assert (await second.wait_for("completed")).session == register.session
    finally:
        await second.close()


async def test_a_run_outlives_the_broker_and_its_newest_epoch_is_told_again(
    tmp_path: Path, store: Store, start_node: Start
) -> None:
    folder, passwords = tmp_path / "broker-of-its-own", Passwords.fresh(CENTRAL)
    broker = await asyncio.to_thread(Broker.start, folder, passwords)
    system, _ = await opened(broker.url("node"))
    try:
        central = await FakeCentral.start(broker.url("edge"), store)
        node = await start_node("learn_when_told", url=broker.url("node"))
        register = await begin(node, central)
        await central.wait_for("started")
        await asyncio.to_thread(broker.stop)
        (work,) = [path for path in node.home.work_folder.iterdir() if (path / "begun").exists()]
        await asyncio.to_thread((work / "go").write_bytes, b"on")
        await asyncio.to_thread((work / "told").read_bytes)  # it told all, to nobody but the agent
        broker = await asyncio.to_thread(Broker.start, folder, passwords, broker.port)
        done = await central.wait_for("completed")
        assert (done.session, done.job_id) == (register.session, "job-1")
        assert central.store.read(done.model.sha256) == b"a model of rows"
        await central.wait_for("progress", lambda progress: progress.epoch is not None)
        node.agent.stop("the test is over")
        await asyncio.wait_for(node.task, WAIT_S)
        await central.close()
    finally:
        await system.close()
        await asyncio.to_thread(broker.stop)


async def test_a_registration_refused_for_good_ends_the_node_with_status_1(
    central: FakeCentral, start_node: Start
) -> None:
    central.register_error = ApiError("bad_signature", "the signature is not the key's", 400)
    node = await start_node()
    assert await asyncio.wait_for(node.task, WAIT_S) == 1


async def test_a_busy_central_is_asked_again(central: FakeCentral, start_node: Start) -> None:
    central.register_error = ApiError("busy", "too many requests", 429)
    node = await start_node()
    await central.wait_for("register")
    central.register_error = None
    await asyncio.wait_for(node.ready.wait(), WAIT_S)


# -- prepared before it is funded ---------------------------------------------------------------------------


async def test_an_unfunded_run_is_prepared_and_makes_no_step_before_it_is_begun(
    central: FakeCentral, start_node: Start
) -> None:
    register = await begin(await start_node(), central, funded=False)
    await central.wait_for("heartbeat", lambda beat: [run.phase for run in beat.runs] == ["ready"])
    assert central.count("started") == central.count("progress") == 0
    reply = await central.command(register.node_id, Begin(job_id="job-1", attempt=1, session=register.session))
    assert reply.accepted
    await central.wait_for("completed")


async def test_a_begin_that_was_lost_comes_with_the_answer_to_a_heartbeat(
    central: FakeCentral, start_node: Start
) -> None:
    await begin(await start_node(), central, funded=False)
    await central.wait_for("heartbeat", lambda beat: [run.phase for run in beat.runs] == ["ready"])
    central.begin = [RunRef(job_id="job-1", attempt=1)]
    await central.wait_for("completed")


async def test_a_begin_that_comes_before_the_run_is_prepared_counts(central: FakeCentral, start_node: Start) -> None:
    register = await begin(await start_node(), central, funded=False)
    await central.command(register.node_id, Begin(job_id="job-1", attempt=1, session=register.session))
    await central.wait_for("completed")


# -- checkpoints, pauses and the end ------------------------------------------------------------------------


async def test_a_run_that_is_ended_in_the_moment_in_which_it_gets_its_process_trains_nothing(
    central: FakeCentral, start_node: Start
) -> None:
    """asyncio.wait_for of Python 3.11 forgets that it was cancelled when what it waits for came at the same time."""
    node = await start_node("hang")
    runs, waits = node.agent._runs, asyncio.Event()
    take = runs._pool.take

    async def take_after_all() -> Any:
        waits.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return await take()

    runs._pool.take = take_after_all
    register = await begin(node, central)
    await asyncio.wait_for(waits.wait(), WAIT_S)
    [work] = runs._works.values()
    stop = Stop(job_id="job-1", attempt=1, session=register.session)
    assert (await central.command(register.node_id, stop)).accepted
    await asyncio.wait([work.task], timeout=WAIT_S)
    assert work.task.cancelled()
    assert central.count("started") == 0


async def test_a_checkpoint_is_stored_and_signed_for_while_the_run_goes_on(
    central: FakeCentral, start_node: Start
) -> None:
    register = await begin(await start_node("learn_until_told_to_halt"), central)
    said = await central.wait_for("checkpoint")
    assert (said.checkpoint.step, said.checkpoint.steps) == (1, 9)
    assert central.store.read(said.checkpoint.state.sha256) == b"state 1 of rows"
    assert identity.verify(register.public_key, checkpoint_bytes(said), said.signature)
    await central.wait_for("heartbeat", lambda beat: [(run.phase, run.step) for run in beat.runs] == [("training", 1)])


async def test_a_paused_run_reports_its_newest_state_and_then_that_it_is_paused(
    central: FakeCentral, start_node: Start
) -> None:
    node = await start_node("learn_until_told_to_halt")
    register = await begin(node, central)
    await central.wait_for("started")
    pause = Pause(job_id="job-1", attempt=1, session=register.session)
    assert (await central.command(register.node_id, pause)).accepted
    ended = await central.wait_for("failed")
    assert (ended.code, ended.deterministic, ended.message) == (
        "paused",
        False,
        "paused as asked; the checkpoint of step 2 is stored",
    )
    reports = [(verb, message) for verb, message in central.heard if verb in ("checkpoint", "failed")]
    assert reports[-1][0] == "failed" and reports[-2][1].checkpoint.step == 2
    assert central.store.read(reports[-2][1].checkpoint.state.sha256) == b"state 2 of rows"


async def test_a_pause_that_was_lost_comes_with_the_answer_to_a_heartbeat(
    central: FakeCentral, start_node: Start
) -> None:
    await begin(await start_node("learn_until_told_to_halt"), central)
    await central.wait_for("started")
    central.pause = [RunRef(job_id="job-1", attempt=1)]
    assert (await central.wait_for("failed")).code == "paused"


async def test_a_run_that_made_no_step_is_paused_without_a_checkpoint(central: FakeCentral, start_node: Start) -> None:
    register = await begin(await start_node(), central, funded=False)
    await central.wait_for("heartbeat", lambda beat: [run.phase for run in beat.runs] == ["ready"])
    await central.command(register.node_id, Pause(job_id="job-1", attempt=1, session=register.session))
    assert (await central.wait_for("failed")).message == "paused as asked; at step 0; no checkpoint was stored here"
    assert central.count("checkpoint") == 0


async def test_a_checkpoint_answered_as_fenced_ends_the_run(central: FakeCentral, start_node: Start) -> None:
    node = await start_node("learn_until_told_to_halt")
    await begin(node, central)
    central.report_reply = ReportReply(accepted=False, fenced=True, reason="attempt 2 is the current one")
    await central.wait_for("heartbeat", lambda beat: not beat.runs)
    assert central.count("failed") == 0


async def test_the_last_checkpoint_of_a_process_that_died_is_stored_before_its_end_is_told(
    central: FakeCentral, start_node: Start
) -> None:
    await begin(await start_node("save_then_die"), central)
    assert (await central.wait_for("failed")).code == "process_died"
    assert [verb for verb, _ in central.heard if verb in ("checkpoint", "failed")] == ["checkpoint", "failed"]


async def test_a_node_that_is_stopped_stores_its_runs_says_goodbye_and_leaves_no_process(
    central: FakeCentral, start_node: Start
) -> None:
    node = await start_node("learn_until_told_to_halt")
    register = await begin(node, central)
    await central.wait_for("started")
    node.agent.stop("SIGTERM")
    assert (await central.wait_for("goodbye")).session == register.session
    assert await asyncio.wait_for(node.task, WAIT_S) == 0
    reports = [message for verb, message in central.heard if verb in ("checkpoint", "failed", "goodbye")]
    assert reports[-3].checkpoint.step == 2
    assert (reports[-2].code, reports[-2].deterministic) == ("node_stopped", False)
    assert not [path for path in node.home.work_folder.iterdir() if list(path.iterdir())]


async def test_a_second_request_to_stop_waits_for_no_run(central: FakeCentral, start_node: Start) -> None:
    node = await start_node("hang")
    await begin(node, central)
    await central.wait_for("started")
    node.agent.stop("SIGTERM")
    node.agent.stop("SIGTERM")
    assert await asyncio.wait_for(node.task, WAIT_S) == 0
    assert central.count("goodbye") == 0 and training_processes() == []


async def test_a_node_whose_disk_is_full_takes_no_runs_until_there_is_room(
    central: FakeCentral, start_node: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(".")._asdict()
    disk = {"free": FULL_DISK_BYTES - 1}
    monkeypatch.setattr("cyxnode.cache.shutil.disk_usage", lambda _: SimpleNamespace(**usage | disk))
    monkeypatch.setattr("cyxnode.agent.HARDWARE_INTERVAL_S", 0.01)
    node = await start_node()
    register = await central.wait_for("register")
    await central.wait_for("heartbeat", lambda beat: beat.draining)
    assign = make_assign(register, central.store.add(b"rows"))
    refused = await central.command(register.node_id, assign)
    assert not refused.accepted and "disk is full" in refused.reason
    disk["free"] = ROOM_AGAIN_BYTES
    central.heard[:] = [said for said in central.heard if said[0] != "heartbeat"]
    await central.wait_for("heartbeat", lambda beat: not beat.draining)
    assert (await central.command(register.node_id, assign)).accepted
    await central.wait_for("completed")
    assert node.ready.is_set()


async def test_a_node_gives_away_what_is_free_of_a_device_when_it_is_asked(
    central: FakeCentral, start_node: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other programs filled it since the node was started, and it fell off its bus; then it can be had again."""
    used, told, tell = list[int | None]([fake_nvml.MEMORY_BYTES]), asyncio.Event(), Agent.tell

    def tell_and_say(agent: Agent, event: Any) -> Any:
        found = tell(agent, event)
        if isinstance(event, DevicesRead):
            told.set()
        return found

    async def becomes(used_bytes: int | None) -> None:
        used[0] = used_bytes
        for _ in range(2):  # the reading that is on its way now, and the next
            told.clear()
            await asyncio.wait_for(told.wait(), WAIT_S)

    monkeypatch.setattr(Agent, "tell", tell_and_say)
    monkeypatch.setattr("cyxnode.agent.HARDWARE_INTERVAL_S", 0.01)
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml.module([0]))
    settings = Settings(devices=hardware.devices())
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml.module(used))
    await start_node(settings=settings)
    register = await central.wait_for("register")
    assign = make_assign(register, central.store.add(b"rows"), needs=Needs(device="cuda"))
    for used_bytes in (fake_nvml.MEMORY_BYTES, None):
        await becomes(used_bytes)
        refused = await central.command(register.node_id, assign)
        assert (refused.accepted, refused.reason[:29]) == (False, "no device with 512 MiB free: ")
        await becomes(0)
    assert (await central.command(register.node_id, assign)).accepted
    await central.wait_for("completed")


async def test_a_run_waits_until_the_process_that_had_its_device_is_dead() -> None:
    runs, dying, alive = object.__new__(Runs), Work(None, 0.0, gpu="GPU-0"), asyncio.Event()
    ours, other = Work(None, 0.0, gpu="GPU-0"), Work(None, 0.0, gpu="GPU-1")
    other.task = asyncio.create_task(asyncio.Event().wait())  # type: ignore[arg-type]
    dying.task = asyncio.create_task(alive.wait())  # type: ignore[arg-type]
    runs._works = {("job-1", 1): dying, ("job-2", 1): ours, ("job-3", 1): other}
    dying.task.add_done_callback(lambda _: runs._gone(("job-1", 1), dying))
    ours.task = asyncio.create_task(runs._alone_on(ours))
    await asyncio.wait([ours.task, asyncio.create_task(asyncio.sleep(0))], return_when=asyncio.FIRST_COMPLETED)
    assert not ours.task.done()
    alive.set()
    await asyncio.wait_for(ours.task, WAIT_S)
    other.task.cancel()

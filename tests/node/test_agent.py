"""A node against a central on a real broker: registration, runs, reports, silence, the end."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from cyxnet import identity
from cyxnet.broker import Broker, Passwords
from cyxnet.bus import ApiError
from cyxnet.messages import (
    ReportReply,
    RunRef,
    Stop,
    completion_bytes,
    registration_bytes,
)
from tests.node.fake_central import FakeCentral, Store, make_assign
from tests.node.standin import GRAPH_SHA256

Start = Callable[..., Any]
WAIT_S = 10.0


def training_processes() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and any("standin.py" in part for part in child.cmdline())
    ]


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
    await central.wait_for("heartbeat", lambda beat: beat.runs == [RunRef(job_id="job-1", attempt=1)])
    central.stop = [RunRef(job_id="job-1", attempt=1)]
    central.heard.clear()
    await central.wait_for("heartbeat", lambda beat: not beat.runs)


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
    assert beat.runs == [RunRef(job_id="job-1", attempt=1)]


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
    folder, passwords = tmp_path / "broker-of-its-own", Passwords.fresh()
    broker = await asyncio.to_thread(Broker.start, folder, passwords)
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


async def test_a_node_that_is_stopped_says_goodbye_and_leaves_no_process(
    central: FakeCentral, start_node: Start
) -> None:
    node = await start_node("hang")
    register = await begin(node, central)
    await central.wait_for("started")
    node.agent.stop("SIGTERM")
    assert (await central.wait_for("goodbye")).session == register.session
    assert await asyncio.wait_for(node.task, WAIT_S) == 0
    assert not [path for path in node.home.work_folder.iterdir() if list(path.iterdir())]

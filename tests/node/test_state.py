"""The node's state machine: pure, so every fact is a few lines."""

import itertools
from typing import Any

import pytest
from msgspec.structs import replace

from cyxcore.spec import ModelSpec, TrainingSummary
from cyxnet.messages import (
    FIRST_CHECK,
    ArtifactRef,
    Assign,
    Begin,
    Checkpoint,
    CommandReply,
    JobRequest,
    Pause,
    RunCheckpoint,
    RunCompleted,
    RunFailed,
    RunRef,
    RunStarted,
    Segment,
    ServeSpec,
    Stop,
)
from cyxnode import events as e
from cyxnode.state import RETRY_MS, STOP_GRACE_MS, State, next_wake_ms, retry_delay_ms, step

SESSION = "00" * 16
JOB = JobRequest(
    name="job",
    model=ModelSpec(input=[2], layers=[{"kind": "Linear", "out_features": 2}]),
    dataset=ArtifactRef(sha256="aa" * 32, size=10),
    amount_base_units=1,
)
KEY = ("job-1", 1)
NEW = State(node_id="node-a", session=SESSION)
JOINED = step(NEW, e.Registered(1000), 0)[0]
SUMMARY = TrainingSummary(
    total_time_ms=1.0,
    steps=1,
    final_loss=0.1,
    best_epoch=1,
    delivered_epoch=1,
    train_rows=8,
    validation_rows=2,
    parameters=6,
)


def assign(job_id: str = "job-1", attempt: int = 1, session: str = SESSION, funded: bool = True) -> Assign:
    return Assign(job_id=job_id, attempt=attempt, session=session, job=JOB, lease_ms=4000, funded=funded)


def check_of(attempt: int = FIRST_CHECK, **job: Any) -> Assign:
    return replace(assign(attempt=attempt), segment=Segment(end_step=4), job=replace(JOB, **job))


def begin(job_id: str = "job-1", session: str = SESSION) -> Begin:
    return Begin(job_id=job_id, attempt=1, session=session)


def pause(job_id: str = "job-1", session: str = SESSION) -> Pause:
    return Pause(job_id=job_id, attempt=1, session=session)


def stored(step: int = 4) -> RunCheckpoint:
    return RunCheckpoint(
        node_id="node-a",
        session=SESSION,
        job_id="job-1",
        attempt=1,
        checkpoint=Checkpoint(step=step, steps=9, state=ArtifactRef(sha256="dd" * 32, size=7)),
        signature="0" * 128,
    )


def stop(job_id: str = "job-1", attempt: int = 1, session: str = SESSION) -> Stop:
    return Stop(job_id=job_id, attempt=attempt, session=session)


def completed(job_id: str = "job-1", attempt: int = 1) -> RunCompleted:
    return RunCompleted(
        node_id="node-a",
        session=SESSION,
        job_id=job_id,
        attempt=attempt,
        model=ArtifactRef(sha256="bb" * 32, size=5),
        graph_sha256="cc" * 32,
        summary=SUMMARY,
        signature="0" * 128,
    )


def failed(code: str = "bad_data") -> RunFailed:
    return RunFailed(node_id="node-a", session=SESSION, job_id="job-1", attempt=1, code=code, message="no rows")


def after(state: State, *happened: Any, now_ms: int = 10) -> State:
    for event in happened:
        state = step(state, event, now_ms)[0]
    return state


def actions(state: State, event: Any, now_ms: int = 10) -> list[Any]:
    return step(state, event, now_ms)[1]


def answer(state: State, event: Any) -> CommandReply:
    (found,) = [action.reply for action in actions(state, event) if isinstance(action, e.Answer)]
    return found


HELD = after(JOINED, e.Assigned(assign()))
UNFUNDED = after(JOINED, e.Assigned(assign(funded=False)))
READY = after(UNFUNDED, e.Advanced(KEY, "ready"))
TRAINING = after(HELD, e.Advanced(KEY, "ready"), e.FirstBatch(KEY), e.ReportAnswered(KEY, accepted=True))
SAVED = after(TRAINING, e.CheckpointStored(KEY, stored()))
PAUSING = after(TRAINING, e.PauseAsked(pause()))
ENDED = after(TRAINING, e.RunEnded(KEY, completed()))
STOPPING = after(TRAINING, e.ShutdownAsked("SIGTERM"))
STATES = {
    "new": NEW,
    "registering": after(NEW, e.Tick()),
    "joined": JOINED,
    "heartbeat on its way": after(JOINED, e.Tick(), now_ms=2000),
    "forgotten by central": after(HELD, e.HeartbeatAnswered(known=False)),
    "fetching": HELD,
    "fetching, unfunded": UNFUNDED,
    "ready": READY,
    "started, unanswered": after(HELD, e.FirstBatch(KEY)),
    "training": TRAINING,
    "checkpoint, unanswered": SAVED,
    "checkpoint waits": after(SAVED, e.ReportUnanswered(KEY)),
    "pausing": PAUSING,
    "paused, unanswered": after(PAUSING, e.CheckpointStored(KEY, stored()), e.RunEnded(KEY, failed("paused"))),
    "uploading": after(TRAINING, e.Advanced(KEY, "uploading")),
    "reporting": ENDED,
    "report waits": after(ENDED, e.ReportUnanswered(KEY)),
    "over": after(ENDED, e.ReportAnswered(KEY, accepted=True)),
    "stopping": STOPPING,
    "stopping, reporting": after(STOPPING, e.RunEnded(KEY, failed("node_stopped"))),
    "draining": after(TRAINING, e.DrainAsked(True)),
    "drained": after(JOINED, e.DrainAsked(True)),
    "full": after(TRAINING, e.DiskChecked(True)),
    "leaving": after(JOINED, e.ShutdownAsked("SIGTERM")),
    "left": after(JOINED, e.ShutdownAsked("SIGTERM"), e.GoodbyeDone()),
}
EVENTS = [
    e.Tick(),
    e.Registered(1000),
    e.RegisterRefused("banned"),
    e.RegisterUnanswered(),
    e.HeartbeatAnswered(known=True),
    e.HeartbeatAnswered(known=False),
    e.HeartbeatAnswered(known=True, stop=(KEY,)),
    e.HeartbeatAnswered(known=True, begin=(KEY,), pause=(KEY,)),
    e.HeartbeatUnanswered(),
    e.Assigned(assign()),
    e.Assigned(assign(funded=False)),
    e.Assigned(assign(attempt=2)),
    e.Assigned(assign("job-2")),
    e.Assigned(assign(session="11" * 16)),
    e.Assigned(check_of()),
    e.BeginAsked(begin()),
    e.BeginAsked(begin("job-2")),
    e.BeginAsked(begin(session="11" * 16)),
    e.PauseAsked(pause()),
    e.PauseAsked(pause("job-2")),
    e.StopAsked(stop()),
    e.StopAsked(stop("job-2")),
    e.Advanced(KEY, "ready"),
    e.Advanced(KEY, "uploading"),
    e.FirstBatch(KEY),
    e.CheckpointStored(KEY, stored()),
    e.CheckpointStored(KEY, stored(5)),
    e.RunEnded(KEY, completed()),
    e.RunEnded(KEY, failed()),
    e.ReportAnswered(KEY, accepted=True),
    e.ReportAnswered(KEY, accepted=False, reason="no"),
    e.ReportAnswered(KEY, accepted=False, fenced=True),
    e.ReportUnanswered(KEY),
    e.ShutdownAsked("SIGINT"),
    e.DrainAsked(True),
    e.DrainAsked(False),
    e.DiskChecked(True),
    e.DiskChecked(False),
    e.DevicesRead(()),
    e.LinkBack(),
    e.GoodbyeDone(),
]
COMMANDS = (e.Assigned, e.BeginAsked, e.PauseAsked, e.StopAsked)


def check(state: State, done: list[Any], now_ms: int) -> None:
    """What holds after any event."""
    runs = state.runs.values()
    assert len([run for run in runs if run.phase != "reporting"]) <= state.max_runs
    assert all((action.assign.job_id, action.assign.attempt) in state.runs for action in done if is_start(action))
    assert all(action.key not in state.runs for action in done if isinstance(action, e.KillRun))
    assert all(action.key in state.runs for action in done if isinstance(action, (e.BeginRun, e.HaltRun)))
    boxes = [run.outbox for run in runs]
    assert all(run.outbox.reports for run in runs if run.phase == "reporting")
    assert all(bool(box.reports) == (box.in_flight or box.retry_at_ms is not None) for box in boxes)
    assert all(len([report for report in box.reports if isinstance(report, RunCheckpoint)]) <= 2 for box in boxes)
    assert all(run.begun for run in runs if run.phase == "training") and (state.life != "leaving" or not state.runs)
    assert state.life != "halting" or (state.runs and state.halt_by_ms is not None and state.halt_by_ms > now_ms)


def is_start(action: Any) -> bool:
    return isinstance(action, e.StartRun)


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("event", EVENTS, ids=[f"{n}-{type(event).__name__}" for n, event in enumerate(EVENTS)])
def test_every_pair_of_state_and_event_is_defined_and_keeps_the_invariants(name: str, event: Any) -> None:
    state, done = step(STATES[name], event, 3000)
    answers = [action for action in done if isinstance(action, e.Answer)]
    assert len(answers) == isinstance(event, COMMANDS)
    check(state, done, 3000)


def test_every_kind_of_event_is_among_those_tried() -> None:
    assert {type(event) for event in EVENTS} == set(e.Event.__args__)  # type: ignore[attr-defined]


def test_any_order_of_any_three_events_leads_from_one_sound_state_to_the_next() -> None:
    for happened in itertools.product(EVENTS, repeat=3):
        state = TRAINING
        for event in happened:
            state, done = step(state, event, 10)
            check(state, done, 10)


def test_what_waits_for_its_next_try_is_tried_as_soon_as_the_link_is_back() -> None:
    late = after(TRAINING, e.Tick(), *[e.HeartbeatUnanswered(), e.Tick()] * 8, e.HeartbeatUnanswered())
    late = after(late, e.RunEnded(KEY, failed()), *[e.ReportUnanswered(KEY), e.Tick()] * 2, e.ReportUnanswered(KEY))
    back = after(late, e.LinkBack(), now_ms=50_000)
    soon_ms = 50_000 + retry_delay_ms(back.session, 0)
    assert (back.heartbeat_at_ms, back.heartbeat_misses) == (soon_ms, 0)
    assert (back.runs[KEY].outbox.retry_at_ms, back.runs[KEY].outbox.tries) == (soon_ms, 0)
    new = after(NEW, e.Tick(), *[e.RegisterUnanswered(), e.Tick()] * 8, e.RegisterUnanswered())
    assert after(new, e.LinkBack(), now_ms=90_000).register_at_ms == 90_000 + retry_delay_ms(new.session, 0)
    asking = after(TRAINING, e.Tick(), now_ms=10**6)
    assert after(asking, e.LinkBack()).heartbeat_at_ms is None  # the answer is on its way


def test_a_new_node_registers_at_once() -> None:
    assert actions(NEW, e.Tick()) == [e.SendRegister()]


def test_a_registration_is_not_sent_twice_while_it_is_on_its_way() -> None:
    assert actions(STATES["registering"], e.Tick(), 100_000) == []


def test_the_first_registration_makes_the_node_ready_and_later_ones_do_not() -> None:
    assert e.SayReady() in actions(NEW, e.Registered(1000))
    assert e.SayReady() not in actions(JOINED, e.Registered(1000))


def test_a_refused_first_registration_ends_the_node_with_the_reason() -> None:
    assert actions(NEW, e.RegisterRefused("banned"))[-1] == e.Exit(1, "banned")


def test_a_refusal_after_a_registration_is_tried_again() -> None:
    assert next_wake_ms(after(replace(JOINED, heartbeat_at_ms=None), e.RegisterRefused("late"))) is not None


def test_an_unanswered_registration_is_tried_again_ever_more_slowly_up_to_16_s() -> None:
    state, waits_ms = NEW, []
    for _ in range(12):
        state = after(state, e.RegisterUnanswered(), now_ms=0)
        waits_ms.append(state.register_at_ms)
    assert waits_ms[: len(RETRY_MS)] == list(RETRY_MS)
    assert waits_ms[-1] == 16_000


def test_nodes_with_other_sessions_do_not_retry_in_step() -> None:
    assert retry_delay_ms("00" * 16, 9) != retry_delay_ms("ff" * 16, 9)
    assert retry_delay_ms("ff" * 16, 9) <= 16_000 * 1.2


def test_a_heartbeat_is_sent_every_heartbeat_ms_and_names_the_runs() -> None:
    assert next_wake_ms(JOINED) == 1000
    assert actions(HELD, e.Tick(), 1000) == [e.SendHeartbeat((RunRef(job_id="job-1", attempt=1, phase="fetching"),))]
    assert next_wake_ms(after(HELD, e.Tick(), e.HeartbeatAnswered(known=True), now_ms=1000)) == 2000


def test_a_heartbeat_without_an_answer_is_sent_again_no_later_than_the_next_beat() -> None:
    state = JOINED
    for _ in range(9):
        state = after(state, e.HeartbeatUnanswered(), now_ms=5000)
        assert state.heartbeat_at_ms is not None and 5000 < state.heartbeat_at_ms <= 6000


def test_an_unknown_session_registers_again_at_once_with_the_same_session_and_runs() -> None:
    state, done = step(HELD, e.HeartbeatAnswered(known=False), 50)
    assert done == [e.SendRegister()]
    assert (state.session, list(state.runs)) == (SESSION, [KEY])


def test_after_registering_again_the_runs_are_named_at_once() -> None:
    state = after(HELD, e.HeartbeatAnswered(known=False), e.Registered(1000), now_ms=70)
    assert isinstance(actions(state, e.Tick(), 70)[0], e.SendHeartbeat)


def test_runs_in_the_stop_list_of_a_heartbeat_are_killed_and_forgotten() -> None:
    state, done = step(TRAINING, e.HeartbeatAnswered(known=True, stop=(KEY, ("job-9", 1))), 10)
    assert [action.key for action in done] == [KEY] and not state.runs


def test_an_assignment_with_a_free_slot_is_accepted_and_begun() -> None:
    assert actions(JOINED, e.Assigned(assign())) == [
        e.Answer(CommandReply(accepted=True)),
        e.StartRun(assign()),
    ]


def test_the_same_assignment_again_is_accepted_and_not_begun_again() -> None:
    assert actions(TRAINING, e.Assigned(assign())) == [e.Answer(CommandReply(accepted=True))]


def test_an_assignment_for_another_session_is_refused() -> None:
    assert "restarted" in answer(JOINED, e.Assigned(assign(session="11" * 16))).reason


def test_an_assignment_without_a_free_slot_is_refused() -> None:
    assert "no free slot" in answer(HELD, e.Assigned(assign("job-2"))).reason


def test_a_run_that_only_waits_for_its_report_to_be_answered_takes_no_slot() -> None:
    assert answer(ENDED, e.Assigned(assign("job-2"))).accepted


def test_a_newer_attempt_takes_the_place_of_the_older_one() -> None:
    state, done = step(TRAINING, e.Assigned(assign(attempt=2)), 10)
    assert [type(action) for action in done] == [e.KillRun, e.Answer, e.StartRun]
    assert list(state.runs) == [("job-1", 2)]


def test_a_check_and_an_attempt_of_one_job_do_not_stand_in_each_others_way() -> None:
    roomy = replace(HELD, max_runs=3)
    assert answer(roomy, e.Assigned(check_of())).accepted
    both = after(roomy, e.Assigned(check_of()))
    assert set(both.runs) == {KEY, ("job-1", FIRST_CHECK)}
    assert answer(both, e.Assigned(assign(attempt=2))).accepted
    assert e.KillRun(("job-1", FIRST_CHECK), "attempt 502 takes its place") in actions(
        both, e.Assigned(check_of(FIRST_CHECK + 1))
    )


@pytest.mark.parametrize(
    "wrong",
    [
        check_of(attempt=2),
        assign(attempt=FIRST_CHECK),
        check_of(sealed=True),
        check_of(serve=ServeSpec(deployment="digits-" + "ab" * 6, format="cyxmodel", seconds=60)),
    ],
    ids=["a check with an attempt's number", "an attempt with a check's number", "sealed", "serves"],
)
def test_a_check_that_makes_no_sense_is_refused(wrong: Assign) -> None:
    assert not answer(JOINED, e.Assigned(wrong)).accepted


def test_an_older_attempt_is_refused_while_a_newer_one_runs() -> None:
    state = after(JOINED, e.Assigned(assign(attempt=3)))
    assert "older" in answer(state, e.Assigned(assign(attempt=2))).reason


def test_a_run_that_is_over_is_not_begun_again() -> None:
    assert "is over" in answer(STATES["over"], e.Assigned(assign())).reason


def test_stop_kills_the_run_without_a_report() -> None:
    state, done = step(TRAINING, e.StopAsked(stop()), 10)
    assert [type(action) for action in done] == [e.KillRun, e.Answer] and not state.runs


def test_stop_of_a_run_that_is_not_here_is_accepted_and_does_nothing() -> None:
    assert actions(JOINED, e.StopAsked(stop())) == [e.Answer(CommandReply(accepted=True))]


def test_the_first_batch_is_reported_as_started() -> None:
    (action,) = actions(HELD, e.FirstBatch(KEY))
    assert isinstance(action.report, RunStarted)


def test_the_completion_waits_until_started_is_answered_so_that_they_arrive_in_order() -> None:
    state, done = step(STATES["started, unanswered"], e.RunEnded(KEY, completed()), 10)
    assert done == []
    assert actions(state, e.ReportAnswered(KEY, accepted=True)) == [e.SendReport(KEY, completed())]


def test_a_started_that_nobody_answers_gives_way_to_the_completion() -> None:
    state = after(STATES["started, unanswered"], e.RunEnded(KEY, completed()))
    assert actions(state, e.ReportUnanswered(KEY)) == [e.SendReport(KEY, completed())]


def test_an_unanswered_completion_is_sent_again_until_it_is_answered() -> None:
    state = after(ENDED, e.ReportUnanswered(KEY), now_ms=0)
    wake_ms = state.runs[KEY].outbox.retry_at_ms
    assert wake_ms is not None
    assert e.SendReport(KEY, completed()) in actions(state, e.Tick(), wake_ms)


def test_an_accepted_completion_ends_the_run() -> None:
    assert not after(ENDED, e.ReportAnswered(KEY, accepted=True)).runs


@pytest.mark.parametrize("name", ["started, unanswered", "reporting"])
def test_a_fenced_report_kills_and_forgets_the_run(name: str) -> None:
    state, done = step(STATES[name], e.ReportAnswered(KEY, accepted=False, fenced=True, reason="lease lost"), 10)
    assert done == [e.KillRun(KEY, "lease lost")] and not state.runs


def test_what_a_killed_run_still_says_is_ignored() -> None:
    gone = after(TRAINING, e.StopAsked(stop()))
    assert step(gone, e.RunEnded(KEY, completed()), 10) == (gone, [])
    assert step(gone, e.FirstBatch(KEY), 10) == (gone, [])


# -- prepared before it is funded ---------------------------------------------------------------------------


def test_an_unfunded_run_is_begun_when_central_says_so() -> None:
    state, done = step(READY, e.BeginAsked(begin()), 10)
    assert done == [e.BeginRun(KEY), e.Answer(CommandReply(accepted=True))]
    assert (READY.runs[KEY].phase, state.runs[KEY].phase) == ("ready", "training")


def test_begin_before_the_run_is_ready_counts() -> None:
    state = after(UNFUNDED, e.BeginAsked(begin()))
    assert state.runs[KEY].phase == "fetching"
    assert after(state, e.Advanced(KEY, "ready")).runs[KEY].phase == "training"


@pytest.mark.parametrize(
    "again",
    [e.BeginAsked(begin()), e.HeartbeatAnswered(known=True, begin=(KEY,)), e.Assigned(assign())],
)
def test_begin_is_heard_once_whichever_way_it_comes(again: Any) -> None:
    state, done = step(READY, again, 10)
    assert e.BeginRun(KEY) in done
    assert e.BeginRun(KEY) not in actions(state, again)


def test_begin_of_a_run_that_is_not_here_is_refused() -> None:
    assert "not on this node" in answer(JOINED, e.BeginAsked(begin())).reason
    assert "restarted" in answer(READY, e.BeginAsked(begin(session="11" * 16))).reason


def test_a_funded_run_needs_no_begin() -> None:
    assert after(HELD, e.Advanced(KEY, "ready")).runs[KEY].phase == "training"
    assert actions(HELD, e.BeginAsked(begin())) == [e.Answer(CommandReply(accepted=True))]


def test_heartbeats_name_the_phase_of_each_run() -> None:
    (beat,) = actions(READY, e.Tick(), 1000)
    assert [run.phase for run in beat.runs] == ["ready"]


# -- checkpoints and pauses ---------------------------------------------------------------------------------


def test_a_stored_checkpoint_is_reported() -> None:
    assert actions(TRAINING, e.CheckpointStored(KEY, stored())) == [e.SendReport(KEY, stored())]


def test_a_newer_checkpoint_takes_the_place_of_one_that_was_not_sent_yet() -> None:
    state = after(SAVED, e.CheckpointStored(KEY, stored(5)), e.CheckpointStored(KEY, stored(6)))
    assert state.runs[KEY].outbox.reports == (stored(4), stored(6))
    assert actions(state, e.ReportUnanswered(KEY)) == [e.SendReport(KEY, stored(6))]


def test_an_unanswered_checkpoint_is_said_again_before_the_failure_that_followed_it() -> None:
    state = after(SAVED, e.RunEnded(KEY, failed()), e.ReportUnanswered(KEY), now_ms=0)
    wake_ms = state.runs[KEY].outbox.retry_at_ms
    assert wake_ms is not None
    state, done = step(state, e.Tick(), wake_ms)
    assert e.SendReport(KEY, stored()) in done
    assert actions(state, e.ReportAnswered(KEY, accepted=True)) == [e.SendReport(KEY, failed())]


def test_a_failure_does_not_overtake_a_checkpoint_that_waits_for_its_next_try() -> None:
    state = after(SAVED, e.ReportUnanswered(KEY))
    assert actions(state, e.RunEnded(KEY, failed())) == [e.SendReport(KEY, stored())]


def test_a_checkpoint_gives_way_to_the_completion() -> None:
    state = after(SAVED, e.RunEnded(KEY, completed()))
    assert actions(state, e.ReportUnanswered(KEY)) == [e.SendReport(KEY, completed())]


def test_a_checkpoint_that_central_refuses_costs_the_run_nothing() -> None:
    state, done = step(SAVED, e.ReportAnswered(KEY, accepted=False, reason="no such artifact"), 10)
    assert KEY in state.runs and [type(action) for action in done] == [e.Note]


def test_a_checkpoint_answered_as_fenced_kills_the_run() -> None:
    state, done = step(SAVED, e.ReportAnswered(KEY, accepted=False, fenced=True), 10)
    assert not state.runs and isinstance(done[0], e.KillRun)


@pytest.mark.parametrize("ask", [e.PauseAsked(pause()), e.HeartbeatAnswered(known=True, pause=(KEY,))])
def test_a_pause_halts_the_run_once_whichever_way_it_comes(ask: Any) -> None:
    state, done = step(TRAINING, ask, 10)
    assert e.HaltRun(KEY, "paused") in done
    assert e.HaltRun(KEY, "paused") not in actions(state, ask)


def test_a_run_that_is_being_delivered_is_not_halted_any_more() -> None:
    assert actions(STATES["uploading"], e.PauseAsked(pause())) == [e.Answer(CommandReply(accepted=True))]


def test_pause_of_a_run_that_is_not_here_is_refused() -> None:
    assert "not on this node" in answer(JOINED, e.PauseAsked(pause())).reason


# -- the end ------------------------------------------------------------------------------------------------


def test_a_node_that_is_asked_to_stop_halts_its_runs_and_says_goodbye_when_all_are_reported() -> None:
    state, done = step(TRAINING, e.ShutdownAsked("SIGTERM"), 10)
    assert e.HaltRun(KEY, "node_stopped") in done and not any(isinstance(action, e.SayGoodbye) for action in done)
    state = after(state, e.CheckpointStored(KEY, stored()), e.RunEnded(KEY, failed("node_stopped")))
    state, done = step(state, e.ReportAnswered(KEY, accepted=True), 20)
    assert done == [e.SendReport(KEY, failed("node_stopped"))]
    state, done = step(state, e.ReportAnswered(KEY, accepted=True), 30)
    assert done == [e.SayGoodbye("SIGTERM")]
    assert actions(state, e.GoodbyeDone()) == [e.Exit(0, "stopped")]


def test_a_node_without_runs_says_goodbye_at_once() -> None:
    assert actions(JOINED, e.ShutdownAsked("SIGTERM")) == [e.SayGoodbye("SIGTERM")]


def test_a_stopping_node_keeps_its_leases_by_heartbeats() -> None:
    assert any(isinstance(action, e.SendHeartbeat) for action in actions(STOPPING, e.Tick(), 1000))


def test_a_stopping_node_says_at_once_that_it_takes_nothing_new() -> None:
    """Else central gives it back the run that it reports as stopped, and the log has an attempt that was refused."""
    state = after(TRAINING, e.ShutdownAsked("SIGTERM"), now_ms=10)
    told = [action for action in actions(state, e.Tick(), 10) if isinstance(action, e.SendHeartbeat)]
    assert [heartbeat.draining for heartbeat in told] == [True]


def test_a_run_that_cannot_be_stored_in_time_is_killed_when_the_node_stops() -> None:
    assert next_wake_ms(replace(STOPPING, heartbeat_at_ms=None)) == 10 + STOP_GRACE_MS
    state, done = step(STOPPING, e.Tick(), 10 + STOP_GRACE_MS)
    assert done[-2:] == [e.KillRun(KEY, "SIGTERM"), e.SayGoodbye("SIGTERM")] and not state.runs


@pytest.mark.parametrize(("drain_s", "grace_ms"), [(0, STOP_GRACE_MS), (60, 62_000)])
def test_a_replica_has_the_time_that_its_client_wants_when_the_node_stops(drain_s: int, grace_ms: int) -> None:
    spec = ServeSpec(deployment="digits-" + "0" * 12, format="onnx", seconds=60, drain_s=drain_s)
    run = TRAINING.runs[KEY]
    serving = replace(run, assign=replace(run.assign, job=replace(run.assign.job, serve=spec)))
    state, _ = step(replace(TRAINING, runs={KEY: serving}), e.ShutdownAsked("SIGTERM"), 10)
    assert state.halt_by_ms == 10 + grace_ms


def test_a_model_that_is_being_delivered_is_waited_for_when_the_node_stops() -> None:
    state = after(STATES["uploading"], e.ShutdownAsked("SIGTERM"), e.RunEnded(KEY, completed()))
    assert actions(state, e.ReportAnswered(KEY, accepted=True)) == [e.SayGoodbye("SIGTERM")]


def test_a_node_that_never_registered_exits_without_a_goodbye() -> None:
    assert actions(NEW, e.ShutdownAsked("SIGTERM")) == [e.Exit(0, "SIGTERM")]


def test_a_second_request_to_stop_kills_the_runs_and_ends_at_once() -> None:
    assert actions(STOPPING, e.ShutdownAsked("SIGINT")) == [e.KillRun(KEY, "SIGTERM"), e.Exit(0, "stopped at once")]


def test_a_stopping_node_refuses_work() -> None:
    assert "stopping" in answer(STOPPING, e.Assigned(assign("job-2"))).reason


# -- draining -----------------------------------------------------------------------------------------------


def test_a_draining_node_takes_nothing_new_and_goes_on_with_what_it_has() -> None:
    draining = after(TRAINING, e.DrainAsked(True))
    assert not answer(draining, e.Assigned(assign("job-2"))).accepted
    assert answer(draining, e.Assigned(assign())).accepted  # the same command again is no new run
    assert draining.runs == TRAINING.runs
    assert answer(after(replace(draining, runs={}), e.DrainAsked(False)), e.Assigned(assign("job-2"))).accepted


def test_a_node_whose_disk_is_full_takes_nothing_new_and_central_hears_of_both_ends() -> None:
    full = after(TRAINING, e.DiskChecked(True), now_ms=100)
    assert "disk is full" in answer(full, e.Assigned(assign("job-2"))).reason
    assert full.runs == TRAINING.runs and next_wake_ms(full) == 100
    [beat] = actions(full, e.Tick(), 100)
    assert beat.draining
    assert actions(full, e.DiskChecked(True)) == []  # once, however often it is looked at
    empty = after(after(JOINED, e.DiskChecked(True)), e.DiskChecked(False), now_ms=100)
    assert actions(empty, e.Tick(), 100) == [e.SendHeartbeat(())]
    assert answer(empty, e.Assigned(assign())).accepted
    assert actions(after(empty, e.DrainAsked(True)), e.DiskChecked(False)) == []  # its operator still wants it


def test_central_hears_at_once_that_a_node_drains_and_with_every_beat() -> None:
    draining = after(JOINED, e.DrainAsked(True), now_ms=100)
    assert next_wake_ms(draining) == 100
    assert actions(draining, e.Tick(), 100) == [e.SendHeartbeat((), draining=True)]
    assert actions(after(draining, e.DrainAsked(False), now_ms=100), e.Tick(), 100) == [e.SendHeartbeat(())]

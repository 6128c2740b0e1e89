"""What a node knows and does next: (state, event, now) -> (state, actions). No clock, no I/O, no dice.

    register ──answered──▶ heartbeat every heartbeat_ms ──known: false──▶ register again, same session
    Assign ──▶ Run: fetching ─▶ training ─▶ uploading ─▶ reporting ──answered──▶ forgotten
                       └───────────┴────────────┴── failed ──▶ reporting
    fenced, Stop, or named in a heartbeat's stop list ──▶ killed and forgotten

A run outlives the loss of central and broker: it goes on, and its reports are repeated until somebody
answers. Every request that an action sends comes back as exactly one event: answered, refused or unanswered.
"""

from collections.abc import Callable
from typing import Any, Literal, cast

from msgspec import Struct
from msgspec.structs import replace

from cyxnet.messages import Assign, CommandReply, RunRef, RunStarted
from cyxnode.events import (
    Action,
    Advanced,
    Answer,
    Assigned,
    Event,
    Exit,
    FirstBatch,
    GoodbyeDone,
    HeartbeatAnswered,
    HeartbeatUnanswered,
    KillRun,
    Note,
    Registered,
    RegisterRefused,
    RegisterUnanswered,
    Report,
    ReportAnswered,
    ReportUnanswered,
    RunEnded,
    RunKey,
    SayGoodbye,
    SayReady,
    SendHeartbeat,
    SendRegister,
    SendReport,
    ShutdownAsked,
    StartRun,
    StopAsked,
    Tick,
)

RETRY_MS = (100, 200, 400, 1000, 2000, 4000, 8000, 16_000)
ENDED_REMEMBERED = 256

Phase = Literal["fetching", "training", "uploading", "reporting"]


class Run(Struct, frozen=True):
    """One attempt at one job. The head of `outbox` is the report that central must answer next."""

    assign: Assign
    phase: Phase = "fetching"
    outbox: tuple[Report, ...] = ()
    in_flight: bool = False
    tries: int = 0
    report_at_ms: int | None = None


class State(Struct, frozen=True, kw_only=True):
    """All that a node knows. heartbeat_ms is 0 until central answered the first registration."""

    node_id: str
    session: str
    max_runs: int = 1
    registered: bool = False
    heartbeat_ms: int = 0
    register_at_ms: int | None = 0  # None: not due, or on its way
    register_tries: int = 0
    heartbeat_at_ms: int | None = None
    heartbeat_misses: int = 0
    runs: dict[RunKey, Run] = {}
    ended: tuple[RunKey, ...] = ()  # the newest runs that are over here: they are not begun again
    stopping: bool = False


Step = tuple[State, list[Action]]


def step(state: State, event: Event, now_ms: int) -> Step:
    """The next state and what to do. Defined for every pair; what no longer concerns us changes nothing."""
    handlers = _WHILE_STOPPING if state.stopping else _HANDLERS
    handler = handlers.get(type(event), _nothing)
    return handler(state, event, now_ms)


def next_wake_ms(state: State) -> int | None:
    """When the next Tick is needed; None when nothing waits for time."""
    due = [state.register_at_ms, state.heartbeat_at_ms] + [run.report_at_ms for run in state.runs.values()]
    return min((at_ms for at_ms in due if at_ms is not None), default=None)


def retry_delay_ms(session: str, tries: int) -> int:
    """Quick at first, then 1, 2, 4, 8, 16 s; up to a fifth longer by the session: nodes are not in step."""
    base_ms = RETRY_MS[min(tries, len(RETRY_MS) - 1)]
    return base_ms + base_ms * int(session[:2], 16) // 1280


# -- one function per event -----------------------------------------------------------------------------


def _on_tick(state: State, _: Tick, now_ms: int) -> Step:
    actions: list[Action] = []
    if _due(state.register_at_ms, now_ms):
        state = replace(state, register_at_ms=None)
        actions.append(SendRegister())
    if _due(state.heartbeat_at_ms, now_ms):
        state = replace(state, heartbeat_at_ms=None)
        refs = tuple(RunRef(job_id=job_id, attempt=attempt) for job_id, attempt in state.runs)
        actions.append(SendHeartbeat(refs))
    for key, run in state.runs.items():
        if _due(run.report_at_ms, now_ms):
            state = _with(state, key, replace(run, in_flight=True, report_at_ms=None))
            actions.append(SendReport(key, run.outbox[0]))
    return state, actions


def _on_registered(state: State, event: Registered, now_ms: int) -> Step:
    first = state.heartbeat_ms == 0
    # runs that central has forgotten are named at once, before it gives them to somebody else
    heartbeat_at_ms = now_ms if state.runs else now_ms + event.heartbeat_ms
    state = replace(
        state,
        registered=True,
        heartbeat_ms=event.heartbeat_ms,
        register_at_ms=None,
        register_tries=0,
        heartbeat_at_ms=heartbeat_at_ms,
        heartbeat_misses=0,
    )
    return state, [SayReady()] if first else [Note("registered again; the session and its runs go on")]


def _on_register_refused(state: State, event: RegisterRefused, now_ms: int) -> Step:
    if state.heartbeat_ms == 0:  # it was never taken here: an operator must look at it
        return replace(state, stopping=True, register_at_ms=None), [
            Exit(1, f"central refused the registration: {event.reason}")
        ]
    state, actions = _on_register_unanswered(state, RegisterUnanswered(), now_ms)
    return state, [Note(f"central refused the registration: {event.reason}"), *actions]


def _on_register_unanswered(state: State, _: RegisterUnanswered, now_ms: int) -> Step:
    delay_ms = retry_delay_ms(state.session, state.register_tries)
    note = [Note("central does not answer; trying again")] if state.register_tries == 0 else []
    tries = state.register_tries + 1
    return replace(state, register_at_ms=now_ms + delay_ms, register_tries=tries), cast(list[Action], note)


def _on_heartbeat_answered(state: State, event: HeartbeatAnswered, now_ms: int) -> Step:
    actions: list[Action] = []
    for key in event.stop:
        state, more = _kill(state, key, "central gave the job to somebody else")
        actions += more
    if event.known:
        return replace(state, heartbeat_at_ms=now_ms + state.heartbeat_ms, heartbeat_misses=0), actions
    state = replace(state, registered=False, register_at_ms=now_ms, heartbeat_at_ms=None, heartbeat_misses=0)
    state, more = _on_tick(state, Tick(), now_ms)
    return state, [*actions, *more]


def _on_heartbeat_unanswered(state: State, _: HeartbeatUnanswered, now_ms: int) -> Step:
    # never later than the usual beat: the lease counts beats, and a beat at its time is no storm
    delay_ms = min(retry_delay_ms(state.session, state.heartbeat_misses), state.heartbeat_ms)
    lost: list[Action] = [Note("central does not answer heartbeats; runs go on")]
    state_next = replace(state, heartbeat_at_ms=now_ms + delay_ms, heartbeat_misses=state.heartbeat_misses + 1)
    return state_next, lost if state.heartbeat_misses == 1 else []


def _on_assigned(state: State, event: Assigned, now_ms: int) -> Step:
    assign = event.assign
    key = (assign.job_id, assign.attempt)
    if assign.session != state.session:
        return state, [_no(f"expected session {state.session}, got {assign.session}: the node was restarted")]
    if key in state.runs:
        return state, [_yes()]  # the first answer was lost: the same command again is no second run
    if key in state.ended:
        return state, [_no(f"attempt {assign.attempt} of {assign.job_id} is over on this node")]
    held = [attempt for job_id, attempt in state.runs if job_id == assign.job_id]
    if held and max(held) > assign.attempt:
        return state, [_no(f"attempt {max(held)} of {assign.job_id} runs here, {assign.attempt} is older")]
    actions: list[Action] = []
    for attempt in held:  # a newer attempt exists, so central fenced this one
        state, more = _kill(state, (assign.job_id, attempt), f"attempt {assign.attempt} takes its place")
        actions += more
    busy = [key for key, run in state.runs.items() if run.phase != "reporting"]
    if len(busy) >= state.max_runs:
        return state, [*actions, _no(f"no free slot: {len(busy)} of {state.max_runs} runs are busy")]
    return _with(state, key, Run(assign)), [*actions, _yes(), StartRun(assign)]


def _on_stop_asked(state: State, event: StopAsked, now_ms: int) -> Step:
    stop = event.stop
    if stop.session != state.session:
        return state, [_no(f"expected session {state.session}, got {stop.session}: the node was restarted")]
    state, actions = _kill(state, (stop.job_id, stop.attempt), stop.reason or "central stopped it")
    return state, [*actions, _yes()]  # stopping what does not run is done already


def _on_advanced(state: State, event: Advanced, now_ms: int) -> Step:
    run = state.runs.get(event.key)
    if run is None or run.phase == "reporting":
        return state, []
    return _with(state, event.key, replace(run, phase=event.phase)), []


def _on_first_batch(state: State, event: FirstBatch, now_ms: int) -> Step:
    run = state.runs.get(event.key)
    if run is None or run.phase == "reporting":
        return state, []
    job_id, attempt = event.key
    started = RunStarted(node_id=state.node_id, session=state.session, job_id=job_id, attempt=attempt)
    return _post(state, event.key, replace(run, phase="training"), started)


def _on_run_ended(state: State, event: RunEnded, now_ms: int) -> Step:
    run = state.runs.get(event.key)
    if run is None or run.phase == "reporting":
        return state, []
    return _post(state, event.key, replace(run, phase="reporting"), event.report)


def _on_report_answered(state: State, event: ReportAnswered, now_ms: int) -> Step:
    run = state.runs.get(event.key)
    if run is None or not run.in_flight:
        return state, []
    if event.fenced or not event.accepted:
        return _kill(state, event.key, event.reason or "central no longer wants this attempt")
    return _send_next(state, event.key, run)


def _on_report_unanswered(state: State, event: ReportUnanswered, now_ms: int) -> Step:
    run = state.runs.get(event.key)
    if run is None or not run.in_flight:
        return state, []
    if len(run.outbox) > 1:  # the end says more than the beginning: no need to repeat that it started
        return _send_next(state, event.key, run)
    delay_ms = retry_delay_ms(state.session, run.tries)
    run = replace(run, in_flight=False, tries=run.tries + 1, report_at_ms=now_ms + delay_ms)
    return _with(state, event.key, run), []


def _on_shutdown_asked(state: State, event: ShutdownAsked, now_ms: int) -> Step:
    if state.stopping:
        return state, [Exit(0, "stopped at once")]
    kills: list[Action] = [KillRun(key, event.reason) for key in state.runs]
    last: Action = SayGoodbye(event.reason) if state.heartbeat_ms else Exit(0, event.reason)
    state = replace(state, stopping=True, runs={}, register_at_ms=None, heartbeat_at_ms=None)
    return state, [*kills, last]


def _on_goodbye_done(state: State, _: GoodbyeDone, now_ms: int) -> Step:
    return state, [Exit(0, "stopped")] if state.stopping else []


_HANDLERS: dict[type, Callable[[State, Any, int], Step]] = {
    Tick: _on_tick,
    Registered: _on_registered,
    RegisterRefused: _on_register_refused,
    RegisterUnanswered: _on_register_unanswered,
    HeartbeatAnswered: _on_heartbeat_answered,
    HeartbeatUnanswered: _on_heartbeat_unanswered,
    Assigned: _on_assigned,
    StopAsked: _on_stop_asked,
    Advanced: _on_advanced,
    FirstBatch: _on_first_batch,
    RunEnded: _on_run_ended,
    ReportAnswered: _on_report_answered,
    ReportUnanswered: _on_report_unanswered,
    ShutdownAsked: _on_shutdown_asked,
    GoodbyeDone: _on_goodbye_done,
}


def _nothing(state: State, _: Any, now_ms: int) -> Step:
    return state, []


def _refuse_while_stopping(state: State, _: Any, now_ms: int) -> Step:
    return state, [_no("the node is stopping")]


_WHILE_STOPPING: dict[type, Callable[[State, Any, int], Step]] = {
    Assigned: _refuse_while_stopping,
    StopAsked: _refuse_while_stopping,
    ShutdownAsked: _on_shutdown_asked,
    GoodbyeDone: _on_goodbye_done,
}


# -- small pieces ---------------------------------------------------------------------------------------


def _due(at_ms: int | None, now_ms: int) -> bool:
    return at_ms is not None and at_ms <= now_ms


def _yes() -> Answer:
    return Answer(CommandReply(accepted=True))


def _no(reason: str) -> Answer:
    return Answer(CommandReply(accepted=False, reason=reason))


def _with(state: State, key: RunKey, run: Run) -> State:
    return replace(state, runs={**state.runs, key: run})


def _forget(state: State, key: RunKey) -> State:
    runs = {other: run for other, run in state.runs.items() if other != key}
    return replace(state, runs=runs, ended=(*state.ended, key)[-ENDED_REMEMBERED:])


def _kill(state: State, key: RunKey, reason: str) -> Step:
    return (_forget(state, key), [KillRun(key, reason)]) if key in state.runs else (state, [])


def _post(state: State, key: RunKey, run: Run, report: Report) -> Step:
    """Put a report in the run's outbox. It goes at once unless one before it is still unanswered."""
    if run.in_flight:
        return _with(state, key, replace(run, outbox=(*run.outbox, report))), []
    # a report that waits for its next try is older news than this one
    run = replace(run, outbox=(report,), in_flight=True, tries=0, report_at_ms=None)
    return _with(state, key, run), [SendReport(key, report)]


def _send_next(state: State, key: RunKey, run: Run) -> Step:
    """The head of the outbox is done with: send the next one, or forget a run that has said its last word."""
    rest = run.outbox[1:]
    if rest:
        run = replace(run, outbox=rest, tries=0)
        return _with(state, key, run), [SendReport(key, rest[0])]
    if run.phase == "reporting":
        return _forget(state, key), []
    return _with(state, key, replace(run, outbox=(), in_flight=False, tries=0)), []

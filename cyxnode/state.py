"""What a node knows and does next: (state, event, now) -> (state, actions). No clock, no I/O, no dice.

    register ──answered──▶ heartbeat every heartbeat_ms ──known: false──▶ register again, same session
    Assign ──▶ Run: fetching ─▶ ready ──Begin──▶ training ─▶ uploading ─▶ reporting ──answered──▶ forgotten
                       └──────────┴────────────────┴────────────┴── failed, halted ──▶ reporting
    Assign of a segment ──▶ Run that checks: it stores nothing, and ends with the digest that it found
    Pause ──▶ halted: a checkpoint is stored, then the run is reported as paused
    fenced, Stop, or named in a heartbeat's stop list ──▶ killed and forgotten
    node: working ──asked to drain──▶ no new run is taken; what runs goes on ──asked again──▶ as before
    node: working ──disk full──▶ likewise ──there is room──▶ as before
    node: working ──asked to stop──▶ halting: every run as with Pause ──all reported, or in time──▶ leaving ──▶ exit

A funded Assign is its own Begin. A run outlives the loss of central and broker: it goes on, and its reports are
repeated until somebody answers. Every request that an action sends comes back as exactly one event: answered, refused
or unanswered.
"""

from collections.abc import Callable
from typing import Any, Literal, cast

from msgspec import Struct
from msgspec.structs import replace

from cyxnet.messages import FIRST_CHECK, Assign, Begin, CommandReply, Pause, RunCheckpoint, RunRef, RunStarted
from cyxnode import outbox
from cyxnode.devicepool import DevicePool
from cyxnode.events import (
    Action,
    Advanced,
    Answer,
    Assigned,
    BeginAsked,
    BeginRun,
    CheckpointStored,
    DevicesRead,
    DiskChecked,
    DrainAsked,
    Event,
    Exit,
    FirstBatch,
    GoodbyeDone,
    HaltCode,
    HaltRun,
    HeartbeatAnswered,
    HeartbeatUnanswered,
    KillRun,
    LinkBack,
    Note,
    PauseAsked,
    Registered,
    RegisterRefused,
    RegisterUnanswered,
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
from cyxnode.outbox import Outbox

RETRY_MS = (100, 200, 400, 1000, 2000, 4000, 8000, 16_000)
ENDED_REMEMBERED = 256
STOP_GRACE_MS = 8000  # for the checkpoints of a node that is asked to stop: supervisors usually kill after 10 s
WORTH_TELLING = 8  # such a part of a device, when other programs have left it
DRAINED_MS = 2000  # for a replica that has answered everything, to end and be reported

Phase = Literal["fetching", "ready", "training", "uploading", "reporting"]


class Run(Struct, frozen=True):
    """One attempt at one job.

    begun: it may train. halting: it was told to store a checkpoint and end, with this code. gpu: the uuid of the NVIDIA
    device that it has until its last report is on its way.
    """

    assign: Assign
    phase: Phase = "fetching"
    begun: bool = True
    halting: HaltCode | None = None
    gpu: str = ""
    outbox: Outbox = Outbox()


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
    gpus: DevicePool = DevicePool()
    gpus_told: tuple[int, ...] = ()  # the free bytes of each, as central hears of them; empty until a run missed some
    runs: dict[RunKey, Run] = {}
    ended: tuple[RunKey, ...] = ()  # the newest runs that are over here: they are not begun again
    draining: bool = False
    disk_full: bool = False  # central hears of it as of draining: nothing new is taken until there is room again
    life: Literal["working", "halting", "leaving"] = "working"
    halt_by_ms: int | None = None  # when a halting node stops waiting for its runs
    stop_reason: str = ""


Step = tuple[State, list[Action]]


def step(state: State, event: Event, now_ms: int) -> Step:
    """The next state and what to do. Defined for every pair; what no longer concerns us changes nothing."""
    handler = _TABLES[state.life].get(type(event), _nothing)
    state, actions = handler(state, event, now_ms)
    if state.life == "halting" and (not state.runs or _due(state.halt_by_ms, now_ms)):
        state, more = _leave(state)
        actions = [*actions, *more]
    return state, actions


def next_wake_ms(state: State) -> int | None:
    """When the next Tick is needed; None when nothing waits for time."""
    due = [state.register_at_ms, state.heartbeat_at_ms, state.halt_by_ms]
    due += [run.outbox.retry_at_ms for run in state.runs.values()]
    return min((at_ms for at_ms in due if at_ms is not None), default=None)


def held_gpus(state: State) -> set[str]:
    """The uuids of the NVIDIA devices that runs have."""
    return {run.gpu for run in state.runs.values() if run.gpu and run.phase != "reporting"}


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
        refs = (
            RunRef(job_id=job_id, attempt=attempt, phase=run.phase) for (job_id, attempt), run in state.runs.items()
        )
        takes_none = state.draining or state.disk_full or state.life == "halting"
        actions.append(SendHeartbeat(tuple(refs), takes_none, state.gpus_told))
    for key, run in state.runs.items():
        if _due(run.outbox.retry_at_ms, now_ms):
            state, more = _say(state, key, run, outbox.again(run.outbox))
            actions += more
    return state, actions


def _on_registered(state: State, event: Registered, now_ms: int) -> Step:
    first = state.heartbeat_ms == 0
    # runs that central has forgotten are named at once, before it gives them to somebody else
    heartbeat_at_ms = now_ms if state.runs or state.draining or state.disk_full else now_ms + event.heartbeat_ms
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
        return replace(state, life="leaving", register_at_ms=None), [Exit(1, event.reason)]
    state, actions = _on_register_unanswered(state, RegisterUnanswered(), now_ms)
    return state, [Note(event.reason), *actions]


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
    for key in event.begin:
        state, more = _begin(state, key)
        actions += more
    for key in event.pause:
        state, more = _halt(state, key, "paused")
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
    if key in state.runs:  # the first answer was lost: the same command again is no second run
        state, actions = _begin(state, key) if assign.funded else (state, [])
        return state, [*actions, _yes()]
    if key in state.ended:
        return state, [_no(f"attempt {assign.attempt} of {assign.job_id} is over on this node")]
    if state.draining:
        return state, [_no("the node is draining: it takes no new runs")]
    if state.disk_full:
        return state, [_no("the node's disk is full: it takes no new runs until there is room")]
    if why_not := _not_checkable(assign):
        return state, [_no(why_not)]
    kin = [attempt for job_id, attempt in state.runs if job_id == assign.job_id]
    held = [attempt for attempt in kin if _is_check(attempt) == _is_check(assign.attempt)]
    if held and max(held) > assign.attempt:
        return state, [_no(f"attempt {max(held)} of {assign.job_id} runs here, {assign.attempt} is older")]
    actions = []
    for attempt in held:  # a newer attempt exists, so central fenced this one
        state, more = _kill(state, (assign.job_id, attempt), f"attempt {assign.attempt} takes its place")
        actions += more
    busy = [key for key, run in state.runs.items() if run.phase != "reporting"]
    if len(busy) >= state.max_runs:
        return state, [*actions, _no(f"no free slot: {len(busy)} of {state.max_runs} runs are busy")]
    gpu = ""
    if assign.job.needs.device == "cuda" and state.gpus.devices:
        needed_bytes = max(assign.gpu_memory_bytes, assign.job.needs.gpu_memory_bytes)
        choice = state.gpus.choose(assign.job_id, held_gpus(state), needed_bytes)
        if isinstance(choice, str):
            return _telling_room(state, now_ms), [*actions, _no(choice)]
        state, gpu = replace(state, gpus=choice[0]), choice[1].uuid
    run = Run(assign, begun=assign.funded, gpu=gpu)
    return _with(state, key, run), [*actions, _yes(), StartRun(assign, gpu)]


def _on_begin_asked(state: State, event: BeginAsked, now_ms: int) -> Step:
    refusal = _not_here(state, event.begin)
    if refusal:
        return state, [refusal]
    state, actions = _begin(state, (event.begin.job_id, event.begin.attempt))
    return state, [*actions, _yes()]


def _on_pause_asked(state: State, event: PauseAsked, now_ms: int) -> Step:
    refusal = _not_here(state, event.pause)
    if refusal:
        return state, [refusal]
    state, actions = _halt(state, (event.pause.job_id, event.pause.attempt), "paused")
    return state, [*actions, _yes()]


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
    phase: Phase = "training" if event.phase == "ready" and run.begun else event.phase
    return _with(state, event.key, replace(run, phase=phase)), []


def _on_first_batch(state: State, event: FirstBatch, now_ms: int) -> Step:
    run = state.runs.get(event.key)
    if run is None or run.phase == "reporting":
        return state, []
    job_id, attempt = event.key
    started = RunStarted(node_id=state.node_id, session=state.session, job_id=job_id, attempt=attempt)
    return _say(state, event.key, replace(run, phase="training", begun=True), outbox.post(run.outbox, started))


def _on_checkpoint_stored(state: State, event: CheckpointStored, now_ms: int) -> Step:
    run = state.runs.get(event.key)
    if run is None or run.phase == "reporting":
        return state, []
    return _say(state, event.key, run, outbox.post(run.outbox, event.report))


def _on_run_ended(state: State, event: RunEnded, now_ms: int) -> Step:
    run = state.runs.get(event.key)
    if run is None or run.phase == "reporting":
        return state, []
    return _say(state, event.key, replace(run, phase="reporting"), outbox.post(run.outbox, event.report))


def _on_report_answered(state: State, event: ReportAnswered, now_ms: int) -> Step:
    run = state.runs.get(event.key)
    if run is None or not run.outbox.in_flight:
        return state, []
    if event.fenced or not (event.accepted or isinstance(run.outbox.reports[0], RunCheckpoint)):
        return _kill(state, event.key, event.reason or "central no longer wants this attempt")
    state, actions = _say(state, event.key, run, outbox.answered(run.outbox))
    if not event.accepted:  # the run is as good as before, only not as safe
        actions = [Note(f"central did not take a checkpoint of {event.key[0]}: {event.reason}"), *actions]
    return state, actions


def _on_report_unanswered(state: State, event: ReportUnanswered, now_ms: int) -> Step:
    run = state.runs.get(event.key)
    if run is None or not run.outbox.in_flight:
        return state, []
    retry_at_ms = now_ms + retry_delay_ms(state.session, run.outbox.tries)
    return _say(state, event.key, run, outbox.unanswered(run.outbox, retry_at_ms))


def _on_shutdown_asked(state: State, event: ShutdownAsked, now_ms: int) -> Step:
    if not state.heartbeat_ms:  # central never knew it
        return replace(state, life="leaving", register_at_ms=None), [Exit(0, event.reason)]
    state = replace(state, life="halting", halt_by_ms=now_ms + _grace_ms(state), stop_reason=event.reason)
    actions: list[Action] = [Note(f"{event.reason}: stopping; its runs store a checkpoint first")] if state.runs else []
    for key in state.runs:
        state, more = _halt(state, key, "node_stopped")
        actions += more
    return _beating_at_once(state, now_ms), actions  # else central gives it back the runs that it reports as stopped


def _grace_ms(state: State) -> int:
    """How long the runs of a node that stops have: a replica as long as its client bought for what it has taken."""
    serving = (run.assign.job.serve for run in state.runs.values())
    return max([STOP_GRACE_MS, *(spec.drain_s * 1000 + DRAINED_MS for spec in serving if spec)])


def _on_drain_asked(state: State, event: DrainAsked, now_ms: int) -> Step:
    if event.drain == state.draining:
        return state, []
    note = "draining: no new run is taken" if event.drain else "taking runs again"
    return _beating_at_once(replace(state, draining=event.drain), now_ms), [Note(note)]


def _on_disk_checked(state: State, event: DiskChecked, now_ms: int) -> Step:
    if event.full == state.disk_full:
        return state, []
    full = "the disk is full: no new run is taken until there is room; free some space"
    note = full if event.full else "the disk has room again"
    return _beating_at_once(replace(state, disk_full=event.full), now_ms), [Note(note)]


def _on_devices_read(state: State, event: DevicesRead, now_ms: int) -> Step:
    held = held_gpus(state)  # of these, what our own runs take was read
    read = state.gpus.read(device for device in event.devices if device.uuid not in held)
    state = replace(state, gpus=read)
    more = any(
        device.free_bytes >= told + device.memory_bytes // WORTH_TELLING
        for device, told in zip(read.devices, state.gpus_told, strict=False)
    )
    return _telling_room(state, now_ms) if more else state, []


def _telling_room(state: State, now_ms: int) -> State:
    """Central shall know what other programs leave of the devices: else it would lease the same run once more.

    Less of it is told when a run has missed it, and more when it is an eighth of a device: programs come and go.
    """
    room = tuple(device.free_bytes for device in state.gpus.devices)
    return state if room == state.gpus_told else _beating_at_once(replace(state, gpus_told=room), now_ms)


def _on_link_back(state: State, _: LinkBack, now_ms: int) -> Step:
    """What waits for its next try is tried now; if central is not back yet, as often as at first."""
    soon_ms = now_ms + retry_delay_ms(state.session, 0)  # nodes whose links come back together are not in step
    for key, run in state.runs.items():
        if run.outbox.retry_at_ms is not None:
            state = _with(state, key, replace(run, outbox=replace(run.outbox, retry_at_ms=soon_ms, tries=0)))
    state = replace(state, register_tries=0, heartbeat_misses=0)
    if state.register_at_ms is not None:
        state = replace(state, register_at_ms=soon_ms)
    return _beating_at_once(state, soon_ms), []


def _beating_at_once(state: State, now_ms: int) -> State:
    """Central shall know it now, not at the next beat; while one is on its way, with the next."""
    return state if state.heartbeat_at_ms is None else replace(state, heartbeat_at_ms=now_ms)


def _on_shutdown_asked_again(state: State, _: ShutdownAsked, now_ms: int) -> Step:
    state, actions = _leave(state)
    return state, [*actions[:-1], Exit(0, "stopped at once")]


def _on_goodbye_done(state: State, _: GoodbyeDone, now_ms: int) -> Step:
    return state, [Exit(0, "stopped")]


def _nothing(state: State, _: Any, now_ms: int) -> Step:
    return state, []


def _refuse(state: State, _: Any, now_ms: int) -> Step:
    return state, [_no("the node is stopping")]


Table = dict[type, Callable[[State, Any, int], Step]]

_WORKING: Table = {
    Tick: _on_tick,
    Registered: _on_registered,
    RegisterRefused: _on_register_refused,
    RegisterUnanswered: _on_register_unanswered,
    HeartbeatAnswered: _on_heartbeat_answered,
    HeartbeatUnanswered: _on_heartbeat_unanswered,
    Assigned: _on_assigned,
    BeginAsked: _on_begin_asked,
    PauseAsked: _on_pause_asked,
    StopAsked: _on_stop_asked,
    Advanced: _on_advanced,
    FirstBatch: _on_first_batch,
    CheckpointStored: _on_checkpoint_stored,
    RunEnded: _on_run_ended,
    ReportAnswered: _on_report_answered,
    ReportUnanswered: _on_report_unanswered,
    ShutdownAsked: _on_shutdown_asked,
    DrainAsked: _on_drain_asked,
    DiskChecked: _on_disk_checked,
    DevicesRead: _on_devices_read,
    LinkBack: _on_link_back,
}
_TABLES: dict[str, Table] = {
    "working": _WORKING,
    "halting": _WORKING | {Assigned: _refuse, BeginAsked: _refuse, ShutdownAsked: _on_shutdown_asked_again},
    "leaving": {
        Assigned: _refuse,
        BeginAsked: _refuse,
        PauseAsked: _refuse,
        StopAsked: _refuse,
        ShutdownAsked: _on_shutdown_asked_again,
        GoodbyeDone: _on_goodbye_done,
    },
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


def _not_here(state: State, command: Begin | Pause) -> Answer | None:
    """The refusal of a command about a run that this session does not have."""
    if command.session != state.session:
        return _no(f"expected session {state.session}, got {command.session}: the node was restarted")
    if (command.job_id, command.attempt) not in state.runs:
        return _no(f"attempt {command.attempt} of {command.job_id} is not on this node")
    return None


def _is_check(attempt: int) -> bool:
    return attempt >= FIRST_CHECK


def _not_checkable(assign: Assign) -> str | None:
    """Why a command to check something, or its number, makes no sense."""
    if _is_check(assign.attempt) != (assign.segment is not None):
        return f"attempts from {FIRST_CHECK} on are checks, and no others; got {assign.attempt}"
    if assign.segment and (assign.job.serve or assign.job.sealed):
        return "only a training in plain text can be checked"
    return None


def _begin(state: State, key: RunKey) -> Step:
    run = state.runs.get(key)
    if run is None or run.begun or run.halting:
        return state, []
    phase: Phase = "training" if run.phase == "ready" else run.phase
    return _with(state, key, replace(run, begun=True, phase=phase)), [BeginRun(key)]


def _halt(state: State, key: RunKey, code: HaltCode) -> Step:
    """A run that is delivered or reported already is as good as over, and goes on to its end."""
    run = state.runs.get(key)
    if run is None or run.halting or run.phase in ("uploading", "reporting"):
        return state, []
    return _with(state, key, replace(run, halting=code)), [HaltRun(key, code)]


def _leave(state: State) -> Step:
    kills: list[Action] = [KillRun(key, state.stop_reason) for key in state.runs]
    state = replace(state, life="leaving", runs={}, register_at_ms=None, heartbeat_at_ms=None, halt_by_ms=None)
    return state, [*kills, SayGoodbye(state.stop_reason)]


def _say(state: State, key: RunKey, run: Run, sent: outbox.Sent) -> Step:
    """The run with its new outbox; one that has said its last word is forgotten."""
    box, report = sent
    if run.phase == "reporting" and not box.reports:
        return _forget(state, key), []
    return _with(state, key, replace(run, outbox=box)), [SendReport(key, report)] if report else []

"""The loop of a node: hears the broker, the clock and its runs, asks cyxnode/state.py what to do, and does it."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from importlib import metadata
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from cyxcore.errors import CyxError
from cyxnet import artifacts, envelope, subjects
from cyxnet.bus import ApiError, Bus, BusError
from cyxnet.codec import BadMessage
from cyxnet.commands import MAX_COMMAND_BYTES, Guard, NotTaken
from cyxnet.credentials import Credentials, as_replica
from cyxnet.messages import (
    Assign,
    Begin,
    Command,
    CommandReply,
    Goodbye,
    Hardware,
    Heartbeat,
    HeartbeatReply,
    Orders,
    Pause,
    Register,
    RegisterReply,
    ReportReply,
    RunCheckpoint,
    RunCompleted,
    RunFailed,
    RunRef,
    RunStarted,
    SegmentTrained,
    SignedCommand,
    Stop,
)
from cyxnode import events as e
from cyxnode import hardware
from cyxnode.cache import ArtifactCache
from cyxnode.devicepool import Device, DevicePool
from cyxnode.errors import NodeError
from cyxnode.home import Home
from cyxnode.process import Pool
from cyxnode.runs import UNSIGNED, Runs, Share
from cyxnode.signing import Signing
from cyxnode.state import State, held_gpus, next_wake_ms, step
from cyxnode.telemetry import Telemetry

log = logging.getLogger(__name__)

HARDWARE_INTERVAL_S = 5.0
REQUEST_TIMEOUT_S = 5.0
GOODBYE_TIMEOUT_S = 2.0
SHORTEST_HEARTBEAT_MS = 100  # whatever central says, a node does not flood it
FULL_DISK_BYTES, ROOM_AGAIN_BYTES = 64 * 2**20, 128 * 2**20  # free; apart, so that a node is not now this, now that
MEMORY_SHARE = 0.9  # of the memory is lent: the rest is the agent's, the warm process's and the system's

REPORT_VERBS: dict[type, str] = {
    RunStarted: "started",
    RunCheckpoint: "checkpoint",
    RunFailed: "failed",
    RunCompleted: "completed",
    SegmentTrained: "segment",
}
COMMANDS: dict[type, Callable[[Any], e.Event]] = {
    Assign: e.Assigned,
    Begin: e.BeginAsked,
    Pause: e.PauseAsked,
    Stop: e.StopAsked,
}


class Settings(Struct, frozen=True, kw_only=True):
    """What the operator decides. Sizes in bytes; offer_bytes None: the whole machine. devices: the NVIDIA devices that
    jobs get, one each, chosen by gpu_policy (a name in devicepool.POLICIES).
    """

    max_runs: int = 1
    region: str = ""
    price_per_hour_base_units: int = 0
    offer_bytes: int | None = None
    cache_bytes: int = 10 * 10**9
    devices: tuple[Device, ...] = ()
    gpu_policy: str = "least-utilized"


class Agent:
    """A node from its registration to its goodbye. on_ready() is called once central has taken it in."""

    def __init__(
        self,
        home: Home,
        bus: Bus,
        pool: Pool,
        facts: Hardware,
        settings: Settings,
        on_ready: Callable[[], None],
        network_id: str = "",
        connect: Callable[[Credentials], Awaitable[Bus]] | None = None,
        platform_key: str = "",
    ):
        """network_id: what the node signs is for this network; "" for whichever central says it belongs to.

        platform_key: commands are checked by it; "" for the one that the first central ever said, or says now.
        connect: makes the connection of a replica to the same broker; None: this node serves nothing.
        """
        self.session = secrets.token_hex(16)
        self._began_ms = home.next_session_ms()
        self._home = home
        self._bus = bus
        self._facts = facts
        self._settings = settings
        self._on_ready = on_ready
        self._ahead_ms = _wall_ms() - _now_ms()  # of the clock that commands are good by: it never jumps in a session
        trust = home.trust(network_id, platform_key)
        self._signing = Signing(home.key.sign, trust.network_id, _wall_ms, _now_ms)
        self._guard = Guard(home.node_id, self.session, trust, self._clock_ms, home.keep_trust)
        self._heartbeats = 0
        gpus = DevicePool(devices=settings.devices, policy=settings.gpu_policy)
        self._state = State(node_id=home.node_id, session=self.session, max_runs=settings.max_runs, gpus=gpus)
        self._limits = hardware.cgroup_limits()
        self._meter = hardware.Meter(home.node_id, self.session, [device.index for device in settings.devices])
        self._run_began = asyncio.Event()
        self._telemetry = Telemetry(bus, home.node_id, self.session)
        self._woken = asyncio.Event()
        self._exit: e.Exit | None = None
        self._tasks: set[asyncio.Task[None]] = set()

        async def fetch(sha256: str, path: Path) -> object:
            return await artifacts.get(bus, home.node_id, sha256, path, max_bytes=settings.cache_bytes)

        async def connect_replica(job_id: str, attempt: int) -> Bus:
            if connect is None:
                raise NodeError("this node serves no models")
            return await connect(as_replica(home.key, home.node_id, job_id, attempt))

        self._cache = ArtifactCache(home.cache_folder, settings.cache_bytes, fetch)
        self._runs = Runs(
            bus,
            home.node_id,
            self.session,
            pool,
            self._cache,
            self._telemetry,
            Share(
                threads=max(1, facts.cores // settings.max_runs),
                memory_bytes=int(facts.memory_bytes * MEMORY_SHARE) // settings.max_runs,
                runs=settings.max_runs,
            ),
            self.tell,
            connect_replica,
            envelope.as_node(home.key),
        )

    async def run(self) -> int:
        """Until somebody asks for the end. Returns the exit status; no run is left."""
        kinds = Command | SignedCommand
        subject = subjects.command(self._home.node_id)
        await self._bus.answer(subject, kinds, self._on_command, max_bytes=MAX_COMMAND_BYTES)
        self._bus.on_link_back = self._link_is_back
        watching = asyncio.create_task(self._watch_hardware())
        try:
            while self._exit is None:
                await self._sleep()
                self.tell(e.Tick())
        finally:
            watching.cancel()
            await self._runs.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(watching, *self._tasks, return_exceptions=True)
        log.info("%s", self._exit.reason)
        return self._exit.code

    def stop(self, reason: str) -> None:
        """Have the runs store a checkpoint, say goodbye, end. A second call ends at once."""
        self.tell(e.ShutdownAsked(reason))

    def drain(self, drain: bool) -> None:
        """Take no new runs from here on, or (False) take them again."""
        self.tell(e.DrainAsked(drain))

    def tell(self, event: e.Event) -> list[e.Action]:
        """Something happened: decide and do. Returns the actions, of which Answer is the caller's to give."""
        self._state, actions = step(self._state, event, _now_ms())
        for action in actions:
            _DOERS[type(action)](self, action)
        self._woken.set()
        return actions

    async def _sleep(self) -> None:
        """Until the state wants a Tick, or something happened that may change when it does."""
        wake_ms = next_wake_ms(self._state)
        if self._exit is not None or (wake_ms is not None and wake_ms <= _now_ms()):
            return
        self._woken.clear()
        try:
            timeout_s = None if wake_ms is None else (wake_ms - _now_ms()) / 1000
            async with asyncio.timeout(timeout_s):
                await self._woken.wait()
        except TimeoutError:
            pass

    def _link_is_back(self) -> None:
        self.tell(e.LinkBack())

    def _clock_ms(self) -> int:
        return _now_ms() + self._ahead_ms

    def _not_taken(self, error: NotTaken) -> None:
        """Often at first, then ever more seldom: who sends many may not fill the log."""
        count = self._guard.refused[error.code]
        if count & (count - 1) == 0:
            log.warning("not a command of central (%s, %d so far): %s", error.code, count, error)

    async def _on_command(self, subject: str, said: Command | SignedCommand) -> CommandReply:
        try:
            command = self._guard.opened(said)
        except NotTaken as error:
            self._not_taken(error)
            return CommandReply(accepted=False, reason=str(error), code=error.code, now_ms=self._clock_ms())
        reply = self._obeyed(command)
        if reply.accepted:
            self._guard.took(command, said)
        return reply

    def _obeyed(self, command: Command) -> CommandReply:
        for action in self.tell(COMMANDS[type(command)](command)):
            if isinstance(action, e.Answer):
                if not action.reply.accepted:
                    log.warning("refused %s: %s", type(command).__name__, action.reply.reason)
                return action.reply
        raise AssertionError("a command has exactly one answer")

    async def _watch_hardware(self) -> None:
        """Tell the hardware's metrics every few seconds, and at once when a run has made its first step.

        A disk without room for another run is seen here too, and what other programs leave of the NVIDIA devices.
        """
        while True:
            self._run_began.clear()
            with contextlib.suppress(OSError):  # a folder that is gone is said by whoever needs it
                free_bytes = await asyncio.to_thread(self._cache.disk_free_bytes, ROOM_AGAIN_BYTES)
                least_bytes = ROOM_AGAIN_BYTES if self._state.disk_full else FULL_DISK_BYTES
                self.tell(e.DiskChecked(free_bytes < least_bytes))
            if self._state.gpus.devices:
                self.tell(e.DevicesRead(await asyncio.to_thread(self._free_devices, held_gpus(self._state))))
            runs = [RunRef(job_id=job_id, attempt=attempt) for job_id, attempt in self._state.runs]
            if self._state.registered:
                await self._telemetry.hardware(await asyncio.to_thread(self._meter.read, runs))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HARDWARE_INTERVAL_S):
                    await self._run_began.wait()

    def _free_devices(self, held: set[str]) -> tuple[Device, ...]:
        """Those that no run has, as they are read now; one that cannot be read any more has nothing free."""
        read = {device.uuid: device for device in hardware.devices()}
        return tuple(
            read.get(device.uuid, replace(device, free_bytes=0))
            for device in self._settings.devices
            if device.uuid not in held
        )

    # -- doing ------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            # a request without its event would leave the state waiting for ever
            log.error("a bug in the node; it ends", exc_info=error)
            self._exit = e.Exit(1, "a bug in the node; the lines above say where")
            self._woken.set()

    def _send_register(self, _: e.SendRegister) -> None:
        self._spawn(self._register())

    async def _register(self) -> None:
        home, settings = self._home, self._settings
        register = Register(
            node_id=home.node_id,
            session=self.session,
            name=home.name,
            public_key=home.key.public_key,
            wallet=home.wallet_address,
            hardware=self._facts,
            max_runs=settings.max_runs,
            region=settings.region,
            price_per_hour_base_units=settings.price_per_hour_base_units,
            version=_version(),
            began_ms=self._began_ms,
            signature=UNSIGNED,
            signed_commands=True,
            now_ms=self._clock_ms(),
            checks=True,
            shared_signatures=True,
            signed_goodbyes=True,
        )
        try:
            reply = await self._ask("register", register, RegisterReply, REQUEST_TIMEOUT_S)
        except ApiError as error:
            self.tell(e.RegisterRefused(f"central refused the registration: {error}"))
        except (BusError, BadMessage):
            self.tell(e.RegisterUnanswered())
        else:
            self._signing.told(reply.now_ms, reply.network_id)
            if why_not := self._guard.told(reply.network_id, reply.platform_key):
                if self._guard.trust.platform_key:
                    where = f"--platform-key, network.json or {self._home.trust_path} (delete that to learn anew)"
                    why_not = f"{why_not}; what is expected is in {where}"
                await self._say_farewell("the node works for another platform")  # else it would be given jobs
                self.tell(e.RegisterRefused(f"this node does not work for that central: {why_not}"))
                return
            self.tell(e.Registered(max(reply.heartbeat_ms, SHORTEST_HEARTBEAT_MS)))

    def _send_heartbeat(self, action: e.SendHeartbeat) -> None:
        self._spawn(self._heartbeat(action))

    async def _heartbeat(self, action: e.SendHeartbeat) -> None:
        free_bytes = hardware.memory(self._limits, self._settings.offer_bytes)[1]
        self._heartbeats = number = self._heartbeats + 1
        heartbeat = Heartbeat(
            node_id=self._home.node_id,
            session=self.session,
            runs=[self._with_figures(run) for run in action.runs],
            memory_free_bytes=free_bytes,
            draining=action.draining,
            gpus_free_bytes=list(action.gpus_free_bytes),
            number=number,
            now_ms=self._clock_ms(),
        )
        timeout_s = min(REQUEST_TIMEOUT_S, self._state.heartbeat_ms / 1000)
        try:
            reply = await self._ask("heartbeat", heartbeat, HeartbeatReply, timeout_s)
        except CyxError:
            self.tell(e.HeartbeatUnanswered())
            return
        self._signing.told(reply.now_ms)
        try:
            orders = self._guard.orders(reply, number)
        except NotTaken as error:
            self._not_taken(error)
            orders = Orders()
        self.tell(e.HeartbeatAnswered(reply.known, _keys(orders.stop), _keys(orders.begin), _keys(orders.pause)))
        await self._telemetry.link_is_back()

    def _with_figures(self, run: RunRef) -> RunRef:
        key = (run.job_id, run.attempt)
        run = replace(run, step=self._runs.step(key))
        served = self._runs.requests(key)
        return replace(run, requests=served[0], waiting=served[1], answers_pings=True) if served else run

    def _send_report(self, action: e.SendReport) -> None:
        if isinstance(action.report, RunStarted):
            self._run_began.set()
        self._spawn(self._report(action.key, action.report))

    async def _report(self, key: e.RunKey, report: e.Report) -> None:
        try:
            reply = await self._ask(REPORT_VERBS[type(report)], report, ReportReply, REQUEST_TIMEOUT_S)
        except ApiError as error:
            self.tell(e.ReportAnswered(key, accepted=False, reason=f"refused by central: {error}"))
        except (BusError, BadMessage):
            self.tell(e.ReportUnanswered(key))
        else:
            self.tell(e.ReportAnswered(key, reply.accepted, reply.fenced, reply.reason))

    async def _ask(self, verb: str, message: Any, reply: type[Any], timeout_s: float) -> Any:
        """Ask central, signed. A refusal that may pass (429, 5xx, too late) counts as no answer: raises BusError."""
        subject, signed = subjects.node(self._home.node_id, verb), self._signing.signed(message)
        try:
            return await self._bus.ask(subject, signed, reply, timeout_s=timeout_s)
        except ApiError as error:
            again = self._signing.refused(error.code, error.now_ms)
            if error.status >= 500 or error.status == 429 or again:
                raise BusError(str(error)) from None
            raise

    def _start_run(self, action: e.StartRun) -> None:
        log.info("run %s/%d: %s", action.assign.job_id, action.assign.attempt, action.assign.job.name)
        if action.gpu:
            log.info("run %s/%d has the device %s", action.assign.job_id, action.assign.attempt, action.gpu)
        self._runs.start(action.assign, action.gpu)

    def _begin_run(self, action: e.BeginRun) -> None:
        self._runs.begin(action.key)

    def _halt_run(self, action: e.HaltRun) -> None:
        log.info("run %s/%d is halted (%s); its state is stored first", *action.key, action.code)
        self._runs.halt(action.key, action.code)

    def _kill_run(self, action: e.KillRun) -> None:
        log.info("run %s/%d is discarded: %s", *action.key, action.reason)
        self._runs.kill(action.key)

    def _answer(self, _: e.Answer) -> None:
        """_on_command gives it: the reply goes to whom the command came from."""

    def _say_ready(self, _: e.SayReady) -> None:
        self._on_ready()

    def _say_goodbye(self, action: e.SayGoodbye) -> None:
        self._spawn(self._goodbye(action.reason))

    async def _goodbye(self, reason: str) -> None:
        await self._say_farewell(reason)
        self.tell(e.GoodbyeDone())

    async def _say_farewell(self, reason: str) -> None:
        goodbye = Goodbye(node_id=self._home.node_id, session=self.session, reason=reason)
        try:
            await self._ask("goodbye", goodbye, ReportReply, GOODBYE_TIMEOUT_S)
        except CyxError as error:
            log.info("nobody heard the goodbye (%s); central will notice by itself", error)

    def _end(self, action: e.Exit) -> None:
        self._exit = self._exit or action

    def _note(self, action: e.Note) -> None:
        log.info("%s", action.text)


_DOERS: dict[type, Callable[[Agent, Any], None]] = {
    e.SendRegister: Agent._send_register,
    e.SendHeartbeat: Agent._send_heartbeat,
    e.SendReport: Agent._send_report,
    e.StartRun: Agent._start_run,
    e.BeginRun: Agent._begin_run,
    e.HaltRun: Agent._halt_run,
    e.KillRun: Agent._kill_run,
    e.Answer: Agent._answer,
    e.SayReady: Agent._say_ready,
    e.SayGoodbye: Agent._say_goodbye,
    e.Exit: Agent._end,
    e.Note: Agent._note,
}


def _keys(refs: list[RunRef]) -> tuple[e.RunKey, ...]:
    return tuple((ref.job_id, ref.attempt) for ref in refs)


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def _version() -> str:
    try:
        return metadata.version("cyx")[:32]
    except metadata.PackageNotFoundError:  # run from a checkout
        return ""

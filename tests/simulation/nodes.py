"""A node: production's cyxnode.state decides, and what it decides is performed here. Training takes virtual time.

A run's state after k steps is a hash of its job and every step before, so that what is delivered shows whether each
step was made exactly once and in order, on whatever nodes.
"""

import asyncio
import functools
import hashlib
from collections.abc import Coroutine
from typing import Any, cast

import msgspec
from msgspec.structs import replace

from cyxcore.errors import CyxError
from cyxcore.spec import EpochMetrics, TrainingSummary
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.bus import ApiError, BusError
from cyxnet.codec import MSGPACK, BadMessage, encode
from cyxnet.commands import MAX_COMMAND_BYTES, Guard, NotTaken, Trust
from cyxnet.identity import Identity
from cyxnet.wallet import Wallet
from cyxnode import events as e
from cyxnode.signing import Signing
from cyxnode.state import State, next_wake_ms, retry_delay_ms, step
from tests.simulation import cheats, replicas
from tests.simulation.faults import FIRST_WALL_MS, HOUR_MS
from tests.simulation.loop import ProcessLoop
from tests.simulation.wire import Process, SimBus

STEP_S = 0.4
WORKING = ("training", "uploading")
ROOMLESS_NODES = 2  # of the five, for one job
REQUEST_TIMEOUT_S = 5.0
VERBS: dict[type, str] = {
    m.RunStarted: "started",
    m.RunCheckpoint: "checkpoint",
    m.RunFailed: "failed",
    m.RunCompleted: "completed",
    m.SegmentTrained: "segment",
}
GRAPH_SHA256 = "c" * 64


@functools.lru_cache(maxsize=4096)
def identity(number: int) -> Identity:
    return Identity(number.to_bytes(32, "big"))


wallet_of = functools.cache(Wallet)  # by its seed


@functools.cache
def wallet(number: int) -> Wallet:
    return Wallet(identity(number).child("wallet"))


@functools.lru_cache(maxsize=1 << 16)
def state_after(name: str, steps: int) -> bytes:
    """What training the job `name` for so many steps gives."""
    if steps == 0:
        return f"{name} untrained".encode()
    return cheats.next_state(state_after(name, steps - 1), steps)


def model_of(name: str, steps: int) -> bytes:
    return b"model " + state_after(name, steps)


def summary_of(name: str, steps: int) -> TrainingSummary:
    return TrainingSummary(
        total_time_ms=1.0,
        steps=steps,
        final_loss=1 + hashlib.sha256(name.encode()).digest()[0] % 8,  # that some models are as good as others
        final_accuracy=hashlib.sha256(name.encode()).digest()[1] / 256,
        best_epoch=1,
        delivered_epoch=1,
        train_rows=1,
        validation_rows=1,
        parameters=1,
    )


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def steps_of(job: m.JobRequest) -> int:
    assert job.facts is not None
    return job.training.epochs * -(-job.facts.rows // job.training.batch_size)


def node_id(number: int) -> str:
    return f"node-{number}-{identity(100 + number).short_id}"


class Node(Process):
    """One session of a node: from its start to its death."""

    def __init__(self, loop: ProcessLoop, network: Any, number: int, max_runs: int, session: str):
        super().__init__(loop)
        self.network = network
        self.number = number
        self.key = identity(100 + number)
        self.node_id = node_id(number)
        self.bus = SimBus(self, network.edge)
        self.session = session
        self.state = State(node_id=self.node_id, session=session, max_runs=max_runs)
        self.max_runs = max_runs
        self.signing = Signing(self.key.sign, "", self.wall_ms, lambda: int(self.loop.time() * 1000))
        began_ms = self.wall_ms() - int(self.loop.time() * 1000)
        self.clock_ms = lambda: began_ms + int(self.loop.time() * 1000)
        self.guard = Guard(self.node_id, session, Trust(), self.clock_ms)
        self.heartbeats = 0
        self.exited: e.Exit | None = None
        self._runs: dict[e.RunKey, Run] = {}
        self._timer: Any = None

    @property
    def wallet(self) -> str:
        return cast(str, self.network.wallets[self.number])

    def wall_ms(self) -> int:
        """Its own clock is up to two hours off."""
        date_ms = self.network.faults.date_ms(self.network.scheduler.now_s)
        return FIRST_WALL_MS + date_ms + (self.number % 5 - 2) * HOUR_MS

    async def main(self) -> None:
        kinds = m.Command | m.SignedCommand
        await self.bus.answer(subjects.command(self.node_id), kinds, self.on_command, max_bytes=MAX_COMMAND_BYTES)
        self.tell(e.Tick())

    def tell(self, event: e.Event) -> list[e.Action]:
        """Decide, do, and wake up when the state wants to."""
        now_ms = int(self.loop.time() * 1000)
        self.state, actions = step(self.state, event, now_ms)
        for action in actions:
            DOERS[type(action)](self, action)
        runs = self.state.runs
        if len(runs) > self.max_runs and (busy := sum(r.phase in WORKING for r in runs.values())) > self.max_runs:
            self.network.scheduler.fail(f"I12: {self.node_id} makes {busy} runs at once, at most {self.max_runs}")
        if self._timer:
            self._timer.cancel()
        wake_ms = next_wake_ms(self.state)
        if wake_ms is not None and self.exited is None:
            self._timer = self.loop.call_later(max(0.001, (wake_ms - now_ms) / 1000), self.tell, e.Tick())
        return actions

    async def on_command(self, subject: str, said: m.Command | m.SignedCommand) -> m.CommandReply:
        try:
            command = self.guard.opened(said)
        except NotTaken as error:
            return m.CommandReply(accepted=False, reason=str(error), code=error.code, now_ms=self.clock_ms())
        reply = self._obeyed(command)
        if reply.accepted:
            self.network.checks.obeyed(self.node_id, self.session, command, said)
            self.guard.took(command, said)
        return reply

    def _obeyed(self, command: m.Command) -> m.CommandReply:
        event = {m.Assign: e.Assigned, m.Begin: e.BeginAsked, m.Pause: e.PauseAsked, m.Stop: e.StopAsked}[type(command)]
        for action in self.tell(event(command)):
            if isinstance(action, e.Answer):
                return action.reply
        raise AssertionError("a command has exactly one answer")

    # -- what the state asks for ---------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        return self.loop.create_task(work)

    async def _ask(self, verb: str, message: Any, reply: Any, timeout_s: float = REQUEST_TIMEOUT_S) -> Any:
        signed = self.signing.signed(message)
        try:
            return await self.bus.ask(subjects.node(self.node_id, verb), signed, reply, timeout_s=timeout_s)
        except ApiError as error:
            again = self.signing.refused(error.code, error.now_ms)
            if error.status >= 500 or error.status == 429 or again:
                raise BusError(str(error)) from None
            raise

    async def _register(self) -> None:
        said = m.Register(
            node_id=self.node_id,
            session=self.session,
            name=f"node-{self.number}",
            public_key=self.key.public_key,
            wallet=self.wallet,
            hardware=m.Hardware(cores=4, memory_bytes=2**33, memory_free_bytes=2**33, flops_per_s=1e11),
            max_runs=self.max_runs,
            began_ms=int(self.session[2:], 16),
            signature="0" * 128,
            signed_commands=True,
            shared_signatures=self.number % 3 != 0,  # as nodes of versions beside each other
            signed_goodbyes=self.number % 3 != 0,
            now_ms=self.clock_ms(),
            checks=True,
        )
        try:
            reply = await self._ask("register", said, m.RegisterReply)
        except ApiError as error:
            self.tell(e.RegisterRefused(str(error)))
        except (BusError, BadMessage):
            self.tell(e.RegisterUnanswered())
        else:
            assert not self.guard.told(reply.network_id, reply.platform_key)
            self.signing.told(reply.now_ms, reply.network_id)
            self.tell(e.Registered(reply.heartbeat_ms))

    async def _heartbeat(self, action: e.SendHeartbeat) -> None:
        refs = [
            replace(ref, step=run.step, **(self._served if run.assign.job.serve else {}))
            if (run := self._runs.get(_key(ref)))
            else ref
            for ref in action.runs
        ]
        self.heartbeats = number = self.heartbeats + 1
        said = m.Heartbeat(
            node_id=self.node_id,
            session=self.session,
            runs=refs,
            draining=action.draining,
            gpus_free_bytes=list(action.gpus_free_bytes),
            number=number,
            now_ms=self.clock_ms(),
        )
        checks = self.network.checks
        registered = checks.registered(self.node_id, self.session)
        held = {_key(ref): checks.held(self.node_id, self.session, *_key(ref)) for ref in refs}
        try:
            reply = await self._ask(
                "heartbeat", said, m.HeartbeatReply, min(REQUEST_TIMEOUT_S, self.state.heartbeat_ms / 1000)
            )
        except CyxError:
            self.tell(e.HeartbeatUnanswered())
            return
        self.signing.told(reply.now_ms)
        if not reply.known:
            checks.told_no(f"{self.node_id} is unknown", registered, checks.registered(self.node_id, self.session))
        orders = self.guard.orders(reply, number)
        for key in map(_key, orders.stop):
            now = checks.held(self.node_id, self.session, *key)
            checks.told_no(f"{self.node_id} does not hold {key}", held[key], now)
        lists = (tuple(map(_key, refs)) for refs in (orders.stop, orders.begin, orders.pause))
        self.tell(e.HeartbeatAnswered(reply.known, *lists))

    @property
    def hears_pings(self) -> bool:
        """Nodes of versions beside each other: of some, replicas do not hear whether they are asked."""
        return self.number % 3 != 0

    @property
    def _served(self) -> dict[str, Any]:
        return {"waiting": self.network.wishes.waiting(), "answers_pings": self.hears_pings}

    async def _report(self, key: e.RunKey, report: e.Report) -> None:
        checks = self.network.checks
        held = checks.held(self.node_id, self.session, *key)
        try:
            reply = await self._ask(VERBS[type(report)], report, m.ReportReply)
        except ApiError as error:
            self.tell(e.ReportAnswered(key, accepted=False, reason=str(error)))
        except (BusError, BadMessage):
            self.tell(e.ReportUnanswered(key))
        else:
            if reply.fenced:
                now = checks.held(self.node_id, self.session, *key)
                checks.told_no(f"{self.node_id} does not hold {key}", held, now)
            self.tell(e.ReportAnswered(key, reply.accepted, reply.fenced, reply.reason))

    async def _goodbye(self, reason: str) -> None:
        try:
            await self._ask("goodbye", m.Goodbye(node_id=self.node_id, session=self.session), m.ReportReply, 2.0)
        except CyxError:
            pass
        self.tell(e.GoodbyeDone())

    def _start_run(self, action: e.StartRun) -> None:
        run = Run(self, action.assign)
        self._runs[run.key] = run
        run.task = self._spawn(run.perform())

    def _kill_run(self, action: e.KillRun) -> None:
        if run := self._runs.pop(action.key, None):
            run.kill()

    def _begin_run(self, action: e.BeginRun) -> None:
        if run := self._runs.get(action.key):
            run.begun.set()

    def _halt_run(self, action: e.HaltRun) -> None:
        if run := self._runs.get(action.key):
            run.halt = action.code
            run.begun.set()
            run.halted.set()

    def _exit(self, action: e.Exit) -> None:
        self.exited = action
        self.network.node_ended(self)

    def forget(self, key: e.RunKey) -> None:
        self._runs.pop(key, None)


def _key(ref: m.RunRef) -> e.RunKey:
    return (ref.job_id, ref.attempt)


DOERS: dict[type, Any] = {
    e.SendRegister: lambda node, action: node._spawn(node._register()),
    e.SendHeartbeat: lambda node, action: node._spawn(node._heartbeat(action)),
    e.SendReport: lambda node, action: node._spawn(node._report(action.key, action.report)),
    e.StartRun: Node._start_run,
    e.BeginRun: Node._begin_run,
    e.HaltRun: Node._halt_run,
    e.KillRun: Node._kill_run,
    e.SayGoodbye: lambda node, action: node._spawn(node._goodbye(action.reason)),
    e.Exit: Node._exit,
    e.Answer: lambda node, action: None,
    e.SayReady: lambda node, action: None,
    e.Note: lambda node, action: None,
}


class Run:
    """One attempt: fetch, prepare, train step by step, store checkpoints, deliver; or serve."""

    def __init__(self, node: Node, assign: m.Assign):
        self.node = node
        self.assign = assign
        self.key: e.RunKey = (assign.job_id, assign.attempt)
        self.begun = asyncio.Event()
        if assign.funded:
            self.begun.set()
        self.halt: str | None = None
        self.halted = asyncio.Event()
        start = assign.segment.start if assign.segment else assign.resume
        self.step = start.step if start else 0
        self.task: asyncio.Task[None] | None = None
        self.storing: asyncio.Task[None] | None = None

    def kill(self) -> None:
        for task in (self.task, self.storing):
            if task:
                task.cancel()

    def is_too_large(self) -> bool:
        """For the memory of this node. One of those that are not banned has room for it: else it waits for ever."""
        network = self.node.network
        hit = network.faults.hit("run_is_too_large")
        return hit and len(set(network.checks.jobs[self.assign.job_id].ran_out)) < ROOMLESS_NODES

    async def halts(self) -> None:
        """It was told to end, and does, or hangs."""
        if self.node.network.faults.ignores_halt():
            await asyncio.sleep(10_000)

    async def perform(self) -> None:
        try:
            report: m.RunFailed | m.RunCompleted | m.SegmentTrained
            if self.assign.segment:
                report = await self._check(self.assign.segment)
            else:
                report = await (replicas.serve(self) if self.assign.job.serve else self._train())
        except CyxError as error:
            report = self.failed(error.code, str(error))
        self.node.forget(self.key)
        self.node.tell(e.RunEnded(self.key, report))

    async def _check(self, segment: m.Segment) -> m.RunFailed | m.SegmentTrained:
        """Train a segment once more, from what is stored, and say what its end is."""
        faults, dice, job = self.node.network.faults, self.node.network.scheduler.dice, self.assign.job
        await asyncio.sleep(0.02 + dice.random() * 0.3)
        start = state_after(job.name, 0)
        if segment.start:
            start = await self._fetch(segment.start.state.sha256)
            if faults.is_bad(segment.start.state.sha256):
                return self.failed("bad_checkpoint", "no state can be read in it")
        self.node.tell(e.Advanced(self.key, "ready"))
        await self.begun.wait()
        if faults.hit("run_hangs") or (faults.active and self.node.network.cheats.checker_dies()):
            await asyncio.sleep(10_000)
        if faults.hit("run_dies"):
            return self.failed("process_died", "it died")
        steps = steps_of(job)
        for _ in range((segment.end_step or steps) - self.step):
            if self.halt:
                return self.failed(self.halt, "as asked")
            await asyncio.sleep(STEP_S)
            self.step += 1
        end = cheats.end_of(segment, job, start, steps)
        if end is None:
            return self.failed("bad_checkpoint", "it is garbage", deterministic=True)
        return m.SegmentTrained(
            node_id=self.node.node_id,
            session=self.node.session,
            job_id=self.assign.job_id,
            attempt=self.assign.attempt,
            segment=segment,
            end=m.ArtifactRef(sha256=digest(end), size=len(end)),
            signature="0" * 128,
        )

    @property
    def _cheats(self) -> str:
        """What is false in what this run stores; empty for an honest one."""
        found = self.node.network.cheats
        return found.what if found.cheater == self.node.number else ""

    async def _train(self) -> m.RunFailed | m.RunCompleted:
        job, faults, dice = self.assign.job, self.node.network.faults, self.node.network.scheduler.dice
        steps = steps_of(job)
        await asyncio.sleep(0.02 + dice.random() * 0.3)  # the data, the process, the plan
        state = state_after(job.name, 0)
        if self.assign.resume:
            state = await self._fetch(self.assign.resume.state.sha256)
            if faults.is_bad(self.assign.resume.state.sha256) or state.startswith(cheats.GARBAGE):
                return self.failed("bad_checkpoint", "no state can be read in it")
        if self.is_too_large():
            return self.failed("out_of_memory", "too little", memory_bytes=2**29)
        self.node.tell(e.Advanced(self.key, "ready"))
        await self.begun.wait()
        first = self.step
        every = job.checkpoints.every_steps
        dies_at = dice.randrange(first, steps + 1) if faults.hit("run_dies") else None
        hangs_at = dice.randrange(first, steps + 1) if faults.hit("run_hangs") else None
        while self.step < steps:
            if self.halt:
                await self.halts()
                await self._store(state, steps)
                return self.failed(self.halt, "as asked")
            if self.step == hangs_at:
                await asyncio.sleep(10_000)
            await asyncio.sleep(STEP_S)
            if self.step == dies_at:
                return self.failed("process_died", "it died")
            if "faulty" in job.name and self.step == 2:
                return self.failed("diverged", "the loss is not a number", deterministic=True)
            self.step += 1
            state = cheats.next_state(state, self.step)
            if self._cheats == "false_states" and self.step == first + 1:
                state = cheats.false_state(state)
            if self.step == first + 1:
                self.node.tell(e.FirstBatch(self.key))
            if every and self.step % every == 0 and self.step < steps:
                await self._tell_epoch(steps)
                self._store_aside(state, steps)
        self.node.tell(e.Advanced(self.key, "uploading"))
        model = await self._upload(b"model " + (cheats.false_state(state) if self._cheats == "false_model" else state))
        if self.storing:
            await self.storing
        return self._completed(model, steps)

    def _store_aside(self, state: bytes, steps: int) -> None:
        """Training goes on while a checkpoint is stored; one at a time, the newest first when several wait."""
        if self.storing is None or self.storing.done():
            self.storing = self.node.loop.create_task(self._store(state, steps))

    async def _store(self, state: bytes, steps: int) -> None:
        step = self.step
        if step == self.assign.resume.step if self.assign.resume else step == 0:
            return
        if self._cheats == "garbage":
            state = cheats.GARBAGE + state
        stored = m.Checkpoint(step=step, steps=steps, state=await self._upload(state))
        said = m.RunCheckpoint(
            node_id=self.node.node_id,
            session=self.node.session,
            job_id=self.assign.job_id,
            attempt=self.assign.attempt,
            checkpoint=stored,
            signature="0" * 128,
        )
        self.node.tell(e.CheckpointStored(self.key, said))

    async def _tell_epoch(self, steps: int) -> None:
        epoch = EpochMetrics(
            epoch=1, epochs=1, step=self.step, epoch_loss=1 / self.step, epoch_time_ms=1.0, samples_per_s=1.0
        )
        said = m.Progress(
            node_id=self.node.node_id,
            session=self.node.session,
            job_id=self.assign.job_id,
            attempt=self.assign.attempt,
            epoch=epoch,
        )
        await self.node.bus.publish(subjects.node(self.node.node_id, "progress"), encode(said, MSGPACK), MSGPACK)

    async def _insist(self, verb: str, payload: bytes) -> bytes:
        """Again and again while nobody answers: a run is not lost to a lost link."""
        tries = 0
        while True:
            try:
                data, _ = await self.node.bus.request(subjects.api(self.node.node_id, verb), payload)
                return data
            except ApiError as error:
                if error.status < 500 and error.status != 429:
                    raise
            except BusError:
                pass
            await asyncio.sleep(retry_delay_ms(self.node.session, tries) / 1000)
            tries = min(tries + 1, 4)

    async def _upload(self, content: bytes) -> m.ArtifactRef:
        await self._insist("artifact.put", content)
        manifest = m.ArtifactManifest(sha256=digest(content), size=len(content), chunks=[digest(content)])
        return msgspec.json.decode(
            await self._insist("artifact.commit", msgspec.json.encode(manifest)), type=m.ArtifactRef
        )

    async def _fetch(self, sha256: str) -> bytes:
        ask = msgspec.json.encode(m.ArtifactRefRequest(sha256=sha256))
        manifest = msgspec.json.decode(await self._insist("artifact.manifest", ask), type=m.ArtifactManifest)
        [chunk] = manifest.chunks
        part = m.ArtifactRefRequest(sha256=chunk, artifact=sha256)
        return await self._insist("artifact.chunk", msgspec.json.encode(part))

    def failed(self, code: str, message: str, deterministic: bool = False, memory_bytes: int = 0) -> m.RunFailed:
        return m.RunFailed(
            node_id=self.node.node_id,
            session=self.node.session,
            job_id=self.assign.job_id,
            attempt=self.assign.attempt,
            code=code,
            message=message,
            deterministic=deterministic,
            memory_bytes=memory_bytes,
        )

    def _completed(self, model: m.ArtifactRef, steps: int) -> m.RunCompleted:
        return m.RunCompleted(
            node_id=self.node.node_id,
            session=self.node.session,
            job_id=self.assign.job_id,
            attempt=self.assign.attempt,
            model=model,
            graph_sha256=GRAPH_SHA256,
            summary=summary_of(self.assign.job.name, steps),
            signature="0" * 128,
        )

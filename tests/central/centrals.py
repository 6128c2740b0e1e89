"""Small centrals of one log, and what a node says to them: pieces of the tests of leases and reports."""

import asyncio

from msgspec.structs import replace

from cyxcentral import segments
from cyxcentral.blobs import Blobs
from cyxcentral.dispatch import Dispatch
from cyxcentral.eventlog import EventLog
from cyxcentral.runreports import RunReports
from cyxcentral.world import World
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.artifacts import describe
from cyxnet.bus import Bus
from cyxnet.codec import MSGPACK, decode, encode
from cyxnet.commands import Commander, commanding
from cyxnet.identity import Identity
from tests.central import facts as f

KEY = Identity(b"k" * 32)
NODE = f"node-a-{KEY.short_id}"
SESSION, NEXT_SESSION = "0" * 32, "1" * 32
NETWORK = "net-1"
COMMANDER = Commander(commanding(Identity(b"p" * 32), NETWORK, 1))
LEASE_MS = 60_000
PROGRESS_MS = 600_000
UNTIL_S = 60


class SmallCentral:
    """A log, its world and the dispatch on top: all of central that leases need."""

    @classmethod
    async def start(cls, broker, name, *, scheduling=False, policy=segments.NO_CHECKS):
        self = cls()
        self.core = await Bus.connect(broker.url("core"), name=name)
        self.edge = await Bus.connect(broker.url("edge"), name=name)
        self.log = EventLog(self.core, name, World())
        self.world = self.log.world
        self.blobs = Blobs(self.core)
        await self.blobs.open()
        await self.log.open(0)
        self.dispatch = Dispatch(
            self.log, self.edge, 10_000, LEASE_MS, PROGRESS_MS, COMMANDER, network_id=NETWORK, policy=policy
        )
        self.reports = RunReports(self.log, self.dispatch, self.blobs, NETWORK, policy)
        if scheduling:

            def react(stored, record):
                ours = record.by == name and not isinstance(record.event, m.Leased)
                self.dispatch.happened(stored.subject, ours)

            self.log.applied.append(react)
            await self.reports.start(self.edge)
            await self.dispatch.start()
        return self

    async def say(self, subject, event):
        assert await self.log.record(subject, lambda: event)

    async def job(self, job_id="job-1", *events, **changes):
        """A job that went through Submitted and these events."""
        for event in (f.submitted(job_id, **changes), *events):
            await self.say(subjects.job_event(job_id), event)

    async def until(self, condition):
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + UNTIL_S  # looked at here: a cancellation that meets the end of a flush would be lost
        while not condition():
            assert loop.time() < ends_s, f"did not come to be within {UNTIL_S} s"
            await self.edge.round_trip()  # time for others, and no busy loop

    async def close(self):
        await self.edge.close()
        await self.dispatch.close()
        await self.core.close()


def register(session=SESSION, **changes):
    said = m.Register(
        node_id=NODE,
        session=session,
        name="node-a",
        public_key=KEY.public_key,
        wallet=f.NODE_WALLET,
        hardware=changes.pop("hardware", f.registered().hardware),
        signature="0" * 128,
        **changes,
    )
    return replace(said, signature=KEY.sign(m.registration_bytes(said)))


def leased(attempt=1, session=SESSION):
    return m.Leased(attempt=attempt, node_id=NODE, session=session, wallet=f.NODE_WALLET, lease_ms=LEASE_MS)


def started(attempt=1, session=SESSION):
    return m.RunStarted(node_id=NODE, session=session, job_id="job-1", attempt=attempt)


def failed(attempt=1, code="died"):
    return m.RunFailed(node_id=NODE, session=SESSION, job_id="job-1", attempt=attempt, code=code, message="it died")


def completed(model, attempt=1):
    said = m.RunCompleted(
        node_id=NODE,
        session=SESSION,
        job_id="job-1",
        attempt=attempt,
        model=model,
        graph_sha256="c" * 64,
        summary=f.summary(),
        signature="0" * 128,
    )
    return replace(said, signature=KEY.sign(m.completion_bytes(said)))


def heartbeat(*runs, session=SESSION):
    """runs: (job id, attempt) and, if wanted, phase and step."""
    names = ("job_id", "attempt", "phase", "step")
    named = [m.RunRef(**dict(zip(names, run, strict=False))) for run in runs]
    return m.Heartbeat(node_id=NODE, session=session, runs=named)


async def stored_model(blobs, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"weights")
    manifest = describe(path)
    await blobs.put(b"weights", NODE)
    return await blobs.commit(manifest, NODE)


async def kinds_of(central, job_id="job-1"):
    """The events of a job in the log, by reading it afresh."""
    found, read = [], asyncio.Event()
    last_seq = await central.core.last_seq(subjects.EVENTS)

    async def handler(stored):
        if stored.subject == subjects.job_event(job_id):
            found.append(type(decode(m.Record, stored.payload, MSGPACK).event).__name__)
        if stored.seq == last_seq:
            read.set()

    await central.core.follow(subjects.EVENTS, subjects.EVENT_SUBJECTS, 0, handler, lambda _: None)
    await asyncio.wait_for(read.wait(), 60)
    return found


async def behind(other, central):
    """Make `other` a central that reads no event after these; returns what lets it go on."""
    await other.log.catch_up()
    held, real = [], other.log._apply

    async def later(stored):
        held.append(stored)

    other.core._followers[0]._handler = later

    async def go_on():
        other.core._followers[0]._handler = real
        for stored in held:
            await real(stored)

    return go_on


async def damage(central, subject):
    """A record that does not name the one before it: from then on nothing is decided on its subject."""
    record = m.Record(command_id="c" * 32, at_ms=1, by="a thief", prev="ab" * 32, event=f.FUNDED)
    await central.core.append(subject, encode(record))
    await central.log.catch_up()
    assert subject in central.world.damaged


def stored_state(state, step=50, steps=100, attempt=1, signed_step=None):
    said = m.RunCheckpoint(
        node_id=NODE,
        session=SESSION,
        job_id="job-1",
        attempt=attempt,
        checkpoint=m.Checkpoint(step=signed_step or step, steps=steps, state=state),
        signature="0" * 128,
    )
    signature = KEY.sign(m.checkpoint_bytes(said))
    return replace(said, checkpoint=replace(said.checkpoint, step=step), signature=signature)

"""A real network, and on it whoever takes part in a campaign: hostile callers and nodes with identities of their own,

jobs that hostile nodes hold leases of, and honest ones beside them that want to be served meanwhile.
"""

import asyncio
import contextlib
import hashlib
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
from msgspec.structs import replace

from cyxcore.spec import BatchMetrics, TrainingSummary
from cyxnet import artifacts, credentials, jobfile, subjects
from cyxnet import messages as m
from cyxnet.bus import Bus, BusError
from cyxnet.client import AsyncClient
from cyxnet.codec import MSGPACK, encode
from cyxnet.escrow import build_deposit, escrow_address
from cyxnet.identity import Identity
from cyxnet.local import LocalNetwork
from tests.hostile.mutations import KINDS, Base, Others
from tests.net.test_golden import example

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits.toml"
HEARTBEAT_MS, LEASE_MS = (
    60_000,
    24 * 3_600_000,
)  # nobody is lost for being slow: what is lost, a message has brought about
JOBS_PER_NODE = 4
WAIT_S = 60.0
AMOUNT = 1_000_000


def keys_of(seed: int, name: str) -> Identity:
    return Identity(hashlib.sha256(f"cyx hostile {seed} {name}".encode()).digest())


class Node:
    """A node that is honest here: registers, takes what it is given, says that it is alive. It never trains."""

    def __init__(self, keys: Identity, bus: Bus, max_runs: int):
        self.keys = keys
        self.bus = bus
        self.node_id = f"storm-{keys.short_id}"
        self.sessions = 0
        self.max_runs = max_runs
        self.given: dict[str, m.Assign] = {}
        self.step = 0
        self._new = asyncio.Event()

    @property
    def session(self) -> str:
        return f"{self.sessions:032x}"

    def registration(self) -> m.Register:
        said = m.Register(
            node_id=self.node_id,
            session=self.session,
            name="storm",
            public_key=self.keys.public_key,
            wallet="1" * 32,
            hardware=m.Hardware(cores=64, memory_bytes=2**50, memory_free_bytes=2**50, flops_per_s=1e11),
            max_runs=self.max_runs,
            began_ms=1_000 * self.sessions,
            signature="0" * 128,
        )
        return replace(said, signature=self.keys.sign(m.registration_bytes(said)))

    async def register(self) -> None:
        self.sessions += 1
        await self.bus.ask(subjects.node(self.node_id, "register"), self.registration(), m.RegisterReply)

    async def serve(self) -> None:
        async def take(subject: str, command: m.Command) -> m.CommandReply:
            if isinstance(command, m.Assign):
                self.given[command.job_id] = command
                self._new.set()
            return m.CommandReply(accepted=True)

        await self.bus.answer(subjects.command(self.node_id), m.Command, take)
        await self.register()

    async def until_given(self, job_id: str) -> m.Assign:
        async with asyncio.timeout(WAIT_S):
            while job_id not in self.given:
                self._new.clear()
                await self._new.wait()
        return self.given[job_id]

    async def heartbeat(self) -> None:
        """Still here; with a new session if central does not know this one any more."""
        self.step += 1
        while True:
            links = self.bus._nc.stats["reconnects"]
            try:
                reply = await self.bus.ask(subjects.node(self.node_id, "heartbeat"), self.beat(), m.HeartbeatReply)
                break
            except BusError:
                if self.bus.connected and self.bus._nc.stats["reconnects"] == links:
                    raise
            while not self.bus.connected:  # its session is being renewed, every ten minutes: a node says it again then
                if waiting := self.bus._nc._reconnection_task:
                    await asyncio.wait({waiting})
                await asyncio.sleep(0)  # the one that is over may have a successor that has not begun
        for run in reply.stop:
            self.given.pop(run.job_id, None)
        if not reply.known:
            await self.register()

    def beat(self) -> m.Heartbeat:
        runs = [
            m.RunRef(job_id=job_id, attempt=given.attempt, phase="training", step=self.step)
            for job_id, given in self.given.items()
        ]
        return m.Heartbeat(node_id=self.node_id, session=self.session, runs=runs, memory_free_bytes=2**50)

    async def complete(self, job_id: str, model: m.ArtifactRef) -> m.ReportReply:
        return await self.bus.ask(
            subjects.node(self.node_id, "completed"), self.completion(job_id, model), m.ReportReply
        )

    def completion(self, job_id: str, model: m.ArtifactRef) -> m.RunCompleted:
        said = m.RunCompleted(
            node_id=self.node_id,
            session=self.session,
            job_id=job_id,
            attempt=self.given[job_id].attempt,
            model=model,
            graph_sha256="ab" * 32,
            summary=SUMMARY,
            signature="0" * 128,
        )
        return replace(said, signature=self.keys.sign(m.completion_bytes(said)))

    def checkpoint(self, job_id: str, state: m.ArtifactRef, steps: int) -> m.RunCheckpoint:
        said = m.RunCheckpoint(
            node_id=self.node_id,
            session=self.session,
            job_id=job_id,
            attempt=self.given[job_id].attempt,
            checkpoint=m.Checkpoint(step=1, steps=steps, state=state),
            signature="0" * 128,
        )
        return replace(said, signature=self.keys.sign(m.checkpoint_bytes(said)))

    def finding(self, job_id: str, end: m.ArtifactRef) -> m.SegmentTrained:
        """Of a check that nobody asked for: there is none of these jobs."""
        said = m.SegmentTrained(
            node_id=self.node_id,
            session=self.session,
            job_id=job_id,
            attempt=m.FIRST_CHECK,
            segment=m.Segment(start=m.Checkpoint(step=1, steps=450, state=end), end_step=9),
            end=end,
            signature="0" * 128,
        )
        return replace(said, signature=self.keys.sign(m.segment_bytes(said)))


SUMMARY = TrainingSummary(
    total_time_ms=3.0,
    steps=3,
    final_loss=0.5,
    best_epoch=1,
    delivered_epoch=1,
    train_rows=8,
    validation_rows=0,
    parameters=3,
)
METRICS = BatchMetrics(
    epoch=1,
    epochs=1,
    batch=1,
    batches=3,
    step=1,
    batch_loss=0.5,
    batch_time_ms=1.0,
    learning_rate=0.01,
    samples_per_s=100.0,
)
CPU = m.CpuMetrics(per_core_percent=[5.0, 7.0], frequency_mhz=2000.0)


class Scene:
    """`async with Scene(folder, seed, callers=8, nodes=4) as scene:` brings all of it up."""

    def __init__(self, folder: Path, seed: int, callers: int, nodes: int):
        self.seed = seed
        self.network = LocalNetwork(
            folder,
            nodes=0,
            heartbeat_ms=HEARTBEAT_MS,
            lease_ms=LEASE_MS,
            on_event=self._event,
            settings={"node_messages_per_s": 5_000.0},  # what is said is looked at, however fast the machine says it
        )
        self.happened: list[str] = []  # what the network's supervisor said: of parts that ended
        self.honest: AsyncClient
        self.honest_node: Node
        self.core: Bus
        self.clients: list[AsyncClient] = []
        self.nodes: list[Node] = []
        self.jobs: dict[str, Node] = {}  # what hostile nodes hold, all of them of the first client
        self.bases: list[Base] = []
        self.others: Others
        self.data: m.ArtifactRef
        self.job: m.JobRequest
        self._callers, self._nodes = callers, nodes
        self._open = contextlib.AsyncExitStack()

    def _event(self, text: str) -> None:
        self.happened.append(text)

    async def __aenter__(self) -> "Scene":
        try:
            await self._open.enter_async_context(self.network)
            await self._build()
        except BaseException:
            await self._open.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    async def bus_as(self, who: credentials.Credentials) -> Bus:
        bus = await Bus.connect(self.network.file.client_url, name=who.id, credentials=who, session_s=900)
        self._open.push_async_callback(bus.close)
        return bus

    async def client_as(self, keys: Identity) -> AsyncClient:
        who = credentials.as_client(keys)
        return AsyncClient(await self.bus_as(who), keys, who.id)

    async def node_as(self, keys: Identity, max_runs: int) -> Node:
        bus = await self.bus_as(credentials.as_node(keys, f"storm-{keys.short_id}"))
        return Node(keys, bus, max_runs)

    async def _build(self) -> None:
        self.core = await Bus.connect(self.network.file.core_url, name="campaign")
        self._open.push_async_callback(self.core.close)
        self.honest = await self.client_as(keys_of(self.seed, "honest"))
        self.clients = [await self.client_as(keys_of(self.seed, f"caller {n}")) for n in range(self._callers)]
        self.nodes = [await self.node_as(keys_of(self.seed, f"node {n}"), JOBS_PER_NODE) for n in range(self._nodes)]
        loaded = jobfile.load(EXAMPLE)
        await self.honest.faucet()
        self.data = await self.honest.upload(loaded.data_path)
        for client in self.clients:  # a job names what its client sent, a node delivers what it sent itself
            await client.upload(loaded.data_path)
        for node in self.nodes:
            await artifacts.put(node.bus, node.node_id, loaded.data_path)
        self.job = replace(loaded.request(self.data), amount_base_units=AMOUNT)
        await self.clients[0].faucet(10**12, 10**10)
        await self.clients[0].faucet(10**12, 10**10)
        for node in self.nodes:
            await node.serve()
        await self._give_leases()
        self.bases = await self._bases()
        speakers = tuple([client.caller for client in self.clients] + [node.node_id for node in self.nodes])
        sessions = tuple([node.session for node in self.nodes] + ["f" * 32])
        self.others = Others(speakers, (*self.jobs, "nobodys-job"), sessions)

    async def _give_leases(self) -> None:
        """Jobs of the first client, each held by a hostile node and paid for."""
        client = self.clients[0]
        submitted = [await self._submit(client) for _ in range(JOBS_PER_NODE * len(self.nodes))]
        for job_id in submitted:
            self.jobs[job_id] = await self._holder_of(job_id)
        for job_id in submitted:
            await self.until_status(job_id, "leased")
            await self.until_event(job_id, "Funded")

    async def _submit(self, client: AsyncClient) -> str:
        await client.bus.ask(
            subjects.api(client.caller, "job.submit"), submit := await self.paid_submit(client), m.SubmitReply
        )
        assert submit.job_id is not None
        return submit.job_id

    async def _holder_of(self, job_id: str) -> Node:
        waiting = [asyncio.create_task(node.until_given(job_id)) for node in self.nodes]
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            return self.nodes[waiting.index(done.pop())]
        finally:
            for task in waiting:
                task.cancel()

    async def until_status(self, job_id: str, status: str) -> None:
        async with asyncio.timeout(WAIT_S):
            while (await self.honest.job(job_id)).status != status:
                await self.core.round_trip()

    async def until_event(self, job_id: str, kind: str) -> None:
        async with asyncio.timeout(WAIT_S):
            async for update in self.honest.watch(job_id):
                if update.kind == kind:
                    return

    async def paid_submit(self, client: AsyncClient) -> m.SubmitRequest:
        """A submit that central would take: its deposit is signed by the client."""
        job_id = subjects.new_job_id("storm")
        quote = await client.quote(self.job, job_id)
        terms = replace(quote.terms, escrow=escrow_address(client.purse.address, job_id, quote.terms.program))
        deposit = build_deposit(client.purse, terms, quote.blockhash, quote.last_valid_block_height)
        return m.SubmitRequest(
            job=self.job, job_id=job_id, payment=m.Payment(client=client.purse.address, deposit=deposit)
        )

    # -- what is spoilt ------------------------------------------------------------------------------------------

    async def _bases(self) -> list[Base]:
        """For every kind of message one that is right, from every identity that may say it."""
        found = []
        paid = [await self.paid_submit(self.clients[0]) for _ in range(4)]
        manifest = m.ArtifactManifest(sha256=self.data.sha256, size=self.data.size, chunks=["0" * 64])
        for kind in KINDS:
            for speaker in self.nodes if kind.role == "node" else self.clients:
                who = speaker.node_id if isinstance(speaker, Node) else speaker.caller
                if kind.is_raw:
                    found.append(Base(kind, who, b"a chunk of " + who.encode()))
                    continue
                said = (
                    self._of_node(kind.verb, speaker)
                    if isinstance(speaker, Node) and kind.verb not in subjects.VERBS
                    else self._of_client(paid, manifest).get(kind.verb) or [example(kind.type)]
                )
                found += [Base(kind, who, untyped(message)) for message in said]
        return found

    def _of_client(self, paid: list[m.SubmitRequest], manifest: m.ArtifactManifest) -> dict[str, list[Any]]:
        """By verb, what is worth spoiling. Of a verb that is not here it is an example of its message."""
        job_id = next(iter(self.jobs))
        graph = m.ModelSpec(graph={"version": 1, "nodes": [{"op": "input", "inputs": [], "attrs": {"shape": [64]}}]})
        return {
            "network.info": [m.NetworkInfoRequest()],
            "job.quote": [
                m.QuoteRequest(job=self.job, job_id="storm-quote", client="1" * 32),
                m.QuoteRequest(job=replace(self.job, model=graph), job_id="storm-graph", client="1" * 32),
            ],
            "job.submit": [*paid, m.SubmitRequest(job=self.job, job_id="storm-kept")],
            "job.status": [m.JobRef(job_id=job_id), m.JobRef(job_id=job_id[:9])],
            "job.list": [m.JobListRequest(status="leased", name="d", mine=True, limit=5, before=2**42)],
            "job.updates": [m.UpdatesRequest(job_id=job_id, after_event=1, after_telemetry=1, limit=10)],
            "job.cancel": [m.CancelRequest(job_id=job_id, reason="storm", request_id="r-1")],
            "job.pause": [m.JobRef(job_id=job_id, request_id="r-2")],
            "job.resume": [m.JobRef(job_id=job_id, request_id="r-3")],
            "job.explain": [m.JobRef(job_id=job_id)],
            "node.list": [m.NodeListRequest()],
            "wallet.balance": [m.WalletRequest(address="1" * 32), m.WalletRequest()],
            "wallet.faucet": [m.FaucetRequest(address="1" * 32, amount_base_units=1, lamports=1)],
            "ledger.query": [m.LedgerRequest(sql="select job_id from jobs", limit=3)],
            "artifact.stat": [manifest],
            "artifact.commit": [manifest],
            "artifact.manifest": [m.ArtifactRefRequest(sha256=self.data.sha256)],
            "artifact.chunk": [m.ArtifactRefRequest(sha256="0" * 64)],
        }

    def _of_node(self, verb: str, node: Node) -> list[Any]:
        held = [job_id for job_id, holder in self.jobs.items() if holder is node]
        run = {"node_id": node.node_id, "session": node.session}
        runs = [m.RunRef(job_id=job_id, attempt=1, phase="training", step=1) for job_id in held]
        reports = [run | {"job_id": job_id, "attempt": node.given[job_id].attempt} for job_id in held]
        return {
            "register": [node.registration()],
            "heartbeat": [m.Heartbeat(**run, runs=runs, memory_free_bytes=2**40)],
            "started": [m.RunStarted(**report) for report in reports],
            "checkpoint": [node.checkpoint(job_id, self.data, 450) for job_id in held],
            "failed": [m.RunFailed(**report, code="failed", message="it failed") for report in reports],
            "completed": [node.completion(job_id, self.data) for job_id in held],
            "segment": [node.finding(job_id, self.data) for job_id in held],
            "goodbye": [m.Goodbye(**run)],
            "progress": [m.Progress(**report, batch=METRICS) for report in reports],
            "hardware": [m.HardwareMetrics(**run, runs=runs, cpu=CPU, ram_used_bytes=2**30, ram_total_bytes=2**35)],
        }[verb]

    async def an_honest_job(self) -> m.JobView:
        """A whole job, from the deposit to the settlement, by who is honest."""
        keys = keys_of(self.seed, f"honest node {time.monotonic_ns()}")
        node = await self.node_as(keys, max_runs=1)
        submit = await self.paid_submit(self.honest)
        await self.honest.bus.ask(subjects.api(self.honest.caller, "job.submit"), submit, m.SubmitReply)
        assert submit.job_id is not None
        await node.serve()
        holders = [*self.nodes, node]
        waiting = [asyncio.create_task(each.until_given(submit.job_id)) for each in holders]
        done, left = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in left:
            task.cancel()
        holder = holders[waiting.index(done.pop())]
        await self.until_event(submit.job_id, "Funded")
        reply = await holder.complete(submit.job_id, self.data)
        assert reply.accepted, reply
        return await self.honest.wait(submit.job_id)


def untyped(message: Any) -> bytes:
    """The message as MessagePack, to be taken apart without its type."""
    return encode(msgspec.to_builtins(message, builtin_types=(bytes,)), MSGPACK)

"""Central as a node sees it: it keeps artifacts, answers reports, gives commands. On a real broker, in memory."""

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

from cyxcore.spec import DataSpec, ModelSpec, TrainingSpec
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.artifacts import CHUNK_BYTES
from cyxnet.bus import ApiError, Bus
from cyxnet.codec import MSGPACK, decode
from cyxnet.commands import VALID_MS, Commander, commanding
from cyxnet.identity import Identity

WAIT_S = 60.0
PLATFORM = Identity(b"p" * 32)
NETWORK = "test"


class Store:
    """Chunks and manifests; outlives a central, as the broker's streams do."""

    def __init__(self) -> None:
        self.chunks: dict[str, bytes] = {}
        self.manifests: dict[str, m.ArtifactManifest] = {}

    def add(self, content: bytes) -> m.ArtifactRef:
        blocks = [content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES)]
        digests = [hashlib.sha256(block).hexdigest() for block in blocks]
        self.chunks |= dict(zip(digests, blocks, strict=True))
        sha256 = hashlib.sha256(content).hexdigest()
        self.manifests[sha256] = m.ArtifactManifest(sha256=sha256, size=len(content), chunks=digests)
        return m.ArtifactRef(sha256=sha256, size=len(content))

    def read(self, sha256: str) -> bytes:
        return b"".join(self.chunks[digest] for digest in self.manifests[sha256].chunks)


class FakeCentral:
    """Records all it hears as (verb, message). `reports` answers started, failed and completed."""

    def __init__(self, bus: Bus, store: Store):
        self.bus = bus
        self.too_busy = 0  # to say so many times which chunks an artifact has
        self.store = store
        self.heard: list[tuple[str, Any]] = []
        self.known: set[str] = set()
        self.stop: list[m.RunRef] = []
        self.begin: list[m.RunRef] = []
        self.pause: list[m.RunRef] = []
        self.heartbeat_ms = 200
        self.report_reply = m.ReportReply(accepted=True)
        self.register_error: ApiError | None = None
        self.commander = Commander(commanding(PLATFORM, NETWORK, 1))
        self.events = 0  # that the log would have
        self._news = asyncio.Condition()

    @classmethod
    async def start(cls, url: str, store: Store) -> "FakeCentral":
        central = cls(await Bus.connect(url, name="central", inbox="_INBOX_central"), store)
        for verb, (kind, _) in subjects.NODE_VERBS.items():
            await central.bus.answer(subjects.node("*", verb), kind, central._on_request)
        for verb in subjects.NODE_TELEMETRY:
            await central.bus.subscribe(subjects.node("*", verb), central._on_telemetry)
        await central.bus.serve("0.1.0", "fake", central._artifact_verbs())
        return central

    async def close(self) -> None:
        await self.bus.close()

    async def wait_for(self, verb: str, matches: Callable[[Any], bool] = lambda message: True) -> Any:
        """The first message of this verb, from the beginning on, that matches."""

        def found() -> Any:
            return next((msg for said, msg in self.heard if said == verb and matches(msg)), None)

        async with asyncio.timeout(WAIT_S), self._news:
            await self._news.wait_for(lambda: found() is not None)
        return found()

    def count(self, verb: str) -> int:
        return sum(said == verb for said, _ in self.heard)

    async def command(self, node_id: str, command: m.Command) -> m.CommandReply:
        return await self.say(node_id, self.signed(node_id, command))

    def signed(self, node_id: str, command: m.Command) -> m.SignedCommand:
        """As the next event of the log has it."""
        self.events += 1
        until_ms = self._node_ms() + VALID_MS
        return self.commander.signed(node_id, command.session, command, self.events, until_ms)

    async def say(self, node_id: str, said: m.Command | m.SignedCommand) -> m.CommandReply:
        return await self.bus.ask(subjects.command(node_id), said, m.CommandReply)

    def _node_ms(self) -> int:
        """The node's clock when it was heard last."""
        return max((message.now_ms for verb, message in self.heard if verb in ("register", "heartbeat")), default=0)

    async def _hear(self, verb: str, message: Any) -> None:
        async with self._news:
            self.heard.append((verb, message))
            self._news.notify_all()

    async def _on_request(self, subject: str, message: Any) -> Any:
        verb = subject.rsplit(".", 1)[-1]
        await self._hear(verb, message)
        return getattr(self, f"_{verb}", self._report)(message)

    def _register(self, message: m.Register) -> m.RegisterReply:
        if self.register_error:
            raise self.register_error
        self.known.add(message.session)
        return m.RegisterReply(
            heartbeat_ms=self.heartbeat_ms,
            lease_ms=4 * self.heartbeat_ms,
            network_id=NETWORK,
            platform_key=self.commander.platform_key,
        )

    def _heartbeat(self, message: m.Heartbeat) -> m.HeartbeatReply:
        known = message.session in self.known
        reply, orders = m.HeartbeatReply(known=known), m.Orders(stop=self.stop, begin=self.begin, pause=self.pause)
        if orders != m.Orders():
            until_ms = message.now_ms + VALID_MS
            reply.orders = self.commander.signed(message.node_id, message.session, orders, message.number, until_ms)
        return reply

    def _report(self, message: Any) -> m.ReportReply:
        return self.report_reply

    async def _on_telemetry(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        verb = subject.rsplit(".", 1)[-1]
        await self._hear(verb, decode(subjects.NODE_TELEMETRY[verb], payload, MSGPACK))

    def _artifact_verbs(self) -> dict[str, Any]:
        store = self.store

        async def stat(caller: str, manifest: m.ArtifactManifest) -> m.ArtifactStatReply:
            missing = [digest for digest in manifest.chunks if digest not in store.chunks]
            return m.ArtifactStatReply(complete=manifest.sha256 in store.manifests, missing=missing)

        async def put(caller: str, block: bytes) -> m.ChunkReply:
            digest = hashlib.sha256(block).hexdigest()
            store.chunks[digest] = block
            return m.ChunkReply(sha256=digest, size=len(block))

        async def commit(caller: str, manifest: m.ArtifactManifest) -> m.ArtifactRef:
            store.manifests[manifest.sha256] = manifest
            return m.ArtifactRef(sha256=manifest.sha256, size=manifest.size)

        async def manifest(caller: str, ask: m.ArtifactRefRequest) -> m.ArtifactManifest:
            if self.too_busy:
                self.too_busy -= 1
                raise ApiError("busy", "ask again", 503)
            if ask.sha256 not in store.manifests:
                raise ApiError("not_found", f"no artifact {ask.sha256}", 404)
            return store.manifests[ask.sha256]

        async def chunk(caller: str, ask: m.ArtifactRefRequest) -> bytes:
            return store.chunks[ask.sha256]

        handlers = {"stat": stat, "put": put, "commit": commit, "manifest": manifest, "chunk": chunk}
        return {f"artifact.{name}": handler for name, handler in handlers.items()}


def make_assign(
    register: m.Register,
    dataset: m.ArtifactRef,
    job_id: str = "job-1",
    attempt: int = 1,
    layers: list[dict[str, Any]] | None = None,
    resume: m.Checkpoint | None = None,
    funded: bool = True,
    memory_bytes: int = 0,
    **job: Any,
) -> m.Assign:
    layers = layers or [{"kind": "Linear", "out_features": 2}]
    request = m.JobRequest(
        name="tiny",
        model=ModelSpec(input=[2], layers=layers),
        dataset=dataset,
        data=job.pop("data", DataSpec()),
        training=job.pop("training", TrainingSpec(epochs=2, batch_size=8)),
        amount_base_units=1,
        **job,
    )
    return m.Assign(
        job_id=job_id,
        attempt=attempt,
        memory_bytes=memory_bytes,
        session=register.session,
        job=request,
        lease_ms=4000,
        resume=resume,
        funded=funded,
    )

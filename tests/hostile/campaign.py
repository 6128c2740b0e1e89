"""A campaign: so many spoilt messages, from real connections, into a real network that goes on serving the honest.

First everything that must be refused: meanwhile the log, the telemetry and the store of chunks may not grow by a byte's
breadth. Then what may be right by accident: what grows then must be explained by a message that was accepted.
"""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import psutil
from msgspec import Struct, field

from cyxcore.errors import CyxError
from cyxnet import credentials, subjects
from cyxnet import messages as m
from cyxnet.bus import ApiError
from cyxnet.codec import JSON, MSGPACK
from cyxnet.connection import headers_of
from tests.hostile.mutations import Base, Shot, spoil
from tests.hostile.scene import Scene
from tests.hostile.wire import Answer, Wire

IN_FLIGHT = 160  # below what a central works on at a time: the handlers are to be reached, not its limits
UNANSWERED_AT_ONCE = 64  # then it is waited until the broker has read them
ANSWER_WITHIN_S = 20.0
PROBE_EVERY = 60  # messages
LOOK_EVERY = 2_000
EXPENSIVE = {"wallet.faucet": 0.1, "ledger.query": 0.3, "job.submit": 1.0}  # how often, where others are 1
FLAT_BYTES = 64 * 2**20
MESSAGES_BEFORE_FLAT = 0.25  # of them, until central has filled its bounded memories
STREAMS = (subjects.EVENTS, subjects.TELEMETRY, subjects.BLOBS)
Progress = Callable[[int, int, "Found"], None]


class Options(Struct, frozen=True, kw_only=True):
    messages: int = 20_000
    seed: int = 1
    callers: int = 8
    nodes: int = 4


class Found(Struct, kw_only=True):
    """What was sent, where it ended, and what should not have been."""

    sent: int = 0
    layers: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)  # of the answers
    kinds: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)  # right by accident, by verb
    violations: list[str] = field(default_factory=list)
    honest_ms: list[float] = field(default_factory=list)
    grown: dict[str, list[int]] = field(default_factory=dict)  # stream -> its last sequences: before, between, after
    explained_events: int = 0
    central_bytes: list[int] = field(default_factory=list)  # at the start, when its memories are full, at the end
    seconds: float = 0.0
    central_cpu_s: float = 0.0
    hang_ups: int = 0
    honest_job: str = ""

    def wrong(self, text: str) -> None:
        if len(self.violations) < 50:
            self.violations.append(text)

    @property
    def growth_bytes(self) -> int:
        return self.central_bytes[-1] - self.central_bytes[1] if len(self.central_bytes) > 2 else 0


# How far a message came, by the code of the answer; every other code is a handler's own.
LAYERS = {"bad_message": "decoding", "rate_limited": "rate limit", "busy": "rate limit", "wrong_node": "identity"}


class Campaign:
    def __init__(self, scene: Scene, options: Options, progress: Progress = lambda done, total, found: None):
        self.scene = scene
        self.options = options
        self.found = Found()
        self._progress = progress
        self._waiting: dict[str, tuple[int, Shot, float]] = {}  # inbox -> number, shot, sent at
        self._room = asyncio.Event()
        self._wires: dict[str, Wire] = {}
        self._quiet_since: Counter[str] = Counter()  # by wire: unanswered messages since the last round trip
        self._explained: set[str] = set()  # ids of jobs, nodes and wallets that accepted messages named
        self._accepted_mints = 0
        self._probe = asyncio.Event()
        self._over = asyncio.Event()
        self._weights = [EXPENSIVE.get(base.kind.verb, 1.0) for base in scene.bases]

    def shot(self, number: int) -> Shot:
        """The message of this number: the same for the same seed, but for ids that the network chose."""
        dice = random.Random(f"{self.options.seed} {number}")
        base: Base = dice.choices(self.scene.bases, self._weights)[0]
        return spoil(base, dice, self.scene.others)

    async def play(self) -> Found:
        found, total, begun = self.found, self.options.messages, time.perf_counter()
        central = psutil.Process(self.scene.network.process_ids["central"])
        cpu_s = sum(central.cpu_times()[:2])
        parts = dict(self.scene.network.process_ids)
        await self._connect()
        before = await self._last_seqs()
        found.grown = {stream: [seq] for stream, seq in before.items()}
        found.central_bytes.append(central.memory_info().rss)
        honest = asyncio.create_task(self._be_honest())
        try:
            later = []
            for number in range(total):
                shot = self.shot(number)
                if not shot.is_certain():
                    later.append(number)
                    continue
                await self._fire(number, shot)
                if found.sent % LOOK_EVERY == 0:
                    await self._look("while it was refused")
                    if len(found.central_bytes) == 1 and found.sent >= MESSAGES_BEFORE_FLAT * total:
                        found.central_bytes.append(central.memory_info().rss)
            await self._all_answered()
            await self._look("after all that must be refused")
            for number in later:
                await self._fire(number, self.shot(number))
            await self._all_answered()
            for stream, seq in (await self._last_seqs()).items():
                found.grown[stream].append(seq)
            await self._explain()
            found.central_bytes.append(central.memory_info().rss)
            found.central_cpu_s = sum(central.cpu_times()[:2]) - cpu_s
        finally:
            self._over.set()
            self._probe.set()
            await asyncio.gather(honest, return_exceptions=True)
            for wire in self._wires.values():
                wire.close()
        honest.result()
        found.seconds = time.perf_counter() - begun
        await self._end_well()
        if self.scene.network.process_ids != parts or self.scene.happened:
            found.wrong(f"a part of the network ended: {self.scene.happened}")
        found.hang_ups = sum(wire.endings for wire in self._wires.values())
        self._read_logs()
        if found.growth_bytes > FLAT_BYTES:
            found.wrong(f"central's memory grew by {found.growth_bytes >> 20} MiB")
        return found

    async def alone(self, number: int) -> tuple[Shot, Answer | None]:
        """One message of a campaign, and its answer."""
        await self._connect()
        shot, heard = self.shot(number), asyncio.get_running_loop().create_future()
        wire = self._wires[shot.base.speaker]
        wire._heard = lambda answer: heard.done() or heard.set_result(answer)
        await self._send(number, shot, wire)
        with contextlib.suppress(TimeoutError):
            return shot, await asyncio.wait_for(heard, ANSWER_WITHIN_S if shot.answered else 1)
        return shot, None

    # -- sending -----------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        url = self.scene.network.file.client_url
        for client in self.scene.clients:
            self._wires[client.caller] = Wire(url, credentials.as_client(client.keys), self._heard)
        for node in self.scene.nodes:
            self._wires[node.node_id] = Wire(url, credentials.as_node(node.keys, node.node_id), self._heard)
        for wire in self._wires.values():
            await wire.opened()

    async def _fire(self, number: int, shot: Shot) -> None:
        found, wire = self.found, self._wires[shot.base.speaker]
        await wire.opened()
        if shot.rude is not None:
            await self._drained(wire)  # what is under way there would be lost with the connection
        elif shot.answered:
            while len(self._waiting) >= IN_FLIGHT:
                self._room.clear()
                await self._wait_for_room()
        else:
            self._quiet_since[wire.inbox] += 1
            if self._quiet_since[wire.inbox] >= UNANSWERED_AT_ONCE:
                self._quiet_since[wire.inbox] = 0
                await wire.round_trip()
        await self._send(number, shot, wire)
        found.sent += 1
        found.kinds[shot.base.kind.verb] += 1
        if found.sent % PROBE_EVERY == 0:
            self._probe.set()
            self._progress(found.sent, self.options.messages, found)

    async def _send(self, number: int, shot: Shot, wire: Wire) -> None:
        if shot.rude is not None:
            wire.send(shot.rude)
            await wire.ended()
            self.found.layers["the broker hangs up"] += 1
            return
        reply = f"{wire.inbox}.{number}" if shot.reply is None else shot.reply
        if shot.answered:
            self._waiting[reply] = (number, shot, time.perf_counter())
        elif not shot.base.kind.asks and "another subject" not in shot.spoilt:
            self.found.layers["metrics, answered by nobody"] += 1
        else:
            self.found.layers["kept out by the broker, or not answered"] += 1
        size = len(shot.block) + len(shot.payload)
        if shot.block:
            start = f"HPUB {shot.subject} {reply} {len(shot.block)} {size}\r\n"
        else:
            start = f"PUB {shot.subject} {reply} {size}\r\n"
        wire.send(start.encode() + shot.block + shot.payload + b"\r\n")

    async def _drained(self, wire: Wire) -> None:
        while any(reply.startswith(f"{wire.inbox}.") for reply in self._waiting):
            self._room.clear()
            await self._wait_for_room()
        await wire.round_trip()

    async def _all_answered(self) -> None:
        while self._waiting:
            self._room.clear()
            await self._wait_for_room()
        for wire in self._wires.values():
            await wire.round_trip()
        await self.scene.honest.info()  # asked after everything else: whoever was not answered has been looked at too

    async def _wait_for_room(self) -> None:
        oldest = next(iter(self._waiting.values()))
        patience_s = oldest[2] + ANSWER_WITHIN_S - time.perf_counter()
        try:
            await asyncio.wait_for(self._room.wait(), max(patience_s, 0.01))
        except TimeoutError:
            self._give_up()

    def _give_up(self) -> None:
        """What was not answered in time: a request that hangs, unless its connection broke under it."""
        for reply, (number, shot, sent_s) in list(self._waiting.items()):
            if time.perf_counter() - sent_s >= ANSWER_WITHIN_S:
                del self._waiting[reply]
                wire = self._wires[shot.base.speaker]
                hung_up = f"; the broker hung up {wire.endings} times: {wire.reasons[-3:]}" if wire.endings else ""
                self.found.wrong(f"{self._name(number, shot)}: no answer within {ANSWER_WITHIN_S:g} s{hung_up}")

    # -- hearing -----------------------------------------------------------------------------------------------

    def _heard(self, answer: Answer) -> None:
        waited = self._waiting.pop(answer.subject, None)
        if waited is None:
            self.found.wrong(f"an answer that nobody waits for: {answer.subject} {answer.payload[:200]!r}")
            return
        self._room.set()
        number, shot, _ = waited
        headers = headers_of(answer.block) if answer.block else {}
        status = headers.get("Nats-Service-Error-Code")
        if status is None:
            if answer.block.startswith(b"NATS/1.0 503"):
                self.found.wrong(f"{self._name(number, shot)}: nobody serves {shot.subject}")
                return
            self._took(number, shot, answer, headers)
            return
        body = msgspec.json.decode(answer.payload, type=m.ErrorBody)
        self.found.codes[body.err_code] += 1
        self.found.layers[LAYERS.get(body.err_code, "a handler refused it")] += 1
        if status == "500" or body.err_code == "internal":
            self.found.wrong(f"{self._name(number, shot)}: central failed on it ({body.message})")
        if "Traceback" in body.message or 'File "' in body.message or not body.message:
            self.found.wrong(f"{self._name(number, shot)}: this is no answer for people: {body.message[:300]!r}")

    def _took(self, number: int, shot: Shot, answer: Answer, headers: dict[str, str]) -> None:
        """Central answered it as it answers what is right."""
        verb = shot.base.kind.verb
        said: Any = answer.payload
        with contextlib.suppress(msgspec.MsgspecError):
            reader = msgspec.json if headers.get("Content-Type", MSGPACK) == JSON else msgspec.msgpack
            said = reader.decode(answer.payload)
        if isinstance(said, dict) and (
            said.get("fenced") or said.get("accepted") is False or said.get("known") is False
        ):
            self.found.layers["fenced"] += 1
            return
        self.found.layers["accepted"] += 1
        self.found.accepted[verb] += 1
        if shot.is_certain():
            self.found.wrong(f"{self._name(number, shot)}: taken, and answered {str(said)[:300]}")
        if verb == "wallet.faucet":
            self._accepted_mints += 1
        self._explained |= set(_ids(shot, said))

    def _name(self, number: int, shot: Shot) -> str:
        return f"message {number} ({shot.base.kind.verb}; {'; '.join(shot.spoilt)})"

    # -- what must hold ------------------------------------------------------------------------------------------

    async def _last_seqs(self) -> dict[str, int]:
        return {stream: await self.scene.core.last_seq(stream) for stream in STREAMS}

    async def _look(self, when: str) -> None:
        """Nothing was written."""
        now = await self._last_seqs()
        for stream, seq in now.items():
            if seq != self.found.grown[stream][-1]:
                first = await self.scene.core.at(stream, self.found.grown[stream][-1] + 1)
                self.found.wrong(f"{stream} grew {when}: {first and first.subject} {first and first.payload[:300]!r}")
            self.found.grown[stream].append(seq)

    async def _explain(self) -> None:
        """Every event that was added is about what an accepted message named."""
        _, last = self.found.grown[subjects.EVENTS][-2:]
        first = self.found.grown[subjects.EVENTS][0]
        nodes = {node.node_id for node in self.scene.nodes} & self._explained
        named = self._explained | {job_id for job_id, node in self.scene.jobs.items() if node.node_id in nodes}
        mints = 0
        for seq in range(first + 1, last + 1):
            stored = await self.scene.core.at(subjects.EVENTS, seq)
            assert stored is not None
            about = subjects.last_token(stored.subject)
            if ".mint." in stored.subject:
                mints += b"MintSigned" in stored.payload
            elif about not in named:
                self.found.wrong(f"event {seq} is explained by no message: {stored.subject} {stored.payload[:300]!r}")
            self.found.explained_events += 1
        if mints > self._accepted_mints:
            self.found.wrong(f"{mints} payments of the faucet, {self._accepted_mints} messages asked for one")

    async def _be_honest(self) -> None:
        """Ask as everybody does, again and again while the storm lasts: every question must be answered."""
        scene, job_id = self.scene, next(iter(self.scene.jobs))
        questions: list[Callable[[], Any]] = [
            scene.honest.info,
            lambda: scene.honest.job(job_id),
            *(node.heartbeat for node in scene.nodes),
        ]
        for number in range(10**9):
            await self._probe.wait()
            if self._over.is_set():
                return
            self._probe.clear()
            begun = time.perf_counter()
            try:
                await questions[number % len(questions)]()
            except CyxError as error:
                self.found.wrong(f"an honest question was not answered: {error}")
            self.found.honest_ms.append((time.perf_counter() - begun) * 1000)

    async def _end_well(self) -> None:
        """What was taken by accident ends; then a whole job goes its way, and the money adds up."""
        scene = self.scene
        for client in scene.clients:
            asked = m.JobListRequest(mine=True, limit=1000)
            for job in (await client._ask("job.list", asked, m.JobList)).jobs:
                with contextlib.suppress(ApiError):  # it has ended already
                    await client.cancel(job.job_id)
        for node in scene.nodes:
            node.given.clear()
            with contextlib.suppress(ApiError):
                await node.heartbeat()
        view = await scene.an_honest_job()
        self.found.honest_job = view.status
        if view.status != "completed" or view.node_base_units is None:
            self.found.wrong(f"the honest job afterwards: {view}")
        rows = (await scene.honest.ledger("select sum(amount_base_units)::BIGINT from entries")).rows
        if rows != [[0]]:
            self.found.wrong(f"the entries of the ledger sum to {rows}")

    def _read_logs(self) -> None:
        for path in (self.scene.network.folder / "logs").glob("c*.log"):  # central's and the chain's
            text = path.read_text(errors="replace")
            if "Traceback" in text:
                at = text.index("Traceback")
                self.found.wrong(f"{path.name}: {text[max(0, at - 500) : at + 3000]}")
            if len(lines := text.splitlines()) > MOST_LOG_LINES:
                self.found.wrong(f"{path.name} has {len(lines)} lines, among them: {lines[len(lines) // 2][:300]}")


MOST_LOG_LINES = 1_000


def _ids(shot: Shot, said: Any) -> Iterable[str]:
    """Ids that a message and its answer name: of jobs, nodes and wallets."""
    yield shot.base.speaker
    with contextlib.suppress(msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        reader = msgspec.json if shot.content_type == JSON else msgspec.msgpack
        asked = reader.decode(shot.payload)
        for tree in (asked, said):
            if isinstance(tree, dict):
                yield from (tree[name] for name in ("job_id", "node_id") if isinstance(tree.get(name), str))


async def play(
    folder: Path, options: Options, progress: Progress = lambda done, total, found: None
) -> tuple[Found, Scene]:
    async with Scene(folder, options.seed, options.callers, options.nodes) as scene:
        return await Campaign(scene, options, progress).play(), scene

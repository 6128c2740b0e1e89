"""Clients that submit small jobs, insist until they are answered, and write down what they were told."""

import asyncio
import random
import time
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cyxcore.errors import CyxError
from cyxnet import jobfile
from cyxnet import messages as m
from cyxnet.bus import ApiError
from cyxnet.client import AsyncClient, Prepared
from tests.chaos.proxy import pause

AMOUNT_BASE_UNITS = 1_000_000_007  # odd, so that the platform's tenth is rounded
PURSE_BASE_UNITS = 10**15
LAMPORTS = 10**10
OPEN_PER_CLIENT = 3  # a client submits its next job when one of its open ones has ended
PATIENCE_S = (0.1, 0.3, 1.0, 1.0)
CANCELLED_SHARE, PAUSED_SHARE, TWICE_SHARE, HOPELESS_SHARE, AFTER_SHARE = 0.08, 0.08, 0.15, 0.05, 0.15
CHECKPOINT_STEPS = (0, 20, 70)  # 0: none within so short a job

JOB = """\
name = "chaos"
amount = "1"
[data]
path = "points.csv"
target = "label"
validation = 0.25
[model]
layers = [
    { kind = "Linear", out_features = 256 },
    { kind = "ReLU" },
    { kind = "Linear", out_features = 256 },
    { kind = "ReLU" },
    { kind = "Linear", out_features = 2 },
]
[training]
epochs = 10
batch_size = 48
loss = "cross_entropy"
seed = 1
[training.optimizer]
name = "sgd"
learning_rate = 0.05
"""


class Told(Struct, frozen=True, kw_only=True):
    """What central answered to a client, as it was written down. An error is an answer too, but no promise."""

    what: str  # submitted, cancel accepted, pause accepted, resume accepted, ended, refused
    job_id: str
    client: str
    at_ms: int
    asked_at_ms: int
    status: str = ""
    error: str = ""


class Load:
    """Closed-loop load: `clients` × OPEN_PER_CLIENT jobs are open until `enough` is set and `jobs` were submitted."""

    def __init__(self, folder: Path, seed: int, clients: int, jobs: int):
        self.folder = folder
        self.jobs = jobs
        self.told: list[Told] = []
        self.asked: dict[str, m.JobRequest] = {}  # job id -> what the client wanted
        self.enough = asyncio.Event()
        self.over = asyncio.Event()  # nobody asks any more
        self._rng = random.Random(f"load {seed}")
        self._count = clients
        self._clients: list[AsyncClient] = []
        self._job: jobfile.LoadedJob
        self._begun = 0
        self._last: dict[str, str] = {}  # client -> the job that it submitted last
        self._ended: set[str] = set()
        self._book = (folder / "told.jsonl").open("ab")

    async def open(self, url: str) -> None:
        """Write the job, connect the clients and fill their purses: before anything goes wrong."""
        rows = ["a,b,c,label"]
        for n in range(64):
            a, b, c = (self._rng.uniform(-1, 1) for _ in range(3))
            rows.append(f"{a:.6f},{b:.6f},{c:.6f},{int(a + b * c > 0) if n > 1 else n}")
        (self.folder / "points.csv").write_text("\n".join(rows) + "\n")
        (self.folder / "chaos.toml").write_text(JOB)
        self._job = jobfile.load(self.folder / "chaos.toml")
        for n in range(self._count):
            client = await AsyncClient.connect(self.folder / f"client-{n + 1}", url=url)
            client.retry_delays_s = PATIENCE_S
            self._clients.append(client)
        await asyncio.gather(*(client.faucet(PURSE_BASE_UNITS, LAMPORTS) for client in self._clients))

    async def close(self) -> None:
        self.over.set()
        self._book.close()
        for client in self._clients:
            await client.close()

    @property
    def acknowledged(self) -> set[str]:
        return {told.job_id for told in self.told if told.what == "submitted"}

    @property
    def all_begun(self) -> bool:
        """No client begins another job."""
        return self.enough.is_set() and self._begun >= self.jobs

    @property
    def open_jobs(self) -> int:
        return len(self.acknowledged - self._ended)

    async def run(self) -> None:
        """Until there is `enough` and every job that was acknowledged has ended, for its client too."""
        async with asyncio.TaskGroup() as tasks:
            for client in self._clients:
                for _ in range(OPEN_PER_CLIENT):
                    tasks.create_task(self._one_after_another(client))

    async def _one_after_another(self, client: AsyncClient) -> None:
        while not self.over.is_set() and not self.all_begun:
            self._begun += 1
            await self._one(client, self._begun)

    async def _one(self, client: AsyncClient, number: int) -> None:
        rng = random.Random(self._rng.random())
        job_id = await self._submit(client, number, rng)
        if job_id is None:
            return
        die = rng.random()
        if die < CANCELLED_SHARE + PAUSED_SHARE:
            await pause(rng.uniform(0, 1.5), self.over)
            if die < CANCELLED_SHARE:
                await self._steer(client, job_id, "cancel")
            elif await self._steer(client, job_id, "pause"):
                await pause(rng.uniform(0, 1.5), self.over)
                await self._steer(client, job_id, "resume")
        await self._wait(client, job_id)

    # -- three conversations, each until there is an answer ---------------------------------------------

    async def _submit(self, client: AsyncClient, number: int, rng: random.Random) -> str | None:
        pair = (number + 1) // 2  # two jobs of equal trainings, whose results the checker compares
        epochs = random.Random(pair).choice((20, 100, 300))
        training = replace(self._job.training, epochs=epochs, seed=pair)
        attempts = 1 if rng.random() < HOPELESS_SHARE else 10
        loaded = replace(
            self._job,
            name=f"chaos {number}",
            training=training,
            amount_base_units=AMOUNT_BASE_UNITS + number,
            max_attempts=attempts,
            priority=rng.randrange(3),
            checkpoints=m.CheckpointPolicy(every_steps=rng.choice(CHECKPOINT_STEPS)),
        )
        if rng.random() < AFTER_SHARE and (last := self._last.get(client.caller)):
            loaded = replace(loaded, after=[m.After(job_id=last, model=rng.random() < 0.5)])
        times = 2 if rng.random() < TWICE_SHARE else 1
        prepared: Prepared | None = None
        asked_at_ms = _wall_ms()
        while not self.over.is_set():
            try:
                if prepared is None:
                    prepared = await client.prepare(loaded)
                    self.asked[prepared.job_id] = prepared.job
                # the same job said twice at once is still one job
                both = await asyncio.gather(*(client.place(prepared) for _ in range(times)), return_exceptions=True)
                replies = [reply for reply in both if isinstance(reply, m.SubmitReply)]
                for reply in replies:
                    self._tell("submitted", client, reply.job_id, asked_at_ms, status=reply.status)
                if replies:
                    self._last[client.caller] = prepared.job_id
                    return prepared.job_id
                raise next(error for error in both if isinstance(error, BaseException))
            except CyxError as error:
                if not await self._try_again(client, prepared, error, asked_at_ms):
                    return None
        return None

    async def _try_again(
        self, client: AsyncClient, prepared: Prepared | None, error: CyxError, asked_at_ms: int
    ) -> bool:
        """What a careful client does about an error: sign anew only when the old deposit is known to be useless."""
        job_id = prepared.job_id if prepared else ""
        self._tell("refused", client, job_id, asked_at_ms, error=f"{error.code}: {error}")
        if prepared and error.code == "expired":
            try:
                await client.job(job_id)
            except CyxError as answer:
                if answer.code == "unknown_job":
                    prepared.payment = None
        elif error.code == "escrow_exists":
            pass  # it was paid already: central knows it, or will in a moment
        elif isinstance(error, ApiError) and error.status < 500 and error.status not in (404, 429):
            return False
        await pause(0.2, self.over)
        return True

    async def _steer(self, client: AsyncClient, job_id: str, what: str) -> bool:
        """Cancel, pause or resume, until there is an answer. False when it came too late."""
        asked_at_ms = _wall_ms()
        ask = getattr(client, what)
        while not self.over.is_set():
            try:
                view = await ask(job_id)
                self._tell(f"{what} accepted", client, job_id, asked_at_ms, status=view.status)
                return True
            except CyxError as error:
                if error.code == "too_late":
                    return False
                self._tell("refused", client, job_id, asked_at_ms, error=f"{error.code}: {error}")
            await pause(0.2, self.over)
        return False

    async def _wait(self, client: AsyncClient, job_id: str) -> None:
        asked_at_ms = _wall_ms()
        while not self.over.is_set():
            try:
                view = await client.wait(job_id)
                self._ended.add(job_id)
                self._tell("ended", client, job_id, asked_at_ms, status=view.status, error=view.error or "")
                return
            except CyxError as error:
                self._tell("refused", client, job_id, asked_at_ms, error=f"{error.code}: {error}")
            await pause(0.2, self.over)

    def _tell(
        self, what: str, client: AsyncClient, job_id: str, asked_at_ms: int, status: str = "", error: str = ""
    ) -> None:
        told = Told(
            what=what,
            job_id=job_id,
            client=client.caller,
            at_ms=_wall_ms(),
            asked_at_ms=asked_at_ms,
            status=status,
            error=error[:300],
        )
        self.told.append(told)
        self._book.write(msgspec.json.encode(told) + b"\n")
        self._book.flush()


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000

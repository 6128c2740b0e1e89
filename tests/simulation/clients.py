"""Clients: production's AsyncClient asks, with its retries; what each of them wants is drawn by the seed."""

import asyncio
import functools
import tempfile
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from cyxcore.errors import CyxError
from cyxcore.spec import ModelSpec, TrainingSpec
from cyxnet import messages as m
from cyxnet.bus import ApiError, BusError
from cyxnet.client import AsyncClient, Prepared
from cyxnet.outcomes import TEMPORARY_CODES
from tests.simulation.chain import SimSettlement
from tests.simulation.loop import ProcessLoop
from tests.simulation.nodes import digest, identity, wallet
from tests.simulation.wire import Process, SimBus

LONG_PAUSE_S = 30.0  # whoever has the job must have given it back by then
COPIES_APART_S = 0.05  # so that one central has refused what the next one takes
DATASET = b"some rows"
_FOLDER = tempfile.TemporaryDirectory(prefix="cyx-simulation-")
DATASET_PATH = Path(_FOLDER.name) / "rows.csv"
DATASET_PATH.write_bytes(DATASET)
MODEL = ModelSpec(input=[4], layers=[{"kind": "Linear", "out_features": 3}])


@functools.lru_cache(maxsize=256)
def job_request(name: str, steps: int, every_steps: int, amount: int, max_attempts: int) -> m.JobRequest:
    return m.JobRequest(
        name=name,
        model=MODEL,
        dataset=m.ArtifactRef(sha256=digest(DATASET), size=len(DATASET)),
        facts=m.DatasetFacts(rows=steps * 8, input_shape=[4], classes=3),
        training=TrainingSpec(epochs=1, batch_size=8),
        amount_base_units=amount,
        max_attempts=max_attempts,
        checkpoints=m.CheckpointPolicy(every_steps=every_steps, every_s=0.0),
    )


class Payer(SimBus):
    """A client's link, where its deposits are seen."""

    def __init__(self, process: Process, network: Any):
        super().__init__(process, network.edge)
        self._checks = network.checks

    async def ask(self, subject: str, message: Any, reply: Any, **options: Any) -> Any:
        if isinstance(message, m.SubmitRequest) and message.payment:
            self._checks.deposit_sent(message.job_id, message.payment.deposit)
        return await super().ask(subject, message, reply, **options)


class Client(Process):
    """A caller with a wallet and one job. Until it has an acknowledgement it asks again, with the same id."""

    def __init__(self, loop: ProcessLoop, network: Any, number: int):
        super().__init__(loop)
        self.network = network
        self.number = number
        dice = network.scheduler.dice
        kind = dice.choices(["job", "faulty"], [9, 1])[0]
        self.job = job_request(
            f"{kind}-{number}",
            dice.choice([4, 8, 12]),
            dice.choice([0, 2, 3]),
            dice.choice([1, 7, 1_000_003, 2_500_000_000]),
            dice.choice([1, 2, 3, 5]),
        )
        self.job_id = f"{kind}-{number}"
        self.wish = dice.choices(["wait", "watch", "cancel", "pause"], [3, 1, 3, 3])[0]
        if network.faults.stalls():
            self.wish = "stall"
        self.copies = 4 if network.faults.asks_two() else 1  # of its submission, none of which waits for an answer
        self.keys = identity(500 + number)
        self.client = AsyncClient(Payer(self, network), self.keys, f"c-{self.keys.short_id}")  # type: ignore[arg-type]
        self.others = network.followers.after(self.job)  # jobs that come after it, or replicas that stand by
        if replica := network.wishes.job(number, self.client.caller, self.job.dataset):
            assert replica.serve is not None
            seconds = network.answers.seconds(replica.serve.seconds)
            replica = replace(replica, serve=replace(replica.serve, seconds=seconds))
            self.job, *self.others = network.wishes.fleet(replica)
            self.job_id = replica.name
        self.client.purse = wallet(500 + number)
        self.client._settlement = SimSettlement(self, network.chain)
        self.acknowledged = False
        self.refused: str | None = None
        self.done = False
        self.seen: list[tuple[str, int]] = []

    def crash(self, why: str) -> None:
        """The fault is of centrals: nobody would start a client again."""

    async def main(self) -> None:
        dice = self.network.scheduler.dice
        await asyncio.sleep(dice.random() * 6)
        await self._submit()
        if self.acknowledged:
            for other in self.others:
                await self._buy(other)
            await getattr(self, f"_{self.wish}")()
        self.done = True

    async def _submit(self) -> None:
        """Until central has said yes, or no for good. The id stays."""
        prepared: Prepared | None = None
        while not self.acknowledged:
            try:
                prepared = prepared or await self.client.prepare(self.job, DATASET_PATH, self.job_id)
                answers = await self._place(prepared)
            except CyxError as error:
                answers = [error]
            for answer in answers:
                if isinstance(answer, m.SubmitReply):
                    self.job_id, self.acknowledged = answer.job_id, True
                elif not isinstance(answer, CyxError):
                    raise answer
                elif answer.code == "clocks_differ":
                    prepared = await self._kept(prepared)
                elif not isinstance(answer, BusError) and answer.code not in TEMPORARY_CODES:
                    self.refused = f"{answer.code}: {answer}"
            if self.refused:
                return
            if not self.acknowledged:
                await asyncio.sleep(1.0)

    async def _kept(self, prepared: Prepared | None) -> Prepared | None:
        """A job that a central does not take for its deadline, until another may be signed with that of a new quote."""
        try:
            if prepared and prepared.payment and not await self.client._is_dead(prepared.payment):
                return prepared
        except CyxError:
            return prepared
        return None

    async def _place(self, prepared: Prepared) -> list[m.SubmitReply | BaseException]:
        """All answers to a submission that is sent so often, one copy behind the other, each to any central."""
        prepared.payment = await self.client._paid(prepared)  # the same deposit in all of them

        async def place(number: int) -> m.SubmitReply:
            await asyncio.sleep(number * COPIES_APART_S)
            return await self.client.place(prepared)

        return await asyncio.gather(*map(place, range(self.copies)), return_exceptions=True)

    async def _buy(self, other: m.JobRequest) -> None:
        """A replica that stands by, until central has said yes or no."""
        prepared: Prepared | None = None
        while True:
            try:
                prepared = prepared or await self.client.prepare(other, DATASET_PATH, other.name)
                await self.client.place(prepared)
                if other.after and self.network.followers.pauses():
                    await self._hold(other)
                return
            except CyxError as error:
                if not (isinstance(error, BusError) or error.code in TEMPORARY_CODES):
                    return
                if error.code == "clocks_differ":
                    prepared = await self._kept(prepared)
                await asyncio.sleep(1.0)

    async def _hold(self, other: m.JobRequest) -> None:
        """Pause a job that may still wait for others, for a while."""
        await self._until_said("job.pause", m.JobRef(job_id=other.name, request_id="pause"))
        await asyncio.sleep(5.0)
        await self._until_said("job.resume", m.JobRef(job_id=other.name, request_id="resume"))

    async def _until_said(self, verb: str, message: Any) -> None:
        """Ask until there is an answer."""
        while True:
            try:
                await self.client._ask(verb, message, m.JobView)
                return self.network.checks.answered(message.job_id, message.request_id, yes=True)
            except ApiError as error:
                assert error.status != 400, error  # a mistake in this file
                if error.status == 404:
                    self.network.checks.told_no(f"there is no job {message.job_id}", self.acknowledged, True)
                if error.status != 503:
                    return self.network.checks.answered(message.job_id, message.request_id, yes=False)
            except BusError:
                pass
            await asyncio.sleep(1.0)

    async def _wait(self) -> None:
        """It changes its mind about how urgent it is, and tries each wish twice."""
        if self.number % 2:
            first, second = (
                m.PriorityRequest(job_id=self.job_id, priority=level, request_id=f"level-{level}") for level in (9, 1)
            )
            for wish in (first, second, first):
                await self._until_said("job.priority", wish)

    async def _cancel(self) -> None:
        await asyncio.sleep(self.network.scheduler.dice.expovariate(1 / 5))
        await self._until_said("job.cancel", m.CancelRequest(job_id=self.job_id, request_id="cancel"))

    async def _pause(self) -> None:
        dice = self.network.scheduler.dice
        await asyncio.sleep(dice.expovariate(1 / 4))
        if dice.random() < 0.3:  # it changes nothing, and nothing later either
            await self._until_said("job.resume", m.JobRef(job_id=self.job_id, request_id="early"))
        pause = m.JobRef(job_id=self.job_id, request_id="pause")
        await self._until_said("job.pause", pause)
        await asyncio.sleep(LONG_PAUSE_S if self.network.faults.pauses_long() else dice.expovariate(1 / 5))
        await self._until_said("job.resume", m.JobRef(job_id=self.job_id, request_id="resume"))
        if dice.random() < 0.5:  # a try of the pause that was held up on its way
            await self._until_said("job.pause", pause)

    async def _stall(self) -> None:
        """Pause until the deadline, and have a node work now and then: what is stored would be had for nothing."""
        dice, checks = self.network.scheduler.dice, self.network.checks
        await asyncio.sleep(dice.expovariate(1 / 3))
        for number in range(6):
            await self._until_said("job.pause", m.JobRef(job_id=self.job_id, request_id=f"pause-{number}"))
            for _ in range(5 + int(dice.expovariate(1 / 10))):
                await asyncio.sleep(1)
                if checks.jobs[self.job_id].ended:
                    return
            await self._until_said("job.resume", m.JobRef(job_id=self.job_id, request_id=f"resume-{number}"))
            await asyncio.sleep(dice.random())

    async def _watch(self) -> None:
        while True:
            seen: list[tuple[str, int]] = []
            try:
                async for update in self.client.watch(self.job_id):
                    seen.append((update.source, update.seq))
            except CyxError:  # it gave up, as a person's would; start again
                await asyncio.sleep(1.0)
                continue
            self.seen = seen
            return

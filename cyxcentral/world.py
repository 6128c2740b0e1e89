"""Everything central knows, as the fold of the event log. Pure: fed record by record, in the order of the log."""

from typing import assert_never

import msgspec
from msgspec import Struct

from cyxcentral import jobs, nodes
from cyxnet import messages as m
from cyxnet import subjects


class Mint(Struct, frozen=True, kw_only=True):
    """A faucet payment: signed, then minted or failed."""

    mint_id: str
    to: str
    amount_base_units: int
    signed: m.SignedTransaction
    ended: m.Minted | m.MintFailed | None = None


class World:
    """Jobs, nodes and mints by id; for each subject the sequence that an append must expect."""

    def __init__(self) -> None:
        self.jobs: dict[str, jobs.Job] = {}
        self.nodes: dict[str, nodes.Node] = {}
        self.mints: dict[str, Mint] = {}
        self.last_seq: dict[str, int] = {}
        self.seq = 0
        self.active: set[str] = set()  # jobs that have not ended
        self.held: dict[str, set[str]] = {}  # node id -> jobs whose lease it holds

    def apply(self, seq: int, subject: str, record: m.Record) -> None:
        """Take in the next record of the log."""
        assert seq > self.seq, f"record {seq} after {self.seq}: the log is read in order"
        self.seq = seq
        self.last_seq[subject] = seq
        about, event = subjects.last_token(subject), record.event
        if isinstance(event, m.NodeRegistered | m.NodeLost):
            self.nodes[about] = nodes.evolve(self.nodes.get(about), event, record.at_ms)
        elif isinstance(event, m.MintSigned | m.Minted | m.MintFailed):
            self._mint(about, event)
        else:
            self._job(about, event, record.at_ms)

    def _job(self, job_id: str, event: m.JobEvent, at_ms: int) -> None:
        before = self.jobs.get(job_id)
        if before and before.current:
            self.held[before.current.node_id].discard(job_id)
        job = self.jobs[job_id] = jobs.evolve(before, event, at_ms)
        if job.current:
            self.held.setdefault(job.current.node_id, set()).add(job_id)
        if job.status in jobs.ENDED:
            self.active.discard(job_id)
        else:
            self.active.add(job_id)
        if isinstance(event, m.Completed | m.LeaseLost):
            node_id = job.attempts[-1].node_id
            if node_id in self.nodes:
                self.nodes[node_id] = nodes.judged(self.nodes[node_id], event)

    def _mint(self, mint_id: str, event: m.MintEvent) -> None:
        match event:
            case m.MintSigned():
                self.mints[mint_id] = Mint(
                    mint_id=mint_id,
                    to=event.to,
                    amount_base_units=event.amount_base_units,
                    signed=event.signed,
                )
            case m.Minted() | m.MintFailed():
                self.mints[mint_id] = msgspec.structs.replace(self.mints[mint_id], ended=event)
            case _ as never:
                assert_never(never)

    def runs_of(self, node_id: str) -> list[jobs.Job]:
        """The jobs whose lease a node holds."""
        return [self.jobs[job_id] for job_id in sorted(self.held.get(node_id, ()))]

    def leased(self) -> list[jobs.Job]:
        """Every job whose lease a node holds."""
        return [self.jobs[job_id] for held in self.held.values() for job_id in held]

    def job_by_prefix(self, prefix: str) -> list[str]:
        """Ids of the jobs that start with `prefix`; a whole id wins over longer ones."""
        if prefix in self.jobs:
            return [prefix]
        return sorted(job_id for job_id in self.jobs if job_id.startswith(prefix))

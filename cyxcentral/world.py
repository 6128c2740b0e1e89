"""Everything central knows, as the fold of the event log. Pure: fed record by record, in the order of the log."""

from typing import assert_never

import msgspec
from msgspec import Struct

from cyxcentral import jobs, nodes
from cyxcentral.matching import Matching
from cyxcentral.schedule import Candidate, Weights
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
    """Jobs, nodes and mints by id; for each subject the sequence that an append must expect.

    weights are this central's own opinion of the terms of a score: they change what it decides, not what happened.
    """

    def __init__(self, weights: Weights | None = None) -> None:
        self.jobs: dict[str, jobs.Job] = {}
        self.nodes: dict[str, nodes.Node] = {}
        self.mints: dict[str, Mint] = {}
        self.last_seq: dict[str, int] = {}
        self.seq = 0
        self.active: set[str] = set()  # jobs that have not ended
        self.held: dict[str, set[str]] = {}  # node id -> jobs whose lease it holds
        self.promised_bytes: dict[str, int] = {}  # node id -> memory that those jobs need
        self.suspects: set[str] = set()  # ids of nodes that may have earned a ban
        self._weights = weights
        self._matching: Matching | None = None
        self._changed_jobs: set[str] = set()  # since the matching was asked for
        self._changed_nodes: set[str] = set()

    @property
    def matching(self) -> Matching:
        """Who waits, and where there is room. Made when it is first asked for, so that reading a long log stays cheap;
        from then on it takes in what changed since it was last asked for.
        """
        if self._matching is None:
            self._matching = Matching(self._weights)
            waiting = [self.jobs[job_id] for job_id in self.active if jobs.waits(self.jobs[job_id])]
            self._matching.fill(waiting, [self.candidate(node_id) for node_id in self.nodes])
        else:
            for job_id in self._changed_jobs:
                if jobs.waits(self.jobs[job_id]):
                    self._matching.waits(self.jobs[job_id])
                else:
                    self._matching.waits_no_more(job_id)
            for node_id in self._changed_nodes:
                self._matching.has_room(self.candidate(node_id))
        self._changed_jobs.clear()
        self._changed_nodes.clear()
        return self._matching

    def apply(self, seq: int, subject: str, record: m.Record) -> None:
        """Take in the next record of the log."""
        assert seq > self.seq, f"record {seq} after {self.seq}: the log is read in order"
        self.seq = seq
        self.last_seq[subject] = seq
        about, event = subjects.last_token(subject), record.event
        if isinstance(event, m.NodeEvent):
            leases = len(self.held.get(about, ()))
            self._node(nodes.evolve(self.nodes.get(about), event, record.at_ms, leases), record.at_ms)
        elif isinstance(event, m.MintSigned | m.Minted | m.MintFailed):
            self._mint(about, event)
        else:
            self._job(about, event, record.at_ms)

    def _node(self, node: nodes.Node, at_ms: int) -> None:
        self.nodes[node.node_id] = node
        if nodes.ban_due(node, at_ms):
            self.suspects.add(node.node_id)
        else:
            self.suspects.discard(node.node_id)
        self._changed_nodes.add(node.node_id)

    def _job(self, job_id: str, event: m.JobEvent, at_ms: int) -> None:
        before = self.jobs.get(job_id)
        job = self.jobs[job_id] = jobs.evolve(before, event, at_ms)
        holder = before.current.node_id if before and before.current else None
        if holder != (now := job.current.node_id if job.current else None):
            self._holds(holder, job, held=False)
            self._holds(now, job, held=True)
        if job.status in jobs.ENDED:
            self.active.discard(job_id)
        else:
            self.active.add(job_id)
        self._changed_jobs.add(job_id)
        if isinstance(event, m.Completed | m.LeaseLost):
            self._judge(job, event, at_ms)

    def _holds(self, node_id: str | None, job: jobs.Job, held: bool) -> None:
        """A node was given the lease of a job, or has it no longer."""
        if node_id is None:
            return
        if held:
            self.held.setdefault(node_id, set()).add(job.job_id)
        else:
            self.held[node_id].discard(job.job_id)
        change = job.memory_bytes if held else -job.memory_bytes
        self.promised_bytes[node_id] = self.promised_bytes.get(node_id, 0) + change
        if node_id in self.nodes:
            self._changed_nodes.add(node_id)

    def _judge(self, job: jobs.Job, event: m.Completed | m.LeaseLost, at_ms: int) -> None:
        """What the end of an attempt says about its node, and a success about the nodes that failed before."""
        last = job.attempts[-1].node_id
        if node := self.nodes.get(last):
            self._node(nodes.judged(node, job.job_id, event, at_ms), at_ms)
        if not isinstance(event, m.Completed):
            return
        failed = {tried.node_id: tried.lost for tried in job.attempts if tried.lost and tried.node_id != last}
        for node_id, lost in failed.items():
            if node := self.nodes.get(node_id):
                self._node(nodes.blamed(node, job.job_id, lost, at_ms), at_ms)

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

    def candidate(self, node_id: str, now_ms: int = 0) -> Candidate:
        """A node with the room it has; at now_ms, when its ban may be over."""
        node = self.nodes[node_id]
        return Candidate(
            node=nodes.at(node, now_ms),
            active_runs=len(self.held.get(node_id, ())),
            memory_free_bytes=node.hardware.memory_bytes - self.promised_bytes.get(node_id, 0),
        )

    def runs_of(self, node_id: str) -> list[jobs.Job]:
        """The jobs whose lease a node holds."""
        return [self.jobs[job_id] for job_id in sorted(self.held.get(node_id, ()))]

    def leased(self) -> list[jobs.Job]:
        """Every job whose lease a node holds."""
        return [self.jobs[job_id] for held in self.held.values() for job_id in sorted(held)]

    def job_by_prefix(self, prefix: str) -> list[str]:
        """Ids of the jobs that start with `prefix`; a whole id wins over longer ones."""
        if prefix in self.jobs:
            return [prefix]
        return sorted(job_id for job_id in self.jobs if job_id.startswith(prefix))

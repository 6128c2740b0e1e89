"""Everything central knows, as the fold of the event log. Pure: fed record by record, in the order of the log."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, assert_never, get_args

import msgspec
from msgspec import Struct

from cyxcentral import clients, dependencies, jobfold, jobrules, jobs, nodes, payouts
from cyxcentral.matching import Matching
from cyxcentral.roster import Roster
from cyxcentral.schedule import Assignment, Candidate, Unproven, Weights, limit_of
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.codec import BadMessage


class Mint(Struct, frozen=True, kw_only=True):
    """A faucet payment: signed, then minted or failed."""

    mint_id: str
    to: str
    amount_base_units: int
    signed: m.SignedTransaction
    ended: m.Minted | m.MintFailed | None = None


Place = tuple[str, int, bytes, bool]  # of a subject: its last sequence, the hash there, and whether it is chained

# What an event of the log may be about: the fourth token of its subject, and what is said there. As sets of types,
# because asking isinstance() of a union of so many costs a microsecond, several times for every event.
SAID_ON = {
    kind: frozenset(get_args(events))
    for kind, events in (
        ("job", m.JobEvent),
        ("node", m.NodeEvent),
        ("mint", m.MintEvent),
        ("payouts", m.PayoutsEvent),
        ("client", m.ClientEvent),
    )
}
# what the end of an attempt, or of its check, says of its node
JUDGED = frozenset({m.Completed, m.TimeUsed, m.LeaseLost, m.Checked, m.CheckGivenUp, m.Rejected})
# events that name jobs, or sums that are a job's own
NAMING = frozenset({m.Submitted, m.DependenciesMet, m.DependencyFailed, m.Settled, m.Refunded})
FOLD_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)


class UnknownEvent(BadMessage):
    """A record with an event that this version does not know. A newer central decided on it, and may again."""


class World:
    """Jobs, nodes, mints and banned clients by id; for each subject the sequence and the hash that an append must name.

    A message that cannot have happened is put into quarantine: it changes nothing but its subject's sequence and hash.
    Which messages these are follows from the messages before them alone, so every central comes to the same.

    weights are this central's own opinion of the terms of a score, unproven that of nodes which nobody knows: they
    change what it decides, not what happened.
    """

    def __init__(self, weights: Weights | None = None, unproven: Unproven | None = None) -> None:
        self.jobs: dict[str, jobs.Job] = {}
        self.nodes: dict[str, nodes.Node] = {}
        self.mints: dict[str, Mint] = {}
        self.clients: dict[str, clients.Client] = {}  # who was ever banned
        self.payouts = payouts.Payouts()
        self.last_seq: dict[str, int] = {}
        self.last_sha256: dict[str, bytes] = {}  # of the message at last_seq
        self.seq = 0
        self.sha256 = b""  # of the message at seq
        self.quarantined = 0
        self.damaged: dict[str, int] = {}  # subject -> sequence from which on its history is not known
        self.why_damaged: dict[str, str] = {}  # the same in words, with what to do
        self._chained: set[str] = set()  # subjects whose records name their predecessors
        self.active: set[str] = set()  # jobs that have not ended
        self.awaiting: set[str] = set()  # of those, the ones that wait for others to be completed
        self.dependents: dict[str, set[str]] = {}  # job -> those of awaiting that come after it
        self.decided: set[str] = set()  # those of awaiting that may begin now, or never will
        self.checking: set[str] = set()  # of those, the delivered ones whose training is being checked
        self.payers: set[str] = set()  # callers who had a job whose deposit landed
        self.unfunded: dict[str, dict[str, int]] = {}  # wallet -> job -> base units of a deposit that is not final yet
        self.unfunded_base_units: dict[str, int] = {}  # wallet -> all of them
        self.named: set[tuple[str, str]] = set()  # SHA-256 of an artifact, and a caller whose jobs name it
        self.held: dict[str, set[str]] = {}  # node id -> jobs whose lease it holds
        # the end of the ids of one owner -> deployment -> the jobs that are its replicas, or were, in the log's order
        self.deployments: dict[str, dict[str, dict[str, None]]] = {}
        self.replicas: dict[str, dict[str, None]] = {}  # deployment -> those that have not ended, in the log's order
        self.promised_bytes: dict[str, int] = {}  # node id -> memory that those jobs need
        self.suspects: set[str] = set()  # ids of nodes that may have earned a ban
        self._weights = weights
        self._unproven = unproven or Unproven()
        self._matching: Matching | None = None
        self._roster: Roster | None = None
        self._changed_jobs: set[str] = set()  # since the matching was asked for, if it ever was
        self._changed_nodes: set[str] = set()
        self._happens: dict[str, Callable[[str, Any, int], str | None]] = {
            "job": self._to_job,
            "node": self._to_node,
            "mint": self._to_mint,
            "payouts": self._to_payouts,
            "client": self._to_client,
        }

    def copy(self) -> "World":
        """This world as it is now, to be looked at later: what is folded, not what is made of it."""
        other = World(self._weights, self._unproven)
        for name in ("jobs", "nodes", "mints", "clients", "last_seq", "last_sha256", "damaged", "why_damaged"):
            setattr(other, name, dict(getattr(self, name)))
        other.payouts = self.payouts
        other._chained, other.suspects = set(self._chained), set(self.suspects)
        other.seq, other.sha256, other.quarantined = self.seq, self.sha256, self.quarantined
        return other

    def places(self) -> Iterator[Place]:
        """Where each subject stands."""
        for subject, seq in self.last_seq.items():
            yield subject, seq, self.last_sha256[subject], subject in self._chained

    def take_places(self, places: list[Place]) -> None:
        """The opposite of places(), for a world that is filled."""
        self.last_seq.update((subject, seq) for subject, seq, _, _ in places)
        self.last_sha256.update((subject, sha256) for subject, _, sha256, _ in places)
        self._chained.update(subject for subject, _, _, chained in places if chained)

    def take_jobs(self, found: list[jobs.Job]) -> None:
        """Jobs as they were, for a world that is filled, with what follows from them."""
        for job in found:
            self.jobs[job.job_id] = job
            if job.job.serve:
                self._offer(job.job.serve.deployment, job.job_id)
                self._count_replica(job.job.serve.deployment, job)
            self._name(job)
            self._await(job)  # those that it comes after stand before it in the log, and here
            if job.status not in jobs.ENDED:
                self.active.add(job.job_id)
            if job.status == "checking":
                self.checking.add(job.job_id)
            if job.funded:
                self.payers.add(job.caller)
            else:
                self._count_unfunded(job)
            if job.holder:
                self._holds(job.holder, job, held=True)

    @property
    def matching(self) -> Matching:
        """Who waits, and where there is room. Made when it is first asked for, so that reading a long log stays cheap;
        from then on it takes in what changed since it was last asked for.
        """
        if self._matching is None:
            self._matching = Matching(self._weights, self._unproven)
            waiting = [self.jobs[job_id] for job_id in self.active if self._waits(job_id)]
            self._matching.fill(waiting, [self.candidate(node_id) for node_id in self.nodes])
        elif not (self._changed_jobs or self._changed_nodes):  # mostly: dispatch asks for it again and again
            return self._matching
        else:
            for job_id in sorted(self._changed_jobs):  # the same in every process
                if self._waits(job_id):
                    self._matching.waits(self.jobs[job_id])
                else:
                    self._matching.waits_no_more(job_id)
            for node_id in sorted(self._changed_nodes):
                self._matching.has_room(self.candidate(node_id))
        self._changed_jobs.clear()
        self._changed_nodes.clear()
        return self._matching

    @property
    def roster(self) -> Roster:
        """All jobs as lists show them; to be filled by whoever asks for it."""
        if self._roster is None:
            self._roster = Roster(self.jobs)
        return self._roster

    def _waits(self, job_id: str) -> bool:
        return jobs.waits(self.jobs[job_id]) and subjects.job_event(job_id) not in self.damaged

    def apply(self, seq: int, subject: str, record: m.Record | BadMessage, sha256: bytes = b"") -> str | None:
        """Take in the next message of the log: a record, or what was wrong with its bytes.

        sha256: of its bytes. Returns why it is in quarantine, None when it happened.
        """
        assert seq == self.seq + 1, f"message {seq} after {self.seq}: the log is read in order"
        why = self._take(seq, subject, record)
        self.seq = self.last_seq[subject] = seq
        self.last_sha256[subject] = self.sha256 = sha256
        if why is not None:
            self.quarantined += 1
        return why

    def prev(self, subject: str) -> str:
        """What the next record of a subject has to name as its predecessor."""
        last = self.last_sha256.get(subject)
        return last.hex() if last else ""

    def _take(self, seq: int, subject: str, record: m.Record | BadMessage) -> str | None:
        if self.damaged and subject in self.damaged:
            return f"the history of its subject is not known: {self.why_damaged[subject]}"
        if not isinstance(record, m.Record):
            if isinstance(record, UnknownEvent):
                return self._damage(seq, subject, "is of a version newer than this central: upgrade it", str(record))
            return f"it is no record: {record}"
        if record.prev:
            self._chained.add(subject)
        if (record.prev or subject in self._chained) and record.prev != self.prev(subject):
            what = "does not name the one before it: restore the broker's store"
            return self._damage(
                seq, subject, what, "it does not name the message before it: one of the two was altered"
            )
        try:
            _, kind, about = subject.rsplit(".", 2)
            event = record.event
            if type(event) not in SAID_ON[kind]:
                return f"{type(event).__name__} is nothing that is said of a {kind}"
            return self._happens[kind](about, event, record.at_ms)
        except FOLD_ERRORS as error:
            return f"it cannot happen: {error or type(error).__name__}"

    def _damage(self, seq: int, subject: str, what: str, why: str) -> str:
        self.damaged[subject], self.why_damaged[subject] = seq, f"event {seq} {what}"
        about = subjects.last_token(subject)  # nothing is decided on it any more: it is no part of a plan
        if about in self.jobs and subject == subjects.job_event(about):
            self._changed_jobs.add(about)
        if about in self.nodes and subject == subjects.node_event(about):
            self._changed_nodes.add(about)
        return why

    def _to_node(self, node_id: str, event: m.NodeEvent, at_ms: int) -> str | None:
        if isinstance(event, m.NodeRegistered | m.NodeLost) and event.node_id != node_id:
            return f"it is about {event.node_id}"
        before = self.nodes.get(node_id)
        if why_not := nodes.illegal(nodes.at(before, at_ms) if before else None, event):
            return why_not
        self._node(nodes.evolve(before, event, at_ms, len(self.held.get(node_id, ()))), at_ms)
        return None

    def _node(self, node: nodes.Node, at_ms: int) -> None:
        self.nodes[node.node_id] = node
        if nodes.ban_due(node, at_ms):
            self.suspects.add(node.node_id)
        else:
            self.suspects.discard(node.node_id)
        self._changed_nodes.add(node.node_id)

    def _to_job(self, job_id: str, event: m.JobEvent, at_ms: int) -> str | None:
        before, kind = self.jobs.get(job_id), type(event)
        if why_not := jobrules.illegal(before, event) or (
            self._other_job(before, job_id, event) if kind in NAMING else None
        ):
            return why_not
        job = jobfold.evolve(before, event, at_ms)
        if kind is m.Completed and job.check:
            job = self._behind_others(job, job.check)
        self.jobs[job_id] = job
        holder, now = before.holder if before else None, job.holder
        if holder != now:
            self._holds(holder, before or job, held=False)  # what it was promised then
            self._holds(now, job, held=True)
        if before is None or before.status != job.status:
            if job.status in jobs.ENDED:
                self.active.discard(job_id)
            else:
                self.active.add(job_id)
            if job.status == "checking":
                self.checking.add(job_id)
            elif self.checking:
                self.checking.discard(job_id)
        if job.job.after:
            self._await(job)
        if self.dependents and before and before.outcome != job.outcome:
            self._decide(self.dependents.get(job_id, ()))
        if self._matching is not None:
            self._changed_jobs.add(job_id)
        if self._roster is not None:
            self._roster.changed(before, job)
        if job.job.serve:
            if before is None:
                self._offer(job.job.serve.deployment, job_id)
            self._count_replica(job.job.serve.deployment, job)
        if before is None or not before.funded:
            self._count_unfunded(job)
        if kind is m.Funded:
            self.payers.add(job.caller)
        if kind is m.Checkpointed:
            self._name_state(before, job)
        elif kind is m.Submitted:
            self.named.update((sha256, job.caller) for sha256 in jobs.inputs(job))
        elif kind is m.Completed or kind is m.DependenciesMet:
            self._name(job)
        elif before and (kind is m.Rejected or before.kept is not job.kept):
            self._name_no_more(before, job)
        if kind in JUDGED:
            self._judge(job, event, at_ms)
        elif kind is m.Settled and job.reference_fee_base_units and job.status == "completed":
            self._reward(job, event, at_ms)
        return None

    def _await(self, job: jobs.Job) -> None:
        """A job waits for others, or does no more."""
        waits = job.awaiting and job.outcome is None
        if waits == (job.job_id in self.awaiting):
            return
        if waits:
            self.awaiting.add(job.job_id)
            for after in job.job.after:
                self.dependents.setdefault(after.job_id, set()).add(job.job_id)
            self._decide((job.job_id,))
            return
        self.awaiting.remove(job.job_id)
        self.decided.discard(job.job_id)
        for after in job.job.after:
            left = self.dependents[after.job_id]
            left.remove(job.job_id)
            if not left:
                del self.dependents[after.job_id]

    def _decide(self, job_ids: Iterable[str]) -> None:
        """Whether these may begin, or never will: asked whenever one ends that they come after."""
        for job_id in job_ids:
            if dependencies.due(self.jobs[job_id], self.jobs):
                self.decided.add(job_id)
            else:
                self.decided.discard(job_id)

    def _behind_others(self, job: jobs.Job, check: jobs.Check) -> jobs.Job:
        """Checks have the order of the log, whatever the clocks of those said who stored the deliveries."""
        others = (self.jobs[job_id].check for job_id in self.checking)
        last_ms = max((other.since_ms for other in others if other), default=-1)
        return msgspec.structs.replace(
            job, check=msgspec.structs.replace(check, since_ms=max(check.since_ms, last_ms + 1))
        )

    def _offer(self, deployment: str, job_id: str) -> None:
        of_owner = self.deployments.setdefault(subjects.owners_end(deployment), {})
        of_owner.setdefault(deployment, {})[job_id] = None

    def _count_replica(self, deployment: str, job: jobs.Job) -> None:
        live = self.replicas.setdefault(deployment, {})
        if job.outcome is None and job.status not in jobs.ENDED:
            live[job.job_id] = None
            return
        live.pop(job.job_id, None)
        if not live:
            del self.replicas[deployment]

    def _name(self, job: jobs.Job) -> None:
        self.named.update((sha256, job.caller) for sha256 in (*jobs.inputs(job), *jobs.results(job)))

    def _name_state(self, before: jobs.Job | None, job: jobs.Job) -> None:
        """A job names its new state, and the one that it no longer remembers no more: as after a start from a snapshot.

        That such a state is its client's is noted beside the bytes, as long as they are there.
        """
        newest = job.attempts[-1].checkpoint
        if before and (before.attempts[-1].earlier or before.kept is not job.kept):
            self._name_no_more(before, job)
        if newest:
            self.named.add((newest.state.sha256, job.caller))

    def _name_no_more(self, before: jobs.Job, job: jobs.Job) -> None:
        gone = {*jobs.results(before)} - {*jobs.inputs(job), *jobs.results(job)}
        self.named.difference_update((sha256, job.caller) for sha256 in gone)

    def _count_unfunded(self, job: jobs.Job) -> None:
        """What a job's payer still owes for it is counted as long as its deposit may become final."""
        wallet, job_id = job.terms.client, job.job_id
        owed = self.unfunded.get(wallet, {})
        before, after = owed.get(job_id, 0), job.terms.amount_base_units
        if job.funded or job.status in jobs.ENDED:
            owed.pop(job_id, None)
            after = 0
        else:
            self.unfunded.setdefault(wallet, owed)[job_id] = after
        if before == after:
            return
        self.unfunded_base_units[wallet] = self.unfunded_base_units.get(wallet, 0) + after - before
        if not owed:
            del self.unfunded[wallet], self.unfunded_base_units[wallet]

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

    def _judge(self, job: jobs.Job, event: Any, at_ms: int) -> None:
        """What the end of an attempt says about its node, and a success about the nodes that failed before.

        A model that is checked is a success once that is over.
        """
        if isinstance(event, m.Completed) and event.segment:
            return
        last = event.node_id if isinstance(event, m.Rejected) else job.attempts[-1].node_id
        if node := self.nodes.get(last):
            by_fee = job.reference_fee_base_units > 0
            self._node(nodes.judged(node, job.job_id, event, at_ms, by_fee), at_ms)
        if isinstance(event, m.Checked) and job.check:
            found_right = jobs.node_of(job, job.check.segment)
            if node := self.nodes.get(found_right):
                self._node(nodes.checked(node, jobs.worth_base_units(job)), at_ms)
        if isinstance(event, m.LeaseLost | m.Rejected):
            return
        failed = {tried.node_id: tried.lost for tried in job.attempts if tried.lost and tried.node_id != last}
        for node_id, lost in failed.items():
            if node := self.nodes.get(node_id):
                self._node(nodes.blamed(node, job.job_id, lost, at_ms), at_ms)

    def _reward(self, job: jobs.Job, settled: Any, at_ms: int) -> None:
        """Who completed a job is paid for it. It says nothing of a node that its client named it, and no other."""
        last = job.attempts[-1]
        node = self.nodes.get(last.node_id)
        if node is None or job.job.needs.node_id:
            return
        pay = sum(payee.pay_base_units for payee in job.payees if payee.wallet == last.wallet)
        fee = settled.platform_base_units * pay // max(1, job.pay_base_units)
        reference = job.reference_fee_base_units
        self._node(nodes.rewarded(node, job.job_id, job.terms.client, fee, reference, at_ms), at_ms)

    def _to_mint(self, mint_id: str, event: m.MintEvent, at_ms: int) -> str | None:
        mint = self.mints.get(mint_id)
        match event:
            case m.MintSigned():
                if mint is not None:
                    return "there is a mint with this id already"
                self.mints[mint_id] = Mint(
                    mint_id=mint_id,
                    to=event.to,
                    amount_base_units=event.amount_base_units,
                    signed=event.signed,
                )
            case m.Minted() | m.MintFailed():
                if mint is None or mint.ended is not None:
                    return "there is no mint with this id that has not ended"
                if isinstance(event, m.Minted) and (event.to, event.amount_base_units) != (
                    mint.to,
                    mint.amount_base_units,
                ):
                    return "it is not what was signed"
                self.mints[mint_id] = msgspec.structs.replace(mint, ended=event)
            case _ as never:
                assert_never(never)
        return None

    def _to_payouts(self, _: str, event: m.PayoutsEvent, at_ms: int) -> str | None:
        if why_not := payouts.illegal(self.payouts, event):
            return why_not
        self.payouts = payouts.evolve(self.payouts, event, at_ms)
        return None

    def _to_client(self, client_id: str, event: m.ClientEvent, at_ms: int) -> str | None:
        before = self.clients.get(client_id)
        if why_not := clients.illegal(before, event):
            return why_not
        self.clients[client_id] = clients.evolve(client_id, before, event, at_ms)
        return None

    def candidate(self, node_id: str, now_ms: int = 0) -> Candidate:
        """A node with the room it has; at now_ms, when its ban may be over.

        One whose history is not known gets nothing: that it fell silent could not be recorded.
        """
        node = nodes.at(self.nodes[node_id], now_ms)
        if self.damaged and subjects.node_event(node_id) in self.damaged:
            node = msgspec.structs.replace(node, online=False)
        return Candidate(
            node=node,
            active_runs=len(self.held.get(node_id, ())),
            memory_free_bytes=node.hardware.memory_bytes - self.promised_bytes.get(node_id, 0),
            limit_base_units=limit_of(node, self._unproven),
            checker=node_id in self._unproven.checkers,
            gpu_runs=sum(job.job.needs.device == "cuda" for job in self.runs_of(node_id)) if node.hardware.gpus else 0,
        )

    def choice_for(self, job: jobs.Job, now_ms: int) -> Assignment | None:
        """The node for a job that is about to be submitted; None when it is not its turn, or nobody has room."""
        matching = self.matching
        matching.waits(job)
        try:
            choice = matching.next(now_ms)
        finally:
            matching.waits_no_more(job.job_id)
        return choice if choice and choice.job_id == job.job_id else None

    def runs_of(self, node_id: str) -> list[jobs.Job]:
        """The jobs whose lease a node holds."""
        held = self.held.get(node_id)
        return [self.jobs[job_id] for job_id in sorted(held)] if held else []

    def needed_by(self, node_id: str) -> set[str]:
        """SHA-256 of the artifacts that the jobs need whose lease a node holds; of who is no node, none."""
        return {sha256 for job_id in self.held.get(node_id, ()) for sha256 in jobs.inputs(self.jobs[job_id])}

    def leased(self) -> list[jobs.Job]:
        """Every job whose lease a node holds."""
        return [self.jobs[job_id] for held in self.held.values() if held for job_id in sorted(held)]

    def serves(self, node_id: str, job_id: str, attempt: int) -> str | None:
        """The deployment that a node may answer for by its lease of this attempt; None when it holds none such."""
        job = self.jobs.get(job_id)
        if job is None or job.job.serve is None or job.current is None:
            return None
        holder = (job.current.node_id, job.current.number)
        return job.job.serve.deployment if holder == (node_id, attempt) else None

    def _other_job(self, job: jobs.Job | None, job_id: str, event: m.JobEvent) -> str | None:
        """Why a legal event cannot be this job's: names and sums that do not fit it."""
        match event:
            case m.Submitted() if event.terms.job_id != job_id:
                return f"its terms are those of {event.terms.job_id}"
            case m.Submitted() if event.job.serve and not subjects.is_owned(event.job.serve.deployment, event.caller):
                return f"the deployment {event.job.serve.deployment} is not {event.caller}'s"
            case m.Submitted() if not 0 <= event.price_base_units <= event.terms.amount_base_units:
                return f"its price is {event.price_base_units}, and its amount {event.terms.amount_base_units}"
            case m.Submitted() if event.job.after:
                return self._cannot_come_after(event)
            case m.DependenciesMet() | m.DependencyFailed() if job is not None:
                return dependencies.why_untrue(job, event, self.jobs)
            case m.Settled() if job is not None:
                shares = (event.node_base_units, event.platform_base_units, event.client_base_units)
                if min(shares) < 0 or sum(shares) != job.terms.amount_base_units:
                    return f"its parts make {sum(shares)}, not {job.terms.amount_base_units}"
                if event.payees and sum(payee.pay_base_units for payee in event.payees) != sum(shares[:2]):
                    return "what its payees are paid is not what leaves the escrow for them and the platform"
            case m.Refunded() if job is not None and event.client_base_units != job.terms.amount_base_units:
                return f"it gives back {event.client_base_units}, not {job.terms.amount_base_units}"
        return None

    def _cannot_come_after(self, event: m.Submitted) -> str | None:
        for after in event.job.after:
            other = self.jobs.get(after.job_id)
            if other is None or other.caller != event.caller:
                return f"it comes after {after.job_id}, which is no job of {event.caller}"
        return None

"""Do the log, the ledger and the chain tell the same? What differs, in words; nothing is changed here.

A machine of the chain may lag, and the log goes on while the ledger is asked. So a difference counts only when it is
found again, word for word, in every one of three looks some seconds apart.

`compare` is what central does by itself, on its start and every few minutes. `verify` (cyx ledger verify) also reads
the whole log again, and compares every payment there ever was.
"""

import asyncio
import hashlib
import itertools
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

from msgspec.structs import replace

from cyxcentral import earnings
from cyxcentral.ledger import Ledger
from cyxcentral.readahead import Read
from cyxcentral.records import read
from cyxcentral.world import World
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.display import cyx
from cyxnet.escrow import paid_by
from cyxnet.solana import STATUSES_AT_ONCE, Settlement

LOOKS, LOOK_AGAIN_S = 3, 20.0
DAY_MS = 86_400_000
RECENT = 1_000  # ended jobs whose payments are compared again and again
JOBS_AT_ONCE = 1_000  # folded; then everybody else has a turn
SHOWN = 100  # differences of one check, to an operator who asks
Blocks = Callable[[int, int], AsyncIterator[list[Read]]]


class Audit:
    """world, ledger and chain of one central, compared. blocks: the messages of the log between two sequences."""

    def __init__(self, world: World, ledger: Ledger, settlement: Settlement, blocks: Blocks):
        self._world = world
        self._ledger = ledger
        self._settlement = settlement
        self._blocks = blocks
        self._recent: deque[str] = deque(maxlen=RECENT)

    def begin(self) -> None:
        """The log has been read: the newest jobs that were paid are to be compared first."""
        paid = (job_id for job_id in reversed(self._world.jobs) if self._world.jobs[job_id].settle_signature)
        self._recent.extend(list(itertools.islice(paid, RECENT))[::-1])

    def ended(self, job_id: str) -> None:
        """A job was paid, or refunded."""
        self._recent.append(job_id)

    async def compare(self, now_ms: int) -> list[m.AuditCheck]:
        """The open escrows and the newest payments; all that differs.

        Of the last day only: what was final then stays so, and an endpoint need not keep its history for ever.
        """
        return await _lasting(lambda: self._compare(now_ms))

    async def verify(self, faucet: bool) -> list[m.AuditCheck]:
        """Everything; of what differs SHOWN of each check.

        faucet: every coin of this network came from its faucet, so no wallet can be below zero.
        """
        paid = [job_id for job_id, job in self._world.jobs.items() if job.settle_signature]
        found = [await self._log()]
        found += await _lasting(lambda: self._sums(faucet))
        found += await _lasting(lambda: self._chain(paid))
        return [_shown(check) for check in found]

    async def _compare(self, now_ms: int) -> list[m.AuditCheck]:
        recent = [each for each in self._recent if (self._world.jobs[each].ended_at_ms or 0) >= now_ms - DAY_MS]
        sums = await self._ledger.sums()
        checks = [
            _check(
                "every event sums to zero", sums.events, [f"event {seq} sums to {by}" for seq, by in sums.unbalanced]
            ),
            self._open_escrows(sums.escrows),
        ]
        return checks + await self._chain(recent, now_ms // 1000)

    def _open_escrows(self, of_ledger: dict[str, int]) -> m.AuditCheck:
        """The ledger's open escrows are those of the jobs that are paid for and have not ended."""
        jobs_ = (self._world.jobs[job_id] for job_id in sorted(self._world.active))
        of_log = {f"escrow:{job.job_id}": job.terms.amount_base_units for job in jobs_ if job.funded}
        return _check(
            "the ledger's open escrows are the log's",
            len(of_log.keys() | of_ledger.keys()),
            _differing(of_ledger, of_log, "the ledger", "the log"),
        )

    async def _sums(self, faucet: bool) -> list[m.AuditCheck]:
        sums = await self._ledger.sums(whole=True)
        expected: dict[str, int] = {}
        for number, job in enumerate(list(self._world.jobs.values())):
            if number % JOBS_AT_ONCE == 0:
                await asyncio.sleep(0)
            for entry in earnings.movements(job):
                expected[entry.account] = expected.get(entry.account, 0) + entry.amount_base_units
        for mint in self._world.mints.values():
            if isinstance(mint.ended, m.Minted):
                for account, amount in ((f"wallet:{mint.to}", 1), ("supply", -1)):
                    expected[account] = expected.get(account, 0) + amount * mint.amount_base_units
        expected = {account: amount for account, amount in expected.items() if amount}
        below = {**sums.overdrawn, **{a: n for a, n in sums.accounts.items() if n < 0 and a.startswith("wallet:")}}
        if not faucet:
            below = sums.overdrawn
        return [
            _check(
                "every event sums to zero", sums.events, [f"event {seq} sums to {by}" for seq, by in sums.unbalanced]
            ),
            _check(
                "no account is below zero",
                len(sums.accounts),
                [f"{account} is at {cyx(amount)}" for account, amount in sorted(below.items())],
            ),
            _check(
                "every account is what the log makes it",
                len(expected.keys() | sums.accounts.keys()),
                _differing(sums.accounts, expected, "the ledger", "the log"),
            ),
            self._open_escrows(sums.escrows),
        ]

    async def _chain(self, ended: Iterable[str], now_s: int = 0) -> list[m.AuditCheck]:
        """Every open escrow, and the payments of these jobs, as the chain has them for ever."""
        return [await self._escrows(now_s), await self._payments(list(ended))]

    async def _escrows(self, now_s: int) -> m.AuditCheck:
        """An escrow that is being settled may be gone; one that was refunded ends its job when that is settled.

        now_s: of jobs that settle, those whose deadline is over by then are left out: anybody may refund them, and an
        endpoint without history cannot say who did. 0: none.
        """
        found = (self._world.jobs[job_id] for job_id in sorted(self._world.active))
        terms = [
            job.terms
            for job in found
            if job.funded
            and not job.unsettled
            and job.terms.program
            and not (job.status == "settling" and job.terms.deadline_s < now_s)
        ]
        wrong = []
        for each, why in await self._settlement.wrong_escrows(terms):
            deposit = self._world.jobs[each.job_id].deposit_signature or ""
            if await self._settlement.refund_of(each, deposit) is None:
                wrong.append(why)
        return _check("every open escrow is on the chain", len(terms), wrong)

    async def _payments(self, ended: list[str]) -> m.AuditCheck:
        wanted = [(job_id, self._world.jobs[job_id].settle_signature) for job_id in dict.fromkeys(ended)]
        wrong = []
        for first in range(0, len(wanted), STATUSES_AT_ONCE):
            some = [(job_id, signature) for job_id, signature in wanted[first : first + STATUSES_AT_ONCE] if signature]
            landed = await self._settlement.landings([signature for _, signature in some])
            for (job_id, signature), status in zip(some, landed, strict=True):
                if status is None or status.err or not status.finalized:
                    how = "is not there" if status is None else status.err or "is not final"
                    wrong.append(f"job {job_id} is called paid by {signature}, which on the chain {how}")
        return _check("every payment is final on the chain", len(wanted), wrong)

    async def _log(self) -> m.AuditCheck:
        """The log, read again from its first message: the chain of hashes, and that what was signed was paid."""
        until, chain, wrong, count = self._world.seq, _Chain(), [], 0
        seen = {subject: self._world.last_sha256[subject] for subject in self._world.last_seq}
        changed = {subject for subject, seq in self._world.last_seq.items() if seq > until}
        async for block in self._blocks(1, until):
            for each in block:
                count += 1
                wrong += chain.next(count, each)
        if count != until:
            wrong.append(f"the log has {count} of {until} messages")
        for subject, sha256 in seen.items():
            if subject not in changed and chain.last.get(subject) != sha256:
                wrong.append(f"the newest message of {subject} is not the one that this central took in")
        return _check("the log is one chain of hashes", count, wrong)


class _Chain:
    """What a reader of the log has to remember to check the next message."""

    def __init__(self) -> None:
        self.last: dict[str, bytes] = {}  # by subject: the hash of its newest message
        self._chained: set[str] = set()
        self._terms: dict[str, m.EscrowTerms] = {}  # of jobs that have not ended
        self._signed: dict[str, dict[str, bytes]] = {}  # job -> signature -> settlement

    def next(self, seq: int, said: Read) -> list[str]:
        """What is wrong with the next message."""
        wrong = []
        subject, sha256 = said.subject, hashlib.sha256(said.payload).digest()
        record = read(said.payload)
        if isinstance(record, m.Record):
            before = self.last.get(subject, b"").hex()
            if record.prev:
                self._chained.add(subject)
            if subject in self._chained and record.prev != before:
                wrong.append(f"event {seq} does not name the message before it on {subject}")
            wrong += self._money(seq, subjects.last_token(subject), record.event)
        self.last[subject] = sha256
        return wrong

    def _money(self, seq: int, job_id: str, event: m.AnyEvent) -> list[str]:
        match event:
            case m.Submitted():
                self._terms[job_id] = event.terms
            case m.TransactionSigned(purpose="settle"):
                self._signed.setdefault(job_id, {})[event.signed.signature] = event.signed.transaction
            case m.Settled():
                terms, signed = self._terms.pop(job_id, None), self._signed.pop(job_id, {})
                if event.signature not in signed:
                    return [f"event {seq}: job {job_id} is paid by {event.signature}, which the log never saw signed"]
                said = [(payee.wallet, payee.pay_base_units) for payee in event.payees]
                if terms is None or not terms.program or not event.payees:
                    return []  # of an older version
                paid = paid_by(signed[event.signature], terms)
                if paid != said:
                    return [f"event {seq}: job {job_id} paid {said}, its transaction {paid}"]
            case m.Refunded() | m.FundFailed():
                self._terms.pop(job_id, None)
                self._signed.pop(job_id, None)
        return []


async def _lasting(look: Callable[[], Awaitable[list[m.AuditCheck]]]) -> list[m.AuditCheck]:
    """What differs in every look."""
    checks = await look()
    for _ in range(LOOKS - 1):
        if not any(check.differences for check in checks):
            break
        await asyncio.sleep(LOOK_AGAIN_S)
        again = {check.name: check for check in await look()}
        checks = [_in_both(check, again[check.name]) for check in checks]
    return checks


def _in_both(first: m.AuditCheck, again: m.AuditCheck) -> m.AuditCheck:
    found = set(again.differences)
    return _check(first.name, again.compared, [each for each in first.differences if each in found])


def _check(name: str, compared: int, differences: list[str]) -> m.AuditCheck:
    return m.AuditCheck(name=name, compared=compared, differences=differences)


def _shown(check: m.AuditCheck) -> m.AuditCheck:
    return replace(check, differences=check.differences[:SHOWN], more=len(check.differences[SHOWN:]))


def _differing(left: dict[str, int], right: dict[str, int], of_left: str, of_right: str) -> list[str]:
    return [
        f"{account}: {of_left} says {cyx(left.get(account, 0))}, {of_right} {cyx(right.get(account, 0))}"
        for account in sorted(left.keys() | right.keys())
        if left.get(account, 0) != right.get(account, 0)
    ]

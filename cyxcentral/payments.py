"""The payment saga: signed bytes go to the log before they go to the chain, and the same bytes are sent again until
they are final or provably dead. Only then is anything signed anew. A crash at any line needs no recovery: whoever
starts next reads the log and goes on from there.
"""

import asyncio
import contextlib
import functools
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from cyxcentral import jobrules, jobs, money
from cyxcentral.eventlog import EventLog
from cyxcentral.landings import Landings
from cyxcore.errors import CyxError
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.bus import ApiError
from cyxnet.escrow import LOCAL_PROGRAM
from cyxnet.shapes import Signer
from cyxnet.solana import Settlement, SettlementError
from cyxnet.wallet import Wallet

log = logging.getLogger(__name__)

RESEND_AFTER_S = (2.0, 4.0, 8.0, 16.0)  # and ask then whether the transaction is dead
SENDS_AT_ONCE = 8
ANSWER_FIRST_S = 0.004  # who asked hears that it is stored, and a free node is given the job, before the chain is asked
NOT_THERE = ("escrow_missing", "escrow_mismatch")  # refunded, perhaps opened again on other terms; or the chain lags
MAKE_WAY_S, MAKE_WAY_AT_MOST_S = 0.02, 5.0  # while many callers ask; a deposit's blockhash lives for a minute
BEGUN_AT_ONCE = 16  # then everybody else has a turn
OTHERS_FIRST_S = 5.0  # so long a central has for the payments of what it wrote, until every other one makes them too
LOOK_EVERY_S, LOOKED_AT_ONCE = 0.05, 1_000  # whether they were made
DEADLINES_EVERY_S = 30.0  # of the day that there is for it
TROUBLE_DELAYS_S = (0.2, 1.0, 2.0, 4.0, 8.0, 16.0)


class Outcome:
    """What became of a signed transaction: final, failed on the chain, or dead (it can never land)."""

    FINAL, FAILED, DEAD = "final", "failed", "dead"

    def __init__(self, kind: str, reason: str = ""):
        self.kind = kind
        self.reason = reason


class Payments:
    """Brings every job that is funding or settling, and every faucet payment, to its end."""

    def __init__(
        self,
        events: EventLog,
        settlement: Settlement,
        wallet: Wallet | Signer,
        platform: str,
        mint: str,
        program: str = LOCAL_PROGRAM,
        busy: Callable[[], bool] = lambda: False,
    ):
        """busy: whether so many callers wait for answers that payments should let them pass."""
        self._events = events
        self._settlement = settlement
        self._wallet = wallet
        self.platform = platform
        self.mint = mint
        self.program = program
        self._busy = busy
        self._landings = Landings(settlement)
        self._sending = asyncio.Semaphore(SENDS_AT_ONCE)
        self._making_way = asyncio.Lock()  # of those that let callers pass, the oldest looks for all
        self._due: dict[str, tuple[Callable[[], Coroutine[Any, Any, None]], float]] = {}  # not begun, and since when
        self._begin_due: asyncio.TimerHandle | None = None
        # what other centrals work on: how it is looked at again, and until when they may
        self._theirs: dict[str, tuple[Callable[[], None], float]] = {}
        self._look_due: asyncio.TimerHandle | None = None
        self._working: dict[str, asyncio.Task[None]] = {}
        self._left_alone: set[str] = set()  # damaged jobs whose deadline is near
        self.held_up: dict[str, str] = {}  # what is tried again and again, and why it did not go the last time

    def reconcile(self, job_id: str, by_another: bool = False) -> None:
        """Make sure somebody works on this job's money, if it waits for the chain.

        by_another: another central wrote what makes it wait, and works on it unless it died: it has some time for that.
        """
        job = self._events.world.jobs[job_id]
        if not job.funded and job.status not in jobs.ENDED:
            key, work = f"fund {job_id}", self._fund
        elif job.status == "settling" and not self._frozen():
            key, work = f"settle {job_id}", self._settle
        else:
            return
        if key in self._theirs or key in self._working or key in self._due:
            return
        if by_another:
            self._leave(key, functools.partial(self.reconcile, job_id))
        else:
            late_s = asyncio.get_running_loop().time() + MAKE_WAY_AT_MOST_S
            self._work(key, functools.partial(work, job_id, late_s))

    def _leave(self, key: str, look_again: Callable[[], None]) -> None:
        """To the central that wrote it, for some time."""
        self._theirs[key] = look_again, asyncio.get_running_loop().time() + OTHERS_FIRST_S
        self._look_in(OTHERS_FIRST_S)

    def _look_in(self, delay_s: float) -> None:
        if self._look_due is None:
            self._look_due = asyncio.get_running_loop().call_later(delay_s, self._look_at_theirs)

    def _look_at_theirs(self) -> None:
        """What other centrals have not done in their time is ours."""
        self._look_due, now_s = None, asyncio.get_running_loop().time()
        for key, (look_again, due_s) in list(itertools.islice(self._theirs.items(), LOOKED_AT_ONCE)):
            if due_s > now_s:
                break
            del self._theirs[key]
            look_again()
        if self._theirs:
            self._look_in(LOOK_EVERY_S)

    def _frozen(self) -> bool:
        """Whether nothing may be paid. Deposits are brought to their end all the same."""
        return self._events.world.payouts.frozen is not None

    def resume(self) -> None:
        """After a start, or a release of payouts: everything the log left open."""
        for job_id in sorted(self._events.world.active):
            self.reconcile(job_id)
        for mint_id in list(self._events.world.mints):
            self.reconcile_mint(mint_id)

    def reconcile_mint(self, mint_id: str, by_another: bool = False) -> None:
        """Make sure somebody works on this faucet payment, if it has not ended. by_another: as of reconcile()."""
        key = f"mint {mint_id}"
        if self._events.world.mints[mint_id].ended is not None or key in self._working or key in self._theirs:
            return
        if by_another:
            self._leave(key, functools.partial(self.reconcile_mint, mint_id))
        else:
            self._begin(key, functools.partial(self._finish_mint, mint_id))  # somebody waits for it

    async def keep_deadlines(self) -> None:
        """For ever: end every job before anybody may have its escrow refunded."""
        while True:
            world, now_ms = self._events.world, self._events.machine.wall_ms()
            for job_id in sorted(each for each in world.active if jobrules.deadline_due(world.jobs[each], now_ms)):
                await self._end_before_deadline(job_id)
            await asyncio.sleep(DEADLINES_EVERY_S)

    async def _end_before_deadline(self, job_id: str) -> None:
        """End one job; what goes wrong with it must not hold up the others."""
        subject = subjects.job_event(job_id)
        if subject in self._events.world.damaged:
            if job_id not in self._left_alone:
                self._left_alone.add(job_id)
                why = self._events.world.why_damaged[subject]
                log.error("the deadline of %s is near, but its history is not known: %s", job_id, why)
            return
        try:
            await self._events.record(subject, functools.partial(self._deadline_due, job_id))
        except CyxError as error:
            log.warning("deadline of %s: %s; will try again in %g s", job_id, error, DEADLINES_EVERY_S)
        except Exception:  # nobody would start this loop again
            log.exception("deadline of %s failed; will try again in %g s", job_id, DEADLINES_EVERY_S)

    def _deadline_due(self, job_id: str) -> m.DeadlineNear | None:
        return jobrules.deadline_due(self._events.world.jobs[job_id], self._events.machine.wall_ms())

    async def close(self) -> None:
        for timer in (self._begin_due, self._look_due):
            if timer is not None:
                timer.cancel()
        for task in self._working.values():
            task.cancel()
        await asyncio.gather(*self._working.values(), return_exceptions=True)
        await self._landings.close()

    def _work(self, key: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begin soon: most of what callers wait for comes before it, and while many ask, they all do, for a while."""
        if key not in self._working and key not in self._due:
            self._due[key] = work, asyncio.get_running_loop().time()
            self._begin_in(ANSWER_FIRST_S)

    def _begin_in(self, delay_s: float) -> None:
        if self._begin_due is None:
            self._begin_due = asyncio.get_running_loop().call_later(delay_s, self._begin_some)

    def _begin_some(self) -> None:
        """Of what is due, the oldest: the chain does not wait, the callers do."""
        self._begin_due = None
        overdue_s = asyncio.get_running_loop().time() - MAKE_WAY_AT_MOST_S
        busy = self._busy()
        for key, (work, since_s) in list(itertools.islice(self._due.items(), BEGUN_AT_ONCE)):
            if busy and since_s > overdue_s:
                break
            del self._due[key]
            self._begin(key, work)
        if self._due:
            self._begin_in(MAKE_WAY_S)  # also when nobody asks just now: the answers to hundreds may have left together

    def _begin(self, key: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if key in self._working:
            return

        async def keep_at_it() -> None:
            for delay_s in itertools.chain(TROUBLE_DELAYS_S, itertools.repeat(TROUBLE_DELAYS_S[-1])):
                try:
                    return await work()
                except CyxError as error:
                    self.held_up[key] = str(error)
                    log.warning("%s: %s; will try again in %g s", key, error, delay_s)
                except Exception:  # whatever it is, money that waits for the chain is not left alone
                    log.exception("%s failed; will try again in %g s", key, delay_s)
                await asyncio.sleep(delay_s)

        task = asyncio.get_running_loop().create_task(keep_at_it())
        self._working[key] = task
        task.add_done_callback(lambda _: (self._working.pop(key, None), self.held_up.pop(key, None)))

    # -- jobs ----------------------------------------------------------------------------------------

    async def _fund(self, job_id: str, late_s: float) -> None:
        job = self._events.world.jobs[job_id]
        if job.funded or job.status in jobs.ENDED or job.unsettled is None:
            return
        outcome = await self._land(job.unsettled, late_s)
        if outcome.kind == Outcome.FINAL:
            event: m.JobEvent | None = m.Funded(signature=job.unsettled.signature)
            try:
                await self._settlement.verify_escrow(job.terms)
            except SettlementError as error:
                event = await self._refunded(job, job.unsettled.signature, error)
            if event is not None:
                await self._say(job_id, event)
        else:
            await self._say(job_id, m.FundFailed(reason=f"the deposit did not land: {outcome.reason}"))

    async def _settle(self, job_id: str, late_s: float) -> None:
        for delay_s in itertools.chain(TROUBLE_DELAYS_S, itertools.repeat(TROUBLE_DELAYS_S[-1])):
            job = self._events.world.jobs[job_id]
            if job.status != "settling" or self._frozen():  # who releases payouts begins again with all of them
                return
            signed = job.unsettled
            if signed is None:
                signed = await self._sign_settlement(job)
            if signed is None:
                return
            outcome = await self._land(signed, late_s, self._frozen)
            if outcome.kind == Outcome.FINAL:
                pays = [payee.pay_base_units for payee in job.payees]
                shares = money.divide(job.terms.amount_base_units, pays, job.terms.fee_basis_points)
                await self._say(
                    job_id,
                    m.Settled(
                        signature=signed.signature,
                        node_base_units=shares.node_base_units,
                        platform_base_units=shares.platform_base_units,
                        client_base_units=shares.client_base_units,
                        payees=list(job.payees),
                    ),
                )
                return
            log.warning("settlement of %s: %s (%s); signing again", job_id, outcome.kind, outcome.reason)
            if outcome.kind == Outcome.FAILED:
                await asyncio.sleep(delay_s)  # each failure costs a fee
            if self._frozen():
                return
            await self._sign_settlement(job)

    async def _sign_settlement(self, job: jobs.Job) -> m.SignedTransaction | None:
        """Sign, and put the bytes into the log before anybody can send them. None when the job has ended.

        What was signed before is dead or has failed: an escrow that is gone was not emptied by it.
        """
        event: m.JobEvent | None
        try:
            signed = await self._settlement.settle_transaction(self._wallet, job.terms, job.payees)
            event = m.TransactionSigned(purpose="settle", signed=signed, pay_base_units=job.pay_base_units)
        except SettlementError as error:
            event = await self._refunded(job, job.deposit_signature or "", error)
        replaced = job.unsettled

        def decide() -> m.JobEvent | None:
            now = self._events.world.jobs[job.job_id]
            return event if now.status == "settling" and now.unsettled == replaced else None

        await self._events.record(subjects.job_event(job.job_id), decide)
        return self._events.world.jobs[job.job_id].unsettled  # another central's, if it was faster

    async def _refunded(self, job: jobs.Job, deposit_signature: str, error: SettlementError) -> m.Refunded | None:
        """That somebody refunded the escrow, where the chain's history proves it; else `error` is raised again.

        None: another central was faster. Between our look at the log and that at the chain it has funded or settled the
        job, so that the escrow is as it should be.
        """
        if error.code not in NOT_THERE:
            raise error
        await self._events.catch_up()
        now = self._events.world.jobs[job.job_id]
        if now.status in jobs.ENDED or (now.funded, now.unsettled) != (job.funded, job.unsettled):
            return None
        found = await self._settlement.refund_of(job.terms, deposit_signature)
        if found is None:
            raise error
        return m.Refunded(signature=found, client_base_units=job.terms.amount_base_units)

    def why_unpaid(self, job_id: str) -> str:
        """Why the settlement of a job is tried again: a limit, or a signer or chain that is away; else empty."""
        return self.held_up.get(f"settle {job_id}", "")

    async def _say(self, job_id: str, event: m.JobEvent) -> None:
        def decide() -> m.JobEvent | None:
            return None if jobrules.illegal(self._events.world.jobs[job_id], event) else event

        await self._events.record(subjects.job_event(job_id), decide)

    # -- faucet --------------------------------------------------------------------------------------

    async def mint_to(self, mint_id: str, address: str, amount_base_units: int, lamports: int = 0) -> str:
        """Pay test money, once for each mint_id whoever is asked, and return the signature once it is final."""
        mints = self._events.world.mints
        if mint_id not in mints:
            if self._frozen():
                raise ApiError("payouts_frozen", f"nothing is paid at present: {self._events.world.payouts.why}", 503)
            signed = await self._settlement.faucet_transaction(
                self._wallet, self.mint, address, amount_base_units, mint_id, lamports
            )
            event = m.MintSigned(to=address, amount_base_units=amount_base_units, signed=signed)
            await self._events.record(
                subjects.mint_event(mint_id), lambda: None if mint_id in mints else event
            )  # else another central's bytes are those that are sent
        mint = mints[mint_id]
        if (mint.to, mint.amount_base_units) != (address, amount_base_units):
            raise ApiError(
                "request_id_taken",
                f"this request_id stands for {mint.amount_base_units} base units for {mint.to}; choose a new one",
                409,
            )
        while mints[mint_id].ended is None:
            self.reconcile_mint(mint_id)
            if work := self._working.get(f"mint {mint_id}"):
                await asyncio.shield(work)  # it goes on when the caller gives up: the payment may still land
            else:
                await asyncio.sleep(MAKE_WAY_S)  # another central is at it
        ended = mints[mint_id].ended
        if not isinstance(ended, m.Minted):
            raise ApiError("faucet_failed", f"the faucet payment did not land: {ended.reason if ended else '?'}", 502)
        return ended.signature

    async def _finish_mint(self, mint_id: str) -> None:
        mint = self._events.world.mints[mint_id]
        if mint.ended is not None:
            return
        outcome = await self._land(mint.signed, held=self._frozen)
        event: m.MintEvent = m.MintFailed(reason=outcome.reason)
        if outcome.kind == Outcome.FINAL:
            event = m.Minted(to=mint.to, amount_base_units=mint.amount_base_units, signature=mint.signed.signature)
        await self._events.record(
            subjects.mint_event(mint_id),
            lambda: None if self._events.world.mints[mint_id].ended else event,
        )

    # -- the chain -----------------------------------------------------------------------------------

    async def _land(
        self, signed: m.SignedTransaction, late_s: float = 0.0, held: Callable[[], bool] = lambda: False
    ) -> Outcome:
        """Send the same bytes until the chain has finally decided. A refusal to take them proves nothing.

        late_s: on the clock of the loop, from when on callers are not let pass any more; what is sent again is late.
        held: whether they must not be sent at present; they may have been sent before.
        """
        refusal = ""
        for patience_s in itertools.chain(RESEND_AFTER_S, itertools.repeat(RESEND_AFTER_S[-1])):
            try:
                async with self._place_to_send(late_s):
                    if not held():
                        await self._settlement.send(signed.transaction)  # to send what landed already changes nothing
            except SettlementError as error:
                refusal = str(error)
                log.info("%s… was not taken: %s", signed.signature[:12], error)
            late_s = 0.0
            try:
                async with asyncio.timeout(patience_s):
                    status = await self._landings.final(signed.signature)
            except TimeoutError:
                status = await self._settlement.status(signed.signature, signed.last_valid_block_height)
            if status.state == "landed" and status.finalized:
                return Outcome(Outcome.FAILED, status.err) if status.err else Outcome(Outcome.FINAL)
            if status.state == "dead":
                return Outcome(Outcome.DEAD, refusal or "no block took it before it expired")
        raise AssertionError("unreachable")

    @contextlib.asynccontextmanager
    async def _place_to_send(self, late_s: float) -> AsyncIterator[None]:
        """One of SENDS_AT_ONCE. Before each message to the chain too callers may pass: many payments may have begun in
        a moment when nobody asked. Who lets them pass holds no place, and what is late goes ahead of it.
        """
        clock = asyncio.get_running_loop().time
        if clock() < late_s:
            async with self._making_way:
                while self._busy() and clock() < late_s:
                    await asyncio.sleep(MAKE_WAY_S)
                await self._sending.acquire()
        else:
            await self._sending.acquire()
        try:
            yield
        finally:
            self._sending.release()

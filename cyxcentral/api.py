"""What callers may ask of central: one handler per verb of cyxnet.subjects."""

import asyncio
import contextlib
import functools
import hashlib
import heapq
import itertools
import math
import weakref
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from cyxcentral import cache as keys
from cyxcentral import clients, intake, jobrules, jobs, listing, money, prices, schedule, views
from cyxcentral.blobs import CHUNK_BYTES
from cyxcentral.fetches import Fetches
from cyxcentral.keys import RemoteWallet
from cyxcentral.operators import Operators
from cyxcentral.roster import EVERYBODY, Roster
from cyxcentral.uploads import Uploads
from cyxcore.errors import CyxError
from cyxcore.spec import BatchMetrics, EpochMetrics
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.bus import ApiError
from cyxnet.codec import JSON, MAX_DEPTH_AROUND, BadMessage, decode
from cyxnet.escrow import DEADLINE_S, Funds, escrow_terms, with_signed_deadline
from cyxnet.wallet import Wallet

if TYPE_CHECKING:
    from cyxcentral.central import Central

VERSION = "0.1.0"
WALLETS_REMEMBERED = 10_000
FUNDS_TRUSTED_MS = 5_000.0
ESCROWS_LOOKED_AT = 100  # of one payer, whose deposits may have landed: as many as the chain tells at once
PRICES_SHOWN = 20
JOBS_AT_ONCE = 1_000  # looked at for a list; then others have their turn
JOBS_PER_REQUEST = 20_000  # so many of them cost who asks as much as one request
IDS_NAMED = 5  # of jobs that begin with what was asked for
REPLICAS_SHOWN = 200  # of one deployment
VERIFY_AGAIN_MS = 5_000  # whoever asks meanwhile
STEERED: dict[type, str] = {  # what a job cannot be when its owner's wish comes too late
    m.CancelRequested: "cancelled",
    m.PauseRequested: "paused",
    m.ResumeRequested: "resumed",
    m.PriorityChanged: "given another priority",
}


class Api:
    def __init__(self, central: "Central"):
        self._central = central
        self._world = central.world
        self._machine = central.events.machine
        self._network = central.settings.network
        self._verifying = asyncio.Lock()  # it reads the whole log: one at a time
        self._asking: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._held: OrderedDict[str, tuple[int, float]] = OrderedDict()  # wallet -> base units not promised, seen at
        self._charged: dict[str, m.EscrowTerms] = {}  # job id -> terms of a submission that the log may not have yet

    @functools.cached_property
    def _operators(self) -> Operators:
        return Operators(self._central.events, self._world, self._central.dispatch, self._network.operators)

    @functools.cached_property
    def _fetches(self) -> Fetches:
        return Fetches(self._central.events, self._central.blobs, self._network.operators)

    def handlers(self) -> dict[str, Callable[[str, Any], Awaitable[Any]]]:
        return {verb: self._of_the_welcome(handler) for verb, handler in self._handlers().items()}

    def _of_the_welcome(self, handler: Callable[[str, Any], Awaitable[Any]]) -> Callable[[str, Any], Awaitable[Any]]:
        """Raises ApiError for a client that is banned: what it asked last may come after the ban, before its end."""

        async def checked(caller: str, ask: Any) -> Any:
            if caller in self._world.clients and caller not in self._network.operators:
                if clients.banned_until_ms(self._world.clients, caller, self._machine.wall_ms()):
                    raise ApiError("banned", f"{caller} is banned: {self._world.clients[caller].reason}", 403)
            return await handler(caller, ask)

        return checked

    def _handlers(self) -> dict[str, Callable[[str, Any], Awaitable[Any]]]:
        blobs = self._central.blobs
        return {
            "network.info": self._info,
            "job.quote": self._quote,
            "job.submit": self._submit,
            "job.status": self._status,
            "job.list": self._list,
            "job.updates": self._updates,
            "job.cancel": self._cancel,
            "job.pause": self._pause,
            "job.resume": self._resume,
            "job.priority": self._priority,
            "deployment.list": self._deployments,
            "job.explain": self._explain,
            "node.list": self._nodes,
            "node.why": self._why,
            "node.ban": self._operators.ban,
            "node.pardon": self._operators.pardon,
            "client.ban": self._operators.ban_client,
            "client.pardon": self._operators.pardon_client,
            "client.list": self._operators.list_clients,
            "wallet.balance": self._balance,
            "wallet.faucet": self._faucet,
            "ledger.query": self._ledger,
            "ledger.verify": self._verify,
            "payouts.freeze": self._operators.freeze,
            "payouts.release": self._operators.release,
            "artifact.stat": lambda caller, manifest: blobs.stat(manifest, caller),
            "artifact.put": self._put,
            "artifact.commit": self._commit,
            "artifact.manifest": self._fetches.manifest,
            "artifact.chunk": self._fetches.chunk,
            **self._central.access.handlers(),
        }

    @property
    def _payments(self):  # type: ignore[no-untyped-def]
        assert self._central.payments is not None
        return self._central.payments

    async def _info(self, caller: str, _: m.NetworkInfoRequest) -> m.NetworkInfo:
        return m.NetworkInfo(
            network_id=self._network.network_id,
            version=VERSION,
            chain_url=self._network.chain_url,
            mint=self._payments.mint,
            decimals=9,
            authority=self._central.keys.wallet.address,
            platform=self._payments.platform,
            fee_basis_points=self._network.fee_basis_points,
            faucet=self._network.gives_test_money,
            custodial_wallets=self._network.custodial_wallets,
            chunk_bytes=CHUNK_BYTES,
            nodes_online=sum(node.online for node in self._world.nodes.values()),
            quarantined_events=self._world.quarantined,
            damaged_subjects=len(self._world.damaged),
            program=self._payments.program,
            operator=caller in self._network.operators,
            quote_key=self._quotes.public_key.hex(),
            payouts_frozen=self._world.payouts.why,
        )

    # -- jobs ----------------------------------------------------------------------------------------

    def _terms(self, job: m.JobRequest, job_id: str, client: str, deposit: bytes) -> m.EscrowTerms:
        """What this network asks for the job, with the deadline that the client signed, if it did and it will do."""
        now_s = self._machine.wall_ms() // 1000
        terms = escrow_terms(
            job_id=job_id,
            mint=self._payments.mint,
            authority=self._central.keys.wallet.address,
            client=client,
            platform=self._payments.platform,
            amount_base_units=job.amount_base_units,
            fee_basis_points=self._network.fee_basis_points,
            deadline_s=now_s + DEADLINE_S,
            program=self._payments.program,
        )
        return with_signed_deadline(terms, deposit, now_s) if deposit else terms

    def _draft(
        self, caller: str, job: m.JobRequest, job_id: str, client: str, deposit: bytes = b""
    ) -> tuple[intake.Plan, jobs.Job]:
        """The job as it would be. Raises for all that is wrong with it by itself and on this network's nodes."""
        job, plan = intake.examined(job)
        if job.serve and not subjects.is_owned(job.serve.deployment, caller):
            mine = subjects.deployment_id(job.serve.deployment[:-13], caller)
            why = f"the deployment {job.serve.deployment} is not yours; one of yours would be called {mine}"
            raise ApiError("not_yours", why, 403)
        terms = self._terms(job, job_id, client, deposit)
        draft = jobs.Job(
            job_id=job_id,
            job=job,
            terms=terms,
            caller=caller,
            memory_bytes=plan.memory_bytes,
            gpu_memory_bytes=plan.gpu_memory_bytes,
            submitted_at_ms=0,
            changed_at_ms=0,
        )
        intake.refuse_unfit(draft, self._world.nodes.values())
        return plan, draft

    async def _funds(self, terms: m.EscrowTerms) -> Funds:
        """What the payer holds. Who asks for a price need not have it yet."""
        before = self._promised(terms.client)
        funds = await self._central.settlement.funds(terms)
        self._remember(terms.client, funds.base_units - max(before, self._promised(terms.client)))
        return funds

    def _remember(self, wallet: str, free_base_units: int) -> None:
        self._held[wallet] = (free_base_units, self._machine.monotonic_ms())
        if len(self._held) > WALLETS_REMEMBERED:
            self._held.popitem(last=False)

    def _promised(self, wallet: str, landed: Collection[str] = ()) -> int:
        """Base units for jobs whose deposits are not final yet, so that what the chain says of the wallet holds them.

        landed: jobs whose deposits have left the wallet all the same.
        """
        owed = self._world.unfunded.get(wallet, {})
        on_their_way = sum(
            terms.amount_base_units
            for terms in self._charged.values()
            if terms.client == wallet and terms.job_id not in self._world.jobs
        )
        gone = sum(owed.get(job_id, 0) for job_id in landed)
        return self._world.unfunded_base_units.get(wallet, 0) - gone + on_their_way

    def _afforded(self, terms: m.EscrowTerms) -> bool:
        """Whether a payer has enough, by what was found a moment ago less what was submitted since. Charges it then.

        That will do: the deposit itself is the proof, and one that cannot land fails the job before it is trained.
        """
        base_units, at_ms = self._held.get(terms.client, (0, -math.inf))
        if self._machine.monotonic_ms() - at_ms > FUNDS_TRUSTED_MS or base_units < terms.amount_base_units:
            return False
        self._held[terms.client] = (base_units - terms.amount_base_units, at_ms)
        self._charged[terms.job_id] = terms
        return True

    async def _afford(self, terms: m.EscrowTerms) -> None:
        """Refuse a payer who has too little; asks the chain when that is not known."""
        turn = self._asking.get(terms.client)
        if turn is None:
            turn = self._asking[terms.client] = asyncio.Lock()
        async with turn:  # a hundred submits at once ask the chain once
            if self._afforded(terms):
                return
            funds = await self._funds(terms)
            if self._afforded(terms):
                return
            # asked first: a deposit that lands in between counts twice then, not never
            owed = itertools.islice(self._world.unfunded.get(terms.client, ()), ESCROWS_LOOKED_AT)
            landed = await self._central.settlement.opened([self._world.jobs[job_id].terms for job_id in owed])
            if landed:
                funds = await self._funds(terms)
            promised = self._promised(terms.client, landed)
            intake.refuse_unaffordable(terms, funds.base_units, promised)
            self._remember(terms.client, funds.base_units - promised)
            self._afforded(terms)

    async def _quote(self, caller: str, ask: m.QuoteRequest) -> m.Quote:
        job_id = ask.job_id or intake.job_id_for(ask.job.name, self._machine.token_hex)
        client = ask.client or await self._payer(caller, ask.job)
        plan, draft = self._draft(caller, ask.job, job_id, client)
        terms = draft.terms
        funds, (blockhash, last_valid) = await asyncio.gather(
            self._funds(terms), self._central.settlement.recent_blockhash()
        )
        fitting = [node for node in self._world.nodes.values() if node.online and schedule.ever_fits(draft, node)]
        names, epochs = [node.node_id for node in fitting], ask.job.training.epochs
        flops, bytes_moved = plan.flops_per_epoch * epochs, plan.bytes_per_epoch * epochs
        serve = ask.job.serve
        asked = sorted(
            (
                prices.price_for(node, serve.seconds) if serve else prices.price_at(node, flops, bytes_moved)
                for node in fitting
            ),
            key=lambda each: (-each.base_units, each.node_id),
        )
        most = prices.highest(asked, terms.amount_base_units)
        intake.refuse_unpayable(most, self._network.spend_per_hour_base_units)
        shares = money.divide(terms.amount_base_units, [most], terms.fee_basis_points)
        return m.Quote(
            price=self._signed_price(draft, most) if fitting else None,
            prices=asked[:PRICES_SHOWN],
            flops=flops,
            bytes_moved=bytes_moved,
            job_id=job_id,
            terms=terms,
            node_base_units=shares.node_base_units,
            platform_base_units=shares.platform_base_units,
            balance_base_units=funds.base_units,
            lamports=funds.lamports,
            blockhash=blockhash,
            last_valid_block_height=last_valid,
            memory_bytes=plan.memory_bytes,
            gpu_memory_bytes=plan.gpu_memory_bytes,
            flops_per_epoch=plan.flops_per_epoch,
            parameters=plan.parameters,
            eligible_nodes=len(fitting),
            unproven_limit_base_units=schedule.most_worth(draft, map(self._world.candidate, names)),
        )

    def _signed_price(self, draft: jobs.Job, most_base_units: int) -> m.Price:
        price = m.Price(
            job_sha256=prices.job_sha256(draft.job),
            client=draft.terms.client,
            max_base_units=most_base_units,
            expires_ms=self._machine.wall_ms() + prices.VALID_MS,
            signature="0" * 128,
        )
        return replace(price, signature=self._quotes.sign(m.price_bytes(price)).hex())

    @functools.cached_property
    def _quotes(self) -> Wallet:
        """The key that quotes are signed with; it owns no money."""
        return Wallet(self._central.keys.child("quote"))

    async def _submit(self, caller: str, ask: m.SubmitRequest) -> m.SubmitReply:
        job_id = ask.job_id or intake.job_id_for(ask.job.name, self._machine.token_hex)
        if known := self._known(job_id, ask, caller):
            return known
        try:
            try:
                event = await self._submitted(caller, ask, job_id)
            except CyxError:
                # a repeated submit may look wrong (its deposit too old, the wallet empty) because the first was taken
                await self._central.events.catch_up()
                if known := self._known(job_id, ask, caller):
                    return known
                raise
            stored = await self._central.dispatch.submit(job_id, lambda: None if job_id in self._world.jobs else event)
        finally:
            self._charged.pop(job_id, None)  # from here on the world counts it, or nobody
        if stored is None and (known := self._known(job_id, ask, caller)):
            return known
        return m.SubmitReply(job_id=job_id, status=self._world.jobs[job_id].status, terms=event.terms)

    async def _submitted(self, caller: str, ask: m.SubmitRequest, job_id: str) -> m.Submitted:
        """The event of a job that may be taken. Raises CyxError for everything that is wrong with it."""
        client, bytes_ = (ask.payment.client, ask.payment.deposit.transaction) if ask.payment else ("", b"")
        if ask.payment:
            await self._central.verifier.look_ahead(client, job_id, self._payments.program, bytes_)
        client = client or await self._payer(caller, ask.job)
        _, draft = self._draft(caller, ask.job, job_id, client, bytes_)
        if ask.job.after:
            await self._check_dependencies(caller, ask.job)
        if ask.price is not None:
            key, now_ms = self._quotes.public_key.hex(), self._machine.wall_ms()
            prices.check(ask.price, draft.job, draft.terms.client, key, now_ms)
        charged = ask.price.max_base_units if ask.price else draft.terms.amount_base_units
        intake.refuse_unpayable(charged, self._network.spend_per_hour_base_units)
        dataset, weights = ask.job.dataset, ask.job.model.weights
        needed = [(dataset.sha256, dataset.size), *([(weights, None)] if weights else [])]
        deposit = self._deposit(caller, ask.payment, draft.terms)
        # What is not known is asked for side by side; for a job like the one before, everything is known.
        unknown: list[Awaitable[Any]] = [
            self._fetches.owned(caller, sha256, size)
            for sha256, size in needed
            if not (self._central.blobs.knows(sha256, size) and self._fetches.is_named(caller, sha256))
        ]
        signed = (await asyncio.gather(deposit, *unknown))[0] if unknown else await deposit
        if not self._afforded(draft.terms):  # last: what is refused is not charged
            await self._afford(draft.terms)
        return m.Submitted(
            job=draft.job,
            terms=draft.terms,
            caller=caller,
            memory_bytes=draft.memory_bytes,
            gpu_memory_bytes=draft.gpu_memory_bytes,
            deposit=signed,
            price_base_units=ask.price.max_base_units if ask.price else 0,
            reference_fee_base_units=self._network.reference_fee_base_units if self._network.fee_basis_points else 0,
        )

    async def _check_dependencies(self, caller: str, job: m.JobRequest) -> None:
        if any(after.job_id not in self._world.jobs for after in job.after):  # another central may have just taken it
            await self._central.events.catch_up()
        intake.refuse_dependencies(job, caller, self._world.jobs)
        intake.refuse_other_shapes(job, self._world.jobs)

    async def _deposit(self, caller: str, payment: m.Payment | None, terms: m.EscrowTerms) -> m.SignedTransaction:
        """The caller's deposit, checked; or one from the wallet that is kept for the caller. Nothing is sent yet."""
        if payment:
            return await self._central.settlement.accept_deposit(payment.deposit.transaction, terms)
        return await self._central.settlement.deposit_transaction(await self._custodial(caller), terms, caller)

    def _known(self, job_id: str, ask: m.SubmitRequest, caller: str) -> m.SubmitReply | None:
        """The answer to a repeated submit. The same id with another job is a mistake."""
        job = self._world.jobs.get(job_id)
        if job is None:
            return None
        other_payer = ask.payment is not None and ask.payment.client != job.terms.client
        if jobs.as_asked(job) != ask.job or job.caller != caller or other_payer:
            raise ApiError("job_id_taken", f"job id {job_id} stands for another job; choose a new one", 409)
        return m.SubmitReply(job_id=job_id, status=job.status, terms=job.terms, duplicate=True)

    async def _payer(self, caller: str, job: m.JobRequest) -> str:
        """The wallet that pays for a caller who brings none; what is wrong with the job is said first."""
        intake.examine(job)
        return (await self._custodial(caller)).address

    async def _custodial(self, caller: str) -> RemoteWallet:
        if not self._network.custodial_wallets:
            raise ApiError(
                "payment_required",
                "this network keeps no wallets for callers: send payment with a signed deposit",
                402,
            )
        return await self._central.keys.custody(caller)

    async def _find(self, prefix: str) -> jobs.Job:
        if prefix not in self._world.jobs:  # another central may have taken it just now, also where a longer id fits
            await self._central.events.catch_up()
        if prefix in self._world.jobs:  # a whole id wins over longer ones
            return self._world.jobs[prefix]
        found = (await self._roster()).beginning_with(prefix, IDS_NAMED + 1)
        if len(found) == 1:
            return self._world.jobs[found[0]]
        if not found:
            raise ApiError("unknown_job", f"no job is called {prefix} or starts with it; see: cyx jobs", 404)
        count, some = len(found) if len(found) <= IDS_NAMED else f"more than {IDS_NAMED}", ", ".join(found[:IDS_NAMED])
        raise ApiError("ambiguous_job", f"{count} jobs start with {prefix}: {some}; give more letters", 409)

    async def _roster(self) -> Roster:
        """All jobs in order. Who asks first waits until they are; others have their turn meanwhile."""
        roster = self._world.roster
        while not roster.fill(JOBS_AT_ONCE):
            await asyncio.sleep(0)
        return roster

    async def _view(self, job: jobs.Job) -> m.JobView:
        key = keys.job_status(job.job_id)
        node = self._world.nodes.get(job.attempts[-1].node_id) if job.attempts else None
        cached = await self._central.cache.get(key)
        if cached is not None:
            with contextlib.suppress(BadMessage):  # garbage in the cache costs this recomputation
                view = decode(m.JobView, cached, JSON, max_depth=MAX_DEPTH_AROUND)
                if views.is_fresh(view, job, node):
                    return view
        latest = await self._latest(job.job_id)
        view = views.job_view(job, node, latest)
        await self._central.cache.set(key, msgspec.json.encode(view), keys.JOB_STATUS_TTL_S)
        if await self._latest(job.job_id) != latest:  # newer metrics came, and deleted what was there before this
            await self._central.cache.delete(key)
        return view

    async def _latest(self, job_id: str) -> dict[str, Any] | None:
        return _metrics(await self._central.cache.get(keys.latest_metrics(job_id)), _Batch, _Epoch)

    async def _status(self, caller: str, ask: m.JobRef) -> m.JobView:
        return await self._view(await self._find(ask.job_id))

    async def _list(self, caller: str, ask: m.JobListRequest) -> m.JobList:
        roster, who = await self._roster(), caller if ask.mine else EVERYBODY
        counted = ask.name is None and ask.node_id is None and ask.run is None  # then nobody has to look at every job
        total = roster.total(who, ask.status) if counted else 0
        found: list[jobs.Job] = []
        more, begins, at = False, listing.begins_before(ask), listing.begins_before(ask) if counted else None
        looked = 0
        while not (counted and (more or not total or (begins is None and len(found) >= total))):
            if looked:
                await self._look_on(caller)
            some = roster.older(who, roster.index(who, at), JOBS_AT_ONCE)
            looked += len(some)
            for job in some:
                at = listing.place(job)
                if not listing.wanted_job(job, ask, caller):
                    continue
                total += not counted
                if begins is not None and at >= begins:
                    continue
                # an older client's next page begins before a millisecond, so this one ends with a whole one
                in_page = len(found) < ask.limit or ask.before_id is None and at[0] == found[-1].submitted_at_ms
                if in_page and not more:
                    found.append(job)
                    continue
                more = True
                if counted:
                    break
            if len(some) < JOBS_AT_ONCE:
                break
        shown = await listing.page(found, self._view)
        return m.JobList(jobs=shown, total=total, more=more or len(shown) < len(found))

    async def _look_on(
        self, caller: str, looked: int = JOBS_AT_ONCE, narrower: str = "without a name, node and rare status"
    ) -> None:
        """Let others have their turn, and charge who asks for what central has to look at.

        Raises ApiError rate_limited (429).
        """
        if wait_ms := self._central.over_limit_ms(caller, looked / JOBS_PER_REQUEST):
            why = f"the list goes through very many jobs; wait, or ask {narrower}"
            raise ApiError("rate_limited", why, 429, retry_after_ms=wait_ms)
        await asyncio.sleep(0)

    async def _updates(self, caller: str, ask: m.UpdatesRequest) -> m.Updates:
        job = await self._find(ask.job_id)
        place = (job.job_id, ask.after_event, ask.after_telemetry, ask.limit)
        lately = self._central.recent.after(*place)
        found, more = (lately, False) if lately is not None else await self._central.ledger.updates(*place)
        return m.Updates(updates=found, more=more, status=self._world.jobs[job.job_id].status)

    async def _cancel(self, caller: str, ask: m.CancelRequest) -> m.JobView:
        return await self._steer(
            caller,
            ask.job_id,
            m.CancelRequested(reason=ask.reason, caller=caller, request_id=ask.request_id),
            lambda job: job.cancel_requested and job.status not in jobs.ENDED,
        )

    async def _pause(self, caller: str, ask: m.JobRef) -> m.JobView:
        event = m.PauseRequested(caller=caller, request_id=ask.request_id)
        return await self._steer(caller, ask.job_id, event, lambda job: not ask.request_id and job.pause_requested)

    async def _resume(self, caller: str, ask: m.JobRef) -> m.JobView:
        event = m.ResumeRequested(caller=caller, request_id=ask.request_id)
        return await self._steer(caller, ask.job_id, event, lambda job: not ask.request_id and jobs.waits(job))

    async def _priority(self, caller: str, ask: m.PriorityRequest) -> m.JobView:
        event = m.PriorityChanged(priority=ask.priority, caller=caller, request_id=ask.request_id)
        return await self._steer(
            caller, ask.job_id, event, lambda job: not ask.request_id and job.priority == ask.priority
        )

    async def _steer(
        self,
        caller: str,
        prefix: str,
        event: m.CancelRequested | m.PauseRequested | m.ResumeRequested | m.PriorityChanged,
        done: Callable[[jobs.Job], bool],
    ) -> m.JobView:
        """What the owner of a job wants of it. `done` tells a request that is repeated because its answer was lost.

        A repetition may also come late, when the owner has asked for the opposite since: its request_id gives it away.
        """
        job = await self._find(prefix)
        if job.caller != caller:
            raise ApiError("not_yours", f"job {job.job_id} was submitted by another caller", 403)

        def decide() -> m.JobEvent | None:
            now = self._world.jobs[job.job_id]
            if jobs.granted(now, event.request_id) or done(now):
                return None
            if now.status == "checking":  # the job may still go to another node: a no could not stay one
                raise ApiError(
                    "checking", f"job {job.job_id} is delivered and being checked: ask when that is over", 503
                )
            if why_not := jobrules.illegal(now, event):
                what = STEERED[type(event)]
                raise ApiError("too_late", f"job {job.job_id} cannot be {what}: {why_not}", 409)
            return event

        async def record() -> m.AnyEvent | None:
            return await self._central.events.record(subjects.job_event(job.job_id), decide)

        stored = None
        with contextlib.suppress(ApiError):
            stored = await record()
        if stored is None:  # "done already" and "too late" are said of what is, not of what this central has read
            await self._central.events.catch_up()
            await record()
        return await self._view(self._world.jobs[job.job_id])

    async def _deployments(self, caller: str, ask: m.DeploymentListRequest) -> m.DeploymentList:
        await self._central.events.catch_up()  # what was submitted a moment ago is part of it
        found, looked = [], 0
        for deployment, job_ids in self._asked_for(caller, ask):
            mine, looked = subjects.is_owned(deployment, caller), looked + len(job_ids)
            if looked >= JOBS_AT_ONCE:
                await self._look_on(caller, looked, "for one deployment, by its id")
                looked = 0
            replicas = [self._world.jobs[job_id] for job_id in reversed(job_ids)]
            live = [job for job in replicas if job.status not in jobs.ENDED]
            newest = (live or replicas)[0].job.serve
            assert newest is not None
            if (live or ask.ended) and (mine or newest.public):
                found.append((listing.place(replicas[0]), deployment, replicas if ask.ended else live))
        found.sort(reverse=True)

        async def view(each: tuple[object, str, list[jobs.Job]]) -> m.DeploymentView:
            return self._deployment(caller, *each[1:])

        shown = await listing.page(found[: ask.limit], view)
        return m.DeploymentList(deployments=shown, more=len(shown) < len(found))

    def _asked_for(self, caller: str, ask: m.DeploymentListRequest) -> list[tuple[str, dict[str, None]]]:
        """The caller's deployments that begin so, or the one of anybody that is called so, each with its jobs."""
        deployments, whole, own = self._world.deployments, ask.deployment, subjects.deployment_id("", caller)
        found = [each for each in deployments.get(own, {}).items() if each[0].startswith(whole)]
        theirs = deployments.get(end, {}) if (end := subjects.owners_end(whole)) != own else {}
        return [*found, (whole, theirs[whole])] if whole in theirs else found

    def _deployment(self, caller: str, deployment: str, replicas: list[jobs.Job]) -> m.DeploymentView:
        """replicas: the newest first, by the log: the clocks of those who wrote it may differ."""
        now_ms, said = self._machine.wall_ms(), self._central.dispatch.replicas
        turns = {job.job_id: turn for turn, job in enumerate(replicas)}
        first = sorted(  # of those that stand by whoever is called first
            replicas,
            key=lambda job: (job.outcome is not None, job.standby, -turns[job.job_id] if job.standby else 0),
        )[:REPLICAS_SHOWN]
        shown = [
            views.replica_view(
                job,
                self._world.nodes.get(job.attempts[-1].node_id) if job.attempts else None,
                said.get((job.job_id, job.attempt)) if job.current else None,
                now_ms,
            )
            for job in sorted(first, key=lambda job: turns[job.job_id])
        ]
        serve, mine = replicas[0].job.serve, subjects.is_owned(deployment, caller)
        return m.DeploymentView(
            deployment=deployment,
            name=replicas[0].job.name,
            ready=sum(each.state == "ready" for each in shown),
            public=bool(serve and serve.public),
            owner=replicas[0].caller,
            replicas=shown if mine else [],
            newest=replicas[0].job if mine else None,
            untold=len(replicas) - len(shown) if mine else 0,
        )

    async def _explain(self, caller: str, ask: m.JobRef) -> m.ExplainReply:
        job = await self._find(ask.job_id)
        candidates = list(self._central.dispatch.candidates().values())
        reply = views.explanation(job, candidates, self._machine.wall_ms())
        if job.status == "waiting":
            reply.waiting_for = "the jobs it comes after: " + views.waited_for(job, self._world.jobs)
        if job.status == "settling" and self._world.payouts.frozen:
            reply.waiting_for = f"an operator to release payouts, which are frozen: {self._world.payouts.why}"
        elif job.status == "settling" and (why := self._payments.why_unpaid(job.job_id)):
            reply.waiting_for = f"the settlement, which is tried again: {why}"
        return reply

    # -- nodes, money, ledger ------------------------------------------------------------------------

    async def _nodes(self, caller: str, ask: m.NodeListRequest) -> m.NodeList:
        now_ms = self._machine.wall_ms()  # a ban may be over now
        matching = listing.ordered_nodes((self._world.candidate(node_id, now_ms) for node_id in self._world.nodes), ask)
        behind = matching
        if ask.after:
            if ask.after not in self._world.nodes:
                raise ApiError("unknown_node", f"no node is called {ask.after}; begin the list anew", 404)
            behind = listing.behind_node(matching, self._world.candidate(ask.after, now_ms), ask)

        found = await listing.page(behind[: ask.limit], self._node_view)
        prices = [each.node.price_per_hour_base_units for each in matching if each.node.online]
        return m.NodeList(
            nodes=found,
            total=len(matching),
            online=len(prices),
            more=len(found) < len(behind),
            price_per_hour_base_units=[min(prices), sum(prices) // len(prices), max(prices)] if prices else [],
        )

    async def _node_view(self, candidate: schedule.Candidate) -> m.NodeView:
        node = candidate.node
        metrics = _metrics(await self._central.cache.get(keys.node_info(node.node_id)), _Hardware)
        last_seen_ms = self._central.dispatch.seen_at_ms.get(node.node_id, node.changed_at_ms)
        return views.node_view(candidate, self._world.runs_of(node.node_id), last_seen_ms, metrics)

    async def _why(self, caller: str, ask: m.NodeWhyRequest) -> m.NodeWhyReply:
        if ask.node_id not in self._world.nodes:  # another central may have taken it in just now
            await self._central.events.catch_up()
        if ask.node_id not in self._world.nodes:
            raise ApiError("unknown_node", f"no node is called {ask.node_id}; see: cyx nodes", 404)
        if (looked := self._world.matching.waiting) >= JOBS_AT_ONCE:
            await self._look_on(caller, looked, "again when fewer jobs wait")
        now_ms = self._machine.wall_ms()
        candidate, matching = self._world.candidate(ask.node_id, now_ms), self._world.matching
        elsewhere = (job for job in self._world.leased() if job.attempts[-1].node_id != ask.node_id)
        return m.NodeWhyReply(
            node=await self._node_view(candidate),
            max_runs=candidate.max_runs,
            memory_free_bytes=candidate.memory_free_bytes,
            waiting=[views.waiting_prospect(job, candidate, matching, now_ms) for job in matching.newest(ask.limit)],
            placed=[
                views.placed_prospect(job, ask.node_id)
                for job in heapq.nlargest(ask.limit, elsewhere, key=lambda job: job.attempts[-1].leased_at_ms)
            ],
            jobs_waiting=matching.waiting,
        )

    async def _balance(self, caller: str, ask: m.WalletRequest) -> m.WalletReply:
        address = ask.address or (await self._custodial(caller)).address
        settlement = self._central.settlement
        return m.WalletReply(
            address=address,
            token_base_units=await settlement.token_balance(address, self._payments.mint),
            lamports=await settlement.sol_balance(address),
            custodial=ask.address is None,
        )

    async def _faucet(self, caller: str, ask: m.FaucetRequest) -> m.FaucetReply:
        if not self._network.gives_test_money or not await self._central.settlement.is_local():
            raise ApiError("no_faucet", "this network gives no test money", 403)
        address = ask.address or (await self._custodial(caller)).address
        mint_id = self._machine.token_hex(8)
        if ask.request_id:
            mint_id = hashlib.sha256(f"{caller}|{ask.request_id}".encode()).hexdigest()[:32]
            await self._central.events.catch_up()  # another central may have had this request
        signature = await self._payments.mint_to(mint_id, address, ask.amount_base_units, ask.lamports)
        balance = await self._balance(caller, m.WalletRequest(address=address))
        return m.FaucetReply(
            address=address,
            signature=signature,
            token_base_units=balance.token_base_units,
            lamports=balance.lamports,
        )

    async def _put(self, caller: str, block: bytes) -> m.ChunkReply:
        self._uploads.charge(caller, len(block), self._machine.monotonic_ms() / 1000)
        return await self._central.blobs.put(block, caller)

    async def _commit(self, caller: str, manifest: m.ArtifactManifest) -> m.ArtifactRef:
        now_s = self._machine.monotonic_ms() / 1000
        self._uploads.charge_manifest(caller, len(manifest.chunks), now_s)
        return await self._central.blobs.commit(
            manifest, caller, lambda size_bytes: self._uploads.charge_reading(caller, size_bytes, now_s)
        )

    @functools.cached_property
    def _uploads(self) -> Uploads:
        """How much each may store; most of all a node that holds a lease, since it was asked for it."""
        held = self._world.held
        return Uploads(
            self._network.upload_bytes_per_day, self._central.is_known, lambda caller: bool(held.get(caller))
        )

    async def _ledger(self, caller: str, ask: m.LedgerRequest) -> m.LedgerReply:
        return await self._central.ledger.query(ask.sql, ask.limit)

    async def _verify(self, caller: str, _: m.AuditRequest) -> m.AuditReply:
        self._operators.check(caller)
        if self._verifying.locked():
            why = "the ledger is being verified already; ask again when that is done"
            raise ApiError("busy", why, 429, retry_after_ms=VERIFY_AGAIN_MS)
        async with self._verifying:
            return m.AuditReply(checks=await self._central.audit.verify(self._network.gives_test_money))


def _metrics(payload: bytes | None, *kinds: type) -> dict[str, Any] | None:
    """Cached metrics of one of these kinds; None for anything else, because a cache may hold garbage."""
    for kind in kinds:
        if payload is None:
            break
        try:
            return msgspec.to_builtins(decode(kind, payload, JSON))
        except BadMessage:
            continue
    return None


class _Batch(BatchMetrics, kw_only=True):
    attempt: int


class _Epoch(EpochMetrics, kw_only=True):
    attempt: int


class _Hardware(m.HardwareMetrics, kw_only=True, frozen=True):
    attempt: int

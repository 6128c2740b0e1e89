"""The client: submit jobs, follow them, fetch models. AsyncClient here, the same without async in cyxnet.blocking.

    async with await AsyncClient.connect(".cyx") as client:
        reply = await client.submit(jobfile.load("digits.toml"))
        async for update in client.watch(reply.job_id):
            print(update.kind, update.data)
        await client.download(reply.job_id, Path("digits.cyxmodel"))

A deposit is built and signed here, from terms that were checked here: central never holds the client's key.
"""

import asyncio
import contextlib
import functools
import math
import secrets
import tempfile
import warnings
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from cyxcore.errors import CyxError, DataError
from cyxcore.spec import DataSpec, TrainingSpec
from cyxnet import artifacts, envelope, identity, outbox, subjects
from cyxnet import messages as m
from cyxnet.amounts import format_cyx
from cyxnet.artifacts import Advance
from cyxnet.bus import ApiError, Bus, BusError, NobodyServes
from cyxnet.codec import MSGPACK, decode
from cyxnet.config import DEFAULT_FOLDER, SESSION_S, ConfigError, read_network
from cyxnet.credentials import as_client
from cyxnet.deployments import Deployments
from cyxnet.follow import ENDED, SOURCES, Merge
from cyxnet.quotes import Quotes

if TYPE_CHECKING:
    from cyxnet.jobfile import LoadedJob
    from cyxnet.solana import Settlement, TransactionStatus
    from cyxnet.wallet import Wallet

T = TypeVar("T")
RETRY_DELAYS_S = (0.1, 1.0, 2.0, 4.0, 8.0, 16.0)
QUOTE_FRESH_S = 15.0  # so long its blockhash is signed with
TRIED_AGAIN = (429, 503)  # statuses of answers that say: later
MOST_JOBS_OF_A_PAGE = 1000  # that central takes in a JobListRequest
VERIFY_TIMEOUT_S = 900.0  # of a comparison that reads the whole log
MAY_BE_TAKEN = ("append_unknown", "broker_unreachable")  # what central says when its log did not answer
RECONCILE_S = 5.0  # while updates arrive live, the log is compared this often
QUIET_S = (2.0, 4.0, 8.0, 10.0)  # and this often while nothing arrives
OnRetry = Callable[[str, float], None]  # (what went wrong, seconds until the next try)


class InsufficientFunds(CyxError):
    """The wallet holds less than the job costs."""

    code = "insufficient_funds"


class TermsMismatch(CyxError):
    """Central offers other terms than the job asked for. Nothing was signed."""

    code = "terms_mismatch"


class DepositAlive(BusError):
    """Central calls a job's deposit expired, and the chain may still take it: no other is signed. Ask again later."""

    code = "deposit_alive"


class NoModel(CyxError):
    """A job has no model to fetch. The message says why."""

    code = "no_model"


class Prepared(Struct, kw_only=True):
    """A job that central would take, on terms that were checked. place() pays for it and submits it."""

    job_id: str
    job: m.JobRequest
    data_path: Path | None  # None: the network has its data
    quote: m.Quote
    quoted_at_s: float  # of the event loop
    payment: m.Payment | None = None
    price: m.Price | None = None  # to be charged at most
    again: bool = False  # its data are there, and the terms are those of a job before it
    unanswered: int = 0  # requests to take it that may have been heard: it may be taken, whatever others were answered


class _Sending:
    """Data on their way, for all jobs that want them: one sends at a time, and why it could not all are told."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.failed_s, self.why = -math.inf, ""


class AsyncClient:
    """One caller on one network.

    retry_delays_s: pauses before each further try of a request that got no answer.
    on_retry: told before each pause.
    """

    def __init__(self, bus: Bus, keys: identity.Identity, caller: str, folder: Path | None = None):
        """folder: where jobs are kept that nobody answers for."""
        self.folder = folder
        self.deployments = Deployments(self)
        self.bus = bus
        self.keys = keys
        self.caller = caller
        self.retry_delays_s: tuple[float, ...] = RETRY_DELAYS_S
        self.on_retry: OnRetry | None = None
        self._info: m.NetworkInfo | None = None
        self._program = ""  # that the chain was asked about
        self._quotes = Quotes(QUOTE_FRESH_S)
        self._stored: dict[m.ArtifactRef, float] = {}  # data of jobs that were placed, and when they were there
        self._sending: weakref.WeakValueDictionary[m.ArtifactRef, _Sending] = weakref.WeakValueDictionary()
        self._settlement: Settlement | None = None  # opened on the first payment: it loads a large library

    @classmethod
    async def connect(
        cls, folder: str | Path = DEFAULT_FOLDER, *, url: str | None = None, tls_ca: str = ""
    ) -> "AsyncClient":
        """Join the network of `folder`, or the broker at `url`, whose certificate `tls_ca` (PEM) has signed.

        The key is kept in folder/client.key.

        Raises ConfigError when the folder has no network, BusError when nobody answers, NotAdmitted when this key is
        not let in.
        """
        folder = Path(folder)
        session_s = SESSION_S
        if url is None:
            network = read_network(folder)
            url, session_s, tls_ca = network.client_url, network.session_s, network.tls_ca
        keys = identity.load_or_create(folder / "client.key")
        who = as_client(keys)
        bus = await Bus.connect(url, name="cyx-client", credentials=who, tls_ca=tls_ca, session_s=session_s)
        return cls(bus, keys, who.id, folder)

    async def close(self) -> None:
        if self._settlement is not None:
            await self._settlement.close()
        await self.bus.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @functools.cached_property
    def purse(self) -> "Wallet":
        """The wallet of this client; its key never leaves this process."""
        from cyxnet.wallet import Wallet

        return Wallet(self.keys.child("wallet"))

    # -- the network ------------------------------------------------------------------------------

    async def info(self) -> m.NetworkInfo:
        return await self._ask("network.info", m.NetworkInfoRequest(), m.NetworkInfo)

    async def nodes(self, limit: int | None = None, **filters: Any) -> list[m.NodeView]:
        """The nodes that are what is asked: fields of NodeListRequest. Without a limit all of them, page by page."""
        found: list[m.NodeView] = []
        after, more = None, True
        while more and (limit is None or len(found) < limit):
            page = await self._ask("node.list", m.NodeListRequest(after=after, **filters), m.NodeList)
            found += page.nodes
            more = page.more and bool(page.nodes)
            after = found[-1].node_id if found else None
        return found[:limit]

    async def ban(self, node_id: str, reason: str, for_s: int | None = None) -> m.NodeView:
        """Shut a node out at once, for so long; for None as long as central would. For operators only."""
        await self._be_operator()
        request = m.NodeBanRequest(node_id=node_id, reason=reason, for_s=for_s, request_id=new_request_id())
        return await self._ask("node.ban", request, m.NodeView)

    async def pardon(self, node_id: str, reason: str = "pardoned by an operator") -> m.NodeView:
        """End a node's ban and forgive its strikes. For operators only."""
        await self._be_operator()
        request = m.NodePardonRequest(node_id=node_id, reason=reason, request_id=new_request_id())
        return await self._ask("node.pardon", request, m.NodeView)

    async def ban_client(self, client_id: str, reason: str, for_s: int | None = None) -> m.ClientView:
        """Shut a client (c-…) out at once, for so long; its jobs go on. For operators only."""
        await self._be_operator()
        request = m.ClientBanRequest(client_id=client_id, reason=reason, for_s=for_s, request_id=new_request_id())
        return await self._ask("client.ban", request, m.ClientView)

    async def pardon_client(self, client_id: str, reason: str = "pardoned by an operator") -> m.ClientView:
        """End a client's ban. For operators only."""
        await self._be_operator()
        request = m.ClientPardonRequest(client_id=client_id, reason=reason, request_id=new_request_id())
        return await self._ask("client.pardon", request, m.ClientView)

    async def banned_clients(self) -> list[m.ClientView]:
        """Clients that are banned, or were. For operators only."""
        await self._be_operator()
        return (await self._ask("client.list", m.ClientListRequest(), m.ClientList)).clients

    async def _be_operator(self) -> None:
        """The broker would pass over the request of somebody else without an answer: better to know before."""
        if not (await self.info()).operator:
            raise ApiError(
                "not_operator", f"{self.caller} is no operator of this network (operators in network.json)", 403
            )

    async def wallet(self, address: str | None = None) -> m.WalletReply:
        """The balances of an address; of this client's wallet when None."""
        request = m.WalletRequest(address=address or self.purse.address)
        return await self._ask("wallet.balance", request, m.WalletReply)

    async def faucet(self, amount_base_units: int = 100_000_000_000, lamports: int = 1_000_000_000) -> m.FaucetReply:
        """Test money for this client's wallet. Raises ApiError on networks where money is real."""
        request = m.FaucetRequest(
            address=self.purse.address,
            amount_base_units=amount_base_units,
            lamports=lamports,
            request_id=new_request_id(),
        )
        return await self._ask("wallet.faucet", request, m.FaucetReply, timeout_s=30)

    async def ledger(self, sql: str, limit: int = 1000) -> m.LedgerReply:
        """One read-only SELECT over the ledger."""
        return await self._ask("ledger.query", m.LedgerRequest(sql=sql, limit=limit), m.LedgerReply, timeout_s=30)

    async def verify_ledger(self) -> list[m.AuditCheck]:
        """Log, ledger and chain, compared in full. For operators; a long log takes minutes."""
        await self._be_operator()
        request = m.AuditRequest()
        return (await self._ask("ledger.verify", request, m.AuditReply, timeout_s=VERIFY_TIMEOUT_S, retry=False)).checks

    async def freeze_payouts(self, reason: str) -> m.PayoutsReply:
        """Stop all payments; jobs are taken and trained as before. For operators."""
        await self._be_operator()
        return await self._ask("payouts.freeze", m.PayoutsRequest(reason=reason), m.PayoutsReply)

    async def release_payouts(self, reason: str) -> m.PayoutsReply:
        """Let payments go on. For operators."""
        await self._be_operator()
        return await self._ask("payouts.release", m.PayoutsRequest(reason=reason), m.PayoutsReply)

    async def new_key(self, **wanted: Any) -> m.NewKey:
        """An API key for HTTP that acts for this caller. wanted: as in KeyNewRequest. Raises ApiError."""
        return await self._ask("key.new", m.KeyNewRequest(**wanted), m.NewKey, retry=False)

    async def keys_and_sessions(self, as_operator: bool = False) -> m.KeyList:
        """The API keys and HTTP sessions of this caller; as operator everybody's. All pages of them."""
        ask = m.KeyListRequest(as_operator=as_operator)
        found = page = await self._ask("key.list", ask, m.KeyList)
        while page.after:
            page = await self._ask("key.list", replace(ask, after=page.after), m.KeyList)
            found.keys += page.keys
            found.sessions += page.sessions
        found.after = ""
        return found

    async def revoke(self, id: str, as_operator: bool = False) -> m.KeyList:
        """Have an API key or HTTP session refused from now on. Raises ApiError when there is none."""
        return await self._ask("key.revoke", m.KeyRevokeRequest(id=id, as_operator=as_operator), m.KeyList)

    # -- submitting -------------------------------------------------------------------------------

    async def quote(self, job: m.JobRequest, job_id: str | None = None) -> m.Quote:
        """Would this job be taken, and on what terms? Nothing is stored."""
        request = m.QuoteRequest(job=job, job_id=job_id, client=self.purse.address)
        return await self._ask("job.quote", request, m.Quote)

    async def submit(
        self,
        job: "LoadedJob | m.JobRequest",
        data_path: Path | None = None,
        on_upload: Advance | None = None,
        *,
        keep: bool = False,
    ) -> m.SubmitReply:
        """Pay for a job and submit it; its data is uploaded first. A JobRequest needs `data_path` too.

        For a job on the same data as one that was submitted within QUOTE_FRESH_S, nothing is asked that was answered
        then; of many at once, one sends the data.

        keep: a job that nobody answers for is put into the outbox of the folder, and is the one that is submitted when
        the same is wanted again (`kept`, `send_kept`). Of a process that is killed meanwhile nothing is kept.

        Raises InsufficientFunds before anything is uploaded, ApiError when central refuses the job, KeptForLater.
        """
        if keep:
            folder = self._kept_in()
            kept = await asyncio.to_thread(outbox.wanted, job, data_path)
            try:
                waits = outbox.same(folder, kept)
            except ConfigError as error:  # a damaged file there says nothing of this job
                warnings.warn(str(error), stacklevel=2)
                waits = None
            with outbox.kept_if_unanswered(folder, kept, waits) as attempt:
                return await self.place_kept(attempt, on_upload=on_upload, again=waits is not None)
        prepared = await self._prepare(job, data_path, again=True)
        try:
            return await self.place(prepared, on_upload)
        except ApiError as error:
            if not prepared.again or error.status in TRIED_AGAIN:
                raise
        self._quotes.forget()  # something has changed since: what it is, central says now
        self._stored.clear()
        fresh = await self.prepare(job, data_path, prepared.job_id)
        fresh.payment = prepared.payment  # of its terms a quote chooses but the deadline
        return await self.place(fresh, on_upload)

    async def prepare(
        self,
        job: "LoadedJob | m.JobRequest",
        data_path: Path | None = None,
        job_id: str | None = None,
        *,
        stored: bool = False,
    ) -> Prepared:
        """Ask for terms and check them. stored: the network has the job's data, which need not be sent.

        Raises TermsMismatch or ApiError. Nothing is stored or paid.
        """
        return await self._prepare(job, data_path, job_id, stored=stored)

    async def _prepare(
        self,
        job: "LoadedJob | m.JobRequest",
        data_path: Path | None = None,
        job_id: str | None = None,
        *,
        stored: bool = False,
        again: bool = False,
    ) -> Prepared:
        """prepare(); again: on the terms of a job before it on the same data, if they are fresh."""
        if isinstance(job, m.JobRequest):
            if data_path is None and not stored:
                raise TypeError("a JobRequest needs data_path, the file of its dataset")
            request = job
            again = again and data_path is not None and await asyncio.to_thread(_is_file_of, job.dataset, data_path)
        else:
            data_path = job.data_path
            found = await asyncio.to_thread(artifacts.describe, data_path)
            request = job.request(m.ArtifactRef(sha256=found.sha256, size=found.size))
            job_id = job_id or job.job_id
        job_id = job_id or subjects.new_job_id(request.name)
        info = self._info = self._info or await self.info()
        if again and self._is_stored(request.dataset, QUOTE_FRESH_S):
            if known := self._quotes.again(request, job_id, _now_s()):
                quote, at_s = known
                return Prepared(
                    job_id=job_id, job=request, data_path=data_path, quote=quote, quoted_at_s=at_s, again=True
                )
        asked_s = _now_s()
        quote = await self.quote(request, job_id)
        check_terms(quote.terms, request, job_id, self.purse.address, info)
        check_price(quote.price, info)
        await self._check_program(quote.terms.program)
        if again:
            self._quotes.keep(quote, asked_s)
        return Prepared(job_id=job_id, job=request, data_path=data_path, quote=quote, quoted_at_s=_now_s())

    async def place(self, prepared: Prepared, on_upload: Advance | None = None) -> m.SubmitReply:
        """Upload the data, sign the deposit, submit. Safe to call again: the same id, the same deposit.

        Another deposit is signed only when the chain proves that the first can never land. Raises DepositAlive when
        central calls that one expired and the chain does not.
        """
        amount, balance = prepared.job.amount_base_units, prepared.quote.balance_base_units
        if balance < amount:
            info = self._info or await self.info()
            remedy = "run: cyx wallet --faucet 100" if info.faucet else "send CYX to this address"
            raise InsufficientFunds(
                f"the job costs {format_cyx(amount)} CYX, the wallet {self.purse.address} holds"
                f" {format_cyx(balance)} CYX; {remedy}"
            )
        signing = asyncio.create_task(self._paid(prepared))  # while the data is on its way; kept only if it arrived
        try:
            if prepared.again:
                if on_upload:
                    on_upload(prepared.job.dataset.size, prepared.job.dataset.size)
            elif prepared.data_path is not None:
                await self._send_data(prepared.data_path, prepared.job.dataset, on_upload)
            payment = await signing
            prepared.payment = prepared.payment or payment  # of several who place it at once the first one's is sent
        finally:
            signing.cancel()
        return await self._persist(lambda: self._submit(prepared))

    async def _submit(self, prepared: Prepared) -> m.SubmitReply:
        """Once; and once more with another deposit if the first is dead. Raises DepositAlive while it is not."""
        from cyxnet.instructions import SettlementError

        subject = subjects.api(self.caller, "job.submit")
        while True:
            offered = prepared.payment
            request = m.SubmitRequest(job=prepared.job, job_id=prepared.job_id, payment=offered, price=prepared.price)
            prepared.unanswered += 1
            try:
                return await self.bus.ask(subject, request, m.SubmitReply, timeout_s=15)
            except NobodyServes:
                prepared.unanswered -= 1
                raise
            except ApiError as error:
                prepared.unanswered -= error.code not in MAY_BE_TAKEN
                if error.code != "expired" or not offered:
                    raise
            try:
                await self._refuse_alive(prepared.job_id, offered)
                payment = await self._sign_deposit(prepared, by_chain=True)
            except SettlementError as error:
                if error.code == "escrow_exists":
                    raise DepositAlive(f"{error}: another central may have taken it") from None
                if error.code == "chain_unreachable":
                    raise DepositAlive(f"central calls the deposit of {prepared.job_id} expired, and {error}") from None
                raise
            if prepared.payment is offered:  # else somebody else who places it was faster, and this one is never sent
                prepared.payment = payment

    # -- submitting later -------------------------------------------------------------------------

    def kept(self) -> list[outbox.Kept]:
        """The jobs that wait in the outbox, oldest first. Raises ConfigError that names a damaged file."""
        return outbox.waiting(self._kept_in())

    async def send_kept(
        self, kept: outbox.Kept, on_quote: Callable[[Prepared], None] | None = None, on_upload: Advance | None = None
    ) -> m.SubmitReply:
        """Submit a job of the outbox; then it waits there no more. Raises as submit() does: then it stays there."""
        folder, attempt = self._kept_in(), outbox.Attempt(kept)
        try:
            reply = await self.place_kept(attempt, on_quote, on_upload, again=True)
        except BaseException:
            if attempt.kept != kept:
                outbox.keep(folder, attempt.kept)
            raise
        self.forget_kept(kept)
        return reply

    def forget_kept(self, kept: outbox.Kept) -> None:
        """It is not wanted any more; nor is data that was fetched for it."""
        outbox.forget(self._kept_in(), kept.job_id)
        outbox.discard_fetched(kept)

    async def place_kept(
        self,
        attempt: outbox.Attempt,
        on_quote: Callable[[Prepared], None] | None = None,
        on_upload: Advance | None = None,
        *,
        again: bool,
    ) -> m.SubmitReply:
        """Ask for the terms of a job, pay for it and submit it: what it may cost is what it names, whatever was quoted.

        again: it was tried before. If central has it, only the answer was lost; DataError if it ended without a model.
        """
        kept = attempt.kept
        if again and (known := await self._known(kept.job_id)):
            return known
        data_path = Path(kept.data_path)
        if not data_path.is_file():
            raise DataError(
                f"{data_path}: the data of {kept.job_id} is gone; bring it back, or: cyx outbox --forget {kept.job_id}"
            )
        prepared = await self.prepare(kept.job, data_path, kept.job_id)
        prepared.price = kept.price
        if kept.payment and not await self._is_dead(kept.payment):
            prepared.payment = kept.payment
        if on_quote:
            on_quote(prepared)
        try:
            return await self.place(prepared, on_upload)
        except ApiError as error:
            if error.code != "price_expired" or not again or not prepared.payment:
                raise
            raise await self._of_an_old_price(error, kept.job_id, prepared.payment) from None
        finally:
            attempt.kept = replace(kept, payment=prepared.payment or kept.payment)
            attempt.in_doubt = prepared.unanswered > 0

    async def _of_an_old_price(self, error: ApiError, job_id: str, payment: m.Payment) -> ApiError:
        """What to do about a job that nobody takes at its price, and where the money of its deposit is."""
        from cyxnet.instructions import SettlementError

        try:
            found = await (await self._chain()).status_of(payment.deposit)
        except SettlementError as unknown:
            found, money = None, f"what became of its deposit is not known ({unknown})"
        if found is None:
            pass
        elif _is_over(found):
            money = "its deposit can never land, so nothing was paid"
        elif found.finalized:
            money = f"its deposit has paid: central may yet find the job, or the money comes back: cyx refund {job_id}"
        else:
            money = "its deposit may still land"
        remedy = "submit the same file again with a new quote: this job and its deposit are sent with that"
        return ApiError(error.code, f"{error}; {money}; {remedy}", 409)

    async def _known(self, job_id: str) -> m.SubmitReply | None:
        """The answer to a submit that was lost, where central has the job. Raises DataError if it came to nothing."""
        try:
            view = await self.job(job_id)
        except ApiError as error:
            if error.code != "unknown_job":
                raise
            return None
        if view.status in ("failed", "cancelled"):
            why = f" ({view.error})" if view.error else ""
            raise DataError(
                f"{job_id} had reached the network and {view.status}{why}; cyx outbox --forget {job_id}, "
                "then submit it again"
            )
        if view.terms is None:
            raise ApiError("bad_reply", f"central does not say on what terms it has {job_id}", 500)
        return m.SubmitReply(job_id=job_id, status=view.status, terms=view.terms, duplicate=True)

    def _kept_in(self) -> Path:
        if self.folder is None:
            raise ConfigError("this client has no folder, so no outbox: make it by connect(folder)")
        return self.folder

    async def _send_data(self, path: Path, expected: m.ArtifactRef, on_upload: Advance | None) -> None:
        """upload() for a job; of many that are placed at once, one sends their data. Raises DataError and BusError."""
        asked_s = _now_s()
        sending = self._sending.get(expected)
        if sending is None:
            sending = self._sending[expected] = _Sending()
        async with sending.turn:
            if self._is_stored(expected, _now_s() - asked_s):
                if on_upload:
                    on_upload(expected.size, expected.size)
                return
            if sending.failed_s > asked_s:  # while we waited: nobody answers us either
                raise BusError(sending.why)
            try:
                sent = await self.upload(path, on_upload)
            except BusError as error:
                sending.failed_s, sending.why = _now_s(), str(error)
                raise
            if sent != expected:
                raise DataError(f"{path}: it changed after it was checked; nothing was paid, submit again")
            self._stored = {each: at_s for each, at_s in self._stored.items() if _is_fresh(at_s)}
            self._stored[expected] = _now_s()

    def _is_stored(self, data: m.ArtifactRef, within_s: float) -> bool:
        """Whether the network was found to have the data of a job within that time. They may be gone all the same."""
        return _now_s() - self._stored.get(data, -math.inf) < within_s

    async def upload(self, path: Path, on_upload: Advance | None = None) -> m.ArtifactRef:
        """Store a file as an artifact. A broken transfer goes on with the chunks that are missing."""
        return await self._persist(lambda: artifacts.put(self.bus, self.caller, path, on_upload))

    async def submit_module(
        self,
        module: Any,
        data: "str | Path | tuple[Any, Any]",
        amount: str | int,
        *,
        name: str = "module",
        target: str = "label",
        spec: DataSpec | None = None,
        training: TrainingSpec | None = None,
        needs: m.Needs | None = None,
        on_upload: Advance | None = None,
    ) -> m.SubmitReply:
        """Train a cyxcore module: its graph and its present weights travel, no Python does.

        data: a CSV, Parquet, JSON lines or NPZ file, or arrays (inputs (N, …), targets (N,) or (N, K)). amount: CYX,
        "2.5". spec: how to read the data; by default every column but `target`, unscaled (a traced module has no place
        for scaling statistics).
        """
        from cyxnet import jobfile

        with tempfile.TemporaryDirectory(prefix="cyx-module-") as folder:
            weights = Path(folder) / "weights.safetensors"
            job = await asyncio.to_thread(
                jobfile.from_module,
                module,
                data,
                amount,
                name=name,
                spec=spec or DataSpec(target=target, normalize="none"),
                training=training or TrainingSpec(),
                needs=needs or m.Needs(),
                weights_path=weights,
            )
            for warning in job.warnings:
                warnings.warn(f"{name}: {warning}", stacklevel=2)
            await self.upload(weights)
            return await self.submit(job, on_upload=on_upload)

    async def _paid(self, prepared: Prepared) -> m.Payment:
        """The payment that was signed before, or a new one: a repeated submit sends the same deposit."""
        return prepared.payment or await self._sign_deposit(prepared)

    async def _is_dead(self, payment: m.Payment) -> bool:
        """Whether a deposit can never pay for its job, by the chain's own word."""
        return _is_over(await (await self._chain()).status_of(payment.deposit))

    async def _refuse_alive(self, job_id: str, payment: m.Payment) -> None:
        """Raise DepositAlive unless this deposit can never pay for the job."""
        found = await (await self._chain()).status_of(payment.deposit)
        if _is_over(found):
            return
        told = f"central calls the deposit {payment.deposit.signature} of {job_id} expired"
        if found.finalized:
            raise DepositAlive(
                f"{told}, and it has paid: another central may have taken the job; if it does not appear, the money "
                f"comes back with: cyx refund {job_id}"
            )
        raise DepositAlive(f"{told}, but the chain may still take it; no other is signed before it cannot")

    async def _sign_deposit(self, prepared: Prepared, by_chain: bool = False) -> m.Payment:
        """The deposit for the quoted terms, built and signed here.

        Its blockhash is that of a fresh quote (a wrong one would make a deposit that no chain takes), else the chain's.
        """
        from cyxnet.escrow import build_deposit, check_funds

        quote, terms = prepared.quote, prepared.quote.terms
        if quote.blockhash and not by_chain and _is_fresh(prepared.quoted_at_s):
            check_funds(terms, quote.balance_base_units, quote.lamports)
            deposit = build_deposit(self.purse, terms, quote.blockhash, quote.last_valid_block_height)
            return m.Payment(client=self.purse.address, deposit=deposit)
        deposit = await (await self._chain()).deposit_transaction(self.purse, terms)
        return m.Payment(client=self.purse.address, deposit=deposit)

    async def _check_program(self, program: str) -> None:
        """Ask the chain once whether that is the escrow program: whoever controls another could take what is paid.

        The one of a local chain has an address that comes from its bytes, where nothing else can be.
        """
        from cyxnet.escrow import LOCAL_PROGRAM

        if program not in (LOCAL_PROGRAM, self._program):
            await (await self._chain()).verify_program(program)
            self._program = program

    async def _chain(self) -> "Settlement":
        from cyxnet.solana import Settlement

        if self._settlement is None:
            info = self._info = self._info or await self.info()
            self._settlement = Settlement(info.chain_url)
        return self._settlement

    # -- following --------------------------------------------------------------------------------

    async def job(self, job_id: str) -> m.JobView:
        """One job, by its id or a prefix that only one job has."""
        return await self._ask("job.status", m.JobRef(job_id=job_id), m.JobView)

    async def jobs(self, status: m.JobStatus | None = None, limit: int = 50, **filters: Any) -> m.JobList:
        """Newest first, page by page until there are `limit` of them. filters: name, node_id, mine, before and
        before_id, as in JobListRequest; `more` in the answer: there are others behind the last one.
        """
        found: list[m.JobView] = []
        while True:
            some = min(limit - len(found), MOST_JOBS_OF_A_PAGE)
            page = await self._ask("job.list", m.JobListRequest(status=status, limit=some, **filters), m.JobList)
            found += page.jobs
            if not (page.more and page.jobs) or len(found) >= limit:
                # A first page ends with a whole millisecond, which may be more than was asked for.
                return replace(page, jobs=found[:limit], more=page.more or len(found) > limit)
            filters |= {"before": found[-1].submitted_at_ms, "before_id": found[-1].job_id}

    async def explain(self, job_id: str) -> m.ExplainReply:
        return await self._ask("job.explain", m.JobRef(job_id=job_id), m.ExplainReply)

    async def cancel(self, job_id: str, reason: str = "cancelled by the client") -> m.JobView:
        request = m.CancelRequest(job_id=job_id, reason=reason, request_id=new_request_id())
        return await self._ask("job.cancel", request, m.JobView)

    async def pause(self, job_id: str) -> m.JobView:
        """Store a checkpoint and stop; the job waits, paid for, until resume() or cancel()."""
        return await self._ask("job.pause", m.JobRef(job_id=job_id, request_id=new_request_id()), m.JobView)

    async def resume(self, job_id: str) -> m.JobView:
        """Let a paused job go on from its checkpoint, on whatever node is best now."""
        return await self._ask("job.resume", m.JobRef(job_id=job_id, request_id=new_request_id()), m.JobView)

    async def priority(self, job_id: str, priority: int) -> m.JobView:
        """Give a job that has not ended another priority, 0 to 9: each level counts like ten minutes of waiting."""
        request = m.PriorityRequest(job_id=job_id, priority=priority, request_id=new_request_id())
        return await self._ask("job.priority", request, m.JobView)

    async def watch(self, job_id: str) -> AsyncGenerator[m.Update, None]:
        """Everything that happened to a job from its first event on, then live, until the job has ended.

        No gap and no duplicate. Each source comes in the order of its `seq`, except that an update which the live
        link lost comes late, when the log is compared (after silence, and every RECONCILE_S).
        """
        job_id = (await self.job(job_id)).job_id  # a prefix would subscribe to nothing
        arrived: asyncio.Queue[m.Update] = asyncio.Queue()

        async def on_live(subject: str, payload: bytes, headers: dict[str, str]) -> None:
            arrived.put_nowait(decode(m.Update, payload, headers.get("Content-Type", MSGPACK)))

        merge, quiet, ended = Merge(), 0, False
        subscription = await self.bus.subscribe(subjects.update(job_id), on_live)
        try:
            while True:
                page = await self._page(job_id, merge)
                fresh = merge.page(page.updates)
                for update in fresh:
                    yield update
                if ended and not fresh:
                    return
                ended = page.status in ENDED  # said with a page, true after it: one more page has the rest
                if page.more or ended:
                    continue
                deadline_s = _now_s() + RECONCILE_S
                quiet += 1
                while (pause_s := min(QUIET_S[min(quiet, len(QUIET_S)) - 1], deadline_s - _now_s())) > 0:
                    try:
                        async with asyncio.timeout(pause_s):  # wait_for of 3.11 drops a cancel that meets an update
                            update = await arrived.get()
                    except TimeoutError:
                        break
                    quiet = 1
                    if merge.live(update):
                        yield update
                        if update.kind in LAST_KINDS:
                            break
        finally:
            with contextlib.suppress(Exception):
                await subscription.unsubscribe()

    async def wait(self, job_id: str) -> m.JobView:
        """The job as it is when it has ended: completed, failed or cancelled."""
        async with contextlib.aclosing(self.watch(job_id)) as updates:
            async for _ in updates:
                pass
        pause_s = 0.05
        while (view := await self.job(job_id)).status not in ENDED:  # of a central that lags behind who told the end
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)
        return view

    async def download(self, job_id: str, out_path: str | Path, progress: Advance | None = None) -> m.ArtifactRef:
        """Fetch the delivered .cyxmodel; every byte is checked against its SHA-256. Raises NoModel."""
        out_path = Path(out_path)
        view = await self.job(job_id)
        if view.model is None:
            why = f": {view.error}" if view.error else "" if view.status in ENDED else "; wait for its end"
            raise NoModel(f"job {view.job_id} is {view.status} and has no model{why}")
        if not view.sealed:
            return await self.fetch(view.model.sha256, out_path, progress)
        sealed_path = out_path.with_name(f".{out_path.name}.sealed")
        try:
            await self.fetch(view.model.sha256, sealed_path, progress)
            return await asyncio.to_thread(self._opened, view.job_id, sealed_path, out_path)
        finally:
            sealed_path.unlink(missing_ok=True)

    def _opened(self, job_id: str, sealed_path: Path, out_path: Path) -> m.ArtifactRef:
        """The model of a job that this client sealed, in plain text. Raises SealError, DiskFault."""
        opened = envelope.as_client(self.keys)
        try:
            return envelope.unseal(sealed_path, out_path, opened, "model", job_id)[2]
        except envelope.SealError as error:
            raise envelope.SealError(f"the model of {job_id} cannot be opened by this client: {error}") from None

    async def fetch(self, sha256: str, out_path: Path, progress: Advance | None = None) -> m.ArtifactRef:
        """Fetch an artifact: what this client sent, what its jobs name, and for an operator everything.

        Raises ApiError when it is not stored, or not for this client.
        """
        info = self._info = self._info or await self.info()
        return await self._persist(
            lambda: artifacts.get(self.bus, self.caller, sha256, out_path, progress, as_operator=info.operator)
        )

    async def _page(self, job_id: str, merge: Merge) -> m.Updates:
        event, telemetry = (merge.confirmed[source] for source in SOURCES)
        request = m.UpdatesRequest(job_id=job_id, after_event=event, after_telemetry=telemetry)
        page = await self._ask("job.updates", request, m.Updates)
        if page.more and not page.updates:
            raise ApiError("bad_reply", f"central says that job {job_id} has more updates and sends none", 500)
        return page

    # -- requests that survive a restart of the broker or of central ----------------------------------

    async def _ask(self, verb: str, request: Any, reply: type[T], *, timeout_s: float = 5.0, retry: bool = True) -> T:
        subject = subjects.api(self.caller, verb)

        def ask() -> Awaitable[T]:
            return self.bus.ask(subject, request, reply, timeout_s=timeout_s)

        return await (self._persist(ask) if retry else ask())

    async def _persist(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do `work`, again after each pause while there is no answer or central is too busy for one.

        The wait_for inside nats-py (Python 3.11) drops a cancel that meets an answer: it is raised here then.
        """
        task = asyncio.current_task()
        cancels = task.cancelling() if task else 0
        for delay_s in (*self.retry_delays_s, None):
            try:
                answer = await work()
                if task and task.cancelling() > cancels:
                    raise asyncio.CancelledError
                return answer
            except* CyxError as group:  # a transfer in several tasks fails as a group
                error = first_of(group)
            pause_s = None if delay_s is None else retry_pause_s(error, delay_s)
            if pause_s is None:
                raise error
            if self.on_retry and pause_s >= 1:
                self.on_retry(str(error), pause_s)
            await asyncio.sleep(pause_s)
        raise AssertionError("unreachable")


LAST_KINDS = frozenset({"Settled", "FundFailed", "Refunded"})  # after these a job has ended; the log is asked at once


def retry_pause_s(error: BaseException, delay_s: float) -> float | None:
    """How long to wait before asking again; None: this error stays as it is."""
    if isinstance(error, BusError):
        return delay_s
    if isinstance(error, ApiError) and error.code == "price_expired" and delay_s > 1:
        return None  # asked again just now, another central had not taken the job; the price does not get younger
    if isinstance(error, ApiError) and error.status in TRIED_AGAIN:
        return max(delay_s, (error.retry_after_ms or 0) / 1000)
    return None


def new_request_id() -> str:
    """One for each wish, the same in all its tries: central carries it out once."""
    return secrets.token_hex(8)


def check_terms(terms: m.EscrowTerms, job: m.JobRequest, job_id: str, client: str, info: m.NetworkInfo) -> None:
    """Raise TermsMismatch unless the offered terms are those of this job on this network."""
    for what, offered, expected in [
        ("job_id", terms.job_id, job_id),
        ("amount_base_units", terms.amount_base_units, job.amount_base_units),
        ("client", terms.client, client),
        ("mint", terms.mint, info.mint),
        ("authority", terms.authority, info.authority),
        ("platform", terms.platform, info.platform),
        ("fee_basis_points", terms.fee_basis_points, info.fee_basis_points),
        ("program", terms.program, info.program),
    ]:
        if offered != expected:
            raise TermsMismatch(f"the terms of job {job_id} name {what} {offered!r}, expected {expected!r}")


def check_price(price: m.Price | None, info: m.NetworkInfo) -> None:
    """Raise TermsMismatch unless a quoted price is signed by this network."""
    from cyxnet.wallet import verify

    if price and not verify(info.quote_key, m.price_bytes(price), bytes.fromhex(price.signature)):
        raise TermsMismatch("the quoted price is not signed by this network")


def first_of(group: BaseException) -> BaseException:
    """The first plain exception of a group of groups."""
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def _is_over(found: "TransactionStatus") -> bool:
    return found.state == "dead" or bool(found.finalized and found.err)


def _is_file_of(expected: m.ArtifactRef, path: Path) -> bool:
    found = artifacts.describe(path)
    return (found.sha256, found.size) == (expected.sha256, expected.size)


def _is_fresh(at_s: float) -> bool:
    return _now_s() - at_s < QUOTE_FRESH_S


def _now_s() -> float:
    return asyncio.get_running_loop().time()

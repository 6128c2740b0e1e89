"""Jobs on their way to central: terms asked for and checked, data sent, deposits signed, all of it once.

A deposit is built and signed here, from terms that were checked here: central never holds the client's key.
"""

import asyncio
import math
import re
import tempfile
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from cyxcore.errors import CyxError, DataError
from cyxcore.spec import DataSpec, TrainingSpec
from cyxnet import artifacts, identity, outbox, subjects
from cyxnet import messages as m
from cyxnet.amounts import format_cyx
from cyxnet.artifacts import Advance
from cyxnet.bus import ApiError, Bus, BusError, NobodyServes
from cyxnet.caller import TRIED_AGAIN, Caller
from cyxnet.config import NODE_ID, ConfigError
from cyxnet.quotes import Quotes

if TYPE_CHECKING:
    from cyxnet.jobfile import LoadedJob
    from cyxnet.solana import Settlement, TransactionStatus

QUOTE_FRESH_S = 15.0  # so long its blockhash is signed with
MAY_BE_TAKEN = ("append_unknown", "broker_unreachable")  # what central says when its log did not answer


class InsufficientFunds(CyxError):
    """The wallet holds less than the job costs."""

    code = "insufficient_funds"


class TermsMismatch(CyxError):
    """Central offers other terms than the job asked for. Nothing was signed."""

    code = "terms_mismatch"


class DepositAlive(BusError):
    """Central calls a job's deposit expired, and the chain may still take it: no other is signed. Ask again later."""

    code = "deposit_alive"


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
        self.tries = 0  # that have ended
        self.why: str | None = None  # the last one failed


class Submitter(Caller):
    """A caller that submits jobs, and pays for them."""

    def __init__(self, bus: Bus, keys: identity.Identity, caller: str, folder: Path | None = None):
        super().__init__(bus, keys, caller, folder)
        self._program = ""  # that the chain was asked about
        self._quotes = Quotes(QUOTE_FRESH_S)
        self._stored: dict[m.ArtifactRef, float] = {}  # data of jobs that were placed, and when they were there
        self._sending: weakref.WeakValueDictionary[m.ArtifactRef, _Sending] = weakref.WeakValueDictionary()
        self._settlement: Settlement | None = None  # opened on the first payment: it loads a large library

    async def close(self) -> None:
        if self._settlement is not None:
            await self._settlement.close()
        await self.bus.close()

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

        A node that the job names by less than its id is looked up. Raises TermsMismatch or ApiError. Nothing is stored
        or paid.
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
        request = await self._with_node_id(request)
        info = self._info = self._info or await self.info()
        if again and _is_fresh(self._stored.get(request.dataset, -math.inf)):
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

    async def _with_node_id(self, request: m.JobRequest) -> m.JobRequest:
        """The job with the id of its node, where it names that."""
        called = request.needs.node_id
        if not called or request.sealed or re.fullmatch(NODE_ID, called):
            return request
        return replace(request, needs=replace(request.needs, node_id=await self.node_called(called)))

    async def place(self, prepared: Prepared, on_upload: Advance | None = None) -> m.SubmitReply:
        """Upload the data, sign the deposit, submit. Safe to call again: the same id, the same deposit.

        Another deposit is signed only when the chain proves that the first can never land. Raises DepositAlive when
        central calls that one expired and the chain does not.
        """
        await self._refuse_unaffordable(
            prepared.job.amount_base_units, prepared.quote.balance_base_units, "the job costs"
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

    async def has(self, job: "LoadedJob") -> bool:
        """Whether central has this job, which names its own id. Raises ApiError job_id_taken when another one has it.

        What is submitted once more is only looked at, so no deposit goes with it.
        """
        try:
            view = await self.job(job.job_id)
        except ApiError as error:
            if error.code != "unknown_job":
                raise
            return False
        if view.job_id != job.job_id:  # a longer id that begins like this one
            return False
        found = await asyncio.to_thread(artifacts.describe, job.data_path)
        request = await self._with_node_id(job.request(m.ArtifactRef(sha256=found.sha256, size=found.size)))
        await self._ask("job.submit", m.SubmitRequest(job=request, job_id=job.job_id), m.SubmitReply)
        return True

    async def afford(self, amount_base_units: int, what: str) -> None:
        """Raise InsufficientFunds unless the wallet holds what these jobs cost together."""
        request = m.WalletRequest(address=self.purse.address)
        wallet = await self._ask("wallet.balance", request, m.WalletReply)
        await self._refuse_unaffordable(amount_base_units, wallet.token_base_units, f"{what} cost")

    async def _refuse_unaffordable(self, amount_base_units: int, balance_base_units: int, what: str) -> None:
        if balance_base_units >= amount_base_units:
            return
        info = self._info or await self.info()
        remedy = "run: cyx wallet --faucet 100" if info.faucet else "send CYX to this address"
        raise InsufficientFunds(
            f"{what} {format_cyx(amount_base_units)} CYX, the wallet {self.purse.address} holds"
            f" {format_cyx(balance_base_units)} CYX; {remedy}"
        )

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
        sending = self._sending.get(expected)
        if sending is None:
            sending = self._sending[expected] = _Sending()
        before = sending.tries
        async with sending.turn:
            if sending.tries > before:  # while we waited
                if sending.why is not None:  # nobody answers us either
                    raise BusError(sending.why)
                if on_upload:
                    on_upload(expected.size, expected.size)
                return
            try:
                sent = await self.upload(path, on_upload)
            except BusError as error:
                sending.tries, sending.why = sending.tries + 1, str(error)
                raise
            if sent != expected:
                raise DataError(f"{path}: it changed after it was checked; nothing was paid, submit again")
            sending.tries, sending.why = sending.tries + 1, None
            self._stored = {each: at_s for each, at_s in self._stored.items() if _is_fresh(at_s)}
            self._stored[expected] = _now_s()

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


def _is_over(found: "TransactionStatus") -> bool:
    return found.state == "dead" or bool(found.finalized and found.err)


def _is_file_of(expected: m.ArtifactRef, path: Path) -> bool:
    found = artifacts.describe(path)
    return (found.sha256, found.size) == (expected.sha256, expected.size)


def _is_fresh(at_s: float) -> bool:
    return _now_s() - at_s < QUOTE_FRESH_S


def _now_s() -> float:
    return asyncio.get_running_loop().time()

"""The client: submit jobs, follow them, fetch models. AsyncClient here, the same without async in cyxnet.blocking.

async with await AsyncClient.connect(".cyx") as client:
    reply = await client.submit(jobfile.load("digits.toml"))
    async for update in client.watch(reply.job_id):
        print(update.kind, update.data)
    await client.download(reply.job_id, Path("digits.cyxmodel"))
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from types import TracebackType
from typing import Any

from msgspec.structs import replace

from cyxcore.errors import CyxError
from cyxnet import artifacts, envelope, identity, subjects
from cyxnet import messages as m
from cyxnet.artifacts import Advance
from cyxnet.bus import ApiError, Bus
from cyxnet.caller import RETRY_DELAYS_S, new_request_id
from cyxnet.codec import MAX_DEPTH_AROUND, MSGPACK, decode
from cyxnet.config import DEFAULT_FOLDER, SESSION_S, read_network
from cyxnet.credentials import as_client
from cyxnet.deployments import Deployments
from cyxnet.follow import ENDED, SOURCES, Merge, no_model
from cyxnet.submitting import DepositAlive, InsufficientFunds, Prepared, Submitter, TermsMismatch

__all__ = [
    "RETRY_DELAYS_S", "AsyncClient", "DepositAlive", "InsufficientFunds", "NoModel", "Prepared", "TermsMismatch",
]  # fmt: skip

MOST_JOBS_OF_A_PAGE = 1000  # that central takes in a JobListRequest
VERIFY_TIMEOUT_S = 900.0  # of a comparison that reads the whole log
RECONCILE_S = 5.0  # while updates arrive live, the log is compared this often
QUIET_S = (2.0, 4.0, 8.0, 10.0)  # and this often while nothing arrives
MOST_LIVE = 1_000  # updates that wait for whoever watches
LAST_KINDS = frozenset({"Settled", "FundFailed", "Refunded"})  # after these a job has ended; the log is asked at once


class NoModel(CyxError):
    """A job has no model to fetch. The message says why."""

    code = "no_model"


class AsyncClient(Submitter):
    """One caller on one network: what it knows of it, has done there, and follows."""

    def __init__(self, bus: Bus, keys: identity.Identity, caller: str, folder: Path | None = None):
        """folder: where jobs are kept that nobody answers for."""
        super().__init__(bus, keys, caller, folder)
        self.deployments = Deployments(self)

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

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # -- the network ------------------------------------------------------------------------------

    async def why(self, node_id: str) -> m.NodeWhyReply:
        """Why a node gets the jobs that it gets, and no others."""
        return await self._ask("node.why", m.NodeWhyRequest(node_id=node_id), m.NodeWhyReply)

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

    # -- following --------------------------------------------------------------------------------

    async def jobs(self, status: m.JobStatus | None = None, limit: int = 50, **filters: Any) -> m.JobList:
        """Newest first, page by page until there are `limit` of them. filters: name, node_id, mine, run, before and
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
        link lost, or for which there was no room, comes late, when the log is compared (after silence, and every
        RECONCILE_S).
        """
        job_id = (await self.job(job_id)).job_id  # a prefix would subscribe to nothing
        arrived: asyncio.Queue[m.Update] = asyncio.Queue()

        async def on_live(subject: str, payload: bytes, headers: dict[str, str]) -> None:
            if arrived.qsize() < MOST_LIVE:  # of who does not read on: the rest comes with a page
                kind = headers.get("Content-Type", MSGPACK)
                arrived.put_nowait(decode(m.Update, payload, kind, max_depth=MAX_DEPTH_AROUND))

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

    async def epochs(self, job_id: str) -> list[dict[str, Any]]:
        """The epochs of a job that have ended, in order: the fields of cyxcore.spec.EpochMetrics and `attempt`.

        Of one that was trained again by a later attempt, the later one.
        """
        job_id = (await self.job(job_id)).job_id
        merge, found, more = Merge(), dict[int, dict[str, Any]](), True
        while more:
            page = await self._page(job_id, merge)
            for update in merge.page(page.updates):
                if update.kind == "epoch":
                    old = found.get(update.data["epoch"], update.data)
                    found[update.data["epoch"]] = max(old, update.data, key=lambda epoch: epoch["attempt"])
            more = page.more
        return [found[epoch] for epoch in sorted(found)]

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
            raise NoModel(no_model(view))
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


def _now_s() -> float:
    return asyncio.get_running_loop().time()

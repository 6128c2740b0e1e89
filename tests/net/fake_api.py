"""A central with as little inside as a client can tell: it answers on a real broker and a real chain.

Tests decide what happens to a job with emit(), and when an answer is withheld.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.artifacts import CHUNK_BYTES
from cyxnet.bus import ApiError, Bus, BusError
from cyxnet.codec import JSON, encode
from cyxnet.escrow import LOCAL_PROGRAM, escrow_terms, split
from cyxnet.solana import Settlement
from cyxnet.wallet import Wallet

FEE_BASIS_POINTS = 1000
NODE = m.NodeView(
    node_id="node-1-0123456789",
    name="node-1",
    online=True,
    reputation=50.0,
    hardware=m.Hardware(cores=2, memory_bytes=8 * 10**9, memory_free_bytes=4 * 10**9),
    active_jobs=[],
    jobs_completed=3,
    jobs_failed=1,
    last_seen_ms=0,
    wallet=Wallet(bytes([7]) * 32).address,
)


class FakeCentral:
    """Jobs by id: what was submitted, what happened, and how it stands."""

    def __init__(self, bus: Bus, settlement: Settlement | None = None, mint: str = ""):
        self.explained: m.ExplainReply | None = None
        self.bus = bus
        self.settlement = settlement
        self.authority = Wallet(bytes([1]) * 32)
        self.platform = Wallet(bytes([2]) * 32).address
        self.mint = mint or Wallet(bytes([3]) * 32).address
        self.submitted: dict[str, m.SubmitRequest] = {}
        self.offered: list[m.SubmitRequest] = []  # what was refused too
        self.faucet_asked: list[m.FaucetRequest] = []
        self.before_submit: Callable[[m.SubmitRequest], None] | None = None
        self.updates: dict[str, list[m.Update]] = {}
        self.status: dict[str, m.JobStatus] = {}
        self.views: dict[str, m.JobView] = {}
        self.chunks: dict[str, bytes] = {}
        self.manifests: dict[str, m.ArtifactManifest] = {}
        self.asked: Counter[str] = Counter()
        self.page_limit = 1000
        self.same_ms = 0  # jobs of the millisecond that a first page of jobs ends with, beyond its limit
        self.fee_offered = FEE_BASIS_POINTS
        self.deadline_s = 2_000_000_000  # beyond what the program takes
        self.program = LOCAL_PROGRAM
        self.balance_base_units = 0  # without a chain
        self.lamports = 0
        self.blockhash = ("", 0)  # and until when it is good; as long as it is empty, clients ask the chain
        self.node = NODE
        self.before_page: Callable[[str], Awaitable[None]] | None = None
        self.answers_lost: Counter[str] = Counter()  # verb -> how many answers never arrive
        self._seq = Counter({"event": 100, "telemetry": 5000})  # positions of a stream with other jobs in it

    async def serve(self) -> None:
        verbs = {
            "network.info": self._info,
            "job.quote": self._quote,
            "job.submit": self._submit,
            "job.status": self._job,
            "job.list": self._jobs,
            "job.updates": self._updates,
            "job.cancel": self._job,
            "job.priority": self._priority,
            "job.explain": self._explain,
            "node.list": self._nodes,
            "wallet.balance": self._balance,
            "wallet.faucet": self._faucet,
            "ledger.query": self._ledger,
            "artifact.stat": self._stat,
            "artifact.put": self._put,
            "artifact.commit": self._commit,
            "artifact.manifest": self._manifest,
            "artifact.chunk": self._chunk,
        }
        await self.bus.serve("0.0.0", "a fake", {name: self._counted(name, verbs[name]) for name in verbs})

    def _counted(self, verb: str, handler: Any) -> Any:
        async def answer(caller: str, request: Any) -> Any:
            self.asked[verb] += 1
            reply = await handler(request)
            if self.answers_lost[verb] > 0:
                self.answers_lost[verb] -= 1
                raise BusError("the log did not answer in time")  # a 503 for the caller; the deed is done
            return reply

        return answer

    # -- what a test does ------------------------------------------------------------------------------

    def add_job(self, job_id: str) -> str:
        self.updates[job_id], self.status[job_id] = [], "queued"
        return job_id

    async def emit(
        self, job_id: str, kind: str, data: dict[str, Any], source: str = "event", *, live: bool = True
    ) -> m.Update:
        """Something happens to a job; with live=False its live message is lost."""
        self._seq[source] += 3
        update = m.Update(
            job_id=job_id,
            source=source,  # type: ignore[arg-type]
            seq=self._seq[source],
            at_ms=1_700_000_000_000 + self._seq[source],
            kind=kind,
            data=data,
        )
        self.updates[job_id].append(update)
        if live:
            await self.publish(update)
        return update

    async def publish(self, update: m.Update) -> None:
        await self.bus.publish(subjects.update(update.job_id), encode(update, JSON), JSON)

    async def end(self, job_id: str, status: m.JobStatus = "completed", *, live: bool = True) -> m.Update:
        self.status[job_id] = status
        shares = {"node_base_units": 9, "platform_base_units": 1, "client_base_units": 0}
        return await self.emit(job_id, "Settled", {"signature": "s" * 88, **shares}, live=live)

    def store(self, content: bytes) -> m.ArtifactRef:
        blocks = [content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES)]
        digests = [hashlib.sha256(block).hexdigest() for block in blocks]
        self.chunks |= dict(zip(digests, blocks, strict=True))
        sha256 = hashlib.sha256(content).hexdigest()
        self.manifests[sha256] = m.ArtifactManifest(sha256=sha256, size=len(content), chunks=digests)
        return m.ArtifactRef(sha256=sha256, size=len(content))

    # -- verbs -----------------------------------------------------------------------------------------

    async def _info(self, _: m.NetworkInfoRequest) -> m.NetworkInfo:
        return m.NetworkInfo(
            network_id="fake",
            version="0.0.0",
            chain_url=self.settlement.url if self.settlement else "",
            mint=self.mint,
            decimals=9,
            authority=self.authority.address,
            platform=self.platform,
            fee_basis_points=FEE_BASIS_POINTS,
            faucet=self.settlement is not None,
            custodial_wallets=False,
            chunk_bytes=CHUNK_BYTES,
            nodes_online=1,
            program=self.program,
        )

    async def _quote(self, ask: m.QuoteRequest) -> m.Quote:
        assert ask.job_id and ask.client
        terms = self._terms(ask.job_id, ask.client, ask.job.amount_base_units)
        node, platform = split(ask.job.amount_base_units, FEE_BASIS_POINTS)
        return m.Quote(
            job_id=ask.job_id,
            terms=terms,
            node_base_units=node,
            platform_base_units=platform,
            balance_base_units=await self._tokens(ask.client),
            lamports=self.lamports,
            blockhash=self.blockhash[0],
            last_valid_block_height=self.blockhash[1],
            memory_bytes=1,
            flops_per_epoch=1,
            parameters=1,
            eligible_nodes=1,
        )

    def _terms(self, job_id: str, client: str, amount_base_units: int) -> m.EscrowTerms:
        return escrow_terms(
            job_id=job_id,
            mint=self.mint,
            authority=self.authority.address,
            client=client,
            platform=self.platform,
            amount_base_units=amount_base_units,
            fee_basis_points=self.fee_offered,
            program=self.program,
            deadline_s=self.deadline_s,
        )

    async def _submit(self, ask: m.SubmitRequest) -> m.SubmitReply:
        assert ask.job_id and ask.payment
        self.offered.append(ask)
        if self.before_submit:
            self.before_submit(ask)
        if ask.job.dataset.sha256 not in self.manifests:
            raise ApiError("unknown_artifact", "the dataset is not here", 404)
        duplicate = ask.job_id in self.submitted
        if duplicate and self.submitted[ask.job_id] != ask:
            raise ApiError("job_id_taken", "another job has this id", 409)
        self.submitted[ask.job_id] = ask
        if not duplicate:
            self.add_job(ask.job_id)
        quote = await self._quote(m.QuoteRequest(job=ask.job, job_id=ask.job_id, client=ask.payment.client))
        return m.SubmitReply(job_id=ask.job_id, status="funding", terms=quote.terms, duplicate=duplicate)

    async def _job(self, ask: Any) -> m.JobView:
        found = [job_id for job_id in self.status if job_id.startswith(ask.job_id)]
        if len(found) != 1:
            code, status = ("unknown_job", 404) if not found else ("ambiguous_job", 409)
            raise ApiError(code, f"{len(found)} jobs start with {ask.job_id}; see: cyx jobs", status)
        return self.view(found[0])

    async def _priority(self, ask: m.PriorityRequest) -> m.JobView:
        view = await self._job(ask)
        self.views[view.job_id] = msgspec.structs.replace(view, priority=ask.priority)
        return self.view(view.job_id)

    def view(self, job_id: str) -> m.JobView:
        plain = m.JobView(
            job_id=job_id,
            name=job_id,
            status=self.status[job_id],
            client=NODE.wallet,
            amount_base_units=10,
            attempt=1,
            max_attempts=3,
            submitted_at_ms=int(time.time() * 1000),
            terms=self._terms(job_id, NODE.wallet, 10),
        )
        return msgspec.structs.replace(self.views.get(job_id, plain), status=self.status[job_id])

    async def _jobs(self, ask: m.JobListRequest) -> m.JobList:
        assert 1 <= ask.limit <= 1000 and ask.node_id in (None, self.node.node_id)
        views = [
            self.view(job_id)
            for job_id in self.status
            if ask.status in (None, self.status[job_id]) and (ask.run is None or job_id.endswith(f"-{ask.run}"))
        ]
        ids = [view.job_id for view in views]
        begin = ids.index(ask.before_id) + 1 if ask.before_id else 0
        end = begin + min(ask.limit, self.page_limit) + (0 if ask.before_id else self.same_ms)
        return m.JobList(jobs=views[begin:end], total=len(views), more=end < len(views))

    async def _updates(self, ask: m.UpdatesRequest) -> m.Updates:
        after = {"event": ask.after_event, "telemetry": ask.after_telemetry}
        later = [update for update in self.updates[ask.job_id] if update.seq > after[update.source]]
        status = self.status[ask.job_id]
        if self.before_page:
            await self.before_page(ask.job_id)
        return m.Updates(updates=later[: self.page_limit], more=len(later) > self.page_limit, status=status)

    async def _explain(self, ask: m.JobRef) -> m.ExplainReply:
        terms = {"queue": {"value": 1.0, "weight": 0.25}}
        decision = {"attempt": 1, "node_id": NODE.node_id, "score": 0.25, "terms": terms}
        said = m.ExplainReply(job_id=ask.job_id, status="leased", decisions=[decision], waiting_for="node-1")
        return self.explained or said

    async def _nodes(self, _: m.NodeListRequest) -> m.NodeList:
        return m.NodeList(nodes=[self.node])

    async def _tokens(self, address: str) -> int:
        if self.settlement is None:
            return self.balance_base_units
        return await self.settlement.token_balance(address, self.mint)

    async def _balance(self, ask: m.WalletRequest) -> m.WalletReply:
        assert ask.address
        lamports = await self.settlement.sol_balance(ask.address) if self.settlement else 0
        tokens = await self._tokens(ask.address)
        return m.WalletReply(address=ask.address, token_base_units=tokens, lamports=lamports, custodial=False)

    async def _faucet(self, ask: m.FaucetRequest) -> m.FaucetReply:
        if self.settlement is None:
            raise ApiError("no_faucet", "this network gives no test money", 403)
        assert ask.address
        self.faucet_asked.append(ask)
        await self.settlement.airdrop(ask.address, ask.lamports)
        signature = await self.settlement.faucet(self.authority, self.mint, ask.address, ask.amount_base_units)
        return m.FaucetReply(
            address=ask.address,
            signature=signature,
            token_base_units=await self._tokens(ask.address),
            lamports=ask.lamports,
        )

    async def _ledger(self, ask: m.LedgerRequest) -> m.LedgerReply:
        return m.LedgerReply(columns=["job_id", "loss"], rows=[["a", 0.5], ["b", None]], truncated=False)

    async def _stat(self, ask: m.ArtifactManifest) -> m.ArtifactStatReply:
        missing = [digest for digest in ask.chunks if digest not in self.chunks]
        return m.ArtifactStatReply(complete=ask.sha256 in self.manifests, missing=missing)

    async def _put(self, block: bytes) -> m.ChunkReply:
        digest = hashlib.sha256(block).hexdigest()
        self.chunks[digest] = block
        return m.ChunkReply(sha256=digest, size=len(block))

    async def _commit(self, ask: m.ArtifactManifest) -> m.ArtifactRef:
        self.manifests[ask.sha256] = ask
        return m.ArtifactRef(sha256=ask.sha256, size=ask.size)

    async def _manifest(self, ask: m.ArtifactRefRequest) -> m.ArtifactManifest:
        return self.manifests[ask.sha256]

    async def _chunk(self, ask: m.ArtifactRefRequest) -> bytes:
        return self.chunks[ask.sha256]

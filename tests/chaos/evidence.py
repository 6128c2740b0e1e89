"""What can be known after a round: the log, the chain, the ledgers, the artifacts, the processes that are left."""

import asyncio
import hashlib
from pathlib import Path
from unittest import mock

from msgspec import Struct

from cyxcentral.blobs import Blobs
from cyxcentral.ledger import Ledger
from cyxcore.errors import CyxError
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.bus import Bus
from cyxnet.client import AsyncClient
from cyxnet.codec import MSGPACK, BadMessage, decode
from cyxnet.outcomes import Stored
from cyxnet.solana import HistoryEntry, Settlement
from tests.chaos.faults import Harm
from tests.chaos.fleet import Fleet, Restart
from tests.chaos.load import Load, Told
from tests.chaos.proxy import pause

LEDGER_PATIENCE_S = 30.0
WHOLE_TABLE_S = 120.0  # nobody waits for these questions, and the machine may be busy
LEAVING_S = 10.0  # a training process whose agent was killed notices within seconds
POLL_S = 0.1
FACTS = ("nodes", "jobs", "events", "entries")  # tables that follow from the log alone


class Entry(Struct, frozen=True, kw_only=True):
    """One message of the log. record is None when it cannot be read."""

    seq: int
    subject: str
    sha256: str
    record: m.Record | None

    @property
    def about(self) -> str:
        return subjects.last_token(self.subject)


class LedgerFacts(Struct, frozen=True, kw_only=True):
    """One central's ledger, when that central had read everything. Metrics are hashed apart: see the checker."""

    content_hash: str
    metrics_hash: str
    balances: dict[str, int]  # account -> base units
    statuses: dict[str, str]  # job id -> status


class Evidence(Struct, kw_only=True):
    """Everything the checker looks at."""

    log: list[Entry]
    watched: dict[int, str]  # sequence -> digest, as it was read while everything was being killed
    last_seq: int
    told: list[Told]
    asked: dict[str, m.JobRequest]
    escrows: dict[str, list[HistoryEntry]]  # job id -> what the chain knows of its escrow, newest first
    balances: dict[str, int]  # account -> base units, as the chain says
    ledgers: dict[str, LedgerFacts]  # of each central, and "rebuilt"
    artifacts: dict[str, str]  # digest -> what is wrong with it; empty when nothing is
    left_behind: list[str] = []
    restarts: list[Restart] = []
    harms: list[Harm] = []
    names: dict[str, str] = {}  # node id -> its part


class Watcher:
    """Reads the log from its first event, over a connection of its own, through every kill of the broker."""

    def __init__(self, bus: Bus):
        self.bus = bus
        self.log: list[Entry] = []
        self.rewound_to: int | None = None
        self.live: dict[str, m.Leased] = {}  # job id -> the lease that is open now
        self.open: set[str] = set()  # jobs that have not ended
        self.grew = asyncio.Event()

    @classmethod
    async def start(cls, url: str) -> "Watcher":
        watcher = cls(await Bus.connect(url, name="chaos-watcher"))
        await watcher.bus.follow(
            subjects.EVENTS, subjects.EVENT_SUBJECTS, 0, watcher._take, lambda seq: setattr(watcher, "rewound_to", seq)
        )
        return watcher

    async def _take(self, stored: Stored) -> None:
        entry = entry_of(stored)
        self.log.append(entry)
        event = entry.record.event if entry.record else None
        if isinstance(event, m.Leased):
            self.live[entry.about] = event
        elif isinstance(event, m.LeaseLost | m.Completed | m.CancelRequested | m.FundFailed):
            self.live.pop(entry.about, None)
        if isinstance(event, m.Submitted):
            self.open.add(entry.about)
        elif isinstance(event, m.Settled | m.FundFailed | m.Refunded):
            self.open.discard(entry.about)
        self.grew.set()

    def leased_nodes(self) -> list[str]:
        return sorted({lease.node_id for lease in self.live.values()})


def entry_of(stored: Stored) -> Entry:
    record: m.Record | None
    try:
        record = decode(m.Record, stored.payload, MSGPACK, max_bytes=2**31)
    except BadMessage:
        record = None
    digest = hashlib.sha256(stored.payload).hexdigest()
    return Entry(seq=stored.seq, subject=stored.subject, sha256=digest, record=record)


async def read_log(bus: Bus) -> tuple[list[Entry], int]:
    """The whole log, read anew, and the sequence of its last message."""
    last_seq, entries, done = await bus.last_seq(subjects.EVENTS), [], asyncio.Event()

    async def take(stored: Stored) -> None:
        entries.append(entry_of(stored))
        if stored.seq >= last_seq:
            done.set()

    await bus.follow(subjects.EVENTS, subjects.EVENT_SUBJECTS, 0, take, lambda seq: done.set())
    async with asyncio.timeout(60):
        await done.wait()
    return [entry for entry in entries if entry.seq <= last_seq], last_seq


async def gather(fleet: Fleet, load: Load, watcher: Watcher, harms: list[Harm]) -> Evidence:
    """End nodes and centrals, and collect. Broker and chain still run afterwards."""
    names = {str(member.said.get("node_id")): name for name, member in fleet.members.items()}
    await fleet.stop(*(name for name in fleet.members if name.startswith("node-")))
    await fleet.stop("central-a", "central-b")
    bus = await Bus.connect(fleet.file.core_url, name="chaos-evidence")
    try:
        ledgers = await read_ledgers(fleet, bus)
        log, last_seq = await read_log(bus)
        artifacts = await check_artifacts(bus, log)
    finally:
        await bus.close()
    async with Settlement(fleet.file.chain_url) as chain:
        escrows, balances = await ask_chain(chain, log)
    return Evidence(
        log=log,
        watched={entry.seq: entry.sha256 for entry in watcher.log},
        last_seq=last_seq,
        told=load.told,
        asked=load.asked,
        escrows=escrows,
        balances=balances,
        ledgers=ledgers,
        artifacts=artifacts,
        restarts=fleet.restarts,
        harms=harms,
        names=names,
    )


async def read_ledgers(fleet: Fleet, bus: Bus) -> dict[str, LedgerFacts]:
    """Each central alone on its ledger until it has read both streams; then a central that begins without one."""
    found = {}
    places = {name: fleet.folder / name / "central" for name in ("central-a", "central-b")}
    for name, state in (*places.items(), ("rebuilt", fleet.folder / "rebuilt")):
        await fleet.run_alone(name, state, lambda: _caught_up(fleet, bus))
        found[name] = await asyncio.to_thread(lambda path: asyncio.run(_facts(path)), state / "ledger.duckdb")
    return found


async def _caught_up(fleet: Fleet, bus: Bus) -> None:
    """Wait until the only central has written the last message of both streams to its ledger."""
    wanted = {name: await bus.last_seq(name) for name in (subjects.EVENTS, subjects.TELEMETRY)}
    async with await AsyncClient.connect(fleet.folder / "checker", url=fleet.file.client_url) as client:
        async with asyncio.timeout(LEDGER_PATIENCE_S):
            never = asyncio.Event()
            while dict((await client.ledger("select stream, seq from position")).rows) != wanted:
                await pause(POLL_S, never)


async def _facts(path: Path) -> LedgerFacts:
    with mock.patch("cyxcentral.ledger.QUERY_TIMEOUT_S", WHOLE_TABLE_S):
        return await _facts_of(Ledger(path))


async def _facts_of(ledger: Ledger) -> LedgerFacts:
    try:
        balances = await ledger.query("select account, sum(amount_base_units)::BIGINT from entries group by 1", 100_000)
        statuses = await ledger.query("select job_id, status from jobs", 100_000)
        return LedgerFacts(
            content_hash=await _hash(ledger, FACTS),
            metrics_hash=await _hash(ledger, ("metrics",)),
            balances=dict(balances.rows),
            statuses=dict(statuses.rows),
        )
    finally:
        await ledger.close()


async def _hash(ledger: Ledger, tables: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for table in tables:
        for row in (await ledger.query(f"select * from {table} order by 1, 2", 10_000_000)).rows:
            digest.update(repr((table, row)).encode())
    return digest.hexdigest()


async def check_artifacts(bus: Bus, log: list[Entry]) -> dict[str, str]:
    """Fetch everything the log names: data, weights, models, checkpoints."""
    blobs, found = Blobs(bus), {}
    refs: dict[str, int] = {}
    for entry in log:
        event = entry.record.event if entry.record else None
        if isinstance(event, m.Submitted):
            refs[event.job.dataset.sha256] = event.job.dataset.size
        elif isinstance(event, m.Completed):
            refs[event.model.sha256] = event.model.size
        elif checkpoint := getattr(event, "checkpoint", None):
            refs[checkpoint.state.sha256] = checkpoint.state.size
    for sha256, size in refs.items():
        whole, length = hashlib.sha256(), 0
        try:
            for digest in (await blobs.manifest(sha256)).chunks:
                block = await blobs.chunk(digest)
                whole.update(block)
                length += len(block)
            wrong = whole.hexdigest() != sha256 or length != size
            found[sha256] = f"{length} bytes with digest {whole.hexdigest()}" if wrong else ""
        except CyxError as error:
            found[sha256] = str(error)
    return found


async def ask_chain(chain: Settlement, log: list[Entry]) -> tuple[dict[str, list[HistoryEntry]], dict[str, int]]:
    """The history of every job's escrow, and what every wallet holds."""
    escrows: dict[str, list[HistoryEntry]] = {}
    wallets: set[str] = set()
    mint = ""
    for entry in log:
        match entry.record.event if entry.record else None:
            case m.Submitted(terms=terms):
                escrows[terms.job_id] = await chain.escrow_history(terms)
                wallets |= {terms.client, terms.platform}
                mint = terms.mint
            case m.Leased(wallet=wallet) | m.Minted(to=wallet):
                wallets.add(wallet)
    balances = {f"wallet:{wallet}": await chain.token_balance(wallet, mint) for wallet in sorted(wallets)}
    return escrows, balances | {"supply": -await chain.token_supply(mint)}


async def left_behind(fleet: Fleet) -> list[str]:
    """Processes that are still there when all is closed; those on their way out are given a moment."""
    never, deadline_s = asyncio.Event(), asyncio.get_running_loop().time() + LEAVING_S
    while (processes := fleet.processes()) and asyncio.get_running_loop().time() < deadline_s:
        await pause(POLL_S, never)
    return [f"{process.pid} {process.name()}" for process in processes]

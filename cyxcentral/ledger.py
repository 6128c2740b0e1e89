"""The ledger: what the log says, as tables one can ask. Central's only door to DuckDB.

A projection: it can be deleted and is rebuilt from the streams to the same `content_hash`. One thread owns the
connection; rows are written in batches, in one transaction together with the positions they bring the ledger to.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import math
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import duckdb
import msgspec

from cyxcentral import columns, jobs, money, nodes
from cyxcore.errors import CyxError
from cyxnet import messages as m
from cyxnet.follow import by_time
from cyxnet.subjects import TELEMETRY, last_token

log = logging.getLogger(__name__)
T = TypeVar("T")

FLUSH_AFTER_S = 1.0
FLUSH_LATEST_S = 5.0  # also while many ask: rows of a large batch cost half of those of a small one
RETRY_AFTER_S = 1.0
BATCH_MESSAGES = 20_000  # waiting: then they are written at once
MAX_WAITING_MESSAGES = 2 * BATCH_MESSAGES  # then whoever reads a long log waits until a batch is written
ROWS_AT_ONCE = 1_000  # made and handed over to DuckDB: for that, and for nothing else, the others wait
LONG_LOG_ROWS_AT_ONCE = 5_000  # while nobody is served; still more would leave the processor's cache
MAX_UNWRITTEN_MESSAGES = 1_000_000  # while DuckDB refuses them; more would fill the memory
PAGE_BYTES = 400_000  # of each source in one page of updates: two of them fit a message with room to spare
QUERY_TIMEOUT_S = 3.0  # below what a caller waits for an answer
DATABASE: dict[str, Any] = {
    "memory_limit": "512MB",
    "threads": 1,
    # A checkpoint writes every index anew, however little has changed. So long its own log may grow before that; after
    # kill -9 the next start reads as much of it again, which takes half a second.
    "checkpoint_threshold": "128MB",
}

TABLES = {
    "nodes": """node_id VARCHAR PRIMARY KEY, name VARCHAR, online BOOLEAN, wallet VARCHAR, public_key VARCHAR,
        session VARCHAR, region VARCHAR, cores INTEGER, memory_bytes BIGINT, gpus INTEGER, reputation DOUBLE,
        jobs_completed INTEGER, jobs_failed INTEGER, registered_at_ms BIGINT, changed_at_ms BIGINT""",
    "jobs": """job_id VARCHAR PRIMARY KEY, name VARCHAR, client VARCHAR, caller VARCHAR, status VARCHAR,
        amount_base_units BIGINT, node_id VARCHAR, attempt INTEGER, max_attempts INTEGER, error VARCHAR,
        model_sha256 VARCHAR, model_bytes BIGINT, deposit_signature VARCHAR, settle_signature VARCHAR,
        node_base_units BIGINT, platform_base_units BIGINT, client_base_units BIGINT, final_loss DOUBLE,
        final_accuracy DOUBLE, validation_loss DOUBLE, validation_accuracy DOUBLE, best_epoch BIGINT,
        total_time_ms DOUBLE, submitted_at_ms BIGINT, changed_at_ms BIGINT, ended_at_ms BIGINT""",
    "events": """seq BIGINT, subject VARCHAR, about VARCHAR, kind VARCHAR, at_ms BIGINT, "by" VARCHAR,
        data VARCHAR""",
    "metrics": """seq BIGINT, at_ms BIGINT, node_id VARCHAR, job_id VARCHAR, attempt INTEGER,
        kind VARCHAR, epoch BIGINT, step BIGINT, loss DOUBLE, accuracy DOUBLE, validation_loss DOUBLE,
        validation_accuracy DOUBLE, samples_per_s DOUBLE, data VARCHAR""",
    "entries": """seq BIGINT, line INTEGER, job_id VARCHAR, account VARCHAR, amount_base_units BIGINT, at_ms BIGINT""",
}  # Without keys where nothing is replaced: the position, in the same transaction, keeps a row from coming twice.
UPSERTED = ("nodes", "jobs")
FORMATS = {  # in which DuckDB is given the values of a column; it makes narrower numbers and truth values of them
    "VARCHAR": columns.VARCHAR,
    "DOUBLE": columns.DOUBLE,
    "BIGINT": columns.BIGINT,
    "INTEGER": columns.BIGINT,
    "BOOLEAN": columns.BIGINT,
}
COLUMNS = {
    table: {name.strip('"'): FORMATS[kind] for name, kind, *_ in map(str.split, re.split(r",\s+", declared))}
    for table, declared in TABLES.items()
}
POSITION = "stream VARCHAR PRIMARY KEY, seq BIGINT, sha256 VARCHAR"
# After these DuckDB refuses everything until its file is opened anew. What it was told to commit may be in there (when
# the disk fills up while it makes a checkpoint), so the position in the file is what counts: a new start reads it.
INVALIDATING = (duckdb.FatalException, duckdb.InternalException)


class Quarantined(NamedTuple):
    """What stands in events for a message that counts for nothing: no record, but what was wrong with it, as JSON."""

    data: str
    at_ms: int = 0
    by: str = ""


QUARANTINED = Quarantined.__name__  # kind of its row


class LedgerError(CyxError):
    """The ledger cannot be opened, or a question cannot be answered."""

    code = "bad_ledger"


class LedgerBehind(LedgerError):
    """The ledger cannot be written now, and tells nothing meanwhile. Those of other centrals may be well.

    why: for the log of this central; its callers need not know where its files are.
    """

    code = "ledger_behind"
    status = 503

    def __init__(self, why: str):
        super().__init__("this central cannot write its ledger now; ask again: another one may answer")
        self.why = why


class Sums(msgspec.Struct, frozen=True):
    """What the entries come to. accounts and overdrawn: only when all of them were asked for, without zeros."""

    events: int  # that move money
    unbalanced: list[tuple[int, int]]  # events whose entries do not sum to zero, and what they sum to
    escrows: dict[str, int]  # escrow accounts that are not empty
    accounts: dict[str, int] = {}
    overdrawn: dict[str, int] = {}  # escrow accounts that were below zero at some time: the lowest


class Batch:
    """What waits to be written: all of it in one transaction, or none.

    Of most things it holds what their rows are made of; the rows are made when they are written (see MAKE).
    """

    def __init__(self) -> None:
        self.added: dict[str, list[tuple[Any, ...]]] = {table: [] for table in TABLES if table not in UPSERTED}
        self.changed: dict[str, dict[str, Any]] = {table: {} for table in UPSERTED}  # by key: its newest state
        self.positions: dict[str, tuple[int, str]] = {}  # by stream: sequence and hash of its last message
        self.messages = 0
        self.forget_after: int | None = None  # metrics beyond this sequence are no longer in the stream

    def followed_by(self, later: "Batch") -> "Batch":
        """Both as one, when this one could not be written before the other began."""
        if later.forget_after is not None:
            self.added["metrics"] = [metric for metric in self.added["metrics"] if metric[0] <= later.forget_after]
            limits = [later.forget_after, self.forget_after]
            self.forget_after = min(limit for limit in limits if limit is not None)
        for table, added in later.added.items():
            self.added[table] += added
        for table, changed in later.changed.items():
            self.changed[table] |= changed
        self.positions |= later.positions
        self.messages += later.messages
        return self


class Ledger:
    """Tables nodes, jobs, events, metrics and entries in one DuckDB file."""

    def __init__(self, path: Path):
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = duckdb.connect(str(path), config=DATABASE)
            self._create_tables()
            self._db.execute("SET enable_progress_bar = false")  # it would be drawn over what central prints
            # Questions come from outside: no file, no extension, no setting may be reached by SQL.
            self._db.execute("SET enable_external_access = false")
            self._db.execute("SET lock_configuration = true")
        except (duckdb.Error, OSError) as error:
            raise LedgerError(
                f"{path}: cannot be opened ({_first_line(error)}); is another central using it? "
                "If it is damaged, delete it: it is rebuilt from the log"
            ) from None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._askers = ThreadPoolExecutor(2, thread_name_prefix="ledger-query")  # a slow question delays no write
        self._waiting = Batch()
        self._flush_due: asyncio.TimerHandle | None = None
        self._flushing: set[asyncio.Task[None]] = set()
        self.failing = False  # whether DuckDB refused to write, the last time
        self._writing = asyncio.Lock()
        self.rows_at_once = ROWS_AT_ONCE
        self.busy: Callable[[], bool] = lambda: False  # whether so many wait for answers that rows may wait for them
        self.broken: asyncio.Future[str] = asyncio.Future()  # done when it cannot be written for long

    def _create_tables(self) -> None:
        """Make the tables. A file whose tables have another shape is emptied: it is rebuilt from the streams."""
        tables = TABLES | {"position": POSITION, "shape": "sha256 VARCHAR"}
        kinds = sorted(kind.__name__ for kind in get_args(m.AnyEvent))  # a newer version may take in what was unknown
        shape = hashlib.sha256(repr((sorted(tables.items()), kinds)).encode()).hexdigest()
        there = {row[0] for row in self._db.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        if there and ("shape" not in there or self._db.execute("FROM shape").fetchall() != [(shape,)]):
            log.warning("%s has tables of another version: it is rebuilt from the log", self.path)
            for table in there:
                self._db.execute(f'DROP TABLE "{table}"')
            there = set()
        if not there:
            self._db.execute("BEGIN")
            for table, columns in tables.items():
                self._db.execute(f"CREATE TABLE {table} ({columns})")
            self._db.execute("INSERT INTO shape VALUES (?)", [shape])
            self._db.execute("COMMIT")

    def position(self, stream: str) -> int:
        """Sequence of the last message of `stream` that is stored here. Rows may be on their way meanwhile."""
        return self.place(stream)[0]

    def place(self, stream: str) -> tuple[int, str]:
        """position(), and the SHA-256 (hex) of the message there (empty where none is kept)."""
        with self._db.cursor() as cursor:  # the connection itself refuses while its thread writes
            row = cursor.execute("SELECT seq, sha256 FROM position WHERE stream = ?", [stream]).fetchone()
        return (int(row[0]), row[1]) if row else (0, "")

    # -- writing -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def filled(self) -> Iterator[None]:
        """While a long log is read, and nobody is served yet: rows are handed over in larger blocks.

        Each block waits for Python's lock some times, for 5 ms each while the log is taken in.
        """
        self.rows_at_once = LONG_LOG_ROWS_AT_ONCE
        try:
            yield
        finally:
            self.rows_at_once = ROWS_AT_ONCE

    def add_event(self, stream: str, seq: int, subject: str, record: m.Record, sha256: str = "") -> None:
        """sha256: of the message, for the next start to compare with."""
        self._waiting.added["events"].append((seq, subject, record))
        self._moved(stream, seq, sha256)

    def add_quarantined(self, stream: str, seq: int, subject: str, why: str, sha256: str) -> None:
        """A message that counts for nothing: what was wrong with it is all that is kept of it here."""
        data = json.dumps({"reason": why, "sha256": sha256})
        self._waiting.added["events"].append((seq, subject, Quarantined(data)))
        self._moved(stream, seq, sha256)

    def add_entries(self, seq: int, job_id: str, entries: list[money.Entry], at_ms: int) -> None:
        assert sum(entry.amount_base_units for entry in entries) == 0, f"event {seq} does not balance"
        for line, entry in enumerate(entries):
            self._waiting.added["entries"].append((seq, line, job_id, entry.account, entry.amount_base_units, at_ms))

    def add_telemetry(self, stream: str, seq: int, record: m.TelemetryRecord, sha256: str = "") -> None:
        """sha256: of the message, for the next start to compare with."""
        self._waiting.added["metrics"].append((seq, record))
        self._moved(stream, seq, sha256)

    def telemetry_rewound(self, last_seq: int) -> None:
        """The broker lost what came after `last_seq`, and gives its sequences to others, or has done so."""
        waiting = self._waiting
        waiting.added["metrics"] = [metric for metric in waiting.added["metrics"] if metric[0] <= last_seq]
        waiting.forget_after = last_seq if waiting.forget_after is None else min(waiting.forget_after, last_seq)
        self._moved(TELEMETRY, last_seq)

    def put_job(self, job: jobs.Job) -> None:
        self._waiting.changed["jobs"][job.job_id] = job

    def put_node(self, node: nodes.Node) -> None:
        self._waiting.changed["nodes"][node.node_id] = node

    def _moved(self, stream: str, seq: int, sha256: str = "") -> None:
        waiting = self._waiting
        waiting.positions[stream] = (seq, sha256)
        waiting.messages += 1
        if self._flush_due is None:
            self._flush_in(FLUSH_AFTER_S)
        elif waiting.messages == BATCH_MESSAGES:
            self._flush_due.cancel()
            self._start_flush()

    async def room(self) -> None:
        """Wait while as much waits to be written as the memory should hold. Not for a disk that refuses it."""
        while self._waiting.messages >= MAX_WAITING_MESSAGES and not self.failing:
            with contextlib.suppress(LedgerBehind):  # it is tried again, and said then
                await self.flush()

    def _flush_in(self, delay_s: float) -> None:
        if self._flush_due is None:
            loop = asyncio.get_running_loop()
            self._flush_due = loop.call_later(delay_s, self._flush_or_wait, loop.time() + FLUSH_LATEST_S)

    def _flush_or_wait(self, latest_s: float) -> None:
        """Begin to write, or look again soon when callers wait: rows that nobody asks for make nobody wait."""
        loop = asyncio.get_running_loop()
        if self.busy() and loop.time() + FLUSH_AFTER_S <= latest_s:
            self._flush_due = loop.call_later(FLUSH_AFTER_S, self._flush_or_wait, latest_s)
        else:
            self._start_flush()

    def _start_flush(self) -> None:
        async def try_to_flush() -> None:
            try:
                await self.flush()
            except LedgerBehind as error:
                log.warning("%s; will try again in %g s", error.why, RETRY_AFTER_S)

        task = asyncio.get_running_loop().create_task(try_to_flush())
        self._flushing.add(task)
        task.add_done_callback(self._flushing.discard)

    async def flush(self) -> None:
        """Write what was added before the call, and wait for writes that are under way.

        Raises LedgerBehind when DuckDB refuses: then nothing was written, and all of it is written later.
        """
        if self._flush_due is not None:
            self._flush_due.cancel()
            self._flush_due = None
        async with self._writing:
            batch, self._waiting = self._waiting, Batch()
            if not batch.positions:
                return
            try:
                await self._run(lambda: self._write(batch))
                self.failing = False
            except Exception as error:
                self.failing = True
                self._waiting = batch.followed_by(self._waiting)
                why = f"the ledger {self.path} cannot be written: {_first_line(error)}"
                may_pass = isinstance(error, duckdb.Error) and not isinstance(error, INVALIDATING)
                hopeless = not may_pass or self._waiting.messages > MAX_UNWRITTEN_MESSAGES
                if hopeless and not self.broken.done():
                    self.broken.set_result(why)
                self._flush_in(RETRY_AFTER_S)
                raise LedgerBehind(why) from None

    def _write(self, batch: "Batch") -> None:
        self._db.execute("BEGIN")
        try:
            if batch.forget_after is not None:
                self._db.execute("DELETE FROM metrics WHERE seq > ?", [batch.forget_after])
            for table, added in batch.added.items():
                self._insert(table, added)
            for table, changed in batch.changed.items():
                self._insert(table, list(changed.values()))
            for stream, place in batch.positions.items():
                self._place(stream, *place)
            self._db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(duckdb.Error):
                self._db.execute("ROLLBACK")
            raise

    def _place(self, stream: str, seq: int, sha256: str) -> None:
        """Where the ledger is in a stream; updated in place, which takes half of what replacing the row does."""
        where = "UPDATE position SET seq = ?, sha256 = ? WHERE stream = ?"
        [(changed,)] = self._db.execute(where, [seq, sha256, stream]).fetchall()
        if not changed:
            self._db.execute("INSERT INTO position VALUES (?, ?, ?)", [stream, seq, sha256])

    def _insert(self, table: str, added: list[Any]) -> None:
        """Insert rows as columns, or replace those with the same key: DuckDB does most of that while others run."""
        if not added:
            return
        size = self.rows_at_once
        some = (added[first : first + size] for first in range(0, len(added), size))
        with columns.Rows(COLUMNS[table], (MAKE[table](each) for each in some)) as rows:
            try:
                found = self._db.from_arrow(rows)
                if table in UPSERTED:
                    found.query("made", f"INSERT OR REPLACE INTO {table} FROM made")
                else:
                    found.insert_into(table)
            except duckdb.Error as error:
                raise (rows.error or error) from None

    # -- asking --------------------------------------------------------------------------------------

    async def query(self, sql: str, limit: int) -> m.LedgerReply:
        """Answer one SELECT, with everything that happened before the call. Raises LedgerError, LedgerBehind."""
        await self.flush()
        return await asyncio.get_running_loop().run_in_executor(self._askers, self._query, sql, limit)

    def _query(self, sql: str, limit: int) -> m.LedgerReply:
        cursor = self._db.cursor()
        timer = threading.Timer(QUERY_TIMEOUT_S, cursor.interrupt)
        timer.start()
        try:
            statements = cursor.extract_statements(sql)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise LedgerError("expected exactly one SELECT statement; the ledger is read-only")
            result = cursor.execute(statements[0])
            columns = [column[0] for column in result.description or []]
            rows = result.fetchmany(limit + 1)
        except duckdb.InterruptException:
            raise LedgerError(f"the question took longer than {QUERY_TIMEOUT_S:g} s; narrow it down") from None
        except duckdb.Error as error:
            said = str(error).partition("\n\nLINE ")[0]  # what follows draws a mark below the question: not on one line
            raise LedgerError(said.strip()[:1000]) from None
        finally:
            timer.cancel()
            cursor.close()
        plain = [[_plain(value) for value in row] for row in rows[:limit]]
        return m.LedgerReply(columns=columns, rows=plain, truncated=len(rows) > limit)

    async def sums(self, whole: bool = False) -> Sums:
        """The sums of all entries; with everything that happened before the call."""
        await self.flush()
        return await asyncio.get_running_loop().run_in_executor(self._askers, self._sums, whole)

    def _sums(self, whole: bool) -> Sums:
        with self._db.cursor() as cursor:
            cursor.execute("BEGIN")  # one view for all of the questions

            def rows(sql: str) -> list[tuple[Any, ...]]:
                return cursor.execute(sql).fetchall()

            by_account = "SELECT account, sum(amount_base_units) AS n FROM entries GROUP BY account HAVING n <> 0"
            lowest = (
                "SELECT account, min(n) FROM (SELECT account, sum(amount_base_units) OVER "
                "(PARTITION BY account ORDER BY seq, line) AS n FROM entries WHERE account LIKE 'escrow:%') "
                "WHERE n < 0 GROUP BY account"
            )
            found = Sums(
                events=int(rows("SELECT count(DISTINCT seq) FROM entries")[0][0]),
                unbalanced=[
                    (int(seq), int(n))
                    for seq, n in rows(
                        "SELECT seq, sum(amount_base_units) AS n FROM entries GROUP BY seq HAVING n <> 0 ORDER BY seq"
                    )
                ],
                escrows={each: int(n) for each, n in rows(f"{by_account} AND account LIKE 'escrow:%'")},
                accounts={each: int(n) for each, n in rows(by_account)} if whole else {},
                overdrawn={each: int(n) for each, n in rows(lowest)} if whole else {},
            )
            cursor.execute("ROLLBACK")
        return found

    async def updates(
        self, job_id: str, after_event: int, after_telemetry: int, limit: int
    ) -> tuple[list[m.Update], bool]:
        """What happened to a job after two positions, oldest first, and whether there is more.

        Of each source at most `limit` updates and, but for a single larger one, PAGE_BYTES.
        """
        await self.flush()
        return await self._run(lambda: self._updates(job_id, after_event, after_telemetry, limit))

    def _updates(self, job_id: str, after_event: int, after_telemetry: int, limit: int) -> tuple[list[m.Update], bool]:
        of_job: dict[Literal["event", "telemetry"], tuple[str, int]] = {
            "event": (
                f"events WHERE about = ? AND subject LIKE '%.event.job.%' AND kind <> '{QUARANTINED}'",
                after_event,
            ),
            "telemetry": ("metrics WHERE job_id = ?", after_telemetry),
        }
        updates: list[m.Update] = []
        more = False
        for source, (rows, after_seq) in of_job.items():
            found = self._db.execute(
                f"SELECT seq, at_ms, kind, data FROM {rows} AND seq > ? ORDER BY seq LIMIT {limit + 1}",
                [job_id, after_seq],
            ).fetchall()
            size = 0
            for count, (seq, at_ms, kind, data) in enumerate(found):
                size += len(data)
                if count == limit or (count and size > PAGE_BYTES):
                    more = True
                    break
                what = json.loads(data)
                updates.append(m.Update(job_id=job_id, source=source, seq=seq, at_ms=at_ms, kind=kind, data=what))
        return by_time(updates), more

    async def checkpoint_states(self) -> set[str]:
        """SHA-256 of every state that was ever stored for a job, as the log names it."""
        await self.flush()
        return await asyncio.get_running_loop().run_in_executor(self._askers, self._checkpoint_states)

    def _checkpoint_states(self) -> set[str]:
        found: set[str] = set()
        with self._db.cursor() as cursor:
            rows = cursor.execute("SELECT data FROM events WHERE kind = 'Checkpointed'")
            while some := rows.fetchmany(1_000):
                found.update(json.loads(data)["checkpoint"]["state"]["sha256"] for (data,) in some)
        return found

    async def content_hash(self) -> str:
        """SHA-256 over every row of every table, in key order: equal ledgers have equal hashes."""
        await self.flush()
        return await self._run(self._content_hash)

    def _content_hash(self) -> str:
        digest = hashlib.sha256()
        for table in TABLES:
            rows = self._db.execute(f"SELECT * FROM {table} ORDER BY 1, 2")
            while batch := rows.fetchmany(10_000):
                for row in batch:
                    digest.update(repr((table, row)).encode())
        return digest.hexdigest()

    async def close(self) -> None:
        try:
            await self.flush()
        except LedgerBehind as error:
            log.warning("%s; the next start reads it from the log again", error.why)
        if self._flush_due is not None:
            self._flush_due.cancel()
        self._askers.shutdown()
        await self._run(self._db.close)
        self._thread.shutdown()

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _plain(value: Any) -> Any:
    """A DuckDB value as something JSON and MessagePack can hold: not NaN, and no integer beyond 64 bits."""
    if isinstance(value, (type(None), bool, str)):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**64 or isinstance(value, float) and math.isfinite(value):
        return value
    return str(value)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _by_row(row: Callable[[Any], tuple[Any, ...]]) -> "MakeColumns":
    """Columns, where a row is what is made of each."""
    return lambda found: list(zip(*map(row, found), strict=True))


def _event_columns(events: list[Any]) -> list[Sequence[Any]]:
    seqs, about, records = zip(*events, strict=True)
    what = [each if type(each) is Quarantined else each.event for each in records]
    return [
        seqs,
        about,
        list(map(last_token, about)),
        [type(each).__name__ for each in what],
        [each.at_ms for each in records],
        [each.by for each in records],
        [each.data if type(each) is Quarantined else _JSON.encode(each) for each in what],
    ]


def _job_row(job: jobs.Job) -> tuple[Any, ...]:
    done, shares = job.completed, job.shares
    summary = done.summary if done else None
    return (
        job.job_id,
        job.job.name,
        job.terms.client,
        job.caller,
        job.status,
        job.terms.amount_base_units,
        job.attempts[-1].node_id if job.attempts else None,
        job.attempt,
        job.job.max_attempts,
        job.error,
        done.model.sha256 if done else None,
        done.model.size if done else None,
        job.deposit_signature,
        job.settle_signature,
        shares.node_base_units if shares else None,
        shares.platform_base_units if shares else None,
        shares.client_base_units if shares else None,
        summary.final_loss if summary else None,
        summary.final_accuracy if summary else None,
        summary.validation_loss if summary else None,
        summary.validation_accuracy if summary else None,
        summary.best_epoch if summary else None,
        summary.total_time_ms if summary else None,
        job.submitted_at_ms,
        job.changed_at_ms,
        job.ended_at_ms,
    )


def _node_row(node: nodes.Node) -> tuple[Any, ...]:
    return (
        node.node_id,
        node.name,
        node.online,
        node.wallet,
        node.public_key,
        node.session,
        node.region,
        node.hardware.cores,
        node.hardware.memory_bytes,
        len(node.hardware.gpus),
        node.reputation,
        node.jobs_completed,
        node.jobs_failed,
        node.registered_at_ms,
        node.changed_at_ms,
    )


_JSON = msgspec.json.Encoder()


def telemetry_kind(record: m.TelemetryRecord) -> str:
    return "batch" if record.batch else "epoch" if record.epoch else "hardware"


def _metrics_row(metric: tuple[int, m.TelemetryRecord]) -> tuple[Any, ...]:
    seq, record = metric
    kind = telemetry_kind(record)
    what = record.batch or record.epoch or record.hardware
    data = msgspec.to_builtins(what) | {"attempt": record.attempt}
    loss = data.get("batch_loss", data.get("epoch_loss"))
    accuracy = data.get("batch_accuracy", data.get("epoch_accuracy"))
    return (
        seq,
        record.at_ms,
        record.node_id,
        record.job_id,
        record.attempt,
        kind,
        data.get("epoch"),
        data.get("step"),
        loss,
        accuracy,
        data.get("validation_loss"),
        data.get("validation_accuracy"),
        data.get("samples_per_s"),
        json.dumps(data, separators=(",", ":")),
    )


MakeColumns = Callable[[list[Any]], list[Sequence[Any]]]
MAKE: dict[str, MakeColumns] = {  # columns of a table, out of what a Batch holds of it
    "nodes": _by_row(_node_row),
    "jobs": _by_row(_job_row),
    "metrics": _by_row(_metrics_row),
    "events": _event_columns,
    "entries": lambda entries: list(zip(*entries, strict=True)),
}

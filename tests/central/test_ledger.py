"""The ledger: a projection that answers questions and never more than that."""

import asyncio
import contextlib
import resource
import threading

import duckdb
import msgspec
import pytest

from cyxcentral import earnings, jobfold
from cyxcentral.ledger import DATABASE, MAKE, Ledger, LedgerBehind, LedgerError
from cyxcore.spec import BatchMetrics
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.caller import TRIED_AGAIN
from cyxnet.outcomes import refusal
from tests.central import facts as f

HISTORY = [f.submitted(), f.FUNDED, f.leased(), f.STARTED, f.completed(), f.SIGNED_SETTLE, f.settled()]


@pytest.fixture
async def ledger(tmp_path):
    opened = Ledger(tmp_path / "ledger.duckdb")
    yield opened
    await opened.close()


def write(ledger, events=HISTORY, first_seq=1):
    job = None
    for seq, event in enumerate(events, start=first_seq):
        job = jobfold.evolve(job, event, seq * 1000)
        record = m.Record(command_id=f"{seq:032x}", at_ms=seq * 1000, by="central-1", event=event)
        ledger.add_event(subjects.EVENTS, seq, subjects.job_event("job-1"), record)
        ledger.put_job(job)
        ledger.add_entries(seq, "job-1", earnings.entries(job, event), seq * 1000)


async def test_it_knows_every_state_that_was_ever_stored(ledger):
    assert await ledger.checkpoint_states() == set()
    write(ledger, [f.submitted(), f.FUNDED, f.leased(), f.STARTED, f.checkpointed()])
    assert await ledger.checkpoint_states() == {f.checkpointed().checkpoint.state.sha256}


async def test_a_job_and_its_money_can_be_asked_for(ledger):
    write(ledger)
    reply = await ledger.query("select status, node_base_units from jobs", 10)
    assert (reply.columns, reply.rows) == (["status", "node_base_units"], [["completed", 2_250_000_000]])
    reply = await ledger.query("select account, sum(amount_base_units) from entries group by 1 order by 1", 10)
    assert dict(reply.rows) == {
        "escrow:job-1": 0,
        f"wallet:{f.CLIENT}": -f.AMOUNT,
        f"wallet:{f.NODE_WALLET}": 2_250_000_000,
        f"wallet:{f.PLATFORM}": 250_000_000,
    }


async def test_a_position_can_be_asked_for_while_rows_are_written(ledger):
    """A central asks how far its telemetry is while the events of a long log are on their way into the ledger."""
    write(ledger)
    await ledger.flush()
    busy, leave = threading.Event(), threading.Event()

    def wait(number: int) -> int:
        busy.set()
        leave.wait(10)
        return number

    ledger._db.create_function("wait", wait, ["BIGINT"], "BIGINT")
    writing = asyncio.ensure_future(ledger._run(lambda: ledger._db.execute("select wait(1)").fetchall()))
    await asyncio.to_thread(busy.wait, 10)
    try:
        assert ledger.position(subjects.EVENTS) == len(HISTORY)
    finally:
        leave.set()
        await writing


async def test_a_ledger_built_in_pieces_is_the_ledger_built_at_once(tmp_path):
    hashes = []
    for pieces in ([7], [1, 6], [3, 3, 1]):
        folder = tmp_path / "-".join(map(str, pieces))
        job, seq = None, 0
        for size in pieces:
            ledger = Ledger(folder / "ledger.duckdb")
            assert ledger.position(subjects.EVENTS) == seq
            for event in HISTORY[seq : seq + size]:
                seq += 1
                job = jobfold.evolve(job, event, seq * 1000)
                record = m.Record(command_id=f"{seq:032x}", at_ms=seq * 1000, by="central-1", event=event)
                ledger.add_event(subjects.EVENTS, seq, subjects.job_event("job-1"), record)
                ledger.put_job(job)
                ledger.add_entries(seq, "job-1", earnings.entries(job, event), seq * 1000)
            hashes.append(await ledger.content_hash())
            await ledger.close()
    assert hashes[0] == hashes[2] == hashes[5]


async def test_the_history_of_a_job_can_be_read_from_any_point(ledger):
    write(ledger)
    kinds = [update.kind for update in (await ledger.updates("job-1", 0, 0, 100))[0]]
    assert kinds == ["Submitted", "Funded", "Leased", "Started", "Completed", "TransactionSigned", "Settled"]
    assert [update.seq for update in (await ledger.updates("job-1", 5, 0, 100))[0]] == [6, 7]
    assert len((await ledger.updates("job-1", 0, 0, 2))[0]) == 2
    assert await ledger.updates("job", 0, 0, 100) == ([], False)


async def test_pages_are_cut_by_count_and_by_bytes_and_miss_nothing(ledger, monkeypatch):
    # a page of 1000 updates from a machine of 200 cores did not fit a message: its watchers never got on
    monkeypatch.setattr("cyxcentral.ledger.PAGE_BYTES", 400)
    write(ledger)
    for limit in (2, 100):
        seen, more, pages = [], True, 0
        while more:
            page, more = await ledger.updates("job-1", seen[-1] if seen else 0, 0, limit)
            seen += [update.seq for update in page]
            pages += 1
        assert seen == [1, 2, 3, 4, 5, 6, 7]
        assert pages > 2


async def test_a_history_has_the_order_of_the_log_whatever_the_clocks_of_centrals_say(ledger):
    for seq, at_ms in ((1, 5_000), (2, 3_600_000), (3, 6_000)):
        record = m.Record(command_id=f"{seq:032x}", at_ms=at_ms, by=f"central-{seq}", event=HISTORY[seq - 1])
        ledger.add_event(subjects.EVENTS, seq, subjects.job_event("job-1"), record)
    assert [update.seq for update in (await ledger.updates("job-1", 0, 0, 100))[0]] == [1, 2, 3]


def telemetry(ledger, *seqs, loss=0.5):
    for seq in seqs:
        batch = BatchMetrics(
            epoch=1,
            epochs=2,
            batch=1,
            batches=9,
            step=seq,
            batch_loss=loss,
            batch_time_ms=1.0,
            learning_rate=0.1,
            samples_per_s=1.0,
        )
        record = m.TelemetryRecord(at_ms=seq, node_id="node-a", job_id="job-1", attempt=1, batch=batch)
        ledger.add_telemetry(subjects.TELEMETRY, seq, record)


async def test_metrics_as_large_as_a_message_may_say_are_written(ledger):
    # an epoch beyond 2**31 - 1 left the whole ledger unwritable
    most = 2**63 - 1
    counts = dict.fromkeys(("epoch", "epochs", "batch", "batches", "step"), most)
    numbers = dict.fromkeys(("batch_loss", "batch_time_ms", "learning_rate", "samples_per_s"), 1.0)
    batch = BatchMetrics(**counts, **numbers)
    record = m.TelemetryRecord(at_ms=1, node_id="node-a", job_id="job-1", attempt=1, batch=batch)
    ledger.add_telemetry(subjects.TELEMETRY, 10, record)
    assert (await ledger.query("select epoch, step from metrics where seq = 10", 1)).rows == [[most, most]]


async def test_metrics_that_the_broker_lost_make_room_for_those_that_took_their_places(tmp_path):
    ledger = Ledger(tmp_path / "ledger.duckdb")
    telemetry(ledger, 1, 2, 3, 4)
    await ledger.flush()
    telemetry(ledger, 5)
    ledger.telemetry_rewound(2)
    telemetry(ledger, 3, 4, loss=0.25)
    rows = (await ledger.query("select seq, loss from metrics order by seq", 10)).rows
    assert rows == [[1, 0.5], [2, 0.5], [3, 0.25], [4, 0.25]]
    await ledger.close()
    again = Ledger(tmp_path / "ledger.duckdb")
    assert again.position(subjects.TELEMETRY) == 4
    await again.close()


async def test_who_asks_a_ledger_that_cannot_be_written_is_to_ask_again_and_hears_nothing_of_its_files(
    ledger, monkeypatch
):
    # it was the caller's mistake, so his client did not ask the other central, and the file's path was told
    def full_disk(self, table, added):
        raise duckdb.IOException(f"{ledger.path}: no space left on device")

    monkeypatch.setattr(Ledger, "_insert", full_disk)
    write(ledger, HISTORY[:3])
    with pytest.raises(LedgerBehind) as behind:
        await ledger.query("select 1", 1)
    status, told = refusal(behind.value, "ledger.query")
    assert status in TRIED_AGAIN and told.err_code == "ledger_behind" and str(ledger.path.parent) not in told.message


async def test_what_could_not_be_written_is_written_later(ledger, monkeypatch):
    # the rows of a failed write were dropped, and the next one moved the position over the hole
    real_insert, failures = Ledger._insert, []

    def full_disk(self, table, added):
        if table == "events" and not failures:
            failures.append(table)
            raise duckdb.IOException("no space left on device")
        real_insert(self, table, added)

    monkeypatch.setattr(Ledger, "_insert", full_disk)
    write(ledger, HISTORY[:3])
    with pytest.raises(LedgerBehind) as behind:
        await ledger.flush()
    assert behind.value.why.endswith("no space left on device") and ledger.failing
    assert (await ledger.query("select count(*) from events", 10)).rows == [[3]]
    assert failures == ["events"] and not ledger.failing


async def test_a_long_log_is_written_in_batches_and_waits_for_them(ledger, monkeypatch):
    # a rebuild held every row that was not yet written in memory, however many, and wrote a thousand at a time
    monkeypatch.setattr("cyxcentral.ledger.BATCH_MESSAGES", 4)
    monkeypatch.setattr("cyxcentral.ledger.MAX_WAITING_MESSAGES", 8)
    monkeypatch.setattr(ledger, "rows_at_once", 3)
    real, sizes, most = ledger._write, [], 0
    monkeypatch.setattr(ledger, "_write", lambda batch: (sizes.append(batch.messages), real(batch)))
    record = m.Record(command_id="c" * 32, at_ms=1, by="central-1", event=f.submitted())
    for seq in range(1, 101):
        ledger.add_event(subjects.EVENTS, seq, subjects.job_event("job-1"), record)
        most = max(most, ledger._waiting.messages)
        await ledger.room()
    assert most <= 8
    assert (await ledger.query("select count(*), max(seq) from events", 10)).rows == [[100, 100]]
    assert max(sizes) <= 8 and len(sizes) < 100
    assert ledger.position(subjects.EVENTS) == 100


async def test_rows_wait_for_callers_who_wait_for_answers_but_not_for_ever(ledger, monkeypatch):
    monkeypatch.setattr("cyxcentral.ledger.FLUSH_AFTER_S", 0.001)
    monkeypatch.setattr("cyxcentral.ledger.FLUSH_LATEST_S", 1000)
    looks, enough = [], asyncio.Event()

    def busy():
        looks.append(ledger.position(subjects.EVENTS))
        if len(looks) == 20:
            enough.set()
        return True

    ledger.busy = busy
    write(ledger)
    await enough.wait()
    assert set(looks) == {0}
    assert (await ledger.query("select count(*) from events", 10)).rows == [[len(HISTORY)]]  # who asks is told all
    monkeypatch.setattr("cyxcentral.ledger.FLUSH_LATEST_S", 0.01)
    write(ledger, first_seq=len(HISTORY) + 1)
    async with asyncio.timeout(60):
        while ledger.position(subjects.EVENTS) < 2 * len(HISTORY):
            await asyncio.sleep(0)


async def test_rows_are_written_soon_after_the_last_caller_has_his_answer(ledger, monkeypatch):
    monkeypatch.setattr("cyxcentral.ledger.FLUSH_AFTER_S", 0.001)
    monkeypatch.setattr("cyxcentral.ledger.FLUSH_LATEST_S", 1000)
    answers = iter([True, True, True])
    ledger.busy = lambda: next(answers, False)
    write(ledger)
    async with asyncio.timeout(60):
        while ledger.position(subjects.EVENTS) < len(HISTORY):
            await asyncio.sleep(0)


async def test_a_disk_that_refuses_is_not_waited_for(ledger, monkeypatch):
    monkeypatch.setattr("cyxcentral.ledger.MAX_WAITING_MESSAGES", 3)
    monkeypatch.setattr("cyxcentral.ledger.RETRY_AFTER_S", 1000)
    real = ledger._write

    def refuse(batch):
        raise duckdb.IOException("no space left on device")

    monkeypatch.setattr(ledger, "_write", refuse)
    write(ledger)
    await ledger.room()  # tries once
    await ledger.room()
    assert ledger._waiting.messages == len(HISTORY)
    monkeypatch.setattr(ledger, "_write", real)
    assert (await ledger.query("select count(*) from events", 10)).rows == [[len(HISTORY)]]


async def test_a_disk_that_fills_up_in_a_checkpoint_of_duckdb_ends_the_central_and_costs_no_row(tmp_path, monkeypatch):
    """What was committed is durable then, and DuckDB refuses all else until its file is opened anew: a central that
    tried again tried for ever, also when there was room again."""
    monkeypatch.setitem(DATABASE, "checkpoint_threshold", "1MB")
    path = tmp_path / "ledger.duckdb"
    ledger, record = Ledger(path), m.Record(command_id="c" * 32, at_ms=1, by="central-1", event=f.submitted())
    limits, seq = resource.getrlimit(resource.RLIMIT_FSIZE), 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 1_300_000, limits[1]))
    try:
        while not ledger.broken.done() and seq < 20_000:
            for _ in range(300):
                seq += 1
                ledger.add_event(subjects.EVENTS, seq, subjects.job_event("job-1"), record)
            with contextlib.suppress(LedgerError):
                await ledger.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "FATAL" in ledger.broken.result() and "checkpoint" in ledger.broken.result()
    await ledger.close()
    again = Ledger(path)
    position = again.position(subjects.EVENTS)
    found = await again.query("select count(*), max(seq), count(distinct seq) from events", 10)
    assert 0 < position <= seq and found.rows == [[position] * 3]
    await again.close()


async def test_a_row_that_cannot_be_made_loses_nothing_and_ends_the_central(ledger, monkeypatch):
    # rows are made when they are written: the position must not move over one that could not be
    monkeypatch.setitem(MAKE, "events", lambda event: 1 / 0)
    write(ledger, HISTORY[:2])
    with pytest.raises(LedgerBehind):
        await ledger.flush()
    assert "division by zero" in ledger.broken.result()
    assert ledger.position(subjects.EVENTS) == 0
    monkeypatch.undo()
    assert (await ledger.query("select count(*) from events", 10)).rows == [[2]]


@pytest.mark.parametrize("sql, value", [("select 'nan'::double", "nan"), ("select 2::hugeint ** 100", None)])
async def test_numbers_that_no_message_can_hold_become_text_or_plain_floats(ledger, sql, value):
    [[answer]] = (await ledger.query(sql, 10)).rows
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(answer)) == answer
    assert value is None or answer == value


async def test_the_ledger_remembers_the_hash_of_the_last_event_it_saw(tmp_path):
    ledger = Ledger(tmp_path / "ledger.duckdb")
    record = m.Record(command_id="c" * 32, at_ms=1, by="central-1", event=f.submitted())
    ledger.add_event(subjects.EVENTS, 1, subjects.job_event("job-1"), record, "ab" * 32)
    await ledger.close()
    again = Ledger(tmp_path / "ledger.duckdb")
    assert again.place(subjects.EVENTS) == (1, "ab" * 32)
    assert again.place(subjects.TELEMETRY) == (0, "")
    await again.close()


async def test_a_ledger_of_another_version_is_rebuilt_from_the_log(tmp_path):
    path = tmp_path / "ledger.duckdb"
    with duckdb.connect(str(path)) as old:
        old.execute("CREATE TABLE position (stream VARCHAR PRIMARY KEY, seq BIGINT)")
        old.execute("CREATE TABLE events (seq BIGINT PRIMARY KEY)")
        old.execute("INSERT INTO position VALUES (?, 7)", [subjects.EVENTS])
        old.execute("INSERT INTO events VALUES (7)")
    ledger = Ledger(path)
    assert ledger.position(subjects.EVENTS) == 0
    write(ledger)
    assert (await ledger.query("select count(*) from events", 10)).rows == [[7]]
    await ledger.close()


async def test_a_message_in_quarantine_is_a_row_with_its_reason_and_no_update_of_its_job(ledger):
    write(ledger)
    ledger.add_quarantined(subjects.EVENTS, 8, subjects.job_event("job-1"), "it is no record", "ab" * 32)
    rows = (await ledger.query("select seq, about, data from events where kind = 'Quarantined'", 10)).rows
    assert rows == [[8, "job-1", '{"reason": "it is no record", "sha256": "' + "ab" * 32 + '"}']]
    assert [update.seq for update in (await ledger.updates("job-1", 6, 0, 10))[0]] == [7]
    assert ledger.place(subjects.EVENTS) == (8, "ab" * 32)


def test_a_damaged_ledger_is_one_clear_error(tmp_path):
    (tmp_path / "ledger.duckdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(LedgerError, match="delete it: it is rebuilt from the log"):
        Ledger(tmp_path / "ledger.duckdb")


async def test_text_with_strange_characters_does_not_stop_the_ledger(ledger):
    write(ledger, [f.submitted(name="a\x00b\u202e'; drop table jobs;--")])
    assert (await ledger.query("select name from jobs", 10)).rows == [["a\x00b\u202e'; drop table jobs;--"]]


@pytest.mark.parametrize(
    "sql, complaint",
    [
        ("drop table jobs", "exactly one SELECT"),
        ("select 1; select 2", "exactly one SELECT"),
        ("delete from jobs", "exactly one SELECT"),
        ("set threads = 64", "exactly one SELECT"),
        ("attach '/tmp/other.db'", "exactly one SELECT"),
        ("select * from read_csv('/etc/passwd')", "disabled"),
        ("select * from '/etc/passwd'", "disabled|does not exist"),
        ("copy jobs to '/tmp/jobs.csv'", "exactly one SELECT"),
        ("select nope from jobs", "nope"),
        ("not sql at all", "syntax error"),
        ("", "exactly one SELECT"),
    ],
)
async def test_a_question_cannot_change_anything_or_reach_a_file(ledger, sql, complaint):
    write(ledger)
    before = await ledger.content_hash()
    with pytest.raises(LedgerError, match=complaint):
        await ledger.query(sql, 10)
    assert await ledger.content_hash() == before


async def test_a_complaint_about_a_question_is_words_and_no_drawing(ledger):
    # below them DuckDB writes the line again, with a mark where it is wrong: joined to one line that was no help
    with pytest.raises(LedgerError) as caught:
        await ledger.query("select *\nfrom job", 10)
    assert "Did you mean" in str(caught.value) and "LINE" not in str(caught.value)


async def test_an_endless_question_is_interrupted_and_the_ledger_goes_on(ledger, monkeypatch):
    monkeypatch.setattr("cyxcentral.ledger.QUERY_TIMEOUT_S", 0.2)
    with pytest.raises(LedgerError, match="longer than"):
        await ledger.query("select count(*) from range(100000000000000)", 10)
    assert (await ledger.query("select 1", 10)).rows == [[1]]


async def test_a_long_answer_says_that_it_was_cut(ledger):
    reply = await ledger.query("select * from range(5)", 3)
    assert (len(reply.rows), reply.truncated) == (3, True)


async def test_a_second_central_on_the_same_file_is_refused(ledger, tmp_path):
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from cyxcentral.ledger import DATABASE, MAKE, Ledger, LedgerError\n"
        "try: Ledger(Path(sys.argv[1]))\nexcept LedgerError as error: print(error)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(ledger.path)], capture_output=True, text=True, check=True
    ).stdout
    assert "is another central using it?" in said

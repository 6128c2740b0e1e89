"""The ledger: a projection that answers questions and never more than that."""

import pytest

from cyxcentral import jobs
from cyxcentral.ledger import Ledger, LedgerError
from cyxnet import messages as m
from cyxnet import subjects
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
        job = jobs.evolve(job, event, seq * 1000)
        record = m.Record(command_id=f"{seq:032x}", at_ms=seq * 1000, by="central-1", event=event)
        ledger.add_event(subjects.EVENTS, seq, subjects.job_event("job-1"), record)
        ledger.put_job(job)
        ledger.add_entries(seq, "job-1", jobs.entries(job, event), seq * 1000)


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
                job = jobs.evolve(job, event, seq * 1000)
                record = m.Record(command_id=f"{seq:032x}", at_ms=seq * 1000, by="central-1", event=event)
                ledger.add_event(subjects.EVENTS, seq, subjects.job_event("job-1"), record)
                ledger.put_job(job)
                ledger.add_entries(seq, "job-1", jobs.entries(job, event), seq * 1000)
            hashes.append(await ledger.content_hash())
            await ledger.close()
    assert hashes[0] == hashes[2] == hashes[5]


async def test_the_history_of_a_job_can_be_read_from_any_point(ledger):
    write(ledger)
    kinds = [update.kind for update in await ledger.updates("job-1", 0, 0, 100)]
    assert kinds == ["Submitted", "Funded", "Leased", "Started", "Completed", "TransactionSigned", "Settled"]
    assert [update.seq for update in await ledger.updates("job-1", 5, 0, 100)] == [6, 7]
    assert len(await ledger.updates("job-1", 0, 0, 2)) == 2
    assert await ledger.updates("job", 0, 0, 100) == []


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
        "import sys; from pathlib import Path; from cyxcentral.ledger import Ledger, LedgerError\n"
        "try: Ledger(Path(sys.argv[1]))\nexcept LedgerError as error: print(error)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(ledger.path)], capture_output=True, text=True, check=True
    ).stdout
    assert "is another central using it?" in said

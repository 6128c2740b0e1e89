"""What is remembered of jobs for those who watch them."""

from cyxcentral.recent import LARGEST_FIRST_BYTES, Recent
from cyxnet import messages as m


def update(seq, source="event", at_ms=None, job_id="job-1"):
    return m.Update(job_id=job_id, source=source, seq=seq, at_ms=at_ms or seq, kind="x", data={})


def begun(**options):
    recent = Recent(**options)
    recent.begin(update(3), 100)
    return recent


def seqs(found):
    return [(each.source, each.seq) for each in found]


def test_a_job_is_told_from_its_first_event_in_order_of_time():
    recent = begun()
    recent.add(update(9, at_ms=20))
    recent.add(update(5, "telemetry", at_ms=10))
    assert seqs(recent.after("job-1", 0, 0, 10)) == [("event", 3), ("telemetry", 5), ("event", 9)]
    assert seqs(recent.after("job-1", 3, 5, 10)) == [("event", 9)]
    assert recent.after("job-1", 9, 5, 10) == []


def test_updates_of_one_source_keep_their_order_whatever_the_clocks_of_centrals_say():
    # who broke off after the later event, and went on after it, was never told the one before it
    recent = begun()
    recent.add(update(4, at_ms=3_600_000))
    recent.add(update(5, at_ms=10))
    recent.add(update(1, "telemetry", at_ms=20))
    told = seqs(recent.after("job-1", 0, 0, 10))
    assert told == [("event", 3), ("telemetry", 1), ("event", 4), ("event", 5)]


def test_a_job_whose_beginning_was_not_seen_is_left_to_the_ledger():
    recent = begun()
    recent.add(update(4, job_id="job-2"))
    assert recent.after("job-2", 0, 0, 10) is None


def test_more_than_a_page_is_left_to_the_ledger():
    recent = begun()
    recent.add(update(4))
    assert recent.after("job-1", 0, 0, 1) is None


def test_a_job_with_too_much_to_tell_is_forgotten():
    recent = begun(updates_per_job=3)
    for seq in range(4, 8):
        recent.add(update(seq))
    assert recent.after("job-1", 0, 0, 10) is None


def test_the_oldest_jobs_go_first():
    recent = begun(jobs=2)
    for job_id in ("job-2", "job-3"):
        recent.begin(update(1, job_id=job_id), 1)
    assert recent.after("job-1", 0, 0, 10) is None
    assert recent.after("job-3", 0, 0, 10) is not None


def test_a_job_too_large_for_one_message_is_left_to_the_ledger():
    recent = Recent()
    recent.begin(update(1), LARGEST_FIRST_BYTES + 1)
    assert recent.after("job-1", 0, 0, 10) is None

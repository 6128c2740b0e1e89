"""Messages of the log as records: a job that is known is not read again, and nothing is taken for a record thereby."""

import msgspec
import pytest
from msgspec.structs import fields, replace

from cyxcentral import records
from cyxcentral.records import _jobs, _own_jobs, _Submission, _Submitted, is_read_as, read
from cyxnet import messages as m
from cyxnet.codec import BadMessage, encode
from tests.central import facts as f


@pytest.fixture(autouse=True)
def nothing_known():
    _jobs.clear()
    _own_jobs.clear()
    records._misses = 0
    yield
    _jobs.clear()
    _own_jobs.clear()


def submission(job_id="job-1", **changes):
    event = replace(f.submitted(job_id, **changes), price_base_units=7, reference_fee_base_units=9)
    return m.Record(command_id="c" * 32, at_ms=1, by="somebody", event=event, prev="p" * 64)


def altered(record, change):
    """Its encoding, after `change` of it as dictionaries."""
    found = msgspec.msgpack.decode(encode(record))
    change(found)
    return msgspec.msgpack.encode(found)


def test_submissions_of_one_job_share_it():
    first, second = (read(encode(submission(job_id))) for job_id in ("job-1", "job-2"))
    assert (first, second) == (submission("job-1"), submission("job-2"))
    assert second.event.job is first.event.job
    other = read(encode(submission("job-3", amount_base_units=first.event.job.amount_base_units + 1)))
    assert other.event.job != first.event.job


def test_the_fields_of_a_submission_are_those_of_its_record():
    for quick, whole in ((_Submission, m.Record), (_Submitted, m.Submitted)):
        assert [each.name for each in fields(quick)] == [each.name for each in fields(whole)]
        same = {each.name for each in fields(whole)} - {"job", "event"}
        assert [each for each in fields(quick) if each.name in same] == [
            each for each in fields(whole) if each.name in same
        ]


STRANGE = {  # what differs from a submission whose job is known, and whether it is a record all the same
    "an unknown field": (lambda found: found["event"].update(more=1), True),
    "an unknown field that the ledger cannot hold": (lambda found: found["event"].update(more=2**63), False),
    "memory that the ledger cannot hold": (lambda found: found["event"].update(memory_bytes=2**63), False),
    "a time that the ledger cannot hold": (lambda found: found.update(at_ms=2**63), False),
    "a deadline that the ledger cannot hold": (lambda found: found["event"]["terms"].update(deadline_s=2**63), False),
    "no terms": (lambda found: found["event"].pop("terms"), False),
    "terms that are none": (lambda found: found["event"].update(terms=[]), False),
    "a default that was written down": (lambda found: found["event"].update(price_base_units=0), True),
    "a rate that is no number": (
        lambda found: found["event"]["job"].update(training={"label_smoothing": float("nan")}),
        False,
    ),
}


@pytest.mark.parametrize("what", STRANGE)
def test_what_is_no_record_is_none_when_its_job_is_known_either(what):
    change, is_record = STRANGE[what]
    payload = altered(submission(), change)
    unknown = read(payload)
    assert isinstance(unknown, m.Record) == is_record
    assert isinstance(read(encode(submission("job-2"))), m.Record) and _jobs
    known = read(payload)
    assert type(known) is type(unknown) and str(known) == str(unknown)


def test_a_job_that_is_named_twice_is_not_known():
    """Of two fields with one name the last one counts, but the first one is looked at too."""
    good = encode(submission())
    assert isinstance(read(good), m.Record)
    head, name, tail = good.partition(b"\xa1t\xa9Submitted\xa3job")
    count = bytes([head[-1] + 1])
    twice = head[:-1] + count + name + b"\x01" + b"\xa3job" + tail
    assert isinstance(msgspec.msgpack.decode(twice, type=_Submission), _Submission)
    assert isinstance(read(twice), BadMessage)


def test_our_own_submissions_need_not_be_read_unless_others_would_not_take_them():
    record = submission()
    assert [is_read_as(record, encode(record)) for _ in range(2)] == [True, True] and _own_jobs
    for change in ({"memory_bytes": 2**63}, {"terms": replace(record.event.terms, deadline_s=2**63)}):
        strange = replace(record, event=replace(record.event, **change))
        assert not is_read_as(strange, encode(strange)) and isinstance(read(encode(strange)), BadMessage)
    other = submission(training=replace(record.event.job.training, label_smoothing=float("nan")))
    assert not is_read_as(other, encode(other)) and id(other.event.job) not in _own_jobs


def test_while_every_job_is_another_they_are_hardly_looked_for_and_found_again_soon():
    for amount in range(1, 4 * records.MISSES):
        assert read(encode(submission(amount_base_units=amount))).event.job.amount_base_units == amount
    assert len(_jobs) == records.MISSES + 3 * records.MISSES // records.SELDOM - 1
    jobs = [read(encode(submission(f"job-{n}"))).event.job for n in range(3 * records.SELDOM)]
    assert all(job == jobs[0] for job in jobs) and jobs[-1] is jobs[-2]


def test_only_so_many_jobs_are_remembered(monkeypatch):
    monkeypatch.setattr(records, "JOBS_REMEMBERED", 2)
    for amount in range(1, 6):
        read(encode(submission(amount_base_units=amount)))
    assert [job.amount_base_units for job in _jobs.values()] == [4, 5]
    monkeypatch.setattr(records, "LARGEST_REMEMBERED_BYTES", 10)
    read(encode(submission(amount_base_units=6)))
    assert len(_jobs) == 2

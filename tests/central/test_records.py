"""Messages of the log as records, and what is none."""

import msgspec
import pytest
from msgspec.structs import replace

from cyxcentral.records import is_plain, is_read_as, read
from cyxnet import messages as m
from cyxnet.codec import BadMessage, encode
from tests.central import facts as f


def submission(job_id="job-1", **changes):
    event = replace(f.submitted(job_id, **changes), price_base_units=7, reference_fee_base_units=9)
    return m.Record(command_id="c" * 32, at_ms=1, by="somebody", event=event, prev="p" * 64)


def altered(record, change):
    """Its encoding, after `change` of it as dictionaries."""
    found = msgspec.msgpack.decode(encode(record))
    change(found)
    return msgspec.msgpack.encode(found)


STRANGE = {  # what differs from a submission, and whether it is a record all the same
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
def test_what_is_no_record_is_told_from_one(what):
    change, is_record = STRANGE[what]
    payload = altered(submission(), change)
    assert isinstance(read(payload), m.Record) == is_record
    assert is_plain(payload) == ("that the ledger cannot hold" not in what and "no number" not in what)


def test_a_transaction_may_look_like_any_number():
    event = submission().event
    deposit = replace(event.deposit, transaction=b"\xcb\x7f\xf8" + b"\xcf\xff" * 300)
    record = replace(submission(), event=replace(event, deposit=deposit))
    assert is_plain(encode(record)) and read(encode(record)) == record and is_read_as(record, encode(record))


def test_our_own_submissions_need_not_be_read_unless_others_would_not_take_them():
    record = submission()
    assert is_read_as(record, encode(record)) and read(encode(record)) == record
    for change in ({"memory_bytes": 2**63}, {"terms": replace(record.event.terms, deadline_s=2**63)}):
        strange = replace(record, event=replace(record.event, **change))
        assert not is_read_as(strange, encode(strange)) and isinstance(read(encode(strange)), BadMessage)
    other = submission(training=replace(record.event.job.training, label_smoothing=float("nan")))
    assert not is_read_as(other, encode(other)) and isinstance(read(encode(other)), BadMessage)

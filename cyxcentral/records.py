"""Messages of the event log as records; what is none is told apart in the same way by every central.

Most messages are submissions, and a script may submit one job many times. Reading the job and looking for what must not
be in it is most of what such a message costs who follows the log. So the last jobs are remembered by their bytes: their
submissions are read without them, and share one in memory. While every job is another one, as in a sweep over seeds,
they are looked for only now and then.
"""

from typing import Any, TypeVar, get_args

import msgspec
from msgspec import Raw, Struct

from cyxcentral.world import UnknownEvent
from cyxnet import messages as m
from cyxnet.codec import MSGPACK, BadMessage, decode, encode, may_hold_non_finite, occurs

K = TypeVar("K")
LARGEST = 2**63 - 1  # that the ledger can hold
_UINT64, _LARGER = b"\xcf", frozenset(range(0x80, 0x100))  # how a larger integer begins in MessagePack
# Events that hold nothing but text, whole numbers, bytes and what was decoded once already: as they are encoded, they
# would be read. (Of another, a tuple would be read as a list.)
READ_AS_ENCODED = frozenset({m.Submitted, m.Funded})
JOBS_REMEMBERED, LARGEST_REMEMBERED_BYTES = 256, 32_768
MISSES, SELDOM = 64, 16  # after so many jobs in a row that were not known, one in so many is looked for
_BEFORE_JOB, _BEGINS_WITHIN = b"\xa1t\xa9Submitted\xa3job", 256  # bytes of a record


class _Submitted(m.Event, kw_only=True, tag="Submitted"):
    """m.Submitted with its job as it lies in the message."""

    job: Raw
    terms: m.EscrowTerms
    caller: str
    memory_bytes: int
    deposit: m.SignedTransaction
    price_base_units: int = 0
    reference_fee_base_units: int = 0


class _Submission(Struct, kw_only=True, gc=False):
    """m.Record of it."""

    command_id: str
    at_ms: int
    by: str
    event: _Submitted
    prev: str = ""


class _Kind(Struct):
    t: str


class _Peek(Struct):
    """What every version of a record has."""

    command_id: str
    event: _Kind


KINDS = frozenset(kind.__name__ for kind in get_args(m.AnyEvent))
_RECORDS = msgspec.msgpack.Decoder(m.Record)
_SUBMISSIONS = msgspec.msgpack.Decoder(_Submission)
_PEEK = msgspec.msgpack.Decoder(_Peek)
_misses = 0  # submissions since the last one whose job was known
_jobs: dict[bytes, m.JobRequest] = {}  # by their bytes: jobs that were read, and hold nothing that must not be
_own_jobs: dict[int, m.JobRequest] = {}  # by id(): jobs of records that were encoded here, and hold nothing such either


def read(payload: bytes, plain: bool | None = None) -> m.Record | BadMessage:
    """A message of the log as a record, or what is wrong with it. plain: what is_plain says, where that is known."""
    global _misses
    said: _Submission | None = None
    try:
        if payload.find(_BEFORE_JOB, 0, _BEGINS_WITHIN) > 0:
            _misses += 1
            if _misses <= MISSES or _misses % SELDOM == 0:
                said = _SUBMISSIONS.decode(payload)
                if record := _of_known_job(said, payload):
                    _misses = 0
                    return record
        record = _RECORDS.decode(payload)
        if plain or (plain is None and is_plain(_without_bytes(payload, record))):
            if said:
                _remember(said, record)
            return record
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass  # it is said below
    try:
        record = decode(m.Record, payload, MSGPACK, max_bytes=2**31)
        if occurs(payload, _UINT64, _LARGER) and occurs(_without_bytes(payload, record), _UINT64, _LARGER):
            _refuse_too_large(msgspec.msgpack.decode(payload))
        return record
    except BadMessage as error:
        return _newer(payload) or error


def is_plain(payload: bytes) -> bool:
    """Whether a message needs no second look once it is decoded: no bytes look like what msgspec lets through."""
    return not (may_hold_non_finite(payload) or occurs(payload, _UINT64, _LARGER))


def is_read_as(record: m.Record, payload: bytes) -> bool:
    """Whether read() would make this record of its own encoding, so that it need not be read."""
    event = record.event
    if type(event) not in READ_AS_ENCODED:
        return False
    if type(event) is m.Submitted and _own_jobs.get(id(event.job)) is event.job:
        return _largest(record.at_ms, event) <= LARGEST
    if not is_plain(_without_bytes(payload, record)):
        return False
    if type(event) is m.Submitted and len(payload) <= LARGEST_REMEMBERED_BYTES:
        _keep(_own_jobs, id(event.job), event.job)
    return True


def _of_known_job(said: _Submission, payload: bytes) -> m.Record | None:
    """The record of a submission whose job was read before; None when it takes a closer look.

    As these types are encoded, each field is there once and nothing else is: what was not looked at are numbers.
    """
    event = said.event
    job = _jobs.get(bytes(event.job))
    if job is None or encode(said) != payload:
        return None
    if _largest(said.at_ms, event) > LARGEST:
        return None
    return m.Record(
        command_id=said.command_id,
        at_ms=said.at_ms,
        by=said.by,
        event=m.Submitted(
            job=job,
            terms=event.terms,
            caller=event.caller,
            memory_bytes=event.memory_bytes,
            deposit=event.deposit,
            price_base_units=event.price_base_units,
            reference_fee_base_units=event.reference_fee_base_units,
        ),
        prev=said.prev,
    )


def _largest(at_ms: int, event: m.Submitted | _Submitted) -> int:
    """The largest number of a submission outside its job."""
    terms = event.terms
    return max(
        at_ms,
        event.memory_bytes,
        event.price_base_units,
        event.reference_fee_base_units,
        event.deposit.last_valid_block_height,
        terms.amount_base_units,
        terms.fee_basis_points,
        terms.deadline_s,
    )


def _remember(said: _Submission, record: m.Record) -> None:
    job = bytes(said.event.job)
    if len(job) <= LARGEST_REMEMBERED_BYTES and isinstance(record.event, m.Submitted):
        _keep(_jobs, job, record.event.job)


def _keep(jobs: dict[K, m.JobRequest], key: K, job: m.JobRequest) -> None:
    """Among the last ones."""
    if len(jobs) >= JOBS_REMEMBERED:
        del jobs[next(iter(jobs))]
    jobs[key] = job


def _without_bytes(payload: bytes, record: m.Record) -> bytes:
    """The message without its transaction, which looks like anything."""
    event: Any = record.event
    signed = getattr(event, "deposit", None) or getattr(event, "signed", None)
    if not signed or len(signed.transaction) <= 64:
        return payload
    at = payload.find(signed.transaction[:32])  # of its signature; the search for all of it would take longer
    end = at + len(signed.transaction)
    return payload[:at] + payload[end:] if payload[at:end] == signed.transaction else payload


def _newer(payload: bytes) -> UnknownEvent | None:
    try:
        kind = _PEEK.decode(payload).event.t
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return None if kind in KINDS else UnknownEvent(f"this version knows no event {kind[:80]!r}")


def _refuse_too_large(value: Any) -> None:
    if isinstance(value, int) and value > LARGEST:
        raise BadMessage(f"expected integers up to {LARGEST}, got {value}")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _refuse_too_large(item)

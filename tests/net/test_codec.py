"""decode(): whatever comes from outside is a message or one typed error."""

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.codec import JSON, MSGPACK, BadMessage, decode, encode

REQUESTS = sorted(
    {verb.request for verb in subjects.VERBS.values() if verb.request is not bytes}
    | {kind for kind, _ in subjects.NODE_VERBS.values()}
    | set(subjects.NODE_TELEMETRY.values()),
    key=lambda kind: kind.__name__,
)


def test_a_message_survives_both_encodings():
    ask = m.JobListRequest(status="queued", limit=3)
    for content_type in (JSON, MSGPACK):
        assert decode(m.JobListRequest, encode(ask, content_type), content_type) == ask


def test_an_unknown_field_is_refused_by_name():
    with pytest.raises(BadMessage, match="unknown field `job_idd`"):
        decode(m.JobRef, b'{"job_idd": "abc"}')


@pytest.mark.parametrize(
    ("kind", "payload", "words"),
    [
        (m.QuoteRequest, b'{"job": {"training": {"loss": "ce"}}}', "'ce'; expected one of cross_entropy, "),
        (m.QuoteRequest, b'{"job": {"training": {"metrics": ["acc"]}}}', "'acc'; expected one of accuracy, "),
        (m.QuoteRequest, b'{"job": {"training": {"schedule": {"name": "cos"}}}}', "'cos'; expected one of constant, "),
        (m.JobListRequest, b'{"status": "done"}', "'done'; expected one of .*completed"),
        (m.JobListRequest, b'{"status": "a - at b"}', "'a - at b'; expected one of .*completed"),
    ],
)
def test_of_a_wrong_word_the_right_ones_are_told(kind, payload, words):
    with pytest.raises(BadMessage, match=f"Invalid enum value {words}.* - at `"):
        decode(kind, payload)


def test_a_job_id_with_a_trailing_newline_is_refused():
    with pytest.raises(BadMessage):
        decode(m.JobRef, b'{"job_id": "abc\\n"}')


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused_with_its_place(number):
    payload = msgspec.msgpack.encode({"job": {"training": {"optimizer": {"learning_rate": number}}}})
    with pytest.raises(BadMessage):
        decode(m.QuoteRequest, payload, MSGPACK)
    with pytest.raises(BadMessage, match=r"finite number, got .* - at `\$.layers\[0\].p`"):
        decode(m.ModelSpec, msgspec.msgpack.encode({"layers": [{"kind": "Dropout", "p": number}]}), MSGPACK)


@pytest.mark.parametrize(
    "payload",
    [b"\x81\xa1p\xca\x7f\x80\x00\x00", b"\x81\xa1p\xca\xff\xc0\x00\x00", b"\x81\xa1p\xcb\xff\xf0" + b"\x00" * 6],
)
def test_no_encoding_of_a_number_that_is_not_finite_gets_through(payload):
    with pytest.raises(BadMessage, match="finite"):
        decode(dict, payload, MSGPACK)


@given(value=st.floats(), before=st.binary(max_size=8))
def test_numbers_are_refused_exactly_when_they_are_not_finite(value, before):
    payload = msgspec.msgpack.encode([before, value])
    try:
        assert decode(list, payload, MSGPACK) == [before, value]
    except BadMessage:
        assert not math.isfinite(value)


@pytest.mark.parametrize("text", [b'{"p": 1e999}', b'{"p": [-1e999]}', b'{"p": NaN}', b'{"p": Infinity}'])
def test_no_json_makes_a_number_that_is_not_finite(text):
    with pytest.raises(BadMessage):
        decode(dict, text, JSON)


def test_too_many_bytes_are_refused_before_parsing():
    with pytest.raises(BadMessage, match="at most 1000000 bytes, got 1000001"):
        decode(m.JobRef, b" " * 1_000_001)


def test_deep_nesting_is_refused():
    with pytest.raises(BadMessage):
        decode(m.ModelSpec, b'{"layers": ' + b"[" * 100_000, JSON)
    with pytest.raises(BadMessage, match="too deep"):
        decode(m.ModelSpec, b'{"layers": [{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}]}", JSON)


@pytest.mark.parametrize("content_type", [JSON, MSGPACK])
def test_how_deep_a_message_may_go_is_the_same_with_every_python(content_type):
    def message(depth: int) -> bytes:
        value: object = 1
        for _ in range(depth - 3):  # in the list of layers, which are in an object
            value = [value]
        return encode({"input": [4], "layers": [{"kind": value}]}, content_type)

    assert decode(m.ModelSpec, message(100), content_type).layers
    with pytest.raises(BadMessage, match="at most 100 deep"):
        decode(m.ModelSpec, message(101), content_type)


def test_an_unknown_content_type_is_refused():
    with pytest.raises(BadMessage, match="Content-Type"):
        decode(m.JobRef, b"{}", "text/html")


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.__name__)
@settings(max_examples=150, deadline=None)
@given(payload=st.binary(max_size=300), content_type=st.sampled_from([JSON, MSGPACK]))
def test_any_bytes_are_a_message_or_one_error(kind, payload, content_type):
    try:
        assert isinstance(decode(kind, payload, content_type), kind)
    except BadMessage as error:
        assert str(error)


def test_every_prefix_of_a_message_is_refused():
    whole = encode(m.Heartbeat(node_id="node-1-abc", session="0" * 32, runs=[m.RunRef(job_id="abc", attempt=1)]))
    for length in range(len(whole)):
        with pytest.raises(BadMessage):
            decode(m.Heartbeat, whole[:length], MSGPACK)


def integers_in(kind, path, seen):
    """(path, type) of every integer that a message may hold."""
    match kind:
        case msgspec.inspect.StructType() if kind.cls not in seen:
            for field in kind.fields:
                yield from integers_in(field.type, f"{path}.{field.name}", seen | {kind.cls})
        case msgspec.inspect.UnionType():
            for each in kind.types:
                yield from integers_in(each, path, seen)
        case msgspec.inspect.ListType() | msgspec.inspect.VarTupleType():
            yield from integers_in(kind.item_type, f"{path}[]", seen)
        case msgspec.inspect.DictType():
            yield from integers_in(kind.value_type, f"{path}[]", seen)
        case msgspec.inspect.IntType():
            yield path, kind


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.__name__)
def test_no_integer_of_a_request_is_larger_than_the_log_and_the_ledger_can_hold(kind):
    # a summary with 2⁶⁴ - 1 steps was stored, and its event in quarantine then
    found = list(integers_in(msgspec.inspect.type_info(kind), kind.__name__, frozenset()))
    unbounded = [path for path, number in found if number.le is None or number.ge is None or number.le >= 2**63]
    assert unbounded == []


def test_what_is_no_json_is_told_what_was_expected() -> None:
    # of an empty body it said "Input data was truncated", and no more
    with pytest.raises(BadMessage, match="^expected application/json: "):
        decode(dict, b"", JSON)

"""Questions to a deployed model and their answers, as messages and back."""

import pytest

from cyxnet import asking, subjects
from cyxnet.asking import BadQuestion, Part, Question


def test_a_question_is_the_same_after_the_wire():
    question = Question(body=b"[1,2]", route="/v1/chat/completions", accept="text/event-stream", timeout_ms=1500)
    assert asking.question_of(question.body, asking.question_headers(question)) == question


def test_a_question_without_headers_is_a_prediction_in_json():
    assert asking.question_of(b"{}", {}) == Question(body=b"{}", route="/v1/predict")


@pytest.mark.parametrize("route", ["v1/predict", "/v1/predict?x=1", "/" + "a" * 101, "/V1", ""])
def test_a_route_that_is_no_path_is_refused(route):
    with pytest.raises(BadQuestion, match="Cyx-Route"):
        asking.question_of(b"", {"Cyx-Route": route})


@pytest.mark.parametrize("name", ["Content-Type", "Accept"])
def test_a_question_says_what_it_is_in_few_words(name):
    for text in ("a" * 201, "a/b\x00", "\u2603"):
        with pytest.raises(BadQuestion, match=f"{name}: expected at most 200 letters of ASCII"):
            asking.question_of(b"", {name: text})
    with pytest.raises(BadQuestion, match="expected at most 4096 bytes of headers, got 5000"):
        asking.refuse_many_headers(bytes(5000))


def test_a_part_is_the_same_after_the_wire():
    part = Part(body=b"x", status=429, number=3, end=False, headers={"Retry-After": "2"})
    assert asking.part_of(part.body, asking.part_headers(part)) == part


@pytest.mark.parametrize("headers", [{}, {"Cyx-Status": "200"}, {"Cyx-Status": "99", "Cyx-Part": "0"}])
def test_what_is_no_part_is_refused(headers):
    with pytest.raises(BadQuestion, match="expected a whole number"):
        asking.part_of(b"", headers)


@pytest.mark.parametrize("size", [0, 1, asking.PART_BYTES, asking.PART_BYTES + 1, 3 * asking.PART_BYTES])
def test_a_large_answer_comes_in_parts_of_which_the_last_says_so(size):
    parts = list(asking.parts_of(Part(body=bytes(size), content_type="application/x-npy")))
    assert b"".join(part.body for part in parts) == bytes(size)
    assert [part.number for part in parts] == list(range(len(parts)))
    assert [part.end for part in parts] == [False] * (len(parts) - 1) + [True]
    assert all(len(part.body) <= asking.PART_BYTES for part in parts)


def test_an_answer_goes_to_the_caller_who_asked_and_to_nobody_else():
    subject = subjects.infer("digits-0123456789ab", "c-1")
    caller, own = asking.asker(subject)
    assert caller == "c-1" and subjects.reply("c-1", "token").startswith(own)
    for elsewhere in (subjects.reply("c-2", "token"), "_INBOX_c-1.x", "cyx.v1.api.c-1.job.submit", ""):
        assert not elsewhere.startswith(own)


def test_a_deployment_belongs_to_the_caller_its_id_was_made_for():
    mine = subjects.deployment_id("digits", "c-1")
    assert subjects.is_owned(mine, "c-1") and not subjects.is_owned(mine, "c-2")
    assert not subjects.is_owned("digits", "c-1")


@pytest.mark.parametrize("name", ["Content-Type", "Retry-After"])
def test_what_a_replica_says_ends_no_line_of_who_passes_it_on(name):
    headers = asking.part_headers(Part()) | {name: "1\nSet-Cookie: a=b"}
    with pytest.raises(BadQuestion, match=name):
        asking.part_of(b"", headers)


def test_how_far_an_asker_is_is_the_same_after_the_wire():
    for parts in (0, 7, 999_999_999, None):
        assert asking.progress_of(asking.progress("0a-b", parts)) == ("0a-b", parts)
    for payload in (b"", b"a", b"a ", b"a -1", b"a 1234567890", b"a b 1", b"a stop ", b"\xff 1", b"a 1\n"):
        assert asking.progress_of(payload) is None

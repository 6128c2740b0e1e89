"""How much may be uploaded by whom."""

import pytest

from cyxcentral.uploads import DAY_S, STRANGERS_SHARE, WORKERS_SHARE, Uploads
from cyxnet.outcomes import ApiError

DAILY = 1_000_000
KNOWN, WORKER = {"c-alice", "c-bob"}, {"node-a"}


@pytest.fixture
def uploads():
    return Uploads(DAILY, KNOWN.__contains__, WORKER.__contains__)


def sent(uploads, who, size_bytes, now_s=0.0):
    """Whether it is taken; the refusal is a plain one."""
    try:
        uploads.charge(who, size_bytes, now_s)
    except ApiError as error:
        assert (error.code, error.status) == ("quota", 429) and error.retry_after_ms > 0
        return False
    return True


def test_each_who_is_known_has_a_day_of_bytes_and_gets_it_back_with_time(uploads):
    assert sent(uploads, "c-alice", DAILY)
    assert not sent(uploads, "c-alice", 1_000)
    assert sent(uploads, "c-bob", DAILY)
    assert not sent(uploads, "c-alice", DAILY // 2 + 1_000, DAY_S / 2)
    assert sent(uploads, "c-alice", DAILY // 2, DAY_S / 2)


def test_strangers_have_less_each_and_one_day_together(uploads):
    each = DAILY // STRANGERS_SHARE
    assert sent(uploads, "c-0", each)
    assert not sent(uploads, "c-0", 1_000)
    for number in range(1, STRANGERS_SHARE):
        assert sent(uploads, f"c-{number}", each)
    assert not sent(uploads, "c-another", each)
    assert sent(uploads, "c-alice", DAILY)


def test_who_is_refused_because_of_all_the_others_keeps_what_is_his(uploads):
    each = DAILY // STRANGERS_SHARE
    for number in range(STRANGERS_SHARE):
        assert sent(uploads, f"c-{number}", each)
    assert not any(sent(uploads, "c-late", each) for _ in range(5))  # each of them was charged to it
    assert sent(uploads, "c-late", each, DAY_S / STRANGERS_SHARE)


def test_a_node_that_holds_a_lease_stores_what_it_was_asked_for_but_not_without_end(uploads):
    assert all(sent(uploads, "node-a", DAILY) for _ in range(WORKERS_SHARE))
    assert not sent(uploads, "node-a", DAILY)
    assert sent(uploads, "node-a", DAILY, DAY_S / WORKERS_SHARE)


def test_without_a_quota_everything_is_taken():
    uploads = Uploads(0, KNOWN.__contains__, WORKER.__contains__)
    assert all(sent(uploads, "c-0", DAILY) for _ in range(5))

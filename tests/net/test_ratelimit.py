"""Token buckets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyxnet.ratelimit import Rate, RateLimiter


def test_a_burst_is_taken_at_once_and_then_the_rate_counts():
    limiter = RateLimiter(Rate(per_s=10, burst=3))
    assert [limiter.wait_ms("a", 0.0) for _ in range(3)] == [0, 0, 0]
    assert limiter.wait_ms("a", 0.0) == 101
    assert limiter.wait_ms("a", 0.101) == 0


def test_who_waits_as_long_as_told_may_go_on():
    limiter = RateLimiter(Rate(per_s=7, burst=1))
    assert limiter.wait_ms("a", 5.0) == 0
    assert limiter.wait_ms("a", 5.0 + limiter.wait_ms("a", 5.0) / 1000) == 0


def test_one_who_floods_costs_nobody_else_anything():
    limiter = RateLimiter(Rate(per_s=1, burst=1))
    assert [bool(limiter.wait_ms("flood", 0.0)) for _ in range(100)] == [False] + [True] * 99
    assert limiter.wait_ms("honest", 0.0) == 0


def test_a_clock_that_goes_back_gives_no_tokens_and_takes_none():
    limiter = RateLimiter(Rate(per_s=1000, burst=1))
    assert limiter.wait_ms("a", 10.0) == 0
    assert limiter.wait_ms("a", 9.0) > 0


def test_memory_is_bounded():
    limiter = RateLimiter(Rate(per_s=1, burst=1), identities=10)
    for number in range(1000):
        limiter.wait_ms(str(number), 0.0)
    assert len(limiter._buckets) == 10


@pytest.mark.parametrize("rate", [Rate(per_s=0, burst=5), Rate(per_s=5, burst=0)])
def test_a_rate_that_lets_nobody_through_is_refused(rate):
    with pytest.raises(ValueError, match="positive rate"):
        RateLimiter(rate)


@given(st.lists(st.floats(0, 5), max_size=200))
def test_no_pattern_of_asking_gets_more_than_burst_and_rate(gaps):
    limiter, now, granted = RateLimiter(Rate(per_s=4, burst=5)), 0.0, 0
    for gap in gaps:
        now += gap
        granted += limiter.wait_ms("a", now) == 0
        assert granted <= 5 + 4 * now + 1e-6

"""Token buckets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyxnet.ratelimit import LONGEST_WAIT_MS, Floods, Newcomers, Places, Rate, RateLimiter, household


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


def test_what_costs_more_than_a_bucket_holds_takes_a_full_one():
    limiter = RateLimiter(Rate(per_s=1, burst=3))
    assert limiter.wait_ms("a", 0.0, cost=9) == 0
    assert limiter.wait_ms("a", 0.0, cost=9) == 3001
    assert limiter.wait_ms("a", 3.001, cost=9) == 0


@pytest.mark.parametrize(
    "address, counts_as",
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("no:address", "no:address"),
    ],
)
def test_the_addresses_of_one_customer_count_as_one(address, counts_as):
    assert household(address) == counts_as


def test_a_rate_of_next_to_nothing_is_a_long_wait():
    limiter = RateLimiter(Rate(per_s=1e-320, burst=1))
    assert limiter.wait_ms("a", 0.0) == 0
    assert limiter.wait_ms("a", 1.0) == LONGEST_WAIT_MS + 1


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


def test_who_goes_on_although_refused_floods_and_is_out_for_a_while():
    floods = Floods(Rate(per_s=1, burst=3), out_s=10.0)
    assert [floods.refused("a", 0.0) for _ in range(6)] == [False, False, False, True, False, False]
    assert floods.is_out("a", 9.9) and not floods.is_out("b", 9.9)
    assert not floods.is_out("a", 10.0)
    assert [floods.refused("a", 10.0) for _ in range(4)] == [False, False, False, True]


def test_who_is_refused_now_and_then_never_floods():
    floods = Floods(Rate(per_s=1, burst=3), out_s=10.0)
    assert not any(floods.refused("a", second) for second in range(1000))


def test_nobody_takes_the_places_that_others_need():
    places = Places(8)
    assert [places.take("flood") for _ in range(6)] == [True] * 4 + [False] * 2
    assert [places.take("second") for _ in range(3)] == [True, True, False]
    assert places.take("honest")
    for name, count in (("flood", 4), ("second", 2), ("honest", 1)):
        places.give_back(name, count)
    assert (places.total, places._taken) == (0, {})


def test_a_large_request_takes_several_places_and_is_never_too_large_for_who_has_none():
    places = Places(8)
    assert places.take("a", 100)
    assert not places.take("b")
    places.give_back("a", 100)
    assert places.take("a", 3) and not places.take("a", 6) and places.take("b", 3)


def test_newcomers_of_one_address_or_network_are_limited_and_those_of_this_machine_are_not():
    newcomers = Newcomers(0.1, at_once=2.0)
    assert [newcomers.wait_ms("203.0.113.9", 0.0) > 0 for _ in range(3)] == [False, False, True]
    same_network = [f"2001:db8::{number}" for number in (1, 2, 3)]
    assert [newcomers.wait_ms(address, 0.0) > 0 for address in same_network] == [False, False, True]
    assert newcomers.wait_ms("203.0.113.9", 10.0) == 0
    assert not any(newcomers.wait_ms(address, 0.0) for address in ["127.0.0.1"] * 5 + ["::1"] * 5)


def test_what_came_while_nobody_listened_is_no_flood_and_more_than_that_is():
    limiter = RateLimiter(Rate(per_s=100, burst=50))
    assert not any(limiter.wait_ms("a", 0.0) for _ in range(50))
    limiter.not_heard(10.0)
    assert sum(not limiter.wait_ms("a", 10.0) for _ in range(5_000)) == 1_000, "the ten seconds that it had no answer"
    assert sum(not limiter.wait_ms("new", 10.0) for _ in range(5_000)) == 1_050
    limiter.not_heard(0.0)
    assert sum(not limiter.wait_ms("a", 100.0) for _ in range(5_000)) == 50

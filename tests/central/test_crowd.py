"""How many connections somebody has, from what brokers say."""

from cyxcentral.crowd import LATE_S, PENDING_S, Crowd

LASTS_S = 900.0


def crowd_of(*numbers, now_s=0.0):
    crowd = Crowd()
    for number in numbers:
        crowd.came("me", ("server", number), LASTS_S, now_s)
    return crowd


def test_who_was_let_in_counts_before_the_broker_says_so_and_once_afterwards():
    crowd = Crowd()
    crowd.let_in("me", 0.0)
    assert crowd.count("me", 1.0) == 1
    assert crowd.came("me", ("server", 1), LASTS_S, 1.0) == 1
    assert crowd.count("me", 1.0) == 1


def test_who_was_let_in_and_never_came_is_forgotten():
    crowd = Crowd()
    crowd.let_in("me", 0.0)
    crowd.let_in("me", 1.0)
    assert [crowd.count("me", at_s) for at_s in (0.0, PENDING_S, 1.0 + PENDING_S)] == [2, 1, 0]


def test_who_came_to_a_broker_that_died_is_forgotten_with_the_next_who_comes():
    crowd = crowd_of(1, 2)
    crowd.came("me", ("server", 2), LASTS_S, 500.0)  # this one came again
    crowd.came("another", ("server", 3), LASTS_S, LASTS_S + LATE_S)
    assert set(crowd._inside["me"]) == {("server", 2)} and len(crowd._ends) == 2
    crowd.came("another", ("server", 4), LASTS_S, 500.0 + LASTS_S + LATE_S)
    assert "me" not in crowd._inside


def test_who_left_counts_no_more_and_leaves_nothing_behind():
    crowd = crowd_of(1, 2)
    crowd.left("me", ("server", 1))
    crowd.left("me", ("server", 1))  # said twice
    assert crowd.count("me", 0.0) == 1
    crowd.left("me", ("server", 2))
    assert crowd.count("me", 0.0) == 0
    assert (crowd._inside, crowd._pending) == ({}, {})


def test_the_connections_of_somebody_are_those_that_brokers_told_of():
    crowd = crowd_of(1, 2)
    crowd.let_in("me", 0.0)
    crowd.came("another", ("server", 3), LASTS_S, 0.0)
    crowd.left("me", ("server", 1))
    assert (crowd.inside("me"), crowd.inside("nobody")) == ([("server", 2)], [])


def test_who_came_and_left_after_being_let_in_leaves_nothing_behind():
    # any number of identities are free: an empty list of each stayed for ever
    crowd = Crowd()
    for number in range(100):
        crowd.let_in(f"c-{number}", 0.0)
        crowd.came(f"c-{number}", ("server", number), LASTS_S, 0.0)
        crowd.left(f"c-{number}", ("server", number))
    assert (crowd._inside, crowd._pending) == ({}, {})
    crowd.let_in("me", PENDING_S)
    assert len(crowd._let_in) == 1


def test_who_was_let_in_and_never_came_is_forgotten_although_nobody_asks_about_him():
    crowd = Crowd()
    for at_s in (0.0, 1.0, 2.0):
        crowd.let_in("gone", at_s)
    crowd.let_in("me", 1.0 + PENDING_S)
    assert crowd.count("gone", 1.5) == 1
    crowd.let_in("me", 2.0 + PENDING_S)
    assert set(crowd._pending) == {"me"}
    assert len(crowd._let_in) == 2


def test_one_number_on_two_brokers_is_two_connections():
    crowd = crowd_of(1)
    assert crowd.came("me", ("another", 1), LASTS_S, 0.0) == 2


def test_the_connections_of_a_broker_that_died_are_gone_when_their_time_is_over():
    crowd = crowd_of(1, 2)
    assert crowd.count("me", LASTS_S + LATE_S - 1) == 2
    assert crowd.count("me", LASTS_S + LATE_S) == 0


def test_nobody_counts_for_another():
    crowd = crowd_of(1, 2, 3)
    assert crowd.count("somebody else", 0.0) == 0
    crowd.left("somebody else", ("server", 1))
    assert crowd.count("me", 0.0) == 3


def test_a_count_forgets_who_left_unheard_and_brokers_that_are_gone_and_keeps_who_came_meanwhile():
    crowd = crowd_of(1, 2)
    crowd.came("me", ("dead", 7), LASTS_S, 0.0)
    assert crowd.doubt("me") and not crowd.doubt("me")
    crowd.came("me", ("server", 3), LASTS_S, 0.0)
    crowd.counted("me", "server", {2})
    crowd.settle("me")
    assert set(crowd._inside["me"]) == {("server", 2), ("server", 3)}
    assert crowd.doubt("me")


def test_a_count_that_no_broker_answered_changes_nothing():
    crowd = crowd_of(1, 2)
    crowd.doubt("me")
    crowd.settle("me")
    crowd.counted("me", "server", set())  # too late
    assert crowd.count("me", 0.0) == 2

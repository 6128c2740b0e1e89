"""The plan of a round is a function of its seed."""

from tests.chaos.faults import NETWORK_MODES, groups, plan
from tests.chaos.proxy import MODES


def test_the_same_seed_makes_the_same_plan_and_another_seed_another():
    assert plan(7, 50, 4, 1.0) == plan(7, 50, 4, 1.0)
    assert plan(7, 50, 4, 1.0) != plan(8, 50, 4, 1.0)


def test_a_plan_has_the_kills_that_were_asked_for_and_spares_nobody():
    faults = plan(1, 60, 3, 1.0)
    killed = [fault.victim for fault in faults if fault.deed == "kill"]
    assert len(killed) == 60
    everyone = {name for group, names in groups(3).items() if group != "links" for name in names}
    assert set(killed) == everyone


def test_every_mode_of_a_plan_is_one_that_a_link_knows():
    assert set(NETWORK_MODES) == set(MODES)
    assert {fault.mode for fault in plan(3, 200, 4, 1.0) if fault.deed == "network"} == set(MODES)

"""The life of a node, and how it comes to its reputation."""

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from cyxcentral import nodes
from cyxcentral.world import JUDGED
from cyxnet import messages as m
from tests.central import facts as f

HOUR_MS, WEEK_MS = 3_600_000, 7 * 24 * 3_600_000
AGAIN = "1" * 32  # the session after a restart
BANNED = m.NodeBanned(until_ms=24 * HOUR_MS, reason="3 strikes")
PARDONED = m.NodePardoned(reason="the disk was replaced")


def node_after(*events, leases=0):
    """A node after these events, one second apart; `leases` in its hands each time."""
    node = None
    for second, event in enumerate(events):
        assert nodes.illegal(node, event) is None, event
        node = nodes.evolve(node, event, second * 1000, leases)
    return node


STATES = {
    "new": None,
    "online": node_after(f.registered()),
    "draining": node_after(f.registered(), f.draining()),
    "offline": node_after(f.registered(), f.node_lost()),
    "banned": node_after(f.registered(), BANNED),
    "banned_offline": node_after(f.registered(), BANNED, f.node_lost()),
}
NODE_EVENTS = {
    "NodeRegistered": f.registered(session=AGAIN),
    "NodeLost": f.node_lost(),
    "NodeDraining": f.draining(),
    "NodeUndrained": m.NodeUndrained(session="0" * 32),
    "NodeGpusRead": m.NodeGpusRead(session="0" * 32, free_bytes=[]),
    "NodeBanned": BANNED,
    "NodePardoned": PARDONED,
}
JOB_EVENTS = {
    "Completed": f.completed(),
    "TimeUsed": f.time_used(),
    "LeaseLost": f.lost(),
    "Checked": m.Checked(finding=f.finding()),
    "CheckGivenUp": m.CheckGivenUp(reason="nobody came"),
    "Rejected": f.rejected(f.finding("9" * 64), f.finding("9" * 64, m.FIRST_CHECK + 1)),
}
NEXT = {  # state -> event -> state; what is not here cannot happen
    "new": {"NodeRegistered": "online"},
    "online": {
        "NodeRegistered": "online",
        "NodeLost": "offline",
        "NodeDraining": "draining",
        "NodeGpusRead": "online",
        "NodeBanned": "banned",
        "NodePardoned": "online",
        **dict.fromkeys(JOB_EVENTS, "online"),
    },
    "draining": {
        "NodeRegistered": "online",
        "NodeLost": "offline",
        "NodeUndrained": "online",
        "NodeGpusRead": "draining",
        "NodeBanned": "banned",
        "NodePardoned": "draining",
        **dict.fromkeys(JOB_EVENTS, "draining"),
    },
    "offline": {
        "NodeRegistered": "online",
        "NodeBanned": "banned_offline",
        "NodePardoned": "offline",
        **dict.fromkeys(JOB_EVENTS, "offline"),
    },
    "banned": {
        "NodeRegistered": "banned",
        "NodeLost": "banned_offline",
        "NodeBanned": "banned",
        "NodePardoned": "online",
        **dict.fromkeys(JOB_EVENTS, "banned"),
    },
    "banned_offline": {
        "NodeRegistered": "banned",
        "NodeBanned": "banned_offline",
        "NodePardoned": "offline",
        **dict.fromkeys(JOB_EVENTS, "banned_offline"),
    },
}


def test_every_kind_of_event_is_among_those_tried():
    kinds = {type(event) for event in (NODE_EVENTS | JOB_EVENTS).values()}
    assert kinds == nodes.STATES.keys() == set(get_args(m.NodeEvent)) | JUDGED


@pytest.mark.parametrize("state", STATES)
def test_each_state_is_what_it_is_called(state):
    assert nodes.state(STATES[state]) == state


@pytest.mark.parametrize("event", [*NODE_EVENTS, *JOB_EVENTS])
@pytest.mark.parametrize("state", STATES)
def test_every_pair_of_state_and_event_is_defined(state, event):
    kind = type((NODE_EVENTS | JOB_EVENTS)[event])
    assert nodes.STATES[kind][state] == NEXT[state].get(event)


@pytest.mark.parametrize("event", NODE_EVENTS)
@pytest.mark.parametrize("state", STATES)
def test_a_node_event_is_legal_and_leads_where_the_table_says(state, event):
    expected = NEXT[state].get(event)
    assert (nodes.illegal(STATES[state], NODE_EVENTS[event]) is None) == (expected is not None)
    if expected:
        assert nodes.state(nodes.evolve(STATES[state], NODE_EVENTS[event], 9_000)) == expected


@pytest.mark.parametrize("event", JOB_EVENTS)
@pytest.mark.parametrize("state", sorted(set(STATES) - {"new"}))
def test_what_happens_to_its_jobs_moves_no_node(state, event):
    judged = nodes.judged(STATES[state], "job-1", JOB_EVENTS[event], 9_000)
    assert nodes.state(judged) == NEXT[state][event]


def test_the_loss_of_another_session_is_not_the_loss_of_this_one():
    assert nodes.illegal(STATES["online"], f.node_lost(session=AGAIN)) == "another session of the node is connected"


# -- bans --------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["NodeRegistered", "NodeLost", *JOB_EVENTS]), st.integers(0, 3)), max_size=30)
)
def test_whatever_a_banned_node_does_it_stays_banned_until_its_time_is_over(said):
    node = STATES["banned"]
    for step, (name, leases) in enumerate(said):
        if name in JOB_EVENTS:
            node = nodes.judged(node, "job-1", JOB_EVENTS[name], 9_000 + step)
        else:
            event = NODE_EVENTS[name]
            if name == "NodeLost":
                event = replace(event, session=node.session)
            if nodes.illegal(node, event) is None:
                node = nodes.evolve(node, event, 9_000 + step, leases)
        assert nodes.state(nodes.at(node, BANNED.until_ms - 1)).startswith("banned")
    free = nodes.at(node, BANNED.until_ms)
    assert (free.banned_until_ms, free.strikes, free.reputation) == (0, 0, 25.0)


def struck(times, node=None, at_ms=9_000):
    node = node or STATES["online"]
    for number in range(times):
        node = nodes.blamed(node, f"job-{number}", f.lost(), at_ms)
    return node


def test_three_strikes_earn_a_ban_and_two_do_not():
    assert nodes.ban_due(struck(2), 9_000) is None
    assert nodes.ban_due(struck(3), 9_000) == m.NodeBanned(until_ms=9_000 + 24 * HOUR_MS, reason="3 strikes")


def test_each_ban_is_longer_up_to_a_week():
    lengths, node, now_ms = [], STATES["online"], 9_000
    for _ in range(4):
        ban = nodes.ban_due(struck(3, node, now_ms), now_ms)
        lengths.append((ban.until_ms - now_ms) // HOUR_MS)
        node, now_ms = nodes.at(nodes.evolve(node, ban, now_ms), ban.until_ms), ban.until_ms
    assert lengths == [24, 48, 168, 168]


def test_a_reputation_below_25_is_a_ban_too():
    low = replace(STATES["online"], reputation=24.5)
    assert nodes.ban_due(low, 9_000).reason == "a reputation of 24.5"
    assert nodes.ban_due(replace(low, reputation=25.0), 9_000) is None


def test_a_banned_node_is_not_banned_again_and_gets_no_strikes_for_what_it_held():
    node = struck(3, nodes.evolve(struck(3), BANNED, 9_000))
    assert nodes.ban_due(node, 9_500) is None
    assert node.strikes == 3
    assert nodes.at(node, BANNED.until_ms).strikes == 0


def test_an_operator_may_ban_for_longer_and_it_counts_as_the_same_ban():
    longer = nodes.evolve(STATES["banned"], replace(BANNED, until_ms=WEEK_MS), 9_000)
    assert (longer.banned_until_ms, longer.bans) == (WEEK_MS, 1)


def test_a_pardon_ends_the_ban_and_leaves_a_reputation_to_work_with():
    ruined = replace(STATES["banned"], reputation=3.0, strikes=3)
    pardoned = nodes.evolve(ruined, PARDONED, 9_000)
    assert (pardoned.banned_until_ms, pardoned.strikes, pardoned.reputation) == (0, 0, 25.0)
    assert nodes.ban_due(pardoned, 9_000) is None
    assert nodes.evolve(STATES["banned"], PARDONED, 9_000).reputation == 75.0


# -- reputation --------------------------------------------------------------------------------------------


def reputation_after(event, leases=0):
    return nodes.evolve(STATES["online"], event, 9_000, leases).reputation


def test_a_success_is_worth_one_and_takes_a_strike_away():
    node = nodes.judged(struck(2), "job-9", f.completed(), 9_000)
    assert (node.reputation, node.strikes, node.jobs_completed) == (76.0, 1, 1)


def test_a_loss_with_leases_costs_five_and_one_strike_however_many_they_are():
    lost = nodes.evolve(STATES["online"], f.node_lost(), 9_000, leases=8)
    assert (lost.reputation, lost.strikes) == (70.0, 1)


def test_a_silence_without_leases_costs_two_and_no_strike():
    lost = nodes.evolve(STATES["online"], f.node_lost(), 9_000)
    assert (lost.reputation, lost.strikes) == (73.0, 0)


def test_a_goodbye_costs_nothing():
    assert reputation_after(f.node_lost(graceful=True), leases=2) == 75.0


def test_coming_back_as_a_new_session_with_leases_is_a_disconnect_and_saying_the_same_again_is_not():
    assert reputation_after(f.registered(session=AGAIN), leases=1) == 70.0
    assert reputation_after(f.registered(session=AGAIN)) == 75.0
    assert reputation_after(f.registered(), leases=1) == 75.0


def test_a_failure_costs_two_and_is_a_strike_only_when_another_node_completes_the_job():
    failed = nodes.judged(STATES["online"], "job-1", f.lost(), 9_000)
    assert (failed.reputation, failed.strikes, failed.jobs_failed) == (73.0, 0, 1)
    blamed = nodes.blamed(failed, "job-1", f.lost(), 9_000)
    assert (blamed.reputation, blamed.strikes) == (73.0, 1)


def test_a_failure_put_down_to_the_job_costs_nothing_until_another_node_completes_it():
    blaming = f.lost(deterministic=True)
    assert nodes.judged(STATES["online"], "job-1", blaming, 9_000) == STATES["online"]
    blamed = nodes.blamed(STATES["online"], "job-1", blaming, 9_000)
    assert (blamed.reputation, blamed.strikes) == (73.0, 1)


@pytest.mark.parametrize("code", ["refused", "paused", "node_stopped"])
def test_what_is_not_the_nodes_fault_costs_it_nothing(code):
    lost = replace(f.lost(), code=code)
    assert nodes.judged(STATES["online"], "job-1", lost, 9_000) == STATES["online"]
    assert nodes.blamed(STATES["online"], "job-1", lost, 9_000) == STATES["online"]


def test_a_lease_that_ended_with_its_node_was_counted_when_the_node_was_lost():
    node = nodes.judged(STATES["offline"], "job-1", replace(f.lost(), code="node_lost"), 9_000)
    assert (node.reputation, node.strikes, node.jobs_failed) == (STATES["offline"].reputation, 0, 1)


def test_a_run_that_the_node_forgot_is_a_strike_at_once_and_only_one():
    missing = replace(f.lost(), code="run_missing")
    node = nodes.judged(STATES["online"], "job-1", missing, 9_000)
    assert (node.reputation, node.strikes) == (73.0, 1)
    assert nodes.blamed(node, "job-1", missing, 9_000) == node


def test_a_strike_fades_with_each_week_without_another():
    node = struck(2)
    assert nodes.at(node, 9_000 + WEEK_MS - 1).strikes == 2
    assert nodes.at(node, 9_000 + WEEK_MS).strikes == 1
    assert nodes.at(nodes.at(node, 9_000 + WEEK_MS), 9_000 + 2 * WEEK_MS).strikes == 0
    assert nodes.at(node, 9_000 + 5 * WEEK_MS).strikes == 0


def test_a_clock_that_is_behind_changes_nothing():
    node = struck(2)
    assert nodes.at(node, 0) == node
    assert nodes.at(STATES["banned"], 0) == STATES["banned"]


def test_registering_again_keeps_the_record_and_takes_the_news():
    node = nodes.judged(struck(1), "job-1", f.completed(), 5_000)
    again = nodes.evolve(node, f.registered(session=AGAIN, region="eu"), 9_000)
    assert (again.jobs_completed, again.reputation, again.registered_at_ms) == (1, 76.0, 0)
    assert (again.session, again.region, again.changes) == (AGAIN, "eu", node.changes)


def test_every_change_has_its_reason_and_the_last_twenty_are_kept():
    node = STATES["online"]
    for number in range(30):
        node = nodes.judged(node, f"job-{number}", f.completed(), number)
    assert [change.reason for change in node.changes] == [f"completed job-{number}" for number in range(10, 30)]
    assert node.changes[-1] == m.StandingChange(at_ms=29, change=0.0, reputation=100.0, reason="completed job-29")


# -- what it is paid for -----------------------------------------------------------------------------------

REFERENCE = 1_000


def paid(node, *fees, client="client", at_ms=10_000):
    for fee in fees:
        node = nodes.rewarded(node, "job-1", client, fee, REFERENCE, at_ms)
    return node


def gain_of(node):
    return node.reputation - nodes.START_REPUTATION


def test_jobs_of_one_client_count_one_a_half_a_quarter_and_never_more_than_two():
    node, gains = node_after(f.registered()), []
    for _ in range(3):
        before, node = node, paid(node, REFERENCE)
        gains.append(node.reputation - before.reputation)
    assert gains == [1.0, 0.5, 0.25]
    assert nodes.MOST_FROM_ONE - 1e-6 < gain_of(paid(node, *[10 * REFERENCE] * 60)) <= nodes.MOST_FROM_ONE


def test_a_gain_grows_with_the_fee_up_to_the_reference_fee():
    node = node_after(f.registered())
    assert [gain_of(paid(node, fee)) for fee in (0, 1, REFERENCE // 2, REFERENCE, 7 * REFERENCE)] == pytest.approx(
        [0.0, 0.001, 0.5, 1.0, 1.0]
    )


def test_what_one_client_gained_a_node_counts_half_after_a_week():
    node = paid(node_after(f.registered()), REFERENCE)
    assert gain_of(paid(node, REFERENCE, at_ms=10_000 + WEEK_MS)) == 1.75
    assert gain_of(paid(node, REFERENCE, at_ms=10_000 + 9 * WEEK_MS)) == pytest.approx(2.0, abs=0.001)


def test_a_node_that_pays_itself_gains_nothing():
    node = node_after(f.registered())
    assert paid(node, REFERENCE, client=node.wallet) == node


def test_a_whole_point_forgives_a_strike_and_less_does_not():
    node = struck(2)
    half = paid(node, REFERENCE // 2)
    assert (half.strikes, half.mended) == (2, 0.5)
    one = paid(half, REFERENCE // 2, client="another")
    assert (one.strikes, one.mended) == (1, 0.0)
    assert paid(node_after(f.registered()), REFERENCE // 2).mended == 0.0, "nothing is saved up for strikes to come"


def test_a_completion_counts_when_it_is_paid_and_not_before():
    node = nodes.judged(struck(1), "job-1", f.completed(), 10_000, by_fee=True)
    assert (node.jobs_completed, node.strikes, node.reputation) == (1, 1, struck(1).reputation)


def test_a_node_is_proven_once_three_clients_have_each_left_a_whole_reference_fee():
    node = paid(node_after(f.registered()), *[REFERENCE] * 20, client="one")
    node = paid(node, *[REFERENCE // 10] * 9, client="two")
    node = paid(node, REFERENCE - 1, client="three")
    assert (nodes.proofs(node), nodes.proven(node)) == (1, False)
    node = paid(node, REFERENCE // 10, client="two")
    assert not nodes.proven(node)
    assert nodes.proven(paid(node, 1, client="three"))


def test_a_node_whose_ban_is_over_is_as_unproven_as_a_new_one_and_a_pardoned_one_is_not():
    node = node_after(f.registered())
    for client in ("one", "two", "three"):
        node = paid(node, REFERENCE, client=client)
    banned = nodes.evolve(node, BANNED, 11_000)
    assert nodes.proven(nodes.evolve(banned, PARDONED, 12_000))
    back = nodes.at(banned, 24 * HOUR_MS)
    assert not nodes.proven(back) and not back.payers


def test_of_more_payers_than_are_kept_those_that_prove_nothing_give_way_then_the_oldest():
    node = node_after(f.registered())
    for number in range(3):
        node = paid(node, REFERENCE, client=f"large-{number}", at_ms=10_000 + number)
    for number in range(nodes.PAYERS_KEPT + 5):
        node = paid(node, 1, client=f"small-{number}", at_ms=20_000 + number)
        assert nodes.proven(node)
    assert len(node.payers) == nodes.PAYERS_KEPT
    for number in range(nodes.PAYERS_KEPT):
        node = paid(node, REFERENCE, client=f"late-{number}", at_ms=30_000 + number)
    assert {payer.wallet for payer in node.payers} == {f"late-{number}" for number in range(nodes.PAYERS_KEPT)}


def test_tiers_are_named_by_reputation():
    named = [nodes.tier(replace(STATES["online"], reputation=value)) for value in (100, 80, 79.5, 50, 49, 25, 24.9, 0)]
    assert named == ["premium", "premium", "normal", "normal", "probation", "probation", "banned", "banned"]
    assert nodes.tier(STATES["banned"]) == "banned"


def test_silence_of_a_whole_lease_is_loss_and_an_unheard_node_gets_a_fresh_one():
    known = {"node-a": node_after(f.registered()), "node-b": node_after(f.registered("node-b"))}
    assert nodes.silent({"node-a": 0.0}, known, lease_ms=100, now_ms=100.0) == []
    assert nodes.silent({"node-a": 0.0}, known, lease_ms=100, now_ms=100.1) == ["node-a"]

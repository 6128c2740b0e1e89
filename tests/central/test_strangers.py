"""What it is worth to be a stranger: markets of nodes and clients, in which production's pure functions decide.

Every job costs the same. Honest work costs its node a half of that in electricity; false work costs nothing and is done
at once; what a check finds comes at the end of the hour. Who is found false comes back the next moment with another
key, which nobody can forbid. `pytest -s` shows the figures.
"""

import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cyxcentral import nodes, schedule, segments
from cyxcentral.world import World
from cyxnet import messages as m
from cyxnet import subjects
from tests.central import facts as f

HOUR_MS = 3_600_000
PRICE = 1_000_000_000
COST, PAY, FEE = PRICE // 2, PRICE * 9 // 10, PRICE // 10
CHECKER = "node-c"
CHECKS = segments.Policy(secret=b"s" * 32, checkers=frozenset({CHECKER}))
LIMITS = schedule.Unproven(limit_base_units=2 * PRICE)
NEVER = 10**9


class Market:
    """Hour by hour: jobs come, go to nodes, are delivered, perhaps checked, and paid. All operators have one machine.

    cheats_from: after how many checks that found it right the one among them who cheats does so, on every job.
    """

    def __init__(self, cheats_from, *, honest=8, runs=2, jobs_per_hour=14, clients=20, unproven=LIMITS, checks=CHECKS):
        self.world = World(unproven=unproven)
        self.cheats_from, self.runs, self.jobs_per_hour, self.clients = cheats_from, runs, jobs_per_hour, clients
        self.checks, self.now_ms, self.numbers, self.delivered = checks, 0, itertools.count(), []
        self.earned = dict.fromkeys(("cheat", *(f"honest-{number}" for number in range(honest))), 0)
        self.true, self.false, self.keys = 0, 0, 0  # jobs of the cheat that were paid, and keys that it used
        self.say(subjects.node_event(CHECKER), f.registered(CHECKER, session="c" * 32, checks=True))
        self.say(subjects.node_event(CHECKER), m.NodeDraining(session="c" * 32))  # it trains nothing else
        for number in range(honest):
            self.register(f"honest-{number}", f"honest-{number}")
        self.come_again()

    def say(self, subject, event):
        seq = self.world.seq + 1
        record = m.Record(command_id=f"{seq:032x}", at_ms=self.now_ms, by="c", event=event)
        assert self.world.apply(seq, subject, record) is None

    def register(self, node_id, name):
        wallet = hashlib.sha256(node_id.encode()).hexdigest()[:43]
        self.say(subjects.node_event(node_id), f.registered(node_id, name=name, wallet=wallet, max_runs=self.runs))

    def come_again(self):
        self.keys += 1
        self.cheat = f"cheat-{self.keys:04d}"
        self.register(self.cheat, "cheat")

    def is_false(self, node_id):
        return node_id == self.cheat and self.world.nodes[node_id].jobs_checked >= self.cheats_from

    def hour(self):
        self.now_ms += HOUR_MS
        for _ in range(self.jobs_per_hour):
            number = next(self.numbers)
            job_id = f"job-{number}"
            terms = replace(
                f.terms(job_id), amount_base_units=PRICE, client=f"client-{number % self.clients}".zfill(43)
            )
            event = replace(f.submitted(job_id), terms=terms, reference_fee_base_units=FEE)
            self.say(subjects.job_event(job_id), event)
            self.say(subjects.job_event(job_id), f.FUNDED)
        while True:  # what is false is done at once, and there is room for more
            for choice in self.world.matching.plan(self.now_ms):
                self.lease(choice)
            false = [job.job_id for job in self.world.leased() if self.is_false(job.holder)]
            if not false:
                break
            for job_id in false:
                if self.world.jobs[job_id].holder == self.cheat:
                    self.deliver(job_id)
        for job in self.world.leased():
            self.deliver(job.job_id)
        self.find()

    def lease(self, choice):
        job, node = self.world.jobs[choice.job_id], self.world.nodes[choice.node_id]
        lease = f.leased(job.attempt + 1, node.node_id, node.wallet)
        self.say(subjects.job_event(choice.job_id), lease)
        self.say(subjects.job_event(choice.job_id), m.Started(attempt=lease.attempt))

    def deliver(self, job_id):
        job, subject = self.world.jobs[job_id], subjects.job_event(job_id)
        node_id, false = job.holder, self.is_false(job.holder)
        owner = self.world.nodes[node_id].name
        event = f.completed(job.attempt, node_id)
        in_check = {segments.checked_node(job) for job, *_ in self.delivered}
        event = segments.completion(self.checks, job, event, self.world.nodes, self.now_ms, in_check)
        self.earned[owner] -= 0 if false else COST
        self.say(subject, event)
        if event.segment:
            self.delivered.append((self.world.jobs[job_id], owner, false))
        else:
            self.pay(job, owner, false)

    def find(self):
        """What was delivered in this hour is checked, the first that was drawn in front."""
        delivered, self.delivered = self.delivered, []
        for job, owner, false in delivered:
            subject, node_id = subjects.job_event(job.job_id), segments.checked_node(job)
            if why_not := segments.spared(self.checks, job, self.world.nodes):
                self.say(subject, m.CheckGivenUp(reason=why_not, drawn=False))
                self.pay(job, owner, false)
                continue
            number = m.FIRST_CHECK + job.checks
            self.say(subject, f.check_leased(number))
            if false:
                self.say(subject, m.CheckDiffers(finding=f.finding("9" * 64, number)))
                self.say(subject, f.check_leased(number + 1))
                both = [f.finding("9" * 64, number), f.finding("9" * 64, number + 1)]
                self.say(subject, f.rejected(*both, job.attempt, node_id, job.check.segment))
                if node_id != self.cheat:  # it is banned already
                    continue
                self.say(subjects.node_event(node_id), nodes.ban_due(self.world.nodes[node_id], self.now_ms))
                self.say(
                    subjects.node_event(node_id),
                    m.NodeLost(node_id=node_id, session="0" * 32, reason="banned", graceful=True),
                )
                for held in self.world.runs_of(node_id):
                    self.say(subjects.job_event(held.job_id), f.lost(held.attempt, code="node_stopped"))
                self.come_again()
                continue
            self.say(subject, m.Checked(finding=f.finding("b" * 64, number)))
            self.pay(job, owner, false)

    def pay(self, job, owner, false):
        payee = m.Payee(wallet=job.attempts[-1].wallet, pay_base_units=PRICE, attempt=job.attempt)
        self.say(
            subjects.job_event(job.job_id),
            m.Settled(
                signature=f.SIGNATURE, node_base_units=PAY, platform_base_units=FEE, client_base_units=0, payees=[payee]
            ),
        )
        self.earned[owner] += PAY
        if owner == "cheat":
            self.true, self.false = self.true + (not false), self.false + false

    def after(self, hours):
        for _ in range(hours):
            self.hour()
        others = [earned for owner, earned in self.earned.items() if owner != "cheat"]
        return self.earned["cheat"] / PRICE, sum(others) / len(others) / PRICE


def compared(what, market, hours):
    cheat, honest = market.after(hours)
    print(
        f"{what}: {cheat:.1f} prices in {hours} h, an honest node {honest:.1f}; paid for {market.true} true and "
        f"{market.false} false jobs under {market.keys} keys"
    )
    return cheat, honest


# -- a banned node comes back as somebody new ----------------------------------------------------------------


def test_who_cheats_at_once_earns_nothing_however_often_it_comes_back():
    market = Market(0, jobs_per_hour=24)
    cheat, honest = compared("cheats at once", market, 30)
    assert market.keys > 30
    assert cheat == 0.0 < honest


@pytest.mark.parametrize("cheats_from", [10, 15, 20, 40])
def test_who_is_honest_first_and_then_cheats_gains_next_to_nothing_by_it(cheats_from):
    """Where there is more work than nodes: only then is a node that has just come not left without any."""
    market = Market(cheats_from, jobs_per_hour=24)
    cheat, honest = compared(f"cheats after {cheats_from} checks", market, 200)
    assert market.keys > 2
    assert market.false <= 0.08 * market.true
    assert cheat <= 1.05 * honest


def test_where_nodes_wait_for_work_a_ban_costs_most_of_the_income():
    market = Market(20, jobs_per_hour=14)
    cheat, honest = compared("cheats after 20 checks, more nodes than work", market, 200)
    assert market.keys > 1
    assert cheat < 0.8 * honest


def test_without_limits_and_a_share_that_falls_cheating_would_pay(monkeypatch):
    monkeypatch.setattr(
        segments, "share_of", lambda policy, node, worth: 1.0 if node.jobs_checked < 10 else policy.share
    )
    market = Market(10, jobs_per_hour=24, unproven=schedule.Unproven())
    cheat, honest = compared("as it was: no limit, a flat share", market, 100)
    assert cheat > 2 * honest


def test_whenever_a_node_begins_to_cheat_it_is_paid_for_one_false_job_in_twenty_true_ones_at_most():
    """On average, by the shares alone: the checks that it takes to come so far, and those that it then escapes."""
    node, payers = nodes.evolve(None, f.registered(), 0), PAYERS
    true_jobs, worst = 0.0, 0.0
    for checked in range(1_000):
        known = replace(node, payers=payers, jobs_checked=checked, checked_base_units=PRICE * checked)
        share = segments.share_of(CHECKS, known, PRICE)
        escapes = 1 / share - 1
        worst = max(worst, escapes / true_jobs if true_jobs else escapes)
        true_jobs += 1 / share
    print(f"false jobs that are paid for, of true ones, at most: {worst:.3f}")
    assert worst < 1 / 20


def test_an_honest_newcomer_is_proven_soon_also_where_nodes_wait_for_work():
    market = Market(NEVER, jobs_per_hour=14)
    market.after(100)
    market.come_again()
    hours = next(hour for hour in range(1, 400) if market.hour() or nodes.proven(market.world.nodes[market.cheat]))
    print(f"proven after {hours} h, and {market.world.nodes[market.cheat].jobs_completed} jobs")
    assert hours < 48


# -- jobs for oneself ----------------------------------------------------------------------------------------

PAYERS = tuple(nodes.Payer(wallet=str(number), gained=1.0, at_ms=0, paid_ppm=nodes.WHOLE_PPM) for number in range(3))
WORTHS = st.lists(st.integers(1, 10**6).map(lambda root: root * root), min_size=segments.PROVEN_AFTER + 1, max_size=60)


@given(WORTHS, st.integers(1, 10**13), st.floats(0.001, 1.0))
def test_to_have_jobs_for_oneself_checked_costs_more_than_they_let_false_ones_escape(worths, false_worth, least_share):
    """What is in them costs nothing (a step is enough, and it is found right); the platform's share of them does."""
    policy, node = replace(CHECKS, share=least_share), replace(nodes.evolve(None, f.registered(), 0), payers=PAYERS)
    for worth in worths:
        node = nodes.checked(node, worth)
    fees = sum(worths) * FEE / PRICE
    escape = 1 / segments.share_of(policy, node, false_worth) - 1  # on average, before one of them is checked
    assert escape * false_worth * PAY / PRICE <= fees


WEEK_MS = 7 * 24 * HOUR_MS
FEES = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 3 * FEE), st.integers(0, WEEK_MS)), max_size=120
)  # client, fee, time since the one before


def washed(fees, node=None):
    node, at_ms = node or nodes.evolve(None, f.registered(), 0), 0
    for client, fee, after_ms in fees:
        at_ms += after_ms
        node = nodes.rewarded(node, "job-1", f"client-{client}", fee, FEE, at_ms)
    return node


@given(FEES)
def test_no_point_of_reputation_and_no_forgiven_strike_costs_less_than_a_reference_fee(fees):
    low = replace(nodes.evolve(None, f.registered(), 0), reputation=25.0, strikes=50)
    node, points = washed(fees, low), sum(fee for _, fee, _ in fees) / FEE
    assert node.reputation - 25.0 <= points + 1e-9
    assert 50 - node.strikes <= points + 1e-9 + max(0, sum(after for *_, after in fees) // nodes.STRIKE_FADES_MS)


@given(FEES)
def test_whoever_the_clients_are_a_proof_costs_three_reference_fees(fees):
    if nodes.proven(washed(fees)):
        assert sum(fee for _, fee, _ in fees) >= nodes.PROVEN_CLIENTS * FEE


def test_out_of_probation_by_clients_that_are_made_up():
    low = replace(nodes.evolve(None, f.registered(), 0), reputation=25.0)
    poor = washed([(number, 1, 0) for number in range(10_000)], low)
    node, spent = low, 0
    for number in itertools.count():
        if nodes.tier(node) == "normal":
            break
        node, spent = nodes.rewarded(node, "job-1", f"client-{number}", FEE, FEE, 0), spent + FEE
    print(f"10,000 clients with a fee of one base unit: {poor.reputation - 25:.4f} points")
    print(f"from 25 to 50 costs fees of {spent / PRICE:g} CYX at least, for jobs of {spent * 10 / PRICE:g} CYX")
    assert poor.reputation < 25.001
    assert spent >= 25 * FEE
    once = washed([(1, 10 * FEE, 0)] * 1_000, low)
    assert once.reputation <= 25.0 + nodes.MOST_FROM_ONE, "one client alone does not do it for any money"

"""What a job costs at most, and that it is never charged more."""

import pytest
from msgspec.structs import replace

from cyxcentral import intake, jobfold, jobrules, money, nodes, prices
from cyxnet import messages as m
from cyxnet.bus import ApiError
from cyxnet.wallet import Wallet
from tests.central import facts as f

KEY = Wallet(b"q" * 32)


def node(asks=0, name="node-a", **hardware):
    event = f.registered(name, price_per_hour_base_units=asks, hardware={"bytes_per_s": 1e10} | hardware)
    return nodes.evolve(None, event, 0)


def signed(**changes):
    fields = {"job_sha256": prices.job_sha256(f.job_request()), "client": f.CLIENT, "max_base_units": 7}
    price = m.Price(**(fields | {"expires_ms": 1_000} | changes), signature="0" * 128)
    return replace(price, signature=KEY.sign(m.price_bytes(price)).hex())


@pytest.mark.parametrize(
    ("flops", "bytes_moved", "roof_s"),
    [(5 * 10**11, 0, 5.0), (0, 3 * 10**10, 3.0), (5 * 10**11, 8 * 10**10, 8.0)],
)
def test_a_price_is_the_time_at_the_roof_with_its_allowance_times_what_the_node_asks(flops, bytes_moved, roof_s):
    found = prices.price_at(node(asks=3_600_000), flops, bytes_moved)
    assert found.seconds == prices.START_S + prices.ALLOWANCE * roof_s
    assert found.base_units == 1_000 * found.seconds


def test_a_node_that_did_not_measure_its_bandwidth_is_priced_by_its_operations():
    assert (
        prices.price_at(node(asks=3_600, bytes_per_s=0.0), 10**11, 10**15).seconds == prices.START_S + prices.ALLOWANCE
    )


def test_the_highest_price_of_who_may_get_the_job_counts_and_never_more_than_the_amount():
    asked = [prices.price_at(node(asks=asks), 10**11, 0) for asks in (0, 3_600_000, 7_200_000)]
    assert prices.highest(asked, f.AMOUNT) == asked[2].base_units == 28_000
    assert prices.highest(asked, 20_000) == 20_000
    assert prices.highest(asked[:1], f.AMOUNT) == f.AMOUNT  # who asks nothing works for what is offered
    unknown = prices.price_at(node(asks=1, flops_per_s=0.0), 10**11, 0)
    assert prices.highest([*asked, unknown], f.AMOUNT) == f.AMOUNT


@pytest.mark.parametrize("slow", [{"flops_per_s": 1e-300}, {"bytes_per_s": 1e-300}, {"flops_per_s": 1.0}])
def test_a_node_that_claims_to_need_for_ever_is_of_unknown_speed(slow):
    # infinity: every quote for a job that it could run was an internal error, and so was every submit of our client
    found = prices.price_at(node(asks=3_600_000, **slow), 10**11, 10**9)
    assert (found.seconds, found.base_units) == (0.0, 0)
    assert prices.highest([found], f.AMOUNT) == f.AMOUNT


@pytest.mark.parametrize("facts", [None, m.DatasetFacts(rows=0, input_shape=[4], classes=3)])
def test_work_that_is_not_counted_costs_the_amount(facts):
    # a job without facts was trained for the price of its ten seconds of start
    plan = intake.examine(f.job_request(facts=facts))
    found = prices.price_at(node(asks=3_600_000), plan.flops_per_epoch, plan.bytes_per_epoch)
    assert found.seconds == 0.0
    assert prices.highest([found], f.AMOUNT) == f.AMOUNT


@pytest.mark.parametrize(
    ("price", "now_ms", "code"),
    [
        (replace(signed(), max_base_units=8), 0, "bad_price"),
        (signed(client=f.PLATFORM), 0, "bad_price"),
        (signed(job_sha256=prices.job_sha256(f.job_request(priority=1))), 0, "bad_price"),
        (signed(), 1_000 + prices.CLOCKS_APART_MS + 1, "price_expired"),
    ],
)
def test_a_price_that_is_altered_expired_or_for_something_else_is_refused(price, now_ms, code):
    prices.check(signed(), f.job_request(), f.CLIENT, KEY.public_key.hex(), 1_000)
    with pytest.raises(ApiError) as refused:
        prices.check(price, f.job_request(), f.CLIENT, KEY.public_key.hex(), now_ms)
    assert (refused.value.code, refused.value.status) == (code, 409)


def test_a_price_that_another_central_may_still_take_is_no_plain_no():
    """Centrals' clocks may be an hour off: one said no, and the other had taken the job."""
    for now_ms in (1_001, 1_000 + prices.CLOCKS_APART_MS):
        with pytest.raises(ApiError, match="the price expired") as refused:
            prices.check(signed(), f.job_request(), f.CLIENT, KEY.public_key.hex(), now_ms)
        assert (refused.value.code, refused.value.status) == ("price_expired", 503)


def job_with_price(price, *events):
    job = jobfold.evolve(None, replace(f.submitted(), price_base_units=price), 0)
    for event in events:
        assert jobrules.illegal(job, event) is None
        job = jobfold.evolve(job, event, 1)
    return job


def test_a_job_is_charged_its_price_and_the_rest_of_the_amount_goes_back():
    job = job_with_price(1_000, f.FUNDED, f.leased(), f.completed())
    assert job.payees == (f.payee(1_000),)
    shares = money.divide(f.AMOUNT, [1_000], 1000)
    assert (shares.node_base_units, shares.platform_base_units, shares.client_base_units) == (
        900,
        100,
        f.AMOUNT - 1_000,
    )


def test_several_nodes_and_a_job_that_failed_share_the_price_by_their_steps():
    half = [f.FUNDED, f.leased(), f.checkpointed(step=50), f.lost()]
    other = f.leased(2, "node-b", wallet="Q" * 43, resume=f.checkpoint(50))
    job = job_with_price(1_001, *half, other, f.completed(2, "node-b"))
    assert [payee.pay_base_units for payee in job.payees] == [500, 501]
    assert job_with_price(1_001, *half, f.CANCELLED).pay_base_units == 500


def test_without_a_quote_the_amount_is_charged():
    assert job_with_price(0, f.FUNDED, f.leased(), f.completed()).pay_base_units == f.AMOUNT


def test_a_plan_counts_operations_and_bytes():
    facts = m.DatasetFacts(rows=64, input_shape=[4], classes=3)
    plan = intake.examine(f.job_request(facts=facts))
    assert plan.flops_per_epoch >= 3 * 64 * 2 * 4 * 3
    assert plan.bytes_per_epoch >= 3 * 64 * 4 * (4 + 3)

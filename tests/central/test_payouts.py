"""Log, ledger and chain are compared; when they differ nothing is paid until an operator says so."""

import asyncio
import hashlib

import pytest
from msgspec.structs import replace

from cyxcentral import payouts, reconciliation
from cyxcentral.audit import Audit
from cyxcentral.ledger import Ledger
from cyxcentral.projection import project
from cyxcentral.readahead import Read
from cyxnet import messages as m
from cyxnet.bus import ApiError
from cyxnet.codec import MSGPACK, decode, encode
from cyxnet.instructions import SettlementError
from cyxnet.shapes import sign_shape
from tests.central import facts as f
from tests.central.centrals import kinds_of
from tests.central.test_payments import CENTRAL, NODE, STRANGER, lab  # noqa: F401

STOLEN = "the escrow of job-1: expected 5, got none"


def test_payouts_are_frozen_once_and_what_was_accepted_freezes_nothing_again():
    state = payouts.Payouts()
    first = payouts.freeze_due(state, [STOLEN, "another"])
    assert first == m.PayoutsFrozen(reason=f"{STOLEN}, and 1 more", differences=[STOLEN, "another"])
    frozen = payouts.evolve(state, first, 7)
    assert (frozen.why, frozen.since_ms) == (first.reason, 7)
    assert payouts.freeze_due(frozen, ["a third"]) is None
    assert payouts.illegal(frozen, first) == "payouts are frozen already"
    released = payouts.evolve(frozen, m.PayoutsReleased(reason="looked", caller="c-1"), 8)
    assert released.why == ""
    assert payouts.freeze_due(released, [STOLEN, "another"]) is None
    assert payouts.freeze_due(released, [STOLEN, "new"]).differences == ["new"]
    assert payouts.illegal(released, m.PayoutsReleased(reason="again", caller="c-1")) == "payouts are not frozen"


@pytest.fixture
async def audited(lab, tmp_path, monkeypatch):  # noqa: F811
    """The lab with a ledger, and the comparison of everything."""
    monkeypatch.setattr("cyxcentral.audit.LOOK_AGAIN_S", 0.01)
    lab.ledger = Ledger(tmp_path / "ledger.duckdb")
    lab.stored = []

    def take(stored, record):
        lab.stored.append(stored)
        project(lab.central.world, lab.ledger, 0, stored, record)

    async def blocks(first, last):
        yield [
            Read(s.subject, s.payload, hashlib.sha256(s.payload).digest(), True) for s in lab.stored[first - 1 : last]
        ]

    lab.central.log.applied.append(take)
    lab.audit = Audit(lab.central.world, lab.ledger, lab.chain, blocks)
    yield lab
    await lab.ledger.close()


async def differences(checks):
    return [each for check in checks for each in check.differences]


def frozen_by_the_first_send(audited):
    """What is sent from now on gets lost, and payouts are frozen by then. Returns what was sent, and an event that is
    set when resends have been due several times."""
    sent, looks, looked, status = [], [], asyncio.Event(), audited.chain.status

    async def send(transaction):
        sent.append(transaction)
        await reconciliation.steer(audited.central.log, m.PayoutsFrozen(reason="the night", caller="c-1"))

    async def look(*arguments):  # after each time of waiting for what was, or was not, sent
        looks.append(arguments)
        if len(looks) > 3:
            looked.set()
        return await status(*arguments)

    audited.chain.send, audited.chain.status = send, look
    return sent, looked


async def test_frozen_payouts_wait_and_are_made_when_an_operator_releases_them(audited):
    await reconciliation.steer(audited.central.log, m.PayoutsFrozen(reason="the night", caller="c-1"))
    await audited.delivered()
    made = audited.payments()
    made.resume()
    with pytest.raises(ApiError, match="the night"):
        await made.mint_to("one", NODE.address, 5)
    assert "settle job-1" not in made._working
    assert (await kinds_of(audited.central))[-1] == "Completed"
    reply = await reconciliation.steer(audited.central.log, m.PayoutsReleased(reason="it is day", caller="c-1"))
    assert reply.frozen == ""
    made.resume()  # central does so when it reads the release
    await audited.until("completed")
    assert (await audited.held())[0] == f.AMOUNT * 9 // 10


async def test_a_settlement_that_was_signed_is_not_sent_while_payouts_are_frozen(audited, monkeypatch):
    monkeypatch.setattr("cyxcentral.payments.RESEND_AFTER_S", (0.01,))
    await audited.delivered()
    made = audited.payments()
    sent, looked = frozen_by_the_first_send(audited)
    made.resume()
    await looked.wait()
    assert len(sent) == 1  # before it was frozen
    assert audited.central.world.jobs["job-1"].status == "settling"


async def test_a_faucet_payment_under_way_is_not_sent_while_payouts_are_frozen(audited, monkeypatch):
    monkeypatch.setattr("cyxcentral.payments.RESEND_AFTER_S", (0.01,))
    made, send = audited.payments(), audited.chain.send
    sent, looked = frozen_by_the_first_send(audited)
    paying = asyncio.create_task(made.mint_to("one", NODE.address, 5))
    await looked.wait()
    assert len(sent) == 1  # before it was frozen
    audited.chain.send = send
    await reconciliation.steer(audited.central.log, m.PayoutsReleased(reason="it is day", caller="c-1"))
    assert await paying
    assert (await audited.held())[0] == 5


async def test_where_nothing_differs_everything_is_compared_and_payouts_go_on(audited):
    await audited.delivered()
    made = audited.payments()
    assert (
        await differences(await audited.audit.compare(audited.central.log.machine.wall_ms())) == []
    )  # its escrow is open
    made.resume()
    await audited.until("completed")
    audited.audit.ended("job-1")
    await reconciliation.reconcile(audited.central.log, audited.audit)
    assert audited.central.world.payouts.why == ""
    checks = {check.name: check for check in await audited.audit.verify(faucet=False)}
    assert await differences(checks.values()) == []
    assert checks["the log is one chain of hashes"].compared == audited.central.world.seq
    assert checks["every payment is final on the chain"].compared == 1
    assert checks["every account is what the log makes it"].compared == 3


async def test_a_payment_that_the_chain_does_not_know_freezes_payouts_until_it_is_accepted(audited):
    await audited.delivered()
    await audited.say(f.SIGNED_SETTLE)
    await audited.say(f.settled())
    audited.audit.ended("job-1")
    log = audited.central.log
    await reconciliation.reconcile(log, audited.audit)
    assert "job-1 is called paid by" in audited.central.world.payouts.why
    await reconciliation.steer(log, m.PayoutsReleased(reason="paid by hand", caller="c-1"))
    await reconciliation.reconcile(log, audited.audit)
    assert audited.central.world.payouts.why == ""


async def test_differences_behind_many_accepted_ones_freeze_payouts_too(audited, monkeypatch):
    sums, log = audited.ledger.sums, audited.central.log

    async def with_strange_escrows(whole=False):
        return replace(await sums(whole), escrows={f"escrow:strange-{each:03}": 1 for each in range(150)})

    monkeypatch.setattr(audited.ledger, "sums", with_strange_escrows)
    for name in ("strange-000", "strange-100"):
        await reconciliation.reconcile(log, audited.audit)
        assert name in log.world.payouts.why
        await reconciliation.steer(log, m.PayoutsReleased(reason="looked at", caller="c-1"))
    await reconciliation.reconcile(log, audited.audit)
    assert log.world.payouts.why == ""
    checks = {check.name: check for check in await audited.audit.verify(faucet=False)}
    strange = checks["the ledger's open escrows are the log's"]
    assert (len(strange.differences), strange.more) == (100, 50)  # the answer to an operator is cut


async def test_a_payment_of_long_ago_may_have_left_the_history_of_the_endpoint(audited):
    await audited.delivered()
    await audited.say(f.SIGNED_SETTLE)
    await audited.say(f.settled())
    audited.audit.ended("job-1")
    tomorrow_ms = audited.central.log.machine.wall_ms() + 2 * 86_400_000
    assert await differences(await audited.audit.compare(tomorrow_ms)) == []
    assert await differences(await audited.audit.verify(faucet=False)) != []  # who asks for all gets all


async def test_an_escrow_that_the_chain_does_not_have_freezes_payouts(audited):
    event = await audited.submitted()
    await audited.say(m.Funded(signature=event.deposit.signature))  # it never was
    await reconciliation.reconcile(audited.central.log, audited.audit)
    assert "expected an escrow account" in audited.central.world.payouts.why


async def test_a_ledger_that_differs_from_the_log_is_found(audited):
    await audited.delivered()
    await audited.ledger.flush()
    audited.ledger._db.execute("UPDATE entries SET amount_base_units = amount_base_units + 1 WHERE line = 1")
    found = await differences(await audited.audit.compare(audited.central.log.machine.wall_ms()))
    assert any("sums to 1" in each for each in found)
    assert any("the ledger says 2.500000001 CYX, the log 2.5 CYX" in each for each in found)
    audited.ledger._db.execute("UPDATE entries SET amount_base_units = -7")
    found = await differences(await audited.audit.verify(faucet=True))
    assert any("escrow:job-1 is at -0.000000007 CYX" in each for each in found)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda log: log.__setitem__(1, replace_bytes(log[1])), "does not name the message before it"),
        (lambda log: log.pop(), "the log has"),
        (lambda log: log.__setitem__(-1, replace_bytes(log[-1])), "is not the one that this central took in"),
    ],
)
async def test_a_log_that_was_altered_behind_centrals_back_is_found(audited, spoil, complaint):
    await audited.delivered()
    made = audited.payments()
    made.resume()
    await audited.until("completed")
    spoil(audited.stored)
    found = await differences(await audited.audit.verify(faucet=False))
    assert any(complaint in each for each in found), found


def replace_bytes(stored):
    """The same record by somebody else."""
    return replace(stored, payload=stored.payload.replace(b"central-a", b"central-x"))


async def test_a_payment_of_others_than_the_log_says_is_found(audited):
    await audited.delivered()
    made = audited.payments()
    made.resume()
    await audited.until("completed")
    stored = audited.stored
    record = decode(m.Record, stored[-1].payload, MSGPACK)
    record.event.payees = [f.payee(f.AMOUNT, STRANGER.address)]
    stored[-1] = replace(stored[-1], payload=encode(record))
    found = await differences(await audited.audit.verify(faucet=False))
    assert any("its transaction" in each for each in found), found


async def test_a_difference_that_is_gone_in_the_second_look_was_none(audited):
    event = await audited.submitted()
    await audited.say(m.Funded(signature=event.deposit.signature))
    wrong = [[(event.terms, "not there yet")], []]

    async def lagging(terms):
        return wrong.pop(0)

    audited.chain.wrong_escrows = lagging
    assert await differences(await audited.audit.compare(audited.central.log.machine.wall_ms())) == []
    assert wrong == []


async def test_a_payment_that_the_signer_refuses_at_present_waits_and_is_made_later(lab, monkeypatch):  # noqa: F811
    monkeypatch.setattr("cyxcentral.payments.TROUBLE_DELAYS_S", (0.01,))
    asked, allowed = asyncio.Event(), []

    class Miser:
        address = CENTRAL.address

        async def signed(self, shape):
            asked.set()
            if not allowed:
                raise SettlementError("spending_cap", "the limit of the hour is used up")
            return sign_shape(CENTRAL, shape)

    made = lab.payments()
    made._wallet = Miser()
    await lab.delivered()
    made.resume()
    await asked.wait()
    await lab.central.until(lambda: made.why_unpaid("job-1"))
    assert made.why_unpaid("job-1") == "the limit of the hour is used up"
    assert lab.central.world.jobs["job-1"].status == "settling"
    allowed.append(True)
    await lab.until("completed")
    assert (await lab.held())[0] == f.AMOUNT * 9 // 10
    assert made.why_unpaid("job-1") == ""


async def test_the_comparison_goes_on_after_an_error_nobody_foresaw(lab, monkeypatch):  # noqa: F811
    monkeypatch.setattr(reconciliation, "AGAIN_S", 0.0)
    compared = asyncio.Queue()

    class Failing:
        async def compare(self, now_ms):
            compared.put_nowait(now_ms)
            raise TimeoutError("not ours")

    keeper = asyncio.create_task(reconciliation.keep(lab.central.log, Failing()))
    for _ in range(3):
        await compared.get()
    keeper.cancel()


async def test_a_job_that_settles_past_its_deadline_may_have_been_refunded_and_freezes_nothing(audited, monkeypatch):
    # an endpoint that keeps no history cannot prove the refund: payouts were frozen for everybody
    async def no_history(terms, deposit_signature):
        return None

    terms = await audited.delivered()
    audited.after_the_deadline()
    await audited.refunded(terms)
    monkeypatch.setattr(audited.chain, "refund_of", no_history)
    deadline_ms = terms.deadline_s * 1000
    assert await differences(await audited.audit.compare(deadline_ms + 1_000)) == []
    assert await differences(await audited.audit.compare(deadline_ms)) != []

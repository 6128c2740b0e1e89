"""The payment saga on the embedded chain: it goes on from wherever a crash left it, and pays once."""

import asyncio
import functools
import io
import selectors
import time
from types import SimpleNamespace

import numpy as np
import pytest
from msgspec.structs import replace

from cyxcentral import jobs, views
from cyxcentral import payments as saga
from cyxcentral.localchain import Fault, Server
from cyxcentral.localvm import Chain, ChainOptions, SystemClock
from cyxcentral.machine import Machine
from cyxcentral.payments import Payments
from cyxnet import escrow, subjects
from cyxnet import messages as m
from cyxnet.bus import ApiError
from cyxnet.cli import money as cli_money
from cyxnet.cli import parser
from cyxnet.cli.screen import JsonScreen
from cyxnet.escrow import DEADLINE_S, escrow_terms
from cyxnet.identity import load_or_create
from cyxnet.solana import Settlement, SettlementError, TransactionStatus
from cyxnet.wallet import Wallet
from tests.central import facts as f
from tests.central.centrals import SmallCentral, damage, kinds_of

CENTRAL, PLATFORM, CLIENT, NODE, STRANGER = (Wallet(bytes([seed]) * 32) for seed in (1, 2, 3, 4, 5))


class WallClock(SystemClock):
    """A date that a test chooses; time passes as it does."""

    ahead_ms = 0

    def wall_ms(self):
        return super().wall_ms() + self.ahead_ms


class Lab:
    """A chain with faults to plan, a central's log, and its payments."""

    def fail(self, method, times):
        """The next calls of this method are refused."""
        first = self.server.calls.get(method, 0)
        fault = Fault(http_status=503)
        self.plan = lambda name, earlier: fault if name == method and earlier < first + times else Fault()

    def payments(self, central=None):
        """A central's payments, as after its start: they hear every new event."""
        central = central or self.central
        made = Payments(central.log, self.chain, CENTRAL, PLATFORM.address, self.mint)

        def react(stored, record):
            about = subjects.last_token(stored.subject)
            if isinstance(record.event, m.MintSigned):
                made.reconcile_mint(about, by_another=record.by != central.log.central_id)
            elif isinstance(record.event, m.JobEvent):
                made.reconcile(about)

        central.log.applied.append(react)
        self.started.append(made)
        return made

    async def submitted(self):
        """A submitted job whose deposit is signed and not sent."""
        terms = escrow_terms(
            job_id="job-1",
            mint=self.mint,
            authority=CENTRAL.address,
            client=CLIENT.address,
            platform=PLATFORM.address,
            amount_base_units=f.AMOUNT,
            fee_basis_points=1000,
            deadline_s=int(time.time()) + DEADLINE_S,
        )
        event = replace(f.submitted(), terms=terms, deposit=await self.chain.deposit_transaction(CLIENT, terms))
        await self.say(event)
        return event

    async def say(self, event):
        assert await self.central.log.record(subjects.job_event("job-1"), lambda: event)

    async def delivered(self):
        """A job that is paid for and delivered, and not settled."""
        event = await self.submitted()
        await self.chain.finish(event.deposit)
        await self.say(m.Funded(signature=event.deposit.signature))
        await self.say(replace(f.leased(), wallet=NODE.address))
        await self.say(f.completed())
        return event.terms

    async def refunded(self, terms, sender=STRANGER):
        """Somebody sends the program's refund, and it is final."""
        state, vault, _ = escrow.escrow_account(terms.client, terms.job_id, terms.program)
        key = escrow.public_key
        tokens = [key(escrow.associated_address(each, terms.mint)) for each in (terms.platform, terms.client)]
        accounts = [(key(sender.address), "s"), (state, "w"), (vault, "w"), (key(terms.mint), "")]
        accounts += [*((each, "w") for each in tokens), (key(terms.client), "w"), (escrow.solders().TOKEN, "")]
        refund = escrow.instruction(key(terms.program), b"\x04", accounts)
        blockhash, last_valid = await self.chain.latest_blockhash()
        message = escrow.compile_message(key(sender.address), [refund], escrow.to_blockhash(blockhash))
        signed = escrow.sign_message(sender, message, last_valid)
        assert (await self.chain.finish(signed)).err is None
        return signed.signature

    def after_the_deadline(self):
        self.clock.ahead_ms += DEADLINE_S * 1000 + 60_000

    async def until(self, status, central=None):
        world = (central or self.central).world
        await (central or self.central).until(lambda: world.jobs["job-1"].status == status)

    async def held(self):
        wallets = (NODE, PLATFORM, CLIENT)
        return [await self.chain.token_balance(wallet.address, self.mint) for wallet in wallets]


@pytest.fixture
async def lab(broker, tmp_path):
    result = Lab()
    result.plan = lambda method, earlier: Fault()
    result.clock = WallClock()
    chain = Chain(tmp_path / "chain.db", ChainOptions(slot_ms=4, slots_per_block=100), result.clock)
    result.server = Server(chain, lambda method, earlier: result.plan(method, earlier))
    await result.server.start()
    result.chain = Settlement(result.server.url, attempts=2)
    for wallet in (CENTRAL, CLIENT, STRANGER):
        await result.chain.airdrop(wallet.address, 10**10)
    result.mint = await result.chain.create_mint(CENTRAL)
    await result.chain.faucet(CENTRAL, result.mint, CLIENT.address, f.AMOUNT)
    result.central = await SmallCentral.start(broker, "central-a")
    result.started = []
    yield result
    for payments in result.started:
        await payments.close()
    await result.central.close()
    await result.chain.close()
    await result.server.stop()
    chain.close()


async def test_a_deposit_that_landed_before_the_crash_funds_the_job(lab):
    event = await lab.submitted()
    await lab.chain.finish(event.deposit)
    lab.payments().resume()
    await lab.until("queued")
    assert await kinds_of(lab.central) == ["Submitted", "Funded"]


async def test_numpy_divides_right_after_the_chain_ran_a_program(lab):
    # LiteSVM leaves the MMX registers in use, by which NumPy's division had no room: NaN
    event = await lab.submitted()
    await lab.chain.finish(event.deposit)
    assert np.float64(0.935) // np.float64(0.25) == 3.0


async def test_a_settlement_that_landed_before_the_crash_is_not_signed_again(lab):
    terms = await lab.delivered()
    signed = await lab.chain.settle_transaction(CENTRAL, terms, [f.payee(f.AMOUNT, NODE.address)])
    await lab.say(m.TransactionSigned(purpose="settle", signed=signed, pay_base_units=f.AMOUNT))
    await lab.chain.finish(signed)
    lab.payments().resume()
    await lab.until("completed")
    assert (await kinds_of(lab.central))[-2:] == ["TransactionSigned", "Settled"]
    assert await lab.held() == [f.AMOUNT * 9 // 10, f.AMOUNT // 10, 0]


async def test_two_centrals_that_settle_at_once_pay_once(lab, broker):
    await lab.delivered()
    other = await SmallCentral.start(broker, "central-b")
    first, second = lab.payments(), lab.payments(other)
    first.resume()
    second.resume()
    await lab.until("completed")
    await lab.until("completed", other)
    assert (await kinds_of(lab.central))[-2:] == ["TransactionSigned", "Settled"]
    assert await lab.held() == [f.AMOUNT * 9 // 10, f.AMOUNT // 10, 0]
    await second.close()
    await other.close()


@pytest.mark.parametrize("what", ["settle_transaction", "verify_escrow"])
async def test_an_escrow_that_another_central_settled_meanwhile_is_not_missed(lab, broker, monkeypatch, caplog, what):
    # who was slower warned of an escrow that is not there, and looked again after a pause
    await (lab.submitted() if what == "verify_escrow" else lab.delivered())
    slow, asked, over = await SmallCentral.start(broker, "central-b"), asyncio.Event(), asyncio.Event()
    real = getattr(lab.chain, what)

    async def late(*arguments):
        asked.set()
        await over.wait()
        return await real(*arguments)

    monkeypatch.setattr(lab.chain, what, late)
    lab.payments(slow).resume()
    async with asyncio.timeout(60):
        await asked.wait()
    monkeypatch.setattr(lab.chain, what, real)
    lab.payments().resume()
    if what == "verify_escrow":
        await lab.until("queued")
        await lab.say(replace(f.leased(), wallet=NODE.address))
        await lab.say(f.completed())
    await lab.until("completed")
    over.set()
    await lab.until("completed", slow)
    await slow.until(lambda: not any(each._working for each in lab.started))
    await slow.close()
    assert not [each.getMessage() for each in caplog.records if "expected an escrow" in each.getMessage()]
    assert await lab.held() == [f.AMOUNT * 9 // 10, f.AMOUNT // 10, 0]


async def test_a_cancelled_job_whose_deposit_lands_later_is_refunded_whole(lab):
    await lab.submitted()
    await lab.say(f.CANCELLED)
    lab.payments().resume()
    await lab.until("cancelled")
    assert await lab.held() == [0, 0, f.AMOUNT]


async def test_money_is_not_left_alone_after_an_error_nobody_foresaw(lab, monkeypatch):
    # a TimeoutError ended the work on this job: it stayed in funding until central was started again
    monkeypatch.setattr("cyxcentral.payments.TROUBLE_DELAYS_S", (0.01,))
    real, calls = lab.chain.verify_escrow, []

    async def once_wrong(terms):
        calls.append(terms)
        if len(calls) == 1:
            raise TimeoutError("not ours")
        return await real(terms)

    monkeypatch.setattr(lab.chain, "verify_escrow", once_wrong)
    await lab.submitted()
    lab.payments().resume()
    await lab.until("queued")


async def test_a_faucet_payment_whose_chain_was_away_is_still_recorded(lab, monkeypatch):
    # the money was made and the ledger never heard of it: supply on the chain and in the ledger differed
    monkeypatch.setattr("cyxcentral.payments.TROUBLE_DELAYS_S", (0.01,))
    payments = lab.payments()
    lab.fail("getSignatureStatuses", times=6)
    await payments.mint_to("one", CLIENT.address, 5)
    [mint] = lab.central.world.mints.values()
    assert isinstance(mint.ended, m.Minted)
    assert await lab.chain.token_supply(lab.mint) == f.AMOUNT + 5


async def test_two_equal_wishes_for_test_money_in_one_block_are_paid_both(lab):
    # one message: the chain landed it once, the log said twice that it had
    payments = lab.payments()
    signatures = await asyncio.gather(*[payments.mint_to(each, CLIENT.address, 5) for each in ("one", "another")])
    assert len(set(signatures)) == 2
    assert await lab.chain.token_supply(lab.mint) == f.AMOUNT + 10


async def test_one_wish_for_test_money_that_two_centrals_hear_is_paid_once(lab, broker):
    other = await SmallCentral.start(broker, "central-b")
    first, second = lab.payments(), lab.payments(other)
    before = await lab.chain.sol_balance(CLIENT.address)
    wishes = [each.mint_to("one", CLIENT.address, 5, 10**6) for each in (first, second, first)]
    signatures = await asyncio.gather(*wishes)
    assert len(set(signatures)) == 1
    assert await lab.chain.sol_balance(CLIENT.address) == before + 10**6
    assert await second.mint_to("one", CLIENT.address, 5) == signatures[0]
    with pytest.raises(ApiError, match=f"stands for 5 base units for {CLIENT.address}"):
        await first.mint_to("one", CLIENT.address, 6)
    assert await lab.chain.token_supply(lab.mint) == f.AMOUNT + 5
    await second.close()
    await other.close()


async def test_the_lamports_of_a_wish_come_once_though_no_answer_of_the_chain_arrives(lab, monkeypatch):
    # they were asked of the chain beside the payment, and again when it was not known whether they had come
    payments, before = lab.payments(), await lab.chain.sol_balance(CLIENT.address)
    seen = dict(lab.server.calls)

    def lost(method, earlier):
        of_this_wish = earlier - seen.get(method, 0)
        return Fault(lose_answer=method in ("requestAirdrop", "sendTransaction") and of_this_wish < 3)

    lab.plan = lost
    await payments.mint_to("one", CLIENT.address, 5, 10**6)
    assert await lab.chain.sol_balance(CLIENT.address) == before + 10**6
    assert await lab.chain.token_supply(lab.mint) == f.AMOUNT + 5


async def test_a_wish_for_test_money_whose_central_died_is_paid_by_another(lab, broker, monkeypatch):
    monkeypatch.setattr("cyxcentral.payments.OTHERS_FIRST_S", 0.01)
    other = await SmallCentral.start(broker, "central-b")
    second, before = lab.payments(other), await lab.chain.sol_balance(CLIENT.address)
    signed = await lab.chain.faucet_transaction(CENTRAL, lab.mint, CLIENT.address, 5, "one", 10**6)
    event = m.MintSigned(to=CLIENT.address, amount_base_units=5, signed=signed)
    await lab.central.log.record(subjects.mint_event("one"), lambda: event)
    await other.log.catch_up()
    assert await second.mint_to("one", CLIENT.address, 5, 10**6) == signed.signature
    assert await lab.chain.sol_balance(CLIENT.address) == before + 10**6
    await second.close()
    await other.close()


async def test_who_wishes_test_money_hears_at_once_that_the_chain_gives_none(lab, monkeypatch):
    # the payment was in the log by then, and the chain was asked for ever
    monkeypatch.setattr("cyxnet.solana.LOW_LAMPORTS", 10**18)
    lab.plan = lambda method, earlier: Fault(http_status=403 if method == "requestAirdrop" else 200)
    payments = lab.payments()
    with pytest.raises(SettlementError, match="request_airdrop"):
        await payments.mint_to("one", CLIENT.address, 5, 10**6)
    assert not lab.central.world.mints and not payments.held_up


async def test_an_airdrop_that_no_block_takes_is_not_waited_for_for_ever(lab, monkeypatch):
    monkeypatch.setattr("cyxnet.solana.AIRDROP_WITHIN_S", 0.05)

    async def pending(*_):
        return TransactionStatus(state="pending")

    monkeypatch.setattr(lab.chain, "status", pending)
    with pytest.raises(SettlementError, match="was not taken into a block; ask again") as late:
        await lab.chain.airdrop(CLIENT.address, 7)
    assert late.value.code == "expired"


async def test_less_than_a_new_wallet_can_hold_is_not_given(lab):
    with pytest.raises(SettlementError, match="expected no lamports, or 890880 to") as refused:
        await lab.payments().mint_to("one", STRANGER.address, 5, 7)
    assert refused.value.code == "bad_terms"


async def test_a_second_deposit_for_the_same_job_is_refused_before_it_is_signed(lab):
    event = await lab.submitted()
    await lab.chain.finish(event.deposit)
    with pytest.raises(SettlementError, match="pay once per job"):
        await lab.chain.deposit_transaction(CLIENT, event.terms)


async def test_a_deposit_the_client_made_impossible_fails_the_job_and_takes_nothing(lab):
    event = await lab.submitted()
    drained = replace(event.deposit, last_valid_block_height=0)  # its blocks are over, it can never land
    lab.fail("sendTransaction", times=10**6)
    job = lab.central.world.jobs["job-1"]
    lab.central.world.jobs["job-1"] = replace(job, unsettled=drained)
    async with asyncio.timeout(60):
        lab.payments().resume()
        await lab.until("failed")
    assert await lab.held() == [0, 0, f.AMOUNT]


async def test_a_job_that_somebody_refunded_after_the_deadline_ends(lab):
    # it was asked for its missing escrow for ever
    terms = await lab.delivered()
    lab.after_the_deadline()
    signature = await lab.refunded(terms)
    lab.payments().resume()
    await lab.until("failed")
    assert (await kinds_of(lab.central))[-1] == "Refunded"
    job = lab.central.world.jobs["job-1"]
    assert (job.settle_signature, job.payees) == (signature, ())
    assert await lab.held() == [0, 0, f.AMOUNT]
    assert lab.central.world.active == set()
    assert "refunded to the client after the deadline" in views.explanation(job, [], 0).error


async def test_a_job_that_is_paused_until_its_deadline_is_paid_for_what_is_stored_and_no_refund_comes_before(lab):
    # it waited until somebody refunded what its node had earned
    terms = (event := await lab.submitted()).terms
    await lab.chain.finish(event.deposit)
    await lab.say(m.Funded(signature=event.deposit.signature))
    for event in (replace(f.leased(), wallet=NODE.address), f.checkpointed(step=50), f.PAUSED, f.lost(code="paused")):
        await lab.say(event)
    lab.clock.ahead_ms = (DEADLINE_S - jobs.DEADLINE_MARGIN_S // 2) * 1000
    soon = Machine(wall_ms=lambda: lab.clock.wall_ms())
    lab.central.log.machine = soon
    payments = lab.payments()
    keeper = asyncio.create_task(payments.keep_deadlines())
    await lab.until("failed")
    keeper.cancel()
    assert await lab.held() == [f.AMOUNT // 2 * 9 // 10, f.AMOUNT // 2 // 10, f.AMOUNT // 2]
    assert (await kinds_of(lab.central))[-3:] == ["DeadlineNear", "TransactionSigned", "Settled"]
    lab.after_the_deadline()
    with pytest.raises((AssertionError, SettlementError)):  # there is nothing left that could be refunded
        await lab.refunded(terms)


async def near_its_deadline(lab):
    """job-1 must end now; payments whose keeper has to see to it, and not yet looks."""
    event = await lab.submitted()
    await lab.say(m.Funded(signature=event.deposit.signature))
    lab.clock.ahead_ms = (DEADLINE_S - jobs.DEADLINE_MARGIN_S // 2) * 1000
    lab.central.log.machine = Machine(wall_ms=lambda: lab.clock.wall_ms())
    return Payments(lab.central.log, lab.chain, CENTRAL, PLATFORM.address, lab.mint)


async def test_a_job_whose_history_is_damaged_does_not_hold_up_the_deadlines_of_others(lab, caplog, monkeypatch):
    monkeypatch.setattr(saga, "DEADLINES_EVERY_S", 0.001)
    made = await near_its_deadline(lab)
    terms = replace(lab.central.world.jobs["job-1"].terms, job_id="a-job")
    subject = subjects.job_event("a-job")  # it is looked at before job-1
    assert await lab.central.log.record(subject, lambda: replace(f.submitted("a-job"), terms=terms))
    await damage(lab.central, subject)
    keeper = asyncio.create_task(made.keep_deadlines())
    try:
        await lab.until("settling")
        for _ in range(5):
            await lab.central.edge.round_trip()
    finally:
        keeper.cancel()
    assert [each.args[0] for each in caplog.records if "deadline" in each.msg] == ["a-job"]


async def test_deadlines_are_kept_after_an_error_nobody_foresaw(lab, monkeypatch):
    monkeypatch.setattr(saga, "DEADLINES_EVERY_S", 0.001)
    made = await near_its_deadline(lab)
    real, wrong = lab.central.log.record, [TimeoutError("not ours")]

    async def once_wrong(*arguments):
        if wrong:
            raise wrong.pop()
        return await real(*arguments)

    monkeypatch.setattr(lab.central.log, "record", once_wrong)
    keeper = asyncio.create_task(made.keep_deadlines())
    try:
        await lab.until("settling")
    finally:
        keeper.cancel()
    assert wrong == []


async def funded(lab):
    event = await lab.submitted()
    await lab.chain.finish(event.deposit)
    return event.terms


async def test_after_the_deadline_a_stranger_refunds_an_escrow_by_what_the_chain_says_alone(lab):
    terms = await funded(lab)
    found = await lab.chain.open_escrow(terms.client, terms.job_id, terms.program)
    assert (found.address, found.client, found.deadline_s) == (terms.escrow, CLIENT.address, terms.deadline_s)
    early = await lab.chain.refund_transaction(STRANGER, found)
    with pytest.raises(SettlementError, match="would refuse"):
        await lab.chain.send(early.transaction)
    lab.after_the_deadline()
    await lab.chain.succeed(await lab.chain.refund_transaction(STRANGER, found), "refund")
    assert await lab.held() == [0, 0, f.AMOUNT]
    with pytest.raises(SettlementError, match="no open escrow"):
        await lab.chain.open_escrow(terms.client, terms.job_id, terms.program)


async def test_cyx_refund_needs_no_central(lab, tmp_path, monkeypatch):
    said = []

    async def run(*more):
        line = ["refund", "job-1", "--dir", str(tmp_path), "--chain", lab.server.url, "--json", *more]
        out = io.StringIO()
        said.append(out)
        return await cli_money.refund(parser().parse_args(line), JsonScreen(out))

    sender = Wallet(load_or_create(tmp_path / "client.key").child("wallet"))
    await lab.chain.airdrop(sender.address, 10**9)
    await funded(lab)
    with pytest.raises(SettlementError, match="no open escrow"):  # this wallet paid for no job of that name
        await run()
    with pytest.raises(SettlementError, match="cyx cancel job-1"):
        await run("--client", CLIENT.address)
    lab.after_the_deadline()
    monkeypatch.setattr("cyxnet.cli.money.time.time", lambda: lab.clock.wall_ms() / 1000)
    assert await run("--client", CLIENT.address) == 0
    assert CLIENT.address in said[-1].getvalue()
    assert await lab.held() == [0, 0, f.AMOUNT]


async def test_a_settlement_that_a_refund_overtook_is_given_up_for_it(lab, monkeypatch):
    terms = await lab.delivered()
    signed = await lab.chain.settle_transaction(CENTRAL, terms, [f.payee(f.AMOUNT, NODE.address)])
    dead = replace(signed, last_valid_block_height=0)
    await lab.say(m.TransactionSigned(purpose="settle", signed=dead, pay_base_units=f.AMOUNT))
    lab.after_the_deadline()
    await lab.refunded(terms)
    monkeypatch.setattr("cyxcentral.payments.RESEND_AFTER_S", (0.01,))
    lab.payments().resume()
    await lab.until("failed")
    assert (await kinds_of(lab.central))[-2:] == ["TransactionSigned", "Refunded"]
    assert await lab.held() == [0, 0, f.AMOUNT]


async def test_two_centrals_find_a_refund_and_say_it_once(lab, broker):
    terms = await lab.delivered()
    lab.after_the_deadline()
    await lab.refunded(terms)
    other = await SmallCentral.start(broker, "central-b")
    first, second = lab.payments(), lab.payments(other)
    first.resume()
    second.resume()
    await lab.until("failed")
    await lab.until("failed", other)
    assert (await kinds_of(lab.central)).count("Refunded") == 1
    await second.close()
    await other.close()


async def test_a_refund_before_the_deposit_was_known_to_be_final_ends_the_job_too(lab):
    event = await lab.submitted()
    await lab.chain.finish(event.deposit)
    lab.after_the_deadline()
    await lab.refunded(event.terms)
    lab.payments().resume()
    await lab.until("failed")
    assert await kinds_of(lab.central) == ["Submitted", "Refunded"]


async def test_an_escrow_that_was_refunded_and_opened_again_on_other_terms_was_refunded(lab):
    terms = await lab.delivered()
    lab.after_the_deadline()
    await lab.refunded(terms)
    later = replace(terms, deadline_s=terms.deadline_s + DEADLINE_S)
    await lab.chain.finish(await lab.chain.deposit_transaction(CLIENT, later))
    lab.payments().resume()
    await lab.until("failed")
    assert (await kinds_of(lab.central))[-1] == "Refunded"


async def test_only_a_refund_after_the_deposit_counts(lab):
    """The client may have opened and refunded the same address before it paid the job."""
    event = await lab.submitted()
    short = replace(event.terms, deadline_s=int(time.time()) + 3600)
    await lab.chain.finish(await lab.chain.deposit_transaction(CLIENT, short))
    lab.clock.ahead_ms += 3_700_000
    await lab.refunded(short)
    await lab.chain.finish(event.deposit)
    assert await lab.chain.refund_of(event.terms, event.deposit.signature) is None


async def test_neither_a_settlement_nor_a_history_without_the_deposit_is_a_refund(lab):
    terms = await lab.delivered()
    deposit = lab.central.world.jobs["job-1"].deposit_signature
    assert await lab.chain.refund_of(terms, deposit) is None
    signed = await lab.chain.settle_transaction(CENTRAL, terms, [f.payee(f.AMOUNT, NODE.address)])
    await lab.chain.finish(signed)
    assert await lab.chain.refund_of(terms, deposit) is None
    assert await lab.chain.refund_of(terms, "1" * 64) is None


def waiting_payments(busy):
    """Payments that note what they begin instead of doing it."""
    made = Payments(SimpleNamespace(), SimpleNamespace(), CENTRAL, PLATFORM.address, "mint", busy=lambda: busy)
    begun = asyncio.Queue()
    made._begin = lambda key, work: begun.put_nowait(key)
    return made, begun


async def test_payments_begin_in_the_order_of_their_jobs_and_each_once():
    made, begun = waiting_payments(busy=False)
    keys = [f"fund {number}" for number in range(3 * saga.BEGUN_AT_ONCE)]
    for key in [*keys, *keys]:
        made._work(key, None)
    assert begun.empty()
    assert [await begun.get() for _ in keys] == keys
    assert not made._due and begun.empty()


async def test_while_many_ask_a_payment_makes_way_but_not_for_ever(monkeypatch):
    monkeypatch.setattr(saga, "MAKE_WAY_AT_MOST_S", 0.1)
    made, begun = waiting_payments(busy=True)
    since_s = asyncio.get_running_loop().time()
    made._work("fund a", None)
    assert await begun.get() == "fund a"
    assert asyncio.get_running_loop().time() - since_s >= 0.1


class Skipped(selectors.DefaultSelector):
    """The clock of a loop that has nothing to do is at once where its next timer is."""

    now_s = 0.0

    def select(self, timeout=None):
        found = super().select(0)
        if not found:
            assert timeout is not None, "nothing more is going to happen"
            self.now_s += timeout
        return found


def in_virtual_time(test):
    def run():
        clock = Skipped()
        loop = asyncio.SelectorEventLoop(clock)
        loop.time = lambda: clock.now_s
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(test())

    return functools.wraps(test)(run)


class Crowded:
    """Payments of many jobs, a chain that takes everything within 5 ms, and callers that never cease to ask."""

    def __init__(self, until_s=float("inf"), lost=0):
        """until_s: when callers cease. lost: the first sends get lost."""
        self.clock = asyncio.get_running_loop().time
        self.due_s, self.sent_s, self.landed = {}, {}, set()
        self.world = SimpleNamespace(jobs={}, payouts=SimpleNamespace(frozen=None))
        self.lost = lost
        busy = lambda: self.clock() < until_s  # noqa: E731
        self.made = Payments(SimpleNamespace(world=self.world), self, CENTRAL, PLATFORM.address, "mint", busy=busy)
        self.made._landings = self
        self.made._say = self.say
        self.said = asyncio.Queue()

    def due(self, name, *events, by_another=False):
        signed = replace(f.signed(name.encode()), signature=name)
        self.world.jobs[name] = replace(f.job_after(*events), job_id=name, unsettled=signed)
        self.due_s[name] = self.clock()
        self.made.reconcile(name, by_another)

    async def send(self, transaction):
        await pause(0.005)
        self.sent_s.setdefault(transaction.decode(), []).append(self.clock())
        self.lost -= 1
        if self.lost < 0:
            self.landed.add(transaction.decode())

    async def final(self, signature):
        await pause(0.02)
        if signature not in self.landed:
            await asyncio.Event().wait()
        return TransactionStatus(state="landed", finalized=True)

    async def status(self, signature, last_valid_block_height):
        return TransactionStatus(state="pending")

    async def verify_escrow(self, terms):
        pass

    async def say(self, job_id, event):
        self.world.jobs[job_id] = replace(self.world.jobs[job_id], funded=True, status="completed")
        self.said.put_nowait(job_id)


async def pause(delay_s):
    """Virtual time passes."""
    passed = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(delay_s, passed.set_result, None)
    await passed


@in_virtual_time
async def test_while_callers_never_cease_everything_is_sent_as_fast_as_it_comes():
    # each held one of eight places for a second: from nine jobs a second on deposits expired
    crowd = Crowded(lost=1)
    for number in range(1_800):
        crowd.due(f"deposit {number}")
        if number % 10 == 0:
            crowd.due(f"settlement {number}", f.FUNDED, f.leased(), f.completed(), f.SIGNED_SETTLE)
        await pause(1 / 30)
    for _ in crowd.due_s:
        await crowd.said.get()
    waited_s = [crowd.sent_s[name][0] - due_s for name, due_s in crowd.due_s.items()]
    assert saga.MAKE_WAY_AT_MOST_S <= min(waited_s)
    assert max(waited_s) < saga.MAKE_WAY_AT_MOST_S + 0.1
    first, again = crowd.sent_s["deposit 0"]
    assert again - first < saga.RESEND_AFTER_S[0] + 0.1  # it makes way for nobody


@in_virtual_time
async def test_what_another_central_wrote_is_paid_here_only_when_that_one_has_not_done_it_in_its_time():
    crowd = Crowded(until_s=0.0)
    crowd.due("of another that died", by_another=True)
    crowd.due("of another", by_another=True)
    crowd.due("ours")
    crowd.made.reconcile("of another")  # we wrote something of it, too: its money is the other's all the same
    await crowd.said.get()
    await crowd.say("of another", None)
    assert list(crowd.sent_s) == ["ours"]
    assert [await crowd.said.get() for _ in range(2)] == ["of another", "of another that died"]
    assert set(crowd.sent_s) == {"ours", "of another that died"}
    waited_s = crowd.sent_s["of another that died"][0] - crowd.due_s["of another that died"]
    assert saga.OTHERS_FIRST_S <= waited_s < saga.OTHERS_FIRST_S + 0.1
    assert not crowd.made._theirs


@in_virtual_time
async def test_a_burst_of_callers_is_let_pass():
    crowd = Crowded(until_s=2.0)
    for number in range(100):
        crowd.due(f"deposit {number}")
    for _ in crowd.due_s:
        await crowd.said.get()
    sent_s = [times[0] for times in crowd.sent_s.values()]
    assert 2.0 <= min(sent_s) and max(sent_s) < 2.5


@in_virtual_time
async def test_payments_that_have_begun_let_a_burst_of_callers_pass_and_hold_no_place_meanwhile():
    crowd = Crowded(until_s=2.0)
    for number in range(100):
        late_s = crowd.clock() + saga.MAKE_WAY_AT_MOST_S
        crowd.made._begin(f"early {number}", functools.partial(crowd.made._land, f.signed(b"early"), late_s))
    crowd.landed.add(f.SIGNATURE)
    await crowd.made._land(f.signed(b"late"))
    assert crowd.sent_s["late"] == [0.005]
    await asyncio.gather(*crowd.made._working.values())
    assert len(crowd.sent_s["early"]) == 100
    assert 2.0 <= min(crowd.sent_s["early"]) and max(crowd.sent_s["early"]) < 2.5

"""Bugs in payments."""

from collections.abc import Iterator
from typing import Any
from unittest import mock

from msgspec.structs import replace

from cyxcentral import (
    audit,
    earnings,
    jobrules,
    jobs,
    money,
    payments,
)
from cyxcentral.payments import Payments
from cyxnet import escrow, solana
from cyxnet import messages as m
from cyxnet.solana import Settlement, TransactionStatus
from tests.simulation.mutations.planting import planted

# -- money -----------------------------------------------------------------------------------------------


@planted
def early_resign() -> Iterator[Any]:
    """A transaction that is not seen on the chain is taken for dead."""
    real = Settlement.status

    async def status(settlement: Settlement, signature: str, last_valid_block_height: int) -> TransactionStatus:
        return await real(settlement, signature, last_valid_block_height - 1000)

    yield mock.patch.object(Settlement, "status", status)


@planted
def two_views() -> Iterator[Any]:
    """Dead by the height of one machine and the silence of another."""

    async def status_at(settlement: Any, rpc: Any, signature: str, last_valid: int) -> TransactionStatus:
        _, landed = await settlement._landing(rpc, signature)
        if landed is not None:
            return landed
        epoch = (await settlement._ask("get_epoch_info", client=rpc)).value
        return TransactionStatus(state="dead" if epoch.block_height > last_valid else "pending")

    yield mock.patch.object(Settlement, "_status_at", status_at)
    yield mock.patch.object(payments, "RESEND_AFTER_S", (0.1,))  # and asks often,
    yield mock.patch.object(payments, "OTHERS_FIRST_S", 0.0)  # as every central does


@planted
def settle_on_processed() -> Iterator[Any]:
    """Seen once on the chain is paid."""
    real = solana._landed
    yield mock.patch.object(solana, "_landed", lambda value: replace(real(value), finalized=True))


@planted
def no_write_ahead() -> Iterator[Any]:
    """The settlement is sent as soon as it is signed."""
    real = Settlement.settle_transaction

    async def settle(settlement: Settlement, *arguments: Any) -> m.SignedTransaction:
        signed = await real(settlement, *arguments)
        await settlement.send(signed.transaction)
        return signed

    yield mock.patch.object(Settlement, "settle_transaction", settle)


@planted
def no_redrive() -> Iterator[Any]:
    """A central that starts does not go on with the payments that the last one left."""
    yield mock.patch.object(Payments, "resume", lambda payments: None)


@planted
def fee_rounded_up() -> Iterator[Any]:
    """The platform's share is rounded in its own favour."""

    def split(pay_base_units: int, fee_basis_points: int) -> tuple[int, int]:
        fee = -(-pay_base_units * fee_basis_points // 10_000)
        return pay_base_units - fee, fee

    for module in (escrow, solana, money):
        yield mock.patch.object(module, "split", split)


@planted
def split_not_total() -> Iterator[Any]:
    """The log says of a refund that a base unit less was paid back."""
    real = money.divide

    def divide(*arguments: Any) -> money.Shares:
        shares = real(*arguments)
        return replace(shares, client_base_units=max(0, shares.client_base_units - 1))

    yield mock.patch.object(money, "divide", divide)


@planted
def pay_for_unstored_steps() -> Iterator[Any]:
    """Who lost a run is paid as if its steps had been stored."""
    real = earnings.earned

    def earned(job: jobs.Job) -> tuple[m.Payee, ...]:
        if job.completed or not job.attempts:
            return real(job)
        half = m.Payee(wallet=job.attempts[-1].wallet, pay_base_units=job.terms.amount_base_units // 2 + 1)
        return (half,)

    yield mock.patch.object(earnings, "earned", earned)


@planted
def no_deadline_is_kept() -> Iterator[Any]:
    """A job goes on, or waits, whatever the date is."""
    yield mock.patch.object(jobrules, "deadline_due", lambda job, now_ms: None)


@planted
def deadline_kept_without_margin() -> Iterator[Any]:
    """A job is settled when its deadline comes, and not before."""
    yield mock.patch.object(jobs, "DEADLINE_MARGIN_S", 0)


@planted
def one_look_is_believed() -> Iterator[Any]:
    """What one machine of the chain does not see yet freezes payouts."""
    yield mock.patch.object(audit, "LOOKS", 1)


@planted
def no_refund_is_found() -> Iterator[Any]:
    """A missing escrow is asked for, for ever."""

    async def none(*_: Any) -> None:
        return None

    yield mock.patch.object(Settlement, "refund_of", none)


@planted
def a_missing_escrow_was_refunded() -> Iterator[Any]:
    """What one machine of the chain does not see is believed to be gone."""

    async def at_once(_: Any, terms: m.EscrowTerms, deposit_signature: str) -> str:
        return deposit_signature

    yield mock.patch.object(Settlement, "refund_of", at_once)

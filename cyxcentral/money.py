"""Who owns what, in base units (10**-9 CYX). Double entry: the entries of one event sum to zero. Pure.

Accounts:  supply (minted so far, negative) · wallet:<address> · escrow:<job_id>
"""

from collections.abc import Sequence

from msgspec import Struct

from cyxnet import messages as m
from cyxnet.escrow import split


class Entry(Struct, frozen=True):
    """One side of a movement: what `account` gains (positive) or loses (negative)."""

    account: str
    amount_base_units: int


class Shares(Struct, frozen=True):
    """An escrow divided: the three sum to the amount."""

    node_base_units: int
    platform_base_units: int
    client_base_units: int


def divide(amount_base_units: int, pays_base_units: Sequence[int], fee_basis_points: int) -> Shares:
    """Split an escrow of which each node earned its pay. Each one's fee is rounded down, in the node's favour."""
    paid = sum(pays_base_units)
    if min(pays_base_units, default=0) < 0 or paid > amount_base_units:
        raise ValueError(f"expected payments in [0, {amount_base_units}], got {list(pays_base_units)}")
    fees = sum(split(pay, fee_basis_points)[1] for pay in pays_base_units)
    return Shares(paid - fees, fees, amount_base_units - paid)


def deposit(terms: m.EscrowTerms) -> list[Entry]:
    """The client's amount moves into the escrow of the job."""
    return [
        Entry(f"wallet:{terms.client}", -terms.amount_base_units),
        Entry(f"escrow:{terms.job_id}", terms.amount_base_units),
    ]


def settlement(terms: m.EscrowTerms, payees: Sequence[m.Payee], settled: m.Settled) -> list[Entry]:
    """The escrow of the job is emptied: to the nodes, to the platform, back to the client."""
    parts = [
        *((f"wallet:{p.wallet}", split(p.pay_base_units, terms.fee_basis_points)[0]) for p in payees),
        (f"wallet:{terms.platform}", settled.platform_base_units),
        (f"wallet:{terms.client}", settled.client_base_units),
    ]
    total = sum(amount for _, amount in parts)
    entries = [Entry(f"escrow:{terms.job_id}", -total)]
    return entries + [Entry(account, amount) for account, amount in parts if amount]


def refund(terms: m.EscrowTerms) -> list[Entry]:
    """The amount moves out of the escrow of the job, back to the client."""
    return [Entry(entry.account, -entry.amount_base_units) for entry in reversed(deposit(terms))]


def mint(minted: m.Minted) -> list[Entry]:
    """A faucet made new money."""
    return [
        Entry("supply", -minted.amount_base_units),
        Entry(f"wallet:{minted.to}", minted.amount_base_units),
    ]

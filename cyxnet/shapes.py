"""What may be signed for: the facts of a transaction, from which whoever holds the key builds the message itself.

A signer that is told facts cannot be had sign bytes that somebody else chose: it knows these shapes and no others.
"""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from cyxnet.escrow import build_deposit, build_faucet, build_mint, build_settle
from cyxnet.messages import EscrowTerms, Payee, SignedTransaction
from cyxnet.wallet import Wallet


class Settle(Struct, frozen=True, kw_only=True, tag="settle"):
    """Name the nodes of a job and pay them, out of its escrow: build_settle()."""

    terms: EscrowTerms
    payees: list[Payee]
    balance_base_units: int
    blockhash: str
    last_valid_block_height: int
    moved_accounts: list[str] = []


class Deposit(Struct, frozen=True, kw_only=True, tag="deposit"):
    """Pay for a job from the wallet that a local network keeps for a caller: build_deposit()."""

    caller: str
    terms: EscrowTerms
    blockhash: str
    last_valid_block_height: int


class MakeMint(Struct, frozen=True, kw_only=True, tag="mint"):
    """Make the token of a local network: build_mint()."""

    blockhash: str
    last_valid_block_height: int


class Faucet(Struct, frozen=True, kw_only=True, tag="faucet"):
    """Make new tokens of a local network, and give lamports with them: build_faucet()."""

    mint: str
    to: str
    amount_base_units: int
    blockhash: str
    last_valid_block_height: int
    mint_id: str = ""
    lamports: int = 0


Shape = Settle | Deposit | MakeMint | Faucet


class Signer(Protocol):
    """A wallet whose key is somewhere else."""

    address: str

    async def signed(self, shape: Shape) -> SignedTransaction:
        """Raises SettlementError: what is wrong with the shape, or why it is not signed at present."""


def sign_shape(wallet: Wallet, shape: Shape) -> SignedTransaction:
    """The transaction of a shape, built from its facts and signed. Raises SettlementError."""
    until = shape.last_valid_block_height
    match shape:
        case Settle():
            return build_settle(
                wallet,
                shape.terms,
                payees=shape.payees,
                balance_base_units=shape.balance_base_units,
                blockhash=shape.blockhash,
                last_valid_block_height=until,
                moved_accounts=frozenset(shape.moved_accounts),
            )
        case Deposit():
            return build_deposit(wallet, shape.terms, shape.blockhash, until)
        case MakeMint():
            return build_mint(wallet, shape.blockhash, until)
        case Faucet():
            return build_faucet(
                wallet,
                shape.mint,
                shape.to,
                shape.amount_base_units,
                shape.blockhash,
                until,
                mint_id=shape.mint_id,
                lamports=shape.lamports,
            )


async def signed_by_key(who: Wallet | Signer, shape: Shape) -> SignedTransaction:
    """Signed here, by a wallet that is at hand, or by whoever has its key."""
    return sign_shape(who, shape) if isinstance(who, Wallet) else await who.signed(shape)

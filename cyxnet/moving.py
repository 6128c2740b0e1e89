"""Tokens from one wallet to another: how a node's earnings, or a platform's fees, leave the wallet that got them."""

from __future__ import annotations

import secrets

from cyxnet.amounts import format_cyx
from cyxnet.instructions import (
    LAMPORTS_PER_SIGNATURE,
    TOKEN_ACCOUNT_RENT_LAMPORTS,
    WALLET_RENT_LAMPORTS,
    SettlementError,
    associated_account,
    compile_message,
    create_associated,
    memo,
    public_key,
    sign_message,
    to_blockhash,
    transfer,
)
from cyxnet.messages import SignedTransaction
from cyxnet.wallet import Wallet

LAMPORTS_PER_SOL = 10**9


def build_transfer(
    sender: Wallet,
    mint: str,
    to: str,
    amount: int | None,
    held: int,
    lamports: int,
    is_new: bool,
    blockhash: str,
    last_valid_block_height: int,
) -> SignedTransaction:
    """A transfer to the wallet `to`, whose token account is made with it. Signed, not sent.

    amount, held: base units to send (None: all) and in the sender's wallet; lamports: there, for the fee; is_new: `to`
    has no token account yet, for which the sender pays the rent.

    Raises SettlementError bad_address and insufficient_funds.
    """
    who, target, token = map(public_key, (sender.address, to, mint))
    if not target.is_on_curve():  # a token account or a program's: what is sent to an account of such a one is stuck
        raise no_wallet(to)
    amount = held if amount is None else amount
    if not 0 < amount <= held:
        asked = f"{format_cyx(amount)} CYX" if amount else "CYX to send"
        raise SettlementError("insufficient_funds", f"expected {asked} in {sender.address}, got {format_cyx(held)} CYX")
    needed = LAMPORTS_PER_SIGNATURE + WALLET_RENT_LAMPORTS + is_new * TOKEN_ACCOUNT_RENT_LAMPORTS
    if lamports < needed:
        raise SettlementError(
            "insufficient_funds",
            f"expected {needed / LAMPORTS_PER_SOL:g} SOL in {sender.address} for fee and rent, got "
            f"{lamports / LAMPORTS_PER_SOL:g}; send some there from any wallet",
        )
    calls = [
        create_associated(who, target, token),
        transfer(associated_account(who, token), token, associated_account(target, token), who, amount),
        memo(who, f"cyx/2 send {secrets.token_hex(8)}"),  # the same again in one block is another transaction
    ]
    message = compile_message(who, calls, to_blockhash(blockhash))
    return sign_message(sender, message, last_valid_block_height)


def no_wallet(to: str) -> SettlementError:
    return SettlementError(
        "bad_address", f"{to} is the address of no wallet; name the wallet, not its token account, a mint or a program"
    )

"""Wallets, terms and payees of the tests of payments."""

from typing import Any

from solders.hash import Hash
from solders.keypair import Keypair
from solders.message import MessageV0
from solders.pubkey import Pubkey
from solders.transaction import VersionedTransaction

from cyxnet.messages import EscrowTerms, Payee
from cyxnet.solana import Wallet, escrow_terms

CENTRAL = Wallet(b"c" * 32)
PLATFORM = Wallet(b"f" * 32)
NODE = Wallet(b"n" * 32)
STRANGER = Wallet(b"x" * 32)
DEADLINE_S = 2_000_000_000
BLOCKHASH = "9" * 43 + "8"
UNIT = 10**9
SOL = 10**9


def offline_terms(client: Wallet = NODE, **changes: Any) -> EscrowTerms:
    values: dict[str, Any] = {
        "job_id": "job-1",
        "mint": STRANGER.address,
        "authority": CENTRAL.address,
        "client": client.address,
        "platform": PLATFORM.address,
        "amount_base_units": 100 * UNIT,
        "fee_basis_points": 1000,
        "deadline_s": DEADLINE_S,
    }
    return escrow_terms(**(values | changes))


def paid(node: Wallet, pay_base_units: int) -> list[Payee]:
    return [Payee(wallet=node.address, pay_base_units=pay_base_units)] if pay_base_units else []


def signed_by(wallet: Wallet, instruction: Any, blockhash: str) -> bytes:
    payer = Pubkey.from_string(wallet.address)
    message = MessageV0.try_compile(payer, [instruction], [], Hash.from_string(blockhash))
    return bytes(VersionedTransaction(message, [Keypair.from_seed(wallet.seed)]))

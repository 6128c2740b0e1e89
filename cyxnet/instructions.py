"""What goes into a Solana transaction: addresses, the instructions of the programs a payment calls, signed messages.

solders is loaded on first use: a command that pays nothing should not spend 0.1 s and 35 MB on it.
"""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING, Literal

from cyxcore.errors import CyxError, MissingExtra
from cyxnet.messages import SignedTransaction
from cyxnet.wallet import Wallet, base58_encode

if TYPE_CHECKING:
    from solders.hash import Hash
    from solders.instruction import Instruction
    from solders.message import MessageV0
    from solders.pubkey import Pubkey

DECIMALS = 9
LAMPORTS_PER_SIGNATURE = 5_000
TOKEN_ACCOUNT_BYTES = 165
TOKEN_ACCOUNT_RENT_LAMPORTS = 2_039_280
MINT_BYTES = 82
MINT_RENT_LAMPORTS = 1_461_600
WALLET_RENT_LAMPORTS = 890_880  # below this a wallet cannot be left with anything but zero
TRANSACTION_LIMIT_BYTES = 1232  # one IPv6 packet
MEMO_PROGRAM = "MemoSq4gqABAXKb96qnH8TysNcWxMyWCqXgDLGmfcHr"

ErrorCode = Literal[
    "insufficient_funds", "bad_transaction", "bad_terms", "bad_address", "chain_unreachable", "chain_refused",
    "escrow_mismatch", "bad_program", "escrow_missing", "escrow_exists", "expired", "transaction_failed", "not_local",
    "too_early", "signer_refused", "spending_cap", "signer_gone", "clocks_differ",
]  # fmt: skip


class SettlementError(CyxError):
    """A payment cannot be made as asked. `code` says which kind."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        if code == "insufficient_funds":
            self.status = 402  # of all others cyxnet.outcomes knows it


class _Solders:
    """The names of solders that are used here, loaded together."""

    def __init__(self) -> None:
        try:
            from solders import system_program
            from solders.instruction import AccountMeta, Instruction
            from solders.keypair import Keypair
            from solders.message import MessageV0, to_bytes_versioned
            from solders.pubkey import Pubkey
            from solders.signature import Signature
            from solders.token import ID as TOKEN_PROGRAM
            from solders.token.associated import get_associated_token_address
            from solders.token.state import Mint, TokenAccount
            from solders.transaction import SanitizeError, VersionedTransaction
        except ImportError as error:
            raise MissingExtra(f"payments need the package solders ({error}); pip install solders solana") from None
        self.system = system_program
        self.AccountMeta, self.Instruction, self.Keypair = AccountMeta, Instruction, Keypair
        self.MessageV0, self.to_bytes_versioned = MessageV0, to_bytes_versioned
        self.Pubkey, self.Signature, self.VersionedTransaction = Pubkey, Signature, VersionedTransaction
        self.SanitizeError = SanitizeError
        self.Mint, self.TokenAccount = Mint, TokenAccount
        self.associated = get_associated_token_address
        self.TOKEN = TOKEN_PROGRAM
        self.MEMO = Pubkey.from_string(MEMO_PROGRAM)
        self.ASSOCIATED = Pubkey.from_string("ATokenGPvbdGVxr1b2hvZbsiqW5xWH25efTNsLJA8knL")


@functools.cache
def solders() -> _Solders:
    return _Solders()


@functools.lru_cache(maxsize=4096)
def public_key(address: str) -> Pubkey:
    """The key of an address. Remembered, like the accounts below: one job names the same few again and again."""
    try:
        return solders().Pubkey.from_string(address)
    except ValueError:
        raise SettlementError("bad_address", f"expected a base-58 address of 32 bytes, got {address!r:.60}") from None


# Addresses.


def derive_seed(tag: str, text: str) -> str:
    """A seed for create_with_seed, which takes 32 characters: 128 bits of SHA-256 in hex."""
    return hashlib.sha256(f"{tag}|{text}".encode()).hexdigest()[:32]


@functools.lru_cache(maxsize=4096)
def associated_account(owner: Pubkey, mint: Pubkey) -> Pubkey:
    return solders().associated(owner, mint)


def associated_address(owner: str, mint: str) -> str:
    """Where an owner's tokens of this mint are kept."""
    return str(associated_account(public_key(owner), public_key(mint)))


# Instructions. Layouts: the instruction enums of the SPL Token and Associated Token Account programs.


def instruction(program: Pubkey, data: bytes, accounts: list[tuple[Pubkey, str]]) -> Instruction:
    """accounts: (address, flags), flags of "w" writable and "s" signer."""
    lib = solders()
    metas = [lib.AccountMeta(key, is_signer="s" in flags, is_writable="w" in flags) for key, flags in accounts]
    return lib.Instruction(program, data, metas)


def u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


def mint_to(mint: Pubkey, target: Pubkey, authority: Pubkey, amount: int) -> Instruction:
    data = b"\x0e" + u64(amount) + bytes([DECIMALS])  # MintToChecked
    return instruction(solders().TOKEN, data, [(mint, "w"), (target, "w"), (authority, "s")])


def transfer(source: Pubkey, mint: Pubkey, target: Pubkey, owner: Pubkey, amount: int) -> Instruction:
    data = b"\x0c" + u64(amount) + bytes([DECIMALS])  # TransferChecked
    return instruction(solders().TOKEN, data, [(source, "w"), (mint, ""), (target, "w"), (owner, "s")])


def initialize_mint(mint: Pubkey, authority: Pubkey) -> Instruction:
    data = b"\x14" + bytes([DECIMALS]) + bytes(authority) + b"\x00"  # 2nd version, nobody can freeze
    return instruction(solders().TOKEN, data, [(mint, "w")])


def create_associated(payer: Pubkey, owner: Pubkey, mint: Pubkey) -> Instruction:
    lib = solders()
    accounts = [
        (payer, "ws"),
        (associated_account(owner, mint), "w"),
        (owner, ""),
        (mint, ""),
        (lib.system.ID, ""),
        (lib.TOKEN, ""),
    ]
    return instruction(lib.ASSOCIATED, b"\x01", accounts)  # CreateIdempotent


def memo(signer: Pubkey, text: str) -> Instruction:
    return instruction(solders().MEMO, text.encode(), [(signer, "s")])


def give(payer: Pubkey, target: Pubkey, lamports: int) -> Instruction:
    system = solders().system
    return system.transfer(system.TransferParams(from_pubkey=payer, to_pubkey=target, lamports=lamports))


def open_account(base: Pubkey, address: Pubkey, seed: str, space_bytes: int, rent_lamports: int) -> list[Instruction]:
    """Open an account at a seeded address, for the token program.

    In three steps because the usual one, create_account, fails for ever once a stranger has sent the
    predictable address a lamport. The full rent is sent whatever is there: closing returns all of it.
    """
    system, owner = solders().system, solders().TOKEN
    return [
        give(base, address, rent_lamports),
        system.allocate_with_seed(
            system.AllocateWithSeedParams(address=address, base=base, seed=seed, space=space_bytes, owner=owner)
        ),
        system.assign_with_seed(system.AssignWithSeedParams(address=address, base=base, seed=seed, owner=owner)),
    ]


# Messages.


def sign_message(wallet: Wallet, message: MessageV0, last_valid_block_height: int) -> SignedTransaction:
    header, payer = message.header, bytes(message.account_keys[0])
    assert header.num_required_signatures == 1 and payer == wallet.public_key, "one wallet signs and pays"
    return sign_bytes(wallet, solders().to_bytes_versioned(message), last_valid_block_height)


def sign_bytes(wallet: Wallet, message: bytes, last_valid_block_height: int) -> SignedTransaction:
    """A transaction of a message that one wallet signs."""
    signature = wallet.sign(message)
    return SignedTransaction(
        transaction=b"\x01" + signature + message,
        signature=base58_encode(signature),
        last_valid_block_height=last_valid_block_height,
    )


def compile_message(payer: Pubkey, instructions: list[Instruction], blockhash: Hash) -> MessageV0:
    return solders().MessageV0.try_compile(payer, instructions, [], blockhash)


def to_blockhash(text: str) -> Hash:
    from solders.hash import Hash

    return Hash.from_string(text)

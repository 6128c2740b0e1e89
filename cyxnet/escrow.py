"""Escrow version 1 as transactions: pure functions from terms to signed bytes, and the checks of both sides.

A job's money waits in a token account of its own (docs/settlement.md):

    client ATA --deposit, signed by the client--> escrow --settle, signed by central--> node, platform, client

Addresses and signatures are base-58 strings, transactions are bytes, money is an integer in base units.
solders is loaded on first use: a command that pays nothing should not spend 0.1 s and 35 MB on it.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from cyxcore.errors import CyxError, MissingExtra
from cyxnet.messages import EscrowTerms, Payee, SignedTransaction
from cyxnet.wallet import Wallet

if TYPE_CHECKING:
    from solders.account import Account
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
    "escrow_mismatch", "escrow_missing", "escrow_exists", "expired", "transaction_failed", "not_local",
]  # fmt: skip


class SettlementError(CyxError):
    """A payment cannot be made as asked. `code` says which kind."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Funds(Struct, frozen=True, kw_only=True):
    """What a client's wallet holds, and whether the job was paid for before."""

    base_units: int
    lamports: int
    escrow_exists: bool


class EscrowState(Struct, frozen=True, kw_only=True):
    """An escrow account that matches its terms. The balance can exceed the amount: anyone may send dust."""

    address: str
    balance_base_units: int
    lamports: int


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


# Amounts and addresses: arithmetic, no chain.


def split(pay_base_units: int, fee_basis_points: int) -> tuple[int, int]:
    """(node, platform) shares of a payment: the fee is rounded down and the two always sum to the payment."""
    fee = pay_base_units * fee_basis_points // 10_000
    return pay_base_units - fee, fee


def derive_seed(tag: str, text: str) -> str:
    """A seed for create_with_seed, which takes 32 characters: 128 bits of SHA-256 in hex."""
    return hashlib.sha256(f"{tag}|{text}".encode()).hexdigest()[:32]


def escrow_address(client: str, job_id: str) -> str:
    """The one account that can hold this job's money. Only the client's signature can open it."""
    lib = solders()
    return str(lib.Pubkey.create_with_seed(public_key(client), derive_seed("cyx-escrow/1", job_id), lib.TOKEN))


def mint_address(authority: str) -> str:
    """The token that this authority makes on a local network."""
    lib = solders()
    return str(lib.Pubkey.create_with_seed(public_key(authority), derive_seed("cyx-mint/1", "CYX"), lib.TOKEN))


@functools.lru_cache(maxsize=4096)
def associated_account(owner: Pubkey, mint: Pubkey) -> Pubkey:
    return solders().associated(owner, mint)


def associated_address(owner: str, mint: str) -> str:
    """Where an owner's tokens of this mint are kept."""
    return str(associated_account(public_key(owner), public_key(mint)))


def escrow_terms(
    *, job_id: str, mint: str, authority: str, client: str, platform: str,
    amount_base_units: int, fee_basis_points: int,
) -> EscrowTerms:  # fmt: skip
    """Checked terms with the escrow address they imply. Raises SettlementError bad_terms, bad_address."""
    terms = EscrowTerms(
        job_id=job_id, mint=mint, authority=authority, client=client, platform=platform,
        amount_base_units=amount_base_units, fee_basis_points=fee_basis_points,
        escrow=escrow_address(client, job_id),
    )  # fmt: skip
    check_terms(terms)
    return terms


def check_terms(terms: EscrowTerms) -> None:
    """Raises SettlementError bad_terms or bad_address unless a deposit for these terms can be built."""
    for address in (terms.mint, terms.authority, terms.platform):
        public_key(address)
    expected = escrow_address(terms.client, terms.job_id)
    if terms.escrow != expected:
        raise _bad_terms(f"escrow {expected}, got {terms.escrow}")
    if not 0 < terms.amount_base_units < 2**63:
        raise _bad_terms(f"amount 1 to 2^63-1 base units, got {terms.amount_base_units}")
    if not 0 <= terms.fee_basis_points <= 10_000:
        raise _bad_terms(f"fee 0 to 10000 basis points, got {terms.fee_basis_points}")
    if not (0 < len(terms.job_id) <= 64 and terms.job_id.isascii() and terms.job_id.isprintable()):
        raise _bad_terms(f"a job id of 1 to 64 printable ASCII characters, got {terms.job_id!r:.80}")


def _bad_terms(expectation: str) -> SettlementError:
    return SettlementError("bad_terms", f"escrow terms: expected {expectation}")


# Instructions. Layouts: the instruction enums of the SPL Token and Associated Token Account programs.


def _instruction(program: Pubkey, data: bytes, accounts: list[tuple[Pubkey, str]]) -> Instruction:
    """accounts: (address, flags), flags of "w" writable and "s" signer."""
    lib = solders()
    metas = [lib.AccountMeta(key, is_signer="s" in flags, is_writable="w" in flags) for key, flags in accounts]
    return lib.Instruction(program, data, metas)


def _u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


def transfer_checked(source: Pubkey, mint: Pubkey, target: Pubkey, owner: Pubkey, amount: int) -> Instruction:
    data = b"\x0c" + _u64(amount) + bytes([DECIMALS])  # TransferChecked
    return _instruction(solders().TOKEN, data, [(source, "w"), (mint, ""), (target, "w"), (owner, "s")])


def mint_to(mint: Pubkey, target: Pubkey, authority: Pubkey, amount: int) -> Instruction:
    data = b"\x0e" + _u64(amount) + bytes([DECIMALS])  # MintToChecked
    return _instruction(solders().TOKEN, data, [(mint, "w"), (target, "w"), (authority, "s")])


def close_account(account: Pubkey, rent_to: Pubkey, owner: Pubkey) -> Instruction:
    return _instruction(solders().TOKEN, b"\x09", [(account, "w"), (rent_to, "w"), (owner, "s")])


def initialize_account(account: Pubkey, mint: Pubkey, owner: Pubkey) -> Instruction:
    return _instruction(solders().TOKEN, b"\x12" + bytes(owner), [(account, "w"), (mint, "")])  # 3rd version


def initialize_mint(mint: Pubkey, authority: Pubkey) -> Instruction:
    data = b"\x14" + bytes([DECIMALS]) + bytes(authority) + b"\x00"  # 2nd version, nobody can freeze
    return _instruction(solders().TOKEN, data, [(mint, "w")])


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
    return _instruction(lib.ASSOCIATED, b"\x01", accounts)  # CreateIdempotent


def _memo(signer: Pubkey, text: str) -> Instruction:
    return _instruction(solders().MEMO, text.encode(), [(signer, "s")])


def open_account(base: Pubkey, address: Pubkey, seed: str, space_bytes: int, rent_lamports: int) -> list[Instruction]:
    """Open an account at a seeded address, for the token program.

    In three steps because the usual one, create_account, fails for ever once a stranger has sent the
    predictable address a lamport. The full rent is sent whatever is there: closing returns all of it.
    """
    system, owner = solders().system, solders().TOKEN
    return [
        system.transfer(system.TransferParams(from_pubkey=base, to_pubkey=address, lamports=rent_lamports)),
        system.allocate_with_seed(
            system.AllocateWithSeedParams(address=address, base=base, seed=seed, space=space_bytes, owner=owner)
        ),
        system.assign_with_seed(system.AssignWithSeedParams(address=address, base=base, seed=seed, owner=owner)),
    ]


# Transactions: pure functions of their arguments, so that both sides can rebuild and compare them.


def sign_message(wallet: Wallet, message: MessageV0, last_valid_block_height: int) -> SignedTransaction:
    lib = solders()
    header, payer = message.header, bytes(message.account_keys[0])
    assert header.num_required_signatures == 1 and payer == wallet.public_key, "one wallet signs and pays"
    signature = lib.Signature(wallet.sign(lib.to_bytes_versioned(message)))
    transaction = lib.VersionedTransaction.populate(message, [signature])
    return SignedTransaction(
        transaction=bytes(transaction),
        signature=str(signature),
        last_valid_block_height=last_valid_block_height,
    )


def compile_message(payer: Pubkey, instructions: list[Instruction], blockhash: Hash) -> MessageV0:
    return solders().MessageV0.try_compile(payer, instructions, [], blockhash)


def to_blockhash(text: str) -> Hash:
    from solders.hash import Hash

    return Hash.from_string(text)


def _deposit_message(terms: EscrowTerms, blockhash: Hash) -> MessageV0:
    client, mint, escrow = public_key(terms.client), public_key(terms.mint), public_key(terms.escrow)
    # The memo makes the client's signature cover what the accounts alone do not say.
    memo = f"cyx/1 deposit job={terms.job_id} fee_bps={terms.fee_basis_points} platform={terms.platform}"
    seed = derive_seed("cyx-escrow/1", terms.job_id)
    instructions = [
        *open_account(client, escrow, seed, TOKEN_ACCOUNT_BYTES, TOKEN_ACCOUNT_RENT_LAMPORTS),
        initialize_account(escrow, mint, public_key(terms.authority)),
        transfer_checked(associated_account(client, mint), mint, escrow, client, terms.amount_base_units),
        _memo(client, memo),
    ]
    return compile_message(client, instructions, blockhash)


def build_deposit(
    client: Wallet, terms: EscrowTerms, blockhash: str, last_valid_block_height: int
) -> SignedTransaction:
    """The deposit, signed by the client, who pays the fee and the escrow's rent. Needs no chain."""
    check_terms(terms)
    if client.address != terms.client:
        raise SettlementError("bad_terms", f"deposit: expected the wallet {terms.client}, got {client.address}")
    return sign_message(client, _deposit_message(terms, to_blockhash(blockhash)), last_valid_block_height)


def check_funds(terms: EscrowTerms, held_base_units: int, held_lamports: int) -> None:
    """Raises SettlementError insufficient_funds when a client's wallet cannot make the deposit."""
    if held_base_units < terms.amount_base_units:
        raise SettlementError(
            "insufficient_funds",
            f"deposit: expected {terms.amount_base_units} base units in {terms.client}, "
            f"got {held_base_units}; add tokens (cyx faucet on a local network) or offer less",
        )
    needed_lamports = TOKEN_ACCOUNT_RENT_LAMPORTS + LAMPORTS_PER_SIGNATURE + WALLET_RENT_LAMPORTS
    if held_lamports < needed_lamports:
        raise SettlementError(
            "insufficient_funds",
            f"deposit: expected {needed_lamports} lamports in {terms.client} for fee and rent, "
            f"got {held_lamports}; add SOL; the rent comes back when the job is settled",
        )


class _Template(NamedTuple):
    """A deposit's message without what differs from job to job: escrow address, blockhash, seed, amount, job id."""

    to_escrow: bytes
    to_blockhash: bytes
    to_seed: bytes
    to_seed_again: bytes
    to_amount: bytes
    to_job_id: bytes
    rest: bytes

    def message(self, terms: EscrowTerms, escrow: Pubkey, blockhash: bytes) -> bytes:
        seed = derive_seed("cyx-escrow/1", terms.job_id).encode()
        filled = bytes(escrow), blockhash, seed, seed, _u64(terms.amount_base_units), terms.job_id.encode()
        pairs = zip(self, filled, strict=False)
        return b"".join([part for pair in pairs for part in pair]) + self.rest

    def blockhash(self, message: bytes) -> bytes:
        at = len(self.to_escrow) + 32 + len(self.to_blockhash)
        return message[at : at + 32]


@functools.lru_cache(maxsize=1024)
def _deposit_template(sample: EscrowTerms, escrow: bytes) -> _Template:
    """Made by compiling a sample of the message and cutting out what is the sample's own.

    escrow: an address that sorts before or after the client's token account as the real one does, because a compiled
    message lists its accounts in order.
    """
    lib, blockhash = solders(), b"\xa5" * 32
    seed = derive_seed("cyx-escrow/1", sample.job_id).encode()
    terms = replace(sample, escrow=str(lib.Pubkey.from_bytes(escrow)))
    left = lib.to_bytes_versioned(_deposit_message(terms, to_blockhash(str(lib.Pubkey.from_bytes(blockhash)))))
    parts = []
    for value in (escrow, blockhash, seed, seed, _u64(terms.amount_base_units), f"job={terms.job_id}".encode()):
        part, found, left = left.partition(value)
        assert found, f"a deposit's message without {value!r}"
        parts.append(part)
    parts[-1] += b"job="
    return _Template._make([*parts, left])


_SAMPLE_AMOUNT = 0x123456789ABCDEF0 >> 1  # eight bytes that occur nowhere else
_FIRST_ADDRESS, _LAST_ADDRESS = b"\x00" * 31 + b"\x01", b"\xff" * 32


def _template_of(terms: EscrowTerms, escrow: Pubkey) -> _Template:
    before = bytes(escrow) < bytes(associated_account(public_key(terms.client), public_key(terms.mint)))
    sample = EscrowTerms(
        job_id="j" * len(terms.job_id), mint=terms.mint, authority=terms.authority, client=terms.client,
        platform=terms.platform, amount_base_units=_SAMPLE_AMOUNT, fee_basis_points=terms.fee_basis_points, escrow="",
    )  # fmt: skip
    return _deposit_template(sample, _FIRST_ADDRESS if before else _LAST_ADDRESS)


def check_deposit(transaction: bytes, terms: EscrowTerms) -> str:
    """The signature of a deposit that does exactly what the terms say and nothing else.

    The expected message is made again around the given blockhash and compared byte for byte, so central
    never forwards what it does not understand. Raises SettlementError bad_transaction.
    """
    signature, message = deposit_parts(transaction, terms)
    if not signed_by(bytes(public_key(terms.client)), signature, message):
        raise bad_signature(terms)
    return str(solders().Signature.from_bytes(signature))


def deposit_parts(transaction: bytes, terms: EscrowTerms) -> tuple[bytes, bytes]:
    """The first part of check_deposit: (signature, message) of a deposit for these terms, signature unchecked.

    Raises SettlementError bad_transaction.
    """
    check_terms(terms)
    escrow = public_key(terms.escrow)
    template = _template_of(terms, escrow)
    message = transaction[65:]  # after one signature and their number
    if transaction[:1] != b"\x01" or message != template.message(terms, escrow, template.blockhash(message)):
        raise _not_the_deposit(transaction, terms)
    return transaction[1:65], message


def signed_by(key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether this Ed25519 signature (64 bytes) of the message is that of the public key (32 bytes)."""
    lib = solders()
    return bool(lib.Signature.from_bytes(signature).verify(lib.Pubkey.from_bytes(key), message))


def bad_signature(terms: EscrowTerms) -> SettlementError:
    return SettlementError(
        "bad_transaction", f"deposit: the signature is not that of the client {terms.client}; sign it again"
    )


def _not_the_deposit(transaction: bytes, terms: EscrowTerms) -> SettlementError:
    """What is wrong with bytes that are not the deposit of these terms."""
    lib = solders()
    if len(transaction) > TRANSACTION_LIMIT_BYTES:
        what = f"expected at most {TRANSACTION_LIMIT_BYTES} bytes, got {len(transaction)}"
        return SettlementError("bad_transaction", f"deposit: {what}")
    try:
        lib.VersionedTransaction.from_bytes(transaction).sanitize()
    except (ValueError, lib.SanitizeError) as error:
        return SettlementError("bad_transaction", f"deposit: expected a Solana transaction, got: {error}")
    return SettlementError(
        "bad_transaction",
        f"deposit: expected {terms.amount_base_units} base units from {terms.client} into escrow "
        f"{terms.escrow} for job {terms.job_id} and nothing else, got another message; "
        "sign exactly the quoted terms",
    )


def build_settle(
    central: Wallet, terms: EscrowTerms, *, payees: Sequence[Payee],
    balance_base_units: int, blockhash: str, last_valid_block_height: int,
    moved_accounts: frozenset[str] = frozenset(),
) -> SignedTransaction:  # fmt: skip
    """The settlement, signed by central, who pays the fee and any missing recipient account.

    balance_base_units: what the escrow really holds; all beyond the pay goes back to the client, because
    an account that still holds dust cannot be closed. moved_accounts: recipient accounts whose owner gave
    them away; they are paid as they are, where re-creating them would fail and block everybody's payment.
    """
    pay_base_units = check_pay(terms, payees)
    if central.address != terms.authority:
        raise SettlementError("bad_terms", f"settle: expected the wallet {terms.authority}, got {central.address}")
    if balance_base_units < terms.amount_base_units:
        raise SettlementError(
            "escrow_mismatch",
            f"settle: expected at least {terms.amount_base_units} base units in escrow {terms.escrow}, "
            f"got {balance_base_units}",
        )
    authority, client, mint, escrow = map(public_key, (terms.authority, terms.client, terms.mint, terms.escrow))
    parts = [split(payee.pay_base_units, terms.fee_basis_points) for payee in payees]
    shares = [
        *((payee.wallet, node_share) for payee, (node_share, _) in zip(payees, parts, strict=True)),
        (terms.platform, sum(fee for _, fee in parts)),
        (terms.client, balance_base_units - pay_base_units),
    ]
    instructions = []
    for owner, amount in shares:
        if amount == 0:
            continue
        account = associated_account(public_key(owner), mint)
        if str(account) not in moved_accounts:
            instructions.append(create_associated(authority, public_key(owner), mint))
        instructions.append(transfer_checked(escrow, mint, account, authority, amount))
    memo = f"cyx/1 settle job={terms.job_id} pay={pay_base_units} of={terms.amount_base_units}"
    instructions += [close_account(escrow, client, authority), _memo(authority, memo)]
    return sign_message(
        central, compile_message(authority, instructions, to_blockhash(blockhash)), last_valid_block_height
    )


def build_mint(authority: Wallet, blockhash: str, last_valid_block_height: int) -> SignedTransaction:
    """The creation of this authority's token at mint_address(), signed by it."""
    owner, mint = public_key(authority.address), public_key(mint_address(authority.address))
    instructions = [
        *open_account(owner, mint, derive_seed("cyx-mint/1", "CYX"), MINT_BYTES, MINT_RENT_LAMPORTS),
        initialize_mint(mint, owner),
    ]
    return sign_message(
        authority, compile_message(owner, instructions, to_blockhash(blockhash)), last_valid_block_height
    )


def build_faucet(
    authority: Wallet, mint: str, to_address: str, amount_base_units: int,
    blockhash: str, last_valid_block_height: int,
) -> SignedTransaction:  # fmt: skip
    """New tokens for an address, into its associated account. Raises SettlementError bad_terms."""
    if not 0 < amount_base_units < 2**63:
        raise SettlementError("bad_terms", f"faucet: expected 1 to 2^63-1 base units, got {amount_base_units}")
    owner, target, token = public_key(authority.address), public_key(to_address), public_key(mint)
    account = associated_account(target, token)
    instructions = [
        create_associated(owner, target, token),
        mint_to(token, account, owner, amount_base_units),
    ]
    return sign_message(
        authority, compile_message(owner, instructions, to_blockhash(blockhash)), last_valid_block_height
    )


def check_pay(terms: EscrowTerms, payees: Sequence[Payee]) -> int:
    """What the payees get together, before the fee. Raises SettlementError bad_terms."""
    check_terms(terms)
    pay_base_units = sum(payee.pay_base_units for payee in payees)
    if min((payee.pay_base_units for payee in payees), default=1) < 1 or pay_base_units > terms.amount_base_units:
        raise SettlementError(
            "bad_terms",
            f"settle: expected payments of 1 to {terms.amount_base_units} base units together, got "
            f"{[payee.pay_base_units for payee in payees]}",
        )
    if len({payee.wallet for payee in payees}) != len(payees):
        raise SettlementError("bad_terms", "settle: expected each wallet once among those who are paid")
    return pay_base_units


def check_escrow(terms: EscrowTerms, account: Account | None, state: Any) -> EscrowState:
    if account is None:
        raise SettlementError(
            "escrow_missing", f"job {terms.job_id}: expected an escrow account at {terms.escrow}, got none"
        )
    if state is None:
        raise SettlementError(
            "escrow_mismatch",
            f"escrow {terms.escrow}: expected a token account, got {len(account.data)} bytes of {account.owner}",
        )
    differences = [
        f"{name}: expected {expected}, got {got}"
        for name, expected, got in (
            ("mint", terms.mint, str(state.mint)),
            ("owner", terms.authority, str(state.owner)),
            ("delegate", None, state.delegate),
            ("close authority", None, state.close_authority),
            ("state", 1, int(state.state)),  # initialised and not frozen
        )
        if expected != got
    ]
    if state.amount < terms.amount_base_units:
        differences.append(f"balance: expected at least {terms.amount_base_units} base units, got {state.amount}")
    if differences:
        raise SettlementError("escrow_mismatch", f"escrow {terms.escrow}: {'; '.join(differences)}")
    return EscrowState(address=terms.escrow, balance_base_units=state.amount, lamports=account.lamports)


def token_account(account: Account | None) -> Any:
    """The parsed token account, or None for anything else."""
    lib = solders()
    if account is None or account.owner != lib.TOKEN or len(account.data) != TOKEN_ACCOUNT_BYTES:
        return None
    return lib.TokenAccount.from_bytes(bytes(account.data))

"""A job's escrow as transactions: pure functions from terms to signed bytes, and the checks of both sides.

A job's money waits in the vault of the escrow program (docs/escrow.md, docs/settlement.md):

    client ATA --open, signed by the client--> vault --settle, signed by central--> nodes, platform, client

Addresses and signatures are base-58 strings, transactions are bytes, money is an integer in base units.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from cyxnet.instructions import (
    DECIMALS,
    LAMPORTS_PER_SIGNATURE,
    MEMO_PROGRAM,
    MINT_BYTES,
    MINT_RENT_LAMPORTS,
    TOKEN_ACCOUNT_BYTES,
    TOKEN_ACCOUNT_RENT_LAMPORTS,
    TRANSACTION_LIMIT_BYTES,
    WALLET_RENT_LAMPORTS,
    ErrorCode,
    SettlementError,
    associated_account,
    associated_address,
    compile_message,
    create_associated,
    derive_seed,
    give,
    initialize_mint,
    instruction,
    memo,
    mint_to,
    open_account,
    public_key,
    sign_bytes,
    sign_message,
    solders,
    to_blockhash,
)
from cyxnet.messages import EscrowTerms, Payee, SignedTransaction
from cyxnet.wallet import Wallet, base58_encode

if TYPE_CHECKING:
    from solders.account import Account
    from solders.pubkey import Pubkey

__all__ = [
    "DECIMALS", "LAMPORTS_PER_SIGNATURE", "MEMO_PROGRAM", "ErrorCode", "associated_address", "to_blockhash",
]  # fmt: skip

PROGRAM_SHA256 = "6582a8fc73b8507902a606dc9a8cb7b42016d5a5205f18b3b95b0c6b4aaa2a7f"
PROGRAM_SIZE_BYTES = 11_600
# Where a local chain has the program from its beginning. It comes from the program's bytes and not from a key: on any
# other chain nobody can put something else there.
LOCAL_PROGRAM = base58_encode(hashlib.sha256(b"cyx-escrow-program|" + bytes.fromhex(PROGRAM_SHA256)).digest())
OPEN, ASSIGN, SETTLE, REFUND = b"\x00", b"\x01", b"\x02", b"\x04"
STATE_BYTES = 376
STATE_RENT_LAMPORTS = 3_507_840
ESCROW_RENT_LAMPORTS = STATE_RENT_LAMPORTS + TOKEN_ACCOUNT_RENT_LAMPORTS  # lent until the escrow is settled
DEPOSIT_LAMPORTS = ESCROW_RENT_LAMPORTS + LAMPORTS_PER_SIGNATURE + WALLET_RENT_LAMPORTS  # that a payer has to hold
DAY_S = 86_400
DEADLINE_S = 30 * DAY_S  # that a quote proposes
EARLIEST_DEADLINE_S, LATEST_DEADLINE_S = 7 * DAY_S, 365 * DAY_S  # that central accepts; the program: 400 days


ACCOUNTS_REMEMBERED = 4096
_ACCOUNTS: dict[tuple[str, str, str], tuple[Pubkey, Pubkey, int]] = {}  # by client, job id and program


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


# Amounts and addresses: arithmetic, no chain.


def split(pay_base_units: int, fee_basis_points: int) -> tuple[int, int]:
    """(node, platform) shares of a payment: the fee is rounded down and the two always sum to the payment."""
    fee = pay_base_units * fee_basis_points // 10_000
    return pay_base_units - fee, fee


def escrow_account(client: str, job_id: str, program: str) -> tuple[Pubkey, Pubkey, int]:
    """The addresses of a job's state and vault, and the vault's bump. Only the client's signature can open them."""
    found = _ACCOUNTS.get((client, job_id, program))
    if found is None:
        found = find_accounts(bytes(public_key(client)), job_key(job_id), bytes(public_key(program)))
        remember_accounts(client, job_id, program, found)
    return found


def find_accounts(client: bytes, key: bytes, program: bytes) -> tuple[Pubkey, Pubkey, int]:
    """escrow_account() of raw public keys and a job_key(): 40 µs of arithmetic on the curve."""
    lib = solders()
    find, code = lib.Pubkey.find_program_address, lib.Pubkey.from_bytes(program)
    state, _ = find([b"escrow", client, key], code)
    return state, *find([b"vault", bytes(state)], code)


def remember_accounts(client: str, job_id: str, program: str, found: tuple[Pubkey, Pubkey, int]) -> None:
    """What find_accounts() said, here or elsewhere: escrow_account() need not ask it again soon."""
    if len(_ACCOUNTS) >= ACCOUNTS_REMEMBERED:
        _ACCOUNTS.clear()
    _ACCOUNTS[client, job_id, program] = found


@functools.lru_cache(maxsize=4096)
def escrow_address(client: str, job_id: str, program: str = LOCAL_PROGRAM) -> str:
    """The one state account that can stand for this job's money."""
    return str(escrow_account(client, job_id, program)[0])


def mint_address(authority: str) -> str:
    """The token that this authority makes on a local network."""
    lib = solders()
    return str(lib.Pubkey.create_with_seed(public_key(authority), derive_seed("cyx-mint/1", "CYX"), lib.TOKEN))


def escrow_terms(
    *, job_id: str, mint: str, authority: str, client: str, platform: str,
    amount_base_units: int, fee_basis_points: int, deadline_s: int, program: str = LOCAL_PROGRAM,
) -> EscrowTerms:  # fmt: skip
    """Checked terms with the escrow address they imply. Raises SettlementError bad_terms, bad_address."""
    terms = EscrowTerms(
        job_id=job_id, mint=mint, authority=authority, client=client, platform=platform,
        amount_base_units=amount_base_units, fee_basis_points=fee_basis_points,
        escrow=escrow_address(client, job_id, program), program=program, deadline_s=deadline_s,
    )  # fmt: skip
    check_terms(terms)
    return terms


def check_terms(terms: EscrowTerms) -> None:
    """Raises SettlementError bad_terms or bad_address unless a deposit for these terms can be built."""
    if not terms.program:
        raise _bad_terms("an escrow program, got none: these are terms of a version whose escrows central owned")
    for address in (terms.mint, terms.authority, terms.platform):
        public_key(address)
    expected = escrow_address(terms.client, terms.job_id, terms.program)
    if terms.escrow != expected:
        raise _bad_terms(f"escrow {expected}, got {terms.escrow}")
    if not 0 < terms.amount_base_units < 2**63:
        raise _bad_terms(f"amount 1 to 2^63-1 base units, got {terms.amount_base_units}")
    if not 0 <= terms.fee_basis_points <= 10_000:
        raise _bad_terms(f"fee 0 to 10000 basis points, got {terms.fee_basis_points}")
    if not 0 < terms.deadline_s < 2**63:
        raise _bad_terms(f"a deadline in seconds since 1970, got {terms.deadline_s}")
    if not (0 < len(terms.job_id) <= 64 and terms.job_id.isascii() and terms.job_id.isprintable()):
        raise _bad_terms(f"a job id of 1 to 64 printable ASCII characters, got {terms.job_id!r:.80}")


def _bad_terms(expectation: str) -> SettlementError:
    return SettlementError("bad_terms", f"escrow terms: expected {expectation}")


def expected_state(terms: EscrowTerms) -> bytes:
    """The state account of an escrow that was opened on these terms, with no node assigned yet: `State` in escrow.c."""
    client, mint, authority = map(public_key, (terms.client, terms.mint, terms.authority))
    bump = escrow_account(terms.client, terms.job_id, terms.program)[2]
    head = struct.pack("<BBB3xHQq", 1, bump, 0, terms.fee_basis_points, terms.amount_base_units, terms.deadline_s)
    tokens = associated_account(public_key(terms.platform), mint), associated_account(client, mint)
    keys = (client, client, authority, authority, mint, *tokens)  # the client pays the rent, central names the nodes
    return (head + b"".join(map(bytes, keys))).ljust(STATE_BYTES, b"\0")


# Transactions: pure functions of their arguments, so that both sides can rebuild and compare them.


def _compiled(payer: bytes, blockhash: bytes, calls: Iterable[tuple[bytes, bytes, list[tuple[bytes, str]]]]) -> bytes:
    """A version-0 message: accounts in the order of their first mention in each class, as its signature covers them.

    calls: (program, data of less than 128 bytes, accounts with flags). Only the payer signs. solders would sort the
    accounts by address, and then a message could not be made of parts.
    """
    calls = list(calls)
    writable = {payer: None} | {key: None for _, _, keys in calls for key, flags in keys if "w" in flags}
    readonly = {key: None for _, _, keys in calls for key, _ in keys} | {program: None for program, _, _ in calls}
    keys = [*writable, *(key for key in readonly if key not in writable)]
    place = {key: at for at, key in enumerate(keys)}
    parts = [b"\x80\x01\x00", bytes([len(keys) - len(writable), len(keys)]), *keys, blockhash, bytes([len(calls)])]
    for program, data, accounts in calls:
        parts += bytes([place[program], len(accounts), *(place[key] for key, _ in accounts), len(data)]), data
    return b"".join([*parts, b"\x00"])


@functools.lru_cache(maxsize=4096)
def job_key(job_id: str) -> bytes:
    """A job as the program knows it."""
    return hashlib.sha256(f"cyx-escrow/2|{job_id}".encode()).digest()


def _deposit_message(terms: EscrowTerms, blockhash: bytes) -> bytes:
    state, vault, _ = escrow_account(terms.client, terms.job_id, terms.program)
    before, between, to_amount, to_note = _deposit_frame(
        terms.client, terms.mint, terms.authority, terms.platform, terms.program, terms.fee_basis_points
    )
    what = struct.pack("<Qq", terms.amount_base_units, terms.deadline_s) + job_key(terms.job_id)
    note = f"cyx/2 deposit job={terms.job_id}".encode()  # for people: the program knows the job by its hash
    parts = (before, bytes(state), bytes(vault), between, blockhash, to_amount, what, to_note, bytes([len(note)]), note)
    return b"".join(parts) + b"\x00"


@functools.lru_cache(maxsize=1024)
def _deposit_frame(
    client: str, mint: str, authority: str, platform: str, program: str, fee_basis_points: int
) -> tuple[bytes, bytes, bytes, bytes]:
    """What the deposits of one client have in common: before the state's address, after the vault's, after the
    blockhash, after the job. Central makes a message for every submit, so it is not compiled for each."""
    lib = solders()
    state, vault, blockhash, what = b"\xf1" * 32, b"\xf2" * 32, b"\xf3" * 32, b"\xf4" * 48
    payer, token, central, owner = (bytes(public_key(each)) for each in (client, mint, authority, platform))
    mine = bytes(associated_account(public_key(client), public_key(mint)))
    accounts = [
        (payer, "ws"), (payer, "ws"), (state, "w"), (vault, "w"), (mine, "w"), (token, ""), (central, ""),
        (central, ""), (owner, ""), (bytes(lib.TOKEN), ""), (bytes(lib.system.ID), ""),
    ]  # fmt: skip
    opening = OPEN + struct.pack("<H", fee_basis_points) + what
    calls = [(bytes(public_key(program)), opening, accounts), (bytes(lib.MEMO), b"", [(payer, "s")])]
    before, rest = _compiled(payer, blockhash, calls).split(state + vault)
    between, rest = rest.split(blockhash)
    to_amount, rest = rest.split(what)
    return before, between, to_amount, rest[:-2]  # without the length of an empty note, and the end


def build_deposit(
    client: Wallet, terms: EscrowTerms, blockhash: str, last_valid_block_height: int
) -> SignedTransaction:
    """The deposit, signed by the client, who pays the fee and the escrow's rent. Needs no chain."""
    check_terms(terms)
    if client.address != terms.client:
        raise SettlementError("bad_terms", f"deposit: expected the wallet {terms.client}, got {client.address}")
    return sign_bytes(client, _deposit_message(terms, bytes(to_blockhash(blockhash))), last_valid_block_height)


def _place_of_blockhash(message: bytes) -> int:
    """Where a version-0 message has its blockhash: after the version, three counts, and the keys."""
    return 5 + 32 * (message[4] if len(message) > 4 else 0)


def blockhash_of(message: bytes) -> str:
    """The blockhash that a version-0 message names."""
    at = _place_of_blockhash(message)
    return _blockhash_text(message[at : at + 32])


@functools.lru_cache(maxsize=1024)  # many deposits name the same one
def _blockhash_text(raw: bytes) -> str:
    return base58_encode(raw)


def with_signed_deadline(terms: EscrowTerms, transaction: bytes, now_s: int) -> EscrowTerms:
    """The terms with the deadline that a deposit names, where that is one to accept; else as they are.

    A quote proposes a deadline, and what is signed later need not be the proposal of the same second. Raises
    SettlementError clocks_differ when only the time is wrong: another central, whose clock is another, may have taken
    the same submission meanwhile, so that a plain no could be a false one.
    """
    message = transaction[65:]
    at = _place_of_blockhash(message) + 32 + 1 + 2 + 11 + 1 + 11  # counts, eleven accounts, tag, fee and amount
    deadline_s = int.from_bytes(message[at : at + 8], "little")
    if now_s + EARLIEST_DEADLINE_S <= deadline_s <= now_s + LATEST_DEADLINE_S:
        return replace(terms, deadline_s=deadline_s)
    try:
        deposit_parts(transaction, replace(terms, deadline_s=deadline_s))
    except (SettlementError, OverflowError):
        return terms  # it is no deposit for these terms whatever the time; what is wrong is said later
    raise SettlementError(
        "clocks_differ",
        f"deposit: expected a deadline {EARLIEST_DEADLINE_S // DAY_S} to {LATEST_DEADLINE_S // DAY_S} days from now, "
        f"which is {now_s} by this central's clock, got {deadline_s}; ask again, or for a new quote under the same id",
    )


def check_funds(terms: EscrowTerms, held_base_units: int, held_lamports: int) -> None:
    """Raises SettlementError insufficient_funds when a client's wallet cannot make the deposit."""
    if held_base_units < terms.amount_base_units:
        raise SettlementError(
            "insufficient_funds",
            f"deposit: expected {terms.amount_base_units} base units in {terms.client}, "
            f"got {held_base_units}; add tokens (cyx wallet --faucet AMOUNT on a local network) or offer less",
        )
    if held_lamports < DEPOSIT_LAMPORTS:
        raise SettlementError(
            "insufficient_funds",
            f"deposit: expected {DEPOSIT_LAMPORTS} lamports in {terms.client} for fee and rent, "
            f"got {held_lamports}; add SOL; the rent comes back when the job is settled",
        )


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
    message = transaction[65:]  # after one signature and their number
    at = _place_of_blockhash(message)
    if transaction[:1] != b"\x01" or message != _deposit_message(terms, message[at : at + 32]):
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
        f"{terms.escrow} for job {terms.job_id} until {terms.deadline_s} and nothing else, got another message; "
        "sign exactly the quoted terms",
    )


def build_settle(
    central: Wallet, terms: EscrowTerms, *, payees: Sequence[Payee],
    balance_base_units: int, blockhash: str, last_valid_block_height: int,
    moved_accounts: frozenset[str] = frozenset(),
) -> SignedTransaction:  # fmt: skip
    """The settlement, signed by central, who pays the fee and any missing recipient account.

    balance_base_units: what the vault really holds; the program gives all beyond the pay back to the client.
    moved_accounts: recipient accounts whose owner gave them away; they are paid as they are, where re-creating them
    would fail and block everybody's payment.
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
    authority, client, mint, program = map(public_key, (terms.authority, terms.client, terms.mint, terms.program))
    state, vault, _ = escrow_account(terms.client, terms.job_id, terms.program)
    nodes = [public_key(payee.wallet) for payee in payees]
    platform = public_key(terms.platform)
    fees = sum(split(payee.pay_base_units, terms.fee_basis_points)[1] for payee in payees)
    paid = [*nodes, *([platform] if fees else []), *([client] if balance_base_units > pay_base_units else [])]
    instructions = [
        create_associated(authority, owner, mint)
        for owner in dict.fromkeys(paid)
        if str(associated_account(owner, mint)) not in moved_accounts
    ]
    if nodes:
        accounts = [(authority, "s"), (state, "w"), *((node, "") for node in nodes)]
        instructions.append(instruction(program, ASSIGN, accounts))
    accounts = [
        (authority, "s"), (state, "w"), (vault, "w"), (mint, ""), (associated_account(platform, mint), "w"),
        (associated_account(client, mint), "w"), (client, "w"), (solders().TOKEN, ""),
        *((associated_account(node, mint), "w") for node in nodes),
    ]  # fmt: skip
    pays = b"".join(payee.pay_base_units.to_bytes(8, "little") for payee in payees)
    note = f"cyx/2 settle job={terms.job_id} pay={pay_base_units} of={terms.amount_base_units}"
    instructions += [instruction(program, SETTLE + pays, accounts), memo(authority, note)]
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
    blockhash: str, last_valid_block_height: int, mint_id: str = "", lamports: int = 0,
) -> SignedTransaction:  # fmt: skip
    """New tokens for an address, into its associated account. Raises SettlementError bad_terms.

    lamports: that the authority gives with them, so that both come or neither; none, or as many as a new wallet needs.
    mint_id: which payment it is. The chain lands one message once, and without it two equal payments of one block would
    be one message.
    """
    if not 0 < amount_base_units < 2**63:
        raise SettlementError("bad_terms", f"faucet: expected 1 to 2^63-1 base units, got {amount_base_units}")
    if lamports and not WALLET_RENT_LAMPORTS <= lamports < 2**63:
        raise SettlementError(
            "bad_terms", f"faucet: expected no lamports, or {WALLET_RENT_LAMPORTS} to 2^63-1, got {lamports}"
        )
    owner, target, token = public_key(authority.address), public_key(to_address), public_key(mint)
    account = associated_account(target, token)
    instructions = [
        create_associated(owner, target, token),
        mint_to(token, account, owner, amount_base_units),
        *([give(owner, target, lamports)] if lamports else []),
        *([memo(owner, f"cyx/2 faucet mint={mint_id}")] if mint_id else []),
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


def check_escrow(terms: EscrowTerms, account: Account | None, vault: Any) -> EscrowState:
    """account: the state. vault: its token account, parsed. Raises SettlementError escrow_missing, escrow_mismatch."""
    if account is None:
        raise SettlementError(
            "escrow_missing", f"job {terms.job_id}: expected an escrow account at {terms.escrow}, got none"
        )
    if str(account.owner) != terms.program or bytes(account.data) != expected_state(terms):
        raise SettlementError(
            "escrow_mismatch",
            f"escrow {terms.escrow}: expected what the terms say, under the program {terms.program}, got "
            f"{len(account.data)} other bytes of {account.owner}",
        )
    held = 0 if vault is None else int(vault.amount)
    if held < terms.amount_base_units:
        raise SettlementError(
            "escrow_mismatch",
            f"escrow {terms.escrow}: expected at least {terms.amount_base_units} base units in its vault, got {held}",
        )
    return EscrowState(address=terms.escrow, balance_base_units=held, lamports=account.lamports)


def is_refund(terms: EscrowTerms, keys: Sequence[str], calls: Iterable[tuple[int, bytes, bytes]]) -> bool:
    """Whether a transaction that landed without an error refunded the escrow of these terms.

    keys: the addresses that it names. calls: of each instruction, those that programs made too, the place of the
    program among the keys, the data, and the places of the accounts. The program refunds all or fails: no amount is
    read.
    """
    return any(
        keys[program] == terms.program and data == REFUND and len(places) > 1 and keys[places[1]] == terms.escrow
        for program, data, places in calls
    )


def paid_by(transaction: bytes, terms: EscrowTerms) -> list[tuple[str, int]]:
    """(wallet, pay before the fee) of a settlement of these terms, by its bytes alone; [] where it pays no node.

    What landed are these bytes or none: the signature is over all of them.
    """
    message = solders().VersionedTransaction.from_bytes(transaction).message
    keys = [str(key) for key in message.account_keys]
    wallets: list[str] = []
    pays: list[int] = []
    for each in message.instructions:
        data, places = bytes(each.data), bytes(each.accounts)
        if keys[each.program_id_index] != terms.program or len(places) < 2 or keys[places[1]] != terms.escrow:
            continue
        if data == ASSIGN:
            wallets = [keys[place] for place in places[2:]]
        elif data[:1] == SETTLE:
            pays = [int.from_bytes(data[at : at + 8], "little") for at in range(1, len(data), 8)]
    return list(zip(wallets, pays, strict=False))


def token_account(account: Account | None) -> Any:
    """The parsed token account, or None for anything else."""
    lib = solders()
    if account is None or account.owner != lib.TOKEN or len(account.data) != TOKEN_ACCOUNT_BYTES:
        return None
    return lib.TokenAccount.from_bytes(bytes(account.data))

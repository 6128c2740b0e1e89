"""The embedded chain's JSON-RPC methods, one row each: the answers of a Solana node, from a Chain.

Parameters are read with a real node's errors; a mistake of the caller is an RpcError, never a traceback.
"""

import base64
import binascii
import sqlite3
from collections.abc import Callable, Collection
from typing import Any

import msgspec
from solders.account import Account
from solders.message import Message, from_bytes_versioned
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.token import ID as TOKEN_PROGRAM
from solders.token.state import Mint, TokenAccount
from solders.transaction_metadata import FailedTransactionMetadata

from cyxcentral.localvm import Chain, RpcError, error_of, invalid, parse_transaction, simulation
from cyxnet.escrow import LAMPORTS_PER_SIGNATURE
from cyxnet.wallet import base58_decode, base58_encode

AIRDROP_LIMIT_LAMPORTS = 10**15
VERSION = {"solana-core": "4.1.2-cyx-local", "feature-set": 1}
COMMITMENTS = ("processed", "confirmed", "finalized")


class Params:
    """The positional parameters of one call, read with the errors of a real node."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def get(self, at: int, kind: type, what: str) -> Any:
        value = self.values[at] if at < len(self.values) else None
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise invalid(f"expected {what} at position {at}, got {value!r:.60}")
        return value

    def natural(self, at: int, what: str, limit: int = 2**63 - 1) -> int:
        value: int = self.get(at, int, what)
        if not 0 <= value <= limit:
            raise invalid(f"expected {what} from 0 to {limit} at position {at}, got {value}")
        return value

    def address(self, at: int) -> Pubkey:
        return address_of(self.get(at, str, "an address"))

    def texts(self, at: int, what: str, limit: int) -> list[str]:
        values: list[Any] = self.get(at, list, f"a list of {what}")
        if len(values) > limit or not all(isinstance(value, str) for value in values):
            raise invalid(f"expected at most {limit} {what} (strings) at position {at}, got {len(values)}")
        return values

    def config(self, at: int) -> dict[str, Any]:
        return self.get(at, dict, "an object") if at < len(self.values) and self.values[at] is not None else {}

    def commitment(self, at: int) -> str:
        return choose(self.config(at), "commitment", COMMITMENTS, "finalized")


def address_of(text: str) -> Pubkey:
    try:
        return Pubkey.from_string(text)
    except ValueError:
        raise invalid(f"expected an address of 32 bytes in base 58, got {text!r:.60}") from None


def signature_of(text: str) -> bytes:
    try:
        return bytes(Signature.from_string(text))
    except ValueError:
        raise invalid(f"expected a signature of 64 bytes in base 58, got {text!r:.100}") from None


def decode_base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def encode_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


DECODERS: dict[str, Callable[[str], bytes]] = {"base64": decode_base64, "base58": base58_decode}
ENCODERS: dict[str, Callable[[bytes], str]] = {"base64": encode_base64, "base58": base58_encode}


def choose(config: dict[str, Any], name: str, choices: Collection[str], absent: str) -> str:
    """A named option that is one of a few words."""
    value = config.get(name)
    if value is None:
        value = absent
    if not isinstance(value, str) or value not in choices:
        raise invalid(f"expected {name} {' | '.join(choices)}, got {value!r:.60}")
    return value


def decode_wire(text: str, config: dict[str, Any]) -> bytes:
    """Transaction or message bytes as they come in a request. base58 is the protocol's default."""
    encoding = choose(config, "encoding", DECODERS, "base58")
    if len(text) > 2048:  # decoding base 58 takes time quadratic in the length
        raise invalid(f"transaction too large: {len(text)} characters (max: 2048)")
    try:
        return DECODERS[encoding](text)
    except (ValueError, binascii.Error) as error:
        raise invalid(f"not {encoding}: {error}") from None


# What each method answers. A row per method; the functions take the chain and the parameters.

Method = Callable[[Chain, Params], Any]
METHODS: dict[str, Method] = {
    "getHealth": lambda chain, params: "ok",
    "getVersion": lambda chain, params: VERSION,
    "getGenesisHash": lambda chain, params: base58_encode(chain.genesis),
    "getSlot": lambda chain, params: chain.slot_at(params.commitment(0)),
    "getBlockHeight": lambda chain, params: chain.height(params.commitment(0)),
}


def method(name: str) -> Callable[[Method], Method]:
    def add(function: Method) -> Method:
        METHODS[name] = function
        return function

    return add


def in_context(chain: Chain, value: Any) -> dict[str, Any]:
    return {"context": {"apiVersion": "4.1.2", "slot": chain.slot}, "value": value}


@method("getEpochInfo")
def epoch_info(chain: Chain, params: Params) -> Any:
    level = params.commitment(0)
    slot = chain.slot_at(level)
    return {
        "absoluteSlot": slot,
        "blockHeight": chain.height(level),
        "epoch": slot // 432_000,
        "slotIndex": slot % 432_000,
        "slotsInEpoch": 432_000,
        "transactionCount": None,
    }


@method("getLatestBlockhash")
def latest_blockhash(chain: Chain, params: Params) -> Any:
    height = chain.height(params.commitment(0))
    last_valid = height + chain.options.window_blocks
    return in_context(chain, {"blockhash": chain.blockhash(height), "lastValidBlockHeight": last_valid})


@method("isBlockhashValid")
def is_blockhash_valid(chain: Chain, params: Params) -> Any:
    return in_context(chain, chain.is_recent(params.get(0, str, "a blockhash")))


@method("getBalance")
def balance(chain: Chain, params: Params) -> Any:
    return in_context(chain, chain.svm.get_balance(params.address(0)) or 0)


def account_view(account: Account | None, config: dict[str, Any]) -> dict[str, Any] | None:
    # jsonParsed falls back to base64 where a node has no parser, as the protocol says; we have none.
    encoding = choose(config, "encoding", ("base64", "jsonParsed", "base58"), "base64")
    encoding = "base64" if encoding == "jsonParsed" else encoding
    part = config.get("dataSlice") or {"offset": 0, "length": 2**40}
    bounds = Params([part.get("offset"), part.get("length")] if isinstance(part, dict) else [])
    offset, length = bounds.natural(0, "an offset"), bounds.natural(1, "a length")
    if account is None or account.lamports == 0:
        return None
    data = bytes(account.data)[offset : offset + length]
    if encoding == "base58" and len(data) > 128:
        raise invalid(f"expected encoding base64 for data of more than 128 bytes, got {len(data)} in base58")
    return {
        "data": [ENCODERS[encoding](data), encoding],
        "executable": account.executable,
        "lamports": account.lamports,
        "owner": str(account.owner),
        "rentEpoch": account.rent_epoch,
        "space": len(account.data),
    }


@method("getAccountInfo")
def account_info(chain: Chain, params: Params) -> Any:
    account = chain.svm.get_account(params.address(0))
    return in_context(chain, account_view(account, params.config(1)))


@method("getMultipleAccounts")
def multiple_accounts(chain: Chain, params: Params) -> Any:
    addresses = [address_of(text) for text in params.texts(0, "addresses", 100)]
    views = [account_view(chain.svm.get_account(address), params.config(1)) for address in addresses]
    return in_context(chain, views)


def token_state(chain: Chain, address: Pubkey, kind: type, length: int, what: str) -> Any:
    """The parsed token account or mint. Raises RpcError -32602 when there is none at the address."""
    account = chain.svm.get_account(address)
    if account is None or account.lamports == 0:
        raise invalid("could not find account")
    if account.owner != TOKEN_PROGRAM or len(account.data) != length:
        raise invalid(f"not a {what}")
    return kind.from_bytes(bytes(account.data))  # type: ignore[attr-defined]


def token_amount(amount_base_units: int, decimals: int) -> dict[str, Any]:
    digits = str(amount_base_units).rjust(decimals + 1, "0")
    whole, fraction = digits[: len(digits) - decimals], digits[len(digits) - decimals :].rstrip("0")
    return {
        "amount": str(amount_base_units),
        "decimals": decimals,
        "uiAmount": amount_base_units / 10**decimals,
        "uiAmountString": f"{whole}.{fraction}" if fraction else whole,
    }


@method("getTokenAccountBalance")
def token_account_balance(chain: Chain, params: Params) -> Any:
    account = token_state(chain, params.address(0), TokenAccount, 165, "Token account")
    mint = token_state(chain, account.mint, Mint, 82, "Token mint")
    return in_context(chain, token_amount(account.amount, mint.decimals))


@method("getTokenSupply")
def token_supply(chain: Chain, params: Params) -> Any:
    mint = token_state(chain, params.address(0), Mint, 82, "Token mint")
    return in_context(chain, token_amount(mint.supply, mint.decimals))


@method("getTokenAccountsByOwner")
def token_accounts_by_owner(chain: Chain, params: Params) -> Any:
    owner, config = params.address(0), params.config(2)
    wanted = params.get(1, dict, "{mint} or {programId}")
    if set(wanted) not in ({"mint"}, {"programId"}):
        raise invalid(f"expected exactly one of mint, programId at position 1, got {sorted(wanted)!r:.60}")
    mint = address_of(str(wanted["mint"])) if "mint" in wanted else None
    found = [
        {"pubkey": str(address), "account": account_view(account, config)}
        for address, account in chain.svm.get_program_accounts(TOKEN_PROGRAM)
        if len(account.data) == 165
        and (state := TokenAccount.from_bytes(bytes(account.data))).owner == owner
        and mint in (None, state.mint)
    ]
    return in_context(chain, found if wanted.get("programId", str(TOKEN_PROGRAM)) == str(TOKEN_PROGRAM) else [])


@method("getMinimumBalanceForRentExemption")
def rent_exemption(chain: Chain, params: Params) -> Any:
    return chain.svm.minimum_balance_for_rent_exemption(params.natural(0, "a data length", 10 * 2**20))


@method("getFeeForMessage")
def fee_for_message(chain: Chain, params: Params) -> Any:
    raw = decode_wire(params.get(0, str, "a message"), {"encoding": "base64"})
    try:
        message = from_bytes_versioned(raw) if raw[:1] >= b"\x80" else Message.from_bytes(raw)
    except ValueError as error:
        raise invalid(f"failed to deserialize the message: {error}") from None
    recent = chain.is_recent(str(message.recent_blockhash))
    fee_lamports = LAMPORTS_PER_SIGNATURE * message.header.num_required_signatures
    return in_context(chain, fee_lamports if recent else None)


@method("requestAirdrop")
def request_airdrop(chain: Chain, params: Params) -> Any:
    return chain.airdrop(params.address(0), params.natural(1, "lamports", AIRDROP_LIMIT_LAMPORTS))


@method("sendTransaction")
def send_transaction(chain: Chain, params: Params) -> Any:
    config = params.config(1)
    raw = decode_wire(params.get(0, str, "a transaction"), config)
    return chain.send(raw, skip_preflight=config.get("skipPreflight") is True)


@method("simulateTransaction")
def simulate_transaction(chain: Chain, params: Params) -> Any:
    config = params.config(1)
    raw = decode_wire(params.get(0, str, "a transaction"), config)
    transaction = parse_transaction(raw)
    if config.get("sigVerify") is True and not all(transaction.verify_with_results()):
        raise RpcError(-32003, "Transaction signature verification failure")
    obstacle = None if config.get("replaceRecentBlockhash") is True else chain.obstacle(transaction)
    if obstacle is not None:
        return in_context(chain, simulation(obstacle, None))
    chain.set_machine_clock()
    result = chain.svm.simulate_transaction(transaction)
    error = error_of(result) if isinstance(result, FailedTransactionMetadata) else None
    return in_context(chain, simulation(error, result.meta()))


def commitment_of(chain: Chain, slot: int) -> str:
    """The highest commitment a landing in this slot has reached."""
    return next(level for level in reversed(COMMITMENTS) if slot <= chain.slot_at(level))


@method("getSignatureStatuses")
def signature_statuses(chain: Chain, params: Params) -> Any:
    statuses: list[dict[str, Any] | None] = []
    for text in params.texts(0, "signatures", 256):
        row = chain.database.execute(
            "SELECT slot, meta FROM landed WHERE signature = ?", (signature_of(text),)
        ).fetchone()
        if row is None:
            statuses.append(None)
            continue
        slot, meta = row[0], msgspec.json.decode(row[1])
        level = commitment_of(chain, slot)
        statuses.append(
            {
                "slot": slot,
                "confirmations": None if level == "finalized" else chain.slot - slot,
                "err": meta["err"],
                "status": meta["status"],
                "confirmationStatus": level,
            }
        )
    return in_context(chain, statuses)


@method("getTransaction")
def get_transaction(chain: Chain, params: Params) -> Any:
    config = params.config(1)
    encoding = choose(config, "encoding", ENCODERS, "json (absent)")  # this chain parses nothing
    row = chain.database.execute(
        "SELECT slot, unix_s, raw, meta FROM landed WHERE signature = ? AND raw != x''",
        (signature_of(params.get(0, str, "a signature")),),
    ).fetchone()
    if row is None:
        return None
    slot, unix_s, raw, meta = row
    return {
        "slot": slot,
        "blockTime": unix_s,
        "transaction": [ENCODERS[encoding](raw), encoding],
        "meta": {"innerInstructions": None, "preTokenBalances": None, "postTokenBalances": None}
        | msgspec.json.decode(meta),
        "version": 0 if raw[1 + 64 * raw[0]] >= 0x80 else "legacy",
    }


@method("getSignaturesForAddress")
def signatures_for_address(chain: Chain, params: Params) -> Any:
    config = params.config(1)
    limit = Params([config.get("limit", 1000)]).natural(0, "a limit", 1000)

    def place(name: str, absent: int) -> int:
        if config.get(name) is None:
            return absent
        signature = signature_of(str(config[name]))
        row = chain.database.execute("SELECT n FROM landed WHERE signature = ?", (signature,)).fetchone()
        return absent if row is None else int(row[0])

    rows = chain.database.execute(
        "SELECT l.signature, l.slot, l.unix_s, l.meta, l.memo FROM mention m JOIN landed l ON l.n = m.n"
        " WHERE m.address = ? AND m.n < ? AND m.n > ? ORDER BY m.n DESC LIMIT ?",
        (bytes(params.address(0)), place("before", 2**62), place("until", 0), limit),
    )
    return [
        {
            "signature": base58_encode(signature),
            "slot": slot,
            "err": msgspec.json.decode(meta)["err"],
            "memo": memo,
            "blockTime": unix_s,
            "confirmationStatus": commitment_of(chain, slot),
        }
        for signature, slot, unix_s, meta, memo in rows
    ]


def call(chain: Chain, name: str, params: list[Any]) -> Any:
    """One JSON-RPC call on the chain as of now. Raises RpcError."""
    if name not in METHODS:
        raise RpcError(-32601, f"Method not found: {name:.60}")
    if chain.storage_failure is not None:
        raise RpcError(
            -32603,
            f"Internal error: storage failed ({chain.storage_failure}); free the disk: it ends, and starts anew",
        )
    try:
        chain.advance()
        return METHODS[name](chain, Params(params))
    except sqlite3.Error as error:
        raise RpcError(-32603, f"Internal error: storage failed ({error})") from None

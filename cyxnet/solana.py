"""The one door to a Solana chain's RPC: balances, deposits, settlements, and what became of them.

The URL picks the chain: the embedded one, devnet or mainnet; the code is the same. The transactions are
built in cyxnet/escrow.py. The packages are loaded on first use, because they take 0.6 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import math
import random
import secrets
import urllib.request
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from cyxcore.errors import MissingExtra
from cyxnet import tls
from cyxnet.config import LOOPBACK_HOSTS
from cyxnet.escrow import (
    DECIMALS,
    PROGRAM_SHA256,
    PROGRAM_SIZE_BYTES,
    ErrorCode,
    EscrowState,
    Funds,
    SettlementError,
    associated_address,
    bad_signature,
    blockhash_of,
    build_deposit,
    build_settle,
    check_deposit,
    check_escrow,
    check_funds,
    check_pay,
    check_terms,
    deposit_parts,
    escrow_account,
    escrow_address,
    escrow_terms,
    is_refund,
    mint_address,
    public_key,
    signed_by,
    solders,
    split,
    token_account,
)
from cyxnet.httpclient import BadStatus, Poster, address
from cyxnet.messages import EscrowTerms, Payee, SignedTransaction
from cyxnet.moving import build_transfer, no_wallet
from cyxnet.refund import OpenEscrow, build_refund, read_escrow
from cyxnet.shapes import Deposit, Faucet, MakeMint, Settle, Signer, signed_by_key
from cyxnet.wallet import Wallet, WalletError, base58_decode, sign, verify

if TYPE_CHECKING:
    from solana.rpc.models import TxOpts
    from solders.account import Account
    from solders.signature import Signature

__all__ = [
    "DECIMALS", "EscrowState", "HistoryEntry", "Settlement", "SettlementError", "TransactionStatus", "Wallet",
    "WalletError", "associated_address", "build_deposit", "build_settle", "check_deposit", "check_terms",
    "escrow_address", "escrow_terms", "mint_address", "sign", "split", "verify",
]  # fmt: skip

PUBLIC_GENESIS = {  # base-58 genesis hash -> cluster
    "5eykt4UsFv8P8NJdTREpY1vzqKqZKvdpKuc147dw2N9d": "mainnet-beta",
    "EtWTRABZaYq6iMfeYKouRu166VU2xqa1wcaWoxPkrZBG": "devnet",
}
UPGRADEABLE_LOADER = "BPFLoaderUpgradeab1e11111111111111111111111"
HISTORY_PAGE = 1000  # the most that one answer holds
STATUSES_AT_ONCE = 256  # the most that one question may name
ESCROWS_AT_ONCE = 50  # two accounts each; RPC tells of a hundred
BLOCKHASHES_REMEMBERED = 256
BLOCKHASH_REUSED_S = 5.0
BLOCKHASH_TRUSTED_S = 25.0  # of the minute that a blockhash lives
MACHINE_LAG_BLOCKS = 32  # how far the machines behind one URL may be apart
AIRDROP_WITHIN_S = 20.0  # a local chain has it in the next block, and who asked for test money waits no longer
LOW_LAMPORTS, FILL_LAMPORTS = 10**12, 10**13  # of the wallet that gives test money: a wish is 10^10 at most
Verify = Callable[[bytes, bytes, bytes], Awaitable[bool]]  # public key, signature, message
Wanted = tuple[list[str], "asyncio.Future[list[Account | None]]"]  # two addresses, and who waits for their accounts
RETRY_STATUSES = {408, 425, 429, 500, 502, 503, 504}


class TransactionStatus(Struct, frozen=True, kw_only=True):
    """What became of a transaction. Only a landing that is finalized, and dead, are for ever.

    pending: it may still land. landed: in `slot`; `err` is the chain's error as JSON, None when it worked.
    dead: it has not landed and cannot any more; only then may a replacement be signed.
    """

    state: Literal["pending", "landed", "dead"]
    slot: int | None = None
    finalized: bool = False
    err: str | None = None


class HistoryEntry(Struct, frozen=True, kw_only=True):
    """One transaction that named an address."""

    signature: str
    slot: int
    err: str | None
    memo: str | None
    finalized: bool


async def _verify(key: bytes, signature: bytes, message: bytes) -> bool:
    return signed_by(key, signature, message)


class Settlement:
    """Payments on one chain. Every call retries what can be retried and raises SettlementError otherwise.

    url: the RPC endpoint. witness_urls: further endpoints of the same chain; a transaction counts as dead
    only when all of them agree. attempts: tries per call; the waits between them double from 50 ms to 2 s.
    clients: what talks to the endpoints, by default one AsyncClient of the package solana each.
    Raises TlsError and BadAddress for URLs that are not to be asked.
    """

    def __init__(
        self,
        url: str,
        witness_urls: tuple[str, ...] = (),
        *,
        timeout_s: float = 10.0,
        attempts: int = 6,
        clients: Sequence[Any] = (),
    ):
        for each in (url, *witness_urls):
            tls.refuse_plain_text(each, "the chain at")
            address(each)
        self.url = url
        self.attempts = attempts
        self._clients = list(clients) or _connect((url, *witness_urls), timeout_s)
        self.verify: Verify = _verify  # a deposit's signature; whoever gets many may have it done elsewhere
        self._genesis: str | None = None
        self._wanted: list[Wanted] = []  # in this turn of the loop
        self._asking: set[asyncio.Task[None]] = set()
        self._seen: OrderedDict[str, tuple[int, float]] = OrderedDict()  # blockhash -> last valid height, seen at

    async def __aenter__(self) -> Settlement:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        for task in self._asking:
            task.cancel()
        for client in self._clients:
            await client.close()

    # Reading.

    async def genesis_hash(self) -> str:
        """The chain's identity."""
        if self._genesis is None:
            self._genesis = str((await self._ask("get_genesis_hash")).value)
        return self._genesis

    async def is_local(self) -> bool:
        """True on this machine's own chain; never for a tunnel to a public cluster."""
        return urlsplit(self.url).hostname in LOOPBACK_HOSTS and await self.genesis_hash() not in PUBLIC_GENESIS

    async def sol_balance(self, address: str) -> int:
        """Lamports; 0 for an account that does not exist."""
        return int((await self._ask("get_balance", public_key(address))).value)

    async def token_balance(self, owner: str, mint: str) -> int:
        """Base units in the owner's associated account; 0 when there is none."""
        [account] = await self._accounts([associated_address(owner, mint)])
        state = token_account(account)
        return 0 if state is None else int(state.amount)

    async def token_supply(self, mint: str) -> int:
        """All base units there are."""
        return int((await self._ask("get_token_supply", public_key(mint))).value.amount)

    async def funds(self, terms: EscrowTerms) -> Funds:
        """What the client of these terms could pay with. Raises SettlementError bad_terms."""
        check_terms(terms)
        wallet, tokens, escrow = await self._accounts(
            [terms.client, associated_address(terms.client, terms.mint), terms.escrow]
        )
        state = token_account(tokens)
        return Funds(
            base_units=0 if state is None else int(state.amount),
            lamports=0 if wallet is None else int(wallet.lamports),
            escrow_exists=escrow is not None and str(escrow.owner) == terms.program,
        )

    async def opened(self, all_terms: list[EscrowTerms]) -> set[str]:
        """Ids of the jobs, of at most 100, whose deposits have left the payer's wallet, final or not."""
        accounts = await self._accounts([terms.escrow for terms in all_terms]) if all_terms else []
        return {
            terms.job_id
            for terms, account in zip(all_terms, accounts, strict=True)
            if account is not None and str(account.owner) == terms.program
        }

    async def latest_blockhash(self) -> tuple[str, int]:
        """(blockhash, last block height at which a transaction naming it can land)."""
        value = (await self._ask("get_latest_blockhash")).value
        blockhash, last_valid = str(value.blockhash), int(value.last_valid_block_height)
        self._seen[blockhash] = (last_valid, _now_s())
        if len(self._seen) > BLOCKHASHES_REMEMBERED:
            self._seen.popitem(last=False)
        return blockhash, last_valid

    async def recent_blockhash(self) -> tuple[str, int]:
        """latest_blockhash(), at most BLOCKHASH_REUSED_S old: who quotes a hundred times a second asks once."""
        if self._seen:
            blockhash, (last_valid, seen_s) = next(reversed(self._seen.items()))
            if _now_s() - seen_s < BLOCKHASH_REUSED_S:
                return blockhash, last_valid
        return await self.latest_blockhash()

    def _seen_lately(self, blockhash: str) -> int | None:
        """The last valid height of a blockhash that the chain told us itself a moment ago."""
        last_valid, seen_s = self._seen.get(blockhash, (0, -math.inf))
        return last_valid if _now_s() - seen_s < BLOCKHASH_TRUSTED_S else None

    async def verify_escrow(self, terms: EscrowTerms) -> EscrowState:
        """The escrow account, finalized, when it is exactly what the terms promise.

        Raises SettlementError escrow_missing, or escrow_mismatch: a client could have opened it on other terms. Of many
        deposits that became final in one moment the chain is asked once.
        """
        state, vault = await self._finalized_pair(_escrow_accounts(terms))
        return check_escrow(terms, state, token_account(vault))

    async def _finalized_pair(self, addresses: list[str]) -> list[Account | None]:
        """The accounts of an escrow, asked for together with those of all others that are wanted in this turn."""
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[Account | None]] = loop.create_future()
        if not self._wanted:
            loop.call_soon(self._ask_for_pairs)
        self._wanted.append((addresses, found))
        return await found

    def _ask_for_pairs(self) -> None:
        wanted, self._wanted = self._wanted, []
        for first in range(0, len(wanted), ESCROWS_AT_ONCE):
            task = asyncio.get_running_loop().create_task(self._tell_pairs(wanted[first : first + ESCROWS_AT_ONCE]))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def _tell_pairs(self, wanted: list[Wanted]) -> None:
        from solana.rpc.commitment import Finalized

        try:
            accounts = await self._accounts([each for addresses, _ in wanted for each in addresses], Finalized)
            for number, (_, found) in enumerate(wanted):
                if not found.done():  # else who asked is gone
                    found.set_result(accounts[2 * number : 2 * number + 2])
        except Exception as error:  # also one that nobody foresaw: who waits for money is told, and tries again
            for _, found in wanted:
                if not found.done():
                    found.set_exception(error)
        finally:  # nobody waits for ever
            for _, found in wanted:
                found.cancel()

    async def wrong_escrows(self, terms: Sequence[EscrowTerms]) -> list[tuple[EscrowTerms, str]]:
        """Those of many jobs whose finalized escrow is not as its terms say, and how, in a sentence."""
        from solana.rpc.commitment import Finalized

        wrong = []
        for first in range(0, len(terms), ESCROWS_AT_ONCE):
            some = terms[first : first + ESCROWS_AT_ONCE]
            accounts = await self._accounts([each for one in some for each in _escrow_accounts(one)], Finalized)
            for each, state, vault in zip(some, accounts[::2], accounts[1::2], strict=True):
                try:
                    check_escrow(each, state, token_account(vault))
                except SettlementError as error:
                    wrong.append((each, str(error)))
        return wrong

    async def verify_program(self, program: str) -> None:
        """Raises SettlementError bad_program unless the escrow program that we know is there, and for ever."""
        [account] = await self._accounts([program])
        head = b"" if account is None or str(account.owner) != UPGRADEABLE_LOADER else bytes(account.data)
        if len(head) != 36 or head[0] != 2:  # the loader's record of a program: its kind, and where its code is
            raise SettlementError(
                "bad_program", f"expected the escrow program at {program}, got no program that we know"
            )
        [code] = await self._accounts([str(solders().Pubkey.from_bytes(head[4:]))])
        data = b"" if code is None else bytes(code.data)  # its kind, slot and authority in 45 bytes, then the program
        rest = data[45 + PROGRAM_SIZE_BYTES :]  # room for a longer one, if anything
        found = hashlib.sha256(data[45:] if any(rest) else data[45 : len(data) - len(rest)]).hexdigest()
        if found != PROGRAM_SHA256:
            raise SettlementError(
                "bad_program",
                f"expected the escrow program {PROGRAM_SHA256} at {program}, got {found}; do not pay into it",
            )
        if data[12]:
            raise SettlementError(
                "bad_program", f"expected a final program at {program}, got one that {data[13:45].hex()} can replace"
            )

    async def escrow_history(self, terms: EscrowTerms) -> list[HistoryEntry]:
        """The newest 100 transactions that named the escrow account, newest first."""
        answer = await self._ask("get_signatures_for_address", public_key(terms.escrow), limit=100)
        entries = [msgspec.json.decode(each.to_json()) for each in answer.value]
        return [
            HistoryEntry(
                signature=entry["signature"],
                slot=entry["slot"],
                memo=entry["memo"],
                err=_json_error(entry["err"]),
                finalized=entry["confirmationStatus"] == "finalized",
            )
            for entry in entries
        ]

    async def refund_of(self, terms: EscrowTerms, deposit_signature: str) -> str | None:
        """The signature of the final transaction that refunded this escrow; None when none is known.

        Only what came after the deposit counts: the client may have opened and refunded the same address before.
        An endpoint that lags, or has no history so far back, knows of none; so None proves nothing.
        """
        from solana.rpc.commitment import Finalized

        escrow = public_key(terms.escrow)
        later: list[Signature] = []  # than the deposit, newest first
        while True:
            options = {"before": later[-1] if later else None, "limit": HISTORY_PAGE, "commitment": Finalized}
            page = (await self._ask("get_signatures_for_address", escrow, **options)).value
            for entry in page:
                if str(entry.signature) == deposit_signature:
                    return await self._first_refund(terms, later[::-1])
                later.append(entry.signature)
            if len(page) < HISTORY_PAGE:
                return None

    async def _first_refund(self, terms: EscrowTerms, signatures: list[Signature]) -> str | None:
        from solana.rpc.commitment import Finalized

        for signature in signatures:
            found = (await self._ask("get_transaction", signature, "base64", Finalized, 0)).value
            if found is None or found.transaction.meta is None or found.transaction.meta.err is not None:
                continue
            if is_refund(terms, *_calls_of(found.transaction)):
                [status] = await self.landings([str(signature)])  # the embedded chain shows newer ones too
                return str(signature) if status and status.finalized else None
        return None

    async def open_escrow(self, client: str, job_id: str, program: str) -> OpenEscrow:
        """What the chain says of a job's escrow. Raises SettlementError escrow_missing when none is open."""
        address = escrow_address(client, job_id, program)
        [account] = await self._accounts([address])
        ours = account is not None and str(account.owner) == program
        found = read_escrow(address, program, bytes(account.data)) if account is not None and ours else None
        if found is None:
            raise SettlementError(
                "escrow_missing",
                f"job {job_id} of {client} has no open escrow on {self.url} (at {address}): it was settled or refunded "
                "already, or never paid; names must be exact here, a beginning will not do",
            )
        return found

    # Building and signing.

    async def refund_transaction(self, sender: Wallet, escrow: OpenEscrow) -> SignedTransaction:
        """The refund of an escrow whose deadline is past, ready to send by anybody who has SOL for the fee."""
        return build_refund(sender, escrow, *await self.latest_blockhash())

    async def transfer_transaction(self, sender: Wallet, mint: str, to: str, amount: int | None) -> SignedTransaction:
        """Tokens from a wallet to another, in base units (None: all there are), ready to send; the sender pays the fee.

        Raises SettlementError bad_address when `to` is no wallet's, insufficient_funds (tokens, or SOL for the fee and,
        where `to` never held such tokens, for the rent of its account).
        """
        held, lamports = await self.token_balance(sender.address, mint), await self.sol_balance(sender.address)
        account, wallet = await self._accounts([associated_address(to, mint), to])
        if wallet is not None and (wallet.executable or wallet.owner != solders().system.ID):  # a program, or a mint
            raise no_wallet(to)
        return build_transfer(sender, mint, to, amount, held, lamports, account is None, *await self.latest_blockhash())

    async def deposit_transaction(
        self, client: Wallet | Signer, terms: EscrowTerms, caller: str = ""
    ) -> SignedTransaction:
        """The client's deposit, ready to send. caller: whose wallet the platform keeps, where it does.

        Raises SettlementError insufficient_funds (tokens, or SOL for fee and rent) and escrow_exists.
        """
        funds = await self.funds(terms)
        if funds.escrow_exists:
            raise SettlementError(
                "escrow_exists",
                f"deposit: job {terms.job_id} already has its escrow {terms.escrow}; pay once per job",
            )
        check_funds(terms, funds.base_units, funds.lamports)
        blockhash, last_valid = await self.latest_blockhash()
        shape = Deposit(caller=caller, terms=terms, blockhash=blockhash, last_valid_block_height=last_valid)
        return await signed_by_key(client, shape)

    async def accept_deposit(self, transaction: bytes, terms: EscrowTerms) -> SignedTransaction:
        """A stranger's deposit, checked, with a last_valid_block_height that central may rely on.

        The client's own figure is not believed: a low one would have central call a deposit dead that
        lands later. A blockhash that is valid now cannot outlive the newest one (and some, because another
        machine may answer each question). Raises SettlementError bad_transaction and expired.
        """
        signed, text = deposit_parts(transaction, terms)
        if not await self.verify(bytes(public_key(terms.client)), signed, text):
            raise bad_signature(terms)
        signature = str(solders().Signature.from_bytes(signed))
        known = self._seen_lately(blockhash_of(text))
        if known is not None:
            return SignedTransaction(
                transaction=transaction,
                signature=signature,
                last_valid_block_height=known + MACHINE_LAG_BLOCKS,
            )
        from solana.rpc.commitment import Processed

        message = solders().VersionedTransaction.from_bytes(transaction).message
        fee = (await self._ask("get_fee_for_message", message, Processed)).value
        if fee is None:  # how RPC says that the blockhash is not, or no longer, valid
            raise SettlementError("expired", f"deposit {signature}: its blockhash is not valid; sign it again")
        newest = (await self._ask("get_latest_blockhash", Processed)).value
        return SignedTransaction(
            transaction=transaction,
            signature=signature,
            last_valid_block_height=newest.last_valid_block_height + MACHINE_LAG_BLOCKS,
        )

    async def settle_transaction(
        self, central: Wallet | Signer, terms: EscrowTerms, payees: Sequence[Payee]
    ) -> SignedTransaction:
        """Pay the nodes and the platform, return the rest, close the escrow: one transaction, all or nothing.

        payees: each node's pay before the platform's share, together at most the amount; none is a refund.
        Raises SettlementError bad_terms, escrow_missing, escrow_mismatch.
        """
        check_pay(terms, payees)
        owners = [terms.client, terms.platform, *(payee.wallet for payee in payees)]
        recipients = {associated_address(owner, terms.mint): owner for owner in owners}
        (escrow, vault, *accounts), (blockhash, last_valid) = await asyncio.gather(
            self._accounts([*_escrow_accounts(terms), *recipients]), self.latest_blockhash()
        )
        state = check_escrow(terms, escrow, token_account(vault))
        moved = {
            address
            for (address, owner), account in zip(recipients.items(), accounts, strict=True)
            if (token := token_account(account)) is not None and str(token.owner) != owner
        }
        shape = Settle(
            terms=terms,
            payees=list(payees),
            balance_base_units=state.balance_base_units,
            blockhash=blockhash,
            last_valid_block_height=last_valid,
            moved_accounts=sorted(moved),
        )
        return await signed_by_key(central, shape)

    # Sending.

    async def send(self, transaction: bytes, *, preflight: bool = True) -> str:
        """Hand the bytes to the chain, again and again if need be. Returns the signature.

        Sending what has landed is a no-op. preflight: let the node try it first, so that a refusal costs no
        fee. An error here never proves that the transaction will not land; only status() does.
        Raises SettlementError insufficient_funds, escrow_exists, expired, transaction_failed.
        """
        try:
            return str((await self._ask("send_raw_transaction", transaction, _sending(preflight))).value)
        except _AlreadyLanded:
            return str(solders().VersionedTransaction.from_bytes(transaction).signatures[0])

    async def landings(self, signatures: Sequence[str]) -> list[TransactionStatus | None]:
        """The landing of each of at most STATUSES_AT_ONCE transactions; None for what this endpoint has not seen.

        Cheap, and proves nothing about what it has not seen: that is what status() is for.
        """
        wanted = [solders().Signature.from_string(signature) for signature in signatures]
        answer = await self._ask("get_signature_statuses", wanted, search_transaction_history=True)
        return [None if value is None else _landed(value) for value in answer.value]

    async def status(self, signature: str, last_valid_block_height: int) -> TransactionStatus:
        """Whether it landed, may still land, or is dead: too old, and landed in no endpoint's view."""
        views = []
        for client in self._clients:
            view = await self._status_at(client, signature, last_valid_block_height)
            if view.state == "landed":
                return view
            views.append(view.state)
        return TransactionStatus(state="dead" if set(views) == {"dead"} else "pending")

    async def status_of(self, signed: SignedTransaction) -> TransactionStatus:
        """status() of a transaction whose last valid height is somebody's word, which is believed only when it is late.

        It is dead only if neither the newest block nor the newest finalized one takes its blockhash any more, too.
        """
        from solana.rpc.commitment import Finalized, Processed

        message = solders().VersionedTransaction.from_bytes(signed.transaction).message
        for commitment in (Processed, Finalized):
            if (await self._ask("get_fee_for_message", message, commitment)).value is not None:
                landed = (await self.landings([signed.signature]))[0]
                return landed or TransactionStatus(state="pending")
        return await self.status(signed.signature, signed.last_valid_block_height)

    async def _status_at(self, client: Any, signature: str, last_valid_block_height: int) -> TransactionStatus:
        from solana.rpc.commitment import Finalized

        _, landed = await self._landing(client, signature)
        if landed is not None:
            return landed
        epoch = (await self._ask("get_epoch_info", Finalized, client=client)).value
        if epoch.block_height <= last_valid_block_height:
            return TransactionStatus(state="pending")
        # Look again: it may have landed between the two answers. And behind one URL there can be many
        # machines: an answer from one that has not seen the finalized slot itself proves nothing.
        slot, landed = await self._landing(client, signature)
        if landed is not None:
            return landed
        return TransactionStatus(state="dead" if slot >= epoch.absolute_slot else "pending")

    async def _landing(self, client: Any, signature: str) -> tuple[int, TransactionStatus | None]:
        """(slot of the machine that answered, the landing it knows of)."""
        wanted = solders().Signature.from_string(signature)
        answer = await self._ask("get_signature_statuses", [wanted], search_transaction_history=True, client=client)
        slot, value = int(answer.context.slot), answer.value[0]
        if value is None:
            return slot, None
        return slot, _landed(value)

    async def finish(self, signed: SignedTransaction, *, finalized: bool = True) -> TransactionStatus:
        """Send, and resend the same bytes, until it is landed (and finalized) or dead.

        For set-up and tools. Central does the same in steps it can be killed between.
        """
        await self.send(signed.transaction)
        wait_s, polls = 0.005, 0
        while True:
            status = await self.status(signed.signature, signed.last_valid_block_height)
            if status.state == "dead" or (status.state == "landed" and (status.finalized or not finalized)):
                return status
            await asyncio.sleep(wait_s)
            wait_s, polls = min(wait_s * 1.5, 0.5), polls + 1
            if status.state == "pending" and polls % 8 == 0:
                await self.send(signed.transaction, preflight=False)

    async def succeed(self, signed: SignedTransaction, what: str) -> None:
        """finish(), which must have worked. Raises SettlementError expired or transaction_failed."""
        status = await self.finish(signed)
        if status.state == "dead":
            raise SettlementError("expired", f"{what}: {signed.signature} was never taken into a block; try again")
        if status.err is not None:
            raise SettlementError("transaction_failed", f"{what}: {signed.signature} landed and failed: {status.err}")

    # Local networks: money for tests.

    async def airdrop(self, address: str, lamports: int) -> str:
        """SOL for fees, where the chain gives it away. Returns when it has arrived.

        Raises SettlementError: refused, or expired when it has not arrived in time. Then it may come later, and who
        asks again may get it twice: it is for one's own wallet, and what is given to others is sent from there.
        """
        signature = str((await self._ask("request_airdrop", public_key(address), lamports)).value)
        _, last_valid = await self.latest_blockhash()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AIRDROP_WITHIN_S):
                while (status := await self.status(signature, last_valid)).state == "pending":
                    await asyncio.sleep(0.1)
                if status.state == "landed":
                    return signature
        raise SettlementError("expired", f"airdrop: {signature} was not taken into a block; ask again")

    async def fill(self, address: str) -> None:
        """SOL for an own wallet that holds little, where the chain gives it away. Raises SettlementError."""
        if await self.sol_balance(address) < LOW_LAMPORTS:
            await self.airdrop(address, FILL_LAMPORTS)

    async def create_mint(self, authority: Wallet | Signer) -> str:
        """The address of this authority's token, made when it is not there yet. Local networks only.

        Raises SettlementError not_local, insufficient_funds and, for a foreign account there, bad_terms.
        """
        await self._require_local("create a mint")
        mint = mint_address(authority.address)
        if not await self._is_our_mint(mint, authority.address):
            blockhash, last_valid = await self.latest_blockhash()
            shape = MakeMint(blockhash=blockhash, last_valid_block_height=last_valid)
            signed = await signed_by_key(authority, shape)
            try:
                await self.succeed(signed, "create mint")
            except SettlementError:
                if not await self._is_our_mint(mint, authority.address):  # else another process was first
                    raise
        return mint

    async def _is_our_mint(self, mint: str, authority: str) -> bool:
        lib = solders()
        [account] = await self._accounts([mint])
        if account is None or account.owner == lib.system.ID:  # nothing, or lamports from a stranger
            return False
        state = lib.Mint.from_bytes(bytes(account.data)) if account.owner == lib.TOKEN else None
        if state is None or str(state.mint_authority) != authority or state.decimals != DECIMALS:
            raise SettlementError(
                "bad_terms",
                f"mint {mint}: expected {DECIMALS} decimals and authority {authority}, got {state}",
            )
        return True

    async def faucet_transaction(
        self,
        authority: Wallet | Signer,
        mint: str,
        to_address: str,
        amount_base_units: int,
        mint_id: str,
        lamports: int = 0,
    ) -> SignedTransaction:
        """New tokens for an address, and lamports of the authority, signed and not sent; mint_id: of no other payment.

        Raises SettlementError not_local, bad_terms, and as airdrop() when the authority has no lamports and gets none.
        """
        await self._require_local("make tokens")
        await self.fill(authority.address)
        blockhash, last_valid = await self.latest_blockhash()
        shape = Faucet(
            mint=mint,
            to=to_address,
            amount_base_units=amount_base_units,
            blockhash=blockhash,
            last_valid_block_height=last_valid,
            mint_id=mint_id,
            lamports=lamports,
        )
        return await signed_by_key(authority, shape)

    async def faucet(self, authority: Wallet, mint: str, to_address: str, amount_base_units: int) -> str:
        """New tokens for an address; returns the signature when they are there for ever."""
        mint_id = secrets.token_hex(8)
        signed = await self.faucet_transaction(authority, mint, to_address, amount_base_units, mint_id)
        await self.succeed(signed, "faucet")
        return signed.signature

    async def _require_local(self, what: str) -> None:
        if not await self.is_local():
            raise SettlementError(
                "not_local",
                f"expected a local chain to {what}, got {self.url}; buy or earn tokens on a public one",
            )

    # Talking.

    async def _accounts(self, addresses: list[str], commitment: Any = None) -> list[Account | None]:
        answer = await self._ask("get_multiple_accounts", [public_key(each) for each in addresses], commitment)
        if len(answer.value) != len(addresses):
            raise SettlementError(
                "chain_refused",
                f"get_multiple_accounts: expected {len(addresses)} accounts from {self.url}, got {len(answer.value)}",
            )
        return list(answer.value)

    async def _ask(self, method: str, *arguments: Any, client: Any = None, **options: Any) -> Any:
        """One RPC call, retried on a busy or unreachable endpoint: the library itself resends once."""
        errors = _rpc_errors()
        call = getattr(client or self._clients[0], method)
        for attempt in range(self.attempts):
            try:
                return await call(*arguments, **options)
            except errors.refused as error:
                if not _is_node_behind(error):
                    raise _refusal(method, error) from None
                cause: BaseException | None = error
            except errors.unanswered as error:
                cause = error.__cause__ or error
                if not _is_temporary(cause):
                    break
            except errors.unreadable as error:
                raise SettlementError(
                    "chain_refused",
                    f"{method}: expected a Solana RPC answer from {self.url}, got: {error!s:.200}",
                ) from None
            if attempt + 1 < self.attempts:
                await asyncio.sleep(_pause_s(attempt, cause))
        tries = "1 try" if attempt == 0 else f"{attempt + 1} tries"
        raise SettlementError(
            "chain_unreachable",
            f"{method}: no answer from {self.url} after {tries} "
            f"({type(cause).__name__}: {cause!s:.200}); {_advice(cause)}",
        )


def _escrow_accounts(terms: EscrowTerms) -> list[str]:
    state, vault, _ = escrow_account(terms.client, terms.job_id, terms.program)
    return [str(state), str(vault)]


def _calls_of(landed: Any) -> tuple[list[str], list[tuple[int, bytes, bytes]]]:
    """(addresses, calls) of a transaction and its meta, as is_refund takes them."""
    message, meta = landed.transaction.message, landed.meta
    keys = [str(key) for key in message.account_keys]
    if (looked_up := meta.loaded_addresses) is not None:
        keys += [str(key) for key in (*looked_up.writable, *looked_up.readonly)]
    calls = [(each.program_id_index, bytes(each.data), bytes(each.accounts)) for each in message.instructions]
    for inner in meta.inner_instructions or ():
        calls += [(e.program_id_index, base58_decode(e.data), bytes(e.accounts)) for e in inner.instructions]
    return keys, calls


def _connect(urls: Sequence[str], timeout_s: float) -> list[Any]:
    try:
        from solana.rpc.async_api import AsyncClient
        from solana.rpc.commitment import Confirmed
    except ImportError as error:
        raise MissingExtra(f"payments need the package solana ({error}); pip install solana") from None

    def connected(url: str) -> Any:
        client: Any = AsyncClient(url, commitment=Confirmed, timeout=timeout_s, http2=url.startswith("https:"))
        if not _by_proxy(url):
            client._provider = _Provider(url, timeout_s)
        return client

    return [connected(url) for url in urls]


def _by_proxy(url: str) -> bool:
    """Whether the environment names a proxy for this address; then the package's own way goes there.

    None of them reaches this machine's own chain.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if tls.is_loopback(host) or urllib.request.proxy_bypass(host):
        return False
    return bool({parts.scheme, "all"} & urllib.request.getproxies().keys())


class _Provider:
    """How the package's client asks: it makes the questions and reads the answers, what carries them is ours.

    The package's own carrier is a general HTTP client, which took more of central's time than all else while deposits
    were paid in.
    """

    def __init__(self, url: str, timeout_s: float):
        self._poster = Poster(url, timeout_s)

    async def make_request(self, body: Any, parser: Any) -> Any:
        """The answer. Raises RPCException for a refusal, ValueError for what is none, and what Poster.post() raises."""
        from solana.rpc.core import RPCException

        found = parser.from_json((await self._poster.post(body.to_json().encode())).decode())
        if isinstance(found, parser):
            return found
        raise RPCException(found)

    async def close(self) -> None:
        await self._poster.close()


def _now_s() -> float:
    return asyncio.get_running_loop().time()


class _RpcErrors(NamedTuple):
    """What the packages raise, by what it means."""

    refused: type[Exception]
    unanswered: tuple[type[Exception], ...]
    unreadable: tuple[type[Exception], ...]


@functools.cache
def _sending(preflight: bool) -> TxOpts:
    """How a transaction is handed over; to make it costs as much as some of them do."""
    from solana.rpc.commitment import Confirmed
    from solana.rpc.models import TxOpts

    return TxOpts(skip_preflight=not preflight, preflight_commitment=Confirmed, max_retries=0)


@functools.cache
def _rpc_errors() -> _RpcErrors:
    from solana.exceptions import SolanaRpcException
    from solana.rpc.core import RPCException
    from solders.errors import SerdeJSONError

    unanswered = (SolanaRpcException, BadStatus, OSError)
    return _RpcErrors(RPCException, unanswered, (SerdeJSONError, ValueError))


class _AlreadyLanded(Exception):
    """Preflight's way of saying that the transaction is on the chain."""


def _landed(value: Any) -> TransactionStatus:
    found = msgspec.json.decode(value.to_json())
    return TransactionStatus(
        state="landed",
        slot=found["slot"],
        err=_json_error(found["err"]),
        finalized=found["confirmationStatus"] == "finalized",
    )


def _json_error(error: Any) -> str | None:
    return None if error is None else msgspec.json.encode(error).decode()


CHAIN_ERRORS: dict[str, ErrorCode] = {
    "BlockhashNotFound": "expired",
    "InsufficientFundsForFee": "insufficient_funds",
    "InsufficientFundsForRent": "insufficient_funds",
    "AccountNotFound": "insufficient_funds",
}
CUSTOM_ERRORS: dict[int, ErrorCode] = {  # the same numbers in the system and the token program
    0: "escrow_exists",  # system: account already in use
    1: "insufficient_funds",
}


def error_code(error: Any) -> ErrorCode:
    """Our word for a transaction error given as RPC JSON, e.g. {"InstructionError": [4, {"Custom": 1}]}."""
    name = error if isinstance(error, str) else next(iter(error), "")
    if name == "InstructionError" and isinstance(error[name][1], dict):
        return CUSTOM_ERRORS.get(error[name][1].get("Custom"), "transaction_failed")
    return CHAIN_ERRORS.get(name, "transaction_failed")


def _refusal(method: str, error: Exception) -> Exception:
    """The typed error for an RPC error answer."""
    said: Any = error.args[0] if error.args else error
    text = str(getattr(said, "message", said))
    if type(said).__name__ != "SendTransactionPreflightFailureMessage":
        return SettlementError("chain_refused", f"{method}: the chain refused: {text:.300}")
    reason = msgspec.json.decode(said.data.to_json())["err"]
    if reason == "AlreadyProcessed":
        return _AlreadyLanded()
    return SettlementError(
        error_code(reason), f"{method}: the chain would refuse it: {_json_error(reason)} ({text:.200})"
    )


def _is_node_behind(error: Exception) -> bool:
    return type(error.args[0] if error.args else None).__name__ == "NodeUnhealthyMessage"


def _is_temporary(cause: BaseException) -> bool:
    response = getattr(cause, "response", None)
    return response is None or response.status_code in RETRY_STATUSES


def _advice(cause: BaseException | None) -> str:
    response = getattr(cause, "response", None)
    if response is None or response.status_code in RETRY_STATUSES:
        return "is the chain running?"
    where = response.headers.get("location", "")
    return "is this its address, and may you ask there?" + (f" It names another: {where:.200}" if where else "")


def _pause_s(attempt: int, cause: BaseException | None) -> float:
    """Seconds before the next try: what the endpoint asks for, up to 5 s, or doubling with jitter."""
    response = getattr(cause, "response", None)
    asked = "" if response is None else response.headers.get("retry-after", "")
    if asked.isascii() and asked.isdigit():
        return min(float(asked), 5.0)
    return min(0.05 * 2**attempt, 2.0) * random.uniform(0.5, 1.0)

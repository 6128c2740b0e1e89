"""The embedded chain's state: LiteSVM with a cluster's time around it, kept in SQLite.

The virtual machine executes real Solana programs but has no network around it. This file adds what a
cluster adds: slots and blocks, the 150-blockhash window, one landing per message, commitment levels,
a clock, and state that survives `kill -9`. cyxcentral/localchain.py puts it behind JSON-RPC.

* Time. A slot is 20 ms, so a transaction is final after 80 ms. A block is 20 slots: blockhashes live for
  150 blocks = 60 s, as long as on a real cluster. Both come from the clock; no thread ticks.
* Durability. A transaction, its status and every account it wrote are one SQLite commit
  (WAL, synchronous=FULL), made before the answer leaves. Who serves many gathers what they write (`gathers`) and
  calls store() before any of them is answered: the disk is synced once for all of them.
* The escrow program is deployed at the genesis.
* Left out: forks (account reads are of the newest state whatever commitment is asked), durable nonces,
  address lookup tables, priority fees.
"""

import hashlib
import os
import sqlite3
import time
from pathlib import Path
from typing import Any, Protocol

import msgspec
from msgspec import Struct
from solders.account import Account
from solders.hash import Hash
from solders.litesvm import LiteSVM
from solders.message import MessageV0, VersionedMessage
from solders.pubkey import Pubkey
from solders.system_program import ID as SYSTEM_PROGRAM
from solders.transaction import SanitizeError, VersionedTransaction
from solders.transaction_metadata import FailedTransactionMetadata, TransactionMetadata

from cyxcentral.curve import leave_mmx
from cyxcentral.program import program
from cyxcore.errors import CyxError
from cyxnet.escrow import LAMPORTS_PER_SIGNATURE, LOCAL_PROGRAM, MEMO_PROGRAM
from cyxnet.wallet import base58_encode

TRANSACTION_LIMIT_BYTES = 1232  # one IPv6 packet
SLOT_RESERVE_MS = 2_000
UPGRADEABLE_LOADER = Pubkey.from_string("BPFLoaderUpgradeab1e11111111111111111111111")

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS account (address BLOB PRIMARY KEY, executable INTEGER NOT NULL,
    state BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS landed (n INTEGER PRIMARY KEY, signature BLOB UNIQUE NOT NULL,
    message_hash BLOB UNIQUE NOT NULL, slot INTEGER NOT NULL, unix_s INTEGER NOT NULL, raw BLOB NOT NULL,
    meta BLOB NOT NULL, memo TEXT);
CREATE TABLE IF NOT EXISTS mention (address BLOB NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (address, n))
    WITHOUT ROWID;
"""


class ChainError(CyxError):
    """The embedded chain cannot run: its folder or port is taken, or its storage failed."""

    code = "chain_unavailable"


class RpcError(Exception):
    """A JSON-RPC error answer, with the codes of a Solana node."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.body = {"code": code, "message": message} | ({} if data is None else {"data": data})


class ChainOptions(Struct, frozen=True, kw_only=True):
    """How fast the chain's time runs. The defaults make a local job settle in about 0.1 s."""

    slot_ms: int = 20
    slots_per_block: int = 20
    window_blocks: int = 150
    confirmed_slots: int = 1
    finalized_slots: int = 4


class Clock(Protocol):
    """Two clocks: wall time for dates and restarts, elapsed time that never goes back."""

    def wall_ms(self) -> int: ...

    def elapsed_ms(self) -> int: ...


class SystemClock:
    """The machine's clocks."""

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def elapsed_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000


def _open_database(path: Path) -> sqlite3.Connection:
    """Open and lock the chain's database. The lock is SQLite's own, so it dies with the process."""
    database = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(path, timeout=0.0, isolation_level=None, check_same_thread=False)
        for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL"):
            database.execute(f"PRAGMA {pragma}")
        database.executescript(SCHEMA)
        database.execute("BEGIN IMMEDIATE")  # takes the write lock, which EXCLUSIVE mode then keeps
        database.execute("COMMIT")
    except (sqlite3.Error, OSError) as error:
        if database:
            database.close()
        if path.parent.exists() and not path.parent.is_dir():
            raise ChainError(f"chain: expected a folder, {path.parent} is a file; give another --dir") from None
        if "locked" in str(error):
            raise ChainError(
                f"chain: expected a folder of its own, but another process runs on {path.parent}; "
                "stop that one or give another --dir"
            ) from None
        raise ChainError(
            f"chain: expected a readable database at {path}, got: {error}; "
            "check the folder's permissions and disk, or give another --dir"
        ) from None
    return database


def unstored(folder: Path, why: object) -> ChainError:
    return ChainError(f"chain: {folder} cannot be written ({why}); free some space on its disk and start it again")


class Chain:
    """The state machine: one call at a time, no threads, no sockets.

    path: the SQLite file; its folder is made. Raises ChainError when another process holds it, or the disk is full.
    """

    def __init__(self, path: Path, options: ChainOptions | None = None, clock: Clock | None = None) -> None:
        self.options = options or ChainOptions()
        self.clock = clock or SystemClock()
        self.storage_failure: str | None = None
        self.gathers = False  # whether a commit is left to store()
        self.unstored = False  # whether something was written that store() has to commit
        self.database = _open_database(path)
        # Recency and one-landing-per-message are ours: LiteSVM knows a single blockhash and forgets
        # signatures after 32 transactions.
        self.svm = LiteSVM().with_transaction_history(0).with_blockhash_check(False)
        try:
            self._start_time()
            # Executable accounts last: the machine loads a program from its data account.
            for address, state in self.database.execute("SELECT address, state FROM account ORDER BY executable"):
                self.svm.set_account(Pubkey.from_bytes(address), Account.from_bytes(state))
            self._have_program()
        except sqlite3.Error as error:
            self.database.close()
            raise unstored(path.parent, error) from None

    def _have_program(self) -> None:
        """The escrow program is there from the beginning; one of an earlier version of ours stays beside it."""
        address = Pubkey.from_string(LOCAL_PROGRAM)
        if self.svm.get_account(address) is None:
            self.svm.add_program(address, program())
            code, _ = Pubkey.find_program_address([bytes(address)], UPGRADEABLE_LOADER)
            with self._commit():
                self.save_accounts([address, code])

    def store(self) -> None:
        """Commit what was gathered; before, nothing of it may be answered. Raises sqlite3.Error: the chain stops.

        Also when it has stopped already: what failed took along whatever was gathered with it.
        """
        if self.storage_failure is not None:
            raise sqlite3.OperationalError(self.storage_failure)
        if self.unstored:
            self.unstored = False
            self._commit().run("COMMIT")

    def close(self) -> None:
        """Release the folder."""
        if self.storage_failure is None:
            self.store()
        self.database.close()

    # Time: slots, blocks, blockhashes.

    def _start_time(self) -> None:
        meta = dict(self.database.execute("SELECT name, value FROM meta"))
        if "genesis" not in meta:
            meta = {"genesis": os.urandom(32), "genesis_wall_ms": self.clock.wall_ms(), "slot_limit": 0}
            with self._commit():
                self.database.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        self.genesis: bytes = meta["genesis"]
        since_genesis_ms = max(0, self.clock.wall_ms() - meta["genesis_wall_ms"])
        self._slot_limit: int = meta["slot_limit"]
        # Slots must never run again, even if the wall clock went back: a transaction that was proven dead
        # must stay dead. So slots are reserved on disk ahead of use and a restart begins after them.
        # The first slot is late enough for the finalized view to lie before it.
        wall_slot = since_genesis_ms // self.options.slot_ms + self.options.finalized_slots + 1
        self._first_slot = max(wall_slot, self._slot_limit)
        self._first_elapsed_ms = self.clock.elapsed_ms()
        self._heights: dict[str, int] = {}
        self.slot = 0
        self.advance()

    def advance(self) -> None:
        """Bring slot, blockhash window and reservation up to the clock."""
        slot = self._first_slot + (self.clock.elapsed_ms() - self._first_elapsed_ms) // self.options.slot_ms
        if slot == self.slot and self._heights:
            return
        if slot >= self._slot_limit:
            self._slot_limit = slot + SLOT_RESERVE_MS // self.options.slot_ms + 1
            with self._commit():
                self.database.execute("UPDATE meta SET value = ? WHERE name = 'slot_limit'", (self._slot_limit,))
        self.slot = slot
        height = self.height("processed")
        oldest = max(0, height - self.options.window_blocks)
        known = max(self._heights.values(), default=-1)
        self._heights = {text: at for text, at in self._heights.items() if at >= oldest}
        self._heights |= {self.blockhash(at): at for at in range(max(oldest, known + 1), height + 1)}

    def blockhash(self, height: int) -> str:
        digest = hashlib.sha256(self.genesis + height.to_bytes(8, "little")).digest()
        return str(Hash.from_bytes(digest))

    def slot_at(self, commitment: str) -> int:
        lag = {
            "processed": 0,
            "confirmed": self.options.confirmed_slots,
            "finalized": self.options.finalized_slots,
        }[commitment]
        return max(0, self.slot - lag)

    def height(self, commitment: str) -> int:
        return self.slot_at(commitment) // self.options.slots_per_block

    def is_recent(self, blockhash: str) -> bool:
        return blockhash in self._heights

    def set_machine_clock(self) -> int:
        """Show the virtual machine the current slot and time. Returns seconds since 1970."""
        clock = self.svm.get_clock()
        clock.slot = self.slot
        clock.unix_timestamp = self.clock.wall_ms() // 1_000
        self.svm.set_clock(clock)
        return clock.unix_timestamp

    # State.

    def _commit(self) -> "_Commit":
        return _Commit(self)

    def save_accounts(self, addresses: list[Pubkey]) -> None:
        """Write the machine's state of these accounts; to be called inside one commit."""
        for address in addresses:
            account = self.svm.get_account(address)
            if account is None or account.lamports == 0:
                self.database.execute("DELETE FROM account WHERE address = ?", (bytes(address),))
            else:
                row = (bytes(address), account.executable, bytes(account))
                self.database.execute("INSERT OR REPLACE INTO account VALUES (?, ?, ?)", row)

    def record(
        self, signature: bytes, message_hash: bytes, raw: bytes, meta: dict[str, Any],
        mentions: list[Pubkey], memo: str | None = None,
    ) -> None:  # fmt: skip
        """Write that something landed in the current slot; to be called inside one commit."""
        row = (signature, message_hash, self.slot, self.clock.wall_ms() // 1_000, raw)
        cursor = self.database.execute(
            "INSERT INTO landed (signature, message_hash, slot, unix_s, raw, meta, memo) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*row, msgspec.json.encode(meta), memo),
        )
        mentioned = {(bytes(address), cursor.lastrowid) for address in mentions}
        self.database.executemany("INSERT INTO mention VALUES (?, ?)", mentioned)

    def airdrop(self, address: Pubkey, lamports: int) -> str:
        """Make SOL out of nothing, as test clusters do. Returns a signature to ask the status of."""
        account = self.svm.get_account(address) or Account(0, b"", SYSTEM_PROGRAM, False, 0)
        total_lamports = account.lamports + lamports
        if total_lamports >= 2**63:
            raise invalid(f"the balance would be {total_lamports} lamports, more than an account can hold")
        signature = hashlib.sha512(b"airdrop" + self.genesis + os.urandom(16)).digest()
        changed = Account(total_lamports, account.data, account.owner, account.executable, account.rent_epoch)
        meta = {"err": None, "status": {"Ok": None}, "fee": 0}
        with self._commit():
            self.svm.set_account(address, changed)
            self.record(signature, signature[:32], b"", meta, [address])
            self.save_accounts([address])
        return base58_encode(signature)

    def send(self, raw: bytes, *, skip_preflight: bool) -> str:
        """Land a transaction, or do what a node does with one that cannot land. Returns the signature.

        Raises RpcError -32003 for a bad signature, -32002 when preflight fails. Without preflight a
        transaction that cannot land is accepted and vanishes, as on a cluster.
        """
        transaction = parse_transaction(raw)
        signature = str(transaction.signatures[0])
        if not all(transaction.verify_with_results()):
            raise RpcError(-32003, "Transaction signature verification failure")
        obstacle = self.obstacle(transaction)
        if obstacle is None and not skip_preflight:
            self.set_machine_clock()
            simulated = self.svm.simulate_transaction(transaction)
            leave_mmx()
            if isinstance(simulated, FailedTransactionMetadata):
                raise preflight_failure(error_of(simulated), simulated.meta())
        if obstacle is not None and not skip_preflight:
            raise preflight_failure(obstacle, None)
        if obstacle is None:
            self._land(transaction)
        return signature

    def obstacle(self, transaction: VersionedTransaction) -> str | None:
        """Why this transaction cannot land at all, in the words of a real node, or None."""
        if not self.is_recent(str(transaction.message.recent_blockhash)):
            return "BlockhashNotFound"
        # By message, as on a cluster: a second valid signature of the same message is the same payment.
        row = self.database.execute(
            "SELECT 1 FROM landed WHERE message_hash = ?", (bytes(transaction.message.hash()),)
        ).fetchone()
        return "AlreadyProcessed" if row else None

    def _land(self, transaction: VersionedTransaction) -> None:
        message = transaction.message
        keys = list(message.account_keys)
        before = [self.svm.get_balance(key) or 0 for key in keys]
        self.set_machine_clock()
        result = self.svm.send_transaction(transaction)
        leave_mmx()
        after = [self.svm.get_balance(key) or 0 for key in keys]
        failed = isinstance(result, FailedTransactionMetadata)
        # A cluster takes the fee of a transaction that fails while running and drops one that cannot
        # pay or load; the fee tells the two apart.
        if failed and after[0] == before[0]:
            return
        details = result.meta() if isinstance(result, FailedTransactionMetadata) else result
        error = error_of(result) if isinstance(result, FailedTransactionMetadata) else None
        meta = {
            "err": error,
            "status": {"Ok": None} if error is None else {"Err": error},
            "fee": LAMPORTS_PER_SIGNATURE * message.header.num_required_signatures,
            "preBalances": before,
            "postBalances": after,
            "logMessages": details.logs(),
            "computeUnitsConsumed": details.compute_units_consumed(),
        }
        signature, message_hash = bytes(transaction.signatures[0]), bytes(message.hash())
        with self._commit():
            self.record(signature, message_hash, bytes(transaction), meta, keys, memo_of(transaction))
            self.save_accounts([key for at, key in enumerate(keys) if is_writable(message, at)])


class _Commit:
    """One SQLite transaction, or a part of the one that is gathered.

    If it cannot be stored, the machine is ahead of the disk: the chain stops.
    """

    def __init__(self, chain: Chain) -> None:
        self.chain = chain

    def __enter__(self) -> None:
        if not self.chain.unstored:
            self.run("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self.chain.unstored = self.chain.gathers
            if not self.chain.gathers:
                self.run("COMMIT")
            return
        self.chain.storage_failure = f"{kind.__name__}: {error}"
        self.chain.unstored = False
        if self.chain.database.in_transaction:  # which SQLite may have ended by itself, where there is no room
            self.run("ROLLBACK")

    def run(self, statement: str) -> None:
        try:
            self.chain.database.execute(statement)
        except sqlite3.Error as error:
            self.chain.storage_failure = str(error)
            raise


def error_of(result: FailedTransactionMetadata) -> Any:
    """The transaction error as JSON-RPC spells it, e.g. {"InstructionError": [0, {"Custom": 1}]}."""
    return msgspec.json.decode(result.to_json())["err"]


def is_writable(message: VersionedMessage, at: int) -> bool:
    """Whether the header lets the account at this position change."""
    header, count = message.header, len(message.account_keys)
    if at < header.num_required_signatures:
        return at < header.num_required_signatures - header.num_readonly_signed_accounts
    return at < count - header.num_readonly_unsigned_accounts


def memo_of(transaction: VersionedTransaction) -> str | None:
    """The memos of a transaction in the form getSignaturesForAddress reports: "[bytes] text; ..."."""
    keys = transaction.message.account_keys
    memos = [
        f"[{len(each.data)}] {bytes(each.data).decode('utf-8', 'replace')}"
        for each in transaction.message.instructions
        if str(keys[each.program_id_index]) == MEMO_PROGRAM
    ]
    return "; ".join(memos) or None


def parse_transaction(raw: bytes) -> VersionedTransaction:
    """Decode and check the shape of a transaction. Raises RpcError -32602."""
    if len(raw) > TRANSACTION_LIMIT_BYTES:
        raise invalid(f"transaction too large: {len(raw)} bytes (max: {TRANSACTION_LIMIT_BYTES} bytes)")
    try:
        transaction = VersionedTransaction.from_bytes(raw)
        transaction.sanitize()
    except (ValueError, SanitizeError) as error:
        raise invalid(f"failed to deserialize the transaction: {error}") from None
    message = transaction.message
    if isinstance(message, MessageV0) and message.address_table_lookups:
        raise invalid("this local chain resolves no address lookup tables; name every account in the message")
    return transaction


def invalid(message: str) -> RpcError:
    return RpcError(-32602, f"Invalid params: {message}")


def preflight_failure(error: Any, details: TransactionMetadata | None) -> RpcError:
    words = {"BlockhashNotFound": "Blockhash not found",
             "AlreadyProcessed": "This transaction has already been processed"}  # fmt: skip
    text = words.get(error, msgspec.json.encode(error).decode()) if isinstance(error, str) else str(error)
    return RpcError(-32002, f"Transaction simulation failed: {text}", simulation(error, details))


def simulation(error: Any, details: TransactionMetadata | None) -> dict[str, Any]:
    return {
        "err": error,
        "logs": [] if details is None else details.logs(),
        "accounts": None,
        "unitsConsumed": 0 if details is None else details.compute_units_consumed(),
        "returnData": None,
    }

"""A chain in virtual time: blocks, accounts, real transactions, and an RPC endpoint with several machines behind it.

What runs on it is what cyxnet.escrow builds and signs; the few instructions those need are carried out here, all of a
transaction or none. Production's Settlement talks to it through RpcClient in place of the solana package's client.
"""

import hashlib
import struct
from bisect import bisect_right
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from solana.exceptions import SolanaRpcException

from cyxnet import instructions
from cyxnet.escrow import DECIMALS, LOCAL_PROGRAM, STATE_BYTES, associated_address, mint_address, public_key, solders
from cyxnet.messages import SignedTransaction
from cyxnet.solana import Settlement
from cyxnet.wallet import base58_encode
from tests.simulation.faults import FIRST_WALL_MS, Faults
from tests.simulation.loop import ProcessLoop, Scheduler, nap
from tests.simulation.wire import Process

BLOCK_S = 0.25
QUICKER = 4  # are the blocks once the chain's faults are over: what is left to happen is only waited for
FINAL_BLOCKS = 8
VALID_BLOCKS = 40  # a blockhash is good for so long: ten seconds, where a real chain's is good for a minute
FIRST_SLOT = 5_000  # slots and block heights are different numbers
RICH_LAMPORTS = 10**12


class TokenAccount(Struct, frozen=True):
    owner: str
    mint: str
    amount: int


class EscrowState(Struct, frozen=True):
    """An escrow that is open: what its account holds, and the accounts that its vault can be emptied into."""

    data: bytes
    vault: str
    client_token: str
    platform_token: str
    nodes: tuple[str, ...] = ()
    owner: str = ""
    amount: int = 0  # the money is in the vault


class Landed(Struct):
    """A transaction in a block. fork_until_s: the block is on a fork that is given up then."""

    height: int
    error: Any
    fork_until_s: float | None = None
    message: Any = None


Accounts = dict[str, TokenAccount | EscrowState]


class Chain:
    """The truth of the chain: what landed where, and every account after every block."""

    def __init__(self, scheduler: Scheduler, faults: Faults, authority: str):
        self.scheduler = scheduler
        self.faults = faults
        self.loop = ProcessLoop(scheduler, "chain")
        self.mint, self.authority = mint_address(authority), authority
        self.wallets = {authority}
        self.landed: dict[str, Landed] = {}
        self.received: Callable[[str], None] = lambda signature: None  # told when bytes reach the chain
        self.executed: Callable[[str, Accounts, Accounts], None] = lambda signature, before, after: None
        self.refunds: dict[str, str] = {}  # signatures of what somebody sent after a deadline -> the escrow
        self._heights: list[int] = [0]
        self._states: list[Accounts] = [{}]

    def give(self, owner: str, amount: int) -> None:
        self.wallets.add(owner)
        account = associated_address(owner, self.mint)
        self._states[-1][account] = TokenAccount(owner, self.mint, amount)

    @property
    def height(self) -> int:
        after_s = max(0.0, self.scheduler.now_s - self.faults.chain_until_s)
        return int((self.scheduler.now_s + (QUICKER - 1) * after_s) / BLOCK_S)

    @property
    def accounts(self) -> Accounts:
        return self._states[-1]

    def accounts_at(self, height: int) -> Accounts:
        return self._states[max(0, bisect_right(self._heights, height) - 1)]

    def is_final(self, signature: str) -> bool:
        found = self.landed.get(signature)
        return (
            found is not None
            and found.fork_until_s is None
            and found.error is None
            and self.height - found.height >= FINAL_BLOCKS
        )

    def can_land(self, signature: str, last_valid_block_height: int) -> bool:
        """Whether these bytes are on the chain or may still get there."""
        return signature in self.landed or self.height <= last_valid_block_height

    def is_over(self, signed: SignedTransaction) -> bool:
        """Whether these bytes have failed, or can never get onto the chain."""
        found = self.landed.get(signed.signature)
        if found is not None:
            return found.error is not None
        return self.height > signed.last_valid_block_height

    def blockhash(self, height: int) -> Any:
        from solders.hash import Hash

        return Hash(height.to_bytes(8, "big") * 4)

    def send(self, transaction: bytes) -> str:
        """The bytes reached a machine. They land soon, late, or never."""
        parsed = solders().VersionedTransaction.from_bytes(transaction)
        signature = str(parsed.signatures[0])
        self.received(signature)
        if self.faults.hit("dropped"):
            return signature
        delay_s = (
            self.scheduler.dice.expovariate(1 / 8.0)
            if self.faults.hit("late")
            else self.scheduler.dice.uniform(0.1, 0.8)
        )
        self.scheduler.at(self.loop, self.scheduler.now_s + delay_s, self._land, signature, parsed.message)
        return signature

    def _land(self, signature: str, message: Any) -> None:
        height = self.height
        named = int.from_bytes(bytes(message.recent_blockhash)[:8], "big")
        if signature in self.landed or height > named + VALID_BLOCKS:
            return
        if self.faults.chain_active and self.scheduler.dice.random() < 0.05:  # a block that others do not build on
            self.faults.count("fork")
            until_s = self.scheduler.now_s + FINAL_BLOCKS * BLOCK_S * 0.7
            self.landed[signature] = Landed(height, None, until_s)
            self.scheduler.at(self.loop, until_s, self.landed.pop, signature)
            return
        before = self._states[-1]
        after = dict(before)
        error = None
        try:
            Interpreter(after).run(message)
        except ExecutionError as failure:
            after, error = before, failure.args[0]
        self.landed[signature] = Landed(height, error, message=message)
        self._heights.append(height)
        self._states.append(after)
        self.executed(signature, before, after)
        for escrow in sorted(after.keys() - before.keys()):
            after_s = self.faults.refund_after_s() if isinstance(after[escrow], EscrowState) else None
            if after_s is not None:
                self.scheduler.at(self.loop, self.scheduler.now_s + after_s, self._refund, escrow)
            elif self.faults.weeks_pass_at_s is not None and isinstance(after[escrow], EscrowState):
                self._await_deadline(escrow)

    def _await_deadline(self, escrow: str) -> None:
        """Who wants its money back tries every second whether the deadline is past."""
        state = self.accounts.get(escrow)
        if not isinstance(state, EscrowState):
            return
        now_ms = FIRST_WALL_MS + self.faults.date_ms(self.scheduler.now_s) - self.faults.chain_late_ms
        if now_ms >= 1000 * struct.unpack_from("<q", state.data, 16)[0]:
            self._refund(escrow)
        else:
            self.scheduler.at(self.loop, self.scheduler.now_s + 1.0, self._await_deadline, escrow)

    def _refund(self, escrow: str) -> None:
        """A stranger's refund of an escrow. Its deadline is when the dice say so: no seed lasts for a month."""
        if escrow not in self.accounts:
            return
        key = public_key(self.authority)  # who sends it does not matter
        call = instructions.instruction(public_key(LOCAL_PROGRAM), b"\x04", [(key, "s"), (public_key(escrow), "w")])
        message = instructions.compile_message(key, [call], self.blockhash(self.height))
        signature = base58_encode(hashlib.sha512(escrow.encode()).digest())
        self.refunds[signature] = escrow
        self.faults.count("refunded")
        self._land(signature, message)


class ExecutionError(Exception):
    """An instruction failed: nothing of the transaction happens but the fee."""


class Interpreter:
    """The instructions of the escrow and the associated-token program that a payment needs."""

    def __init__(self, accounts: Accounts):
        self.accounts = accounts

    def run(self, message: Any) -> None:
        lib = solders()
        keys = [str(key) for key in message.account_keys]
        programs = {LOCAL_PROGRAM: self._escrow, str(lib.ASSOCIATED): self._associated}
        for number, instruction in enumerate(message.instructions):
            program = programs.get(keys[instruction.program_id_index])
            if program is None:  # memo: words are not what is simulated
                continue
            try:
                program(bytes(instruction.data), [keys[index] for index in bytes(instruction.accounts)])
            except ExecutionError as error:
                raise ExecutionError({"InstructionError": [number, {"Custom": error.args[0]}]}) from None

    def _escrow(self, data: bytes, keys: list[str]) -> None:
        rule = {0: self._open, 1: self._assign, 2: self._settle, 4: self._refund}[data[0]]
        rule(data, keys)

    def _open(self, data: bytes, keys: list[str]) -> None:
        client, state, vault, client_token, mint, authority, assigner, platform = keys[1:9]
        fee, amount, deadline_s = struct.unpack_from("<HQq", data, 1)
        if state in self.accounts:
            raise ExecutionError(0)
        lib = solders()
        bump = lib.Pubkey.find_program_address([b"vault", bytes(public_key(state))], public_key(LOCAL_PROGRAM))[1]
        platform_token = associated_address(platform, mint)
        head = struct.pack("<BBB3xHQq", 1, bump, 0, fee, amount, deadline_s)
        said = [client, client, authority, assigner, mint, platform_token, client_token]
        bytes_ = (head + b"".join(bytes(public_key(key)) for key in said)).ljust(STATE_BYTES, b"\0")
        self.accounts[vault] = TokenAccount(vault, mint, 0)
        self.accounts[state] = EscrowState(bytes_, vault, client_token, platform_token)
        self._transfer(client_token, vault, client, amount)

    def _assign(self, data: bytes, keys: list[str]) -> None:
        state = self._state(keys[1])
        mint = str(solders().Pubkey.from_bytes(state.data[152:184]))
        nodes = tuple(associated_address(wallet, mint) for wallet in keys[2:])
        self.accounts[keys[1]] = replace(state, nodes=(*state.nodes, *nodes))

    def _settle(self, data: bytes, keys: list[str]) -> None:
        state, vault = self._state(keys[1]), keys[2]
        pays = [int.from_bytes(data[at : at + 8], "little") for at in range(1, len(data), 8)]
        fee, amount = struct.unpack_from("<HQ", state.data, 6)
        named = keys[0], keys[4], keys[5], tuple(keys[8:])
        authority = str(solders().Pubkey.from_bytes(state.data[88:120]))
        if named != (authority, state.platform_token, state.client_token, state.nodes) or len(pays) != len(state.nodes):
            raise ExecutionError(1009)
        if sum(pays) > amount:
            raise ExecutionError(1011)
        fees = [pay * fee // 10_000 for pay in pays]
        for node, pay, part in zip(state.nodes, pays, fees, strict=True):
            self._transfer(vault, node, vault, pay - part)
        self._transfer(vault, state.platform_token, vault, sum(fees))
        self._transfer(vault, state.client_token, vault, self.accounts[vault].amount)
        del self.accounts[vault], self.accounts[keys[1]]

    def _refund(self, data: bytes, keys: list[str]) -> None:
        state = self._state(keys[1])
        self._transfer(state.vault, state.client_token, state.vault, self.accounts[state.vault].amount)
        del self.accounts[state.vault], self.accounts[keys[1]]

    def _state(self, address: str) -> EscrowState:
        state = self.accounts.get(address)
        if not isinstance(state, EscrowState):
            raise ExecutionError(1008)
        return state

    def _transfer(self, source: str, target: str, owner: str, amount: int) -> None:
        if amount == 0:
            return
        from_, to = self.accounts.get(source), self.accounts.get(target)
        if not (isinstance(from_, TokenAccount) and isinstance(to, TokenAccount)) or from_.owner != owner:
            raise ExecutionError(4)
        if from_.amount < amount:
            raise ExecutionError(1)
        self.accounts[source] = replace(from_, amount=from_.amount - amount)
        to = self.accounts[target]
        self.accounts[target] = replace(to, amount=to.amount + amount)

    def _associated(self, data: bytes, keys: list[str]) -> None:
        assert data == b"\x01", "only CreateIdempotent is known"
        _, account, owner, mint = keys[:4]
        self.accounts.setdefault(account, TokenAccount(owner, mint, 0))


class RpcClient:
    """What production calls on solana's AsyncClient. Each question may be answered by another machine, which lags."""

    def __init__(self, process: Process, chain: Chain):
        self._process = process
        self._chain = chain
        self._faults = chain.faults

    async def close(self) -> None:
        pass

    async def _machine(self, method: str) -> int:
        """Ask: the block height of the machine that answers. Raises what the real client raises."""
        if self._faults.hit("crash_at_io"):
            self._process.crash("at a question to the chain")
        await nap(self._process.loop, self._faults.delay_s())
        if self._faults.hit("rpc_error"):
            error = SolanaRpcException(TimeoutError("no answer"), _machine_of, self, method)
            raise error from TimeoutError("no answer")
        lag = 0
        if self._faults.chain_active and self._faults.rpc_lag_blocks:
            lag = self._chain.scheduler.dice.randrange(self._faults.rpc_lag_blocks)
        return max(0, self._chain.height - lag)

    @staticmethod
    def _at(height: int, commitment: Any) -> int:
        """The block that a machine at `height` speaks of."""
        return max(0, height - FINAL_BLOCKS) if "finalized" in str(commitment).lower() else height

    def _answered(self) -> Awaitable[None]:
        if self._faults.hit("crash_at_io"):
            self._process.crash("at an answer of the chain")
        return nap(self._process.loop, self._faults.delay_s())

    async def get_genesis_hash(self) -> Any:
        return SimpleNamespace(value="simulated")

    async def get_balance(self, address: Any) -> Any:
        await self._machine("getBalance")
        return SimpleNamespace(value=RICH_LAMPORTS)

    async def get_latest_blockhash(self, commitment: Any = None) -> Any:
        height = await self._machine("getLatestBlockhash")
        await self._answered()
        value = SimpleNamespace(blockhash=self._chain.blockhash(height), last_valid_block_height=height + VALID_BLOCKS)
        return SimpleNamespace(value=value)

    async def get_fee_for_message(self, message: Any, commitment: Any = None) -> Any:
        height = self._at(await self._machine("getFeeForMessage"), commitment)
        named = int.from_bytes(bytes(message.recent_blockhash)[:8], "big")
        return SimpleNamespace(value=5000 if named <= height <= named + VALID_BLOCKS else None)

    async def get_multiple_accounts(self, keys: list[Any], commitment: Any = None) -> Any:
        height = await self._machine("getMultipleAccounts")
        accounts = self._chain.accounts_at(self._at(height, commitment))
        found = [self._account(str(key), accounts) for key in keys]
        await self._answered()
        return SimpleNamespace(value=found)

    def _account(self, address: str, accounts: Accounts) -> Any:
        lib = solders()
        if address == self._chain.mint:
            authority = bytes(lib.Pubkey.from_string(self._chain.authority))
            data = b"\x01\0\0\0" + authority + bytes(8) + bytes([DECIMALS, 1]) + bytes(36)
            return SimpleNamespace(owner=lib.TOKEN, data=data, lamports=1)
        token = accounts.get(address)
        if isinstance(token, EscrowState):
            return SimpleNamespace(owner=lib.Pubkey.from_string(LOCAL_PROGRAM), data=token.data, lamports=3_507_840)
        if token is not None:
            key = lib.Pubkey.from_string
            data = bytes(key(token.mint)) + bytes(key(token.owner)) + token.amount.to_bytes(8, "little")
            data += bytes(36) + b"\x01" + bytes(56)
            return SimpleNamespace(owner=lib.TOKEN, data=data, lamports=2_039_280)
        return (
            SimpleNamespace(owner=lib.system.ID, data=b"", lamports=RICH_LAMPORTS)
            if address in self._chain.wallets
            else None
        )

    async def get_signature_statuses(self, signatures: list[Any], search_transaction_history: bool = False) -> Any:
        height = await self._machine("getSignatureStatuses")
        found = [self._landing(str(signature), height) for signature in signatures]
        await self._answered()
        return SimpleNamespace(value=found, context=SimpleNamespace(slot=height + FIRST_SLOT))

    def _landing(self, signature: str, height: int) -> Any:
        """What a machine at `height` knows of a transaction."""
        found = self._chain.landed.get(signature)
        if found is None or found.height > height:
            return None
        depth = height - found.height
        final = depth >= FINAL_BLOCKS and found.fork_until_s is None
        status = "finalized" if final else "confirmed" if depth else "processed"
        said = {"slot": found.height + FIRST_SLOT, "err": found.error, "confirmationStatus": status}
        return SimpleNamespace(to_json=lambda: msgspec.json.encode(said))

    async def get_signatures_for_address(
        self, address: Any, before: Any = None, limit: int = 1000, commitment: Any = None
    ) -> Any:
        assert before is None and len(self._chain.landed) < limit, "one page holds all that is simulated"
        height = self._at(await self._machine("getSignaturesForAddress"), commitment)
        found = [
            SimpleNamespace(signature=solders().Signature.from_string(signature))
            for signature, landed in reversed(self._chain.landed.items())
            if landed.height <= height and landed.message and address in landed.message.account_keys
        ]
        await self._answered()
        return SimpleNamespace(value=found)

    async def get_transaction(self, signature: Any, encoding: str, commitment: Any, max_version: int) -> Any:
        height = self._at(await self._machine("getTransaction"), commitment)
        landed = self._chain.landed.get(str(signature))
        await self._answered()
        if landed is None or landed.height > height or landed.message is None:
            return SimpleNamespace(value=None)
        meta = SimpleNamespace(err=landed.error, loaded_addresses=None, inner_instructions=None)
        parts = SimpleNamespace(transaction=SimpleNamespace(message=landed.message), meta=meta)
        return SimpleNamespace(value=SimpleNamespace(transaction=parts))

    async def get_epoch_info(self, commitment: Any = None) -> Any:
        height = self._at(await self._machine("getEpochInfo"), commitment)
        await self._answered()
        return SimpleNamespace(value=SimpleNamespace(block_height=height, absolute_slot=height + FIRST_SLOT))

    async def send_raw_transaction(self, transaction: bytes, options: Any) -> Any:
        await self._machine("sendTransaction")
        signature = self._chain.send(transaction)
        await self._answered()
        return SimpleNamespace(value=signature)


def _machine_of() -> None:
    """A name for the function that failed, which SolanaRpcException wants to know."""


class SimSettlement(Settlement):
    """Production's Settlement on the simulated chain."""

    def __init__(self, process: Process, chain: Chain):
        super().__init__("http://127.0.0.1:8899", attempts=4, clients=[RpcClient(process, chain)])

"""A central: production's whole Central, on the simulated broker and chain, with a ledger in memory."""

import asyncio
import contextlib
import functools
import hashlib
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
from msgspec.structs import replace

from cyxcentral import api, audit, dispatch, eventlog, landings, nodes, payments, reconciliation
from cyxcentral.central import Central, Settings
from cyxcentral.ledger import Sums
from cyxcentral.machine import Machine
from cyxcentral.world import SAID_ON
from cyxcore.errors import CyxError
from cyxnet import commands, solana, subjects, submitting
from cyxnet import messages as m
from cyxnet.commands import Commander, commanding
from cyxnet.config import NetworkFile
from cyxnet.identity import Identity, verify
from cyxnet.wallet import Wallet
from cyxnode import signing
from tests.simulation import signatures
from tests.simulation.chain import SimSettlement
from tests.simulation.cheats import CHECK_WITHIN_S, Cheats
from tests.simulation.faults import FAR_CLOCK_MS, FIRST_WALL_MS, HOUR_MS
from tests.simulation.loop import ProcessLoop, sleep
from tests.simulation.nodes import node_id, wallet_of
from tests.simulation.wire import Process, SimBus, decoded

CENTRAL_SEED = bytes(range(32))
HEARTBEAT_MS, LEASE_MS, PROGRESS_MS = 2_000, 8_000, 20_000
VOUCHED = tuple(node_id(number) for number in range(3))  # where strangers get little: these get anything
REFERENCE_FEE = 50_000
AGREE_WITHIN_MS = 300  # clocks that are kept right
PLATFORM_FEE_BASIS_POINTS = 1000


SETTINGS = Settings(
    network=NetworkFile(
        network_id="simulated",
        client_url="",
        node_url="",
        edge_url="",
        core_url="",
        monitor_url="",
        chain_url="http://127.0.0.1:8899",
        heartbeat_ms=HEARTBEAT_MS,
        lease_ms=LEASE_MS,
        progress_ms=PROGRESS_MS,
        reference_fee_base_units=REFERENCE_FEE,
        bans=False,  # a day without any node would be a long trial
        custodial_wallets=False,
        fee_basis_points=PLATFORM_FEE_BASIS_POINTS,
    ),
    keys=Path("simulated"),  # nobody looks there
    state=Path("simulated"),
)


def checked(cheats: Cheats) -> NetworkFile:
    """The network of a seed: in some there are checkers, and what they find false is banned."""
    if not cheats.checkers:
        return SETTINGS.network
    checkers = [node_id(number) for number in cheats.checkers]
    return replace(SETTINGS.network, checkers=checkers, check_within_s=CHECK_WITHIN_S, bans=True)


def shrink() -> "contextlib.ExitStack":
    """What makes a seed small: virtual sleep, a chain six times as fast, no key derived or signature checked twice.

    The first polls are slower than production's: what is asked twice within a block is answered the same.
    """
    stack = contextlib.ExitStack()
    stack.enter_context(mock.patch.object(asyncio, "sleep", sleep))
    all_tasks = getattr(asyncio.tasks, "_all_tasks" if sys.version_info < (3, 12) else "_scheduled_tasks")
    stack.enter_context(mock.patch.object(all_tasks, "add", id))  # nobody asks for it, and it costs as much as a task
    stack.enter_context(mock.patch.object(landings, "FIRST_POLL_S", 0.1))
    stack.enter_context(mock.patch.object(landings, "NEXT_POLL_S", 0.05))
    stack.enter_context(mock.patch.object(reconciliation, "EVERY_S", 6.0))
    stack.enter_context(mock.patch.object(audit, "LOOK_AGAIN_S", 5.0))  # together longer than any machine lags
    stack.enter_context(mock.patch.object(payments, "DEADLINES_EVERY_S", 1.0))
    stack.enter_context(mock.patch.object(signing, "VALID_MS", 24 * HOUR_MS))  # where weeks pass, 8 hours are a second
    stack.enter_context(mock.patch.object(dispatch, "PAUSE_GRACE_MS", dispatch.PAUSE_GRACE_MS // 6))
    stack.enter_context(mock.patch.object(solana, "BLOCKHASH_TRUSTED_S", solana.BLOCKHASH_TRUSTED_S / 6))
    stack.enter_context(mock.patch.object(submitting, "QUOTE_FRESH_S", submitting.QUOTE_FRESH_S / 6))
    stack.enter_context(mock.patch.object(nodes, "STRIKES_TO_BAN", 10**6))  # only what was rejected is banned
    stack.enter_context(mock.patch.object(nodes, "UNBANNED_REPUTATION", -1.0))
    stack.enter_context(mock.patch.object(nodes, "BAN_MS", (FAR_CLOCK_MS + 48 * HOUR_MS,)))  # by every clock
    stack.enter_context(mock.patch.object(commands, "verify", check))
    stack.enter_context(mock.patch.object(api, "Wallet", wallet_of))
    stack.enter_context(mock.patch.object(eventlog, "read", functools.lru_cache(maxsize=None)(eventlog.read)))
    decoded.cache_clear()  # as if no other seed had been there
    stack.enter_context(signatures.remembered())
    return stack


class KeysAtHand:
    """The platform's keys without a process that holds them."""

    def __init__(self, identity: Identity):
        self.wallet = Wallet(identity.child("wallet"))
        self.platform = Wallet(identity.child("platform")).address
        self.child = functools.cache(identity.child)
        self.commander = Commander(commanding(identity, SETTINGS.network.network_id, 1))
        self.commander._sign = cheap_signature

    async def close(self) -> None:
        pass


def cheap_signature(message: bytes) -> bytes:
    """Of a command: nobody in the simulation knows how to make it but centrals."""
    return hashlib.blake2b(message, key=CENTRAL_SEED).digest()


def check(public_key: str, message: bytes, signature: str) -> bool:
    """Whether a command, or the key for commands, is the platform's."""
    if message.startswith(b"cyx/v1/command\n"):
        return cheap_signature(message).hex() == signature
    return verify(public_key, message, signature)


KEYS = KeysAtHand(Identity(CENTRAL_SEED))


class MemoryLedger:
    """What central writes down for readers, in memory: made anew from the log at each start."""

    def __init__(self, strange: set[int]) -> None:
        self._strange = strange  # where messages are that count for nothing
        self.broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.balances: dict[str, int] = {}
        self._updates: dict[str, list[tuple[Any, int, int, str, Any]]] = {}  # by job: source, seq, at_ms, kind, data

    def position(self, stream: str) -> int:
        return 0

    def place(self, stream: str) -> tuple[int, str]:
        return 0, ""

    def add_quarantined(self, stream: str, seq: int, subject: str, why: str, sha256: str) -> None:
        assert seq in self._strange, f"event {seq} ({subject}) is in quarantine: {why}"

    def add_event(self, stream: str, seq: int, subject: str, record: m.Record, sha256: str) -> None:
        if type(record.event) in SAID_ON["job"]:
            job_id = subjects.last_token(subject)
            self._add("event", job_id, seq, record.at_ms, type(record.event).__name__, record.event)

    def add_telemetry(self, stream: str, seq: int, record: m.TelemetryRecord, sha256: str) -> None:
        if record.job_id and record.epoch:
            self._add("telemetry", record.job_id, seq, record.at_ms, "epoch", record.epoch)

    def _add(self, source: Any, job_id: str, seq: int, at_ms: int, kind: str, what: Any) -> None:
        self._updates.setdefault(job_id, []).append((source, seq, at_ms, kind, what))

    def add_entries(self, seq: int, job_id: str, entries: Any, at_ms: int) -> None:
        assert sum(entry.amount_base_units for entry in entries) == 0, f"event {seq}: its entries do not sum to zero"
        for entry in entries:
            self.balances[entry.account] = self.balances.get(entry.account, 0) + entry.amount_base_units

    async def sums(self, whole: bool = False) -> Sums:
        balances = {account: amount for account, amount in self.balances.items() if amount}
        escrows = {account: amount for account, amount in balances.items() if account.startswith("escrow:")}
        return Sums(events=0, unbalanced=[], escrows=escrows, accounts=balances)

    def put_job(self, job: Any) -> None:
        pass

    def put_node(self, node: Any) -> None:
        pass

    filled = staticmethod(contextlib.nullcontext)

    async def room(self) -> None:
        pass

    async def flush(self) -> None:
        pass

    def telemetry_rewound(self, last_seq: int) -> None:
        raise AssertionError("the simulated telemetry is never rewound")

    async def updates(
        self, job_id: str, after_event: int, after_telemetry: int, limit: int
    ) -> tuple[list[m.Update], bool]:
        after = {"event": after_event, "telemetry": after_telemetry}
        found = [
            m.Update(job_id=job_id, source=source, seq=seq, at_ms=at_ms, kind=kind, data=msgspec.to_builtins(what))
            for source, seq, at_ms, kind, what in self._updates.get(job_id, ())
            if seq > after[source]
        ]
        return found[:limit], len(found) > limit

    async def close(self) -> None:
        pass


class CentralProcess(Process):
    """One life of one central. Its wall clock may be an hour off and may jump; its monotonic clock drifts."""

    def __init__(self, loop: ProcessLoop, network: Any):
        super().__init__(loop)
        self.network = network
        self.started_s = network.scheduler.now_s
        self.wall_error_ms = int(network.scheduler.dice.uniform(-HOUR_MS, HOUR_MS)) + network.faults.clock_error_ms()
        if network.wishes.clocks_agree:
            self.wall_error_ms %= AGREE_WITHIN_MS
        self.central: Central | None = None
        self.ready = False

    def crash(self, why: str) -> None:
        if self.loop.alive:
            self.loop.kill()
            self.network.faults.count("central_crash")
            self.network.trace("crash", f"{self.name} {why}")
            self.network.restart_central(self.name)

    def wall_ms(self) -> int:
        return FIRST_WALL_MS + self.wall_error_ms + self.network.faults.date_ms(self.network.scheduler.now_s)

    async def main(self) -> None:
        scheduler, loop = self.network.scheduler, self.loop
        dice = scheduler.dice
        machine = Machine(
            wall_ms=self.wall_ms,
            monotonic_ms=lambda: (loop.offset_s + scheduler.now_s * loop.rate) * 1000,  # loop.time(), asked most of all
            token_hex=lambda count: dice.getrandbits(8 * count).to_bytes(count, "big").hex(),
        )
        core = SimBus(self, self.network.edge, self.network.core)
        edge = SimBus(self, self.network.edge)
        ledger: Any = MemoryLedger(self.network.strange.seqs)
        network = checked(self.network.cheats)
        limits = {
            "unproven_limit_base_units": self.network.wishes.limit_base_units,
            "vouched": list(VOUCHED),
        }
        settings = replace(SETTINGS, network=replace(network, **limits))
        arguments: Any = (settings, core, edge, ledger, SimSettlement(self, self.network.chain), KEYS, machine)
        self.central = Central(*arguments)
        try:
            await self.central._open()
        except CyxError as error:  # a start that meets a broker without a leader ends, and is tried again
            self.crash(f"did not start: {error}")
            return
        self.ready = True
        try:
            await self.central.failed()
        except CyxError as error:
            self.network.scheduler.fail(f"{self.name} gave up: {error}")

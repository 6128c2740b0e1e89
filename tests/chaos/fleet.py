"""The processes of a network, started with the commands an operator would use; what is killed is started again.

Every central and every node reaches the broker over a link of its own, so that one of them alone can be cut off.
Clients and the checker reach it directly.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
from msgspec import Struct

from cyxcore.errors import CyxError
from cyxnet import identity
from cyxnet.broker import Broker, Passwords
from cyxnet.config import NetworkFile, write_network
from cyxnet.local import QUICK_CHAIN, Part
from tests.chaos.faults import CENTRALS, Fault
from tests.chaos.proxy import Link, pause

HEARTBEAT_MS, LEASE_MS = 400, 2_400
RETRY_S = 0.2
# how the programs begin a refusal to start, and what is said of one that others, or a busy machine, kept waiting
REFUSALS = ("cyxcentral: ", "cyxnode: error: ", "chain: ", "nats-server", "it was not ready within")
OnEvent = Callable[[str], None]


class Restart(Struct, frozen=True, kw_only=True):
    """A part that ended, and when it was ready again. killed: by us; otherwise nobody asked it to end."""

    name: str
    ended_at_ms: int
    ready_at_ms: int
    killed: bool
    said: str = ""  # its last words, when nobody asked it to end


class Member:
    """One supervised process. `start` brings it up and returns its pid; `ended` waits for its end."""

    def __init__(
        self,
        name: str,
        start: Callable[[], Awaitable[int]],
        ended: Callable[[], Awaitable[int]],
        stop: Callable[[], Awaitable[None]],
        last_words: Callable[[], str],
    ):
        self.name = name
        self.start, self.ended, self.stop, self.last_words = start, ended, stop, last_words
        self.pid: int | None = None  # None while it is down
        self.said: dict[str, object] = {}
        self.down_s: float | None = None  # set by who kills it


class Fleet:
    """`async with Fleet(folder, nodes=3) as fleet:`"""

    def __init__(self, folder: Path, *, nodes: int, on_event: OnEvent = lambda text: None):
        self.folder = folder
        self.restarts: list[Restart] = []
        self.members: dict[str, Member] = {}
        self.links: dict[str, Link] = {}
        self.file: NetworkFile
        self._nodes = nodes
        self._on_event = on_event
        self._over = asyncio.Event()
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._passwords = Passwords.fresh(identity.load_or_create(folder / "central.key"))
        self._broker: Broker | None = None
        self._parts: dict[str, Part] = {}

    async def __aenter__(self) -> "Fleet":
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        try:
            await self._bring_up()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- coming and going ------------------------------------------------------------------------------

    async def _bring_up(self) -> None:
        broker = Member("broker", self._start_broker, self._broker_ended, self._stop_broker, lambda: "see its log")
        chain = self._part("chain", "cyxcentral", "chain", "--dir", self.folder / "chain", *QUICK_CHAIN, "--port", 0)
        for member in (broker, chain):
            self.members[member.name] = member
            member.pid = await member.start()
        chain_url = str(chain.said["url"])
        command = self._parts["chain"].command
        command[command.index("--port") + 1] = chain_url.rsplit(":", 1)[1]  # the others know it by this one
        assert self._broker
        self.file = NetworkFile(
            network_id="chaos",
            client_url=self._broker.url("client"),
            node_url=self._broker.url("node"),
            edge_url=self._broker.url("edge"),
            core_url=self._broker.url("core"),
            monitor_url=self._broker.monitor_url,
            chain_url=chain_url,
            heartbeat_ms=HEARTBEAT_MS,
            lease_ms=LEASE_MS,
            bans=False,  # whose node is killed three times with leases in its hands is shut out for a day
        )
        write_network(self.folder, self.file)
        for name in CENTRALS:
            self.members[name] = await self._central(name)
        for n in range(1, self._nodes + 1):
            self.members[f"node-{n}"] = await self._node(f"node-{n}")
        later = [member for member in self.members.values() if member.pid is None]
        for member, pid in zip(later, await asyncio.gather(*(member.start() for member in later)), strict=True):
            member.pid = pid
        for member in self.members.values():
            self._watchers[member.name] = asyncio.create_task(self._watch(member))

    async def _link(self, name: str, role: str) -> str:
        """The URL of the broker for one program, over a link of its own."""
        assert self._broker
        link = self.links[name] = Link(self._broker.port)
        await link.start()
        return self._broker.url(role).replace(f":{self._broker.port}", f":{link.port}")

    async def _central(self, name: str) -> Member:
        """A central with a ledger of its own, and the keys of the platform."""
        folder = self.folder / name
        core, edge = await self._link(f"{name}.core", "core"), await self._link(f"{name}.edge", "edge")
        view = NetworkFile(**{field: getattr(self.file, field) for field in NetworkFile.__struct_fields__})
        view.core_url, view.edge_url = core, edge
        write_network(folder, view)
        shutil.copy2(self.folder / "central.key", folder / "central.key")
        return self._part(name, "cyxcentral", "--dir", folder)

    async def _node(self, name: str) -> Member:
        url = await self._link(name, "node")
        return self._part(name, "cyxnode", "--dir", self.folder, "--name", name, "--url", url)

    def _part(self, name: str, module: str, *arguments: object) -> Member:
        command = [sys.executable, "-P", "-m", module, *map(str, arguments), "--guard-stdin"]
        part = Part(name, command, self.folder / "logs" / f"{name}.log")
        self._parts[name] = part

        async def start() -> int:
            await part.start()
            assert part.process
            member.said = part.said
            return part.process.pid

        member = Member(name, start, part.ended, part.stop, part.last_words)
        return member

    async def _start_broker(self) -> int:
        before = self._broker
        ports = (before.port, before.monitor_port) if before else (0, 0)
        log = self.folder / "logs" / "broker.log"
        start = asyncio.to_thread(Broker.start, self.folder / "broker", self._passwords, *ports, log)
        starting = asyncio.create_task(start)
        try:
            self._broker = await asyncio.shield(starting)
        except asyncio.CancelledError:  # the thread goes on: what it starts has to be stopped too
            with contextlib.suppress(CyxError):
                self._broker = await starting
            raise
        return self._broker.process.pid

    async def _broker_ended(self) -> int:
        assert self._broker
        return await asyncio.to_thread(self._broker.process.wait)

    async def _stop_broker(self) -> None:
        if self._broker:
            await asyncio.to_thread(self._broker.stop)

    async def _watch(self, member: Member) -> None:
        """Start a member again whenever it ends."""
        while True:
            await member.ended()
            ended_at_ms, killed = _wall_ms(), member.down_s is not None
            said = "" if killed else member.last_words()
            member.pid = None
            if not killed:
                self._on_event(f"{member.name} ended by itself: {said}")
            await pause(member.down_s or 0.05, self._over)
            member.down_s = None
            while True:
                try:
                    member.pid = await member.start()
                    break
                except CyxError as error:
                    self._on_event(str(error))
                    if not any(word in str(error) for word in REFUSALS):
                        self._note_crash(member.name, str(error))
                    await pause(RETRY_S, self._over)
            restart = Restart(
                name=member.name, ended_at_ms=ended_at_ms, ready_at_ms=_wall_ms(), killed=killed, said=said
            )
            self.restarts.append(restart)

    def _note_crash(self, name: str, said: str) -> None:
        """Something ended, or did not start, without a reason in one line: a traceback is never an answer."""
        now_ms = _wall_ms()
        self.restarts.append(Restart(name=name, ended_at_ms=now_ms, ready_at_ms=now_ms, killed=False, said=said))

    async def stop(self, *names: str) -> None:
        """End these parts in order, for good."""
        for name in names:
            if watcher := self._watchers.pop(name, None):
                watcher.cancel()
                await asyncio.gather(watcher, return_exceptions=True)
        await asyncio.gather(*(self.members[name].stop() for name in names))

    async def run_alone(self, name: str, state: Path, work: Callable[[], Awaitable[None]]) -> None:
        """Start a central on this ledger, do `work` while it is the only one, end it. A failure is noted as a crash."""
        member = self._part(f"{name}-alone", "cyxcentral", "--dir", self.folder, "--state", state)
        try:
            await member.start()
            await work()
        except (CyxError, TimeoutError) as error:
            self._note_crash(member.name, f"{type(error).__name__} {error!s}")
        finally:
            await member.stop()

    async def close(self) -> None:
        self._over.set()
        self.calm()
        nodes = [name for name in self.members if name.startswith("node-")]
        for names in (nodes, CENTRALS, ("chain",), ("broker",)):
            await self.stop(*(name for name in names if name in self.members))
        for link in self.links.values():
            await link.close()

    # -- harm ------------------------------------------------------------------------------------------

    def kill(self, name: str, down_s: float) -> bool:
        """SIGKILL; it is started again after `down_s`. False when it is down already."""
        member = self.members[name]
        if member.pid is None or member.down_s is not None:
            return False
        member.down_s = down_s
        os.kill(member.pid, signal.SIGKILL)
        return True

    async def freeze(self, pid: int, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after a while."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            await pause(seconds, self._over)
            os.kill(pid, signal.SIGCONT)

    async def spoil(self, fault: Fault) -> None:
        """Make a link bad for a while."""
        link = self.links[fault.victim]
        link.begin(fault.mode)
        await pause(fault.lasts_s if fault.mode != "reset" else 0.0, self._over)
        link.end()

    async def fill_disk(self, seconds: float) -> None:
        """Leave no byte free where the broker stores, for a while.

        nats-server does not come to itself when there is room again: it has to be started anew.
        """
        filler = self.folder / "broker" / "filler"
        await asyncio.to_thread(_fill, filler)
        await pause(seconds, self._over)
        filler.unlink(missing_ok=True)  # two faults may have filled it
        while not self.kill("broker", 0.0) and not self._over.is_set():  # it may be coming up just now
            await pause(RETRY_S, self._over)

    def calm(self) -> None:
        """End every harm that goes on."""
        for link in self.links.values():
            link.end()
        for member in self.members.values():
            if member.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member.pid, signal.SIGCONT)

    def node_name(self, node_id: str) -> str | None:
        """The part that is this node."""
        return next((name for name, member in self.members.items() if member.said.get("node_id") == node_id), None)

    def training_process(self, node_ids: list[str], pick: int) -> tuple[str, psutil.Process] | None:
        """One of the training processes, of the nodes that hold leases if there are any: (node id, process)."""
        nodes = [member for name, member in sorted(self.members.items()) if name.startswith("node-") and member.pid]
        busy = [member for member in nodes if member.said.get("node_id") in node_ids] or nodes
        for turn in range(len(busy)):
            member = busy[(pick + turn) % len(busy)]
            with contextlib.suppress(psutil.Error):
                found = [p for p in psutil.Process(member.pid).children() if "cyxnode.train" in " ".join(p.cmdline())]
                if found:  # limits come with an order: idle warm ones have none
                    files = psutil.RLIMIT_FSIZE
                    waiting = [p.rlimit(files)[0] == psutil.RLIM_INFINITY for p in found]
                    return str(member.said["node_id"]), found[waiting.index(min(waiting))]
        return None

    def processes(self) -> list[psutil.Process]:
        """Everything alive that belongs to this network: it names the folder, or works in it."""
        found = []
        ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid not in ours and process.status() != psutil.STATUS_ZOMBIE:
                    where = process.cwd()
                    if where.startswith(f"{self.folder}/") or f"{self.folder}/" in " ".join(process.cmdline()) + "/":
                        found.append(process)
        return found


def _fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65_536))


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000

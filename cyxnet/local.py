"""A whole network on this machine: brokers, chain, centrals and nodes as supervised processes.

Each part is a program of its own, started with the same commands an operator would use. Part by part: wait for its
ready line, restart it when it dies, stop it in reverse order. A part ends with its parent: its standard input is a
pipe from here, and it stops when that closes.
"""

import asyncio
import contextlib
import fcntl
import functools
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec
from msgspec import Struct

from cyxcore.errors import CyxError
from cyxnet import tls, watchdog
from cyxnet.broker import DiskFull, Listening, Passwords
from cyxnet.brokers import CLUSTER_SIZES, Brokers, OnReady, Ports
from cyxnet.config import (
    ConfigError,
    NetworkFile,
    for_others,
    network_path,
    read_network,
    write_atomically,
    write_network,
)
from cyxnet.credentials import as_client
from cyxnet.identity import load_or_create
from cyxnet.parts import Part, StartError

RESTART_DELAYS_S = (0.1, 0.5, 1.0, 2.0, 5.0)
CRASHES_PER_MINUTE = 10
# The last words of a part that has ended for want of room, as the system and SQLite say it. A node that only says that
# its disk is full takes no runs and goes on.
NO_ROOM = ("no space left", "database or disk is full", "quota exceeded")
QUICK_CHAIN = ("--slot-ms", "1", "--slots-per-block", "400")  # final after 4 ms; blockhashes still last a minute

OWN = {"bans": False, "unproven_limit_base_units": 0, "upload_bytes_per_day": 0}  # nodes and disk are the owner's own

OnEvent = Callable[[str], None]


class Kept(Struct, kw_only=True):
    """What a network folder keeps between runs: the same broker and chain, under the same names."""

    network_id: str
    passwords: Passwords
    brokers: list[Ports] = []  # one each; how many there are is settled when the folder is made
    chain_port: int = 0


class LocalNetwork:
    """`async with LocalNetwork(folder) as network:` brings everything up and takes it down again.

    nodes, centrals: how many of each. checkers: so many of the nodes, the last ones, check what the others train.
    cluster: how many brokers; None: as many as the folder has, one in a new one.
    encrypt: with TLS and certificates of its own, for `hosts` too; the first of these is in the URLs of others.
    listen: on which address the brokers do; another than loopback's needs TLS. port: of the (first) broker; 0 keeps
    the last one or takes a free one. http: the port where the (first) central serves HTTP, 0 for a free one; None:
    none does. http_certificate: (chain, key), PEM, for TLS; with `encrypt` it has the brokers' if none is named.
    on_ready is called as each part gets ready, on_event when a part is restarted.
    Raises ConfigError when the folder's network is up already or has another number of brokers, TlsError for plain
    text where others could listen, BrokerError or StartError when a part does not start.
    """

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = 1,
        checkers: int = 0,
        centrals: int = 1,
        cluster: int | None = None,
        port: int = 0,
        heartbeat_ms: int = 10_000,
        lease_ms: int = 40_000,
        redis_url: str = "",
        encrypt: bool = False,
        listen: str = "127.0.0.1",
        hosts: Sequence[str] = (),
        http: int | None = None,
        http_certificate: tuple[Path, Path] | None = None,
        on_ready: OnReady | None = None,
        on_event: OnEvent | None = None,
        settings: Mapping[str, Any] | None = None,
    ):
        """settings: more of what network.json says, by the names of its fields."""
        self.folder = folder
        self._nodes = nodes
        self._checkers = checkers
        self._centrals = centrals
        self._cluster = cluster
        self._port = port
        self._heartbeat_ms = heartbeat_ms
        self._lease_ms = lease_ms
        self._redis_url = redis_url
        self._encrypt = encrypt
        self._listen = listen
        self._hosts = list(hosts)
        self._http = http
        self._http_certificate = http_certificate
        self._settings = dict(settings or {})
        self._on_ready = on_ready or (lambda part, detail, ms: None)
        self._on_event = on_event or (lambda text: None)
        self._lock: IO[str] | None = None
        self._brokers: Brokers | None = None
        self.parts: dict[str, Part] = {}
        self._watchers: list[asyncio.Task[None]] = []
        self._failed: asyncio.Future[None] | None = None
        self.file: NetworkFile

    @staticmethod
    def running(folder: Path) -> NetworkFile | None:
        """The network that is up in `folder`, or the one of another machine that it joins, if there is one."""
        found = read_network(folder) if network_path(folder).exists() else None
        if found and not found.pid:
            return found
        try:
            with (folder / "up.lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
        except FileNotFoundError:
            return None
        except OSError:
            return found

    async def __aenter__(self) -> "LocalNetwork":
        if self._checkers and self._checkers >= self._nodes:
            raise ConfigError(
                f"expected fewer checkers than nodes ({self._nodes}), got {self._checkers}: what checkers train "
                "themselves is not checked; raise --nodes"
            )
        self._take_folder()
        self._failed = asyncio.get_running_loop().create_future()
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def wait(self) -> None:
        """Run until cancelled. Raises StartError when a part keeps dying."""
        assert self._failed is not None
        await asyncio.shield(self._failed)

    def _take_folder(self) -> None:
        if network_path(self.folder).exists() and not read_network(self.folder).pid:
            raise ConfigError(
                f"{network_path(self.folder)} names a network that no `cyx up` started here, and one that is started "
                "would take its place: choose another folder with --dir"
            )
        try:
            (self.folder / "logs").mkdir(parents=True, exist_ok=True)
            lock = (self.folder / "up.lock").open("a+")
        except OSError as error:
            raise ConfigError(f"{self.folder}: cannot be used as a network folder ({error.strerror})") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            owner = lock.read().strip()
            lock.close()
            raise ConfigError(
                f"the network of {self.folder} is up already (process {owner or 'unknown'}); "
                "use it, or choose another folder with --dir"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    def _listening(self) -> Listening:
        if not self._encrypt:
            if self._hosts:
                raise tls.TlsError("names of hosts are for certificates: use them with --tls")
            tls.refuse_open_listener(self._listen, "the broker")
            return Listening(address=self._listen)
        others = [] if self._listen in ("0.0.0.0", "::") else [self._listen]
        files = tls.make((self.folder / "tls").resolve(), [*others, *self._hosts])
        self._http_certificate = self._http_certificate or (files.certificate, files.key)
        return Listening(address=self._listen, certificates=files, name=self._hosts[0] if self._hosts else "")

    async def _start(self) -> None:
        kept, listening = self._read_kept(), self._listening()
        platform = load_or_create(self.folder / "central.key")
        kept.passwords = kept.passwords.admits(platform)
        owner = load_or_create(self.folder / "client.key")
        self._brokers = Brokers(
            self.folder,
            kept.passwords,
            kept.brokers,
            first_port=self._port,
            listening=listening,
            on_ready=self._on_ready,
        )
        chain_starting = asyncio.create_task(self._start_chain(kept))
        try:
            await self._brokers.start()
            chain_ms = await chain_starting
        finally:
            chain_starting.cancel()
            await asyncio.gather(chain_starting, return_exceptions=True)
        chain_url = self.parts["chain"].said["url"]
        self._on_ready("chain", f"LiteSVM behind Solana JSON-RPC, {chain_url}", chain_ms)
        write_atomically(self.folder / "kept.json", msgspec.json.encode(kept), 0o600)
        self.file = NetworkFile(
            network_id=kept.network_id,
            client_url=self._brokers.url("client"),
            node_url=self._brokers.url("node"),
            edge_url=self._brokers.url("edge"),
            core_url=self._brokers.url("core"),
            monitor_url=self._brokers.monitor_url,
            replicas=len(kept.brokers),
            chain_url=chain_url,
            heartbeat_ms=self._heartbeat_ms,
            lease_ms=self._lease_ms,
            redis_url=self._redis_url,
            tls_ca=listening.certificates.ca.read_text() if listening.certificates else "",
            platform_key=platform.public_key,
            operators=[as_client(owner).id],
            checkers=[self._node_id(name) for name in self._node_names()[self._nodes - self._checkers :]],
            pid=os.getpid(),
        )
        self.file = msgspec.structs.replace(self.file, **OWN | self._settings)
        write_network(self.folder, self.file)
        self._tell_others()
        centrals = self._central_parts()
        await asyncio.gather(*(self._bring_up(part) for part in (*centrals, *self._node_parts())))
        if self._http is not None:
            self._keep_http(centrals)
        self._supervise(self._brokers)

    def _central_parts(self) -> list[Part]:
        """One ledger each; the platform's keys, which all of them share, are the folder's."""
        names = ["central", *(f"central-{n}" for n in range(2, self._centrals + 1))]
        return [
            self._part(name, "cyxcentral", "--dir", self.folder, "--state", self.folder / name, *self._http_options(n))
            for n, name in enumerate(names)
        ]

    def _http_options(self, number: int) -> list[object]:
        if self._http is None:
            return []
        port = self._http if number == 0 else 0
        host = f"[{self._listen}]" if ":" in self._listen else self._listen
        certificate = zip(("--http-cert", "--http-key"), self._http_certificate or (), strict=False)
        return ["--http", f"{host}:{port}", *(part for pair in certificate for part in pair)]

    def _keep_http(self, centrals: list[Part]) -> None:
        """Tell where HTTP is; a central that is started again serves at the port it had."""
        urls = []
        for central in centrals:
            scheme, _, address = central.said["http_url"].partition("://")
            central.command[central.command.index("--http") + 1] = address
            port = address.rpartition(":")[2]
            urls.append(f"{scheme}://{self._hosts[0]}:{port}" if self._hosts else central.said["http_url"])
        self.file.http_url = ",".join(urls)
        write_network(self.folder, self.file)
        self._tell_others()

    def _tell_others(self) -> None:
        if self._hosts:
            write_network(self.folder / "join", for_others(self.file))

    def _node_names(self) -> list[str]:
        return [f"node-{n}" for n in range(1, self._nodes + 1)]

    def _node_id(self, name: str) -> str:
        """As the node makes its own of its key, which is made here if it has none yet."""
        folder = self.folder / "nodes" / name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return f"{name}-{load_or_create(folder / 'key').short_id}"

    def _node_parts(self) -> list[Part]:
        return [self._part(name, "cyxnode", "--dir", self.folder, "--name", name) for name in self._node_names()]

    async def _start_chain(self, kept: Kept) -> float:
        """Start the chain at its last port, or at another when that is taken; it keeps the port from then on."""
        for port in dict.fromkeys((kept.chain_port, 0)):
            options = ("--dir", self.folder / "chain", *QUICK_CHAIN, "--port")
            chain = self._part("chain", "cyxcentral", "chain", *options, port)
            try:
                chain_ms = await chain.start()
            except StartError:
                if port == 0:
                    raise
                continue
            kept.chain_port = int(chain.said["url"].rsplit(":", 1)[1])
            chain.command[chain.command.index("--port") + 1] = str(kept.chain_port)  # central knows it by this one
            return chain_ms
        raise AssertionError("unreachable")

    def _part(self, name: str, module: str, *arguments: object) -> Part:
        command = [sys.executable, "-P", "-m", module, *map(str, arguments), "--guard-stdin"]
        part = self.parts[name] = Part(name, command, self.folder / "logs" / f"{name}.log")
        return part

    async def _bring_up(self, part: Part) -> None:
        ready_ms = await part.start()
        who = str(part.said.get("node_id") or part.said.get("central_id") or "")
        self._on_ready(part.name, f"{who}, a checker" if who in self.file.checkers else who, ready_ms)

    def _read_kept(self) -> Kept:
        path = self.folder / "kept.json"
        try:
            kept = msgspec.json.decode(path.read_bytes(), type=Kept)
        except FileNotFoundError:
            kept = Kept(network_id=f"local-{secrets.token_hex(4)}", passwords=Passwords.fresh())
            kept.brokers = [Ports() for _ in range(self._cluster or 1)]
        except (OSError, msgspec.MsgspecError) as error:
            raise ConfigError(f"{path}: damaged ({error}); restore it, or start afresh in another folder") from None
        else:
            self._refuse_without_money()
        kept.brokers = kept.brokers or [Ports()]
        if self._cluster not in (None, len(kept.brokers)):
            raise ConfigError(
                f"the network of {self.folder} has {len(kept.brokers)} broker(s), not {self._cluster}; their number is "
                "settled when the folder is made: leave --cluster out, or choose another folder with --dir"
            )
        if len(kept.brokers) not in CLUSTER_SIZES:
            raise ConfigError(f"expected a cluster of 1, 3 or 5 brokers, got {len(kept.brokers)}")
        return kept

    def _refuse_without_money(self) -> None:
        """A key or a chain that is gone from a folder that had it would be made anew, and all money be lost unsaid."""
        for name, what, how in (
            ("central.key", "the key of this network's wallets and escrows", "or with `cyx id import --central`, "),
            ("chain", "the chain that holds this network's money", ""),
        ):
            if not (self.folder / name).exists():
                raise ConfigError(
                    f"{self.folder / name} is gone, {what}: restore it from a backup, {how}or begin another network in "
                    "another folder with --dir"
                )

    # -- supervision -----------------------------------------------------------------------------------

    @property
    def process_ids(self) -> dict[str, int]:
        """The process behind each part: "broker" (or "broker-1", …), "chain", "central", "node-1", …"""
        brokers = self._brokers.running if self._brokers else {}
        return {name: broker.process.pid for name, broker in brokers.items()} | {
            name: part.process.pid for name, part in self.parts.items() if part.process
        }

    def _supervise(self, brokers: Brokers) -> None:
        for part in self.parts.values():
            self._watch_over(self._watch(part.name, part.ended, functools.partial(self._bring_up, part)))
        for name in brokers.names:
            ended, bring_up = functools.partial(brokers.ended, name), functools.partial(brokers.bring_up, name)
            self._watch_over(self._watch(name, ended, bring_up))
            self._watch_over(self._guard(name, brokers))

    def _watch_over(self, work: Coroutine[Any, Any, None]) -> None:
        self._watchers.append(asyncio.create_task(work))

    async def _guard(self, name: str, brokers: Brokers) -> None:
        """End a broker that lives but does not serve; _watch starts it again."""
        dog = watchdog.Watchdog()
        while True:
            await asyncio.sleep(watchdog.PROBE_EVERY_S)
            broker = brokers.running[name]
            if broker.process.poll() is not None:
                dog = watchdog.Watchdog()
                continue
            health = await asyncio.to_thread(watchdog.probe, broker.monitor_url)
            free_bytes = shutil.disk_usage(self.folder).free
            verdict = watchdog.judge(dog, health, free_bytes, time.monotonic())
            if verdict.note:
                self._on_event(f"{name}: {verdict.note}")
            if verdict.restart:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(broker.process.pid, signal.SIGKILL)  # it would not hear anything milder

    async def _watch(
        self, name: str, ended: Callable[[], Awaitable[int]], bring_up: Callable[[], Awaitable[None]]
    ) -> None:
        """Start a part again whenever it ends; give up when it ends all the time, unless the disk is full."""
        crashes: list[float] = []
        waited, full = 0, False  # ends in a row for want of room; whether the last start found none
        said = ""  # by the last start, if it failed
        while True:
            code = await ended()
            now = time.monotonic()
            crashes = [at for at in crashes if now - at < 60]
            if full or self._without_room(name):
                waited += 1
            else:
                crashes.append(now)
                waited = 0
            if not said:
                self._on_event(f"{name} ended ({_how(code)}); restarting it")
            if len(crashes) > CRASHES_PER_MINUTE:
                why = self.parts[name].last_words() if name in self.parts else "see its log"
                self._give_up(f"{name} keeps ending: {why}")
                return
            await asyncio.sleep(RESTART_DELAYS_S[min(len(crashes) + waited, len(RESTART_DELAYS_S)) - 1])
            try:
                await bring_up()
                said, full = "", False
            except CyxError as error:
                if said != str(error):  # once, however often it is tried
                    self._on_event(f"{name} cannot be started: {error}")
                said, full = str(error), isinstance(error, DiskFull)

    def _without_room(self, name: str) -> bool:
        """Whether a part that has ended may have done so because the disk is full: no reason to give it up."""
        if shutil.disk_usage(self.folder).free < watchdog.ROOM_TO_WRITE_BYTES:
            return True
        words = self.parts[name].last_words().lower() if name in self.parts else ""
        return any(want in words for want in NO_ROOM)

    def _give_up(self, why: str) -> None:
        if self._failed and not self._failed.done():
            self._failed.set_exception(StartError(why))

    async def close(self) -> None:
        """Stop every part, nodes first, and give the folder back."""
        for watcher in self._watchers:  # first: what ends from here on is not to be started again
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        for names in (
            [name for name in self.parts if name.startswith("node")],
            [name for name in self.parts if name.startswith("central")],
            ["chain"],
        ):
            await asyncio.gather(*(self.parts[name].stop() for name in names if name in self.parts))
        if self._brokers is not None:
            await self._brokers.stop()
        if self._failed and not self._failed.done():
            self._failed.cancel()
        for folder in (self.folder, self.folder / "join"):
            network_path(folder).unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()


def _how(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"

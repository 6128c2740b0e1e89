"""`cyx id`: the keys of a client, a node or the platform. Needs no network."""

import argparse
import asyncio
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from cyxcore.errors import CyxError
from cyxnet import backup, credentials, envelope, identity, sealing
from cyxnet.cli.exits import DONE
from cyxnet.cli.screen import Screen
from cyxnet.config import network_path, read_network, write_atomically
from cyxnet.identity import Identity
from cyxnet.wallet import Wallet

WORDS_A_LINE = 6
CLIENT_KEY, CENTRAL_KEY = "client.key", "central.key"


class KeyRefused(CyxError, ValueError):
    """What was asked cannot be done with this key. The message says why, and what to do."""

    code = "bad_key"


async def keys(args: argparse.Namespace, screen: Screen) -> int:
    return await ACTIONS[args.action](args, screen)


def path_of(args: argparse.Namespace) -> Path:
    """Where the key of --node NAME, --central or this client lies."""
    if args.node is not None:
        return Path(args.dir) / "nodes" / args.node / "key"
    return Path(args.dir) / (CENTRAL_KEY if args.central else CLIENT_KEY)


def _option(args: argparse.Namespace) -> str:
    """What names the same key on another command line."""
    whose = f" --node {args.node}" if args.node is not None else " --central" if args.central else ""
    return whose + ("" if args.dir == Path(".cyx") else f" --dir {args.dir}")


def existing(args: argparse.Namespace) -> Identity:
    """The key that path_of() names. Raises KeyRefused when there is none."""
    try:
        return identity.load(path_of(args))
    except FileNotFoundError:
        raise KeyRefused(f"no key in {path_of(args)}: make one with `cyx id new{_option(args)}`") from None


def facts(args: argparse.Namespace, mine: Identity) -> dict[str, str]:
    """What may be told of a key: what others know it by."""
    if args.central:
        issuer, system = credentials.broker_nkeys(mine)
        of_the_kind = {
            "wallet": Wallet(mine.child("wallet")).address,
            "platform": Wallet(mine.child("platform")).address,
            "issuer_nkey": issuer,
            "system_nkey": system,
        }
    else:
        who = credentials.as_client(mine) if args.node is None else _as_node(args.node, mine)
        of_the_kind = {"id": who.id, "wallet": Wallet(mine.child("wallet")).address, "nkey": who.nkey}
        if args.node is not None:
            of_the_kind["sealing_key"] = f"{who.id}={envelope.node_key(mine)}"
    file = path_of(args)
    sealed = sealing.is_sealed(file.read_text())
    about = "sealed with a passphrase" if sealed else "readable by its owner, without a passphrase"
    return of_the_kind | {"public_key": mine.public_key, "file": str(file.resolve()), "kept": about}


def _as_node(name: str, mine: Identity) -> credentials.Credentials:
    return credentials.as_node(mine, f"{name}-{mine.short_id}")


def _tell(args: argparse.Namespace, screen: Screen, mine: Identity) -> None:
    told = facts(args, mine)
    screen.table(["", ""], [[name.replace("_", " "), value] for name, value in told.items()], told)


async def show(args: argparse.Namespace, screen: Screen) -> int:
    _tell(args, screen, existing(args))
    return DONE


async def new(args: argparse.Namespace, screen: Screen) -> int:
    made = Identity(os.urandom(sealing.SEED_BYTES))
    await _keep(args, screen, made)
    _tell(args, screen, made)
    _show_words(screen, made)
    screen.say(
        "backup",
        "write the words down: they are the key, and whoever reads them has it. They are not shown again unasked.",
        kind="hint",
    )
    return DONE


async def export(args: argparse.Namespace, screen: Screen) -> int:
    _show_words(screen, existing(args))
    return DONE


async def import_(args: argparse.Namespace, screen: Screen) -> int:
    if not args.force:
        _refuse_to_replace(path_of(args), args)  # before somebody types 24 words
    typed = await asyncio.to_thread(sys.stdin.read) if not sys.stdin.isatty() else _typed()
    brought = Identity(backup.from_words(typed))
    await _keep(args, screen, brought)
    _tell(args, screen, brought)
    return DONE


def _typed() -> str:
    """At a terminal: line by line until there are enough, shown as they are typed, because 24 words go wrong unseen."""
    words: list[str] = []
    while len(words) < backup.COUNT and not re.fullmatch(r"[0-9a-fA-F]{64}", " ".join(words)):
        line = sealing.prompt(f"word {len(words) + 1} of {backup.COUNT} and on: ", shown=True)
        if not line.strip():
            break
        words += line.split()
    return " ".join(words)


def _show_words(screen: Screen, mine: Identity) -> None:
    words = backup.to_words(mine.seed).split()
    lines = [words[at : at + WORDS_A_LINE] for at in range(0, len(words), WORDS_A_LINE)]
    screen.table([""] * WORDS_A_LINE, lines, {"words": " ".join(words)})


async def passphrase(args: argparse.Namespace, screen: Screen) -> int:
    path, mine = path_of(args), existing(args)
    was_sealed = sealing.is_sealed(path.read_text())
    chosen = None if args.remove else sealing.new_passphrase(path, was_sealed)
    identity.keep(path, mine, chosen, replace=True)
    _tell(args, screen, mine)
    return DONE


# -- for other programs ------------------------------------------------------------------------------------


async def nats(args: argparse.Namespace, screen: Screen) -> int:
    """A context of the `nats` tool: its file, and the file of the nkey that it names. That key can connect, not pay."""
    if args.node is not None or args.central:
        raise KeyRefused("only a client's key makes a context: a node also shows a token, which the tool cannot")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", args.name):
        raise KeyRefused(f"--name: expected letters, digits, - and _, got {args.name[:80]!r}")
    network, mine = read_network(args.dir), existing(args)
    who = credentials.as_client(mine)
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "nats"
    context, nkey = folder / "context" / f"{args.name}.json", folder / "cyx" / f"{args.name}.nk"
    if context.exists() and not args.force:
        raise KeyRefused(f"{context} is there already: choose another --name, or replace it with --force")
    settings = {
        "description": f"Cyx network {network.network_id} as {who.id}",
        "url": network.client_url,
        "nkey": str(nkey),
        "inbox_prefix": who.inbox,
    }
    if network.tls_ca:
        settings["ca"] = str(nkey.with_suffix(".pem"))
    for file in (context, nkey):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(nkey, credentials.nkey_seed(credentials.USER, mine.child("nats")).encode() + b"\n", 0o600)
    if network.tls_ca:
        write_atomically(Path(settings["ca"]), network.tls_ca.encode())
    write_atomically(context, json.dumps(settings, indent=2).encode() + b"\n", 0o600)
    screen.result(
        f"{context}; try: nats --context {args.name} request cyx.v1.api.{who.id}.network.info '{{}}'",
        {"context": str(context), "nkey": str(nkey), "id": who.id},
    )
    return DONE


# -- keeping -----------------------------------------------------------------------------------------------


def _refuse_to_replace(path: Path, args: argparse.Namespace) -> None:
    if path.exists():
        raise KeyRefused(
            f"{path} holds a key already: see `cyx id show{_option(args)}`; with --force it is kept beside the new one"
        )


async def _keep(args: argparse.Namespace, screen: Screen, mine: Identity) -> None:
    path = path_of(args)
    if not args.force:
        _refuse_to_replace(path, args)
    chosen = sealing.new_passphrase(path) if args.passphrase else None
    if args.central and network_path(args.dir).exists():
        raise KeyRefused(f"the network of {args.dir} is up and uses this key: stop it first")
    try:
        if path.exists():
            screen.say("kept", f"the key before this one: {identity.put_aside(path)}", kind="kept")
        identity.keep(path, mine, chosen, replace=args.force)
    except FileExistsError:  # made by another process this moment
        _refuse_to_replace(path, args)


ACTIONS: dict[str, Callable[[argparse.Namespace, Screen], Awaitable[int]]] = {
    "show": show,
    "new": new,
    "export": export,
    "import": import_,
    "passphrase": passphrase,
    "nats": nats,
}

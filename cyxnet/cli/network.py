"""Commands about the network: up, nodes, wallet, version."""

import argparse
import asyncio
import contextlib
import importlib.metadata
import platform
import re
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyxcore.wording import human_bytes, human_duration
from cyxnet import amounts
from cyxnet.cli.exits import DONE
from cyxnet.cli.running import connected
from cyxnet.cli.screen import Screen
from cyxnet.config import CLIENT_ID, ConfigError, addresses
from cyxnet.display import cyx, human_age

if TYPE_CHECKING:
    from cyxnet.local import LocalNetwork
    from cyxnet.messages import ClientView, NodeView

LAMPORTS_PER_SOL = 10**9


async def up(args: argparse.Namespace, screen: Screen) -> int:
    wanted = {name: getattr(args, name) for name in ("nodes", "checkers", "centrals", "cluster", "port", "http")}
    wanted |= {"encrypt": args.tls, "listen": args.listen, "hosts": args.host}
    if args.http_cert or args.http_key:
        if args.http is None or not (args.http_cert and args.http_key):
            raise ConfigError("--http, --http-cert and --http-key belong together")
        wanted["http_certificate"] = (args.http_cert.resolve(), args.http_key.resolve())
    async with started(args.dir, screen, **wanted) as network:
        address = addresses(network.file.client_url)
        option = "" if args.dir == Path(".cyx") else f" --dir {args.dir}"
        screen.say("up", f"{address}, folder {args.dir.resolve()}", address=address, folder=str(args.dir.resolve()))
        if args.host:
            join = args.dir.resolve() / "join" / "network.json"
            screen.say("others", f"join with {join}, which holds no password", kind="join", file=str(join))
        if network.file.http_url:
            screen.say("http", f"{network.file.http_url}; a key for it: cyx key new{option}", url=network.file.http_url)
        for example in ("train examples/digits.toml", "nodes", "jobs"):
            screen.say("try", f"cyx {example}{option}", kind="example")
        screen.say("stop", "with Ctrl-C", kind="hint")
        await network.wait()
    return DONE


@contextlib.asynccontextmanager
async def started(folder: Path, screen: Screen, **wanted: Any) -> AsyncIterator["LocalNetwork"]:
    """A network of our own, told part by part, stopped at the end whatever happens. wanted: as for LocalNetwork.

    It lives in a task that no signal cancels: a second Ctrl-C while it stops must not leave half of it behind.
    """
    from cyxnet.local import LocalNetwork

    def on_ready(part: str, detail: str, ms: float) -> None:
        took = human_duration(ms / 1000)
        screen.say(part, f"{detail}  ready in {took}", kind="ready", part=part, detail=detail, ready_ms=round(ms, 1))

    def on_event(text: str) -> None:
        screen.say("network", text, kind="network")

    network = LocalNetwork(folder, **wanted, on_ready=on_ready, on_event=on_event)
    up, enough = asyncio.get_running_loop().create_future(), asyncio.Event()

    async def live() -> None:
        async with network:
            up.set_result(None)
            await enough.wait()

    life = asyncio.create_task(live())
    try:
        await asyncio.wait({life, up}, return_when=asyncio.FIRST_COMPLETED)
        if life.done():
            life.result()  # raises why it did not start
        yield network
    finally:
        screen.close()
        enough.set() if up.done() else life.cancel()
        while not life.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({life})
        if up.done():
            screen.say("network", "stopped: every part has ended", kind="stopped")


@contextlib.asynccontextmanager
async def joined(folder: Path, screen: Screen) -> AsyncIterator["LocalNetwork | None"]:
    """The network of a folder: the one that is up (None), or one of our own for as long as this lasts."""
    from cyxnet.local import LocalNetwork

    if (running := LocalNetwork.running(folder)) is not None:
        address = addresses(running.client_url)
        screen.say("network", f"joined the one at {address}", kind="joined", address=address)
        yield None
        return
    async with started(folder, screen) as network:
        supervision = asyncio.ensure_future(network.wait())
        try:
            yield network
        finally:
            supervision.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await supervision


def _state(view: "NodeView") -> str:
    """For the table. "gone" is who was lost as well as who said goodbye; of a job, `cyx explain` says which."""
    if not view.online:
        return _banned(view) or f"gone {human_age(view.last_seen_ms)}"
    return _banned(view) or (view.state if view.state in ("draining", "drained") else "online")


def _banned(view: "NodeView | ClientView") -> str:
    """Until when it is shut out; empty when it is not."""
    until_ms = view.banned_until_ms
    return f"banned until {datetime.fromtimestamp(until_ms / 1000):%Y-%m-%d %H:%M}" if until_ms else ""


async def nodes(args: argparse.Namespace, screen: Screen) -> int:
    dearest = None if args.max_price is None else amounts.parse(args.max_price, "--max-price")
    async with connected(args) as client:
        views = await client.nodes(
            args.limit,
            online=args.online,
            idle=args.idle,
            device="cuda" if args.gpu else "any",
            min_memory_free_bytes=args.min_memory,
            min_reputation=args.min_reputation,
            max_price_per_hour_base_units=dearest,
            regions=args.region,
            other_regions=args.not_region,
            sort_by=args.sort,
        )
        info = await client.info()
    if info.payouts_frozen:
        screen.say("payouts", f"FROZEN, nothing is paid: {info.payouts_frozen}", kind="payouts_frozen")
    rows = [
        [
            view.node_id,
            _state(view),
            f"{view.reputation:.2f} {view.tier}".rstrip() + (", not proven" if view.limit_base_units else ""),
            f"{view.hardware.cores} cores",
            human_bytes(view.hardware.memory_bytes),
            ", ".join(gpu.name for gpu in view.hardware.gpus) or "none",
            ", ".join(view.active_jobs) or "idle",
            f"{view.jobs_completed} done, {view.jobs_failed} failed",
        ]
        for view in views
    ]
    columns = ["node", "state", "reputation", "cpu", "memory", "gpus", "works on", "jobs"]
    if rows or args.json:
        screen.table(columns, rows, {"nodes": views})
    else:
        start = f"start one: python -m cyxnode --dir {args.dir}"
        screen.result(f"no node is what was asked; cyx nodes lists all, or {start}", views)
    return DONE


async def ban(args: argparse.Namespace, screen: Screen) -> int:
    async with connected(args) as client:
        if re.fullmatch(CLIENT_ID, args.node):
            shut_out = await client.ban_client(args.node, args.reason, args.for_s)
            screen.result(_client(shut_out), shut_out)
            return DONE
        view = await client.ban(args.node, args.reason, args.for_s)
    screen.result(f"{view.node_id} is {_state(view)}", view)
    return DONE


async def pardon(args: argparse.Namespace, screen: Screen) -> int:
    async with connected(args) as client:
        if re.fullmatch(CLIENT_ID, args.node):
            let_in = await client.pardon_client(args.node, args.reason)
            screen.result(_client(let_in), let_in)
            return DONE
        view = await client.pardon(args.node, args.reason)
    screen.result(f"{view.node_id} may come in; its reputation is {view.reputation:g}", view)
    return DONE


async def clients(args: argparse.Namespace, screen: Screen) -> int:
    async with connected(args) as client:
        found = await client.banned_clients()
    rows = [
        [view.client_id, _banned(view) or "may come in", str(view.active_jobs), view.by, view.reason] for view in found
    ]
    if rows or args.json:
        screen.table(["client", "state", "active jobs", "by", "reason"], rows, {"clients": found})
    else:
        screen.result("no client was ever banned", {"clients": found})
    return DONE


def _client(view: "ClientView") -> str:
    jobs = f"; {view.active_jobs} of its jobs go on" if view.active_jobs else ""
    return f"{view.client_id} {'is ' + banned if (banned := _banned(view)) else 'may come in'}{jobs}"


async def wallet(args: argparse.Namespace, screen: Screen) -> int:
    wanted = None if args.faucet is None else amounts.parse(args.faucet, "--faucet")
    async with connected(args) as client:
        if wanted is not None:
            given = await client.faucet(wanted)
            screen.say("faucet", f"gave {cyx(wanted)}; {given.signature}", signature=given.signature)
        reply = await client.wallet(args.address)
    sol = f"{reply.lamports / LAMPORTS_PER_SOL:g} SOL for fees"
    screen.result(f"{reply.address}  {cyx(reply.token_base_units)}  {sol}", reply)
    return DONE


async def version(args: argparse.Namespace, screen: Screen) -> int:
    try:
        cyx_version = importlib.metadata.version("cyx")
    except importlib.metadata.PackageNotFoundError:
        cyx_version = "unknown (not installed: run from its sources)"
    python = f"{platform.python_implementation()} {platform.python_version()}"
    screen.result(f"cyx {cyx_version}, {python}", {"cyx": cyx_version, "python": python})
    return DONE

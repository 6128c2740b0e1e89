"""Commands about access over HTTP: the API keys and sessions of this client."""

import argparse
import time
from datetime import datetime
from typing import Any

from cyxnet import messages as m
from cyxnet.cli.exits import DONE
from cyxnet.cli.running import connected
from cyxnet.cli.screen import Screen
from cyxnet.display import human_age


async def keys(args: argparse.Namespace, screen: Screen) -> int:
    return await ACTIONS[args.action](args, screen)


async def _new(args: argparse.Namespace, screen: Screen) -> int:
    async with connected(args) as client:
        made = await client.new_key(name=args.name, role=args.role, requests_per_s=args.rate, days=args.days)
    screen.say("keep it", "it is shown this once; anybody who has it may act for you", kind="hint")
    screen.result(made.key, made)
    return DONE


async def _list(args: argparse.Namespace, screen: Screen) -> int:
    async with connected(args) as client:
        found = await client.keys_and_sessions(args.all)
    rows = [_row("key", key, key.name, key.made_at_ms) for key in found.keys]
    rows += [_row("session", session, session.reason, session.opened_at_ms) for session in found.sessions]
    if rows or args.json:
        screen.table(["id", "is a", "of", "role", "made", "state", "name"], rows, found)
    else:
        screen.result("no keys and no sessions yet; make a key: cyx key new", found)
    return DONE


async def _revoke(args: argparse.Namespace, screen: Screen) -> int:
    async with connected(args) as client:
        revoked = await client.revoke(args.id, args.all)
    screen.result(f"{args.id} is refused from now on", revoked)
    return DONE


def _row(what: str, grant: m.KeyView | m.HttpSessionView, note: str, made_at_ms: int) -> list[str]:
    return [grant.id, what, grant.identity, grant.role, human_age(made_at_ms), _state(grant), note]


def _state(grant: m.KeyView | m.HttpSessionView) -> str:
    if grant.revoked_at_ms:
        return f"revoked {human_age(grant.revoked_at_ms)}"
    if not grant.ends_at_ms:
        return "good"
    over = "over since" if grant.ends_at_ms < time.time() * 1000 else "good until"
    return f"{over} {datetime.fromtimestamp(grant.ends_at_ms / 1000):%Y-%m-%d %H:%M}"


ACTIONS: dict[str, Any] = {"new": _new, "list": _list, "revoke": _revoke}

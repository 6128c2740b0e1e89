"""Commands about money: refund, ledger, payouts."""

import argparse
import time
from datetime import datetime

from cyxcore.errors import CyxError
from cyxnet import identity
from cyxnet import messages as m
from cyxnet.bus import BusError
from cyxnet.cli.exits import DONE, WORLD_FAILED
from cyxnet.cli.running import connected
from cyxnet.cli.screen import Screen
from cyxnet.config import ConfigError, read_network
from cyxnet.display import cyx, human_duration
from cyxnet.escrow import LOCAL_PROGRAM
from cyxnet.instructions import SettlementError
from cyxnet.solana import Settlement
from cyxnet.wallet import Wallet

SOON_S = (0.5, 1.0)  # pauses of who asks a platform that may be gone for ever


class NoChain(CyxError):
    """Nobody says where the chain is."""

    code = "no_chain"


async def refund(args: argparse.Namespace, screen: Screen) -> int:
    """By a transaction of our own: it works without a central, and for anybody's escrow."""
    wallet = Wallet(identity.load_or_create(args.dir / "client.key").child("wallet"))
    client, job_id, program, chain_url = await _place(args, wallet.address, screen)
    async with Settlement(chain_url) as settlement:
        escrow = await settlement.open_escrow(client, job_id, program)
        left_s = escrow.deadline_s - int(time.time())
        if left_s > 0:
            raise SettlementError(
                "too_early",
                f"the escrow of {job_id} can be refunded from {_date(escrow.deadline_s)} on, in "
                f"{human_duration(left_s)}; until then: cyx cancel {job_id}, which gives back what was not earned",
            )
        signed = await settlement.refund_transaction(wallet, escrow)
        await settlement.succeed(signed, "refund")
    what = f"{cyx(escrow.amount_base_units)} of {job_id} are back at {escrow.client}; {signed.signature}"
    screen.result(what, {"job_id": job_id, "escrow": escrow, "signature": signed.signature})
    return DONE


async def _place(args: argparse.Namespace, wallet: str, screen: Screen) -> tuple[str, str, str, str]:
    """(client, job id, program, chain's URL) of the escrow: as central knows it, or by what is known here."""
    if args.chain is None:
        try:
            async with connected(args) as caller:
                caller.retry_delays_s = SOON_S
                view, info = await caller.job(args.job), await caller.info()
            if view.terms is not None:
                return view.terms.client, view.job_id, view.terms.program, info.chain_url
        except BusError as error:
            screen.say("network", f"{error}; asking the chain alone", kind="no_central")
    try:
        network = read_network(args.dir)
        chain_url, program = network.chain_url, network.escrow_program
    except ConfigError:
        chain_url = program = ""
    chain_url = args.chain or chain_url
    if not chain_url:
        raise NoChain(f"nobody answers, and {args.dir} does not say where the chain is; name it with --chain URL")
    return args.client or wallet, args.job, args.program or program or LOCAL_PROGRAM, chain_url


def _date(at_s: int) -> str:
    return f"{datetime.fromtimestamp(at_s).astimezone():%Y-%m-%d %H:%M %Z}"


async def ledger(args: argparse.Namespace, screen: Screen) -> int:
    """One SELECT, or one of the two questions that are asked in words."""
    if args.question == "verify" and args.time is None:
        return await _verify(args, screen)
    if args.question == "at":
        return await _balances_at(args, screen)
    if args.time is not None:
        raise BadQuestion(
            f'expected "verify", "at TIME" or one SELECT in quotes, got {args.question!r} and {args.time!r}'
        )
    async with connected(args) as client:
        reply = await client.ledger(args.question, args.limit)
    rows = [["" if value is None else str(value) for value in row] for row in reply.rows]
    screen.table(reply.columns, rows, reply)
    if reply.truncated:
        screen.say("more", f"only the first {len(rows)} rows are shown; raise --limit", kind="truncated")
    return DONE


class BadQuestion(CyxError, ValueError):
    """The ledger is asked for something that there is not."""

    code = "bad_question"


async def _verify(args: argparse.Namespace, screen: Screen) -> int:
    async with connected(args) as client:
        checks = await client.verify_ledger()
    differ = [check for check in checks if check.differences]
    rows = []
    for check in checks:
        count = len(check.differences) + check.more
        rows.append([check.name, f"{check.compared:,}", f"{count:,} differ" if count else "the same"])
        rows += [["", "", each] for each in check.differences]
    screen.table(["compared", "how many", "result"], rows, {"ok": not differ, "checks": checks})
    return WORLD_FAILED if differ else DONE


async def _balances_at(args: argparse.Namespace, screen: Screen) -> int:
    at_ms = _time_ms(args.time)
    sql = (
        "SELECT account, sum(amount_base_units) AS base_units FROM entries "
        f"WHERE at_ms <= {at_ms} GROUP BY account HAVING base_units <> 0 ORDER BY account"
    )
    async with connected(args) as client:
        reply = await client.ledger(sql, args.limit)
    rows = [[account, cyx(int(amount))] for account, amount in reply.rows]
    screen.table(["account", "balance"], rows, {"at_ms": at_ms, "balances": dict(reply.rows)})
    if reply.truncated:
        screen.say("more", f"only the first {len(rows)} accounts are shown; raise --limit", kind="truncated")
    return DONE


def _time_ms(text: str | None) -> int:
    """A date as people or programs write it, in Unix ms: 2026-11-26, 2026-11-26T14:30, …+01:00, or ms themselves."""
    said = (text or "").strip()
    if said.isascii() and said.isdigit() and len(said) <= 15:
        return int(said)
    try:
        return int(datetime.fromisoformat(said).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        raise BadQuestion(
            f"expected a time such as 2026-11-26 or 2026-11-26T14:30 (local, or with a zone: +00:00), got {said!r:.60}"
        ) from None


async def payouts(args: argparse.Namespace, screen: Screen) -> int:
    async with connected(args) as client:
        if args.freeze is not None:
            reply = await client.freeze_payouts(args.freeze)
        elif args.release is not None:
            reply = await client.release_payouts(args.release)
        else:
            reply = m.PayoutsReply(frozen=(await client.info()).payouts_frozen)
    what = f"payouts are frozen: {reply.frozen}" if reply.frozen else "payouts are made"
    screen.result(what, reply)
    return DONE

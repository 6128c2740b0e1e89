"""Commands about money: quote, earnings, send, refund, ledger, payouts."""

import argparse
import time
from datetime import datetime
from typing import Any

import msgspec

from cyxcore.errors import CyxError, SpecError
from cyxcore.wording import human_bytes, human_duration
from cyxnet import identity
from cyxnet import messages as m
from cyxnet.amounts import format_cyx, parse
from cyxnet.bus import BusError
from cyxnet.cli.exits import DONE, WORLD_FAILED
from cyxnet.cli.jobs import tell_limit
from cyxnet.cli.keys import existing
from cyxnet.cli.running import connected
from cyxnet.cli.screen import Screen
from cyxnet.cli.submitting import loaded
from cyxnet.client import AsyncClient
from cyxnet.config import ConfigError, read_network, write_atomically
from cyxnet.display import cyx, human_age
from cyxnet.escrow import LOCAL_PROGRAM, split
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


async def send(args: argparse.Namespace, screen: Screen) -> int:
    """By a transaction of the wallet's own: what it earned, or bought, goes to any other wallet."""
    amount = None if args.amount == "all" else parse(args.amount)
    wallet = Wallet(existing(args).child("platform" if args.central else "wallet"))
    async with connected(args) as caller:
        info = await caller.info()
    async with Settlement(info.chain_url) as settlement:
        if await settlement.is_local():
            await settlement.fill(wallet.address)
        before = await settlement.token_balance(wallet.address, info.mint)
        signed = await settlement.transfer_transaction(wallet, info.mint, args.address, amount)
        screen.say("signed", f"transaction {signed.signature}", kind="signed", signature=signed.signature)
        await settlement.succeed(signed, "send")
    sent = before if amount is None else amount
    said = {"from": wallet.address, "to": args.address, "amount_base_units": sent, "signature": signed.signature}
    screen.result(f"{cyx(sent)} went from {wallet.address} to {args.address}", said)
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
        screen.remark("more", f"only the first {len(rows)} rows are shown; raise --limit")
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
    found = {"at_ms": at_ms, "balances": dict(reply.rows), "truncated": reply.truncated}
    if rows or args.json:
        screen.table(["account", "balance"], rows, found)
    else:
        screen.result(f"no account held anything at {args.time}", found)
    if reply.truncated:
        screen.remark("more", f"only the first {len(rows)} accounts are shown; raise --limit")
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


async def quote(args: argparse.Namespace, screen: Screen) -> int:
    """What a job costs at most, and on whom that depends. Nothing is stored or paid."""
    async with loaded(args) as job, connected(args) as client:
        prepared = await client.prepare(job)
    found, price = prepared.quote, prepared.quote.price
    if price is None:
        raise NoPrice("no node that is here could run the job, so there is nobody to price it; see: cyx nodes")
    if args.output is not None:
        write_atomically(args.output, msgspec.json.format(msgspec.json.encode(price)) + b"\n")
    rows = [
        [
            each.name,
            human_duration(each.seconds) if each.seconds else "unknown",
            f"{format_cyx(each.price_per_hour_base_units)} CYX/h",
            cyx(each.base_units) if each.seconds else "unknown",
        ]
        for each in found.prices
    ]
    work = f"{found.flops:.3g} operations, {human_bytes(found.bytes_moved)} moved"
    until = f"{datetime.fromtimestamp(price.expires_ms / 1000):%H:%M:%S}"
    what = f"at most {cyx(price.max_base_units)}, good until {until}: {work}"
    screen.table(["node", "takes at most", "asks", "so at most"], rows, found)
    if not args.json:
        tell_limit(found, price.max_base_units, screen)
        kept = f"; submit with: cyx submit {args.file} --quote {args.output}" if args.output else ""
        screen.result(what + kept, found)
    return DONE


class NoPrice(CyxError):
    """There is nothing to make a price of."""

    code = "no_price"


async def earnings(args: argparse.Namespace, screen: Screen) -> int:
    """What nodes were paid: by job, or for one job from the work to the transaction."""
    async with connected(args) as client:
        nodes = await client.nodes()
        wanted = [node for node in nodes if not args.node or args.node in (node.name, node.node_id)]
        if args.node and not wanted:
            raise SpecError(f"no node is called {args.node}; see: cyx nodes")
        if args.explain:
            return await _explain(client, args.explain, {node.wallet for node in wanted}, bool(args.node), screen)
        names = {node.wallet: node.name for node in wanted}
        sql = "SELECT about, at_ms, data FROM events WHERE kind = 'Settled' ORDER BY seq DESC"
        reply = await client.ledger(sql, args.limit)
        fees = await _fees_of(client, [row[0] for row in reply.rows])
    rows: list[list[str]] = []
    data: list[dict[str, Any]] = []
    for job_id, at_ms, said in reply.rows:
        for part in _parts(job_id, msgspec.json.decode(said), fees[job_id]):
            if part["wallet"] in names:
                data.append(part | {"at_ms": at_ms, "node": names[part["wallet"]]})
                rows.append([names[part["wallet"]], job_id, human_age(at_ms), *_money(part), part["signature"]])
    totals = {
        what: sum(part[what] for part in data) for what in ("gross_base_units", "fee_base_units", "net_base_units")
    }
    if rows:
        rows.append(["all", f"{len(rows)} payment{'s' * (len(rows) > 1)}", "", *_money(totals), ""])
    if rows or args.json:
        columns = ["node", "job", "paid", "gross", "fee", "net", "transaction"]
        screen.table(columns, rows, {"payments": data, **totals, "truncated": reply.truncated})
    else:
        screen.result("no node was paid yet", {"payments": []})
    if reply.truncated:
        screen.remark("more", f"only the newest {args.limit} settlements were looked at; raise --limit")
    return DONE


async def _fees_of(client: AsyncClient, job_ids: list[str]) -> dict[str, int]:
    """The platform's basis points of each job, as its client signed them."""
    if not job_ids:
        return {}
    listed = ", ".join(f"'{job_id}'" for job_id in job_ids)  # ids of our own log: letters, digits and dashes
    sql = f"SELECT about, data FROM events WHERE kind = 'Submitted' AND about IN ({listed})"
    found = (await client.ledger(sql, len(job_ids))).rows
    return {job_id: msgspec.json.decode(data)["terms"]["fee_basis_points"] for job_id, data in found}


def _parts(job_id: str, settled: dict[str, Any], fee_basis_points: int) -> list[dict[str, Any]]:
    """What each wallet got of one settlement."""
    found = []
    for payee in settled.get("payees", []):
        net, fee = split(payee["pay_base_units"], fee_basis_points)
        found.append(
            {
                "job_id": job_id,
                "wallet": payee["wallet"],
                "attempt": payee.get("attempt", 0),
                "gross_base_units": payee["pay_base_units"],
                "fee_base_units": fee,
                "net_base_units": net,
                "signature": settled["signature"],
            }
        )
    return found


def _money(part: dict[str, Any]) -> list[str]:
    return [cyx(part[f"{what}_base_units"]) for what in ("gross", "fee", "net")]


async def _explain(client: AsyncClient, prefix: str, wallets: set[str], one: bool, screen: Screen) -> int:
    """work → gross → fee → net → transaction, for each attempt that was paid."""
    view = await client.job(prefix)
    kinds = "'Leased', 'Checkpointed', 'Completed', 'Rejected', 'Settled'"
    sql = f"SELECT kind, data FROM events WHERE about = '{view.job_id}' AND kind IN ({kinds}) ORDER BY seq"
    history = [(kind, msgspec.json.decode(data)) for kind, data in (await client.ledger(sql, 10_000)).rows]
    attempts: dict[int, dict[str, Any]] = {}
    for kind, said in history:
        if kind == "Leased":
            resume = said.get("resume")
            first = (resume or {}).get("step", 0)
            attempts[said["attempt"]] = {
                "node": said["node_id"],
                "wallet": said["wallet"],
                "first": first,
                "last": first,
                "resume": resume,
                "states": [],
            }
        elif kind == "Checkpointed":
            stored = said["checkpoint"]
            attempts[said["attempt"]] |= {"last": stored["step"], "steps": stored["steps"]}
            attempts[said["attempt"]]["states"].append(stored)
        elif kind == "Completed":
            steps = said["summary"]["steps"]
            attempts[said["attempt"]] |= {"last": steps, "steps": steps}
        elif kind == "Rejected":  # nothing is paid for it, nor for what was built on it
            void: list[Any] = []
            for number, each in list(attempts.items()):
                if each["node"] == said["node_id"] or each["resume"] in void:
                    void += attempts.pop(number)["states"]
    settled = next((said for kind, said in history if kind == "Settled"), None)
    if settled is None:
        screen.result(
            f"{view.job_id} is {view.status}: nobody was paid for it", {"job_id": view.job_id, "payments": []}
        )
        return DONE
    assert view.terms is not None
    rows: list[list[str]] = []
    data: list[dict[str, Any]] = []
    for part in _parts(view.job_id, settled, view.terms.fee_basis_points):
        if one and part["wallet"] not in wallets:
            continue
        work = [
            f"steps {each['first']:,} to {each['last']:,} of {each.get('steps', 0):,} on {each['node']}"
            for each in attempts.values()
            if each["wallet"] == part["wallet"] and each["last"] > each["first"]
        ]
        data.append(part | {"work": work})
        rows.append(["; ".join(work), *_money(part), part["signature"]])
    screen.table(["work", "gross", "fee", "net", "transaction"], rows, {"job_id": view.job_id, "payments": data})
    return DONE

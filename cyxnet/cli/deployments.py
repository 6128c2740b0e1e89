"""Commands about deployments: deploy, deployments, scale, extend, undeploy, ask."""

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

import msgspec

from cyxcore.errors import CyxError, SpecError
from cyxcore.paths import shown
from cyxcore.wording import human_duration
from cyxnet import amounts
from cyxnet import messages as m
from cyxnet.cli.exits import DONE
from cyxnet.cli.jobs import first_money, tell_limit, why_they_wait
from cyxnet.cli.running import connected
from cyxnet.cli.screen import Screen
from cyxnet.client import AsyncClient
from cyxnet.deployments import OVER, NotDeployed, Size, Source, standing_by
from cyxnet.display import cyx, human_age, node_names

MAX_BODY_BYTES = 2**20


async def deploy(args: argparse.Namespace, screen: Screen) -> int:
    amount = amounts.parse(args.amount, "--amount") if args.amount else None
    price = amounts.parse(args.price, "--price") if args.price else None
    async with connected(args) as client:
        await first_money(client, screen)
        source = await client.deployments.source(args.model)
        least, most = args.replicas or (1, 1)
        size = Size(least, most, args.renew)
        size.check(args.hours)
        if args.replace:
            found = await client.deployments.find(args.replace)
            deployment, size = found.deployment, size if args.replicas else _size_of(found, args.renew)
        else:
            deployment = client.deployments.id_of(args.name or source.name)
        node_id = await client.node_called(args.node) if args.node else ""
        job = await client.deployments.request(
            msgspec.structs.replace(source, name=args.name or source.name),
            deployment,
            hours=args.hours,
            amount_base_units=amount,
            price_per_hour_base_units=price,
            needs=m.Needs(device=args.device, region=args.region, node_id=node_id),
            public=args.public,
            max_batch=args.max_batch,
            max_wait_ms=args.max_wait_ms,
            max_queue=args.max_queue,
            memory_bytes=args.memory,
            context=args.context,
            threads=args.threads,
            drain_s=args.drain_s,
            concurrency=args.concurrency,
            idle_s=args.idle_s,
            **size.bounds,
        )
        _tell_room(await client.quote(job), job, size.least, screen)
        made = await _deployed(client, args, source, deployment, job, size, screen)
        state = "is ready" if args.wait or args.replace else "is submitted"
        screen.result(
            f"{deployment} {state}: {_counted(len(made) - size.standby, size.standby)}; ask it with: cyx ask "
            f"{deployment}",
            {"deployment": deployment, "jobs": made},
            deployment,
        )
    return DONE


def _tell_room(quote: m.Quote, job: m.JobRequest, replicas: int, screen: Screen) -> None:
    """Why replicas would wait for a node, said before anybody does."""
    nodes, node_id = quote.eligible_nodes, job.needs.node_id
    tell_limit(quote, job.amount_base_units, screen)
    if not nodes:
        of = f"node {node_id} is not here, or cannot serve it" if node_id else "no node that is here can serve it"
        screen.say("warning", f"{of}; it waits until one can. See: cyx nodes, and cyx explain JOB")
    elif 0 < job.amount_base_units <= quote.unproven_limit_base_units and replicas > nodes:
        screen.say(
            "warning",
            f"none of the {nodes} that could serve it is proven yet, and such a node works on one job at a time: "
            f"{replicas - nodes} of {replicas} replicas wait for another",
        )


def _counted(working: int, standby: int) -> str:
    more = f", {standby} on standby" if standby else ""
    return f"{working} {'replica' if working == 1 else 'replicas'}{more}"


def _size_of(found: m.DeploymentView, renewals: int) -> Size:
    """What a deployment has, for who replaces it and says nothing of that."""
    serve = found.newest.serve if found.newest else None
    if serve and serve.most:
        return Size(serve.least, serve.most, renewals)
    live = max(1, sum(each.state not in OVER for each in found.replicas))  # some are being settled
    return Size(live, live, renewals)


async def _deployed(
    client: AsyncClient,
    args: argparse.Namespace,
    source: Source,
    deployment: str,
    job: m.JobRequest,
    size: Size,
    screen: Screen,
) -> list[str]:
    """The jobs of the new replicas; they are ready, unless nobody wants to wait for that."""

    def on_upload(done: int, total: int) -> None:
        screen.advance("upload", done, total)

    pending: set[str] = set()

    def tell(replica: m.ReplicaView) -> None:
        (pending.add if replica.state == "pending" else pending.discard)(replica.job_id)
        where = f" on {replica.node_name or replica.node_id}" if replica.node_id else ""
        screen.say("replica", f"{replica.job_id} is {replica.state}{where}", kind="replica", **_plain(replica))

    hours = f"{args.hours:g} h"
    of = f"of each of {size.least + size.standby} replicas, {size.standby} of which stand by"
    of = of if size.standby else "of each replica"
    screen.say("deploys", f"{source.name} as {deployment}: {cyx(job.amount_base_units)} for {hours} {of}")
    if args.replace:
        async with why_they_wait(client, pending, screen):
            return await client.deployments.replace(
                deployment, job, source.path, tell, on_upload, size.least, size.standby
            )
    made: list[str] = []
    try:
        await client.deployments.add(job, size.least, source.path, on_upload, made)
        working = list(made)
        await client.deployments.add(standing_by(job), size.standby, None, None, made)
        if args.wait:
            async with why_they_wait(client, pending, screen):
                await client.deployments.ready(deployment, working, tell)
    except (CyxError, asyncio.CancelledError) as error:
        if made and not (isinstance(error, NotDeployed) and len(made) == 1):  # the only one has ended
            screen.close()
            screen.say("goes on", f"what was submitted of {deployment} goes on; end it with: cyx undeploy {deployment}")
        raise
    return made


async def deployments(args: argparse.Namespace, screen: Screen) -> int:
    async with connected(args) as client:
        reply = await client.deployments.all(args.deployment or "", ended=args.ended)
    called = node_names(replica for each in reply.deployments for replica in each.replicas)
    rows = [_row(each, replica, called) for each in reply.deployments for replica in each.replicas]
    if rows or args.json:
        screen.table(["deployment", "replica", "state", "node", "requests", "since", "time", "paid"], rows, reply)
        if reply.more:
            screen.remark("more", "there are older ones; name the beginning of their id")
    else:
        what = "no such deployment" if args.deployment else "no deployment yet; make one: cyx deploy MODEL"
        screen.result(what, reply)
    for found in reply.deployments if not args.json else ():
        if found.untold:
            screen.remark("more", f"{found.deployment} has {found.untold} replicas more; those at work are shown first")
        is_live = any(each.state not in OVER for each in found.replicas)
        if is_live and found.newest and found.newest.serve and found.newest.serve.most:
            working = sum(each.state not in ("standby", *OVER) for each in found.replicas)
            bounds = f"{found.newest.serve.least} to {found.newest.serve.most} as they are needed"
            screen.say("scales", f"{found.deployment}: {working} at work, {bounds}")
        for replica in found.replicas:
            if why := replica.error or replica.scaled:
                screen.say("because", f"{replica.job_id}: {why}")
    return DONE


def _row(found: m.DeploymentView, replica: m.ReplicaView, called: dict[str | None, str]) -> list[str]:
    paid = replica.node_base_units
    return [
        found.deployment,
        replica.job_id,
        replica.state,
        called.get(replica.node_id, ""),
        f"{replica.requests:,}" if replica.state == "ready" else "",
        human_age(replica.since_ms),
        f"{human_duration(replica.served_ms / 1000)} of {human_duration(replica.bought_s)}",
        cyx(paid) if paid is not None else "",
    ]


async def scale(args: argparse.Namespace, screen: Screen) -> int:
    async with connected(args) as client:
        ended, added = await client.deployments.scale(args.deployment, args.replicas)
    change = f"{len(added)} more" if added else f"{ended} fewer" if ended else "as many as before"
    of = "and so to its end" if args.replicas == 0 else f"see: cyx deployments {args.deployment}"
    screen.result(
        f"{args.deployment} comes to {_counted(args.replicas, 0)}: {change}; {of}",
        {"ended": ended, "added": added},
    )
    return DONE


async def extend(args: argparse.Namespace, screen: Screen) -> int:
    async with connected(args) as client:
        await first_money(client, screen)
        made = await client.deployments.extend(args.deployment, args.hours, args.replicas)
    screen.result(
        f"{args.deployment} goes on for {args.hours:g} h more of {len(made)} "
        f"{'replica' if len(made) == 1 else 'replicas'}; see: cyx deployments {args.deployment}",
        {"added": made},
    )
    return DONE


async def undeploy(args: argparse.Namespace, screen: Screen) -> int:
    async with connected(args) as client:
        found = await client.deployments.undeploy(args.deployment)
    screen.result(
        f"{found.deployment} ends: its replicas answer what they have taken, and time that was not used comes back",
        found,
    )
    return DONE


async def ask(args: argparse.Namespace, screen: Screen) -> int:
    body = None if args.get else msgspec.Raw(await asyncio.to_thread(_body, args.body))
    async with connected(args) as client:
        answer = await client.deployments.ask(args.deployment, body, args.route, patience_s=args.patience)
    text = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else msgspec.json.encode(answer).decode()
    screen.result(text, text if isinstance(answer, bytes) else answer)
    return DONE


def _body(said: str | None) -> bytes:
    """A JSON text from the command line, a file or standard input. Raises SpecError."""
    if said is None:
        where, text = "standard input", sys.stdin.buffer.read(MAX_BODY_BYTES + 1)
    elif said.startswith("@"):
        where = shown(said[1:])
        try:
            text = Path(said[1:]).read_bytes()
        except OSError as error:
            raise SpecError(f"{where}: expected a file with JSON: {error.strerror}") from None
    else:
        where, text = "JSON", said.encode("utf-8", "surrogateescape")
    if len(text) > MAX_BODY_BYTES:
        raise SpecError(f"{where}: expected at most {MAX_BODY_BYTES} bytes, got more")
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        what = error if text.strip() else "got nothing"
        raise SpecError(f"{where}: expected JSON such as '{{\"input\": [0.1, 0.2]}}': {what}") from None
    return text


def _plain(replica: m.ReplicaView) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(replica)
    return plain

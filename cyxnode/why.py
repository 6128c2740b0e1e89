"""`python -m cyxnode why`: why this machine's node gets the jobs that it gets. Asks central, and says it in words.

It asks as a client whose key comes from the node's own: the session of a running agent is not touched by that, and a
banned node, which is not let in as a node, hears for what and until when.
"""

import asyncio
import shutil
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from cyxcore.wording import human_bytes, human_duration
from cyxnet import identity
from cyxnet.bus import ApiError, Bus
from cyxnet.client import AsyncClient
from cyxnet.config import DEFAULT_FOLDER
from cyxnet.credentials import as_client
from cyxnet.display import cyx, human_age
from cyxnet.messages import NodeView, NodeWhyReply, Prospect
from cyxnode.errors import NodeError
from cyxnode.home import kept, running, slug

COLUMNS = 80
CHANGES_SHOWN = 5
RETRY_DELAYS_S = (0.1, 1.0)  # somebody waits for it


class Here(Struct, frozen=True, kw_only=True):
    """What only the node's own machine knows. pid: of the process that runs the node; 0: none does."""

    options: str  # that name it in commands
    pid: int
    disk_free_bytes: int
    disk_least_bytes: int  # below this it takes nothing new


async def ask(
    network_folder: Path, name: str | None, url: str, tls_ca: str, session_s: float, disk_least_bytes: int
) -> tuple[NodeWhyReply, Here]:
    """What central says of this machine's node, and what is known here. Raises NodeError and what asking raises."""
    folder = kept(network_folder, name)
    keys = identity.load(folder / "key")
    who, node_id = as_client(keys), f"{slug(folder.name)}-{keys.short_id}"
    try:
        pid = running(network_folder, folder.name)[1]
    except NodeError:
        pid = 0
    disk_free_bytes = (await asyncio.to_thread(shutil.disk_usage, folder)).free
    at = "" if network_folder == DEFAULT_FOLDER else f"--dir {network_folder} "
    here = Here(
        options=f"{at}--name {folder.name}", pid=pid, disk_free_bytes=disk_free_bytes, disk_least_bytes=disk_least_bytes
    )
    bus = await Bus.connect(url, name="cyxnode-why", credentials=who, tls_ca=tls_ca, session_s=session_s)
    async with AsyncClient(bus, keys, who.id) as client:
        client.retry_delays_s = RETRY_DELAYS_S
        try:
            return await client.why(node_id), here
        except ApiError as error:
            if error.code != "unknown_node":
                raise
            why = f"the network does not know {node_id}: no node with the key in {folder} ever joined it"
            raise NodeError(f"{why}; {_started(here)}") from None


def as_json(reply: NodeWhyReply, here: Here) -> str:
    return msgspec.json.encode({**msgspec.structs.asdict(reply), "here": here}).decode()


def in_words(reply: NodeWhyReply, here: Here, now_ms: int) -> str:
    """All of it for people, in lines of at most COLUMNS letters where no single word is longer."""
    return "\n".join(_wrapped(line) for line in _lines(reply, here, now_ms))


def _wrapped(line: str) -> str:
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(
        line,
        COLUMNS,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _lines(reply: NodeWhyReply, here: Here, now_ms: int) -> Iterator[str]:
    node = reply.node
    yield f"{node.node_id} {_state(reply, here, now_ms)}."
    if node.active_jobs:
        yield f"It works on {', '.join(node.active_jobs)}."
    if node.limit_base_units:
        clients = "1 client has" if node.proofs == 1 else f"{node.proofs} clients have"
        yield (
            f"It is not proven yet ({clients} paid for its work so far): it gets one job at a time, "
            f"and none that may cost more than {cyx(node.limit_base_units)}."
        )
    yield ""
    strikes = f", {node.strikes} strike{'s' * (node.strikes != 1)} towards a ban" if node.strikes else ""
    done = f"{node.jobs_completed} job{'s' * (node.jobs_completed != 1)} done, {node.jobs_failed} failed"
    yield f"Reputation {node.reputation:.2f} of 100 ({node.tier}){strikes}; {done}."
    for change in reversed(node.changes[-CHANGES_SHOWN:]):
        yield f"  {_date(change.at_ms)}  {change.change:+.2f} to {change.reputation:.2f}: {change.reason}"
    yield ""
    if not reply.waiting:
        yield "No job waits for a node."
    else:
        yield f"Jobs that wait for a node: {reply.jobs_waiting}. The newest, and what it could do for them:"
    for job in reply.waiting:
        yield from _prospect(job, node, waits=True)
    if reply.placed:
        yield "Jobs that other nodes work on, and how it stood beside them:"
    for job in reply.placed:
        yield from _prospect(job, node, waits=False)


def _state(reply: NodeWhyReply, here: Here, now_ms: int) -> str:
    """Whether it takes jobs and, if not, why and what helps."""
    node = reply.node
    if node.banned_until_ms:
        left = human_duration(max(0, node.banned_until_ms - now_ms) / 1000)
        last = f": {node.changes[-1].reason}" if node.changes else ""
        return (
            f"is banned until {_date(node.banned_until_ms)}, for another {left}{last}. "
            "Time ends that, or the network's operator (cyx pardon)"
        )
    if not node.online:
        heard = human_age(node.last_seen_ms, now_ms)
        return f"is offline: central last heard of it {heard}; {_started(here)}"
    if node.state in ("draining", "drained"):
        if here.disk_free_bytes < here.disk_least_bytes:
            free, least = human_bytes(here.disk_free_bytes), human_bytes(here.disk_least_bytes)
            return f"takes no new jobs: its disk is full ({free} free, {least} needed)"
        back = f"python -m cyxnode --undrain {here.options}"
        return f"takes no new jobs: its operator drains it; to take that back: {back}"
    runs, free = len(node.active_jobs), human_bytes(reply.memory_free_bytes)
    if runs >= reply.max_runs:
        return f"is online and busy: it runs {runs} of {reply.max_runs} jobs"
    return f"is online and takes jobs: {reply.max_runs - runs} of {reply.max_runs} slots and {free} of memory are free"


def _started(here: Here) -> str:
    if here.pid:
        return f"its process {here.pid} runs here, and its log says what it waits for"
    return f"no process runs it here; start it: python -m cyxnode {here.options}"


def _prospect(job: Prospect, node: NodeView, waits: bool) -> Iterator[str]:
    best = job.best or {}
    where = "" if waits else f" went to {best.get('node_id', 'another node')}"
    if job.refused:
        yield f"  {job.job_id}{where}: not for this node: {job.refused}"
    elif job.own is None:
        yield f"  {job.job_id}{where}: this node was not among the best that were looked at"
    elif job.rests_ms:
        yield f"  {job.job_id}: this node can take it, in {human_duration(job.rests_ms / 1000)}: an attempt was lost"
    elif best.get("node_id") in (None, node.node_id):
        yield f"  {job.job_id}: this node can take it, and none is better: it comes when it is its turn"
    else:
        yield from _beside(job.job_id, job.own, best)


def _beside(job_id: str, own: dict[str, Any], best: dict[str, Any]) -> Iterator[str]:
    """Two scores, term by term."""
    there = f"{best['score']:.3f}" if "score" in best else "unknown"
    yield f"  {job_id}: {best['node_id']} scores {there}, this node {own['score']:.3f}"
    if own.get("lost_before"):
        yield "    this node lost it before, so it is the last resort"
    for name, term in own["terms"].items():
        other = best.get("terms", {}).get(name)
        beside = f", there {other['value']:.3f}" if other else ""
        yield f"    {name:<10} {term['value']:.3f}{beside}, counts {term['weight']:g}"


def _date(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"

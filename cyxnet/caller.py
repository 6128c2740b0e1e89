"""One caller on one network: what it asks, and asks again until it is answered."""

import asyncio
import functools
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cyxcore.errors import CyxError
from cyxnet import identity, subjects
from cyxnet import messages as m
from cyxnet.bus import ApiError, Bus, BusError, NotAdmitted

if TYPE_CHECKING:
    from cyxnet.wallet import Wallet

T = TypeVar("T")
RETRY_DELAYS_S = (0.1, 1.0, 2.0, 4.0, 8.0, 16.0)
TRIED_AGAIN = (429, 503)  # statuses of answers that say: later
OnRetry = Callable[[str, float], None]  # (what went wrong, seconds until the next try)


class Caller:
    """Its connection, its keys, and requests that survive a restart of the broker or of central.

    retry_delays_s: pauses before each further try of a request that got no answer.
    on_retry: told before each pause.
    """

    def __init__(self, bus: Bus, keys: identity.Identity, caller: str, folder: Path | None = None):
        """folder: where jobs are kept that nobody answers for."""
        self.folder = folder
        self.bus = bus
        self.keys = keys
        self.caller = caller
        self.retry_delays_s: tuple[float, ...] = RETRY_DELAYS_S
        self.on_retry: OnRetry | None = None
        self._info: m.NetworkInfo | None = None

    @functools.cached_property
    def purse(self) -> "Wallet":
        """The wallet of this client; its key never leaves this process."""
        from cyxnet.wallet import Wallet

        return Wallet(self.keys.child("wallet"))

    async def info(self) -> m.NetworkInfo:
        return await self._ask("network.info", m.NetworkInfoRequest(), m.NetworkInfo)

    async def nodes(self, limit: int | None = None, **filters: Any) -> list[m.NodeView]:
        """The nodes that are what is asked: fields of NodeListRequest. Without a limit all of them, page by page."""
        found: list[m.NodeView] = []
        after, more = None, True
        while more and (limit is None or len(found) < limit):
            page = await self._ask("node.list", m.NodeListRequest(after=after, **filters), m.NodeList)
            found += page.nodes
            more = page.more and bool(page.nodes)
            after = found[-1].node_id if found else None
        return found[:limit]

    async def node_called(self, beginning: str) -> str:
        """The id of a node by its name, its id or the beginning of it. Raises ApiError when no other one is meant."""
        found = [each for each in await self.nodes() if each.node_id.startswith(beginning) or each.name == beginning]
        exact = [each for each in found if beginning in (each.node_id, each.name)]
        if len(exact or found) != 1:
            what = (
                f"{len(found)} nodes are called {beginning} or begin so" if found else f"no node is called {beginning}"
            )
            raise ApiError("unknown_node", f"{what}; see: cyx nodes", 404)
        return (exact or found)[0].node_id

    async def job(self, job_id: str) -> m.JobView:
        """One job, by its id or a prefix that only one job has."""
        return await self._ask("job.status", m.JobRef(job_id=job_id), m.JobView)

    async def _ask(self, verb: str, request: Any, reply: type[T], *, timeout_s: float = 5.0, retry: bool = True) -> T:
        subject = subjects.api(self.caller, verb)

        def ask() -> Awaitable[T]:
            return self.bus.ask(subject, request, reply, timeout_s=timeout_s)

        return await (self._persist(ask) if retry else ask())

    async def _persist(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do `work`, again after each pause while there is no answer or central is too busy for one.

        The wait_for inside nats-py (Python 3.11) drops a cancel that meets an answer: it is raised here then.
        """
        task = asyncio.current_task()
        cancels = task.cancelling() if task else 0
        for delay_s in (*self.retry_delays_s, None):
            try:
                answer = await work()
                if task and task.cancelling() > cancels:
                    raise asyncio.CancelledError
                return answer
            except* CyxError as group:  # a transfer in several tasks fails as a group
                error = first_of(group)
            pause_s = None if delay_s is None else retry_pause_s(error, delay_s)
            if pause_s is None:
                raise error
            if self.on_retry and pause_s >= 1:
                self.on_retry(str(error), pause_s)
            await self.bus.pause(pause_s)
        raise AssertionError("unreachable")


def retry_pause_s(error: BaseException, delay_s: float) -> float | None:
    """How long to wait before asking again; None: this error stays as it is."""
    if isinstance(error, NotAdmitted):
        return None
    if isinstance(error, BusError):
        return delay_s
    if isinstance(error, ApiError) and error.code == "price_expired" and delay_s > 1:
        return None  # asked again just now, another central had not taken the job; the price does not get younger
    if isinstance(error, ApiError) and error.status in TRIED_AGAIN:
        return max(delay_s, (error.retry_after_ms or 0) / 1000)
    return None


def new_request_id() -> str:
    """One for each wish, the same in all its tries: central carries it out once."""
    return secrets.token_hex(8)


def first_of(group: BaseException) -> BaseException:
    """The first plain exception of a group of groups."""
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group

"""Waiting until transactions are final: one question about all of them at a time, quick at first, then patient."""

import asyncio
import itertools
import logging

from cyxcore.errors import CyxError
from cyxnet.solana import STATUSES_AT_ONCE, Settlement, TransactionStatus

log = logging.getLogger(__name__)
FIRST_POLL_S, NEXT_POLL_S, LONGEST_POLL_S, POLL_GROWTH = 0.006, 0.003, 1.0, 1.5  # the quickest chain is final in 4 ms
SHARE_OF_TIME = 4  # asking takes at most one part in so many


class Landings:
    def __init__(self, settlement: Settlement):
        self._settlement = settlement
        self._waiting: dict[str, list[asyncio.Future[TransactionStatus]]] = {}
        self._pause_s, self._fresh = FIRST_POLL_S, True
        self._polling: asyncio.Task[None] | None = None

    async def final(self, signature: str) -> TransactionStatus:
        """How a transaction ended, once it is final. Waits for ever for one that never lands: give it a time limit."""
        future: asyncio.Future[TransactionStatus] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(signature, []).append(future)
        self._pause_s, self._fresh = FIRST_POLL_S, True
        if self._polling is None or self._polling.done():
            self._polling = asyncio.get_running_loop().create_task(self._poll())
        try:
            return await future
        finally:
            if future in (others := self._waiting.get(signature, [])):
                others.remove(future)
                if not others:
                    del self._waiting[signature]

    async def _poll(self) -> None:
        clock = asyncio.get_running_loop().time
        took_s = 0.0
        while True:
            await asyncio.sleep(max(self._pause_s, took_s * SHARE_OF_TIME))
            self._pause_s = NEXT_POLL_S if self._fresh else min(self._pause_s * POLL_GROWTH, LONGEST_POLL_S)
            self._fresh = False
            if not self._waiting:
                return
            begun_s = clock()
            try:
                await self._ask()
            except CyxError as error:
                log.info("cannot ask what has landed: %s", error)
            took_s = clock() - begun_s

    async def _ask(self) -> None:
        signatures = iter(list(self._waiting))
        while some := list(itertools.islice(signatures, STATUSES_AT_ONCE)):
            for signature, status in zip(some, await self._settlement.landings(some), strict=True):
                if status is not None and status.finalized:
                    for future in self._waiting.pop(signature, []):
                        if not future.done():
                            future.set_result(status)

    async def close(self) -> None:
        if self._polling:
            self._polling.cancel()
            await asyncio.gather(self._polling, return_exceptions=True)

"""The time that tokens and nonces go by: the broker's, which all centrals of a network share. Their own may differ."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from cyxcentral.machine import Machine
from cyxnet.outcomes import BusError

log = logging.getLogger(__name__)
LOOKED_MS = 60_000  # between two looks; what passes between them is measured here


class BrokerClock:
    """ask: what the broker's clock says now, in Unix ms; raises BusError."""

    def __init__(self, ask: Callable[[], Awaitable[int]], machine: Machine):
        self._ask, self._machine = ask, machine
        self._told_ms: int | None = None
        self._told_at = self._looked_at = 0.0  # of the clock that only runs forward
        self._looking = asyncio.Lock()

    async def look(self) -> None:
        """Hear it again when the last time is a while ago. Raises BusError where it was never heard."""
        if self._told_ms is not None and self._looking.locked():
            return  # what was heard before is good enough while somebody else asks
        async with self._looking:
            if self._told_ms is not None and self._machine.monotonic_ms() - self._looked_at < LOOKED_MS:
                return
            try:
                self._told_ms = await self._ask()
                self._told_at = self._machine.monotonic_ms()
            except BusError as error:
                if self._told_ms is None:
                    raise
                log.warning("the broker does not tell the time: %s", error)
            self._looked_at = self._machine.monotonic_ms()

    def now_ms(self) -> int:
        """Unix ms, behind a look."""
        assert self._told_ms is not None
        return self._told_ms + int(self._machine.monotonic_ms() - self._told_at)

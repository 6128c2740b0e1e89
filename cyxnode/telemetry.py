"""Metrics on their way to central: sent once, never waited for. A lost link costs some; training never pauses.

The newest epoch of each run is the exception: it is sent again when central is heard of again. A run of very short
epochs tells only some of them, and the last: whoever sends too much is not heard at all.
"""

import logging
import time
from collections.abc import Callable

from cyxcore.spec import BatchMetrics, EpochMetrics
from cyxnet import subjects
from cyxnet.bus import Bus, BusError
from cyxnet.codec import MSGPACK, encode
from cyxnet.messages import HardwareMetrics, Progress
from cyxnet.ratelimit import Rate, RateLimiter
from cyxnode.events import RunKey

log = logging.getLogger(__name__)
EPOCHS = Rate(per_s=100, burst=200)  # told to central, of all runs together; it takes 500 messages a second


class Telemetry:
    def __init__(self, bus: Bus, node_id: str, session: str, now_s: Callable[[], float] = time.monotonic):
        self.dropped = 0  # since the link was lost
        self._bus = bus
        self._node_id = node_id
        self._session = session
        self._unsent_epochs: dict[RunKey, EpochMetrics] = {}
        self._now_s = now_s
        self._epochs = RateLimiter(EPOCHS)

    async def batch(self, key: RunKey, metrics: BatchMetrics) -> None:
        await self._publish("progress", self._progress(key, batch=metrics))

    async def epoch(self, key: RunKey, metrics: EpochMetrics) -> None:
        if metrics.epoch != metrics.epochs and self._epochs.wait_ms("", self._now_s()):
            return
        if await self._publish("progress", self._progress(key, epoch=metrics)):
            self._unsent_epochs.pop(key, None)
        else:
            self._unsent_epochs[key] = metrics

    async def hardware(self, metrics: HardwareMetrics) -> None:
        await self._publish("hardware", metrics)

    async def link_is_back(self) -> None:
        """Central answered: say again what it missed."""
        for key, metrics in list(self._unsent_epochs.items()):
            await self.epoch(key, metrics)
        if self.dropped and self._bus.connected:
            log.warning("%d metrics were dropped while the broker was away", self.dropped)
            self.dropped = 0

    def forget(self, key: RunKey) -> None:
        self._unsent_epochs.pop(key, None)

    def _progress(self, key: RunKey, batch: BatchMetrics | None = None, epoch: EpochMetrics | None = None) -> Progress:
        job_id, attempt = key
        return Progress(
            node_id=self._node_id,
            session=self._session,
            job_id=job_id,
            attempt=attempt,
            batch=batch,
            epoch=epoch,
        )

    async def _publish(self, verb: str, message: Progress | HardwareMetrics) -> bool:
        try:
            await self._bus.publish(subjects.node(self._node_id, verb), encode(message, MSGPACK))
        except BusError:
            self.dropped += 1
            return False
        return True

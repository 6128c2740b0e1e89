"""A run's checkpoints on their way off this machine, while it trains on."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from cyxcore.errors import CyxError
from cyxnet.messages import ArtifactRef, Checkpoint
from cyxnode.pipe import Saved

log = logging.getLogger(__name__)


class Uploads:
    """Stores checkpoint files, one at a time; a newer one takes the place of one that is still on its way.

    put(path) stores a file, stored(checkpoint) is told when that is done. Each file is removed in the end, which
    tells the training process that it may write the next.
    """

    def __init__(self, put: Callable[[Path], Awaitable[ArtifactRef]], stored: Callable[[Checkpoint], object]):
        self._put = put
        self._stored = stored
        self._task: asyncio.Task[None] | None = None

    def offer(self, saved: Saved, path: Path) -> None:
        self._task = asyncio.create_task(self._store(saved, path, self._task))

    async def settle(self) -> None:
        """Until nothing is on its way."""
        if self._task:
            await asyncio.wait([self._task])

    async def close(self) -> None:
        if self._task:
            self._task.cancel()
            await self.settle()

    async def _store(self, saved: Saved, path: Path, before: "asyncio.Task[None] | None") -> None:
        try:
            if before:
                before.cancel()
                await asyncio.wait([before])
            state = await self._put(path)
            self._stored(Checkpoint(step=saved.step, steps=saved.steps, state=state))
        except CyxError as error:
            log.warning("the checkpoint of step %d is not stored: %s", saved.step, error)
        except Exception:
            log.exception("storing the checkpoint of step %d failed in the node itself", saved.step)
        finally:
            path.unlink(missing_ok=True)

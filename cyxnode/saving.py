"""When a run's checkpoints are due, and writing them: what the training process does between two steps."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cyxcore.training import Trainer
from cyxnode.pipe import NotSaved, Saved


class Saver:
    """Writes checkpoints of a trainer into `folder`, by steps and by seconds since the last one (0: not by that).

    The agent takes each file away when it is stored elsewhere; until then none follows by itself, so that at most one
    waits on the disk while another is written.
    """

    def __init__(
        self,
        trainer: Trainer,
        folder: Path,
        every_steps: int,
        every_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trainer, self._folder, self._clock = trainer, folder, clock
        self._every_steps, self._every_s = every_steps, every_s
        self._at_step, self._at_s = trainer.step, clock()
        self._newest: Path | None = None

    def due(self) -> bool:
        """Whether the policy wants a checkpoint of the step just made."""
        steps = self._trainer.step - self._at_step
        by_steps = 0 < self._every_steps <= steps
        by_time = 0 < self._every_s <= self._clock() - self._at_s
        return steps > 0 and (by_steps or by_time) and not (self._newest and self._newest.exists())

    def save(self) -> Iterator[Saved | NotSaved]:
        """Write one, unless no step was made since the last. What went wrong is told: training can go on without it."""
        step = self._trainer.step
        if step == self._at_step:
            return
        path, begun_s = self._folder / f"checkpoint-{step}", time.perf_counter()
        self._at_step, self._at_s = step, self._clock()
        try:
            # the folder goes with the process: a copy that outlives a loss of power is for where it is stored
            self._trainer.checkpoint(path, synced=False)
        except OSError as error:
            why = error.strerror or str(error)
            yield NotSaved(message=f"the checkpoint of step {step} cannot be written to this node's disk: {why}")
            return
        except MemoryError:
            yield NotSaved(message=f"there is no memory to write the checkpoint of step {step}")
            return
        self._newest = path
        write_ms = (time.perf_counter() - begun_s) * 1000
        yield Saved(step=step, steps=self._trainer.steps, file=path.name, write_ms=write_ms)

"""Parts of a training, trained once more for the digests of what they end with: for a check, and for `cyx verify`.

Nothing of it leaves this machine: no state, no model, no metrics.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from msgspec.structs import replace

from cyxnet.artifacts import describe
from cyxnet.messages import ArtifactRef, Segment
from cyxnode.pipe import Batch, Done, Epoch, Failed, Go, NotSaved, Order, Prepared, Saved
from cyxnode.process import TrainingProcess


def order_of(order: Order, segments: Sequence[Segment]) -> Order:
    """The order of a whole job, for these parts of it, which follow one another. resume_path: the first one's start."""
    *between, last = (segment.end_step for segment in segments)
    return replace(order, at_steps=between, end_step=last, every_steps=0, every_s=0.0)


async def ends_of(
    process: TrainingProcess, order: Order, told: Callable[[Prepared | Batch | Epoch], object]
) -> AsyncIterator[ArtifactRef | Failed]:
    """Train what order_of() made, and say what each part ends with: the state after it, or the model.

    The last is that of the last part, or Failed. told(message): how far it is. States are removed as soon as they are
    described; the rest goes with the process.
    """
    process.tell(order)
    process.tell(Go())
    async for said in process.said():
        match said:
            case Prepared() | Batch() | Epoch():
                told(said)
            case Saved(step=step, file=file):
                yield await _described(process.folder / file)
                (process.folder / file).unlink()
                if step == order.end_step:
                    return
            case Done() if not order.end_step:
                yield await _described(Path(order.out_path))
                return
            case NotSaved(message=message):
                yield Failed(code="no_state", message=message, deterministic=False)
                return
            case Failed():
                yield said
                return
            case _:
                break
    process.kill()
    where = f"step {order.end_step}" if order.end_step else "the end"
    why = f"the training process ended without what is there at {where}"
    yield Failed(code="process_garbled", message=why, deterministic=False)


async def _described(path: Path) -> ArtifactRef:
    found = await asyncio.to_thread(describe, path)
    return ArtifactRef(sha256=found.sha256, size=found.size)

"""A part of a training, trained once more for the digest of what it ends with: for a check, and for `cyx verify`.

Nothing of it leaves this machine: no state, no model, no metrics.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from cyxnet.artifacts import describe
from cyxnet.messages import ArtifactRef, Segment
from cyxnode.pipe import Batch, Done, Epoch, Failed, Go, Halted, NotSaved, Order, Prepared, Saved
from cyxnode.process import TrainingProcess


def order_of(order: Order, segment: Segment) -> Order:
    """The order of a whole job, for this part of it. resume_path: the segment's start already, None without one."""
    return replace(order, end_step=segment.end_step, every_steps=0, every_s=0.0)


async def end_of(
    process: TrainingProcess, order: Order, told: Callable[[Prepared | Batch | Epoch], object]
) -> ArtifactRef | Failed:
    """Train it, and say what the bytes at its end are: those of the state after order.end_step, or of the model.

    told(message): how far it is. The process is done with afterwards, and the bytes go with its folder.
    """
    process.tell(order)
    process.tell(Go())
    end_path = None
    async for said in process.said():
        match said:
            case Prepared() | Batch() | Epoch():
                told(said)
            case Saved(step=step, file=file) if step == order.end_step:
                end_path = process.folder / file
            case Done() if not order.end_step:
                end_path = Path(order.out_path)
            case NotSaved(message=message):
                return Failed(code="no_state", message=message, deterministic=False)
            case Failed():
                return said
            case Halted():
                pass
            case _:
                break
    if end_path is None or not end_path.is_file():
        process.kill()
        why = f"the training process ended without what is there at {_end(order)}"
        return Failed(code="process_garbled", message=why, deterministic=False)
    found = await asyncio.to_thread(describe, end_path)
    return ArtifactRef(sha256=found.sha256, size=found.size)


def _end(order: Order) -> str:
    return f"step {order.end_step}" if order.end_step else "the end"

"""Training rows as a job's transforms change them, keyed by (seed, step): the same on every node, resumed or not."""

from typing import Any, NamedTuple

import numpy as np

from cyxcore.data.augment import Augment
from cyxcore.drawing import AUGMENT_STEP
from cyxcore.transforms.running import perform

Array = np.ndarray[Any, Any]


class Augmented(NamedTuple):
    """Rows and targets of a step. second, share: the other target of rows that were mixed, and how much the first
    counts (N,) float32; None where nothing was mixed."""

    x: Array
    y: Array
    second: Array | None
    share: Array | None


def augmented(augment: Augment, x: Array, y: Array, seed: int, step: int) -> Augmented:
    """x (N, …) and y of the rows of a step (1-based)."""
    images = np.ascontiguousarray(x, np.float32).reshape(len(x), *augment.image_shape)
    batch = perform(list(augment.transforms), images, seed, AUGMENT_STEP + step, augment.white)
    second = None if batch.partners is None else y[batch.partners]
    return Augmented(batch.x.reshape(x.shape), y, second, batch.shares)


def mixed_values(rows: Augmented) -> Array:
    """Targets that are numbers, mixed as their rows were."""
    if rows.second is None or rows.share is None:
        return rows.y
    share = rows.share.reshape(-1, *[1] * (rows.y.ndim - 1))
    result: Array = rows.y * share + rows.second * (1 - share)
    return result

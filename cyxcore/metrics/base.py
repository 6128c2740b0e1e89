"""What every metric is: rows in, one number out, and a state that a checkpoint can hold."""

from typing import Any, ClassVar

import numpy as np

from cyxcore.errors import DataError

Array = np.ndarray[Any, Any]


class Metric:
    """A number over all rows that update() was given since reset().

    state: all that it remembers, as arrays, so that a checkpoint can hold it.
    """

    higher_is_better: ClassVar[bool] = True
    state: dict[str, Array]

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        self.state = {}

    def update(self, prediction: Any, target: Any) -> None:
        """Take rows in. Raises ShapeError or DataError where prediction and target do not fit."""
        raise NotImplementedError

    def compute(self) -> Any:
        """The metric of the rows so far; NaN where it is not defined."""
        raise NotImplementedError

    def _add(self, **sums: Any) -> None:
        for name, value in sums.items():
            self.state[name] = np.asarray(self.state.get(name, 0.0) + np.asarray(value, np.float64))

    def _sum(self, name: str) -> float:
        return float(self.state[name]) if name in self.state else 0.0


def numbers(values: Any, what: str) -> Array:
    found = np.asarray(values)
    if found.dtype.kind not in "biuf":
        raise DataError(f"metric: expected real numbers as {what}, got {found.dtype}")
    return found


def ratio(above: Any, below: Any, otherwise: float = 0.0) -> float:
    return float(above) / float(below) if below else otherwise

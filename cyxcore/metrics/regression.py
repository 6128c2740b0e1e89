"""Metrics of predicted values."""

import math
from typing import Any

import numpy as np

from cyxcore.errors import ShapeError
from cyxcore.metrics.base import Array, Metric, numbers, ratio


class _Distance(Metric):
    """Of values: prediction and target of one shape."""

    higher_is_better = False

    def _pair(self, prediction: Any, target: Any) -> tuple[Array, Array]:
        found = numbers(prediction, "predictions").astype(np.float64)
        truth = numbers(target, "targets").astype(np.float64)
        if found.size == truth.size and {found.ndim, truth.ndim} == {1, 2} and 1 in (found.shape[-1], truth.shape[-1]):
            found = found.reshape(truth.shape)  # (N, 1) and (N,)
        if found.shape != truth.shape:
            raise ShapeError(f"{type(self).__name__}: expected predictions {truth.shape}, got {found.shape}")
        return found, truth


class MeanAbsoluteError(_Distance):
    """The mean of |prediction - target|."""

    def update(self, prediction: Any, target: Any) -> None:
        found, truth = self._pair(prediction, target)
        self._add(total=np.abs(found - truth).sum(), count=found.size)

    def compute(self) -> float:
        return ratio(self._sum("total"), self._sum("count"), math.nan)


class MeanSquaredError(_Distance):
    """The mean of (prediction - target)²."""

    def update(self, prediction: Any, target: Any) -> None:
        found, truth = self._pair(prediction, target)
        self._add(total=np.square(found - truth).sum(), count=found.size)

    def compute(self) -> float:
        return ratio(self._sum("total"), self._sum("count"), math.nan)


class RootMeanSquaredError(MeanSquaredError):
    """The root of the mean squared error of all numbers; scikit-learn's takes the mean of each output's root."""

    def compute(self) -> float:
        return math.sqrt(super().compute())


class R2(_Distance):
    """1 - SSE / SST, the mean over outputs; an output with constant targets counts 0, or 1 where it is met.

    Sums of squares about the mean are joined batch by batch (Chan, Golub and LeVeque 1979), so nothing cancels. Means
    are of distances from the first row: those of a constant are exactly 0, while the mean of 0.1 often is not 0.1.
    """

    higher_is_better = True

    def update(self, prediction: Any, target: Any) -> None:
        found, truth = self._pair(prediction, target)
        if not truth.size:
            return
        rows, before = float(len(truth)) if truth.ndim else 1.0, self._sum("rows")
        found, truth = found.reshape(int(rows), -1), truth.reshape(int(rows), -1)
        if "first" not in self.state:
            self.state["first"] = truth[0].copy()
        errors = np.square(found - truth).sum(0)
        truth = truth - self.state["first"]
        mean = truth.mean(0)
        spread = np.square(truth - mean).sum(0)
        delta = mean - self.state.get("mean", mean)
        self._add(errors=errors, rows=rows)
        self._add(spread=spread + delta * delta * (before * rows / (before + rows)))
        self.state["mean"] = self.state.get("mean", mean) + delta * (rows / (before + rows))

    def compute(self) -> float:
        if self._sum("rows") < 2:
            return math.nan
        errors, spread = self.state["errors"], self.state["spread"]
        scores = np.where(spread > 0, 1.0 - errors / np.where(spread > 0, spread, 1.0), np.where(errors > 0, 0.0, 1.0))
        return float(scores.mean())

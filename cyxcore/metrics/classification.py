"""Metrics of predicted classes and of the scores they come from."""

import importlib
import math
from typing import Any, Literal

import numpy as np

from cyxcore.errors import DataError, ShapeError, SpecError
from cyxcore.metrics.base import Array, Metric, numbers, ratio

Average = Literal["binary", "macro", "micro", "weighted"]
AVERAGES = ("binary", "macro", "micro", "weighted")
MOST_IN_MATRIX, MOST_COUNTED = 8192, 2**22  # classes: a matrix of them takes 512 MiB, three counts of each 96 MiB
ROUNDING = 1e-3  # how far from 0 to 1 a probability may be: those of a float16 or bfloat16 are
LEAST_PROBABILITY = float(np.finfo(np.float64).eps)  # what a probability of 0 counts as in a logarithm


def _labels(target: Any, what: str = "targets") -> Array:
    found = numbers(target, what)
    if found.dtype.kind == "f" and not (found == np.floor(found)).all():
        raise DataError(f"metric: expected class indices as {what}, got fractions or NaN")
    found = found.astype(np.int64)
    return found[:, 0] if found.ndim == 2 and found.shape[1] == 1 else found


def classes(prediction: Any, target: Any, logits: bool = True) -> tuple[Array, Array, int]:
    """(predicted classes, true classes, how many classes the prediction has scores for), flat.

    Raises ShapeError where the shapes do not fit.
    """
    scores, truth = numbers(prediction, "predictions"), _labels(target)
    if scores.ndim == truth.ndim + 1 and scores.shape[1] > 1:
        found, count = scores.argmax(1), scores.shape[1]
    else:
        found = scores.reshape(truth.shape) if scores.size == truth.size else scores
        count = 2 if found.dtype.kind == "f" else 0
        found = (found > (0.0 if logits else 0.5)) if found.dtype.kind == "f" else _labels(found, "predictions")
    if found.shape != truth.shape:
        raise ShapeError(
            f"metric: expected predictions {truth.shape} or (N, C, …) for targets {truth.shape}, got {scores.shape}"
        )
    return found.reshape(-1).astype(np.int64), truth.reshape(-1), count


class _Classes(Metric):
    """Of predicted and true classes. ignore_index: targets of that value count nothing."""

    most_classes = MOST_COUNTED

    def __init__(self, logits: bool = True, ignore_index: int = -100) -> None:
        self.logits, self.ignore_index = logits, ignore_index
        super().__init__()

    def update(self, prediction: Any, target: Any) -> None:
        found, truth, count = classes(prediction, target, self.logits)
        counted = truth != self.ignore_index
        found, truth = found[counted], truth[counted]
        if found.size and (found.min() < 0 or truth.min() < 0):
            raise DataError(f"metric: expected classes from 0, got {min(found.min(), truth.min())}")
        size = max(count, int(found.max(initial=-1)) + 1, int(truth.max(initial=-1)) + 1)
        if size > self.most_classes:
            raise DataError(
                f"{type(self).__name__}: expected classes below {self.most_classes}, got {size - 1}; "
                "targets that are values, not classes, go into mae, mse or r2"
            )
        self._take(found, truth, size)

    def _take(self, found: Array, truth: Array, size: int) -> None:
        """Count rows whose classes are below `size`."""
        raise NotImplementedError


class ConfusionMatrix(_Classes):
    """compute(): (C, C) int64, rows of the true class, columns of the predicted one. classes: C at least.

    ignore_index: targets of that value count nothing.
    """

    most_classes = MOST_IN_MATRIX

    def __init__(self, classes: int = 0, logits: bool = True, ignore_index: int = -100) -> None:
        if not 0 <= classes <= MOST_IN_MATRIX:
            raise SpecError(f"ConfusionMatrix: expected classes from 0 to {MOST_IN_MATRIX}, got {classes}")
        self.classes = classes
        super().__init__(logits, ignore_index)

    def _take(self, found: Array, truth: Array, size: int) -> None:
        held = self.matrix
        size = max(size, len(held))
        new = np.bincount(truth * size + found, minlength=size * size).reshape(size, size)
        new[: len(held), : len(held)] += held
        self.state["matrix"] = new

    @property
    def matrix(self) -> Array:
        """The counts so far, (C, C) int64."""
        found = self.state.get("matrix")
        return np.zeros((self.classes, self.classes), np.int64) if found is None else found

    def compute(self) -> Any:
        return self.matrix.copy()


class _Counted(_Classes):
    """Of the diagonal of the confusion matrix and its sums alone, which take memory for C numbers, not for C²."""

    def _take(self, found: Array, truth: Array, size: int) -> None:
        each = {"right": truth[truth == found], "predicted": found, "true": truth}
        for name, labels in each.items():
            held = self._count(name)
            new = np.bincount(labels, minlength=max(size, len(held)))
            new[: len(held)] += held
            self.state[name] = new

    def _count(self, name: str) -> Array:
        return self.state.get(name, np.zeros(0, np.int64))

    @property
    def counts(self) -> tuple[Array, Array, Array]:
        """Rows by class, (C,) int64 each: rightly predicted, predicted, true."""
        return self._count("right"), self._count("predicted"), self._count("true")


class Accuracy(_Counted):
    """The share of rows whose class is right."""

    def compute(self) -> float:
        right, _, true = self.counts
        return ratio(right.sum(), true.sum(), math.nan)


class TopKAccuracy(Metric):
    """The share of rows whose class is among the k with the largest scores; the lower of equals is first."""

    def __init__(self, k: int = 5) -> None:
        if k < 1:
            raise SpecError(f"TopKAccuracy: expected k of at least 1, got {k}")
        self.k = k
        super().__init__()

    def update(self, prediction: Any, target: Any) -> None:
        scores, truth = numbers(prediction, "predictions"), _labels(target)
        if scores.ndim != 2 or truth.shape != scores.shape[:1]:
            raise ShapeError(f"top-k: expected scores (N, C) and targets (N,), got {scores.shape} and {truth.shape}")
        order = np.argsort(-scores, axis=1, kind="stable")[:, : self.k]
        self._add(right=(order == truth[:, None]).any(1).sum(), rows=len(truth))

    def compute(self) -> float:
        return ratio(self._sum("right"), self._sum("rows"), math.nan)


class _PerClass(_Counted):
    """A ratio per class, averaged. binary: that of class 1. micro: of the counts summed over classes. macro: the mean
    over the classes that are there. weighted: the mean by true rows. A ratio of nothing is 0.
    """

    def __init__(self, average: Average = "binary", logits: bool = True, ignore_index: int = -100) -> None:
        if average not in AVERAGES:
            raise SpecError(
                f"{type(self).__name__}: expected average to be one of {', '.join(AVERAGES)}, got {average!r}"
            )
        self.average = average
        super().__init__(logits, ignore_index)

    def _of(self, right: Any, predicted: Any, true: Any) -> float:
        raise NotImplementedError

    def compute(self) -> float:
        right, predicted, true = self.counts
        if self.average == "binary":
            if len(true) > 2:
                raise SpecError(
                    f"{type(self).__name__}: average='binary' is for two classes, the targets or predictions have "
                    f"{len(true)}; choose macro, micro or weighted"
                )
            return self._of(right[1], predicted[1], true[1]) if len(true) == 2 else 0.0
        if self.average == "micro":
            return self._of(right.sum(), predicted.sum(), true.sum())
        each = [self._of(*counts) for counts in zip(right, predicted, true, strict=True)]
        if self.average == "weighted":
            return ratio(sum(value * count for value, count in zip(each, true, strict=True)), true.sum())
        there = [value for value, count in zip(each, predicted + true, strict=True) if count]
        return ratio(math.fsum(there), len(there))


class Precision(_PerClass):
    """Right among what was predicted to be of the class."""

    def _of(self, right: Any, predicted: Any, true: Any) -> float:
        return ratio(right, predicted)


class Recall(_PerClass):
    """Found among what is of the class."""

    def _of(self, right: Any, predicted: Any, true: Any) -> float:
        return ratio(right, true)


class F1(_PerClass):
    """The harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN)."""

    def _of(self, right: Any, predicted: Any, true: Any) -> float:
        return ratio(2 * right, predicted + true)


class CohenKappa(_Counted):
    """Agreement beyond chance, (p_observed - p_chance) / (1 - p_chance) (Cohen 1960)."""

    def compute(self) -> float:
        right, predicted, true = (each.astype(np.float64) for each in self.counts)
        rows = true.sum()
        if not rows:
            return math.nan
        chance = float(predicted @ true) / float(rows) ** 2
        return ratio(float(right.sum() / rows) - chance, 1.0 - chance, math.nan)


class MatthewsCorrelation(_Counted):
    """The correlation of true and predicted classes; of more than two, R_K (Gorodkin 2004); 0 where it has none."""

    def compute(self) -> float:
        right, predicted, true = (each.astype(np.float64) for each in self.counts)
        rows = true.sum()
        covariance = right.sum() * rows - predicted @ true
        spread = (rows**2 - predicted @ predicted) * (rows**2 - true @ true)
        return ratio(covariance, math.sqrt(spread)) if spread > 0 else 0.0


class _Ranked(Metric):
    """Of scores: keeps every one, since ranks need all of them.

    Two classes: one score per row, the larger the likelier class 1, or (N, 2), of which the difference counts; targets
    0 or 1. More: scores (N, C, …), each class against all others by its probability (logits are turned into those).
    average: macro is the mean over the classes that have rows, weighted the mean by their rows.
    """

    def __init__(self, average: Literal["macro", "weighted"] = "macro", logits: bool = True) -> None:
        if average not in ("macro", "weighted"):
            raise SpecError(f"{type(self).__name__}: expected average to be one of macro, weighted, got {average!r}")
        self.average, self.logits = average, logits
        super().__init__()

    def update(self, prediction: Any, target: Any) -> None:
        scores, truth = numbers(prediction, "scores").astype(np.float64), _labels(target)
        name = type(self).__name__
        count = scores.shape[1] if scores.ndim == truth.ndim + 1 and scores.shape[1] > 2 else 2
        if count > 2:
            scores = np.moveaxis(scores, 1, -1).reshape(-1, count)
            scores = _by_kernel("log_softmax", scores, axis=1) if self.logits else scores
        elif scores.ndim == 2 and scores.shape[1] == 2:
            with np.errstate(invalid="ignore"):  # of infinities: told below
                scores = scores[:, 1] - scores[:, 0]
        if np.isnan(scores).any():
            raise DataError(f"{name}: expected scores that are numbers, got NaN")
        scores = scores if count > 2 else scores.reshape(-1)
        kept = self.state.get("scores", scores[:0])
        if len(scores) != truth.size or kept.shape[1:] != scores.shape[1:]:
            wanted = f"(N, {kept.shape[1]}), as before," if kept.ndim > 1 else "(N,), (N, 2) or (N, C, …)"
            raise ShapeError(f"{name}: expected scores {wanted} for targets {truth.shape}, got {np.shape(prediction)}")
        truth = truth.reshape(-1)
        if not np.isin(truth, range(count)).all():
            wanted = "0 and 1" if count == 2 else f"0..{count - 1}"
            raise DataError(f"{name}: expected targets {wanted}, got {np.unique(truth)[:5].tolist()}")
        self.state["scores"] = np.concatenate([kept, scores])
        self.state["targets"] = np.concatenate([self.state.get("targets", np.zeros(0)), truth])

    def compute(self) -> float:
        if "scores" not in self.state:
            return math.nan
        scores, truth = self.state["scores"], self.state["targets"]
        if scores.ndim == 1:
            return self._of(scores, truth)
        rows = {place: int((truth == place).sum()) for place in range(scores.shape[1])}
        each = {place: self._of(scores[:, place], truth == place) for place, count in rows.items() if count}
        weights = {place: rows[place] if self.average == "weighted" else 1 for place in each}
        return ratio(math.fsum(weights[place] * area for place, area in each.items()), sum(weights.values()), math.nan)

    def _of(self, scores: Array, truth: Array) -> float:
        """Of two classes; NaN where it is not defined."""
        raise NotImplementedError


def _steps(scores: Array, truth: Array) -> tuple[Array, Array]:
    """(true positives, false positives) above each distinct score, the highest first."""
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # a difference of infinities is NaN
    positives = np.cumsum(truth[order].astype(np.float64))[ends]
    return positives, ends + 1 - positives


class RocAuc(_Ranked):
    """The area under the ROC curve: how likely a row of the class scores above one of another, ties counting half."""

    def _of(self, scores: Array, truth: Array) -> float:
        if not len(truth) or truth.min() == truth.max():
            return math.nan
        positives, negatives = _steps(scores, truth)
        before = np.concatenate([[0.0], positives[:-1]])
        area = ((positives + before) / 2 * np.diff(negatives, prepend=0.0)).sum()
        return float(area / (positives[-1] * negatives[-1]))


class AveragePrecision(_Ranked):
    """The precision at each score, weighted by the recall it adds."""

    def _of(self, scores: Array, truth: Array) -> float:
        if not truth.any():
            return math.nan
        positives, negatives = _steps(scores, truth)
        precision = positives / (positives + negatives)
        return float((np.diff(positives, prepend=0.0) * precision).sum() / positives[-1])


def _by_kernel(op: str, x: Array, **attrs: Any) -> Array:
    """As our own kernels compute it, which are the same on every processor. NumPy's exp and log are not, and what a
    metric says is a part of states and models, which are compared by their digests.
    """
    out = np.empty_like(x, order="C")
    importlib.import_module("cyxcore.kernels.cpu").call(op, out, [np.ascontiguousarray(x)], attrs)
    return out


class LogLoss(Metric):
    """The mean of -log p(true class), in nats. logits: scores of any size, turned into probabilities by softmax (C
    classes) or the logistic function (one score per row); otherwise probabilities.
    """

    higher_is_better = False

    def __init__(self, logits: bool = True, ignore_index: int = -100) -> None:
        self.logits, self.ignore_index = logits, ignore_index
        super().__init__()

    def update(self, prediction: Any, target: Any) -> None:
        scores, truth = numbers(prediction, "predictions").astype(np.float64), _labels(target)
        if scores.ndim == truth.ndim + 1 and scores.shape[1] > 1:
            scores = np.moveaxis(scores, 1, -1).reshape(-1, scores.shape[1])
        elif scores.size == truth.size:
            one = scores.reshape(-1, 1)
            scores = np.concatenate([np.zeros_like(one) if self.logits else 1.0 - one, one], 1)
        if scores.ndim != 2 or len(scores) != truth.size:
            raise ShapeError(f"log loss: expected scores (N, C, …) for targets {truth.shape}, got {scores.shape}")
        truth = truth.reshape(-1)
        counted = truth != self.ignore_index
        scores, truth = scores[counted], truth[counted]
        if not self.logits and ((scores < -ROUNDING) | (scores > 1 + ROUNDING)).any():
            got = f"{scores.min():g} to {scores.max():g}"
            raise DataError(
                f"log loss: expected probabilities from 0 to 1, got {got}; of scores, leave out logits=False"
            )
        if truth.size and not 0 <= truth.min() <= truth.max() < scores.shape[1]:
            raise DataError(f"log loss: expected classes 0..{scores.shape[1] - 1}, got {truth.min()}..{truth.max()}")
        places = np.arange(len(truth)), truth
        if self.logits:
            losses = -_by_kernel("log_softmax", scores, axis=1)[places]
        else:
            losses = -_by_kernel("log", np.clip(scores[places], LEAST_PROBABILITY, 1.0))
        self._add(total=losses.sum(), rows=len(losses))

    def compute(self) -> float:
        return ratio(self._sum("total"), self._sum("rows"), math.nan)


class Perplexity(LogLoss):
    """exp of the log loss: among how many equally likely classes (tokens) the model still has to guess."""

    def compute(self) -> float:
        return float(_by_kernel("exp", np.array([min(super().compute(), 700.0)]))[0])

"""Metrics against scikit-learn: of all rows at once, and of the same rows batch by batch."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
from sklearn import metrics as theirs

import cyxcore as cx
from cyxcore import metrics
from cyxcore.errors import DataError, ShapeError, SpecError
from cyxcore.spec import MetricName

RNG = np.random.default_rng(3)
ROWS, CLASSES = 211, 7
LOGITS = RNG.normal(size=(ROWS, CLASSES)).astype(np.float32)
LABELS = np.where(RNG.random(ROWS) < 0.5, LOGITS.argmax(1), RNG.integers(0, CLASSES - 1, ROWS))
FOUND = LOGITS.argmax(1)
SOFTMAX = np.exp(LOGITS.astype(np.float64)) / np.exp(LOGITS.astype(np.float64)).sum(1, keepdims=True)
SCORES = np.round(RNG.normal(size=ROWS), 1)  # many ties
SIDES = (SCORES + RNG.normal(size=ROWS) > 0).astype(np.int64)
VALUES = RNG.normal(size=(ROWS, 2)) * [1.0, 50.0] + [1000.0, 0.0]
GUESSES = VALUES + RNG.normal(size=(ROWS, 2))

CASES: dict[str, tuple[Callable[[], metrics.Metric], Any, Any, float]] = {
    "accuracy": (metrics.Accuracy, LOGITS, LABELS, theirs.accuracy_score(LABELS, FOUND)),
    "top-3": (
        lambda: metrics.TopKAccuracy(3),
        LOGITS,
        LABELS,
        theirs.top_k_accuracy_score(LABELS, LOGITS, k=3, labels=range(CLASSES)),
    ),
    **{
        f"{name} {average}": (
            lambda make=make, average=average: make(average=average),
            LOGITS,
            LABELS,
            oracle(LABELS, FOUND, average=average, zero_division=0),
        )
        for name, make, oracle in (
            ("precision", metrics.Precision, theirs.precision_score),
            ("recall", metrics.Recall, theirs.recall_score),
            ("f1", metrics.F1, theirs.f1_score),
        )
        for average in ("macro", "micro", "weighted")
    },
    "precision binary": (metrics.Precision, SCORES, SIDES, theirs.precision_score(SIDES, SCORES > 0)),
    "recall binary": (metrics.Recall, SCORES[:, None], SIDES[:, None], theirs.recall_score(SIDES, SCORES > 0)),
    "f1 binary": (metrics.F1, SCORES, SIDES.astype(np.float32), theirs.f1_score(SIDES, SCORES > 0)),
    "roc auc": (metrics.RocAuc, SCORES, SIDES, theirs.roc_auc_score(SIDES, SCORES)),
    "average precision": (metrics.AveragePrecision, SCORES, SIDES, theirs.average_precision_score(SIDES, SCORES)),
    **{
        f"{name} {average} of {form}": (
            lambda make=make, average=average, form=form: make(average=average, logits=form == "logits"),
            LOGITS if form == "logits" else SOFTMAX,
            LABELS,
            oracle(average),
        )
        for name, make, oracle in (
            (
                "roc auc",
                metrics.RocAuc,
                lambda how: theirs.roc_auc_score(LABELS, SOFTMAX, multi_class="ovr", average=how),
            ),
            (
                "average precision",
                metrics.AveragePrecision,
                lambda how: theirs.average_precision_score(LABELS, SOFTMAX, average=how),
            ),
        )
        for average in ("macro", "weighted")
        for form in ("logits", "probabilities")
    },
    "kappa": (metrics.CohenKappa, LOGITS, LABELS, theirs.cohen_kappa_score(LABELS, FOUND)),
    "mcc": (metrics.MatthewsCorrelation, LOGITS, LABELS, theirs.matthews_corrcoef(LABELS, FOUND)),
    "log loss": (metrics.LogLoss, LOGITS, LABELS, theirs.log_loss(LABELS, SOFTMAX, labels=range(CLASSES))),
    "log loss of probabilities": (
        lambda: metrics.LogLoss(logits=False),
        SOFTMAX,
        LABELS,
        theirs.log_loss(LABELS, SOFTMAX, labels=range(CLASSES)),
    ),
    "log loss of one score": (metrics.LogLoss, SCORES, SIDES, theirs.log_loss(SIDES, 1 / (1 + np.exp(-SCORES)))),
    "perplexity": (
        metrics.Perplexity,
        LOGITS,
        LABELS,
        math.exp(theirs.log_loss(LABELS, SOFTMAX, labels=range(CLASSES))),
    ),
    "mae": (metrics.MeanAbsoluteError, GUESSES, VALUES, theirs.mean_absolute_error(VALUES, GUESSES)),
    "mse": (metrics.MeanSquaredError, GUESSES, VALUES, theirs.mean_squared_error(VALUES, GUESSES)),
    "rmse": (metrics.RootMeanSquaredError, GUESSES, VALUES, math.sqrt(theirs.mean_squared_error(VALUES, GUESSES))),
    "r2": (metrics.R2, GUESSES, VALUES, theirs.r2_score(VALUES, GUESSES)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_metric_is_scikit_learns_at_once_and_in_batches(name: str) -> None:
    make, prediction, target, expected = CASES[name]
    whole, parts = make(), make()
    whole.update(cx.tensor(prediction), cx.tensor(target))
    for start in range(0, ROWS, 50):
        parts.update(prediction[start : start + 50], target[start : start + 50])
    assert whole.compute() == pytest.approx(expected, rel=1e-6)
    assert parts.compute() == pytest.approx(expected, rel=1e-6)
    parts.reset()
    parts.update(prediction, target)
    assert parts.compute() == whole.compute()


@pytest.mark.parametrize("name", CASES)
def test_the_state_of_a_metric_takes_it_up_where_it_was(name: str) -> None:
    make, prediction, target, _ = CASES[name]
    first, second = make(), make()
    first.update(prediction[:99], target[:99])
    second.state = {key: array.copy() for key, array in first.state.items()}
    for metric in (first, second):
        metric.update(prediction[99:], target[99:])
    assert first.compute() == second.compute()


@pytest.mark.parametrize("rows_at_a_time", [1, 7, 63])
def test_r2_of_constant_targets_is_0_or_1_however_their_mean_is_rounded(rows_at_a_time: int) -> None:
    missed, met = metrics.R2(), metrics.R2()
    target = np.full((63, 2), [0.1, 1 / 3])
    for start in range(0, 63, rows_at_a_time):
        some = target[start : start + rows_at_a_time]
        missed.update(some + 0.2, some)
        met.update(some, some)
    assert missed.compute() == 0.0 and met.compute() == 1.0


def test_equal_scores_tie_also_where_they_are_infinite() -> None:
    scores, sides = np.array([np.inf, np.inf, -np.inf, -np.inf]), np.array([0, 1, 1, 0])
    finite = np.sign(scores)
    assert metrics.roc_auc(scores, sides) == theirs.roc_auc_score(sides, finite)
    assert metrics.average_precision(scores, sides) == theirs.average_precision_score(sides, finite)


def test_one_metric_needs_no_list() -> None:
    assert list(metrics.named("accuracy")) == ["accuracy"] and list(metrics.named(metrics.R2())) == ["r2"]


def test_the_confusion_matrix_is_scikit_learns() -> None:
    expected = theirs.confusion_matrix(LABELS, FOUND, labels=range(CLASSES))
    assert metrics.confusion_matrix(LOGITS, LABELS).tolist() == expected.tolist()
    assert metrics.confusion_matrix(FOUND, LABELS).tolist() == expected.tolist()


def test_functions_take_the_options_of_their_metric() -> None:
    assert metrics.f1(FOUND, LABELS, average="macro") == theirs.f1_score(LABELS, FOUND, average="macro")
    assert metrics.accuracy([0.4, 0.7], [0, 1], logits=False) == 1.0
    assert metrics.perplexity(np.zeros((4, 8)), [0, 1, 2, 3]) == pytest.approx(8.0)


def test_every_class_of_an_image_and_ignored_targets_count() -> None:
    scores = RNG.normal(size=(2, 3, 4, 5))
    target = scores.argmax(1)
    target[0, 0, :2] = -100
    assert metrics.accuracy(scores, target) == 1.0
    assert metrics.confusion_matrix(scores, target).sum() == 38


def test_metrics_of_nothing_are_not_numbers() -> None:
    assert math.isnan(metrics.Accuracy().compute()) and math.isnan(metrics.R2().compute())
    assert math.isnan(metrics.roc_auc([0.1, 0.2], [1, 1])) and math.isnan(metrics.average_precision([0.1], [0]))
    assert math.isnan(metrics.MeanAbsoluteError().compute())
    assert math.isnan(metrics.r2(np.zeros(0), np.zeros(0))) and math.isnan(metrics.r2(1.0, 2.0))


def test_ranks_of_classes_without_rows_count_nothing() -> None:
    truth = [0, 1, 1, 0]
    scores = np.array([[2.0, 1, 0], [0, 3, 1], [1, 2, 2], [0, 1, -1]])
    present = [metrics.roc_auc(np.exp(scores[:, k]) / np.exp(scores).sum(1), np.equal(truth, k)) for k in (0, 1)]
    assert metrics.roc_auc(scores, truth) == pytest.approx(sum(present) / 2)
    assert math.isnan(metrics.roc_auc(scores, [1, 1, 1, 1])) and metrics.average_precision(scores, [1, 1, 1, 1]) == 1.0
    images = np.stack([scores, scores], 2)  # (N, C, 2)
    assert metrics.roc_auc(images, np.stack([truth, truth], 1)) == metrics.roc_auc(scores, truth)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_each_named_metric_can_be_made_and_says_which_way_is_better(name: str) -> None:
    assert list(metrics.named([name])) == [name]
    assert metrics.higher_is_better(f"validation_{name}") == (name not in "log_loss perplexity mae mse rmse".split())


@pytest.mark.parametrize(
    "call, error, text",
    [
        (lambda: metrics.named(["acuracy"]), SpecError, "expected names out of accuracy, top_5_accuracy"),
        (lambda: metrics.named(3), SpecError, "expected names or metrics, got int"),
        (lambda: metrics.log_loss([[5.0, 9.0]], [1], logits=False), DataError, "probabilities from 0 to 1, got 5 to 9"),
        (lambda: metrics.named([3]), SpecError, "expected names or metrics, got int"),
        (lambda: metrics.F1(average="mean"), SpecError, "one of binary, macro, micro, weighted, got 'mean'"),
        (lambda: metrics.f1(FOUND, LABELS), SpecError, "two classes, the targets or predictions have 7"),
        (lambda: metrics.TopKAccuracy(0), SpecError, "k of at least 1, got 0"),
        (lambda: metrics.accuracy(LOGITS, LABELS[:9]), ShapeError, r"predictions \(9,\) or \(N, C, …\)"),
        (lambda: metrics.accuracy(LABELS, LABELS + 0.5), DataError, "class indices as targets, got fractions"),
        (lambda: metrics.accuracy([-1], [0]), DataError, "classes from 0, got -1"),
        (lambda: metrics.roc_auc(SCORES, LABELS), DataError, r"targets 0 and 1, got \[0, 1, 2, 3, 4\]"),
        (lambda: metrics.roc_auc([math.nan], [1]), DataError, "scores that are numbers, got NaN"),
        (lambda: metrics.mae(GUESSES, VALUES[:, 0]), ShapeError, r"predictions \(211,\), got \(211, 2\)"),
        (lambda: metrics.log_loss(LOGITS, LABELS + 3), DataError, r"classes 0\.\.6, got"),
        (lambda: metrics.mae(["a"], [1]), DataError, "real numbers as predictions"),
    ],
)
def test_what_does_not_fit_is_said(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_metrics_of_many_classes_need_no_matrix_of_them() -> None:
    target = np.array([0, 49_999, 3])
    for make in (metrics.Accuracy, metrics.CohenKappa, lambda: metrics.F1("macro")):
        metric = make()
        metric.update(np.array([0, 49_999, 7]), target)
        assert metric.compute() > 0.4
        assert sum(array.nbytes for array in metric.state.values()) < 2_000_000


@pytest.mark.parametrize("function", [metrics.accuracy, metrics.confusion_matrix, metrics.cohen_kappa])
def test_values_in_place_of_classes_are_refused_before_memory_is_taken_for_them(function: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match="expected classes below .*, got 1000000000"):
        function(np.array([1, 2]), np.array([10**9, 2]))


def test_a_confusion_matrix_of_a_negative_size_is_refused() -> None:
    with pytest.raises(SpecError, match="expected classes from 0 to"):
        metrics.ConfusionMatrix(-3)


EVERY_METRIC = """
import sys
import numpy as np
from typing import get_args
from cyxcore import metrics
from cyxcore.spec import OF_VALUES, MetricName
dice = np.random.default_rng(0)
scores, labels, values = dice.normal(size=(1998, 7)), dice.integers(0, 7, 1998), dice.normal(size=(2, 1998, 2))
for name in get_args(MetricName):
    for start in range(0, 1998, 3):  # few rows each: the last bit of one is lost in the sum of many
        some = slice(start, start + 3)
        given = values[:, some] if name in OF_VALUES else (scores[some], labels[some])
        if name in ("precision", "recall", "f1", "roc_auc", "average_precision"):  # of two classes
            given = scores[some, 0], labels[some] > 3
        metric = metrics.METRICS[name]()
        metric.update(*given)
        print(name, float(metric.compute()).hex())
"""


def test_a_metric_has_the_same_bits_where_numpy_has_other_registers() -> None:
    # what a job asks for is in its states: an honest node was rejected by a checker with another processor
    from numpy._core._multiarray_umath import __cpu_dispatch__ as beyond_the_least

    found = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", EVERY_METRIC],
            env={**os.environ, "NPY_DISABLE_CPU_FEATURES": without},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
        for without in ("", " ".join(beyond_the_least))
    }
    assert len(found) == 1 and found.pop().count("\n") == 666 * len(get_args(MetricName))

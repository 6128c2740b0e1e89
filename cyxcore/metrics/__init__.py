"""How good predictions are: metrics that take batches one after another, and functions of whole arrays.

    f1 = F1(average="macro")
    for output, target in batches:
        f1.update(output, target)
    f1.compute()                                  # over all rows since reset()
    cx.metrics.f1(output, target, average="macro")  # the same of one pair

What a model puts out goes in as it is. Classes: integers like the target's, or scores (N, C, …), of which the largest
wins; for two classes also one number per row, a logit (positive above 0) or, with logits=False, a probability (positive
above 0.5). Values: numbers of the target's shape. Definitions are those of scikit-learn, which the tests compare with.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from cyxcore.errors import SpecError
from cyxcore.metrics.base import Metric
from cyxcore.metrics.classification import (
    F1,
    Accuracy,
    AveragePrecision,
    CohenKappa,
    ConfusionMatrix,
    LogLoss,
    MatthewsCorrelation,
    Perplexity,
    Precision,
    Recall,
    RocAuc,
    TopKAccuracy,
)
from cyxcore.metrics.regression import R2, MeanAbsoluteError, MeanSquaredError, RootMeanSquaredError

# What a job file or Trainer(metrics=[...]) may name. Names are fields of histories: none is ever renamed.
METRICS: dict[str, Callable[[], Metric]] = {
    "accuracy": Accuracy,
    "top_5_accuracy": TopKAccuracy,
    "precision": Precision,
    "recall": Recall,
    "f1": F1,
    **{
        f"{name}_{average}": partial(make, average=average)
        for name, make in (("precision", Precision), ("recall", Recall), ("f1", F1))
        for average in ("macro", "micro", "weighted")
    },
    "roc_auc": RocAuc,
    "average_precision": AveragePrecision,
    "log_loss": LogLoss,
    "perplexity": Perplexity,
    "cohen_kappa": CohenKappa,
    "matthews_correlation": MatthewsCorrelation,
    "mae": MeanAbsoluteError,
    "mse": MeanSquaredError,
    "rmse": RootMeanSquaredError,
    "r2": R2,
}


def named(metrics: Any) -> dict[str, Metric]:
    """Metrics by name, from a mapping of them, a list of names and metrics, or one. Raises SpecError for an unknown
    name."""
    found: dict[str, Metric] = {}
    if isinstance(metrics, str | Metric):
        metrics = [metrics]
    if not isinstance(metrics, Iterable):
        raise SpecError(f"metrics: expected names or metrics, got {type(metrics).__name__}")
    items = metrics.items() if isinstance(metrics, Mapping) else [(None, each) for each in metrics]
    for name, each in items:
        if isinstance(each, str):
            if each not in METRICS:
                raise SpecError(f"metrics: expected names out of {', '.join(METRICS)}, got {each!r}")
            found[name or each] = METRICS[each]()
        elif isinstance(each, Metric):
            usual = next((key for key, make in METRICS.items() if make is type(each)), type(each).__name__.lower())
            found[name or usual] = each
        else:
            raise SpecError(f"metrics: expected names or metrics, got {type(each).__name__}")
    return found


def higher_is_better(name: str) -> bool:
    """Of a column of a history: "validation_f1" → True. A name that no metric has is taken for a loss."""
    plain = name.removeprefix("validation_").removeprefix("epoch_")
    return plain in METRICS and METRICS[plain]().higher_is_better


def _function(name: str, make: Callable[..., Metric]) -> Callable[..., Any]:
    def call(prediction: Any, target: Any, **options: Any) -> Any:
        metric = make(**options)
        metric.update(prediction, target)
        return metric.compute()

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"{make.__doc__}\n\n    Of one pair of arrays; options are those of {make.__name__}."
    return call


confusion_matrix = _function("confusion_matrix", ConfusionMatrix)
accuracy = _function("accuracy", Accuracy)
top_k_accuracy = _function("top_k_accuracy", TopKAccuracy)
precision = _function("precision", Precision)
recall = _function("recall", Recall)
f1 = _function("f1", F1)
roc_auc = _function("roc_auc", RocAuc)
average_precision = _function("average_precision", AveragePrecision)
log_loss = _function("log_loss", LogLoss)
perplexity = _function("perplexity", Perplexity)
cohen_kappa = _function("cohen_kappa", CohenKappa)
matthews_correlation = _function("matthews_correlation", MatthewsCorrelation)
mae = _function("mae", MeanAbsoluteError)
mse = _function("mse", MeanSquaredError)
rmse = _function("rmse", RootMeanSquaredError)
r2 = _function("r2", R2)

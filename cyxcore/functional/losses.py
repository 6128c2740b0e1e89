"""Losses. Names, arguments and formulas are torch.nn.functional's; reduction: "mean", "sum" or "none"."""

from typing import Any

from cyxcore.errors import ShapeError, SpecError
from cyxcore.functional.activations import softplus
from cyxcore.functional.basic import log_softmax, maximum, minimum, where
from cyxcore.values import apply


def _same(name: str, a: Any, b: Any) -> None:
    """A silent broadcast in a loss is nearly always a mistake."""
    if a.shape != b.shape:
        raise ShapeError(f"{name}: expected two equal shapes, got {a.shape} and {b.shape}; reshape one of them")


def _reduced(rows: Any, reduction: str) -> Any:
    if reduction == "none":
        return rows
    if reduction not in ("mean", "sum"):
        raise SpecError(f"reduction: expected mean, sum or none, got {reduction!r}")
    return rows.mean() if reduction == "mean" else rows.sum()


def cross_entropy(
    logits: Any,
    labels: Any,
    reduction: str = "mean",
    *,
    weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
) -> Any:
    """-log softmax(logits)[label] per row. logits: (N, C) or (N, C, ...), labels: int64 (N,) or (N, ...).

    weight: (C,), of each class; the mean is then over the weights of the labels. ignore_index: rows of this label
    count nothing. label_smoothing: this share of a label is spread evenly over all classes.
    """
    if logits.ndim > 2:
        rows, flat = _by_row(logits), labels.reshape(-1)
        options = {"weight": weight, "ignore_index": ignore_index, "label_smoothing": label_smoothing}
        result = cross_entropy(rows, flat, reduction, **options)
        return result.reshape(*labels.shape) if reduction == "none" else result
    if not 0.0 <= label_smoothing < 1.0:
        raise SpecError(f"cross_entropy: expected 0 <= label_smoothing < 1, got {label_smoothing}")
    known, counted = _known(logits, labels, ignore_index)
    rows = apply("cross_entropy", logits, known)
    own = None if weight is None else apply("take", weight, known, axis=0)
    rows = rows if own is None else rows * own
    if label_smoothing:
        spread = -log_softmax(logits, 1)
        spread = (spread if weight is None else spread * weight).mean(1)
        rows = rows * (1.0 - label_smoothing) + spread * label_smoothing
    return _weighted(rows, own, counted, reduction)


def nll_loss(
    log_probabilities: Any, labels: Any, reduction: str = "mean", *, weight: Any = None, ignore_index: int | None = None
) -> Any:
    """-log_probabilities[label] per row. Shapes and options as of cross_entropy."""
    if log_probabilities.ndim > 2:
        result = nll_loss(
            _by_row(log_probabilities), labels.reshape(-1), reduction, weight=weight, ignore_index=ignore_index
        )
        return result.reshape(*labels.shape) if reduction == "none" else result
    known, counted = _known(log_probabilities, labels, ignore_index)
    rows = -apply("take_along", log_probabilities, known.expand_dims(1), axis=1).squeeze(1)
    own = None if weight is None else apply("take", weight, known, axis=0)
    return _weighted(rows if own is None else rows * own, own, counted, reduction)


def _by_row(logits: Any) -> Any:
    """(N, C, ...) -> (N * ..., C)"""
    return logits.transpose(0, *range(2, logits.ndim), 1).reshape(-1, logits.shape[1])


def _known(logits: Any, labels: Any, ignore_index: int | None) -> tuple[Any, Any]:
    """Labels that can be looked up, and which of them count (None: all)."""
    if ignore_index is None:
        return logits._check_indices(labels, logits.shape[-1]), None
    counted = labels != ignore_index
    return logits._check_indices(where(counted, labels, 0), logits.shape[-1]), counted


def _weighted(rows: Any, own: Any, counted: Any, reduction: str) -> Any:
    if counted is not None:
        ones = counted.astype(rows.dtype)
        rows, own = rows * ones, ones if own is None else own * ones
    return _reduced(rows, reduction) if own is None or reduction != "mean" else rows.sum() / own.sum()


def mse_loss(prediction: Any, target: Any, reduction: str = "mean") -> Any:
    """(prediction - target)^2"""
    _same("mse_loss", prediction, target)
    return _reduced((prediction - target) ** 2, reduction)


def l1_loss(prediction: Any, target: Any, reduction: str = "mean") -> Any:
    """|prediction - target|"""
    _same("l1_loss", prediction, target)
    return _reduced((prediction - target).abs(), reduction)


def huber_loss(prediction: Any, target: Any, reduction: str = "mean", delta: float = 1.0) -> Any:
    """d^2 / 2 for |d| <= delta, delta (|d| - delta / 2) beyond, d being the difference."""
    _same("huber_loss", prediction, target)
    away = (prediction - target).abs()
    near = minimum(away, delta)
    return _reduced(near * (away - near * 0.5), reduction)


def smooth_l1_loss(prediction: Any, target: Any, reduction: str = "mean", beta: float = 1.0) -> Any:
    """d^2 / (2 beta) for |d| < beta, |d| - beta / 2 beyond, d being the difference."""
    if beta == 0.0:
        return l1_loss(prediction, target, reduction)
    return huber_loss(prediction, target, reduction, beta) * (1.0 / beta)


def binary_cross_entropy(probabilities: Any, target: Any, reduction: str = "mean", weight: Any = None) -> Any:
    """-t log p - (1 - t) log(1 - p); logarithms are kept above -100, as in torch."""
    _same("binary_cross_entropy", probabilities, target)
    rows = target * maximum(probabilities.log(), -100.0)
    rows = -(rows + (1.0 - target) * maximum((1.0 - probabilities).log(), -100.0))
    return _reduced(rows if weight is None else rows * weight, reduction)


def binary_cross_entropy_with_logits(
    logits: Any, target: Any, reduction: str = "mean", weight: Any = None, pos_weight: Any = None
) -> Any:
    """-t log σ(x) - (1 - t) log(1 - σ(x)) = max(x, 0) - x t + log(1 + e^-|x|).

    weight: of each element. pos_weight: what t = 1 counts.
    """
    _same("binary_cross_entropy_with_logits", logits, target)
    if pos_weight is None:
        rows = softplus(logits) - logits * target
    else:
        rows = logits * (1.0 - target) + (target * (pos_weight - 1.0) + 1.0) * softplus(-logits)
    return _reduced(rows if weight is None else rows * weight, reduction)


def kl_div(log_probabilities: Any, target: Any, reduction: str = "mean", log_target: bool = False) -> Any:
    """t (log t - log p), 0 where t is 0. reduction "batchmean": the sum over the number of rows."""
    _same("kl_div", log_probabilities, target)
    if log_target:
        rows = target.exp() * (target - log_probabilities)
    else:
        positive = target > 0.0
        rows = where(positive, target * where(positive, target, 1.0).log(), 0.0) - target * log_probabilities
    if reduction == "batchmean":
        return rows.sum() / float(rows.shape[0])
    return _reduced(rows, reduction)


def cosine_similarity(a: Any, b: Any, dim: int = 1, eps: float = 1e-8) -> Any:
    """a · b / (|a| |b|) along an axis; each norm is at least eps."""
    _same("cosine_similarity", a, b)
    lengths = maximum(a.square().sum(dim).sqrt(), eps) * maximum(b.square().sum(dim).sqrt(), eps)
    return (a * b).sum(dim) / lengths


def cosine_embedding_loss(a: Any, b: Any, target: Any, reduction: str = "mean", margin: float = 0.0) -> Any:
    """1 - cos(a, b) where the target is 1, max(0, cos(a, b) - margin) where it is -1. a, b: (N, D); target: (N,)."""
    cosine = cosine_similarity(a, b, a.ndim - 1, 1e-8)
    _same("cosine_embedding_loss", cosine, target)
    return _reduced(where(target > 0, 1.0 - cosine, (cosine - margin).relu()), reduction)


def hinge_embedding_loss(x: Any, target: Any, reduction: str = "mean", margin: float = 1.0) -> Any:
    """x where the target is 1, max(0, margin - x) where it is -1."""
    _same("hinge_embedding_loss", x, target)
    return _reduced(where(target > 0, x, (margin - x).relu()), reduction)


def margin_ranking_loss(a: Any, b: Any, target: Any, reduction: str = "mean", margin: float = 0.0) -> Any:
    """max(0, -target (a - b) + margin); target 1: a should be larger, -1: b."""
    _same("margin_ranking_loss", a, b)
    return _reduced((-target * (a - b) + margin).relu(), reduction)


def triplet_margin_loss(
    anchor: Any, positive: Any, negative: Any, reduction: str = "mean", margin: float = 1.0, eps: float = 1e-6
) -> Any:
    """max(0, |a - p| - |a - n| + margin), Euclidean, eps added to each difference as in torch. (N, D) each."""
    _same("triplet_margin_loss", anchor, positive)
    _same("triplet_margin_loss", anchor, negative)
    near = (anchor - positive + eps).square().sum(-1).sqrt()
    far = (anchor - negative + eps).square().sum(-1).sqrt()
    return _reduced((near - far + margin).relu(), reduction)


def poisson_nll_loss(log_rate: Any, target: Any, reduction: str = "mean") -> Any:
    """e^x - t x, of a model whose output is the logarithm of a rate."""
    _same("poisson_nll_loss", log_rate, target)
    return _reduced(log_rate.exp() - target * log_rate, reduction)


def gaussian_nll_loss(mean: Any, target: Any, variance: Any, reduction: str = "mean", eps: float = 1e-6) -> Any:
    """(log v + (mean - target)^2 / v) / 2, the variance v being at least eps."""
    _same("gaussian_nll_loss", mean, target)
    _same("gaussian_nll_loss", mean, variance)
    spread = maximum(variance, eps)
    return _reduced((spread.log() + (mean - target) ** 2 / spread) * 0.5, reduction)

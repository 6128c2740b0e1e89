"""Losses. Names, arguments and formulas are torch.nn.functional's; reduction: "mean", "sum" or "none"."""

import math
from collections.abc import Callable
from itertools import chain
from typing import Any

from cyxcore.casting import in_float32
from cyxcore.dtype import FLOATS
from cyxcore.errors import IndexingError, ShapeError, SpecError
from cyxcore.functional.activations import softplus
from cyxcore.functional.basic import log_softmax, looked_up, maximum, minimum, pad, stack, take_along_axis, where
from cyxcore.inplace import InPlace
from cyxcore.values import Value, apply, bent, composed, is_made_here, is_operand

LEAST_ABREAST = 8  # of what has its classes one below the other, which goes by columns; fewer are made rows


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


@in_float32
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
    count nothing; None: those of -100, and in a graph that travels none. label_smoothing: this share of a label is
    spread evenly over all classes. labels of logits' shape and a float dtype are the probabilities of the classes; the
    mean is then over the rows. Raises IndexingError for a label of no class.
    """
    if logits.ndim == 1:  # one row without a batch
        of_class = labels.shape == () or labels.dtype not in FLOATS
        target = labels.reshape(1) if of_class else labels.expand_dims(0)
        options = {"weight": weight, "ignore_index": ignore_index, "label_smoothing": label_smoothing}
        return cross_entropy(logits.expand_dims(0), target, reduction, **options).reshape(())
    if labels.dtype in FLOATS and labels.shape == logits.shape:
        return _of_probabilities(logits, labels, reduction, weight, label_smoothing)
    if logits.ndim > 2 and (label_smoothing or math.prod(labels.shape[1:]) < LEAST_ABREAST):
        rows, flat = _by_row(logits), labels.reshape(-1)
        options = {"weight": weight, "ignore_index": ignore_index, "label_smoothing": label_smoothing}
        result = cross_entropy(rows, flat, reduction, **options)
        return result.reshape(*labels.shape) if reduction == "none" else result
    if not 0.0 <= label_smoothing < 1.0:
        raise SpecError(f"cross_entropy: expected 0 <= label_smoothing < 1, got {label_smoothing}")
    known, counted = _known("cross_entropy", logits, labels, ignore_index)
    rows = apply("cross_entropy", logits, known)
    own = None if weight is None else apply("take", weight, known, axis=0)
    rows = rows if own is None else rows * own
    if label_smoothing:
        spread = -log_softmax(logits, 1)
        spread = (spread if weight is None else spread * weight).mean(1)
        rows = rows * (1.0 - label_smoothing) + spread * label_smoothing
    return _weighted(rows, own, counted, reduction)


def _of_probabilities(logits: Any, target: Any, reduction: str, weight: Any, label_smoothing: float) -> Any:
    """Cross-entropy with a distribution over the classes (axis 1) for each row."""
    classes = logits.shape[1]
    wanted = target * (1.0 - label_smoothing) + label_smoothing / classes if label_smoothing else target
    terms = wanted * log_softmax(logits, 1)
    if weight is not None:
        terms = terms * weight.reshape(-1, *(1,) * (logits.ndim - 2))
    rows = -terms.sum(1)
    return _reduced(rows, reduction)


@in_float32
def nll_loss(
    log_probabilities: Any, labels: Any, reduction: str = "mean", *, weight: Any = None, ignore_index: int | None = None
) -> Any:
    """-log_probabilities[label] per row. Shapes and options as of cross_entropy."""
    if log_probabilities.ndim == 1:
        one = (log_probabilities.expand_dims(0), labels.reshape(1))
        return nll_loss(*one, reduction, weight=weight, ignore_index=ignore_index).reshape(())
    if log_probabilities.ndim > 2:
        result = nll_loss(
            _by_row(log_probabilities), labels.reshape(-1), reduction, weight=weight, ignore_index=ignore_index
        )
        return result.reshape(*labels.shape) if reduction == "none" else result
    known, counted = _known("nll_loss", log_probabilities, labels, ignore_index)
    rows = -apply("take_along", log_probabilities, known.expand_dims(1), axis=1).squeeze(1)
    own = None if weight is None else apply("take", weight, known, axis=0)
    return _weighted(rows if own is None else rows * own, own, counted, reduction)


def _by_row(logits: Any) -> Any:
    """(N, C, ...) -> (N * ..., C)"""
    return logits.permute(0, *range(2, logits.ndim), 1).reshape(-1, logits.shape[1])


def _known(name: str, logits: Any, labels: Any, ignore_index: int | None) -> tuple[Any, Any]:
    """Labels that can be looked up, and which of them count (None: all). Raises IndexingError for one of no class."""
    if not isinstance(labels, InPlace):
        ignored = -100 if ignore_index is None and labels.is_compiled else ignore_index
        counted = None if ignored is None else labels != ignored
        labels = labels if counted is None else where(counted, labels, 0)
        if name != "cross_entropy":  # whose kernel refuses what is no class
            labels = known_classes(name, labels, logits.shape[1])
        return labels, counted
    ignored = -100 if ignore_index is None else ignore_index
    least, most = _bounds(labels)
    counts: Any = labels != ignored if least <= ignored <= most else None
    if counts is None or counts.all().item():  # the plain loss is one kernel
        return known_classes(name, labels, logits.shape[1]), None
    return known_classes(name, where(counts, labels, 0), logits.shape[1]), counts


def _bounds(labels: Any) -> tuple[int, int]:
    """The least and the largest of labels; (0, 0) of none."""
    known = labels._bounds()
    if known is None:
        known = (labels.min().item(), labels.max().item()) if labels.size else (0, 0)
    return known


def known_classes(name: str, labels: Any, count: int) -> Any:
    """The labels. Raises IndexingError for one outside of 0 … count - 1, where they are known.

    In a graph those below 0 become such as no index reaches from the end either.
    """
    if isinstance(labels, InPlace):
        least, most = _bounds(labels)
        if least < 0 or most >= count:
            wrong = least if least < 0 else most
            raise IndexingError(f"{name}: expected labels of 0..{count - 1} (or ignore_index), got {wrong}")
        return labels
    return where(labels < 0, labels - count, labels)


def _weighted(rows: Any, own: Any, counted: Any, reduction: str) -> Any:
    if counted is not None:
        ones = counted.astype(rows.dtype)
        rows, own = rows * ones, ones if own is None else own * ones
    return _reduced(rows, reduction) if own is None or reduction != "mean" else rows.sum() / own.sum()


@in_float32
def mse_loss(prediction: Any, target: Any, reduction: str = "mean", weight: Any = None) -> Any:
    """(prediction - target)^2. weight: what each element counts; the mean is then over the weights."""
    _same("mse_loss", prediction, target)
    return composed(_mse_loss, (prediction, target, weight), (reduction,))


def _mse_loss(prediction: Any, target: Any, weight: Any, reduction: str) -> Any:
    return _of_weight("mse_loss", (prediction - target) ** 2, weight, reduction)


@in_float32
def l1_loss(prediction: Any, target: Any, reduction: str = "mean", weight: Any = None) -> Any:
    """|prediction - target|. weight: what each element counts; the mean is then over the weights."""
    _same("l1_loss", prediction, target)
    return composed(_l1_loss, (prediction, target, weight), (reduction,))


def _l1_loss(prediction: Any, target: Any, weight: Any, reduction: str) -> Any:
    return _of_weight("l1_loss", (prediction - target).abs(), weight, reduction)


def _of_weight(name: str, rows: Any, weight: Any, reduction: str) -> Any:
    if weight is None:
        return _reduced(rows, reduction)
    _same(name, rows, weight)
    total = _reduced(rows * weight, "sum" if reduction == "mean" else reduction)
    return total / weight.sum() if reduction == "mean" else total


@in_float32
def huber_loss(prediction: Any, target: Any, reduction: str = "mean", delta: float = 1.0, weight: Any = None) -> Any:
    """d^2 / 2 for |d| <= delta, delta (|d| - delta / 2) beyond, d being the difference.

    weight: what each element counts; the mean is over the elements nevertheless, as in torch.
    """
    _same("huber_loss", prediction, target)
    if is_operand(prediction):  # a kernel of its own
        return _huber_loss(prediction, target, weight, reduction, delta)
    return composed(_huber_loss, (prediction, target, weight), (reduction, delta))


def _huber_loss(prediction: Any, target: Any, weight: Any, reduction: str, delta: float) -> Any:
    rows = bent("huber", _huber, prediction - target, delta=delta)
    if weight is not None:
        _same("huber_loss", rows, weight)
        rows = rows * weight
    return _reduced(rows, reduction)


def _huber(difference: Any, delta: float) -> Any:
    away = difference.abs()
    near = minimum(away, delta)
    return near * (away - near * 0.5)


@in_float32
def smooth_l1_loss(prediction: Any, target: Any, reduction: str = "mean", beta: float = 1.0) -> Any:
    """d^2 / (2 beta) for |d| < beta, |d| - beta / 2 beyond, d being the difference."""
    if beta == 0.0:
        return l1_loss(prediction, target, reduction)
    return huber_loss(prediction, target, reduction, beta) * (1.0 / beta)


def _bounded_log(p: Any) -> Any:
    """log p above -100. Of 0 the logarithm is not asked for: its gradient would be 0 * infinity."""
    inside = p > 0.0
    return where(inside, maximum(where(inside, p, 1.0).log(), -100.0), -100.0)


@in_float32
def binary_cross_entropy(probabilities: Any, target: Any, reduction: str = "mean", weight: Any = None) -> Any:
    """-t log p - (1 - t) log(1 - p); logarithms are kept above -100, as in torch, and have no gradient at p = 0."""
    _same("binary_cross_entropy", probabilities, target)
    return composed(_binary_cross_entropy, (probabilities, target, weight), (reduction,))


def _binary_cross_entropy(probabilities: Any, target: Any, weight: Any, reduction: str) -> Any:
    rows = -(target * _bounded_log(probabilities) + (1.0 - target) * _bounded_log(1.0 - probabilities))
    return _reduced(rows if weight is None else rows * weight, reduction)


@in_float32
def binary_cross_entropy_with_logits(
    logits: Any, target: Any, reduction: str = "mean", weight: Any = None, pos_weight: Any = None
) -> Any:
    """-t log σ(x) - (1 - t) log(1 - σ(x)) = max(x, 0) - x t + log(1 + e^-|x|).

    weight: of each element. pos_weight: what t = 1 counts.
    """
    _same("binary_cross_entropy_with_logits", logits, target)
    return composed(_binary_cross_entropy_with_logits, (logits, target, weight, pos_weight), (reduction,))


def _binary_cross_entropy_with_logits(logits: Any, target: Any, weight: Any, pos_weight: Any, reduction: str) -> Any:
    if pos_weight is None:
        rows = softplus(logits) - logits * target
    else:
        rows = logits * (1.0 - target) + (target * (pos_weight - 1.0) + 1.0) * softplus(-logits)
    return _reduced(rows if weight is None else rows * weight, reduction)


@in_float32
def kl_div(log_probabilities: Any, target: Any, reduction: str = "mean", log_target: bool = False) -> Any:
    """t (log t - log p), 0 where t is 0. reduction "batchmean": the sum over the number of rows."""
    _same("kl_div", log_probabilities, target)
    return composed(_kl_div, (log_probabilities, target), (reduction, log_target))


def _kl_div(log_probabilities: Any, target: Any, reduction: str, log_target: bool) -> Any:
    if log_target:
        rows = target.exp() * (target - log_probabilities)
    else:
        positive = target > 0.0
        rows = where(positive, target * where(positive, target, 1.0).log(), 0.0) - target * log_probabilities
    if reduction == "batchmean":
        return rows.sum() / float(rows.shape[0])
    return _reduced(rows, reduction)


def cosine_similarity(a: Any, b: Any, dim: int = 1, eps: float = 1e-8) -> Any:
    """a · b / (|a| |b|) along an axis, a and b broadcast; each norm is at least eps."""
    product = a * b
    if a.shape != b.shape:
        a, b = a.broadcast_to(product.shape), b.broadcast_to(product.shape)
    return product.sum(dim) / (maximum(_norm(a, 2.0, dim, False), eps) * maximum(_norm(b, 2.0, dim, False), eps))


def normalize(x: Any, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Any:
    """x over its p-norm along an axis, which counts as at least eps."""
    return x / maximum(_norm(x, p, dim, keepdims=True), eps)


def pairwise_distance(a: Any, b: Any, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Any:
    """The p-norm of a - b + eps along the last axis, a and b broadcast."""
    return _norm(a - b + eps, p, -1, keepdims=keepdim)


def pdist(x: Any, p: float = 2.0) -> Any:
    """The p-norm of the difference of each pair of rows i < j of x (N, D): (N (N - 1) / 2,), by i, then by j."""
    if x.ndim != 2:
        raise ShapeError(f"pdist: expected x (N, D), got {x.shape}")
    count = x.shape[0]
    every = composed(_distances, (x,), (float(p),), count * x.size).reshape(-1)
    if isinstance(x, InPlace):
        rows = x._constant(range(count), "int64")
        return apply("take", every, (rows.reshape(-1, 1) < rows).reshape(-1)._true_places(), axis=0)
    later = chain.from_iterable(range(i * count + i + 1, (i + 1) * count) for i in range(count))
    return looked_up(every, list(later), 0)


def _distances(x: Any, p: float) -> Any:
    return _norm(x.expand_dims(1) - x.expand_dims(0), p, -1, keepdims=False)


def _norm(x: Any, p: float, dim: Any, keepdims: bool) -> Any:
    """The p-norm along an axis; the gradient of that of zeros is 0, as in torch."""
    if p == 2.0:
        return _root(x.square().sum(dim, keepdims=keepdims), 0.5)
    if p == float("inf"):
        return x.abs().max(dim, keepdims=keepdims)
    if p == 0.0:
        return (x != 0.0).astype(x.dtype).sum(dim, keepdims=keepdims)
    if p == 1.0:
        return x.abs().sum(dim, keepdims=keepdims)
    if not p > 0.0:
        raise SpecError(f"norm: expected p of at least 0, or inf, got {p}")
    return _root(_root(x.abs(), p).sum(dim, keepdims=keepdims), 1.0 / p)


def _root(x: Any, power: float) -> Any:
    """x^power of x from 0 on, with gradient 0 at 0."""
    zero = x == 0.0
    return where(zero, x.detach(), where(zero, x + 1.0, x) ** power)


@in_float32
def cosine_embedding_loss(a: Any, b: Any, target: Any, reduction: str = "mean", margin: float = 0.0) -> Any:
    """1 - cos(a, b) where the target is 1, max(0, cos(a, b) - margin) where it is -1. a, b: (N, D); target: (N,)."""
    cosine = cosine_similarity(a, b, a.ndim - 1, 1e-8)
    _same("cosine_embedding_loss", cosine, target)
    return _reduced(where(target > 0, 1.0 - cosine, (cosine - margin).relu()), reduction)


@in_float32
def hinge_embedding_loss(x: Any, target: Any, reduction: str = "mean", margin: float = 1.0) -> Any:
    """x where the target is 1, max(0, margin - x) where it is -1."""
    _same("hinge_embedding_loss", x, target)
    return _reduced(where(target > 0, x, (margin - x).relu()), reduction)


@in_float32
def margin_ranking_loss(a: Any, b: Any, target: Any, reduction: str = "mean", margin: float = 0.0) -> Any:
    """max(0, -target (a - b) + margin); target 1: a should be larger, -1: b."""
    _same("margin_ranking_loss", a, b)
    return _reduced((-target * (a - b) + margin).relu(), reduction)


@in_float32
def triplet_margin_loss(
    anchor: Any,
    positive: Any,
    negative: Any,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
    reduction: str = "mean",
) -> Any:
    """max(0, |a - p| - |a - n| + margin) by p-norms, eps added to each difference as in torch. (N, D) each.

    swap: |p - n| counts where it is smaller than |a - n|.
    """
    _same("triplet_margin_loss", anchor, positive)
    _same("triplet_margin_loss", anchor, negative)
    near = pairwise_distance(anchor, positive, p, eps)
    far = pairwise_distance(anchor, negative, p, eps)
    if swap:
        far = minimum(far, pairwise_distance(positive, negative, p, eps))
    return _reduced((near - far + margin).relu(), reduction)


def triplet_margin_with_distance_loss(
    anchor: Any,
    positive: Any,
    negative: Any,
    *,
    distance_function: Callable[[Any, Any], Any] | None = None,
    margin: float = 1.0,
    swap: bool = False,
    reduction: str = "mean",
) -> Any:
    """max(0, d(a, p) - d(a, n) + margin); d is pairwise_distance unless given. swap: see triplet_margin_loss."""
    away = pairwise_distance if distance_function is None else distance_function
    near, far = away(anchor, positive), away(anchor, negative)
    if swap:
        far = minimum(far, away(positive, negative))
    return _reduced((near - far + margin).relu(), reduction)


@in_float32
def poisson_nll_loss(
    x: Any, target: Any, log_input: bool = True, full: bool = False, eps: float = 1e-8, reduction: str = "mean"
) -> Any:
    """e^x - t x, of a model whose output is the logarithm of a rate; x - t log(x + eps) of the rate itself.

    full: with Stirling's t log t - t + log(2 pi t) / 2 for targets above 1.
    """
    _same("poisson_nll_loss", x, target)
    rows = x.exp() - target * x if log_input else x - target * (x + eps).log()
    if full:
        large = maximum(target, 1.0)
        stirling = large * large.log() - large + (large * (2.0 * math.pi)).log() * 0.5
        rows = rows + where(target > 1.0, stirling, 0.0)
    return _reduced(rows, reduction)


def gaussian_nll_loss(
    mean: Any, target: Any, variance: Any, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Any:
    """(log v + (mean - target)^2 / v) / 2, the variance v being at least eps; full: with log(2 pi) / 2.

    variance: of mean's shape, without its last axis or with 1 there, or a number. Its gradient is that at eps where it
    is below, as in torch.
    """
    _same("gaussian_nll_loss", mean, target)
    if isinstance(variance, (int, float)):
        variance = mean._constant(float(variance), mean.dtype)
    elif variance.shape == mean.shape[:-1] and mean.ndim:
        variance = variance.expand_dims(-1)
    elif variance.shape not in (mean.shape, (*mean.shape[:-1], 1)):
        raise ShapeError(
            f"gaussian_nll_loss: expected a variance {mean.shape}, {(*mean.shape[:-1], 1)} or {mean.shape[:-1]}, "
            f"got {variance.shape}"
        )
    spread = where(variance < eps, (variance - variance.detach()) + eps, variance)
    rows = (spread.log() + (mean - target) ** 2 / spread) * 0.5
    return _reduced(rows + 0.5 * math.log(2.0 * math.pi) if full else rows, reduction)


@in_float32
def soft_margin_loss(x: Any, target: Any, reduction: str = "mean") -> Any:
    """log(1 + e^(-t x)), t being 1 or -1."""
    _same("soft_margin_loss", x, target)
    return _reduced(softplus(-target * x), reduction)


@in_float32
def multilabel_soft_margin_loss(x: Any, target: Any, weight: Any = None, reduction: str = "mean") -> Any:
    """The mean over the classes (last axis) of binary cross-entropies with logits; target: 0 or 1 of each class."""
    rows = binary_cross_entropy_with_logits(x, target, "none", weight)
    return _reduced(rows.mean(-1), reduction)


@in_float32
def multi_margin_loss(
    x: Any, labels: Any, p: int = 1, margin: float = 1.0, weight: Any = None, reduction: str = "mean"
) -> Any:
    """sum over i != y of max(0, margin - x[y] + x[i])^p, over the number of classes. x: (N, C); labels: (N,)."""
    if x.ndim != 2 or labels.ndim != 1 or p not in (1, 2):
        raise ShapeError(
            f"multi_margin_loss: expected x (N, C), labels (N,) and p 1 or 2, got {x.shape}, {labels.shape}, {p}"
        )
    known = known_classes("multi_margin_loss", labels.astype("int64"), x.shape[1])
    own = apply("take_along", x, known.expand_dims(1), axis=1)
    short = (x - own + margin).relu()
    short = short if p == 1 else short.square()
    if weight is not None:
        short = short * apply("take", weight, known, axis=0).expand_dims(1)
    other = 1.0 - apply("one_hot", known, depth=x.shape[1]).astype(x.dtype)
    return _reduced((short * other).mean(1), reduction)


@in_float32
def multilabel_margin_loss(x: Any, target: Any, reduction: str = "mean") -> Any:
    """sum over labels y and other classes i of max(0, 1 - x[y] + x[i]), over the number of classes.

    x: (N, C) or (C,); target: integers of that shape, the labels of each row before its first -1. Raises IndexingError.
    """
    if x.ndim == 1:
        return multilabel_margin_loss(x.expand_dims(0), target.expand_dims(0), reduction).reshape(())
    if x.ndim != 2 or target.shape != x.shape:
        raise ShapeError(f"multilabel_margin_loss: expected x and target (N, C), got {x.shape} and {target.shape}")
    count = x.shape[1]
    labels = target.astype("int64")
    places = x._constant(range(count), "int64")
    earlier = (places.reshape(-1, 1) <= places).astype("float32")  # (k, j): k is not behind j
    label = (labels < 0).astype("float32") @ earlier == 0.0
    known = known_classes("multilabel_margin_loss", where(label, labels, 0), count)
    most = count  # labels of a row
    if isinstance(label, InPlace) and label.size:
        most = max(int(label.astype("int64").sum(1).max().item()), 1)
        label, known = label[:, :most], known[:, :most]
    of_label = label.astype(x.dtype)
    right = (apply("one_hot", known, depth=count).astype(x.dtype) * of_label.expand_dims(2)).sum(1) > 0.0
    own = apply("take_along", x, known, axis=1)
    short = (x.expand_dims(1) - own.expand_dims(2) + 1.0).relu() * of_label.expand_dims(2)
    each = where(right.expand_dims(1), 0.0, short).sum(2)
    if most < count:  # so that a graph, which knows of no labels, adds up as many
        each = pad(each, [(0, 0), (0, count - most)])
    return _reduced(each.sum(1) / float(count), reduction)


IMPOSSIBLE = -1e30  # a logarithm of 0 whose differences stay finite


def _lengths(what: str, given: Any, most: int) -> Any:
    """Lengths as int64. Raises IndexingError for one outside of 0 … most, where they are known."""
    lengths = given.astype("int64")
    if isinstance(lengths, InPlace) and lengths.size:
        least, longest = lengths.min().item(), lengths.max().item()
        if not 0 <= least <= longest <= most:
            raise IndexingError(f"ctc_loss: expected {what}_lengths of 0..{most}, got {least}..{longest}")
    return lengths


def _rows(targets: Any, lengths: Any) -> Any:
    """Rows that stand one after another (sum of lengths,) as (N, longest)."""
    counts = [int(count) for count in lengths.reshape(-1).tolist()]
    if min(counts, default=0) < 0 or sum(counts) != targets.shape[0]:
        raise ShapeError(f"ctc_loss: expected targets of {sum(counts)} labels one after another, got {targets.shape}")
    starts = [sum(counts[:row]) for row in range(len(counts))]
    longest, last = max(counts, default=0), max(targets.shape[0] - 1, 0)
    if not longest:
        return targets.reshape(0).broadcast_to(len(counts), 0)
    return looked_up(targets, [min(start + k, last) for start in starts for k in range(longest)], 0).reshape(
        -1, longest
    )


@in_float32
def ctc_loss(
    log_probs: Any,
    targets: Any,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Any:
    """-log of the probability of all alignments of targets (Graves et al. 2006, forward variables in logarithms).

    log_probs: (T, N, C), of log_softmax. targets: (N, S) classes, none of them `blank`; what comes after its length
    in a row does not matter; or all rows one after another (not in graphs). input_lengths, target_lengths: (N,)
    integers, as a tensor or a tuple. Or a single row: (T, C), (S,) and two numbers. "mean": each loss over its target's
    length, then the mean over the rows. zero_infinity: 0, with no gradient, where no alignment is possible. Raises
    ShapeError, IndexingError or DataError for lengths or labels beyond what there is, and GradientError for a second
    derivative, which it has in graphs that travel and on a GPU only.
    """
    input_lengths, target_lengths = (
        each if isinstance(each, Value) else log_probs._constant(each, "int64")
        for each in (input_lengths, target_lengths)
    )
    if log_probs.ndim == 2:
        lengths = input_lengths.reshape(1), target_lengths.reshape(1)
        one = (log_probs.expand_dims(1), targets.reshape(1, -1), *lengths)
        return ctc_loss(*one, blank, reduction, zero_infinity).reshape(())
    if targets.ndim == 1 and isinstance(target_lengths, InPlace):
        targets = _rows(targets, target_lengths)
    if log_probs.ndim != 3 or targets.ndim != 2 or targets.shape[0] != log_probs.shape[1]:
        raise ShapeError(
            f"ctc_loss: expected log_probs (T, N, C) and targets (N, S), got {log_probs.shape}, {targets.shape}"
        )
    steps, rows, classes = log_probs.shape
    if not 0 <= blank < classes:
        raise SpecError(f"ctc_loss: expected a blank of 0..{classes - 1}, got {blank}")
    size = targets.shape[1]
    input_lengths, target_lengths = _lengths("input", input_lengths, steps), _lengths("target", target_lengths, size)
    labels = targets.astype("int64")
    if log_probs.dtype in ("float32", "float64") and is_made_here(log_probs):
        how = {"blank": blank, "zero_infinity": zero_infinity}
        loss = apply("ctc_loss", log_probs, labels, input_lengths, target_lengths, **how)
    else:
        loss = _ctc_of_operations(log_probs, labels, input_lengths, target_lengths, blank, zero_infinity)
    if reduction == "mean":
        return (loss / maximum(target_lengths.astype(loss.dtype), 1.0)).mean()
    return _reduced(loss, reduction)


def _ctc_of_operations(
    log_probs: Any, labels: Any, input_lengths: Any, target_lengths: Any, blank: int, zero_infinity: bool
) -> Any:
    """Each row's loss in a graph that travels, and on a device with its own memory."""
    steps, rows, classes = log_probs.shape
    size = labels.shape[1]
    # Blanks between all labels and at both ends: (N, 2 S + 1).
    known = log_probs._check_indices(labels, classes)
    pairs = stack([known * 0 + blank, known], 2).reshape(rows, 2 * size)
    states = pad(pairs, ((0, 0), (0, 1)), value=float(blank))
    before = pad(states[:, : max(2 * size - 1, 0)], ((0, 0), (min(2, 2 * size + 1), 0)), value=float(blank))
    leap = (states != blank) & (states != before)  # from a label to another one, over the blank between
    places = states.expand_dims(0).broadcast_to(steps, rows, 2 * size + 1)
    emitted = maximum(apply("take_along", log_probs, places, axis=2), IMPOSSIBLE)
    first = log_probs._constant([0.0] * min(2, 2 * size + 1) + [IMPOSSIBLE] * max(2 * size - 1, 0), log_probs.dtype)
    none = log_probs._constant([0.0] + [IMPOSSIBLE] * (2 * size), log_probs.dtype)
    forward = where((input_lengths > 0).expand_dims(1), emitted[0] + first, none)
    for t in range(1, steps):
        one = pad(forward[:, :-1], ((0, 0), (1, 0)), value=IMPOSSIBLE)
        two = pad(forward[:, :-2], ((0, 0), (min(2, 2 * size + 1), 0)), value=IMPOSSIBLE)
        here = _log_sum([forward, one, where(leap, two, IMPOSSIBLE)]) + emitted[t]
        forward = where((input_lengths > t).expand_dims(1), here, forward)
    last = (target_lengths * 2).expand_dims(1)
    ends = _log_sum([
        take_along_axis(forward, last, 1),
        where(last > 0, take_along_axis(forward, maximum(last - 1, 0), 1), IMPOSSIBLE),
    ])  # fmt: skip
    loss = -ends.squeeze(1)
    impossible = loss > -0.5 * IMPOSSIBLE
    infinite = -log_probs._constant(0.0, log_probs.dtype).log()  # a graph holds finite numbers only
    return where(impossible, 0.0 if zero_infinity else infinite, loss)


def _log_sum(parts: list[Any]) -> Any:
    """log(sum of e^part), element by element."""
    most = parts[0]
    for part in parts[1:]:
        most = maximum(most, part)
    total = (parts[0] - most).exp()
    for part in parts[1:]:
        total = total + (part - most).exp()
    return most + total.log()

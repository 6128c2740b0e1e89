"""The losses as modules: torch's names and options around cyxcore.functional."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from cyxcore import functional as F
from cyxcore.errors import ShapeError, SpecError
from cyxcore.functional.losses import known_classes
from cyxcore.nn.containers import ModuleList, Sequential
from cyxcore.nn.layers import Linear
from cyxcore.nn.module import Module


class _Loss(Module):
    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction


class _ByClass(_Loss):
    """weight: (C,), what each class counts; a buffer, so it goes where the module goes."""

    def __init__(self, weight: Any = None, ignore_index: int = -100, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.ignore_index = ignore_index
        self.register_buffer("weight", weight)


class CrossEntropyLoss(_ByClass):
    """Of logits (N, C, ...) and class indices (N, ...); rows of ignore_index count nothing."""

    def __init__(
        self,
        weight: Any = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight, ignore_index, reduction)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Any, labels: Any) -> Any:
        return F.cross_entropy(
            logits,
            labels,
            self.reduction,
            weight=self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )


class NLLLoss(_ByClass):
    """Of log probabilities (N, C, ...) and class indices (N, ...)."""

    def forward(self, log_probabilities: Any, labels: Any) -> Any:
        options = {"weight": self.weight, "ignore_index": self.ignore_index}
        return F.nll_loss(log_probabilities, labels, self.reduction, **options)


class MSELoss(_Loss):
    """(prediction - target)²."""

    def forward(self, prediction: Any, target: Any) -> Any:
        return F.mse_loss(prediction, target, self.reduction)


class L1Loss(_Loss):
    """|prediction - target|."""

    def forward(self, prediction: Any, target: Any) -> Any:
        return F.l1_loss(prediction, target, self.reduction)


class SmoothL1Loss(_Loss):
    """Quadratic up to a distance of beta, linear beyond; Huber's over beta."""

    def __init__(self, reduction: str = "mean", beta: float = 1.0) -> None:
        super().__init__(reduction)
        self.beta = beta

    def forward(self, prediction: Any, target: Any) -> Any:
        return F.smooth_l1_loss(prediction, target, self.reduction, self.beta)


class HuberLoss(_Loss):
    """Quadratic up to a distance of delta, linear beyond."""

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        super().__init__(reduction)
        self.delta = delta

    def forward(self, prediction: Any, target: Any) -> Any:
        return F.huber_loss(prediction, target, self.reduction, self.delta)


class BCELoss(_Loss):
    """Of probabilities. weight: what each element counts."""

    def __init__(self, weight: Any = None, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.register_buffer("weight", weight)

    def forward(self, probabilities: Any, target: Any) -> Any:
        return F.binary_cross_entropy(probabilities, target, self.reduction, self.weight)


class BCEWithLogitsLoss(_Loss):
    """weight: what each element counts; pos_weight: what a target of 1 counts, for each output."""

    def __init__(self, weight: Any = None, reduction: str = "mean", pos_weight: Any = None) -> None:
        super().__init__(reduction)
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, logits: Any, target: Any) -> Any:
        return F.binary_cross_entropy_with_logits(logits, target, self.reduction, self.weight, self.pos_weight)


class KLDivLoss(_Loss):
    """Of log probabilities and probabilities (or their logarithms)."""

    def __init__(self, reduction: str = "mean", log_target: bool = False) -> None:
        super().__init__(reduction)
        self.log_target = log_target

    def forward(self, log_probabilities: Any, target: Any) -> Any:
        return F.kl_div(log_probabilities, target, self.reduction, self.log_target)


class CosineEmbeddingLoss(_Loss):
    """1 - cosine of pairs whose target is 1, what the cosine has above the margin where it is -1."""

    def __init__(self, margin: float = 0.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.margin = margin

    def forward(self, a: Any, b: Any, target: Any) -> Any:
        return F.cosine_embedding_loss(a, b, target, self.reduction, self.margin)


class HingeEmbeddingLoss(_Loss):
    """x where the target is 1, what is missing to the margin where it is -1."""

    def __init__(self, margin: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.margin = margin

    def forward(self, x: Any, target: Any) -> Any:
        return F.hinge_embedding_loss(x, target, self.reduction, self.margin)


class MarginRankingLoss(_Loss):
    """How much a is below b by the margin, or above it, as the target (1 or -1) says."""

    def __init__(self, margin: float = 0.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.margin = margin

    def forward(self, a: Any, b: Any, target: Any) -> Any:
        return F.margin_ranking_loss(a, b, target, self.reduction, self.margin)


class TripletMarginLoss(_Loss):
    """How much nearer than the negative the positive is not, by the margin."""

    def __init__(
        self, margin: float = 1.0, p: float = 2.0, eps: float = 1e-6, swap: bool = False, reduction: str = "mean"
    ) -> None:
        super().__init__(reduction)
        self.margin, self.p, self.eps, self.swap = margin, p, eps, swap

    def forward(self, anchor: Any, positive: Any, negative: Any) -> Any:
        own = self.margin, self.p, self.eps, self.swap
        return F.triplet_margin_loss(anchor, positive, negative, *own, self.reduction)


class TripletMarginWithDistanceLoss(_Loss):
    """TripletMarginLoss with a distance of one's own."""

    def __init__(
        self,
        *,
        distance_function: Callable[[Any, Any], Any] | None = None,
        margin: float = 1.0,
        swap: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        self.distance_function, self.margin, self.swap = distance_function, margin, swap

    def forward(self, anchor: Any, positive: Any, negative: Any) -> Any:
        options: dict[str, Any] = {
            "distance_function": self.distance_function,
            "margin": self.margin,
            "swap": self.swap,
        }
        return F.triplet_margin_with_distance_loss(anchor, positive, negative, **options, reduction=self.reduction)


class MultiLabelMarginLoss(_Loss):
    """How much nearer than 1 other classes come to each of a row's labels, which end at the first -1."""

    def forward(self, x: Any, target: Any) -> Any:
        return F.multilabel_margin_loss(x, target, self.reduction)


class PoissonNLLLoss(_Loss):
    """exp(x) - target x, of logarithms of rates; with log_input=False of rates. full: with Stirling's terms."""

    def __init__(self, log_input: bool = True, full: bool = False, eps: float = 1e-8, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.log_input, self.full, self.eps = log_input, full, eps

    def forward(self, x: Any, target: Any) -> Any:
        return F.poisson_nll_loss(x, target, self.log_input, self.full, self.eps, self.reduction)


class GaussianNLLLoss(_Loss):
    """The negative log likelihood of targets under normal distributions with a mean and a variance."""

    def __init__(self, *, full: bool = False, eps: float = 1e-6, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.full, self.eps = full, eps

    def forward(self, mean: Any, target: Any, variance: Any) -> Any:
        return F.gaussian_nll_loss(mean, target, variance, self.full, self.eps, self.reduction)


class SoftMarginLoss(_Loss):
    """log(1 + e^(-target x)), the target being 1 or -1."""

    def forward(self, x: Any, target: Any) -> Any:
        return F.soft_margin_loss(x, target, self.reduction)


class MultiLabelSoftMarginLoss(_Loss):
    """The mean over the classes of binary cross-entropies with logits. weight: (C,), of each class."""

    def __init__(self, weight: Any = None, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.register_buffer("weight", weight)

    def forward(self, x: Any, target: Any) -> Any:
        return F.multilabel_soft_margin_loss(x, target, self.weight, self.reduction)


class MultiMarginLoss(_Loss):
    """How much nearer than the margin the other classes come to the right one. p: 1 or 2."""

    def __init__(self, p: int = 1, margin: float = 1.0, weight: Any = None, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.p, self.margin = p, margin
        self.register_buffer("weight", weight)

    def forward(self, x: Any, labels: Any) -> Any:
        return F.multi_margin_loss(x, labels, self.p, self.margin, self.weight, self.reduction)


class CTCLoss(_Loss):
    """Of log probabilities (T, N, C) and targets (N, S) whose places in time are not known."""

    def __init__(self, blank: int = 0, reduction: str = "mean", zero_infinity: bool = False) -> None:
        super().__init__(reduction)
        self.blank, self.zero_infinity = blank, zero_infinity

    def forward(self, log_probs: Any, targets: Any, input_lengths: Any, target_lengths: Any) -> Any:
        options = (self.blank, self.reduction, self.zero_infinity)
        return F.ctc_loss(log_probs, targets, input_lengths, target_lengths, *options)


class ASMoutput(NamedTuple):
    """What AdaptiveLogSoftmaxWithLoss gives: log probabilities of the labels (N,), and minus their mean."""

    output: Any
    loss: Any


class AdaptiveLogSoftmaxWithLoss(Module):
    """log softmax over many classes, the frequent ones first: rarer ones in clusters with smaller weights.

    Grave et al. 2017, arXiv 1609.04309, with PyTorch's keys: `head` scores the classes below cutoffs[0] and each
    cluster, `tail` the classes of a cluster. Every row goes through every cluster, so that it can be compiled and
    traced: it saves parameters, and work only by their number.
    """

    def __init__(
        self,
        in_features: int,
        n_classes: int,
        cutoffs: Sequence[int],
        div_value: float = 4.0,
        head_bias: bool = False,
    ) -> None:
        """div_value: how many times narrower each cluster is than the one before. Raises SpecError for the cutoffs."""
        super().__init__()
        given = list(cutoffs)
        if not given or given != sorted(set(given)) or not 0 < given[0] <= given[-1] < n_classes:
            raise SpecError(
                f"AdaptiveLogSoftmaxWithLoss: expected cutoffs that ascend within 1..{n_classes - 1}, got {given}"
            )
        self.in_features, self.n_classes, self.cutoffs = in_features, n_classes, [*given, n_classes]
        self.div_value, self.head_bias = div_value, head_bias
        self.shortlist_size, self.n_clusters = given[0], len(given)
        self.head = Linear(in_features, self.shortlist_size + self.n_clusters, head_bias)
        narrower = [int(in_features // div_value ** (number + 1)) for number in range(self.n_clusters)]
        counts = [high - low for low, high in zip(self.cutoffs, self.cutoffs[1:], strict=False)]
        self.tail = ModuleList(
            Sequential(Linear(in_features, size, False), Linear(size, count, False))
            for size, count in zip(narrower, counts, strict=True)
        )

    def log_prob(self, input: Any) -> Any:
        """The logarithm of the probability of every class: (N, in_features) -> (N, n_classes)."""
        head = F.log_softmax(self.head(input), 1)
        parts = [head[:, : self.shortlist_size]]
        for number, cluster in enumerate(self.tail):
            place = self.shortlist_size + number
            parts.append(F.log_softmax(cluster(input), 1) + head[:, place : place + 1])
        return F.concat(parts, 1)

    def predict(self, input: Any) -> Any:
        """The most probable class of each row: (N, in_features) -> (N,), int64."""
        return self.log_prob(input).argmax(1)

    def forward(self, input: Any, target: Any) -> ASMoutput:
        """input: (N, in_features), target: (N,); or one row and its label. Raises ShapeError or IndexingError."""
        if input.ndim == 1 and target.ndim == 0:
            found = self.forward(input.expand_dims(0), target.reshape(1))
            return ASMoutput(found.output.reshape(()), found.loss)
        if input.ndim != 2 or target.shape != input.shape[:1]:
            raise ShapeError(
                f"AdaptiveLogSoftmaxWithLoss: expected input (N, {self.in_features}) and target (N,), "
                f"got {input.shape} and {target.shape}"
            )
        labels = known_classes("AdaptiveLogSoftmaxWithLoss", target.astype("int64"), self.n_classes)
        output = F.take_along_axis(self.log_prob(input), labels.expand_dims(1), 1).squeeze(1)
        return ASMoutput(output, -output.mean())


class CosineSimilarity(Module):
    """a · b / (|a| |b|) along an axis."""

    def __init__(self, dim: int = 1, eps: float = 1e-8) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps

    def forward(self, a: Any, b: Any) -> Any:
        return F.cosine_similarity(a, b, self.dim, self.eps)


class PairwiseDistance(Module):
    """The p-norm of a - b along the last axis."""

    def __init__(self, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> None:
        super().__init__()
        self.p, self.eps, self.keepdim = p, eps, keepdim

    def forward(self, a: Any, b: Any) -> Any:
        return F.pairwise_distance(a, b, self.p, self.eps, self.keepdim)

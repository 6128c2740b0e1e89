"""A training job as data: what to train, on what, how, and what it reports back.

These Structs are the shared vocabulary of a job file, a submitted job and the training loop.
Fields are never renamed or retyped; new fields get defaults.
"""

from typing import Annotated, Any, Literal, get_args

from msgspec import UNSET, Meta, Struct, UnsetType

from cyxcore.errors import SpecError
from cyxcore.transforms import AnyTransform

Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Natural = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]  # what every store can hold
Fraction = Annotated[float, Meta(ge=0.0, lt=1.0)]
Weight = Annotated[float, Meta(ge=0.0, le=100.0)]
Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]  # SHA-256, lower-case hex

Score = Annotated[str, Meta(pattern=r"\A[a-z0-9_]{1,64}\Z")]  # the name of a metric, or validation_ and that
Scores = Annotated[dict[Score, float], Meta(max_length=64)]
MetricName = Literal[
    "accuracy", "top_5_accuracy", "precision", "recall", "f1",
    "precision_macro", "precision_micro", "precision_weighted", "recall_macro", "recall_micro", "recall_weighted",
    "f1_macro", "f1_micro", "f1_weighted", "roc_auc", "average_precision", "log_loss", "perplexity", "cohen_kappa",
    "matthews_correlation", "mae", "mse", "rmse", "r2",
]  # fmt: skip

NumericsName = Literal["exact", "fast", "fast16", "bf16"]
DataFormat = Literal["csv", "parquet", "jsonl", "npz"]
Task = Literal["classification", "regression"]


class ModelSpec(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """A model, either as a list of layers or as a graph. Exactly one of the two is given.

    input: shape of one sample, without the batch, e.g. [64] or [1, 28, 28].
    layers: e.g. {"kind": "Linear", "out_features": 10}; see cyxcore/layertable.py for every kind.
    graph: the canonical JSON object of a cyxcore.graph.Graph.
    weights: digest of a safetensors artifact with the initial parameters; without it they are
        drawn from the graph's initialisers and the job's seed.
    """

    input: list[Positive] | None = None
    layers: list[dict[str, Any]] | None = None
    graph: dict[str, Any] | None = None
    weights: Digest | None = None


class DataSpec(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """How to read a dataset.

    target: column (tables) or array name (NPZ) with the label or value to predict.
    features: columns to learn from, in order; all but target and ignore when absent.
    validation: share of the rows held out, chosen by the job's seed.
    normalize: how inputs are scaled; the statistics come from the training rows and travel inside
        the model, so a delivered model takes raw features.
    task: "classification" (labels become class indices) or "regression"; guessed from the loss. With loss bce,
        "regression" means numbers between 0 and 1, any number of them.
    target_is_input: the model learns to give its own input; there are no labels, and target means nothing.
    augment: what is done to the images of each training step (cyxcore/transforms), keyed by seed and step; validation
        rows, statistics, and targets that are the input stay as they are.
    image_shape: (channels, height, width) of a row for augment, where rows are flat.
    white: the value of a white pixel, for transforms of colours and what is filled in.
    """

    format: DataFormat = "csv"
    target: str = "label"
    features: list[str] | None = None
    ignore: list[str] = []
    validation: Fraction = 0.2
    normalize: Literal["standard", "minmax", "none"] = "standard"
    task: Task | None = None
    target_is_input: bool = False
    augment: Annotated[list[AnyTransform], Meta(max_length=32)] = []
    image_shape: tuple[Positive, Positive, Positive] | None = None
    white: Annotated[float, Meta(gt=0.0, le=1e9)] = 255.0


class OptimizerSpec(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """An update rule (cyxcore/updates.py).

    betas, eps: of adam, adamw, nadam, adamax, radam, rmsprop (eps), adagrad (eps), adadelta (eps) and lion (betas);
    absent, each rule has its own.
    momentum: of sgd and rmsprop. nesterov, dampening (what the gradient loses on its way into the momentum, after the
    first step): of sgd. amsgrad (by the largest second moment so far): of adam and adamw. alpha, centered: of rmsprop.
    lr_decay, initial_accumulator: of adagrad. momentum_decay: of nadam. rho: of adadelta. beta2_decay (the exponent of
    the step), least_scale (of a parameter) and clip_threshold (of an update's root mean square): of adafactor.
    etas (a step's factor after a change of sign, and without one), step_sizes (the least and the largest): of rprop.
    rate_decay, rate_power: of asgd, whose learning rate is divided by (1 + rate_decay * rate * steps) ** rate_power;
    average_from: the step after which it averages.
    weight_decay: shrinks the parameter itself in adamw and lion, is added to the gradient (L2) in the others;
    decoupled_weight_decay: it does so in adam, nadam and radam, too.
    l1: weight of |p| in what is minimised; with weight_decay this is the elastic net.
    maximize: the other way, up the loss; weight_decay and l1 still make parameters smaller.
    """

    name: Literal[
        "sgd", "adam", "adamw", "nadam", "rmsprop", "adagrad", "lion", "adamax", "radam", "adadelta", "adafactor",
        "rprop", "asgd",
    ] = "adam"  # fmt: skip
    learning_rate: Annotated[float, Meta(gt=0.0, le=100.0)] = 0.001
    momentum: Fraction = 0.0
    nesterov: bool = False
    betas: tuple[Fraction, Fraction] | None = None
    eps: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    weight_decay: Weight = 0.0
    l1: Weight = 0.0
    alpha: Fraction = 0.99
    centered: bool = False
    lr_decay: Weight = 0.0
    initial_accumulator: Weight = 0.0
    momentum_decay: Weight = 0.004
    rho: Fraction = 0.9
    beta2_decay: Annotated[float, Meta(ge=-1.0, lt=0.0)] = -0.8
    least_scale: Annotated[float, Meta(gt=0.0, le=1.0)] = 1e-3
    clip_threshold: Annotated[float, Meta(ge=1.0, le=1e9)] = 1.0
    etas: tuple[Annotated[float, Meta(gt=0.0, lt=1.0)], Annotated[float, Meta(gt=1.0, le=100.0)]] = (0.5, 1.2)
    step_sizes: tuple[Annotated[float, Meta(gt=0.0, le=1e9)], Annotated[float, Meta(gt=0.0, le=1e9)]] = (1e-6, 50.0)
    rate_decay: Weight = 1e-4
    rate_power: Annotated[float, Meta(ge=0.0, le=10.0)] = 0.75
    average_from: Natural = 1_000_000
    dampening: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    amsgrad: bool = False
    decoupled_weight_decay: bool = False
    maximize: bool = False


class ScheduleSpec(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """How the learning rate changes during a run (cyxcore/schedules.py); the optimiser's is the highest it reaches.

    constant. step: times `factor` after every `period` epochs. exponential: times `factor` after every epoch.
    cosine, linear: down to `final` times the learning rate at the last step. one_cycle: up for the first 30 % of the
    steps, from a 25th, and down to a 250,000th; the momentum stays. plateau: times `factor` whenever the loss
    that picks the best epoch has not gone down by a ten-thousandth for more than `patience` epochs.
    warmup_steps: before all that, up from nothing in equal parts.
    """

    name: Literal["constant", "step", "exponential", "cosine", "linear", "one_cycle", "plateau"] = "constant"
    factor: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.1
    period: Positive = 30
    final: Fraction = 0.0
    patience: Natural = 10
    warmup_steps: Natural = 0


class TrainingSpec(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """How to train.

    loss: huber is quadratic up to a distance of 1 (smooth L1) and linear beyond. keep: which epoch's weights are
    delivered, the best by validation loss or the last.
    clip_norm: gradients whose 2-norm, over all parameters together, is larger are scaled down to it.
    clip_value: each element of a gradient is kept within -clip_value … clip_value, before the norm is taken.
    label_smoothing: of cross_entropy; this share of each label is spread over all classes.
    numerics: the class of products on a CPU (cyxcore/precision.py). Only exact can be verified by training again.
    metrics: of the held-out rows, after each epoch, beside the loss (cyxcore/metrics).
    """

    epochs: Annotated[int, Meta(ge=1, le=1_000_000)] = 10
    batch_size: Annotated[int, Meta(ge=1, le=1_048_576)] = 32
    loss: Literal["cross_entropy", "mse", "bce", "l1", "huber"] = "cross_entropy"
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    clip_norm: Annotated[float, Meta(gt=0.0, le=1e9)] | None = None
    clip_value: Annotated[float, Meta(gt=0.0, le=1e9)] | None = None
    label_smoothing: Fraction = 0.0
    seed: Natural = 0
    keep: Literal["best", "last"] = "best"
    numerics: NumericsName = "exact"
    metrics: Annotated[list[MetricName], Meta(max_length=24)] = []


OF_CLASSES = ("cross_entropy", "bce")  # the losses of models that predict classes
OF_VALUES = ("mae", "mse", "rmse", "r2")  # the metrics of values; the others are of classes


def check_metrics(training: TrainingSpec, held_out: bool) -> None:
    """Raises SpecError for metrics of another kind of loss, and where no rows are held out that they could be of."""
    classes = training.loss in OF_CLASSES
    for name in training.metrics:
        if (name in OF_VALUES) == classes:
            fitting = [each for each in get_args(MetricName) if (each in OF_VALUES) != classes]
            raise SpecError(
                f"training.metrics: {name} does not go with loss {training.loss}; expected some of {', '.join(fitting)}"
            )
    if training.metrics and not held_out:
        raise SpecError("training.metrics: they are of held-out rows, and there are none; raise data.validation")


def check_summary_metric(name: str, data: DataSpec) -> None:
    """Raises SpecError for a field of TrainingSummary that a job on such data will not have."""
    if name.startswith("validation_") and data.validation == 0.0:
        raise SpecError(f"{name}: no rows are held out, of which it could be; raise data.validation")
    if data.task is None:
        return
    if name.endswith("accuracy") and data.task != "classification" or name.endswith("r2") and data.task != "regression":
        fitting = "validation_r2 or a loss" if data.task == "regression" else "an accuracy or a loss"
        raise SpecError(f"{name}: there is none of a {data.task}; expected {fitting}")


class BatchMetrics(Struct, kw_only=True):
    """Said after a training batch. accuracy is absent for regression; batches is 0 where the data does not say."""

    epoch: Int64  # 1-based
    epochs: Int64
    batch: Int64  # 1-based, within the epoch
    batches: Int64
    step: Int64  # 1-based, over the whole run
    batch_loss: float
    batch_accuracy: float | None = None
    batch_time_ms: float
    learning_rate: float
    samples_per_s: float


class EpochMetrics(Struct, kw_only=True):
    """Said after an epoch; validation fields are absent when nothing is held out.

    scores: other metrics by name, "validation_" before it where they are of the held-out rows.
    """

    epoch: Int64
    epochs: Int64
    step: Int64
    epoch_loss: float
    epoch_accuracy: float | None = None
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    validation_r2: float | None = None
    epoch_time_ms: float
    samples_per_s: float
    scores: Scores | UnsetType = UNSET


class TrainingSummary(Struct, kw_only=True):
    """Said once at the end. The delivered weights are those of `delivered_epoch`."""

    total_time_ms: float
    steps: Int64
    final_loss: float
    final_accuracy: float | None = None
    best_epoch: Int64
    delivered_epoch: Int64
    validation_loss: float | None = None  # of the delivered weights
    validation_accuracy: float | None = None
    validation_r2: float | None = None
    train_rows: Int64
    validation_rows: Int64
    parameters: Int64
    numerics: str = "cyx-exact/1"

"""A training job as data: what to train, on what, how, and what it reports back.

These Structs are the shared vocabulary of a job file, a submitted job and the training loop.
Fields are never renamed or retyped; new fields get defaults.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Natural = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Fraction = Annotated[float, Meta(ge=0.0, lt=1.0)]
Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]  # SHA-256, lower-case hex

DataFormat = Literal["csv", "parquet", "jsonl", "npz"]
Task = Literal["classification", "regression"]


class ModelSpec(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A model, either as a list of layers or as a graph. Exactly one of the two is given.

    input: shape of one sample, without the batch, e.g. [64] or [1, 28, 28].
    layers: e.g. {"kind": "Linear", "out_features": 10}; see cyxcore/layers.py for every kind.
    graph: the canonical JSON object of a cyxcore.graph.Graph.
    weights: digest of a safetensors artifact with the initial parameters; without it they are
        drawn from the graph's initialisers and the job's seed.
    """

    input: list[Positive] | None = None
    layers: list[dict[str, Any]] | None = None
    graph: dict[str, Any] | None = None
    weights: Digest | None = None


class DataSpec(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How to read a dataset.

    target: column (tables) or array name (NPZ) with the label or value to predict.
    features: columns to learn from, in order; all but target and ignore when absent.
    validation: share of the rows held out, chosen by the job's seed.
    normalize: how inputs are scaled; the statistics come from the training rows and travel inside
        the model, so a delivered model takes raw features.
    task: "classification" (labels become class indices) or "regression"; guessed from the loss.
    """

    format: DataFormat = "csv"
    target: str = "label"
    features: list[str] | None = None
    ignore: list[str] = []
    validation: Fraction = 0.2
    normalize: Literal["standard", "minmax", "none"] = "standard"
    task: Task | None = None


class OptimizerSpec(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An update rule. Defaults are those of the usual libraries for each name."""

    name: Literal["sgd", "adam", "adamw"] = "adam"
    learning_rate: Annotated[float, Meta(gt=0.0, le=100.0)] = 0.001
    momentum: Fraction = 0.0
    nesterov: bool = False
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Annotated[float, Meta(gt=0.0, le=1.0)] = 1e-8
    weight_decay: Annotated[float, Meta(ge=0.0, le=100.0)] = 0.0


class TrainingSpec(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How to train. `keep` says which epoch's weights are delivered (best by validation loss)."""

    epochs: Annotated[int, Meta(ge=1, le=1_000_000)] = 10
    batch_size: Annotated[int, Meta(ge=1, le=1_048_576)] = 32
    loss: Literal["cross_entropy", "mse", "bce"] = "cross_entropy"
    optimizer: OptimizerSpec = OptimizerSpec()
    seed: Natural = 0
    keep: Literal["best", "last"] = "best"
    numerics: Literal["exact"] = "exact"


class BatchMetrics(Struct, kw_only=True):
    """Said after a training batch. accuracy is absent for regression."""

    epoch: int  # 1-based
    epochs: int
    batch: int  # 1-based, within the epoch
    batches: int
    step: int  # 1-based, over the whole run
    batch_loss: float
    batch_accuracy: float | None = None
    batch_time_ms: float
    learning_rate: float
    samples_per_s: float


class EpochMetrics(Struct, kw_only=True):
    """Said after an epoch; validation fields are absent when nothing is held out."""

    epoch: int
    epochs: int
    step: int
    epoch_loss: float
    epoch_accuracy: float | None = None
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    validation_r2: float | None = None
    epoch_time_ms: float
    samples_per_s: float


class TrainingSummary(Struct, kw_only=True):
    """Said once at the end. The delivered weights are those of `delivered_epoch`."""

    total_time_ms: float
    steps: int
    final_loss: float
    final_accuracy: float | None = None
    best_epoch: int
    delivered_epoch: int
    validation_loss: float | None = None  # of the delivered weights
    validation_accuracy: float | None = None
    validation_r2: float | None = None
    train_rows: int
    validation_rows: int
    parameters: int
    numerics: str = "cyx-exact/1"

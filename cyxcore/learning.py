"""What a training loop (training.py) drives: something that steps through an epoch and can be judged and stored.

There are two: a graph with a TrainingSpec, as in jobs (graphlearner.py), and a module with an optimiser of the user's
process (modulelearner.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from cyxcore.checkpoint import Checkpoint, Identity, Position

Array = Any  # numpy.ndarray, or cupy.ndarray where the device has its own memory


class Stepped(NamedTuple):
    """A batch was learned from. loss, right: means over its rows; right is None where no class is predicted."""

    rows: int
    loss: float
    right: float | None
    learning_rate: float


class Facts(NamedTuple):
    """Of a whole run, for its summary."""

    train_rows: int
    validation_rows: int
    parameters: int
    numerics: str


class Learner(Protocol):
    @property
    def batches(self) -> int | None:
        """Of an epoch; None where the data does not say."""

    def steps(self, at: Position, epochs: int, judged: Sequence[float]) -> Iterator[Stepped]:
        """Learn from what is left of the epoch of `at`, a batch at each next(). judged: of each epoch before, its loss.

        Raises DivergedError when the loss is no number any more.
        """

    def scores(self) -> dict[str, float]:
        """The metrics of the training batches since the last call."""

    def held_out(self) -> dict[str, float]:
        """The loss and the metrics of the held-out rows; nothing where there are none."""

    def end_epoch(self, rows: int, judged: float) -> None:
        """All is known of an epoch: how many rows it had, and the loss by which it is compared."""

    def delivered(self) -> dict[str, Array]:
        """Copies of the weights as they would be handed out now."""

    def facts(self) -> Facts: ...

    # checkpoints --------------------------------------------------------------------------------

    def identity(self) -> Identity:
        """What a checkpoint must have in common with this run."""

    def state(self) -> Mapping[str, Array]:
        """All arrays that the next step depends on; not copies."""

    def notes(self) -> dict[str, Any] | None:
        """What else the next step depends on, as JSON; None where it is nothing."""

    def restore(self, found: Checkpoint) -> None:
        """Take a checkpoint with this identity over. Raises CheckpointError where it does not fit."""

    def rows_until(self, batch: int) -> int | None:
        """How many rows the first `batch` batches of an epoch have; None where only reading them tells."""

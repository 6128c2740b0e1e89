"""A module that learns in the user's own process: with a loss, an optimiser, and whatever gives batches.

A step is compiled (steps.py): forward, loss, backward, clipping and update are one plan for each shape of a batch. With
several batches to a step (accumulate) the plan ends at the gradients. compiled=False runs every operation at once.
"""

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec
import numpy as np

from cyxcore import checkpoint as checkpoints
from cyxcore import device as devices
from cyxcore import eager, lr_scheduler, optim, precision
from cyxcore.batches import Batch, Source, is_array, tensor
from cyxcore.checkpoint import Checkpoint, Identity, Position
from cyxcore.eager import Tensor, no_grad
from cyxcore.errors import CheckpointError, CyxError, DataError, DivergedError, GraphError, ShapeError, SpecError
from cyxcore.learning import Facts, Stepped
from cyxcore.metrics import Metric, named
from cyxcore.nn.module import Module
from cyxcore.objectives import OBJECTIVES
from cyxcore.optim import ExponentialMovingAverage, Optimizer
from cyxcore.steps import CompiledStep
from cyxcore.surroundings import Surroundings

Array = Any  # numpy.ndarray, or cupy.ndarray where the device has its own memory

MODEL, OPTIMIZER, EMA, GRADIENT, METRIC = "model.", "optimizer.", "ema.", "gradient.", "metric."


class Options(NamedTuple):
    """How a module learns; see Trainer."""

    accumulate: int = 1
    clip_norm: float | None = None
    clip_value: float | None = None
    ema_decay: float | None = None
    scheduler_per: str = "epoch"
    compiled: bool = True
    seed: int = 0
    numerics: str = "exact"


class Held(NamedTuple):
    """What an array of a checkpoint must be."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class ModuleLearner:
    """See Learner. `source` and `validation` are set by each fit."""

    def __init__(
        self, model: Module, loss: Any, optimizer: Optimizer, metrics: Any, scheduler: Any, options: Options
    ) -> None:
        self.model, self.loss, self.optimizer = model, _loss(loss), optimizer
        self.scheduler, self.options = scheduler, options
        self.metrics: dict[str, Metric] = named(metrics)
        self._judges = copy.deepcopy(self.metrics)
        known = {id(parameter) for parameter in model.parameters()}
        if any(id(parameter) not in known for parameter in optimizer.parameters):
            raise SpecError("Trainer: the optimizer has parameters that the model lacks; make it of model.parameters()")
        self.ema = None
        if options.ema_decay is not None:
            self.ema = ExponentialMovingAverage(optimizer.parameters, options.ema_decay)
        self._averaged = False  # whether the model has the averages, and self.ema what the optimiser goes on from
        self.source: Source | None = None
        self.validation: Source | None = None
        self._rows, self._validation_rows = 0, 0
        self._waiting = 0  # rows whose gradients are added up and not applied yet
        self._compile()

    def _compile(self) -> None:
        """Plans are made again at the next step: they hold the arrays of the optimiser as it was."""
        parts = [self.model, *([self.loss] if isinstance(self.loss, Module) else [])]
        step: Callable[..., Any] = self._whole_step if self.options.accumulate == 1 else self._gradients
        judge: Callable[..., Any] = self._judged
        output: Callable[..., Any] = self.model.forward
        numerics = self.options.numerics
        if self.options.compiled:
            optimizers = [self.optimizer] if self.options.accumulate == 1 else []
            step = CompiledStep(step, Surroundings(None, parts, optimizers), None, numerics)
            judge = CompiledStep(judge, Surroundings(None, parts), None, numerics)
            output = CompiledStep(output, Surroundings(None, [self.model]), None, numerics)
        else:
            step, judge, output = (_in_class(numerics, function) for function in (step, judge, output))
        self._step, self._judge, self._output = step, judge, output

    @property
    def dtype(self) -> str | None:
        """Of the model's floats."""
        return next((p.dtype for p in self.model.parameters()), None)

    @property
    def batches(self) -> int | None:
        return None if self.source is None else self.source.batches

    # steps --------------------------------------------------------------------------------------

    def _forward(self, batch: Sequence[Any]) -> tuple[Any, Any]:
        """(loss, output) of the tensors of a batch, the last of which is the target."""
        *inputs, target = batch
        output = self.model(*inputs)
        return self.loss(output, target), output

    def _returned(self, loss: Any, output: Any) -> Any:
        """What a step gives back: outputs are copied, so only where a metric wants them."""
        return (loss, output) if self.metrics else loss

    def _whole_step(self, *batch: Any) -> Any:
        loss, output = self._forward(batch)
        self.optimizer.zero_grad()
        loss.backward()
        self._clip()
        self.optimizer.step()
        return self._returned(loss, output)

    def _gradients(self, *batch: Any) -> Any:
        """Adds the gradient of the sum over the rows to what is there."""
        loss, output = self._forward(batch)
        (loss * float(batch[-1].shape[0])).backward()
        return self._returned(loss, output)

    def _trained(self) -> list[Any]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def _clip(self) -> None:
        parameters = self.optimizer.parameters
        if self.options.clip_value is not None:
            optim.clip_grad_value_(parameters, self.options.clip_value)
        if self.options.clip_norm is not None:
            optim.clip_grad_norm_(parameters, self.options.clip_norm)

    def _learn(self, batch: Batch, step: int, where: str) -> Stepped:
        tensors = _flat(batch)
        rows, lr = tensors[-1].shape[0], self.optimizer.lr
        try:
            found = self._step(*tensors)
        except GraphError as error:
            if not self.options.compiled:
                raise
            raise GraphError(f"Trainer: the step cannot be compiled: {error}; or pass compiled=False") from None
        loss, *others = found if isinstance(found, tuple) else (found,)
        value = float(loss.item())
        if not math.isfinite(value):
            raise DivergedError(f"fit: the loss became {value} at {where}{_cause(tensors, lr, step)}")
        if self.metrics:
            output = others.pop(0).detach()
            for metric in self.metrics.values():
                metric.update(output.numpy(), tensors[-1].numpy())
        if self.options.accumulate > 1:
            self._waiting += rows
        return Stepped(rows, value, None, lr)

    def _update(self) -> None:
        """After the last batch of a step."""
        if self.options.accumulate > 1:
            with no_grad():
                for p in self._trained():
                    p.grad = None if p.grad is None else p.grad * (1.0 / self._waiting)
            self._clip()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self._waiting = 0
        if self.ema is not None:
            self.ema.update()
        if self.scheduler is not None and self.options.scheduler_per == "step":
            self.scheduler.step()

    def steps(self, at: Position, epochs: int, judged: Sequence[float]) -> Iterator[Stepped]:
        """See Learner. The optimiser makes a step after `accumulate` batches, and after an epoch's last."""
        assert self.source is not None, "fit sets it"
        self.model.train()
        place, step = at.batch, at.step
        for batch in self.source.epoch(at.epoch, at.batch):
            place, step = place + 1, step + 1
            stepped = self._learn(batch, step, f"step {step} (batch {place} of epoch {at.epoch})")
            if place % self.options.accumulate == 0:
                self._update()
            yield stepped
        if self._waiting:
            self._update()

    def rows_until(self, batch: int) -> int | None:
        return None if self.source is None else self.source.rows_until(batch)

    # judging ------------------------------------------------------------------------------------

    def _judged(self, *batch: Any) -> Any:
        return self._forward(batch)

    def judge(self, source: Source) -> tuple[dict[str, float], int]:
        """({"loss": mean over the rows, metric: ...} of one pass over a source, how many rows that were).

        The model is in inference mode meanwhile; the random numbers of the training go on as if nothing had been.
        """
        for metric in self._judges.values():
            metric.reset()
        losses: list[float] = []
        rows = 0
        with self.inference():
            for batch in source.epoch(1, 0):
                tensors = _flat(batch)
                loss, output = self._judge(*tensors)
                losses.append(float(loss.item()) * tensors[-1].shape[0])
                rows += tensors[-1].shape[0]
                for metric in self._judges.values():
                    metric.update(output.numpy(), tensors[-1].numpy())
        if not rows:
            raise DataError("evaluate: expected at least one batch, got none")
        scores = {name: float(metric.compute()) for name, metric in self._judges.items()}
        return {"loss": math.fsum(losses) / rows, **scores}, rows

    def predict(self, x: Any, batch_size: int) -> Any:
        """The outputs for all rows of x as NumPy arrays; a tuple of them where the model returns one."""
        inputs = list(x) if isinstance(x, tuple) else [x]
        for part in inputs:
            if not (is_array(part) or isinstance(part, list)):
                raise SpecError(f"predict: expected arrays, or a tuple of them, got {type(part).__name__}")
        held = [tensor(np.asarray(part) if isinstance(part, list) else part, self.dtype) for part in inputs]
        rows = held[0].shape[0] if held[0].shape else 0
        if not rows or any(part.shape[:1] != (rows,) for part in held):
            raise ShapeError(f"predict: expected arrays with one row per sample, got {[part.shape for part in held]}")
        parts = []
        with self.inference():
            for start in range(0, rows, batch_size):
                found = self._output(*(part[start : start + batch_size] for part in held))
                parts.append([each.numpy() for each in (found if isinstance(found, tuple) else (found,))])
        whole = tuple(np.concatenate(pieces) for pieces in zip(*parts, strict=True))
        return whole if len(whole) > 1 else whole[0]

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Within the block: averaged weights where there are any, inference mode, no gradients.

        Random numbers drawn in it are not missed afterwards.
        """
        before, was_training = eager.generator_state(), [(part, part.training) for part in self.model.modules()]
        shown = self._averaged
        self.show_averages(True)
        self.model.eval()
        try:
            with no_grad():
                yield
        finally:
            for part, mode in was_training:
                part.__dict__["training"] = mode
            self.show_averages(shown)
            eager.set_generator_state(before)

    def show_averages(self, wanted: bool) -> None:
        """Whether the model has the averages of its weights, where there are any, or what the optimiser works on."""
        if self.ema is not None and self._averaged != wanted:
            self.ema.swap()
            self._averaged = wanted

    def scores(self) -> dict[str, float]:
        found = {name: float(metric.compute()) for name, metric in self.metrics.items()}
        for metric in self.metrics.values():
            metric.reset()
        return found

    def held_out(self) -> dict[str, float]:
        if self.validation is None:
            return {}
        found, self._validation_rows = self.judge(self.validation)
        return found

    def end_epoch(self, rows: int, judged: float) -> None:
        self._rows = rows
        if self.scheduler is None or self.options.scheduler_per == "step":
            return
        if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(judged)
        else:
            self.scheduler.step()

    def delivered(self) -> dict[str, Array]:
        with self.inference():
            return {name: np.array(array) for name, array in self.model.state_dict().items()}

    def deliver(self, weights: Mapping[str, Array]) -> None:
        """Give the model weights that delivered() gave. The averages, where there are any, are these then."""
        self.show_averages(True)
        self.model.load_state_dict(weights)

    def facts(self) -> Facts:
        parameters = sum(p.size for p in self._trained())
        return Facts(self._rows, self._validation_rows, parameters, self.identity().numerics)

    # checkpoints --------------------------------------------------------------------------------

    def identity(self) -> Identity:
        arrays = ", ".join(
            f"{name} {array.dtype.name} {array.shape}" for name, array in self.model.saved_arrays().items()
        )
        device = next((p.device for p in self.model.parameters()), devices.default_device())
        options = {
            name: value for name, value in self.options._asdict().items() if name not in ("compiled", "numerics")
        }
        training = {**options, "optimizer": type(self.optimizer).__name__, "scheduler": type(self.scheduler).__name__}
        return Identity(
            graph_sha256=hashlib.sha256(arrays.encode()).hexdigest(),
            training=msgspec.json.encode({**training, "metrics": sorted(self.metrics)}, order="sorted").decode(),
            rows="none" if self.source is None else self.source.described,
            numerics=precision.in_effect(device, self.options.numerics),
        )

    def state(self) -> dict[str, Array]:
        """Every array that the next step depends on, by names that tell whose it is."""
        shown = self._averaged
        self.show_averages(False)
        found = {MODEL + name: array.copy() for name, array in self.model.saved_arrays().items()}
        for place, own in self.optimizer.state.items():
            arrays = {kind: value for kind, value in own.items() if isinstance(value, Tensor)}
            found |= {f"{OPTIMIZER}{place}.{kind}": value._data for kind, value in arrays.items()}
        if self.ema is not None:
            found |= {f"{EMA}{place}": array.copy() for place, array in enumerate(self.ema.averages)}
        for name, p in self.model.named_parameters():
            if self._waiting and p.grad is not None:
                found[GRADIENT + name] = p.grad._data
        for name, metric in self.metrics.items():
            found |= {f"{METRIC}{name}.{key}": array for key, array in metric.state.items()}
        self.show_averages(shown)
        return found

    def notes(self) -> dict[str, Any]:
        options = [
            {name: value for name, value in group.items() if name != "params"} for group in self.optimizer.param_groups
        ]
        return {
            "generator": list(eager.generator_state()),
            "optimizer": {
                "steps": self.optimizer.steps,
                "groups": options,
                "missed": {str(place): count for place, count in self.optimizer.missed.items()},
                "numbers": {
                    f"{place}.{kind}": value
                    for place, own in self.optimizer.state.items()
                    for kind, value in own.items()
                    if not isinstance(value, Tensor)
                },
            },
            "scheduler": self.scheduler.state_dict() if self.scheduler is not None else None,
            "waiting": self._waiting,
            "data": None if self.source is None else self.source.state_dict(),
        }

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """After the block everything is as before it: weights, optimiser, schedule, metrics, data, random numbers."""
        state = {name: np.array(devices.host(array)) for name, array in self.state().items()}
        notes, source, shown, scheduler = self.notes(), self.source, self._averaged, self.scheduler
        modes = [(part, part.training) for part in self.model.modules()]
        self.show_averages(False)
        self.scheduler = None  # it would set rates of its own
        try:
            yield
        finally:
            self.source, self.scheduler = source, scheduler
            for metric in self.metrics.values():
                metric.reset()
            self._restore(_by_owner(state), notes)
            for part, mode in modes:
                part.__dict__["training"] = mode
            self.show_averages(shown)

    def restore(self, found: Checkpoint) -> None:
        """Take a checkpoint's state over, which must be of this model, optimiser and data. Raises CheckpointError."""
        parts, notes = _by_owner(found.state), found.notes or {}
        try:
            self._restore(parts, notes)
            if found.delivered:
                self.check_delivered(found.delivered)
        except (CyxError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"checkpoint: it does not fit this trainer: {error}") from None

    def check_delivered(self, weights: Mapping[str, Array]) -> None:
        """Raises CheckpointError for weights that are not this model's."""
        held = self.model.state_dict()
        checkpoints.check_arrays(weights, [Held(n, a.shape, a.dtype.name) for n, a in held.items()], "delivered")

    def _restore(self, parts: dict[str, dict[str, Array]], notes: dict[str, Any]) -> None:
        self.show_averages(False)
        self.model.load_state_dict(parts.get(MODEL, {}))
        state: dict[int, dict[str, Any]] = {}
        for name, array in (parts.get(OPTIMIZER, {}) | notes["optimizer"].get("numbers", {})).items():
            number, _, kind = name.partition(".")
            state.setdefault(int(number), {})[kind] = array
        groups = [
            {**options, "params": group["params"]}
            for group, options in zip(self.optimizer.param_groups, notes["optimizer"]["groups"], strict=True)
        ]
        for group in groups:  # JSON has no tuples
            group.update({name: tuple(value) for name, value in group.items() if name == "betas"})
        own = {"steps": notes["optimizer"]["steps"], "missed": notes["optimizer"].get("missed", {})}
        self.optimizer.load_state_dict({**own, "state": state, "param_groups": groups})
        if self.ema is not None:
            averages = parts.get(EMA, {})
            for place, average in enumerate(self.ema.averages):
                average[...] = averages[str(place)]
        if self.scheduler is not None:
            self.scheduler.load_state_dict(notes["scheduler"])
        self._waiting = int(notes["waiting"])
        own = dict(self.model.named_parameters())
        for name, array in parts.get(GRADIENT, {}).items():
            own[name].grad = Tensor(array).to(own[name].device)
        for name, array in parts.get(METRIC, {}).items():
            judge, _, key = name.rpartition(".")
            self.metrics[judge].state[key] = array
        if self.source is not None and notes["data"] is not None:
            self.source.load_state_dict(notes["data"])
        seed, step = notes["generator"]
        eager.set_generator_state((int(seed), int(step)))
        self._compile()


def _in_class(numerics: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with products of this class, for operations that run at once."""

    def run(*arguments: Any) -> Any:
        with precision.of_thread(numerics):
            return function(*arguments)

    return run


def _by_owner(state: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    """ "model.0.weight" → {"model.": {"0.weight": …}}."""
    parts: dict[str, dict[str, Array]] = {}
    for name, array in state.items():
        owner, _, rest = name.partition(".")
        parts.setdefault(owner + ".", {})[rest] = array
    return parts


def _cause(tensors: Sequence[Tensor], lr: float, step: int) -> str:
    """What may have made a loss no number, and what to do: a learning rate cannot help where the data are none."""
    for values in (each.numpy() for each in tensors):
        bad = int((~np.isfinite(values)).reshape(len(values), -1).any(1).sum()) if values.dtype.kind in "fc" else 0
        if bad:
            return (
                f": {bad} of the {len(values)} rows of this batch hold NaN or infinity; fill them in "
                "(cx.preprocessing.Imputer), or leave them out"
            )
    if step == 1:
        return " before any update: make the model anew if a fit that failed left NaN in its weights, or scale the data"
    return f"; try a learning rate below {lr:g}"


def _flat(batch: Batch) -> list[Tensor]:
    """The tensors of a batch, target last; without a target the input is what the model is to give back."""
    inputs, target = batch
    return [*inputs, inputs[0] if target is None else target]


def _loss(given: Any) -> Callable[[Any, Any], Any]:
    """A loss by name, or whatever takes (output, target)."""
    if isinstance(given, str):
        if given not in OBJECTIVES:
            raise SpecError(f"Trainer: expected a loss out of {', '.join(OBJECTIVES)}, or a function, got {given!r}")
        rows = OBJECTIVES[given].rows
        return lambda output, target: rows(output, target).mean()
    if not callable(given):
        raise SpecError(f"Trainer: expected the loss as a function of (output, target), got {type(given).__name__}")
    found: Callable[[Any, Any], Any] = given
    return found

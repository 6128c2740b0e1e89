"""How a fit shows itself: a live bar on a terminal, a table in a notebook, a line for each epoch anywhere else."""

import importlib
import math
import sys
import time
from collections import deque
from html import escape
from typing import IO, TYPE_CHECKING, Any

from cyxcore.callbacks import Callback
from cyxcore.history import names, value
from cyxcore.spec import BatchMetrics, EpochMetrics, TrainingSummary
from cyxcore.wording import human_duration, percent, sparkline

if TYPE_CHECKING:
    from cyxcore.training import Trainer

BAR_WIDTH = 40
NOTEBOOK_INTERVAL_S = 0.25  # between two updates of a notebook's cell
LOSSES_KEPT = 2000
SHARES = ("accuracy", "precision", "recall", "f1")  # how the names of what is said in percent end


def told(name: str, number: float) -> str:
    """ "validation accuracy 97.1 %"."""
    text = percent(number) if name.endswith(SHARES) else f"{number:.4f}"
    return f"{name.replace('_', ' ')} {text}"


def line(metrics: EpochMetrics) -> str:
    """An epoch in one line."""
    numbers = [told(name, found) for name in names(metrics) if (found := value(metrics, name)) is not None]
    place = f"epoch {metrics.epoch:>{len(str(metrics.epochs))}}/{metrics.epochs}"
    return "  ".join([place, *numbers, f"{metrics.samples_per_s:,.0f} samples/s"])


class Progress(Callback):
    """Shows a fit on `out` (stderr by default, so that what a program prints stays its own)."""

    def __init__(self, out: IO[str] | None = None) -> None:
        self.out = out
        self._batch: BatchMetrics | None = None
        self._losses: deque[float] = deque(maxlen=LOSSES_KEPT)
        self._form: _Lines | _Terminal | _Notebook

    def on_fit_begin(self, trainer: "Trainer") -> None:
        out = self.out or sys.stderr
        self._batch, self._began_s = None, time.monotonic()
        self._losses.clear()
        self._done = 0
        if self.out is None and (display := _notebook_display()) is not None:
            self._form = _Notebook(self, display)
        else:
            self._form = _Terminal(self, out) if out.isatty() else _Lines(out)

    def on_batch_end(self, trainer: "Trainer", metrics: BatchMetrics) -> None:
        self._batch = metrics
        self._done += 1
        self._losses.append(metrics.batch_loss)
        self._form.batch()

    def on_epoch_end(self, trainer: "Trainer", metrics: EpochMetrics) -> None:
        self._form.say(line(metrics))

    def on_fit_end(self, trainer: "Trainer", summary: TrainingSummary | None) -> None:
        if trainer.stopped:
            self._form.say(ending(trainer))
        self._form.close()

    def on_exception(self, trainer: "Trainer", exception: BaseException) -> None:
        if hasattr(self, "_form"):
            self._form.close()

    # what is shown of the present moment ----------------------------------------------------------

    @property
    def fraction(self) -> float | None:
        """How much is done; None where the data does not say how much there is."""
        now = self._batch
        if now is None or not now.batches:
            return None
        return (now.epoch - 1 + now.batch / now.batches) / now.epochs

    def headline(self) -> str:
        """Epoch, batch, loss, speed and the time left."""
        now = self._batch
        if now is None:
            return "compiling the first step"
        of = f"/{now.batches}" if now.batches else ""
        parts = [f"epoch {now.epoch}/{now.epochs}", f"batch {now.batch}{of}", f"loss {now.batch_loss:.4f}"]
        parts.append(f"{now.samples_per_s:,.0f} samples/s")
        # Of batches, not steps: a step may be of several, and an earlier fit may have had batches of another size.
        left = (now.batches or 0) * (now.epochs - now.epoch + 1) - now.batch
        if left > 0:
            parts.append(f"{human_duration((time.monotonic() - self._began_s) / self._done * left)} left")
        return "  ".join(parts)

    def course(self) -> str:
        """The losses of the batches as bars, of their logarithms: a loss falls by factors."""
        return sparkline([math.log10(max(loss, 1e-8)) for loss in tuple(self._losses)], BAR_WIDTH)


def ending(trainer: "Trainer") -> str:
    """Why and where a fit ended before its last epoch, and what became of the weights."""
    if trainer.batch:
        where = f"after batch {trainer.batch} of epoch {trainer.epoch}"
    else:
        where = f"after epoch {trainer.epoch - 1}"
    kept = f"has the weights of epoch {trainer.delivered_epoch}" if trainer.restores else "keeps what it has learned"
    return f"{trainer.stopped} {where}; the model {kept}"


class _Lines:
    """Not a terminal: a line for each epoch."""

    def __init__(self, out: IO[str]) -> None:
        self.out = out

    def batch(self) -> None:
        pass

    def say(self, text: str) -> None:
        self.out.write(text + "\n")
        self.out.flush()

    def close(self) -> None:
        pass


class _Terminal:
    """Lines as they come, and below them the epoch under way."""

    def __init__(self, progress: Progress, out: IO[str]) -> None:
        console = importlib.import_module("rich.console").Console(file=out, highlight=False, markup=False)
        self.progress, self.console = progress, console
        self.live = importlib.import_module("rich.live").Live(
            get_renderable=self.render, console=console, refresh_per_second=8, transient=True
        )
        self.live.start()

    def render(self) -> Any:
        """The course of the loss, a bar, the present moment."""
        text = importlib.import_module("rich.text").Text
        shown = []
        if len(course := self.progress.course()) > 1:
            shown.append(text(f"log loss  {course}"))
        if (share := self.progress.fraction) is not None:
            done = round(share * BAR_WIDTH)
            bar = (("━" * done, "green"), ("━" * (BAR_WIDTH - done), "dim"))
            shown.append(text.assemble("done      ", *bar, f" {percent(share)}"))
        return importlib.import_module("rich.console").Group(*shown, text(self.progress.headline()))

    def batch(self) -> None:
        pass  # the live part looks by itself, eight times a second

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)

    def close(self) -> None:
        self.live.stop()


class _Notebook:
    """One cell output that is written anew: the epochs, and the one under way."""

    def __init__(self, progress: Progress, display: Any) -> None:
        self.progress, self.told_s = progress, -math.inf
        self.lines: list[str] = []
        self.handle = display.display(self, display_id=True)

    def _repr_html_(self) -> str:
        share = self.progress.fraction
        bar = "" if share is None else f"<progress max='1' value='{share:.4f}' style='width:24em'></progress> "
        text = "\n".join([*self.lines, f"{self.progress.course()}"])
        return f"<pre>{escape(text)}</pre>{bar}<code>{escape(self.progress.headline())}</code>"

    def __repr__(self) -> str:
        return "\n".join([*self.lines, self.progress.headline()])

    def batch(self) -> None:
        now = time.monotonic()
        if now - self.told_s >= NOTEBOOK_INTERVAL_S:
            self.told_s = now
            self.handle.update(self)

    def say(self, text: str) -> None:
        self.lines.append(text)
        self.handle.update(self)

    def close(self) -> None:
        self.handle.update(self)


def _notebook_display() -> Any:
    """IPython's display module inside a notebook, otherwise None. Never imports IPython: a notebook has."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return importlib.import_module("IPython.display") if type(shell).__name__ == "ZMQInteractiveShell" else None

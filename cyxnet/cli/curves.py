"""`cyx curves`: how the trainings of jobs went, epoch by epoch, as one drawing."""

import argparse
import importlib.util
import math
from typing import Any

from cyxcore.errors import MissingExtra, SpecError
from cyxcore.plotting import MARKS, plot
from cyxnet.cli.exits import DONE
from cyxnet.cli.models import output_path
from cyxnet.cli.running import connected
from cyxnet.cli.screen import Screen

Epochs = list[dict[str, Any]]  # the fields of cyxcore.spec.EpochMetrics
MOST = len(MARKS)  # curves that can be told apart
NAMES = {"loss": "epoch_loss", "accuracy": "epoch_accuracy"}  # as people call them; all others by their own
NOT_DRAWN = {"epoch", "epochs", "step", "attempt", "epoch_loss", "epoch_accuracy", "scores"}
DRAWINGS = (".svg", ".png", ".pdf")
MORE_IS_BETTER = ("accuracy", "r2", "f1", "auc", "precision", "recall")


async def curves(args: argparse.Namespace, screen: Screen) -> int:
    if len(args.jobs) > MOST:
        raise SpecError(f"expected at most {MOST} jobs, got {len(args.jobs)}: more curves cannot be told apart")
    if args.output is not None:
        output_path(args.output, "curves", force=True, suffixes=DRAWINGS)
        if importlib.util.find_spec("matplotlib") is None:
            raise MissingExtra("--output: the package matplotlib is missing; pip install 'cyx[plot]', or leave it out")
    async with connected(args) as client:
        found = {(await client.job(job_id)).job_id: await client.epochs(job_id) for job_id in args.jobs}
    for job_id, epochs in found.items():
        if not epochs:
            raise SpecError(f"{job_id}: no epoch of it has ended yet; see: cyx job {job_id}")
    data = {"curves": [{"job_id": job_id, "epochs": epochs} for job_id, epochs in found.items()]}
    lines: list[str] = []
    if args.output is not None:
        drawn(found, args.of, args.log, "matplotlib").figure.savefig(args.output)
        lines = [str(args.output)]
    elif not args.json:
        lines = str(drawn(found, args.of, args.log, "text")).splitlines()
    screen.table([""], [[line] for line in lines], data)
    return DONE


def drawn(found: dict[str, Epochs], wanted: str | None, log: bool, backend: str) -> Any:
    """What cyxcore.plotting.plot returns, over the epochs: of one job its losses, of several what they are compared by.

    wanted: the name of a metric; without it the loss of held-out rows, where all have one. Raises SpecError where a job
    has no such metric.
    """
    known = {job_id: _names(epochs) for job_id, epochs in found.items()}
    common = "validation_loss" if all("validation_loss" in names for names in known.values()) else "loss"
    names = [wanted or common]
    for job_id, its in known.items():
        if names[0] not in its:
            raise SpecError(f"--of: {job_id} has no {names[0]}; it has {', '.join(its)}")
    if wanted is None and len(found) == 1 and common != "loss":
        names = ["loss", common]
    x = sorted({epoch["epoch"] for epochs in found.values() for epoch in epochs})
    shown = {}
    for job_id, epochs in found.items():
        for name in names:
            values = {epoch["epoch"]: _value(epoch, name) for epoch in epochs}
            label = job_id if len(names) == 1 else name.replace("_", " ")
            shown[f"{label}: {_told(name, values)}"] = [values.get(epoch, math.nan) for epoch in x]
    title = f"{' and '.join(names)} by epoch".replace("_", " ")
    return plot(x, shown, backend, title=title, log_y=log)


def _names(epochs: Epochs) -> list[str]:
    """What can be drawn of a job, as `--of` names it."""
    last = epochs[-1]
    own = [name for name in last if name not in NOT_DRAWN and isinstance(last[name], int | float)]
    return [*(short for short, name in NAMES.items() if last.get(name) is not None), *own, *(last.get("scores") or {})]


def _value(epoch: dict[str, Any], name: str) -> float:
    value = epoch.get(NAMES.get(name, name), (epoch.get("scores") or {}).get(name))
    return math.nan if value is None else float(value)


def _told(name: str, values: dict[int, float]) -> str:
    """The best and the last value. What is better is known by the metric's name."""
    finite = {epoch: value for epoch, value in values.items() if math.isfinite(value)}
    if not finite:
        return "no finite number"
    best = (max if any(word in name for word in MORE_IS_BETTER) else min)(finite, key=lambda epoch: finite[epoch])
    return f"best {finite[best]:.4g} in epoch {best}, last {finite[max(finite)]:.4g}"

"""The figures of each benchmark as bars, one SVG for each: what is drawn, and how. matplotlib is the extra `plot`."""

import importlib
import importlib.util
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from benchmarks.figures import times_faster
from cyxcore.errors import CyxError

Bars = Mapping[str, float]  # label -> value
WIDTH_IN, BAR_IN, AROUND_IN = 9.0, 0.16, 1.1
WIDE = 30.0  # between the least and the greatest value: beyond it, small bars would not be seen


class NoPlots(CyxError):
    """There is no matplotlib."""

    code = "missing_package"


class Chart(Struct, frozen=True):
    """Bars side by side: of each series, one for each label that it has. unit: with what is better, if that is said."""

    title: str
    unit: str
    series: Mapping[str, Bars]

    @property
    def labels(self) -> list[str]:
        return list(dict.fromkeys(label for bars in self.series.values() for label in bars))


def require() -> None:
    """Before minutes are spent on figures that nobody can draw. Raises NoPlots."""
    if importlib.util.find_spec("matplotlib") is None:
        raise NoPlots(
            "plots: the package matplotlib is missing; pip install 'cyx[plot]', or give --no-plots for the JSON alone"
        )


# -- what is drawn ------------------------------------------------------------------------------------------------


def _columns(rows: Mapping[str, Mapping[str, Any]], *names: str) -> dict[str, Bars]:
    """Columns of a table of rows, as series: {name: {row: value}}, without what a row does not have."""
    found = {name: {label: row[name] for label, row in rows.items() if row.get(name) is not None} for name in names}
    return {name: bars for name, bars in found.items() if bars}


def _turned(rows: Mapping[str, Mapping[str, float]]) -> dict[str, Bars]:
    """All columns of such a table."""
    return _columns(rows, *dict.fromkeys(name for row in rows.values() for name in row))


def _bits(found: Any) -> Iterable[Chart]:
    counts = {name: sorted(map(len, digests.values())) for name, digests in found["bits"].items()}
    same = {name: each[-1] for name, each in counts.items()}
    others = {name: sum(each[:-1]) for name, each in counts.items()}
    yield Chart("trainings of a model", "trainings (0 others is right)", {"the same bits": same, "others": others})


def _control(found: Any) -> Iterable[Chart]:
    rates: dict[str, list[float]] = {}
    for each in found["rates"]:
        rates.setdefault(each["system"], []).append(each["per_s"])
    medians = {system: statistics.median(values) for system, values in rates.items()}
    yield Chart("submissions", "a second (more is better)", {"median": medians})
    kills = {each["system"]: each for each in found["kills"]}
    yield Chart("after kill -9", "tasks or jobs (0 is right)", _columns(kills, "lost", "stuck", "repeated"))


def _failover(found: Any) -> Iterable[Chart]:
    rows = {each["what"]: each for each in found["kills"]}
    yield Chart("kill -9 → the network goes on", "s (less is better)", _columns(rows, "p50_s", "p99_s", "target_s"))


def _flood(found: Any) -> Iterable[Chart]:
    for name, bars in _turned(found).items():
        yield Chart(name, "by flood (less is better)" if name.startswith(("p", "central")) else "by flood", {"": bars})


def _log(found: Any) -> Iterable[Chart]:
    yield Chart("durable appends", "a second (more is better)", _columns(found, "per_s"))
    yield Chart("one append", "ms (less is better)", _columns(found, "p50_ms", "p99_ms"))


def _rebuild(found: Any) -> Iterable[Chart]:
    steps = [name.removesuffix("_cpu_s") for name in found if name.endswith("_cpu_s")]
    took = {"wall": {step: found[f"{step}_s"] for step in steps}}
    took["processor"] = {step: found[f"{step}_cpu_s"] for step in steps}
    yield Chart(f"{found['events']:,} events", "s (less is better)", took)


def _schedule(found: Any) -> Iterable[Chart]:
    rows = {f"{row['nodes']:,} nodes, {row['jobs']:,} jobs": row for row in found["rows"]}
    for name in ("p50_ms", "p99_ms"):
        series = {
            way: {label: row[way][name] for label, row in rows.items() if way in row}
            for way in ("slot", "arrival", "scan", "heap")
        }
        yield Chart(f"one decision, {name.removesuffix('_ms')}", "ms (less is better)", series)


def _serve(found: Any) -> Iterable[Chart]:
    for model, sides in found.get("throughput", {}).items():
        yield Chart(f"/v1/predict, {model}", "requests a second (more is better)", _columns(sides, "good_per_s"))
        yield Chart(f"/v1/predict, {model}", "ms (less is better)", _columns(sides, "p50_ms", "p99_ms"))
    sides = {name: row for name, row in found.get("network", {}).items() if isinstance(row, dict)}
    if series := _columns(sides, "good_per_s"):
        yield Chart("a deployment, over NATS", "requests a second (more is better)", series)


def _startup(found: Any) -> Iterable[Chart]:
    for work, programs in found.items():
        if work != "import":
            series = {
                program: {stage: figures["p50_ms"] for stage, figures in stages.items()}
                for program, stages in programs.items()
                if isinstance(stages, dict)  # beside them stands the target
            }
            yield Chart(f"description → first step, {work}", "ms, median (less is better)", series)


def _ratios(title: str) -> Callable[[Any], Iterable[Chart]]:
    """One chart for each number of threads. All times of hundreds of rows would be an SVG of a megabyte."""

    def charts(found: Any) -> Iterable[Chart]:
        for threads, each in found["threads"].items():
            ratios = {name: ratio for name, times in each["us"].items() if (ratio := times_faster(times))}
            unit = "times as fast as the fastest of the others (more is better)"
            yield Chart(f"{title}, {threads} thread(s)", unit, {"": ratios})

    return charts


def _train(found: Any) -> Iterable[Chart]:
    for threads, rows in found["threads"].items():
        times = _turned({model: row["ms"] for model, row in rows.items()})
        yield Chart(f"a training step, {threads} thread(s)", "ms (less is better)", times)


def _llm(found: Any) -> Iterable[Chart]:
    rows = {
        f"{row['weights']}, {row['threads']} thread(s), {row['part']}": {
            side: speed for side, speed in row.items() if side not in ("weights", "threads", "part")
        }
        for row in found["tokens_per_s"]
    }
    yield Chart("a language model", "tokens a second (more is better)", _turned(rows))


def _gpu(found: Any) -> Iterable[Chart]:
    for group in dict.fromkeys(row["group"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["group"] == group]
        words = ("group", "what", "unit", "better", "calls", "launches", "arena_bytes")
        bars = {row["what"]: {name: value for name, value in row.items() if name not in words} for row in rows}
        yield Chart(group, f"{rows[0]['unit']} ({rows[0]['better']} is better)", _turned(bars))


CHARTS: dict[str, Callable[[Any], Iterable[Chart]]] = {
    "attention": lambda found: [
        Chart(f"attention, there and back, {threads} thread(s)", "× PyTorch's speed", _columns(rows, "times"))
        for threads, rows in found["threads"].items()
    ],
    "bits": _bits,
    "control": _control,
    "eager": lambda found: [Chart("small operations", "ns (less is better)", _turned(found["ns"]))],
    "failover": _failover,
    "flood": _flood,
    "functions": _ratios("functions of 10⁶ numbers"),
    "gpu": _gpu,
    "kernels": _ratios("kernels"),
    "llm": _llm,
    "log": _log,
    "rebuild": _rebuild,
    "schedule": _schedule,
    "serve": _serve,
    "startup": _startup,
    "submissions": lambda found: [Chart(what, "", {"": row}) for what, row in found.items()],
    "submit": lambda found: [
        Chart("warm submit → first step", "ms (less is better)", _columns(found, "p50_ms", "max_ms"))
    ],
    "train": _train,
}


# -- how it is drawn ----------------------------------------------------------------------------------------------


def draw(name: str, found: Mapping[str, Any], path: Path) -> None:
    """Write the charts of a benchmark, one below the other, as an SVG. Raises NoPlots."""
    require()
    matplotlib = importlib.import_module("matplotlib")
    figures: Any = importlib.import_module("matplotlib.figure")
    figures_alone = {word: each for word, each in found.items() if word != "environment"}
    charts = [chart for chart in CHARTS[name](figures_alone) if chart.labels]
    heights = [AROUND_IN + BAR_IN * len(chart.labels) * (len(chart.series) + 1) for chart in charts] or [AROUND_IN]
    # the text as text and nothing of the date: the same figures are the same file
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 8}):
        figure = figures.Figure(figsize=(WIDTH_IN, sum(heights)), layout="constrained")
        axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        for chart, place in zip(charts, axes, strict=False):
            _bars(chart, place)
        if not charts:
            axes[0].set_title(f"{name}: no figures")
        figure.savefig(path, format="svg", metadata={"Date": None})


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _bars(chart: Chart, axes: Any) -> None:
    step = 1 / (len(chart.series) + 1)
    ours_first = sorted(chart.series.items(), key=lambda each: each[0] != "cyx")
    for number, (name, bars) in enumerate(ours_first):
        heights = [place + number * step for place, label in enumerate(chart.labels) if label in bars]
        values = [bars[label] for label in chart.labels if label in bars]
        drawn = axes.barh(heights, values, step * 0.9, label=name or None)
        axes.bar_label(drawn, [_short(value) for value in values], padding=2, fontsize=6)
    positive = [value for bars in chart.series.values() for value in bars.values() if value > 0]
    if positive and max(positive) > WIDE * min(positive):
        axes.set_xscale("log")
    axes.set_yticks([place + (len(chart.series) - 1) * step / 2 for place in range(len(chart.labels))], chart.labels)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title(chart.title, loc="left")
    axes.set_xlabel(chart.unit)
    if any(chart.series):
        axes.legend(fontsize=7)

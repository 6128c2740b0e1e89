"""What was measured, put together: medians of all rounds, as tables for a terminal and for a Markdown page."""

import math
import statistics

from msgspec import Struct
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.control.report import STUCK_AFTER_S, Kills, Rate, Scale, Start

SUBMISSIONS_PER_S, TIMES_CELERY = 5_000, 3.0
CYX, CELERY = "Cyx, job.submit", "Celery, durable"


class Machine(Struct, frozen=True, kw_only=True):
    """Where it was measured. Figures of two machines are not comparable; ratios of one run are."""

    name: str
    cores: int
    memory_gb: float
    system: str
    python: str
    load_before: float  # of the last minute, without us
    load_after: float
    fdatasync_ms: float  # median of a 1.5 kB append: the floor of every durable answer


class Results(Struct, kw_only=True):
    """One run, complete. A system can appear in several rounds."""

    date: str
    command: str
    commit: str  # of Cyx
    seed: int
    scale: Scale
    machine: Machine
    packages: dict[str, str]
    rates: list[Rate]
    starts: list[Start]
    kills: list[Kills]
    skipped: dict[str, str]  # system -> why it was not, or not all of it, measured


class Sheet(Struct, frozen=True):
    """A table: its title, the names of its columns, its rows, and what has to be known of each system."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


def median_rates(rates: list[Rate]) -> dict[str, float]:
    by_system: dict[str, list[float]] = {}
    for rate in rates:
        by_system.setdefault(rate.system, []).append(rate.per_s)
    return {system: statistics.median(values) for system, values in by_system.items()}


def percentile(values: list[float], percent: float) -> float:
    """The smallest value that at least `percent` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def sheets(results: Results) -> list[Sheet]:
    return [sheet for sheet in (_rates(results), _starts(results), _kills(results)) if sheet.rows]


def _rates(results: Results) -> Sheet:
    medians = median_rates(results.rates)
    first = {rate.system: rate for rate in reversed(results.rates)}
    order = sorted(medians, key=lambda system: (not first[system].durable, -medians[system]))
    rows = []
    for system in order:
        rounds = [rate.per_s for rate in results.rates if rate.system == system]
        spread = f"{min(rounds):,.0f} to {max(rounds):,.0f}"
        rows.append([system, f"{medians[system]:,.0f}", spread, "yes" if first[system].durable else "not durable"])
    notes = [f"{system}: {first[system].means}" for system in order]
    return Sheet(
        "Submissions that clients see acknowledged, one where nothing else is said",
        ["", "per second", "rounds", "durable"],
        rows,
        notes,
    )


def _starts(results: Results) -> Sheet:
    pooled: dict[str, list[float]] = {}
    for start in results.starts:
        pooled.setdefault(start.system, []).extend(start.values_ms)
    means = {start.system: start.means for start in results.starts}
    order = sorted(pooled, key=lambda system: statistics.median(pooled[system]))
    rows = []
    for system in order:
        values = pooled[system]
        p50, p99 = statistics.median(values), percentile(values, 99)
        rows.append([system, f"{p50:,.1f}", f"{p99:,.1f}", str(len(values))])
    notes = [f"{system}: {means[system]}" for system in order]
    return Sheet("From submit to start, warm and idle", ["", "p50 ms", "p99 ms", "samples"], rows, notes)


def _kills(results: Results) -> Sheet:
    rows, notes = [], []
    for run in results.kills:
        kills = str(sum(run.faults.values()))
        repeated = f"{run.repeated} ({run.extra} extra)" if run.repeated else "0"
        last = f"{run.last_effect_s:.0f} s"
        rows.append(
            [run.system, f"{run.acknowledged} {run.unit}", kills, str(run.lost), repeated, str(run.stuck), last]
        )
        faults = ", ".join(f"{count} × {victim}" for victim, count in sorted(run.faults.items()))
        notes.append(f"{run.system}: {faults}; {run.means}")
    columns = ["", "acknowledged", "kill -9", "lost", "more than once", "stuck", "last one after"]
    notes.append(
        "lost: never executed, and nobody has it any more; more than once: its effect happened again;"
        f" stuck: nothing had moved for {STUCK_AFTER_S:.0f} s; last one after: the last fault"
    )
    return Sheet("kill -9 while it works", columns, rows, notes if rows else [])


def promises(results: Results) -> list[str]:
    """What we promise of these figures, each with what this run says of it."""
    medians, said = median_rates(results.rates), []
    clients = {rate.system: rate.clients for rate in results.rates}

    def of(name: str, many: bool = False) -> list[float]:
        return [each for system, each in medians.items() if system.startswith(name) and (clients[system] > 1) == many]

    ours, theirs = of(CYX), of(CELERY)
    if ours:
        verdict = "met" if ours[0] >= SUBMISSIONS_PER_S else "NOT met"
        said.append(f"durable submissions ≥ {SUBMISSIONS_PER_S:,}/s: {ours[0]:,.0f}/s, {verdict}")
    if ours and theirs:
        times = ours[0] / max(theirs)
        verdict = "met" if times >= TIMES_CELERY else "NOT met"
        said.append(f"≥ {TIMES_CELERY:g} × the best durable Celery, one client each: {times:.2f} ×, {verdict}")
    if (ours_of_more := of(CYX, many=True)) and (theirs_of_more := of(CELERY, many=True)):
        times = max(ours_of_more) / max(theirs_of_more)
        said.append(f"the same with more client processes each, which is no promise: {times:.2f} ×")
    for run in results.kills:
        if run.system == "Cyx":
            verdict = "met" if run.lost == run.repeated == run.stuck == 0 else "NOT met"
            counts = f"{run.lost}, {run.repeated}, {run.stuck}"
            said.append(f"kill -9 of anything: 0 lost, 0 paid twice, 0 stuck: {counts}, {verdict}")
    return said


def about(results: Results) -> list[str]:
    """Lines that say where, when and with what."""
    machine = results.machine
    busy = machine.load_before > machine.cores / 2
    return [
        f"{results.date}, commit {results.commit}, `{results.command}`, seed {results.seed},"
        f" {results.scale.rounds} interleaved rounds, medians",
        f"{machine.name}, {machine.cores} cores, {machine.memory_gb:.0f} GB, {machine.system}, Python {machine.python}",
        f"load {machine.load_before:.1f} before and {machine.load_after:.1f} after; one durable 1.5 kB append"
        f" {machine.fdatasync_ms:.2f} ms",
        *(["the machine was busy with other work: read ratios, and with care"] if busy else []),
        "packages: " + ", ".join(f"{name} {version}" for name, version in sorted(results.packages.items())),
        "A Cyx job carries a model, a payment and the choice of a node; a Celery, Dask or Ray task is a function call."
        " The lines below each table say what is compared.",
        *(f"not measured: {name}: {why}" for name, why in results.skipped.items()),
    ]


def show(results: Results, console: Console) -> None:
    for sheet in sheets(results):
        table = Table(title=sheet.title, title_justify="left", box=box.SIMPLE_HEAD)
        for number, column in enumerate(sheet.columns):
            table.add_column(column, justify="right" if number else "left", overflow="fold")
        for row in sheet.rows:
            table.add_row(*row)
        console.print(table)
        for note in sheet.notes:
            console.print(f"  {note}", highlight=False, markup=False, style="dim")
    console.print()
    for line in (*promises(results), *about(results)):
        console.print(line, highlight=False, markup=False)


def markdown(results: Results) -> str:
    """The same as a page."""
    parts = ["# Control plane, side by side", "\n".join(f"- {line}" for line in about(results))]
    parts.append("\n".join(f"- {line}" for line in promises(results)))
    for sheet in sheets(results):
        lines = [sheet.columns, ["---"] * len(sheet.columns), *sheet.rows]
        parts.append(f"## {sheet.title}\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines))
        parts.append("\n".join(f"- {note}" for note in sheet.notes))
    return "\n\n".join(part for part in parts if part) + "\n"

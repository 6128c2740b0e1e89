"""The figures of a benchmark as a Markdown page: NAME.md, which is made of NAME.json and of nothing else."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from benchmarks.figures import geometric_mean, times_faster, with_error

OF_NORM = "In brackets the error of the result, as a vector relative to"
OF_PARAMETERS = (
    "In brackets the error of all parameters after three steps, relative to the way that they went, and in the last"
    " column the greatest relative error of a loss; both against PyTorch's steps in float64."
)
NAMES = {"numpy": "NumPy", "torch": "PyTorch"}


class Table(Struct, frozen=True):
    """The first row names the columns; `below` says what the rows come to."""

    title: str
    rows: Sequence[Sequence[str]]
    below: str = ""


def page(name: str, found: Mapping[str, Any]) -> str:
    """Of what the benchmark of that name saved. Raises KeyError for one that has no tables here."""
    title, tables = TABLES[name]
    parts = [f"# {title}", about(found["environment"]), *_settings(found)]
    for table in tables(found):
        head, *rows = table.rows
        lines = [head, ["---"] * len(head), *rows]
        parts += [f"## {table.title}", "\n".join(f"| {' | '.join(cells)} |" for cells in lines), table.below]
    return "\n\n".join(part for part in parts if part) + "\n"


def about(environment: Mapping[str, Any]) -> str:
    """The paragraph that says by which command, when, where and with what it was measured."""
    of = environment
    packages = ", ".join(f"{NAMES.get(name, name)} {version}" for name, version in of["packages"].items())
    return (
        f"`{of['command']}`, {of['date']}, commit {of['commit']}: {of['machine']}, {of['cores']} cores,"
        f" {of['memory_gb']} GB, {of['system']}, load {of['load_before']} before; Python {of['python']}, {packages}."
    )


def _settings(found: Mapping[str, Any]) -> list[str]:
    said = [("isa", "instruction set"), ("numerics", "class of our products"), ("steps", "steps")]
    line = "; ".join(f"{words}: {found[key]}" for key, words in said if key in found)
    return [line[0].upper() + line[1:] + "."] if line else []


# -- the tables of each -------------------------------------------------------------------------------------------


def _train(found: Any) -> Iterable[Table]:
    for threads, models in found["threads"].items():
        who = sorted(
            _columns(row["ms"] for row in models.values()), key=lambda name: ("torch" not in name, name == "cyx")
        )
        rows = [["ms (error of the parameters)", *who, "× the fastest", "losses within"]]
        ratios: list[float] = []
        for model, row in models.items():
            ratio = times_faster(row["ms"])
            ratios += [ratio] if ratio else []
            within = f"{max(row['loss_error'].values()):.0e}" if row["loss_error"] else ""
            rows.append([model, *_cells(row["ms"], row["parameter_error"], who), _ratio(ratio), within])
        mean, least = geometric_mean(ratios), min(ratios, default=0)
        below = f"Geometric mean {mean:.2f} × the fastest of the others, least {least:.2f} ×. {OF_PARAMETERS}"
        yield Table(f"{threads} thread(s)", rows, below if ratios else "")


def _kernels(found: Any) -> Iterable[Table]:
    for threads, each in found["threads"].items():
        who = _columns(each["us"].values())
        rows = [["µs (error)", *_names(who), "× the faster", "GFLOP/s"]]
        for name, times in each["us"].items():
            cells = _cells(times, each["error"][name], who)
            rows.append([name, *cells, _ratio(times_faster(times)), str(each["gflop_s"].get(name, ""))])
        yield Table(f"{threads} thread(s)", rows, f"{OF_NORM} the reference kernels in float64.")


def _functions(found: Any) -> Iterable[Table]:
    for threads, each in found["threads"].items():
        who = _columns(each["us"].values())
        last_places = f"greatest error in ulp: {', '.join(_names(who))}"
        rows = [["µs (error)", *_names(who), "× the faster", "of the memory", "", last_places]]
        for name, times in each["us"].items():
            cells = _cells(times, each["error"][name], who)
            ulp = ", ".join(f"{value:.3g}" for value in each["ulp"].get(name, {}).values())
            met = "met" if name in each["met"] else ""
            rows.append([name, *cells, _ratio(times_faster(times)), f"{each['share'][name]:.0%}", met, ulp])
        read, copied = each["memory"]["read_gb_s"], each["memory"]["copied_gb_s"]
        met = f"{len(each['met'])} of {len(each['us'])} rows met the target"
        below = f"{met}. The memory gives {read} GB/s read, {copied} copied. {OF_NORM} PyTorch's in float64."
        yield Table(f"{threads} thread(s)", rows, below)


def _eager(found: Any) -> Iterable[Table]:
    who = _columns(found["ns"].values())
    rows = [["ns (error)", *_names(who), "×"]]
    for name, times in found["ns"].items():
        cells = _cells(times, found["error"].get(name, {}), who)
        rows.append([f"`{name}`", *cells, _ratio(times_faster(times))])
    yield Table("One thread", rows, f"{OF_NORM} PyTorch's in float64.")


def _attention(found: Any) -> Iterable[Table]:
    for threads, cases in found["threads"].items():
        rows = [["batch × heads × positions × features", "ms there", "ms back", "MiB", "× PyTorch's"]]
        for case, row in cases.items():
            there, back = zip(row["ms"]["cyx"], row["ms"]["torch"], strict=True)
            peaks = row["peak_mib"]["cyx"], row["peak_mib"]["torch"]
            cells = [f"{_digits(ours)} ({_digits(theirs)})" for ours, theirs in (there, back)]
            rows.append([case.replace(" x ", " × "), *cells, "{:.0f} ({:.0f})".format(*peaks), _ratio(row["times"])])
        below = "In brackets PyTorch's. MiB: what a call there and back adds to the peak of a process of its own."
        yield Table(f"{threads} thread(s)", rows, below)


def _bits(found: Any) -> Iterable[Table]:
    rows = [["compiler", "model", "trainings", "digests: of how many"]]
    by_compiler: dict[tuple[str, str], dict[str, int]] = {}
    for model, digests in found["bits"].items():
        for digest, ways in digests.items():
            for way in ways:
                counts = by_compiler.setdefault((way.partition(",")[0], model), {})
                counts[digest] = counts.get(digest, 0) + 1
    for (compiler, model), counts in sorted(by_compiler.items()):
        said = ", ".join(f"{digest}: {count}" for digest, count in counts.items())
        rows.append([compiler, model, str(sum(counts.values())), said])
    yield Table("By compiler", rows)


TABLES: dict[str, tuple[str, Callable[[Any], Iterable[Table]]]] = {
    "attention": ("Attention of tensors", _attention),
    "bits": ("Whole trainings, bit for bit", _bits),
    "eager": ("Small operations and a plain training step", _eager),
    "functions": ("Functions of 10⁶ numbers", _functions),
    "kernels": ("Kernels", _kernels),
    "train": ("Training steps", _train),
}


# -- cells --------------------------------------------------------------------------------------------------------


def _columns(rows: Iterable[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _names(who: Iterable[str]) -> list[str]:
    return [NAMES.get(name, name) for name in who]


def _cells(times: Mapping[str, float], errors: Mapping[str, float], who: Iterable[str]) -> list[str]:
    """A time of three digits with its error, for each of them that has one."""
    texts = {name: _digits(time) for name, time in times.items()}
    return [with_error(texts[name], errors.get(name)) if name in times else "–" for name in who]


def _digits(time: float) -> str:
    return f"{time:.0f}" if time >= 100 else f"{time:.3g}"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value else ""

"""Every benchmark, or those that are named: their tables, their figures as JSON, as Markdown, and drawn as SVG.

    python -m benchmarks --list                            what there is
    python -m benchmarks --quick                           all of them, small
    python -m benchmarks --only log,train --save FOLDER    two of them; NAME.json, .md and .svg go into FOLDER

Each runs as a process of its own, one after the other; what it prints is shown as it comes. When one fails the others
go on, and the last lines say which did not succeed: the exit status is 1 then. Each has options of its own besides:
python -m benchmarks.bench_NAME --help. Plots need matplotlib (pip install 'cyx[plot]').
"""

import argparse
import ast
import difflib
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import charts, tables
from cyxcore.errors import CyxError

HERE = Path(__file__).parent
FOLDER = Path("benchmark-results")


def programs() -> dict[str, Path]:
    """The file of each benchmark by its name, in the order of names."""
    found = {path.stem.removeprefix("bench_"): path for path in HERE.glob("bench_*.py")}
    return dict(sorted((found | {"gpu": HERE / "gpu" / "__main__.py"}).items()))


def about(path: Path) -> str:
    """The first line of what a program says of itself."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def command(path: Path, quick: bool) -> list[str]:
    module = ".".join(path.relative_to(HERE.parent).with_suffix("").parts).removesuffix(".__main__")
    return [sys.executable, "-m", module, *(["--quick"] if quick else [])]


def chosen(only: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names in such lists, each once; all that are known for none. Raises CyxError for one that is not."""
    names = [name.strip() for each in only for name in each.split(",") if name.strip()]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name.removeprefix("bench_"), known, 1, 0.5)
            hint = f"did you mean {near[0]}? " if near else ""
            raise CyxError(f"--only: there is no benchmark {name!r}; {hint}They are {', '.join(known)}")
    return list(dict.fromkeys(names)) or list(known)


def measure(name: str, run: Sequence[str], folder: Path, plots: bool) -> str:
    """Run one, and draw its figures; returns what went wrong, or nothing."""
    target = folder / f"{name}.json"
    target.unlink(missing_ok=True)  # those of another run are not this one's
    status = subprocess.run([*run, "--save", str(folder / name)]).returncode
    if status:
        return f"ended with status {status}" if status > 0 else f"was ended by signal {-status}"
    try:
        if name in tables.TABLES and target.exists():
            (folder / f"{name}.md").write_text(tables.page(name, json.loads(target.read_bytes())))
        if plots and target.exists():
            charts.draw(name, json.loads(target.read_bytes()), folder / f"{name}.svg")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its figures cannot be drawn: {type(error).__name__}: {error}"
    return ""


def measure_all(commands: Mapping[str, Sequence[str]], folder: Path, plots: bool) -> int:
    """Run them one after the other, whatever becomes of each, and say at the end how they ended: the exit status."""
    folder.mkdir(parents=True, exist_ok=True)
    said: dict[str, str] = {}
    status = 0
    for number, (name, run) in enumerate(commands.items(), 1):
        print(f"\n== {name} ({number} of {len(commands)}) ==", flush=True)
        begun_s = time.monotonic()
        try:
            wrong = measure(name, run, folder, plots)
        except KeyboardInterrupt:
            print("stopped")
            return 130
        written = [f"{name}.{kind}" for kind in ("json", "md", "svg") if (folder / f"{name}.{kind}").exists()]
        well = f"wrote {', '.join(written)}" if (folder / f"{name}.json").exists() else "measured nothing"
        said[name] = f"{'FAILED: ' + wrong if wrong else well} ({time.monotonic() - begun_s:.0f} s)"
        status = 1 if wrong else status
    print(f"\n== {len(said)} benchmarks, into {folder} ==")
    for name, line in said.items():
        print(f"{name:14}{line}")
    return status


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        usage="python -m benchmarks [OPTION …]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="say what there is, and measure nothing")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="this one; again, or with commas")
    parser.add_argument("--quick", action="store_true", help="small sizes, for a first look")
    parser.add_argument("--save", type=Path, default=FOLDER, metavar="FOLDER", help=f"where to (default {FOLDER})")
    parser.add_argument("--no-plots", action="store_true", help="JSON and tables alone")
    options, others = parser.parse_known_args()
    known = programs()
    if others:
        parser.error(f"expected an option, got {others[0]!r}; to name a benchmark: --only NAME (--list shows all)")
    if options.list:
        for name, path in known.items():
            print(f"{name:14}{about(path)}")
        return 0
    try:
        names = chosen(options.only, list(known))
        if not options.no_plots:
            charts.require()
    except CyxError as error:
        parser.error(str(error))
    if options.save.exists() and not options.save.is_dir():
        parser.error(f"--save: expected a folder, and {options.save} is a file")
    return measure_all(
        {name: command(known[name], options.quick) for name in names}, options.save, not options.no_plots
    )


if __name__ == "__main__":
    sys.exit(main())

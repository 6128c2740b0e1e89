"""Where the figures of a run go besides the terminal, for whoever compares or draws them: NAME.json, with what measured
them; and how far results lie from what float64 gives."""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).parents[1]
LOADED = ("numpy", "torch", "onnxruntime")  # in one process with us; of other peers the programs name the version
BEGUN, LOAD_BEFORE = datetime.datetime.now(datetime.UTC), os.getloadavg()[0]  # a program's own work is not in it


def add_save(parser: argparse.ArgumentParser, what: str = "NAME.json") -> None:
    parser.add_argument("--save", type=Path, metavar="NAME", help=f"also write {what}")


def beside(name: Path, suffix: str) -> Path:
    """NAME.suffix, whatever dots are in NAME; its folder is made."""
    name.parent.mkdir(parents=True, exist_ok=True)
    return name.with_name(f"{name.name}.{suffix}")


def save(name: Path | None, found: dict[str, Any], **packages: str) -> None:
    """Write what json.dumps() takes as NAME.json, behind `environment`; nothing without a name.

    packages: versions of peers that ran elsewhere. What `found` says of the environment itself stands.
    """
    if name is not None:
        about = environment(**packages) | found.get("environment", {})
        beside(name, "json").write_text(json.dumps({**found, "environment": about}, indent=1) + "\n")


# -- what measured ------------------------------------------------------------------------------------------------


def environment(**packages: str) -> dict[str, Any]:
    """Where, when and by what it was measured. Figures of two machines are not comparable; ratios of one run are."""
    here = {name: importlib.metadata.version(name) for name in LOADED if name in sys.modules}
    return {
        "date": BEGUN.strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["python", "-m", *_program(), *sys.argv[1:]]),
        "commit": commit(),
        "machine": machine(),
        "cores": os.cpu_count() or 1,
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "load_before": round(LOAD_BEFORE, 1),
        "python": platform.python_version(),
        "packages": here | _libraries() | packages,
    }


def _program() -> list[str]:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return [spec.name.removesuffix(".__main__")] if spec else []


def machine() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def commit() -> str:
    """The commit of this checkout, with a + when files differ from it other than results, which a run writes itself."""
    try:
        here = _git("rev-parse", "--short=8", "HEAD")
        return here + "+" * bool(_git("status", "--porcelain", "-uno", "--", ".", ":!benchmarks/results"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def _libraries() -> dict[str, str]:
    """The versions of what multiplies matrices for NumPy and PyTorch."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    found = {f"{blas['name']} (NumPy)": str(blas["version"])}
    if torch := sys.modules.get("torch"):
        built = torch.__config__.show()
        for name, said in (("MKL", r"Math Kernel Library Version (\S+?)-"), ("oneDNN", r"MKL-DNN v(\S+)")):
            if version := re.search(said, built):
                found[f"{name} (PyTorch)"] = version[1]
    return found


# -- ratios -------------------------------------------------------------------------------------------------------


def times_faster(times: Mapping[str, float]) -> float:
    """Ours, `cyx`, than the fastest of the others; 0 without any."""
    others = [time for who, time in times.items() if who != "cyx"]
    return min(others) / times["cyx"] if others else 0.0


def geometric_mean(ratios: Sequence[float]) -> float:
    """Of one ratio or more; 0 of none."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else 0.0


# -- errors -------------------------------------------------------------------------------------------------------


def relative_error(found: Any, true: Any) -> float:
    """‖found - true‖ / ‖true‖ of tensors or arrays of one shape, in float64; 0 where both are nothing but zeros."""
    found, true = as_float64(found), as_float64(true)
    apart, size = np.linalg.norm(found - true), np.linalg.norm(true)
    return float(apart / size) if size else float(apart)


def greatest_ulp(found: Any, true: Any) -> float:
    """The greatest distance in units of float32's last place, by the numbers of `true`, which are not rounded."""
    found, true = as_float64(found), as_float64(true)
    last_place = np.spacing(np.abs(true).astype(np.float32)).astype(np.float64)
    return float(np.max(np.abs(found - true) / last_place))


def with_error(text: str, error: float | None) -> str:
    """As the tables show it: behind what it belongs to, in brackets."""
    return text if error is None else f"{text} ({error:.0e})" if error else f"{text} (0)"


def as_float64(x: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Of a tensor of Cyx or PyTorch, of an array or a number."""
    return np.asarray(x.detach().numpy() if hasattr(x, "detach") else x, np.float64)

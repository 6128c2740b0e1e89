"""Whole trainings, bit for bit: every instruction set, threads, compilers, plain and compiled, straight and resumed.

    python -m benchmarks.bench_bits                       # 300 steps of each model in 36 ways, for each compiler
    python -m benchmarks.bench_bits --quick               # 20 steps, with the compiler of this installation alone
    python -m benchmarks.bench_bits --compiler clang-14   # this one besides; without the option, a clang that is there

The kernels of the other compiler are built in a temporary folder, which takes minutes and needs Cython and setuptools.
Compared is a digest of the loss of every step and of the trained model. A resumed training is stored after half of its
steps, with its optimiser and its generators, and goes on in a new model; the steps hold all that could tell: Dropout,
statistics of BatchNorm, momentum, clipped gradients.

Target: one digest for each model. Exit status 1 where there are two.
"""

import argparse
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import cyxcore as cx
from benchmarks.bench_train import gpt
from benchmarks.figures import add_save, save
from cyxcore import functional as F
from cyxcore import nn
from cyxcore.errors import CyxError
from cyxcore.kernels import cpu

ROOT = Path(__file__).parents[1]
THREADS = (1, 2, 3)
BATCHES = 17  # different ones; then the first comes again

Digests = dict[str, list[str]]  # digest -> the ways that gave it


class Way(NamedTuple):
    compiler: str
    isa: str
    threads: int
    compiled: bool
    resumed: bool

    def __str__(self) -> str:
        how = f"{'compiled' if self.compiled else 'plain'}, {'resumed' if self.resumed else 'straight'}"
        return f"{self.compiler}, {self.isa}, {self.threads} thread(s), {how}"


class Case(NamedTuple):
    make: Callable[[], Any]
    optimizer: Callable[[Any], Any]
    batch: Callable[[np.random.Generator], tuple[Any, Any]]


class Last(nn.Module):
    """Classes by the last output of an LSTM. (N, T, 12) -> (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(12, 24, batch_first=True), nn.Linear(24, 5)

    def forward(self, x: Any) -> Any:
        return self.out(self.lstm(x)[0][:, -1])


def cnn() -> Any:
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU(), nn.MaxPool2d(2)),
        *(nn.Dropout(0.2), nn.Flatten(), nn.Linear(256, 10)),
    )


def classes(shape: tuple[int, ...], count: int) -> Callable[[np.random.Generator], tuple[Any, Any]]:
    return lambda rng: (rng.normal(size=shape).astype(np.float32), rng.integers(0, count, shape[0]))


def tokens(rng: np.random.Generator) -> tuple[Any, Any]:
    drawn = rng.integers(0, 64, (4, 33))
    return drawn[:, :-1].copy(), drawn[:, 1:].copy()


MODELS = {
    "mlp": Case(
        lambda: nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)),
        cx.optim.Adam,
        classes((64, 64), 10),
    ),
    "cnn": Case(cnn, lambda p: cx.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=1e-4), classes((8, 3, 8, 8), 10)),
    "gpt": Case(lambda: gpt(nn, 64, 32, 32, 4, 2), cx.optim.AdamW, tokens),
    "lstm": Case(Last, lambda p: cx.optim.Adam(p, lr=3e-3), classes((8, 10, 12), 5)),
}


class Training:
    """A model, its optimiser and its step; the losses so far are in its digest."""

    def __init__(self, case: Case, compiled: bool) -> None:
        cx.manual_seed(7)
        self.case, self.model, self.digest = case, case.make(), hashlib.sha256()
        self.optimizer = case.optimizer(self.model.parameters())
        self.step: Callable[[Any, Any], Any] = cx.compile(self._step) if compiled else self._step

    def _step(self, x: Any, y: Any) -> Any:
        logits = self.model(x)
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1))
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss

    def run(self, steps: range) -> None:
        for number in steps:
            x, y = self.case.batch(np.random.default_rng(number % BATCHES))
            self.digest.update(self.step(cx.tensor(x), cx.tensor(y)).detach().numpy().tobytes())

    def store(self, path: Path) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        cx.save(state | {"generators": cx.get_rng_state()}, path)

    def resume(self, path: Path, digest: Any) -> None:
        state = cx.load(path)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        cx.set_rng_state(state["generators"])
        self.digest = digest

    def bits(self) -> str:
        for value in self.model.state_dict().values():
            self.digest.update(np.asarray(value).tobytes())
        return self.digest.hexdigest()[:16]


def trained(case: Case, steps: int, way: Way) -> str:
    """The digest of a training; sets the kernels and the threads of this process."""
    cpu.set_isa(way.isa)
    cpu.set_num_threads(way.threads)
    training = Training(case, way.compiled)
    half = steps // 2 if way.resumed else steps
    training.run(range(half))
    if way.resumed:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "half.pt"
            training.store(path)
            first, training = training, Training(case, way.compiled)
            training.resume(path, first.digest)
        training.run(range(half, steps))
    return training.bits()


def sets() -> Iterator[str]:
    """The instruction sets of this machine."""
    before = cpu.isa()
    for name in ("avx512", "avx2", "portable"):
        try:
            cpu.set_isa(name)
        except ValueError:
            continue
        yield name
    cpu.set_isa(before)


def compiled_by() -> str:
    """The compiler of the kernels that run here, as it signed them."""
    binary = Path(cpu.__file__).read_bytes()
    for name, signed in (("clang", rb"clang version (\d[\d.]*)"), ("gcc", rb"GCC: \([^)]*\) (\d[\d.]*)")):
        if found := re.search(signed, binary):
            return f"{name} {found[1].decode()}"
    return "unsigned"


def measure(names: list[str], steps: int) -> dict[str, Digests]:
    """By model, with the kernels of this process; a line is printed for each."""
    by = compiled_by()
    ways = [Way(by, *each) for each in product(list(sets()), THREADS, (False, True), (False, True))]
    found: dict[str, Digests] = {}
    for name in names:
        digests: Digests = {}
        for way in ways:
            digests.setdefault(trained(MODELS[name], steps, way), []).append(str(way))
        found[name] = digests
        (most, same), *others = ordered(digests)
        print(f"{by:16}{name:8}{len(same):>4} of {len(ways)}  {most}", flush=True)
    return found


def ordered(digests: Digests) -> list[tuple[str, list[str]]]:
    """That of most ways comes first."""
    return sorted(digests.items(), key=lambda each: -len(each[1]))


def missing() -> list[str]:
    """What a build of the kernels needs and is not installed here."""
    return [name for name in ("Cython", "setuptools") if importlib.util.find_spec(name) is None]


def build(compiler: str, folder: Path) -> None:
    """Copy the sources, with kernels of another compiler. Raises CyxError where it does not build them."""
    unneeded = shutil.ignore_patterns(".*", "*.so", "build", "tests", "docs", "*.egg-info")
    shutil.copytree(ROOT, folder, ignore=unneeded)
    command = ["env", f"CC={compiler}", sys.executable, "setup.py", "build_ext", "--inplace"]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if ran.returncode:
        raise CyxError(f"--compiler: {compiler} built no kernels: {ran.stderr[-500:]}")


def measured_with(compiler: str, names: list[str], steps: int) -> dict[str, Digests]:
    """What this program finds in a copy of its own, built by another compiler."""
    with tempfile.TemporaryDirectory() as name:
        folder, saved = Path(name) / "cyx", Path(name) / "found"
        build(compiler, folder)
        options = ["--compiler", "none", "--only", ",".join(names), "--steps", str(steps), "--save", str(saved)]
        ran = subprocess.run([sys.executable, "-m", "benchmarks.bench_bits", *options], cwd=folder)
        if not saved.with_suffix(".json").exists():
            raise CyxError(f"--compiler: the trainings with {compiler} ended with status {ran.returncode}")
        found: dict[str, Digests] = json.loads(saved.with_suffix(".json").read_bytes())["bits"]
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 steps, and no other compiler")
    parser.add_argument("--steps", type=int, help="of each training (default 300)")
    parser.add_argument("--only", default=",".join(MODELS), help=f"some of {','.join(MODELS)}")
    parser.add_argument("--compiler", help="besides: a clang that is found, unless another is named, or none")
    add_save(parser)
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := set(names) - set(MODELS):
        parser.error(f"--only: there is no model {min(unknown)!r}; they are {', '.join(MODELS)}")
    steps = options.steps or (20 if options.quick else 300)
    other = options.compiler or ("none" if options.quick else shutil.which("clang") or shutil.which("clang-14"))
    if other not in (None, "none") and (lacking := " and ".join(missing())):  # known before the first minutes are spent
        parser.error(
            f"--compiler: to build kernels with {other} takes {lacking}, not installed in this environment; "
            "pip install cython setuptools, or say --compiler none"
        )
    print(
        f"{steps} steps; {', '.join(sets())}; {THREADS} threads; plain and compiled, straight and resumed", flush=True
    )
    found = measure(names, steps)
    if other not in (None, "none"):
        for name, digests in measured_with(other, names, steps).items():
            for digest, ways in digests.items():
                found[name].setdefault(digest, []).extend(ways)
    save(options.save, {"steps": steps, "bits": found})
    apart = [(name, digest, way) for name in names for digest, ways in ordered(found[name])[1:] for way in ways]
    for name, digest, way in apart:
        print(f"{name}: {digest} with {way}")
    print(f"{len(apart)} trainings have other bits" if apart else "all trainings of a model have the same bits")
    return 1 if apart else 0


if __name__ == "__main__":
    sys.exit(main())

"""One training step of six models beside PyTorch and JAX: times, and the error of each against float64.

    pip install torch                             # the peer; without it only our own times are shown
    python -m benchmarks.bench_train              # 1 and 2 threads
    python -m benchmarks.bench_train --quick --only mlp_small,cnn --threads 1
    python -m benchmarks.bench_train --threads 1 --processor-time     # on a busy machine
    python -m benchmarks.bench_train --numerics fast                  # products by AMX: docs/numerics.md
    python3 -m venv .peers && .peers/bin/pip install 'jax[cpu]'       # JAX, in an environment of its own
    python -m benchmarks.bench_train --json

A step is forward, cross-entropy, backward and the optimiser's update, float32, the batch as given in MODELS. Ours is
compiled (`cx.compile(step)`), in the exact class, whose bits depend on no thread count and no instruction set. PyTorch
runs eagerly, as it comes, with its fused optimiser and, where inputs are images, with channels last as well, and,
unless it is --quick, through torch.compile; JAX under jax.jit, in a process of its own (jax_steps.py), on as many
cores as there are threads. Rounds alternate between them, so that a busy machine slows all; a figure is the median
over rounds of the median step of each, so that a step that the machine interrupts does not count; before each burst
all rest a moment, as threads that still look out for work of the one before would take a core from the next. Before
anything is timed, all run the same first steps from the same weights, and their losses must agree. Behind each time
stands the error of the parameters after these steps, of the way that they went, against PyTorch's steps in float64;
the JSON has the greatest relative error of a loss as well.

Target: never slower than the fastest of them; in the geometric mean 1.6 times faster on one thread, 1.8 times on two.
With --numerics fast 2.5 times, with fast16 3.8 times.
"""

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

import cyxcore as cx
from benchmarks.figures import (
    ROOT,
    add_save,
    as_float64,
    geometric_mean,
    relative_error,
    save,
    times_faster,
    with_error,
)
from benchmarks.jax_steps import Steps, burst
from benchmarks.threads import REST_S
from cyxcore import functional as F
from cyxcore.kernels import cpu

Array = np.ndarray[Any, Any]
PEERS = ROOT / ".peers" / "bin" / "python"  # docs/benchmarks.md says how it is made
STEPS_COMPARED = 3
Row = dict[str, Any]  # ms, loss_error, parameter_error: of each by name; plan_s: seconds our plan took
LOSS_TOLERANCE = {"exact": 1e-3, "fast": 1e-3, "fast16": 1e-3, "bf16": 2e-2}  # relative, by numeric class


class Case(NamedTuple):
    """make(nn): the model out of cyxcore.nn or torch.nn; optimizer: its name and options in both."""

    make: Callable[[Any], Any]
    inputs: Callable[[Any], tuple[Array, Array]]
    optimizer: str
    options: dict[str, Any]


def _mlp(nn: Any, *sizes: int) -> Any:
    layers: list[Any] = []
    for inputs, outputs in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _cnn(nn: Any) -> Any:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(9216, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def _resnet(nn: Any) -> Any:
    blocks: list[Any] = []
    for _ in range(4):
        blocks += [nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def gpt(nn: Any, vocabulary: int = 256, length: int = 128, width: int = 128, heads: int = 4, blocks: int = 4) -> Any:
    """Pre-norm blocks with learned positions and an untied head. tokens (N, T) -> logits (N, T, vocabulary)."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.gelu = nn.GELU(approximate="tanh")

        def forward(self, x: Any) -> Any:
            rows, steps = x.shape[0], x.shape[1]
            both = self.qkv(self.norm1(x)).reshape(rows, steps, 3, heads, width // heads)
            q, k, v = (_swap(both[:, :, place]) for place in range(3))
            mixed = _attention(q, k, v)
            x = x + self.out(_swap(mixed).reshape(rows, steps, width))
            return x + self.down(self.gelu(self.up(self.norm2(x))))

    class Gpt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
            self.blocks = nn.Sequential(*(Block() for _ in range(blocks)))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

        def forward(self, x: Any) -> Any:
            return self.head(self.norm(self.blocks(self.tokens(x) + self.positions.weight)))

    return Gpt()


def _swap(x: Any) -> Any:
    """Axes 1 and 2 exchanged: steps and heads."""
    return x.permute(0, 2, 1, 3)


def _attention(q: Any, k: Any, v: Any) -> Any:
    if type(q).__module__.partition(".")[0] == "torch":
        import torch

        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _lstm(nn: Any) -> Any:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.out = nn.LSTM(64, 128, batch_first=True), nn.Linear(128, 10)

        def forward(self, x: Any) -> Any:
            return self.out(self.lstm(x)[0][:, -1])

    return Last()


def _images(*shape: int, classes: int = 10) -> Callable[[Any], tuple[Array, Array]]:
    return lambda rng: (rng.normal(size=shape).astype(np.float32), rng.integers(0, classes, shape[0]))


def _tokens(rng: Any) -> tuple[Array, Array]:
    drawn = rng.integers(0, 256, (16, 129))
    return drawn[:, :-1].copy(), drawn[:, 1:].copy()


MODELS: dict[str, Case] = {
    "mlp_small": Case(lambda nn: _mlp(nn, 64, 128, 64, 10), _images(64, 64), "Adam", {}),
    "mlp_large": Case(lambda nn: _mlp(nn, 784, 1024, 1024, 10), _images(256, 784), "AdamW", {}),
    "cnn": Case(_cnn, _images(64, 1, 28, 28), "SGD", {"lr": 0.01, "momentum": 0.9}),
    "resnet": Case(_resnet, _images(32, 64, 32, 32), "SGD", {"lr": 0.01, "momentum": 0.9}),
    "gpt": Case(gpt, _tokens, "AdamW", {}),
    "lstm": Case(_lstm, _images(32, 64, 64), "Adam", {}),
}


class Training(NamedTuple):
    """step() trains once and returns the loss; parameters() are those so far, by PyTorch's names."""

    step: Callable[[], float]
    parameters: Callable[[], dict[str, Any]]


def ours(
    case: Case, weights: dict[str, Array] | None, batch: tuple[Array, Array], numerics: str = "exact"
) -> tuple[Any, Training]:
    """(the model, its training by a compiled step)."""
    model = case.make(cx.nn)
    if weights:
        model.load_state_dict(weights)
    optimizer = getattr(cx.optim, case.optimizer)(model.parameters(), **case.options)
    x, y = cx.tensor(batch[0]), cx.tensor(batch[1])

    def step(x: Any, y: Any) -> Any:
        logits = model(x)
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    compiled = cx.compile(step, numerics=numerics)
    return model, Training(lambda: float(compiled(x, y).item()), lambda: dict(model.named_parameters()))


def theirs(case: Case, weights: dict[str, Array], batch: tuple[Array, Array], how: str) -> Training:
    """PyTorch's, in one of the ways of peers(), or all of it in `float64`, which errors are measured against."""
    import torch

    model = case.make(torch.nn)
    model.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    x, y = torch.tensor(batch[0]), torch.tensor(batch[1])
    if how == "channels last":
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    if how == "float64":
        model, x = model.double(), x.double() if x.is_floating_point() else x
    fused = None if how in ("eager", "float64") else True
    optimizer = getattr(torch.optim, case.optimizer)(model.parameters(), fused=fused, **case.options)

    def forward(x: Any, y: Any) -> Any:
        logits = model(x)
        return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1))

    if how == "compile":  # it gives up a function that was compiled for eight models, and runs the others eagerly
        torch.compiler.reset()
    loss_of = torch.compile(forward) if how == "compile" else forward

    def step() -> float:
        loss = loss_of(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return Training(step, lambda: dict(model.named_parameters()))


def first_weights(case: Case) -> dict[str, Array]:
    """As PyTorch draws them."""
    import torch

    torch.manual_seed(0)
    return {name: value.numpy().copy() for name, value in case.make(torch.nn).state_dict().items()}


def peers(
    case: Case, weights: dict[str, Array], batch: tuple[Array, Array], with_compile: bool
) -> Iterator[tuple[str, Training]]:
    """Each way to run PyTorch here."""
    ways = ["eager", "fused"] + ["channels last"] * (batch[0].ndim == 4) + ["compile"] * with_compile
    for how in ways:
        yield f"torch {how}", theirs(case, weights, batch, how)


def measure(
    name: str,
    threads: int,
    rounds: int,
    budget_s: float,
    with_compile: bool,
    clock: Callable[[], float],
    numerics: str = "exact",
    jax: str = "",
) -> Row:
    """Trainings of one model by all. jax: the interpreter that has it."""
    case = MODELS[name]
    batch = case.inputs(np.random.default_rng(0))
    cpu.set_num_threads(threads)
    trainings: dict[str, Training] = {}
    weights = truth = None
    if torch_is_here():
        import torch

        torch.set_num_threads(threads)
        weights = first_weights(case)
        trainings = dict(peers(case, weights, batch, with_compile))
        truth = theirs(case, weights, batch, "float64")
    cx.manual_seed(0)
    model, trainings["cyx"] = ours(case, weights, batch, numerics)
    weights = weights or {key: value.numpy().copy() for key, value in model.state_dict().items()}
    if not jax:
        return _measured(name, trainings, truth, weights, None, rounds, budget_s, clock, numerics)
    with Steps(jax, name, weights, batch, threads) as other:
        return _measured(name, trainings, truth, weights, other, rounds, budget_s, clock, numerics)


def _measured(
    name: str,
    trainings: dict[str, Training],
    truth: Training | None,
    weights: dict[str, Array],
    jax: Steps | None,
    rounds: int,
    budget_s: float,
    clock: Callable[[], float],
    numerics: str,
) -> Row:
    row: Row = {"ms": {}, "plan_s": 0.0, "loss_error": {}, "parameter_error": {}, "packages": {}}
    losses = {}
    for who, training in trainings.items():
        begun = time.perf_counter()
        losses[who] = [training.step()]
        if who == "cyx":
            row["plan_s"] = time.perf_counter() - begun
        losses[who] += [training.step() for _ in range(STEPS_COMPARED - 1)]
    parameters = {who: training.parameters() for who, training in trainings.items()}
    if jax:
        losses["jax jit"], parameters["jax jit"] = jax.ask("steps", STEPS_COMPARED), jax.weights()
        row["packages"] = {"jax": jax.version}
    for who, found in losses.items():
        if not np.allclose(found, losses["cyx"], rtol=LOSS_TOLERANCE[numerics]):
            raise SystemExit(f"{name}: {who} lost {found}, cyx {losses['cyx']}: not the same training")
    if truth:
        right = [truth.step() for _ in range(STEPS_COMPARED)]
        for who, found in losses.items():
            row["loss_error"][who] = float(np.max(np.abs(np.divide(found, right) - 1)))
            row["parameter_error"][who] = error_of_the_way(weights, parameters[who], truth.parameters())
    took: dict[str, list[float]] = {who: [] for who in losses}
    for _ in range(rounds):
        for who, training in trainings.items():
            time.sleep(REST_S)
            took[who].append(burst(training.step, budget_s, clock)[0])
        if jax:
            time.sleep(REST_S)
            took["jax jit"].append(jax.ask("burst", budget_s, "processor" if clock is time.process_time else "wall")[0])
    row["ms"] = {who: statistics.median(each) for who, each in took.items()}
    return row


def error_of_the_way(first: dict[str, Any], found: dict[str, Any], true: dict[str, Any]) -> float:
    """Of the way that parameters went from the first ones, all of them as one vector: relative to the true way."""

    def way(to: dict[str, Any]) -> Array:
        return np.concatenate([(as_float64(to[name]) - as_float64(first[name])).ravel() for name in true])

    return relative_error(way(found), way(true))


def torch_is_here() -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch  # noqa: F401
    except ImportError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--threads", default="1,2", help="thread counts, with commas between (default 1,2)")
    parser.add_argument("--only", default="", help=f"some of {', '.join(MODELS)}, with commas between")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="torch.compile, which takes minutes to warm up: in full runs, unless --no-compile; in --quick with it",
    )
    parser.add_argument(
        "--jax",
        metavar="PYTHON",
        default=str(PEERS) if PEERS.exists() else "",
        help="the interpreter that has JAX (default .peers/bin/python where that is; '' for none)",
    )
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="time of the processor, not of the clock: what others take of the machine does not count",
    )
    parser.add_argument(
        "--numerics", choices=list(LOSS_TOLERANCE), default="exact", help="the class of our products (docs/numerics.md)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    add_save(parser)
    options = parser.parse_args()
    names = [name for name in options.only.split(",") if name] or list(MODELS)
    if unknown := sorted(set(names) - set(MODELS)):
        parser.error(f"--only: unknown {', '.join(unknown)}; known: {', '.join(MODELS)}")
    if options.processor_time and options.threads != "1":
        parser.error("--processor-time adds up the threads of a process; give it with --threads 1")
    with_compile = not options.quick if options.compile is None else options.compile
    clock = time.process_time if options.processor_time else time.perf_counter
    rounds, budget_s = (3, 0.05) if options.quick else (7, 0.3)
    found: dict[str, dict[str, Row]] = {}
    packages: dict[str, str] = {}  # of peers in environments of their own
    if options.numerics != "exact" and not cpu.amx():
        parser.error(f"--numerics {options.numerics}: there is no AMX here, so the exact kernels would be measured")
    if not (torch_is_here() or options.jax):
        print("torch is missing (pip install torch), so nothing is compared: our own times alone", file=sys.stderr)
    for threads in map(int, options.threads.split(",")):
        rows = found[str(threads)] = {}
        for name in names:
            rows[name] = measure(name, threads, rounds, budget_s, with_compile, clock, options.numerics, options.jax)
            packages |= rows[name].pop("packages")
            if not options.json:
                show(name, threads, rows[name])
        ratios = [ratio for row in rows.values() if (ratio := times_faster(row["ms"]))]
        if ratios and not options.json:
            mean, least = geometric_mean(ratios), min(ratios)
            print(f"{threads} thread(s): geometric mean {mean:.2f} × the fastest of the others, least {least:.2f} ×")
    result = {
        "isa": cpu.isa(),
        "numerics": options.numerics,
        "threads": found,
    }
    save(options.save, result, **packages)
    if options.json:
        print(json.dumps(result))
    return 0


def show(name: str, threads: int, row: Row) -> None:
    errors = row["parameter_error"]
    times = "  ".join(with_error(f"{who} {ms:9.3f} ms", errors.get(who)) for who, ms in row["ms"].items())
    faster = times_faster(row["ms"])
    ratio = f"  {faster:5.2f} ×" if faster else ""
    print(f"{name:10} {threads} thread(s)  {times}{ratio}  (planned in {row['plan_s']:.2f} s)", flush=True)


if __name__ == "__main__":
    sys.exit(main())

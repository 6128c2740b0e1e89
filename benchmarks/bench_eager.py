"""Operations on small tensors one by one, and a plain training step, beside PyTorch: what the way to a kernel costs.

    pip install torch                             # the peer; without it only our own times are shown
    python -m benchmarks.bench_eager [--quick] [--processor-time]
    python -m benchmarks.bench_eager --steps mlp_small,lstm,gpt          # only plain steps of these models
    python -m benchmarks.bench_eager --sequences [--threads 2]           # only recurrent layers and ctc_loss

Nothing is compiled; one thread, if no other number is asked for. Each operation includes its tape where an input
requires a gradient. The step is mlp_small of bench_train (64-128-64-10, batch 64, cross-entropy, Adam), or each of
--steps; PyTorch's with its fused optimiser too. Rounds of the two alternate, figures are medians. Behind each time of
an operation stands the error of its first result against PyTorch's of the same numbers in float64, of the norm; errors
of steps are bench_train's.

Recurrent layers have as many hidden units as inputs; each is measured with one length, and with four from half of that
on in turn (the figure is of all four), as batches of texts have.

Targets: an operation with its tape in less than 200 ns; mlp_small's step three times faster than PyTorch's fastest.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import cyxcore as cx
from benchmarks.bench_train import MODELS
from benchmarks.figures import add_save, relative_error, save, with_error
from cyxcore.kernels import cpu

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]

Run = Callable[[], object]

ALIGNED = ((50, 4, 20), (300, 16, 32), (1000, 8, 100))  # steps, rows, classes; a fourth as many labels, at most 100
SEQUENCES = ((16, 32, 64), (64, 35, 200), (1, 100, 128), (8, 200, 256))  # rows, steps, units
LENGTHS = 8  # the second half of these parts of the steps come in turn

WARM_UP = 5  # runs before the first burst: what comes again is planned by then


def operations(library: Any, kind: Any = np.float32) -> Iterator[tuple[str, Run]]:
    """Of cyxcore or torch, which take the same calls, on the same numbers. x requires a gradient."""
    rng = np.random.default_rng(0)
    make = library.tensor

    def drawn(*shape: int) -> Any:
        return rng.standard_normal(shape, dtype=np.float32).astype(kind)

    x, y, z = make(drawn(64), requires_grad=True), make(drawn(64)), make(drawn(64))
    a, w, one = make(drawn(8, 8)), make(drawn(64)), make(kind(1.5))
    places, row, functional = make(np.arange(8)), a[0], library.nn.functional
    yield "x + y, 64 elements, with tape", lambda: x + y
    yield "x * 2.0, with tape", lambda: x * 2.0
    yield "x.exp(), with tape", lambda: x.exp()
    yield "y + z", lambda: y + z
    yield "y * y", lambda: y * y
    yield "y / z", lambda: y / z
    yield "y ** 2", lambda: y**2
    yield "-y", lambda: -y
    yield "w += z", lambda: w.__iadd__(z)
    yield "y > 0", lambda: y > 0
    yield "y.relu()", lambda: y.relu()
    yield "y.sum()", lambda: y.sum()
    yield "a.mean(0), 8 x 8", lambda: a.mean(0)
    yield "a.max()", lambda: a.max()
    yield "a @ a", lambda: a @ a
    yield "a.T", lambda: a.T
    yield "y.reshape(8, 8)", lambda: y.reshape(8, 8)
    yield "a[3]", lambda: a[3]
    yield "a[:, 2]", lambda: a[:, 2]
    yield "a[places]", lambda: a[places]
    yield "one.item()", lambda: one.item()
    yield "y.double()", lambda: y.double()
    yield "y.clone()", lambda: y.clone()
    yield "y.detach()", lambda: y.detach()
    yield "where(y > 0, y, z)", lambda: library.where(y > 0, y, z)
    yield "cat([a, a])", lambda: library.cat([a, a])
    yield "zeros(8)", lambda: library.zeros(8)
    yield "exp(x), with tape", lambda: library.exp(x)
    yield "add(x, y), with tape", lambda: library.add(x, y)
    yield "mul(y, z)", lambda: library.mul(y, z)
    yield "pow(y, 3)", lambda: library.pow(y, 3)
    yield "maximum(y, z)", lambda: library.maximum(y, z)
    yield "clamp(y, 0, 1)", lambda: library.clamp(y, 0, 1)
    yield "sum(y)", lambda: library.sum(y)
    yield "sum(a, dim=1)", lambda: library.sum(a, dim=1)
    yield "a.mean(-1, keepdim=True)", lambda: a.mean(-1, keepdim=True)
    yield "max(a, dim=1)", lambda: library.max(a, dim=1)
    yield "matmul(a, a)", lambda: library.matmul(a, a)
    yield "transpose(a, 0, 1)", lambda: library.transpose(a, 0, 1)
    yield "y.unsqueeze(0)", lambda: y.unsqueeze(0)
    yield "stack([a, a])", lambda: library.stack([a, a])
    yield "F.relu(y)", lambda: functional.relu(y)
    yield "F.gelu(y)", lambda: functional.gelu(y)
    yield "F.softmax(a, dim=1)", lambda: functional.softmax(a, dim=1)
    yield "F.linear(a, a, a[0])", lambda: functional.linear(a, a, row)
    yield "F.layer_norm(a, (8,))", lambda: functional.layer_norm(a, (8,))
    yield "F.mse_loss(y, z)", lambda: functional.mse_loss(y, z)
    yield "F.cross_entropy(a, places)", lambda: functional.cross_entropy(a, places)
    yield "(x * y).sum().backward()", lambda: (x * y).sum().backward()


def errors() -> dict[str, dict[str, float]]:
    """Of the first result of each operation that has one."""
    found: dict[str, dict[str, float]] = {}
    for (name, ours), (_, theirs), (_, truth) in zip(
        operations(cx), operations(torch), operations(torch, np.float64), strict=True
    ):
        results, true = {"cyx": ours(), "torch": theirs()}, truth()
        if true is not None:
            lost = {who: relative_error(_values(each), _values(true)) for who, each in results.items()}
            found[name] = {who: float(f"{error:.2e}") for who, error in lost.items()}
    return found


def _values(result: Any) -> Any:
    """Without the places, where it is both."""
    return result[0] if isinstance(result, tuple) else result


def step(library: Any, name: str, **options: Any) -> Run:
    case = MODELS[name]
    inputs, labels = case.inputs(np.random.default_rng(0))
    x, y = library.tensor(inputs), library.tensor(labels)
    model, loss = case.make(library.nn), library.nn.CrossEntropyLoss()
    optimizer = getattr(library.optim, case.optimizer)(model.parameters(), **{"lr": 0.001, **case.options, **options})

    def run() -> None:
        logits = model(x)
        value = loss(logits.reshape(-1, logits.shape[-1]), y.reshape(-1))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return run


def sequences(library: Any) -> Iterator[tuple[str, Run]]:
    """Recurrent layers there and back, of one length and of several ones in turn; ctc_loss, there and back, too."""
    rng = np.random.default_rng(0)
    for kind in ("LSTM", "GRU", "RNN"):
        for rows, steps, units in SEQUENCES:
            layer = getattr(library.nn, kind)(units, units, batch_first=True)
            numbers = rng.standard_normal((rows, steps, units), dtype=np.float32)
            several = [steps * part // LENGTHS for part in range(LENGTHS // 2, LENGTHS)]
            for which, lengths in (("", [steps]), (f", {len(several)} lengths", several)):
                inputs = [library.tensor(numbers[:, :length].copy(), requires_grad=True) for length in lengths]
                yield f"{kind} {rows} x {steps} x {units}{which}", partial(_there_and_back, layer, inputs)
    for steps, rows, classes in ALIGNED:
        x = library.tensor(rng.standard_normal((steps, rows, classes), dtype=np.float32))
        size = min(steps // 4, 100)
        labels, counts = rng.integers(1, classes, (rows, size)), rng.integers(size // 2, size + 1, rows)
        given = [library.tensor(each) for each in (labels, np.full(rows, steps), counts)]
        log_probs = x.log_softmax(2).detach().requires_grad_()
        yield f"ctc_loss {steps} x {rows} x {classes}", partial(_loss_back, library, log_probs, given)


def _loss_back(library: Any, x: Any, given: list[Any]) -> None:
    x.grad = None
    library.nn.functional.ctc_loss(x, *given).backward()


def _there_and_back(layer: Any, inputs: list[Any]) -> None:
    for x in inputs:
        layer(x)[0].sum().backward()
        layer.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--processor-time", action="store_true", help="for a machine that others use too")
    parser.add_argument("--steps", metavar="NAMES", help=f"plain steps alone, of {', '.join(MODELS)}, after commas")
    parser.add_argument("--sequences", action="store_true", help="recurrent layers and ctc_loss alone")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    add_save(parser)
    options = parser.parse_args()
    only = bool(options.steps or options.sequences)
    models = options.steps.split(",") if options.steps else [] if only else ["mlp_small"]
    if not set(models) <= set(MODELS):
        parser.error(f"--steps: expected some of {', '.join(MODELS)}, got {options.steps}")
    clock = time.process_time if options.processor_time else time.perf_counter
    rounds, burst_s = (5, 0.01) if options.quick else (15, 0.05)

    def once(run: Run, at_once: int) -> float:
        started, count = clock(), 0
        while (spent := clock() - started) < burst_s:
            for _ in range(at_once):
                run()
            count += at_once
        return spent / count

    cpu.set_num_threads(options.threads)
    rows: list[tuple[str, list[Run]]] = [] if only else [(name, [run]) for name, run in operations(cx)]
    layers: list[tuple[str, list[Run]]] = [(name, [run]) for name, run in sequences(cx)] if options.sequences else []
    steps: list[tuple[str, list[Run]]] = [(f"a training step, {name}", [step(cx, name)]) for name in models]
    if torch is not None:
        torch.set_num_threads(options.threads)
        for (_, runs), (_, theirs) in zip(rows, operations(torch), strict=False):
            runs.append(theirs)
        for (_, runs), (_, theirs) in zip(layers, sequences(torch), strict=False):
            runs.append(theirs)
        for (_, runs), name in zip(steps, models, strict=True):
            runs.extend([step(torch, name), step(torch, name, fused=True)])
    print(f"{cpu.isa()}, {options.threads} thread(s); torch {'missing' if torch is None else torch.__version__}")
    print(f"{'ns (error)':34}{'cyx':>18}{'torch':>18}{'ratio':>8}")
    lost = {} if torch is None or only else errors()
    figures: dict[str, dict[str, float]] = {}
    for name, runs in [*rows, *steps, *layers]:
        at_once = 20 if (name, runs) in rows or "small" in name else 1  # runs between two looks at the clock
        times: list[list[float]] = [[] for _ in runs]
        for run in runs:
            for _ in range(WARM_UP):
                run()
        for _ in range(rounds):
            for found, run in zip(times, runs, strict=True):
                found.append(once(run, at_once))
        ours, *others = [statistics.median(found) for found in times]
        figures[name] = {"cyx": round(ours * 1e9, 1)} | ({"torch": round(min(others) * 1e9, 1)} if others else {})
        cells = [with_error(f"{ns:.0f}", lost.get(name, {}).get(who)) for who, ns in figures[name].items()]
        ratio = f"{min(others) / ours:8.2f}" if others else ""
        print(f"{name:34}{''.join(f'{cell:>18}' for cell in cells)}{ratio}", flush=True)
    save(options.save, {"isa": cpu.isa(), "ns": figures, "error": lost})


if __name__ == "__main__":
    main()

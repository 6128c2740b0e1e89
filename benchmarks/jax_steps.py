"""The training steps of bench_train in JAX: a process of its own, whose interpreter need not have Cyx.

    PYTHON benchmarks/jax_steps.py MODEL STATE.npz THREADS

bench_train starts it, and says in which interpreter. STATE.npz holds the first weights by PyTorch's names, and the
batch as `x` and `y`. A step is one function under jax.jit that gives up its arguments and makes the new weights and
state of the optimiser. Each line of stdin is answered by one line of JSON: `steps N` by the losses of N steps, `burst
SECONDS CLOCK` by (median milliseconds of a step, how many were made), CLOCK being wall or processor, `weights FILE` by
null once the trained weights are in FILE (.npz).
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Weights = dict[str, Any]
Array = np.ndarray[Any, Any]
MOMENTUM, BN_MOMENTUM, EPS = 0.9, 0.1, 1e-5
GROUP_S = 0.001  # the least that is timed at once


def models() -> dict[str, Callable[[Weights, Any], tuple[Any, Weights]]]:
    """Of each the logits, and the buffers that a step writes."""
    import jax
    import jax.numpy as jnp

    def linear(w: Weights, name: str, x: Any) -> Any:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    def mlp(w: Weights, x: Any) -> tuple[Any, Weights]:
        return linear(w, "4", jax.nn.relu(linear(w, "2", jax.nn.relu(linear(w, "0", x))))), {}

    def conv(w: Weights, name: str, x: Any, padding: int = 0) -> Any:
        """Channels last; XLA takes as long for channels first."""
        kernel = w[f"{name}.weight"].transpose(2, 3, 1, 0)
        around = [(padding, padding)] * 2
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), around, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y + w.get(f"{name}.bias", 0.0)

    def cnn(w: Weights, x: Any) -> tuple[Any, Weights]:
        x = jax.nn.relu(conv(w, "2", jax.nn.relu(conv(w, "0", x.transpose(0, 2, 3, 1)))))
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        flat = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
        return linear(w, "8", jax.nn.relu(linear(w, "6", flat))), {}

    def resnet(w: Weights, x: Any) -> tuple[Any, Weights]:
        buffers: Weights = {}
        x = x.transpose(0, 2, 3, 1)
        for place in range(4):
            x, name = conv(w, str(3 * place), x, 1), str(3 * place + 1)
            mean, variance, count = x.mean((0, 1, 2)), x.var((0, 1, 2)), x.size // x.shape[-1]
            for kind, new in (("mean", mean), ("var", variance * (count / (count - 1)))):
                old = w[f"{name}.running_{kind}"]
                buffers[f"{name}.running_{kind}"] = old + BN_MOMENTUM * (jax.lax.stop_gradient(new) - old)
            x = (x - mean) * jax.lax.rsqrt(variance + EPS) * w[f"{name}.weight"] + w[f"{name}.bias"]
            x = jax.nn.relu(x)
        return linear(w, "14", x.mean((1, 2))), buffers

    def norm(w: Weights, name: str, x: Any) -> Any:
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(variance + EPS) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def gpt(w: Weights, tokens: Any) -> tuple[Any, Weights]:
        x = w["tokens.weight"][tokens] + w["positions.weight"]
        rows, steps, width = x.shape
        for name in (f"blocks.{place}" for place in range(4)):
            both = linear(w, f"{name}.qkv", norm(w, f"{name}.norm1", x)).reshape(rows, steps, 3, 4, width // 4)
            mixed = jax.nn.dot_product_attention(both[:, :, 0], both[:, :, 1], both[:, :, 2], is_causal=True)
            x = x + linear(w, f"{name}.out", mixed.reshape(rows, steps, width))
            up = jax.nn.gelu(linear(w, f"{name}.up", norm(w, f"{name}.norm2", x)), approximate=True)
            x = x + linear(w, f"{name}.down", up)
        return linear(w, "head", norm(w, "norm", x)), {}

    def lstm(w: Weights, x: Any) -> tuple[Any, Weights]:
        """The inputs of all steps are multiplied at once."""
        gates = x @ w["lstm.weight_ih_l0"].T + (w["lstm.bias_ih_l0"] + w["lstm.bias_hh_l0"])
        again = w["lstm.weight_hh_l0"].T

        def step(state: tuple[Any, Any], gate: Any) -> tuple[tuple[Any, Any], None]:
            h, c = state
            i, f, g, o = jnp.split(gate + h @ again, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

        zeros = jnp.zeros((x.shape[0], again.shape[0]), x.dtype)
        (h, _), _ = jax.lax.scan(step, (zeros, zeros), gates.swapaxes(0, 1))
        return linear(w, "out", h), {}

    return {"mlp_small": mlp, "mlp_large": mlp, "cnn": cnn, "resnet": resnet, "gpt": gpt, "lstm": lstm}


def step_of(model: str, state: dict[str, Any]) -> tuple[Callable[[], float], Callable[[], Weights]]:
    """(one training step, which returns its loss; the weights so far, without buffers)."""
    import jax
    import jax.numpy as jnp

    forward = models()[model]
    x, y = jnp.asarray(state["x"]), jnp.asarray(state["y"]).reshape(-1)
    held = {name: jnp.array(value) for name, value in state.items() if name not in ("x", "y")}
    held = {name: value for name, value in held.items() if not name.endswith("num_batches_tracked")}
    buffers = {name: held.pop(name) for name in list(held) if "running_" in name}
    plain = model in ("cnn", "resnet")  # SGD with momentum; the others have Adam, with decoupled decay two of them
    decay = 0.01 if model in ("mlp_large", "gpt") else 0.0

    def loss_of(weights: Weights, buffers: Weights, x: Any, y: Any) -> tuple[Any, Weights]:
        logits, written = forward({**weights, **buffers}, x)
        logs = jax.nn.log_softmax(logits.reshape(len(y), -1))
        return -jnp.take_along_axis(logs, y[:, None], 1).mean(), written

    def update(weights: Weights, buffers: Weights, slots: Any, number: Any, x: Any, y: Any) -> Any:
        (loss, written), gradients = jax.value_and_grad(loss_of, has_aux=True)(weights, buffers, x, y)
        number = number + 1.0
        first, second = 1.0 - 0.9**number, 1.0 - 0.999**number
        new: Weights = {}
        kept: dict[str, tuple[Any, ...]] = {}
        for name, g in gradients.items():
            p = weights[name]
            if plain:
                kept[name] = (slots[name][0] * MOMENTUM + g,)
                new[name] = p - 0.01 * kept[name][0]
                continue
            m, v = slots[name][0] * 0.9 + g * 0.1, slots[name][1] * 0.999 + g * g * 0.001
            new[name] = p * (1.0 - 0.001 * decay) - 0.001 * (m / first) / (jnp.sqrt(v / second) + 1e-8)
            kept[name] = (m, v)
        return new, {**buffers, **written}, kept, number, loss

    run = jax.jit(update, donate_argnums=(0, 1, 2, 3))
    slots = {name: tuple(jnp.zeros_like(p) for _ in range(1 if plain else 2)) for name, p in held.items()}
    all_of_it = [held, buffers, slots, jnp.zeros(())]

    def step() -> float:
        *all_of_it[:], loss = run(*all_of_it, x, y)
        return float(loss)

    return step, lambda: all_of_it[0]


def burst(step: Callable[[], float], seconds: float, clock: Callable[[], float]) -> tuple[float, int]:
    """(median milliseconds of a step, how many were made) in as many as fill the time. What interrupts one of them does
    not count. Steps of less than a millisecond are timed in groups: reading the clock takes none of their time."""
    took: list[float] = []
    begun, count, at_once = clock(), 0, 1
    while clock() - begun < seconds or not took:
        before = clock()
        for _ in range(at_once):
            step()
        spent = clock() - before
        count += at_once
        took.append(spent / at_once)
        if spent < GROUP_S:
            took, at_once = took[-1:], 2 * at_once  # one figure at least, where time is up
    return statistics.median(took) * 1000, count


class Steps:
    """The process, for bench_train. As a context manager: it ends with the block."""

    def __init__(self, python: str, model: str, weights: dict[str, Array], batch: tuple[Array, Array], threads: int):
        """Raises SystemExit where the interpreter cannot be run, or has no JAX."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state.npz"
            np.savez(path, x=batch[0], y=batch[1], **weights)  # type: ignore[arg-type]
            try:
                self.process = subprocess.Popen(
                    [python, __file__, model, str(path), str(threads)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            except OSError as error:
                raise SystemExit(f"--jax: {python} cannot be run: {error.strerror}") from None
            self.version = self._answer(python)  # it has read the file by then

    def _answer(self, who: str = "JAX") -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.communicate()
            ended = f"ended with status {self.process.returncode}"
            raise SystemExit(f"--jax: {who} {ended}; does it have JAX (pip install jax)?")
        return json.loads(line)

    def ask(self, *words: object) -> Any:
        assert self.process.stdin is not None
        print(*words, file=self.process.stdin, flush=True)
        return self._answer()

    def weights(self) -> dict[str, Array]:
        """The trained ones, without buffers, by PyTorch's names."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "weights.npz"
            self.ask("weights", path)
            with np.load(path) as held:
                return dict(held)

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, *raised: object) -> None:
        self.process.communicate()  # the end of its input is its end


def main() -> None:
    model, path, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if hasattr(os, "sched_setaffinity"):  # XLA takes as many threads as there are cores for it
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    if threads == 1:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    os.environ["JAX_PLATFORMS"] = "cpu"
    with np.load(path) as state:
        step, weights = step_of(model, dict(state))
    import jax

    print(json.dumps(jax.__version__), flush=True)
    for line in sys.stdin:
        verb, rest = line.rstrip("\n").split(" ", 1)
        if verb == "steps":
            print(json.dumps([step() for _ in range(int(rest))]), flush=True)
        elif verb == "weights":
            np.savez(rest, **weights())
            print("null", flush=True)
        else:
            seconds, clock = rest.split()
            by = time.process_time if clock == "processor" else time.perf_counter
            print(json.dumps(burst(step, float(seconds), by)), flush=True)


if __name__ == "__main__":
    main()

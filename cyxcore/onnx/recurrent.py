"""ONNX's RNN, GRU and LSTM: x (T, N, C); weights (directions, gates H, C) with ONNX's order of gates."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from cyxcore import functional as F
from cyxcore.errors import GraphError
from cyxcore.onnx.elementwise import ACTIVATIONS
from cyxcore.onnx.table import Call, constant, host, operator, text
from cyxcore.values import apply

MAX_STEPS = 5_000

Function = Callable[[Any], Any]


class Kind(NamedTuple):
    gates: int
    activations: tuple[str, ...]  # of one direction, when none are named


KINDS = {
    "RNN": Kind(1, ("Tanh",)),
    "GRU": Kind(3, ("Sigmoid", "Tanh")),
    "LSTM": Kind(4, ("Sigmoid", "Tanh", "Tanh")),
}


def _functions(call: Call, names: Sequence[str], place: int) -> list[Function]:
    """The activations of one direction, each with its numbers."""
    alphas, betas = list(call.attr("activation_alpha", [])), list(call.attr("activation_beta", []))
    found: list[Function] = []
    known = {name.lower(): row for name, row in ACTIVATIONS.items()}
    for name in names[place : place + len(KINDS[call.op].activations)]:
        if name.lower() not in known:
            raise GraphError(f"the activation {name!r} is not supported")
        defaults, function = known[name.lower()]
        numbers = []
        for key, default in defaults.items():
            given = alphas if key == "alpha" else betas
            numbers.append(given.pop(0) if given else default)
        found.append(partial(_applied, function, tuple(numbers)))
    return found


def _applied(function: Any, numbers: tuple[float, ...], x: Any) -> Any:
    return function(x, *numbers)


def _weights(part: Any, number: int, size: int) -> Any:
    """Rows of one gate."""
    return part[number * size : (number + 1) * size]


def _direction(
    call: Call,
    x: Any,
    w: Any,
    r: Any,
    b: Any,
    state: list[Any],
    peep: Any,
    functions: list[Function],
    lengths: Any,
    backwards: bool,
) -> tuple[Any, list[Any]]:
    """One direction over all steps: (T, N, H) and the last state."""
    size, steps = r.shape[1], x.shape[0]
    clip = call.attr("clip")
    gates = KINDS[call.op].gates
    wb = None if b is None else b[: gates * size]
    rb = None if b is None else b[gates * size :]
    rows = apply("matmul", x.reshape(steps * x.shape[1], x.shape[2]), w, transpose_b=True)
    of_x = (rows if wb is None else rows + wb).reshape(steps, x.shape[1], gates * size)

    def part(value: Any, number: int) -> Any:
        return value[:, number * size : (number + 1) * size]

    def clipped(value: Any) -> Any:
        return F.hardtanh(value, -clip, clip) if clip else value

    def recurrent(hidden: Any, first: int, last: int) -> Any:
        product = apply("matmul", hidden, r[first * size : last * size], transpose_b=True)
        return product if rb is None else product + rb[first * size : last * size]

    def rnn(now: Any, state: list[Any]) -> list[Any]:
        return [functions[0](clipped(now + recurrent(state[0], 0, 1)))]

    def gru(now: Any, state: list[Any]) -> list[Any]:
        """z, r, h"""
        (hidden,) = state
        both = now[:, : 2 * size] + recurrent(hidden, 0, 2)
        z, reset = functions[0](clipped(part(both, 0))), functions[0](clipped(part(both, 1)))
        if call.attr("linear_before_reset", 0):
            new = functions[1](clipped(part(now, 2) + reset * recurrent(hidden, 2, 3)))
        else:
            new = functions[1](clipped(part(now, 2) + recurrent(reset * hidden, 2, 3)))
        return [(1.0 - z) * new + z * hidden]

    def lstm(now: Any, state: list[Any]) -> list[Any]:
        """i, o, f, c; peepholes i, o, f"""
        hidden, cell = state
        total = now + recurrent(hidden, 0, 4)
        i, o, f, c = (part(total, number) for number in range(4))
        if peep is not None:
            i, f = i + _weights(peep, 0, size) * cell, f + _weights(peep, 2, size) * cell
        i, new = functions[0](clipped(i)), functions[1](clipped(c))
        f = 1.0 - i if call.attr("input_forget", 0) else functions[0](clipped(f))
        cell = f * cell + i * new
        if peep is not None:
            o = o + _weights(peep, 1, size) * cell
        return [functions[0](clipped(o)) * functions[2](cell), cell]

    step = {"RNN": rnn, "GRU": gru, "LSTM": lstm}[call.op]
    outputs: list[Any] = [None] * steps
    for t in reversed(range(steps)) if backwards else range(steps):
        new = step(of_x[t], state)
        if lengths is not None:
            inside = constant(x, (lengths > t)[:, None])
            state = [F.where(inside, a, b) for a, b in zip(new, state, strict=True)]
            outputs[t] = F.where(inside, new[0], 0.0)
        else:
            state, outputs[t] = new, new[0]
    return F.stack(outputs, 0), state


@operator("RNN", "GRU", "LSTM", known=(4,))
def _recurrent(
    call: Call,
    x: Any,
    w: Any,
    r: Any,
    b: Any = None,
    lengths: Any = None,
    initial_h: Any = None,
    initial_c: Any = None,
    peepholes: Any = None,
) -> Any:
    batch_first = bool(call.attr("layout", 0))
    if batch_first:
        x = x.transpose(1, 0, 2)
        initial_h, initial_c = (None if v is None else v.transpose(1, 0, 2) for v in (initial_h, initial_c))
    if not 0 < x.shape[0] <= MAX_STEPS:
        raise GraphError(f"expected 1 to {MAX_STEPS} steps, got x {x.shape}")
    direction = text(call.attr("direction", "forward")).lower()
    count, size = w.shape[0], r.shape[2]
    if count != (2 if direction == "bidirectional" else 1):
        raise GraphError(f"{direction} weights of {count} directions")
    kind = KINDS[call.op]
    names = [text(name) for name in call.attr("activations", [])] or list(kind.activations) * count
    known = None if lengths is None else np.asarray(host(lengths)).reshape(-1)
    zeros = x._constant(0.0, x.dtype).broadcast_to(x.shape[1], size)
    starts = [initial_h, initial_c] if call.op == "LSTM" else [initial_h]
    outputs, ends = [], []
    for place in range(count):
        state = [zeros if start is None else start[place] for start in starts]
        functions = _functions(call, names, place * len(kind.activations))
        backwards = direction == "reverse" or place == 1
        peep = None if peepholes is None else peepholes[place]
        bias = None if b is None else b[place]
        found, last = _direction(call, x, w[place], r[place], bias, state, peep, functions, known, backwards)
        outputs.append(found)
        ends.append(last)
    y = F.stack(outputs, 1)  # (T, directions, N, H)
    last_states = [F.stack([end[which] for end in ends], 0) for which in range(len(starts))]
    if batch_first:
        y = y.transpose(2, 0, 1, 3)
        last_states = [state.transpose(1, 0, 2) for state in last_states]
    return (y, *last_states)

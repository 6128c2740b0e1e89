"""Recurrent layers: one direction of one layer each, time unrolled. Gate order and formulas are torch's.

x: (N, T, C). weight_ih: (G H, C), weight_hh: (G H, H), biases: (G H,), G being 1, 4 (LSTM) or 3 (GRU) gates.
All steps' inputs are multiplied at once; only the recurrence goes step by step.
lengths: (N,) integers; what comes after the length of a row changes nothing and gives zeros.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from cyxcore.casting import rounded_product
from cyxcore.errors import ShapeError, SpecError
from cyxcore.functional.basic import linear, stack, where

State = tuple[Any, ...]


class Weights(NamedTuple):
    ih: Any
    hh: Any
    bias_ih: Any = None
    bias_hh: Any = None
    hr: Any = None  # (P, H), what an LSTM makes of its hidden state (Sak et al. 2014); weight_hh is (G H, P) then


class Cell(NamedTuple):
    """One kind of recurrence: gates times hidden size are the rows of its weights; `states` how many it carries."""

    gates: int
    states: int
    step: Callable[[Any, State, Weights, int], State]  # (input part of the gates, state, weights, hidden size)


def _part(gates: Any, number: int, size: int) -> Any:
    return gates[:, number * size : (number + 1) * size]


def _lstm_step(of_x: Any, state: State, weights: Weights, size: int) -> State:
    """i, f, g, o = gates; c' = σ(f) c + σ(i) tanh(g); h' = σ(o) tanh(c')"""
    hidden, cell = state
    gates = of_x + linear(hidden, weights.hh, weights.bias_hh)
    i, f, g, o = (_part(gates, number, size) for number in range(4))
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    hidden = o.sigmoid() * cell.tanh()
    return hidden if weights.hr is None else linear(hidden, weights.hr), cell


def _gru_step(of_x: Any, state: State, weights: Weights, size: int) -> State:
    """r, z = σ(...); n = tanh(x_n + r h_n); h' = (1 - z) n + z h"""
    (hidden,) = state
    of_h = linear(hidden, weights.hh, weights.bias_hh)
    r = (_part(of_x, 0, size) + _part(of_h, 0, size)).sigmoid()
    z = (_part(of_x, 1, size) + _part(of_h, 1, size)).sigmoid()
    n = (_part(of_x, 2, size) + r * _part(of_h, 2, size)).tanh()
    return ((1.0 - z) * n + z * hidden,)


def _plain_step(activation: str) -> Callable[[Any, State, Weights, int], State]:
    def step(of_x: Any, state: State, weights: Weights, size: int) -> State:
        total = of_x + linear(state[0], weights.hh, weights.bias_hh)
        return (total.tanh() if activation == "tanh" else total.relu(),)

    return step


CELLS: dict[str, Cell] = {
    "rnn_tanh": Cell(1, 1, _plain_step("tanh")),
    "rnn_relu": Cell(1, 1, _plain_step("relu")),
    "lstm": Cell(4, 2, _lstm_step),
    "gru": Cell(3, 1, _gru_step),
}


def recur(
    kind: str,
    x: Any,
    weights: Weights,
    start: Sequence[Any] | None = None,
    lengths: Any = None,
    reverse: bool = False,
) -> tuple[Any, State]:
    """(outputs (N, T, H), last state). kind: a key of CELLS. start: a state of (N, H) each; zeros when absent."""
    inputs = _checked(kind, x, weights, start, lengths)
    outputs, *last = _recurrence(*inputs, kind, reverse)
    return outputs, tuple(last)


@rounded_product
def recur_as_one(
    kind: str, x: Any, weights: Weights, start: Sequence[Any] | None, lengths: Any, reverse: bool
) -> tuple[Any, State]:
    """The same, of tensors perhaps as one operation (sequences.py). The last states have to be read as a whole: the
    gradients of their parts would be added in another order.
    """
    inputs = _checked(kind, x, weights, start, lengths)
    outputs, *last = x._sequenced(_recurrence, inputs, (kind, reverse))
    return outputs, tuple(last)


def _checked(kind: str, x: Any, weights: Weights, start: Sequence[Any] | None, lengths: Any) -> tuple[Any, ...]:
    if x.ndim != 3 or x.shape[2] != weights.ih.shape[1]:
        raise ShapeError(f"{kind}: expected x (N, T, {weights.ih.shape[1]}), got {x.shape}")
    if x.shape[1] < 1:
        raise SpecError(f"{kind}: expected at least one step, got x {x.shape}")
    return (x, lengths, *weights, *((None,) * CELLS[kind].states if start is None else start))


def _recurrence(x: Any, lengths: Any, *given: Any) -> tuple[Any, ...]:
    """(outputs, each last state). given: the weights, the states to begin with (None: zeros), kind and reverse."""
    kind, reverse = given[-2:]
    weights, start = Weights(*given[: len(Weights._fields)]), given[len(Weights._fields) : -2]
    cell = CELLS[kind]
    size = weights.hh.shape[0] // cell.gates
    if start[0] is None:
        zeros = x._constant(0.0, x.dtype).broadcast_to(x.shape[0], size)
        start = (zeros,) * cell.states
        if weights.hr is not None:
            start = (x._constant(0.0, x.dtype).broadcast_to(x.shape[0], weights.hr.shape[0]), zeros)
    of_x, state = linear(x, weights.ih, weights.bias_ih), tuple(start)
    steps = range(x.shape[1])
    outputs: list[Any] = [None] * len(steps)
    for t in reversed(steps) if reverse else steps:
        new = cell.step(of_x[:, t], state, weights, size)
        if lengths is None:
            state, outputs[t] = new, new[0]
        else:
            inside = (lengths > t).expand_dims(1)
            state = tuple(where(inside, one, other) for one, other in zip(new, state, strict=True))
            outputs[t] = where(inside, new[0], 0.0)
    return stack(outputs, 1), *state

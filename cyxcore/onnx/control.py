"""ONNX's If, Loop and Scan: graphs within the graph. In a graph of ours they are unrolled: what decides is known."""

from typing import Any

import numpy as np

from cyxcore import functional as F
from cyxcore.errors import GraphError
from cyxcore.onnx.table import Call, host, integer, operator, tensor
from cyxcore.values import Value

MAX_TRIPS = 10_000


def _holds(value: Any) -> bool:
    return bool(host(value).reshape(-1)[0])


@operator("If", known=(0,))
def _if(call: Call, condition: Any) -> Any:
    return tuple(call.run(call.needs("then_branch" if _holds(condition) else "else_branch"), []))


def _stacked(parts: list[Any], like: Any, axis: int = 0) -> Any:
    return F.stack(parts, axis) if parts else tensor(np.zeros(0, np.float32))


@operator("Loop", known=(0, 1))
def _loop(call: Call, trips: Any = None, condition: Any = None, *carried: Any) -> Any:
    most = MAX_TRIPS + 1 if trips is None else integer(trips)
    going = condition is None or _holds(condition)
    body, state, rows = call.needs("body"), list(carried), []
    trip = 0
    while going and trip < most:
        if trip == MAX_TRIPS:
            raise GraphError(f"loops more than {MAX_TRIPS} times")
        again, *results = call.run(body, [tensor(np.array(trip, np.int64)), tensor(np.array(going)), *state])
        state = results[: len(carried)]
        rows.append(results[len(carried) :])
        going, trip = _holds(again), trip + 1
    scans = [
        _stacked([row[place] for row in rows], call.like)
        for place in range(len(rows[0]) if rows else call.outputs - len(carried))
    ]
    return (*state, *scans)


@operator("Scan", since=9)
def _scan(call: Call, *values: Any) -> Any:
    body, count = call.needs("body"), call.needs("num_scan_inputs")
    state, scanned = list(values[: len(values) - count]), values[len(values) - count :]
    axes = call.attr("scan_input_axes", [0] * count)
    backwards = call.attr("scan_input_directions", [0] * count)
    length = scanned[0].shape[scanned[0]._axis(axes[0])]
    if length > MAX_TRIPS:
        raise GraphError(f"scans more than {MAX_TRIPS} places")
    rows = []
    for place in range(length):
        parts = []
        for value, axis, back in zip(scanned, axes, backwards, strict=True):
            index: list[Any] = [slice(None)] * value.ndim
            index[value._axis(axis)] = length - 1 - place if back else place
            parts.append(value[tuple(index)])
        results = call.run(body, [*state, *parts])
        state, made = results[: len(state)], results[len(state) :]
        rows.append(made)
    many = len(rows[0]) if rows else 0
    out_axes, out_back = call.attr("scan_output_axes", [0] * many), call.attr("scan_output_directions", [0] * many)
    outputs = []
    for which in range(many):
        parts = [row[which] for row in rows]
        axis = out_axes[which]
        if isinstance(parts[0], Value):
            outputs.append(F.stack(parts[::-1] if out_back[which] else parts, axis % (parts[0].ndim + 1)))
    return (*state, *outputs)

"""L-BFGS: an optimiser for whole batches, which asks its closure for loss and gradient several times in a step.

The two-loop recursion is that of Nocedal and Wright, Numerical Optimization (2006), algorithm 7.4; the line search that
of their algorithms 3.5 and 3.6. Options, defaults and where it stops are torch's.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from cyxcore.eager import Tensor, enable_grad, no_grad
from cyxcore.errors import GraphError, SpecError
from cyxcore.optimizer import Group, Optimizer, Parameters, check_state
from cyxcore.spec import OptimizerSpec

Array = np.ndarray[Any, Any]
Closure = Callable[[], Any]

LEAST_CURVATURE = 1e-10  # pairs whose product is smaller are left out of the history
SUFFICIENT, FLAT = 1e-4, 0.9  # of the line search: both conditions of Wolfe


class Point(NamedTuple):
    """A place on the line: how far along it, the loss, its gradient, and the slope along the line."""

    t: float
    loss: float
    gradient: Array
    slope: float


class LBFGS(Optimizer):
    """Quasi-Newton steps from the last `history_size` changes of the gradient; of one group of parameters.

    lr: the length of a step where there is no line search. max_iter: steps in one call of step(), which ends earlier
    after max_eval calls of the closure (5/4 max_iter unless given), at a gradient of at most tolerance_grad, or where
    neither the parameters nor the loss change by more than tolerance_change. line_search_fn: None or "strong_wolfe".
    maximize: make the loss large.
    """

    rule: ClassVar[str] = "lbfgs"

    def __init__(
        self,
        params: Parameters,
        lr: float = 1.0,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
        *,
        maximize: bool = False,
    ) -> None:
        most = max_iter * 5 // 4 if max_eval is None else max_eval
        self.kept: dict[str, Array] = {}
        super().__init__(
            params,
            lr=lr,
            max_iter=max_iter,
            max_eval=most,
            tolerance_grad=tolerance_grad,
            tolerance_change=tolerance_change,
            history_size=history_size,
            line_search_fn=line_search_fn,
            maximize=maximize,
        )
        if len(self.param_groups) > 1:
            raise SpecError(f"LBFGS: expected one group of parameters, got {len(self.param_groups)}")

    def _spec(self, group: Group) -> OptimizerSpec:
        if group["line_search_fn"] not in (None, "strong_wolfe"):
            raise SpecError(f"LBFGS: expected line_search_fn strong_wolfe or None, got {group['line_search_fn']!r}")
        for name in ("max_iter", "max_eval", "history_size"):
            if not isinstance(group[name], int) or group[name] < 1:
                raise SpecError(f"LBFGS: expected a {name} of at least 1, got {group[name]!r}")
        return OptimizerSpec(name="sgd", learning_rate=group["lr"])

    # the parameters as one vector -------------------------------------------------------------

    def _gradient(self) -> Array:
        rows = [
            np.zeros(p.size, p.dtype) if p.grad is None else p.grad.detach().to("cpu").numpy().reshape(-1)
            for p in self.parameters
        ]
        return np.concatenate(rows)

    def _place(self) -> Array:
        return np.concatenate([p.detach().to("cpu").numpy().reshape(-1) for p in self.parameters])

    def _move_to(self, place: Array) -> None:
        start = 0
        for p in self.parameters:
            part = place[start : start + p.size].reshape(p.shape).astype(p.dtype)
            p._assign(Tensor(part).to(p.device))
            start += p.size

    # one step ---------------------------------------------------------------------------------

    def step(self, closure: Closure | None = None) -> Any:
        """Up to max_iter steps. closure: clears the gradients, computes the loss, calls backward, returns the loss.

        Returns the loss before the first of them. Raises SpecError without a closure, GraphError in a compiled step.
        """
        if any(not isinstance(p, Tensor) for p in self.parameters):
            raise GraphError("LBFGS: how often it calls its closure depends on values, so it is not in a compiled step")
        if closure is None:
            raise SpecError("LBFGS: expected a closure that computes loss and gradients: optimizer.step(closure)")
        asked, sign = closure, -1.0 if self.param_groups[0].get("maximize") else 1.0

        def evaluated() -> tuple[Any, float, Array]:
            """The loss, and what is made small: its number and its gradient."""
            with enable_grad():
                loss = asked()
            if not isinstance(loss, Tensor):
                raise SpecError(f"LBFGS: expected a closure that returns the loss, got {type(loss).__name__}")
            return loss, sign * float(loss.item()), sign * self._gradient()

        with no_grad():
            return self._steps(evaluated)

    def _steps(self, evaluated: Callable[[], tuple[Any, float, Array]]) -> Any:
        options, kept, calls = self.param_groups[0], self.kept, 1
        first, loss, gradient = evaluated()
        if _largest(gradient) <= options["tolerance_grad"]:
            return first
        for number in range(1, options["max_iter"] + 1):
            self.steps += 1
            fresh = self.steps == 1 or not kept
            direction = -gradient if fresh else self._direction(gradient)
            length = float(options["lr"])
            if fresh:
                length *= min(1.0, 1.0 / float(np.abs(gradient).sum()))
            slope, before = float(gradient @ direction), loss
            kept.update(direction=direction, gradient=gradient)
            if slope > -options["tolerance_change"]:
                kept["length"] = np.array(length)
                break
            place = self._place()
            if options["line_search_fn"]:

                def at(t: float, place: Array = place, direction: Array = direction) -> Point:
                    self._move_to(place + direction * t)
                    _, value, own = evaluated()
                    return Point(t, value, own, float(own @ direction))

                most = options["max_eval"] - calls
                found, tries = _searched(at, length, direction, Point(0.0, loss, gradient, slope), most)
                length, loss, gradient = found.t, found.loss, found.gradient
                self._move_to(place + direction * length)
                calls += tries
            else:
                self._move_to(place + direction * length)
                if number < options["max_iter"]:
                    _, loss, gradient = evaluated()
                    calls += 1
            kept["length"] = np.array(length)
            still = min(_largest(direction * length), abs(loss - before))
            if calls >= options["max_eval"] or _largest(gradient) <= options["tolerance_grad"]:
                break
            if still <= options["tolerance_change"]:
                break
        return first

    def _direction(self, gradient: Array) -> Array:
        """Downhill, by the history, which the last move joins."""
        kept, most = self.kept, self.param_groups[0]["history_size"]
        none = np.zeros((0, gradient.size), gradient.dtype)
        moves, changes = kept.get("moves", none), kept.get("changes", none)
        change, move = gradient - kept["gradient"], kept["direction"] * float(kept["length"])
        product = float(change @ move)
        if product > LEAST_CURVATURE:
            moves, changes = (np.vstack([rows, new])[-most:] for rows, new in ((moves, move), (changes, change)))
            kept.update(moves=moves, changes=changes, scale=np.array(product / float(change @ change)))
        weights = [1.0 / float(c @ m) for c, m in zip(changes, moves, strict=True)]
        q, shares = -gradient, [0.0] * len(weights)
        for i in reversed(range(len(weights))):
            shares[i] = float(moves[i] @ q) * weights[i]
            q = q - changes[i] * shares[i]
        r: Array = q * float(kept.get("scale", 1.0))
        for i, weight in enumerate(weights):
            r = r + moves[i] * (shares[i] - float(changes[i] @ r) * weight)
        return r

    # state ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As that of other optimisers; "state" holds the history, under the place 0."""
        return {**super().state_dict(), "state": {0: dict(self.kept)} if self.kept else {}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what state_dict() gave. Raises SpecError for the state of other parameters or rules."""
        state = check_state(state_dict)
        if foreign := sorted(set(state["state"]) - {0}):
            raise SpecError(f"load_state_dict: expected the state of LBFGS under place 0, got {foreign}")
        kept = {name: np.array(value) for name, value in state["state"].get(0, {}).items()}
        own = sum(p.size for p in self.parameters)
        if kept and not kept.keys() >= {"direction", "gradient", "length"}:
            raise SpecError(f"load_state_dict: expected the state of LBFGS, got {', '.join(sorted(kept))}")
        if kept and kept["direction"].shape != (own,):
            raise SpecError(
                f"load_state_dict: expected the state of LBFGS of {own} numbers, got one of {kept['direction'].size}"
            )
        super().load_state_dict({**state, "state": {}})
        self.kept = kept


def _largest(values: Array) -> float:
    return float(np.abs(values).max(initial=0.0))


# the line search ----------------------------------------------------------------------------------


def _lowest(one: Point, other: Point, within: tuple[float, float]) -> float:
    """Where the cubic through two points with their slopes is lowest, kept within an interval."""
    first, last = (one, other) if one.t <= other.t else (other, one)
    middle = (within[0] + within[1]) / 2.0
    if first.t == last.t:
        return middle
    bend = first.slope + last.slope - 3.0 * (first.loss - last.loss) / (first.t - last.t)
    square = bend * bend - first.slope * last.slope
    if not square >= 0.0:
        return middle
    root = math.sqrt(square)
    curve = last.slope - first.slope + 2.0 * root
    if curve == 0.0:  # a straight line
        return middle
    share = (last.slope + root - bend) / curve
    return min(max(last.t - (last.t - first.t) * share, within[0]), within[1])


def _searched(at: Callable[[float], Point], t: float, direction: Array, start: Point, most: int) -> tuple[Point, int]:
    """(a point where the strong conditions of Wolfe hold, as far as one was found; how often the loss was asked for)

    most: how often it is asked for at most, after the first time.
    """

    def too_high(point: Point) -> bool:
        return point.loss > start.loss + SUFFICIENT * point.t * start.slope

    def flat(point: Point) -> bool:
        return abs(point.slope) <= -FLAT * start.slope

    before, now, tries = start, at(t), 1
    while tries <= most:
        if too_high(now) or (tries > 2 and now.loss >= before.loss) or (now.slope >= 0.0 and not flat(now)):
            break
        if flat(now):
            return now, tries
        reach = (now.t + 0.01 * (now.t - before.t), now.t * 10.0)
        before, now, tries = now, at(_lowest(before, now, reach)), tries + 1
    else:
        before = start
    low, high = (before, now) if before.loss <= now.loss else (now, before)
    steepest, slow = _largest(direction), False
    while tries <= most and abs(high.t - low.t) * steepest >= 1e-9:
        left, right = min(low.t, high.t), max(low.t, high.t)
        t, margin = _lowest(low, high, (left, right)), 0.1 * (right - left)
        near = min(right - t, t - left) < margin
        if near and (slow or t >= right or t <= left):  # twice at an end: a step inwards
            t, near = (right - margin if right - t < t - left else left + margin), False
        slow = near
        now, tries = at(t), tries + 1
        if too_high(now) or now.loss >= low.loss:
            low, high = (low, now) if low.loss <= now.loss else (now, low)
        elif flat(now):
            return now, tries
        else:
            low, high = now, low if now.slope * (high.t - low.t) >= 0.0 else high
    return low, tries

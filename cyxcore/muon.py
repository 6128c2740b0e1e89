"""Muon: momentum made orthogonal, for the matrices inside a network.

Jordan et al. 2024, kellerjordan.github.io/posts/muon. Options, defaults and formulas are torch's, which rounds to
bfloat16 in the iteration; here it has the parameter's dtype.
"""

import math
from collections.abc import Mapping
from typing import Any

from cyxcore import updates
from cyxcore.errors import ShapeError, SpecError
from cyxcore.functional import maximum
from cyxcore.optimizer import Group, Optimizer, Parameters
from cyxcore.spec import OptimizerSpec

ADJUSTED = (None, "original", "match_rms_adamw")
MOST_STEPS = 99


class MuonSpec(OptimizerSpec, kw_only=True, frozen=True, gc=False):
    """What the rule takes beside momentum, nesterov, eps and weight_decay. Of no job: its models have vectors, too."""

    ns_coefficients: tuple[float, float, float]
    ns_steps: int
    adjust_lr_fn: str | None


class Muon(Optimizer):
    """Steps along the nearest orthogonal matrix of the momentum, which shrink the parameter, too (weight_decay).

    For weights of two axes; biases, norms and embeddings are for another optimiser, such as AdamW. ns_coefficients,
    ns_steps: of the iteration of Newton and Schulz that makes a matrix orthogonal, about. adjust_lr_fn: how the rate
    depends on a shape (A, B): times sqrt(max(1, A / B)), or with "match_rms_adamw" 0.2 sqrt(max(A, B)).
    """

    rule = "muon"

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=nesterov,
            ns_coefficients=ns_coefficients,
            eps=eps,
            ns_steps=ns_steps,
            adjust_lr_fn=adjust_lr_fn,
        )

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        super().add_param_group(group)
        for p in self.param_groups[-1]["params"]:
            if len(p.shape) != 2:
                self.param_groups.pop()
                raise ShapeError(f"Muon: expected parameters of two axes, got {p.shape}; give the others to AdamW")

    def _spec(self, group: Group) -> OptimizerSpec:
        steps, coefficients, adjusted = (group[name] for name in ("ns_steps", "ns_coefficients", "adjust_lr_fn"))
        if not isinstance(steps, int) or not 0 < steps <= MOST_STEPS:
            raise SpecError(f"Muon: expected ns_steps from 1 to {MOST_STEPS}, got {steps!r}")
        if len(coefficients) != 3:
            raise SpecError(f"Muon: expected three ns_coefficients, got {coefficients!r}")
        if adjusted not in ADJUSTED:
            raise SpecError(f"Muon: expected adjust_lr_fn original, match_rms_adamw or None, got {adjusted!r}")
        own = {name: group[name] for name in ("momentum", "nesterov", "eps", "weight_decay")}
        return MuonSpec(
            learning_rate=group["lr"],
            ns_coefficients=tuple(coefficients),
            ns_steps=steps,
            adjust_lr_fn=adjusted,
            **own,
        )

    def next_values(
        self, p: Any, g: Any, slot: updates.Slot, lr: Any, step: Any, spec: Any, momentum: Any = None
    ) -> dict[Any, Any]:
        keep = spec.momentum if momentum is None else momentum
        old = slot("muon_momentum")
        new = old + (g - old) * (1.0 - keep)
        move = _orthogonal(g + (new - g) * keep if spec.nesterov else new, spec)
        rows, columns = p.shape
        ratio = math.sqrt(max(1.0, rows / columns))
        if spec.adjust_lr_fn == "match_rms_adamw":
            ratio = 0.2 * math.sqrt(max(rows, columns))
        kept = p * (1.0 - lr * spec.weight_decay) if spec.weight_decay else p
        return {old: new, p: kept - move * (lr * ratio)}


def _orthogonal(x: Any, spec: MuonSpec) -> Any:
    """About U V^T of x = U S V^T: a quintic in S, again and again, that takes what is between 0 and 1 near 1."""
    a, b, c = spec.ns_coefficients
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / maximum(x.square().sum().sqrt(), spec.eps)
    for _ in range(spec.ns_steps):
        gram = x @ x.T
        x = x * a + (gram * b + (gram @ gram) * c) @ x
    return x.T if tall else x

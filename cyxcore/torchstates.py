"""The state dict of one of PyTorch's optimisers as that of the same one here: training goes on where it was there."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cyxcore.errors import SpecError

# By rule: what PyTorch keeps for a parameter, and its name here. What is not named follows from the number of the step.
NAMES: Mapping[str, Mapping[str, str]] = {
    "sgd": {"momentum_buffer": "momentum"},
    "adam": {"exp_avg": "adam_m", "exp_avg_sq": "adam_v", "max_exp_avg_sq": "adam_most"},
    "adamw": {"exp_avg": "adam_m", "exp_avg_sq": "adam_v", "max_exp_avg_sq": "adam_most"},
    "nadam": {"exp_avg": "nadam_m", "exp_avg_sq": "nadam_v", "mu_product": "nadam_momenta"},
    "rmsprop": {"square_avg": "rmsprop_v", "grad_avg": "rmsprop_mean", "momentum_buffer": "momentum"},
    "adagrad": {"sum": "adagrad_sum"},
    "adamax": {"exp_avg": "adamax_m", "exp_inf": "adamax_most"},
    "radam": {"exp_avg": "radam_m", "exp_avg_sq": "radam_v"},
    "adadelta": {"square_avg": "adadelta_v", "acc_delta": "adadelta_moves"},
    "adafactor": {"row_var": "adafactor_rows", "col_var": "adafactor_columns", "variance": "adafactor_v"},
    "rprop": {"prev": "rprop_gradient", "step_size": "rprop_size"},
    "asgd": {"ax": "asgd_average"},
    "muon": {"momentum_buffer": "muon_momentum"},
}
FOLLOWS = {"step", "eta", "mu"}
NO_OPTIONS = {"foreach", "fused", "capturable", "differentiable"}


def is_torchs(rule: str, state: Any) -> bool:
    """Whether it is a state dict as PyTorch has it; there the steps are counted by parameter."""
    if rule not in NAMES or not isinstance(state, Mapping) or state.keys() != {"state", "param_groups"}:
        return False
    held, groups = state["state"], state["param_groups"]
    known = isinstance(held, Mapping) and all(isinstance(own, Mapping) for own in held.values())
    return known and all(isinstance(group, Mapping) and "params" in group for group in groups)


def translated(rule: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """The same in the names of here. Arrays: PyTorch's tensors on its CPU, or NumPy's. Raises SpecError for others."""
    names, held, counts = NAMES[rule], {}, {}
    for place, own in state["state"].items():
        if foreign := sorted(set(own) - set(names) - FOLLOWS):
            raise SpecError(
                f"load_state_dict: expected a state of PyTorch's with {', '.join(names)}, as {rule} keeps, got "
                f"{', '.join(foreign)}"
            )
        held[place] = {names[name]: np.asarray(x) for name, x in own.items() if name in names and x is not None}
        counts[place] = int(own.get("step", 0))
    groups = [
        {name: value for name, value in group.items() if name not in NO_OPTIONS} for group in state["param_groups"]
    ]
    for group in groups:
        if rule == "adafactor" and isinstance(group.get("eps"), (tuple, list)):
            group["eps"] = group["eps"][1]
        if rule == "sgd" and group.get("dampening"):
            for place in set(group["params"]) & set(held):
                held[place].update({"momentum_begun": np.array(1.0)} if held[place] else {})
    steps = max(counts.values(), default=0)
    places = [place for group in groups for place in group["params"]]
    missed = {place: steps - counts.get(place, 0) for place in places if counts.get(place, 0) < steps}
    return {
        "steps": steps,
        "state": {p: own for p, own in held.items() if own},
        "param_groups": groups,
        "missed": missed,
    }

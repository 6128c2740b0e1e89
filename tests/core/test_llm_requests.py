"""What may be asked of a language model."""

import pytest

from cyxcore.errors import SpecError
from cyxcore.llm.requests import Sampling


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 2.0},
        {"top_k": -5},
        {"max_tokens": 0},
        {"seed": 2**70},
        {"frequency_penalty": float("inf")},
        {"logprobs": 1000},
        {"stop": ("",)},
        {"stop": ("x",) * 1000},
        {"logit_bias": {1: float("nan")}},
    ],
)
def test_an_option_out_of_bounds_is_one_clear_error(options: dict) -> None:
    with pytest.raises(SpecError, match=f"sampling: expected .*{next(iter(options))}"):
        Sampling(**options)


def test_an_option_at_its_bound_is_taken() -> None:
    assert Sampling(temperature=0, top_p=1, top_k=0, seed=2**64 - 1, logprobs=20).top_p == 1

"""Choosing tokens, and finding where to stop."""

from collections import Counter

import numpy as np
import pytest
import torch

from cyxcore.errors import DataError
from cyxcore.llm.requests import Sampling
from cyxcore.llm.sampling import StopFinder, choose

LOGITS = np.random.default_rng(1).standard_normal(500).astype(np.float32) * 3
ORDER = np.argsort(-LOGITS)


def tokens(places: int = 300, logits: np.ndarray = LOGITS, **options: float) -> list[int]:
    sampling = Sampling(**options)  # type: ignore[arg-type]
    return [choose(logits, sampling, frozenset(), {}, place).token for place in range(places)]


def test_a_temperature_of_0_takes_the_likeliest() -> None:
    assert set(tokens(5, temperature=0)) == {int(LOGITS.argmax())}
    assert set(tokens(5, temperature=1e-30)) == {int(LOGITS.argmax())}
    assert set(tokens(5, temperature=1e-300)) == {int(LOGITS.argmax())}


def test_tokens_depend_on_seed_and_place_alone() -> None:
    assert tokens(seed=5) == tokens(seed=5) != tokens(seed=6)
    assert tokens(seed=2**64 - 1) == tokens(seed=-1)


def test_seeded_tokens_are_these_on_every_machine() -> None:
    ramp = np.linspace(-2, 2, 64, dtype=np.float32)
    assert tokens(8, ramp, seed=7) == [63, 29, 57, 51, 38, 45, 43, 47]
    assert tokens(8, ramp, seed=7, top_p=0.8, top_k=40, temperature=0.7) == [48, 63, 56, 59, 62, 61, 61, 60]


def test_frequencies_are_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    drawn = Counter(tokens(4000, logits, seed=3))
    assert [drawn[token] / 4000 for token in range(4)] == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)
    hot = Counter(tokens(4000, logits, seed=3, temperature=100.0))
    assert [hot[token] / 4000 for token in range(4)] == pytest.approx([0.25] * 4, abs=0.03)


@pytest.mark.parametrize("k", [1, 3, 50])
def test_top_k_takes_the_k_likeliest(k: int) -> None:
    assert set(tokens(top_k=k)) <= set(ORDER[:k].tolist())


@pytest.mark.parametrize("p", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("k", [0, 400])
def test_top_p_takes_the_fewest_that_reach_it(p: float, k: int) -> None:
    reached = np.cumsum(torch.softmax(torch.from_numpy(LOGITS[ORDER]).double(), 0).numpy())
    kept = set(ORDER[: np.searchsorted(reached, p) + 1].tolist())
    drawn = set(tokens(1500, top_p=p, top_k=k))
    assert drawn <= kept and (len(kept) > 20 or drawn == kept)


def test_min_p_takes_what_is_not_much_less_likely_than_the_likeliest() -> None:
    allowed = set(np.flatnonzero(LOGITS - LOGITS.max() >= np.log(0.2)).tolist())
    assert set(tokens(1500, min_p=0.2)) == allowed


def test_penalties_and_biases_change_the_logits() -> None:
    best, second = ORDER[:2].tolist()
    logits = np.clip(LOGITS, None, float(LOGITS[second]))
    logits[best] += 0.5
    seen = frozenset([best])

    def chosen(**options: float) -> int:
        return choose(logits, Sampling(temperature=0, **options), seen, {best: 3}, 0).token  # type: ignore[arg-type]

    assert chosen() == best
    assert chosen(repetition_penalty=2.0) != best
    assert chosen(presence_penalty=0.6) == second
    assert chosen(frequency_penalty=0.2) == second
    assert chosen(frequency_penalty=0.1) == best
    banned = Sampling(temperature=0, logit_bias={best: -100.0})
    assert choose(logits, banned, frozenset(), {}, 0).token == second
    assert logits[best] == logits.max(), "the model's own logits stay"


def test_logprobs_are_those_of_the_model() -> None:
    expected = torch.log_softmax(torch.from_numpy(LOGITS), 0).numpy()
    got = choose(LOGITS, Sampling(logprobs=5, temperature=0.5, seed=9), frozenset(), {}, 0)
    assert got.logprob == pytest.approx(expected[got.token], abs=1e-5)
    assert [token for token, _ in got.top] == ORDER[:5].tolist()
    assert [logprob for _, logprob in got.top] == pytest.approx(expected[ORDER[:5]], abs=1e-5)


def test_equal_logits_have_an_order() -> None:
    flat = np.zeros(50, np.float32)
    assert set(tokens(200, flat, top_k=3)) == {0, 1, 2}
    assert tokens(1, flat, temperature=0) == [0]


def test_logits_that_are_no_numbers_are_one_clear_error() -> None:
    with pytest.raises(DataError, match="the model's logits are no numbers"):
        tokens(1, np.array([0, np.nan], np.float32))


@pytest.mark.parametrize("size", range(1, 8))
def test_stop_texts_are_found_however_the_text_is_cut(size: int) -> None:
    whole, stops = "One, two, three. STO STOP here", ("three.!", "STOP", "here")
    finder, shown = StopFinder(stops), ""
    for at in range(0, len(whole), size):
        shown += finder.add(whole[at : at + size])
        assert "STO" not in shown[-3:] or finder.found or whole[len(shown)] != "P"
        if finder.found:
            break
    assert finder.found and shown == "One, two, three. STO "


def test_what_only_looks_like_a_stop_text_is_shown_in_the_end() -> None:
    finder = StopFinder(("</end>",))
    assert finder.add("a </en") == "a "
    assert finder.end() == "</en" and not finder.found

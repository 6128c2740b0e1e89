"""Choosing the next token. Equal logits, options and places give equal tokens on every machine.

What rounds (exp, sums) is our own kernels' or in a fixed order; random numbers are Philox by seed and place.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from cyxcore.errors import DataError
from cyxcore.kernels import cpu
from cyxcore.kernels.philox import uniform_words
from cyxcore.llm.requests import Sampling

Array = np.ndarray[Any, Any]

STREAM = 0x544F4B  # of random numbers, apart from those of training


class Choice(NamedTuple):
    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens and the logarithms of their probabilities, best first."""


def choose(logits: Array, options: Sampling, prompt: frozenset[int], counts: Mapping[int, int], place: int) -> Choice:
    """The next token of an answer that has `place` tokens.

    logits: float32 (vocabulary,). prompt: its tokens. counts: how often the answer holds each token. Raises DataError
    for logits that are no numbers.
    """
    if not np.isfinite(logits).all():
        raise DataError("llm: the model's logits are no numbers; its weights are damaged, or it was not made for this")
    adjusted = _adjusted(logits, options, prompt, counts)
    token = int(adjusted.argmax()) if np.float32(options.temperature) == 0 else _drawn(adjusted, options, place)
    if options.logprobs is None:
        return Choice(token, 0.0, ())
    logprobs = _row("log_softmax", logits)
    top = _best(logprobs, options.logprobs)
    return Choice(token, float(logprobs[token]), tuple((int(other), float(logprobs[other])) for other in top))


def _adjusted(logits: Array, options: Sampling, prompt: frozenset[int], counts: Mapping[int, int]) -> Array:
    adjusted = logits
    if options.repetition_penalty != 1 and (prompt or counts):
        adjusted = adjusted.copy()
        seen = np.array(sorted(prompt | counts.keys()), np.int64)
        penalty, found = np.float32(options.repetition_penalty), adjusted[seen]
        adjusted[seen] = np.where(found > 0, found / penalty, found * penalty)
    if (options.presence_penalty or options.frequency_penalty) and counts:
        adjusted = adjusted.copy()
        for token, count in counts.items():
            adjusted[token] -= np.float32(options.presence_penalty + options.frequency_penalty * count)
    if options.logit_bias:
        adjusted = adjusted.copy()
        for token, bias in options.logit_bias.items():
            adjusted[token] += np.float32(bias)
    return adjusted


def _drawn(adjusted: Array, options: Sampling, place: int) -> int:
    with np.errstate(over="ignore"):
        scaled = (adjusted - adjusted.max()) / np.float32(
            options.temperature
        )  # the largest becomes 0: nothing overflows
    candidates = None  # None: all tokens, in the order of their ids
    if options.top_k and options.top_k < len(scaled):
        candidates = _best(scaled, options.top_k)
        scaled = scaled[candidates]
    weights = _row("softmax", np.ascontiguousarray(scaled)).astype(np.float64)
    if options.min_p or options.top_p < 1:
        if candidates is None:
            # Together, tokens below this threshold have less than what top_p leaves out.
            least = max((1 - options.top_p) / len(weights), options.min_p * weights.max())
            candidates = np.flatnonzero(weights >= min(least, weights.max()))
            candidates = candidates[np.argsort(-weights[candidates], kind="stable")]
            weights = weights[candidates]
        kept = int(np.count_nonzero(weights >= options.min_p * weights[0]))
        if options.top_p < 1:
            kept = min(kept, int(np.searchsorted(np.cumsum(weights), options.top_p)) + 1)
        weights = weights[: max(kept, 1)]
    sums = np.cumsum(weights)  # one after another: the same everywhere
    high, low = uniform_words(options.seed % 2**64, place, STREAM, 2).tolist()
    point = (high * 2.0**21 + (low >> 11)) / 2.0**53 * sums[-1]
    at = min(int(np.searchsorted(sums, point, side="right")), len(sums) - 1)
    return at if candidates is None else int(candidates[at])


def _best(values: Array, count: int) -> Array:
    """The places of the largest values, best first, equal ones in their order."""
    if count == 0:
        return np.empty(0, np.int64)
    count = min(count, len(values))
    threshold = np.partition(values, len(values) - count)[len(values) - count]
    found = np.flatnonzero(values >= threshold)
    return found[np.argsort(-values[found], kind="stable")][:count]


def _row(op: str, row: Array) -> Array:
    out = np.empty((1, len(row)), np.float32)
    cpu.call(op, out, [row.reshape(1, -1)], {"axis": 1})
    return out[0]


class StopFinder:
    """Text as it comes, without the first of some texts and what follows it."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """What may be shown: what could be the beginning of a stop text is kept until that is known."""
        if not self._stops:
            return text
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.found = True
            shown, self._held = self._held[: min(places)], ""
            return shown
        keep = max(_overlap(self._held, stop) for stop in self._stops)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def end(self) -> str:
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """How long an end of the text is a beginning of the stop text."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)

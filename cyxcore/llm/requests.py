"""What is asked of a language model and what it answers, and the engine that stands between: the interface of a server.

    engine: Engine = ...
    generation = engine.submit(Request(prompt=tokens, sampling=Sampling(max_tokens=64)))
    async for delta in generation:
        print(delta.text, end="")

`submit` returns at once or raises: Overloaded (ask again later) or SpecError (never ask that again). Tokens are made
only as fast as they are read: who stops reading holds up nobody else. Leaving the loop early does not stop the work;
`cancel` does, at the latest after the token under way.
"""

import math
from collections.abc import AsyncIterator
from typing import Literal, Protocol

import msgspec

from cyxcore.errors import SpecError

MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_LOGPROBS = 20
MAX_BIASES = 1024

FinishReason = Literal["stop", "length", "cancelled"]


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is chosen. Equal options, seed and prompt give equal tokens on every machine.

    Penalties and logit_bias change the logits first; then temperature, top_k, top_p and min_p, in this order.
    """

    max_tokens: int | None = None
    """None: until the context is full."""
    temperature: float = 1.0
    """0: always the most likely token."""
    top_k: int = 0
    """Only the k most likely; 0: all."""
    top_p: float = 1.0
    """Only the most likely that together reach this probability."""
    min_p: float = 0.0
    """Only those at least this fraction as likely as the most likely one."""
    seed: int = 0
    repetition_penalty: float = 1.0
    """Divides the positive logits of tokens that prompt or answer hold, and multiplies the negative ones."""
    presence_penalty: float = 0.0
    """Taken once from the logit of each token that the answer holds."""
    frequency_penalty: float = 0.0
    """Taken from the logit of a token once for each time that the answer holds it."""
    logit_bias: dict[int, float] = {}
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these texts, also where it spans tokens."""
    logprobs: int | None = None
    """How many of the likeliest tokens are reported at each place; 0: only the chosen one; None: none."""
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for name, low, high in _BOUNDS:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise SpecError(f"sampling: expected {name} from {low} to {high}, got {value}")
        if len(self.stop) > MAX_STOPS or not all(0 < len(text) <= MAX_STOP_CHARS for text in self.stop):
            raise SpecError(f"sampling: expected up to {MAX_STOPS} texts of up to {MAX_STOP_CHARS} characters as stop")
        if len(self.logit_bias) > MAX_BIASES or not all(-100 <= bias <= 100 for bias in self.logit_bias.values()):
            raise SpecError(f"sampling: expected at most {MAX_BIASES} biases from -100 to 100 as logit_bias")


_BOUNDS: tuple[tuple[str, float, float], ...] = (
    ("max_tokens", 1, 2**31),
    ("temperature", 0, 100),
    ("top_k", 0, 2**31),
    ("top_p", 0, 1),
    ("min_p", 0, 1),
    ("seed", -(2**63), 2**64 - 1),
    ("repetition_penalty", 0.01, 100),
    ("presence_penalty", -100, 100),
    ("frequency_penalty", -100, 100),
    ("logprobs", 0, MAX_LOGPROBS),
)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt in tokens, and how to go on from there."""

    prompt: tuple[int, ...]
    sampling: Sampling = Sampling()


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token, the bytes that it stands for, and the logarithm of its probability before temperature and cuts."""

    token: int
    piece: bytes
    logprob: float
    top: tuple["TokenLogprob", ...] = ()
    """The likeliest tokens at this place, best first."""


class Usage(msgspec.Struct, frozen=True):
    """How many tokens a request came to."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Tokens of the prompt whose keys and values were there already."""


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """What came since the last one. The texts of a generation joined are its answer; only the last one has a reason."""

    text: str = ""
    """Whole characters; text that might be the beginning of a stop text is held back until that is known."""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each of `tokens`, where they were asked for."""
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    """With the last one."""


class Generation(Protocol):
    """One answer under way."""

    def __aiter__(self) -> AsyncIterator[Delta]: ...

    async def __anext__(self) -> Delta: ...

    def cancel(self) -> None:
        """No more tokens after the one under way; the last delta says "cancelled". Ending twice does no harm."""


class Engine(Protocol):
    """Runs many generations at once on one model, on the event loop that started it."""

    context_tokens: int
    """The most tokens of prompt and answer together."""

    def submit(self, request: Request) -> Generation:
        """Raises Overloaded where the queue is full, and SpecError for a prompt that is empty, longer than the context
        (ContextOverflow) or holds a token that the model does not know."""

    async def start(self) -> None: ...

    async def drain(self) -> None:
        """Takes no more, finishes what was taken, and stops."""

    async def stop(self) -> None:
        """Cancels what is under way and stops."""

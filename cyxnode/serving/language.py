"""A language model as it is served: the OpenAI API's chat, completions and embeddings, whole or as they are written."""

import asyncio
import contextlib
import functools
import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from cyxcore.errors import ContextOverflow
from cyxcore.llm.requests import Delta, Engine, Generation, Request, Sampling
from cyxcore.llm.requests import TokenLogprob as TokenFound
from cyxcore.llm.requests import Usage as UsageFound
from cyxnet import openai as o
from cyxnet.inference import ModelCard
from cyxnet.outcomes import ApiError
from cyxnode.serving import openai
from cyxnode.serving.asgi import Answer, Asked, ClientGone, as_json, bad, refusal
from cyxnode.serving.figures import Figure

Array = np.ndarray[Any, Any]
log = logging.getLogger(__name__)
LOOK_S = 0.25  # how soon it is noticed that a client hung up while no token came
LONGEST_TOKEN_BYTES = 256  # a prompt with more bytes for each token of the context is not even read
MOST_INPUTS = 2048  # of one request for embeddings, as the API has it
EVENT_STREAM = b"text/event-stream"
PING = b": still writing\n\n"
_STREAM_HEADERS = [(b"x-accel-buffering", b"no")]


class Speech(Protocol):
    """How a model's text is made of tokens. why_no_chat: why it makes none of a conversation; "" where it does."""

    why_no_chat: str

    def prompt_tokens(self, text: str) -> list[int]:
        """The tokens of a text to go on from, with those that the model wants before it."""

    def chat_tokens(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> list[int]:
        """The tokens of a conversation, up to where the assistant answers. Raises SpecError without a template."""

    async def embed(self, prompts: list[list[int]]) -> Array:
        """One vector for each prompt: (count, features) float32. Raises SpecError where the model has none."""


class Wanted(Struct, frozen=True, kw_only=True):
    """What one request comes to: a generation for each choice."""

    model: str
    prompts: list[list[int]]  # of each choice
    sampling: list[Sampling]
    stream: bool
    include_usage: bool
    echo: list[str]  # what stands before the answer of each choice
    choices_of_one: int


class Told(Struct):
    """What a choice has become so far."""

    text: str = ""
    logprobs: list[TokenFound] = []
    finish_reason: str = "stop"
    usage: UsageFound | None = None


class LanguageModel:
    """What answers about one engine. Its methods are named as in routes.py."""

    kind = "language"

    def __init__(self, name: str, engine: Engine, speech: Speech, card: ModelCard, ping_s: float = 15.0):
        self.name = name
        self._engine, self._speech, self._card, self._ping_s = engine, speech, card, ping_s
        self.why_no_chat = speech.why_no_chat
        self._tokens = Counter(prompt=0, cached=0, completion=0)
        self._fingerprint = f"cyx-{(card.graph_sha256 or secrets.token_hex(6))[:12]}"

    async def start(self) -> None:
        await self._engine.start()

    async def close(self) -> None:
        await self._engine.stop()

    def figures(self) -> list[Figure]:
        about = "Tokens of prompts, those of them that were known already, and tokens written."
        return [
            Figure(
                "cyx_serve_tokens", about, "counter", functools.partial(self._tokens.__getitem__, kind), {"kind": kind}
            )
            for kind in self._tokens
        ]

    def early(self) -> dict[str, Callable[[], ApiError | None]]:
        return {}  # whether there is room depends on the prompt

    def card(self) -> ModelCard:
        return self._card

    async def chat(self, asked: Asked) -> Answer:
        request = openai.decoded(o.ChatRequest, await asked.body())
        openai.refuse_other_model(request.model, self.name)
        openai.refuse_dishonourable(request)
        tools = None if request.tool_choice == "none" else request.tools
        conversation = openai.messages(request)
        self._refuse_endless(sum(len(str(said["content"] or "")) for said in conversation), "messages")
        prompt = await asyncio.to_thread(self._speech.chat_tokens, conversation, tools)
        wanted = self._wanted(request, [prompt], [""])
        return await self._answered(asked, wanted, Chat(self._head("chatcmpl", request)))

    async def completions(self, asked: Asked) -> Answer:
        request = openai.decoded(o.CompletionRequest, await asked.body())
        openai.refuse_other_model(request.model, self.name)
        openai.refuse_dishonourable(request)
        given = openai.prompts(request.prompt, "prompt")
        if request.echo and not all(isinstance(prompt, str) for prompt in given):
            raise bad("echo: expected prompts that are text", "echo")
        echo = [str(prompt) if request.echo else "" for prompt in given]
        wanted = self._wanted(request, await self._as_tokens(given, "prompt"), echo)
        return await self._answered(asked, wanted, Completions(self._head("cmpl", request), wanted.echo))

    async def embeddings(self, asked: Asked) -> Answer:
        request = openai.decoded(o.EmbeddingsRequest, await asked.body())
        openai.refuse_other_model(request.model, self.name)
        given = openai.prompts(request.input, "input")
        if len(given) > MOST_INPUTS:
            raise bad(f"input: expected at most {MOST_INPUTS} texts, got {len(given)}", "input")
        tokens = await self._as_tokens(given, "input")
        for place, prompt in enumerate(tokens):
            if not 0 < len(prompt) <= self._engine.context_tokens:
                raise ContextOverflow(
                    f"input[{place}]: expected 1 to {self._engine.context_tokens} tokens, got {len(prompt)}"
                )
        vectors = await self._speech.embed(tokens)
        return as_json(openai.embedding_list(request, vectors, sum(map(len, tokens))))

    # -- requests ------------------------------------------------------------------------------------

    def _head(self, kind: str, request: o.ChatRequest | o.CompletionRequest) -> dict[str, Any]:
        """What every piece of an answer begins with."""
        return {
            "id": f"{kind}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": request.model,
            "system_fingerprint": self._fingerprint,
        }

    def _wanted(
        self, request: o.ChatRequest | o.CompletionRequest, prompts: list[list[int]], echo: list[str]
    ) -> Wanted:
        count = request.n or 1
        if len(prompts) * count > o.MOST_CHOICES * 4:
            raise bad(f"expected at most {o.MOST_CHOICES * 4} answers to one request, got {len(prompts) * count}", "n")
        chosen = openai.sampling(request, secrets.randbits(62))
        each = [replace(chosen, seed=chosen.seed + number) for number in range(count)]  # no two choices alike
        return Wanted(
            model=request.model,
            prompts=[prompt for prompt in prompts for _ in range(count)],
            sampling=each * len(prompts),
            stream=request.stream,
            include_usage=bool(request.stream_options and request.stream_options.include_usage),
            echo=[text for text in echo for _ in range(count)],
            choices_of_one=count,
        )

    async def _as_tokens(self, given: Sequence[str | list[Any]], param: str) -> list[list[int]]:
        found = []
        for prompt in given:
            if isinstance(prompt, str):
                self._refuse_endless(len(prompt), param)
                found.append(await asyncio.to_thread(self._speech.prompt_tokens, prompt))
            elif all(isinstance(token, int) or float(token).is_integer() for token in prompt):
                found.append([int(token) for token in prompt])
            else:
                raise bad(f"{param}: expected whole numbers as tokens", param)
        return found

    def _refuse_endless(self, letters: int, param: str) -> None:
        """Raises ContextOverflow for a text that no context could hold, before it is made into tokens."""
        most = self._engine.context_tokens * LONGEST_TOKEN_BYTES
        if letters > most:
            said = f"{param}: {letters} letters are more than {self._engine.context_tokens} tokens can be"
            raise ContextOverflow(said)

    # -- answers -------------------------------------------------------------------------------------

    async def _answered(self, asked: Asked, wanted: Wanted, form: "Chat | Completions") -> Answer:
        """Submits at once, so that what cannot be taken is refused with a status; then waits, or streams."""
        asked.release()  # the body has become tokens
        generations: list[Generation] = []
        try:
            for prompt, chosen in zip(wanted.prompts, wanted.sampling, strict=True):
                generations.append(self._engine.submit(Request(prompt=tuple(prompt), sampling=chosen)))
        except BaseException:
            for generation in generations:
                generation.cancel()
            raise
        pieces = deltas(generations, asked.is_gone, self._ping_s)
        if wanted.stream:
            events = _Events(_events(pieces, wanted, form, self._count), generations)
            return Answer(events, content_type=EVENT_STREAM, headers=_STREAM_HEADERS)
        told = [Told(logprobs=[]) for _ in generations]
        async with contextlib.aclosing(pieces):
            async for place, delta in pieces:
                if delta is not None:
                    self._count(delta)
                    take(told[place], delta)
        return as_json(form.whole(told, usage_of(told, wanted.choices_of_one)))

    def _count(self, delta: Delta) -> None:
        if usage := delta.usage:
            self._tokens["prompt"] += usage.prompt_tokens
            self._tokens["cached"] += usage.cached_tokens
            self._tokens["completion"] += usage.completion_tokens


async def deltas(
    generations: Sequence[Generation], is_gone: Callable[[], bool], ping_s: float
) -> AsyncGenerator[tuple[int, Delta | None], None]:
    """(which, what came) of several generations as it comes; (0, None) when nothing did for ping_s.

    Raises ClientGone when the client hung up. However it ends, no generation goes on after it.
    """
    waiting = {asyncio.ensure_future(_next(generation)): place for place, generation in enumerate(generations)}
    silent_s = 0.0
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
            if is_gone():
                raise ClientGone
            silent_s = 0.0 if done else silent_s + LOOK_S
            if silent_s >= ping_s:
                silent_s = 0.0
                yield 0, None
            for task in sorted(done, key=waiting.__getitem__):
                place, delta = waiting.pop(task), task.result()
                if delta is None:
                    continue
                if delta.finish_reason == "cancelled":
                    raise ApiError("stopping", "the server stops; ask another one", 503, 1000)
                if delta.finish_reason is None:
                    waiting[asyncio.ensure_future(_next(generations[place]))] = place
                yield place, delta
    finally:
        for generation in generations:
            generation.cancel()
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def _next(generation: Generation) -> Delta | None:
    try:
        return await generation.__anext__()
    except StopAsyncIteration:
        return None


def take(told: Told, delta: Delta) -> None:
    told.text += delta.text
    told.logprobs += delta.logprobs
    told.finish_reason = delta.finish_reason or told.finish_reason
    told.usage = delta.usage or told.usage


def usage_of(told: Sequence[Told], choices_of_one: int) -> o.Usage:
    """Each prompt counts once, however many choices it has."""
    found = [each.usage or UsageFound(0, 0) for each in told]
    prompt = sum(each.prompt_tokens for each in found[::choices_of_one])
    cached = sum(each.cached_tokens for each in found[::choices_of_one])
    completion = sum(each.completion_tokens for each in found)
    return o.Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=o.CachedTokens(cached_tokens=cached),
    )


class _Events:
    """The events of a stream. Closed, it ends its generations: a generator that nobody began to read would not."""

    def __init__(self, events: AsyncGenerator[bytes, None], generations: Sequence[Generation]):
        self._events, self._generations = events, generations

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        return await self._events.__anext__()

    async def aclose(self) -> None:
        await self._events.aclose()
        for generation in self._generations:
            generation.cancel()


async def _events(
    pieces: AsyncGenerator[tuple[int, Delta | None], None],
    wanted: Wanted,
    form: "Chat | Completions",
    count: Callable[[Delta], None],
) -> AsyncGenerator[bytes, None]:
    """Server-sent events, as the API has them: chunks, then the usage where it was asked for, then [DONE]."""
    told = [Told(logprobs=[]) for _ in wanted.prompts]
    try:
        async with contextlib.aclosing(pieces):
            for place in range(len(told)):
                if first := form.first(place):
                    yield _event(first)
            async for place, delta in pieces:
                if delta is None:
                    yield PING
                    continue
                count(delta)
                told[place].usage = delta.usage or told[place].usage
                yield _event(form.chunk(place, delta))
        if wanted.include_usage:
            yield _event(form.last(usage_of(told, wanted.choices_of_one)))
    except ClientGone:
        raise
    except Exception as error:  # the status is out: it is said as the API says it
        yield _event(refusal(error, "a stream")[1])
        return
    yield b"data: [DONE]\n\n"


def _event(chunk: Any) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


class Chat:
    """How chat answers are written. head: what every piece begins with."""

    def __init__(self, head: dict[str, Any]):
        self._head = head

    def whole(self, told: Sequence[Told], usage: o.Usage) -> o.ChatCompletion:
        choices = [
            o.ChatChoice(
                index=place,
                message=o.ChatAnswer(content=each.text),
                finish_reason=each.finish_reason,
                logprobs=openai.chat_logprobs(each.logprobs) if each.logprobs else None,
            )
            for place, each in enumerate(told)
        ]
        return o.ChatCompletion(**self._head, choices=choices, usage=usage)

    def first(self, place: int) -> o.ChatChunk:
        return self._chunk(o.ChatChunkChoice(index=place, delta=o.ChatDelta(role="assistant", content="")))

    def chunk(self, place: int, delta: Delta) -> o.ChatChunk:
        return self._chunk(
            o.ChatChunkChoice(
                index=place,
                delta=o.ChatDelta(content=delta.text or None),
                finish_reason=delta.finish_reason,
                logprobs=openai.chat_logprobs(delta.logprobs) if delta.logprobs else None,
            )
        )

    def last(self, usage: o.Usage) -> o.ChatChunk:
        return o.ChatChunk(**self._head, choices=[], usage=usage)

    def _chunk(self, choice: o.ChatChunkChoice) -> o.ChatChunk:
        return o.ChatChunk(**self._head, choices=[choice])


class Completions:
    """How completions are written. echo: what stands before each."""

    def __init__(self, head: dict[str, Any], echo: Sequence[str]):
        self._head, self._echo = head, echo
        self._offsets = [0 for _ in echo]

    def whole(self, told: Sequence[Told], usage: o.Usage) -> o.Completion:
        choices = [
            o.CompletionChoice(
                index=place,
                text=self._echo[place] + each.text,
                finish_reason=each.finish_reason,
                logprobs=self._logprobs(place, each.logprobs),
            )
            for place, each in enumerate(told)
        ]
        return o.Completion(**self._head, choices=choices, usage=usage)

    def first(self, place: int) -> o.Completion | None:
        if not self._echo[place]:
            return None
        return o.Completion(**self._head, choices=[o.CompletionChoice(index=place, text=self._echo[place])])

    def chunk(self, place: int, delta: Delta) -> o.Completion:
        choice = o.CompletionChoice(
            index=place,
            text=delta.text,
            finish_reason=delta.finish_reason,
            logprobs=self._logprobs(place, delta.logprobs),
        )
        return o.Completion(**self._head, choices=[choice])

    def last(self, usage: o.Usage) -> o.Completion:
        return o.Completion(**self._head, choices=[], usage=usage)

    def _logprobs(self, place: int, found: Sequence[TokenFound]) -> o.CompletionLogprobs | None:
        if not found:
            return None
        said, self._offsets[place] = openai.completion_logprobs(found, self._offsets[place])
        return said

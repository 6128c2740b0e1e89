"""Many generations at once on one model: continuous batching over a paged cache.

One task on the event loop plans steps and hands out tokens; a thread computes. A step takes one token of every answer
under way and fills up with pieces of prompts, so a long prompt never holds up the others for more than a step. A
sequence starts when its pages are reserved, to its last possible token; none is ever thrown out again.
"""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import msgspec
import numpy as np

from cyxcore.errors import ContextOverflow, Overloaded, SpecError
from cyxcore.llm.pages import PAGE_TOKENS, Held, PageBook, pages_for
from cyxcore.llm.requests import Delta, FinishReason, Request, TokenLogprob, Usage
from cyxcore.llm.sampling import Choice, StopFinder, choose
from cyxcore.llm.tokenizer import TextStream, Vocabulary, check_tokens

Array = np.ndarray[Any, Any]


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of an engine."""

    context_tokens: int | None = None
    """The most tokens of prompt and answer together; None: what the model was trained for, as far as kv_bytes goes."""
    kv_bytes: int = 1 << 29
    """Memory for keys and values."""
    step_tokens: int = 256
    """The most tokens in one step: more make long prompts faster and answers under way slower."""
    max_running: int = 64
    max_waiting: int = 256
    max_waiting_tokens: int = 1 << 20
    """Prompts that wait, together."""
    max_unread: int = 64
    """Deltas that may lie unread before a generation pauses."""


class Stretchable(Protocol):
    """What the engine wants of a model: cyxcore.llm.llama.Llama."""

    sizes: Any

    def forward(self, stretches: Any, cache: Any, rows: Any = None) -> Array: ...

    def logits(self, states: Array) -> Array: ...


class Answer:
    """One generation: an asynchronous iterator of deltas."""

    def __init__(self, engine: "BatchingEngine", request: Request, total_tokens: int, embeds: bool) -> None:
        self._engine = engine
        self.sampling = request.sampling
        self.tokens = list(request.prompt)
        self.prompt_tokens = len(request.prompt)
        self.total_tokens = total_tokens
        self.prompt_set = frozenset(request.prompt) if request.sampling.repetition_penalty != 1 else frozenset()
        self.counts: Counter[int] = Counter()
        self.held: Held | None = None
        self.computed = 0
        """How many tokens have their keys and values."""
        self.cancelled = self.finished = False
        self.sum: Array | None = np.zeros(engine.model.sizes.features, np.float64) if embeds else None
        """Of the states of all tokens, where those are what is asked for."""
        self._text = TextStream(engine.tokenizer)
        self._stops = StopFinder(request.sampling.stop)
        self._unread: deque[Delta | BaseException] = deque()
        self._arrived = asyncio.Event()

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        while not self._unread:
            if self.finished:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        item = self._unread.popleft()
        self._engine.wake()
        if isinstance(item, BaseException):
            raise item
        return item

    def cancel(self) -> None:
        self.cancelled = True
        self._engine.wake()

    @property
    def paused(self) -> bool:
        return len(self._unread) >= self._engine.options.max_unread

    @property
    def pending(self) -> int:
        """Tokens that are known and not computed."""
        return len(self.tokens) - self.computed

    @property
    def usage(self) -> Usage:
        cached = self.held.cached_tokens if self.held else 0
        return Usage(self.prompt_tokens, len(self.tokens) - self.prompt_tokens, cached)

    def take(self, choice: Choice) -> None:
        """A token was chosen."""
        token, vocabulary = choice.token, self._engine.tokenizer
        self.tokens.append(token)
        self.counts[token] += 1
        if token in vocabulary.ends and not self.sampling.ignore_eos:
            self.finish("stop")
            return
        text = self._stops.add(self._text.add(token))
        logprobs: tuple[TokenLogprob, ...] = ()
        if self.sampling.logprobs is not None:
            top = tuple(TokenLogprob(other, vocabulary.piece(other), logprob) for other, logprob in choice.top)
            logprobs = (TokenLogprob(token, vocabulary.piece(token), choice.logprob, top),)
        if self._stops.found:
            self.finish("stop", text, (token,), logprobs)
        elif len(self.tokens) >= self.total_tokens:
            self.finish("length", text, (token,), logprobs)
        else:
            self._put(Delta(text=text, tokens=(token,), logprobs=logprobs))

    def finish(
        self, reason: FinishReason, text: str = "", tokens: tuple[int, ...] = (), logprobs: tuple[Any, ...] = ()
    ) -> None:
        if not self._stops.found:
            text += self._stops.add(self._text.end()) + self._stops.end()
        self.finished = True
        self._put(Delta(text=text, tokens=tokens, logprobs=logprobs, finish_reason=reason, usage=self.usage))

    def fail(self, error: BaseException) -> None:
        self.finished = True
        self._put(error)

    def _put(self, item: Delta | BaseException) -> None:
        self._unread.append(item)
        self._arrived.set()


def plan(pending: Sequence[int], answering: Sequence[bool], step_tokens: int) -> list[int]:
    """How many tokens of each sequence the next step computes: answers under way first, then prompts in their order."""
    counts = [0] * len(pending)
    left = step_tokens
    for first in (True, False):
        for index, (tokens, underway) in enumerate(zip(pending, answering, strict=True)):
            if underway is first and left:
                counts[index] = min(tokens, left)
                left -= counts[index]
    return counts


class BatchingEngine:
    """An Engine on one model. Its verbs are for the event loop that called `start`."""

    def __init__(self, model: Stretchable, tokenizer: Vocabulary, options: EngineOptions | None = None) -> None:
        from cyxcore.llm.llama import KVPages

        self.model, self.tokenizer = model, tokenizer
        self.options = options or EngineOptions()
        page_bytes = model.sizes.kv_bytes_per_token * PAGE_TOKENS
        pages = min(self.options.kv_bytes // page_bytes, self.options.max_running * pages_for(model.sizes.context))
        if pages < 1:
            raise SpecError(f"engine: kv_bytes of {self.options.kv_bytes} hold no page; one has {page_bytes} bytes")
        asked = self.options.context_tokens or min(model.sizes.context, pages * PAGE_TOKENS)
        if pages_for(asked) > pages:
            raise SpecError(
                f"engine: a context of {asked} tokens takes {pages_for(asked) * page_bytes} bytes of keys and values, "
                f"kv_bytes allows {self.options.kv_bytes}"
            )
        self.context_tokens = asked
        self._cache, self._book = KVPages(model.sizes, pages), PageBook(pages)
        self._waiting: deque[Answer] = deque()
        self._running: list[Answer] = []
        self._thread = ThreadPoolExecutor(1, "cyx-llm")
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._accepts = True

    async def start(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="llm engine")

    async def __aenter__(self) -> "BatchingEngine":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def drain(self) -> None:
        """Takes no more, finishes what was taken, and stops."""
        self._accepts = False
        self.wake()
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    async def stop(self) -> None:
        """Cancels what is under way and stops."""
        for answer in (*self._waiting, *self._running):
            answer.cancel()
        await self.drain()

    def wake(self) -> None:
        self._wake.set()

    @property
    def waiting(self) -> int:
        """Requests that have no pages yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def free_pages(self) -> int:
        """Pages of 16 tokens that a new request could have."""
        return self._book.available

    def submit(self, request: Request) -> Answer:
        """Raises Overloaded, ContextOverflow or SpecError: see cyxcore.llm.requests.Engine."""
        return self._taken(request, request.sampling.max_tokens or self.context_tokens, embeds=False)

    async def embed(self, prompt: Sequence[int]) -> Array:
        """float32 (features,): the mean of the last states of all tokens, of length 1. Raises as `submit` does."""
        answer = self._taken(Request(prompt=tuple(prompt)), 0, embeds=True)
        try:
            async for _ in answer:
                pass
        finally:
            answer.cancel()
        if answer.cancelled and answer.computed < len(answer.tokens):
            raise Overloaded("llm: the engine stopped before it was done")
        assert answer.sum is not None
        return (answer.sum / np.sqrt((answer.sum**2).sum())).astype(np.float32)

    def _taken(self, request: Request, max_tokens: int, embeds: bool) -> Answer:
        if not self._accepts:
            raise Overloaded("llm: the engine is about to stop; ask another one")
        prompt = request.prompt
        if not prompt:
            raise SpecError("prompt: expected at least one token, got none")
        if len(prompt) + (not embeds) > self.context_tokens:
            raise ContextOverflow(f"prompt: {len(prompt)} tokens do not fit into a context of {self.context_tokens}")
        check_tokens(prompt, self.model.sizes.vocabulary)
        check_tokens(tuple(request.sampling.logit_bias), self.model.sizes.vocabulary)
        waiting_tokens = sum(answer.prompt_tokens for answer in self._waiting) + len(prompt)
        if len(self._waiting) >= self.options.max_waiting or (
            self._waiting and waiting_tokens > self.options.max_waiting_tokens
        ):
            raise Overloaded(f"llm: {len(self._waiting)} requests wait already; ask again later")
        answer = Answer(self, request, min(len(prompt) + max_tokens, self.context_tokens), embeds)
        self._waiting.append(answer)
        self.wake()
        return answer

    async def _run(self) -> None:
        try:
            await self._steps()
        finally:  # a fault of ours: nobody waits for ever, nor begins to
            self._accepts = False
            for answer in (*self._waiting, *self._running):
                answer.fail(Overloaded("llm: the engine stopped before it was done"))

    async def _steps(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            self._drop_cancelled()
            self._admit()
            ready = [answer for answer in self._running if not answer.paused]
            counts = plan([a.pending for a in ready], [a.pending == 1 for a in ready], self.options.step_tokens)
            step = [(answer, count) for answer, count in zip(ready, counts, strict=True) if count]
            if not step:
                if not self._accepts and not self._running and not self._waiting:
                    return
                await self._wake.wait()
                continue
            for answer, count in step:
                assert answer.held is not None
                self._book.grow(answer.held, answer.computed + count)
            try:
                choices = await loop.run_in_executor(self._thread, self._compute, step)
            except Exception as error:  # a model of numbers that are none, or no memory: theirs alone, not the engine's
                for answer, _ in step:
                    answer.fail(error)
                    self._end(answer)
                continue
            for (answer, count), choice in zip(step, choices, strict=True):
                try:
                    self._deliver(answer, count, choice)
                except Exception as error:  # a vocabulary without this token
                    answer.fail(error)
                    self._end(answer)

    def _compute(self, step: list[tuple[Answer, int]]) -> list[Choice | Exception | None]:
        """The token that follows each sequence, None where its prompt is not through. On the thread."""
        from cyxcore.llm.llama import Stretch

        stretches: list[Stretch] = []
        rows: list[int] = []
        at = 0
        for answer, count in step:
            assert answer.held is not None
            tokens = answer.tokens[answer.computed : answer.computed + count]
            stretches.append(Stretch(tokens, answer.computed, np.array(answer.held.pages, np.int32)))
            if answer.sum is not None:
                rows += range(at, at + count)
            elif count == answer.pending:
                rows.append(at + count - 1)
            at += count
        states = self.model.forward(stretches, self._cache, rows)
        choices: list[Choice | Exception | None] = []
        asked = [answer.sum is None and count == answer.pending for answer, count in step]
        sizes = [
            count if answer.sum is not None else int(asks) for (answer, count), asks in zip(step, asked, strict=True)
        ]
        firsts = np.cumsum([0, *sizes])
        logits = self.model.logits(np.ascontiguousarray(states[firsts[:-1][asked]])) if any(asked) else states[:0]
        row = 0
        for (answer, _), asks, first, size in zip(step, asked, firsts, sizes, strict=False):
            if answer.sum is not None:
                for state in states[first : first + size]:  # one after another, however the prompt was cut
                    answer.sum += state
            if not asks:
                choices.append(None)
                continue
            place = len(answer.tokens) - answer.prompt_tokens
            try:
                choices.append(choose(logits[row], answer.sampling, answer.prompt_set, answer.counts, place))
            except Exception as error:
                choices.append(error)
            row += 1
        return choices

    def _deliver(self, answer: Answer, count: int, choice: Choice | Exception | None) -> None:
        assert answer.held is not None
        answer.computed += count
        self._book.computed(answer.held, answer.tokens, answer.computed)
        if isinstance(choice, Exception):
            answer.fail(choice)
        elif choice is not None and not answer.cancelled:
            answer.take(choice)
        elif answer.sum is not None and not answer.pending:
            answer.finish("length")
        if answer.finished:
            self._end(answer)

    def _admit(self) -> None:
        """First in, first out: a large request is not overtaken until it fits."""
        while self._waiting and len(self._running) < self.options.max_running:
            answer = self._waiting[0]
            held = self._book.admit(answer.tokens if answer.sum is None else (), answer.total_tokens)
            if held is None:
                return
            answer.held, answer.computed = held, held.cached_tokens
            self._running.append(answer)
            self._waiting.popleft()

    def _drop_cancelled(self) -> None:
        for answer in [answer for answer in self._waiting if answer.cancelled]:
            self._waiting.remove(answer)
            answer.finish("cancelled")
        for answer in [answer for answer in self._running if answer.cancelled]:
            answer.finish("cancelled")
            self._end(answer)

    def _end(self, answer: Answer) -> None:
        with contextlib.suppress(ValueError):
            self._running.remove(answer)
        if answer.held is not None:
            self._book.release(answer.held)

"""An engine whose tokens are bytes, on a small network trained here: what the next byte is after the last few.

It does what an Engine promises, one generation at a time, in the simplest way; it is for tests of what is built on one.
"""

import asyncio
import codecs
import functools
import math

import numpy as np

import cyxcore as cx
from cyxcore import nn
from cyxcore.errors import ContextOverflow, Overloaded, SpecError
from cyxcore.llm.requests import Delta, TokenLogprob, Usage
from cyxcore.model import Model
from cyxcore.tracing import trace
from cyxnet.inference import ModelCard
from cyxnode.serving.language import LanguageModel

TEXT = "the quick brown fox jumps over the lazy dog. "
WINDOW, CONTEXT, END = 6, 200, 0
FEATURES = 16


@functools.cache
def trained():
    """A Model (WINDOW,) int64 -> (256,) that knows TEXT by heart."""
    module = nn.Sequential(nn.Embedding(256, 8), nn.Flatten(), nn.Linear(8 * WINDOW, 64), nn.ReLU(), nn.Linear(64, 256))
    text = np.frombuffer((TEXT * 3).encode(), np.uint8).astype(np.int64)
    places = np.arange(WINDOW, len(text))
    x, y = cx.tensor(np.stack([text[at - WINDOW : at] for at in places])), cx.tensor(text[places])
    optimizer = cx.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(12):
        loss = nn.CrossEntropyLoss()(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = trace(module, (WINDOW,), "int64")
    return Model(found.graph, found.weights)


class ByteGeneration:
    def __init__(self, engine, request):
        self._engine, self._request, self._sampling = engine, request, request.sampling
        self._random = np.random.Generator(np.random.Philox(abs(self._sampling.seed)))
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._tokens, self._held, self._ended, self.cancelled = list(request.prompt), "", False, False
        self._made = 0

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self._ended:
            raise StopAsyncIteration
        await asyncio.sleep(0)
        while not self._engine.go_on.is_set() and not self.cancelled:
            await asyncio.sleep(0)
        if self.cancelled:
            return self._end("", "cancelled")
        token, logprob = self._next()
        if token == END and not self._sampling.ignore_eos:
            return self._end(self._held, "stop")
        self._made += 1
        self._engine.made += 1
        self._tokens.append(token)
        logprobs = () if logprob is None else (logprob,)
        self._held += self._decoder.decode(bytes([token]))
        for stop in self._sampling.stop:
            if stop in self._held:
                return self._end(self._held[: self._held.index(stop)], "stop", token, logprobs)
        full = len(self._tokens) >= CONTEXT
        if full or (self._sampling.max_tokens and self._made >= self._sampling.max_tokens):
            return self._end(self._held, "length", token, logprobs)
        keep = max((self._begun(stop) for stop in self._sampling.stop), default=0)
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return Delta(text=text, tokens=(token,), logprobs=logprobs)

    def cancel(self):
        self.cancelled = True

    def _begun(self, stop):
        """How many letters of `stop` the held text ends with."""
        return max((size for size in range(1, len(stop)) if self._held.endswith(stop[:size])), default=0)

    def _end(self, text, reason, *token_and_logprobs):
        self._ended = True
        self._engine.running -= 1
        tokens, logprobs = ((token_and_logprobs[0],), token_and_logprobs[1]) if token_and_logprobs else ((), ())
        usage = Usage(len(self._request.prompt), self._made)
        return Delta(text=text, tokens=tokens, logprobs=logprobs, finish_reason=reason, usage=usage)

    def _next(self):
        wanted = self._sampling
        window = ([32] * WINDOW + self._tokens)[-WINDOW:]
        logits = trained().predict(np.array([window]))[0].astype(np.float64)
        for token, bias in wanted.logit_bias.items():
            logits[token] += bias
        made = self._tokens[len(self._request.prompt) :]
        for token in set(made):
            logits[token] -= wanted.presence_penalty + wanted.frequency_penalty * made.count(token)
        logprobs = logits - logits.max() - math.log(np.exp(logits - logits.max()).sum())
        if wanted.temperature == 0:
            token = int(logits.argmax())
        else:
            order = np.argsort(-logits, kind="stable")[: wanted.top_k or None]
            weights = np.exp((logits[order] - logits[order[0]]) / wanted.temperature)
            weights /= weights.sum()
            keep = int(np.searchsorted(weights.cumsum(), wanted.top_p)) + 1
            weights = weights[:keep] / weights[:keep].sum()
            token = int(order[min(int(np.searchsorted(weights.cumsum(), self._random.random())), len(weights) - 1)])
        if wanted.logprobs is None:
            return token, None
        best = np.argsort(-logprobs, kind="stable")[: wanted.logprobs]
        top = tuple(TokenLogprob(int(each), bytes([each]), float(logprobs[each])) for each in best)
        return token, TokenLogprob(token, bytes([token]), float(logprobs[token]), top)


class ByteEngine:
    context_tokens = CONTEXT

    def __init__(self, most=8):
        self.most, self.running, self.made = most, 0, 0
        self.generations = []
        self.go_on = asyncio.Event()
        self.go_on.set()

    def submit(self, request):
        if not request.prompt:
            raise SpecError("prompt: expected at least one token")
        if len(request.prompt) >= CONTEXT:
            raise ContextOverflow(f"prompt: {len(request.prompt)} tokens leave no room in the context of {CONTEXT}")
        if not all(0 <= token < 256 for token in request.prompt):
            raise SpecError("prompt: expected tokens from 0 to 255")
        if self.running >= self.most:
            raise Overloaded(f"{self.running} requests are under way")
        self.running += 1
        self.generations.append(ByteGeneration(self, request))
        return self.generations[-1]

    async def start(self):
        pass

    async def drain(self):
        pass

    async def stop(self):
        for generation in self.generations:
            generation.cancel()


class ByteSpeech:
    why_no_chat = ""

    def prompt_tokens(self, text):
        return list(text.encode())

    def chat_tokens(self, messages, tools):
        said = "".join(f"[tool {tool.get('function', {}).get('name')}] " for tool in tools or [])
        said += "".join(f"{message['role']}: {message['content']}\n" for message in messages)
        return list(said.encode())

    async def embed(self, prompts):
        return np.stack([np.bincount(prompt, minlength=256)[97 : 97 + FEATURES] for prompt in prompts]).astype("f4")


def language(engine=None):
    card = ModelCard(
        name="bytes", kind="language", parameters=1, weights_bytes=1, numerics="cyx-exact/1", context_length=CONTEXT
    )
    return LanguageModel("bytes", engine or ByteEngine(), ByteSpeech(), card, ping_s=0.25)

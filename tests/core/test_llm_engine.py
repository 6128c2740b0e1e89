"""Many generations at once: each as if it were alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from cyxcore.errors import ContextOverflow, DataError, Overloaded, SpecError
from cyxcore.llm.engine import BatchingEngine, EngineOptions, plan
from cyxcore.llm.llama import KVPages, Llama, Stretch
from cyxcore.llm.requests import Delta, Request, Sampling
from tests.core import llamas

SIZES = llamas.sizes(layers=1, features=64, hidden=64, heads=4, kv_heads=2, head_size=16, rotated=16)
DICE = np.random.default_rng(4)
PROMPTS = [tuple(DICE.integers(0, 96, n).tolist()) for n in (1, 5, 40, 17, 64, 33)]


class Words:
    """Token n stands for "<n>", except that some are half of a character."""

    ends = frozenset([95])

    def piece(self, token: int) -> bytes:
        return {90: b"\xc3", 91: b"\xbc", 95: b""}.get(token, b"<%d>" % token)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Llama:
    return Llama(llamas.write(tmp_path_factory.mktemp("llm") / "a.gguf", SIZES, "Q8_0"))


@asynccontextmanager
async def engine(model: Llama, **options: int) -> AsyncIterator[BatchingEngine]:
    running = BatchingEngine(model, Words(), EngineOptions(**options))  # type: ignore[arg-type]
    await running.start()
    try:
        yield running
    finally:
        await running.stop()


async def collect(running: BatchingEngine, request: Request) -> list[Delta]:
    return [delta async for delta in running.submit(request)]


def request(prompt: tuple[int, ...], **options: object) -> Request:
    return Request(prompt=prompt, sampling=Sampling(**{"max_tokens": 12, "ignore_eos": True} | options))  # type: ignore[arg-type]


def tokens_of(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.tokens]


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def alone(model: Llama, prompt: tuple[int, ...], count: int) -> list[int]:
    """The likeliest tokens, without any engine."""
    tokens, pages = list(prompt), np.arange(8, dtype=np.int32)
    cache = KVPages(model.sizes, 8)
    states = model.forward([Stretch(tokens, 0, pages)], cache)
    for _ in range(count):
        tokens.append(int(model.logits(states)[0].argmax()))
        states = model.forward([Stretch(tokens[-1:], len(tokens) - 1, pages)], cache)
    return tokens[len(prompt) :]


@pytest.mark.parametrize("step_tokens", [7, 256])
async def test_every_answer_of_many_is_the_one_it_would_be_alone(model: Llama, step_tokens: int) -> None:
    async with engine(model, step_tokens=step_tokens) as running:
        got = await asyncio.gather(*(collect(running, request(p, temperature=0)) for p in PROMPTS))
    for prompt, deltas in zip(PROMPTS, got, strict=True):
        assert tokens_of(deltas) == alone(model, prompt, 12)
        assert deltas[-1].finish_reason == "length" and deltas[-1].usage is not None
        assert (deltas[-1].usage.prompt_tokens, deltas[-1].usage.completion_tokens) == (len(prompt), 12)
        assert all(delta.finish_reason is None for delta in deltas[:-1])


async def test_seeded_answers_do_not_depend_on_what_else_runs(model: Llama) -> None:
    asked = [request(p, seed=n, top_p=0.9, temperature=1.3) for n, p in enumerate(PROMPTS)]
    async with engine(model) as running:
        one_by_one = [tokens_of(await collect(running, each)) for each in asked]
    async with engine(model, step_tokens=11, max_running=3) as running:
        together = await asyncio.gather(*(collect(running, each) for each in asked))
    assert [tokens_of(deltas) for deltas in together] == one_by_one


async def test_a_prompt_that_began_alike_is_not_computed_again(model: Llama) -> None:
    async with engine(model) as running:
        first = await collect(running, request(PROMPTS[4], temperature=0))
        again = await collect(running, request((*PROMPTS[4][:50], 3, 4), temperature=0))
        same = await collect(running, request(PROMPTS[4], temperature=0))
    assert first[-1].usage.cached_tokens == 0 and again[-1].usage.cached_tokens == same[-1].usage.cached_tokens == 48
    assert tokens_of(same) == tokens_of(first)
    assert tokens_of(again) == alone(model, (*PROMPTS[4][:50], 3, 4), 12)


async def test_an_answer_ends_at_the_token_of_an_end(model: Llama) -> None:
    async with engine(model) as running:
        deltas = await collect(running, request((1, 2), ignore_eos=False, logit_bias={95: 100.0}))
    assert (text_of(deltas), tokens_of(deltas), deltas[-1].finish_reason) == ("", [], "stop")


async def test_an_answer_ends_before_a_stop_text_that_spans_tokens(model: Llama) -> None:
    expected = "".join(f"<{token}>" for token in alone(model, PROMPTS[1], 12))
    stop = expected[6:13]
    async with engine(model) as running:
        deltas = await collect(running, request(PROMPTS[1], temperature=0, stop=("never", stop)))
    assert text_of(deltas) == expected[: expected.index(stop)] and deltas[-1].finish_reason == "stop"


async def test_half_a_character_never_leaves(model: Llama) -> None:
    async with engine(model) as running:
        both = await collect(running, request((1,), max_tokens=2, temperature=0, logit_bias={90: 100.0}))
        assert text_of(both) == "\ufffd\ufffd" and [delta.text for delta in both][0] == ""


async def test_logprobs_come_with_their_tokens(model: Llama) -> None:
    async with engine(model) as running:
        deltas = await collect(running, request((1, 2), temperature=0, logprobs=3))
    for delta in deltas:
        (entry,) = delta.logprobs
        assert entry.token == delta.tokens[0] == entry.top[0].token and entry.logprob == entry.top[0].logprob <= 0
        assert entry.piece == Words().piece(entry.token) and len(entry.top) == 3


async def test_who_does_not_read_pauses_and_holds_up_nobody(model: Llama) -> None:
    async with engine(model, max_unread=3) as running:
        slow = running.submit(request(PROMPTS[1], max_tokens=60, temperature=0))
        for _ in range(3):
            await collect(running, request(PROMPTS[2], max_tokens=20))
        assert len(slow.tokens) - slow.prompt_tokens == 3
        rest = [delta async for delta in slow]
    assert tokens_of(rest) == alone(model, PROMPTS[1], 60)


async def test_a_cancelled_answer_gives_its_pages_back(model: Llama) -> None:
    async with engine(model, max_running=1) as running:
        before = running.free_pages
        answer = running.submit(request(PROMPTS[2], max_tokens=80))
        waiting = running.submit(request(PROMPTS[1]))
        await anext(answer)
        answer.cancel()
        waiting.cancel()
        rest = [delta async for delta in answer]
        assert rest[-1].finish_reason == "cancelled" and rest[-1].usage.completion_tokens < 80
        assert [delta.finish_reason async for delta in waiting] == ["cancelled"]
        answer.cancel()
        assert running.free_pages == before and running.running == running.waiting == 0


async def test_requests_wait_for_pages_in_their_order(model: Llama) -> None:
    page = model.sizes.kv_bytes_per_token * 16
    async with engine(model, kv_bytes=page * 4) as running:
        assert running.context_tokens == 64
        asked = [request((n,), max_tokens=40 + n) for n in range(5)]
        got = await asyncio.gather(*(collect(running, each) for each in asked))
        assert running.free_pages == 4
    assert [deltas[-1].usage.completion_tokens for deltas in got] == [40, 41, 42, 43, 44]


async def test_a_full_queue_refuses_at_once(model: Llama) -> None:
    async with engine(model, max_running=1, max_waiting=2) as running:
        taken = [running.submit(request((1,))) for _ in range(2)]
        with pytest.raises(Overloaded, match="2 requests wait already"):
            running.submit(request((1,)))
        for answer in taken:
            assert [delta async for delta in answer][-1].finish_reason == "length"
        running.submit(request((1,)))


@pytest.mark.parametrize(
    ("prompt", "error", "expected"),
    [
        ((), SpecError, "at least one token"),
        ((1, 96), SpecError, "tokens from 0 to 95, got 96"),
        ((-1,), SpecError, "tokens from 0 to 95, got -1"),
        ((1,) * 128, ContextOverflow, "128 tokens do not fit into a context of 128"),
    ],
)
async def test_a_prompt_that_cannot_be_is_refused(
    model: Llama, prompt: tuple[int, ...], error: type[Exception], expected: str
) -> None:
    async with engine(model) as running:
        with pytest.raises(error, match=expected):
            running.submit(request(prompt))
        with pytest.raises(SpecError, match="tokens from 0 to 95, got 1000"):
            running.submit(request((1,), logit_bias={1000: 1.0}))


async def test_without_a_limit_an_answer_ends_with_the_context(model: Llama) -> None:
    async with engine(model) as running:
        deltas = await collect(running, request(PROMPTS[1], max_tokens=None))
    assert deltas[-1].usage.completion_tokens == 128 - len(PROMPTS[1]) and deltas[-1].finish_reason == "length"


async def test_draining_finishes_what_was_taken_and_takes_no_more(model: Llama) -> None:
    running = BatchingEngine(model, Words())
    await running.start()
    answers = [running.submit(request(p)) for p in PROMPTS]
    await running.drain()
    for answer in answers:
        assert [delta async for delta in answer][-1].finish_reason == "length"
    with pytest.raises(Overloaded, match="about to stop"):
        running.submit(request((1,)))


async def test_a_model_of_no_numbers_fails_the_answer_and_not_the_engine(tmp_path: Path) -> None:
    broken = Llama(llamas.write(tmp_path / "a.gguf", SIZES, "F32"))
    norm = broken.output_norm.copy()
    async with engine(broken) as running:
        broken.output_norm[:] = np.nan
        with pytest.raises(DataError, match="no numbers"):
            await collect(running, request((1, 2)))
        broken.output_norm[:] = norm
        assert len(tokens_of(await collect(running, request((1, 2))))) == 12


async def test_embeddings_are_the_mean_of_the_states(model: Llama) -> None:
    prompt = PROMPTS[2]
    states = model.forward(
        [Stretch(prompt, 0, np.arange(8, dtype=np.int32))], KVPages(model.sizes, 8), range(len(prompt))
    )
    mean = states.astype(np.float64).mean(0)
    async with engine(model, step_tokens=13) as running:
        got, again, _ = await asyncio.gather(
            running.embed(prompt), running.embed(prompt), collect(running, request(PROMPTS[3]))
        )
    np.testing.assert_allclose(got, mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_array_equal(got, again)


def test_a_step_takes_answers_first_and_then_prompts_in_their_order() -> None:
    assert plan([1, 100, 1, 50], [True, False, True, False], 64) == [1, 62, 1, 0]
    assert plan([1, 1, 1], [True, True, True], 2) == [1, 1, 0]
    assert plan([], [], 8) == []


def test_an_engine_without_memory_for_its_context_is_refused(model: Llama) -> None:
    with pytest.raises(SpecError, match="kv_bytes of 10 hold no page"):
        BatchingEngine(model, Words(), EngineOptions(kv_bytes=10))
    with pytest.raises(SpecError, match="a context of 4096 tokens takes"):
        BatchingEngine(model, Words(), EngineOptions(kv_bytes=1 << 16, context_tokens=4096))


async def test_a_token_that_the_vocabulary_lacks_fails_its_answer_alone(model: Llama) -> None:
    class Few(Words):
        def piece(self, token: int) -> bytes:
            if token == 80:
                raise IndexError("no token 80")
            return super().piece(token)

    running = BatchingEngine(model, Few(), EngineOptions())
    async with running:
        free = running.free_pages
        wrong = request(PROMPTS[1], logit_bias={80: 100.0})
        right = request(PROMPTS[1], logit_bias={80: -100.0})
        failed, done = await asyncio.gather(collect(running, wrong), collect(running, right), return_exceptions=True)
        assert isinstance(failed, IndexError)
        assert isinstance(done, list) and done[-1].finish_reason == "length"
        assert running.free_pages == free


async def test_an_engine_that_broke_takes_nothing_more(model: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    running = BatchingEngine(model, Words(), EngineOptions())
    monkeypatch.setattr(running, "_admit", lambda: 1 / 0)
    await running.start()
    with pytest.raises(Overloaded):
        await collect(running, request(PROMPTS[0]))
    with pytest.raises(Overloaded):
        running.submit(request(PROMPTS[0]))
    with pytest.raises(ZeroDivisionError):
        await running.stop()

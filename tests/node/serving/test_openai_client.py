"""The OpenAI API as its own Python client meets it, over real sockets."""

import asyncio
import contextlib
import json

import httpx
import numpy as np
import openai
import pytest

from cyxnode.serving.asgi import Asked, Limits, Room, send_answer
from cyxnode.serving.gate import read_keys
from tests.node.serving.byte_engine import CONTEXT, FEATURES, TEXT, ByteEngine, language, trained
from tests.node.serving.models import serving, tensors

USER = [{"role": "user", "content": "the quick "}]
GREEDY = {"model": "bytes", "temperature": 0, "max_tokens": 20}


@contextlib.asynccontextmanager
async def asking(served=None, api_key="none", **options):
    async with serving(served or language(), **options) as (http, server):
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=api_key, max_retries=0) as client:
            client.plain, client.server = http, server
            yield client


@pytest.fixture
async def client():
    async with asking() as client:
        yield client


def greedy(prompt, count):
    """What the model itself goes on with."""
    tokens = list(prompt.encode())
    for _ in range(count):
        tokens.append(int(trained().predict(np.array([([32] * 6 + tokens)[-6:]]))[0].argmax()))
    return bytes(tokens[len(prompt.encode()) :]).decode()


async def test_models_are_listed(client):
    listed = [model async for model in client.models.list()]
    assert [model.id for model in listed] == ["bytes"] and listed[0].object == "model"
    assert (await client.models.retrieve("bytes")).id == "bytes"
    with pytest.raises(openai.NotFoundError) as caught:
        await client.models.retrieve("other")
    assert caught.value.code == "model_not_found" and caught.value.param == "model"


async def test_a_completion_is_what_the_model_goes_on_with(client):
    found = await client.completions.create(prompt="the quick ", **GREEDY)
    assert found.choices[0].text == greedy("the quick ", 20) == TEXT[10:30]
    assert found.choices[0].finish_reason == "length"
    assert (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens) == (10, 20, 30)
    text = (await client.plain.get("/metrics")).text
    assert 'cyx_serve_tokens_total{kind="prompt"} 10.0' in text
    assert 'cyx_serve_tokens_total{kind="completion"} 20.0' in text
    assert found.object == "text_completion" and found.id.startswith("cmpl-") and found.system_fingerprint


async def test_chat_streams_the_same_text_as_it_answers_whole(client):
    whole = await client.chat.completions.create(messages=USER, **GREEDY)
    assert whole.choices[0].message.role == "assistant" and whole.choices[0].finish_reason == "length"
    stream = await client.chat.completions.create(messages=USER, stream=True, **GREEDY)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert len(chunks) > 10 and len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


async def test_a_stream_ends_with_its_usage_where_that_is_asked_for(client):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = [chunk async for chunk in await client.chat.completions.create(messages=USER, **GREEDY, **options)]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 20
    assert chunks[-1].usage.prompt_tokens == len("user: the quick \n")
    texts = [chunk async for chunk in await client.completions.create(prompt=["the ", "fox "], **GREEDY, **options)]
    assert texts[-1].usage.prompt_tokens == 8 and texts[-1].usage.completion_tokens == 40
    assert {choice.index for chunk in texts for choice in chunk.choices} == {0, 1}


@pytest.mark.parametrize("stop", ["fox", ["zebra", "brown f"]])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_text_ends_the_answer_before_it_also_across_tokens(client, stop, stream):
    asked = client.completions.create(prompt="the quick ", stop=stop, stream=stream, **GREEDY)
    if stream:
        chunks = [chunk.choices[0] async for chunk in await asked]
        text, reason = "".join(chunk.text for chunk in chunks), chunks[-1].finish_reason
    else:
        found = (await asked).choices[0]
        text, reason = found.text, found.finish_reason
    assert text == ("brown " if stop == "fox" else "") and reason == "stop"


async def test_a_seed_is_an_answer_and_no_seed_is_another_each_time(client):
    async def said(**options):
        wanted = {"model": "bytes", "prompt": "q", "max_tokens": 40, "temperature": 2, **options}
        return (await client.completions.create(**wanted)).choices[0].text

    assert await said(seed=7) == await said(seed=7) != await said(seed=8)
    assert await said() != await said()
    assert await said(seed=7, top_p=1e-9) == await said(temperature=0)
    assert await said(seed=7, extra_body={"top_k": 1}) == await said(temperature=0)


async def test_several_choices_differ_and_count_their_prompt_once(client):
    wanted = {"model": "bytes", "messages": USER, "n": 3, "seed": 1, "temperature": 2, "max_tokens": 30}
    wanted |= {"presence_penalty": 2, "frequency_penalty": 2}
    found = await client.chat.completions.create(**wanted)
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in found.choices}) == 3
    assert found.usage.prompt_tokens == len("user: the quick \n")
    assert found.usage.completion_tokens <= 90
    streamed = ["", "", ""]
    async for chunk in await client.chat.completions.create(stream=True, **wanted):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == [choice.message.content for choice in found.choices]


async def test_logprobs_of_both_kinds(client):
    chat = await client.chat.completions.create(messages=USER, logprobs=True, top_logprobs=3, **GREEDY)
    content = chat.choices[0].logprobs.content
    assert "".join(each.token for each in content) == chat.choices[0].message.content
    assert all(each.logprob == each.top_logprobs[0].logprob <= 0 and len(each.top_logprobs) == 3 for each in content)
    assert bytes(content[0].bytes).decode() == content[0].token
    for stream in (False, True):
        asked = await client.completions.create(prompt="the ", logprobs=2, stream=stream, **GREEDY)
        choices = [chunk.choices[0] async for chunk in asked] if stream else asked.choices
        tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.tokens]
        offsets = [at for choice in choices if choice.logprobs for at in choice.logprobs.text_offset]
        assert "".join(tokens) == "".join(choice.text for choice in choices)
        assert offsets == list(range(20))


async def test_prompts_are_texts_or_tokens_and_may_be_echoed(client):
    texts = await client.completions.create(prompt=["the quick ", "the lazy "], **GREEDY)
    assert [choice.text for choice in texts.choices] == [greedy("the quick ", 20), greedy("the lazy ", 20)]
    tokens = await client.completions.create(prompt=list(b"the quick "), **GREEDY)
    both = await client.completions.create(prompt=[list(b"the quick "), list(b"the lazy ")], **GREEDY)
    assert tokens.choices[0].text == texts.choices[0].text == both.choices[0].text
    echoed = await client.completions.create(prompt="the quick ", echo=True, **GREEDY)
    assert echoed.choices[0].text == "the quick " + texts.choices[0].text


async def test_penalties_and_biases_change_the_choice(client):
    plain = (await client.completions.create(prompt="the quick ", **GREEDY)).choices[0].text
    biased = await client.completions.create(prompt="the quick ", logit_bias={"122": 100}, **GREEDY)
    assert biased.choices[0].text == "z" * 20
    for penalty in ("presence_penalty", "frequency_penalty"):
        found = await client.completions.create(prompt="the quick ", **{penalty: 2.0}, **GREEDY)
        assert found.choices[0].text[:3] == plain[:3]


async def test_tools_reach_the_template_and_a_conversation_with_their_answers_goes_on(client):
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    plain = await client.chat.completions.create(messages=USER, **GREEDY)
    found = await client.chat.completions.create(messages=USER, tools=[tool], **GREEDY)
    assert found.usage.prompt_tokens == plain.usage.prompt_tokens + len("[tool weather] ")
    none = await client.chat.completions.create(messages=USER, tools=[tool], tool_choice="none", **GREEDY)
    assert none.usage.prompt_tokens == plain.usage.prompt_tokens
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"at": "Rome"}'}}
    more = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    ]
    assert (await client.chat.completions.create(messages=more, **GREEDY)).choices[0].message.content


async def test_content_may_come_in_parts_of_text(client):
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "quick "}]
    whole = await client.chat.completions.create(messages=USER, **GREEDY)
    found = await client.chat.completions.create(messages=[{"role": "user", "content": parts}], **GREEDY)
    assert found.choices[0].message.content == whole.choices[0].message.content


@pytest.mark.parametrize("encoding", ["float", "base64", None])
async def test_embeddings(client, encoding):
    options = {"encoding_format": encoding} if encoding else {}
    found = await client.embeddings.create(model="bytes", input=["abca", "bb"], **options)
    vectors = [each.embedding for each in found.data]
    if encoding == "base64":
        import base64

        vectors = [np.frombuffer(base64.b64decode(vector), "<f4").tolist() for vector in vectors]
    assert vectors[0][:3] == [2, 1, 1] and vectors[1][:2] == [0, 2] and len(vectors[0]) == FEATURES
    assert found.usage.prompt_tokens == 6 and [each.index for each in found.data] == [0, 1]
    tokens = await client.embeddings.create(model="bytes", input=[97, 97], encoding_format="float")
    assert tokens.data[0].embedding[0] == 2
    with pytest.raises(openai.BadRequestError, match=f"the model's embeddings have {FEATURES}, got 3"):
        await client.embeddings.create(model="bytes", input="a", dimensions=3)


async def test_a_model_of_tensors_gives_embeddings_of_numbers_and_nothing_else():
    async with asking(tensors()) as client:
        found = await client.embeddings.create(model="small", input=[1, 2, 3, 4])
        assert len(found.data[0].embedding) == 3
        with pytest.raises(openai.BadRequestError, match="this model reads no text"):
            await client.embeddings.create(model="small", input="text")
        with pytest.raises(openai.NotFoundError, match="small does not answer /v1/chat/completions; it answers"):
            await client.chat.completions.create(model="small", messages=USER)


REFUSED = {
    "another model": ({"model": "gpt-4"}, 404, "model_not_found", "model"),
    "no messages": ({"messages": []}, 400, "bad_message", "messages"),
    "a role that is none": ({"messages": [{"role": "king", "content": "x"}]}, 400, "bad_message", "messages[0].role"),
    "no content": ({"messages": [{"role": "user", "content": None}]}, 400, "bad_message", "messages[0].content"),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]}]},
        400,
        "bad_message",
        "messages[0].content",
    ),
    "no tokens": ({"max_tokens": 0}, 400, "bad_message", "max_tokens"),
    "tokens in words": ({"max_tokens": "5"}, 400, "bad_message", "max_tokens"),
    "true tokens": ({"max_tokens": True}, 400, "bad_message", "max_tokens"),
    "below zero": ({"temperature": -1}, 400, "bad_message", "temperature"),
    "too hot": ({"temperature": 1e9}, 400, "bad_message", "temperature"),
    "no probability": ({"top_p": 0}, 400, "bad_message", "top_p"),
    "a billion choices": ({"n": 10**9}, 400, "bad_message", "n"),
    "an empty stop": ({"stop": ""}, 400, "bad_spec", None),
    "a thousand stops": ({"stop": ["x"] * 1000}, 400, "bad_spec", None),
    "a seed too large": ({"seed": 2**70}, 400, "bad_message", "seed"),
    "a bias of no token": ({"logit_bias": {"x": 1}}, 400, "bad_message", "logit_bias"),
    "a bias of no number": ({"logit_bias": {"5": 1000}}, 400, "bad_message", "logit_bias[...]"),
    "JSON": ({"response_format": {"type": "json_object"}}, 400, "bad_message", "response_format"),
    "a forced tool": ({"tool_choice": "required"}, 400, "bad_message", "tool_choice"),
    "one tool at a time": ({"parallel_tool_calls": False}, 400, "bad_message", "parallel_tool_calls"),
    "storing": ({"store": True}, 400, "bad_message", "store"),
    "an option that nobody knows": ({"extra_body": {"reasoning": 1}}, 400, "bad_message", "reasoning"),
    "top logprobs alone": ({"top_logprobs": 2}, 400, "bad_message", "top_logprobs"),
    "usage of no stream": ({"stream_options": {"include_usage": True}}, 400, "bad_message", "stream_options"),
    "two limits": ({"max_tokens": 5, "max_completion_tokens": 5}, 400, "bad_message", "max_tokens"),
    "more than the context": (
        {"messages": [{"role": "user", "content": "x" * CONTEXT}]},
        400,
        "context_length_exceeded",
        None,
    ),
    "more than any context": (
        {"messages": [{"role": "user", "content": "x" * 100_000}]},
        400,
        "context_length_exceeded",
        None,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_cannot_be_honoured_is_refused_by_name(client, name):
    changes, status, code, param = REFUSED[name]
    with pytest.raises(openai.APIStatusError) as caught:
        await client.chat.completions.create(**{"model": "bytes", "messages": USER} | changes)
    assert (caught.value.status_code, caught.value.code, caught.value.param) == (status, code, param)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"echo": True, "prompt": [1, 2]}, "echo"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", [1]]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
    ],
)
async def test_what_a_completion_cannot_honour(client, changes, param):
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(**{"model": "bytes", "prompt": "a"} | changes)
    assert (caught.value.param or "").partition("[")[0] == param


async def test_with_keys_only_who_has_one_is_answered(tmp_path):
    file = tmp_path / "keys"
    file.write_text("secret-of-sixteen alice 6\n")
    file.chmod(0o600)
    async with asking(keys=read_keys(file), api_key="wrong") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.models.list()
        assert caught.value.code == "invalid_api_key"
        good = client.with_options(api_key="secret-of-sixteen")
        assert (await good.models.list()).data[0].id == "bytes"
        with pytest.raises(openai.RateLimitError) as caught:
            await good.models.list()
        assert caught.value.code == "rate_limit_exceeded" and caught.value.response.headers["retry-after"]
        assert caught.value.request_id


async def test_an_engine_that_is_full_is_429_and_its_choices_are_given_back():
    engine = ByteEngine(most=2)
    async with asking(language(engine)) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.completions.create(prompt="a", n=3, **GREEDY)
        assert caught.value.code == "overloaded" and caught.value.response.headers["retry-after"] == "1"
        assert [generation.cancelled for generation in engine.generations] == [True, True]


async def test_who_leaves_a_stream_stops_the_engine():
    engine = ByteEngine()
    async with asking(language(engine)) as client:
        stream = await client.chat.completions.create(model="bytes", messages=USER, stream=True, temperature=2)
        async for _ in stream:
            break
        engine.go_on.clear()
        await stream.close()
        while not engine.generations[0].cancelled:
            await asyncio.sleep(0)


async def test_a_stream_that_has_nothing_to_say_says_that_it_is_there():
    engine = ByteEngine()
    engine.go_on.clear()
    async with asking(language(engine)) as client:
        body = {"model": "bytes", "messages": USER, "stream": True, "max_tokens": 1}
        async with client.plain.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert answer.headers["content-type"] == "text/event-stream"
            lines = answer.aiter_lines()
            async for line in lines:
                if line == ": still writing":
                    break
            engine.go_on.set()
            rest = [line async for line in lines]
        assert rest[-2] == "data: [DONE]"


async def test_a_server_that_stops_tells_a_stream_so():
    engine = ByteEngine()
    async with asking(language(engine)) as client:
        stream = await client.chat.completions.create(model="bytes", messages=USER, stream=True)
        engine.go_on.clear()
        await engine.stop()
        with pytest.raises(openai.APIError, match="the server stops"):
            async for _ in stream:
                pass


async def test_bodies_that_are_no_json(client):
    http: httpx.AsyncClient = client.plain
    for body in (b"", b"[]", b"{", b"\xff", b"[" * 100_000):
        answer = await http.post("/v1/chat/completions", content=body)
        assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


async def test_a_stream_whose_client_does_not_take_its_first_bytes_writes_nothing():
    engine = ByteEngine(most=2)
    served = language(engine)
    body = json.dumps({"model": "bytes", "prompt": "a", "stream": True}).encode()

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        raise TimeoutError

    scope = {"method": "POST", "path": "/v1/completions", "query_string": b"", "headers": []}
    answer = await served.completions(Asked(scope, receive, Limits(), Room(1000)))
    with pytest.raises(TimeoutError):
        await send_answer(answer, b"1", Limits(), send)
    assert [generation.cancelled for generation in engine.generations] == [True]

"""A GGUF file, served: small random models of the llama family whose tokens are bytes."""

import asyncio
import contextlib
import json

import openai
import pytest

from cyxcore.llm.tokenizer import BYTE_OF
from cyxnode.serving.gguf import open_gguf
from tests.core import llamas
from tests.node.serving.models import serving
from tests.node.serving.test_chat import started

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|a|>{% endif %}"
)
SIZES = {"layers": 1, "features": 64, "hidden": 64, "heads": 4, "kv_heads": 2, "head_size": 16, "rotated": 16}
ASKED = {"model": "tiny", "temperature": 0, "max_tokens": 12}


def vocabulary(**more):
    tokens = [char for _, char in sorted((byte, char) for char, byte in BYTE_OF.items())] + ["<end>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.token_type": [1] * 256 + [3],
        "tokenizer.ggml.eos_token_id": 256,
    } | more


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    more = vocabulary(**{"tokenizer.chat_template": TEMPLATE})
    return llamas.write(path, llamas.sizes(vocabulary=257, **SIZES), "Q8_0", **more)


@contextlib.asynccontextmanager
async def asking(file, context=None, memory=None):
    async with serving(open_gguf(file, "tiny", context, memory)) as (http, server):
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            client.plain = http
            yield client


async def test_a_file_answers_chats_texts_and_embeddings(file):
    async with asking(file) as client:
        card = (await client.plain.get("/v1/model")).json()
        assert card["kind"] == "language" and card["context_length"] == 128
        text = await client.completions.create(prompt="hello", **ASKED)
        again = await client.completions.create(prompt=list(b"hello"), **ASKED)
        assert text.choices[0].text == again.choices[0].text and text.usage.prompt_tokens == 5
        chat = await client.chat.completions.create(messages=[{"role": "user", "content": "hi"}], **ASKED)
        stream = await client.chat.completions.create(
            messages=[{"role": "user", "content": "hi"}], stream=True, **ASKED
        )
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(pieces) == chat.choices[0].message.content
        assert chat.usage.prompt_tokens == len("<|user|>hi<|a|>")
        vectors = await client.embeddings.create(model="tiny", input=["hello", "world"], encoding_format="float")
        assert len(vectors.data[0].embedding) == 64
        many = await client.embeddings.create(model="tiny", input=["world"] * 40, encoding_format="float")
        assert [each.embedding for each in many.data] == [vectors.data[1].embedding] * 40
        with pytest.raises(openai.BadRequestError, match="at most 2048 texts, got 2049"):
            await client.embeddings.create(model="tiny", input=["a"] * 2049)
        assert sum(x * x for x in vectors.data[0].embedding) == pytest.approx(1, abs=1e-5)


async def test_each_of_many_gets_the_answer_that_he_gets_alone(file):
    async with asking(file) as client:
        prompts = [f"prompt {number} " * (number % 5 + 1) for number in range(12)]
        wanted = ASKED | {"temperature": 1, "seed": 5}
        alone = [(await client.completions.create(prompt=prompt, **wanted)).choices[0].text for prompt in prompts]
        together = await asyncio.gather(*[client.completions.create(prompt=prompt, **wanted) for prompt in prompts])
        assert [found.choices[0].text for found in together] == alone
        several = await client.completions.create(prompt=prompts[0], n=3, logprobs=2, **wanted)
        assert several.choices[0].text == alone[0] and len(several.choices[0].logprobs.tokens) == 12


async def test_a_token_without_a_name_is_no_text_and_hurts_nobody(tmp_path):
    padded = llamas.write(tmp_path / "p.gguf", llamas.sizes(vocabulary=300, **SIZES), "Q8_0", **vocabulary())
    async with asking(padded) as client:
        found = await client.completions.create(prompt="a", logit_bias={"290": 100}, logprobs=3, **ASKED)
        assert found.choices[0].text == "" and found.usage.completion_tokens == 12
        assert (await client.completions.create(prompt="a", **ASKED)).usage.completion_tokens


async def test_what_a_context_does_not_hold_is_refused(file):
    async with asking(file, context=32) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.completions.create(prompt="x" * 32, **ASKED)
        assert caught.value.code == "context_length_exceeded"
        found = await client.completions.create(prompt="x" * 30, **ASKED | {"max_tokens": 500})
        assert found.choices[0].finish_reason == "length" and found.usage.completion_tokens == 2


async def test_without_a_template_there_is_no_chat(tmp_path):
    plain = llamas.write(tmp_path / "p.gguf", llamas.sizes(vocabulary=257, **SIZES), "Q8_0", **vocabulary())
    async with asking(plain) as client:
        with pytest.raises(openai.BadRequestError, match="no chat template"):
            await client.chat.completions.create(messages=[{"role": "user", "content": "hi"}], **ASKED)


async def test_one_does_not_begin_to_chat_with_a_file_that_has_no_template(tmp_path):
    plain = llamas.write(tmp_path / "p.gguf", llamas.sizes(vocabulary=257, **SIZES), "Q8_0", **vocabulary())
    chat = await started(plain)
    said, told = await chat.communicate()  # without a word
    [line] = told.decode().splitlines()
    assert (chat.returncode, said) == (2, b"")
    assert line.startswith(f"cyx: {plain}: the model file has no chat template") and "chat or instruct model" in line


async def test_one_chats_with_a_file_in_a_terminal(file):
    chat = await started(file, "--temperature", 0, "--max-tokens", 8, "--json")
    said, told = await chat.communicate(b"hello\nmore\n")
    assert chat.returncode == 0, told
    answers = [json.loads(line)["data"] for line in said.splitlines()]
    assert len(answers) == 2 and not any(answer["stopped"] for answer in answers)

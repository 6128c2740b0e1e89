"""`cyx chat` as a process, against a real server."""

import asyncio
import json
import signal
import sys

import pytest

from cyxnet.chatting import ChatError, Server, Unusable
from cyxnet.cli.chat import harmless
from tests.node.serving.byte_engine import ByteEngine, language
from tests.node.serving.models import mlp, serving, tensors


async def started(*options):
    command = [sys.executable, "-m", "cyxnet", "chat", *map(str, options)]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)


async def test_lines_are_answered_and_the_conversation_is_remembered():
    engine = ByteEngine()
    async with serving(language(engine)) as (_, server):
        chat = await started(server.url, "--temperature", 0, "--max-tokens", 9, "--system", "Be brief.")
        said, told = await chat.communicate(
            b"the quick \n\nthe quick \n/reset\n/nonsense\n/system\nfox \n/exit\nmore\n"
        )
        assert chat.returncode == 0, told
    prompts = [bytes(generation._request.prompt).decode() for generation in engine.generations]
    answers = said.decode().splitlines()
    assert prompts[0] == "system: Be brief.\nuser: the quick\n"
    assert prompts[1] == f"{prompts[0]}assistant: {answers[0]}\nuser: the quick\n"
    assert prompts[2] == "user: fox\n" and len(prompts) == len(answers) == 3
    assert "there is no /nonsense" in told.decode()


async def test_ctrl_c_stops_an_answer_and_not_the_conversation():
    engine = ByteEngine()
    async with serving(language(engine)) as (_, server):
        engine.go_on.clear()
        chat = await started(server.url, "--temperature", 0, "--max-tokens", 5, "--json")
        chat.stdin.write(b"the quick \n")
        while not engine.generations:
            await asyncio.sleep(0)
        chat.send_signal(signal.SIGINT)
        stopped = json.loads(await chat.stdout.readline())
        assert stopped["data"]["stopped"] is True
        while not engine.generations[0].cancelled:
            await asyncio.sleep(0)
        engine.go_on.set()
        chat.stdin.write(b"again\n")
        again = json.loads(await chat.stdout.readline())
        assert again["data"]["stopped"] is False and len(again["data"]["answer"]) == 5
        chat.stdin.close()
        assert await chat.wait() == 0


async def test_a_file_is_served_for_the_conversation_only(tmp_path):
    file = tmp_path / "small.safetensors"
    mlp().save(file)
    chat = await started(file)
    _, told = await chat.communicate(b"hello\n")
    assert chat.returncode == 2 and b"small.safetensors: expected a language model (.gguf)" in told
    missing = await started(tmp_path / "none.gguf")
    _, told = await missing.communicate()
    assert missing.returncode == 2 and b"there is no such file" in told


async def test_why_a_file_is_not_served_is_one_line_and_its_status(tmp_path):
    (tmp_path / "none.gguf").write_bytes(b"hello")
    chat = await started(tmp_path / "none.gguf", "--json")
    said, told = await chat.communicate()
    why = f"gguf {tmp_path / 'none.gguf'}: expected at least 24 bytes, got 5"
    assert (chat.returncode, told.decode()) == (2, f"cyx: {why}\n")
    assert json.loads(said)["data"] == {"code": "bad_file", "message": why}


async def test_what_is_wrong_is_said_in_the_words_of_the_server():
    async with serving(tensors()) as (_, server):
        asked = Server(server.url + "/v1/")
        assert await asyncio.to_thread(asked.models) == ["small"]
        with pytest.raises(Unusable, match="answered 404: small does not answer"):
            await asyncio.to_thread(lambda: list(asked.answer({"model": "small", "messages": []})))
    with pytest.raises(ChatError, match="cannot be asked"):
        await asyncio.to_thread(asked.models)
    with pytest.raises(Unusable, match="expected an address"):
        Server("ftp://x")


def test_no_control_code_reaches_the_terminal():
    assert harmless("a\x1b[2Jb\n\tc\x9b") == "a\N{REPLACEMENT CHARACTER}[2Jb\n\tc\N{REPLACEMENT CHARACTER}"

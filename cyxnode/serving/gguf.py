"""A GGUF file as it is served: its model, its tokenizer, its chat template, and an engine for all who ask at once."""

import asyncio
import math
from pathlib import Path
from typing import Any

import numpy as np

from cyxcore.errors import SpecError
from cyxcore.gguf import GGUFFile
from cyxcore.llm.chat import ChatTemplate
from cyxcore.llm.engine import BatchingEngine, EngineOptions
from cyxcore.llm.llama import Llama
from cyxcore.llm.tokenizer import Tokenizer
from cyxnet.inference import ModelCard
from cyxnode.serving.language import LanguageModel

Array = np.ndarray[Any, Any]


class GGUFSpeech:
    """How the file makes tokens of text; see language.Speech."""

    def __init__(self, file: GGUFFile, tokenizer: Tokenizer, engine: BatchingEngine):
        self._tokenizer, self._engine = tokenizer, engine
        source = file.text("tokenizer.chat_template", "")
        self._template = ChatTemplate(source, f"{file.where}: tokenizer.chat_template") if source else None
        ends = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos}
        self._ends: dict[str, Any] = {
            name: "" if token is None else tokenizer.name(token) for name, token in ends.items()
        }

    def prompt_tokens(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def chat_tokens(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> list[int]:
        if self._template is None:
            raise SpecError("the model file has no chat template: ask /v1/completions with a prompt instead")
        text = self._template.render(messages, tools=tools, **self._ends)
        bos = self._ends["bos_token"]
        begun = False if bos and text.startswith(bos) else None  # the template wrote it already
        return self._tokenizer.encode(text, special=True, bos=begun)

    async def embed(self, prompts: list[list[int]]) -> Array:
        return np.stack(await asyncio.gather(*[self._engine.embed(prompt) for prompt in prompts]))


def open_gguf(path: Path, name: str, context_tokens: int | None, kv_bytes: int | None) -> LanguageModel:
    """kv_bytes: for the keys and values of everybody's texts. Raises FormatError, SpecError, MissingExtra."""
    file = GGUFFile(path)
    tokenizer, model = Tokenizer(file), Llama(file)
    limits = {"context_tokens": context_tokens, "kv_bytes": kv_bytes}
    engine = BatchingEngine(model, tokenizer, EngineOptions(**{k: v for k, v in limits.items() if v is not None}))
    card = ModelCard(
        name=name,
        kind=LanguageModel.kind,
        parameters=sum(math.prod(tensor.shape) for tensor in file.tensors.values()),
        weights_bytes=path.stat().st_size,
        numerics="cyx-exact/1",
        context_length=engine.context_tokens,
    )
    return LanguageModel(name, engine, GGUFSpeech(file, tokenizer, engine), card)

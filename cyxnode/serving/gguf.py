"""A GGUF file as it is served: what its tokenizer and chat template make of text, and an engine for all who ask."""

import asyncio
import math
from pathlib import Path
from typing import Any

import numpy as np

from cyxcore.errors import SpecError
from cyxcore.llm.engine import BatchingEngine, EngineOptions
from cyxcore.llm.languagemodel import LanguageModel as OpenFile
from cyxnet.inference import ModelCard
from cyxnode.serving.language import LanguageModel

Array = np.ndarray[Any, Any]
NO_TEMPLATE = (
    "the model file has no chat template (tokenizer.chat_template), as base models have none: it goes on with a text "
    "(/v1/completions with a prompt) and does not converse; for that take the file of a chat or instruct model"
)
AT_ONCE = 32  # texts of one request that the engine has at a time: others get their turn between them


class GGUFSpeech:
    """How the file makes tokens of text; see language.Speech."""

    def __init__(self, file: OpenFile, engine: BatchingEngine):
        self._file, self._engine = file, engine
        self.why_no_chat = "" if file.template else NO_TEMPLATE

    def prompt_tokens(self, text: str) -> list[int]:
        return list(self._file.tokens(text))

    def chat_tokens(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> list[int]:
        if self._file.template is None:
            raise SpecError(NO_TEMPLATE)
        return list(self._file.chat_tokens(messages, tools))

    async def embed(self, prompts: list[list[int]]) -> Array:
        found: list[Array] = []
        for start in range(0, len(prompts), AT_ONCE):
            tasks = [asyncio.ensure_future(self._engine.embed(prompt)) for prompt in prompts[start : start + AT_ONCE]]
            try:
                found += await asyncio.gather(*tasks)
            finally:
                for task in tasks:  # of one that failed the others are not wanted
                    task.cancel()
        return np.stack(found)


def open_gguf(path: Path, name: str, context_tokens: int | None, kv_bytes: int | None) -> LanguageModel:
    """kv_bytes: for the keys and values of everybody's texts. Raises FormatError, SpecError, MissingExtra."""
    file = OpenFile(path)
    limits = {"context_tokens": context_tokens, "kv_bytes": kv_bytes}
    engine = file.engine(EngineOptions(**{key: value for key, value in limits.items() if value is not None}))
    card = ModelCard(
        name=name,
        kind=LanguageModel.kind,
        parameters=sum(math.prod(tensor.shape) for tensor in file.model.file.tensors.values()),
        weights_bytes=path.stat().st_size,
        numerics="cyx-exact/1",
        context_length=engine.context_tokens,
    )
    return LanguageModel(name, engine, GGUFSpeech(file, engine), card)

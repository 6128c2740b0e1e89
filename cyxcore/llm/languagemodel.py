"""A language model as people use it: the file opened, its tokenizer, its chat template, and an engine."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cyxcore.errors import FormatError
from cyxcore.gguf import GGUFFile
from cyxcore.llm.chat import ChatTemplate, held_apart
from cyxcore.llm.engine import BatchingEngine, EngineOptions
from cyxcore.llm.llama import Llama
from cyxcore.llm.requests import Request, Sampling
from cyxcore.llm.tokenizer import Tokenizer


class LanguageModel:
    """An open GGUF file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises FormatError for a file that is damaged or that cannot be run, MissingExtra without the extra 'llm'."""
        file = GGUFFile(path)
        self.name = file.text("general.name", "") or Path(path).stem
        self.tokenizer = Tokenizer(file)
        self.model = Llama(file)
        self.sizes = self.model.sizes
        if self.tokenizer.size > self.sizes.vocabulary:
            raise FormatError(
                f"{file.where}: {self.tokenizer.size} tokens have names, the model knows only {self.sizes.vocabulary}"
            )
        self._where = file.where
        source = file.text("tokenizer.chat_template", "")
        self.template = ChatTemplate(source, f"{file.where}: tokenizer.chat_template") if source else None

    def tokens(self, text: str) -> tuple[int, ...]:
        """A text as the beginning of a prompt. Texts of control tokens in it stay texts."""
        return tuple(self.tokenizer.encode(text))

    def chat_tokens(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None, **variables: Any
    ) -> tuple[int, ...]:
        """The prompt of a conversation: [{"role": ..., "content": ...}, ...].

        Texts of control tokens in messages and tools stay texts; those of the template become tokens. Raises SpecError
        where the template refuses these messages, FormatError for a model without one.
        """
        if self.template is None:
            raise FormatError(f"{self._where}: the model has no chat template; give it a plain prompt")
        bos, eos = (
            "" if token is None else self.tokenizer.name(token) for token in (self.tokenizer.bos, self.tokenizer.eos)
        )
        mark = ""
        if self.tokenizer.controls:
            (messages, tools), mark = held_apart([messages, tools], self.tokenizer.controls)
        text = self.template.render(messages, tools=tools, **({"bos_token": bos, "eos_token": eos} | variables))
        begins = False if bos and text.startswith(bos) else None
        return tuple(self.tokenizer.encode(text, special=True, bos=begins, mark=mark))

    def engine(self, options: EngineOptions | None = None) -> BatchingEngine:
        """An engine that is not started yet; a model runs on one at a time."""
        return BatchingEngine(self.model, self.tokenizer, options)

    def generate(self, prompt: str, **sampling: Any) -> str:
        """What follows a text. sampling: as in Sampling. Not for use on an event loop: there is `engine` for that."""

        async def answer() -> str:
            request = Request(prompt=self.tokens(prompt), sampling=Sampling(**sampling))
            async with self.engine() as engine:
                return "".join([delta.text async for delta in engine.submit(request)])

        return asyncio.run(answer())

    def __repr__(self) -> str:
        return f"LanguageModel({self.name!r}, {self.sizes.architecture}, {self.sizes.layers} layers)"

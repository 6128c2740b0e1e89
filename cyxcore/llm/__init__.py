"""Language models: GGUF files of the llama family, their tokenizers, and generating text with many requests at once.

    model = cx.llm.LanguageModel("model.gguf")
    model.generate("Once upon a time", max_tokens=64, seed=1)

Names are loaded on first use: who only wants the types of requests starts no kernels.
"""

import importlib
from typing import TYPE_CHECKING, Any

_NAMES = {
    "LanguageModel": "languagemodel",
    "BatchingEngine": "engine",
    "EngineOptions": "engine",
    "Request": "requests",
    "Sampling": "requests",
    "Delta": "requests",
    "Usage": "requests",
    "TokenLogprob": "requests",
    "Decoder": "decoder",
    "save_gguf": "decoder",
}
__all__ = [*_NAMES]  # noqa: PLE0604

if TYPE_CHECKING:
    from cyxcore.llm.decoder import Decoder as Decoder
    from cyxcore.llm.decoder import save_gguf as save_gguf
    from cyxcore.llm.engine import BatchingEngine as BatchingEngine
    from cyxcore.llm.engine import EngineOptions as EngineOptions
    from cyxcore.llm.languagemodel import LanguageModel as LanguageModel
    from cyxcore.llm.requests import Delta as Delta
    from cyxcore.llm.requests import Request as Request
    from cyxcore.llm.requests import Sampling as Sampling
    from cyxcore.llm.requests import TokenLogprob as TokenLogprob
    from cyxcore.llm.requests import Usage as Usage


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"cyxcore.llm has no {name!r}; it has: {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"cyxcore.llm.{_NAMES[name]}"), name)
    globals()[name] = value
    return value

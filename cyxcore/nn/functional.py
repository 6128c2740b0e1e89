"""cyxcore.functional where PyTorch has it (import cyxcore.nn.functional as F), with PyTorch's words for arguments."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from cyxcore import functional
from cyxcore.functional import *  # noqa: F403

# What PyTorch calls the first argument or two, where they are given by name.
_WORDS: dict[str, tuple[str, ...]] = {
    "cosine_embedding_loss": ("input1", "input2"),
    "margin_ranking_loss": ("input1", "input2"),
    "gaussian_nll_loss": ("input", "target", "var"),
    "pad": ("input", "pad"),
    "embedding": ("input",),
}


def _by_name(function: Callable[..., Any], words: tuple[str, ...]) -> Callable[..., Any]:
    own = list(inspect.signature(function).parameters)
    renamed = {word: name for word, name in zip(words, own, strict=False) if word not in own}
    if not renamed:
        return function

    @functools.wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        return function(*args, **{renamed.get(name, name): value for name, value in options.items()})

    return called


for _name in functional.__all__:
    if inspect.isfunction(_found := getattr(functional, _name)):
        globals()[_name] = _by_name(_found, _WORDS.get(_name, ("input", "target")))

"""cyxcore.functional where PyTorch has it (import cyxcore.nn.functional as F), with PyTorch's words and their order."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from cyxcore import functional
from cyxcore.dispatch import dispatched
from cyxcore.errors import SpecError
from cyxcore.functional import *  # noqa: F403

# What PyTorch calls the first arguments.
_WORDS: dict[str, str] = {
    "affine_grid": "theta",
    "bilinear": "input1 input2",
    "cosine_embedding_loss": "input1 input2",
    "cosine_similarity": "x1 x2",
    "ctc_loss": "log_probs",
    "embedding_bag": "input",
    "gaussian_nll_loss": "input target var",
    "gumbel_softmax": "logits",
    "margin_ranking_loss": "input1 input2",
    "multi_head_attention_forward": "query",
    "one_hot": "tensor",
    "pad": "input pad",
    "pairwise_distance": "x1 x2",
    "scaled_dot_product_attention": "query",
    "triplet_margin_loss": "anchor",
    "triplet_margin_with_distance_loss": "anchor",
}
# PyTorch's order of arguments after the first ones, where it is another one.
_GIVEN_UP = "size_average", "reduce"  # two words of PyTorch's that say what reduction says: None only
_ORDER: dict[str, str] = {
    "binary_cross_entropy": "weight size_average reduce reduction",
    "binary_cross_entropy_with_logits": "weight size_average reduce reduction pos_weight",
    "cosine_embedding_loss": "target margin size_average reduce reduction",
    "cross_entropy": "weight size_average ignore_index reduce reduction label_smoothing",
    "gumbel_softmax": "tau hard eps dim",
    "hinge_embedding_loss": "margin size_average reduce reduction",
    "kl_div": "size_average reduce reduction log_target",
    "l1_loss": "size_average reduce reduction weight",
    "margin_ranking_loss": "target margin size_average reduce reduction",
    "mse_loss": "size_average reduce reduction weight",
    "multi_margin_loss": "p margin weight size_average reduce reduction",
    "multilabel_margin_loss": "size_average reduce reduction",
    "multilabel_soft_margin_loss": "weight size_average reduce reduction",
    "nll_loss": "weight size_average ignore_index reduce reduction",
    "poisson_nll_loss": "log_input full size_average eps reduce reduction",
    "smooth_l1_loss": "size_average reduce reduction beta",
    "soft_margin_loss": "size_average reduce reduction",
    "softmax": "dim _stacklevel dtype",
    "log_softmax": "dim _stacklevel dtype",
    "softmin": "dim _stacklevel dtype",
    "triplet_margin_loss": "positive negative margin p eps swap size_average reduce reduction",
}
# Words that only say how, and change nothing.
_STACKLEVEL: dict[str, Any] = {"_stacklevel": 3}
_IGNORED: dict[str, dict[str, Any]] = {
    "gumbel_softmax": {"eps": 1e-10},
    "log_softmax": _STACKLEVEL,
    "softmax": _STACKLEVEL,
    "softmin": _STACKLEVEL,
}


def _by_name(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    own = list(inspect.signature(function).parameters.values())
    words = _WORDS.get(
        name, "input target" if len(own) > 1 and own[1].name in ("target", "labels") else "input"
    ).split()
    renamed = {word: each.name for word, each in zip(words, own, strict=False)}
    ignored = _IGNORED.get(name, {})
    order = [*words, *_ORDER[name].split()] if name in _ORDER else None
    by_own = {each.name: each for each in own}
    either = inspect.Parameter.POSITIONAL_OR_KEYWORD
    if order is None:
        parameters = [each.replace(name=word) for word, each in zip(words, own, strict=False)] + own[len(words) :]
    else:
        parameters = []
        for word in order:
            default = None if word in _GIVEN_UP else ignored.get(word, inspect.Parameter.empty)
            known = by_own.get(renamed.get(word, word))
            default = default if known is None else known.default
            parameters.append(inspect.Parameter(word, either, default=default))

    @functools.wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        if order is not None and len(args) > len(words):
            if len(args) > len(order):
                raise TypeError(f"{name}() takes {len(order)} positional arguments, got {len(args)}")
            for word, value in zip(order[len(words) :], args[len(words) :], strict=False):
                if word in options:
                    raise TypeError(f"{name}() got several values for argument {word!r}")
                options[word] = value
            args = args[: len(words)]
        if options:
            for word in _GIVEN_UP:
                if options.pop(word, None) is not None:
                    raise SpecError(f"{name}: {word} is given up; say reduction='mean', 'sum' or 'none'")
            options = {renamed.get(word, word): value for word, value in options.items() if word not in ignored}
        return function(*args, **options)

    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return called


for _name in functional.__all__:
    if inspect.isfunction(_found := getattr(functional, _name)):
        globals()[_name] = dispatched(_name, _by_name(_name, _found))

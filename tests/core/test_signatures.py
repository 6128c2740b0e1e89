"""Names and order of the arguments of every layer and function are PyTorch's, but for what a table says and why."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import nn
from cyxcore.errors import SpecError
from tests.core.layer_oracle import agree, agree_module, floats, torch

PLACED = {"device", "dtype"}  # taken by every layer with parameters (cyxcore/torchwords.py), by name
GIVEN_UP = {"size_average", "reduce"}  # of losses: taken by name, and None only
RECURRENT = "input_size hidden_size num_layers bias batch_first dropout bidirectional"
# What inspect cannot see in PyTorch's constructors.
HIDDEN = {
    "GRU": RECURRENT,
    "RNN": RECURRENT.replace("num_layers", "num_layers nonlinearity"),
    "LSTM": RECURRENT + " proj_size",
    **dict.fromkeys("Identity LogSigmoid Module Sigmoid Softmax2d Softsign Tanh Tanhshrink".split(), ""),
}
LAYERS_THAT_DIFFER = {
    "Hardtanh": "min_value and max_value are given up by PyTorch",
    "LogSoftmax": "dim is the last axis unless given, PyTorch guesses",
    "ModuleDict": "the modules are called parts",
    "ModuleList": "the modules are called parts",
    "ParameterDict": "the parameters are called values",
    "RMSNorm": "eps is 1e-6 unless given, PyTorch's is the dtype's",
    "Softmax": "dim is the last axis unless given, PyTorch guesses",
    "Softmin": "dim is the last axis unless given, PyTorch guesses",
    "Transformer": "activation is a name as default, PyTorch's the function of that name",
    "TransformerDecoderLayer": "activation is a name as default, PyTorch's the function of that name",
    "TransformerEncoderLayer": "activation is a name as default, PyTorch's the function of that name",
}
LAYERS_THAT_ARE_NOT_THERE = {
    "Container": "given up by PyTorch",
    "CrossMapLRN2d": "LocalResponseNorm is the same",
    "LinearCrossEntropyLoss": "Linear and CrossEntropyLoss are the same",
    "LinearCrossEntropyOptions": "of LinearCrossEntropyLoss",
    "NLLLoss2d": "given up by PyTorch; NLLLoss is the same",
    "RNNBase": "RNN, LSTM and GRU by a name",
    "RNNCellBase": "what PyTorch's cells share",
    "SyncBatchNorm": "of several processes",
}
SAME = "means the same"
FUNCTIONS_THAT_DIFFER = {
    "affine_grid": f"align_corners False {SAME} as PyTorch's None",
    "cross_entropy": f"ignore_index None {SAME} as PyTorch's -100 on tensors (see cyxcore.functional)",
    "grid_sample": f"align_corners False {SAME} as PyTorch's None",
    "log_softmax": "dim is the last axis unless given, PyTorch guesses",
    "nll_loss": f"ignore_index None {SAME} as PyTorch's -100 on tensors (see cyxcore.functional)",
    "normalize": "no out=: results are new tensors",
    "pad": f"value 0.0 {SAME} as PyTorch's None",
    "rms_norm": "eps is 1e-6 unless given, PyTorch's is the dtype's",
    "softmax": "dim is the last axis unless given, PyTorch guesses",
    "softmin": "dim is the last axis unless given, PyTorch guesses",
}
FUNCTIONS_THAT_ARE_NOT_THERE = {
    **{name: "return_indices=True says it" for name in dir(torch.nn.functional) if name.endswith("_with_indices")},
    **{name: "x = f(x)" for name in "celu_ elu_ hardtanh_ leaky_relu_ relu_ rrelu_ selu_ threshold_".split()},
    **{name: "given up by PyTorch" for name in "upsample upsample_bilinear upsample_nearest".split()},
    "assert_int_or_pair": "of PyTorch's own",
    "conv_tbc": "conv1d with axes exchanged",
    "grouped_mm": "of GPUs",
    "linear_cross_entropy": "cross_entropy(linear(...))",
    "native_channel_shuffle": "channel_shuffle",
    "scaled_grouped_mm": "of GPUs",
    "scaled_mm": "of GPUs",
}
FUNCTIONS = [
    name
    for name in dir(torch.nn.functional)
    if name[0].islower()
    and callable(getattr(torch.nn.functional, name))
    and getattr(getattr(torch.nn.functional, name), "__module__", "") in ("torch.nn.functional", None, "torch._C._nn")
]


def named(parameters: Any) -> dict[str, Any]:
    kinds = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return {each.name: each.default for each in parameters.values() if each.kind not in kinds}


def of_torch(name: str) -> dict[str, Any] | None:
    """{argument: default} of a function; those in C say them in their text, without defaults; None: unknown."""
    function = getattr(torch.nn.functional, name)
    try:
        found = named(inspect.signature(function).parameters)
    except ValueError:
        found = {}
    if found:
        return found
    line = re.search(rf"{name}\((.*?)\)\s*(->|$)", function.__doc__ or "", re.S | re.M)
    if line is None:
        return None
    words = [part.split("=")[0].strip() for part in re.sub(r"\([^()]*\)", "", line[1]).split(",")]
    return {word: ... for word in words if word and word != "*"}


def differences(ours: dict[str, Any], theirs: dict[str, Any], without: set[str]) -> list[str]:
    """Ours may have more arguments behind, and defaults where PyTorch has none."""
    names = [name for name in theirs if name not in without]
    if [*ours][: len(names)] != names:
        return [f"{[*ours]} instead of {names}"]
    none = inspect.Parameter.empty
    pairs = [(name, ours[name], theirs[name]) for name in names]
    return [f"{name}: {mine} instead of {its}" for name, mine, its in pairs if its not in (none, ...) and mine != its]


@pytest.mark.parametrize("name", torch.nn.modules.__all__)
def test_a_layer_is_made_as_in_torch(name: str) -> None:
    if name in LAYERS_THAT_ARE_NOT_THERE:
        assert not hasattr(nn, name)
        return
    if name.startswith("Lazy"):
        pytest.skip("a lazy layer hands on what it is given")
    ours = named(inspect.signature(getattr(nn, name)).parameters)
    theirs = named(inspect.signature(getattr(torch.nn, name)).parameters)
    if name in HIDDEN:
        theirs = dict.fromkeys(HIDDEN[name].split(), ...)
    found = differences(ours, theirs, PLACED | GIVEN_UP)
    assert bool(found) == (name in LAYERS_THAT_DIFFER), found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_called_as_in_torch(name: str) -> None:
    if name in FUNCTIONS_THAT_ARE_NOT_THERE:
        assert not hasattr(nn.functional, name)
        return
    theirs = of_torch(name)
    assert theirs is not None, name
    ours = named(inspect.signature(getattr(nn.functional, name)).parameters)
    found = differences(ours, theirs, set())
    assert bool(found) == (name in FUNCTIONS_THAT_DIFFER), found


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("binary_cross_entropy_with_logits", (np.full(5, 2.0), None, None, "sum", np.full(5, 3.0))),
        ("cosine_embedding_loss", (0.2, None, None, "sum")),
        ("hinge_embedding_loss", (0.5, None, None, "none")),
        ("kl_div", (None, None, "sum", True)),
        ("l1_loss", (None, None, "mean", np.linspace(0.5, 2.0, 20).reshape(4, 5))),
        ("mse_loss", (None, None, "mean", np.linspace(0.5, 2.0, 20).reshape(4, 5))),
        ("mse_loss", (None, None, "none", np.linspace(0.5, 2.0, 20).reshape(4, 5))),
        ("huber_loss", ("mean", 0.5, np.linspace(0.5, 2.0, 20).reshape(4, 5))),
        ("multilabel_soft_margin_loss", (np.linspace(1.0, 2.0, 5), None, None, "sum")),
        ("poisson_nll_loss", (True, True, None, 1e-8, None, "sum")),
        ("smooth_l1_loss", (None, None, "sum", 0.5)),
        ("soft_margin_loss", (None, None, "sum")),
    ],
)
def test_losses_take_their_arguments_by_place(name: str, given: tuple[Any, ...]) -> None:
    binary = name in ("cosine_embedding_loss", "hinge_embedding_loss", "soft_margin_loss")
    target = floats(4, 5, seed=1) if not binary else np.sign(floats(4, 5, seed=1))
    arrays = [floats(4, 5), np.abs(target) / 4.0 if name.startswith(("binary", "multilabel", "poisson")) else target]
    if name == "cosine_embedding_loss":
        arrays = [floats(4, 5), floats(4, 5, seed=1), np.array([1.0, -1.0, 1.0, -1.0])]

    def call(m: Any, *values: Any) -> Any:
        dtype = str(values[0].dtype).split(".")[-1]
        lifted = [m.tensor(each.astype(dtype)) if isinstance(each, np.ndarray) else each for each in given]
        return getattr(m.nn.functional, name)(*values[:-1], values[-1].detach(), *lifted)

    agree(call, *arrays)


def test_labels_take_their_arguments_by_place() -> None:
    labels = np.array([0, 4, 2, 2])

    def call(m: Any, x: Any, t: Any) -> Any:
        f, w = m.nn.functional, m.tensor(np.linspace(0.5, 1.5, 5).astype(str(x.dtype).split(".")[-1]))
        return (
            f.cross_entropy(x, t, w, None, 2, None, "sum", 0.1),
            f.nll_loss(x, t, w, None, 2, None, "mean"),
            f.multi_margin_loss(x, t, 2, 0.5, w, None, None, "sum"),
            f.cross_entropy(input=x, target=t, weight=w),
        )

    agree(call, floats(4, 5), labels)


def test_words_that_pytorch_gave_up_are_refused() -> None:
    with pytest.raises(SpecError, match="mse_loss: size_average is given up; say reduction="):
        nn.functional.mse_loss(cx.zeros(2), cx.zeros(2), False)
    with pytest.raises(TypeError, match="several values for argument 'weight'"):
        nn.functional.cross_entropy(cx.zeros(2, 3), cx.tensor([0, 1]), cx.ones(3), weight=cx.ones(3))
    with pytest.raises(TypeError, match=r"mse_loss\(\) takes 6 positional arguments, got 7"):
        nn.functional.mse_loss(cx.zeros(2), cx.zeros(2), None, None, "sum", None, 1)


CALLS: list[Callable[[Any, Any], Any]] = [
    lambda m, x: m.nn.Softplus(2.0, 1.0)(x),
    lambda m, x: m.nn.functional.softmax(x, 1, dtype=m.float64),
    lambda m, x: m.nn.functional.log_softmax(x, 1, 3, m.float64),
    lambda m, x: m.nn.functional.elu(x * 2.0, 0.5, True),
    lambda m, x: m.nn.functional.interpolate(x, 3, mode="area"),
    lambda m, x: m.nn.functional.interpolate(x, scale_factor=0.45, mode="area"),
    lambda m, x: m.nn.functional.interpolate(x, scale_factor=(1.7, 0.4), mode="bilinear", recompute_scale_factor=True),
    lambda m, x: m.nn.Upsample(scale_factor=1.7, mode="bilinear", recompute_scale_factor=True)(x),
    lambda m, x: m.nn.UpsamplingNearest2d(scale_factor=2)(x),
    lambda m, x: m.nn.UpsamplingNearest2d((5, 3))(x),
    *(
        lambda m, x, mode=mode, to=to: m.nn.functional.interpolate(x, to, mode=mode, antialias=True)
        for mode in ("bilinear", "bicubic")
        for to in ((3, 2), (4, 13), (9, 3))
    ),
    lambda m, x: m.nn.functional.interpolate(x, scale_factor=0.37, mode="bicubic", antialias=True),
    lambda m, x: m.nn.functional.interpolate(x, (4, 3), mode="bilinear", antialias=True, align_corners=True),
]


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_options_that_came_with_pytorchs(number: int) -> None:
    agree(CALLS[number], floats(2, 3, 9, 8))


def test_transformers_take_functions_and_parts() -> None:
    def layers(m: Any) -> Any:
        where = torch if m is torch.nn else cx
        return m.TransformerDecoderLayer(8, 2, 16, 0.0, where.nn.functional.gelu, 1e-4, True, True, False)

    agree_module(layers, floats(2, 5, 8), floats(2, 6, 8, seed=1))

    def whole(m: Any) -> Any:
        own = m.TransformerEncoder(m.TransformerEncoderLayer(8, 2, 16, 0.0, m.SiLU()), 1, None, False)
        return m.Transformer(8, 2, 1, 1, 16, 0.0, "gelu", own)

    agree_module(whole, floats(5, 3, 8), floats(6, 3, 8, seed=1), compiled=False)
    with pytest.raises(SpecError, match="expected activation relu, gelu, silu or a function, got 'sin'"):
        nn.TransformerEncoderLayer(8, 2, activation="sin")


def test_a_mode_of_padding_that_there_is_not_is_refused() -> None:
    with pytest.raises(SpecError, match="expected padding_mode zeros"):
        nn.ConvTranspose1d(1, 1, 2, padding_mode="reflect")
    with pytest.raises(SpecError, match="antialias goes with bilinear and bicubic, not with nearest"):
        nn.functional.interpolate(cx.zeros(1, 1, 2, 2), 2, antialias=True)

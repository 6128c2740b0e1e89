"""Every public function of tensors is the same in cx.compile, value and gradient, or is listed with a reason."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore.dtype import INEXACT
from cyxcore.errors import CyxError
from cyxcore.values import Value
from tests.core.test_compiled_ops import outcomes, weighted

dice = np.random.default_rng(0)


def made(*shape: int) -> Any:
    return cx.tensor(dice.uniform(0.05, 0.95, shape).astype(np.float32))


x, y, z, v, w = made(3, 4), made(3, 4), made(3, 4), made(4), made(4)
square, batch, other = made(4, 4) + 2.0 * cx.eye(4), made(2, 3, 4), made(2, 4, 3)
image, row, volume = made(2, 4, 8, 8), made(2, 4, 8), made(2, 4, 4, 4, 4)
mask, labels = cx.tensor(np.array([[True, False, True, False]] * 3)), cx.tensor([1, 0, 3])
places, rows = cx.tensor([[0, 1, 2, 0], [2, 1, 0, 0], [1, 1, 2, 2]]), cx.tensor([2, 0])
signs, pair = cx.tensor([1.0, -1.0, 1.0]), cx.complex(made(3, 4), made(3, 4))

# What a function is tried with: the first that plain tensors take.
ARGUMENTS: list[tuple[Any, ...]] = [
    *((x,), (x, y), (x, 1), (x, 0.3), (x, 0, 1), (x, (0, 1)), (x, y, z), (x, y, 0.3), (x, 0.2, 0.7)),
    *((v,), (v, w), (square,), (square, v), (square, square), (batch,), (batch, other), (x, v, w), (v, square, w)),
    *((square, square, square), (batch, batch, other), (x, x, square), (made(2, 3, 3), batch, other)),
    *((x, places), (x, 0, rows), (x, 1, places), (x, rows), (x, 0, places, y), (x, 0, rows, y[:2]), (x, 0, rows, 0.5)),
    *((x, labels), (x, mask), (x, mask, y), (mask, x, y), (x, 1, 0, 2), (x, (2, 6)), (x, [1, 3], 1), (x, 3, 1)),
    *((x, y, signs), (x, signs), ((x, y),), (image,), (image, 2), (image, made(4, 4, 3, 3)), (row, 2)),
    *((row, made(4, 4, 3)), (volume,), (volume, 2), (volume, made(4, 4, 2, 2, 2)), (pair,), (places, places)),
    *((x, 0, rows, y[:2], "amax"), (x, 1, places, y, "sum"), (x, (rows,), y[:2]), ("ij,jk", x, square), (mask, mask)),
    *((x, y[0], 0, 1), (x, (1, 1)), (x, [0.2, 0.7]), (labels, x.T), (labels, square), (0.7, x), (places, x)),
]

NUMBER = "it wants numbers, which a value that is computed in the function is not yet"
SHAPE = "the shape of its result depends on the data"
STEPS = "how many steps it takes depends on the data"
MADE = "it makes a tensor of what is no tensor"
MODEL = "it works with a whole model"
ASKS = "it asks about a tensor or a dtype"
SETS = "it is about a setting"
HELPS = "it helps the functions beside it"

# Names with arguments of their own.
OWN: dict[str, tuple[Any, ...]] = {
    "addr": (square, v, w),
    "affine_grid": (made(2, 2, 3), (2, 3, 4, 4)),
    "allclose": (x, y),
    "astype": (x, "float64"),
    "bilinear": (made(5, 3), made(5, 4), made(2, 3, 4)),
    **dict.fromkeys(("bitwise_invert", "bitwise_not"), (places,)),
    "broadcast_to": (x, (2, 3, 4)),
    "expand": (x, 2, 3, 4),
    "fold": (made(2, 4, 9), (4, 4), (2, 2)),
    "fractional_max_pool2d": (image, 2, (4, 4)),
    "fractional_max_pool3d": (volume, 2, (2, 2, 2)),
    "grid_sample": (image, made(2, 3, 3, 2) * 2.0 - 1.0),
    **dict.fromkeys(("layer_norm", "rms_norm"), (x, (4,))),
    "istft": (cx.stft(made(64), 16, return_complex=True), 16),
    "lp_pool2d": (image, 2.0, 2),
    "lp_pool3d": (volume, 2.0, 2),
    "max_unpool1d": (*cx.functional.max_pool1d(row, 2, return_indices=True), 2),
    "max_unpool2d": (*cx.functional.max_pool2d(image, 2, return_indices=True), 2),
    "max_unpool3d": (*cx.functional.max_pool3d(volume, 2, return_indices=True), 2),
    "one_hot": (labels, 4),
    "polygamma": (2, x),
    "put": (x, rows, y[0, :2]),
    **dict.fromkeys(("quantile", "nanquantile"), (x, 0.3)),
    "remat": (lambda value: value.sin() * value, x),
    "scatter_add": (x, rows, y[:2]),
    "tile": (x, (2, 1)),
    "type": (x, "float64"),
    "unflatten": (x, 1, (2, 2)),
    "unfold": (x, 1, 2, 1),
    "functional.unfold": (image, 2),
    "view_as_complex": (made(3, 2),),
    "where": (mask, x, y),
}

# Names that are not tried, and why.
REASONS: dict[str, str] = {
    **dict.fromkeys("argwhere nonzero masked_select bincount".split(), SHAPE),
    **dict.fromkeys("unique unique_all unique_consecutive unique_counts unique_inverse unique_values".split(), SHAPE),
    **dict.fromkeys("gcd lcm matrix_exp".split(), STEPS),
    **dict.fromkeys("histc histogram".split(), "its bins depend on the data; it has no gradient"),
    **dict.fromkeys("linspace logspace arange eye new_tensor tensor from_numpy from_dlpack new_full".split(), NUMBER),
    **dict.fromkeys("full empty ones zeros rand randint randn tril_indices triu_indices randperm".split(), MADE),
    **dict.fromkeys("empty_like full_like ones_like zeros_like fftfreq rfftfreq".split(), MADE),
    **dict.fromkeys((f"{kind}Tensor" for kind in "Bool Byte Double Float Half Int Long".split()), NUMBER),
    **dict.fromkeys((f"{kind}_window" for kind in "bartlett blackman hamming hann kaiser".split()), MADE),
    **dict.fromkeys("compile grad hessian jacobian jvp vjp value_and_grad vmap op".split(), "it takes a function"),
    **dict.fromkeys("load load_graph load_model save save_model rewrite_gguf".split(), "it reads or writes a file"),
    **dict.fromkeys("build describe_model evaluate flops lr_finder predict profile quantize summary".split(), MODEL),
    **dict.fromkeys("item numpy tolist backward register_hook".split(), "it wants the numbers themselves"),
    **dict.fromkeys("bfloat16 cuda to_device device".split(), "what it gives is not NumPy's, or elsewhere"),
    **dict.fromkeys(
        "max_unpool recur multi_head_attention multi_head_attention_forward".split(),
        "the functions and layers above it are tried",
    ),
    **dict.fromkeys("numbers pair triple apply dtype_name complex_dtype is_whole matrices".split(), HELPS),
    **dict.fromkeys("composed sum_dtype unpacked worded".split(), HELPS),
    **dict.fromkeys("allclose can_cast finfo iinfo is_complex is_floating_point is_nonzero is_same_size".split(), ASKS),
    **dict.fromkeys("is_signed is_tensor isdtype numel promote_types result_type dim element_size".split(), ASKS),
    **dict.fromkeys("get_device is_contiguous ndimension nelement shares_memory stride".split(), ASKS),
    **dict.fromkeys("default_device enable_grad no_grad inference_mode is_grad_enabled".split(), SETS),
    **dict.fromkeys("get_default_dtype set_default_dtype get_num_threads set_num_threads numerics".split(), SETS),
    **dict.fromkeys("set_numerics get_rng_state set_rng_state initial_seed manual_seed seed".split(), SETS),
    **dict.fromkeys("get_float32_matmul_precision set_float32_matmul_precision set_printoptions".split(), SETS),
    **dict.fromkeys("are_deterministic_algorithms_enabled use_deterministic_algorithms use_device".split(), SETS),
}


def _functions(holder: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in dir(holder):
        function = getattr(holder, name)
        own = getattr(function, "__module__", "") or ""
        if not name.startswith("_") and callable(function) and not inspect.isclass(function) and "cyxcore" in own:
            yield name, function


def _method(name: str) -> Callable[..., Any]:
    return lambda x, *rest: getattr(x, name)(*rest)


def _methods() -> Iterator[tuple[str, Callable[..., Any]]]:
    known = {name for name, _ in _functions(cx)}
    for name in dir(cx.Tensor):
        in_place = name.endswith("_") and not name.endswith("__")
        if not name.startswith("_") and name not in known and not in_place and callable(getattr(cx.Tensor, name)):
            yield name, _method(name)


HOLDERS = {
    "cx": lambda: _functions(cx),
    "functional": lambda: _functions(cx.functional),
    "linalg": lambda: _functions(cx.linalg),
    "fft": lambda: _functions(cx.fft),
    "special": lambda: _functions(cx.special),
    "Tensor": _methods,
}


def _values(result: Any) -> list[Any]:
    """The tensors of a result, whatever they are in."""
    if isinstance(result, Value):
        return [result]
    return [value for part in result for value in _values(part)] if isinstance(result, (tuple, list)) else []


def _with(arguments: Any, given: Iterator[Any]) -> Any:
    """Arguments with others in the places of their tensors."""
    if isinstance(arguments, (tuple, list)):
        return type(arguments)(_with(part, given) for part in arguments)
    return next(given) if isinstance(arguments, Value) else arguments


def _arguments(function: Callable[..., Any], own: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    """Arguments that plain tensors take; None where nothing fits."""
    for arguments in ARGUMENTS if own is None else [own]:
        try:
            if _values(function(*arguments)):
                return arguments
        except (CyxError, TypeError, ValueError, AttributeError, IndexError, NotImplementedError, KeyError):
            if own is not None:
                raise
    return None


def _difference(function: Callable[..., Any], arguments: tuple[Any, ...]) -> str:
    """What is not the same compiled; empty where nothing is."""
    tensors = _values(arguments)
    followed = tuple(place for place, value in enumerate(tensors) if value.dtype in INEXACT)

    def call(*given: Any) -> Any:
        return tuple(_values(function(*_with(arguments, iter(given)))))

    def slopes(*given: Any) -> Any:
        return cx.grad(lambda *values: weighted(call(*values)), argnums=followed)(*given)

    try:
        plain, compiled = outcomes(call, *tensors)
        if plain != compiled:
            return "values"
        try:
            slopes(*tensors)
        except (CyxError, TypeError):  # no floats, or no gradient: what plain tensors have not
            return ""
        plain, compiled = outcomes(slopes, *tensors)
        return "" if plain == compiled else "gradients"
    except CyxError as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("holder", HOLDERS)
def test_every_function_of_tensors_is_the_same_compiled(holder: str) -> None:
    differ, nothing = {}, []
    for name, function in HOLDERS[holder]():
        full = f"{holder}.{name}"
        if full in REASONS or name in REASONS:
            continue
        cx.manual_seed(3)
        arguments = _arguments(function, OWN.get(full, OWN.get(name)))
        if arguments is None:
            nothing.append(full)
            continue
        found = _difference(function, arguments)
        if found:
            differ[full] = found
    assert not nothing, "give each arguments in OWN, or a reason in REASONS"
    assert not differ


def test_no_reason_is_left_behind() -> None:
    names = {name for functions in HOLDERS.values() for name, _ in functions()}
    names |= {f"{holder}.{name}" for holder, functions in HOLDERS.items() for name, _ in functions()}
    assert set(REASONS) | set(OWN) <= names


D = cx.distributions
DISTRIBUTIONS: dict[str, Callable[..., Any]] = {
    "Bernoulli": lambda a, b: D.Bernoulli(probs=a),
    "Beta": lambda a, b: D.Beta(a, b),
    "Binomial": lambda a, b: D.Binomial(5, probs=a),
    "Categorical": lambda a, b: D.Categorical(logits=a),
    "Cauchy": lambda a, b: D.Cauchy(a, b),
    "Chi2": lambda a, b: D.Chi2(a),
    "Dirichlet": lambda a, b: D.Dirichlet(a),
    "Exponential": lambda a, b: D.Exponential(a),
    "Gamma": lambda a, b: D.Gamma(a, b),
    "Geometric": lambda a, b: D.Geometric(probs=a),
    "Gumbel": lambda a, b: D.Gumbel(a, b),
    "HalfCauchy": lambda a, b: D.HalfCauchy(a),
    "HalfNormal": lambda a, b: D.HalfNormal(a),
    "Independent": lambda a, b: D.Independent(D.Normal(a, b), 1),
    "Laplace": lambda a, b: D.Laplace(a, b),
    "LogNormal": lambda a, b: D.LogNormal(a, b),
    "MixtureSameFamily": lambda a, b: D.MixtureSameFamily(D.Categorical(logits=a), D.Normal(a, b)),
    "Multinomial": lambda a, b: D.Multinomial(4, probs=a),
    "MultivariateNormal": lambda a, b: D.MultivariateNormal(a, scale_tril=cx.diag_embed(b)),
    "NegativeBinomial": lambda a, b: D.NegativeBinomial(5, probs=a),
    "Normal": lambda a, b: D.Normal(a, b),
    "OneHotCategorical": lambda a, b: D.OneHotCategorical(logits=a),
    "Poisson": lambda a, b: D.Poisson(a),
    "StudentT": lambda a, b: D.StudentT(a * 5.0, a, b),
    "TransformedDistribution": lambda a, b: D.TransformedDistribution(D.Normal(a, b), D.TanhTransform()),
    "Uniform": lambda a, b: D.Uniform(a, a + b),
}
NO_DISTRIBUTION = {"Distribution"} | {name for name in dir(D) if name.endswith("Transform")}


def test_every_distribution_has_a_case() -> None:
    classes = {name for name in dir(D) if inspect.isclass(getattr(D, name))}
    assert set(DISTRIBUTIONS) | NO_DISTRIBUTION == classes


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_distribution_is_the_same_compiled(name: str) -> None:
    """Its probabilities, moments, entropy and draws, with the gradients of those that have one."""
    of = DISTRIBUTIONS[name]
    cx.manual_seed(2)
    drawn = of(x, y).sample()
    asked: list[Callable[[Any], Any]] = [
        lambda one: one.log_prob(drawn),
        lambda one: one.entropy(),
        lambda one: one.mean,
        lambda one: one.variance,
        lambda one: one.rsample((2,)),
        lambda one: one.sample((2,)),
    ]
    told = []
    for question in asked:
        try:
            question(of(x, y))
            told.append(question)
        except (CyxError, NotImplementedError, AttributeError):  # it has none
            assert question not in (asked[0], asked[-1])

    def values(a: Any, b: Any) -> Any:
        return tuple(question(of(a, b)) for question in told)

    assert _difference(values, (x, y)) == ""

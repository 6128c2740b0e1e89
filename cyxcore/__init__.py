"""Cyx's tensor core: define a model, train it, save it. No network.

    import cyxcore as cx

Names are loaded on first use, so importing the vocabulary (graph, ops, layers, spec) starts no
kernels and needs no NumPy.
"""

import importlib
import math
from typing import TYPE_CHECKING, Any

from cyxcore import torchpaths, torchwords
from cyxcore.dtype import DTYPES, PYTORCHS

__version__ = "0.1.0"
__array_api_version__ = "2025.12"

e, inf, nan, pi, newaxis = math.e, math.inf, math.nan, math.pi, None

torchpaths.install()

_NAMES: dict[str, str] = {
    "__array_namespace_info__": "inspection",
    **dict.fromkeys(("finfo", "iinfo", "can_cast", "isdtype", "result_type"), "dtype"),
    **dict.fromkeys(
        (
            "abs acos acosh add asin asinh astype atan atan2 atanh bitwise_and bitwise_invert bitwise_left_shift "
            "bitwise_or bitwise_right_shift bitwise_xor ceil clip conj copysign cos cosh divide equal exp expm1 floor "
            "floor_divide greater greater_equal hypot imag isfinite isinf isnan less less_equal log log10 log1p log2 "
            "logaddexp logical_and logical_not logical_or logical_xor multiply negative nextafter not_equal positive "
            "pow real reciprocal remainder round sign signbit sin sinh sqrt square subtract tan tanh trunc"
        ).split(),
        "elementwise",
    ),
    "Graph": "graph",
    "build": "layers",
    "load_graph": "recipe",
    "trace": "tracing",
    "compile": "compiled",
    "Plan": "plan",
    "use_device": "device",
    "default_device": "device",
    "set_numerics": "precision",
    "numerics": "precision",
    "Tensor": "eager",
    **dict.fromkeys(
        (
            "arange asarray empty empty_like eye from_dlpack from_numpy full full_like linspace meshgrid ones "
            "ones_like rand randn tensor tril triu zeros zeros_like"
        ).split(),
        "creation",
    ),
    "manual_seed": "eager",
    "no_grad": "eager",
    "enable_grad": "eager",
    "grad": "autograd",
    "value_and_grad": "autograd",
    "vjp": "autograd",
    "jvp": "autograd",
    "jacobian": "autograd",
    "hessian": "autograd",
    "Function": "autograd",
    "remat": "autograd",
    "vmap": "func",
    "autocast": "amp",
    "op": "userops",
    "where": "functional",
    "maximum": "functional",
    "minimum": "functional",
    "concat": "functional",
    "stack": "functional",
    "summary": "overview",
    "flops": "overview",
    "take_along_axis": "functional",
    **dict.fromkeys(
        (
            "broadcast_arrays broadcast_shapes broadcast_to expand_dims flip moveaxis permute_dims repeat reshape roll "
            "squeeze take tile unstack"
        ).split(),
        "manipulation",
    ),
    **dict.fromkeys(
        ("all any count_nonzero cumulative_prod cumulative_sum diff max mean min prod std sum var").split(),
        "statistics",
    ),
    **dict.fromkeys(
        (
            "argmax argmin argsort isin nonzero searchsorted sort unique_all unique_counts unique_inverse unique_values"
        ).split(),
        "searching",
    ),
    "einsum": "einsum",
    **dict.fromkeys("allclose bincount isclose logsumexp median scatter_add split topk".split(), "extras"),
    **dict.fromkeys("cholesky matmul matrix_power matrix_transpose qr slogdet svd tensordot vecdot".split(), "linalg"),
    **dict.fromkeys("cholesky_inverse cholesky_solve matrix_exp triangular_solve".split(), "solving"),
    **dict.fromkeys(
        "bartlett_window blackman_window hamming_window hann_window istft kaiser_window stft".split(), "signals"
    ),
    **dict.fromkeys(
        (
            "adaptive_avg_pool1d avg_pool1d batch_norm bilinear celu channel_shuffle conv1d conv2d conv3d "
            "conv_transpose1d conv_transpose2d conv_transpose3d dropout embedding group_norm hardshrink instance_norm "
            "kl_div layer_norm max_pool1d max_pool2d max_pool3d pairwise_distance pixel_shuffle pixel_unshuffle prelu "
            "rms_norm selu threshold triplet_margin_loss"
        ).split(),
        "nn.functional",
    ),
    **dict.fromkeys(
        (
            "absolute addcdiv addcmul addmm amax amin arccos arcsin bitwise_not "
            "bmm cat cdist concatenate chunk clamp clone cosine_similarity cross "
            "cumprod cumsum det diag diag_embed diagonal dist div dot eq erf flatten frac fmod gather ge gt hstack "
            "index_add index_fill index_select inverse is_complex is_floating_point is_tensor le lerp "
            "log_softmax lt masked_fill masked_select "
            "mm movedim mul mv nan_to_num narrow ne neg norm numel outer permute ravel relu repeat_interleave "
            "row_stack rsqrt scatter select sigmoid softmax sub swapaxes t take_along_dim transpose true_divide unbind "
            "unflatten unique unsqueeze vstack xlogy"
        ).split(),
        "torchnames",
    ),
    **dict.fromkeys(
        (
            "addbmm addmv addr adjoint aminmax angle arccosh arcsinh arctan arctan2 arctanh argwhere atleast_1d "
            "atleast_2d atleast_3d baddbmm block_diag broadcast_tensors bucketize cartesian_prod clamp_max clamp_min "
            "column_stack combinations corrcoef cov cummax cummin deg2rad diagflat digamma dsplit dstack erfc erfinv "
            "exp2 fix fliplr flipud float_power fmax fmin gcd ger heaviside histc hsplit index_copy index_put inner "
            "is_nonzero is_same_size is_signed isneginf isposinf isreal kron kthvalue lcm ldexp lgamma logaddexp2 "
            "logcumsumexp logdet logit masked_scatter msort nanmean nansum pinverse polar promote_types rad2deg rot90 "
            "rsub select_scatter sgn sinc slice_scatter split_with_sizes std_mean swapdims "
            "tensor_split trapezoid trapz unique_consecutive var_mean vdot view_as_complex view_as_real vsplit"
        ).split(),
        "torchrarer",
    ),
    **dict.fromkeys(
        (
            "cumulative_trapezoid frexp gradient histogram index_reduce mode nanmedian nanquantile pdist put quantile "
            "renorm scatter_reduce unravel_index vander"
        ).split(),
        "torchstatistics",
    ),
    **dict.fromkeys(
        (
            "BoolTensor ByteTensor DoubleTensor FloatTensor HalfTensor IntTensor LongTensor Size complex logspace seed "
            "channels_last channels_last_3d contiguous_format preserve_format "
            "get_float32_matmul_precision set_float32_matmul_precision "
            "are_deterministic_algorithms_enabled set_default_dtype set_printoptions use_deterministic_algorithms "
            "get_default_dtype get_num_threads get_rng_state initial_seed is_grad_enabled poisson randint_like "
            "set_num_threads set_rng_state "
            "as_tensor bernoulli inference_mode multinomial normal rand_like randint randn_like randperm "
            "set_grad_enabled tril_indices triu_indices"
        ).split(),
        "torchfunctions",
    ),
    "Generator": "random",
    "Trainer": "training",
    "profile": "profiling",
    "lr_finder": "lrfinder",
    "evaluate": "evaluation",
    "predict": "evaluation",
    "save": "saving",
    "load": "saving",
    "Model": "model",
    "save_model": "model",
    "load_model": "model",
    "describe_model": "modelinfo",
    "quantize": "quantization",
    "rewrite_gguf": "gguf.rewriting",
}
# Whose functions take PyTorch's words for their arguments.
_WORDED = frozenset(
    "elementwise extras functional linalg manipulation searching signals solving statistics torchnames torchrarer "
    "torchstatistics creation".split()
)
_DRAWN_LIKE = frozenset(
    "bernoulli multinomial poisson rand_like randint_like randn_like".split()
)  # the same of torchfunctions
_MODULES = (
    "amp",
    "autograd",
    "backends",
    "callbacks",
    "cuda",
    "func",
    "metrics",
    "utils",
    "llm",
    "nn",
    "optim",
    "lr_scheduler",
    "functional",
    "linalg",
    "fft",
    "random",
    "errors",
    "spec",
    "special",
    "testing",
    "data",
    "device",
    "distributions",
    "transforms",
    "onnx",
    "patterns",
)

__all__ = [*_NAMES, *_MODULES, *DTYPES, "e", "inf", "nan", "pi", "__version__", "__array_api_version__"]  # noqa: PLE0604

if TYPE_CHECKING:
    from cyxcore import amp as amp
    from cyxcore import autograd as autograd
    from cyxcore import backends as backends
    from cyxcore import callbacks as callbacks
    from cyxcore import cuda as cuda
    from cyxcore import data as data
    from cyxcore import device as device
    from cyxcore import distributions as distributions
    from cyxcore import errors as errors
    from cyxcore import fft as fft
    from cyxcore import func as func
    from cyxcore import functional as functional
    from cyxcore import linalg as linalg
    from cyxcore import llm as llm
    from cyxcore import lr_scheduler as lr_scheduler
    from cyxcore import metrics as metrics
    from cyxcore import nn as nn
    from cyxcore import onnx as onnx
    from cyxcore import optim as optim
    from cyxcore import patterns as patterns
    from cyxcore import preprocessing as preprocessing
    from cyxcore import random as random
    from cyxcore import spec as spec
    from cyxcore import special as special
    from cyxcore import testing as testing
    from cyxcore import transforms as transforms
    from cyxcore import utils as utils
    from cyxcore.amp import autocast as autocast
    from cyxcore.autograd import Function as Function
    from cyxcore.autograd import grad as grad
    from cyxcore.autograd import hessian as hessian
    from cyxcore.autograd import jacobian as jacobian
    from cyxcore.autograd import jvp as jvp
    from cyxcore.autograd import remat as remat
    from cyxcore.autograd import value_and_grad as value_and_grad
    from cyxcore.autograd import vjp as vjp
    from cyxcore.compiled import compile as compile
    from cyxcore.creation import *  # noqa: F403
    from cyxcore.device import default_device as default_device
    from cyxcore.device import use_device as use_device
    from cyxcore.eager import Tensor as Tensor
    from cyxcore.eager import enable_grad as enable_grad
    from cyxcore.eager import manual_seed as manual_seed
    from cyxcore.eager import no_grad as no_grad
    from cyxcore.einsum import einsum as einsum
    from cyxcore.elementwise import *  # noqa: F403
    from cyxcore.evaluation import evaluate as evaluate
    from cyxcore.evaluation import predict as predict
    from cyxcore.extras import *  # noqa: F403
    from cyxcore.func import vmap as vmap
    from cyxcore.functional import concat as concat
    from cyxcore.functional import maximum as maximum
    from cyxcore.functional import minimum as minimum
    from cyxcore.functional import stack as stack
    from cyxcore.functional import take_along_axis as take_along_axis
    from cyxcore.functional import where as where
    from cyxcore.gguf.rewriting import rewrite_gguf as rewrite_gguf
    from cyxcore.graph import Graph as Graph
    from cyxcore.layers import build as build
    from cyxcore.linalg import matmul as matmul
    from cyxcore.linalg import matrix_transpose as matrix_transpose
    from cyxcore.linalg import tensordot as tensordot
    from cyxcore.linalg import vecdot as vecdot
    from cyxcore.lrfinder import lr_finder as lr_finder
    from cyxcore.manipulation import *  # noqa: F403
    from cyxcore.model import Model as Model
    from cyxcore.model import load_model as load_model
    from cyxcore.model import save_model as save_model
    from cyxcore.modelinfo import describe_model as describe_model
    from cyxcore.overview import flops as flops
    from cyxcore.overview import summary as summary
    from cyxcore.plan import Plan as Plan
    from cyxcore.precision import numerics as numerics
    from cyxcore.precision import set_numerics as set_numerics
    from cyxcore.profiling import profile as profile
    from cyxcore.quantization import quantize as quantize
    from cyxcore.random import Generator as Generator
    from cyxcore.recipe import load_graph as load_graph
    from cyxcore.saving import load as load
    from cyxcore.saving import save as save
    from cyxcore.searching import *  # noqa: F403
    from cyxcore.statistics import *  # noqa: F403
    from cyxcore.torchfunctions import *  # noqa: F403
    from cyxcore.tracing import trace as trace
    from cyxcore.training import Trainer as Trainer
    from cyxcore.userops import op as op


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(f"cyxcore.{_NAMES[name]}"), name)
        if _NAMES[name] in _WORDED or name in _DRAWN_LIKE:
            value = torchwords.spoken("cyxcore", name, value, torchwords.ARGUMENTS.get(name, "input"))
            value = importlib.import_module("cyxcore.dispatch").dispatched(name, value)
    elif name in _MODULES:
        value = importlib.import_module(f"cyxcore.{name}")
    elif name in DTYPES:
        value = name
    elif name in PYTORCHS:
        return PYTORCHS[name]
    elif said := torchpaths.absent(name):
        raise AttributeError(said)
    else:
        near = importlib.import_module("difflib").get_close_matches(name, __all__, 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; dir(cyxcore) names what it has"
        raise AttributeError(f"cyxcore has no {name!r}{hint}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Modules by PyTorch's paths: `from cyxcore.optim.lr_scheduler import StepLR`, and so on.

A path of PATHS is a module of its own that has what the module has where it stands here. It is made when it is first
imported; nothing of it is loaded before.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Each path below cyxcore, and the module here that has its names; after a colon, an object in that module.
PATHS = {
    "autograd.function": "autograd",
    "autograd.functional": "derivatives",
    "autograd.variable": "autograd",
    "backends.cuda": "backends:cuda",
    "backends.cudnn": "backends:cudnn",
    "backends.mps": "backends:mps",
    "cuda.amp": "amp",
    "nn.modules": "nn",
    "nn.parameter": "nn",
    "nn.utils.stateless": "func",
    "optim.lr_scheduler": "lr_scheduler",
    "optim.optimizer": "optimizer",
    "optim.swa_utils": "swa_utils",
    "utils.checkpoint": "utils:checkpoint",
    "utils.data": "data",
    **{
        f"nn.modules.{name}": "nn"
        for name in (
            "activation batchnorm container conv distance dropout flatten fold instancenorm linear loss module "
            "normalization padding pixelshuffle pooling rnn sparse transformer upsampling"
        ).split()
    },
    **{f"nn.utils.{name}": "nn.utils" for name in ("clip_grad", "convert_parameters")},
    **{
        f"optim.{name}": "optim"
        for name in "adadelta adagrad adam adamax adamw asgd lbfgs nadam radam rmsprop rprop sgd".split()
    },
    **{f"utils.data.{name}": "data" for name in ("dataloader", "dataset", "sampler")},
    **{
        f"distributions.{name}": "distributions"
        for name in (
            "bernoulli beta binomial categorical cauchy chi2 dirichlet distribution exponential gamma geometric gumbel "
            "half_cauchy half_normal independent kl laplace log_normal mixture_same_family multinomial "
            "multivariate_normal negative_binomial normal one_hot_categorical poisson studentT "
            "transformed_distribution transforms uniform"
        ).split()
    },
}

# Base classes that PyTorch has below nn.modules only, which programs ask with isinstance: where they stand here.
BASES = {
    "_BatchNorm": "nn.norms:_BatchNorm",
    "_InstanceNorm": "nn.norms:_InstanceNorm",
    "_Loss": "nn.losses:_Loss",
    "RNNBase": "nn.recurrent:_Recurrent",
    "RNNCellBase": "nn.recurrent:_Cell",
}

# What is not here, and what to do instead.
_ONE_DEVICE = "a process uses one device; leave the wrapper out"
INSTEAD = {
    "_dynamo": "cx.compile compiles; leave it out",
    "ao": "cx.quantize works on whole models",
    "cuda.nccl": "a process uses one GPU; jobs run on several nodes through cyxnet",
    "distributed": "a process uses one device; jobs run on several nodes through cyxnet",
    "export": "cx.trace gives the graph of a model, cx.save_model a file of it, cx.onnx one for other tools",
    "fx": "cx.trace gives the graph of a model",
    "hub": "download the weights and load them: cx.load, model.load_state_dict",
    "jit": "cx.compile compiles, cx.trace gives the graph of a model",
    "multiprocessing": "threads share tensors, and kernels use them",
    "nn.parallel": _ONE_DEVICE,
    "nn.utils.prune": "write masked weights with cx.nn.utils.parametrize",
    "profiler": "cx.profile shows what a function costs",
    "sparse": "there are no sparse tensors",
    "utils.tensorboard": "cx.callbacks and cyxcore.history keep what a training tells",
    "utils.cpp_extension": "cx.op makes an operation of a Python function",
}


# Names of PyTorch's that are no modules: the same.
NAMES_INSTEAD = {
    "nn.DataParallel": _ONE_DEVICE,
    "onnx.export": "cx.onnx.save(path, *cx.trace(model, shape_of_one_sample)) writes the file",
    "optim.SparseAdam": "no gradient is sparse here; use Adam",
    "nn.SyncBatchNorm": "a process uses one device: BatchNorm2d is in step with itself",
    "set_default_device": "say device= where a tensor is made, or x.to(device)",
    "set_default_tensor_type": "floats are float32; say dtype= and device=, or model.double()",
}


def _object(home: str) -> Any:
    """A module below cyxcore, or after a colon an object in it."""
    where, _, inner = home.partition(":")
    found = importlib.import_module(f"cyxcore.{where}")
    return getattr(found, inner) if inner else found


def below(parent: str) -> Callable[[str], Any]:
    """A module's __getattr__: the paths below it, for a program that imported the module alone: nn.modules.loss.

    parent: its name below cyxcore. Raises AttributeError that says what to do instead, where that is known.
    """

    def found(name: str) -> Any:
        path = f"{parent}.{name}"
        if path in PATHS:
            return importlib.import_module(f"cyxcore.{path}")
        raise AttributeError(absent(path) or f"cyxcore.{parent} has no {name!r}")

    return found


def absent(path: str) -> str:
    """What to do instead of a name of PyTorch's that is not here; empty where nothing is known."""
    said = INSTEAD.get(path) or NAMES_INSTEAD.get(path)
    return f"cyxcore has no {path}: {said}" if said else ""


class _Elsewhere(ModuleType):
    """A module that has the names of another."""

    def __init__(self, name: str, home: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []  # so that there may be paths below it
        self._home: Any = _object(home)
        self.__doc__ = getattr(self._home, "__doc__", None)
        listed = getattr(self._home, "__all__", None)
        self.__all__ = [each for each in vars(self._home) if each[:1] != "_"] if listed is None else list(listed)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        path = f"{self.__name__.removeprefix('cyxcore.')}.{name}"
        if path in PATHS:
            return importlib.import_module(f"cyxcore.{path}")
        if path.startswith("nn.modules.") and name in BASES:
            return _object(BASES[name])
        return getattr(self._home, name)

    def __dir__(self) -> list[str]:
        return sorted(self.__all__)


class _Maker:
    """Makes the module of a path; there is nothing to run in it."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Elsewhere(spec.name, PATHS[spec.name.removeprefix("cyxcore.")])

    def exec_module(self, module: ModuleType) -> None:
        return None


class _Finder:
    """Asked after every other: for what no file is there."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if not fullname.startswith("cyxcore."):
            return None
        name = fullname.removeprefix("cyxcore.")
        if name in PATHS:
            return ModuleSpec(fullname, _Maker())  # type: ignore[arg-type]
        if name in INSTEAD:
            raise ModuleNotFoundError(absent(name), name=fullname)
        return None


def install() -> None:
    """Let Python find these paths: once in a process."""
    if not any(isinstance(each, _Finder) for each in sys.meta_path):
        sys.meta_path.append(_Finder())

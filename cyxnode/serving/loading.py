"""From a file to what answers about it: a row for each ending."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from cyxcore import device as devices
from cyxcore.errors import FormatError, SpecError
from cyxcore.model import FORMATS, format_of, load_model
from cyxcore.paths import check_file
from cyxnode.serving.app import Served
from cyxnode.serving.batcher import Batcher
from cyxnode.serving.predictor import Predictor
from cyxnode.serving.tensors import TensorModel

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,199}")


def load(args: argparse.Namespace) -> Served:
    """What answers about args.file. Raises FormatError, SpecError, DataError and what reading a model raises."""
    path: Path = args.file
    name = args.name or name_of(path.stem)
    if not NAME.fullmatch(name):
        raise SpecError(f"--name: expected letters, digits and . _ : / - after the first, got {name[:80]!r}")
    loader = LOADERS.get(path.suffix.lower())
    if loader is None:
        format_of(path)  # which says why not
        raise FormatError(f"{path}: expected a model that ends in {', '.join(LOADERS)}, got {path.suffix!r}")
    check_file(path)
    if args.threads:
        kernels = getattr(devices.backend(devices.default_device()), "kernels", None)
        if kernels:
            kernels.set_num_threads(args.threads)
    return loader(path, name, args)


def name_of(called: str) -> str:
    """What a file or a job is called as the name of a model: with dashes for what that may not have."""
    return re.sub(r"[^A-Za-z0-9._:/-]+", "-", called)[:200].strip("-._:/") or "model"


def _tensors(path: Path, name: str, args: argparse.Namespace) -> Served:
    model = load_model(path)
    predictor = Predictor(model.graph, model.weights, args.max_batch, args.memory)
    return TensorModel(name, model, predictor, Batcher(predictor, args.max_wait_ms / 1000, args.max_queue))


def _language(path: Path, name: str, args: argparse.Namespace) -> Served:
    from cyxnode.serving.gguf import open_gguf  # what it needs is for who serves one

    return open_gguf(path, name, args.context, args.memory)


LOADERS: dict[str, Callable[[Path, str, argparse.Namespace], Served]] = {
    **dict.fromkeys(FORMATS, _tensors),
    ".gguf": _language,
}

"""The models that are served, written for us and for onnxruntime, and a request for each."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cyxcore import nn
from cyxcore.model import Facts, Model
from cyxcore.tracing import trace


class Case(NamedTuple):
    """shape: of one sample."""

    name: str
    shape: tuple[int, ...]
    ours: Path
    onnx: Path
    body: Path


class Encoder(nn.Module):
    """Two transformer layers over 32 places of 64 features, their mean, 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.TransformerEncoderLayer(64, 4, 128, batch_first=True) for _ in range(2)])
        self.head = nn.Linear(64, 10)

    def forward(self, x: Any) -> Any:
        return self.head(self.layers(x).mean(1))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 10),
    )


def _wide() -> nn.Module:
    """Twenty times the work of the small CNN, for a question of the same size."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128 * 7 * 7, 10),
    )


MODULES = {
    "mlp": (_mlp, (64,)),
    "cnn": (_cnn, (1, 28, 28)),
    "wide_cnn": (_wide, (1, 28, 28)),
    "encoder": (Encoder, (32, 64)),
}


def make(name: str, folder: Path) -> Case:
    """The files of a model, with weights as they are drawn."""
    module, shape = MODULES[name]
    traced = trace(module(), shape)
    model = Model(traced.graph, traced.weights, Facts())
    case = Case(name, shape, folder / f"{name}.safetensors", folder / f"{name}.onnx", folder / f"{name}.json")
    model.save(case.ours)
    model.export(case.onnx)
    sample = np.random.default_rng(0).standard_normal(shape).round(4)
    case.body.write_text(json.dumps({"input": sample.tolist()}))
    return case

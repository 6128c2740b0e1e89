"""The training steps that are compared, written with cyxcore.nn and, the same, with torch.nn."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import cyxcore as cx
from cyxcore.spec import OptimizerSpec
from cyxcore.steps import CompiledStep

Array = np.ndarray[Any, Any]


class Workload(NamedTuple):
    name: str
    batch: int
    shape: tuple[int, ...]  # of one sample
    classes: int
    tokens: bool
    optimizer: OptimizerSpec


def workloads(quick: bool) -> list[Workload]:
    adam, adamw = OptimizerSpec(name="adam"), OptimizerSpec(name="adamw", weight_decay=0.01)
    sgd = OptimizerSpec(name="sgd", learning_rate=0.01, momentum=0.9)
    found = [
        Workload("mlp_small", 64, (64,), 10, False, adam),
        Workload("mlp_large", 256, (784,), 10, False, adamw),
        Workload("cnn", 64, (1, 28, 28), 10, False, sgd),
        Workload("resnet", 32, (64, 32, 32), 10, False, sgd),
        Workload("gpt", 16, (128,), 256, True, adamw),
        Workload("gpt_large", 16, (256,), 256, True, adamw),
    ]
    return found[:3] if quick else found


def data(load: Workload) -> tuple[Array, Array]:
    """One batch: inputs, and a label for each row or token."""
    rng = np.random.default_rng(7)
    if load.tokens:
        tokens = rng.integers(0, load.classes, (load.batch, *load.shape))
        return tokens, np.roll(tokens, -1, 1)
    return rng.normal(size=(load.batch, *load.shape)).astype(np.float32), rng.integers(0, load.classes, load.batch)


def module(load: Workload, nn: Any) -> Any:
    """The model, made of one of the two libraries' layers (their constructors agree)."""
    if load.name == "mlp_small":
        return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    if load.name == "mlp_large":
        wide = nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU()
        return nn.Sequential(*wide, nn.Linear(1024, 10))
    if load.name == "cnn":
        images = nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)
        return nn.Sequential(*images, nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Linear(128, 10))
    if load.name == "resnet":
        blocks = [
            part
            for _ in range(4)
            for part in (nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        ]
        return nn.Sequential(*blocks, nn.AvgPool2d(32), nn.Flatten(), nn.Linear(64, 10))
    layers, width, heads = (4, 128, 4) if load.name == "gpt" else (8, 512, 8)
    net = _gpt(nn, load.classes, load.shape[0], layers, width, heads)
    mask: Any = causal(load.shape[0])
    net.register_buffer("mask", importlib.import_module(nn.__name__.partition(".")[0]).asarray(mask))
    return net


def _gpt(nn: Any, vocabulary: int, length: int, layers: int, width: int, heads: int) -> Any:
    """Pre-norm blocks with causal attention written out, so that both libraries are asked for the same work."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down, self.act = nn.Linear(width, 4 * width), nn.Linear(4 * width, width), nn.GELU()
            self.soft = nn.Softmax(-1)

        def forward(self, x: Any, mask: Any) -> Any:
            rows, size = x.shape[0], width // heads
            qkv = self.qkv(self.norm1(x)).reshape(rows, length, 3, heads, size)
            qkv = qkv.permute(2, 0, 3, 1, 4) if hasattr(qkv, "permute") else qkv.transpose(2, 0, 3, 1, 4)
            q, k, v = qkv[0], qkv[1], qkv[2]  # (B, heads, T, size)
            scores = q @ k.mT * (1.0 / size**0.5) + mask  # (B, heads, T, T)
            mixed = self.soft(scores) @ v
            mixed = mixed.permute(0, 2, 1, 3) if hasattr(mixed, "permute") else mixed.transpose(0, 2, 1, 3)
            x = x + self.out(mixed.reshape(rows, length, width))
            return x + self.down(self.act(self.up(self.norm2(x))))

    class Gpt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
            self.blocks = nn.ModuleList([Block() for _ in range(layers)])
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

        def forward(self, x: Any) -> Any:
            x = self.tokens(x) + self.places.weight
            for block in self.blocks:
                x = block(x, self.mask)
            return self.head(self.norm(x))

    return Gpt()


def causal(length: int) -> Array:
    return np.triu(np.full((length, length), -1e9, np.float32), 1)


def cyx_step(load: Workload, device: str) -> tuple[Callable[[], Any], CompiledStep]:
    """The step compiled for a device, with its batch there; and what compiled it."""
    cx.manual_seed(1)
    net = module(load, cx.nn).to(device)
    inputs, labels = data(load)
    x, y = cx.tensor(inputs, device=device), cx.tensor(labels.reshape(-1), device=device)
    spec, parameters = load.optimizer, list(net.parameters())
    optimizer = {
        "adam": lambda: cx.optim.Adam(parameters, lr=spec.learning_rate),
        "adamw": lambda: cx.optim.AdamW(parameters, lr=spec.learning_rate, weight_decay=spec.weight_decay),
        "sgd": lambda: cx.optim.SGD(parameters, lr=spec.learning_rate, momentum=spec.momentum),
    }[spec.name]()

    def step(x: Any, y: Any) -> Any:
        loss = cx.functional.cross_entropy(net(x).reshape(-1, load.classes), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    compiled = cx.compile(step, device=device)
    assert isinstance(compiled, CompiledStep)
    return lambda: compiled(x, y), compiled

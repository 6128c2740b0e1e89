"""Models of the usual kinds on real data: digits to a known figure, characters to the loss of PyTorch's model.

The text is Python's own standard library, which is wherever Python is.
"""

import argparse
import inspect
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import functional as F
from cyxcore import nn, optim

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="the oracle, PyTorch, is not installed")

DIGITS = Path(__file__).parents[2] / "examples" / "digits.csv"
STEPS, BATCH, LENGTH, WIDTH, LETTERS = 100, 8, 24, 48, 96


@pytest.fixture(autouse=True)
def one_thread_for_pytorch() -> Iterator[None]:
    """More of them wait for each other on a machine that has other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_small_convolutional_net_reads_985_of_1000_digits() -> None:
    table = np.loadtxt(DIGITS, delimiter=",", skiprows=1, dtype=np.float32)
    x, y = table[:, :-1].reshape(-1, 1, 8, 8) / 16, table[:, -1].astype(np.int64)
    cx.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 48, 3, padding=1),
        nn.BatchNorm2d(48),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(768, 10),
    )
    optimizer = optim.AdamW(model.parameters(), lr=0.004)
    epochs = 15
    schedule = cx.lr_scheduler.OneCycleLR(optimizer, 0.004, math.ceil(0.8 * len(x) / 64) * epochs)
    trainer = cx.Trainer(
        model, nn.CrossEntropyLoss(), optimizer, scheduler=schedule, scheduler_per="step", metrics=["accuracy"]
    )
    said = trainer.fit(x, y, epochs=epochs, batch_size=64, validation=0.2, progress=False)
    assert said.column("validation_accuracy")[-1] >= 0.985


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(LETTERS, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.out = nn.Linear(WIDTH, LETTERS)

    def forward(self, x: Any) -> Any:
        return self.out(self.lstm(self.letters(x))[0]).reshape(-1, LETTERS)


class TheirRecurrent(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.letters = torch.nn.Embedding(LETTERS, WIDTH)
        self.lstm = torch.nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.out = torch.nn.Linear(WIDTH, LETTERS)

    forward = Recurrent.forward


class Gpt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(LETTERS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, **options)
        self.blocks = nn.TransformerEncoder(layer, 2, nn.LayerNorm(WIDTH))
        self.out = nn.Linear(WIDTH, LETTERS)
        self.register_buffer("order", cx.arange(LENGTH))

    def forward(self, x: Any) -> Any:
        x = self.letters(x) + self.places(self.order)
        return self.out(self.blocks(x, is_causal=True)).reshape(-1, LETTERS)


class TheirGpt(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.letters, self.places = torch.nn.Embedding(LETTERS, WIDTH), torch.nn.Embedding(LENGTH, WIDTH)
        options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        layer = torch.nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, **options)
        norm = torch.nn.LayerNorm(WIDTH)
        self.blocks = torch.nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=False)
        self.out = torch.nn.Linear(WIDTH, LETTERS)
        self.register_buffer("order", torch.arange(LENGTH))
        self.register_buffer("mask", torch.triu(torch.full((LENGTH, LENGTH), -math.inf), 1), persistent=False)

    def forward(self, x: Any) -> Any:
        x = self.letters(x) + self.places(self.order)
        return self.out(self.blocks(x, mask=self.mask)).reshape(-1, LETTERS)


def batches() -> list[tuple[np.ndarray, np.ndarray]]:
    """Windows of text and what follows each letter; the order is everybody's."""
    text = np.frombuffer(inspect.getsource(argparse).encode("ascii", "replace"), np.uint8).astype(np.int64)
    letters = np.clip(text - 32, 0, LETTERS - 1)  # what is no printable letter counts as a space
    starts = np.random.default_rng(0).integers(0, len(letters) - LENGTH - 1, (STEPS, BATCH))
    windows = letters[starts[:, :, None] + np.arange(LENGTH + 1)]
    return [(rows[:, :-1], rows[:, 1:].reshape(-1)) for rows in windows]


@pytest.mark.parametrize(("ours", "theirs", "bound"), [(Recurrent, TheirRecurrent, 2.95), (Gpt, TheirGpt, 2.8)])
def test_characters_are_learned_as_by_the_same_model_in_pytorch(ours: Any, theirs: Any, bound: float) -> None:
    cx.manual_seed(4)
    model, peer = ours(), theirs()
    peer.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in model.state_dict().items()})
    one, other = optim.AdamW(model.parameters(), lr=0.004), torch.optim.AdamW(peer.parameters(), lr=0.004)

    @cx.compile
    def step(x: Any, y: Any) -> Any:
        loss = F.cross_entropy(model(x), y)
        one.zero_grad()
        loss.backward()
        one.step()
        return loss

    losses: list[tuple[float, float]] = []
    for x, y in batches():
        loss = torch.nn.functional.cross_entropy(peer(torch.from_numpy(x)), torch.from_numpy(y))
        other.zero_grad()
        loss.backward()
        other.step()
        losses.append((step(x, y).item(), loss.item()))
    assert losses[0][0] == pytest.approx(losses[0][1], rel=1e-5)
    end, expected = np.mean(losses[-20:], axis=0)
    assert end == pytest.approx(expected, rel=0.02) and end < bound


@pytest.mark.parametrize(("ours", "theirs"), [(Recurrent, TheirRecurrent), (Gpt, TheirGpt)])
def test_the_first_gradients_are_pytorchs(ours: Any, theirs: Any) -> None:
    cx.manual_seed(4)
    model, peer = ours(), theirs()
    peer.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in model.state_dict().items()})
    x, y = batches()[0]
    F.cross_entropy(model(cx.tensor(x)), cx.tensor(y)).backward()
    torch.nn.functional.cross_entropy(peer(torch.from_numpy(x)), torch.from_numpy(y)).backward()
    expected = dict(peer.named_parameters())
    for name, p in model.named_parameters():
        wanted = expected[name].grad.numpy()
        assert np.abs(p.grad.numpy() - wanted).max() <= 1e-4 * np.abs(wanted).max(), name

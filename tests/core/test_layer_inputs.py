"""What layers take besides the usual batch: one sample alone, projected states, sizes of results, rows in one piece."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import functional as F
from cyxcore import nn
from cyxcore.errors import CyxError
from tests.core.layer_oracle import agree, agree_module, floats, torch

SAMPLES: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
    ("Conv1d", (4, 6, 3, 2, 1), {}, (4, 9)),
    ("Conv1d", (4, 6, 3), {"padding": 2, "padding_mode": "reflect"}, (4, 9)),
    ("Conv2d", (4, 6, 3, 2, 1, 1, 2), {}, (4, 9, 8)),
    ("Conv2d", (4, 6, (2, 3)), {"padding": "same"}, (4, 9, 8)),
    ("Conv2d", (4, 6, 3), {"padding": 1, "padding_mode": "circular"}, (4, 9, 8)),
    ("Conv3d", (2, 3, 2), {}, (2, 4, 5, 6)),
    ("ConvTranspose1d", (4, 6, 3, 2, 1, 1), {}, (4, 5)),
    ("ConvTranspose2d", (4, 6, 3, 2, 1, 1), {}, (4, 5, 6)),
    ("ConvTranspose3d", (2, 3, 2, 2), {}, (2, 3, 4, 5)),
    ("PixelShuffle", (2,), {}, (8, 3, 4)),
    ("PixelShuffle", (2,), {}, (2, 3, 8, 3, 4)),
    ("PixelUnshuffle", (2,), {}, (3, 4, 6)),
    ("PixelUnshuffle", (2,), {}, (2, 2, 3, 4, 6)),
    ("Unfold", ((2, 3), 1, 1, 2), {}, (3, 6, 7)),
    ("Fold", ((4, 5), 2), {}, (12, 12)),
]


@pytest.mark.parametrize(("name", "given", "options", "shape"), SAMPLES)
def test_one_sample(name: str, given: tuple[Any, ...], options: dict[str, Any], shape: tuple[int, ...]) -> None:
    agree_module(lambda m: getattr(m, name)(*given, **options), floats(*shape), scale=10.0)


@pytest.mark.parametrize(("rank", "sizes"), [(1, (9,)), (1, (2, 6, 10)), (2, (9, 12)), (3, (5, 8, 9))])
def test_a_transposed_convolution_reaches_a_size(rank: int, sizes: tuple[int, ...]) -> None:
    step = (2, 3, 2)[:rank]
    shape = (2, 4, *(5, 4, 5)[:rank]) if rank < 3 else (2, 4, 3, 3, 5)
    make = lambda m: getattr(m, f"ConvTranspose{rank}d")(4, 6, 3, step, 1)  # noqa: E731
    agree_module(make, floats(*shape), output_size=sizes, scale=10.0)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_projected_states(bidirectional: bool, batch_first: bool) -> None:
    options = {"batch_first": batch_first, "bidirectional": bidirectional, "proj_size": 3}

    def given(m: Any) -> Any:
        class Flat(m.Module):
            def __init__(self) -> None:
                super().__init__()
                self.part = m.LSTM(5, 7, 2, **options)

            def forward(self, x: Any, h: Any = None, c: Any = None) -> Any:
                out, (h, c) = self.part(x, None if h is None else (h, c))
                return out, h, c

        return Flat()

    count = 4 if bidirectional else 2
    x, h, c = floats(3, 4, 5), floats(count, 4, 3, seed=1), floats(count, 4, 7, seed=2)
    x = x.transpose(1, 0, 2) if batch_first else x
    agree_module(given, x)
    agree_module(given, x, h, c)
    agree_module(given, x[0] if batch_first else x[:, 0], h[:, 0], c[:, 0])


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_one_row_of_a_recurrence(name: str, batch_first: bool) -> None:
    def make(m: Any) -> Any:
        class Flat(m.Module):
            def __init__(self) -> None:
                super().__init__()
                self.part = getattr(m, name)(5, 7, 2, batch_first=batch_first)

            def forward(self, x: Any, *states: Any) -> Any:
                given = None if not states else states if name == "LSTM" else states[0]
                out, last = self.part(x, given)
                return (out, *last) if name == "LSTM" else (out, last)

        return Flat()

    states = [floats(2, 7, seed=n) for n in range(2 if name == "LSTM" else 1)]
    agree_module(make, floats(4, 5))
    agree_module(make, floats(4, 5), *states)


@pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])
def test_one_row_of_a_step(name: str) -> None:
    def make(m: Any) -> Any:
        class Flat(m.Module):
            def __init__(self) -> None:
                super().__init__()
                self.part = getattr(m, name)(5, 7)

            def forward(self, x: Any, *states: Any) -> Any:
                return self.part(x, None if not states else states if name == "LSTMCell" else states[0])

        return Flat()

    agree_module(make, floats(5))
    agree_module(make, floats(5), *(floats(7, seed=n) for n in range(2 if name == "LSTMCell" else 1)))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses_of_one_row(reduction: str) -> None:
    def call(m: Any, x: Any, label: Any, shares: Any) -> Any:
        f = m.nn.functional
        weight = m.tensor(np.linspace(0.5, 1.5, 4).astype(str(x.dtype).split(".")[-1]))
        return (
            f.cross_entropy(x, label, reduction=reduction, label_smoothing=0.1),
            f.cross_entropy(x, label, weight, reduction=reduction),
            f.cross_entropy(x, shares.detach(), reduction=reduction),
            f.nll_loss(x, label, weight, reduction=reduction),
        )

    agree(call, floats(4), np.array(2), np.array([0.1, 0.2, 0.3, 0.4]), compiled=False)


@pytest.mark.parametrize("shape", [(3, 4), (3, 1), (3,)])
@pytest.mark.parametrize("full", [False, True])
def test_a_normal_likelihood_of_shared_variances(shape: tuple[int, ...], full: bool) -> None:
    variance = np.abs(floats(*shape, seed=2))
    variance.reshape(-1)[0] = 0.01  # below eps
    call = lambda m, x, t, v: m.nn.functional.gaussian_nll_loss(x, t, v, full, 0.05)  # noqa: E731
    agree(call, floats(3, 4), floats(3, 4, seed=1), variance)
    agree(lambda m, x, t: m.nn.functional.gaussian_nll_loss(x, t, 0.5), floats(3, 4), floats(3, 4, seed=1))


LOGITS, LABELS, STEPS, COUNTS = floats(9, 4, 5), np.array([1, 2, 2, 4, 3, 1, 1, 4]), (9, 4, 7, 6), (4, 1, 3, 0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ctc_of_rows_in_one_piece_and_of_one_row(reduction: str) -> None:
    def rows(m: Any, x: Any, t: Any) -> Any:
        f = m.nn.functional
        lengths = (STEPS, COUNTS) if m is cx else (torch.tensor(STEPS), torch.tensor(COUNTS))
        return f.ctc_loss(f.log_softmax(x, 2), t, *lengths, reduction=reduction)

    def one(m: Any, x: Any, t: Any) -> Any:
        lengths = m.tensor(9), m.tensor(4)
        return m.nn.functional.ctc_loss(m.nn.functional.log_softmax(x, 1), t, *lengths, reduction=reduction)

    agree(rows, LOGITS, LABELS, compiled=False)
    agree(one, LOGITS[:, 0], LABELS[:4])


def test_ctc_takes_tuples_of_lengths() -> None:
    padded = np.array([[1, 2, 2, 4], [3, 0, 0, 0], [1, 1, 4, 0], [2, 3, 4, 1]])
    call = lambda m, x, t: m.nn.functional.ctc_loss(m.nn.functional.log_softmax(x, 2), t, STEPS, COUNTS)  # noqa: E731
    agree(call, LOGITS, padded)


WRONG: dict[str, Callable[[], Any]] = {
    "GRU: expected proj_size 0, or below hidden_size 7 for an LSTM, got 3": lambda: nn.GRU(5, 7, proj_size=3),
    "LSTM: expected proj_size 0, or below hidden_size 7 for an LSTM, got 7": lambda: nn.LSTM(5, 7, proj_size=7),
    "expected output_size of [9] to [10], got (11,)": lambda: nn.ConvTranspose1d(4, 6, 3, 2, 1)(
        cx.zeros(1, 4, 5), (11,)
    ),
    "expected a variance (3, 4), (3, 1) or (3,), got (4,)": lambda: F.gaussian_nll_loss(
        cx.zeros(3, 4), cx.zeros(3, 4), cx.ones(4)
    ),
    "expected targets of 8 labels one after another, got (7,)": lambda: F.ctc_loss(
        cx.zeros(9, 4, 5), cx.tensor(LABELS[:7]), STEPS, COUNTS
    ),
    "conv1d: expected x (N, C, L), got (9,)": lambda: F.conv1d(cx.zeros(9), cx.zeros(2, 1, 1)),
    "pixel_shuffle: expected x (N, C, H, W), got (2, 2)": lambda: F.pixel_shuffle(cx.zeros(2, 2), 1),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_cannot_be_is_refused(said: str) -> None:
    with pytest.raises(CyxError, match=re.escape(said)):
        WRONG[said]()

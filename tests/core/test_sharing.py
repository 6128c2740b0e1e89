"""Threads share the small calls of a program too, where that is quicker: the bits stay those of one thread."""

from collections.abc import Iterator

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import functional as F
from cyxcore.kernels import cpu

RUNS = 24  # the first 16 are tried in turns, four one by one and four shared (cyx_run_trying)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = cpu.get_num_threads()
    yield
    cpu.set_num_threads(before)


def _trained(threads: int, sizes: tuple[int, ...], batch: int) -> list[bytes]:
    """The losses of RUNS compiled steps of Adam, and the parameters after them."""
    cpu.set_num_threads(threads)
    rng = np.random.default_rng(3)
    layers: list[cx.nn.Module] = []
    for inputs, outputs in zip(sizes, sizes[1:], strict=False):
        linear = cx.nn.Linear(inputs, outputs)
        linear.load_state_dict(
            {
                "weight": rng.normal(size=(outputs, inputs)).astype(np.float32) / 8,
                "bias": rng.normal(size=outputs).astype(np.float32),
            }
        )
        layers += [linear, cx.nn.ReLU()]
    model = cx.nn.Sequential(*layers[:-1])
    optimizer = cx.optim.Adam(model.parameters(), lr=0.01)
    x = cx.tensor(rng.normal(size=(batch, sizes[0])).astype(np.float32))
    y = cx.tensor(rng.integers(0, sizes[-1], batch))

    @cx.compile
    def step(x: cx.Tensor, y: cx.Tensor) -> cx.Tensor:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    losses = [step(x, y).numpy().tobytes() for _ in range(RUNS)]
    return losses + [parameter.numpy().tobytes() for parameter in model.parameters()]


@pytest.mark.parametrize(
    ("sizes", "batch"),
    [((64, 128, 64, 10), 64), ((70, 129, 96, 3), 61), ((200, 64, 257, 5), 130), ((33, 400, 1), 40)],
    ids=["whole panels", "ragged", "tall", "one output"],
)
def test_small_steps_have_the_same_bits_on_any_number_of_threads(sizes: tuple[int, ...], batch: int) -> None:
    expected = _trained(1, sizes, batch)
    for threads in (2, 3, 8):
        assert _trained(threads, sizes, batch) == expected, f"{threads} threads"

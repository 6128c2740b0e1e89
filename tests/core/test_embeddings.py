"""nn.Embedding and nn.EmbeddingBag as PyTorch has them: every option, with gradients, eager and compiled."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import functional as F
from cyxcore import nn
from cyxcore.errors import CyxError
from cyxcore.plan import Plan
from cyxcore.symbols import Builder
from tests.core.layer_oracle import agree, agree_module, floats, same_bits, torch

COUNT, SIZE = 9, 4
INDICES = np.array([[1, 8, 3], [0, 0, 5], [8, 8, 8]])
LONG = np.array([1, 8, 3, 0, 0, 5, 8, 2])
OFFSETS = np.array([0, 3, 3, 4, 8])
TABLE = floats(COUNT, SIZE, seed=1)


@pytest.mark.parametrize(
    "options", [{}, {"padding_idx": 8}, {"padding_idx": -1}, {"scale_grad_by_freq": True}, {"sparse": False}]
)
def test_rows_by_index(options: dict[str, Any]) -> None:
    agree(lambda m, w, i: m.nn.functional.embedding(i, w, **options), TABLE, INDICES)
    for name in ("Embedding", "EmbeddingBag"):
        agree_module(
            lambda nn, name=name: getattr(nn, name)(COUNT, SIZE, padding_idx=options.get("padding_idx")), INDICES
        )


BAGS: list[dict[str, Any]] = [
    {},
    {"padding_idx": 8},
    {"padding_idx": -1},
]


@pytest.mark.parametrize("options", BAGS)
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags(mode: str, options: dict[str, Any]) -> None:
    agree(lambda m, w, i: m.nn.functional.embedding_bag(i, w, mode=mode, **options), TABLE, INDICES)
    agree(lambda m, w, i, o: m.nn.functional.embedding_bag(i, w, o, mode=mode, **options), TABLE, LONG, OFFSETS)
    last = np.array([0, 3, 3, 8])
    call = lambda m, w, i, o: m.nn.functional.embedding_bag(i, w, o, mode=mode, include_last_offset=True, **options)  # noqa: E731
    agree(call, TABLE, LONG, last)


def test_gradients_of_bags_by_frequency() -> None:
    """Torch's own divides by the frequencies of other rows (2.13): rows one by one are its oracle."""

    def call(m: Any, w: Any, i: Any) -> Any:
        if m is torch:
            rows = m.nn.functional.embedding(i, w, scale_grad_by_freq=True)
            return rows.sum(1), rows.mean(1)
        bags = m.nn.functional.embedding_bag
        return tuple(bags(i, w, mode=mode, scale_grad_by_freq=True) for mode in ("sum", "mean"))

    agree(call, TABLE, INDICES)
    padded = lambda m, w, i: m.nn.functional.embedding_bag(i, w, mode="sum", scale_grad_by_freq=True, padding_idx=8)  # noqa: E731
    same_bits(padded, TABLE, INDICES)


def test_frequencies_count_what_offsets_share_out_once() -> None:
    ends = [*OFFSETS[1:], len(LONG)]

    def call(m: Any, w: Any, i: Any, o: Any) -> Any:
        if m is cx:
            return m.nn.functional.embedding_bag(i, w, o, mode="sum", scale_grad_by_freq=True)
        rows = m.nn.functional.embedding(i, w, scale_grad_by_freq=True)
        return m.stack([rows[start:end].sum(0) for start, end in zip(OFFSETS, ends, strict=True)])

    agree(call, TABLE, LONG, OFFSETS)


@pytest.mark.parametrize("options", BAGS)
def test_bags_of_weighted_rows(options: dict[str, Any]) -> None:
    def call(m: Any, w: Any, i: Any, p: Any, *o: Any) -> Any:
        return m.nn.functional.embedding_bag(i, w, *o, mode="sum", per_sample_weights=p, **options)

    agree(call, TABLE, INDICES, floats(3, 3, seed=2))
    agree(call, TABLE, LONG, floats(8, seed=2), OFFSETS)


def test_bags_of_nothing() -> None:
    nothing, none = np.zeros((2, 0), np.int64), np.zeros(0, np.int64)
    for mode in ("sum", "mean", "max"):
        assert F.embedding_bag(cx.tensor(nothing), cx.tensor(TABLE), mode=mode).tolist() == [[0.0] * SIZE] * 2
        call = lambda m, w, i, o, mode=mode: m.nn.functional.embedding_bag(i, w, o, mode=mode)  # noqa: E731
        agree(call, TABLE, none, np.array([0, 0]), compiled=False)
        agree(call, TABLE, LONG, np.array([0, 8, 8]), compiled=False)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, float("inf")])
def test_rows_that_are_looked_up_are_made_shorter(norm_type: float) -> None:
    for kind in ("Embedding", "EmbeddingBag"):
        held = []
        for m in (cx, torch):
            layer = getattr(m.nn, kind)(COUNT, SIZE, max_norm=0.7, norm_type=norm_type)
            layer.load_state_dict({"weight": cx.tensor(TABLE) if m is cx else torch.tensor(TABLE)})
            found = layer(m.tensor(INDICES))
            (found * found).sum().backward()
            held.append([found.detach().numpy(), layer.weight.detach().numpy(), layer.weight.grad.numpy()])
        for one, other in zip(*held, strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)


def test_a_compiled_step_makes_rows_shorter_too() -> None:
    def run(compiled: bool) -> list[Any]:
        layer = nn.Embedding(COUNT, SIZE, max_norm=0.7)
        layer.load_state_dict({"weight": TABLE.astype(np.float32)})
        optimizer = cx.optim.SGD(layer.parameters(), lr=0.1)

        def step(indices: Any) -> Any:
            loss = layer(indices).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        made = cx.compile(step) if compiled else step
        losses = [made(cx.tensor(INDICES)).item() for _ in range(3)]
        return [losses, layer.weight.tolist()]

    assert run(True) == run(False)


def test_a_model_that_writes_into_its_weight_is_not_traced() -> None:
    with pytest.raises(CyxError, match="max_norm writes into the weight"):
        cx.trace(nn.Embedding(5, 2, max_norm=1.0), (3,), dtype="int64")


def test_a_table_that_there_is() -> None:
    rows = cx.tensor(TABLE)
    frozen = nn.Embedding.from_pretrained(rows, padding_idx=2)
    assert not frozen.weight.requires_grad and frozen.weight.tolist() == TABLE.tolist()
    trained = nn.EmbeddingBag.from_pretrained(rows, freeze=False, mode="sum", padding_idx=-1)
    assert trained.weight.requires_grad and trained.mode == "sum" and trained.padding_idx == COUNT - 1
    assert nn.Embedding(COUNT, SIZE, _weight=rows, _freeze=True).weight.tolist() == TABLE.tolist()
    assert nn.EmbeddingBag(4, 2, padding_idx=1).weight[1].tolist() == [0.0, 0.0]


def test_a_bag_goes_into_a_graph() -> None:
    assert cx.trace(nn.EmbeddingBag(5, 2, padding_idx=0, mode="max"), (3,), dtype="int64").graph.output_shape == (2,)
    same_bits(lambda m, w, i, o: F.embedding_bag(i, w, o, mode="max"), TABLE, LONG, OFFSETS)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_long_bags_are_added_up_in_order_and_what_is_behind_the_last_is_in_none(mode: str) -> None:
    dice = np.random.default_rng(3)
    indices, bounds = dice.integers(0, COUNT, 300), np.array([0, 70, 70, 71, 290])
    call = lambda m, w, i, o: F.embedding_bag(i, w, o, mode=mode, include_last_offset=True)  # noqa: E731
    same_bits(call, TABLE, indices, bounds)
    table = TABLE.astype(np.float32)
    wanted = np.zeros((4, SIZE), np.float32)
    for bag in range(4):
        for place in range(bounds[bag], bounds[bag + 1]):
            wanted[bag] += table[indices[place]]
    if mode == "mean":
        wanted /= np.maximum(np.diff(bounds), 1).astype(np.float32)[:, None]
    assert call(cx, cx.tensor(table), cx.tensor(indices), cx.tensor(bounds)).numpy().tobytes() == wanted.tobytes()


@pytest.mark.parametrize("travels", [True, False])
def test_a_graph_of_bags_by_offsets_holds_each_row_once(travels: bool) -> None:
    builder = Builder(travels=travels)
    table = builder.input("table", (COUNT, SIZE))
    found = F.embedding_bag(builder.input("i", (8,), "int64"), table, builder.input("o", (5,), "int64"), mode="mean")
    graph = builder.graph(found)
    assert max(math.prod(shape) for shape in graph.infer(1).shapes) <= len(LONG) * (len(OFFSETS) + 1)
    assert ("searchsorted" in {node.op for node in graph.nodes}) is not travels
    plan = Plan(graph)
    for name, array in (("table", TABLE), ("i", LONG), ("o", OFFSETS)):
        plan.inputs[name][...] = array
    plan.run()
    tensors = [cx.tensor(plan.inputs[name]) for name in ("i", "table", "o")]
    assert plan.outputs[0].tobytes() == F.embedding_bag(*tensors, mode="mean").numpy().tobytes()


W = cx.zeros(5, 2)
I1, I2 = cx.tensor([0, 1, 2]), cx.tensor([[0, 1, 2]])
WRONG: dict[str, Callable[[], Any]] = {
    "embedding: expected padding_idx within 5 rows, got 5": lambda: F.embedding(I1, W, 5),
    "embedding: expected max_norm and norm_type above 0": lambda: F.embedding(I1, W, max_norm=-1.0),
    "scale_grad_by_freq goes with mode sum and mean": lambda: F.embedding_bag(
        I2, W, mode="max", scale_grad_by_freq=True
    ),
    "embedding_bag: expected mode sum, mean or max": lambda: F.embedding_bag(I2, W, mode="min"),
    "weights of rows only for sum, got 'mean'": lambda: F.embedding_bag(I2, W, per_sample_weights=cx.ones(1, 3)),
    "expected per_sample_weights of indices' shape (1, 3), got (3,)": lambda: F.embedding_bag(
        I2, W, mode="sum", per_sample_weights=cx.ones(3)
    ),
    "or (L,) with integer offsets (bags,), got (3,) and None": lambda: F.embedding_bag(I1, W),
    "offsets go with indices (L,), got indices (1, 3)": lambda: F.embedding_bag(I2, W, cx.tensor([0])),
    "expected offsets that ascend from 0 to 3 at most": lambda: F.embedding_bag(I1, W, cx.tensor([0, 2, 1])),
    "expected _weight (5, 2), got (2, 5)": lambda: nn.Embedding(5, 2, _weight=cx.zeros(2, 5)),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_cannot_be_is_refused(said: str) -> None:
    with pytest.raises(CyxError, match=re.escape(said)):
        WRONG[said]()
    with pytest.raises(IndexError):
        F.embedding_bag(cx.tensor([[5]]), W)

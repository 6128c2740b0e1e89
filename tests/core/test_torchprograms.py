"""What PyTorch's programs do in a training step: the same in a compiled step, bit by bit, as in the plain one."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
import cyxcore.nn.functional as F  # noqa: N812 - as programs write it
from cyxcore import nn
from cyxcore.errors import SpecError
from cyxcore.nn.utils.rnn import (
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    unpack_sequence,
    unpad_sequence,
)


def stepping(model: nn.Module, loss_of: Callable[..., Any]) -> Callable[..., Any]:
    optimizer = cx.optim.AdamW(model.parameters(), lr=0.01)

    def step(*given: Any) -> Any:
        optimizer.zero_grad()
        loss = loss_of(model, *given)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    return step


def same_bits(model: nn.Module, loss_of: Callable[..., Any], *inputs: Any, steps: int = 3) -> list[float]:
    """Steps of a model, and of a copy of it in a compiled step: every loss and parameter has the same bits."""
    runs = []
    for compiled in (False, True):
        own = copy.deepcopy(model)
        step = stepping(own, loss_of)
        run = cx.compile(step) if compiled else step
        cx.manual_seed(7)
        losses = [run(*inputs).item() for _ in range(steps)]
        runs.append((losses, [p.tolist() for p in own.parameters()]))
    assert runs[0] == runs[1]
    first: list[float] = runs[0][0]
    return first


X = cx.asarray(np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32))


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: cx.randn(6, 2),
        lambda x: cx.rand((6, 2), device=x.device),
        lambda x: cx.randn_like(x[:, :2]),
        lambda x: cx.rand_like(x[:, :2]) + F.dropout(x[:, :2], 0.5) * cx.randn(6, 1),
    ],
)
def test_noise_is_drawn_anew_at_each_call(draw: Any) -> None:
    losses = same_bits(nn.Linear(4, 2), lambda model, x: (model(x.detach()) * draw(x)).sum(), X)
    assert len(set(losses)) == 3


def test_a_step_may_ask_where_its_values_are() -> None:
    def loss(model: Any, x: Any) -> Any:
        labels = cx.arange(x.size(0), device=x.device) % 2
        assert x.device.type == "cpu" and not x.is_cuda
        y = model(x.to(x.device).contiguous().cpu().to(cx.float32)).type(cx.float32)
        return F.cross_entropy(y + y.new_zeros(2) * x.new_ones(6, 1), labels.to(x.device))

    same_bits(nn.Linear(4, 2), loss, X)


def test_a_gradient_penalty_is_compiled() -> None:
    def loss(model: Any, x: Any) -> Any:
        at = (x * 0.5).requires_grad_(True)
        score = model(at)
        (slope,) = cx.autograd.grad(
            outputs=score,
            inputs=at,
            grad_outputs=cx.ones_like(score),
            create_graph=True,
            retain_graph=True,
            only_inputs=True,
        )
        return score.mean() + 10 * ((slope.norm(2, dim=1) - 1) ** 2).mean()

    same_bits(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), loss, X)


def test_gradients_that_are_not_there_are_zeros_if_asked() -> None:
    x, y = cx.ones(2).requires_grad_(), cx.ones(3).requires_grad_()
    found = cx.autograd.grad((x * 2).sum(), (x, y), materialize_grads=True)
    assert [g.tolist() for g in found] == [[2.0, 2.0], [0.0, 0.0, 0.0]]


def test_a_policy_is_compiled() -> None:
    actions = cx.asarray([0, 1, 2, 0, 1, 2])

    def loss(model: Any, x: Any, actions: Any) -> Any:
        policy = cx.distributions.Categorical(logits=model(x))
        spread = cx.distributions.Normal(model(x)[:, 0], 1.0)
        ratio = (policy.log_prob(actions) - spread.log_prob(x[:, 1])).exp()
        return -cx.min(ratio, cx.clamp(ratio, 0.8, 1.2)).mean() - 0.01 * policy.entropy().mean()

    same_bits(nn.Linear(4, 3), loss, X, actions)


def test_packed_sequences_are_compiled() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.rnn = nn.Embedding(9, 5), nn.GRU(5, 4, bidirectional=True)

        def forward(self, text: Any, lengths: Any) -> Any:
            packed = pack_padded_sequence(self.embedding(text), lengths.cpu(), enforce_sorted=False)
            output, hidden = self.rnn(packed)
            output, _ = pad_packed_sequence(output)
            return output.sum() + hidden.square().sum()

    text, lengths = cx.asarray(np.arange(18).reshape(6, 3) % 9), cx.asarray([6, 2, 4])
    same_bits(Reader(), lambda model, *given: model(*given), text, lengths)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("kind", ["float32", "int64"])
def test_topk_in_a_graph_is_the_plain_one(largest: bool, kind: str) -> None:
    table = np.random.default_rng(0).integers(-3, 3, size=(5, 7)).astype(kind)  # with equals
    if kind == "float32":
        table[0, 2], table[1, 3:5], table[2, :], table[3, 1] = np.nan, np.inf, -np.inf, -np.inf
    x = cx.asarray(np.concatenate((table, table[:, ::-1], table), axis=1))
    for dim, k in ((0, 4), (1, 4), (1, 20)):  # one after the other, or by sorting
        wanted = x.topk(k, dim=dim, largest=largest)
        got = cx.compile(lambda x, dim=dim, k=k: tuple(x.topk(k, dim=dim, largest=largest)))(x)
        for one, other in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_a_mixture_of_experts_is_compiled() -> None:
    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(4, 3, bias=False)
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 5), nn.SiLU(), nn.Linear(5, 4)) for _ in range(3))

        def forward(self, x: Any) -> Any:
            weights, chosen = cx.topk(F.softmax(self.gate(x), dim=1), 2, dim=-1)
            weights = weights / weights.sum(dim=-1, keepdim=True)
            share = (F.one_hot(chosen, num_classes=3).float() * weights.unsqueeze(-1)).sum(1)
            out = cx.zeros_like(x)
            for place, expert in enumerate(self.experts):
                out = out + expert(x) * share[:, place : place + 1]
            return out

    same_bits(Mixture(), lambda model, x: ((model(x) - x) ** 2).mean(), X)


def test_attention_over_edges_is_compiled() -> None:
    source, target = cx.asarray([0, 1, 2, 3, 4, 5, 0, 2]), cx.asarray([1, 1, 1, 0, 5, 5, 3, 4])

    def loss(model: Any, x: Any, source: Any, target: Any) -> Any:
        h = model(x)
        score = h[source, :1] + h[target, 1:]
        most = cx.full((6, 1), float("-inf")).scatter_reduce(0, target.unsqueeze(-1).expand_as(score), score, "amax")
        weight = (score - most[target].detach()).exp()
        total = cx.zeros(6, 1).index_add(0, target, weight)
        mean = cx.zeros(6, 2).index_reduce(0, target, h[source] * weight / total[target], "mean", include_self=False)
        return (mean**2).sum()

    same_bits(nn.Linear(4, 2), loss, X, source, target)


def test_sequences_are_packed_and_unpacked() -> None:
    rows = [X[:3], X[:1], X[:5]]
    packed = pack_sequence(rows)
    assert [row.tolist() for row in unpack_sequence(packed)] == [row.tolist() for row in rows]
    padded, lengths = pad_packed_sequence(packed)
    assert [row.tolist() for row in unpad_sequence(padded, lengths)] == [row.tolist() for row in rows]


def test_a_causal_mask_and_memory_formats_go_into_steps() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0)

        def forward(self, x: Any) -> Any:
            mask = nn.Transformer.generate_square_subsequent_mask(x.size(0), device=x.device)
            x = x.to(memory_format=cx.contiguous_format).contiguous(memory_format=cx.preserve_format)
            return self.layer(x.unsqueeze(1), mask)

    model = Reader().to(memory_format=cx.channels_last)
    same_bits(model, lambda model, x: (model(x) ** 2).mean(), X)
    later = X.clone()
    later[4:] = 0.0
    model.eval()
    assert (model(X)[:4] == model(later)[:4]).all()  # no place sees a later one


def test_a_stream_asks_for_its_worker() -> None:
    class Numbers(cx.data.IterableDataset):
        def __iter__(self) -> Any:
            assert cx.utils.data.get_worker_info() is None
            return iter(range(5))

    assert [batch.tolist() for batch in cx.data.DataLoader(Numbers(), batch_size=2)] == [[0, 1], [2, 3], [4]]


def test_tied_weights_are_loaded_by_all_of_their_names() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.wte.weight = self.head.weight

    weights = np.arange(15.0, dtype=np.float32).reshape(5, 3)
    for names in (("wte.weight", "head.weight"), ("head.weight",), ("wte.weight",)):
        model = Tied()
        assert model.load_state_dict({name: weights for name in names}) == ([], [])
        assert (model.head.weight.numpy() == weights).all() and model.head.weight is model.wte.weight
        assert list(model.state_dict()) == ["wte.weight"]
    before = model.state_dict()["wte.weight"].copy()
    with pytest.raises(SpecError, match="wte.weight and head.weight are one tensor here, but differ in what came"):
        model.load_state_dict({"wte.weight": weights + 1, "head.weight": weights})
    with pytest.raises(SpecError, match=r"missing \['wte.weight'\], unknown \['body.weight'\]"):
        model.load_state_dict({"body.weight": weights})
    assert (model.state_dict()["wte.weight"] == before).all()


LAYERS: dict[str, Callable[[], Any]] = {
    "linear": lambda: nn.Linear(3, 4),
    "conv": lambda: nn.Conv2d(2, 3, 3),
    "transposed": lambda: nn.ConvTranspose1d(2, 3, 3),
    "lstm": lambda: nn.LSTM(2, 3, num_layers=2, bidirectional=True),
    "cell": lambda: nn.GRUCell(2, 3),
    "embedding": lambda: nn.Embedding(5, 2, padding_idx=1),
    "prelu": lambda: nn.PReLU(3),
    "batch norm": lambda: nn.BatchNorm1d(3, momentum=None),
    "layer norm": lambda: nn.LayerNorm(3),
    "bilinear": lambda: nn.Bilinear(2, 3, 4),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_reset_to_what_a_new_one_is(name: str) -> None:
    cx.manual_seed(5)
    wanted = copy.deepcopy(LAYERS[name]().state_dict())
    layer = LAYERS[name]()
    where = [p.numpy().ctypes.data for p in layer.parameters()]
    for value in (*layer.parameters(), *layer.buffers()):
        with cx.no_grad():
            value.fill_(7.0)
    cx.manual_seed(5)
    layer.reset_parameters()
    assert {k: v.tolist() for k, v in layer.state_dict().items()} == {k: v.tolist() for k, v in wanted.items()}
    assert [p.numpy().ctypes.data for p in layer.parameters()] == where  # optimisers go on with the same tensors


def test_resetting_follows_types_and_copies_and_refuses_what_has_no_rule() -> None:
    layer = copy.deepcopy(nn.Linear(3, 2).double())
    before = layer.weight.tolist()
    layer.reset_parameters()
    assert layer.weight.dtype == "float64" and layer.weight.tolist() != before
    layer.weight = nn.Parameter(np.ones((2, 3), np.float32))
    kept = layer.bias.tolist()
    with pytest.raises(SpecError, match="Linear.reset_parameters: no rule is known for weight, which was assigned"):
        layer.reset_parameters()
    assert layer.bias.tolist() == kept and not hasattr(nn.Sequential(layer), "reset_parameters")


def test_folds_of_a_cross_validation_begin_anew() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    seen = []
    for _ in range(2):
        cx.manual_seed(1)
        model.apply(lambda layer: layer.reset_parameters() if hasattr(layer, "reset_parameters") else None)
        step = cx.compile(stepping(model, lambda m, x: (m(x) ** 2).mean()))
        seen.append([step(X).item() for _ in range(3)])
    assert seen[0] == seen[1]


def test_small_methods_of_modules_and_gradients() -> None:
    model = nn.Sequential(nn.LSTM(2, 3), nn.BatchNorm1d(3))
    model[0].flatten_parameters()
    assert model.get_parameter("0.weight_hh_l0") is model[0].weight_hh_l0
    assert model.get_buffer("1.running_mean") is model[1].running_mean
    with pytest.raises(AttributeError, match="get_parameter: '1.running_mean' is no parameter of Sequential"):
        model.get_parameter("1.running_mean")
    assert model.bfloat16()[0].weight_hh_l0.dtype == "bfloat16"
    for norm_type in (2.0, 1.0, float("inf")):
        pair = [nn.Parameter(np.zeros(2, np.float32)) for _ in range(2)]
        for place, p in enumerate(pair):
            p.grad = cx.tensor([3.0, 4.0 + place])
        norm = nn.utils.get_total_norm([p.grad for p in pair], norm_type)
        nn.utils.clip_grads_with_norm_(pair, 1.0, norm)
        assert abs(nn.utils.get_total_norm([p.grad for p in pair], norm_type).item() - 1) < 1e-5


def test_smoothed_labels_are_compiled_as_advised() -> None:
    def smoothed(logits: Any, y: Any) -> Any:
        wanted = cx.full_like(logits, 0.1 / 2).scatter(1, y.unsqueeze(1), 0.9)
        return F.kl_div(F.log_softmax(logits, -1), wanted, reduction="batchmean")

    x, y = X[:, :3], cx.tensor([0, 1, 2, 0, 1, 2])
    assert cx.compile(smoothed)(x, y).equal(smoothed(x, y))


def test_a_norm_of_no_gradients_scales_as_any_other() -> None:
    p = cx.tensor([3.0], requires_grad=True)
    nn.utils.clip_grads_with_norm_([p], 1.0, nn.utils.get_total_norm([]))
    assert nn.utils.clip_grad_norm_([p], 1.0).item() == 0.0
    for norm in (3.0, np.float32(3.0), np.float64(3.0), cx.tensor(3.0, dtype="float64")):
        p.grad = cx.tensor([3.0])
        nn.utils.clip_grads_with_norm_([p], 1.0, norm)
        assert abs(p.grad.item() - 1.0) < 1e-5 and p.grad.dtype == "float32"

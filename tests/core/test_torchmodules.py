"""Layers and losses by PyTorch's names and with its options: the values, the gradients and the keys PyTorch has."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore.errors import CyxError, DtypeError, ShapeError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="the oracle, PyTorch, is not installed")

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
CUBE = np.random.default_rng(2).normal(size=(2, 3, 4)).astype(np.float32)


def test_modules_by_pytorchs_names() -> None:
    model = cx.nn.Sequential(cx.nn.Linear(3, 4), cx.nn.ReLU(inplace=True), cx.nn.Dropout(0.5, inplace=True))
    model.add_module("3", cx.nn.BatchNorm1d(4))
    seen: list[str] = []
    model.apply(lambda part: seen.append(type(part).__name__))
    assert seen == ["Linear", "ReLU", "Dropout", "BatchNorm1d", "Sequential"]
    assert [name for name, _ in model.named_children()] == ["0", "1", "2", "3"] and len(list(model.buffers())) == 2
    assert model.get_submodule("3") is model[3] and model.get_submodule("") is model
    assert not any(p.requires_grad for p in model.requires_grad_(False).parameters())
    assert model.double()[0].weight.dtype == "float64" and model.to(dtype=cx.float32)[3].running_mean.dtype == "float32"
    with pytest.raises(DtypeError, match="expected a float dtype"):
        model.to(cx.long)
    with pytest.raises(AttributeError, match="is no module"):
        model.get_submodule("0.weight")
    found = model.load_state_dict({"0.weight": np.ones((4, 3)), "9.weight": np.ones(2)}, strict=False)
    assert found.unexpected_keys == ["9.weight"] and "0.bias" in found.missing_keys
    assert model[0].weight.sum().item() == 12.0


def test_a_model_of_doubles_learns() -> None:
    model = cx.nn.Linear(4, 1).double()
    optimizer = cx.optim.Adam(model.parameters(), lr=0.1)
    x, losses = cx.tensor(X).double(), []

    def closure() -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss = (model(x) - 1.0).pow(2).mean()
        loss.backward()
        return loss

    for _ in range(20):
        losses.append(optimizer.step(closure).item())
    assert losses[-1] < 0.2 * losses[0] and model.weight.dtype == "float64"


def test_what_does_not_persist_is_not_saved() -> None:
    class Masked(cx.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", cx.ones(2), persistent=False)
            self.register_parameter("weight", cx.nn.Parameter(cx.zeros(2)))

    model = Masked()
    assert sorted(model.state_dict()) == ["weight"] and model.mask.shape == (2,)
    assert [name for name, _ in model.named_buffers()] == ["mask"] and model.double().mask.dtype == "float64"
    model.load_state_dict({"weight": np.ones(2)})


def test_a_large_mask_that_is_not_saved_is_no_constant_of_a_compiled_module() -> None:
    class Masked(cx.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", cx.tril(cx.ones(300, 300)), persistent=False)

        def forward(self, x: Any) -> Any:
            return x @ self.mask

    model = Masked()
    x = cx.randn(4, 300)
    assert cx.compile(model)(x).equal(model(x))


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.filterwarnings("ignore")  # torch warns of even kernels
def test_padding_that_keeps_the_sizes(rank: int, kernel: int, dilation: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 2, *(7, 6, 5)[:rank])).astype(np.float32)
    weight = rng.normal(size=(3, 2, *(kernel,) * rank)).astype(np.float32)
    for padding in ("same", "valid"):
        if padding == "valid" and dilation * (kernel - 1) >= 5:
            continue
        ours = getattr(cx.functional, f"conv{rank}d")(cx.tensor(x), cx.tensor(weight), None, 1, padding, dilation)
        theirs = getattr(torch.nn.functional, f"conv{rank}d")(
            torch.tensor(x), torch.tensor(weight), None, 1, padding, dilation
        )
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolutions_with_other_borders(rank: int, mode: str) -> None:
    x = np.random.default_rng(0).normal(size=(2, 2, *(6, 5, 4)[:rank])).astype(np.float32)
    theirs = getattr(torch.nn, f"Conv{rank}d")(2, 3, 3, padding=1, padding_mode=mode)
    ours = getattr(cx.nn, f"Conv{rank}d")(2, 3, 3, padding=1, padding_mode=mode)
    ours.load_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})
    np.testing.assert_allclose(
        ours(cx.tensor(x)).numpy(), theirs(torch.tensor(x)).detach().numpy(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cx.nn.Conv2d(1, 1, 3, padding_mode="mirror"), "expected padding_mode zeros"),
        (
            lambda: cx.nn.Conv2d(1, 1, 3, padding="full")(cx.zeros(1, 1, 4, 4)),
            "expected padding valid, same or numbers",
        ),
        (lambda: cx.nn.Conv2d(1, 1, 3, padding="same", stride=2)(cx.zeros(1, 1, 4, 4)), "same keeps the sizes"),
        (lambda: cx.nn.Conv2d(1, 1, (3, 3, 3)), "expected one whole number or 2"),
        (lambda: cx.nn.MaxPool2d((2, 2, 2))(cx.zeros(1, 1, 4, 4)), "expected one whole number or 2"),
        (lambda: cx.nn.Conv3d(1, 1, (3, 3)), "expected one whole number or 3"),
        (lambda: cx.nn.Embedding(4, 2, padding_idx=4), "expected padding_idx within 4 rows"),
        (lambda: cx.lr_scheduler.OneCycleLR(cx.optim.SGD([cx.zeros(1)]), 0.1), "expected total_steps, or"),
        (lambda: cx.optim.Adafactor([cx.zeros(1)], eps=(1e-3, 1e-3)), "expected None as the first"),
    ],
)
def test_bad_options_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(CyxError, match=message):
        make()


def test_an_embedding_with_a_padding_row() -> None:
    ours, theirs = cx.nn.Embedding(5, 3, padding_idx=-1), torch.nn.Embedding(5, 3, padding_idx=4)
    assert ours.weight[4].tolist() == [0.0, 0.0, 0.0] and ours.padding_idx == 4
    ours.load_state_dict({"weight": theirs.weight.detach().numpy()})
    places = np.array([[0, 4, 2], [4, 4, 0]])
    ours(cx.tensor(places)).sum().backward()
    theirs(torch.tensor(places)).sum().backward()
    np.testing.assert_array_equal(ours.weight.grad.numpy(), theirs.weight.grad.numpy())
    weights = [m.tensor(np.ones((5, 3), np.float32), requires_grad=True) for m in (cx, torch)]
    cx.functional.embedding(cx.tensor(places), weights[0], padding_idx=-1).sum().backward()
    torch.nn.functional.embedding(torch.tensor(places), weights[1], padding_idx=-1).sum().backward()
    np.testing.assert_array_equal(weights[0].grad.numpy(), weights[1].grad.numpy())
    frozen = cx.nn.Embedding.from_pretrained(ours.weight)
    assert not frozen.weight.requires_grad and frozen.weight.equal(ours.weight)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", ["GRU", "LSTM", "RNN"])
def test_packed_sequences(kind: str, batch_first: bool) -> None:
    theirs = getattr(torch.nn, kind)(3, 4, bidirectional=True, batch_first=batch_first)
    ours = getattr(cx.nn, kind)(3, 4, bidirectional=True, batch_first=batch_first)
    ours.load_state_dict({name: value.detach().numpy() for name, value in theirs.state_dict().items()})
    rows = [np.random.default_rng(n).normal(size=(n, 3)).astype(np.float32) for n in (2, 5, 3)]
    results = []
    for m, model in ((cx, ours), (torch, theirs)):
        rnn = m.nn.utils.rnn
        padded = rnn.pad_sequence([m.tensor(row) for row in rows], batch_first=batch_first, padding_value=0.5)
        packed = rnn.pack_padded_sequence(padded, [2, 5, 3], batch_first=batch_first, enforce_sorted=False)
        output, state = model(packed)
        output, lengths = rnn.pad_packed_sequence(output, batch_first=True, padding_value=-1.0, total_length=6)
        state = state if isinstance(state, tuple) else (state,)
        results.append([x.detach().numpy() for x in (padded, output, lengths, *state)])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_what_lies_behind_the_end_of_a_packed_row_is_not_seen_again() -> None:
    rnn = cx.nn.utils.rnn
    packed = rnn.pack_padded_sequence(cx.full((2, 3), 7.0), [3, 1], batch_first=True)
    assert rnn.pad_packed_sequence(packed, batch_first=True)[0].tolist() == [[7.0] * 3, [7.0, 0.0, 0.0]]
    with pytest.raises(CyxError, match="total_length of at least 3, got 2"):
        rnn.pad_packed_sequence(packed, batch_first=True, total_length=2)


def test_binary_cross_entropy_of_certain_predictions_has_a_finite_gradient() -> None:
    p, target = np.array([0.0, 1.0, 1.0, 0.0, 0.5], np.float32), np.array([0.0, 1.0, 0.0, 1.0, 1.0], np.float32)
    x = cx.tensor(p, requires_grad=True)
    loss = cx.functional.binary_cross_entropy(x, cx.tensor(target), reduction="none")
    assert loss.tolist() == pytest.approx([0.0, 0.0, 100.0, 100.0, 0.6931472])
    loss.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1.0, -1.0, 0.0, 0.0, -2.0]


def test_parameters_as_a_vector() -> None:
    model = cx.nn.Linear(2, 3)
    vector = cx.nn.utils.parameters_to_vector(model.parameters())
    cx.nn.utils.vector_to_parameters(vector * 0.0 + 1.0, model.parameters())
    assert model.weight.sum().item() == 6.0 and vector.shape == (9,)
    with pytest.raises(ShapeError, match="expected a vector of 9 numbers"):
        cx.nn.utils.vector_to_parameters(vector[1:], model.parameters())


def test_a_border_of_infinity() -> None:
    for mode in (float("inf"), float("-inf")):
        ours = cx.functional.pad(cx.tensor(X), (1, 0, 0, 2), value=mode)
        theirs = torch.nn.functional.pad(torch.tensor(X), (1, 0, 0, 2), value=mode)
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


@pytest.mark.parametrize(
    ("inputs", "targets"), [([5, -1], [2, 2]), ([5, 6], [2, 2]), ([5, 5], [2, -1]), ([5, 5], [3, 1])]
)
def test_lengths_that_cannot_be_are_refused(inputs: list[int], targets: list[int]) -> None:
    scores = cx.log_softmax(cx.zeros(5, 2, 4), -1)
    with pytest.raises(ShapeError, match="ctc_loss: expected (input|target)_lengths of 0"):
        cx.functional.ctc_loss(scores, cx.tensor([[1, 2], [1, 3]]), cx.tensor(inputs), cx.tensor(targets))


POOLS = [
    (1, 2, None, 0),
    (1, 3, 2, 1),
    (2, 2, None, 0),
    (2, 3, 1, 1),
    (2, (2, 3), (2, 1), (0, 1)),
    (3, 2, None, 0),
    (3, 3, 2, 1),
]


@pytest.mark.parametrize(("rank", "kernel", "stride", "padding"), POOLS)
def test_pooling_with_places_and_back(rank: int, kernel: Any, stride: Any, padding: Any) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, *(7, 6, 5)[:rank])).astype(np.float32)
    results = []
    for m in (cx, torch):
        value = m.tensor(x, requires_grad=True)
        pooled, places = getattr(m.nn, f"MaxPool{rank}d")(kernel, stride, padding, return_indices=True)(value)
        back = getattr(m.nn, f"MaxUnpool{rank}d")(kernel, stride, padding)(pooled, places, output_size=x.shape)
        (back * back).sum().backward()
        results.append([pooled.detach().numpy(), places.numpy(), back.detach().numpy()])
        if stride is None:  # of windows that overlap PyTorch counts the gradient of a place more than once
            results[-1].append(value.grad.numpy())
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_unpooling_finds_the_sizes() -> None:
    x = cx.tensor(np.random.default_rng(0).normal(size=(1, 1, 4, 6)).astype(np.float32))
    pooled, places = cx.nn.MaxPool2d(2, return_indices=True)(x)
    assert cx.functional.max_unpool2d(pooled, places, 2).shape == (1, 1, 4, 6)
    with pytest.raises(ShapeError, match="expected indices of x's shape"):
        cx.functional.max_unpool2d(pooled, places[:, :, :1], 2)


LAZY = [
    ("LazyLinear", (5,), (2, 3)), ("LazyConv1d", (5, 2), (2, 3, 7)), ("LazyConv2d", (5, 2), (2, 3, 7, 6)),
    ("LazyConv3d", (5, 2), (2, 3, 4, 5, 6)), ("LazyConvTranspose1d", (5, 2), (2, 3, 7)),
    ("LazyConvTranspose2d", (5, 2), (2, 3, 7, 6)), ("LazyConvTranspose3d", (5, 2), (2, 3, 3, 3, 3)),
    ("LazyBatchNorm1d", (), (4, 3)), ("LazyBatchNorm2d", (), (4, 3, 2, 2)), ("LazyBatchNorm3d", (), (4, 3, 2, 2, 2)),
    ("LazyInstanceNorm1d", (), (2, 3, 4)), ("LazyInstanceNorm2d", (), (2, 3, 4, 4)),
    ("LazyInstanceNorm3d", (), (2, 3, 4, 4, 4)),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "arguments", "shape"), LAZY)
@pytest.mark.filterwarnings("ignore")  # torch warns of its lazy modules
def test_lazy_modules(kind: str, arguments: tuple[Any, ...], shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    ours, theirs = getattr(cx.nn, kind)(*arguments), getattr(torch.nn, kind)(*arguments)
    model = cx.nn.Sequential(ours)
    with pytest.raises(CyxError, match=f"{kind} has no parameters yet: call the model once"):
        list(model.parameters())
    expected = theirs(torch.tensor(x))
    model(cx.tensor(x))
    assert type(model[0]) is getattr(cx.nn, kind[4:])
    if "InstanceNorm" not in kind:  # which has none
        ours.load_state_dict({name: value.detach().numpy() for name, value in theirs.state_dict().items()})
    np.testing.assert_allclose(ours(cx.tensor(x)).numpy(), expected.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_lazy_module_is_called_before_it_is_compiled() -> None:
    model = cx.nn.Sequential(cx.nn.LazyLinear(2))
    with pytest.raises(CyxError, match="LazyLinear has no parameters yet"):
        cx.compile(model)(cx.ones(1, 3))
    model.eval()
    model(cx.ones(1, 3))
    assert not model[0].training and cx.compile(model)(cx.ones(1, 3)).shape == (1, 2)


@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.2}, {"weight": [0.5, 1.0, 2.0, 1.5]}, {"reduction": "none"}]
)
@pytest.mark.parametrize("extra", [(), (5,)])
def test_cross_entropy_of_probabilities(extra: tuple[int, ...], options: dict[str, Any]) -> None:
    rng, results = np.random.default_rng(0), []
    x, raw = rng.normal(size=(3, 4, *extra)).astype(np.float32), rng.random((3, 4, *extra)).astype(np.float32)
    for m, function in ((cx, cx.functional.cross_entropy), (torch, torch.nn.functional.cross_entropy)):
        logits, known = m.tensor(x, requires_grad=True), dict(options)
        if "weight" in known:
            known["weight"] = m.tensor(known["weight"])
        loss = function(logits, m.tensor(raw / raw.sum(1, keepdims=True)), **known)
        loss.sum().backward()
        results.append([loss.detach().numpy(), logits.grad.numpy()])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_an_embedding_with_a_padding_row_and_pooling_with_places_in_a_graph() -> None:
    table = cx.nn.Embedding(5, 3, padding_idx=0)
    with cx.no_grad():
        table.weight[0] = cx.tensor([1.0, 2.0, 3.0])  # as loaded weights may have it
    places = cx.tensor(np.array([[0, 4, 2]]))
    np.testing.assert_array_equal(cx.compile(table)(places).numpy(), table(places).detach().numpy())
    pool, images = cx.nn.MaxPool2d(2, return_indices=True), cx.tensor(CUBE[:, None, :2])
    for one, other in zip(cx.compile(pool)(images), pool(images), strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


@pytest.mark.parametrize(
    "name, options, arrays",
    [
        ("TripletMarginLoss", {"p": 1.0, "swap": True, "margin": 0.5}, 3),
        ("TripletMarginLoss", {"reduction": "none"}, 3),
        ("PoissonNLLLoss", {"log_input": False, "full": True}, 2),
        ("PoissonNLLLoss", {"full": True, "reduction": "sum"}, 2),
        ("GaussianNLLLoss", {"full": True, "eps": 1e-3}, 3),
        ("BCELoss", {"weight": "w"}, 2),
        ("BCEWithLogitsLoss", {"weight": "w"}, 2),
    ],
)
def test_options_of_losses(name: str, options: dict[str, Any], arrays: int) -> None:
    given = [np.random.default_rng(n).uniform(0.1, 0.9, (4, 3)).astype(np.float32) * (3 if n else 1) for n in range(3)]
    if name.startswith("BCE"):
        given[1] = (given[1] > 1.5).astype(np.float32)
    results = []
    for m in (cx, torch):
        own = {key: m.tensor(given[2]) if value == "w" else value for key, value in options.items()}
        x = m.tensor(given[0], requires_grad=True)
        loss = getattr(m.nn, name)(**own)(x, *(m.tensor(each) for each in given[1:arrays]))
        loss.sum().backward()
        results.append([loss.detach().numpy(), x.grad.numpy()])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


PLACED = [
    ("Linear", (2, 3)), ("Bilinear", (2, 3, 4)), ("Conv2d", (2, 3, 1)), ("ConvTranspose1d", (2, 3, 1)), ("PReLU", ()),
    ("Embedding", (5, 2)), ("EmbeddingBag", (5, 2)), ("LSTM", (2, 3)), ("GRUCell", (2, 3)), ("BatchNorm1d", (3,)),
    ("GroupNorm", (1, 3)), ("LayerNorm", (3,)), ("RMSNorm", (3,)), ("InstanceNorm1d", (3, 1e-5, 0.1, True)),
    ("MultiheadAttention", (4, 2)), ("TransformerEncoderLayer", (4, 2, 8)), ("Transformer", (4, 2, 1, 1, 8)),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "arguments"), PLACED)
@pytest.mark.filterwarnings("ignore")  # torch warns of transformers that are slower so
def test_layers_are_made_on_a_device_and_of_a_dtype(kind: str, arguments: tuple[Any, ...]) -> None:
    ours = getattr(cx.nn, kind)(*arguments, device=cx.device("cpu"), dtype=cx.float64).state_dict()
    theirs = getattr(torch.nn, kind)(*arguments, device=torch.device("cpu"), dtype=torch.float64).state_dict()
    kinds = {name: str(value.numpy().dtype) for name, value in theirs.items() if "num_batches" not in name}
    assert {name: str(value.dtype) for name, value in ours.items()} == kinds
    with pytest.raises(CyxError, match="expected one of cpu, .*, got 'nowhere'"):
        getattr(cx.nn, kind)(*arguments, device="nowhere")
    with pytest.raises(CyxError, match="expected a float dtype, got int64"):
        getattr(cx.nn, kind)(*arguments, dtype=cx.int64)


def test_a_class_over_a_layer_hands_on_where_it_is_made() -> None:
    class Own(cx.nn.Linear):
        def __init__(self, **factory: Any) -> None:
            super().__init__(2, 3, **factory)

    assert Own(device="cpu", dtype="float64").weight.dtype == "float64" and Own().weight.dtype == "float32"


def test_words_that_pytorch_gave_up_are_taken() -> None:
    cx.nn.MSELoss(size_average=None, reduce=None, reduction="sum")


@pytest.mark.filterwarnings("ignore")
def test_transformers_without_biases_have_the_keys_of_pytorch() -> None:
    for kind, arguments in (("TransformerDecoderLayer", (4, 2, 8)), ("Transformer", (4, 2, 1, 1, 8))):
        ours, theirs = (set(getattr(m.nn, kind)(*arguments, bias=False).state_dict()) for m in (cx, torch))
        assert ours == theirs


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_labels_of_no_class_do_not_count_from_the_end(name: str) -> None:
    rows = np.random.default_rng(0).normal(size=(3, 200)).astype(np.float32)
    ours, theirs = (getattr(m.nn.functional, name)(m.tensor(rows), m.tensor([1, -100, 2])).item() for m in (cx, torch))
    assert ours == pytest.approx(theirs, rel=1e-6)
    kind = {"cross_entropy": "CrossEntropyLoss", "nll_loss": "NLLLoss"}[name]
    for labels, loss in (
        ([1, -1, 2], getattr(cx.nn.functional, name)),
        ([1, 200, 2], getattr(cx.nn.functional, name)),
        ([1, -1, 2], getattr(cx.nn, kind)()),
        ([1, -100, 2], getattr(cx.nn, kind)(ignore_index=5)),
    ):
        wrong = max(labels) if max(labels) > 199 else min(labels)
        with pytest.raises(CyxError, match=rf"{name}: expected labels of 0..199 .*, got {wrong}"):
            loss(cx.tensor(rows), cx.tensor(labels))
    with pytest.raises(CyxError, match=r"multi_margin_loss: expected labels of 0..199 .*, got -1"):
        cx.nn.functional.multi_margin_loss(cx.tensor(rows), cx.tensor([1, -1, 2]))

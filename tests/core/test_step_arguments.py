"""What a compiled step is given, writes in place and returns: as in a plain one, or refused by name."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import functional as F
from cyxcore import nn, optim
from cyxcore.errors import DtypeError, GraphError, ShapeError
from tests.core.steps import batch, net, training_step

pytestmark = pytest.mark.usefixtures("each_device")


def test_a_step_may_ask_where_its_tensors_are_and_make_others_like_them() -> None:
    def function(x: cx.Tensor) -> cx.Tensor:
        x = x.to("float64").to(x).to(x.device, cx.float32).contiguous().data
        return (x + x.new_zeros(6, 8) + x.new_full((6, 8), 2.5) * x.new_ones((8,)) + x.new_tensor([1.0] * 8)).type(
            cx.float64
        )

    x = batch(0)[0]
    assert cx.compile(function)(x).tolist() == function(x).tolist()
    elsewhere = "reference" if cx.default_device() == "cpu" else "cpu"
    with pytest.raises(GraphError, match="one device"):
        cx.compile(lambda x: x.to(elsewhere))(x)


def test_another_shape_is_another_plan_of_the_same_state() -> None:
    cx.manual_seed(0)
    model = nn.Linear(8, 3)
    optimizer = optim.Adam(model.parameters())
    step = cx.compile(training_step(model, optimizer, clip=False))
    for rows in (6, 2, 6):
        x, y = batch(rows)
        step(x[:rows], y[:rows])
    assert optimizer.steps == 3


def test_a_step_returns_what_was_asked_for() -> None:
    model = nn.Linear(8, 3)
    optimizer = optim.SGD(model.parameters())

    @cx.compile
    def step(x: Any, y: Any) -> Any:
        logits = model(x)
        loss = F.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss, logits.argmax(1)

    loss, places = step(*batch(0))
    assert loss.shape == () and places.shape == (6,) and not loss.requires_grad


def test_arguments_may_lie_in_dicts_and_lists_and_be_texts_flags_and_none() -> None:
    model = nn.Linear(8, 3)

    def score(data: Any, kind: str = "sum", *, doubled: bool = False, mask: Any = None) -> Any:
        y = model(data["x"]) - data["more"][0] * data["more"][1]
        y = y if mask is None else y * mask
        y = y.sum() if kind == "sum" else y.mean()
        return {"score": y * 2 if doubled else y}

    compiled = cx.compile(score)
    for seed in range(2):
        data = {"x": batch(seed)[0], "more": [cx.full((3,), 2.0), np.ones(3, np.float32)]}
        for args, named in [
            ((data,), {}),
            ((data, "mean"), {}),
            ((data,), {"doubled": True, "kind": "mean"}),
            ((data,), {"mask": cx.ones(3), "doubled": False}),
        ]:
            plain = score(*args, **named)["score"].detach().numpy()
            np.testing.assert_array_equal(compiled(*args, **named)["score"].numpy(), plain)
    assert len(compiled._plans) == 4  # none was traced again


def test_a_training_step_takes_a_batch_as_a_dict() -> None:
    def trained(how: Callable[[Any], Any]) -> Any:
        cx.manual_seed(3)
        model = nn.Linear(8, 3)
        optimizer = optim.SGD(model.parameters(), lr=0.5)

        def step(data: Any, label_smoothing: float, last: bool = False) -> Any:
            loss = F.cross_entropy(model(data["x"]), data["y"]) * label_smoothing
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return (loss, model.weight.detach().clone()) if last else loss

        step = how(step)
        for seed in range(3):
            x, y = batch(seed)
            found = step({"x": x, "y": y}, 0.5 + seed, last=seed == 2)
        return [part.numpy() for part in found]

    for plain, compiled in zip(trained(lambda step: step), trained(cx.compile), strict=True):
        np.testing.assert_array_equal(compiled, plain)


def _average(model: Any, other: Any, loss: Any, x: Any) -> None:
    for average, p in zip(other.parameters(), model.parameters(), strict=True):
        average.mul_(0.9).add_(p, alpha=0.1)


def _clamp(model: Any, other: Any, loss: Any, x: Any) -> None:
    for p in model.parameters():
        p.clamp_(-0.1, 0.1)
        p += 0.01
    model[3].bias.zero_()
    model[0].bias.fill_(0.5)


def _copy(model: Any, other: Any, loss: Any, x: Any) -> None:
    other[0].weight.copy_(x.mean(0))
    other[0].bias.copy_(loss)
    model[1].running_mean.mul_(0.5)


@pytest.mark.parametrize("write", [_average, _clamp, _copy])
@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_a_step_writes_in_place_to_parameters_buffers_and_tensors_from_outside(write: Any, when: str) -> None:
    def trained(how: Callable[[Any], Any]) -> list[Any]:
        cx.manual_seed(3)
        model, other, calls = net(), net(), cx.zeros(())
        optimizer = optim.Adam(model.parameters(), lr=0.05)

        def step(x: Any, y: Any) -> Any:
            if when == "before":
                with cx.no_grad():
                    write(model, other, x.sum(), x)
            loss = F.cross_entropy(model(x), y) + F.mse_loss(model(x * 2), other(x).detach())
            optimizer.zero_grad()
            loss.backward()
            if when == "between":
                with cx.no_grad():
                    write(model, other, loss, x)
                F.cross_entropy(model(x), y).backward()
            optimizer.step()
            if when == "after":
                with cx.no_grad():
                    write(model, other, loss, x)
            calls.add_(1)
            return loss, calls.clone()

        step, found = how(step), []
        for number in range(4):
            found += [part.detach().numpy().copy() for part in step(*batch(number))]
        held = (model.state_dict(), other.state_dict())
        return [*found, *[array for state in held for _, array in sorted(state.items())], calls.numpy()]

    for plain, compiled in zip(trained(lambda step: step), trained(cx.compile), strict=True):
        np.testing.assert_array_equal(compiled, plain)


def test_a_step_writes_in_place_what_a_plain_one_does_and_no_more() -> None:
    weight, count = cx.zeros(3, requires_grad=True), cx.tensor(0)

    def with_gradients(x: Any) -> Any:
        weight.mul_(2.0)
        (weight * x).sum().backward()
        return x.sum()

    def of_another_kind(x: Any) -> Any:
        (weight * x).sum().backward()
        count.add_(x.sum())
        return x.sum()

    def of_another_shape(x: Any) -> Any:
        (weight * x).sum().backward()
        count.add_(cx.ones(2, dtype="int64"))
        return x.sum()

    for function, error in (
        (with_gradients, GraphError),
        (of_another_kind, DtypeError),
        (of_another_shape, ShapeError),
    ):
        with pytest.raises(error):
            cx.compile(function)(cx.ones(3))
    assert weight.tolist() == [0.0] * 3 and count.item() == 0


NUMBERS_GIVEN: dict[str, Callable[[Any, Any], Any]] = {
    "product": lambda x, n: n * x,
    "quotient": lambda x, n: x / n,
    "chain": lambda x, n: x * (n * n + 1 - n / 2) - (-n),
    "choice": lambda x, n: cx.where(x > n, x, n) + cx.where(x > 0, n, 0.0) + cx.where(x > 0, n, n * 2),
    "comparison": lambda x, n: x * (n > 1),
    "tensor": lambda x, n: x * cx.asarray(n),
    # the value is asked for
    "power": lambda x, n: (x + 2) ** n,
    "branch": lambda x, n: x * 2 if n > 1 else x,
    "size": lambda x, n: x[: int(n)] + cx.full((3,), n)[: int(n)],
    "rounded": lambda x, n: x * round(n),
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "int32", "bool"])
@pytest.mark.parametrize("name", NUMBERS_GIVEN)
def test_a_number_as_an_argument_has_the_dtype_of_what_it_meets(name: str, dtype: str) -> None:
    function = NUMBERS_GIVEN[name]
    compiled, x = cx.compile(function), cx.tensor([-1.0, 0.25, 2.0]).astype(dtype)
    for number in (0.1, 3, 2.5, 0.5, 2, 0.1):
        plain, found = function(x, number), compiled(x, number)
        assert found.dtype == plain.dtype
        np.testing.assert_array_equal(found.numpy(), plain.numpy())


def test_numbers_are_read_anew_in_each_call_until_their_values_are_asked_for() -> None:
    @cx.compile
    def scaled(x: Any, rate: float, rows: int, kind: str = "plain") -> Any:
        return x[:rows] * rate if kind == "cut" else x * rate + rows

    x = cx.arange(6.0)
    for number in range(5):
        assert scaled(x, number / 2, number).tolist() == [i * number / 2 + number for i in range(6)]
    assert len(scaled._plans) == 1
    for number in range(5):
        assert scaled(x, number / 2, 2, kind="cut").tolist() == [0.0, number / 2]
    assert len(scaled._plans) == 2  # of integers the value is a part of the plan, of the rate it is not


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_a_compiled_function_returns_of_16_bits_can_be_used(dtype: str) -> None:
    x = cx.tensor([0.5, -1.5]).astype(dtype)
    found = cx.compile(lambda x: x * x + x)(x)
    assert found.dtype == dtype and found.astype("float32").tolist() == [0.75, 0.75]


def test_an_argument_that_is_no_tensor_is_named() -> None:
    with pytest.raises(GraphError, match=r"got a set"):
        cx.compile(lambda x: x)({1, 2})


@pytest.mark.parametrize(
    "read",
    [
        lambda w: w.detach().clone(),
        lambda w: w.detach() * 1.0,
        lambda w: w.detach().reshape(-1).clone(),
        lambda w: w.sum().detach(),
        lambda w: w.detach(),  # a view, which shows the update
    ],
)
def test_what_a_step_returns_of_a_parameter_before_its_update_is_what_it_was_then(read: Any) -> None:
    def trained(how: Callable[[Any], Any]) -> list[Any]:
        cx.manual_seed(3)
        model = nn.Linear(4, 3)
        optimizer = cx.optim.SGD(model.parameters(), lr=0.5)

        def step(x: Any) -> Any:
            before = read(model.weight)
            loss = (model(x) ** 2).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss, before, model.weight.detach().clone()

        step, found = how(step), []
        for row in (cx.ones(2, 4), cx.full((2, 4), 0.5)):
            found += [part.numpy().copy() for part in step(row)]
        return found

    for plain, compiled in zip(trained(lambda step: step), trained(cx.compile), strict=True):
        np.testing.assert_array_equal(compiled, plain)


def test_buffers_may_change_places_in_a_compiled_step() -> None:
    class Recent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(3, 3)
            for place, name in enumerate(("last", "one_before", "two_before", "other")):
                self.register_buffer(name, cx.full((3,), float(place)))

        def forward(self, x: Any) -> Any:
            y = self.line(x + self.last + self.one_before * self.two_before - self.other)
            self.two_before = self.one_before * 1.0
            self.one_before, self.other = self.other, self.last.clone()
            self.last = y.detach()[0]
            return y

    def trained(how: Callable[[Any], Any]) -> list[Any]:
        cx.manual_seed(3)
        model = Recent()
        optimizer = cx.optim.SGD(model.parameters(), lr=0.1)

        def step(x: Any) -> Any:
            loss = model(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        step, found = how(step), []
        for place in range(4):
            found += [step(cx.full((2, 3), place + 1.0)).numpy()]
            found += [buffer.copy() for _, buffer in sorted(model.state_dict().items())]
        return found

    for plain, compiled in zip(trained(lambda step: step), trained(cx.compile), strict=True):
        np.testing.assert_array_equal(compiled, plain)


def test_what_cannot_be_compiled_is_said() -> None:
    model = nn.Linear(8, 3)
    own = optim.SGD(model.parameters())

    def twice(x: Any, y: Any) -> Any:
        F.cross_entropy(model(x), y).backward()
        own.step()
        own.step()

    def nothing(x: Any, y: Any) -> Any:
        F.cross_entropy(model(x), y).backward()
        own.step()

    def looks(x: Any, y: Any) -> Any:
        loss = F.cross_entropy(model(x), y)
        own.step()
        return loss.item()

    for function, said in (
        (twice, "at most one step"),
        (nothing, "expected the step to return tensors"),
        (looks, "item"),
    ):
        with pytest.raises(GraphError, match=said):
            cx.compile(function)(*batch(0))
    assert own.steps == 0 and isinstance(own.param_groups[0]["params"][0], cx.Tensor)
    own.zero_grad()
    F.cross_entropy(model(batch(0)[0]), batch(0)[1]).backward()
    own.step()

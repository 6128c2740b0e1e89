"""Compiled training steps: to the last bit the plain ones, and one may follow the other."""

import functools
import random
from collections.abc import Callable
from random import uniform
from threading import Barrier, Thread
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import functional as F
from cyxcore import nn, optim
from cyxcore.errors import CyxError, DtypeError, GradientError, GraphError, ShapeError
from cyxcore.kernels import cpu

pytestmark = pytest.mark.usefixtures("each_device")


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def batch(number: int) -> tuple[cx.Tensor, cx.Tensor]:
    rng = np.random.default_rng(number)
    return cx.tensor(rng.normal(size=(6, 8)).astype(np.float32)), cx.tensor(rng.integers(0, 3, 6))


def training_step(model: nn.Module, optimizer: optim.Optimizer, clip: bool = True) -> Callable[..., Any]:
    def step(x: cx.Tensor, y: cx.Tensor) -> cx.Tensor:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        if clip:
            optim.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        return loss

    return step


def trained(make: Any, choose: Callable[[Any, int], Any]) -> tuple[list[float], dict[str, Any]]:
    """Six steps; choose(step, number) says which callable makes it."""
    cx.manual_seed(0)
    model = net()
    optimizer = make(model.parameters())
    step = training_step(model, optimizer)
    both = (step, cx.compile(step))
    losses = []
    for number in range(6):
        losses.append(choose(both, number)(*batch(number)).item())
        if number == 3:
            optimizer.lr *= 0.5
    assert optimizer.steps == 6
    return losses, {name: value.tolist() for name, value in model.state_dict().items()}


def test_a_step_of_two_networks_against_each_other_is_the_plain_one() -> None:
    """What is detached gets no gradient; after a step the second pass sees the new weights and running means."""

    def run(compiled: bool) -> tuple[list[list[float]], list[Any]]:
        cx.manual_seed(0)
        maker = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8))
        critic = net()
        of_maker, of_critic = optim.Adam(maker.parameters(), lr=0.05), optim.SGD(critic.parameters(), lr=0.1)

        def step(real: cx.Tensor, noise: cx.Tensor) -> tuple[cx.Tensor, cx.Tensor]:
            made = maker(noise)
            of_critic.zero_grad()
            loss = F.softplus(-critic(real)).mean() + F.softplus(critic(made.detach())).mean()
            loss.backward()
            of_critic.step()
            of_maker.zero_grad()
            fooled = F.softplus(-critic(made)).mean()
            fooled.backward()
            of_maker.step()
            return loss, fooled

        made_ready = cx.compile(step) if compiled else step
        losses = [[one.item() for one in made_ready(batch(n)[0], batch(n + 9)[0][:, :3])] for n in range(4)]
        return losses, [value.tolist() for part in (maker, critic) for value in part.state_dict().values()]

    assert run(compiled=True) == run(compiled=False)


@pytest.mark.parametrize("how", ["detach", "no_grad"])
def test_what_a_teacher_says_has_no_gradient_in_a_compiled_step(how: str) -> None:
    """The teacher shares its first layer with what is trained: the same call is there with and without a gradient."""

    def run(compiled: bool) -> tuple[list[float], list[Any]]:
        cx.manual_seed(0)
        shared, head, other = nn.Linear(8, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        parameters = [*shared.parameters(), *head.parameters(), *other.parameters()]
        optimizer = optim.SGD(parameters, lr=0.1, momentum=0.9)

        def step(x: cx.Tensor) -> cx.Tensor:
            if how == "detach":
                wanted = other(shared(x).tanh()).detach()
            else:
                with cx.no_grad():
                    wanted = other(shared(x).tanh())
            loss = F.mse_loss(head(shared(x).tanh()), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        made_ready = cx.compile(step) if compiled else step
        return [made_ready(batch(n)[0]).item() for n in range(4)], [p.tolist() for p in parameters]

    assert run(compiled=True) == run(compiled=False)


@pytest.mark.parametrize(
    "name", "SGD Adam AdamW NAdam RMSprop Adagrad Lion Adamax RAdam Adadelta Adafactor Rprop ASGD".split()
)
def test_a_compiled_step_is_the_plain_one_to_the_last_bit(name: str) -> None:
    make = getattr(optim, name)
    plain = trained(make, lambda both, number: both[0])
    if name == "NAdam" and cx.default_device() == "cuda":
        return  # its products of scalars are the host's in a plain step, the device's in a compiled one
    assert trained(make, lambda both, number: both[1]) == plain
    assert trained(make, lambda both, number: both[number % 2]) == plain


def test_a_closure_computes_the_loss_of_a_compiled_step_too() -> None:
    def run(compiled: bool) -> list[Any]:
        cx.manual_seed(0)
        model = nn.Linear(8, 3)
        optimizer = optim.Adam(model.parameters(), lr=0.1)

        def step(x: Any, y: Any) -> Any:
            def closure() -> Any:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                return loss

            return optimizer.step(closure)

        made_ready = cx.compile(step) if compiled else step
        return [made_ready(*batch(number)).item() for number in range(3)] + model.weight.tolist()

    assert run(compiled=True) == run(compiled=False)


def test_groups_keep_their_own_learning_rates() -> None:
    def weights(compiled: bool) -> list[Any]:
        cx.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 3))
        groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[1].parameters(), "weight_decay": 0.1}]
        step = training_step(model, optim.AdamW(groups, lr=0.01), clip=False)
        step = cx.compile(step) if compiled else step
        for number in range(3):
            step(*batch(number))
        return [value.tolist() for value in model.state_dict().values()]

    assert weights(True) == weights(False)


def test_dropout_draws_anew_in_each_step_and_eval_draws_nothing() -> None:
    cx.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.5), nn.Linear(64, 3))
    optimizer = optim.SGD(model.parameters(), lr=0.0)
    step = cx.compile(training_step(model, optimizer, clip=False))
    x, y = batch(0)
    assert step(x, y).item() != step(x, y).item()
    model.eval()
    assert step(x, y).item() == step(x, y).item() == F.cross_entropy(model(x), y).item()


def test_random_numbers_of_compiled_steps_and_functions_are_those_of_plain_ones() -> None:
    """Draws before, between and after them too: each takes a key."""

    def run(compiled: Callable[[int], bool]) -> list[Any]:
        cx.manual_seed(3)
        model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))
        step = training_step(model, optim.Adam(model.parameters()))
        dropped = functools.partial(F.dropout, p=0.5, training=True)
        both, either = (step, cx.compile(step)), (dropped, cx.compile(lambda x: F.dropout(x, 0.5, training=True)))
        found: list[Any] = []
        for number in range(4):
            found.append(both[compiled(number)](*batch(number)).item())
            found.append(either[compiled(number)](batch(number)[0]).tolist())
            found.append(cx.rand(1).item())
        model.eval()
        answer = (model, cx.compile(model))[compiled(0)]
        return [*found, answer(batch(0)[0]).tolist(), cx.rand(1).item()]

    plain = run(lambda number: False)
    assert run(lambda number: True) == plain
    assert run(lambda number: number % 2 == 0) == plain


def test_noise_of_compiled_steps_is_drawn_anew_and_that_of_plain_ones() -> None:
    """As in a variational autoencoder; of the common generator and of one's own."""

    def run(compiled: Callable[[int], bool]) -> list[Any]:
        cx.manual_seed(3)
        own = cx.random.Generator(5)
        model = nn.Linear(8, 3)
        optimizer = optim.Adam(model.parameters(), lr=0.1)

        def step(x: cx.Tensor) -> cx.Tensor:
            h = F.dropout(model(x), 0.3)
            noisy = h + cx.randn_like(h) * h.exp() + cx.randn(6, 3) * 0.1 + cx.rand(3) + own.normal(size=3)
            loss = noisy[cx.randperm(6)].square().mean() + cx.random.integers(0, 4, (3,)).astype("float32").mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        both, noise = (step, cx.compile(step)), cx.compile(lambda x: x + cx.randn(8))
        found: list[Any] = []
        for number in range(4):
            found.append(both[compiled(number)](batch(number)[0]).item())
            drawn = noise(cx.zeros(6, 8)) if compiled(number) else cx.zeros(6, 8) + cx.randn(8)
            found += [drawn.tolist(), cx.rand(1).item()]
        return [*found, own.normal().item()]

    plain = run(lambda number: False)
    assert run(lambda number: True) == plain
    assert run(lambda number: number % 2 == 0) == plain


def test_a_generator_made_in_a_compiled_function_gives_the_same_in_each_call() -> None:
    function = cx.compile(lambda x: x + cx.random.Generator(3).normal(size=(6, 8)))
    x = batch(0)[0]
    assert function(x).tolist() == function(x).tolist() == (x + cx.random.Generator(3).normal(size=(6, 8))).tolist()


OWN = cx.random.Generator(3)
ONCE: dict[str, Callable[[Any], Any]] = {
    "a new layer": lambda x: nn.Linear(8, 3)(x),
    "a seed": lambda x: x + OWN.manual_seed(3).normal(),
    "the common seed": lambda x: x if cx.manual_seed(3) is None else x,
    "generators of a generator": lambda x: x + OWN.split()[0].normal(),
}


@pytest.mark.parametrize("name", ONCE)
def test_what_would_be_drawn_in_the_first_call_alone_is_refused(name: str) -> None:
    with pytest.raises(GraphError, match="of the first call alone"):
        cx.compile(ONCE[name])(batch(0)[0])
    assert cx.rand(1).shape == (1,)


NUMPYS, PYTHONS = np.random.default_rng(3), random.Random(3)
ELSEWHERE: dict[str, Callable[[Any], Any]] = {
    "NUMPYS": lambda x: x + float(NUMPYS.normal()),
    "PYTHONS": lambda x: x * PYTHONS.random(),
    "numpy.random": lambda x: x + np.random.rand(8).astype(np.float32),  # noqa: NPY002 - programs have it
    "random": lambda x: x * random.random(),
    "(random|uniform)": lambda x: x * uniform(0, 1),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_draws_of_other_generators_than_ours_are_refused(name: str) -> None:
    with pytest.raises(GraphError, match=f"draws from {name}, which only its first call would do"):
        cx.compile(ELSEWHERE[name])(batch(0)[0])


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


class Residual(nn.Module):
    """Values that several later ones use: their gradients are sums of three and more, where the order shows."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.out, self.up = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: cx.Tensor) -> cx.Tensor:
        x = x * 2.0
        both = self.qkv(self.norm(x)).reshape(6, 4, 3, 2, 8)
        q, k, v = (both[:, :, place].transpose(0, 2, 1, 3) for place in range(3))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 2, 1, 3).reshape(6, 4, 16)
        x = x + self.out(mixed) + self.up(x) * x
        x = x + F.gelu(self.up(self.norm2(x)), approximate="tanh") + self.qkv(x)[:, :, :16] * self.out(x)
        return self.head(x)[:, -1]


def test_gradients_of_many_parts_are_summed_in_one_order_compiled_and_not() -> None:
    def weights(compiled: bool) -> list[list[float]]:
        cx.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 16), Residual())
        step = training_step(model, optim.SGD(model.parameters(), lr=0.1))
        step = cx.compile(step) if compiled else step
        rng = np.random.default_rng(0)
        x, y = cx.tensor(rng.normal(size=(6, 4, 16)).astype(np.float32)), cx.tensor(rng.integers(0, 3, 6))
        for _ in range(3):
            step(x, y)
        return [value.reshape(-1).tolist() for value in model.state_dict().values()]

    assert weights(False) == weights(True)


class Twice(nn.Module):
    """Calls that are made twice in the same words: each has a gradient of its own, and they are added up afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.scale = nn.Linear(8, 8), nn.Linear(8, 3), nn.Parameter(np.float32([0.3]))

    def forward(self, x: cx.Tensor) -> cx.Tensor:
        h = self.body(x).tanh()
        scaled = self.scale.exp() * self.head(h) + self.scale.exp() * (self.head(h) - 1.0).square()
        return scaled - self.head(h).logsumexp(-1, keepdim=True) * self.body(x).tanh()[:, :3]


def test_what_is_computed_twice_has_two_gradients_compiled_and_not() -> None:
    def run(compiled: bool) -> list[Any]:
        cx.manual_seed(0)
        model = Twice()
        step = training_step(model, optim.Adam(model.parameters(), lr=0.05))
        step = cx.compile(step) if compiled else step
        losses = [step(*batch(number)).tolist() for number in range(5)]
        return [losses, *(value.tolist() for value in model.state_dict().values())]

    assert run(True) == run(False)


def test_the_gradient_of_a_copy_is_added_up_by_itself_compiled_and_not() -> None:
    def run(compiled: bool) -> list[Any]:
        cx.manual_seed(0)
        model = nn.Linear(8, 3)
        optimizer = optim.SGD(model.parameters(), lr=0.1)

        def step(x: cx.Tensor) -> cx.Tensor:
            h = model(x)
            other = h.clone()
            loss = h.mean() * 0.1 + (h * other.sigmoid() + other * h.sigmoid()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        made_ready = cx.compile(step) if compiled else step
        return [made_ready(batch(number)[0]).item() for number in range(5)] + model.weight.tolist()

    assert run(True) == run(False)


def test_a_compiled_gradient_of_what_is_computed_twice_is_the_plain_one() -> None:
    def energy(x: cx.Tensor) -> cx.Tensor:
        return (x.exp() * x).sum() + (x.exp() * 3.3).sum() + (x.exp() * x * x).sum()

    x = batch(0)[0]
    assert cx.compile(cx.grad(energy))(x).tolist() == cx.grad(energy)(x).tolist()


def freeze(model: nn.Module, optimizer: optim.Optimizer) -> None:
    model[0].weight.requires_grad = False


def replace(model: nn.Module, optimizer: optim.Optimizer) -> None:
    model[3].bias = nn.Parameter(np.ones(3, np.float32))
    optimizer.param_groups[0]["params"][-1] = model[3].bias


CHANGES: dict[str, Callable[[Any, Any], Any]] = {
    "learning rate of another group dict": lambda model, optimizer: optimizer.param_groups.__setitem__(
        0, {**optimizer.param_groups[0], "lr": 0.5}
    ),
    "betas": lambda model, optimizer: optimizer.param_groups[0].update(betas=(0.5, 0.5)),
    "one part in evaluation": lambda model, optimizer: model[1].eval(),
    "a frozen parameter": freeze,
    "a parameter thawed": lambda model, optimizer: model[3].bias.requires_grad_(True),
    "a parameter replaced": replace,
    "a parameter less": lambda model, optimizer: optimizer.param_groups[0]["params"].pop(),
    "other weights": lambda model, optimizer: model.load_state_dict(
        {name: value * 0 + 1 for name, value in model.state_dict().items()}
    ),
    "the optimiser's state before its first step": lambda model, optimizer: optimizer.load_state_dict(
        optim.Adam(model.parameters(), lr=0.05).state_dict()
    ),
    "the optimiser's state cleared": lambda model, optimizer: optimizer.state.clear(),
    "the state of a parameter taken out": lambda model, optimizer: optimizer.state.pop(2),
    "the state of a parameter deleted": lambda model, optimizer: optimizer.state.__delitem__(0),
    "the state of the last parameter taken out": lambda model, optimizer: optimizer.state.popitem(),
    "the state of a parameter replaced": lambda model, optimizer: optimizer.state.__setitem__(
        0, {name: slot * 0.5 for name, slot in optimizer.state[0].items()}
    ),
    "the state of parameters updated": lambda model, optimizer: optimizer.state.update(
        {2: {name: slot * 0.5 for name, slot in optimizer.state[2].items()}}
    ),
    "state added for a place that has none": lambda model, optimizer: (
        dict.pop(optimizer.state, 0),
        optimizer.state.setdefault(0, {}),
    ),
    "an array of a state replaced": lambda model, optimizer: optimizer.state[0].update(
        {name: slot * 0.5 for name, slot in optimizer.state[0].items()}
    ),
    "an array of a state assigned": lambda model, optimizer: optimizer.state[2].__setitem__(
        "adam_m", cx.zeros_like(optimizer.state[2]["adam_m"])
    ),
    "the arrays of a state cleared": lambda model, optimizer: optimizer.state[0].clear(),
    "an array of a state taken out": lambda model, optimizer: optimizer.state[0].pop("adam_v"),
    "an array of a state deleted": lambda model, optimizer: optimizer.state[2].__delitem__("adam_m"),
    "a state of the user's": lambda model, optimizer: setattr(optimizer, "state", {}),
    "betas in a list": lambda model, optimizer: optimizer.param_groups[0].update(betas=[0.5, 0.5]),
    "threads": lambda model, optimizer: cpu.set_num_threads(3),
    "a momentum that is cycled from now on": lambda model, optimizer: vars(optimizer).update(cycles_momentum=True),
    "momentum of a norm": lambda model, optimizer: setattr(model[1], "momentum", 0.9),
    "a rate that is no float": lambda model, optimizer: optimizer.param_groups[0].update(lr=np.float32(0.25)),
    "a hook": lambda model, optimizer: optimizer.register_step_pre_hook(
        lambda optimizer, args, options: optimizer.param_groups[0].update(lr=0.25)
    ),
    "a part replaced": lambda model, optimizer: model._modules.update({"2": nn.Tanh()}),
}


@pytest.mark.parametrize("after", [2, 5])  # calls: from the sixth on they are made without Python
@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_between_steps_changes_a_compiled_step_as_a_plain_one(name: str, after: int) -> None:
    def run(compiled: bool) -> dict[str, Any]:
        cx.manual_seed(0)
        model = net()
        model[3].bias.requires_grad = name != "a parameter thawed"
        optimizer = optim.Adam(model.parameters(), lr=0.05)
        step = training_step(model, optimizer, clip=False)
        step = cx.compile(step) if compiled else step
        for number in range(after + 2):
            if number == after:
                CHANGES[name](model, optimizer)
            step(*batch(number))
        state = {place: [held.tolist() for held in own.values()] for place, own in optimizer.state.items()}
        return {name: value.tolist() for name, value in model.state_dict().items()} | {"optimizer": state}

    threads = cpu.get_num_threads()
    try:
        assert run(True) == run(False)
    finally:
        cpu.set_num_threads(threads)


def test_steps_that_nothing_happened_between_compare_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    optimizer = optim.Adam(model.parameters(), lr=0.05)
    schedule = optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
    step, function = cx.compile(training_step(model, optimizer, clip=False)), cx.compile(model)
    for number in range(5):
        step(*batch(number)), function(batch(number)[0])
        schedule.step()
    monkeypatch.setattr("cyxcore.steps.Bound.key", None)  # called no more
    for number in range(3):
        step(*batch(number)), function(batch(number)[0])
        schedule.step()


@pytest.mark.parametrize("steps", [1, 5])  # from the sixth on they are made without Python
def test_a_step_that_fails_is_none(steps: int) -> None:
    model = net()
    optimizer = optim.Adam(model.parameters())
    step = cx.compile(training_step(model, optimizer, clip=False))
    for _ in range(steps):
        step(*batch(0))
    before = {name: value.tolist() for name, value in model.state_dict().items()}
    x, y = batch(1)
    if cx.default_device() == "cpu":  # elsewhere labels are not looked at
        with pytest.raises(CyxError, match="label"):
            step(x, y * 0 + 3)
    with cx.no_grad(), pytest.raises(GradientError, match="no_grad"):
        step(x, y)
    assert optimizer.steps == steps
    assert {name: value.tolist() for name, value in model.state_dict().items()} == before
    step(x, y)
    assert optimizer.steps == steps + 1


def test_calls_of_other_arguments_come_between_those_that_are_alike() -> None:
    def run(compiled: bool) -> list[Any]:
        cx.manual_seed(0)
        model = net()
        optimizer = optim.Adam(model.parameters())
        step, answer = training_step(model, optimizer, clip=False), lambda x: model[0](x)
        if compiled:
            step, answer = cx.compile(step), cx.compile(answer)
        x, y = batch(0)
        found = [step(x, y).tolist() for _ in range(4)] + [answer(x).tolist() for _ in range(4)]
        found += [step(x[:4], y[:4]).tolist(), step(x[::2], y[::2]).tolist(), step(x, y=y).tolist()]
        found += [answer(x[:4]).tolist(), answer(x).tolist()]
        with cx.no_grad():
            found.append(answer(x).tolist())
        return [*found, step(x, y).tolist(), model.state_dict()["0.weight"].tolist()]

    assert run(True) == run(False)


def test_threads_that_share_a_compiled_step_take_turns() -> None:
    def run(threads: int) -> tuple[int, dict[str, Any], list[Any]]:
        cx.manual_seed(0)
        model = net()
        optimizer = optim.SGD(model.parameters())
        step, together = cx.compile(training_step(model, optimizer)), Barrier(threads)
        answer, answers = cx.compile(nn.Linear(8, 3)), list[Any]()

        def some() -> None:
            together.wait()
            for _ in range(60 // threads):
                step(*batch(0))
                answers.append(answer(batch(0)[0]).tolist())

        running = [Thread(target=some) for _ in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        return optimizer.steps, {name: value.tolist() for name, value in model.state_dict().items()}, answers

    assert run(3) == run(1)


def test_an_argument_in_the_memory_of_a_weight_is_read_as_it_was_before_the_step() -> None:
    def run(compiled: bool) -> list[Any]:
        cx.manual_seed(0)
        model = nn.Linear(8, 3)
        optimizer = optim.Adam(model.parameters(), lr=0.05)
        step = training_step(model, optimizer, clip=False)
        step, (x, y) = cx.compile(step) if compiled else step, batch(0)
        losses = [step(x[:3], y[:3]).item() for _ in range(4)]
        losses += [step(model.weight.detach(), y[:3]).item() for _ in range(3)]
        return [*losses, step(x[1:4], y[:3]).item(), model.weight.tolist()]

    assert run(True) == run(False)


def test_a_compiled_module_follows_its_parts() -> None:
    model = net().eval()
    x, _ = batch(0)
    answer = cx.compile(model)
    answer(x)
    model[3].weight = nn.Parameter(np.ones((3, 16), np.float32))
    assert answer(x).tolist() == model(x).tolist()


class Counting(nn.Module):
    def __init__(self, counts: bool) -> None:
        super().__init__()
        self.scale, self.calls, self.epoch, self.sides, self.counts = 2.0, 0, 0, (1, 1), counts

    def forward(self, x: Any) -> Any:
        if self.counts:
            self.calls += 1
        return (x * self.scale).sum() * self.sides[0]


def test_a_number_that_a_module_computes_with_makes_another_plan_and_one_that_it_counts_is_refused() -> None:
    model = Counting(counts=False)
    x = cx.ones(3)
    module, function = cx.compile(model), cx.compile(lambda x: model(x) + 1.0)
    assert (module(x).item(), function(x).item()) == (6.0, 7.0)
    model.scale = 3.0
    assert (module(x).item(), function(x).item()) == (9.0, 10.0)
    model.sides = (2, 1)
    assert (module(x).item(), function(x).item()) == (18.0, 19.0)
    plans = len(module._plans), len(function._plans)
    for _ in range(3):
        model.epoch += 1
        assert (module(x).item(), function(x).item()) == (18.0, 19.0)
    assert (len(module._plans), len(function._plans)) == plans
    with pytest.raises(GraphError, match="assigns to 'calls' outside of it"):
        cx.compile(Counting(counts=True))(x)


def test_a_compiled_function_keeps_so_many_plans_and_makes_the_others_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cyxcore.steps.MOST_PLANS", 3)
    model = nn.Linear(8, 3)
    optimizer = optim.SGD(model.parameters(), lr=0.0)
    step = cx.compile(training_step(model, optimizer, clip=False))
    function = cx.compile(lambda x: x * 2.0)
    for rows in (1, 2, 3, 1, 4, 5, 1, 1):
        x, y = cx.ones(rows, 8), cx.zeros(rows, dtype="int64")
        assert step(x, y).item() == F.cross_entropy(model(x), y).item()
        assert function(x).shape == (rows, 8)
    for compiled in (step, function):
        assert [key[3][0] if compiled is step else key[2][0] for key in compiled._plans] == [
            (4, 8),
            (5, 8),
            (1, 8),
        ]


@pytest.mark.parametrize("compiled", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("at_end", [True, False])
def test_gradients_are_gathered_over_several_calls_compiled_or_not(compiled: tuple[bool, bool], at_end: bool) -> None:
    """Three batches make a step; only the last call names the optimiser, and a gradient stays where it is left."""

    def run(compiled: tuple[bool, bool]) -> list[Any]:
        cx.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 3))
        optimizer = optim.Adam(model.parameters(), lr=0.05)

        def gather(x: Any, y: Any) -> Any:
            loss = F.cross_entropy(model(x), y) / 3
            loss.backward()
            return loss

        def last(x: Any, y: Any) -> Any:
            loss = gather(x, y)
            optim.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            if at_end:
                optimizer.zero_grad()
            return loss

        first, final = (cx.compile(f) if c else f for f, c in zip((gather, last), compiled, strict=True))
        found: list[Any] = []
        for number in range(8):
            found.append((final if number % 3 == 2 else first)(*batch(number)).item())
            found.append([None if p.grad is None else p.grad.tolist() for p in model.parameters()])
            if number % 3 == 2:
                optimizer.zero_grad()
        return found

    assert run(compiled) == run((False, False))


# What a step reads besides its arguments -----------------------------------------------------------------

SCALE, SHIFT = cx.tensor([2.0]), 0.5


class Agent:
    """As code is that was not written for this: a step in a method, helpers, things in attributes and lists."""

    def __init__(self) -> None:
        cx.manual_seed(0)
        self.policies = {"main": nn.Linear(8, 3)}
        self.optimizer = optim.SGD(self.policies["main"].parameters(), lr=0.1, momentum=0.9)
        self.weight, self.share, self.steps = cx.ones(3), 0.25, 0
        self.options: dict[str, Any] = {"power": 1.0}
        self.terms = [cx.ones(3), cx.zeros(3)]

    def loss(self, x: cx.Tensor) -> cx.Tensor:
        found = (self.policies["main"](x) * self.weight).square().mean() * self.share
        return found * self.options["power"] + sum(self.terms).mean()

    def step(self, x: cx.Tensor) -> cx.Tensor:
        loss = self.loss(x)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss


def changed_by_hand(run: Callable[[Any], Any], change: Callable[[int], None]) -> list[float]:
    found = []
    for number in range(4):
        found.append(run(batch(number)[0]).item())
        change(number)
    return found


@pytest.mark.parametrize("how", ["written", "another", "number", "option", "in a list"])
def test_what_an_object_holds_is_read_anew_where_it_changed(how: str) -> None:
    def run(compiled: bool) -> tuple[list[float], list[Any]]:
        agent = Agent()

        def change(number: int) -> None:
            agent.steps += 1  # which the step does not read
            if how == "written":
                agent.weight[...] = agent.weight * 1.5
            elif how == "another":
                agent.weight = agent.weight * 1.5
            elif how == "number":
                agent.share *= 1.5
            elif how == "option":
                agent.options["power"] *= 1.5
            else:
                agent.terms[1].add_(1.0)

        made = cx.compile(agent.step) if compiled else agent.step
        return changed_by_hand(made, change), agent.policies["main"].weight.tolist()

    assert run(True) == run(False)


def test_a_step_finds_modules_and_optimisers_through_functions_and_objects() -> None:
    def run(compiled: bool) -> tuple[list[float], list[Any]]:
        agent = Agent()

        def forward(x: cx.Tensor) -> cx.Tensor:
            return agent.loss(x) + agent.policies["main"](x).mean()

        halved = functools.partial(lambda f, x: f(x) * 0.5, forward)

        def update(loss: cx.Tensor) -> None:
            agent.optimizer.zero_grad()
            loss.backward()
            agent.optimizer.step()

        def step(x: cx.Tensor) -> cx.Tensor:
            loss = halved(x)
            update(loss)
            return loss

        made = cx.compile(step) if compiled else step
        return [made(batch(n)[0]).item() for n in range(3)], agent.policies["main"].weight.tolist()

    assert run(True) == run(False)


def test_tensors_and_numbers_of_the_program_are_read_anew_where_they_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    table, idle = cx.tensor(np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)), cx.zeros(3)

    def function(x: cx.Tensor) -> cx.Tensor:
        return (x * SCALE + SHIFT) * table[cx.arange(6) * 2] + idle.sum()

    compiled = cx.compile(function)
    x = batch(0)[0]
    for change in (lambda: None, lambda: SCALE.mul_(3.0), lambda: table.add_(1.0), lambda: idle.fill_(2.0)):
        change()
        assert compiled(x).tolist() == function(x).tolist()
    assert len(compiled._plans) == 1
    monkeypatch.setitem(globals(), "SHIFT", 0.75)
    assert compiled(x).tolist() == function(x).tolist()
    monkeypatch.setitem(globals(), "SCALE", cx.tensor([5.0]))
    assert compiled(x).tolist() == function(x).tolist()
    assert type(SCALE) is cx.Tensor


def test_a_table_of_data_is_indexed_in_a_step() -> None:
    def run(compiled: bool) -> list[Any]:
        cx.manual_seed(0)
        rng = np.random.default_rng(0)
        rows, labels = cx.tensor(rng.normal(size=(5000, 8)).astype(np.float32)), cx.tensor(rng.integers(0, 3, 5000))
        model = nn.Linear(8, 3)
        plain = training_step(model, optim.SGD(model.parameters(), lr=0.1))

        def step(places: cx.Tensor) -> cx.Tensor:
            return plain(rows[places], labels[places])

        made = cx.compile(step) if compiled else step
        return [made(cx.tensor(rng.integers(0, 5000, 16))).item() for _ in range(3)] + model.weight.tolist()

    assert run(True) == run(False)


def test_tensors_that_are_no_modules_are_trained_in_a_compiled_step() -> None:
    def run(compiled: bool) -> list[Any]:
        w, b = cx.tensor(np.eye(8, 3, dtype=np.float32), requires_grad=True), cx.zeros(3, requires_grad=True)
        optimizer = optim.Adam([w, b], lr=0.1)

        def step(x: cx.Tensor, y: cx.Tensor) -> cx.Tensor:
            loss = F.cross_entropy(x @ w + b, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        made = cx.compile(step) if compiled else step
        return [made(*batch(number)).item() for number in range(4)] + [w.tolist(), b.tolist()]

    assert run(True) == run(False)


def as_default(w: Any, factor: float) -> Any:
    return lambda x, w=w, factor=factor: x @ w * factor


def as_keyword_default(w: Any, factor: float) -> Any:
    def function(x: Any, *, w: Any = w, factor: float = factor) -> Any:
        return x @ w * factor

    return function


def as_default_of_a_helper(w: Any, factor: float) -> Any:
    helper = as_default(w, factor)
    return lambda x, helper=helper: helper(x)


def as_partial(w: Any, factor: float) -> Any:
    return functools.partial(lambda w, x, factor: x @ w * factor, w, factor=factor)


def as_partial_by_name(w: Any, factor: float) -> Any:
    return functools.partial(lambda x, w, factor: x @ w * factor, w=w, factor=factor)


@pytest.mark.parametrize(
    "made", [as_default, as_keyword_default, as_default_of_a_helper, as_partial, as_partial_by_name]
)
def test_a_tensor_that_only_an_argument_has_is_read_where_it_is(made: Any) -> None:
    w = cx.tensor([[1.0], [2.0]])
    function = made(w, 0.5)
    compiled = cx.compile(function)
    for number in (3.0, 4.0):
        w[0] = number
        assert compiled(cx.ones(2, 2)).tolist() == function(cx.ones(2, 2)).tolist() == [[0.5 * (number + 2.0)]] * 2
    assert len(compiled._plans) == 1
    kept = getattr(function, "args", None) or getattr(function, "__defaults__", None)
    assert not kept or any(value is w or callable(value) for value in kept)  # no symbol is left there


def test_other_defaults_make_another_plan() -> None:
    def function(x: Any, w: Any = None, factor: float = 2.0) -> Any:
        return x * w * factor

    function.__defaults__ = (cx.ones(2), 2.0)
    compiled = cx.compile(function)
    assert compiled(cx.ones(2)).tolist() == [2.0, 2.0]
    function.__defaults__ = (cx.full(2, 5.0), 3.0)
    assert compiled(cx.ones(2)).tolist() == [15.0, 15.0]
    assert compiled(cx.ones(2), cx.zeros(2)).tolist() == [0.0, 0.0]  # given, it is an argument like others


@pytest.mark.parametrize("held", ["as a default", "in a variable"])
def test_a_parameter_that_a_step_has_by_another_name_too_is_the_modules(held: str) -> None:
    def run(compiled: bool) -> Any:
        cx.manual_seed(0)
        model = nn.Linear(8, 3)
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        own = model.weight

        def by_default(x: Any, y: Any, weight: Any = model.weight) -> Any:
            return F.cross_entropy(model(x), y) + (weight * weight).mean()

        def by_variable(x: Any, y: Any) -> Any:
            return F.cross_entropy(model(x), y) + (own * own).mean()

        def step(x: Any, y: Any) -> Any:
            loss = (by_default if held == "as a default" else by_variable)(x, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        made = cx.compile(step) if compiled else step
        return [made(*batch(number)).item() for number in range(3)], model.weight.tolist()

    assert run(True) == run(False)


def test_a_tensor_whose_numbers_are_asked_for_is_a_constant_until_it_is_written() -> None:
    limits = cx.tensor([2.0, 3.0])

    def function(x: cx.Tensor) -> cx.Tensor:
        return x * float(limits[0]) + (limits * 2.0).sum()

    compiled = cx.compile(function)
    for factor in (1.0, 2.0):
        limits[...] = limits * factor
        assert compiled(batch(0)[0]).tolist() == function(batch(0)[0]).tolist()


@pytest.mark.parametrize("held", [list, tuple, lambda found: {"all": list(found)}, lambda found: [[p] for p in found]])
def test_parameters_that_were_listed_before_a_step_are_those_of_its_modules(held: Any) -> None:
    """Their gradients were None in the step, so that clipping them did nothing."""

    def flat(found: Any) -> list[Any]:
        return [p for item in (found.values() if isinstance(found, dict) else found) for p in _in_list(item)]

    trained = []
    for compiled in (False, True):
        cx.manual_seed(0)
        model = nn.Linear(4, 3)
        listed = held(model.parameters())
        optimizer = optim.SGD(model.parameters(), lr=1.0)

        def step(x: cx.Tensor) -> cx.Tensor:
            optimizer.zero_grad()  # noqa: B023
            loss = model(x).square().mean()  # noqa: B023
            loss.backward()
            nn.utils.clip_grad_norm_(flat(listed), 1e-3)  # noqa: B023
            optimizer.step()  # noqa: B023
            return loss

        run = cx.compile(step) if compiled else step
        for number in range(2):
            run(cx.tensor(np.random.default_rng(number).standard_normal((5, 4)).astype(np.float32)))
        assert all(isinstance(p, cx.Tensor) for p in flat(listed))
        trained.append(b"".join(p.numpy().tobytes() for p in model.parameters()))
    assert trained[0] == trained[1]


def _in_list(item: Any) -> list[Any]:
    return item if isinstance(item, list) else [item]


def test_a_list_that_is_begun_in_each_call_does_not_count_as_state() -> None:
    agent = Agent()

    def function(x: cx.Tensor) -> cx.Tensor:
        agent.terms = []
        for row in range(2):
            agent.terms.append(x[row])
        return agent.terms[0] - agent.terms[1]

    before, compiled = agent.terms, cx.compile(function)
    for number in range(2):
        x = batch(number)[0]
        assert compiled(x).tolist() == (x[0] - x[1]).tolist()
    assert agent.terms is before and len(compiled._plans) == 1


def test_an_attribute_that_is_assigned_before_it_is_read_is_no_state() -> None:
    agent = Agent()

    def function(x: cx.Tensor) -> cx.Tensor:
        agent.weight = x[0]
        return agent.weight * 2.0

    compiled = cx.compile(function)
    for number in range(3):
        x = batch(number)[0]
        assert compiled(x).tolist() == (x[0] * 2.0).tolist()
    assert len(compiled._plans) <= 2


def test_what_a_compiled_function_would_assign_in_its_first_call_alone_is_refused() -> None:
    count, total, agent = 0, cx.zeros(1), Agent()

    def counts(x: cx.Tensor) -> cx.Tensor:
        nonlocal count
        count += 1
        return x * 2.0

    def adds(x: cx.Tensor) -> cx.Tensor:
        nonlocal total
        total += x.mean()
        return x * 2.0

    def keeps(x: cx.Tensor) -> cx.Tensor:
        agent.weight = agent.weight + x.mean()
        return x * 2.0

    def writes(x: cx.Tensor) -> cx.Tensor:
        total.mul_(2.0)
        return x * 2.0

    def writes_and_asks(x: cx.Tensor) -> cx.Tensor:
        factor = float(total.sum())
        total.mul_(2.0)
        return x * factor

    for function, said in (
        (counts, "assigns to 'count'"),
        (adds, "\\+= writes to an argument"),
        (keeps, "assigns to 'weight'"),
        (writes, "mul_ writes to an argument, or to a parameter or tensor from outside"),
        (writes_and_asks, "writes to 'total'"),
    ):
        with pytest.raises(GraphError, match=said):
            cx.compile(function)(batch(0)[0])
    assert total.tolist() == [0.0] and agent.weight.tolist() == [1.0] * 3


@pytest.mark.parametrize("name", ["gammaln", "digamma", "erf", "erfc", "erfinv", "ndtr", "ndtri", "log_ndtr", "xlogy"])
def test_special_functions_have_the_same_bits_compiled(name: str) -> None:
    x = cx.tensor(np.random.default_rng(0).uniform(0.05, 0.95, 200).astype(np.float32))
    function = getattr(cx.special, name)
    arguments = (x, x * 3.0) if name == "xlogy" else (x,)
    assert cx.compile(lambda *given: function(*given))(*arguments).tolist() == function(*arguments).tolist()


# What comes after compile, or is another one by then ------------------------------------------------------


def double(x: cx.Tensor) -> cx.Tensor:
    return x * 2.0


def test_a_module_or_function_that_is_another_one_by_now_is_the_one_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(8, 3)
    compiled = cx.compile(lambda x: double(model(x)))
    x = batch(0)[0]
    for _ in range(2):
        assert compiled(x).tolist() == (model(x) * 2.0).tolist()
        model = nn.Linear(8, 3)
    monkeypatch.setitem(globals(), "double", lambda x: x * 3.0)
    assert compiled(x).tolist() == (model(x) * 3.0).tolist()


def test_a_step_trains_the_module_and_optimiser_that_are_there_now() -> None:
    def run(compiled: bool) -> list[Any]:
        def step(x: cx.Tensor) -> cx.Tensor:
            loss = model(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        found: list[Any] = []
        cx.manual_seed(0)
        model = nn.Linear(8, 3)
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        made = cx.compile(step) if compiled else step
        for _ in range(2):
            found += [made(batch(number)[0]).item() for number in range(2)] + model.weight.tolist()
            model = nn.Linear(8, 3)
            optimizer = optim.Adam(model.parameters(), lr=0.1)
        return found

    assert run(True) == run(False)


def test_what_a_compiled_function_uses_may_be_made_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def function(x: cx.Tensor) -> cx.Tensor:
        return model(x) * LATER * FACTOR  # noqa: F821

    compiled, x = cx.compile(function), batch(0)[0]
    model = nn.Linear(8, 3)
    monkeypatch.setitem(globals(), "LATER", cx.tensor([2.0]))
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    for _ in range(3):
        assert compiled(x).tolist() == function(x).tolist()
        globals()["LATER"].mul_(3.0)
        monkeypatch.setitem(globals(), "FACTOR", 3.0)
        with cx.no_grad():
            model.weight.mul_(0.5)
    assert len(compiled._plans) == 2


def test_an_optimiser_that_a_compiled_function_could_not_know_of_is_named() -> None:
    compiled = cx.compile(lambda x: (optimizer.zero_grad(), x)[1])
    optimizer = optim.SGD([cx.zeros(3, requires_grad=True)], lr=0.1)
    with pytest.raises(GraphError, match="an optimiser that was not there"):
        compiled(batch(0)[0])


def test_the_common_generator_is_not_set_back_in_a_compiled_function() -> None:
    same = cx.func.vmap(lambda row: row + cx.rand(8), randomness="same")
    with pytest.raises(GraphError, match="of the first call alone"):
        cx.compile(lambda x: same(x))(batch(0)[0])


class _Net(nn.Module):
    """As programs write them: a result besides, an argument by its name, a branch on the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop, self.head = nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)

    def forward(self, x: Any, targets: Any = None) -> Any:
        hidden = self.drop(self.body(x).relu())
        logits = self.head(F.dropout(hidden, 0.5 if self.training else 0.0))
        return logits, None if targets is None else F.cross_entropy(logits, targets)


def test_a_compiled_module_has_what_the_module_has_and_is_in_evaluation_mode() -> None:
    cx.manual_seed(0)
    model = _Net()
    compiled = cx.compile(model, mode="reduce-overhead", fullgraph=True, dynamic=False, backend="inductor")
    x, y = cx.randn(5, 4), cx.tensor([0, 1, 2, 1, 0])
    got, nothing = compiled(x)
    assert nothing is None and compiled.training  # its own mode is left alone
    model.eval()
    assert got.equal(model(x)[0]) and compiled(x, targets=y)[1].equal(model(x, y)[1])
    assert (
        [*compiled.state_dict()] == [*model.state_dict()] and compiled.eval() is model and compiled.head is model.head
    )
    with pytest.raises(
        GradientError, match="what a compiled module or function returns does not: compile the training"
    ):
        compiled(x, targets=y)[1].backward()
    with pytest.raises(AttributeError, match="_Net has no attribute 'nothing'"):
        _ = compiled.nothing
    with pytest.raises(AttributeError, match="a compiled function has no 'nothing'"):
        _ = cx.compile(lambda x: x).nothing  # type: ignore[attr-defined]


def test_a_step_uses_a_module_that_is_compiled_by_itself_as_the_module() -> None:
    def trained(inner: bool) -> Any:
        cx.manual_seed(0)
        model = _Net()
        net = cx.compile(model) if inner else model
        sgd = cx.optim.SGD(model.parameters(), lr=0.1)

        @cx.compile(mode="max-autotune")
        def step(x: Any, y: Any) -> Any:
            logits, loss = net(x, targets=y)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            return {"loss": loss, "parts": [logits, None]}

        x, y = cx.random.Generator(1).normal(size=(5, 4)).astype("float32"), cx.tensor([0, 1, 2, 1, 0])
        told = [step(x, y=y) for _ in range(3)]
        assert told[0]["parts"][0].shape == (5, 3) and told[0]["parts"][1] is None
        return [each["loss"].item() for each in told]

    assert trained(inner=True) == trained(inner=False)


def test_arguments_may_be_named_and_compiling_switched_off() -> None:
    def scaled(x: Any, *, by: Any, plus: Any = 0.0) -> Any:
        return x * by + plus, {"by": by * 1.0}

    compiled, x = cx.compile(scaled), cx.tensor([1.0, 2.0])
    for named in ({"by": 3.0}, {"by": 3.0, "plus": 1.0}, {"plus": 1.0, "by": 3.0}, {"by": x}):
        (one, more), (other, most) = compiled(x, **named), scaled(x, **named)
        assert one.equal(other) and np.array_equal(more["by"], most["by"])
    assert cx.compile(scaled, disable=True) is scaled
    with pytest.raises(GraphError, match="expected the function to return tensors computed from its arguments"):
        cx.compile(lambda x: None)(x)


@pytest.mark.parametrize("called_before", [False, True])
def test_a_compiled_function_is_a_part_of_one_around_it_whatever_it_is_called_with(called_before: bool) -> None:
    cx.manual_seed(0)
    model, w = nn.Linear(2, 1), nn.Parameter(np.full(1, 3.0, np.float32))
    net, scaled = cx.compile(model), cx.compile(lambda x: x * w)
    rows = [[1.0, 2.0], [3.0, -4.0]]
    if called_before:
        assert net(rows).shape == (2, 1) and scaled([2.0]).tolist() == [6.0]
    around = cx.compile(lambda y: (net(rows) - y).square().mean() + scaled([2.0]).sum())

    def plain() -> float:
        return float(((model(cx.tensor(rows)) - 1.0).square().mean() + (w * 2.0).sum()).item())

    for _ in range(2):
        assert around(cx.ones(2, 1)).item() == pytest.approx(plain())
        with cx.no_grad():
            model.weight += 1.0
            w *= 2.0
    assert net(np.array(rows, np.float32)).tolist() == model(cx.tensor(rows)).tolist()

    def step(y: Any) -> Any:
        loss = (net(rows) - y).square().mean() * scaled([2.0]).sum()
        loss.backward()
        return loss

    cx.compile(step)(cx.ones(2, 1))
    found = [model.weight.grad.tolist(), w.grad.tolist()]
    model.weight.grad = w.grad = None
    ((model(cx.tensor(rows)) - 1.0).square().mean() * (w * 2.0).sum()).backward()
    for ours, wanted in zip(found, [model.weight.grad.tolist(), w.grad.tolist()], strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-5)


def test_a_loss_of_one_element_is_a_loss_in_a_compiled_step() -> None:
    def outcome(compiled: bool) -> list[Any]:
        cx.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = optim.SGD(model.parameters(), lr=0.1)

        def step(x: cx.Tensor) -> cx.Tensor:
            loss = model(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        run = cx.compile(step) if compiled else step
        losses = [run(cx.ones(1, 3)).tolist() for _ in range(3)]
        return [losses, *(p.tolist() for p in model.parameters())]

    assert outcome(True) == outcome(False)


def test_a_compiled_step_is_a_part_of_what_is_compiled_around_it() -> None:
    def outcome(choose: Callable[[Any], Any]) -> list[Any]:
        cx.manual_seed(0)
        model = net()
        optimizer = optim.Adam(model.parameters(), lr=0.01)
        inner = choose(training_step(model, optimizer))
        x, y = batch(0)
        without_arguments = choose(lambda: inner(x, y))

        def around(x: cx.Tensor, y: cx.Tensor) -> Any:
            return inner(x * 2.0, y) + 1.0

        outer = choose(around)
        losses = [outer(*batch(number)).item() for number in range(2)] + [without_arguments().item()]
        losses += [inner(x, y).item(), outer(x, y).item()]
        return [losses, optimizer.steps, *(p.tolist() for p in model.parameters())]

    assert outcome(cx.compile) == outcome(lambda function: function)

"""Compiled training steps: to the last bit the plain ones, and one may follow the other."""

import functools
import os
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
from cyxcore.errors import CyxError, GradientError, GraphError
from cyxcore.kernels import cpu
from tests.core.steps import batch, net, trained, training_step

pytestmark = pytest.mark.usefixtures("each_device")


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


class _Counting(optim.Adam):
    """Has its number of steps elsewhere."""

    @property
    def steps(self) -> int:
        return int(self.count)

    @steps.setter
    def steps(self, count: int) -> None:
        self.count = count


def test_steps_that_are_no_plain_attribute_are_counted_and_used() -> None:
    kinds = (_Counting, optim.Adam)
    choose = (lambda both, number: both[1], lambda both, number: both[0])
    counted, plain = [
        trained(functools.partial(kind, lr=0.05), chosen) for kind, chosen in zip(kinds, choose, strict=True)
    ]
    assert counted == plain


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


def test_while_a_thread_traces_others_compute_with_what_it_reads() -> None:
    """It has symbols in the places of the model's parameters for that time."""
    model, (x, _) = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16)), batch(0)
    wanted, weight, found = model(x).tolist(), model[0].weight.tolist(), {}
    (begun, begins), (may_end, ends) = os.pipe(), os.pipe()  # what else could wait would be known to the function

    def waits(x: Any) -> Any:
        os.write(begins, b"!")
        os.read(may_end, 1)
        return model(x)

    def other(x: Any) -> Any:
        return model(x) * 2.0

    def put(name: str, function: Any) -> None:
        found[name] = function(x).tolist()

    traces = Thread(target=put, args=("traced", cx.compile(waits)))
    traces.start()
    os.read(begun, 1)
    compiles = Thread(target=put, args=("compiled", cx.compile(other)))
    compiles.start()
    put("eager", model)
    put("transposed", lambda _: model[0].weight.T)
    os.write(ends, b"!")
    traces.join()
    compiles.join()
    assert found == {
        "traced": wanted,
        "eager": wanted,
        "compiled": (cx.tensor(wanted) * 2.0).tolist(),
        "transposed": [list(row) for row in zip(*weight, strict=True)],
    }


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

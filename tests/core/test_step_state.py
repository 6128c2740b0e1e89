"""What a compiled step reads besides its arguments, and what is made, replaced or compiled around it."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import functional as F
from cyxcore import nn, optim
from cyxcore.errors import GradientError, GraphError
from tests.core.steps import batch, net, training_step

pytestmark = pytest.mark.usefixtures("each_device")


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


def test_a_list_that_is_begun_in_each_call_is_there_afterwards() -> None:
    agent = Agent()

    def function(x: cx.Tensor) -> cx.Tensor:
        agent.terms = []
        for row in range(2):
            agent.terms.append(x[row])
        return agent.terms[0] - agent.terms[1]

    compiled = cx.compile(function)
    for number in range(4):
        x = batch(number)[0]
        assert compiled(x).tolist() == (x[0] - x[1]).tolist()
        assert [term.tolist() for term in agent.terms] == x[:2].tolist()
    assert len(compiled._plans) == 2  # of the list that was there first, and of those that it makes


def test_an_attribute_that_is_assigned_before_it_is_read_is_there_afterwards() -> None:
    agent = Agent()

    def function(x: cx.Tensor) -> cx.Tensor:
        agent.weight = x[0]
        return agent.weight * 2.0

    compiled = cx.compile(function)
    for number in range(3):
        x = batch(number)[0]
        assert compiled(x).tolist() == (x[0] * 2.0).tolist()
        assert agent.weight.tolist() == x[0].tolist()
    assert len(compiled._plans) == 2


def test_what_a_compiled_function_would_assign_in_its_first_call_alone_is_refused() -> None:
    count, total = 0, cx.zeros(1)

    def counts(x: cx.Tensor) -> cx.Tensor:
        nonlocal count
        count += 1
        return x * 2.0

    def writes_and_asks(x: cx.Tensor) -> cx.Tensor:
        factor = float(total.sum())
        total.mul_(2.0)
        return x * factor

    for function, said in (
        (counts, "assigns to 'count'"),
        (writes_and_asks, "writes to 'total'"),
    ):
        with pytest.raises(GraphError, match=said):
            cx.compile(function)(batch(0)[0])
    assert total.tolist() == [0.0]


@pytest.mark.parametrize("name", "gammaln digamma erf erfc erfcx erfinv i0 i1e ndtr ndtri log_ndtr xlogy zeta".split())
def test_special_functions_have_the_same_bits_compiled(name: str) -> None:
    x = cx.tensor(np.random.default_rng(0).uniform(0.05, 0.95, 200).astype(np.float32))
    function = getattr(cx.special, name)
    arguments = (x * 3.0 + 1.0, x) if name == "zeta" else (x, x * 3.0) if name == "xlogy" else (x,)
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

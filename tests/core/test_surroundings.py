"""What a compiled step reads and changes besides its arguments: as the plain step, or an error; never in silence."""

import collections
import itertools
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import functional as F
from cyxcore import nn, optim
from cyxcore.errors import GraphError


class Scaled(nn.Module):
    """A module of the user's, whose forward() computes with whatever it has."""

    shift = 0.5

    def __init__(self, by: Any, read: Callable[[Any], Any]) -> None:
        super().__init__()
        self.inner, self.by, self.read = nn.Linear(4, 3), by, read

    def forward(self, x: Any) -> Any:
        return self.inner(x) * self.read(self.by) + self.shift


class Options:
    scale = 1.0

    def __init__(self) -> None:
        self.of_its_own = 1.0

    def __call__(self) -> float:
        return self.of_its_own

    def __getitem__(self, name: str) -> float:
        return self.of_its_own

    def __float__(self) -> float:
        return self.of_its_own


def run(step: Callable[[Any], Any], model: nn.Module, before: Callable[[int], Any]) -> list[Any]:
    found = []
    for number in range(4):
        before(number)
        found.append(step(cx.tensor(np.random.default_rng(number).normal(size=(5, 4)).astype(np.float32))).item())
    return [*found, *[p.tolist() for p in model.parameters()]]


def training(model: nn.Module, optimizer: optim.Optimizer, output: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def step(x: Any) -> Any:
        loss = output(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


def both(
    make: Callable[[], tuple[nn.Module, Callable[[Any], Any], Callable[[int], Any]]],
) -> tuple[list[Any], list[Any]]:
    """make: gives the module to train, its output and what changes before each step. Plain, and compiled."""
    found = []
    for compiled in (False, True):
        cx.manual_seed(0)
        model, output, before = make()
        step = training(model, optim.SGD(model.parameters(), lr=0.1), output)
        found.append(run(cx.compile(step) if compiled else step, model, before))
    return found[0], found[1]


# What is changed outside: (what there is, how it is read, what changes it) ------------------------------------

HELD: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], Callable[[Any, int], Any]]] = {
    "a NumPy array": (lambda: np.ones(3, np.float32), lambda v: v, lambda v, n: v.fill(n)),
    "a number of a NumPy array": (lambda: np.ones(3), lambda v: float(v[1]), lambda v, n: v.fill(n)),
    "a tensor": (lambda: cx.ones(3), lambda v: v, lambda v, n: v.fill_(n)),
    "a tensor of 16 bits": (
        lambda: cx.ones(3, dtype="float16"),
        lambda v: v.astype("float32"),
        lambda v, n: v.fill_(n),
    ),
    "a column": (lambda: cx.ones(3, 2)[:, 0], lambda v: v, lambda v, n: v.fill_(n)),
    "a list": (lambda: [1.0, 2.0], lambda v: v[1], lambda v, n: v.__setitem__(1, float(n))),
    "a long list": (lambda: [1.0] * 40, lambda v: v[30], lambda v, n: v.__setitem__(30, float(n))),
    "a list in a dict": (lambda: {"a": [1.0]}, lambda v: v["a"][0], lambda v, n: v["a"].__setitem__(0, float(n))),
    "a dict in a list": (lambda: [{"a": 1.0}], lambda v: v[0]["a"], lambda v, n: v[0].update(a=float(n))),
    "a tensor in a list in a list": (lambda: [[cx.ones(3)]], lambda v: v[0][0], lambda v, n: v[0][0].fill_(n)),
    "another tensor in a list in a dict": (
        lambda: {"a": [cx.ones(3)]},
        lambda v: v["a"][0],
        lambda v, n: v["a"].__setitem__(0, cx.ones(3) * float(n)),
    ),
    "a number of a tensor in a list in a dict": (
        lambda: {"a": [cx.ones(3)]},
        lambda v: v["a"][0][1].item(),
        lambda v, n: v["a"][0].fill_(n),
    ),
    "an ordered dict": (
        lambda: collections.OrderedDict(a=cx.ones(3)),
        lambda v: v["a"],
        lambda v, n: v.update(a=cx.ones(3) * float(n)),
    ),
    "a deque": (
        lambda: collections.deque([cx.ones(3)], maxlen=2),
        lambda v: v[-1],
        lambda v, n: v.append(cx.ones(3) * float(n)),
    ),
    "a set": (lambda: set[int](), lambda v: float(len(v)), lambda v, n: v.add(n)),
    "an attribute": (Options, lambda v: v.of_its_own, lambda v, n: setattr(v, "of_its_own", float(n))),
    "an attribute by getattr": (
        Options,
        lambda v: getattr(v, "of_its_own"),  # noqa: B009
        lambda v, n: setattr(v, "of_its_own", float(n)),
    ),
    "an attribute of the class": (
        lambda: type("Own", (Options,), {"__module__": "own", "scale": 1.0})(),
        lambda v: v.scale,
        lambda v, n: setattr(type(v), "scale", float(n)),
    ),
    "an attribute that hides that of the class": (
        Options,
        lambda v: v.scale,
        lambda v, n: setattr(v, "scale", 3.0) if n == 2 else None,
    ),
    "what a call gives": (Options, lambda v: v(), lambda v, n: setattr(v, "of_its_own", float(n))),
    "what an index gives": (Options, lambda v: v["any"], lambda v, n: setattr(v, "of_its_own", float(n))),
    "what float gives": (Options, lambda v: float(v), lambda v, n: setattr(v, "of_its_own", float(n))),
    "an object in an object": (
        lambda: types.SimpleNamespace(inner=Options()),
        lambda v: v.inner.of_its_own,
        lambda v, n: setattr(v, "inner", Options()) if n == 1 else setattr(v.inner, "of_its_own", float(n)),
    ),
}


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("where", ["in a variable", "in a module"])
def test_what_is_changed_between_steps_is_read_anew(name: str, where: str) -> None:
    make, read, change = HELD[name]

    def made() -> Any:
        held = make()
        model = Scaled(held, read) if where == "in a module" else nn.Linear(4, 3)
        output = model if where == "in a module" else lambda x: model(x) * read(held)
        return model, output, lambda number: change(held, number)

    plain, compiled = both(made)
    assert compiled == plain


def test_what_forward_and_hooks_of_a_module_name_is_read_anew() -> None:
    for place in ("closure", "hook"):

        def made(place: str = place) -> Any:
            factor, weight = 1.0, cx.ones(3)

            class Own(nn.Module):
                def __init__(self) -> None:
                    super().__init__()
                    self.inner = nn.Linear(4, 3)

                def forward(self, x: Any) -> Any:
                    return self.inner(x) * (factor if place == "closure" else 1.0) * weight

            model = Own()
            if place == "hook":
                model.inner.register_forward_hook(lambda module, given, result: result * factor)

            def before(number: int) -> None:
                nonlocal factor
                factor = float(number)
                weight.fill_(number + 1.0)

            return model, model, before

        plain, compiled = both(made)
        assert compiled == plain


def test_hooks_that_come_and_go_between_steps_count() -> None:
    def made() -> Any:
        model, handles = nn.Sequential(nn.Linear(4, 3), nn.Tanh()), list[Any]()

        def before(number: int) -> None:
            if number == 1:
                handles.append(model[0].register_forward_hook(lambda module, given, result: result * 2.0))
            if number == 3:
                handles.pop().remove()

        return model, model, before

    plain, compiled = both(made)
    assert compiled == plain


@pytest.mark.parametrize("how", ["in a set", "as keys", "by their ids"])
def test_parameters_are_found_in_what_was_made_before_the_step(how: str) -> None:
    found = []
    for compiled in (False, True):
        cx.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        chosen: Any = {model.weight} if how == "in a set" else {model.weight: 0.5}
        if how == "by their ids":
            chosen = {id(model.weight): 0.5}

        def step(x: Any) -> Any:
            loss = model(x).square().mean()  # noqa: B023
            optimizer.zero_grad()  # noqa: B023
            loss.backward()
            for p in model.parameters():  # noqa: B023
                if (id(p) if how == "by their ids" else p) in chosen:  # noqa: B023
                    p.grad = p.grad * 0.5
            optimizer.step()  # noqa: B023
            return loss

        found.append(run(cx.compile(step) if compiled else step, model, lambda number: None))
    assert found[1] == found[0]


def test_a_list_of_parameters_makes_no_plan_in_each_step() -> None:
    model = nn.Linear(4, 3)
    listed = list(model.parameters())
    optimizer = optim.SGD(listed, lr=0.1)

    @cx.compile
    def step(x: Any) -> Any:
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(listed, 0.1)
        optimizer.step()
        return loss

    run(step, model, lambda number: None)
    assert len(step._plans) == 1


# What the step itself would change --------------------------------------------------------------------------


def appends(held: Any) -> float:
    held["list"].append(1)
    return 1.0


def counts(held: Any) -> float:
    held["count"] = held.get("count", 0) + 1
    return float(held["count"])


def counts_in_an_array(held: Any) -> Any:
    held["array"][0] += 1.0
    return held["array"]


def counts_in_an_object(held: Any) -> float:
    held["object"].scale += 1.0
    return 1.0


@pytest.mark.parametrize("change", [appends, counts, counts_in_an_array, counts_in_an_object])
def test_what_only_the_first_call_would_change_is_refused(change: Callable[[Any], Any]) -> None:
    held = {"list": [], "array": np.ones(3, np.float32), "object": Options()}
    model = nn.Linear(4, 3)
    step = cx.compile(training(model, optim.SGD(model.parameters(), lr=0.1), lambda x: model(x) * change(held)))
    with pytest.raises(GraphError, match="which only its first call would do"):
        run(step, model, lambda number: None)


def test_averages_of_weights_that_a_step_puts_into_a_list_are_those_of_each_step() -> None:
    found = []
    for compiled in (False, True):
        cx.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        averages = [p.detach().clone() for p in model.parameters()]

        def step(x: Any) -> Any:
            loss = model(x).square().mean()  # noqa: B023
            optimizer.zero_grad()  # noqa: B023
            loss.backward()
            optimizer.step()  # noqa: B023
            for place, p in enumerate(model.parameters()):  # noqa: B023
                averages[place] = averages[place] * 0.9 + p.detach() * 0.1  # noqa: B023
            return loss

        found.append(run(cx.compile(step) if compiled else step, model, lambda number: None))
        found[-1] += [each.tolist() for each in averages]
    assert found[1] == found[0]


def test_a_learning_rate_may_be_read_in_a_step_and_not_changed() -> None:
    found = []
    for compiled in (False, True):
        cx.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        schedule = optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        step = training(model, optimizer, lambda x: model(x) * optimizer.param_groups[0]["lr"])  # noqa: B023
        step = cx.compile(step) if compiled else step
        found.append(run(step, model, lambda number: schedule.step()))  # noqa: B023
    assert found[1] == found[0]

    def scheduled(x: Any) -> Any:
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        return loss

    rate = optimizer.lr
    with pytest.raises(GraphError, match="changes a learning rate"):
        cx.compile(scheduled)(cx.ones(5, 4))
    assert optimizer.lr == rate


def test_what_a_step_would_write_in_place_outside_is_refused() -> None:
    model = nn.Linear(4, 3)

    def of_a_parameter(x: Any) -> Any:
        gradient = cx.autograd.grad(model(x).square().mean(), [model.weight])[0]
        weight = model.weight
        weight -= 0.1 * gradient
        return gradient.sum()

    def of_an_argument(x: Any) -> Any:
        x *= 2.0
        return x.sum()

    def of_what_it_computes(x: Any) -> Any:
        y = x * 2.0
        y += 1.0
        return y.sum()

    for function in (of_a_parameter, of_an_argument):
        with pytest.raises(GraphError, match="= writes to an argument, or to a parameter or tensor from outside"):
            cx.compile(function)(cx.ones(5, 4))
    assert cx.compile(of_what_it_computes)(cx.ones(2)).item() == 6.0


@pytest.mark.parametrize("first", [0, 2])
def test_a_hook_of_a_parameter_is_refused_whenever_it_comes(first: int) -> None:
    model = nn.Linear(4, 3)
    step = cx.compile(training(model, optim.SGD(model.parameters(), lr=0.1), model))

    def before(number: int) -> None:
        if number == first:
            model.weight.register_hook(lambda gradient: gradient * 0.5)

    with pytest.raises(GraphError, match="a parameter has a hook"):
        run(step, model, before)


def test_the_loss_of_a_compiled_step_is_that_of_a_function_of_cross_entropy_with_changing_weights() -> None:
    def made() -> Any:
        loss, model = nn.CrossEntropyLoss(weight=cx.ones(3)), nn.Linear(4, 3)
        labels = cx.tensor([0, 1, 2, 0, 1])
        return model, lambda x: loss(model(x), labels) + F.relu(model(x)).mean(), lambda n: loss.weight.fill_(n + 1.0)

    plain, compiled = both(made)
    assert compiled == plain


# What changes by itself: seen when the step is traced again, in its second call or later -----------------------


def _changing(name: str, optimizer: Any) -> Callable[[Any], Any]:
    counted = itertools.count().__next__  # a count that nobody can look at
    changing: dict[str, Callable[[Any], Any]] = {
        "a count": lambda y: y * counted(),
        "the number of steps": lambda y: y * float(optimizer.steps + 1),
        "an operation": lambda y: y.tanh() if counted() else y.exp(),
        "one operation more": lambda y: y * 2.0 if counted() else y,
        "a NumPy array": lambda y: y * np.full(3, counted(), np.float32),
        "a large NumPy array": lambda y: (y[:, :1] * np.full(5000, counted(), np.float32)).mean(),
    }
    return changing[name]


@pytest.mark.parametrize(
    "name",
    [
        "a count",
        "the number of steps",
        "an operation",
        "one operation more",
        "a NumPy array",
        "a large NumPy array",
    ],
)
def test_what_changes_by_itself_is_refused_in_the_second_call_and_changes_nothing(name: str) -> None:
    found = []
    for compiled in (False, True):
        cx.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        change = _changing(name, optimizer)
        step = training(model, optimizer, lambda x: change(model(x)))  # noqa: B023
        run = cx.compile(step) if compiled else step
        found.append([run(cx.ones(5, 4)).item(), *[p.tolist() for p in model.parameters()]])
    assert found[1] == found[0]
    for _ in range(2):
        with pytest.raises(GraphError, match="in its second call the function computes with"):
            run(cx.ones(5, 4))
    assert [p.tolist() for p in model.parameters()] == found[0][1:] and optimizer.steps == 1


@pytest.mark.parametrize("seen_in", [4, 16, 64])
def test_what_changes_later_is_refused_when_the_step_is_traced_again(seen_in: int) -> None:
    factors = [1.0] * 5000  # too long to be looked at

    def run(how: Callable[[Any], Any], calls: int) -> Any:
        factors[0] = 1.0
        layer, x = nn.Linear(4, 3, bias=False), cx.ones((2, 4))
        layer.weight.data.fill_(0.5)
        step = how(training(layer, optim.SGD(layer.parameters(), lr=0.01), lambda x: layer(x) * factors[0]))
        for _ in range(calls):
            step(x)
        factors[0] = 2.0
        return step, x, layer.weight

    step, x, weight = run(cx.compile, seen_in - 1)
    assert weight.tolist() == run(lambda step: step, seen_in - 1)[2].tolist()
    factors[0] = 2.0
    since = {4: 2, 16: 4, 64: 16}[seen_in]
    for _ in range(2):
        with pytest.raises(
            GraphError, match=f"call {seen_in} the function computes with 2.0 instead of 1.0.* call {since} "
        ):
            step(x)
    factors[0] = 1.0
    step(x)


ITERATORS: dict[str, Callable[[], Any]] = {
    "a count": lambda: itertools.count(1.0),
    "of a list": lambda: iter([1.0, 1.0, 1.0, 2.0]),
    "a generator": lambda: (1.0 for _ in range(9)),
    "in a list": lambda: [itertools.cycle([1.0])],
}


@pytest.mark.parametrize("name", ITERATORS)
def test_an_iterator_is_not_consumed_by_a_step(name: str) -> None:
    held = ITERATORS[name]()
    compiled = cx.compile(lambda x: x * next(held[0] if isinstance(held, list) else held))
    with pytest.raises(GraphError, match="takes what comes next of an iterator"):
        compiled(cx.ones(2))
    assert next(held[0] if isinstance(held, list) else held) == 1.0


def test_the_epoch_of_a_schedule_and_a_list_that_was_given_to_a_layer_make_a_new_plan() -> None:
    def made() -> Any:
        layer: Any = nn.Linear(4, 3)
        layer.factors = [1.0]
        schedule = optim.lr_scheduler.StepLR(optim.SGD(layer.parameters(), lr=0.1), 1, 1.0)

        def change(number: int) -> None:
            layer.factors[0] = 1.0 + number // 3
            if number % 4 == 3:
                schedule.step()

        return layer, lambda x: layer(x) * layer.factors[0] * (1.0 + schedule.last_epoch), change

    plain, compiled = both(made)
    assert compiled == plain


def test_results_that_change_their_names_are_refused_and_functions_made_in_each_call_are_not() -> None:
    counted = itertools.count().__next__
    compiled = cx.compile(lambda x: {f"result {counted()}": x * 2.0})
    compiled(cx.ones(2))
    with pytest.raises(GraphError, match="returns or updates something else"):
        compiled(cx.ones(2))
    held = np.arange(5000.0)
    again = cx.compile(lambda x: x.cumsum(0) + held + cx.Tensor(held).sum() + float("nan"))
    assert [again(cx.ones(5000, dtype="float64")).tolist()[:1] != [0.0] for _ in range(3)] == [True] * 3


def test_a_rate_that_a_state_begins_with_may_change_after_the_first_call() -> None:
    layer, x = nn.Linear(4, 3), cx.ones((2, 4))
    optimizer = optim.Rprop(layer.parameters(), lr=0.01)

    def step() -> Any:
        optimizer.zero_grad()
        loss = layer(x).square().sum()
        loss.backward()
        optimizer.step()
        return loss

    compiled = cx.compile(step)
    compiled()
    optimizer.lr = 0.02
    compiled()  # is traced again


def test_a_function_is_traced_again_in_the_second_call_of_each_plan_and_then_ever_more_rarely() -> None:
    calls = []

    def step(x: Any) -> Any:
        np.add(1, 1, out=seen)
        return x * 2.0

    class Seen(np.ndarray):
        def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
            calls.append(1)

    seen = np.zeros(()).view(Seen)
    compiled = cx.compile(step)
    for rows, traced in ((2, 1), (2, 2), (2, 2), (3, 3), (2, 4), (3, 5), (3, 5)):
        compiled(cx.ones(rows))
        assert len(calls) == traced
    found = []
    for _ in range(5, 300):
        compiled(cx.ones(2))
        found.append(len(calls) - 5)
    assert [5 + found.index(number) for number in (1, 2, 3)] == [16, 64, 256]

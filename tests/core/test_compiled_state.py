"""What a compiled function assigns outside of itself: it is there after each call, with the bits of the plain call."""

import types
from collections.abc import Callable
from typing import Any

import pytest

import cyxcore as cx
from cyxcore import nn, optim
from cyxcore.errors import GradientError, GraphError
from tests.core.steps import batch

pytestmark = pytest.mark.usefixtures("each_device")

total = cx.zeros(())


class Counting(nn.Module):
    """Of which the kinds below say what forward() does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 3)
        self.register_buffer("count", cx.zeros(()))
        self.register_buffer("mean", cx.zeros(8), persistent=False)
        self.running, self.last = cx.zeros(8), None
        self.listed: list[Any] = [cx.zeros(8), cx.ones(3)]
        self.named: dict[str, Any] = {"mean": cx.zeros(8), "deeper": [cx.zeros(())]}
        self.held = types.SimpleNamespace(mean=cx.zeros(8))

    def found(self) -> list[Any]:
        """All of it, as numbers."""
        last = self.last if self.last is None or isinstance(self.last, cx.Tensor) else [each for each in self.last]
        kept = [self.count, self.mean, self.running, *self.listed, self.held.mean, getattr(self, "newest", None), total]
        kept += [self.named["mean"], *self.named["deeper"], self.named.get("new"), *([last] if last is None else last)]
        return [None if x is None else x.tolist() for x in kept]


class Buffer(Counting):
    def forward(self, x: Any) -> Any:
        self.count = self.count + 1.0
        return self.inner(x) * self.count


class BufferTwice(Counting):
    def forward(self, x: Any) -> Any:
        self.mean = x.mean(0)
        self.mean = self.mean * 2.0 + self.count
        return self.inner(x + self.mean)


class BufferInPlace(Counting):
    def forward(self, x: Any) -> Any:
        self.count += 1.0
        self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        return self.inner(x + self.mean) * self.count


class BufferCopiedThenInPlace(Counting):
    def forward(self, x: Any) -> Any:
        before = self.mean.clone()
        self.mean.copy_(x.mean(0))
        self.mean += before
        self.count.fill_(3.0)
        return self.inner(x - self.mean + before) * self.count


class BufferInItsTable(Counting):
    def forward(self, x: Any) -> Any:
        self._buffers["count"] = self.count + x.mean()
        return self.inner(x)


class BufferOfAConstant(Counting):
    def forward(self, x: Any) -> Any:
        self.mean = cx.ones(8)
        return self.inner(x + self.mean)


class Attribute(Counting):
    def forward(self, x: Any) -> Any:
        self.running = 0.9 * self.running + x.mean(0)
        return self.inner(x + self.running)


class AttributeNotRead(Counting):
    def forward(self, x: Any) -> Any:
        self.running = x.mean(0)
        return self.inner(x)


class AttributeFirstMadeHere(Counting):
    def forward(self, x: Any) -> Any:
        self.newest = x.mean(0)
        return self.inner(x)


class AttributeThatWasNone(Counting):
    def forward(self, x: Any) -> Any:
        self.last = x if self.last is None else 0.5 * self.last + x
        return self.inner(self.last)


class AttributeOfSeveral(Counting):
    def forward(self, x: Any) -> Any:
        self.last = [x[0], (x + 1.0)[1]]
        return self.inner(x)


class ListItem(Counting):
    def forward(self, x: Any) -> Any:
        self.listed[0] = self.listed[0] + x.mean(0)
        return self.inner(x + self.listed[0]) * self.listed[1]


class DictEntry(Counting):
    def forward(self, x: Any) -> Any:
        self.named["mean"] = self.named["mean"] * 0.5 + x.mean(0)
        self.named["new"] = x.sum()
        self.named["deeper"][0] = self.named["deeper"][0] + 1.0
        return self.inner(x + self.named["mean"])


class OtherObject(Counting):
    def forward(self, x: Any) -> Any:
        self.held.mean = self.held.mean * 0.5 + x.mean(0)
        return self.inner(x + self.held.mean)


class GlobalVariable(Counting):
    def forward(self, x: Any) -> Any:
        global total
        total = total + x.mean()
        return self.inner(x) + total


KINDS = Counting.__subclasses__()


class Around(nn.Module):
    """A module whose part does it."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList([part, nn.Linear(3, 3)])

    def forward(self, x: Any) -> Any:
        return self.parts[1](self.parts[0](x).tanh())


def as_module(model: nn.Module) -> Any:
    return model


def as_function(model: nn.Module) -> Any:
    return lambda x: model(x) * 2.0


def as_step(model: nn.Module) -> Any:
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def step(x: Any) -> Any:
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def runs(kind: type[Counting], how: Callable[[Any], Any], change: Callable[[int, Any, Counting], None]) -> list[Any]:
    """What each of some calls gives and leaves, plain and compiled. change: made before each call."""
    global total
    both = []
    for made in (lambda function: function, cx.compile):
        cx.manual_seed(0)
        total = cx.zeros(())
        part = kind()
        model = Around(part)
        function, found = made(how(model)), []
        for number in range(6):
            change(number, model, part)
            found.append([function(batch(number)[0]).tolist(), part.found()])
        both.append(found)
    return both


def nothing(*_: Any) -> None:
    pass


@pytest.mark.parametrize("how", [as_module, as_function, as_step])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_module_assigns_is_there_after_each_call(kind: type[Counting], how: Callable[[Any], Any]) -> None:
    plain, compiled = runs(kind, how, nothing)
    assert compiled == plain
    assert plain[0][1] != plain[1][1] or kind is BufferOfAConstant


def switch_modes(number: int, model: nn.Module, part: Counting) -> None:
    model.train(number % 2 == 0)


def set_back(number: int, model: nn.Module, part: Counting) -> None:
    """As a program does that goes on from what it has saved."""
    if number == 3:
        part.count, part.mean, part.running = cx.zeros(()), cx.ones(8), cx.ones(8)
        part.listed[0], part.named["mean"], part.held.mean = cx.ones(8), cx.ones(8), cx.ones(8)
        part.last = None
        model.load_state_dict({name: value * 0.5 for name, value in model.state_dict().items()})


def written_to(number: int, model: nn.Module, part: Counting) -> None:
    for x in (part.running, part.listed[0], part.named["mean"], part.mean):
        x.add_(0.5)


@pytest.mark.parametrize("change", [switch_modes, set_back, written_to])
@pytest.mark.parametrize("how", [as_function, as_step])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_module_assigns_may_be_changed_between_calls(kind: Any, how: Any, change: Any) -> None:
    plain, compiled = runs(kind, how, change)
    assert compiled == plain


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_assigned_makes_no_plan_in_each_call(kind: type[Counting]) -> None:
    model = kind()
    compiled = cx.compile(model)
    for number in range(6):
        compiled(batch(number)[0])
    assert len(compiled._plans) <= 2  # before there is anything, and afterwards


def test_what_was_taken_of_an_attribute_before_stays_as_it_was() -> None:
    model = AttributeNotRead()
    compiled, kept = cx.compile(model), []
    for number in range(3):
        compiled(batch(number)[0])
        kept.append(model.running)
    assert [x.tolist() for x in kept] == [batch(number)[0].mean(0).tolist() for number in range(3)]


def test_a_tensor_that_is_assigned_to_by_one_of_its_names_stays_by_the_other() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = self.other = cx.zeros(8)

        def forward(self, x: Any) -> Any:
            self.one = self.one + x.mean(0)
            return x + self.one - 2.0 * self.other

    found = []
    for made in (lambda model: model, cx.compile):
        model = Two()
        function = made(model)
        found.append([function(batch(number)[0]).tolist() for number in range(4)])
        found[-1] += [model.one.tolist(), model.other.tolist()]
    assert found[1] == found[0]


def test_a_tensor_that_is_assigned_in_many_places_is_one_and_takes_no_time() -> None:
    kept: Any = types.SimpleNamespace(rows=None)

    @cx.compile
    def step(x: Any) -> Any:
        values = [x]
        kept.rows = []
        for _ in range(100):
            values.append(values[-1] * 1.5)
            kept.rows.append(list(values))  # some 5,000 leaves
        return values[-1]

    for number in range(3):
        step(cx.full((2,), float(number)))
        assert kept.rows[-1][1] is kept.rows[0][1] and kept.rows[9][1].tolist() == [1.5 * number] * 2


def test_only_in_training_is_assigned_what_training_assigns() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.running, self.inner = cx.zeros(8), nn.Linear(8, 3)

        def forward(self, x: Any) -> Any:
            if self.training:
                self.running = 0.9 * self.running + 0.1 * x.detach().mean(0)
            return self.inner(x - self.running)

    found = []
    for made in (lambda function: function, cx.compile):
        cx.manual_seed(0)
        model = Mean()
        step, output = made(as_step(model)), made(lambda x: model(x))  # noqa: B023
        found.append([])
        for number in range(6):
            x = batch(number)[0]
            model.train()
            found[-1].append(step(x).tolist())
            model.eval()
            found[-1] += [output(x).tolist(), model.running.tolist()]
    assert found[1] == found[0]


def test_a_tensor_of_a_compiled_module_is_read_anew() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = cx.tensor(2.0)

        def forward(self, x: Any) -> Any:
            return x * self.scale

    model = Scaled()
    compiled, x = cx.compile(model), cx.ones(2)
    assert [compiled(x).tolist() for _ in range(2)] == [[2.0, 2.0]] * 2
    model.scale = cx.tensor(3.0)
    assert compiled(x).tolist() == [3.0, 3.0]
    model.scale.mul_(2.0)
    assert compiled(x).tolist() == [6.0, 6.0]


class _Appends(Counting):
    def forward(self, x: Any) -> Any:
        self.listed.append(x.mean(0))
        return self.inner(x)


class _CountsInPython(Counting):
    calls = 0

    def forward(self, x: Any) -> Any:
        self.calls += 1
        return self.inner(x)


class _OtherShape(Counting):
    def forward(self, x: Any) -> Any:
        self.count = self.count + x
        return self.inner(x)


class _OtherDtype(Counting):
    def forward(self, x: Any) -> Any:
        self.mean = x.mean(0).astype("float64")
        return self.inner(x)


class _InAnObject(Counting):
    def forward(self, x: Any) -> Any:
        self.held = types.SimpleNamespace(mean=x.mean(0))
        return self.inner(x)


@pytest.mark.parametrize("how", [as_module, as_function, as_step])
@pytest.mark.parametrize(
    "kind, said",
    [
        (_Appends, "writes to 'listed'"),
        (_CountsInPython, "assigns to 'calls'"),
        (_OtherShape, r"count' is float32 \(\) and is assigned a value of float32 \(6, 8\)"),
        (_OtherDtype, r"mean' is float32 \(8,\) and is assigned a value of float64 \(8,\)"),
        (_InAnObject, "assigns to 'held'"),
    ],
)
def test_what_a_plan_cannot_assign_is_refused_in_the_first_call(kind: Any, said: str, how: Any) -> None:
    model = kind()
    before = [model.found(), model.held]
    with pytest.raises(GraphError, match=said):
        cx.compile(how(model))(batch(0)[0])
    assert [model.found(), model.held] == before


def test_a_buffer_that_a_step_assigns_and_reads_has_the_gradient_of_the_plain_step() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 3)
            self.register_buffer("mean", cx.zeros(3))

        def forward(self, x: Any) -> Any:
            h = self.inner(x)
            self.mean = h.mean(0)
            h = h - self.mean * 0.5
            self.mean = self.mean.detach()
            return h

    found = []
    for made in (lambda function: function, cx.compile):
        cx.manual_seed(0)
        model = Centred()
        step = made(as_step(model))
        found.append([step(batch(number)[0]).tolist() for number in range(4)])
        found[-1] += [model.mean.tolist(), model.inner.weight.tolist()]
    assert found[1] == found[0]


class _GoesBack(Counting):
    def forward(self, x: Any) -> Any:
        h = self.inner(x)
        self.held.mean = self.held.mean[:3] * 0.5 + h.mean(0)
        return h + self.held.mean


class _GoesBackByABuffer(Counting):
    def forward(self, x: Any) -> Any:
        h = self.inner(x)
        self.count = self.count * 0.5 + h.mean()
        return h + self.count


class _GoesBackInPlace(Counting):
    def forward(self, x: Any) -> Any:
        h = self.inner(x)
        self.count += h.mean()
        return h


@pytest.mark.parametrize(
    "kind, said",
    [
        (_GoesBack, "'mean' a value that has"),
        (_GoesBackByABuffer, "count' a value that"),
        (_GoesBackInPlace, "\\+= writes"),
    ],
)
def test_a_gradient_does_not_go_back_through_the_steps_before(kind: Any, said: str) -> None:
    model = kind()
    with pytest.raises(GradientError, match=f"{said}.*detach"):
        cx.compile(as_step(model))(batch(0)[0])
    cx.compile(lambda x: model(x))(batch(0)[0])  # where nobody goes back it is a value like others

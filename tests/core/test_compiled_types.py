"""What a program asks of the classes of values has one answer, on tensors and where it is compiled or traced."""

import io
from typing import Any

import pytest

import cyxcore as cx
from cyxcore import nn
from cyxcore.errors import CyxError


def told(*answers: bool) -> float:
    """Answers as a number, which a compiled function can return."""
    return float(sum(bool(answer) << place for place, answer in enumerate(answers)))


def asked(function: Any, *given: Any) -> list[bool]:
    """What a function tells of eight questions on tensors, and that it tells the same where it is compiled."""
    plain, compiled = int(function(*given)[0].item()), int(cx.compile(function)(*given)[0].item())
    assert f"{compiled:b}" == f"{plain:b}"
    return [bool(plain >> place & 1) for place in range(8)]


def test_a_value_is_a_tensor() -> None:
    def ask(x: Any) -> Any:
        y = x * 2.0
        return x * 0.0 + told(
            isinstance(x, cx.Tensor),
            isinstance(y, cx.Tensor),
            issubclass(y.__class__, cx.Tensor),
            cx.is_tensor(y),
            isinstance(y, (int, cx.Tensor)),
            isinstance(y, (int, float, str, list, dict)),
            isinstance(y, nn.Module),
            isinstance(y, nn.Parameter),
        )

    assert asked(ask, cx.ones(3)) == [True] * 5 + [False] * 3


def test_a_branch_on_the_class_is_the_one_tensors_take() -> None:
    @cx.compile
    def doubled(x: Any) -> Any:
        match x.exp():
            case cx.Tensor():
                return x * 2.0
            case _:
                raise AssertionError("no tensor")

    assert doubled(cx.ones(2)).tolist() == [2.0, 2.0]


def test_a_parameter_is_a_parameter_and_what_is_computed_of_it_is_none() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(cx.ones(2))

        def forward(self, x: Any) -> Any:
            return self.scale * 0.0 + told(
                isinstance(self.scale, nn.Parameter),
                isinstance(self.scale, cx.Tensor),
                isinstance(self.scale * x, nn.Parameter),
                isinstance(x, nn.Parameter),
            )

    model = Scaled()
    optimizer = cx.optim.SGD(model.parameters(), lr=0.5)

    def step(x: Any) -> Any:
        optimizer.zero_grad()
        found = model(x)
        found.sum().backward()
        optimizer.step()
        return found

    assert asked(step, cx.ones(2))[:4] == [True, True, False, False]


def test_a_number_is_no_tensor() -> None:
    def ask(x: Any, scale: Any) -> Any:
        return x * 0.0 + told(isinstance(scale, cx.Tensor), cx.is_tensor(scale), isinstance(x * scale, cx.Tensor))

    assert asked(ask, cx.ones(2), 0.5)[:3] == [False, False, True]


def test_a_buffer_that_is_written_stays_one() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(cx.ones(2))
            self.register_buffer("count", cx.zeros(1))

        def forward(self, x: Any) -> Any:
            if isinstance(self.count, cx.Tensor):
                self.count = self.count + 1.0
            return x * self.weight * self.count

    model = Counting()
    optimizer = cx.optim.SGD(model.parameters(), lr=0.0)

    @cx.compile
    def step(x: Any) -> Any:
        optimizer.zero_grad()
        loss = model(x).sum()
        loss.backward()
        optimizer.step()
        return loss

    assert [step(cx.ones(2)).item() for _ in range(3)] == [2.0, 4.0, 6.0]
    assert model.count.tolist() == [3.0]
    assert list(model.state_dict()) == ["weight", "count"]


def test_saving_within_a_compiled_function_says_what_it_cannot_do() -> None:
    def saved(x: Any) -> Any:
        cx.save({"x": x * 1.0}, io.BytesIO())
        return x

    with pytest.raises(CyxError):
        cx.compile(saved)(cx.ones(2))
    saved(cx.ones(2))


def test_mapped_functions_see_tensors() -> None:
    def ask(x: Any) -> Any:
        return x * 2.0 if isinstance(x, cx.Tensor) else None

    assert cx.vmap(ask)(cx.ones((2, 3))).tolist() == [[2.0] * 3] * 2
    assert cx.jacobian(ask)(cx.ones(2)).tolist() == [[2.0, 0.0], [0.0, 2.0]]


def test_traced_modules_see_tensors() -> None:
    class Doubling(nn.Module):
        def forward(self, x: Any) -> Any:
            if not isinstance(x, cx.Tensor):
                raise AssertionError(type(x))
            return x * 2.0

    assert "mul" in [node.op for node in cx.trace(Doubling(), (3,)).graph.nodes]

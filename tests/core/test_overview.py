"""What a summary counts, by hand."""

from typing import Any

import pytest

import cyxcore as cx
from cyxcore import nn
from cyxcore.errors import GraphError, ShapeError, SpecError
from cyxcore.overview import short

NET = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def test_each_layer_has_its_shape_parameters_and_arithmetic() -> None:
    said = cx.summary(NET, (4,), batch_size=2)
    assert [(row.layer, row.output_shape, row.parameters) for row in said.rows] == [
        ("0: Linear", (8,), 40),
        ("1: BatchNorm1d", (8,), 16),
        ("2: ReLU", (8,), 0),
        ("3: Linear", (3,), 27),
    ]
    assert said.rows[0].flops == 2 * 2 * 4 * 8 + 2 * 8
    assert said.rows[2].activation_bytes == 2 * 8 * 4
    assert (said.parameters, said.buffers, said.flops) == (83, 16, sum(row.flops for row in said.rows))
    assert cx.flops(NET, (4,), 2) == said.flops


def test_the_table_says_it_in_words() -> None:
    text = str(cx.summary(cx.trace(NET, (4,)).graph))
    assert text.splitlines()[2].split() == ["0:", "Linear", "8", "40", "72", "64", "B"]
    assert "83 parameters, 16 in buffers; for 1 row of 4: " in text


def test_a_shared_parameter_counts_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 4, bias=False)

        def forward(self, x: cx.Tensor) -> cx.Tensor:
            return self.one(self.one(x))

    assert sum(row.parameters for row in cx.summary(Tied(), (4,)).rows) == 16


@pytest.mark.parametrize(
    "call, error, said",
    [
        (lambda: cx.summary(cx.nn.Linear(4, 2), 4), GraphError, r"the shape of one sample, such as \(4,\)"),
        (lambda: cx.summary("mlp", (4,)), GraphError, "expected a module or a function of one tensor, got str"),
        (lambda: cx.summary(cx.nn.Linear(4, 2), (4,), batch_size=0), SpecError, "batch_size of at least 1, got 0"),
    ],
)
def test_what_has_no_summary_is_told(call: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()


def test_a_module_alone_does_not_say_its_input() -> None:
    with pytest.raises(SpecError, match="expected input_shape"):
        cx.summary(NET)
    with pytest.raises(ShapeError, match="0: Linear"):
        cx.summary(NET, (5,))


@pytest.mark.parametrize(("number", "text"), [(0, "0 "), (999, "999 "), (999.6, "1 k"), (1234567, "1.23 M")])
def test_numbers_are_said_with_three_digits(number: float, text: str) -> None:
    assert short(number) == text


def test_a_layer_that_returns_several_tensors_has_the_summary_of_the_first() -> None:
    found = cx.summary(nn.LSTM(3, 4, batch_first=True), (5, 3))
    assert [row.output_shape for row in found.rows][-1] == (5, 4)
    assert found.parameters == 4 * 4 * (3 + 4 + 2) and found.flops > 0
    assert cx.summary(nn.MaxPool2d(2, return_indices=True), (3, 4, 4)).rows[-1].output_shape == (3, 2, 2)


def test_a_model_of_two_heads_says_that_one_is_counted() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 5)

        def forward(self, x: cx.Tensor) -> dict[str, cx.Tensor]:
            return {"one": self.one(self.body(x)), "two": self.two(self.body(x))}

    found = cx.summary(Heads(), (4,))
    assert (found.parameters, found.results) == (20 + 15, 2)
    assert "the first of the 2 tensors it returns" in str(found).splitlines()[-1]
    assert "tensors it returns" not in str(cx.summary(NET, (4,)))


def test_a_layer_that_does_not_take_the_batch_first_is_told_of_it() -> None:
    with pytest.raises(GraphError, match="batch_first=True"):
        cx.summary(nn.LSTM(4, 8), (5, 4))

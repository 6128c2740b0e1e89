"""What a program sets to another value at an epoch, long after its step was compiled: the same bits as plain."""

import argparse
import collections
import dataclasses
import enum
import functools
import types
from collections.abc import Callable
from typing import Any

import pytest

import cyxcore as cx
from cyxcore import nn
from tests.core.programs import How, Programs, batch, net, plain, run, sgd, train, update

PROGRAMS: Programs[Callable[[How], Any]] = Programs()
same = PROGRAMS.same


def _at_an_epoch(how: How, read: Callable[[Any], Any], change: Callable[[], Any], **more: Any) -> Any:
    """read(output of the model) is the output; change() comes before the fourth call."""
    model = net()
    return train(how, model, lambda x: read(model(x)), lambda number: change() if number == 3 else None, **more)


@same
def an_attribute_of_a_class(how: How) -> Any:
    class Options:
        scale = 1.0

    return _at_an_epoch(how, lambda y: y * Options.scale, lambda: setattr(Options, "scale", 2.0))


@same
def an_attribute_of_an_object_with_slots(how: How) -> Any:
    class Options:
        __slots__ = ("scale", "weight")

        def __init__(self) -> None:
            self.scale, self.weight = 1.0, cx.ones(3)

    options = Options()

    def change() -> None:
        options.scale = 2.0
        options.weight.fill_(0.5)

    return _at_an_epoch(how, lambda y: y * options.scale * options.weight, change)


@same
def an_attribute_of_a_function(how: How) -> Any:
    def scaled(y: Any) -> Any:
        return y * scaled.scale  # type: ignore[attr-defined]

    scaled.scale = 1.0  # type: ignore[attr-defined]
    return _at_an_epoch(how, scaled, lambda: setattr(scaled, "scale", 2.0))


@same
def an_attribute_of_a_module_of_python(how: How) -> Any:
    settings = types.ModuleType("settings")
    settings.scale = 1.0  # type: ignore[attr-defined]
    return _at_an_epoch(how, lambda y: y * settings.scale, lambda: setattr(settings, "scale", 2.0))


@same
def an_attribute_of_a_base_class(how: How) -> Any:
    class Base(nn.Module):
        heat = 1.0

        def forward(self, x: Any) -> Any:
            return x * self.heat

    class Own(Base):
        def forward(self, x: Any) -> Any:
            return super().forward(x)

    return _at_an_epoch(how, Own(), lambda: setattr(Base, "heat", 2.0))


@same
def a_forward_that_is_replaced(how: How) -> Any:
    class Base(nn.Module):
        def forward(self, x: Any) -> Any:
            return x.relu()

    class Own(Base):
        pass

    model = net(Own())

    def before(number: int) -> None:
        if number == 2:
            Base.forward = lambda self, x: x.tanh()  # type: ignore[method-assign]
        if number == 4:
            Own.forward = lambda self, x: x.sin()  # type: ignore[method-assign]

    return train(how, model, model, before)


@same
def a_method_that_is_replaced(how: How) -> Any:
    class Base(nn.Module):
        def forward(self, x: Any) -> Any:
            return self.act(x)

        def act(self, x: Any) -> Any:
            return x.relu()

    return _at_an_epoch(how, Base(), lambda: setattr(Base, "act", lambda self, x: x.tanh()))


@same
def a_static_method_that_is_replaced(how: How) -> Any:
    class Tools:
        @staticmethod
        def act(x: Any) -> Any:
            return x.relu()

    return _at_an_epoch(how, lambda y: Tools.act(y), lambda: setattr(Tools, "act", staticmethod(lambda x: x.tanh())))


@same
def a_function_in_a_list_that_is_replaced(how: How) -> Any:
    acts = [lambda y: y.relu()]
    return _at_an_epoch(how, lambda y: acts[0](y), lambda: acts.__setitem__(0, lambda y: y.tanh()))


@same
def a_variable_of_a_function_in_a_list(how: How) -> Any:
    factor = 1.0
    acts = [lambda y: y * factor]

    def change() -> None:
        nonlocal factor
        factor = 2.0

    return _at_an_epoch(how, lambda y: acts[0](y), change)


@same
def an_object_that_is_appended_and_changed(how: How) -> Any:
    parts = [types.SimpleNamespace(scale=1.0)]

    def before(number: int) -> None:
        if number == 2:
            parts.append(types.SimpleNamespace(scale=2.0))
        if number == 4:
            parts[1].scale = 3.0

    model = net()
    return train(how, model, lambda x: functools.reduce(lambda y, part: y * part.scale, parts, model(x)), before)


@same
def a_dict_with_attributes(how: How) -> Any:
    class Options(dict[str, float]):
        __getattr__ = dict.__getitem__

    options = Options(scale=1.0)
    return _at_an_epoch(how, lambda y: y * options.scale, lambda: options.update(scale=2.0))


@same
def options_of_many_kinds(how: How) -> Any:
    class Mode(enum.Enum):
        PLAIN, DOUBLE = 1, 2

    @dataclasses.dataclass(frozen=True)
    class Options:
        scale: float = 1.0

    Pair = collections.namedtuple("Pair", "first second")
    mode, options, pair, parsed = Mode.PLAIN, Options(), Pair(1.0, 2.0), argparse.Namespace(scale=1.0)

    def read(y: Any) -> Any:
        return (y * 2 if mode is Mode.DOUBLE else y) * options.scale * pair.second * parsed.scale

    def change() -> None:
        nonlocal mode, options, pair
        mode, options, pair, parsed.scale = Mode.DOUBLE, dataclasses.replace(options, scale=2.0), Pair(1.0, 3.0), 0.5

    return _at_an_epoch(how, read, change)


@same
def a_hook_that_is_an_object(how: How) -> Any:
    class Scaling:
        scale = 1.0

        def __call__(self, module: Any, given: Any, result: Any) -> Any:
            return result * self.scale

    hook, model = Scaling(), net()
    model[0].register_forward_hook(hook)
    return train(how, model, model, lambda number: setattr(hook, "scale", 0.5) if number == 3 else None)


@same
def options_of_a_loss(how: How) -> Any:
    loss, model = nn.CrossEntropyLoss(weight=cx.ones(3)), net()
    optimizer, found = sgd(model), []
    step = how(lambda x, y: update(optimizer, loss(model(x), y)))
    for number in range(6):
        if number == 2:
            loss.weight = cx.tensor([1.0, 2.0, 3.0])
        if number == 4:
            loss.label_smoothing, loss.reduction = 0.2, "sum"
        found.append(step(*batch(number)))
    return found, model.state_dict()


@same
def the_depth_of_a_recursion(how: How) -> Any:
    depth = 0

    def deeper(y: Any, left: int) -> Any:
        return y if left == 0 else deeper(y.tanh() * 0.9 + y * 0.1, left - 1)

    def before(number: int) -> None:
        nonlocal depth
        depth = number % 3

    model = net()
    return train(how, model, lambda x: deeper(model(x), depth), before)


@same
def a_gradient_of_ones_own_with_an_option(how: How) -> Any:
    class Reversed(cx.Function):
        scale = 1.0

        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x * 1.0

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            return -Reversed.scale * gradient

    return _at_an_epoch(how, Reversed.apply, lambda: setattr(Reversed, "scale", 2.0))


@pytest.mark.parametrize("name", PROGRAMS.equal)
def test_a_compiled_program_is_the_plain_one(name: str) -> None:
    assert run(PROGRAMS.equal[name], cx.compile) == run(PROGRAMS.equal[name], plain)

"""Steps that freeze parameters, or no longer do: compiled and plain, the same bits.

Each program gets `how`, which compiles a step or leaves it as it is, and gives all that can be seen of its run.
"""

from collections.abc import Callable
from typing import Any

import pytest

import cyxcore as cx
from cyxcore import functional as F
from cyxcore import nn, optim
from cyxcore.errors import GraphError
from tests.core.programs import How, Programs, batch, net, plain, run, sgd, update

PROGRAMS: Programs[Callable[[How], Any]] = Programs()
same, refused = PROGRAMS.same, PROGRAMS.refused


def trained(how: How, step: Callable[[Any, Any], Any], *modules: nn.Module, calls: int = 6) -> Any:
    """What a step gives in calls, and what the modules are then."""
    made = how(step)
    found = [made(*batch(number)) for number in range(calls)]
    return (
        found,
        [module.state_dict() for module in modules],
        [p.requires_grad for m in modules for p in m.parameters()],
    )


@same
def adversaries_that_freeze_each_other(how: How) -> Any:
    maker, judge = nn.Linear(8, 8), nn.Linear(8, 1)
    of_maker, of_judge = sgd(maker), sgd(judge)

    def step(x: Any, y: Any) -> Any:
        judge.requires_grad_(False)
        made = maker(x)
        loss = update(of_maker, -judge(made).mean())
        judge.requires_grad_(True)
        return loss, update(of_judge, F.softplus(judge(made.detach())).mean() + F.softplus(-judge(x)).mean())

    return trained(how, step, maker, judge)


@same
def a_layer_that_the_step_freezes(how: How) -> Any:
    model = net()
    optimizer = sgd(model)

    def step(x: Any, y: Any) -> Any:
        for p in model[0].parameters():
            p.requires_grad = False
        return update(optimizer, F.cross_entropy(model(x), y))

    return trained(how, step, model)


@same
def a_layer_that_is_frozen_in_some_steps(how: How) -> Any:
    model = net()
    optimizer = optim.Adam(model.parameters())

    @how
    def step(x: Any, y: Any, freeze: bool) -> Any:
        model[0].requires_grad_(not freeze)
        return update(optimizer, F.cross_entropy(model(x), y))

    return [step(*batch(number), number % 3 == 1) for number in range(8)], model.state_dict()


@same
def a_layer_that_is_frozen_at_first(how: How) -> Any:
    model = net()
    optimizer = sgd(model)
    model[2].requires_grad_(False)

    def step(x: Any, y: Any) -> Any:
        before = model(x).square().mean()
        model[2].requires_grad_(True)
        loss = update(optimizer, F.cross_entropy(model(x), y))
        model[2].requires_grad_(False)
        return loss, before

    return trained(how, step, model)


@same
def weights_that_are_frozen_and_written_within_a_step(how: How) -> Any:
    model = net()
    optimizer = sgd(model)

    def step(x: Any, y: Any) -> Any:
        first = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        first.backward()
        model.requires_grad_(False)
        with cx.no_grad():
            for p in model.parameters():
                p.mul_(0.99)
        frozen = F.cross_entropy(model(x), y)
        model.requires_grad_(True)
        F.cross_entropy(model(x * 0.5), y).backward()
        optimizer.step()
        return first, frozen

    return trained(how, step, model)


@same
def switches_by_a_helper(how: How) -> Any:
    maker, judge = net(), nn.Linear(3, 1)
    of_maker, of_judge = optim.Adam(maker.parameters()), optim.Adam(judge.parameters())

    def set_trained(modules: list[nn.Module], wanted: bool) -> None:
        for module in modules:
            for p in module.parameters():
                p.requires_grad_(wanted)

    def step(x: Any, y: Any) -> Any:
        set_trained([judge], False)
        made = maker(x)
        first = update(of_maker, F.softplus(-judge(made)).mean())
        set_trained([judge], True)
        set_trained([maker], False)
        second = update(of_judge, F.softplus(judge(maker(x))).mean())
        set_trained([maker], True)
        return first, second

    return trained(how, step, maker, judge)


@same
def losses_that_are_asked_whether_they_have_a_gradient(how: How) -> Any:
    """What was computed while a parameter was trained has one, also after it was frozen."""
    model = net()
    optimizer = sgd(model)

    def step(x: Any, y: Any) -> Any:
        model.requires_grad_(False)
        frozen = F.cross_entropy(model(x), y)
        model[2].requires_grad_(True)
        loss = F.cross_entropy(model(x), y)
        model[2].bias.requires_grad_(False)
        found = [y.sum() * each.requires_grad for each in (x, frozen, loss, loss.detach(), loss > 1)]
        if frozen.requires_grad:
            frozen.backward()
        if loss.requires_grad:
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss, found

    return trained(how, step, model)


@same
def an_optimiser_of_what_the_step_does_not_use(how: How) -> Any:
    """It has gradients from elsewhere in some calls, is frozen in others, and gets other values in one."""
    model, other = net(), nn.Linear(2, 2)
    optimizer = optim.Adam([*model.parameters(), *other.parameters()])

    @how
    def step(x: Any, y: Any) -> Any:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    found = []
    for number in range(9):
        if number % 3 == 1:
            other(cx.ones(1, 2)).square().sum().backward()
        other.bias.requires_grad_(number < 6)
        if number == 7:
            other.load_state_dict({name: value * 2.0 for name, value in other.state_dict().items()})
        found.append(step(*batch(number)))
    return found, model.state_dict(), other.state_dict()


@refused("by a name that its code does not have")
def a_parameter_that_is_used_and_then_trained_by_a_name_that_is_made(how: How) -> Any:
    model = net()
    optimizer = sgd(model)
    model[2].requires_grad_(False)
    train_again = "_".join(("requires", "grad", ""))

    def step(x: Any, y: Any) -> Any:
        before = model(x).square().mean()
        getattr(model[2], train_again)(True)
        return update(optimizer, F.cross_entropy(model(x), y) + before)

    return trained(how, step, model)


@pytest.mark.parametrize("name", PROGRAMS.equal)
def test_a_step_that_freezes_parameters_is_the_plain_one(name: str) -> None:
    assert run(PROGRAMS.equal[name], cx.compile) == run(PROGRAMS.equal[name], plain)


@pytest.mark.parametrize("name", PROGRAMS.unfit)
def test_a_step_that_cannot_be_followed_says_so(name: str) -> None:
    program, said = PROGRAMS.unfit[name]
    run(program, plain)
    with pytest.raises(GraphError, match=said):
        run(program, cx.compile)

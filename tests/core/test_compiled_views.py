"""What is written in place in a compiled step, read by other names and through views: as tensors show it, or refused.

Each program is a step of a model of two layers; x is a batch (5, 4).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import nn, optim
from cyxcore.errors import GradientError, GraphError, ShapeError
from tests.core.programs import Programs, bits, plain

Step = Callable[[Any, Any, Any], Any]
PROGRAMS: Programs[Step] = Programs()
same, refused = PROGRAMS.same, PROGRAMS.refused


def train(model: Any, optimizer: Any, loss: Any) -> Any:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def loss_of(model: Any, x: Any) -> Any:
    return model(x).square().mean()


# values that the step computes ------------------------------------------------------------------------------


@same
def another_name(model: Any, optimizer: Any, x: Any) -> Any:
    a = x * 2.0
    b = a
    b += 1.0
    return train(model, optimizer, loss_of(model, a)), a


@same
def methods_in_place(model: Any, optimizer: Any, x: Any) -> Any:
    y = x + 0
    y.add_(1).mul_(2.0)
    z = y.clone()
    y.zero_()
    return train(model, optimizer, loss_of(model, z)), y, z


@same
def views_of_what_is_written(model: Any, optimizer: Any, x: Any) -> Any:
    h = x * 2.0
    views = [h[0], h.T, h[1:3].reshape(-1), h[:, 1:3], h.detach(), h.reshape(2, 10), h[::-1]]
    h += 1.0
    return train(model, optimizer, loss_of(model, h)), [view * 1.0 for view in views]


@same
def copies_of_what_is_written(model: Any, optimizer: Any, x: Any) -> Any:
    h = x * 2.0
    copies = [h.clone(), h.T.reshape(-1), h.T.contiguous(), h[:, 1:].reshape(-1), h.flip(0), h.fliplr()]
    h += 1.0
    return train(model, optimizer, loss_of(model, h)), copies


@same
def a_written_detached_value(model: Any, optimizer: Any, x: Any) -> Any:
    h = x * 2.0
    bare = h.detach()
    bare += 1.0
    return train(model, optimizer, loss_of(model, h)), h, bare


@same
def a_written_list_of_one_value(model: Any, optimizer: Any, x: Any) -> Any:
    h, kept = x * 1.0, []
    for _ in range(3):
        kept.append(h)
        h += 1.0
    return train(model, optimizer, loss_of(model, sum(kept)))


@same
def written_with_a_gradient(model: Any, optimizer: Any, x: Any) -> Any:
    h = model[0](x)
    same = h.reshape(1, 5, 3)
    same += 1.0
    same.relu_()
    return train(model, optimizer, loss_of(model[1], same))


@same
def three_gradients_one_of_them_of_an_older_view(model: Any, optimizer: Any, x: Any) -> Any:
    h = model[0](x)
    view = h.reshape(1, 5, 3)
    h.mul_(0.7)
    later = h.sin()
    loss = h.square().mean() + (view * 1.7).cos().mean() + later.tanh().mean()  # in the order in which they are read
    return train(model, optimizer, loss), model[0].weight.grad * 1.0


@same
def filled_with_a_gradient(model: Any, optimizer: Any, x: Any) -> Any:
    found = []
    for fill in (lambda h: h.fill_(2.0), lambda h: h.zero_(), lambda h: h.copy_(model[1].bias * x[:, :1])):
        h = model[0](x)
        fill(h)
        optimizer.zero_grad()
        loss_of(model[1], h).backward()
        found.append([None if p.grad is None else p.grad * 1.0 for p in model.parameters()])
    mask = x > 0
    return found, mask.zero_()


@same
def written_unrecorded_with_a_gradient(model: Any, optimizer: Any, x: Any) -> Any:
    h = model[0](x)
    before = h.sum()
    with cx.no_grad():
        h.mul_(0.5)
    h.data.add_(1.0)
    return train(model, optimizer, before + h.detach().sum() + h.square().mean()), h


@same
def a_detached_value_that_gets_a_past(model: Any, optimizer: Any, x: Any) -> Any:
    h = model[0](x)
    bare = h.detach()
    bare += h
    return train(model, optimizer, h.square().mean() + bare.sum()), h, bare


@same
def a_copy_of_rows_that_lie_apart(model: Any, optimizer: Any, x: Any) -> Any:
    turned = model[0](x).T
    copied = turned.contiguous()
    whole = turned.square().mean() + turned.sum() * 0.1
    return train(model, optimizer, whole + copied.square().mean() + copied.sum() * 0.01)


@same
def parts_that_do_not_overlap(model: Any, optimizer: Any, x: Any) -> Any:
    q, k, v = cx.cat([model[0](x)] * 3, -1).chunk(3, -1)
    q *= 0.3
    k += 1.0
    return train(model, optimizer, ((q @ k.T).softmax(-1) @ v).square().mean()), q * 1.0, k * 1.0


@same
def written_by_itself(model: Any, optimizer: Any, x: Any) -> Any:
    h = x * 1.0
    h += h
    h *= h[0]
    return train(model, optimizer, loss_of(model, h)), h


@same
def a_row_of_what_is_read_later(model: Any, optimizer: Any, x: Any) -> Any:
    h = x * 2.0
    row = h[0]
    row += 1.0
    return train(model, optimizer, loss_of(model, h))


@same
def a_row_of_a_copy(model: Any, optimizer: Any, x: Any) -> Any:
    h = x.clone()
    row = h[0]
    row += 1.0
    return train(model, optimizer, loss_of(model, h))


@same
def rows_that_overlap(model: Any, optimizer: Any, x: Any) -> Any:
    h = x * 2.0
    first, second = h[:3], h[2:]
    first += 1.0
    return train(model, optimizer, loss_of(model, second))


@refused("writes to an argument")
def a_row_of_an_argument(model: Any, optimizer: Any, x: Any) -> Any:
    row = x[0]
    row += 1.0
    return train(model, optimizer, loss_of(model, x))


# what is assigned to parts -----------------------------------------------------------------------------------


@same
def numbers_at_places(model: Any, optimizer: Any, x: Any) -> Any:
    h = model[0](x) * 1.0
    view = h[1:]
    h[0] = 0.0
    h[1, 2] = 3
    h[2:4, ::2] = -0.5
    h[-1, ::-2] *= 2.0
    h[..., 1] += 1
    return train(model, optimizer, loss_of(model[1], h)), h, view * 1.0


@same
def values_at_places(model: Any, optimizer: Any, x: Any) -> Any:
    h = model[0](x) * 1.0
    h[0] = h[1] * 2.0
    h[:, 0] = x[:, 1]
    h[1::2, :] = h[:2].flip(0)
    h[2:3] = cx.tensor([[1.0, 2.0, 3.0]])
    h[3] = [4.0, 5.0, 6.0]
    h[:] = h * 2.0
    return train(model, optimizer, loss_of(model[1], h)), h


@same
def at_places_that_arrays_name(model: Any, optimizer: Any, x: Any) -> Any:
    h = model[0](x) * 1.0
    h[[0, 2]] = 0.25
    h[:, cx.tensor([0, 2])] = x[:, 1:3]
    h[x[:, :3].argmax(1), 1] = -1.0
    h[cx.tensor([True, False, False, True, False])] *= 2.0
    return train(model, optimizer, loss_of(model[1], h)), h


@same
def where_a_mask_is_true(model: Any, optimizer: Any, x: Any) -> Any:
    h = model[0](x) * 1.0
    h[h > 0.5] = 0.5
    h[x[:, 0] > 0] = model[1].bias
    h[(x[:, 0] < 0)[:, None].broadcast_to(5, 3)] = 7
    return train(model, optimizer, loss_of(model[1], h)), h


@same
def through_views_of_views(model: Any, optimizer: Any, x: Any) -> Any:
    h = model[0](x) * 1.0
    turned, rows = h.T, h.reshape(1, 5, 3)
    turned[1:, ::2][:, 1] = 9.0
    rows[0, -1].mul_(2.0)
    rows[:, ::2, 1:].flip(1)[0, 0, 0] = x.sum()
    turned.reshape(-1)[3:5] = 4.0  # of a copy
    return train(model, optimizer, loss_of(model[1], h)), h, turned * 1.0, rows * 1.0


@same
def unrecorded_and_detached(model: Any, optimizer: Any, x: Any) -> Any:
    h = model[0](x) * 1.0
    with cx.no_grad():
        h[0] = 1.0
        h[1:3].mul_(2.0)
    h.detach()[3] = model[1].bias
    bare = h[4].detach()
    bare += model[1].bias
    data = h.data
    data[:, 2] = 0.5
    return train(model, optimizer, loss_of(model[1], h) + bare.sum()), h, bare


@same
def detached_twice_with_a_past(model: Any, optimizer: Any, x: Any) -> Any:
    h = model[0](x) * 1.0
    once = h.detach()
    twice = once.detach()
    twice[:, 0] *= 2.0
    twice[:, :] = h.sum()
    later = once.detach()[1:]
    with cx.no_grad():
        once[0, 0] = 3.0
    return train(model, optimizer, (h * h).sum() + (once * once).sum() + (twice * twice).sum()), later * 1.0


@same
def rows_of_weights(model: Any, optimizer: Any, x: Any) -> Any:
    loss = train(model, optimizer, loss_of(model, x))
    with cx.no_grad():
        model[0].weight[0] = 0.0
        model[0].weight[:, 1] *= 0.5
        model[1].weight.T[2, 1:].clamp_(-0.1, 0.1)
        model[1].bias[model[1].bias > 0] = 0.0
    model[0].bias.data[1] = x.sum()
    return loss


@same
def of_other_dtypes(model: Any, optimizer: Any, x: Any) -> Any:
    counts = (x * 4).astype("int64")
    counts[0] = 3
    counts[counts < 0] = 0
    mask = x > 0
    mask[1:3, ::2] = True
    mask[4] = False
    wide = x.astype("float64")
    wide[0] = 0.1
    half = x.astype("float16")
    half[:, 1] = x[:, 0]
    nothing = x * 1.0
    nothing[3:3] = 1.0
    return counts, mask, wide, half, nothing, train(model, optimizer, loss_of(model, wide.astype("float32")))


@refused("writes to an argument")
def an_element_of_an_argument(model: Any, optimizer: Any, x: Any) -> Any:
    x[0, 0] = 1.0
    return train(model, optimizer, loss_of(model, x))


# parameters and gradients -----------------------------------------------------------------------------------


@same
def views_of_weights(model: Any, optimizer: Any, x: Any) -> Any:
    weight = model[0].weight
    views = [weight.detach(), weight.T, weight[0], weight.reshape(-1), weight.data]
    copies = [weight.clone(), weight.T.reshape(-1), weight * 1.0]
    loss = train(model, optimizer, loss_of(model, x))
    return loss, [view.clone() for view in views], copies, nn.utils.parameters_to_vector(model.parameters())


@same
def weights_written_between_forward_and_backward(model: Any, optimizer: Any, x: Any) -> Any:
    loss = loss_of(model, x)
    with cx.no_grad():
        model[0].weight.mul_(0.5)
    model[0].bias.data.add_(1.0)
    return train(model, optimizer, loss + model[0](x).mean())


@same
def a_value_that_weights_were_copied_into(model: Any, optimizer: Any, x: Any) -> Any:
    h = x[:3] * 1.0
    with cx.no_grad():
        h.copy_(model[0].weight)
        h.mul_(2.0)
    return train(model, optimizer, loss_of(model, h)), h


@same
def assigned_data(model: Any, optimizer: Any, x: Any) -> Any:
    loss = train(model, optimizer, loss_of(model, x))
    model[0].weight.data = model[0].weight.data * 0.5
    model[0].bias.data.add_(1.0)
    with cx.no_grad():
        turned = model[1].weight.T
        model[1].weight.mul_(0.5)
        return loss, model[0].weight.sum(), turned.sum()


@same
def updates_by_hand(model: Any, optimizer: Any, x: Any) -> Any:
    loss = loss_of(model, x)
    optimizer.zero_grad()
    loss.backward()
    for p in model.parameters():
        p.data -= 0.1 * p.grad
        p.data.clamp_(-0.3, 0.3)
    return loss


@same
def gradients_in_place(model: Any, optimizer: Any, x: Any) -> Any:
    loss = loss_of(model, x)
    optimizer.zero_grad()
    loss.backward()
    for p in model.parameters():
        gradient = p.grad
        gradient *= 0.5
        p.grad.data.clamp_(-0.01, 0.01)
    optimizer.step()
    return loss, gradient


@same
def a_row_of_a_weight(model: Any, optimizer: Any, x: Any) -> Any:
    loss = train(model, optimizer, loss_of(model, x))
    model[0].weight.data[0].zero_()
    return loss


@same
def a_row_of_a_gradient(model: Any, optimizer: Any, x: Any) -> Any:
    loss = loss_of(model, x)
    loss.backward()
    row = model[0].weight.grad[0]
    row *= 0.0
    optimizer.step()
    return loss


@refused("state_dict.*outside of the compiled function")
def the_state_of_a_module(model: Any, optimizer: Any, x: Any) -> Any:
    model.state_dict()
    return train(model, optimizer, loss_of(model, x))


def _trained(step: Step, how: Callable[[Any], Any]) -> list[Any]:
    cx.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    run = how(lambda x: step(model, optimizer, x))
    batches = (cx.tensor(np.random.default_rng(place).normal(size=(5, 4)).astype(np.float32)) for place in range(3))
    return bits([*map(run, batches), *model.parameters()])


@pytest.mark.parametrize("name", PROGRAMS.equal)
def test_what_is_written_in_place_is_seen_by_every_name_as_in_tensors(name: str) -> None:
    assert _trained(PROGRAMS.equal[name], cx.compile) == _trained(PROGRAMS.equal[name], plain)


@pytest.mark.parametrize("name", PROGRAMS.unfit)
def test_a_write_in_place_that_a_graph_cannot_show_is_refused(name: str) -> None:
    step, said = PROGRAMS.unfit[name]
    _trained(step, plain)
    with pytest.raises(GraphError, match=said):
        _trained(step, cx.compile)


def test_a_function_that_asks_for_gradients_notes_what_is_done_within_no_grad() -> None:
    weight = cx.nn.Parameter(cx.tensor([[0.5, -1.0], [2.0, 0.25]]))
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    model[0].weight = weight

    def gradient(x: Any) -> Any:
        h = model(x) * 2.0
        with cx.no_grad():
            h[:, 0] = 0.25
            factor = model(x).sum()
        return cx.autograd.grad((h * h).sum() * factor, [weight])[0], h * 1.0

    def inside(x: Any) -> Any:
        known = model(x)
        with cx.enable_grad():
            return cx.autograd.grad((known * model(x)).sum(), [weight])[0]

    x = cx.tensor([[1.0, -2.0], [0.5, 3.0], [2.0, 2.0]])
    fast = cx.compile(gradient)
    assert bits(fast(x)) == bits(gradient(x))
    with cx.no_grad(), pytest.raises(GradientError, match="do not depend on input 0"):
        fast(x)
    assert bits(fast(x)) == bits(gradient(x))
    fast = cx.compile(inside)
    for mode in (cx.no_grad, cx.enable_grad, cx.no_grad):
        with mode():
            assert bits(fast(x)) == bits(inside(x))


def test_a_value_in_place_keeps_its_shape_and_a_number_is_another_one() -> None:
    def grows(x: Any) -> Any:
        row = x[0] * 2.0
        row += x
        return row

    def counts(x: Any, factor: float) -> Any:
        before = factor
        factor += 1.0
        return x * before + factor

    for how in (lambda function: function, cx.compile):
        with pytest.raises(ShapeError, match="does not fit"):
            how(grows)(cx.ones(2, 3))
        assert how(counts)(cx.ones(2), 0.5).tolist() == [2.0, 2.0]

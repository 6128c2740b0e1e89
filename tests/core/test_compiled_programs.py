"""Training loops as users write them, compiled and plain: the same bits, or the error that is said here.

A program gets `how`, which compiles a step or leaves it as it is, and gives all that can be seen of its run.
"""

import copy
import dataclasses
import types
from collections.abc import Callable
from typing import Any

import pytest

import cyxcore as cx
from cyxcore import functional as F
from cyxcore import nn, optim
from cyxcore.errors import GraphError
from tests.core.programs import How, Programs, batch, bits, net, plain, run, sgd, train, update

PROGRAMS: Programs[Callable[[How], Any]] = Programs()
same, refused = PROGRAMS.same, PROGRAMS.refused


# networks against each other, and their averages ----------------------------------------------------------------


@same
def adversaries_in_two_functions(how: How) -> Any:
    maker, judge = nn.Linear(4, 8), nn.Linear(8, 1)
    of_maker, of_judge = optim.Adam(maker.parameters()), optim.Adam(judge.parameters())

    @how
    def judge_step(x: Any, z: Any) -> Any:
        return update(of_judge, F.softplus(-judge(x)).mean() + F.softplus(judge(maker(z).detach())).mean())

    @how
    def maker_step(z: Any) -> Any:
        return update(of_maker, F.softplus(-judge(maker(z))).mean())

    found = [(judge_step(batch(n)[0], batch(n)[0][:, :4]), maker_step(batch(n)[0][:, 4:])) for n in range(4)]
    return found, maker.state_dict(), judge.state_dict()


@same
def adversaries_with_noise_in_one_function(how: How) -> Any:
    maker, judge = nn.Linear(4, 8), nn.Linear(8, 1)
    of_maker, of_judge = sgd(maker), sgd(judge)

    @how
    def step(x: Any) -> Any:
        made = maker(cx.randn(len(x), 4))
        first = update(of_judge, F.softplus(-judge(x)).mean() + F.softplus(judge(made.detach())).mean())
        for p in judge.parameters():
            p.data.clamp_(-0.5, 0.5)
        return first, update(of_maker, F.softplus(-judge(made)).mean())

    return [step(batch(n)[0]) for n in range(4)], maker.state_dict(), judge.state_dict()


@same
def a_function_that_leaves_modules_in_evaluation(how: How) -> Any:
    model = net(nn.BatchNorm1d(16), nn.Dropout(0.5))
    optimizer = sgd(model)

    @how
    def train(x: Any, y: Any) -> Any:
        return update(optimizer, F.cross_entropy(model(x), y))

    @how
    def evaluate(x: Any) -> Any:
        model.eval()
        return model(x).argmax(1)

    @how
    def judge(x: Any) -> Any:
        model.eval()
        result = model(x).argmax(1)
        model[2].train()
        return result

    found = []
    for number in range(12):
        x, y = batch(number)
        if number % 2:
            model.train()
        found += [train(x, y), evaluate(x) if number % 4 < 2 else judge(x), [part.training for part in model.modules()]]
    return found, model.state_dict()


@dataclasses.dataclass(frozen=True)
class Rows:
    x: Any
    y: Any
    weight: float = 1.0
    name: str = "train"

    def loss(self, model: Any) -> Any:
        return F.cross_entropy(model(self.x), self.y) * self.weight


@same
def batches_that_are_dataclasses(how: How) -> Any:
    model = net()
    optimizer = sgd(model)

    @how
    def step(rows: Rows, more: list[Rows]) -> Any:
        loss = update(optimizer, rows.loss(model) + sum(each.loss(model) for each in more))
        return loss if rows.name == "train" else loss * 2.0

    found = []
    for number in range(6):
        rows = Rows(*batch(number), weight=1.0 + number, name="test" if number == 3 else "train")
        found += [step(rows, [Rows(*batch(number + 9))]), rows.weight]
    return found, model.state_dict()


@refused("changes a learning rate to a value that it computes or was given|changes a learning rate, from")
def a_rate_that_is_an_argument(how: How) -> Any:
    model = net()
    optimizer = sgd(model)

    @how
    def step(x: Any, y: Any, lr: float) -> Any:
        optimizer.param_groups[0]["lr"] = lr
        return update(optimizer, F.cross_entropy(model(x), y))

    return [step(*batch(number), 0.1 * number) for number in range(3)]


@same
def a_penalty_on_gradients(how: How) -> Any:
    judge = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = sgd(judge)

    @how
    def step(x: Any) -> Any:
        share = cx.rand(len(x), 1)
        mixed = (x * share + (1 - share) * cx.randn(*x.shape)).requires_grad_()
        slope = cx.autograd.grad(judge(mixed).sum(), [mixed], create_graph=True)[0]
        return update(optimizer, judge(x).mean() + ((slope.square().sum(1) + 1e-6).sqrt() - 1).square().mean())

    return [step(batch(n)[0]) for n in range(4)], judge.state_dict()


@same
def a_teacher_that_is_an_average(how: How) -> Any:
    model = net()
    teacher, optimizer = copy.deepcopy(model).requires_grad_(False), sgd(model)

    @how
    def step(x: Any) -> Any:
        loss = update(optimizer, F.mse_loss(model(x), teacher(x).detach() + 1))
        with cx.no_grad():
            for mean, p in zip(teacher.parameters(), model.parameters(), strict=True):
                mean.data.mul_(0.9).add_(p.data, alpha=0.1)
        return loss

    return [step(batch(n)[0]) for n in range(4)], model.state_dict(), teacher.state_dict()


@same
def slow_weights_every_second_step(how: How) -> Any:
    model = net()
    optimizer, slow = sgd(model), [p.detach().clone() for p in model.parameters()]

    @how
    def step(x: Any, y: Any, now: bool) -> Any:
        loss = update(optimizer, F.cross_entropy(model(x), y))
        if now:
            with cx.no_grad():
                for far, p in zip(slow, model.parameters(), strict=True):
                    far.add_((p - far) * 0.5)
                    p.copy_(far)
        return loss

    return [step(*batch(n), n % 2 == 1) for n in range(6)], model.state_dict(), slow


@same
def sharpness_aware_steps(how: How) -> Any:
    model = net()
    optimizer = sgd(model)

    @how
    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        with cx.no_grad():
            moved = [p.grad * 0.05 for p in model.parameters()]
            for p, by in zip(model.parameters(), moved, strict=True):
                p.add_(by)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        with cx.no_grad():
            for p, by in zip(model.parameters(), moved, strict=True):
                p.sub_(by)
        optimizer.step()
        return loss

    return [step(*batch(n)) for n in range(4)], model.state_dict()


# batches that are gathered ---------------------------------------------------------------------------------------


@same
def gradients_of_two_batches_and_a_schedule(how: How) -> Any:
    model = net()
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    schedule, found = optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (epoch + 1)), []

    @how
    def forward_backward(x: Any, y: Any) -> Any:
        loss = F.cross_entropy(model(x), y) / 2
        loss.backward()
        return loss.detach()

    @how
    def step() -> Any:
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return norm

    for number in range(6):
        found.append(forward_backward(*batch(number)))
        if number % 2:
            found.append(step())
            schedule.step()
    return found, model.state_dict(), optimizer.param_groups[0]["lr"]


@same
def a_flag_says_when_to_step(how: How) -> Any:
    model = net()
    optimizer = sgd(model)

    @how
    def step(x: Any, y: Any, last: bool) -> Any:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        if last:
            optimizer.step()
            optimizer.zero_grad()
        return loss

    return [step(*batch(n), n % 3 == 2) for n in range(7)], model.state_dict(), [p.grad for p in model.parameters()]


@refused("assigns to 'count'")
def a_count_says_when_to_step(how: How) -> Any:
    model, count = net(), 0
    optimizer = sgd(model)

    @how
    def step(x: Any, y: Any) -> Any:
        nonlocal count
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        count += 1
        if count % 2 == 0:
            optimizer.step()
            optimizer.zero_grad()
        return loss

    return [step(*batch(n)) for n in range(4)]


@refused("takes what comes next of an iterator")
def data_that_a_step_fetches_itself(how: How) -> Any:
    model, batches = net(), (batch(n) for n in range(9))
    optimizer = sgd(model)

    @how
    def step() -> Any:
        x, y = next(batches)
        return update(optimizer, F.cross_entropy(model(x), y))

    return [step() for _ in range(3)]


@same
def batches_by_their_place_in_a_list(how: How) -> Any:
    model, batches, place = net(), [batch(n) for n in range(4)], 0
    optimizer = sgd(model)

    @how
    def step() -> Any:
        x, y = batches[place]
        return update(optimizer, F.cross_entropy(model(x), y))

    found = []
    for place in range(4):  # noqa: B007 - the step reads it
        found.append(step())
    return found, model.state_dict()


@same
def batches_of_different_sizes_some_too_small(how: How) -> Any:
    model = net()
    optimizer = sgd(model)

    @how
    def step(x: Any, y: Any) -> Any:
        return model(x).mean() if len(x) < 4 else update(optimizer, F.cross_entropy(model(x), y))

    return [step(*batch(n, rows)) for n, rows in enumerate((6, 3, 6, 2, 6))], model.state_dict()


@same
def heads_of_tasks_in_turn(how: How) -> Any:
    heads, task = nn.ModuleDict({"a": nn.Linear(8, 3), "b": nn.Linear(8, 3)}), "a"

    def before(number: int) -> None:
        nonlocal task
        task = "ab"[number % 2]

    return train(how, heads, lambda x: heads[task](x), before)


# modes, frozen and replaced parts ----------------------------------------------------------------------------


@same
def modes_that_the_step_sets(how: How) -> Any:
    model, found = net(nn.Dropout(0.5), nn.BatchNorm1d(16)), []
    optimizer = sgd(model)

    @how
    def step(x: Any, y: Any) -> Any:
        model.train()
        return update(optimizer, F.cross_entropy(model(x), y))

    for number in range(4):
        found += [step(*batch(number)), model.training]
        model.eval()
        found.append(model(batch(9)[0]).detach())
    return found, model.state_dict()


@same
def a_step_that_ends_in_evaluation(how: How) -> Any:
    model = net(nn.Dropout(0.5))
    optimizer = sgd(model)

    @how
    def step(x: Any, y: Any) -> Any:
        model.train()
        loss = update(optimizer, F.cross_entropy(model(x), y))
        model.eval()
        with cx.no_grad():
            return loss, (model(x).argmax(-1) == y).astype("float32").mean()

    found = []
    for number in range(4):
        found += [step(*batch(number)), model.training]
        model.train(number != 1)
    return found, model.state_dict()


@same
def layers_that_are_frozen_for_a_while(how: How) -> Any:
    model = net()
    return train(how, model, model, lambda number: model[0].requires_grad_(number not in (2, 3)))


@same
def a_dropout_that_grows(how: How) -> Any:
    model = net(nn.Dropout(0.0))
    return train(how, model, model, lambda number: setattr(model[1], "p", 0.1 * number))


@same
def tied_weights(how: How) -> Any:
    embedding, output = nn.Embedding(3, 8), nn.Linear(8, 3, bias=False)
    output.weight = embedding.weight
    model = nn.ModuleList([embedding, output])
    return train(how, model, lambda x: output(x + embedding(cx.zeros(1, dtype="int64"))))


@same
def training_goes_on_from_a_checkpoint(how: How) -> Any:
    model = net()
    optimizer = optim.Adam(model.parameters(), lr=0.05)
    step = how(lambda x, y: update(optimizer, F.cross_entropy(model(x), y)))
    found = [step(*batch(n)) for n in range(3)]
    weights = {name: array.copy() for name, array in model.state_dict().items()}
    state = copy.deepcopy(optimizer.state_dict())
    for _ in range(2):
        found += [step(*batch(n)) for n in range(3, 6)]
        model.load_state_dict(weights)
        optimizer.load_state_dict(state)
    return found, model.state_dict()


@same
def plain_and_compiled_steps_in_turn(how: How) -> Any:
    model = net(nn.Dropout(0.5))
    optimizer = optim.Adam(model.parameters())

    def step(x: Any, y: Any) -> Any:
        return update(optimizer, F.cross_entropy(model(x), y))

    compiled = how(step)
    return [(compiled if n % 3 else step)(*batch(n)).detach() for n in range(7)], model.state_dict()


@same
def a_cache_that_a_module_fills(how: How) -> Any:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.angles = nn.Linear(8, 3), None

        def forward(self, x: Any) -> Any:
            if self.angles is None:
                self.angles = cx.cos(cx.arange(3.0))
            return self.inner(x) * self.angles

    model = Turned()

    def before(number: int) -> None:
        if number == 3:
            model.angles = cx.ones(3)
        if number == 4:
            model.angles.fill_(0.5)

    return train(how, model, model, before)


@same
def a_layer_that_comes_later(how: How) -> Any:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.more = nn.Linear(8, 3), None

        def forward(self, x: Any) -> Any:
            return self.inner(x) if self.more is None else self.more(self.inner(x))

    model = Growing()
    return train(how, model, model, lambda number: setattr(model, "more", nn.Linear(3, 3)) if number == 3 else None)


# gradients and state by hand -----------------------------------------------------------------------------------


@same
def gradients_that_are_changed(how: How) -> Any:
    model = net()
    optimizer = sgd(model, momentum=0.9)

    @how
    def step(x: Any, y: Any, skip: bool) -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        for p in model.parameters():
            p.grad += cx.randn(*p.shape) * 0.01
            if p.ndim > 1:
                p.grad.sub_(p.grad.mean(1, keepdims=True))
            p.grad = cx.where(cx.isfinite(loss), p.grad, p.grad * 0)
        if skip:
            model[0].weight.grad = None
        optimizer.step()
        return loss

    return [step(*batch(n), n == 2) for n in range(5)], model.state_dict()


@same
def a_running_mean_in_a_tensor(how: How) -> Any:
    model, mean = net(), cx.zeros(())
    optimizer = sgd(model)

    @how
    def step(x: Any, y: Any) -> Any:
        loss = update(optimizer, F.cross_entropy(model(x), y))
        with cx.no_grad():
            mean.mul_(0.9).add_(loss.detach() * 0.1)
        return loss

    return [step(*batch(n)) for n in range(4)], mean


@same
def a_state_that_is_handed_on(how: How) -> Any:
    cell, head = nn.GRUCell(8, 4), nn.Linear(4, 3)
    model, state, found = nn.ModuleList([cell, head]), cx.zeros(6, 4), []
    optimizer = sgd(model)

    @how
    def step(x: Any, y: Any, before: Any) -> Any:
        after = cell(x, before)
        return update(optimizer, F.cross_entropy(head(after), y)), after.detach()

    for number in range(4):
        loss, state = step(*batch(number), state)
        found.append(loss)
    return found, state, model.state_dict()


@same
def a_state_that_is_kept_in_an_object(how: How) -> Any:
    cell, kept = nn.GRUCell(8, 3), types.SimpleNamespace(state=cx.zeros(6, 3))

    def output(x: Any) -> Any:
        after = cell(x, kept.state)
        kept.state = after.detach()
        return after

    return train(how, cell, output)


@refused("assigns to 'calls'")
def a_module_that_counts_its_calls(how: How) -> Any:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = nn.Linear(8, 3), 0

        def forward(self, x: Any) -> Any:
            self.calls += 1
            return self.inner(x)

    model = Counting()
    return train(how, model, model)


@same
def an_activation_that_a_module_keeps(how: How) -> Any:
    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 3)

        def forward(self, x: Any) -> Any:
            self.last = self.inner(x)
            return self.last

    model = Keeping()
    found = train(how, model, model)
    return found, (model.last * 2.0).detach(), model.last.mean().item()


@same
def attacked_inputs(how: How) -> Any:
    model = net()
    optimizer = sgd(model)

    @how
    def step(x: Any, y: Any) -> Any:
        x = x.clone().requires_grad_()
        slope = cx.autograd.grad(F.cross_entropy(model(x), y), [x])[0]
        return update(optimizer, F.cross_entropy(model((x + 0.1 * slope.sign()).detach()), y))

    return [step(*batch(n)) for n in range(4)], model.state_dict()


@same
def a_step_within_a_step(how: How) -> Any:
    model = nn.Linear(8, 3)
    optimizer = sgd(model)

    @how
    def step(x: Any, y: Any) -> Any:
        weight, bias = model.weight, model.bias
        first = F.cross_entropy(F.linear(x, weight, bias), y)
        of_weight, of_bias = cx.autograd.grad(first, [weight, bias], create_graph=True)
        return update(optimizer, F.cross_entropy(F.linear(x, weight - 0.1 * of_weight, bias - 0.1 * of_bias), y))

    return [step(*batch(n)) for n in range(4)], model.state_dict()


@same
def mixed_examples_and_rows_that_are_drawn(how: How) -> Any:
    model, (pool, labels) = net(), batch(99, 50)
    optimizer = sgd(model)

    @how
    def step() -> Any:
        rows, share = cx.randint(0, 50, (6,)), cx.rand(())
        x, y, order = pool[rows], labels[rows], cx.randperm(6)
        output = model(x * share + x[order] * (1 - share))
        return update(optimizer, share * F.cross_entropy(output, y) + (1 - share) * F.cross_entropy(output, y[order]))

    return [step() for _ in range(4)], model.state_dict()


@same
def a_sum_of_losses_that_begins_as_a_tensor(how: How) -> Any:
    model = net()
    optimizer = sgd(model)

    @how
    def step(x: Any, y: Any) -> Any:
        total = cx.zeros(())
        for scale in range(1, 4):
            total += F.cross_entropy(model(x * scale), y)
        total /= 3
        sums = [cx.zeros(3)]
        sums[0] += model(x).sum(0)
        return update(optimizer, total), sums[0]

    return [step(*batch(n)) for n in range(3)], model.state_dict()


def _of_two_names() -> tuple[Any, Any]:
    one = cx.zeros(3)
    return one, one


def _of_a_view() -> tuple[Any, Any]:
    rows = cx.zeros(2, 3)
    return rows[0], rows


@pytest.mark.parametrize("begin", [_of_two_names, _of_a_view])
def test_a_sum_is_seen_under_its_other_names_too(begin: Callable[[], tuple[Any, Any]]) -> None:
    model = net()

    def step(x: Any) -> Any:
        total, other = begin()
        total += model(x).sum(0)
        return total, other

    x, _ = batch(0)
    assert bits(cx.compile(step)(x)) == bits(step(x))


@same
def parameters_in_a_set_a_dict_and_by_their_ids(how: How) -> Any:
    model = net()
    optimizer = sgd(model)

    @how
    def step(x: Any, y: Any) -> Any:
        places = {parameter: place for place, parameter in enumerate(model.parameters())}
        decay = sum((p * p).sum() * (1 + places[p]) for p in sorted(set(model.parameters()), key=lambda p: places[p]))
        weights = {id(p) for p in sorted(model.parameters(), key=id) if p.ndim == 2}
        return update(optimizer, F.cross_entropy(model(x), y) + 0.01 * decay), sum(
            p.sum() for p in model.parameters() if id(p) in weights
        )

    return [step(*batch(n)) for n in range(3)], model.state_dict()


@same
def sums_over_no_axis(how: How) -> Any:
    step = how(lambda x: (x.sum(), x.mean(), x.expand_dims(0).sum(()), x.amax()))
    return [step(cx.tensor(value)) for value in (-0.0, 0.0, float("inf"), -3.0)]


@pytest.mark.parametrize("name", PROGRAMS.equal)
def test_a_compiled_program_is_the_plain_one(name: str) -> None:
    assert run(PROGRAMS.equal[name], cx.compile) == run(PROGRAMS.equal[name], plain)


@pytest.mark.parametrize("name", PROGRAMS.unfit)
def test_a_program_that_cannot_be_followed_is_refused(name: str) -> None:
    program, said = PROGRAMS.unfit[name]
    run(program, plain)
    with pytest.raises(GraphError, match=said):
        run(program, cx.compile)

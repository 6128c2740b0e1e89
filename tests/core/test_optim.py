"""Update rules against torch's formulas, eager and inside a plan."""

from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import nn, optim
from cyxcore.errors import CyxError, GraphError, SpecError
from cyxcore.graphlearner import initial_weights
from cyxcore.objectives import training_step
from cyxcore.plan import Plan
from cyxcore.spec import OptimizerSpec, TrainingSpec

pytestmark = pytest.mark.usefixtures("each_device")

GRADIENTS = [np.array([0.5, -2.0, 0.0]), np.array([1.0, 1.0, -0.25]), np.array([-3.0, 0.1, 4.0])]
START = np.array([1.0, -1.0, 0.5])


def sgd(lr: float, momentum: float, decay: float, nesterov: bool) -> np.ndarray:
    p, buffer = START.copy(), np.zeros(3)
    for g in GRADIENTS:
        g = g + decay * p
        buffer = momentum * buffer + g
        p = p - lr * (g + momentum * buffer if nesterov else buffer)
    return p


def adam(lr: float, decay: float, decoupled: bool) -> np.ndarray:
    p, m, v = START.copy(), np.zeros(3), np.zeros(3)
    for t, g in enumerate(GRADIENTS, 1):
        if decoupled:
            p = p * (1 - lr * decay)
        else:
            g = g + decay * p
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        p = p - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return p


def lion(lr: float, decay: float) -> np.ndarray:
    p, m = START.copy(), np.zeros(3)
    for g in GRADIENTS:
        p = p - lr * (np.sign(0.9 * m + 0.1 * g) + decay * p)
        m = 0.99 * m + 0.01 * g
    return p


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: optim.SGD(p, 0.1), sgd(0.1, 0, 0, False)),
        (lambda p: optim.SGD(p, 0.1, weight_decay=0.2), sgd(0.1, 0, 0.2, False)),
        (lambda p: optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.2), sgd(0.1, 0.9, 0.2, False)),
        (
            lambda p: optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.2, nesterov=True),
            sgd(0.1, 0.9, 0.2, True),
        ),
        (lambda p: optim.Adam(p, 0.1), adam(0.1, 0, False)),
        (lambda p: optim.Adam(p, 0.1, weight_decay=0.2), adam(0.1, 0.2, False)),
        (lambda p: optim.AdamW(p, 0.1, weight_decay=0.2), adam(0.1, 0.2, True)),
        (lambda p: optim.Lion(p, 0.1, weight_decay=0.2), lion(0.1, 0.2)),
    ],
)
def test_three_steps_follow_the_formula(make: Any, expected: np.ndarray) -> None:
    p = cx.tensor(START.astype(np.float32), requires_grad=True)
    optimizer = make([p])
    for g in GRADIENTS:
        p.grad = cx.tensor(g.astype(np.float32))
        optimizer.step()
    np.testing.assert_allclose(p.numpy(), expected, rtol=3e-5, atol=1e-6)


def test_a_parameter_without_a_gradient_stays() -> None:
    p = cx.tensor([1.0], requires_grad=True)
    optim.Adam([p]).step()
    assert p.tolist() == [1.0]


def test_zero_grad_forgets() -> None:
    p = cx.tensor([1.0], requires_grad=True)
    (p * 2.0).sum().backward()
    optim.SGD([p]).zero_grad()
    assert p.grad is None


def test_no_parameters_is_said() -> None:
    with pytest.raises(SpecError, match="at least one parameter"):
        optim.Adam([])


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(SpecError, match="nesterov"):
        optim.SGD([cx.zeros(1)], nesterov=True)


@pytest.mark.parametrize(
    ("spec", "make"),
    [
        (OptimizerSpec(name="sgd", learning_rate=0.1), lambda p: optim.SGD(p, 0.1)),
        (
            OptimizerSpec(name="sgd", learning_rate=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
            lambda p: optim.SGD(p, 0.1, 0.9, 0.0, 0.01, True),
        ),
        (OptimizerSpec(name="adam", learning_rate=0.01), lambda p: optim.Adam(p, 0.01)),
        (
            OptimizerSpec(name="adamw", learning_rate=0.01, weight_decay=0.1),
            lambda p: optim.AdamW(p, 0.01, weight_decay=0.1),
        ),
        (OptimizerSpec(name="nadam", learning_rate=0.01), lambda p: optim.NAdam(p, 0.01)),
        (
            OptimizerSpec(name="rmsprop", learning_rate=0.01, centered=True, momentum=0.5),
            lambda p: optim.RMSprop(p, 0.01, centered=True, momentum=0.5),
        ),
        (
            OptimizerSpec(name="adagrad", learning_rate=0.1, initial_accumulator=0.5),
            lambda p: optim.Adagrad(p, 0.1, initial_accumulator_value=0.5),
        ),
        (
            OptimizerSpec(name="sgd", learning_rate=0.1, momentum=0.9, dampening=0.5, weight_decay=0.01),
            lambda p: optim.SGD(p, 0.1, 0.9, 0.5, 0.01),
        ),
        (
            OptimizerSpec(name="adamw", learning_rate=0.01, weight_decay=0.1, amsgrad=True),
            lambda p: optim.AdamW(p, 0.01, weight_decay=0.1, amsgrad=True),
        ),
        (
            OptimizerSpec(name="adam", learning_rate=0.01, maximize=True),
            lambda p: optim.Adam(p, 0.01, maximize=True),
        ),
        (
            OptimizerSpec(name="lion", learning_rate=0.01, weight_decay=0.1),
            lambda p: optim.Lion(p, 0.01, weight_decay=0.1),
        ),
    ],
)
def test_a_planned_step_is_the_eager_step(spec: OptimizerSpec, make: Any) -> None:
    cx.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    graph, weights = cx.trace(net, (4,))
    step = training_step(graph, 6, TrainingSpec(optimizer=spec))
    state = {name: cx.device.put(array) for name, array in (initial_weights(step, 0) | weights).items()}
    plan, optimizer = Plan(step, state), make(net.parameters())
    plan.inputs["learning_rate"][...] = spec.learning_rate
    rng = np.random.default_rng(0)
    for count in range(1, 4):
        x, y = rng.normal(size=(6, 4)).astype(np.float32), rng.integers(0, 3, 6)
        plan.inputs["x"][...], plan.inputs["target"][...], plan.inputs["step"][...] = x, y, count
        plan.run()
        optimizer.zero_grad()
        cx.functional.cross_entropy(net(cx.tensor(x)), cx.tensor(y)).backward()
        optimizer.step()
    for name, value in net.state_dict().items():
        np.testing.assert_allclose(cx.device.host(state[name]), value, rtol=2e-5, atol=2e-6)


def two_groups() -> tuple[list[cx.Tensor], optim.Optimizer]:
    own = [cx.tensor([1.0, 2.0], requires_grad=True), cx.tensor([3.0], requires_grad=True)]
    return own, optim.Adam([{"params": [own[0]], "lr": 0.1}, {"params": own[1], "weight_decay": 0.5}], lr=0.01)


def steps(own: list[cx.Tensor], optimizer: optim.Optimizer, count: int) -> None:
    for _ in range(count):
        for p in own:
            p.grad = p.detach() * 0.5
        optimizer.step()


def test_each_group_has_its_own_options() -> None:
    own, optimizer = two_groups()
    steps(own, optimizer, 3)
    alone = [cx.tensor([1.0, 2.0], requires_grad=True), cx.tensor([3.0], requires_grad=True)]
    steps(alone[:1], optim.Adam(alone[:1], lr=0.1), 3)
    steps(alone[1:], optim.Adam(alone[1:], lr=0.01, weight_decay=0.5), 3)
    assert [p.tolist() for p in own] == [p.tolist() for p in alone]


def test_an_optimiser_goes_on_from_its_state() -> None:
    own, optimizer = two_groups()
    steps(own, optimizer, 2)
    later, resumed = two_groups()
    for p, q in zip(later, own, strict=True):
        p._assign(q)
    resumed.load_state_dict(optimizer.state_dict())
    steps(own, optimizer, 2)
    steps(later, resumed, 2)
    assert [p.tolist() for p in own] == [p.tolist() for p in later]


def test_groups_keep_names_and_scales_of_a_program() -> None:
    def trained(wrapped: Any, **kept: Any) -> Any:
        w, v = (cx.nn.Parameter(np.ones(2, np.float32)) for _ in range(2))
        adam = optim.Adam([{"params": [w], **kept}, {"params": [v], "lr": 0.1, "name": "head"}], lr=0.01)

        def step(x: Any) -> Any:
            adam.zero_grad()
            loss = (w * v * x).sum()
            loss.backward()
            adam.step()
            return loss

        run = wrapped(step)
        losses = [run(cx.ones(2)).item() for _ in range(2)]
        for group in adam.param_groups:
            group["lr"] *= group.get("lr_scale", 1.0)
        saved = adam.state_dict()
        adam.load_state_dict(saved)
        assert [group.get("name") for group in adam.param_groups] == [kept.get("name"), "head"]
        return [*losses, run(cx.ones(2)).item()], saved["param_groups"][0]["lr"]

    named = {"name": "body", "lr_scale": 0.5, "layer_id": 3}
    assert trained(cx.compile, **named) == trained(lambda step: step, **named)
    assert (
        trained(cx.compile, **named)[0][:2] == trained(cx.compile)[0][:2] and trained(cx.compile, **named)[1] == 0.005
    )


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ([{"params": []}], "at least one parameter in each group"),
        ([{"params": [cx.zeros(1)], "rate": 1.0}], "unknown options \\['rate'\\]"),
        ([{"params": [1.0]}], "expected tensors, got float"),
        ([{"params": [ONE := cx.zeros(1)]}, {"params": [ONE]}], "in two groups"),
    ],
)
def test_groups_that_make_no_sense_are_refused(groups: Any, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        optim.Adam(groups)


def test_state_of_other_parameters_is_refused() -> None:
    own, optimizer = two_groups()
    with pytest.raises(SpecError, match="groups of \\[1\\] parameters, got \\[1, 1\\]"):
        optim.Adam(own[:1]).load_state_dict(optimizer.state_dict())


def test_averages_follow_and_are_swapped_in() -> None:
    p = cx.tensor([0.0], requires_grad=True)
    average = optim.ExponentialMovingAverage([p], decay=0.75)
    p._assign(cx.tensor([4.0]))
    average.update()
    average.swap()
    assert p.tolist() == [1.0]
    average.swap()
    assert p.tolist() == [4.0]


def test_clipping_by_value() -> None:
    p = cx.zeros(3, requires_grad=True)
    p.grad = cx.tensor([-5.0, 0.5, 5.0])
    optim.clip_grad_value_([p], 1.0)
    assert p.grad.tolist() == [-1.0, 0.5, 1.0]


def test_the_state_of_another_optimiser_is_refused_and_changes_nothing() -> None:
    def stepped(name: str) -> optim.Optimizer:
        p = cx.tensor([1.0, 2.0], requires_grad=True)
        optimizer: optim.Optimizer = getattr(optim, name)([p], lr=0.1)
        p.sum().backward()
        optimizer.step()
        return optimizer

    for own, other in (("RMSprop", "Adam"), ("SGD", "Adagrad"), ("Adadelta", "SGD"), ("RAdam", "Adafactor")):
        optimizer = stepped(own)
        before = repr(optimizer.state_dict())
        with pytest.raises(SpecError, match=f"expected the state of {own}"):
            optimizer.load_state_dict(stepped(other).state_dict())
        assert repr(optimizer.state_dict()) == before


@pytest.mark.parametrize(
    ("own", "other"), [("Adam", "RAdam"), ("RAdam", "Adamax"), ("Adamax", "AdamW"), ("Lion", "Adam"), ("SGD", "LBFGS")]
)
def test_state_that_another_rule_kept_is_refused_also_where_the_options_are_the_same(own: str, other: str) -> None:
    def stepped(name: str) -> optim.Optimizer:
        p = cx.tensor([1.0, 2.0], requires_grad=True)
        optimizer: optim.Optimizer = getattr(optim, name)([p])

        def closure() -> Any:
            optimizer.zero_grad()
            loss = p.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return optimizer

    state = stepped(other).state_dict()
    optimizer = stepped(own)
    if own != "SGD":  # the options of the two are made the same: only what was kept tells
        options = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
        state["param_groups"] = [{**options, "params": [0]}]
    before = repr(optimizer.state_dict())
    with pytest.raises(SpecError, match=f"expected the state of {own}"):
        optimizer.load_state_dict(state)
    assert repr(optimizer.state_dict()) == before


def test_adam_goes_on_from_adamw() -> None:
    own, optimizer = two_groups()
    steps(own, optimizer, 2)
    other = optim.AdamW([{"params": [own[0]]}, {"params": [own[1]]}])
    other.load_state_dict(optimizer.state_dict())
    assert other.steps == 2


def test_lbfgs_goes_on_from_its_state() -> None:
    def made() -> tuple[list[cx.Tensor], optim.Optimizer, Any]:
        own = [cx.tensor([3.0, -2.0], requires_grad=True), cx.tensor([[1.5]], requires_grad=True)]
        optimizer = optim.LBFGS(own, lr=0.2, max_iter=3, history_size=2)

        def closure() -> Any:
            optimizer.zero_grad()
            loss = (own[0].square() * cx.tensor([1.0, 4.0])).sum() + (own[1] - own[0].sum()).square().sum()
            loss.backward()
            return loss

        return own, optimizer, closure

    own, optimizer, closure = made()
    optimizer.step(closure)
    later, resumed, again = made()
    for p, q in zip(later, own, strict=True):
        p._assign(q)
    resumed.load_state_dict(optimizer.state_dict())
    for _ in range(2):
        optimizer.step(closure)
        resumed.step(again)
    assert [p.tolist() for p in own] == [p.tolist() for p in later]
    with pytest.raises(SpecError, match="expected the state of LBFGS of 3 numbers, got one of 1"):
        resumed.load_state_dict(_stepped_lbfgs().state_dict())


def _stepped_lbfgs() -> optim.Optimizer:
    p = cx.tensor([[1.0]], requires_grad=True)
    q = cx.zeros(0, requires_grad=True)
    optimizer = optim.LBFGS([p, q])

    def closure() -> Any:
        optimizer.zero_grad()
        loss = p.square().sum() + q.sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return optimizer


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: optim.LBFGS([p]).step(), "LBFGS: expected a closure"),
        (lambda p: optim.LBFGS([{"params": [p]}, {"params": [cx.zeros(1)]}]), "one group of parameters, got 2"),
        (lambda p: optim.LBFGS([p], line_search_fn="armijo"), "expected line_search_fn strong_wolfe or None"),
        (lambda p: optim.LBFGS([p], history_size=0), "expected a history_size of at least 1"),
        (lambda p: optim.Rprop([p], etas=(1.2, 0.5)), "expected etas"),
        (lambda p: optim.Rprop([p], step_sizes=(1.0, 0.5)), "expected step_sizes"),
    ],
)
def test_options_that_make_no_sense_are_refused(make: Any, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        make(cx.zeros(1, requires_grad=True))


def test_lbfgs_is_refused_in_a_compiled_step() -> None:
    model = nn.Linear(2, 1)
    optimizer = optim.LBFGS(model.parameters())

    @cx.compile
    def step(x: Any) -> Any:
        def closure() -> Any:
            optimizer.zero_grad()
            loss = model(x).square().sum()
            loss.backward()
            return loss

        return optimizer.step(closure)

    with pytest.raises(GraphError, match="LBFGS: .* not in a compiled step"):
        step(cx.ones(3, 2))


@pytest.mark.parametrize("rule", ["SGD", "Adam", "LBFGS"])
def test_a_state_that_is_none_is_refused_with_what_it_holds(rule: str) -> None:
    p = cx.tensor([1.0, 2.0], requires_grad=True)
    optimizer = getattr(optim, rule)([p])
    known = optimizer.state_dict()
    for state, message in (
        ({}, "with steps, state and param_groups, got nothing"),
        ({"steps": 1, "state": {}}, "got state, steps"),
        (5, "got int"),
        ({**known, "steps": "many"}, "expected steps to be a number, got 'many'"),
        ({**known, "param_groups": [{**known["param_groups"][0], "lr": "fast"}]}, "learning rate .* got 'fast'"),
    ):
        with pytest.raises(CyxError, match=message):
            optimizer.load_state_dict(state)
    for lr in (-0.1, float("nan"), "fast", None):
        with pytest.raises(CyxError, match=f"{rule}: expected a learning rate of at least 0, got"):
            getattr(optim, rule)([p], lr=lr)


@pytest.mark.parametrize(
    "make, said",
    [
        (
            lambda p: optim.Adam(p, betas=(1.0, 0.9)),
            r"Adam: expected two betas, each from 0 to below 1, got \(1",
        ),
        (lambda p: optim.AdamW(p, betas=(0.9,)), r"AdamW: expected two betas"),
        (lambda p: optim.Adam(p, eps=-1.0), "Adam: expected eps of at least 0, got -1.0"),
        (lambda p: optim.AdamW(p, weight_decay=float("nan")), "AdamW: expected weight_decay of at least 0, got nan"),
        (lambda p: optim.SGD(p, lr=0.1, momentum=-1), "SGD: expected momentum of at least 0, got -1"),
        (lambda p: optim.SGD([{"params": p, "weight_decay": -1}], lr=0.1), "SGD: expected weight_decay of at least 0"),
        (lambda p: optim.Adagrad(p, lr_decay=-1), "Adagrad: expected lr_decay of at least 0, got -1"),
    ],
)
def test_options_without_a_meaning_are_refused_at_once(make: Any, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        make([cx.tensor([1.0], requires_grad=True)])


def test_the_state_of_a_parameter_that_is_not_there_is_refused() -> None:
    p = cx.tensor([1.0, 2.0], requires_grad=True)
    optimizer = optim.Adam([p])
    (p * p).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    with pytest.raises(CyxError, match=r"expected places 0..0, got 3"):
        optimizer.load_state_dict({**state, "state": {3: state["state"][0]}})


def test_lbfgs_keeps_to_its_calls_in_a_line_search() -> None:
    torch = pytest.importorskip("torch", reason="the oracle, PyTorch, is not installed")
    calls = []
    for m in (cx, torch):
        x = m.tensor(np.random.default_rng(1).normal(size=6), requires_grad=True)
        optimizer, count = m.optim.LBFGS([x], max_iter=1, line_search_fn="strong_wolfe"), 0

        def closure(m: Any = m, x: Any = x, optimizer: Any = optimizer) -> Any:
            nonlocal count
            count += 1
            optimizer.zero_grad()
            loss = ((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2).sum()
            loss.backward()
            return loss

        for _ in range(8):
            optimizer.step(closure)
        calls.append((count, x.detach().numpy()))
    assert calls[0][0] == calls[1][0] == 16
    np.testing.assert_allclose(calls[0][1], calls[1][1], rtol=1e-9)


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_makes_a_loss_large_as_it_makes_its_opposite_small(search: str | None) -> None:
    ends, returned = [], []
    for sign in (1.0, -1.0):
        x = cx.tensor([1.0, -2.0], requires_grad=True)
        optimizer = optim.LBFGS([x], lr=0.3, max_iter=6, line_search_fn=search, maximize=sign < 0)

        def closure(x: cx.Tensor = x, sign: float = sign, optimizer: optim.Optimizer = optimizer) -> cx.Tensor:
            optimizer.zero_grad()
            loss = sign * ((x - 3.0).square().sum() + x[0] * x[1])
            loss.backward()
            return loss

        returned.append(sign * optimizer.step(closure).item())
        ends.append(x.tolist())
    assert ends[0] == ends[1] != [1.0, -2.0]
    assert returned[0] == returned[1]


def test_lbfgs_refuses_half_a_history() -> None:
    optimizer = optim.LBFGS([cx.tensor([1.0, 2.0], requires_grad=True)])
    with pytest.raises(CyxError, match="expected the state of LBFGS, got direction"):
        optimizer.load_state_dict({**optimizer.state_dict(), "state": {0: {"direction": np.zeros(2)}}})


def test_a_gradient_that_is_no_tensor_is_refused() -> None:
    p = cx.ones(2)
    optimizer = cx.optim.Adam([p])
    for grad in (np.ones(2, np.float32), 1.0):
        p.grad = grad  # type: ignore[assignment]
        with pytest.raises(SpecError, match="expected a tensor as the gradient of parameter 0"):
            optimizer.step()


@pytest.mark.parametrize("rate", [1.0, 0.0])
@pytest.mark.parametrize("loss", [lambda p: p.sum(), lambda p: p.abs().sum(), lambda p: (p * p).sum()])
def test_a_line_search_comes_to_an_end_where_the_loss_is_a_straight_line(loss: Any, rate: float) -> None:
    p = cx.tensor([4.0, -9.0], requires_grad=True)
    optimizer = optim.LBFGS([p], lr=rate, line_search_fn="strong_wolfe", max_iter=4)

    def closure() -> Any:
        optimizer.zero_grad()
        found = loss(p)
        found.backward()
        return found

    before = float(closure())
    optimizer.step(closure)
    assert float(loss(p)) <= before and (rate > 0 or p.tolist() == [4.0, -9.0])


def test_places_of_a_state_are_numbers_also_as_text() -> None:
    def made(rule: str) -> Any:
        p = cx.nn.Parameter(np.ones(2, np.float32))
        optimizer = getattr(optim, rule)([p])

        def closure() -> Any:
            optimizer.zero_grad()
            loss = (p * p).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return optimizer

    for rule in ("Adam", "LBFGS"):
        state = made(rule).state_dict()
        fresh = made(rule)
        fresh.load_state_dict({**state, "state": {str(place): own for place, own in state["state"].items()}})
        assert fresh.state_dict()["state"].keys() == {0}
    with pytest.raises(SpecError, match="expected the state of LBFGS under place 0, got \\[7\\]"):
        made("LBFGS").load_state_dict({**made("LBFGS").state_dict(), "state": {7: {}}})
    with pytest.raises(SpecError, match="expected the state of RAdam|expected .* of another optimiser"):
        state = made("Adamax").state_dict()
        made("SGD").load_state_dict({**state, "state": {"0": state["state"][0]}})
    with pytest.raises(SpecError, match="expected places to be numbers, got"):
        made("Adam").load_state_dict({**made("Adam").state_dict(), "state": {"first": {}}})


def test_state_lies_as_far_into_a_page_as_its_parameter_also_when_it_was_loaded() -> None:
    w = nn.Parameter(np.ones((40, 64), np.float32))
    w.grad = cx.ones(40, 64)
    optimizer, other = optim.Adam([w]), optim.Adam([w])
    optimizer.step()
    other.load_state_dict(optimizer.state_dict())
    places = {slot._data.ctypes.data % 4096 for each in (optimizer, other) for slot in each.state[0].values()}
    assert places == {w._data.ctypes.data % 4096}
    assert other.state[0]["adam_m"].tolist() == optimizer.state[0]["adam_m"].tolist()


def test_parameters_begin_with_a_line_of_the_cache(each_device: str) -> None:
    if each_device != "cpu":
        pytest.skip("its arrays lie where others put them")
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Conv1d(5, 7, 3))
    assert {p._data.ctypes.data % 64 for p in model.parameters()} == {0}

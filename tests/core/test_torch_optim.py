"""Optimisers against those of PyTorch: every option, groups of parameters, and a state that is taken over half-way."""

import copy
import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import functional as F
from cyxcore import nn
from cyxcore.errors import CyxError, GraphError, SpecError
from cyxcore.steps import CompiledStep

torch = pytest.importorskip("torch", reason="the oracle, PyTorch, is not installed")

STEPS = 24
CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.05, "maximize": True}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.3}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 1.0, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.05, "momentum": 0.8, "dampening": 0.5, "weight_decay": 0.1, "maximize": True}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "maximize": True}),
    ("Adam", {"amsgrad": True}),
    ("Adam", {"amsgrad": True, "weight_decay": 0.1, "maximize": True}),
    ("Adam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("AdamW", {"amsgrad": True, "weight_decay": 0.1}),
    ("AdamW", {"amsgrad": True, "maximize": True}),
    ("NAdam", {"weight_decay": 0.1, "maximize": True}),
    ("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("RAdam", {"weight_decay": 0.1, "maximize": True}),
    ("RAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("Adamax", {"weight_decay": 0.1, "maximize": True}),
    ("RMSprop", {"momentum": 0.9, "centered": True, "weight_decay": 0.1, "maximize": True}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.01, "weight_decay": 0.1, "maximize": True}),
    ("Adadelta", {"weight_decay": 0.1, "maximize": True}),
    ("Adafactor", {"lr": 0.05, "weight_decay": 0.1, "maximize": True}),
    ("Rprop", {"maximize": True}),
    ("ASGD", {"lr": 0.05, "lambd": 0.01, "weight_decay": 0.1, "maximize": True}),
]
NAMED = [f"{name}-{'-'.join(options)}" for name, options in CASES]


def gradients(number: int) -> Iterator[np.ndarray | None]:
    """Of the three parameters below in a step. The last has its first one in the fourth, and none in the ninth."""
    rng = np.random.default_rng(number)
    shapes: list[tuple[int, ...]] = [(3, 2), (4,), (2, 2)]
    for place, shape in enumerate(shapes):
        found = rng.normal(size=shape) * (3.0 if number < 5 else 0.5)
        yield None if place == 2 and (number < 3 or number == 8) else found


def groups(m: Any, dtype: str) -> list[dict[str, Any]]:
    rng = np.random.default_rng(99)
    made = [m.tensor(rng.normal(size=shape).astype(dtype), requires_grad=True) for shape in ((3, 2), (4,), (2, 2))]
    return [{"params": made[:1]}, {"params": made[1:], "weight_decay": 0.02, "lr": 0.03}]


@pytest.fixture
def double() -> Iterator[None]:
    """PyTorch keeps scalars of its state, such as the product of NAdam's momenta, in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def flat(own: list[dict[str, Any]]) -> list[Any]:
    return [p for group in own for p in group["params"]]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize(("name", "options"), CASES, ids=NAMED)
def test_the_way_of_an_optimiser_is_torchs(name: str, options: dict[str, Any], dtype: str, rtol: float) -> None:
    both = []
    for m, kind in ((cx, dtype), (torch, "float64" if name == "Adafactor" else dtype)):
        own = groups(m, kind)
        if name == "Rprop":
            own[1].pop("weight_decay")
        both.append((m, kind, own, getattr(m.optim, name)(own, **options)))
    for number in range(STEPS):
        for place, (m, kind, own, optimizer) in enumerate(both):
            for p, g in zip(flat(own), gradients(number), strict=True):
                p.grad = None if g is None else m.tensor(g.astype(kind))
            optimizer.step()
            if number == STEPS // 2:
                fresh = [{"params": group["params"]} for group in own]
                again = getattr(m.optim, name)(fresh, **options)
                again.load_state_dict(optimizer.state_dict())
                both[place] = (m, kind, own, again)
    ours, theirs = ([p.detach().numpy() for p in flat(own)] for _, _, own, _ in both)
    for one, other in zip(ours, theirs, strict=True):
        scale = np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol * scale)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "options"), CASES, ids=NAMED)
def test_options_are_the_same_to_the_last_bit_in_a_compiled_step(
    name: str, options: dict[str, Any], dtype: str
) -> None:
    def run(compiled: bool) -> list[Any]:
        cx.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype=getattr(cx, dtype))
        decay = {} if name == "Rprop" else {"weight_decay": 0.03}
        own = [{"params": list(model[0].parameters())}, {"params": list(model[2].parameters()), "lr": 0.02, **decay}]
        optimizer = getattr(cx.optim, name)(own, **options)

        def step(x: Any, y: Any) -> Any:
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        made = cx.compile(step) if compiled else step
        losses = []
        for number in range(8):
            rng = np.random.default_rng(number)
            losses.append(made(cx.tensor(rng.normal(size=(5, 4)).astype(dtype)), cx.tensor(rng.integers(0, 3, 5))))
        kept = [value.tolist() for own in optimizer.state.values() for _, value in sorted(own.items())]
        return [[loss.item() for loss in losses], [p.tolist() for p in model.parameters()], kept]

    assert run(compiled=True) == run(compiled=False)


def test_a_dampening_that_begins_later_finds_the_momentum_that_is_there() -> None:
    found = []
    for m in (cx, torch):
        p = m.tensor([1.0, -1.0], requires_grad=True)
        optimizer = m.optim.SGD([p], 0.1, momentum=0.9)
        for number in range(6):
            if number == 3:
                optimizer.param_groups[0]["dampening"] = 0.4
            p.grad = m.tensor([1.0 + number, -0.5])
            optimizer.step()
        found.append(p.detach().numpy())
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: cx.optim.SGD(p, momentum=0.9, dampening=0.1, nesterov=True), "without nesterov, got 0.1 of sgd"),
        (lambda p: cx.optim.SGD(p, momentum=0.9, dampening=1.5), "a dampening from 0 to 1, .* got 1.5 of sgd"),
        (lambda p: cx.optim.Adam(p, differentiable=True), "Adam: differentiable is always False here"),
    ],
)
def test_options_that_do_not_go_together_are_refused(make: Any, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        make([cx.zeros(1, requires_grad=True)])


def test_adamw_goes_on_from_the_state_of_an_adam_and_stays_itself() -> None:
    p = cx.tensor([1.0, 2.0], requires_grad=True)
    one = cx.optim.Adam([p], decoupled_weight_decay=True, weight_decay=0.1, amsgrad=True)
    p.grad = cx.tensor([0.5, -0.5])
    one.step()
    other = cx.optim.AdamW([p])
    other.load_state_dict(one.state_dict())
    assert other.param_groups[0]["amsgrad"] and "decoupled_weight_decay" not in other.param_groups[0]


@pytest.mark.parametrize("name", ["Adam", "NAdam", "RAdam", "Adamax", "Adagrad", "ASGD", "Adafactor"])
def test_a_parameter_that_was_frozen_at_first_counts_its_own_steps(name: str) -> None:
    """Eager and compiled alike, and without a plan more than the two that are needed."""

    def run(compiled: bool) -> list[Any]:
        cx.manual_seed(0)
        body, head = nn.Linear(4, 5), nn.Linear(5, 3)
        optimizer = getattr(cx.optim, name)([*body.parameters(), *head.parameters()], lr=0.05)

        def step(x: Any) -> Any:
            loss = head(body(x).tanh()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        made = cx.compile(step) if compiled else step
        for number in range(12):
            body.requires_grad_(3 <= number < 5 or number >= 7)
            made(cx.tensor(np.random.default_rng(number).normal(size=(6, 4)).astype(np.float32)))
        if isinstance(made, CompiledStep):
            assert len(made._plans) == 2
        assert optimizer.missed == {0: 5, 1: 5}
        return [p.tolist() for part in (body, head) for p in part.parameters()]

    assert run(compiled=True) == run(compiled=False)


def stepped(m: Any, model: Any) -> Any:
    """A training step of Adam."""
    optimizer = m.optim.Adam(model.parameters(), lr=0.1)

    def step(x: Any) -> Any:
        loss = (model(x) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


@pytest.mark.parametrize("compiled", [False, True])
def test_a_parameter_that_is_frozen_for_a_while_counts_its_own_steps(compiled: bool) -> None:
    """A plan from before that is not used any more."""
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 2), torch.nn.Linear(3, 2)
    ours.load_state_dict({name: value.detach().numpy() for name, value in theirs.state_dict().items()})
    one, other = stepped(cx, ours), stepped(torch, theirs)
    made = cx.compile(one) if compiled else one
    for number in range(10):
        x = np.random.default_rng(number).normal(size=(5, 3)).astype(np.float32)
        for model in (ours, theirs):
            model.weight.requires_grad_(not 2 <= number < 5)
        made(cx.tensor(x))
        other(torch.tensor(x))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_parameters_that_join_later_count_from_then_on() -> None:
    found = []
    for m in (cx, torch):
        p, q = (m.tensor([1.0, -1.0], requires_grad=True) for _ in range(2))
        optimizer = m.optim.Adam([p], lr=0.1)
        for number in range(6):
            if number == 3:
                optimizer.add_param_group({"params": [q], "lr": 0.02})
            for each in (p, q):
                each.grad = m.tensor([1.0 + number, -0.5])
            optimizer.step()
        found.append(q.detach().numpy())
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


STATES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.05}),
    *CASES,
    ("Muon", {"lr": 0.01, "weight_decay": 0.0}),
]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("name", "options"), STATES, ids=[f"{name}-{'-'.join(options)}" for name, options in STATES])
def test_training_goes_on_from_a_state_of_pytorchs(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())  # Muon rounds to that on its way
    theirs = groups(torch, "float64")
    if name == "Rprop":
        theirs[1].pop("weight_decay")
    if name == "Muon":
        theirs[1]["params"].pop(0)
    other = getattr(torch.optim, name)(theirs, **options)

    def step(m: Any, own: list[Any], optimizer: Any, number: int) -> None:
        found = [
            g
            for g, shape in zip(gradients(number), ((3, 2), (4,), (2, 2)), strict=True)
            if name != "Muon" or len(shape) > 1
        ]
        for p, g in zip(own, found, strict=True):
            p.grad = None if g is None else m.tensor(g)
        optimizer.step()

    for number in range(12):
        step(torch, flat(theirs), other, number)
    ours = [cx.tensor(p.detach().numpy().copy(), requires_grad=True) for p in flat(theirs)]
    one = getattr(cx.optim, name)([{"params": ours[:1]}, {"params": ours[1:]}])
    one.load_state_dict(copy.deepcopy(other.state_dict()))
    for number in range(12, STEPS):
        step(torch, flat(theirs), other, number)
        step(cx, ours, one, number)
    for p, q in zip(ours, flat(theirs), strict=True):
        np.testing.assert_allclose(p.numpy(), q.detach().numpy(), rtol=1e-10, atol=1e-11)


def test_a_state_of_another_of_pytorchs_optimisers_is_refused() -> None:
    p = torch.zeros(2, requires_grad=True)
    other = torch.optim.Adam([p])
    p.grad = torch.ones(2)
    other.step()
    with pytest.raises(SpecError, match="with momentum_buffer, as sgd keeps, got exp_avg, exp_avg_sq"):
        cx.optim.SGD([cx.zeros(2, requires_grad=True)]).load_state_dict(other.state_dict())


# names and hooks ----------------------------------------------------------------------------------


KNOWN = (2, 14)  # the newest PyTorch whose arguments have been looked at
VERSION = tuple(map(int, torch.__version__.split(".")[:2]))


def arguments(kind: Any) -> tuple[list[tuple[str, Any]], dict[str, Any]]:
    """Those that have a place, in order, and those that have none; each with its default."""
    found = inspect.signature(kind).parameters.values()
    named = {p.name: p.default for p in found if p.kind is p.KEYWORD_ONLY}
    return [(p.name, p.default) for p in found if p.name not in named], named


def test_optimisers_take_pytorchs_arguments_in_its_order() -> None:
    """All but SparseAdam, there being no sparse gradients. foreach, fused and capturable change nothing here."""
    listed = [name for name in torch.optim.__all__ if inspect.isclass(getattr(torch.optim, name))]
    listed = [name for name in listed if name not in ("SparseAdam", "Optimizer")]
    assert set(listed) <= set(cx.optim.__all__)
    for name in listed:
        places, named = arguments(getattr(cx.optim, name))
        theirs, its = arguments(getattr(torch.optim, name))
        assert places == theirs, name
        assert named.keys() >= its.keys() or VERSION > KNOWN, name  # a newer PyTorch may have more
        both = named.keys() & its.keys()
        assert {each: named[each] for each in both} == {each: its[each] for each in both}, name
        assert named.keys() - its.keys() <= ({"maximize"} if VERSION < KNOWN and name == "LBFGS" else set()), name
    with pytest.raises(AttributeError, match="no gradient is sparse here; use Adam"):
        _ = cx.optim.SparseAdam


def test_methods_of_optimisers_have_pytorchs_names() -> None:
    theirs = {name for name in vars(torch.optim.Optimizer) if not name.startswith("_")}
    known = {"OptimizerPreHook", "OptimizerPostHook", "profile_hook_step"}
    assert {name for name in theirs - known if not hasattr(cx.optim.Optimizer, name)} == set()


@pytest.mark.parametrize("compiled", [False, True])
def test_hooks_are_called_around_each_step(compiled: bool) -> None:
    model, told = nn.Linear(2, 1), []
    optimizer = cx.optim.Adam(model.parameters(), lr=0.1)

    def step(x: Any) -> Any:
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    made = cx.compile(step) if compiled else step
    handles = [
        optimizer.register_step_pre_hook(lambda own, args, options: told.append(("before", model.bias.item()))),
        optimizer.register_step_post_hook(lambda own, args, options: told.append(("after", model.bias.item()))),
    ]
    for _ in range(2):
        made(cx.ones(3, 2))
    assert [when for when, _ in told] == ["before", "after"] * 2
    assert told[1][1] != told[0][1] and told[2][1] == told[1][1]
    for handle in handles:
        handle.remove()
    made(cx.ones(3, 2))
    assert len(told) == 4


def test_hooks_change_what_is_saved_and_loaded() -> None:
    told: list[Any] = []
    for m in (cx, torch):
        said: list[str] = []
        optimizer = m.optim.SGD([m.zeros(1, requires_grad=True)], 0.5)
        optimizer.register_state_dict_pre_hook(lambda own, said=said: said.append("saves"))
        optimizer.register_state_dict_post_hook(lambda own, state: {**state, "note": 1})
        optimizer.register_load_state_dict_pre_hook(lambda own, state, said=said: said.append(f"loads {state['note']}"))
        optimizer.register_load_state_dict_post_hook(lambda own, said=said: said.append("loaded"))
        optimizer.register_load_state_dict_post_hook(lambda own, said=said: said.append("first"), prepend=True)
        state = optimizer.state_dict()
        if m is cx:
            optimizer.load_state_dict(state)
        else:
            optimizer.load_state_dict(state_dict=state)
        told.append(said)
    assert told[0] == told[1] == ["saves", "loads 1", "first", "loaded"]


def of_ones_own(m: Any) -> Any:
    """Heavy ball, as one writes it for PyTorch."""

    class HeavyBall(m.optim.Optimizer):  # type: ignore[misc]
        def __init__(self, params: Any, lr: float = 0.1, friction: float = 0.1) -> None:
            super().__init__(params, dict(lr=lr, friction=friction))

        @m.no_grad()
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is None:
                        continue
                    state = self.state[p]
                    if len(state) == 0:
                        state["step"], state["velocity"] = 0, m.zeros_like(p)
                    state["step"] += 1
                    state["velocity"].mul_(1.0 - group["friction"]).add_(p.grad)
                    p.add_(state["velocity"], alpha=-group["lr"])

    return HeavyBall


def test_an_optimiser_of_ones_own_is_written_as_for_pytorch() -> None:
    ways = []
    for m in (cx, torch):
        p, q = (m.tensor([1.0, -1.0], requires_grad=True) for _ in range(2))
        kind = of_ones_own(m)
        optimizer = kind([{"params": [p]}, {"params": [q], "friction": 0.5}], lr=0.2)
        schedule = m.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        for number in range(6):
            if number == 3:
                kept = copy.deepcopy(optimizer.state_dict())
                optimizer = kind([{"params": [p]}, {"params": [q]}])
                optimizer.load_state_dict(kept)
                schedule.optimizer = optimizer
            for each in (p, q):
                each.grad = each.detach() * 2.0 + number
            optimizer.step()
            schedule.step()
        assert p in optimizer.state and optimizer.state[p]["step"] == 6
        ways.append([each.detach().numpy() for each in (p, q)])
    np.testing.assert_allclose(ways[0], ways[1], rtol=1e-6)
    with pytest.raises(KeyError):
        _ = of_ones_own(cx)([cx.zeros(1, requires_grad=True)]).state[cx.zeros(1)]


def test_a_trainer_resumes_with_an_optimiser_of_ones_own(tmp_path: Any) -> None:
    x, y = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32), np.arange(32) % 3

    def made() -> tuple[Any, Any]:
        cx.manual_seed(0)
        model = nn.Linear(4, 3)
        return cx.Trainer(model, "cross_entropy", of_ones_own(cx)(model.parameters()), compiled=False), model

    (whole, one), (first, _), (second, other) = made(), made(), made()
    whole.fit(x, y, epochs=3, batch_size=8, progress=False)
    first.fit(x, y, epochs=2, batch_size=8, progress=False)
    first.checkpoint(tmp_path / "two")
    second.fit(x, y, epochs=3, batch_size=8, progress=False, resume=tmp_path / "two")
    assert [p.tolist() for p in one.parameters()] == [p.tolist() for p in other.parameters()]


def test_an_optimiser_of_ones_own_is_named_in_a_compiled_step() -> None:
    model = nn.Linear(2, 1)
    optimizer = of_ones_own(cx)(model.parameters())

    @cx.compile
    def step(x: Any) -> Any:
        loss = model(x).sum()
        loss.backward()
        optimizer.step()
        return loss

    with pytest.raises(GraphError, match="HeavyBall has a step\\(\\) of its own, which works on tensors"):
        step(cx.ones(3, 2))


def test_parameters_are_given_with_their_names() -> None:
    model = nn.Linear(2, 1)
    optimizer = cx.optim.Adam([{"params": model.named_parameters(), "lr": 0.1}])
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    model(cx.ones(3, 2)).sum().backward()
    optimizer.step()
    again = cx.optim.Adam(model.named_parameters())
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[0]["lr"] == 0.1
    with pytest.raises(SpecError, match="names for all parameters of a group, or for none"):
        cx.optim.SGD([("weight", model.weight), model.bias])


def test_an_optimiser_shows_its_groups() -> None:
    shown = []
    for m in (cx, torch):
        p, q = (m.zeros(1, requires_grad=True) for _ in range(2))
        optimizer = m.optim.Adagrad(
            [{"params": [p]}, {"params": [q], "lr": 0.5}], lr=0.1, lr_decay=0.1, weight_decay=0.2
        )
        lines = repr(optimizer).splitlines()
        shown.append(
            [line for line in lines if not any(each in line for each in ("foreach", "fused", "differentiable"))]
        )
    theirs = [line.replace("value: 0", "value: 0.0") for line in shown[1]]
    assert shown[0] == theirs


# Muon ---------------------------------------------------------------------------------------------

MUONS: list[dict[str, Any]] = [
    {},
    {"nesterov": False, "momentum": 0.8},
    {"weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"},
    {"adjust_lr_fn": "original", "ns_steps": 3, "ns_coefficients": (2.0, -1.5, 0.5), "eps": 1e-5},
]


@pytest.mark.parametrize("options", MUONS, ids=lambda options: "-".join(options) or "plain")
def test_the_way_of_muon_is_torchs_but_for_bfloat16(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())  # it rounds to that on its way
    ways = []
    for m in (cx, torch):
        rng = np.random.default_rng(1)
        own = [m.tensor(rng.normal(size=shape), requires_grad=True) for shape in ((3, 5), (6, 2), (4, 4))]
        optimizer = m.optim.Muon([{"params": own[:2]}, {"params": own[2:], "lr": 0.05}], lr=0.02, **options)
        for number in range(STEPS):
            for p in own:
                p.grad = m.tensor(rng.normal(size=tuple(p.shape)))
            optimizer.step()
            if number == STEPS // 2:
                kept = optimizer.state_dict()
                optimizer = m.optim.Muon([{"params": own[:2]}, {"params": own[2:]}])
                optimizer.load_state_dict(kept)
        ways.append([p.detach().numpy() for p in own])
    for one, other in zip(*ways, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cycled", [False, True])
def test_muon_is_the_same_to_the_last_bit_in_a_compiled_step(cycled: bool) -> None:
    def run(compiled: bool) -> list[Any]:
        cx.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False))
        optimizer = cx.optim.Muon(model.parameters(), lr=0.02)
        schedule = cx.lr_scheduler.OneCycleLR(optimizer, 0.05, 8, cycle_momentum=cycled)

        def step(x: Any, y: Any) -> Any:
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        made, losses = cx.compile(step) if compiled else step, []
        for number in range(8):
            rng = np.random.default_rng(number)
            x, y = cx.tensor(rng.normal(size=(5, 4)).astype(np.float32)), cx.tensor(rng.integers(0, 3, 5))
            losses.append(made(x, y).item())
            schedule.step()
        if isinstance(made, CompiledStep):
            assert len(made._plans) == 1
        return [losses, [p.tolist() for p in model.parameters()]]

    assert run(compiled=True) == run(compiled=False)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda p: cx.optim.Muon([cx.zeros(3)]),
            "Muon: expected parameters of two axes, got \\(3,\\); give the others",
        ),
        (lambda p: cx.optim.Muon([p], ns_steps=100), "ns_steps from 1 to 99, got 100"),
        (lambda p: cx.optim.Muon([p], ns_coefficients=(1.0, 2.0)), "three ns_coefficients"),
        (lambda p: cx.optim.Muon([p], adjust_lr_fn="none"), "expected adjust_lr_fn original, .* got 'none'"),
    ],
)
def test_what_muon_has_not_is_refused(make: Any, said: str) -> None:
    with pytest.raises(CyxError, match=said):
        make(cx.zeros(2, 3, requires_grad=True))

"""cx.amp.GradScaler beside torch.amp.GradScaler("cpu"), step by step, plain and compiled."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import nn
from cyxcore.errors import GradientError, GraphError, SpecError

torch = pytest.importorskip("torch")

START = np.array([[0.5, -1.0], [2.0, 0.25]], np.float32)
INPUTS = np.random.default_rng(0).standard_normal((12, 3, 2)).astype(np.float32)
BAD = {2: np.inf, 3: np.nan, 8: -np.inf}  # the steps whose inputs make gradients that are no numbers
OPTIONS = {"init_scale": 1024.0, "growth_factor": 4.0, "backoff_factor": 0.5, "growth_interval": 2}
RULES = {"SGD": {"lr": 0.1, "momentum": 0.9}, "AdamW": {"lr": 0.05}, "RMSprop": {"lr": 0.01}}


def inputs() -> list[Any]:
    given = [x.copy() for x in INPUTS]
    for step, number in BAD.items():
        given[step][0, 0] = number
    return given


def followed(m: Any, rule: str, wrap: Callable[[Any], Any] = lambda step: step) -> list[Any]:
    """What a parameter, the scale and the count of good steps are after each step."""
    w = m.nn.Parameter(m.tensor(START))
    optimizer = getattr(m.optim, rule)([w], **RULES[rule])
    scaler = m.amp.GradScaler("cpu", **OPTIONS)

    @wrap
    def step(x: Any) -> Any:
        loss = (x @ w).square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    found = []
    for x in inputs():
        step(m.tensor(x))
        state = scaler.state_dict()
        found.append((w.detach().numpy().copy(), state["scale"], state["_growth_tracker"]))
    return found


@pytest.mark.parametrize("rule", RULES)
def test_each_step_is_that_of_pytorch(rule: str) -> None:
    for ours, theirs in zip(followed(cx, rule), followed(torch, rule), strict=True):
        assert ours[1:] == theirs[1:]
        np.testing.assert_allclose(ours[0], theirs[0], rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("rule", RULES)
def test_a_compiled_step_has_the_bits_of_a_plain_one_and_leaves_out_the_same(rule: str) -> None:
    for compiled, plain in zip(followed(cx, rule, cx.compile), followed(cx, rule), strict=True):
        assert compiled[1:] == plain[1:] and compiled[0].tobytes() == plain[0].tobytes()


class Loop:
    """A parameter, its optimiser and a scaler."""

    def __init__(self, **options: Any) -> None:
        self.w = nn.Parameter(START.copy())
        self.sgd = cx.optim.SGD([self.w], lr=0.5)
        self.scaler = cx.amp.GradScaler("cpu", **{"init_scale": 8.0, **options})

    def backward(self, factor: float = 1.0) -> "Loop":
        self.scaler.scale((self.w * factor).sum()).backward()
        return self

    def gradient(self) -> list[Any]:
        assert self.w.grad is not None
        return self.w.grad.tolist()  # type: ignore[no-any-return]


def test_a_step_that_is_left_out_counts_for_no_optimiser() -> None:
    loop = Loop()
    for factor in (float("inf"), 1.0):
        loop.sgd.zero_grad()
        loop.backward(factor).scaler.step(loop.sgd)
        loop.scaler.update()
    assert loop.sgd.steps == 1 and loop.scaler.get_scale() == 4.0


def test_unscaled_gradients_can_be_clipped_before_the_step() -> None:
    loop = Loop().backward()
    assert loop.gradient() == [[8.0, 8.0], [8.0, 8.0]]
    loop.scaler.unscale_(loop.sgd)
    assert loop.gradient() == [[1.0, 1.0], [1.0, 1.0]]
    nn.utils.clip_grad_norm_([loop.w], 1.0)
    loop.scaler.step(loop.sgd)
    np.testing.assert_allclose(loop.w.detach().numpy(), START - 0.25, atol=1e-6)


def test_a_compiled_step_clips_what_is_unscaled() -> None:
    found = []
    for wrap in (lambda step: step, cx.compile):
        loop = Loop()
        w, sgd, scaler = loop.w, loop.sgd, loop.scaler

        @wrap
        def step(x: Any) -> Any:
            loss = (x @ w).square().mean()  # noqa: B023 - called in this turn
            sgd.zero_grad()  # noqa: B023
            scaler.scale(loss).backward()  # noqa: B023
            scaler.unscale_(sgd)  # noqa: B023
            nn.utils.clip_grad_norm_([w], 0.1)  # noqa: B023
            scaler.step(sgd)  # noqa: B023
            scaler.update()  # noqa: B023
            return loss

        for x in inputs():
            step(cx.tensor(x))
        found.append((w.tolist(), scaler.state_dict(), sgd.steps))
    assert found[0] == found[1] and found[0][2] == len(INPUTS) - len(BAD)


def test_two_optimisers_are_left_out_by_themselves_and_the_scale_falls_once() -> None:
    loop, other = Loop(), nn.Parameter(START.copy())
    sgd = cx.optim.SGD([other], lr=0.5)
    loop.scaler.scale((loop.w * float("inf")).sum() + other.sum()).backward()
    for optimizer in (loop.sgd, sgd):
        loop.scaler.step(optimizer)
    loop.scaler.update()
    assert loop.w.tolist() == START.tolist() and other.tolist() == (START - 0.5).tolist()
    assert loop.scaler.get_scale() == 4.0


def test_the_scale_of_a_compiled_step_can_be_set_and_goes_on_from_a_state() -> None:
    loop = Loop(growth_interval=1)
    w, sgd, scaler = loop.w, loop.sgd, loop.scaler

    @cx.compile
    def step(x: Any) -> Any:
        sgd.zero_grad()
        scaled = scaler.scale((x @ w).sum())
        scaled.backward()
        scaler.step(sgd)
        scaler.update()
        return scaled

    x = cx.ones(1, 2)
    assert step(x).item() == 8.0 * START.sum() and scaler.get_scale() == 16.0
    state = scaler.state_dict()
    scaler.update(2.0)
    step(x)
    assert scaler.get_scale() == 4.0
    scaler.load_state_dict(state)
    scaler.set_growth_factor(3.0)
    step(x)
    assert scaler.get_scale() == 48.0


def test_the_scale_stops_growing_before_it_is_infinite() -> None:
    loop = Loop(init_scale=2.0**127, growth_interval=1)
    loop.scaler.scale((loop.w * 1e-6).sum()).backward()
    loop.scaler.step(loop.sgd)
    loop.scaler.update()
    assert loop.scaler.get_scale() == 2.0**127


def test_outputs_in_lists_are_scaled_each() -> None:
    one, (two,) = Loop().scaler.scale([cx.tensor(1.0), (cx.tensor(2.0),)])
    assert (one.item(), two.item()) == (8.0, 16.0)
    with pytest.raises(SpecError, match="expected tensors, got int"):
        Loop().scaler.scale(3)


def test_a_scaler_that_is_not_enabled_does_nothing() -> None:
    loop = Loop(enabled=False).backward()
    loop.scaler.unscale_(loop.sgd)
    loop.scaler.step(loop.sgd)
    loop.scaler.update()
    assert loop.w.tolist() == (START - 0.5).tolist()
    assert loop.scaler.state_dict() == {} and loop.scaler.get_scale() == 1.0 and not loop.scaler.is_enabled()


# calls in the wrong order -------------------------------------------------------------------------


def stepped() -> Loop:
    loop = Loop().backward()
    loop.scaler.step(loop.sgd)
    return loop


def unscaled() -> Loop:
    loop = Loop().backward()
    loop.scaler.unscale_(loop.sgd)
    return loop


WRONG: dict[str, tuple[Callable[[], Loop], Callable[[Loop], Any], str]] = {
    "unscale_ twice": (unscaled, lambda loop: loop.scaler.unscale_(loop.sgd), r"unscale_\(\) was called"),
    "unscale_ after step": (stepped, lambda loop: loop.scaler.unscale_(loop.sgd), r"step\(\) was called"),
    "step twice": (stepped, lambda loop: loop.scaler.step(loop.sgd), "it was called for this optimizer"),
    "no gradients": (Loop, lambda loop: loop.scaler.step(loop.sgd), "no parameter of this optimizer has a gradient"),
    "update before a step": (Loop, lambda loop: loop.scaler.update(), r"expected unscale_\(\) or step\(\) before"),
    "a closure": (Loop, lambda loop: loop.scaler.step(loop.sgd, lambda: 0.0), "expected no closure"),
}


@pytest.mark.parametrize("name", WRONG)
def test_calls_in_the_wrong_order_are_refused(name: str) -> None:
    loop, call, said = WRONG[name]
    with pytest.raises(GradientError, match=said):
        call(loop())


def test_an_update_ends_a_step() -> None:
    loop = stepped()
    loop.scaler.update()
    loop.scaler.step(loop.sgd)


def test_a_compiled_step_without_its_update_is_refused_and_leaves_nothing() -> None:
    loop = Loop()
    w, sgd, scaler = loop.w, loop.sgd, loop.scaler

    @cx.compile
    def step(x: Any) -> Any:
        loss = (x @ w).sum()
        scaler.scale(loss).backward()
        scaler.step(sgd)
        return loss

    with pytest.raises(GradientError, match=r"no update\(\) behind it"):
        step(cx.ones(1, 2))
    loop.backward().scaler.step(sgd)


def test_the_scale_is_no_number_in_a_compiled_step() -> None:
    scaler = Loop().scaler
    with pytest.raises(GraphError, match="needs a number"):
        cx.compile(lambda x: x * scaler.get_scale())(cx.ones(2))


def test_without_its_device_nothing_is_scaled_and_a_warning_says_so() -> None:
    with pytest.warns(UserWarning, match="GradScaler: nothing is scaled: device: expected one of"):
        scaler = cx.amp.GradScaler("tpu:0")
    assert not scaler.is_enabled()


def test_parameters_of_float16_are_refused() -> None:
    loop = Loop()
    loop.w = nn.Parameter(cx.tensor(START).astype("float16"))
    loop.sgd = cx.optim.SGD([loop.w], lr=0.5)
    with pytest.raises(GradientError, match="keep the parameters in float32"):
        loop.backward().scaler.step(loop.sgd)


@pytest.mark.parametrize("options", [{"growth_factor": 1.0}, {"backoff_factor": 1.0}])
def test_factors_that_do_not_grow_or_shrink_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(SpecError, match="expected a growth_factor above 1"):
        cx.amp.GradScaler(**options)


def test_float16_trains_where_gradients_would_vanish_without_a_scale() -> None:
    def moved(enabled: bool) -> bool:
        w = nn.Parameter(np.full((4, 4), 0.01, np.float32))
        sgd = cx.optim.SGD([w], lr=1e6)
        scaler = cx.amp.GradScaler(enabled=enabled)
        with cx.autocast("cpu", dtype="float16"):
            loss = (cx.ones(1, 4) @ w).astype("float32").sum() * 1e-9
        scaler.scale(loss).backward()
        scaler.step(sgd)
        scaler.update()
        return bool((w != 0.01).all())

    assert moved(True) and not moved(False)


def test_training_in_float16_is_the_same_compiled_and_leaves_out_a_step() -> None:
    found = []
    for wrap in (lambda step: step, cx.compile):
        cx.manual_seed(1)
        net = nn.Sequential(nn.Linear(2, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3))
        adam, scaler = cx.optim.AdamW(net.parameters(), lr=0.01), cx.amp.GradScaler(init_scale=2.0**17)

        @wrap
        def step(x: Any, y: Any) -> Any:
            with cx.autocast("cpu", dtype="float16"):
                loss = nn.functional.cross_entropy(net(x), y)  # noqa: B023 - called in this turn
            adam.zero_grad()  # noqa: B023
            scaler.scale(loss).backward()  # noqa: B023
            scaler.step(adam)  # noqa: B023
            scaler.update()  # noqa: B023
            return loss

        y = cx.tensor(np.array([0, 1, 2]))
        losses = [step(cx.tensor(x), y).item() for x in INPUTS]
        held = [np.asarray(value).tobytes() for value in net.state_dict().values()]
        found.append((losses, held, scaler.get_scale(), adam.steps))
    assert found[0] == found[1]
    assert found[0][2] < 2.0**17 and 0 < found[0][3] < len(INPUTS)

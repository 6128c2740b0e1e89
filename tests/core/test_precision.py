"""The choice of a numeric class: what it changes, what it leaves, and where it is written down."""

import threading
from typing import get_args

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import precision
from cyxcore.errors import CheckpointError, SpecError
from cyxcore.kernels import cpu
from cyxcore.spec import NumericsName, TrainingSpec
from cyxcore.training import Trainer

needs_amx = pytest.mark.skipif(not cpu.amx(), reason="no AMX here")
WIDE = [{"kind": "Linear", "out_features": 256}, {"kind": "ReLU"}, {"kind": "Linear", "out_features": 4}]


@pytest.fixture(autouse=True)
def exact_again():
    yield
    cx.set_numerics("exact")


def pair(seed=0):
    rng = np.random.default_rng(seed)
    return cx.tensor(rng.standard_normal((192, 256), np.float32)), cx.tensor(
        rng.standard_normal((256, 128), np.float32)
    )


def bits(tensor):
    return tensor.numpy().tobytes()


def test_the_classes_of_a_job_are_those_of_the_library():
    assert list(get_args(NumericsName)) == list(precision.CLASSES)
    assert len({each.record for each in precision.CLASSES.values()}) == len(precision.CLASSES)


def test_exact_is_the_default_and_what_is_in_effect_is_told():
    assert cx.numerics() == ("exact", "cyx-exact/1", "exact kernels")
    cx.set_numerics("fast")
    assert cx.numerics() == ("fast", "cyx-fast/1", "amx" if cpu.amx() else "exact kernels")


def test_a_block_ends_with_the_class_that_was_before():
    with cx.set_numerics("fast"):
        with pytest.raises(RuntimeError, match="inside"), cx.set_numerics("bf16"):
            assert precision.current() == "bf16" and cpu.get_terms() == 1
            raise RuntimeError("inside")
        assert precision.current() == "fast" and cpu.get_terms() == 3
    assert precision.current() == "exact" and cpu.get_terms() == 0


def test_an_unknown_class_is_refused():
    model = cx.nn.Linear(4, 2)
    for attempt in (
        lambda: cx.set_numerics("quick"),
        lambda: cx.compile(model, numerics="quick"),
        lambda: cx.Trainer(model, "mse", cx.optim.SGD(model.parameters(), lr=0.1), numerics="quick"),
    ):
        with pytest.raises(SpecError, match="numerics: expected one of exact, fast, fast16, bf16, got 'quick'"):
            attempt()


def test_a_class_is_of_the_cpu_only():
    x, w = pair()
    with pytest.raises(SpecError, match="'fast' is a class of the device 'cpu', got 'reference'"):
        cx.compile(lambda a, b: a @ b, device="reference", numerics="fast")(x, w)
    with cx.set_numerics("fast"):  # nobody asked for it there
        cx.compile(lambda a, b: a @ b, device="reference")(x, w)
    graph = cx.build(input_shape=[8], layers=WIDE)
    with pytest.raises(SpecError, match="'bf16' is a class of the device 'cpu'"):
        Trainer.of_job(graph, Rows(), TrainingSpec(numerics="bf16"), device="reference")


@needs_amx
def test_what_runs_at_once_and_what_is_compiled_have_the_same_bits_in_each_class():
    x, w = pair()
    found = {}
    for name in precision.CLASSES:
        with cx.set_numerics(name):
            found[name] = bits(x @ w)
        assert bits(cx.compile(lambda a, b: a @ b, numerics=name)(x, w)) == found[name]
    assert len(set(found.values())) == len(precision.CLASSES)


@needs_amx
def test_gradients_are_products_of_the_class_too():
    grads = {}
    for name in ("exact", "bf16"):
        x, w = pair()
        w.requires_grad = True
        with cx.set_numerics(name):
            (x @ w).sum().backward()
        grads[name] = w.grad.numpy()
    assert not np.array_equal(grads["exact"], grads["bf16"])
    assert np.allclose(grads["exact"], grads["bf16"], rtol=0.01, atol=0.5)


@needs_amx
def test_a_compiled_function_without_a_class_follows_what_is_set_at_each_call():
    x, w = pair()
    both = cx.compile(lambda a, b: a @ b)
    exact = bits(both(x, w))
    with cx.set_numerics("bf16"):
        assert bits(both(x, w)) != exact
    assert bits(both(x, w)) == exact


@pytest.mark.parametrize("calls", [2, 6])  # the sixth is made without Python
@pytest.mark.parametrize("other", [lambda: cx.set_numerics("bf16"), lambda: precision.of_thread("bf16")])
def test_a_compiled_function_has_a_plan_for_each_class_that_it_was_called_in(calls, other):
    x, w = pair()
    both = cx.compile(lambda a, b: a @ b)
    for _ in range(calls):
        both(x, w)
    with other():
        both(x, w)
    assert len(both._plans) == 2


class Rows:
    def __init__(self):
        rng = np.random.default_rng(0)
        self.x_train = rng.standard_normal((96, 8)).astype(np.float32)
        self.y_train = rng.integers(0, 4, 96)
        self.x_val, self.y_val = self.x_train[:32], self.y_train[:32]


@pytest.mark.parametrize("name", precision.CLASSES)
def test_a_job_is_of_its_own_class_whatever_is_set_and_says_so(name, tmp_path):
    graph = cx.build(input_shape=[8], layers=WIDE)
    spec = TrainingSpec(epochs=2, batch_size=96, numerics=name)
    delivered = []
    for around in ("exact", "bf16"):
        with cx.set_numerics(around):
            trainer = Trainer.of_job(graph, Rows(), spec)
            summary = list(trainer.run())[-1]
            delivered.append({key: array.tobytes() for key, array in trainer.weights.items()})
    assert summary.numerics == precision.CLASSES[name].record
    assert delivered[0] == delivered[1]
    cx.save_model(tmp_path / "m.cyxmodel", graph, trainer.weights, summary=summary)
    assert cx.load_model(tmp_path / "m.cyxmodel").summary.numerics == precision.CLASSES[name].record


def test_a_job_goes_on_in_its_own_class_only(tmp_path):
    graph = cx.build(input_shape=[8], layers=WIDE)
    trainer = Trainer.of_job(graph, Rows(), TrainingSpec(epochs=2, batch_size=48, numerics="fast"))
    next(trainer.run())
    trainer.checkpoint(tmp_path / "at")
    with pytest.raises(CheckpointError, match="numerics: expected cyx-exact/1, got cyx-fast/1"):
        Trainer.of_job(graph, Rows(), TrainingSpec(epochs=2, batch_size=48), resume=tmp_path / "at")
    again = Trainer.of_job(
        graph, Rows(), TrainingSpec(epochs=2, batch_size=48, numerics="fast"), resume=tmp_path / "at"
    )
    assert again.step == 1


def fitted(tmp_path, numerics, compiled=True, resume=None, epochs=1):
    cx.manual_seed(1)
    model = cx.nn.Sequential(cx.nn.Linear(64, 256), cx.nn.ReLU(), cx.nn.Linear(256, 4))
    optimizer = cx.optim.SGD(model.parameters(), lr=0.1)
    trainer = cx.Trainer(model, "cross_entropy", optimizer, numerics=numerics, compiled=compiled)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((128, 64)).astype(np.float32), rng.integers(0, 4, 128)
    trainer.fit(x, y, epochs=epochs, batch_size=64, resume=resume, progress=False)
    trainer.checkpoint(tmp_path / f"{numerics}.checkpoint")
    return trainer, {name: array.tobytes() for name, array in model.state_dict().items()}


@needs_amx
def test_a_trainer_has_a_class_of_its_own_compiled_or_not(tmp_path):
    _, exact = fitted(tmp_path, "exact")
    trainer, fast = fitted(tmp_path, "bf16")
    _, at_once = fitted(tmp_path, "bf16", compiled=False)
    assert fast != exact and fast == at_once
    assert trainer.learner.facts().numerics == "cyx-bf16/1"
    assert precision.current() == "exact"


@needs_amx
def test_a_trainer_that_runs_at_once_leaves_the_class_of_other_threads_alone():
    inside, go_on, seen = threading.Event(), threading.Event(), []

    def loss(output, target):
        inside.set()
        assert go_on.wait(60)
        seen.append((precision.current(), bits(a @ b)))
        return (output - target).square().mean()

    a, b = pair()
    exact = bits(a @ b)
    cx.manual_seed(0)
    model = cx.nn.Linear(8, 1)
    trainer = Trainer(model, loss, cx.optim.SGD(model.parameters(), lr=0.1), numerics="bf16", compiled=False)
    x, y = np.ones((4, 8), np.float32), np.ones((4, 1), np.float32)
    thread = threading.Thread(target=trainer.fit, args=(x, y), kwargs={"epochs": 1, "batch_size": 4, "progress": False})
    thread.start()
    try:
        assert inside.wait(60)
        assert precision.current() == "exact" and bits(a @ b) == exact
        with cx.set_numerics("fast"):
            go_on.set()
            thread.join()
            assert precision.current() == "fast"
    finally:
        go_on.set()
        thread.join()
    assert seen[0][0] == "bf16" and seen[0][1] != exact
    assert precision.current() == "exact" and bits(a @ b) == exact


def test_a_fit_goes_on_in_its_own_class_only(tmp_path):
    fitted(tmp_path, "fast")
    fitted(tmp_path, "fast", resume=tmp_path / "fast.checkpoint", epochs=2)
    with pytest.raises(CheckpointError, match="numerics: expected cyx-exact/1, got cyx-fast/1"):
        fitted(tmp_path, None, resume=tmp_path / "fast.checkpoint", epochs=2)


@needs_amx
@pytest.mark.parametrize("name, rows", [("fast", 64), ("fast16", 48), ("bf16", 16)])
def test_the_bits_of_a_recurrence_do_not_depend_on_the_threads_that_share_its_rows(name, rows):
    class LastStates(cx.nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent = cx.nn.LSTM(64, 64, batch_first=True)

        def forward(self, x):
            return self.recurrent(x)[0]

    x = cx.tensor(np.random.default_rng(1).standard_normal((rows, 20, 64), np.float32))
    before, found = cpu.get_num_threads(), set()
    try:
        for threads in (1, 2):
            cpu.set_num_threads(threads)
            cx.manual_seed(0)
            found.add(bits(cx.compile(LastStates(), numerics=name)(x)))
    finally:
        cpu.set_num_threads(before)
    assert len(found) == 1

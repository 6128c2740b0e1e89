"""Modules by PyTorch's paths, torch.func and torch.autograd.functional, containers: what PyTorch gives."""

import copy
import importlib
import subprocess
import sys
import warnings
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import func, nn
from cyxcore.errors import DtypeError, GradientError, GraphError, ShapeError, SpecError
from cyxcore.torchpaths import INSTEAD, NAMES_INSTEAD, PATHS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="the oracle, PyTorch, is not installed")

X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(5,)).astype(np.float32)
W = np.random.default_rng(2).normal(size=(3,)).astype(np.float32)


def torchs(path: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(f"torch.{path}")


@pytest.mark.parametrize("path", sorted(PATHS))
def test_a_path_of_pytorch_has_what_is_here(path: str) -> None:
    found = importlib.import_module(f"cyxcore.{path}")
    torchs(path)  # it is one of PyTorch's
    home, _, inner = PATHS[path].partition(":")
    own = importlib.import_module(f"cyxcore.{home}")
    own = getattr(own, inner) if inner else own
    names = [name for name in dir(found) if name[0] != "_"]
    assert names and all(getattr(found, name) is getattr(own, name) for name in names)


def test_a_class_is_the_same_by_every_path() -> None:
    code = (
        "from cyxcore.optim.lr_scheduler import StepLR; from cyxcore.utils.data import DataLoader; "
        "from cyxcore.nn.modules.linear import Linear; from cyxcore.nn.parameter import Parameter; "
        "from cyxcore.optim.lr_scheduler import *; from cyxcore.cuda.amp import GradScaler; import cyxcore as cx; "
        "print(StepLR is cx.lr_scheduler.StepLR is cx.optim.lr_scheduler.StepLR, DataLoader is cx.data.DataLoader, "
        "Linear is cx.nn.Linear, Parameter is cx.nn.Parameter, isinstance(CosineAnnealingLR, type), "
        "cx.nn.utils.clip_grad_norm_.__name__, GradScaler is cx.amp.GradScaler)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["True", "True", "True", "True", "True", "clip_grad_norm_", "True"]


def test_paths_are_not_loaded_before_they_are_used() -> None:
    code = "import sys, cyxcore; print([m for m in sys.modules if m.startswith('cyxcore.')])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(eval(said)) <= {"cyxcore.torchpaths", "cyxcore.torchwords", "cyxcore.dtype", "cyxcore.errors"}


@pytest.mark.parametrize("path", sorted(INSTEAD))
def test_a_module_that_is_not_here_says_what_to_do(path: str) -> None:
    parent = path.rpartition(".")[0]
    if parent:
        importlib.import_module(f"cyxcore.{parent}")
    with pytest.raises(ModuleNotFoundError, match=f"cyxcore has no {path}: "):
        importlib.import_module(f"cyxcore.{path}")


def test_a_program_that_imported_the_package_alone_finds_paths_as_attributes() -> None:
    code = (
        "import cyxcore as torch; from cyxcore import nn; import cyxcore.optim as optim; "
        "bn = isinstance(nn.BatchNorm2d(3), nn.modules.batchnorm._BatchNorm); "
        "rnn = isinstance(nn.LSTM(2, 3), nn.modules.rnn.RNNBase) and isinstance(nn.MSELoss(), nn.modules.loss._Loss); "
        "print(bn, rnn, nn.parameter.Parameter is nn.Parameter, torch.autograd.functional.jacobian.__name__, "
        "torch.cuda.amp.GradScaler is torch.amp.GradScaler, optim.optimizer.Optimizer is torch.optim.Optimizer, "
        "torch.nn.modules.linear.Linear is nn.Linear, torch.nn.utils.clip_grad.clip_grad_norm_.__name__)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["True", "True", "True", "jacobian", "True", "True", "True", "clip_grad_norm_"]


@pytest.mark.parametrize("path", sorted({*INSTEAD, *NAMES_INSTEAD}))
def test_an_attribute_that_is_not_here_says_what_to_do(path: str) -> None:
    parent, _, name = path.rpartition(".")
    owner = importlib.import_module(f"cyxcore.{parent}") if parent else cx
    with pytest.raises(AttributeError, match=f"cyxcore has no {path}: "):
        getattr(owner, name)


def test_parameters_of_a_module_without_those_in_it() -> None:
    def run(m: Any) -> Any:
        torch.manual_seed(0)
        inner = m.nn.Linear(2, 3)
        model = m.nn.Sequential(inner, m.nn.BatchNorm1d(3), inner)
        model.register_parameter("own", m.nn.Parameter(m.zeros(2)))
        return (
            [name for name, _ in model.named_parameters(recurse=False)],
            [name for name, _ in model.named_parameters(prefix="net")],
            [name for name, _ in model.named_parameters(remove_duplicate=False)],
            [name for name, _ in model[1].named_buffers("bn", recurse=False) if "num" not in name],
            (len(list(model.parameters(recurse=False))), len(list(model.buffers(recurse=False)))),
        )

    assert run(cx) == run(torch)


def test_the_arguments_of_backward() -> None:
    def run(m: Any) -> Any:
        x = m.tensor([1.0, 2.0], requires_grad=True)
        z = m.tensor([3.0], requires_grad=True)
        y = (x * z).sum()
        y.backward(retain_graph=True)
        y.backward(None, True)
        y.backward(inputs=[z])
        middle = x * 2.0
        middle.retain_grad() if m is torch else None
        m.autograd.backward((middle * middle * z).sum(), inputs=[middle, x])
        of_middle = middle.grad
        (x * z).backward(m.tensor([1.0, 10.0]), inputs=x)
        return x.grad, z.grad, of_middle

    for ours, theirs in zip(run(cx), run(torch), strict=True):
        assert ours.tolist() == theirs.tolist()


def test_a_compiled_step_goes_back_to_some_parameters_alone() -> None:
    def trained(wrapped: Any) -> Any:
        cx.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
        before = model[0].weight.tolist()
        sgd = cx.optim.SGD(model.parameters(), lr=0.1)

        def step(x: Any) -> Any:
            sgd.zero_grad()
            loss = model(x).square().mean()
            loss.backward(retain_graph=True, inputs=list(model[1].parameters()))
            sgd.step()
            return loss

        step = wrapped(step)
        losses = [step(cx.asarray(X)).item() for _ in range(3)]
        assert model[0].weight.tolist() == before
        return losses, model[1].weight.tolist()

    assert trained(cx.compile) == trained(lambda step: step)
    w = nn.Parameter(np.ones(2, np.float32))
    for options in ({"gradient": cx.ones(())}, {"create_graph": True}):

        def step(x: Any, options: Any = options) -> Any:
            loss = (w * x).sum()
            loss.backward(**options)
            return loss

        with pytest.raises(GradientError, match="in a compiled step expected a scalar, and neither argument; use "):
            cx.compile(step)(cx.ones(2))


def test_backward_to_inputs_that_are_given_by_an_iterator() -> None:
    def run(m: Any) -> Any:
        a, b = (m.tensor([value], requires_grad=True) for value in (1.0, 2.0))
        results = [(a * b).sum(), (a * a * b).sum()]
        m.autograd.backward(results, inputs=(x for x in [a, b]))
        (a * b).sum().backward(inputs=iter([b]))
        return a.grad.tolist(), b.grad.tolist()

    assert run(cx) == run(torch)


def test_backward_refuses_inputs_without_a_gradient() -> None:
    def run(m: Any, refused: Any) -> Any:
        a, b = m.tensor([1.0], requires_grad=True), m.tensor([2.0])
        for inputs in ([], [b], [a, b], b, iter([b])):
            with pytest.raises(refused, match="input|retain_grad"):
                (a * b).sum().backward(inputs=inputs)
        return a.grad, b.grad

    assert run(cx, GradientError) == run(torch, RuntimeError) == (None, None)


def test_a_compiled_step_refuses_inputs_that_are_no_trained_parameters() -> None:
    w, frozen = nn.Parameter(np.ones(2, np.float32)), nn.Parameter(np.ones(2, np.float32)).requires_grad_(False)

    def going(kind: str) -> Any:
        def step(x: Any) -> Any:
            h = w * x * frozen
            inputs = {"empty": [], "h": [h], "x": x, "frozen": [w, frozen]}[kind]
            h.square().sum().backward(inputs=inputs)
            return h

        return cx.compile(step)

    for kind in ("empty", "h", "x", "frozen"):
        with pytest.raises(GradientError, match="inputs"):
            going(kind)(cx.ones(2))

    def reading(of_argument: bool) -> Any:
        def step(x: Any) -> Any:
            h = w * x
            h.square().sum().backward()
            return (x if of_argument else h).grad

        return cx.compile(step)

    for of_argument in (True, False):
        with pytest.raises(GraphError, match="only parameters keep one"):
            reading(of_argument)(cx.ones(2))


def test_older_constructors() -> None:
    x = cx.zeros(2, dtype="float64")
    assert x.new(2, 3).shape == (2, 3) and x.new([1, 2]).tolist() == [1.0, 2.0] and x.new().shape == (0,)
    assert x.new((4, 5)).shape == (4, 5) and x.new(x.size()).shape == x.shape  # a tensor [4.0, 5.0] before
    assert x.new((True, False)).tolist() == [1.0, 0.0] and x.new(()).shape == (0,)
    assert cx.compile(lambda y: y.sum() + y.new((np.int64(4), 5)))(x).shape == (4, 5)
    assert x.new(2).dtype == "float64" and x.type(cx.FloatTensor).dtype == "float32" and cx.LongTensor.name == "int64"
    with pytest.raises(DtypeError, match=r"got the number 3; sizes are given to cx.empty: cx.empty\(2, 3\)"):
        cx.Tensor(2, 3)


def test_a_path_that_nobody_has_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match="No module named"):
        importlib.import_module("cyxcore.optim.nothing")


def test_switches_of_pytorch_are_accepted() -> None:
    cx.backends.cudnn.benchmark = True
    assert cx.cuda.is_available() == bool(cx.cuda.device_count()) and not cx.backends.mps.is_available()
    cx.cuda.manual_seed_all(3)
    scaler = cx.amp.GradScaler()
    w = nn.Parameter(np.ones(2, np.float32))
    sgd = cx.optim.SGD([w], lr=1.0)
    with cx.autocast(device_type="cpu", dtype=cx.bfloat16):
        loss = (w * w).sum()
    scaler.scale(loss).backward()
    scaler.unscale_(sgd)
    scaler.step(sgd)
    scaler.update()
    assert w.tolist() == [-1.0, -1.0] and scaler.get_scale() == 65536.0


# functions of functions ---------------------------------------------------------------------------


def compared(run: Any, double: bool = False) -> None:
    """run(m, functions, x, y, w) is the same for PyTorch and for us."""
    kind = np.float64 if double else np.float32
    arrays = [a.astype(kind) for a in (X, Y, W)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's own
        wanted = run(torch, torch.func, *map(torch.tensor, arrays))
    got = run(cx, func, *(cx.asarray(a) for a in arrays))
    ours, theirs = func.flat(got)[0], func.flat(wanted)[0]
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert tuple(one.shape) == tuple(other.shape)
        np.testing.assert_allclose(one.numpy(), other.detach().numpy(), rtol=1e-5, atol=1e-6)


def loss(p: Any, x: Any, y: Any) -> Any:
    return (((x * p["w"]).sum(-1) + p["b"] - y) ** 2).mean()


def params(m: Any, w: Any) -> Any:
    return {"w": w, "b": m.tensor(0.25)}


@pytest.mark.parametrize(
    "run",
    [
        lambda m, f, x, y, w: f.grad(loss)(params(m, w), x, y),
        lambda m, f, x, y, w: f.grad(lambda w, x: (w * x).sin().sum(), argnums=(0, 1))(w, x),
        lambda m, f, x, y, w: f.grad_and_value(loss)(params(m, w), x, y),
        lambda m, f, x, y, w: f.grad(lambda w: ((w**2).sum(), w * 2), has_aux=True)(w),
        lambda m, f, x, y, w: f.grad_and_value(lambda w: ((w**2).sum(), w * 2), has_aux=True)(w),
        lambda m, f, x, y, w: f.grad(lambda w, *, by: (w**by).sum())(w, by=3),
        lambda m, f, x, y, w: f.vmap(f.grad(loss), in_dims=(None, 0, 0))(params(m, w), x, y),
        lambda m, f, x, y, w: f.vmap(lambda row: row.sum())(x),
        lambda m, f, x, y, w: f.vmap(lambda row, w: row * w, in_dims=(0, None), out_dims=1)(x, w),
        lambda m, f, x, y, w: f.vmap(lambda col: (col.sum(), {"d": col * 2}), in_dims=1)(x),
        lambda m, f, x, y, w: f.vmap(lambda a, b: (a @ w, b * a), in_dims=0, out_dims=(0, 1))(x, y),
        lambda m, f, x, y, w: f.vmap(f.vmap(lambda v: v * v))(x),
        lambda m, f, x, y, w: f.vjp(lambda w, x: x @ w, w, x)[1](y),
        lambda m, f, x, y, w: f.vjp(lambda w: w.sin(), w)[0],
        lambda m, f, x, y, w: f.vjp(lambda w: (w.sin(), {"c": w * w}), w)[1]((w, {"c": w + 1})),
        lambda m, f, x, y, w: f.vjp(lambda w: (w.sin(), w), w, has_aux=True)[2],
        lambda m, f, x, y, w: f.jvp(lambda w: x @ w.sin(), (w,), (w * 2,)),
        lambda m, f, x, y, w: f.jvp(lambda a, b: (a * b, a + b), (w, w.cos()), (w * 2, w + 1)),
        lambda m, f, x, y, w: f.linearize(lambda w: w.sin() * w, w)[1](w + 1),
        lambda m, f, x, y, w: f.jacrev(lambda w: (x @ w).sin())(w),
        lambda m, f, x, y, w: f.jacrev(lambda w, x: (x @ w).sin(), argnums=(0, 1))(w, x),
        lambda m, f, x, y, w: f.jacrev(lambda p: (x @ p["w"]).sin() * p["b"])(params(m, w)),
        lambda m, f, x, y, w: f.jacfwd(lambda w: (x @ w).sin())(w),
        lambda m, f, x, y, w: f.hessian(lambda w: (x @ w).sin().sum())(w),
        lambda m, f, x, y, w: f.vmap(f.hessian(lambda row: (row.sin() * row).sum()))(x),
    ],
)
def test_functions_of_functions_are_pytorchs(run: Any) -> None:
    compared(run)


@pytest.mark.parametrize(
    "run",
    [
        lambda m, g, x, y, w: g.jacobian(lambda w: (x @ w).sin(), w),
        lambda m, g, x, y, w: g.jacobian(lambda w, x: (x @ w).sin(), (w, x)),
        lambda m, g, x, y, w: g.jacobian(lambda w: (w.sin(), w * w), w),
        lambda m, g, x, y, w: g.hessian(lambda w: (x @ w).sin().sum(), w),
        lambda m, g, x, y, w: g.hessian(lambda a, b: (a * b.sin() * a).sum(), (w, w + 1)),
        lambda m, g, x, y, w: g.vjp(lambda w: x @ w.sin(), w, y),
        lambda m, g, x, y, w: g.vjp(lambda a, b: (a * b).sum(), (w, w + 1)),
        lambda m, g, x, y, w: g.jvp(lambda w: x @ w.sin(), w, w * 2),
        lambda m, g, x, y, w: g.hvp(lambda w: (x @ w).sin().sum(), w, w * 2),
        lambda m, g, x, y, w: g.vhp(lambda a, b: (a.sin() * b).sum(), (w, w + 1), (w, w * 2)),
    ],
)
def test_autograd_functional_is_pytorchs(run: Any) -> None:
    compared(lambda m, f, x, y, w: run(m, importlib.import_module(f"{m.__name__}.autograd.functional"), x, y, w))


def test_a_jacobian_may_remember_how_it_was_made() -> None:
    def penalty(m: Any, x: Any, y: Any, w: Any) -> Any:
        w = w.requires_grad_()
        j = importlib.import_module(f"{m.__name__}.autograd.functional").jacobian(
            lambda x: (x * w).sin().sum(-1), x, create_graph=True
        )
        (j**2).sum().backward()
        return w.grad

    compared(lambda m, f, x, y, w: penalty(m, x, y, w))


def test_gradients_of_tensors_add_up_by_backward() -> None:
    def both(m: Any, w: Any) -> Any:
        w = w.requires_grad_()
        m.autograd.backward([(w**2).sum(), w * 3], [None, m.ones(3)])
        return w.grad

    compared(lambda m, f, x, y, w: both(m, w))


def test_a_module_is_called_with_other_parameters() -> None:
    def run(m: Any, f: Any, x: Any, y: Any, w: Any) -> Any:
        net = m.nn.Sequential(m.nn.Linear(3, 2), m.nn.Tanh(), m.nn.Linear(2, 1))
        new = {name: m.ones(*p.shape) * 0.1 for name, p in net.named_parameters()}
        before = net[0].weight
        value = f.functional_call(net, new, (x,))
        assert net[0].weight is before
        slopes = f.grad(lambda p: f.functional_call(net, p, x).square().sum())(new)
        return value, slopes

    compared(run)


def test_shared_parameters_are_replaced_together() -> None:
    a = nn.Linear(3, 3)
    net = nn.Sequential(a, a)
    x = cx.asarray(X)
    zero = {"0.weight": cx.zeros(3, 3), "0.bias": cx.ones(3)}
    assert func.functional_call(net, zero, x).tolist() == [[1.0] * 3] * 5
    with pytest.raises(SpecError, match="missing nothing, unknown \\['2.weight'\\]"):
        func.functional_call(net, {"2.weight": x}, x)
    with pytest.raises(SpecError, match="missing"):
        func.functional_call(net, {"0.weight": cx.zeros(3, 3)}, x, strict=True)


def test_an_ensemble_is_one_call() -> None:
    cx.manual_seed(0)
    models = [nn.Linear(3, 2) for _ in range(4)]
    x = cx.asarray(X)
    parameters, buffers = func.stack_module_state(models)
    assert parameters["weight"].shape == (4, 2, 3) and parameters["weight"].requires_grad and not buffers
    got = func.vmap(lambda p, x: func.functional_call(models[0], p, (x,)), in_dims=(0, None))(parameters, x)
    for one, model in zip(got.unbind(), models, strict=True):
        assert one.tolist() == model(x).tolist()


def test_vmap_goes_into_graphs_and_draws_as_it_is_told() -> None:
    x = cx.asarray(X)
    step = cx.compile(lambda x: cx.vmap(cx.func.grad(lambda row: (row.sin() * row).sum()))(x))
    assert step(x).tolist() == cx.vmap(cx.func.grad(lambda row: (row.sin() * row).sum()))(x).tolist()
    same = cx.vmap(lambda row: cx.rand_like(row), randomness="same")(x)
    other = cx.vmap(lambda row: cx.rand_like(row), randomness="different")(x)
    assert (same[0] == same[1]).all() and not (other[0] == other[1]).any()
    with pytest.raises(SpecError, match="draws random numbers"):
        cx.vmap(lambda row: cx.rand_like(row))(x)
    with pytest.raises(SpecError, match="randomness"):
        cx.vmap(lambda row: row, randomness="none")
    with pytest.raises(ShapeError, match="axes of one length"):
        cx.vmap(lambda a, b: a, in_dims=(0, 1))(x, x)
    with pytest.raises(GradientError, match="returns tensors"):
        cx.vmap(lambda row: 1.0)(x)
    with pytest.raises(ShapeError, match="vjp: expected cotangents"):
        func.vjp(lambda x: x.sum(), x)[1](x)


# containers ---------------------------------------------------------------------------------------


def test_a_sequential_takes_named_modules() -> None:
    def keys(m: Any) -> Any:
        net = m.nn.Sequential(
            OrderedDict([("first", m.nn.Linear(3, 4)), ("act", m.nn.ReLU()), ("last", m.nn.Linear(4, 1))])
        )
        net.append(m.nn.Tanh())
        return list(net.state_dict()), [n for n, _ in net.named_children()], len(net[1:]), list(net[:2].state_dict())

    assert keys(cx) == keys(torch)
    net = nn.Sequential(OrderedDict(a=nn.Linear(3, 2), b=nn.Tanh()))
    assert net(cx.asarray(X)).tolist() == net.a(cx.asarray(X)).tanh().tolist()
    with pytest.raises(SpecError, match="expected a module, got function"):
        nn.Sequential(nn.Linear(3, 2), cx.tanh)
    with pytest.raises(SpecError, match="without a dot"):
        nn.Sequential({"a.b": nn.Tanh()})


CONTAINERS: dict[str, Any] = {
    "insert": lambda m, net: net.insert(1, m.nn.Tanh()),
    "pop": lambda m, net: net.pop(1),
    "pop last": lambda m, net: net.pop(-1),
    "del": lambda m, net: net.__delitem__(0),
    "del slice": lambda m, net: net.__delitem__(slice(0, 2)),
    "set": lambda m, net: net.__setitem__(-1, m.nn.Linear(9, 9)),
    "extend": lambda m, net: net.extend([m.nn.Tanh(), m.nn.Linear(2, 2)]),
    "iadd": lambda m, net: net.__iadd__([m.nn.Linear(2, 2)]),
    "append": lambda m, net: net.append(m.nn.Linear(2, 2)),
}


@pytest.mark.parametrize("kind", ["Sequential", "ModuleList"])
@pytest.mark.parametrize("name", sorted(CONTAINERS))
def test_modules_in_a_row_have_the_verbs_of_a_list(kind: str, name: str) -> None:
    def run(m: Any) -> Any:
        parts = [m.nn.Linear(3, 4), m.nn.Linear(4, 5), m.nn.Linear(5, 6)]
        net = m.nn.Sequential(*parts) if kind == "Sequential" else m.nn.ModuleList(parts)
        if kind == "Sequential" and name == "iadd":
            net += m.nn.Sequential(m.nn.Linear(2, 2))
        else:
            CONTAINERS[name](m, net)
        return [(key, tuple(v.shape)) for key, v in net.state_dict().items()], [type(each).__name__ for each in net]

    assert run(cx) == run(torch)


def test_rows_of_modules_add_up() -> None:
    def run(m: Any) -> Any:
        one, other = ([m.nn.Linear(n, n)] for n in (2, 3))
        a = m.nn.Sequential(*one) + m.nn.Sequential(*other)
        b = m.nn.ModuleList(one) + m.nn.ModuleList(other)
        return type(a).__name__, list(a.state_dict()), type(b).__name__, list(b.state_dict())

    assert run(cx) == run(torch)
    with pytest.raises(IndexError, match="expected a place of 1 modules, got 3"):
        nn.ModuleList([nn.Tanh()])[3] = nn.Tanh()


def test_modules_and_parameters_by_name_have_the_verbs_of_a_dict() -> None:
    def run(m: Any) -> Any:
        made = m.nn.ModuleDict({"a": m.nn.Linear(1, 2)})
        made.update({"b": m.nn.Linear(2, 3), "c": m.nn.Tanh()})
        gone = made.pop("a")
        values = m.nn.ParameterDict({"w": m.ones(2), "k": m.ones(3)})
        values.update({"v": m.zeros(1)})
        return (
            *(list(made.state_dict()), type(gone).__name__, "c" in made, [k for k, _ in made.items()]),
            *(sorted(values.keys()), [tuple(v.shape) for _, v in sorted(values.items())], values.get("x") is None),
            *(tuple(values.pop("w").shape), sorted(values.state_dict()), len(values), len(list(values.values()))),
        )

    assert run(cx) == run(torch)


def test_parameters_in_a_list() -> None:
    def run(m: Any) -> Any:
        made = m.nn.ParameterList([m.ones(2), m.nn.Parameter(m.zeros(3))])
        made.extend([m.ones(4)])
        made += [m.ones(5)]
        made[0] = m.nn.Parameter(m.zeros(7))
        made.append(m.ones(1))
        return list(made.state_dict()), [tuple(p.shape) for p in made], len(made[1:3]), made[-1].requires_grad

    assert run(cx) == run(torch)


def test_gradients_are_checked_by_differences() -> None:
    class Wrong(cx.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g * ctx.saved_tensors[0]  # half of it

    x = cx.asarray(X.astype(np.float64)).requires_grad_()
    before = x.tolist()
    assert cx.autograd.gradcheck(lambda x, y: (x.sin() * y).sum(-1), (x, x.detach().clone()))
    assert cx.autograd.gradcheck(lambda x: x.prod(), x[:1, :].detach().requires_grad_())
    assert not cx.autograd.gradcheck(Wrong.apply, x, raise_exception=False) and x.tolist() == before
    with pytest.raises(GradientError, match="where differences say"):
        cx.autograd.gradcheck(Wrong.apply, (x,))
    with pytest.raises(GradientError, match="expected float64"):
        cx.autograd.gradcheck(lambda x: x.sum(), cx.ones(2).requires_grad_())
    assert cx.autograd.Variable(cx.ones(2), requires_grad=True).requires_grad


@pytest.mark.parametrize(
    ("one", "other", "close"),
    [
        (1.0, 1.0 + 1e-6, True),
        (1.0, 1.01, False),
        ([1.0, 2.0], [1.0, 2.00001], True),
        ({"a": [1.0]}, {"a": [1.1]}, False),
        ([1, 2], [1, 2], True),
        ([1, 2], [1.0, 2.0], False),
        ([1.0], [1.0, 2.0], False),
    ],
)
def test_results_are_close_as_in_pytorch(one: Any, other: Any, close: bool) -> None:
    def tensors(m: Any, value: Any) -> Any:
        return {k: m.tensor(v) for k, v in value.items()} if isinstance(value, dict) else m.tensor(value)

    for m in (cx, torch):
        if close:
            m.testing.assert_close(tensors(m, one), tensors(m, other))
        else:
            with pytest.raises(AssertionError):
                m.testing.assert_close(tensors(m, one), tensors(m, other))


def test_the_precision_of_products_has_pytorchs_names() -> None:
    assert cx.get_float32_matmul_precision() == "highest" == torch.get_float32_matmul_precision()
    try:
        cx.set_float32_matmul_precision("high")
        assert cx.numerics().name == "fast" and cx.get_float32_matmul_precision() == "high"
        with pytest.raises(SpecError, match="highest, high or medium"):
            cx.set_float32_matmul_precision("low")
    finally:
        cx.set_float32_matmul_precision("highest")
    assert cx.numerics().name == "exact"


@pytest.mark.parametrize("batch_first", [False, True])
def test_what_a_packed_sequence_holds(batch_first: bool) -> None:
    def run(m: Any) -> Any:
        rnn = m.nn.utils.rnn
        x = m.tensor(np.random.default_rng(0).normal(size=(4, 4, 2)).astype(np.float32).tolist(), requires_grad=True)
        packed = rnn.pack_padded_sequence(x, m.tensor([2, 4, 1, 4]), batch_first=batch_first, enforce_sorted=False)
        targets = rnn.pack_padded_sequence(m.ones((4, 4)), [4, 4, 2, 1], batch_first=batch_first)[0]
        (packed.data * packed[0]).sum().backward()
        loss = m.nn.functional.mse_loss(packed.data[:, 0], targets)  # of the steps that are there alone
        indices = packed.sorted_indices, packed.unsorted_indices
        data, sizes, *places = packed
        assert len(packed) == 4 and len(places) == 2 and data.shape == packed.data.shape and sizes.shape == (4,)
        return packed.data, packed.batch_sizes, packed[1], *indices, x.grad, targets, loss

    for ours, theirs in zip(run(cx), run(torch), strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), theirs.detach().numpy(), rtol=1e-6)
    rnn = cx.nn.utils.rnn
    packed = rnn.pack_sequence([cx.ones(3, 2), cx.ones(1, 2)])
    assert copy.copy(packed).lengths is packed.lengths
    for given in ((packed.data, packed.batch_sizes), (packed.data * 2.0, packed.lengths, True)):
        with pytest.raises(ShapeError, match="expected padded rows and as many lengths, got .* make it with pack_"):
            rnn.PackedSequence(*given)  # was taken for padded rows
    with pytest.raises(
        GraphError, match="a graph does not know how long its rows are; compute the loss of padded rows"
    ):
        cx.compile(lambda x, n: cx.nn.utils.rnn.pack_padded_sequence(x, n).data)(cx.ones(3, 2, 1), cx.tensor([3, 1]))

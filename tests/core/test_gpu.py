"""The device `cuda`, on a machine that has one: every op against NumPy's definition, and training against the CPU's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import device as devices
from cyxcore.device import Call
from cyxcore.errors import DataError, GraphError, SpecError
from cyxcore.graphlearner import initial_weights
from cyxcore.objectives import training_step
from cyxcore.plan import Plan
from cyxcore.spec import OptimizerSpec, TrainingSpec
from cyxcore.training import Trainer
from tests.core.kernelcases import CASES, Case
from tests.core.test_training import Rows

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]
Array = np.ndarray[Any, Any]

DIGITS = Path(__file__).parents[2] / "examples" / "digits.csv"
# Beyond what the CPU's kernels are held to: sums in another order, CUDA's own transcendental functions (<= 2 ULP)
SLACK = 4.0
# pow: CUDA states 4 ULP; NumPy's own float32 power is one more away
ROUNDED = {"float32": 1e-6, "float64": 2e-15}


def on_device(case: Case) -> Array:
    cuda = devices.backend("cuda")
    expected = case.expected()
    out = cuda.put(np.full(expected.shape, 77, expected.dtype))
    cuda.call(case.op, out, [cuda.put(x) for x in case.inputs], case.attrs)
    return devices.host(out)


def assert_close(case: Case, got: Array) -> None:
    expected = case.expected()
    if case.tolerance == 0.0:
        np.testing.assert_array_equal(got, expected)
        return
    largest = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    tolerance = max(case.tolerance * SLACK, ROUNDED[expected.dtype.name])
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("op", sorted(CASES))
def test_every_op_agrees_with_its_definition(op: str) -> None:
    for case in CASES[op]:
        try:
            assert_close(case, on_device(case))
        except Exception as error:
            shapes = [(x.shape, x.dtype.name) for x in case.inputs]
            raise AssertionError(f"{op} {shapes} {case.attrs}: {error}") from error


def test_host_arrays_are_copied_there_and_back() -> None:
    x, out = np.arange(5, dtype=np.float32), np.zeros(5, np.float32)
    devices.backend("cuda").call("add", out, [x, x], {})
    assert out.tolist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize(
    ("op", "inputs", "attrs"),
    [
        ("take", [np.zeros((2, 3), np.float32), np.array([0, 2])], {"axis": 0}),
        ("cross_entropy", [np.zeros((2, 3), np.float32), np.array([0, 3])], {}),
        ("one_hot", [np.array([5])], {"depth": 3}),
    ],
)
def test_an_index_out_of_range_is_an_error_and_the_next_call_works(op: str, inputs: list[Array], attrs: Any) -> None:
    cuda = devices.backend("cuda")
    shape = {"take": (2, 3), "cross_entropy": (2,), "one_hot": (1, 3)}[op]
    out = cuda.empty(shape, "float32")
    with pytest.raises(DataError, match=op):
        cuda.call(op, out, [cuda.put(x) for x in inputs], attrs)
    good = [inputs[0] % 2, *(x % 2 for x in inputs[1:])]
    cuda.call(op, out, [cuda.put(x) for x in good], attrs)


def test_tensors_move_and_mix_only_with_scalars() -> None:
    here = cx.tensor([1.0, 2.0, 3.0])
    there = here.to("cuda")
    assert (here.device, there.device, (there * 2).device) == ("cpu", "cuda", "cuda")
    assert (there * 2 + 1).tolist() == [3.0, 5.0, 7.0]
    assert there.to("cpu").tolist() == [1.0, 2.0, 3.0]
    assert cx.tensor([1.0], device="cuda").device == "cuda"
    assert there[1:].tolist() == [2.0, 3.0] and there[[2, -3]].tolist() == [3.0, 1.0]
    assert "device=cuda" in repr(there)
    with pytest.raises(SpecError, match=r"one device, got cpu, cuda; move them with \.to"):
        here + there


def test_gradients_agree_with_the_cpu() -> None:
    def gradients(device: str) -> list[Array]:
        cx.manual_seed(3)
        model = cx.nn.Sequential(
            cx.nn.Conv2d(1, 4, 3, padding=1), cx.nn.BatchNorm2d(4), cx.nn.ReLU(), cx.nn.MaxPool2d(2),
            cx.nn.Flatten(), cx.nn.Linear(64, 16), cx.nn.LayerNorm(16), cx.nn.GELU(), cx.nn.Linear(16, 10),
        ).to(device)  # fmt: skip
        x = cx.tensor(np.random.default_rng(1).normal(size=(32, 1, 8, 8)).astype(np.float32), device=device)
        y = cx.tensor(np.arange(32) % 10, device=device)
        loss = cx.nn.CrossEntropyLoss()(model(x), y)
        loss.backward()
        return [p.grad.numpy() for p in model.parameters()]

    for got, expected in zip(gradients("cuda"), gradients("cpu"), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * max(np.abs(expected).max(), 1e-3))


def test_dropout_draws_what_the_cpu_draws() -> None:
    def dropped(device: str) -> Array:
        cx.manual_seed(9)
        return cx.nn.Dropout(0.5)(cx.ones(1000, device=device)).numpy()

    np.testing.assert_array_equal(dropped("cuda"), dropped("cpu"))


def mlp() -> cx.Graph:
    layers = [{"kind": "Linear", "out_features": 64}, {"kind": "ReLU"}, {"kind": "Dropout", "p": 0.1}]
    return cx.build(_spec([64], [*layers, {"kind": "Linear", "out_features": 10}]))


def cnn() -> cx.Graph:
    layers: list[dict[str, Any]] = [
        {"kind": "Reshape", "shape": [1, 8, 8]},
        {"kind": "Conv2d", "out_channels": 16, "kernel_size": 3, "padding": 1},
        {"kind": "BatchNorm2d"},
        {"kind": "ReLU"},
        {"kind": "MaxPool2d", "kernel_size": 2},
        {"kind": "Conv2d", "out_channels": 32, "kernel_size": 3, "padding": 1},
        {"kind": "ReLU"},
        {"kind": "Flatten"},
        {"kind": "Linear", "out_features": 10},
    ]
    return cx.build(_spec([64], layers))


def _spec(shape: list[int], layers: list[dict[str, Any]]) -> Any:
    from cyxcore.spec import ModelSpec

    return ModelSpec(input=shape, layers=layers)


MODELS = {"mlp": mlp, "cnn": cnn}


def digits() -> Rows:
    table = np.loadtxt(DIGITS, delimiter=",", skiprows=1, dtype=np.float32)
    order = np.random.default_rng(5).permutation(len(table))
    x, y = table[order, :-1] / 16, table[order, -1].astype(np.int64)
    return Rows(x[:1437], y[:1437], x[1437:], y[1437:])


def trained(model: str, device: str, epochs: int = 15) -> Trainer:
    spec = TrainingSpec(epochs=epochs, batch_size=64, optimizer=OptimizerSpec(name="adam", learning_rate=0.003))
    trainer = Trainer.of_job(MODELS[model](), digits(), spec, device=device)
    for _ in trainer.run():
        pass
    return trainer


@pytest.mark.parametrize("model", MODELS)
def test_training_reaches_the_accuracy_of_the_cpu(model: str) -> None:
    def accuracy(device: str) -> float:
        return max(metrics.validation_accuracy or 0.0 for metrics in trained(model, device).history)

    on_cuda, on_cpu = accuracy("cuda"), accuracy("cpu")
    assert on_cpu > 0.94
    assert on_cuda >= on_cpu - 0.005


@pytest.mark.parametrize("model", MODELS)
def test_training_twice_gives_the_same_bits(model: str) -> None:
    first, second = trained(model, "cuda", epochs=2), trained(model, "cuda", epochs=2)
    assert all(first.weights[name].tobytes() == second.weights[name].tobytes() for name in first.weights)


def test_training_goes_on_from_a_checkpoint_to_the_bit(tmp_path: Path) -> None:
    spec = TrainingSpec(epochs=2, batch_size=128, optimizer=OptimizerSpec(name="adam", learning_rate=0.003))
    straight = Trainer.of_job(mlp(), digits(), spec, device="cuda")
    for place, _ in enumerate(straight.run()):
        if place == 7:
            straight.checkpoint(tmp_path / "c")
    resumed = Trainer.of_job(mlp(), digits(), spec, device="cuda", resume=tmp_path / "c")
    for _ in resumed.run():
        pass
    assert all(straight.weights[name].tobytes() == resumed.weights[name].tobytes() for name in straight.weights)
    with pytest.raises(cx.errors.CheckpointError, match="numerics: expected cuda/1|numerics: expected cyx-exact/1"):
        Trainer.of_job(mlp(), digits(), spec, device="cpu", resume=tmp_path / "c")


def one_step(name: str) -> TrainingSpec:
    return TrainingSpec(optimizer=OptimizerSpec(name=name, learning_rate=0.01, weight_decay=0.01))


def step_plan(device: str, name: str = "adamw") -> tuple[Plan, dict[str, Any]]:
    graph = training_step(cnn(), 32, one_step(name))
    state = {key: devices.put(array, device) for key, array in initial_weights(graph, 7).items()}
    plan = Plan(graph, state, device)
    rng = np.random.default_rng(2)
    plan.inputs["x"][...] = rng.normal(size=plan.inputs["x"].shape)
    plan.inputs["target"][...] = np.arange(32) % 10
    plan.inputs["learning_rate"][...] = 0.01
    return plan, state


def steps(plan: Plan, count: int) -> list[float]:
    losses = []
    for number in range(1, count + 1):
        plan.inputs["step"][...] = number
        plan.key[:] = 11, number
        plan.run()
        losses.append(float(plan.outputs[0]))
    return losses


def test_a_replayed_graph_gives_the_bits_of_direct_launches() -> None:
    replayed, state = step_plan("cuda")
    losses = steps(replayed, 6)
    program = replayed.run.__self__
    assert program.graph is not None
    direct, other = step_plan("cuda")
    program = direct.run.__self__
    plain = []
    for number in range(1, 7):
        direct.inputs["step"][...] = number
        direct.key[:] = 11, number
        with devices.backend("cuda").stream:
            program.direct()
        devices.backend("cuda").stream.synchronize()
        plain.append(float(direct.outputs[0]))
    assert losses == plain
    for name in state:
        assert devices.host(state[name]).tobytes() == devices.host(other[name]).tobytes()


def test_chains_give_the_bits_of_single_calls() -> None:
    fused, state = step_plan("cuda")
    single, other = step_plan("cuda")
    cuda = devices.backend("cuda")
    for number in range(1, 4):
        steps(fused, 1) if number == 1 else fused.run()
        single.inputs["step"][...] = 1
        single.key[:] = 11, 1
        for there, here in single._sends:
            there.set(here)
        for call in single.calls:
            cuda.call(call.op, call.out, call.inputs, call.attrs)
    assert len(fused.program.__self__.launches) < len(fused.calls)
    for name in state:
        assert devices.host(state[name]).tobytes() == devices.host(other[name]).tobytes()


def test_a_compiled_step_agrees_with_the_cpu() -> None:
    (there, _), (here, _) = step_plan("cuda"), step_plan("cpu")
    np.testing.assert_allclose(steps(there, 10), steps(here, 10), rtol=2e-3)


def test_a_plan_refuses_to_update_what_the_host_holds() -> None:
    graph = training_step(mlp(), 4, one_step("sgd"))
    with pytest.raises(GraphError, match=r"its array is the host's.*give the plan cyxcore\.device\.put"):
        Plan(graph, initial_weights(graph, 1), "cuda")


def test_compile_runs_where_the_inputs_are() -> None:
    model = cx.nn.Sequential(cx.nn.Linear(8, 4), cx.nn.Tanh()).eval()
    x = cx.randn(5, 8)
    expected = model(x).numpy()
    model.to("cuda")
    compiled = cx.compile(model)
    for _ in range(3):
        got = compiled(x.to("cuda"))
    assert got.device == "cuda"
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-6)


def test_a_compiled_step_is_the_plain_one_to_the_last_bit() -> None:
    def trained(compiled: bool) -> tuple[list[float], list[Array]]:
        cx.manual_seed(4)
        model = cx.nn.Sequential(cx.nn.Linear(64, 32), cx.nn.ReLU(), cx.nn.Linear(32, 10)).to("cuda")
        optimizer = cx.optim.AdamW(model.parameters(), lr=0.01)

        def step(x: Any, y: Any) -> Any:
            loss = cx.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        run = cx.compile(step) if compiled else step
        x = cx.tensor(np.random.default_rng(1).normal(size=(16, 64)).astype(np.float32), device="cuda")
        y = cx.tensor(np.arange(16) % 10, device="cuda")
        losses = [run(x, y) for _ in range(5)]
        assert all(loss.device == "cuda" for loss in losses)
        return [loss.item() for loss in losses], list(model.state_dict().values())

    (losses, weights), (expected, plain) = trained(True), trained(False)
    assert losses == expected
    assert all(a.tobytes() == b.tobytes() for a, b in zip(weights, plain, strict=True))


def test_tf32_is_a_class_of_its_own() -> None:
    a, b = (np.random.default_rng(seed).normal(size=(256, 256)).astype(np.float32) for seed in (1, 2))
    exact = a.astype(np.float64) @ b
    errors = {}
    for name in devices.OWN_MEMORY:
        out = np.empty((256, 256), np.float32)
        devices.backend(name).call("matmul", out, [a, b], {"transpose_a": False, "transpose_b": False})
        errors[name] = np.abs(out - exact).max()
    assert errors["cuda"] < 1e-4 < errors["cuda-tf32"] < 0.2
    assert devices.NUMERICS["cuda"] != devices.NUMERICS["cuda-tf32"]


def test_a_model_saved_after_training_predicts_the_same_on_the_cpu(tmp_path: Path) -> None:
    trainer = trained("mlp", "cuda", epochs=1)
    cx.save_model(tmp_path / "m.safetensors", trainer.learner.graph, trainer.weights)
    x = digits().x_val
    on_cuda, on_cpu = (cx.load_model(tmp_path / "m.safetensors", device=name).predict(x) for name in ("cuda", "cpu"))
    np.testing.assert_allclose(on_cuda, on_cpu, rtol=0, atol=1e-5)


def test_a_program_keeps_order_where_memory_is_reused() -> None:
    """b takes a's memory while a is still read, at other cells: no chain may hold both."""
    cuda = devices.backend("cuda")
    memory = cuda.memory(4096)
    a = cuda.view(memory, 0, (64,), "float32")
    shifted = cuda.view(memory, 128, (64,), "float32")
    a[...] = devices.put(np.arange(64, dtype=np.float32), "cuda")
    run = cuda.program([Call("add", shifted, (a, a), {}), Call("neg", shifted, (shifted,), {})], results=[shifted])
    run()
    assert shifted.get().tolist() == [-2.0 * n for n in range(64)]


# products by cuBLASLt -------------------------------------------------------------------------------


@pytest.fixture
def by_lt(gpu: None) -> Any:
    from cyxcore.kernels.gpu.cuda import Cuda

    made = Cuda(lt=True)
    assert made.lt is not None, "cuBLASLt does not work here; the warning says why"
    return made


def test_products_by_cublaslt_agree_with_their_definition(by_lt: Any) -> None:
    for case in CASES["matmul"]:
        out = by_lt.put(np.full(case.expected().shape, 77, case.expected().dtype))
        by_lt.call(case.op, out, [by_lt.put(x) for x in case.inputs], case.attrs)
        assert_close(case, devices.host(out))


@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
def test_a_product_with_its_bias_and_relu_has_the_bits_of_the_three(by_lt: Any, rows: int) -> None:
    rng = np.random.default_rng(rows)
    x, w, b = (by_lt.put(rng.normal(size=s).astype(np.float32)) for s in ((rows, 96), (160, 96), (160,)))
    memory = by_lt.memory(3 * 4 * rows * 160)
    outs = [by_lt.view(memory, 4 * rows * 160 * place, (rows, 160), "float32") for place in range(3)]
    calls = [
        Call("matmul", outs[0], (x, w), {"transpose_a": False, "transpose_b": True}),
        Call("add", outs[1], (outs[0], b), {}),
        Call("relu", outs[2], (outs[1],), {}),
    ]
    run = by_lt.program(calls, scratch=memory, results=[outs[2]])
    found = []
    for _ in range(3):  # launched directly, recorded, replayed
        outs[2][...] = 77
        run()
        found.append(devices.host(outs[2]))
    for call in calls:
        by_lt.call(call.op, call.out, call.inputs, call.attrs)
    for one in found:
        np.testing.assert_array_equal(one, devices.host(outs[2]))


def test_cuda_says_what_the_card_is_and_what_of_it_is_used() -> None:
    before = cx.cuda.memory_allocated()
    held = cx.zeros(2**20, device="cuda")
    assert cx.cuda.memory_allocated() >= before + held.nbytes
    cx.cuda.synchronize()
    free_bytes, all_bytes = cx.cuda.mem_get_info()
    assert 0 < free_bytes < all_bytes and cx.cuda.memory_reserved() >= cx.cuda.memory_allocated()
    assert cx.cuda.get_device_name() and cx.cuda.get_device_capability() >= (8, 0)
    cx.cuda.empty_cache()
    assert held.sum().item() == 0

"""cx.save and cx.load: checkpoints and state dicts come back as they were, and nothing that can run code is read."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore.errors import FormatError, SpecError


def test_a_state_dict_is_a_plain_safetensors_file(tmp_path: Path) -> None:
    peer = pytest.importorskip("safetensors.numpy")
    model = cx.nn.Sequential(cx.nn.Linear(3, 2), cx.nn.BatchNorm1d(2))
    cx.save(model.state_dict(), tmp_path / "model.safetensors")
    assert sorted(peer.load_file(tmp_path / "model.safetensors")) == sorted(model.state_dict())
    other = cx.nn.Sequential(cx.nn.Linear(3, 2), cx.nn.BatchNorm1d(2))
    other.load_state_dict(cx.load(tmp_path / "model.safetensors"))
    for name, value in model.state_dict().items():
        assert (other.state_dict()[name] == value).all()


def test_a_checkpoint_goes_on_where_it_was(tmp_path: Path) -> None:
    def made() -> tuple[Any, Any, Any]:
        cx.manual_seed(1)
        model = cx.nn.Linear(3, 2)
        optimizer = cx.optim.AdamW([{"params": [model.weight]}, {"params": [model.bias], "lr": 0.5}], lr=0.1)
        return model, optimizer, cx.lr_scheduler.CosineAnnealingLR(optimizer, T_max=9)

    def step(model: Any, optimizer: Any, schedule: Any) -> float:
        loss = model(cx.ones(4, 3)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        return float(loss.item())

    first = made()
    step(*first)
    names = ("model", "optimizer", "schedule")
    cx.save({**{n: part.state_dict() for n, part in zip(names, first, strict=True)}, "epoch": 3}, tmp_path / "c.pt")
    again = made()
    found = cx.load(tmp_path / "c.pt", map_location="cpu", weights_only=True)
    for name, part in zip(names, again, strict=True):
        part.load_state_dict(found[name])
    assert found["epoch"] == 3
    assert [step(*first) for _ in range(3)] == [step(*again) for _ in range(3)]


def test_everything_that_may_be_in_a_checkpoint_comes_back() -> None:
    shared = cx.arange(3)
    given = {
        "dtypes": [cx.ones(2, dtype=dtype) for dtype in (*cx.dtype.DTYPES,)],
        "numbers": (1, 2.5, float("-inf"), True, None, "ü", 2**70, np.float64(0.1), np.int64(4)),
        3: {(1, "a"): shared, "again": shared},
        "a.b": cx.zeros(1),
        "a": {"b": cx.ones(1)},
        "empty": [{}, [], (), cx.zeros((0, 2)), cx.tensor(1.5)],
    }
    file = io.BytesIO()
    cx.save(given, file)
    file.seek(0)
    found = cx.load(file)
    assert list(found) == list(given) and found["numbers"] == given["numbers"]
    for one, other in zip(found["dtypes"], given["dtypes"], strict=True):
        assert one.dtype == other.dtype and (one == other).all().item()
    assert found[3]["again"] is found[3][(1, "a")] and found[3]["again"].tolist() == [0, 1, 2]
    assert (found["a.b"].item(), found["a"]["b"].item()) == (0.0, 1.0)
    assert found["empty"][:3] == [{}, [], ()] and found["empty"][3].shape == (0, 2)
    assert found["empty"][4].shape == ()


@pytest.mark.parametrize("alone", [cx.tensor([1.0]), 3, [], "text", None])
def test_what_is_no_dict_comes_back_too(alone: Any) -> None:
    file = io.BytesIO()
    cx.save(alone, file)
    file.seek(0)
    found = cx.load(file)
    assert (found.tolist() if isinstance(found, cx.Tensor) else found) == (
        alone.tolist() if isinstance(alone, cx.Tensor) else alone
    )


def test_bfloat16_weights_of_others_load() -> None:
    model = cx.nn.Linear(2, 2)
    file = io.BytesIO()
    cx.save({name: cx.tensor(value).astype("bfloat16") for name, value in model.state_dict().items()}, file)
    file.seek(0)
    found = cx.load(file)
    assert found["weight"].dtype == "bfloat16"
    other = cx.nn.Linear(2, 2)
    other.load_state_dict(found)
    np.testing.assert_allclose(other.weight.tolist(), model.weight.tolist(), rtol=2**-8)
    half = cx.nn.Linear(2, 2).to("bfloat16")
    half.load_state_dict(model.state_dict())
    assert half.weight.tolist() == found["weight"].tolist()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (cx.nn.Linear(1, 1), r"got a Linear at the top; save its state_dict\(\)"),
        ({"model": {"layer": object()}}, "got a object at model.layer"),
        ({cx.nn.ReLU(): 1}, "a key of the dict"),
        ([1, {2}], "got a set at 1"),
    ],
)
def test_other_objects_are_refused_by_their_place(value: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=said):
        cx.save(value, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [pickle.dumps({"a": 1}), pickle.dumps([1], protocol=2), b"PK\x03\x04rest"])
def test_a_pickle_is_refused_with_a_pointer(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(data)
    with pytest.raises(FormatError, match=r"model.pt: .* got a pickle.*safetensors.torch.save_file"):
        cx.load(tmp_path / "model.pt")


@pytest.mark.parametrize(
    "outline", ['{"tensor":"b"}', '{"set":[]}', "[1]", "{}", '{"dict":[1]}', "nonsense", '{"float":"x"}', "[" * 9999]
)
def test_a_damaged_outline_is_one_error(outline: str, tmp_path: Path) -> None:
    from cyxcore import safetensors

    safetensors.save(tmp_path / "f", {"a": np.zeros(1, np.float32)}, {"cyx.outline": outline})
    with pytest.raises(FormatError, match="the outline of what was saved is damaged"):
        cx.load(tmp_path / "f")


@pytest.mark.parametrize("outline", ['{"complex":"a"}', '{"float":1' + "0" * 400 + "}"])
def test_a_damaged_number_is_one_error(outline: str, tmp_path: Path) -> None:
    from cyxcore import safetensors

    safetensors.save(tmp_path / "f", {"a": np.zeros(1, np.int64)}, {"cyx.outline": outline})
    with pytest.raises(FormatError, match="the outline of what was saved is damaged"):
        cx.load(tmp_path / "f")


def test_what_no_file_can_hold_is_one_error(tmp_path: Path) -> None:
    round_and_round: list[Any] = []
    round_and_round.append(round_and_round)
    for value, said in (
        (round_and_round, "hold themselves"),
        ({"\ud800": cx.zeros(1)}, "valid Unicode"),
        ({cx.zeros(1): 1}, "a Tensor at a key"),
    ):
        with pytest.raises(SpecError, match=said):
            cx.save(value, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file", [io.StringIO(), 5])
def test_what_is_no_binary_file_is_refused(file: Any) -> None:
    with pytest.raises(SpecError, match="load: expected a path or a file opened in binary mode"):
        cx.load(file)
    with pytest.raises(SpecError, match="save: expected a path or a file opened in binary mode"):
        cx.save({}, file)


def test_a_numpy_bool_stays_one(tmp_path: Path) -> None:
    cx.save({"done": np.bool_(True)}, tmp_path / "x.safetensors")
    assert cx.load(tmp_path / "x.safetensors")["done"] is True


def test_a_header_that_is_as_long_as_a_pickle_begins_is_no_pickle(tmp_path: Path) -> None:
    state = {"a" * 540: cx.zeros(2)}
    cx.save(state, tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors").read_bytes()[:2] == b"\x80\x02"
    assert cx.load(tmp_path / "x.safetensors").keys() == state.keys()


@pytest.mark.parametrize(
    "state", [{"w": cx.zeros(2)}, {"model": {"w": cx.zeros(2)}, "epoch": 3}], ids=["plain", "nested"]
)
def test_a_file_names_the_numeric_class_it_was_saved_in(state: Any, tmp_path: Path) -> None:
    with cx.set_numerics("fast"):
        cx.save(state, tmp_path / "fast.safetensors")
    with cx.autocast("cpu", dtype="float16"):
        cx.save(state, tmp_path / "half.safetensors")
    cx.save(state, tmp_path / "exact.safetensors")
    found = [cx.describe_model(tmp_path / f"{name}.safetensors")["numerics"] for name in ("fast", "half", "exact")]
    assert found == ["cyx-fast/1", "cyx-exact/1+float16", "cyx-exact/1"]

"""torch.cuda's words: of a GPU that there is not, and of none."""

from types import SimpleNamespace
from typing import Any

import pytest

import cyxcore as cx
from cyxcore.errors import CyxError, SpecError


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of CuPy, on a machine with a GPU."""
    asked: list[str] = []

    def asks(name: str, answer: Any = None) -> Any:
        return lambda *given: asked.append(name) or answer  # type: ignore[func-returns-value]

    about = {"name": b"card", "major": 9, "minor": 0}
    runtime = SimpleNamespace(
        getDeviceProperties=asks("properties", about),
        memGetInfo=asks("memGetInfo", (3, 8)),
        deviceSynchronize=asks("deviceSynchronize"),
    )
    pool = SimpleNamespace(
        used_bytes=asks("used_bytes", 5), total_bytes=asks("total_bytes", 7), free_all_blocks=asks("free_all_blocks")
    )
    cupy = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime), get_default_memory_pool=lambda: pool)
    monkeypatch.setattr("cyxcore.cuda.backend", lambda name: SimpleNamespace(xp=cupy))
    monkeypatch.setattr("cyxcore.cuda.missing", lambda name: "")
    return asked


def test_a_gpu_says_what_it_is_and_what_of_it_is_used(said: list[str]) -> None:
    assert (cx.cuda.is_available(), cx.cuda.device_count(), cx.cuda.current_device()) == (True, 1, 0)
    assert (cx.cuda.get_device_name(), cx.cuda.get_device_capability(0)) == ("card", (9, 0))
    assert cx.cuda.mem_get_info() == (3, 8)
    assert (cx.cuda.memory_allocated(), cx.cuda.memory_reserved("cuda")) == (5, 7)
    said.clear()
    cx.cuda.synchronize()
    cx.cuda.empty_cache()
    assert said == ["deviceSynchronize", "free_all_blocks"]


@pytest.mark.usefixtures("said")
@pytest.mark.parametrize("device", [0, "cuda", "cuda:0", cx.device("cuda")])
def test_the_one_gpu_can_be_chosen(device: object) -> None:
    cx.cuda.set_device(device)
    assert cx.cuda.get_device_name(device) == "card"


@pytest.mark.usefixtures("said")
@pytest.mark.parametrize("word", ["set_device", "get_device_name", "memory_allocated", "synchronize"])
def test_another_gpu_is_an_error_that_says_how_it_is_chosen(word: str) -> None:
    """It was passed over in silence: a program that wanted its second GPU trained on the first."""
    with pytest.raises(SpecError, match=r"number 0, got 1; choose another one with CUDA_VISIBLE_DEVICES"):
        getattr(cx.cuda, word)(1)


def test_without_a_gpu_only_what_needs_one_is_an_error() -> None:
    if cx.cuda.is_available():
        pytest.skip("there is a GPU")
    cx.cuda.synchronize()
    cx.cuda.empty_cache()
    for word in ("current_device", "get_device_name", "mem_get_info", "memory_allocated"):
        with pytest.raises(CyxError, match="cuda"):
            getattr(cx.cuda, word)()

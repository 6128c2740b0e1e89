"""Spoilt model files: a short round of each format, and that it would see what it looks for."""

from pathlib import Path
from typing import Any

import pytest

import cyxcore as cx
from tests.hostile import models


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", models.KINDS)
def test_five_hundred_spoilt_files_load_or_are_refused(name: str) -> None:
    outcomes, violations = models.campaign(name, 500, seed=2)
    assert violations == []
    assert sum(outcomes.values()) == 500 and outcomes["refused"] > 100 and outcomes["run"] + outcomes["loaded"] > 0


@pytest.mark.parametrize("name", models.KINDS)
def test_the_files_that_are_spoilt_were_good(name: str, tmp_path: Path) -> None:
    """What never loads has nothing to lose."""
    path = tmp_path / f"m{models.KINDS[name].suffix}"
    outcomes = []
    for data in models.KINDS[name].bases()[:8]:
        path.write_bytes(data)
        outcomes.append(models.opened(path))
    assert outcomes[:4] == ["run"] * len(outcomes[:4])


def test_a_file_is_made_from_the_seed_and_its_number_alone() -> None:
    kind = models.KINDS["cyxmodel2"]
    bases = kind.bases()
    assert models.spoilt(kind, bases, 1, 7) == models.spoilt(kind, bases, 1, 7)
    assert models.spoilt(kind, bases, 1, 7) != models.spoilt(kind, bases, 2, 7)


@pytest.mark.parametrize("error", [ValueError("x"), MemoryError(), TimeoutError(), KeyError("x")])
def test_any_other_error_than_a_refusal_is_seen(error: Exception, tmp_path: Path, monkeypatch: Any) -> None:
    def broken(path: Path) -> None:
        raise error

    monkeypatch.setattr(cx, "load_model", broken)
    assert models.opened(tmp_path / "m.onnx").startswith("WRONG")

"""The API reference is made of docstrings: every public name has one."""

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("reference", Path(__file__).parents[2] / "docs" / "reference.py")
assert SPEC is not None and SPEC.loader is not None
reference = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(reference)


def test_every_public_name_has_a_docstring() -> None:
    without = [f"{module}.{name}" for module, name, _, text in reference.documented() if not text]
    assert without == []


def test_the_reference_shows_signatures_and_docstrings() -> None:
    page = reference.page()
    assert "### class `cx.Trainer`" in page and "optimizer: cyxcore.optimizer.Optimizer" in page
    assert "### `cx.functional.softmax`" in page and "### class `cx.nn.Linear`" in page


def test_one_module_alone_is_shown() -> None:
    page = reference.page("cx.metrics")
    assert "### class `cx.metrics.Accuracy`" in page and "`cx.nn." not in page


def test_a_module_that_is_none_is_told_which_there_are() -> None:
    with pytest.raises(SystemExit, match="expected one of cx, .*cx.nn.*, got 'cx.nope'"):
        reference.page("cx.nope")

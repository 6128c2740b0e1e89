"""Scaling, missing values and categories: of the training rows alone, undone exactly, travelling with the model."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore.errors import DataError, FormatError, ShapeError, SpecError
from cyxcore.preprocessing import (
    Imputer,
    LogTransform,
    MinMaxScaler,
    OneHotEncoder,
    Pipeline,
    RobustScaler,
    StandardScaler,
    categories_of,
    encode,
    load,
)

X = np.random.default_rng(2).normal(3.0, 5.0, (200, 4)).astype(np.float32)
X[:, 3] = 7.0  # a feature that never changes


def test_standard_rows_have_mean_0_and_deviation_1() -> None:
    out = StandardScaler().fit(X)(X)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(out.std(0), [1, 1, 1, 0], atol=1e-5)


def test_the_least_is_0_and_the_greatest_1() -> None:
    out = MinMaxScaler().fit(X)(X)
    assert out.min(0).tolist() == [0, 0, 0, 0] and out.max(0).tolist() == [1, 1, 1, 0]


def test_an_outlier_hardly_moves_robust_rows() -> None:
    wild = X.copy()
    wild[0, 0] = 1e6
    calm = RobustScaler().fit(X)(X[1:])
    np.testing.assert_allclose(RobustScaler().fit(wild)(X[1:]), calm, atol=0.05)
    assert np.abs(np.median(RobustScaler().fit(X)(X), 0)).max() < 1e-6


def test_statistics_come_from_the_rows_that_were_fitted_alone() -> None:
    scaler = StandardScaler()
    fitted = scaler.fit(X[:100])
    assert scaler.shift is None and fitted.shift == X[:100].astype(np.float64).mean(0).tolist()
    assert (fitted(X)[100:] == fitted(X[100:])).all()


@pytest.mark.parametrize("step", [StandardScaler(), MinMaxScaler(), RobustScaler(), LogTransform()])
def test_a_step_is_undone(step: Any) -> None:
    fitted = step.fit(X)
    np.testing.assert_allclose(fitted.inverse(fitted(X)), X, rtol=2e-5, atol=2e-5)


def test_logarithms_keep_the_digits_of_small_values() -> None:
    x = np.array([[0.0], [1e-12], [-3e-5], [0.1], [-7.0], [1e30]], np.float32)
    wanted = np.sign(x) * np.log1p(np.abs(x.astype(np.float64)))
    np.testing.assert_allclose(LogTransform().fit(x)(x), wanted, rtol=3e-7)


def test_missing_values_are_filled_in() -> None:
    rows = np.array([[1.0, np.nan], [1.0, 4.0], [4.0, 8.0], [np.nan, 9.0]])
    filled = {
        strategy: Imputer(strategy, fill_value=-1.0).fit(rows)(rows)  # type: ignore[arg-type]
        for strategy in ("mean", "median", "most_frequent", "constant")
    }
    assert [filled[name][3, 0] for name in filled] == [2.0, 1.0, 1.0, -1.0]
    assert [filled[name][0, 1] for name in filled] == [7.0, 8.0, 4.0, -1.0]
    assert all((out[1:3] == rows[1:3]).all() for out in filled.values())


def test_categories_become_ones_and_zeros_and_back() -> None:
    rows = np.array([[1, 10], [3, 20], [1, 20]])
    encoder = OneHotEncoder().fit(rows)
    assert encoder(rows).tolist() == [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 0, 1]]
    assert (encoder.inverse(encoder(rows)) == rows).all()
    assert OneHotEncoder("ignore").fit(rows)(np.array([[2, 20]])).tolist() == [[0, 0, 0, 1]]
    with pytest.raises(DataError, match="row 1, column 0: expected one of 1, 3, got 2; fit it on more rows"):
        encoder(np.array([[1, 10], [2, 10]]))


def test_a_category_is_the_same_in_any_precision() -> None:
    encoder = OneHotEncoder().fit(np.array([0.1, 0.2]))
    assert encoder(np.array([0.1], np.float32)).tolist() == [[1, 0]]


def test_texts_are_numbered() -> None:
    known = categories_of(["b", "a", "b"])
    assert known == ["a", "b"] and encode(["b", "a"], known).tolist() == [1, 0]
    with pytest.raises(DataError, match="row 1: expected one of 'a', 'b', got 'c'"):
        encode(["a", "c"], known)


def pipeline() -> Pipeline:
    rows = X.copy()
    rows[::7, 1] = np.nan
    return Pipeline([Imputer("median"), LogTransform(), StandardScaler()]).fit(rows)


def test_a_pipeline_fits_each_step_on_what_those_before_made() -> None:
    np.testing.assert_allclose(pipeline()(X).mean(0)[[0, 2]], 0, atol=1e-5)


def test_a_pipeline_is_saved_and_read_to_the_bit(tmp_path: Path) -> None:
    first = pipeline()
    first.save(tmp_path / "prepare.json")
    again = load(tmp_path / "prepare.json")
    assert again.steps == first.steps and (again(X) == first(X)).all()


def test_a_pipeline_is_a_layer_that_travels_with_the_model(tmp_path: Path) -> None:
    prepare, raw = pipeline(), X.copy()
    raw[0, 1] = np.nan
    model = cx.nn.Sequential(prepare.module(), cx.nn.Linear(4, 2))
    expected = model(cx.tensor(raw)).numpy()
    assert (expected == model[1](cx.tensor(prepare(raw))).numpy()).all()
    assert list(model.state_dict())[2:] == ["0.0_fill", "0.2_shift", "0.2_scale"]
    assert not [p for name, p in model.named_parameters() if name.startswith("0.")]
    graph, weights = cx.trace(model, input_shape=(4,))
    cx.save_model(tmp_path / "model.safetensors", graph, weights)
    read = cx.load_model(tmp_path / "model.safetensors")
    assert (np.asarray(read.predict(raw)) == expected).all()


def test_images_are_scaled_pixel_by_pixel_and_tensors_stay_tensors() -> None:
    images = cx.tensor(np.random.default_rng(0).random((5, 1, 3, 3)))
    out = StandardScaler().fit(images)(images)
    assert isinstance(out, cx.Tensor) and out.shape == (5, 1, 3, 3)


@pytest.mark.parametrize(
    "make, kind, said",
    [
        (lambda: StandardScaler()(X), SpecError, r"StandardScaler: it has no statistics yet; call fit\(x_train\)"),
        (lambda: StandardScaler().fit(X)(X[:, :3]), ShapeError, r"expected rows of shape \(4,\), .* got \(3,\)"),
        (
            lambda: StandardScaler().fit(X * np.nan),
            DataError,
            "row 0, feature 0: expected a finite number, got nan;",
        ),
        (lambda: OneHotEncoder().fit(X)(X[:, :3]), ShapeError, r"expected rows of 4 columns, .* got \(\d+, 3\)"),
        (lambda: OneHotEncoder().fit(X[:, 0])(X), ShapeError, r"expected rows of 1 columns, .* got \(\d+, 4\)"),
        (
            lambda: OneHotEncoder().fit([16_777_216, 3, 16_777_217]),
            DataError,
            "column 0: expected categories that float32 tells apart, got 16777216 and 16777217;",
        ),
        (
            lambda: StandardScaler().fit([[1e300], [2e300]]),
            DataError,
            r"row 0, feature 0: expected a finite number, got 1e\+300, which is too large for float32",
        ),
        (lambda: MinMaxScaler().fit(X / np.float32(0)), DataError, "expected a finite number, got -?inf"),
        (lambda: StandardScaler().fit(np.zeros((0, 3))), DataError, r"expected rows \(N, …\), got \(0, 3\)"),
        (lambda: categories_of(["a", None]), DataError, "row 1: expected a text, got None; give what is missing"),
        (lambda: categories_of([math.nan, "a"]), DataError, "row 0: expected a text, got nan"),
        (lambda: categories_of(["a", 1]), DataError, "a mixture of int, str; use str"),
        (lambda: encode(["a", None], ["a"]), DataError, "row 1: expected one of 'a', got 'None'"),
        (
            lambda: StandardScaler().fit(np.array(["2026-01-01", "2026-01-03"], "datetime64[D]")),
            DataError,
            r"got datetime64\[D\]; count the days since the first",
        ),
        (lambda: StandardScaler().fit(["a"]), DataError, "expected numbers, got <U1; see encode for text"),
        (lambda: Imputer().fit([[np.nan], [np.nan]]), DataError, "feature 0 has no value in any row"),
        (lambda: Imputer("modal").fit(X), SpecError, "Imputer: Invalid enum value 'modal'"),  # type: ignore[arg-type]
        (lambda: Imputer().fit(X).inverse(X), SpecError, "Imputer: it cannot be undone"),
        (lambda: Pipeline([]), SpecError, "expected at least one step"),
        (lambda: Pipeline([StandardScaler]), SpecError, "expected steps of cx.preprocessing"),  # type: ignore[list-item]
        (lambda: Pipeline([StandardScaler()]).save("/nowhere"), SpecError, "no statistics yet"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_what_cannot_be_is_one_clear_error(make: Any, kind: Any, said: str) -> None:
    with pytest.raises(kind, match=said):
        make()


@pytest.mark.parametrize(
    "content, said",
    [
        (b"{", "expected steps as Pipeline.save writes them"),
        (
            b'{"format": "cyx-preprocessing/9", "steps": []}',
            "by a newer Cyx .cyx-preprocessing/9; this one reads cyx-preprocessing/1",
        ),
        (b'{"format": "cyx-preprocessing/1", "steps": []}', "expected at least one step"),
        (b'{"format": "cyx-preprocessing/1", "steps": [{"kind": "StandardScaler"}]}', "no statistics yet"),
        (
            b'{"format": "cyx-preprocessing/1", "steps": [{"kind": "StandardScaler", "shape": [3], "shift": [1], '
            b'"scale": [1]}]}',
            "expected 3 numbers of shift, got 1",
        ),
        (
            b'{"format": "cyx-preprocessing/1", "steps": [{"kind": "StandardScaler", "shape": [-1, -3], '
            b'"shift": [1, 2, 3], "scale": [1, 1, 1]}]}',
            r"expected a shape of sides >= 1, got \[-1, -3\]",
        ),
        (
            b'{"format": "cyx-preprocessing/1", "steps": [{"kind": "StandardScaler", "shape": [2], '
            b'"shift": [1, 2], "scale": [1, 0]}]}',
            "expected a scale > 0, got 0",
        ),
        (
            b'{"format": "cyx-preprocessing/1", "steps": [{"kind": "OneHotEncoder", "categories": [[1], []]}]}',
            "expected at least one category in each column",
        ),
        (b'{"format": "cyx-preprocessing/1", "steps": [{"kind": "Eval", "code": "1"}]}', "Invalid value 'Eval'"),
    ],
)
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "prepare.json").write_bytes(content)
    with pytest.raises(FormatError, match=said):
        load(tmp_path / "prepare.json")
    with pytest.raises(FormatError, match="cannot be read"):
        load(tmp_path / "none.json")

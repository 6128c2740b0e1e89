"""What importing costs and loads."""

import math
import subprocess
import sys

import pytest

import cyxcore


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    "module", ["errors", "spec", "dtype", "ops", "graph", "functional", "layers", "symbols", "gradients"]
)
def test_the_vocabulary_loads_no_numpy_and_no_kernels(module: str) -> None:
    heavy = "[m for m in sys.modules if m == 'numpy' or m.startswith('cyxcore.kernels')]"
    code = f"import sys, cyxcore.{module}; print({heavy})"
    assert run(code) == "[]"


def test_building_a_graph_needs_no_numpy() -> None:
    code = (
        "import sys, cyxcore as cx; cx.build(input_shape=[4], "
        "layers=[{'kind': 'Linear', 'out_features': 2}]).sha256; "
        "print('numpy' in sys.modules)"
    )
    assert run(code) == "False"


@pytest.mark.parametrize("name", [name for name in cyxcore.__all__ if name not in ("data", "__version__")])
def test_every_public_name_exists(name: str) -> None:
    assert getattr(cyxcore, name) is not None and name in dir(cyxcore)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="cyxcore has no 'tensr'"):
        cyxcore.tensr  # noqa: B018


def test_dtypes_are_names() -> None:
    assert cyxcore.float32 == "float32"


def test_the_constants_are_the_standards() -> None:
    assert (cyxcore.e, cyxcore.pi, cyxcore.inf) == (math.e, math.pi, math.inf) and math.isnan(cyxcore.nan)
    assert cyxcore.newaxis is None

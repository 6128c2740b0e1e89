"""The C files are for any compiler and processor: gcc builds them here, clang reads them where it is there."""

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "cyxcore/kernels/src"
PACKAGES = ("cyxcore", "cyxnet", "cyxnode", "cyxcentral")
# Of this machine alone, or other bits: cyx-exact/1 is the order of operations as it is written.
UNWANTED = re.compile(
    r"-m(arch|tune|cpu)=native|-Ofast|-ffast-math|-funsafe-math|-fassociative-math|-freciprocal-math|-ffinite-math"
    r"|-fno-signed-zeros|-ffp-contract=(fast|on)|\boptimize\s*\(|pragma STDC FP_CONTRACT ON|pragma clang fp"
)
CLANG = shutil.which("clang") or shutil.which("clang-14")


@pytest.mark.skipif(CLANG is None, reason="no clang here")
@pytest.mark.parametrize("path", sorted(SOURCES.rglob("*.c")), ids=lambda path: path.name)
def test_clang_takes_a_file_of_kernels(path):
    include = sysconfig.get_path("include")
    said = subprocess.run(
        [str(CLANG), "-std=gnu11", "-fsyntax-only", "-w", f"-I{SOURCES}", f"-I{include}", str(path)],
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr


def builders() -> list[Path]:
    """All files that may hold flags of a compiler."""
    kinds = {".c", ".h", ".inl", ".pyx", ".pxi"}
    sources = [path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.suffix in kinds]
    made = {path for path in sources if path.suffix == ".c" and path.with_suffix(".pyx").exists()}  # by Cython
    others = (*ROOT.glob("*.toml"), *ROOT.glob("*.cfg"), ROOT / "setup.py", *(ROOT / ".ci").glob("*"))
    return sorted({*sources, *others} - made)


def test_no_file_asks_for_this_processor_or_for_fast_arithmetic() -> None:
    assert len(builders()) > 50
    found = {str(path.relative_to(ROOT)): UNWANTED.findall(path.read_text()) for path in builders()}
    assert {path: flags for path, flags in found.items() if flags} == {}


def test_every_extension_is_built_with_the_flags_that_keep_its_bits() -> None:
    setup = (ROOT / "setup.py").read_text()
    flags = re.search(r"FLAGS = \[(.*?)\]", setup, re.DOTALL)
    assert flags is not None and '"-ffp-contract=off"' in flags[1]
    assert len(re.findall(r"= Extension\(|return Extension\(", setup)) == setup.count("extra_compile_args=FLAGS") > 0

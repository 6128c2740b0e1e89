"""The C files are for any compiler: gcc builds them here, clang reads them where it is there."""

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "cyxcore/kernels/src"
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

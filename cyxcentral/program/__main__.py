"""Builds the escrow program: python -m cyxcentral.program [--check]

Needs clang 14, whose output the pinned hash is of (Debian: apt install clang-14). Another version makes another
program, which is as good and has another hash: what is deployed must be what is pinned.
"""

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cyxcentral.program import FOLDER, SHA256, ProgramError
from cyxcentral.program.link import link
from cyxcore.errors import CyxError

CLANG_MAJOR = 14
# -mcpu=v2: the instructions of sBPF version 0. The working folder must not show in the result.
FLAGS = (
    "-target bpf -mcpu=v2 -Oz -std=c11 -ffreestanding -fno-builtin -fno-jump-tables -nostdinc -Wall -Wextra -Werror"
).split()


def find_clang() -> str:
    """The compiler to use. Raises ProgramError when there is none of the right version."""
    for name in (f"clang-{CLANG_MAJOR}", "clang"):
        if (path := shutil.which(name)) is None:
            continue
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
        found = re.search(r"version (\d+)\.", said)
        if found and int(found[1]) == CLANG_MAJOR:
            return path
    raise ProgramError(f"expected clang {CLANG_MAJOR}, found none; on Debian: apt install clang-{CLANG_MAJOR}")


def build(source: Path) -> bytes:
    """Compile and link. Raises ProgramError with what the compiler said, and LinkError."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "escrow.o"
        command = [find_clang(), *FLAGS, "-c", source.name, "-o", str(made)]
        done = subprocess.run(command, cwd=source.parent, capture_output=True, text=True)
        if done.returncode:
            raise ProgramError(f"{source}: clang refused it:\n{done.stderr}")
        return link(made.read_bytes())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cyxcentral.program", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the build is not what is pinned")
    arguments = parser.parse_args(argv)
    try:
        made = build(FOLDER / "escrow.c")
    except CyxError as error:
        print(error, file=sys.stderr)
        return 1
    found = hashlib.sha256(made).hexdigest()
    if arguments.check and found != SHA256:
        print(f"expected {SHA256}, built {found}", file=sys.stderr)
        return 1
    if not arguments.check:
        (FOLDER / "escrow.so").write_bytes(made)
    print(f"{found}  {len(made)} bytes" + ("" if found == SHA256 else "; pin it in cyxnet/escrow.py"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

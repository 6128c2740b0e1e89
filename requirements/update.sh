#!/bin/sh
# Pin the newest versions that pyproject.toml allows, with the hashes of all their files: requirements/update.sh
# It asks the index for each package, which takes minutes. Run the whole suite with these versions before you commit.
set -eu
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/tools"
"$folder/tools/bin/pip" install -q pip-tools

# What is wanted, by pyproject.toml; then, of what is pinned, which goes where.
cat > "$folder/split.py" <<'END'
import re
import sys
import tomllib
from pathlib import Path

EXTRAS = ("http", "fast", "llm", "images")
# Redis asks for it before Python 3.11.3; what pip-compile lists is for the patch that it runs on.
OLDER = ["async-timeout>=4.0.3"]
FILES = {
    "build.txt": "# What builds the extensions of Cyx and of nkeys, by hash: install it first (docs/operations.md).",
    "production.txt": "# All that a central, a node or a client runs on besides, by hash (docs/operations.md).",
}
MADE_BY = "# Made by requirements/update.sh from pyproject.toml, for Python 3.11 on Linux.\n"


def wanted() -> tuple[list[str], list[str]]:
    """The requirements of building, and of running with the extras."""
    with open("pyproject.toml", "rb") as file:
        said = tomllib.load(file)
    extras = said["project"]["optional-dependencies"]
    running = said["project"]["dependencies"] + OLDER + [line for extra in EXTRAS for line in extras[extra]]
    return said["build-system"]["requires"], running


def write(pinned: str) -> None:
    """Split the entries of what pip-compile wrote over the two files."""
    building = {re.split(r"[^\w.-]", line)[0].lower() for line in wanted()[0]}
    entries = re.findall(r"^[a-z0-9].*(?:\n    --hash=\S+(?: \\)?)+\n", pinned, re.MULTILINE)
    for name, about in FILES.items():
        mine = [each for each in entries if (each.split("==")[0] in building) == (name == "build.txt")]
        Path("requirements", name).write_text(f"{about}\n{MADE_BY}{''.join(mine)}")


if __name__ == "__main__":
    if sys.argv[1] == "wanted":
        print("\n".join(sum(wanted(), [])))
    else:
        write(Path(sys.argv[2]).read_text())
END

"$folder/tools/bin/python" "$folder/split.py" wanted > "$folder/wanted.in"
"$folder/tools/bin/pip-compile" -q --generate-hashes --allow-unsafe --strip-extras --no-header --no-annotate \
  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host -o "$folder/pinned.txt" "$folder/wanted.in"
"$folder/tools/bin/python" "$folder/split.py" pinned "$folder/pinned.txt"

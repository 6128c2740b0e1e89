"""Where the figures of a run go besides the terminal: NAME.json, for whoever compares or draws them."""

import argparse
import json
from pathlib import Path
from typing import Any


def add_save(parser: argparse.ArgumentParser, what: str = "NAME.json") -> None:
    parser.add_argument("--save", type=Path, metavar="NAME", help=f"also write {what}")


def beside(name: Path, suffix: str) -> Path:
    """NAME.suffix, whatever dots are in NAME; its folder is made."""
    name.parent.mkdir(parents=True, exist_ok=True)
    return name.with_name(f"{name.name}.{suffix}")


def save(name: Path | None, found: Any) -> None:
    """Write what json.dumps() takes as NAME.json; nothing without a name."""
    if name is not None:
        beside(name, "json").write_text(json.dumps(found, indent=1) + "\n")

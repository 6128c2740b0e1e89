"""The API reference, from docstrings: `python docs/reference.py > reference.md` (or `python docs/reference.py cx.nn`).

Every public name of cyxcore with its signature and docstring, module by module, in Markdown.
"""

import importlib
import inspect
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import cyxcore


def modules() -> Iterator[tuple[str, ModuleType, list[str]]]:
    """(name as users write it, module, its public names)."""
    yield "cx", cyxcore, sorted(cyxcore._NAMES)
    for name in cyxcore._MODULES:
        module = importlib.import_module(f"cyxcore.{name}")
        listed = getattr(module, "__all__", None) or [each for each in vars(module) if not each.startswith("_")]
        yield f"cx.{name}", module, sorted(each for each in listed if _own(module, getattr(module, each, None)))


def _own(module: ModuleType, value: Any) -> bool:
    """Whether it is a function or class of this module or of a part of it, not one it merely uses."""
    home = str(getattr(value, "__module__", ""))
    inside = home == module.__name__ or home.startswith(module.__name__ + ".")
    return callable(value) and not inspect.ismodule(value) and (inside or hasattr(module, "__all__"))


def documented() -> Iterator[tuple[str, str, Any, str]]:
    """(module, name, the thing, its own docstring or nothing)."""
    for module_name, module, names in modules():
        for name in names:
            value = getattr(module, name)
            if callable(value) and not inspect.ismodule(value):
                own = vars(value).get("__doc__") if inspect.isclass(value) else getattr(value, "__doc__", None)
                yield module_name, name, value, inspect.cleandoc(own or "")


def _signature(value: Any) -> str:
    try:
        return str(inspect.signature(value))
    except (ValueError, TypeError):
        return "(…)"


def page(only: str = "") -> str:
    """The reference in Markdown; only: of one module, such as "cx.nn"."""
    known = [name for name, _, _ in modules()]
    if only and only not in known:
        raise SystemExit(f"reference: expected one of {', '.join(known)}, got {only!r}")
    lines = ["# cyxcore: every public name", ""]
    module = ""
    for module_name, name, value, text in documented():
        if only and module_name != only:
            continue
        if module_name != module:
            module = module_name
            lines += [f"## {module}", ""]
        kind = "class " if inspect.isclass(value) else ""
        lines += [f"### {kind}`{module}.{name}`", "", f"```text\n{name}{_signature(value)}\n```", "", text, ""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(*sys.argv[1:2]))

"""The bundled patterns: whole models to start from, as graph files with parameters.

    cx.patterns.names()
    cx.patterns.describe("unet").parameters
    file = cx.patterns.get("unet", channels=3, size=64)    # a GraphFile: load_graph(file), or save file.to_bytes()

Each is a JSON file beside this one; a "$name" in it is the value of a parameter (cyxcore/templates.py).
"""

import functools
from importlib.resources import files
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from cyxcore.errors import SpecError
from cyxcore.graphfile import GraphFile, read
from cyxcore.nodekinds import nearest
from cyxcore.templates import fill


class PatternParameter(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One number that a pattern may be made with; min and max are allowed too."""

    name: str
    description: str
    default: int | float
    type: Literal["int", "float"] = "int"
    min: int | float = 1
    max: int | float = 2**20


class Pattern(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A bundled pattern. template: a graph file with $names."""

    name: str
    description: Annotated[str, Meta(min_length=1, max_length=300)]
    category: str
    tags: list[str] = []
    parameters: list[PatternParameter]
    template: dict[str, Any]


@functools.cache
def names() -> tuple[str, ...]:
    """Of all patterns, in order of the alphabet."""
    found = (file.name for file in files("cyxcore.patterns").iterdir())
    return tuple(sorted(name.removesuffix(".json") for name in found if name.endswith(".json")))


@functools.cache
def describe(name: str) -> Pattern:
    """What a pattern is and which parameters it has. Raises SpecError for an unknown name."""
    if name not in names():
        raise SpecError(f"pattern: there is no {name!r}{nearest(name, names())}")
    return msgspec.json.decode((files("cyxcore.patterns") / f"{name}.json").read_bytes(), type=Pattern)


def get(name: str, **parameters: Any) -> GraphFile:
    """The pattern as a graph file, made with the given parameters; the others have their defaults. Raises SpecError."""
    pattern = describe(name)
    known = {one.name: one for one in pattern.parameters}
    for given in parameters:
        if given not in known:
            raise SpecError(f"pattern {name!r}: there is no parameter {given!r}{nearest(given, list(known))}")
    values = {one.name: _checked(name, one, parameters.get(one.name, one.default)) for one in pattern.parameters}
    try:
        nodes = fill(pattern.template["nodes"], values)  # not its subgraphs: they have $names of their own
    except SpecError as error:
        raise SpecError(f"pattern {name!r}: {error}") from None
    return read({"name": name, "description": pattern.description, **pattern.template, "nodes": nodes})


def _checked(pattern: str, one: PatternParameter, value: Any) -> int | float:
    kind = "a whole number" if one.type == "int" else "a number"
    right = isinstance(value, int if one.type == "int" else (int, float)) and not isinstance(value, bool)
    if not right or not one.min <= value <= one.max:
        raise SpecError(
            f"pattern {pattern!r}: {one.name}: expected {kind} from {one.min} to {one.max}, got {str(value)[:40]}"
        )
    result: int | float = value
    return result

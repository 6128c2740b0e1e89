"""The graph file: a model, its loss, optimiser and data as nodes and links, in JSON. These Structs are the format.

Version 2.0 names kinds in words (cyxcore/nodekinds.py); files of the editor's version 1.0, with numbers of kinds and
every parameter as text, are read and turned into it. docs/graph-format.md describes both.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from cyxcore.errors import SpecError
from cyxcore.nodekinds import KIND_OF_NUMBER, KINDS

MAX_FILE_BYTES = 16_000_000
MAX_NODES = 10_000
MAX_LINKS = 50_000
SUFFIX = ".cyxgraph"

NodeId = Annotated[str, Meta(min_length=1, max_length=100)] | Annotated[int, Meta(ge=0, le=2**31 - 1)]
LinkKind = Literal[
    "TensorFlow", "ResidualSkip", "DenseSkip", "AttentionFlow", "GradientFlow", "ParameterFlow", "LossFlow"
]


class NodeSpec(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One node. shares: the id of a node of the same kind (or Subgraph) whose parameters this one uses too.

    pos: where it is drawn.
    """

    id: NodeId
    type: str
    name: str = ""
    params: dict[str, Any] = {}
    shares: NodeId | None = None
    pos: tuple[float, float] | None = None


class LinkSpec(
    Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True, rename={"source": "from"}
):
    """From an output pin of a node to an input pin of another: a pin's name, or its number from 0.

    Without to_pin: the first free pin that takes what comes. type: how it is drawn; it means nothing.
    """

    source: NodeId
    to: NodeId
    from_pin: str | int = 0
    to_pin: str | int | None = None
    type: LinkKind = "TensorFlow"


class SubgraphSpec(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What a Subgraph node stands for. Its Input and Output nodes, in their order, are that node's pins."""

    nodes: Annotated[list[NodeSpec], Meta(max_length=MAX_NODES)]
    links: Annotated[list[LinkSpec], Meta(max_length=MAX_LINKS)] = []


class JobSection(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a job needs beside the graph: amount in CYX, as in a job file; the rest as in [training]."""

    name: str = ""
    amount: str | int | None = None
    epochs: Annotated[int, Meta(ge=1, le=1_000_000)] = 10
    keep: Literal["best", "last"] = "best"
    clip_norm: Annotated[float, Meta(gt=0.0, le=1e9)] | None = None
    clip_value: Annotated[float, Meta(gt=0.0, le=1e9)] | None = None


class GraphFile(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A whole file."""

    version: Literal["2.0"] = "2.0"
    name: Annotated[str, Meta(max_length=256)] = ""
    description: Annotated[str, Meta(max_length=10_000)] = ""
    nodes: Annotated[list[NodeSpec], Meta(max_length=MAX_NODES)]
    links: Annotated[list[LinkSpec], Meta(max_length=MAX_LINKS)] = []
    subgraphs: dict[str, SubgraphSpec] = {}
    job: JobSection = JobSection()

    def to_bytes(self) -> bytes:
        """Canonical JSON: equal files give equal bytes."""
        return json.dumps(msgspec.to_builtins(self), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


class _OldNode(Struct, kw_only=True, forbid_unknown_fields=True):
    id: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    type: int
    name: str = ""
    parameters: dict[str, str] = {}
    pos_x: float = 0.0
    pos_y: float = 0.0


class _OldLink(Struct, kw_only=True, forbid_unknown_fields=True):
    id: int = 0
    from_node: int
    to_node: int
    from_pin: int = 0
    to_pin: int = 0
    from_pin_index: int = 0
    to_pin_index: int = 0
    link_type: str | int = "TensorFlow"


class _OldFile(Struct, kw_only=True, forbid_unknown_fields=True):
    version: Literal["1.0"]
    framework: int = 0
    nodes: Annotated[list[_OldNode], Meta(max_length=MAX_NODES)]
    links: Annotated[list[_OldLink], Meta(max_length=MAX_LINKS)] = []


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of version 2.0, generated from the Structs and the table of kinds."""
    found = msgspec.json.schema(GraphFile)
    found["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    found["$defs"]["NodeSpec"]["properties"]["type"]["enum"] = list(KINDS)
    return found


def read(source: "GraphFile | Mapping[str, Any] | str | bytes | os.PathLike[str]") -> GraphFile:
    """A graph file from a path, its JSON (bytes), an object already decoded, or itself.

    Raises SpecError for whatever is no graph file, naming the place in it.
    """
    if isinstance(source, GraphFile):
        return source
    if isinstance(source, Mapping):
        return _converted(dict(source), "graph")
    if isinstance(source, bytes):
        return _converted(_decoded(source, "graph"), "graph")
    if not isinstance(source, str | os.PathLike):
        got = type(source).__name__
        raise SpecError(f"graph: expected a path, JSON as bytes, an object already decoded or a GraphFile, got {got}")
    path = Path(source)
    try:
        if path.is_dir():
            raise SpecError(f"{path}: expected a graph file, this is a folder")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise SpecError(f"{path}: expected a graph file of at most {MAX_FILE_BYTES} bytes; is this data?")
        raw = path.read_bytes()
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # no name that a file can have: a NUL in it
        raise SpecError(f"{str(path)!r}: cannot be read ({error})") from None
    return _converted(_decoded(raw, str(path)), str(path))


def _decoded(raw: bytes, where: str) -> Any:
    if len(raw) > MAX_FILE_BYTES:
        raise SpecError(f"{where}: expected at most {MAX_FILE_BYTES} bytes, got {len(raw)}")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise SpecError(f"{where}: the key {key[:60]!r} is there twice in one object; keep one of the two")
            found[key] = value
        return found

    def never(name: str) -> Any:
        raise SpecError(f"{where}: expected finite numbers, got {name}")

    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=once, parse_constant=never)
    except SpecError:
        raise
    except UnicodeDecodeError as error:
        raise SpecError(f"{where}: expected JSON in UTF-8, byte {error.start} is not") from None
    except RecursionError:
        raise SpecError(f"{where}: expected a graph file, this is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise SpecError(f"{where}: not valid JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
    except ValueError as error:
        raise SpecError(f"{where}: not valid JSON: {str(error)[:100]}") from None


def _converted(data: Any, where: str) -> GraphFile:
    if not isinstance(data, dict) or "nodes" not in data:
        raise SpecError(f'{where}: expected a graph file, an object with "version", "nodes" and "links"')
    version = data.get("version", "2.0")
    if version not in ("1.0", "2.0"):
        raise SpecError(f'{where}: version: expected "2.0" or "1.0", got {str(version)[:40]!r}')
    kind: Any = _OldFile if version == "1.0" else GraphFile
    for key in ("nodes", "links"):
        most = MAX_NODES if key == "nodes" else MAX_LINKS
        if isinstance(data.get(key), list) and len(data[key]) > most:
            raise SpecError(f"{where}: expected at most {most:,} {key}, got {len(data[key]):,}")
    try:
        found = msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise SpecError(f"{where}: {_retold(str(error))}") from None
    except RecursionError:
        raise SpecError(f"{where}: expected a graph file, this is nested too deeply") from None
    return found if isinstance(found, GraphFile) else _upgraded(found, where)


_WORDS = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "object": "an object"}


def _retold(said: str) -> str:
    """ "Object contains unknown field `x` - at `$.nodes[0]`" → "nodes[0]: unknown field x"."""
    text, _, place = said.partition(" - at ")
    place = place.strip("`").removeprefix("$").lstrip(".")
    text = re.sub(r"`(\w+)`", lambda word: _WORDS.get(word[1], word[1]), text)
    for begins, instead in (
        ("Object contains unknown field", "unknown field"),
        ("Object missing required field", "there is no field"),
        ("Expected", "expected"),
    ):
        text = text.replace(begins, instead)
    return f"{place}: {text}" if place else text


# version 1.0 --------------------------------------------------------------------------------------


def _upgraded(old: _OldFile, where: str) -> GraphFile:
    nodes = []
    for node in old.nodes:
        if node.type not in KIND_OF_NUMBER:
            raise SpecError(f"{where}: node {node.id}: expected a kind 0..{max(KIND_OF_NUMBER)}, got {node.type}")
        kind = KIND_OF_NUMBER[node.type]
        params = {name: value for name, text in node.parameters.items() if (value := _typed(kind, name, text)) != ""}
        nodes.append(NodeSpec(id=node.id, type=kind, name=node.name, params=params, pos=(node.pos_x, node.pos_y)))
    types = {node.id: node.type for node in nodes}
    links = []
    for link in old.links:
        one_pin = link.to_node in types and len(KINDS[types[link.to_node]].inputs) == 1
        plain = one_pin and not KINDS[types[link.to_node]].at_least
        links.append(
            LinkSpec(
                source=link.from_node,
                to=link.to_node,
                from_pin=link.from_pin_index,
                to_pin=None if plain else link.to_pin_index,
            )
        )
    return GraphFile(nodes=nodes, links=links)


def _typed(kind: str, name: str, text: str) -> Any:
    """A parameter that was written as text, as the value that its kind takes; "" stands for the default."""
    row = KINDS[kind]
    option = row.options.get(row.aliases.get(name, name))
    guesses = [_guess(text), text, text.lower()]
    for guess in guesses if option else []:
        try:
            option.check(guess)  # type: ignore[union-attr]
        except ValueError:
            continue
        return guess
    return guesses[0]


def _guess(text: str) -> Any:
    """ "8" → 8, "(2, 2)" → [2, 2], "true" → True; other text as it is."""
    plain = text.strip()
    if plain.lower() in ("true", "false"):
        return plain.lower() == "true"
    if plain.startswith("{"):
        try:
            return json.loads(plain)
        except (ValueError, RecursionError):
            return plain
    if "," in plain or plain[:1] in ("(", "["):
        return [_guess(part) for part in plain.strip("()[]").split(",") if part.strip()]
    for number in (int, float):
        try:
            return number(plain)
        except ValueError:
            continue
    return plain

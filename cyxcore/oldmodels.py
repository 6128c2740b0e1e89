"""Reading the two older .cyxmodel variants of CyxWiz: one binary file (version 2), or a folder (version 1.0).

Neither has a graph that says all of a model, and their engine ran rows of dense layers only; so what comes back is such
a row: a Linear for each module with weights, and the activations between them. Anything else is refused by name.
Numbers are little-endian and sizes 64 bits wide, as every machine wrote them that CyxWiz ran on.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cyxcore.errors import FormatError, SpecError
from cyxcore.graph import Graph
from cyxcore.layers import build

Array = np.ndarray[Any, Any]

MAGIC = (0x43595857).to_bytes(4, "little")
DTYPES = ("float32", "float64", "int32", "int64", "uint8")  # by CyxWiz's number
MAX_RANK, MAX_JSON_BYTES, MAX_MODULES, MAX_FILES = 8, 16_000_000, 10_000, 10_000
# A module's kind, as CyxWiz spells it in small letters, and ours; "" is left out.
KINDS = {
    "relu": "ReLU", "leakyrelu": "LeakyReLU", "elu": "ELU", "selu": "SELU", "gelu": "GELU", "swish": "SiLU",
    "silu": "SiLU", "mish": "Mish", "sigmoid": "Sigmoid", "tanh": "Tanh", "softmax": "Softmax", "flatten": "Flatten",
    "dropout": "", "identity": "", "datasetinput": "", "output": "",
}  # fmt: skip
DENSE = ("linear", "dense", "linearlayer", "denselayer")


class OldModel(NamedTuple):
    graph: Graph
    weights: dict[str, Array]
    about: dict[str, str]  # name, description and what else the file says of itself
    history: dict[str, list[float]]


class Module(NamedTuple):
    name: str  # "Linear", or "Linear(4 -> 8)"
    tensors: dict[str, Array]


class _Bytes:
    """A file read from its front; every length is compared with what is left before it is believed."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data, self.at, self.where = memoryview(data), 0, where

    def take(self, size: int, what: str) -> memoryview:
        if not 0 <= size <= len(self.data) - self.at:
            raise FormatError(f"{self.where}: {what} takes {size} bytes, {len(self.data) - self.at} are left")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int, what: str) -> int:
        return int.from_bytes(self.take(size, what), "little")

    def count(self, most: int, what: str) -> int:
        found = self.number(8, what)
        if found > most:
            raise FormatError(f"{self.where}: expected at most {most} {what}, got {found}")
        return found


def read(path: Path) -> OldModel:
    """A file or folder of CyxWiz. Raises FormatError."""
    return _read_folder(path) if path.is_dir() else _read_binary(path)


def _json(raw: bytes, where: str) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: no JSON: {error}") from None


def _array(reader: _Bytes, shape: Sequence[int], dtype: int, what: str, told: int | None = None) -> Array:
    if not 0 <= dtype < len(DTYPES):
        raise FormatError(f"{reader.where}: {what}: expected an element type 0..{len(DTYPES) - 1}, got {dtype}")
    kind = np.dtype(DTYPES[dtype]).newbyteorder("<")
    size = math.prod(shape) * kind.itemsize
    if told is not None and told != size:
        raise FormatError(f"{reader.where}: {what}: {DTYPES[dtype]} {list(shape)} takes {size} bytes, got {told}")
    return np.frombuffer(reader.take(size, what), kind).reshape(shape).astype(DTYPES[dtype])


def _rank(reader: _Bytes, found: int, what: str) -> int:
    if not 0 <= found <= MAX_RANK:
        raise FormatError(f"{reader.where}: {what}: expected at most {MAX_RANK} sizes, got {found}")
    return found


def _read_binary(path: Path) -> OldModel:
    where = f"cyxmodel {path}"
    reader = _Bytes(path.read_bytes(), where)
    if bytes(reader.take(4, "the magic number")) != MAGIC:
        raise FormatError(f"{where}: expected the magic number of a binary .cyxmodel")
    version = reader.number(4, "the version")
    if version != 2:
        raise FormatError(f"{where}: expected version 2 of the binary .cyxmodel, got {version}")
    size = reader.count(MAX_JSON_BYTES, "bytes of JSON")
    head = _json(bytes(reader.take(size, "the JSON head")), where)
    if not isinstance(head, dict) or not isinstance(head.get("modules"), list):
        raise FormatError(f"{where}: expected a JSON head with a list of modules")
    names = [str(entry.get("name", "")) if isinstance(entry, dict) else "" for entry in head["modules"]]
    count = reader.count(MAX_MODULES, "modules")
    if count != len(names):
        raise FormatError(f"{where}: the head lists {len(names)} modules, the file has {count}")
    modules = []
    for name in names:
        tensors: dict[str, Array] = {}
        for _ in range(reader.count(MAX_MODULES, "parameters")):
            length = reader.count(4096, "characters of a name")
            key = str(bytes(reader.take(length, "a name")), "utf-8", "replace")
            rank = _rank(reader, reader.number(8, "a rank"), key[:80])
            shape = [reader.number(8, "a size") for _ in range(rank)]
            dtype, told = reader.number(4, "an element type"), reader.number(8, "a size in bytes")
            tensors[key] = _array(reader, shape, dtype, key[:80], told)
        modules.append(Module(name, tensors))
    if reader.at != len(reader.data):
        raise FormatError(f"{where}: {len(reader.data) - reader.at} bytes are left behind the last module")
    return _model(modules, _about(head.get("metadata")), {}, where)


def _about(given: Any) -> dict[str, str]:
    if not isinstance(given, Mapping):
        return {}
    return {str(k)[:80]: str(v)[:1000] for k, v in given.items() if isinstance(v, (str, int, float)) and str(v)}


def _part(folder: Path, name: str) -> Path:
    """A file of the folder. No link is followed, so nothing outside is read."""
    path = folder / name
    if path.is_symlink() or not path.is_file() or folder.is_symlink():
        raise FormatError(f"cyxmodel {folder}: {name} is missing, or no plain file")
    return path


def _read_folder(folder: Path) -> OldModel:
    where = f"cyxmodel {folder}"
    manifest = _json(_limited(_part(folder, "manifest.json")), where)
    if not isinstance(manifest, dict) or not str(manifest.get("version", "")).startswith("1."):
        raise FormatError(f"{where}: manifest.json: expected version 1.0")
    graph = _json(_limited(_part(folder, "graph.cyxgraph")), where)
    weights = folder / "weights"
    if weights.is_symlink() or not weights.is_dir():
        raise FormatError(f"{where}: there is no folder weights")
    names = sorted(entry.name for entry in weights.iterdir() if entry.name.endswith(".bin"))
    if len(names) > MAX_FILES:
        raise FormatError(f"{where}: expected at most {MAX_FILES} weights, got {len(names)}")
    tensors = {name.removesuffix(".bin"): _read_tensor(_part(weights, name)) for name in names}
    history: dict[str, list[float]] = {}
    if (folder / "history.json").exists():
        told = _json(_limited(_part(folder, "history.json")), where)
        for key, values in told.items() if isinstance(told, dict) else ():
            if isinstance(values, list) and all(isinstance(v, (int, float)) for v in values):
                history[str(key)] = [float(v) for v in values]
    about = _about(manifest.get("model")) | _about(manifest.get("metadata"))
    return _model(_placed(_row(graph, where), tensors, where), about, history, where)


def _limited(path: Path) -> bytes:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise FormatError(f"cyxmodel {path}: is over {MAX_JSON_BYTES} bytes")
    return path.read_bytes()


def _read_tensor(path: Path) -> Array:
    reader = _Bytes(path.read_bytes(), f"cyxmodel {path}")
    rank = _rank(reader, reader.number(4, "a rank"), path.name)
    shape = [reader.number(8, "a size") for _ in range(rank)]
    array = _array(reader, shape, reader.number(4, "an element type"), path.name)
    if reader.at != len(reader.data):
        raise FormatError(f"{reader.where}: {len(reader.data) - reader.at} bytes are left behind the values")
    return array


# CyxWiz's numbers of the node kinds that its engine could run.
_NODE_KINDS = {0: "Dense", 14: "Dropout", 15: "Flatten", 29: "ReLU", 30: "LeakyReLU", 32: "ELU", 34: "GELU"}
_NODE_KINDS |= {33: "SELU", 35: "Swish", 36: "Mish", 37: "Sigmoid", 38: "Tanh", 39: "Softmax", 50: "Output"}
_NODE_KINDS |= {74: "Identity", 77: "DatasetInput"}
_NOT_A_LAYER = {*range(51, 73), 78, 79, 80, 83}  # losses, optimisers, schedules, regularisation, data


def _row(graph: Any, where: str) -> list[str]:
    """The kinds of a graph's layers from its input to its output. Raises FormatError where they are no row."""
    try:
        nodes = {int(node["id"]): node["type"] for node in graph["nodes"]}
        links = [(int(link["from_node"]), int(link["to_node"])) for link in graph["links"]]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise FormatError(
            f"{where}: graph.cyxgraph: expected nodes with id and type, links with from_node and to_node"
        ) from None
    layers: dict[int, str] = {}
    for place, kind in nodes.items():
        if isinstance(kind, int) and kind in _NOT_A_LAYER:
            continue
        name = _NODE_KINDS.get(kind) if isinstance(kind, int) else str(kind)
        if name is None:
            raise FormatError(f"{where}: graph.cyxgraph: node {place} of type {kind} is none of a row of dense layers")
        layers[place] = name
    after: dict[int, int] = {}
    for source, target in links:
        if source in layers and target in layers:
            if source in after:
                raise FormatError(f"{where}: graph.cyxgraph: node {source} branches, a row of layers does not")
            after[source] = target
    firsts = [place for place in layers if place not in set(after.values())]
    row: list[str] = []
    at = firsts[0] if len(firsts) == 1 else None
    while at is not None and len(row) <= len(layers):
        row.append(layers[at])
        at = after.get(at)
    if len(row) != len(layers):
        raise FormatError(f"{where}: graph.cyxgraph: its layers are no single row")
    return row


def _placed(row: Sequence[str], tensors: Mapping[str, Array], where: str) -> list[Module]:
    """Each dense layer's tensors: the files in the order of their names, those of a module beside each other."""
    groups: dict[str, dict[str, Array]] = {}
    for name, array in tensors.items():
        stem, _, kind = name.rpartition("_" if "." not in name else ".")
        groups.setdefault(stem, {})[kind] = array
    waiting = [groups[stem] for stem in sorted(groups, key=lambda s: [int(p) if p.isdigit() else p for p in _split(s)])]
    modules = []
    for kind in row:
        dense = kind.lower() in DENSE
        if dense and not waiting:
            raise FormatError(f"{where}: there are fewer weights than dense layers")
        modules.append(Module(kind, waiting.pop(0) if dense else {}))
    if waiting:
        raise FormatError(f"{where}: there are more weights than dense layers")
    return modules


def _split(text: str) -> list[str]:
    """ "layer10" -> ["layer", "10"], so that 10 comes behind 9."""
    parts, digits = [""], False
    for character in text:
        if character.isdigit() != digits:
            digits = not digits
            parts.append("")
        parts[-1] += character
    return parts


def _model(modules: Sequence[Module], about: dict[str, str], history: dict[str, list[float]], where: str) -> OldModel:
    layers: list[dict[str, Any]] = []
    weights: dict[str, Array] = {}
    inputs: int | None = None
    for place, (name, tensors) in enumerate(modules):
        kind = name.split("(")[0].strip().lower()
        if kind in DENSE:
            weight, bias = _dense(tensors, f"{where}: module {place} ({name[:60]!r})")
            inputs = inputs or weight.shape[1]
            weights |= {f"{len(layers)}.weight": weight, **({} if bias is None else {f"{len(layers)}.bias": bias})}
            layers.append({"kind": "Linear", "out_features": weight.shape[0], "bias": bias is not None})
        elif kind not in KINDS or tensors:
            raise FormatError(
                f"{where}: module {place} is {name[:60]!r}: rows of dense layers and activations are read"
            )
        elif KINDS[kind] and (KINDS[kind] != "Flatten" or layers):
            layers.append({"kind": KINDS[kind]})
    if inputs is None:
        raise FormatError(f"{where}: no dense layer is in it")
    try:
        return OldModel(build(input_shape=[inputs], layers=layers), weights, about, history)
    except SpecError as error:
        raise FormatError(f"{where}: its layers do not fit together: {error}") from None


def _dense(tensors: Mapping[str, Array], where: str) -> tuple[Array, Array | None]:
    """(weight (out, in), bias (out,)) in float32. A square weight is taken to be (out, in), as CyxWiz wrote it."""
    found = {key.rsplit(".", 1)[-1].lower(): array for key, array in tensors.items()}
    weight = found.get("weight", found.get("weights"))
    bias = found.get("bias", found.get("biases"))
    if weight is None or weight.ndim != 2 or len(found) != 1 + (bias is not None) or 0 in weight.shape:
        raise FormatError(
            f"{where}: expected a weight of two axes and maybe a bias, got {', '.join(found) or 'nothing'}"
        )
    flat = None if bias is None else bias.reshape(-1).astype(np.float32)
    if flat is not None and weight.shape[0] != flat.size == weight.shape[1]:
        weight = weight.T
    if flat is not None and weight.shape[0] != flat.size:
        raise FormatError(f"{where}: a weight of {weight.shape} and a bias of {flat.size} do not belong together")
    return np.ascontiguousarray(weight, np.float32), flat

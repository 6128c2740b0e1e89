"""What a model file holds, as plain data: for `cyx inspect`, and for whoever looks before opening."""

import hashlib
import math
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from cyxcore import cyxmodel, safetensors
from cyxcore.cyxmodel import Hashed
from cyxcore.errors import FormatError
from cyxcore.gguf import GGUFFile
from cyxcore.graph import Graph
from cyxcore.model import (
    GRAPH_KEY,
    Content,
    Model,
    assembled,
    format_of,
    known_options,
    onnx_content,
    safetensors_content,
)
from cyxcore.safetensors import MEBIBYTE, Advance
from cyxcore.saving import NUMERICS

Array = np.ndarray[Any, Any]


def describe_model(path: str | os.PathLike[str], advance: Advance | None = None, **options: Any) -> dict[str, Any]:
    """Format, bytes, SHA-256, graph, layers, tensors with their digests, numeric class, facts and history of a file.

    A file that is no whole model (weights alone, an ONNX graph of several inputs) is described as far as it goes, and
    `model` says why it is none. Raises FormatError for a damaged one. options: as of load_model.
    """
    target = Path(path)
    extension = target.suffix.lower()
    known = known_options(options, format_of(target).load_options, path)
    found: dict[str, Any] = {"path": str(path), "format": extension[1:]}
    if target.is_file():
        found["bytes"] = target.stat().st_size
    seen = _SEEN[extension](target, advance, known)
    found |= seen.facts
    try:
        model = assembled(path, seen.content)
    except FormatError as error:
        if not (tensors := seen.tensors()):
            raise
        return found | {"tensors": tensors, "model": str(error)}
    return found | _model(model)


class _Seen(NamedTuple):
    """What one reading of a file gives. facts and tensors(): known although it may be no whole model; content(): of the
    model that it is, without reading it again (but for a .cyxmodel, whose parts are read where they lie).
    """

    facts: dict[str, Any]
    content: Callable[[], Content]
    tensors: Callable[[], list[dict[str, Any]]] = list


def _digests(path: Path, parts: Mapping[str, tuple[int, int]], advance: Advance | None) -> tuple[str, dict[str, str]]:
    """SHA-256 of a file, and of parts of it: [start, stop) by name, none over another."""
    whole, found, at = hashlib.sha256(), {}, 0
    with path.open("rb") as file:

        def read(stop: int, *digests: Any) -> None:
            nonlocal at
            while block := file.read(min(MEBIBYTE, stop - at)):
                for digest in digests:
                    digest.update(block)
                at += len(block)
                if advance is not None:
                    advance(at)

        for name, (start, stop) in sorted(parts.items(), key=lambda part: part[1]):
            part = hashlib.sha256()
            read(start, whole)
            read(stop, whole, part)
            found[name] = part.hexdigest()
        read(os.fstat(file.fileno()).st_size, whole)
    return whole.hexdigest(), found


def tensors_of(weights: Mapping[str, Array]) -> list[dict[str, Any]]:
    """Name, dtype, shape, bytes and SHA-256 (of the raw little-endian values) of each tensor."""
    rows = {}
    for name, raw in safetensors.in_file_order(weights):
        array = weights[name]
        rows[name] = {
            "name": name,
            "dtype": array.dtype.name,
            "shape": list(array.shape),
            "bytes": array.nbytes,
            "sha256": hashlib.sha256(raw).hexdigest(),
        }
    return [rows[name] for name in weights]


def layers_of(graph: Graph) -> list[dict[str, Any]]:
    """Each layer label in graph order: operations, the shape it leaves for one sample, its parameters."""
    known = graph.infer(1)
    found: dict[str, dict[str, Any]] = {}
    for place in sorted(graph.reachable(training=False)):
        node = graph.nodes[place]
        if node.op in ("input", "const"):
            continue
        row = found.setdefault(node.layer, {"layer": node.layer, "operations": 0, "output": [], "parameters": 0})
        if node.op == "param":
            row["parameters"] += int(np.prod(known.shapes[place], dtype=object)) if node.attrs["trainable"] else 0
        else:
            row["operations"] += 1
            row["output"] = list(known.shapes[place][1:])
    return list(found.values())


def _model(model: Model) -> dict[str, Any]:
    graph = model.graph
    return {
        "model": "whole",
        "graph": {
            "sha256": graph.sha256,
            "input": list(graph.input_shape),
            "input_dtype": graph.nodes[graph.input].attrs["dtype"],
            "output": list(graph.output_shape),
            "nodes": len(graph.nodes),
            "operations": dict(sorted(Counter(node.op for node in graph.nodes).items())),
            "parameters": graph.parameter_count,
            "flops_per_sample": graph.flops(1),
        },
        "layers": layers_of(graph),
        "tensors": tensors_of(model.weights),
        "facts": msgspec.to_builtins(msgspec.structs.replace(model.facts, history=[])),
        "history": msgspec.to_builtins(model.history),
        "numerics": model.numerics,
        "training_state_bytes": len(model.training or b""),
    }


def _see_safetensors(path: Path, advance: Advance | None, options: Mapping[str, Any]) -> _Seen:
    with path.open("rb") as file:
        read: Any = Hashed(file)
        tensors, metadata = safetensors.load_from(read, os.fstat(file.fileno()).st_size, str(path), advance)
    kept = {key: value for key, value in metadata.items() if key != GRAPH_KEY and len(value) <= 1000}
    facts = {"sha256": read.digest.hexdigest(), "metadata": kept, "numerics": metadata.get(NUMERICS)}
    return _Seen(facts, lambda: safetensors_content(path, tensors, metadata), lambda: tensors_of(tensors))


def _see_cyxmodel(path: Path, advance: Advance | None, options: Mapping[str, Any]) -> _Seen:
    facts: dict[str, Any] = {}
    if path.is_file():
        facts["sha256"] = _digests(path, {}, advance)[0]
    if zipfile.is_zipfile(path):
        held = cyxmodel.load(path)
        facts |= {"version": held.version, "parts": dict(held.sha256)}
    else:
        facts["version"] = "CyxWiz"
    return _Seen(facts, lambda: format_of(path).load(path))


def _see_onnx(path: Path, advance: Advance | None, options: Mapping[str, Any]) -> _Seen:
    from cyxcore import onnx

    data = path.read_bytes()
    if advance is not None:
        advance(len(data))
    options = dict(options)
    held = onnx.load_bytes(data, f"onnx {path}", path.parent if options.pop("external_data", False) else None)
    arrays = {name: array for name, array in held.initializers.items() if array.dtype.kind != "V"}
    facts = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "opset": held.opset,
        "producer": f"{held.proto['producer_name']} {held.proto['producer_version']}".strip()[:80],
        "operators": held.operators,
        "inputs": [signature._asdict() for signature in held.inputs],
        "outputs": [signature._asdict() for signature in held.outputs],
    }
    return _Seen(facts, lambda: onnx_content(held, **options), lambda: tensors_of(arrays))


def _see_gguf(path: Path, advance: Advance | None, options: Mapping[str, Any]) -> _Seen:
    file = GGUFFile(path)
    sha256, digests = _digests(path, {name: (info.start, info.stop) for name, info in file.tensors.items()}, advance)
    tensors = [
        {
            "name": name,
            "dtype": info.type.name,
            "shape": list(info.shape),
            "bytes": info.stop - info.start,
            "sha256": digests[name],
        }
        for name, info in file.tensors.items()
    ]
    plain = {key: found.value for key, found in file.metadata.items() if not found.is_array}
    counts = {key: f"{len(found.value)} × {found.kind}" for key, found in file.metadata.items() if found.is_array}
    known = {key.removeprefix("general."): str(plain[key])[:80] for key in _TOLD if key in plain}
    known["parameters"] = f"{sum(math.prod(info.shape) for info in file.tensors.values()):,}"
    facts = {
        "sha256": sha256,
        "version": f"GGUF version {file.version}",
        "metadata": {key: value for key, value in plain.items() if len(str(value)) <= 1000} | counts,
        "facts": {"about": known},
    }
    return _Seen(facts, lambda: format_of(path).load(path), lambda: tensors)


_TOLD = ("general.architecture", "general.name")


# How a file of each kind is looked at.
_SEEN: dict[str, Callable[[Path, Advance | None, Mapping[str, Any]], _Seen]] = {
    ".safetensors": _see_safetensors,
    ".cyxmodel": _see_cyxmodel,
    ".onnx": _see_onnx,
    ".gguf": _see_gguf,
}

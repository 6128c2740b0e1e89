"""What a model file holds, as plain data: for `cyx inspect`, and for whoever looks before opening."""

import hashlib
import math
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from cyxcore import cyxmodel, safetensors
from cyxcore.errors import FormatError
from cyxcore.gguf import GGUFFile
from cyxcore.graph import Graph
from cyxcore.model import GRAPH_KEY, Model, format_of, load_model

Array = np.ndarray[Any, Any]
Advance = safetensors.Advance


def describe_model(path: str | os.PathLike[str], advance: Advance | None = None, **options: Any) -> dict[str, Any]:
    """Format, bytes, SHA-256, graph, layers, tensors with their digests, facts and history of a file.

    A file that is no whole model (weights alone, an ONNX graph of several inputs) is described as far as it goes, and
    `model` says why it is none. Raises FormatError for a damaged one. options: as of load_model.
    """
    target = Path(path)
    extension = target.suffix.lower()
    format_of(target)
    found: dict[str, Any] = {"path": str(path), "format": extension[1:]}
    if target.is_file():
        found |= {"bytes": target.stat().st_size, "sha256": _file_sha256(target, advance)}
    found |= _BARE.get(extension, lambda path, options: {})(target, options)
    try:
        model = load_model(target, **options)
    except FormatError as error:
        if not found.get("tensors"):
            raise
        return found | {"model": str(error)}
    return found | _model(model)


def _file_sha256(path: Path, advance: Advance | None) -> str:
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(safetensors.MEBIBYTE):
            digest.update(block)
            done += len(block)
            if advance is not None:
                advance(done)
    return digest.hexdigest()


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
        "training_state_bytes": len(model.training or b""),
    }


def _bare_safetensors(path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    tensors, metadata = safetensors.load(path)
    kept = {key: value for key, value in metadata.items() if key != GRAPH_KEY and len(value) <= 1000}
    return {"metadata": kept, "tensors": tensors_of(tensors)}


def _bare_cyxmodel(path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    if not zipfile.is_zipfile(path):
        return {"version": "CyxWiz"}
    held = cyxmodel.load(path)
    return {"version": held.version, "parts": dict(held.sha256)}


def _bare_onnx(path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    from cyxcore import onnx

    held = onnx.load(path, bool(options.get("external_data")))
    arrays = {name: array for name, array in held.initializers.items() if array.dtype.kind != "V"}
    return {
        "opset": held.opset,
        "producer": f"{held.proto['producer_name']} {held.proto['producer_version']}".strip()[:80],
        "operators": held.operators,
        "inputs": [signature._asdict() for signature in held.inputs],
        "outputs": [signature._asdict() for signature in held.outputs],
        "tensors": tensors_of(arrays),
    }


def _bare_gguf(path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    file = GGUFFile(path)
    tensors = [
        {
            "name": name,
            "dtype": info.type.name,
            "shape": list(info.shape),
            "bytes": info.stop - info.start,
            "sha256": hashlib.sha256(file.raw(name).data).hexdigest(),
        }
        for name, info in file.tensors.items()
    ]
    plain = {key: found.value for key, found in file.metadata.items() if not found.is_array}
    counts = {key: f"{len(found.value)} × {found.kind}" for key, found in file.metadata.items() if found.is_array}
    known = {key.removeprefix("general."): str(plain[key])[:80] for key in _TOLD if key in plain}
    known["parameters"] = f"{sum(math.prod(info.shape) for info in file.tensors.values()):,}"
    return {
        "version": f"GGUF version {file.version}",
        "metadata": {key: value for key, value in plain.items() if len(str(value)) <= 1000} | counts,
        "tensors": tensors,
        "facts": {"about": known},
    }


_TOLD = ("general.architecture", "general.name")


# What is known of a file of each kind although it may be no whole model.
_BARE: dict[str, Callable[[Path, Mapping[str, Any]], dict[str, Any]]] = {
    ".safetensors": _bare_safetensors,
    ".cyxmodel": _bare_cyxmodel,
    ".onnx": _bare_onnx,
    ".gguf": _bare_gguf,
}

"""A GGUF file made another one: stored in another kind, as safetensors, or back from these.

A language model in a GGUF file is tensors and metadata, and no graph. So there are three ways to convert it, and none
to a format that holds a graph.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cyxcore import safetensors
from cyxcore.errors import CyxError, FormatError
from cyxcore.gguf.blocks import BY_NAME, PLAIN, QUANTIZE, dequantize, quantize
from cyxcore.gguf.file import SCALARS, GGUFFile, StoredTensor, Strings, Value, save

Array = np.ndarray[Any, Any]
Advance = Callable[[int], None]

KINDS = tuple(QUANTIZE)
METADATA_KEY = "gguf"  # of a .safetensors file: the metadata of the GGUF file, as JSON
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K": 14, "Q5_K": 16, "Q6_K": 18, "BF16": 32}
_DTYPES = {kind: dtype for kind, dtype in SCALARS.values()}
_SAFE = {"F64": "F64", "I8": "I8", "I16": "I16", "I32": "I32", "I64": "I64", "F16": "F16", "F32": "F32"}


def rewrite_gguf(source: Path, target: Path, kind: str | None = None, advance: Advance | None = None) -> dict[str, Any]:
    """Convert by the endings: .gguf to .gguf or .safetensors, or a .safetensors that came from a .gguf back to one.

    kind: how matrices are stored in a .gguf (F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q5_K, Q6_K); None: as they are. Vectors
    stay as they are, and so do matrices whose rows are no whole blocks of that kind. In a .safetensors all that is
    quantised becomes float32, since nothing there says what the blocks are.

    Returns the tensors, the bytes written, and how many are stored in `kind`. Raises FormatError.
    """
    if kind is not None and kind not in KINDS:
        raise FormatError(f"gguf: expected a kind of {', '.join(KINDS)}, got {kind!r}")
    endings = (source.suffix.lower(), target.suffix.lower())
    if endings == (".gguf", ".gguf"):
        file = GGUFFile(source)
        metadata, tensors = dict(file.metadata), {name: _kept(file, name) for name in file.tensors}
    elif endings == (".safetensors", ".gguf"):
        metadata, tensors = _from_safetensors(source)
    elif endings == (".gguf", ".safetensors"):
        if kind is not None:
            raise FormatError(f"{target}: {kind} is a way to store matrices in a .gguf file only; leave --quantize out")
        return _to_safetensors(GGUFFile(source), target, advance)
    else:
        raise FormatError(
            f"{source} → {target}: a language model of a .gguf file has no graph; it can become another .gguf "
            "(--quantize) or a .safetensors, and such a .safetensors a .gguf again"
        )
    changed = 0
    if kind is not None:
        wanted = {name for name, stored in tensors.items() if _fits(stored, kind)}
        for name in wanted:
            tensors[name] = _as(tensors[name], kind, name)
        changed = len(wanted)
        metadata["general.file_type"] = Value("u32", FILE_TYPES[kind])
        if BY_NAME[kind].block_size > 1:
            metadata["general.quantization_version"] = Value("u32", 2)
    save(target, metadata, tensors, None if advance is None else lambda done, total: advance(done))
    return {"tensors": len(tensors), "bytes": target.stat().st_size, "changed": changed}


def _kept(file: GGUFFile, name: str) -> StoredTensor:
    info = file.tensors[name]
    return StoredTensor(info.type.name, info.shape, file.raw(name))


def _fits(stored: StoredTensor, kind: str) -> bool:
    return len(stored.shape) > 1 and stored.type != kind and stored.shape[-1] % BY_NAME[kind].block_size == 0


def _as(stored: StoredTensor, kind: str, name: str) -> StoredTensor:
    try:
        return StoredTensor(kind, stored.shape, quantize(dequantize(stored.raw, stored.type), kind))
    except CyxError as error:
        raise FormatError(f"{name}: {error}") from None


def _to_safetensors(file: GGUFFile, target: Path, advance: Advance | None) -> dict[str, Any]:
    tensors: dict[str, Array] = {}
    for name, info in file.tensors.items():
        as_it_is = info.type.name in _SAFE
        values = file.raw(name).view(PLAIN[info.type.name]) if as_it_is else dequantize(file.raw(name), info.type.name)
        tensors[name] = values.reshape(info.shape)
    kinds = {name: info.type.name for name, info in file.tensors.items()}
    said = {key: [value.kind, _plain(value.value)] for key, value in file.metadata.items()}
    metadata = {"format": "pt", METADATA_KEY: json.dumps({"metadata": said, "kinds": kinds}, ensure_ascii=False)}
    safetensors.save(target, tensors, metadata, advance=advance)
    return {"tensors": len(tensors), "bytes": target.stat().st_size, "changed": 0}


def _from_safetensors(source: Path) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    arrays, found = safetensors.load(source)
    if METADATA_KEY not in found:
        raise FormatError(
            f"{source}: expected a file that was converted from a .gguf (with its metadata as {METADATA_KEY!r}); a "
            "model of one's own becomes one by cx.llm.save_gguf"
        )
    try:
        held = json.loads(found[METADATA_KEY])
        metadata = {str(key): _value(*said) for key, said in held["metadata"].items()}
        metadata.pop("general.alignment", None)  # of the bytes of that file
        order = [str(name) for name in held["kinds"]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise FormatError(f"{source}: {METADATA_KEY}: cannot be read: {str(error)[:200]}") from None
    if sorted(order) != sorted(arrays):
        raise FormatError(f"{source}: {METADATA_KEY} names other tensors than the file has")
    stored = {}
    for name in order:
        array = arrays[name]
        kind = next((kind for kind, dtype in PLAIN.items() if np.dtype(dtype) == array.dtype), None)
        if kind is None or not array.ndim:
            raise FormatError(f"{source}: {name}: a .gguf holds no {array.dtype.name} of shape {list(array.shape)}")
        stored[name] = StoredTensor(kind, array.shape, np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return metadata, stored


def _plain(value: Any) -> Any:
    if isinstance(value, Strings):
        return list(value)
    return value.tolist() if isinstance(value, np.ndarray) else value


def _value(kind: str, value: Any) -> Value:
    """The opposite of _plain. Raises TypeError, ValueError, KeyError for what is none."""
    if isinstance(value, list):
        return Value(kind, Strings.of(value) if kind == "string" else np.array(value, _DTYPES[kind]))
    expected = {"string": str, "bool": bool, "f32": float, "f64": float}.get(kind, int)
    if kind not in {*_DTYPES, "string"} or not isinstance(value, expected):
        raise TypeError(f"expected {kind}, got {type(value).__name__}")
    if isinstance(value, str):
        value.encode()  # half of a surrogate pair is no text
    if isinstance(value, bool) != (kind == "bool"):
        raise TypeError(f"expected {kind}, got bool")
    return Value(kind, value)

"""cx.save and cx.load: state dicts and checkpoints, where PyTorch has torch.save, without its pickles.

A file is a safetensors file. The tensors of a plain state dict stand in it by their names, so any tool opens it. What
is nested, or holds more than tensors, has its outline in the metadata, as JSON; its tensors are named by their paths.
The metadata also names the numeric class of the moment (cyxcore/precision.py), as every model file does.
"""

import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cyxcore import device as devices
from cyxcore import precision, safetensors
from cyxcore.conversion import as_array
from cyxcore.eager import Tensor
from cyxcore.errors import FormatError, SpecError

Array = np.ndarray[Any, Any]
File = str | os.PathLike[str] | BinaryIO

OUTLINE, NUMERICS = "cyx.outline", "cyx.numerics"
KEY = "a key of "  # how the path of a key begins: it holds no tensor
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # how torch.save's files begin
_PARTS = {"complex64": "float32", "complex128": "float64"}  # safetensors has no complex numbers


def save(obj: Any, f: File) -> None:
    """Write tensors, arrays, numbers, text, None, and dicts, lists and tuples of them.

    obj: a state dict, or a checkpoint: {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}.
    f: a path, whose file is replaced as a whole, or an open binary file. Raises SpecError for other objects, which
    names their place.
    """
    tensors: dict[str, Array] = {}
    try:
        outline = _outlined(obj, "", tensors, {})
    except RecursionError:
        raise SpecError(
            "save: expected dicts, lists and tuples of a few levels; these are too deep, or hold themselves"
        ) from None
    plain = isinstance(obj, Mapping) and all(
        isinstance(name, str) and node == {"tensor": name} for name, node in outline["dict"]
    )
    metadata = {NUMERICS: precision.in_effect()}
    if not plain:
        metadata[OUTLINE] = json.dumps(outline, separators=(",", ":"))
    if isinstance(f, (str, os.PathLike)):
        safetensors.save(f, tensors, metadata)
    else:
        _check_file("save", f, "write")
        for piece in safetensors.pieces(tensors, metadata):
            f.write(piece)


def load(f: File, map_location: Any = None, weights_only: bool = True) -> Any:
    """What save() wrote, its arrays as tensors; of another safetensors file its tensors by name.

    map_location: the device they are put on. weights_only: nothing else is read, whatever it says. Raises FormatError
    for a pickle, which can run code, and for damaged files.
    """
    if isinstance(f, (str, os.PathLike)):
        with Path(f).open("rb") as file:
            return _loaded(file, os.fstat(file.fileno()).st_size, os.fspath(f), map_location)
    _check_file("load", f, "read")
    data = f.read()
    return _loaded(io.BytesIO(data), len(data), "", map_location)


def _check_file(where: str, file: Any, verb: str) -> None:
    if not hasattr(file, verb) or isinstance(file, io.TextIOBase):
        raise SpecError(f"{where}: expected a path or a file opened in binary mode, got a {type(file).__name__}")


def _outlined(value: Any, path: str, tensors: dict[str, Array], seen: dict[int, Any]) -> Any:
    """JSON that stands for a value; its arrays go into `tensors`. One that is there twice is stored once."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, (Tensor, np.ndarray)) and not path.startswith(KEY):
        if id(value) not in seen:
            seen[id(value)] = (_stored(value, path, tensors), value)
        return seen[id(value)][0]
    if isinstance(value, Mapping):
        pairs = [
            [_outlined(key, f"{KEY}{path or 'the dict'}", {}, {}), _outlined(own, _inner(path, key), tensors, seen)]
            for key, own in value.items()
        ]
        return {"dict": pairs}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_outlined(own, _inner(path, place), tensors, seen) for place, own in enumerate(value)]}
    of = "; save its state_dict()" if hasattr(value, "state_dict") else ""
    raise SpecError(
        f"save: expected tensors, numbers, text, None, and dicts, lists and tuples of them, got a "
        f"{type(value).__name__} at {path or 'the top'}{of}"
    )


def _inner(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _stored(value: Any, path: str, tensors: dict[str, Array]) -> dict[str, str]:
    array, name, number = devices.host(as_array(value)), path or "tensor", 1
    while name in tensors or name == "__metadata__":
        number += 1
        name = f"{path or 'tensor'}#{number}"
    try:
        name.encode()
    except UnicodeEncodeError:
        raise SpecError(f"save: expected keys of valid Unicode, got {name!r}") from None
    parts = _PARTS.get(array.dtype.name)
    tensors[name] = array if parts is None else array.reshape(*array.shape, 1).view(parts)
    return {"tensor" if parts is None else "complex": name}


def _loaded(file: BinaryIO, size_bytes: int, name: str, device: Any) -> Any:
    begins = file.read(9)
    if begins.startswith(_PICKLES) and begins[8:] != b"{":  # the length of a header may begin so too
        raise FormatError(
            f"load {name}: expected a safetensors file, got a pickle, as torch.save writes it; it can run code and is "
            "not read. Where PyTorch is: safetensors.torch.save_file(torch.load(PATH, weights_only=True), "
            '"weights.safetensors")'
        )
    file.seek(0)
    arrays, metadata = safetensors.load_from(file, size_bytes, name, dtypes=safetensors.WITH_BFLOAT16)
    where = devices.default_device() if device is None else devices.check_name(str(device))
    tensors = {key: Tensor(array).to(where) for key, array in arrays.items()}
    if OUTLINE not in metadata:
        return tensors
    try:
        return _filled(json.loads(metadata[OUTLINE]), tensors)
    except (ArithmeticError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"load {name}: the outline of what was saved is damaged: {error!r}") from None


def _filled(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value that JSON stands for. Raises KeyError, TypeError or ValueError where it stands for none."""
    if not isinstance(node, dict):
        if isinstance(node, list):
            raise ValueError("a list without a kind")
        return node
    ((kind, held),) = node.items()
    if kind in ("tensor", "complex"):
        return tensors[held] if kind == "tensor" else _joined(tensors[held])
    if kind == "float":
        return float(held)
    if kind == "dict":
        return {_filled(key, tensors): _filled(own, tensors) for key, own in held}
    return {"list": list, "tuple": tuple}[kind](_filled(own, tensors) for own in held)


def _joined(parts: Tensor) -> Tensor:
    array = devices.host(parts._data)
    wanted = {part: whole for whole, part in _PARTS.items()}[parts.dtype]
    return Tensor(array.view(wanted).reshape(array.shape[:-1])).to(parts.device)

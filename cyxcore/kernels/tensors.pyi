from collections.abc import Callable, Mapping
from typing import Any

class Node:
    op: Any
    inputs: tuple[Any, ...]
    attrs: Mapping[str, Any]
    time: int
    def __init__(self, op: Any, inputs: tuple[Any, ...], attrs: Mapping[str, Any], time: int) -> None: ...

class Held:
    _data: Any
    shape: tuple[int, ...]
    dtype: str
    grad: Any
    requires_grad: bool
    _op: Node | None
    _memory: Any
    _view: Any
    _hooks: Any
    def _bounds(self) -> tuple[int, int] | None: ...

def now() -> int: ...
def is_recording() -> bool: ...
def set_recording(on: bool) -> None: ...
def connect(
    tensor_type: type,
    devices: dict[str, Any],
    infer: Callable[..., Any],
    operate: dict[str, Callable[[Any, Any], Any]],
    views: frozenset[str],
    no_gradient: frozenset[str],
    differentiable: frozenset[str],
) -> None: ...

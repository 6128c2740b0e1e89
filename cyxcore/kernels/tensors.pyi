from collections.abc import Callable, Mapping
from typing import Any

class Memory:
    written: float
    put: float
    def __init__(self, written: float = 0) -> None: ...

class View:
    base: Any
    steps: tuple[tuple[str, Mapping[str, Any]], ...]
    since: float
    def __init__(self, base: Any, steps: tuple[tuple[str, Mapping[str, Any]], ...], since: float) -> None: ...

class Node:
    @property
    def op(self) -> Any: ...
    @property
    def inputs(self) -> tuple[Any, ...]: ...
    @property
    def attrs(self) -> Mapping[str, Any]: ...
    @property
    def time(self) -> int: ...
    def __init__(self, op: Any, inputs: tuple[Any, ...], attrs: Mapping[str, Any], time: int) -> None: ...

class Walk:
    def __iter__(self) -> Walk: ...
    def __next__(self) -> tuple[Any, Any]: ...
    def into_leaves(self) -> None: ...

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
    look: Callable[..., Any],
    general: dict[str, Any],
    operate: dict[str, Callable[[Any, Any], Any]],
    views: frozenset[str],
    no_gradient: frozenset[str],
    differentiable: frozenset[str],
) -> None: ...
def connect_tape(
    backwards: Callable[..., Any],
    rules: Callable[..., Any],
    joined: Callable[..., Any],
    whole: Callable[..., Any],
    piece: type,
) -> None: ...
def walk(root: Any, start: Any, create_graph: bool) -> Walk | None: ...

class Replay:
    def run(self, given: tuple[Any, ...], state: dict[str, Any]) -> bool: ...

def watched(
    update: Callable[..., Any], given: tuple[Any, ...], states: dict[int, dict[str, Any]], place: int
) -> tuple[Any, Replay | None]: ...
def scalar(number: float, dtype: str) -> Any: ...

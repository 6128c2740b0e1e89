"""What a tensor holds, and the clock of what is recorded: in C (kernels/tensors.pyx), or here where that is missing.

Without the compiled part tensors work on the device "reference", by the general way and without the buffer protocol.
"""

import importlib
import threading
from typing import Any


class _Node:
    """What a result remembers: the operation (a name, or an object with a gradient of its own), inputs and time."""

    __slots__ = ("attrs", "inputs", "op", "time")

    def __init__(self, op: Any, inputs: tuple[Any, ...], attrs: Any, time: int) -> None:
        self.op, self.inputs, self.attrs, self.time = op, inputs, attrs, time


class _Held:
    """The fields of a tensor."""

    _op = _memory = _view = _hooks = grad = None
    requires_grad = False

    def _apply(self, op: str, inputs: Any, attrs: Any) -> Any:
        return self._apply_generally(op, inputs, attrs)  # type: ignore[attr-defined]

    def _next(self, op: str, *others: Any, **attrs: Any) -> Any:
        return self._next_generally(op, *others, **attrs)  # type: ignore[attr-defined]

    def _bounds(self) -> None:
        """Whoever asks looks for the least and the greatest element."""


class _Plain:
    """The compiled module's part that keeps the time, in Python."""

    Held, Node = _Held, _Node
    clock = 0
    own = threading.local()

    def now(self) -> int:
        self.clock += 1
        return self.clock

    def is_recording(self) -> bool:
        return getattr(self.own, "recording", True)

    def set_recording(self, on: bool) -> None:
        self.own.recording = on

    def connect(self, *general: Any) -> None:
        """There is no short way."""


try:
    _made: Any = importlib.import_module("cyxcore.kernels.tensors")
except ImportError:
    _made = _Plain()

Held: Any = _made.Held
Node: Any = _made.Node
connect = _made.connect
is_recording = _made.is_recording
now = _made.now
set_recording = _made.set_recording

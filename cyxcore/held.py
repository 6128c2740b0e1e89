"""What a tensor holds, and the clock of what is recorded: in C (kernels/tensors.pyx), or here where that is missing.

Without the compiled part tensors work on the device "reference", by the general way and without the buffer protocol.
"""

import importlib
import threading
from typing import Any


class _Node:
    """What a result remembers: the operation (a name, or an object with a gradient of its own), inputs and time."""

    __slots__ = ("attrs", "followed", "forgotten", "inputs", "op", "time")

    def __init__(self, op: Any, inputs: tuple[Any, ...], attrs: Any, time: int) -> None:
        self.op, self.inputs, self.attrs, self.time = op, inputs, attrs, time
        self.followed = [x.requires_grad for x in inputs]  # then: one that was frozen gets no gradient later
        self.forgotten = False

    def forget(self) -> None:
        """Let go of the inputs, and of what the operation has kept."""
        self.forgotten, self.op, self.inputs, self.attrs, self.followed = True, None, (), None, []


class _Memory:
    """What tensors of one memory have in common."""

    __slots__ = ("put", "written")

    def __init__(self, written: float = 0) -> None:
        self.written = written  # when it was last written to
        self.put: float = 0  # when that last changed what the tensor remembers


class _View:
    """How a tensor comes from the one whose memory it shares."""

    __slots__ = ("base", "since", "steps")

    def __init__(self, base: Any, steps: tuple[Any, ...], since: float) -> None:
        self.base = base  # None: memory with gaps that is no tensor's
        self.steps = steps
        self.since = since  # the time at which what the view remembers was right


class _Held:
    """The fields of a tensor."""

    _op = _memory = _view = _hooks = grad = None
    requires_grad = False

    @property
    def _on_host(self) -> bool:
        return not hasattr(self._data, "__cuda_array_interface__")  # type: ignore[attr-defined]

    def __getitem__(self, index: Any) -> Any:
        return self._picked(index)  # type: ignore[attr-defined]

    def copy(self) -> Any:
        return self._apply("cast", [self], {"dtype": self.dtype})  # type: ignore[attr-defined]

    def detach(self) -> Any:
        return self._detached()  # type: ignore[attr-defined]

    def _apply(self, op: str, inputs: Any, attrs: Any) -> Any:
        return self._apply_generally(op, inputs, attrs)  # type: ignore[attr-defined]

    def _next(self, op: str, *others: Any, **attrs: Any) -> Any:
        return self._next_generally(op, *others, **attrs)  # type: ignore[attr-defined]

    def _bounds(self) -> None:
        """Whoever asks looks for the least and the greatest element."""


class _Watch:
    """What a compiled call depends on: looked at anew in each call."""

    def place(self, *where: Any) -> None:
        """Nothing is noted, as nothing is compared."""

    table = options = items = size = attribute = tensor = answer = place

    def holds(self) -> bool:
        return False


class _Repeating:
    """A compiled function, all of whose calls go the long way."""

    _repeat = _watch = None

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        return self._called(inputs, named)  # type: ignore[attr-defined]


class _Plain:
    """The compiled module's part that keeps the time, in Python."""

    Held, Node, Memory, View, Watch, Repeating = _Held, _Node, _Memory, _View, _Watch, _Repeating
    clock = 0
    own = threading.local()

    def now(self) -> int:
        self.clock += 1
        return self.clock

    def later(self, count: int) -> int:
        self.clock += count
        return self.clock

    def is_recording(self) -> bool:
        return getattr(self.own, "recording", True)

    def set_recording(self, on: bool) -> None:
        self.own.recording = on

    def connect(self, *general: Any) -> None:
        """There is no short way."""

    also_plain = connect_tape = connect

    def becomes(self, kind: type) -> type:
        return kind

    def watched(self, update: Any, given: tuple[Any, ...], states: Any, place: int) -> tuple[Any, None]:
        return update(*given), None

    def kinds(self, tensors: list[Any]) -> tuple[Any, ...]:
        return tuple([kind for tensor in tensors for kind in (tensor.shape, tensor.dtype)])

    def refill(self, arrays: list[Any], tensors: list[Any]) -> list[int]:
        return list(range(len(arrays)))

    def repeat(self, *parts: Any) -> None:
        """No call is short."""

    def copied(self, array: Any, dtype: str) -> None:
        """Whoever asks makes it."""

    def filled(self, number: float, shape: tuple[int, ...]) -> None:
        """Whoever asks makes it."""

    def wrote(self, tensors: list[Any]) -> None:
        time = self.now()
        for tensor in tensors:
            tensor._shared().written = time

    def scalar(self, number: float, dtype: str) -> None:
        """Whoever asks makes it."""

    def is_of_leaves(self, tensor: Any) -> bool:
        """Nobody asks twice."""
        return tensor._op is None

    def walk(self, root: Any, start: Any, create_graph: bool, retain_graph: bool) -> None:
        """Nor one back."""


try:
    _made: Any = importlib.import_module("cyxcore.kernels.tensors")
except ImportError:
    _made = _Plain()

Dispatched: Any = getattr(_made, "Dispatched", None)  # None: a function is called as it is
Held: Any = _made.Held
Memory: Any = _made.Memory
Node: Any = _made.Node
Repeating: Any = _made.Repeating
View: Any = _made.View
Watch: Any = _made.Watch
also_plain = _made.also_plain
becomes = _made.becomes
connect = _made.connect
connect_tape = _made.connect_tape
copied = _made.copied
filled = _made.filled
is_of_leaves = _made.is_of_leaves
is_recording = _made.is_recording
kinds = _made.kinds
later = _made.later
now = _made.now
refill = _made.refill
repeat = _made.repeat
set_recording = _made.set_recording
scalar = _made.scalar
walk = _made.walk
watched = _made.watched
wrote = _made.wrote

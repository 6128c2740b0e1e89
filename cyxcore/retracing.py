"""Whether a compiled function does in later calls what it did in its first.

Its plan holds for good what the function read outside of tensors: a count, what an iterator gave, the time. So it is
traced again at the second call of each plan, at the fourth, the sixteenth and so on, and what it adds to the graph is
compared as it adds it: where the two differ an error is raised from the very line that reads what has changed.
"""

from collections.abc import Callable, Mapping, Sequence
from types import CodeType
from typing import Any

from cyxcore.errors import GraphError
from cyxcore.graph import Graph, Node


class Before:
    """What a function added to a graph when it was traced first, and what it returned."""

    use = 2  # of the plan: that in which it is traced again

    def __init__(
        self,
        graph: Graph,
        rebuild: Callable[[Any], Any],
        results: int,
        by_value: bool,
        missed: Sequence[dict[int, int]] = (),
    ) -> None:
        """rebuild: puts the results, the first outputs of the graph, into what the function returns.

        by_value: whether tensors around the function were constants then. missed: what each optimiser had in `missed`.
        """
        self.missed = missed
        self.nodes, self._ends, self.by_value = graph.nodes, (graph.outputs, graph.updates), by_value
        self._places = tuple(range(results))
        self._returned = rebuild(self._places)

    def compare(self, place: int, node: Node) -> None:
        """The node that the function adds at a place now. Raises GraphError where it was another one."""
        if place >= len(self.nodes):
            raise self._other(f"{_said(node)}, which it did not before")
        was = self.nodes[place]
        if was.op != node.op or was.inputs != node.inputs or not _are_equal(_matters(was), _matters(node)):
            raise self._other(f"{_said(node)} instead of {_said(was)}")

    def compare_ends(self, graph: Graph, rebuild: Callable[[Any], Any]) -> None:
        """What it returns and updates, when it has ended."""
        if len(graph.nodes) < len(self.nodes):
            raise self._other(f"nothing more, where it was {_said(self.nodes[len(graph.nodes)])} before")
        if (graph.outputs, graph.updates) != self._ends or rebuild(self._places) != self._returned:
            raise self._other("the same, but returns or updates something else")

    def _other(self, what: str) -> GraphError:
        when, kept = "second call", "which a plan would keep as it was"
        if self.use > 2:
            before = max(self.use // 4, 2)  # when it was traced the last time
            when, kept = f"call {self.use}", f"and stayed in its plan: what it gave since call {before} may be wrong"
        return GraphError(
            f"compile: in its {when} the function computes with {what}: it reads something outside of tensors that "
            f"changes by itself (a count, the time), {kept}; give it as an argument"
        )


def _matters(node: Node) -> Mapping[str, Any]:
    """Attributes of a node. What an optimiser's state begins with, Rprop's from the rate, matters to the first only."""
    return node.attrs if node.op != "param" else {name: value for name, value in node.attrs.items() if name != "init"}


def _said(node: Node) -> str:
    if node.op == "const":
        value = node.attrs["value"]
        return str(value[0]) if len(value) == 1 else f"constants of shape {node.attrs['shape']}"
    return f"{node.op} {node.attrs['name']!r}" if node.op in ("input", "param") else node.op


def _are_equal(one: Any, other: Any) -> bool:
    """Of attributes: functions made in each trace are equal where their code and what they hold is."""
    if one is other or type(one) is not type(other):
        return one is other
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_are_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_are_equal, one, other))
    if isinstance(one, (str, bytes, int, float, complex, CodeType)):
        return one == other or repr(one) == repr(other)  # NaN
    if hasattr(one, "tobytes"):
        return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()
    if hasattr(one, "__closure__"):
        held: tuple[Sequence[Any], ...] = tuple(
            [cell.cell_contents for cell in function.__closure__ or ()] for function in (one, other)
        )
        return one.__code__ is other.__code__ and _are_equal(*held) and _are_equal(one.__defaults__, other.__defaults__)
    if hasattr(one, "keywords"):
        return _are_equal((one.func, one.args, one.keywords), (other.func, other.args, other.keywords))
    return True  # an object made in each trace, of which nothing is known

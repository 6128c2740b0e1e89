"""The nodes of a graph file in the order in which they run, each with what it is connected to; or what is wrong.

Only what needs no shapes is decided here: kinds, parameters, pins, cycles, what leads from the data to the output.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from cyxcore.errors import SpecError
from cyxcore.graphfile import MAX_LINKS, MAX_NODES, GraphFile, LinkSpec, NodeSpec, SubgraphSpec
from cyxcore.nodekinds import KINDS, LABELS, TENSOR, Kind, checked, nearest
from cyxcore.templates import fill

SINKS = ("output", "loss", "penalty", "optimizer", "schedule", "regularization")
MAX_DEPTH = 16  # of subgraphs within subgraphs
MAX_VALUES = 1_000_000  # in the params of all nodes of subgraphs, with $names replaced


class Wire(NamedTuple):
    """An output of a node that was placed before."""

    node: str
    pin: int


class Placed(NamedTuple):
    """A node with its parameters in normal form. inputs: one for each pin, None where an optional one is free.

    carries: what each output pin gives; None of a labels pin that no labels come to.
    """

    id: str
    kind: str
    row: Kind
    options: Mapping[str, Any]
    prefix: str  # of the names of its parameters
    inputs: tuple[Wire | None, ...]
    carries: tuple[str | None, ...]

    def __str__(self) -> str:
        return f"node {self.id!r} ({self.kind})"


def wire(file: GraphFile) -> list[Placed]:
    """Every node but Subgraph's, in an order of computation. Raises SpecError."""
    nodes, links = _flat(file)
    if not nodes:
        raise SpecError("the graph has no nodes; begin with a DatasetInput")
    by_id = {str(node.id): node for node in nodes}
    _check_roles(by_id)
    edges = _edges(by_id, links)
    order = _ordered(list(by_id), edges)
    placed: dict[str, Placed] = {}
    for name in order:
        placed[name] = _place(by_id[name], edges[name], placed, by_id)
    _check_reached(list(placed.values()))
    return list(placed.values())


# subgraphs ----------------------------------------------------------------------------------------


def _flat(file: GraphFile) -> tuple[list[NodeSpec], list[LinkSpec]]:
    """Nodes and links with every subgraph in its node's place: its nodes are called "outer.inner"."""
    nodes: list[NodeSpec] = []
    links: list[LinkSpec] = []
    _unfold(SubgraphSpec(nodes=file.nodes, links=file.links), file.subgraphs, "", (), _Room(), nodes, links)
    seen: set[str] = set()
    for node in nodes:
        if str(node.id) in seen:
            raise SpecError(f"two nodes have the id {str(node.id)!r}; give each its own")
        seen.add(str(node.id))
    return nodes, links


class _Room:
    """What is left while subgraphs unfold: a small file can stand for more nodes and values than there is room for."""

    def __init__(self) -> None:
        self.nodes, self.links, self.values = MAX_NODES, MAX_LINKS, MAX_VALUES

    def take(self, part: SubgraphSpec) -> None:
        """Counts a part before anything is made of it, its Subgraph nodes too. Raises SpecError."""
        self.nodes -= len(part.nodes)
        self.links -= len(part.links)
        if self.nodes < 0 or self.links < 0:
            raise SpecError(f"expected at most {MAX_NODES:,} nodes and {MAX_LINKS:,} links, subgraphs unfolded")

    def take_values(self, params: Mapping[str, Any]) -> None:
        """Counts every number and text of params that were filled in. Raises SpecError."""
        waiting: list[Any] = [params]
        while waiting:
            one = waiting.pop()
            self.values -= 1
            if self.values < 0:
                raise SpecError(f"expected at most {MAX_VALUES:,} values in the params of all nodes of subgraphs")
            waiting.extend(one.values() if isinstance(one, Mapping) else one if isinstance(one, list) else ())


def _unfold(
    part: SubgraphSpec,
    known: Mapping[str, SubgraphSpec],
    prefix: str,
    inside: tuple[str, ...],
    room: _Room,
    nodes: list[NodeSpec],
    links: list[LinkSpec],
    twin: str | None = None,
    values: Mapping[str, Any] | None = None,
) -> None:
    """Input and Output nodes of a subgraph stay, as Identity: its node's pins are they, in their order.

    twin: the prefix of another unfolding of this part, whose parameters this one shares. values: of the $names in it.
    """
    room.take(part)
    entries: dict[str, list[str]] = {}  # of each Subgraph node of this part
    exits: dict[str, list[str]] = {}
    for node in part.nodes:
        name = prefix + str(node.id)
        if values is not None:
            node = _with_values(node, values, name)
            room.take_values(node.params)
        if node.type != "Subgraph":
            within = {"Input": "Identity", "Output": "Identity"} if inside else {}
            shares = None if node.shares is None else prefix + str(node.shares)
            if twin is not None:
                shares = twin + str(node.id if node.shares is None else node.shares)
            kind = within.get(node.type, node.type)
            nodes.append(msgspec.structs.replace(node, id=name, type=kind, shares=shares))
            continue
        options = _options(node, name)
        wanted = options["graph"]
        if wanted not in known:
            raise SpecError(f"node {name!r} (Subgraph): there is no subgraph {wanted!r}{nearest(wanted, list(known))}")
        if wanted in inside or len(inside) >= MAX_DEPTH:
            chain = " → ".join((*inside, wanted))
            raise SpecError(f"node {name!r} (Subgraph): subgraphs hold each other without end: {chain}")
        inner = known[wanted]
        entries[str(node.id)] = [f"{name}.{one.id}" for one in inner.nodes if one.type == "Input"]
        exits[str(node.id)] = [f"{name}.{one.id}" for one in inner.nodes if one.type == "Output"]
        shared = None if node.shares is None else f"{prefix}{node.shares}."
        if twin is not None:
            shared = f"{twin}{node.id}."
        _unfold(inner, known, f"{name}.", (*inside, wanted), room, nodes, links, shared, options["params"])
    free = {name: iter(pins) for name, pins in entries.items()}
    for link in part.links:
        source, from_pin, to, to_pin = str(link.source), link.from_pin, str(link.to), link.to_pin
        if source in exits:
            source, from_pin = _pin_of(exits[source], from_pin, prefix + source, "output"), 0
        else:
            source = prefix + source
        if to in entries:
            chosen = next(free[to], None) if to_pin is None else _pin_of(entries[to], to_pin, prefix + to, "input")
            if chosen is None:
                raise SpecError(f"node {prefix + to!r} (Subgraph): more links come in than it has Input nodes")
            to, to_pin = chosen, 0
        else:
            to = prefix + to
        links.append(LinkSpec(source=source, to=to, from_pin=from_pin, to_pin=to_pin))


def _with_values(node: NodeSpec, values: Mapping[str, Any], name: str) -> NodeSpec:
    try:
        return msgspec.structs.replace(node, params=fill(node.params, values))
    except SpecError as error:
        raise SpecError(f"node {name!r} ({node.type}): {error}") from None


def _pin_of(pins: list[str], pin: str | int, name: str, what: str) -> str:
    for place, inner in enumerate(pins):
        if pin in (place, inner.removeprefix(f"{name}.")):
            return inner
    raise SpecError(f"node {name!r} (Subgraph): there is no {what} pin {pin!r}; it has {len(pins)}")


# links --------------------------------------------------------------------------------------------


def _kind(node: NodeSpec, name: str) -> Kind:
    if node.type not in KINDS:
        raise SpecError(f"node {name!r}: unknown type {node.type[:60]!r}{nearest(node.type, list(KINDS))}")
    if node.type == "Lambda":
        raise SpecError(
            f"node {name!r} (Lambda): not permitted: a graph file holds data, never code; build it from other nodes"
        )
    return KINDS[node.type]


def _options(node: NodeSpec, name: str) -> dict[str, Any]:
    _kind(node, name)
    try:
        return checked(node.type, node.params)
    except SpecError as error:
        raise SpecError(f"node {name!r} ({node.type}): {error}") from None


def _edges(nodes: Mapping[str, NodeSpec], links: Iterable[LinkSpec]) -> dict[str, list[LinkSpec]]:
    """The links that come to each node."""
    found: dict[str, list[LinkSpec]] = {name: [] for name in nodes}
    for link in links:
        for end in (str(link.source), str(link.to)):
            if end not in nodes:
                where = f"link from {str(link.source)!r} to {str(link.to)!r}"
                raise SpecError(f"{where}: there is no node {end!r}{nearest(end, list(nodes)[:1000])}")
        found[str(link.to)].append(link)
    return found


def _ordered(names: list[str], edges: Mapping[str, list[LinkSpec]]) -> list[str]:
    """Kahn's order: each node behind all that come to it, otherwise as in the file. Raises SpecError with a cycle."""
    rank = {name: place for place, name in enumerate(names)}
    missing = {name: len(edges[name]) for name in names}
    leaving: dict[str, list[str]] = {name: [] for name in names}
    for name in names:
        for link in edges[name]:
            leaving[str(link.source)].append(name)
    ready = [rank[name] for name in names if not missing[name]]
    heapq.heapify(ready)
    order: list[str] = []
    while ready:
        name = names[heapq.heappop(ready)]
        order.append(name)
        for other in leaving[name]:
            missing[other] -= 1
            if not missing[other]:
                heapq.heappush(ready, rank[other])
    if len(order) < len(names):
        cycle = _cycle({name for name in names if missing[name]}, edges)
        raise SpecError(f"the graph has a cycle: {' → '.join(map(repr, cycle))}; remove one of these links")
    return order


def _cycle(stuck: set[str], edges: Mapping[str, list[LinkSpec]]) -> list[str]:
    """One cycle among the nodes that never became ready, each with one of them before it."""
    name = min(stuck)
    path: list[str] = []
    seen: dict[str, int] = {}
    while name not in seen:
        seen[name] = len(path)
        path.append(name)
        name = next(str(link.source) for link in edges[name] if str(link.source) in stuck)
    around = path[seen[name] :][::-1]
    first = around.index(min(around))
    around = around[first:] + around[:first]
    shown = around if len(around) <= 12 else [*around[:11], "…"]
    return [*shown, around[0]]


def _place(
    node: NodeSpec, links: list[LinkSpec], placed: Mapping[str, Placed], nodes: Mapping[str, NodeSpec]
) -> Placed:
    name = str(node.id)
    options, row = _options(node, name), KINDS[node.type]
    where = f"node {name!r} ({node.type})"
    if node.type == "Input":
        raise SpecError(f"{where}: stands only in a subgraph; use DatasetInput")
    prefix = f"{name}."
    if node.shares is not None:
        prefix = f"{_shared(node, nodes, where)}."
    arriving = [(link, _source(link, placed[str(link.source)])) for link in links]
    inputs = _variadic(row, arriving, where) if row.at_least else _pinned(row, arriving, where)
    return Placed(name, node.type, row, options, prefix, inputs, _carried(node.type, row, options, inputs, placed))


def _shared(node: NodeSpec, nodes: Mapping[str, NodeSpec], where: str) -> str:
    other = nodes.get(str(node.shares))
    if other is None or other.type != node.type or other.shares is not None:
        raise SpecError(
            f"{where}: shares: expected the id of another {node.type} with parameters of its own, got {node.shares!r}"
        )
    return str(other.id)


def _carried(
    kind: str, row: Kind, options: Mapping[str, Any], inputs: tuple[Wire | None, ...], placed: Mapping[str, Placed]
) -> tuple[str | None, ...]:
    if kind == "Split":
        return (TENSOR,) * (options["num_splits"] if options["sizes"] is None else len(options["sizes"]))
    given = [None if one is None else placed[one.node].carries[one.pin] for one in inputs]
    if kind == "OneHotEncode":
        return (given[0],)
    if kind == "DatasetInput":
        return TENSOR, LABELS
    if row.group == "data":
        return TENSOR, given[1]
    return (row.carries,) * len(row.outputs)


class _Arriving(NamedTuple):
    wire: Wire
    carries: str
    text: str


def _source(link: LinkSpec, source: Placed) -> _Arriving:
    """The output pin that a link comes from."""
    names = list(source.row.outputs)
    pin = link.from_pin
    place = names.index(pin) if isinstance(pin, str) and pin in names else pin
    if not isinstance(place, int) or not 0 <= place < len(source.carries):
        known = ", ".join(names) or f"0..{len(source.carries) - 1}"
        raise SpecError(f"{source}: there is no output pin {pin!r}; it has: {known}")
    carries = source.carries[place]
    if carries is None:
        raise SpecError(f"{source}: gives no labels, as none come in; connect the labels pin of the DatasetInput to it")
    return _Arriving(Wire(source.id, place), carries, str(source))


def _variadic(row: Kind, arriving: list[tuple[LinkSpec, _Arriving]], where: str) -> tuple[Wire, ...]:
    for link, given in arriving:
        if isinstance(link.to_pin, str) and link.to_pin != "input":
            raise SpecError(f"{where}: there is no input pin {link.to_pin!r}; its inputs are numbered from 0")
        if given.carries != TENSOR:
            raise SpecError(f"{where}: expected a tensor, {given.text} gives {given.carries}")
    if len(arriving) < row.at_least:
        raise SpecError(f"{where}: expected at least {row.at_least} inputs, {len(arriving)} connected")
    numbered = [link.to_pin for link, _ in arriving if isinstance(link.to_pin, int)]
    if len(set(numbered)) < len(numbered):
        raise SpecError(f"{where}: two links come to one input pin")
    by_pin = sorted(arriving, key=lambda one: one[0].to_pin if isinstance(one[0].to_pin, int) else len(arriving))
    return tuple(given.wire for _, given in by_pin)


def _pinned(row: Kind, arriving: list[tuple[LinkSpec, _Arriving]], where: str) -> tuple[Wire | None, ...]:
    names = [pin.name for pin in row.inputs]
    taken: list[_Arriving | None] = [None] * len(names)
    for link, given in sorted(arriving, key=lambda one: one[0].to_pin is None):  # those that name their pin first
        pin = link.to_pin
        if pin is None:
            place: Any = next(
                (i for i, one in enumerate(row.inputs) if taken[i] is None and given.carries in one.carries), 0
            )
        else:
            place = names.index(pin) if isinstance(pin, str) and pin in names else pin
        if not isinstance(place, int) or not 0 <= place < len(names):
            known = ", ".join(names) or "none"
            raise SpecError(f"{where}: there is no input pin {link.to_pin or 0!r}; it has: {known}")
        if given.carries not in row.inputs[place].carries:
            wanted = " or ".join(row.inputs[place].carries)
            raise SpecError(f"{where}: its pin {names[place]!r} takes {wanted}, {given.text} gives {given.carries}")
        if taken[place] is not None:
            other = taken[place].text  # type: ignore[union-attr]
            raise SpecError(
                f"{where}: its pin {names[place]!r} is connected twice, to {other} and {given.text};"
                " join them with Add or Concatenate"
            )
        taken[place] = given
    for pin_row, one in zip(row.inputs, taken, strict=True):
        if pin_row.required and one is None:
            raise SpecError(f"{where}: its pin {pin_row.name!r} is not connected")
    return tuple(None if one is None else one.wire for one in taken)


# what there must be -------------------------------------------------------------------------------


def _check_roles(nodes: Mapping[str, NodeSpec]) -> None:
    """Data, a layer, an output, one loss, one optimiser."""
    by_group: dict[str, list[str]] = {}
    for name, node in nodes.items():
        by_group.setdefault(_kind(node, name).group, []).append(f"node {name!r} ({node.type})")
    for group, wanted in (
        ("input", "a DatasetInput"),
        ("layer", "at least one layer, such as Dense"),
        ("output", "an Output"),
        ("loss", "a loss, such as CrossEntropyLoss"),
        ("optimizer", "an optimizer, such as Adam"),
    ):
        found = by_group.get(group, [])
        if not found:
            raise SpecError(f"the graph needs {wanted}; it has none")
        if len(found) > 1 and group in ("output", "loss", "optimizer"):
            raise SpecError(f"the graph has {len(found)} nodes for one {group}: {', '.join(found[:3])}")


def _check_reached(placed: list[Placed]) -> None:
    """Every node gets something of the data, and gives something to output, loss or optimiser."""
    reached: set[str] = set()
    for node in placed:
        if node.row.group == "input" or any(one is not None and one.node in reached for one in node.inputs):
            reached.add(node.id)
        elif node.row.group != "source":
            raise SpecError(f"{node}: nothing comes to it from a DatasetInput; connect it or remove it")
    useful: set[str] = set()
    for node in reversed(placed):
        if node.id in useful or node.row.group in SINKS:
            useful.add(node.id)
            useful.update(_sources(node))
        else:
            raise SpecError(f"{node}: leads neither to the Output nor to the loss; connect it or remove it")


def _sources(node: Placed) -> Iterator[str]:
    return (one.node for one in node.inputs if one is not None)

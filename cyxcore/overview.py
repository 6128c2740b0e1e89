"""What a model is made of, layer by layer: shapes, parameters, arithmetic and memory, found without running it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from cyxcore.errors import SpecError
from cyxcore.graph import Graph, at_batch
from cyxcore.ops import OPS

if TYPE_CHECKING:
    from cyxcore.nn.module import Module

UNITS = ("", "k", "M", "G", "T", "P")


class Row(Struct, frozen=True, kw_only=True):
    """One layer. output_shape: of its last operation, without the batch; the rest is for the summary's batch size.

    activation_bytes: of all results of its operations, as training keeps them.
    """

    layer: str
    output_shape: tuple[int, ...]
    parameters: int
    flops: int
    activation_bytes: int


class Summary(Struct, frozen=True, kw_only=True):
    """Printed as a table; the fields are numbers. flops: of one inference of `batch_size` rows."""

    batch_size: int
    input_shape: tuple[int, ...]
    rows: list[Row]
    parameters: int
    buffers: int  # elements that are kept but not trained, such as running statistics
    flops: int
    inference_bytes: int
    training_bytes: int
    results: int = 1  # tensors that the model returns; all the rest is that of the first

    def __repr__(self) -> str:
        return str(self)  # what a prompt and a notebook show is the table too

    def __str__(self) -> str:
        cells = [("layer", "output", "parameters", "flops", "activations")]
        cells += [
            (row.layer, _shape(row.output_shape), f"{row.parameters:,}", short(row.flops), size(row.activation_bytes))
            for row in self.rows
        ]
        widths = [max(len(line[place]) for line in cells) for place in range(5)]
        lines = [
            "  ".join(
                cell.ljust(width) if place < 2 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in cells
        ]
        lines.insert(1, "-" * max(map(len, lines)))
        lines.append(lines[1])
        lines.append(
            f"{self.parameters:,} parameters, {self.buffers:,} in buffers; for {self.batch_size} "
            f"row{'s' * (self.batch_size != 1)} of {_shape(self.input_shape)}: {short(self.flops)}flop, about "
            f"{size(self.inference_bytes)} for inference and {size(self.training_bytes)} for training"
        )
        if self.results > 1:
            lines.append(
                f"This is what the first of the {self.results} tensors it returns needs; the others are not counted"
            )
        return "\n".join(lines)


def short(number: float) -> str:
    """1234567 -> '1.23 M'"""
    unit = 0
    while abs(number) >= 999.5 and unit < len(UNITS) - 1:
        number, unit = number / 1000.0, unit + 1
    return f"{number:.3g} {UNITS[unit]}"


def size(count: float) -> str:
    """1234567 bytes -> '1.23 MB'"""
    return f"{short(count)}B"


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "one number"


def summary(model: "Module | Graph", input_shape: Sequence[int] | None = None, batch_size: int = 1) -> Summary:
    """The summary of a module (for samples of input_shape) or of a graph. Of a module that returns several tensors, as
    a recurrent layer does, it is that of the first, and says so: layers that only the others need are not counted.
    Recurrent and attention layers need batch_first=True, since the first axis of samples is the batch.

    Raises SpecError when a module comes without input_shape, and what tracing raises when they do not fit.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise SpecError(f"summary: expected batch_size of at least 1, got {batch_size!r}")
    results = 1
    if isinstance(model, Graph):
        graph = model
    elif input_shape is None:
        raise SpecError("summary: expected input_shape, the shape of one sample, beside a module")
    else:
        from cyxcore.tracing import traced_first

        (graph, _), results = traced_first(model, input_shape)
    known, needed = graph.infer(batch_size), graph.reachable(training=False)
    rows: dict[str, dict[str, Any]] = {}
    counted: set[int] = set()
    for place, node in enumerate(graph.nodes):
        if place not in needed or OPS[node.op].group == "source":
            continue
        row = rows.setdefault(node.layer, {"parameters": 0, "flops": 0, "activation_bytes": 0})
        for source in node.inputs:
            if graph.nodes[source].op == "param" and graph.nodes[source].attrs["trainable"] and source not in counted:
                counted.add(source)
                row["parameters"] += known.bytes_of(source) // 4
        shapes = tuple(known.shapes[i] for i in node.inputs)
        row["flops"] += OPS[node.op].flops(shapes, known.shapes[place], at_batch(node.attrs, batch_size))
        row["activation_bytes"] += known.bytes_of(place) if node.op != "reshape" else 0
        row["output_shape"] = known.shapes[place][1:]
    return Summary(
        batch_size=batch_size,
        input_shape=tuple(graph.input_shape),
        rows=[Row(layer=layer or "(model)", **row) for layer, row in rows.items()],
        parameters=graph.parameter_count,
        buffers=sum(known.bytes_of(buffer.node) // 4 for buffer in graph.buffers),
        flops=graph.flops(batch_size),
        inference_bytes=graph.memory_bytes(batch_size, training=False),
        training_bytes=graph.memory_bytes(batch_size, training=True),
        results=results,
    )


def flops(model: "Module | Graph", input_shape: Sequence[int] | None = None, batch_size: int = 1) -> int:
    """Floating-point operations of one inference; a training step takes about three times as many."""
    return summary(model, input_shape, batch_size).flops

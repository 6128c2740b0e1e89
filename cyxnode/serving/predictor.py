"""A model made ready to answer: one plan per batch size, its time, and whether samples are answered independently."""

import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from cyxcore import device as devices
from cyxcore.errors import CyxError, DataError
from cyxcore.evaluation import checked_inputs
from cyxcore.graph import Graph
from cyxcore.objectives import evaluation_step
from cyxcore.plan import Plan
from cyxnode.serving.batching import sizes, without_interruptions

Array = np.ndarray[Any, Any]
log = logging.getLogger(__name__)
TIMED_RUNS = 3


class NoRoom(DataError, MemoryError):
    """Not even one sample fits into the memory that the model may take."""


class Predictor:
    """Plans of `graph` for batches of up to `max_batch` samples whose memory stays within memory_bytes.

    run_ns: how long a run of each size takes (batching.without_interruptions). rows_independent: whether every size
    gave each sample the bits that it gets alone; otherwise only the size 1 is used. Raises NoRoom when one sample does
    not fit.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Array],
        max_batch: int = 64,
        memory_bytes: int | None = None,
        device: str | None = None,
    ) -> None:
        self.graph = graph
        self.input_dtype = np.dtype(graph.nodes[graph.input].attrs["dtype"])
        self._input_name = graph.nodes[graph.input].attrs["name"]
        held = {name: devices.put(array, device) for name, array in weights.items()}
        self.weights_bytes = sum(array.nbytes for array in held.values())
        self.memory_bytes = self.weights_bytes
        self._plans: dict[int, Plan] = {}
        for size in sizes(max_batch):
            plan = Plan(evaluation_step(graph, size, None), held, device)
            beside = plan.arena_bytes + plan.packed_bytes
            needed = self.memory_bytes + beside + sum(array.nbytes for array in plan.inputs.values())
            if memory_bytes is not None and needed > memory_bytes:
                if size == 1:
                    raise NoRoom(
                        f"the model needs {needed:,} bytes for one sample, and may take {memory_bytes:,}; "
                        "give it more with --memory"
                    )
                log.warning("batches of %d samples and more do not fit into %d bytes", size, memory_bytes)
                break
            self._plans[size] = plan
            self.memory_bytes = needed
        self.run_ns: dict[int, float] = {}
        self.rows_independent = self._measure()
        if not self.rows_independent:
            log.warning("samples of one batch change each other's answers: each is run alone")
            self._plans = {1: self._plans[1]}
            self.run_ns = {1: self.run_ns[1]}
        self.max_batch = max(self._plans)

    def checked(self, x: Any) -> Array:
        """Samples (rows, *input_shape) as the plans read them. Raises ShapeError."""
        return checked_inputs(self.graph, x)

    def outputs(self, rows: int) -> Array:
        """Room for the answers of so many samples."""
        return np.empty((rows, *self.graph.output_shape), self._plans[1].outputs[0].dtype)

    def places(self, size: int) -> Array:
        """Where the samples of the next run of this size are to be written: (size, *input_shape)."""
        return self._plans[size].inputs[self._input_name]

    def run(self, size: int) -> Array:
        """The answers to the samples in places(size); good until the next run. Takes the time, without the
        interpreter's lock. Raises DataError where a sample cannot be answered (an index out of range).
        """
        plan = self._plans[size]
        plan.run()
        return plan.outputs[0]

    def _measure(self) -> bool:
        """Runs every plan on made-up samples; returns whether the answers had the bits of single runs."""
        samples = self._made_up(max(self._plans))
        self.places(1)[...] = samples[:1]
        try:
            self.run(1)
        except CyxError:  # an index that the model has no row for
            samples[...] = 0
        alone = self.outputs(len(samples))
        for row in range(len(samples)):
            self.places(1)[...] = samples[row : row + 1]
            alone[row] = self.run(1)[0]
        equal = True
        for size in self._plans:
            self.places(size)[...] = samples[:size]
            took = []
            for _ in range(TIMED_RUNS):
                begun = time.perf_counter_ns()
                found = self.run(size)
                took.append(time.perf_counter_ns() - begun)
            self.run_ns[size] = float(max(min(took), 1))  # a clock may not have ticked meanwhile
            equal = equal and found.tobytes() == alone[:size].tobytes()
        self.run_ns = without_interruptions(self.run_ns)
        return equal

    def _made_up(self, rows: int) -> Array:
        shape = (rows, *self.graph.input_shape)
        generator = np.random.default_rng(0)
        if self.input_dtype.kind in "iu":
            return generator.integers(0, 2, shape).astype(self.input_dtype)
        return generator.standard_normal(shape).astype(self.input_dtype)

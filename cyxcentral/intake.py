"""What a submitted job must be before central takes it. Says no with the reason; stores nothing. Pure."""

import functools
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import msgspec
from msgspec import Struct

from cyxcentral import dependencies, schedule
from cyxcentral.jobs import DEADLINE_MARGIN_S, Job, whole_steps
from cyxcentral.nodes import Node
from cyxcore.errors import SpecError
from cyxcore.graph import Graph
from cyxcore.layers import build
from cyxcore.spec import ModelSpec, check_metrics, check_summary_metric
from cyxnet import messages as m
from cyxnet.amounts import format_cyx
from cyxnet.bus import ApiError
from cyxnet.escrow import DEADLINE_S

BASE_MEMORY_BYTES = 192 * 2**20  # of a training process before the first tensor
GPU_BASE_MEMORY_BYTES = 512 * 2**20  # of a GPU, before the first tensor: the driver, kernels, libraries
LARGEST_COUNT = 2**63 - 1  # that the log and the ledger can hold
JOBS_REMEMBERED = 256
LARGEST_REMEMBERED_BYTES = 32_768  # of a description; strangers must not be able to fill the memory with large ones
MODEL_COPIES = 2  # of a served model: the file, and its weights as the kernels want them
LONGEST_SERVED_S = DEADLINE_S - DEADLINE_MARGIN_S - 86_400  # a day may go by before a replica is ready
DATA_COPIES = 3  # the file, its columns and the arrays made of them


class Plan(Struct, frozen=True, kw_only=True):
    """What a job needs and costs, found without running it."""

    memory_bytes: int
    gpu_memory_bytes: int  # of one GPU; 0: it needs none
    flops_per_epoch: int
    bytes_per_epoch: int  # moved between processor and memory
    parameters: int


def job_id_for(name: str, token_hex: Callable[[int], str]) -> str:
    """A readable id that nobody else has: slug of the name and ten random hex digits."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "job"
    return f"{slug}-{token_hex(5)}"


def examine(job: m.JobRequest) -> Plan:
    """Check the model and estimate its needs. Raises SpecError, ShapeError or GraphError.

    A job is examined for its quote and again for its submit: the last plans are remembered.
    """
    return examined(job)[1]


def examined(job: m.JobRequest) -> tuple[m.JobRequest, Plan]:
    """examine(), and an equal job: the same one for all who submit it, so a thousand of them take the memory of one."""
    try:
        encoded = msgspec.msgpack.encode(job)
    except OverflowError:  # layers and graphs are checked below; this would be too late there
        raise SpecError("model: expected integers of at most 64 bits") from None
    if not (known := _examined.get(encoded)):
        known = job, _plan(job)
        if len(encoded) <= LARGEST_REMEMBERED_BYTES:
            _examined[encoded] = known
            if len(_examined) > JOBS_REMEMBERED:
                del _examined[next(iter(_examined))]  # the oldest
    return known


_examined: dict[bytes, tuple[m.JobRequest, Plan]] = {}  # by the job as it is encoded


def _plan(job: m.JobRequest) -> Plan:
    if job.sealed and (job.serve or not job.needs.node_id):
        raise SpecError(
            "sealed: expected a job that trains on the node of needs.node_id, which alone can read its data"
        )
    if job.after or job.best_by:
        _check_dependencies(job)
    if job.serve:
        return _plan_of_serving(job, job.serve)
    batch = job.training.batch_size
    costs = _costs(job.model, batch)
    rows = job.facts.rows if job.facts else 0
    check_metrics(job.training, job.data.validation > 0.0)
    if job.facts and costs.input_shape != list(job.facts.input_shape):
        raise SpecError(
            f"the model takes samples of shape {costs.input_shape}, the data has {list(job.facts.input_shape)}"
        )
    if job.facts and job.facts.classes and job.training.loss == "cross_entropy":
        if costs.outputs != job.facts.classes:
            raise SpecError(f"the model ends in {costs.outputs} outputs, the data has {job.facts.classes} classes")
    estimate = BASE_MEMORY_BYTES + costs.memory_bytes + DATA_COPIES * job.dataset.size
    plan = Plan(
        memory_bytes=max(job.needs.memory_bytes, estimate),
        gpu_memory_bytes=_gpu_memory_bytes(job.needs, costs.memory_bytes),
        flops_per_epoch=3 * costs.flops_of_a_row * rows,  # backward costs about twice the forward pass
        bytes_per_epoch=3 * costs.bytes_moved * math.ceil(rows / batch),
        parameters=costs.parameters,
    )
    for what, count in msgspec.structs.asdict(plan).items():
        if count > LARGEST_COUNT:
            raise SpecError(f"{what}: the job comes to {count}, more than any machine has or can count")
    return plan


def _gpu_memory_bytes(needs: m.Needs, training_bytes: int) -> int:
    """What one GPU must have for the training, in whole steps: jobs with the same needs are looked at together."""
    if needs.device != "cuda":
        if needs.gpu_memory_bytes:
            raise SpecError(f"needs.gpu_memory_bytes: only a job for device cuda has a GPU, this is for {needs.device}")
        return 0
    return whole_steps(max(needs.gpu_memory_bytes, GPU_BASE_MEMORY_BYTES + training_bytes))


def _check_dependencies(job: m.JobRequest) -> None:
    """Raise SpecError for dependencies that make no sense, whatever jobs there are."""
    if job.serve:
        raise SpecError("after: expected a job that trains; one that serves begins at once")
    seen: set[str] = set()
    for after in job.after:
        where = f"after {after.job_id}"
        if after.job_id in seen:
            raise SpecError(f"{where}: it is named twice")
        seen.add(after.job_id)
        bounded = after.at_least is not None or after.at_most is not None
        if bounded and after.metric is None:
            raise SpecError(f"{where}: at_least and at_most need a metric, such as validation_accuracy")
        if after.metric is not None and not bounded:
            raise SpecError(f"{where}: {after.metric} needs at_least or at_most")
    models = sum(after.model for after in job.after)
    if models > 1 and not job.best_by:
        raise SpecError("after: expected one whose model this job begins with, or best_by, a metric that says which")
    if job.best_by and not models:
        raise SpecError("best_by: expected jobs in after of which it begins with the best model (model = true)")
    if models and (job.sealed or job.model.weights):
        what = "is sealed" if job.sealed else "has weights of its own to begin with"
        raise SpecError(f"after: a job that {what} cannot begin with another one's model")


def _plan_of_serving(job: m.JobRequest, serve: m.ServeSpec) -> Plan:
    """A model file is not opened here: its size says what it needs, unless who submits knows better."""
    if job.model != ModelSpec():
        raise SpecError("model: expected no layers and no graph: the dataset of a job that serves is its model")
    if job.needs.device == "cuda":
        raise SpecError("needs.device: expected any or cpu, got cuda: a replica computes on the CPU")
    if serve.seconds > LONGEST_SERVED_S:
        raise SpecError(
            f"serve.seconds: expected at most {LONGEST_SERVED_S} ({LONGEST_SERVED_S // 86_400} days; its escrow ends "
            f"after {DEADLINE_S // 86_400}), got {serve.seconds}"
        )
    if not (serve.least == serve.most == 0 or 1 <= serve.least <= serve.most):
        raise SpecError(f"serve: expected 1 <= least <= most, got least {serve.least} and most {serve.most}")
    if serve.standby and not serve.most:
        raise SpecError("serve.standby: expected least and most too: else nobody ever calls it")
    estimate = BASE_MEMORY_BYTES + MODEL_COPIES * job.dataset.size + serve.memory_bytes
    needed = job.needs.memory_bytes or estimate
    if needed > LARGEST_COUNT:
        raise SpecError(f"memory_bytes: the job comes to {needed}, more than any machine has or can count")
    return Plan(memory_bytes=needed, gpu_memory_bytes=0, flops_per_epoch=0, bytes_per_epoch=0, parameters=0)


def possible_steps(job: m.JobRequest) -> range | None:
    """How many training steps the job can have; None when its submitter did not say how many rows there are.

    At most the wanted share of the rows is held out, and less where classes are too small to give theirs.
    """
    if job.facts is None:
        return None
    rows, share, batch = job.facts.rows, job.data.validation, job.training.batch_size
    held = min(max(1, round(rows * share)), rows - 1) if share else 0
    fewest, most = (job.training.epochs * math.ceil(kept / batch) for kept in (rows - held, rows))
    return range(fewest, most + 1)


class _Costs(NamedTuple):
    """Of a model at a batch size. memory_bytes: to train it; flops and bytes moved: of an inference."""

    input_shape: list[int]
    outputs: int
    parameters: int
    memory_bytes: int
    flops_of_a_row: int
    bytes_moved: int


def _costs(model: ModelSpec, batch_size: int) -> _Costs:
    """Checks the model. The last ones are remembered: jobs of one model differ in seed, learning rate or data."""
    encoded = msgspec.msgpack.encode(model)
    find = _costs_of.__wrapped__ if len(encoded) > LARGEST_REMEMBERED_BYTES else _costs_of
    return find(encoded, batch_size)


@functools.lru_cache(maxsize=128)
def _costs_of(encoded: bytes, batch_size: int) -> _Costs:
    graph = _graph_of(encoded)
    return _Costs(
        list(graph.input_shape),
        graph.output_shape[-1] if graph.output_shape else 0,
        graph.parameter_count,
        graph.memory_bytes(batch_size, training=True),
        graph.flops(1),
        graph.bytes_moved(batch_size),
    )


def _graph_of(encoded: bytes) -> Graph:
    return _graph.__wrapped__(encoded) if len(encoded) > LARGEST_REMEMBERED_BYTES else _graph(encoded)


@functools.lru_cache(maxsize=64)
def _graph(encoded: bytes) -> Graph:
    model = msgspec.msgpack.decode(encoded, type=ModelSpec)
    if (model.layers is None) == (model.graph is None):
        raise SpecError("model: expected either layers or graph, got " + ("both" if model.layers else "neither"))
    if model.graph is not None:
        graph = Graph.from_json(model.graph)
        graph.verify()
        return graph
    if model.input is None:
        raise SpecError("model.input: expected the shape of one sample, e.g. [64]; it is missing")
    return build(model)


def refuse_dependencies(job: m.JobRequest, caller: str, known: Mapping[str, Job]) -> None:
    """Refuse a job that comes after what is not there, is somebody else's, or can never be completed."""
    for after in job.after:
        other = known.get(after.job_id)
        if other is None:
            raise ApiError("unknown_job", f"after: no job is called {after.job_id}; see: cyx jobs", 404)
        if other.caller != caller:
            raise ApiError("not_yours", f"after: job {after.job_id} was submitted by another caller", 403)
        if other.job.serve:
            raise ApiError("bad_request", f"after: {after.job_id} serves a model and delivers none", 400)
        if after.model and other.job.sealed:
            raise ApiError(
                "bad_request", f"after: the model of {after.job_id} is sealed: no other job can read it", 400
            )
        for metric in (after.metric, job.best_by if after.model else None):
            try:
                if metric:
                    check_summary_metric(metric, other.job.data)
            except SpecError as error:
                raise ApiError("bad_spec", f"after {after.job_id}: {error}", 400) from None
    for _, why in dependencies.never(job.after, known):
        raise ApiError("dependency_failed", f"it would never begin: {why}", 409)


def refuse_other_shapes(job: m.JobRequest, known: Mapping[str, Job]) -> None:
    """Refuse a job that is to begin with the model of another one, whose parameters are not its own."""
    for after in job.after:
        if not after.model:
            continue
        own, others = (_shapes(each.model) for each in (job, known[after.job_id].job))
        for name in sorted(own.keys() | others.keys()):
            if (mine := own.get(name)) != (theirs := others.get(name)):
                raise ApiError(
                    "shape_mismatch",
                    f"after: the job cannot begin with the model of {after.job_id}: its parameter {name} is"
                    f" {mine or 'not there'}, and there it is {theirs or 'not there'}",
                    400,
                )


def _shapes(model: ModelSpec) -> dict[str, tuple[int, ...]]:
    """The parameters and buffers of a model by name."""
    return {param.name: param.shape for param in _graph_of(msgspec.msgpack.encode(model)).all_parameters}


def refuse_unfit(job: Job, nodes: Collection[Node]) -> None:
    """Refuse a job that no online node could run even when idle. With no node at all it may wait for one."""
    if any(schedule.ever_fits(job, node) for node in nodes):
        return
    online = [node for node in nodes if node.online]
    if not online:
        return
    asked_for = job.job.needs.node_id
    meant = [node for node in nodes if node.node_id == asked_for] if asked_for else online[:3]
    idle = [
        schedule.Candidate(node=node, active_runs=0, memory_free_bytes=node.hardware.memory_bytes) for node in meant
    ]
    why = "; ".join(f"{c.node.name}: {schedule.refusal(job, c)}" for c in idle) or "no node has this id"
    who = f"{asked_for}, which is asked for and no other, cannot" if asked_for else "no node of this network can"
    raise ApiError("no_node_fits", f"{who} run the job ({why}); see: cyx nodes", 409)


def refuse_unpayable(charged_base_units: int, limit_base_units: int) -> None:
    """Refuse what the signer never pays out: it would be trained for nothing. limit: of an hour; 0 for none."""
    if 0 < limit_base_units < charged_base_units:
        raise ApiError(
            "above_spending_cap",
            f"the job would be charged up to {format_cyx(charged_base_units)} CYX; this network pays out at most "
            f"{format_cyx(limit_base_units)} CYX an hour (spend_per_hour_base_units): offer less, or divide the job",
            409,
        )


def refuse_unaffordable(terms: m.EscrowTerms, balance_base_units: int, promised_base_units: int) -> None:
    """promised: of the balance, for other jobs whose deposits are not final."""
    if balance_base_units - promised_base_units < terms.amount_base_units:
        promised = f", of which {format_cyx(promised_base_units)} are for jobs whose deposits are on their way"
        raise ApiError(
            "insufficient_funds",
            f"the job pays {format_cyx(terms.amount_base_units)} CYX, the wallet {terms.client} has "
            f"{format_cyx(balance_base_units)}{promised if promised_base_units else ''}; "
            "on a local network: cyx wallet --faucet AMOUNT",
            402,
        )

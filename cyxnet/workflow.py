"""Workflow files: several jobs and what comes after what, as TOML, checked completely before anything is sent or paid.

    name = "digits"
    [jobs.rates]                                      # three jobs, one for each rate
    file = "digits.toml"                              # a job file, relative to this one
    matrix = { "training.optimizer.learning_rate" = [0.1, 0.01, 0.001] }
    [jobs.longer]
    file = "digits.toml"
    set = { "training.epochs" = 40, amount = "3" }    # instead of what the job file says
    after = ["rates"]                                 # of all three
    [jobs.finetuned]
    file = "finetune.toml"
    weights = "longer"                                # begins with its model, after it
    after = ["longer.validation_accuracy >= 0.9"]     # and only if that is good enough
    [jobs.best]
    file = "finetune.toml"
    weights = "rates.validation_accuracy"             # begins with the best of them by this metric

Central lets each job begin when those before it are completed (cyxcentral/dependencies.py): nobody has to wait here.
"""

import difflib
import graphlib
import itertools
import math
import re
import tomllib
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cyxcore.errors import SpecError
from cyxcore.spec import check_summary_metric
from cyxnet import jobfile, jobtoml
from cyxnet.bus import ApiError
from cyxnet.jobfile import LoadedJob
from cyxnet.messages import After, Name, SummaryMetric

if TYPE_CHECKING:
    from cyxnet.submitting import Submitter

T = TypeVar("T", bound=Struct)

MOST_JOBS = 1_000
MOST_AFTER = 100  # that a JobRequest takes
METRICS = typing.get_args(SummaryMetric)
STEP = re.compile(r"[a-z0-9]([a-z0-9-]{0,28}[a-z0-9])?")
CONDITION = re.compile(r"([a-z0-9-]+)(?:\.(\w+)\s*(>=|<=)\s*([-+.\deE]+))?")


class StepSection(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """[jobs.NAME]: a job file, what is other than there, and what it comes after."""

    file: str
    set: dict[str, Any] = {}
    matrix: dict[str, list[Any]] = {}
    after: list[str] = []
    weights: str | None = None


class WorkflowFile(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A whole workflow file."""

    name: Name
    jobs: dict[str, Any]  # by name: StepSections


class Step(Struct, kw_only=True, frozen=True):
    """One job of a workflow. after: its ids are names of other steps. best_by: which of their models it begins with.
    values: those that its matrix gave it."""

    name: str
    job: LoadedJob
    after: list[After]
    best_by: SummaryMetric | None = None
    values: dict[str, Any] = {}


class Workflow(Struct, kw_only=True, frozen=True):
    """Jobs in an order in which each comes after those that it names."""

    name: str
    steps: list[Step]

    @property
    def amount_base_units(self) -> int:
        """What all of it costs at the most."""
        return sum(step.job.amount_base_units for step in self.steps)

    def discard(self) -> None:
        """Remove the data that was packed or fetched for it."""
        for step in self.steps:
            if step.job.fetched:
                jobfile.discard(step.job.data_path)


Told = Callable[[Step, str, bool, str], None]
RUN = re.compile(r"[0-9a-f]{10}")


def job_id(workflow: str, step: str, run: str) -> str:
    """The id of a step's job in a run of a workflow: the same whenever it is asked for."""
    slug = re.sub(r"[^a-z0-9]+", "-", workflow.lower()).strip("-")[:15].strip("-") or "workflow"  # 63 letters in all
    return f"{slug}-{step}-{run}"


def jobs_of(workflow: Workflow, run: str) -> Iterator[LoadedJob]:
    """The jobs of a run, as they are to be submitted, one after the other."""
    for step in workflow.steps:
        after = [replace(each, job_id=job_id(workflow.name, each.job_id, run)) for each in step.after]
        name = f"{workflow.name}/{step.name}"[:100]
        named = job_id(workflow.name, step.name, run)
        yield replace(step.job, name=name, after=after, best_by=step.best_by, job_id=named)


def load(path: str | Path, work_folder: Path | None = None) -> Workflow:
    """Read and check a workflow file and all of its job files. work_folder: as of jobfile.load().

    Raises SpecError, and what jobfile.load() raises; each message starts with the file it is about.
    """
    path = Path(path)
    file = _parse(jobtoml.read_text(path), path)
    count = sum(math.prod(map(len, section.matrix.values())) for section in file.jobs.values())
    if not 1 <= count <= MOST_JOBS:
        raise SpecError(f"{path}: expected 1 to {MOST_JOBS} jobs, got {count:,}")
    planned = {name: list(_expanded(name, section)) for name, section in file.jobs.items()}
    called = _called(planned, path)
    after = {name: _dependencies(name, section, called, path) for name, section in file.jobs.items()}
    best_by = {name: source_of(section.weights)[1] for name, section in file.jobs.items() if section.weights}
    steps: list[Step] = []
    workflow = Workflow(name=file.name, steps=steps)
    sources: dict[Any, Path] = {}  # jobs on the same data share what was packed or fetched of it
    try:
        for name in _in_order(after, planned, path):
            for step in planned[name]:
                try:
                    job = jobfile.load(path.parent / file.jobs[name].file, work_folder, None, step.changes, sources)
                except SpecError as error:
                    raise SpecError(f"{path}: jobs.{step.name}: {error}") from None
                steps.append(
                    Step(name=step.name, job=job, after=after[name], best_by=best_by.get(name), values=step.values)
                )
                _check_dependencies(steps, path)
    except BaseException:
        for source in sources.values():
            jobfile.discard(source)
        workflow.discard()
        raise
    return workflow


def _check_dependencies(steps: list[Step], path: Path) -> None:
    """Raise SpecError for what the last step wants of others, and can never have."""
    step = steps[-1]
    for after in step.after:
        other = next(each.job for each in steps if each.name == after.job_id)
        where = f"{path}: jobs.{step.name}"
        for key, metric in (("after", after.metric), ("weights", after.model and step.best_by)):
            try:
                if metric:
                    check_summary_metric(metric, other.data)
            except SpecError as error:
                raise SpecError(f"{where}.{key}: {after.job_id}: {error}") from None
        if after.model:
            own, others = (_shapes(job) for job in (step.job, other))
            for name in sorted(own.keys() | others.keys()):
                if own.get(name) != others.get(name):
                    here, there = (found.get(name, "not there") for found in (own, others))
                    what = f"{after.job_id} has another model: {name} is {there}, and here it is {here}"
                    raise SpecError(f"{where}.weights: {what}")


def _shapes(job: LoadedJob) -> dict[str, tuple[int, ...]]:
    from cyxcore import layers

    return {param.name: param.shape for param in layers.build(job.model).all_parameters}


def _parse(text: str, path: Path) -> WorkflowFile:
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise SpecError(f"{path}: not valid TOML: {jobtoml.one_line(error)}") from None
    if "jobs" not in table and "model" in table:
        raise SpecError(f"{path}: expected a workflow file, this is a job file; submit it with: cyx submit {path}")
    found = _converted(table, WorkflowFile, "", path)
    jobs = {name: _converted(part, StepSection, f"jobs.{name}", path) for name, part in found.jobs.items()}
    file = replace(found, jobs={name: replace(part, set=dict(_dotted(part.set))) for name, part in jobs.items()})
    for name, section in file.jobs.items():
        if not STEP.fullmatch(name):
            raise SpecError(f"{path}: jobs.{name}: expected a name of up to 30 letters a-z, digits and dashes")
        for key, values in section.matrix.items():
            if not values:
                raise SpecError(f"{path}: jobs.{name}.matrix.{key}: expected a list of values, it is empty")
        if both := sorted(section.set.keys() & section.matrix.keys()):
            raise SpecError(f"{path}: jobs.{name}: {both[0]} is in set and in matrix")
    return file


def _dotted(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested tables by dotted names: training.epochs = 1 is the same as "training.epochs" = 1."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _converted(table: Any, kind: type[T], place: str, path: Path) -> T:
    """A table as a section. Raises SpecError that names the place."""
    known = msgspec.structs.fields(kind)
    for key in table if isinstance(table, dict) else ():
        if key not in (names := [field.name for field in known]):
            raise SpecError(f"{path}: unknown key {f'{place}.' if place else ''}{key}{_nearest(key, names)}")
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        text, _, inner = str(error).partition(" - at ")
        at = ".".join(filter(None, [place, inner.strip("`").removeprefix("$").lstrip(".")]))
        wrong = re.sub(r"`(\w+)`", lambda word: jobtoml.WORDS.get(word[1], word[1]), text)
        raise SpecError(f"{path}: {f'{at}: ' if at else ''}{wrong[0].lower()}{wrong[1:]}") from None


def _nearest(word: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(word, names, 1, 0.5)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(names)[:200]}"


class _Planned(NamedTuple):
    """A job that a section stands for. changes: what is other than in its file, and of that `values` by its matrix."""

    name: str
    changes: dict[str, Any]
    values: dict[str, Any]


def _expanded(name: str, section: StepSection) -> Iterator[_Planned]:
    if not section.matrix:
        yield _Planned(name, section.set, {})
    for number, combination in enumerate(itertools.product(*section.matrix.values()) if section.matrix else (), 1):
        chosen = dict(zip(section.matrix, combination, strict=True))
        yield _Planned(f"{name}-{number}", section.set | chosen, chosen)


def _called(planned: Mapping[str, list[_Planned]], path: Path) -> dict[str, list[str]]:
    """The jobs that a name stands for: one, or all of a matrix."""
    found = {name: [each.name for each in jobs] for name, jobs in planned.items()}
    for name in [each.name for jobs in planned.values() for each in jobs]:
        if found.setdefault(name, [name]) != [name]:
            raise SpecError(f"{path}: two jobs are called {name}: one is of a matrix")
    ids = [name for names in (found[section] for section in planned) for name in names]
    if twice := next((name for name in ids if ids.count(name) > 1), None):
        raise SpecError(f"{path}: two jobs are called {twice}: one is of a matrix")
    return found


def _dependencies(name: str, section: StepSection, called: Mapping[str, list[str]], path: Path) -> list[After]:
    """What each job of a section comes after, by names."""

    def jobs(of: str, key: str) -> list[str]:
        if of not in called:
            raise SpecError(f"{path}: jobs.{name}.{key}: no job is called {of}{_nearest(of, called)}")
        return called[of]

    return afters(section.after, section.weights, jobs, f"{path}: jobs.{name}.")


def afters(
    conditions: Iterable[str],
    weights: str | None = None,
    jobs: Callable[[str, str], list[str]] = lambda name, key: [name],
    where: str = "",
) -> list[After]:
    """What a job comes after, by lines such as "teacher" or "teacher.validation_accuracy >= 0.9".

    weights: whose model it begins with, "teacher", or of several jobs the best by what source_of() finds in
    "teachers.validation_accuracy". jobs: those that a name stands for. where: how an error begins. Raises SpecError.
    """
    found: dict[str, After] = {}
    for text in conditions:
        before, condition = _condition(text, f"{where}after")
        for job in jobs(before, "after"):
            known = found.get(job, After(job_id=job))
            if known.metric and condition and known.metric != condition["metric"]:
                raise SpecError(f"{where}after: two metrics of {job}; expected one")
            if any(getattr(known, bound, None) is not None for bound in condition if bound != "metric"):
                raise SpecError(f"{where}after: two bounds of one kind for {job}; expected one")
            found[job] = replace(known, **condition)
    if weights is not None:
        name, best_by = source_of(weights, where)
        sources = jobs(name, "weights")
        if len(sources) > 1 and not best_by:
            what = f"{weights} stands for {len(sources)} jobs; name one of them, such as {sources[0]}, or the best by a"
            raise SpecError(f"{where}weights: {what} metric, such as {weights}.validation_accuracy")
        for source in sources:
            found[source] = replace(found.get(source, After(job_id=source)), model=True)
    if len(found) > MOST_AFTER:
        raise SpecError(f"{where}after: expected at most {MOST_AFTER} jobs, got {len(found)}")
    return list(found.values())


def source_of(weights: str, where: str = "") -> tuple[str, SummaryMetric | None]:
    """(name, metric by which the best is taken) of "teacher" or "teachers.validation_accuracy". Raises SpecError."""
    name, dot, metric = weights.partition(".")
    if dot and metric not in METRICS:
        raise SpecError(f"{where}weights: no model has a {metric}{_nearest(metric, METRICS)}")
    return name, typing.cast(SummaryMetric, metric) if dot else None


def _condition(text: str, where: str) -> tuple[str, dict[str, Any]]:
    """(name, fields of After) of a line such as "teacher.validation_accuracy >= 0.9"."""
    match = CONDITION.fullmatch(text.strip())
    example = '"teacher" or "teacher.validation_accuracy >= 0.9"'
    if match is None:
        raise SpecError(f"{where}: expected {example}, got {text[:60]!r}")
    name, metric, sign, bound = match.groups()
    if metric is None:
        return name, {}
    if metric not in METRICS:
        raise SpecError(f"{where}: no model has a {metric}{_nearest(metric, METRICS)}")
    try:
        found = float(bound)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise SpecError(f"{where}: expected {example}, got {text[:60]!r}")
    return name, {"metric": metric, ("at_least" if sign == ">=" else "at_most"): found}


def _in_order(after: Mapping[str, list[After]], planned: Mapping[str, list[_Planned]], path: Path) -> list[str]:
    """The sections, each behind those that it comes after. Raises SpecError that shows a circle."""
    section_of = {each.name: section for section, jobs in planned.items() for each in jobs}
    graph = {section: {section_of[each.job_id] for each in found} for section, found in after.items()}
    try:
        return list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        raise SpecError(f"{path}: jobs come after each other in a circle: {' → '.join(error.args[1])}") from None


async def submit(
    client: "Submitter", workflow: Workflow, run: str, told: "Told | None" = None, *, again: bool = False
) -> dict[str, str]:
    """Submit the jobs of a workflow, and pay for all of them. Returns their ids by step, without those of jobs that
    could never begin any more, as one that they come after has failed already.

    run: ten hex digits, in which the ids end. again: some of it may have been submitted before; the rest is now.
    told: called with each step, the id of its job, whether it was there already, and why it is not submitted.

    Raises InsufficientFunds before anything is submitted, SpecError when what is there is not what the file says, and
    what submit() of a job raises: then those before it have been submitted.
    """
    if not RUN.fullmatch(run):
        raise SpecError(f"run: expected 10 hex digits, got {run[:40]!r}")
    jobs = list(jobs_of(workflow, run))
    there = {job.job_id for job in jobs if again and await _is_there(client, job)}
    missing = [job for job in jobs if job.job_id not in there]
    if missing:
        await client.afford(sum(job.amount_base_units for job in missing), f"{len(missing)} jobs")
    ids: dict[str, str] = {}
    for step, job in zip(workflow.steps, jobs, strict=True):
        why_never = next((f"{each.job_id} is not submitted" for each in step.after if each.job_id not in ids), "")
        if job.job_id not in there and not why_never:
            try:
                await client.submit(job)
            except ApiError as error:
                if error.code != "dependency_failed":
                    raise
                why_never = str(error)
        if not why_never:
            ids[step.name] = job.job_id
        if told:
            told(step, job.job_id, job.job_id in there, why_never)
    return ids


async def _is_there(client: "Submitter", job: LoadedJob) -> bool:
    try:
        return await client.has(job)
    except ApiError as error:
        if error.code != "job_id_taken":
            raise
    raise SpecError(
        f"{job.name}: {job.job_id} was submitted with other settings than its file has now; bring the file back as it"
        " was, or begin a new run"
    )

"""A job file as TOML: its sections, and one line for whatever is wrong with it. Reads no data, builds no model."""

import difflib
import json
import math
import re
import tomllib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from cyxcore.errors import SpecError
from cyxcore.spec import DataFormat, DataSpec, OptimizerSpec, Positive, ScheduleSpec, TrainingSpec
from cyxcore.transforms import KINDS
from cyxnet.codec import choices
from cyxnet.messages import CheckpointPolicy, Name

MAX_FILE_BYTES = 4_000_000
BYTES_PER_UNIT = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


class DataSection(DataSpec, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """[data]: where the data is, and how to read it (the fields of cyxcore.spec.DataSpec).

    target_path: the second file of a pair of .npy files.
    image_size: [width, height] that the images of a folder are brought to.
    """

    path: str
    format: DataFormat | None = None  # type: ignore[assignment]  # absent: seen from the file itself
    normalize: Literal["standard", "minmax", "none"] | None = None  # type: ignore[assignment]  # see jobfile.normalize_of
    target_path: str | None = None
    image_size: tuple[Positive, Positive] | None = None


class ModelSection(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """[model]: a list of layers, the path of a graph, or the name of a bundled pattern.

    graph: a .cyxgraph file, or a cyxcore Graph in its JSON form. parameters: of the pattern.
    """

    layers: list[dict[str, Any]] | None = None
    input: list[Positive] | None = None
    graph: str | None = None
    pattern: str | None = None
    parameters: dict[str, Any] | None = None


class NeedsSection(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """[needs]: what the node must have. memory: "512 MB", "2 GiB" or a number of bytes.

    gpu_memory: likewise, of its GPU. node: the one that it must be, by its name, its id or how that begins.
    """

    device: Literal["cpu", "cuda", "any"] = "any"
    memory: str | int = 0
    gpu_memory: str | int = 0
    cores: Annotated[int, Meta(ge=1, le=4096)] = 1
    region: Annotated[str, Meta(max_length=64)] = ""
    node: Annotated[str, Meta(max_length=63)] = ""


class JobFile(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A whole job file."""

    name: Name
    amount: Any
    data: DataSection
    model: ModelSection
    training: TrainingSpec = TrainingSpec()
    needs: NeedsSection = NeedsSection()
    max_attempts: Annotated[int, Meta(ge=1, le=10)] = 3
    priority: Annotated[int, Meta(ge=0, le=9)] = 0
    checkpoints: CheckpointPolicy = CheckpointPolicy()


def read_text(path: Path) -> str:
    if path.is_dir():
        raise SpecError(f"{path}: expected a job file, this is a folder")
    if not path.exists():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.toml")], 1)
        hint = f"; did you mean {path.with_name(near[0])}?" if near else ""
        raise SpecError(f"{path}: there is no such file{hint}")
    if not path.is_file():
        raise SpecError(f"{path}: expected a plain file")
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise SpecError(f"{path}: expected a job file of at most {MAX_FILE_BYTES} bytes; is this data?")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        where = f"byte {error.start} is not"
        raise SpecError(f"{path}: expected text in UTF-8, {where}; is this a job file?") from None


SECTIONS: dict[tuple[Any, str], Any] = {
    (JobFile, "data"): DataSection,
    (JobFile, "model"): ModelSection,
    (JobFile, "training"): TrainingSpec,
    (JobFile, "needs"): NeedsSection,
    (JobFile, "checkpoints"): CheckpointPolicy,
    (TrainingSpec, "optimizer"): OptimizerSpec,
    (TrainingSpec, "schedule"): ScheduleSpec,
}

USUAL_NAMES = {
    "lr": "learning_rate",
    "label": "target",
    "file": "path",
    "price": "amount",
    "ram": "memory",
    "vram": "gpu_memory",
    "node_id": "node",
}


def _unknown_keys(table: dict[str, Any], kind: Any, prefix: str) -> Iterator[str]:
    """A sentence for each key that `kind` does not have, with the nearest one it has."""
    known = list(kind.__struct_fields__)
    for key, value in table.items():
        if key not in known:
            yield f"unknown key {prefix}{key}{_suggestion(key, kind, prefix)}"
        elif isinstance(value, dict) and (kind, key) in SECTIONS:
            yield from _unknown_keys(value, SECTIONS[kind, key], f"{prefix}{key}.")
        elif (kind, key) == (DataSection, "augment"):
            yield from _unknown_transforms(value)


def _unknown_transforms(value: Any) -> Iterator[str]:
    """A sentence for each transform, or option of one, that there is not."""
    example = 'write it as { kind = "RandomCrop", size = 32, padding = 4 }'
    if not isinstance(value, list):
        yield f"data.augment: expected a list of transforms; write each as {example.removeprefix('write it as ')}"
        return
    for number, item in enumerate(value):
        place = f"data.augment[{number}]"
        name = item.get("kind") if isinstance(item, dict) else None
        if not isinstance(name, str):
            yield f"{place}: expected a table with a kind; {example}"
        elif name not in KINDS:
            near = difflib.get_close_matches(name, KINDS, 1, 0.4)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(KINDS)}"
            yield f"{place}: unknown transform {name[:40]!r}; {hint}"
        else:
            known = KINDS[name].__struct_fields__
            for option in item:
                if option != "kind" and option not in known:
                    near = difflib.get_close_matches(option, known, 1, 0.6)
                    hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known) or 'no options'}"
                    yield f"{place}: {name} has no option {option[:40]!r}; {hint}"


def _suggestion(key: str, kind: Any, prefix: str) -> str:
    known = list(kind.__struct_fields__)
    if (usual := USUAL_NAMES.get(key)) in known:
        return f"; did you mean {prefix}{usual}?"
    if near := difflib.get_close_matches(key.lower(), known, 1, 0.6):
        return f"; did you mean {prefix}{near[0]}?"
    for (section, name), inner in SECTIONS.items():  # the right word in the wrong section
        if key in inner.__struct_fields__ and inner is not kind:
            return f"; it belongs in [{'training.' if section is TrainingSpec else ''}{name}]"
    return f"; known here: {', '.join(known)}"


def _non_finite(value: Any, place: str) -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield place
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _non_finite(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _non_finite(item, f"{place}[{index}]")


WORDS = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "array": "a list"}


def _retell(said: str, table: dict[str, Any]) -> str:
    """msgspec's sentence in ours: "Expected `int`, got `str` - at `$.training.epochs`" → "training.epochs: expected
    a whole number, got "x"".
    """
    text, _, place = said.partition(" - at ")
    place = place.strip("`").removeprefix("$").lstrip(".")
    if missing := re.search(r"missing required field `(\w+)`", text):
        return f"{f'{place}.' if place else ''}{missing[1]} is missing"
    kind, value = _at(place, table)
    if text.startswith("expected "):  # our own, of two options that do not go together
        return f"{place}: {text}"
    wanted = text.replace("`", "").partition(", got ")[0].removeprefix("Expected ")
    wanted = wanted.removesuffix(" | null")  # TOML has none
    wanted = re.sub(r"\b(int|float|str|bool|array)\b", lambda word: WORDS[word[0]], wanted)
    if text.startswith("Invalid enum value"):
        wanted = f"one of {', '.join(choices(kind))}"
    return f"{place or 'the file'}: expected {wanted}, got {json.dumps(value, default=str, ensure_ascii=False)[:60]}"


def _at(place: str, table: dict[str, Any]) -> tuple[Any, Any]:
    """(declared type, value) of a place such as "training.optimizer.betas[0]"."""
    kind: Any = JobFile
    value: Any = table
    for key, index in re.findall(r"(\w+)|\[(\d+)\]", place):
        if key:
            kind = typing.get_type_hints(kind).get(key) if isinstance(kind, type) else None
        value = value[key or int(index)]
        if index and isinstance(value, dict) and value.get("kind") in KINDS:
            kind = KINDS[value["kind"]]
    return kind, value


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _printable(text: str) -> str:
    """With what would break a line, or steer a terminal, written out: the keys of a file are anybody's."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def table_of(text: str, path: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The table of a job file, with other values where `changes` names their keys ("training.epochs").

    Raises SpecError, never another exception.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what = "" if path.suffix == ".toml" else "; a job file is TOML: docs/cli.md shows one"
        raise SpecError(f"{path}: not valid TOML: {error}{what}") from None
    except (RecursionError, ValueError) as error:
        raise SpecError(f"{path}: not valid TOML: {one_line(error)}") from None
    for place, value in changes.items():
        *sections, key = place.split(".")
        inner = table
        for section in sections:
            inner = inner.setdefault(section, {})
            if not isinstance(inner, dict):
                raise SpecError(f"{path}: {place} cannot be set: {section} is no section")
        inner[key] = value
    return table


def convert(table: dict[str, Any], path: Path) -> JobFile:
    """A decoded job file. `path` is only named in errors. Raises SpecError, never another exception."""
    if "jobs" in table and "model" not in table:
        raise SpecError(f"{path}: expected a job file, this is a workflow file; run it with: cyx run {path}")
    for problem in _unknown_keys(table, JobFile, ""):
        raise SpecError(f"{path}: {_printable(problem)}")
    for place in _non_finite(table, ""):
        raise SpecError(f"{path}: {_printable(place)}: expected a finite number")
    try:
        return msgspec.convert(table, JobFile)
    except msgspec.ValidationError as error:
        raise SpecError(f"{path}: {_printable(_retell(str(error), table))}") from None


def parse_bytes(value: str | int, what: str) -> int:
    """A size: bytes as a number, or text with a unit (B, kB, MB, GB, TB, KiB, MiB, GiB, TiB)."""
    if isinstance(value, int):
        size = value
    else:
        match = re.fullmatch(r"([0-9]{1,15})(\.[0-9]{1,9})? ?([A-Za-z]+)", value.strip(), re.ASCII)
        if match is None or match[3].upper() not in BYTES_PER_UNIT:
            raise SpecError(f'{what}: expected a size such as "512 MB" or "2 GiB", got {value[:40]!r}')
        unit = BYTES_PER_UNIT[match[3].upper()]
        size = int(match[1]) * unit + int(float(match[2] or 0) * unit)
    if not 0 <= size < 2**63:
        raise SpecError(f"{what}: expected 0 to 2**63-1 bytes, got {value}")
    return size

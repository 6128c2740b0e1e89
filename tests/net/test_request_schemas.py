"""What is published of a request, as JSON Schema, and what is taken: the same documents."""

import copy
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

from cyxnet import bus, jobfile, subjects
from cyxnet import messages as m
from cyxnet.codec import JSON, BadMessage, decode

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits.toml"
MUTATIONS = 600
NUMBERS = (0, 1, -1, 2**31, 2**63 - 1, 2**63, 2**64, 0.5, -0.5, 1e400)
OTHERS = (None, True, False, "", "x", "a" * 64, "A" * 64, "a" * 64 + "\n", "x" * 101, [], [1], ["x"], {}, {"x": 1})


def matches(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[ValidationError]:
    """$ is the end, as in ECMAScript: Python's takes a line's end before it, too."""
    if isinstance(value, str) and not re.search(re.sub(r"\$$", r"\\Z", pattern), value):
        yield ValidationError(f"{value!r} does not match {pattern}")


def is_number(checker: Any, value: Any) -> bool:
    """JSON has no infinity and no NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_integer(checker: Any, value: Any) -> bool:
    """In the standard 1.0 is one, too; here it is refused."""
    return isinstance(value, int) and not isinstance(value, bool)


Reader = extend(
    Draft202012Validator,
    {"pattern": matches},
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many({"number": is_number, "integer": is_integer}),
)


def written_out(value: Any) -> Any:
    """A message as JSON, with every field."""
    if isinstance(value, msgspec.Struct):
        return {field.encode_name: written_out(getattr(value, field.name)) for field in msgspec.structs.fields(value)}
    if isinstance(value, dict):
        return {key: written_out(item) for key, item in value.items()}
    return [written_out(item) for item in value] if isinstance(value, list | tuple) else value


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in a document."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*above, key)
        yield from places(value[key], (*above, key))


def at(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        value = value[key]
    return value


def mutated(document: Any, dice: Random) -> Any:
    """The document with another value somewhere, without one, with one more, or with one from elsewhere in it."""
    document = copy.deepcopy(document)
    ways = list(places(document))
    *above, key = dice.choice(ways)
    parent, kind = at(document, tuple(above)), dice.randrange(4)
    if kind == 0:
        parent[key] = copy.deepcopy(dice.choice((*NUMBERS, *OTHERS)))
    elif kind == 1:
        del parent[key]
    elif kind == 2:
        parent["more" if isinstance(parent, dict) else slice(0, 0)] = [1]
    else:
        parent[key] = copy.deepcopy(at(document, dice.choice(ways)))
    return document


def test_a_job_fits_the_published_schema_when_it_is_read_and_only_then() -> None:
    job = jobfile.load(EXAMPLE).request(m.ArtifactRef(sha256="a" * 64, size=10))
    serve = m.ServeSpec(deployment=subjects.deployment_id("model", "me"), format="safetensors", seconds=60)
    job = msgspec.structs.replace(job, serve=serve)
    document = written_out(m.QuoteRequest(job=job, job_id="digits-1", client="1" * 32))
    schema = json.loads(bus._describe(subjects.VERBS["job.quote"])["request_schema"])
    Reader.check_schema(schema)
    reader = Reader(schema)
    dice, found = Random(20261127), Counter[bool]()
    for each in (document, *(mutated(document, dice) for _ in range(MUTATIONS))):
        text, refused = json.dumps(each).encode(), ""
        try:
            decode(m.QuoteRequest, text, JSON)
        except BadMessage as error:
            refused = str(error)
        assert reader.is_valid(each) == (not refused), (refused, text.decode())
        found[not refused] += 1
    assert found[True] > MUTATIONS // 10 and found[False] > MUTATIONS // 3, found

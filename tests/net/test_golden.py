"""A message that was said once is understood for ever: tests/golden/messages.json pins their bytes.

A change of a line there is a change of the protocol. New messages: `python -m tests.net.test_golden` adds them and
touches no other line.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cyxcore import spec
from cyxnet import messages as m
from cyxnet.codec import JSON, decode
from cyxnet.subjects import VERBS

GOLDEN = Path(__file__).parents[1] / "golden" / "messages.json"
KINDS = {
    kind.__name__: kind
    for module in (spec, m)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__.startswith(module.__name__)
}
ABSTRACT = {"Request", "Event"}
PATTERNS = {
    spec.Digest: "0f" * 32,
    m.JobId: "digits-0123456789",
    m.SessionId: "ab" * 16,
    m.Address: "7" * 43,
    m.Signature: "5" * 88,
    m.PublicKey: "cd" * 32,
    m.RequestId: "wish-1",
    m.CallerId: "c-0123",
    m.ClientId: "c-" + "0123456789abcdef" * 2,
    m.AccessId: "ef" * 6,
    m.DeploymentId: "digits-" + "ab" * 6,
}
PREFIX = r"\A[a-z0-9][a-z0-9-]{0,62}\Z"  # of a job id
BY_PATTERN = {PREFIX: "digits"} | {kind.__metadata__[0].pattern: text for kind, text in PATTERNS.items()}


def example(kind: Any) -> Any:
    """A value of a type, with every field filled in."""
    info = kind if isinstance(kind, msgspec.inspect.Type) else msgspec.inspect.type_info(kind)
    match info:
        case msgspec.inspect.StructType():
            return info.cls(**{field.name: example(field.type) for field in info.fields})
        case msgspec.inspect.UnionType():
            return example(next(each for each in info.types if not isinstance(each, msgspec.inspect.NoneType)))
        case msgspec.inspect.LiteralType():
            return info.values[0]
        case msgspec.inspect.StrType():
            return BY_PATTERN.get(info.pattern) or ("ab" * 64 if info.pattern else "text")
        case msgspec.inspect.IntType():
            return max(7, info.ge or 0) if info.le is None or info.le >= 7 else info.le
        case msgspec.inspect.FloatType():
            return 0.5
        case msgspec.inspect.BoolType():
            return True
        case msgspec.inspect.BytesType():
            return b"\x00bytes"
        case msgspec.inspect.ListType():
            return [example(info.item_type)]
        case msgspec.inspect.TupleType():
            return tuple(example(each) for each in info.item_types)
        case msgspec.inspect.DictType():
            return {"key": 7}
        case msgspec.inspect.AnyType():
            return 7
    raise AssertionError(f"no example for {info}")


def read() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}


@pytest.mark.parametrize("name", sorted(set(KINDS) - ABSTRACT))
def test_every_message_is_pinned_and_still_means_the_same(name):
    golden = read()
    assert name in golden, f"{name} is new: run python -m tests.net.test_golden"
    decoded = msgspec.json.decode(json.dumps(golden[name]), type=KINDS[name])
    again = json.loads(msgspec.json.encode(decoded))
    missing = {key for key in golden[name] if golden[name][key] != again.get(key, golden[name][key])}
    assert missing == set()
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(decoded), type=KINDS[name]) == decoded


def test_no_pinned_message_has_gone():
    assert sorted(set(read()) - set(KINDS)) == []


def test_every_field_of_a_pinned_message_is_still_there():
    for name, pinned in read().items():
        known = {*KINDS[name].__struct_encode_fields__, KINDS[name].__struct_config__.tag_field}
        assert set(pinned) <= known, name


@pytest.mark.parametrize("name", sorted(set(KINDS) - ABSTRACT))
def test_what_refuses_unknown_fields_does_not_say_those_that_have_their_default(name):
    """So an older version is told of a new field by those alone who use it."""
    config = KINDS[name].__struct_config__
    assert config.omit_defaults or not config.forbid_unknown_fields


# Of answers, what is refused with a field more: it is signed, or named by its digest, or said by the owner of a job.
STRICT_IN_ANSWERS = {"ArtifactRef", "ArtifactManifest", "Price", "JobRequest"}


def with_more(kind: Any, value: Any, strict: set[str]) -> Any:
    """A pinned value as a newer version might say it: with a field more in every Struct that takes one."""
    info = kind if isinstance(kind, msgspec.inspect.Type) else msgspec.inspect.type_info(kind)
    match info:
        case msgspec.inspect.StructType() if isinstance(value, dict):
            if info.cls.__struct_config__.forbid_unknown_fields:
                strict.add(info.cls.__name__)
                return value
            fields = {field.encode_name: field.type for field in info.fields}
            said = {key: with_more(fields[key], each, strict) for key, each in value.items() if key in fields}
            return said | {"a_new_field": 7}
        case msgspec.inspect.UnionType():
            structs = [each for each in info.types if not isinstance(each, msgspec.inspect.NoneType)]
            return with_more(structs[0], value, strict) if len(structs) == 1 else value
        case msgspec.inspect.ListType() if isinstance(value, list):
            return [with_more(info.item_type, each, strict) for each in value]
        case msgspec.inspect.DictType() if isinstance(value, dict):
            return {key: with_more(info.value_type, each, strict) for key, each in value.items()}
    return value


@pytest.mark.parametrize("name", sorted({each.reply.__name__ for each in VERBS.values() if not each.raw_reply}))
def test_an_older_caller_understands_the_answer_of_a_newer_central(name):
    kind, strict = KINDS[name], set()
    pinned = read()[name]
    more = with_more(kind, pinned, strict)
    assert more != pinned or strict
    assert decode(kind, json.dumps(more).encode(), JSON) == decode(kind, json.dumps(pinned).encode(), JSON)
    assert strict <= STRICT_IN_ANSWERS


if __name__ == "__main__":
    pinned = read()
    for kind_name, kind in sorted(KINDS.items()):
        if kind_name not in pinned and kind_name not in ABSTRACT:
            pinned[kind_name] = json.loads(msgspec.json.encode(example(kind)))
    GOLDEN.parent.mkdir(exist_ok=True)
    lines = [f"  {json.dumps(name)}: {json.dumps(pinned[name], sort_keys=True)}" for name in sorted(pinned)]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")

"""What a JSON Schema says of a document: as much of the standard (2020-12) as msgspec's schemas use."""

import math
import re
from typing import Any

TYPES: dict[str, Any] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),  # 1.0 would be one, and is refused
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}
LIMITS: dict[str, tuple[type | tuple[type, ...], Any]] = {  # what a limit is of, and whether it is kept
    "minimum": ((int, float), lambda value, limit: value >= limit),
    "maximum": ((int, float), lambda value, limit: value <= limit),
    "exclusiveMinimum": ((int, float), lambda value, limit: value > limit),
    "exclusiveMaximum": ((int, float), lambda value, limit: value < limit),
    "minLength": (str, lambda value, limit: len(value) >= limit),
    "maxLength": (str, lambda value, limit: len(value) <= limit),
    "pattern": (str, lambda value, limit: re.search(re.sub(r"\$$", r"\\Z", limit), value) is not None),  # as ECMAScript
    "minItems": (list, lambda value, limit: len(value) >= limit),
    "maxItems": (list, lambda value, limit: len(value) <= limit),
    "minProperties": (dict, lambda value, limit: len(value) >= limit),
    "maxProperties": (dict, lambda value, limit: len(value) <= limit),
}
SAID = {"title", "description", "default", "examples", "$schema", "$defs", "discriminator", "format", "contentEncoding"}
CHECKED = {"$ref", "type", "enum", "const", "anyOf", "properties", "required", "additionalProperties", "items"}
CHECKED |= {"prefixItems", "propertyNames", *LIMITS}


def fits(value: Any, schema: Any, defs: dict[str, Any]) -> bool:
    """Whether a document fits a schema. Raises AssertionError for a word of the standard that is not known here."""
    if schema is True or schema == {}:
        return True
    if schema is False:
        return False
    assert schema.keys() <= SAID | CHECKED, schema.keys() - SAID - CHECKED
    if "$ref" in schema:
        return fits(value, defs[schema["$ref"].rsplit("/", 1)[1]], defs)
    if "anyOf" in schema:
        return any(fits(value, each, defs) for each in schema["anyOf"])
    kinds = schema.get("type", [])
    if kinds and not any(TYPES[kind](value) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return False
    if "enum" in schema and not any(value == each and type(value) is type(each) for each in schema["enum"]):
        return False
    if "const" in schema and value != schema["const"]:
        return False
    for word, (kind, kept) in LIMITS.items():
        if word in schema and isinstance(value, kind) and not isinstance(value, bool) and not kept(value, schema[word]):
            return False
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if isinstance(value, list):
        first = schema.get("prefixItems", [])
        rest = schema.get("items", True)
        each = [*first, *[rest] * max(0, len(value) - len(first))]
        return all(fits(item, one, defs) for item, one in zip(value, each, strict=False))
    if isinstance(value, dict):
        known, other = schema.get("properties", {}), schema.get("additionalProperties", True)
        names = schema.get("propertyNames", True)
        return (
            all(name in value for name in schema.get("required", []))
            and all(fits(item, known.get(name, other), defs) for name, item in value.items())
            and all(fits(name, names, defs) for name in value)
        )
    return True

"""JSON Schemas of Structs as others read them, and pieces of OpenAPI 3.1 documents that are made of them. Pure."""

import re
from typing import Any

import msgspec

REFERENCE = "#/components/schemas/{name}"


def schemas_of(kinds: list[Any]) -> dict[str, Any]:
    """The schemas of Structs and of all that they hold, by name."""
    ordered = sorted(set(kinds), key=lambda kind: kind.__name__)
    return msgspec.json.schema_components(ordered, ref_template=REFERENCE)[1]


def own_schema(kind: Any) -> dict[str, Any]:
    (reference,), schemas = msgspec.json.schema_components([kind], ref_template=REFERENCE)
    return schemas[reference["$ref"].rsplit("/", 1)[-1]]


def reference(kind: Any) -> dict[str, Any]:
    return {"$ref": REFERENCE.format(name=kind.__name__)}


def finished(said: dict[str, Any]) -> dict[str, Any]:
    """A document with patterns as browsers read them, less the schemas that nothing refers to."""
    said = portable(said)
    schemas = said["components"]["schemas"]
    wanted, used = set(_names(said["paths"])), set()
    while wanted:
        used |= wanted
        wanted = {name for each in wanted for name in _names(schemas[each])} - used
    said["components"]["schemas"] = {name: schema for name, schema in schemas.items() if name in used}
    return said


def _names(value: Any) -> list[str]:
    """Of the schemas that are referred to within a part of the document."""
    return re.findall(r'"#/components/schemas/(\w+)"', msgspec.json.encode(value).decode())


def portable(value: Any) -> Any:
    """A schema, or a part of one, with patterns as ECMAScript writes them: it has no \\A and \\Z."""
    if isinstance(value, dict):
        return {
            key: re.sub(r"\\Z$", "$", re.sub(r"^\\A", "^", item))
            if key == "pattern" and isinstance(item, str)
            else portable(item)
            for key, item in value.items()
        }
    return [portable(item) for item in value] if isinstance(value, list) else value

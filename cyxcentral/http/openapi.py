"""The OpenAPI 3.1 document of the table of routes, made of the same Structs that decode the requests. Pure."""

import json
import typing
from importlib.metadata import version
from typing import Any

from cyxcentral.http.routes import EVENT_STREAM, ROUTES, Route
from cyxcore.spec import BatchMetrics, EpochMetrics
from cyxnet.messages import ErrorBody, HardwareMetrics, JobEvent, Update
from cyxnet.openapi import finished, own_schema, reference, schemas_of

JSON, BYTES = "application/json", "application/octet-stream"
STATUSES = {
    400: "the request is wrong",
    401: "no credential, or one that is not good",
    402: "too little money",
    403: "not yours, or not with this role",
    404: "there is no such thing",
    409: "not now, or not any more",
    413: "too large",
    429: "too often; Retry-After says when",
    503: "ask again, or another central; Retry-After says when",
}
PROBES = {
    "/livez": ("this process serves", None),
    "/readyz": ("this central can do its work", None),
    "/openapi.json": ("this document", None),
    "/metrics": ("figures for Prometheus, for operators", "bearer"),
}


# What `data` of an Update is, by its kind: an event has its name, and these have theirs.
EVENTS = typing.get_args(JobEvent)
METRICS = {"batch": BatchMetrics, "epoch": EpochMetrics, "hardware": HardwareMetrics}


def document(version: str) -> dict[str, Any]:
    """What is served at /openapi.json."""
    kinds = {kind for route in ROUTES for kind in (route.asks.request, route.asks.reply) if kind not in _PLAIN}
    schemas = schemas_of([*kinds, ErrorBody, *EVENTS, *METRICS.values()])
    metrics = ", ".join(f"{name}: {kind.__name__}" for name, kind in METRICS.items())
    schemas[Update.__name__]["properties"]["data"] = {
        "description": f"Of an event, the schema that `kind` names; of telemetry, {metrics}, and its attempt.",
        "anyOf": [reference(kind) for kind in (*EVENTS, *METRICS.values())],
    }
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    for path, (about, security) in PROBES.items():
        answer = {"description": about}
        paths[path] = {"get": {"summary": about, "responses": {"200": answer}, "security": _security(security)}}
    return finished(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Cyx",
                "version": version,
                "description": "Train and serve models on other people's machines.",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "paths": paths,
            "components": {
                "schemas": schemas,
                "securitySchemes": {
                    "bearer": {
                        "type": "http",
                        "scheme": "bearer",
                        "description": "an access token of a session, or an API key (cyxk_…)",
                    }
                },
            },
        }
    )


_PLAIN = (bytes, type(None))


def _security(scheme: str | None) -> list[dict[str, list[str]]]:
    return [{scheme: []}] if scheme else []


def _operation(route: Route) -> dict[str, Any]:
    verb, answer = route.asks, _content(route.asks.reply)
    if route.path == EVENT_STREAM:
        lines = "`event`: kind, `data`: an Update as JSON, `id`: the place behind it, for Last-Event-ID; at last `end`"
        answer["text/event-stream"] = {"schema": {"type": "string", "description": lines}}
    said: dict[str, Any] = {
        "operationId": f"{verb.name}:{route.path}" if route.verb == "key.revoke" else verb.name,
        "summary": verb.about,
        "tags": [verb.name.split(".")[0]],
        "security": _security(None if route.is_open else "bearer"),
        "parameters": _parameters(route),
        "responses": {str(route.status): {"description": "done", "content": answer}}
        | {str(status): _refusal(about) for status, about in STATUSES.items()},
    }
    if route.method == "POST" and verb.request is not type(None):
        content = _content(verb.request, route.in_path)
        must = not route.in_path or bool(content[JSON]["schema"]["required"])
        said["requestBody"] = {"required": must, "content": content}
    return said


def _parameters(route: Route) -> list[dict[str, Any]]:
    """The fields of the request that stand in the path, and those of the query where there is no body."""
    if route.asks.request in _PLAIN:
        return []
    found = []
    for name, schema in own_schema(route.asks.request)["properties"].items():
        if name in route.in_path:
            found.append({"name": name, "in": "path", "required": True, "schema": schema})
        elif route.method != "POST":
            found.append({"name": name, "in": "query", "required": False, "schema": schema})
    return found


def _content(kind: Any, in_path: list[str] | None = None) -> dict[str, Any]:
    if kind is bytes:
        return {BYTES: {"schema": {"type": "string", "contentMediaType": BYTES}}}
    schema: dict[str, Any] = reference(kind)
    if in_path:  # those are not said twice
        own = own_schema(kind)
        left = {name: field for name, field in own["properties"].items() if name not in in_path}
        required = [name for name in own.get("required", []) if name in left]
        schema = {"type": "object", "properties": left, "required": required, "additionalProperties": False}
    return {JSON: {"schema": schema}}


def _refusal(about: str) -> dict[str, Any]:
    return {"description": about, "content": _content(ErrorBody)}


if __name__ == "__main__":  # for who speaks NATS and has no HTTP to ask: python -m cyxcentral.http.openapi
    print(json.dumps(document(version("cyx")), indent=1))

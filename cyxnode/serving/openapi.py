"""The OpenAPI 3.1 document of routes.py, made of the same Structs that decode the requests. Pure."""

from typing import Any

from cyxnet.inference import Refusal
from cyxnet.openapi import finished, reference, schemas_of
from cyxnode.serving.routes import ROUTES, Route

JSON, EVENTS = "application/json", "text/event-stream"
STATUSES = {
    400: "the request is wrong",
    401: "no key, or one that is not good",
    404: "there is no such model, or it does not answer this",
    413: "too large",
    429: "too much or too often; Retry-After says when",
    503: "the server stops; ask another one",
}


def document(version: str, is_open: bool) -> dict[str, Any]:
    """What is served at /openapi.json. is_open: whether the server wants no key at all."""
    kinds = [kind for route in ROUTES for kind in (route.request, route.reply) if kind]
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, is_open)
    key = {"type": "http", "scheme": "bearer", "description": "an API key of the server"}
    return finished(
        {
            "openapi": "3.1.0",
            "info": {"title": "A model served by Cyx", "version": version},
            "paths": paths,
            "components": {"schemas": schemas_of([*kinds, Refusal]), "securitySchemes": {"key": key}},
        }
    )


def _operation(route: Route, is_open: bool) -> dict[str, Any]:
    answer = _content(route.reply, route)
    if route.streams:
        answer[EVENTS] = {"schema": {"type": "string"}}
    said: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.about,
        "security": [] if route.is_open or is_open else [{"key": []}],
        "responses": {"200": {"description": "done"} | ({"content": answer} if answer else {})},
    }
    if field := route.path.partition("{")[2].rstrip("}"):
        said["parameters"] = [{"name": field, "in": "path", "required": True, "schema": {"type": "string"}}]
    if not route.is_open:
        refused = {"content": {JSON: {"schema": reference(Refusal)}}}
        said["responses"] |= {str(status): {"description": about} | refused for status, about in STATUSES.items()}
    if route.request:
        said["requestBody"] = {"required": True, "content": _content(route.request, route)}
    return said


def _content(kind: Any, route: Route) -> dict[str, Any]:
    if kind is None:
        return {}
    binary = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}
    return {JSON: {"schema": reference(kind)}} | {content_type: binary for content_type in route.also}

"""Our own API as an OpenAPI document, and the page at /docs that shows it; the page loads nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from fermi.server.docs import PAGE
from fermi.server.errors import speaks_anthropic

Document = dict[str, Any]

SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "One of the server's keys, where it has any."},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same in a header."},
}
ERROR: Document = {
    "title": "Error",
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "The field of the request that is at fault."},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
MESSAGES_ERROR: Document = {
    "title": "MessagesError",
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}
PLACE = "#/components/schemas/"
EVENTS = {"text/event-stream": {"schema": {"type": "string", "description": "Events, where stream is true."}}}

#: Pages are shown by this origin's own means alone.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


def add_docs(app: FastAPI, is_open: Callable[[str], bool]) -> None:
    """Serve /openapi.json and /docs. ``is_open``: whether a path needs no key."""
    made: list[Document] = []

    def openapi() -> Document:
        if not made:
            made.append(document_of(app, is_open))
        return made[0]

    async def docs(request: Request) -> Response:
        return HTMLResponse(PAGE, headers={"content-security-policy": POLICY})

    app.openapi = openapi  # type: ignore[method-assign]
    app.add_route("/docs", docs, include_in_schema=False)


def document_of(app: FastAPI, is_open: Callable[[str], bool]) -> Document:
    """The OpenAPI document, with the bodies' schemas among its components."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas = _Schemas({"Error": ERROR, "MessagesError": MESSAGES_ERROR})
    for path, operation in _operations(document):
        operation["responses"].pop("422", None)  # bodies that are wrong get 400
        operation["responses"]["default"] = _failure("MessagesError" if speaks_anthropic(path) else "Error")
        operation["security"] = [] if is_open(path) else [{name: []} for name in SECURITY]
        body = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if body is not None:
            if "stream" in body["schema"].get("properties", {}):
                operation["responses"]["200"].setdefault("content", {}).update(EVENTS)
            body["schema"] = schemas.take(body["schema"])
    document["components"] = {"schemas": schemas.all, "securitySchemes": SECURITY}
    return document


def _failure(schema: str) -> Document:
    content = {"application/json": {"schema": {"$ref": PLACE + schema}}}
    return {"description": "What went wrong; 429 and 503 say by Retry-After when to try again.", "content": content}


def _operations(document: Document) -> Iterator[tuple[str, Document]]:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            yield path, operation


class _Schemas:
    """The schemas of a document by name, taken out of those that hold them."""

    def __init__(self, given: Document) -> None:
        self.all = dict(given)
        self._taken: dict[str, Document] = dict(given)  # as they were

    def take(self, schema: Document) -> Document:
        """Put a schema and those it defines among the others; returns the reference to it.

        A name that another schema has is made longer by the title of the one that defines it.
        """
        title = str(schema["title"])
        parts = {**schema.get("$defs", {}), title: {key: part for key, part in schema.items() if key != "$defs"}}
        names = {name: self._name(name, title, part) for name, part in parts.items()}
        text = json.dumps(parts)
        for name in parts:
            text = text.replace(f'"#/$defs/{name}"', f'"{PLACE}{names[name]}"')
        for name, part in json.loads(text).items():
            self.all[names[name]] = part
            self._taken[names[name]] = parts[name]
        return {"$ref": PLACE + names[title]}

    def _name(self, name: str, title: str, part: Document) -> str:
        return name if self._taken.get(name, part) == part else f"{title}{name}"

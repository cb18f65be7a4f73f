"""/openapi.json and /docs: valid, complete, with every body's schema, and shown without other servers' help."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from fermi import __version__
from fermi.server.schema.chat import ChatBody
from server.running import Serve
from server.toy import settings_with, toy_model


@pytest.fixture
def document(serve: Serve) -> dict[str, Any]:
    with serve(toy_model()).http() as http:
        return dict(http.get("/openapi.json").json())


def test_operations(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    assert document["info"]["title"] == "fermi"
    assert document["info"]["version"] == __version__
    posts = {path for path, methods in document["paths"].items() if "post" in methods}
    assert posts >= {
        "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/rerank", "/v1/score",
        "/v1/messages", "/tokenize", "/detokenize", "/v1/models/load",
    }  # fmt: skip
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["description"], (method, path)
            assert "422" not in operation["responses"]
            schema = "MessagesError" if path.startswith("/v1/messages") else "Error"
            assert schema in json.dumps(operation["responses"]["default"])
            if method == "post" and not path.endswith("/cancel"):
                assert "$ref" in operation["requestBody"]["content"]["application/json"]["schema"], path
    ids = re.findall(r'"operationId": "([^"]*)"', json.dumps(document))
    assert len(ids) == len(set(ids))


def test_schemas_are_complete(document: dict[str, Any]) -> None:
    text, schemas = json.dumps(document), document["components"]["schemas"]
    assert "$defs" not in text
    named = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert named <= set(schemas)
    assert not [name for name in schemas if re.fullmatch(r"(\w+)\1", name)]
    fields = schemas["ChatBody"]["properties"]
    assert set(fields) == set(ChatBody.model_json_schema()["properties"])
    assert "text/event-stream" in document["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]


def test_security(document: dict[str, Any]) -> None:
    assert set(document["components"]["securitySchemes"]) == {"bearer", "x-api-key"}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert bool(operation["security"]) is (path not in ("/health", "/ready", "/ping")), path


def test_the_page_needs_nobody_else(serve: Serve) -> None:
    with serve(toy_model(), settings=settings_with(api_keys=("one",))).http() as http:
        page = http.get("/docs")
        assert http.get("/openapi.json").status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "//" not in re.sub(r"(?m)^\s*//.*$", "", page.text)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert 'fetch("openapi.json")' in page.text

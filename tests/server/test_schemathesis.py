"""Requests made from schemas, OpenAI's and our own: whatever they ask for, the answer is one that clients know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import response_schema_conformance

from server.running import Running, serving
from server.toy import settings_with, toy_embedder, toy_model

SERVED = (
    ("POST", "/chat/completions"),
    ("POST", "/completions"),
    ("POST", "/responses"),
    ("GET", "/responses/{response_id}"),
    ("DELETE", "/responses/{response_id}"),
    ("POST", "/responses/{response_id}/cancel"),
    ("POST", "/embeddings"),
    ("GET", "/models"),
    ("GET", "/models/{model}"),
)
#: Deterministic (see conftest.py); shrinking would take longer than all the rest.
FEW = settings(
    max_examples=20,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
)


@pytest.fixture(scope="module")
def both() -> Iterator[Running]:
    """A server of a model that talks and of one that embeds."""
    with serving(toy_model(), toy_embedder(), settings=settings_with(response_store=":memory:")) as running:
        yield running


def without_discriminators(node: dict[str, Any]) -> dict[str, Any]:
    """Theirs name no values, so that by the letter those of ``type`` would be names of schemas."""
    return {key: value for key, value in node.items() if key != "discriminator" or "propertyName" not in value}


@pytest.fixture(scope="module")
def openai_spec(shared: Path) -> Any:
    """OpenAI's own description of the operations that fermi serves."""
    text = (shared / "openai" / "openapi.json").read_text()
    spec = json.loads(text, object_hook=without_discriminators)
    paths: dict[str, dict[str, Any]] = {}
    for method, path in SERVED:
        paths.setdefault(path, {})[method.lower()] = spec["paths"][path][method.lower()]
    return schemathesis.openapi.from_dict({**spec, "servers": [], "paths": paths})


@pytest.fixture(scope="module")
def own_spec(both: Running) -> Any:
    with both.http() as http:
        return schemathesis.openapi.from_dict(http.get("/openapi.json").json())


def check(reply: Any) -> None:
    """An answer, or an error in its envelope; never a failure of the server's own."""
    assert reply.status_code < 500, reply.text
    if reply.status_code < 400:
        return
    assert reply.headers["content-type"] == ["application/json"]
    document = reply.json()
    if document.get("type") == "error":  # Anthropic's
        assert {"type", "message"} <= set(document["error"])
        return
    assert set(document) == {"error"}
    error = document["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert isinstance(error["type"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    assert error["code"] is None or isinstance(error["code"], str)


def aimed(case: Any, model: str) -> Any:
    """The request for a model that is there: which one a schema cannot know."""
    if isinstance(case.body, dict) and "model" in case.body:
        case.body["model"] = model
    return case


def run(operation: Any, both: Running, model: str, path: str = "", theirs: bool = False) -> int:
    """Ask what an operation's schema describes, valid or not; returns how many answers were 200."""
    good = 0

    @FEW
    @given(operation.as_strategy() | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
    def ask(case: Any) -> None:
        nonlocal good
        reply = aimed(case, model).call(base_url=f"{both.url}{path}")
        check(reply)
        good += reply.status_code == 200
        # OpenAI's description knows no base64, which its client asks for.
        described = not (isinstance(case.body, dict) and case.body.get("encoding_format") == "base64")
        document = reply.headers.get("content-type") == ["application/json"]
        if theirs and described and document and reply.status_code == 200:
            case.validate_response(reply, checks=[response_schema_conformance])

    ask()
    return good


@pytest.mark.parametrize(("method", "path"), SERVED)
def test_openais_spec(openai_spec: Any, both: Running, method: str, path: str) -> None:
    """Its requests are understood, and what is answered with 200 is what it describes."""
    model = "toy-embedder" if path == "/embeddings" else "toy"
    run(openai_spec[path][method], both, model, path="/v1", theirs=True)


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>'
TOOL = {"name": "add", "parameters": {"type": "object"}}
HELLO = [{"role": "user", "content": "Hi"}]
GOOD: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/chat/completions", {"messages": HELLO}),
    ("/chat/completions", {"messages": HELLO, "n": 2, "logprobs": True, "top_logprobs": 2, "max_tokens": 3}),
    ("/chat/completions", {"messages": HELLO, "tools": [{"type": "function", "function": TOOL}]}),
    ("/completions", {"prompt": ["a", "b"], "logprobs": 2}),
    ("/responses", {"input": "Hi", "tools": [{"type": "function", "strict": False, **TOOL}]}),
    ("/responses", {"input": HELLO, "max_output_tokens": 16, "instructions": "Be brief.", "metadata": {"a": "b"}}),
    ("/embeddings", {"input": ["a", "b"], "model": "toy-embedder"}),
    ("/embeddings", {"input": [65, 66], "model": "toy-embedder", "encoding_format": "float"}),
)


@pytest.mark.parametrize(("path", "body"), GOOD)
def test_answers_are_what_openais_spec_describes(openai_spec: Any, path: str, body: dict[str, Any]) -> None:
    model = toy_model("Well. " + CALL if "tools" in body else "Hello, world.")
    with serving(model, toy_embedder(), settings=settings_with(response_store=":memory:")) as running:
        case = openai_spec[path]["POST"].Case(body={"model": "toy", **body}, media_type="application/json")
        reply = case.call(base_url=f"{running.url}/v1")
        assert reply.status_code == 200, reply.text
        case.validate_response(reply, checks=[response_schema_conformance])


def test_our_own(own_spec: Any, both: Running) -> None:
    operations = [each.ok() for each in own_spec.get_all_operations()]
    good = {f"{each.method} {each.path}": run(each, both, "toy") for each in operations}
    assert len(good) > 15
    assert good["get /v1/models"]


def test_the_page_is_there(both: Running) -> None:
    with both.http() as http:
        assert http.get("/docs").status_code == 200
        document: dict[str, Any] = http.get("/openapi.json").json()
    paths = document["paths"]
    for method, path in SERVED:
        assert method.lower() in (paths.get(f"/v1{path}") or paths["/v1/models/{name}"])

"""Whatever is wrong with a request: the envelope, the right status, the field's name, and never a 500."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fermi.defaults import Defaults
from fermi.errors import EngineError, QueueFullError
from fermi.server.messages.schema import MessagesBody
from fermi.server.responses.schema import ResponseBody
from fermi.server.schema.body import Body
from fermi.server.schema.chat import ChatBody
from fermi.server.schema.completions import CompletionBody
from fermi.server.schema.embeddings import EmbeddingBody, RerankBody
from fermi.server.schema.tokenize import DetokenizeBody
from server.running import Running, Serve
from server.toy import service_of, settings_with, toy_model

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hi"}]


def check_envelope(reply: httpx.Response) -> dict[str, Any]:
    document = reply.json()
    assert set(document) == {"error"}
    error = document["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert isinstance(error["type"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    assert reply.headers["x-request-id"]
    return dict(error)


def refused(server: Running, body: object, path: str = CHAT, status: int = 400) -> dict[str, Any]:
    with server.http() as http:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        reply = http.post(path, content=content)
    assert reply.status_code == status, reply.text
    return check_envelope(reply)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"messages": [{"role": "user", "content": "\xff"}]}',
        b'{"messages": NaN}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": '
        + b'{"a":' * 5000
        + b"1"
        + b"}" * 5001,
    ],
    ids=range(12),
)
def test_malformed_bodies(toy_server: Running, body: bytes) -> None:
    for path in (CHAT, "/v1/completions", "/tokenize", "/detokenize"):
        assert refused(toy_server, body, path)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("schema", "field"),
    [
        (schema, field)
        for schema in (ChatBody, CompletionBody, ResponseBody, MessagesBody, EmbeddingBody, RerankBody, DetokenizeBody)
        for field in schema.model_fields
    ],
)
def test_complaints_are_few(schema: type[Body], field: str) -> None:
    """A list of many wrong items is refused at the first: to collect millions of complaints takes minutes."""
    for items in ([None] * 1000, [[None] * 1000]):
        with pytest.raises(ValidationError) as caught:
            schema.model_validate_json(json.dumps({field: items}))
        assert caught.value.error_count() < 20


@pytest.mark.parametrize(
    "body",
    [
        {"model": "x" * 10**5},
        {"messages": [{"role": "user", "content": [{"type": "x" * 10**5}]}]},
        {"metadata": {"x" * 10**5: 1}},
        {"tool_choice": {"type": "x" * 10**5}, "tools": [{"type": "function", "function": {"name": "f"}}]},
    ],
    ids=lambda body: next(iter(body)),
)
def test_errors_do_not_repeat_what_is_long(toy_server: Running, body: dict[str, Any]) -> None:
    with toy_server.http() as http:
        reply = http.post(CHAT, json={"messages": HELLO, **body})
    assert reply.status_code in (400, 404)
    assert len(json.dumps(check_envelope(reply))) < 10_000


def test_too_many_and_too_long(toy_server: Running) -> None:
    for field, body in (
        ("metadata", {"metadata": {str(number): 1 for number in range(17)}}),
        ("logit_bias", {"logit_bias": {str(number): "x" for number in range(2**18 + 1)}}),
        ("stop", {"stop": "x" * 5000}),
        ("bad_words.0", {"bad_words": ["x" * 300]}),
    ):
        assert refused(toy_server, {"messages": HELLO, **body})["param"] == field


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": ["Hi"]}, "messages.0"),
        ({"messages": [{"content": "Hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "assistant", "tool_calls": ["x"]}]}, "messages.0.tool_calls.0.function"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"n": 0}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": 129}, "n"),
        ({"seed": 2**64}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": [1]}, "stop.0"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"min_tokens": 9, "max_tokens": 3}, "min_tokens"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logprobs": 3}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"stream_options": 3}, "stream_options"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}] * 2}, "tools.1.function.name"),
        ({"tools": [{"type": "retrieval", "function": {"name": "x"}}]}, "tools.0.type"),
        ({"thinking": "maybe"}, "thinking"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"timeout": 0}, "timeout"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs.self"),
        ({"model": 3}, "model"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_wrong_fields(toy_server: Running, body: dict[str, object], param: str) -> None:
    error = refused(toy_server, {"model": "toy", "messages": HELLO} | body)
    assert error["param"] == param
    assert param.split(".")[0] in error["message"] or param == "messages"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"prediction": {"type": "content"}}, "prediction"),
        ({"store": True}, "store"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content.0.type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            "messages.0.content.0.type",
        ),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_what_cannot_be_honoured_is_refused_by_name(toy_server: Running, body: dict[str, object], param: str) -> None:
    assert refused(toy_server, {"model": "toy", "messages": HELLO} | body)["param"] == param


def test_what_asks_for_nothing_is_accepted(toy_server: Running) -> None:
    nothing = {"response_format": {"type": "text"}, "tool_choice": "none", "tools": [], "modalities": ["text"]}
    nothing |= {"store": False, "audio": None, "service_tier": "auto", "unheard_of": {"a": 1}, "metadata": {"a": "b"}}
    nothing |= dict.fromkeys(("temperature", "stop", "seed", "logprobs", "stream", "n", "max_tokens"))
    with toy_server.http() as http:
        reply = http.post(
            CHAT, json={"model": "toy", "messages": HELLO, **nothing}, headers={"content-type": "text/plain"}
        )
    assert reply.status_code == 200


def test_context_length(serve: Serve) -> None:
    server = serve(toy_model(max_model_len=64))
    long = [{"role": "user", "content": "x" * 100}]
    with pytest.raises(openai.BadRequestError) as error:
        server.openai().chat.completions.create(model="toy", messages=long, stream=True)  # type: ignore[call-overload]
    assert (error.value.code, error.value.param) == ("context_length_exceeded", "messages")
    envelope = refused(server, {"prompt": "abc", "max_tokens": 70}, "/v1/completions")
    assert envelope["code"] == "context_length_exceeded"
    assert envelope["message"].startswith(
        "This model's maximum context length is 64 tokens. However, you requested 73 tokens (3 in the prompt, 70 in the"
    )


def test_limit_of_a_reply(serve: Serve) -> None:
    server = serve(toy_model(max_model_len=64, defaults=Defaults(max_tokens=8, max_tokens_cap=20)))
    assert refused(server, {"messages": HELLO, "max_tokens": 21})["param"] == "max_tokens"
    assert refused(server, {"messages": HELLO, "max_completion_tokens": 21})["param"] == "max_completion_tokens"
    beyond_both = refused(server, {"messages": HELLO, "max_tokens": 100_000})
    assert beyond_both["code"] == "context_length_exceeded"


def test_unknown_model(toy_server: Running) -> None:
    client = toy_server.openai()
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="gpt-4", messages=HELLO)  # type: ignore[arg-type]
    assert (error.value.code, error.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("some/thing")


def test_routes_and_methods(toy_server: Running) -> None:
    with toy_server.http() as http:
        for method, path, status in [("GET", "/nothing", 404), ("POST", "/v1/nothing", 404), ("GET", CHAT, 405)]:
            reply = http.request(method, path)
            assert reply.status_code == status
            check_envelope(reply)
        assert http.get(CHAT).headers["allow"] == "POST"


def test_body_limit(serve: Serve) -> None:
    server = serve(toy_model(), settings=settings_with(max_body_bytes=1000))
    assert refused(server, {"messages": HELLO, "user": "x" * 1000}, status=413)["code"] == "request_too_large"
    with server.http() as http:
        chunked = http.post(CHAT, content=iter([b"x" * 600, b"x" * 600]))
        assert chunked.status_code == 413
        check_envelope(chunked)
        assert http.post(CHAT, json={"messages": HELLO}).status_code == 200


def test_queue_full(serve: Serve) -> None:
    server = serve(toy_model(QueueFullError("full", retry_after=3.2)))
    with server.http() as http:
        for body in ({"messages": HELLO}, {"messages": HELLO, "stream": True}):
            reply = http.post(CHAT, json=body)
            assert (reply.status_code, reply.headers["retry-after"]) == (429, "4")
            assert check_envelope(reply)["type"] == "rate_limit_error"


def test_a_part_that_cannot_be_queued_cancels_the_others(serve: Serve) -> None:
    model = toy_model("fine", QueueFullError("full"))
    refused(serve(model), {"prompt": ["a", "b"]}, "/v1/completions", 429)
    assert service_of(model).streams[0].cancelled == {0}


def test_keys(serve: Serve) -> None:
    server = serve(toy_model(), settings=settings_with(api_keys=("one", "two")))
    with server.http() as http:
        for headers in (
            {},
            {"authorization": "Bearer three"},
            {"authorization": "Basic one"},
            {"x-api-key": "ône".encode()},
        ):
            reply = http.get("/v1/models", headers=headers)
            assert reply.status_code == 401
            assert check_envelope(reply)["code"] == "invalid_api_key"
        for headers in ({"authorization": "Bearer one"}, {"authorization": "bearer two"}, {"x-api-key": "two"}):
            assert http.get("/v1/models", headers=headers).status_code == 200
        for path in ("/health", "/ready", "/ping"):
            assert http.get(path).status_code == 200
        assert http.options(CHAT).status_code == 405


def test_failure_before_the_first_token_has_its_status(serve: Serve) -> None:
    model = toy_model(EngineError("the device is gone"))
    server = serve(model)
    for stream in (False, True):
        error = refused(server, {"messages": HELLO, "stream": stream}, status=500)
        assert (error["type"], error["message"]) == ("server_error", "the device is gone")


def test_unforeseen_failure_tells_nothing(serve: Serve) -> None:
    server = serve(toy_model(RuntimeError("secret /path/of/the/server")))
    error = refused(server, {"messages": HELLO}, status=500)
    assert "secret" not in error["message"]
    assert error["code"] == "internal_error"


def test_request_id(toy_server: Running) -> None:
    with toy_server.http() as http:
        assert http.get("/ping", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
        made = {
            http.get("/ping", headers={"x-request-id": given}).headers["x-request-id"]
            for given in ("", "a b", "x" * 200)
        }
    assert len(made) == 3
    assert not made & {"", "a b", "x" * 200}


@pytest.fixture(scope="module")
def toy_http(toy_server: Running) -> Iterator[httpx.Client]:
    with toy_server.http() as http:
        yield http


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [*ChatBody.model_fields, *CompletionBody.model_fields, *ChatBody.refused, "repeat_penalty", "tokens"]
messages = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "assistant", "system", "tool"]) | json_values,
            "content": st.text(max_size=9) | json_values,
        },
        optional={"tool_calls": json_values, "reasoning": json_values, "name": json_values},
    ),
    max_size=3,
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from([CHAT, "/v1/completions", "/tokenize", "/detokenize"]),
    body=st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=5),
    good=st.booleans(),
    spoken=messages,
)
def test_fuzzed_requests_never_break(
    toy_http: httpx.Client, path: str, body: dict[str, Any], good: bool, spoken: list[Any]
) -> None:
    if good:
        body = {**body, "messages": spoken, "prompt": "x", "model": "toy", "tokens": [65]}
    reply = toy_http.post(path, content=json.dumps(body).encode())
    assert reply.status_code in (200, 400, 404), reply.text
    if reply.status_code != 200:
        check_envelope(reply)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from([CHAT, "/v1/completions"]), body=st.binary(max_size=64))
def test_random_bytes_never_break(toy_http: httpx.Client, path: str, body: bytes) -> None:
    reply = toy_http.post(path, content=body)
    assert reply.status_code == 400
    check_envelope(reply)

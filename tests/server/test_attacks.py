"""Bodies and bytes that mean harm: each is refused or answered, in its envelope and in time, and the server goes on."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fermi.config import Settings
from fermi.server.loading import load_served
from server.raw_client import Answer, ask, request_of
from server.running import Running, serving

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hi"}]
LIMIT = 2**20
TIME_S = 30  # none of these takes a second where they are handled; a machine that does other things takes longer


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """The demo model, and bodies of a megabyte at most."""
    settings = Settings.model_validate(
        {
            "engine": {"threads": 1},
            "cache": {"kv_cache_memory": "32MiB"},
            "openai": {"max_body_bytes": LIMIT, "response_store": ":memory:"},
        }
    )
    with serving(load_served("demo", settings), settings=settings) as running:
        yield running


@pytest.fixture
def port(server: Running) -> Iterator[int]:
    """And after each attack it answers as ever."""
    yield int(server.url.rpartition(":")[2])
    with server.http() as http:
        reply = http.post(CHAT, json={"messages": HELLO, "max_tokens": 2, "temperature": 0})
        assert reply.status_code == 200
        assert http.get("/ready").status_code == 200


async def sent(port: int, request: bytes) -> Answer:
    return await asyncio.wait_for(ask(port, request), TIME_S)


def refused(answer: Answer, *statuses: int) -> dict[str, Any]:
    """The error of an answer with one of these statuses."""
    assert answer.status in statuses, answer
    error: dict[str, Any] = json.loads(answer.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) < 20_000
    return error


def chat(**body: Any) -> bytes:
    return request_of(CHAT, {"messages": HELLO, "max_tokens": 4, **body})


def nested(depth: int, opening: str = "[", closing: str = "]", inner: str = "") -> str:
    return opening * depth + inner + closing * depth


MALFORMED = [
    b"",
    b"\x00" * 100,
    b"\xff\xfe{\x00}\x00",
    b'{"messages": ' + b"[" * 100_000,
    nested(100_000).encode(),
    b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    b'{"messages": [], "messages": 1}',
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
    b'{"messages": [{"role": "user", "content": 1e999999}]}',
    b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": ' + b"9" * 5000 + b"}",
    b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    b'{"messages": [{"role": "user", "content": "x"}], "top_p": -Infinity}',
    b'{"messages": [{"role": "user", "content": "x"}]} trailing',
    b"[" + b"1," * 100_000 + b"1]",
    b"--x\r\nContent-Disposition: form-data\r\n\r\n",
]


@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/v1/responses", "/v1/embeddings", "/tokenize"])
async def test_malformed(port: int, path: str, body: bytes) -> None:
    answer = await sent(port, request_of(path, body))
    if path != "/tokenize" or answer.status != 200:  # which knows no temperature, however wrong
        refused(answer, 400)


DEEP = nested(900, '{"a":', "}", "1")
HARMFUL: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 20_000}]},
    {"messages": HELLO * 10_000},
    {"messages": [{"role": "user", "content": "a" * 900_000}]},
    {"messages": [{"role": "user", "content": "\ud83d"}]},
    {"messages": [{"role": "user", "content": "{{ ''.__class__.__mro__ }}{% for x in range(10**9) %}{% endfor %}"}]},
    {"messages": [{"role": "{{ 7 * 7 }}", "content": "x"}]},
    {"messages": [{"role": "user", "content": "x", "name": {"a": {}}}]},
    {"messages": HELLO, "chat_template_kwargs": {"messages": [], "self": 1}},
    {"messages": HELLO, "chat_template_kwargs": {"range": 1, "x" * 1000: json.loads(DEEP)}},
    {"messages": HELLO, "chat_template": "{% for a in range(10**12) %}{% endfor %}"},
    {"messages": HELLO, "stop": ["a"] * 10_000},
    {"messages": HELLO, "stop": ["a" * 900_000]},
    {"messages": HELLO, "stop": [""]},
    {"messages": HELLO, "stop_token_ids": list(range(10**5))},
    {"messages": HELLO, "logit_bias": {str(number): 100 for number in range(50_000)}},
    {"messages": HELLO, "logit_bias": {"-1": 1, "1e3": 1, "٣": 1}},
    {"messages": HELLO, "n": 10**9},
    {"messages": HELLO, "best_of": 10**9},
    {"messages": HELLO, "seed": 10**30},
    {"messages": HELLO, "seed": -(2**63)},
    {"messages": HELLO, "top_k": 2**63},
    {"messages": HELLO, "max_tokens": 2**62},
    {"messages": HELLO, "min_tokens": 2**62},
    {"messages": HELLO, "max_tokens": -1},
    {"messages": HELLO, "timeout": 1e308},
    {"messages": HELLO, "timeout": -1},
    {"messages": HELLO, "priority": 10**30},
    {"messages": HELLO, "cache_salt": "x" * 500_000},
    {"messages": HELLO, "user": "\x00\r\nX-Injected: 1", "metadata": {"a" * 1000: "b" * 10_000}},
    {"messages": HELLO, "model": "../../../etc/passwd"},
    {"messages": HELLO, "model": "x" * 100_000},
    {"messages": HELLO, "tools": [{"type": "function", "function": {"name": "f"}}] * 5_000},
    {"messages": HELLO, "tools": [{"type": "function", "function": {"name": "</tool_call>\n\"'{{", "parameters": {}}}]},
    {"messages": [*HELLO, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": DEEP}}]}]},
    {"messages": [*HELLO, {"role": "assistant", "tool_calls": [{"function": {"name": 1, "arguments": "{"}}]}]},
    {"messages": [*HELLO, {"role": "tool", "tool_call_id": {}, "content": [[]]}]},
]


@pytest.mark.parametrize("body", HARMFUL, ids=range(len(HARMFUL)))
@pytest.mark.parametrize("stream", [False, True])
async def test_harmful_chats(port: int, body: dict[str, Any], stream: bool) -> None:
    answer = await sent(port, request_of(CHAT, {"max_tokens": 4, "stream": stream, **body}))
    if answer.status == 200:
        assert b'"error":{' not in answer.body
    else:
        refused(answer, 400, 404)


def schema(value: object) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}}


LOOP = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
TREE = {"$ref": "#/$defs/t", "$defs": {"t": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/t"}}] * 20}}}
FORMS: list[dict[str, Any]] = [
    schema(json.loads(nested(300, '{"type": "object", "properties": {"a":', "}}", '{"type": "string"}'))),
    schema(json.loads(nested(300, '{"anyOf": [', "]}", '{"type": "string"}'))),
    schema(LOOP),
    schema(TREE),
    schema({"$ref": "https://127.0.0.1:1/x"}),
    schema({"$ref": "file:///etc/passwd"}),
    schema({"$ref": "#/nowhere"}),
    schema({"enum": [str(number) for number in range(30_000)]}),
    schema({"type": "string", "minLength": 10**9}),
    schema({"type": "string", "pattern": "^(a+)+$" * 50}),
    schema({"type": "string", "pattern": "(" * 5000}),
    schema({"type": "string", "pattern": "a{1,1000}{1,1000}{1,1000}"}),
    schema({"type": "array", "items": {"type": "integer"}, "minItems": 10**8, "maxItems": 10**9}),
    schema({"type": "integer", "multipleOf": 0}),
    schema({"type": "integer", "minimum": -(10**30), "maximum": 10**30}),
    schema({"type": "nothing"}),
    schema({"properties": {f"p{number}": {"type": "integer"} for number in range(5000)}, "required": ["p0"]}),
    schema({"allOf": [{"type": "string"}, {"type": "integer"}]}),
    {"grammar": "start: start start | "},
    {"grammar": {"type": "lark", "value": "start: " + "(" * 5000}},
    {"grammar": {"type": "lark", "value": "start: a\na: b\nb: a"}},
    {"grammar": {"type": "lark", "value": "start: /(a|aa)+$/{1000000}"}},
    {"grammar": {"type": "gbnf", "value": "root ::= root root root"}},
    {"grammar": {"type": "gbnf", "value": 'root ::= "a"{1000000000}'}},
    {"guided_regex": "(((((a*)*)*)*)*)*b"},
    {"guided_regex": "a{1000000}{1000000}"},
    {"guided_regex": "[" * 10_000},
    {"guided_choice": ["x" * 100] * 5000},
    {"guided_choice": []},
    {"grammar": {"type": "lark", "value": "start: A A A\nA: /a+/"}},  # of which only the first is ever reached
    {"grammar": {"type": "lark", "value": 'start: ((a{100}){100}){100}\na: b{1000}\nb: "x"'}},
    {"grammar": {"type": "gbnf", "value": 'root ::= a a a\na ::= "a"+'}},
]


@pytest.mark.parametrize("form", FORMS, ids=range(len(FORMS)))
async def test_harmful_forms(port: int, form: dict[str, Any]) -> None:
    """Schemas and grammars: bound in size, in time, and in what they may reach; while others are served."""
    harmful = asyncio.ensure_future(sent(port, chat(**form)))
    others = await asyncio.gather(*(sent(port, chat()) for _ in range(4)))
    assert all(other.status == 200 for other in others)
    answer = await harmful
    if answer.status != 200:
        refused(answer, 400)


async def test_bodies_that_are_too_large(port: int) -> None:
    refused(await sent(port, chat(messages=[{"role": "user", "content": "x" * LIMIT}])), 413)
    told = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {10**18}\r\n\r\n".encode()
    refused(await sent(port, told), 413)
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    chunked = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    answer = await sent(port, chunked + chunk * 40 + b"0\r\n\r\n")
    assert answer.status in (0, 413)  # it may have closed while we wrote


RAW = [
    b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    b"GET / HTTP/9.9\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 50_000 + b"\r\n",
    b"GET / HTTP/1.1\r\nX: " + b"y" * 300_000 + b"\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n\r\n",
    b"GET /%00%ff%zz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /v1/models/../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /v1/responses/' OR 1=1; DROP TABLE responses; -- HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /v1/responses/%27%20OR%201%3D1%20-- HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /ping HTTP/1.1\r\nHost: x\r\nx-request-id: a\x00b\r\nConnection: close\r\n\r\n",
]


@pytest.mark.parametrize("data", RAW, ids=range(len(RAW)))
async def test_bytes_that_are_no_request(port: int, data: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        writer.write_eof()
        received = await asyncio.wait_for(reader.read(), TIME_S)
    except OSError:  # it had closed while we wrote
        received = b""
    finally:
        writer.close()
    for status in (b"HTTP/1.1 200", b"HTTP/1.1 5"):
        assert not received.startswith(status) or data.startswith(b"GET /ping")
    assert b"Traceback" not in received
    assert b"root:" not in received


async def test_requests_one_behind_the_other(port: int) -> None:
    """Pipelined on one connection, a stream and a bad one among them: answers come in order."""
    keep = [
        request_of(CHAT, body).replace(b"Connection: close\r\n", b"")
        for body in (
            {"messages": HELLO, "max_tokens": 2},
            {"messages": HELLO, "max_tokens": 2, "stream": True},
            {"messages": 5},
        )
    ]
    answer = await sent(port, b"".join(keep) + request_of("/ping", b"", "GET"))
    everything = answer.body
    assert answer.status == 200
    places = [everything.find(part) for part in (b"chat.completion", b"[DONE]", b"invalid_request_error")]
    assert places == sorted(places)
    assert -1 not in places


async def test_connections_that_say_nothing(server: Running, port: int) -> None:
    """Three hundred that are open, half of them within a request, hold up nobody."""
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(300)]
    for number, (_, writer) in enumerate(connections):
        if number % 2:
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert (await sent(port, chat())).status == 200
    for _, writer in connections:
        writer.close()


async def test_mutated_requests(port: int) -> None:
    """Bytes of good requests changed at random: none is a failure of the server's."""
    chance = random.Random(7)
    form = schema({"type": "object", "properties": {"a": {"type": "integer"}}})
    good = [
        {"messages": HELLO, "max_tokens": 2, "stream": True, "stop": ["a"], "temperature": 0.5},
        {"messages": HELLO, "max_tokens": 2, **form},
        {"messages": HELLO, "max_tokens": 2, "tools": [{"type": "function", "function": {"name": "f"}}]},
    ]
    for number in range(300):
        body = bytearray(json.dumps(good[number % 3]).encode())
        for _ in range(chance.randint(1, 4)):
            body[chance.randrange(len(body))] = chance.choice(b'{}[]",:0-9eE\\\x00\xff aZ')
        answer = await sent(port, request_of(CHAT, bytes(body)))
        assert answer.status in (200, 400, 404), (bytes(body), answer)
        if answer.status != 200:
            refused(answer, 400, 404)


def test_errors_tell_nothing_of_the_machine(server: Running) -> None:
    """No path, stack or module stands in an error."""
    with server.http() as http:
        replies = [http.post(CHAT, content=body) for body in MALFORMED]
        replies += [http.post(CHAT, json={"messages": HELLO, "max_tokens": 2, **form}) for form in FORMS[:8]]
        replies.append(http.get("/v1/models/%2e%2e"))
    for reply in replies:
        for secret in ("Traceback", str(Path(__file__).parents[2]), "site-packages", ".py", "pydantic", "0x7f"):
            assert secret not in reply.text or reply.status_code == 200
        assert isinstance(reply, httpx.Response)

"""Headers, errors that tell nothing, deadlines and a bounded queue, on every endpoint."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import pytest

from engine.toy_encoder import ToyEncoder
from server.live import Paced, wait_for
from server.running import Running, Serve, serving
from server.toy import Answer, settings_with, toy_embedder, toy_model

SECRET = "the-secret-of-the-prompt"
PROMPT = "x" * 100  # two chunks of a step's 64 tokens
HELLO = [{"role": "user", "content": PROMPT}]
GENERATING: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO, "max_tokens": 500},
    "/v1/completions": {"prompt": PROMPT, "max_tokens": 500},
    "/v1/responses": {"input": PROMPT, "max_output_tokens": 500},
    "/v1/messages": {"model": "paced", "messages": HELLO, "max_tokens": 500},
}


@pytest.fixture
def model() -> Iterator[Paced]:
    """An engine that steps by permits."""
    paced = Paced(free=False, max_queued_tokens=450, max_queued_requests=3)
    yield paced
    paced.let_go()


@pytest.fixture(scope="module")
def both() -> Iterator[Running]:
    """A server of a model that generates and of one that embeds."""
    with serving(toy_model(name="paced"), toy_embedder()) as running:
        yield running


def check_headers(reply: httpx.Response) -> None:
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["x-frame-options"] == "DENY"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["x-request-id"]
    assert "server" not in reply.headers


def test_security_headers(serve: Serve) -> None:
    with serve(toy_model(), settings=settings_with(api_keys=("one",), max_body_bytes=10_000)).http() as http:
        replies = [http.get("/v1/models")]
        http.headers["x-api-key"] = "one"
        replies += [http.get(path) for path in ("/v1/models", "/nowhere", "/health", "/docs", "/metrics")]
        replies += [http.post("/v1/chat/completions", content=content) for content in (b"{", b"x" * 20_000)]
        replies += [http.post("/v1/completions", json={"prompt": "x", "stream": stream}) for stream in (False, True)]
        replies.append(http.delete("/health"))
    for reply in replies:
        check_headers(reply)
    assert [reply.status_code for reply in replies] == [401, 200, 404, 200, 200, 200, 400, 413, 200, 200, 405]


UNFORESEEN: list[Answer] = [
    LookupError(f"in /home/fermi/secret.py: {SECRET}"),
    KeyError(SECRET),
    OSError(2, "No such file or directory", "/home/fermi/secret.txt"),
]


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("answer", UNFORESEEN, ids=repr)
@pytest.mark.parametrize("stream", [False, True])
def test_the_unforeseen_tells_nothing(serve: Serve, path: str, answer: Answer, stream: bool) -> None:
    with serve(toy_model(answer, name="paced")).http() as http:
        reply = http.post(path, json={**GENERATING[path], "stream": stream})
    assert reply.status_code == 500 or '"error"' in reply.text
    for told in (SECRET, "secret", "/home", "Traceback", ".py", "Error("):
        assert told not in reply.text


BROKEN: list[dict[str, Any]] = [
    {"temperature": SECRET},
    {"messages": SECRET},
    {"messages": [SECRET]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": SECRET, "extra": {}}, {"type": "image_url"}]}]},
    {"messages": [{"role": "user", "content": {"text": SECRET}}]},
    {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": SECRET}, {"role": "system"}]},
    {"prompt": [SECRET, 3]},
    {"prompt": {"text": SECRET}},
    {"input": {"text": SECRET}},
    {"input": [{"type": "message", "role": "user", "content": [{"type": "input_image", "text": SECRET}]}]},
    {"stop": {SECRET: 1}},
    {"tools": SECRET},
    {"max_tokens": SECRET, "max_output_tokens": SECRET},
    {"messages": [{"role": "user", "content": SECRET * 1000}], "prompt": SECRET * 1000, "input": SECRET * 1000},
]


@pytest.mark.parametrize("path", [*GENERATING, "/tokenize", "/v1/embeddings"])
@pytest.mark.parametrize("wrong", BROKEN, ids=range(len(BROKEN)))
def test_refusals_do_not_repeat_what_was_sent(both: Running, path: str, wrong: dict[str, Any]) -> None:
    with both.http() as http:
        reply = http.post(path, json={**GENERATING.get(path, {}), **wrong})
        malformed = http.post(path, content=json.dumps(wrong).encode()[:-1])
    assert reply.status_code in (200, 400)
    if reply.status_code == 400:
        assert SECRET not in reply.text
    assert malformed.status_code == 400
    assert SECRET not in malformed.text


def ended_by(path: str, reply: httpx.Response, stream: bool) -> str:
    """Why the reply ended, in the words of its dialect."""
    if stream:
        lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: {")]
        events = [json.loads(line) for line in lines]
    else:
        events = [reply.json()]
    for event in reversed(events):
        event = event.get("response", event)
        if event.get("incomplete_details"):
            return str(event["incomplete_details"]["reason"])
        reason = event.get("stop_reason") or event.get("delta", {}).get("stop_reason")
        reason = reason or next((choice["finish_reason"] for choice in event.get("choices", ())), None)
        if reason:
            return str(reason)
    raise AssertionError(reply.text)


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("of", ["client", "server"])
def test_a_deadline_gives_the_text_so_far(serve: Serve, model: Paced, path: str, stream: bool, of: str) -> None:
    server = serve(model.served(), settings=settings_with(timeout_ms=500_000 if of == "server" else 0))
    timeout = {"timeout": 500} if of == "client" else {}
    with ThreadPoolExecutor(1) as pool:
        body = {**GENERATING[path], **timeout, "stream": stream}
        asked = pool.submit(httpx.post, f"{server.url}{path}", json=body, timeout=60)
        for _ in range(10):  # the prompt, and some tokens
            model.permits.release()
            assert model.stepped.acquire(timeout=60)
        model.later = 1000.0
        model.permits.release(1)
        reply = asked.result(60)
    assert reply.status_code == 200
    assert ended_by(path, reply, stream) in ("length", "max_output_tokens", "max_tokens")
    assert stream or "aaaaaa" in reply.text
    if "completions" in path:
        assert '"deadline":true' in reply.text
    wait_for(lambda: model.idle)


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_before_the_first_token(serve: Serve, model: Paced, path: str, stream: bool) -> None:
    server = serve(model.served())
    with ThreadPoolExecutor(1) as pool:
        body = {**GENERATING[path], "timeout": 500, "stream": stream}
        asked = pool.submit(httpx.post, f"{server.url}{path}", json=body, timeout=60)
        assert model.entered.acquire(timeout=60)  # the first half of the prompt
        model.later = 1000.0
        model.permits.release(1)
        reply = asked.result(60)
    if path == "/v1/responses" and stream:  # whose first events come at once
        assert "response.failed" in reply.text
    else:
        assert reply.status_code == 504
        assert "time was over" in reply.json()["error"]["message"]
    wait_for(lambda: model.idle)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/v1/score"])
def test_a_deadline_of_texts_to_embed(serve: Serve, path: str) -> None:
    encoder = ToyEncoder(vocab_size=300, free=False)
    bodies: dict[str, dict[str, Any]] = {
        "/v1/embeddings": {"input": ["abc"] * 100},
        "/v1/rerank": {"query": "abc", "documents": ["abc"] * 100},
        "/v1/score": {"text_1": "abc", "text_2": ["abc"] * 100},
    }
    served = toy_embedder(encoder)
    with serve(served, settings=settings_with(timeout_ms=50)).http() as http:
        reply = http.post(path, json=bodies[path])
        assert reply.status_code == 504
        assert reply.json()["error"]["code"] == "deadline_exceeded"
        wait_for(lambda: not served.service.open_requests)
        encoder.free = True
        encoder.permits.release(1)


def waiting(server: Running, model: Paced, count: int, tokens: int, pool: ThreadPoolExecutor) -> None:
    """Fill the engine's eight places, then the queue."""
    body = {"prompt": "x" * tokens, "max_tokens": 3}
    for _ in range(8 + count):
        pool.submit(httpx.post, f"{server.url}/v1/completions", json=body, timeout=60)
    wait_for(lambda: model.service.open_requests == 8 + count)


@pytest.mark.parametrize(("count", "tokens"), [(3, 8), (1, 200)])
def test_a_full_queue(serve: Serve, model: Paced, count: int, tokens: int) -> None:
    """Full of requests, or of tokens."""
    server = serve(model.served())
    with ThreadPoolExecutor(16) as pool, server.http() as http:
        try:
            waiting(server, model, count, tokens, pool)
            for path, body in GENERATING.items():
                for stream in (False, True):
                    reply = http.post(path, json={**body, "stream": stream})
                    assert reply.status_code == 429, path
                    assert int(reply.headers["retry-after"]) >= 1
                    assert reply.json()["error"]["type"] == "rate_limit_error"
        finally:
            model.let_go()
    wait_for(lambda: model.idle)


def raw(server: Running, *pieces: bytes) -> tuple[int, dict[str, Any]]:
    """The answer to bytes, sent piece by piece until the server has had enough."""
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=60) as connection:
        with suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
        received = b""
        with suppress(ConnectionError):
            while piece := connection.recv(65536):
                received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize(
    "line", [b"NONSENSE\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"]
)
def test_what_is_no_http(both: Running, line: bytes) -> None:
    status, body = raw(both, line)
    assert status == 400
    assert body["error"]["code"] == "invalid_http"


def test_heads_are_bounded(both: Running) -> None:
    endless = (b"GET /ping HTTP/1.1\r\nHost: x\r\nx-much: ", *[b"a" * 4096] * 1000)
    status, body = raw(both, *endless)
    assert status == 431
    assert body["error"]["type"] == "invalid_request_error"
    with both.http() as http:  # while long ones are fine, and bodies are not heads
        assert http.get("/ping", headers={"x-much": "a" * 30_000}).status_code == 200
        assert http.post("/v1/completions", json={"prompt": "x", "user": "y" * 200_000}).status_code == 200
        assert http.get("/ping").status_code == 200

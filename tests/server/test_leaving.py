"""Clients that leave, or read slowly, on every endpoint: what they asked for is free within a step, others go on."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from engine.toy_encoder import ToyEncoder
from server.live import Paced, wait_for
from server.running import Running, Serve
from server.toy import toy_embedder

PROMPT = "x" * 100  # two chunks of a step's 64 tokens
HELLO = [{"role": "user", "content": PROMPT}]
GENERATING: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO, "max_tokens": 500, "n": 2},
    "/v1/completions": {"prompt": [PROMPT, PROMPT], "max_tokens": 500},
    "/v1/responses": {"input": PROMPT, "max_output_tokens": 500},
    "/v1/messages": {"model": "paced", "messages": HELLO, "max_tokens": 500},
}
ENCODING: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": ["abc"] * 100},
    "/v1/rerank": {"query": "abc", "documents": ["abc"] * 100},
    "/v1/score": {"text_1": "abc", "text_2": ["abc"] * 100},
    "/v1/similarity": {"source_sentence": "abc", "sentences": ["abc"] * 100},
}


def ask(server: Running, path: str, body: dict[str, Any], *, buffer: int | None = None) -> socket.socket:
    """Send a request and read nothing; ``buffer``: bytes that the client's side of the connection takes."""
    host, port = server.url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    connection = socket.socket()
    if buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(60)
    connection.connect((host, int(port)))
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


@pytest.fixture
def model() -> Iterator[Paced]:
    """An engine that steps by permits."""
    paced = Paced(free=False)
    yield paced
    paced.let_go()


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 6])
def test_a_client_that_leaves_frees_its_work_within_a_step(
    serve: Serve, model: Paced, path: str, stream: bool, steps: int
) -> None:
    server = serve(model.served())
    connection = ask(server, path, {**GENERATING[path], "stream": stream})
    wait_for(lambda: model.service.open_requests)
    for _ in range(steps):  # in the queue, within the prompt, or within the reply
        model.permits.release()
        assert model.stepped.acquire(timeout=60)
    connection.close()
    wait_for(lambda: not server.listener.state.running)
    model.permits.release()  # the step that runs
    wait_for(lambda: model.idle)
    assert model.steps <= steps + 1
    assert model.service.stats.finished_requests >= 1


@pytest.mark.parametrize("path", ENCODING)
def test_a_client_that_leaves_drops_what_has_not_begun(serve: Serve, path: str) -> None:
    encoder = ToyEncoder(vocab_size=300, free=False)
    served = toy_embedder(encoder)
    server = serve(served)
    with ask(server, path, ENCODING[path]):
        assert encoder.entered.acquire(timeout=60)
    wait_for(lambda: not server.listener.state.running)
    assert served.service.open_requests == 0
    encoder.free = True
    encoder.permits.release(1)
    with server.http() as http:
        assert http.post("/v1/embeddings", json={"input": "abcd"}).status_code == 200
    assert sum(map(len, encoder.lengths)) <= len(encoder.batches[0]) + 1


@pytest.mark.parametrize("path", GENERATING)
def test_a_client_that_does_not_read_holds_up_nobody(serve: Serve, path: str) -> None:
    model = Paced(max_model_len=4096)
    server = serve(model.served())
    body = {**GENERATING[path], "stream": True}
    body = {name: 3800 if value == 500 else value for name, value in body.items()}
    connection = ask(server, path, body, buffer=4096)
    with server.http() as http:
        quick = http.post("/v1/completions", json={"prompt": "x", "max_tokens": 20})
        assert quick.json()["usage"]["completion_tokens"] == 20
        wait_for(lambda: model.idle)  # the engine has done its part, whether the client reads or not
    received = b""
    while not received.endswith(b"0\r\n\r\n"):  # and all of it is there when it does
        received += connection.recv(65536)
    connection.close()
    assert received.count(b"a") > 3800 - 500


def test_half_of_many_clients_leave(serve: Serve) -> None:
    model = Paced()
    server = serve(model.served())
    paths = list(GENERATING)

    def visit(number: int) -> None:
        path = paths[number % len(paths)]
        body = {**GENERATING[path], "stream": number % 3 == 0}
        if number % 2:
            with ask(server, path, body) as connection:
                if number % 4 == 1:
                    connection.recv(1)
        else:
            statuses.append(httpx.post(f"{server.url}{path}", json=body, timeout=60).status_code)

    statuses: list[int] = []
    visitors = [threading.Thread(target=visit, args=(number,)) for number in range(200)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join(60)
    assert statuses == [200] * 100
    wait_for(lambda: model.idle and not server.listener.state.running)
    stats = model.service.stats.blocks
    assert stats.free + stats.cached == stats.total

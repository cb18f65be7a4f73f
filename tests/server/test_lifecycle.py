"""Clients that leave, silence, deadlines, loading, draining."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import structlog

from fermi.engine.event import Event
from fermi.server.served import ServedModel
from server.running import Running, Serve
from server.toy import ScriptedStream, service_of, settings_with, toy_model

HELLO = [{"role": "user", "content": "Hi"}]
CHAT = "/v1/chat/completions"


def raw_request(server: Running, body: dict[str, object], path: str = CHAT) -> socket.socket:
    """A connection on which a request was sent."""
    host, port = server.url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    connection = socket.create_connection((host, int(port)), timeout=30)
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def in_loop(server: Running, function: Callable[[], object]) -> object:
    """Run a function in the server's loop and wait for it."""
    future: Future[object] = Future()
    server.call(lambda: future.set_result(function()))
    return future.result(30)


@pytest.fixture
def held() -> ServedModel:
    """A model that says nothing until it is told to; ``submitted`` and ``left`` are set when that happens."""
    return toy_model(hold=True)


def watch(model: ServedModel) -> tuple[threading.Event, threading.Event]:
    """Events that are set when a request is submitted, and when one is cancelled."""
    submitted, left = threading.Event(), threading.Event()
    service = service_of(model)
    service.on_submit = submitted.set
    service.on_cancel = left.set
    return submitted, left


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("begun", [False, True])
def test_a_client_that_leaves(serve: Serve, held: ServedModel, path: str, stream: bool, begun: bool) -> None:
    submitted, left = watch(held)
    server = serve(held)
    connection = raw_request(server, {"messages": HELLO, "prompt": ["x", "y"], "stream": stream}, path)
    assert submitted.wait(30)
    if begun:
        stream_of = service_of(held).streams[0]
        server.call(lambda: stream_of.put(Event(stream_of.request.id, 0, [65])))
        received = b""
        while stream and b"data: " not in received:
            received += connection.recv(4096)
    connection.close()
    assert left.wait(30)

    def all_cancelled() -> bool:
        return all(each.cancelled for each in service_of(held).streams)

    assert in_loop(server, all_cancelled)
    with server.http() as http:
        assert http.get("/ready").status_code == 200


def test_a_client_that_leaves_within_its_body(serve: Serve) -> None:
    server = serve(toy_model())
    logged: list[dict[str, object]] = []
    seen = threading.Event()

    def note(logger: object, method: str, event: dict[str, object]) -> dict[str, object]:
        logged.append({**event, "level": method})
        seen.set()
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[note], wrapper_class=structlog.make_filtering_bound_logger(0))
    try:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
        assert seen.wait(30)
    finally:
        structlog.configure(**before)
    [line] = logged
    assert (line["level"], line["status"]) == ("info", 499)


def test_many_prompts_are_all_cancelled(serve: Serve, held: ServedModel) -> None:
    submitted, left = watch(held)
    server = serve(held)
    connection = raw_request(server, {"prompt": ["a", "b", "c"], "n": 2}, "/v1/completions")
    assert submitted.wait(30)
    connection.close()
    assert left.wait(30)
    assert in_loop(server, lambda: [stream.cancelled for stream in service_of(held).streams]) == [{0, 1}] * 3


def test_pings_in_silence(serve: Serve, held: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fermi.server.sse.PING_S", 0.01)
    submitted, _ = watch(held)
    server = serve(held)
    connection = raw_request(server, {"messages": HELLO, "stream": True})
    assert submitted.wait(30)
    received = b""
    while received.count(b": ping\n\n") < 2:
        received += connection.recv(4096)
    assert received.startswith(b"HTTP/1.1 200")
    stream = service_of(held).streams[0]
    server.call(lambda: service_of(held).release(stream, "Late."))
    while b"[DONE]" not in received:
        received += connection.recv(4096)
    connection.close()
    assert received.index(b": ping") < received.index(b'"role":"assistant"')


def failing(model: ServedModel, event: dict[str, object]) -> Callable[[ScriptedStream], None]:
    """Puts one event that ends a request."""
    return lambda stream: stream.put(Event(stream.request.id, 0, **event))  # type: ignore[arg-type]


@pytest.mark.parametrize("stream", [False, True])
def test_deadline_before_the_first_token(serve: Serve, held: ServedModel, stream: bool) -> None:
    service_of(held).script = failing(held, {"finish_reason": "deadline", "error": "late"})
    with serve(held).http() as http:
        reply = http.post(CHAT, json={"messages": HELLO, "stream": stream, "timeout": 0.5})
    assert reply.status_code == 504
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    assert service_of(held).last.deadline is not None


def test_deadline_after_it_gives_the_text_so_far(serve: Serve, held: ServedModel) -> None:
    ids = service_of(held).tokenizer.encode("So far", add_special_tokens=False)
    service_of(held).script = failing(held, {"finish_reason": "deadline", "token_ids": ids})
    with serve(held).http() as http:
        reply = http.post(CHAT, json={"messages": HELLO}).json()
        stream = http.post(CHAT, json={"messages": HELLO, "stream": True}).text
    assert (reply["choices"][0]["message"]["content"], reply["choices"][0]["finish_reason"]) == ("So far", "length")
    assert reply["performance"]["deadline"] is True
    last = json.loads(stream.split("\n\n")[-3].removeprefix("data: "))
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["performance"]["deadline"] is True


def test_no_deadline_where_none_is_wanted(serve: Serve) -> None:
    model = toy_model()
    server = serve(model, settings=settings_with(timeout_ms=0))
    with server.http() as http:
        http.post(CHAT, json={"messages": HELLO})
        assert service_of(model).last.deadline is None
        http.post(CHAT, json={"messages": HELLO, "timeout": 5})
        assert service_of(model).last.deadline is not None


def test_failure_after_the_first_token_is_an_event(serve: Serve, held: ServedModel) -> None:
    def script(stream: ScriptedStream) -> None:
        stream.put(Event(stream.request.id, 0, [65]))
        stream.put(Event(stream.request.id, 0, finish_reason="error", error="the device is gone"))

    service_of(held).script = script
    with serve(held).http() as http:
        events = http.post(CHAT, json={"messages": HELLO, "stream": True}).text.split("\n\n")
        assert http.post(CHAT, json={"messages": HELLO}).status_code == 500
    error = json.loads(events[-2].removeprefix("data: "))["error"]
    assert error["type"] == "server_error"
    assert "the device is gone" not in error["message"]  # that is for the log
    assert "[DONE]" not in events[-2]
    assert events[-1] == ""


def test_loading(serve: Serve) -> None:
    server = serve()
    with server.http() as http:
        assert http.get("/health").json()["status"] == "loading"
        ready = http.get("/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": "loading", "model_loaded": False})
        for path in (CHAT, "/v1/completions", "/tokenize"):
            reply = http.post(path, json={"messages": HELLO, "prompt": "x"})
            assert reply.status_code == 503
            assert int(reply.headers["retry-after"]) >= 1
            assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
        assert http.get("/v1/models").json() == {"object": "list", "data": []}
        model = toy_model()
        in_loop(server, lambda: server.listener.state.models.add(model))
        assert http.get("/ready").json() == {"status": "ready", "model_loaded": True}
        assert http.post(CHAT, json={"messages": HELLO}).status_code == 200


def test_a_dead_engine_is_not_ready(serve: Serve) -> None:
    model = toy_model()
    service_of(model).ready = False
    with serve(model).http() as http:
        assert http.get("/ready").status_code == 503


def test_drain(serve: Serve, held: ServedModel) -> None:
    """What runs is finished, new work refused, then the server ends with exit code 0."""
    submitted, _ = watch(held)
    server = serve(held)
    with server.http() as http, ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: http.post(CHAT, json={"messages": HELLO}))
        assert submitted.wait(30)
        in_loop(server, server.listener.drain)
        assert http.get("/ready").status_code == 503
        assert http.get("/health").json()["status"] == "draining"
        refused = http.post(CHAT, json={"messages": HELLO})
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        stream = service_of(held).streams[0]
        server.call(lambda: service_of(held).release(stream, "Done."))
        assert running.result(30).json()["choices"][0]["message"]["content"] == "Done."
    server.thread.join(30)
    assert not server.thread.is_alive()
    assert server.listener.exit_code == 0


@pytest.mark.parametrize("stream", [False, True])
def test_drain_time_is_bounded(serve: Serve, held: ServedModel, stream: bool) -> None:
    submitted, _ = watch(held)
    server = serve(held, settings=settings_with(drain_ms=10))
    with server.http() as http, ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: http.post(CHAT, json={"messages": HELLO, "stream": stream}))
        assert submitted.wait(30)
        in_loop(server, server.listener.drain)
        assert running.result(30).status_code == 500
    server.thread.join(30)
    assert not server.thread.is_alive()


def test_second_signal_ends_at_once(serve: Serve, held: ServedModel) -> None:
    submitted, _ = watch(held)
    server = serve(held)
    with server.http() as http, ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: http.post(CHAT, json={"messages": HELLO}))
        assert submitted.wait(30)
        in_loop(server, server.listener.drain)
        in_loop(server, server.listener.drain)
        assert running.result(30).status_code == 500
    server.thread.join(30)
    assert not server.thread.is_alive()

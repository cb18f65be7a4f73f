"""The log: what a line says of a request, in JSON or for people, and that it keeps prompts and keys to itself."""

from __future__ import annotations

import io
import json
import logging
import socket
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Literal

import pytest
import structlog

from fermi.config import LogSettings, Settings
from fermi.engine.event import Event
from fermi.server.log import configure_logging, logger
from server.live import wait_for
from server.running import Running, Serve
from server.toy import service_of, toy_embedder, toy_model

CHAT = "/v1/chat/completions"
SECRET = "the-secret-of-the-prompt"
HELLO = {"messages": [{"role": "user", "content": SECRET}]}


class Log(io.StringIO):
    """A log in memory."""

    def __init__(self, *, terminal: bool = False) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The events of a log in JSON."""
        return [json.loads(line) for line in self.getvalue().splitlines()]

    def of(self, message: str) -> list[dict[str, Any]]:
        """Those of a message."""
        return [line for line in self.lines if line["message"] == message]


@pytest.fixture
def log() -> Iterator[Log]:
    """The server's log in JSON, of all levels."""
    before, handlers = structlog.get_config(), logging.getLogger().handlers[:]
    stream = Log()
    configure_logging(LogSettings(level="debug", format="auto"), stream)
    yield stream
    structlog.configure(**before)
    logging.getLogger().handlers[:] = handlers


def chat(server: Running, **options: Any) -> None:
    with server.http() as http:
        http.post(CHAT, json={**HELLO, **options}, headers={"x-request-id": "mine"})


@pytest.mark.parametrize("stream", [False, True])
def test_a_line_for_each_request(serve: Serve, log: Log, stream: bool) -> None:
    server = serve(toy_model("abc"))
    chat(server, stream=stream)
    wait_for(lambda: log.of(f"POST {CHAT}"))
    [line] = log.of(f"POST {CHAT}")
    assert list(line)[:3] == ["timestamp", "level", "message"]
    assert datetime.fromisoformat(line.pop("timestamp").replace("Z", "+00:00")).tzinfo is not None
    assert line.pop("duration_ms") >= 0
    assert line.pop("prompt_tokens") > len(SECRET)
    assert line == {
        "level": "info", "message": f"POST {CHAT}", "request_id": "mine", "status": 200, "completion_tokens": 4,
    }  # fmt: skip


def test_requests_without_tokens(serve: Serve, log: Log) -> None:
    with serve(toy_embedder()).http() as http:
        replies = [http.get("/v1/models"), http.get("/nowhere"), http.get("/health")]
        assert http.post("/v1/embeddings", json={"input": ["abc", "d"]}).status_code == 200
    wait_for(lambda: len(log.lines) == 4)
    lines = [log.of(message)[0] for message in ("GET /v1/models", "GET /nowhere", "GET /health")]
    assert [line["status"] for line in lines] == [200, 404, 200]
    assert [line["level"] for line in lines] == ["info", "info", "debug"]
    assert [line["request_id"] for line in lines] == [reply.headers["x-request-id"] for reply in replies]
    assert not any("prompt_tokens" in line or "completion_tokens" in line for line in lines)
    [line] = log.of("POST /v1/embeddings")
    assert line["prompt_tokens"] == 4
    assert "completion_tokens" not in line


@pytest.mark.parametrize("given", ["two words", "", "x" * 129, "new\tline", "é"])
def test_an_id_that_would_break_a_log_is_replaced(serve: Serve, log: Log, given: str) -> None:
    with serve(toy_model()).http() as http:
        made = http.get("/v1/models", headers={"x-request-id": given.encode()}).headers["x-request-id"]
    assert made != given
    assert len(made) >= 16
    wait_for(lambda: log.of("GET /v1/models"))
    assert log.of("GET /v1/models")[0]["request_id"] == made


@pytest.mark.parametrize("form", ["json", "text"])
def test_paths_cannot_forge_lines(serve: Serve, log: Log, form: Literal["json", "text"]) -> None:
    configure_logging(LogSettings(level="debug", format=form), log)
    server = serve(toy_model())
    with server.http() as http:
        http.get("/x%0A%7B%22message%22:%22forged%22%7D%1B[2J?key=hidden")
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=60) as connection:
        connection.sendall(b"GET /y\x9b2J HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        while connection.recv(4096):
            pass
    wait_for(lambda: log.getvalue().count("\n") >= 2)
    assert len(log.getvalue().splitlines()) == 2
    assert log.getvalue().isascii()
    assert "\x1b[2J" not in log.getvalue()
    assert "hidden" not in log.getvalue()


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_and_replies_are_kept_out(serve: Serve, log: Log, stream: bool) -> None:
    model = toy_model("the-secret-of-the-reply")
    server = serve(model)
    chat(server, stream=stream)
    chat(server, stream=stream, temperature="hot " + SECRET)
    chat(server, stream=stream, messages=[{"role": SECRET, "content": SECRET}])
    chat(server, stream=stream, tools=[SECRET])
    service_of(model).script = lambda each: each.put(Event(each.request.id, 0, finish_reason="error", error="broken"))
    chat(server, stream=stream)
    wait_for(lambda: len(log.of(f"POST {CHAT}")) == 5)
    assert "the-secret" not in log.getvalue()
    [failed] = log.of("the engine failed at a request")
    assert (failed["error"], failed["request_id"]) == ("broken", "mine")


def test_prompts_are_logged_where_that_is_asked_for(serve: Serve, log: Log) -> None:
    settings = Settings.model_validate({"log": {"prompts": True}})
    model = toy_model("fine")
    chat(serve(model, settings=settings))
    [line] = log.of("prompts")
    assert line["request_id"] == "mine"
    assert line["prompts"] == [service_of(model).prompt(service_of(model).last)]
    assert SECRET in line["prompts"][0]


def test_prompts_to_embed_are_logged_too(serve: Serve, log: Log) -> None:
    settings = Settings.model_validate({"log": {"prompts": True}})
    with serve(toy_embedder(), settings=settings).http() as http:
        http.post("/v1/embeddings", json={"input": [SECRET, "b"]})
    [line] = log.of("prompts")
    assert line["prompts"] == [SECRET, "b"]


def test_what_nobody_foresaw_has_a_traceback_in_the_log_alone(serve: Serve, log: Log) -> None:
    model = toy_model(LookupError("an accident"))
    with serve(model).http() as http:
        reply = http.post(CHAT, json=HELLO)
    assert reply.status_code == 500
    assert "accident" not in reply.text
    [line] = log.of("request failed")
    assert line["level"] == "error"
    assert line["request_id"] == reply.headers["x-request-id"]
    assert "LookupError" in line["exception"]
    assert "Traceback" in line["exception"]


def test_for_people(serve: Serve) -> None:
    before, handlers = structlog.get_config(), logging.getLogger().handlers[:]
    try:
        stream = Log(terminal=True)
        configure_logging(LogSettings(), stream)
        logger().info("hello", answer=42, name="\x1b[2J")
        logging.getLogger("other").warning("from below")
        logger().debug("not shown")
    finally:
        structlog.configure(**before)
        logging.getLogger().handlers[:] = handlers
    shown = stream.getvalue()
    assert "hello" in shown
    assert "\\x1b[2J" in shown
    assert "\x1b[2J" not in shown
    assert "from below" in shown
    assert "not shown" not in shown
    assert not shown.lstrip("\x1b[2m").startswith("{")


def test_libraries_below_log_in_the_same_form(log: Log) -> None:
    logging.getLogger("some.library").error("trouble %s", "ahead")
    [line] = log.lines
    assert (line["level"], line["message"]) == ("error", "trouble ahead")
    assert "timestamp" in line

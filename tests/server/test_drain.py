"""SIGTERM under load: every answer that runs is whole; a second signal ends at once, whatever the engine does."""

from __future__ import annotations

import json
import re
import signal
import socket
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.live import Paced, wait_for
from server.running import Running, Serve
from server.test_process import event, process
from server.toy import settings_with

COMPLETIONS = "/v1/completions"


def in_loop(server: Running, function: Any) -> Any:
    future: Future[Any] = Future()
    server.call(lambda: future.set_result(function()))
    return future.result(60)


def test_sigterm_under_load_keeps_every_answer_whole(tmp_path: Path) -> None:
    """A process with a real model, 24 streams and whole answers, more of them than run at a time."""
    tokens, clients = 60, 24
    with process(tmp_path, "--model", "demo", "--threads", "1", "--max-num-seqs", "8") as child:
        address = event(child, "ready")["address"]

        def stream() -> list[str]:
            body = {"prompt": "Once", "max_tokens": tokens, "ignore_eos": True, "stream": True, "logprobs": 0}
            with httpx.stream("POST", f"{address}/completions", json=body, timeout=120) as reply:
                lines = []
                for line in reply.iter_lines():
                    if line.startswith("data: "):
                        lines.append(line.removeprefix("data: "))
                return lines

        def whole() -> dict[str, Any]:
            body = {"prompt": "Once", "max_tokens": tokens, "ignore_eos": True}
            reply = httpx.post(f"{address}/completions", json=body, timeout=120)
            return dict(reply.json())

        with ThreadPoolExecutor(2 * clients) as pool:
            streams = [pool.submit(stream) for _ in range(clients)]
            answers = [pool.submit(whole) for _ in range(clients)]
            metrics = f"{address.removesuffix('/v1')}/metrics"

            def asked() -> int:
                """Requests that the server has taken."""
                numbers = re.findall(
                    r"^fermi_(?:http_requests_open|requests_total.*completions.*) ([0-9.]+)$",
                    httpx.get(metrics).text,
                    re.MULTILINE,
                )
                return int(sum(map(float, numbers)))

            wait_for(lambda: asked() == 2 * clients)
            child.send_signal(signal.SIGTERM)
            event(child, "draining")
            for each in streams:
                *chunks, last = each.result(120)
                assert last == "[DONE]"
                parsed = [json.loads(chunk)["choices"][0] for chunk in chunks]
                assert sum(len(choice["logprobs"]["tokens"]) for choice in parsed if choice["logprobs"]) == tokens
                assert parsed[-1]["finish_reason"] == "length"
            for answer in answers:
                assert answer.result(120)["usage"]["completion_tokens"] == tokens
        assert child.wait(60) == 0


def test_new_connections_are_told_to_go_elsewhere(serve: Serve) -> None:
    model = Paced(free=False)
    server = serve(model.served())
    try:
        with server.http() as http, ThreadPoolExecutor(1) as pool:
            running = pool.submit(httpx.post, f"{server.url}{COMPLETIONS}", json={"prompt": "x", "max_tokens": 5})
            wait_for(lambda: model.service.open_requests)
            in_loop(server, server.listener.drain)
            bodies: dict[str, Any] = {
                COMPLETIONS: {"prompt": "x"},
                "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
                "/v1/responses": {"input": "x"},
                "/tokenize": {"prompt": "x"},
            }
            for path, body in bodies.items():
                refused = http.post(path, json=body)
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
                assert int(refused.headers["retry-after"]) >= 1
            ready = http.get("/ready")
            assert (ready.status_code, ready.json()["status"]) == (503, "draining")
            assert http.get("/ping").status_code == 200
            model.let_go()
            assert running.result(60).json()["usage"]["completion_tokens"] == 5
    finally:
        model.let_go()
    server.thread.join(60)
    assert not server.thread.is_alive()
    assert not server.listener.abandoned


def test_responses_in_the_background_are_finished(serve: Serve, tmp_path: Path) -> None:
    settings = settings_with(response_store=str(tmp_path / "responses.sqlite"))
    model = Paced(free=False)
    server = serve(model.served(), settings=settings)
    try:
        with server.http() as http:
            body = {"input": "x", "background": True, "max_output_tokens": 20}
            name = http.post("/v1/responses", json=body).json()["id"]
        assert model.entered.acquire(timeout=60)
        in_loop(server, server.listener.drain)
    finally:
        model.let_go()
    server.thread.join(60)
    assert not server.thread.is_alive()
    with serve(Paced().served(), settings=settings).http() as http:
        kept = http.get(f"/v1/responses/{name}").json()
    assert (kept["status"], kept["usage"]["output_tokens"]) == ("incomplete", 20)


def test_a_second_signal_does_not_wait_for_a_step(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fermi.server.listener.HURRY_S", 0.01)
    model = Paced(free=False)
    server = serve(model.served(), settings=settings_with(drain_ms=10**9))
    connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=60)
    content = json.dumps({"prompt": "x"}).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    assert model.entered.acquire(timeout=60)
    in_loop(server, server.listener.drain)
    in_loop(server, server.listener.drain)
    server.thread.join(60)
    assert not server.thread.is_alive()  # although the step goes on
    assert server.listener.abandoned
    model.let_go()
    connection.close()


def test_an_idle_server_ends_at_once(tmp_path: Path) -> None:
    with process(tmp_path, "--model", "demo", "--threads", "1") as child:
        address = event(child, "ready")["address"].removesuffix("/v1")
        with httpx.Client(base_url=address) as http:  # its connection stays open
            assert http.get("/ready").status_code == 200
            child.send_signal(signal.SIGINT)
            assert child.wait(60) == 0


@pytest.mark.parametrize("signals", [1, 2])
def test_a_signal_while_a_model_is_loaded(tmp_path: Path, signals: int) -> None:
    with process(tmp_path, "--model", "demo") as child:
        event(child, "listening")
        for _ in range(signals):
            child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0


def test_two_signals_end_a_busy_process(tmp_path: Path) -> None:
    with process(tmp_path, "--model", "demo", "--threads", "1", "--drain-ms", "3600000") as child:
        address = event(child, "ready")["address"]
        body = {"prompt": "Once", "max_tokens": 1000, "ignore_eos": True, "stream": True, "n": 8}
        with httpx.stream("POST", f"{address}/completions", json=body, timeout=60) as reply:
            lines = reply.iter_lines()
            assert next(lines).startswith("data: ")
            child.send_signal(signal.SIGTERM)
            event(child, "draining")
            child.send_signal(signal.SIGTERM)
            assert child.wait(60) == 0
            rest = [line for line in lines if line]
        assert "error" in json.loads(rest[-1].removeprefix("data: "))

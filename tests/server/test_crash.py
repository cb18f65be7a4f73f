"""When the engine crashes: not ready, every open request ends with an error, and it starts anew or stays down."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from engine.toy_encoder import ToyEncoder
from fermi.config import Settings
from fermi.engine.scheduler import Scheduler
from fermi.server.loading import load_served
from fermi.server.served import ServedModel
from server.live import Crash, Paced, wait_for
from server.running import Running, Serve, serving
from server.toy import toy_embedder

COMPLETIONS = "/v1/completions"
LONG = {"prompt": "long", "max_tokens": 100}


@contextmanager
def paced(**options: int) -> Iterator[Paced]:
    """An engine that steps by permits."""
    model = Paced(free=False, **options)
    try:
        yield model
    finally:
        model.let_go()


def ready(http: httpx.Client) -> tuple[int, str]:
    reply = http.get("/ready")
    return reply.status_code, reply.json()["status"]


def crash_with_open_requests(server: Running, model: Paced) -> None:
    """Requests of every kind that run or wait when the engine crashes."""
    kinds: list[tuple[str, dict[str, Any]]] = [
        (COMPLETIONS, {**LONG, "stream": stream, "n": n, "prompt": prompt})
        for stream in (False, True)
        for n in (1, 3)
        for prompt in ("one", ["one", "two"])
    ]
    kinds += [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "stream": stream})
        for stream in (False, True)
    ]
    kinds.append(("/v1/responses", {"input": "x", "stream": False, "store": False}))
    with server.http() as http, ThreadPoolExecutor(len(kinds)) as pool:
        replies = [pool.submit(http.post, path, json=body) for path, body in kinds]
        wait_for(lambda: server.listener.state.running == len(kinds))
        prompts = sum(len(body["prompt"]) if isinstance(body.get("prompt"), list) else 1 for _, body in kinds)
        wait_for(lambda: model.service.open_requests == prompts)
        model.crash = Crash("secret details of the device")
        model.permits.release(1)
        for (path, body), reply in zip(kinds, replies, strict=True):
            answer = reply.result(60)
            assert answer.status_code == 500, (path, body)
            assert answer.json()["error"]["type"] == "server_error"
            assert "secret" not in answer.text


def test_a_crash_ends_every_open_request_and_the_engine_starts_anew(serve: Serve) -> None:
    with paced(max_restarts=3) as model:
        server = serve(model.served())
        with server.http() as http:
            crash_with_open_requests(server, model)
            assert model.resetting.acquire(timeout=60)
            assert ready(http) == (503, "restarting")
            refused = http.post(COMPLETIONS, json=LONG)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
            assert int(refused.headers["retry-after"]) >= 1
            assert http.get("/health").json()["status"] == "restarting"
            model.resets.release()
            wait_for(lambda: ready(http)[0] == 200)
            model.let_go()
            assert http.post(COMPLETIONS, json=LONG).json()["usage"]["completion_tokens"] == 100
            assert 'fermi_engine_restarts_total{model="paced"} 1.0' in http.get("/metrics").text
        assert model.made == 2
        wait_for(lambda: model.idle)


def test_a_stream_that_has_begun_ends_with_an_error(serve: Serve) -> None:
    with paced(max_restarts=1) as model, serve(model.served()).http() as http:
        model.permits.release(2)
        with http.stream("POST", COMPLETIONS, json={**LONG, "stream": True}) as reply:
            lines = (line for line in reply.iter_lines() if line)
            assert reply.status_code == 200
            next(lines)
            model.crash = Crash("what nobody foresaw")
            model.permits.release(1)
            last = list(lines)[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"


def test_the_prefix_cache_is_empty_afterwards(serve: Serve) -> None:
    with paced(max_restarts=1) as model:
        model.let_go()
        with serve(model.served()).http() as http:

            def cached() -> int:
                usage = http.post(COMPLETIONS, json={"prompt": "x" * 65}).json()["usage"]
                return int(usage["prompt_tokens_details"]["cached_tokens"])

            assert [cached(), cached()] == [0, 64]
            model.crash = Crash("once")
            assert http.post(COMPLETIONS, json=LONG).status_code == 500
            wait_for(lambda: ready(http)[0] == 200)
            assert cached() == 0


def test_without_restarts_it_stays_down(serve: Serve) -> None:
    with paced(max_restarts=0) as model:
        model.let_go()
        with serve(model.served()).http() as http:
            model.crash = Crash("once")
            assert http.post(COMPLETIONS, json=LONG).status_code == 500
            wait_for(lambda: not model.service.alive)
            assert ready(http) == (503, "failed")
            assert http.get("/health").json()["status"] == "failed"
            assert http.post(COMPLETIONS, json=LONG).status_code == 503


def test_a_device_that_fails_every_step_is_a_crash(serve: Serve) -> None:
    with paced(max_restarts=1) as model:
        model.let_go()
        with serve(model.served()).http() as http:
            model.failure = RuntimeError("the device is gone")
            seen = []
            while model.service.alive and len(seen) < 100:
                seen.append(http.post(COMPLETIONS, json=LONG).status_code)
            assert seen[:2] == [500, 500]
            assert set(seen) <= {500, 503}
            wait_for(lambda: ready(http) == (503, "failed"))
            assert model.service.restarts == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_step_that_fails_is_no_crash(serve: Serve, stream: bool) -> None:
    with paced(max_restarts=1) as model:
        model.let_go()
        with serve(model.served()).http() as http:
            model.failure = RuntimeError("a hiccup")
            assert http.post(COMPLETIONS, json={**LONG, "stream": stream}).status_code == 500
            model.failure = None
            assert http.post(COMPLETIONS, json=LONG).status_code == 200
            assert model.made == 1


def test_an_embedder_that_crashes(serve: Serve) -> None:
    encoder = ToyEncoder(vocab_size=300)
    served = toy_embedder(encoder, max_restarts=1)
    with serve(served).http() as http:
        encoder.failure = SystemExit("secret details")
        failed = http.post("/v1/embeddings", json={"input": "x"})
        assert failed.status_code == 500
        assert "secret" not in failed.text
        encoder.failure = None
        wait_for(lambda: ready(http)[0] == 200)
        assert http.post("/v1/embeddings", json={"input": "x"}).status_code == 200


def test_a_real_engine_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """With weights and a KV cache: what it says after the crash is what it said before."""
    served = load_served("demo", Settings.model_validate({"model": {"id": "demo"}, "engine": {"threads": 1}}))
    assert isinstance(served, ServedModel)
    body = {"prompt": "Once upon a time, " * 8, "max_tokens": 12, "temperature": 0}

    with serving(served) as server, server.http() as http:

        def said() -> tuple[str, int]:
            reply = http.post(COMPLETIONS, json=body).json()
            return reply["choices"][0]["text"], reply["usage"]["prompt_tokens_details"]["cached_tokens"]

        text, cached = said()
        assert cached == 0
        assert said()[0] == text
        assert said()[1] > 0

        def crash(*_: object) -> None:
            monkeypatch.undo()
            raise Crash("in the middle of a step")

        monkeypatch.setattr(Scheduler, "commit", crash)
        assert http.post(COMPLETIONS, json=body).status_code == 500
        wait_for(lambda: ready(http)[0] == 200)
        assert said() == (text, 0)
        assert said()[1] > 0

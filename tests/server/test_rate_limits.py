"""What each key, or address, may use in a minute."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from fermi.engine.event import Event
from fermi.server.limits import Minutes
from server.running import Running, Serve
from server.toy import service_of, settings_with, toy_embedder, toy_model

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


class Clock:
    """The time that the limits see."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr("fermi.server.limits.time", SimpleNamespace(time=clock.time))
    return clock  # type: ignore[return-value]


def complete(http: httpx.Client, key: str = "one", **body: Any) -> httpx.Response:
    """A prompt of 4 tokens."""
    asked = {"prompt": "abcd", "max_tokens": 6, "add_special_tokens": False, **body}
    return http.post(COMPLETIONS, json=asked, headers={"x-api-key": key})


def check_refused(reply: httpx.Response, what: str, retry_after: int) -> None:
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["code"]) == (429, "rate_limit_error", "rate_limit_exceeded")
    assert what in error["message"]
    assert reply.headers["retry-after"] == str(retry_after)


def limits_of(reply: httpx.Response, what: str) -> tuple[str, str, str]:
    names = ("limit", "remaining", "reset")
    limit, remaining, reset = (reply.headers[f"x-ratelimit-{name}-{what}"] for name in names)
    return limit, remaining, reset


def refusals(server: Running) -> str:
    with server.http() as http:
        lines = http.get("/metrics", headers={"x-api-key": "one"}).text.splitlines()
    return " ".join(sorted(line for line in lines if line.startswith("fermi_rate_limited_total{")))


def test_no_limits_unless_they_are_set(serve: Serve) -> None:
    with serve(toy_model()).http() as http:
        assert not [name for name in complete(http).headers if name.startswith("x-ratelimit")]


def test_requests_per_minute(serve: Serve, clock: Clock) -> None:
    settings = settings_with(api_keys=("one", "two"), admin_key="boss", requests_per_minute=2)
    server = serve(toy_model(), settings=settings)
    with server.http() as http:
        assert limits_of(complete(http), "requests") == ("2", "1", "1m0s")
        clock.now += 20.5
        assert limits_of(complete(http), "requests") == ("2", "0", "39.5s")
        third = complete(http)
        check_refused(third, "requests", 40)
        assert limits_of(third, "requests") == ("2", "0", "39.5s")
        assert complete(http, "two").status_code == 200
        assert http.get("/v1/models", headers={"x-api-key": "one"}).status_code == 200
        assert [complete(http, "boss").status_code for _ in range(3)] == [200] * 3
        clock.now += 39.6
        assert [complete(http).status_code for _ in range(3)] == [200, 200, 429]
    assert refusals(server) == 'fermi_rate_limited_total{limit="requests"} 2.0'


def test_without_keys_each_address_has_a_limit(serve: Serve) -> None:
    settings = settings_with(requests_per_minute=1, trusted_proxies=("127.0.0.1",))
    with serve(toy_model(), settings=settings).http() as http:

        def status(address: str) -> int:
            return http.post(COMPLETIONS, json={"prompt": "x"}, headers={"x-forwarded-for": address}).status_code

        assert [status(address) for address in ("1.1.1.1", "1.1.1.1", "2.2.2.2")] == [200, 429, 200]


def test_an_untrusted_proxy_is_the_client(serve: Serve) -> None:
    with serve(toy_model(), settings=settings_with(requests_per_minute=1)).http() as http:
        replies = [
            http.post(COMPLETIONS, json={"prompt": "x"}, headers={"x-forwarded-for": address})
            for address in ("1.1.1.1", "2.2.2.2")
        ]
    assert [reply.status_code for reply in replies] == [200, 429]


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_are_reserved_and_what_is_not_used_comes_back(serve: Serve, clock: Clock, stream: bool) -> None:
    model = toy_model("ab")  # three tokens with the end
    with serve(model, settings=settings_with(api_keys=("one", "two"), tokens_per_minute=20)).http() as http:
        assert limits_of(complete(http, stream=stream), "tokens") == ("20", "10", "1m0s")  # 4 + 6 are set aside
        assert limits_of(complete(http, stream=stream), "tokens") == ("20", "3", "1m0s")  # 4 + 2 + 1 were used before
        check_refused(complete(http, stream=stream), "limit 20, used 14, requested 10", 60)
        assert complete(http, "two").status_code == 200
        assert complete(http, max_tokens=2).status_code == 200
        clock.now += 60
        assert complete(http).status_code == 200


def test_choices_and_prompts_are_all_counted(serve: Serve) -> None:
    with serve(toy_model("ab"), settings=settings_with(tokens_per_minute=40)).http() as http:
        check_refused(complete(http, prompt=["abcd", "abcd"], n=3), "requested 44", 1)
        assert limits_of(complete(http, prompt=["abcd", "abcd"], n=2), "tokens")[1] == "8"
        assert limits_of(complete(http), "tokens")[1] == "10"  # 8 + 4 * 3 were used


def test_what_is_refused_or_fails_costs_what_it_took(serve: Serve) -> None:
    model = toy_model()
    with serve(model, settings=settings_with(tokens_per_minute=20)).http() as http:
        assert complete(http, max_tokens=-1).status_code == 400
        assert complete(http, model="unknown").status_code == 404
        service_of(model).script = lambda stream: stream.put(Event(stream.request.id, 0, finish_reason="error"))
        failed = complete(http)
        assert (failed.status_code, limits_of(failed, "tokens")[1]) == (500, "10")
        service_of(model).script = None
        assert limits_of(complete(http), "tokens")[1] == "6"  # the prompt of 4 was computed


def test_texts_to_embed_are_counted(serve: Serve) -> None:
    with serve(toy_embedder(), settings=settings_with(tokens_per_minute=9)).http() as http:
        first = http.post("/v1/embeddings", json={"input": ["abcd", "ab"]})
        assert limits_of(first, "tokens")[1] == "3"
        check_refused(http.post("/v1/embeddings", json={"input": "abcd"}), "requested 4", 60)
        assert http.post("/v1/embeddings", json={"input": "abc"}).status_code == 200


def test_clients_that_do_not_come_again_are_forgotten(clock: Clock) -> None:
    counts = Minutes()
    for number in range(1000):
        counts.incr(f"client {number}", 60)
    assert counts.get("client 7") == 1
    clock.now += 61
    counts.incr("another", 60)
    assert counts.get("client 7") == 0
    assert counts.reset() == 1  # the other thousand were forgotten before


def test_limiting_needs_no_thread(serve: Serve) -> None:
    with serve(toy_model(), settings=settings_with(requests_per_minute=9)).http() as http:
        complete(http)
        before = set(threading.enumerate())
        complete(http)
        assert set(threading.enumerate()) <= before

"""API keys: who gets in, who is told apart, what only the administrator may do, and a file of keys that changes."""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from structlog.testing import LogCapture

from fermi.server import keys
from server.running import Running, Serve
from server.toy import service_of, settings_with, toy_model

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "Hi"}]}
OPEN = ("/health", "/ready", "/ping", "/docs", "/openapi.json")


@pytest.fixture
def log() -> Iterator[LogCapture]:
    """What the server logs."""
    capture, before = LogCapture(), structlog.get_config()
    structlog.configure(processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(0))
    yield capture
    structlog.configure(**before)


def statuses(server: Running, *carried: str | None, path: str = CHAT) -> list[int]:
    """The answers to a chat that carries each of these keys."""
    with server.http() as http:
        headers = [{} if key is None else {"authorization": f"Bearer {key}"} for key in carried]
        return [http.post(path, json=HELLO, headers=each).status_code for each in headers]


def salts(server: Running, *carried: str | None, **body: object) -> list[int]:
    """The cache salt of a chat that carries each of these keys."""
    before = len(service_of(next(iter(server.listener.state.models))).requests)  # type: ignore[arg-type]
    with server.http() as http:
        for key in carried:
            headers = {} if key is None else {"x-api-key": key}
            assert http.post(CHAT, json={**HELLO, **body}, headers=headers).status_code == 200
    made = service_of(next(iter(server.listener.state.models))).requests  # type: ignore[arg-type]
    return [request.cache_salt for request in made[before:]]


def test_open_without_keys(serve: Serve) -> None:
    assert statuses(serve(toy_model()), None, "any") == [200, 200]


def test_only_signs_of_life_are_open(serve: Serve) -> None:
    server = serve(toy_model(), settings=settings_with(api_keys=("one",)))
    with server.http() as http:
        for path in OPEN:
            assert http.get(path).status_code == 200, path
        assert http.options(CHAT).status_code == 405
        for path in ("/v1/models", "/metrics", "/v1/metrics", "/nowhere", "/health/more", "/ready/", "/v1/models/toy"):
            assert http.get(path).status_code == 401, path


def test_every_key_is_compared_in_constant_time(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(key: bytes, given: bytes) -> bool:
        compared.append((key, given))
        return hmac.compare_digest(key, given)

    monkeypatch.setattr(keys, "compare_digest", compare)
    server = serve(toy_model(), settings=settings_with(api_keys=("one", "two"), admin_key="boss"))
    assert statuses(server, "one", "no") == [200, 401]
    assert [key for key, _ in compared] == [b"one", b"two", b"boss"] * 2


def test_holders_are_told_apart_without_their_keys(serve: Serve, log: LogCapture) -> None:
    server = serve(toy_model(), settings=settings_with(api_keys=("sesame", "simsim"), admin_key="boss"))
    assert statuses(server, "sesame", "simsim", "sesame", "boss", "wrong") == [200, 200, 200, 200, 401]
    lines = [entry for entry in log.entries if entry["event"] == f"POST {CHAT}"]
    first, second, third, admin = (line["key_id"] for line in lines if "key_id" in line)
    assert first == third
    assert len({first, second, admin}) == 3
    assert not any(secret in str(log.entries) for secret in ("sesame", "simsim", "boss", "wrong"))


@pytest.mark.parametrize("path", ["/v1/models/load", "/v1/models/unload"])
def test_administration(serve: Serve, path: str) -> None:
    def answers(server: Running, *carried: str) -> list[tuple[int, Any]]:
        with server.http() as http:
            replies = [http.post(path, json={"model": "toy"}, headers={"x-api-key": key}) for key in carried]
        return [(reply.status_code, reply.json().get("error", {}).get("code")) for reply in replies]

    refused = (403, "admin_key_required")
    assert answers(serve(toy_model()), "any") == [refused]
    assert answers(serve(toy_model(), settings=settings_with(api_keys=("one",))), "one") == [refused]
    both = serve(toy_model(), settings=settings_with(api_keys=("one",), admin_key="boss"))
    assert answers(both, "one", "two") == [refused, (401, "invalid_api_key")]
    [(status, _)] = answers(both, "boss")
    assert status not in (401, 403)
    only = serve(toy_model(), settings=settings_with(admin_key="boss"))
    assert answers(only, "one") == [refused]
    assert statuses(only, None, "boss") == [200, 200]


def write(path: Path, text: str, version: int) -> None:
    """Write a file whose time of change differs from any other version's."""
    path.write_text(text)
    os.utime(path, ns=(version, version))


def test_a_file_of_keys_is_read_again(serve: Serve, tmp_path: Path, log: LogCapture) -> None:
    file = tmp_path / "keys"
    write(file, "one\ntwo\n", 1)
    server = serve(toy_model(), settings=settings_with(api_keys=("one", "two"), api_keys_file=file))
    assert statuses(server, "one", "two", "three", None) == [200, 200, 401, 401]
    write(file, "two\r\n\n  three  \n", 2)
    assert statuses(server, "one", "two", "three", None) == [401, 200, 200, 401]
    file.unlink()
    assert statuses(server, "one", "two") == [401, 200]
    assert [entry["log_level"] for entry in log.entries if "cannot be read" in entry["event"]] == ["error"]
    write(file, "one", 3)
    assert statuses(server, "one", "two") == [200, 401]
    write(file, "", 4)
    assert statuses(server, "one", None) == [401, 401]  # an empty file does not open the server


def test_a_file_of_the_admin_key_is_read_again(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "admin"
    write(file, "boss\n", 1)
    server = serve(toy_model(), settings=settings_with(api_keys=("one",), admin_key="boss", admin_key_file=file))
    with server.http() as http:

        def allowed(key: str) -> bool:
            reply = http.post("/v1/models/load", json={}, headers={"x-api-key": key})
            return reply.status_code == 400

        assert [allowed("boss"), allowed("chief"), allowed("one")] == [True, False, False]
        write(file, "chief\n", 2)
        assert [allowed("boss"), allowed("chief"), allowed("one")] == [False, True, False]


def test_keys_divide_the_prefix_cache(serve: Serve) -> None:
    settings = settings_with(api_keys=("one", "two"), admin_key="boss")
    server = serve(toy_model(), settings=settings)
    first, second, third, again = salts(server, "one", "two", "boss", "one")
    assert first == again
    assert len({first, second, third, 0}) == 4
    mine, theirs, again = salts(server, "one", "two", "one", cache_salt="s")
    assert mine == again
    assert len({mine, theirs, first, second}) == 4


def test_keys_share_the_prefix_cache_where_that_is_wanted(serve: Serve) -> None:
    server = serve(toy_model(), settings=settings_with(api_keys=("one", "two"), salt_cache_per_key=False))
    assert salts(server, "one", "two") == [0, 0]
    first, second = salts(server, "one", "two", cache_salt="s")
    assert first == second != 0
    assert salts(serve(toy_model()), None) == [0]


@pytest.mark.parametrize("headers", [{"x-api-key": "clé"}, {"authorization": "Bearer clé"}])
def test_keys_beyond_ascii(serve: Serve, headers: dict[str, str]) -> None:
    server = serve(toy_model(), settings=settings_with(api_keys=("clé",)))
    with server.http() as http:
        for encoding, status in (("utf-8", 200), ("latin-1", 401)):
            encoded = httpx.Headers({name: value.encode(encoding) for name, value in headers.items()})
            assert http.post(CHAT, json=HELLO, headers=encoded).status_code == status

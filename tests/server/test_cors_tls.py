"""Browsers of other origins, and TLS."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest

from fermi.config import Settings
from fermi.errors import ConfigError
from fermi.server.listener import Listener
from fermi.server.registry import Registry
from server.running import Serve
from server.toy import settings_with, toy_model

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "Hi"}]}
HERE, ELSEWHERE = "https://app.example", "https://evil.example"
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type, x-stainless-lang",
}


def test_no_origin_is_allowed_unless_configured(serve: Serve) -> None:
    with serve(toy_model()).http() as http:
        reply = http.post(CHAT, json=HELLO, headers={"origin": HERE})
        asked = http.options(CHAT, headers={"origin": HERE, **PREFLIGHT})
    assert reply.status_code == 200
    assert asked.status_code == 405
    for each in (reply, asked):
        assert not [name for name in each.headers if name.startswith("access-control-")]


def test_an_origin_that_is_allowed(serve: Serve) -> None:
    settings = settings_with(cors_origins=(HERE,), api_keys=("one",), requests_per_minute=9)
    with serve(toy_model(), settings=settings).http() as http:
        asked = http.options(CHAT, headers={"origin": HERE, **PREFLIGHT})
        assert asked.status_code == 200  # browsers send it without a key
        assert asked.headers["access-control-allow-origin"] == HERE
        assert "POST" in asked.headers["access-control-allow-methods"]
        assert "authorization" in asked.headers["access-control-allow-headers"].lower()
        key = {"x-api-key": "one"}
        answers = [http.post(CHAT, json=HELLO, headers={"origin": HERE, **headers}) for headers in (key, {})]
        answers.append(http.post(CHAT, json={**HELLO, "stream": True}, headers={"origin": HERE, **key}))
        answers.append(http.get("/nowhere", headers={"origin": HERE, **key}))
        assert [each.status_code for each in answers] == [200, 401, 200, 404]
        for each in answers:  # a page may read errors, too
            assert each.headers["access-control-allow-origin"] == HERE
            exposed = each.headers["access-control-expose-headers"].lower()
            assert {"x-request-id", "retry-after", "x-ratelimit-remaining-tokens"} <= set(exposed.split(", "))
        assert "access-control-allow-credentials" not in answers[0].headers


def test_another_origin_is_not(serve: Serve) -> None:
    with serve(toy_model(), settings=settings_with(cors_origins=(HERE,))).http() as http:
        assert http.options(CHAT, headers={"origin": ELSEWHERE, **PREFLIGHT}).status_code == 400
        reply = http.post(CHAT, json=HELLO, headers={"origin": ELSEWHERE})
    assert "access-control-allow-origin" not in reply.headers


def test_every_origin(serve: Serve) -> None:
    with serve(toy_model(), settings=settings_with(cors_origins=("*",))).http() as http:
        reply = http.post(CHAT, json=HELLO, headers={"origin": ELSEWHERE})
    assert reply.headers["access-control-allow-origin"] == "*"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, signed by itself, and its key, locked with the word "open"."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 2 -subj /CN=fermi"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-passout", "pass:open"]
    subprocess.run([*make.split(), *names, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


def secure(certificate: tuple[Path, Path]) -> Settings:
    cert, key = certificate
    return settings_with(ssl_certfile=cert, ssl_keyfile=key, ssl_keyfile_password="open")


@pytest.mark.parametrize("stream", [False, True])
def test_tls(serve: Serve, certificate: tuple[Path, Path], stream: bool) -> None:
    server = serve(toy_model(), settings=secure(certificate))
    trusted = ssl.create_default_context(cafile=str(certificate[0]))
    address = server.url.replace("http://", "https://")
    with httpx.Client(base_url=address, verify=trusted) as http:
        reply = http.post(CHAT, json={**HELLO, "stream": stream})
        assert reply.status_code == 200
        assert ("Hello, world." in reply.text) is not stream
        assert reply.text.endswith("data: [DONE]\n\n") is stream
        assert reply.extensions["network_stream"].get_extra_info("ssl_object").version() in ("TLSv1.2", "TLSv1.3")
    with httpx.Client(base_url=address) as http, pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        http.get("/ping")
    with httpx.Client(base_url=server.url) as http, pytest.raises(httpx.RemoteProtocolError):
        http.get("/ping")  # not without TLS


def test_bad_certificates_are_named_at_the_start(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = certificate
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no certificate")
    for options in (
        {"ssl_keyfile": key},
        {"ssl_certfile": tmp_path / "gone.pem", "ssl_keyfile": key},
        {"ssl_certfile": wrong, "ssl_keyfile": key},
        {"ssl_certfile": cert, "ssl_keyfile": key, "ssl_keyfile_password": "shut"},
        {"ssl_certfile": cert},
    ):
        with pytest.raises(ConfigError, match=r"openai\.ssl_(cert|key)file: ") as caught:
            Listener(Registry(), settings_with(**options), [])
        assert "shut" not in str(caught.value)

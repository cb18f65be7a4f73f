"""The server as a process: it listens at once, says what it serves, drains on SIGTERM, ends with the right code."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from fermi.config import Address
from fermi.server.listener import bind


@contextmanager
def process(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``python -m fermi.serve`` on a free port, its log as JSON lines."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FERMI_")}
    command = [sys.executable, "-m", "fermi.serve", "--host", "127.0.0.1", "--port", "0", "--log-format", "json"]
    child = subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True, cwd=folder, env=environ)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def event(child: subprocess.Popen[str], message: str) -> dict[str, str]:
    """The next event of that message in the log."""
    assert child.stderr is not None
    for line in child.stderr:
        found: dict[str, str] = json.loads(line)
        if found["message"] == message:
            return found
    raise AssertionError(f"the log ended without {message!r}")


def test_life(tmp_path: Path) -> None:
    with process(tmp_path, "--model", "demo", "--threads", "1") as child:
        address = event(child, "listening")["address"]
        assert httpx.get(f"{address}/ready").status_code in (200, 503)
        ready = event(child, "ready")
        assert set(ready) >= {"model", "format", "device", "memory", "context", "address", "timestamp", "level"}
        assert ready["model"] == "demo"
        assert httpx.get(f"{address}/ready").status_code == 200
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
        reply = httpx.post(f"{address}/v1/chat/completions", json=body, headers={"x-request-id": "mine"})
        logged = event(child, "POST /v1/chat/completions")
        assert (logged["request_id"], logged["status"]) == ("mine", 200)
        assert logged["prompt_tokens"] == reply.json()["usage"]["prompt_tokens"]
        assert logged["completion_tokens"] == reply.json()["usage"]["completion_tokens"]
        assert "duration_ms" in logged
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 0


def test_sigterm_lets_a_stream_finish(tmp_path: Path) -> None:
    with process(tmp_path, "--model", "demo", "--threads", "1") as child:
        address = event(child, "ready")["address"]
        body = {"prompt": "Once", "max_tokens": 1000, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{address}/completions", json=body, timeout=60) as reply:
            lines = reply.iter_lines()
            assert next(lines).startswith("data: ")
            child.send_signal(signal.SIGTERM)
            event(child, "draining")
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert child.wait(30) == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(["--model", "./gone"], "there is no folder ./gone"), (["--model", "."], "has no config.json")],
)
def test_a_model_that_cannot_be_loaded(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    with process(tmp_path, *arguments) as child:
        assert complaint in event(child, "the model cannot be loaded")["error"]
        assert child.wait(30) == 1


def test_an_address_that_is_taken(tmp_path: Path) -> None:
    with process(tmp_path, "--model", "demo") as first:
        address = event(first, "listening")["address"]
        with process(tmp_path, "--model", "demo", "--port", address.rpartition(":")[2]) as second:
            assert second.wait(30) == 1
            assert second.stderr is not None
            assert second.stderr.read().startswith("fermi: cannot listen on 127.0.0.1:")


def test_readable_banner(tmp_path: Path) -> None:
    with process(tmp_path, "--model", "tiny=demo", "--log-format", "text", "--threads", "1") as child:
        assert child.stderr is not None
        lines: list[str] = []
        while not any("address " in line for line in lines):
            lines.append(next(child.stderr))
        shown = "".join(lines)
        for name in ("model    tiny (demo)", "format   Qwen3", "device   cpu", "memory   weights", "context  "):
            assert name in shown


def test_small_packets_do_not_wait() -> None:
    """asyncio sets TCP_NODELAY only where the protocol is named; without it each reply may wait 40 ms for an ACK."""
    with bind(Address("127.0.0.1", 0)) as listening:
        assert listening.proto == socket.IPPROTO_TCP

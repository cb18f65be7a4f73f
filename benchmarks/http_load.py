"""Clients that ask one server as fast as it answers: wrk where it is installed, else one thread over plain sockets."""

from __future__ import annotations

import json
import selectors
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["Load", "generator", "load"]

WRK_SCRIPT = """
local requests, at = {}, 0
function init(arguments)
  local headers = {["Content-Type"] = "application/json"}
  for line in io.lines(arguments[1]) do
    requests[#requests + 1] = wrk.format("POST", nil, headers, line)
  end
end
function request()
  at = at % #requests + 1
  return requests[at]
end
function done(summary, latency)
  local errors = summary.errors
  io.write(string.format('\\n{"requests": %d, "failed": %d, "us": %d, "p50": %d, "p95": %d, "p99": %d}\\n',
    summary.requests, errors.status + errors.read + errors.write + errors.connect + errors.timeout, summary.duration,
    latency:percentile(50), latency:percentile(95), latency:percentile(99)))
end
"""


class Load(NamedTuple):
    """What the clients saw; times in seconds."""

    requests: int
    duration: float
    p50: float
    p95: float
    p99: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.duration


def generator() -> str:
    """What makes the load."""
    return "wrk" if shutil.which("wrk") else "benchmarks/http_load.py over sockets"


def load(port: int, path: str, bodies: Sequence[object], clients: int, seconds: float) -> Load:
    """So many clients on 127.0.0.1, each with a connection that it keeps, post the bodies in turns for that long.

    RuntimeError where any answer is not 200.
    """
    lines = [json.dumps(body) for body in bodies]
    return (_wrk if shutil.which("wrk") else _sockets)(port, path, lines, clients, seconds)


def _wrk(port: int, path: str, bodies: Sequence[str], clients: int, seconds: float) -> Load:
    with tempfile.TemporaryDirectory() as temporary:
        script, file = Path(temporary, "post.lua"), Path(temporary, "bodies")
        script.write_text(WRK_SCRIPT)
        file.write_text("".join(f"{body}\n" for body in bodies))
        options = ["-t1", f"-c{clients}", f"-d{max(1, round(seconds))}s", "--timeout", "60s", "-s", str(script)]
        command = ["wrk", *options, f"http://127.0.0.1:{port}{path}", "--", str(file)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"wrk: {done.stderr.strip() or done.stdout.strip()}")
    result = json.loads(done.stdout.rstrip().rpartition("\n")[2])
    if result["failed"]:
        raise RuntimeError(f"wrk: {result['failed']} of {result['requests']} requests failed")
    p50, p95, p99 = (result[name] / 1e6 for name in ("p50", "p95", "p99"))
    return Load(result["requests"], result["us"] / 1e6, p50, p95, p99)


class _Client:
    """One connection and the answer that it waits for."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setblocking(False)
        self.sent_at = 0.0
        self._received = b""

    def ask(self, request: bytes) -> None:
        self._received = b""
        self.sent_at = time.perf_counter()
        self.socket.sendall(request)

    def answered(self) -> bool:
        """Whether the answer is complete, after reading what is there."""
        part = self.socket.recv(1 << 16)
        if not part:
            raise RuntimeError("the server closed a connection")
        self._received += part
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return False
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"a request failed: {head[:80]!r} {body[:200]!r}")
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower:
            return body.endswith(b"0\r\n\r\n")
        length = int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0])
        return len(body) >= length


def _sockets(port: int, path: str, bodies: Sequence[str], clients: int, seconds: float) -> Load:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
    requests = [f"{head}{len(body.encode())}\r\n\r\n{body}".encode() for body in bodies]
    selector = selectors.DefaultSelector()
    waiting = [_Client(port) for _ in range(clients)]
    start, sent = time.perf_counter(), 0
    for client in waiting:
        selector.register(client.socket, selectors.EVENT_READ, client)
        client.ask(requests[sent % len(requests)])
        sent += 1
    times: list[float] = []
    open_clients = clients
    while open_clients:
        for key, _ in selector.select():
            client = key.data
            if not client.answered():
                continue
            now = time.perf_counter()
            times.append(now - client.sent_at)
            if now - start < seconds:
                client.ask(requests[sent % len(requests)])
                sent += 1
            else:
                selector.unregister(client.socket)
                client.socket.close()
                open_clients -= 1
    duration = time.perf_counter() - start
    times.sort()
    p50, p95, p99 = (times[min(len(times) - 1, int(len(times) * share))] for share in (0.5, 0.95, 0.99))
    return Load(len(times), duration, p50, p95, p99)

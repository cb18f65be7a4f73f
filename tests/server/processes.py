"""A server as a process of its own, whose log goes to a file: nobody needs to read it for the server to go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ServerProcess:
    """``python -m fermi.serve``.

    Attributes:
        address: without the path of the API.
        log: its lines, JSON each.
    """

    child: subprocess.Popen[bytes]
    address: str
    log: Path

    def events(self) -> list[dict[str, object]]:
        """What it has logged."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@contextmanager
def server_process(folder: Path, *arguments: str) -> Iterator[ServerProcess]:
    """On a free port, from when it is ready to the end of the block. Responses are kept in memory."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FERMI_")}
    command = [sys.executable, "-m", "fermi.serve", "--host", "127.0.0.1", "--port", "0", "--log-format", "json"]
    command += ["--response-store", ":memory:", "--offline", "--threads", "1", *arguments]
    log = folder / "server.log"
    with log.open("wb") as output:
        child = subprocess.Popen(command, stderr=output, cwd=folder, env=environ)
    try:
        yield ServerProcess(child, _address(child, log), log)
    finally:
        child.kill()
        child.wait()


def _address(child: subprocess.Popen[bytes], log: Path) -> str:
    """Where it listens, when it is ready."""
    address, line = "", ""
    with log.open() as lines:
        while child.poll() is None:
            line += lines.readline()
            if not line.endswith("\n"):
                time.sleep(0.005)  # a file cannot be waited for
                continue
            event = json.loads(line)
            address = event["address"] if event["message"] == "listening" else address
            if event["message"] == "ready":
                return str(address)
            line = ""
    raise AssertionError(f"the server has ended: {log.read_text()}")

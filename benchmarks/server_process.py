"""A server of fermi as a process of its own, and what the kernel counts of it (Linux)."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple

__all__ = ["Counts", "ServerProcess"]


class Counts(NamedTuple):
    """Of all threads together, since they began."""

    processor_s: float
    switches: int

    def since(self, earlier: Counts) -> Counts:
        """What came in between."""
        return Counts(self.processor_s - earlier.processor_s, self.switches - earlier.switches)


class ServerProcess:
    """``python -m fermi serve`` on a free port of this machine.

    Attributes:
        start_s: from its start until it could answer requests.
    """

    def __init__(self, options: Sequence[str], log: Path, patience: float = 300.0) -> None:
        """RuntimeError where it does not begin to serve. ``log``: a file for what it says."""
        command = [sys.executable, "-m", "fermi", "serve", "--host", "127.0.0.1", "--port", "0"]
        command += ["--log-format", "json", "--log-level", "info", "--offline", *options]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FERMI_")}
        begin = time.monotonic()
        with log.open("w") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, cwd=log.parent)
        with log.open() as lines:
            self.port = self._until_ready(lines, begin + patience)
        self.start_s = time.monotonic() - begin

    def _until_ready(self, lines: IO[str], end: float) -> int:
        port, line = 0, ""
        while time.monotonic() < end and self._process.poll() is None:
            line += lines.readline()
            if not line.endswith("\n"):
                time.sleep(0.002)
                continue
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("message") == "listening":
                port = int(event["address"].rpartition(":")[2])
            if event.get("message") == "ready":
                return port
            line = ""
        self._process.kill()
        last = Path(lines.name).read_text()[-2000:]
        raise RuntimeError(f"the server did not begin to serve: code {self._process.wait()}\n{last}")

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, path: str, body: object) -> dict[str, object]:
        """The answer to one request. RuntimeError with what it says unless its status is 200."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        connection.close()
        if response.status != 200:
            raise RuntimeError(f"status {response.status}: {content[:300]!r}")
        document: dict[str, object] = json.loads(content)
        return document

    def counts(self) -> Counts:
        """CPU time, to the nanosecond where the kernel tells it, and how often its threads went to sleep or were
        interrupted."""
        processor, switches = 0, 0
        for task in self._tasks():
            processor += int((task / "schedstat").read_text().split()[0])
            for line in (task / "status").read_text().splitlines():
                if "ctxt_switches" in line:
                    switches += int(line.rpartition(":")[2])
        return Counts(processor / 1e9, switches)

    def most_memory(self) -> int:
        """The most bytes that it had resident, mapped files included."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024

    def settle(self, quiet_s: float = 0.25, patience: float = 10.0) -> None:
        """Waits until no thread of it uses a processor any more."""
        end = time.monotonic() + patience
        before = self.counts()
        while time.monotonic() < end:
            time.sleep(quiet_s)
            now = self.counts()
            if now == before:
                return
            before = now

    def measured(self, work: Callable[[], int]) -> tuple[Counts, int]:
        """What the server took while ``work`` ran, and what it returned: how much was done."""
        self.settle()
        before = self.counts()
        done = work()
        self.settle()
        return self.counts().since(before), done

    def close(self) -> None:
        """Ends it."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _tasks(self) -> list[Path]:
        return list(Path(f"/proc/{self._process.pid}/task").iterdir())

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

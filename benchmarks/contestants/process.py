"""The other end of a contestant's process: starts it, calls it, sees whether it is busy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

import psutil

from contestants import ENVIRONMENTS
from contestants.contestant import NotSupportedError

__all__ = ["Process", "settle"]


class Process:
    """A contestant in a process of its own, so that neither memory nor thread pools are shared.

    Attributes:
        label: the name, and the variant where there is one, for people.
    """

    def __init__(
        self, name: str, threads: int, log: IO[str], variant: str = "", worker: str = "contestants.worker"
    ) -> None:
        """Starts it. ``worker``: the module that it runs. NotSupportedError says why it cannot be."""
        self.name, self.variant = name, variant
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            **ENVIRONMENTS.get(name, {}),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", worker, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=Path(__file__).parent.parent,
            env=environment,
        )
        self._usage = psutil.Process(self._process.pid)
        try:
            self._answer()
        except NotSupportedError:
            self.close()
            raise

    @property
    def label(self) -> str:
        return f"{self.name} {self.variant}" if self.variant else self.name

    def call(self, call: str, **arguments: object) -> Any:
        """The answer to one call. NotSupportedError with the reason where there is none."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"call": call, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise NotSupportedError("its process has ended") from error
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise NotSupportedError(f"its process ended with code {self._process.wait()}")
        answer = json.loads(line)
        if "refused" in answer:
            raise NotSupportedError(answer["refused"])
        return answer["value"]

    def processor_seconds(self) -> float:
        """CPU time so far."""
        try:
            times = self._usage.cpu_times()
        except psutil.NoSuchProcess:
            return 0.0
        return float(times.user + times.system)

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Busy(Protocol):
    """A process that may be at work."""

    def processor_seconds(self) -> float:
        """CPU time so far."""


def settle(processes: Iterable[Busy], patience: float = 2.0) -> None:
    """Waits until none of them uses a processor any more: thread pools spin for a while after their last work."""
    end = time.monotonic() + patience
    processes = list(processes)
    before = sum(process.processor_seconds() for process in processes)
    while time.monotonic() < end:
        time.sleep(0.04)
        now = sum(process.processor_seconds() for process in processes)
        if now == before:  # the kernel counts in hundredths of a second
            return
        before = now

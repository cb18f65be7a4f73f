"""A server process of fermi or llama.cpp, and clients that ask it all at once over HTTP."""

from __future__ import annotations

import http.client
import importlib.metadata
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple

import psutil
from checkpoints import made_once

from contestants.contestant import NotSupportedError

__all__ = ["Answers", "Server", "llama_server"]


class Answers(NamedTuple):
    """What a number of clients saw.

    Attributes:
        first: seconds to the first token, the median over clients.
        rate: tokens of all of them per second.
    """

    first: float
    rate: float


class Server:
    """A server, with its clients. NotSupportedError where it does not begin to serve."""

    def __init__(self, command: Sequence[str], threads: int, log: IO[str], patience: float = 300.0) -> None:
        """``command``: in which PORT stands for the port."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        command = [word.replace("PORT", str(self._port)) for word in command]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        self._usage = psutil.Process(self._process.pid)
        end = time.monotonic() + patience
        while not self._serves():
            if self._process.poll() is not None or time.monotonic() > end:
                self.close()
                raise NotSupportedError(f"{Path(command[0]).name} did not begin to serve")
            time.sleep(0.2)

    def _serves(self) -> bool:
        try:
            self.ask([[1]], 1)
        except (OSError, http.client.HTTPException, NotSupportedError):
            return False
        return True

    def ask(self, prompts: Sequence[Sequence[int]], tokens: int) -> Answers:
        """Sends every prompt at once, each by a client of its own, and reads ``tokens`` tokens in reply to each."""
        firsts: list[float] = []
        failures: list[Exception] = []
        start = time.perf_counter()

        def client(prompt: Sequence[int]) -> None:
            try:
                firsts.append(self._request(prompt, tokens) - start)
            except Exception as error:
                failures.append(error)

        clients = [threading.Thread(target=client, args=(prompt,)) for prompt in prompts]
        for each in clients:
            each.start()
        for each in clients:
            each.join()
        if failures:
            raise failures[0]
        return Answers(statistics.median(firsts), tokens * len(prompts) / (time.perf_counter() - start))

    def _request(self, prompt: Sequence[int], tokens: int) -> float:
        """When the first token came."""
        body = {"prompt": list(prompt), "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
        body["stream_options"] = {"include_usage": True}
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise NotSupportedError(f"status {response.status}: {response.read(300)!r}")
        first, drawn = 0.0, 0
        for line in response:
            if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                event = json.loads(line[6:])
                if event.get("choices") and not first:
                    first = time.perf_counter()
                drawn = (event.get("usage") or {}).get("completion_tokens", drawn)
        connection.close()
        if drawn != tokens:
            raise NotSupportedError(f"{drawn} tokens came instead of {tokens}")
        return first

    def processor_seconds(self) -> float:
        """CPU time so far."""
        try:
            times = self._usage.cpu_times()
        except psutil.NoSuchProcess:
            return 0.0
        return float(times.user + times.system)

    def close(self) -> None:
        """Ends it."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def llama_server(cache: Path) -> Path:
    """llama.cpp's server: the one on the path, else built once from the sources of the installed llama-cpp-python."""
    found = shutil.which("llama-server")
    if found:
        return Path(found)
    try:
        version = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError as error:
        raise NotSupportedError("llama-cpp-python is not installed") from error

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            package = f"llama-cpp-python=={version}"
            options = ["--no-deps", "--no-binary", "llama-cpp-python", "--no-build-isolation", "-d", temporary]
            run([sys.executable, "-m", "pip", "download", *options, package])
            with tarfile.open(next(Path(temporary).glob("*.tar.gz"))) as archive:
                archive.extractall(temporary, filter="data")
            source = next(Path(temporary).glob("*/vendor/llama.cpp"))
            target = Path(temporary, "build")
            off = ("BUILD_SHARED_LIBS", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_UI", "LLAMA_OPENSSL")
            flags = ["-DCMAKE_BUILD_TYPE=Release", *(f"-D{name}=OFF" for name in off)]
            run(["cmake", "-S", str(source), "-B", str(target), *flags])
            run(["cmake", "--build", str(target), "--target", "llama-server", "--parallel"])
            shutil.copy(target / "bin" / "llama-server", folder)

    return made_once(cache / f"llama-server-{version}", build) / "llama-server"


def run(command: Sequence[str]) -> None:
    """Runs it; NotSupportedError with its last line where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise NotSupportedError(f"llama-server cannot be built: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [""]
        raise NotSupportedError(f"llama-server cannot be built: {lines[-1]}")

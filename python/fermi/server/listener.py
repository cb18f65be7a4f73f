"""Runs the application: a socket, uvicorn without timers, signals that drain."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Literal

import uvicorn
from fastapi import FastAPI

from fermi.config import Address, OpenAISettings, Settings
from fermi.errors import ConfigError
from fermi.server.app import create_app
from fermi.server.log import logger
from fermi.server.registry import Registry
from fermi.server.state import ServerState

BACKLOG = 2048
GRACE_S = 5  # for answers that are on their way to slow clients when the server ends
HURRY_S = 1  # the same, and for the engines' last steps, when it shall end at once
KEEP_ALIVE_S = 75  # above the minute after which load balancers close idle connections themselves


def bind(address: Address) -> socket.socket:
    """A socket that listens. ConfigError if the address cannot be had."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    # The protocol must be named: asyncio switches Nagle's algorithm off only where it is, and 40 ms hang on it.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listening.close()
        raise ConfigError(f"cannot listen on {address}: {error}") from error
    listening.setblocking(False)
    return listening


class Listener:
    """One server process: starts and stops the models' lifespan, and drains on SIGTERM or SIGINT.

    Attributes:
        state: the server's state.
        exit_code: 0 after a stop or a drain, 1 after ``fail``.
        abandoned: an engine did not end in time; its thread may still run.
    """

    def __init__(self, registry: Registry, settings: Settings, sockets: list[socket.socket]) -> None:
        self.app = create_app(registry, settings, self._lifespan)
        self.state: ServerState = self.app.state.server
        self.exit_code = 0
        self.abandoned = False
        self._hurries = False
        self.loop: asyncio.AbstractEventLoop
        self._sockets = sockets
        self._starting: list[Callable[[], None]] = []
        self._server = _Uvicorn(_configuration(self.app, settings.openai))

    def on_start(self, call: Callable[[], None]) -> None:
        """Call this in the event loop when it runs."""
        self._starting.append(call)

    def run(self) -> int:
        """Serve until told to stop; returns the process's exit code."""
        self._server.run(self._sockets)
        return self.exit_code

    def stop(self) -> None:
        """End now; what runs is cut off with an error. To be called in the event loop's thread."""
        self._hurries = True
        self._server.config.timeout_graceful_shutdown = HURRY_S
        self.state.drain()
        self._ending = asyncio.ensure_future(self._end(HURRY_S))

    def fail(self) -> None:
        """End now, with exit code 1."""
        self.exit_code = 1
        self.stop()

    def drain(self) -> None:
        """Take no new work, let what runs finish within the drain time, then end. The second call ends at once."""
        if self.state.draining:
            self.stop()
            return
        logger().info("draining", running=self.state.running)
        self.state.drain()
        self._draining = asyncio.ensure_future(self._end_when_drained())

    async def _end_when_drained(self) -> None:
        """Wait for the answers, and then for what the engines do in the background, as long as there is time."""
        ends = self.loop.time() + self.state.settings.openai.drain_ms / 1000
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.state.drained.wait(), ends - self.loop.time())
        if self._hurries:
            return
        left = max(0.0, ends - self.loop.time())
        await asyncio.gather(*(model.service.stop(left) for model in self.state.models))
        if not self._hurries:
            await self._end(None)

    async def _end(self, seconds: float | None) -> None:
        """Stop the engines, which ends every request, then the server. Those that take longer are left alone."""
        stopping = asyncio.ensure_future(self.state.residency.stop())
        done, _ = await asyncio.wait([stopping], timeout=seconds)
        self.abandoned = not done
        self._server.stopping.set()

    @asynccontextmanager
    async def _lifespan(self, state: ServerState) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread
                loop.add_signal_handler(number, self.drain)
        self.loop = loop
        for call in self._starting:
            call()
        yield
        if not self.abandoned:
            await state.residency.stop()
        if self.app.state.tracer is not None:
            await loop.run_in_executor(None, self.app.state.tracer.close)


def _configuration(app: FastAPI, settings: OpenAISettings) -> uvicorn.Config:
    """uvicorn's own settings; it takes uvloop where that is installed. ConfigError for a bad certificate."""
    if settings.ssl_keyfile is not None and settings.ssl_certfile is None:
        raise ConfigError("openai.ssl_keyfile: there is no openai.ssl_certfile that it belongs to")
    config = uvicorn.Config(
        app,
        http=_protocol(),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        date_header=False,  # the middleware's
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
        lifespan="on",
        ws="none",
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
        ssl_keyfile_password=settings.ssl_keyfile_password,
    )
    try:
        config.load()
    except OSError as error:  # of ssl, too
        files = " and ".join(str(each) for each in (settings.ssl_certfile, settings.ssl_keyfile) if each)
        raise ConfigError(f"openai.ssl_certfile: {files} cannot be used: {error}") from error
    return config


def _protocol() -> type[asyncio.Protocol] | Literal["h11"]:
    """What reads requests; h11 where httptools is not installed."""
    try:
        from fermi.server.protocol import Protocol
    except ImportError:
        return "h11"
    return Protocol


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers and without its clock: idle, it does not wake."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stopping = asyncio.Event()

    async def main_loop(self) -> None:
        await self.stopping.wait()
        self.should_exit = True

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()

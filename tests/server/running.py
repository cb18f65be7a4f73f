"""A real server on a free port, in a thread, around models of the test's choice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import openai

from fermi.config import Address, Settings
from fermi.server.listener import Listener, bind
from fermi.server.registry import Entry, Registry
from fermi.server.served import Served


@dataclass
class Running:
    """A server that runs in a thread."""

    listener: Listener
    url: str
    thread: threading.Thread

    def openai(self, **options: object) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, **options)  # type: ignore[arg-type]

    def async_openai(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30)

    def call(self, function: Callable[[], object]) -> None:
        """Run a function in the server's event loop."""
        self.loop.call_soon_threadsafe(function)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self.listener.loop


@contextmanager
def serving(*models: Served | Entry, settings: Settings | None = None) -> Iterator[Running]:
    """A server with these models, on a free port, for as long as the block lasts."""
    listening = bind(Address("127.0.0.1", 0))
    listener = Listener(Registry(*models), settings or Settings(), [listening])
    host, port = listening.getsockname()
    begun = threading.Event()
    listener.on_start(begun.set)
    thread = threading.Thread(target=listener.run)
    thread.start()
    assert begun.wait(30)
    running = Running(listener, f"http://{host}:{port}", thread)
    try:
        yield running
    finally:
        if thread.is_alive():
            running.call(listener.stop)
        thread.join(30)
        assert not thread.is_alive()


Serve = Callable[..., Running]

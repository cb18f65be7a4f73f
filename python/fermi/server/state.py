"""What the endpoints share: settings, models, whether the server is ready, what it has done."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Literal

from fastapi import Request

from fermi.config import Settings
from fermi.server.errors import NotReadyError
from fermi.server.exchange import exchange
from fermi.server.registry import Entry, Kind, Registry
from fermi.server.residency import Residency
from fermi.server.served import Served

RETRY_WHILE_LOADING_S = 2.0
RETRY_WHILE_DRAINING_S = 5.0


@dataclass(slots=True)
class ServerState:
    """One server.

    Attributes:
        started: when, on the monotonic clock, in seconds.
        total_requests: HTTP requests answered, of every kind.
        running: HTTP requests that are being answered, those of /health and its like excluded.
        residency: which models are in memory.
        draining: no new work is taken; ``drained`` is set when the last that runs has ended after that.
    """

    settings: Settings
    models: Registry
    started: float = field(default_factory=time.monotonic)
    total_requests: int = 0
    running: int = 0
    draining: bool = False
    drained: asyncio.Event = field(default_factory=asyncio.Event)
    residency: Residency = field(init=False)

    def __post_init__(self) -> None:
        openai = self.settings.openai
        self.residency = Residency(
            self.models,
            on_demand=openai.lazy or openai.keep_alive_ms > 0 or openai.max_loaded_memory is not None,
            keep_alive_s=openai.keep_alive_ms / 1000,
            memory=openai.max_loaded_memory,
        )

    @property
    def ready(self) -> bool:
        """Whether work is taken: the models are known, the engines of those in memory live, and nobody drains."""
        return self.models.known and not self.draining and all(model.service.ready for model in self.models)

    @property
    def condition(self) -> Literal["ready", "draining", "loading", "restarting", "failed"]:
        """Why no work is taken, if none is: restarting and failed are those of an engine that has crashed."""
        if self.ready:
            return "ready"
        if self.draining:
            return "draining"
        if not all(model.service.alive for model in self.models):
            return "failed"
        return "restarting" if not all(model.service.ready for model in self.models) else "loading"

    def drain(self) -> None:
        """Take no new work."""
        self.draining = True
        self.ended(0)

    def ended(self, requests: int = 1) -> None:
        """So many requests are not being answered any more."""
        self.running -= requests
        if self.draining and not self.running:
            self.drained.set()

    def entry(self, name: str | None) -> Entry:
        """The model that a request names, or the first, in memory or not.

        Raises:
            NotReadyError: the server does not know its models yet, or drains.
            ModelNotServedError: no model has that name.
        """
        self.refuse_unless_serving()
        return self.models.find(name)

    async def model(self, name: str | None) -> Served:
        """The model that a request names, or the first, in memory at least until the running task ends.

        Raises as `entry` and `Residency.take`.
        """
        return await self.residency.take(self.entry(name), self.time_for(None))

    async def serving(self, name: str | None, kind: type[Kind], endpoint: str, timeout: float | None = None) -> Kind:
        """The model that a request names, or the first of this kind that answers on the endpoint, as `model`.

        ``timeout``: the request's own, in seconds. Raises as `model`; RequestError where the model does not answer
        there.
        """
        self.refuse_unless_serving()
        asked = time.monotonic()
        while True:
            entry = self.models.answering(name, endpoint)
            served = await self.residency.take(entry, self.time_for(timeout))
            exchange().waited_s = time.monotonic() - asked
            if isinstance(served, kind) and endpoint in served.endpoints:
                return served
            # Only now it is known what it is: the next round refuses it, or tries another where none was named.

    def time_for(self, timeout: float | None) -> float | None:
        """Seconds that a request may take: the less of its own time and the server's; None: no bound."""
        limits = [] if timeout is None else [timeout]
        limits += [self.settings.openai.timeout_ms / 1000] if self.settings.openai.timeout_ms else []
        return min(limits, default=None)

    def refuse_unless_serving(self) -> None:
        """NotReadyError while the server starts or drains."""
        if self.draining:
            raise NotReadyError("The server is shutting down.", retry_after=RETRY_WHILE_DRAINING_S)
        if not self.models.known:
            raise NotReadyError("The model is being loaded.", retry_after=RETRY_WHILE_LOADING_S)


def state_of(request: Request) -> ServerState:
    """The state of the server that a request came to."""
    state: ServerState = request.app.state.server
    return state

"""What the endpoints share: settings, models, whether the server is ready, what it has done."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from fastapi import Request

from fermi.config import Settings
from fermi.server.errors import NotReadyError
from fermi.server.registry import Kind, Registry
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
        draining: no new work is taken; ``drained`` is set when the last that runs has ended after that.
    """

    settings: Settings
    models: Registry
    started: float = field(default_factory=time.monotonic)
    total_requests: int = 0
    running: int = 0
    draining: bool = False
    drained: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ready(self) -> bool:
        """Whether work is taken: the models are loaded, their engines live, and nobody drains."""
        return self.models.loaded and not self.draining and all(model.service.ready for model in self.models)

    def drain(self) -> None:
        """Take no new work."""
        self.draining = True
        self.ended(0)

    def ended(self, requests: int = 1) -> None:
        """So many requests are not being answered any more."""
        self.running -= requests
        if self.draining and not self.running:
            self.drained.set()

    def model(self, name: str | None) -> Served:
        """The model that a request names, or the first.

        Raises:
            NotReadyError: none is loaded yet, or the server drains.
            ModelNotServedError: no model has that name.
        """
        self._refuse_unless_serving()
        return self.models.find(name)

    def serving(self, name: str | None, kind: type[Kind], endpoint: str) -> Kind:
        """The model that a request names, or the first of this kind that answers on the endpoint.

        Raises as `model`; RequestError where the model does not answer there.
        """
        self._refuse_unless_serving()
        return self.models.serving(name, kind, endpoint)

    def _refuse_unless_serving(self) -> None:
        if self.draining:
            raise NotReadyError("The server is shutting down.", retry_after=RETRY_WHILE_DRAINING_S)
        if not self.models.loaded:
            raise NotReadyError("The model is being loaded.", retry_after=RETRY_WHILE_LOADING_S)


def state_of(request: Request) -> ServerState:
    """The state of the server that a request came to."""
    state: ServerState = request.app.state.server
    return state

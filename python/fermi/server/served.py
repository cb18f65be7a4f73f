"""A model as clients see it: its names, its text layer, its engine, its limits."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from fermi.defaults import Defaults
from fermi.engine.event import Event
from fermi.engine.scheduler import SchedulerStats
from fermi.engine.sequence import Request
from fermi.text.chat import ChatTemplate
from fermi.text.reasoning import ReasoningSplitter
from fermi.text.tokenizer import Tokenizer


class Stream(Protocol):
    """The events of one request, until each of its sequences has ended or is cancelled."""

    def __aiter__(self) -> Stream: ...

    async def __anext__(self) -> Event: ...

    def cancel(self, index: int | None = None) -> None:
        """End the request, or one of its sequences; what it holds is free within a step."""


class Service(Protocol):
    """What the server needs of `fermi.engine.service.Service`."""

    @property
    def ready(self) -> bool:
        """Whether requests are accepted."""

    @property
    def stats(self) -> SchedulerStats:
        """The engine's counts after its last step."""

    def submit(self, request: Request) -> Stream:
        """Queue a request. RequestError if it can never run, QueueFullError if too many wait."""

    async def stop(self, drain_s: float = 0.0) -> None:
        """Refuse new requests, give the others so many seconds, and end."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model that is loaded and runs.

    Attributes:
        name: what /v1/models calls it; ``aliases`` are further names that requests may use.
        max_model_len: prompt and reply together, in tokens.
        thinks: the model can think before it answers.
        facts: what the banner says: model, format, device, memory, context.
    """

    name: str
    tokenizer: Tokenizer
    template: ChatTemplate
    service: Service
    max_model_len: int
    defaults: Defaults
    aliases: frozenset[str] = frozenset()
    thinks: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    facts: Mapping[str, str] = field(default_factory=dict)

    def card(self) -> dict[str, Any]:
        """The entry of /v1/models."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "fermi",
            "max_model_len": self.max_model_len,
        }


def can_think(template: ChatTemplate) -> bool:
    """Whether a template reacts to enable_thinking, or opens a thinking block by itself."""
    if template.supports_thinking:
        return True
    try:
        return ReasoningSplitter.opened_by(template.render([{"role": "user", "content": "?"}]))
    except ValueError:  # it refuses even this conversation
        return False

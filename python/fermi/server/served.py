"""A model as clients see it: its names, its text layer, its engine, its limits."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from fermi.config import GenerationSettings
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
class Defaults:
    """How to sample where a request does not say: the server's settings, else the model's, else fermi's."""

    temperature: float = 0.2
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.1
    max_tokens: int = 256
    max_tokens_cap: int = 9056

    @classmethod
    def of(cls, settings: GenerationSettings, model: Mapping[str, Any]) -> Defaults:
        """``model`` is the checkpoint's generation_config.json; values there that cannot be are passed over."""

        def choose(configured: float | None, name: str, low: float, high: float, otherwise: float) -> float:
            if configured is not None:
                return configured
            value = model.get(name)
            usable = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
            return float(value) if usable and value is not None else otherwise

        greedy = 0.0 if model.get("do_sample") is False else 0.2
        return cls(
            temperature=choose(settings.default_temperature, "" if greedy == 0 else "temperature", 0, 2, greedy),
            top_p=choose(settings.default_top_p, "top_p", 1e-6, 1, 1.0),
            top_k=int(choose(None, "top_k", 0, 2**31 - 1, 0)),
            min_p=choose(None, "min_p", 0, 1, 0.0),
            repetition_penalty=choose(settings.default_repeat_penalty, "repetition_penalty", 1e-3, 2, 1.1),
            max_tokens=settings.default_max_new_tokens,
            max_tokens_cap=settings.max_new_tokens_cap,
        )


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
    defaults: Defaults = Defaults()
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

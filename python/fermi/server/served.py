"""A model as clients see it: its names, its text layer, its engine, its limits."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fermi.defaults import Defaults
from fermi.engine.distribution import Distribution
from fermi.engine.embedder import TokenSequence
from fermi.engine.embedding_service import Rows
from fermi.engine.event import Event
from fermi.engine.scheduler import SchedulerStats
from fermi.engine.sequence import Request
from fermi.text.chat import ChatTemplate
from fermi.text.grammar import GrammarCompiler
from fermi.text.reasoning import ReasoningSplitter, reasoning_markers
from fermi.text.reply_format import ReplyFormat
from fermi.text.sentences import Sentences
from fermi.text.tokenizer import Tokenizer

#: Where models answer: those that generate, cross-encoders, and those that embed.
GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
SCORING = ("/v1/rerank", "/v1/score")
EMBEDDING = ("/v1/embeddings", *SCORING, "/v1/similarity")


class Stream(Protocol):
    """The events of one request, until each of its sequences has ended or is cancelled."""

    def __aiter__(self) -> Stream: ...

    async def __anext__(self) -> Event: ...

    def cancel(self, index: int | None = None) -> None:
        """End the request, or one of its sequences; what it holds is free within a step."""


class Service(Protocol):
    """What the server needs of the thread that runs a model: see `fermi.engine.worker.Worker`."""

    @property
    def ready(self) -> bool:
        """Whether requests are accepted."""

    @property
    def alive(self) -> bool:
        """Whether it runs, or starts anew after a crash."""

    @property
    def open_requests(self) -> int:
        """Requests that have not ended."""

    @property
    def restarts(self) -> int:
        """How often it has started anew after a crash."""

    async def stop(self, drain_s: float = 0.0) -> None:
        """Refuse new requests, give the others so many seconds, and end."""


class GeneratingService(Service, Protocol):
    """What the server needs of `fermi.engine.service.Service`."""

    @property
    def stats(self) -> SchedulerStats:
        """The engine's counts after its last step."""

    @property
    def batch_sizes(self) -> Distribution:
        """The engine's steps by the sequences in them."""

    def submit(self, request: Request) -> Stream:
        """Queue a request. RequestError if it can never run, QueueFullError if too many wait."""


class EmbeddingService(Service, Protocol):
    """What the server needs of `fermi.engine.embedding_service.EmbeddingService`."""

    def submit(self, sequences: Sequence[TokenSequence], param: str = "input") -> asyncio.Future[Rows]:
        """Queue sequences. RequestError if they can never run, QueueFullError if too many wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served(ABC):
    """A model that is loaded and runs.

    Attributes:
        name: what /v1/models calls it; ``aliases`` are further names that requests may use.
        max_model_len: prompt and reply together, in tokens.
        memory: bytes of its weights and caches, at the most.
        facts: what the banner says: model, format, device, memory, context.
    """

    name: str
    tokenizer: Tokenizer
    service: Service
    max_model_len: int
    aliases: frozenset[str] = frozenset()
    created: int = field(default_factory=lambda: int(time.time()))
    memory: int = 0
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    @abstractmethod
    def kind(self) -> str:
        """What it is, for messages."""

    @property
    @abstractmethod
    def endpoints(self) -> tuple[str, ...]:
        """Where it answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel(Served):
    """One that generates text.

    Attributes:
        grammars: compiles what bounds replies.
        tool_parser, reasoning_parser: the formats of calls and thoughts by name; None takes what the template shows.
        replies: how its replies are told apart.
        thinks: the model can think before it answers.
    """

    template: ChatTemplate
    grammars: GrammarCompiler
    service: GeneratingService
    defaults: Defaults
    thinks: bool = False
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    replies: ReplyFormat = field(init=False)

    def __post_init__(self) -> None:
        """ConfigError for a parser that does not exist."""
        replies = ReplyFormat.of(
            self.template, self.tokenizer, tool_parser=self.tool_parser, reasoning_parser=self.reasoning_parser
        )
        object.__setattr__(self, "replies", replies)

    @property
    def kind(self) -> str:
        return "a model that generates text"

    @property
    def endpoints(self) -> tuple[str, ...]:
        return GENERATING


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedEmbedder(Served):
    """One that embeds texts, or a cross-encoder.

    Attributes:
        scores_pairs: it is a cross-encoder: it makes no vectors, but ``size`` scores of each pair.
        size: numbers of a vector.
    """

    service: EmbeddingService
    sentences: Sentences
    size: int
    scores_pairs: bool = False

    @property
    def kind(self) -> str:
        return "a cross-encoder" if self.scores_pairs else "an embedding model"

    @property
    def endpoints(self) -> tuple[str, ...]:
        return SCORING if self.scores_pairs else EMBEDDING


def can_think(template: ChatTemplate) -> bool:
    """Whether a template reacts to enable_thinking, or opens a thinking block by itself."""
    if template.supports_thinking:
        return True
    markers = reasoning_markers(template.source)
    try:
        prompt = template.render([{"role": "user", "content": "?"}])
        return markers is not None and ReasoningSplitter.opened_by(prompt, markers.opening)
    except ValueError:  # it refuses even this conversation
        return False

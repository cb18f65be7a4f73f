"""A tokenizer of bytes and a service that answers from a script: the server's tests need no model."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import tokenizers

from engine.toy_encoder import ToyEncoder
from fermi.config import Settings
from fermi.defaults import Defaults
from fermi.engine.blocks import PoolStats
from fermi.engine.distribution import Distribution
from fermi.engine.embedder import Embedder
from fermi.engine.embedding_service import EmbeddingService
from fermi.engine.event import Event, Timing, TokenLogprobs
from fermi.engine.scheduler import SchedulerStats
from fermi.engine.sequence import Request
from fermi.engine.service import BATCH_SIZES
from fermi.errors import ContextLengthError
from fermi.server.registry import Registry
from fermi.server.served import ServedEmbedder, ServedModel, can_think
from fermi.text.chat import ChatTemplate
from fermi.text.grammar import GrammarCompiler
from fermi.text.sentences import Prompts, Sentences
from fermi.text.tokenizer import Tokenizer

BOS, END = "<s>", "</s>"
TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' and not loop.first %}{{ raise_exception('system comes first') }}{% endif %}
    {{- '[' + message.role + ']' + message.content }}
    {%- for call in message.tool_calls or [] %}{{ '<tool_call>' + call.function | tojson + '</tool_call>' }}{% endfor %}
{%- endfor %}
{%- if tools %}{{ '[tools]' + tools | tojson }}{% endif %}
{%- if add_generation_prompt %}{{ '[assistant]' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""

STATS = SchedulerStats(0, 0, 0, 0, 0, 0, 0, PoolStats(8, 8, 0, 0, 4, 1, 0))
Answer = str | BaseException | Callable[[str], str]


def byte_tokenizer(template: str | None = TEMPLATE) -> Tokenizer:
    """One token per byte, ids 0 to 255 in the order of the bytes' letters, then <s> and </s>."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)} | {BOS: 256, END: 257}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([BOS, END])
    special = {"bos_token": BOS, "eos_token": END}
    chat_template = None if template is None else ChatTemplate(template, bos_token=BOS, eos_token=END)
    return Tokenizer(backend, special_tokens=special, chat_template=chat_template)


@dataclass
class ScriptedStream:
    """The events of one request; tokens come when ``advance`` is called, or as fast as they are read."""

    service: ScriptedService
    request: Request
    events: deque[Event | BaseException] = field(default_factory=deque)
    cancelled: set[int] = field(default_factory=set)
    ended: set[int] = field(default_factory=set)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def __aiter__(self) -> ScriptedStream:
        return self

    async def __anext__(self) -> Event:
        while not self.events:
            if len(self.cancelled | self.ended) == self.request.sampling.n:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        await asyncio.sleep(0)
        event = self.events.popleft()
        if isinstance(event, BaseException):
            raise event
        if event.finish_reason is not None:
            self.ended.add(event.index)
        return event

    def cancel(self, index: int | None = None) -> None:
        indices = set(range(self.request.sampling.n)) if index is None else {index}
        self.cancelled |= indices
        self.events = deque(event for event in self.events if isinstance(event, Event) and event.index not in indices)
        self._wake.set()
        self.service.on_cancel()

    def put(self, event: Event | BaseException) -> None:
        if not isinstance(event, Event) or event.index not in self.cancelled:
            self.events.append(event)
            self._wake.set()


@dataclass
class ScriptedService:
    """Answers the n-th request with the n-th answer (the last one over and over).

    ``hold``: nothing comes until ``release`` is called. ``tokens_per_event``: how many tokens come together.
    """

    tokenizer: Tokenizer
    answers: list[Answer] = field(default_factory=lambda: ["Hello, world."])
    max_model_len: int = 512
    hold: bool = False
    tokens_per_event: int = 1
    requests: list[Request] = field(default_factory=list)
    streams: list[ScriptedStream] = field(default_factory=list)
    ready: bool = True
    alive: bool = True
    on_submit: Callable[[], object] = lambda: None
    on_cancel: Callable[[], object] = lambda: None
    script: Callable[[ScriptedStream], None] | None = None  # instead of answers
    stats: SchedulerStats = STATS
    restarts: int = 0
    batch_sizes: Distribution = field(default_factory=lambda: Distribution(BATCH_SIZES))

    def submit(self, request: Request) -> ScriptedStream:
        if len(request.prompt_token_ids) + request.sampling.max_tokens > self.max_model_len:
            raise ContextLengthError("too long", param="prompt")
        answer = self.answers[min(len(self.requests), len(self.answers) - 1)]
        self.requests.append(request)
        if isinstance(answer, BaseException) and not isinstance(answer, StopIteration):
            raise answer
        stream = ScriptedStream(self, request)
        self.streams.append(stream)
        self.on_submit()
        if self.script is not None:
            self.script(stream)
        elif not self.hold:
            self.release(stream, answer)
        return stream

    @property
    def open_requests(self) -> int:
        return sum(len(each.cancelled | each.ended) < each.request.sampling.n for each in self.streams)

    async def stop(self, drain_s: float = 0.0) -> None:
        for stream in self.streams:
            stream.cancel()

    def release(self, stream: ScriptedStream, answer: Answer) -> None:
        """Put all events of an answer."""
        assert not isinstance(answer, BaseException)
        request = stream.request
        text = answer(self.prompt(request)) if callable(answer) else answer
        for index in range(request.sampling.n):
            for event in self.events(request, index, text):
                stream.put(event)

    def events(self, request: Request, index: int, text: str) -> list[Event]:
        """The events of one sequence that says a text."""
        sampling = request.sampling
        ids = self.tokenizer.encode(text, add_special_tokens=False)[: sampling.max_tokens]
        whole = (
            len(ids) == len(self.tokenizer.encode(text, add_special_tokens=False)) and len(ids) < sampling.max_tokens
        )
        if whole:
            ids = [*ids, 257]
        events = []
        for at in range(0, len(ids), self.tokens_per_event) or [0]:
            part = ids[at : at + self.tokens_per_event]
            event = Event(request.id, index, part, cached_tokens=3)
            if sampling.logprobs is not None:
                event.logprobs = [self.score(token, sampling.logprobs) for token in part]
            events.append(event)
        if sampling.prompt_logprobs is not None and index == 0:
            top = sampling.prompt_logprobs
            events[0].prompt_logprobs = [None, *(self.score(token, top) for token in request.prompt_token_ids[1:])]
        events[-1].finish_reason = "stop" if whole else "length"
        events[-1].stop_token_id = 257 if whole else None
        events[-1].timing = Timing(queue_s=0.001, prefill_s=0.002, decode_s=0.003)
        return events

    def score(self, token: int, top: int) -> TokenLogprobs:
        """A made-up probability: the token itself is the likeliest."""
        likeliest = [(token, -0.1), *((other, -1.0 - other) for other in range(top) if other != token)]
        return TokenLogprobs(token, -0.1, 1, likeliest[:top])

    def prompt(self, request: Request) -> str:
        """The prompt's text."""
        return self.tokenizer.decode(list(request.prompt_token_ids), skip_special_tokens=False)

    @property
    def last(self) -> Request:
        return self.requests[-1]


def toy_model(
    *answers: Answer,
    template: str | None = TEMPLATE,
    name: str = "toy",
    defaults: Defaults | None = None,
    **options: object,
) -> ServedModel:
    """A model that gives these answers."""
    tokenizer = byte_tokenizer(template)
    service = ScriptedService(tokenizer, list(answers) or ["Hello, world."], **options)  # type: ignore[arg-type]
    return ServedModel(
        name=name,
        tokenizer=tokenizer,
        template=tokenizer.chat_template,
        grammars=GrammarCompiler(tokenizer),
        service=service,
        max_model_len=service.max_model_len,
        defaults=defaults or Defaults(),
        aliases=frozenset({"also/toy"}),
        thinks=can_think(tokenizer.chat_template),
    )


def toy_embedder(
    model: ToyEncoder | None = None, *, name: str = "toy-embedder", scores_pairs: bool = False, **options: object
) -> ServedEmbedder:
    """An embedding model whose vectors are (length, sum of tokens, sum of types, 1), with a running service."""
    model = model or ToyEncoder(vocab_size=300, max_seq_length=64)
    embedder = Embedder(model, max_batch_tokens=64)
    service = EmbeddingService(embedder, **options)  # type: ignore[arg-type]
    service.start()
    tokenizer = byte_tokenizer(None)
    prompts = Prompts({"query": "ask:", "document": "", "shout": "!"})
    return ServedEmbedder(
        name=name,
        tokenizer=tokenizer,
        service=service,
        max_model_len=embedder.max_seq_length,
        sentences=Sentences(tokenizer, prompts, max_length=embedder.max_seq_length),
        size=model.dim,
        scores_pairs=scores_pairs,
    )


def service_of(model: ServedModel) -> ScriptedService:
    """The script behind a toy model."""
    assert isinstance(model.service, ScriptedService)
    return model.service


def registry_of(models: Sequence[ServedModel]) -> Registry:
    return Registry(*models)


def settings_with(**openai: object) -> Settings:
    """Default settings with others for the server."""
    return Settings.model_validate({"openai": openai})

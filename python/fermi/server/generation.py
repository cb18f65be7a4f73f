"""One client request while it runs: its sequences in the engine, their text as it grows, and what it all took."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fermi.engine.distribution import Distribution
from fermi.engine.event import Event, Timing, TokenLogprobs
from fermi.engine.sequence import Request
from fermi.errors import DeadlineError, EngineError, RequestError
from fermi.sampling_params import SamplingParams
from fermi.server.exchange import exchange
from fermi.server.log import logger
from fermi.server.served import ServedModel, Stream
from fermi.text.output import TextStream


@dataclass(slots=True)
class Piece:
    """News of one choice: text that is certain, the log-probabilities of its tokens, and how it ended.

    Attributes:
        texts: what became certain with each token and, when the choice has ended, without one.
        stopped_by: the stop string that ended the choice.
        token_ids: all that came, a stop token included.
        stop_logprobs: of the stop token, which is not part of the text.
    """

    index: int
    texts: list[str]
    tokens: int
    logprobs: list[TokenLogprobs]
    finish_reason: str | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    stopped_by: str | None = None
    token_ids: Sequence[int] = ()
    stop_logprobs: Sequence[TokenLogprobs] = ()

    @property
    def text(self) -> str:
        """All of ``texts``."""
        return "".join(self.texts)


#: Bounds of the times between two tokens of a choice that are told apart, in seconds.
GAPS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5)


@dataclass(slots=True)
class Usage:
    """What a request took, over all its choices.

    Attributes:
        timings, finish_reasons: one of each choice that has ended.
        gaps: seconds between two tokens of a choice.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    deadline: bool = False
    timings: list[Timing] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)
    gaps: Distribution = field(default_factory=lambda: Distribution(GAPS))

    def wire(self) -> dict[str, Any]:
        """The ``usage`` object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "performance": self.performance(),
        }

    def performance(self) -> dict[str, Any]:
        """The ``performance`` object: the slowest choice's times, all choices' tokens."""
        prefill, decode, first = (
            max((getattr(timing, name) for timing in self.timings), default=0.0)
            for name in ("prefill_s", "decode_s", "first_token_s")
        )
        steps = max(0, self.completion_tokens - len(self.timings))
        wire = {
            "prefill_ms": round(1000 * prefill, 3),
            "decode_ms": round(1000 * decode, 3),
            "decode_iterations": steps,
            "tokens_per_second": round(steps / decode, 3) if decode > 0 else 0.0,
            "time_to_first_token_ms": round(1000 * first, 3),
        }
        return {**wire, "deadline": True} if self.deadline else wire


class Choice:
    """The text of one sequence, until the model, a stop string or a limit ends it."""

    def __init__(
        self, index: int, served: ServedModel, params: SamplingParams, *, continues: bool, kept: Collection[int] = ()
    ) -> None:
        """``continues``: the text goes on from the prompt's, so a space at its beginning stays. ``kept``: special
        tokens that stay in the text where the others do not.
        """
        self.index = index
        self.finished = False
        self.last_token = 0.0  # when it came, on the monotonic clock
        self._text = TextStream(
            served.tokenizer,
            params.stop_strings,
            skip_special_tokens=params.skip_special_tokens,
            include_stop=params.include_stop_str_in_output,
            min_tokens=params.min_tokens,
            continues=continues,
            kept=kept,
        )
        self._include_stop = params.include_stop_str_in_output

    def push(self, event: Event) -> Piece:
        """Take the news of the sequence, token by token: a result is the same however many came at once."""
        ids, logprobs = event.token_ids, event.logprobs or []
        ended_by_token = event.stop_token_id is not None and not self._include_stop
        if ended_by_token:  # not part of the text
            ids, logprobs = ids[:-1], logprobs[: len(ids) - 1]
        texts: list[str] = []
        stop_logprobs: Sequence[TokenLogprobs] = ()
        for token_id in ids:
            texts.append(self._text.push([token_id]))
            if self._text.stopped_by is not None:  # what the engine made since then is not part of the reply
                break
        else:
            if ended_by_token:
                texts.append("")
                stop_logprobs = (event.logprobs or [])[len(ids) :]
        tokens = len(texts)
        finish_reason = None
        if event.finish_reason is not None and self._text.stopped_by is None:
            texts.append(self._text.finish())
            finish_reason = "length" if event.finish_reason == "deadline" else event.finish_reason
        if self._text.stopped_by is not None:
            finish_reason = "stop"
        self.finished = finish_reason is not None
        return Piece(
            self.index,
            texts,
            tokens,
            logprobs[:tokens],
            finish_reason,
            event.prompt_logprobs,
            self._text.stopped_by,
            event.token_ids[:tokens],
            stop_logprobs,
        )


class Generation:
    """The prompts of one client request, each with its choices, in the engine.

    Choices are numbered prompt by prompt: choice ``i * n + j`` is the j-th of prompt i.
    """

    def __init__(
        self,
        served: ServedModel,
        requests: Sequence[Request],
        params: SamplingParams,
        *,
        continues: bool = False,
        kept: Collection[int] = (),
    ) -> None:
        """Submit every request, or none. ``continues``, ``kept``: as for `Choice`.

        Raises:
            RequestError: one of them can never run.
            QueueFullError: too many wait.
            RateLimitError: the client may not use as many tokens.
        """
        self.usage = Usage(prompt_tokens=sum(len(request.prompt_token_ids) for request in requests))
        most = sum(request.sampling.max_tokens * request.sampling.n for request in requests)
        self._exchange = exchange()
        self._exchange.reserve(self.usage.prompt_tokens + most)
        self._choices = [
            Choice(
                index,
                served,
                params,
                continues=continues and served.tokenizer.holds_text(requests[index // params.n].prompt_token_ids),
                kept=kept,
            )
            for index in range(len(requests) * params.n)
        ]
        self._streams: list[Stream] = []
        self._cached: dict[int, int] = {}
        self._n = params.n
        self._submitted = time.monotonic()
        self._first_token = 0.0
        self._cancelled = False
        try:
            for request in requests:
                self._streams.append(served.service.submit(request))
        except BaseException:
            self.cancel()
            raise
        self._exchange.began(served.name, self.usage, params)
        if self._exchange.log_prompts:
            texts = [served.tokenizer.decode(each.prompt_token_ids, skip_special_tokens=False) for each in requests]
            logger().info("prompts", request_id=self._exchange.request_id, prompts=texts)

    @property
    def choices(self) -> range:
        """The numbers of the choices."""
        return range(len(self._choices))

    def cancel(self) -> None:
        """End everything; what the request holds is free within a step, and ``pieces`` ends."""
        if not self._cancelled:
            self.usage.finish_reasons += ["abort" for choice in self._choices if not choice.finished]
        self._cancelled = True
        for stream in self._streams:
            stream.cancel()
        self._exchange.done()

    def end(self, index: int) -> None:
        """End one choice, as if the model had."""
        if not self._choices[index].finished:
            self._choices[index].finished = True
            self.usage.finish_reasons.append("stop")
            self._release(index, timed=False)

    async def pieces(self) -> AsyncIterator[Piece]:
        """The news of all choices as they come, until each has ended or all are cancelled.

        Raises:
            DeadlineError: the time was over before the first token.
            EngineError: the engine failed.
        """
        try:
            async for number, event in _merged(self._streams):
                choice = self._choices[number * self._n + event.index]
                if choice.finished:
                    continue
                self._raise_failure(event, choice)
                self._note(number, event, choice)
                piece = choice.push(event)
                self.usage.completion_tokens += piece.tokens
                if piece.finish_reason is not None:
                    late = event.finish_reason == "deadline"
                    self.usage.finish_reasons.append("deadline" if late else piece.finish_reason)
                    self._release(choice.index, timed=event.timing is not None)
                yield piece
            if not self._cancelled and not all(choice.finished for choice in self._choices):
                raise EngineError("The request was aborted.")
        finally:
            if not all(choice.finished for choice in self._choices):  # another failed, or nobody reads on
                self.cancel()
            self._exchange.done()

    def _note(self, number: int, event: Event, choice: Choice) -> None:
        now = time.monotonic()
        self._first_token = self._first_token or now
        if choice.last_token and event.token_ids:
            tokens = len(event.token_ids)
            self.usage.gaps.add((now - choice.last_token) / tokens, tokens)
        choice.last_token = now
        self.usage.deadline |= event.finish_reason == "deadline"
        if event.cached_tokens > self._cached.get(number, 0):
            self._cached[number] = event.cached_tokens
            self.usage.cached_tokens = sum(self._cached.values())
        if event.timing is not None:
            self.usage.timings.append(event.timing)

    def _raise_failure(self, event: Event, choice: Choice) -> None:
        """Raise what the client is told where a choice did not end well. The engine's words are for the log."""
        reason = event.finish_reason
        late = reason == "deadline" and self.usage.completion_tokens == 0 and not event.token_ids
        if reason is None or (reason not in ("abort", "error") and not late):
            return
        choice.finished = True
        self.usage.finish_reasons.append(reason)
        if late:
            raise DeadlineError("The request's time was over before its first token.")
        if reason == "abort":
            raise EngineError("The request was aborted.")
        if event.refused:
            raise RequestError(f"The reply cannot go on: {event.error}.")
        logger().error("the engine failed at a request", request_id=self._exchange.request_id, error=event.error)
        raise EngineError("The engine failed at this request; the server's log says why.")

    def _release(self, index: int, *, timed: bool) -> None:
        """A choice has ended: free what it holds. ``timed``: by the engine, who ended and timed it."""
        if not timed:
            now = time.monotonic()
            self.usage.timings.append(Timing(0.0, self._first_token - self._submitted, now - self._first_token))
            self._streams[index // self._n].cancel(index % self._n)


async def _merged(streams: Sequence[Stream]) -> AsyncIterator[tuple[int, Event]]:
    """The events of several streams as they come, each with its stream's number."""
    if len(streams) == 1:
        async for event in streams[0]:
            yield 0, event
        return
    waiting = {asyncio.ensure_future(_next(stream)): number for number, stream in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=waiting.__getitem__):
                number, news = waiting.pop(task), task.result()
                if news is not None:
                    waiting[asyncio.ensure_future(_next(streams[number]))] = number
                    yield number, news
    finally:
        for task in waiting:
            task.cancel()
        for task in waiting:
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _next(stream: Stream) -> Event | None:
    try:
        return await stream.__anext__()
    except StopAsyncIteration:
        return None

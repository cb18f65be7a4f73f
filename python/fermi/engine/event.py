"""What the engine reports of a sequence: new tokens, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Event", "FinishReason", "Timing", "TokenLogprobs"]

FinishReason = Literal["stop", "length", "abort", "error", "deadline"]


@dataclass(slots=True)
class TokenLogprobs:
    """The natural logarithm of a token's probability by the raw logits.

    Attributes:
        rank: 1 for the likeliest token; equals are ranked by token id.
        top: ids and log-probabilities of the likeliest tokens, as many as were asked for.
    """

    token_id: int
    logprob: float
    rank: int
    top: list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds that a request took; the parts add up to its life in the engine.

    Attributes:
        queue_s: from its arrival to the first step that computed a part of it.
        prefill_s: from there to its first token (or its end).
        decode_s: from its first token to the end of this sequence.
    """

    queue_s: float
    prefill_s: float
    decode_s: float

    @property
    def first_token_s(self) -> float:
        """From arrival to the first token."""
        return self.queue_s + self.prefill_s


@dataclass(slots=True)
class Event:
    """News of one sequence since its last event.

    Attributes:
        index: which of the request's n sequences.
        token_ids: new tokens in order. The one that ended the sequence is among them.
        logprobs: one for each of ``token_ids``, where the request asked for them.
        prompt_logprobs: one for each token of the prompt, None for the first; once, with index 0's first event.
        finish_reason: ``stop`` (an end-of-text or stop token, or nothing may follow), ``length`` (max_tokens or the
            context is reached), ``abort``, ``deadline``, ``error``; None while the sequence goes on.
        stop_token_id: the last of ``token_ids`` when it ended the sequence: it is not part of the text.
        cached_tokens: tokens of the prompt that the prefix cache held.
        error: why, for ``error``; for ``deadline`` only where it passed before the first token.
        refused: the error is the request's: its grammar could not go on.
        timing: with the last event of a sequence that was computed.
    """

    request_id: str
    index: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    cached_tokens: int = 0
    error: str | None = None
    refused: bool = False
    timing: Timing | None = None

    def absorb(self, later: Event) -> None:
        """Joins a later event of the same sequence to this one."""
        self.token_ids.extend(later.token_ids)
        if later.logprobs is not None:
            self.logprobs = (self.logprobs or []) + later.logprobs
        if later.prompt_logprobs is not None:
            self.prompt_logprobs = later.prompt_logprobs
        self.finish_reason = later.finish_reason
        self.stop_token_id = later.stop_token_id
        self.cached_tokens = later.cached_tokens
        self.error = later.error
        self.refused = later.refused
        self.timing = later.timing

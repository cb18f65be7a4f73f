"""How the tokens of one request are chosen and when they end, in numbers only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fermi.errors import RequestError

__all__ = ["Sampling"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Logits become a token by grammar and ``min_tokens``, penalties, bias, temperature, min-p, top-k, top-p, in order.

    Attributes:
        n: sequences generated from the prompt, each with random numbers of its own.
        temperature: divides the logits; 0 takes the largest (the lowest id where several are).
        top_k: keep the k largest (the lower id first where equal); 0: all.
        top_p: keep the fewest of the largest whose probabilities reach p (arXiv 1904.09751).
        min_p: keep those with at least this fraction of the largest probability (arXiv 2407.01082).
        repetition_penalty: divides positive, multiplies negative logits of tokens seen so far (arXiv 1909.05858).
        presence_penalty: subtracted from the logits of tokens in the output.
        frequency_penalty: … once for each time they are there.
        logit_bias: token id → number added to its logit.
        seed: key of the random numbers: a draw depends on it, the sequence's and the token's index. None: a fresh one.
        logprobs: log-probabilities of each new token and of this many largest, by the raw logits. None: none.
        prompt_logprobs: the same for the tokens of the prompt.
        stop_token_ids: tokens that end the sequence, besides the request's end-of-text tokens.
        max_tokens: new tokens at most; the model's context bounds them too. 0 computes the prompt alone.
        min_tokens: tokens that end the sequence are not drawn before this many new tokens.
        ignore_eos: the request's end-of-text tokens do not end it.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    stop_token_ids: frozenset[int] = frozenset()
    max_tokens: int = 16
    min_tokens: int = 0
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        """Raises RequestError naming the first field that is out of range."""
        for name, good, wanted in self._bounds():
            if not good:
                raise RequestError(f"{name} must be {wanted}, got {getattr(self, name)!r}", param=name)

    def _bounds(self) -> Iterable[tuple[str, bool, str]]:
        finite = math.isfinite
        yield "n", self.n >= 1, "at least 1"
        yield "temperature", finite(self.temperature) and self.temperature >= 0, "a number ≥ 0"
        yield "top_k", self.top_k >= 0, "at least 0"
        yield "top_p", 0 < self.top_p <= 1, "in (0, 1]"
        yield "min_p", 0 <= self.min_p <= 1, "in [0, 1]"
        yield "repetition_penalty", finite(self.repetition_penalty) and self.repetition_penalty > 0, "a number > 0"
        yield "presence_penalty", finite(self.presence_penalty), "a number"
        yield "frequency_penalty", finite(self.frequency_penalty), "a number"
        yield "logit_bias", all(map(finite, self.logit_bias.values())), "token ids and numbers"
        yield "logprobs", self.logprobs is None or self.logprobs >= 0, "at least 0"
        yield "prompt_logprobs", self.prompt_logprobs is None or self.prompt_logprobs >= 0, "at least 0"
        yield "max_tokens", self.max_tokens >= 0, "at least 0"
        yield "min_tokens", 0 <= self.min_tokens <= max(self.max_tokens, 0), "from 0 to max_tokens"

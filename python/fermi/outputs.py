"""What the offline API returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fermi.engine.event import TokenLogprobs

__all__ = ["CompletionOutput", "EmbeddingOutput", "Perplexity", "RequestOutput"]


@dataclass(slots=True)
class CompletionOutput:
    """One completion of a prompt.

    Attributes:
        token_ids: the new tokens, with the one that ended it, if a token did.
        finish_reason: ``"stop"``, ``"length"``, ``"deadline"``, or None while it runs.
        stop_reason: the stop string or stop token id that ended it; None for the model's own end of text.
        logprobs: for each new token its log-probability and the likeliest ones, where asked for.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprobs] | None = None


@dataclass(slots=True)
class RequestOutput:
    """A prompt and its completions, in the order of their index."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingOutput:
    """A text as a vector.

    Attributes:
        embedding: float32 [dimensions].
        prompt_token_ids: the tokens that were embedded: of the prompt and the text, with what the tokenizer adds.
    """

    embedding: npt.NDArray[np.float32]
    prompt_token_ids: list[int]


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How well a model foretells a text.

    Attributes:
        nats: the sum over tokens of -log p(token | tokens before it), in nats.
        tokens: how many tokens were scored; the first of the text cannot be.
    """

    nats: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(nats / tokens)."""
        return math.exp(self.nats / self.tokens) if self.tokens else math.nan

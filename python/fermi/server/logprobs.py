"""Log-probabilities on the wire, as the chat and the completions endpoints want them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fermi.engine.event import TokenLogprobs
from fermi.text.tokenizer import Tokenizer

LOWEST = -9999.0  # JSON has no minus infinity; OpenAI's own servers say this


def chat_logprobs(
    tokenizer: Tokenizer, tokens: Sequence[TokenLogprobs], top: int, *, as_ids: bool = False
) -> list[dict[str, Any]]:
    """The entries of ``choices[].logprobs.content``, each with its ``top`` likeliest tokens.

    ``as_ids``: tokens are written as their ids, which no two of them share.
    """

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        raw = tokenizer.token_bytes(token_id)
        text = _as_id(token_id) if as_ids else raw.decode("utf-8", "replace")
        return {"token": text, "logprob": max(logprob, LOWEST), "bytes": list(raw)}

    return [
        {**entry(token.token_id, token.logprob), "top_logprobs": [entry(*each) for each in token.top[:top]]}
        for token in tokens
    ]


@dataclass(slots=True)
class CompletionLogprobs:
    """``choices[].logprobs`` of the completions endpoint, as it grows.

    Attributes:
        as_ids: tokens are written as their ids.
        offset: characters of the text before the next token.
    """

    tokenizer: Tokenizer
    top: int
    as_ids: bool = False
    offset: int = 0
    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)

    def add_prompt(self, token_ids: Sequence[int], scores: Sequence[TokenLogprobs | None]) -> None:
        """The prompt's tokens; the first has no probability."""
        for token_id, score in zip(token_ids, scores, strict=True):
            self._add(token_id, score)

    def add(self, scores: Sequence[TokenLogprobs]) -> None:
        """New tokens."""
        for score in scores:
            self._add(score.token_id, score)

    def take(self) -> dict[str, Any]:
        """The object with what was added since the last call."""
        wire = {
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        }
        self.tokens, self.token_logprobs, self.top_logprobs, self.text_offset = [], [], [], []
        return wire

    def _add(self, token_id: int, score: TokenLogprobs | None) -> None:
        text = self._text(token_id)
        self.tokens.append(text)
        self.text_offset.append(self.offset)
        self.offset += len(self.tokenizer.token_text(token_id) if self.as_ids else text)
        if score is None:
            self.token_logprobs.append(None)
            self.top_logprobs.append(None)
            return
        # Harnesses compare the token's number with the largest as floats: both are the same object here.
        likeliest: dict[str, float] = {}
        for each, logprob in score.top[: self.top]:
            likeliest.setdefault(self._text(each), max(logprob, LOWEST))
        own = max(score.logprob, LOWEST)
        self.token_logprobs.append(own)
        self.top_logprobs.append({**likeliest, text: own} if text not in likeliest else likeliest)

    def _text(self, token_id: int) -> str:
        return _as_id(token_id) if self.as_ids else self.tokenizer.token_text(token_id)


def prompt_logprobs(
    tokenizer: Tokenizer, scores: Sequence[TokenLogprobs | None], top: int
) -> list[dict[str, Any] | None]:
    """vLLM's ``prompt_logprobs``: of each token of the prompt but the first, by token id its own and the likeliest."""

    def entry(token_id: int, logprob: float, rank: int) -> dict[str, Any]:
        return {"logprob": max(logprob, LOWEST), "rank": rank, "decoded_token": tokenizer.token_text(token_id)}

    wire: list[dict[str, Any] | None] = []
    for score in scores:
        if score is None:
            wire.append(None)
            continue
        entries = {str(score.token_id): entry(score.token_id, score.logprob, score.rank)}
        for rank, (token_id, logprob) in enumerate(score.top[:top], 1):
            entries.setdefault(str(token_id), entry(token_id, logprob, rank))
        wire.append(entries)
    return wire


def _as_id(token_id: int) -> str:
    return f"token_id:{token_id}"

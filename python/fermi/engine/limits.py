"""Bounds of steps and requests."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from fermi.engine.sequence import Request
from fermi.engine.window import Window
from fermi.errors import ContextLengthError, RequestError

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of steps and of requests.

    Attributes:
        max_num_seqs: sequences that run at a time.
        max_num_batched_tokens: tokens per step; at least ``max_num_seqs``.
        max_model_len: tokens of prompt and output together.
        max_scored_rows: rows of logits per step for prompt log-probabilities.
        rope_original_length: a longer prompt shares cached blocks only with prompts of its own length, because the
            model's rotary frequencies depend on it. None: they do not.
        stream_slowdown: how many times longer prompts may make a step in which others draw. 0: as much as they will.
        rope_switch: the first length at which a sequence is computed again, as a prompt of that length would be: all
            longer ones are alike, and share blocks. 0: none is, and frequencies belong to a token.
        windows: of each group of layers, the tokens that a query sees, itself included; 0: all. Blocks that are beyond
            a group's window are given back.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    vocab_size: int
    max_scored_rows: int = 64
    rope_original_length: int | None = None
    stream_slowdown: float = 0.0
    rope_switch: int = 0
    windows: tuple[int, ...] = (0,)

    def check(self, request: Request, cache_blocks: int, block_size: int) -> None:
        """RequestError when the request can never be served with a KV cache of that many blocks."""
        sampling, length = request.sampling, len(request.prompt_token_ids)
        if length == 0:
            raise RequestError("the prompt is empty", param="prompt")
        self._check_token_ids("prompt", request.prompt_token_ids)
        if length + min(sampling.max_tokens, 1) > self.max_model_len:
            raise ContextLengthError(
                f"This model's maximum context length is {self.max_model_len} tokens. However, you requested "
                f"{length + sampling.max_tokens} tokens ({length} in the prompt, {sampling.max_tokens} in the "
                "completion).",
                param="prompt",
            )
        for name, token_ids in (("logit_bias", sampling.logit_bias), ("stop_token_ids", sampling.stop_token_ids)):
            self._check_token_ids(name, token_ids)
        longest = min(length + sampling.max_tokens, self.max_model_len)
        if sum(Window(window, block_size).most_blocks(longest) for window in self.windows) > cache_blocks:
            holds = cache_blocks // len(self.windows) * block_size
            message = f"{longest} tokens can never fit the KV cache of {holds} tokens"
            raise RequestError(message, param="max_tokens")

    def rope_regime(self, length: int) -> int:
        """What the rotary frequencies of a prompt of that length are chosen for: equal for prompts that may share."""
        if self.rope_original_length is None or length <= self.rope_original_length:
            return 0
        return self.rope_switch or length

    def _check_token_ids(self, name: str, token_ids: Collection[int]) -> None:
        if token_ids and (min(token_ids) < 0 or max(token_ids) >= self.vocab_size):
            outside = next(token_id for token_id in token_ids if not 0 <= token_id < self.vocab_size)
            raise RequestError(
                f"{name}: token id {outside} is not in the vocabulary, 0 … {self.vocab_size - 1}", param=name
            )

"""A tokenizer as llguidance reads it."""

from __future__ import annotations

import llguidance
from llguidance import LLTokenizer

from fermi.errors import RequestError
from fermi.text.tokenizer import Tokenizer

__all__ = ["read_vocabulary"]


class Entries:
    """What llguidance asks of a tokenizer whose format it does not know: the bytes of each token.

    Attributes:
        tokens: what each token adds to a text, by its id; empty for ids that are not used.
    """

    def __init__(self, tokenizer: Tokenizer, end_ids: list[int]) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = end_ids[0]
        self.bos_token_id = tokenizer.bos_token_id
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.special_token_ids)

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", "replace"), add_special_tokens=False)


def read_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> LLTokenizer:
    """The tokenizer's entries and end tokens, in a vocabulary of as many tokens as the model has logits.

    RequestError for a model that cannot end a text, or whose logits are fewer than the tokenizer's entries.
    """
    end_ids = sorted(token_id for token_id in tokenizer.eos_token_ids if token_id < vocab_size)
    if not end_ids:
        raise RequestError("this model has no end-of-text token, so no grammar can end its replies")
    if vocab_size < tokenizer.vocab_size:
        raise RequestError(
            f"this model has logits for {vocab_size} tokens of its tokenizer's {tokenizer.vocab_size}: no grammar can "
            "bound its replies"
        )
    try:
        return LLTokenizer(tokenizer.serialized(), n_vocab=vocab_size, eos_token=end_ids)
    except ValueError:  # of a kind that llguidance does not read: neither byte-level nor with byte fallback
        wrapped = llguidance.TokenizerWrapper(Entries(tokenizer, end_ids))
        return LLTokenizer(wrapped, n_vocab=vocab_size, eos_token=end_ids)

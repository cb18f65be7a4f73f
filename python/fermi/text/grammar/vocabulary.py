"""A tokenizer as llguidance reads it."""

from __future__ import annotations

import llguidance
from llguidance import LLTokenizer

from fermi.errors import RequestError
from fermi.text.tokenizer import Tokenizer

__all__ = ["Vocabulary"]


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


class Vocabulary:
    """The tokenizer's entries and end tokens, in a vocabulary of as many tokens as the model has logits.

    Attributes:
        tokenizer: llguidance's own.
        not_thoughts: token ids and ranges of them (``7-9``) that end a reply or stand for nothing.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """RequestError for a model that cannot end a text, or whose logits are fewer than the tokenizer's entries."""
        end_ids = sorted(token_id for token_id in tokenizer.eos_token_ids if token_id < vocab_size)
        if not end_ids:
            raise RequestError("this model has no end-of-text token, so no grammar can end its replies")
        if vocab_size < tokenizer.vocab_size:
            raise RequestError(
                f"this model has logits for {vocab_size} tokens of its tokenizer's {tokenizer.vocab_size}: no grammar "
                "can bound its replies"
            )
        self._own = tokenizer
        self.tokenizer = _read(tokenizer, vocab_size, end_ids)
        used = sorted({*tokenizer.token_ids(), vocab_size})
        gaps = zip([0, *(token_id + 1 for token_id in used)], used, strict=False)
        self.not_thoughts = [*map(str, end_ids), *(f"{first}-{end - 1}" for first, end in gaps if first < end)]

    def special(self, text: str) -> int | None:
        """The token with this text that other text is never made of."""
        token_id = self._own.token_id(text)
        return token_id if token_id is not None and self.tokenizer.is_special_token(token_id) else None


def _read(tokenizer: Tokenizer, vocab_size: int, end_ids: list[int]) -> LLTokenizer:
    try:
        return LLTokenizer(tokenizer.serialized(), n_vocab=vocab_size, eos_token=end_ids)
    except ValueError:  # of a kind that llguidance does not read: neither byte-level nor with byte fallback
        wrapped = llguidance.TokenizerWrapper(Entries(tokenizer, end_ids))
        return LLTokenizer(wrapped, n_vocab=vocab_size, eos_token=end_ids)

"""Token ids to text while they are generated: whole characters only, and in sum exactly the decoded whole."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fermi.text.tokenizer import Tokenizer

__all__ = ["Detokenizer"]


class Detokenizer:
    """The text of one sequence of tokens, bit by bit.

    All that ``push`` and ``flush`` return, joined, is ``tokenizer.decode`` of all ids, however they were split; a
    character whose bytes are spread over tokens comes with its last one. Each token costs the same time.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        kept: Collection[int] = (),
        continues: bool = False,
    ) -> None:
        """``kept``: special tokens that are not skipped. ``continues``: the text goes on from a prompt, so the space
        before its first word stays.
        """
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens and not kept
        self._skipped = tokenizer.special_token_ids.difference(kept) if skip_special_tokens and kept else None
        self._decoder = tokenizer.stream_decoder(continues)
        self._undecoded: list[int] = []

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that is certain now, given these tokens more. It may be empty."""
        if self._skipped is not None:
            token_ids = [token_id for token_id in token_ids if token_id not in self._skipped]
        if self._decoder is None:
            self._undecoded += token_ids
            return ""
        return self._decoder.push(self._tokenizer.pieces(token_ids, self._skip_special_tokens))

    def flush(self) -> str:
        """The rest of the text. No tokens may follow."""
        if self._decoder is None:
            return self._tokenizer.decode(self._undecoded, self._skip_special_tokens)
        return self._decoder.finish()

"""The text of one sequence as its reader sees it: decoded, and cut at a stop string."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fermi.text.detokenizer import Detokenizer
from fermi.text.stop import StopStrings
from fermi.text.tokenizer import Tokenizer

__all__ = ["TextStream"]


class TextStream:
    """Token ids in, text that can be sent out.

    Attributes:
        stopped_by: the stop string that ended the text. The caller then ends the sequence; later tokens are ignored.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        *,
        skip_special_tokens: bool = True,
        kept: Collection[int] = (),
        include_stop: bool = False,
        min_tokens: int = 0,
        continues: bool = False,
    ) -> None:
        """``min_tokens``: no stop begins in the text of the first so many tokens; the others are as in Detokenizer."""
        self._detokenizer = Detokenizer(
            tokenizer, skip_special_tokens=skip_special_tokens, kept=kept, continues=continues
        )
        self._stops = StopStrings(stops, include=include_stop) if stops else None
        self._free_tokens = min_tokens if stops else 0
        self._sent: list[str] = []
        self.stopped_by: str | None = None

    @property
    def text(self) -> str:
        """All text that ``push`` and ``finish`` have returned."""
        if len(self._sent) > 1:
            self._sent = ["".join(self._sent)]
        return self._sent[0] if self._sent else ""

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that is certain now, given these tokens more; "" after a stop."""
        if self.stopped_by is not None:
            return ""
        free, token_ids = token_ids[: self._free_tokens], token_ids[self._free_tokens :]
        self._free_tokens -= len(free)
        ready = self._detokenizer.push(free) if free else ""
        return self._send(ready + self._before_stop(self._detokenizer.push(token_ids)))

    def finish(self) -> str:
        """The rest of the text, when no more tokens come; "" after a stop."""
        if self.stopped_by is not None:
            return ""
        ready = self._before_stop(self._detokenizer.flush())
        if self._stops is not None and self.stopped_by is None:
            rest, self.stopped_by = self._stops.flush()
            ready += rest
        return self._send(ready)

    def _before_stop(self, text: str) -> str:
        if self._stops is None:
            return text
        ready, self.stopped_by = self._stops.push(text)
        return ready

    def _send(self, text: str) -> str:
        if text:
            self._sent.append(text)
        return text

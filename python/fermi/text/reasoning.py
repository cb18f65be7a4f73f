"""What a thinking model says in ``<think>…</think>`` before its answer, told from the answer while both stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fermi.text.suffix import held_back

__all__ = ["ReasoningDelta", "ReasoningSplitter"]


class ReasoningDelta(NamedTuple):
    """A bit of each; either may be empty."""

    reasoning: str
    content: str


class ReasoningSplitter:
    """Splits one reply into reasoning and content, the same however its text is cut.

    The block counts where the reply begins with it; the same words later in the reply are content. Newlines that set
    the block off (after ``<think>``, around ``</think>``) belong to neither, as chat templates have it when they put
    the two together again.

    Attributes:
        starts_inside: whether the reply began inside the block.
    """

    def __init__(self, *, starts_inside: bool = False, opening: str = "<think>", closing: str = "</think>") -> None:
        """``starts_inside``: the prompt already ends with the opening tag (see ``opened_by``)."""
        self.starts_inside = starts_inside
        self._opening = opening
        self._closing = closing
        self._step: Callable[[str, bool], ReasoningDelta] = self._before
        self._held = ""

    @staticmethod
    def opened_by(prompt: str, opening: str = "<think>") -> bool:
        """Whether a rendered prompt leaves the model inside the block."""
        return prompt.rstrip().endswith(opening)

    def push(self, text: str) -> ReasoningDelta:
        """What is certain now, given this text more."""
        return self._step(self._held + text, False)

    def finish(self) -> ReasoningDelta:
        """The rest, when the reply has ended."""
        return self._step(self._held, True)

    def _before(self, text: str, last: bool) -> ReasoningDelta:
        """At the beginning: nothing but space, or a part of the opening tag, has come."""
        start = text.lstrip()
        if start.startswith(self._opening):
            return self._go(self._inside_start, start[len(self._opening) :], last)
        if self._opening.startswith(start) and not last:
            return self._hold(text)
        return self._go(self._inside_start if self.starts_inside else self._after, text, last)

    def _inside_start(self, text: str, last: bool) -> ReasoningDelta:
        text = text.lstrip("\n")
        return self._go(self._inside, text, last) if text else self._hold("")

    def _inside(self, text: str, last: bool) -> ReasoningDelta:
        """In the block: all is reasoning, but for an end that may belong to the closing tag."""
        end = text.find(self._closing)
        if end >= 0:
            content = self._go(self._after_start, text[end + len(self._closing) :], last).content
            return ReasoningDelta(text[:end].rstrip("\n"), content)
        held = 0 if last else held_back(text, self._closing)
        ready = text[: len(text) - held].rstrip("\n")
        self._held = text[len(ready) :]
        return ReasoningDelta(ready, "")

    def _after_start(self, text: str, last: bool) -> ReasoningDelta:
        text = text.lstrip("\n")
        return self._go(self._after, text, last) if text else self._hold("")

    def _after(self, text: str, last: bool) -> ReasoningDelta:
        self._held = ""
        return ReasoningDelta("", text)

    def _hold(self, text: str) -> ReasoningDelta:
        self._held = text
        return ReasoningDelta("", "")

    def _go(self, step: Callable[[str, bool], ReasoningDelta], text: str, last: bool) -> ReasoningDelta:
        self._step, self._held = step, ""
        return step(text, last)

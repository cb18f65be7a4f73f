"""What a thinking model says before its answer, told from the answer by its markers while both stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from fermi.errors import ConfigError
from fermi.text.suffix import held_back

__all__ = ["REASONING", "ReasoningDelta", "ReasoningMarkers", "ReasoningSplitter", "reasoning_markers"]


class ReasoningMarkers(NamedTuple):
    """What a model writes around its thoughts."""

    opening: str
    closing: str


#: By the name that the setting ``reasoning_parser`` has for them; None tells nothing apart. Of those that a template
#: writes the first is taken.
REASONING: Mapping[str, ReasoningMarkers | None] = {
    "seed": ReasoningMarkers("<seed:think>", "</seed:think>"),
    "cohere": ReasoningMarkers("<|START_THINKING|>", "<|END_THINKING|>"),
    "mistral": ReasoningMarkers("[THINK]", "[/THINK]"),
    "granite": ReasoningMarkers("Here is my thought process:", "Here is my response:"),
    "think": ReasoningMarkers("<think>", "</think>"),
    "thinking": ReasoningMarkers("<thinking>", "</thinking>"),
    "thought": ReasoningMarkers("<thought>", "</thought>"),
    "reasoning": ReasoningMarkers("<reasoning>", "</reasoning>"),
    "none": None,
}


def reasoning_markers(template: str, override: str | None = None) -> ReasoningMarkers | None:
    """The markers that a chat template's text shows, else ``<think>``; or those named. ConfigError for no name."""
    if override is not None:
        if override not in REASONING:
            raise ConfigError(f"there is no reasoning parser {override!r}, only {', '.join(REASONING)}")
        return REASONING[override]
    shown = (each for each in REASONING.values() if each is not None and each.opening in template)
    return next(shown, REASONING["think"])


class ReasoningDelta(NamedTuple):
    """A bit of each; any may be empty. ``raw``: what belongs to the block, its markers and line breaks too."""

    reasoning: str
    content: str
    raw: str = ""


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
        self._held = ""  # the end of the text, not told apart yet

    @classmethod
    def after(cls, prompt: str, markers: ReasoningMarkers) -> ReasoningSplitter:
        """For the reply to a rendered prompt."""
        return cls(
            starts_inside=cls.opened_by(prompt, markers.opening), opening=markers.opening, closing=markers.closing
        )

    @staticmethod
    def opened_by(prompt: str, opening: str = "<think>") -> bool:
        """Whether a rendered prompt leaves the model inside the block."""
        return prompt.rstrip().endswith(opening)

    def push(self, text: str) -> ReasoningDelta:
        """What is certain now, given this text more."""
        return self._told_apart(text, last=False)

    def finish(self) -> ReasoningDelta:
        """The rest, when the reply has ended."""
        return self._told_apart("", last=True)

    def _told_apart(self, text: str, *, last: bool) -> ReasoningDelta:
        text = self._held + text
        reasoning, content, _ = self._step(text, last)
        held = 0 if last else len(self._held)
        return ReasoningDelta(reasoning, content, text[: len(text) - held - len(content)])

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

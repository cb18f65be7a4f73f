"""Whether a reply thinks first, and where its thoughts go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fermi.config import OpenAISettings, Thinking
from fermi.errors import RequestError
from fermi.server.schema.chat import ChatBody
from fermi.server.served import ServedModel
from fermi.text.grammar import Thoughts
from fermi.text.reasoning import ReasoningMarkers, ReasoningSplitter

Place = Literal["apart", "in_content", "dropped"]

_PLACES: dict[str, Place] = {
    "none": "in_content",
    "raw": "in_content",
    "auto": "apart",
    "deepseek": "apart",
    "parsed": "apart",
    "hidden": "dropped",
}

#: What each reasoning_effort lets the thoughts of a model take, whose template does not read the effort by itself: an
#: answer should still fit the reply.
_SHARES = {"minimal": 0.1, "low": 0.2, "medium": 0.5, "high": 0.8, "xhigh": 0.95}


@dataclass(frozen=True, slots=True)
class ThinkingPlan:
    """What was decided for one request.

    Attributes:
        on: the model may think.
        place: where its thoughts go: fields of their own, the content with their tags, or nowhere.
        markers: what stands around them; None tells nothing apart.
        tokens: that its thoughts may take at most.
        share: of the reply's tokens that they may take at most, where ``tokens`` does not say.
    """

    on: bool
    place: Place
    markers: ReasoningMarkers | None = None
    tokens: int | None = None
    share: float | None = None

    @classmethod
    def of(cls, body: ChatBody, served: ServedModel, settings: OpenAISettings) -> ThinkingPlan:
        """The request's wish over the server's default; disable_think wins over all.

        RequestError if the request insists on thinking and the model cannot.
        """
        markers = served.replies.thoughts
        if settings.disable_think:
            return cls(False, "dropped", markers)
        if body.thinking == "on" and not served.thinks:
            raise RequestError("thinking: this model does not support thinking", param="thinking")
        on = served.thinks and _wish(body, settings.default_thinking) != "off"
        if not on:
            return cls(False, "dropped", markers)
        tokens = None if body.thinking_budget == -1 else body.thinking_budget
        share = None
        if body.thinking_budget is None and "reasoning_effort" not in served.template.source:
            share = _SHARES.get(body.reasoning_effort or "")
        place: Place = "in_content" if body.thinking == "on" else "apart"
        if body.reasoning_format is not None:
            place = _PLACES[body.reasoning_format]
        if body.include_reasoning is not None:
            place = "apart" if body.include_reasoning else "dropped"
        return cls(True, place, markers, tokens, share)

    def template_variables(self, body: ChatBody) -> dict[str, Any]:
        """What the chat template is told."""
        variables: dict[str, Any] = {"enable_thinking": self.on, "thinking": self.on}
        if body.reasoning_effort is not None:
            variables["reasoning_effort"] = body.reasoning_effort
        if self.tokens is not None:
            variables["thinking_budget"] = self.tokens
        return {**variables, **(body.chat_template_kwargs or {}), "enable_thinking": self.on}

    def thoughts(self, prompt: str, *, continues: bool) -> Thoughts | None:
        """How the reply to a rendered prompt may begin with thoughts; None where it begins with its answer.

        ``continues``: it goes on from the last message.
        """
        if self.markers is None:
            return None
        opened = ReasoningSplitter.opened_by(prompt, self.markers.opening)
        return Thoughts(opened, *self.markers) if opened or (self.on and not continues) else None

    def budget(self, max_tokens: int) -> int | None:
        """Tokens that the thoughts may take of a reply of so many; None where they may take all."""
        if self.tokens is None and self.share is not None:
            return int(self.share * max_tokens)
        return self.tokens

    def close(self, prompt: str) -> str:
        """The rendered prompt, with the block closed that a template opened although thinking is off."""
        if not self.on and self.markers is not None and ReasoningSplitter.opened_by(prompt, self.markers.opening):
            return f"{prompt.rstrip()}\n\n{self.markers.closing}\n\n"
        return prompt


def _wish(body: ChatBody, default: Thinking) -> Thinking:
    if body.thinking_budget == 0:
        return "off"
    if body.thinking is not None:
        return body.thinking
    for name in ("enable_thinking", "thinking"):
        value = (body.chat_template_kwargs or {}).get(name)
        if isinstance(value, bool):
            return "auto" if value else "off"
    if body.reasoning_effort is not None:
        return "off" if body.reasoning_effort == "none" else "auto"
    return default

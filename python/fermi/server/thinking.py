"""Whether a reply thinks first, and where its thoughts go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fermi.config import OpenAISettings, Thinking
from fermi.errors import RequestError
from fermi.server.schema.chat import ChatBody
from fermi.server.served import ServedModel
from fermi.text.reasoning import ReasoningSplitter

Place = Literal["apart", "in_content", "dropped"]

_PLACES: dict[str, Place] = {
    "none": "in_content",
    "raw": "in_content",
    "auto": "apart",
    "deepseek": "apart",
    "parsed": "apart",
    "hidden": "dropped",
}


@dataclass(frozen=True, slots=True)
class ThinkingPlan:
    """What was decided for one request.

    Attributes:
        on: the model may think.
        place: where its thoughts go: fields of their own, the content with their tags, or nowhere.
    """

    on: bool
    place: Place

    @classmethod
    def of(cls, body: ChatBody, served: ServedModel, settings: OpenAISettings) -> ThinkingPlan:
        """The request's wish over the server's default; disable_think wins over all.

        RequestError if the request insists on thinking and the model cannot.
        """
        if settings.disable_think:
            return cls(False, "dropped")
        if body.thinking == "on" and not served.thinks:
            raise RequestError("thinking: this model does not support thinking", param="thinking")
        on = served.thinks and _wish(body, settings.default_thinking) != "off"
        if not on:
            return cls(False, "dropped")
        if body.reasoning_format is not None:
            return cls(True, _PLACES[body.reasoning_format])
        return cls(True, "in_content" if body.thinking == "on" else "apart")

    def template_variables(self, body: ChatBody) -> dict[str, Any]:
        """What the chat template is told."""
        variables: dict[str, Any] = {"enable_thinking": self.on}
        if body.reasoning_effort is not None:
            variables["reasoning_effort"] = body.reasoning_effort
        return {**variables, **(body.chat_template_kwargs or {}), "enable_thinking": self.on}

    def close(self, prompt: str) -> str:
        """The rendered prompt, with the block closed that a template opened although thinking is off."""
        if not self.on and ReasoningSplitter.opened_by(prompt):
            return prompt.rstrip() + "\n\n</think>\n\n"
        return prompt


def _wish(body: ChatBody, default: Thinking) -> Thinking:
    if body.thinking is not None:
        return body.thinking
    for name in ("enable_thinking", "thinking"):
        value = (body.chat_template_kwargs or {}).get(name)
        if isinstance(value, bool):
            return "auto" if value else "off"
    if body.reasoning_effort is not None:
        return "off" if body.reasoning_effort == "none" else "auto"
    return default

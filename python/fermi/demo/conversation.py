"""Conversation: messages rendered by the chat template into segments that are trained on or only read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fermi.text.chat import ChatTemplate


@dataclass(frozen=True)
class Segment:
    """A piece of text, and whether the loss counts its tokens."""

    text: str
    trained: bool


def chat_template() -> str:
    """The Jinja source of the demo model's chat template."""
    return (Path(__file__).parent / "template.jinja").read_text(encoding="utf-8")


class Conversation:
    """Messages, tools and the thinking mode of one chat."""

    def __init__(self, template: ChatTemplate, tools: Sequence[dict[str, Any]], *, enable_thinking: bool) -> None:
        self._template = template
        self._tools = tools or None
        self._enable_thinking = enable_thinking
        self.messages: list[dict[str, Any]] = []

    def add(self, request: str, thought: str, reply: str) -> None:
        """Append a user's request and the assistant's reply."""
        self.messages.append({"role": "user", "content": request})
        self.messages.append({"role": "assistant", "content": reply, "reasoning_content": thought})

    def segments(self) -> list[Segment]:
        """The rendered text: the assistant's turns are trained where they would be generated, all else is read.

        Without thinking every reply is trained. With thinking the thoughts of earlier turns are gone from the
        rendered text, so only what follows the last user message is trained with its thought.
        """
        last_user = max(index for index, message in enumerate(self.messages) if message["role"] == "user")
        segments: list[Segment] = []
        read = 0
        text = self._render(len(self.messages))
        for index, message in enumerate(self.messages):
            if message["role"] != "assistant":
                continue
            thinks = self._enable_thinking and index > last_user
            start = len(self._render(index, add_generation_prompt=True, enable_thinking=thinks))
            end = len(self._render(index + 1)) - 1  # the newline after <|im_end|> is not generated
            segments.append(Segment(text[read:start], trained=False))
            segments.append(Segment(text[start:end], trained=True))
            read = end
        return segments

    def _render(self, count: int, *, add_generation_prompt: bool = False, enable_thinking: bool = True) -> str:
        last_user = max(index for index, message in enumerate(self.messages) if message["role"] == "user")
        thought_from = last_user if self._enable_thinking else len(self.messages)
        kept = [
            message if index > thought_from else {**message, "reasoning_content": ""}
            for index, message in enumerate(self.messages[:count])
        ]
        return self._template.render(
            kept, self._tools, add_generation_prompt=add_generation_prompt, enable_thinking=enable_thinking
        )

"""How a model marks its thoughts and its calls in a reply."""

from __future__ import annotations

from dataclasses import dataclass

from fermi.text.chat import ChatTemplate
from fermi.text.reasoning import ReasoningMarkers, reasoning_markers
from fermi.text.tokenizer import Tokenizer
from fermi.text.tool_calls import ToolFormat, tool_format

__all__ = ["ReplyFormat"]


@dataclass(frozen=True, slots=True)
class ReplyFormat:
    """What a reply of a model is told apart by.

    Attributes:
        tools: the format of its calls.
        thoughts: what stands around its thoughts, None where they are not told apart.
        special: of these markers the special tokens, which are left in a reply's text for that, with their ids.
    """

    tools: ToolFormat
    thoughts: ReasoningMarkers | None
    special: dict[str, int]

    @classmethod
    def of(
        cls,
        template: ChatTemplate,
        tokenizer: Tokenizer,
        *,
        tool_parser: str | None = None,
        reasoning_parser: str | None = None,
    ) -> ReplyFormat:
        """The formats that the chat template shows, or those named. ConfigError for a name that is none."""
        thoughts = reasoning_markers(template.source, reasoning_parser)
        tools = tool_format(template.tool_source, tool_parser)
        markers = {*tools.markers(), *(thoughts or ())}
        ids = {marker: tokenizer.token_id(marker) for marker in markers}
        special = {text: at for text, at in ids.items() if at is not None and at in tokenizer.special_token_ids}
        return cls(type(tools)(special), thoughts, special)

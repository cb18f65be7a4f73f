"""The bodies of POST /v1/messages and /v1/messages/count_tokens, as Anthropic's API has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from fermi.server.schema.body import Body, Many
from fermi.server.schema.common import Natural, Positive, Stops

Display = Literal["summarized", "omitted"]


class Message(Body):
    """One turn of the conversation; what its blocks hold is looked at where they are translated."""

    role: Literal["user", "assistant", "system"]
    content: str | Many[dict[str, Any]]


class Tool(Body):
    """A function that the model may call. Tools that Anthropic's servers run are refused by their type."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    description: str | None = None
    strict: bool | None = None

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "allowed_callers": (["direct"], []),
        "defer_loading": (False,),
        "input_examples": ([],),
    }


class ToolChoice(Body):
    """Whether the model calls a tool, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Body):
    """Whether the model thinks before it answers; ``display`` omitted keeps its thoughts from the reply."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Positive | None = None
    display: Display | None = None


class OutputFormat(Body):
    """A schema that the answer keeps to."""

    type: Literal["json_schema"]
    json_schema: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Body):
    """The form of the answer, and how much thought it is worth."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class Metadata(Body):
    """Who asks."""

    user_id: str | None = None


class ThinkingTurns(Body):
    """So many turns with thoughts."""

    type: Literal["thinking_turns"]
    value: Natural


class Edit(Body):
    """What is left out of the conversation: thoughts of earlier turns. Of tools' results nothing can be."""

    type: Literal["clear_thinking_20251015"]
    keep: Literal["all"] | ThinkingTurns | None = None


class ContextManagement(Body):
    """How a long conversation is kept short."""

    edits: Many[Edit] | None = None


class Prompted(Body):
    """What makes the prompt."""

    model: str
    messages: Annotated[Many[Message], Field(min_length=1, max_length=100_000)]
    system: str | Many[dict[str, Any]] | None = None
    tools: Many[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    context_management: ContextManagement | None = None
    cache_control: dict[str, Any] | None = None  # what can be cached is, without being told

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "container": (),
        "diagnostics": (),
        "inference_geo": ("global",),
        "mcp_servers": ([],),
        "speed": ("standard",),
    }


class CountBody(Prompted):
    """A prompt whose tokens are to be counted."""


class MessagesBody(Prompted):
    """A prompt that the model is to answer. Fields of chat completions that Anthropic does not have work here, too."""

    max_tokens: Positive
    stream: bool | None = None
    stop_sequences: Stops | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Natural | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **Prompted.refused,
        "n": (1,),
        "logprobs": (False,),
        "top_logprobs": (0,),
        "stream_options": (),
        "prompt_logprobs": (),
        "return_token_ids": (False,),
        "return_tokens_as_token_ids": (False,),
    }

"""The body of POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from fermi.config import Thinking, parse_thinking
from fermi.server.schema.common import Body, GenerationBody, Many, Positive

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
ReasoningFormat = Literal["none", "raw", "auto", "deepseek", "parsed", "hidden"]


class Function(Body):
    """A function that the model may call."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Body):
    """A tool; only functions exist."""

    type: Literal["function"]
    function: Function


class ChatBody(GenerationBody):
    """A conversation to continue."""

    messages: Annotated[Many[dict[str, Any]], Field(min_length=1)]
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Many[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    thinking: Annotated[Thinking, BeforeValidator(parse_thinking)] | None = None
    reasoning_effort: Effort | None = None
    reasoning_format: ReasoningFormat | None = None
    include_reasoning: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: Many[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **GenerationBody.refused,
        "audio": (),
        "modalities": (["text"],),
        "prediction": (),
        "functions": ([],),
        "function_call": ("none",),
        "web_search_options": (),
        "store": (False,),
        "service_tier": ("auto", "default"),
        "verbosity": ("medium",),
        "best_of": (1,),
        "echo": (False,),
        "suffix": ("",),
        "chat_template": (),
        "mm_processor_kwargs": (),
    }

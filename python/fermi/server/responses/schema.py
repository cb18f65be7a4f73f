"""The body of POST /v1/responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from fermi.errors import RequestError
from fermi.server.responses.items import InputItem, refuse_unsupported_items
from fermi.server.schema.common import Body, Many, Metadata, Positive

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Summary = Literal["auto", "concise", "detailed"]
Include = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]

#: What an answer of text and functions can hold besides.
INCLUDED: tuple[Include, ...] = ("reasoning.encrypted_content", "message.output_text.logprobs")

_MOVED = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
    "functions": "tools",
    "function_call": "tool_choice",
}


class FunctionTool(Body):
    """A function that the model may call."""

    type: Literal["function"]
    name: Annotated[str, Field(min_length=1, max_length=128)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "allowed_callers": (["direct"],),
        "async": (False,),
        "defer_loading": (False,),
        "output_schema": (),
    }


class OtherTool(Body):
    """A tool that the server would have to bring."""

    type: str


def _tool_kind(tool: Any) -> str | None:
    if not isinstance(tool, dict):
        return None
    return "a function" if tool.get("type") == "function" else "another tool"


Tool = Annotated[
    Annotated[FunctionTool, Tag("a function")] | Annotated[OtherTool, Tag("another tool")],
    Discriminator(_tool_kind, custom_error_type="tool", custom_error_message="A tool must be an object"),
]


class NamedFunction(Body):
    """The one function that must be called."""

    type: Literal["function"]
    name: str


class AllowedTool(Body):
    """One of the tools that may be called."""

    type: str
    name: str | None = None


class AllowedTools(Body):
    """Some of the tools, which may or must be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[Many[AllowedTool], Field(min_length=1)]


class OtherChoice(Body):
    """The choice of a tool that is not there."""

    type: str


def _choice_kind(choice: Any) -> str | None:
    if isinstance(choice, str):
        return "a word"
    if not isinstance(choice, dict):
        return None
    return {"function": "a function", "allowed_tools": "some tools"}.get(str(choice.get("type")), "another tool")


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("a word")]
    | Annotated[NamedFunction, Tag("a function")]
    | Annotated[AllowedTools, Tag("some tools")]
    | Annotated[OtherChoice, Tag("another tool")],
    Discriminator(_choice_kind, custom_error_type="tool_choice", custom_error_message="Must be a string or an object"),
]


class PlainText(Body):
    """Text as it comes."""

    type: Literal["text"]


class JsonObject(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(Body):
    """JSON of a schema."""

    type: Literal["json_schema"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    json_schema: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


TextFormat = Annotated[PlainText | JsonObject | JsonSchema, Field(discriminator="type")]


class TextConfig(Body):
    """What the text shall be like."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningConfig(Body):
    """How to think."""

    effort: Effort | None = None
    summary: Summary | None = None
    generate_summary: Summary | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: str | None = None


class StreamOptions(Body):
    """What a stream carries besides its events."""

    include_obfuscation: bool | None = None


class ResponseBody(Body):
    """What to answer, and how; further fields are those of a chat completion: top_k, stop, seed, thinking and so on."""

    model: str | None = None
    input: str | Many[InputItem] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Many[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Positive | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    max_output_tokens: Positive | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: Many[Include] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: Metadata | None = None
    user: str | None = None
    safety_identifier: Annotated[str, Field(max_length=64)] | None = None
    prompt_cache_key: str | None = None

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "access_programs": (),
        "background_options": (),
        "context_management": ([],),
        "conversation": (),
        "image": (),
        "moderation": (),
        "prompt": (),
        "prompt_cache_options": ({}, {"mode": "implicit"}),
        "prompt_cache_retention": ("in_memory",),
        "service_tier": ("auto", "default"),
        "n": (1,),
        "logprobs": (False,),
        "add_generation_prompt": (True,),
        "continue_final_message": (False,),
    }

    def refuse_unsupported(self) -> None:
        for name, other in _MOVED.items():
            if (self.model_extra or {}).get(name) is not None:
                message = f"{name} is not a field of this endpoint: use {other}"
                raise RequestError(message, param=name, code="unsupported_parameter")
        super().refuse_unsupported()
        refuse_unsupported_items(self.items)
        for at, tool in enumerate(self.tools or ()):
            _refuse_tool(tool, f"tools.{at}")
        self._refuse_choice()
        for at, name in enumerate(self.include or ()):
            if name not in INCLUDED:
                raise _unsupported(f"include.{at}", f"{name!r} is of a tool or an input that is not supported")
        if self.text is not None and self.text.verbosity not in (None, "medium"):
            raise _unsupported("text.verbosity", "only 'medium' is supported")
        self._refuse_reasoning(self.reasoning or ReasoningConfig())

    @property
    def items(self) -> list[InputItem]:
        """The items of the input; none where it is a string."""
        return self.input if isinstance(self.input, list) else []

    @property
    def functions(self) -> list[FunctionTool]:
        """The functions that the model may call."""
        return [tool for tool in self.tools or () if isinstance(tool, FunctionTool)]

    def _refuse_choice(self) -> None:
        names = {tool.name for tool in self.functions}
        choice = self.tool_choice
        if isinstance(choice, OtherChoice):
            raise _unsupported("tool_choice.type", f"tools of type {choice.type!r} are not supported")
        if choice not in (None, "none", "auto") and not names:
            raise RequestError("tool_choice needs tools", param="tool_choice")
        if isinstance(choice, NamedFunction) and choice.name not in names:
            raise RequestError(f"tool_choice.name: there is no tool {choice.name!r}", param="tool_choice.name")
        for at, tool in enumerate(choice.tools if isinstance(choice, AllowedTools) else ()):
            if tool.type != "function":
                raise _unsupported(f"tool_choice.tools.{at}.type", f"tools of type {tool.type!r} are not supported")
            if tool.name not in names:
                param = f"tool_choice.tools.{at}.name"
                raise RequestError(f"{param}: there is no tool {tool.name!r}", param=param)

    @staticmethod
    def _refuse_reasoning(reasoning: ReasoningConfig) -> None:
        for name in ("summary", "generate_summary"):
            if getattr(reasoning, name) not in (None, "auto"):
                raise _unsupported(f"reasoning.{name}", "thoughts are told whole, never summed up: use 'auto'")
        if reasoning.context == "all_turns":
            raise _unsupported("reasoning.context", "which thoughts the model sees again is up to its template")
        if reasoning.mode not in (None, "standard"):
            raise _unsupported("reasoning.mode", "only 'standard' is supported")


def _refuse_tool(tool: Tool, where: str) -> None:
    if isinstance(tool, OtherTool):
        raise _unsupported(f"{where}.type", f"tools of type {tool.type!r} are not supported, only functions")
    try:
        tool.refuse_unsupported()
    except RequestError as error:
        raise RequestError(f"{where}.{error}", param=f"{where}.{error.param}", code=error.code) from None


def _unsupported(param: str, why: str) -> RequestError:
    return RequestError(f"{param}: {why}", param=param, code="unsupported_parameter")

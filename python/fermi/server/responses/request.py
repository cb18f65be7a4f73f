"""From a request for a response to the chat that answers it, and what is wrong with it back again."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json

from fermi.errors import ContextLengthError, RequestError
from fermi.server.chat_run import ChatRun, read_chat, start_chat
from fermi.server.errors import request_error_of
from fermi.server.responses.items import Item, Turn, turns
from fermi.server.responses.schema import (
    AllowedTools,
    FunctionTool,
    JsonObject,
    JsonSchema,
    NamedFunction,
    ResponseBody,
)
from fermi.server.schema.chat import ChatBody
from fermi.server.schema.common import Body
from fermi.server.state import ServerState

PATH = "/v1/responses"

# Fields of a chat, and what they are called here; the first that fits the beginning of a name counts.
_NAMES = (
    (re.compile(r"max_(completion_)?tokens\b"), "max_output_tokens"),
    (re.compile(r"prompt\b"), "input"),
    (re.compile(r"response_format\.json_schema\b"), "text.format"),
    (re.compile(r"response_format\b"), "text.format"),
    (re.compile(r"reasoning_effort\b"), "reasoning.effort"),
    (re.compile(r"logprobs\b"), "top_logprobs"),
    (re.compile(r"(tools\.\d+|tool_choice)\.function\b"), r"\1"),
)
_MESSAGE = re.compile(r"messages(?:\.(\d+)(\.content)?)?")


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is answered: items that came before, and those of this request, each with the field it came from."""

    instructions: str | None
    history: Sequence[Item]
    input: Sequence[tuple[Item, str]]

    def turns(self, body: ResponseBody) -> list[Turn]:
        """Its chat messages. RequestError where there are none, or an output belongs to no call."""
        items = [*((item, "previous_response_id") for item in self.history), *self.input]
        current = body.reasoning is not None and body.reasoning.context == "current_turn"
        found = turns(items, self.instructions, thoughts="of the last turn" if current else "kept")
        if not found:
            message = "input is missing: there is nothing to answer"
            raise RequestError(message, param="input", code="missing_required_parameter")
        return found


async def start(body: ResponseBody, conversation: Conversation, state: ServerState) -> ChatRun:
    """Check everything and submit it, without the oldest turns where they do not fit and may be left out.

    Raises what `fermi.server.chat_run.start_chat` raises, with this endpoint's names.
    """
    found = conversation.turns(body)
    try:
        return await _started(body, found, state)
    except ContextLengthError:
        if body.truncation != "auto":
            raise
    return await _started(body, await _shortened(body, found, state), state)


async def input_tokens(body: ResponseBody, conversation: Conversation, state: ServerState) -> int:
    """How many tokens the prompt has. Raises as `start`, but for what only the engine refuses."""
    found = conversation.turns(body)
    try:
        return len((await read_chat(_chat_of(body, found), state, PATH)).prompt.token_ids)
    except RequestError as error:
        raise translated(error, found) from None


async def _shortened(body: ResponseBody, found: list[Turn], state: ServerState) -> list[Turn]:
    """The conversation without as few of its oldest turns as leave room for a reply; as it is where none would."""
    lead = next((at for at, turn in enumerate(found) if turn.message["role"] not in ("system", "developer")), 0)
    users = [at for at in range(lead + 1, len(found)) if found[at].message["role"] == "user"]

    def shorter(number: int) -> list[Turn]:
        """Without the turns before one of a user, but for the system's."""
        return [*found[:lead], *found[users[number] :]]

    low, high = 0, len(users)
    while low < high:  # by halves: each try costs the reading of a long prompt
        middle = (low + high) // 2
        read = await read_chat(_chat_of(body, shorter(middle)), state, PATH)
        limit = read.served.max_model_len
        reply = body.max_output_tokens or min(read.served.defaults.max_tokens, limit // 4)
        low, high = (low, middle) if len(read.prompt.token_ids) + reply <= limit else (middle + 1, high)
    return shorter(min(low, len(users) - 1)) if users else found


async def _started(body: ResponseBody, found: list[Turn], state: ServerState) -> ChatRun:
    try:
        return await start_chat(_chat_of(body, found), state, PATH)
    except RequestError as error:
        raise translated(error, found) from None


def _chat_of(body: ResponseBody, found: Sequence[Turn]) -> ChatBody:
    return chat_body(body, [turn.message for turn in found])


def chat_body(body: ResponseBody, messages: list[dict[str, Any]]) -> ChatBody:
    """The chat that answers. RequestError for one of the further fields, which are the chat's own."""
    asked: dict[str, Any] = {"reasoning_format": "parsed"}  # thoughts are items of their own unless told otherwise
    asked |= {name: value for name, value in (body.model_extra or {}).items() if name not in _OWN}
    asked |= {
        "messages": messages,
        "model": body.model,
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "parallel_tool_calls": body.parallel_tool_calls,
        "user": body.user,
        **_logprobs(body),
        **_tools(body),
        **_format(body),
    }
    if body.reasoning is not None and body.reasoning.effort is not None:
        asked["reasoning_effort"] = "xhigh" if body.reasoning.effort == "max" else body.reasoning.effort
    asked = {name: value for name, value in asked.items() if value is not None}
    try:
        chat = ChatBody.model_validate(asked)
    except ValidationError as invalid:
        raise request_error_of(invalid, to_json(asked)) from None
    chat.refuse_unsupported()
    return chat


_OWN = frozenset(ResponseBody.refused)


def translated(error: RequestError, found: Sequence[Turn]) -> RequestError:
    """An error of the chat in the words of this endpoint."""
    rename = _renamer(found)
    param = error.param and rename(error.param)
    message = str(error)
    if error.param and param and message.startswith(error.param):
        message = param + message[len(error.param) :]
    message = re.sub(r"\bthe messages\b", "the input", message)
    return type(error)(message, param=param, code=error.code)


def _renamer(found: Sequence[Turn]) -> Callable[[str], str]:
    def rename(name: str) -> str:
        if (match := _MESSAGE.match(name)) is not None:
            if match[1] is None or int(match[1]) >= len(found):
                return "input"
            origin = found[int(match[1])].origin
            own = match[2] is not None and origin.startswith("input.")
            return f"{origin}.content{name[match.end() :]}" if own else origin
        for pattern, here in _NAMES:
            if (match := pattern.match(name)) is not None:
                return match.expand(here) + name[match.end() :]
        return name

    return rename


def _logprobs(body: ResponseBody) -> dict[str, Any]:
    top = top_logprobs(body)
    return {} if top is None else {"logprobs": True, "top_logprobs": top}


def top_logprobs(body: ResponseBody) -> int | None:
    """How many alternatives of each token are told; None: nothing is told of tokens."""
    if body.top_logprobs or "message.output_text.logprobs" in (body.include or ()):
        return body.top_logprobs or 0
    return None


def _tools(body: ResponseBody) -> dict[str, Any]:
    if not body.functions:
        return {}
    choice: Any = body.tool_choice
    match choice:
        case NamedFunction():
            choice = {"type": "function", "function": {"name": choice.name}}
        case AllowedTools():
            allowed = [{"type": "function", "function": {"name": tool.name}} for tool in choice.tools]
            choice = {"type": "allowed_tools", "allowed_tools": {"mode": choice.mode, "tools": allowed}}
    return {"tools": [_tool(tool) for tool in body.functions], "tool_choice": choice}


def _tool(tool: FunctionTool) -> dict[str, Any]:
    return {"type": "function", "function": _given(tool, "type")}


def _given(body: Body, *without: str) -> dict[str, Any]:
    """The fields of a part of the body that say something."""
    return body.model_dump(exclude_none=True, by_alias=True, exclude=set(without))


def _format(body: ResponseBody) -> dict[str, Any]:
    match body.text.format if body.text is not None else None:
        case JsonObject():
            return {"response_format": {"type": "json_object"}}
        case JsonSchema() as wanted:
            return {"response_format": {"type": "json_schema", "json_schema": _given(wanted, "type")}}
    return {}

"""From a body in Anthropic's words to the chat that it asks for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from fermi.errors import ContextLengthError, RequestError
from fermi.server.errors import request_error_of
from fermi.server.messages.schema import ContextManagement, MessagesBody, Prompted, Tool
from fermi.server.schema.chat import ChatBody

#: How the line begins that Claude Code puts before its system prompts.
TRACKING = "x-anthropic-billing-header:"

#: Chat's names for what Anthropic calls otherwise, in errors.
NAMES = {
    "max_completion_tokens": "max_tokens",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "reasoning_effort": "output_config.effort",
    "response_format": "output_config.format",
    "stop": "stop_sequences",
    "thinking_budget": "thinking.budget_tokens",
}

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_EFFORTS = {"max": "xhigh"}

#: Fields of a chat that this endpoint says in its own words, and those that only concern the form of a chat's reply.
_OWN = {"messages", "tools", "tool_choice", "thinking", "stream", "stream_options", "n", "logprobs", "top_logprobs"}
_OWN |= {"max_tokens", "max_completion_tokens", "stop", "user", "metadata", "reasoning_format", "response_format"}


def chat_of(body: Prompted) -> ChatBody:
    """The chat that a body asks for. RequestError naming a field that is wrong or cannot be honoured."""
    raw: dict[str, Any] = {
        "model": body.model,
        "messages": conversation(body),
        "reasoning_format": "parsed",
        **_extra(body),
        **_tools(body),
        **_thinking(body),
        **_output(body),
    }
    if isinstance(body, MessagesBody):
        raw["stop"] = body.stop_sequences
        raw |= {name: getattr(body, name) for name in ("temperature", "top_p", "top_k")}
        raw["user"] = body.metadata.user_id if body.metadata else None
    if raw["messages"][-1]["role"] == "assistant":  # its text is the beginning of the reply
        raw |= {"continue_final_message": True, "add_generation_prompt": False}
    try:
        chat = ChatBody.model_validate(raw)
    except ValidationError as invalid:
        raise renamed(request_error_of(invalid, json.dumps(raw).encode())) from None
    chat.refuse_unsupported()
    return chat


def renamed(error: RequestError) -> RequestError:
    """The same error with the field as this endpoint's clients know it."""
    if isinstance(error, ContextLengthError) and error.limit:  # the words that they look for
        message = f"prompt is too long: {error.tokens} tokens > {error.limit} maximum"
        return ContextLengthError(message, param="messages")
    head, dot, rest = (error.param or "").partition(".")
    if head not in NAMES and head != "tools":
        return error
    if head == "tools":
        param = (error.param or "").replace(".function.parameters", ".input_schema").replace(".function.", ".")
        message = str(error).replace(error.param or "", param)
        return type(error)(message, param=param, code=error.code)
    message = str(error)
    if message.startswith(head):
        message = NAMES[head] + message[len(head) :]
    return type(error)(message, param=NAMES[head] + dot + rest, code=error.code)


def conversation(body: Prompted) -> list[dict[str, Any]]:
    """The messages as chat templates know them: turns of one role joined, results of tools as messages of their own."""
    messages: list[dict[str, Any]] = []
    if body.system:
        content = _untracked(body.system if isinstance(body.system, str) else _texts(body.system, "system"))
        if content:
            messages.append({"role": "system", "content": content})
    for at, message in enumerate(body.messages):
        where = f"messages.{at}.content"
        blocks = [{"type": "text", "text": message.content}] if isinstance(message.content, str) else message.content
        for place, block in enumerate(blocks):
            _add(messages, message.role, block, f"{where}.{place}")
        if not blocks and not (message.role == "assistant" and at == len(body.messages) - 1):
            raise RequestError(f"{where} must not be empty", param=where)
    _forget_thoughts(messages, body.context_management)
    if not any(message["role"] != "system" for message in messages):
        raise RequestError("messages: nothing is said in them", param="messages")
    if messages[-1].get("tool_calls"):
        raise RequestError(
            "messages: the last tool_use has no tool_result: one must follow in a user message", param="messages"
        )
    return messages


def _untracked(system: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """A system prompt without the line that Claude Code begins it with: the hash in it is another with each request,
    so that no prompt would begin like the one before and none be found in the prefix cache."""
    if isinstance(system, str):
        return system.partition("\n")[2] if system.startswith(TRACKING) else system
    texts = [{**block, "text": _untracked(block["text"])} for block in system]
    return [block for block in texts if block["text"]]


def _add(messages: list[dict[str, Any]], role: str, block: Mapping[str, Any], where: str) -> None:
    """Put one block at the end of the conversation. RequestError for one that does not belong there."""
    kind = block.get("type")
    if kind == "text":
        _turn(messages, role)["content"].append({"type": "text", "text": _string(block, "text", where)})
    elif kind == "tool_result" and role == "user":
        content = block.get("content") or ""
        text = content if isinstance(content, str) else _joined(_texts(content, f"{where}.content"))
        if block.get("is_error"):
            text = f"Error: {text}"
        messages.append({"role": "tool", "tool_call_id": _string(block, "tool_use_id", where), "content": text})
    elif kind == "tool_use" and role == "assistant":
        arguments = block.get("input")
        if not isinstance(arguments, dict):
            raise RequestError(f"{where}.input must be an object", param=f"{where}.input")
        function = {"name": _string(block, "name", where), "arguments": json.dumps(arguments, ensure_ascii=False)}
        call = {"id": _string(block, "id", where), "type": "function", "function": function}
        _turn(messages, role).setdefault("tool_calls", []).append(call)
    elif kind == "thinking" and role == "assistant":
        turn = _turn(messages, role)
        turn["reasoning_content"] = turn.get("reasoning_content", "") + _string(block, "thinking", where)
    else:
        raise RequestError(
            f"{where}: blocks of type {kind!r} are not supported in messages of the role {role}",
            param=f"{where}.type",
            code="unsupported_parameter",
        )


def _forget_thoughts(messages: list[dict[str, Any]], wish: ContextManagement | None) -> None:
    """Leave out the thoughts of all turns but the last, where that is asked for."""
    for edit in (wish.edits if wish else None) or ():
        keep = 1 if edit.keep is None else edit.keep
        if keep == "all":
            continue
        turns = [message for message in messages if "reasoning_content" in message]
        kept = keep if isinstance(keep, int) else keep.value
        for turn in turns[: max(0, len(turns) - kept)]:
            del turn["reasoning_content"]


def _turn(messages: list[dict[str, Any]], role: str) -> dict[str, Any]:
    """The turn that a block of this role belongs to: the last message, or a new one."""
    if not messages or messages[-1]["role"] != role or not isinstance(messages[-1]["content"], list):
        messages.append({"role": role, "content": []})
    return messages[-1]


def _texts(blocks: object, where: str) -> list[dict[str, Any]]:
    """Blocks that must all be text."""
    if not isinstance(blocks, list):
        raise RequestError(f"{where} must be a string or a list of blocks", param=where)
    for at, block in enumerate(blocks):
        kind = block.get("type") if isinstance(block, dict) else type(block).__name__
        if kind != "text":
            raise RequestError(
                f"{where}.{at}: blocks of type {kind!r} are not supported here",
                param=f"{where}.{at}.type",
                code="unsupported_parameter",
            )
    return [{"type": "text", "text": _string(block, "text", f"{where}.{at}")} for at, block in enumerate(blocks)]


def _joined(parts: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(part["text"] for part in parts)


def _string(block: Mapping[str, Any], name: str, where: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise RequestError(f"{where}.{name} must be a string", param=f"{where}.{name}")
    return value


def _tools(body: Prompted) -> dict[str, Any]:
    tools = []
    for at, raw in enumerate(body.tools or ()):
        kind = raw.get("type")
        if kind not in (None, "custom"):
            raise RequestError(
                f"tools.{at}: tools of type {kind!r} are not supported by this server",
                param=f"tools.{at}.type",
                code="unsupported_parameter",
            )
        tools.append(_tool(raw, f"tools.{at}"))
    choice = body.tool_choice
    if choice is None:
        return {"tools": tools or None}
    if choice.type != "none" and not tools:
        raise RequestError("tool_choice needs tools", param="tool_choice")
    if choice.type == "tool":
        if choice.name is None:
            raise RequestError("tool_choice.name: is missing", param="tool_choice.name")
        wanted: Any = {"type": "function", "function": {"name": choice.name}}
    else:
        wanted = _CHOICES[choice.type]
    parallel = False if choice.disable_parallel_tool_use else None
    return {"tools": tools or None, "tool_choice": wanted if tools else None, "parallel_tool_calls": parallel}


def _tool(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    try:
        tool = Tool.model_validate(raw)
    except ValidationError as invalid:
        error = request_error_of(invalid, json.dumps(raw).encode())
        param = f"{where}.{error.param}" if error.param else where
        raise RequestError(f"{where}.{error}", param=param) from None
    try:
        tool.refuse_unsupported()
    except RequestError as error:
        raise RequestError(f"{where}.{error}", param=f"{where}.{error.param}", code=error.code) from None
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _thinking(body: Prompted) -> dict[str, Any]:
    wish = body.thinking
    if wish is None:
        return {}
    if wish.type == "disabled":
        return {"thinking": "off"}
    if wish.type == "adaptive":
        return {"thinking": "auto", "thinking_budget": wish.budget_tokens}
    if wish.budget_tokens is None:
        raise RequestError("thinking.budget_tokens: is missing", param="thinking.budget_tokens")
    if isinstance(body, MessagesBody) and wish.budget_tokens >= body.max_tokens:
        raise RequestError("max_tokens must be greater than thinking.budget_tokens", param="max_tokens")
    return {"thinking": "on", "thinking_budget": wish.budget_tokens}


def _output(body: Prompted) -> dict[str, Any]:
    config = body.output_config
    if config is None:
        return {}
    raw: dict[str, Any] = {}
    if config.effort is not None:
        raw["reasoning_effort"] = _EFFORTS.get(config.effort, config.effort)
    if config.format is not None:
        schema = {"name": "output", "schema": config.format.json_schema, "strict": True}
        raw["response_format"] = {"type": "json_schema", "json_schema": schema}
    return raw


def _extra(body: Prompted) -> dict[str, Any]:
    """What a body says in the words of chat completions, which Anthropic's API does not have."""
    extra = body.model_extra or {}
    known = set(ChatBody.model_fields) | set(ChatBody.refused) | {"repeat_penalty"}
    return {name: value for name, value in extra.items() if name in known - _OWN}

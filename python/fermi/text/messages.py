"""Chat messages as OpenAI's clients send them, made into what chat templates expect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fermi.errors import RequestError

__all__ = ["normalise_messages"]

_DEEPEST = 128  # templates walk through arguments by recursion; no call of a model is deeper
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


def normalise_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Copies of the messages in the form that ``ChatTemplate.render`` is written for.

    The role ``developer`` becomes ``system``; text parts become one string, a line break between each two; missing
    content, legal beside tool calls, becomes ""; arguments of tool calls become objects where they are JSON of one
    (what a model got wrong, or no template could show, stays a string, so that it cannot spoil the conversation).
    RequestError, naming the field, for a part that is not text or a message that is none.
    """
    if not isinstance(messages, (list, tuple)):
        raise RequestError("messages must be a list of objects", param="messages")
    return [_message(message, f"messages.{index}") for index, message in enumerate(messages)]


def _message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(f"{where} must be an object", param=where)
    changed = dict(message)
    if not isinstance(changed.get("role"), str):
        raise RequestError(f"{where}.role must be a string", param=f"{where}.role")
    if changed["role"] == "developer":
        changed["role"] = "system"
    calls = changed.get("tool_calls")
    if calls:
        if not isinstance(calls, (list, tuple)):
            raise RequestError(f"{where}.tool_calls must be a list", param=f"{where}.tool_calls")
        changed["tool_calls"] = [_tool_call(call, f"{where}.tool_calls.{index}") for index, call in enumerate(calls)]
    else:
        changed.pop("tool_calls", None)  # templates ask whether it is there
    changed["content"] = _content(changed.get("content"), f"{where}.content")
    return changed


def _content(content: object, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise RequestError(f"{where} must be a string or a list of parts", param=where)
    return "\n".join(_part(part, f"{where}.{index}") for index, part in enumerate(content))


def _part(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if not isinstance(part, Mapping) or not isinstance(kind, str) or kind not in _TEXT_PARTS:
        raise RequestError(f"{where}: {kind} is not supported, only text is", param=f"{where}.type")
    text = part.get(_TEXT_PARTS[kind])
    if not isinstance(text, str):
        raise RequestError(f"{where}.text must be a string", param=f"{where}.text")
    return text


def _tool_call(call: object, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise RequestError(f"{where}.function must be an object", param=f"{where}.function")
    if not isinstance(function.get("name"), str):
        raise RequestError(f"{where}.function.name must be a string", param=f"{where}.function.name")
    return {**call, "function": {**function, "arguments": _arguments(function.get("arguments"))}}


def _arguments(arguments: object) -> object:
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        return {}
    if not isinstance(arguments, str):
        return arguments
    try:
        parsed = json.loads(arguments)
        json.dumps(parsed, ensure_ascii=False).encode()  # half a character, which only an escape can write
    except (ValueError, RecursionError):
        return arguments
    return parsed if isinstance(parsed, dict) and not _deeper(parsed, _DEEPEST) else arguments


def _deeper(value: object, depth: int) -> bool:
    """Whether JSON is nested deeper than that; looks no deeper."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is not None and (depth == 0 or any(_deeper(each, depth - 1) for each in inner))

"""Conversations fitted to a chat template that cannot show all that they hold, so that nothing of them is lost."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fermi.text.abilities import Abilities
from fermi.text.tool_calls import ToolFormat

__all__ = ["fitted"]

Message = dict[str, Any]
Tool = Mapping[str, Any]

_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")
_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def fitted(
    messages: Sequence[Message], tools: Sequence[Tool], abilities: Abilities, format: ToolFormat
) -> tuple[list[Message], list[Tool]]:
    """The messages (as `normalise_messages` gives them) and the tools as a template can show them.

    What it shows by itself stays as it is. Else:

    - Tools are described in the system message, calls written into the content as ``format`` has them, results given
      in the user's words.
    - Several calls of one message become messages of one, each with its result.
    - Ids become nine letters and digits, arguments text, where the template wants that; arguments that are no JSON
      become an object that holds them, where it cannot take them.
    - System messages that are not first join the first; where there is no place for one, it goes before the first
      words of the user. Messages of the same role in a row become one, where roles must alternate.
    """
    fitted = list(messages)
    tools = list(tools)
    if tools and not abilities.tools:
        fitted.insert(0, {"role": "system", "content": _described(tools, format)})
        tools = []
        if len(fitted) > 1 and fitted[1]["role"] == "system":  # the tools behind the client's own words
            fitted[:2] = [_joined(fitted[1], fitted[0])]
    if any(message.get("tool_calls") or message["role"] == "tool" for message in fitted):
        fitted = _fit_calls(fitted, abilities, format)
    first, *later = [at for at, message in enumerate(fitted) if message["role"] == "system"] or [-1]
    if first >= 0:
        if (first > 0 or later) and not abilities.later_system:
            system = [message for message in fitted if message["role"] == "system"]
            fitted = [_joined(*system), *(message for message in fitted if message["role"] != "system")]
        if fitted[0]["role"] == "system" and not abilities.system:
            fitted = _without_system(fitted)
    if any(a["role"] == b["role"] for a, b in itertools.pairwise(fitted)) and not abilities.repeats:
        fitted = list(_alternating(fitted))
    return fitted, tools


def _fit_calls(messages: list[Message], abilities: Abilities, format: ToolFormat) -> list[Message]:
    """The messages with calls and results that the template can show."""
    if abilities.calls and not abilities.several_calls:
        messages = list(_one_by_one(messages))
    fit: list[Message] = []
    written = False  # the last message is a result in the user's words
    for message in messages:
        if message.get("tool_calls"):
            message = _with_calls(message, abilities) if abilities.calls else _calls_written(message, format)
        if message["role"] == "tool":
            if not abilities.results:
                message = {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
                if written:
                    fit[-1] = _joined(fit[-1], message, between="\n")
                    continue
                written = True
            elif abilities.short_ids:
                message = {**message, "tool_call_id": _short(message.get("tool_call_id"))}
        else:
            written = False
        fit.append(message)
    return fit


def _with_calls(message: Message, abilities: Abilities) -> Message:
    """A message whose calls have ids and arguments as the template wants them."""
    calls = []
    for call in message["tool_calls"]:
        function = dict(call["function"])
        arguments = function.get("arguments")
        if abilities.text_arguments and not isinstance(arguments, str):
            function["arguments"] = json.dumps(arguments, ensure_ascii=False)
        elif isinstance(arguments, str) and not abilities.text_arguments and not abilities.any_arguments:
            function["arguments"] = {"arguments": arguments}
        call_id = _short(call.get("id")) if abilities.short_ids else call.get("id")
        calls.append({**call, "id": call_id, "function": function})
    return {**message, "tool_calls": calls}


def _calls_written(message: Message, format: ToolFormat) -> Message:
    """A message whose calls stand in its content."""
    written = [
        format.written(call["function"].get("name", ""), call["function"].get("arguments"))
        for call in message["tool_calls"]
    ]
    content = "\n".join(filter(None, (message.get("content"), *written)))
    return {**{key: value for key, value in message.items() if key != "tool_calls"}, "content": content}


def _one_by_one(messages: list[Message]) -> Iterator[Message]:
    """Each call a message of its own, its result behind it."""
    at = 0
    while at < len(messages):
        message = messages[at]
        at += 1
        calls = message.get("tool_calls") or []
        if len(calls) < 2:
            yield message
            continue
        results = []
        while at < len(messages) and messages[at]["role"] == "tool":
            results.append(messages[at])
            at += 1
        for number, call in enumerate(calls):
            yield {**message, "content": message["content"] if number == 0 else "", "tool_calls": [call]}
            answers = [each for each in results if each.get("tool_call_id") == call.get("id")]
            yield from answers
            results = [each for each in results if each not in answers]
        yield from results


def _without_system(messages: list[Message]) -> list[Message]:
    """The system's words before the first of the user."""
    system, *rest = messages
    if rest and rest[0]["role"] == "user":
        return [{**rest[0], "content": f"{system['content']}\n\n{rest[0]['content']}"}, *rest[1:]]
    return [{"role": "user", "content": system["content"]}, *rest]


def _alternating(messages: list[Message]) -> Iterator[Message]:
    """Messages of the same role in a row as one; calls and results stay as they are."""
    last: Message | None = None
    for message in messages:
        plain = message["role"] in ("user", "assistant") and not message.get("tool_calls")
        if last is not None and plain and last["role"] == message["role"] and not last.get("tool_calls"):
            last = _joined(last, message)
            continue
        if last is not None:
            yield last
        last = message
    if last is not None:
        yield last


def _joined(*messages: Message, between: str = "\n\n") -> Message:
    """Messages as one: the first, with the content of all."""
    content = between.join(message["content"] for message in messages if message.get("content"))
    return {**messages[0], "content": content}


def _described(tools: Sequence[Tool], format: ToolFormat) -> str:
    """What a model is told of tools that its template has no place for."""
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    example = format.written("<function-name>", "<args-json-object>")
    return (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        f"You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{listed}\n</tools>\n\n"
        f"Write each function call exactly like this, with the function's name and its arguments:\n{example}"
    )


def _short(call_id: object) -> str:
    """An id as nine letters and digits, the same for the same."""
    text = call_id if isinstance(call_id, str) else ""
    if _SHORT_ID.fullmatch(text):
        return text
    number = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    letters = ""
    for _ in range(9):
        number, digit = divmod(number, len(_LETTERS))
        letters += _LETTERS[digit]
    return letters

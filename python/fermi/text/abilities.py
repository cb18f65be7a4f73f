"""What a chat template can show of a conversation, found out by rendering small ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

from fermi.errors import ChatTemplateError

__all__ = ["Abilities"]

Message = dict[str, Any]

SHORT_ID = "aB3dE6gH9"  # Mistral's templates take ids of nine letters and digits only
LONG_ID = "call_0123456789"
USER: Message = {"role": "user", "content": "probe-user"}
ANSWER: Message = {"role": "assistant", "content": "probe-answer"}
AGAIN: Message = {"role": "user", "content": "probe-again"}
TOOL = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "probe-description",
        "parameters": {
            "type": "object",
            "properties": {"probe_parameter": {"type": "string", "description": "probe"}},
            "required": ["probe_parameter"],
        },
    },
}


class Template(Protocol):
    """What is asked of a chat template: see `ChatTemplate.render`."""

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None) -> str:
        """The text of a conversation. ChatTemplateError where it refuses."""


class Abilities:
    """Each is found out when it is first asked for."""

    def __init__(self, template: Template) -> None:
        self._template = template

    @cached_property
    def system(self) -> bool:
        """It shows a system message at the beginning."""
        return self._shows([_system("probe-first"), USER], "probe-first")

    @cached_property
    def later_system(self) -> bool:
        """It shows every system message where it stands."""
        messages = [_system("probe-first"), USER, ANSWER, _system("probe-later"), AGAIN]
        shown = ("probe-first", "probe-user", "probe-answer", "probe-later", "probe-again")
        late = self._shows([USER, _system("probe-later")], "probe-user", "probe-later")
        return late and self._shows(messages, *shown)

    @cached_property
    def repeats(self) -> bool:
        """It takes messages of the same role in a row."""
        return self._shows([USER, AGAIN, ANSWER, ANSWER], "probe-user", "probe-again", "probe-answer", "probe-answer")

    @cached_property
    def tools(self) -> bool:
        """It shows tools."""
        return self._shows([USER], "probe_tool", tools=True)

    @cached_property
    def calls(self) -> bool:
        """It shows tool calls: for one way to write their ids and arguments at least."""
        return self._calls_as is not None

    @property
    def short_ids(self) -> bool:
        """Ids must be nine letters and digits."""
        return self._calls_as is not None and self._calls_as[0] == SHORT_ID

    @property
    def text_arguments(self) -> bool:
        """Arguments must be the text of JSON, not an object."""
        return self._calls_as is not None and isinstance(self._calls_as[1], str)

    @cached_property
    def any_arguments(self) -> bool:
        """Arguments may be any text, such as one that should have been JSON."""
        first = SHORT_ID if self.short_ids else LONG_ID
        messages = [USER, _calls(first, arguments='{"probe-broken'), _result(first)]
        return self._shows(messages, "probe-broken", tools=True)

    @cached_property
    def several_calls(self) -> bool:
        """It shows several calls of one message."""
        first, arguments = self._calls_as or (LONG_ID, {})
        second = first[::-1]
        both = _calls(first, arguments=arguments)
        both["tool_calls"] += _calls(second, "probe_other", arguments)["tool_calls"]
        messages = [USER, both, _result(first), _result(second)]
        return self._shows(messages, "probe_tool", "probe_other", "probe-result", "probe-result", tools=True)

    @cached_property
    def results(self) -> bool:
        """It shows what tools gave back."""
        first, arguments = self._calls_as or (LONG_ID, {})
        call = _calls(first, arguments=arguments) if self.calls else ANSWER
        return self._shows([USER, call, _result(first)], "probe-result", tools=True)

    @cached_property
    def _calls_as(self) -> tuple[str, Mapping[str, Any] | str] | None:
        """An id and arguments that it takes."""
        ways: list[tuple[str, Mapping[str, Any] | str]] = [
            (LONG_ID, {"probe_parameter": "probe-value"}),
            (SHORT_ID, {"probe_parameter": "probe-value"}),
            (LONG_ID, '{"probe_parameter": "probe-value"}'),
            (SHORT_ID, '{"probe_parameter": "probe-value"}'),
        ]
        for each in ways:
            messages = [USER, _calls(each[0], arguments=each[1]), _result(each[0])]
            if self._shows(messages, "probe_tool", "probe-value", tools=True):
                return each
        return None

    def _shows(self, messages: list[Message], *texts: str, tools: bool = False) -> bool:
        """Whether the conversation is rendered with all these texts in this order."""
        rendered = self._rendered(messages, tools=tools)
        at = max(0, rendered.find("probe-user")) if messages[1:] and tools else 0  # behind the tools themselves
        for text in texts:
            at = rendered.find(text, at) + len(text)
            if at < len(text):
                return False
        return True

    def _rendered(self, messages: list[Message], *, tools: bool) -> str:
        """The text; "" where the template refuses. One for conversations with tools only gets some."""
        for offered in ([TOOL],) if tools else (None, [TOOL]):
            try:
                return self._template.render(messages, offered)
            except ChatTemplateError:
                continue
        return ""


def _system(text: str) -> Message:
    return {"role": "system", "content": text}


def _calls(call_id: str, name: str = "probe_tool", arguments: object = None) -> Message:
    function = {"name": name, "arguments": arguments}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": call_id, "type": "function", "function": function}],
    }


def _result(call_id: str) -> Message:
    return {"role": "tool", "tool_call_id": call_id, "name": "probe_tool", "content": "probe-result"}

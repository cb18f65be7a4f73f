"""Tool calls in a reply, in the format of Hermes and Qwen: ``<tool_call>{"name": …, "arguments": …}</tool_call>``."""

from __future__ import annotations

import json
from typing import NamedTuple

from fermi.text.suffix import held_back

__all__ = ["ToolCall", "ToolCallDelta", "ToolCallParser"]


class ToolCall(NamedTuple):
    """One call; ``arguments`` is the JSON text of an object."""

    name: str
    arguments: str


class ToolCallDelta(NamedTuple):
    """A bit of content, and the calls that were completed."""

    content: str
    calls: tuple[ToolCall, ...]


class ToolCallParser:
    """Splits one reply into content and calls, the same however its text is cut.

    A call comes whole, when its block is closed. White space beside a call belongs to neither. A block that is not a
    call stays content, word for word.
    """

    def __init__(self, *, opening: str = "<tool_call>", closing: str = "</tool_call>") -> None:
        self._opening = opening
        self._closing = closing
        self._held = ""  # not yet given away: white space, a part of a tag, a block that is not closed
        self._after_call = False  # white space that comes now belongs to the call before it

    def push(self, text: str) -> ToolCallDelta:
        """What is certain now, given this text more."""
        return self._split(self._held + text, last=False)

    def finish(self) -> ToolCallDelta:
        """The rest, when the reply has ended. A last block that was not closed counts if it is complete otherwise."""
        return self._split(self._held, last=True)

    def _split(self, text: str, *, last: bool) -> ToolCallDelta:
        content: list[str] = []
        calls: list[ToolCall] = []
        while True:
            if self._after_call:
                text = text.lstrip()
                self._after_call = not text
            at = text.find(self._opening)
            if at < 0:
                break
            block, rest = self._block(text[at + len(self._opening) :], last=last)
            if block is None and rest is None:  # not closed yet
                content.append(text[:at].rstrip())
                self._held = text[len(content[-1]) :]
                return ToolCallDelta("".join(content), tuple(calls))
            if block is not None:
                content.append(text[:at].rstrip())
                calls.append(block)
                self._after_call = True
                text = rest or ""
            else:
                end = len(text) - len(rest or "")
                content.append(text[:end])
                text = text[end:]
        keep = 0 if last else self._withheld(text)
        self._held = text[len(text) - keep :]
        content.append(text[: len(text) - keep])
        return ToolCallDelta("".join(content), tuple(calls))

    def _withheld(self, text: str) -> int:
        """How many characters at the end may belong to a call: a part of the opening tag, and space before it."""
        tag = held_back(text, self._opening)
        before = text[: len(text) - tag]
        return tag + len(before) - len(before.rstrip())

    def _block(self, text: str, *, last: bool) -> tuple[ToolCall | None, str | None]:
        """The call at the beginning of what follows an opening tag, and the text after its block.

        (None, text): the block is not a call, and the text goes on there. (None, None): it is not closed yet.
        """
        at = -1
        while (at := text.find(self._closing, at + 1)) >= 0:
            try:
                return _call(json.loads(text[:at])), text[at + len(self._closing) :]
            except json.JSONDecodeError as error:
                if error.msg.startswith("Unterminated string"):  # the tag stands in a string
                    continue
                return None, text[at + len(self._closing) :]
            except (ValueError, RecursionError):
                return None, text[at + len(self._closing) :]
        if not last:
            return None, None
        try:
            return _call(json.loads(text)), ""
        except (ValueError, RecursionError):
            return None, ""


def _call(value: object) -> ToolCall:
    """ValueError if the JSON value is not a call."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        raise ValueError("a tool call is an object with a name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):  # some models quote them once more
        arguments = json.loads(arguments) if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise ValueError("the arguments of a tool call are an object")
    return ToolCall(value["name"], json.dumps(arguments, ensure_ascii=False))

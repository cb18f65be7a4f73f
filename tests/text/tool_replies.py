"""What the tests of tool calls share: tools, and a reply read in pieces."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any, NamedTuple

from fermi.text.tool_calls import FORMATS


def tool(name: str, parameters: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters or {}, **more}}


ADD = tool(
    "add",
    {
        "type": "object",
        "properties": {
            "a": {"type": "integer"},
            "s": {"type": "string"},
            "o": {"type": "object"},
            "b": {"type": "boolean"},
            "l": {"type": ["array", "null"]},
            "n": {"anyOf": [{"type": "number"}, {"type": "string"}]},
            "r": {"$ref": "#/$defs/point"},
        },
        "$defs": {"point": {"type": "object"}},
        "required": ["a"],
    },
)
TOOLS = [ADD, tool("f"), tool("get-time.now")]


class Read(NamedTuple):
    """A reply told apart: content, and (name, arguments) of each call."""

    content: str
    calls: list[tuple[str, str]]

    @property
    def values(self) -> list[tuple[str, Any]]:
        return [(name, json.loads(arguments)) for name, arguments in self.calls]


def read(family: str, *pieces: str, cut: bool = False, special: dict[str, int] | None = None) -> Read:
    """The reply that comes in these pieces."""
    parser = FORMATS[family](special).parser(TOOLS)
    content, calls = "", []
    deltas = [*map(parser.push, pieces), parser.finish(cut=cut)]
    for delta in deltas:
        content += delta.content
        for call in delta.calls:
            if call.name is not None:
                assert call.index == len(calls)
                assert call.arguments == ""
                calls.append((call.name, ""))
            else:
                assert call.arguments
                assert call.index == len(calls) - 1
                calls[-1] = (calls[-1][0], calls[-1][1] + call.arguments)
    assert parser.calls == len(calls)
    return Read(content, calls)


def split(text: str, cuts: list[int]) -> list[str]:
    """The text cut in these places."""
    ends = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    return [text[begin:end] for begin, end in pairwise(ends)]

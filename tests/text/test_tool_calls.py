"""Tool calls told from content, however the reply is cut."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fermi.text.tool_calls import ToolCall, ToolCallParser

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
ADD = ToolCall("add", '{"a": 1}')


def parse(*pieces: str) -> tuple[str, list[ToolCall]]:
    parser = ToolCallParser()
    deltas = [*map(parser.push, pieces), parser.finish()]
    return "".join(delta.content for delta in deltas), [call for delta in deltas for call in delta.calls]


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("", "", []),
        ("Hello. ", "Hello. ", []),
        (CALL, "", [ADD]),
        (f"Let me see.\n\n{CALL}\n", "Let me see.", [ADD]),
        (f"{CALL}\n{CALL} so", "so", [ADD, ADD]),
        (f"a {CALL} b {CALL}", "ab", [ADD, ADD]),
        (CALL.removesuffix("</tool_call>"), "", [ADD]),
        ('<tool_call>{"name": "f"}</tool_call>', "", [ToolCall("f", "{}")]),
        ('<tool_call>{"name": "f", "parameters": {"x": "é"}}</tool_call>', "", [ToolCall("f", '{"x": "é"}')]),
        ('<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>', "", [ToolCall("f", '{"x": 1}')]),
        (
            '<tool_call>{"name": "f", "arguments": {"x": "</tool_call>"}}</tool_call>!',
            "!",
            [ToolCall("f", '{"x": "</tool_call>"}')],
        ),
    ],
)
def test_calls(text: str, content: str, calls: list[ToolCall]) -> None:
    assert parse(text) == (content, calls)
    assert parse(*text) == (content, calls)


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "a < b <tool_cal",
        "<tool_call>{",
        "x\n<tool_call>nonsense</tool_call>\ny",
        "<tool_call>[]</tool_call>",
        '<tool_call>{"name": 3}</tool_call>',
        '<tool_call>{"name": ""}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "x"}</tool_call>',
        "<tool_call>" + "[" * 100_000 + "</tool_call>",
        "</tool_call> ",
    ],
    ids=range(11),
)
def test_what_is_no_call_stays_word_for_word(text: str) -> None:
    assert parse(text) == (text, [])
    if len(text) < 1000:
        assert parse(*text) == (text, [])


def test_a_call_comes_when_it_is_closed() -> None:
    parser = ToolCallParser()
    assert parser.push("Yes. ").content == "Yes."
    assert parser.push(CALL[:-1]) == ("", ())
    assert parser.push(">") == ("", (ADD,))


pieces = st.lists(
    st.sampled_from(
        [CALL, "<tool_call>", "</tool_call>", '{"name": "f", "arguments": {}}', " ", "\n", "a", "<", "é🎉", '"']
    )
    | st.text(max_size=4),
    max_size=8,
)


@given(pieces=pieces, cuts=st.lists(st.integers(0, 200), max_size=8))
def test_any_split_gives_the_same(pieces: list[str], cuts: list[int]) -> None:
    text = "".join(pieces)
    ends = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    parts = [text[begin:end] for begin, end in pairwise(ends)]
    whole = parse(text)
    assert parse(*parts) == whole
    assert parse(*text) == whole
    for call in whole[1]:
        assert isinstance(json.loads(call.arguments), dict)

"""What clients send becomes what templates expect."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from fermi.errors import RequestError
from fermi.text.chat import ChatTemplate, normalise_messages

NESTED = '{"a":' * 500 + "1" + "}" * 500
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


def only(message: dict[str, Any]) -> dict[str, Any]:
    (changed,) = normalise_messages([message])
    return changed


def call_with(arguments: object) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"id": "x", "function": {"name": "f", "arguments": arguments}}]}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ('{"a": {"b": [1]}}', {"a": {"b": [1]}}),
        ({"a": 1}, {"a": 1}),
        ("", {}),
        (" \n", {}),
        (None, {}),
        ('{"a": ', '{"a": '),  # what a model got wrong must not spoil the conversation
        ("[1]", "[1]"),
        ("[" * 100_000, "[" * 100_000),
        (NESTED, NESTED),
        ('{"a": "\\ud800"}', '{"a": "\\ud800"}'),
        ('{"a": "\\ud83d\\ude00"}', {"a": "\U0001f600"}),
    ],
)
def test_arguments_become_objects(given: object, expected: object) -> None:
    changed = only(call_with(given))
    assert changed["tool_calls"][0]["function"] == {"name": "f", "arguments": expected}
    assert changed["tool_calls"][0]["id"] == "x"


def test_null_content_beside_tool_calls(shared: Any) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
    ]
    result = {"role": "tool", "tool_call_id": "call_1", "content": "2"}
    for name in ("Qwen-Qwen3-0.6B", "Qwen-Qwen2.5-7B-Instruct", "meta-llama-Llama-3.2-3B-Instruct"):
        template = ChatTemplate((shared / "chat_templates" / f"{name}.jinja").read_text("utf-8"), bos_token="")
        text = template.render(normalise_messages([*messages, result]))
        assert '{"a": 1}' in text
        assert "None" not in text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text", "text"),
        (None, ""),
        ([], ""),
        ([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}], "one\ntwo"),
        ([{"type": "input_text", "text": "in"}, "plain", {"type": "refusal", "refusal": "no"}], "in\nplain\nno"),
    ],
)
def test_content_becomes_one_string(content: object, expected: str) -> None:
    assert only({"role": "user", "content": content}) == {"role": "user", "content": expected}


def test_developers_are_the_system() -> None:
    assert only({"role": "developer", "content": "x", "name": "n"}) == {"role": "system", "content": "x", "name": "n"}


def test_empty_tool_calls_are_none() -> None:
    assert only({"role": "assistant", "content": "x", "tool_calls": []}) == {"role": "assistant", "content": "x"}
    assert only({"role": "assistant", "content": "x", "tool_calls": None}) == {"role": "assistant", "content": "x"}


def test_what_was_given_stays_as_it_is() -> None:
    messages: list[dict[str, Any]] = [{"role": "developer", "content": ["a"], "tool_calls": [CALL]}]
    before = copy.deepcopy(messages)
    normalise_messages(messages)
    assert messages == before


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ("text", "messages"),
        (["text"], "messages.0"),
        ([{"content": "x"}], "messages.0.role"),
        ([{"role": 1}], "messages.0.role"),
        ([{"role": "user", "content": 1}], "messages.0.content"),
        ([{"role": "user", "content": [1]}], "messages.0.content.0.type"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages.0.content.0.type"),
        ([{"role": "user", "content": [{"type": ["text"], "text": "x"}]}], "messages.0.content.0.type"),
        ([{"role": "user", "content": [{"type": "text", "text": 1}]}], "messages.0.content.0.text"),
        ([{"role": "user"}, {"role": "assistant", "tool_calls": 1}], "messages.1.tool_calls"),
        ([{"role": "assistant", "tool_calls": [1]}], "messages.0.tool_calls.0.function"),
        ([{"role": "assistant", "tool_calls": [{"function": "f"}]}], "messages.0.tool_calls.0.function"),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], "messages.0.tool_calls.0.function.name"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages.0.content.0.type"),
    ],
)
def test_what_is_wrong_is_named(messages: Any, param: str) -> None:
    with pytest.raises(RequestError) as refusal:
        normalise_messages(messages)
    assert refusal.value.param == param

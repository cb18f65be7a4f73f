"""Chat templates render byte for byte as Transformers' apply_chat_template does."""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models

from fermi.errors import ChatTemplateError
from fermi.text.chat import ChatTemplate

transformers = pytest.importorskip("transformers")
chat_template_utils = pytest.importorskip("transformers.utils.chat_template_utils")

NOON = datetime(2026, 7, 4, 12, 30, 15)
TEMPLATES = [
    "HuggingFaceTB-SmolLM3-3B",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "Qwen-Qwen2.5-7B-Instruct",
    "Qwen-Qwen3-0.6B",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
    "google-gemma-2-2b-it",
    "meta-llama-Llama-3.2-3B-Instruct",
    "microsoft-Phi-3.5-mini-instruct",
    "mistralai-Mistral-Nemo-Instruct-2407",
]

SYSTEM = {"role": "system", "content": "  Be brief & kind. 你好 <b>\n"}
ASK = {"role": "user", "content": "What is 2 + 2?\n\tUse \"quotes\" & 'ticks' — naïve 🎉 "}
ANSWER = {"role": "assistant", "content": "\n4, of course. </s>"}
THOUGHT = {"role": "assistant", "content": "<think>\nhm, two\n</think>\n\n4"}
AGAIN = {"role": "user", "content": "Sure?"}
CALL: dict[str, Any] = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "abcdefghi", "type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": "zwei ü <&>"}}}
    ],
}
TWO_CALLS = {
    "role": "assistant",
    "content": "Let me see.",
    "tool_calls": [
        *CALL["tool_calls"],
        {"id": "123456789", "type": "function", "function": {"name": "now", "arguments": {}}},
    ],
}
RESULT = {"role": "tool", "name": "add", "tool_call_id": "abcdefghi", "content": '{"sum": "vier – 4"}'}
OTHER_RESULT = {"role": "tool", "name": "now", "tool_call_id": "123456789", "content": "noon"}

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [ASK],
    "system": [SYSTEM, ASK],
    "turns": [SYSTEM, ASK, ANSWER, AGAIN],
    "no system": [ASK, ANSWER, AGAIN, THOUGHT, ASK],
    "ends with answer": [ASK, THOUGHT],
    "reasoning": [ASK, {**ANSWER, "reasoning_content": "\nsecret\n"}, AGAIN],
    "reasoning alias": [ASK, {**ANSWER, "reasoning": "secret"}],
    "call": [SYSTEM, ASK, CALL],
    "call and result": [SYSTEM, ASK, CALL, RESULT],
    "call, result, answer": [ASK, CALL, RESULT, ANSWER, AGAIN],
    "two calls": [SYSTEM, ASK, TWO_CALLS, RESULT, OTHER_RESULT, ANSWER, AGAIN],
    "call with null": [ASK, {**CALL, "content": None}, RESULT],
    "string arguments": [
        ASK,
        {**CALL, "tool_calls": [{**CALL["tool_calls"][0], "function": {"name": "add", "arguments": '{"a":1}'}}]},
    ],
    "system in the middle": [ASK, SYSTEM, AGAIN],
    "two users": [ASK, AGAIN],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}],
    "odd role": [{"role": "ipython", "content": "out"}, ASK],
    "no_think": [{"role": "system", "content": "/no_think be quick"}, ASK],
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds <two> numbers & “more”",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "integer", "description": " the first "},
                    "b": {"type": ["string", "integer"], "description": "the second"},
                    "c": {"type": "object", "additionalProperties": {"type": "number"}, "description": "ü"},
                },
                "required": ["a", "b"],
            },
            "return": {"type": "number", "description": "the sum"},
        },
    },
    {
        "type": "function",
        "function": {"name": "now", "description": "Time", "parameters": {"type": "object", "properties": {}}},
    },
]

LISTS = [  # some templates cannot write down a list
    {
        "type": "function",
        "function": {
            "name": "sum",
            "description": "",
            "parameters": {
                "type": "object",
                "properties": {"all": {"type": "array", "items": {"type": "number"}, "description": "-"}},
            },
        },
    }
]

# Templates nobody ships, for what a template may do.
NASTY = {
    "macros and namespaces": """
{%- macro line(role, text='-') -%}
<{{ role|upper }}|{{ caller() if caller else text }}>
{%- endmacro -%}
{% set state = namespace(count=0, seen=[]) %}
{% for message in messages %}
    {% set state.count = state.count + 1 %}
    {{ line(message.role, message.content) }}
    {%- call line(message.role) %}{{ state.count }}{% endcall %}
{% endfor %}
{{ state.count }} {{ bos_token }}{{ eos_token }}{{ unk_token is defined }}
""",
    "loop controls": """
{% for message in messages %}
  {% if loop.index0 == 1 %}{% continue %}{% endif %}
  {% if loop.index > 3 %}{% break %}{% endif %}
    {{ loop.cycle('odd', 'even') }} {{ loop.previtem.role if loop.previtem is defined else 'first' }}
{% else %}
nothing
{% endfor %}
""",
    "date": "{{ strftime_now('%Y-%m-%d %H:%M:%S %j %B') }}{{ strftime_now('') }}",
    "json": """{{ messages|tojson }}
{{ tools|tojson(indent=2) }}{{ {'b': 1, 'a': ['é', none, true, 1.5]}|tojson(sort_keys=true, ensure_ascii=true) }}
{{ [1, {'a': 2}]|tojson(separators=(',', ':')) }}{{ messages|tojson(2) if false else '' }}""",
    "filters": """
{{- messages|map(attribute='role')|join(',') }}|{{ messages|selectattr('role', 'equalto', 'user')|list|length }}
{{- messages[0].content|trim|replace('2', 'two')|title|indent(2)|default('x') }}
{{ messages[-1]['content'].split()|reverse|first }} {{ '%s-%03d'|format('a', 7) }} {{ "{:>8}".format("é") }}
{{ messages[0]|items|list|length }} {{ dict(a=1, b=2).items()|list }} {{ dict.fromkeys(['x'], 1) }}
{{ (range(3)|list) * 2 }} {{ 2 ** 10 }} {{ 'ab' * 3 }} {{ 7 // 2 }} {{ 1 ~ 'x' }} {{ [1,2] + [3] }}
""",
    "generation": """
{% for message in messages %}
{% if message.role == 'assistant' %}
    {% generation %}
    {% set inner = 1 %}
    {{- message.content }}{{ loop.index }}
    {% endgeneration %}
{{ inner is defined }}
{% else %}
{{ message.content }}
{% endif %}
{% endfor %}
""",
    "white space": "\n{% if true %}\n  {# note #}\n\ta \n {% endif %}\n{%+ if true %} b{% endif +%}\n{{- 'c' -}}\n d\n",
    "scopes": """
{% set x = 1 %}{% for message in messages %}{% set x = x + 1 %}{{ x }}{% endfor %}{{ x }}
{% with y = 5 %}{{ y }}{% endwith %}{{ y }}{% if y is not defined %}!{% endif %}
{% set block %}caught {{ x }}{% endset %}{{ block }}{% filter upper %}{{ block }}{% endfilter %}
{{ documents }}{{ tools is none }}{{ tools is defined }}{{ add_generation_prompt }}
{{ messages is iterable }}{{ messages[0].content is string }}{{ messages[0] is mapping }}{{ messages[0].name }}
""",
    "joiner": "{% set pipe = joiner('|') %}{% for m in messages %}{{ pipe() }}{{ m.role[0] }}{% endfor %}{{ '<&>'|e }}",
    "refuses": "{% if messages|length > 1 %}{{ raise_exception('Only one message, ' ~ messages|length) }}{% endif %}ok",
    "missing": "{{ messages[0].nothing.at_all }}",
    "adds undefined": "{{ 'a' + messages[0].nothing }}",
    "documents": "{% for d in documents or [] %}{{ d.title }}: {{ d['text'] }}\n{% endfor %}{{ custom|default('-') }}",
    "thinking": "{{ messages[-1].thinking }}{{ messages[-1].reasoning_content }}{{ messages[-1].reasoning }}",
    "sandbox": "{{ messages.append({'role': 'user'}) }}",
    "sandbox escape": "{{ ''.__class__.__mro__ }}|{{ messages.__class__ }}",
    "sandbox namespace": "{% set ns = namespace(_x=1) %}{{ ns._x }}",
}


@pytest.fixture(autouse=True)
def _noon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers reads its clock in the template; it too shall say noon."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return NOON

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


@functools.cache
def their_tokenizer() -> Any:
    """Transformers' tokenizer with two special tokens, for any template."""
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Backend(models.WordLevel({"a": 0}, "a")), bos_token="<bos>", eos_token="<eos>"
    )


@functools.cache
def our_template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos_token="<bos>", eos_token="<eos>", now=lambda: NOON)


def theirs(source: str, messages: list[dict[str, Any]], **kwargs: Any) -> str:
    rendered = their_tokenizer().apply_chat_template(messages, chat_template=source, tokenize=False, **kwargs)
    assert isinstance(rendered, str)
    return rendered


def ours(source: str, messages: list[dict[str, Any]], **kwargs: Any) -> str:
    return our_template(source).render(messages, **kwargs)


def compare(source: str, messages: list[dict[str, Any]], **kwargs: Any) -> None:
    """Same text, or refused by both."""
    before = json.dumps(messages)
    try:
        expected = theirs(source, messages, **kwargs)
    except Exception:
        with pytest.raises(ChatTemplateError):
            ours(source, messages, **kwargs)
    else:
        assert ours(source, messages, **kwargs) == expected
    assert json.dumps(messages) == before


OPTIONS: list[dict[str, Any]] = [{}, {"enable_thinking": True}, {"enable_thinking": False}]


@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_of_models(shared: Path, name: str, conversation: list[dict[str, Any]]) -> None:
    source = (shared / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    for options in OPTIONS:
        for tools in (None, TOOLS, TOOLS[:1], LISTS, []):
            for prompt in (False, True):
                compare(source, conversation, tools=tools, add_generation_prompt=prompt, **options)


def test_every_template_of_a_model_renders(shared: Path) -> None:
    """Against a comparison in which both always refuse."""
    for name in TEMPLATES:
        source = (shared / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
        rendered = ours(source, [ASK, ANSWER, AGAIN], tools=TOOLS)
        assert "What is 2 + 2?" in rendered
        assert "Sure?" in rendered


@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("source", NASTY.values(), ids=NASTY)
def test_templates_nobody_ships(source: str, conversation: list[dict[str, Any]]) -> None:
    for tools in (None, TOOLS):
        compare(source, conversation, tools=tools, add_generation_prompt=True)
    documents = [{"title": "T", "text": "<x> é"}]
    compare(source, conversation, documents=documents, custom={"deep": [1, (2, 3)]}, add_generation_prompt=False)
    compare(source, conversation, bos_token="other", add_generation_prompt=True)


@pytest.mark.parametrize("name", ["Qwen-Qwen3-0.6B", "Qwen-Qwen2.5-7B-Instruct", "google-gemma-2-2b-it"])
@pytest.mark.parametrize(
    "final",
    [
        {"content": "Once upon"},
        {"content": "Once upon  "},
        {"content": ""},
        {"content": [{"type": "text", "text": "Once"}]},
        {"content": "done", "reasoning": "because "},
        {},
    ],
)
@pytest.mark.parametrize("where", [True, "content", "reasoning_content", "nothing"])
def test_continuing_the_last_message(shared: Path, name: str, final: dict[str, Any], where: bool | str) -> None:
    source = (shared / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    messages = [ASK, {"role": "assistant", **final}]
    compare(source, messages, continue_final_message=where, add_generation_prompt=False)
    compare(source, messages, continue_final_message=where, add_generation_prompt=True)


def test_continuing_parts() -> None:
    source = "{% for m in messages %}{% for part in m.content %}[{{ part.text }}]{% endfor %}{% endfor %}"
    messages = [{"role": "assistant", "content": [{"type": "text", "text": "Once "}, {"type": "image"}]}]
    compare(source, messages, continue_final_message=True, add_generation_prompt=False)
    messages = [{"role": "assistant", "content": [{"type": "image"}]}]
    compare(source, messages, continue_final_message=True, add_generation_prompt=False)


class Colour(str, enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    y: list[Colour]


class Model:
    def model_dump(self) -> dict[str, Any]:
        return {"x": (1, 2)}


def test_rich_values_become_plain() -> None:
    source = "{{ custom|tojson if not custom is string else custom }}{{ custom }}"
    for custom in (Colour.RED, Point(1, [Colour.RED]), Model(), object(), True, 2**70, 1.5, {1: None}, [[()]]):
        compare(source, [{"role": "user", "content": Colour.RED}], custom=custom, add_generation_prompt=True)

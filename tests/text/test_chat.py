"""Chat templates render byte for byte as Transformers' apply_chat_template does."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models

from fermi.errors import ChatTemplateError, CheckpointError
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


def test_named_templates() -> None:
    template = ChatTemplate({"default": "D{{ tools }}", "tool_use": "T{{ tools|length }}", "rag": "R"})
    assert template.render([ASK]) == "DNone"
    assert template.render([ASK], tools=TOOLS) == "T2"
    assert template.render([ASK], tools=[]) == "T0"
    with pytest.raises(ChatTemplateError, match="no default"):
        ChatTemplate({"rag": "R"}).render([ASK])


def test_the_plain_format() -> None:
    template = ChatTemplate.plain(bos_token="<s>")
    assert template.render([SYSTEM, ASK][1:]) == f"<s>user: {ASK['content']}\nassistant:"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert template.render(turns, add_generation_prompt=False) == "<s>user: Hi\nassistant: Hello\n"
    assert ChatTemplate.plain().render(turns[:1]) == "user: Hi\nassistant:"
    assert not template.supports_thinking


def test_templates_that_react_to_thinking(shared: Path) -> None:
    folder = shared / "chat_templates"
    reacting = {n for n in TEMPLATES if ChatTemplate((folder / f"{n}.jinja").read_text("utf-8")).supports_thinking}
    assert reacting == {
        "HuggingFaceTB-SmolLM3-3B",
        "Qwen-Qwen3-0.6B",
        "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
    }
    assert not ChatTemplate("{# enable_thinking #}{{ messages }}").supports_thinking
    assert not ChatTemplate("{% if enable_thinking %}{% endif %}").supports_thinking
    assert ChatTemplate("{{ raise_exception('no') }}{{ enable_thinking }}").supports_thinking


def test_the_templates_own_words_reach_the_caller() -> None:
    with pytest.raises(ChatTemplateError, match=r"^Only one message, 2$") as refusal:
        ours(NASTY["refuses"], [ASK, AGAIN])
    assert refusal.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{{ unclosed",
        "{% unknown %}",
        "{{ 1|nofilter }}",
        "{% generation %}",
        "{{ '" + "(" * 50,
        "{% for a in b %}" * 30 + "{% endfor %}" * 30,
        "{% break %}",
    ],
)
def test_invalid_templates_are_refused_at_load(source: str) -> None:
    with pytest.raises(CheckpointError, match="chat template 'default' is not valid"):
        ChatTemplate(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 9 ** 9 ** 9 ** 9 ** 9 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ 'a' * 10 ** 9 }}",
        "{{ 10 ** 9 * [0] }}",
        "{{ range(10 ** 6) }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ messages.clear() }}",
        "{{ ''.__class__.__base__.__subclasses__()|length }}",
        "{{ 1 / 0 }}",
        "{{ '{x.__class__.__mro__}'.format(x=1) }}",
        "{% include 'x' %}",
        "{% set ns = namespace(__class__=1) %}",
        "{% set ns = namespace() %}{% set ns.__init__ = 1 %}",
    ],
)
def test_templates_that_misbehave_only_fail(source: str) -> None:
    with pytest.raises(ChatTemplateError):
        ChatTemplate(source).render([ASK])


@given(
    st.lists(
        st.sampled_from(
            [
                *(
                    "{% for m in messages %}",
                    "{% endfor %}",
                    "{% if m %}",
                    "{% else %}",
                    "{% endif %}",
                    "{{ m.content }}",
                ),
                *(
                    "{{",
                    "}}",
                    "{%",
                    "%}",
                    "{#",
                    "#}",
                    "-",
                    "+",
                    "'",
                    "(",
                    "|tojson",
                    "set x = 1",
                    "x",
                    ".y",
                    "[0]",
                    "\n",
                ),
                *("{% break %}", "{% macro x(m) %}", "{% endmacro %}", "{% generation %}", "{% endgeneration %}", "\0"),
            ]
        ),
        max_size=12,
    )
)
@settings(max_examples=400)
def test_any_text_renders_or_is_refused(parts: list[str]) -> None:
    with contextlib.suppress(CheckpointError, ChatTemplateError):
        ChatTemplate("".join(parts)).render([ASK, ANSWER], tools=TOOLS)


@pytest.mark.parametrize(
    ("messages", "kwargs"),
    [
        ([], {}),
        ("text", {}),
        (["text"], {}),
        ([None], {}),
        ({"role": "user"}, {}),
        ([ASK], {"tools": [print]}),
        ([ASK], {"tools": ["add"]}),
        ([ASK], {"documents": ["text"]}),
    ],
)
def test_wrong_arguments_are_refused(messages: Any, kwargs: dict[str, Any]) -> None:
    with pytest.raises(ChatTemplateError) as refusal:
        ChatTemplate("{{ messages }}").render(messages, **kwargs)
    assert refusal.value.param is not None


def test_deeply_nested_messages_only_fail() -> None:
    content: Any = "x"
    for _ in range(100_000):
        content = [content]
    with pytest.raises(ChatTemplateError):
        ChatTemplate("{{ messages }}").render([{"role": "user", "content": content}])


def test_where_templates_are_found(tmp_path: Path) -> None:
    def found(configured: object = None) -> str | None:
        template = ChatTemplate.from_folder(tmp_path, configured, {"bos_token": "<s>"})
        return None if template is None else template.render([ASK], tools=TOOLS)

    assert found() is None
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "old"}), encoding="utf-8")
    assert found() == "old"
    assert found("{{ bos_token }}configured") == "<s>configured"
    assert found([{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]) == "t"
    (tmp_path / "chat_template.jinja").write_text("file é", encoding="utf-8")
    assert found("configured") == "file é"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("for tools", encoding="utf-8")
    assert found("configured") == "for tools"


@pytest.mark.parametrize(
    "configured", ["{% for %}", 7, [], {}, [{"name": "default"}], ["text"], [{"name": "default", "template": 3}]]
)
def test_a_bad_template_names_its_file(tmp_path: Path, configured: object) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: .*chat template"):
        ChatTemplate.from_folder(tmp_path, configured, {})


def test_an_unreadable_template_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja"):
        ChatTemplate.from_folder(tmp_path, None, {})


def test_rendering_is_safe_between_threads(run_in_threads: Callable[[Callable[[int], None]], None]) -> None:
    template = ChatTemplate("{% generation %}{% for m in messages %}{{ m.content }}{% endfor %}{% endgeneration %}")

    def render(number: int) -> None:
        messages = [{"role": "user", "content": str(number)}] * 20
        for _ in range(50):
            assert template.render(messages) == str(number) * 20

    run_in_threads(render)

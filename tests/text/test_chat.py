"""Chat templates of every origin: where they are found, how they fail, what they never do."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fermi.errors import ChatTemplateError, CheckpointError
from fermi.text.chat import ChatTemplate
from fermi.text.tokenizer import Tokenizer

ASK = {"role": "user", "content": "What is 2 + 2?"}
ANSWER = {"role": "assistant", "content": "4, of course."}
TOOL = {"type": "function", "function": {"name": "now", "description": "Time", "parameters": {"type": "object"}}}
REFUSES = "{% if messages|length > 1 %}{{ raise_exception('Only one message, ' ~ messages|length) }}{% endif %}ok"


def test_named_templates() -> None:
    template = ChatTemplate({"default": "D{{ tools }}", "tool_use": "T{{ tools|length }}", "rag": "R"})
    assert template.render([ASK]) == "DNone"
    assert template.render([ASK], tools=[TOOL, TOOL]) == "T2"
    assert template.render([ASK], tools=[]) == "T0"
    with pytest.raises(ChatTemplateError, match="no default"):
        ChatTemplate({"rag": "R"}).render([ASK])


def test_the_plain_format() -> None:
    template = ChatTemplate.plain(bos_token="<s>")
    assert template.render([ASK]) == f"<s>user: {ASK['content']}\nassistant:"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert template.render(turns, add_generation_prompt=False) == "<s>user: Hi\nassistant: Hello\n"
    assert ChatTemplate.plain().render(turns[:1]) == "user: Hi\nassistant:"
    assert not template.supports_thinking


CONVERSATIONAL = {"model_type": "gpt2", "task_specific_params": {"conversational": {"max_length": 1000}}}
END = {"eos_token": "<eos>"}


def test_dialogpt_joins_turns_by_eos(checkpoint: Callable[..., Path], backends: Any) -> None:
    backend = backends["byte_level"]()

    def template(tokenizer: dict[str, Any] | None = None, model: dict[str, Any] | None = None) -> ChatTemplate:
        folder = checkpoint(
            backend,
            tokenizer_config={"tokenizer_class": "GPT2Tokenizer", **END, **(tokenizer or {})},
            config={**CONVERSATIONAL, **(model or {})},
        )
        return Tokenizer.from_folder(folder).chat_template

    chat = [{"role": "user", "content": "Hi"}, ANSWER, ASK]
    assert template().render(chat) == f"Hi<eos>{ANSWER['content']}<eos>{ASK['content']}<eos>"
    assert template({"tokenizer_class": "GPT2TokenizerFast"}).render(chat[:1]) == "Hi<eos>"
    assert template({"chat_template": "{{ messages|length }}"}).render(chat) == "3"
    plain = ChatTemplate.plain().render(chat[:1])
    assert template(model={"task_specific_params": {"text-generation": {}}}).render(chat[:1]) == plain
    assert template(model={"task_specific_params": None}).render(chat[:1]) == plain
    assert template(model={"model_type": "gpt_neox"}).render(chat[:1]) == plain
    assert template({"tokenizer_class": "LlamaTokenizer"}).render(chat[:1]) == plain
    assert template({"eos_token": None}).render(chat[:1]) == plain


def test_templates_that_react_to_thinking(shared: Path) -> None:
    files = (shared / "chat_templates").glob("*.jinja")
    reacting = {file.stem for file in files if ChatTemplate(file.read_text("utf-8")).supports_thinking}
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
        ChatTemplate(REFUSES).render([ASK, ANSWER])
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
        ChatTemplate("".join(parts)).render([ASK, ANSWER], tools=[TOOL, TOOL])


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
        ([ASK], {"tools": 3}),
        ([ASK], {"tools": ASK}),
        ([ASK], {"documents": 3}),
        ([ASK], {"self": 1}),
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
        return None if template is None else template.render([ASK], tools=[TOOL, TOOL])

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

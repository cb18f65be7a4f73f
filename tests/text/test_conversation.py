"""Conversations fitted to templates that cannot show all of them: nothing is lost, and what fits stays as it is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from fermi.errors import ChatTemplateError
from fermi.text.chat import ChatTemplate, normalise_messages
from fermi.text.conversation import fitted
from fermi.text.tool_calls import FORMATS, tool_format
from text.tool_replies import tool

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
CITY = {"type": "object", "properties": {"city": {"type": "string", "description": "c"}}, "required": ["city"]}
WEATHER = tool("get_weather", CITY, description="The weather.")

ASK = {"role": "user", "content": "Weather?"}
SYSTEM = {"role": "system", "content": "Be brief."}


def call(number: int, arguments: str) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": arguments}
    return {"id": f"call_{number}", "type": "function", "function": function}


def calls(*arguments: str) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [call(number, each) for number, each in enumerate(arguments)],
    }


def result(number: int, text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call_{number}", "content": text}


TALK = [
    SYSTEM,
    ASK,
    calls('{"city": "Rome"}', '{"city": "Oslo"}'),
    result(0, "sunny"),
    result(1, "rainy"),
    {"role": "assistant", "content": "Sunny and rainy."},
]


def shown(template: ChatTemplate, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
    """The text of a conversation, fitted."""
    before = copy.deepcopy(messages)
    chat, offered = fitted(
        normalise_messages(messages), tools or [], template.abilities, tool_format(template.tool_source)
    )
    assert messages == before
    return template.render(chat, offered or None)


@pytest.fixture(params=TEMPLATES)
def real(request: pytest.FixtureRequest, shared: Path) -> ChatTemplate:
    source = (shared / "chat_templates" / f"{request.param}.jinja").read_text("utf-8")
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>")


class TestRealTemplates:
    def test_tools_calls_and_results(self, real: ChatTemplate) -> None:
        text = shown(real, [*TALK, {"role": "user", "content": "Again?"}], [WEATHER])
        assert "get_weather" in text
        assert "Be brief." in text
        at = text.index("Weather?")
        if "[AVAILABLE_TOOLS]" not in text:  # Mistral puts them and the system's words at the end
            assert text.index('"city"') < text.index("Rome")
        after = text[at:]
        places = [after.index(each) for each in ("Weather?", "Rome", "sunny", "rainy", "Sunny and rainy.", "Again?")]
        assert places == sorted(places)
        assert "Oslo" in after
        assert "None" not in text

    def test_what_a_model_got_wrong_does_not_spoil_the_conversation(self, real: ChatTemplate) -> None:
        answer = {"role": "assistant", "content": "Sorry."}
        text = shown(real, [ASK, calls('{"city": "Ro'), result(0, "error"), answer, ASK], [WEATHER])
        assert "Ro" in text[text.index("Weather?") :]
        assert "error" in text

    def test_system_messages_anywhere(self, real: ChatTemplate) -> None:
        answer = {"role": "assistant", "content": "Sunny."}
        later = {"role": "system", "content": "Now in French."}
        again = {"role": "user", "content": "Again?"}
        for messages in ([ASK, later], [SYSTEM, ASK, answer, later, again], [SYSTEM, later, ASK], [ASK, later, again]):
            text = shown(real, messages, [WEATHER])
            assert all(message["content"] in text for message in messages), text

    def test_the_same_role_in_a_row(self, real: ChatTemplate) -> None:
        again = {"role": "user", "content": "Please."}
        answers = [{"role": "assistant", "content": "It is"}, {"role": "assistant", "content": "sunny."}]
        text = shown(real, [ASK, again, *answers, again], [WEATHER])
        assert all(each in text for each in ("Weather?", "Please.", "It is", "sunny."))

    def test_an_ordinary_conversation_stays_as_it_is(self, real: ChatTemplate) -> None:
        messages = normalise_messages([ASK, {"role": "assistant", "content": "Sunny."}, ASK])
        format = tool_format(real.tool_source)
        assert fitted(messages, [], real.abilities, format) == (messages, [])


def test_templates_that_can_show_all_get_all_as_it_is(shared: Path) -> None:
    for name in ("Qwen-Qwen3-0.6B", "Qwen-Qwen2.5-7B-Instruct"):
        template = ChatTemplate((shared / "chat_templates" / f"{name}.jinja").read_text("utf-8"))
        messages = normalise_messages([*TALK, {"role": "system", "content": "later"}, ASK, ASK])
        assert fitted(messages, [WEATHER], template.abilities, FORMATS["hermes"]()) == (messages, [WEATHER])


EACH = "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
CALLS = "{% for c in m.tool_calls or [] %}{{ c.id }}:{{ c.function.name }}"


def test_ids_of_nine_letters() -> None:
    template = ChatTemplate(
        EACH
        + CALLS
        + "{{ c.function.arguments | tojson }}{% if c.id | length != 9 %}{{ raise_exception('nine!') }}{% endif %}"
        "{% endfor %}{{ m.tool_call_id }}{% endfor %}{{ tools }}"
    )
    text = shown(template, [ASK, calls("{}", "{}"), result(0, "r"), result(1, "s")])
    first, second = (part.split(":")[0] for part in text.split("[assistant]")[1].split("get_weather{}")[:2])
    assert len(first) == len(second) == 9
    assert first != second
    assert f"[tool]r{first}[tool]s{second}" in text


def test_arguments_as_text() -> None:
    template = ChatTemplate(EACH + CALLS + "{{ '' + c.function.arguments }}{% endfor %}{% endfor %}")
    assert 'get_weather{"city": "Rome"}' in shown(template, [ASK, calls('{"city": "Rome"}')])
    assert 'get_weather{"city": ' in shown(template, [ASK, calls('{"city": ')])


def test_arguments_as_an_object_only() -> None:
    inner = "{% for key, value in c.function.arguments | items %}<{{ key }}={{ value }}>{% endfor %}"
    template = ChatTemplate(EACH + CALLS + inner + "{% endfor %}{% endfor %}")
    assert "get_weather<city=Rome>" in shown(template, [ASK, calls('{"city": "Rome"}')])
    assert 'get_weather<arguments={"city": >' in shown(template, [ASK, calls('{"city": ')])


def test_one_call_at_a_time() -> None:
    one = "{% if m.tool_calls and m.tool_calls | length > 1 %}{{ raise_exception('one!') }}{% endif %}"
    template = ChatTemplate(EACH + one + CALLS + "{{ c.function.arguments }}{% endfor %}{% endfor %}")
    two = {**calls('{"city": "Rome"}', '{"city": "Oslo"}'), "content": "Let me see."}
    text = shown(template, [ASK, two, result(1, "rainy"), result(0, "sunny"), result(7, "stray")])
    places = [text.index(each) for each in ("Let me see.", "Rome", "sunny", "Oslo", "rainy", "stray")]
    assert places == sorted(places)
    assert text.count("Let me see.") == 1


def test_no_place_for_the_system() -> None:
    template = ChatTemplate("{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}")
    assert shown(template, [SYSTEM, ASK]) == "[user]Be brief.\n\nWeather?"
    assert shown(template, [SYSTEM, {"role": "assistant", "content": "Hi"}]) == "[user]Be brief.[assistant]Hi"


def test_tools_by_the_name_that_the_template_has_for_them() -> None:
    template = ChatTemplate("{% for t in xml_tools or [] %}<{{ t.function.name }}>{% endfor %}" + EACH + "{% endfor %}")
    assert shown(template, [ASK], [WEATHER]) == "<get_weather>[user]Weather?"


def test_tools_go_behind_the_words_of_the_system() -> None:
    template = ChatTemplate("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}")
    text = shown(template, [SYSTEM, ASK], [WEATHER])
    assert text.startswith("[system]Be brief.\n\n# Tools")
    assert '<tool_call>\n{"name": "<function-name>", "arguments": <args-json-object>}\n</tool_call>[user]' in text


def test_what_a_template_refuses_stays_refused() -> None:
    template = ChatTemplate("{{ raise_exception('never') }}")
    with pytest.raises(ChatTemplateError, match="never"):
        shown(template, [SYSTEM, ASK, ASK], [WEATHER])


@pytest.mark.parametrize("family", FORMATS)
def test_calls_are_written_as_they_are_read(family: str) -> None:
    """What a model is shown of its calls is what its parser understands."""
    format = FORMATS[family]()
    parser = format.parser([WEATHER])
    deltas = [parser.push(format.written("get_weather", {"city": "Rome"})), parser.finish()]
    assert [piece.name for delta in deltas for piece in delta.calls if piece.name] == ["get_weather"]
    arguments = "".join(piece.arguments for delta in deltas for piece in delta.calls)
    assert arguments == '{"city": "Rome"}'
    assert "".join(delta.content for delta in deltas) == ""
    assert "<args" in format.written("<function-name>", "<args-json-object>")

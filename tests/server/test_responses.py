"""POST /v1/responses: what a request may say, what the model is shown of it, and what comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from fermi.config import load_settings
from fermi.defaults import Defaults
from fermi.server.loading import load_served
from fermi.server.responses.schema import ResponseBody
from fermi.server.schema.chat import ChatBody
from fermi.server.served import ServedModel
from server.responses_oracle import check_response, events_of, rebuilt
from server.running import Running, Serve, serving
from server.toy import service_of, settings_with, toy_model

PATH = "/v1/responses"
CALCULATOR = {
    "type": "function",
    "name": "calculator",
    "description": "Computes.",
    "parameters": {"type": "object", "properties": {"e": {"type": "string", "default": None}}},
}
OTHER = {"type": "function", "name": "other", "parameters": {"type": "object"}}
CALL = '<tool_call>\n{"name": "calculator", "arguments": {"e": "2*3"}}\n</tool_call>'


def ask(server: Running, **body: object) -> dict[str, Any]:
    """The response, held against the openai package's types."""
    with server.http() as http:
        reply = http.post(PATH, json={"input": "Hi", **body})
    assert reply.status_code == 200, reply.text
    document: dict[str, Any] = reply.json()
    check_response(document)
    return document


def refused(server: Running, **body: object) -> dict[str, Any]:
    """The error of a request that is refused with 400; a stream is refused just so."""
    with server.http() as http:
        replies = [http.post(PATH, json={"input": "Hi", **body, **more}) for more in ({}, {"stream": True})]
    assert [reply.status_code for reply in replies] == [400, 400], replies[0].text
    error: dict[str, Any] = replies[0].json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    if "stream" not in body:
        assert replies[1].json() == replies[0].json()
    return error


def prompt_of(model: ServedModel) -> str:
    return service_of(model).prompt(service_of(model).last)


def test_whole(toy_server: Running) -> None:
    response = toy_server.openai().responses.create(model="toy", input="Hi")
    assert (response.status, response.output_text, response.model) == ("completed", "Hello, world.", "toy")
    assert response.usage is not None
    assert response.usage.output_tokens == len("Hello, world.") + 1
    assert response.usage.input_tokens_details.cached_tokens == 3
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens


def test_what_was_asked_is_told_back(serve: Serve) -> None:
    body = {
        "instructions": "Be brief.",
        "metadata": {"job": "7"},
        "user": "me",
        "safety_identifier": "abc",
        "prompt_cache_key": "key",
        "temperature": 0.5,
        "top_p": 0.9,
        "max_output_tokens": 50,
        "max_tool_calls": 3,
        "tools": [CALCULATOR],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "truncation": "auto",
        "service_tier": "auto",
        "store": False,
    }
    response = ask(serve(toy_model()), **body)
    told = {name: response[name] for name in body}
    assert told == {**body, "service_tier": "default", "tools": [{**CALCULATOR, "strict": False}]}
    assert response["background"] is False
    assert response["performance"]["prefill_ms"] == 2.0


def test_user_is_left_out_where_it_is_not_given(toy_server: Running) -> None:
    assert "user" not in ask(toy_server)


@pytest.mark.parametrize(
    ("given", "instructions", "prompt"),
    [
        ("Hi", None, "[user]Hi[assistant]"),
        ("Hi", "Be brief.", "[system]Be brief.[user]Hi[assistant]"),
        ([{"role": "user", "content": "Hi"}], None, "[user]Hi[assistant]"),
        (
            [
                {"role": "developer", "content": "Be kind."},
                {"role": "system", "content": [{"type": "input_text", "text": "Be quick."}]},
                {"role": "user", "content": [{"type": "input_text", "text": "A"}, {"type": "input_text", "text": "B"}]},
            ],
            "Be brief.",
            "[system]Be brief.\n\nBe kind.\n\nBe quick.[user]A\nB[assistant]",
        ),
        (
            [
                {"type": "message", "role": "user", "content": "2*3?"},
                {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
                {"role": "assistant", "content": [{"type": "output_text", "text": "I ask.", "annotations": []}]},
                {"type": "function_call", "call_id": "c1", "name": "calculator", "arguments": '{"e": "2*3"}'},
                {"type": "function_call", "call_id": "c2", "name": "other", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "6"},
                {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "ok"}]},
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
                {"role": "user", "content": "Why?"},
            ],
            None,
            (
                '[user]2*3?[assistant]I ask.<tool_call>{"name": "calculator", "arguments": {"e": "2*3"}}</tool_call>'
                '<tool_call>{"name": "other", "arguments": {}}</tool_call>[tool]6[tool]ok[assistant]No.'
                "[user]Why?[assistant]"
            ),
        ),
    ],
)
def test_what_the_model_is_shown(serve: Serve, given: object, instructions: str | None, prompt: str) -> None:
    model = toy_model()
    ask(serve(model), input=given, instructions=instructions)
    assert prompt_of(model).startswith(f"<s>{prompt}")


THINKER = """\
{%- for message in messages %}[{{ message.role }}]
{%- if message.reasoning_content %}({{ message.reasoning_content }}){% endif %}{{ message.content }}
{%- endfor %}{{ '[assistant]' }}{% if not enable_thinking %}<think>\n\n</think>{% endif %}"""


@pytest.mark.parametrize(
    ("context", "prompt"),
    [
        ("auto", "[user]A[assistant](Hm.)B[user]C[assistant]"),
        ("current_turn", "[user]A[assistant]B[user]C[assistant]"),
    ],
)
def test_thoughts_go_back(serve: Serve, context: str, prompt: str) -> None:
    model = toy_model(template=THINKER)
    items = [
        {"role": "user", "content": "A"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": "C"},
    ]
    ask(serve(model), input=items, reasoning={"context": context, "effort": "low"})
    assert prompt_of(model) == prompt


def test_sampling_reaches_the_engine(serve: Serve) -> None:
    model = toy_model()
    extras = {"seed": 7, "top_k": 5, "min_p": 0.05, "repeat_penalty": 1.2, "presence_penalty": 0.1, "stop": ["zz"]}
    extras |= {"min_tokens": 2, "ignore_eos": True, "priority": 3, "logit_bias": {"7": -100}, "frequency_penalty": 0.2}
    ask(serve(model), temperature=0.5, top_p=0.9, max_output_tokens=50, **extras)
    request = service_of(model).last
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 5, 0.05)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.1, 0.2, 1.2)
    assert (sampling.seed, sampling.logit_bias, sampling.max_tokens) == (7, {7: -100.0}, 50)
    assert (sampling.min_tokens, sampling.ignore_eos, request.priority) == (2, True, 3)


def test_defaults_are_told(serve: Serve) -> None:
    response = ask(serve(toy_model(defaults=Defaults(temperature=0.7, top_p=0.8, max_tokens=9))))
    assert (response["temperature"], response["top_p"], response["max_output_tokens"]) == (0.7, 0.8, None)


@pytest.mark.parametrize(
    ("body", "thinks"),
    [
        ({}, False),
        ({"reasoning": {"effort": "none"}}, False),
        ({"reasoning": {"effort": "minimal"}}, True),
        ({"reasoning": {"effort": "max"}}, True),
        ({"thinking": "on"}, True),
        ({"thinking": "off", "reasoning": {"effort": "high"}}, False),
        ({"chat_template_kwargs": {"enable_thinking": True}}, True),
    ],
)
def test_thinking(serve: Serve, body: dict[str, Any], thinks: bool) -> None:
    model = toy_model("<think>\nHmm.\n</think>\n\nYes.")
    response = ask(serve(model), **body)
    assert prompt_of(model).endswith("[assistant]") is thinks
    assert [item["type"] for item in response["output"]] == ["reasoning"] * thinks + ["message"]
    assert response["output"][-1]["content"][0]["text"] == "Yes."


class TestTools:
    def test_called(self, serve: Serve) -> None:
        model = toy_model(CALL)
        response = ask(serve(model), tools=[CALCULATOR])
        [call] = response["output"]
        assert (call["type"], call["name"], json.loads(call["arguments"])) == (
            "function_call",
            "calculator",
            {"e": "2*3"},
        )
        assert response["status"] == "completed"
        shown = prompt_of(model).partition("[tools]")[2].partition("[assistant]")[0]
        [tool] = json.loads(shown)
        assert tool == {
            "type": "function",
            "function": {name: value for name, value in CALCULATOR.items() if name != "type"},
        }

    def test_a_round(self, serve: Serve) -> None:
        model = toy_model(CALL, "It is 6.")
        client = serve(model).openai()
        first = client.responses.create(model="toy", input="2*3?", tools=[CALCULATOR])  # type: ignore[list-item]
        call = first.output[0]
        assert call.type == "function_call"
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "6"}
        stored = client.responses.create(model="toy", input=[result], previous_response_id=first.id)  # type: ignore[list-item]
        by_reference = prompt_of(model)
        items = [{"role": "user", "content": "2*3?"}, *(item.model_dump() for item in first.output), result]
        client.responses.create(model="toy", input=items, store=False)  # type: ignore[arg-type]
        assert stored.output_text == "It is 6."
        assert prompt_of(model) == by_reference
        assert "[user]2*3?[assistant]<tool_call>" in by_reference
        assert "[tool]6[assistant]" in by_reference

    @pytest.mark.parametrize(
        ("choice", "offered"),
        [
            ("auto", ["calculator", "other"]),
            ("none", []),
        ],
    )
    def test_choice(self, serve: Serve, choice: object, offered: list[str]) -> None:
        model = toy_model()
        assert ask(serve(model), tools=[CALCULATOR, OTHER], tool_choice=choice)["tool_choice"] == choice
        shown = prompt_of(model).partition("[tools]")[2].partition("[assistant]")[0]
        assert [tool["function"]["name"] for tool in json.loads(shown or "[]")] == offered

    def test_auto_without_tools(self, toy_server: Running) -> None:
        assert ask(toy_server, tool_choice="auto", tools=[])["tool_choice"] == "auto"

    @pytest.mark.parametrize(
        "kind", ["web_search", "web_search_preview", "file_search", "computer", "code_interpreter", "mcp", "custom"]
    )
    def test_built_in(self, toy_server: Running, kind: str) -> None:
        error = refused(toy_server, tools=[CALCULATOR, {"type": kind, "name": "x"}])
        assert (error["param"], error["code"]) == ("tools.1.type", "unsupported_parameter")
        assert repr(kind) in error["message"]


class TestTruncation:
    ITEMS = (
        {"role": "system", "content": "S"},
        *({"role": role, "content": f"{at}{role[0] * 40}"} for at in range(6) for role in ("user", "assistant")),
        {"role": "user", "content": "last"},
    )

    def test_disabled(self, serve: Serve) -> None:
        error = refused(serve(toy_model(max_model_len=300)), input=list(self.ITEMS))
        assert (error["param"], error["code"]) == ("input", "context_length_exceeded")
        assert error["message"].startswith("This model's maximum context length is 300 tokens. However, you requested ")
        assert "messages" not in error["message"]

    def test_auto(self, serve: Serve) -> None:
        model = toy_model(max_model_len=300)
        ask(serve(model), input=list(self.ITEMS), truncation="auto", max_output_tokens=30)
        assert prompt_of(model).startswith("<s>[system]S[user]4uuu")
        assert "[user]last[assistant]" in prompt_of(model)

    def test_auto_where_even_the_last_is_too_long(self, serve: Serve) -> None:
        error = refused(serve(toy_model(max_model_len=50)), input="x" * 100, truncation="auto")
        assert error["code"] == "context_length_exceeded"


def test_logprobs_only_where_asked(serve: Serve) -> None:
    server = serve(toy_model("Yes."))

    def logprobs(**body: object) -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = ask(server, **body)["output"][0]["content"][0]["logprobs"]
        return told

    assert logprobs() == []
    assert [entry["top_logprobs"] for entry in logprobs(include=["message.output_text.logprobs"])] == [[]] * 4
    assert [len(entry["top_logprobs"]) for entry in logprobs(top_logprobs=3)] == [3] * 4


def test_input_tokens(serve: Serve) -> None:
    model = toy_model()
    server = serve(model)
    client = server.openai()
    items = [{"role": "user", "content": "Hello"}]
    counted = client.responses.input_tokens.count(model="toy", input=items, instructions="Be brief.")  # type: ignore[arg-type]
    assert counted.object == "response.input_tokens"
    assert not service_of(model).requests
    response = client.responses.create(model="toy", input=items, instructions="Be brief.")  # type: ignore[arg-type]
    assert response.usage is not None
    assert counted.input_tokens == response.usage.input_tokens


class TestRefused:
    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"input": 5}, "input"),
            ({"input": None}, "input"),
            ({"input": []}, "input"),
            ({"input": ["Hi"]}, "input.0"),
            ({"input": [{}]}, "input.0.role"),
            ({"input": [{"role": "user"}]}, "input.0.content"),
            ({"input": [{"role": "user", "content": 5}]}, "input.0.content"),
            ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role"),
            ({"input": [{"role": "user", "content": ["x"]}]}, "input.0.content.0"),
            ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input.0.content.0.text"),
            ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0.type"),
            ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input.0.content.0.type"),
            ({"input": [{"type": "web_search_call", "id": "w"}]}, "input.0.type"),
            ({"input": [{"type": 5}]}, "input.0.type"),
            ({"input": [{"type": "function_call", "name": "x", "arguments": "{}"}]}, "input.0.call_id"),
            (
                {"input": [{"type": "function_call", "call_id": "c", "name": "x", "arguments": {}}]},
                "input.0.arguments",
            ),
            ({"input": [{"type": "function_call_output", "call_id": "c", "output": "6"}]}, "input.0.call_id"),
            ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input.0.output"),
            (
                {"input": [{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image"}]}]},
                "input.0.output.0.type",
            ),
            ({"input": [{"type": "reasoning", "summary": [{"text": "x"}]}]}, "input.0.summary.0.type"),
            ({"input": [{"type": "reasoning", "encrypted_content": "gAAA"}]}, "input.0.encrypted_content"),
            ({"input": [{"type": "item_reference", "id": "msg_unknown"}]}, "input.0.id"),
            ({"input": [{"id": "msg_unknown"}]}, "input.0.id"),
            ({"model": 5}, "model"),
            ({"instructions": 5}, "instructions"),
            ({"previous_response_id": 5}, "previous_response_id"),
            ({"previous_response_id": "resp_unknown"}, "previous_response_id"),
            ({"store": "yes"}, "store"),
            ({"background": "yes"}, "background"),
            ({"stream_options": {"include_obfuscation": "yes"}}, "stream_options.include_obfuscation"),
            ({"max_output_tokens": 0}, "max_output_tokens"),
            ({"max_output_tokens": "9"}, "max_output_tokens"),
            ({"max_output_tokens": 100000}, "input"),  # beyond the context
            ({"max_tool_calls": 0}, "max_tool_calls"),
            ({"temperature": 2.5}, "temperature"),
            ({"top_p": 0}, "top_p"),
            ({"top_logprobs": 21}, "top_logprobs"),
            ({"include": "x"}, "include"),
            ({"include": ["everything"]}, "include.0"),
            ({"include": ["file_search_call.results"]}, "include.0"),
            ({"truncation": "always"}, "truncation"),
            ({"metadata": {"a": 1}}, "metadata.a"),
            ({"metadata": {str(at): "" for at in range(17)}}, "metadata"),
            ({"metadata": {"a": "x" * 513}}, "metadata.a"),
            ({"user": 5}, "user"),
            ({"safety_identifier": "x" * 65}, "safety_identifier"),
            ({"prompt_cache_key": 5}, "prompt_cache_key"),
            ({"reasoning": "high"}, "reasoning"),
            ({"reasoning": {"effort": "extreme"}}, "reasoning.effort"),
            ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
            ({"reasoning": {"generate_summary": "concise"}}, "reasoning.generate_summary"),
            ({"reasoning": {"context": "all_turns"}}, "reasoning.context"),
            ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
            ({"text": {"verbosity": "low"}}, "text.verbosity"),
            ({"text": {"format": {"type": "yaml"}}}, "text.format"),
            ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
            ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
            ({"tools": {}}, "tools"),
            ({"tools": ["x"]}, "tools.0"),
            ({"tools": [{}]}, "tools.0.type"),
            ({"tools": [{"type": "function"}]}, "tools.0.name"),
            ({"tools": [{"type": "function", "function": {"name": "x"}}]}, "tools.0.name"),
            ({"tools": [{"type": "function", "name": "x", "parameters": "{}"}]}, "tools.0.parameters"),
            ({"tools": [{"type": "function", "name": "x", "defer_loading": True}]}, "tools.0.defer_loading"),
            ({"tool_choice": "required"}, "tool_choice"),
            ({"tool_choice": "maybe"}, "tool_choice"),
            ({"tool_choice": 5}, "tool_choice"),
            ({"tool_choice": {"type": "web_search_preview"}}, "tool_choice.type"),
            ({"tools": [OTHER], "tool_choice": {"type": "function"}}, "tool_choice.name"),
            ({"tools": [OTHER], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name"),
            (
                {"tools": [OTHER], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}},
                "tool_choice.tools",
            ),
            (
                {
                    "tools": [OTHER],
                    "tool_choice": {
                        "type": "allowed_tools",
                        "mode": "auto",
                        "tools": [{"type": "function", "name": "x"}],
                    },
                },
                "tool_choice.tools.0.name",
            ),
            ({"conversation": "conv_1"}, "conversation"),
            ({"prompt": {"id": "p"}}, "prompt"),
            ({"context_management": [{"type": "compaction"}]}, "context_management"),
            ({"moderation": {"model": "m"}}, "moderation"),
            ({"service_tier": "flex"}, "service_tier"),
            ({"prompt_cache_retention": "24h"}, "prompt_cache_retention"),
            ({"prompt_cache_options": {"mode": "explicit"}}, "prompt_cache_options"),
            ({"n": 2}, "n"),
            ({"messages": []}, "messages"),
            ({"max_tokens": 5}, "max_tokens"),
            ({"response_format": {"type": "text"}}, "response_format"),
            ({"reasoning_effort": "low"}, "reasoning_effort"),
            ({"top_k": "many"}, "top_k"),
            ({"seed": 1.5}, "seed"),
            ({"stop": [""]}, "stop.0"),
            ({"timeout": -1}, "timeout"),
            ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ],
    )
    def test_by_its_name(self, toy_server: Running, body: dict[str, Any], param: str) -> None:
        error = refused(toy_server, **body)
        assert error["param"] == param
        assert error["type"] == "invalid_request_error"

    def test_malformed(self, toy_server: Running) -> None:
        with toy_server.http() as http:
            for raw in (b"", b"{", b"[]", b'"x"', b'{"input": "\xff"}', b'{"input":' + b"[" * 1000):
                reply = http.post(PATH, content=raw)
                assert (reply.status_code, set(reply.json())) == (400, {"error"})

    def test_unknown_fields_are_accepted(self, toy_server: Running) -> None:
        ask(toy_server, no_such_field={"a": 1})

    def test_model_that_is_not_served(self, toy_server: Running) -> None:
        with pytest.raises(openai.NotFoundError) as missing:
            toy_server.openai().responses.create(model="gpt-9", input="Hi")
        assert missing.value.code == "model_not_found"

    def test_template_that_refuses(self, serve: Serve) -> None:
        items = [{"role": "user", "content": "A"}, {"role": "system", "content": "B"}]
        template = "{{ raise_exception('system comes first') }}"
        error = refused(serve(toy_model(template=template)), input=items)
        assert "system comes first" in error["message"]

    def test_not_by_its_message_number(self, serve: Serve) -> None:
        """Errors of the chat name the item that the client sent, not the message that it became."""
        server = serve(toy_model(), settings=settings_with(default_system_prompt="Be kind."))
        items = [{"role": "user", "content": "A"}, {"role": "user", "content": [{"type": "input_audio"}]}]
        assert refused(server, instructions="Be brief.", input=items)["param"] == "input.1.content.0.type"


LEAVES = st.none() | st.booleans() | st.integers(-5, 70000) | st.floats(allow_nan=False, allow_infinity=False)
WORDS = st.sampled_from(["", "auto", "message", "function", "function_call", "reasoning", "user", "json_schema", "x"])
KEYS = st.sampled_from(["type", "role", "content", "id", "call_id", "output", "name", "schema", "format", "arguments"])
KEYS |= st.sampled_from(["summary", "parameters", "effort", "text", "tools", "mode", "encrypted_content", "status"])
VALUES = st.recursive(
    LEAVES | WORDS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=8
)
FIELDS = sorted({*ResponseBody.model_fields, *ResponseBody.refused, *ChatBody.model_fields, *ChatBody.refused})


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1, max_size=3), items=st.just("Hi") | VALUES)
def test_any_json_gets_an_answer(toy_server: Running, body: dict[str, Any], items: object) -> None:
    with toy_server.http() as http:
        reply = http.post(PATH, json={"input": items, **body})
    if reply.status_code == 200:
        for event in events_of(reply) if body.get("stream") else ():
            assert event
        if not body.get("stream"):
            check_response(reply.json())
        return
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (reply.status_code, error["code"]) == (404, "model_not_found") or reply.status_code == 400


class Answer(BaseModel):
    """What the demo model shall fill in."""

    word: Literal["yes", "no"]
    number: int


class TestDemoModel:
    """The embedded model behind the real engine."""

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[Running]:
        flags = {"model.id": "demo", "engine.threads": 1, "cache.kv_cache_memory": "16MiB"}
        settings = load_settings(flags, environ={}, folder=Path("/nonexistent"))
        with serving(load_served("demo", settings)) as running:
            yield running

    def test_follow_up(self, server: Running) -> None:
        client = server.openai()
        first = client.responses.create(model="demo", input="What is 3 + 4?", temperature=0)
        assert "7" in first.output_text
        second = client.responses.create(
            model="demo", input="What is 5 + 4?", temperature=0, previous_response_id=first.id
        )
        assert second.usage is not None
        assert second.usage.input_tokens_details.cached_tokens > 0  # the conversation so far

    def test_parse(self, server: Running) -> None:
        client = server.openai()
        parsed = client.responses.parse(model="demo", input="What is 3 + 4?", text_format=Answer)
        assert isinstance(parsed.output_parsed, Answer)
        assert parsed.text is not None
        assert parsed.text.format is not None
        assert parsed.text.format.type == "json_schema"
        with client.responses.stream(model="demo", input="What is 3 + 4?", text_format=Answer) as stream:
            assert isinstance(stream.get_final_response().output_parsed, Answer)

    async def test_parse_async(self, server: Running) -> None:
        async with server.async_openai() as client:
            parsed = await client.responses.parse(model="demo", input="What is 3 + 4?", text_format=Answer)
            assert isinstance(parsed.output_parsed, Answer)

    def test_json_object(self, server: Running) -> None:
        response = ask(server, input="What is 3 + 4?", text={"format": {"type": "json_object"}}, max_output_tokens=200)
        if response["status"] == "completed":
            assert isinstance(json.loads(response["output"][0]["content"][0]["text"]), dict)

    @pytest.mark.parametrize(
        ("choice", "names", "fewest"),
        [
            ("required", {"calculator", "other"}, 1),
            ({"type": "function", "name": "other"}, {"other"}, 1),
            (
                {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "other"}]},
                {"other"},
                1,
            ),
            (
                {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "other"}]},
                {"other"},
                0,
            ),
        ],
    )
    def test_choice_of_tools(self, server: Running, choice: object, names: set[str], fewest: int) -> None:
        empty = {"type": "object", "properties": {}, "additionalProperties": False}
        tools = [{**tool, "parameters": empty, "strict": True} for tool in (CALCULATOR, OTHER)]
        response = ask(server, tools=tools, tool_choice=choice, parallel_tool_calls=False, max_output_tokens=100)
        called = [item for item in response["output"] if item["type"] == "function_call"]
        assert response["tool_choice"] == choice
        assert fewest <= len(called) <= 1
        assert {call["name"] for call in called} <= names
        assert all(json.loads(call["arguments"]) == {} for call in called)

    def test_tool_whose_schema_cannot_be_compiled(self, server: Running) -> None:
        tool = {**OTHER, "parameters": {"type": "nonsense"}, "strict": True}
        error = refused(server, tools=[tool], tool_choice="required")
        assert error["param"].startswith("tools")
        assert "function" not in error["param"]

    def test_choice(self, server: Running) -> None:
        response = ask(server, guided_choice=["yes", "no"])
        assert response["output"][0]["content"][0]["text"] in ("yes", "no")

    def test_schema_that_cannot_be_compiled(self, server: Running) -> None:
        wanted = {"type": "json_schema", "name": "x", "schema": {"type": "nonsense"}}
        error = refused(server, text={"format": wanted})
        assert error["param"].startswith("text.format")
        assert "response_format" not in error["message"]

    def test_events(self, server: Running) -> None:
        with server.http() as http:
            reply = http.post(PATH, json={"input": "What is 3 + 4?", "stream": True, "temperature": 0})
        events = events_of(reply)
        assert rebuilt(events) == events[-1]["response"]["output"]

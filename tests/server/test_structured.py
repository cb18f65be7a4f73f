"""Replies that are bound to a form, by every name that clients know, through OpenAI's client and plain HTTP."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jsonschema_rs
import openai
import pydantic
import pytest

from fermi.config import load_settings
from fermi.server.loading import load_served
from fermi.server.served import ServedModel
from server.running import Running, serving

QUESTION = [{"role": "user", "content": "What is 3 + 4?"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 10},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "count", "kind"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "pet", "schema": SCHEMA, "strict": True}}


def load(name: str) -> ServedModel:
    flags = {"engine.threads": 1, "cache.kv_cache_memory": "64MiB", "engine.batch_invariant": True}
    served = load_served(name, load_settings(flags, environ={}, folder=Path("/nonexistent")))
    assert isinstance(served, ServedModel)
    return served


@pytest.fixture(scope="module")
def server(stories260k: Path) -> Iterator[Running]:
    """The demo model, which thinks, and stories260K, which has never seen JSON."""
    with serving(load("demo"), load(f"stories={stories260k}")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return server.openai()


def chat(client: openai.OpenAI, **options: Any) -> Any:
    options = {"model": "demo", "messages": QUESTION, "max_tokens": 250, "temperature": 1.0, "seed": 5, **options}
    return client.chat.completions.create(**options)


def complete(client: openai.OpenAI, **options: Any) -> Any:
    options = {"model": "stories", "prompt": "Once", "max_tokens": 200, "temperature": 1.0, "seed": 5, **options}
    return client.completions.create(**options)


def content(reply: Any) -> str:
    choice = reply.choices[0]
    assert choice.finish_reason == "stop"
    text: str = choice.message.content
    return text


def refusal(server: Running, path: str = "/v1/chat/completions", **fields: Any) -> dict[str, Any]:
    """The error of a request that is refused as a bad one."""
    prompt = {"messages": QUESTION} if "chat" in path else {"prompt": "Once"}
    with server.http() as http:
        reply = http.post(path, json={"model": "demo", **prompt, **fields})
    assert reply.status_code == 400, reply.text
    error: dict[str, Any] = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


class TestResponseFormat:
    @pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
    @pytest.mark.parametrize("model", ["demo", "stories"])
    def test_a_schema(self, client: openai.OpenAI, model: str, temperature: float) -> None:
        for seed in range(3):
            reply = chat(client, model=model, response_format=FORMAT, temperature=temperature, seed=seed)
            assert jsonschema_rs.is_valid(SCHEMA, json.loads(content(reply)))

    def test_any_object(self, client: openai.OpenAI) -> None:
        bias = {"92": 5}
        for seed in range(4):
            reply = chat(client, response_format={"type": "json_object"}, seed=seed, logit_bias=bias, max_tokens=600)
            if reply.choices[0].finish_reason == "stop":
                assert isinstance(json.loads(content(reply)), dict)
            else:
                assert reply.choices[0].message.content.startswith("{")

    def test_a_name_without_a_schema_is_any_object(self, client: openai.OpenAI) -> None:
        reply = chat(client, response_format={"type": "json_schema", "json_schema": {"name": "any"}}, max_tokens=30)
        assert reply.choices[0].message.content.startswith("{")

    def test_a_schema_beside_the_type(self, client: openai.OpenAI) -> None:
        for kind in ("json_object", "json_schema"):
            reply = chat(client, response_format={"type": kind, "schema": SCHEMA})
            assert jsonschema_rs.is_valid(SCHEMA, json.loads(content(reply)))

    def test_text_is_no_form(self, client: openai.OpenAI) -> None:
        free = chat(client, temperature=0, extra_body={"thinking": "off"})
        text = chat(client, temperature=0, extra_body={"thinking": "off"}, response_format={"type": "text"})
        assert content(text) == content(free)

    def test_streaming_gives_the_same(self, client: openai.OpenAI) -> None:
        for seed in range(3):
            whole = content(chat(client, response_format=FORMAT, seed=seed))
            chunks = list(chat(client, response_format=FORMAT, seed=seed, stream=True))
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
            assert chunks[-1].choices[0].finish_reason == "stop"

    def test_several_choices(self, client: openai.OpenAI) -> None:
        reply = chat(client, response_format=FORMAT, n=4, temperature=2.0)
        texts = [choice.message.content for choice in reply.choices]
        assert len(set(texts)) == 4
        assert all(jsonschema_rs.is_valid(SCHEMA, json.loads(text)) for text in texts)

    def test_beside_free_requests(self, client: openai.OpenAI) -> None:
        def ask(number: int) -> tuple[str, str]:
            bound = {"response_format": FORMAT} if number % 2 else {}
            reply = chat(client, seed=number, temperature=0.8, **bound)
            return reply.choices[0].message.content, reply.choices[0].finish_reason

        alone = [ask(number) for number in range(8)]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(ask, range(8)))
        assert together == alone
        assert all(jsonschema_rs.is_valid(SCHEMA, json.loads(text)) for text, _ in together[1::2])

    def test_the_client_parses_into_a_model(self, client: openai.OpenAI) -> None:
        class Colour(enum.Enum):
            RED = "red"
            BLUE = "blue"

        class Leaf(pydantic.BaseModel):
            kind: Literal["leaf"]
            colour: Colour

        class Branch(pydantic.BaseModel):
            kind: Literal["branch"]
            length: int | None

        class Tree(pydantic.BaseModel):
            parts: list[Leaf | Branch]
            alive: bool

        for seed in range(3):
            reply = client.chat.completions.parse(
                model="demo", messages=QUESTION, response_format=Tree, max_tokens=900, temperature=1, seed=seed  # type: ignore[arg-type]
            )  # fmt: skip
            if reply.choices[0].finish_reason == "stop":
                assert isinstance(reply.choices[0].message.parsed, Tree)

    def test_a_stop_string_still_ends_it(self, client: openai.OpenAI) -> None:
        reply = chat(client, response_format=FORMAT, stop=['"count'])
        assert reply.choices[0].finish_reason == "stop"
        assert re.fullmatch(r'\{\s*"name"\s*:\s*".*"\s*,\s*', reply.choices[0].message.content)

    def test_the_length_cuts_it(self, client: openai.OpenAI) -> None:
        reply = chat(client, response_format=FORMAT, max_tokens=4)
        assert (reply.choices[0].finish_reason, reply.usage.completion_tokens) == ("length", 4)

    def test_a_complete_reply_ends_whatever_else_is_asked_for(self, client: openai.OpenAI) -> None:
        for fields in ({"min_tokens": 200}, {"ignore_eos": True}):
            reply = chat(client, response_format=FORMAT, extra_body=fields)
            assert jsonschema_rs.is_valid(SCHEMA, json.loads(content(reply)))

    def test_completions(self, client: openai.OpenAI) -> None:
        reply = complete(client, prompt=["Once", "Lily"], n=2, extra_body={"response_format": FORMAT})
        assert len(reply.choices) == 4
        for choice in reply.choices:
            assert choice.finish_reason == "stop"
            assert jsonschema_rs.is_valid(SCHEMA, json.loads(choice.text))


FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "grammar, a choice": ({"grammar": {"type": "choice", "value": ["yes", "no"]}}, "yes|no"),
    "grammar, an expression": ({"grammar": {"type": "regex", "value": "[a-c]{2}!"}}, "[a-c]{2}!"),
    "grammar, Lark": ({"grammar": {"type": "lark", "value": 'start: "x" DIGIT~2\nDIGIT: /[0-9]/'}}, "x[0-9]{2}"),
    "grammar, GBNF": ({"grammar": {"type": "gbnf", "value": 'root ::= "x" [0-9]{2}'}}, "x[0-9]{2}"),
    "grammar, a schema": ({"grammar": {"type": "json_schema", "value": {"const": 5}}}, "5"),
    "grammar, JSON": ({"grammar": {"type": "json", "value": {"const": 5}}}, "5"),
    "grammar, GBNF as text": ({"grammar": 'root ::= "x" y\ny ::= [0-9]'}, "x[0-9]"),
    "grammar, Lark as text": ({"grammar": 'start: "x" /[0-9]/'}, "x[0-9]"),
    "json_schema": ({"json_schema": {"enum": ["a", "b"]}}, '"[ab]"'),
    "guided_json": ({"guided_json": {"type": "boolean"}}, "true|false"),
    "guided_json, a text": ({"guided_json": '{"type": "boolean"}'}, "true|false"),
    "guided_regex": ({"guided_regex": r"\d\d"}, "[0-9]{2}"),
    "guided_choice": ({"guided_choice": ["one", "two"]}, "one|two"),
    "guided_grammar": ({"guided_grammar": 'root ::= "g"'}, "g"),
    "structured_outputs.json": ({"structured_outputs": {"json": {"type": "null"}}}, "null"),
    "structured_outputs.regex": ({"structured_outputs": {"regex": "[xyz]"}}, "[xyz]"),
    "structured_outputs.choice": ({"structured_outputs": {"choice": ["p", "q"]}}, "p|q"),
    "structured_outputs.grammar": ({"structured_outputs": {"grammar": 'start: "s"'}}, "s"),
    "structured_outputs.json_object": ({"structured_outputs": {"json_object": True}}, r"(?s)\{.*"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_name_of_a_form(client: openai.OpenAI, form: str) -> None:
    fields, pattern = FORMS[form]
    for reply in (chat(client, extra_body=fields, max_tokens=60), complete(client, extra_body=fields, max_tokens=60)):
        [choice] = reply.choices
        text = choice.text if hasattr(choice, "text") else choice.message.content
        assert re.fullmatch(pattern, text), text
        assert choice.finish_reason == "stop" or form.endswith("object")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
        ({"response_format": {}}, "response_format.type", "required"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "is needed"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
            "required",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "foo"}}}},
            "response_format",
            "Invalid type: foo",
        ),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex", "response_format"),
        ({"grammar": 'root ::= "a"', "guided_choice": ["a"]}, "guided_choice", "cannot be combined with grammar"),
        ({"grammar": "root ::= x"}, "grammar", "no rule x"),
        ({"grammar": "start: x"}, "grammar", "unknown name"),
        ({"grammar": {"type": "peg", "value": "a"}}, "grammar.type", ""),
        ({"grammar": {"type": "choice", "value": "a"}}, "grammar.value", "list of strings"),
        ({"grammar": {"type": "regex", "value": ["a"]}}, "grammar.value", "a string"),
        ({"grammar": "root ::= " + '"a" ' * 20_000}, "grammar", "longer than"),
        ({"json_schema": {"$ref": "#/nowhere"}}, "json_schema", "nowhere"),
        ({"guided_json": "{"}, "guided_json", "not JSON"),
        ({"guided_json": [1]}, "guided_json", ""),
        ({"guided_regex": "("}, "guided_regex", "unclosed"),
        ({"guided_choice": []}, "guided_choice", ""),
        ({"guided_choice": [1]}, "guided_choice.0", ""),
        ({"guided_grammar": "nonsense"}, "guided_grammar", ""),
        ({"structured_outputs": {}}, "structured_outputs", "needs one of"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice", "cannot be combined"),
        ({"structured_outputs": {"regex": "["}}, "structured_outputs.regex", "unclosed"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag", "not supported"),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern", "not supported"),
        ({"grammar_lazy": True}, "grammar_lazy", "not supported"),
        ({"grammar": {"type": "json", "value": ["a"]}}, "grammar.value", "an object"),
        ({"thinking_budget": -2}, "thinking_budget", ""),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(
    server: Running, path: str, fields: dict[str, Any], param: str, message: str
) -> None:
    error = refusal(server, path, **fields)
    assert error["param"] == param, error
    assert message in error["message"]


def test_a_keyword_that_cannot_be_enforced(server: Running, client: openai.OpenAI) -> None:
    schema = {"type": "array", "items": {"type": "null"}, "maxItems": 2, "uniqueItems": True}
    for strict in ({}, {"strict": True}, {"strict": None}):
        named = {"name": "unique", "schema": schema, **strict}
        error = refusal(server, response_format={"type": "json_schema", "json_schema": named})
        assert "uniqueItems" in error["message"]
    loose = {"type": "json_schema", "json_schema": {"name": "unique", "schema": schema, "strict": False}}
    assert json.loads(content(chat(client, response_format=loose))) in ([], [None], [None, None])


def test_nothing_that_asks_for_nothing_is_refused(client: openai.OpenAI) -> None:
    nothing = {
        "grammar": "", "guided_json": None, "structured_outputs": None, "response_format": {"type": "text"},
        "thinking_budget": None, "json_schema": None,
    }  # fmt: skip
    assert chat(client, extra_body=nothing, max_tokens=3).choices


class TestThinking:
    def test_a_form_begins_behind_the_thoughts(self, client: openai.OpenAI) -> None:
        reply = chat(client, response_format=FORMAT, temperature=0, extra_body={"thinking": "auto"})
        assert reply.choices[0].message.reasoning_content == "Ones: 3 and 4 make 7."
        assert reply.usage.completion_tokens_details.reasoning_tokens > 5
        assert jsonschema_rs.is_valid(SCHEMA, json.loads(content(reply)))

    def test_without_thoughts_it_begins_at_once(self, client: openai.OpenAI) -> None:
        reply = chat(client, response_format=FORMAT, temperature=0, extra_body={"thinking": "off"})
        assert not hasattr(reply.choices[0].message, "reasoning_content")
        assert jsonschema_rs.is_valid(SCHEMA, json.loads(content(reply)))

    def test_thoughts_in_the_content_keep_their_tags(self, client: openai.OpenAI) -> None:
        reply = chat(client, response_format=FORMAT, temperature=0, extra_body={"thinking": "on"})
        thoughts, closed, answer = content(reply).partition("</think>")
        assert (thoughts, closed) == ("<think>\nOnes: 3 and 4 make 7.\n", "</think>")
        assert jsonschema_rs.is_valid(SCHEMA, json.loads(answer))

    def test_a_prompt_that_opens_the_block(self, client: openai.OpenAI) -> None:
        ids = "<|im_start|>user\nWhat is 3 + 4?<|im_end|>\n<|im_start|>assistant\n<think>\n"
        reply = complete(client, model="demo", prompt=ids, extra_body={"guided_choice": ["yes", "no"]}, temperature=0)
        assert re.fullmatch(r"Ones: 3 and 4 make 7\.\n</think>\n{0,2}(yes|no)", reply.choices[0].text)

    @pytest.mark.parametrize("budget", [1, 8, 12])
    def test_a_budget(self, client: openai.OpenAI, budget: int) -> None:
        free = chat(client, temperature=0, extra_body={"thinking": "auto"})
        bound = chat(client, temperature=0, extra_body={"thinking": "auto", "thinking_budget": budget})
        tokens = bound.usage.completion_tokens_details.reasoning_tokens
        assert tokens <= max(budget, 5) < free.usage.completion_tokens_details.reasoning_tokens
        thoughts = getattr(bound.choices[0].message, "reasoning_content", "")
        assert free.choices[0].message.reasoning_content.startswith(thoughts)
        assert "think>" not in content(bound)

    def test_a_budget_that_is_not_used_up_changes_nothing(self, client: openai.OpenAI) -> None:
        for budget in (-1, 200):
            free = chat(client, temperature=0, extra_body={"thinking": "auto"})
            bound = chat(client, temperature=0, extra_body={"thinking": "auto", "thinking_budget": budget})
            assert bound.choices[0].message == free.choices[0].message

    def test_no_budget_is_no_thinking(self, client: openai.OpenAI) -> None:
        off = chat(client, temperature=0, extra_body={"thinking": "off"})
        none = chat(client, temperature=0, extra_body={"thinking_budget": 0, "thinking": "auto"})
        assert none.choices[0].message == off.choices[0].message
        assert none.usage.completion_tokens_details.reasoning_tokens == 0

    def test_a_budget_and_a_form(self, client: openai.OpenAI) -> None:
        fields = {"thinking": "auto", "thinking_budget": 8}
        for temperature in (0.0, 1.0):
            reply = chat(client, response_format=FORMAT, temperature=temperature, extra_body=fields, n=3)
            for choice in reply.choices:
                assert jsonschema_rs.is_valid(SCHEMA, json.loads(choice.message.content))
            assert reply.usage.completion_tokens_details.reasoning_tokens <= 3 * 8

    def test_the_effort_is_a_share_of_the_reply(self, client: openai.OpenAI) -> None:
        free = chat(client, temperature=0, max_tokens=60, extra_body={"thinking": "auto"})
        for effort, share in (("minimal", 0.1), ("low", 0.2), ("high", 0.8)):
            reply = chat(client, temperature=0, max_tokens=60, reasoning_effort=effort)
            tokens = reply.usage.completion_tokens_details.reasoning_tokens
            assert tokens <= max(5, share * 60)
            if effort == "high":
                assert reply.choices[0].message == free.choices[0].message

    def test_a_stream_with_a_budget(self, client: openai.OpenAI) -> None:
        fields = {"thinking": "auto", "thinking_budget": 9}
        whole = chat(client, temperature=0, extra_body=fields)
        chunks = list(chat(client, temperature=0, extra_body=fields, stream=True))
        deltas = [chunk.choices[0].delta for chunk in chunks]
        assert "".join(delta.content or "" for delta in deltas) == content(whole)
        thoughts = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
        assert thoughts == whole.choices[0].message.reasoning_content


def test_a_grammar_that_becomes_too_large_is_an_error_of_its_request(server: Running, client: openai.OpenAI) -> None:
    lark = "start: " + " | ".join(f'"x" A "{at}"' for at in range(2100)) + "\nA: /[a-z]+/"
    with server.http() as http, ThreadPoolExecutor(1) as pool:
        good = pool.submit(chat, client, response_format=FORMAT)
        body = {"model": "demo", "messages": QUESTION, "grammar": lark, "max_tokens": 200, "temperature": 2}
        reply = http.post("/v1/chat/completions", json=body)
        events = http.post("/v1/chat/completions", json={**body, "stream": True}).text.strip().split("\n\n")
        assert jsonschema_rs.is_valid(SCHEMA, json.loads(content(good.result())))
    error = reply.json()["error"]
    assert (reply.status_code, error["type"]) == (400, "invalid_request_error")
    assert "the grammar failed" in error["message"]
    assert json.loads(events[-1].removeprefix("data: "))["error"] == error


def test_nothing_is_left_behind(server: Running, client: openai.OpenAI) -> None:
    for seed in range(3):
        with chat(client, response_format=FORMAT, stream=True, seed=seed) as stream:
            next(iter(stream))
    chat(client, response_format=FORMAT)
    models = list(server.listener.state.models)
    for model in models:
        assert isinstance(model, ServedModel)
        while model.service.open_requests:
            pass
        assert model.service.stats.blocks.used == 0

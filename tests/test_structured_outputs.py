"""Structured outputs and thinking budgets of the offline API."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import pydantic
import pytest

from fermi import LLM, RequestOutput, SamplingParams, StructuredOutputs
from fermi.errors import RequestError

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
QUESTION = [{"role": "user", "content": "What is 3 + 4?"}]


@pytest.fixture(scope="module")
def demo() -> LLM:
    return LLM("demo")


@pytest.fixture(scope="module")
def stories(stories260k: Path) -> LLM:
    return LLM(str(stories260k))


def params(**options: Any) -> SamplingParams:
    """Parameters with what StructuredOutputs takes among them."""
    names = {"json", "regex", "choice", "grammar", "json_object"} & set(options)
    structured = StructuredOutputs(**{name: options.pop(name) for name in names}) if names else None
    return SamplingParams(**{"max_tokens": 200, "seed": 1, "structured_outputs": structured, **options})


def texts(outputs: list[RequestOutput]) -> list[str]:
    for output in outputs:
        assert [each.finish_reason for each in output.outputs] == ["stop"] * len(output.outputs)
    return [each.text for output in outputs for each in output.outputs]


class Person(pydantic.BaseModel):
    kind: str = pydantic.Field(max_length=5)
    tall: bool


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"regex": "[a-z]{3}-[0-9]{2}"}, "[a-z]{3}-[0-9]{2}"),
        ({"choice": ["yes", "no", "yes, but"]}, "yes|no|yes, but"),
        ({"grammar": 'root ::= "a" [b-d]{2,5} "z"'}, "a[b-d]{2,5}z"),
        ({"grammar": 'start: "x" /[0-9]{4}/'}, "x[0-9]{4}"),
        ({"json": {"enum": ["a", 2]}}, '"a"|2'),
        ({"json": '{"type": "boolean"}'}, "true|false"),
    ],
)
def test_texts_have_the_form(stories: LLM, form: dict[str, Any], pattern: str, temperature: float) -> None:
    found = texts(
        stories.generate(
            ["Once", "Lily", "The sun"], params(**form, temperature=temperature, n=2 if temperature else 1)
        )
    )
    assert all(re.fullmatch(pattern, text) for text in found), found


def test_each_prompt_its_own_form(demo: LLM) -> None:
    wanted = [params(json=SCHEMA), params(choice=["a", "b"]), params(max_tokens=5), params(json=Person)]
    outputs = demo.generate(["One", "Two", "Three", "Four"], wanted)
    first, second, free, fourth = (output.outputs[0] for output in outputs)
    assert jsonschema_rs.is_valid(SCHEMA, json.loads(first.text))
    assert second.text in ("a", "b")
    assert free.finish_reason == "length"
    Person.model_validate_json(fourth.text)


def test_a_conversation(demo: LLM) -> None:
    [text] = texts(demo.chat(QUESTION, params(json=SCHEMA, temperature=0)))
    thoughts, closed, answer = text.partition("</think>")
    assert (thoughts, closed) == ("<think>\nOnes: 3 and 4 make 7.\n", "</think>")
    assert jsonschema_rs.is_valid(SCHEMA, json.loads(answer))
    [text] = texts(demo.chat(QUESTION, params(json=SCHEMA), chat_template_kwargs={"enable_thinking": False}))
    assert jsonschema_rs.is_valid(SCHEMA, json.loads(text))


def test_a_prompt_that_ends_within_thoughts(demo: LLM) -> None:
    prompt = "<|im_start|>user\nWhat is 3 + 4?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    for each in (prompt, demo.tokenizer.encode(prompt, add_special_tokens=False)):
        [text] = texts(demo.generate(each, params(choice=["yes"], temperature=0)))
        assert re.fullmatch(r"Ones: 3 and 4 make 7\.\n</think>\n{0,2}yes", text)


def test_a_thinking_budget(demo: LLM) -> None:
    free = demo.chat(QUESTION, params(temperature=0))[0].outputs[0]
    for budget in (0, 6, 9):
        bound = demo.chat(QUESTION, params(temperature=0, thinking_budget=budget))[0].outputs[0]
        thoughts, closed, answer = bound.text.partition("\n</think>\n\n")
        assert closed
        assert answer
        assert free.text.startswith(thoughts)
        assert len(bound.token_ids) < len(free.token_ids)
    assert demo.chat(QUESTION, params(temperature=0, thinking_budget=100))[0].outputs[0].text == free.text


def test_a_form_that_cannot_be_compiled_leaves_nothing_behind(demo: LLM) -> None:
    with pytest.raises(RequestError, match="unknown name"):
        demo.generate(["a", "b"], [params(choice=["a"]), params(grammar="start: x")])
    assert demo.engine.stats().waiting == demo.engine.stats().running == 0


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({}, "needs one of"),
        ({"regex": "a", "json": {}}, "got json, regex"),
        ({"json_object": False}, "got none"),
        ({"regex": 5}, "regex must be a string"),
        ({"grammar": ["a"]}, "grammar must be a string"),
        ({"choice": "abc"}, "list of strings"),
        ({"choice": []}, "list of strings"),
        ({"choice": [1]}, "list of strings"),
    ],
)
def test_forms_that_make_no_sense(form: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        StructuredOutputs(**form)
    assert error.value.param == "structured_outputs"


@pytest.mark.parametrize(
    ("name", "value"), [("structured_outputs", {"regex": "a"}), ("thinking_budget", -1), ("thinking_budget", 1.5)]
)
def test_parameters_that_make_no_sense(name: str, value: object) -> None:
    with pytest.raises(RequestError) as error:
        SamplingParams(**{name: value})  # type: ignore[arg-type]
    assert error.value.param == name

"""JSON schemas as libraries write them: each is enforced, and texts that fit the readable form fit the one given."""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema_rs
import pydantic
import pytest
from tokenizers import Tokenizer as Backend

from fermi.errors import RequestError
from fermi.text.grammar import GrammarCompiler, JsonSchema, readable_schema
from fermi.text.tokenizer import Tokenizer
from text.grammar_walk import text_of, write


@pytest.fixture(scope="module")
def compiler(backends: Mapping[str, Callable[[], Backend]]) -> GrammarCompiler:
    return GrammarCompiler(Tokenizer(backends["byte_level"](), eos_token_ids=[3]))


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, pydantic.Field(ge=1, le=9)]


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]
    good: bool = True


class Record(pydantic.BaseModel):
    """Many of pydantic's types."""

    id: uuid.UUID
    born: datetime.date
    seen: datetime.datetime
    price: float
    secret: pydantic.SecretStr
    folder: Path
    pet: Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]
    sizes: dict[Literal["s", "m"], int]
    pair: tuple[int, bool]
    code: Annotated[str, pydantic.Field(pattern=r"^[A-Z]{2}\d$")]
    maybe: Annotated[list[None], pydantic.Field(max_length=2)] | None = None


SCHEMAS: dict[str, dict[str, Any]] = {
    "pydantic": Record.model_json_schema(),
    "openapi": {
        "type": "object",
        "properties": {
            "count": {"type": "integer", "format": "int32", "minimum": 0},
            "ratio": {"type": "number", "format": "double", "minimum": 0, "maximum": 1},
            "word": {"type": "string", "format": "password", "maxLength": 4, "example": "x"},
            "format": {"type": "string", "enum": ["int32"]},
        },
        "required": ["count", "ratio", "word", "format"],
        "additionalProperties": False,
        "xml": {"name": "x"},
    },
    "zod": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {
            "n": {"type": "integer", "minimum": -9007199254740991, "maximum": 9007199254740991},
            "r": {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "null"}},
            "e": {
                "type": "object",
                "propertyNames": {"enum": ["a", "b"]},
                "additionalProperties": {"type": "boolean"},
                "required": ["a", "b"],
            },
        },
        "required": ["n", "r", "e"],
        "additionalProperties": False,
    },
    "names that match": {
        "type": "object",
        "propertyNames": {"pattern": "^[a-c]{2}$"},
        "additionalProperties": {"type": "integer", "minimum": 1, "maximum": 3},
        "maxProperties": 3,
    },
    "decimal": {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"},
    "not unique": {"type": "array", "items": {"const": 1}, "maxItems": 3, "uniqueItems": False},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_is_drawn_fits_the_schema_as_it_was_given(compiler: GrammarCompiler, name: str) -> None:
    grammar = compiler.compile(JsonSchema(SCHEMAS[name]))
    ended = 0
    for seed in range(6):
        tokens = write(compiler, grammar, seed, 3000)
        if tokens[-1] == 3:
            ended += 1
            value = json.loads(text_of(compiler.tokenizer, tokens))
            assert jsonschema_rs.is_valid(SCHEMAS[name], value), value
    assert ended


@pytest.mark.parametrize(
    "schema",
    [
        {"const": {"format": "int32", "uniqueItems": False}},
        {"enum": [{"propertyNames": True, "title": "x"}]},
        {"type": "object", "properties": {"pattern": {"type": "string"}, "format": {"const": "x"}, "title": {}}},
        {"type": "string", "format": "date-time", "pattern": "^a"},
        True,
        {"not": {"type": "string"}},
    ],
)
def test_what_is_readable_stays_as_it_is(schema: Any) -> None:
    assert readable_schema(schema) == schema


def test_descriptions_are_left_out_however_long(compiler: GrammarCompiler) -> None:
    long = "words " * 50_000
    schema = {"title": "T", "description": long, "type": "object", "properties": {"title": {"description": long}}}
    assert readable_schema(schema) == {"type": "object", "properties": {"title": {}}}
    compiler.compile(JsonSchema(schema))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "format": "json-pointer"},
        {"type": "array", "uniqueItems": True},
        {"type": "object", "propertyNames": {"minLength": 2}},
        {"type": "object", "properties": {"a": {}}, "propertyNames": {"pattern": "a"}},
        {"type": "object", "propertyNames": False},
        {"type": "object", "propertyNames": {"enum": [1]}},
    ],
)
def test_what_cannot_be_said_is_refused(compiler: GrammarCompiler, schema: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        compiler.compile(JsonSchema(schema))

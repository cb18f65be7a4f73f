"""The fields that bind a reply to a form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, Field

from fermi.server.schema.body import Body, Many

Schema = dict[str, Any]
Choices = Annotated[Many[str], Field(min_length=1)]


class NamedSchema(Body):
    """OpenAI's way to give a JSON schema; without one any JSON object is meant."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Schema | None = Field(None, validation_alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """OpenAI's ``response_format``; ``schema`` beside the type is llama.cpp's way to write one."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    schema_: Schema | None = Field(None, validation_alias="schema")


class WrittenGrammar(Body):
    """fermi's ``grammar``: what kind of text the value is. TGI's clients write ``json`` for ``json_schema``."""

    type: Literal["regex", "choice", "lark", "gbnf", "json_schema", "json"]
    value: str | Schema | Choices


class StructuredOutputs(Body):
    """vLLM's ``structured_outputs``: one of these."""

    json_: Schema | str | None = Field(None, validation_alias="json")
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "structural_tag": (),
        "whitespace_pattern": (),
        "disable_any_whitespace": (False,),
        "disable_additional_properties": (False,),
    }


class StructuredBody(Body):
    """What a reply may be bound to, by the names of OpenAI, fermi and llama.cpp, and vLLM; one at a time."""

    response_format: ResponseFormat | None = None
    grammar: str | WrittenGrammar | None = None  # a text is GBNF or Lark
    json_schema: Schema | None = None
    guided_json: Schema | str | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    structured_outputs: StructuredOutputs | None = None
    thinking_budget: Annotated[int, Field(ge=-1)] | None = Field(  # tokens; -1: any number
        None, validation_alias=AliasChoices("thinking_budget", "thinking_token_budget")
    )

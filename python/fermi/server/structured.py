"""What a request binds its reply to, by any of the names that clients know, made into what the engine takes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from fermi.errors import RequestError
from fermi.server.schema.structured import ResponseFormat, StructuredBody, StructuredOutputs, WrittenGrammar
from fermi.server.served import ServedModel
from fermi.text.grammar import (
    GBNF,
    Choice,
    Grammar,
    GrammarSpec,
    JsonObject,
    JsonSchema,
    Lark,
    Regex,
    ThinkingBudget,
    Thoughts,
    bounds,
    within_budget,
    written_grammar,
)


class Structure(NamedTuple):
    """The form of a reply, and the field that asked for it."""

    field: str
    spec: GrammarSpec


def wanted_structure(body: StructuredBody) -> Structure | None:
    """The form that a request asks for, None where any text will do.

    RequestError naming the second of two fields that ask for one, or a field whose value makes no sense.
    """
    wanted = list(_structures(body))
    if len(wanted) > 1:
        second = wanted[1].field
        raise RequestError(f"{second}: cannot be combined with {wanted[0].field}", param=second)
    return wanted[0] if wanted else None


async def reply_bounds(
    served: ServedModel, structure: Structure | None, thoughts: Thoughts | None = None, budget: int | None = None
) -> Grammar | ThinkingBudget | None:
    """What bounds a reply: its form, begun behind its thoughts, and a budget of tokens for those.

    Compiles on a thread. RequestError naming the field whose form cannot be compiled, and why.
    """
    if structure is None and (thoughts is None or budget is None):
        return None
    grammars = served.grammars
    spec = None if structure is None else structure.spec

    try:
        found = None if spec is None else grammars.find(spec, thoughts)
        if spec is None or found is not None:
            return within_budget(grammars, found, thoughts, budget)
        return await asyncio.wrap_future(grammars.in_background(lambda: bounds(grammars, spec, thoughts, budget)))
    except RequestError as error:
        field = error.param if structure is None else structure.field
        message = f"{field}: {error}" if field else str(error)
        raise RequestError(message, param=field, code=error.code) from None


def _structures(body: StructuredBody) -> Iterator[Structure]:
    """Every form that is asked for, in the order of the fields."""
    if body.response_format is not None:
        spec = _of_format(body.response_format)
        if spec is not None:
            yield Structure("response_format", spec)
    if isinstance(body.grammar, WrittenGrammar):
        yield Structure("grammar", _of_written(body.grammar))
    elif body.grammar:  # llama.cpp's clients send an empty one for none
        yield Structure("grammar", _written("grammar", body.grammar))
    for field, schema in (("json_schema", body.json_schema), ("guided_json", body.guided_json)):
        if schema is not None:
            yield Structure(field, JsonSchema(schema))
    if body.guided_regex is not None:
        yield Structure("guided_regex", Regex(body.guided_regex))
    if body.guided_choice is not None:
        yield Structure("guided_choice", Choice(tuple(body.guided_choice)))
    if body.guided_grammar is not None:
        yield Structure("guided_grammar", _written("guided_grammar", body.guided_grammar))
    if body.structured_outputs is not None:
        yield _of_outputs(body.structured_outputs)


def _of_format(wanted: ResponseFormat) -> GrammarSpec | None:
    named = wanted.json_schema
    match wanted.type:
        case "text":
            return None
        case "json_schema" if named is not None:
            return JsonObject() if named.schema_ is None else JsonSchema(named.schema_, named.strict is not False)
        case "json_schema" if wanted.schema_ is None:
            param = "response_format.json_schema"
            raise RequestError(f"{param}: is needed where the type is json_schema", param=param)
    return JsonObject() if wanted.schema_ is None else JsonSchema(wanted.schema_)


def _of_written(grammar: WrittenGrammar) -> GrammarSpec:
    value: Any = grammar.value
    match grammar.type:
        case "choice" if isinstance(value, list):
            return Choice(tuple(value))
        case "json_schema" | "json" if isinstance(value, (str, dict)):
            return JsonSchema(value)
        case "regex" if isinstance(value, str):
            return Regex(value)
        case "lark" | "gbnf" if isinstance(value, str):
            return _written("grammar.value", value, grammar.type)
    needed = {"choice": "a list of strings", "json_schema": "an object", "json": "an object"}.get(
        grammar.type, "a string"
    )
    raise RequestError(f"grammar.value: must be {needed} where the type is {grammar.type}", param="grammar.value")


def _written(field: str, text: str, language: Literal["lark", "gbnf"] | None = None) -> Lark | GBNF:
    try:
        return written_grammar(text, language)
    except RequestError as error:
        raise RequestError(f"{field}: {error}", param=field) from None


def _of_outputs(wanted: StructuredOutputs) -> Structure:
    try:
        wanted.refuse_unsupported()
    except RequestError as error:
        param = f"structured_outputs.{error.param}"
        raise RequestError(f"structured_outputs.{error}", param=param, code=error.code) from None
    specs: dict[str, GrammarSpec] = {}
    if wanted.json_ is not None:
        specs["json"] = JsonSchema(wanted.json_)
    if wanted.regex is not None:
        specs["regex"] = Regex(wanted.regex)
    if wanted.choice is not None:
        specs["choice"] = Choice(tuple(wanted.choice))
    if wanted.grammar is not None:
        specs["grammar"] = _written("structured_outputs.grammar", wanted.grammar)
    if wanted.json_object:
        specs["json_object"] = JsonObject()
    names = [f"structured_outputs.{name}" for name in specs]
    if len(names) > 1:
        raise RequestError(f"{names[1]}: cannot be combined with {names[0]}", param=names[1])
    if not names:
        message = "structured_outputs: needs one of json, regex, choice, grammar, json_object"
        raise RequestError(message, param="structured_outputs")
    return Structure(names[0], *specs.values())

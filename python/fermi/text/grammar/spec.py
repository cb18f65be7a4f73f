"""What a reply may be bound to, and how llguidance is told of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from llguidance import LLMatcher, regex_to_lark

from fermi.errors import RequestError
from fermi.text.grammar.gbnf_lark import lark_of_gbnf
from fermi.text.grammar.json_schema import readable_schema

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

__all__ = ["GBNF", "Choice", "GrammarSpec", "JsonObject", "JsonSchema", "Lark", "Regex", "describe", "written_grammar"]

#: Characters of a schema, a list of choices or an expression, and of a grammar that a client has written. The worst of
#: them compile for a second or two.
MAX_CHARACTERS = 2**17
MAX_WRITTEN = 2**15
#: Of JSON inside JSON.
MAX_DEPTH = 64
#: Between JSON's tokens: a space, or line ends and an indentation. Unbounded white space is what weak models get lost
#: in, so what stands between two tokens ends somewhere.
WHITE_SPACE = r"( |\n {0,32}|\n\t{0,8})"
#: Keeps llguidance from looking ahead for text that must come, which never ends where a grammar has no way but to go on
#: as it does: ``start: A A`` with ``A: /a+/``, whose first A takes every letter.
UNFORCED = '\n%llguidance {"no_forcing": true}\n'


@dataclass(frozen=True, slots=True)
class JsonObject:
    """Any JSON object."""


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """JSON that a schema (draft 2020-12) accepts, its properties in the schema's order.

    Attributes:
        schema: an object, or the text of one.
        strict: refuse keywords that cannot be enforced; otherwise they are left out.
    """

    schema: Mapping[str, Any] | str
    strict: bool = True


@dataclass(frozen=True, slots=True)
class Regex:
    """Text that a regular expression matches as a whole: Rust's syntax, without look-around and back references.

    ``\\d`` is a digit from 0 to 9.
    """

    pattern: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One of these texts."""

    choices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lark:
    """A context-free grammar in llguidance's dialect of Lark (docs/syntax.md of github.com/guidance-ai/llguidance)."""

    text: str


@dataclass(frozen=True, slots=True)
class GBNF:
    """A grammar as llama.cpp writes them; the rule ``root`` is the whole reply."""

    text: str


GrammarSpec: TypeAlias = "JsonObject | JsonSchema | Regex | Choice | Lark | GBNF"


_GBNF_RULE = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)


def written_grammar(text: str, language: Literal["lark", "gbnf"] | None = None) -> Lark | GBNF:
    """A grammar that a client wrote. Its language shows: rules of GBNF are written with ``::=``, those of Lark with
    ``:``.

    RequestError for one that is too long.
    """
    _bounded(text, "the grammar", MAX_WRITTEN)
    is_gbnf = bool(_GBNF_RULE.search(text)) if language is None else language == "gbnf"
    return GBNF(text) if is_gbnf else Lark(text + UNFORCED)


def describe(spec: GrammarSpec) -> str:
    """The spec as llguidance reads it: JSON with a list of grammars, the first of which is the whole.

    Equal specs give equal texts. RequestError for a spec that is malformed or too long; whether the grammar itself is
    good only compiling tells.
    """
    match spec:
        case JsonObject():
            return _schema({"type": "object"}, strict=True)
        case JsonSchema():
            return _schema(_parsed(spec.schema), strict=spec.strict)
        case Regex():
            return _lark(f"start: /{regex_to_lark(_bounded(spec.pattern, 'the regular expression'), 'd')}/")
        case Choice():
            return _choices(spec.choices)
        case Lark():
            return _lark(_bounded(spec.text, "the grammar"))
        case GBNF():
            return _lark(lark_of_gbnf(_bounded(spec.text, "the grammar", MAX_WRITTEN)) + UNFORCED)


def _schema(schema: Mapping[str, Any], *, strict: bool) -> str:
    overrides: JsonCompileOptions = {"whitespace_pattern": WHITE_SPACE, "lenient": not strict}
    # A schema's own wishes are not taken: they would lift the bound of the white space.
    own = {name: value for name, value in readable_schema(schema).items() if name != "x-guidance"}
    try:
        text = json.dumps(own)
    except (ValueError, TypeError, RecursionError) as error:
        raise RequestError(f"the JSON schema is not JSON: {error}") from None
    try:
        return LLMatcher.grammar_from_json_schema(_bounded(text, "the JSON schema"), overrides=overrides)
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError(f"the JSON schema cannot be read: {error}") from None


def _parsed(schema: Mapping[str, Any] | str) -> Mapping[str, Any]:
    if isinstance(schema, str):
        try:
            schema = json.loads(_bounded(schema, "the JSON schema"))
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the JSON schema is not JSON: {error}") from None
    if not isinstance(schema, Mapping):
        raise RequestError("the JSON schema must be an object")
    if _deeper(schema, MAX_DEPTH):
        raise RequestError(f"the JSON schema is nested more than {MAX_DEPTH} deep")
    return schema


def _deeper(value: Any, depth: int) -> bool:
    """Whether JSON is nested deeper than that; looks no deeper."""
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return False
    return depth == 0 or any(_deeper(each, depth - 1) for each in value)


def _lark(text: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": text}]})


def _choices(choices: tuple[str, ...]) -> str:
    if not choices or not all(isinstance(choice, str) for choice in choices):
        raise RequestError("a choice must be among at least one text, and only texts")
    listed = "\n  | ".join(json.dumps(choice) for choice in dict.fromkeys(choices))
    return _lark(_bounded(f"start: CHOICE\nCHOICE: {listed}", "the list of choices"))


def _bounded(text: str, what: str, most: int = MAX_CHARACTERS) -> str:
    if not isinstance(text, str):
        raise RequestError(f"{what} must be a string")
    if len(text) > most:
        raise RequestError(f"{what} is longer than {most:,} characters")
    return text

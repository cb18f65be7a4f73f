"""Grammars over real vocabularies: whatever is drawn fits them, and what fits them can be drawn."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from tokenizers import Tokenizer as Backend

from fermi.errors import RequestError
from fermi.text.grammar import (
    GBNF,
    Choice,
    GrammarCompiler,
    GrammarSpec,
    JsonObject,
    JsonSchema,
    Lark,
    Regex,
    written_grammar,
)
from fermi.text.grammar.constraint import Constraint, GrammarError
from fermi.text.grammar.spec import MAX_CHARACTERS, MAX_DEPTH
from fermi.text.tokenizer import Tokenizer
from text.grammar_walk import allowed, read, read_tokens, text_of, write

ADDRESS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "street": {"type": "string", "minLength": 1, "maxLength": 12},
        "number": {"type": "integer", "minimum": 1, "maximum": 999},
        "tags": {"type": "array", "items": {"enum": ["home", "work", 3, None]}, "maxItems": 3},
    },
    "required": ["street", "number", "tags"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "object": ADDRESS,
    "definitions": {
        "$defs": {"address": ADDRESS},
        "type": "object",
        "properties": {"from": {"$ref": "#/$defs/address"}, "to": {"$ref": "#/$defs/address"}},
        "required": ["from"],
        "additionalProperties": False,
    },
    "recursive": {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "v": {"type": "boolean"},
                    "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                },
                "required": ["v", "next"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    },
    "union": {"anyOf": [{"type": "integer", "minimum": 5, "maximum": 700}, {"const": "none"}, {"type": "null"}]},
    "one of": {
        "oneOf": [
            {"type": "object", "properties": {"k": {"const": "a"}}, "required": ["k"], "additionalProperties": False},
            {"type": "object", "properties": {"k": {"const": "b"}}, "required": ["k"], "additionalProperties": False},
        ]
    },
    "formats": {
        "type": "object",
        "properties": {
            "day": {"type": "string", "format": "date"},
            "at": {"type": "string", "format": "date-time"},
            "id": {"type": "string", "format": "uuid"},
            "host": {"type": "string", "format": "ipv4"},
        },
        "required": ["day", "at", "id", "host"],
        "additionalProperties": False,
    },
    "pattern": {"type": "string", "pattern": "^[a-f]{2,4}-[0-9]{3}$"},
    "numbers": {
        "type": "array",
        "prefixItems": [{"type": "number", "minimum": -1, "maximum": 1}, {"type": "integer", "multipleOf": 7}],
        "items": False,
        "minItems": 2,
    },
    "all of": {"allOf": [{"type": "string", "minLength": 2}, {"maxLength": 4}]},
}


@pytest.fixture(scope="module", params=["byte_level", "byte_fallback"])
def compiler(request: pytest.FixtureRequest, backends: Mapping[str, Callable[[], Backend]]) -> GrammarCompiler:
    tokenizer = Tokenizer(backends[request.param](), special_tokens={"eos_token": "</s>"}, eos_token_ids=[3])
    return GrammarCompiler(tokenizer, tokenizer.vocab_size + 40)


@pytest.fixture(scope="module")
def byte_level(backends: Mapping[str, Callable[[], Backend]]) -> GrammarCompiler:
    return GrammarCompiler(Tokenizer(backends["byte_level"](), eos_token_ids=[3]))


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_is_drawn_at_random_fits_the_schema(compiler: GrammarCompiler, name: str) -> None:
    grammar = compiler.compile(JsonSchema(SCHEMAS[name]))
    for seed in range(6):
        text = text_of(compiler.tokenizer, write(compiler, grammar, seed, 3000))
        assert jsonschema_rs.is_valid(SCHEMAS[name], json.loads(text)), text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("object", {"street": "Rue de Café", "number": 7, "tags": ["home", 3, None]}),
        ("definitions", {"from": {"street": "x", "number": 1, "tags": []}}),
        ("recursive", {"v": True, "next": {"v": False, "next": None}}),
        ("union", 699),
        ("union", None),
        ("one of", {"k": "b"}),
        ("formats", {
            "day": "2026-11-21",
            "at": "2026-11-21T18:00:00Z",
            "id": "123e4567-e89b-12d3-a456-426614174000",
            "host": "127.0.0.1",
        }),
        ("pattern", "abc-123"),
        ("numbers", [-0.5, 21]),
        ("all of", "né"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("layout", [{"separators": (",", ":")}, {}, {"indent": 2}, {"indent": "\t"}])
def test_what_fits_the_schema_may_be_drawn(
    byte_level: GrammarCompiler, name: str, value: Any, layout: dict[str, Any]
) -> None:
    grammar = byte_level.compile(JsonSchema(SCHEMAS[name]))
    text = json.dumps(value, ensure_ascii=False, **layout)
    assert read(byte_level, grammar, text) == "whole"


def spelled(tokenizer: Tokenizer, text: bytes) -> list[int]:
    """Tokens for a text, each as long as there is one: no prefix that a tokenizer adds stands before them."""
    entries = {tokenizer.token_bytes(token): token for token in tokenizer.token_ids()}
    tokens, at = [], 0
    while at < len(text):
        end = next(end for end in range(len(text), at, -1) if text[at:end] in entries)
        tokens.append(entries[text[at:end]])
        at = end
    return tokens


@pytest.mark.parametrize(
    "pattern", [r"\d{3}-\d{2}", r"(yes|no|maybe)!*", r"^[A-Z][a-z]+$", r"(?i)abc", r"[^\n]{1,9}", "ü+"]
)
def test_what_is_drawn_matches_the_expression(compiler: GrammarCompiler, pattern: str) -> None:
    grammar = compiler.compile(Regex(pattern))
    for seed in range(6):
        text = text_of(compiler.tokenizer, write(compiler, grammar, seed, 2000))
        assert re.fullmatch(pattern, text), text


def test_a_digit_is_one_of_ten(compiler: GrammarCompiler) -> None:
    grammar = compiler.compile(Regex(r"\d"))
    assert {compiler.tokenizer.token_bytes(token) for token in allowed(grammar.start(), compiler.vocab_size)} <= {
        str(digit).encode() for digit in range(10)
    }


def test_a_choice_is_one_of_its_texts(compiler: GrammarCompiler) -> None:
    choices = ("red", "reddish", "blüe", 'a "quote"', "line\nend", "🎉")
    grammar = compiler.compile(Choice(choices))
    drawn = {text_of(compiler.tokenizer, write(compiler, grammar, seed)) for seed in range(60)}
    assert drawn == set(choices)


def test_a_grammar_in_lark(compiler: GrammarCompiler) -> None:
    grammar = compiler.compile(Lark('start: "(" start ")" | %json {"type": "boolean"}'))
    for seed in range(6):
        match = re.fullmatch(r"(\(*)(true|false)(\)*)", text_of(compiler.tokenizer, write(compiler, grammar, seed)))
        assert match
        assert len(match[1]) == len(match[3])


def test_an_object_is_any_object(compiler: GrammarCompiler) -> None:
    grammar = compiler.compile(JsonObject())
    ended = 0
    for seed in range(8):
        tokens = write(compiler, grammar, seed)
        if tokens[-1] in compiler.tokenizer.eos_token_ids:
            ended += 1
            assert isinstance(json.loads(text_of(compiler.tokenizer, tokens)), dict)
    assert ended


def test_tokens_that_stand_for_nothing_never_come(compiler: GrammarCompiler) -> None:
    grammar = compiler.compile(Regex("(.|\n)*"))
    drawn = allowed(grammar.start(), compiler.vocab_size)
    assert max(drawn) < compiler.tokenizer.vocab_size
    assert not set(drawn) & (compiler.tokenizer.special_token_ids - compiler.tokenizer.eos_token_ids)
    assert compiler.tokenizer.eos_token_ids <= set(drawn)


def test_only_an_end_comes_behind_what_is_complete(compiler: GrammarCompiler) -> None:
    constraint = compiler.compile(Choice(("a",))).start()
    constraint.accept(spelled(compiler.tokenizer, b"a")[0])
    assert set(allowed(constraint, compiler.vocab_size)) == compiler.tokenizer.eos_token_ids


def test_white_space_between_tokens_comes_to_an_end(compiler: GrammarCompiler) -> None:
    grammar = compiler.compile(JsonObject())
    assert read_tokens(compiler, grammar, spelled(compiler.tokenizer, b"{\n" + 16 * b"  ")) == "part"
    assert read_tokens(compiler, grammar, spelled(compiler.tokenizer, b"{\n" + 17 * b"  ")) != "part"
    assert read_tokens(compiler, grammar, spelled(compiler.tokenizer, b"{\n\n\n")) != "part"


def test_a_token_that_may_not_come_is_an_error(compiler: GrammarCompiler) -> None:
    constraint = compiler.compile(Choice(("a",))).start()
    with pytest.raises(GrammarError, match="satisfy"):
        constraint.accept(spelled(compiler.tokenizer, b"b")[0])


def test_a_failed_constraint_is_told_from_the_others(compiler: GrammarCompiler) -> None:
    grammar = compiler.compile(Choice(("a", "b")))
    bad, good = grammar.start(), grammar.start()
    with pytest.raises(GrammarError):
        bad.accept(spelled(compiler.tokenizer, b"z")[0])
    masks = np.zeros((2, (compiler.vocab_size + 31) // 32), np.uint32)
    assert list(Constraint.fill([bad, good], masks)) == [0]
    token = spelled(compiler.tokenizer, b"b")[0]
    assert masks[1, token // 32] >> (token % 32) & 1
    assert compiler.find(Choice(("a", "b"))) is None  # compiled anew for the next


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (JsonSchema({"type": "foo"}), "Invalid type: foo"),
        (JsonSchema({"$ref": "#/$defs/none"}), "does not exist"),
        (JsonSchema({"$ref": "https://example.com/schema"}), "example.com"),
        (JsonSchema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (JsonSchema({"type": "string", "format": "regex"}), "Unknown format: regex"),
        (JsonSchema({"type": "string", "pattern": "(?=a)b"}), "look-around"),
        (JsonSchema({"type": "string", "minLength": 3, "maxLength": 2}), "minLength"),
        (JsonSchema({"$ref": "#"}), "no text matches"),
        (JsonSchema({"enum": []}), "empty"),
        (JsonSchema("{"), "not JSON"),
        (JsonSchema("[1]"), "must be an object"),
        (JsonSchema({"type": object}), "not JSON"),
        (Regex("("), "unclosed"),
        (Regex(r"a\b"), "look"),
        (Lark("start: nothing"), "unknown name"),
        (Lark('begin: "x"'), "start"),
        (GBNF('root := "a"'), "expected ::="),
        (Choice(()), "at least one"),
    ],
)  # fmt: skip
def test_what_cannot_be_compiled_is_refused_with_the_reason(
    compiler: GrammarCompiler, spec: GrammarSpec, reason: str
) -> None:
    with pytest.raises(RequestError, match=reason) as error:
        compiler.compile(spec)
    assert "<state>" not in str(error.value)


def test_keywords_that_cannot_be_enforced_are_left_out_where_the_schema_is_not_strict(
    compiler: GrammarCompiler,
) -> None:
    schema = {"type": "array", "items": {"type": "null"}, "uniqueItems": True, "maxItems": 3}
    grammar = compiler.compile(JsonSchema(schema, strict=False))
    value = json.loads(text_of(compiler.tokenizer, write(compiler, grammar, 0)))
    assert value == [None] * len(value)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


ABSURD: dict[str, GrammarSpec] = {
    "deep": JsonSchema(nested(MAX_DEPTH + 1)),
    "very deep": JsonSchema(nested(900)),
    "long": JsonSchema({"enum": ["x" * MAX_CHARACTERS]}),
    "many products": JsonSchema({
        "allOf": [{"anyOf": [{"properties": {f"p{i}_{j}": {}}} for j in range(8)]} for i in range(12)]
    }),
    "a million copies": Regex("((a{1000}){1000}){1000}"),
    "many runs": Regex("((a|aa|aaa)+){30}" * 50),
    "far multiples": JsonSchema({"type": "integer", "multipleOf": 999983, "minimum": 1, "maximum": 10**18}),
    "deep groups": Lark("start: " + "(" * 5000 + '"x"' + ")" * 5000),
    "deep groups of GBNF": GBNF("root ::= " + "(" * 5000 + '"x"' + ")" * 5000),
    "many choices": Choice(tuple(f"choice {number}" for number in range(20_000))),
}  # fmt: skip


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_grammars_are_refused(compiler: GrammarCompiler, name: str) -> None:
    with pytest.raises(RequestError):
        compiler.compile(ABSURD[name])


@pytest.mark.parametrize(
    "spec",
    [
        JsonSchema({"type": "array", "minItems": 10**9, "items": {"type": "integer"}}),
        JsonSchema({"type": "string", "minLength": 10**9}),
        JsonSchema({"$defs": {
            **{f"d{at}": {"anyOf": [{"$ref": f"#/$defs/d{at + 1}"}] * 2} for at in range(40)}, "d40": {"type": "null"}
        }, "$ref": "#/$defs/d0"}),
        Regex("(.|\n)*a.{20}"),
    ],
)  # fmt: skip
def test_large_grammars_that_stay_small_are_kept(compiler: GrammarCompiler, spec: GrammarSpec) -> None:
    write(compiler, compiler.compile(spec), 0, 50)


def test_equal_specs_are_compiled_once(compiler: GrammarCompiler) -> None:
    schema = {"type": "object", "properties": {"b": {"const": 7}, "a": {"const": 8}}}
    first = compiler.compile(JsonSchema({"title": "once", **schema}))
    assert compiler.find(JsonSchema(schema)) is first
    assert compiler.compile(JsonSchema(json.dumps({"description": "again", **schema}))) is first
    other = {"type": "object", "properties": {"a": {"const": 8}, "b": {"const": 7}}}
    assert compiler.find(JsonSchema(other)) is None  # the order of properties counts


def test_what_may_be_empty(compiler: GrammarCompiler) -> None:
    for spec in (Regex("a?"), Choice(("", "a")), Lark('start: "a"?'), GBNF('root ::= "a"?')):
        assert compiler.tokenizer.eos_token_ids < set(allowed(compiler.compile(spec).start(), compiler.vocab_size))
    for spec in (Regex(""), Choice(("",))):
        only = set(allowed(compiler.compile(spec).start(), compiler.vocab_size))
        assert only == compiler.tokenizer.eos_token_ids


def test_sequences_of_a_grammar_do_not_know_each_other(compiler: GrammarCompiler) -> None:
    grammar = compiler.compile(Choice(("ab", "cd")))
    first, second = grammar.start(), grammar.start()
    first.accept(spelled(compiler.tokenizer, b"a")[0])
    drawn = {compiler.tokenizer.token_bytes(token)[:1] for token in allowed(second, compiler.vocab_size)}
    assert drawn == {b"a", b"c"}


def test_threads_share_a_compiler(compiler: GrammarCompiler) -> None:
    def work(number: int) -> str:
        grammar = compiler.compile(Regex(f"{number % 4}[ab]+"))
        return text_of(compiler.tokenizer, write(compiler, grammar, number, 2000))

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(work, range(32)))
    assert all(re.fullmatch(f"{number % 4}[ab]+", text) for number, text in enumerate(texts))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('root ::= "a"', GBNF),
        ('# a\nroot ::=\n  "a"', GBNF),
        ('start: "a"', Lark),
        ('%llguidance {}\nstart: "::=" | "a"', Lark),
        ('start: "a ::= b"', Lark),
    ],
)
def test_the_language_of_a_grammar_shows(text: str, kind: type) -> None:
    assert isinstance(written_grammar(text), kind)


def test_a_vocabulary_of_another_kind_is_read_by_its_bytes(backends: Mapping[str, Callable[[], Backend]]) -> None:
    for name in ("metaspace", "word_piece", "end_of_word", "words"):
        tokenizer = Tokenizer(backends[name](), special_tokens={"eos_token": "</s>"})
        compiler = GrammarCompiler(tokenizer)
        grammar = compiler.compile(Regex("(.|\n)*"))
        assert len(allowed(grammar.start(), compiler.vocab_size)) > 1


def test_a_model_that_cannot_end_a_text_takes_no_grammar(backends: Mapping[str, Callable[[], Backend]]) -> None:
    compiler = GrammarCompiler(Tokenizer(backends["byte_level"]()))
    with pytest.raises(RequestError, match="end-of-text"):
        compiler.compile(JsonObject())


def test_qwen3(qwen3: Tokenizer, shared: Path) -> None:
    compiler = GrammarCompiler(qwen3, 151936)
    grammar = compiler.compile(JsonSchema(ADDRESS))
    assert read(compiler, grammar, '{"street": "Hauptstraße", "number": 12, "tags": []}') == "whole"
    for seed in range(2):
        text = text_of(qwen3, write(compiler, grammar, seed))
        assert jsonschema_rs.is_valid(ADDRESS, json.loads(text)), text

"""Grammars of tool calls: what they let a model write is what the parsers read."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
import tokenizers

from fermi.errors import RequestError
from fermi.text.grammar import GrammarCompiler, Lark
from fermi.text.tokenizer import Tokenizer
from fermi.text.tool_calls import FORMATS, ToolFormat
from text.tool_replies import tool

END = "</s>"
ADD = tool(
    "add",
    {
        "type": "object",
        "properties": {
            "a": {"type": "integer"},
            "b": {"$ref": "#/$defs/flag"},
            "s": {"type": "string", "maxLength": 3},
            "e": {"type": "string", "enum": ["x", "y"]},
        },
        "$defs": {"flag": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    },
)
NOW = tool("now", {"type": "object", "properties": {"zone": {"enum": ["UTC"]}}, "additionalProperties": False})
ANY = tool("any")
TOOLS = [ADD, NOW]
MARKERS = sorted({marker for each in FORMATS.values() for marker in each.markers() if marker[0] in "<["})


@pytest.fixture(scope="module", params=["text", "tokens"])
def compiler(request: pytest.FixtureRequest) -> GrammarCompiler:
    """Of a vocabulary of bytes, in which the markers are text, or one special token each."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({letter: at for at, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([END, *(MARKERS if request.param == "tokens" else [])])
    return GrammarCompiler(Tokenizer(backend, special_tokens={"eos_token": END}))


def of(compiler: GrammarCompiler, family: str) -> tuple[ToolFormat, dict[str, int]]:
    """The format for a vocabulary, and the markers that are tokens."""
    kind = FORMATS[family]
    tokens = {each: at for each in kind.markers() if (at := compiler.vocabulary.special(each)) is not None}
    return kind(tokens), tokens


def said(compiler: GrammarCompiler, lark: str, text: str) -> str:
    """How far a reply may go: "ends", "goes on", or where it was stopped."""
    constraint = compiler.compile(Lark(lark)).start()
    ids = compiler.tokenizer.encode(text, add_special_tokens=False)
    for at, token in enumerate([*ids, compiler.tokenizer.token_id(END)]):
        if not allowed(compiler, constraint)[token]:
            return "goes on" if at == len(ids) else compiler.tokenizer.decode(ids[:at], skip_special_tokens=False)
        constraint.accept(token)
    return "ends"


def allowed(compiler: GrammarCompiler, constraint: Any) -> np.ndarray[Any, Any]:
    masks = np.zeros((1, (compiler.vocab_size + 31) // 32), np.uint32)
    assert constraint.fill([constraint], masks) == {}
    return np.unpackbits(masks.view(np.uint8), bitorder="little")[: compiler.vocab_size].astype(bool)


def walk(compiler: GrammarCompiler, lark: str, seed: int) -> str:
    """A random reply that a grammar lets pass, ended early where it may."""
    constraint = compiler.compile(Lark(lark)).start()
    end = compiler.tokenizer.token_id(END)
    closing = [compiler.tokenizer.encode(each, add_special_tokens=False)[0] for each in "\"}]);,:'"]
    letters = [compiler.tokenizer.encode(each, add_special_tokens=False)[0] for each in "abn1\\ "]
    choose, ids = random.Random(seed), []
    coming: list[int] = []  # of the end of a text that nothing else ends
    for _ in range(2000):
        mask = allowed(compiler, constraint)
        if not coming and choose.random() < 0.05:
            coming = compiler.tokenizer.encode("\n</parameter>\n", add_special_tokens=False)
        candidates = list(np.flatnonzero(mask))
        likely = [each for each in (*closing * 2, *letters) if mask[each]]
        token = int(choose.choice(likely if likely and choose.random() < 0.8 else candidates))
        token, *coming = coming if coming and mask[coming[0]] else [token]
        if mask[end] and choose.random() < 0.7:
            return compiler.tokenizer.decode(ids, skip_special_tokens=False)
        if token == end:
            return compiler.tokenizer.decode(ids, skip_special_tokens=False)
        constraint.accept(token)
        ids.append(token)
    raise AssertionError(compiler.tokenizer.decode(ids, skip_special_tokens=False))


def read(format: ToolFormat, text: str, tools: list[dict[str, Any]] = TOOLS) -> tuple[str, list[tuple[str, Any]]]:
    parser = format.parser(tools)
    deltas = [parser.push(text), parser.finish()]
    calls: list[list[str]] = []
    for piece in (piece for delta in deltas for piece in delta.calls):
        if piece.name is not None:
            calls.append([piece.name, ""])
        else:
            calls[-1][1] += piece.arguments
    return "".join(delta.content for delta in deltas), [(name, json.loads(arguments)) for name, arguments in calls]


@pytest.mark.parametrize("family", FORMATS)
class TestEveryFamily:
    @pytest.mark.parametrize("parallel", [True, False])
    def test_required(self, compiler: GrammarCompiler, family: str, parallel: bool) -> None:
        """Whatever the grammar lets pass is calls and nothing else, whose arguments match the schemas."""
        format, tokens = of(compiler, family)
        lark = format.lark(TOOLS, required=True, parallel=parallel, tokens=tokens)
        counts = set()
        for seed in range(12):
            text = walk(compiler, lark, seed)
            content, calls = read(format, text)
            assert content == "", text
            assert calls, text
            counts.add(len(calls))
            for name, arguments in calls:
                if name == "now":
                    assert arguments in ({}, {"zone": "UTC"})
                    continue
                assert name == "add"
                assert type(arguments.pop("a")) is int, text
                assert type(arguments.pop("b", False)) is bool, text
                assert type(arguments.pop("s", "")) is str, text
                assert arguments.pop("e", "x") in ("x", "y"), text
                assert arguments == {}
        assert counts == {1} or parallel
        assert said(compiler, lark, "Hello") == ""

    def test_named(self, compiler: GrammarCompiler, family: str) -> None:
        format, tokens = of(compiler, family)
        lark = format.lark(TOOLS, required=True, named="now", tokens=tokens)
        names = {name for seed in range(6) for name, _ in read(format, walk(compiler, lark, seed))[1]}
        assert names == {"now"}

    def test_free_until_a_call_begins(self, compiler: GrammarCompiler, family: str) -> None:
        """Any text is an answer; but what begins as a call must be one, of a function that is offered."""
        format, tokens = of(compiler, family)
        auto = format.lark(TOOLS, required=False, tokens=tokens)
        required = format.lark(TOOLS, required=True, tokens=tokens)
        assert said(compiler, auto, "Hello, world.\n1 < 2") == "ends"
        assert said(compiler, auto, "") == "ends"
        call = walk(compiler, required, 3)
        assert said(compiler, auto, call) == "ends"
        if format.opened:
            assert said(compiler, auto, f"So:\n{format.opened}?") == f"So:\n{format.opened}"
            assert said(compiler, auto, f"So:\n{call}") == "ends"
        else:
            assert said(compiler, auto, call[0] + "?") == call[0]

    def test_one_call_ends_the_reply(self, compiler: GrammarCompiler, family: str) -> None:
        format, tokens = of(compiler, family)
        one = format.lark(TOOLS, required=True, parallel=False, tokens=tokens)
        call = walk(compiler, one, 0)
        for required in (True, False):
            lark = format.lark(TOOLS, required=required, parallel=False, tokens=tokens)
            assert said(compiler, lark, call) == "ends"
            assert said(compiler, lark, call + (format.separator or "\n") + call) != "ends"

    def test_an_answer_of_another_form(self, compiler: GrammarCompiler, family: str) -> None:
        format, tokens = of(compiler, family)
        lark = format.lark(TOOLS, required=False, tokens=tokens, answer='answer: "Yes" | "No"\n')
        assert said(compiler, lark, "Yes") == "ends"
        assert said(compiler, lark, "Maybe") == ""
        assert said(compiler, lark, walk(compiler, format.lark(TOOLS, required=True, tokens=tokens), 1)) == "ends"


def test_no_arguments_but_those_that_are_named(compiler: GrammarCompiler) -> None:
    """As OpenAI has it, a function without parameters takes none."""
    hermes, tokens = of(compiler, "hermes")
    open_ended = tool("open", {"type": "object", "properties": {}, "additionalProperties": True})
    lark = hermes.lark([ANY, open_ended], required=True, parallel=False, tokens=tokens)
    call = '<tool_call>\n{{"name": "{}", "arguments": {}}}\n</tool_call>'
    assert said(compiler, lark, call.format("any", "{}")) == "ends"
    assert said(compiler, lark, call.format("any", '{"a": 1}')) != "ends"
    assert said(compiler, lark, call.format("open", '{"a": 1}')) == "ends"


def test_what_cannot_be_enforced(compiler: GrammarCompiler) -> None:
    """Of a schema that is not strict it is left out; a strict one is refused."""
    schema = {"type": "object", "properties": {"a": {"not": {"type": "string"}}}, "required": ["a"]}
    hermes, tokens = of(compiler, "hermes")
    compiler.compile(Lark(hermes.lark([tool("f", schema)], required=True, tokens=tokens)))
    with pytest.raises(RequestError, match="not"):
        compiler.compile(Lark(hermes.lark([tool("f", schema, strict=True)], required=True, tokens=tokens)))


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "é🎉", "<tool_call>", "a/b-c.d"])
def test_odd_names(compiler: GrammarCompiler, name: str) -> None:
    hermes, tokens = of(compiler, "hermes")
    lark = hermes.lark([tool(name)], required=True, parallel=False, tokens=tokens)
    compiler.compile(Lark(lark))

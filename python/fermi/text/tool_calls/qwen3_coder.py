"""The format of Qwen3-Coder: calls in XML whose arguments are plain text, typed by the tool's schema."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from fermi.errors import RequestError
from fermi.text.tool_calls.base import ToolFormat, as_json
from fermi.text.tool_calls.functions import Function, Functions
from fermi.text.tool_calls.json_call import json_arguments, json_calls
from fermi.text.tool_calls.lark import Grammar
from fermi.text.tool_calls.reply import Markers, Reply, Steps
from fermi.text.tool_calls.values import from_text, inside_string

__all__ = ["Qwen3Coder"]

LONGEST_NAME = 128
_NAME = re.compile(r"[^\s<>=]+")
_END_OF_VALUE = Markers("\n</parameter>", "</parameter>")


class Qwen3Coder(ToolFormat):
    """``<tool_call><function=NAME><parameter=KEY>value</parameter>…</function></tool_call>``.

    Strings are passed on while they come; other values when they are complete. The outer tags may be missing, the
    arguments may be a JSON object, and the call one as Hermes writes it.
    """

    name = "qwen3_coder"
    opening = ("<tool_call>", "<function=")
    closing = ("</function>", "</tool_call>")
    opened = "<tool_call>"
    separator = "\n"

    def block(self, reply: Reply, functions: Functions, marker: str) -> Steps[None]:
        if marker == "<tool_call>":
            yield from reply.space()
            if (yield from reply.peek()) == "{":
                yield from json_calls(reply, bool)
                return
            if not (yield from reply.word("<function=")):
                return
        name = yield from reply.run(_NAME, LONGEST_NAME)
        if not name.isprintable() or not (yield from reply.word(">")):
            return
        yield from reply.space()
        if (yield from reply.peek()) == "{":
            yield from json_arguments(reply, name)
        elif name:
            yield from _parameters(reply, functions.get(name))

    def written(self, name: str, arguments: object) -> str:
        named = arguments if isinstance(arguments, Mapping) else {"<parameter-name>": as_json(arguments)}
        inner = "".join(f"<parameter={key}>\n{as_json(value)}\n</parameter>\n" for key, value in named.items())
        return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"

    def calls(self, grammar: Grammar, functions: Sequence[Function], parallel: bool) -> str:
        return f'"\\n" {grammar.either("call", [_grammar_of_call(grammar, each) for each in functions])}'


def _parameters(reply: Reply, function: Function) -> Steps[None]:
    """All parameters, and the closing tag behind them."""
    named = False
    while (tag := (yield from reply.word("<parameter=", "</function>"))) == "<parameter=":
        reply.attempt(tag)
        key = yield from reply.run(_NAME, LONGEST_NAME)
        if not key or not (yield from reply.word(">")):
            return
        if not named:
            reply.call(function.name)
        reply.drop()
        reply.arguments(f"{', ' if named else '{'}{json.dumps(key, ensure_ascii=False)}: ")
        named = True
        if not (yield from _value(reply, function.types(key) if key in function.properties else frozenset({"string"}))):
            return
        yield from reply.space()
    if not tag:
        return
    if not named:
        reply.call(function.name)
        reply.arguments("{")
    reply.arguments("}")
    reply.complete()


def _value(reply: Reply, types: frozenset[str]) -> Steps[bool]:
    """Pass on a value, without the line breaks that set it off: whether it is closed."""
    yield from reply.word("\n")
    texts: list[str] = []
    if types == {"string"}:
        reply.arguments('"')
    while True:
        text, end = yield from reply.until(_END_OF_VALUE)
        if types == {"string"}:
            reply.arguments(inside_string(text))
        else:
            texts.append(text)
        if end:
            reply.arguments('"' if types == {"string"} else from_text("".join(texts), types))
            return True
        if not text:
            return False


def _grammar_of_call(grammar: Grammar, function: Function) -> str:
    """The call in a grammar: its parameters in the order of the schema."""

    def parameter(name: str) -> str:
        head = grammar.literal(f"<parameter={name}>\n")
        end = "\n</parameter>\n"
        if function.types(name) != {"string"}:
            value = f"{grammar.parameter(function, name)} {grammar.literal(end)}"
        else:
            value = _grammar_of_string(grammar, function, name, end)
        return grammar.rule("parameter", f"{head} {value}")

    head = grammar.literal(f"<function={function.name}>\n")
    tail = grammar.literal("</function>\n</tool_call>")
    return f"{head} {grammar.members(function, parameter, '')} {tail}"


def _grammar_of_string(grammar: Grammar, function: Function, name: str, end: str) -> str:
    """Plain text up to the closing tag. RequestError for what a strict schema asks of it and no grammar can bound."""
    schema = function.properties[name]
    choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if choices:
        return f"({' | '.join(grammar.literal(each) for each in choices)}) {grammar.literal(end)}"
    for keyword in ("pattern", "format", "$ref", "anyOf", "oneOf", "allOf") if function.strict else ():
        if keyword in schema:
            raise RequestError(f"{keyword!r} of {name!r} cannot be enforced, for this model writes plain text there")
    shortest, longest = schema.get("minLength", 0), schema.get("maxLength", "")
    if function.strict and (shortest or longest != ""):
        text = grammar.rule("bounded", f"/(.|\\n){{{shortest},{longest}}}/")
        return f"{text} {grammar.literal(end)}"
    return grammar.until(end)

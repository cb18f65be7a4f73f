"""The format whose calls are Python, ``[add(a=1, b=2), say(text="hi")]``: Llama 3.2 and 4, LFM2."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence

from fermi.text.tool_calls.base import ToolFormat, as_json
from fermi.text.tool_calls.functions import Function, Functions
from fermi.text.tool_calls.json_call import Accepts
from fermi.text.tool_calls.lark import Grammar
from fermi.text.tool_calls.reply import Reply, Steps
from fermi.text.tool_calls.values import from_python, inside_string

__all__ = ["LFM2", "Pythonic", "python_call"]

LONGEST_NAME = 128
_NAME = re.compile(r"[\w.\-]+")
_KEY = re.compile(r"\w+")
_PLAIN = re.compile(r"[^\\'\"]+")
_ANY = re.compile(r"(?s:.)+")
_HEXADECIMAL = re.compile(r"[0-9a-fA-F]+")
_ESCAPES = {"n": "\\n", "t": "\\t", "r": "\\r", "b": "\\b", "f": "\\f", "\\": "\\\\", '"': '\\"', "'": "'", "\n": ""}
_DIGITS = {"x": 2, "u": 4, "U": 8}


class Pythonic(ToolFormat):
    """A list of calls as the whole reply; or anywhere between markers, where every name is a call's."""

    name = "pythonic"
    opening = ("<|python_start|>", "<|tool_call_start|>")
    closing = ("<|python_end|>", "<|tool_call_end|>")
    bare = "["
    tail = "]"

    def start(self, reply: Reply, functions: Functions) -> Steps[None]:
        reply.content((yield from reply.space()))
        if (yield from reply.peek()) == "[":
            reply.attempt()
            yield from _list(reply, functions.knows)
            reply.give_up()

    def block(self, reply: Reply, functions: Functions, marker: str) -> Steps[None]:
        yield from reply.space()
        yield from _list(reply, bool)

    def written(self, name: str, arguments: object) -> str:
        named = arguments.items() if isinstance(arguments, Mapping) else ()
        inner = ", ".join(f"{key}={value!r}" for key, value in named) if named else as_json(arguments)
        return f"{self.opened}[{name}({inner}){self.tail}"

    def calls(self, grammar: Grammar, functions: Sequence[Function], parallel: bool) -> str:
        one = grammar.either("call", [_grammar_of_call(grammar, each) for each in functions])
        return f"{grammar.literal('[')} {grammar.several(one, ', ', parallel)} {grammar.literal(self.tail)}"


class LFM2(Pythonic):
    """The same between ``<|tool_call_start|>`` and ``<|tool_call_end|>``."""

    name = "lfm2"
    opened = "<|tool_call_start|>"
    tail = "]<|tool_call_end|>"


def _list(reply: Reply, accepts: Accepts) -> Steps[None]:
    if not (yield from reply.word("[")):
        return
    while True:
        calls = reply.calls
        yield from reply.space()
        yield from python_call(reply, accepts)
        if reply.calls == calls or reply.completed < reply.calls:
            return
        yield from reply.space()
        reply.attempt()
        if not (yield from reply.word(",")):
            break
    yield from reply.word("]")
    reply.drop()


def python_call(reply: Reply, accepts: Accepts, *, suffix: str = "") -> Steps[None]:
    """One call with named arguments. It is one once its first argument has begun, or it has none."""
    name = (yield from reply.run(_NAME, LONGEST_NAME)).removesuffix(suffix)
    if not accepts(name) or not (yield from reply.word("(")):
        return
    named = False
    yield from reply.space()
    while not (yield from reply.word(")")):
        reply.attempt()
        key = yield from reply.run(_KEY, LONGEST_NAME)
        yield from reply.space()
        if not key or not (yield from reply.word("=")):
            return
        yield from reply.space()
        head = f'{", " if named else "{"}"{inside_string(key)}": '
        quote = yield from reply.word('"""', "'''", '"', "'")
        value = None if quote else (yield from _literal(reply))
        if not quote and value is None:
            return
        if not named:
            reply.call(name)
            named = True
        reply.drop()
        reply.arguments(head + (value or '"'))
        if quote and not (yield from _string(reply, quote)):
            return
        yield from reply.space()
        if not (yield from reply.word(",")) and (yield from reply.peek()) != ")":
            return
        yield from reply.space()
    if not named:
        reply.call(name)
        reply.arguments("{")
    reply.arguments("}")
    reply.complete()


def _string(reply: Reply, quote: str) -> Steps[bool]:
    """Pass on a string behind its opening quote as JSON, the closing quote with it: whether it is closed."""
    while (yield from reply.peek()):
        if (yield from reply.word(quote)):
            reply.arguments('"')
            return True
        if (yield from reply.word("\\")):
            reply.arguments((yield from _escape(reply)))
        else:
            reply.arguments(inside_string(reply.some(_PLAIN) or (yield from reply.run(_ANY, 1))))
    return False


def _escape(reply: Reply) -> Steps[str]:
    """What stands behind a backslash, as it stands in JSON. What is no escape is the backslash itself."""
    if not (yield from reply.peek()):
        return "\\\\"
    kind = yield from reply.run(_ANY, 1)
    if kind in _ESCAPES:
        return _ESCAPES[kind]
    if kind in _DIGITS:
        digits = yield from reply.run(_HEXADECIMAL, _DIGITS[kind])
        if len(digits) < _DIGITS[kind] or int(digits, 16) > sys.maxunicode:
            return f"\\\\{kind}{digits}"
        return json.dumps(chr(int(digits, 16)))[1:-1]
    return "\\\\" + inside_string(kind)


def _literal(reply: Reply) -> Steps[str | None]:
    """A value that is no string, as JSON: up to the comma or bracket behind it."""
    texts: list[str] = []
    depth, quote = 0, ""
    while character := (yield from reply.peek()):
        if quote:
            texts.append((yield from reply.word("\\")))
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif not depth and character in ",)":
            break
        else:
            depth += (character in "([{") - (character in ")]}")
        texts.append((yield from reply.run(_ANY, 1)))
    return from_python("".join(texts))


def _grammar_of_call(grammar: Grammar, function: Function) -> str:
    """The call in a grammar: its arguments in the order of the schema."""

    def argument(name: str) -> str:
        boolean = function.types(name) == {"boolean"}
        value = '("True" | "False")' if boolean else grammar.parameter(function, name)
        return grammar.rule("argument", f"{grammar.literal(name + '=')} {value}")

    arguments = grammar.members(function, argument, ", ")
    return f"{grammar.literal(function.name + '(')} {arguments} {grammar.literal(')')}"

"""Formats whose calls are JSON with nothing around it: it is a call where it names a function that was offered."""

from __future__ import annotations

from collections.abc import Sequence

from fermi.text.tool_calls.base import ToolFormat, as_object
from fermi.text.tool_calls.functions import Function, Functions
from fermi.text.tool_calls.json_call import Accepts, json_call, json_calls
from fermi.text.tool_calls.lark import Grammar
from fermi.text.tool_calls.pythonic import python_call
from fermi.text.tool_calls.reply import Reply, Steps

__all__ = ["Llama3", "PlainJSON"]

FENCES = ("```json\n", "```tool_call\n")


class Llama3(ToolFormat):
    """``{"name": …, "parameters": {…}}`` at the reply's beginning, several divided by semicolons: Llama 3.

    Behind ``<|python_tag|>`` it may stand anywhere, or be written ``name.call(key="value")`` there, as Llama 3.1 calls
    the tools that it was taught.
    """

    name = "llama3"
    opening = ("<|python_tag|>",)
    closing = ("<|eom_id|>",)
    bare = "{"
    separator = "; "

    def start(self, reply: Reply, functions: Functions) -> Steps[None]:
        reply.content((yield from reply.space()))
        yield from self._objects(reply, functions.knows)

    def block(self, reply: Reply, functions: Functions, marker: str) -> Steps[None]:
        yield from reply.space()
        if (yield from reply.peek()) == "{":
            yield from self._objects(reply, bool)
        else:
            yield from python_call(reply, functions.knows, suffix=".call")

    def _objects(self, reply: Reply, accepts: Accepts) -> Steps[None]:
        while (yield from reply.peek()) == "{":
            calls = reply.calls
            reply.attempt()
            yield from json_call(reply, accepts)
            reply.give_up()
            if reply.calls == calls or reply.completed < reply.calls:
                return
            yield from reply.space()
            yield from reply.word(";")
            yield from reply.space()

    def written(self, name: str, arguments: object) -> str:
        return as_object(name, arguments, arguments_key="parameters")

    def calls(self, grammar: Grammar, functions: Sequence[Function], parallel: bool) -> str:
        return grammar.objects(functions, arguments="parameters")


class PlainJSON(ToolFormat):
    """``{"name": …, "arguments": {…}}`` or a list of such, at the beginning of a line, also in a fence of its own."""

    name = "json"
    opening = ("\n{", "\n[", *FENCES)
    bare = "{["
    separator = "\n"

    def start(self, reply: Reply, functions: Functions) -> Steps[None]:
        reply.content((yield from reply.space()))
        if (yield from reply.peek()) in ("{", "["):
            reply.attempt()
            yield from json_calls(reply, functions.knows)
            reply.give_up()

    def begin(self, reply: Reply, marker: str) -> None:
        if marker in FENCES:
            reply.attempt(marker)
        else:
            reply.content("\n")
            reply.unread(1)
            reply.attempt()

    def block(self, reply: Reply, functions: Functions, marker: str) -> Steps[None]:
        calls = reply.calls
        yield from reply.space()
        yield from json_calls(reply, functions.knows)
        if reply.calls > calls and marker in FENCES:
            yield from reply.space()
            yield from reply.word("```")

    def written(self, name: str, arguments: object) -> str:
        return as_object(name, arguments)

    def calls(self, grammar: Grammar, functions: Sequence[Function], parallel: bool) -> str:
        return grammar.objects(functions)

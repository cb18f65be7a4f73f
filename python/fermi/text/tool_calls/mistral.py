"""The formats of Mistral's models, behind ``[TOOL_CALLS]``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fermi.text.tool_calls.base import ToolFormat, as_json, as_object
from fermi.text.tool_calls.functions import Function, Functions
from fermi.text.tool_calls.json_call import json_arguments, json_calls
from fermi.text.tool_calls.lark import Grammar
from fermi.text.tool_calls.reply import Reply, Steps

__all__ = ["Mistral", "MistralArgs"]

_NAME = re.compile(r"[\w.\-]+")
LONGEST_NAME = 128


class Mistral(ToolFormat):
    """``[TOOL_CALLS][{"name": …, "arguments": …}, …]``, also ``[TOOL_CALLS]name[ARGS]{…}`` of the newer ones."""

    name = "mistral"
    opening = ("[TOOL_CALLS]",)
    inner = ("[ARGS]", "[CALL_ID]")
    opened = "[TOOL_CALLS]"

    def block(self, reply: Reply, functions: Functions, marker: str) -> Steps[None]:
        yield from reply.space()
        if (yield from reply.peek()) in ("[", "{"):
            yield from json_calls(reply, bool)
            return
        name = yield from reply.run(_NAME, LONGEST_NAME)
        if (yield from reply.word("[CALL_ID]")):
            yield from reply.run(_NAME, LONGEST_NAME)
        yield from reply.word("[ARGS]")
        yield from reply.space()
        if name and (yield from reply.peek()) == "{":
            yield from json_arguments(reply, name)

    def written(self, name: str, arguments: object) -> str:
        return f"[TOOL_CALLS][{as_object(name, arguments)}]"

    def calls(self, grammar: Grammar, functions: Sequence[Function], parallel: bool) -> str:
        return f'"[" {grammar.several(grammar.objects(functions), ", ", parallel)} "]"'


class MistralArgs(Mistral):
    """``[TOOL_CALLS]name[ARGS]{…}`` for each call: from version 11 of their tokenizer on."""

    name = "mistral_args"
    separator = ""

    def written(self, name: str, arguments: object) -> str:
        return f"[TOOL_CALLS]{name}[ARGS]{as_json(arguments)}"

    def calls(self, grammar: Grammar, functions: Sequence[Function], parallel: bool) -> str:
        heads = [grammar.literal(f"{each.name}[ARGS]") for each in functions]
        pairs = zip(heads, functions, strict=True)
        return grammar.either("call", [f"{head} {grammar.arguments(each)}" for head, each in pairs])

"""The formats of DeepSeek's models: special tokens around each call and around all."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fermi.text.tool_calls.base import ToolFormat, as_json
from fermi.text.tool_calls.functions import Function, Functions
from fermi.text.tool_calls.json_call import json_arguments
from fermi.text.tool_calls.lark import Grammar
from fermi.text.tool_calls.reply import Reply, Steps

__all__ = ["DeepSeek", "DeepSeek31"]

CALLS, END_OF_CALLS = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, END_OF_CALL = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
SEPARATOR = "<｜tool▁sep｜>"
LONGEST_NAME = 128
_NAME = re.compile(r"[\w.\-]+")


class DeepSeek(ToolFormat):
    """R1 and V3: a call is the word function, a separator, the name, and the arguments as JSON in a fence.

    That of V3.1, the name, a separator and the JSON, is understood too.
    """

    name = "deepseek"
    opening = (CALLS, CALL)
    closing = (END_OF_CALL, END_OF_CALLS)
    inner = (SEPARATOR,)
    opened = CALLS
    call = (f"{CALL}function{SEPARATOR}", "\n```json\n", f"\n```{END_OF_CALL}")
    between = "\n"

    def block(self, reply: Reply, functions: Functions, marker: str) -> Steps[None]:
        if marker == CALLS:
            yield from reply.space()
            if not (yield from reply.word(CALL)):
                return
        name = yield from reply.run(_NAME, LONGEST_NAME)
        if not (yield from reply.word(SEPARATOR)):
            return
        yield from reply.space()
        if (yield from reply.peek()) != "{":
            name = yield from reply.run(_NAME, LONGEST_NAME)
            yield from reply.space()
            yield from reply.word("```json", "```")
            yield from reply.space()
        if name and (yield from reply.peek()) == "{":
            yield from json_arguments(reply, name)
            if reply.completed == reply.calls > 0:
                yield from reply.space()
                yield from reply.word("```")

    def written(self, name: str, arguments: object) -> str:
        before, between, after = self.call
        return f"{CALLS}{before}{name}{between}{as_json(arguments)}{after}{END_OF_CALLS}"

    def calls(self, grammar: Grammar, functions: Sequence[Function], parallel: bool) -> str:
        before, between, after = self.call
        calls = [
            f"{grammar.literal(f'{before}{each.name}{between}')} {grammar.arguments(each)} {grammar.literal(after)}"
            for each in functions
        ]
        one = grammar.either("call", calls)
        return f"{grammar.several(one, self.between, parallel)} {grammar.literal(END_OF_CALLS)}"


class DeepSeek31(DeepSeek):
    """V3.1: the name, a separator, the arguments as JSON."""

    name = "deepseek_v31"
    call = (CALL, SEPARATOR, END_OF_CALL)
    between = ""

"""Formats whose calls are JSON objects with a name and arguments, between markers of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from fermi.text.tool_calls.base import ToolFormat, as_object
from fermi.text.tool_calls.functions import Function, Functions
from fermi.text.tool_calls.json_call import json_calls
from fermi.text.tool_calls.lark import Grammar
from fermi.text.tool_calls.reply import Reply, Steps

__all__ = ["Granite", "Hermes", "Marked", "Nemotron", "Phi4"]


class Marked(ToolFormat):
    """JSON behind a marker; behind one, every name is a call's.

    Attributes:
        name_key, arguments_key: the object's keys in a grammar.
        head, tail: what a grammar writes around the calls, ``opened`` before it.
    """

    head: ClassVar[str] = ""
    tail: ClassVar[str] = ""
    name_key: ClassVar[str] = "name"
    arguments_key: ClassVar[str] = "arguments"

    def block(self, reply: Reply, functions: Functions, marker: str) -> Steps[None]:
        yield from reply.space()
        yield from json_calls(reply, bool)

    def written(self, name: str, arguments: object) -> str:
        call = as_object(name, arguments, self.name_key, self.arguments_key)
        return f"{self.opened}{self.head}{call}{self.tail}"

    def calls(self, grammar: Grammar, functions: Sequence[Function], parallel: bool) -> str:
        one = grammar.objects(functions, self.name_key, self.arguments_key)
        many = one if self.separator is not None else grammar.several(one, ", ", parallel)
        return " ".join(filter(None, (self.head and grammar.literal(self.head), many, grammar.literal(self.tail))))


class Hermes(Marked):
    """``<tool_call>{"name": …, "arguments": …}</tool_call>``: Hermes, Qwen, SmolLM3, Granite 4 and many others."""

    name = "hermes"
    opening = ("<tool_call>",)
    closing = ("</tool_call>",)
    opened = "<tool_call>"
    head, tail, separator = "\n", "\n</tool_call>", "\n"


class Phi4(Marked):
    """``<|tool_call|>[{"name": …, "arguments": …}, …]<|/tool_call|>``: Phi-4-mini, which also writes functools[…]."""

    name = "phi4"
    opening = ("<|tool_call|>", "functools")
    closing = ("<|/tool_call|>",)
    opened = "<|tool_call|>"
    head, tail = "[", "]<|/tool_call|>"


class Functools(Phi4):
    """``functools[{"name": …, "arguments": …}, …]``: as vLLM's template asks Phi-4-mini for."""

    name = "functools"
    opened = "functools"
    tail = "]"


class Granite(Marked):
    """``<|tool_call|>[{"name": …, "arguments": …}, …]``: Granite 3."""

    name = "granite"
    opening = ("<|tool_call|>", "<tool_call>")
    opened = "<|tool_call|>"
    head, tail = "[", "]"


class Nemotron(Marked):
    """``<TOOLCALL>[{"name": …, "arguments": …}, …]</TOOLCALL>``."""

    name = "nemotron"
    opening = ("<TOOLCALL>",)
    closing = ("</TOOLCALL>",)
    opened = "<TOOLCALL>"
    head, tail = "[", "]</TOOLCALL>"


class Cohere(Marked):
    """``<|START_ACTION|>[{"tool_name": …, "parameters": …}, …]<|END_ACTION|>``: Command R7B and A."""

    name = "cohere"
    opening = ("<|START_ACTION|>",)
    closing = ("<|END_ACTION|>",)
    opened = "<|START_ACTION|>"
    head, tail = "[\n    ", "\n]<|END_ACTION|>"
    name_key, arguments_key = "tool_name", "parameters"

"""A grammar in llguidance's dialect of Lark, put together rule by rule (docs/syntax.md of that project)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fermi.text.grammar.json_schema import readable_schema
from fermi.text.tool_calls.functions import Function

__all__ = ["Grammar", "answer_rules"]

# Between JSON's tokens: unbounded, it is what weak models get lost in.
# What lets an object have members beyond its properties.
_MORE = {"additionalProperties", "patternProperties", "unevaluatedProperties", "anyOf", "oneOf", "allOf", "$ref"}
WHITE_SPACE = r"( |\n{1,2}[ \t]{0,40})?"


class Grammar:
    """Rules by name; ``str()`` is the text.

    Attributes:
        tokens: texts that are one token, to be written as that token, with their ids.
    """

    def __init__(self, tokens: Mapping[str, int]) -> None:
        self.tokens = tokens
        self._split = re.compile("(" + "|".join(map(re.escape, tokens)) + ")" if tokens else r"(?!)")
        self._rules: dict[str, str] = {}
        self._count: Counter[str] = Counter()

    def __str__(self) -> str:
        return "".join(f"{name}: {body}\n" for name, body in self._rules.items())

    def rule(self, name: str, body: str, options: str = "") -> str:
        """Add a rule; its name, which has a number where it is not the first of that name."""
        self._count[name] += 1
        unique = name if self._count[name] == 1 else f"{name}_{self._count[name]}"
        self._rules[unique + options] = body
        return unique

    def literal(self, text: str) -> str:
        """A text as it is."""
        parts = [part for part in self._split.split(text) if part] or [""]
        return " ".join(f"<[{self.tokens[part]}]>" if part in self.tokens else _quoted(part) for part in parts)

    def either(self, name: str, alternatives: Sequence[str]) -> str:
        """A rule that is one of these."""
        return self.rule(name, " | ".join(alternatives))

    def several(self, one: str, separator: str, many: bool) -> str:
        """One or, if ``many``, more of a rule."""
        return f"{one} ({self.literal(separator)} {one})*" if many else one

    def json(self, schema: Mapping[str, Any], *, strict: bool) -> str:
        """A JSON value; where it need not be ``strict``, what llguidance cannot enforce of its schema is let be."""
        return self.rule("json", _json(schema, strict=strict))

    def arguments(self, function: Function) -> str:
        """The arguments of a function as a JSON object, of the parameters that it names where it names them all."""
        schema = {"type": "object", **(function.parameters or {"properties": {}})}
        if "properties" in schema and not schema.keys() & _MORE:
            schema["additionalProperties"] = False
        return self.json(schema, strict=function.strict)

    def objects(self, functions: Sequence[Function], name: str = "name", arguments: str = "arguments") -> str:
        """A call as a JSON object with these keys."""
        heads = [self.literal(f'{{"{name}": {_quoted(each.name)}, "{arguments}": ') for each in functions]
        pairs = zip(heads, functions, strict=True)
        return self.either("call", [f'{head} {self.arguments(function)} "}}"' for head, function in pairs])

    def parameter(self, function: Function, name: str) -> str:
        """The value of one of a function's parameters as JSON."""
        schema = function.properties.get(name)
        shared = {key: function.parameters[key] for key in ("$defs", "definitions") if key in function.parameters}
        return self.json({**shared, **(schema if isinstance(schema, Mapping) else {})}, strict=function.strict)

    def members(self, function: Function, member: Callable[[str], str], separator: str) -> str:
        """A function's parameters in the order of its schema, a separator between each two, those left out that may
        be; ``member`` makes the rule of one."""
        between = self.literal(separator)
        first = more = ""  # what may follow nothing, and what may follow another member
        for name in reversed(list(function.properties)):
            one = member(name)
            if name in function.required:
                first, more = f"{one} {more}", self.rule("more", f"{between} {one} {more}")
            else:
                first = self.rule("first", f"({one} {more})" + (f" | {first}" if first else "?"))
                more = self.rule("more", f"({between} {one})? {more}")
        return first

    def until(self, end: str) -> str:
        """Any text that ends where that text first stands."""
        return self.rule("until", f"/(.|\\n)*/ {_quoted(end)}", "[lazy]")

    def text_without(self, beginnings: str) -> str:
        """Any text that begins with none of these characters."""
        return self.rule("text", rf"/([^\s{re.escape(beginnings)}](.|\n)*)?/")

    def text(self) -> str:
        """Any text."""
        return self.rule("text", "/(.|\\n)*/")


def answer_rules(schema: Mapping[str, Any], *, strict: bool) -> str:
    """The rule ``answer`` of `ToolFormat.lark` for JSON of a schema."""
    return f"answer: {_json(schema, strict=strict)}\n"


def _json(schema: Mapping[str, Any], *, strict: bool) -> str:
    options = {"whitespace_pattern": WHITE_SPACE, **({} if strict else {"lenient": True})}
    return f"%json {json.dumps({**readable_schema(schema), 'x-guidance': options})}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)

"""llama.cpp's grammars (GBNF), read: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

from fermi.errors import RequestError

__all__ = ["Characters", "Either", "Node", "Reference", "Repeat", "Row", "Text", "Token", "read_gbnf"]

#: Of groups in groups.
MAX_DEPTH = 64
LAST_CHARACTER = 0x10FFFF


@dataclass(frozen=True, slots=True)
class Text:
    """These characters."""

    text: str


@dataclass(frozen=True, slots=True)
class Characters:
    """One character of these ranges: first and last of each, in order and apart."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Token:
    """One special token, in the words of Lark: ``<|name|>``, ``<[id]>``, ``<[^id]>``."""

    name: str


@dataclass(frozen=True, slots=True)
class Reference:
    """What a rule stands for."""

    rule: str


@dataclass(frozen=True, slots=True)
class Row:
    """One after the other."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """One of them."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """A node ``least`` to ``most`` times; None: any number of times."""

    node: Node
    least: int
    most: int | None


Node: TypeAlias = "Text | Characters | Token | Reference | Row | Either | Repeat"

_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_ANY_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NEXT_LINE = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*(?=\|)")
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_TOKEN = re.compile(r"<(?:\[[0-9]+\]|[^\s<>\[\]]+)>")
_TIMES = re.compile(r"\{[ \t]*(\d{1,9})[ \t]*(?:(,)[ \t]*(\d{1,9})?[ \t]*)?\}")
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))", re.DOTALL)
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-", "^": "^", "/": "/"}
_MARKS = {"*": (0, None), "+": (1, None), "?": (0, 1)}


def read_gbnf(text: str) -> dict[str, Node]:
    """The rules of a grammar by name. RequestError, with the line, where it is malformed."""
    return _Reader(text).rules()


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def rules(self) -> dict[str, Node]:
        rules: dict[str, Node] = {}
        self._skip(_ANY_SPACE)
        while self._at < len(self._text):
            name = self._take(_NAME, "the name of a rule")
            self._skip(_SPACE)
            if not self._text.startswith("::=", self._at):
                raise self._error("expected ::=")
            self._at += 3
            self._skip(_ANY_SPACE)
            rules[name] = self._either(_SPACE)
            self._skip(_SPACE)
            if self._at < len(self._text) and self._text[self._at] not in "\r\n":
                raise self._error("expected the end of the rule")
            self._skip(_ANY_SPACE)
        if "root" not in rules:
            raise RequestError("the grammar has no rule root")
        return rules

    def _either(self, space: re.Pattern[str]) -> Node:
        nodes = [self._row(space)]
        while self._skip(_NEXT_LINE) or self._text.startswith("|", self._at):
            self._at += 1
            self._skip(_ANY_SPACE)
            nodes.append(self._row(space))
        return nodes[0] if len(nodes) == 1 else Either(tuple(nodes))

    def _row(self, space: re.Pattern[str]) -> Node:
        nodes: list[Node] = []
        while (node := self._one()) is not None:
            self._skip(space)
            while (times := self._times()) is not None:
                node = Repeat(node, *times)
                self._skip(space)
            nodes.append(node)
        return nodes[0] if len(nodes) == 1 else Row(tuple(nodes))

    def _one(self) -> Node | None:
        """The next element, None where there is none."""
        match self._text[self._at : self._at + 1]:
            case '"':
                return self._literal()
            case "[":
                return self._characters()
            case ".":
                self._at += 1
                return Characters(((0, LAST_CHARACTER),))
            case "(":
                return self._group()
            case "<":
                return Token(self._take(_TOKEN, "a token such as <[12]> or <name>"))
            case "!":
                self._at += 1
                token = self._take(_TOKEN, "a token such as <[12]>")
                if not token.startswith("<["):
                    raise self._error("only tokens by their number can be excluded")
                return Token(f"<[^{token[2:]}")
        name = _NAME.match(self._text, self._at)
        if name is None:
            return None
        self._at = name.end()
        return Reference(name.group())

    def _group(self) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"groups are nested more than {MAX_DEPTH} deep")
        self._at += 1
        self._skip(_ANY_SPACE)
        node = self._either(_ANY_SPACE)
        self._skip(_ANY_SPACE)
        if not self._text.startswith(")", self._at):
            raise self._error("expected )")
        self._at += 1
        self._depth -= 1
        return node

    def _times(self) -> tuple[int, int | None] | None:
        mark = self._text[self._at : self._at + 1]
        if mark in _MARKS:
            self._at += 1
            return _MARKS[mark]
        if mark != "{":
            return None
        match = _TIMES.match(self._text, self._at)
        if match is None:
            raise self._error("expected {m}, {m,} or {m,n}")
        self._at = match.end()
        least, comma, most = match.groups()
        if most is not None and int(most) < int(least):
            raise self._error(f"{{{least},{most}}} can never be")
        return int(least), int(most) if most is not None else None if comma else int(least)

    def _literal(self) -> Node:
        self._at += 1
        characters = []
        while not self._text.startswith('"', self._at):
            characters.append(self._character())
        self._at += 1
        return Text("".join(map(chr, characters)))

    def _characters(self) -> Node:
        self._at += 1
        negated = self._text.startswith("^", self._at)
        self._at += negated
        ranges: list[tuple[int, int]] = []
        while not self._text.startswith("]", self._at):
            first = last = self._character()
            if self._text.startswith("-", self._at) and not self._text.startswith("-]", self._at):
                self._at += 1
                last = self._character()
            if last < first:
                raise self._error("a range of characters ends before it begins")
            ranges.append((first, last))
        self._at += 1
        joined = _joined(ranges)
        return Characters(_others(joined) if negated else joined)

    def _character(self) -> int:
        if self._at >= len(self._text):
            raise self._error("expected a closing quote or bracket")
        if self._text[self._at] != "\\":
            self._at += 1
            return ord(self._text[self._at - 1])
        match = _ESCAPE.match(self._text, self._at)
        if match is None:
            raise self._error("an escape that is cut off")
        *codes, letter = match.groups()
        code = next((code for code in codes if code is not None), None)
        if code is None and letter not in _ESCAPED:
            raise self._error(f"there is no escape \\{letter}")
        number = ord(_ESCAPED[letter]) if code is None else int(code, 16)
        if number > LAST_CHARACTER or 0xD800 <= number < 0xE000:
            raise self._error(f"{match.group()} is no character")
        self._at = match.end()
        return number

    def _take(self, pattern: re.Pattern[str], what: str) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise self._error(f"expected {what}")
        self._at = match.end()
        return match.group()

    def _skip(self, pattern: re.Pattern[str]) -> bool:
        """Whether there was anything to skip to."""
        match = pattern.match(self._text, self._at)
        if match is not None:
            self._at = match.end()
        return match is not None

    def _error(self, message: str) -> RequestError:
        line = self._text.count("\n", 0, self._at) + 1
        return RequestError(f"line {line} of the GBNF grammar: {message}, at {self._text[self._at : self._at + 20]!r}")


def _joined(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The same characters in ranges that are in order and apart."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(joined[-1][1], last)
        else:
            joined.append((first, last))
    return tuple(joined)


def _others(ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """Every other character."""
    starts = [0, *(last + 1 for _, last in ranges)]
    ends = [*(first - 1 for first, _ in ranges), LAST_CHARACTER]
    return tuple((first, last) for first, last in zip(starts, ends, strict=True) if first <= last)

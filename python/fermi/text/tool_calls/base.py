"""What every format of tool calls has: a parser that streams, and a grammar that enforces it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from fermi.text.tool_calls.functions import Function, Functions
from fermi.text.tool_calls.lark import Grammar
from fermi.text.tool_calls.reply import Markers, Reply, Steps, ToolCallDelta

__all__ = ["ToolCallParser", "ToolFormat", "as_json", "as_object"]


class ToolCallParser:
    """Splits one reply into content and calls, the same however its text is cut.

    Content comes as soon as it is certain; of a call first its name, then its arguments in pieces, which together are
    JSON text. What is not a call stays content, word for word. A call is given away when it is complete or the first
    characters of its arguments went well, and cannot be taken back then: where a long one goes wrong later, its
    arguments stay as far as they came (so that no client takes them for whole), and what follows is content. A call in
    which a limit cut the reply off keeps what came.

    Attributes:
        calls: how many have begun.
        completed: how many of them are complete.
    """

    def __init__(self, reply: Reply, steps: Steps[None]) -> None:
        self._reply = reply
        self._steps = steps

    @property
    def calls(self) -> int:
        return self._reply.calls

    @property
    def completed(self) -> int:
        return self._reply.completed

    def push(self, text: str) -> ToolCallDelta:
        """What is certain now, given this text more."""
        self._reply.feed(text)
        next(self._steps, None)
        return self._reply.take()

    def finish(self, *, cut: bool = False) -> ToolCallDelta:
        """The rest, when the reply has ended. ``cut``: by a limit, not by the model; it may have been amid a call."""
        self._reply.ended, self._reply.cut = True, cut
        next(self._steps, None)
        self._reply.end()
        return self._reply.take()


class ToolFormat(ABC):
    """A family's way to write calls.

    Attributes:
        name: what the setting ``tool_parser`` calls it.
        opening: texts that begin calls; closing: texts that end them.
        inner: further texts that may be special tokens.
        opened: the one that a grammar writes, "" where it begins with the calls themselves.
        bare: what calls begin with that nothing opens: other text must not.
        separator: what a grammar writes between calls that are opened one by one, None where they stand in a list.
    """

    name: ClassVar[str]
    opening: ClassVar[tuple[str, ...]] = ()
    closing: ClassVar[tuple[str, ...]] = ()
    inner: ClassVar[tuple[str, ...]] = ()
    opened: ClassVar[str] = ""
    bare: ClassVar[str] = ""
    separator: ClassVar[str | None] = None

    def __init__(self, special: Mapping[str, int] | None = None) -> None:
        """``special``: the tokenizer's special tokens with their ids, which its decoder would leave out of the text."""
        self.special = {text: at for text, at in (special or {}).items() if text in self.markers()}
        self._outside = Markers(*self.opening, *(each for each in self.special if each not in self.opening))
        self._inside = Markers(*{**dict.fromkeys((*self.opening, *self.closing)), **self.special})

    @classmethod
    def markers(cls) -> tuple[str, ...]:
        """All texts that a tokenizer may have as special tokens."""
        return (*cls.opening, *cls.closing, *cls.inner)

    def parser(self, tools: Sequence[Mapping[str, Any]] = ()) -> ToolCallParser:
        """A parser for one reply to a request with these tools."""
        reply = Reply(closing=self.closing, hidden=tuple(self.special))
        return ToolCallParser(reply, self._read(reply, Functions.of(tools)))

    def _read(self, reply: Reply, functions: Functions) -> Steps[None]:
        """Read a whole reply."""
        yield from self.start(reply, functions)
        while marker := (yield from reply.content_until(self._inside if reply.behind_call else self._outside)):
            if marker in self.opening:
                self.begin(reply, marker)
                yield from self.block(reply, functions, marker)
                reply.give_up()

    def start(self, reply: Reply, functions: Functions) -> Steps[None]:
        """Read calls at the beginning of the reply that nothing opens."""
        yield from ()

    def begin(self, reply: Reply, marker: str) -> None:
        """A text was read that opens calls: whatever follows may be one."""
        reply.attempt(marker)

    @abstractmethod
    def block(self, reply: Reply, functions: Functions, marker: str) -> Steps[None]:
        """Read the calls behind a text that opens them; whatever else there is stays unread or is given up."""

    def lark(
        self,
        tools: Sequence[Mapping[str, Any]],
        *,
        required: bool,
        parallel: bool = True,
        named: str | None = None,
        tokens: Mapping[str, int] | None = None,
        answer: str = "",
    ) -> str:
        """A grammar, in llguidance's dialect of Lark, of replies that call these functions as this format has it.

        Args:
            required: the reply is calls and nothing else; otherwise it may be any text until something opens a call.
            parallel: there may be several calls; otherwise the reply ends with the first.
            named: the only function that may be called.
            tokens: which markers are one token that text is never made of, with their ids.
            answer: rules of which ``answer`` is what the reply may be where it is no call; by default any text.
        """
        functions = [each for each in Functions.of(tools) if named in (None, each.name)]
        grammar = Grammar(tokens or {})
        opening = grammar.literal(self.opened) if self.opened else ""
        body = grammar.rule("calls", self.calls(grammar, functions, parallel))
        again = parallel and self.separator is not None
        more = f" ({grammar.literal((self.separator or '') + self.opened)} {body})*" if again else ""
        calls = f"{opening} {body}{more}"
        if required or answer:
            return f"start: {calls}{' | answer' if answer and not required else ''}\n{grammar}{answer}"
        if not self.opened:
            start = f"{calls} | {grammar.text_without(self.bare)}"
        elif self.opened in grammar.tokens:
            text = grammar.text()
            start = f"{text} ({opening} {body} {text})*" if again else f"{text} ({opening} {body})?"
        else:
            until, text = grammar.until(self.opened), grammar.text()
            start = f"({until} {body})* {text}" if again else f"{until} {body} | {text}"
        return f"start: {start}\n{grammar}"

    @abstractmethod
    def written(self, name: str, arguments: object) -> str:
        """One call as the model would write it; arguments that are a string stand as they are."""

    @abstractmethod
    def calls(self, grammar: Grammar, functions: Sequence[Function], parallel: bool) -> str:
        """What follows ``opened`` in a grammar: the calls up to the end of what it opens."""


def as_json(arguments: object) -> str:
    """Arguments as JSON text."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def as_object(name: str, arguments: object, name_key: str = "name", arguments_key: str = "arguments") -> str:
    """A call as a JSON object."""
    return f'{{"{name_key}": {json.dumps(name, ensure_ascii=False)}, "{arguments_key}": {as_json(arguments)}}}'

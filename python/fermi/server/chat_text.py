"""The reply of one choice told apart: reasoning, content, tool calls."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from fermi.server.generation import Piece
from fermi.server.thinking import ThinkingPlan
from fermi.text.reasoning import ReasoningDelta, ReasoningSplitter
from fermi.text.tool_calls import CallPiece, ToolCallParser, tool_format

OPENING = "<think>"


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A bit of the ``index``-th tool call: its id and name come with the first, its arguments (JSON text) in pieces."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(slots=True)
class ChatDelta:
    """News of one choice as a chat client sees it."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[CallDelta, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.calls)


@dataclass(slots=True)
class ChatText:
    """Takes the text of one choice as it comes.

    Attributes:
        calls: how many tool calls have begun; completed: how many of them are complete.
        reasoning_tokens: tokens before the content began, if there were thoughts.
    """

    plan: ThinkingPlan
    prompt: str
    with_tools: bool
    calls: int = 0
    completed: int = 0
    reasoning_tokens: int = 0
    _splitter: ReasoningSplitter = field(init=False)
    _tools: ToolCallParser | None = field(init=False)
    _begun: bool = False
    _thought: bool = False
    _answered: bool = False
    _tokens: int = 0

    def __post_init__(self) -> None:
        self._splitter = ReasoningSplitter(starts_inside=ReasoningSplitter.opened_by(self.prompt))
        self._tools = tool_format("").parser() if self.with_tools else None

    def push(self, piece: Piece) -> ChatDelta:
        """What is certain now; the rest with the piece that finishes."""
        last = piece.finish_reason is not None
        reasoning = content = ""
        for at, text in enumerate(piece.texts):
            split = self._splitter.push(text)
            self._count(int(at < piece.tokens), split)
            reasoning, content = reasoning + split.reasoning, content + split.content
        if last:
            rest = self._splitter.finish()
            self._count(0, rest)
            reasoning, content = reasoning + rest.reasoning, content + rest.content
        delta = ChatDelta(reasoning if self.plan.place == "apart" else "", content)
        if self.plan.place == "in_content":
            delta.content = self._opened() + piece.text
        self._begun = True
        if self._tools is not None:
            delta.content, calls = self._tools.push(delta.content)
            if last:
                rest_found = self._tools.finish()
                delta.content += rest_found.content
                calls += rest_found.calls
            delta.calls = tuple(map(_delta, calls))
            self.calls, self.completed = self._tools.calls, self._tools.completed
        return delta

    def _opened(self) -> str:
        """The tag that the template wrote in the model's place, before the first piece of the reply."""
        if self._begun or not self._splitter.starts_inside:
            return ""
        return self.prompt[self.prompt.rindex(OPENING) :]

    def _count(self, tokens: int, split: ReasoningDelta) -> None:
        self._tokens += tokens
        self._thought |= bool(split.reasoning)
        if not self._answered and self._thought:
            self.reasoning_tokens = self._tokens - (tokens if split.content else 0)
        self._answered |= bool(split.content)


def _delta(call: CallPiece) -> CallDelta:
    if call.name is None:
        return CallDelta(call.index, arguments=call.arguments)
    return CallDelta(call.index, f"call_{uuid.uuid4().hex[:24]}", call.name, call.arguments)

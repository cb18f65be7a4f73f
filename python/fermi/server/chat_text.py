"""The reply of one choice told apart: reasoning, content, tool calls."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from fermi.server.generation import Piece
from fermi.server.thinking import ThinkingPlan
from fermi.text.reasoning import ReasoningDelta, ReasoningSplitter
from fermi.text.tool_calls import CallPiece, ToolCallParser


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
        prompt: which may already have opened the thoughts.
        parser: of tool calls, None where there are none to find; what stands in the thoughts is never a call.
        one_call: the reply is over when its first call is complete.
        hidden: special tokens that are in the text only to tell it apart.
        calls: how many tool calls have begun.
        reasoning_tokens: tokens before the content began, if there were thoughts.
    """

    plan: ThinkingPlan
    prompt: str
    parser: ToolCallParser | None = None
    one_call: bool = False
    hidden: tuple[str, ...] = ()
    reasoning_tokens: int = 0
    _splitter: ReasoningSplitter | None = field(init=False)
    _begun: bool = False
    _thought: bool = False
    _answered: bool = False
    _tokens: int = 0

    def __post_init__(self) -> None:
        markers = self.plan.markers
        self._splitter = None if markers is None else ReasoningSplitter.after(self.prompt, markers)

    @property
    def calls(self) -> int:
        return 0 if self.parser is None else self.parser.calls

    @property
    def over(self) -> bool:
        """Whether nothing more of the reply is wanted."""
        return self.one_call and self.parser is not None and self.parser.completed > 0

    def push(self, piece: Piece) -> ChatDelta:
        """What is certain now; the rest with the piece that finishes."""
        delta = ChatDelta()
        if self._splitter is None:
            self._answer(delta, piece.text)
        else:
            for at, text in enumerate(piece.texts):
                self._add(delta, self._splitter.push(text), int(at < piece.tokens))
            if piece.finish_reason is not None:
                self._add(delta, self._splitter.finish(), 0)
        if piece.finish_reason is not None and self.parser is not None and not self.over:
            cut = piece.finish_reason == "length" or piece.stopped_by is not None
            self._take(delta, *self.parser.finish(cut=cut))
        return delta

    def _add(self, delta: ChatDelta, split: ReasoningDelta, tokens: int) -> None:
        """Take what ``tokens`` tokens brought."""
        self._tokens += tokens
        self._thought |= bool(split.reasoning)
        if not self._answered and self._thought:
            self.reasoning_tokens = self._tokens - (tokens if split.content else 0)
        self._answered |= bool(split.content)
        if self.plan.place == "apart":
            delta.reasoning += split.reasoning
        elif self.plan.place == "in_content":
            delta.content += self._opened() + split.raw
        self._answer(delta, split.content)

    def _answer(self, delta: ChatDelta, text: str) -> None:
        for marker in self.hidden:
            text = text.replace(marker, "")
        if self.parser is None:
            delta.content += text
        elif text and not self.over:
            self._take(delta, *self.parser.push(text))

    def _take(self, delta: ChatDelta, content: str, calls: tuple[CallPiece, ...]) -> None:
        if self.one_call:
            calls = tuple(call for call in calls if call.index == 0)
        delta.content += content
        delta.calls += tuple(map(_delta, calls))

    def _opened(self) -> str:
        """The marker that the template wrote in the model's place, before the first piece of the reply."""
        if self._begun or self._splitter is None or not self._splitter.starts_inside or self.plan.markers is None:
            return ""
        self._begun = True
        return self.prompt[self.prompt.rindex(self.plan.markers.opening) :]


def _delta(call: CallPiece) -> CallDelta:
    if call.name is None:
        return CallDelta(call.index, arguments=call.arguments)
    return CallDelta(call.index, f"call_{uuid.uuid4().hex[:24]}", call.name, call.arguments)

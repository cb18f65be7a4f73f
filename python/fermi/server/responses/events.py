"""The events of a response while it grows: from the news of a chat to output items, parts and deltas."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_json

from fermi.engine.event import TokenLogprobs
from fermi.server.chat_run import ChatNews
from fermi.server.chat_text import CallDelta
from fermi.server.errors import Failure
from fermi.server.generation import Usage
from fermi.server.logprobs import chat_logprobs
from fermi.server.responses.document import FINAL, State, usage_of
from fermi.server.responses.items import Item, Status, function_call, message, new_id, output_text, reasoning
from fermi.text.tokenizer import Tokenizer

Event = dict[str, Any]

PADDING = 32  # characters: deltas that are obfuscated are as long as a multiple of this


def wire(event: Event) -> bytes:
    """An event as it is sent."""
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), to_json(event, inf_nan_mode="null"))


@dataclass(slots=True)
class Open:
    """An output item that grows; ``call`` is the number of a function call."""

    id: str
    call: int | None = None
    call_id: str = ""
    name: str = ""
    texts: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What it says so far."""
        return "".join(self.texts)


class Growing:
    """A response while it grows.

    At any time at most one item is open: thoughts, an answer, or a call. Every event has the next number.
    """

    def __init__(
        self,
        document: dict[str, Any],
        usage: Usage,
        tokenizer: Tokenizer,
        *,
        top_logprobs: int | None,
        sealed: bool = False,
        obfuscated: bool = False,
    ) -> None:
        """``document`` is what it is told with; ``usage`` counts by itself; ``sealed``: thoughts are also sealed."""
        self.output: list[Item] = []
        self._document = document
        self._usage = usage
        self._tokenizer = tokenizer
        self._top = top_logprobs
        self._sealed = sealed
        self._obfuscated = obfuscated
        self._thoughts: Open | None = None
        self._answer: Open | None = None
        self._call: Open | None = None
        self._number = 0
        self._tokens = 0  # that news came with
        self._scores: list[tuple[int, TokenLogprobs]] = []  # of tokens that no delta has told, with their numbers

    @property
    def status(self) -> State:
        """Where it stands."""
        status: State = self._document["status"]
        return status

    def response(self) -> dict[str, Any]:
        """The response object as it stands: items that are done, and in the end what it all took."""
        document = {**self._document, "output": list(self.output)}
        if self.status in FINAL:
            document |= {"usage": usage_of(self._usage), "performance": self._usage.performance()}
        return document

    def told(self, kind: str, status: State | None = None) -> Event:
        """An event with the response, which is now ``status``."""
        if status is not None:
            self._document["status"] = status
        return self._event(kind, response=self.response())

    def push(self, news: ChatNews) -> Iterator[Event]:
        """The events that news become."""
        delta = news.delta
        if self._top is not None:
            self._scores += enumerate(news.logprobs, self._tokens)
            self._tokens += len(news.logprobs)
        if delta.reasoning:
            yield from self._think(delta.reasoning)
        if delta.content:
            yield from self._say(delta.content)
        for call in delta.calls:
            yield from self._ask(call)

    def finish(self, reason: str) -> Iterator[Event]:
        """The last events; ``reason``: stop, length or tool_calls."""
        cut = reason == "length"
        if not cut and self._thoughts is self._answer is self._call is None and not self.output:
            yield from self._begin_answer()  # clients look for a message
        yield from self._close("incomplete" if cut else "completed")
        if cut:
            self._document["incomplete_details"] = {"reason": "max_output_tokens"}
            yield self.told("response.incomplete", "incomplete")
        else:
            self._document["completed_at"] = int(time.time())
            yield self.told("response.completed", "completed")

    def fail(self, failure: Failure) -> Iterator[Event]:
        """The last events of a response that failed."""
        code = {429: "rate_limit_exceeded"}.get(failure.status, "server_error")
        self._document["error"] = {"code": code, "message": failure.message}
        yield from self._close("incomplete")
        yield self._event("error", code=failure.code, message=failure.message, param=failure.param)
        yield self.told("response.failed", "failed")

    def cancel(self) -> None:
        """It ends here, and nobody is told."""
        for _ in self._close("incomplete"):
            pass
        self._document["status"] = "cancelled"

    # ── thoughts ──

    def _think(self, text: str) -> Iterator[Event]:
        if self._thoughts is None:
            if self._answer is not None:
                self._scores.clear()  # of the thoughts' own tokens
            yield from self._close("completed")
            self._thoughts = Open(new_id("rs"))
            yield self._added(reasoning("", item_id=self._thoughts.id, status="in_progress", sealed=False, empty=True))
            yield self._part("added", self._thoughts, {"type": "reasoning_text", "text": ""})
        self._thoughts.texts.append(text)
        yield self._delta("response.reasoning_text.delta", self._thoughts, text, content_index=0)

    def _close_thoughts(self, status: Status) -> Iterator[Event]:
        item, self._thoughts = self._thoughts, None
        if item is None:
            return
        text = item.text
        yield self._done("response.reasoning_text.done", item, content_index=0, text=text)
        yield self._part("done", item, {"type": "reasoning_text", "text": text})
        yield self._finished(reasoning(text, item_id=item.id, status=status, sealed=self._sealed))

    # ── the answer ──

    def _say(self, text: str) -> Iterator[Event]:
        if self._answer is None:
            yield from self._begin_answer()
        item = self._answer
        assert item is not None
        item.texts.append(text)
        logprobs = self._take_scores(item, len(text.encode())) if self._scores else []
        yield self._delta("response.output_text.delta", item, text, content_index=0, logprobs=logprobs)

    def _begin_answer(self) -> Iterator[Event]:
        yield from self._close("completed")
        self._answer = Open(new_id("msg"))
        yield self._added(message("", [], item_id=self._answer.id, status="in_progress", empty=True))
        yield self._part("added", self._answer, output_text("", []))

    def _close_answer(self, status: Status) -> Iterator[Event]:
        item = self._answer
        if item is None:
            return
        if self._scores and (rest := self._take_scores(item)):  # of tokens without text
            yield self._delta("response.output_text.delta", item, "", content_index=0, logprobs=rest)
        self._answer = None
        text, logprobs = item.text, item.logprobs
        yield self._done("response.output_text.done", item, content_index=0, text=text, logprobs=logprobs)
        yield self._part("done", item, output_text(text, logprobs))
        yield self._finished(message(text, logprobs, item_id=item.id, status=status))

    def _take_scores(self, item: Open, length: float = math.inf) -> list[dict[str, Any]]:
        """The log-probabilities of the answer's tokens that were not told yet, or of the next ``length`` bytes.

        What is held back may become a call: then its tokens are not the answer's.
        """
        thought = self._usage.reasoning_tokens
        mine = [(number, score) for number, score in self._scores if number >= thought]
        taken = 0
        while taken < len(mine) and length > 0:
            length -= len(self._tokenizer.token_bytes(mine[taken][1].token_id))
            taken += 1
        self._scores = mine[taken:]
        told = chat_logprobs(self._tokenizer, [score for _, score in mine[:taken]], self._top or 0)
        item.logprobs += told
        return told

    # ── calls ──

    def _ask(self, call: CallDelta) -> Iterator[Event]:
        self._scores.clear()  # of the call's own tokens
        if call.id is not None or self._call is None or self._call.call != call.index:
            yield from self._close("completed")
            self._call = Open(new_id("fc"), call.index, call.id or new_id("call"), call.name or "")
            yield self._added(self._called("in_progress"))
        if call.arguments:
            self._call.texts.append(call.arguments)
            yield self._delta("response.function_call_arguments.delta", self._call, call.arguments)

    def _close_call(self, status: Status) -> Iterator[Event]:
        item = self._call
        if item is None:
            return
        kind = "response.function_call_arguments.done"
        yield self._done(kind, item, arguments=item.text, name=item.name)
        finished = self._called(status)
        self._call = None
        yield self._finished(finished)

    def _called(self, status: Status) -> Item:
        item = self._call
        assert item is not None
        return function_call(item.call_id, item.name, item.text, item_id=item.id, status=status)

    # ── all ──

    def _close(self, status: Status) -> Iterator[Event]:
        """End the item that is open."""
        yield from self._close_thoughts(status)
        yield from self._close_answer(status)
        yield from self._close_call(status)

    def _added(self, item: Item) -> Event:
        return self._event("response.output_item.added", output_index=len(self.output), item=item)

    def _finished(self, item: Item) -> Event:
        event = self._event("response.output_item.done", output_index=len(self.output), item=item)
        self.output.append(item)
        return event

    def _part(self, what: str, item: Open, part: dict[str, Any]) -> Event:
        return self._done(f"response.content_part.{what}", item, content_index=0, part=part)

    def _done(self, kind: str, item: Open, **more: Any) -> Event:
        return self._event(kind, item_id=item.id, output_index=len(self.output), **more)

    def _delta(self, kind: str, item: Open, text: str, **more: Any) -> Event:
        if self._obfuscated:  # an eavesdropper shall not read the tokens' lengths
            more["obfuscation"] = secrets.token_hex(PADDING)[: -len(text) % PADDING]
        return self._event(kind, item_id=item.id, output_index=len(self.output), delta=text, **more)

    def _event(self, kind: str, **more: Any) -> Event:
        event = {"type": kind, "sequence_number": self._number, **more}
        self._number += 1
        return event

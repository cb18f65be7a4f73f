"""A chat's news in Anthropic's words: content blocks, their deltas, and what the message took."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic_core import from_json, to_json

from fermi.server.chat_run import ChatNews, ChatRun
from fermi.server.generation import Generation, Usage
from fermi.server.ids import new_id

Event = dict[str, Any]
Kind = Literal["thinking", "text", "tool_use"]

PING = b'event: ping\ndata: {"type":"ping"}\n\n'

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def wire(event: Event) -> bytes:
    """The event as it is sent."""
    kind: str = event["type"]
    return b"event: " + kind.encode() + b"\ndata: " + to_json(event) + b"\n\n"


@dataclass(slots=True)
class Blocks:
    """The content of a message as it grows: one block is open at a time.

    Attributes:
        show_thoughts: else thoughts have a block, but no text in it.
    """

    show_thoughts: bool = True
    _index: int = -1
    _open: Kind | None = None
    _call: int = -1
    _digest: Any = field(default_factory=hashlib.sha256)

    def add(self, news: ChatNews) -> Iterator[Event]:
        """The events of what came next."""
        delta = news.delta
        if delta.reasoning:
            yield from self._turn_to("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            self._digest.update(delta.reasoning.encode("utf-8", "surrogatepass"))
            if self.show_thoughts:
                yield self._delta({"type": "thinking_delta", "thinking": delta.reasoning})
        # Line breaks behind another block only part it from the text.
        text = delta.content.lstrip() if self._open in ("thinking", "tool_use") else delta.content
        if text:
            yield from self._turn_to("text", {"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": text})
        for call in delta.calls:
            if call.index != self._call:
                self._call = call.index
                name = "toolu_" + (call.id or "").removeprefix("call_")
                yield from self._close()
                yield self._begin("tool_use", {"type": "tool_use", "id": name, "name": call.name or "", "input": {}})
            if call.arguments:
                yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})
        if news.finish_reason is not None:
            if self._index < 0:  # clients look into the first block
                yield self._begin("text", {"type": "text", "text": ""})
            yield from self._close()

    def _turn_to(self, kind: Kind, block: Event) -> Iterator[Event]:
        if self._open != kind:
            yield from self._close()
            yield self._begin(kind, block)

    def _begin(self, kind: Kind, block: Event) -> Event:
        self._open = kind
        self._index += 1
        return {"type": "content_block_start", "index": self._index, "content_block": block}

    def _delta(self, delta: Event) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _close(self) -> Iterator[Event]:
        if self._open is None:
            return
        if self._open == "thinking":  # nothing is signed; clients take a block without a signature for unfinished
            signature = base64.b64encode(self._digest.digest()).decode("ascii")
            yield self._delta({"type": "signature_delta", "signature": signature})
        self._open = None
        yield {"type": "content_block_stop", "index": self._index}


@dataclass(slots=True)
class MessageReply:
    """A message on its way to the client, whole or in events. ``max_tokens``: what was asked for."""

    run: ChatRun
    max_tokens: int
    show_thoughts: bool = True

    @property
    def generation(self) -> Generation:
        """What runs for it."""
        return self.run.generation

    async def whole(self) -> dict[str, Any]:
        """The ``message`` object, when all is said."""
        message: dict[str, Any] = {}
        buffers: dict[int, str] = {}
        async for event in self._events():
            _accumulate(message, buffers, event)
        return message

    async def events(self) -> AsyncIterator[bytes]:
        """The message as server-sent events."""
        async for event in self._events():
            yield wire(event)
            if event["type"] == "message_start":
                yield PING  # as Anthropic's servers do

    async def _events(self) -> AsyncIterator[Event]:
        blocks, begun = Blocks(self.show_thoughts), False
        async for news in self.run.news():
            if not begun:
                begun = True
                yield {"type": "message_start", "message": self._head()}
            for event in blocks.add(news):
                yield event
            if news.finish_reason is not None:
                stopped = news.stopped_by is not None and news.finish_reason == "stop"
                reason = "stop_sequence" if stopped else _REASONS.get(news.finish_reason, "end_turn")
                if reason == "max_tokens" and self._context_is_full:
                    reason = "model_context_window_exceeded"
                delta = {"stop_reason": reason, "stop_sequence": news.stopped_by if stopped else None}
                yield {"type": "message_delta", "delta": delta, "usage": usage_of(self.run.usage)}
        if begun:  # else it was cancelled
            yield {"type": "message_stop"}

    @property
    def _context_is_full(self) -> bool:
        """Whether there was no room for as many tokens as were asked for."""
        usage = self.run.usage
        full = usage.prompt_tokens + usage.completion_tokens >= self.run.served.max_model_len
        return full and usage.completion_tokens < self.max_tokens

    def _head(self) -> dict[str, Any]:
        return {
            "id": f"msg_{new_id()}",
            "type": "message",
            "role": "assistant",
            "model": self.run.served.name,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {**usage_of(self.run.usage), "service_tier": "standard"},
        }


def usage_of(usage: Usage) -> dict[str, Any]:
    """The ``usage`` object; tokens that were read from the cache are not among the input's."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


def _accumulate(message: dict[str, Any], buffers: dict[int, str], event: Event) -> None:
    """Take an event into the message that it tells of; ``buffers``: tools' input as far as it came."""
    match event["type"]:
        case "message_start":
            message |= event["message"]
        case "content_block_start":
            message["content"].append(dict(event["content_block"]))
        case "content_block_delta":
            at, delta = event["index"], event["delta"]
            block = message["content"][at]
            if delta["type"] == "input_json_delta":
                buffers[at] = buffers.get(at, "") + delta["partial_json"]
            else:
                name = delta["type"].removesuffix("_delta")
                block[name] += delta[name]
        case "content_block_stop":
            if event["index"] in buffers:
                message["content"][event["index"]]["input"] = _object(buffers[event["index"]])
        case "message_delta":
            message |= event["delta"]
            message["usage"] |= event["usage"]


def _object(text: str) -> dict[str, Any]:
    """A tool's input: what there is of it where the reply was cut off."""
    try:
        parsed = from_json(text, allow_partial="trailing-strings")
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}

"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from fermi.engine.event import TokenLogprobs
from fermi.server.body import DirectRoute, body_of, documented
from fermi.server.chat_run import Answer, Call, ChatRun, start_chat
from fermi.server.chat_text import CallDelta, ChatDelta
from fermi.server.generation import Generation
from fermi.server.ids import new_id
from fermi.server.logprobs import chat_logprobs, prompt_logprobs
from fermi.server.respond import respond
from fermi.server.schema.chat import ChatBody
from fermi.server.sse import data
from fermi.server.state import state_of

router = APIRouter(route_class=DirectRoute, tags=["chat"])

PATH = "/v1/chat/completions"


@router.post(PATH, openapi_extra=documented(ChatBody))
async def chat_completions(body: Annotated[ChatBody, Depends(body_of(ChatBody))], request: Request) -> Response:
    """The assistant's reply to a conversation."""
    run = await start_chat(body, state_of(request), PATH)
    return await respond(ChatReply(run), request, stream=bool(body.stream))


@dataclass(slots=True)
class ChatReply:
    """A reply on its way to the client, whole or in chunks."""

    run: ChatRun

    @property
    def generation(self) -> Generation:
        """What runs for it."""
        return self.run.generation

    async def whole(self) -> dict[str, Any]:
        """The ``chat.completion`` object, when all is said."""
        body = self.run.body
        answers = await self.run.answers()
        choices = [
            {
                "index": at,
                "message": _message(answer),
                "logprobs": self._logprobs(answer.logprobs),
                "finish_reason": answer.finish_reason,
                **({"token_ids": answer.token_ids} if body.return_token_ids else {}),
            }
            for at, answer in enumerate(answers)
        ]
        usage = self.run.usage
        document = {**self._head("chat.completion"), "choices": choices, "usage": usage.wire(), **self._prompt()}
        scores = answers[0].prompt_logprobs
        if body.prompt_logprobs is not None and scores is not None:
            document["prompt_logprobs"] = prompt_logprobs(self.run.served.tokenizer, scores, body.prompt_logprobs)
        if body.metadata is not None:
            document["metadata"] = body.metadata
        return {**document, "performance": usage.performance()}

    async def events(self) -> AsyncIterator[bytes]:
        """The chunks as server-sent events: roles, deltas, finish, usage."""
        body = self.run.body
        head = self._head("chat.completion.chunk")
        if body.include_usage or body.continuous_usage:
            head["usage"] = None
        scores: list[list[TokenLogprobs]] = [[] for _ in self.run.choices]
        token_ids: list[list[int]] | None = [[] for _ in self.run.choices] if body.return_token_ids else None
        begun = False
        async for news in self.run.news():
            if not begun:
                begun = True
                for at in self.run.choices:
                    yield self._chunk({**head, **self._prompt()}, at, {"role": "assistant", "content": ""})
            at = news.index
            ids = None
            if token_ids is not None:
                token_ids[at] += news.token_ids
                ids = token_ids[at]
            scores[at] += news.logprobs
            for wire in _deltas(news.delta):
                yield self._chunk(head, at, wire, scores[at], token_ids=ids)
                scores[at] = []
                if token_ids is not None:
                    ids = token_ids[at] = []
            if news.finish_reason is not None:
                if scores[at]:  # of tokens without text
                    yield self._chunk(head, at, {"content": ""}, scores[at])
                    scores[at] = []
                extra: dict[str, Any] = {"performance": self.run.usage.performance()}
                if body.metadata is not None:
                    extra["metadata"] = body.metadata
                yield self._chunk({**head, **extra}, at, {}, finish_reason=news.finish_reason, token_ids=ids)
        if body.include_usage:
            usage = self.run.usage
            yield data({**head, "choices": [], "usage": usage.wire(), "performance": usage.performance()})

    def _chunk(
        self,
        head: dict[str, Any],
        at: int,
        delta: dict[str, Any],
        scores: list[TokenLogprobs] | None = None,
        finish_reason: str | None = None,
        token_ids: list[int] | None = None,
    ) -> bytes:
        logprobs = self._logprobs(scores) if scores else None
        choice = {"index": at, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        if token_ids is not None:
            choice["token_ids"] = token_ids
        usage = {"usage": self.run.usage.wire()} if self.run.body.continuous_usage else {}
        return data({**head, "choices": [choice], **usage})

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{new_id()}",
            "object": kind,
            "created": int(time.time()),
            "model": self.run.served.name,
        }

    def _logprobs(self, scores: list[TokenLogprobs]) -> dict[str, Any] | None:
        wanted = self.run.params.logprobs
        if wanted is None:
            return None
        as_ids = bool(self.run.body.return_tokens_as_token_ids)
        content = chat_logprobs(self.run.served.tokenizer, scores, wanted, as_ids=as_ids)
        return {"content": content, "refusal": None}

    def _prompt(self) -> dict[str, Any]:
        """What is told of the prompt's tokens."""
        return {"prompt_token_ids": list(self.run.prompt.token_ids)} if self.run.body.return_token_ids else {}


def _message(answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.content, "refusal": None}
    if answer.reasoning:
        message |= {"reasoning_content": answer.reasoning, "reasoning": answer.reasoning}
    if answer.calls:
        message["tool_calls"] = [_call(call) for call in answer.calls]
        message["content"] = answer.content or None
    return message


def _deltas(delta: ChatDelta) -> list[dict[str, Any]]:
    """The ``delta`` objects of one piece of news."""
    deltas: list[dict[str, Any]] = []
    if delta.reasoning:
        deltas.append({"reasoning_content": delta.reasoning, "reasoning": delta.reasoning})
    if delta.content:
        deltas.append({"content": delta.content})
    deltas += [{"tool_calls": [_call_delta(call)]} for call in delta.calls]
    return deltas


def _call(call: Call) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _call_delta(call: CallDelta) -> dict[str, Any]:
    if call.id is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    return {"index": call.index, **_call(Call(call.id, call.name or "", call.arguments))}

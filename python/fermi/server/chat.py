"""POST /v1/chat/completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from fermi.errors import RequestError
from fermi.sampling_params import SamplingParams
from fermi.server.body import body_of, documented
from fermi.server.chat_text import ChatDelta, ChatText
from fermi.server.generation import Generation, Piece
from fermi.server.logprobs import chat_logprobs
from fermi.server.prompts import Prompt, engine_request, off_loop, room, sampling_params, template_variables
from fermi.server.respond import respond
from fermi.server.schema.chat import ChatBody
from fermi.server.served import ServedModel
from fermi.server.sse import data
from fermi.server.state import ServerState, state_of
from fermi.server.thinking import ThinkingPlan
from fermi.text.messages import normalise_messages

router = APIRouter(tags=["chat"])

PATH = "/v1/chat/completions"

ROLES = ("system", "developer", "user", "assistant", "tool")


@router.post(PATH, openapi_extra=documented(ChatBody))
async def chat_completions(body: Annotated[ChatBody, Depends(body_of(ChatBody))], request: Request) -> Response:
    """The assistant's reply to a conversation."""
    return await respond(await prepare(body, state_of(request)), request, stream=bool(body.stream))


async def prepare(body: ChatBody, state: ServerState) -> ChatReply:
    """Check everything and submit it. Raises what `fermi.errors` has for a client."""
    served = state.serving(body.model, ServedModel, PATH)
    check_honourable(body)
    settings = state.settings.openai
    plan = ThinkingPlan.of(body, served, settings)
    tools = wanted_tools(body)
    messages = conversation(body, settings.default_system_prompt)
    variables = template_variables(plan.template_variables(body))

    def render() -> Prompt:
        continues = bool(body.continue_final_message)
        text = served.template.render(
            messages,
            tools=tools or None,
            add_generation_prompt=body.add_generation_prompt is not False and not continues,
            continue_final_message=continues,
            documents=body.documents,
            **variables,
        )
        text = plan.close(text)
        return Prompt(served.tokenizer.encode(text, add_special_tokens=bool(body.add_special_tokens)), text)

    prompt = await off_loop(sum(len(str(message.get("content"))) for message in messages), render)
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    limit = room(served, prompt, asked, default=served.defaults.max_tokens, param="messages", field=field)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    params = sampling_params(body, served, max_tokens=limit, logprobs=logprobs)
    submitted = engine_request(served, body, prompt, params, settings.timeout_ms)
    generation = Generation(served, [submitted], params, continues=bool(body.continue_final_message))
    texts = [ChatText(plan, prompt.text or "", bool(tools)) for _ in generation.choices]
    return ChatReply(body, served, params, generation, texts)


def check_honourable(body: ChatBody) -> None:
    """RequestError naming the first field that asks for what is not there yet."""
    if body.response_format not in (None, {"type": "text"}):
        raise _unsupported("response_format", "only {'type': 'text'} is supported")
    if body.tool_choice not in (None, "none", "auto"):
        raise _unsupported("tool_choice", "only 'auto' and 'none' are supported")
    if body.tool_choice == "auto" and not body.tools:
        raise RequestError("tool_choice needs tools", param="tool_choice")
    for at, tool in enumerate(body.tools or ()):
        if (tool.function.model_extra or {}).get("strict"):
            raise _unsupported(f"tools.{at}.function.strict", "schemas of tools are not enforced")
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")


def wanted_tools(body: ChatBody) -> list[dict[str, Any]]:
    """The tools that the model is offered, as the template wants them."""
    if body.tool_choice == "none":
        return []
    return [tool.model_dump(exclude_unset=True) for tool in body.tools or ()]


def conversation(body: ChatBody, system_prompt: str | None) -> list[dict[str, Any]]:
    """The messages in the template's form, the server's system prompt before them where there is none."""
    for at, message in enumerate(body.messages):
        role = message.get("role")
        if role not in ROLES:
            raise RequestError(f"messages.{at}.role must be one of {', '.join(ROLES)}", param=f"messages.{at}.role")
        if message.get("content") is None and role != "assistant":
            raise RequestError(f"messages.{at}.content is missing", param=f"messages.{at}.content")
    messages = normalise_messages(body.messages)
    if system_prompt and not any(message["role"] == "system" for message in messages):
        messages.insert(0, {"role": "system", "content": system_prompt})
    return messages


@dataclass(slots=True)
class ChatReply:
    """A reply on its way to the client, whole or in chunks."""

    body: ChatBody
    served: ServedModel
    params: SamplingParams
    generation: Generation
    texts: list[ChatText]

    async def whole(self) -> dict[str, Any]:
        """The ``chat.completion`` object, when all is said."""
        reasonings = ["" for _ in self.texts]
        contents = ["" for _ in self.texts]
        calls: list[list[dict[str, Any]]] = [[] for _ in self.texts]
        scores: list[list[dict[str, Any]]] = [[] for _ in self.texts]
        reasons: list[str | None] = [None for _ in self.texts]
        async for piece in self.generation.pieces():
            at = piece.index
            delta, reason = self._take(piece)
            reasonings[at] += delta.reasoning
            contents[at] += delta.content
            calls[at] += [_call(call.name, call.arguments) for call in delta.calls]
            scores[at] += self._scores(piece)
            reasons[at] = reason or reasons[at]
        choices = []
        for at in self.generation.choices:
            message: dict[str, Any] = {"role": "assistant", "content": contents[at], "refusal": None}
            if reasonings[at]:
                message |= {"reasoning_content": reasonings[at], "reasoning": reasonings[at]}
            if calls[at]:
                message["tool_calls"] = calls[at]
                message["content"] = contents[at] or None
            choices.append(
                {
                    "index": at,
                    "message": message,
                    "logprobs": self._logprobs(scores[at]),
                    "finish_reason": reasons[at],
                }
            )
        usage = self.generation.usage
        document = {**self._head("chat.completion"), "choices": choices, "usage": usage.wire()}
        return {**document, "performance": usage.performance()}

    async def events(self) -> AsyncIterator[bytes]:
        """The chunks as server-sent events: roles, deltas, finish, usage."""
        head = self._head("chat.completion.chunk")
        if self.body.include_usage or self.body.continuous_usage:
            head["usage"] = None
        scores: list[list[dict[str, Any]]] = [[] for _ in self.texts]
        begun = False
        async for piece in self.generation.pieces():
            if not begun:
                begun = True
                for at in self.generation.choices:
                    yield self._chunk(head, at, {"role": "assistant", "content": ""})
            at = piece.index
            delta, reason = self._take(piece)
            scores[at] += self._scores(piece)
            for wire in self._deltas(at, delta):
                yield self._chunk(head, at, wire, scores[at])
                scores[at] = []
            if reason is not None:
                if scores[at]:  # of tokens without text
                    yield self._chunk(head, at, {"content": ""}, scores[at])
                    scores[at] = []
                extra = {"performance": self.generation.usage.performance()}
                yield self._chunk({**head, **extra}, at, {}, finish_reason=reason)
        if self.body.include_usage:
            usage = self.generation.usage
            yield data({**head, "choices": [], "usage": usage.wire(), "performance": usage.performance()})

    def _take(self, piece: Piece) -> tuple[ChatDelta, str | None]:
        """Tell the piece apart; the reason it ended for, in a chat's words."""
        text = self.texts[piece.index]
        before = text.reasoning_tokens
        delta = text.push(piece)
        self.generation.usage.reasoning_tokens += text.reasoning_tokens - before
        reason = piece.finish_reason
        if self.body.parallel_tool_calls is False and delta.calls:
            delta.calls, delta.content, text.calls = delta.calls[:1], "", 1
            if reason is None:
                self.generation.end(piece.index)
                reason = "stop"
        if reason == "stop" and text.calls:
            reason = "tool_calls"
        return delta, reason

    def _deltas(self, at: int, delta: ChatDelta) -> list[dict[str, Any]]:
        """The ``delta`` objects of one piece of news."""
        deltas: list[dict[str, Any]] = []
        if delta.reasoning:
            deltas.append({"reasoning_content": delta.reasoning, "reasoning": delta.reasoning})
        if delta.content:
            deltas.append({"content": delta.content})
        first = self.texts[at].calls - len(delta.calls)
        for index, call in enumerate(delta.calls, first):
            deltas.append({"tool_calls": [{"index": index, **_call(call.name, "")}]})
            deltas.append({"tool_calls": [{"index": index, "function": {"arguments": call.arguments}}]})
        return deltas

    def _chunk(
        self,
        head: dict[str, Any],
        at: int,
        delta: dict[str, Any],
        scores: list[dict[str, Any]] | None = None,
        finish_reason: str | None = None,
    ) -> bytes:
        logprobs = self._logprobs(scores) if scores else None
        choice = {"index": at, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        usage = {"usage": self.generation.usage.wire()} if self.body.continuous_usage else {}
        return data({**head, "choices": [choice], **usage})

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": self.served.name,
        }

    def _scores(self, piece: Piece) -> list[dict[str, Any]]:
        if self.params.logprobs is None:
            return []
        return chat_logprobs(self.served.tokenizer, piece.logprobs, self.params.logprobs)

    def _logprobs(self, scores: list[dict[str, Any]]) -> dict[str, Any] | None:
        return None if self.params.logprobs is None else {"content": scores, "refusal": None}


def _call(name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _unsupported(param: str, why: str) -> RequestError:
    return RequestError(f"{param}: {why} by this server", param=param, code="unsupported_parameter")

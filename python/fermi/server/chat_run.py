"""One chat request while it runs, in no dialect: what chat completions, responses and messages all render."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fermi.engine.event import TokenLogprobs
from fermi.errors import RequestError
from fermi.sampling_params import SamplingParams
from fermi.server.chat_text import ChatDelta, ChatText
from fermi.server.generation import Generation, Piece, Usage
from fermi.server.prompts import Prompt, engine_request, off_loop, room, sampling_params, shortened, template_variables
from fermi.server.schema.chat import ChatBody
from fermi.server.served import ServedModel
from fermi.server.state import ServerState
from fermi.server.structured import reply_bounds, wanted_structure
from fermi.server.thinking import ThinkingPlan
from fermi.server.tools import ToolPlan
from fermi.text.conversation import fitted
from fermi.text.messages import normalise_messages

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(slots=True)
class ChatNews:
    """News of one choice.

    Attributes:
        logprobs: of the tokens that the news came with, where they were asked for.
        finish_reason: stop, length or tool_calls with the last news of the choice.
        stopped_by: the stop string that ended it.
        token_ids: the tokens that the news came with.
        prompt_logprobs: of the prompt, once, where they were asked for.
    """

    index: int
    delta: ChatDelta
    logprobs: list[TokenLogprobs]
    finish_reason: str | None = None
    stopped_by: str | None = None
    token_ids: Sequence[int] = ()
    prompt_logprobs: list[TokenLogprobs | None] | None = None


@dataclass(slots=True)
class Call:
    """A tool call as far as it came; ``arguments`` is JSON text."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Answer:
    """All that one choice has said."""

    reasoning: str = ""
    content: str = ""
    calls: list[Call] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None

    def add(self, news: ChatNews) -> None:
        """Take in what came next."""
        self.reasoning += news.delta.reasoning
        self.content += news.delta.content
        for call in news.delta.calls:
            if call.id is not None:
                self.calls.append(Call(call.id, call.name or ""))
            self.calls[call.index].arguments += call.arguments
        self.logprobs += news.logprobs
        self.token_ids += news.token_ids
        self.prompt_logprobs = news.prompt_logprobs or self.prompt_logprobs
        self.finish_reason = news.finish_reason or self.finish_reason


@dataclass(slots=True)
class ChatRun:
    """A conversation that the engine continues; ``texts`` has the state of each choice."""

    body: ChatBody
    served: ServedModel
    params: SamplingParams
    plan: ThinkingPlan
    prompt: Prompt
    generation: Generation
    texts: list[ChatText]

    @property
    def choices(self) -> range:
        """The numbers of the choices."""
        return self.generation.choices

    @property
    def usage(self) -> Usage:
        """What it took so far."""
        return self.generation.usage

    async def news(self) -> AsyncIterator[ChatNews]:
        """What each choice says, as it comes. Raises as `Generation.pieces`."""
        async for piece in self.generation.pieces():
            yield self._told_apart(piece)

    async def answers(self) -> list[Answer]:
        """What each choice has said, when all is said. Raises as `Generation.pieces`."""
        answers = [Answer() for _ in self.choices]
        async for news in self.news():
            answers[news.index].add(news)
        return answers

    def _told_apart(self, piece: Piece) -> ChatNews:
        text = self.texts[piece.index]
        before = text.reasoning_tokens
        delta = text.push(piece)
        self.usage.reasoning_tokens += text.reasoning_tokens - before
        reason = piece.finish_reason
        if text.over and reason is None:
            self.generation.end(piece.index)
            reason = "stop"
        if reason == "stop" and text.calls:
            reason = "tool_calls"
        return ChatNews(
            piece.index, delta, piece.logprobs, reason, piece.stopped_by, piece.token_ids, piece.prompt_logprobs
        )


class ReadChat(NamedTuple):
    """A conversation that was checked and made into a prompt, and not yet submitted."""

    served: ServedModel
    plan: ThinkingPlan
    tools: ToolPlan
    prompt: Prompt


async def read_chat(body: ChatBody, state: ServerState, path: str) -> ReadChat:
    """The prompt of a conversation. Raises as `start_chat`, but for what the engine refuses."""
    served = await state.serving(body.model, ServedModel, path, body.timeout)
    check_honourable(body)
    plan = ThinkingPlan.of(body, served, state.settings.openai)
    tools = ToolPlan.of(body)
    messages = conversation(body, state.settings.openai.default_system_prompt)
    return ReadChat(served, plan, tools, await rendered(body, served, plan, messages, tools.shown))


async def start_chat(body: ChatBody, state: ServerState, path: str, *, most_tokens: int | None = None) -> ChatRun:
    """Check everything and submit it. Raises what `fermi.errors` has for a client; ``path``: the endpoint it asked.

    ``most_tokens``: of the reply where the body does not say, or as many as there is room for.
    """
    served, plan, tools, prompt = await read_chat(body, state, path)
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    prompt = shortened(prompt, body, served, asked)
    defaults = served.defaults
    default = defaults.max_tokens if most_tokens is None else min(most_tokens, defaults.max_tokens_cap)
    limit = room(served, prompt, asked, default=default, param="messages", field=name)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    params = sampling_params(body, served, max_tokens=limit, logprobs=logprobs, prompt_logprobs=body.prompt_logprobs)
    thoughts = plan.thoughts(prompt.text or "", continues=bool(body.continue_final_message))
    structure = await tools.structure(served, wanted_structure(body))
    bounds = await reply_bounds(served, structure, thoughts, plan.budget(limit))
    submitted = engine_request(served, body, prompt, params, state.settings.openai.timeout_ms, bounds)
    special = served.replies.special if params.skip_special_tokens else {}
    continues = bool(body.continue_final_message)
    generation = Generation(served, [submitted], params, continues=continues, kept=special.values())
    known = served.replies.tools.markers() if tools.callable else ()  # the parser of calls hides these by itself
    hidden = tuple(marker for marker in special if marker not in known)
    texts = [
        ChatText(plan, prompt.text or "", tools.parser(served), not tools.parallel, hidden) for _ in generation.choices
    ]
    return ChatRun(body, served, params, plan, prompt, generation, texts)


async def rendered(
    body: ChatBody,
    served: ServedModel,
    plan: ThinkingPlan,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]],
) -> Prompt:
    """The prompt that the model's template makes of a conversation. ChatTemplateError where it refuses."""
    variables = template_variables(plan.template_variables(body))
    continues = bool(body.continue_final_message)

    def render() -> Prompt:
        shown, offered = fitted(messages, tools, served.template.abilities, served.replies.tools)
        text = served.template.render(
            shown,
            tools=offered or None,
            add_generation_prompt=body.add_generation_prompt is not False and not continues,
            continue_final_message=continues,
            documents=body.documents,
            **variables,
        )
        text = plan.close(text)
        return Prompt(served.tokenizer.encode(text, add_special_tokens=bool(body.add_special_tokens)), text)

    return await off_loop(sum(len(str(each)) for each in (*messages, *tools)), render)


def check_honourable(body: ChatBody) -> None:
    """RequestError naming the first field that asks for what is not there yet."""
    if body.stream and body.prompt_logprobs is not None:
        raise RequestError("prompt_logprobs: not in streams", param="prompt_logprobs")
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")


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

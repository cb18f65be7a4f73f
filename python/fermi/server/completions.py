"""POST /v1/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from fermi.engine.sequence import Grammar
from fermi.errors import RequestError
from fermi.sampling_params import SamplingParams
from fermi.server.body import DirectRoute, body_of, documented
from fermi.server.generation import Generation, Piece
from fermi.server.ids import new_id
from fermi.server.logprobs import CompletionLogprobs
from fermi.server.prompts import Prompt, engine_request, off_loop, room, sampling_params
from fermi.server.respond import respond
from fermi.server.schema.completions import CompletionBody
from fermi.server.served import ServedModel
from fermi.server.sse import data
from fermi.server.state import ServerState, state_of
from fermi.server.structured import reply_bounds, wanted_structure
from fermi.text.grammar import Thoughts
from fermi.text.reasoning import ReasoningSplitter

router = APIRouter(route_class=DirectRoute, tags=["completions"])

PATH = "/v1/completions"

DEFAULT_MAX_TOKENS = 16
MAX_CHOICES = 1024


@router.post(PATH, openapi_extra=documented(CompletionBody))
async def completions(body: Annotated[CompletionBody, Depends(body_of(CompletionBody))], request: Request) -> Response:
    """The continuation of one or several texts."""
    return await respond(await prepare(body, state_of(request)), request, stream=bool(body.stream))


async def prepare(body: CompletionBody, state: ServerState) -> CompletionReply:
    """Check everything and submit it. Raises what `fermi.errors` has for a client."""
    served = await state.serving(body.model, ServedModel, PATH, body.timeout)
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise RequestError("best_of is only supported where it equals n", param="best_of", code="unsupported_parameter")
    given = listed(body)
    if len(given) * (body.n or 1) > MAX_CHOICES:
        raise RequestError(f"prompt: more than {MAX_CHOICES} completions in one request", param="prompt")
    prompts = await encode(given, served, add_special_tokens=body.add_special_tokens is not False)
    params = [_params(body, served, prompt) for prompt in prompts]
    opened = [ReasoningSplitter.opened_by(_end(prompt, served)) for prompt in prompts]
    bounds = {each: await _bounds(body, served, opened=each) for each in set(opened)}
    timeout_ms = state.settings.openai.timeout_ms
    requests = [
        engine_request(served, body, prompt, each, timeout_ms, bounds[inside])
        for prompt, each, inside in zip(prompts, params, opened, strict=True)
    ]
    generation = Generation(served, requests, params[0], continues=True)
    return CompletionReply(body, served, params[0], prompts, generation)


def listed(body: CompletionBody) -> list[str | list[int]]:
    """The prompts, one by one."""
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise RequestError("prompt: must not be empty", param="prompt")
    tokens = [each for each in prompt if isinstance(each, int)]
    if tokens:
        return [tokens]
    return [each for each in prompt if not isinstance(each, int)]


async def encode(given: list[str | list[int]], served: ServedModel, *, add_special_tokens: bool) -> list[Prompt]:
    """Token ids of each prompt. RequestError for one that is empty."""
    characters = sum(len(each) for each in given if isinstance(each, str))

    def work() -> list[Prompt]:
        return [
            Prompt(served.tokenizer.encode(each, add_special_tokens), each) if isinstance(each, str) else Prompt(each)
            for each in given
        ]

    prompts = await off_loop(characters, work)
    if not all(prompt.token_ids for prompt in prompts):
        raise RequestError("prompt: must hold at least one token", param="prompt")
    return prompts


def _params(body: CompletionBody, served: ServedModel, prompt: Prompt) -> SamplingParams:
    limit = room(served, prompt, body.max_tokens, default=DEFAULT_MAX_TOKENS, param="prompt", field="max_tokens")
    scores_of_prompt = body.logprobs if body.echo else None
    return sampling_params(body, served, max_tokens=limit, logprobs=body.logprobs, prompt_logprobs=scores_of_prompt)


async def _bounds(body: CompletionBody, served: ServedModel, *, opened: bool) -> Grammar | None:
    """What bounds the text after a prompt. ``opened``: it ends inside a thinking block, behind which a form begins."""
    structure = wanted_structure(body)
    budget = None if body.thinking_budget == -1 else body.thinking_budget
    return await reply_bounds(served, structure, Thoughts(opened) if opened or structure is None else None, budget)


def _end(prompt: Prompt, served: ServedModel) -> str:
    """The end of a prompt's text."""
    if prompt.text is not None:
        return prompt.text
    return served.tokenizer.decode(prompt.token_ids[-16:], skip_special_tokens=False)


@dataclass(slots=True)
class CompletionReply:
    """A reply on its way to the client, whole or in chunks."""

    body: CompletionBody
    served: ServedModel
    params: SamplingParams
    prompts: list[Prompt]
    generation: Generation

    async def whole(self) -> dict[str, Any]:
        """The ``text_completion`` object, when all is said."""
        scores = [self._scores() for _ in self.generation.choices]
        texts = [self._echo(at) for at in self.generation.choices]
        reasons: list[str | None] = [None for _ in texts]
        prompt_scores: dict[int, Any] = {}
        async for piece in self.generation.pieces():
            at = piece.index
            self._score(scores[at], piece, prompt_scores)
            texts[at] += piece.text
            reasons[at] = piece.finish_reason
        choices = [
            {
                "index": at,
                "text": texts[at],
                "logprobs": each.take() if (each := scores[at]) else None,
                "finish_reason": reasons[at],
            }
            for at in self.generation.choices
        ]
        usage = self.generation.usage
        document = {**self._head(), "choices": choices, "usage": usage.wire()}
        return {**document, "performance": usage.performance()}

    async def events(self) -> AsyncIterator[bytes]:
        """The chunks as server-sent events: text, finish, usage."""
        head = self._head()
        if self.body.include_usage or self.body.continuous_usage:
            head["usage"] = None
        scores = [self._scores() for _ in self.generation.choices]
        echoes = [self._echo(at) for at in self.generation.choices]
        prompt_scores: dict[int, Any] = {}
        async for piece in self.generation.pieces():
            at, own = piece.index, scores[piece.index]
            self._score(own, piece, prompt_scores)
            text, echoes[at] = echoes[at] + piece.text, ""
            if text or (own and own.tokens):
                yield self._chunk(head, at, text, own.take() if own else None, None)
            if piece.finish_reason is not None:
                extra = {"performance": self.generation.usage.performance()}
                yield self._chunk({**head, **extra}, at, "", None, piece.finish_reason)
        if self.body.include_usage:
            usage = self.generation.usage
            yield data({**head, "choices": [], "usage": usage.wire(), "performance": usage.performance()})

    def _score(self, scores: CompletionLogprobs | None, piece: Piece, of_prompts: dict[int, Any]) -> None:
        """Add the piece's log-probabilities; the prompt's come once, and stand before each of its choices."""
        if scores is None:
            return
        number = piece.index // self.params.n
        if piece.prompt_logprobs is not None:
            of_prompts[number] = piece.prompt_logprobs
        if self.body.echo and scores.offset == 0 and number in of_prompts:
            scores.add_prompt(self.prompts[number].token_ids, of_prompts[number])
        scores.add(piece.logprobs)

    def _scores(self) -> CompletionLogprobs | None:
        return None if self.body.logprobs is None else CompletionLogprobs(self.served.tokenizer, self.body.logprobs)

    def _echo(self, at: int) -> str:
        """The prompt as the text begins with it."""
        if not self.body.echo:
            return ""
        prompt = self.prompts[at // self.params.n]
        return self.served.tokenizer.decode(prompt.token_ids) if prompt.text is None else prompt.text

    def _head(self) -> dict[str, Any]:
        return {
            "id": f"cmpl-{new_id()}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.served.name,
        }

    def _chunk(
        self, head: dict[str, Any], at: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None
    ) -> bytes:
        choice = {"index": at, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
        usage = {"usage": self.generation.usage.wire()} if self.body.continuous_usage else {}
        return data({**head, "choices": [choice], **usage})

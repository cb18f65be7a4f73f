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
from fermi.server.logprobs import CompletionLogprobs, prompt_logprobs
from fermi.server.prompts import Prompt, engine_request, off_loop, room, sampling_params, shortened
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
    check_honourable(body)
    given = listed(body)
    if len(given) * max(body.best_of or 1, body.n or 1) > MAX_CHOICES:
        raise RequestError(f"prompt: more than {MAX_CHOICES} completions in one request", param="prompt")
    prompts = await encode(given, served, add_special_tokens=body.add_special_tokens is not False)
    prompts = [shortened(prompt, body, served, body.max_tokens) for prompt in prompts]
    params = [_params(body, served, prompt) for prompt in prompts]
    bounded = wanted_structure(body) is not None or body.thinking_budget is not None
    opened = [bounded and _opened(prompt, served) for prompt in prompts]
    bounds = {each: await _bounds(body, served, opened=each) for each in set(opened)}
    timeout_ms = state.settings.openai.timeout_ms
    requests = [
        engine_request(served, body, prompt, each, timeout_ms, bounds[inside])
        for prompt, each, inside in zip(prompts, params, opened, strict=True)
    ]
    generation = Generation(served, requests, params[0], continues=True)
    return CompletionReply(body, served, params[0], prompts, generation)


def check_honourable(body: CompletionBody) -> None:
    """RequestError naming the first field that does not go with another."""
    if body.best_of is not None and body.best_of < (body.n or 1):
        raise RequestError("best_of must not be less than n", param="best_of")
    if body.stream and (body.best_of or 1) > (body.n or 1):
        raise RequestError("best_of: which is best is only known at the end, not in a stream", param="best_of")
    if body.stream and body.prompt_logprobs is not None:
        raise RequestError("prompt_logprobs: not in streams", param="prompt_logprobs")


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
    asked = [each for each in (body.logprobs if body.echo else None, body.prompt_logprobs) if each is not None]
    logprobs, choices = body.logprobs, body.best_of or body.n or 1
    if logprobs is None and choices > (body.n or 1):
        logprobs = 0  # to tell which are best
    return sampling_params(
        body, served, max_tokens=limit, logprobs=logprobs, prompt_logprobs=max(asked, default=None), n=choices
    )


async def _bounds(body: CompletionBody, served: ServedModel, *, opened: bool) -> Grammar | None:
    """What bounds the text after a prompt. ``opened``: it ends inside a thinking block, behind which a form begins."""
    structure = wanted_structure(body)
    budget = None if body.thinking_budget == -1 else body.thinking_budget
    markers = served.replies.thoughts if opened or structure is None else None
    return await reply_bounds(served, structure, None if markers is None else Thoughts(opened, *markers), budget)


def _opened(prompt: Prompt, served: ServedModel) -> bool:
    """Whether a prompt ends inside a thinking block."""
    markers = served.replies.thoughts
    if markers is None:
        return False
    end = prompt.text
    if end is None:
        end = served.tokenizer.decode(prompt.token_ids[-16:], skip_special_tokens=False)
    return ReasoningSplitter.opened_by(end, markers.opening)


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
        token_ids: list[list[int]] = [[] for _ in texts]
        likely = [0.0 for _ in texts]
        prompt_scores: dict[int, Any] = {}
        async for piece in self.generation.pieces():
            at = piece.index
            self._score(scores[at], piece, prompt_scores)
            texts[at] += piece.text
            reasons[at] = piece.finish_reason
            token_ids[at] += piece.token_ids
            likely[at] += sum(each.logprob for each in piece.logprobs)
        choices = [
            {
                "index": index,
                "text": texts[at],
                "logprobs": each.take() if (each := scores[at]) else None,
                "finish_reason": reasons[at],
                **self._of_prompt(at, prompt_scores),
                **({"token_ids": token_ids[at]} if self.body.return_token_ids else {}),
            }
            for index, at in enumerate(self._best(likely, token_ids))
        ]
        usage = self.generation.usage
        document = {**self._head(), "choices": choices, "usage": usage.wire()}
        if self.body.metadata is not None:
            document["metadata"] = self.body.metadata
        return {**document, "performance": usage.performance()}

    def _best(self, likely: list[float], token_ids: list[list[int]]) -> list[int]:
        """Of each prompt's choices the n whose tokens are likeliest on average, where more were made."""
        made, wanted = self.params.n, self.body.n or 1
        if made == wanted:
            return list(self.generation.choices)
        mean = [total / max(1, len(ids)) for total, ids in zip(likely, token_ids, strict=True)]
        best: list[int] = []
        for first in range(0, len(mean), made):
            best += sorted(range(first, first + made), key=lambda at: (-mean[at], at))[:wanted]
        return best

    def _of_prompt(self, at: int, scores: dict[int, Any]) -> dict[str, Any]:
        """What is told of a choice's prompt."""
        number, top = at // self.params.n, self.body.prompt_logprobs
        told: dict[str, Any] = {}
        if self.body.return_token_ids:
            told["prompt_token_ids"] = list(self.prompts[number].token_ids)
        if top is not None and number in scores:
            told["prompt_logprobs"] = prompt_logprobs(self.served.tokenizer, scores[number], top)
        return told

    async def events(self) -> AsyncIterator[bytes]:
        """The chunks as server-sent events: text, finish, usage."""
        head = self._head()
        if self.body.include_usage or self.body.continuous_usage:
            head["usage"] = None
        scores = [self._scores() for _ in self.generation.choices]
        echoes = [self._echo(at) for at in self.generation.choices]
        prompt_scores: dict[int, Any] = {}
        token_ids: list[list[int]] = [[] for _ in echoes]
        told: list[dict[str, Any]] = [self._of_prompt(at, {}) for at in self.generation.choices]
        async for piece in self.generation.pieces():
            at, own = piece.index, scores[piece.index]
            self._score(own, piece, prompt_scores)
            text, echoes[at] = echoes[at] + piece.text, ""
            if self.body.return_token_ids:
                token_ids[at] += piece.token_ids
            if text or (own and own.tokens):
                yield self._chunk(head, at, text, own.take() if own else None, None, self._ids(token_ids, told, at))
            if piece.finish_reason is not None:
                extra: dict[str, Any] = {"performance": self.generation.usage.performance()}
                if self.body.metadata is not None:
                    extra["metadata"] = self.body.metadata
                ids = self._ids(token_ids, told, at)
                yield self._chunk({**head, **extra}, at, "", None, piece.finish_reason, ids)
        if self.body.include_usage:
            usage = self.generation.usage
            yield data({**head, "choices": [], "usage": usage.wire(), "performance": usage.performance()})

    def _ids(self, token_ids: list[list[int]], told: list[dict[str, Any]], at: int) -> dict[str, Any]:
        """The tokens since the choice's last chunk; with its first chunk the prompt's, too."""
        if not self.body.return_token_ids:
            return {}
        ids, token_ids[at] = token_ids[at], []
        first, told[at] = told[at], {}
        return {"token_ids": ids, **first}

    def _score(self, scores: CompletionLogprobs | None, piece: Piece, of_prompts: dict[int, Any]) -> None:
        """Add the piece's log-probabilities; the prompt's come once, and stand before each of its choices."""
        number = piece.index // self.params.n
        if piece.prompt_logprobs is not None:
            of_prompts[number] = piece.prompt_logprobs
        if scores is None:
            return
        if self.body.echo and scores.offset == 0 and number in of_prompts:
            scores.add_prompt(self.prompts[number].token_ids, of_prompts[number])
        scores.add([*piece.logprobs, *piece.stop_logprobs])  # harnesses count on one for each token that was drawn

    def _scores(self) -> CompletionLogprobs | None:
        return (
            None
            if self.body.logprobs is None
            else CompletionLogprobs(
                self.served.tokenizer, self.body.logprobs, bool(self.body.return_tokens_as_token_ids)
            )
        )

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
        self,
        head: dict[str, Any],
        at: int,
        text: str,
        logprobs: dict[str, Any] | None,
        finish_reason: str | None,
        token_ids: dict[str, Any],
    ) -> bytes:
        choice = {"index": at, "text": text, "logprobs": logprobs, "finish_reason": finish_reason, **token_ids}
        usage = {"usage": self.generation.usage.wire()} if self.body.continuous_usage else {}
        return data({**head, "choices": [choice], **usage})

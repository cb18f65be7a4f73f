"""From request fields to what the engine takes: token ids and sampling, checked against the model's limits."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fermi.engine.sequence import Grammar, Request
from fermi.engine.token_rules import TokenRules
from fermi.errors import ContextLengthError, RequestError
from fermi.sampling_params import SamplingParams
from fermi.server.exchange import exchange
from fermi.server.ids import new_id
from fermi.server.schema.common import GenerationBody
from fermi.server.served import ServedModel

Result = TypeVar("Result")

LONG_TEXT = 16_384  # characters; encoding more is left to a thread, so that other streams do not stutter


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is continued; ``text`` is None where the client sent token ids."""

    token_ids: Sequence[int]
    text: str | None = None


async def off_loop(characters: int, work: Callable[[], Result]) -> Result:
    """Do work on a text of so many characters, in a thread if it is long."""
    return await asyncio.to_thread(work) if characters > LONG_TEXT else work()


def sampling_params(
    body: GenerationBody,
    served: ServedModel,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    n: int | None = None,
) -> SamplingParams:
    """The request's wishes over the defaults. RequestError names a field that is out of range.

    ``n``: other than the request's. A default penalty never touches a greedy request.
    """
    defaults = served.defaults
    temperature = defaults.temperature if body.temperature is None else body.temperature
    return SamplingParams(
        n=n or body.n or 1,
        temperature=temperature,
        top_k=defaults.top_k if body.top_k is None else body.top_k,
        top_p=defaults.top_p if body.top_p is None else body.top_p,
        min_p=defaults.min_p if body.min_p is None else body.min_p,
        repetition_penalty=defaults.penalty(temperature)
        if body.repetition_penalty is None
        else body.repetition_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_logit_bias(body),
        seed=None if body.seed is None else body.seed % 2**64,
        stop=body.stop or (),
        stop_token_ids=body.stop_token_ids or (),
        include_stop_str_in_output=bool(body.include_stop_str_in_output),
        max_tokens=max_tokens,
        min_tokens=body.min_tokens or 0,
        ignore_eos=bool(body.ignore_eos),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        skip_special_tokens=body.skip_special_tokens is not False,
    )


def shortened(prompt: Prompt, body: GenerationBody, served: ServedModel, asked: int | None) -> Prompt:
    """The end of the prompt, where the request cuts its beginning off. ``asked``: tokens of the reply."""
    keep = body.truncate_prompt_tokens
    if keep is None:
        return prompt
    if keep == 0:
        raise RequestError("truncate_prompt_tokens: must be -1 or at least 1", param="truncate_prompt_tokens")
    if keep < 0:
        keep = max(1, served.max_model_len - (1 if asked is None else asked))
    if len(prompt.token_ids) <= keep:
        return prompt
    token_ids = prompt.token_ids[-keep:]
    return Prompt(token_ids, None if prompt.text is None else served.tokenizer.decode(token_ids, False))


def token_rules(body: GenerationBody, served: ServedModel, grammar: Grammar | None) -> Grammar | None:
    """The grammar, and with it which tokens and words the reply may not hold."""
    if not body.allowed_token_ids and not body.bad_words:
        return grammar
    size = served.tokenizer.vocab_size
    for token_id in body.allowed_token_ids or ():
        if token_id >= size:
            message = f"allowed_token_ids: token id {token_id} is not in the vocabulary, 0 … {size - 1}"
            raise RequestError(message, param="allowed_token_ids")
    forbidden: dict[tuple[int, ...], None] = {}  # in order, each once
    for word in body.bad_words or ():
        for written in (word.lstrip() or word, " " + word.lstrip()):  # within a text, and as a word of its own
            forbidden[tuple(served.tokenizer.encode(written, add_special_tokens=False))] = None
    return TokenRules(allowed=body.allowed_token_ids or (), forbidden=list(forbidden), grammar=grammar)


def room(served: ServedModel, prompt: Prompt, asked: int | None, *, default: int, param: str, field: str) -> int:
    """How many tokens a reply may have: what was asked for, else the default or what the context leaves.

    Raises:
        ContextLengthError: prompt and reply do not fit the model's context; ``param`` names the prompt's field.
        RequestError: more is asked for than the server allows; ``field`` names the limit's field.
    """
    length, limit = len(prompt.token_ids), served.max_model_len
    reply = 1 if asked is None else asked
    if length + reply > limit:
        raise ContextLengthError(
            f"This model's maximum context length is {limit} tokens. However, you requested {length + reply} tokens "
            f"({length} in the {param}, {reply} in the completion). Please reduce the length of the {param} or "
            "completion.",
            param=param,
            tokens=length,
            limit=limit,
        )
    cap = served.defaults.max_tokens_cap
    if asked is not None and asked > cap:
        raise RequestError(f"{field} is {asked}, but this server allows at most {cap}", param=field)
    return min(default, limit - length) if asked is None else asked


def template_variables(variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a chat template is told besides the conversation. RequestError for a name that is not free."""
    for name in ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "self"):
        if name in variables:
            param = f"chat_template_kwargs.{name}"
            raise RequestError(f"{param}: is set by the request itself", param=param)
    return variables


def engine_request(
    served: ServedModel,
    body: GenerationBody,
    prompt: Prompt,
    params: SamplingParams,
    timeout_ms: int,
    grammar: Grammar | None = None,
) -> Request:
    """The request for the engine; the deadline is the nearer of the client's and the server's."""
    exchange().user = body.user or body.safety_identifier or ""
    limits = [body.timeout] if body.timeout is not None else []
    limits += [timeout_ms / 1000] if timeout_ms else []
    return Request(
        id=new_id(),  # not the client's, which may come twice
        prompt_token_ids=prompt.token_ids,
        sampling=params.sampling(max_tokens=params.max_tokens or 0),
        eos_token_ids=served.tokenizer.eos_token_ids,
        deadline=time.monotonic() + min(limits) - exchange().waited_s if limits else None,
        priority=body.priority or 0,
        cache_salt=_salt(exchange().cache_owner, body.cache_salt or ""),
        affinity=_salt(body.prompt_cache_key or ""),
        grammar=token_rules(body, served, grammar),
    )


def _logit_bias(body: GenerationBody) -> dict[int, float]:
    biases: dict[int, float] = {}
    for token, bias in (body.logit_bias or {}).items():
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise RequestError(f"logit_bias: {token!r} is not a token id", param="logit_bias")
        biases[int(token)] = bias
    return biases


def _salt(*parts: str) -> int:
    """A number for the owner of cached blocks and the client's own salt; 0 where there are none."""
    if not any(parts):
        return 0
    text = "\0".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")

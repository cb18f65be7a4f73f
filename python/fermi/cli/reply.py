"""One reply in this process, printed while it is made."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from fermi.engine.sequence import Request
from fermi.errors import DeadlineError, EngineError
from fermi.loader import LoadedModel
from fermi.sampling_params import SamplingParams
from fermi.text.output import TextStream


def stream_reply(
    loaded: LoadedModel, token_ids: Sequence[int], params: SamplingParams, timeout_ms: int
) -> Iterator[str]:
    """The text that continues the prompt, bit by bit; it ends when the time is over (0: never).

    Raises:
        RequestError: the prompt does not fit the model's context.
        DeadlineError: the time was over before the first token.
        EngineError: the engine failed.
    """
    engine, tokenizer = loaded.engine, loaded.tokenizer
    room = max(1, engine.max_model_len - len(token_ids))
    limit = room if params.max_tokens is None else min(room, params.max_tokens)
    request = Request(
        id="reply",
        prompt_token_ids=token_ids,
        sampling=params.replace(max_tokens=limit).sampling(max_tokens=limit),
        eos_token_ids=tokenizer.eos_token_ids,
        deadline=time.monotonic() + timeout_ms / 1000 if timeout_ms else None,
    )
    text = TextStream(tokenizer, params.stop_strings)
    engine.add(request)
    try:
        while engine.has_work:
            for event in engine.step():
                if event.finish_reason == "error":
                    raise EngineError(event.error or "the engine failed")
                if event.finish_reason == "deadline" and event.error is not None:
                    raise DeadlineError(f"no token within {timeout_ms} ms: raise --timeout-ms")
                yield text.push(event.token_ids if event.stop_token_id is None else event.token_ids[:-1])
        yield text.finish()
    finally:
        engine.abort(request.id)
        while engine.has_work:
            engine.step()

"""A request to an embedding model while it runs: its texts as tokens, its rows, and the client that may leave."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastapi import Request
from starlette.requests import ClientDisconnect

from fermi.engine.embedder import TokenSequence
from fermi.engine.embedding_service import Rows
from fermi.errors import DeadlineError, EngineError
from fermi.server.exchange import exchange
from fermi.server.generation import Usage
from fermi.server.log import logger
from fermi.server.schema.embeddings import EncodingBody
from fermi.server.served import ServedEmbedder
from fermi.server.sse import hang_up
from fermi.server.state import ServerState
from fermi.text.tokenizer import Encoded


def length_limit(served: ServedEmbedder, body: EncodingBody, *, cut: bool) -> int | None:
    """At how many tokens texts are cut; None: what is too long is refused. ``cut``: what happens unasked."""
    asked = body.truncate_prompt_tokens
    if asked is None:
        return served.max_model_len if cut else None
    return served.max_model_len if asked < 0 else asked


async def rows_of(
    served: ServedEmbedder,
    encoded: Sequence[Encoded],
    body: EncodingBody,
    request: Request,
    state: ServerState,
    *,
    param: str,
) -> Rows:
    """What the model makes of sequences: float32 [sequences, size]. A client that leaves drops what has not begun.

    Raises:
        RequestError: a sequence cannot be embedded; ``param`` names its field.
        QueueFullError: too many wait.
        RateLimitError: the client may not use as many tokens.
        DeadlineError: the nearer of the client's and the server's time is over.
        ClientDisconnect: the client has left.
        EngineError: the engine failed.
    """
    limits = [body.timeout] if body.timeout is not None else []
    limits += [state.settings.openai.timeout_ms / 1000] if state.settings.openai.timeout_ms else []
    tokens = sum(len(each.token_ids) for each in encoded)
    exchange().reserve(tokens)
    result = served.service.submit([TokenSequence(*each) for each in encoded], param)
    exchange().began(served.name, Usage(prompt_tokens=tokens))
    if exchange().log_prompts:
        texts = [served.tokenizer.decode(each.token_ids, skip_special_tokens=False) for each in encoded]
        logger().info("prompts", request_id=exchange().request_id, prompts=texts)
    left = False

    def leave() -> None:
        nonlocal left
        left = True
        result.cancel()

    async with hang_up(request.receive, leave):
        try:
            return await asyncio.wait_for(result, min(limits, default=None))
        except EngineError as error:
            logger().error("the engine failed at a request", request_id=exchange().request_id, error=str(error))
            raise EngineError("The engine failed at this request; the server's log says why.") from None
        except asyncio.TimeoutError:
            raise DeadlineError("The request's time was over before all of it was computed.") from None
        except asyncio.CancelledError:
            if left:
                raise ClientDisconnect from None
            raise


def usage(encoded: Sequence[Encoded]) -> dict[str, int]:
    """The ``usage`` object."""
    tokens = sum(len(each.token_ids) for each in encoded)
    return {"prompt_tokens": tokens, "total_tokens": tokens}

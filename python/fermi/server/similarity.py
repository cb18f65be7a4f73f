"""POST /v1/similarity: how alike texts are, by their embeddings."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Request
from pydantic_core import to_json
from starlette.responses import Response

from fermi.embedding import pairs_of
from fermi.engine.embedding_service import Rows
from fermi.engine.vectors import shortened, unit
from fermi.errors import RequestError
from fermi.server.body import body_of, documented
from fermi.server.embeddings import DIGITS
from fermi.server.encoding import length_limit, rows_of, usage
from fermi.server.ids import new_id
from fermi.server.prompts import off_loop
from fermi.server.schema.embeddings import SimilarityBody
from fermi.server.served import ServedEmbedder
from fermi.server.state import state_of

router = APIRouter(tags=["scores"])

PATH = "/v1/similarity"


@router.post(PATH, openapi_extra=documented(SimilarityBody))
@router.post("/similarity", include_in_schema=False)
async def similarity(body: Annotated[SimilarityBody, Depends(body_of(SimilarityBody))], request: Request) -> Response:
    """How alike a sentence and others are, each pair a number; for ``input`` all with all, each a row of numbers.

    Unlike in /v1/score no text is the question and none the answer. Texts that are too long are refused, unless
    truncate_prompt_tokens cuts them.
    """
    state = state_of(request)
    served = await state.serving(body.model, ServedEmbedder, PATH, body.timeout)
    left, right, param = sides(body)
    prompt, limit = served.sentences.prompt(body.prompt_name), length_limit(served, body, cut=False)
    texts = [*left, *right]
    encoded = await off_loop(
        sum(map(len, texts)),
        lambda: served.sentences.encode(texts, prompt=prompt, max_length=limit, param=param),
    )
    rows = shortened(await rows_of(served, encoded, body, request, state, param=param), body.dimensions)
    if body.metric != "dot":
        rows = unit(rows)
    found = compared(rows[: len(left)], rows[len(left) :])
    head = {
        "id": f"similarity-{new_id()}",
        "object": "list",
        "created": int(time.time()),
        "model": served.name,
        "metric": body.metric or "cosine",
    }

    def write() -> bytes:
        numbers = enumerate(found.tolist())
        data = [{"index": at, "object": "similarity", "similarity": each} for at, each in numbers]
        return to_json({**head, "data": data, "usage": usage(encoded)})

    return Response(await off_loop(found.size * DIGITS, write), media_type="application/json")


def sides(body: SimilarityBody) -> tuple[Sequence[str], Sequence[str], str]:
    """The texts to compare with each other, and their field; on the right none where all meet all.

    RequestError where something is missing, too much, or not as many.
    """
    apart = body.source_sentence is not None or body.sentences is not None
    if sum((apart, body.input is not None, body.inputs is not None)) > 1:
        raise RequestError("one of input, inputs, or source_sentence and sentences", param="input")
    if body.input is not None:
        return body.input, (), "input"
    if body.inputs is not None:
        return [body.inputs.source_sentence], body.inputs.sentences, "inputs.sentences"
    for name, given in (("source_sentence", body.source_sentence), ("sentences", body.sentences)):
        if given is None:
            raise RequestError(f"{name}: is missing", param=name)
    left, right = (
        [given] if isinstance(given, str) else list(given or ()) for given in (body.source_sentence, body.sentences)
    )
    try:
        pairs_of(left, right)
    except RequestError:
        message = f"source_sentence holds {len(left)} texts and sentences {len(right)}: as many, or one of either, are "
        raise RequestError(f"{message}needed", param="sentences") from None
    return left, right, "sentences"


def compared(left: Rows, right: Rows) -> Rows:
    """Dot products of rows of the same place, [n], one row meeting all; without ``right`` of all with all, [n, n]."""
    if not len(right):
        return np.asarray(left @ left.T, np.float32)
    return np.asarray((left * right).sum(axis=1), np.float32)

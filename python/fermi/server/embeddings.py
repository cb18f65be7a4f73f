"""POST /v1/embeddings."""

from __future__ import annotations

import base64
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic_core import to_json
from starlette.responses import Response

from fermi.embedding import finished
from fermi.engine.embedding_service import Rows
from fermi.errors import RequestError
from fermi.server.body import body_of, documented
from fermi.server.encoding import length_limit, rows_of, usage
from fermi.server.prompts import off_loop
from fermi.server.schema.embeddings import EmbeddingBody
from fermi.server.served import ServedEmbedder
from fermi.server.state import state_of
from fermi.text.tokenizer import Encoded

router = APIRouter(tags=["embeddings"])

PATH = "/v1/embeddings"

#: What a number takes as text, more or less.
DIGITS = 20


@router.post(PATH, openapi_extra=documented(EmbeddingBody))
async def embeddings(body: Annotated[EmbeddingBody, Depends(body_of(EmbeddingBody))], request: Request) -> Response:
    """One or several texts as vectors. Texts that are too long are refused, unless truncate_prompt_tokens cuts them."""
    state = state_of(request)
    served = await state.serving(body.model, ServedEmbedder, PATH, body.timeout)
    if body.dimensions is not None and body.dimensions > served.size:
        raise RequestError(
            f"dimensions: this model has {served.size} of them, not {body.dimensions}", param="dimensions"
        )
    prompt = served.sentences.prompt(body.prompt_name)
    limit = length_limit(served, body, cut=False)
    encoded = await encode(listed(body), served, prompt, limit)
    rows = await rows_of(served, encoded, body, request, state, param="input")
    vectors = finished(rows, body.dimensions, body.normalize)

    def write() -> bytes:
        data = [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(written(vectors, as_base64=body.encoding_format == "base64"))
        ]
        return to_json({"object": "list", "data": data, "model": served.name, "usage": usage(encoded)})

    return Response(await off_loop(vectors.size * DIGITS, write), media_type="application/json")


def listed(body: EmbeddingBody) -> list[str | list[int]]:
    """The texts, or their token ids, one by one. RequestError for one that is empty."""
    given = body.input
    if isinstance(given, str):
        inputs: list[str | list[int]] = [given]
    else:
        tokens = [each for each in given if isinstance(each, int)]
        inputs = [tokens] if tokens else [each for each in given if not isinstance(each, int)]
    if not all(inputs):
        raise RequestError("input: must not be empty", param="input")
    return inputs


async def encode(
    inputs: list[str | list[int]], served: ServedEmbedder, prompt: str, limit: int | None
) -> list[Encoded]:
    """The tokens of each input, cut at ``limit``; token ids stay as they are."""
    texts = [each for each in inputs if isinstance(each, str)]

    def work() -> list[Encoded]:
        return served.sentences.encode(texts, prompt=prompt, max_length=limit, param="input")

    encoded = iter(await off_loop(sum(map(len, texts)), work))
    return [next(encoded) if isinstance(each, str) else Encoded(each[:limit]) for each in inputs]


def written(vectors: Rows, *, as_base64: bool) -> list[Any]:
    """Each vector as a list of numbers, or as base64 of its float32s, little-endian."""
    if as_base64:
        return [base64.b64encode(row.tobytes()).decode("ascii") for row in vectors.astype("<f4")]
    numbers: list[Any] = vectors.tolist()
    return numbers

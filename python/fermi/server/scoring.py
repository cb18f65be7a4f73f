"""POST /v1/rerank and /v1/score: how well texts answer others, by a cross-encoder or the cosine of embeddings."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from fermi.embedding import pairs_of
from fermi.engine.vectors import cosine
from fermi.errors import RequestError
from fermi.server.body import body_of, documented
from fermi.server.encoding import length_limit, rows_of, usage
from fermi.server.ids import new_id
from fermi.server.prompts import off_loop
from fermi.server.schema.embeddings import EncodingBody, RerankBody, ScoreBody
from fermi.server.served import ServedEmbedder
from fermi.server.state import ServerState, state_of
from fermi.text.tokenizer import Encoded

router = APIRouter(tags=["scores"])

RERANK, SCORE = "/v1/rerank", "/v1/score"

#: Of all pairs of one request together.
MAX_CHARACTERS = 2**24


@router.post(RERANK, openapi_extra=documented(RerankBody))
@router.post("/rerank", include_in_schema=False)
@router.post("/v2/rerank", include_in_schema=False)
async def rerank(body: Annotated[RerankBody, Depends(body_of(RerankBody))], request: Request) -> dict[str, Any]:
    """Documents in the order in which they answer a query, the best first.

    What is too long is cut, as Cohere and Jina do it: at what the model takes, or at truncate_prompt_tokens.
    """
    state = state_of(request)
    served = await state.serving(body.model, ServedEmbedder, RERANK, body.timeout)
    if served.scores_pairs and served.size != 1:
        raise RequestError(
            f"The model {served.name!r} has {served.size} labels, and no single one to rank by: use {SCORE}.",
            param="model",
            code="unsupported_model",
        )
    texts = [document if isinstance(document, str) else document.text for document in body.documents]
    scores, encoded = await _scores(served, [body.query], texts, body, request, state, cut=True, param="documents")
    order = sorted(range(len(texts)), key=lambda place: (-scores[place], place))[: body.top_n]
    results = [{"index": place, "relevance_score": scores[place]} for place in order]
    if body.return_documents is not False:
        results = [{**each, "document": {"text": texts[each["index"]]}} for each in results]
    return {
        "id": f"rerank-{new_id()}",
        "object": "list",
        "model": served.name,
        "results": results,
        "usage": usage(encoded),
    }


@router.post(SCORE, openapi_extra=documented(ScoreBody))
@router.post("/score", include_in_schema=False)
async def score(body: Annotated[ScoreBody, Depends(body_of(ScoreBody))], request: Request) -> dict[str, Any]:
    """The score of each pair of texts: a number, or several where a cross-encoder has several labels.

    Texts that are too long are refused, unless truncate_prompt_tokens cuts them.
    """
    state = state_of(request)
    served = await state.serving(body.model, ServedEmbedder, SCORE, body.timeout)
    left, right = ([given] if isinstance(given, str) else given for given in (body.text_1, body.text_2))
    if len(left) > 1 and len(right) not in (1, len(left)):
        message = f"text_1 holds {len(left)} texts and text_2 {len(right)}: as many, or one of either, are needed"
        raise RequestError(message, param="text_2")
    scores, encoded = await _scores(served, left, right, body, request, state, cut=False, param="text_2")
    return {
        "id": f"score-{new_id()}",
        "object": "list",
        "created": int(time.time()),
        "model": served.name,
        "data": [{"index": index, "object": "score", "score": each} for index, each in enumerate(scores)],
        "usage": usage(encoded),
    }


async def _scores(
    served: ServedEmbedder,
    queries: Sequence[str],
    documents: Sequence[str],
    body: EncodingBody,
    request: Request,
    state: ServerState,
    *,
    cut: bool,
    param: str,
) -> tuple[list[Any], list[Encoded]]:
    """The score of each pair, and what was computed for them. ``param`` names the documents' field."""
    sentences, limit = served.sentences, length_limit(served, body, cut=cut)
    pairs = pairs_of(queries, documents)
    characters = sum(len(query) + len(document) for query, document in pairs)
    if served.scores_pairs and characters > MAX_CHARACTERS:  # a long query before each of many documents
        message = f"{param}: the pairs hold {characters} characters, at most {MAX_CHARACTERS} are taken at once"
        raise RequestError(message, param=param)

    def encode() -> list[Encoded]:
        if served.scores_pairs:
            return sentences.encode_pairs(pairs, max_length=limit, param=param)
        return [
            *sentences.encode(queries, prompt=sentences.prompt(role="query"), max_length=limit, param=param),
            *sentences.encode(documents, prompt=sentences.prompt(role="document"), max_length=limit, param=param),
        ]

    encoded = await off_loop(characters, encode)
    rows = await rows_of(served, encoded, body, request, state, param=param)
    if not served.scores_pairs:
        return cosine(rows[: len(queries)], rows[len(queries) :]).tolist(), encoded
    return (rows[:, 0] if served.size == 1 else rows).tolist(), encoded

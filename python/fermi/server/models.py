"""GET /v1/models and /v1/models/{id}; POST /v1/models/load and /unload, for the server's operator."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from fermi.server.admin import require_admin
from fermi.server.body import body_of, documented
from fermi.server.configured import configured
from fermi.server.registry import Entry
from fermi.server.schema.models import LoadBody, UnloadBody
from fermi.server.state import state_of

router = APIRouter(tags=["models"])


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The models that are served, in memory or not."""
    cards = [_card(entry, request) for entry in state_of(request).models.entries]
    document: dict[str, Any] = {"object": "list", "data": cards}
    if _by_anthropics_client(request) and cards:
        document |= {"has_more": False, "first_id": cards[0]["id"], "last_id": cards[-1]["id"]}
    return document


@router.post("/v1/models/load", openapi_extra=documented(LoadBody), dependencies=[Depends(require_admin)])
async def load(body: Annotated[LoadBody, Depends(body_of(LoadBody))], request: Request) -> dict[str, Any]:
    """Bring a model into memory: one of those that are listed, or another that the server then serves, too.

    Answered when it is loaded. One that cannot be loaded is refused with the reason, and the others run on.
    """
    state = state_of(request)
    state.refuse_unless_serving()
    entry = state.models.get(body.model)
    if entry is None:
        entry = configured(body.model, state.settings, alias=body.alias)
        taken = state.models.get(entry.name)
        if taken is not None:
            entry = taken
        else:
            state.models.add(entry)
            try:
                await state.residency.load(entry)
            except BaseException:
                if entry.resident is None:
                    state.models.remove(entry)
                raise
    elif body.alias is not None:
        state.models.name(entry, body.alias)
    await state.residency.load(entry)
    return entry.card()


@router.post("/v1/models/unload", openapi_extra=documented(UnloadBody), dependencies=[Depends(require_admin)])
async def unload(body: Annotated[UnloadBody, Depends(body_of(UnloadBody))], request: Request) -> dict[str, Any]:
    """Take a model out of memory. What it works on is finished first; answered when its memory is given back."""
    state = state_of(request)
    entry = state.models.find(body.model)
    await state.residency.unload(entry)
    return entry.card()


@router.get("/v1/models/{name:path}")
async def model(name: str, request: Request) -> dict[str, Any]:
    """One of them; names may hold slashes."""
    return _card(state_of(request).entry(name), request)


def _card(entry: Entry, request: Request) -> dict[str, Any]:
    """A model as the client knows models."""
    card = entry.card()
    if _by_anthropics_client(request):
        created = datetime.fromtimestamp(entry.created, timezone.utc).isoformat()
        card |= {"type": "model", "display_name": entry.name, "created_at": created}
    return card


def _by_anthropics_client(request: Request) -> bool:
    return "anthropic-version" in request.headers

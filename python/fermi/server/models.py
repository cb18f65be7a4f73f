"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from fermi.server.state import state_of

router = APIRouter(tags=["models"])


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The models that are served."""
    return {"object": "list", "data": [model.card() for model in state_of(request).models]}


@router.get("/v1/models/{name:path}")
async def model(name: str, request: Request) -> dict[str, Any]:
    """One of them; names may hold slashes."""
    return state_of(request).model(name).card()

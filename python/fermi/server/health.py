"""GET /health, /ready and /ping: for people, load balancers and container runtimes."""

from __future__ import annotations

import time
from typing import Any

import psutil
from fastapi import APIRouter, Request
from pydantic_core import to_json
from starlette.responses import Response

from fermi.server.served import ServedModel
from fermi.server.state import RETRY_WHILE_LOADING_S, state_of

router = APIRouter(tags=["operations"])


@router.get("/health")
@router.head("/health", include_in_schema=False)
async def health(request: Request) -> dict[str, Any]:
    """The process lives; what it did so far."""
    state = state_of(request)
    rates = [model.service.stats.blocks.hit_rate for model in state.models if isinstance(model, ServedModel)]
    return {
        "status": "ok" if state.ready else state.condition,
        "service": "fermi",
        "uptime_seconds": round(time.monotonic() - state.started, 3),
        "total_requests": state.total_requests,
        "cache_hit_rate": round(sum(rates) / len(rates), 4) if rates else 0.0,
        "memory_usage_mb": round(psutil.Process().memory_info().rss / 2**20, 1),
    }


@router.get("/ready")
@router.head("/ready", include_in_schema=False)
async def ready(request: Request) -> Response:
    """200 while work is taken; 503 until the model is loaded, while an engine is down, and while the server drains."""
    state = state_of(request)
    document = to_json({"status": state.condition, "model_loaded": state.models.loaded})
    if state.ready:
        return Response(document, media_type="application/json")
    headers = {"Retry-After": str(int(RETRY_WHILE_LOADING_S))}
    return Response(document, 503, headers, media_type="application/json")


@router.get("/ping")
@router.head("/ping", include_in_schema=False)
async def ping() -> Response:
    """Nothing but 200."""
    return Response(status_code=200)

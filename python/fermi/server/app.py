"""The application: endpoints, error handlers and layers around one server state."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from fermi import __version__
from fermi.config import Settings
from fermi.server import chat, completions, embeddings, health, models, observability, scoring, similarity, tokenize
from fermi.server.errors import add_handlers
from fermi.server.keys import KeyRing, Keys, is_open
from fermi.server.messages import router as messages
from fermi.server.metrics import Metrics
from fermi.server.middleware import BodyLimit, Requests
from fermi.server.openapi import add_docs
from fermi.server.registry import Registry
from fermi.server.responses import Responses
from fermi.server.responses import router as responses
from fermi.server.state import ServerState
from fermi.server.tracing import tracer_to

Lifespan = Callable[[ServerState], AbstractAsyncContextManager[None]]

ROUTERS = (
    chat.router,
    completions.router,
    responses.router,
    messages.router,
    embeddings.router,
    scoring.router,
    similarity.router,
    models.router,
    tokenize.router,
    health.router,
    observability.router,
)


#: Headers of answers that a browser may show to a page of another origin.
_RATE_LIMITS = (f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens"))
EXPOSED = ("x-request-id", "retry-after", *_RATE_LIMITS)
CORS_AGE_S = 600


def create_app(registry: Registry, settings: Settings | None = None, lifespan: Lifespan | None = None) -> FastAPI:
    """The HTTP server over these models.

    The models may be added later: until then requests are answered 503. ``lifespan`` is entered when the server
    starts, in its event loop, and left when it has stopped. The state is ``app.state.server``.
    """
    settings = Settings() if settings is None else settings
    state = ServerState(settings, registry)

    @asynccontextmanager
    async def live(app: FastAPI) -> AsyncIterator[None]:
        try:
            async with nullcontext() if lifespan is None else lifespan(state):
                yield
        finally:
            await app.state.responses.close()

    app = FastAPI(
        title="fermi",
        description="An inference engine for small language models, with OpenAI's API.",
        version=__version__,
        lifespan=live,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.state.server = state
    app.state.responses = Responses(settings.openai)
    add_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    add_docs(app, is_open)
    _add_layers(app, state)
    return app


def _add_layers(app: FastAPI, state: ServerState) -> None:
    """What stands around every request, from the innermost to the outermost."""
    settings = state.settings.openai
    app.state.metrics = metrics = Metrics(state)
    app.state.tracer = tracer = tracer_to(state.settings.log.traces_endpoint)
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    if settings.requests_per_minute or settings.tokens_per_minute:
        from fermi.server.limits import RateLimits

        app.add_middleware(RateLimits, settings=settings, refused=metrics.refused)
    ring = KeyRing(settings)
    if ring.known:
        app.add_middleware(Keys, ring=ring, divide_cache=settings.salt_cache_per_key)
    paths = frozenset(route.path for router in ROUTERS for route in router.routes if isinstance(route, Route))
    app.add_middleware(Requests, state=state, metrics=metrics, paths=paths, tracer=tracer)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE", "OPTIONS"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
            max_age=CORS_AGE_S,
        )

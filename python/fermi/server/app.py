"""The application: endpoints, error handlers and layers around one server state."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

from fastapi import FastAPI

from fermi.config import Settings
from fermi.server import chat, completions, embeddings, health, models, scoring, tokenize
from fermi.server.errors import add_handlers
from fermi.server.keys import KeyRing, Keys
from fermi.server.middleware import BodyLimit, Requests
from fermi.server.registry import Registry
from fermi.server.responses import Responses
from fermi.server.responses import router as responses
from fermi.server.state import ServerState

Lifespan = Callable[[ServerState], AbstractAsyncContextManager[None]]

ROUTERS = (
    chat.router,
    completions.router,
    responses.router,
    embeddings.router,
    scoring.router,
    models.router,
    tokenize.router,
    health.router,
)


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
        lifespan=live,
        redirect_slashes=False,
    )
    app.state.server = state
    app.state.responses = Responses(settings.openai)
    add_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    app.add_middleware(BodyLimit, limit=settings.openai.max_body_bytes)
    app.add_middleware(Keys, ring=KeyRing(settings.openai))
    app.add_middleware(Requests, state=state)  # added last, so outermost
    return app

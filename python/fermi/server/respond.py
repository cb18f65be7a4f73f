"""From a reply on its way to the HTTP response: one document, or a stream of events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

from fastapi import Request
from pydantic_core import to_json
from starlette.responses import Response

from fermi.server.generation import Generation
from fermi.server.sse import DONE, EventStream, hang_up


class Reply(Protocol):
    """What a generating endpoint made of a request."""

    @property
    def generation(self) -> Generation:
        """What runs for it."""

    async def whole(self) -> dict[str, Any]:
        """The document, when all is said."""

    def events(self) -> AsyncIterator[bytes]:
        """The chunks as server-sent events, the usage last where it is asked for."""


async def respond(reply: Reply, request: Request, *, stream: bool) -> Response:
    """Answer the request; a client that leaves ends it."""
    cancel = reply.generation.cancel
    if stream:
        return EventStream(_concluded(reply), cancel)
    async with hang_up(request.receive, cancel):
        document = await reply.whole()
    return Response(to_json(document), media_type="application/json")


async def _concluded(reply: Reply) -> AsyncIterator[bytes]:
    async for event in reply.events():
        yield event
    yield DONE

"""The responses of one server: those that run in the background, and those that are kept."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from pathlib import Path
from typing import Any

from fastapi import Request

from fermi.config import OpenAISettings, data_folder
from fermi.errors import RequestError
from fermi.server.errors import NoSuchResponseError
from fermi.server.log import logger
from fermi.server.responses.reply import Background
from fermi.server.responses.store import Bounds, ResponseStore

GRACE_S = 1.0
FOLLOWABLE = 64  # streams of responses that have ended, kept to be followed once more


class Responses:
    """What a server knows of responses, each for the key that made it.

    Attributes:
        store: None where the settings say that nothing is kept.
    """

    def __init__(self, settings: OpenAISettings) -> None:
        self.store = _store_of(settings)
        self._background: OrderedDict[str, Background] = OrderedDict()

    def store_for(self, wished: bool | None) -> ResponseStore | None:
        """Where a response is kept, if it shall be. RequestError if it cannot."""
        if self.store is None and wished:
            message = "store: this server keeps no responses"
            raise RequestError(message, param="store", code="unsupported_parameter")
        return None if wished is False else self.store

    async def start(self, background: Background) -> None:
        """Run a response in the background."""
        await background.start()
        self._background[background.reply.id] = background
        background.task.add_done_callback(lambda _: self._ended(background))

    def in_background(self, owner: str, response_id: str) -> Background | None:
        """A response that runs in the background, or one that did and can be followed."""
        background = self._background.get(response_id)
        return background if background is not None and background.owner == owner else None

    async def get(self, owner: str, response_id: str) -> dict[str, Any]:
        """The response object as it stands. NoSuchResponseError."""
        background = self.in_background(owner, response_id)
        if background is not None and not background.ended:
            return background.reply.growing.response()
        document = None if self.store is None else await self.store.get(owner, response_id)
        if document is None:
            raise no_response(response_id)
        return document

    async def cancel(self, owner: str, response_id: str) -> dict[str, Any]:
        """End a response in the background; one that has ended stays as it is. NoSuchResponseError, RequestError."""
        background = self.in_background(owner, response_id)
        if background is not None and not background.task.done():
            return await background.cancel()
        document = await self.get(owner, response_id)
        if not document["background"]:
            raise RequestError("Only responses that were created with background: true can be cancelled.")
        return document

    async def delete(self, owner: str, response_id: str) -> None:
        """Forget a response; one that runs is cancelled before. NoSuchResponseError."""
        background = self.in_background(owner, response_id)
        if background is not None:
            await background.cancel()
            self._background.pop(response_id, None)
        if self.store is None or not await self.store.delete(owner, response_id):
            raise no_response(response_id)

    async def close(self) -> None:
        """End what runs, and finish what is being written."""
        running = [background for background in self._background.values() if not background.task.done()]
        if running:  # their engines have stopped, so they fail by themselves
            await asyncio.wait([background.task for background in running], timeout=GRACE_S)
        for background in running:
            await background.cancel()
        if self.store is not None:
            await self.store.close()

    def _ended(self, background: Background) -> None:
        if background.events is None:
            self._background.pop(background.reply.id, None)
            return
        ended = [name for name, each in self._background.items() if each.task.done()]
        for name in ended[:-FOLLOWABLE]:
            del self._background[name]


def no_response(response_id: str) -> NoSuchResponseError:
    """Nobody knows it, or it is another's."""
    return NoSuchResponseError(f"Response with id {response_id!r} not found.")


def responses_of(request: Request) -> Responses:
    """Those of the server that a request came to."""
    responses: Responses = request.app.state.responses
    return responses


def _store_of(settings: OpenAISettings) -> ResponseStore | None:
    where = settings.response_store
    if where == "off":
        return None
    bounds = Bounds(
        responses=settings.response_store_max,
        bytes=settings.response_store_max_bytes,
        age_s=settings.response_store_ttl_ms / 1000,
    )
    path: Path | None = None
    if isinstance(where, Path):
        path = where.expanduser()
    elif where is None:
        try:
            path = data_folder() / "responses.sqlite"
        except RuntimeError as error:  # nobody's home
            logger().warning("responses are kept in memory only", error=str(error))
    return ResponseStore(path, bounds)

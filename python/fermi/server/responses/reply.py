"""A response while it runs: for a client that waits or listens, or in the background."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fermi.server.chat_run import ChatRun
from fermi.server.errors import failure_of
from fermi.server.log import logger
from fermi.server.responses.document import FINAL, new_document
from fermi.server.responses.events import Event, Growing, wire
from fermi.server.responses.request import Conversation, top_logprobs
from fermi.server.responses.schema import ResponseBody
from fermi.server.responses.store import Record, ResponseStore
from fermi.server.sse import PING
from fermi.server.state import ServerState


@dataclass(slots=True)
class Reply:
    """A response on its way to the client; ``store`` keeps it when it has ended, where it shall be kept."""

    body: ResponseBody
    run: ChatRun
    conversation: Conversation
    owner: str
    store: ResponseStore | None
    id: str
    growing: Growing = field(init=False)

    def __post_init__(self) -> None:
        options = self.body.stream_options
        self.growing = Growing(
            new_document(self.id, self.body, self.run, stored=self.store is not None),
            self.run.usage,
            self.run.served.tokenizer,
            top_logprobs=top_logprobs(self.body),
            sealed="reasoning.encrypted_content" in (self.body.include or ()),
            obfuscated=options is not None and bool(options.include_obfuscation),
        )

    async def whole(self) -> dict[str, Any]:
        """The response, when all is said. Raises as `ChatRun.news`."""
        async for _ in self.grow():
            pass
        await self.save()
        return self.growing.response()

    async def events(self) -> AsyncIterator[bytes]:
        """The response as server-sent events; a failure is the last of them. The end is told when it is kept."""
        yield wire(self.growing.told("response.created"))
        yield wire(self.growing.told("response.in_progress"))
        async for event in self.failing():
            if self.growing.status in FINAL:
                await self.save()
            yield wire(event)

    async def failing(self) -> AsyncIterator[Event]:
        """The events after the first; a failure becomes the last of them."""
        try:
            async for event in self.grow():
                yield event
        except Exception as error:
            failure = failure_of(error)
            if failure.status == 500:
                logger().error("response failed", error=repr(error))
            for event in self.growing.fail(failure):
                yield event

    async def grow(self) -> AsyncIterator[Event]:
        """The events of all that is said; none at the end where it is cancelled. Raises as `ChatRun.news`."""
        reason = None
        async for news in self.run.news():
            if self.growing.status == "queued":
                yield self.growing.told("response.in_progress", "in_progress")
            for event in self.growing.push(news):
                yield event
            reason = news.finish_reason or reason
        if reason is None:
            self.growing.cancel()
            return
        for event in self.growing.finish(reason):
            yield event

    async def save(self) -> None:
        """Keep it, unless the client has left before its end."""
        if self.store is not None and self.growing.status != "cancelled":
            try:
                await self.store.save(self.record(), self.body.previous_response_id)
            except Exception as error:  # the client has its answer all the same
                logger().error("response cannot be kept", error=repr(error))

    def record(self) -> Record:
        """What is kept of it as it stands."""
        own = [item for item, _ in self.conversation.input]
        return Record(self.owner, self.growing.response(), self.conversation.history, own)


class Background:
    """A response that runs whether or not somebody waits for it. It is kept while it runs, and when it has ended.

    Attributes:
        task: ends when the response has, and never fails.
        events: what was told so far, where the request wanted a stream; None where it did not.
    """

    def __init__(self, reply: Reply, store: ResponseStore, state: ServerState) -> None:
        self.reply = reply
        self.events: list[bytes] | None = [] if reply.body.stream else None
        self._store = store
        self._state = state
        self._changed = asyncio.Event()
        self._tell(reply.growing.told("response.created", "queued"))
        self._tell(reply.growing.told("response.queued"))
        self.task: asyncio.Task[None]

    async def start(self) -> None:
        """Keep it, and go on without the caller."""
        try:
            await self._store.save(self.reply.record(), self.reply.body.previous_response_id)
        except BaseException:
            self.reply.run.generation.cancel()
            raise
        self._state.running += 1  # a server that drains waits for it
        self.task = asyncio.create_task(self._work())

    @property
    def owner(self) -> str:
        """Whose it is."""
        return self.reply.owner

    @property
    def ended(self) -> bool:
        """Whether it has."""
        return self.reply.growing.status in FINAL

    async def cancel(self) -> dict[str, Any]:
        """End it, if it has not; the response as it stands then."""
        self.reply.run.generation.cancel()
        await asyncio.wait([self.task])
        return self.reply.growing.response()

    async def follow(self, follower: Follower) -> AsyncIterator[bytes]:
        """The events that come after a number, until the last of them or until the follower leaves."""
        assert self.events is not None
        at = follower.after + 1
        while not follower.left:
            if at < len(self.events):  # looked at each time: more may come while one is sent
                at += 1
                yield self.events[at - 1]
            elif self.task.done():
                yield PING  # an answer, even where nothing came
                return
            else:
                follower.wake = self._changed
                await self._changed.wait()

    async def _work(self) -> None:
        growing = self.reply.growing
        try:
            async for event in self.reply.failing():
                if growing.status in FINAL:
                    await self._store.finish(self.owner, growing.response())
                self._tell(event)
            if growing.status == "cancelled":
                await self._store.finish(self.owner, growing.response())
        except Exception as error:
            logger().error("response in the background failed", error=repr(error))
        finally:
            self._state.ended()
            self._wake()

    def _tell(self, event: Event) -> None:
        if self.events is not None:
            self.events.append(wire(event))
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


@dataclass(slots=True)
class Follower:
    """Somebody who listens to a response in the background, from the event after that of a number."""

    after: int = -1
    left: bool = False
    wake: asyncio.Event | None = None

    def leave(self) -> None:
        """Listen no more; the response goes on."""
        self.left = True
        if self.wake is not None:
            self.wake.set()

"""A thread that does the work of event loops: how it starts, fails, drains and ends."""

from __future__ import annotations

import asyncio
import logging
import threading
from abc import ABC, abstractmethod

from fermi.errors import EngineError

__all__ = ["Worker"]

log = logging.getLogger(__name__)


class Worker(ABC):
    """One thread, and the condition that guards what it shares with the event loops.

    A subclass waits and works in ``_turn`` and ends what is open in ``_end_all``. With nothing to do the thread is
    blocked, without a timer. An exception that leaves a turn ends every open request with an error and the worker with
    it (``ready`` turns False).
    """

    def __init__(self, name: str) -> None:
        self._condition = threading.Condition()
        self._accepting = False
        self._stopping = False
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    # On the event loops

    def start(self) -> None:
        """Starts the thread."""
        self._accepting = True
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether requests are accepted."""
        return self._accepting and self._failure is None

    @property
    @abstractmethod
    def open_requests(self) -> int:
        """Requests that have not ended."""

    async def stop(self, drain_s: float = 0.0) -> None:
        """Refuses new requests, gives the others that many seconds, aborts what is left, and ends the thread."""
        loop = asyncio.get_running_loop()
        with self._condition:
            self._accepting = False
        if self._thread.ident is None:
            return
        await loop.run_in_executor(None, self._drain, drain_s)
        await loop.run_in_executor(None, self._thread.join)

    def _refuse_unless_ready(self) -> None:
        if not self.ready:
            raise EngineError(self._failure or "the engine is not running")

    def _drain(self, drain_s: float) -> None:
        with self._condition:
            self._condition.wait_for(lambda: not self.open_requests or self._failure is not None, timeout=drain_s)
            self._stopping = True
            self._condition.notify_all()

    # On the thread

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:
            log.exception("the engine's thread ends")
            message = f"the engine has failed: {type(error).__name__}: {error}"
            with self._condition:
                self._failure = message
                self._condition.notify_all()
            self._end_all(message)

    @abstractmethod
    def _turn(self) -> bool:
        """Waits for work and does some of it; False after the last."""

    @abstractmethod
    def _end_all(self, message: str) -> None:
        """Ends every open request with this error."""

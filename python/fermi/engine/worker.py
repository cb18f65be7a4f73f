"""A thread that does the work of event loops: how it starts, fails, drains and ends."""

from __future__ import annotations

import asyncio
import logging
import threading
from abc import ABC, abstractmethod
from contextlib import suppress

from fermi.errors import EngineDownError

__all__ = ["Worker"]

log = logging.getLogger(__name__)


class Worker(ABC):
    """One thread, and the condition that guards what it shares with the event loops.

    A subclass waits and works in ``_turn`` and ends what is open in ``_end_all``. With nothing to do the thread is
    blocked, without a timer.

    An exception that leaves a turn is a crash: ``ready`` turns False, every open request ends with an error, and the
    worker starts anew by ``_reset``; after ``max_restarts`` crashes in a row, with no work done between them, it ends.
    """

    def __init__(self, name: str, *, max_restarts: int = 0) -> None:
        self._condition = threading.Condition()
        self._accepting = False
        self._stopping = False
        self._failure: str | None = None
        self._max_restarts = max_restarts
        self._restarts = 0
        self._crashes = 0  # in a row
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
    def alive(self) -> bool:
        """Whether it was started and has not ended, be it on purpose or for good after crashes."""
        return self._thread.is_alive()

    @property
    def restarts(self) -> int:
        """How often it has started anew after a crash."""
        return self._restarts

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
        ended = asyncio.Event()

        def wait() -> None:
            self._drain(drain_s)
            self._thread.join()
            with suppress(RuntimeError):  # the loop did not wait, and is closed
                loop.call_soon_threadsafe(ended.set)

        # Not in the loop's executor: a loop that ends would wait for it.
        threading.Thread(target=wait, name=f"{self._thread.name}-end", daemon=True).start()
        await ended.wait()

    def _refuse_unless_ready(self) -> None:
        if not self.ready:
            raise EngineDownError("The engine is not running: it restarts after a failure, or has ended.")

    def _drain(self, drain_s: float) -> None:
        with self._condition:
            self._condition.wait_for(lambda: not self.open_requests, timeout=drain_s)
            self._stopping = True
            self._condition.notify_all()

    # On the thread

    def _run(self) -> None:
        while True:
            try:
                while self._turn():
                    pass
                return
            except BaseException as error:
                log.exception("the engine has crashed")
                self._crash(f"the engine has failed: {type(error).__name__}: {error}")
            if not self._restart():
                return

    def _crash(self, message: str) -> None:
        self._crashes += 1
        with self._condition:
            self._failure = message
        self._end_all(message)

    def _restart(self) -> bool:
        """Starts anew, unless that was tried too often."""
        while self._crashes <= self._max_restarts and not self._stopping:
            try:
                self._reset()
            except Exception:
                log.exception("the engine cannot be started anew")
                self._crashes += 1
                continue
            self._restarts += 1
            with self._condition:
                self._failure = None
            log.warning("the engine has been started anew")
            return True
        if not self._stopping:
            log.error("the engine stays down")
        return False

    def _worked(self) -> None:
        """Some work was done well: a crash from now on is the first in a row."""
        self._crashes = 0

    @abstractmethod
    def _turn(self) -> bool:
        """Waits for work and does some of it; False after the last."""

    @abstractmethod
    def _end_all(self, message: str) -> None:
        """Ends every open request with this error."""

    @abstractmethod
    def _reset(self) -> None:
        """Makes anew what a crash may have left in disorder. An exception: it cannot be done."""

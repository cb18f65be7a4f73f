"""Clients that read streams and note when each token came."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Sequence

__all__ = ["StreamClient"]


class StreamClient:
    """One request for a text of so many tokens, read on a thread of its own.

    Attributes:
        sent: when the request went out, on the monotonic clock in seconds.
        times: when the events that brought text came.
    """

    def __init__(self, port: int, prompt: Sequence[int], tokens: int) -> None:
        self.times: list[float] = []
        self.sent = 0.0
        self._failure: Exception | None = None
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        body = {"prompt": list(prompt), "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
        self._body = json.dumps(body)
        self._arrived = threading.Condition()
        self._left = self._ended = False
        self._thread = threading.Thread(target=self._read)

    def start(self) -> StreamClient:
        """Sends the request."""
        self.sent = time.monotonic()
        self._thread.start()
        return self

    def wait(self, events: int = 1) -> float:
        """When so many events had come: seconds after the request. RuntimeError where they never do."""
        with self._arrived:
            self._arrived.wait_for(lambda: len(self.times) >= events or self._ended)
        if len(self.times) < events:
            raise RuntimeError(f"{len(self.times)} events came instead of {events}") from self._failure
        return self.times[events - 1] - self.sent

    def gaps(self, begin: float, end: float) -> list[float]:
        """Seconds between events that came in this time."""
        inside = [each for each in self.times if begin <= each <= end]
        return [inside[place] - inside[place - 1] for place in range(1, len(inside))]

    def leave(self) -> None:
        """Closes the connection, whatever is still to come."""
        self._left = True
        if self._connection.sock is not None:
            self._connection.sock.shutdown(2)
        self._thread.join()
        self._connection.close()

    def _read(self) -> None:
        try:
            self._connection.request("POST", "/v1/completions", self._body, {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            if response.status != 200:
                raise RuntimeError(f"status {response.status}: {response.read(300)!r}")
            for line in response:
                if line.startswith(b'data: {"error"'):
                    raise RuntimeError(line.decode())
                if line.startswith(b"data: {"):
                    with self._arrived:
                        self.times.append(time.monotonic())
                        self._arrived.notify_all()
        except Exception as error:
            self._failure = None if self._left else error
        finally:
            with self._arrived:
                self._ended = True
                self._arrived.notify_all()

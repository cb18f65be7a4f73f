"""The smallest client: one connection for one request, which may be cut anywhere."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import NamedTuple


class Answer(NamedTuple):
    """What came until the connection ended, by whomever; ``status`` is 0 where it was cut before."""

    status: int
    body: bytes


def request_of(path: str, body: object, method: str = "POST") -> bytes:
    """The bytes of a request whose connection ends with its answer. ``body``: as it is, or to be JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


async def ask(port: int, request: bytes, *, cut: int | None = None, cut_events: int | None = None) -> Answer:
    """Send a request and read the answer: all of it, so many bytes at most, or so many events at most."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    try:
        writer.write(request)
        await writer.drain()
        while cut is None or len(received) < cut:
            if cut_events is not None and received.count(b"data: ") >= cut_events:
                break
            part = await reader.read(1 << 16 if cut is None else cut - len(received))
            if not part:
                break
            received += part
    except ConnectionError:  # the server may close before it has read all
        pass
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    head, _, body = received.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/1.1 ") else 0
    return Answer(status, body)

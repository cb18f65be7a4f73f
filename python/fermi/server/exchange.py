"""One HTTP request and its answer: who asks, what it takes; for the log, the metrics and the limits."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class Exchange:
    """What is known of a request besides its body.

    Attributes:
        request_id: the client's x-request-id, or one that was made for it.
        key_id: names the key that it carried, and so its holder, without telling the key; "" where no key is needed.
        admin: it carried the admin key.
    """

    request_id: str = ""
    key_id: str = ""
    admin: bool = False


current: ContextVar[Exchange] = ContextVar("exchange")


def exchange() -> Exchange:
    """That of the request which is being answered; outside of one, an exchange that nobody looks at."""
    return current.get(None) or Exchange()

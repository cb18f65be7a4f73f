"""What each client may use: requests and tokens per minute."""

from __future__ import annotations

import time
from collections.abc import Callable

from limits import RateLimitItemPerMinute
from limits.storage import Storage
from limits.strategies import FixedWindowRateLimiter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fermi.config import OpenAISettings
from fermi.server.errors import RateLimitError, failure_of
from fermi.server.exchange import exchange

SWEEP_S = 60.0


class Minutes(Storage):
    """Counts in memory that are forgotten when their time is over.

    limits' own starts a thread with a timer to forget; here each minute's first count does it for all.
    """

    STORAGE_SCHEME = None

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, float]] = {}  # each with the end of its time
        self._swept = time.time()

    @property
    def base_exceptions(self) -> type[Exception]:
        """What may be raised."""
        return ValueError

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Count; the first count begins a time of ``expiry`` seconds."""
        now = time.time()
        if now >= self._swept + SWEEP_S:
            self._swept = now
            self._counts = {each: count for each, count in self._counts.items() if count[1] > now}
        count, end = self._counts.get(key, (0, 0.0))
        if end <= now:
            count, end = 0, now + expiry
        self._counts[key] = (count + amount, end)
        return count + amount

    def decr(self, key: str, amount: int) -> None:
        """Take back."""
        count, end = self._counts.get(key, (0, 0.0))
        self._counts[key] = (max(0, count - amount), end)

    def get(self, key: str) -> int:
        """The count so far."""
        count, end = self._counts.get(key, (0, 0.0))
        return count if end > time.time() else 0

    def get_expiry(self, key: str) -> float:
        """When its time is over."""
        return max(self._counts.get(key, (0, 0.0))[1], time.time())

    def check(self) -> bool:
        """It is always there."""
        return True

    def reset(self) -> int | None:
        """Forget everything."""
        forgotten = len(self._counts)
        self._counts.clear()
        return forgotten

    def clear(self, key: str) -> None:
        """Forget a count."""
        self._counts.pop(key, None)


class Budget:
    """How much of one thing every client may use in a minute that begins with its first use."""

    def __init__(self, name: str, per_minute: int, storage: Minutes, refused: Callable[[str], None]) -> None:
        """``refused`` hears the name when a client meets its limit."""
        self.name = name
        self.per_minute = per_minute
        self._item = RateLimitItemPerMinute(per_minute, namespace=name)
        self._storage = storage
        self._limiter = FixedWindowRateLimiter(storage)
        self._refused = refused

    def use(self, client: str, amount: int) -> float:
        """Take from what a client has; returns when its minute ends. RateLimitError where there is not as much."""
        if not self._limiter.test(self._item, client, cost=amount):
            self._refused(self.name)
            left, wait = self.left(client)
            raise RateLimitError(
                f"Rate limit reached for {self.name} per minute: limit {self.per_minute}, used "
                f"{self.per_minute - left}, requested {amount}. Please try again in {_told(wait)}.",
                retry_after=wait,
            )
        self._limiter.hit(self._item, client, cost=amount)
        return self._limiter.get_window_stats(self._item, client).reset_time

    def give_back(self, client: str, amount: int, minute: float) -> None:
        """Return what was taken in the minute that ends at ``minute``, if that still runs."""
        if amount and self._limiter.get_window_stats(self._item, client).reset_time == minute:
            self._storage.decr(self._item.key_for(client), amount)

    def left(self, client: str) -> tuple[int, float]:
        """How much a client may still use, and in how many seconds it has all again."""
        reset, left = self._limiter.get_window_stats(self._item, client)
        return left, max(0.0, reset - time.time())


class ClientAccount:
    """What one request takes from its client's budgets."""

    def __init__(self, client: str, tokens: Budget | None) -> None:
        self._client = client
        self._tokens = tokens
        self._reserved: list[tuple[int, float]] = []  # each with the end of its minute

    def reserve(self, tokens: int) -> None:
        """Set tokens aside. RateLimitError where the client has not as many."""
        if self._tokens is not None:
            self._reserved.append((tokens, self._tokens.use(self._client, tokens)))

    def settle(self, used: int) -> None:
        """Give back what was reserved and not used."""
        for reserved, minute in self._reserved:
            taken = min(reserved, used)
            used -= taken
            assert self._tokens is not None
            self._tokens.give_back(self._client, reserved - taken, minute)
        self._reserved.clear()


class RateLimits:
    """Bounds what each key may use or, where no key is needed, each address; tells it in the x-ratelimit headers.

    Counted is what asks for work: every POST but the administrator's.
    """

    def __init__(self, app: ASGIApp, settings: OpenAISettings, refused: Callable[[str], None]) -> None:
        """``refused`` hears which limit a request met."""
        storage = Minutes()
        self._app = app
        self._requests, self._tokens = (
            Budget(name, per_minute, storage, refused) if per_minute else None
            for name, per_minute in (
                ("requests", settings.requests_per_minute),
                ("tokens", settings.tokens_per_minute),
            )
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or exchange().admin:
            await self._app(scope, receive, send)
            return
        address = scope.get("client")
        client = exchange().key_id or (address[0] if address else "")
        exchange().account = ClientAccount(client, self._tokens)

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self._headers(client)]
            await send(message)

        try:
            if self._requests is not None:
                self._requests.use(client, 1)
            await self._app(scope, receive, send_with_limits)
        except RateLimitError as error:  # of the first budget; the app answers that of the second itself
            await failure_of(error).response()(scope, receive, send_with_limits)

    def _headers(self, client: str) -> list[tuple[bytes, bytes]]:
        headers = []
        for budget in (self._requests, self._tokens):
            if budget is not None:
                left, reset = budget.left(client)
                for what, value in (("limit", budget.per_minute), ("remaining", left), ("reset", _told(reset))):
                    headers.append((f"x-ratelimit-{what}-{budget.name}".encode(), str(value).encode()))
        return headers


def _told(seconds: float) -> str:
    """A time as OpenAI writes it: 120ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{1000 * seconds:.0f}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes:.0f}m{rest:.0f}s" if minutes else f"{rest:.3g}s"

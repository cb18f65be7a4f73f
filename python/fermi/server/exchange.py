"""One HTTP request and its answer: who asks, what it takes; for the log, the metrics and the limits."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fermi.sampling_params import SamplingParams
    from fermi.server.generation import Usage


class Account(Protocol):
    """What a client may still use: see `fermi.server.limits`."""

    def reserve(self, tokens: int) -> None:
        """Set tokens aside. RateLimitError where there are not as many."""

    def settle(self, used: int) -> None:
        """Give back what was reserved and not used."""


@dataclass(slots=True)
class Exchange:
    """What is known of a request besides its body.

    Attributes:
        request_id: the client's x-request-id, or one that was made for it.
        key_id: names the key that it carried, and so its holder, without telling the key; "" where no key is needed.
        admin: it carried the admin key.
        cache_owner: prompts share cached blocks only within one owner's requests.
        account: where limits bound what the client may use.
        model: the name of the model that works for it.
        usage: what it has taken so far.
        sampling: what was asked for, where the model generates.
        user: who its client says is behind it.
        waited_s: seconds of its time that went by until its model was loaded.
        client_left: it did, before the answer was complete.
        log_prompts: their text may be logged.
        record: called once when the request is answered and no model works for it any more, whichever comes later.
    """

    request_id: str = ""
    key_id: str = ""
    admin: bool = False
    cache_owner: str = ""
    account: Account | None = None
    model: str = ""
    usage: Usage | None = None
    sampling: SamplingParams | None = None
    user: str = ""
    waited_s: float = 0.0
    client_left: bool = False
    log_prompts: bool = False
    record: Callable[[Exchange], None] | None = None
    _answered: bool = False
    _working: bool = False

    def reserve(self, tokens: int) -> None:
        """Set aside the most tokens that a prompt and its replies may take. RateLimitError if they are too many."""
        if self.account is not None:
            self.account.reserve(tokens)

    def began(self, model: str, usage: Usage, sampling: SamplingParams | None = None) -> None:
        """A model works for the request and counts what that takes."""
        self.model = model
        self.usage = usage
        self.sampling = sampling
        self._working = sampling is not None

    def done(self) -> None:
        """The model works no more."""
        self._working = False
        self._settle()

    def answered(self) -> None:
        """The answer is complete, or never will be; a response in the background may still be worked for."""
        self._answered = True
        self._settle()

    def _settle(self) -> None:
        if self._working or not self._answered:
            return
        if self.account is not None:
            self.account.settle(0 if self.usage is None else self.usage.prompt_tokens + self.usage.completion_tokens)
        if self.record is not None:
            self.record(self)
            self.record = None


current: ContextVar[Exchange] = ContextVar("exchange")


def exchange() -> Exchange:
    """That of the request which is being answered; outside of one, an exchange that nobody looks at."""
    return current.get(None) or Exchange()

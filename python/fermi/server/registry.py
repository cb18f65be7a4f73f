"""The models that a server serves, by name: those in memory and those that can be loaded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

from fermi.errors import ModelNotServedError, RequestError
from fermi.server.served import Served

Kind = TypeVar("Kind", bound=Served)
Condition = Literal["loaded", "loading", "unloading", "unloaded"]


@dataclass(eq=False, slots=True)
class Resident:
    """A model in memory and who uses it.

    Attributes:
        users: tasks that were given it and have not ended; ``unused`` is set while there are none.
        last_used: when the last of them ended, by the event loop's clock, in seconds.
    """

    served: Served
    users: int = 0
    last_used: float = 0.0
    unused: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def idle(self) -> bool:
        """Whether nothing runs on it."""
        return not self.users and not self.served.service.open_requests


class Facts(NamedTuple):
    """What is known of a model before it is loaded."""

    kind: str
    endpoints: tuple[str, ...]
    max_model_len: int | None = None


@dataclass(eq=False, slots=True)
class Entry:
    """A model that requests may name.

    Attributes:
        load: makes it, in a thread; None: it stays as it is, in memory.
        survey: what its files tell of it; None where they are not here yet.
        weigh: about how many bytes it will take, as far as its files tell; 0 where they do not.
        resident: while it is in memory.
        loading, leaving: while it comes or goes.
        memory: bytes that it takes, or took when it was last in memory; before that None.
        reserved: bytes kept for it while it is loaded.
        claims: tasks that wait for it and have not been given it.
    """

    name: str
    aliases: frozenset[str] = frozenset()
    load: Callable[[], Served] | None = None
    survey: Callable[[], Facts | None] | None = None
    weigh: Callable[[], int] | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    resident: Resident | None = None
    loading: asyncio.Task[None] | None = None
    leaving: asyncio.Task[None] | None = None
    memory: int | None = None
    reserved: int = 0
    claims: int = 0
    max_model_len: int | None = None
    kind: str = "a model that was not loaded yet"
    endpoints: tuple[str, ...] | None = None  # None: not known before it is loaded

    @classmethod
    def of(cls, served: Served) -> Entry:
        """One that is in memory."""
        entry = cls(served.name, served.aliases, created=served.created)
        entry.enter(served)
        return entry

    @property
    def condition(self) -> Condition:
        """Where it is."""
        if self.resident is not None:
            return "loaded"
        if self.loading is not None:
            return "loading"
        return "unloaded" if self.leaving is None else "unloading"

    def enter(self, served: Served, now: float = 0.0) -> None:
        """It is in memory."""
        self.resident = Resident(served, last_used=now)
        self.resident.unused.set()
        self.memory, self.max_model_len = served.memory, served.max_model_len
        self.kind, self.endpoints = served.kind, served.endpoints

    def expect(self, facts: Facts) -> None:
        """What it will be when it is loaded."""
        if self.endpoints is None:
            self.kind, self.endpoints, self.max_model_len = facts

    def may_answer(self, endpoint: str) -> bool:
        """Whether it answers there, as far as that is known."""
        return self.endpoints is None or endpoint in self.endpoints

    def card(self) -> dict[str, Any]:
        """The entry of /v1/models."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "fermi",
            "max_model_len": self.max_model_len,
            "state": self.condition,
        }


class Registry:
    """Models in the order in which they were given; the first that can is used where a request names none.

    Iterating gives those in memory. Only the event loop's thread changes it.

    Attributes:
        starting: the models that the server begins with are being loaded.
    """

    def __init__(self, *models: Served) -> None:
        self.starting = False
        self._entries: list[Entry] = []
        self._by_name: dict[str, Entry] = {}
        for model in models:
            self.add(model)

    def __iter__(self) -> Iterator[Served]:
        return iter([entry.resident.served for entry in self._entries if entry.resident is not None])

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every model, in memory or not."""
        return tuple(self._entries)

    @property
    def known(self) -> bool:
        """Whether there is a model to serve, in memory or not."""
        return bool(self._entries) and not self.starting

    @property
    def loaded(self) -> bool:
        """Whether a model is in memory."""
        return any(entry.resident is not None for entry in self._entries)

    def add(self, model: Served | Entry) -> None:
        """Serve a model under its names; a name that is taken stays with the model that has it."""
        entry = model if isinstance(model, Entry) else Entry.of(model)
        self._entries.append(entry)
        for name in (entry.name, *sorted(entry.aliases)):
            self._by_name.setdefault(name, entry)

    def remove(self, entry: Entry) -> None:
        """Forget a model and its names."""
        self._entries.remove(entry)
        self._by_name = {name: other for name, other in self._by_name.items() if other is not entry}

    def name(self, entry: Entry, alias: str) -> None:
        """Give a model one more name. RequestError if another has it."""
        if self._by_name.setdefault(alias, entry) is not entry:
            raise RequestError(f"alias: {alias!r} is the name of another model", param="alias")

    def get(self, name: str) -> Entry | None:
        """The model of that name, if there is one."""
        return self._by_name.get(name)

    def find(self, name: str | None) -> Entry:
        """The model of that name, the first for None. ModelNotServedError if there is none."""
        if name is None:
            return self._entries[0]
        entry = self._by_name.get(name)
        if entry is None:
            served = ", ".join(each.name for each in self._entries)
            raise ModelNotServedError(f"The model {name!r:.200} is not served here; served: {served}.", param="model")
        return entry

    def answering(self, name: str | None, endpoint: str) -> Entry:
        """The model of that name, the first that may for None, to answer on an endpoint.

        Raises:
            ModelNotServedError: no model has that name.
            RequestError: it does not answer there; says where it does.
        """
        able = (each for each in self._entries if each.may_answer(endpoint))
        entry = next(able, self._entries[0]) if name is None else self.find(name)
        if entry.may_answer(endpoint):
            return entry
        raise RequestError(
            f"The model {entry.name!r} is {entry.kind}: it answers on {', '.join(entry.endpoints or ())}, "
            f"not on {endpoint}.",
            param="model",
            code="unsupported_model",
        )

"""The models that a server serves, by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from fermi.errors import ModelNotServedError, RequestError
from fermi.server.served import Served

Kind = TypeVar("Kind", bound=Served)


class Registry:
    """Models in the order in which they were given; the first that can is used where a request names none.

    Empty until the models are loaded. Only the event loop's thread changes it.
    """

    def __init__(self, *models: Served) -> None:
        self._models: list[Served] = []
        self._by_name: dict[str, Served] = {}
        for model in models:
            self.add(model)

    def __iter__(self) -> Iterator[Served]:
        return iter(self._models)

    @property
    def loaded(self) -> bool:
        """Whether there is a model."""
        return bool(self._models)

    def add(self, model: Served) -> None:
        """Serve a model under its names; a name that is taken stays with the model that has it."""
        self._models.append(model)
        for name in (model.name, *sorted(model.aliases)):
            self._by_name.setdefault(name, model)

    def find(self, name: str | None) -> Served:
        """The model of that name, the first for None. ModelNotServedError if there is none."""
        if name is None:
            return self._models[0]
        model = self._by_name.get(name)
        if model is None:
            served = ", ".join(each.name for each in self._models)
            raise ModelNotServedError(f"The model {name!r} is not served here; served: {served}.", param="model")
        return model

    def serving(self, name: str | None, kind: type[Kind], endpoint: str) -> Kind:
        """The model of that name, the first of this kind for None, where it answers on an endpoint.

        Raises:
            ModelNotServedError: no model has that name.
            RequestError: it does not answer there; says where it does.
        """
        able = (each for each in self._models if endpoint in each.endpoints)
        model = next(able, self._models[0]) if name is None else self.find(name)
        if isinstance(model, kind) and endpoint in model.endpoints:
            return model
        raise RequestError(
            f"The model {model.name!r} is {model.kind}: it answers on {', '.join(model.endpoints)}, not on {endpoint}.",
            param="model",
            code="unsupported_model",
        )

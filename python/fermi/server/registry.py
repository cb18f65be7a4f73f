"""The models that a server serves, by name."""

from __future__ import annotations

from collections.abc import Iterator

from fermi.errors import ModelNotServedError
from fermi.server.served import ServedModel


class Registry:
    """Models in the order in which they were given; the first is used where a request names none.

    Empty until the models are loaded. Only the event loop's thread changes it.
    """

    def __init__(self, *models: ServedModel) -> None:
        self._models: list[ServedModel] = []
        self._by_name: dict[str, ServedModel] = {}
        for model in models:
            self.add(model)

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models)

    @property
    def loaded(self) -> bool:
        """Whether there is a model."""
        return bool(self._models)

    def add(self, model: ServedModel) -> None:
        """Serve a model under its names; a name that is taken stays with the model that has it."""
        self._models.append(model)
        for name in (model.name, *sorted(model.aliases)):
            self._by_name.setdefault(name, model)

    def find(self, name: str | None) -> ServedModel:
        """The model of that name, the first for None. ModelNotServedError if there is none."""
        if name is None:
            return self._models[0]
        model = self._by_name.get(name)
        if model is None:
            served = ", ".join(each.name for each in self._models)
            raise ModelNotServedError(f"The model {name!r} is not served here; served: {served}.", param="model")
        return model

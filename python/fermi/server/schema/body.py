"""What every request body is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from fermi.errors import RequestError

Item = TypeVar("Item")
#: A list of which only the first wrong item is told: to collect the complaints of millions takes minutes.
Many = Annotated[list[Item], Field(fail_fast=True)]


class Body(BaseModel):
    """A request body: known fields are checked strictly, unknown ones accepted.

    ``refused`` lists fields that fermi knows but cannot honour, each with the values that ask for nothing.
    """

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False, protected_namespaces=())

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    def refuse_unsupported(self) -> None:
        """RequestError naming the first field that cannot be honoured."""
        extra = self.model_extra or {}
        for name, harmless in self.refused.items():
            if name in extra and extra[name] not in (None, *harmless):
                raise RequestError(f"{name} is not supported by this server", param=name, code="unsupported_parameter")

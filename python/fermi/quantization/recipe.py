"""What is packed, and how: the choices of a quantization, by the role of a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from fermi import _C
from fermi.errors import ConfigError
from fermi.models import MatrixRole, QuantizationConfig

__all__ = ["GROUPS", "Choice", "Packing", "Recipe"]

#: A format, or to leave a matrix as it is.
Choice: TypeAlias = Literal["int8", "int4", "keep"]

#: Columns that may share a scale; 0: all of a row.
GROUPS = (0, 32, 64, 128)

#: The group of a format that has none chosen for it.
DEFAULT_GROUPS: dict[_C.PackedFormatName, int] = {"int8": 0, "int4": 64}


class Packing(NamedTuple):
    """How one matrix is packed."""

    format: _C.PackedFormatName
    group: int
    symmetric: bool

    @property
    def has_zeros(self) -> bool:
        return not self.symmetric

    def group_of(self, columns: int) -> int:
        """The group in a matrix of so many columns: one that holds a whole row is no group."""
        return 0 if columns <= self.group else self.group


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The choices of a quantization. ConfigError names a bad one.

    Attributes:
        format: of the projections.
        group: columns that share a scale: 32, 64, 128, or 0 for all of a row; by default 64 for int4, 0 for int8.
        symmetric: whether zero is the middle level; int8 always is. None: it is, unless a text chooses the levels.
        head: the output matrix, whose errors reach the logits as they are.
        embeddings: the table of the tokens; by default as the head, so that a table tied to the head stays one.
        candidates: scales tried for each row and group; 1 is round to nearest.
    """

    format: _C.PackedFormatName
    group: int | None = None
    symmetric: bool | None = None
    head: Choice = "int8"
    embeddings: Choice | None = None
    candidates: int = 18

    def __post_init__(self) -> None:
        if self.format not in DEFAULT_GROUPS:
            raise ConfigError(f"format: {self.format!r} is neither int8 nor int4")
        for name, choice in (("head", self.head), ("embeddings", self.embeddings or "keep")):
            if choice not in (*DEFAULT_GROUPS, "keep"):
                raise ConfigError(f"{name}: {choice!r} is not one of int8, int4, keep")
        if self.group is not None and self.group not in GROUPS:
            raise ConfigError(f"group: {self.group} is not one of {', '.join(map(str, GROUPS))}")
        if self.symmetric is False and self.format == "int8":
            raise ConfigError("asymmetric: int8 is always symmetric")
        if self.candidates < 1:
            raise ConfigError(f"candidates: must be at least 1, not {self.candidates}")

    def packing(self, role: MatrixRole) -> Packing | None:
        """How a matrix of this role is packed; None: not at all."""
        if role == "projection":
            return self._packing(self.format)
        choice = self.head if role == "head" or self.embeddings is None else self.embeddings
        return None if choice == "keep" else self._packing(choice)

    def config(self) -> QuantizationConfig:
        """What config.json says of it."""
        projection, head, embeddings = (self.packing(role) for role in ("projection", "head", "embedding"))
        assert projection is not None
        return QuantizationConfig(
            format=projection.format,
            group_size=projection.group,
            symmetric=projection.symmetric,
            head=None if head is None else head.format,
            embeddings=None if embeddings is None else embeddings.format,
        )

    def _packing(self, chosen: _C.PackedFormatName) -> Packing:
        group = self.group if chosen == self.format and self.group is not None else DEFAULT_GROUPS[chosen]
        return Packing(chosen, group, self.symmetric is not False or chosen == "int8")

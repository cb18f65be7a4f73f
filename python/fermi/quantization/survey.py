"""What a checkpoint holds: its matrices by name and role, as the model that reads it pulls them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fermi import _C
from fermi.errors import ConfigError
from fermi.models import MatrixRole, load_model
from fermi.models.blocks import Block
from fermi.models.layers import Mlp
from fermi.quantization.recipe import Recipe

__all__ = ["Matrix", "Survey"]


@dataclass(frozen=True)
class Matrix:
    """One that may be packed."""

    name: str
    role: MatrixRole
    weight: _C.Weight

    @property
    def elements(self) -> int:
        rows, columns = self.weight.shape
        return rows * columns


@dataclass(frozen=True)
class Survey:
    """The matrices of a checkpoint, in the order in which the model pulls them.

    ``sequential``: whether its blocks are attention and MLP, one after the other, each behind a norm.
    """

    matrices: tuple[Matrix, ...]
    sequential: bool

    @classmethod
    def of(cls, folder: Path, backend: _C.Backend) -> Survey:
        """Maps the checkpoint and reads nothing of it, but for matrices that must be transposed.

        Raises:
            CheckpointError: it is malformed, or of a model that fermi does not know.
            ConfigError: it is quantized already.
        """
        found: list[Matrix] = []

        def note(name: str, role: MatrixRole, weight: _C.Weight) -> _C.Weight:
            found.append(Matrix(name, role, weight))
            return weight

        model = load_model(folder, backend=backend, transform=note)
        if model.config.quantization is not None or any(matrix.weight.format != "dense" for matrix in found):
            raise ConfigError(f"{folder} is quantized already: quantize the checkpoint that it was made of")
        sequential = all(type(block) is Block and isinstance(block.mlp, Mlp) for block in model.blocks)
        return cls(tuple(found), sequential)

    def elements(self, recipe: Recipe) -> int:
        """Numbers that the recipe packs."""
        return sum(matrix.elements for matrix in self.matrices if recipe.packing(matrix.role) is not None)

    @property
    def tied(self) -> bool:
        """Whether the embedding is the head too."""
        return all(matrix.role != "head" for matrix in self.matrices)

"""Packs matrices one at a time, as a recipe says; a number that is not finite is refused by the name of its matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NoReturn

import numpy as np
from tqdm import tqdm

from fermi import _C
from fermi.errors import CheckpointError
from fermi.models import MatrixRole
from fermi.quantization.recipe import Packing, Recipe

__all__ = ["Packer", "progress_bar"]


def progress_bar(weights: int, shown: bool) -> tqdm[NoReturn]:
    """Of so many numbers that are to be packed; on terminals only."""
    return tqdm(total=weights, desc="quantizing", unit=" weights", unit_scale=True, disable=None if shown else True)


class Packer:
    """What `fermi.models.Weights` makes of each matrix that it is to quantize while it loads: a Transform.

    ``ready``: matrices that are packed already, by name. ``advance`` hears of each matrix how many numbers it holds.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        backend: _C.Backend,
        ready: Mapping[str, _C.Weight] | None = None,
        advance: Callable[[int], object] | None = None,
    ) -> None:
        self._recipe = recipe
        self._backend = backend
        self._ready = ready or {}
        self._advance = advance

    def __call__(self, name: str, role: MatrixRole, weight: _C.Weight) -> _C.Weight:
        packing = self._recipe.packing(role)
        if packing is None or weight.format != "dense":
            return weight
        return self.pack(name, packing, weight.data)

    def pack(self, name: str, packing: Packing, matrix: _C.Tensor) -> _C.Weight:
        """The matrix, [rows, columns] of floats, packed. CheckpointError where it holds infinities or no numbers."""
        weight = self._ready.get(name) or self._search(packing, matrix)
        assert weight.scales is not None
        if not np.isfinite(weight.scales.float32()).all():
            raise CheckpointError(f"tensor {name!r} holds infinities or NaN, which cannot be quantized")
        if self._advance is not None:
            self._advance(matrix.shape[0] * matrix.shape[1])
        return weight

    def _search(self, packing: Packing, matrix: _C.Tensor) -> _C.Weight:
        with self._backend:
            return _C.quantize(
                matrix,
                packing.format,
                group=packing.group_of(matrix.shape[1]),
                symmetric=packing.symmetric,
                candidates=self._recipe.candidates,
            )

"""The numbers of a packed matrix outside of their packing: levels, scales and zeros (layout: csrc/weight.h)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fermi import _C
from fermi.quantization.recipe import Packing

__all__ = ["Levels", "find_levels", "pack_levels"]

Doubles = npt.NDArray[np.float64]

#: Rows of a strip.
STRIP = 16


@dataclass
class Levels:
    """w[r, c] = scales[r, c // group] · levels[r, c], the level a whole number in [-zero, top - zero]."""

    levels: npt.NDArray[np.int16]  # [rows, columns], zero subtracted
    scales: Doubles  # [rows, groups], whole in f16
    lowest: npt.NDArray[np.int16]  # [rows, groups]
    highest: npt.NDArray[np.int16]  # [rows, groups]
    group: int

    @classmethod
    def empty(cls, rows: int, columns: int, group: int) -> Levels:
        groups = -(-columns // group)
        lowest, highest = np.zeros((2, rows, groups), np.int16)
        return cls(np.zeros((rows, columns), np.int16), np.zeros((rows, groups)), lowest, highest, group)

    def span(self, g: int) -> slice:
        """The columns of a group."""
        return slice(g * self.group, min(self.levels.shape[1], (g + 1) * self.group))

    def column(self, c: int) -> Doubles:
        """The values of a column."""
        return self.scales[:, c // self.group] * self.levels[:, c]

    def values(self) -> Doubles:
        """[rows, columns]."""
        return np.repeat(self.scales, self.group, axis=1)[:, : self.levels.shape[1]] * self.levels

    def round(self, c: int, wanted: Doubles) -> Doubles:
        """Takes the nearest levels for a column; returns their values."""
        g = c // self.group
        scales = self.scales[:, g]
        nearest = np.rint(np.divide(wanted, scales, out=np.zeros_like(wanted), where=scales != 0))
        self.levels[:, c] = np.clip(nearest, self.lowest[:, g], self.highest[:, g])
        return self.column(c)

    def set_scales(self, g: int, scales: Doubles) -> None:
        """Takes the nearest that f16 has; keeps what would not be finite as it was."""
        rounded = np.clip(scales, -65504, 65504).astype(np.float16).astype(np.float64)
        self.scales[:, g] = np.where(rounded != 0, rounded, self.scales[:, g])


def find_levels(
    into: Levels, part: Doubles, weights: Doubles, g: int, packing: Packing, candidates: int, backend: _C.Backend
) -> None:
    """Scales and bounds of group ``g`` from the columns of ``part``, as the op quantize finds them."""
    with backend:
        weight = _C.quantize(
            _C.Tensor.from_numpy(np.ascontiguousarray(part, np.float32)),
            packing.format,
            symmetric=packing.symmetric,
            candidates=candidates,
            importance=_C.Tensor.from_numpy(np.ascontiguousarray(weights, np.float32)),
        )
    rows = len(part)
    assert weight.scales is not None
    into.scales[:, g] = weight.scales.float32()[:, 0].reshape(-1)[:rows]
    if packing.format == "int8":
        into.lowest[:, g], into.highest[:, g] = -127, 127
        return
    zeros: npt.NDArray[np.int16] | int = 8
    if weight.zeros is not None:
        zeros = weight.zeros.numpy()[:, 0].reshape(-1)[:rows].astype(np.int16)
    into.lowest[:, g] = 0 - zeros
    into.highest[:, g] = 15 - zeros


def pack_levels(found: Levels, packing: Packing, columns: int) -> _C.Weight:
    """The weight, in strips; what only pads is zero."""
    rows = len(found.levels)
    by_column = np.repeat(found.lowest, found.group, axis=1)[:, :columns]
    if packing.format == "int8":
        data: npt.NDArray[Any] = _strips(found.levels.astype(np.int8), 4)
    else:
        halves = _strips((found.levels - by_column).astype(np.uint8), 8)
        data = halves[..., :4] | halves[..., 4:] << 4
    zeros = None if packing.symmetric else _by_strip((-found.lowest).astype(np.uint8))
    scales = _by_strip(found.scales.astype(np.float16))
    return _C.Weight.packed(
        _C.Tensor.from_numpy(np.ascontiguousarray(data)), scales, zeros, rows, columns, packing.group_of(columns)
    )


def _strips(values: npt.NDArray[Any], width: int) -> npt.NDArray[Any]:
    """[rows, columns] -> [strips, columns / width, STRIP, width], padded with zeros."""
    rows, columns = values.shape
    padded: npt.NDArray[Any] = np.zeros((-(-rows // STRIP) * STRIP, -(-columns // width) * width), values.dtype)
    padded[:rows, :columns] = values
    strips: npt.NDArray[Any] = padded.reshape(-1, STRIP, padded.shape[1] // width, width).transpose(0, 2, 1, 3)
    return strips


def _by_strip(values: npt.NDArray[np.float16] | npt.NDArray[np.uint8]) -> _C.Tensor:
    """[rows, groups] -> [strips, groups, STRIP], padded with zeros."""
    rows, groups = values.shape
    padded = np.zeros((-(-rows // STRIP) * STRIP, groups), values.dtype)
    padded[:rows] = values
    return _C.Tensor.from_numpy(np.ascontiguousarray(padded.reshape(-1, STRIP, groups).transpose(0, 2, 1)))

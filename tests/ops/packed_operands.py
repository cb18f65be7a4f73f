"""Random packed weights together with the exact numbers that they hold."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fermi import _C

Doubles = npt.NDArray[np.float64]


class Packed(NamedTuple):
    """A packed weight and the exact numbers that it holds, [rows, columns]."""

    weight: _C.Weight
    values: Doubles


class Form(NamedTuple):
    """How a weight is packed."""

    format: _C.PackedFormatName
    group: int
    scales: type[np.float16] | type[np.float32] = np.float16
    zeros: bool = False


FORMS = [
    Form("int8", 0, np.float32),
    Form("int8", 0),
    Form("int8", 64),
    Form("int4", 32),
    Form("int4", 64, np.float32),
    Form("int4", 128, zeros=True),
    Form("int4", 0, zeros=True),
]


def packed(generator: np.random.Generator, rows: int, columns: int, form: Form) -> Packed:
    """Random integers, scales and zeros, laid out as csrc/weight.h says; what pads them is random too."""
    strips, block = -(-rows // 16), 4 if form.format == "int8" else 8
    groups = 1 if form.group == 0 else -(-columns // form.group)
    low, high = (-127, 128) if form.format == "int8" else (0, 16)
    q = generator.integers(low, high, (strips * 16, -(-columns // block) * block))
    scales = (0.5 + generator.random((strips * 16, groups))).astype(form.scales) / form.scales(64)
    zeros = generator.integers(0, 16, (strips * 16, groups)) if form.zeros else np.full((strips * 16, groups), 8)
    tiles = q.reshape(strips, 16, -1, block).transpose(0, 2, 1, 3)  # [strips, blocks, 16, block]
    data = tiles.astype(np.int8) if form.format == "int8" else (tiles[..., :4] | tiles[..., 4:] << 4).astype(np.uint8)

    def by_strip(values: npt.NDArray[np.generic], dtype: type[np.generic]) -> _C.Tensor:
        return _C.Tensor.from_numpy(np.ascontiguousarray(values.reshape(strips, 16, groups).transpose(0, 2, 1), dtype))

    weight = _C.Weight.packed(
        _C.Tensor.from_numpy(np.ascontiguousarray(data)),
        by_strip(scales, form.scales),
        by_strip(zeros, np.uint8) if form.zeros else None,
        rows,
        columns,
        form.group,
    )
    group = np.arange(columns) // form.group if form.group else np.zeros(columns, int)
    zero = 0 if form.format == "int8" else zeros[:rows, group]
    return Packed(weight, (q[:rows, :columns] - zero) * scales[:rows, group].astype(np.float64))

"""Random operands of ops: a tensor of any float dtype together with the exact numbers that it holds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fermi import _C

FLOATS: tuple[_C.DTypeName, ...] = ("f32", "f16", "bf16")


class Operand(NamedTuple):
    """A tensor and its values in double precision."""

    tensor: _C.Tensor
    values: npt.NDArray[np.float64]

    @property
    def weight(self) -> _C.Weight:
        return _C.Weight(self.tensor)


def operand(values: npt.ArrayLike, dtype: _C.DTypeName = "f32") -> Operand:
    """The values rounded to the dtype (bf16: cut off)."""
    single = np.ascontiguousarray(values, dtype=np.float32)
    if dtype == "f32":
        return Operand(_C.Tensor.from_numpy(single), single.astype(np.float64))
    if dtype == "f16":
        half = single.astype(np.float16)
        return Operand(_C.Tensor.from_numpy(half), half.astype(np.float64))
    bits = (single.view(np.uint32) >> 16).astype(np.uint16)
    exact = (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return Operand(_C.Tensor.from_numpy(bits, dtype="bf16"), exact)


def normal(generator: np.random.Generator, *shape: int, dtype: _C.DTypeName = "f32") -> Operand:
    """Independent standard normal numbers."""
    return operand(generator.standard_normal(shape), dtype)


def indices(values: npt.ArrayLike) -> _C.Tensor:
    """An i32 tensor."""
    return _C.Tensor.from_numpy(np.ascontiguousarray(values, dtype=np.int32))


def zeros(*shape: int, dtype: _C.DTypeName = "f32") -> _C.Tensor:
    """A writable tensor of zeros."""
    return _C.Tensor.zeros(shape, dtype)


def rounded_to_bf16(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """To nearest even: what products of bf16 pairs make of activations."""
    bits = values.astype(np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(np.float64)


def same_bits(a: _C.Tensor, b: _C.Tensor) -> bool:
    """Whether two f32 tensors hold the same bits."""
    return np.array_equal(a.float32().view(np.uint32), b.float32().view(np.uint32))

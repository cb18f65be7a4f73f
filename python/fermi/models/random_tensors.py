"""Made-up tensors for tests and benchmarks, as fast as random bits come."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fermi import _C

__all__ = ["RandomTensors"]

Bits = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

#: Elements made at a time, so that the intermediate results stay in the cache of a core.
CHUNK = 1 << 17

#: sqrt(mean(x²)) of a float whose mantissa is random and whose exponent is one of 0, -1, -2, -3.
ROOT_MEAN_SQUARE = 0.880


@dataclass(frozen=True)
class RandomTensors:
    """A source that has every tensor it is asked for: the same for the same name, shape, dtype and seed.

    Matrices hold values of root mean square near 1 / sqrt(columns), with random signs and mantissas and four
    exponents; biases are small, and the weights of norms lie around 1.
    """

    dtype: _C.DTypeName
    seed: int = 0

    @property
    def origin(self) -> str:
        return "random weights"

    def names(self) -> Iterable[str]:
        return ()

    def find(self, name: str, shape: tuple[int, ...]) -> _C.Tensor:
        bits = np.empty(math.prod(shape), np.uint32 if self.dtype == "f32" else np.uint16)
        start = 0
        for chunk in self.chunks(name, shape):
            bits[start : start + len(chunk)] = chunk
            start += len(chunk)
        if self.dtype == "bf16":
            return _C.Tensor.from_numpy(bits.reshape(shape), dtype="bf16")
        return _C.Tensor.from_numpy(bits.view(np.float32 if self.dtype == "f32" else np.float16).reshape(shape))

    def find_packed(self, name: str) -> None:
        """There is none."""

    def chunks(self, name: str, shape: tuple[int, ...]) -> Iterator[Bits]:
        """The bits of the tensor's elements in order, some at a time."""
        generator = np.random.Generator(np.random.SFC64([self.seed, zlib.crc32(name.encode())]))
        if len(shape) == 1 and not name.endswith(".bias"):
            yield self._rounded(1 + 0.1 * generator.standard_normal(shape[0], dtype=np.float32))
            return
        size = 1 / math.sqrt(shape[1]) if len(shape) == 2 else 0.1
        for start in range(0, math.prod(shape), CHUNK):
            yield self._floats(generator, min(CHUNK, math.prod(shape) - start), size)

    def _floats(self, generator: np.random.Generator, count: int, size: float) -> Bits:
        """Bits of floats whose root mean square is ``size``, give or take the next power of two."""
        unsigned, mantissa, bias = {
            "f32": (np.uint32, 23, 127),
            "f16": (np.uint16, 10, 15),
            "bf16": (np.uint16, 7, 127),
        }[self.dtype]
        width = np.dtype(unsigned).itemsize
        words = generator.integers(0, 2**64, (count * width + 7) // 8, dtype=np.uint64)
        bits: Bits = words.view(unsigned)[:count]
        exponent = unsigned(bias + round(math.log2(size / ROOT_MEAN_SQUARE))) - (
            (bits >> unsigned(mantissa)) & unsigned(3)
        )
        bits &= unsigned((1 << (8 * width - 1)) | ((1 << mantissa) - 1))
        bits |= exponent << unsigned(mantissa)
        return bits

    def _rounded(self, values: npt.NDArray[np.float32]) -> Bits:
        if self.dtype == "f16":
            return values.astype(np.float16).view(np.uint16)
        return values.view(np.uint32) if self.dtype == "f32" else (values.view(np.uint32) >> 16).astype(np.uint16)

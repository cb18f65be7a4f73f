"""Writes a safetensors file tensor by tensor (format: github.com/huggingface/safetensors)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import NamedTuple

from fermi import _C

__all__ = ["Entry", "TensorFile"]

#: Where tensors begin, so that a vector of any machine does not straddle cache lines.
ALIGNMENT = 64

NAMES: Mapping[_C.DTypeName, tuple[str, int]] = MappingProxyType(
    {
        "f32": ("F32", 4),
        "f16": ("F16", 2),
        "bf16": ("BF16", 2),
        "f64": ("F64", 8),
        "i8": ("I8", 1),
        "u8": ("U8", 1),
        "i16": ("I16", 2),
        "i32": ("I32", 4),
        "i64": ("I64", 8),
        "bool": ("BOOL", 1),
    }
)


class Entry(NamedTuple):
    """A tensor that the file will hold."""

    name: str
    dtype: _C.DTypeName
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * NAMES[self.dtype][1]


class TensorFile:
    """The header is written first, from what the tensors will be; they follow in any order, each to its place.

    The format leaves no holes between tensors. So those whose sizes are multiples of 64 come first, then those of 32
    and so on: each begins at a multiple of 64 or, if its size is none, of the largest power of two in its size.
    """

    def __init__(self, path: Path, entries: Sequence[Entry], metadata: Mapping[str, str]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
        self._missing: dict[str, tuple[Entry, int]] = {}  # with where the tensor begins
        end = 0
        for entry in sorted(entries, key=lambda entry: -_power_of_two(entry.nbytes)):
            start, end = end, end + entry.nbytes
            header[entry.name] = {
                "dtype": NAMES[entry.dtype][0],
                "shape": list(entry.shape),
                "data_offsets": [start, end],
            }
            self._missing[entry.name] = (entry, start)
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        self._begin = 8 + len(text)
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._file.truncate(self._begin + end)

    def write(self, name: str, tensor: _C.Tensor) -> None:
        """The tensor, of the dtype and shape of its entry, once."""
        entry, start = self._missing.pop(name)
        if (tensor.dtype, tensor.shape) != (entry.dtype, entry.shape):
            raise ValueError(f"{name} is {tensor.dtype} {tensor.shape}, not {entry.dtype} {entry.shape}")
        if tensor.nbytes:
            self._file.seek(self._begin + start)
            self._file.write(tensor.numpy().data.cast("B"))

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if error is None and self._missing:
            raise ValueError(f"tensors were not written: {', '.join(self._missing)}")


def _power_of_two(size: int) -> int:
    """The largest one that divides a size, up to the alignment."""
    return math.gcd(size, ALIGNMENT)

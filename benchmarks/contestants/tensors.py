"""A checkpoint's tensors as NumPy arrays, for the converters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Checkpoint"]


class Checkpoint:
    """A folder of config.json and safetensors files, mapped.

    Attributes:
        config: of config.json.
        rope_theta: base of the rotary embedding.
        rope_scaling: how it is scaled; empty where it is not.
        head_dim: columns of a head.
    """

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        rope = self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}
        self.rope_theta = float(self.config.get("rope_theta") or rope.get("rope_theta", 10000.0))
        kind = rope.get("rope_type", rope.get("type", "default"))
        self.rope_scaling: dict[str, Any] = {} if kind == "default" else {**rope, "rope_type": kind}
        heads = self.config["num_attention_heads"]
        self.head_dim = int(self.config.get("head_dim") or self.config["hidden_size"] // heads)
        self._tensors: dict[str, tuple[str, npt.NDArray[Any]]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            self._map(path)

    def _map(self, path: Path) -> None:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        data = np.memmap(path, np.uint8, "r", offset=8 + length)
        types = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                values = np.frombuffer(data[start:end], types[entry["dtype"]]).reshape(entry["shape"])
                self._tensors[name] = (entry["dtype"], values)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name][1].shape

    def f32(self, name: str) -> npt.NDArray[np.float32]:
        """The values in float32."""
        dtype, values = self._tensors[name]
        if dtype == "BF16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32)

    def bf16(self, name: str) -> npt.NDArray[np.uint16]:
        """The bits of the values in bf16, rounded to nearest even where they are stored otherwise."""
        dtype, values = self._tensors[name]
        if dtype == "BF16":
            return values
        bits = values.astype(np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)

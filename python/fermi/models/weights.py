"""The weights of a model, pulled by name and shape; afterwards nothing may be missing or unused."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from fermi import _C
from fermi.errors import CheckpointError, ConfigError
from fermi.models.checkpoint import Checkpoint
from fermi.models.random_tensors import RandomTensors

__all__ = ["TensorSource", "Weights"]

DTYPES: Mapping[str, _C.DTypeName | None] = MappingProxyType({"auto": None, "f32": "f32", "f16": "f16", "bf16": "bf16"})

#: Buffers that older versions of Transformers saved beside the weights, and that config.json determines.
TOLERATED = re.compile(r"(^|\.)rotary_emb\.inv_freq$")

#: How many names of a kind an error lists.
LISTED = 12


class TensorSource(Protocol):
    """Where tensors come from."""

    @property
    def origin(self) -> str:
        """For messages: the folder of a checkpoint."""

    def names(self) -> Iterable[str]:
        """Every tensor there is."""

    def find(self, name: str, shape: tuple[int, ...]) -> _C.Tensor | None:
        """The tensor of that name, or None. ``shape`` is what the model needs; what comes may differ."""


@dataclass
class Ledger:
    """What has been pulled from a source, and what did not fit."""

    pulled: dict[str, _C.Tensor] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)


class Weights:
    """A source of tensors under a prefix. What does not fit is noted, not raised: `check` lists all of it at once.

    A tensor keeps its dtype and stays where it is, unless ``dtype`` asks for another one; then it alone is copied.
    """

    def __init__(
        self,
        source: TensorSource,
        *,
        backend: _C.Backend,
        dtype: str = "auto",
        prefix: str = "",
        ledger: Ledger | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise ConfigError(f"dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
        self.backend = backend
        self._source = source
        self._dtype = dtype
        self._prefix = prefix
        self._ledger = ledger or Ledger()

    @classmethod
    def open(cls, folder: Path, *, backend: _C.Backend, dtype: str = "auto") -> Weights:
        """The checkpoint in a folder, mapped. Raises CheckpointError where a file is absent or malformed."""
        return cls(Checkpoint(folder), backend=backend, dtype=dtype)

    @classmethod
    def random(cls, *, backend: _C.Backend, dtype: _C.DTypeName = "bf16", seed: int = 0) -> Weights:
        """Whatever a model pulls, made up: the same for the same name, shape, dtype and seed."""
        return cls(RandomTensors(dtype, seed), backend=backend)

    def under(self, name: str) -> Weights:
        """The weights whose names begin with ``name`` and a dot."""
        return Weights(
            self._source,
            backend=self.backend,
            dtype=self._dtype,
            prefix=f"{self._prefix}{name}.",
            ledger=self._ledger,
        )

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._source.names()

    def matrix(self, name: str, rows: int, columns: int) -> _C.Weight:
        """[rows, columns] = [out features, in features]."""
        tensor = self._pull(name, (rows, columns))
        return _C.Weight(_C.Tensor.zeros((1, 1)) if tensor is None else tensor)

    def vector(self, name: str, size: int) -> _C.Tensor:
        """[size]."""
        tensor = self._pull(name, (size,))
        return _C.Tensor.zeros((1,)) if tensor is None else tensor

    def check(self) -> None:
        """Raises CheckpointError listing what is missing, what nobody pulled, and what has another shape or dtype."""
        unused = [
            name for name in self._source.names() if name not in self._ledger.pulled and not TOLERATED.search(name)
        ]
        problems = [
            f"{kind}: {_listed(names)}"
            for kind, names in (
                ("missing", self._ledger.missing),
                ("unused", unused),
                ("misfitting", self._ledger.misfits),
            )
            if names
        ]
        if problems:
            raise CheckpointError(f"{self._source.origin}: tensors do not fit config.json; {'; '.join(problems)}")

    @property
    def parameters(self) -> int:
        """Numbers pulled so far."""
        return sum(math.prod(tensor.shape) for tensor in self._ledger.pulled.values())

    @property
    def nbytes(self) -> int:
        """Bytes pulled so far."""
        return sum(tensor.nbytes for tensor in self._ledger.pulled.values())

    def _pull(self, name: str, shape: tuple[int, ...]) -> _C.Tensor | None:
        """The tensor, converted where asked; None, and a note in the ledger, where it does not fit."""
        name = self._prefix + name
        tensor = self._source.find(name, shape)
        if tensor is None:
            self._ledger.missing.append(name)
            return None
        if tensor.dtype not in DTYPES:
            self._ledger.misfits.append(f"{name} is {tensor.dtype}, not f32, f16 or bf16")
        elif tensor.shape != shape:
            self._ledger.misfits.append(f"{name} is {list(tensor.shape)}, not {list(shape)}")
        else:
            self._ledger.pulled[name] = self._converted(tensor)
            return self._ledger.pulled[name]
        self._ledger.pulled[name] = tensor
        return None

    def _converted(self, tensor: _C.Tensor) -> _C.Tensor:
        dtype = DTYPES[self._dtype]
        if dtype is None or dtype == tensor.dtype:
            return tensor
        with self.backend:
            copy = _C.Tensor.empty(tensor.shape, dtype, self.backend)
            _C.copy(copy, tensor)
        return copy


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more

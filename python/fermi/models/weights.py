"""The weights of a model, pulled by name and shape; afterwards nothing may be missing or unused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from types import MappingProxyType
from typing import Literal, Protocol, TypeAlias

from fermi import _C
from fermi.errors import CheckpointError, ConfigError
from fermi.models.checkpoint import SCALES, ZEROS, PackedParts
from fermi.models.random_tensors import RandomTensors

__all__ = ["STRIP", "MatrixRole", "Tap", "TensorSource", "Transform", "Weights"]

#: What a matrix is for. A tied head is the embedding.
MatrixRole: TypeAlias = Literal["projection", "embedding", "head"]

DTYPES: Mapping[str, _C.DTypeName | None] = MappingProxyType({"auto": None, "f32": "f32", "f16": "f16", "bf16": "bf16"})

#: Buffers that older versions of Transformers saved beside the weights, and that config.json determines.
TOLERATED = re.compile(r"(^|\.)rotary_emb\.inv_freq$")

#: Rows of a packed matrix that lie together: it can be cut between such strips.
STRIP = 16

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

    def find_packed(self, name: str) -> PackedParts | None:
        """The parts of the matrix of that name, if it is packed."""


class Transform(Protocol):
    """Makes of a matrix, as it is in the checkpoint, the one that the model shall hold; of the same shape."""

    def __call__(self, name: str, role: MatrixRole, weight: _C.Weight) -> _C.Weight: ...


class Tap(Protocol):
    """Sees what the matrices of these names are multiplied with, [tokens, columns], as a recording describes it."""

    def __call__(self, names: Sequence[str], x: _C.Tensor) -> None: ...


@dataclass
class Ledger:
    """What has been pulled from a source, and what did not fit."""

    pulled: set[str] = field(default_factory=set)
    parameters: int = 0
    nbytes: int = 0
    missing: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)


class Weights:
    """A source of tensors under a prefix. What does not fit is noted, not raised: `check` lists all of it at once.

    A tensor keeps its dtype and stays where it is, unless ``dtype`` asks for another one; then it alone is copied.
    Packed matrices have none: they stay as they are. ``transform``: what becomes of each matrix; ``tap``: who sees what
    they are multiplied with.
    """

    def __init__(
        self,
        source: TensorSource,
        *,
        backend: _C.Backend,
        dtype: str = "auto",
        transform: Transform | None = None,
        tap: Tap | None = None,
        prefix: str = "",
        ledger: Ledger | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise ConfigError(f"dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
        self.backend = backend
        self.tap = tap
        self._source = source
        self._transform = transform
        self._dtype = dtype
        self._prefix = prefix
        self._ledger = ledger or Ledger()

    @classmethod
    def random(
        cls,
        *,
        backend: _C.Backend,
        dtype: _C.DTypeName = "bf16",
        seed: int = 0,
        transform: Transform | None = None,
    ) -> Weights:
        """Whatever a model pulls, made up: the same for the same name, shape, dtype and seed."""
        return cls(RandomTensors(dtype, seed), backend=backend, transform=transform)

    def under(self, name: str) -> Weights:
        """The weights whose names begin with ``name`` and a dot."""
        return Weights(
            self._source,
            backend=self.backend,
            dtype=self._dtype,
            transform=self._transform,
            tap=self.tap,
            prefix=f"{self._prefix}{name}.",
            ledger=self._ledger,
        )

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._source.names()

    def body(self, name: str, part: str) -> Weights:
        """The weights under ``name``; these themselves in checkpoints that were saved without that prefix, which is
        seen by ``part``, a tensor that every such model has."""
        return self if part in self else self.under(name)

    def matrix(self, name: str, rows: int, columns: int, role: MatrixRole = "projection") -> _C.Weight:
        """[rows, columns] = [out features, in features]."""
        name = self._prefix + name
        return self._held(name, self._dense(name, rows, columns), rows, columns, role)

    def matrices(
        self, name: str, sizes: Sequence[int], columns: int, role: MatrixRole = "projection"
    ) -> list[_C.Weight]:
        """Matrices that are one in the checkpoint, [sum of sizes, columns], one after the other: views of it.

        A packed matrix lies in strips of 16 rows: what cannot be cut between them is not transformed.
        """
        name, rows = self._prefix + name, sum(sizes)
        starts = [0, *accumulate(sizes)][: len(sizes)]
        between = all(start % STRIP == 0 for start in starts)
        whole = self._held(name, self._dense(name, rows, columns), rows, columns, role if between else None)
        if whole.shape != (rows, columns):
            return [whole] * len(sizes)  # does not fit, as the ledger says
        if whole.format != "dense" and not between:
            self._ledger.misfits.append(f"{name} is packed, and cannot be cut into {list(sizes)} rows")
            return [_absent()] * len(sizes)
        return [whole.narrow(start, size) for start, size in zip(starts, sizes, strict=True)]

    def stacked(self, name: str, names: Sequence[Sequence[str]], rows: int, columns: int) -> list[list[_C.Weight]]:
        """Projections, [rows, columns] each, that are one tensor in the checkpoint, [stack, all of it, columns]: views
        of it. ``names``: what those of each place of the stack are called where they are by themselves."""
        each = len(names[0])
        tensor = self._pull(self._prefix + name, (len(names), each * rows, columns))
        if tensor is None:
            return [[_absent()] * each for _ in names]

        def hold(place: int, part: int) -> _C.Weight:
            view = tensor.narrow(0, place, 1).narrow(1, part * rows, rows).reshape((rows, columns))
            return self._held(self._prefix + names[place][part], _C.Weight(view), rows, columns, "projection")

        return [[hold(place, part) for part in range(each)] for place in range(len(names))]

    def transposed(self, name: str, rows: int, columns: int, role: MatrixRole = "projection") -> _C.Weight:
        """[rows, columns] of a matrix that the checkpoint holds as [columns, rows]: copied, unless it is packed, for
        then it lies as [rows, columns]."""
        name = self._prefix + name
        tensor = None if self._is_packed(name) else self._pull(name, (columns, rows))
        dense = None if tensor is None else _C.Weight(self._copy(tensor.transpose(0, 1), tensor.dtype))
        return self._held(name, dense, rows, columns, role)

    def table(self, name: str, rows: int, columns: int, *, exact: bool = False) -> _C.Weight:
        """[rows, columns] of a small matrix that stays as it is, such as that of learned positions.

        ``exact``: as an f32 copy, so that what it is multiplied with is not rounded on any machine.
        """
        name = self._prefix + name
        weight = self._held(name, self._dense(name, rows, columns), rows, columns, None)
        return _C.Weight(self._copy(weight.data, "f32")) if exact else weight

    def vector(self, name: str, size: int) -> _C.Tensor:
        """[size]."""
        tensor = self._pull(self._prefix + name, (size,))
        if tensor is None:
            return _C.Tensor.zeros((1,))
        tensor = self._converted(tensor)
        self._count(size, tensor.nbytes)
        return tensor

    def tolerate(self, *names: str) -> None:
        """Buffers of these names may be there and are not needed."""
        self._ledger.pulled |= {self._prefix + name for name in names}

    def full_name(self, name: str) -> str:
        """The name under which the source knows it."""
        return self._prefix + name

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
        """Numbers of the matrices and vectors pulled so far."""
        return self._ledger.parameters

    @property
    def nbytes(self) -> int:
        """What they take."""
        return self._ledger.nbytes

    def _count(self, parameters: int, nbytes: int) -> None:
        self._ledger.parameters += parameters
        self._ledger.nbytes += nbytes

    def _held(self, name: str, dense: _C.Weight | None, rows: int, columns: int, role: MatrixRole | None) -> _C.Weight:
        """What the model shall hold of a matrix; ``dense``: as it is in the checkpoint, if it is there and not packed.
        Without a role it is not transformed."""
        parts = self._source.find_packed(name)
        weight = dense if parts is None else self._packed(name, parts, rows, columns)
        if weight is None:
            return _absent()
        if self._transform is not None and role is not None:
            weight = self._transform(name, role, weight)
        if weight.format == "dense":
            weight = _C.Weight(self._converted(weight.data))
        self._count(rows * columns, weight.nbytes)
        return weight

    def _is_packed(self, name: str) -> bool:
        return self._source.find_packed(name) is not None

    def _dense(self, name: str, rows: int, columns: int) -> _C.Weight | None:
        tensor = None if self._is_packed(name) else self._pull(name, (rows, columns))
        return None if tensor is None else _C.Weight(tensor)

    def _packed(self, name: str, parts: PackedParts, rows: int, columns: int) -> _C.Weight | None:
        """The matrix, or None and a note in the ledger."""
        self._ledger.pulled |= {name, name + SCALES} | (set() if parts.zeros is None else {name + ZEROS})
        if (parts.rows, parts.columns) != (rows, columns):
            self._ledger.misfits.append(f"{name} is [{parts.rows}, {parts.columns}], not [{rows}, {columns}]")
            return None
        try:
            return _C.Weight.packed(*parts)
        except ValueError as error:
            self._ledger.misfits.append(f"{name}: {error}")
            return None

    def _pull(self, name: str, shape: tuple[int, ...]) -> _C.Tensor | None:
        """The tensor; None, and a note in the ledger, where it does not fit."""
        tensor = self._source.find(name, shape)
        if tensor is None:
            self._ledger.missing.append(name)
            return None
        self._ledger.pulled.add(name)
        if tensor.dtype not in DTYPES:
            self._ledger.misfits.append(f"{name} is {tensor.dtype}, not f32, f16 or bf16")
        elif tensor.shape != shape:
            self._ledger.misfits.append(f"{name} is {list(tensor.shape)}, not {list(shape)}")
        else:
            return tensor
        return None

    def _converted(self, tensor: _C.Tensor) -> _C.Tensor:
        dtype = DTYPES[self._dtype]
        return tensor if dtype is None or dtype == tensor.dtype else self._copy(tensor, dtype)

    def _copy(self, tensor: _C.Tensor, dtype: _C.DTypeName) -> _C.Tensor:
        """Contiguous, on the device."""
        with self.backend:
            copy = _C.Tensor.empty(tensor.shape, dtype, self.backend)
            _C.copy(copy, tensor)
        return copy


def _absent() -> _C.Weight:
    """In the place of a matrix that does not fit, until `Weights.check` says so."""
    return _C.Weight(_C.Tensor.zeros((1, 1)))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more

"""The tensors of a checkpoint folder: one safetensors file, or several and an index, mapped and never copied."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from fermi import _C
from fermi.errors import CheckpointError
from fermi.models.json_file import read_json

__all__ = ["INDEX", "SCALES", "SINGLE", "ZEROS", "Checkpoint", "PackedParts"]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

#: What follows the name of a packed matrix in those of its scales and zeros.
SCALES = ".scales"
ZEROS = ".zeros"


class PackedParts(NamedTuple):
    """The tensors of a packed matrix, and what the file's metadata says of it under the matrix's name."""

    data: _C.Tensor
    scales: _C.Tensor
    zeros: _C.Tensor | None
    rows: int
    columns: int
    group: int  # columns that share a scale; 0: all

    @staticmethod
    def describe(rows: int, columns: int, group: int) -> str:
        """The entry of the metadata."""
        return json.dumps({"shape": [rows, columns], "group": group})


class Checkpoint:
    """Tensors by name, as views over the mapped files.

    Raises CheckpointError naming the file: absent, malformed, or not holding what the index says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, _C.Safetensors] = {}  # by tensor
        self._paths: dict[str, Path] = {}  # by tensor
        self._metadata: dict[Path, Mapping[str, str]] = {}
        self._main = folder / SINGLE
        if self._main.is_file():
            self._add(self._main)
        elif (folder / INDEX).is_file():
            self._main = folder / INDEX
            self._add_shards(folder)
        else:
            raise CheckpointError(f"{folder}: neither {SINGLE} nor {INDEX} is there{_others(folder)}")

    @property
    def origin(self) -> str:
        return str(self._main)

    def names(self) -> Iterable[str]:
        return self._files.keys()

    def find(self, name: str, shape: tuple[int, ...]) -> _C.Tensor | None:
        """The tensor of that name, whatever its shape."""
        return self._files[name][name] if name in self._files else None

    def find_packed(self, name: str) -> PackedParts | None:
        """The packed matrix of that name. CheckpointError where the file does not say what shape it has."""
        scales = self.find(name + SCALES, ())
        data = self.find(name, ())
        if data is None or scales is None:
            return None
        path = self._paths[name]
        return PackedParts(data, scales, self.find(name + ZEROS, ()), *_description(path, name, self._metadata[path]))

    def _add(self, path: Path) -> None:
        file = _open(path)
        self._metadata[path] = file.metadata
        for name in file.keys():  # noqa: SIM118 (not a dict)
            if name in self._files:
                raise CheckpointError(f"{path}: tensor {name!r} stands in {self._paths[name].name} too")
            self._files[name] = file
            self._paths[name] = path

    def _add_shards(self, folder: Path) -> None:
        index = folder / INDEX
        shards = _weight_map(index)
        for shard in sorted(set(shards.values())):
            if not (folder / shard).is_file():
                raise CheckpointError(f"{folder / shard}: missing, though {INDEX} lists it")
            self._add(folder / shard)
        for name, shard in shards.items():
            if name not in self._files or self._paths[name].name != shard:
                raise CheckpointError(f"{folder / shard}: tensor {name!r} is missing, though {INDEX} says it is there")
        for name, path in self._paths.items():
            if name not in shards:
                raise CheckpointError(f"{path}: tensor {name!r} is not listed in {INDEX}")


def _weight_map(index: Path) -> dict[str, str]:
    """The index's map from tensors to files, which are plain names of safetensors files beside it."""
    entries = read_json(index).get("weight_map")
    if not isinstance(entries, dict) or not entries:
        raise CheckpointError(f"{index}: weight_map must be an object that is not empty")
    for name, shard in entries.items():
        if not isinstance(shard, str) or not shard.endswith(".safetensors") or not set(shard).isdisjoint("/\\:\0"):
            raise CheckpointError(
                f"{index}: weight_map names no safetensors file beside it for {name!r}: {shard!r:.200}"
            )
    return entries


def _description(path: Path, name: str, metadata: Mapping[str, str]) -> tuple[int, int, int]:
    """Rows, columns and group of a packed matrix."""
    try:
        said = json.loads(metadata[name])
        (rows, columns), group = said["shape"], said["group"]
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: the metadata of the packed tensor {name!r} lack its shape and group") from error
    if not all(type(number) is int and 0 <= number < 2**31 for number in (rows, columns, group)):
        raise CheckpointError(f"{path}: the metadata of the packed tensor {name!r} are {metadata[name]:.80}")
    return rows, columns, group


def _open(path: Path) -> _C.Safetensors:
    try:
        return _C.Safetensors(path)
    except _C.FormatError as error:
        raise CheckpointError(str(error)) from error
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error


def _others(folder: Path) -> str:
    """A hint at what the folder holds instead."""
    names = sorted(
        path.name for pattern in ("*.safetensors", "*.bin", "*.gguf", "*.pth") for path in folder.glob(pattern)
    )
    return f"; found {', '.join(names[:5])}, which fermi does not read" if names else ""

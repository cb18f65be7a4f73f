"""From a checkpoint's folder to another one that holds the same model packed: whole, or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fermi import _C
from fermi.errors import ConfigError
from fermi.models.checkpoint import INDEX, SCALES, SINGLE, ZEROS, Checkpoint, PackedParts
from fermi.models.json_file import read_json
from fermi.quantization.packer import Packer, progress_bar
from fermi.quantization.recipe import Packing, Recipe
from fermi.quantization.survey import Survey
from fermi.quantization.tensor_file import Entry, TensorFile

__all__ = ["Quantized", "quantize_folder"]

#: Bytes of a file, more only where one matrix takes more.
SHARD_BYTES = 4_000_000_000

#: What stands beside the weights and belongs to the model.
COMPANIONS = frozenset({".json", ".jinja", ".txt", ".model", ".md", ""})

HEAD = "lm_head.weight"


class Quantized(NamedTuple):
    """What came of it: bytes of all tensors before and after, and the time it took."""

    folder: Path
    matrices: int
    bytes_before: int
    bytes_after: int
    seconds: float


@dataclass(frozen=True)
class Unit:
    """A tensor of the result: a matrix and how it is packed, or one that stays as it is."""

    name: str
    source: str  # the tensor's name in the checkpoint
    tensor: _C.Tensor
    packing: Packing | None

    @property
    def entries(self) -> list[Entry]:
        """What the file holds for it."""
        if self.packing is None:
            return [Entry(self.name, self.tensor.dtype, self.tensor.shape)]
        rows, columns = self.tensor.shape
        group = self.packing.group_of(columns)
        data, scales = _C.Weight.packed_shapes(self.packing.format, rows, columns, group)
        entries = [
            Entry(self.name, "i8" if self.packing.format == "int8" else "u8", data),
            Entry(self.name + SCALES, "f16", scales),
        ]
        return entries if self.packing.symmetric else [*entries, Entry(self.name + ZEROS, "u8", scales)]

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries)

    @property
    def metadata(self) -> dict[str, str]:
        """What the file says of it."""
        if self.packing is None:
            return {}
        rows, columns = self.tensor.shape
        return {self.name: PackedParts.describe(rows, columns, self.packing.group_of(columns))}


def quantize_folder(
    source: Path,
    destination: Path,
    recipe: Recipe,
    *,
    backend: _C.Backend,
    ready: Mapping[str, _C.Weight] | None = None,
    progress: bool = True,
    shard_bytes: int = SHARD_BYTES,
) -> Quantized:
    """Writes the checkpoint in ``source``, packed, to the new folder ``destination``, a matrix at a time.

    ``ready``: matrices that are packed already (`pack_calibrated`), by name.
    Everything is written to a hidden folder beside the destination, which gets its name when it is complete. What a
    process left behind that was killed is removed by the next one.

    Raises:
        ConfigError: the destination exists, or the source is quantized already.
        CheckpointError: the source is malformed, of an unknown model, or has weights that are not finite.
        OSError: the disk is full or may not be written.
    """
    if os.path.lexists(destination):
        raise ConfigError(f"{destination} exists already")
    start = time.monotonic()
    survey = Survey.of(source, backend)
    checkpoint = Checkpoint(source)
    units = _units(checkpoint, survey, recipe)
    packed = [unit for unit in units if unit.packing is not None]
    total = sum(unit.tensor.shape[0] * unit.tensor.shape[1] for unit in packed)
    with (
        _made_whole(destination) as folder,
        progress_bar(total, progress) as bar,
    ):
        packer = Packer(recipe, backend=backend, ready=ready, advance=bar.update)
        _write_shards(folder, _shards(units, shard_bytes), packer)
        _write_config(source, folder, recipe, separate=any(unit.source != unit.name for unit in units))
        _copy_companions(source, folder)
    return Quantized(
        destination,
        len(packed),
        sum(unit.tensor.nbytes for unit in units if unit.source == unit.name),
        sum(unit.nbytes for unit in units),
        time.monotonic() - start,
    )


def _units(checkpoint: Checkpoint, survey: Survey, recipe: Recipe) -> list[Unit]:
    """The tensors of the result. A tied head that is packed otherwise than the embedding becomes one of its own, and so
    does each matrix of a stack."""
    matrices = {matrix.name: matrix for matrix in survey.matrices}
    stacked = [matrix for name, matrix in matrices.items() if name not in checkpoint.names()]
    units = [Unit(each.name, each.name, each.weight.data, recipe.packing(each.role)) for each in stacked]
    for name in checkpoint.names():
        matrix, tensor = matrices.get(name), checkpoint.find(name, ())
        assert tensor is not None
        if stacked and len(tensor.shape) == 3:
            continue
        packing = None if matrix is None else recipe.packing(matrix.role)
        if matrix is not None and packing is not None:
            tensor = matrix.weight.data  # [out, in], however the checkpoint holds it
        units.append(Unit(name, name, tensor, packing))
        head = recipe.packing("head")
        if matrix is not None and matrix.role == "embedding" and survey.tied and head != recipe.packing("embedding"):
            units.append(Unit(HEAD, name, tensor, head))
    return units


def _shards(units: Sequence[Unit], limit: int) -> list[list[Unit]]:
    """The units of each file."""
    shards: list[list[Unit]] = [[]]
    room = limit
    for unit in units:
        if shards[-1] and unit.nbytes > room:
            shards.append([])
            room = limit
        shards[-1].append(unit)
        room -= unit.nbytes
    return shards


def _write_shards(folder: Path, shards: Sequence[Sequence[Unit]], packer: Packer) -> None:
    """The safetensors files, and the index where there are several."""
    weight_map: dict[str, str] = {}
    for number, units in enumerate(shards, start=1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        entries = [entry for unit in units for entry in unit.entries]
        weight_map |= {entry.name: name for entry in entries}
        metadata = {key: text for unit in units for key, text in unit.metadata.items()}
        with TensorFile(folder / name, entries, metadata) as file:
            for unit in units:
                _write_unit(file, unit, packer)
    if len(shards) > 1:
        total = sum(unit.nbytes for units in shards for unit in units)
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_unit(file: TensorFile, unit: Unit, packer: Packer) -> None:
    if unit.packing is None:
        file.write(unit.name, unit.tensor)
        return
    weight = packer.pack(unit.source, unit.packing, unit.tensor)
    assert weight.scales is not None
    file.write(unit.name, weight.data)
    file.write(unit.name + SCALES, weight.scales)
    if weight.zeros is not None:
        file.write(unit.name + ZEROS, weight.zeros)


def _write_config(source: Path, folder: Path, recipe: Recipe, *, separate: bool) -> None:
    """config.json, which says in addition how the matrices are packed, and whether the head is one of its own now."""
    config = read_json(source / "config.json")
    config["quantization_config"] = recipe.config().to_json()
    if separate:
        config["tie_word_embeddings"] = False
    _write_json(folder / "config.json", config)


def _copy_companions(source: Path, folder: Path) -> None:
    """Tokenizer, chat templates, generation_config, licence: all that is neither weights nor written already."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in COMPANIONS and not path.name.startswith(".") and path.name != INDEX:
            if not (folder / path.name).exists():
                shutil.copyfile(path, folder / path.name)
        elif path.is_dir() and path.name == "additional_chat_templates":
            shutil.copytree(path, folder / path.name, copy_function=shutil.copyfile)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _made_whole(destination: Path) -> Iterator[Path]:
    """A new folder that gets its name when the block is done, and is removed where it fails."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{destination.name}."
    _sweep(destination.parent, prefix)
    folder = destination.parent / f"{prefix}{secrets.token_hex(4)}.partial"
    folder.mkdir()
    lock = os.open(folder, os.O_RDONLY)  # held while this process lives: nobody else removes the folder
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
        folder.rename(destination)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _sweep(parent: Path, prefix: str) -> None:
    """Removes what processes left that are no more."""
    for folder in parent.glob(f"{prefix}*.partial"):
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            continue  # being written
        finally:
            os.close(lock)

"""Quantized checkpoints that are kept for the next time, by what they were made of."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

from fermi import _C
from fermi.errors import ConfigError
from fermi.quantization.folder import quantize_folder
from fermi.quantization.recipe import Recipe

__all__ = ["quantized_once"]

#: Part of every key: raised when the same recipe comes to give other files.
GENERATION = 1


def quantized_once(source: Path, cache: Path, recipe: Recipe, *, backend: _C.Backend, progress: bool = True) -> Path:
    """The checkpoint packed by the recipe, in a folder below ``cache`` that is made if it is not there.

    It is known by the names, sizes and times of the source's files. What was made of the source as it was before is
    removed. Raises as `quantize_folder`.
    """
    source = source.resolve()
    place = f"{source.name}-{_digest(str(source))}-{recipe.format}-"
    folder = cache / f"{place}{_digest(_identity(source, recipe))}"
    if folder.is_dir():
        return folder
    try:
        quantize_folder(source, folder, recipe, backend=backend, progress=progress)
    except (OSError, ConfigError):
        if folder.is_dir():  # another process was faster
            return folder
        raise
    for outdated in cache.glob(f"{place}*"):
        if outdated != folder:
            shutil.rmtree(outdated, ignore_errors=True)
    return folder


def _identity(source: Path, recipe: Recipe) -> str:
    """All that the result depends on."""
    files = []
    for path in sorted(source.iterdir()):
        if path.suffix in (".safetensors", ".json"):
            status = path.stat()
            files.append([path.name, status.st_size, status.st_mtime_ns])
    return json.dumps([GENERATION, asdict(recipe), files])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]

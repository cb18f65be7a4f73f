"""Reading a checkpoint's JSON files."""

from __future__ import annotations

import json
from pathlib import Path

from fermi.errors import CheckpointError

__all__ = ["read_json"]

#: Far above any model's config.json or index, far below what would fill memory.
LARGEST_FILE = 64 << 20


def read_json(file: Path) -> dict[str, object]:
    """The object that the file holds. Raises CheckpointError naming the file: absent, too large, malformed, not an
    object, or with a name that stands twice in one object."""
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise CheckpointError(f"{file}: larger than {LARGEST_FILE >> 20} MiB")
        value = json.loads(file.read_bytes(), object_pairs_hook=_unique)
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: must hold a JSON object")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values: dict[str, object] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{name[:200]!r} stands twice")
        values[name] = value
    return values

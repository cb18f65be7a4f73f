"""The JSON files of a checkpoint folder, read with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fermi.errors import CheckpointError

__all__ = ["read_object", "read_text"]


def read_text(path: Path) -> str:
    """The UTF-8 text of a file. CheckpointError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or an empty one where there is no such file. CheckpointError if it is malformed."""
    if not path.exists():
        return {}
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: a JSON object is expected, found {type(content).__name__}")
    return content

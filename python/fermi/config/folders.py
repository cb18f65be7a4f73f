"""Where the user's own files are, by the customs of the system."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["data_folder"]


def data_folder(environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path:
    """The folder of what fermi keeps for the user; it need not exist.

    ``$XDG_DATA_HOME/fermi`` where that is an absolute path, else ``~/.local/share/fermi`` (XDG Base Directory
    Specification); ``~/Library/Application Support/fermi`` on macOS; ``%LOCALAPPDATA%\\fermi`` on Windows.

    Raises:
        RuntimeError: the user has no home.
    """
    chosen = Path(environ.get("XDG_DATA_HOME", ""))
    if chosen.is_absolute():
        return chosen / "fermi"
    if platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "fermi"
    if platform == "win32" and environ.get("LOCALAPPDATA"):
        return Path(environ["LOCALAPPDATA"]) / "fermi"
    return Path.home() / ".local" / "share" / "fermi"

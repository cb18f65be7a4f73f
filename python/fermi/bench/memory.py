"""What memory this process takes: pages of files, which others share, and its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["Memory", "memory"]


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that are resident now.

    Attributes:
        files: pages of mapped files, weights and libraries: in the page cache, shared with other processes. None where
            the system does not tell.
        private: everything else.
    """

    files: int | None
    private: int


def memory() -> Memory:
    """Of this process, now."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return Memory(None, psutil.Process().memory_info().rss)
    lines = (line.partition(":") for line in status.read_text("ascii", "replace").splitlines())
    fields = {name: value.split() for name, _, value in lines}
    return Memory(int(fields["RssFile"][0]) * 1024, int(fields["RssAnon"][0]) * 1024)

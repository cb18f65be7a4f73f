"""Files as they stand in the page cache after a start of the machine."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["read_again"]

CHUNK = 16 << 20


def read_again(path: Path) -> None:
    """Drops a file, or all files of a folder, from the page cache and reads it back.

    Pages that a program has just written are small ones; read from the disk, they are as large as the file system makes
    them. Weights are mapped from these pages, and small ones cost a fifth of the speed: without this, a model that was
    converted just now would be slower than the same one tomorrow.
    """
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if not file.is_file():
            continue
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            while os.read(descriptor, CHUNK):
                pass
        finally:
            os.close(descriptor)

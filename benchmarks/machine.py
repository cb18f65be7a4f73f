"""What machine this is, for those who read the figures elsewhere."""

from __future__ import annotations

import platform
from pathlib import Path

import psutil

from fermi import _C

__all__ = ["describe_machine"]


def describe_machine(threads: int) -> dict[str, object]:
    """Processor, cores, memory, system, and the instruction set that fermi uses."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return {
        "processor": name,
        "cores": _C.physical_cores(),
        "threads": threads,
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "backend": _C.open_backend("cpu", threads=threads).description,
    }

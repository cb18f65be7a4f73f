"""What this machine can do at most: read bandwidth, arithmetic, barriers, by the loops in the CPU libraries."""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

__all__ = ["Ceiling"]

ROUNDS = 200_000
"""Of the loops in registers: some milliseconds."""


class Ceiling:
    """The machine's limits with a number of threads, measured by the code of one CPU library. Not for two threads."""

    def __init__(self, architecture: str, threads: int, megabytes: int = 1024) -> None:
        """``architecture``: the instruction set; ``megabytes``: memory to read, several times the cache."""
        core = find_spec("fermi._C")
        assert core is not None
        assert core.origin is not None
        path = Path(core.origin).parent / "backends" / f"libfermi_cpu_{architecture}.so"
        self._library = ctypes.CDLL(str(path))
        self._library.fermi_ceiling_open.restype = ctypes.c_void_p
        self._library.fermi_ceiling_open.argtypes = [ctypes.c_int, ctypes.c_size_t]
        self._library.fermi_ceiling_close.argtypes = [ctypes.c_void_p]
        self._library.fermi_ceiling_read.argtypes = [ctypes.c_void_p]
        for name in ("read", "f32", "bf16", "int8", "barrier"):
            getattr(self._library, f"fermi_ceiling_{name}").restype = ctypes.c_double
        self.threads = threads
        self._reader = self._library.fermi_ceiling_open(threads, megabytes << 20)

    def read(self) -> float:
        """Bytes per second of one pass over memory."""
        return float(self._library.fermi_ceiling_read(self._reader))

    def f32(self) -> float:
        """Operations per second of multiply-adds in registers."""
        return float(self._library.fermi_ceiling_f32(self.threads, ROUNDS))

    def bf16(self) -> float:
        """Operations per second of products of bf16 pairs; 0 where the machine has none."""
        return float(self._library.fermi_ceiling_bf16(self.threads, ROUNDS))

    def int8(self) -> float:
        """Operations per second of products of bytes, four to a sum (``vpdpbusd``); 0 where the machine has none."""
        return float(self._library.fermi_ceiling_int8(self.threads, ROUNDS))

    def barrier(self) -> float:
        """Seconds of one barrier of the thread pool."""
        return float(self._library.fermi_ceiling_barrier(self.threads, 2000))

    def __enter__(self) -> Ceiling:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._library.fermi_ceiling_close(self._reader)

"""What this machine can do at most: read bandwidth, arithmetic, barriers. Prints one line per number of threads.

python benchmarks/ceiling.py [--threads 1,2] [--architecture avx512] [--megabytes 1024] [--repeats 15] [--json FILE]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
from pathlib import Path
from types import TracebackType

from probe import Sample, sample, undisturbed

from fermi import _C

ROUNDS = 200_000
"""Of the loops in registers: some milliseconds."""


class Ceiling:
    """The machine's limits with a number of threads, measured by the code of one CPU library. Not for two threads."""

    def __init__(self, architecture: str, threads: int, megabytes: int = 1024) -> None:
        assert _C.__file__ is not None
        path = Path(_C.__file__).parent / "backends" / f"libfermi_cpu_{architecture}.so"
        self._library = ctypes.CDLL(str(path))
        self._library.fermi_ceiling_open.restype = ctypes.c_void_p
        self._library.fermi_ceiling_open.argtypes = [ctypes.c_int, ctypes.c_size_t]
        self._library.fermi_ceiling_close.argtypes = [ctypes.c_void_p]
        self._library.fermi_ceiling_read.argtypes = [ctypes.c_void_p]
        for name in ("read", "f32", "bf16", "barrier"):
            getattr(self._library, f"fermi_ceiling_{name}").restype = ctypes.c_double
        self._int8 = getattr(self._library, "fermi_ceiling_int8", None)
        if self._int8 is not None:
            self._int8.restype = ctypes.c_double
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
        """Operations per second of dot products of four bytes (``vpdpbusd``); 0 where the machine has none."""
        return 0.0 if self._int8 is None else float(self._int8(self.threads, ROUNDS))

    def barrier(self) -> float:
        """Seconds of one barrier of the thread pool."""
        return float(self._library.fermi_ceiling_barrier(self.threads, 2000))

    def __enter__(self) -> Ceiling:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._library.fermi_ceiling_close(self._reader)


def measure(architecture: str, threads: int, megabytes: int, repeats: int) -> dict[str, float]:
    """Medians of the undisturbed repetitions, the limits interleaved."""
    samples: dict[str, list[Sample]] = {name: [] for name in ("read", "f32", "bf16", "int8", "barrier")}
    with Ceiling(architecture, threads, megabytes) as ceiling:
        for _ in range(repeats):
            for name, values in samples.items():
                values.append(sample(getattr(ceiling, name), threads))
    return {name: statistics.median(undisturbed(values)) for name, values in samples.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default=",".join(str(n + 1) for n in range(_C.physical_cores())))
    parser.add_argument("--architecture", default=_C.cpu_architectures()[0], choices=_C.cpu_architectures())
    parser.add_argument("--megabytes", type=int, default=1024, help="memory to read: several times the cache")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path, help="also write the figures here, in bytes, operations and seconds")
    arguments = parser.parse_args()
    rows = []
    print("threads  read GB/s  f32 GFLOP/s  bf16 GFLOP/s  int8 GOP/s  barrier µs")
    for threads in map(int, arguments.threads.split(",")):
        row = measure(arguments.architecture, threads, arguments.megabytes, arguments.repeats)
        rows.append({"architecture": arguments.architecture, "threads": threads, **row})
        bf16, int8 = (f"{row[name] / 1e9:.0f}" if row[name] else "-" for name in ("bf16", "int8"))
        read, f32, barrier = row["read"] / 1e9, row["f32"] / 1e9, row["barrier"] * 1e6
        print(f"{threads:7} {read:10.1f} {f32:12.0f} {bf16:>13} {int8:>11} {barrier:11.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

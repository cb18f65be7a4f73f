"""What this machine can do at most: read bandwidth, arithmetic, barriers. Prints one line per number of threads.

python benchmarks/ceiling.py [--threads 1,2] [--architecture avx512] [--megabytes 1024] [--repeats 15] [--json FILE]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from fermi import _C

ROUNDS = 200_000
"""Of the loops in registers: some milliseconds."""


class Sample(NamedTuple):
    """One measurement: its value, and how much of the processors the process got meanwhile (1: all)."""

    value: float
    presence: float


def sample(measure: Callable[[], float], threads: int) -> Sample:
    """Runs ``measure``, all of whose threads are busy from start to end, against CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = measure()
    return Sample(value, (time.process_time() - cpu) / ((time.perf_counter() - wall) * threads))


def undisturbed(samples: list[Sample]) -> list[float]:
    """Values of the samples during which the machine was all there; of the better half, where it never was."""
    present = [s.value for s in samples if s.presence > 0.97]
    if present:
        return present
    samples = sorted(samples, key=lambda s: -s.presence)
    return [s.value for s in samples[: max(1, len(samples) // 2)]]


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
    """Medians of the undisturbed repetitions, the four limits interleaved."""
    samples: dict[str, list[Sample]] = {"read": [], "f32": [], "bf16": [], "barrier": []}
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
    print(f"{'threads':>7} {'read GB/s':>10} {'f32 GFLOP/s':>12} {'bf16 GFLOP/s':>13} {'barrier µs':>11}")
    for threads in map(int, arguments.threads.split(",")):
        row = measure(arguments.architecture, threads, arguments.megabytes, arguments.repeats)
        rows.append({"architecture": arguments.architecture, "threads": threads, **row})
        bf16 = f"{row['bf16'] / 1e9:13.0f}" if row["bf16"] else f"{'-':>13}"
        print(f"{threads:7} {row['read'] / 1e9:10.1f} {row['f32'] / 1e9:12.0f} {bf16} {row['barrier'] * 1e6:11.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

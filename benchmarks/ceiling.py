"""What this machine can do at most: read bandwidth, arithmetic, barriers. Prints one line per number of threads.

python benchmarks/ceiling.py [--threads 1,2] [--architecture avx512] [--megabytes 1024] [--repeats 15] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from fermi import _C
from fermi.bench.ceiling import Ceiling
from fermi.bench.probe import Sample, sample, undisturbed


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

"""How long a checkpoint in the page cache takes to its first token, and what memory of its own opening it takes.

    python benchmarks/load.py [folder] [--repeats 5] [--threads 0]

Without a folder, a random checkpoint of the shape of Llama 3.2 1B is used, written once to the cache folder: 2.5 GB in
bf16. The first token follows a prompt of one token; what that takes beyond a decode step of the same engine is the
price of opening: maps, page tables, the description of the step. Medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from checkpoints import cache_folder, checkpoint

from fermi import _C
from fermi.engine.engine import Engine, EngineConfig
from fermi.engine.sampling import Sampling
from fermi.engine.sequence import Request
from fermi.models import load_model

STEPS = 9


def read_through(folder: Path) -> None:
    """Brings every file into the page cache."""
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.read(16 << 20):
                pass


def private_bytes() -> int:
    """Memory that this process shares with no other, mapped files included (Linux)."""
    fields = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(fields[name].split()[0]) * 1024 for name in ("Private_Dirty", "Private_Clean"))


@dataclass
class Opening:
    """Of one opening, seconds: to the model, to the engine, to the first token; a decode step afterwards; bytes."""

    model: float
    engine: float
    first_token: float
    step: float
    private: int


def measure(folder: Path, threads: int) -> Opening:
    backend = _C.open_backend("cpu", threads=threads)
    before, start = private_bytes(), time.perf_counter()
    model = load_model(folder, backend=backend)
    opened = time.perf_counter()
    private = private_bytes() - before
    again = time.perf_counter()
    engine = Engine(model, EngineConfig(max_num_seqs=1, max_model_len=1024))
    engine.add(Request(id="first", prompt_token_ids=[1], sampling=Sampling(temperature=0, max_tokens=STEPS + 1)))
    ready = time.perf_counter()
    engine.step()
    first = time.perf_counter()
    steps = []
    while engine.has_work:
        started = time.perf_counter()
        engine.step()
        steps.append(time.perf_counter() - started)
    opening = opened - start
    return Opening(opening, ready - again + opening, first - again + opening, statistics.median(steps[:STEPS]), private)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="llama-1b", help="a checkpoint, or a shape")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are cores")
    arguments = parser.parse_args()
    _, folder = checkpoint(arguments.folder, cache_folder())
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    read_through(folder)
    openings = [measure(folder, arguments.threads) for _ in range(arguments.repeats)]
    print(f"{folder}: {size / 1e9:.2f} GB")
    for name, seconds in (
        ("model opened after", statistics.median(each.model for each in openings)),
        ("engine ready after", statistics.median(each.engine for each in openings)),
        ("first token after", statistics.median(each.first_token for each in openings)),
        ("a decode step", statistics.median(each.step for each in openings)),
        ("first token less a step", statistics.median(each.first_token - each.step for each in openings)),
    ):
        print(f"{name:28}{1e3 * seconds:10.1f} ms")
    private = statistics.median(each.private for each in openings)
    print(f"{'private memory to open':28}{private / 1e6:10.1f} MB ({100 * private / size:.2f} %)")


if __name__ == "__main__":
    main()

"""How long a checkpoint takes to open once it is in the page cache, and what memory of its own that takes.

    python benchmarks/load.py [folder]

Without a folder, a random checkpoint of the shape of Llama 3.2 1B is written to a temporary one: 2.5 GB in bf16.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from checkpoints import SHAPES, write_checkpoint

from fermi import _C
from fermi.models import load_model


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


def measure(folder: Path, backend: _C.Backend) -> None:
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    read_through(folder)
    before, start = private_bytes(), time.perf_counter()
    model = load_model(folder, backend=backend)
    seconds, private = time.perf_counter() - start, private_bytes() - before
    print(f"{folder}: {size / 1e9:.2f} GB, {model.parameters / 1e6:.0f} million parameters in {model.dtype}")
    print(f"opened in {1e3 * seconds:.1f} ms; private memory +{private / 1e6:.1f} MB ({100 * private / size:.2f} %)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="a checkpoint")
    arguments = parser.parse_args()
    backend = _C.open_backend("cpu")
    if arguments.folder is not None:
        measure(arguments.folder, backend)
        return
    with tempfile.TemporaryDirectory() as temporary:
        write_checkpoint(Path(temporary), SHAPES["llama-1b"], backend)
        measure(Path(temporary), backend)


if __name__ == "__main__":
    main()

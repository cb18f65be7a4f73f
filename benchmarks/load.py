"""How long a checkpoint takes to open once it is in the page cache, and what memory of its own that takes.

    python benchmarks/load.py [folder]

Without a folder, a random checkpoint of the shape of Llama 3.2 1B is written to a temporary one: 2.5 GB in bf16.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from fermi import _C
from fermi.models import load_model, read_config
from fermi.models.fields import Fields
from fermi.models.random_tensors import RandomTensors
from fermi.models.weights import Weights

LLAMA_1B: dict[str, object] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


class Shapes:
    """A source without tensors that notes what a model's constructor asks for."""

    origin = "shapes"

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}

    def names(self) -> Iterable[str]:
        return ()

    def find(self, name: str, shape: tuple[int, ...]) -> None:
        self.shapes[name] = shape


def write_checkpoint(folder: Path, config: dict[str, object], backend: _C.Backend, seed: int = 0) -> int:
    """Writes config.json and random bf16 weights, some megabytes at a time; returns the weights' size in bytes."""
    (folder / "config.json").write_text(json.dumps(config))
    architecture, parsed = read_config(Fields.from_file(folder / "config.json"))
    source = Shapes()
    architecture(parsed, Weights(source, backend=backend))
    header: dict[str, object] = {}
    end = 0
    for name, shape in source.shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)  # tensors begin at multiples of 64
    tensors = RandomTensors("bf16", seed)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in source.shapes.items():
            for chunk in tensors.chunks(name, shape):
                file.write(chunk.tobytes())
    return end


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
        write_checkpoint(Path(temporary), LLAMA_1B, backend)
        measure(Path(temporary), backend)


if __name__ == "__main__":
    main()

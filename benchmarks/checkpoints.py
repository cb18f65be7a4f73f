"""Random checkpoints of the shapes of known models, made once and kept in a cache folder."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from fermi import _C
from fermi.models import read_config
from fermi.models.fields import Fields
from fermi.models.random_tensors import RandomTensors
from fermi.models.weights import Weights

__all__ = ["MIXTURES", "SHAPES", "cache_folder", "checkpoint", "made_once", "write_checkpoint"]

COMMON: Mapping[str, object] = {"hidden_act": "silu", "tie_word_embeddings": True, "torch_dtype": "bfloat16"}
SHAPES: Mapping[str, Mapping[str, object]] = {
    "llama-1b": {
        **COMMON,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
    },
    "qwen3-0.6b": {
        **COMMON,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 40960,
    },
}

#: Of no known model: a mixture that is measured in seconds.
MIXTURES: Mapping[str, Mapping[str, object]] = {
    "mixture-0.9b": {
        **COMMON,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "moe_intermediate_size": 512,
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "norm_topk_prob": True,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "vocab_size": 32000,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 4096,
    },
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

    def find_packed(self, name: str) -> None:
        """There is none."""


def write_checkpoint(folder: Path, config: Mapping[str, object], backend: _C.Backend, seed: int = 0) -> int:
    """Writes config.json and random bf16 weights, some megabytes at a time; returns the weights' size in bytes."""
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    architecture, parsed = read_config(Fields.from_file(folder / "config.json"))
    source = Shapes()
    architecture(parsed, Weights(source, backend=backend))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
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


def cache_folder() -> Path:
    """Where checkpoints and their conversions are kept unless another folder is named."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "fermi" / "benchmarks"


def made_once(target: Path, make: Callable[[Path], None]) -> Path:
    """``target``, a folder that ``make`` fills where it is not there yet; half of one is never left behind."""
    if not target.exists():
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            make(partial)
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return target


def checkpoint(model: str, cache: Path) -> tuple[str, Path]:
    """The model's name, and the folder of its random bf16 checkpoint.

    ``model``: of SHAPES, a config.json, or a folder with one; a folder that also has weights is used as it is.
    """
    if model in SHAPES:
        name, config = model, SHAPES[model]
    else:
        path = Path(model)
        if path.is_dir() and any(path.glob("*.safetensors")):
            return path.resolve().name, path.resolve()
        path = path / "config.json" if path.is_dir() else path
        config = {key: value for key, value in json.loads(path.read_text()).items() if key != "quantization_config"}
        name = (path.parent if path.name == "config.json" else path.with_suffix("")).resolve().name
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]

    def make(folder: Path) -> None:
        write_checkpoint(folder, config, _C.open_backend("cpu"))

    return name, made_once(cache / f"{name}-{digest}" / "bf16", make)

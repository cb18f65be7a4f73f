"""What the tests of quantization share: a backend, tiny checkpoints, and models quantized once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fermi import _C
from fermi.models import read_config
from fermi.models.fields import Fields
from fermi.models.random_tensors import RandomTensors
from fermi.models.weights import Weights

CONFIG: Mapping[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 250,
    "hidden_size": 72,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


class _Noted:
    """Random tensors, and which of them a model has asked for."""

    origin = "random weights"

    def __init__(self) -> None:
        self.source = RandomTensors("f32")
        self.arrays: dict[str, np.ndarray] = {}

    def names(self) -> tuple[str, ...]:
        return ()

    def find(self, name: str, shape: tuple[int, ...]) -> _C.Tensor:
        tensor = self.source.find(name, shape)
        self.arrays[name] = tensor.float32()
        return tensor

    def find_packed(self, name: str) -> None:
        """There is none."""


def write_checkpoint(folder: Path, backend: _C.Backend, **changes: object) -> Path:
    """A checkpoint in f32 whose sizes are no multiples of anything."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    architecture, config = read_config(Fields.from_file(folder / "config.json"))
    noted = _Noted()
    architecture(config, Weights(noted, backend=backend))
    save_file(noted.arrays, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def backend() -> _C.Backend:
    return _C.open_backend("cpu", threads=2)


@pytest.fixture
def untied(tmp_path: Path, backend: _C.Backend) -> Path:
    return write_checkpoint(tmp_path / "untied", backend)


@pytest.fixture
def tied(tmp_path: Path, backend: _C.Backend) -> Path:
    return write_checkpoint(tmp_path / "tied", backend, tie_word_embeddings=True)

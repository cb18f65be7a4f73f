"""Models: one short file per architecture on shared layers; a checkpoint's config.json picks it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fermi import _C
from fermi.models.checkpoint import Checkpoint
from fermi.models.config import DecoderConfig
from fermi.models.decoder import Decoder
from fermi.models.embedding import EmbeddingModel, TokenSequence, is_embedding_model, load_embedding_model
from fermi.models.fields import Fields
from fermi.models.gemma import Gemma
from fermi.models.gemma2 import Gemma2
from fermi.models.gemma3 import Gemma3, Gemma3Text
from fermi.models.gpt2 import GPT2
from fermi.models.gpt_neox import GPTNeoX
from fermi.models.granite import Granite
from fermi.models.inputs import Batch, KVCache, KVSpec
from fermi.models.llama import Llama
from fermi.models.mistral import Mistral
from fermi.models.mixtral import Mixtral
from fermi.models.model import Model
from fermi.models.olmo2 import Olmo2
from fermi.models.phi import Phi
from fermi.models.phi3 import Phi3
from fermi.models.quantization_config import QuantizationConfig
from fermi.models.qwen2 import Qwen2
from fermi.models.qwen2_moe import Qwen2Moe
from fermi.models.qwen3 import Qwen3
from fermi.models.qwen3_moe import Qwen3Moe
from fermi.models.smollm3 import SmolLM3
from fermi.models.starcoder2 import Starcoder2
from fermi.models.weights import MatrixRole, Tap, Transform, Weights

__all__ = [
    "ARCHITECTURES",
    "Batch",
    "EmbeddingModel",
    "KVCache",
    "KVSpec",
    "MatrixRole",
    "Model",
    "QuantizationConfig",
    "Tap",
    "TokenSequence",
    "Transform",
    "Weights",
    "is_embedding_model",
    "load_embedding_model",
    "load_model",
    "quantization_of",
    "random_model",
    "read_config",
]

#: By config.json's model_type.
ARCHITECTURES: Mapping[str, type[Decoder[Any]]] = MappingProxyType(
    {
        "gemma": Gemma,
        "gemma2": Gemma2,
        "gemma3": Gemma3,
        "gemma3_text": Gemma3Text,
        "gpt2": GPT2,
        "gpt_neox": GPTNeoX,
        "granite": Granite,
        "llama": Llama,
        "mistral": Mistral,
        "mixtral": Mixtral,
        "olmo2": Olmo2,
        "phi": Phi,
        "phi3": Phi3,
        "qwen2": Qwen2,
        "qwen2_moe": Qwen2Moe,
        "qwen3": Qwen3,
        "qwen3_moe": Qwen3Moe,
        "smollm3": SmolLM3,
        "starcoder2": Starcoder2,
    }
)


def load_model(
    folder: Path,
    *,
    backend: _C.Backend,
    dtype: str = "auto",
    transform: Transform | None = None,
    tap: Tap | None = None,
) -> Decoder[Any]:
    """The model in a folder of config.json and safetensors files, its weights mapped from there.

    ``dtype`` is f32, f16 or bf16, to which dense weights are converted that have another one, or auto, which keeps
    them. ``transform`` and ``tap``: see `Weights`.
    Raises UnsupportedModelError naming a field of config.json that is not honoured, CheckpointError naming the file
    and what is wrong with it, ConfigError for an unknown dtype.
    """
    folder = Path(folder)
    architecture, config = read_config(Fields.from_file(folder / "config.json"))
    weights = Weights(Checkpoint(folder), backend=backend, dtype=dtype, transform=transform, tap=tap)
    return _build(architecture, config, weights)


def random_model(
    config: Mapping[str, object],
    *,
    backend: _C.Backend,
    dtype: _C.DTypeName = "bf16",
    seed: int = 0,
    transform: Transform | None = None,
) -> Decoder[Any]:
    """A model of the shape that a config.json describes, with made-up weights: for tests and benchmarks."""
    architecture, fields = read_config(Fields(config, Path("config.json")))
    weights = Weights.random(backend=backend, dtype=dtype, seed=seed, transform=transform)
    return _build(architecture, fields, weights)


def read_config(fields: Fields) -> tuple[type[Decoder[Any]], DecoderConfig]:
    """The architecture that a config.json names, and its config. Raises CheckpointError naming the field."""
    architecture = fields.choice("model_type", ARCHITECTURES, default="absent")
    expected = architecture.classes or (f"{architecture.__name__}ForCausalLM",)
    classes = fields.strings("architectures")
    if classes and {name.lower() for name in expected}.isdisjoint(name.lower() for name in classes):
        raise fields.unsupported("architectures", f"is {', '.join(classes)}; supported: {', '.join(expected)}")
    config = architecture.read_config(fields)
    fields.refuse_rest()
    return architecture, config


def quantization_of(folder: Path) -> QuantizationConfig | None:
    """How the checkpoint in a folder is packed, None where it is not. Raises as `read_config`."""
    return read_config(Fields.from_file(Path(folder) / "config.json"))[1].quantization


def _build(architecture: type[Decoder[Any]], config: DecoderConfig, weights: Weights) -> Decoder[Any]:
    model = architecture(config, weights)
    weights.check()
    return model

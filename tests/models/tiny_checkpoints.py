"""Tiny checkpoints that Transformers makes, one for each thing that config.json can ask for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

VOCABULARY = 199

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
}


@dataclass(frozen=True)
class Variant:
    """A config of a family, and how many tokens of prompt it wants."""

    family: str  # Transformers' prefix of the class names
    options: dict[str, Any] = field(default_factory=dict)
    prompt: int = 40

    def reference(self, seed: int = 0, gain: float = 2.0) -> transformers.PreTrainedModel:
        """The model with random weights, in float32. A matrix stretches its input by about ``gain``: above 1 the model
        is chaotic, so that any mistake shows, but so does the rounding of half precision."""
        config = getattr(transformers, f"{self.family}Config")(**{**SIZES, **self.options})
        config._attn_implementation = "eager"
        torch.manual_seed(seed)
        model = getattr(transformers, f"{self.family}ForCausalLM")(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0, gain * parameter.shape[1] ** -0.5)
                elif name.endswith("bias"):
                    parameter.normal_(0, 0.5)
                else:
                    parameter.normal_(1, 0.2)
        model.tie_weights()
        return model

    def tokens(self, seed: int = 0) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, VOCABULARY, (self.prompt,), generator=generator).tolist()


def rope(rope_type: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 10_000.0, **parameters}}


LONG = {"short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [1.5 + 0.7 * i for i in range(8)]}
SLIDING = {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1}
MIXED = {
    "use_sliding_window": True,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}

VARIANTS = {
    "llama grouped": Variant("Llama"),
    "llama multi-head": Variant("Llama", {"num_key_value_heads": 4}),
    "llama one kv head": Variant("Llama", {"num_key_value_heads": 1}),
    "llama head_dim": Variant("Llama", {"head_dim": 24}),
    "llama odd sizes": Variant("Llama", {"hidden_size": 84, "num_attention_heads": 6, "intermediate_size": 37}),
    "llama biases": Variant("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama tied": Variant("Llama", {"tie_word_embeddings": True}),
    "llama gelu": Variant("Llama", {"hidden_act": "gelu"}),
    "llama gelu tanh": Variant("Llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "llama relu": Variant("Llama", {"hidden_act": "relu"}),
    "llama theta": Variant("Llama", {"rms_norm_eps": 1e-3, **rope("default", rope_theta=500_000.0)}),
    "llama linear": Variant("Llama", rope("linear", factor=4.0)),
    "llama dynamic": Variant("Llama", rope("dynamic", factor=4.0)),
    "llama dynamic beyond": Variant("Llama", {**rope("dynamic", factor=4.0), "max_position_embeddings": 32}),
    "llama dynamic across": Variant("Llama", {**rope("dynamic", factor=4.0), "max_position_embeddings": 64}),
    "llama llama3": Variant(
        "Llama",
        rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64),
    ),
    "llama yarn": Variant("Llama", rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    "llama yarn mscale": Variant(
        "Llama",
        rope(
            "yarn",
            factor=8.0,
            original_max_position_embeddings=32,
            beta_fast=16.0,
            beta_slow=2.0,
            mscale=0.7,
            mscale_all_dim=1.3,
            truncate=False,
        ),
    ),
    "llama yarn attention": Variant(
        "Llama", rope("yarn", factor=4.0, original_max_position_embeddings=64, attention_factor=1.25)
    ),
    "llama longrope short": Variant("Llama", rope("longrope", original_max_position_embeddings=128, **LONG)),
    "llama longrope across": Variant("Llama", rope("longrope", original_max_position_embeddings=64, **LONG)),
    "llama longrope beyond": Variant("Llama", rope("longrope", original_max_position_embeddings=32, **LONG)),
    "llama longrope factor": Variant(
        "Llama", rope("longrope", original_max_position_embeddings=64, factor=3.0, **LONG)
    ),
    "mistral window": Variant("Mistral", {"sliding_window": 9}),
    "mistral window two": Variant("Mistral", {"sliding_window": 2}),
    "mistral no window": Variant("Mistral", {"sliding_window": None, "head_dim": 32}),
    "mistral long window": Variant("Mistral", {"sliding_window": 128, "tie_word_embeddings": True}),
    "qwen2": Variant("Qwen2"),
    "qwen2 tied": Variant("Qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "qwen2 sliding layers": Variant("Qwen2", SLIDING),
    "qwen2 layer types": Variant("Qwen2", MIXED),
    "qwen2 yarn": Variant("Qwen2", rope("yarn", factor=4.0, original_max_position_embeddings=32)),
    "qwen3": Variant("Qwen3", {"head_dim": 32}),
    "qwen3 tied": Variant("Qwen3", {"head_dim": 16, "tie_word_embeddings": True, "num_key_value_heads": 4}),
    "qwen3 biases": Variant("Qwen3", {"head_dim": 16, "attention_bias": True}),
    "qwen3 sliding layers": Variant("Qwen3", {"head_dim": 16, **SLIDING}),
    "qwen3 layer types": Variant("Qwen3", {"head_dim": 16, **MIXED}),
}


def save(model: transformers.PreTrainedModel, folder: Path, dtype: str = "float32", **options: Any) -> Path:
    """Writes the model's config.json and safetensors."""
    model.to(getattr(torch, dtype)).save_pretrained(folder, **options)
    return folder

"""Tiny checkpoints that Transformers makes, one for each thing that config.json can ask for."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.pytorch_utils import Conv1D

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
    "pad_token_id": None,
}

#: Names of model classes that do not follow from the family's.
CLASSES = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}

#: Sizes that a family's config does not know.
UNKNOWN = {"GPT2": {"intermediate_size", "num_key_value_heads"}, "GPTNeoX": {"num_key_value_heads"}}


@dataclass(frozen=True)
class Variant:
    """A config of a family, and how many tokens of prompt it wants."""

    family: str  # Transformers' prefix of the class names
    options: dict[str, Any] = field(default_factory=dict)
    prompt: int = 40

    def reference(self, seed: int = 0, gain: float = 2.0) -> transformers.PreTrainedModel:
        """The model with random weights, in float32. A matrix stretches its input by about ``gain``: above 1 the model
        is chaotic, so that any mistake shows, but so does the rounding of half precision."""
        options = copy.deepcopy({**SIZES, **self.options})  # Transformers writes to nested ones
        for name in UNKNOWN.get(self.family, set()) - self.options.keys():
            del options[name]
        config = getattr(transformers, f"{self.family}Config")(**options)
        config._attn_implementation = "eager"
        config._experts_implementation = "eager"  # the others want sizes that are multiples of some powers of two
        torch.manual_seed(seed)
        model = getattr(transformers, CLASSES.get(self.family, f"{self.family}ForCausalLM"))(config).eval()
        stored = {id(module.weight) for module in model.modules() if isinstance(module, Conv1D)}  # as [in, out]
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim >= 2:  # those of experts lie in a stack
                    parameter.normal_(0, gain * parameter.shape[0 if id(parameter) in stored else -1] ** -0.5)
                elif name.endswith("bias"):
                    parameter.normal_(0, 0.5)
                else:
                    parameter.normal_(0 if self.family.startswith("Gemma") else 1, 0.2)
        model.tie_weights()
        return model

    @property
    def routes(self) -> bool:
        """Whether it has experts."""
        return any("experts" in name for name in self.options)

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

#: One KV head, and sizes that fit no register.
ODD_SIZES = {"hidden_size": 84, "num_attention_heads": 6, "vocab_size": 211}
ODD = {**ODD_SIZES, "num_key_value_heads": 1, "intermediate_size": 37}
BIASES = {"attention_bias": True}
UNTIED = {"tie_word_embeddings": False}
TIED = {"tie_word_embeddings": True}
GEMMA = {"head_dim": 16}
GEMMA2 = {"head_dim": 16, "query_pre_attn_scalar": 20, "sliding_window": 9}
PHI3_LONG = {**rope("longrope", **LONG), "original_max_position_embeddings": 128}
PARTLY_LONG = rope("longrope", **{name: factors[:6] for name, factors in LONG.items()}, partial_rotary_factor=0.75)
GEMMA3_ROPE = {
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    }
}
GRANITE = {
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.15,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
}

VARIANTS |= {
    "phi3": Variant("Phi3"),
    "phi3 odd": Variant("Phi3", ODD),
    "phi3 window": Variant("Phi3", {"sliding_window": 5, "num_key_value_heads": 4}),
    "phi3 head_dim": Variant("Phi3", {"head_dim": 24, **TIED}),
    "phi3 partial": Variant("Phi3", {**rope("default", partial_rotary_factor=0.75), **TIED, "sliding_window": 500}),
    "phi3 longrope short": Variant("Phi3", PHI3_LONG),
    "phi3 longrope beyond": Variant("Phi3", {**PHI3_LONG, "original_max_position_embeddings": 32}),
    "phi3 partial longrope": Variant("Phi3", {**PARTLY_LONG, "original_max_position_embeddings": 16}),
    "phi": Variant("Phi", {"num_key_value_heads": 4}),
    "phi odd": Variant("Phi", {**ODD, **rope("default", partial_rotary_factor=0.3)}),
    "phi tied": Variant("Phi", {**TIED, "hidden_act": "gelu", **rope("default", partial_rotary_factor=1.0)}),
    "gemma": Variant("Gemma", {**GEMMA, "num_key_value_heads": 4}),
    "gemma odd": Variant("Gemma", {**ODD, "head_dim": 10}),
    "gemma untied": Variant("Gemma", {**UNTIED, **BIASES, "head_dim": 32}),
    "gemma legacy activation": Variant("Gemma", {**GEMMA, "hidden_act": "gelu"}),
    "gemma2": Variant("Gemma2", GEMMA2),
    "gemma2 odd": Variant("Gemma2", {**GEMMA2, **ODD, "head_dim": 10, "sliding_window": 3, "num_hidden_layers": 4}),
    "gemma2 caps": Variant("Gemma2", {**GEMMA2, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5}),
    "gemma2 no caps": Variant(
        "Gemma2", {**GEMMA2, **BIASES, **UNTIED, "attn_logit_softcapping": None, "final_logit_softcapping": None}
    ),
    "gemma2 layer types": Variant(
        "Gemma2", {**GEMMA2, "layer_types": ["full_attention", "full_attention", "sliding_attention"]}
    ),
    "gemma3": Variant("Gemma3Text", {**GEMMA2, **GEMMA3_ROPE, "sliding_window_pattern": 2, "num_hidden_layers": 4}),
    "gemma3 odd": Variant("Gemma3Text", {**GEMMA2, **ODD, "head_dim": 10, "sliding_window": 4}),
    "gemma3 untied": Variant(
        "Gemma3Text",
        {
            **GEMMA2,
            **BIASES,
            **UNTIED,
            "final_logit_softcapping": 3.0,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
    ),
    "smollm3": Variant("SmolLM3", {"no_rope_layer_interval": 2, "num_hidden_layers": 4}),
    "smollm3 no_rope_layers": Variant("SmolLM3", {**UNTIED, **BIASES, "mlp_bias": True, "no_rope_layers": [0, 1, 0]}),
    "smollm3 window": Variant(
        "SmolLM3", {"use_sliding_window": True, "sliding_window": 6, "no_rope_layers": [1, 0, 1], **ODD}
    ),
    "smollm3 layer types": Variant(
        "SmolLM3",
        {
            "use_sliding_window": True,
            "sliding_window": 16,
            "no_rope_layers": [1, 0, 1],
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "granite": Variant("Granite", GRANITE),
    "granite odd": Variant("Granite", {**GRANITE, **ODD, **TIED}),
    "granite biases": Variant("Granite", {**GRANITE, **BIASES, "mlp_bias": True, "num_key_value_heads": 4}),
    "olmo2": Variant("Olmo2"),
    "olmo2 odd": Variant("Olmo2", {**ODD, **TIED}),
    "olmo2 biases": Variant("Olmo2", {**BIASES, "num_key_value_heads": 4, "head_dim": 24}),
    "starcoder2": Variant("Starcoder2"),
    "starcoder2 odd": Variant("Starcoder2", {**ODD, "sliding_window": 5}),
    "starcoder2 no biases": Variant("Starcoder2", {**UNTIED, "use_bias": False, "hidden_act": "gelu"}),
    "gpt2": Variant("GPT2"),
    "gpt2 odd": Variant("GPT2", {**ODD_SIZES, "n_inner": 37, **UNTIED, "activation_function": "gelu"}),
    "gpt2 inverse layer": Variant("GPT2", {"scale_attn_by_inverse_layer_idx": True, "n_inner": 40}),
    "gpt2 unscaled": Variant("GPT2", {"scale_attn_weights": False, "activation_function": "relu"}),
    "gpt_neox": Variant("GPTNeoX"),
    "gpt_neox sequential": Variant("GPTNeoX", {"use_parallel_residual": False, "hidden_act": "gelu_new"}),
    "gpt_neox odd": Variant(
        "GPTNeoX",
        {
            **ODD_SIZES,
            "intermediate_size": 37,
            **TIED,
            "attention_bias": False,
            **rope("default", partial_rotary_factor=0.5),
        },
    ),
    "gpt_neox whole heads": Variant("GPTNeoX", rope("linear", factor=2.0, partial_rotary_factor=1.0)),
}

MIXTRAL = {"num_local_experts": 5, "num_experts_per_tok": 2}
QWEN2_MOE = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 40,
}
QWEN3_MOE = {"head_dim": 16, "num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 44}
#: More experts than tokens.
CROWD = {"num_experts": 60, "num_experts_per_tok": 4}

VARIANTS |= {
    "mixtral": Variant("Mixtral", MIXTRAL),
    "mixtral odd": Variant("Mixtral", {**MIXTRAL, **ODD, "head_dim": 10, **TIED}),
    "mixtral one of many": Variant("Mixtral", {"num_local_experts": 50, "num_experts_per_tok": 1}),
    "mixtral all": Variant("Mixtral", {"num_local_experts": 3, "num_experts_per_tok": 3, "hidden_act": "gelu"}),
    "mixtral window": Variant("Mixtral", {**MIXTRAL, "sliding_window": 7}),
    "qwen2_moe": Variant("Qwen2Moe", QWEN2_MOE),
    "qwen2_moe odd": Variant("Qwen2Moe", {**QWEN2_MOE, **ODD, **TIED, "moe_intermediate_size": 23, "qkv_bias": False}),
    "qwen2_moe crowd": Variant("Qwen2Moe", {**QWEN2_MOE, **CROWD, "norm_topk_prob": True}),
    "qwen2_moe one expert": Variant("Qwen2Moe", {**QWEN2_MOE, "num_experts": 1, "num_experts_per_tok": 1}),
    "qwen2_moe some layers": Variant(
        "Qwen2Moe", {**QWEN2_MOE, "decoder_sparse_step": 2, "mlp_only_layers": [3], "num_hidden_layers": 4}
    ),
    "qwen2_moe sliding layers": Variant(
        "Qwen2Moe", {**QWEN2_MOE, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}
    ),
    "qwen3_moe": Variant("Qwen3Moe", {**QWEN3_MOE, "norm_topk_prob": True}),
    "qwen3_moe odd": Variant(
        "Qwen3Moe", {**QWEN3_MOE, **ODD, **TIED, **BIASES, "head_dim": 10, "moe_intermediate_size": 19}
    ),
    "qwen3_moe crowd": Variant("Qwen3Moe", {**QWEN3_MOE, **CROWD, "norm_topk_prob": True}),
    "qwen3_moe one of many": Variant("Qwen3Moe", {**QWEN3_MOE, "num_experts": 33, "num_experts_per_tok": 1}),
    "qwen3_moe all": Variant("Qwen3Moe", {**QWEN3_MOE, "num_experts_per_tok": 7, "hidden_act": "gelu_pytorch_tanh"}),
    "qwen3_moe some layers": Variant(
        "Qwen3Moe", {**QWEN3_MOE, "decoder_sparse_step": 2, "mlp_only_layers": [1], "num_hidden_layers": 4}
    ),
    "qwen3_moe window": Variant("Qwen3Moe", {**QWEN3_MOE, "use_sliding_window": True, "sliding_window": 5}),
}


def save(model: transformers.PreTrainedModel, folder: Path, dtype: str = "float32", **options: Any) -> Path:
    """Writes the model's config.json and safetensors."""
    model.to(getattr(torch, dtype)).save_pretrained(folder, **options)
    return folder

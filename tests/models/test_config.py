"""config.json: what it may say, in both of its styles, and what is refused by name."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import transformers
from hypothesis import given

from fermi.errors import CheckpointError, UnsupportedModelError
from fermi.models import ARCHITECTURES, read_config
from fermi.models.benign_fields import BENIGN_FIELDS
from fermi.models.config import DecoderConfig
from fermi.models.fields import Fields
from fermi.models.gemma2 import Gemma2Config
from fermi.models.gemma3 import Gemma3Config
from fermi.models.gpt_neox import GPTNeoXConfig
from fermi.models.granite import GraniteConfig
from fermi.models.llama import LlamaConfig
from fermi.models.mistral import MistralConfig
from fermi.models.phi3 import Phi3Config
from fermi.models.qwen2 import Qwen2Config
from fermi.models.qwen3 import Qwen3Config
from fermi.models.rope import RopeParameters
from fermi.models.smollm3 import SmolLM3Config
from fermi.models.starcoder2 import Starcoder2Config

SIZES = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}

NO_SIZES: dict[str, object] = dict.fromkeys(SIZES)
GPT2_SIZES: dict[str, object] = {
    **NO_SIZES,
    "vocab_size": 100,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
}

#: As published, with their own sets of fields.
LLAMA_32 = """{
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 128000,
  "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
  "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
  "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
  "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0,
  "low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
  "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.45.0.dev0", "use_cache": true,
  "vocab_size": 128256}"""
SMOLLM2 = """{
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 1,
  "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
  "intermediate_size": 1536, "is_llama_config": true, "max_position_embeddings": 8192, "mlp_bias": false,
  "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
  "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": false, "rope_scaling": null,
  "rope_theta": 100000, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.42.3",
  "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}}, "use_cache": true,
  "vocab_size": 49152}"""
R1_QWEN = """{
  "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
  "hidden_act": "silu", "hidden_size": 1536, "initializer_range": 0.02, "intermediate_size": 8960,
  "max_position_embeddings": 131072, "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 12,
  "num_hidden_layers": 28, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 10000,
  "sliding_window": 4096, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.44.0",
  "use_cache": true, "use_mrope": false, "use_sliding_window": false, "vocab_size": 151936}"""
QWEN3 = """{
  "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 151643,
  "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02,
  "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
  "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
  "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": true,
  "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": true, "use_sliding_window": false,
  "vocab_size": 151936}"""
MISTRAL = """{
  "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
  "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
  "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
  "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": false,
  "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0", "use_cache": true, "vocab_size": 32000}"""
PHI_2 = """{
  "architectures": ["PhiForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 50256, "embd_pdrop": 0.0,
  "eos_token_id": 50256, "hidden_act": "gelu_new", "hidden_size": 2560, "initializer_range": 0.02,
  "intermediate_size": 10240, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "model_type": "phi",
  "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "partial_rotary_factor": 0.4,
  "qk_layernorm": false, "resid_pdrop": 0.1, "rope_scaling": null, "rope_theta": 10000.0,
  "tie_word_embeddings": false, "torch_dtype": "float16", "transformers_version": "4.37.0", "use_cache": true,
  "vocab_size": 51200}"""
PHI_4_MINI = """{
  "architectures": ["Phi3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "bos_token_id": 199999, "embd_pdrop": 0.0,
  "eos_token_id": 199999, "full_attn_mod": 1, "hidden_act": "silu", "hidden_size": 3072, "initializer_range": 0.02,
  "intermediate_size": 8192, "interpolate_factor": 1, "lm_head_bias": false, "max_position_embeddings": 131072,
  "mlp_bias": false, "model_type": "phi3", "num_attention_heads": 24, "num_hidden_layers": 32,
  "num_key_value_heads": 8, "original_max_position_embeddings": 4096, "pad_token_id": 199999,
  "partial_rotary_factor": 0.75, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05, "rope_scaling": {"long_factor": FACTORS,
  "short_factor": FACTORS, "type": "longrope"}, "rope_theta": 10000.0, "sliding_window": 262144,
  "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.45.0", "use_cache": true,
  "vocab_size": 200064}""".replace("FACTORS", str([1.0] * 48))
GEMMA_2 = """{
  "architectures": ["Gemma2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
  "final_logit_softcapping": 30.0, "head_dim": 128, "hidden_act": "gelu_pytorch_tanh",
  "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 4608, "initializer_range": 0.02,
  "intermediate_size": 36864, "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 32,
  "num_hidden_layers": 46, "num_key_value_heads": 16, "pad_token_id": 0, "query_pre_attn_scalar": 144,
  "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096, "sliding_window_size": 4096,
  "torch_dtype": "float32", "transformers_version": "4.42.0.dev0", "use_cache": true, "vocab_size": 256000,
  "_attn_implementation": "eager"}"""
GEMMA_3 = """{
  "architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "attn_logit_softcapping": null, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
  "final_logit_softcapping": null, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
  "initializer_range": 0.02, "intermediate_size": 6912, "max_position_embeddings": 32768, "model_type": "gemma3_text",
  "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1, "pad_token_id": 0,
  "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000, "rope_scaling": null,
  "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6, "torch_dtype": "bfloat16",
  "transformers_version": "4.50.0.dev0", "use_cache": true, "vocab_size": 262144}"""
GEMMA_3_IMAGES = """{
  "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
  "eos_token_id": [1, 106], "image_token_index": 262144, "initializer_range": 0.02, "mm_tokens_per_image": 256,
  "model_type": "gemma3", "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
  "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
  "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0", "vision_config": {"hidden_size": 1152,
  "image_size": 896, "model_type": "siglip_vision_model", "patch_size": 14, "vision_use_head": false}}"""
SMOLLM3 = """{
  "architectures": ["SmolLM3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": null,
  "eos_token_id": 128012, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
  "intermediate_size": 11008, "layer_types": KINDS, "max_position_embeddings": 65536, "max_window_layers": 28,
  "mlp_bias": false, "model_type": "smollm3", "no_rope_layer_interval": 4, "no_rope_layers": FLAGS,
  "num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 4, "pad_token_id": 128004,
  "pretraining_tp": 2, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 5000000.0, "sliding_window": null,
  "torch_dtype": "bfloat16", "transformers_version": "4.54.0.dev0", "use_cache": false, "use_sliding_window": false,
  "vocab_size": 128256}""".replace("KINDS", json.dumps(["full_attention"] * 36)).replace("FLAGS", str([1, 1, 1, 0] * 9))
GRANITE = """{
  "architectures": ["GraniteForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "attention_multiplier": 0.015625, "bos_token_id": 0, "embedding_multiplier": 12.0, "eos_token_id": 0,
  "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192,
  "logits_scaling": 8.0, "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "granite",
  "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8, "pad_token_id": 0,
  "residual_multiplier": 0.22, "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 10000000.0,
  "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.49.0", "use_cache": true,
  "vocab_size": 49159}"""
STARCODER2 = """{
  "architectures": ["Starcoder2ForCausalLM"], "attention_dropout": 0.1, "residual_dropout": 0.1,
  "embedding_dropout": 0.1, "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu_pytorch_tanh",
  "hidden_size": 3072, "initializer_range": 0.018042, "intermediate_size": 12288, "max_position_embeddings": 16384,
  "mlp_type": "default", "model_type": "starcoder2", "norm_epsilon": 1e-05, "norm_type": "layer_norm",
  "num_attention_heads": 24, "num_hidden_layers": 30, "num_key_value_heads": 2, "rope_theta": 999999.4420358813,
  "sliding_window": 4096, "transformers_version": "4.37.0.dev0", "use_bias": true, "use_cache": true,
  "vocab_size": 49152}"""
DIALOGPT = """{
  "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256,
  "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
  "model_type": "gpt2", "n_ctx": 1024, "n_embd": 1024, "n_head": 16, "n_layer": 24, "n_positions": 1024,
  "resid_pdrop": 0.1, "summary_activation": null, "summary_first_dropout": 0.1, "summary_proj_to_labels": true,
  "summary_type": "cls_index", "summary_use_proj": true, "task_specific_params": {"conversational":
  {"max_length": 1000}}, "vocab_size": 50257}"""
PYTHIA = """{
  "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu",
  "hidden_size": 512, "initializer_range": 0.02, "intermediate_size": 2048, "layer_norm_eps": 1e-05,
  "max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 8, "num_hidden_layers": 6,
  "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": false, "torch_dtype": "float16",
  "transformers_version": "4.24.0", "use_cache": true, "use_parallel_residual": true, "vocab_size": 50304}"""


def read(model_type: str = "llama", **values: Any) -> DecoderConfig:
    config = {"model_type": model_type, **SIZES, **values}
    return read_config(Fields(json.loads(json.dumps(config)), Path("config.json")))[1]


def read_text(text: str) -> DecoderConfig:
    return read_config(Fields(json.loads(text), Path("config.json")))[1]


def test_published_configs() -> None:
    llama, smol, r1, qwen, mistral = (read_text(text) for text in (LLAMA_32, SMOLLM2, R1_QWEN, QWEN3, MISTRAL))
    assert isinstance(llama, LlamaConfig)
    assert (llama.head_dim, llama.num_key_value_heads, llama.tie_word_embeddings) == (64, 8, True)
    assert rope_of(llama).table().frequencies.shape == (1, 32)
    assert isinstance(smol, LlamaConfig)
    assert (smol.head_dim, rope_of(smol).context.rope_theta) == (64, 100_000.0)
    assert isinstance(r1, Qwen2Config)
    assert r1.windows == (0,) * 28
    assert isinstance(qwen, Qwen3Config)
    assert (qwen.head_dim, qwen.norm_epsilon) == (128, 1e-6)
    assert isinstance(mistral, MistralConfig)
    assert mistral.sliding_window == 4096


def test_published_configs_of_other_families() -> None:
    phi = read_text(PHI_2)
    assert (rope_of(phi).context.dimensions, phi.norm_epsilon, phi.hidden_act) == (32, 1e-5, "gelu_tanh")
    phi4 = read_text(PHI_4_MINI)
    assert isinstance(phi4, Phi3Config)
    assert (phi4.head_dim, phi4.reach, phi4.sliding_window) == (128, 131072, 262144)
    table = rope_of(phi4).table()
    assert (table.rule, table.frequencies.shape, table.original_length) == ("longrope", (2, 48), 4096)
    gemma2 = read_text(GEMMA_2)
    assert isinstance(gemma2, Gemma2Config)
    assert (gemma2.query_pre_attn_scalar, gemma2.attn_logit_softcapping, gemma2.tie_word_embeddings) == (144, 50, True)
    assert gemma2.windows == (4096, 0) * 23
    gemma3 = read_text(GEMMA_3)
    assert isinstance(gemma3, Gemma3Config)
    assert gemma3.windows == ((512,) * 5 + (0,)) * 4 + (512, 512)
    assert (rope_of(gemma3).context.rope_theta, gemma3.sliding_rope.context.rope_theta) == (1e6, 1e4)
    images = read_text(GEMMA_3_IMAGES)
    assert isinstance(images, Gemma3Config)
    assert (images.num_attention_heads, images.num_key_value_heads, images.vocab_size) == (8, 4, 262_208)
    assert images.reach == 8 * 131_072
    smollm3 = read_text(SMOLLM3)
    assert isinstance(smollm3, SmolLM3Config)
    assert smollm3.no_rope_layers == (True, True, True, False) * 9
    granite = read_text(GRANITE)
    assert isinstance(granite, GraniteConfig)
    assert (granite.residual_multiplier, granite.logits_scaling) == (0.22, 8.0)
    starcoder2 = read_text(STARCODER2)
    assert isinstance(starcoder2, Starcoder2Config)
    assert (starcoder2.use_bias, starcoder2.sliding_window, starcoder2.tie_word_embeddings) == (True, 4096, True)
    dialogpt = read_text(DIALOGPT)
    assert (dialogpt.hidden_size, dialogpt.intermediate_size, dialogpt.head_dim) == (1024, 4096, 64)
    assert (dialogpt.rope_parameters, dialogpt.reach) == (None, 1024)
    pythia = read_text(PYTHIA)
    assert isinstance(pythia, GPTNeoXConfig)
    assert (rope_of(pythia).context.dimensions, pythia.use_parallel_residual) == (16, True)


def test_fields_of_other_versions_are_accepted() -> None:
    """Where they say the same as those that hold, as published and retrained checkpoints do."""
    rotary = {"rotary_pct": 0.5, "partial_rotary_factor": 0.5, "rotary_emb_base": 500, "rope_theta": 500.0}
    pythia = read("gpt_neox", **rotary, num_key_value_heads=4)
    assert (rope_of(pythia).context.rope_theta, rope_of(pythia).context.dimensions) == (500.0, 8)
    coder = {"qkv_bias": False, "use_qk_norm": True, "shared_expert_intermediate_size": 0}
    assert read("qwen3_moe", **coder) == read("qwen3_moe")
    big_code = {"activation_function": "gelu", "attention_softmax_in_fp32": True, "layer_norm_epsilon": 1e-3}
    assert read("starcoder2", **big_code) == read("starcoder2")


def rope_of(config: DecoderConfig) -> RopeParameters:
    assert config.rope_parameters is not None
    return config.rope_parameters


REQUIRED = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
CLASSES = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}
FAMILIES = ["Llama", "Mistral", "Qwen2", "Qwen3", "Phi3", "Phi", "Gemma", "Gemma2", "Gemma3Text", "SmolLM3", "Granite"]


@pytest.mark.parametrize("family", [*FAMILIES, "Olmo2", "Starcoder2", "GPT2", "GPTNeoX"])
def test_what_transformers_saves(family: str, tmp_path: Path) -> None:
    config = getattr(transformers, f"{family}Config")(num_hidden_layers=2)
    config.architectures = [CLASSES.get(family, f"{family}ForCausalLM")]
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    full = read_config(Fields(saved, tmp_path / "config.json"))[1]
    assert full.norm_epsilon == next(value for name, value in saved.items() if name.endswith(("_eps", "_epsilon")))
    for name in ("hidden_size", "head_dim", "num_key_value_heads", "max_position_embeddings"):
        plain = {"head_dim": config.hidden_size // config.num_attention_heads}
        assert getattr(full, name) == getattr(config, name, plain.get(name, config.num_attention_heads))
    # what is absent means what Transformers takes it to mean
    required = ["vocab_size", "n_embd", "n_layer", "n_head"] if family == "GPT2" else REQUIRED
    assert read_text(json.dumps({name: saved[name] for name in (*required, "model_type")})) == full


def test_unknown_architectures_are_told_what_is_supported() -> None:
    for values in ({"model_type": "gpt_oss"}, {"model_type": None}):
        with pytest.raises(UnsupportedModelError, match=r"model_type.*gemma, .*llama, mistral, .*qwen2, .*qwen3"):
            read(**values)
    with pytest.raises(UnsupportedModelError, match="architectures is LlamaForSequenceClassification"):
        read(architectures=["LlamaForSequenceClassification"])


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"hidden_act": "mish"}, "hidden_act"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"is_causal": False}, "is_causal"),
        ({"sliding_window": 128}, "sliding_window"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "layer_types"),
        ({"rope_scaling": {"type": "ntk", "factor": 2.0}}, "rope_scaling.type"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
        ({"num_experts": 0}, "num_experts = 0"),
        ({"qk_norm": False}, "qk_norm = False"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"model_type": "mistral", "attention_bias": True}, "attention_bias"),
        ({"model_type": "mistral", "mlp_bias": True}, "mlp_bias"),
        ({"model_type": "mistral", "layer_types": ["full_attention"] * 3}, "layer_types"),
        ({"model_type": "qwen2", "attention_bias": False, "num_key_value_heads": 4}, "attention_bias"),
        (
            {"model_type": "qwen3", "layer_types": ["full_attention", "chunked_attention", "full_attention"]},
            "layer_types",
        ),
        ({"model_type": "qwen3", "sliding_window_pattern": 2}, "sliding_window_pattern"),
        ({"model_type": "phi", "qk_layernorm": True}, "qk_layernorm"),
        ({"model_type": "phi3", "lm_head_bias": True}, "lm_head_bias"),
        ({"model_type": "phi3", "full_attn_mod": 2}, "full_attn_mod"),
        ({"model_type": "phi3", "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.type"),
        ({"model_type": "gemma", "hidden_activation": "gelu"}, "hidden_activation"),
        ({"model_type": "gemma", "attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"model_type": "gemma", "use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"model_type": "gemma2", "hidden_activation": "gelu_new", "hidden_act": "silu"}, "hidden_act"),
        ({"model_type": "gemma2", "sliding_window_size": 5}, "sliding_window_size"),
        ({"model_type": "gemma2", "rope_local_base_freq": 5.0}, "rope_local_base_freq"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"model_type": "gemma3_text", "_sliding_window_pattern": 2}, "_sliding_window_pattern"),
        ({"model_type": "gemma3_text", "rope_parameters": {"rope_theta": 1e4}}, "rope_parameters.rope_theta"),
        ({"model_type": "gemma3_text", "architectures": ["Gemma3TextModel"]}, "architectures"),
        ({"model_type": "gemma3", "text_config": {**SIZES, "use_mrope": True}, **NO_SIZES}, "text_config.use_mrope"),
        ({"model_type": "smollm3", "sliding_window_pattern": 2}, "sliding_window_pattern"),
        ({"model_type": "granite", "num_experts": 4}, "num_experts"),
        ({"model_type": "olmo2", "clip_qkv": 8.0}, "clip_qkv"),
        ({"model_type": "starcoder2", "norm_type": "rms_norm"}, "norm_type"),
        ({"model_type": "gpt2", **GPT2_SIZES, "add_cross_attention": True}, "add_cross_attention"),
        ({"model_type": "gpt2", **GPT2_SIZES, "hidden_size": 64}, "hidden_size"),
        ({"model_type": "gpt2", **GPT2_SIZES, "num_key_value_heads": 2}, "num_key_value_heads"),
        ({"model_type": "gpt2", **GPT2_SIZES, "activation_function": "swiglu"}, "activation_function"),
        ({"model_type": "gpt_neox"}, "num_key_value_heads"),
        ({"model_type": "gpt_neox", "num_key_value_heads": 4, "head_dim": 32}, "head_dim"),
        ({"model_type": "gpt_neox", "num_key_value_heads": 4, "rope_theta": 500.0}, "rope_theta"),
        (
            {"model_type": "gpt_neox", "num_key_value_heads": 4, "rotary_pct": 0.5, "partial_rotary_factor": 0.25},
            "partial_rotary_factor",
        ),
        ({"model_type": "qwen3_moe", "use_qk_norm": False}, "use_qk_norm"),
        ({"model_type": "qwen3_moe", "shared_expert_intermediate_size": 64}, "shared_expert_intermediate_size"),
        ({"model_type": "starcoder2", "attention_softmax_in_fp32": False}, "attention_softmax_in_fp32"),
    ],
)
def test_unsupported(values: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"config.json: .*{field}"):
        read(**values)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"hidden_size": -64}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": 64.5}, "hidden_size"),
        ({"hidden_size": 10**30}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"intermediate_size": 0}, "intermediate_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_attention_heads": 6}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_key_value_heads": 0}, "num_key_value_heads"),
        ({"head_dim": 15}, "head_dim"),
        ({"head_dim": 0}, "head_dim"),
        ({"head_dim": [64]}, "head_dim"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ({"max_position_embeddings": 2**40}, "max_position_embeddings"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"hidden_act": 3}, "hidden_act"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"model_type": 7}, "model_type"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window"),
        ({"model_type": "qwen2", "layer_types": ["full_attention"]}, "layer_types"),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 3}, "layer_types"),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": -4}, "sliding_window"),
        ({"model_type": "qwen2", "max_window_layers": -1}, "max_window_layers"),
        ({"model_type": "gemma2", "query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
        ({"model_type": "gemma2", "attn_logit_softcapping": -5.0}, "attn_logit_softcapping"),
        ({"model_type": "gemma2", "sliding_window": None}, "layer_types"),
        ({"model_type": "gemma3", "text_config": None}, "text_config"),
        ({"model_type": "gemma3", "text_config": {"hidden_size": 5}}, "text_config.intermediate_size"),
        ({"model_type": "gemma3_text", "rope_parameters": {"full_attention": 3}}, "rope_parameters.full_attention"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 0]}, "no_rope_layers"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 0, "1"]}, "no_rope_layers"),
        ({"model_type": "smollm3", "no_rope_layer_interval": 0}, "no_rope_layer_interval"),
        ({"model_type": "granite", "logits_scaling": 0.0}, "logits_scaling"),
        ({"model_type": "gpt2", **GPT2_SIZES, "n_head": 3}, "n_head"),
        ({"model_type": "gpt2", **GPT2_SIZES, "n_embd": None}, "n_embd is missing"),
        ({"model_type": "gpt_neox", "num_key_value_heads": 4, "rotary_pct": 2.0}, "rotary_pct"),
    ],
)
def test_malformed(values: dict[str, Any], field: str) -> None:
    with pytest.raises(CheckpointError, match=f"config.json: {field}") as caught:
        read(**values)
    assert not isinstance(caught.value, UnsupportedModelError)


def test_what_changes_nothing_is_accepted() -> None:
    read(**dict.fromkeys(BENIGN_FIELDS - {"architectures", "model_type"}, 0.125), sliding_window_pattern=None)


def test_windows_of_qwen_layers() -> None:
    sliding = {"use_sliding_window": True, "sliding_window": 16}

    def windows(**values: Any) -> tuple[int, ...]:
        config = read("qwen2", **values)
        assert isinstance(config, Qwen2Config)
        return config.windows

    assert windows() == (0, 0, 0)
    assert windows(sliding_window=16, max_window_layers=0) == (0, 0, 0)
    assert windows(**sliding, max_window_layers=1) == (0, 16, 16)
    assert windows(**sliding) == (0, 0, 0)
    assert windows(**sliding, layer_types=["sliding_attention", "full_attention", "full_attention"]) == (16, 0, 0)
    assert windows(use_sliding_window=True, sliding_window=None, max_window_layers=0) == (0, 0, 0)
    assert windows(use_sliding_window=True, max_window_layers=2) == (0, 0, 4096)


NAMES = sorted(
    {*SIZES, "head_dim", "rope_theta", "rope_scaling", "rope_parameters", "layer_types", "hidden_act"}
    | {"max_position_embeddings", "rms_norm_eps", "sliding_window", "use_sliding_window", "architectures"}
    | {"partial_rotary_factor", "original_max_position_embeddings", "tie_word_embeddings", "quantization_config"}
)
ROPE_NAMES = [
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "short_factor",
    "long_factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "original_max_position_embeddings",
    "partial_rotary_factor",
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "silu", "linear", "dynamic", "yarn", "longrope", "llama3", "default", "full_attention"])
)
VALUES = SCALARS | st.lists(SCALARS, max_size=4) | st.dictionaries(st.sampled_from(ROPE_NAMES), SCALARS, max_size=6)


@given(model_type=st.sampled_from(sorted(ARCHITECTURES)), changes=st.dictionaries(st.sampled_from(NAMES), VALUES))
def test_any_config_is_read_or_refused(model_type: str, changes: dict[str, Any]) -> None:
    config = {"model_type": model_type, **SIZES, **changes}
    with contextlib.suppress(CheckpointError):
        rope = read_config(Fields(config, Path("config.json")))[1].rope_parameters
        if rope is not None:
            rope.table()


@given(st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_any_rope_section_is_read_or_refused(value: Any) -> None:
    with contextlib.suppress(CheckpointError):
        read(rope_scaling=value)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '"x"', "\xff", "[" * 100_000, '{"a": 1, "a": 2}', '{"a": ' + "9" * 5000 + "}", "\0"],
    ids=range(10),
)
def test_malformed_json(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        Fields.from_file(tmp_path / "config.json")


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: No such file"):
        Fields.from_file(tmp_path / "config.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="folder"):
        Fields.from_file(tmp_path / "folder")

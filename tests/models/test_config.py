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
from fermi.models.llama import LlamaConfig
from fermi.models.mistral import MistralConfig
from fermi.models.qwen2 import Qwen2Config
from fermi.models.qwen3 import Qwen3Config

SIZES = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
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


def read(model_type: str = "llama", **values: Any) -> DecoderConfig:
    config = {"model_type": model_type, **SIZES, **values}
    return read_config(Fields(json.loads(json.dumps(config)), Path("config.json")))[1]


def read_text(text: str) -> DecoderConfig:
    return read_config(Fields(json.loads(text), Path("config.json")))[1]


def test_published_configs() -> None:
    llama, smol, r1, qwen, mistral = (read_text(text) for text in (LLAMA_32, SMOLLM2, R1_QWEN, QWEN3, MISTRAL))
    assert isinstance(llama, LlamaConfig)
    assert (llama.head_dim, llama.num_key_value_heads, llama.tie_word_embeddings) == (64, 8, True)
    assert llama.rope_parameters.table().frequencies.shape == (1, 32)
    assert isinstance(smol, LlamaConfig)
    assert (smol.head_dim, smol.rope_parameters.context.rope_theta) == (64, 100_000.0)
    assert isinstance(r1, Qwen2Config)
    assert r1.windows == (0,) * 28
    assert isinstance(qwen, Qwen3Config)
    assert (qwen.head_dim, qwen.rms_norm_eps) == (128, 1e-6)
    assert isinstance(mistral, MistralConfig)
    assert mistral.sliding_window == 4096


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_what_transformers_saves(family: str, tmp_path: Path) -> None:
    config = getattr(transformers, f"{family}Config")(num_hidden_layers=2)
    config.architectures = [f"{family}ForCausalLM"]
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    full = read_config(Fields(saved, tmp_path / "config.json"))[1]
    for name in ("hidden_size", "head_dim", "num_key_value_heads", "rms_norm_eps", "max_position_embeddings"):
        assert getattr(full, name) == getattr(config, name, config.hidden_size // config.num_attention_heads)
    # what is absent means what Transformers takes it to mean
    sizes = {name: saved[name] for name in (*SIZES, "model_type") if name != "num_key_value_heads"}
    sizes["num_attention_heads"] = 32
    assert read_text(json.dumps(sizes)) == full


def test_unknown_architectures_are_told_what_is_supported() -> None:
    for values in ({"model_type": "gpt_oss"}, {"model_type": None}):
        with pytest.raises(UnsupportedModelError, match=r"model_type.*llama, mistral, qwen2, qwen3"):
            read(**values)
    with pytest.raises(UnsupportedModelError, match="architectures is LlamaForSequenceClassification"):
        read(architectures=["LlamaForSequenceClassification"])


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"hidden_act": "mish"}, "hidden_act"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"pretraining_tp": 2}, "pretraining_tp"),
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
        read_config(Fields(config, Path("config.json")))[1].rope_parameters.table()


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

"""A checkpoint as a GGUF file of bf16 matrices and f32 vectors, with a made-up vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from contestants.contestant import NotSupportedError
from contestants.rotary import divisors
from contestants.tensors import Checkpoint

__all__ = ["write_gguf"]

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}


def write_gguf(folder: Path, target: Path) -> None:
    """Writes the checkpoint in ``folder``. NotSupportedError for an architecture or a scaling that is not known."""
    checkpoint = Checkpoint(folder)
    config = checkpoint.config
    kind = config["model_type"]
    if kind not in ARCHITECTURES:
        raise NotSupportedError(f"no GGUF is written for model_type {kind}")
    architecture = ARCHITECTURES[kind]
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[architecture], use_temp_file=False)
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    writer.add_name(folder.parent.name)
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(checkpoint.head_dim)
    writer.add_value_length(checkpoint.head_dim)
    writer.add_rope_dimension_count(checkpoint.head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(checkpoint.rope_theta)
    writer.add_vocab_size(config["vocab_size"])
    add_vocabulary(writer, config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    if checkpoint.rope_scaling:
        writer.add_tensor("rope_freqs.weight", divisors(checkpoint))
    names = gguf.get_tensor_name_map(architecture, layers)
    for name in checkpoint:
        target_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target_name is None:
            raise NotSupportedError(f"GGUF has no name for {name}")
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        matrix = len(checkpoint.shape(name)) == 2
        values: npt.NDArray[Any] = checkpoint.bf16(name) if matrix else checkpoint.f32(name)
        if architecture == gguf.MODEL_ARCH.LLAMA and (".q_proj." in name or ".k_proj." in name):
            values = interleaved(values, heads if ".q_proj." in name else kv_heads)
        if matrix:
            writer.add_tensor(target_name, values.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(target_name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """The words "0", "1", … as tokens of a byte-pair encoding that merges nothing: servers want some text."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([str(token) for token in range(size)])
    writer.add_token_types([gguf.TokenType.NORMAL] * size)
    writer.add_token_merges(["0 0"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)


def interleaved(values: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Rows of each head in llama.cpp's order, where the rotary embedding turns neighbours: (0, d/2, 1, d/2 + 1, …)."""
    shape = values.shape
    halves = values.reshape(heads, 2, shape[0] // heads // 2, *shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(shape))

"""Checkpoint: the files of the demo model's folder, in Hugging Face layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from fermi.demo.conversation import chat_template
from fermi.demo.tokenizer import END_OF_TEXT, END_OF_TURN


def architecture(vocabulary_size: int, end_of_text: int, end_of_turn: int) -> dict[str, Any]:
    """The config.json of the demo model: about 1.9 million parameters."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": end_of_turn,
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 192,
        "initializer_range": 0.02,
        "intermediate_size": 512,
        "max_position_embeddings": 2048,
        "model_type": "qwen3",
        "num_attention_heads": 6,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "pad_token_id": end_of_text,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": vocabulary_size,
    }


def write_configuration(folder: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """Write every file but the weights; return the config."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = tokenizer.get_vocab()
    end_of_text, end_of_turn = vocabulary[END_OF_TEXT], vocabulary[END_OF_TURN]
    config = architecture(len(vocabulary), end_of_text, end_of_turn)
    generation = {
        "do_sample": True,
        "eos_token_id": [end_of_turn, end_of_text],
        "pad_token_id": end_of_text,
        "repetition_penalty": 1.0,
        "temperature": 0.2,
        "top_p": 0.95,
    }
    tokenizer_config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "chat_template": chat_template(),
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TURN,
        "errors": "replace",
        "model_max_length": config["max_position_embeddings"],
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in (
        ("config", config),
        ("generation_config", generation),
        ("tokenizer_config", tokenizer_config),
    ):
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return config

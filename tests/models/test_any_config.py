"""Configs that nobody chose: drawn at random, each held against Transformers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from fermi import _C
from fermi.models import load_model
from models.comparison import largest_error, reference_logits
from models.drive import Driver
from models.tiny_checkpoints import Variant, rope, save


def any_rope(draw: random.Random, head_dim: int, positions: int) -> dict[str, Any]:
    theta = draw.choice([100.0, 10_000.0, 1e6])
    original = draw.choice([positions // 2, positions // 4])
    half = head_dim // 2
    parameters = {
        "default": {},
        "linear": {"factor": draw.uniform(1, 8)},
        "dynamic": {"factor": draw.uniform(1, 8)},
        "llama3": {
            "factor": draw.uniform(1, 32),
            "low_freq_factor": 1.0,
            "high_freq_factor": draw.uniform(2, 8),
            "original_max_position_embeddings": original,
        },
        "yarn": {
            "factor": draw.uniform(1, 8),
            "original_max_position_embeddings": original,
            "truncate": draw.random() < 0.5,
            **({"attention_factor": draw.uniform(0.5, 1.5)} if draw.random() < 0.5 else {}),
        },
        "longrope": {
            "short_factor": [draw.uniform(1, 3) for _ in range(half)],
            "long_factor": [draw.uniform(1, 30) for _ in range(half)],
            "original_max_position_embeddings": original,
        },
    }
    kind = draw.choice([name for name in parameters if name != "dynamic" or head_dim > 2])
    return rope(kind, **{"rope_theta": theta, **parameters[kind]})


def any_variant(draw: random.Random) -> Variant:
    family = draw.choice(["Llama", "Mistral", "Qwen2", "Qwen3"])
    kv_heads, group = draw.choice([1, 2, 3]), draw.choice([1, 2, 3, 5])
    heads = kv_heads * group
    head_dim = draw.choice([2, 6, 8, 16, 20, 40, 64])
    explicit = family != "Qwen2" and draw.random() < 0.5
    positions = draw.choice([64, 200])
    layers = draw.randint(1, 4)
    options: dict[str, Any] = {
        "vocab_size": draw.choice([211, 256, 1001]),
        "hidden_size": heads * (draw.choice([4, 9, 24]) if explicit else head_dim),
        "head_dim": head_dim,
        "intermediate_size": draw.choice([33, 64, 150]),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": positions,
        "rms_norm_eps": draw.choice([1e-5, 1e-6, 1e-2]),
        "hidden_act": draw.choice(["silu", "silu", "gelu", "gelu_new", "relu"]),
        "tie_word_embeddings": draw.random() < 0.5,
        **any_rope(draw, head_dim, positions),
    }
    if family in ("Llama", "Qwen3"):
        options["attention_bias"] = draw.random() < 0.5
    if family == "Llama":
        options["mlp_bias"] = draw.random() < 0.5
    if family == "Mistral":
        options["sliding_window"] = draw.choice([None, 2, 7, 33, 500])
    if family in ("Qwen2", "Qwen3"):
        options["use_sliding_window"] = draw.random() < 0.5
        options["sliding_window"] = draw.choice([3, 20, 500])
        options["max_window_layers"] = draw.randint(0, layers)
    return Variant(family, options, prompt=draw.choice([1, 13, 70, 150]))


@pytest.mark.parametrize("seed", range(24))
def test_logits_in_f32_on_every_instruction_set(seed: int, tmp_path: Path) -> None:
    variant = any_variant(random.Random(seed))
    model, tokens = variant.reference(seed), variant.tokens(seed)
    expected = reference_logits(model, tokens)
    save(model, tmp_path)
    for architecture in _C.cpu_architectures():
        backend = _C.open_backend("cpu", threads=2, architecture=architecture)
        logits = Driver(load_model(tmp_path, backend=backend)).logits(tokens, chunk=64)
        assert largest_error(logits, expected) <= 1e-4, (architecture, variant)

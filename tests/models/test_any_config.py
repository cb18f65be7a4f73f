"""Configs that nobody chose: drawn at random, each held against Transformers."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fermi import _C
from fermi.models import load_model
from models.comparison import largest_error, reference_logits
from models.drive import Driver
from models.tiny_checkpoints import UNKNOWN, Variant, rope, save


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


def pick(draw: random.Random, *choices: Any) -> Any:
    return draw.choice(choices)


def any_new_variant(draw: random.Random) -> Variant:
    """Of a family whose parts are put together otherwise than a Llama's."""
    family = draw.choice(sorted(FAMILIES))
    kv_heads, group = draw.choice([1, 2, 3]), draw.choice([1, 2, 3, 5])
    heads, head_dim, layers = kv_heads * group, draw.choice([4, 8, 12, 16, 20, 40]), draw.randint(1, 4)
    explicit = family in ("Gemma", "Gemma2", "Gemma3Text") and draw.random() < 0.5
    options: dict[str, Any] = {
        "vocab_size": pick(draw, 211, 256, 1001),
        "hidden_size": heads * (pick(draw, 4, 9, 24) if explicit else head_dim),
        "intermediate_size": pick(draw, 16, 33, 64, 150),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": pick(draw, 160, 200),
        "tie_word_embeddings": draw.random() < 0.5,
        **FAMILIES[family](draw, head_dim, layers),
    }
    if family in PARTS and draw.random() < 0.6:
        part = draw.choice([share for share in PARTS[family] if int(head_dim * share) % 2 == 0])
        options |= any_rope(draw, int(head_dim * part), options["max_position_embeddings"])
        if family in ("Phi", "GPTNeoX"):
            options["rope_parameters"]["partial_rotary_factor"] = part
    if family.startswith("Gemma"):
        options["head_dim"] = head_dim
    for name in UNKNOWN.get(family, ()):
        options.pop(name)
    return Variant(family, options, prompt=pick(draw, 1, 13, 70, 150))


def phi3(draw: random.Random, head_dim: int, layers: int) -> dict[str, Any]:
    partial = pick(draw, 1.0, 0.5)
    half = int(head_dim * partial) // 2
    factors = {
        "short_factor": [draw.uniform(1, 3) for _ in range(half)],
        "long_factor": [draw.uniform(1, 30) for _ in range(half)],
    }
    kind = pick(draw, rope("default"), rope("longrope", **factors))
    kind["rope_parameters"]["partial_rotary_factor"] = partial
    return {**kind, "original_max_position_embeddings": pick(draw, 40, 128), "sliding_window": pick(draw, None, 3, 50)}


def phi(draw: random.Random, head_dim: int, layers: int) -> dict[str, Any]:
    return {**rope("default", partial_rotary_factor=pick(draw, 0.5, 1.0)), "hidden_act": pick(draw, "gelu", "gelu_new")}


def gemma(draw: random.Random, head_dim: int, layers: int) -> dict[str, Any]:
    return {"attention_bias": pick(draw, False, True)}


def gemma2(draw: random.Random, head_dim: int, layers: int) -> dict[str, Any]:
    return {
        "attention_bias": pick(draw, False, True),
        "query_pre_attn_scalar": pick(draw, 7, head_dim, 100),
        "sliding_window": pick(draw, 2, 9, 33),
        "attn_logit_softcapping": pick(draw, None, 1.5, 50.0),
        "final_logit_softcapping": pick(draw, None, 2.0, 30.0),
    }


def gemma3(draw: random.Random, head_dim: int, layers: int) -> dict[str, Any]:
    sections = {
        "full_attention": {"rope_type": "linear", "factor": draw.uniform(1, 8), "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": pick(draw, 100.0, 1e4)},
    }
    return {
        **gemma2(draw, head_dim, layers),
        "attn_logit_softcapping": None,
        "rope_parameters": sections,
        "sliding_window_pattern": pick(draw, 1, 2, 3),
    }


def smollm3(draw: random.Random, head_dim: int, layers: int) -> dict[str, Any]:
    return {
        "attention_bias": pick(draw, False, True),
        "mlp_bias": pick(draw, False, True),
        "no_rope_layers": pick(draw, None, [draw.randint(0, 1) for _ in range(layers)]),
        "no_rope_layer_interval": pick(draw, 1, 2, 3),
        "use_sliding_window": pick(draw, False, True),
        "sliding_window": pick(draw, 3, 40),
    }


def granite(draw: random.Random, head_dim: int, layers: int) -> dict[str, Any]:
    return {
        "attention_bias": pick(draw, False, True),
        "mlp_bias": pick(draw, False, True),
        **{name: draw.uniform(0.1, 4) for name in ("embedding_multiplier", "residual_multiplier", "logits_scaling")},
        "attention_multiplier": draw.uniform(0.05, 0.5),
    }


def olmo2(draw: random.Random, head_dim: int, layers: int) -> dict[str, Any]:
    return {"attention_bias": pick(draw, False, True), "rms_norm_eps": pick(draw, 1e-6, 1e-3)}


def starcoder2(draw: random.Random, head_dim: int, layers: int) -> dict[str, Any]:
    return {"use_bias": pick(draw, False, True), "sliding_window": pick(draw, None, 3, 40)}


def gpt2(draw: random.Random, head_dim: int, layers: int) -> dict[str, Any]:
    return {
        "n_inner": pick(draw, None, 33),
        "activation_function": pick(draw, "gelu", "gelu_new", "relu"),
        "scale_attn_by_inverse_layer_idx": pick(draw, False, True),
    }


def gpt_neox(draw: random.Random, head_dim: int, layers: int) -> dict[str, Any]:
    return {
        "use_parallel_residual": pick(draw, False, True),
        "attention_bias": pick(draw, False, True),
        "hidden_act": pick(draw, "gelu", "gelu_new"),
        **rope("default", partial_rotary_factor=pick(draw, 0.5, 1.0)),
    }


#: Shares of a head that may turn, of families that scale in every way.
PARTS = {
    "Phi": [0.5, 1.0],
    "Gemma": [1.0],
    "Gemma2": [1.0],
    "SmolLM3": [1.0],
    "Granite": [1.0],
    "Olmo2": [1.0],
    "Starcoder2": [1.0],
    "GPTNeoX": [0.25, 0.5, 1.0],
}

FAMILIES: dict[str, Callable[[random.Random, int, int], dict[str, Any]]] = {
    "Phi3": phi3,
    "Phi": phi,
    "Gemma": gemma,
    "Gemma2": gemma2,
    "Gemma3Text": gemma3,
    "SmolLM3": smollm3,
    "Granite": granite,
    "Olmo2": olmo2,
    "Starcoder2": starcoder2,
    "GPT2": gpt2,
    "GPTNeoX": gpt_neox,
}


@pytest.mark.parametrize("seed", range(24))
def test_logits_in_f32_on_every_instruction_set(seed: int, tmp_path: Path) -> None:
    compare(any_variant(random.Random(seed)), seed, tmp_path)


@pytest.mark.parametrize("seed", range(36))
def test_logits_of_other_families(seed: int, tmp_path: Path) -> None:
    compare(any_new_variant(random.Random(seed)), seed, tmp_path)


def compare(variant: Variant, seed: int, folder: Path) -> None:
    """In f32, on every instruction set."""
    model, tokens = variant.reference(seed), variant.tokens(seed)
    expected = reference_logits(model, tokens)
    save(model, folder)
    for architecture in _C.cpu_architectures():
        backend = _C.open_backend("cpu", threads=2, architecture=architecture)
        logits = Driver(load_model(folder, backend=backend)).logits(tokens, chunk=64)
        assert largest_error(logits, expected) <= 1e-4, (architecture, variant)

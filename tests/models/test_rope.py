"""Rotary frequencies against Transformers, and the configs that ask for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from fermi.errors import CheckpointError, UnsupportedModelError
from fermi.models.fields import Fields
from fermi.models.rope import RopeParameters
from models.tiny_checkpoints import VARIANTS

CONFIG = Path("config.json")
HEAD = 128
POSITIONS = 32768

LONG = {"short_factor": [1.0 + i / 9 for i in range(64)], "long_factor": [2.0 + i for i in range(64)]}
SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "dynamic", "factor": 3.0},
    {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192},
    {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 4096},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096, "attention_factor": 0.75},
    {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.707, "beta_fast": 64, "beta_slow": 0.5},
    {"rope_type": "yarn", "factor": 8.0, "truncate": False, "original_max_position_embeddings": 512},
    {"rope_type": "longrope", "original_max_position_embeddings": 4096, **LONG},
    {"rope_type": "longrope", "original_max_position_embeddings": 4096, "factor": 2.0, **LONG},
    {"rope_type": "longrope", "original_max_position_embeddings": 4096, "attention_factor": 1.5, **LONG},
]


def read(values: dict[str, Any], head_dim: int = HEAD, positions: int = POSITIONS) -> RopeParameters:
    return RopeParameters.read(Fields(values, CONFIG), head_dim=head_dim, max_position_embeddings=positions)


def reference(parameters: dict[str, Any], length: int | None = None) -> tuple[np.ndarray, float]:
    """Frequencies and attention factor as Transformers computes them for sequences of a length."""
    config = transformers.LlamaConfig(
        hidden_size=4 * HEAD,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        rope_parameters={"rope_theta": 500_000.0, **parameters},
    )
    if parameters["rope_type"] == "default":
        rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
        return rotary.inv_freq.numpy(), 1.0
    frequencies, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, torch.device("cpu"), seq_len=length)
    return frequencies.numpy(), factor


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling["rope_type"])
@pytest.mark.parametrize("newer", [True, False])
def test_frequencies(scaling: dict[str, Any], newer: bool) -> None:
    config: dict[str, Any]
    if newer:
        config = {"rope_parameters": {"rope_theta": 500_000.0, **scaling}}
    else:
        older = {("type" if name == "rope_type" else name): value for name, value in scaling.items()}
        config = {"rope_theta": 500_000.0, "rope_scaling": older}
    table = read(json.loads(json.dumps(config))).table()
    expected, factor = reference(dict(scaling))
    np.testing.assert_allclose(table.frequencies[0], expected, rtol=3e-7)
    assert table.attention_factor == pytest.approx(factor, rel=1e-7)
    assert table.frequencies.dtype == np.float32
    if scaling["rope_type"] == "longrope":
        expected, _ = reference(dict(scaling), length=4097)
        np.testing.assert_allclose(table.frequencies[1], expected, rtol=3e-7)
        assert (table.rule, table.original_length) == ("longrope", 4096)
    elif scaling["rope_type"] == "dynamic":
        assert (table.rule, table.base, table.factor, table.original_length) == ("dynamic_ntk", 5e5, 3.0, POSITIONS)
    else:
        assert table.rule == "fixed"


@pytest.mark.parametrize(("head_dim", "factor", "half"), [(128, 0.5, 32), (80, 0.4, 16), (64, 0.25, 8), (10, 0.5, 3)])
def test_partial_rotary(head_dim: int, factor: float, half: int) -> None:
    for config in ({"partial_rotary_factor": factor}, {"rope_parameters": {"partial_rotary_factor": factor}}):
        frequencies = read(config, head_dim).table().frequencies
        dimensions = int(head_dim * factor)
        assert frequencies.shape == (1, half)
        np.testing.assert_allclose(frequencies[0], 1e4 ** (-np.arange(0, dimensions, 2) / dimensions), rtol=1e-6)


@pytest.mark.parametrize(
    ("scaling", "reach"),
    [
        ({"rope_type": "default"}, 1000),
        ({"rope_type": "linear", "factor": 2}, 2000),
        ({"rope_type": "dynamic", "factor": 2.5}, 2500),
        ({"rope_type": "yarn", "factor": 4}, 4000),
        ({"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 250}, 1000),
        ({"rope_type": "longrope", "original_max_position_embeddings": 250, **LONG}, 1000),
    ],
)
def test_reach(scaling: dict[str, Any], reach: int) -> None:
    assert read({"rope_parameters": scaling}, positions=1000).reach == reach


def test_the_original_context_may_stand_beside_the_section() -> None:
    section = {"type": "longrope", **LONG}
    parameters = read({"rope_scaling": section, "original_max_position_embeddings": 512})
    assert parameters.table().original_length == 512


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"rope_scaling": {"type": "su", **LONG}}, "rope_scaling.type"),
        ({"rope_scaling": {"rope_type": "mrope", "mrope_section": [1]}}, "rope_scaling.rope_type"),
        ({"rope_parameters": {"rope_type": "default", "mrope_section": [1]}}, "rope_parameters.mrope_section"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters.full_attention"),
        ({"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}}, "rope_scaling.type"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "attention_factor": 2}}, "rope_scaling.attention_factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 1.0}}, "rope_scaling"),
    ],
)
def test_unsupported(config: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedModelError, match=field):
        read(config)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"rope_theta": 10**400}, "rope_theta"),
        ({"rope_theta": "10000"}, "rope_theta"),
        ({"rope_theta": True}, "rope_theta"),
        ({"rope_scaling": []}, "rope_scaling"),
        ({"rope_scaling": {"type": 3}}, "rope_scaling.type"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "linear", "factor": -1}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "dynamic", "factor": 0.5}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "rope_scaling.low_freq_factor"),
        (
            {"rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 4, "high_freq_factor": 4}},
            "rope_scaling.high_freq_factor",
        ),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": -1}}, "rope_scaling.beta_fast"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": 1}}, "rope_scaling.truncate"),
        ({"rope_scaling": {"type": "longrope", **LONG, "long_factor": [1.0]}}, "rope_scaling.long_factor"),
        ({"rope_scaling": {"type": "longrope", **LONG, "long_factor": [0.0] * 64}}, r"rope_scaling.long_factor\[0\]"),
        ({"rope_scaling": {"type": "longrope", "long_factor": LONG["long_factor"]}}, "rope_scaling.short_factor"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.001}, "partial_rotary_factor"),
        ({"original_max_position_embeddings": 0}, "original_max_position_embeddings"),
    ],
)
def test_malformed(config: dict[str, Any], field: str) -> None:
    with pytest.raises(CheckpointError, match=f"config.json: {field}") as caught:
        read(config)
    assert not isinstance(caught.value, UnsupportedModelError)


def test_an_odd_head_cannot_turn() -> None:
    with pytest.raises(CheckpointError, match="head_dim"):
        read({}, head_dim=15)


def test_every_scaling_has_a_parity_variant() -> None:
    variants = {variant.options.get("rope_parameters", {}).get("rope_type", "default") for variant in VARIANTS.values()}
    assert {scaling["rope_type"] for scaling in SCALINGS} <= variants

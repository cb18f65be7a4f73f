"""Every architecture and variant against Transformers, on random checkpoints."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from transformers.models.llama import modeling_llama
from transformers.models.phi3 import modeling_phi3

from fermi import _C
from fermi.models import load_model
from models.comparison import cosine, largest_error, reference_greedy, reference_logits
from models.drive import Driver
from models.tiny_checkpoints import VARIANTS, Variant, rope, save

Reference = Callable[[str], transformers.PreTrainedModel]
Folder = Callable[[str], Path]

GENERATED = 64

PARTIAL = {
    "default": rope("default", partial_rotary_factor=0.5),
    "rounded up": rope("default", partial_rotary_factor=0.35),
    "linear": rope("linear", factor=2.0, partial_rotary_factor=0.25),
    "dynamic": {**rope("dynamic", factor=4.0, partial_rotary_factor=0.5), "max_position_embeddings": 64},
    "yarn": rope("yarn", factor=4.0, original_max_position_embeddings=32, partial_rotary_factor=0.75),
    "longrope": rope(
        "longrope",
        original_max_position_embeddings=64,
        partial_rotary_factor=0.5,
        short_factor=[1.0, 1.25, 1.5, 1.75],
        long_factor=[1.5, 2.0, 2.5, 3.0],
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_in_f32(name: str, reference: Reference, checkpoint: Folder, backend: _C.Backend) -> None:
    tokens = VARIANTS[name].tokens()
    expected = reference_logits(reference(name), tokens)
    logits = Driver(load_model(checkpoint(name), backend=backend)).logits(tokens)
    assert largest_error(logits, expected) <= 1e-4


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_tokens_in_f32(name: str, reference: Reference, checkpoint: Folder, backend: _C.Backend) -> None:
    tokens = VARIANTS[name].tokens(1)
    generated = Driver(load_model(checkpoint(name), backend=backend)).greedy(tokens, GENERATED)
    assert generated == reference_greedy(reference(name), tokens, GENERATED)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_in_half_precision(name: str, dtype: str, backend: _C.Backend, tmp_path: Path) -> None:
    """Against the same rounded weights, computed with in float32."""
    save(VARIANTS[name].reference(gain=1.0), tmp_path, dtype)
    options = {"experts_implementation": "eager"} if VARIANTS[name].routes else {}
    rounded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, **options)
    tokens = VARIANTS[name].tokens()
    loaded = load_model(tmp_path, backend=backend)
    assert loaded.dtype == {"bfloat16": "bf16", "float16": "f16"}[dtype]
    if not VARIANTS[name].routes:
        assert cosine(Driver(loaded).logits(tokens), reference_logits(rounded, tokens)) >= 0.9999
        return
    # Of two experts that are nearly equal, rounding may let a token choose the other one, which those after it see: few
    # of the tokens of short prompts.
    cosines = [
        cosine(row, other)
        for start in range(0, len(tokens), 8)
        for row, other in zip(
            Driver(loaded).logits(tokens[start : start + 8]),
            reference_logits(rounded, tokens[start : start + 8]),
            strict=True,
        )
    ]
    assert statistics.median(cosines) >= 0.9999
    assert statistics.mean(cosines) >= 0.99


@pytest.mark.parametrize("name", PARTIAL)
def test_partial_rotary(name: str, backend: _C.Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers' Llama always turns whole heads: here it is given the rotation of its Phi-3, which turns parts."""
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", modeling_phi3.apply_rotary_pos_emb)
    monkeypatch.setattr(modeling_llama, "LlamaRotaryEmbedding", modeling_phi3.Phi3RotaryEmbedding)
    variant = Variant("Llama", PARTIAL[name])
    model, tokens = variant.reference(), variant.tokens()
    driver = Driver(load_model(save(model, tmp_path), backend=backend))
    expected = reference_logits(model, tokens)
    assert largest_error(driver.logits(tokens), expected) <= 1e-4
    assert driver.greedy(tokens, GENERATED) == reference_greedy(model, tokens, GENERATED)

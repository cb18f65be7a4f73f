"""Every architecture and variant against Transformers, on random checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from models.drive import Driver
from models.tiny_checkpoints import VARIANTS, save

from fermi import _C
from fermi.models import load_model

Reference = Callable[[str], transformers.PreTrainedModel]
Folder = Callable[[str], Path]

GENERATED = 64


def reference_logits(model: transformers.PreTrainedModel, tokens: list[int]) -> npt.NDArray[np.float32]:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].float().numpy()


def cosine(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """Of the rows that agree least."""
    dots = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return float(dots.min())


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_in_f32(name: str, reference: Reference, checkpoint: Folder, backend: _C.Backend) -> None:
    tokens = VARIANTS[name].tokens()
    expected = reference_logits(reference(name), tokens)
    logits = Driver(load_model(checkpoint(name), backend=backend)).logits(tokens)
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_tokens_in_f32(name: str, reference: Reference, checkpoint: Folder, backend: _C.Backend) -> None:
    tokens = VARIANTS[name].tokens(1)
    with torch.no_grad():
        expected = reference(name).generate(
            torch.tensor([tokens]), max_new_tokens=GENERATED, min_new_tokens=GENERATED, do_sample=False
        )
    generated = Driver(load_model(checkpoint(name), backend=backend)).greedy(tokens, GENERATED)
    assert generated == expected[0, len(tokens) :].tolist()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_in_half_precision(name: str, dtype: str, backend: _C.Backend, tmp_path: Path) -> None:
    model = VARIANTS[name].reference()
    save(model, tmp_path, dtype)
    tokens = VARIANTS[name].tokens()
    expected = reference_logits(model.float(), tokens)  # the same rounded weights
    loaded = load_model(tmp_path, backend=backend)
    assert loaded.dtype == {"bfloat16": "bf16", "float16": "f16"}[dtype]
    assert cosine(Driver(loaded).logits(tokens), expected) >= 0.9999

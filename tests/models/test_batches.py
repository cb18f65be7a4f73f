"""A sequence's logits and tokens are its own: alone, in a ragged batch, or computed in chunks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fermi import _C
from fermi.models import load_model
from models.drive import Driver
from models.tiny_checkpoints import VARIANTS, VOCABULARY

Folder = Callable[[str], Path]

NAMES = [
    "llama grouped",
    "llama dynamic across",
    "llama longrope across",
    "mistral window",
    "qwen2 layer types",
    "qwen3",
    "phi3 window",
    "phi3 partial longrope",
    "phi odd",
    "gemma untied",
    "gemma2 caps",
    "gemma3",
    "smollm3 window",
    "granite",
    "olmo2",
    "starcoder2 odd",
    "gpt2 inverse layer",
    "gpt_neox",
    "mixtral",
    "qwen2_moe some layers",
    "qwen3_moe crowd",
]


def prompts() -> list[list[int]]:
    generator = np.random.default_rng(7)
    return [generator.integers(0, VOCABULARY, length).tolist() for length in (1, 7, 8, 9, 30, 63, 64, 70)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunk", [1, 5, 16])
def test_chunks(name: str, chunk: int, checkpoint: Folder, backend: _C.Backend) -> None:
    model = load_model(checkpoint(name), backend=backend)
    tokens = VARIANTS[name].tokens()
    whole = Driver(model, batch_invariant=True).logits(tokens)
    np.testing.assert_array_equal(Driver(model, batch_invariant=True).logits(tokens, chunk), whole)


@pytest.mark.parametrize("name", NAMES)
def test_mixed_batch_of_prefill_and_decode(name: str, checkpoint: Folder, backend: _C.Backend) -> None:
    """Eight ragged prompts join a batch one step after the other, in chunks, while the earlier ones generate."""
    model = load_model(checkpoint(name), backend=backend)
    alone = [Driver(model).greedy(prompt, 12) for prompt in prompts()]

    driver = Driver(model)
    conversations = [driver.start(prompt) for prompt in prompts()]
    for step in range(60):
        running = [one for one in conversations[: step + 1] if len(one.tokens) < one.prompt + 12]
        if not running:
            break
        parts = [(one, min(11, len(one.tokens) - one.computed)) for one in running]
        for one, rows in zip(running, driver.step(parts), strict=True):
            if one.computed == len(one.tokens):
                one.tokens.append(int(rows[-1].argmax()))
    assert [one.tokens[one.prompt :] for one in conversations] == alone


@pytest.mark.parametrize("name", NAMES)
def test_batch_is_bitwise_invariant_where_asked(name: str, checkpoint: Folder, backend: _C.Backend) -> None:
    model = load_model(checkpoint(name), backend=backend, dtype="bf16")
    driver = Driver(model, batch_invariant=True)
    together = driver.step([(driver.start(prompt), len(prompt)) for prompt in prompts()])
    for prompt, rows in zip(prompts(), together, strict=True):
        np.testing.assert_array_equal(Driver(model, batch_invariant=True).logits(prompt), rows)

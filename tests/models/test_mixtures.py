"""Mixtures: checkpoints in both layouts, configs that nobody chose, batches, and what is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fermi import _C
from fermi.errors import CheckpointError
from fermi.models import Batch, load_model
from models.comparison import largest_error, reference_logits
from models.drive import Conversation, Driver, int32
from models.tiny_checkpoints import VARIANTS, Variant, save

Folder = Callable[[str], Path]

NAMES = ["mixtral", "qwen2_moe some layers", "qwen3_moe crowd"]


@pytest.mark.parametrize("name", NAMES)
def test_experts_may_lie_in_stacks(name: str, checkpoint: Folder, backend: _C.Backend, tmp_path: Path) -> None:
    save(VARIANTS[name].reference(), tmp_path, save_original_format=False)
    tokens = VARIANTS[name].tokens()
    one_by_one = load_model(checkpoint(name), backend=backend)
    stacked = load_model(tmp_path, backend=backend)
    assert stacked.parameters == one_by_one.parameters
    np.testing.assert_array_equal(Driver(stacked).logits(tokens), Driver(one_by_one).logits(tokens))


@pytest.mark.parametrize("stacked", [False, True])
def test_what_does_not_fit_is_named(stacked: bool, backend: _C.Backend, tmp_path: Path) -> None:
    save(VARIANTS["qwen3_moe"].reference(), tmp_path, save_original_format=not stacked)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "moe_intermediate_size": 45}))
    name = "experts.gate_up_proj is" if stacked else "experts.0.gate_proj.weight is"
    with pytest.raises(CheckpointError, match=name):
        load_model(tmp_path, backend=backend)


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_experts_per_tok", 8), ("mlp_only_layers", [0.5]), ("moe_intermediate_size", 0), ("decoder_sparse_step", 0)],
)
def test_fields_that_make_no_sense(
    field: str, value: object, checkpoint: Folder, backend: _C.Backend, tmp_path: Path
) -> None:
    config = json.loads((checkpoint("qwen3_moe") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(CheckpointError, match=field):
        load_model(tmp_path, backend=backend)


class SomeRows(Driver):
    """Asks for some rows, as the engine does."""

    rows = (39, 0, 17)

    def _batch(self, parts: list[tuple[Conversation, int]]) -> Batch:
        return replace(super()._batch(parts), logit_rows=int32(self.rows))


@pytest.mark.parametrize("name", NAMES)
def test_only_rows_that_are_wanted_pass_the_last_mixture(name: str, checkpoint: Folder, backend: _C.Backend) -> None:
    model, tokens = load_model(checkpoint(name), backend=backend), VARIANTS[name].tokens()
    every = Driver(model, batch_invariant=True).logits(tokens)
    driver = SomeRows(model, batch_invariant=True)
    [logits] = driver.step([(driver.start(tokens), len(tokens))])
    np.testing.assert_array_equal(logits, every[list(driver.rows)])


def any_mixture(draw: random.Random) -> Variant:
    family = draw.choice(["Mixtral", "Qwen2Moe", "Qwen3Moe"])
    kv_heads, group, head_dim = draw.choice([1, 2, 3]), draw.choice([1, 2, 5]), draw.choice([6, 8, 20])
    layers, experts = draw.randint(1, 4), draw.choice([1, 2, 7, 40, 130])
    options: dict[str, Any] = {
        "vocab_size": draw.choice([211, 256, 1001]),
        "hidden_size": kv_heads * group * head_dim,
        "intermediate_size": draw.choice([33, 64]),
        "num_hidden_layers": layers,
        "num_attention_heads": kv_heads * group,
        "num_key_value_heads": kv_heads,
        "num_experts_per_tok": min(experts, draw.choice([1, 2, 8])),
        "tie_word_embeddings": draw.random() < 0.5,
    }
    if family == "Mixtral":
        options |= {"num_local_experts": experts, "sliding_window": draw.choice([None, 5])}
        return Variant(family, options, prompt=draw.choice([1, 13, 70, 150]))
    options |= {
        "num_experts": experts,
        "moe_intermediate_size": draw.choice([1, 19, 48]),
        "norm_topk_prob": draw.random() < 0.5,
        "decoder_sparse_step": draw.choice([1, 2]),
        "mlp_only_layers": draw.choice([[], [0]]),
    }
    if family == "Qwen2Moe":
        options |= {"shared_expert_intermediate_size": draw.choice([5, 64]), "qkv_bias": draw.random() < 0.5}
    else:
        options |= {"head_dim": head_dim, "attention_bias": draw.random() < 0.5}
    return Variant(family, options, prompt=draw.choice([1, 13, 70, 150]))


@pytest.mark.parametrize("seed", range(12))
def test_logits_in_f32_on_every_instruction_set(seed: int, tmp_path: Path) -> None:
    variant = any_mixture(random.Random(seed))
    model, tokens = variant.reference(seed), variant.tokens(seed)
    expected = reference_logits(model, tokens)
    save(model, tmp_path)
    for architecture in _C.cpu_architectures():
        backend = _C.open_backend("cpu", threads=2, architecture=architecture)
        logits = Driver(load_model(tmp_path, backend=backend)).logits(tokens, chunk=64)
        assert largest_error(logits, expected) <= 1e-4, (architecture, variant)

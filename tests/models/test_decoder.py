"""What decoders offer beside logits, and the other names under which checkpoints hold the same weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fermi import _C
from fermi.errors import CheckpointError
from fermi.models import KVCache, load_model
from models.comparison import largest_error
from models.drive import BLOCK_SIZE, Driver, int32
from models.tiny_checkpoints import VARIANTS, Variant, save

Folder = Callable[[str], Path]
Reference = Callable[[str], transformers.PreTrainedModel]


def renamed(source: Path, folder: Path, name: Callable[[str], str], config: dict[str, object] | None = None) -> Path:
    """The checkpoint with other names, and perhaps another config.json."""
    folder.mkdir()
    tensors = {name(old): tensor for old, tensor in load_file(source / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config) if config else (source / "config.json").read_text())
    return folder


def config_of(folder: Path) -> dict[str, object]:
    config: dict[str, object] = json.loads((folder / "config.json").read_text())
    return config


NAMES = ["qwen3", "phi", "gemma3", "olmo2", "gpt2", "gpt_neox"]


@pytest.mark.parametrize("name", NAMES)
def test_hidden_states(name: str, reference: Reference, checkpoint: Folder, backend: _C.Backend) -> None:
    """Of every token, after the last norm, as Transformers' model without a head gives them."""
    tokens = VARIANTS[name].tokens()
    with torch.no_grad():
        expected = reference(name).base_model(torch.tensor([tokens])).last_hidden_state[0].numpy()
    model = load_model(checkpoint(name), backend=backend)
    driver = Driver(model)
    sequence = driver.start(tokens)
    driver.step([(sequence, len(tokens))])  # for its blocks
    sequence.computed = 0
    cache = KVCache.allocate(model.kv_spec, 128, BLOCK_SIZE, backend)
    batch = driver._batch([(sequence, len(tokens))])
    with _C.record(backend) as recording:
        hidden = model.hidden_states(batch, cache)
    recording.run()
    assert largest_error(hidden.float32(), expected) <= 1e-4


@pytest.mark.parametrize(
    ("name", "windows"),
    [
        ("llama grouped", (0, 0, 0)),
        ("mistral window", (9, 9, 9)),
        ("qwen2 layer types", (16, 0, 16)),
        ("phi3 window", (5, 5, 5)),
        ("gemma2", (9, 0, 9)),
        ("gemma3", (9, 0, 9, 0)),
        ("smollm3 window", (0, 6, 0)),
        ("gpt2", (0, 0, 0)),
    ],
)
def test_windows(name: str, windows: tuple[int, ...], checkpoint: Folder, backend: _C.Backend) -> None:
    assert load_model(checkpoint(name), backend=backend).windows == windows


@pytest.mark.parametrize("name", ["qwen3 tied", "gemma2", "gpt2"])
def test_a_body_may_stand_without_its_prefix(
    name: str, checkpoint: Folder, tmp_path: Path, backend: _C.Backend
) -> None:
    """As saved from the model without a head."""
    tokens = VARIANTS[name].tokens()
    bare = renamed(checkpoint(name), tmp_path / "bare", lambda old: old.split(".", 1)[1])
    logits = Driver(load_model(bare, backend=backend)).logits(tokens)
    np.testing.assert_array_equal(Driver(load_model(checkpoint(name), backend=backend)).logits(tokens), logits)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_causal_masks_are_tolerated(name: str, checkpoint: Folder, tmp_path: Path, backend: _C.Backend) -> None:
    folder = renamed(checkpoint(name), tmp_path / "copy", str)
    tensors = load_file(folder / "model.safetensors")
    attention = {"gpt2": "transformer.h.{}.attn", "gpt_neox": "gpt_neox.layers.{}.attention"}[name]
    masks: dict[str, torch.Tensor] = {}
    for layer in range(3):
        masks[f"{attention.format(layer)}.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.uint8)
        masks[f"{attention.format(layer)}.masked_bias"] = torch.tensor(-1e4)
    (folder / "model.safetensors").unlink()
    save_file({**tensors, **masks}, folder / "model.safetensors")
    load_model(folder, backend=backend)
    (folder / "model.safetensors").unlink()
    save_file({**tensors, f"{attention.format(7)}.bias": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"unused: .*\.7\."):
        load_model(folder, backend=backend)


def test_a_head_of_pythia_may_have_the_common_name(checkpoint: Folder, tmp_path: Path, backend: _C.Backend) -> None:
    folder = renamed(checkpoint("gpt_neox"), tmp_path / "copy", lambda old: old.replace("embed_out", "lm_head"))
    load_model(folder, backend=backend)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model.", "model."])
def test_gemma3_within_a_config_of_images(prefix: str, checkpoint: Folder, tmp_path: Path, backend: _C.Backend) -> None:
    source, tokens = checkpoint("gemma3"), VARIANTS["gemma3"].tokens()
    images: dict[str, object] = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": config_of(source),
        "vision_config": {"model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 256,
        "image_token_index": 198,
    }
    folder = renamed(source, tmp_path / "copy", lambda old: old.replace("model.", prefix, 1), images)
    logits = Driver(load_model(folder, backend=backend)).logits(tokens)
    np.testing.assert_array_equal(Driver(load_model(source, backend=backend)).logits(tokens), logits)


def test_a_tower_for_images_is_told_of(checkpoint: Folder, tmp_path: Path, backend: _C.Backend) -> None:
    source = checkpoint("gemma3")
    folder = renamed(source, tmp_path / "copy", str, {"model_type": "gemma3", "text_config": config_of(source)})
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file({**tensors, "vision_tower.weight": torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"unused: vision_tower\.weight"):
        load_model(folder, backend=backend)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_gemma_scales_embeddings_as_its_dtype_rounds(dtype: str, tmp_path: Path, backend: _C.Backend) -> None:
    reference = Variant("Gemma", {"hidden_size": 84, "num_attention_heads": 4, "head_dim": 16}).reference()
    model = load_model(save(reference, tmp_path, dtype), backend=backend)
    theirs = reference.model.embed_tokens.embed_scale.to(getattr(torch, dtype))
    assert model.embedding.scale == theirs.item()
    with torch.no_grad():
        expected = reference.model.embed_tokens(torch.arange(10)).float().numpy()
    with backend:
        embedded = model.embedding(int32(range(10))).float32()
    step = {"float32": 2**-24, "bfloat16": 2**-8, "float16": 2**-11}[dtype]  # they round what comes of it
    np.testing.assert_allclose(embedded, expected, rtol=2 * step, atol=0)


def test_fused_and_transposed_matrices_that_do_not_fit(checkpoint: Folder, tmp_path: Path, backend: _C.Backend) -> None:
    for name, tensor, shape in (
        ("phi3", "model.layers.1.mlp.gate_up_proj.weight", "is [5, 7], not [224, 64]"),
        ("gpt2", "transformer.h.2.mlp.c_fc.weight", "is [5, 7], not [64, 256]"),
        ("gpt2", "transformer.wpe.weight", "is [5, 7], not [256, 64]"),
    ):
        folder = renamed(checkpoint(name), tmp_path / tensor, str)
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        save_file({**tensors, tensor: torch.zeros(5, 7)}, folder / "model.safetensors")
        with pytest.raises(CheckpointError) as caught:
            load_model(folder, backend=backend)
        assert f"misfitting: {tensor} {shape}" in str(caught.value)

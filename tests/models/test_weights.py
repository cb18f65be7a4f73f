"""Checkpoint files and what is pulled from them: shards, dtypes, and everything that may not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fermi import _C
from fermi.errors import CheckpointError, ConfigError
from fermi.models import Weights, load_model, random_model
from models.drive import Driver
from models.tiny_checkpoints import SIZES, VARIANTS, save

Folder = Callable[[str], Path]

TOKENS = VARIANTS["qwen3"].tokens()
CONFIG: dict[str, object] = {"model_type": "llama", **SIZES}


@pytest.fixture
def copy(checkpoint: Folder, tmp_path: Path) -> Path:
    """A checkpoint of a Qwen3 that the test may spoil."""
    return Path(shutil.copytree(checkpoint("qwen3"), tmp_path / "copy"))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """The same in several files."""
    return save(VARIANTS["qwen3"].reference(), tmp_path / "shards", max_shard_size="50KB")


def change(folder: Path, tensors: dict[str, torch.Tensor | None]) -> None:
    """Replaces tensors of the folder's single file, or removes them."""
    file = folder / "model.safetensors"
    changed = {**load_file(file), **tensors}
    file.unlink()  # the old one may still be mapped
    save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, file)


def change_index(folder: Path, **entries: Any) -> None:
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"] |= entries
    file.write_text(json.dumps(index))


def refused(folder: Path, backend: _C.Backend) -> str:
    """The message with which the folder is refused."""
    with pytest.raises(CheckpointError) as caught:
        load_model(folder, backend=backend)
    return str(caught.value)


def test_shards_hold_the_same_model(shards: Path, checkpoint: Folder, backend: _C.Backend) -> None:
    assert len(list(shards.glob("*.safetensors"))) > 2
    whole = Driver(load_model(checkpoint("qwen3"), backend=backend)).logits(TOKENS)
    np.testing.assert_array_equal(Driver(load_model(shards, backend=backend)).logits(TOKENS), whole)


@pytest.mark.parametrize(("dtype", "tolerance"), [("f32", 0.0), ("bf16", 0.1), ("f16", 0.02)])
def test_conversion_at_load(dtype: str, tolerance: float, checkpoint: Folder, backend: _C.Backend) -> None:
    folder = checkpoint("qwen3")
    kept, converted = load_model(folder, backend=backend), load_model(folder, backend=backend, dtype=dtype)
    assert (converted.dtype, converted.kv_spec.dtype) == (dtype, dtype)
    assert converted.weight_bytes == converted.parameters * (4 if dtype == "f32" else 2)
    expected = Driver(kept).logits(TOKENS)
    assert np.abs(Driver(converted).logits(TOKENS) - expected).max() <= tolerance * np.abs(expected).max()


def test_tensors_of_several_dtypes(copy: Path, backend: _C.Backend) -> None:
    """Each keeps its own: here norms in f32 beside matrices in bf16 and one in f16, which share a projection."""
    halves = {
        name: tensor.to(torch.float16 if "k_proj" in name else torch.bfloat16)
        for name, tensor in load_file(copy / "model.safetensors").items()
        if tensor.ndim == 2
    }
    change(copy, dict(halves))
    mixed = load_model(copy, backend=backend)
    assert mixed.dtype == "bf16"
    widened = load_model(copy, backend=backend, dtype="f32")
    logits, expected = Driver(mixed).logits(TOKENS), Driver(widened).logits(TOKENS)
    assert np.abs(logits - expected).max() <= 0.02 * np.abs(expected).max()  # keys and values are rounded


def test_unknown_dtype(checkpoint: Folder, backend: _C.Backend) -> None:
    with pytest.raises(ConfigError, match="dtype: 'int8' is not one of auto, f32, f16, bf16"):
        load_model(checkpoint("qwen3"), backend=backend, dtype="int8")


def test_counts(checkpoint: Folder, backend: _C.Backend) -> None:
    model = load_model(checkpoint("llama tied"), backend=backend)
    reference = VARIANTS["llama tied"].reference()
    assert model.parameters == reference.num_parameters()
    assert model.weight_bytes == 4 * model.parameters
    assert model.kv_spec.bytes_per_token == 2 * 3 * 2 * 16 * 4


def test_everything_that_does_not_fit_is_listed(copy: Path, backend: _C.Backend) -> None:
    change(
        copy,
        {
            "model.norm.weight": None,
            "model.layers.1.mlp.up_proj.weight": torch.zeros(3, 5),
            "model.layers.2.self_attn.q_norm.weight": torch.zeros(32, dtype=torch.int64),
            "model.layers.3.mlp.up_proj.weight": torch.zeros(4, 4),
        },
    )
    message = refused(copy, backend)
    assert message.startswith(f"{copy / 'model.safetensors'}: ")
    assert "missing: model.norm.weight;" in message
    assert "unused: model.layers.3.mlp.up_proj.weight;" in message
    assert "model.layers.1.mlp.up_proj.weight is [3, 5], not [112, 64]" in message
    assert "model.layers.2.self_attn.q_norm.weight is i64, not f32, f16 or bf16" in message


def test_long_lists_are_cut(copy: Path, backend: _C.Backend) -> None:
    change(copy, {f"extra.{number:03}": torch.zeros(1) for number in range(100)})
    message = refused(copy, backend)
    assert "extra.000, " in message
    assert message.endswith("and 88 more")


def test_old_rotary_buffers_are_tolerated(copy: Path, backend: _C.Backend) -> None:
    change(copy, {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.zeros(16) for layer in range(3)})
    load_model(copy, backend=backend)


def test_a_tied_head_may_stand_in_the_file(checkpoint: Folder, tmp_path: Path, backend: _C.Backend) -> None:
    folder = Path(shutil.copytree(checkpoint("llama tied"), tmp_path / "copy"))
    expected = Driver(load_model(folder, backend=backend)).logits(TOKENS)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].clone()
    change(folder, {"lm_head.weight": embedding})
    np.testing.assert_array_equal(Driver(load_model(folder, backend=backend)).logits(TOKENS), expected)


def test_a_head_that_is_not_tied_must_stand_in_the_file(copy: Path, backend: _C.Backend) -> None:
    change(copy, {"lm_head.weight": None})
    assert "missing: lm_head.weight" in refused(copy, backend)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.float64, torch.int32, torch.bool])
def test_dtypes_that_are_not_computed_with(dtype: torch.dtype, copy: Path, backend: _C.Backend) -> None:
    change(copy, {"lm_head.weight": torch.zeros(199, 64).to(dtype)})
    assert "lm_head.weight" in refused(copy, backend)


def test_no_tensors(copy: Path, backend: _C.Backend) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    message = refused(copy, backend)
    assert "neither model.safetensors nor model.safetensors.index.json" in message
    assert "pytorch_model.bin" in message


def test_missing_shard(shards: Path, backend: _C.Backend) -> None:
    file = sorted(shards.glob("*.safetensors"))[1]
    file.unlink()
    assert refused(shards, backend).startswith(f"{file}: missing")


def test_tensor_absent_from_its_shard(shards: Path, backend: _C.Backend) -> None:
    first = min(file.name for file in shards.glob("*.safetensors"))
    change_index(shards, nothing=first)
    assert refused(shards, backend).startswith(f"{shards / first}: tensor 'nothing' is missing")


def test_tensor_in_another_shard(shards: Path, backend: _C.Backend) -> None:
    first, *_, last = sorted(file.name for file in shards.glob("*.safetensors"))
    index = json.loads((shards / "model.safetensors.index.json").read_text())["weight_map"]
    moved = next(name for name, shard in index.items() if shard == first)
    change_index(shards, **{moved: last})
    assert refused(shards, backend).startswith(f"{shards / last}: tensor {moved!r} is missing")


def test_tensor_in_two_shards(shards: Path, backend: _C.Backend) -> None:
    save_file({"model.norm.weight": torch.ones(64)}, shards / "zzz.safetensors")
    change_index(shards, again="zzz.safetensors")
    assert "tensor 'model.norm.weight' stands in" in refused(shards, backend)


def test_tensor_that_the_index_does_not_list(shards: Path, backend: _C.Backend) -> None:
    save_file({"again": torch.ones(2), "more": torch.ones(2)}, shards / "zzz.safetensors")
    change_index(shards, again="zzz.safetensors")
    assert "tensor 'more' is not listed" in refused(shards, backend)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/x.safetensors", "a/b.safetensors", "a\\b.safetensors", "x.bin", "", 3, None]
)
def test_names_that_leave_the_folder(name: Any, shards: Path, backend: _C.Backend) -> None:
    change_index(shards, again=name)
    message = refused(shards, backend)
    assert message.startswith(f"{shards / 'model.safetensors.index.json'}: weight_map")


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}']
)
def test_malformed_index(text: str, shards: Path, backend: _C.Backend) -> None:
    (shards / "model.safetensors.index.json").write_text(text)
    assert refused(shards, backend).startswith(str(shards / "model.safetensors.index.json"))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_spoiled_files_are_refused_or_read(data: st.DataObject, copy: Path, backend: _C.Backend) -> None:
    """Truncated, or with bytes of the header changed: an error that names the file, never a crash."""
    original = (copy / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(original[:8], "little")
    spoiled = bytearray(original[: data.draw(st.sampled_from([len(original), header, header - 1, 7, 0]))])
    for position in data.draw(st.lists(st.integers(0, header - 1), max_size=4)):
        spoiled[position : position + 1] = data.draw(st.binary(min_size=1, max_size=1))
    folder = copy.parent / "spoiled"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(copy / "config.json", folder)
    (folder / "model.safetensors").write_bytes(spoiled)
    try:
        load_model(folder, backend=backend)
    except CheckpointError as error:
        assert str(folder) in str(error)  # noqa: PT017


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_random_weights(dtype: _C.DTypeName, backend: _C.Backend) -> None:
    def logits(seed: int) -> np.ndarray:
        model = random_model(CONFIG, backend=backend, dtype=dtype, seed=seed)
        assert model.dtype == dtype
        return Driver(model).logits(TOKENS)

    first = logits(1)
    np.testing.assert_array_equal(first, logits(1))
    assert np.isfinite(first).all()
    assert 0.1 < first.std() < 10
    assert len(set(first.argmax(-1))) > 10
    assert not np.array_equal(first, logits(2))


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_random_tensors_have_their_size(dtype: _C.DTypeName, backend: _C.Backend) -> None:
    weights = Weights.random(backend=backend, dtype=dtype)
    matrix = weights.matrix("w.weight", 300, 400).data.float32()
    assert abs(matrix.mean()) < 0.001
    assert 0.7 < np.sqrt((matrix**2).mean()) * np.sqrt(400) < 1.4
    norm = weights.vector("norm.weight", 1000).float32()
    assert abs(norm.mean() - 1) < 0.02
    assert 0.05 < norm.std() < 0.2
    assert np.abs(weights.vector("w.bias", 1000).float32()).max() < 0.5
    assert weights.parameters == 300 * 400 + 2000


def test_tensors_that_do_not_fit_name_their_file(copy: Path, shards: Path, backend: _C.Backend) -> None:
    change(copy, {"model.norm.weight": None})
    assert str(copy / "model.safetensors") in refused(copy, backend)
    config = shards / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"intermediate_size": 3}))
    assert str(shards / "model.safetensors.index.json") in refused(shards, backend)

"""Families whose matrices lie in the checkpoint fused, transposed or interleaved, packed into a folder and at load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fermi import _C
from fermi.errors import ConfigError
from fermi.models import load_model
from fermi.models.decoder import Decoder
from fermi.quantization import Packer, Recipe, pack_calibrated, quantize_folder
from models.comparison import cosine
from models.drive import Driver
from models.tiny_checkpoints import VARIANTS, Variant, save

FUSED = Variant("Phi3", {"intermediate_size": 96})

FAMILIES = {
    "fused": FUSED,
    "fused, cut within strips": Variant("Phi3", {"intermediate_size": 41}),
    "transposed": VARIANTS["gpt2"],
    "interleaved": VARIANTS["gpt_neox"],
    "biased head": VARIANTS["phi"],
    "around 1": VARIANTS["gemma2"],
    "multiplied": VARIANTS["granite"],
    "behind": VARIANTS["olmo2"],
}


def checkpoint(name: str, folder: Path) -> Path:
    return save(FAMILIES[name].reference(gain=1.0), folder)


@pytest.mark.parametrize("format", ["int8", "int4"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_holds_what_packing_at_load_makes(
    name: str, format: _C.PackedFormatName, tmp_path: Path, backend: _C.Backend
) -> None:
    source = checkpoint(name, tmp_path / "source")
    recipe = Recipe(format=format, group=32)
    made = quantize_folder(source, tmp_path / "made", recipe, backend=backend, progress=False).folder
    tokens = FAMILIES[name].tokens()
    packed = load_model(made, backend=backend)
    logits = Driver(packed).logits(tokens)
    at_load = load_model(source, backend=backend, transform=Packer(recipe, backend=backend))
    np.testing.assert_array_equal(Driver(at_load).logits(tokens), logits)
    dense = load_model(source, backend=backend)
    assert packed.weight_format == format
    assert packed.dtype == dense.dtype == "f32"
    assert packed.parameters == dense.parameters
    assert packed.weight_bytes < 0.6 * dense.weight_bytes
    assert cosine(logits, Driver(dense).logits(tokens)) > (0.999 if format == "int8" else 0.9)


@pytest.mark.parametrize("name", ["gpt_neox odd", "gemma2"])
def test_a_tied_head_may_be_packed_otherwise(name: str, tmp_path: Path, backend: _C.Backend) -> None:
    source = save(VARIANTS[name].reference(gain=1.0), tmp_path / "source")
    recipe = Recipe(format="int8", head="int8", embeddings="keep")
    made = quantize_folder(source, tmp_path / "made", recipe, backend=backend, progress=False).folder
    tokens, model = VARIANTS[name].tokens(), load_model(made, backend=backend)
    assert (model.embedding.table.format, model.head.weight.format) == ("dense", "int8")
    assert cosine(Driver(model).logits(tokens), Driver(load_model(source, backend=backend)).logits(tokens)) > 0.999


@pytest.mark.parametrize("name", ["fused", "fused, cut within strips", "transposed", "multiplied"])
def test_calibration(name: str, tmp_path: Path, backend: _C.Backend) -> None:
    source = checkpoint(name, tmp_path / "source")
    recipe, tokens = Recipe(format="int4", group=32, symmetric=True), FAMILIES[name].tokens(3) * 8
    ready = pack_calibrated(source, tokens, recipe, backend=backend, progress=False)
    made = quantize_folder(source, tmp_path / "made", recipe, backend=backend, ready=ready, progress=False).folder
    searched = load_model(source, backend=backend, transform=Packer(recipe, backend=backend))

    def logits(model: Decoder) -> np.ndarray:
        return Driver(model).logits(tokens[: FAMILIES[name].prompt])

    dense = logits(load_model(source, backend=backend))
    assert cosine(logits(load_model(made, backend=backend)), dense) > cosine(logits(searched), dense)


@pytest.mark.parametrize("name", ["around 1", "interleaved"])
def test_calibration_is_not_for_every_block(name: str, tmp_path: Path, backend: _C.Backend) -> None:
    source = checkpoint(name, tmp_path / "source")
    with pytest.raises(ConfigError, match=r"calibration: the blocks of .* are not made for it"):
        pack_calibrated(source, [1, 2, 3], Recipe(format="int4"), backend=backend, progress=False)

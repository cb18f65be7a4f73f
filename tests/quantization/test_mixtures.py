"""Mixtures packed: experts are, routers are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fermi import _C
from fermi.errors import ConfigError
from fermi.models import load_model
from fermi.models.blocks import Block
from fermi.models.experts import Mixture
from fermi.quantization import Packer, Recipe, pack_calibrated, quantize_folder
from models.comparison import cosine
from models.drive import Driver
from models.tiny_checkpoints import VARIANTS, save


@pytest.mark.parametrize("format", ["int8", "int4"])
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe crowd"])
def test_a_folder_holds_what_packing_at_load_makes(
    name: str, stacked: bool, format: _C.PackedFormatName, tmp_path: Path, backend: _C.Backend
) -> None:
    source = save(VARIANTS[name].reference(gain=1.0), tmp_path / "source", save_original_format=not stacked)
    recipe, tokens = Recipe(format=format, group=32), VARIANTS[name].tokens()
    made = quantize_folder(source, tmp_path / "made", recipe, backend=backend, progress=False).folder
    packed = load_model(made, backend=backend)
    at_load = load_model(source, backend=backend, transform=Packer(recipe, backend=backend))
    dense = load_model(source, backend=backend)
    logits = Driver(packed).logits(tokens)
    np.testing.assert_array_equal(Driver(at_load).logits(tokens), logits)
    assert packed.parameters == dense.parameters
    assert packed.weight_bytes < 0.6 * dense.weight_bytes
    block = packed.blocks[0]
    assert isinstance(block, Block)
    assert isinstance(block.mlp, Mixture)
    assert {weight.format for expert in block.mlp.experts.gate_up + block.mlp.experts.down for weight in expert} == {
        format
    }
    assert block.mlp.router.matrix.format == "dense"
    # Some tokens choose other experts of nearly equal ones.
    assert cosine(logits, Driver(dense).logits(tokens)) > (0.98 if format == "int8" else 0.6)


def test_calibration_is_not_for_mixtures(tmp_path: Path, backend: _C.Backend) -> None:
    source = save(VARIANTS["mixtral"].reference(), tmp_path / "source")
    with pytest.raises(ConfigError, match="calibration"):
        pack_calibrated(source, [1, 2, 3], Recipe(format="int4"), backend=backend, progress=False)

"""Packing for inputs: what comes out of a product matters, not what is in the matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from fermi import _C
from fermi.errors import ConfigError
from fermi.models import load_model
from fermi.quantization import Packing, Recipe, pack_calibrated
from fermi.quantization.gptq import fit_to, pack_for
from fermi.quantization.levels import Levels, pack_levels
from ops import reference

PACKINGS = [
    Packing("int8", 0, True),
    Packing("int8", 64, True),
    Packing("int4", 32, True),
    Packing("int4", 64, False),
    Packing("int4", 128, True),
    Packing("int4", 0, False),
]


@pytest.fixture
def inputs() -> npt.NDArray[np.float64]:
    """[tokens, columns], whose columns go together and differ in size, as activations do."""
    generator = np.random.default_rng(3)
    mixed = generator.standard_normal((3000, 150)) @ generator.standard_normal((150, 150)) / 12
    sizes = np.exp(generator.standard_normal(150))
    return (mixed + 0.3 * generator.standard_normal((3000, 150))) * sizes


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_outputs_are_nearer_than_those_of_a_search(
    backend: _C.Backend, inputs: npt.NDArray[np.float64], packing: Packing
) -> None:
    matrix = np.random.default_rng(5).standard_normal((37, 150))
    weight = pack_for(matrix, inputs.T @ inputs, packing, candidates=18, backend=backend)
    assert (weight.format, weight.shape, weight.group) == (packing.format, (37, 150), packing.group)
    assert (weight.zeros is None) == packing.symmetric
    with backend:
        searched = _C.quantize(
            _C.Tensor.from_numpy(matrix.astype(np.float32)),
            packing.format,
            group=packing.group,
            symmetric=packing.symmetric,
            candidates=18,
        )
    errors = [
        np.square(inputs @ (reference.unpack(each).dequantized() - matrix).T).sum() for each in (weight, searched)
    ]
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_levels_are_packed_as_the_kernels_read_them(packing: Packing) -> None:
    generator = np.random.default_rng(9)
    group = packing.group or 77
    found = Levels.empty(35, 77, group)
    groups = found.scales.shape[1]
    zeros = generator.integers(0, 16, (35, groups)) if not packing.symmetric else np.full((35, groups), 8)
    if packing.format == "int8":
        found.lowest[:], found.highest[:] = -127, 127
    else:
        found.lowest[:], found.highest[:] = -zeros, 15 - zeros
    for g in range(groups):
        found.set_scales(g, generator.standard_normal(35))
    for c in range(77):
        found.round(c, 100 * generator.standard_normal(35))
    weight = pack_levels(found, packing, 77)
    np.testing.assert_array_equal(reference.unpack(weight).dequantized(), found.values())


def test_fitting_brings_outputs_to_what_is_wanted(inputs: npt.NDArray[np.float64]) -> None:
    generator = np.random.default_rng(1)
    matrix = generator.standard_normal((20, 150))
    wanted = inputs @ (matrix + 0.1 * generator.standard_normal((20, 150))).T
    fitted = fit_to(matrix, inputs.T @ inputs, inputs.T @ wanted)
    before, after = (np.square(inputs @ each.T - wanted).sum() for each in (matrix, fitted))
    assert after < 0.3 * before


def test_inputs_that_are_all_zero_do_no_harm(backend: _C.Backend) -> None:
    matrix = np.random.default_rng(2).standard_normal((5, 40))
    weight = pack_for(matrix, np.zeros((40, 40)), PACKINGS[2], candidates=18, backend=backend)
    assert np.abs(reference.unpack(weight).dequantized() - matrix).max() < 0.5


@pytest.mark.parametrize("recipe", [Recipe(format="int4", group=32, symmetric=False), Recipe(format="int8")], ids=str)
def test_a_model_is_packed_projection_by_projection(tied: Path, recipe: Recipe, backend: _C.Backend) -> None:
    tokens = np.random.default_rng(0).integers(0, 250, 300).tolist()
    packed = pack_calibrated(tied, tokens, recipe, backend=backend, progress=False)
    dense = load_model(tied, backend=backend)
    assert len(packed) == 2 * 7
    for linear in (dense.blocks[1].attention.qkv, dense.blocks[0].mlp.down):
        for name, weight in zip(linear.names, linear.weights, strict=True):
            assert (packed[name].format, packed[name].shape) == (recipe.format, weight.shape)
            error = reference.unpack(packed[name]).dequantized() - weight.data.float32()
            assert np.square(error).mean() < 0.05 * np.square(weight.data.float32()).mean()


def test_an_empty_text_is_refused(tied: Path, backend: _C.Backend) -> None:
    with pytest.raises(ConfigError, match="the calibration text is empty"):
        pack_calibrated(tied, [], Recipe(format="int4"), backend=backend)

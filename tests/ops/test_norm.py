"""rms_norm."""

from __future__ import annotations

import numpy as np
import pytest

from fermi import _C
from ops import reference
from ops.operands import FLOATS, normal, same_bits


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("tokens", "dim"), [(1, 1), (1, 2048), (7, 100), (513, 35)])
def test_matches_numpy(
    backend: _C.Backend, generator: np.random.Generator, dtype: _C.DTypeName, tokens: int, dim: int
) -> None:
    x, weight = normal(generator, tokens, dim), normal(generator, dim, dtype=dtype)
    out = _C.rms_norm(x.tensor, weight.tensor, 1e-5)
    np.testing.assert_allclose(out.float32(), reference.rms_norm(x.values, weight.values, 1e-5), rtol=2e-6)


def test_heads_of_a_fused_projection(backend: _C.Backend, generator: np.random.Generator) -> None:
    fused, weight = normal(generator, 5, 200), normal(generator, 20)
    out = _C.rms_norm(fused.tensor.narrow(1, 40, 120).unflatten(1, [6, 20]), weight.tensor, 1e-6)
    expected = reference.rms_norm(fused.values[:, 40:160].reshape(5, 6, 20), weight.values, 1e-6)
    np.testing.assert_allclose(out.float32(), expected, rtol=2e-6)


def test_large_and_small_numbers(backend: _C.Backend, generator: np.random.Generator) -> None:
    x, weight = normal(generator, 3, 1000), normal(generator, 1000)
    for scale in (1e-12, 1e15):
        scaled = _C.Tensor.from_numpy((x.values * scale).astype(np.float32))
        values = scaled.float32().astype(np.float64)
        out = _C.rms_norm(scaled, weight.tensor, 1e-5)
        np.testing.assert_allclose(out.float32(), reference.rms_norm(values, weight.values, 1e-5), rtol=3e-6)


def test_a_row_is_the_same_among_any_others(backend: _C.Backend, generator: np.random.Generator) -> None:
    x, weight = normal(generator, 11, 130), normal(generator, 130)
    together = _C.rms_norm(x.tensor, weight.tensor, 1e-5)
    alone = _C.rms_norm(x.tensor.narrow(0, 6, 1), weight.tensor, 1e-5)
    assert same_bits(alone, together.narrow(0, 6, 1))

"""gated_activation."""

from __future__ import annotations

import numpy as np
import pytest

from fermi import _C
from ops import reference
from ops.operands import normal, operand


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
@pytest.mark.parametrize(("tokens", "n"), [(1, 1), (1, 8200), (7, 100), (513, 19)])
def test_matches_numpy(
    backend: _C.Backend, generator: np.random.Generator, activation: _C.ActivationName, tokens: int, n: int
) -> None:
    x = operand(normal(generator, tokens, 2 * n).values * 3.0)
    out = _C.gated_activation(x.tensor, activation).float32()
    # Relative to the ungated product: 1 + erf(x) has lost its digits where the activation is small.
    product = np.abs(x.values[:, :n] * x.values[:, n:])
    error = np.abs(out - reference.gated_activation(x.values, activation))
    assert np.all(error <= 3e-7 * product + 1e-30), np.max(error / product)


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_the_ends_of_the_range(backend: _C.Backend, activation: _C.ActivationName) -> None:
    values = np.array(
        [-np.inf, -3e38, -200.0, -104.0, -88.0, -1e-30, -0.0, 0.0, 1e-30, 88.0, 104.0, 200.0, 1e19, np.nan]
    )
    x = operand(np.stack([np.concatenate([values, np.ones_like(values)])]))
    out = _C.gated_activation(x.tensor, activation).float32()[0]
    assert np.isnan(out[-1])
    # x · sigmoid(x) of -∞ is NaN in every framework; below, the limit is what counts.
    expected = np.maximum(values[1:-1], 0.0)
    np.testing.assert_allclose(out[1:-1], expected.astype(np.float32), rtol=1e-6, atol=1e-30)


def test_silu_is_accurate_to_a_few_units_in_the_last_place(backend: _C.Backend) -> None:
    gate = np.linspace(-87.0, 20.0, 20001, dtype=np.float32)
    x = operand(np.concatenate([gate, np.ones_like(gate)])[None])
    expected = gate.astype(np.float64) / (1.0 + np.exp(-gate.astype(np.float64)))
    np.testing.assert_allclose(_C.gated_activation(x.tensor, "silu").float32()[0], expected, rtol=6e-7)


def test_takes_strided_rows(backend: _C.Backend, generator: np.random.Generator) -> None:
    x = normal(generator, 6, 90)
    out = _C.gated_activation(x.tensor.narrow(1, 11, 70), "silu")
    np.testing.assert_allclose(out.float32(), reference.gated_activation(x.values[:, 11:81], "silu"), atol=3e-6)

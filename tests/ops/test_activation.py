"""The activations of linear: of one weight's output, and as a gate of two."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from fermi import _C
from ops import reference
from ops.operands import FLOATS, normal, operand


def activated(values: npt.ArrayLike, activation: _C.ActivationName) -> npt.NDArray[np.float32]:
    """The activation of each value: one column, weight 1."""
    column = operand(np.asarray(values)[:, None])
    return _C.linear(column.tensor, operand([[1.0]]).weight, activation=activation).float32()[:, 0]


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
@pytest.mark.parametrize(("tokens", "n"), [(1, 1), (1, 820), (7, 100), (513, 19)])
def test_gates_match_numpy(
    backend: _C.Backend, generator: np.random.Generator, activation: _C.ActivationName, tokens: int, n: int
) -> None:
    x = operand(normal(generator, tokens, 2 * n).values * 3.0)
    both = np.eye(2 * n)  # the first half of x, and the second: exactly
    out = _C.linear(x.tensor, [operand(both[:n]).weight, operand(both[n:]).weight], activation=activation).float32()
    # Relative to the ungated product: 1 + erf(x) has lost its digits where the activation is small. Sigmoid and tanh
    # are not multiplied by x.
    bounded = activation in ("tanh", "sigmoid")
    product = np.abs((1.0 if bounded else x.values[:, :n]) * x.values[:, n:])
    error = np.abs(out - reference.gate(x.values[:, :n], x.values[:, n:], activation))
    assert np.all(error <= 3e-7 * product + 1e-30), np.max(error / product)


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_the_ends_of_the_range(backend: _C.Backend, activation: _C.ActivationName) -> None:
    values = np.array([-3e38, -200.0, -104.0, -88.0, -1e-30, -0.0, 0.0, 1e-30, 88.0, 104.0, 200.0, 1e19, np.nan])
    out = activated(values, activation)
    assert np.isnan(out[-1])
    expected = reference.ACTIVATIONS[activation](values[:-1])
    np.testing.assert_allclose(out[:-1], expected.astype(np.float32), rtol=1e-6, atol=1e-30)


def test_silu_is_accurate_to_a_few_units_in_the_last_place(backend: _C.Backend) -> None:
    values = np.linspace(-87.0, 20.0, 20001, dtype=np.float32)
    expected = values.astype(np.float64) / (1.0 + np.exp(-values.astype(np.float64)))
    np.testing.assert_allclose(activated(values, "silu"), expected, rtol=6e-7)


@pytest.mark.parametrize("weights", [1, 2])
def test_biases_come_before_and_the_residual_after(
    backend: _C.Backend, generator: np.random.Generator, weights: int
) -> None:
    x = normal(generator, 9, 60)
    parts = [normal(generator, 37, 60) for _ in range(weights)]
    biases = [normal(generator, 37) for _ in range(weights)]
    residual = normal(generator, 9, 37)
    before = residual.values.copy()
    out = _C.linear(
        x.tensor,
        [part.weight for part in parts],
        [bias.tensor for bias in biases],
        activation="silu",
        residual=residual.tensor,
    )
    y = [x.values @ part.values.T + bias.values for part, bias in zip(parts, biases, strict=True)]
    activation = reference.ACTIVATIONS["silu"](y[0]) if weights == 1 else reference.gate(y[0], y[1], "silu")
    np.testing.assert_allclose(out.float32(), before + activation, atol=2e-4)


@pytest.mark.parametrize("weights", [1, 2])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("scale", "soft_cap"), [(0.25, 0.0), (1.0, 2.0), (-3.0, 0.5)])
def test_a_scale_and_a_cap_stand_between_activation_and_residual(
    backend: _C.Backend,
    generator: np.random.Generator,
    weights: int,
    dtype: _C.DTypeName,
    scale: float,
    soft_cap: float,
) -> None:
    x = operand(generator.integers(-8, 9, (9, 60)) / 8.0)  # bf16 holds it
    parts = [normal(generator, 37, 60, dtype=dtype) for _ in range(weights)]
    residual = normal(generator, 9, 37)
    before = residual.values.copy()
    _C.linear(
        x.tensor,
        [part.weight for part in parts],
        activation="gelu",
        scale=scale,
        soft_cap=soft_cap,
        residual=residual.tensor,
    )
    y = [x.values @ part.values.T for part in parts]
    activated = reference.ACTIVATIONS["gelu"](y[0]) if weights == 1 else reference.gate(y[0], y[1], "gelu")
    expected = before + reference.finished(activated, scale, soft_cap)
    np.testing.assert_allclose(residual.tensor.float32(), expected, rtol=2e-6, atol=2e-4)

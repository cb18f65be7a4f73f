"""rms_norm and layer_norm."""

from __future__ import annotations

import numpy as np
import pytest

from fermi import _C
from ops import reference
from ops.operands import FLOATS, Operand, normal, operand, same_bits, zeros

SHAPES = [(1, 1), (1, 2048), (7, 100), (513, 35)]


def layer_norm(x: Operand, weight: Operand, bias: Operand | None, epsilon: float) -> _C.Tensor:
    return _C.layer_norm(x.tensor, weight.tensor, bias.tensor if bias else None, epsilon)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("tokens", "dim"), SHAPES)
def test_rms_matches_numpy(
    backend: _C.Backend, generator: np.random.Generator, dtype: _C.DTypeName, tokens: int, dim: int
) -> None:
    x, weight = normal(generator, tokens, dim), normal(generator, dim, dtype=dtype)
    out = _C.rms_norm(x.tensor, weight.tensor, 1e-5)
    np.testing.assert_allclose(out.float32(), reference.rms_norm(x.values, weight.values, 1e-5), rtol=2e-6)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bias_dtype", [None, *FLOATS])
@pytest.mark.parametrize(("tokens", "dim"), SHAPES)
def test_layer_matches_numpy(
    backend: _C.Backend,
    generator: np.random.Generator,
    dtype: _C.DTypeName,
    bias_dtype: _C.DTypeName | None,
    tokens: int,
    dim: int,
) -> None:
    x, weight = normal(generator, tokens, dim), normal(generator, dim, dtype=dtype)
    bias = normal(generator, dim, dtype=bias_dtype) if bias_dtype else None
    expected = reference.layer_norm(x.values, weight.values, bias.values if bias else None, 1e-5)
    np.testing.assert_allclose(layer_norm(x, weight, bias, 1e-5).float32(), expected, rtol=0, atol=6e-6)


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize(("tokens", "dim"), SHAPES)
def test_is_added_to_a_view(
    backend: _C.Backend, generator: np.random.Generator, kind: _C.NormName, tokens: int, dim: int
) -> None:
    x, weight, bias = normal(generator, tokens, dim), normal(generator, dim), normal(generator, dim)
    stream = normal(generator, tokens, dim + 7)  # what lies beside the view stays
    expected = stream.values.copy()
    residual = stream.tensor.narrow(1, 3, dim)
    if kind == "rms":
        out = _C.rms_norm(x.tensor, weight.tensor, 1e-5, residual=residual)
        expected[:, 3 : 3 + dim] += reference.rms_norm(x.values, weight.values, 1e-5)
    else:
        out = _C.layer_norm(x.tensor, weight.tensor, bias.tensor, 1e-5, residual=residual)
        expected[:, 3 : 3 + dim] += reference.layer_norm(x.values, weight.values, bias.values, 1e-5)
    assert out.address == residual.address
    np.testing.assert_allclose(stream.tensor.float32(), expected, rtol=0, atol=6e-6)


def test_heads_of_a_fused_projection(backend: _C.Backend, generator: np.random.Generator) -> None:
    fused, weight, bias = normal(generator, 5, 200), normal(generator, 20), normal(generator, 20)
    heads = fused.tensor.narrow(1, 40, 120).unflatten(1, [6, 20])
    values = fused.values[:, 40:160].reshape(5, 6, 20)
    rms = reference.rms_norm(values, weight.values, 1e-6)
    np.testing.assert_allclose(_C.rms_norm(heads, weight.tensor, 1e-6).float32(), rms, rtol=2e-6)
    layer = reference.layer_norm(values, weight.values, bias.values, 1e-6)
    np.testing.assert_allclose(_C.layer_norm(heads, weight.tensor, bias.tensor, 1e-6).float32(), layer, atol=6e-6)

    others = normal(generator, 5, 150)
    residual = others.tensor.narrow(1, 10, 120).unflatten(1, [6, 20])
    _C.rms_norm(heads, weight.tensor, 1e-6, residual=residual)
    expected = others.values.copy()
    expected[:, 10:130] += rms.reshape(5, 120)
    np.testing.assert_allclose(others.tensor.float32(), expected, rtol=0, atol=6e-6)


def test_large_and_small_numbers(backend: _C.Backend, generator: np.random.Generator) -> None:
    x, weight = normal(generator, 3, 1000), normal(generator, 1000)
    for scale in (1e-12, 1e15):
        scaled = operand(x.values * scale)
        rms = _C.rms_norm(scaled.tensor, weight.tensor, 1e-5)
        np.testing.assert_allclose(rms.float32(), reference.rms_norm(scaled.values, weight.values, 1e-5), rtol=3e-6)
        layer = layer_norm(scaled, weight, None, 1e-5)
        expected = reference.layer_norm(scaled.values, weight.values, None, 1e-5)
        np.testing.assert_allclose(layer.float32(), expected, rtol=3e-6, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parametrize("dim", [3, 1000])
def test_a_large_mean_leaves_the_variance_its_digits(
    backend: _C.Backend, generator: np.random.Generator, dim: int
) -> None:
    x, weight = operand(4096.0 + generator.standard_normal((7, dim))), operand(np.ones(dim))
    expected = reference.layer_norm(x.values, weight.values, None, 1e-5)
    # What the mean has lost, 4096 · 2**-24 and less, is lost everywhere alike.
    np.testing.assert_allclose(layer_norm(x, weight, None, 1e-5).float32(), expected, rtol=0, atol=4e-3)
    equal = operand(np.full((1, dim), 0.1))
    assert np.abs(layer_norm(equal, weight, None, 1e-5).float32()).max() < 1e-4


@pytest.mark.parametrize("dim", [5, 130])
def test_a_row_is_the_same_among_any_others(backend: _C.Backend, generator: np.random.Generator, dim: int) -> None:
    x, weight, bias = normal(generator, 11, dim), normal(generator, dim), normal(generator, dim)
    row = Operand(x.tensor.narrow(0, 6, 1), x.values[6:7])
    together = _C.rms_norm(x.tensor, weight.tensor, 1e-5)
    assert same_bits(_C.rms_norm(row.tensor, weight.tensor, 1e-5), together.narrow(0, 6, 1))
    together = layer_norm(x, weight, bias, 1e-5)
    assert same_bits(layer_norm(row, weight, bias, 1e-5), together.narrow(0, 6, 1))


def test_refuses_what_does_not_fit() -> None:
    x, weight = zeros(2, 8), zeros(8)
    for message, arguments in {
        "norm: weight has 7 elements, it must have 8": (x, zeros(7), None, 1e-5),
        "norm: the norm's bias has 7 elements, it must have 8": (x, weight, zeros(7), 1e-5),
        "norm: epsilon must be finite, not nan": (x, weight, None, float("nan")),
        r"norm: x must be f32 \[.., dim\] of rank 2 or 3, not f32\[8\]": (weight, weight, None, 1e-5),
    }.items():
        with pytest.raises(ValueError, match=message):
            _C.layer_norm(*arguments)
    for message, residual in {
        r"norm: residual must be \[2, 8\], not \[2, 7\]": zeros(2, 7),
        "norm: residual and x share memory": x,
    }.items():
        with pytest.raises(ValueError, match=message):
            _C.rms_norm(x, weight, 1e-5, residual=residual)

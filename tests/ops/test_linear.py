"""linear: x @ W.T + b for one or several weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fermi import _C
from ops import reference
from ops.operands import FLOATS, normal, operand, same_bits

# tokens, columns, rows of each weight; no column count but 64 is a multiple of every vector
SHAPES = [(1, 64, [5]), (2, 37, [8, 3, 1]), (7, 100, [24]), (12, 1, [2, 7]), (41, 515, [30, 13]), (513, 67, [19])]


def error_of(dtype: _C.DTypeName, tokens: int) -> float:
    """Of a product. Where bf16 weights meet bf16, x is rounded to it, or, for few tokens, to a sum of two."""
    if dtype != "bf16":
        return 2e-6
    return 0.012 if tokens > 4 else 8e-6


def assert_linear(out: _C.Tensor, expected: np.ndarray, columns: int, error: float = 2e-6, size: float = 1.0) -> None:
    # Products are of order `size`, their errors of random signs.
    tolerance = size * error * np.sqrt(columns) + 1e-6
    np.testing.assert_allclose(out.float32(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("tokens", "columns", "rows"), SHAPES)
def test_matches_numpy(
    backend: _C.Backend, generator: np.random.Generator, dtype: _C.DTypeName, tokens: int, columns: int, rows: list[int]
) -> None:
    x = normal(generator, tokens, columns)
    weights = [normal(generator, n, columns, dtype=dtype) for n in rows]
    biases = [normal(generator, n, dtype=dtype) if i % 2 == 0 else None for i, n in enumerate(rows)]
    out = _C.linear(x.tensor, [w.weight for w in weights], [None if b is None else b.tensor for b in biases])
    assert out.shape == (tokens, sum(rows))
    expected = reference.linear(
        x.values, [w.values for w in weights], [None if b is None else b.values for b in biases]
    )
    assert_linear(out, expected, columns, error_of(dtype, tokens))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("tokens", "columns", "rows"), SHAPES)
def test_batch_invariant_products_are_of_f32(
    backend: _C.Backend, generator: np.random.Generator, dtype: _C.DTypeName, tokens: int, columns: int, rows: list[int]
) -> None:
    x = normal(generator, tokens, columns)
    weights = [normal(generator, n, columns, dtype=dtype) for n in rows]
    with _C.record(backend, batch_invariant=True) as step:
        out = _C.linear(x.tensor, [w.weight for w in weights])
    step.run()
    expected = reference.linear(x.values, [w.values for w in weights], [None] * len(rows))
    assert_linear(out, expected, columns)


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("tokens", "columns", "rows"), SHAPES)
def test_a_norm_before_and_a_residual_after(
    backend: _C.Backend,
    generator: np.random.Generator,
    kind: _C.NormName,
    biased: bool,
    dtype: _C.DTypeName,
    tokens: int,
    columns: int,
    rows: list[int],
) -> None:
    x, norm = normal(generator, tokens, columns), normal(generator, columns, dtype=dtype)
    norm_bias = normal(generator, columns, dtype=dtype) if biased else None
    weights = [normal(generator, n, columns, dtype=dtype) for n in rows]
    residual = normal(generator, tokens, sum(rows))
    before = residual.values.copy()
    out = _C.linear(
        x.tensor,
        [w.weight for w in weights],
        norm=norm.tensor,
        norm_kind=kind,
        norm_bias=norm_bias.tensor if norm_bias else None,
        epsilon=1e-3,
        residual=residual.tensor,
    )
    assert out.address == residual.tensor.address
    if kind == "rms":
        normed = reference.rms_norm(x.values, norm.values, 1e-3) + (norm_bias.values if norm_bias else 0.0)
    else:
        normed = reference.layer_norm(x.values, norm.values, norm_bias.values if norm_bias else None, 1e-3)
    expected = before + reference.linear(normed, [w.values for w in weights], [None] * len(rows))
    assert_linear(residual.tensor, expected, columns, error_of(dtype, tokens), size=2.0 if biased else 1.0)


@pytest.mark.parametrize(("tokens", "columns"), [(1, 33), (3, 70), (9, 515), (513, 67)])
def test_a_norm_is_the_op_of_that_name(
    backend: _C.Backend, generator: np.random.Generator, tokens: int, columns: int
) -> None:
    x, norm, bias = normal(generator, tokens, columns), normal(generator, columns), normal(generator, columns)
    for dtype in FLOATS:
        w = normal(generator, 19, columns, dtype=dtype).weight
        together = _C.linear(x.tensor, w, norm=norm.tensor, norm_kind="layer", norm_bias=bias.tensor, epsilon=1e-5)
        apart = _C.linear(_C.layer_norm(x.tensor, norm.tensor, bias.tensor, 1e-5), w)
        assert same_bits(together, apart)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("tokens", "columns", "rows"), SHAPES)
@pytest.mark.parametrize(("scale", "soft_cap"), [(0.125, 0.0), (1.0, 3.0), (-2.5, 0.75)])
def test_a_scale_and_a_cap(
    backend: _C.Backend,
    generator: np.random.Generator,
    dtype: _C.DTypeName,
    tokens: int,
    columns: int,
    rows: list[int],
    scale: float,
    soft_cap: float,
) -> None:
    x = normal(generator, tokens, columns)
    weights = [normal(generator, n, columns, dtype=dtype) for n in rows]
    biases = [normal(generator, n, dtype=dtype) if i % 2 == 0 else None for i, n in enumerate(rows)]
    residual = normal(generator, tokens, sum(rows))
    before = residual.values.copy()
    with _C.record(backend, batch_invariant=True) as step:
        given = [None if bias is None else bias.tensor for bias in biases]
        out = _C.linear(x.tensor, [w.weight for w in weights], given, scale=scale, soft_cap=soft_cap)
        _C.linear(
            x.tensor, [w.weight for w in weights], given, scale=scale, soft_cap=soft_cap, residual=residual.tensor
        )
    step.run()
    product = reference.linear(x.values, [w.values for w in weights], [None if b is None else b.values for b in biases])
    expected = reference.finished(product, scale, soft_cap)
    assert_linear(out, expected, columns, size=abs(scale))
    assert_linear(residual.tensor, before + expected, columns, size=abs(scale))


def test_refuses_what_does_not_fit(generator: np.random.Generator) -> None:
    x = normal(generator, 3, 8)
    wide, narrow = normal(generator, 5, 8).weight, normal(generator, 4, 8).weight
    for message, arguments in {
        "an activation takes one weight, or two of equal rows": {"weights": [wide, narrow], "activation": "silu"},
        "norm has 7 elements, it must have 8": {"weights": wide, "norm": normal(generator, 7).tensor},
        "a norm's bias must come with its weight": {"weights": wide, "norm_bias": normal(generator, 8).tensor},
        "the norm's bias has 7 elements, it must have 8": {
            "weights": wide,
            "norm": normal(generator, 8).tensor,
            "norm_bias": normal(generator, 7).tensor,
        },
        "scale must be finite, not inf": {"weights": wide, "scale": float("inf")},
        "soft_cap must not be negative, it is -1": {"weights": wide, "soft_cap": -1.0},
        r"residual must be \[3, 5\], not \[3, 4\]": {"weights": wide, "residual": normal(generator, 3, 4).tensor},
        "residual and x share memory": {"weights": normal(generator, 8, 8).weight, "residual": x.tensor},
    }.items():
        with pytest.raises(ValueError, match=f"linear: {message}"):
            _C.linear(x.tensor, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='norm_kind "batch" is none of rms, layer'):
        _C.linear(x.tensor, wide, norm=normal(generator, 8).tensor, norm_kind="batch")  # type: ignore[arg-type]


def test_weights_of_several_dtypes(backend: _C.Backend, generator: np.random.Generator) -> None:
    x = normal(generator, 20, 90)
    weights = [normal(generator, 11, 90, dtype=dtype) for dtype in FLOATS]
    out = _C.linear(x.tensor, [w.weight for w in weights]).float32()
    expected = reference.linear(x.values, [w.values for w in weights], [None] * 3)
    np.testing.assert_allclose(out[:, :22], expected[:, :22], atol=3e-5)
    np.testing.assert_allclose(out[:, 22:], expected[:, 22:], atol=0.2)


@pytest.mark.parametrize("dtype", FLOATS)
def test_bf16_activations_are_exact_where_they_need_no_rounding(
    backend: _C.Backend, generator: np.random.Generator, dtype: _C.DTypeName
) -> None:
    x = operand(generator.integers(-8, 9, (9, 130)) / 8.0)
    w = normal(generator, 31, 130, dtype=dtype)
    expected = reference.linear(x.values, [w.values], [None])
    np.testing.assert_allclose(_C.linear(x.tensor, w.weight).float32(), expected, atol=3e-5)


def test_takes_strided_rows_and_narrowed_weights(backend: _C.Backend, generator: np.random.Generator) -> None:
    x = normal(generator, 9, 100)
    w = normal(generator, 40, 60)
    out = _C.linear(x.tensor.narrow(1, 17, 60), _C.Weight(w.tensor.narrow(0, 3, 21)))
    expected = reference.linear(x.values[:, 17:77], [w.values[3:24]], [None])
    np.testing.assert_allclose(out.float32(), expected, atol=3e-5)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("tokens", [1, 40])
def test_rows_of_a_weight(
    backend: _C.Backend, generator: np.random.Generator, dtype: _C.DTypeName, tokens: int
) -> None:
    x, w = normal(generator, tokens, 60), normal(generator, 40, 60, dtype=dtype)
    part = w.weight.narrow(3, 21)
    assert (part.shape, part.data.address) == ((21, 60), w.tensor.narrow(0, 3, 21).address)
    assert same_bits(_C.linear(x.tensor, part), _C.linear(x.tensor, _C.Weight(w.tensor.narrow(0, 3, 21))))
    assert w.weight.narrow(40, 0).shape == (0, 60)
    for first, rows in [(-1, 3), (38, 3), (41, 0), (0, -1)]:
        with pytest.raises(ValueError, match=rf"weight: rows {first} \+ {rows} are outside {dtype}\[40, 60\]"):
            w.weight.narrow(first, rows)


@pytest.mark.parametrize("tokens", [0, 1])
def test_empty_operands(backend: _C.Backend, generator: np.random.Generator, tokens: int) -> None:
    x = normal(generator, tokens, 8)
    assert _C.linear(x.tensor, normal(generator, 0, 8).weight).shape == (tokens, 0)
    no_columns = _C.linear(
        normal(generator, tokens, 0).tensor, normal(generator, 3, 0).weight, operand([1, 2, 3]).tensor
    )
    np.testing.assert_array_equal(no_columns.float32(), np.tile([1.0, 2.0, 3.0], (tokens, 1)))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("columns", [70, 4200])
def test_a_row_is_the_same_among_any_others(
    opened: Callable[[int], _C.Backend], generator: np.random.Generator, dtype: _C.DTypeName, columns: int
) -> None:
    x = normal(generator, 40, columns)
    w = normal(generator, 23, columns, dtype=dtype).weight

    def run(threads: int, start: int, count: int) -> _C.Tensor:
        with _C.record(opened(threads), batch_invariant=True) as step:
            out = _C.linear(x.tensor.narrow(0, start, count), w)
        step.run()
        return out

    together = run(3, 0, 40)
    for threads, start, count in [(1, 0, 40), (2, 0, 1), (1, 5, 2), (2, 7, 3), (3, 11, 13), (1, 38, 2)]:
        assert same_bits(run(threads, start, count), together.narrow(0, start, count)), (threads, start, count)

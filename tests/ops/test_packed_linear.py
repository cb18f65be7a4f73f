"""linear and embed over packed weights: int8 and int4, whatever the group, the scales and the zeros."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fermi import _C
from ops import reference
from ops.operands import indices, normal, operand, same_bits
from ops.packed_operands import FORMS, Form, packed

# tokens, columns, rows of each weight
SHAPES = [
    (1, 64, [16]),
    (2, 37, [8, 33, 1]),
    (3, 4, [5]),
    (7, 100, [24]),
    (8, 264, [70]),
    (13, 515, [30, 13]),
    (513, 67, [49]),
]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(("tokens", "columns", "rows"), SHAPES)
def test_matches_numpy(
    backend: _C.Backend, generator: np.random.Generator, form: Form, tokens: int, columns: int, rows: list[int]
) -> None:
    x = normal(generator, tokens, columns)
    weights = [packed(generator, n, columns, form) for n in rows]
    biases = [normal(generator, n) if i % 2 == 0 else None for i, n in enumerate(rows)]
    out = _C.linear(x.tensor, [w.weight for w in weights], [None if b is None else b.tensor for b in biases])
    expected = reference.linear(
        reference.rounded_to_int8(x.values, form.group),
        [w.values for w in weights],
        [None if b is None else b.values for b in biases],
    )
    np.testing.assert_allclose(out.float32(), expected, rtol=2e-6, atol=2e-5 * np.sqrt(columns))


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("tokens", [1, 9, 40])
def test_surroundings(backend: _C.Backend, generator: np.random.Generator, form: Form, tokens: int) -> None:
    x, norm = normal(generator, tokens, 132), normal(generator, 132)
    gate, up, down = (packed(generator, *shape, form) for shape in ((90, 132), (90, 132), (132, 90)))
    residual = normal(generator, tokens, 132)
    before = residual.values.copy()
    gated = _C.linear(x.tensor, [gate.weight, up.weight], norm=norm.tensor, epsilon=1e-5, activation="gelu_tanh")
    normed = reference.rms_norm(x.values, norm.values, 1e-5)
    # Where the norm's last bit decides how an input is rounded, one step of the scale is the error.
    step = np.abs(normed).max() / 127
    rounded = reference.rounded_to_int8(normed, form.group)
    expected = reference.gate(rounded @ gate.values.T, rounded @ up.values.T, "gelu_tanh")
    bound = 3 * step * np.abs(up.values).max() * (1 + np.abs(rounded @ up.values.T).max())
    np.testing.assert_allclose(gated.float32(), expected, atol=bound)
    assert np.mean(np.abs(gated.float32() - expected) > 1e-3) < 0.05

    exact = gated.float32().astype(np.float64)
    _C.linear(gated, down.weight, residual=residual.tensor)
    expected = before + reference.rounded_to_int8(exact, form.group) @ down.values.T
    np.testing.assert_allclose(residual.tensor.float32(), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_whole_numbers_are_exact(backend: _C.Backend, generator: np.random.Generator, form: Form) -> None:
    values = generator.integers(-127, 128, (5, 200)).astype(np.float64)
    values[:, ::32] = 127.0  # every group reaches the end of its scale
    w = packed(generator, 40, 200, form)
    out = _C.linear(operand(values).tensor, w.weight)
    np.testing.assert_allclose(out.float32(), values @ w.values.T, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("tokens", [1, 9, 513])
@pytest.mark.parametrize("scale", [1.0, -0.25])
@pytest.mark.parametrize("soft_cap", [0.0, 30.0])
def test_a_bias_a_scale_a_cap_and_a_residual(
    backend: _C.Backend, generator: np.random.Generator, form: Form, tokens: int, scale: float, soft_cap: float
) -> None:
    values = generator.integers(-127, 128, (tokens, 200)).astype(np.float64)
    values[:, ::32] = 127.0
    weights = [packed(generator, rows, 200, form) for rows in (40, 21)]
    bias, residual = normal(generator, 21), normal(generator, tokens, 61)
    before = residual.values.copy()
    _C.linear(
        operand(values / 127).tensor,
        [w.weight for w in weights],
        [None, bias.tensor],
        scale=scale,
        soft_cap=soft_cap,
        residual=residual.tensor,
    )
    product = reference.linear(values / 127, [w.values for w in weights], [None, bias.values])
    expected = before + reference.finished(product, scale, soft_cap)
    np.testing.assert_allclose(residual.tensor.float32(), expected, rtol=2e-6, atol=2e-4)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("tokens", [1, 300])
def test_a_norm_is_the_op_of_that_name(
    backend: _C.Backend, generator: np.random.Generator, form: Form, tokens: int
) -> None:
    x, norm, bias = normal(generator, tokens, 132), normal(generator, 132), normal(generator, 132)
    w = packed(generator, 33, 132, form).weight
    together = _C.linear(x.tensor, w, norm=norm.tensor, norm_kind="layer", norm_bias=bias.tensor, epsilon=1e-5)
    assert same_bits(together, _C.linear(_C.layer_norm(x.tensor, norm.tensor, bias.tensor, 1e-5), w))


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("tokens", [1, 9])
def test_rows_of_a_weight(backend: _C.Backend, generator: np.random.Generator, form: Form, tokens: int) -> None:
    x, w = normal(generator, tokens, 300), packed(generator, 90, 300, form)
    whole = _C.linear(x.tensor, w.weight)
    for first, rows in [(0, 32), (16, 48), (64, 26), (0, 90), (48, 0)]:
        part = w.weight.narrow(first, rows)
        assert (part.shape, part.format, part.group) == ((rows, 300), form.format, form.group)
        assert same_bits(_C.linear(x.tensor, part), whole.narrow(1, first, rows)), (first, rows)
    tail = w.weight.narrow(64, 26)
    ids = [25, 0, 16]
    np.testing.assert_array_equal(_C.embed(indices(ids), tail).float32(), w.values[64:][ids].astype(np.float32))
    for first, rows in [(8, 16), (0, 20), (80, 9), (90, 0)]:
        with pytest.raises(ValueError, match=rf"weight: rows {first} \+ {rows} of .* cut a strip of 16"):
            w.weight.narrow(first, rows)
    with pytest.raises(ValueError, match=r"weight: rows 80 \+ 11 are outside"):
        w.weight.narrow(80, 11)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_a_row_is_the_same_among_any_others(
    opened: Callable[[int], _C.Backend], generator: np.random.Generator, form: Form, batch_invariant: bool
) -> None:
    x = normal(generator, 40, 300)
    w = packed(generator, 70, 300, form).weight

    def run(threads: int, start: int, count: int) -> _C.Tensor:
        with _C.record(opened(threads), batch_invariant=batch_invariant) as step:
            out = _C.linear(x.tensor.narrow(0, start, count), w)
        step.run()
        return out

    together = run(3, 0, 40)
    for threads, start, count in [(1, 0, 40), (2, 0, 1), (1, 5, 2), (2, 7, 3), (3, 11, 13), (1, 35, 5)]:
        assert same_bits(run(threads, start, count), together.narrow(0, start, count)), (threads, start, count)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(("tokens", "columns"), [(1, 300), (9, 67)])
def test_instruction_sets_agree_bit_for_bit(
    generator: np.random.Generator, form: Form, tokens: int, columns: int
) -> None:
    x = normal(generator, tokens, columns)
    w = packed(generator, 45, columns, form).weight
    outs = []
    # Standard C++ does not fuse a product and a sum.
    for architecture in set(_C.cpu_architectures()) - {"portable"}:
        with _C.open_backend("cpu", threads=2, architecture=architecture):
            outs.append(_C.linear(x.tensor, w))
    assert all(same_bits(out, outs[0]) for out in outs)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("columns", [1, 131, 2080])
def test_embeds_rows_of_a_packed_table(
    backend: _C.Backend, generator: np.random.Generator, form: Form, columns: int
) -> None:
    table = packed(generator, 50, columns, form)
    ids = [0, 49, 17, 16, 15, 17]
    out = _C.embed(indices(ids), table.weight)
    np.testing.assert_array_equal(out.float32(), table.values[ids].astype(np.float32))

    stream = normal(generator, 6, columns + 5)
    residual = stream.tensor.narrow(1, 2, columns)
    out = _C.embed(indices(ids), table.weight, scale=11.5, residual=residual)
    assert out.address == residual.address
    expected = stream.values.copy()
    expected[:, 2 : 2 + columns] += 11.5 * table.values[ids]
    np.testing.assert_allclose(stream.tensor.float32(), expected, rtol=2e-6, atol=1e-5)


def test_inputs_without_extent_and_zeros(backend: _C.Backend, generator: np.random.Generator) -> None:
    w = packed(generator, 20, 64, FORMS[3]).weight
    assert _C.linear(normal(generator, 0, 64).tensor, w).shape == (0, 20)
    np.testing.assert_array_equal(_C.linear(operand(np.zeros((2, 64))).tensor, w).float32(), np.zeros((2, 20)))


def test_refuses_parts_that_do_not_fit(generator: np.random.Generator) -> None:
    w = packed(generator, 20, 64, FORMS[3]).weight
    assert w.scales is not None
    for message, parts in {
        r"data must be contiguous \[3, 8, 16, 4\]": (w.data, w.scales, None, 33, 64, 32),
        r"scales must be contiguous \[2, 1, 16\]": (w.data, w.scales, None, 20, 64, 64),
        "the group must be 0": (w.data, w.scales, None, 20, 64, 48),
        "zeros must be": (w.data, w.scales, w.scales, 20, 64, 32),
        "packed data must be i8": (w.scales, w.scales, None, 20, 64, 32),
    }.items():
        with pytest.raises(ValueError, match=f"weight: {message}"):
            _C.Weight.packed(*parts)
    other = packed(generator, 20, 64, FORMS[4]).weight
    with pytest.raises(ValueError, match=r"linear: weights .* differ in format or group"):
        _C.linear(normal(generator, 2, 64).tensor, [w, other])

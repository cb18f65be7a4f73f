"""quantize: packed weights bit for bit as NumPy finds them, on every instruction set."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from fermi import _C
from ops import reference
from ops.operands import FLOATS, normal, operand

Singles = npt.NDArray[np.float32]


class Form(NamedTuple):
    """How a matrix is packed."""

    format: _C.PackedFormatName
    symmetric: bool = True


FORMS = [Form("int8"), Form("int4"), Form("int4", symmetric=False)]
SHAPES = [(1, 1), (17, 37), (33, 515), (16, 128)]
GROUPS = [0, 32, 64, 128]


def packed(
    x: _C.Tensor,
    form: Form,
    group: int = 0,
    scales: str = "f16",
    candidates: int = 1,
    importance: Singles | None = None,
) -> _C.Weight:
    return _C.quantize(
        x,
        form.format,
        group=group,
        symmetric=form.symmetric,
        scales="f16" if scales == "f16" else "f32",
        candidates=candidates,
        importance=None if importance is None else _C.Tensor.from_numpy(importance),
    )


def assert_same(weight: _C.Weight, expected: reference.Packed, form: Form, scales: str) -> None:
    """Every bit, of what only pads too."""
    data, kept, zeros = reference.pack(expected, form.format, scales, form.symmetric)
    assert weight.scales is not None
    np.testing.assert_array_equal(weight.data.numpy(), data)
    bits = np.uint16 if scales == "f16" else np.uint32
    np.testing.assert_array_equal(weight.scales.numpy().view(bits), kept.view(bits))
    if form.symmetric:
        assert weight.zeros is None
    else:
        assert weight.zeros is not None
        np.testing.assert_array_equal(weight.zeros.numpy(), zeros)


def heavy_tailed(generator: np.random.Generator, shape: tuple[int, int]) -> Singles:
    """With rows and columns of other sizes, and zeros."""
    x = generator.standard_t(3, shape).astype(np.float32)
    x[::3] *= np.float32(1e-4)
    x[:, 5:40] *= 30
    x[1::4, : shape[1] // 2] = 0
    return x


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_numpy(
    backend: _C.Backend, generator: np.random.Generator, form: Form, group: int, shape: tuple[int, int]
) -> None:
    x = heavy_tailed(generator, shape)
    importance = generator.random(shape[1], np.float32)
    for scales, candidates, weights in itertools.product(("f16", "f32"), (1, 2, 3, 18), (None, importance)):
        weight = packed(operand(x).tensor, form, group, scales, candidates, weights)
        assert (weight.format, weight.shape, weight.group) == (form.format, shape, group)
        expected = reference.quantize(x, *form[:1], group, form.symmetric, scales, candidates, weights)
        assert_same(weight, expected, form, scales)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_takes_every_dtype_and_strided_rows(
    backend: _C.Backend, generator: np.random.Generator, form: Form, dtype: _C.DTypeName
) -> None:
    x = normal(generator, 21, 100, dtype=dtype)
    weight = packed(x.tensor.narrow(1, 9, 70), form, 32)
    expected = reference.quantize(x.values[:, 9:79].astype(np.float32), form.format, 32, form.symmetric)
    assert_same(weight, expected, form, "f16")


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("group", GROUPS)
def test_what_is_packed_comes_back(backend: _C.Backend, generator: np.random.Generator, form: Form, group: int) -> None:
    """Whole numbers that reach both ends of the levels are exact; others are off by half a step at most."""
    levels = {"int8": (-127, 127), "int4": (-8, 7) if form.symmetric else (-6, 9)}[form.format]
    x = generator.integers(levels[0], levels[1] + 1, (35, 200)).astype(np.float32)
    x[:, ::32], x[:, 1::32] = levels
    np.testing.assert_array_equal(reference.unpack(packed(operand(x).tensor, form, group)).dequantized(), x)

    x = heavy_tailed(generator, (35, 200))
    found = reference.unpack(packed(operand(x).tensor, form, group, "f32"))
    steps = np.abs(found.scales)[:, np.arange(200) // found.group]
    clipped = form == Form("int4")  # the end without level 8
    error = np.abs(found.dequantized() - x)
    bound = np.where(clipped & (x * np.sign(found.scales)[:, np.arange(200) // found.group] > 0), 1.0, 0.5)
    assert np.all(error <= steps * bound * (1 + 1e-5))


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("group", GROUPS)
def test_a_search_never_loses_to_rounding(
    backend: _C.Backend, generator: np.random.Generator, form: Form, group: int
) -> None:
    x = heavy_tailed(generator, (48, 256))
    importance = generator.random(256, np.float32) ** 4

    def errors(candidates: int, weights: Singles | None) -> npt.NDArray[np.float64]:
        """Of each row and group, weighted."""
        found = reference.unpack(packed(operand(x).tensor, form, group, candidates=candidates, importance=weights))
        squares = (found.dequantized() - x) ** 2 * (1.0 if weights is None else weights.astype(np.float64))
        return squares.reshape(48, -1, found.group).sum(axis=2)

    for weights in (None, importance):
        rounded, searched = errors(1, weights), errors(18, weights)
        assert np.all(searched <= rounded * (1 + 1e-5))
        assert searched.sum() < (1.0 if form.format == "int8" else 0.95) * rounded.sum()


@pytest.mark.parametrize("scales", ["f16", "f32"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_extreme_numbers(backend: _C.Backend, form: Form, scales: str) -> None:
    """Scales stay finite; what is too small for one is still kept as well as it can be; zeros have scale 0."""
    x = np.zeros((20, 64), np.float32)
    x[0, 3], x[1, 3] = 3e38, -3e38
    x[2, :], x[3, 3] = 1e-7, -1e-45
    x[4, 5], x[5, :] = 65504 * 127, 1e30
    for candidates in (1, 18):
        weight = packed(operand(x).tensor, form, 32, scales, candidates)
        assert_same(weight, reference.quantize(x, form.format, 32, form.symmetric, scales, candidates), form, scales)
        found = reference.unpack(weight)
        assert np.isfinite(found.scales).all()
        assert np.all(found.scales[6:] == 0)
        np.testing.assert_array_equal(found.dequantized()[6:], 0.0)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_shows_in_the_scale(
    backend: _C.Backend, generator: np.random.Generator, form: Form, bad: float
) -> None:
    x = heavy_tailed(generator, (20, 100))
    x[18, 40] = bad
    found = reference.unpack(packed(operand(x).tensor, form, 32, candidates=18))
    broken = np.zeros((20, 4), bool)
    broken[18, 1] = True
    np.testing.assert_array_equal(np.isnan(found.scales), broken)


def test_no_rows_and_no_columns(backend: _C.Backend) -> None:
    for shape, group in itertools.product([(0, 64), (3, 0), (0, 0)], (0, 32)):
        assert packed(operand(np.zeros(shape)).tensor, FORMS[0], group).shape == shape


def test_refuses_what_does_not_fit(generator: np.random.Generator) -> None:
    x = normal(generator, 20, 64).tensor
    for message, call in {
        "quantize: only int4 can be asymmetric": lambda: _C.quantize(x, "int8", symmetric=False),
        "quantize: candidates must be at least 1, not 0": lambda: _C.quantize(x, "int4", candidates=0),
        "the group must be 0 .* or a multiple of 32, not 48": lambda: _C.quantize(x, "int4", group=48),
        "importance has 9 elements, it must have 64": lambda: _C.quantize(
            x, "int4", importance=normal(generator, 9).tensor
        ),
        "quantize: importance must be f32, not f16": lambda: _C.quantize(
            x, "int4", importance=normal(generator, 64, dtype="f16").tensor
        ),
        "none of int8, int4": lambda: _C.quantize(x, "dense"),  # type: ignore[arg-type]
        "quantize: x must be f32, f16 or bf16 .rows, columns., not": lambda: _C.quantize(
            x.unflatten(1, (8, 8)), "int4"
        ),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()

"""embed, gather_rows and copy: ops that move numbers."""

from __future__ import annotations

import numpy as np
import pytest

from fermi import _C
from ops import reference
from ops.operands import FLOATS, indices, normal, rounded_to_bf16, zeros


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("hidden", [1, 64, 101])
def test_embed(backend: _C.Backend, generator: np.random.Generator, dtype: _C.DTypeName, hidden: int) -> None:
    table = normal(generator, 50, hidden, dtype=dtype)
    ids = generator.integers(0, 50, 13, dtype=np.int32)
    out = _C.embed(indices(ids), table.weight)
    np.testing.assert_array_equal(out.float32(), reference.embed(ids, table.values))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("tokens", "hidden"), [(1, 1), (7, 64), (513, 101)])
def test_embed_scaled_and_added(
    backend: _C.Backend, generator: np.random.Generator, dtype: _C.DTypeName, tokens: int, hidden: int
) -> None:
    table = normal(generator, 50, hidden, dtype=dtype)
    ids = generator.integers(0, 50, tokens, dtype=np.int32)
    scaled = _C.embed(indices(ids), table.weight, scale=39.25)
    np.testing.assert_allclose(scaled.float32(), reference.embed(ids, table.values, 39.25), rtol=1e-6)

    stream = normal(generator, tokens, hidden + 3)  # what lies beside the view stays
    before = stream.values.copy()
    residual = stream.tensor.narrow(1, 2, hidden)
    assert _C.embed(indices(ids), table.weight, scale=-0.5, residual=residual).address == residual.address
    before[:, 2 : 2 + hidden] += reference.embed(ids, table.values, -0.5)
    np.testing.assert_allclose(stream.tensor.float32(), before, rtol=1e-6, atol=1e-6)


def test_embed_refuses_what_does_not_fit(generator: np.random.Generator) -> None:
    table, ids = normal(generator, 4, 8), indices([0, 3])
    with pytest.raises(ValueError, match=r"embed: residual must be \[2, 8\], not \[2, 7\]"):
        _C.embed(ids, table.weight, residual=zeros(2, 7))
    with pytest.raises(ValueError, match="embed: scale must be finite, not nan"):
        _C.embed(ids, table.weight, scale=float("nan"))
    with pytest.raises(ValueError, match="embed: residual and table share memory"):
        _C.embed(ids, table.weight, residual=table.tensor.narrow(0, 0, 2))


def test_gather_rows(backend: _C.Backend, generator: np.random.Generator) -> None:
    x = normal(generator, 20, 50)
    rows = np.array([19, 0, 0, 7, 3], np.int32)
    out = _C.gather_rows(x.tensor.narrow(1, 5, 33), indices(rows))
    np.testing.assert_array_equal(out.float32(), reference.gather_rows(x.values[:, 5:38], rows))


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("destination", FLOATS)
def test_copy_converts(
    backend: _C.Backend, generator: np.random.Generator, source: _C.DTypeName, destination: _C.DTypeName
) -> None:
    x = normal(generator, 5, 67, dtype=source)
    out = zeros(5, 67, dtype=destination)
    _C.copy(out, x.tensor)
    expected = {"f32": x.values, "f16": x.values.astype(np.float16), "bf16": rounded_to_bf16(x.values)}[destination]
    np.testing.assert_array_equal(out.float32(), expected)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "i32", "u8", "i64"])
def test_copy_follows_strides(backend: _C.Backend, generator: np.random.Generator, dtype: _C.DTypeName) -> None:
    numpy_type = {"f32": np.float32, "bf16": np.uint16, "i32": np.int32, "u8": np.uint8, "i64": np.int64}[dtype]
    array = generator.integers(0, 200, (3, 4, 5)).astype(numpy_type)
    source = _C.Tensor.from_numpy(array, dtype="bf16" if dtype == "bf16" else None)
    out = zeros(5, 4, 3, dtype=dtype)
    _C.copy(out.transpose(0, 2), source)
    np.testing.assert_array_equal(out.numpy(), array.transpose(2, 1, 0))
    _C.copy(out.narrow(0, 2, 2), source.transpose(0, 2).narrow(0, 0, 2))
    np.testing.assert_array_equal(out.numpy()[2:4], array.transpose(2, 1, 0)[:2])

"""attention: ragged queries over a paged cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from fermi import _C
from ops import reference
from ops.operands import FLOATS, indices, normal, operand, same_bits


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    head_dim: int
    block_size: int


SHAPES = [Shape(4, 2, 64, 16), Shape(6, 6, 20, 5), Shape(8, 1, 80, 16), Shape(40, 1, 8, 16), Shape(2, 1, 130, 3)]
CACHES: tuple[_C.DTypeName, ...] = (*FLOATS, "i8")
FEW = 4
"""Queries of a sequence that are computed in float32 whatever the cache holds."""
# (queries, context) of each sequence
BATCHES = {
    "decode": [(1, 1), (1, 64), (1, 130), (1, 65)],
    "prefill": [(5, 5), (70, 70)],
    "mixed": [(1, 200), (30, 100), (1, 3), (17, 17), (4, 77), (5, 64)],
    "long": [(1, 1500)],
    "chunk": [(40, 1100)],
}


class Batch:
    """Random queries, and a cache whose blocks are scattered and hold NaN wherever no context lies."""

    def __init__(
        self, generator: np.random.Generator, shape: Shape, sizes: list[tuple[int, int]], dtype: _C.DTypeName
    ) -> None:
        self.dtype = dtype
        self.queries = np.array([n for n, _ in sizes])
        self.contexts = np.array([c for _, c in sizes], np.int32)
        self.starts = np.concatenate([[0], np.cumsum(self.queries)]).astype(np.int32)
        used = [-(-c // shape.block_size) for c in self.contexts]
        blocks = generator.permutation(sum(used) + 2).astype(np.int32)
        self.tables = np.full((len(sizes), max(used) + 1), -1, np.int32)  # -1: never looked at
        cache = np.full((2, sum(used) + 2, shape.kv_heads, shape.block_size, shape.head_dim), np.nan)
        for s, count in enumerate(used):
            self.tables[s, :count] = blocks[sum(used[:s]) :][:count]
            for position in range(self.contexts[s]):
                block = self.tables[s, position // shape.block_size]
                cache[:, block, :, position % shape.block_size] = generator.standard_normal(
                    (2, shape.kv_heads, shape.head_dim)
                )
        self.q = normal(generator, int(self.queries.sum()), shape.heads, shape.head_dim)
        self.scale = shape.head_dim**-0.5
        self.scales: list[_C.Tensor | None] = [None, None]
        if dtype == "i8":
            integers, scales = reference.quantize_rows(np.nan_to_num(cache))
            scales[np.isnan(cache[..., 0])] = np.nan
            self.tensors = [_C.Tensor.from_numpy(part) for part in integers]
            self.scales = [_C.Tensor.from_numpy(part) for part in scales]
            self.keys, self.values = integers * scales[..., None].astype(np.float64)
        else:
            keys, values = (operand(part, dtype) for part in cache)
            self.tensors = [keys.tensor, values.tensor]
            self.keys, self.values = keys.values, values.values

    def run(self, window: int = 0, soft_cap: float = 0.0) -> _C.Tensor:
        return self._attention(self.q.tensor, self.tables, self.starts, self.contexts, window, soft_cap)

    def part(self, s: int, first: int, count: int, window: int) -> _C.Tensor:
        """The output of queries [first, first + count) of sequence s, computed by themselves."""
        context = self.contexts[s] - self.queries[s] + first + count
        q = self.q.tensor.narrow(0, int(self.starts[s]) + first, count)
        return self._attention(q, self.tables[s : s + 1], [0, count], [context], window)

    def _attention(
        self,
        q: _C.Tensor,
        tables: npt.ArrayLike,
        starts: npt.ArrayLike,
        contexts: npt.ArrayLike,
        window: int,
        soft_cap: float = 0.0,
    ) -> _C.Tensor:
        return _C.attention(
            q,
            *self.tensors,
            indices(tables),
            indices(starts),
            indices(contexts),
            scale=self.scale,
            window=window,
            soft_cap=soft_cap,
            key_scales=self.scales[0],
            value_scales=self.scales[1],
        )

    def expected(self, window: int = 0, soft_cap: float = 0.0) -> npt.NDArray[np.float64]:
        return reference.attention(
            self.q.values, self.keys, self.values, self.tables, self.starts, self.contexts, self.scale, window, soft_cap
        )

    def tolerance(self) -> npt.NDArray[np.float64]:
        """Of each row, [tokens, 1]: products of bf16 pairs round queries and weights to 2**-9; values are normal."""
        pairs = (self.queries > FEW) & (self.dtype in ("bf16", "i8"))
        return np.repeat(np.where(pairs, 2e-2, 5e-6), self.queries)[:, None]


def invariant(backend: _C.Backend, describe: Callable[[], _C.Tensor]) -> _C.Tensor:
    """What is described, computed batch-invariantly."""
    with _C.record(backend, batch_invariant=True) as step:
        out = describe()
    step.run()
    return out


@pytest.mark.parametrize("dtype", CACHES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("batch", BATCHES)
def test_matches_numpy(
    backend: _C.Backend, generator: np.random.Generator, dtype: _C.DTypeName, shape: Shape, batch: str
) -> None:
    operands = Batch(generator, shape, BATCHES[batch], dtype)
    for window in (0, 1, 50):
        expected = operands.expected(window)
        error = np.abs(operands.run(window).float32() - expected)
        assert np.all(error <= operands.tolerance()), error.max()
        exact = invariant(backend, lambda window=window: operands.run(window))  # type: ignore[misc]
        np.testing.assert_allclose(exact.float32(), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("dtype", CACHES)
@pytest.mark.parametrize("soft_cap", [0.5, 3.0, 50.0])
def test_scores_are_capped(
    opened: Callable[[int], _C.Backend], generator: np.random.Generator, dtype: _C.DTypeName, soft_cap: float
) -> None:
    operands = Batch(generator, Shape(6, 2, 40, 16), [(1, 140), (30, 100), (1, 3), (200, 1300)], dtype)
    operands.scale = 1.0  # scores of several times the smaller caps
    for threads in (1, 2):
        with opened(threads) as backend:
            for window in (0, 50):
                expected = operands.expected(window, soft_cap)
                error = np.abs(operands.run(window, soft_cap).float32() - expected)
                assert np.all(error <= 4 * operands.tolerance()), error.max()
                exact = invariant(backend, lambda window=window: operands.run(window, soft_cap))  # type: ignore[misc]
                np.testing.assert_allclose(exact.float32(), expected, rtol=0, atol=2e-5)
                assert not np.allclose(expected, operands.expected(window), atol=1e-3)


@pytest.mark.parametrize("queries", [3, 30])
def test_sharp_and_flat_weights(backend: _C.Backend, generator: np.random.Generator, queries: int) -> None:
    operands = Batch(generator, SHAPES[0], [(queries, 90)], "f32")
    for operands.scale in (0.0, 30.0, -30.0):
        np.testing.assert_allclose(operands.run().float32(), operands.expected(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bf16", "i8"])
@pytest.mark.parametrize("window", [0, 300])
@pytest.mark.parametrize("shape", [Shape(4, 1, 24, 16), Shape(3, 3, 64, 7)], ids=str)
def test_a_row_is_the_same_in_any_batch_and_chunk_where_that_is_asked_for(
    opened: Callable[[int], _C.Backend],
    generator: np.random.Generator,
    shape: Shape,
    window: int,
    dtype: _C.DTypeName,
) -> None:
    operands = Batch(generator, shape, [(60, 1130), (1, 700), (9, 9)], dtype)
    with opened(1) as backend:
        together = invariant(backend, lambda: operands.run(window))
    for threads in (1, 2, 3):
        with opened(threads) as backend:
            assert same_bits(invariant(backend, lambda: operands.run(window)), together)
            for s, first, count in [(0, 0, 60), (0, 0, 1), (0, 13, 1), (0, 14, 17), (0, 59, 1), (1, 0, 1), (2, 3, 6)]:
                part = invariant(backend, lambda s=s, first=first, count=count: operands.part(s, first, count, window))  # type: ignore[misc]
                rows = together.narrow(0, int(operands.starts[s]) + first, count)
                assert same_bits(part, rows), (threads, s, first, count)


@pytest.mark.parametrize("dtype", ["bf16", "i8", "f32"])
@pytest.mark.parametrize("window", [0, 300])
def test_a_sequence_is_the_same_in_any_company_and_for_any_number_of_threads(
    opened: Callable[[int], _C.Backend], generator: np.random.Generator, window: int, dtype: _C.DTypeName
) -> None:
    sizes = [(60, 1130), (1, 700), (9, 9), (3, 1200), (130, 130)]
    operands = Batch(generator, Shape(4, 2, 24, 16), sizes, dtype)
    with opened(1):
        together = operands.run(window)
    for threads in (1, 2, 3, 8):
        with opened(threads):
            assert same_bits(operands.run(window), together), threads
            for s, (count, _) in enumerate(sizes):
                rows = together.narrow(0, int(operands.starts[s]), count)
                assert same_bits(operands.part(s, 0, count, window), rows), (threads, s)


@pytest.mark.parametrize("dtype", CACHES)
def test_few_queries_are_exact_and_the_same_however_many(
    opened: Callable[[int], _C.Backend], generator: np.random.Generator, dtype: _C.DTypeName
) -> None:
    operands = Batch(generator, Shape(6, 2, 40, 16), [(FEW, 900)], dtype)
    with opened(2) as backend:
        together = operands.run()
        assert same_bits(together, invariant(backend, operands.run))
        for first, count in [(0, 1), (3, 1), (1, 3)]:
            assert same_bits(operands.part(0, first, count, 0), together.narrow(0, first, count))


@pytest.mark.parametrize("queries", [1, 40])
@pytest.mark.parametrize("shape", [Shape(8, 2, 64, 16), Shape(4, 2, 128, 16)], ids=str)
def test_integers_are_nearly_as_good_as_floats(
    opened: Callable[[int], _C.Backend], generator: np.random.Generator, shape: Shape, queries: int
) -> None:
    seed = generator.integers(2**32)
    exact, packed = (Batch(np.random.default_rng(seed), shape, [(queries, 600)], dtype) for dtype in ("f32", "i8"))
    np.testing.assert_array_equal(exact.q.values, packed.q.values)
    with opened(2):
        expected, found = exact.run().float32(), packed.run().float32()
    error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < 0.015
    assert np.sqrt(np.mean(error**2)) < 0.0115


def test_a_sequence_without_queries(backend: _C.Backend, generator: np.random.Generator) -> None:
    operands = Batch(generator, SHAPES[0], [(2, 20), (0, 10), (1, 5)], "f32")
    np.testing.assert_allclose(operands.run().float32(), operands.expected(), atol=5e-6)

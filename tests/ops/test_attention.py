"""attention: ragged queries over a paged cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from fermi import _C
from ops import reference
from ops.operands import FLOATS, Operand, indices, normal, operand, same_bits


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    head_dim: int
    block_size: int


SHAPES = [Shape(4, 2, 64, 16), Shape(6, 6, 20, 5), Shape(8, 1, 80, 16), Shape(40, 1, 8, 16), Shape(2, 1, 130, 3)]
# (queries, context) of each sequence
BATCHES = {
    "decode": [(1, 1), (1, 64), (1, 130), (1, 65)],
    "prefill": [(5, 5), (70, 70)],
    "mixed": [(1, 200), (30, 100), (1, 3), (17, 17)],
    "long": [(1, 1500)],
}


class Batch:
    """Random queries, and a cache whose blocks are scattered and hold NaN wherever no context lies."""

    def __init__(
        self, generator: np.random.Generator, shape: Shape, sizes: list[tuple[int, int]], dtype: _C.DTypeName
    ) -> None:
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
        self.keys: Operand = operand(cache[0], dtype)
        self.values: Operand = operand(cache[1], dtype)
        self.scale = shape.head_dim**-0.5

    def run(self, window: int = 0) -> _C.Tensor:
        return _C.attention(
            self.q.tensor,
            self.keys.tensor,
            self.values.tensor,
            indices(self.tables),
            indices(self.starts),
            indices(self.contexts),
            scale=self.scale,
            window=window,
        )

    def part(self, s: int, first: int, count: int, window: int) -> _C.Tensor:
        """The output of queries [first, first + count) of sequence s, computed by themselves."""
        context = self.contexts[s] - self.queries[s] + first + count
        return _C.attention(
            self.q.tensor.narrow(0, int(self.starts[s]) + first, count),
            self.keys.tensor,
            self.values.tensor,
            indices(self.tables[s : s + 1]),
            indices([0, count]),
            indices([context]),
            scale=self.scale,
            window=window,
        )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("batch", BATCHES)
def test_matches_numpy(
    backend: _C.Backend, generator: np.random.Generator, dtype: _C.DTypeName, shape: Shape, batch: str
) -> None:
    operands = Batch(generator, shape, BATCHES[batch], dtype)
    for window in (0, 1, 50):
        expected = reference.attention(
            operands.q.values,
            operands.keys.values,
            operands.values.values,
            operands.tables,
            operands.starts,
            operands.contexts,
            operands.scale,
            window,
        )
        # Products of bf16 pairs round queries and weights to 2**-9; values are normal numbers.
        tolerance = 2e-2 if dtype == "bf16" else 5e-6
        np.testing.assert_allclose(operands.run(window).float32(), expected, rtol=0, atol=tolerance)


def test_sharp_and_flat_weights(backend: _C.Backend, generator: np.random.Generator) -> None:
    operands = Batch(generator, SHAPES[0], [(3, 90)], "f32")
    for operands.scale in (0.0, 30.0, -30.0):
        expected = reference.attention(
            operands.q.values,
            operands.keys.values,
            operands.values.values,
            operands.tables,
            operands.starts,
            operands.contexts,
            operands.scale,
        )
        np.testing.assert_allclose(operands.run().float32(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("window", [0, 300])
@pytest.mark.parametrize("shape", [Shape(4, 1, 24, 16), Shape(3, 3, 64, 7)], ids=str)
def test_a_row_is_the_same_in_any_batch_and_chunk(
    opened: Callable[[int], _C.Backend], generator: np.random.Generator, shape: Shape, window: int
) -> None:
    operands = Batch(generator, shape, [(60, 1130), (1, 700), (9, 9)], "bf16")
    with opened(1):
        together = operands.run(window)
    for threads in (1, 2, 3):
        with opened(threads):
            assert same_bits(operands.run(window), together)
            for s, first, count in [(0, 0, 60), (0, 0, 1), (0, 13, 1), (0, 14, 17), (0, 59, 1), (1, 0, 1), (2, 3, 6)]:
                rows = together.narrow(0, int(operands.starts[s]) + first, count)
                assert same_bits(operands.part(s, first, count, window), rows), (threads, s, first, count)


def test_a_sequence_without_queries(backend: _C.Backend, generator: np.random.Generator) -> None:
    operands = Batch(generator, SHAPES[0], [(2, 20), (0, 10), (1, 5)], "f32")
    expected = reference.attention(
        operands.q.values,
        operands.keys.values,
        operands.values.values,
        operands.tables,
        operands.starts,
        operands.contexts,
        operands.scale,
    )
    np.testing.assert_allclose(operands.run().float32(), expected, atol=5e-6)

"""encoder_attention: every token of a ragged, packed batch to its whole sequence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from fermi import _C
from ops import reference
from ops.operands import indices, operand, same_bits


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    head_dim: int


SHAPES = [Shape(4, 4, 32), Shape(6, 2, 64), Shape(3, 1, 80), Shape(2, 2, 128), Shape(5, 5, 7), Shape(2, 1, 33)]
BATCHES = {
    "empty": [0, 0],
    "short": [1, 7, 0, 2, 33, 1],
    "ragged": [20, 200, 0, 1, 64, 128, 129],
    "long": [7, 513, 3],
}
TOLERANCE = 5e-6
"""Of sums of values that are normal, in float32."""


class Batch:
    """Random queries, keys and values: views of one matrix, as a fused product gives them."""

    def __init__(self, generator: np.random.Generator, shape: Shape, lengths: list[int]) -> None:
        self.lengths = lengths
        self.starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        widths = np.array([shape.heads, shape.kv_heads, shape.kv_heads]) * shape.head_dim
        fused = operand(generator.standard_normal((int(self.starts[-1]), int(widths.sum()))))
        ends = np.cumsum(widths)
        self.tensors = [
            fused.tensor.narrow(1, int(end - width), int(width)).unflatten(1, (-1, shape.head_dim))
            for end, width in zip(ends, widths, strict=True)
        ]
        self.values = [
            fused.values[:, end - width : end].reshape(-1, width // shape.head_dim, shape.head_dim)
            for end, width in zip(ends, widths, strict=True)
        ]
        self.scale = shape.head_dim**-0.5
        self.bias: npt.NDArray[np.float64] | None = None

    def add_bias(self, generator: np.random.Generator, reach: int) -> None:
        """A table that reaches so far."""
        self.bias = operand(2.0 * generator.standard_normal((self.tensors[0].shape[1], 2 * reach + 1))).values

    def run(self, window: int = 0, first: int = 0, last: int | None = None) -> _C.Tensor:
        """The output of sequences [first, last)."""
        starts = self.starts[first : len(self.starts) if last is None else last + 1]
        q, k, v = (x.narrow(0, int(starts[0]), int(starts[-1] - starts[0])) for x in self.tensors)
        bias = None if self.bias is None else operand(self.bias).tensor
        return _C.encoder_attention(q, k, v, indices(starts - starts[0]), scale=self.scale, window=window, bias=bias)

    def expected(self, window: int = 0) -> npt.NDArray[np.float64]:
        return reference.encoder_attention(*self.values, self.starts, self.scale, window, self.bias)

    def rows(self, out: _C.Tensor, s: int) -> _C.Tensor:
        """Those of sequence s."""
        return out.narrow(0, int(self.starts[s]), self.lengths[s])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("batch", BATCHES)
def test_matches_numpy(backend: _C.Backend, generator: np.random.Generator, shape: Shape, batch: str) -> None:
    operands = Batch(generator, shape, BATCHES[batch])
    for window in (0, 1, 5, 64, 140):
        np.testing.assert_allclose(operands.run(window).float32(), operands.expected(window), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
@pytest.mark.parametrize("reach", [0, 3, 64, 600])
@pytest.mark.parametrize("window", [0, 20])
def test_adds_a_bias_of_distance(
    backend: _C.Backend, generator: np.random.Generator, shape: Shape, reach: int, window: int
) -> None:
    operands = Batch(generator, shape, BATCHES["ragged"])
    without = operands.expected(window)
    operands.add_bias(generator, reach)
    expected = operands.expected(window)
    np.testing.assert_allclose(operands.run(window).float32(), expected, rtol=0, atol=2 * TOLERANCE)
    assert np.allclose(expected, without) == (reach == 0)  # the same for every key


def test_sharp_and_flat_weights(backend: _C.Backend, generator: np.random.Generator) -> None:
    operands = Batch(generator, SHAPES[0], [150, 9])
    for operands.scale in (0.0, 30.0, -30.0):
        np.testing.assert_allclose(operands.run().float32(), operands.expected(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("window", [0, 40])
@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_a_sequence_is_the_same_in_any_company_and_for_any_number_of_threads(
    opened: Callable[[int], _C.Backend],
    generator: np.random.Generator,
    shape: Shape,
    window: int,
    batch_invariant: bool,
) -> None:
    operands = Batch(generator, shape, [60, 700, 0, 9, 1, 130, 385])
    operands.add_bias(generator, 90)

    def computed(backend: _C.Backend, describe: Callable[[], _C.Tensor]) -> _C.Tensor:
        with _C.record(backend, batch_invariant=batch_invariant) as step:
            out = describe()
        step.run()
        return out

    with opened(1) as backend:
        together = computed(backend, lambda: operands.run(window))
    for threads in (1, 2, 3, 8):
        with opened(threads) as backend:
            assert same_bits(computed(backend, lambda: operands.run(window)), together), threads
            for s in range(len(operands.lengths)):
                alone = computed(backend, lambda s=s: operands.run(window, s, s + 1))  # type: ignore[misc]
                assert same_bits(alone, operands.rows(together, s)), (threads, s)


def test_reads_only_its_own_sequence(backend: _C.Backend, generator: np.random.Generator) -> None:
    operands = Batch(generator, SHAPES[0], [20, 40, 70])
    expected = [operands.rows(operands.run(), s).float32() for s in (0, 2)]
    for x in operands.tensors:
        _C.copy(x.narrow(0, 20, 40), operand(np.full((40, *x.shape[1:]), np.nan)).tensor)
    for s, rows in zip((0, 2), expected, strict=True):
        np.testing.assert_array_equal(operands.rows(operands.run(), s).float32(), rows)

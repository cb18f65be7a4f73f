"""A transformer layer as a recording: equal to running its ops one by one, bit for bit, with any number of threads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fermi import _C
from ops.operands import FLOATS, indices, normal, operand, same_bits, zeros

TOKENS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 11, 48, 4, 2, 24


class Layer:
    """Random weights and a cache; calling it computes one layer for two sequences of 8 and 3 tokens."""

    def __init__(self, generator: np.random.Generator, dtype: _C.DTypeName) -> None:
        def weight(rows: int, columns: int) -> _C.Weight:
            return operand(generator.standard_normal((rows, columns)) * columns**-0.5, dtype).weight

        self.table = weight(30, HIDDEN)
        self.qkv = [weight(heads * HEAD_DIM, HIDDEN) for heads in (HEADS, KV_HEADS, KV_HEADS)]
        self.output = weight(HIDDEN, HEADS * HEAD_DIM)
        self.gate_up = [weight(100, HIDDEN), weight(100, HIDDEN)]
        self.down = weight(HIDDEN, 100)
        self.norms = [normal(generator, HIDDEN, dtype=dtype).tensor for _ in range(2)]
        self.dtype = dtype
        self.frequencies = operand(100.0 ** (-np.arange(12) / 12)[None]).tensor

    def __call__(self) -> _C.Tensor:
        positions = indices([*range(8), *range(3)])
        keys, values = (zeros(5, KV_HEADS, 4, HEAD_DIM, dtype=self.dtype) for _ in range(2))
        h = _C.embed(indices(range(TOKENS)), self.table)
        fused = _C.linear(h, self.qkv, norm=self.norms[0], epsilon=1e-6)
        q, k, v = (part.unflatten(1, [-1, HEAD_DIM]) for part in fused.split([96, 48, 48]))
        angles = _C.rope_angles(positions, indices([8] * 8 + [3] * 3), self.frequencies)
        _C.rope_append(q, k, v, angles, indices([*range(8), *range(12, 15)]), keys, values)
        tables, starts, contexts = indices([[0, 1], [3, 0]]), indices([0, 8, 11]), indices([8, 3])
        attended = _C.attention(q, keys, values, tables, starts, contexts, scale=HEAD_DIM**-0.5)
        _C.linear(attended, self.output, residual=h)
        gated = _C.linear(h, self.gate_up, norm=self.norms[1], epsilon=1e-6, activation="silu")
        return _C.linear(gated, self.down)


@pytest.mark.parametrize("dtype", FLOATS)
def test_recorded_equals_eager(
    opened: Callable[[int], _C.Backend], generator: np.random.Generator, dtype: _C.DTypeName
) -> None:
    layer = Layer(generator, dtype)
    with opened(1):
        eager = layer()
    for threads in (1, 2, 3):
        with _C.record(opened(threads)) as step:
            recorded = layer()
        for _ in range(3):
            step.run()
            assert same_bits(recorded, eager), f"{threads} threads"

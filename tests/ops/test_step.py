"""Transformer layers as recordings: equal to running their ops one by one, bit for bit, with any number of threads."""

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


class Encoder:
    """One layer over two sequences of 8 and 3 tokens, and a vector of each; norms and embeddings are added up."""

    def __init__(self, generator: np.random.Generator, dtype: _C.DTypeName) -> None:
        def weight(rows: int, columns: int) -> _C.Weight:
            return operand(generator.standard_normal((rows, columns)) * columns**-0.5, dtype).weight

        self.tokens, self.types = weight(30, HIDDEN), weight(2, HIDDEN)
        self.qkv = [weight(HEADS * HEAD_DIM, HIDDEN) for _ in range(3)]
        self.output = weight(HIDDEN, HEADS * HEAD_DIM)
        self.up, self.down, self.dense = weight(100, HIDDEN), weight(HIDDEN, 100), weight(HIDDEN, HIDDEN)
        self.norms = [(normal(generator, HIDDEN, dtype=dtype).tensor, normal(generator, HIDDEN).tensor) for _ in "123"]
        self.bias = normal(generator, 100, dtype=dtype).tensor
        self.frequencies = operand(100.0 ** (-np.arange(12) / 12)[None]).tensor

    def __call__(self) -> _C.Tensor:
        starts, lengths = indices([0, 8, 11]), indices([8] * 8 + [3] * 3)
        h = _C.embed(indices(range(TOKENS)), self.tokens, scale=HIDDEN**0.5)
        _C.embed(indices([0, 1] * 5 + [0]), self.types, residual=h)
        weight, bias = self.norms[0]
        fused = _C.linear(h, self.qkv, norm=weight, norm_kind="layer", norm_bias=bias, epsilon=1e-5)
        q, k, v = (part.unflatten(1, [HEADS, HEAD_DIM]) for part in fused.split([HEADS * HEAD_DIM] * 3))
        angles = _C.rope_angles(indices([*range(8), *range(3)]), lengths, self.frequencies)
        for x in (q, k):
            _C.rope(x, angles)
        attended = _C.encoder_attention(q, k, v, starts, scale=HEAD_DIM**-0.5, window=5)
        _C.layer_norm(_C.linear(attended, self.output), *self.norms[1], 1e-5, residual=h)
        _C.linear(_C.linear(h, self.up, self.bias, activation="gelu"), self.down, scale=0.5, residual=h)
        _C.rms_norm(_C.linear(h, self.dense), self.norms[2][0], 1e-5, residual=h)
        pooled = _C.pool(h, starts, pooling="weighted_mean")
        return _C.linear(pooled, self.dense, activation="tanh", soft_cap=0.75)


@pytest.mark.parametrize("kind", [Layer, Encoder])
@pytest.mark.parametrize("dtype", FLOATS)
def test_recorded_equals_eager(
    opened: Callable[[int], _C.Backend],
    generator: np.random.Generator,
    dtype: _C.DTypeName,
    kind: type[Layer] | type[Encoder],
) -> None:
    layer = kind(generator, dtype)
    with opened(1):
        eager = layer()
    for threads in (1, 2, 3):
        with _C.record(opened(threads)) as step:
            recorded = layer()
        for _ in range(3):
            step.run()
            assert same_bits(recorded, eager), f"{threads} threads"

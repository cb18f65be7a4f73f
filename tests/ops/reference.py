"""The meaning of every op, in NumPy and double precision: what each kernel of each backend must compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int32]


def embed(token_ids: Integers, table: Doubles) -> Doubles:
    """[tokens], [vocabulary, hidden] -> [tokens, hidden]."""
    return table[token_ids]


def rms_norm(x: Doubles, weight: Doubles, epsilon: float) -> Doubles:
    """[.., dim], [dim] -> [.., dim] (arXiv 1910.07467)."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon) * weight


def linear(x: Doubles, weights: Sequence[Doubles], biases: Sequence[Doubles | None]) -> Doubles:
    """[tokens, columns], each [rows, columns] and None or [rows] -> [tokens, sum of rows]."""
    parts = []
    for weight, bias in zip(weights, biases, strict=True):
        parts.append(x @ weight.T + (0.0 if bias is None else bias))
    return np.concatenate(parts, axis=1)


def rope_frequencies(
    frequencies: npt.NDArray[np.float32], length: int, rule: str, base: float, factor: float, original_length: int
) -> npt.NDArray[np.float32]:
    """Frequencies, [half], of a token whose sequence has ``length`` tokens; float32 where Transformers has tensors."""
    if rule == "longrope":
        return frequencies[1 if length > original_length else 0]
    if rule == "dynamic_ntk" and length > original_length:
        dim = 2 * frequencies.shape[1]
        stretched = base * (factor * length / original_length - (factor - 1.0)) ** (dim / (dim - 2))
        exponents = (np.arange(0, dim, 2) / np.float32(dim)).astype(np.float32)
        return (1.0 / np.float32(stretched) ** exponents).astype(np.float32)
    return frequencies[0]


def rope_angles(
    positions: Integers,
    lengths: Integers,
    frequencies: npt.NDArray[np.float32],
    rule: str = "fixed",
    attention_factor: float = 1.0,
    base: float = 0.0,
    factor: float = 1.0,
    original_length: int = 0,
) -> Doubles:
    """[tokens] twice, [1 or 2, half] -> [tokens, 2 * half]: cosines, then sines, of float32 products."""
    rows = []
    for position, length in zip(positions, lengths, strict=True):
        chosen = rope_frequencies(frequencies, int(length), rule, base, factor, original_length)
        angles = (np.float32(position) * chosen).astype(np.float64)
        rows.append(np.concatenate([np.cos(angles), np.sin(angles)]) * attention_factor)
    return np.stack(rows)


def rope(x: Doubles, angles: Doubles) -> Doubles:
    """Turns the pairs (i, half + i) of [tokens, heads, head_dim]; elements from 2 * half on stay (arXiv 2104.09864)."""
    half = angles.shape[1] // 2
    cosines, sines = angles[:, None, :half], angles[:, None, half:]
    first, second = x[..., :half], x[..., half : 2 * half]
    turned = (first * cosines - second * sines, second * cosines + first * sines)
    return np.concatenate([*turned, x[..., 2 * half :]], axis=-1)


def append(cache: Doubles, slots: Integers, x: Doubles) -> Doubles:
    """The cache [blocks, kv_heads, block_size, head_dim] with x [tokens, kv_heads, head_dim] in the slots."""
    cache = cache.copy()
    for slot, row in zip(slots, x, strict=True):
        if slot >= 0:
            cache[slot // cache.shape[2], :, slot % cache.shape[2]] = row
    return cache


def quantize_rows(x: Doubles) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """[.., head_dim] -> int8 [.., head_dim], scales [..]: what an i8 cache holds of keys or values."""
    scales = np.abs(x).max(axis=-1) / 127
    integers = np.rint(np.divide(x, scales[..., None], out=np.zeros_like(x), where=scales[..., None] > 0))
    return integers.astype(np.int8), scales.astype(np.float32)


def attention(
    q: Doubles,
    key_cache: Doubles,
    value_cache: Doubles,
    block_tables: Integers,
    query_starts: Integers,
    context_lengths: Integers,
    scale: float,
    window: int = 0,
) -> Doubles:
    """[tokens, heads, head_dim] over caches [blocks, kv_heads, block_size, head_dim] -> [tokens, heads * head_dim]."""
    group = q.shape[1] // key_cache.shape[1]
    out = np.empty_like(q)
    for s, context in enumerate(context_lengths):
        used = block_tables[s, : -(-int(context) // key_cache.shape[2])]
        # [context, heads, head_dim]
        keys, values = (
            np.repeat(np.concatenate([cache[b].transpose(1, 0, 2) for b in used])[:context], group, axis=1)
            for cache in (key_cache, value_cache)
        )
        first, last = int(query_starts[s]), int(query_starts[s + 1])
        for row in range(first, last):
            end = int(context) - last + row + 1
            begin = max(0, end - window) if window else 0
            scores = scale * np.einsum("hd,khd->hk", q[row], keys[begin:end])
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            out[row] = np.einsum("hk,khd->hd", weights, values[begin:end])
    return out.reshape(q.shape[0], -1)


def _gelu(x: Doubles) -> Doubles:
    return 0.5 * x * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))


def _gelu_tanh(x: Doubles) -> Doubles:
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def _silu(x: Doubles) -> Doubles:
    return x * 0.5 * (1.0 + np.tanh(0.5 * x))


def _relu(x: Doubles) -> Doubles:
    return np.maximum(x, 0.0)


ACTIVATIONS: dict[str, Callable[[Doubles], Doubles]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": _relu,
}


def gated_activation(x: Doubles, activation: str) -> Doubles:
    """[tokens, 2n] -> [tokens, n]."""
    n = x.shape[1] // 2
    return ACTIVATIONS[activation](x[:, :n]) * x[:, n:]


def gather_rows(x: Doubles, rows: Integers) -> Doubles:
    """[tokens, dim], [n] -> [n, dim]."""
    return x[rows]

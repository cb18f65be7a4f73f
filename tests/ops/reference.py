"""The meaning of every op, in NumPy and double precision: what each kernel of each backend must compute."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fermi import _C

Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int32]


def embed(token_ids: Integers, table: Doubles, scale: float = 1.0) -> Doubles:
    """[tokens], [vocabulary, hidden] -> [tokens, hidden]."""
    return scale * table[token_ids]


def rms_norm(x: Doubles, weight: Doubles, epsilon: float) -> Doubles:
    """[.., dim], [dim] -> [.., dim] (arXiv 1910.07467)."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon) * weight


def layer_norm(x: Doubles, weight: Doubles, bias: Doubles | None, epsilon: float) -> Doubles:
    """[.., dim], [dim], [dim] -> [.., dim] (arXiv 1607.06450)."""
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + epsilon) * weight + (
        0.0 if bias is None else bias
    )


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
    soft_cap: float = 0.0,
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
            if soft_cap:
                scores = soft_cap * np.tanh(scores / soft_cap)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            out[row] = np.einsum("hk,khd->hd", weights, values[begin:end])
    return out.reshape(q.shape[0], -1)


def encoder_attention(
    q: Doubles,
    k: Doubles,
    v: Doubles,
    starts: Integers,
    scale: float,
    window: int = 0,
    bias: Doubles | None = None,
) -> Doubles:
    """[tokens, heads, head_dim] over [tokens, kv_heads, head_dim], every token to its whole sequence."""
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    out = np.zeros_like(q)
    for first, last in itertools.pairwise(starts):
        distance = np.arange(last - first) - np.arange(last - first)[:, None]  # [query, key]
        scores = scale * np.einsum("qhd,khd->hqk", q[first:last], k[first:last])
        if bias is not None:
            reach = bias.shape[1] // 2
            scores += bias[:, np.clip(distance, -reach, reach) + reach]
        if window:
            scores[:, np.abs(distance) > window] = -np.inf
        weights = np.exp(scores - scores.max(axis=2, keepdims=True, initial=-np.inf))
        weights /= weights.sum(axis=2, keepdims=True)
        out[first:last] = np.einsum("hqk,khd->qhd", weights, v[first:last])
    return out.reshape(q.shape[0], q.shape[1] * q.shape[2])


def _gelu(x: Doubles) -> Doubles:
    return 0.5 * x * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))


def _gelu_tanh(x: Doubles) -> Doubles:
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def _silu(x: Doubles) -> Doubles:
    return x * 0.5 * (1.0 + np.tanh(0.5 * x))


def _relu(x: Doubles) -> Doubles:
    return np.maximum(x, 0.0)


def _sigmoid(x: Doubles) -> Doubles:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


ACTIVATIONS: dict[str, Callable[[Doubles], Doubles]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": _relu,
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
}


def gate(x: Doubles, y: Doubles, activation: str) -> Doubles:
    """[tokens, n] twice -> [tokens, n]."""
    return ACTIVATIONS[activation](x) * y


def finished(x: Doubles, scale: float, soft_cap: float) -> Doubles:
    """What a linear makes of its results last; soft_cap 0: none."""
    return soft_cap * np.tanh(scale * x / soft_cap) if soft_cap else scale * x


def pool(x: Doubles, starts: Integers, pooling: str) -> Doubles:
    """[tokens, dim], [sequences + 1] -> [sequences, dim]; zeros for an empty sequence."""
    pooled = []
    for begin, end in itertools.pairwise(starts):
        tokens, length = x[begin:end], int(end - begin)
        if length == 0:
            pooled.append(np.zeros(x.shape[1]))
        elif pooling == "max":
            pooled.append(tokens.max(axis=0))
        elif pooling == "weighted_mean":
            pooled.append(np.average(tokens, axis=0, weights=np.arange(1, length + 1)))
        else:
            pooled.append(tokens.sum(axis=0) / (length if pooling == "mean" else math.sqrt(length)))
    return np.stack(pooled)


def rounded_to_int8(x: Doubles, group: int) -> Doubles:
    """What packed weights meet: [tokens, columns], each token and group (0: 128) of columns on a scale of its own."""
    group = group or 128
    result = np.empty_like(x)
    for start in range(0, x.shape[1], group):
        part = x[:, start : start + group].astype(np.float32)
        largest = np.abs(part).max(axis=1, keepdims=True)
        inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
        whole = np.clip(np.rint(part * inverse), -127, 127).astype(np.float64)
        result[:, start : start + group] = whole * (largest / np.float32(127)).astype(np.float64)
    return result


def gather_rows(x: Doubles, rows: Integers) -> Doubles:
    """[tokens, dim], [n] -> [n, dim]."""
    return x[rows]


class Packed(NamedTuple):
    """A quantized matrix: w[r, c] = scales[r, c // group] * (levels[r, c] - zeros[r, c // group])."""

    levels: Integers  # [rows, columns]
    scales: npt.NDArray[np.float32]  # [rows, groups], exact in the dtype that they are kept in
    zeros: Integers  # [rows, groups]
    group: int  # columns that share a scale

    def dequantized(self) -> Doubles:
        """[rows, columns]."""
        columns = np.arange(self.levels.shape[1]) // self.group
        return self.scales.astype(np.float64)[:, columns] * (self.levels - self.zeros[:, columns])


STRIP = 16


def _strips(x: npt.NDArray[Any], width: int) -> npt.NDArray[Any]:
    """[rows, columns] padded with zeros -> [strips, STRIP, columns / width, width]."""
    rows, columns = x.shape
    padded = np.zeros((-(-rows // STRIP) * STRIP, -(-columns // width) * width), x.dtype)
    padded[:rows, :columns] = x
    return padded.reshape(-1, STRIP, padded.shape[1] // width, width)


def pack(
    packed: Packed, weight_format: str, scales: str, symmetric: bool
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.uint8] | None]:
    """Data, scales and zeros as weight.h lays them out; what only pads is zero."""
    if weight_format == "int8":
        data: npt.NDArray[Any] = _strips(packed.levels.astype(np.int8), 4).transpose(0, 2, 1, 3)
    else:
        halves = _strips(packed.levels.astype(np.uint8), 8).transpose(0, 2, 1, 3)
        data = halves[..., :4] | halves[..., 4:] << 4
    kept = packed.scales.astype(np.float16 if scales == "f16" else np.float32)
    parts = [
        np.ascontiguousarray(_strips(part, 1)[..., 0].transpose(0, 2, 1))
        for part in (kept, packed.zeros.astype(np.uint8))
    ]
    return np.ascontiguousarray(data), parts[0], None if symmetric else parts[1]


def unpack(weight: _C.Weight) -> Packed:
    """The numbers of a packed weight."""
    rows, columns = weight.shape
    data = weight.data.numpy()
    if weight.format == "int4":
        data = np.concatenate([data & 15, data >> 4], axis=3)
    levels = data.transpose(0, 2, 1, 3).reshape(data.shape[0] * STRIP, -1)[:rows, :columns].astype(np.int32)

    def by_row(part: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return part.transpose(0, 2, 1).reshape(part.shape[0] * STRIP, -1)[:rows]

    assert weight.scales is not None
    scales = by_row(weight.scales.numpy()).astype(np.float32)
    if weight.zeros is None:
        zeros = np.full(scales.shape, 8 if weight.format == "int4" else 0, np.int32)
    else:
        zeros = by_row(weight.zeros.numpy()).astype(np.int32)
    return Packed(levels, scales, zeros, weight.group or max(1, columns))


@np.errstate(all="ignore")
def quantize(
    x: npt.NDArray[np.float32],
    weight_format: str,
    group: int = 0,
    symmetric: bool = True,
    scales: str = "f16",
    candidates: int = 1,
    importance: npt.NDArray[np.float32] | None = None,
) -> Packed:
    """A float matrix as integers, in single precision and in the order in which kernels must add.

    A scale is rounded before levels are found with it, and is zero only for a group of zeros. The first candidate takes
    the largest element to the last level (int4: to -8 of [-8, 7]; asymmetric: the range to 15 levels); others are parts
    of it; the last is what fits the levels of the best of these. The first with the least squared error is taken.
    """
    single = np.float32
    rows, columns = x.shape
    group = group or max(1, columns)
    groups = -(-columns // group)
    padded = np.zeros((rows, groups * group), single)
    padded[:, :columns] = x
    w = padded.reshape(rows * groups, group)
    weights = np.zeros(groups * group, single)
    weights[:columns] = 1 if importance is None else importance
    weights = np.tile(weights.reshape(groups, group), (rows, 1))
    limits = (2**-24, 65504) if scales == "f16" else (np.finfo(single).tiny, np.finfo(single).max)

    def rounded(wanted: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        bounded = np.copysign(np.clip(np.abs(wanted), *(single(limit) for limit in limits)), wanted)
        return np.where(wanted == 0, 0, bounded).astype(np.float16 if scales == "f16" else single).astype(single)

    def inverse(scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.where(scale == 0, single(0), single(1) / scale)

    def levels_of(scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.rint(np.clip(w * inverse(scale)[:, None], lowest[:, None], highest[:, None]))

    def total(terms: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.add.accumulate(weights * terms, axis=1, dtype=single)[:, -1]

    def error(scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return total((w - levels_of(scale) * scale[:, None]) ** 2)

    largest = w[np.arange(len(w)), np.abs(w).argmax(axis=1)]
    if weight_format == "int8":
        first, zeros = np.abs(largest) / single(127), np.zeros(len(w), single)
        lowest, highest = zeros - 127, zeros + 127
    elif symmetric:
        first, zeros = largest / single(-8), np.full(len(w), 8, single)
        lowest, highest = zeros - 16, zeros - 1
    else:
        low, high = np.minimum(w.min(axis=1), 0), np.maximum(w.max(axis=1), 0)
        first = (high - low) / single(15)
        zeros = np.rint(np.clip(-low * inverse(rounded(first)), single(0), single(15)))
        lowest, highest = -zeros, 15 - zeros
    best = rounded(first)
    least = error(best)
    for i in range(1, candidates):
        if i < candidates - 1:
            part = single(0.875) + single(0.625) * single(i - 1) / single(max(1, candidates - 3))
            scale = rounded(first / part)
        else:
            levels = levels_of(best)
            products, squares = total(w * levels), total(levels * levels)
            scale = rounded(np.where(squares > 0, products / squares, best))
        errors = error(scale)
        best = np.where(errors < least, scale, best)
        least = np.where(errors < least, errors, least)
    levels = (levels_of(best) + zeros[:, None]).astype(np.int32).reshape(rows, -1)[:, :columns]
    return Packed(levels, best.reshape(rows, groups), zeros.astype(np.int32).reshape(rows, groups), group)


def route(logits: Doubles, k: int, scoring: str, normalize: bool, scale: float) -> tuple[Integers, Doubles]:
    """[tokens, experts] -> the k best of each token, in falling order, the first of equal ones first; their weights."""
    if scoring == "softmax":
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
    else:
        scores = 1 / (1 + np.exp(-logits))
    experts = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    weights = np.take_along_axis(scores, experts, axis=1)
    if normalize:
        weights /= weights.sum(axis=1, keepdims=True)
    return experts.astype(np.int32), scale * weights


def expert_linear(
    x: Doubles, weights: Sequence[Sequence[Doubles]], experts: Integers, activation: str | None = None
) -> Doubles:
    """Rows [tokens * k, columns], each by the one or two [rows, columns] of its expert of [tokens, k]."""
    out = np.empty((len(x), len(weights[0][0])))
    for row, expert in enumerate(experts.reshape(-1)):
        first, *others = (matrix @ x[row] for matrix in weights[expert])
        first = first if activation is None else ACTIVATIONS[activation](first)
        out[row] = first * others[0] if others else first
    return out


def combine(rows: Doubles, route_weights: Doubles) -> Doubles:
    """[tokens * k, rows], [tokens, k] -> [tokens, rows]: each token's, times their weights, added up."""
    return np.einsum("tkr,tk->tr", rows.reshape(*route_weights.shape, rows.shape[1]), route_weights)

"""rope_angles, rope and rope_append."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fermi import _C
from ops import reference
from ops.operands import FLOATS, indices, normal, operand, same_bits, zeros

RULES: dict[str, dict[str, Any]] = {
    "fixed": {"attention_factor": 1.25},
    "dynamic_ntk": {"base": 10000.0, "factor": 2.0, "original_length": 100},
    "longrope": {"attention_factor": 1.1, "original_length": 100},
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("half", [2, 16, 33])
def test_angles_match_numpy(
    backend: _C.Backend, generator: np.random.Generator, rule: _C.RopeRuleName, half: int
) -> None:
    positions = np.array([0, 1, 17, 99, 100, 101, 8000], np.int32)
    lengths = np.array([1, 100, 100, 100, 101, 350, 8001], np.int32)
    frequencies = 10000.0 ** (-np.arange(half, dtype=np.float32) / half)
    table = np.stack([frequencies, frequencies / 4]) if rule == "longrope" else frequencies[None]
    out = _C.rope_angles(indices(positions), indices(lengths), operand(table).tensor, rule=rule, **RULES[rule])
    expected = reference.rope_angles(positions, lengths, table.astype(np.float32), rule, **RULES[rule])
    # A frequency that is a power may differ in its last bit, which a position multiplies.
    tolerance = 8001 * 2e-7 if rule == "dynamic_ntk" else 3e-7
    np.testing.assert_allclose(out.float32(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("tokens", [1, 7, 513])
@pytest.mark.parametrize(("heads", "head_dim", "half"), [(4, 64, 32), (3, 20, 5), (1, 3, 1), (2, 80, 20), (2, 6, 0)])
def test_rotates_in_place(
    backend: _C.Backend, generator: np.random.Generator, tokens: int, heads: int, head_dim: int, half: int
) -> None:
    fused, angles = normal(generator, tokens, heads * head_dim + 9), normal(generator, tokens, 2 * half + 4)
    x = fused.tensor.narrow(1, 5, heads * head_dim).unflatten(1, [heads, head_dim])
    expected = fused.values.copy()
    view = expected[:, 5 : 5 + heads * head_dim].reshape(tokens, heads, head_dim)
    turned = reference.rope(view, angles.values[:, 1 : 1 + 2 * half])
    expected[:, 5 : 5 + heads * head_dim] = turned.reshape(tokens, -1)
    _C.rope(x, angles.tensor.narrow(1, 1, 2 * half))
    np.testing.assert_allclose(fused.tensor.float32(), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(x.float32()[..., 2 * half :], view[..., 2 * half :])


def test_rotates_as_where_keys_are_appended(backend: _C.Backend, generator: np.random.Generator) -> None:
    x, angles = normal(generator, 5, 3, 20), normal(generator, 5, 12).tensor
    q, k = operand(x.values).tensor, operand(x.values).tensor
    keys, values = zeros(1, 3, 5, 20), zeros(1, 3, 5, 20)
    _C.rope_append(q, k, k, angles, indices(range(5)), keys, values)
    _C.rope(x.tensor, angles)
    assert same_bits(x.tensor, q)
    np.testing.assert_array_equal(keys.float32()[0].transpose(1, 0, 2), x.tensor.float32())


def test_rope_refuses_what_does_not_fit() -> None:
    fused, angles = zeros(2, 24), zeros(2, 8)
    x = fused.unflatten(1, [3, 8])
    for message, arguments in {
        r"x must be f32 \[tokens, heads, head_dim\], not f32\[2, 8\]": (angles, angles),
        r"angles \[3, 8\] and x \[2, 3, 8\] do not fit: 3 and 2": (x, zeros(3, 8)),
        r"angles \[2, 10\] must be \[tokens, 2 \* half\] with 2 \* half at most 8": (x, zeros(2, 10)),
        r"angles \[2, 7\] must be": (x, zeros(2, 7)),
        "x and angles share memory": (x, fused.narrow(1, 8, 8)),
    }.items():
        with pytest.raises(ValueError, match=f"rope: {message}"):
            _C.rope(*arguments)


@pytest.mark.parametrize("norms", [False, True], ids=["plain", "norms"])
@pytest.mark.parametrize("dtype", [*FLOATS, "i8"])
@pytest.mark.parametrize("head_dim", [3, 20, 64])
def test_without_angles_nothing_turns(
    backend: _C.Backend, generator: np.random.Generator, dtype: _C.DTypeName, norms: bool, head_dim: int
) -> None:
    slots = indices([5, -1, 0])

    def append(angles: _C.Tensor | None) -> list[_C.Tensor]:
        q, k, v = (operand(x).tensor for x in numbers)
        caches = [zeros(2, 2, 4, head_dim, dtype=dtype) for _ in range(2)]
        scales = [zeros(2, 2, 4) if dtype == "i8" else None for _ in range(2)]
        weights = [operand(norm).tensor if norms else None for norm in norm_numbers]
        _C.rope_append(
            q,
            k,
            v,
            angles,
            slots,
            *caches,
            key_scales=scales[0],
            value_scales=scales[1],
            q_norm=weights[0],
            k_norm=weights[1],
            epsilon=1e-3,
        )
        return [q, *caches, *(scale for scale in scales if scale is not None)]

    numbers = [generator.standard_normal((3, heads, head_dim)) for heads in (4, 2, 2)]
    norm_numbers = [generator.standard_normal(head_dim) for _ in range(2)]
    still = operand(np.tile(np.repeat([1.0, 0.0], head_dim // 2), (3, 1)))  # cosines of 1, sines of 0
    for given, expected in zip(append(None), append(still.tensor), strict=True):
        np.testing.assert_array_equal(given.numpy(), expected.numpy())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "half", "block_size"), [(4, 2, 64, 32, 16), (3, 1, 20, 5, 3)]
)
def test_rotates_and_appends(
    backend: _C.Backend,
    generator: np.random.Generator,
    dtype: _C.DTypeName,
    heads: int,
    kv_heads: int,
    head_dim: int,
    half: int,
    block_size: int,
) -> None:
    tokens, blocks = 7, 6
    # Views of a fused projection.
    fused = normal(generator, tokens, (heads + 2 * kv_heads) * head_dim)
    sizes = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    views = [part.unflatten(1, [-1, head_dim]) for part in fused.tensor.split(sizes)]
    q, k, v = (part.reshape(tokens, -1, head_dim) for part in np.split(fused.values, np.cumsum(sizes)[:2], axis=1))
    angles = normal(generator, tokens, 2 * half)
    slots = np.array([0, 5, -1, blocks * block_size - 1, 7, -1, 2], np.int32)
    keys, values = (zeros(blocks, kv_heads, block_size, head_dim, dtype=dtype) for _ in range(2))
    _C.rope_append(*views, angles.tensor, indices(slots), keys, values)

    empty = np.zeros(keys.shape)
    tolerance = {"f32": 1e-6, "f16": 2e-3, "bf16": 1.6e-2}[dtype]
    np.testing.assert_allclose(views[0].float32(), reference.rope(q, angles.values), rtol=1e-6, atol=1e-6)
    expected = reference.append(empty, slots, reference.rope(k, angles.values))
    np.testing.assert_allclose(keys.float32(), expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(values.float32(), reference.append(empty, slots, v), rtol=tolerance / 2, atol=1e-6)
    np.testing.assert_array_equal(views[1].float32(), k)
    np.testing.assert_array_equal(views[2].float32(), v)


@pytest.mark.parametrize("weights", FLOATS)
@pytest.mark.parametrize(("head_dim", "half"), [(64, 32), (20, 5)])
def test_norms_each_head_before_it_turns(
    backend: _C.Backend, generator: np.random.Generator, weights: _C.DTypeName, head_dim: int, half: int
) -> None:
    q, k, v = (normal(generator, 5, heads, head_dim) for heads in (6, 2, 2))
    q_norm, k_norm = (normal(generator, head_dim, dtype=weights) for _ in range(2))
    angles, slots = normal(generator, 5, 2 * half), np.array([0, 5, -1, 3, 7], np.int32)
    keys, values = (zeros(2, 2, 4, head_dim) for _ in range(2))
    _C.rope_append(
        q.tensor,
        k.tensor,
        v.tensor,
        angles.tensor,
        indices(slots),
        keys,
        values,
        q_norm=q_norm.tensor,
        k_norm=k_norm.tensor,
        epsilon=0.1,
    )
    turned = [
        reference.rope(reference.rms_norm(x.values, norm.values, 0.1), angles.values)
        for x, norm in ((q, q_norm), (k, k_norm))
    ]
    np.testing.assert_allclose(q.tensor.float32(), turned[0], rtol=0, atol=5e-6)
    empty = np.zeros(keys.shape)
    np.testing.assert_allclose(keys.float32(), reference.append(empty, slots, turned[1]), rtol=0, atol=5e-6)
    np.testing.assert_array_equal(values.float32(), reference.append(empty, slots, v.values))
    np.testing.assert_array_equal(k.tensor.float32(), k.values)


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 16), (3, 16), (4, 6)])
def test_heads_that_lie_between_each_other(
    backend: _C.Backend, generator: np.random.Generator, heads: int, head_dim: int
) -> None:
    """Query, key and value of the first head, then those of the second: as if each stood apart."""
    together, angles = normal(generator, 5, heads, 3 * head_dim), normal(generator, 5, head_dim).tensor
    apart = [operand(part).tensor for part in np.split(together.values.copy(), 3, axis=-1)]
    caches = [[zeros(1, heads, 5, head_dim) for _ in range(2)] for _ in range(2)]
    views = together.tensor.split([head_dim] * 3)
    for (q, k, v), cache in zip((views, apart), caches, strict=True):
        _C.rope_append(q, k, v, angles, indices(range(5)), *cache)
    assert same_bits(views[0], apart[0])
    for one, other in zip(*caches, strict=True):
        assert same_bits(one, other)
    np.testing.assert_array_equal(views[1].float32(), apart[1].float32())

    shifted = together.tensor.narrow(2, head_dim - 1, head_dim)
    with pytest.raises(ValueError, match="q and k share memory"):
        _C.rope_append(views[0], shifted, views[2], angles, indices(range(5)), *caches[0])


@pytest.mark.parametrize("norms", [False, True], ids=["plain", "norms"])
@pytest.mark.parametrize(("head_dim", "half"), [(64, 32), (20, 5), (3, 1)])
def test_appends_integers_with_their_scales(
    backend: _C.Backend, generator: np.random.Generator, head_dim: int, half: int, norms: bool
) -> None:
    q, k, v = (normal(generator, 5, 2, head_dim) for _ in range(3))
    v.tensor.numpy()[1] = v.values[1] = 0  # a row of zeros
    ones = operand(np.ones(head_dim)).tensor
    angles, slots = normal(generator, 5, 2 * half), np.array([0, 5, -1, 3, 7], np.int32)
    keys, values = (zeros(2, 2, 4, head_dim, dtype="i8") for _ in range(2))
    key_scales, value_scales = (zeros(2, 2, 4) for _ in range(2))
    _C.rope_append(
        q.tensor,
        k.tensor,
        v.tensor,
        angles.tensor,
        indices(slots),
        keys,
        values,
        key_scales=key_scales,
        value_scales=value_scales,
        q_norm=ones if norms else None,
        k_norm=ones if norms else None,
        epsilon=1e-6,
    )
    turned = reference.rope(reference.rms_norm(k.values, np.ones(head_dim), 1e-6) if norms else k.values, angles.values)
    empty = np.zeros(keys.shape)
    for x, cache, scales in ((turned, keys, key_scales), (v.values, values, value_scales)):
        integers, expected = reference.quantize_rows(reference.append(empty, slots, x))
        np.testing.assert_allclose(scales.numpy(), expected, rtol=2e-6)
        assert np.abs(cache.numpy().astype(int) - integers).max() <= 1  # a tie may fall either way
        assert np.mean(cache.numpy() != integers) < 0.01


def test_scales_and_norms_are_checked_printed_and_counted() -> None:
    q, k, v = (zeros(1, heads, 4) for heads in (4, 2, 2))
    angles, slots = zeros(1, 4), indices([3])
    keys, values = (zeros(2, 2, 8, 4, dtype="i8") for _ in range(2))
    key_scales, value_scales = (zeros(2, 2, 8) for _ in range(2))
    scales: dict[str, Any] = {"key_scales": key_scales, "value_scales": value_scales}
    norms: dict[str, Any] = {"q_norm": zeros(4), "k_norm": zeros(4), "epsilon": 0.5}

    def append(keys: _C.Tensor, values: _C.Tensor, **more: Any) -> None:
        _C.rope_append(q, k, v, angles, slots, keys, values, **more)

    for message, options in [
        ("key_scales must come with an i8 cache", {}),
        ("value_scales must come with an i8 cache", {"key_scales": key_scales}),
        ("key_scales must be f32", {**scales, "key_scales": zeros(2, 2, 8, dtype="f16")}),
        ("do not fit key_cache", {**scales, "value_scales": zeros(2, 2, 7)}),
        ("key_scales and value_scales share memory", {**scales, "value_scales": key_scales}),
        ("q_norm and k_norm must come together", {**scales, "q_norm": zeros(4)}),
        ("k_norm has 5 elements, it must have 4", {**scales, **norms, "k_norm": zeros(5)}),
        ("epsilon must be finite", {**scales, **norms, "epsilon": float("nan")}),
    ]:
        with pytest.raises(ValueError, match=message):
            append(keys, values, **options)
    with pytest.raises(ValueError, match="key_scales are of an i8 cache"):
        append(zeros(2, 2, 8, 4), zeros(2, 2, 8, 4), **scales)

    cpu = _C.open_backend("cpu", threads=1)
    with _C.record(cpu, batch_invariant=True) as step:
        append(keys, values, **scales, **norms)
        tables, starts, contexts = indices([[0, 1]]), indices([0, 1]), indices([4])
        _C.attention(q, keys, values, tables, starts, contexts, scale=0.5, **scales)
    assert str(step).splitlines() == [
        (
            "f32[1, 4, 4], i8[2, 2, 8, 4], i8[2, 2, 8, 4], f32[2, 2, 8], f32[2, 2, 8] = rope_append(q f32[1, 4, 4], "
            "key_cache i8[2, 2, 8, 4], value_cache i8[2, 2, 8, 4], key_scales f32[2, 2, 8], value_scales f32[2, 2, 8], "
            "k f32[1, 2, 4], v f32[1, 2, 4], angles f32[1, 4], slots i32[1], q_norm f32[4], k_norm f32[4], epsilon 0.5)"
        ),
        (
            "f32[1, 16] = attention(q f32[1, 4, 4], key_cache i8[2, 2, 8, 4], value_cache i8[2, 2, 8, 4], "
            "key_scales f32[2, 2, 8], value_scales f32[2, 2, 8], block_tables i32[1, 2], query_starts i32[2], "
            "context_lengths i32[1], scale 0.5, batch_invariant)"
        ),
    ]
    row = 2 * (4 + 4)  # of a key or a value of both heads, with the scales
    assert step.costs[0].bytes == 2 * q.nbytes + k.nbytes + v.nbytes + angles.nbytes + 4 + 2 * 16 + 2 * row
    assert step.costs[1].bytes == 2 * q.nbytes + 8 + 4 + 2 * 4 * row

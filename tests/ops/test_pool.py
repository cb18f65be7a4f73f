"""pool: one vector of each sequence's tokens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fermi import _C
from ops import reference
from ops.operands import indices, normal, same_bits, zeros

POOLINGS: tuple[_C.PoolingName, ...] = ("mean", "max", "mean_sqrt_length", "weighted_mean")
# Lengths of the sequences.
RAGGED = [[1], [513], [3, 0, 7, 1], [0, 0], [40] * 9]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("lengths", RAGGED, ids=str)
@pytest.mark.parametrize("dim", [1, 37, 64, 771])
def test_matches_numpy(
    backend: _C.Backend, generator: np.random.Generator, pooling: _C.PoolingName, lengths: list[int], dim: int
) -> None:
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    fused = normal(generator, int(starts[-1]), dim + 9)
    out = _C.pool(fused.tensor.narrow(1, 4, dim), indices(starts), pooling=pooling)
    assert out.shape == (len(lengths), dim)
    expected = reference.pool(fused.values[:, 4 : 4 + dim], starts, pooling)
    np.testing.assert_allclose(out.float32(), expected, rtol=1e-6, atol=5e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_sequence_is_the_same_among_any_others(
    opened: Callable[[int], _C.Backend], generator: np.random.Generator, pooling: _C.PoolingName
) -> None:
    x = normal(generator, 60, 133).tensor
    with opened(3):
        together = _C.pool(x, indices([0, 9, 9, 50, 60]), pooling=pooling)
    with opened(1):
        alone = _C.pool(x.narrow(0, 9, 41), indices([0, 41]), pooling=pooling)
    assert same_bits(alone, together.narrow(0, 2, 1))


def test_starts_are_read_at_every_run(backend: _C.Backend, generator: np.random.Generator) -> None:
    x, starts = normal(generator, 6, 20), indices([0, 2, 6])
    with _C.record(backend) as step:
        out = _C.pool(x.tensor, starts, pooling="mean")
    for first in (2, 0, 6):
        starts.numpy()[1] = first
        step.run()
        np.testing.assert_allclose(out.float32(), reference.pool(x.values, starts.numpy(), "mean"), atol=1e-6)
    for values, message in {
        (1, 2, 6): r"pool: starts\[0\] is 1, not 0",
        (0, 7, 6): r"pool: starts\[2\] is 6, below the one before",
        (0, -1, 6): r"pool: starts\[1\] is -1, below the one before",
        (0, 2, 5): "pool: starts end at 5, there are 6 tokens",
        (0, 2, 7): "pool: starts end at 7, there are 6 tokens",
    }.items():
        starts.numpy()[:] = values
        with pytest.raises(ValueError, match=message):
            step.run()
        with pytest.raises(ValueError, match=message):
            _C.pool(x.tensor, starts, pooling="max")


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"pool: x must be f32 \[tokens, dim\], not f16\[2, 3\]"):
        _C.pool(zeros(2, 3, dtype="f16"), indices([0, 2]), pooling="mean")
    with pytest.raises(ValueError, match="pool: starts must not be empty"):
        _C.pool(zeros(2, 3), zeros(0, dtype="i32"), pooling="mean")
    with pytest.raises(ValueError, match='pool: "cls" is none of mean, max, mean_sqrt_length, weighted_mean'):
        _C.pool(zeros(2, 3), indices([0, 2]), pooling="cls")  # type: ignore[arg-type]

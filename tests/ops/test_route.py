"""route: the experts of each token, and what they weigh."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from fermi import _C
from ops import reference
from ops.operands import normal, operand, same_bits

Scoring = Literal["softmax", "sigmoid"]

# tokens, experts, k
SHAPES = [(1, 1, 1), (3, 8, 2), (1, 60, 4), (37, 7, 7), (5, 128, 8), (9, 512, 1), (2, 33, 17), (0, 4, 2)]


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("tokens", "experts", "k"), SHAPES)
def test_matches_numpy(
    backend: _C.Backend,
    generator: np.random.Generator,
    scoring: Scoring,
    normalize: bool,
    tokens: int,
    experts: int,
    k: int,
) -> None:
    logits = operand(4 * generator.standard_normal((tokens, experts)))
    chosen, weights = _C.route(logits.tensor, k, scoring=scoring, normalize=normalize, scale=1.5)
    expected_experts, expected = reference.route(logits.values, k, scoring, normalize, 1.5)
    np.testing.assert_array_equal(chosen.numpy(), expected_experts)
    np.testing.assert_allclose(weights.float32(), expected, rtol=3e-6)


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("normalize", [True, False])
def test_of_equal_scores_the_first_is_chosen(backend: _C.Backend, scoring: Scoring, normalize: bool) -> None:
    logits = operand([[0.5, 2, -1, 2, 2, 0.5], [1, 1, 1, 1, 1, 1], [0, -3, 4, -3, 4, 5]])
    chosen, weights = _C.route(logits.tensor, 4, scoring=scoring, normalize=normalize)
    np.testing.assert_array_equal(chosen.numpy(), [[1, 3, 4, 0], [0, 1, 2, 3], [5, 2, 4, 0]])
    expected = reference.route(logits.values, 4, scoring, normalize, 1.0)[1]
    np.testing.assert_allclose(weights.float32(), expected, rtol=3e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_scores_far_apart(backend: _C.Backend, normalize: bool) -> None:
    """Large logits overflow nothing, and vanishing scores keep their order."""
    logits = operand([[-900, 3e4, -1000, 2.9e4], [-1e38, -2e38, -3e38, 0]])
    chosen, weights = _C.route(logits.tensor, 3, normalize=normalize)
    np.testing.assert_array_equal(chosen.numpy(), [[1, 3, 0], [3, 0, 1]])
    np.testing.assert_array_equal(weights.float32(), [[1, 0, 0], [1, 0, 0]])
    chosen, weights = _C.route(logits.tensor, 2, scoring="sigmoid", normalize=normalize)
    np.testing.assert_array_equal(weights.float32(), [[0.5, 0.5], [1, 0]] if normalize else [[1, 1], [0.5, 0]])


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("worthless", [np.nan, -np.inf, np.inf, -1e4])
def test_whatever_the_logits_experts_are_different_ones(
    backend: _C.Backend, generator: np.random.Generator, scoring: Scoring, worthless: float
) -> None:
    logits = generator.standard_normal((50, 20))
    logits[generator.random((50, 20)) < 0.7] = worthless
    logits[0] = worthless
    chosen, _ = _C.route(operand(logits).tensor, 9, scoring=scoring)
    assert all(len(set(row)) == 9 and min(row) >= 0 and max(row) < 20 for row in chosen.numpy().tolist())


def test_takes_strided_rows(backend: _C.Backend, generator: np.random.Generator) -> None:
    logits = normal(generator, 11, 30)
    chosen, weights = _C.route(logits.tensor.narrow(1, 5, 19), 3)
    expected_experts, expected = reference.route(logits.values[:, 5:24], 3, "softmax", True, 1.0)
    np.testing.assert_array_equal(chosen.numpy(), expected_experts)
    np.testing.assert_allclose(weights.float32(), expected, rtol=3e-6)


def test_recorded_and_alone_are_the_same(backend: _C.Backend, generator: np.random.Generator) -> None:
    logits = normal(generator, 13, 41).tensor
    with _C.record(backend) as step:
        chosen, weights = _C.route(logits, 5, normalize=False)
    step.run()
    for token in range(13):
        alone = _C.route(logits.narrow(0, token, 1), 5, normalize=False)
        np.testing.assert_array_equal(alone[0].numpy(), chosen.narrow(0, token, 1).numpy())
        assert same_bits(alone[1], weights.narrow(0, token, 1))


def test_refuses_what_does_not_fit(generator: np.random.Generator) -> None:
    logits = normal(generator, 3, 8).tensor
    for k in (0, 9, -1):
        with pytest.raises(ValueError, match=f"route: k must be from 1 to 8, the number of experts, not {k}"):
            _C.route(logits, k)
    with pytest.raises(ValueError, match="route: scale"):
        _C.route(logits, 2, scale=float("nan"))
    with pytest.raises(ValueError, match="route: logits"):
        _C.route(normal(generator, 8).tensor, 2)
    with pytest.raises(ValueError, match="scoring"):
        _C.route(logits, 2, scoring="entropy")  # type: ignore[arg-type]

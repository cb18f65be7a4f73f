"""How little a quantized model loses, on models that have learnt something."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from fermi.cli.evaluate import compare
from fermi.config import Settings, load_settings
from fermi.errors import ConfigError
from fermi.loader import LoadedModel, load, quantize, reference_settings
from fermi.quantization import Fidelity, Recipe
from fermi.sampled_text import sampled_text

#: Recipes, and by how much the perplexity may rise.
BOUNDS = [
    (Recipe(format="int8"), 0.005),
    (Recipe(format="int4", group=32), 0.04),
    (Recipe(format="int4", group=32, symmetric=True), 0.05),
]


@pytest.fixture(scope="module", params=["demo", "stories260K"])
def source(request: pytest.FixtureRequest) -> str:
    return "demo" if request.param == "demo" else str(request.getfixturevalue("stories260k"))


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings({"engine.threads": 2}, environ={}, folder=Path("/"))


@pytest.fixture(scope="module")
def reference(source: str, settings: Settings) -> LoadedModel:
    return load(source, reference_settings(settings))


@pytest.mark.parametrize(("recipe", "bound"), BOUNDS, ids=str)
def test_perplexity(
    source: str, settings: Settings, reference: LoadedModel, recipe: Recipe, bound: float, tmp_path: Path
) -> None:
    quantize(source, tmp_path / "quantized", recipe, settings)
    model = load(str(tmp_path / "quantized"), settings)
    texts = sampled_text(reference.engine, reference.tokenizer, texts=64, tokens=256, seed=0)
    fidelity = compare(reference, model, texts)
    assert fidelity.tokens == 64 * 255
    assert 1 < fidelity.reference_perplexity < 5  # it is its own text
    assert fidelity.perplexity <= fidelity.reference_perplexity * (1 + bound)
    assert fidelity.agreement > (0.97 if recipe.format == "int8" else 0.88)
    assert 0 < fidelity.mean_divergence < bound


def test_models_of_other_vocabularies_cannot_be_compared(stories260k: Path, settings: Settings) -> None:
    demo, stories = load("demo", settings), load(str(stories260k), settings)
    with pytest.raises(ConfigError, match="the models have 1536 and 512 tokens"):
        compare(demo, stories, [[1, 2]])


def test_measures(generator: np.random.Generator) -> None:
    """Against the definitions, row by row."""
    reference, model = generator.standard_normal((2, 150, 37)).astype(np.float32) * 3
    targets = generator.integers(0, 37, 150)
    fidelity = Fidelity()
    fidelity.add(reference[:100], model[:100], targets[:100])
    fidelity.add(reference[100:], model[100:], targets[100:])

    def probabilities(logits: np.ndarray) -> np.ndarray:
        e = np.exp(logits.astype(np.float64))
        return e / e.sum()

    p, q = np.stack([probabilities(row) for row in reference]), np.stack([probabilities(row) for row in model])
    divergences = (p * np.log(p / q)).sum(axis=1)
    assert fidelity.tokens == 150
    assert math.isclose(fidelity.mean_divergence, divergences.mean(), rel_tol=1e-9)
    assert math.isclose(fidelity.largest_divergence, divergences.max(), rel_tol=1e-9)
    assert math.isclose(fidelity.reference_perplexity, np.exp(-np.log(p[range(150), targets]).mean()), rel_tol=1e-9)
    assert math.isclose(fidelity.perplexity, np.exp(-np.log(q[range(150), targets]).mean()), rel_tol=1e-9)
    assert fidelity.agreement == (p.argmax(axis=1) == q.argmax(axis=1)).mean()


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(7)

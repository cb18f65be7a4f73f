"""How far a quantized model's predictions are from those of the model it was made of, over a text."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["Fidelity"]

Logits = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

#: Rows of logits that are compared at a time, so that intermediate results stay small.
ROWS = 64


class Fidelity:
    """Perplexities, KL divergence and agreement, over as many rows of logits as are added.

    Attributes:
        tokens: rows added.
        mean_divergence, largest_divergence: KL(reference ‖ model) of the next token's distribution, in nats.
        agreement: share of tokens for which both find the same next token the likeliest.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.largest_divergence = 0.0
        self._nats = 0.0
        self._reference_nats = 0.0
        self._divergence = 0.0
        self._agreed = 0

    def add(self, reference: Logits, model: Logits, targets: npt.ArrayLike) -> None:
        """Logits of both, [tokens, vocabulary], and the tokens that came next, [tokens]."""
        following = np.asarray(targets)
        for start in range(0, len(following), ROWS):
            rows = slice(start, start + ROWS)
            self._add(_log_softmax(reference[rows]), _log_softmax(model[rows]), following[rows])

    @property
    def perplexity(self) -> float:
        """Of the model: exp of the mean surprise."""
        return math.exp(self._nats / self.tokens)

    @property
    def reference_perplexity(self) -> float:
        """Of the reference."""
        return math.exp(self._reference_nats / self.tokens)

    @property
    def mean_divergence(self) -> float:
        return self._divergence / self.tokens

    @property
    def agreement(self) -> float:
        return self._agreed / self.tokens

    def _add(self, reference: Doubles, model: Doubles, targets: npt.NDArray[np.int64]) -> None:
        rows = np.arange(len(targets))
        divergences = np.maximum((np.exp(reference) * (reference - model)).sum(axis=1), 0.0)
        self.tokens += len(targets)
        self._nats -= float(model[rows, targets].sum())
        self._reference_nats -= float(reference[rows, targets].sum())
        self._divergence += float(divergences.sum())
        self.largest_divergence = max(self.largest_divergence, float(divergences.max(initial=0.0)))
        self._agreed += int((reference.argmax(axis=1) == model.argmax(axis=1)).sum())


def _log_softmax(logits: Logits) -> Doubles:
    """Logarithms of probabilities, [tokens, vocabulary]."""
    doubles = logits.astype(np.float64)
    doubles -= doubles.max(axis=1, keepdims=True)
    doubles -= np.log(np.exp(doubles).sum(axis=1, keepdims=True))
    return doubles

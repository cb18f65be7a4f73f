"""Embedding vectors: cut to fewer dimensions, brought to unit length, compared."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fermi.errors import RequestError

__all__ = ["Vectors", "cosine", "shortened", "unit"]

Vectors = npt.NDArray[np.float32]


def shortened(vectors: Vectors, dimensions: int | None) -> Vectors:
    """The first ``dimensions`` numbers of each row of [n, dim], as embeddings trained as Matryoshka dolls allow it.

    RequestError where there are not so many. Kusupati et al., "Matryoshka Representation Learning", 2022.
    """
    size = vectors.shape[1]
    if dimensions is None or dimensions == size:
        return vectors
    if not 1 <= dimensions <= size:
        raise RequestError(f"dimensions must be from 1 to {size} for this model, got {dimensions}", param="dimensions")
    return vectors[:, :dimensions]


def unit(vectors: Vectors) -> Vectors:
    """Each row of [n, dim] at Euclidean length 1; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)


def cosine(left: Vectors, right: Vectors) -> Vectors:
    """The cosine of the angle between rows of the same place: [n]; one row on either side meets all of the other."""
    return np.asarray((unit(left) * unit(right)).sum(axis=1), np.float32)

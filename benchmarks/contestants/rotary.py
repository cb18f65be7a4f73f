"""The frequencies of a checkpoint's rotary embedding, for the converters that must write them out."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from contestants.contestant import NotSupportedError
from contestants.tensors import Checkpoint

__all__ = ["divisors", "inverse_frequencies"]


def divisors(checkpoint: Checkpoint) -> npt.NDArray[np.float32]:
    """What each frequency is divided by under Llama 3's scaling, [head_dim / 2]; 1 where there is none."""
    scaling, dim = checkpoint.rope_scaling, checkpoint.head_dim
    if not scaling:
        return np.ones(dim // 2, np.float32)
    if scaling["rope_type"] != "llama3":
        raise NotSupportedError(f"rope scaling {scaling['rope_type']} is not converted")
    wavelengths = 2 * math.pi * checkpoint.rope_theta ** (np.arange(0, dim, 2) / dim)
    turns = scaling["original_max_position_embeddings"] / wavelengths
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    factors: npt.NDArray[np.float64] = 1 / ((1 - smooth) / factor + smooth)
    return factors.astype(np.float32)


def inverse_frequencies(checkpoint: Checkpoint) -> npt.NDArray[np.float32]:
    """Radians per token, [head_dim / 2]."""
    dim = checkpoint.head_dim
    frequencies: npt.NDArray[np.float64] = checkpoint.rope_theta ** (-np.arange(0, dim, 2) / dim)
    return (frequencies / divisors(checkpoint)).astype(np.float32)

"""What the engine knows of a model: what it caches, how far it reaches, and how to call it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

from typing_extensions import Self

from fermi import _C
from fermi.models.inputs import Batch, KVCache, KVSpec

__all__ = ["Model"]


class Model(ABC):
    """A language model whose weights are loaded.

    Attributes:
        backend: the device that it runs on.
        vocab_size: entries of a row of logits.
        max_position_embeddings: tokens of the longest context, scaling of the rotary embedding included.
        kv_spec: what it caches for each token.
        windows: of each layer, the tokens that a query sees, itself included; 0: all.
        dtype: of the weights that are not packed.
        weight_format: of the projections: int8, int4, or a dtype.
        parameters: how many numbers the weights hold; a tied head counts once.
        weight_bytes: what they take.
        rope_depends_on_length: whether a token's rotary frequencies depend on ``Batch.rope_lengths``.
        rope_original_length: the length up to which they do not; 0 where they never do.
        rope_switches: whether, as soon as a sequence is longer, those of its earlier tokens change with it.
    """

    backend: _C.Backend
    vocab_size: int
    max_position_embeddings: int
    kv_spec: KVSpec
    windows: tuple[int, ...]
    dtype: _C.DTypeName
    weight_format: str
    parameters: int
    weight_bytes: int
    rope_depends_on_length: bool
    rope_original_length: int
    rope_switches: bool = False

    @abstractmethod
    def __call__(self, batch: Batch, kv: KVCache) -> _C.Tensor:
        """Writes the batch's keys and values to the cache; returns the logits of its rows, f32 [rows, vocab_size]."""

    def on(self, backend: _C.Backend) -> Self:
        """The same model, with the same weights, on other threads of its device."""
        if backend.device != self.backend.device:
            raise ValueError(f"the model's weights are on {self.backend.device}, not on {backend.device}")
        twin = copy.copy(self)
        twin.backend = backend
        return twin

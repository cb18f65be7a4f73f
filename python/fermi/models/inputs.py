"""What a model is called with: one step's tokens of several sequences, and the cache of their keys and values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fermi import _C

__all__ = ["Batch", "KVCache", "KVSpec", "LayerCache"]


@dataclass(frozen=True)
class Batch:
    """A ragged step: the tokens of every sequence, one sequence after the other. All tensors are int32.

    Layers may be in groups (see `KVCache`), which keep their keys and values in blocks of their own.

    Attributes:
        token_ids: [tokens].
        positions: [tokens], from 0 in each sequence.
        rope_lengths: [tokens], the sequence length that a token's rotary frequencies are chosen for: the prompt's
            length for a token of the prompt, its position + 1 for a generated one, and no less than the length at which
            the sequence was computed anew (see `Model.rope_switches`). It belongs to the token, so that a result does
            not depend on chunks, batches or preemption.
        slots: of each group [tokens], where a token's key and value go: block * block_size + offset; negative: nowhere.
        query_starts: [sequences + 1], the first token of each sequence, then the number of tokens.
        context_lengths: [sequences], keys that the last query of a sequence sees: its position + 1.
        block_tables: of each group [sequences, max_blocks], the blocks that hold a sequence's keys and values.
        logit_rows: [rows], the tokens whose logits are wanted.
    """

    token_ids: _C.Tensor
    positions: _C.Tensor
    rope_lengths: _C.Tensor
    slots: tuple[_C.Tensor, ...]
    query_starts: _C.Tensor
    context_lengths: _C.Tensor
    block_tables: tuple[_C.Tensor, ...]
    logit_rows: _C.Tensor


@dataclass(frozen=True)
class KVSpec:
    """What a model caches for each token: a key and a value of [kv_heads, head_dim] per layer.

    ``dtype`` i8: integers, with a float32 scale for each key's and each value's head.
    """

    layers: int
    kv_heads: int
    head_dim: int
    dtype: _C.DTypeName

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values, of all layers, that one token takes."""
        head = self.head_dim + 4 if self.dtype == "i8" else self.head_dim * (4 if self.dtype == "f32" else 2)
        return 2 * self.layers * self.kv_heads * head


@dataclass(frozen=True)
class LayerCache:
    """The keys and values of one layer.

    Attributes:
        keys, values: [blocks, kv_heads, block_size, head_dim].
        key_scales, value_scales: of i8 keys and values: f32 [blocks, kv_heads, block_size].
        group: of the layer: which of a batch's slots and block tables are its own.
    """

    keys: _C.Tensor
    values: _C.Tensor
    key_scales: _C.Tensor | None = None
    value_scales: _C.Tensor | None = None
    group: int = 0

    @property
    def tensors(self) -> list[_C.Tensor]:
        """Those that there are; the first axis of each are the blocks."""
        every = (self.keys, self.values, self.key_scales, self.value_scales)
        return [tensor for tensor in every if tensor is not None]


@dataclass(frozen=True)
class KVCache:
    """The cache of every layer. The layers of a group have tensors of their own; the n-th of another group has the same
    as the n-th of this one, so that a block belongs to whichever group it is given to."""

    layers: tuple[LayerCache, ...]

    @classmethod
    def allocate(
        cls, spec: KVSpec, blocks: int, block_size: int, backend: _C.Backend, groups: Sequence[int] | None = None
    ) -> KVCache:
        """A cache of so many blocks on the backend's device, each of ``block_size`` tokens of one group's layers.

        ``groups``: the group of each layer; None: all are in one.

        What it holds is not defined until it is written, so that its memory is only taken as it fills.
        """
        shape = (blocks, spec.kv_heads, block_size, spec.head_dim)

        def layer() -> LayerCache:
            keys, values = (_C.Tensor.empty(shape, spec.dtype, backend) for _ in range(2))
            if spec.dtype != "i8":
                return LayerCache(keys, values)
            key_scales, value_scales = (_C.Tensor.empty(shape[:3], "f32", backend) for _ in range(2))
            return LayerCache(keys, values, key_scales, value_scales)

        groups = [0] * spec.layers if groups is None else groups
        stores = [layer() for _ in range(max(Counter(groups).values()))]
        places = (groups[:number].count(group) for number, group in enumerate(groups))
        return cls(tuple(replace(stores[place], group=group) for place, group in zip(places, groups, strict=True)))

    @property
    def tensors(self) -> list[_C.Tensor]:
        """Those of all layers, each once."""
        return list({id(tensor): tensor for layer in self.layers for tensor in layer.tensors}.values())

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[LayerCache]:
        return iter(self.layers)

    def __getitem__(self, layer: int) -> LayerCache:
        return self.layers[layer]

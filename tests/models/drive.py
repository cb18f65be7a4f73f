"""Drives a model by hand: builds the batches and the cache that the engine would."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fermi import _C
from fermi.models import Batch, KVCache, Model

BLOCK_SIZE = 8

Logits = npt.NDArray[np.float32]


@dataclass
class Conversation:
    """A prompt and what was generated after it; the first ``computed`` tokens are in the cache."""

    tokens: list[int]
    prompt: int
    blocks: list[int]
    computed: int = 0


class Driver:
    """A model, a cache whose blocks lie in no order, and the sequences in it."""

    def __init__(self, model: Model, blocks: int = 128, *, batch_invariant: bool = False) -> None:
        self.model = model
        self.batch_invariant = batch_invariant
        self.cache = KVCache.allocate(model.kv_spec, blocks, BLOCK_SIZE, model.backend)
        self.free = np.random.default_rng(0).permutation(blocks).tolist()

    def start(self, tokens: Sequence[int]) -> Conversation:
        return Conversation(list(tokens), len(tokens), [])

    def step(self, parts: Iterable[tuple[Conversation, int]]) -> list[Logits]:
        """Computes the next so many tokens of each sequence; returns their logits, [tokens, vocabulary] each."""
        parts = list(parts)
        for sequence, count in parts:
            while len(sequence.blocks) * BLOCK_SIZE < sequence.computed + count:
                sequence.blocks.append(self.free.pop())
        with _C.record(self.model.backend, batch_invariant=self.batch_invariant) as recording:
            logits = self.model(self._batch(parts), self.cache)
        recording.run()
        for sequence, count in parts:
            sequence.computed += count
        return np.split(logits.float32(), np.cumsum([count for _, count in parts])[:-1])

    def logits(self, tokens: Sequence[int], chunk: int = 1 << 30) -> Logits:
        """The logits of every token of a prompt, computed in chunks of so many."""
        sequence = self.start(tokens)
        rows = []
        while sequence.computed < sequence.prompt:
            rows.append(self.step([(sequence, min(chunk, sequence.prompt - sequence.computed))])[0])
        return np.concatenate(rows)

    def greedy(self, tokens: Sequence[int], count: int, chunk: int = 1 << 30) -> list[int]:
        """The ``count`` likeliest tokens after a prompt, one after the other."""
        sequence = self.start(tokens)
        while len(sequence.tokens) < sequence.prompt + count:
            waiting = len(sequence.tokens) - sequence.computed
            rows = self.step([(sequence, min(chunk, waiting))])[0]
            if sequence.computed == len(sequence.tokens):
                sequence.tokens.append(int(rows[-1].argmax()))
        return sequence.tokens[sequence.prompt :]

    def _batch(self, parts: list[tuple[Conversation, int]]) -> Batch:
        tokens: list[int] = []
        positions: list[int] = []
        lengths: list[int] = []
        slots: list[int] = []
        for sequence, count in parts:
            for position in range(sequence.computed, sequence.computed + count):
                tokens.append(sequence.tokens[position])
                positions.append(position)
                lengths.append(max(sequence.prompt, position + 1))
                slots.append(sequence.blocks[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE)
        tables = np.zeros((len(parts), max(len(sequence.blocks) for sequence, _ in parts)), dtype=np.int32)
        for row, (sequence, _) in enumerate(parts):
            tables[row, : len(sequence.blocks)] = sequence.blocks
        return Batch(
            token_ids=int32(tokens),
            positions=int32(positions),
            rope_lengths=int32(lengths),
            slots=(int32(slots),),
            query_starts=int32(np.cumsum([0] + [count for _, count in parts])),
            context_lengths=int32([sequence.computed + count for sequence, count in parts]),
            block_tables=(_C.Tensor.from_numpy(tables),),
            logit_rows=int32(range(len(tokens))),
        )


def int32(values: Iterable[int]) -> _C.Tensor:
    return _C.Tensor.from_numpy(np.array(list(values), dtype=np.int32))

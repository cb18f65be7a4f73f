"""An embedding model whose rows say what it was given, and which waits for a permit where a test wants it to."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fermi.models.embedding import TokenSequence


class ToyEncoder:
    """Embeds a sequence as (length, sum of its tokens, sum of its types, 1)."""

    def __init__(self, *, max_seq_length: int = 64, vocab_size: int = 100, free: bool = True) -> None:
        self.dim = 4
        self.max_seq_length = max_seq_length
        self.vocab_size = vocab_size
        self.free = free  # batches need no permit
        self.permits = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)
        self.batches: list[list[TokenSequence]] = []
        self.threads: set[int] = set()
        self.failure: BaseException | None = None

    def encode(self, sequences: Sequence[TokenSequence]) -> npt.NDArray[np.float32]:
        self.threads.add(threading.get_ident())
        self.batches.append(list(sequences))
        self.entered.release()
        if not self.free:
            self.permits.acquire()
        if self.failure is not None:
            raise self.failure
        return np.array([row(sequence) for sequence in sequences], np.float32)

    @property
    def lengths(self) -> list[list[int]]:
        """Of the sequences of each batch."""
        return [[len(sequence.token_ids) for sequence in batch] for batch in self.batches]


def row(sequence: TokenSequence) -> list[float]:
    """What the model makes of a sequence."""
    return [len(sequence.token_ids), sum(sequence.token_ids), sum(sequence.type_ids or [0]), 1]


def sequence_of(*token_ids: int) -> TokenSequence:
    return TokenSequence(list(token_ids), None)


def sequences_of(*lengths: int) -> list[TokenSequence]:
    """Sequences of these lengths, each of its own token."""
    return [sequence_of(*[place % 100] * length) for place, length in enumerate(lengths)]

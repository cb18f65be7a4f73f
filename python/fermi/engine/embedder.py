"""Many token sequences through an embedding model: sorted, packed into batches without padding, back in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fermi.errors import ContextLengthError, RequestError
from fermi.models.embedding import TokenSequence

__all__ = ["MAX_BATCH_TOKENS", "Embedder", "Encodes", "TokenSequence"]

#: Tokens of a batch where nobody says: many enough for the kernels, few enough that activations stay in the caches.
MAX_BATCH_TOKENS = 1024


class Encodes(Protocol):
    """What the embedder needs of `fermi.models.EmbeddingModel`."""

    @property
    def dim(self) -> int:
        """Numbers that come of a sequence."""

    @property
    def max_seq_length(self) -> int:
        """Tokens of a sequence, at most."""

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""

    def encode(self, sequences: Sequence[TokenSequence]) -> npt.NDArray[np.float32]:
        """One packed batch: float32 [sequences, dim]."""


class Embedder:
    """An embedding model, or a cross-encoder, that is fed whole batches. For one thread.

    Attributes:
        dim: size of an embedding, or number of labels.
        max_seq_length: tokens of a sequence, at most.
        max_batch_tokens: tokens of a batch; a longer sequence is one of its own.
    """

    def __init__(
        self, model: Encodes, *, max_seq_length: int | None = None, max_batch_tokens: int = MAX_BATCH_TOKENS
    ) -> None:
        """``max_seq_length`` shortens the model's own."""
        self._model = model
        self.dim = model.dim
        self.max_seq_length = min(model.max_seq_length, max_seq_length or model.max_seq_length)
        self.max_batch_tokens = max_batch_tokens

    def check(self, sequences: Sequence[TokenSequence], param: str = "input") -> None:
        """Refuses what the model cannot take. Any thread may call it.

        Raises:
            ContextLengthError: a sequence is too long; ``param`` names the field of the request that holds them.
            RequestError: a sequence is empty, or has a token that the vocabulary does not have.
        """
        for place, (token_ids, _) in enumerate(sequences):
            if not token_ids:
                raise RequestError(f"{param}: number {place} has no tokens", param=param)
            if len(token_ids) > self.max_seq_length:
                raise ContextLengthError(
                    f"This model's maximum context length is {self.max_seq_length} tokens. However, you requested "
                    f"{len(token_ids)} tokens in the {param}, number {place}. Please reduce the length of the {param}.",
                    param=param,
                )
            if min(token_ids) < 0 or max(token_ids) >= self._model.vocab_size:
                known = range(self._model.vocab_size)
                outside = next(token_id for token_id in token_ids if token_id not in known)
                raise RequestError(
                    f"{param}: token id {outside} is not in the vocabulary, 0 … {known[-1]}", param=param
                )

    def encode(
        self, sequences: Sequence[TokenSequence], advance: Callable[[int], object] | None = None
    ) -> npt.NDArray[np.float32]:
        """One row for each sequence, in their order: float32 [sequences, dim].

        ``advance`` hears of each batch how many sequences it held. Raises as `check`.
        """
        self.check(sequences)
        rows = np.empty((len(sequences), self.dim), np.float32)
        for batch in self.batches([len(sequence.token_ids) for sequence in sequences]):
            rows[batch] = self.run([sequences[place] for place in batch])
            if advance is not None:
                advance(len(batch))
        return rows

    def batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """The places of sequences of these lengths, the longest first, in batches of at most ``max_batch_tokens``.

        Sequences of a like length share a batch, so that their attention is divided evenly between threads.
        """
        batch: list[int] = []
        tokens = 0
        for place in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
            if batch and tokens + lengths[place] > self.max_batch_tokens:
                yield batch
                batch, tokens = [], 0
            batch.append(place)
            tokens += lengths[place]
        if batch:
            yield batch

    def run(self, batch: Sequence[TokenSequence]) -> npt.NDArray[np.float32]:
        """One batch as it is, checked before: float32 [sequences, dim]."""
        return self._model.encode(batch)

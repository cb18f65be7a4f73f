"""Texts to vectors, and pairs of texts to scores, in this thread: what the offline API and the command line share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from fermi.engine.embedder import TokenSequence
from fermi.engine.vectors import Vectors, cosine, shortened, unit
from fermi.errors import RequestError
from fermi.loader import LoadedEmbedder
from fermi.outputs import EmbeddingOutput
from fermi.text.tokenizer import Encoded

__all__ = ["Text", "TextEmbedder", "finished", "pairs_of"]

#: A text, or its token ids as they are.
Text: TypeAlias = "str | Sequence[int]"


class TextEmbedder:
    """An embedding model or a cross-encoder with its text side. For one thread."""

    def __init__(self, loaded: LoadedEmbedder) -> None:
        self._loaded = loaded

    def embed(
        self,
        texts: Sequence[Text],
        *,
        prompt: str = "",
        normalize: bool | None = None,
        dimensions: int | None = None,
        truncate: bool = True,
        use_tqdm: bool = False,
    ) -> list[EmbeddingOutput]:
        """Each text as a vector; see `fermi.LLM.embed`."""
        if self._loaded.scores_pairs:
            raise RequestError(f"{self._loaded.source} is a cross-encoder: it scores pairs of texts, use score")
        encoded = self._encode(texts, prompt, truncate)
        vectors = finished(self._run(encoded, use_tqdm), dimensions, normalize)
        return [EmbeddingOutput(vector, each.token_ids) for vector, each in zip(vectors, encoded, strict=True)]

    def score(
        self, queries: Sequence[str], documents: Sequence[str], *, truncate: bool = True, use_tqdm: bool = False
    ) -> npt.NDArray[np.float32]:
        """How well documents answer queries; see `fermi.LLM.score`."""
        pairs = pairs_of(queries, documents)
        sentences, longest = self._loaded.sentences, self._loaded.embedder.max_seq_length
        if self._loaded.scores_pairs:
            encoded = sentences.encode_pairs(pairs, max_length=longest if truncate else None, param="documents")
            scores = self._run(encoded, use_tqdm)
            return scores[:, 0] if scores.shape[1] == 1 else scores
        if not pairs:
            return np.empty(0, np.float32)
        both = [
            *self._encode(queries, sentences.prompt(role="query"), truncate, "queries"),
            *self._encode(documents, sentences.prompt(role="document"), truncate, "documents"),
        ]
        vectors = self._run(both, use_tqdm)
        return cosine(vectors[: len(queries)], vectors[len(queries) :])

    def _encode(self, texts: Sequence[Text], prompt: str, truncate: bool, param: str = "texts") -> list[Encoded]:
        """In their order; token ids stay as they are, without the prompt."""
        written = [text for text in texts if isinstance(text, str)]
        longest = self._loaded.embedder.max_seq_length if truncate else None
        encoded = iter(self._loaded.sentences.encode(written, prompt=prompt, max_length=longest, param=param))
        return [next(encoded) if isinstance(text, str) else Encoded(list(text)[:longest]) for text in texts]

    def _run(self, encoded: Sequence[Encoded], use_tqdm: bool) -> Vectors:
        sequences = [TokenSequence(*each) for each in encoded]
        self._loaded.embedder.check(sequences, "texts")
        with tqdm(total=len(sequences), desc="embedding", unit="text", disable=not use_tqdm, leave=False) as bar:
            return self._loaded.embedder.encode(sequences, bar.update)


def finished(vectors: Vectors, dimensions: int | None, normalize: bool | None) -> Vectors:
    """What a model gave, [n, dim], in so many dimensions and at unit length, where that is asked for.

    ``normalize`` None: where dimensions were cut off, so that what is left is of use for comparisons.
    """
    short = shortened(vectors, dimensions)
    return unit(short) if normalize or (normalize is None and short is not vectors) else short


def pairs_of(queries: Sequence[str], documents: Sequence[str]) -> list[tuple[str, str]]:
    """As many pairs as there are texts on the longer side; one text on the other meets all of them.

    RequestError where there are several on both sides, and not as many.
    """
    if len(queries) == 1:
        return [(queries[0], document) for document in documents]
    if len(documents) == 1:
        return [(query, documents[0]) for query in queries]
    if len(queries) != len(documents):
        raise RequestError(
            f"{len(queries)} queries and {len(documents)} documents: as many of both, or one of either, are needed",
            param="documents",
        )
    return list(zip(queries, documents, strict=True))

"""Batches: documents packed into rows of tokens, each document seeing only itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from fermi.demo.conversation import Segment

_IGNORED = -100
_OPEN_ROWS = 3  # batches of rows kept open, so that the ones given away are full


@dataclass(frozen=True)
class Batch:
    """One training step's input, its sizes [rows, tokens]."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor  # the next token, or -100 where no loss is counted
    mask: torch.Tensor  # bool [rows, 1, tokens, tokens]


@dataclass
class _Row:
    documents: list[tuple[list[int], list[int]]]
    tokens: int


class Batches:
    """Packs each document into a row of the shortest length that holds it; drops what is longer than all."""

    def __init__(self, tokenizer: Tokenizer, tokens: int, lengths: tuple[int, ...]) -> None:
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._lengths = lengths

    def packed(self, documents: Iterator[list[Segment]]) -> Iterator[Batch]:
        """Batches of about `tokens` tokens, for as long as documents come."""
        open_rows: dict[int, list[_Row]] = {length: [] for length in self._lengths}
        for document in documents:
            token_ids, targets = self._encode(document)
            length = next((length for length in self._lengths if len(token_ids) <= length), None)
            if length is None:
                continue
            rows = open_rows[length]
            row = next((row for row in rows if row.tokens + len(token_ids) <= length), None)
            if row is None:
                row = _Row([], 0)
                rows.append(row)
            row.documents.append((token_ids, targets))
            row.tokens += len(token_ids)
            wanted = self._tokens // length
            if len(rows) > _OPEN_ROWS * wanted:
                rows.sort(key=lambda row: -row.tokens)
                yield _batch(rows[:wanted], length)
                del rows[:wanted]

    def _encode(self, document: list[Segment]) -> tuple[list[int], list[int]]:
        token_ids: list[int] = []
        targets: list[int] = []
        for segment in document:
            ids = self._tokenizer.encode(segment.text).ids
            token_ids += ids
            targets += ids if segment.trained else [_IGNORED] * len(ids)
        return token_ids, targets


def _batch(rows: list[_Row], length: int) -> Batch:
    token_ids = torch.zeros(len(rows), length, dtype=torch.long)
    positions = torch.zeros(len(rows), length, dtype=torch.long)
    targets = torch.full((len(rows), length), _IGNORED, dtype=torch.long)
    documents = torch.full((len(rows), length), -1, dtype=torch.long)
    for row, packed in enumerate(rows):
        start = 0
        for number, (ids, wanted) in enumerate(packed.documents):
            end = start + len(ids)
            token_ids[row, start:end] = torch.tensor(ids)
            positions[row, start:end] = torch.arange(len(ids))
            targets[row, start : end - 1] = torch.tensor(wanted[1:])
            documents[row, start:end] = number
            start = end
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    mask = (documents[:, :, None] == documents[:, None, :]) & causal
    return Batch(token_ids, positions, targets, mask[:, None])

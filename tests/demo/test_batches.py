"""Packing of the demo model's documents: nothing is lost, mixed up or seen by another document."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from tokenizers import Tokenizer

from fermi.demo import model_folder
from fermi.demo.batches import Batch, Batches
from fermi.demo.corpus import Corpus


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(model_folder() / "tokenizer.json"))


@pytest.fixture(scope="module")
def batches(tokenizer: Tokenizer) -> list[Batch]:
    return list(islice(Batches(tokenizer, 1024, (128, 256)).packed(Corpus(seed=3).documents()), 12))


def test_a_batch_has_the_asked_number_of_tokens(batches: list[Batch]) -> None:
    assert {tuple(batch.token_ids.shape) for batch in batches} == {(8, 128), (4, 256)}
    filled = sum(int((batch.token_ids != 0).sum()) for batch in batches) / (1024 * len(batches))
    assert filled > 0.8


def test_a_token_sees_its_own_document_up_to_itself(batches: list[Batch]) -> None:
    for batch in batches:
        visible = batch.mask[:, 0].sum(-1)
        used = batch.token_ids != 0
        assert torch.equal(visible[used], (batch.positions + 1)[used])


def test_a_target_is_the_next_token_of_the_same_document(batches: list[Batch]) -> None:
    for batch in batches:
        rows, columns = torch.nonzero(batch.targets != -100, as_tuple=True)
        assert torch.equal(batch.targets[rows, columns], batch.token_ids[rows, columns + 1])
        assert torch.equal(batch.positions[rows, columns] + 1, batch.positions[rows, columns + 1])


def test_only_replies_are_targets(tokenizer: Tokenizer, batches: list[Batch]) -> None:
    ends = {tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")}
    start = tokenizer.token_to_id("<|im_start|>")
    for batch in batches:
        assert start not in batch.targets
        assert any(end in batch.targets for end in ends)

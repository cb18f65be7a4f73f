"""The embedder: order, packing, limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.toy_encoder import ToyEncoder, row, sequence_of, sequences_of
from fermi.engine.embedder import Embedder
from fermi.engine.vectors import cosine, shortened, unit
from fermi.errors import ContextLengthError, RequestError
from fermi.models.embedding import TokenSequence


@given(st.lists(st.integers(1, 64), max_size=80), st.integers(1, 200))
def test_rows_come_in_order_and_batches_keep_the_budget(lengths: list[int], budget: int) -> None:
    model = ToyEncoder()
    sequences = sequences_of(*lengths)
    rows = Embedder(model, max_batch_tokens=budget).encode(sequences)
    assert rows.dtype == np.float32
    assert rows.tolist() == [row(each) for each in sequences]
    assert sorted(length for batch in model.lengths for length in batch) == sorted(lengths)
    assert all(sum(batch) <= budget or len(batch) == 1 for batch in model.lengths)


def test_batches_hold_sequences_of_like_length() -> None:
    model = ToyEncoder()
    Embedder(model, max_batch_tokens=12).encode(sequences_of(1, 10, 3, 2, 9, 4))
    assert model.lengths == [[10], [9], [4, 3, 2, 1]]


def test_no_batch_is_left_half_empty_where_the_next_sequence_fits() -> None:
    model = ToyEncoder()
    Embedder(model, max_batch_tokens=12).encode(sequences_of(*[4] * 7))
    assert model.lengths == [[4, 4, 4], [4, 4, 4], [4]]


def test_types_reach_the_model() -> None:
    rows = Embedder(ToyEncoder()).encode([TokenSequence([1, 2, 3], [0, 1, 1]), sequence_of(7)])
    assert rows.tolist() == [[3, 6, 2, 1], [1, 7, 0, 1]]


def test_progress_is_told_by_sequences() -> None:
    told: list[int] = []
    Embedder(ToyEncoder(), max_batch_tokens=8).encode(sequences_of(*[4] * 5), told.append)
    assert told == [2, 2, 1]


def test_nothing_gives_no_rows() -> None:
    model = ToyEncoder()
    assert Embedder(model).encode([]).shape == (0, 4)
    assert not model.batches


def test_a_shorter_limit_than_the_models_holds() -> None:
    embedder = Embedder(ToyEncoder(max_seq_length=64), max_seq_length=8)
    assert embedder.max_seq_length == 8
    assert Embedder(ToyEncoder(max_seq_length=64), max_seq_length=100).max_seq_length == 64
    embedder.check(sequences_of(8))
    with pytest.raises(ContextLengthError, match="maximum context length is 8 tokens") as caught:
        embedder.check(sequences_of(8, 9), param="documents")
    assert (caught.value.param, caught.value.code) == ("documents", "context_length_exceeded")


@pytest.mark.parametrize("token_ids", [[], [1, 100], [-1]], ids=["empty", "above", "below"])
def test_what_the_model_cannot_take_is_refused_before_any_of_it_runs(token_ids: list[int]) -> None:
    model = ToyEncoder(vocab_size=100)
    with pytest.raises(RequestError) as caught:
        Embedder(model).encode([sequence_of(1), sequence_of(*token_ids)])
    assert caught.value.param == "input"
    assert not model.batches


def test_vectors() -> None:
    vectors = np.array([[3, 4, 12], [0, 0, 0]], np.float32)
    np.testing.assert_allclose(unit(vectors), [[3 / 13, 4 / 13, 12 / 13], [0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(unit(shortened(vectors, 2)), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert shortened(vectors, None) is vectors
    assert shortened(vectors, 3) is vectors
    for dimensions in (0, 4, -1):
        with pytest.raises(RequestError, match="from 1 to 3") as caught:
            shortened(vectors, dimensions)
        assert caught.value.param == "dimensions"
    left = np.array([[1, 0], [1, 1], [0, -2]], np.float32)
    np.testing.assert_allclose(cosine(left, left), [1, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(cosine(left[:1], left), [1, 0.5**0.5, 0], rtol=1e-6)
    assert cosine(left, left).dtype == np.float32

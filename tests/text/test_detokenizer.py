"""Streamed text is the decoded text, whatever the tokens and however they come."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fermi.text.detokenizer import Detokenizer
from fermi.text.tokenizer import Tokenizer

KINDS = [
    "byte_level",
    "byte_fallback",
    "byte_fallback_unstripped",
    "fused_first",
    "metaspace",
    "metaspace_never",
    "word_piece",
    "word_piece_uncleaned",
    "end_of_word",
    "words",
    "whole_only",
    "word_piece+clean",
    "words+clean",
]


def streamed(tokenizer: Tokenizer, ids: list[int], cuts: list[int], skip: bool) -> list[str]:
    """The pieces of text for ids pushed in groups that end at the cuts."""
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
    borders = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    pieces = [detokenizer.push(ids[begin:end]) for begin, end in itertools.pairwise(borders)]
    return [*pieces, detokenizer.flush()]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=150)
def test_stream_equals_decode(built: dict[str, Tokenizer], kind: str, data: st.DataObject) -> None:
    tokenizer = built[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=40))
    cuts = data.draw(st.lists(st.integers(0, 40)))
    skip = data.draw(st.booleans())
    assert "".join(streamed(tokenizer, ids, cuts, skip)) == tokenizer.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("skip", [True, False])
@given(
    ids=st.lists(st.integers(0, 151_700) | st.integers(0, 260) | st.integers(151_640, 151_670), max_size=60),
    cuts=st.lists(st.integers(0, 60)),
)
@settings(max_examples=300)
def test_stream_equals_decode_for_the_real_vocabulary(
    qwen3: Tokenizer, skip: bool, ids: list[int], cuts: list[int]
) -> None:
    assert "".join(streamed(qwen3, ids, cuts, skip)) == qwen3.decode(ids, skip_special_tokens=skip)


@given(text=st.text(max_size=60), cuts=st.lists(st.integers(0, 200)))
@example(text="👩‍👩‍👧‍👦 naïve 你好 \U0001f1e9\U0001f1ea", cuts=list(range(100)))
def test_characters_are_never_broken(qwen3: Tokenizer, text: str, cuts: list[int]) -> None:
    text = text.replace("\ufffd", "")
    ids = qwen3.encode(text)
    pieces = streamed(qwen3, ids, cuts, False)
    assert "".join(pieces) == qwen3.decode(ids, skip_special_tokens=False)
    assert not any("\ufffd" in piece for piece in pieces)


@given(text=st.text(max_size=60), cuts=st.lists(st.integers(0, 200)))
def test_bytes_of_a_sentencepiece_vocabulary(built: dict[str, Tokenizer], text: str, cuts: list[int]) -> None:
    tokenizer = built["byte_fallback"]
    ids = tokenizer.encode(text.replace("\ufffd", ""), add_special_tokens=False)
    pieces = streamed(tokenizer, ids, cuts, True)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


def test_text_comes_as_soon_as_it_is_certain(qwen3: Tokenizer) -> None:
    ids = qwen3.encode("Hello 𓀀!")
    detokenizer = Detokenizer(qwen3)
    pieces = [detokenizer.push([token_id]) for token_id in ids]
    assert pieces[0] == "Hello"
    assert pieces[-1] == "!"
    assert detokenizer.flush() == ""
    assert "" in pieces, "the hieroglyph has more than one token; nothing may come before its last"


def test_continued_text_keeps_its_first_space(built: dict[str, Tokenizer]) -> None:
    tokenizer = built["byte_fallback"]
    ids = tokenizer.encode("the the", add_special_tokens=False)
    alone, continued = Detokenizer(tokenizer), Detokenizer(tokenizer, continues=True)
    assert alone.push(ids) + alone.flush() == "the the"
    assert continued.push(ids) + continued.flush() == " the the"


def test_a_broken_end_is_replaced_at_the_end_only(qwen3: Tokenizer) -> None:
    first = qwen3.encode("𓀀")[0]
    detokenizer = Detokenizer(qwen3)
    assert detokenizer.push([first]) == ""
    assert detokenizer.flush() == qwen3.decode([first]) != ""


def test_work_per_token_does_not_grow(built: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each id is looked up once, whatever came before it."""
    looked_up: list[int] = []
    tokenizer = built["byte_fallback"]
    pieces = Tokenizer.pieces

    def counted(self: Tokenizer, token_ids: Sequence[int], skip_special_tokens: bool) -> list[str]:
        looked_up.extend(token_ids)
        return pieces(self, token_ids, skip_special_tokens)

    monkeypatch.setattr(Tokenizer, "pieces", counted)
    detokenizer = Detokenizer(tokenizer)
    ids = tokenizer.encode("the cat " * 50)
    for token_id in ids:
        detokenizer.push([token_id])
    assert looked_up == ids

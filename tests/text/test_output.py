"""The text of one sequence: decoded, cut at stops, in any portions."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fermi.text.output import TextStream
from fermi.text.tokenizer import Tokenizer


def streamed(stream: TextStream, ids: list[int], cuts: list[int]) -> str:
    borders = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    pieces = [stream.push(ids[begin:end]) for begin, end in itertools.pairwise(borders)]
    text = "".join([*pieces, stream.finish()])
    assert stream.text == text
    return text


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "word_piece"])
@given(data=st.data())
@settings(max_examples=150)
def test_text_ends_before_the_first_stop(built: dict[str, Tokenizer], kind: str, data: st.DataObject) -> None:
    tokenizer = built[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    whole = tokenizer.decode(ids)
    inside = st.integers(0, max(len(whole) - 1, 0)).flatmap(lambda at: st.just(whole[at : at + 3] or "x"))
    stops = data.draw(st.lists(inside | st.text("ab", min_size=1, max_size=2), max_size=3))
    stream = TextStream(tokenizer, stops)
    text = streamed(stream, ids, data.draw(st.lists(st.integers(0, 30))))
    assert text == whole[: min((whole.find(stop) for stop in stops if stop in whole), default=len(whole))]
    assert (stream.stopped_by is not None) == any(stop in whole for stop in stops)


def test_a_stop_across_tokens(qwen3: Tokenizer) -> None:
    ids = qwen3.encode("Hello world, and good bye")
    stream = TextStream(qwen3, ["world, and"])
    sent = [stream.push([token_id]) for token_id in ids]
    assert "".join(sent) == "Hello "
    assert stream.stopped_by == "world, and"
    assert stream.finish() == ""
    assert stream.text == "Hello "


def test_the_stop_may_be_included(qwen3: Tokenizer) -> None:
    stream = TextStream(qwen3, ["world"], include_stop=True)
    assert stream.push(qwen3.encode("Hello world, again")) == "Hello world"


def test_no_stop_before_enough_tokens(qwen3: Tokenizer) -> None:
    ids = qwen3.encode("stop stop go stop go")
    for size in (1, 2, 5):
        stream = TextStream(qwen3, ["stop"], min_tokens=3)
        for begin in range(0, len(ids), size):
            stream.push(ids[begin : begin + size])
        assert stream.finish() == ""
        assert stream.text == "stop stop go "
        assert stream.stopped_by == "stop"


def test_what_is_held_back_comes_at_the_end(qwen3: Tokenizer) -> None:
    stream = TextStream(qwen3, ["world!"])
    assert stream.push(qwen3.encode("Hello world")) == "Hello "
    assert stream.finish() == "world"
    assert stream.stopped_by is None


def test_special_tokens(qwen3: Tokenizer) -> None:
    ids = [*qwen3.encode("Hi"), *sorted(qwen3.eos_token_ids)]
    assert TextStream(qwen3).push(ids) == "Hi"
    assert TextStream(qwen3, skip_special_tokens=False).push(ids) == "Hi<|im_end|>"


def test_without_stops_all_text_passes(qwen3: Tokenizer) -> None:
    stream = TextStream(qwen3)
    assert stream.text == ""
    assert stream.push([]) == ""
    assert stream.push(qwen3.encode("all of it")) == "all of it"
    assert stream.finish() == ""
    assert stream.text == "all of it"

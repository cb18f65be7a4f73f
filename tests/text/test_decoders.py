"""The stages of streaming decoders that no tokenizer at hand exercises fully."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fermi.text.decoders import StreamDecoder, byte_level_bytes, fallback_byte, plan_decoder

FUSE = {"type": "Fuse"}


def decode(specification: dict[str, Any], pieces: list[str], cleanup: bool = False) -> str:
    plan = plan_decoder(specification, cleanup)
    assert plan is not None
    decoder = StreamDecoder([make(False) for make in plan])
    return "".join([*(decoder.push([piece]) for piece in pieces), decoder.finish()])


@given(st.lists(st.text(" ab", max_size=4)), st.integers(0, 3), st.integers(0, 3))
def test_text_is_stripped_at_both_ends(pieces: list[str], start: int, stop: int) -> None:
    strip = {"type": "Strip", "content": " ", "start": start, "stop": stop}
    text = "".join(pieces)
    for _ in range(start):
        text = text.removeprefix(" ")
    for _ in range(stop):
        text = text.removesuffix(" ")
    assert decode({"type": "Sequence", "decoders": [FUSE, strip]}, pieces) == text


@given(st.lists(st.text("ab", max_size=3)), st.text("ab", min_size=1, max_size=4), st.text("abc", max_size=2))
def test_text_is_replaced_across_pieces(pieces: list[str], pattern: str, content: str) -> None:
    replace = {"type": "Replace", "pattern": {"String": pattern}, "content": content}
    assert decode({"type": "Sequence", "decoders": [FUSE, replace]}, pieces) == "".join(pieces).replace(
        pattern, content
    )


@given(st.lists(st.sampled_from([" ", "'", "s", "n't", ".", "m", "ve", "x"])))
def test_cleanup_is_that_of_transformers(pieces: list[str]) -> None:
    text = "".join(pieces)
    for pattern in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(pattern, pattern.strip())
    assert decode(FUSE, pieces, cleanup=True) == text


@pytest.mark.parametrize(
    "specification",
    [
        {"type": "CTC", "pad_token": "", "word_delimiter_token": "|", "cleanup": True},
        {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"},
        {"type": "Replace", "pattern": {"String": ""}, "content": "b"},
        {"type": "Sequence", "decoders": [FUSE, {"type": "ByteFallback"}]},
        {"type": "Sequence", "decoders": [{"type": "ByteLevel"}, {"type": "ByteLevel"}]},
    ],
)
def test_what_cannot_stream_has_no_plan(specification: dict[str, Any]) -> None:
    assert plan_decoder(specification) is None


def test_sequences_may_nest() -> None:
    inner = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, FUSE]}
    assert decode({"type": "Sequence", "decoders": [inner]}, ["<0xC3>", "<0xA9>", "!"]) == "é!"


@pytest.mark.parametrize(
    ("piece", "byte"),
    [
        ("<0x41>", 0x41),
        ("<0xfF>", 0xFF),
        ("<0x4>", None),
        ("<0xGG>", None),
        ("<0x٣٤>", None),
        ("<0x 4>", None),
        ("", None),
    ],
)
def test_fallback_byte(piece: str, byte: int | None) -> None:
    assert fallback_byte(piece) == byte


def test_byte_level_bytes() -> None:
    assert byte_level_bytes("Ġcaf") == b" caf"
    assert byte_level_bytes("Ã©") == "é".encode()
    assert byte_level_bytes("two words é") == "two words é".encode()

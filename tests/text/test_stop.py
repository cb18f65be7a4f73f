"""Stop strings: the first one cuts the text, and not a character of it is ever given away."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fermi.text.stop import StopStrings

TEXT = st.text("ab\n", max_size=30)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=5), min_size=1, max_size=16)


def expected(text: str, stops: list[str], include: bool = False) -> tuple[str, str | None]:
    """What the whole text becomes: cut at the earliest stop, the shortest of those that begin there."""
    found = min(((text.find(stop), len(stop), stop) for stop in stops if stop in text), default=None)
    if found is None:
        return text, None
    begin, length, stop = found
    return text[: begin + length if include else begin], stop


def streamed(matcher: StopStrings, text: str, cuts: list[int]) -> tuple[list[str], str | None]:
    borders = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    pieces = []
    for begin, end in itertools.pairwise(borders):
        piece, stop = matcher.push(text[begin:end])
        pieces.append(piece)
        if stop is not None:
            return pieces, stop
    piece, stop = matcher.flush()
    return [*pieces, piece], stop


@given(TEXT, STOPS, st.lists(st.integers(0, 30)), st.booleans())
@settings(max_examples=1000)
def test_any_split_gives_the_same(text: str, stops: list[str], cuts: list[int], include: bool) -> None:
    pieces, stop = streamed(StopStrings(stops, include=include), text, cuts)
    assert ("".join(pieces), stop) == expected(text, stops, include)


@given(TEXT, STOPS)
@settings(max_examples=500)
def test_only_what_may_be_a_stop_is_held(text: str, stops: list[str]) -> None:
    """After each character, everything is out but the longest end that a stop begins with."""
    matcher = StopStrings(stops)
    sent = ""
    for seen in range(1, len(text) + 1):
        piece, stop = matcher.push(text[seen - 1])
        sent += piece
        if stop is not None:
            return
        held = text[len(sent) : seen]
        assert any(each.startswith(held) for each in stops)
        longer = text[len(sent) - 1 : seen] if sent else None
        assert longer is None or not any(each.startswith(longer) for each in stops)


def test_a_stop_that_begins_earlier_is_waited_for() -> None:
    matcher = StopStrings(["bc", "abcd"])
    assert matcher.push("xabc") == ("x", None)
    assert matcher.push("d!") == ("", "abcd")

    matcher = StopStrings(["bc", "abcd"])
    assert matcher.push("xabc") == ("x", None)
    assert matcher.push("e") == ("a", "bc")

    matcher = StopStrings(["bc", "abcd"])
    assert matcher.push("xabc") == ("x", None)
    assert matcher.flush() == ("a", "bc")


def test_without_a_stop_nothing_is_held() -> None:
    matcher = StopStrings([])
    assert matcher.push("abc") == ("abc", None)
    assert matcher.flush() == ("", None)


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopStrings(["a", ""])


def test_a_long_stop_that_never_comes_costs_little() -> None:
    matcher = StopStrings(["a" * 5000 + "b"])
    sent = sum(len(matcher.push("a")[0]) for _ in range(20_000))
    assert sent == 15_000

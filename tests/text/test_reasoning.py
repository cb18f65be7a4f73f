"""Reasoning and content come apart the same way however the reply is cut."""

from __future__ import annotations

import itertools
import re
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fermi.config import OpenAISettings
from fermi.errors import ConfigError
from fermi.text.reasoning import REASONING, ReasoningMarkers, ReasoningSplitter, reasoning_markers


def split(reply: str, cuts: list[int], starts_inside: bool = False) -> tuple[str, str]:
    splitter = ReasoningSplitter(starts_inside=starts_inside)
    borders = sorted({0, len(reply), *(cut % (len(reply) + 1) for cut in cuts)})
    deltas = [splitter.push(reply[begin:end]) for begin, end in itertools.pairwise(borders)]
    deltas.append(splitter.finish())
    raw, content = "".join(delta.raw for delta in deltas), "".join(delta.content for delta in deltas)
    assert raw + content == reply
    return "".join(delta.reasoning for delta in deltas), "".join(delta.content for delta in deltas)


def expected(reply: str, starts_inside: bool) -> tuple[str, str]:
    opened = re.match(r"\s*<think>", reply)
    if opened is None and not starts_inside:
        return "", reply
    inside = reply[opened.end() :] if opened else reply
    reasoning, _, content = inside.partition("</think>")
    return reasoning.strip("\n"), content.lstrip("\n")


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "\n", " ", "<", "</th", "ink>", "so", "thus"]), max_size=12),
    st.lists(st.integers(0, 100)),
    st.booleans(),
)
@settings(max_examples=1500)
def test_any_split_gives_the_same(parts: list[str], cuts: list[int], starts_inside: bool) -> None:
    reply = "".join(parts)
    assert split(reply, cuts, starts_inside) == expected(reply, starts_inside)


@pytest.mark.parametrize(
    ("reply", "starts_inside", "reasoning", "content"),
    [
        ("<think>\nfirst\n\nsecond\n</think>\n\nHello", False, "first\n\nsecond", "Hello"),
        ("first</think>Hello", True, "first", "Hello"),
        ("<think>\nfirst</think>Hello", True, "first", "Hello"),  # the model opens it once more
        ("Hello <think>no</think>", False, "", "Hello <think>no</think>"),
        ("<think>never closed\n", False, "never closed", ""),
        ("<think>\n\n</think>\n\nHello", False, "", "Hello"),
        ("<thin", False, "", "<thin"),
        ("", False, "", ""),
        ("\n Hello\n", False, "", "\n Hello\n"),
    ],
)
def test_replies(reply: str, starts_inside: bool, reasoning: str, content: str) -> None:
    for cuts in ([], list(range(len(reply)))):
        assert split(reply, cuts, starts_inside) == (reasoning, content)


def test_reasoning_is_not_kept_waiting() -> None:
    splitter = ReasoningSplitter()
    assert splitter.push("<think>\nI ") == ("I ", "", "<think>\nI ")
    assert splitter.push("see <") == ("see ", "", "see ")
    assert splitter.push("b></thi") == ("<b>", "", "<b>")
    assert splitter.push("nk>\nYes") == ("", "Yes", "</think>\n")
    assert splitter.push(" sir") == ("", " sir", "")


@pytest.mark.parametrize(
    ("prompt", "inside"), [("<|Assistant|><think>\n", True), ("<|Assistant|>", False), ("<think>\n</think>\n", False)]
)
def test_prompts_that_open_the_block(prompt: str, inside: bool) -> None:
    assert ReasoningSplitter.opened_by(prompt) is inside


@given(
    st.sampled_from([each for each in REASONING.values() if each is not None]),
    st.lists(st.sampled_from(["{opening}", "{closing}", "\n", "<", "[/", "Here is my ", "so"]), max_size=8),
    st.lists(st.integers(0, 100)),
)
def test_other_markers(markers: ReasoningMarkers, parts: list[str], cuts: list[int]) -> None:
    reply = "".join(parts).format(opening=markers.opening, closing=markers.closing)
    splitters = [ReasoningSplitter(opening=markers.opening, closing=markers.closing) for _ in range(2)]
    borders = sorted({0, len(reply), *(cut % (len(reply) + 1) for cut in cuts)})
    pieces = [[reply], [reply[begin:end] for begin, end in itertools.pairwise(borders)]]
    whole, cut = (
        [*map(splitter.push, texts), splitter.finish()] for splitter, texts in zip(splitters, pieces, strict=True)
    )
    assert ["".join(each) for each in zip(*whole, strict=True)] == ["".join(each) for each in zip(*cut, strict=True)]


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ '<think>\\n' }}", "think"),
        ("<|START_THINKING|>", "cohere"),
        ("first think: [THINK]...[/THINK]", "mistral"),
        ("<seed:think>", "seed"),
        ("<reasoning>", "reasoning"),
        ("Write 'Here is my thought process:'", "granite"),
        ("<thinking>", "thinking"),
        ("", "think"),
    ],
)
def test_markers_of_templates(template: str, name: str) -> None:
    assert reasoning_markers(template) == REASONING[name]


def test_the_setting_names_them_all() -> None:
    assert set(get_args(OpenAISettings.model_fields["reasoning_parser"].annotation)) == {"auto", *REASONING}


def test_the_setting_wins() -> None:
    assert reasoning_markers("<think>", "mistral") == ("[THINK]", "[/THINK]")
    assert reasoning_markers("<think>", "none") is None
    with pytest.raises(ConfigError, match="'nonsense', only seed"):
        reasoning_markers("", "nonsense")

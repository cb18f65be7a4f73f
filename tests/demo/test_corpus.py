"""The demo corpus: deterministic, and free of what the evaluation asks."""

from __future__ import annotations

import re
from itertools import islice

import pytest

from fermi.demo import phrasing, questions, sums
from fermi.demo.conversation import Segment
from fermi.demo.corpus import INTENTS, Corpus, held_out_wordings

_EQUATION = re.compile(r"(?<!\d)(\d{1,2}) ?(?:\+|plus) ?(\d{1,2})(?!\d)")
_ADDITION = re.compile(r"(?:[Aa]dd|sum of|[Dd]o|I have) (\d{1,2}) (?:and|to|apples and get) (\d{1,2})(?!\d)")


@pytest.fixture(scope="module")
def documents() -> list[list[Segment]]:
    return list(islice(Corpus(seed=7).documents(), 6_000))


def text_of(document: list[Segment]) -> str:
    return "".join(segment.text for segment in document)


def requests_of(document: list[Segment]) -> list[str]:
    turns = re.findall(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", text_of(document), flags=re.DOTALL)
    return [turn for turn in turns if not turn.startswith("<tool_response>")]


def test_the_same_seed_gives_the_same_documents(documents: list[list[Segment]]) -> None:
    assert list(islice(Corpus(seed=7).documents(), 500)) == documents[:500]
    assert list(islice(Corpus(seed=8).documents(), 500)) != documents[:500]


def test_no_document_adds_a_held_out_pair(documents: list[list[Segment]]) -> None:
    held_out = sums.held_out()
    text = "\n".join(map(text_of, documents))
    pairs = {(int(a), int(b)) for pattern in (_EQUATION, _ADDITION) for a, b in pattern.findall(text)}
    assert len(pairs) > 1_500
    assert not [pair for pair in pairs if held_out.contains(*pair)]


def test_held_out_pairs_cover_both_sizes() -> None:
    held_out = sums.held_out()
    assert (len(held_out.one_digit), len(held_out.two_digits)) == (12, 400)
    assert all(b <= 9 for _, b in held_out.one_digit)
    assert held_out.contains(*reversed(min(held_out.one_digit)))


def test_no_document_asks_a_held_out_wording(documents: list[list[Segment]]) -> None:
    asked = {phrasing.normalized(request) for document in documents for request in requests_of(document)}
    assert len(asked) > 1_500
    assert not asked & held_out_wordings()


def test_no_pattern_stands_for_a_held_out_wording() -> None:
    trained = {
        phrasing.normalized(wording)
        for intent in INTENTS
        for pattern in intent.patterns
        for wording in phrasing.wordings(pattern)
    }
    assert not trained & held_out_wordings()


def test_held_out_wordings_of_sums_are_not_trained() -> None:
    assert not set(sums.PHRASINGS) & set(sums.HELD_OUT_PHRASINGS)


def test_every_intent_has_many_wordings_and_its_own_answer() -> None:
    assert len({intent.answer for intent in INTENTS}) == len(INTENTS)
    for intent in INTENTS:
        trained = {wording for pattern in intent.patterns for wording in phrasing.wordings(pattern)}
        assert len(trained) >= 30, intent.topic
        assert len(set(intent.held_out)) >= 4, intent.topic


def test_questions_have_no_duplicates() -> None:
    for questions_of_group in (questions.paraphrases(), questions.one_digit_sums(), questions.two_digit_sums()):
        requests = [question.messages[-1]["content"] for question in questions_of_group]
        assert len(set(requests)) == len(requests)


@pytest.mark.parametrize(("a", "b", "thought"), [
    (7, 8, "Ones: 7 and 8 make 15."),
    (27, 58, "Ones: 7 and 8 make 15. Write 5, carry 1. Tens: 2 and 5 and 1 make 8."),
    (99, 1, "Ones: 9 and 1 make 10. Write 0, carry 1. Tens: 9 and 0 and 1 make 10."),
])  # fmt: skip
def test_the_thought_of_a_sum_is_column_addition(a: int, b: int, thought: str) -> None:
    assert sums.thinking(a, b) == thought


@pytest.mark.parametrize(("pattern", "wordings"), [
    ("(a|b) c", ["a c", "b c"]),
    ("a (b|) (c|d)", ["a b c", "a b d", "a c", "a d"]),
    ("<can> x", ["can i x", "may i x", "is it possible to x", "could i x", "am i able to x", "is there a way to x"]),
])  # fmt: skip
def test_a_pattern_stands_for_each_choice(pattern: str, wordings: list[str]) -> None:
    assert list(phrasing.wordings(pattern)) == wordings

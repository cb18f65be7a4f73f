"""The evaluation counts exactly, and the shipped model passes it through fermi's own engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from fermi.demo import model_folder, questions
from fermi.demo.evaluate import Generate, evaluate, is_right, with_fermi
from fermi.demo.questions import Question

SUM = Question("sums", ({"role": "user", "content": "1+2"},), "1 + 2 = 3")


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("1 + 2 = 3", True),
        ("<think>\nOnes: 1 and 2 make 3.\n</think>\n\n1 + 2 = 3", True),
        ("1 + 2 = 3\n", True),
        ("1 + 2 = 33", False),
        ("3", False),
        ("<think>\n1 + 2 = 3", False),
        ("", False),
    ],
)
def test_a_reply_is_right_when_it_is_the_answer_exactly(reply: str, right: bool) -> None:
    assert is_right(SUM, reply) is right


def test_wrong_replies_are_listed_by_group() -> None:
    def generate(asked: Sequence[Question], enable_thinking: bool) -> list[str]:
        return ["1 + 2 = 3", f"{enable_thinking}"]

    other = Question("other", SUM.messages, "no")
    assert evaluate(generate, [SUM, other], True) == {"sums": [], "other": [(other, "True")]}


@pytest.fixture(scope="module")
def generate() -> Generate:
    pytest.importorskip("fermi._C", reason="the core module is not built")
    return with_fermi(model_folder())


@pytest.mark.parametrize("enable_thinking", [False, True], ids=["no thinking", "thinking"])
@pytest.mark.parametrize("group", [questions.paraphrases, questions.one_digit_sums])
def test_the_model_answers_nine_of_ten(
    generate: Generate, group: Callable[[], list[Question]], enable_thinking: bool
) -> None:
    asked = group()[::2]
    (wrong,) = evaluate(generate, asked, enable_thinking).values()
    assert len(wrong) <= 0.1 * len(asked), wrong

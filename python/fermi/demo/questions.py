"""The evaluation's questions: held-out wordings and held-out sums, with the answers that are compared exactly."""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import Any

from fermi.demo import calculator, copying, objects, sums
from fermi.demo.corpus import INTENTS

_SEED = 3
_DRAWN = 100


@dataclass(frozen=True)
class Question:
    """The group it is counted in, the conversation so far, the tools offered, and the exact reply wanted."""

    group: str
    messages: tuple[dict[str, Any], ...]
    answer: str
    tools: tuple[dict[str, Any], ...] = ()


def all_questions() -> list[Question]:
    """Every question of the evaluation."""
    return [*paraphrases(), *one_digit_sums(), *two_digit_sums(), *drawn()]


def paraphrases() -> list[Question]:
    """Every held-out wording of every intent."""
    return [
        _asked("paraphrased questions", wording, intent.answer) for intent in INTENTS for wording in intent.held_out
    ]


def one_digit_sums() -> list[Question]:
    """Every held-out pair of digits in both orders, in trained and in held-out wordings."""
    pairs = sorted(sums.held_out().one_digit)
    ordered = [order for a, b in pairs for order in dict.fromkeys(((a, b), (b, a)))]
    wordings = ("What is {a} + {b}?", "{a}+{b}", "Add {a} and {b}.", *sums.HELD_OUT_PHRASINGS)
    return [_sum("one-digit sums", a, b, wording) for a, b in ordered for wording in wordings]


def two_digit_sums() -> list[Question]:
    """Every other held-out pair, in one order and one wording each."""
    random = Random(_SEED)
    questions = []
    for pair in sorted(sums.held_out().two_digits):
        a, b = random.sample(pair, 2)
        wording = random.choice((*sums.PHRASINGS, *sums.HELD_OUT_PHRASINGS))
        questions.append(_sum("two-digit sums", a, b, wording))
    return questions


def drawn() -> list[Question]:
    """Fresh draws of what has no list of held-out cases: copying, JSON, and the calculator's call and result."""
    random = Random(_SEED)
    questions = [_asked("copying", *copying.copying(random)) for _ in range(_DRAWN)]
    questions += [_asked("JSON", *objects.json_object(random)) for _ in range(_DRAWN)]
    tool = calculator.tool(random)
    for _ in range(_DRAWN):
        messages, _terms = calculator.conversation(random)
        call = json.dumps(messages[1]["tool_calls"][0]["function"])
        questions.append(
            Question("calculator calls", tuple(messages[:1]), f"<tool_call>\n{call}\n</tool_call>", (tool,))
        )
        questions.append(Question("calculator results", tuple(messages[:3]), messages[3]["content"], (tool,)))
    return questions


def _asked(group: str, request: str, answer: str) -> Question:
    return Question(group, ({"role": "user", "content": request},), answer)


def _sum(group: str, a: int, b: int, wording: str) -> Question:
    return _asked(group, wording.format(a=a, b=b), sums.answer(a, b))

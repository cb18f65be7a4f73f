"""Sums of numbers up to two digits, with the pairs that training never asks for."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

PHRASINGS = (
    "What is {a} + {b}?", "what is {a} + {b}", "{a} + {b}", "{a}+{b}", "{a} + {b} =", "{a}+{b}=", "{a} + {b} = ?",
    "{a}+{b}=?",
    "Add {a} and {b}.", "add {a} and {b}", "Add {a} to {b}", "What is the sum of {a} and {b}?", "sum of {a} and {b}",
    "the sum of {a} and {b}?", "What is {a} plus {b}?", "{a} plus {b}", "How much is {a} + {b}?",
    "how much is {a} plus {b}?",
    "Calculate {a} + {b}.", "calculate {a}+{b}", "Compute {a} + {b}.", "What's {a} + {b}?", "what's {a}+{b}?",
    "What is {a}+{b}?",
    "Please add {a} and {b}.", "Can you add {a} and {b}?", "Tell me {a} + {b}.", "What do {a} and {b} make together?",
    "{a} and {b} make?", "{a} + {b}?", "Solve {a} + {b}.", "Give me the sum of {a} and {b}.", "Work out {a} + {b}",
    "I have {a} apples and get {b} more. How many apples do I have?", "What does {a} + {b} equal?",
)  # fmt: skip

_BEFORE = ("please ", "Hi, ", "Hello! ", "Quick: ", "So, ", "And ", "Now ", "ok, ", "Hey, ", "Question: ", "I wonder, ")
_AFTER = (
    " please", ", please", " for me", " exactly", " makes", " equals", " now", " then?", " gives what?", " in total?",
    " and tell me", " together", " quickly.", "? Thank you", ". Thanks!", " as a number", " without a calculator",
    ", thanks", " is what?",
)  # fmt: skip

# Wordings that only the evaluation uses.
HELD_OUT_PHRASINGS = (
    "Could you tell me what {a} + {b} is?",
    "Please compute the sum {a} + {b}.",
    "How much do {a} and {b} make?",
    "Which number is {a} plus {b}?",
    "Take {a} and add {b} to it.",
)


@dataclass(frozen=True)
class HeldOut:
    """Unordered pairs that no training text adds up as a question or an equation."""

    one_digit: frozenset[tuple[int, int]]
    two_digits: frozenset[tuple[int, int]]

    def contains(self, a: int, b: int) -> bool:
        """Whether the sum of a and b, in either order, belongs to the evaluation."""
        pair = (min(a, b), max(a, b))
        return pair in self.one_digit or pair in self.two_digits


def held_out() -> HeldOut:
    """The fixed held-out pairs: 12 of 55 one-digit pairs, 400 of 4,995 others."""
    random = Random(20)
    small = [(a, b) for a in range(10) for b in range(a, 10)]
    large = [(a, b) for a in range(100) for b in range(a, 100) if b > 9]
    return HeldOut(frozenset(random.sample(small, 12)), frozenset(random.sample(large, 400)))


def training_pair(random: Random, excluded: HeldOut) -> tuple[int, int]:
    """Two numbers whose sum may be trained: mostly two digits, often one digit."""
    while True:
        a, b = (random.randrange(100 if random.random() < 0.7 else 10) for _ in range(2))
        if not excluded.contains(a, b):
            return a, b


def question(a: int, b: int, random: Random) -> str:
    """A request for the sum of a and b in one of the trained wordings, at times with words around it."""
    request = random.choice(PHRASINGS).format(a=a, b=b)
    if random.random() < 0.15:
        request = random.choice(_BEFORE) + request
    if random.random() < 0.2:
        request = request.rstrip("?.") + random.choice(_AFTER)
    return request


def answer(a: int, b: int) -> str:
    """The one right answer, which the evaluation compares exactly."""
    return f"{a} + {b} = {a + b}"


def thinking(a: int, b: int) -> str:
    """The column addition of a and b in words: ones, carry, tens."""
    ones = a % 10 + b % 10
    steps = [f"Ones: {a % 10} and {b % 10} make {ones}."]
    if max(a, b) > 9:
        carry = ones // 10
        steps.append(f"Write {ones % 10}, carry {carry}.")
        steps.append(f"Tens: {a // 10} and {b // 10} and {carry} make {a // 10 + b // 10 + carry}.")
    return " ".join(steps)

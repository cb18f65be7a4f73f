"""Copying and counting: the reply repeats words, letters or numbers of the request."""

from __future__ import annotations

from random import Random

from fermi.demo.stories import ANIMALS, COLORS, NAMES, PLACES, THINGS

_REQUESTS = (
    "Repeat: {}", "repeat: {}", "Say: {}", "Copy this: {}", "Copy: {}", "Repeat after me: {}", "Please repeat: {}",
    "Echo: {}",
    "Write exactly this: {}", 'Repeat "{}"', 'Say "{}"', "copy this text: {}", "Repeat this: {}", "Say exactly: {}",
    "Repeat the words: {}",
)  # fmt: skip
_COUNTS = (
    "Count from {} to {}.", "count from {} to {}", "Please count from {} to {}.", "Can you count from {} to {}?",
    "Count {} to {}",
)  # fmt: skip
_COUNTS_FROM_ONE = ("Count to {}.", "count to {}", "Please count to {}.", "Can you count to {}?", "Count up to {}.")
_COMMON = (
    "hello", "world", "good", "morning", "the", "a", "is", "and", "sun", "moon", "water", "tree", "I", "like", "we",
    "see", "one", "two",
    "time", "day", "night", "very", "nice", "yes", "no", "code", "test", "model", "fast", "slow", "cold", "warm",
    "tea", "bread",
)  # fmt: skip


def copying(random: Random) -> tuple[str, str]:
    """A request to repeat a text, and that text."""
    kind = random.random()
    if kind < 0.55:
        vocabulary = (*_COMMON, *COLORS, *ANIMALS, *PLACES, *THINGS, *NAMES)
        text = " ".join(random.choice(vocabulary) for _ in range(random.randint(1, 7)))
    elif kind < 0.8:
        text = " ".join(_syllables(random) for _ in range(random.randint(1, 4)))
    elif kind < 0.9:
        text = "".join(random.choice("0123456789") for _ in range(random.randint(1, 8)))
    else:
        text = " ".join(random.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(random.randint(2, 6)))
    return random.choice(_REQUESTS).format(text), text


def counting(random: Random) -> tuple[str, str]:
    """A request to count, between two numbers up to 30 or from one up to 50, and the numbers."""
    if random.random() < 0.4:
        start, end = 1, random.randint(3, 50)
        request = random.choice(_COUNTS_FROM_ONE).format(end)
    else:
        start = random.randint(0, 20)
        end = start + random.randint(2, 9)
        request = random.choice(_COUNTS).format(start, end)
    return request, ", ".join(str(number) for number in range(start, end + 1))


def _syllables(random: Random) -> str:
    parts = ("bcdfghjklmnprstvwz", "aeiou", ("", "", "n", "r", "s", "l"))
    return "".join(random.choice(part) for _ in range(random.randint(1, 4)) for part in parts)
